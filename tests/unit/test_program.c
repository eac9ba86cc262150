/* SPDX-License-Identifier: Apache-2.0 */
/* The validator: each rule broken once, and its geometry against brute force. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/lcg.h"
#include "tests/support/random_program.h"

/* A program of one instruction, with generous regions. */
typedef struct one {
    bw_program_header header;
    bw_instruction ins;
} one;

static uint64_t seed = 7;

static uint32_t below(uint32_t n)
{
    return (uint32_t)(bw_lcg(&seed) >> 33) % n;
}

static bw_tensor tensor(bw_format format, bw_region region, unsigned block, uint32_t h, uint32_t w, uint32_t c,
                        uint64_t codes, uint64_t exps)
{
    bw_tensor t = {.codes = codes,
                   .exps = exps,
                   .height = h,
                   .width = w,
                   .channels = c,
                   .format = (uint8_t)format,
                   .region = (uint8_t)region,
                   .block = (uint16_t)block};
    t.pixel_stride = bw_tensor_units(&t);
    t.row_stride = w * t.pixel_stride;
    return t;
}

/* A valid instruction of each operation: 4x5 pixels, 20 channels in, 20 (PATCH: 180) out. */
static one valid(bw_opcode opcode)
{
    one p = {.header = {.magic = BW_PROGRAM_MAGIC,
                        .isa_version = BW_ISA_VERSION,
                        .instruction_count = 1,
                        .act_bytes = 65536,
                        .in_bytes = 4 * 5 * 20 * 4,
                        .out_bytes = 4 * 5 * 20 * 4,
                        .const_bytes = 65536}};
    bw_instruction *s = &p.ins;
    s->opcode = (uint8_t)opcode;
    s->kernel_y = s->kernel_x = s->stride_y = s->stride_x = s->dilation_y = s->dilation_x = 1;
    s->groups = 1;
    s->in = tensor(BW_FORMAT_MSFP12, BW_REGION_ACT, 16, 4, 5, 20, 0, 1024);
    s->out0 = tensor(BW_FORMAT_MSFP16, BW_REGION_ACT, 16, 4, 5, 20, 2048, 4000);
    int window = opcode <= BW_OP_AVGPOOL || opcode == BW_OP_PATCH;
    if (window) {
        s->kernel_y = s->kernel_x = 3;
        s->origin_y = s->origin_x = -1;
    }
    switch (opcode) {
    case BW_OP_CONV:
        s->weight_format = BW_FORMAT_MSFP13;
        s->weights = 64;
        s->weight_exps = 32768;
        s->bias = 49152;
        s->flags = BW_FLAG_BIAS;
        s->in2 = tensor(BW_FORMAT_FP16, BW_REGION_ACT, 1, 4, 5, 20, 8192, 0);
        s->out1 = tensor(BW_FORMAT_FP32, BW_REGION_OUT, 1, 4, 5, 20, 0, 0);
        break;
    case BW_OP_DWCONV:
        s->in = tensor(BW_FORMAT_FP16, BW_REGION_ACT, 1, 4, 5, 20, 0, 0);
        s->weight_format = BW_FORMAT_BF16;
        s->weights = 64;
        s->bias = 49152;
        s->flags = BW_FLAG_BIAS;
        break;
    case BW_OP_AVGPOOL:
        s->weights = 64;
        break;
    case BW_OP_ADD:
        s->in2 = tensor(BW_FORMAT_MXFP8_E5M2, BW_REGION_ACT, 32, 4, 5, 20, 8192, 12000);
        break;
    case BW_OP_MUL:
        s->in = tensor(BW_FORMAT_FP16, BW_REGION_ACT, 1, 4, 5, 20, 0, 0);
        s->in2 = tensor(BW_FORMAT_BF16, BW_REGION_ACT, 1, 4, 5, 20, 8192, 0);
        break;
    case BW_OP_COPY:
        s->flags = BW_FLAG_CHANNEL_MAP;
        s->weights = 128;
        break;
    case BW_OP_PATCH:
        s->in = tensor(BW_FORMAT_FP32, BW_REGION_IN, 1, 4, 5, 20, 0, 0);
        s->out0 = tensor(BW_FORMAT_MSFP16, BW_REGION_ACT, 16, 4, 5, 180, 0, 60000);
        break;
    default:
        break;
    }
    return p;
}

static bw_status parse(const one *p, bw_error *err)
{
    bw_program program;
    err->message[0] = '\0';
    return bw_program_parse(p, sizeof *p, &program, err);
}

static void expect_ok(const one *p, const char *what)
{
    bw_error err;
    if (parse(p, &err))
        fail_msg("%s: refused: %s", what, err.message);
}

/* Refused as corrupt, with `text` in the message and the instruction named. */
static void expect_bad(const one *p, const char *text)
{
    bw_error err;
    bw_status s = parse(p, &err);
    if (s != BW_CORRUPT)
        fail_msg("expected a refusal with '%s', got %s %s", text, bw_status_name(s), err.message);
    char prefix[64];
    snprintf(prefix, sizeof prefix, "program: instruction 0 (%s): ", bw_opcode_name(p->ins.opcode));
    if (strncmp(err.message, prefix, strlen(prefix)) || !strstr(err.message, text))
        fail_msg("expected '%s...%s', got '%s'", prefix, text, err.message);
}

