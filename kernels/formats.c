/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Traits, encoders and decoders of the number formats. Everything is integer arithmetic on the bits of the floats, so
 * that the result depends on neither the rounding mode nor the flush-to-zero mode of the caller.
 */
#include "kernels/formats.h"

#include <limits.h>
#include <math.h>
#include <string.h>

#define MSFP(bits)                                                                                                     \
    {                                                                                                                  \
        .format = BW_FORMAT_MSFP##bits, .name = "msfp" #bits, .kind = BW_KIND_INT, .code_bits = bits - 8,              \
        .device_bytes = 1, .mantissa_bits = bits - 9, .block = 16, .exp_min = -63, .exp_max = 40,                      \
        .emax_shift = bits - 10, .max_code = (1 << (bits - 9)) - 1                                                     \
    }

/* A pair's codes are elements of `bits` magnitude bits, shifted left by one if the pair is coarse. The largest values
 * of MX9 are those of the others at an exponent one lower. */
#define MX(name_bits, bits, KIND, bytes, max_exp)                                                                      \
    {                                                                                                                  \
        .format = BW_FORMAT_MX##name_bits, .name = "mx" #name_bits, .kind = KIND, .code_bits = bits + 2,               \
        .device_bytes = bytes, .mantissa_bits = bits + 1, .block = 16, .exp_min = -63, .exp_max = max_exp,             \
        .emax_shift = bits, .max_code = 2 * ((1 << bits) - 1), .sub_block = 2                                          \
    }

/* Indexed by bw_format; rows that are no format have no name. emax_shift of an MX element: emax + mantissa bits +
 * bias - 1, the distance from its largest exponent to its last bit. */
static const bw_format_traits traits[BW_FORMAT_LIMIT] = {
    [BW_FORMAT_FP32] = {BW_FORMAT_FP32, "fp32", BW_KIND_FLOAT, 32, 4, 24, 1, 0, 0, 0, 0, 0},
    [BW_FORMAT_FP16] = {BW_FORMAT_FP16, "fp16", BW_KIND_VECTOR, 16, 2, 11, 1, -24, 5, 0, 2047, 0},
    [BW_FORMAT_BF16] = {BW_FORMAT_BF16, "bf16", BW_KIND_VECTOR, 16, 2, 8, 1, -63, 40, 0, 255, 0},
    [BW_FORMAT_MSFP11] = MSFP(11),
    [BW_FORMAT_MSFP12] = MSFP(12),
    [BW_FORMAT_MSFP13] = MSFP(13),
    [BW_FORMAT_MSFP14] = MSFP(14),
    [BW_FORMAT_MSFP15] = MSFP(15),
    [BW_FORMAT_MSFP16] = MSFP(16),
    [BW_FORMAT_MXINT8] = {BW_FORMAT_MXINT8, "mxint8", BW_KIND_INT, 8, 1, 7, 32, -63, 40, 6, 127, 0},
    [BW_FORMAT_MXFP6_E2M3] = {BW_FORMAT_MXFP6_E2M3, "mxfp6_e2m3", BW_KIND_TABLE, 6, 1, 4, 32, -63, 40, 5, 60, 0},
    [BW_FORMAT_MXFP4_E2M1] = {BW_FORMAT_MXFP4_E2M1, "mxfp4_e2m1", BW_KIND_TABLE, 4, 1, 2, 32, -63, 40, 3, 12, 0},
    [BW_FORMAT_MXFP6_E3M2] = {BW_FORMAT_MXFP6_E3M2, "mxfp6_e3m2", BW_KIND_TABLE, 6, 1, 3, 32, -63, 40, 8, 448, 0},
    [BW_FORMAT_MXFP8_E4M3] = {BW_FORMAT_MXFP8_E4M3, "mxfp8_e4m3", BW_KIND_TABLE, 8, 1, 4, 32, -63, 31, 17, 229376, 0},
    [BW_FORMAT_MXFP8_E5M2] = {BW_FORMAT_MXFP8_E5M2, "mxfp8_e5m2", BW_KIND_TABLE, 8, 1, 3, 32, -63, 17, 31, 3758096384,
                              0},
    [BW_FORMAT_MX9] = MX(9, 7, BW_KIND_INT16, 2, 39),
    [BW_FORMAT_MX6] = MX(6, 4, BW_KIND_INT, 1, 40),
    [BW_FORMAT_MX4] = MX(4, 2, BW_KIND_INT, 1, 40),
};

