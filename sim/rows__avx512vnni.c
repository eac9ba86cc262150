/* SPDX-License-Identifier: Apache-2.0 */
/* Row kernels, AVX-512 (F, BW, DQ, VL). */
#include "sim/rows_avx512.h"

#include "sim/rows_fused.h"

#include "sim/rows_window.h"

#include "sim/rows_depthwise.h"

#include "sim/rows_patch.h"

#include "sim/rows_gather.h"

#define ROWS                                                                                                           \
    .fused = fused, .window = window, .depthwise = depthwise, .depthwise_writes = 1, .patch = patch, .gather = gather, \
    .direct = bw_direct_avx512vnni

const bw_rows bw_rows_avx512vnni = {ROWS};
const bw_rows bw_rows_amx = {ROWS, .matrix = bw_direct_amx};
