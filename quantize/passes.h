/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Graph passes that keep the function and make it smaller: what the compiler wants to see.
 */
#ifndef BW_QUANTIZE_PASSES_H
#define BW_QUANTIZE_PASSES_H

#include "host/graph.h"

/*
 * In order: constant folding; removal of Identity, Dropout, no-op Reshape/Transpose/Cast/Pad; Constant-fed Reshape of
 * weights; MatMul + Add and Gemm -> Gemm {transB = 1, alpha = beta = 1, bias}; Pad folded into Conv and pools where
 * legal; BatchNormalization folded into a preceding Conv or Gemm, else turned into Mul + Add by per-channel constants;
 * Add / Mul by per-channel constants folded into a preceding Conv or Gemm; Sum of two -> Add; ReduceMean over H, W ->
 * GlobalAveragePool; shapes inferred again. The graph is sorted and its shapes are known afterwards. The function is
 * the same up to fp32 rounding. Folding rounds once per weight, from double.
 * BW_NOT_FINITE: a fold leaves the range of fp32 (names the node); statuses of bw_graph_infer_shapes. After a failure
 * the graph is only good to be freed. Names of graph inputs and outputs stay.
 */
bw_status bw_passes_run(bw_graph *g, bw_error *err);

/* The same, but a BatchNormalization always becomes Mul + Add (a per-channel operation of its own on the accelerator's
 * vector path): the weights are then rounded as they were trained, which direct casts to few bits can be kinder to. */
bw_status bw_passes_run_unfolded(bw_graph *g, bw_error *err);

/*
 * Channel shuffle: Reshape [N, C, ...] -> [N, groups, C / groups, ...], Transpose of axes 1 and 2, Reshape back, with
 * nobody else reading in between. 1 if it starts at `node`; then *groups and the index of the last Reshape, whose
 * output channel c is input channel (c % groups) * (C / groups) + c / groups. Needs known shapes.
 */
int bw_match_channel_shuffle(const bw_graph *g, int node, int *groups, int *last_node);

#endif