/* --- code values, computed by the compiler ----------------------------------------------------------------------- */

/* Magnitude of an element with M mantissa bits, in units of its smallest subnormal. */
#define MAGNITUDE(c, M)                                                                                                \
    (((c) >> (M)) ? ((int64_t)((1 << (M)) | ((c) & ((1 << (M)) - 1))) << (((c) >> (M)) + !((c) >> (M)) - 1))           \
                  : (int64_t)(c))
#define SIGNED(c, bits, M)                                                                                             \
    ((((c) >> ((bits)-1)) & 1) ? -MAGNITUDE((c) & ((1 << ((bits)-1)) - 1), M)                                          \
                               : MAGNITUDE((c) & ((1 << ((bits)-1)) - 1), M))
#define VALUE_INT(c)  ((c) < 128 ? (int64_t)(c) : (int64_t)(c)-256)
#define VALUE_E2M3(c) SIGNED(c, 6, 3)
#define VALUE_E2M1(c) SIGNED(c, 4, 1)
#define VALUE_E3M2(c) SIGNED(c, 6, 2)
#define VALUE_E4M3(c) (((c)&0x7F) == 0x7F ? 0 : SIGNED(c, 8, 3))
#define VALUE_E5M2(c) (((c)&0x7F) >= 0x7C ? 0 : SIGNED(c, 8, 2))

#define X4(V, c)  V((c)), V((c) + 1), V((c) + 2), V((c) + 3)
#define X16(V, c) X4(V, (c)), X4(V, (c) + 4), X4(V, (c) + 8), X4(V, (c) + 12)
#define X64(V, c) X16(V, (c)), X16(V, (c) + 16), X16(V, (c) + 32), X16(V, (c) + 48)
#define X256(V)   X64(V, 0), X64(V, 64), X64(V, 128), X64(V, 192)

static const int64_t values_int[256] = {X256(VALUE_INT)};
static const int64_t values_e2m3[256] = {X256(VALUE_E2M3)};
static const int64_t values_e2m1[256] = {X256(VALUE_E2M1)};
static const int64_t values_e3m2[256] = {X256(VALUE_E3M2)};
static const int64_t values_e4m3[256] = {X256(VALUE_E4M3)};
static const int64_t values_e5m2[256] = {X256(VALUE_E5M2)};

const bw_format_traits *bw_format_get(bw_format format)
{
    unsigned number = (unsigned)format;
    return number < BW_FORMAT_LIMIT && traits[number].name ? &traits[number] : NULL;
}

const bw_format_traits *bw_format_find(const char *name)
{
    for (unsigned i = 0; name && i < BW_FORMAT_LIMIT; i++)
        if (traits[i].name && strcmp(traits[i].name, name) == 0)
            return &traits[i];
    return NULL;
}

int bw_format_is_block(const bw_format_traits *t)
{
    return t && (t->kind == BW_KIND_INT || t->kind == BW_KIND_TABLE || t->kind == BW_KIND_INT16);
}

int bw_format_block_ok(const bw_format_traits *t, unsigned block)
{
    if (!t)
        return 0;
    if (t->block == 16)
        return block == 16 || block == 32 || block == 64 || block == 128;
    return block == t->block;
}

const int64_t *bw_code_table(const bw_format_traits *t)
{
    switch (t->format) {
    case BW_FORMAT_MXFP6_E2M3:
        return values_e2m3;
    case BW_FORMAT_MXFP4_E2M1:
        return values_e2m1;
    case BW_FORMAT_MXFP6_E3M2:
        return values_e3m2;
    case BW_FORMAT_MXFP8_E4M3:
        return values_e4m3;
    case BW_FORMAT_MXFP8_E5M2:
        return values_e5m2;
    default:
        return t->kind == BW_KIND_INT ? values_int : NULL;
    }
}

