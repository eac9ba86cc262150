/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The reference interpreter against hand-made numbers and against naive loops over logical arrays with values so small
 * that nothing rounds; the order and place of the roundings by cases made for them; and pinned results of random
 * programs, which must be the same for every compiler and every build.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "sim/sim.h"
#include "tests/support/lcg.h"
#include "tests/support/random_program.h"

static uint64_t seed = 3;

static int between(int low, int high)
{
    return low + (int)((uint32_t)(bw_lcg(&seed) >> 33) % (uint32_t)(high - low + 1));
}

/* --- a bench for small programs --------------------------------------------------------------------------------------
 */

#define CONST_BYTES (1 << 20)
#define MAX_FLOATS  65536

typedef struct bench {
    struct {
        bw_program_header header;
        bw_instruction ins[8];
    } p;
    uint64_t act, in, out, constants_used;
    uint8_t *constants;
    float input[MAX_FLOATS], output[MAX_FLOATS];
} bench;

static bench *bench_new(void)
{
    bench *b = calloc(1, sizeof *b);
    assert_non_null(b);
    b->constants = aligned_alloc(64, CONST_BYTES);
    assert_non_null(b->constants);
    memset(b->constants, 0, CONST_BYTES);
    return b;
}

static void bench_free(bench *b)
{
    free(b->constants);
    free(b);
}

static bw_tensor place(bench *b, bw_format format, unsigned block, uint32_t h, uint32_t w, uint32_t c)
{
    bw_tensor t = {.height = h, .width = w, .channels = c, .format = (uint8_t)format, .block = (uint16_t)block};
    const bw_format_traits *f = bw_format_get(format);
    t.region = BW_REGION_ACT;
    t.pixel_stride = bw_tensor_units(&t);
    t.row_stride = w * t.pixel_stride;
    b->act = (b->act + 15) / 16 * 16;
    t.codes = b->act;
    b->act += (uint64_t)h * t.row_stride * block * f->device_bytes;
    if (block > 1) {
        t.exps = b->act;
        b->act += (uint64_t)h * t.row_stride;
    }
    return t;
}

static bw_tensor place_fp32(bench *b, bw_region region, uint32_t h, uint32_t w, uint32_t c)
{
    bw_tensor t = {.height = h, .width = w, .channels = c, .format = BW_FORMAT_FP32, .region = (uint8_t)region};
    uint64_t *used = region == BW_REGION_IN ? &b->in : &b->out;
    t.block = 1;
    t.pixel_stride = c;
    t.row_stride = w * c;
    t.codes = *used;
    *used += (uint64_t)h * w * c * 4;
    assert_true(*used <= sizeof b->input);
    return t;
}

static void *take_constants(bench *b, size_t bytes, uint64_t *offset)
{
    *offset = b->constants_used;
    b->constants_used = (b->constants_used + bytes + 63) / 64 * 64;
    assert_true(b->constants_used <= CONST_BYTES);
    return b->constants + *offset;
}

static bw_instruction *add(bench *b, bw_opcode opcode, const bw_tensor *in, const bw_tensor *out)
{
    assert_true(b->p.header.instruction_count < 8);
    bw_instruction *s = &b->p.ins[b->p.header.instruction_count++];
    s->opcode = (uint8_t)opcode;
    s->kernel_y = s->kernel_x = s->stride_y = s->stride_x = s->dilation_y = s->dilation_x = 1;
    s->groups = 1;
    s->in = *in;
    s->out0 = *out;
    return s;
}

/* A tensor in this format, loaded from the next part of the input (whose floats begin at *values). */
static bw_tensor load(bench *b, bw_format format, unsigned block, uint32_t h, uint32_t w, uint32_t c, float **values)
{
    bw_tensor from = place_fp32(b, BW_REGION_IN, h, w, c), to = place(b, format, block, h, w, c);
    *values = b->input + from.codes / 4;
    add(b, BW_OP_COPY, &from, &to);
    return to;
}

static void run(bench *b)
{
    bw_program_header *h = &b->p.header;
    h->magic = BW_PROGRAM_MAGIC;
    h->isa_version = BW_ISA_VERSION;
    h->act_bytes = b->act;
    h->in_bytes = b->in;
    h->out_bytes = b->out;
    h->const_bytes = b->constants_used;
    bw_program program;
    bw_error err;
    if (bw_program_parse(&b->p, sizeof *h + h->instruction_count * sizeof(bw_instruction), &program, &err) ||
        bw_program_check_constants(&program, b->constants, b->constants_used, &err) ||
        bw_reference_run(&program, b->constants, b->input, b->output, 1, &err))
        fail_msg("%s", err.message);
}

