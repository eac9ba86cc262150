/* SPDX-License-Identifier: Apache-2.0 */
#define PANEL_NAME   bw_gemm_panel__avx512f
#define VECTOR_BYTES 64
#define VECTORS      2
#define ROWS         8
#include "host/ops/gemm_panel.h"
