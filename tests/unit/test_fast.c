/* SPDX-License-Identifier: Apache-2.0 */
/* The fast engine from inside: row kernels against kernels/formats.h, the pool, options, cancelling, reuse. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim/fast.h"
#include "tests/support/compare.h"
#include "tests/support/lcg.h"

static uint64_t random_state = 1;

static uint32_t random_u32(void)
{
    return (uint32_t)(bw_lcg(&random_state) >> 32);
}

/* Floats of all magnitudes; about one in eight is a zero, a tie of a small format, or the largest float. */
static float random_float(void)
{
    static const float special[] = {0.0f, -0.0f, 0.5f, -1.5f, 2.5f, 0x1p-63f, 0x1p-149f, 3.4028235e38f};
    uint32_t r = random_u32();
    if (r % 8 == 0)
        return special[r / 8 % 8];
    uint32_t bits = random_u32();
    float x;
    if (r % 2) /* near one */
        bits = (bits & 0x80FFFFFF) | ((uint32_t)(120 + r / 8 % 16) << 23);
    memcpy(&x, &bits, sizeof x);
    return isfinite(x) ? x : 1.0f;
}

static const bw_rows *rows_of(bw_sim_isa isa)
{
    return isa == BW_SIM_ISA_AMX          ? &bw_rows_amx
           : isa == BW_SIM_ISA_AVX512VNNI ? &bw_rows_avx512vnni
           : isa == BW_SIM_ISA_AVX2       ? &bw_rows_avx2
                                          : &bw_rows_portable;
}

/* --- row kernels ----------------------------------------------------------------------------------------------------
 */

enum { N = 128 };

static const bw_row_activation no_activation = {BW_ACT_NONE, 0, 0};

static void encode(const bw_rows *rows, const bw_row_format *f, const float *x, size_t n, uint8_t *codes, int8_t *exps)
{
    const bw_row_format fp32 = {bw_format_get(BW_FORMAT_FP32), BW_KIND_FLOAT, 1};
    const bw_side from = {&fp32, (uint8_t *)(uintptr_t)x, NULL, 0, 0}, to = {f, codes, exps, 0, 0};
    rows->fused(&(bw_fused){1, n, from, {0}, {to, {0}}, 0, &no_activation});
}

static void decode(const bw_rows *rows, const bw_row_format *f, uint8_t *codes, int8_t *exps, size_t n, float *y)
{
    const bw_row_format fp32 = {bw_format_get(BW_FORMAT_FP32), BW_KIND_FLOAT, 1};
    const bw_side from = {f, codes, exps, 0, 0}, to = {&fp32, (uint8_t *)y, NULL, 0, 0};
    rows->fused(&(bw_fused){1, n, from, {0}, {to, {0}}, 0, &no_activation});
}

static void check_block_format(const bw_rows *rows, const char *isa, const bw_format_traits *t, unsigned block)
{
    float x[N], y[N], expected[N];
    uint8_t codes[2 * N], expected_codes[2 * N];
    const unsigned bytes = t->device_bytes;
    int8_t exps[N], expected_exps[N];
    bw_row_format f = {t, t->kind, (uint16_t)block};
    for (int round = 0; round < 300; round++) {
        float factor = ldexpf(1.0f, (int)(random_u32() % 60) - 30);
        for (int i = 0; i < N; i++)
            x[i] = round % 3 == 0 ? random_float() : (float)((int)(random_u32() % 2049) - 1024) * factor / 64.0f;
        if (round % 7 == 0)
            memset(x, 0, block * sizeof *x);
        encode(rows, &f, x, N, codes, exps);
        for (unsigned i = 0; i < N; i += block)
            bw_encode_block(t, BW_ROUND_EVEN, x + i, block, expected_codes + i * bytes, &expected_exps[i / block]);
        for (unsigned i = 0; i < N * bytes; i++)
            if (codes[i] != expected_codes[i] || exps[i / bytes / block] != expected_exps[i / bytes / block])
                fail_msg("%s encodes %a to %s code byte 0x%02x exponent %d, expected 0x%02x %d", isa,
                         (double)x[i / bytes], t->name, codes[i], exps[i / bytes / block], expected_codes[i],
                         expected_exps[i / bytes / block]);
        for (unsigned i = 0; i < N * bytes; i++) /* all codes, the unused ones too */
            codes[i] = (uint8_t)random_u32();
        for (unsigned i = 0; i < N / block; i++)
            exps[i] = (int8_t)(t->exp_min + (int)(random_u32() % (uint32_t)(t->exp_max - t->exp_min + 1)));
        decode(rows, &f, codes, exps, N, y);
        for (unsigned i = 0; i < N; i += block)
            bw_decode_block(t, codes + i * bytes, exps[i / block], block, expected + i);
        assert_memory_equal(y, expected, sizeof y);
    }
}

