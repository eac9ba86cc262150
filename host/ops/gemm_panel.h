/* SPDX-License-Identifier: Apache-2.0 */
/* The body of a panel kernel. Included with PANEL_NAME, VECTOR_BYTES, VECTORS (per tile) and ROWS (per tile) set. */
#include <string.h>

#include "host/ops/gemm.h"

typedef float vec __attribute__((vector_size(VECTOR_BYTES)));
typedef float loose_vec __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));

/* Registers cannot be indexed; gcc at -O2 has to be told. */
#if defined __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif
#define LANES ((int)(VECTOR_BYTES / sizeof(float)))
#define WIDTH (LANES * VECTORS)

/* rows x WIDTH sums in registers over the whole of k. `rows` is a constant wherever this is inlined. */
static inline __attribute__((always_inline)) void tile(int rows, int64_t k, const float *a, const float *panel,
                                                       float *c, int64_t ldc, int columns)
{
    vec sum[ROWS][VECTORS] = {{{0}}};
    for (int64_t i = 0; i < k; i++, panel += BW_GEMM_PANEL) {
        vec b[VECTORS];
        UNROLL
        for (int v = 0; v < VECTORS; v++)
            b[v] = ((const loose_vec *)panel)[v];
        UNROLL
        for (int r = 0; r < rows; r++)
            UNROLL
        for (int v = 0; v < VECTORS; v++)
            sum[r][v] += b[v] * a[r * k + i];
    }
    float edge[ROWS][WIDTH];
    float *to = columns >= WIDTH ? c : edge[0];
    int64_t step = columns >= WIDTH ? ldc : WIDTH;
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
    for (int v = 0; v < VECTORS; v++)
        ((loose_vec *)(to + r * step))[v] = sum[r][v];
    for (int r = 0; r < rows && columns < WIDTH; r++)
        memcpy(c + r * ldc, edge[r], sizeof(float) * (size_t)columns);
}

void PANEL_NAME(int64_t m, int64_t k, const float *a, const float *panel, float *c, int64_t ldc, int columns)
{
    for (int64_t i = 0; i < m; i += ROWS)
        for (int at = 0; at < columns; at += WIDTH) {
            const float *rows = a + i * k;
            float *to = c + i * ldc + at;
            int left = columns - at;
            switch (m - i < ROWS ? (int)(m - i) : ROWS) {
            case 1:
                tile(1, k, rows, panel + at, to, ldc, left);
                break;
            case 2:
                tile(2, k, rows, panel + at, to, ldc, left);
                break;
            case 3:
                tile(3, k, rows, panel + at, to, ldc, left);
                break;
            case 4:
                tile(4, k, rows, panel + at, to, ldc, left);
                break;
#if ROWS > 4
            case 5:
                tile(5, k, rows, panel + at, to, ldc, left);
                break;
            case 6:
                tile(6, k, rows, panel + at, to, ldc, left);
                break;
            case 7:
                tile(7, k, rows, panel + at, to, ldc, left);
                break;
            case 8:
                tile(8, k, rows, panel + at, to, ldc, left);
                break;
#endif
            }
        }
}
