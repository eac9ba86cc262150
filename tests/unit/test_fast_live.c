/* SPDX-License-Identifier: Apache-2.0 */
/* Whether values are read later, and patches that a convolution makes itself, against the reference. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "hal/base.h"
#include "sim/fast.h"

/* 2 x 3 pixels of `units` blocks of 16 from unit `at` of pixels of 8; exponents far behind. */
static bw_tensor slice(uint64_t base, uint32_t at, uint32_t units)
{
    return (bw_tensor){.codes = base + 16 * at,
                       .exps = base + 100000 + at,
                       .height = 2,
                       .width = 3,
                       .channels = units * 16,
                       .pixel_stride = 8,
                       .row_stride = 24,
                       .format = BW_FORMAT_MSFP16,
                       .region = BW_REGION_ACT,
                       .block = 16};
}

static bw_instruction conv(bw_tensor in, bw_tensor out)
{
    return (bw_instruction){.opcode = BW_OP_CONV, .in = in, .out0 = out};
}

/* Of a tensor of 8 units, read by the first instruction. */
static int read_later(const bw_instruction *list, uint32_t count)
{
    bw_program_header header = {.instruction_count = count};
    const bw_program program = {.header = &header, .instructions = list};
    const bw_tensor t = slice(0, 0, 8);
    return bw_fast_is_read_later(&program, 0, &t);
}

static void whoever_reads_a_byte(void **state)
{
    (void)state;
    const bw_tensor x = slice(0, 0, 8), y = slice(4096, 0, 8), z = slice(8192, 0, 8);
    bw_instruction list[] = {conv(x, y), conv(y, z), conv(z, y), conv(slice(0, 7, 1), y)};
    assert_false(read_later(list, 3));
    assert_true(read_later(list, 4));
    list[3].in = z;
    assert_false(read_later(list, 4));
    list[3].in2 = slice(0, 3, 2);
    assert_true(read_later(list, 4));
    list[3].in2 = z;
    list[0].in2 = x; /* the reader's residual */
    assert_true(read_later(list, 4));
    list[0].in2 = (bw_tensor){0};
    list[2].in = slice(96000, 0, 8); /* its codes end where the exponents are */
    list[2].in.codes = 100000 + 16;
    assert_true(read_later(list, 4));
}

static void until_it_is_written_over(void **state)
{
    (void)state;
    const bw_tensor x = slice(0, 0, 8), y = slice(4096, 0, 8);
    bw_instruction list[] = {conv(x, y), conv(y, slice(0, 0, 3)), conv(y, slice(0, 3, 5)), conv(x, y)};
    assert_false(read_later(list, 4));
    list[2].out0 = slice(0, 3, 4); /* the last unit stays */
    assert_true(read_later(list, 4));
    list[3].in = slice(0, 1, 6);
    assert_false(read_later(list, 4));
    list[2].out0 = slice(0, 3, 5);
    list[2].out0.exps = 200000; /* old exponents, new codes */
    assert_true(read_later(list, 4));
    list[2].out1 = slice(0, 3, 5);
    list[3].in = x;
    assert_false(read_later(list, 4));
}

/* --- PATCH and CONV -------------------------------------------------------------------------------------------------
 */

enum { BATCH = 2, LIMIT = 5 };

typedef struct shape {
    uint32_t size, channels, kernel, stride, outputs, block;
    int again; /* the patches are also an output */
} shape;

static bw_tensor place(uint32_t size, uint32_t channels, bw_format format, uint32_t block, bw_region region,
                       uint64_t *end)
{
    const uint32_t units = (channels + block - 1) / block;
    const uint64_t all = (uint64_t)size * size * units;
    bw_tensor t = {.codes = *end,
                   .height = size,
                   .width = size,
                   .channels = channels,
                   .pixel_stride = units,
                   .row_stride = size * units,
                   .format = (uint8_t)format,
                   .region = (uint8_t)region,
                   .block = (uint16_t)block};
    *end += all * block * bw_format_get(format)->device_bytes;
    if (block > 1) {
        t.exps = *end;
        *end += all;
    }
    *end = (*end + 63) / 64 * 64;
    return t;
}

