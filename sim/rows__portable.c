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
            bw_decode_block(f->traits, codes + i * f->traits->device_bytes, exps[i / f->block], f->block, y + i);
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
            bw_encode_block(f->traits, BW_ROUND_EVEN, x + i, f->block, codes + i * f->traits->device_bytes,
                            &exps[i / f->block]);
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

static void depthwise(const bw_depthwise *d)
{
    const bw_format_traits *tx = bw_format_get(d->x_format), *tw = bw_format_get(d->w_format);
    for (size_t p = 0; p < d->pixels; p++) {
        const uint16_t *x = d->x + p * d->step;
        float *acc = d->acc + p * d->stride;
        for (size_t c = 0; d->fresh && c < d->n; c++)
            acc[c] = d->start ? d->start[c] : 0.0f;
        for (size_t t = 0; t < d->taps; t++)
            for (size_t c = 0; c < d->n; c++)
                acc[c] += bw_decode_vector(tx, x[d->x_at[t] + c]) * bw_decode_vector(tw, d->w[t][c]);
    }
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
