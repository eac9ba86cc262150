/* SPDX-License-Identifier: Apache-2.0 */
/* Convolutions with short reductions, of every height and width that items are cut from, in blocks of all
 * lengths on both sides, some not full, with every kind of end, against the reference. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "hal/base.h"
#include "sim/sim.h"
#include "tests/support/lcg.h"

typedef struct shape {
    uint32_t height, width, groups, blocks, outputs; /* blocks and outputs of a group */
    uint32_t kernel;
    bw_activation first; /* of what makes the input: none leaves it signed */
    uint32_t block;      /* 0: 16 */
    bw_format residual;  /* BW_FORMAT_NONE: there is none */
    bw_format out[2];    /* NONE, NONE: blocks */
    bw_activation last;  /* of the convolution */
    int bias;
    uint32_t out_block; /* of outputs and residual; 0: block */
    uint32_t missing;   /* channels of the input that its last block does not have */
    uint32_t stride;    /* 0: 1 */
} shape;

typedef struct net {
    struct {
        bw_program_header header;
        bw_instruction list[5]; /* to blocks, to the residual, CONV, to floats, to floats */
    } bytes;
    size_t size;
    bw_program program;
    uint8_t *constants;
    float *in;
} net;

enum { BATCH = 2 };

static uint64_t seed;

static uint32_t next(void)
{
    return (uint32_t)(bw_lcg(&seed) >> 33);
}

static bw_tensor tensor(uint32_t h, uint32_t w, uint32_t c, bw_format format, uint32_t length, bw_region region,
                        uint64_t *end)
{
    const bw_format_traits *f = bw_format_get(format);
    const uint32_t block = f->kind == BW_KIND_INT ? length : 1, units = (c + block - 1) / block;
    const uint64_t all = (uint64_t)h * w * units;
    bw_tensor t = {.codes = *end,
                   .height = h,
                   .width = w,
                   .channels = c,
                   .pixel_stride = units,
                   .row_stride = w * units,
                   .format = (uint8_t)format,
                   .region = (uint8_t)region,
                   .block = (uint16_t)block};
    *end += all * block * f->device_bytes;
    if (block > 1) {
        t.exps = *end;
        *end += all;
    }
    *end = (*end + 63) / 64 * 64;
    return t;
}

static bw_instruction instruction(bw_opcode op, bw_activation activation, bw_tensor in, bw_tensor out)
{
    return (bw_instruction){.opcode = (uint8_t)op,
                            .activation = (uint8_t)activation,
                            .clip_lo = activation == BW_ACT_CLIP ? -3.0f : 0.0f,
                            .clip_hi = activation == BW_ACT_CLIP ? 5.0f : 0.0f,
                            .kernel_y = 1,
                            .kernel_x = 1,
                            .stride_y = 1,
                            .stride_x = 1,
                            .dilation_y = 1,
                            .dilation_x = 1,
                            .groups = 1,
                            .in = in,
                            .out0 = out};
}

static void fill(net *n, const bw_instruction *conv)
{
    const uint64_t blocks = bw_conv_tiles(conv) * bw_conv_blocks(conv), codes = blocks * 16 * conv->in.block;
    for (uint64_t i = 0; i < codes; i++)
        n->constants[i] = (uint8_t)((int)(next() % 255) - 127);
    for (uint64_t i = 0; i < blocks * 16; i++)
        n->constants[conv->weight_exps + i] = (uint8_t)(int8_t)(-10 - (int)(next() % 4));
    float *bias = (float *)(void *)(n->constants + conv->bias);
    for (uint64_t i = 0; conv->flags & BW_FLAG_BIAS && i < bw_conv_tiles(conv) * 16; i++)
        bias[i] = (float)((int)(next() % 201) - 100) / 64.0f;
}

