/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels for wide codes (mxfp8) of every ISA against 128-bit integers: exact sums, marks, ties. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "sim/fast.h"
#include "tests/support/lcg.h"

enum { BLOCK = 32, BLOCKS = 5, PIXELS = BW_GROUP_MAX, CODES = BLOCKS * BLOCK, TIES = 4 };

static uint64_t seed = 1;

static uint32_t draw(void)
{
    return (uint32_t)(bw_lcg(&seed) >> 32);
}

typedef struct sample {
    const bw_format_traits *a, *w;
    uint8_t codes[PIXELS][CODES * 2], weights[CODES * 16 * 2]; /* device codes; weights in canonical order */
    int8_t exps[PIXELS][BLOCKS], weight_exps[BLOCKS][16];
    float start[16];
} sample;

static int64_t value(const bw_format_traits *t, const uint8_t *codes, size_t i)
{
    uint16_t word;
    if (t->device_bytes == 1)
        return bw_code_value(t, codes[i]);
    memcpy(&word, codes + 2 * i, sizeof word);
    return bw_code_value(t, word);
}

static void set(const bw_format_traits *t, uint8_t *codes, size_t i, unsigned code)
{
    uint16_t word = (uint16_t)code;
    memcpy(codes + i * t->device_bytes, &word, t->device_bytes);
}

/* spread 0: any code at all; else values near the largest, so that few blocks are marked. */
static unsigned random_code(const bw_format_traits *t, int spread)
{
    const unsigned bits = t->code_bits, any = draw() & ((1u << bits) - 1);
    if (t->kind == BW_KIND_INT16)
        return (unsigned)((int)any - (1 << (bits - 1)));
    if (t->kind == BW_KIND_INT)
        return any ^ 1u << (bits - 1) ? (unsigned)((int)(any ^ 1u << (bits - 1)) - (1 << (bits - 1))) : 0;
    if (!spread || draw() % 8 == 0)
        return spread ? 0 : any;
    return (any & 1u << (bits - 1)) | ((1u << (bits - 1)) - 1 - draw() % (1u << (bits - 1)) / 3);
}

static void fill(sample *s, int spread)
{
    for (size_t p = 0; p < PIXELS; p++)
        for (size_t i = 0; i < CODES; i++)
            set(s->a, s->codes[p], i, random_code(s->a, spread));
    for (size_t i = 0; i < (size_t)CODES * 16; i++)
        set(s->w, s->weights, i, random_code(s->w, spread));
    for (size_t k = 0; k < BLOCKS; k++) {
        for (size_t p = 0; p < PIXELS; p++)
            s->exps[p][k] = (int8_t)(-63 + (int)(draw() % 80));
        for (size_t n = 0; n < 16; n++)
            s->weight_exps[k][n] = (int8_t)(-63 + (int)(draw() % 80));
    }
    for (size_t n = 0; n < 16; n++)
        s->start[n] = ldexpf((float)((int)(draw() % 99) - 49), (int)(draw() % 80) - 40);
}

static uint8_t *device_code(const bw_format_traits *t, uint8_t *codes, size_t i)
{
    return codes + i * t->device_bytes;
}

static size_t canonical(size_t k, size_t i, size_t n)
{
    return k * BLOCK * 16 + (i / 4 * 16 + n) * 4 + i % 4;
}

/* The code of e5m2 with the value 2^power. */
static unsigned power_code(int power)
{
    return power < 2 ? 1u << power : (unsigned)(power - 1) << 2;
}

/* 2^62 + 2^39 or 0, + 2^38: a tie of fp32, even or odd, which one more unit decides or not. */
static void fill_ties(sample *s)
{
    memset(s->codes, 0, sizeof s->codes);
    memset(s->weights, 0, sizeof s->weights);
    for (size_t k = 0; k < BLOCKS; k++) {
        for (size_t p = 0; p < TIES; p++) {
            const int powers[4] = {31, 19, 20, 0};
            for (size_t i = 0; i < 4; i++)
                *device_code(s->a, s->codes[p], k * BLOCK + i * TIES + p) = (uint8_t)power_code(powers[i]);
            s->exps[p][k] = (int8_t)((int)k - 2);
        }
        for (size_t n = 0; n < 16; n++) {
            s->weight_exps[k][n] = (int8_t)n;
            for (size_t p = 0; p < TIES; p++) /* each pixel meets weights of its own */
                for (size_t i = 0; i < 4; i++) {
                    const unsigned sign = (n & 8 ? 0x80u : 0) ^ (i == 3 && n & 4 ? 0x80u : 0);
                    const unsigned codes[4] = {power_code(31), n & 1 ? power_code(20) : 0, power_code(18),
                                               n & 2 ? power_code(0) : 0};
                    *device_code(s->w, s->weights, canonical(k, i * TIES + p, n)) =
                        (uint8_t)(codes[i] ? codes[i] | sign : 0);
                }
        }
    }
    memset(s->start, 0, sizeof s->start);
}

