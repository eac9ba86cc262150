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

static uint64_t seed = 1;

static uint32_t draw(void)
{
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(seed >> 32);
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

static int is_block_format(const bw_format_traits *t)
{
    return t && (t->kind == BW_KIND_INT || t->kind == BW_KIND_TABLE);
}

/* The traits of block format number f, or NULL. */
static const bw_format_traits *block_format(unsigned f)
{
    const bw_format_traits *t = bw_format_get((bw_format)f);
    return is_block_format(t) ? t : NULL;
}

/* A code that the encoder may write: no -0, no -2^m, no NaN, nothing beyond the width. */
static int canonical(const bw_format_traits *t, unsigned code)
{
    int64_t v = bw_code_value(t, (uint8_t)code);
    if (llabs(v) > t->max_code || (v == 0 && code != 0))
        return 0;
    return t->kind == BW_KIND_INT || code >> t->code_bits == 0;
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
                    {"mxfp8_e5m2", 57344ll * 65536, 8, 32, 31}};
    unsigned known = 0;
    for (unsigned f = 0; f < 300; f++) {
        const bw_format_traits *t = bw_format_get((bw_format)f);
        if (!t)
            continue;
        known++;
        assert_int_equal(t->format, f);
        assert_ptr_equal(bw_format_find(t->name), t);
        assert_true(bw_format_block_ok(t, t->block));
        assert_int_equal(bw_format_block_ok(t, 64), is_block_format(t) && t->block == 16);
        assert_false(bw_format_block_ok(t, 0) || bw_format_block_ok(t, 24) || bw_format_block_ok(t, 256));
        assert_int_equal(bw_code_table(t) != NULL, is_block_format(t));
    }
    assert_int_equal(known, 15);
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
            if (bw_code_value(t, (uint8_t)c) > most && (t->kind == BW_KIND_TABLE || c <= (unsigned)t->max_code))
                most = bw_code_value(t, (uint8_t)c);
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
}

static void encode_inverts_decode(void **state)
{
    (void)state;
    for (unsigned f = 0; f < BW_FORMAT_LIMIT; f++) {
        const bw_format_traits *t = block_format(f);
        if (!t)
            continue;
        for (int e = t->exp_min; e <= t->exp_max; e++)
            for (unsigned c = 0; c < 256; c++) {
                if (!canonical(t, c))
                    continue;
                uint8_t code = (uint8_t)c, back[2];
                float y[2];
                bw_decode_block(t, &code, e, 1, y);
                assert_true((double)y[0] == ldexp((double)bw_code_value(t, code), e)); /* exact in fp32 */
                for (int r = BW_ROUND_EVEN; r <= BW_ROUND_FLOOR; r++) {
                    bw_encode_block_at(t, (bw_round)r, y, 1, e, back);
                    assert_int_equal(back[0], c);
                }
                /* Beside the largest code the block's own exponent is e. */
                y[1] = ldexpf((float)t->max_code, e);
                int8_t own;
                bw_encode_block(t, BW_ROUND_EVEN, y, 2, back, &own);
                assert_int_equal(own, e);
                assert_int_equal(back[0], c);
            }
    }
}

