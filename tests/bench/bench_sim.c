/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Speed of the fast engine: layer shapes of ResNet-50 x formats x ISA, in G multiply-adds per second and percent of
 * the int8 peak measured on the same core. BW_BENCH_THREADS=n (default 1), BW_BENCH_SECONDS=s per figure (0.15),
 * BW_BENCH_ONLY=text for the layers whose name contains it, BW_BENCH_FORMAT=name for any one block format.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "hal/base.h"
#include "sim/sim.h"

typedef struct layer {
    const char *name;
    unsigned size, in, out, kernel, stride, groups;
} layer;

static const layer layers[] = {
    {"3x3 16-16 32x32", 32, 16, 16, 3, 1, 1},
    {"1x1 64-64 56x56", 56, 64, 64, 1, 1, 1},
    {"3x3 64-64 56x56", 56, 64, 64, 3, 1, 1},
    {"1x1 64-256 56x56", 56, 64, 256, 1, 1, 1},
    {"3x3 128-128 28x28", 28, 128, 128, 3, 1, 1},
    {"1x1 512-128 28x28", 28, 512, 128, 1, 1, 1},
    {"3x3 256-256 14x14", 14, 256, 256, 3, 1, 1},
    {"1x1 256-1024 14x14", 14, 256, 1024, 1, 1, 1},
    {"3x3 256-256 s2 28x28", 28, 256, 256, 3, 2, 1},
    {"3x3 512-512 7x7", 7, 512, 512, 3, 1, 1},
    {"1x1 512-2048 7x7", 7, 512, 2048, 1, 1, 1},
    {"fc 2048-1000", 1, 2048, 1000, 1, 1, 1},
    {"3x3 1024-1024 g32 14x14", 14, 1024, 1024, 3, 1, 32},
};

/* Operations on the vector path, by output elements per second. */
typedef struct vector_op {
    const char *name;
    bw_opcode opcode;
    unsigned size, channels, kernel, stride;
    bw_format in, in2, out;
} vector_op;

static const vector_op vector_ops[] = {
    {"DWCONV 3x3 fp16 32 112x112", BW_OP_DWCONV, 112, 32, 3, 1, BW_FORMAT_FP16, BW_FORMAT_NONE, BW_FORMAT_MSFP16},
    {"DWCONV 3x3 fp16 512 14x14", BW_OP_DWCONV, 14, 512, 3, 1, BW_FORMAT_FP16, BW_FORMAT_NONE, BW_FORMAT_MSFP16},
    {"MAXPOOL 3x3 s2 64 112x112", BW_OP_MAXPOOL, 112, 64, 3, 2, BW_FORMAT_MSFP16, BW_FORMAT_NONE, BW_FORMAT_MSFP16},
    {"AVGPOOL 7x7 2048 7x7", BW_OP_AVGPOOL, 7, 2048, 7, 7, BW_FORMAT_FP16, BW_FORMAT_NONE, BW_FORMAT_MSFP16},
    {"ADD fp16 256 56x56", BW_OP_ADD, 56, 256, 1, 1, BW_FORMAT_FP16, BW_FORMAT_FP16, BW_FORMAT_MSFP16},
    {"ADD msfp16 256 56x56", BW_OP_ADD, 56, 256, 1, 1, BW_FORMAT_MSFP16, BW_FORMAT_MSFP16, BW_FORMAT_MSFP16},
    {"COPY msfp16 to fp16 64 56x56", BW_OP_COPY, 56, 64, 1, 1, BW_FORMAT_MSFP16, BW_FORMAT_NONE, BW_FORMAT_FP16},
    {"COPY fp16 to mxfp4 64 56x56", BW_OP_COPY, 56, 64, 1, 1, BW_FORMAT_FP16, BW_FORMAT_NONE, BW_FORMAT_MXFP4_E2M1},
};

typedef struct net {
    bw_program_header *bytes;
    bw_program program;
    uint8_t *constants, *in, *out;
    double macs; /* of one run */
} net;

