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

/* acc += d * 2^(ea + ew) for 16 outputs. */
static void accumulate(float *acc, const float *d, int32_t ea, const int8_t *ew)
{
    for (size_t n = 0; n < BW_OUTPUT_TILE; n++)
        acc[n] += d[n] * from_bits((uint32_t)ea + ((uint32_t)ew[n] << 23));
}

static void block_f64(const double *a, const double *w, size_t block, float *f)
{
    double d[BW_OUTPUT_TILE] = {0};
    for (size_t i = 0; i < block; i++)
        for (size_t n = 0; n < BW_OUTPUT_TILE; n++)
            d[n] += a[i] * w[i * BW_OUTPUT_TILE + n];
    for (size_t n = 0; n < BW_OUTPUT_TILE; n++)
        f[n] = (float)d[n];
}

static void block_i128(const int64_t *a, const int64_t *w, size_t block, float *f)
{
    for (size_t n = 0; n < BW_OUTPUT_TILE; n++) {
        __int128 d = 0;
        for (size_t i = 0; i < block; i++)
            d += (__int128)a[i] * w[i * BW_OUTPUT_TILE + n];
        f[n] = (float)d;
    }
}

static void dot(bw_dot_class c, const bw_dot_args *g, size_t p)
{
    float *acc = g->acc + p * g->stride, f[BW_OUTPUT_TILE];
    const uint8_t *codes = (const uint8_t *)g->codes + p * g->code_step, *w = g->weights;
    const int8_t *we = g->weight_exps;
    for (size_t r = 0; r < g->run_count; r++) {
        const int32_t *ea = g->scale + p * g->scale_step + g->runs[r].at;
        const uint8_t *a = codes + g->runs[r].at * g->block * 8;
        for (size_t left = g->runs[r].blocks; left; left--, a += 8 * g->block, w += 8 * g->block * BW_OUTPUT_TILE) {
            if (c == BW_DOT_F64)
                block_f64((const double *)(const void *)a, (const double *)(const void *)w, g->block, f);
            else
                block_i128((const int64_t *)(const void *)a, (const int64_t *)(const void *)w, g->block, f);
            accumulate(acc, f, *ea++, we);
            we += BW_OUTPUT_TILE;
        }
    }
}

void bw_dot_wide(bw_dot_class c, const bw_dot_args *args)
{
    for (size_t p = 0; p < args->pixels; p++) {
        if (args->start)
            memcpy(args->acc + p * args->stride, args->start, BW_OUTPUT_TILE * sizeof(float));
        dot(c, args, p);
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
