/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the passes share; nobody else includes this. */
#ifndef BW_QUANTIZE_PASSES_INTERNAL_H
#define BW_QUANTIZE_PASSES_INTERNAL_H

#include "quantize/passes.h"

/* A pass walks the sorted graph once. `uses` and `alias` have room for the values that it adds. */
typedef struct bw_pass {
    bw_graph *g;
    int *uses;  /* consumers per value, graph outputs included */
    int *alias; /* value to read instead, itself if none */
    int capacity;
} bw_pass;

typedef bw_status bw_pass_visit(bw_pass *p, int node, bw_error *err);

/* Visits every living node in order; inputs are mapped through `alias` before. Sorts and infers afterwards. */
bw_status bw_pass_run(bw_graph *g, bw_pass_visit *visit, bw_error *err);

/* Node `node` (one output) does nothing to its input 0: its consumers read the input. */
bw_status bw_pass_bypass(bw_pass *p, int node, bw_error *err);
/* `node` takes over the output of `next`, its only consumer, which is removed. */
void bw_pass_absorb(bw_pass *p, int node, int next);
/* The node that computes input `index` of `node`, if `node` is its only consumer; else -1. */
int bw_pass_only_producer(const bw_pass *p, int node, int index);
/* A new constant, value id in *id; a->data is taken over, also on failure. */
bw_status bw_pass_constant(bw_pass *p, const char *stem, bw_array *a, int *id, bw_error *err);
/* A new fp32 constant of `count` elements of rank 1 from doubles; BW_NOT_FINITE names the node it is made for. */
bw_status bw_pass_vector(bw_pass *p, const char *stem, const double *v, int64_t count, int *id, bw_error *err);
bw_status bw_pass_value(bw_pass *p, const char *stem, const bw_value *like, int *id, bw_error *err);
/* Replaces an input, counting uses; grows the list. */
bw_status bw_pass_set_input(bw_pass *p, int node, int index, int value, bw_error *err);
bw_status bw_pass_add_node(bw_pass *p, const char *op, const char *name, const int *inputs, int input_count, int output,
                           int *node, bw_error *err);
bw_status bw_pass_no_memory(const bw_pass *p, int node, bw_error *err);

const bw_array *bw_pass_const(const bw_pass *p, int node, int index); /* fp32 or other; NULL if not constant */

/* passes_rewrite.c */
bw_pass_visit bw_pass_noop, bw_pass_sum, bw_pass_mean, bw_pass_pad;
/* passes_affine.c */
bw_pass_visit bw_pass_gemm, bw_pass_fold_affine, bw_pass_fold_operands, bw_pass_split_batchnorm;

#endif