static void check_vector_format(const bw_rows *rows, const char *isa, const bw_format_traits *t)
{
    enum { CODES = 65536 };
    uint16_t *codes = malloc(CODES * sizeof *codes);
    float *x = malloc((CODES + 16) * sizeof *x);
    assert_non_null(codes);
    assert_non_null(x);
    bw_row_format f = {t, t->kind, 1};
    for (int c = 0; c < CODES; c++)
        codes[c] = (uint16_t)c;
    decode(rows, &f, (uint8_t *)codes, NULL, CODES, x);
    for (int c = 0; c < CODES; c++) {
        float y = bw_decode_vector(t, (uint16_t)c);
        if (!isnan(y) && memcmp(&y, &x[c], sizeof y))
            fail_msg("%s decodes %s 0x%04x to %a, expected %a", isa, t->name, c, (double)x[c], (double)y);
    }
    for (int round = 0; round < 4; round++) {
        size_t n = CODES - (size_t)round * 5; /* ends inside a vector */
        for (size_t i = 0; i < n; i++) {
            float y = bw_decode_vector(t, (uint16_t)i), z = bw_decode_vector(t, (uint16_t)(i + 1));
            /* each code, halfway to the next, and anything */
            x[i] = round == 0 ? y : round == 1 ? y / 2 + z / 2 : random_float();
            if (!isfinite(x[i]))
                x[i] = 1.0f;
        }
        encode(rows, &f, x, n, (uint8_t *)codes, NULL);
        for (size_t i = 0; i < n; i++)
            if (codes[i] != bw_encode_vector(t, x[i]))
                fail_msg("%s encodes %a to %s 0x%04x, expected 0x%04x", isa, (double)x[i], t->name, codes[i],
                         bw_encode_vector(t, x[i]));
    }
    free(codes);
    free(x);
}

static void rows_equal_formats(void **state)
{
    for (bw_sim_isa isa = BW_SIM_ISA_PORTABLE; isa < BW_SIM_ISA_LIMIT; isa++) {
        if (!bw_sim_isa_available(isa)) {
            print_message("# %s not available on this CPU\n", bw_sim_isa_name(isa));
            continue;
        }
        for (int f = 0; f < BW_FORMAT_LIMIT; f++) {
            const bw_format_traits *t = bw_format_get((bw_format)f);
            if (!t)
                continue;
            if (t->kind == BW_KIND_VECTOR)
                check_vector_format(rows_of(isa), bw_sim_isa_name(isa), t);
            for (unsigned block = 16; block <= 128; block *= 2)
                if (bw_format_is_block(t) && bw_format_block_ok(t, block))
                    check_block_format(rows_of(isa), bw_sim_isa_name(isa), t, block);
        }
    }
    (void)state;
}

/* A tensor of some pixels in memory: exact, so that a sanitizer sees reads and writes past it. */
typedef struct strip {
    bw_row_format format;
    size_t units, code_bytes, exp_bytes;
    bw_side side;
} strip;

static strip make_strip(bw_format format, unsigned block, size_t pixels, size_t n, size_t gap)
{
    strip s = {.format = {bw_format_get(format), bw_format_get(format)->kind, (uint16_t)block}};
    s.units = (n + block - 1) / block;
    const size_t pixel = (s.units + gap) * block * s.format.traits->device_bytes;
    s.code_bytes = (pixels - 1) * pixel + s.units * block * s.format.traits->device_bytes;
    s.exp_bytes = (pixels - 1) * (s.units + gap) + s.units;
    s.side = (bw_side){NULL, malloc(s.code_bytes), malloc(s.exp_bytes), pixel, s.units + gap};
    assert_true(s.side.codes && s.side.exps);
    return s;
}

static void free_strip(strip *s)
{
    free(s->side.codes);
    free(s->side.exps);
}