static void die(const char *what)
{
    fprintf(stderr, "bench_sim: %s\n", what);
    exit(1);
}

static void *allocate(size_t bytes)
{
    void *p = bw_aligned_zalloc(bytes);
    if (!p)
        die("out of memory");
    return p;
}

/* Time of this process on a CPU, so that a busy machine does not count; with more threads, of the clock on the wall. */
static uint64_t now_ns(unsigned threads)
{
    struct timespec t;
    if (threads > 1 || clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t))
        return bw_now_ns();
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint32_t random_u32(void)
{
    static uint64_t state = 1;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

static bw_tensor tensor_of(unsigned size, unsigned channels, bw_format format, unsigned block, bw_region region,
                           uint64_t *end)
{
    const bw_format_traits *t = bw_format_get(format);
    bw_tensor x = {.height = size,
                   .width = size,
                   .channels = channels,
                   .format = (uint8_t)format,
                   .region = (uint8_t)region,
                   .block = (uint16_t)block};
    x.pixel_stride = bw_tensor_units(&x);
    x.row_stride = size * x.pixel_stride;
    const uint64_t units = (uint64_t)size * x.row_stride;
    x.codes = *end;
    *end += (units * block * t->device_bytes + 63) / 64 * 64;
    if (bw_format_is_block(t)) {
        x.exps = *end;
        *end += (units + 63) / 64 * 64;
    }
    return x;
}

/* COPY of the input, then the layer `repeats` times. */
static net make_net(const layer *l, bw_format format, unsigned block, unsigned repeats)
{
    const bw_format_traits *t = bw_format_get(format);
    const size_t size = sizeof(bw_program_header) + (repeats + 1) * sizeof(bw_instruction);
    net n = {.bytes = allocate(size)};
    bw_instruction *list = (bw_instruction *)(n.bytes + 1);
    const bw_instruction plain = {
        .kernel_y = 1, .kernel_x = 1, .stride_y = 1, .stride_x = 1, .dilation_y = 1, .dilation_x = 1, .groups = 1};
    const unsigned out_size = (l->size + l->stride - 1) / l->stride;
    uint64_t act = 0, in = 0, end = 0;
    bw_instruction conv = plain;
    conv.opcode = BW_OP_CONV;
    conv.activation = BW_ACT_RELU;
    conv.kernel_y = conv.kernel_x = (uint16_t)l->kernel;
    conv.stride_y = conv.stride_x = (uint16_t)l->stride;
    conv.origin_y = conv.origin_x = (int16_t) - (int)(l->kernel / 2);
    conv.groups = l->groups;
    conv.weight_format = (uint8_t)format;
    conv.in = tensor_of(l->size, l->in, format, block, BW_REGION_ACT, &act);
    conv.out0 = tensor_of(out_size, l->out, format, block, BW_REGION_ACT, &act);
    const uint64_t blocks = bw_conv_tiles(&conv) * bw_conv_blocks(&conv);
    end = (blocks * bw_packed_size(t, 16 * block) + 63) / 64 * 64;
    conv.weight_exps = end;
    end += (blocks * 16 + 63) / 64 * 64;
    list[0] = plain;
    list[0].opcode = BW_OP_COPY;
    list[0].in = tensor_of(l->size, l->in, BW_FORMAT_FP32, 1, BW_REGION_IN, &in);
    list[0].out0 = conv.in;
    for (unsigned i = 1; i <= repeats; i++)
        list[i] = conv;
    *n.bytes = (bw_program_header){.magic = BW_PROGRAM_MAGIC,
                                   .isa_version = BW_ISA_VERSION,
                                   .instruction_count = repeats + 1,
                                   .act_bytes = act,
                                   .in_bytes = in,
                                   .out_bytes = 0,
                                   .const_bytes = end};
    n.constants = allocate(end);
    for (uint64_t i = 0; i < end; i++)
        n.constants[i] = i < conv.weight_exps ? (uint8_t)random_u32() : (uint8_t)(int8_t)(-8 - (int)(random_u32() % 4));
    n.in = allocate(in);
    for (uint64_t i = 0; i < in / 4; i++)
        ((float *)(void *)n.in)[i] = (float)((int)(random_u32() % 2001) - 1000) / 500.0f;
    n.out = allocate(64);
    bw_error err;
    if (bw_program_parse(n.bytes, size, &n.program, &err))
        die(err.message);
    n.macs = (double)repeats * out_size * out_size * l->out * (l->in / l->groups) * l->kernel * l->kernel;
    return n;
}

/* The operation `repeats` times, on inputs that nobody wrote: their values do not change the speed. */
static net make_vector_net(const vector_op *o, unsigned repeats)
{
    const size_t size = sizeof(bw_program_header) + repeats * sizeof(bw_instruction);
    net n = {.bytes = allocate(size)};
    bw_instruction *list = (bw_instruction *)(n.bytes + 1);
    const unsigned out_size = (o->size + o->stride - 1) / o->stride, padded = (o->channels + 15) / 16 * 16;
    uint64_t act = 0;
    bw_instruction ins = {.opcode = (uint8_t)o->opcode,
                          .kernel_y = (uint16_t)o->kernel,
                          .kernel_x = (uint16_t)o->kernel,
                          .stride_y = (uint16_t)o->stride,
                          .stride_x = (uint16_t)o->stride,
                          .dilation_y = 1,
                          .dilation_x = 1,
                          .groups = 1};
    if (o->stride < o->kernel)
        ins.origin_y = ins.origin_x = (int16_t) - (int)(o->kernel / 2);
    if (o->opcode == BW_OP_DWCONV)
        ins.weight_format = BW_FORMAT_FP16;
    ins.in = tensor_of(o->size, o->channels, o->in, bw_format_get(o->in)->block, BW_REGION_ACT, &act);
    if (o->in2)
        ins.in2 = tensor_of(o->size, o->channels, o->in2, bw_format_get(o->in2)->block, BW_REGION_ACT, &act);
    ins.out0 = tensor_of(out_size, o->channels, o->out, bw_format_get(o->out)->block, BW_REGION_ACT, &act);
    for (unsigned i = 0; i < repeats; i++)
        list[i] = ins;
    const uint64_t constants = (uint64_t)o->kernel * o->kernel * padded * 4 + 64;
    *n.bytes = (bw_program_header){.magic = BW_PROGRAM_MAGIC,
                                   .isa_version = BW_ISA_VERSION,
                                   .instruction_count = repeats,
                                   .act_bytes = act,
                                   .const_bytes = constants};
    n.constants = allocate(constants);
    bw_error err;
    if (bw_program_parse(n.bytes, size, &n.program, &err))
        die(err.message);
    n.macs = (double)repeats * out_size * out_size * o->channels;
    return n;
}

static void free_net(net *n)
{
    free(n->bytes);
    free(n->constants);
    free(n->in);
    free(n->out);
}

/* G multiply-adds (layers) or elements (operations) per second, the best of three. One of l and o is NULL. */
static double measure(const layer *l, bw_format format, const vector_op *o, bw_sim_isa isa, unsigned threads,
                      double seconds)
{
    unsigned repeats = 1;
    double best = 0;
    for (int round = 0; round < 3;) {
        net n = l ? make_net(l, format, bw_format_get(format)->block, repeats) : make_vector_net(o, repeats);
        const bw_fast_options options = {isa, threads, 0, 0};
        bw_fast *engine;
        bw_error err;
        if (bw_fast_create(&n.program, n.constants, &options, &engine, &err))
            die(err.message);
        uint64_t start = now_ns(threads);
        if (bw_fast_run(engine, n.in, n.out, 1, NULL, &err))
            die(err.message);
        double took = (double)(now_ns(threads) - start) * 1e-9;
        double rate = n.macs / took * 1e-9;
        bw_fast_destroy(engine);
        free_net(&n);
        if (took < seconds / 4 && repeats < 20000) { /* too short to tell: the first runs only find the length */
            repeats *= took * 8 < seconds ? 4 : 2;
            continue;
        }
        if (rate > best)
            best = rate;
        round++;
    }
    return best;
}

int main(void)
{
    bw_format formats[] = {BW_FORMAT_MSFP16, BW_FORMAT_MXINT8, BW_FORMAT_MSFP12, BW_FORMAT_MXFP6_E2M3,
                           BW_FORMAT_MXFP4_E2M1};
    const size_t layer_count = sizeof layers / sizeof layers[0];
    size_t format_count = sizeof formats / sizeof formats[0];
    const char *threads_text = getenv("BW_BENCH_THREADS"), *seconds_text = getenv("BW_BENCH_SECONDS");
    const char *only = getenv("BW_BENCH_ONLY"), *only_format = getenv("BW_BENCH_FORMAT");
    const unsigned threads = threads_text ? (unsigned)strtoul(threads_text, NULL, 10) : 1;
    if (only_format) {
        const bw_format_traits *t = bw_format_find(only_format);
        if (!bw_format_is_block(t))
            die("BW_BENCH_FORMAT is no block format");
        formats[0] = t->format;
        format_count = 1;
    }
    const double seconds = seconds_text ? strtod(seconds_text, NULL) : 0.15;
    bw_error err;

    printf("fast engine, %u thread%s, batch 1: G multiply-adds/s", threads, threads == 1 ? "" : "s");
    printf(" (percent of the int8 peak of that many cores)\n%-26s", "");
    for (size_t f = 0; f < format_count; f++)
        printf(" %16s", bw_format_get(formats[f])->name);
    printf("\n");
    for (bw_sim_isa isa = BW_SIM_ISA_LIMIT - 1; isa >= BW_SIM_ISA_PORTABLE; isa--) {
        bw_sim_peak peak;
        if (bw_sim_peak_measure(isa, &peak, &err)) {
            printf("%s\n", err.message);
            continue;
        }
        printf("%s, peak of a core %.0f by %s\n", bw_sim_isa_name(isa), peak.int8, peak.int8_by);
        for (size_t i = 0; i < layer_count; i++) {
            /* The slower ISAs only show one layer of each kind. */
            if ((only && !strstr(layers[i].name, only)) || (isa < BW_SIM_ISA_AVX512VNNI && i % 3 != 2))
                continue;
            printf("  %-24s", layers[i].name);
            for (size_t f = 0; f < format_count; f++) {
                double rate = measure(&layers[i], formats[f], NULL, isa, threads, seconds);
                char text[32];
                snprintf(text, sizeof text, "%.1f (%.0f%%)", rate, rate / (peak.int8 * threads) * 100);
                printf(" %16s", text);
                fflush(stdout);
            }
            printf("\n");
        }
    }
    printf("ready after (engine without threads, 53 layers of 2.4 M weights): ");
    const layer big = {"", 7, 512, 512, 3, 1, 1};
    net n = make_net(&big, BW_FORMAT_MSFP16, 16, 53);
    const bw_fast_options options = {BW_SIM_ISA_AUTO, 1, 0, 0};
    bw_fast *engine;
    uint64_t start = now_ns(1);
    if (bw_fast_create(&n.program, n.constants, &options, &engine, &err))
        die(err.message);
    printf("%.3f ms\n", (double)(now_ns(1) - start) * 1e-6);
    bw_fast_destroy(engine);
    free_net(&n);
    printf("G output elements/s\n");
    for (size_t i = 0; i < sizeof vector_ops / sizeof vector_ops[0]; i++) {
        if (only && !strstr(vector_ops[i].name, only))
            continue;
        printf("  %-30s", vector_ops[i].name);
        for (bw_sim_isa isa = BW_SIM_ISA_LIMIT - 1; isa >= BW_SIM_ISA_PORTABLE; isa--)
            if (bw_sim_isa_available(isa))
                printf(" %s %.3f", bw_sim_isa_name(isa),
                       measure(NULL, BW_FORMAT_NONE, &vector_ops[i], isa, threads, seconds));
        printf("\n");
    }
    return 0;
}
