/* SPDX-License-Identifier: Apache-2.0 */
/*
 * DWCONV of the x86 row kernels (bw_depthwise in sim/fast.h), written once: included by rows__ISA.c after
 * sim/rows_fused.h. The sums of some neighbouring pixels stay in registers over all taps. A row of taps goes through
 * the input once, from left to right, so that each element is converted once and each sum takes its taps in order.
 */

/* Neighbours at a time, the more the fewer conversions: 14 is the size of many feature maps, or divides it. */
#if V_LANES == 16
#define DEPTHWISE_PIXELS 14
#else
#define DEPTHWISE_PIXELS 7 /* half the registers */
#endif

/* `pixels` neighbours from number p on, one vector of channels from c on. Inlined with constant format, pixels, taps
 * and stride (dilation 1). inside: no column lies outside the input. */
INLINE void depthwise_block(const bw_depthwise *d, bw_format format, int pixels, int columns, int stride, int inside,
                            size_t p, size_t c)
{
    const int64_t left = d->left + (int64_t)p * stride;
    const uint16_t *x = d->x + left * (int64_t)d->x_pixel + (int64_t)c, *w = d->w + c;
    const vf bias = d->bias ? v_load(d->bias + c) : v_set(0.0f);
    static const uint16_t zeros[V_LANES];
    vf acc[DEPTHWISE_PIXELS];
#pragma GCC unroll 16
    for (int i = 0; i < pixels; i++)
        acc[i] = bias;
    for (size_t ky = 0; ky < d->rows; ky++, x += d->x_row) {
        vf k[8];
#pragma GCC unroll 8
        for (int kx = 0; kx < columns; kx++, w += d->w_tap)
            k[kx] = from_vector(d->w_format, w);
        const uint16_t *at = x;
#pragma GCC unroll 64
        for (int i = 0; i < (pixels - 1) * stride + columns; i++, at += d->x_pixel) {
            /* Zeros add nothing: no sum is -0. */
            const int out = !inside && (uint64_t)(left + i) >= (uint64_t)d->width;
            const vf v = from_vector(format, out ? zeros : at);
#pragma GCC unroll 8
            for (int kx = 0; kx < columns; kx++)
                if (i >= kx && (i - kx) % stride == 0 && (i - kx) / stride < pixels)
                    acc[(i - kx) / stride] = v_fma(v, k[kx], acc[(i - kx) / stride]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < pixels; i++)
        v_store(d->acc + (p + (size_t)i) * d->acc_stride + c, acc[i]);
}

/* Whole vectors of all channels, at least `pixels` pixels. */
INLINE void depthwise_known(const bw_depthwise *d, bw_format format, int pixels, int columns, int stride)
{
    const size_t step = (size_t)pixels;
    const int64_t reach = (pixels - 1) * stride + columns;
    for (size_t c = 0; c + V_LANES <= d->n; c += V_LANES)
        for (size_t p = 0; p < d->pixels; p += step) {
            if (p + step > d->pixels) /* some of the last ones are done twice */
                p = d->pixels - step;
            const int64_t left = d->left + (int64_t)p * stride;
            if (left >= 0 && left + reach <= d->width)
                depthwise_block(d, format, pixels, columns, stride, 1, p, c);
            else
                depthwise_block(d, format, pixels, columns, stride, 0, p, c);
        }
}

/* Channels from..n of any window. */
static void depthwise_any(const bw_depthwise *d, size_t from)
{
    for (size_t c = from; c < d->n; c += V_LANES) {
        const size_t left = d->n - c < V_LANES ? d->n - c : V_LANES;
        for (size_t p = 0; p < d->pixels; p++) {
            vf acc = d->bias ? v_load(d->bias + c) : v_set(0.0f);
            for (size_t ky = 0; ky < d->rows; ky++)
                for (size_t kx = 0; kx < d->columns; kx++) {
                    const int64_t column = d->left + (int64_t)(p * d->stride + kx * d->dilation);
                    if (column < 0 || column >= d->width)
                        continue;
                    const uint16_t *x = d->x + ky * d->x_row + (size_t)column * d->x_pixel + c;
                    uint16_t part[V_LANES];
                    if (left < V_LANES)
                        x = v_copy_part(part, x, left);
                    const vf w = from_vector(d->w_format, d->w + (ky * d->columns + kx) * d->w_tap + c);
                    acc = v_fma(from_vector(d->x_format, x), w, acc);
                }
            v_store(d->acc + p * d->acc_stride + c, acc);
        }
    }
}

INLINE int depthwise_shape(const bw_depthwise *d, int columns, int stride)
{
    const int most = DEPTHWISE_PIXELS;
    if (d->columns != (size_t)columns || d->stride != (size_t)stride || d->pixels < 7)
        return 0;
    if (d->x_format == BW_FORMAT_FP16) {
        if (d->pixels < (size_t)most)
            depthwise_known(d, BW_FORMAT_FP16, 7, columns, stride);
        else
            depthwise_known(d, BW_FORMAT_FP16, most, columns, stride);
    } else {
        depthwise_known(d, BW_FORMAT_BF16, 7, columns, stride);
    }
    return 1;
}

static void depthwise(const bw_depthwise *d)
{
    const int known =
        d->dilation == 1 && (depthwise_shape(d, 3, 1) || depthwise_shape(d, 3, 2) || depthwise_shape(d, 5, 1) ||
                             depthwise_shape(d, 5, 2) || depthwise_shape(d, 7, 1));
    depthwise_any(d, known ? d->n - d->n % V_LANES : 0);
}