/* Any legal contents; padding channels are zero. */
static void fill_strip(strip *s, size_t pixels, size_t n, int spread)
{
    static float x[16 * 320];
    bw_side to = s->side;
    to.format = &s->format;
    const bw_row_format fp32 = {bw_format_get(BW_FORMAT_FP32), BW_KIND_FLOAT, 1};
    const bw_row_activation none = {BW_ACT_NONE, 0, 0};
    for (size_t i = 0; i < pixels * n; i++)
        x[i] = s->format.kind == BW_KIND_FLOAT && random_u32() % 2
                   ? random_float()
                   : ldexpf((float)((int)(random_u32() % 2049) - 1024), (int)(random_u32() % (unsigned)spread) - 20);
    for (size_t i = 0; i < pixels * n; i++) /* sums stay finite */
        x[i] = fabsf(x[i]) > 0x1p120f ? 1.0f : x[i];
    const bw_side from = {&fp32, (uint8_t *)x, NULL, n * sizeof *x, 0};
    bw_rows_portable.fused(&(bw_fused){pixels, n, from, {0}, {to, {0}}, 0, &none});
}

/* One random fused pass on every ISA, against the portable one. */
static void check_fused(void)
{
    static const bw_format formats[] = {BW_FORMAT_FP32,       BW_FORMAT_FP16,       BW_FORMAT_BF16,
                                        BW_FORMAT_MSFP11,     BW_FORMAT_MSFP12,     BW_FORMAT_MSFP16,
                                        BW_FORMAT_MSFP16,     BW_FORMAT_MSFP16,     BW_FORMAT_MXINT8,
                                        BW_FORMAT_MXFP4_E2M1, BW_FORMAT_MXFP8_E4M3, BW_FORMAT_MXFP8_E5M2};
    const size_t kinds = sizeof formats / sizeof formats[0];
    const size_t pixels = 1 + random_u32() % 3,
                 n = random_u32() % 2 ? 16 * (1 + random_u32() % 20) : 1 + random_u32() % 300;
    const int dense = random_u32() % 3 != 0;
    strip in[2], out[2], expected[2];
    bw_fused f = {.pixels = pixels, .n = n, .multiply = (int)(random_u32() % 2)};
    bw_row_activation act = {(bw_activation)(random_u32() % 3), -1.5f, 6.0f};
    f.activation = &act;
    const int present[] = {1, (int)(random_u32() % 2), 1, (int)(random_u32() % 2)};
    for (int i = 0; i < 4; i++) {
        bw_format format = formats[random_u32() % kinds];
        if (i == 1 && format == BW_FORMAT_FP32)
            format = BW_FORMAT_FP16;
        if (i == 0 && random_u32() % 3 == 0)
            format = BW_FORMAT_FP32;
        const bw_format_traits *t = bw_format_get(format);
        unsigned block = t->block;
        if (block == 16)
            block <<= random_u32() % 4;
        strip s = make_strip(format, block, pixels, n, dense ? 0 : random_u32() % 3);
        if (i < 2) {
            fill_strip(&s, pixels, n, f.multiply ? 30 : i ? 40 : 60);
            in[i] = s;
        } else {
            out[i - 2] = s;
            expected[i - 2] = make_strip(format, block, pixels, n, 0);
            free_strip(&expected[i - 2]);
            expected[i - 2] = s;
            expected[i - 2].side.codes = malloc(s.code_bytes);
            expected[i - 2].side.exps = malloc(s.exp_bytes);
            assert_true(expected[i - 2].side.codes && expected[i - 2].side.exps);
        }
    }
    for (int i = 0; i < 2; i++)
        in[i].side.format = present[i] ? &in[i].format : NULL;
    f.a = in[0].side;
    f.b = in[1].side;
    for (bw_sim_isa isa = BW_SIM_ISA_PORTABLE; isa < BW_SIM_ISA_LIMIT; isa++) {
        strip *to = isa == BW_SIM_ISA_PORTABLE ? expected : out;
        if (!bw_sim_isa_available(isa))
            continue;
        for (int o = 0; o < 2; o++) {
            memset(to[o].side.codes, 0x5A, to[o].code_bytes); /* gaps stay */
            memset(to[o].side.exps, 0x5A, to[o].exp_bytes);
            to[o].side.format = present[2 + o] ? &to[o].format : NULL;
            f.out[o] = to[o].side;
        }
        rows_of(isa)->fused(&f);
        for (int o = 0; o < 2; o++)
            if (memcmp(to[o].side.codes, expected[o].side.codes, to[o].code_bytes) ||
                memcmp(to[o].side.exps, expected[o].side.exps, to[o].exp_bytes))
                fail_msg("%s: %s/%u %c %s/%u activation %d -> %s/%u, %zu pixels, %zu channels: output %d differs",
                         bw_sim_isa_name(isa), in[0].format.traits->name, in[0].format.block,
                         !present[1]  ? ' '
                         : f.multiply ? '*'
                                      : '+',
                         in[1].format.traits->name, in[1].format.block, (int)act.kind, to[o].format.traits->name,
                         to[o].format.block, pixels, n, o);
    }
    for (int i = 0; i < 2; i++) {
        free_strip(&in[i]);
        free_strip(&out[i]);
        free_strip(&expected[i]);
    }
}

