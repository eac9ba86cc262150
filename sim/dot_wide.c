/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CONV for the formats whose codes do not fit 16 bits: operands for all ISAs, and the kernel in plain C. Codes become
 * doubles. The sum of a block is exact in a double as long as every partial sum, counted in a unit that divides all
 * products, is below 2^53: in class F64 with the unit 1; in class I128 (e5m2 by itself or e4m3) with the unit 2^s if
 * all activations of the block are multiples of that, as they are unless some value is 2^14 times smaller than the
 * largest. Blocks where they are not are marked, and summed with more bits. One rounding then makes the sum the fp32
 * that docs/isa.md asks for. (dot_wide_simd.h proves the same for vectors.)
 */
#include <string.h>

#include "sim/fast.h"

#define LARGEST 3758096384.0 /* of all weights: e5m2's */

/* Block sums are below 2^(53 + s). */
unsigned bw_wide_unit(bw_dot_class c, const bw_format_traits *activations, size_t block)
{
    const double most = (double)block * (double)activations->max_code * LARGEST;
    unsigned s = 0;
    while (c == BW_DOT_I128 && most / (double)(UINT64_C(1) << s) >= 0x1p53)
        s++;
    return s;
}

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
        acc[n] += d[n] * from_bits(((uint32_t)ea & 0xFF800000u) + ((uint32_t)ew[n] << 23));
}

static void block_exact(const double *a, const double *w, size_t block, float *f)
{
    double d[BW_OUTPUT_TILE] = {0};
    for (size_t i = 0; i < block; i++)
        for (size_t n = 0; n < BW_OUTPUT_TILE; n++)
            d[n] += a[i] * w[i * BW_OUTPUT_TILE + n];
    for (size_t n = 0; n < BW_OUTPUT_TILE; n++)
        f[n] = (float)d[n];
}

static void block_marked(const double *a, const double *w, size_t block, float *f)
{
    for (size_t n = 0; n < BW_OUTPUT_TILE; n++) {
        __int128 d = 0;
        for (size_t i = 0; i < block; i++)
            d += (__int128)(int64_t)a[i] * (int64_t)w[i * BW_OUTPUT_TILE + n];
        f[n] = (float)d;
    }
}

static void dot_wide(const bw_dot_args *g)
{
    for (size_t p = 0; p < g->pixels; p++) {
        float *acc = g->acc + p * g->stride, f[BW_OUTPUT_TILE];
        const double *codes = (const double *)g->codes + p * (g->code_step / sizeof *codes), *w = g->weights;
        const int8_t *ew = g->weight_exps;
        if (g->start)
            memcpy(acc, g->start, BW_OUTPUT_TILE * sizeof *acc);
        for (size_t r = 0; r < g->run_count; r++) {
            const int32_t *ea = g->scale + p * g->scale_step + g->runs[r].at;
            const double *a = codes + g->runs[r].at * g->block;
            for (size_t left = g->runs[r].blocks; left; left--) {
                if (*ea & BW_WIDE_MARK)
                    block_marked(a, w, g->block, f);
                else
                    block_exact(a, w, g->block, f);
                accumulate(acc, f, *ea, ew);
                a += g->block, w += g->block * BW_OUTPUT_TILE, ew += BW_OUTPUT_TILE, ea++;
            }
        }
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

void bw_pack_wide_portable(bw_dot_class c, const bw_format_traits *t, const bw_pack_args *g)
{
    const int64_t *table = bw_code_table(t);
    const int64_t below = ((int64_t)1 << bw_wide_unit(c, t, g->block)) - 1;
    double *out = g->out;
    if (!g->codes)
        memset(out, 0, g->count * g->block * sizeof *out);
    for (size_t k = 0; k < g->count; k++) {
        int64_t all = 0; /* has a bit below the unit if any value has: -v ends in as many zeros as v */
        for (size_t i = k * g->block; g->codes && i < (k + 1) * g->block; i++) {
            const int64_t v = value_at(table, g->codes, i);
            out[i] = (double)v;
            all |= v;
        }
        g->scale[k] = (int32_t)((uint32_t)(127 + (g->codes ? g->exps[k] : 0)) << 23);
        g->scale[k] |= all & below ? BW_WIDE_MARK : 0;
    }
}

void bw_widen_wide_portable(const bw_format_traits *t, const uint8_t *codes, size_t blocks, size_t block, double *out)
{
    const int64_t *table = bw_code_table(t);
    for (size_t q = 0; q < blocks * block / 4; q++, codes += (size_t)4 * BW_OUTPUT_TILE * t->device_bytes)
        for (size_t i = 0; i < 4; i++)
            for (size_t n = 0; n < BW_OUTPUT_TILE; n++)
                *out++ = (double)value_at(table, codes, n * 4 + i);
}

const bw_wide_kernels bw_wide_portable = {
    .dot = dot_wide, .pack = bw_pack_wide_portable, .widen = bw_widen_wide_portable};