/* The code for x at exponent e: by search, in exact double arithmetic (|x| / 2^e must be within 2^-20..2^40 or 0). */
static uint8_t oracle(const bw_format_traits *t, bw_round round, double x, int e)
{
    double target = ldexp(fabs(x), -e), best_distance = INFINITY;
    unsigned best = 0;
    int64_t best_value = -1;
    for (unsigned c = 0; c < 256; c++) {
        int64_t v = bw_code_value(t, (uint8_t)c);
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
        if (!t)
            continue;
        /* Every tie between neighbours, and just beside it, both signs. */
        for (unsigned c = 0; c < 256; c++) {
            if (!canonical(t, c) || bw_code_value(t, (uint8_t)c) < 0)
                continue;
            double low = (double)bw_code_value(t, (uint8_t)c), high = INFINITY;
            for (unsigned d = 0; d < 256; d++)
                if (canonical(t, d) && (double)bw_code_value(t, (uint8_t)d) > low)
                    high = fmin(high, (double)bw_code_value(t, (uint8_t)d));
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
        uint8_t codes[4], expected;
        int8_t e;
        float zeros[4] = {0.0f, -0.0f, 0.0f, -0.0f};
        memset(codes, 0xAA, sizeof codes);
        bw_encode_block(t, BW_ROUND_EVEN, zeros, 4, codes, &e);
        assert_int_equal(e, t->exp_min);
        assert_memory_equal(codes, "\0\0\0\0", 4);
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
            bw_encode_block_at(t, BW_ROUND_EVEN, &edge, 1, clamped, &expected);
            assert_int_equal(codes[0], expected);
            if (own >= t->exp_min) /* all significand bits set: rounds to the largest code, saturating */
                assert_true(bw_code_value(t, codes[0]) == -t->max_code);
            if (own < t->exp_min - 40)
                assert_int_equal(codes[0], 0);
        }
        /* Any bits at all give a code that is legal. */
        for (int i = 0; i < 20000; i++) {
            float x[4] = {float_of(draw()), float_of(draw()), float_of(draw() & 0x807FFFFF), float_of(draw())};
            bw_encode_block(t, (bw_round)(i % 3), x, 4, codes, &e);
            assert_true(e >= t->exp_min && e <= t->exp_max);
            for (int j = 0; j < 4; j++)
                assert_true(canonical(t, codes[j]));
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
            uint8_t codes[70], packed[80], back[71];
            for (size_t i = 0; i < n; i++)
                do
                    codes[i] = (uint8_t)draw();
                while (t->kind == BW_KIND_INT
                           ? (int8_t)codes[i] >= 1 << t->mantissa_bits || (int8_t)codes[i] < -(1 << t->mantissa_bits)
                           : codes[i] >> t->code_bits);
            size_t size = bw_packed_size(t, n);
            assert_int_equal(size, (n * t->code_bits + 7) / 8);
            memset(packed, 0xA5, sizeof packed);
            memset(back, 0x5A, sizeof back);
            bw_pack(t, codes, n, packed);
            assert_int_equal(packed[size], 0xA5);
            /* Bit by bit, least significant first; what is left of the last byte is zero. */
            for (size_t bit = 0; bit < size * 8; bit++) {
                unsigned expected = bit < n * t->code_bits ? codes[bit / t->code_bits] >> bit % t->code_bits & 1 : 0;
                assert_int_equal(packed[bit / 8] >> bit % 8 & 1, expected);
            }
            bw_unpack(t, packed, n, back);
            assert_memory_equal(back, codes, n);
            assert_int_equal(back[n], 0x5A);
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
        uint8_t bytes[33];
        int scale = (int)(draw() % 160) - 110;
        int keep = block % 2 ? 7 : 23; /* few significant bits make ties */
        for (int i = 0; i < 32; i++)   /* the spread of exponents grows with the block's number */
            x[i] = ldexpf((float)((int32_t)draw() >> keep), scale - (int)(draw() % (1 + (unsigned)block / 100)));
        int8_t e;
        bw_encode_block(t, round, x, 32, bytes, &e);
        bytes[32] = (uint8_t)e;
        for (int i = 0; i < 33; i++)
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
        assert_int_equal(compared, 36);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(traits_are_consistent),    cmocka_unit_test(encode_inverts_decode),
        cmocka_unit_test(encode_finds_the_nearest), cmocka_unit_test(exponents_follow_the_largest),
        cmocka_unit_test(every_vector_code),        cmocka_unit_test(packing_round_trips),
        cmocka_unit_test(codes_are_pinned),
    };
    return cmocka_run_group_tests_name("formats", tests, NULL, NULL);
}