/* Puts the code of input channel i of its group, tap r = ky * kernel_x + kx and output n in its place (docs/isa.md). */
static void put_weight(const bench *b, const bw_instruction *s, uint32_t n, uint32_t tap, uint32_t i, int code, int e)
{
    const bw_format_traits *f = bw_format_get((bw_format)s->weight_format);
    uint32_t block = s->in.block, og = s->out0.channels / s->groups, tiles = (og + 15) / 16;
    uint32_t kb = (s->in.channels / s->groups + block - 1) / block;
    uint64_t tile = n / og * tiles + n % og / 16, lane = n % og % 16;
    uint64_t r = tile * s->kernel_y * s->kernel_x * kb + (uint64_t)tap * kb + i / block;
    uint64_t bit = (r * 16 * block + (i % block / 4 * 16 + lane) * 4 + i % 4) * f->code_bits;
    for (unsigned k = 0; k < f->code_bits; k++, bit++)
        if (code >> k & 1)
            b->constants[s->weights + bit / 8] |= (uint8_t)(1 << bit % 8);
    b->constants[s->weight_exps + r * 16 + lane] = (uint8_t)(int8_t)e;
}

static void take_weights(bench *b, bw_instruction *s, bw_format format)
{
    const bw_format_traits *f = bw_format_get(format);
    s->weight_format = (uint8_t)format;
    uint64_t n = bw_conv_tiles(s) * bw_conv_blocks(s);
    take_constants(b, n * bw_packed_size(f, (size_t)16 * s->in.block), &s->weights);
    take_constants(b, n * 16, &s->weight_exps);
}

/* --- by hand
 * ---------------------------------------------------------------------------------------------------------- */

static void worked_example(void **state)
{
    (void)state;
    bench *b = bench_new();
    float *x;
    bw_tensor in = load(b, BW_FORMAT_MSFP12, 16, 1, 1, 20, &x);
    static const float values[20] = {1.0f, -0.3f, 0.71f, [16] = 0.02f, 0.01f, -0.005f, 0.03f};
    memcpy(x, values, sizeof values);
    bw_tensor out = place_fp32(b, BW_REGION_OUT, 1, 1, 1), narrow = place(b, BW_FORMAT_MSFP12, 16, 1, 1, 1);
    bw_instruction *s = add(b, BW_OP_CONV, &in, &out);
    s->out1 = narrow;
    s->activation = BW_ACT_RELU;
    s->flags = BW_FLAG_BIAS;
    take_weights(b, s, BW_FORMAT_MSFP12);
    float *bias = take_constants(b, 64, &s->bias);
    bias[0] = 0.125f;
    static const int first[] = {3, 7, -2}, second[] = {-7, 1, 1, 2};
    for (uint32_t i = 0; i < 3; i++)
        put_weight(b, s, 0, 0, i, first[i], -3);
    for (uint32_t i = 0; i < 4; i++)
        put_weight(b, s, 0, 0, 16 + i, second[i], -1);
    assert_int_equal(b->constants[s->weights], 0x73);
    assert_int_equal(b->constants[s->weights + 1], 0x0E);
    bw_tensor out1 = place_fp32(b, BW_REGION_OUT, 1, 1, 1), inputs = place_fp32(b, BW_REGION_OUT, 1, 1, 20);
    add(b, BW_OP_COPY, &narrow, &out1);
    add(b, BW_OP_COPY, &in, &inputs);
    run(b);
    static const float narrowed[20] = {1.0f, -0.25f, 0.75f, [16] = 5.0f / 256, 3.0f / 256, -1.0f / 256, 7.0f / 256};
    assert_true(b->output[0] == 0.056640625f);
    assert_true(b->output[1] == 7.0f / 128);
    assert_memory_equal(b->output + 2, narrowed, sizeof narrowed);
    bench_free(b);
}

/* 32 channels in two blocks of 16, one output; the terms are exact powers of two. */
static float two_blocks(float bias, float first, float second, float residual, bw_activation activation)
{
    bench *b = bench_new();
    float *x, *r;
    bw_tensor in = load(b, BW_FORMAT_MSFP12, 16, 1, 1, 32, &x), res = load(b, BW_FORMAT_BF16, 1, 1, 1, 1, &r);
    bw_tensor out = place_fp32(b, BW_REGION_OUT, 1, 1, 1);
    x[3] = first;
    x[20] = second;
    r[0] = residual;
    bw_instruction *s = add(b, BW_OP_CONV, &in, &out);
    s->in2 = res;
    s->flags = BW_FLAG_BIAS;
    s->activation = (uint8_t)activation;
    if (activation == BW_ACT_CLIP) {
        s->clip_lo = -1;
        s->clip_hi = 6;
    }
    take_weights(b, s, BW_FORMAT_MSFP11);
    put_weight(b, s, 0, 0, 3, 1, 0);
    put_weight(b, s, 0, 0, 20, 1, 0);
    float *to = take_constants(b, 64, &s->bias);
    to[0] = bias;
    run(b);
    float y = b->output[0];
    bench_free(b);
    return y;
}