static void make(const shape *s, net *n)
{
    const uint32_t block = s->block ? s->block : 16, channels = s->groups * s->blocks * block - s->missing;
    const uint32_t made = s->out_block ? s->out_block : block;
    const uint32_t outputs = s->groups * s->outputs, stride = s->stride ? s->stride : 1;
    const uint32_t height = (s->height + stride - 1) / stride, width = (s->width + stride - 1) / stride;
    const bw_format formats[2] = {s->out[0] || s->out[1] ? s->out[0] : BW_FORMAT_MSFP16, s->out[1]};
    uint64_t in = 0, act = 0, out = 0;
    memset(n, 0, sizeof *n);
    bw_instruction *list = n->bytes.list, *conv;
    const bw_tensor x = tensor(s->height, s->width, channels, BW_FORMAT_FP32, 1, BW_REGION_IN, &in);
    const bw_tensor a = tensor(s->height, s->width, channels, BW_FORMAT_MSFP16, block, BW_REGION_ACT, &act);
    uint32_t count = 0;
    list[count++] = instruction(BW_OP_COPY, s->first, x, a);
    bw_tensor residual = {0};
    if (s->residual) {
        const bw_tensor z = tensor(height, width, outputs, BW_FORMAT_FP32, 1, BW_REGION_IN, &in);
        residual = tensor(height, width, outputs, s->residual, made, BW_REGION_ACT, &act);
        list[count++] = instruction(BW_OP_COPY, BW_ACT_NONE, z, residual);
    }
    const int single = formats[0] == BW_FORMAT_FP32; /* only in OUT */
    const bw_tensor b =
        tensor(height, width, outputs, formats[0], made, single ? BW_REGION_OUT : BW_REGION_ACT, single ? &out : &act);
    conv = &list[count++];
    *conv = instruction(BW_OP_CONV, s->last, a, b);
    conv->in2 = residual;
    conv->kernel_y = conv->kernel_x = (uint16_t)s->kernel;
    conv->origin_y = conv->origin_x = (int16_t) - (int)(s->kernel / 2);
    conv->stride_y = conv->stride_x = (uint16_t)stride;
    conv->groups = s->groups;
    conv->weight_format = BW_FORMAT_MSFP16;
    if (!single) {
        const bw_tensor y = tensor(height, width, outputs, BW_FORMAT_FP32, 1, BW_REGION_OUT, &out);
        list[count++] = instruction(BW_OP_COPY, BW_ACT_NONE, b, y);
    }
    if (formats[1]) {
        conv->out1 = tensor(height, width, outputs, formats[1], made, BW_REGION_ACT, &act);
        const bw_tensor y1 = tensor(height, width, outputs, BW_FORMAT_FP32, 1, BW_REGION_OUT, &out);
        list[count++] = instruction(BW_OP_COPY, BW_ACT_NONE, conv->out1, y1);
    }
    const uint64_t blocks = bw_conv_tiles(conv) * bw_conv_blocks(conv);
    conv->weight_exps = (blocks * 16 * block + 63) / 64 * 64;
    uint64_t constants = (conv->weight_exps + blocks * 16 + 63) / 64 * 64;
    if (s->bias) {
        conv->flags = BW_FLAG_BIAS;
        conv->bias = constants;
        constants += bw_conv_tiles(conv) * 64;
    }
    n->bytes.header = (bw_program_header){.magic = BW_PROGRAM_MAGIC,
                                          .isa_version = BW_ISA_VERSION,
                                          .instruction_count = count,
                                          .act_bytes = act,
                                          .in_bytes = in,
                                          .out_bytes = out,
                                          .const_bytes = constants};
    n->size = sizeof n->bytes.header + count * sizeof *list;
    n->constants = bw_aligned_zalloc(constants);
    n->in = bw_aligned_zalloc(in * BATCH);
    assert_true(n->constants && n->in);
    fill(n, conv);
    for (uint64_t i = 0; i < in * BATCH / 4; i++)
        n->in[i] = (float)((int)(next() % 2001) - 1000) / 64.0f;
    bw_error err;
    if (bw_program_parse(&n->bytes, n->size, &n->program, &err) ||
        bw_program_check_constants(&n->program, n->constants, constants, &err))
        fail_msg("%s", err.message);
}

static void compare(const shape *s)
{
    net n;
    make(s, &n);
    const uint64_t bytes = n.bytes.header.out_bytes * BATCH;
    uint8_t *expected = calloc(bytes, 1), *out = malloc(bytes);
    assert_true(expected && out);
    assert_int_equal(bw_reference_run(&n.program, n.constants, n.in, expected, BATCH, NULL), BW_OK);
    for (bw_sim_isa isa = BW_SIM_ISA_AVX2; isa < BW_SIM_ISA_LIMIT; isa++)
        for (unsigned threads = 1; threads <= 3 && bw_sim_isa_available(isa); threads++)
            for (unsigned pipes = isa == BW_SIM_ISA_AVX512VNNI ? 2 : 4; pipes <= 4; pipes += 2) {
                const bw_fast_options options = {isa, threads, pipes, 1};
                bw_fast *engine;
                assert_int_equal(bw_fast_create(&n.program, n.constants, &options, &engine, NULL), BW_OK);
                memset(out, 0, bytes);
                assert_int_equal(bw_fast_run(engine, n.in, out, BATCH, NULL, NULL), BW_OK);
                bw_fast_destroy(engine);
                if (memcmp(out, expected, bytes) != 0)
                    fail_msg("%s, %ux%u, %u groups of %u blocks of %u without %u to %u in blocks of %u, kernel %u, "
                             "stride %u, residual %d, outputs %d and %d, activation %d, %u threads, %u pipes: other "
                             "bits",
                             bw_sim_isa_name(isa), s->height, s->width, s->groups, s->blocks, s->block, s->missing,
                             s->outputs, s->out_block, s->kernel, s->stride, s->residual, s->out[0], s->out[1], s->last,
                             threads, pipes);
            }
    free(expected);
    free(out);
    free(n.constants);
    free(n.in);
}

