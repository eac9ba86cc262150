/* SPDX-License-Identifier: Apache-2.0 */
/* JPEG through libjpeg: its fatal errors come back through a longjmp, its warnings of lost data are fatal too. */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jerror.h>
#include <jpeglib.h>

#include "host/picture_codec.h"

/* A progressive file may ask for any number of passes over the whole picture. */
#define SCANS_MAX  128
#define MEMORY_MAX (1L << 30)

typedef struct reader {
    struct jpeg_decompress_struct jpeg;
    struct jpeg_error_mgr errors;
    struct jpeg_progress_mgr progress;
    jmp_buf back;
    uint8_t *row; /* one CMYK row */
    char why[JMSG_LENGTH_MAX];
} reader;

static void on_exit_error(j_common_ptr common)
{
    reader *r = common->client_data;
    common->err->format_message(common, r->why);
    longjmp(r->back, 1);
}

/* Level -1 is a warning: picture data was lost or made up, unless it is one of these. */
static void on_message(j_common_ptr common, int level)
{
    if (level >= 0)
        return;
    switch (common->err->msg_code) {
    case JWRN_EXTRANEOUS_DATA:
    case JWRN_ADOBE_XFORM:
    case JWRN_JFIF_MAJOR:
    case JWRN_TOO_MUCH_DATA:
        return;
    default:
        on_exit_error(common);
    }
}

static void on_output(j_common_ptr common)
{
    (void)common;
}

static void on_progress(j_common_ptr common)
{
    reader *r = common->client_data;
    if (r->jpeg.input_scan_number > SCANS_MAX) {
        snprintf(r->why, sizeof r->why, "more than %d scans", SCANS_MAX);
        longjmp(r->back, 1);
    }
}

static unsigned muldiv255(unsigned a, unsigned b)
{
    unsigned t = a * b + 128;
    return ((t >> 8) + t) >> 8;
}

/* Adobe's files hold inverted CMYK: 255 is no ink. */
static void cmyk_to_rgb(const uint8_t *in, int width, int inverted, uint8_t *out)
{
    for (int x = 0; x < width; x++, in += 4, out += 3) {
        unsigned light = inverted ? in[3] : 255u - in[3];
        for (int c = 0; c < 3; c++) {
            unsigned ink = inverted ? 255u - in[c] : in[c];
            out[c] = (uint8_t)(light - muldiv255(ink, light));
        }
    }
}

static bw_status decode(reader *r, const uint8_t *bytes, size_t size, bw_picture *picture, bw_error *err)
{
    struct jpeg_decompress_struct *j = &r->jpeg;
    jpeg_create_decompress(j);
    j->client_data = r;
    r->progress.progress_monitor = on_progress;
    j->progress = &r->progress;
    j->mem->max_memory_to_use = MEMORY_MAX;
    jpeg_mem_src(j, bytes, size);
    (void)jpeg_read_header(j, TRUE);
    int channels = j->num_components == 1 ? 1 : 3;
    bw_status status = bw_picture_alloc("JPEG", j->image_width, j->image_height, channels, picture, err);
    if (status)
        return status;
    int cmyk = j->jpeg_color_space == JCS_CMYK || j->jpeg_color_space == JCS_YCCK;
    j->out_color_space = cmyk ? JCS_CMYK : channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
    (void)jpeg_start_decompress(j);
    size_t row_bytes = (size_t)picture->width * (size_t)channels;
    if (j->output_components != (cmyk ? 4 : channels) || (int)j->output_width != picture->width)
        return bw_fail(err, BW_INVALID_ARGUMENT, "JPEG with %d colour components, expected 1, 3 or 4",
                       j->num_components);
    if (cmyk) {
        r->row = malloc((size_t)picture->width * 4);
        if (!r->row)
            return bw_fail(err, BW_NO_MEMORY, "no memory for a JPEG row");
    }
    while (j->output_scanline < j->output_height) {
        uint8_t *out = picture->pixels + j->output_scanline * row_bytes;
        JSAMPROW row = cmyk ? r->row : out;
        if (jpeg_read_scanlines(j, &row, 1) != 1)
            return bw_fail(err, BW_INVALID_ARGUMENT, "damaged JPEG: no line %u", j->output_scanline);
        if (cmyk)
            cmyk_to_rgb(r->row, picture->width, j->saw_Adobe_marker, out);
    }
    (void)jpeg_finish_decompress(j);
    return BW_OK;
}

bw_status bw_picture_decode_jpeg(const uint8_t *bytes, size_t size, bw_picture *picture, bw_error *err)
{
    reader *r = calloc(1, sizeof *r);
    if (!r)
        return bw_fail(err, BW_NO_MEMORY, "no memory for the JPEG reader");
    r->jpeg.err = jpeg_std_error(&r->errors);
    r->errors.error_exit = on_exit_error;
    r->errors.emit_message = on_message;
    r->errors.output_message = on_output;
    r->jpeg.client_data = r;
    bw_status status;
    if (setjmp(r->back))
        status = bw_fail(err, BW_INVALID_ARGUMENT, "damaged JPEG: %s: send it whole", r->why);
    else
        status = decode(r, bytes, size, picture, err);
    jpeg_destroy_decompress(&r->jpeg);
    free(r->row);
    free(r);
    return status;
}
