/* SPDX-License-Identifier: Apache-2.0 */
/* Formats against a brute-force oracle (search all codes for the nearest), exhaustively where that is possible. */
#include <limits.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/formats.h"
#include "tests/support/lcg.h"

static uint64_t seed = 1;

static uint32_t draw(void)
{
    return (uint32_t)(bw_lcg(&seed) >> 32);
}

static float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* The traits of block format number f, or NULL. */
static const bw_format_traits *block_format(unsigned f)
{
    const bw_format_traits *t = bw_format_get((bw_format)f);
    return bw_format_is_block(t) ? t : NULL;
}

/* Device code i of an array. */
static unsigned code_at(const bw_format_traits *t, const uint8_t *codes, size_t i)
{
    uint16_t word;
    if (t->device_bytes == 1)
        return codes[i];
    memcpy(&word, codes + 2 * i, sizeof word);
    return word;
}

static void set_code(const bw_format_traits *t, uint8_t *codes, size_t i, unsigned code)
{
    uint16_t word = (uint16_t)code;
    if (t->device_bytes == 1)
        codes[i] = (uint8_t)code;
    else
        memcpy(codes + 2 * i, &word, sizeof word);
}

/* One past the largest device code. */
static unsigned all_codes(const bw_format_traits *t)
{
    return 1u << t->device_bytes * 8;
}

/* A code that the encoder may write: no -0, no -2^m, no NaN, nothing beyond the width, no odd one in a coarse pair. */
static int canonical(const bw_format_traits *t, unsigned code)
{
    int64_t v = bw_code_value(t, code);
    if (llabs(v) > t->max_code || (v == 0 && code != 0))
        return 0;
    if (t->sub_block && llabs(v) > t->max_code / 2 && v % 2)
        return 0;
    return t->kind != BW_KIND_TABLE || code >> t->code_bits == 0;
}

static void traits_are_consistent(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int64_t max;
        int bits, block, shift;
    } expected[] = {{"msfp11", 3, 3, 16, 1},
                    {"msfp12", 7, 4, 16, 2},
                    {"msfp13", 15, 5, 16, 3},
                    {"msfp14", 31, 6, 16, 4},
                    {"msfp15", 63, 7, 16, 5},
                    {"msfp16", 127, 8, 16, 6},
                    {"mxint8", 127, 8, 32, 6},
                    {"mxfp6_e2m3", 60, 6, 32, 5},
                    {"mxfp4_e2m1", 12, 4, 32, 3},
                    {"mxfp6_e3m2", 448, 6, 32, 8},
                    {"mxfp8_e4m3", 448 * 512, 8, 32, 17},
                    {"mxfp8_e5m2", 57344ll * 65536, 8, 32, 31},
                    {"mx9", 254, 9, 16, 7},
                    {"mx6", 30, 6, 16, 4},
                    {"mx4", 6, 4, 16, 2}};
    unsigned known = 0;
    for (unsigned f = 0; f < 300; f++) {
        const bw_format_traits *t = bw_format_get((bw_format)f);
        if (!t)
            continue;
        known++;
        assert_int_equal(t->format, f);
        assert_ptr_equal(bw_format_find(t->name), t);
        assert_true(bw_format_block_ok(t, t->block));
        assert_int_equal(bw_format_block_ok(t, 64), bw_format_is_block(t) && t->block == 16);
        assert_false(bw_format_block_ok(t, 0) || bw_format_block_ok(t, 24) || bw_format_block_ok(t, 256));
        assert_int_equal(bw_code_table(t) != NULL, bw_format_is_block(t) && t->device_bytes == 1);
        assert_int_equal(t->device_bytes, !bw_format_is_block(t) ? t->code_bits / 8 : t->code_bits > 8 ? 2 : 1);
    }
    assert_int_equal(known, 18);
    assert_false(bw_format_is_block(NULL));
    assert_null(bw_format_get((bw_format)-1));
    assert_null(bw_format_find("msfp9"));
    assert_null(bw_format_find(NULL));
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        const bw_format_traits *t = bw_format_find(expected[i].name);
        assert_non_null(t);
        assert_true(t->max_code == expected[i].max);
        assert_int_equal(t->code_bits, expected[i].bits);
        assert_int_equal(t->block, expected[i].block);
        assert_int_equal(t->emax_shift, expected[i].shift);
        int64_t most = 0;
        for (unsigned c = 0; c < 256; c++)
            if (bw_code_value(t, c) > most && (t->kind == BW_KIND_TABLE || c <= (unsigned)t->max_code))
                most = bw_code_value(t, c);
        assert_true(most == t->max_code);
    }
    /* Some values by hand. */
    assert_true(bw_code_value(bw_format_find("mxfp4_e2m1"), 0x7) == 12 &&
                bw_code_value(bw_format_find("mxfp4_e2m1"), 0x9) == -1);
    assert_true(bw_code_value(bw_format_find("mxfp6_e2m3"), 0x1F) == 60 &&
                bw_code_value(bw_format_find("mxfp6_e2m3"), 0x28) == -8);
    assert_true(bw_code_value(bw_format_find("mxfp8_e4m3"), 0x38) == 512 &&
                bw_code_value(bw_format_find("mxfp8_e4m3"), 0x7F) == 0);
    assert_true(bw_code_value(bw_format_find("mxfp8_e5m2"), 0x3C) == 65536 &&
                bw_code_value(bw_format_find("mxfp8_e5m2"), 0xFC) == 0);
    assert_true(bw_code_value(bw_format_find("msfp16"), 0x80) == -128);
    assert_true(bw_code_value(bw_format_find("mx9"), 0x80) == 128 &&
                bw_code_value(bw_format_find("mx9"), 0xFF02) == -254);
    assert_true(bw_code_value(bw_format_find("mx4"), 0xFA) == -6);
}

