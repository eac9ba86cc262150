/* SPDX-License-Identifier: Apache-2.0 */
/* Row kernels in plain C, over the encoders and decoders of kernels/formats.h. */
#include <string.h>

#include "sim/fast.h"

static void decode(const bw_row_format *f, const uint8_t *codes, const int8_t *exps, size_t n, float *y)
{
    switch (f->kind) {
    case BW_KIND_FLOAT:
        memcpy(y, codes, n * sizeof *y);
        break;
    case BW_KIND_VECTOR:
        for (size_t i = 0; i < n; i++)
            y[i] = bw_decode_vector(f->traits, ((const uint16_t *)(const void *)codes)[i]);
        break;
    default:
        for (size_t i = 0; i < n; i += f->block)
            bw_decode_block(f->traits, codes + i, exps[i / f->block], f->block, y + i);
    }
}

static void encode(const bw_row_format *f, const float *x, size_t n, uint8_t *codes, int8_t *exps)
{
    switch (f->kind) {
    case BW_KIND_FLOAT:
        memcpy(codes, x, n * sizeof *x);
        break;
    case BW_KIND_VECTOR:
        for (size_t i = 0; i < n; i++)
            ((uint16_t *)(void *)codes)[i] = bw_encode_vector(f->traits, x[i]);
        break;
    default:
        for (size_t i = 0; i < n; i += f->block)
            bw_encode_block(f->traits, BW_ROUND_EVEN, x + i, f->block, codes + i, &exps[i / f->block]);
    }
}

static void add(size_t n, const float *a, const float *b, float *y)
{
    for (size_t i = 0; i < n; i++)
        y[i] = a[i] + b[i];
}

static void mul(size_t n, const float *a, const float *b, float *y)
{
    for (size_t i = 0; i < n; i++)
        y[i] = a[i] * b[i];
}

static void max(size_t n, const float *a, float *y)
{
    for (size_t i = 0; i < n; i++)
        y[i] = a[i] > y[i] ? a[i] : y[i];
}

static void scale(size_t n, float r, float *y)
{
    for (size_t i = 0; i < n; i++)
        y[i] *= r;
}

static void activate(const bw_row_activation *a, size_t n, float *y)
{
    if (a->kind == BW_ACT_RELU) {
        for (size_t i = 0; i < n; i++)
            y[i] = y[i] > 0.0f ? y[i] : 0.0f;
    } else if (a->kind == BW_ACT_CLIP) {
        for (size_t i = 0; i < n; i++)
            y[i] = y[i] > a->hi ? a->hi : y[i] < a->lo ? a->lo : y[i];
    }
}

static void depthwise(bw_format x_format, bw_format w_format, size_t taps, const uint16_t *const *x,
                      const uint16_t *const *w, size_t n, float *y)
{
    const bw_format_traits *tx = bw_format_get(x_format), *tw = bw_format_get(w_format);
    for (size_t t = 0; t < taps; t++)
        for (size_t c = 0; c < n; c++)
            y[c] += bw_decode_vector(tx, x[t][c]) * bw_decode_vector(tw, w[t][c]);
}

const bw_rows bw_rows_portable = {
    .decode = decode,
    .encode = encode,
    .add = add,
    .mul = mul,
    .max = max,
    .scale = scale,
    .activate = activate,
    .depthwise = depthwise,
};
