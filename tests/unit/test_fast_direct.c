/* SPDX-License-Identifier: Apache-2.0 */
/* Convolutions with short reductions, of every height and width that items are cut from, against the reference. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "hal/base.h"
#include "sim/sim.h"

typedef struct shape {
    uint32_t height, width, groups, blocks, outputs; /* blocks and outputs of a group */
    uint32_t kernel;
    bw_activation first; /* of what makes the input: none leaves it signed */
} shape;

typedef struct net {
    struct {
        bw_program_header header;
        bw_instruction list[3]; /* to blocks, CONV, to floats */
    } bytes;
    bw_program program;
    uint8_t *constants;
    float *in;
} net;

enum { BATCH = 2 };

static uint64_t seed;

static uint32_t next(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33);
}

static bw_tensor tensor(uint32_t h, uint32_t w, uint32_t c, bw_format format, bw_region region, uint64_t *end)
{
    const uint16_t block = format == BW_FORMAT_FP32 ? 1 : 16;
    const uint32_t units = c / block;
    const uint64_t all = (uint64_t)h * w * units;
    bw_tensor t = {.codes = *end,
                   .height = h,
                   .width = w,
                   .channels = c,
                   .pixel_stride = units,
                   .row_stride = w * units,
                   .format = (uint8_t)format,
                   .region = (uint8_t)region,
                   .block = block};
    *end += all * (block == 1 ? 4 : 16);
    if (block > 1) {
        t.exps = *end;
        *end = (*end + all + 63) / 64 * 64;
    }
    return t;
}

static bw_instruction instruction(bw_opcode op, bw_activation activation, bw_tensor in, bw_tensor out)
{
    return (bw_instruction){.opcode = (uint8_t)op,
                            .activation = (uint8_t)activation,
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

static void make(const shape *s, net *n)
{
    const uint32_t channels = s->groups * s->blocks * 16, outputs = s->groups * s->outputs;
    uint64_t in = 0, act = 0, out = 0;
    memset(n, 0, sizeof *n);
    const bw_tensor x = tensor(s->height, s->width, channels, BW_FORMAT_FP32, BW_REGION_IN, &in);
    const bw_tensor a = tensor(s->height, s->width, channels, BW_FORMAT_MSFP16, BW_REGION_ACT, &act);
    const bw_tensor b = tensor(s->height, s->width, outputs, BW_FORMAT_MSFP16, BW_REGION_ACT, &act);
    const bw_tensor y = tensor(s->height, s->width, outputs, BW_FORMAT_FP32, BW_REGION_OUT, &out);
    n->bytes.list[0] = instruction(BW_OP_COPY, s->first, x, a);
    n->bytes.list[2] = instruction(BW_OP_COPY, BW_ACT_NONE, b, y);
    bw_instruction *conv = &n->bytes.list[1];
    *conv = instruction(BW_OP_CONV, BW_ACT_RELU, a, b);
    conv->kernel_y = conv->kernel_x = (uint16_t)s->kernel;
    conv->origin_y = conv->origin_x = (int16_t) - (int)(s->kernel / 2);
    conv->groups = s->groups;
    conv->weight_format = BW_FORMAT_MSFP16;
    const uint64_t blocks = bw_conv_tiles(conv) * bw_conv_blocks(conv);
    conv->weight_exps = (blocks * 256 + 63) / 64 * 64;
    n->bytes.header = (bw_program_header){.magic = BW_PROGRAM_MAGIC,
                                          .isa_version = BW_ISA_VERSION,
                                          .instruction_count = 3,
                                          .act_bytes = act,
                                          .in_bytes = in,
                                          .out_bytes = out,
                                          .const_bytes = (conv->weight_exps + blocks * 16 + 63) / 64 * 64};
    n->constants = bw_aligned_zalloc(n->bytes.header.const_bytes);
    n->in = bw_aligned_zalloc(in * BATCH);
    assert_true(n->constants && n->in);
    for (uint64_t i = 0; i < blocks * 256; i++)
        n->constants[i] = (uint8_t)((int)(next() % 255) - 127);
    for (uint64_t i = 0; i < blocks * 16; i++)
        n->constants[conv->weight_exps + i] = (uint8_t)(int8_t)(-10 - (int)(next() % 4));
    for (uint64_t i = 0; i < in * BATCH / 4; i++)
        n->in[i] = (float)((int)(next() % 2001) - 1000) / 64.0f;
    bw_error err;
    if (bw_program_parse(&n->bytes, sizeof n->bytes, &n->program, &err) ||
        bw_program_check_constants(&n->program, n->constants, n->bytes.header.const_bytes, &err))
        fail_msg("%s", err.message);
}

static void compare(const shape *s)
{
    net n;
    make(s, &n);
    const uint64_t bytes = n.bytes.header.out_bytes * BATCH;
    uint8_t *expected = malloc(bytes), *out = malloc(bytes);
    assert_true(expected && out);
    assert_int_equal(bw_reference_run(&n.program, n.constants, n.in, expected, BATCH, NULL), BW_OK);
    for (unsigned threads = 1; threads <= 3; threads++)
        for (unsigned pipes = 2; pipes <= 4; pipes += 2) {
            const bw_fast_options options = {BW_SIM_ISA_AUTO, threads, pipes};
            bw_fast *engine;
            assert_int_equal(bw_fast_create(&n.program, n.constants, &options, &engine, NULL), BW_OK);
            memset(out, 0xFF, bytes);
            assert_int_equal(bw_fast_run(engine, n.in, out, BATCH, NULL, NULL), BW_OK);
            bw_fast_destroy(engine);
            if (memcmp(out, expected, bytes) != 0)
                fail_msg("%ux%u, %u groups of %u blocks to %u, kernel %u, %u threads, %u pipes: other bits", s->height,
                         s->width, s->groups, s->blocks, s->outputs, s->kernel, threads, pipes);
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
        for (uint32_t width = 1; width <= 9; width += 2)
            compare(&(shape){height, width, 4, 28, 16, 1, height % 2 ? BW_ACT_RELU : BW_ACT_NONE});
    compare(&(shape){21, 3, 6, 38, 16, 1, BW_ACT_NONE});
    compare(&(shape){16, 1, 100, 40, 16, 1, BW_ACT_RELU});
}

static void small_and_shallow(void **state)
{
    (void)state;
    for (uint32_t height = 1; height <= 11; height++)
        for (uint32_t width = 1; width <= 17; width += 4) {
            compare(&(shape){height, width, 1, 2, 48, 1, BW_ACT_NONE});
            compare(&(shape){height, width, 1, 3, 32, 1, BW_ACT_RELU});
            compare(&(shape){height, width, 2, 1, 16, 3, BW_ACT_RELU});
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(narrow_and_deep), cmocka_unit_test(small_and_shallow)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