static void fused_equals_portable(void **state)
{
    for (int round = 0; round < 20000; round++)
        check_fused();
    (void)state;
}

/* Pools: random windows on every ISA, against the portable kernel. */
static void windows_equal_portable(void **state)
{
    static const bw_format formats[] = {BW_FORMAT_FP32,   BW_FORMAT_FP16,   BW_FORMAT_BF16,       BW_FORMAT_MSFP12,
                                        BW_FORMAT_MSFP16, BW_FORMAT_MXINT8, BW_FORMAT_MXFP6_E3M2, BW_FORMAT_MXFP8_E4M3,
                                        BW_FORMAT_MX9,    BW_FORMAT_MX6};
    static float y[8 * 320], expected[8 * 320];
    for (int round = 0; round < 4000; round++) {
        const bw_format_traits *t = bw_format_get(formats[random_u32() % (sizeof formats / sizeof formats[0])]);
        unsigned block = t->block;
        if (block == 16)
            block <<= random_u32() % 4;
        bw_window w = {.rows = 1 + random_u32() % 3,
                       .columns = 1 + random_u32() % 3,
                       .pixels = 1 + random_u32() % 3,
                       .n = random_u32() % 2 ? 16 * (1 + random_u32() % 20) : 1 + random_u32() % 300,
                       .average = (int)(random_u32() % 2),
                       .factor = 1.0f / 9,
                       .stride = 320};
        const size_t wide = w.pixels - 1 + w.columns;
        strip s = make_strip(t->format, block, w.rows * wide, w.n, 0);
        fill_strip(&s, w.rows * wide, w.n, 30);
        w.x = s.side;
        w.x.format = &s.format;
        w.code_column = w.x.code_step;
        w.exp_column = w.x.exp_step;
        w.code_row = wide * w.x.code_step;
        w.exp_row = wide * w.x.exp_step;
        for (bw_sim_isa isa = BW_SIM_ISA_PORTABLE; isa < BW_SIM_ISA_LIMIT; isa++) {
            if (!bw_sim_isa_available(isa))
                continue;
            w.y = isa == BW_SIM_ISA_PORTABLE ? expected : y;
            rows_of(isa)->window(&w);
            for (size_t p = 0; p < w.pixels; p++)
                if (memcmp(w.y + p * w.stride, expected + p * w.stride, w.n * sizeof *y))
                    fail_msg("%s: %s of %zu x %zu taps of %s/%u, %zu channels differs", bw_sim_isa_name(isa),
                             w.average ? "average" : "maximum", w.rows, w.columns, t->name, block, w.n);
        }
        free_strip(&s);
    }
    (void)state;
}

