/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of host/picture: one decoder per file format. On failure the caller frees the picture. */
#ifndef BW_HOST_PICTURE_CODEC_H
#define BW_HOST_PICTURE_CODEC_H

#include "host/picture.h"

/* Checks the limits, allocates the pixels and sets the sizes. `kind`: "PNG" or "JPEG", for messages. */
bw_status bw_picture_alloc(const char *kind, uint32_t width, uint32_t height, int channels, bw_picture *picture,
                           bw_error *err);
bw_status bw_picture_decode_png(const uint8_t *bytes, size_t size, bw_picture *picture, bw_error *err);
bw_status bw_picture_decode_jpeg(const uint8_t *bytes, size_t size, bw_picture *picture, bw_error *err);

#endif
