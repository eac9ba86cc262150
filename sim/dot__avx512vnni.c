/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CONV kernels, AVX-512 VNNI. VPDPBUSD multiplies unsigned by signed bytes: the activations take the unsigned side as
 * code + 128, and each sum starts at -128 * (sum of the block's weights), which sum8 prepares for a tile, together with
 *   the bits of 1.5 * 2^23 as a float: the int32 sum D, |D| < 2^22, then is the mantissa of a float, 1.5 * 2^23 + D,
 *   the exponents, added to the exponent field: 2^e * (1.5 * 2^23 + D).
 * A float subtraction, exact, leaves D * 2^e. All exponents there are legal: e is -126 .. 80, so that the exponent
 * field is 24 .. 230, and D * 2^e is no subnormal.
 *
 * Why: an inner loop is bound by the two pipes that multiply. Converting by magic numbers and adding the exponents as
 * integers moves work to the pipes that add; a quarter of the pixels multiply by 2^ea in a fused multiply-add instead,
 * which balances the four pipes best (measured on Zen 4: 208 G multiply-adds/s of 234 that VPDPBUSD alone reaches, 187
 * with all, 198 with none).
 */
#include <immintrin.h>
#include <string.h>

#include "sim/fast.h"

#define INLINE static inline __attribute__((always_inline))

INLINE __m512i broadcast(const void *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm512_set1_epi32(v);
}

INLINE __m512i load_exponents(const int8_t *e)
{
    return _mm512_slli_epi32(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)e)), 23);
}

/* s + d * 2^(ea + ew) */
INLINE __m512 accumulate(__m512 s, __m512i d, __m512i ew, const int32_t *ea)
{
    __m512 scale = _mm512_castsi512_ps(_mm512_add_epi32(ew, broadcast(ea)));
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(d), scale, s);
}

#define MAGIC 0x4B400000 /* 1.5 * 2^23 */

INLINE __m512 subtract(__m512i a, __m512i b)
{
    return _mm512_sub_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b));
}

/* For each block: MAGIC + ew - 128 * (sum of weights), and MAGIC + ew. */
static void sum8(const int8_t *w, const int8_t *exps, size_t blocks, size_t block, int32_t *sums)
{
    const __m512i half = _mm512_set1_epi8((char)0x80), magic = _mm512_set1_epi32(MAGIC);
    for (size_t k = 0; k < blocks; k++, exps += 16, sums += BW_DOT_SUMS) {
        __m512i even = _mm512_setzero_si512(), odd = even;
        for (size_t i = 0; i < block; i += 8, w += 128) {
            even = _mm512_dpbusd_epi32(even, half, _mm512_loadu_si512(w));
            odd = _mm512_dpbusd_epi32(odd, half, _mm512_loadu_si512(w + 64));
        }
        const __m512i base = _mm512_add_epi32(magic, load_exponents(exps));
        _mm512_storeu_si512(sums, _mm512_sub_epi32(base, _mm512_add_epi32(even, odd)));
        _mm512_storeu_si512(sums + 16, base);
    }
}

/* Which pixels take the fused multiply-add. */
#define FUSED(p) ((p) % 4 == 1)

INLINE __m512i first_sum(unsigned p, __m512i q, __m512i ea)
{
    return FUSED(p) ? q : _mm512_add_epi32(q, ea);
}

/* s + d * 2^ea; ew is in d already. */
INLINE __m512 add_fused(__m512 s, __m512i d, __m512i base, __m512i ea)
{
    const __m512i one = _mm512_set1_epi32(0x3F800000);
    return _mm512_fmadd_ps(subtract(d, base), _mm512_castsi512_ps(_mm512_add_epi32(ea, one)), s);
}

INLINE __m512 add_sum(unsigned p, __m512 s, __m512i d, __m512i base, __m512i ea)
{
    return FUSED(p) ? add_fused(s, d, base, ea) : _mm512_add_ps(s, subtract(d, _mm512_add_epi32(base, ea)));
}

