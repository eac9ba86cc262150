/* SPDX-License-Identifier: Apache-2.0 */
/* The recorded pre-processing: from JSON, to JSON, and from a picture to a network's input. */
#include "host/preprocess.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "host/picture.h"

#define SIDE_MAX 16384

static const char *const resize_names[] = {"exact", "short-side", "none"};
static const char *const channel_names[] = {"RGB", "BGR", "GRAY"};

static int channel_count(const bw_preprocess *p)
{
    return p->channels == BW_CHANNELS_GRAY ? 1 : 3;
}

static bw_status read_name(const json_t *json, const char *key, const char *const *names, int count, int *value,
                           bw_error *err)
{
    const json_t *v = json_object_get(json, key);
    if (!v)
        return BW_OK;
    const char *s = json_string_value(v);
    for (int i = 0; s && i < count; i++) {
        if (strcmp(s, names[i]) == 0) {
            *value = i;
            return BW_OK;
        }
    }
    return bw_fail(err, BW_INVALID_ARGUMENT, "pre-processing: \"%s\" is '%s', expected %s, %s or %s", key,
                   s ? s : "no text", names[0], names[1], names[2]);
}

static bw_status read_side(const json_t *v, const char *key, int *value, bw_error *err)
{
    json_int_t i = json_is_integer(v) ? json_integer_value(v) : 0;
    if (i < 1 || i > SIDE_MAX)
        return bw_fail(err, BW_INVALID_ARGUMENT, "pre-processing: \"%s\" must hold whole numbers from 1 to %d", key,
                       SIDE_MAX);
    *value = (int)i;
    return BW_OK;
}

/* [height, width], or one number for both. */
static bw_status read_size(const json_t *v, const char *key, int *height, int *width, bw_error *err)
{
    if (!json_is_array(v)) {
        bw_status status = read_side(v, key, height, err);
        *width = *height;
        return status;
    }
    if (json_array_size(v) != 2)
        return bw_fail(err, BW_INVALID_ARGUMENT, "pre-processing: \"%s\" has %zu numbers, expected [height, width]",
                       key, json_array_size(v));
    bw_status status = read_side(json_array_get(v, 0), key, height, err);
    return status ? status : read_side(json_array_get(v, 1), key, width, err);
}

static int read_float(const json_t *v, float *value)
{
    if (!json_is_number(v))
        return 0;
    *value = (float)json_number_value(v);
    return isfinite(*value);
}

/* One number for all channels, or one for each. */
static bw_status read_floats(const json_t *json, const char *key, int channels, float *values, bw_error *err)
{
    const json_t *v = json_object_get(json, key);
    if (!v)
        return BW_OK;
    int ok = 1;
    if (json_is_array(v)) {
        if ((int)json_array_size(v) != channels)
            return bw_fail(err, BW_INVALID_ARGUMENT, "pre-processing: \"%s\" has %zu numbers, expected %d", key,
                           json_array_size(v), channels);
        for (int c = 0; c < channels && ok; c++)
            ok = read_float(json_array_get(v, (size_t)c), &values[c]);
    } else {
        for (int c = 0; c < channels && ok; c++)
            ok = read_float(v, &values[c]);
    }
    return ok ? BW_OK : bw_fail(err, BW_INVALID_ARGUMENT, "pre-processing: \"%s\" must hold finite numbers", key);
}

static bw_status check_keys(const json_t *json, bw_error *err)
{
    static const char *const known[] = {"resize", "resize_size", "size", "channels", "scale", "mean", "std"};
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)json, key, value)
    {
        size_t i = 0;
        while (i < sizeof known / sizeof *known && strcmp(known[i], key) != 0)
            i++;
        if (i == sizeof known / sizeof *known)
            return bw_fail(err, BW_INVALID_ARGUMENT,
                           "pre-processing: unknown key '%s', expected resize, resize_size, size, channels, scale, "
                           "mean, std",
                           key);
    }
    return BW_OK;
}

/* A value in 0..255 must give a finite input, whatever the numbers. */
static bw_status check_values(const bw_preprocess *p, bw_error *err)
{
    for (int c = 0; c < channel_count(p); c++) {
        float lo = (0.0f * p->scale - p->mean[c]) / p->std[c], hi = (255.0f * p->scale - p->mean[c]) / p->std[c];
        if (p->std[c] == 0 || !isfinite(lo) || !isfinite(hi))
            return bw_fail(err, BW_INVALID_ARGUMENT,
                           "pre-processing: scale %g, mean %g, std %g give infinite inputs, expected finite ones",
                           (double)p->scale, (double)p->mean[c], (double)p->std[c]);
    }
    int h = p->resize_height, w = p->resize == BW_RESIZE_SHORT_SIDE ? h : p->resize_width;
    if (p->resize != BW_RESIZE_NONE && (p->height > h || p->width > w))
        return bw_fail(err, BW_INVALID_ARGUMENT,
                       "pre-processing: \"size\" %d x %d does not fit in \"resize_size\" %d x %d", p->height, p->width,
                       h, w);
    return BW_OK;
}

