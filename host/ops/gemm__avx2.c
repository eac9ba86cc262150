/* SPDX-License-Identifier: Apache-2.0 */
#define PANEL_NAME   bw_gemm_panel__avx2
#define VECTOR_BYTES 32
#define VECTORS      2
#define ROWS         4
#include "host/ops/gemm_panel.h"