#define TILES 2u

/* P pixels, T tiles, B > 0 are constants. `whole`: the weights of a block stay in registers, else the sums do. */
INLINE void dot8_many(const bw_dot_args *g, const unsigned P, const unsigned T, const size_t B, const int whole)
{
    const uint8_t *codes = g->codes;
    const int8_t *w = g->weights;
    const int32_t *sums = g->sums;
    const uint8_t *ahead = g->ahead;
    const size_t code_step = g->code_step, scale_step = g->scale_step, w_step = g->weight_step, q_step = g->sum_step;
    __m512 s[8][TILES];
#pragma GCC unroll 8
    for (unsigned p = 0; p < P; p++)
#pragma GCC unroll 2
        for (unsigned t = 0; t < T; t++)
            s[p][t] = _mm512_loadu_ps(g->start ? g->start + 16 * t : g->acc + p * g->stride + 16 * t);
    for (size_t r = 0; r < g->run_count; r++) {
        const uint8_t *a = codes + g->runs[r].at * B;
        const int32_t *ea = g->scale + g->runs[r].at;
        for (size_t left = g->runs[r].blocks; left; left--) {
            __m512i q[TILES], base[TILES], d[8][TILES];
            for (size_t i = 0; i < g->ahead_lines; i++, ahead += 64)
                _mm_prefetch((const char *)ahead, _MM_HINT_T1);
#pragma GCC unroll 2
            for (unsigned t = 0; t < T; t++) {
                q[t] = _mm512_loadu_si512(sums + t * q_step);
                base[t] = _mm512_loadu_si512(sums + t * q_step + 16);
            }
            if (whole) {
                __m512i v[TILES][4];
#pragma GCC unroll 2
                for (unsigned t = 0; t < T; t++)
#pragma GCC unroll 4
                    for (unsigned i = 0; i < 4; i++)
                        v[t][i] = _mm512_loadu_si512(w + t * w_step + 64 * i);
#pragma GCC unroll 8
                for (unsigned p = 0; p < P; p++) {
                    const __m512i e = broadcast(ea + p * scale_step);
#pragma GCC unroll 2
                    for (unsigned t = 0; t < T; t++)
                        d[p][t] = first_sum(p, q[t], e);
#pragma GCC unroll 4
                    for (unsigned i = 0; i < 4; i++) {
                        const __m512i x = broadcast(a + p * code_step + 4 * i);
#pragma GCC unroll 2
                        for (unsigned t = 0; t < T; t++)
                            d[p][t] = _mm512_dpbusd_epi32(d[p][t], x, v[t][i]);
                    }
#pragma GCC unroll 2
                    for (unsigned t = 0; t < T; t++)
                        s[p][t] = add_sum(p, s[p][t], d[p][t], base[t], e);
                }
            } else {
#pragma GCC unroll 8
                for (unsigned p = 0; p < P; p++)
#pragma GCC unroll 2
                    for (unsigned t = 0; t < T; t++)
                        d[p][t] = first_sum(p, q[t], broadcast(ea + p * scale_step));
#pragma GCC unroll 8
                for (size_t i = 0; i < B / 4; i++) {
                    __m512i v[TILES];
#pragma GCC unroll 2
                    for (unsigned t = 0; t < T; t++)
                        v[t] = _mm512_loadu_si512(w + t * w_step + 64 * i);
#pragma GCC unroll 8
                    for (unsigned p = 0; p < P; p++) {
                        const __m512i x = broadcast(a + p * code_step + 4 * i);
#pragma GCC unroll 2
                        for (unsigned t = 0; t < T; t++)
                            d[p][t] = _mm512_dpbusd_epi32(d[p][t], x, v[t]);
                    }
                }
#pragma GCC unroll 8
                for (unsigned p = 0; p < P; p++) {
                    const __m512i e = broadcast(ea + p * scale_step);
#pragma GCC unroll 2
                    for (unsigned t = 0; t < T; t++)
                        s[p][t] = add_sum(p, s[p][t], d[p][t], base[t], e);
                }
            }
            a += B, w += 16 * B, sums += BW_DOT_SUMS, ea++;
        }
    }
#pragma GCC unroll 8
    for (unsigned p = 0; p < P; p++)
#pragma GCC unroll 2
        for (unsigned t = 0; t < T; t++)
            _mm512_storeu_ps(g->acc + p * g->stride + 16 * t, s[p][t]);
}