static void roundings_are_in_their_place(void **state)
{
    (void)state;
    const float ulp = 0x1p-23f;
    /* bias first: 1 + ulp/2 ties to 1, again: 1. Any other order would keep ulp. */
    assert_true(two_blocks(1, ulp / 2, ulp / 2, 0, BW_ACT_NONE) == 1);
    /* 1 + 3/4 ulp rounds up before the residual comes: 1 + ulp + ulp/2 ties to even, 1 + 2 ulp. */
    assert_true(two_blocks(1, ulp * 0.75f, 0, ulp / 2, BW_ACT_NONE) == 1 + 2 * ulp);
    /* Blocks in ascending order: (2^24 + 1) - 2^24 = 0, not 1. */
    assert_true(two_blocks(0x1p24f, 1, -0x1p24f, 0, BW_ACT_NONE) == 0);
    assert_true(two_blocks(0x1p24f, -0x1p24f, 1, 0, BW_ACT_NONE) == 1);
    assert_true(two_blocks(0x1p24f, 1, 0, -0x1p24f, BW_ACT_NONE) == 0);
    /* The activation sees the residual. */
    assert_true(two_blocks(0, 4, 0, -8, BW_ACT_RELU) == 0 && !signbit(two_blocks(0, 4, 0, -8, BW_ACT_RELU)));
    assert_true(two_blocks(0, -4, 0, 8, BW_ACT_RELU) == 4);
    assert_true(two_blocks(0, 4, 0, 4, BW_ACT_CLIP) == 6);
    assert_true(two_blocks(0, -4, 0, 1, BW_ACT_CLIP) == -1);
    assert_true(two_blocks(0, 2, 1, 1, BW_ACT_CLIP) == 4);
    /* Cancellation gives +0. */
    assert_true(!signbit(two_blocks(0, -4, 4, 0, BW_ACT_NONE)));
}

/* D beyond 2^24 is rounded once, whatever its size. a and w are element codes of e5m2. */
static float wide_dot(const uint8_t *a, const uint8_t *w, uint32_t n)
{
    bench *b = bench_new();
    float *x;
    bw_tensor in = load(b, BW_FORMAT_MXFP8_E5M2, 32, 1, 1, 32, &x), out = place_fp32(b, BW_REGION_OUT, 1, 1, 1);
    const bw_format_traits *t = bw_format_get(BW_FORMAT_MXFP8_E5M2);
    bw_instruction *s = add(b, BW_OP_CONV, &in, &out);
    take_weights(b, s, BW_FORMAT_MXFP8_E5M2);
    x[31] = (float)bw_code_value(t, 0x7B); /* makes the exponent 0 */
    for (uint32_t i = 0; i < n; i++) {
        x[i] = (float)bw_code_value(t, a[i]);
        put_weight(b, s, 0, 0, i, w[i], 0);
    }
    run(b);
    float y = b->output[0];
    bench_free(b);
    return y;
}

static void wide_sums_round_once(void **state)
{
    (void)state;
    /* Codes of powers of two: 0x04 is 2^2, each further exponent 4 more; 0x01 is 1. 0x74 = 2^30, 0x78 = 2^31. */
    static const uint8_t a[] = {0x78, 0x78, 0x78, 0x78, 0x48, 0x01}, w[] = {0x78, 0x78, 0x78, 0x78, 0x50, 0x01};
    const bw_format_traits *t = bw_format_get(BW_FORMAT_MXFP8_E5M2);
    assert_true(bw_code_value(t, 0x78) == 1ll << 31 && bw_code_value(t, 0x48) * bw_code_value(t, 0x50) == 1ll << 40);
    /* 2^64 + 2^40 ties to 2^64; one more unit, 64 bits below, must round it up. */
    assert_true(wide_dot(a, w, 5) == 0x1p64f);
    assert_true(wide_dot(a, w, 6) == 0x1p64f + 0x1p41f);
    /* 2^62 + 2^38 and one below (a code of -1 is 0x81). */
    static const uint8_t a2[] = {0x78, 0x44, 0x81}, w2[] = {0x78, 0x4C, 0x01};
    assert_true(bw_code_value(t, 0x44) * bw_code_value(t, 0x4C) == 1ll << 38);
    assert_true(wide_dot(a2, w2, 2) == 0x1p62f);
    assert_true(wide_dot(a2, w2, 3) == 0x1p62f);
    static const uint8_t a3[] = {0x78, 0x44, 0x01}, w3[] = {0x78, 0x4C, 0x01};
    assert_true(wide_dot(a3, w3, 3) == 0x1p62f + 0x1p39f);
}