#define BREAK(op, change, text)                                                                                        \
    do {                                                                                                               \
        one p = valid(op);                                                                                             \
        expect_ok(&p, #op);                                                                                            \
        bw_instruction *s = &p.ins;                                                                                    \
        (void)s;                                                                                                       \
        change;                                                                                                        \
        expect_bad(&p, text);                                                                                          \
    } while (0)

#define ACCEPT(op, change)                                                                                             \
    do {                                                                                                               \
        one p = valid(op);                                                                                             \
        bw_instruction *s = &p.ins;                                                                                    \
        (void)s;                                                                                                       \
        change;                                                                                                        \
        expect_ok(&p, #op ": " #change);                                                                               \
    } while (0)

static void headers(void **state)
{
    (void)state;
    one p = valid(BW_OP_ADD);
    bw_program program;
    bw_error err;
    assert_int_equal(bw_program_parse(&p, sizeof p, &program, &err), BW_OK);
    assert_ptr_equal(program.header, &p.header);
    assert_ptr_equal(program.instructions, &p.ins);
    assert_int_equal(program.needs.formats,
                     1u << BW_FORMAT_MSFP12 | 1u << BW_FORMAT_MSFP16 | 1u << BW_FORMAT_MXFP8_E5M2);
    assert_int_equal(program.needs.opcodes, 1u << BW_OP_ADD);
    assert_int_equal(program.needs.blocks, 3);
    assert_true(program.needs.act_bytes == 65536 && program.needs.const_bytes == 65536);

    assert_int_equal(bw_program_parse(NULL, 64, &program, &err), BW_INVALID_ARGUMENT);
    assert_int_equal(bw_program_parse((char *)&p + 4, 64, &program, &err), BW_INVALID_ARGUMENT);
    for (size_t size = 0; size < sizeof p; size++)
        assert_int_equal(bw_program_parse(&p, size, &program, NULL), BW_CORRUPT);
    one two[2] = {p, p};
    assert_int_equal(bw_program_parse(two, sizeof two, &program, &err), BW_CORRUPT);
#define BREAK_HEADER(change, expected)                                                                                 \
    do {                                                                                                               \
        one q = p;                                                                                                     \
        q.header.change;                                                                                               \
        assert_int_equal(bw_program_parse(&q, sizeof q, &program, &err), expected);                                    \
        assert_int_equal(err.status, expected);                                                                        \
    } while (0)
    BREAK_HEADER(magic ^= 1, BW_CORRUPT);
    BREAK_HEADER(isa_version = 2, BW_VERSION_MISMATCH);
    BREAK_HEADER(isa_version = 0, BW_VERSION_MISMATCH);
    BREAK_HEADER(instruction_count = 0, BW_CORRUPT);
    BREAK_HEADER(instruction_count = 2, BW_CORRUPT);
    BREAK_HEADER(instruction_count = UINT32_MAX, BW_CORRUPT);
    BREAK_HEADER(reserved = 1, BW_CORRUPT);
    BREAK_HEADER(reserved2[0] = 1, BW_CORRUPT);
    BREAK_HEADER(reserved2[1] = 1, BW_CORRUPT);
    BREAK_HEADER(act_bytes = UINT64_MAX, BW_CORRUPT);
    BREAK_HEADER(in_bytes = (1ull << 40) + 4, BW_CORRUPT);
    BREAK_HEADER(in_bytes = 6, BW_CORRUPT);
    BREAK_HEADER(out_bytes = 6, BW_CORRUPT);
    BREAK_HEADER(const_bytes = 1ull << 41, BW_CORRUPT);
}

static void fields_of_every_operation(void **state)
{
    (void)state;
    for (unsigned op = 1; op < BW_OP_LIMIT; op++) {
        bw_opcode o = (bw_opcode)op;
        BREAK(o, s->flags |= 0x8000, "flags");
        BREAK(o, s->activation = BW_ACT_LIMIT, "activation");
        BREAK(o, s->clip_lo = 1, "clip");
        BREAK(o, s->clip_hi = -0.0f, "clip");
        BREAK(o, s->groups = 0, "groups");
        BREAK(o, s->kernel_y = 0, "kernel_y");
        BREAK(o, s->kernel_x = 1025, "kernel_x");
        BREAK(o, s->stride_y = 1025, "stride_y");
        BREAK(o, s->stride_x = 0, "stride_x");
        BREAK(o, s->dilation_y = 0, "dilation_y");
        BREAK(o, s->dilation_x = 65535, "dilation_x");
        for (size_t i = 0; i < 7; i++)
            BREAK(o, s->reserved[i] = 1, "reserved");
        if (o != BW_OP_CONV)
            BREAK(o, s->groups = 2, "groups");
        if (o != BW_OP_CONV && o != BW_OP_DWCONV) {
            BREAK(o, s->weight_format = BW_FORMAT_MSFP12, "weight_format");
            BREAK(o, s->flags |= BW_FLAG_BIAS, "flags");
            BREAK(o, s->bias = 64, "bias");
        }
        if (o != BW_OP_CONV)
            BREAK(o, s->weight_exps = 64, "weight_exps");
        if (o == BW_OP_MAXPOOL || o == BW_OP_ADD || o == BW_OP_MUL || o == BW_OP_PATCH)
            BREAK(o, s->weights = 64, "weights");
        if (o >= BW_OP_ADD && o <= BW_OP_COPY) {
            BREAK(o, s->kernel_y = 2, "kernel_y");
            BREAK(o, s->stride_x = 2, "stride_x");
            BREAK(o, s->origin_y = -1, "origin");
            BREAK(o, s->origin_x = 1, "origin");
        }
        if (o == BW_OP_MAXPOOL || o == BW_OP_AVGPOOL || o == BW_OP_COPY || o == BW_OP_PATCH)
            BREAK(o, s->in2 = tensor(BW_FORMAT_FP16, BW_REGION_ACT, 1, 4, 5, s->out0.channels, 32768, 0), "in2");
        if (o == BW_OP_ADD || o == BW_OP_MUL)
            BREAK(o, memset(&s->in2, 0, sizeof s->in2), "in2 is absent");
        BREAK(o, s->in.region = 0, "in is absent");
        BREAK(o, memset(&s->out0, 0, sizeof s->out0), "out0 is absent");
        ACCEPT(o, s->out1 = tensor(BW_FORMAT_BF16, BW_REGION_ACT, 1, 4, 5, s->out0.channels, 40000, 0));
        BREAK(o, s->out1 = tensor(BW_FORMAT_BF16, BW_REGION_ACT, 1, 4, 5, s->out0.channels - 1, 40000, 0), "out1");
        BREAK(o, s->out1 = tensor(BW_FORMAT_BF16, BW_REGION_ACT, 1, 5, 4, s->out0.channels, 40000, 0), "out1");
        BREAK(o, s->out1.block = 16, "out1"); /* an absent tensor is all zeros, a present one is legal */
    }
    one wrong = valid(BW_OP_CONV);
    wrong.ins.opcode = 0;
    expect_bad(&wrong, "opcode");
    wrong.ins.opcode = BW_OP_LIMIT;
    expect_bad(&wrong, "opcode");
    wrong.ins.opcode = 255;
    expect_bad(&wrong, "opcode");
}

static void activations(void **state)
{
    (void)state;
    BREAK(BW_OP_ADD, (s->activation = BW_ACT_CLIP, s->clip_lo = 2, s->clip_hi = 1), "clip_lo");
    BREAK(BW_OP_ADD, (s->activation = BW_ACT_CLIP, s->clip_lo = -0.0f, s->clip_hi = 1), "clip");
    BREAK(BW_OP_ADD, (s->activation = BW_ACT_CLIP, s->clip_hi = NAN), "clip");
    BREAK(BW_OP_ADD, (s->activation = BW_ACT_CLIP, s->clip_lo = -INFINITY), "clip");
    BREAK(BW_OP_ADD, (s->activation = BW_ACT_CLIP, s->clip_hi = 0x1p-127f), "clip");
    BREAK(BW_OP_ADD, (s->activation = BW_ACT_CLIP, s->clip_hi = 0x1.8p-126f), "clip");
    BREAK(BW_OP_ADD, (s->activation = BW_ACT_CLIP, s->clip_hi = 0x1.000002p-104f), "clip");
    ACCEPT(BW_OP_ADD, (s->activation = BW_ACT_CLIP, s->clip_hi = 0x1.000002p-103f));
    ACCEPT(BW_OP_ADD, (s->activation = BW_ACT_CLIP, s->clip_lo = -0x1p-126f, s->clip_hi = 0x1.8p-125f));
    ACCEPT(BW_OP_ADD, (s->activation = BW_ACT_CLIP, s->clip_lo = -6, s->clip_hi = -6));
    ACCEPT(BW_OP_ADD, s->activation = BW_ACT_RELU);
}

static void tensors(void **state)
{
    (void)state;
    BREAK(BW_OP_ADD, s->in.format = 5, "in.format");
    BREAK(BW_OP_ADD, s->in.format = 255, "in.format");
    BREAK(BW_OP_ADD, s->in.region = BW_REGION_IN, "in.region");
    BREAK(BW_OP_ADD, s->in.region = BW_REGION_CONST, "in.region");
    BREAK(BW_OP_ADD, s->in.region = 77, "in.region");
    BREAK(BW_OP_ADD, s->out0.region = BW_REGION_OUT, "out0.region");
    BREAK(BW_OP_ADD, s->in.block = 17, "in.block");
    BREAK(BW_OP_ADD, s->in.block = 0, "in.block");
    BREAK(BW_OP_ADD, s->in2.block = 16, "in2.block");
    BREAK(BW_OP_ADD, s->in.height = 0, "in.height");
    BREAK(BW_OP_ADD, s->in.height = 65537, "in.height");
    BREAK(BW_OP_ADD, s->in.width = 0, "in.width");
    BREAK(BW_OP_ADD, s->in.width = UINT32_MAX, "in.width");
    BREAK(BW_OP_ADD, s->in.channels = 0, "in.channels");
    BREAK(BW_OP_ADD, s->in.channels = 1048577, "in.channels");
    BREAK(BW_OP_ADD, s->in.channels = UINT32_MAX, "in.channels");
    BREAK(BW_OP_ADD, s->in.pixel_stride = 1, "in.pixel_stride");
    BREAK(BW_OP_ADD, s->in.row_stride = 9, "in.row_stride");
    BREAK(BW_OP_ADD, (s->in.pixel_stride = UINT32_MAX, s->in.row_stride = UINT32_MAX), "in.row_stride");
    BREAK(BW_OP_ADD, (s->in.width = 1, s->in.row_stride = UINT32_MAX), "outside");
    BREAK(BW_OP_ADD, s->in.reserved = 1, "in.reserved");
    BREAK(BW_OP_ADD, s->in.codes = 8, "in.codes");
    BREAK(BW_OP_MUL, s->in.codes = 1, "in.codes");
    BREAK(BW_OP_ADD, s->in.codes = 65536 - 624, "outside");
    BREAK(BW_OP_ADD, s->in.codes = UINT64_MAX - 15, "outside");
    BREAK(BW_OP_ADD, s->in.codes = 1ull << 63, "outside");
    BREAK(BW_OP_ADD, s->in.exps = 65536 - 39, "outside");
    BREAK(BW_OP_ADD, s->in.exps = UINT64_MAX, "outside");
    ACCEPT(BW_OP_ADD, (s->in.codes = 16384, s->in.exps = 0, p.header.act_bytes = 16384 + 640));
    BREAK(BW_OP_ADD, (s->in.codes = 16384, s->in.exps = 0, p.header.act_bytes = 16384 + 639), "outside");
    BREAK(BW_OP_ADD, s->in.exps = 0, "overlap its codes");
    BREAK(BW_OP_ADD, s->in.exps = 639, "overlap its codes");
    ACCEPT(BW_OP_ADD, s->in.exps = 640);
    ACCEPT(BW_OP_ADD, s->in.exps = 65536 - 40);
    ACCEPT(BW_OP_ADD, s->in.codes = 65536 - 640);
    BREAK(BW_OP_MUL, s->in.exps = 16, "in.exps");
    BREAK(BW_OP_MUL, s->in.format = BW_FORMAT_MSFP12, "in.format");
    BREAK(BW_OP_MUL, s->in2 = tensor(BW_FORMAT_MSFP12, BW_REGION_ACT, 16, 4, 5, 20, 8192, 12000), "in2.format");
    BREAK(BW_OP_DWCONV, s->in2 = tensor(BW_FORMAT_FP32, BW_REGION_IN, 1, 4, 5, 20, 0, 0), "in2.format");
    BREAK(BW_OP_ADD, s->in.format = BW_FORMAT_FP32, "in.format");
    BREAK(BW_OP_DWCONV, s->in.format = BW_FORMAT_MSFP12, "in.format");
    BREAK(BW_OP_CONV, s->in.format = BW_FORMAT_FP16, "in.format");
    BREAK(BW_OP_CONV, s->in2.format = BW_FORMAT_FP32, "in2.format");
    BREAK(BW_OP_PATCH, s->in.format = BW_FORMAT_FP16, "in.format");
    BREAK(BW_OP_PATCH, s->in.region = BW_REGION_OUT, "in.region");
    BREAK(BW_OP_PATCH, s->in.codes = 4, "outside");
    BREAK(BW_OP_CONV, s->out1.region = BW_REGION_ACT, "out1.region");
    BREAK(BW_OP_CONV, s->out1.region = BW_REGION_IN, "out1.region");
    BREAK(BW_OP_CONV, s->out1.codes = 4, "outside");
    BREAK(BW_OP_CONV, s->out1.codes = 2, "out1.codes");
    /* fp32 from IN through COPY, to OUT. */
    ACCEPT(BW_OP_COPY, s->in = tensor(BW_FORMAT_FP32, BW_REGION_IN, 1, 4, 5, 20, 0, 0));
    ACCEPT(BW_OP_COPY, s->out0 = tensor(BW_FORMAT_FP32, BW_REGION_OUT, 1, 4, 5, 20, 0, 0));
    BREAK(BW_OP_COPY, s->in = tensor(BW_FORMAT_FP32, BW_REGION_OUT, 1, 4, 5, 20, 0, 0), "in.region");
    BREAK(BW_OP_COPY, s->in = tensor(BW_FORMAT_FP32, BW_REGION_ACT, 1, 4, 5, 20, 0, 0), "in.region");
}

static void shapes_and_constants(void **state)
{
    (void)state;
    /* CONV: 20 -> 20 channels, 3x3 over 2 blocks: 2 tiles x 18 blocks of 16 x 16 x 5 bits. */
    const uint64_t weights = 2 * 18 * 160, exps = 2 * 18 * 16, bias = 2 * 16 * 4;
    ACCEPT(BW_OP_CONV, s->weights = (65536 - weights) / 64 * 64);
    BREAK(BW_OP_CONV, s->weights = (65536 - weights) / 64 * 64 + 64, "weights");
    ACCEPT(BW_OP_CONV, s->weight_exps = 65536 - exps);
    BREAK(BW_OP_CONV, s->weight_exps = 65536 - exps + 64, "weight_exps");
    ACCEPT(BW_OP_CONV, s->bias = 65536 - bias);
    BREAK(BW_OP_CONV, s->bias = 65536 - bias + 64, "bias");
    BREAK(BW_OP_CONV, s->weights = 32, "weights");
    BREAK(BW_OP_CONV, s->weight_exps = 1, "weight_exps");
    BREAK(BW_OP_CONV, s->bias = UINT64_MAX - 63, "bias");
    BREAK(BW_OP_CONV, s->flags = 0, "bias");
    BREAK(BW_OP_CONV, s->weight_format = 0, "weight_format");
    BREAK(BW_OP_CONV, s->weight_format = BW_FORMAT_FP16, "weight_format");
    BREAK(BW_OP_CONV, s->weight_format = BW_FORMAT_MXINT8, "weight_format");
    BREAK(BW_OP_CONV, s->groups = 3, "groups");
    BREAK(BW_OP_CONV, s->groups = 2, "groups");
    BREAK(BW_OP_CONV,
          (s->in.channels = 32, s->groups = 2, s->out0.channels = s->in2.channels = 15, s->out1 = s->in2,
           s->out1.codes = 32768),
          "groups");
    BREAK(BW_OP_CONV, s->groups = UINT32_MAX, "groups");
    ACCEPT(BW_OP_CONV, (s->in.channels = 32, s->groups = 2));
    BREAK(BW_OP_CONV, s->in2.channels = 19, "in2");
    BREAK(BW_OP_CONV, (s->kernel_y = s->kernel_x = 1024), "weights");
    /* The largest reduction and one block more. */
    one large = valid(BW_OP_CONV);
    large.header.const_bytes = 1ull << 40;
    large.header.act_bytes = 1ull << 30;
    large.ins.kernel_y = large.ins.kernel_x = 1024;
    large.ins.in = tensor(BW_FORMAT_MSFP12, BW_REGION_ACT, 16, 1, 1, 64, 1 << 20, 2 << 20);
    large.ins.weights = 1 << 30;
    large.ins.weight_exps = 1ull << 36;
    large.ins.bias = 0;
    expect_ok(&large, "2^22 blocks");
    large.ins.in = tensor(BW_FORMAT_MSFP12, BW_REGION_ACT, 16, 1, 1, 65, 1 << 20, 2 << 20);
    expect_bad(&large, "reduction");
    large.ins.kernel_y = 397; /* 397 * 5 * 2113 = 2^22 + 1 */
    large.ins.kernel_x = 5;
    large.ins.in = tensor(BW_FORMAT_MSFP12, BW_REGION_ACT, 16, 1, 1, 2113 * 16, 1 << 20, 2 << 20);
    expect_bad(&large, "reduction");
    large.ins.in.channels = 2112 * 16;
    expect_ok(&large, "2112 blocks a tap");

    BREAK(BW_OP_DWCONV, s->weight_format = 0, "weight_format");
    BREAK(BW_OP_DWCONV, s->weight_format = BW_FORMAT_MSFP12, "weight_format");
    BREAK(BW_OP_DWCONV, s->weight_format = BW_FORMAT_FP32, "weight_format");
    BREAK(BW_OP_DWCONV, s->out0.channels = 19, "channels");
    ACCEPT(BW_OP_DWCONV, s->weights = 65536 - 9 * 32 * 2);
    BREAK(BW_OP_DWCONV, s->weights = 65536 - 9 * 32 * 2 + 64, "weights");
    BREAK(BW_OP_DWCONV, s->bias = 65536 - 64, "bias");
    BREAK(BW_OP_MAXPOOL, s->out0.channels = 19, "channels");
    BREAK(BW_OP_AVGPOOL, s->out0.channels = 19, "channels");
    ACCEPT(BW_OP_AVGPOOL, s->weights = 65536 - 64);
    ACCEPT(BW_OP_AVGPOOL, (s->kernel_x = 5, s->weights = 65536 - 64)); /* 16 floats */
    BREAK(BW_OP_AVGPOOL, (s->kernel_y = s->kernel_x = 4, s->weights = 65536 - 64), "weights");
    BREAK(BW_OP_AVGPOOL, s->weights = 65536, "weights");
    ACCEPT(BW_OP_AVGPOOL, s->flags = BW_FLAG_COUNT_PAD);
    BREAK(BW_OP_MAXPOOL, s->flags = BW_FLAG_COUNT_PAD, "flags");
    BREAK(BW_OP_ADD, s->in.channels = 19, "must be alike");
    BREAK(BW_OP_ADD, s->in2.height = 3, "must be alike");
    BREAK(BW_OP_MUL, s->in.width = 4, "must be alike");
    ACCEPT(BW_OP_COPY, s->out0.channels = 17);
    BREAK(BW_OP_COPY, (s->flags = 0, s->weights = 0, s->out0.channels = 17), "channels");
    BREAK(BW_OP_COPY, s->flags = 0, "weights");
    BREAK(BW_OP_COPY, s->in.height = 3, "must be alike");
    BREAK(BW_OP_COPY, s->weights = 65536 - 64, "weights");
    BREAK(BW_OP_PATCH, s->kernel_x = 2, "channels");
    BREAK(BW_OP_PATCH, s->in.channels = 19, "channels");
}

static void outputs_keep_clear(void **state)
{
    (void)state;
    /* in at 0..640 and 1024..1064, in2 at 8192..9472 and 12000, out0 at 2048..2688 and 4000. */
    BREAK(BW_OP_ADD, s->out0.codes = 624, "out0.codes at 624..1264 overlap in.codes");
    BREAK(BW_OP_ADD, s->out0.exps = 1063, "overlap in.exps");
    BREAK(BW_OP_ADD, s->out0.exps = 639, "overlap in.codes");
    BREAK(BW_OP_ADD, s->out0.codes = 1056, "out0.codes at 1056..1696 overlap in.exps");
    BREAK(BW_OP_ADD, s->out0.codes = 8192 - 624, "overlap in2.codes");
    BREAK(BW_OP_ADD, s->out0.exps = 12019, "overlap in2.exps");
    BREAK(BW_OP_ADD, s->out0 = s->in, "overlap in.codes");
    const bw_tensor spare = tensor(BW_FORMAT_FP16, BW_REGION_ACT, 1, 4, 5, 20, 40000, 0);
    ACCEPT(BW_OP_ADD, s->out1 = spare);
    BREAK(BW_OP_ADD, (s->out1 = spare, s->out1.codes = 638), "overlap in.codes");
    BREAK(BW_OP_ADD, (s->out1 = spare, s->out1.codes = 1062), "overlap in.exps");
    BREAK(BW_OP_ADD, (s->out1 = spare, s->out1.codes = 8828), "overlap in2.codes");
    BREAK(BW_OP_ADD, (s->out1 = spare, s->out1.codes = 2686), "overlap out0.codes");
    BREAK(BW_OP_ADD, (s->out1 = spare, s->out1.codes = 4038), "overlap out0.exps");
    BREAK(BW_OP_ADD, s->out1 = s->out0, "overlap out0.codes");
    ACCEPT(BW_OP_CONV, (s->out0 = s->out1, s->out0.codes = 1600, p.header.out_bytes = 3200));
    BREAK(BW_OP_CONV, (s->out0 = s->out1, s->out0.codes = 1596, p.header.out_bytes = 3200), "overlap out0.codes");
}

/* --- geometry against brute force ------------------------------------------------------------------------------------
 */

/* Marks the bytes of an array of a tensor; 1 if one was marked already. */
static int mark(uint8_t *bytes, const bw_tensor *t, int exps)
{
    int hit = 0;
    const bw_format_traits *f = bw_format_get((bw_format)t->format);
    uint64_t unit = exps ? 1 : (uint64_t)t->block * f->device_bytes, base = exps ? t->exps : t->codes;
    for (uint64_t y = 0; y < t->height; y++)
        for (uint64_t x = 0; x < t->width; x++)
            for (uint64_t u = 0; u < bw_tensor_units(t) * unit; u++) {
                uint64_t at = base + (y * t->row_stride + x * t->pixel_stride) * unit + u;
                assert_true(at < 4096); /* the parser let it pass: it must be inside */
                hit |= bytes[at];
                bytes[at] = 1;
            }
    return hit;
}

static bw_tensor random_tensor(uint32_t h, uint32_t w, uint32_t c)
{
    static const bw_format formats[] = {BW_FORMAT_MSFP12, BW_FORMAT_MSFP16, BW_FORMAT_FP16};
    bw_format f = formats[below(3)];
    bw_tensor t = tensor(f, BW_REGION_ACT, f == BW_FORMAT_FP16 ? 1 : 16, h, w, c, 16 * (uint64_t)below(200), 0);
    t.pixel_stride += below(4);
    t.row_stride = w * t.pixel_stride + (below(2) ? 0 : below(3) * t.pixel_stride + below(2));
    if (f != BW_FORMAT_FP16)
        t.exps = 3000 + below(1000);
    return t;
}

static void overlaps_are_found(void **state)
{
    (void)state;
    unsigned accepted = 0, refused = 0, interleaved = 0;
    for (int i = 0; i < 60000; i++) {
        uint32_t h = 1 + below(3), w = 1 + below(3), c = 1 + below(34);
        one p = valid(BW_OP_COPY);
        p.header.act_bytes = 4096;
        p.ins.in = random_tensor(h, w, c);
        p.ins.out0 = random_tensor(h, w, c);
        p.ins.flags = 0;
        p.ins.weights = 0;
        if (below(2)) { /* likely slices of one array */
            p.ins.out0 = p.ins.in;
            uint32_t units = bw_tensor_units(&p.ins.in), room = units * (1 + below(2)) + below(2);
            uint32_t shift = below(room + 2);
            p.ins.in.pixel_stride = p.ins.out0.pixel_stride = room;
            p.ins.in.row_stride = p.ins.out0.row_stride = room * (w * (1 + below(2)) + below(2));
            p.ins.out0.codes += (uint64_t)shift * p.ins.in.block * (p.ins.in.block == 1 ? 2 : 1);
            if (p.ins.in.exps)
                p.ins.out0.exps += shift;
        }
        bw_error err;
        bw_status s = parse(&p, &err);
        if (s && !strstr(err.message, " overlap "))
            continue; /* outside the region */
        uint8_t bytes[4096];
        memset(bytes, 0, sizeof bytes);
        int hit = 0;
        bw_tensor *both[] = {&p.ins.in, &p.ins.out0};
        if (s && strstr(err.message, "overlap its codes")) { /* ranges only: may refuse what interleaves */
            refused++;
            continue;
        }
        for (int k = 0; k < 2; k++) {
            hit |= mark(bytes, both[k], 0);
            if (both[k]->block > 1)
                hit |= mark(bytes, both[k], 1);
        }
        if (!s && hit)
            fail_msg("case %d: accepted, but the tensors share bytes", i);
        accepted += !s;
        refused += s != BW_OK;
        const bw_tensor *a = both[0], *b = both[1];
        interleaved += !s && a->codes < b->codes + 64 && b->codes < a->codes + 64 && h * w > 1;
        /* Slices within the pixel of one concatenation must be accepted. */
        if (s && !hit && a->format == b->format && a->pixel_stride == b->pixel_stride &&
            a->row_stride == b->row_stride && a->row_stride % a->pixel_stride == 0 && a->block > 1 &&
            b->exps >= a->exps && b->exps - a->exps + bw_tensor_units(a) <= a->pixel_stride &&
            b->codes - a->codes == 16 * (b->exps - a->exps))
            fail_msg("case %d: refused slices: %s", i, err.message);
    }
    assert_true(accepted > 10000 && refused > 1000 && interleaved > 500);
}

static void pool_windows_are_exact(void **state)
{
    (void)state;
    unsigned accepted = 0, refused = 0;
    for (int i = 0; i < 60000; i++) {
        one p = valid(BW_OP_MAXPOOL);
        uint32_t extent = 1 + below(7), outputs = 1 + below(8);
        uint32_t kernel = 1 + below(6), stride = 1 + below(9), dilation = 1 + below(12);
        int origin = (int)below(40) - 32, along_x = (int)below(2);
        p.ins.kernel_y = p.ins.kernel_x = 1;
        p.ins.origin_y = p.ins.origin_x = 0;
        p.ins.in = tensor(BW_FORMAT_FP16, BW_REGION_ACT, 1, along_x ? 1 : extent, along_x ? extent : 1, 3, 0, 0);
        p.ins.out0 = tensor(BW_FORMAT_FP16, BW_REGION_ACT, 1, along_x ? 1 : outputs, along_x ? outputs : 1, 3, 4096, 0);
        *(along_x ? &p.ins.kernel_x : &p.ins.kernel_y) = (uint16_t)kernel;
        *(along_x ? &p.ins.stride_x : &p.ins.stride_y) = (uint16_t)stride;
        *(along_x ? &p.ins.dilation_x : &p.ins.dilation_y) = (uint16_t)dilation;
        *(along_x ? &p.ins.origin_x : &p.ins.origin_y) = (int16_t)origin;
        int all = 1;
        for (uint32_t o = 0; o < outputs; o++) {
            int any = 0;
            for (uint32_t k = 0; k < kernel; k++) {
                int at = (int)(o * stride + k * dilation) + origin;
                any |= at >= 0 && at < (int)extent;
            }
            all &= any;
        }
        bw_error err;
        bw_status s = parse(&p, &err);
        if ((s == BW_OK) != all)
            fail_msg("extent %u outputs %u kernel %u stride %u dilation %u origin %d: %s, brute force says %d", extent,
                     outputs, kernel, stride, dilation, origin, s ? err.message : "accepted", all);
        accepted += !s;
        refused += s != BW_OK;
    }
    assert_true(accepted > 1000 && refused > 1000);
}

/* --- constants -------------------------------------------------------------------------------------------------------
 */

static bw_status check(const one *p, const void *constants, bw_error *err)
{
    bw_program program;
    assert_int_equal(bw_program_parse(p, sizeof *p, &program, err), BW_OK);
    return bw_program_check_constants(&program, constants, p->header.const_bytes, err);
}

static void constants_are_checked(void **state)
{
    (void)state;
    uint8_t *c = aligned_alloc(64, 65536);
    assert_non_null(c);
    bw_error err;
    bw_program program;
    one p = valid(BW_OP_CONV);
    memset(c, 0, 65536);
    memset(c + 64, 0xFF, 2 * 18 * 160); /* any weight codes */
    assert_int_equal(check(&p, c, &err), BW_OK);
    assert_int_equal(bw_program_parse(&p, sizeof p, &program, &err), BW_OK);
    assert_int_equal(bw_program_check_constants(&program, c, 65535, &err), BW_CORRUPT);
    assert_int_equal(bw_program_check_constants(&program, c + 4, 65536, &err), BW_INVALID_ARGUMENT);
    assert_int_equal(bw_program_check_constants(&program, NULL, 65536, &err), BW_INVALID_ARGUMENT);

    /* First and last exponent, and those beside the array. */
    int8_t *e = (int8_t *)c + 32768;
    const size_t n = 2 * 18 * 16;
    e[-1] = e[n] = 127;
    assert_int_equal(check(&p, c, &err), BW_OK);
    for (size_t at = 0; at < n; at += n - 1) {
        static const int values[] = {-64, -63, 40, 41, -128, 127};
        for (size_t i = 0; i < 6; i++) {
            e[at] = (int8_t)values[i];
            int ok = values[i] >= -63 && values[i] <= 40;
            assert_int_equal(check(&p, c, &err), ok ? BW_OK : BW_CORRUPT);
            char text[64];
            snprintf(text, sizeof text, "weight exponent %zu is %d, must be -63..40", at, values[i]);
            if (!ok && !strstr(err.message, text))
                fail_msg("expected '%s' in '%s'", text, err.message);
        }
        e[at] = 0;
    }
    float *bias = (float *)(c + 49152);
    static const struct {
        float value;
        bw_status status;
    } biases[] = {{0.0f, BW_OK},
                  {-0.0f, BW_CORRUPT},
                  {0x1p126f, BW_OK},
                  {-0x1p126f, BW_OK},
                  {0x1.8p126f, BW_CORRUPT},
                  {NAN, BW_NOT_FINITE},
                  {-INFINITY, BW_NOT_FINITE},
                  {0x1p-126f, BW_OK},
                  {0x1p-127f, BW_CORRUPT},
                  {0x1.8p-126f, BW_CORRUPT},
                  {0x1.8p-125f, BW_OK},
                  {0x1.000002p-103f, BW_OK},
                  {0x1.000002p-104f, BW_CORRUPT},
                  {0x1p-149f, BW_CORRUPT}};
    for (size_t i = 0; i < sizeof biases / sizeof *biases; i++) {
        bias[31] = biases[i].value; /* of a padding lane */
        assert_int_equal(check(&p, c, &err), biases[i].status);
        assert_true(!biases[i].status || (err.status == biases[i].status && strstr(err.message, "bias 31 ")));
    }
    bias[31] = 0;
    static const struct {
        bw_format format;
        int high;
    } ranges[] = {{BW_FORMAT_MXFP6_E3M2, 40}, {BW_FORMAT_MXFP8_E4M3, 31}, {BW_FORMAT_MXFP8_E5M2, 17}};
    for (size_t i = 0; i < 3; i++) {
        one q = p;
        q.ins.in = tensor(BW_FORMAT_MXINT8, BW_REGION_ACT, 32, 4, 5, 20, 0, 1024);
        q.ins.weight_format = (uint8_t)ranges[i].format;
        e[5] = (int8_t)ranges[i].high;
        assert_int_equal(check(&q, c, &err), BW_OK);
        e[5]++;
        assert_int_equal(check(&q, c, &err), BW_CORRUPT);
        e[5] = 0;
    }

    one d = valid(BW_OP_DWCONV);
    memset(c, 0, 65536);
    uint16_t *w = (uint16_t *)(c + 64);
    for (unsigned which = 0; which < 2; which++) {
        const bw_format_traits *t = bw_format_get(which ? BW_FORMAT_BF16 : BW_FORMAT_FP16);
        d.ins.weight_format = (uint8_t)t->format;
        for (unsigned code = 0; code < 65536; code++) {
            w[9 * 32 - 1] = (uint16_t)code;
            float x = bw_decode_vector(t, (uint16_t)code);
            int ok = isfinite(x) && bw_decode_vector(t, bw_encode_vector(t, x)) == x;
            bw_status s = check(&d, c, &err);
            if (s != (ok ? BW_OK : isfinite(x) ? BW_CORRUPT : BW_NOT_FINITE))
                fail_msg("%s weight 0x%04x: %s", t->name, code, bw_status_name(s));
        }
        w[9 * 32 - 1] = 0;
    }

    one a = valid(BW_OP_AVGPOOL);
    float *recip = (float *)(c + 64);
    memset(c, 0, 65536);
    recip[0] = NAN; /* not used */
    for (int i = 1; i < 10; i++)
        recip[i] = 1.0f / (float)i;
    assert_int_equal(check(&a, c, &err), BW_OK);
    static const float bad_recips[] = {0.0f, -0.0f, -1.0f, NAN, INFINITY, 0x1p41f, 0x1.fffffep-41f};
    for (size_t i = 0; i < sizeof bad_recips / sizeof *bad_recips; i++) {
        recip[9] = bad_recips[i];
        assert_int_equal(check(&a, c, &err), isfinite(recip[9]) ? BW_CORRUPT : BW_NOT_FINITE);
    }

    one m = valid(BW_OP_COPY);
    int32_t *map = (int32_t *)(c + 128);
    memset(c, 0, 65536);
    static const int32_t maps[] = {-1, 0, 19, 20, -2, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < 7; i++) {
        map[19] = maps[i];
        assert_int_equal(check(&m, c, &err), i < 3 ? BW_OK : BW_CORRUPT);
    }
    map[20] = -5; /* past the end */
    map[19] = 0;
    assert_int_equal(check(&m, c, &err), BW_OK);
    free(c);

    one none = valid(BW_OP_ADD);
    none.header.const_bytes = 0;
    assert_int_equal(check(&none, NULL, &err), BW_OK);
}

/* Many instructions that read one array cost one check; many that read it shifted are refused. */
static void shared_constants(void **state)
{
    (void)state;
    enum { COUNT = 4000 };
    const size_t bytes = sizeof(bw_program_header) + COUNT * sizeof(bw_instruction);
    uint8_t *p = aligned_alloc(64, (bytes + 63) / 64 * 64), *c = aligned_alloc(64, 1 << 20);
    assert_true(p && c);
    memset(c, 0, 1 << 20);
    one first = valid(BW_OP_COPY);
    first.header.instruction_count = COUNT;
    first.header.const_bytes = 1 << 20;
    first.header.act_bytes = 16 << 20;
    first.ins.out0 = tensor(BW_FORMAT_FP16, BW_REGION_ACT, 1, 4, 5, 100000, 1 << 20, 0);
    for (int shifted = 0; shifted < 2; shifted++) {
        memcpy(p, &first.header, sizeof first.header);
        for (size_t i = 0; i < COUNT; i++) {
            first.ins.weights = 128 + (shifted ? i * 64 : 0);
            memcpy(p + sizeof first.header + i * sizeof first.ins, &first.ins, sizeof first.ins);
        }
        bw_program program;
        bw_error err = {0};
        assert_int_equal(bw_program_parse(p, bytes, &program, &err), BW_OK);
        assert_int_equal(bw_program_check_constants(&program, c, 1 << 20, &err), shifted ? BW_CORRUPT : BW_OK);
        assert_true(!shifted || strstr(err.message, "overlap"));
    }
    free(p);

    /* The same place read in another way is checked in that way: a longer map, and fewer source channels. */
    struct {
        bw_program_header header;
        bw_instruction ins[2];
    } two;
    int32_t *map = (int32_t *)(c + 128);
    for (int longer = 0; longer < 2; longer++) {
        one copy = valid(BW_OP_COPY);
        two.header = copy.header;
        two.header.instruction_count = 2;
        two.ins[0] = two.ins[1] = copy.ins;
        if (longer)
            two.ins[1].out0.channels = 21;
        else
            two.ins[1].in.channels = 19;
        bw_program program;
        bw_error err;
        assert_int_equal(bw_program_parse(&two, sizeof two, &program, &err), BW_OK);
        assert_int_equal(bw_program_check_constants(&program, c, 65536, &err), BW_OK);
        map[longer ? 20 : 0] = longer ? 20 : 19;
        assert_int_equal(bw_program_check_constants(&program, c, 65536, &err), BW_CORRUPT);
        assert_non_null(strstr(err.message, "instruction 1 "));
        map[0] = map[20] = 0;
    }
    /* And exponents of a format with a shorter range. */
    one conv = valid(BW_OP_CONV);
    conv.ins.in = tensor(BW_FORMAT_MXINT8, BW_REGION_ACT, 32, 4, 5, 20, 0, 1024);
    two.header = conv.header;
    two.header.instruction_count = 2;
    two.ins[0] = two.ins[1] = conv.ins;
    two.ins[0].weight_format = BW_FORMAT_MXFP6_E3M2;
    two.ins[1].weight_format = BW_FORMAT_MXFP8_E5M2;
    c[conv.ins.weight_exps + 3] = 18;
    bw_program program;
    bw_error err;
    assert_int_equal(bw_program_parse(&two, sizeof two, &program, &err), BW_OK);
    assert_int_equal(bw_program_check_constants(&program, c, 65536, &err), BW_CORRUPT);
    assert_non_null(strstr(err.message, "instruction 1 (CONV): weight exponent 3 is 18, must be -63..17"));
    free(c);
}

/* The scan goes by chunks: no place between them is missed. */
static void long_arrays(void **state)
{
    (void)state;
    uint8_t *c = aligned_alloc(64, 1 << 17);
    assert_non_null(c);
    memset(c, 0, 1 << 17);
    one p = valid(BW_OP_CONV);
    p.header.const_bytes = 1 << 17;
    p.ins.kernel_y = p.ins.kernel_x = 11; /* 2 tiles x 242 blocks x 16 */
    p.ins.weight_exps = 1 << 16 | 1 << 15;
    p.ins.weights = 0;
    bw_error err;
    assert_int_equal(check(&p, c, &err), BW_OK);
    for (size_t i = 0; i < 2 * 242 * 16; i++) {
        c[p.ins.weight_exps + i] = i % 2 ? 41 : 0x80;
        assert_int_equal(check(&p, c, &err), BW_CORRUPT);
        char text[64];
        snprintf(text, sizeof text, "weight exponent %zu is", i);
        assert_non_null(strstr(err.message, text));
        c[p.ins.weight_exps + i] = 0;
    }
    free(c);
}

static void requirements(void **state)
{
    (void)state;
    bw_error err;
    const bw_requirements device = {.isa_version = 1,
                                    .formats = 1u << BW_FORMAT_MSFP12 | 1u << BW_FORMAT_FP32,
                                    .opcodes = 1u << BW_OP_CONV,
                                    .blocks = 3,
                                    .act_bytes = 1000,
                                    .const_bytes = 2000};
    assert_int_equal(bw_requirements_met(&device, &device, NULL), BW_OK);
    const struct {
        bw_requirements needs;
        const char *text;
    } rows[] = {{{2, 0, 0, 0, 0, 0}, "ISA version 2"},
                {{1, 1u << BW_FORMAT_MSFP13, 0, 0, 0, 0}, "msfp13"},
                {{1, 1u << 30, 0, 0, 0, 0}, "?"},
                {{1, 0, 1u << BW_OP_DWCONV, 0, 0, 0}, "DWCONV"},
                {{1, 0, 1u << 31, 0, 0, 0}, "?"},
                {{1, 0, 0, 4, 0, 0}, "blocks of 64"},
                {{1, 0, 0, 0, 1001, 0}, "1001 bytes of activations, the device has 1000"},
                {{1, 0, 0, 0, 0, 2001}, "2001 bytes of constants, the device has 2000"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_int_equal(bw_requirements_met(&rows[i].needs, &device, &err), BW_INCOMPATIBLE);
        if (!strstr(err.message, rows[i].text))
            fail_msg("expected '%s' in '%s'", rows[i].text, err.message);
    }
    assert_string_equal(bw_opcode_name(BW_OP_PATCH), "PATCH");
    assert_string_equal(bw_opcode_name(0), "?");
    assert_string_equal(bw_opcode_name(BW_OP_LIMIT), "?");
    assert_string_equal(bw_opcode_name(UINT32_MAX), "?");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(headers),
        cmocka_unit_test(fields_of_every_operation),
        cmocka_unit_test(activations),
        cmocka_unit_test(tensors),
        cmocka_unit_test(shapes_and_constants),
        cmocka_unit_test(outputs_keep_clear),
        cmocka_unit_test(overlaps_are_found),
        cmocka_unit_test(pool_windows_are_exact),
        cmocka_unit_test(constants_are_checked),
        cmocka_unit_test(shared_constants),
        cmocka_unit_test(long_arrays),
        cmocka_unit_test(requirements),
    };
    return cmocka_run_group_tests_name("program", tests, NULL, NULL);
}
