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
 * the same up to fp32 rounding.
 */
bw_status bw_passes_run(bw_graph *g, bw_error *err);

#endif