int64_t bw_code_value(const bw_format_traits *t, unsigned code)
{
    const int64_t *table = bw_code_table(t);
    return table ? table[code & 0xFF] : t->kind == BW_KIND_INT16 ? (int16_t)(code & 0xFFFF) : 0;
}

/* --- rounding ------------------------------------------------------------------------------------------------------
 */

/* |x| = sig * 2^exp with an integer sig < 2^24; sig >= 2^23 unless x is subnormal or zero. */
typedef struct magnitude {
    uint32_t sig;
    int exp;
    int negative;
} magnitude;

static magnitude split(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint32_t field = (bits >> 23) & 0xFF, fraction = bits & 0x7FFFFF;
    magnitude m = {field ? fraction | 0x800000 : fraction, field ? (int)field - 150 : -149, (int)(bits >> 31)};
    return m;
}

/* floor(log2(v)), v > 0 */
static int floor_log2(uint32_t v)
{
    return 31 - __builtin_clz(v);
}

/* sig * 2^shift rounded to an integer, at most `limit` (< 2^32). */
static uint64_t round_scaled(uint32_t sig, int shift, bw_round round, uint64_t limit)
{
    uint64_t q;
    if (sig == 0)
        return 0;
    if (shift >= 0) {
        if (shift > 32)
            return limit;
        q = (uint64_t)sig << shift;
    } else if (shift < -25) {
        q = 0; /* below a quarter */
    } else {
        uint32_t drop = (uint32_t)-shift, rest = sig & ((1u << drop) - 1), half = 1u << (drop - 1);
        q = sig >> drop;
        if (round == BW_ROUND_EVEN)
            q += rest > half || (rest == half && (q & 1));
        else if (round == BW_ROUND_NEAREST)
            q += rest >= half;
    }
    return q < limit ? q : limit;
}

/* --- block formats --------------------------------------------------------------------------------------------------
 */

int bw_block_exponent(const bw_format_traits *t, const float *x, size_t n)
{
    uint32_t max = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bits &= 0x7FFFFFFF; /* magnitudes of floats order as their bits do */
        if (bits > max)
            max = bits;
    }
    if (max == 0)
        return INT_MIN;
    float m;
    memcpy(&m, &max, sizeof m);
    magnitude a = split(m);
    return floor_log2(a.sig) + a.exp - t->emax_shift;
}

/* The element encoding nearest to sig * 2^shift units of the smallest subnormal, for M mantissa bits. */
static uint8_t encode_element(const bw_format_traits *t, magnitude a, int shift, bw_round round)
{
    unsigned m = t->mantissa_bits - 1u, sign_bit = t->code_bits - 1u;
    /* The largest finite element: all ones, less what e4m3 (NaN) and e5m2 (infinity, NaN) reserve. */
    uint64_t largest = (1u << sign_bit) - 1;
    if (t->format == BW_FORMAT_MXFP8_E4M3)
        largest = 0x7E;
    else if (t->format == BW_FORMAT_MXFP8_E5M2)
        largest = 0x7B;
    if (a.sig == 0)
        return 0;
    /* Exponent field less one, as long as the value is normal: it counts the units of the last kept bit. */
    int last = floor_log2(a.sig) + shift - (int)m;
    if (last < 0)
        last = 0;
    if (last > 31)
        last = 31; /* far beyond the largest of any format */
    /* A carry out of the significand runs into the exponent field, which is what it means. */
    uint64_t code = ((uint64_t)last << m) + round_scaled(a.sig, shift - last, round, UINT32_MAX);
    if (code > largest)
        code = largest;
    return (uint8_t)(code | (a.negative && code ? 1u << sign_bit : 0));
}

static void store_integer(const bw_format_traits *t, int q, size_t i, uint8_t *codes)
{
    int16_t wide = (int16_t)q; /* little-endian, as device memory is */
    if (t->kind == BW_KIND_INT16)
        memcpy(codes + 2 * i, &wide, sizeof wide);
    else
        codes[i] = (uint8_t)(int8_t)q;
}

