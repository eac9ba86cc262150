/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What random programs meet only by chance, on every device: each operation with each format as input and as output,
 * each pair of formats in CONV, sums whose rounding is a tie, gaps of OUT. Same bits as the reference interpreter.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "hal/base.h"
#include "hal/hal.h"
#include "tests/support/compare.h"
#include "tests/support/devices.h"
#include "tests/support/random_program.h"

static bw_device *open_device(void **state, bw_device_info *info)
{
    bw_device *dev;
    bw_error err = {BW_OK, ""};
    if (bw_device_open(*state, &dev, &err) || bw_device_info_get(dev, info, &err))
        fail_msg("%s", err.message);
    return dev;
}

static bw_status run_on_device(const bw_compare_engine *engine, const bw_program *program, const void *constants,
                               const void *in, void *out, uint32_t batch, bw_error *err)
{
    bw_image *image;
    const size_t size = sizeof *program->header + program->header->instruction_count * sizeof(bw_instruction);
    bw_status status =
        bw_image_load(engine->user, program->header, size, constants, program->header->const_bytes, &image, err);
    if (status)
        return status;
    status = bw_image_run(image, in, out, batch, 0, err);
    bw_image_release(image);
    return status;
}

static void compare(bw_device *dev, const char *uri, const bw_compare_case *c, const char *what)
{
    bw_compare_engine reference = {.name = "reference", .run = bw_compare_reference};
    bw_compare_engine device = {.name = uri, .run = run_on_device, .user = dev};
    char report[BW_COMPARE_REPORT];
    if (bw_compare_engines(c, &reference, &device, report))
        fail_msg("%s: %s", what, report);
}

/* --- operations x formats ----------------------------------------------------------------------------------------- */

typedef struct seen {
    uint8_t in[BW_OP_LIMIT][BW_FORMAT_LIMIT], out[BW_OP_LIMIT][BW_FORMAT_LIMIT];
    uint8_t pair[BW_FORMAT_LIMIT][BW_FORMAT_LIMIT]; /* CONV: input, weights */
} seen;

/* Notes what the program does; 1 if some of it is new. */
static int note(seen *s, const bw_program *p)
{
    int news = 0;
    for (uint32_t i = 0; i < p->header->instruction_count; i++) {
        const bw_instruction *ins = &p->instructions[i];
        uint8_t *marks[] = {&s->in[ins->opcode][ins->in.format], &s->in[ins->opcode][ins->in2.format],
                            &s->out[ins->opcode][ins->out0.format], &s->out[ins->opcode][ins->out1.format],
                            &s->pair[ins->in.format][ins->weight_format]};
        for (size_t k = 0; k < 4 + (ins->opcode == BW_OP_CONV); k++) {
            news |= *marks[k] == 0;
            *marks[k] = 1;
        }
    }
    return news;
}

/* Runs the program of a seed if it does something new. */
static void try_seed(bw_device *dev, const char *uri, uint64_t seed, const struct bw_random_options *options, seen *s)
{
    struct bw_random_case c;
    bw_program program;
    bw_error err = {BW_OK, ""};
    char what[64];
    if (bw_random_case_make(seed, options, &c))
        fail_msg("seed %llu: no program", (unsigned long long)seed);
    if (bw_program_parse(c.program, c.program_size, &program, &err))
        fail_msg("seed %llu: %s", (unsigned long long)seed, err.message);
    snprintf(what, sizeof what, "seed %llu", (unsigned long long)seed);
    bw_compare_case compared = {&program, c.constants, c.in, c.batch};
    if (note(s, &program))
        compare(dev, uri, &compared, what);
    bw_random_case_free(&c);
}

static int offered(const bw_device_info *info, unsigned format)
{
    return bw_format_get((bw_format)format) && (info->offers.formats >> format & 1);
}

static int is_block(unsigned format)
{
    return bw_format_is_block(bw_format_get((bw_format)format));
}

static int legal_input(unsigned op, unsigned format)
{
    const int fp32 = format == BW_FORMAT_FP32;
    switch (op) {
    case BW_OP_CONV:
        return is_block(format);
    case BW_OP_DWCONV:
    case BW_OP_MUL:
        return !fp32 && !is_block(format);
    case BW_OP_PATCH:
        return fp32;
    case BW_OP_COPY:
        return 1;
    default:
        return !fp32;
    }
}

