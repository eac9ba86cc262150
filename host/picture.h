/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pictures: PNG and JPEG bytes to 8-bit pixels, and resizing.
 *
 * Decoding: palette, 1- to 16-bit gray and colour, interlaced PNG; baseline and progressive JPEG in gray, YCbCr, RGB,
 * CMYK and YCCK. Sixteen-bit samples are scaled to 8 bits; transparency is laid over white; gamma, colour profiles and
 * the EXIF orientation are ignored, as common training pipelines do. At most 64 megapixels and bounded memory.
 *
 * Thread safety: pure functions.
 */
#ifndef BW_HOST_PICTURE_H
#define BW_HOST_PICTURE_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/status.h"

#define BW_PICTURE_PIXELS_MAX 67108864u
#define BW_PICTURE_SIDE_MAX   65535

typedef struct bw_picture {
    int width, height;
    int channels;    /* 1 gray, 3 RGB */
    uint8_t *pixels; /* height x width x channels, owned */
} bw_picture;

/* BW_INVALID_ARGUMENT: neither PNG nor JPEG, damaged or too large (says which and how); BW_NO_MEMORY. */
bw_status bw_picture_decode(const void *bytes, size_t size, bw_picture *picture, bw_error *err);
void bw_picture_free(bw_picture *picture); /* zeroes the struct; NULL allowed */

/* Converts in place to 1 (ITU-R 601 luma) or 3 channels. BW_NO_MEMORY. */
bw_status bw_picture_convert(bw_picture *picture, int channels, bw_error *err);

/*
 * Bilinear with half-pixel centres, the filter widened when shrinking (antialias), in 22-bit fixed point with 8-bit
 * results of each pass, horizontal first: bit for bit what Pillow's `Image.resize(..., BILINEAR)` computes.
 * 1 <= height, width <= BW_PICTURE_SIDE_MAX. BW_NO_MEMORY, BW_INVALID_ARGUMENT (size).
 */
bw_status bw_picture_resize(const bw_picture *in, int height, int width, bw_picture *out, bw_error *err);

#endif