bw_status bw_preprocess_from_json(const json_t *json, bw_preprocess *p, bw_error *err)
{
    memset(p, 0, sizeof *p);
    if (!json_is_object(json))
        return bw_fail(err, BW_INVALID_ARGUMENT, "pre-processing is not a JSON object");
    bw_status status = check_keys(json, err);
    if (status)
        return status;
    int resize = BW_RESIZE_EXACT, channels = BW_CHANNELS_RGB;
    status = read_name(json, "resize", resize_names, 3, &resize, err);
    if (!status)
        status = read_name(json, "channels", channel_names, 3, &channels, err);
    if (status)
        return status;
    p->resize = (bw_resize)resize;
    p->channels = (bw_channels)channels;
    status = read_size(json_object_get(json, "size"), "size", &p->height, &p->width, err);
    if (status)
        return status;
    const json_t *resize_size = json_object_get(json, "resize_size");
    if (resize_size && p->resize == BW_RESIZE_SHORT_SIDE && json_is_array(resize_size))
        return bw_fail(err, BW_INVALID_ARGUMENT,
                       "pre-processing: \"resize_size\" of \"short-side\" is one number, the short side");
    if (resize_size) {
        status = read_size(resize_size, "resize_size", &p->resize_height, &p->resize_width, err);
        if (status)
            return status;
    } else if (p->resize == BW_RESIZE_EXACT) {
        p->resize_height = p->height;
        p->resize_width = p->width;
    } else if (p->resize == BW_RESIZE_SHORT_SIDE) {
        p->resize_height = p->resize_width = p->height < p->width ? p->width : p->height;
    }
    p->scale = 1;
    for (int c = 0; c < 3; c++)
        p->std[c] = 1;
    if (json_object_get(json, "scale") && !read_float(json_object_get(json, "scale"), &p->scale))
        return bw_fail(err, BW_INVALID_ARGUMENT, "pre-processing: \"scale\" is not a finite number");
    status = read_floats(json, "mean", channel_count(p), p->mean, err);
    if (!status)
        status = read_floats(json, "std", channel_count(p), p->std, err);
    return status ? status : check_values(p, err);
}

/* The shortest decimal that reads back as the same float: 0.1, not 0.100000001490116. */
static json_t *float_json(float v)
{
    for (int digits = 6; digits < 9; digits++) {
        char text[32];
        snprintf(text, sizeof text, "%.*g", digits, (double)v);
        double d = 0;
        if (sscanf(text, "%lf", &d) == 1 && (float)d == v)
            return json_real(d);
    }
    return json_real((double)v);
}

json_t *bw_preprocess_to_json(const bw_preprocess *p)
{
    json_t *json = json_object(), *mean = json_array(), *std = json_array();
    int failed = 0;
    for (int c = 0; c < channel_count(p); c++) {
        failed |= json_array_append_new(mean, float_json(p->mean[c]));
        failed |= json_array_append_new(std, float_json(p->std[c]));
    }
    failed |= json_object_set_new(json, "resize", json_string(resize_names[p->resize]));
    if (p->resize == BW_RESIZE_SHORT_SIDE)
        failed |= json_object_set_new(json, "resize_size", json_integer(p->resize_height));
    else if (p->resize == BW_RESIZE_EXACT)
        failed |= json_object_set_new(json, "resize_size", json_pack("[i,i]", p->resize_height, p->resize_width));
    failed |= json_object_set_new(json, "size", json_pack("[i,i]", p->height, p->width));
    failed |= json_object_set_new(json, "channels", json_string(channel_names[p->channels]));
    failed |= json_object_set_new(json, "scale", float_json(p->scale));
    failed |= json_object_set_new(json, "mean", mean);
    failed |= json_object_set_new(json, "std", std);
    if (failed) {
        json_decref(json);
        return NULL;
    }
    return json;
}

static bw_status resize_picture(const bw_preprocess *p, bw_picture *picture, bw_error *err)
{
    if (p->resize == BW_RESIZE_NONE)
        return BW_OK;
    int64_t h = p->resize_height, w = p->resize_width;
    if (p->resize == BW_RESIZE_SHORT_SIDE) {
        int64_t shortest = picture->width < picture->height ? picture->width : picture->height;
        w = picture->width == shortest ? p->resize_height : (int64_t)p->resize_height * picture->width / shortest;
        h = picture->height == shortest ? p->resize_height : (int64_t)p->resize_height * picture->height / shortest;
        if (w > BW_PICTURE_SIDE_MAX || h > BW_PICTURE_SIDE_MAX)
            return bw_fail(err, BW_INVALID_ARGUMENT,
                           "picture of %d x %d pixels is too narrow for a short side of %d: crop it first",
                           picture->width, picture->height, p->resize_height);
    }
    if (h == picture->height && w == picture->width)
        return BW_OK;
    bw_picture resized;
    bw_status status = bw_picture_resize(picture, (int)h, (int)w, &resized, err);
    if (status)
        return status;
    bw_picture_free(picture);
    *picture = resized;
    return BW_OK;
}