/* Far enough ahead for memory to keep up with one pixel. */
#define AHEAD 4096

/* 64 codes; 4 bits each if `values` has what they stand for (16 values, four times). */
INLINE __m512i load_codes(const uint8_t *w, const __m512i *values)
{
    if (!values)
        return _mm512_loadu_si512(w);
    const __m512i nibbles = _mm512_set1_epi16(0x0F0F);
    const __m512i x = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)w));
    /* (x | x << 4) & nibbles */
    return _mm512_shuffle_epi8(*values, _mm512_ternarylogic_epi32(x, _mm512_slli_epi16(x, 4), nibbles, 0xA8));
}

/* One pixel: the weights are read once, unpacked and summed on the way. */
INLINE void dot8_one(const bw_dot_args *g, const __m512i *values)
{
    const __m512i half = _mm512_set1_epi8((char)0x80), magic = _mm512_set1_epi32(MAGIC);
    const size_t B = g->block, bytes = values ? 32 : 64;
    for (size_t t = 0; t < g->tiles; t++) {
        const uint8_t *w = (const uint8_t *)g->weights + t * g->weight_step;
        const int8_t *we = g->weight_exps + t * g->exp_step;
        __m512 s = _mm512_loadu_ps(g->start ? g->start + 16 * t : g->acc + 16 * t);
        for (size_t r = 0; r < g->run_count; r++) {
            const uint8_t *a = (const uint8_t *)g->codes + g->runs[r].at * B;
            const int32_t *ea = g->scale + g->runs[r].at;
            for (size_t left = g->runs[r].blocks; left; left--, we += 16, ea++) {
                const __m512i base = _mm512_add_epi32(magic, load_exponents(we));
                __m512i even = base, odd = _mm512_setzero_si512(), less = odd, more = odd;
                for (size_t i = 0; i < B; i += 8, w += 2 * bytes, a += 8) {
                    const __m512i v0 = load_codes(w, values), v1 = load_codes(w + bytes, values);
                    if (values) /* whole bytes are fetched in time by the hardware */
                        _mm_prefetch((const char *)w + AHEAD, _MM_HINT_T0);
                    even = _mm512_dpbusd_epi32(even, broadcast(a), v0);
                    odd = _mm512_dpbusd_epi32(odd, broadcast(a + 4), v1);
                    less = _mm512_dpbusd_epi32(less, half, v0);
                    more = _mm512_dpbusd_epi32(more, half, v1);
                }
                const __m512i d = _mm512_sub_epi32(_mm512_add_epi32(even, odd), _mm512_add_epi32(less, more));
                s = add_fused(s, d, base, broadcast(ea));
            }
        }
        _mm512_storeu_ps(g->acc + 16 * t, s);
    }
}

