/* SPDX-License-Identifier: Apache-2.0 */
/* Row kernels in plain C, over the encoders and decoders of kernels/formats.h. */
#include <string.h>

#include "sim/fast.h"

/* Channels c .. c + n of a pixel; block formats: all of the last block. */
static void read_part(const bw_side *s, size_t pixel, size_t c, size_t n, float *y)
{
    const bw_row_format *f = s->format;
    const uint8_t *codes = s->codes + pixel * s->code_step + c * f->traits->device_bytes;
    const int8_t *exps = s->exps + pixel * s->exp_step + c / f->block;
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

static void write_part(const bw_side *s, size_t pixel, size_t c, size_t n, const float *x)
{
    const bw_row_format *f = s->format;
    uint8_t *codes = s->codes + pixel * s->code_step + c * f->traits->device_bytes;
    int8_t *exps = s->exps + pixel * s->exp_step + c / f->block;
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

/* The largest block; the channels of a pixel go through fp32 in parts of this size. */
#define PART 128u

static void fused_part(const bw_fused *f, size_t pixel, size_t c, size_t n)
{
    float y[PART], z[PART];
    read_part(&f->a, pixel, c, n, y);
    if (f->b.format)
        read_part(&f->b, pixel, c, n, z);
    for (size_t i = 0; f->b.format && i < n; i++)
        y[i] = f->multiply ? y[i] * z[i] : y[i] + z[i];
    activate(f->activation, n, y);
    for (size_t i = n; i < PART; i++) /* padding is zero whatever the activation makes of it */
        y[i] = 0.0f;
    for (unsigned o = 0; o < 2; o++)
        if (f->out[o].format)
            write_part(&f->out[o], pixel, c, n, y);
}

static void fused(const bw_fused *f)
{
    for (size_t pixel = 0; pixel < f->pixels; pixel++)
        for (size_t c = 0; c < f->n; c += PART)
            fused_part(f, pixel, c, f->n - c < PART ? f->n - c : PART);
}

static void window_pixel(const bw_window *w, size_t pixel, size_t c, size_t n)
{
    float *y = w->y + pixel * w->stride + c, x[PART];
    for (size_t i = 0; i < w->rows; i++)
        for (size_t j = 0; j < w->columns; j++) {
            bw_side tap = w->x;
            tap.codes += i * w->code_row + j * w->code_column;
            tap.exps += i * w->exp_row + j * w->exp_column;
            read_part(&tap, pixel, c, n, x);
            for (size_t k = 0; k < n; k++)
                if (w->average)
                    y[k] = (i + j ? y[k] : 0.0f) + x[k];
                else
                    y[k] = i + j == 0 || x[k] > y[k] ? x[k] : y[k];
        }
    for (size_t k = 0; w->average && k < n; k++)
        y[k] *= w->factor;
}

static void window(const bw_window *w)
{
    for (size_t pixel = 0; pixel < w->pixels; pixel++)
        for (size_t c = 0; c < w->n; c += PART)
            window_pixel(w, pixel, c, w->n - c < PART ? w->n - c : PART);
}

static void depthwise(const bw_depthwise *d)
{
    const bw_format_traits *tx = bw_format_get(d->x_format);
    for (size_t p = 0; p < d->pixels; p++) {
        float *acc = d->acc + p * d->acc_stride;
        for (size_t c = 0; c < d->n; c++)
            acc[c] = d->bias ? d->bias[c] : 0.0f;
        for (size_t ky = 0; ky < d->rows; ky++)
            for (size_t kx = 0; kx < d->columns; kx++) {
                const int64_t column = d->left + (int64_t)(p * d->stride + kx * d->dilation);
                if (column < 0 || column >= d->width)
                    continue;
                const uint16_t *x = d->x + ky * d->x_row + (size_t)column * d->x_pixel;
                const float *w = d->w + (ky * d->columns + kx) * d->w_tap;
                for (size_t c = 0; c < d->n; c++)
                    acc[c] += bw_decode_vector(tx, x[c]) * w[c];
            }
    }
}

const bw_rows bw_rows_portable = {
    .fused = fused,
    .window = window,
    .depthwise = depthwise,
};