static void encode_inverts_decode(void **state)
{
    (void)state;
    for (unsigned f = 0; f < BW_FORMAT_LIMIT; f++) {
        const bw_format_traits *t = block_format(f);
        if (!t)
            continue;
        for (int e = t->exp_min; e <= t->exp_max; e++)
            for (unsigned c = 0; c < all_codes(t); c++) {
                if (!canonical(t, c))
                    continue;
                uint8_t code[2], back[8];
                float y[4] = {0};
                set_code(t, code, 0, c);
                bw_decode_block(t, code, e, 1, y);
                assert_true((double)y[0] == ldexp((double)bw_code_value(t, c), e)); /* exact in fp32 */
                for (int r = BW_ROUND_EVEN; r <= BW_ROUND_FLOOR; r++) {
                    bw_encode_block_at(t, (bw_round)r, y, 1, e, back);
                    assert_int_equal(code_at(t, back, 0), c);
                }
                /* With the largest code in the block (in another pair) its own exponent is e. */
                y[3] = ldexpf((float)t->max_code, e);
                int8_t own;
                bw_encode_block(t, BW_ROUND_EVEN, y, 4, back, &own);
                assert_int_equal(own, e);
                assert_int_equal(code_at(t, back, 0), c);
            }
    }
}

/* One step of the definition in the paper's words: the largest of the block sets the shared exponent, the largest of a
 * pair its microexponent, elements of `bits` magnitude bits are rounded against the exponent of their pair. */
static int64_t paper_value(const bw_format_traits *t, bw_round round, double x, double pair_max, double block_max)
{
    int shared, own, bits = t->code_bits - 2;
    if (pair_max == 0)
        return 0;
    frexp(block_max, &shared);
    frexp(pair_max, &own);
    int micro = own < shared ? 1 : 0;
    double v = ldexp(fabs(x), bits - shared + micro), q = floor(v), most = (1 << bits) - 1;
    if (round == BW_ROUND_EVEN ? v - q > 0.5 || (v - q == 0.5 && fmod(q, 2) == 1)
                               : round == BW_ROUND_NEAREST && v - q >= 0.5)
        q++;
    q = fmin(q, most) * (micro ? 1 : 2);
    return (int64_t)(x < 0 ? -q : q);
}

