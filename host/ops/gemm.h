/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matrix products with one answer. oneDNN's change their bits with the number of rows, the threads and the instruction
 * set; a classifier on the CPU must score a sample alike whatever batch it comes in. Here
 *
 *     c[i][j] = (((a[i][0] * b[0][j]) + a[i][1] * b[1][j]) + ...)    fp32, each product and each sum rounded
 *
 * on every machine: vectors run along j, threads over tiles of c. Internal to host/ops.
 */
#ifndef BW_HOST_OPS_GEMM_H
#define BW_HOST_OPS_GEMM_H

#include <stddef.h>
#include <stdint.h>

#define BW_GEMM_PANEL 32 /* columns that are packed together */

/* b as panels [ceil(n / 32)][k][32], the last one padded with zeros: bw_gemm_packed_size floats, 64-byte aligned.
 * b[x][y] = source[x * row_stride + y * column_stride]. */
size_t bw_gemm_packed_size(int64_t k, int64_t n);
void bw_gemm_pack(int64_t k, int64_t n, const float *source, int64_t row_stride, int64_t column_stride, float *packed);

/* c[i] (m x n, row-major, one after the other) = a[i] (m x k, row-major) * b[i], for i < batch. */
void bw_gemm(int64_t batch, int64_t m, int64_t n, int64_t k, const float *const *a, const float *const *packed,
             float *c);

/* One panel: rows 0..m of a against it, `columns` (1..32) of c, whose rows are ldc apart. */
typedef void (*bw_gemm_kernel)(int64_t m, int64_t k, const float *a, const float *panel, float *c, int64_t ldc,
                               int columns);
void bw_gemm_panel__portable(int64_t m, int64_t k, const float *a, const float *panel, float *c, int64_t ldc,
                             int columns);
void bw_gemm_panel__avx2(int64_t m, int64_t k, const float *a, const float *panel, float *c, int64_t ldc, int columns);
void bw_gemm_panel__avx512f(int64_t m, int64_t k, const float *a, const float *panel, float *c, int64_t ldc,
                            int columns);
/* Kernels that this CPU runs, the best first; NULL past the end. For tests: forces one for the whole process. */
bw_gemm_kernel bw_gemm_kernel_at(int index, const char **name);
void bw_gemm_force(bw_gemm_kernel kernel);

#endif