/* Half of a difference, halves to even, as Python's round() of the crops that networks are trained with. */
static int half_even(int difference)
{
    int half = difference / 2;
    return difference % 2 && half % 2 ? half + 1 : half;
}

/* Where pixel (y, x), channel c of the network's input goes. */
typedef struct layout {
    size_t plane, row, pixel;
} layout;

static bw_status to_input(const bw_preprocess *p, const bw_picture *picture, const layout *l, float *out, bw_error *err)
{
    if (picture->height < p->height || picture->width < p->width)
        return bw_fail(err, BW_INVALID_ARGUMENT,
                       "picture has %d x %d pixels, the network takes %d x %d and the package does not resize",
                       picture->width, picture->height, p->width, p->height);
    int top = half_even(picture->height - p->height), left = half_even(picture->width - p->width);
    int channels = picture->channels;
    for (int c = 0; c < channels; c++) {
        int source = p->channels == BW_CHANNELS_BGR ? 2 - c : c;
        float table[256]; /* every possible result once: 256 divisions instead of one a pixel */
        for (int v = 0; v < 256; v++)
            table[v] = ((float)v * p->scale - p->mean[c]) / p->std[c];
        for (int y = 0; y < p->height; y++) {
            const uint8_t *in = picture->pixels +
                                ((size_t)(top + y) * (size_t)picture->width + (size_t)left) * (size_t)channels + source;
            float *to = out + (size_t)c * l->plane + (size_t)y * l->row;
            for (int x = 0; x < p->width; x++)
                to[(size_t)x * l->pixel] = table[in[(size_t)x * (size_t)channels]];
        }
    }
    return BW_OK;
}

static bw_status run(const bw_preprocess *p, const void *bytes, size_t size, const layout *l, float *out, bw_error *err)
{
    bw_picture picture;
    bw_status status = bw_picture_decode(bytes, size, &picture, err);
    if (status)
        return status;
    status = bw_picture_convert(&picture, channel_count(p), err);
    if (!status)
        status = resize_picture(p, &picture, err);
    if (!status)
        status = to_input(p, &picture, l, out, err);
    bw_picture_free(&picture);
    return status;
}

bw_status bw_preprocess_picture(const bw_preprocess *p, const void *bytes, size_t size, float *out, bw_error *err)
{
    layout planar = {(size_t)p->height * (size_t)p->width, (size_t)p->width, 1};
    return run(p, bytes, size, &planar, out, err);
}

/* 1: NCHW or the same in memory, 2: NHWC, 0: neither. */
static int input_layout(const bw_preprocess *p, int rank, const int64_t *dims)
{
    int c = channel_count(p);
    if (rank == 4 && dims[1] == c && dims[2] == p->height && dims[3] == p->width)
        return 1;
    if (rank == 4 && dims[1] == p->height && dims[2] == p->width && dims[3] == c)
        return 2;
    if (rank == 3 && c == 1 && dims[1] == p->height && dims[2] == p->width)
        return 1;
    if (rank == 2 && dims[1] == (int64_t)c * p->height * p->width)
        return 1;
    return 0;
}

bw_status bw_preprocess_check(const bw_preprocess *p, const char *input_name, int rank, const int64_t *dims,
                              bw_error *err)
{
    if (input_layout(p, rank, dims))
        return BW_OK;
    char shape[8 * 22] = "";
    size_t at = 0;
    for (int i = 0; i < rank && i < 8; i++)
        at += (size_t)snprintf(shape + at, sizeof shape - at, i ? ", %" PRId64 : "%" PRId64, dims[i]);
    return bw_fail(err, BW_INVALID_ARGUMENT,
                   "pre-processing gives pictures of %d x %d x %d (channels, height, width), input '%s' wants [%s]: "
                   "correct \"size\" and \"channels\"",
                   channel_count(p), p->height, p->width, input_name, shape);
}

bw_status bw_preprocess_input(const bw_preprocess *p, int rank, const int64_t *dims, const void *bytes, size_t size,
                              float *out, bw_error *err)
{
    size_t channels = (size_t)channel_count(p), height = (size_t)p->height, width = (size_t)p->width;
    layout planar = {height * width, width, 1}, last = {1, width * channels, channels};
    int kind = input_layout(p, rank, dims);
    if (!kind)
        return bw_preprocess_check(p, "input", rank, dims, err);
    return run(p, bytes, size, kind == 2 ? &last : &planar, out, err);
}