static void pairs_share_a_microexponent(void **state)
{
    (void)state;
    static const char *const names[] = {"mx9", "mx6", "mx4"};
    for (size_t f = 0; f < 3; f++) {
        const bw_format_traits *t = bw_format_find(names[f]);
        assert_int_equal(t->sub_block, 2);
        unsigned fine = 0, saturated = 0;
        for (int i = 0; i < 60000; i++) {
            size_t n = 1 + draw() % 16; /* an odd last value is a pair of its own */
            float x[16];
            uint8_t codes[33];
            double block_max = 0;
            int spread = 1 + (int)(draw() % 12), keep = i % 2 ? (int)(20 + draw() % 9) : 0; /* few bits make ties */
            for (size_t k = 0; k < n; k++) {
                x[k] = ldexpf((float)((int32_t)draw() >> keep), -10 - (int)(draw() % (unsigned)spread));
                if (draw() % 8 == 0)
                    x[k] = draw() % 2 ? 0.0f : nextafterf(ldexpf(1, (int)(draw() % 4)), 0); /* just below a power */
                block_max = fmax(block_max, fabs((double)x[k]));
            }
            int8_t e;
            codes[n * t->device_bytes] = 0x5A;
            bw_encode_block(t, (bw_round)(i % 3), x, n, codes, &e);
            assert_int_equal(codes[n * t->device_bytes], 0x5A);
            for (size_t k = 0; k < n; k++) {
                size_t other = (k ^ 1) < n ? k ^ 1 : k;
                double pair_max = fmax(fabs((double)x[k]), fabs((double)x[other]));
                int64_t ours = bw_code_value(t, code_at(t, codes, k));
                int64_t expected = paper_value(t, (bw_round)(i % 3), (double)x[k], pair_max, block_max);
                if (ours != expected)
                    fail_msg("%s rounding %d: %a beside %a, largest %a, gave %lld, expected %lld", t->name, i % 3,
                             (double)x[k], (double)x[other], block_max, (long long)ours, (long long)expected);
                fine += ours % 2 != 0;
                saturated += llabs(ours) == t->max_code / 2 && fabs((double)x[k]) > ldexp((double)llabs(ours), e);
            }
        }
        assert_true(fine > 1000 && saturated > 1000);
    }
    /* By hand, mx6 (4 magnitude bits): 1.0 has e = 0 - 4; its pair counts in eighths, the pair of 0.49 in sixteenths.
     */
    const bw_format_traits *t = bw_format_find("mx6");
    const float x[5] = {1.0f, 0.3f, 0.49f, -0.1f, 0.99f};
    const uint8_t expected[5] = {16, 4, 8, 0xFE, 15}; /* 0.99 is 15.8 sixteenths: saturates, and is not coarse */
    uint8_t codes[5];
    int8_t e;
    bw_encode_block(t, BW_ROUND_EVEN, x, 5, codes, &e);
    assert_int_equal(e, -4);
    assert_memory_equal(codes, expected, 5);
}

/* The code for x at exponent e: by search, in exact double arithmetic (|x| / 2^e must be within 2^-20..2^40 or 0). */
static uint8_t oracle(const bw_format_traits *t, bw_round round, double x, int e)
{
    double target = ldexp(fabs(x), -e), best_distance = INFINITY;
    unsigned best = 0;
    int64_t best_value = -1;
    for (unsigned c = 0; c < 256; c++) {
        int64_t v = bw_code_value(t, c);
        if (!canonical(t, c) || v < 0)
            continue;
        double distance = fabs((double)v - target);
        if (round == BW_ROUND_FLOOR && (double)v > target)
            continue;
        int better = distance < best_distance;
        if (distance == best_distance)
            better = round == BW_ROUND_EVEN ? c % 2 == 0 : v > best_value;
        if (better) {
            best = c;
            best_value = v;
            best_distance = distance;
        }
    }
    if (x < 0 && best_value > 0)
        return t->kind == BW_KIND_INT ? (uint8_t)-best : (uint8_t)(best | 1u << (t->code_bits - 1));
    return (uint8_t)best;
}

static void check_code(const bw_format_traits *t, float x, int e)
{
    for (int r = BW_ROUND_EVEN; r <= BW_ROUND_FLOOR; r++) {
        uint8_t code, expected = oracle(t, (bw_round)r, x, e);
        bw_encode_block_at(t, (bw_round)r, &x, 1, e, &code);
        if (code != expected)
            fail_msg("%s rounding %d: %a at e=%d gave 0x%02x, expected 0x%02x", t->name, r, (double)x, e, code,
                     expected);
    }
}