INLINE void dot16_any(const bw_dot_args *g, const unsigned P)
{
    const int16_t *w = g->weights;
    const int8_t *we = g->weight_exps;
    const size_t B = g->block, step = g->code_step / 2;
    __m512 s[BW_GROUP_MAX];
#pragma GCC unroll 12
    for (unsigned p = 0; p < P; p++)
        s[p] = _mm512_loadu_ps(g->start ? g->start : g->acc + p * g->stride);
    for (size_t r = 0; r < g->run_count; r++) {
        const int16_t *a = (const int16_t *)g->codes + g->runs[r].at * B;
        const int32_t *ea = g->scale + g->runs[r].at;
        for (size_t left = g->runs[r].blocks; left; left--) {
            __m512i d[BW_GROUP_MAX];
#pragma GCC unroll 12
            for (unsigned p = 0; p < P; p++)
                d[p] = _mm512_setzero_si512();
            for (size_t i = 0; i < B; i += 2, w += 32) {
                __m512i v = _mm512_loadu_si512(w);
#pragma GCC unroll 12
                for (unsigned p = 0; p < P; p++)
                    d[p] = _mm512_dpwssd_epi32(d[p], v, broadcast(a + p * step + i));
            }
            __m512i ew = load_exponents(we);
#pragma GCC unroll 12
            for (unsigned p = 0; p < P; p++)
                s[p] = accumulate(s[p], d[p], ew, ea + p * g->scale_step);
            a += B, we += 16, ea++;
        }
    }
#pragma GCC unroll 12
    for (unsigned p = 0; p < P; p++)
        _mm512_storeu_ps(g->acc + p * g->stride, s[p]);
}

typedef void (*dot_fn)(const bw_dot_args *g);

/* Pixels that leave the registers room, by block. */
#define P16 8
#define P32 7
#define P64 6

#define DEFINE8(P)                                                                                                     \
    static void dot8_p##P##_t1_b16(const bw_dot_args *g)                                                               \
    {                                                                                                                  \
        dot8_many(g, P, 1, 16, 0);                                                                                     \
    }                                                                                                                  \
    static void dot8_p##P##_t2_b16(const bw_dot_args *g)                                                               \
    {                                                                                                                  \
        dot8_many(g, P, 2, 16, 1);                                                                                     \
    }                                                                                                                  \
    static void dot8_p##P##_t1_b32(const bw_dot_args *g)                                                               \
    {                                                                                                                  \
        dot8_many(g, P, 1, 32, 0);                                                                                     \
    }                                                                                                                  \
    static void dot8_p##P##_t2_b32(const bw_dot_args *g)                                                               \
    {                                                                                                                  \
        dot8_many(g, P, 2, 32, 0);                                                                                     \
    }                                                                                                                  \
    static void dot8_p##P##_t1_any(const bw_dot_args *g)                                                               \
    {                                                                                                                  \
        dot8_many(g, P, 1, g->block, 0);                                                                               \
    }                                                                                                                  \
    static void dot8_p##P##_t2_any(const bw_dot_args *g)                                                               \
    {                                                                                                                  \
        dot8_many(g, P, 2, g->block, 0);                                                                               \
    }
#define ENTRY8(P)                                                                                                      \
    {{dot8_p##P##_t1_b16, dot8_p##P##_t2_b16},                                                                         \
     {dot8_p##P##_t1_b32, dot8_p##P##_t2_b32},                                                                         \
     {dot8_p##P##_t1_any, dot8_p##P##_t2_any}},
#define FOR_EACH_8(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8)

FOR_EACH_8(DEFINE8)
static const dot_fn bytes[8][3][TILES] = {FOR_EACH_8(ENTRY8)};

static void dot8(const bw_dot_args *g)
{
    if (g->nibbles) {
        const __m512i values = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)g->nibbles));
        dot8_one(g, &values);
    } else if (g->sums)
        bytes[g->pixels - 1][g->block == 16 ? 0 : g->block == 32 ? 1 : 2][g->tiles - 1](g);
    else
        dot8_one(g, NULL);
}

#define DEFINE16(P)                                                                                                    \
    static void dot16_p##P(const bw_dot_args *g)                                                                       \
    {                                                                                                                  \
        dot16_any(g, P);                                                                                               \
    }
#define ENTRY16(P)     dot16_p##P,
#define FOR_EACH_16(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)

FOR_EACH_16(DEFINE16)
static const dot_fn words[BW_GROUP_MAX] = {FOR_EACH_16(ENTRY16)};

static void dot16(const bw_dot_args *g)
{
    words[g->pixels - 1](g);
}

/* --- codes ---------------------------------------------------------------------------------------------------------
 */

/* The values of up to 64 codes of a TABLE format, 16 bits each; what lies above six bits of a code does not count. */
typedef struct lookup {
    __m512i low, high;
} lookup;

INLINE lookup load_lookup(const int16_t *values)
{
    lookup t = {_mm512_loadu_si512(values), _mm512_loadu_si512(values + 32)};
    return t;
}

INLINE __m512i look_up(const lookup *t, __m512i codes)
{
    return _mm512_permutex2var_epi16(t->low, codes, t->high);
}

INLINE __m512i load_bytes(const uint8_t *codes) /* 32, zero-extended */
{
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)codes));
}