static void every_operation_with_every_format(void **state)
{
    bw_device_info info;
    bw_device *dev = open_device(state, &info);
    seen *s = calloc(1, sizeof *s);
    assert_non_null(s);
    /* One format at a time, beside fp16 and a block format for what takes only those, until everything has been met. */
    uint32_t company = 1u << BW_FORMAT_FP16;
    for (unsigned f = BW_FORMAT_LIMIT - 1; f > 0 && company == 1u << BW_FORMAT_FP16; f--)
        if (offered(&info, f) && is_block(f))
            company |= 1u << f;
    for (unsigned f = 1; f < BW_FORMAT_LIMIT; f++) {
        if (!offered(&info, f))
            continue;
        struct bw_random_options options = {.opcodes = info.offers.opcodes,
                                            .formats = 1u << f | company,
                                            .blocks = info.offers.blocks,
                                            .max_operations = 8,
                                            .max_batch = 3};
        int missing = 1;
        for (uint64_t seed = 1; missing && seed <= 3000; seed++) {
            try_seed(dev, *state, f * 10000 + seed, &options, s);
            missing = 0;
            for (unsigned op = 1; op < BW_OP_LIMIT; op++)
                if (info.offers.opcodes >> op & 1)
                    missing |= (legal_input(op, f) && !s->in[op][f]) || !s->out[op][f];
        }
        if (missing)
            fail_msg("no program found that does everything with %s", bw_format_get((bw_format)f)->name);
    }
    free(s);
    bw_device_close(dev);
}

static int common_block(unsigned a, unsigned b, uint32_t blocks)
{
    for (unsigned i = 0; i < 4; i++)
        if ((blocks >> i & 1) && bw_format_block_ok(bw_format_get((bw_format)a), 16u << i) &&
            bw_format_block_ok(bw_format_get((bw_format)b), 16u << i))
            return 1;
    return 0;
}

static void every_pair_of_formats(void **state)
{
    bw_device_info info;
    bw_device *dev = open_device(state, &info);
    seen *s = calloc(1, sizeof *s);
    assert_non_null(s);
    for (unsigned a = 1; a < BW_FORMAT_LIMIT; a++)
        for (unsigned b = 1; b < BW_FORMAT_LIMIT; b++) {
            if (!offered(&info, a) || !offered(&info, b) || !is_block(a) || !is_block(b) ||
                !common_block(a, b, info.offers.blocks))
                continue;
            struct bw_random_options options = {.opcodes = 1u << BW_OP_CONV,
                                                .formats = 1u << a | 1u << b,
                                                .blocks = info.offers.blocks,
                                                .max_operations = 4,
                                                .max_batch = 2};
            for (uint64_t seed = 1; !s->pair[a][b] && seed <= 1000; seed++)
                try_seed(dev, *state, (a * 100 + b) * 10000 + seed, &options, s);
            assert_int_equal(s->pair[a][b], 1);
        }
    free(s);
    bw_device_close(dev);
}

/* --- programs of our own ------------------------------------------------------------------------------------------ */

/* Both in one piece, as bw_program_parse takes them. */
typedef struct code {
    bw_program_header header;
    bw_instruction list[2];
} code;

static bw_instruction instruction(bw_opcode op)
{
    return (bw_instruction){.opcode = (uint8_t)op,
                            .kernel_y = 1,
                            .kernel_x = 1,
                            .stride_y = 1,
                            .stride_x = 1,
                            .dilation_y = 1,
                            .dilation_x = 1,
                            .groups = 1};
}

static bw_tensor tensor(bw_format format, bw_region region, uint32_t height, uint32_t width, uint32_t channels)
{
    const uint16_t block = bw_format_get(format)->block;
    const uint32_t units = (channels + block - 1) / block;
    return (bw_tensor){.height = height,
                       .width = width,
                       .channels = channels,
                       .pixel_stride = units,
                       .row_stride = units * width,
                       .format = (uint8_t)format,
                       .region = (uint8_t)region,
                       .block = block};
}

static void run_code(void **state, code *c, uint32_t count, const void *constants, const void *in, const char *what)
{
    bw_device_info info;
    bw_device *dev = open_device(state, &info);
    bw_program program;
    bw_error err = {BW_OK, ""};
    c->header.magic = BW_PROGRAM_MAGIC;
    c->header.isa_version = BW_ISA_VERSION;
    c->header.instruction_count = count;
    if (bw_program_parse(c, sizeof c->header + count * sizeof *c->list, &program, &err))
        fail_msg("%s: %s", what, err.message);
    if (bw_requirements_met(&program.needs, &info.offers, &err) == BW_OK) {
        bw_compare_case compared = {&program, constants, in, 1};
        compare(dev, *state, &compared, what);
    }
    bw_device_close(dev);
}

/* The code of e5m2 with the value 2^power. */
static uint8_t power_code(int power)
{
    return (uint8_t)(power < 2 ? 1 << power : (power - 1) << 2);
}

/* Two e5m2 blocks with the sum 2^62 + (2^39 or 0) + 2^38, +- (1 or 0): a tie of fp32, to be rounded down or up to even,
 * or decided by one unit 62 bits below. */