static void encode_finds_the_nearest(void **state)
{
    (void)state;
    for (unsigned f = 0; f < BW_FORMAT_LIMIT; f++) {
        const bw_format_traits *t = block_format(f);
        if (!t || t->sub_block) /* a pair's codes are not always the nearest: the test above */
            continue;
        /* Every tie between neighbours, and just beside it, both signs. */
        for (unsigned c = 0; c < 256; c++) {
            if (!canonical(t, c) || bw_code_value(t, c) < 0)
                continue;
            double low = (double)bw_code_value(t, c), high = INFINITY;
            for (unsigned d = 0; d < 256; d++)
                if (canonical(t, d) && (double)bw_code_value(t, d) > low)
                    high = fmin(high, (double)bw_code_value(t, d));
            if (isinf(high))
                high = low * 2; /* saturation */
            float tie = (float)((low + high) / 2);
            for (int e = -40; e <= 17; e += 19) {
                float x = ldexpf(tie, e);
                check_code(t, x, e);
                check_code(t, -x, e);
                check_code(t, nextafterf(x, INFINITY), e);
                check_code(t, nextafterf(x, 0), e);
                check_code(t, ldexpf((float)low, e), e);
            }
        }
        for (int i = 0; i < 1500; i++) {
            float x = ldexpf((float)(int32_t)draw(), (int)(draw() % 40) - 50);
            check_code(t, x, (int)(draw() % 16) - 20);
        }
    }
}

static void exponents_follow_the_largest(void **state)
{
    (void)state;
    for (unsigned f = 0; f < BW_FORMAT_LIMIT; f++) {
        const bw_format_traits *t = block_format(f);
        if (!t)
            continue;
        uint8_t codes[8], expected[2];
        int8_t e;
        float zeros[4] = {0.0f, -0.0f, 0.0f, -0.0f};
        memset(codes, 0xAA, sizeof codes);
        bw_encode_block(t, BW_ROUND_EVEN, zeros, 4, codes, &e);
        assert_int_equal(e, t->exp_min);
        assert_memory_equal(codes, "\0\0\0\0\0\0\0\0", 4u * t->device_bytes);
        assert_int_equal(bw_block_exponent(t, zeros, 4), INT_MIN);
        assert_int_equal(bw_block_exponent(t, zeros, 0), INT_MIN);
        for (int k = -149; k <= 127; k++) {
            /* The exponent depends on floor(log2(max)) alone: never bumped by a value that rounds up. */
            float values[3] = {ldexpf(1.0f, k), -nextafterf(ldexpf(1.0f, k), 0), 0};
            float edge = k < 127 ? -nextafterf(ldexpf(2.0f, k), 0) : -3.4028234e38f;
            assert_int_equal(bw_block_exponent(t, values, 3), k - t->emax_shift);
            assert_int_equal(bw_block_exponent(t, &edge, 1), k - t->emax_shift);
            int own = k - t->emax_shift, clamped = own < t->exp_min ? t->exp_min : own > t->exp_max ? t->exp_max : own;
            bw_encode_block(t, BW_ROUND_EVEN, &edge, 1, codes, &e);
            assert_int_equal(e, clamped);
            bw_encode_block_at(t, BW_ROUND_EVEN, &edge, 1, clamped, expected);
            assert_int_equal(code_at(t, codes, 0), code_at(t, expected, 0));
            if (own >= t->exp_min) /* all significand bits set: rounds to the largest code, saturating */
                assert_true(bw_code_value(t, code_at(t, codes, 0)) == -t->max_code);
            if (own < t->exp_min - 40)
                assert_int_equal(code_at(t, codes, 0), 0);
        }
        /* Any bits at all give a code that is legal. */
        for (int i = 0; i < 20000; i++) {
            float x[4] = {float_of(draw()), float_of(draw()), float_of(draw() & 0x807FFFFF), float_of(draw())};
            bw_encode_block(t, (bw_round)(i % 3), x, 4, codes, &e);
            assert_true(e >= t->exp_min && e <= t->exp_max);
            for (size_t j = 0; j < 4; j++)
                assert_true(canonical(t, code_at(t, codes, j)));
        }
    }
}

