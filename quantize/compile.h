/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The compiler: a float graph (after passes.h) and a recipe to the stages of a package.
 */
#ifndef BW_QUANTIZE_COMPILE_H
#define BW_QUANTIZE_COMPILE_H

#include "host/graph.h"
#include "kernels/isa.h"

typedef enum bw_scale_rule {                     /* how the scale of a block of weights is chosen */
                             BW_SCALE_FLOOR = 0, /* floor(log2(max)), as activations are encoded */
                             BW_SCALE_MSE =
                                 1 /* of that and its two neighbours the one with the smallest squared error */
} bw_scale_rule;

typedef struct bw_recipe {
    bw_format weights;     /* block format of CONV weights */
    bw_format activations; /* block format of CONV inputs */
    uint16_t block;        /* both */
    bw_format vector;      /* residual, depthwise and element-wise tensors: BW_FORMAT_FP16 or BF16 */
    int first_last_float;  /* leave first and last layer on the CPU in fp32 */
    bw_scale_rule scale_rule;
    int no_patches; /* leave few input channels as they are instead of gathering patches (PATCH) */
} bw_recipe;

typedef struct bw_stage_tensor {
    char *name;      /* value of the source graph */
    uint64_t offset; /* bytes in the IN or OUT region */
    int rank;        /* as in the graph, NCHW or NC; dims[0] = -1 */
    int64_t dims[BW_RANK_MAX];
} bw_stage_tensor;

/* What rounding did to the weights of one instruction: sums of squares of the values and of the errors. */
typedef struct bw_weight_error {
    char *name; /* of the weights' value */
    double signal, noise;
} bw_weight_error;

typedef struct bw_stage {
    int device;      /* 1: program + constants, 0: graph */
    bw_graph *graph; /* CPU stage */
    void *program;   /* serialised (kernels/isa.h), 64-byte aligned */
    size_t program_size;
    void *constants; /* 64-byte aligned */
    size_t constants_size;
    bw_stage_tensor *inputs, *outputs; /* in the order of the stage's graph / region */
    int input_count, output_count;
    bw_weight_error *weights; /* accelerator stages, in the order of the program */
    int weight_count;
    char **layers; /* accelerator stages: per instruction the node of the source graph that it carries out */
    int layer_count;
} bw_stage;

typedef struct bw_compiled {
    bw_stage *stages;
    int stage_count;
} bw_compiled;

/* BW_UNSUPPORTED: nothing of the network can run on the accelerator, or an operator that neither side has. */
bw_status bw_compile(const bw_graph *g, const bw_recipe *recipe, bw_compiled *out, bw_error *err);
void bw_compiled_free(bw_compiled *c);

/* Told of every layer packed: `done` of `total` numbers; non-zero ends the compilation with BW_CANCELLED. */
typedef int bw_compile_watch(uint64_t done, uint64_t total, void *user);
bw_status bw_compile_watched(const bw_graph *g, const bw_recipe *recipe, bw_compile_watch *watch, void *user,
                             bw_compiled *out, bw_error *err);

/* 1 if bw_compile would put this node of the graph (after passes.h, shapes known) on the accelerator. */
int bw_compile_on_device(const bw_graph *g, int node);

#endif