/* Depthwise rows of all sizes on every ISA, against the portable kernel. */
static void depthwise_equals_portable(void **state)
{
    for (int round = 0; round < 4000; round++) {
        const bw_format_traits *w_format = bw_format_get(random_u32() % 4 ? BW_FORMAT_FP16 : BW_FORMAT_BF16);
        const int known = random_u32() % 4 != 0; /* a window that has kernels of its own */
        bw_depthwise d = {.x_format = random_u32() % 4 ? BW_FORMAT_FP16 : BW_FORMAT_BF16,
                          .stride = 1 + random_u32() % 2,
                          .dilation = known ? 1 : 1 + random_u32() % 2,
                          .rows = random_u32() % 6,
                          .columns = known ? 1 + 2 * (random_u32() % 4) : 1 + random_u32() % 7,
                          .pixels = 1 + random_u32() % 40,
                          .n = random_u32() % 2 ? 16 * (1 + random_u32() % 4) : 1 + random_u32() % 70};
        d.width = (int64_t)(d.pixels * d.stride) + (int64_t)(random_u32() % 5) - 2;
        d.width = d.width < 1 ? 1 : d.width;
        d.left = (int64_t)(random_u32() % 6) - 4;
        d.x_pixel = d.n + random_u32() % 3;
        d.x_row = (size_t)d.width * d.x_pixel;
        d.w_tap = d.acc_stride = bw_round_up(d.n, 16);
        const size_t x_count = d.rows ? d.rows * d.x_row - (d.x_pixel - d.n) : 0, taps = d.rows * d.columns;
        uint16_t *x = malloc((x_count + !x_count) * sizeof *x);
        float *w = malloc((taps * d.w_tap + 1) * sizeof *w);
        float *bias = malloc(d.w_tap * sizeof *bias), *acc[2];
        for (int i = 0; i < 2; i++)
            acc[i] = malloc(d.pixels * d.acc_stride * sizeof *acc[i]);
        assert_true(x && w && bias && acc[0] && acc[1]);
        for (size_t i = 0; i < x_count; i++)
            x[i] = bw_encode_vector(bw_format_get(d.x_format), (float)((int)(random_u32() % 2001) - 1000) / 100.0f);
        for (size_t i = 0; i < taps * d.w_tap; i++)
            w[i] = bw_decode_vector(w_format,
                                    bw_encode_vector(w_format, (float)((int)(random_u32() % 2001) - 1000) / 1000.0f));
        for (size_t i = 0; i < d.w_tap; i++)
            bias[i] = (float)((int)(random_u32() % 2001) - 1000) / 64.0f;
        d.x = x;
        d.w = w;
        d.bias = random_u32() % 4 ? bias : NULL;
        for (bw_sim_isa isa = BW_SIM_ISA_PORTABLE; isa < BW_SIM_ISA_LIMIT; isa++) {
            if (!bw_sim_isa_available(isa))
                continue;
            d.acc = acc[isa != BW_SIM_ISA_PORTABLE];
            rows_of(isa)->depthwise(&d);
            for (size_t p = 0; p < d.pixels; p++)
                if (memcmp(d.acc + p * d.acc_stride, acc[0] + p * d.acc_stride, d.n * sizeof **acc))
                    fail_msg("%s: depthwise %zu x %zu taps, stride %zu, dilation %zu, from column %lld of %lld, %zu "
                             "channels: pixel %zu of %zu differs",
                             bw_sim_isa_name(isa), d.rows, d.columns, d.stride, d.dilation, (long long)d.left,
                             (long long)d.width, d.n, p, d.pixels);
        }
        free(x);
        free(w);
        free(bias);
        free(acc[0]);
        free(acc[1]);
    }
    (void)state;
}

/* --- weight codes ----------------------------------------------------------------------------------------------------
 */

static void unpack_equals_formats(void **state)
{
    const bw_dot_kernels *kernels[BW_SIM_ISA_LIMIT - 1] = {&bw_dot_portable, &bw_dot_avx2, &bw_dot_avx512vnni,
                                                           &bw_dot_avx512vnni};
    for (bw_sim_isa isa = BW_SIM_ISA_PORTABLE; isa < BW_SIM_ISA_LIMIT; isa++)
        for (int f = 0; f < BW_FORMAT_LIMIT; f++) {
            const bw_format_traits *t = bw_format_get((bw_format)f);
            if (!bw_sim_isa_available(isa) || !t || t->device_bytes != 1 || t->code_bits == 8)
                continue;
            for (size_t count = 256; count <= 1024; count += 256) {
                const size_t size = bw_packed_size(t, count); /* exact, so that a sanitizer sees over-reads */
                uint8_t *packed = malloc(size), *codes = malloc(count), *expected = malloc(count);
                assert_true(packed && codes && expected);
                for (size_t i = 0; i < size; i++)
                    packed[i] = (uint8_t)random_u32();
                kernels[isa - 1]->unpack(t, packed, count, codes);
                bw_unpack(t, packed, count, expected);
                assert_memory_equal(codes, expected, count);
                free(packed);
                free(codes);
                free(expected);
            }
        }
    (void)state;
}