/* --- geometry and layout, against naive loops
 * --------------------------------------------------------------------------- */

typedef struct geometry {
    int h, w, c, oh, ow, oc, ky, kx, sy, sx, dy, dx, py, px;
} geometry;

static geometry random_geometry(void)
{
    geometry g;
    g.h = between(1, 6);
    g.w = between(1, 6);
    g.c = between(1, 40);
    g.oh = between(1, 5);
    g.ow = between(1, 5);
    g.oc = between(1, 36);
    g.ky = between(1, 3);
    g.kx = between(1, 4);
    g.sy = between(1, 3);
    g.sx = between(1, 2);
    g.dy = between(1, 2);
    g.dx = between(1, 3);
    g.py = between(-2, 1);
    g.px = between(-2, 1);
    return g;
}

static void set_window(bw_instruction *s, const geometry *g)
{
    s->kernel_y = (uint16_t)g->ky;
    s->kernel_x = (uint16_t)g->kx;
    s->stride_y = (uint16_t)g->sy;
    s->stride_x = (uint16_t)g->sx;
    s->dilation_y = (uint16_t)g->dy;
    s->dilation_x = (uint16_t)g->dx;
    s->origin_y = (int16_t)g->py;
    s->origin_x = (int16_t)g->px;
}

/* Input value at tap (ky, kx) of (oy, ox); NAN outside. */
static double at_tap(const geometry *g, const float *x, int oy, int ox, int ky, int kx, int c)
{
    int y = oy * g->sy + g->py + ky * g->dy, z = ox * g->sx + g->px + kx * g->dx;
    return y < 0 || y >= g->h || z < 0 || z >= g->w ? (double)NAN : (double)x[(y * g->w + z) * g->c + c];
}

static void fill(float *x, size_t n, int limit)
{
    for (size_t i = 0; i < n; i++)
        x[i] = (float)between(-limit, limit);
}

static void compare(const bench *b, const double *expected, size_t n, const char *what)
{
    for (size_t i = 0; i < n; i++)
        if ((double)b->output[i] != expected[i])
            fail_msg("%s: value %zu is %g, expected %g", what, i, (double)b->output[i], expected[i]);
}

static void conv_is_a_convolution(void **state)
{
    (void)state;
    static const bw_format formats[] = {BW_FORMAT_MSFP16, BW_FORMAT_MXINT8, BW_FORMAT_MX9, BW_FORMAT_MX6};
    static const bw_format weights[] = {BW_FORMAT_MSFP12, BW_FORMAT_MSFP15, BW_FORMAT_MXINT8, BW_FORMAT_MX9};
    static double expected[MAX_FLOATS], w[60 * 12 * 128];
    for (int round = 0; round < 60; round++) {
        bench *b = bench_new();
        geometry g = random_geometry();
        bw_format format = formats[between(0, 3)], wf = weights[between(0, 3)];
        unsigned block = format == BW_FORMAT_MXINT8 || wf == BW_FORMAT_MXINT8 ? 32 : 16u << between(0, 3);
        int groups = round % 3 == 0 ? between(2, 3) : 1;
        if (groups > 1) {
            g.c = groups * (int)block;
            g.oc = groups * between(1, 20);
        }
        float *x, *r;
        bw_tensor in = load(b, format, block, (uint32_t)g.h, (uint32_t)g.w, (uint32_t)g.c, &x);
        bw_tensor res = load(b, BW_FORMAT_MSFP16, 16, (uint32_t)g.oh, (uint32_t)g.ow, (uint32_t)g.oc, &r);
        bw_tensor out = place_fp32(b, BW_REGION_OUT, (uint32_t)g.oh, (uint32_t)g.ow, (uint32_t)g.oc);
        fill(x, (size_t)(g.h * g.w * g.c), 9);
        fill(r, (size_t)(g.oh * g.ow * g.oc), 9);
        bw_instruction *s = add(b, BW_OP_CONV, &in, &out);
        set_window(s, &g);
        s->groups = (uint32_t)groups;
        take_weights(b, s, wf);
        if (round % 2) {
            s->flags = BW_FLAG_BIAS;
            float *bias = take_constants(b, bw_conv_tiles(s) * 64, &s->bias);
            for (uint64_t i = 0; i < bw_conv_tiles(s) * 16; i++)
                bias[i] = (float)i;
        }
        if (round % 4 > 1)
            s->in2 = res;
        int ig = g.c / groups, og = g.oc / groups;
        for (int n = 0; n < g.oc; n++)
            for (int tap = 0; tap < g.ky * g.kx; tap++)
                for (int i = 0, e = 0; i < ig; i++) {
                    if (i % (int)block == 0)
                        e = between(-1, 1);
                    int code = between(-8, 7);
                    put_weight(b, s, (uint32_t)n, (uint32_t)tap, (uint32_t)i, code, e);
                    w[(n * g.ky * g.kx + tap) * ig + i] = ldexp(code, e);
                }
        size_t k = 0;
        for (int oy = 0; oy < g.oh; oy++)
            for (int ox = 0; ox < g.ow; ox++)
                for (int n = 0; n < g.oc; n++, k++) {
                    int tiles = (og + 15) / 16;
                    double sum = round % 2 ? (n / og * tiles + n % og / 16) * 16 + n % og % 16 : 0;
                    for (int tap = 0; tap < g.ky * g.kx; tap++)
                        for (int i = 0; i < ig; i++) {
                            double v = at_tap(&g, x, oy, ox, tap / g.kx, tap % g.kx, n / og * ig + i);
                            sum += isnan(v) ? 0 : v * w[(n * g.ky * g.kx + tap) * ig + i];
                        }
                    expected[k] = sum + (round % 4 > 1 ? (double)r[k] : 0);
                }
        run(b);
        compare(b, expected, k, "CONV");
        bench_free(b);
    }
}