/* The value of a vector code from the definition. */
static double vector_value(const bw_format_traits *t, unsigned code)
{
    int fraction_bits = t->mantissa_bits - 1, bias = t->format == BW_FORMAT_FP16 ? 15 : 127;
    int field = (int)(code & 0x7FFF) >> fraction_bits, fraction = (int)code & ((1 << fraction_bits) - 1);
    double v = field ? ldexp((1 << fraction_bits) + fraction, field - bias - fraction_bits)
                     : ldexp(fraction, 1 - bias - fraction_bits);
    return code & 0x8000 ? -v : v;
}

/* A code that the encoder may write. */
static int vector_canonical(const bw_format_traits *t, unsigned code)
{
    double v = fabs(vector_value(t, code)), largest = t->format == BW_FORMAT_FP16 ? 65504 : ldexp(255, 40);
    if (code == 0x8000 || v > largest)
        return 0;
    return t->format == BW_FORMAT_FP16 || fmod(v, 0x1p-63) == 0;
}

static void every_vector_code(void **state)
{
    (void)state;
    for (int which = 0; which < 2; which++) {
        const bw_format_traits *t = bw_format_get(which ? BW_FORMAT_BF16 : BW_FORMAT_FP16);
        unsigned last = 0; /* the canonical code below */
        for (unsigned c = 0; c < 65536; c++) {
            unsigned magnitude = c & 0x7FFF;
            if (magnitude >= (which ? 0x7F80u : 0x7C00u)) { /* infinity and NaN decode as IEEE has them */
                float y = bw_decode_vector(t, (uint16_t)c);
                unsigned fraction = magnitude & (which ? 0x7Fu : 0x3FFu);
                assert_true(fraction ? isnan(y) : isinf(y) && (y < 0) == (c >> 15));
                continue;
            }
            float y = bw_decode_vector(t, (uint16_t)c);
            assert_true((double)y == vector_value(t, c));
            assert_int_equal(bits_of(y) >> 31, c >> 15);
            if (!vector_canonical(t, c))
                continue;
            assert_int_equal(bw_encode_vector(t, y), c);
            if (c == 0 || c > 0x8000)
                continue;
            /* The midpoint to the code below goes to the even one, its neighbours to the nearest. */
            float middle = (float)((vector_value(t, last) + (double)y) / 2);
            int e; /* in units of its last bit, y is even or odd */
            frexp((double)y, &e);
            e -= t->mantissa_bits;
            double unit = ldexp(1, e < t->exp_min ? t->exp_min : e);
            unsigned even = fmod((double)y / unit, 2) == 0 ? c : last;
            assert_int_equal(bw_encode_vector(t, middle), even);
            assert_int_equal(bw_encode_vector(t, -middle), even ? even | 0x8000 : 0);
            assert_int_equal(bw_encode_vector(t, nextafterf(middle, INFINITY)), c);
            assert_int_equal(bw_encode_vector(t, nextafterf(middle, 0)), last);
            last = c;
        }
        assert_int_equal(last, which ? 0x577F : 0x7BFF);
        assert_int_equal(bw_encode_vector(t, 3.4028234e38f), last);
        assert_int_equal(bw_encode_vector(t, -INFINITY), last | 0x8000);
        assert_int_equal(bw_encode_vector(t, -0.0f), 0);
        assert_int_equal(bw_encode_vector(t, 0x1p-149f), 0);
        assert_int_equal(bw_encode_vector(t, -0x1p-127f), 0);
    }
    assert_int_equal(bw_encode_vector(bw_format_get(BW_FORMAT_FP16), 65519.0f), 0x7BFF);
    assert_int_equal(bw_encode_vector(bw_format_get(BW_FORMAT_FP16), 65536.0f), 0x7BFF);
    assert_int_equal(bw_encode_vector(bw_format_get(BW_FORMAT_FP16), 1.0f), 0x3C00);
    assert_int_equal(bw_encode_vector(bw_format_get(BW_FORMAT_BF16), 1.0f), 0x3F80);
}

