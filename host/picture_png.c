/* SPDX-License-Identifier: Apache-2.0 */
/* PNG through libpng's full interface: the simplified one converts gamma, which training pipelines do not. */
#include <png.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include "host/picture_codec.h"

/* Everything that lives across the longjmp of libpng's error path. */
typedef struct reader {
    const uint8_t *bytes;
    size_t size, at;
    uint8_t *rows; /* decoded rows, with alpha where there is one */
    png_bytep *row_pointers;
    char why[160];
} reader;

static void on_error(png_structp png, png_const_charp text)
{
    reader *r = png_get_error_ptr(png);
    strncpy(r->why, text, sizeof r->why - 1);
    png_longjmp(png, 1);
}

static void on_warning(png_structp png, png_const_charp text)
{
    (void)png;
    (void)text;
}

static void on_read(png_structp png, png_bytep out, size_t n)
{
    reader *r = png_get_io_ptr(png);
    if (r->size - r->at < n)
        png_error(png, "the file ends early");
    memcpy(out, r->bytes + r->at, n);
    r->at += n;
}

/* Over white; drops the alpha channel. */
static void flatten(const reader *r, size_t count, int channels, uint8_t *out)
{
    const uint8_t *in = r->rows;
    for (size_t i = 0; i < count; i++, in += channels + 1) {
        unsigned a = in[channels];
        for (int c = 0; c < channels; c++)
            *out++ = (uint8_t)((in[c] * a + 255u * (255u - a) + 127u) / 255u);
    }
}

static bw_status decode(png_structp png, png_infop info, reader *r, bw_picture *picture, bw_error *err)
{
    png_set_read_fn(png, r, on_read);
    png_set_user_limits(png, BW_PICTURE_SIDE_MAX, BW_PICTURE_SIDE_MAX);
    png_set_chunk_cache_max(png, 64);
    png_set_chunk_malloc_max(png, 8u << 20);
    png_read_info(png, info);
    png_uint_32 width = png_get_image_width(png, info), height = png_get_image_height(png, info);
    int type = png_get_color_type(png, info);
    int channels = type & PNG_COLOR_MASK_COLOR ? 3 : 1;
    bw_status status = bw_picture_alloc("PNG", width, height, channels, picture, err);
    if (status)
        return status;
    png_set_scale_16(png);
    png_set_expand(png); /* palette to RGB, small gray depths to 8 bits, tRNS to alpha */
    (void)png_set_interlace_handling(png);
    png_read_update_info(png, info);
    int samples = png_get_channels(png, info);
    int alpha = samples == channels + 1;
    size_t row_bytes = (size_t)width * (size_t)samples;
    if ((samples != channels && !alpha) || png_get_rowbytes(png, info) != row_bytes)
        png_error(png, "a pixel layout that libpng did not expand");
    r->row_pointers = malloc(height * sizeof *r->row_pointers);
    if (alpha)
        r->rows = malloc(row_bytes * height);
    uint8_t *base = alpha ? r->rows : picture->pixels;
    if (!r->row_pointers || !base)
        return bw_fail(err, BW_NO_MEMORY, "no memory for a PNG of %u x %u pixels", width, height);
    for (png_uint_32 y = 0; y < height; y++)
        r->row_pointers[y] = base + y * row_bytes;
    png_read_image(png, r->row_pointers);
    png_read_end(png, NULL);
    if (alpha)
        flatten(r, (size_t)width * height, channels, picture->pixels);
    return BW_OK;
}

bw_status bw_picture_decode_png(const uint8_t *bytes, size_t size, bw_picture *picture, bw_error *err)
{
    reader r = {.bytes = bytes, .size = size};
    png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &r, on_error, on_warning);
    png_infop info = png ? png_create_info_struct(png) : NULL;
    bw_status status;
    if (!info) {
        status = bw_fail(err, BW_NO_MEMORY, "no memory for the PNG reader");
    } else if (setjmp(png_jmpbuf(png))) {
        status = bw_fail(err, BW_INVALID_ARGUMENT, "damaged PNG: %s: send it whole", r.why);
    } else {
        status = decode(png, info, &r, picture, err);
    }
    png_destroy_read_struct(&png, &info, NULL);
    free(r.row_pointers);
    free(r.rows);
    return status;
}