/* One pair, or the odd value at the end. */
static void encode_pair(const bw_format_traits *t, bw_round round, const float *x, size_t n, int e, size_t i,
                        uint8_t *codes)
{
    magnitude a[2] = {{0, 0, 0}};
    int coarse = 0;
    for (size_t k = 0; k < n; k++) {
        a[k] = split(x[k]);
        coarse |= a[k].sig && floor_log2(a[k].sig) + a[k].exp - e >= t->mantissa_bits - 1;
    }
    for (size_t k = 0; k < n; k++) {
        int q = (int)round_scaled(a[k].sig, a[k].exp - e - coarse, round, (uint64_t)t->max_code / 2);
        q *= 1 << coarse;
        store_integer(t, a[k].negative ? -q : q, i + k, codes);
    }
}

void bw_encode_block_at(const bw_format_traits *t, bw_round round, const float *x, size_t n, int e, void *to)
{
    uint8_t *codes = to;
    if (t->sub_block) {
        for (size_t i = 0; i < n; i += 2)
            encode_pair(t, round, x + i, n - i < 2 ? n - i : 2, e, i, codes);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        magnitude a = split(x[i]);
        if (t->kind == BW_KIND_TABLE) {
            codes[i] = encode_element(t, a, a.exp - e, round);
        } else {
            int q = (int)round_scaled(a.sig, a.exp - e, round, (uint64_t)t->max_code);
            store_integer(t, a.negative ? -q : q, i, codes);
        }
    }
}

void bw_encode_block(const bw_format_traits *t, bw_round round, const float *x, size_t n, void *codes, int8_t *e)
{
    int own = bw_block_exponent(t, x, n);
    if (own < t->exp_min)
        own = t->exp_min;
    if (own > t->exp_max)
        own = t->exp_max;
    bw_encode_block_at(t, round, x, n, own, codes);
    *e = (int8_t)own;
}

void bw_decode_block(const bw_format_traits *t, const void *from, int e, size_t n, float *y)
{
    const int64_t *table = bw_code_table(t);
    const uint8_t *codes = from;
    for (size_t i = 0; i < n; i++) {
        int16_t wide;
        if (t->kind == BW_KIND_INT16) {
            memcpy(&wide, codes + 2 * i, sizeof wide);
            y[i] = ldexpf(wide, e);
        } else {
            y[i] = table ? ldexpf((float)table[codes[i]], e) : 0.0f;
        }
    }
}

/* --- vector formats --------------------------------------------------------------------------------------------------
 */

uint16_t bw_encode_vector(const bw_format_traits *t, float x)
{
    magnitude a = split(x);
    if (a.sig == 0)
        return 0;
    int kept = t->mantissa_bits - 1; /* fraction bits */
    int last = floor_log2(a.sig) + a.exp - kept;
    if (last < t->exp_min)
        last = t->exp_min;
    uint32_t code;
    if (last > t->exp_max) {
        code = UINT32_MAX;
    } else {
        uint32_t q = (uint32_t)round_scaled(a.sig, a.exp - last, BW_ROUND_EVEN, UINT32_MAX);
        if (q == 0)
            return 0;
        if (t->format == BW_FORMAT_FP16) {
            code = ((uint32_t)(last - t->exp_min) << kept) + q;
        } else {
            float y = ldexpf((float)q, last); /* at most 8 significant bits: the upper half of a float */
            memcpy(&code, &y, sizeof code);
            code >>= 16;
        }
    }
    uint32_t largest = t->format == BW_FORMAT_FP16 ? 0x7BFF : 0x577F; /* 65504; 255 * 2^40 */
    if (code > largest)
        code = largest;
    return (uint16_t)(code | (uint32_t)a.negative << 15);
}

float bw_decode_vector(const bw_format_traits *t, uint16_t code)
{
    uint32_t bits;
    float y;
    if (t->format == BW_FORMAT_FP16) {
        uint32_t field = (code >> 10) & 31, fraction = code & 1023u;
        if (field == 31)
            bits = 0x7F800000 | fraction << 13;
        else if (field)
            bits = (field + 112) << 23 | fraction << 13;
        else {
            y = ldexpf((float)fraction, -24);
            memcpy(&bits, &y, sizeof bits);
        }
        bits |= (uint32_t)(code & 0x8000u) << 16;
    } else {
        bits = (uint32_t)code << 16;
    }
    memcpy(&y, &bits, sizeof y);
    return y;
}
