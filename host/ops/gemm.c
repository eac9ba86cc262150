/* SPDX-License-Identifier: Apache-2.0 */
/* Packing, the choice of a kernel and the threads of bw_gemm. */
#include "host/ops/gemm.h"

#include <pthread.h>
#include <string.h>

#include "host/ops/parallel.h"

#define ROW_BLOCK 64 /* rows of c per piece of work */

size_t bw_gemm_packed_size(int64_t k, int64_t n)
{
    return (size_t)((n + BW_GEMM_PANEL - 1) / BW_GEMM_PANEL * BW_GEMM_PANEL) * (size_t)k;
}

void bw_gemm_pack(int64_t k, int64_t n, const float *source, int64_t row_stride, int64_t column_stride, float *packed)
{
    for (int64_t at = 0; at < n; at += BW_GEMM_PANEL, packed += k * BW_GEMM_PANEL) {
        int64_t columns = n - at < BW_GEMM_PANEL ? n - at : BW_GEMM_PANEL;
        const float *from = source + at * column_stride;
        if (columns < BW_GEMM_PANEL)
            memset(packed, 0, sizeof *packed * (size_t)(k * BW_GEMM_PANEL));
        if (column_stride == 1) {
            for (int64_t x = 0; x < k; x++)
                memcpy(packed + x * BW_GEMM_PANEL, from + x * row_stride, sizeof *packed * (size_t)columns);
            continue;
        }
        for (int64_t y = 0; y < columns; y++)
            for (int64_t x = 0; x < k; x++)
                packed[x * BW_GEMM_PANEL + y] = from[x * row_stride + y * column_stride];
    }
}

/* --- kernels ------------------------------------------------------------------------------------------------------ */

static const struct {
    const char *name;
    bw_gemm_kernel kernel;
} all[] = {
#if defined __x86_64__
    {"avx512f", bw_gemm_panel__avx512f},
    {"avx2", bw_gemm_panel__avx2},
#endif
    {"portable", bw_gemm_panel__portable},
};

static int runs_here(const char *name)
{
#if defined __x86_64__
    if (!strcmp(name, "avx512f"))
        return __builtin_cpu_supports("avx512f") != 0;
    if (!strcmp(name, "avx2"))
        return __builtin_cpu_supports("avx2") != 0;
#endif
    return !strcmp(name, "portable");
}

bw_gemm_kernel bw_gemm_kernel_at(int index, const char **name)
{
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (runs_here(all[i].name) && index-- == 0) {
            *name = all[i].name;
            return all[i].kernel;
        }
    return NULL;
}

static bw_gemm_kernel chosen;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void choose(void)
{
    const char *name;
    chosen = bw_gemm_kernel_at(0, &name);
}

void bw_gemm_force(bw_gemm_kernel kernel)
{
    pthread_once(&once, choose);
    chosen = kernel;
}

/* --- the product -------------------------------------------------------------------------------------------------- */

typedef struct task {
    int64_t m, n, k, panels, pieces; /* pieces of one product */
    const float *const *a, *const *packed;
    float *c;
} task;

/* Pieces are numbered by product, block of rows, panel. */
static void run_pieces(int64_t from, int64_t to, void *user)
{
    const task *t = user;
    for (int64_t i = from; i < to; i++) {
        int64_t which = i / t->pieces, rest = i % t->pieces;
        int64_t row = rest / t->panels * ROW_BLOCK, panel = rest % t->panels, column = panel * BW_GEMM_PANEL;
        int64_t rows = t->m - row < ROW_BLOCK ? t->m - row : ROW_BLOCK;
        int64_t columns = t->n - column < BW_GEMM_PANEL ? t->n - column : BW_GEMM_PANEL;
        chosen(rows, t->k, t->a[which] + row * t->k, t->packed[which] + panel * t->k * BW_GEMM_PANEL,
               t->c + (which * t->m + row) * t->n + column, t->n, (int)columns);
    }
}

void bw_gemm(int64_t batch, int64_t m, int64_t n, int64_t k, const float *const *a, const float *const *packed,
             float *c)
{
    pthread_once(&once, choose);
    if (batch <= 0 || m <= 0 || n <= 0)
        return;
    task t = {m, n, k, (n + BW_GEMM_PANEL - 1) / BW_GEMM_PANEL, 0, a, packed, c};
    int64_t blocks = (m + ROW_BLOCK - 1) / ROW_BLOCK, rows = m < ROW_BLOCK ? m : ROW_BLOCK;
    /* A thread is worth waking for some hundred thousand products. */
    int64_t grain = 1 + (int64_t)(300000.0 / (1.0 + (double)rows * (double)k * BW_GEMM_PANEL));
    t.pieces = blocks * t.panels;
    bw_parallel(batch * t.pieces, grain, run_pieces, &t);
}