static float expected(const sample *s, size_t p, size_t n)
{
    float acc = s->start[n];
    for (size_t k = 0; k < BLOCKS; k++) {
        __int128 d = 0;
        for (size_t i = 0; i < BLOCK; i++)
            d += (__int128)value(s->a, s->codes[p], k * BLOCK + i) * value(s->w, s->weights, canonical(k, i, n));
        acc = acc + ldexpf((float)d, s->exps[p][k] + s->weight_exps[k][n]);
    }
    return acc;
}

static unsigned marks, blocks;

static void check(const bw_dot_kernels *dots, const char *isa, bw_dot_class c, const sample *s, size_t pixels)
{
    static double panel[PIXELS][CODES + 16], weights[CODES * 16];
    static int32_t scale[PIXELS][BLOCKS + 16];
    float acc[PIXELS][32];
    for (size_t p = 0; p < pixels; p++) {
        const bw_pack_args args = {.codes = s->codes[p],
                                   .exps = s->exps[p],
                                   .count = BLOCKS,
                                   .block = BLOCK,
                                   .out = panel[p],
                                   .scale = scale[p]};
        dots->wide->pack(c, s->a, &args);
        for (size_t k = 0; k < BLOCKS; k++, blocks++) {
            marks += scale[p][k] & BW_WIDE_MARK;
            assert_int_equal(scale[p][k] >> 23, 127 + s->exps[p][k]);
        }
    }
    dots->wide->widen(s->w, s->weights, BLOCKS, BLOCK, weights);
    const bw_dot_run runs[2] = {{0, 2}, {2, BLOCKS - 2}};
    const bw_dot_args args = {.pixels = pixels,
                              .block = BLOCK,
                              .tiles = 1,
                              .runs = runs,
                              .run_count = 2,
                              .codes = panel,
                              .code_step = sizeof panel[0],
                              .scale = scale[0],
                              .scale_step = BLOCKS + 16,
                              .weights = weights,
                              .weight_exps = s->weight_exps[0],
                              .start = s->start,
                              .acc = acc[0],
                              .stride = 32};
    dots->wide->dot(&args);
    for (size_t p = 0; p < pixels; p++)
        for (size_t n = 0; n < 16; n++)
            if (acc[p][n] != expected(s, p, n))
                fail_msg("%s %s x %s pixel %zu of %zu output %zu: %a, expected %a", isa, s->a->name, s->w->name, p,
                         pixels, n, (double)acc[p][n], (double)expected(s, p, n));
}

static void sums_are_exact(void **state)
{
    (void)state;
    static const struct {
        const char *a, *w;
        bw_dot_class c;
    } pairs[] = {{"mxfp8_e4m3", "mxfp8_e4m3", BW_DOT_F64},  {"mxfp8_e5m2", "mxfp8_e5m2", BW_DOT_I128},
                 {"mxfp8_e4m3", "mxfp8_e5m2", BW_DOT_I128}, {"mxfp8_e5m2", "mxfp8_e4m3", BW_DOT_I128},
                 {"mxint8", "mxfp8_e5m2", BW_DOT_F64},      {"mxfp8_e5m2", "msfp12", BW_DOT_F64},
                 {"mx9", "mxfp8_e5m2", BW_DOT_F64},         {"mxfp8_e4m3", "mx9", BW_DOT_F64},
                 {"mxfp6_e3m2", "mxfp8_e5m2", BW_DOT_F64},  {"mxfp8_e4m3", "mxfp4_e2m1", BW_DOT_F64}};
    static const bw_dot_kernels *const kernels[BW_SIM_ISA_LIMIT - 1] = {&bw_dot_portable, &bw_dot_avx2,
                                                                        &bw_dot_avx512vnni, &bw_dot_avx512vnni};
    static sample s;
    for (bw_sim_isa isa = BW_SIM_ISA_PORTABLE; isa < BW_SIM_ISA_LIMIT; isa++) {
        const bw_dot_kernels *dots = kernels[isa - 1];
        if (!bw_sim_isa_available(isa)) {
            print_message("# %s not available on this CPU\n", bw_sim_isa_name(isa));
            continue;
        }
        for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
            s.a = bw_format_find(pairs[i].a);
            s.w = bw_format_find(pairs[i].w);
            marks = blocks = 0;
            for (unsigned round = 0; round < 150; round++) {
                fill(&s, round % 2);
                check(dots, bw_sim_isa_name(isa), pairs[i].c, &s, 1 + round % dots->group);
            }
            if (pairs[i].c == BW_DOT_I128) /* both ways of adding were taken */
                assert_true(marks > blocks / 10 && marks < blocks - blocks / 10);
            else
                assert_int_equal(marks, 0);
        }
        s.a = s.w = bw_format_find("mxfp8_e5m2");
        fill_ties(&s);
        marks = blocks = 0;
        check(dots, bw_sim_isa_name(isa), BW_DOT_I128, &s, TIES);
        assert_int_equal(marks, blocks);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(sums_are_exact)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