/* Words of nine bits, packed, to the pairs that dot16 takes. */
static void widen_words_equals_formats(void **state)
{
    (void)state;
    const bw_dot_kernels *kernels[BW_SIM_ISA_LIMIT - 1] = {&bw_dot_portable, &bw_dot_avx2, &bw_dot_avx512vnni,
                                                           &bw_dot_avx512vnni};
    const bw_format_traits *t = bw_format_find("mx9");
    enum { BLOCKS = 3 };
    for (unsigned round = 0; round < 12; round++) {
        const bw_sim_isa isa = (bw_sim_isa)(BW_SIM_ISA_PORTABLE + round / 4);
        const size_t block = (size_t)16 << round % 4;
        if (!bw_sim_isa_available(isa))
            continue;
        const size_t count = BLOCKS * block * 16, size = bw_packed_size(t, count);
        uint8_t *packed = malloc(size);
        int16_t *codes = malloc(2 * count), *pairs = malloc(2 * count);
        assert_true(packed && codes && pairs);
        for (size_t i = 0; i < size; i++)
            packed[i] = (uint8_t)random_u32();
        bw_unpack(t, packed, count, codes);
        kernels[isa - 1]->widen_words(packed, BLOCKS, block, pairs);
        for (size_t k = 0; k < BLOCKS; k++)
            for (size_t i = 0; i < block; i++)
                for (size_t n = 0; n < 16; n++)
                    assert_int_equal(pairs[k * block * 16 + (i / 2 * 16 + n) * 2 + i % 2],
                                     codes[k * block * 16 + (i / 4 * 16 + n) * 4 + i % 4]);
        free(packed);
        free(codes);
        free(pairs);
    }
}

/* --- pool -----------------------------------------------------------------------------------------------------------
 */

typedef struct tally {
    atomic_int done[1000];
    atomic_int busy[BW_POOL_THREADS_MAX];
    atomic_int overlaps;
} tally;

static void count_item(void *context, size_t item, unsigned thread)
{
    tally *t = context;
    if (atomic_fetch_add(&t->busy[thread], 1))
        atomic_fetch_add(&t->overlaps, 1);
    atomic_fetch_add(&t->done[item], 1);
    atomic_fetch_sub(&t->busy[thread], 1);
}

static void pool_does_each_item_once(void **state)
{
    static tally t;
    for (unsigned threads = 1; threads <= 5; threads += 2) {
        bw_pool *pool;
        assert_int_equal(bw_pool_create(threads, &pool, NULL), BW_OK);
        assert_int_equal(bw_pool_threads(pool), threads);
        memset(&t, 0, sizeof t);
        const size_t sizes[] = {0, 1, 2, 7, 1000};
        int expected[1000] = {0};
        for (int round = 0; round < 200; round++) {
            size_t items = sizes[round % 5];
            bw_pool_run(pool, items, count_item, &t);
            for (size_t i = 0; i < items; i++)
                expected[i]++;
        }
        for (int i = 0; i < 1000; i++)
            assert_int_equal(atomic_load(&t.done[i]), expected[i]);
        assert_int_equal(atomic_load(&t.overlaps), 0);
        bw_pool_destroy(pool);
    }
    bw_error err;
    bw_pool *none;
    assert_int_equal(bw_pool_create(0, &none, &err), BW_INVALID_ARGUMENT);
    assert_int_equal(bw_pool_create(BW_POOL_THREADS_MAX + 1, &none, &err), BW_INVALID_ARGUMENT);
    bw_pool_destroy(NULL);
    (void)state;
}

/* --- a small network ------------------------------------------------------------------------------------------------
 */

/* fp32 input 6x6x20 -> msfp16 -> 3x3 CONV to 40 channels with RELU -> fp32. */
typedef struct net {
    struct {
        bw_program_header header;
        bw_instruction list[2];
    } bytes;
    bw_program program;
    uint8_t *constants;
    float in[8 * 6 * 6 * 20], out[8 * 6 * 6 * 40];
} net;

