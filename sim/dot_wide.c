/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CONV kernels for the formats whose codes do not fit 16 bits. The block sum is exact in a double as long as it is
 * below 2^53 in every partial sum, which the planner shows from the formats; e5m2 needs 128-bit integers. One rounding
 * then makes it the fp32 that docs/isa.md asks for.
 */
#include <string.h>

#include "sim/fast.h"

static float from_bits(uint32_t bits)
{
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

/* acc += d * 2^(ea + ew) for the 16 outputs of pixel p, block k. */
static void accumulate(const bw_dot_args *g, size_t k, size_t p, const float *d)
{
    float *acc = g->acc + p * g->stride;
    for (size_t n = 0; n < BW_OUTPUT_TILE; n++) {
        uint32_t e = (uint32_t)g->weight_exps[k * BW_OUTPUT_TILE + n] << 23;
        acc[n] += d[n] * from_bits((uint32_t)g->scale[p * BW_PANEL_BLOCKS + k] + e);
    }
}

static void dot_f64(const bw_dot_args *g, size_t p)
{
    const double *a = (const double *)g->codes + p * (BW_PANEL_BYTES / 8), *w = g->weights;
    for (size_t k = 0; k < g->blocks; k++, a += g->block, w += g->block * BW_OUTPUT_TILE) {
        double d[BW_OUTPUT_TILE] = {0};
        for (size_t i = 0; i < g->block; i++)
            for (size_t n = 0; n < BW_OUTPUT_TILE; n++)
                d[n] += a[i] * w[i * BW_OUTPUT_TILE + n];
        float f[BW_OUTPUT_TILE];
        for (size_t n = 0; n < BW_OUTPUT_TILE; n++)
            f[n] = (float)d[n];
        accumulate(g, k, p, f);
    }
}

static void dot_i128(const bw_dot_args *g, size_t p)
{
    const int64_t *a = (const int64_t *)g->codes + p * (BW_PANEL_BYTES / 8), *w = g->weights;
    for (size_t k = 0; k < g->blocks; k++, a += g->block, w += g->block * BW_OUTPUT_TILE) {
        float f[BW_OUTPUT_TILE];
        for (size_t n = 0; n < BW_OUTPUT_TILE; n++) {
            __int128 d = 0;
            for (size_t i = 0; i < g->block; i++)
                d += (__int128)a[i] * w[i * BW_OUTPUT_TILE + n];
            f[n] = (float)d;
        }
        accumulate(g, k, p, f);
    }
}

void bw_dot_wide(bw_dot_class c, const bw_dot_args *args)
{
    for (size_t p = 0; p < args->pixels; p++) {
        if (args->start)
            memcpy(args->acc + p * args->stride, args->start, BW_OUTPUT_TILE * sizeof(float));
        if (c == BW_DOT_F64)
            dot_f64(args, p);
        else
            dot_i128(args, p);
    }
}

/* The value of code i; table NULL: kind INT16. */
static int64_t value_at(const int64_t *table, const uint8_t *codes, size_t i)
{
    int16_t word;
    if (table)
        return table[codes[i]];
    memcpy(&word, codes + 2 * i, sizeof word);
    return word;
}

void bw_pack_wide(bw_dot_class c, const bw_format_traits *t, const bw_pack_args *g)
{
    const int64_t *table = bw_code_table(t);
    double *reals = g->out;
    int64_t *integers = g->out;
    for (size_t k = 0; k < g->count; k++) {
        g->scale[k] = (int32_t)((uint32_t)(127 + (g->codes ? g->exps[k] : 0)) << 23);
        for (size_t i = 0; i < g->block; i++) {
            int64_t v = g->codes ? value_at(table, g->codes, k * g->block + i) : 0;
            if (c == BW_DOT_F64)
                reals[k * g->block + i] = (double)v;
            else
                integers[k * g->block + i] = v;
        }
    }
}

void bw_widen_wide(bw_dot_class c, const bw_format_traits *t, const uint8_t *codes, size_t blocks, size_t block,
                   void *out)
{
    const int64_t *table = bw_code_table(t);
    double *reals = out;
    int64_t *integers = out;
    for (size_t k = 0; k < blocks; k++, codes += block * BW_OUTPUT_TILE * t->device_bytes)
        for (size_t i = 0; i < block; i++)
            for (size_t n = 0; n < BW_OUTPUT_TILE; n++) {
                int64_t v = value_at(table, codes, (i / 4 * BW_OUTPUT_TILE + n) * 4 + i % 4);
                if (c == BW_DOT_F64)
                    *reals++ = (double)v;
                else
                    *integers++ = v;
            }
}