static void windows_of_channels(void **state)
{
    (void)state;
    static double expected[MAX_FLOATS];
    static const bw_opcode opcodes[] = {BW_OP_DWCONV, BW_OP_MAXPOOL, BW_OP_AVGPOOL, BW_OP_PATCH};
    unsigned done[4] = {0, 0, 0, 0};
    for (int round = 0; round < 400; round++) {
        bw_opcode op = opcodes[round % 4];
        geometry g = random_geometry();
        if (round % 3) /* few enough for pools, which must not miss the input */
            g.oh = g.ow = between(1, 2);
        int pool = op == BW_OP_MAXPOOL || op == BW_OP_AVGPOOL, empty = 0, pad = between(0, 1);
        for (int oy = 0; oy < g.oh; oy++)
            for (int ox = 0; ox < g.ow; ox++) {
                int inside = 0;
                for (int tap = 0; tap < g.ky * g.kx; tap++)
                    inside |= g.oh > 0 && (oy * g.sy + g.py + tap / g.kx * g.dy) >= 0 &&
                              (oy * g.sy + g.py + tap / g.kx * g.dy) < g.h &&
                              (ox * g.sx + g.px + tap % g.kx * g.dx) >= 0 &&
                              (ox * g.sx + g.px + tap % g.kx * g.dx) < g.w;
                empty |= !inside;
            }
        if (pool && empty)
            continue;
        done[round % 4]++;
        bench *b = bench_new();
        float *x = b->input;
        bw_tensor in;
        if (op == BW_OP_PATCH)
            in = place_fp32(b, BW_REGION_IN, (uint32_t)g.h, (uint32_t)g.w, (uint32_t)g.c);
        else if (op != BW_OP_DWCONV && between(0, 1))
            in = load(b, BW_FORMAT_MSFP16, 32, (uint32_t)g.h, (uint32_t)g.w, (uint32_t)g.c, &x);
        else
            in = load(b, between(0, 1) ? BW_FORMAT_FP16 : BW_FORMAT_BF16, 1, (uint32_t)g.h, (uint32_t)g.w,
                      (uint32_t)g.c, &x);
        fill(x, (size_t)(g.h * g.w * g.c), 60);
        int oc = op == BW_OP_PATCH ? g.ky * g.kx * g.c : g.c;
        bw_tensor out = place_fp32(b, BW_REGION_OUT, (uint32_t)g.oh, (uint32_t)g.ow, (uint32_t)oc);
        bw_instruction *s = add(b, op, &in, &out);
        set_window(s, &g);
        int padded = (g.c + 15) / 16 * 16, taps = g.ky * g.kx;
        uint16_t *w = NULL;
        float *bias = NULL;
        const bw_format_traits *wf = bw_format_get(BW_FORMAT_BF16);
        if (op == BW_OP_DWCONV) {
            s->weight_format = BW_FORMAT_BF16;
            w = take_constants(b, (size_t)(padded * taps) * 2, &s->weights);
            for (int i = 0; i < padded * taps; i++)
                w[i] = bw_encode_vector(wf, (float)between(-30, 30) / 4);
            if (pad) {
                s->flags = BW_FLAG_BIAS;
                bias = take_constants(b, (size_t)padded * 4, &s->bias);
                fill(bias, (size_t)padded, 100);
            }
        } else if (op == BW_OP_AVGPOOL) {
            float *recip = take_constants(b, (size_t)(taps + 1) * 4, &s->weights);
            for (int i = 1; i <= taps; i++)
                recip[i] = ldexpf(1, i - 8); /* exact, and tells the count */
            s->flags = pad ? BW_FLAG_COUNT_PAD : 0;
        }
        size_t k = 0;
        for (int oy = 0; oy < g.oh; oy++)
            for (int ox = 0; ox < g.ow; ox++)
                for (int n = 0; n < oc; n++, k++) {
                    if (op == BW_OP_PATCH) {
                        double v = at_tap(&g, x, oy, ox, n / g.c / g.kx, n / g.c % g.kx, n % g.c);
                        expected[k] = isnan(v) ? 0 : v;
                        continue;
                    }
                    double sum = bias ? (double)bias[n] : 0, most = -INFINITY;
                    int count = 0;
                    for (int tap = 0; tap < taps; tap++) {
                        double v = at_tap(&g, x, oy, ox, tap / g.kx, tap % g.kx, n);
                        if (isnan(v))
                            continue;
                        count++;
                        most = fmax(most, v);
                        sum += w ? v * (double)bw_decode_vector(wf, w[tap * padded + n]) : v;
                    }
                    if (op == BW_OP_AVGPOOL)
                        sum = ldexp(sum, (pad ? taps : count) - 8);
                    expected[k] = op == BW_OP_MAXPOOL ? most : sum;
                }
        run(b);
        compare(b, expected, k, bw_opcode_name(op));
        bench_free(b);
    }
    for (int i = 0; i < 4; i++)
        assert_true(done[i] > 20);
}