static net *make_net(void)
{
    net *n = calloc(1, sizeof *n);
    assert_non_null(n);
    const uint64_t weights = 3 * 18 * 256, exps = 3 * 18 * 16;
    const bw_instruction plain = {
        .kernel_y = 1, .kernel_x = 1, .stride_y = 1, .stride_x = 1, .dilation_y = 1, .dilation_x = 1, .groups = 1};
    const bw_tensor act = {.exps = 6 * 6 * 32,
                           .height = 6,
                           .width = 6,
                           .channels = 20,
                           .pixel_stride = 2,
                           .row_stride = 12,
                           .format = BW_FORMAT_MSFP16,
                           .region = BW_REGION_ACT,
                           .block = 16};
    bw_instruction *copy = &n->bytes.list[0], *conv = &n->bytes.list[1];
    *copy = *conv = plain;
    copy->opcode = BW_OP_COPY;
    copy->in = (bw_tensor){.height = 6,
                           .width = 6,
                           .channels = 20,
                           .pixel_stride = 20,
                           .row_stride = 120,
                           .format = BW_FORMAT_FP32,
                           .region = BW_REGION_IN,
                           .block = 1};
    copy->out0 = conv->in = act;
    conv->opcode = BW_OP_CONV;
    conv->activation = BW_ACT_RELU;
    conv->kernel_y = conv->kernel_x = 3;
    conv->origin_y = conv->origin_x = -1;
    conv->weight_format = BW_FORMAT_MSFP16;
    conv->weight_exps = bw_round_up(weights, 64);
    conv->out0 = (bw_tensor){.height = 6,
                             .width = 6,
                             .channels = 40,
                             .pixel_stride = 40,
                             .row_stride = 240,
                             .format = BW_FORMAT_FP32,
                             .region = BW_REGION_OUT,
                             .block = 1};
    n->bytes.header = (bw_program_header){.magic = BW_PROGRAM_MAGIC,
                                          .isa_version = BW_ISA_VERSION,
                                          .instruction_count = 2,
                                          .act_bytes = 6 * 6 * 34,
                                          .in_bytes = 6 * 6 * 20 * 4,
                                          .out_bytes = 6 * 6 * 40 * 4,
                                          .const_bytes = conv->weight_exps + bw_round_up(exps, 64)};
    n->constants = aligned_alloc(64, n->bytes.header.const_bytes);
    assert_non_null(n->constants);
    for (uint64_t i = 0; i < n->bytes.header.const_bytes; i++)
        n->constants[i] = i < conv->weight_exps ? (uint8_t)random_u32() : (uint8_t)(int8_t) - (int)(random_u32() % 12);
    for (size_t i = 0; i < sizeof n->in / sizeof n->in[0]; i++)
        n->in[i] = (float)((int)(random_u32() % 2001) - 1000) / 100.0f;
    bw_error err;
    if (bw_program_parse(&n->bytes, sizeof n->bytes, &n->program, &err) ||
        bw_program_check_constants(&n->program, n->constants, n->bytes.header.const_bytes, &err))
        fail_msg("%s", err.message);
    return n;
}

static void free_net(net *n)
{
    free(n->constants);
    free(n);
}

static void runs_give_the_same_bits(void **state)
{
    net *n = make_net();
    const bw_compare_engine reference = {.name = "reference", .run = bw_compare_reference};
    for (bw_sim_isa isa = BW_SIM_ISA_PORTABLE; isa < BW_SIM_ISA_LIMIT; isa++)
        for (unsigned threads = 1; threads <= 4; threads++)
            for (uint32_t batch = 1; batch <= 8; batch += 7) {
                if (!bw_sim_isa_available(isa))
                    continue;
                const bw_compare_engine fast = {bw_sim_isa_name(isa), bw_compare_fast, isa, threads, 0, NULL};
                const bw_compare_case c = {&n->program, n->constants, n->in, batch};
                char report[BW_COMPARE_REPORT];
                if (bw_compare_engines(&c, &reference, &fast, report))
                    fail_msg("%u threads, batch %u: %s", threads, batch, report);
            }
    free_net(n);
    (void)state;
}

static void engine_is_reusable(void **state)
{
    net *n = make_net();
    const size_t image = 6 * 6 * 40;
    float *expected = malloc(sizeof n->out);
    assert_non_null(expected);
    assert_int_equal(bw_reference_run(&n->program, n->constants, n->in, expected, 8, NULL), BW_OK);
    bw_fast *engine;
    const bw_fast_options options = {BW_SIM_ISA_AUTO, 2, 0, 1};
    assert_int_equal(bw_fast_create(&n->program, n->constants, &options, &engine, NULL), BW_OK);
    const uint32_t batches[] = {1, 8, 3, 1, 5, 8};
    for (unsigned i = 0; i < 6; i++) {
        memset(n->out, 0xFF, sizeof n->out);
        assert_int_equal(bw_fast_run(engine, n->in, n->out, batches[i], NULL, NULL), BW_OK);
        assert_memory_equal(n->out, expected, batches[i] * image * sizeof(float));
        for (size_t k = batches[i] * image; k < 8 * image; k++)
            assert_true(isnan(n->out[k])); /* untouched */
    }
    bw_fast_destroy(engine);
    free(expected);
    free_net(n);
    (void)state;
}

