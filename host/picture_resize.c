/* SPDX-License-Identifier: Apache-2.0 */
/* Bilinear resizing, separable, in fixed point (host/picture.h says which). */
#include <stdlib.h>
#include <string.h>

#include "host/picture.h"

#define PRECISION 22 /* 32 bits less 8 of the sample, one of the sign and one of overshoot */

/* For each output place: first input place, number of taps, and their weights. */
typedef struct taps {
    int width; /* weights per output place */
    int *first, *count;
    int32_t *weight;
} taps;

static void taps_free(taps *t)
{
    free(t->first);
    free(t->count);
    free(t->weight);
}

static bw_status taps_make(int in, int out, taps *t, bw_error *err)
{
    double scale = (double)in / out;
    double support = scale > 1 ? scale : 1; /* of the triangle, one input sample wide at least */
    int whole = (int)support;
    t->width = (whole + (support > whole)) * 2 + 1;
    t->first = malloc((size_t)out * sizeof *t->first);
    t->count = malloc((size_t)out * sizeof *t->count);
    t->weight = calloc((size_t)out * (size_t)t->width, sizeof *t->weight);
    double *w = malloc((size_t)t->width * sizeof *w);
    if (!t->first || !t->count || !t->weight || !w) {
        taps_free(t);
        free(w);
        return bw_fail(err, BW_NO_MEMORY, "no memory to resize %d to %d", in, out);
    }
    for (int o = 0; o < out; o++) {
        double centre = (o + 0.5) * scale;
        int lo = (int)(centre - support + 0.5), hi = (int)(centre + support + 0.5);
        lo = lo < 0 ? 0 : lo;
        hi = hi > in ? in : hi;
        double sum = 0;
        for (int i = lo; i < hi; i++) {
            double d = (i - centre + 0.5) * (1.0 / support);
            d = d < 0 ? -d : d;
            w[i - lo] = d < 1 ? 1 - d : 0;
            sum += w[i - lo];
        }
        for (int i = 0; i < hi - lo; i++)
            t->weight[(size_t)o * (size_t)t->width + (size_t)i] =
                (int32_t)(0.5 + (sum != 0 ? w[i] / sum : w[i]) * (1 << PRECISION));
        t->first[o] = lo;
        t->count[o] = hi - lo;
    }
    free(w);
    return BW_OK;
}

static uint8_t narrow(int32_t sum)
{
    int32_t v = sum >> PRECISION;
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

static void horizontal(const uint8_t *in, const taps *t, int rows, int in_width, int out_width, int channels,
                       uint8_t *out)
{
    for (int y = 0; y < rows; y++, in += (size_t)in_width * (size_t)channels) {
        for (int x = 0; x < out_width; x++) {
            const int32_t *w = t->weight + (size_t)x * (size_t)t->width;
            const uint8_t *p = in + (size_t)t->first[x] * (size_t)channels;
            int32_t s[3] = {1 << (PRECISION - 1), 1 << (PRECISION - 1), 1 << (PRECISION - 1)};
            if (channels == 3) {
                for (int i = 0; i < t->count[x]; i++, p += 3) {
                    s[0] += p[0] * w[i];
                    s[1] += p[1] * w[i];
                    s[2] += p[2] * w[i];
                }
            } else {
                for (int i = 0; i < t->count[x]; i++)
                    s[0] += p[i] * w[i];
            }
            for (int c = 0; c < channels; c++)
                *out++ = narrow(s[c]);
        }
    }
}

/* sum: one row of 32-bit sums, so that the inner loop runs along memory. */
static void vertical(const uint8_t *in, const taps *t, int out_height, size_t row, int32_t *sum, uint8_t *out)
{
    for (int y = 0; y < out_height; y++, out += row) {
        const int32_t *w = t->weight + (size_t)y * (size_t)t->width;
        const uint8_t *p = in + (size_t)t->first[y] * row;
        for (size_t k = 0; k < row; k++)
            sum[k] = 1 << (PRECISION - 1);
        for (int i = 0; i < t->count[y]; i++, p += row) {
            for (size_t k = 0; k < row; k++)
                sum[k] += p[k] * w[i];
        }
        for (size_t k = 0; k < row; k++)
            out[k] = narrow(sum[k]);
    }
}

static uint8_t *pixels(int height, int width, int channels)
{
    return malloc((size_t)height * (size_t)width * (size_t)channels);
}

bw_status bw_picture_resize(const bw_picture *in, int height, int width, bw_picture *out, bw_error *err)
{
    memset(out, 0, sizeof *out);
    if (height < 1 || width < 1 || height > BW_PICTURE_SIDE_MAX || width > BW_PICTURE_SIDE_MAX ||
        (uint64_t)height * (uint64_t)width > BW_PICTURE_PIXELS_MAX)
        return bw_fail(err, BW_INVALID_ARGUMENT,
                       "picture of %d x %d pixels would become %d x %d, expected 1 to 64 megapixels", in->width,
                       in->height, width, height);
    /* The picture between the passes has the new width and the old height: it is bounded like the others. */
    if ((uint64_t)in->height * (uint64_t)width > BW_PICTURE_PIXELS_MAX)
        return bw_fail(err, BW_INVALID_ARGUMENT, "picture of %d x %d pixels is too tall to become %d x %d", in->width,
                       in->height, width, height);
    int channels = in->channels;
    size_t row = (size_t)width * (size_t)channels;
    taps across = {0}, down = {0};
    uint8_t *middle = NULL;
    int32_t *sum = NULL;
    bw_status status = taps_make(in->width, width, &across, err);
    if (status)
        return status;
    status = taps_make(in->height, height, &down, err);
    if (status) {
        taps_free(&across);
        return status;
    }
    const uint8_t *source = in->pixels;
    out->pixels = pixels(height, width, channels);
    sum = malloc(row * sizeof *sum);
    if (width != in->width)
        middle = pixels(in->height, width, channels);
    if (!out->pixels || !sum || (width != in->width && !middle)) {
        status = bw_fail(err, BW_NO_MEMORY, "no memory to resize a picture to %d x %d", width, height);
        bw_picture_free(out);
    } else {
        if (middle) {
            horizontal(in->pixels, &across, in->height, in->width, width, channels, middle);
            source = middle;
        }
        if (height != in->height)
            vertical(source, &down, height, row, sum, out->pixels);
        else
            memcpy(out->pixels, source, (size_t)height * row);
        out->width = width;
        out->height = height;
        out->channels = channels;
    }
    taps_free(&across);
    taps_free(&down);
    free(middle);
    free(sum);
    return status;
}
