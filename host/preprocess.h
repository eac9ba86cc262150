/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pictures to network inputs: decode PNG or JPEG, resize, crop, reorder, normalise, as recorded in the package.
 *
 * Thread safety: pure functions.
 */
#ifndef BW_HOST_PREPROCESS_H
#define BW_HOST_PREPROCESS_H

#include <jansson.h>
#include <stddef.h>

#include "host/graph.h"

typedef enum bw_resize { BW_RESIZE_EXACT = 0, BW_RESIZE_SHORT_SIDE = 1, BW_RESIZE_NONE = 2 } bw_resize;
typedef enum bw_channels { BW_CHANNELS_RGB = 0, BW_CHANNELS_BGR = 1, BW_CHANNELS_GRAY = 2 } bw_channels;

/* y = (pixel * scale - mean[c]) / std[c], pixel in 0..255, c in the network's channel order. */
typedef struct bw_preprocess {
    bw_resize resize;                /* bilinear, half-pixel centres, antialiased when shrinking */
    int resize_height, resize_width; /* SHORT_SIDE: resize_height is the short side */
    int height, width;               /* centre crop = the network's input size */
    bw_channels channels;
    float scale;
    float mean[3], std[3];
} bw_preprocess;

/* JSON object of the manifest: {"resize": "exact"|"short-side"|"none", "resize_size": [h, w] | n, "size": [h, w],
 * "channels": "RGB"|"BGR"|"GRAY", "scale": 1/255, "mean": [..], "std": [..]}. Only "size" is required; absent are
 * "exact" to "size", RGB, 1, 0 and 1; one number stands for all channels. BW_INVALID_ARGUMENT names the key. */
bw_status bw_preprocess_from_json(const json_t *json, bw_preprocess *p, bw_error *err);
json_t *bw_preprocess_to_json(const bw_preprocess *p);

/* Decodes one picture (PNG or JPEG by its first bytes; at most 64 megapixels; host/picture.h says what of a picture is
 * used) and writes channels x height x width
 * floats (NCHW, one image) to out. BW_INVALID_ARGUMENT: neither PNG nor JPEG, or damaged; says which and how. */
bw_status bw_preprocess_picture(const bw_preprocess *p, const void *bytes, size_t size, float *out, bw_error *err);

/* Whether pictures fit a network input of this shape (dims[0] is the batch): [N, C, H, W], [N, H, W, C], [N, H, W] for
 * one channel, or [N, C * H * W]. BW_INVALID_ARGUMENT names the input and both shapes. */
bw_status bw_preprocess_check(const bw_preprocess *p, const char *input_name, int rank, const int64_t *dims,
                              bw_error *err);
/* bw_preprocess_picture for an input of that shape: channels last where the input has them last. */
bw_status bw_preprocess_input(const bw_preprocess *p, int rank, const int64_t *dims, const void *bytes, size_t size,
                              float *out, bw_error *err);

#endif