static void elementwise_and_copies(void **state)
{
    (void)state;
    bench *b = bench_new();
    float *x, *y;
    bw_tensor a = load(b, BW_FORMAT_FP16, 1, 2, 3, 21, &x), c = load(b, BW_FORMAT_BF16, 1, 2, 3, 21, &y);
    bw_tensor sum = place_fp32(b, BW_REGION_OUT, 2, 3, 21), product = place_fp32(b, BW_REGION_OUT, 2, 3, 21);
    bw_tensor mapped = place_fp32(b, BW_REGION_OUT, 2, 3, 5);
    fill(x, 126, 120);
    fill(y, 126, 120);
    x[0] = 2047; /* 11 x 8 bits: exact */
    y[0] = 255 * 0x1p40f;
    x[1] = 1, y[1] = 0x1p-30f; /* the sum rounds */
    add(b, BW_OP_ADD, &a, &sum)->in2 = c;
    add(b, BW_OP_MUL, &a, &product)->in2 = c;
    bw_instruction *s = add(b, BW_OP_COPY, &a, &mapped);
    s->flags = BW_FLAG_CHANNEL_MAP;
    int32_t *map = take_constants(b, 20, &s->weights);
    static const int32_t order[5] = {20, -1, 0, 0, 7};
    memcpy(map, order, sizeof order);
    run(b);
    for (int i = 0; i < 126; i++) {
        assert_true(b->output[i] == x[i] + y[i]);
        assert_true((double)b->output[126 + i] == (double)x[i] * (double)y[i]);
    }
    assert_true(b->output[1] == 1);
    for (int p = 0; p < 6; p++)
        for (int n = 0; n < 5; n++)
            assert_true(b->output[252 + p * 5 + n] == (order[n] < 0 ? 0 : x[p * 21 + order[n]]));
    bench_free(b);
}

/* Slices of a concatenation, and the zero padding that writers leave. */
static void slices_and_padding(void **state)
{
    (void)state;
    bench *b = bench_new();
    bw_tensor in1 = place_fp32(b, BW_REGION_IN, 3, 2, 20), in2 = place_fp32(b, BW_REGION_IN, 3, 2, 7);
    fill(b->input, 3 * 2 * 27, 100);
    bw_tensor whole = place(b, BW_FORMAT_MSFP16, 16, 3, 2, 39), first = whole, second = whole;
    first.channels = 20;
    second.channels = 7;
    second.codes += 32;
    second.exps += 2;
    add(b, BW_OP_COPY, &in1, &first);
    add(b, BW_OP_COPY, &in2, &second);
    bw_tensor out = place_fp32(b, BW_REGION_OUT, 3, 2, 39);
    add(b, BW_OP_COPY, &whole, &out);
    /* All 48 channels of the device's blocks, padding included. */
    bw_tensor all = whole, out_all = place_fp32(b, BW_REGION_OUT, 3, 2, 48);
    all.channels = 48;
    add(b, BW_OP_COPY, &all, &out_all);
    run(b);
    for (int p = 0; p < 6; p++)
        for (int c = 0; c < 48; c++) {
            float expected = c < 20 ? b->input[p * 20 + c] : c >= 32 && c < 39 ? b->input[120 + p * 7 + c - 32] : 0;
            if (c < 39)
                assert_true(b->output[p * 39 + c] == expected);
            assert_true(b->output[6 * 39 + p * 48 + c] == expected);
        }
    bench_free(b);
}