static void refuses_and_cancels(void **state)
{
    net *n = make_net();
    bw_fast *engine;
    bw_error err;
    bw_fast_options options = {(bw_sim_isa)77, 1, 0, 0};
    assert_int_equal(bw_fast_create(&n->program, n->constants, &options, &engine, &err), BW_UNSUPPORTED);
    assert_non_null(strstr(err.message, "77"));
    options = (bw_fast_options){BW_SIM_ISA_PORTABLE, 65, 0, 0};
    assert_int_equal(bw_fast_create(&n->program, n->constants, &options, &engine, &err), BW_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "65"));

    setenv("BW_SIM_ISA", "sse9", 1);
    assert_int_equal(bw_fast_create(&n->program, n->constants, NULL, &engine, &err), BW_UNSUPPORTED);
    assert_non_null(strstr(err.message, "sse9"));
    setenv("BW_SIM_ISA", "portable", 1);
    const char *wrong[] = {"0", "-1", "65", "2x", " 2"};
    for (unsigned i = 0; i < 5; i++) {
        setenv("BW_SIM_THREADS", wrong[i], 1);
        assert_int_equal(bw_fast_create(&n->program, n->constants, NULL, &engine, &err), BW_INVALID_ARGUMENT);
        assert_non_null(strstr(err.message, wrong[i]));
    }
    setenv("BW_SIM_THREADS", "2", 1);
    assert_int_equal(bw_fast_create(&n->program, n->constants, NULL, &engine, &err), BW_OK);
    assert_string_equal(bw_fast_isa_name(engine), "portable");
    unsetenv("BW_SIM_ISA");
    unsetenv("BW_SIM_THREADS");

    atomic_int cancel = 1;
    assert_int_equal(bw_fast_run(engine, n->in, n->out, 1, &cancel, &err), BW_CANCELLED);
    assert_int_equal(bw_fast_run(engine, n->in, n->out, 0, NULL, &err), BW_INVALID_ARGUMENT);
    cancel = 0;
    assert_int_equal(bw_fast_run(engine, n->in, n->out, 1, &cancel, &err), BW_OK);
    bw_fast_destroy(engine);
    bw_fast_destroy(NULL);
    assert_string_equal(bw_sim_isa_name((bw_sim_isa)77), "?");
    assert_false(bw_sim_isa_available((bw_sim_isa)77));
    free_net(n);
    (void)state;
}

typedef struct caller {
    bw_fast *engine;
    const net *net;
    const float *expected;
    int wrong;
} caller;

static void *call_many(void *argument)
{
    caller *c = argument;
    float out[2 * 6 * 6 * 40];
    for (int i = 0; i < 20; i++)
        if (bw_fast_run(c->engine, c->net->in, out, 2, NULL, NULL) || memcmp(out, c->expected, sizeof out))
            c->wrong++;
    return NULL;
}

static void concurrent_runs_queue(void **state)
{
    net *n = make_net();
    bw_fast *engine;
    const bw_fast_options options = {BW_SIM_ISA_AUTO, 3, 0, 1};
    assert_int_equal(bw_reference_run(&n->program, n->constants, n->in, n->out, 2, NULL), BW_OK);
    assert_int_equal(bw_fast_create(&n->program, n->constants, &options, &engine, NULL), BW_OK);
    pthread_t threads[3];
    caller callers[3];
    for (int i = 0; i < 3; i++) {
        callers[i] = (caller){engine, n, n->out, 0};
        assert_int_equal(pthread_create(&threads[i], NULL, call_many, &callers[i]), 0);
    }
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(callers[i].wrong, 0);
    }
    bw_fast_destroy(engine);
    free_net(n);
    (void)state;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_equal_formats),       cmocka_unit_test(fused_equals_portable),
        cmocka_unit_test(windows_equal_portable),   cmocka_unit_test(depthwise_equals_portable),
        cmocka_unit_test(unpack_equals_formats),    cmocka_unit_test(widen_words_equals_formats),
        cmocka_unit_test(pool_does_each_item_once), cmocka_unit_test(runs_give_the_same_bits),
        cmocka_unit_test(engine_is_reusable),       cmocka_unit_test(refuses_and_cancels),
        cmocka_unit_test(concurrent_runs_queue),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