static void ties_of_the_widest_sums(void **state)
{
    enum { B = 32, LANES = 16, EXPS = LANES * B };
    const int powers[4] = {31, 19, 20, 0};
    code c = {.header = {.act_bytes = 256, .in_bytes = B * 4, .out_bytes = LANES * 4, .const_bytes = 1024}};
    c.list[0] = instruction(BW_OP_COPY);
    c.list[0].in = tensor(BW_FORMAT_FP32, BW_REGION_IN, 1, 1, B);
    c.list[0].out0 = tensor(BW_FORMAT_MXFP8_E5M2, BW_REGION_ACT, 1, 1, B);
    c.list[0].out0.exps = 128;
    c.list[1] = instruction(BW_OP_CONV);
    c.list[1].in = c.list[0].out0;
    c.list[1].weight_format = BW_FORMAT_MXFP8_E5M2;
    c.list[1].weight_exps = EXPS;
    c.list[1].out0 = tensor(BW_FORMAT_FP32, BW_REGION_OUT, 1, 1, LANES);
    float in[B] = {0};
    for (int i = 0; i < 4; i++)
        in[i] = ldexpf(1.0f, powers[i] - 31);
    uint8_t *constants = bw_aligned_zalloc(1024);
    assert_non_null(constants);
    for (unsigned n = 0; n < LANES; n++) {
        const uint8_t sign = n & 8 ? 0x80 : 0;
        constants[n * 4 + 0] = power_code(31) | sign;
        constants[n * 4 + 1] = n & 1 ? power_code(20) | sign : 0;
        constants[n * 4 + 2] = power_code(18) | sign;
        constants[n * 4 + 3] = n & 2 ? power_code(0) | (sign ^ (n & 4 ? 0x80 : 0)) : 0;
    }
    run_code(state, &c, 2, constants, in, "ties");
    free(constants);
}

/* Rows of OUT with room between them: what is not described is not written. */
static void gaps_of_out_keep_what_they_hold(void **state)
{
    enum { H = 3, W = 2, C = 5, ROW = 16 };
    code c = {.header = {.in_bytes = H * W * C * 4, .out_bytes = 8 + H * ROW * 4}};
    c.list[0] = instruction(BW_OP_COPY);
    c.list[0].in = tensor(BW_FORMAT_FP32, BW_REGION_IN, H, W, C);
    c.list[0].out0 = tensor(BW_FORMAT_FP32, BW_REGION_OUT, H, W, C);
    c.list[0].out0.codes = 8;
    c.list[0].out0.row_stride = ROW;
    c.list[0].out0.pixel_stride = C + 1;
    float in[H * W * C];
    for (int i = 0; i < H * W * C; i++)
        in[i] = (float)i - 7.25f;
    run_code(state, &c, 1, NULL, in, "gaps");
}

/* COPY keeps the bits of every float; activations order them, subnormal numbers and zeros of both signs too. */
static void fp32_keeps_its_bits(void **state)
{
    enum { C = 20 };
    const float in[C] = {0.0f, -0.0f,     0x1p-149f, -0x1p-149f, 0x1p-127f,        -0x1p-127f, 0x1p-126f, -0x1p-126f,
                         1.0f, -1.0f,     3.4e38f,   -3.4e38f,   0x1.fffffep-127f, 2.0f,       -2.0f,     0x1p-140f,
                         6.0f, 6.000001f, 5.999999f, 0.5f};
    for (unsigned k = 0; k < 4; k++) {
        code c = {.header = {.in_bytes = C * 4, .out_bytes = C * 4}};
        c.list[0] = instruction(BW_OP_COPY);
        c.list[0].in = tensor(BW_FORMAT_FP32, BW_REGION_IN, 1, 1, C);
        c.list[0].out0 = tensor(BW_FORMAT_FP32, BW_REGION_OUT, 1, 1, C);
        c.list[0].activation = (uint8_t)(k < 2 ? k : BW_ACT_CLIP);
        c.list[0].clip_lo = k == 3 ? -1.5f : 0.0f;
        c.list[0].clip_hi = k == 2 ? 6.0f : k == 3 ? 0x1p-126f : 0.0f;
        run_code(state, &c, 1, NULL, in, "fp32");
    }
}

int main(void)
{
    static const struct bw_test_case cases[] = {
        {"every operation with every format", every_operation_with_every_format},
        {"every pair of formats", every_pair_of_formats},
        {"ties of the widest sums", ties_of_the_widest_sums},
        {"gaps of OUT keep what they hold", gaps_of_out_keep_what_they_hold},
        {"fp32 keeps its bits", fp32_keeps_its_bits},
    };
    return bw_test_devices_main("instructions", cases, sizeof cases / sizeof *cases, NULL);
}