static void unpack4(const bw_format_traits *t, const uint8_t *packed, size_t count, uint8_t *codes)
{
    const __m512i nibbles = _mm512_set1_epi16(0x0F0F);
    const __m512i sign = _mm512_set1_epi8(t->kind == BW_KIND_INT ? 8 : 0);
    for (size_t i = 0; i < count; i += 64) {
        __m512i w = load_bytes(packed + i / 2);
        w = _mm512_and_si512(_mm512_or_si512(w, _mm512_slli_epi16(w, 4)), nibbles);
        w = _mm512_sub_epi8(_mm512_xor_si512(w, sign), sign);
        _mm512_storeu_si512(codes + i, w);
    }
}

/* 32 codes are 4 * bits bytes: two loads of 16 bytes hold 16 codes each, eight to a 128-bit lane. Each code's two bytes
 * go to a 16-bit lane, its bits to the lane's top, and back down with or without sign. */
INLINE void unpack32(const uint8_t *packed, unsigned bits, __m512i pick, __m512i up, int is_signed, uint8_t *codes)
{
    const __m256i lo = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)packed));
    const __m256i hi = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)(packed + 2 * bits)));
    const __m128i down = _mm_cvtsi32_si128(16 - (int)bits);
    __m512i w = _mm512_shuffle_epi8(_mm512_inserti64x4(_mm512_castsi256_si512(lo), hi, 1), pick);
    w = _mm512_sllv_epi16(w, up);
    w = is_signed ? _mm512_sra_epi16(w, down) : _mm512_srl_epi16(w, down);
    _mm256_storeu_si256((__m256i *)(void *)codes, _mm512_cvtepi16_epi8(w));
}

static void unpack(const bw_format_traits *t, const uint8_t *packed, size_t count, uint8_t *codes)
{
    const unsigned bits = t->code_bits;
    if (bits == 4) {
        unpack4(t, packed, count, codes);
        return;
    }
    uint8_t pick_bytes[64];
    uint16_t up_words[32];
    for (unsigned i = 0; i < 32; i++) {
        const unsigned bit = i % 16 * bits;
        pick_bytes[2 * i] = (uint8_t)(bit / 8);
        pick_bytes[2 * i + 1] = (uint8_t)(bit / 8 + 1);
        up_words[i] = (uint16_t)(16 - bits - bit % 8);
    }
    const __m512i pick = _mm512_loadu_si512(pick_bytes), up = _mm512_loadu_si512(up_words);
    const int is_signed = t->kind == BW_KIND_INT;
    size_t i = 0;
    for (; i + 64 <= count; i += 32) /* reads up to 10 bytes past its own, which are there but for the last */
        unpack32(packed + i * bits / 8, bits, pick, up, is_signed, codes + i);
    for (; i < count; i += 32) {
        uint8_t part[64] = {0};
        memcpy(part, packed + i * bits / 8, 4 * bits);
        unpack32(part, bits, pick, up, is_signed, codes + i);
    }
}

static void map8(const int16_t *values, size_t count, uint8_t *codes)
{
    const lookup t = load_lookup(values);
    for (size_t i = 0; i < count; i += 32) {
        __m256i v = _mm512_cvtepi16_epi8(look_up(&t, load_bytes(codes + i)));
        _mm256_storeu_si256((__m256i *)(void *)(codes + i), v);
    }
}