/* Few columns, and so many channels that an item has few rows: what is left over may be less than a kernel takes. */
static void narrow_and_deep(void **state)
{
    (void)state;
    for (uint32_t height = 8; height <= 12; height++)
        for (uint32_t width = 1; width <= 9; width += 2) {
            shape s = {height, width, 4, 28, 16, 1, height % 2 ? BW_ACT_RELU : BW_ACT_NONE, .last = BW_ACT_RELU};
            compare(&s);
            s = (shape){height, width, 2, 14, 32, 1, s.first, .block = 32, .last = BW_ACT_RELU};
            compare(&s);
            s = (shape){height, width, 2, 7, 64, 1, s.first, .block = 64, .last = BW_ACT_RELU};
            compare(&s);
            s = (shape){height, width, 2, 3, 128, 1, s.first, .block = 128, .last = BW_ACT_RELU};
            compare(&s);
        }
    compare(&(shape){21, 3, 6, 38, 16, 1, BW_ACT_NONE, .last = BW_ACT_RELU});
    compare(&(shape){16, 1, 100, 40, 16, 1, BW_ACT_RELU, .last = BW_ACT_RELU});
}

static void small_and_shallow(void **state)
{
    (void)state;
    for (uint32_t height = 1; height <= 11; height++)
        for (uint32_t width = 1; width <= 17; width += 4)
            for (uint32_t block = 16; block <= 128; block *= 2) {
                compare(&(shape){height, width, 1, 2, 64, 1, BW_ACT_NONE, .block = block, .last = BW_ACT_RELU});
                compare(&(shape){height, width, 1, 3, 48, 1, BW_ACT_RELU, .block = block, .last = BW_ACT_RELU});
                compare(&(shape){height, width, 2, 1, 64, 3, BW_ACT_RELU, .block = block, .last = BW_ACT_RELU});
            }
}

/* Residuals, outputs, activations and biases in all combinations; channels that end within a block and a tile. */
static void ends(void **state)
{
    (void)state;
    static const bw_format residuals[] = {BW_FORMAT_NONE, BW_FORMAT_FP16, BW_FORMAT_BF16, BW_FORMAT_MSFP16};
    static const bw_format outs[][2] = {{BW_FORMAT_FP16, BW_FORMAT_NONE},   {BW_FORMAT_MSFP16, BW_FORMAT_NONE},
                                        {BW_FORMAT_FP16, BW_FORMAT_MSFP16}, {BW_FORMAT_MSFP16, BW_FORMAT_FP16},
                                        {BW_FORMAT_FP32, BW_FORMAT_NONE},   {BW_FORMAT_FP32, BW_FORMAT_MSFP16}};
    static const uint32_t outputs[] = {64, 128, 100, 56};
    for (uint32_t block = 16; block <= 128; block *= 2)
        for (unsigned r = 0; r < 4; r++)
            for (unsigned o = 0; o < 6; o++)
                for (unsigned act = BW_ACT_NONE; act < BW_ACT_LIMIT; act++)
                    for (unsigned n = 0; n < 4; n++)
                        compare(&(shape){3,
                                         11,
                                         1,
                                         2,
                                         outputs[n],
                                         1,
                                         n % 2 ? BW_ACT_RELU : BW_ACT_NONE,
                                         block,
                                         residuals[r],
                                         {outs[o][0], outs[o][1]},
                                         (bw_activation)act,
                                         .bias = (int)(act + n) % 2});
}

/* Blocks of one length in, of another out, the last ones of a tap not full. */
static void lengths(void **state)
{
    (void)state;
    static const uint32_t outputs[] = {16, 40, 64, 192, 256};
    for (uint32_t block = 16; block <= 128; block *= 2)
        for (uint32_t made = 16; made <= 128; made *= 2)
            for (uint32_t n = 0; n < 5; n++)
                for (uint32_t blocks = 1; blocks <= 2; blocks++)
                    for (uint32_t kernel = 1; kernel <= 3; kernel += 2)
                        compare(&(shape){3,
                                         9 + n,
                                         1,
                                         blocks,
                                         outputs[n],
                                         kernel,
                                         n % 2 ? BW_ACT_RELU : BW_ACT_NONE,
                                         block,
                                         kernel == 1 ? BW_FORMAT_FP16 : BW_FORMAT_NONE,
                                         {BW_FORMAT_MSFP16, blocks == 1 ? BW_FORMAT_FP16 : BW_FORMAT_NONE},
                                         BW_ACT_RELU,
                                         1,
                                         made,
                                         n * block / 5 + n % 3,
                                         1});
}

