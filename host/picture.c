/* SPDX-License-Identifier: Apache-2.0 */
/* What PNG and JPEG share: recognition, limits, channel conversion. */
#include "host/picture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/picture_codec.h"

void bw_picture_free(bw_picture *picture)
{
    if (!picture)
        return;
    free(picture->pixels);
    memset(picture, 0, sizeof *picture);
}

bw_status bw_picture_alloc(const char *kind, uint32_t width, uint32_t height, int channels, bw_picture *picture,
                           bw_error *err)
{
    if (width == 0 || height == 0 || width > BW_PICTURE_SIDE_MAX || height > BW_PICTURE_SIDE_MAX ||
        (uint64_t)width * height > BW_PICTURE_PIXELS_MAX)
        return bw_fail(err, BW_INVALID_ARGUMENT, "%s of %u x %u pixels, expected 1 to 64 megapixels: shrink it first",
                       kind, width, height);
    size_t bytes = (size_t)width * height * (size_t)channels;
    picture->pixels = malloc(bytes);
    if (!picture->pixels)
        return bw_fail(err, BW_NO_MEMORY, "no memory for a %s of %u x %u pixels", kind, width, height);
    picture->width = (int)width;
    picture->height = (int)height;
    picture->channels = channels;
    return BW_OK;
}

bw_status bw_picture_decode(const void *bytes, size_t size, bw_picture *picture, bw_error *err)
{
    static const uint8_t png[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
    static const uint8_t jpeg[3] = {0xff, 0xd8, 0xff};
    const uint8_t *b = bytes;
    memset(picture, 0, sizeof *picture);
    bw_status status;
    if (size >= sizeof png && memcmp(b, png, sizeof png) == 0) {
        status = bw_picture_decode_png(b, size, picture, err);
    } else if (size >= sizeof jpeg && memcmp(b, jpeg, sizeof jpeg) == 0) {
        status = bw_picture_decode_jpeg(b, size, picture, err);
    } else {
        if (!size)
            return bw_fail(err, BW_INVALID_ARGUMENT, "0 bytes, expected a PNG or a JPEG picture: send one");
        char start[16] = "";
        for (size_t i = 0; i < size && i < 4; i++)
            snprintf(start + 3 * i, sizeof start - 3 * i, " %02x", b[i]);
        return bw_fail(err, BW_INVALID_ARGUMENT,
                       "%zu bytes starting with%s are neither a PNG nor a JPEG picture: convert it to one", size,
                       start);
    }
    if (status)
        bw_picture_free(picture);
    return status;
}

bw_status bw_picture_convert(bw_picture *picture, int channels, bw_error *err)
{
    if (picture->channels == channels)
        return BW_OK;
    size_t count = (size_t)picture->width * (size_t)picture->height;
    uint8_t *in = picture->pixels, *out = malloc(count * (size_t)channels);
    if (!out)
        return bw_fail(err, BW_NO_MEMORY, "no memory for %zu pixels", count);
    if (channels == 3) {
        for (size_t i = 0; i < count; i++)
            out[3 * i] = out[3 * i + 1] = out[3 * i + 2] = in[i];
    } else {
        /* 0.299, 0.587, 0.114 in 16-bit fixed point, rounded: the weights sum to 65536. */
        for (size_t i = 0; i < count; i++)
            out[i] = (uint8_t)((in[3 * i] * 19595u + in[3 * i + 1] * 38470u + in[3 * i + 2] * 7471u + 32768u) >> 16);
    }
    free(in);
    picture->pixels = out;
    picture->channels = channels;
    return BW_OK;
}