static void packing_round_trips(void **state)
{
    (void)state;
    for (unsigned f = 0; f < BW_FORMAT_LIMIT; f++) {
        const bw_format_traits *t = block_format(f);
        if (!t)
            continue;
        for (size_t n = 0; n <= 70; n++) {
            uint8_t codes[140], packed[80], back[141];
            for (size_t i = 0; i < n; i++) {
                uint32_t code = draw() >> (32 - t->code_bits), sign = 1u << (t->code_bits - 1);
                if (t->kind != BW_KIND_TABLE)
                    code = (code ^ sign) - sign;
                set_code(t, codes, i, code);
            }
            size_t size = bw_packed_size(t, n);
            assert_int_equal(size, (n * t->code_bits + 7) / 8);
            memset(packed, 0xA5, sizeof packed);
            memset(back, 0x5A, sizeof back);
            bw_pack(t, codes, n, packed);
            assert_int_equal(packed[size], 0xA5);
            /* Bit by bit, least significant first; what is left of the last byte is zero. */
            for (size_t bit = 0; bit < size * 8; bit++) {
                unsigned code = bit < n * t->code_bits ? code_at(t, codes, bit / t->code_bits) : 0;
                unsigned expected = code >> bit % t->code_bits & 1;
                assert_int_equal(packed[bit / 8] >> bit % 8 & 1, expected);
            }
            bw_unpack(t, packed, n, back);
            assert_memory_equal(back, codes, n * t->device_bytes);
            assert_int_equal(back[n * t->device_bytes], 0x5A);
        }
    }
    assert_true(bw_packed_size(bw_format_find("msfp12"), SIZE_MAX) == SIZE_MAX / 2 + 1);
}

/* --- our own golden file: hashes of the codes of 2000 pseudo-random blocks ------------------------------------------
 */

static uint64_t golden_hash(const bw_format_traits *t, bw_round round)
{
    uint64_t hash = 0xCBF29CE484222325ull;
    seed = 20240607;
    for (int block = 0; block < 2000; block++) {
        float x[32];
        uint8_t bytes[65];
        const int size = 32 * t->device_bytes;
        int scale = (int)(draw() % 160) - 110;
        int keep = block % 2 ? 7 : 23; /* few significant bits make ties */
        for (int i = 0; i < 32; i++)   /* the spread of exponents grows with the block's number */
            x[i] = ldexpf((float)((int32_t)draw() >> keep), scale - (int)(draw() % (1 + (unsigned)block / 100)));
        int8_t e;
        bw_encode_block(t, round, x, 32, bytes, &e);
        bytes[size] = (uint8_t)e;
        for (int i = 0; i <= size; i++)
            hash = (hash ^ bytes[i]) * 0x100000001B3ull;
    }
    return hash;
}

static void codes_are_pinned(void **state)
{
    (void)state;
    static const char *const roundings[] = {"even", "nearest", "floor"};
    const char *rewrite = getenv("BW_GOLDEN_WRITE"); /* a path: writes the file instead of comparing */
    FILE *file = fopen(rewrite ? rewrite : "tests/golden/formats.txt", rewrite ? "w" : "r");
    assert_non_null(file);
    if (rewrite)
        fprintf(file, "# format rounding hash, see tests/unit/test_formats.c\n");
    unsigned compared = 0;
    char line[128];
    if (!rewrite)
        assert_non_null(fgets(line, sizeof line, file));
    for (unsigned f = 0; f < BW_FORMAT_LIMIT; f++)
        for (int r = 0; r < 3; r++) {
            const bw_format_traits *t = block_format(f);
            if (!t)
                continue;
            char ours[128];
            snprintf(ours, sizeof ours, "%s %s %016llx\n", t->name, roundings[r],
                     (unsigned long long)golden_hash(t, (bw_round)r));
            if (rewrite) {
                fputs(ours, file);
                continue;
            }
            assert_non_null(fgets(line, sizeof line, file));
            assert_string_equal(ours, line);
            compared++;
        }
    fclose(file);
    if (!rewrite)
        assert_int_equal(compared, 45);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(traits_are_consistent),        cmocka_unit_test(encode_inverts_decode),
        cmocka_unit_test(pairs_share_a_microexponent),  cmocka_unit_test(encode_finds_the_nearest),
        cmocka_unit_test(exponents_follow_the_largest), cmocka_unit_test(every_vector_code),
        cmocka_unit_test(packing_round_trips),          cmocka_unit_test(codes_are_pinned),
    };
    return cmocka_run_group_tests_name("formats", tests, NULL, NULL);
}