/* --- random programs
 * ------------------------------------------------------------------------------------------------------ */

static uint64_t hash_bytes(uint64_t hash, const uint8_t *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ bytes[i]) * 0x100000001B3ull;
    return hash;
}

static void random_programs_are_pinned(void **state)
{
    (void)state;
    const char *rewrite = getenv("BW_GOLDEN_WRITE"); /* a path: writes the file instead of comparing */
    FILE *file = fopen(rewrite ? rewrite : "tests/golden/reference.txt", rewrite ? "w" : "r");
    assert_non_null(file);
    if (rewrite)
        fprintf(file, "# seeds hash of the outputs of 20 random programs, see tests/unit/test_reference.c\n");
    char line[128];
    if (!rewrite)
        assert_non_null(fgets(line, sizeof line, file));
    uint64_t hash = 0;
    /* The first 400 are older than the formats with microexponents, and stay what they were. */
    const struct bw_random_options old = {.formats = (1u << BW_FORMAT_MX9) - 1};
    for (unsigned k = 0; k < 600; k++) {
        struct bw_random_case c;
        bw_program program;
        bw_error err;
        assert_int_equal(bw_random_case_make(k, k < 400 ? &old : NULL, &c), 0);
        if (bw_program_parse(c.program, c.program_size, &program, &err) ||
            bw_program_check_constants(&program, c.constants, c.constants_size, &err))
            fail_msg("seed %u: %s", k, err.message);
        float *all = malloc(c.batch * c.out_bytes), *single = malloc(c.out_bytes);
        assert_true(all && single);
        memset(all, 0xFF, c.batch * c.out_bytes);
        assert_int_equal(bw_reference_run(&program, c.constants, c.in, all, c.batch, &err), BW_OK);
        for (size_t i = 0; i < c.batch * c.out_bytes / 4; i++)
            if (!isfinite(all[i])) /* 0xFFFFFFFF is a NaN: not written */
                fail_msg("seed %u: output %zu is %g", k, i, (double)all[i]);
        /* Each image alone, unaligned to more than floats, gives the same. */
        for (uint32_t i = 0; i < c.batch; i++) {
            uint8_t *in = malloc(c.in_bytes + 4);
            assert_non_null(in);
            memcpy(in + 4, (uint8_t *)c.in + i * c.in_bytes, c.in_bytes);
            assert_int_equal(bw_reference_run(&program, c.constants, in + 4, single, 1, &err), BW_OK);
            assert_memory_equal(single, (uint8_t *)all + i * c.out_bytes, c.out_bytes);
            free(in);
        }
        hash = hash_bytes(k % 20 ? hash : 0xCBF29CE484222325ull, (uint8_t *)all, c.batch * c.out_bytes);
        free(all);
        free(single);
        bw_random_case_free(&c);
        if (k % 20 != 19)
            continue;
        char ours[128];
        snprintf(ours, sizeof ours, "%u-%u %016llx\n", k - 19, k, (unsigned long long)hash);
        if (rewrite) {
            fputs(ours, file);
        } else {
            assert_non_null(fgets(line, sizeof line, file));
            assert_string_equal(ours, line);
        }
    }
    fclose(file);
}