static bw_instruction step(bw_opcode op, bw_tensor in, bw_tensor out)
{
    return (bw_instruction){.opcode = (uint8_t)op,
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

/* Engines that have the kernels for it, and that made patches within the convolution. */
static unsigned able, joined;

static void compare(const shape *s)
{
    struct {
        bw_program_header header;
        bw_instruction list[LIMIT];
    } bytes = {0};
    const uint32_t size = (s->size - 1) / s->stride + 1, taps = s->kernel * s->kernel * s->channels;
    uint64_t in = 0, act = 0, out = 0;
    uint32_t count = 0;
    const bw_tensor x = place(s->size, s->channels, BW_FORMAT_FP32, 1, BW_REGION_IN, &in);
    const bw_tensor a = place(size, taps, BW_FORMAT_MSFP16, s->block, BW_REGION_ACT, &act);
    const bw_tensor b = place(size, s->outputs, BW_FORMAT_MSFP16, 16, BW_REGION_ACT, &act);
    bw_instruction *patch = &bytes.list[count++], *dot = &bytes.list[count++];
    *patch = step(BW_OP_PATCH, x, a);
    patch->kernel_y = patch->kernel_x = (uint16_t)s->kernel;
    patch->stride_y = patch->stride_x = (uint16_t)s->stride;
    patch->origin_y = patch->origin_x = (int16_t) - (int)(s->kernel / 2);
    *dot = step(BW_OP_CONV, a, b);
    dot->activation = BW_ACT_RELU;
    dot->weight_format = BW_FORMAT_MSFP16;
    bytes.list[count++] = step(BW_OP_COPY, b, place(size, s->outputs, BW_FORMAT_FP32, 1, BW_REGION_OUT, &out));
    if (s->again)
        bytes.list[count++] = step(BW_OP_COPY, a, place(size, taps, BW_FORMAT_FP32, 1, BW_REGION_OUT, &out));
    const uint64_t blocks = bw_conv_tiles(dot) * bw_conv_blocks(dot), codes = blocks * 16 * s->block;
    dot->weight_exps = (codes + 63) / 64 * 64;
    const uint64_t constant_bytes = (dot->weight_exps + blocks * 16 + 63) / 64 * 64;
    bytes.header = (bw_program_header){.magic = BW_PROGRAM_MAGIC,
                                       .isa_version = BW_ISA_VERSION,
                                       .instruction_count = count,
                                       .act_bytes = act,
                                       .in_bytes = in,
                                       .out_bytes = out,
                                       .const_bytes = constant_bytes};
    uint8_t *constants = bw_aligned_zalloc(constant_bytes), *want = calloc(out, BATCH), *got = calloc(out, BATCH);
    float *values = bw_aligned_zalloc(in * BATCH);
    assert_true(constants && want && got && values);
    uint32_t random = 1;
    for (uint64_t i = 0; i < constant_bytes; i++) {
        random = random * 1664525u + 1013904223u;
        constants[i] =
            i < codes ? (uint8_t)((int)(random >> 8) % 255 - 127) : (uint8_t)(int8_t)(-10 - (int)(random >> 30));
    }
    for (uint64_t i = 0; i < in * BATCH / 4; i++) {
        random = random * 1664525u + 1013904223u;
        values[i] = (float)((int)(random >> 21) - 1024) / 64.0f;
    }
    bw_program program;
    bw_error err;
    if (bw_program_parse(&bytes, sizeof bytes.header + count * sizeof bytes.list[0], &program, &err) ||
        bw_program_check_constants(&program, constants, constant_bytes, &err))
        fail_msg("%s", err.message);
    assert_int_equal(bw_reference_run(&program, constants, values, want, BATCH, NULL), BW_OK);
    for (unsigned threads = 1; threads <= 3; threads++) {
        const bw_fast_options options = {BW_SIM_ISA_AUTO, threads, 0, 1};
        bw_fast *engine;
        assert_int_equal(bw_fast_create(&program, constants, &options, &engine, NULL), BW_OK);
        if (engine->plans[1].patch && s->again)
            fail_msg("patches that are an output are not written");
        if (!s->again && engine->plans[0].patches && engine->plans[1].direct_sums && !engine->plans[1].patch)
            fail_msg("patches that nobody else reads are written");
        able += engine->rows->direct && engine->rows->patch && engine->bytes;
        joined += engine->plans[1].patch != NULL;
        memset(got, 0, out * BATCH);
        assert_int_equal(bw_fast_run(engine, values, got, BATCH, NULL, NULL), BW_OK);
        bw_fast_destroy(engine);
        if (memcmp(got, want, out * BATCH) != 0)
            fail_msg("%u, %u channels, %ux%u / %u to %u, blocks of %u, %d, %u threads: other bits", s->size,
                     s->channels, s->kernel, s->kernel, s->stride, s->outputs, s->block, s->again, threads);
    }
    free(constants);
    free(values);
    free(want);
    free(got);
}

static void patches_of_a_convolution(void **state)
{
    (void)state;
    for (uint32_t block = 16; block <= 128; block *= 2)
        for (int again = 0; again < 2; again++)
            for (uint32_t size = 8; size <= 41; size += 11) {
                compare(&(shape){size, 3, 3, 1, 64, block, again});
                compare(&(shape){size, 3, 7, 2, 64, block, again});
                compare(&(shape){size, 1, 5, 1, 24, block, again});
            }
    compare(&(shape){300, 3, 3, 1, 16, 32, 0}); /* a line is more than an item usually has */
    assert_true(!able || joined);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(whoever_reads_a_byte),
                                       cmocka_unit_test(until_it_is_written_over),
                                       cmocka_unit_test(patches_of_a_convolution)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