/* Codes of each output [i % 4] to pairs: 64 bytes are 16 outputs x 4. */
static void widen(const uint8_t *codes, const int16_t *values, size_t blocks, size_t block, int16_t *out)
{
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    static const int16_t none[64];
    const lookup t = load_lookup(values ? values : none);
    for (size_t q = 0; q < blocks * block / 4; q++, codes += 64, out += 64) {
        __m512i lo, hi;
        if (values) {
            lo = look_up(&t, load_bytes(codes));
            hi = look_up(&t, load_bytes(codes + 32));
        } else {
            lo = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)codes));
            hi = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)(codes + 32)));
        }
        _mm512_storeu_si512(out, _mm512_permutex2var_epi32(lo, even, hi));
        _mm512_storeu_si512(out + 32, _mm512_permutex2var_epi32(lo, odd, hi));
    }
}

/* --- panels --------------------------------------------------------------------------------------------------------
 */

/* The exponents of `count` blocks plus `bias`, as exponent fields; NULL: zeros. */
INLINE void pack_scales(const int8_t *exps, size_t count, int bias, int32_t *scale)
{
    for (size_t k = 0; k < count; k += 16) {
        const __mmask16 some = (__mmask16)(count - k >= 16 ? 0xFFFF : (1u << (count - k)) - 1);
        __m512i e = _mm512_set1_epi32(bias);
        if (exps)
            e = _mm512_add_epi32(e, _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(some, exps + k)));
        _mm512_mask_storeu_epi32(scale + k, some, _mm512_slli_epi32(e, 23));
    }
}

static void pack8(const bw_pack_args *g)
{
    const __m512i half = _mm512_set1_epi8((char)0x80);
    const size_t n = g->count * g->block;
    uint8_t *out = g->out;
    pack_scales(g->codes ? g->exps : NULL, g->count, 0, g->scale);
    if (!g->codes) {
        memset(out, 0x80, n);
    } else if (g->values) { /* MX: blocks of 32 */
        const lookup t = load_lookup(g->values);
        for (size_t i = 0; i < n; i += 32) {
            __m256i c = _mm512_cvtepi16_epi8(look_up(&t, load_bytes(g->codes + i)));
            _mm256_storeu_si256((__m256i *)(void *)(out + i), _mm256_xor_si256(c, _mm512_castsi512_si256(half)));
        }
    } else {
        size_t i = 0;
        for (; i + 64 <= n; i += 64)
            _mm512_storeu_si512(out + i, _mm512_xor_si512(_mm512_loadu_si512(g->codes + i), half));
        if (i < n) {
            const __mmask64 some = ((__mmask64)1 << (n - i)) - 1;
            _mm512_mask_storeu_epi8(out + i, some, _mm512_xor_si512(_mm512_maskz_loadu_epi8(some, g->codes + i), half));
        }
    }
}

static void pack16(const bw_pack_args *g)
{
    const size_t n = g->count * g->block;
    int16_t *out = g->out;
    pack_scales(g->codes ? g->exps : NULL, g->count, 127, g->scale);
    if (!g->codes) {
        memset(out, 0, n * sizeof *out);
    } else if (g->values) {
        const lookup t = load_lookup(g->values);
        for (size_t i = 0; i < n; i += 32)
            _mm512_storeu_si512(out + i, look_up(&t, load_bytes(g->codes + i)));
    } else {
        for (size_t i = 0; i < n; i += 16)
            _mm256_storeu_si256((__m256i *)(void *)(out + i),
                                _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(g->codes + i))));
    }
}

const bw_dot_kernels bw_dot_avx512vnni = {
    .group = BW_GROUP_MAX,
    .group8 = {P16, P32, P64},
    .few8 = 1,
    .tiles8 = TILES,
    .dot8 = dot8,
    .pack8 = pack8,
    .sum8 = sum8,
    .wide = &bw_wide_avx512vnni,
    .dot16 = dot16,
    .pack16 = pack16,
    .unpack = unpack,
    .map8 = map8,
    .widen = widen,
    .widen_words = bw_widen_words_avx512vnni,
};