/* The generator reaches what it promises, and its limits are limits. */
static void random_programs_cover(void **state)
{
    (void)state;
    static unsigned pairs[BW_FORMAT_LIMIT][BW_FORMAT_LIMIT], conversions[BW_FORMAT_LIMIT][BW_FORMAT_LIMIT];
    unsigned opcodes[BW_OP_LIMIT] = {0}, groups = 0, residuals = 0, second = 0, maps = 0, loose = 0, blocks = 0;
    for (unsigned k = 0; k < 6000; k++) {
        struct bw_random_case c;
        bw_program p;
        bw_error err;
        assert_int_equal(bw_random_case_make(k, NULL, &c), 0);
        if (bw_program_parse(c.program, c.program_size, &p, &err))
            fail_msg("seed %u: %s", k, err.message);
        blocks |= p.needs.blocks;
        for (uint32_t i = 0; i < p.header->instruction_count; i++) {
            const bw_instruction *s = &p.instructions[i];
            opcodes[s->opcode]++;
            if (s->opcode == BW_OP_CONV)
                pairs[s->in.format][s->weight_format]++;
            conversions[s->in.format][s->out0.format]++;
            groups += s->groups > 1;
            residuals += s->opcode <= BW_OP_DWCONV && s->in2.region;
            second += s->out1.region != 0;
            maps += (s->flags & BW_FLAG_CHANNEL_MAP) != 0;
            loose += s->in.row_stride != s->in.width * s->in.pixel_stride;
        }
        bw_random_case_free(&c);
    }
    for (unsigned op = 1; op < BW_OP_LIMIT; op++)
        if (opcodes[op] < 500)
            fail_msg("%s came up %u times", bw_opcode_name(op), opcodes[op]);
    for (unsigned a = BW_FORMAT_FP16; a < BW_FORMAT_LIMIT; a++)
        for (unsigned w = BW_FORMAT_FP16; w < BW_FORMAT_LIMIT; w++) {
            const bw_format_traits *fa = bw_format_get((bw_format)a), *fw = bw_format_get((bw_format)w);
            if (!fa || !fw)
                continue;
            if (fa->block > 1 && fw->block > 1 && !pairs[a][w])
                fail_msg("no CONV of %s by %s", fa->name, fw->name);
            if (!conversions[a][w])
                fail_msg("no operation from %s to %s", fa->name, fw->name);
        }
    assert_int_equal(blocks, 15);
    assert_true(groups > 50 && residuals > 500 && second > 1000 && maps > 200 && loose > 1000);

    const struct bw_random_options narrow = {.opcodes = 1u << BW_OP_CONV | 1u << BW_OP_MAXPOOL,
                                             .formats = 1u << BW_FORMAT_MSFP12,
                                             .blocks = 2,
                                             .max_extent = 3,
                                             .max_channels = 5,
                                             .max_batch = 1};
    for (unsigned k = 0; k < 200; k++) {
        struct bw_random_case c;
        bw_program p;
        assert_int_equal(bw_random_case_make(k, &narrow, &c), 0);
        assert_int_equal(bw_program_parse(c.program, c.program_size, &p, NULL), BW_OK);
        assert_int_equal(p.needs.formats & ~(1u << BW_FORMAT_MSFP12 | 1u << BW_FORMAT_FP32), 0);
        assert_int_equal(p.needs.opcodes & ~(1u << BW_OP_CONV | 1u << BW_OP_MAXPOOL | 1u << BW_OP_COPY), 0);
        assert_int_equal(p.needs.blocks & ~2u, 0);
        assert_int_equal(c.batch, 1);
        bw_random_case_free(&c);
    }
}

/* A sanitizer must let the allocation fail as it does without one. */
const char *__asan_default_options(void);
const char *__tsan_default_options(void);
const char *__asan_default_options(void)
{
    return "allocator_may_return_null=1";
}
const char *__tsan_default_options(void)
{
    return "allocator_may_return_null=1";
}

static void memory_that_does_not_exist(void **state)
{
    (void)state;
    bench *b = bench_new();
    float *x;
    bw_tensor in = load(b, BW_FORMAT_FP16, 1, 1, 1, 1, &x), out = place_fp32(b, BW_REGION_OUT, 1, 1, 1);
    add(b, BW_OP_COPY, &in, &out);
    run(b);
    bw_program_header header = b->p.header;
    header.act_bytes = UINT64_MAX / 2; /* beyond what the parser lets pass: no machine has it */
    bw_program program = {&header, b->p.ins, {0}};
    bw_error err;
    assert_int_equal(bw_reference_run(&program, b->constants, b->input, b->output, 1, &err), BW_NO_MEMORY);
    assert_int_equal(err.status, BW_NO_MEMORY);
    bench_free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(worked_example),        cmocka_unit_test(roundings_are_in_their_place),
        cmocka_unit_test(wide_sums_round_once),  cmocka_unit_test(conv_is_a_convolution),
        cmocka_unit_test(windows_of_channels),   cmocka_unit_test(elementwise_and_copies),
        cmocka_unit_test(slices_and_padding),    cmocka_unit_test(random_programs_are_pinned),
        cmocka_unit_test(random_programs_cover), cmocka_unit_test(memory_that_does_not_exist),
    };
    return cmocka_run_group_tests_name("reference", tests, NULL, NULL);
}