/* Few pixels and many weights, whose channels threads divide among them. */
static void few_pixels(void **state)
{
    (void)state;
    static const uint32_t outputs[] = {64, 192, 208, 320};
    for (uint32_t made = 16; made <= 128; made *= 2)
        for (uint32_t n = 0; n < 4; n++)
            for (uint32_t height = 5; height <= 8; height++)
                compare(&(shape){height,
                                 7,
                                 1,
                                 n == 1 ? 4 : 8,
                                 outputs[n],
                                 1,
                                 height % 2 ? BW_ACT_RELU : BW_ACT_NONE,
                                 128,
                                 n % 2 ? BW_FORMAT_FP16 : BW_FORMAT_NONE,
                                 {BW_FORMAT_MSFP16, n ? BW_FORMAT_FP16 : BW_FORMAT_NONE},
                                 BW_ACT_RELU,
                                 1,
                                 made,
                                 height,
                                 1});
}

/* As long as the kernels take, and a little longer: with wide rows or few outputs from windows, from single pixels in
 * blocks of 16 alone. Weights and their sums are fetched ahead. */
static void long_reductions(void **state)
{
    (void)state;
    static const struct {
        uint32_t height, width, channels, outputs, kernel;
    } list[] = {{2, 28, 128, 64, 3}, {3, 30, 112, 160, 3}, {2, 33, 144, 64, 3},  {4, 14, 128, 32, 3},
                {4, 14, 128, 96, 3}, {3, 9, 1280, 128, 1}, {7, 7, 1024, 208, 1}, {2, 16, 1296, 64, 1}};
    for (uint32_t block = 16; block <= 128; block *= 2)
        for (unsigned i = 0; i < sizeof list / sizeof list[0]; i++)
            for (unsigned first = BW_ACT_NONE; first <= BW_ACT_RELU; first++)
                compare(&(shape){.height = list[i].height,
                                 .width = list[i].width,
                                 .groups = 1,
                                 .blocks = (list[i].channels + block - 1) / block,
                                 .outputs = list[i].outputs,
                                 .kernel = list[i].kernel,
                                 .first = (bw_activation)first,
                                 .block = block,
                                 .residual = i % 2 ? BW_FORMAT_FP16 : BW_FORMAT_NONE,
                                 .out = {BW_FORMAT_MSFP16, i % 3 ? BW_FORMAT_FP16 : BW_FORMAT_NONE},
                                 .last = BW_ACT_RELU,
                                 .bias = i % 2 == 0,
                                 .missing = (block - list[i].channels % block) % block});
}

/* Windows of several pixels on rows that are not whole tiles of pixels, so that each pixel gets its own (im2col): with
 * strides, padding, and reductions of many blocks. */
static void own_windows(void **state)
{
    (void)state;
    static const uint32_t outputs[] = {64, 40, 128, 192};
    for (uint32_t block = 32; block <= 128; block *= 2)
        for (uint32_t width = 5; width <= 19; width += 1)
            for (uint32_t stride = 1; stride <= 3; stride++)
                compare(&(shape){.height = 4 + width % 5,
                                 .width = width,
                                 .groups = 1,
                                 .blocks = 1 + width % 3,
                                 .outputs = outputs[width % 4],
                                 .kernel = width % 2 ? 3 : 5,
                                 .first = stride % 2 ? BW_ACT_RELU : BW_ACT_NONE,
                                 .block = block,
                                 .residual = stride == 2 ? BW_FORMAT_FP16 : BW_FORMAT_NONE,
                                 .out = {BW_FORMAT_MSFP16, stride == 3 ? BW_FORMAT_FP16 : BW_FORMAT_NONE},
                                 .last = BW_ACT_RELU,
                                 .bias = 1,
                                 .missing = width % block,
                                 .stride = stride});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(narrow_and_deep), cmocka_unit_test(small_and_shallow), cmocka_unit_test(ends),
        cmocka_unit_test(lengths),         cmocka_unit_test(few_pixels),        cmocka_unit_test(long_reductions),
        cmocka_unit_test(own_windows)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
