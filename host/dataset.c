/* SPDX-License-Identifier: Apache-2.0 */
/* Data sets: samples and labels from arrays or pictures, batch by batch. */
#include "host/dataset.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "hal/base.h"
#include "host/dataset_dir.h"
#include "host/npy.h"

#define PICTURE_FILE_MAX (256u << 20)

struct bw_dataset {
    char *path;
    int rank;
    int64_t dims[BW_RANK_MAX]; /* of one batch; dims[0] is not used */
    int64_t sample;            /* floats of one sample */
    int64_t count;
    int has_labels;
    /* arrays */
    bw_npy_file *file;
    int data;
    bw_npy_header header;
    int64_t *labels; /* count entries or NULL */
    /* pictures */
    bw_preprocess preprocess;
    bw_dir_list pictures;
    char name[4400];
};

void bw_dataset_close(bw_dataset *ds)
{
    if (!ds)
        return;
    bw_npy_close(ds->file);
    bw_dir_free(&ds->pictures);
    free(ds->labels);
    free(ds->path);
    free(ds);
}

static const char *shape_text(int rank, const int64_t *dims, char *buf, size_t size)
{
    size_t at = (size_t)snprintf(buf, size, "[");
    for (int i = 0; i < rank && at < size; i++) {
        if (dims[i] < 0)
            at += (size_t)snprintf(buf + at, size - at, i ? ", N" : "N");
        else
            at += (size_t)snprintf(buf + at, size - at, i ? ", %" PRId64 : "%" PRId64, dims[i]);
    }
    if (at < size)
        snprintf(buf + at, size - at, "]");
    return buf;
}

/* The array of samples: the input's name, one of the usual names, or the only array. */
static int find_data(const bw_npy_file *f, const char *input_name)
{
    const char *const names[] = {input_name, "x", "images", "data"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        int at = names[i] ? bw_npy_find(f, names[i]) : -1;
        if (at >= 0)
            return at;
    }
    return bw_npy_array_count(f) == 1 ? 0 : -1;
}

static bw_status read_labels(bw_dataset *ds, bw_error *err)
{
    int index = bw_npy_find(ds->file, "y");
    if (index < 0)
        index = bw_npy_find(ds->file, "labels");
    if (index < 0 || index == ds->data)
        return BW_OK;
    bw_npy_header h;
    bw_status status = bw_npy_array_header(ds->file, index, &h, err);
    if (status)
        return status;
    const char *name = bw_npy_array_name(ds->file, index);
    if (h.rank < 1 || h.dims[0] != ds->count || h.count != (uint64_t)ds->count) {
        char shape[200];
        return bw_fail(err, BW_INVALID_ARGUMENT, "%s: labels '%s' have shape %s, expected [%" PRId64 "]", ds->path,
                       name, shape_text(h.rank, h.dims, shape, sizeof shape), ds->count);
    }
    void *raw = malloc((size_t)h.count * (size_t)h.item + 1);
    ds->labels = malloc((size_t)h.count * sizeof *ds->labels + 1);
    if (!raw || !ds->labels)
        status = bw_fail(err, BW_NO_MEMORY, "%s: no memory for %" PRIu64 " labels", ds->path, h.count);
    if (!status)
        status = bw_npy_read(ds->file, index, 0, (size_t)h.count, raw, err);
    if (!status) {
        status = bw_npy_to_int64(&h, raw, (size_t)h.count, ds->labels, err);
        if (status)
            (void)bw_fail_context(err, status, "%s: labels '%s'", ds->path, name);
    }
    free(raw);
    ds->has_labels = !status;
    return status;
}

static bw_status open_arrays(bw_dataset *ds, const char *input_name, bw_error *err)
{
    bw_status status = bw_npy_open(ds->path, &ds->file, err);
    if (status)
        return status;
    ds->data = find_data(ds->file, input_name);
    if (ds->data < 0)
        return bw_fail(err, BW_NOT_FOUND, "%s: %d arrays, none named '%s', 'x', 'images' or 'data'", ds->path,
                       bw_npy_array_count(ds->file), input_name ? input_name : "");
    bw_npy_header *h = &ds->header;
    status = bw_npy_array_header(ds->file, ds->data, h, err);
    if (status)
        return status;
    int fits = h->rank == ds->rank;
    for (int i = 1; fits && i < ds->rank; i++)
        fits = h->dims[i] > 0 && (ds->dims[i] < 0 || h->dims[i] == ds->dims[i]);
    if (!fits) {
        char has[200], wants[200];
        return bw_fail(err, BW_INVALID_ARGUMENT, "%s: array '%s' has shape %s, input '%s' wants %s", ds->path,
                       bw_npy_array_name(ds->file, ds->data), shape_text(h->rank, h->dims, has, sizeof has),
                       input_name ? input_name : "", shape_text(ds->rank, ds->dims, wants, sizeof wants));
    }
    ds->count = h->dims[0];
    if (ds->count == 0)
        return bw_fail(err, BW_INVALID_ARGUMENT, "%s: array '%s' has no samples", ds->path,
                       bw_npy_array_name(ds->file, ds->data));
    memcpy(ds->dims, h->dims, sizeof ds->dims);
    return read_labels(ds, err);
}

static bw_status open_pictures(bw_dataset *ds, const bw_preprocess *preprocess, const char *input_name, bw_error *err)
{
    if (!preprocess)
        return bw_fail(err, BW_INVALID_ARGUMENT,
                       "%s: pictures need a pre-processing, and the model records none: quantize it with --preprocess, "
                       "or give a .npz file",
                       ds->path);
    bw_status status = bw_preprocess_check(preprocess, input_name ? input_name : "", ds->rank, ds->dims, err);
    if (!status)
        status = bw_dir_scan(ds->path, &ds->pictures, err);
    if (status)
        return status;
    ds->preprocess = *preprocess;
    ds->count = ds->pictures.count;
    for (int64_t i = 0; i < ds->count; i++)
        ds->has_labels |= ds->pictures.entries[i].label >= 0;
    return BW_OK;
}

bw_status bw_dataset_open(const char *path, const bw_preprocess *preprocess, const char *input_name, int rank,
                          const int64_t *dims, bw_dataset **out, bw_error *err)
{
    *out = NULL;
    if (rank < 1 || rank > BW_RANK_MAX)
        return bw_fail(err, BW_INVALID_ARGUMENT, "input '%s' has rank %d, data sets feed ranks 1 to %d",
                       input_name ? input_name : "", rank, BW_RANK_MAX);
    struct stat st;
    if (stat(path, &st))
        return bw_fail(err,
                       errno == EACCES   ? BW_PERMISSION
                       : errno == ENOENT ? BW_NOT_FOUND
                                         : BW_IO,
                       "%s: %s", path, strerror(errno));
    bw_dataset *ds = calloc(1, sizeof *ds);
    if (!ds || !(ds->path = strdup(path))) {
        free(ds);
        return bw_fail(err, BW_NO_MEMORY, "%s: no memory for a data set", path);
    }
    ds->rank = rank;
    memcpy(ds->dims, dims, (size_t)rank * sizeof *dims);
    ds->dims[0] = -1;
    bw_status status =
        S_ISDIR(st.st_mode) ? open_pictures(ds, preprocess, input_name, err) : open_arrays(ds, input_name, err);
    ds->sample = 1;
    for (int i = 1; i < rank && !status; i++) {
        if (__builtin_mul_overflow(ds->sample, ds->dims[i], &ds->sample) || ds->sample > INT64_MAX / 4)
            status = bw_fail(err, BW_INVALID_ARGUMENT, "%s: a sample is larger than memory", path);
    }
    if (status) {
        bw_dataset_close(ds);
        return status;
    }
    *out = ds;
    return BW_OK;
}

int64_t bw_dataset_count(const bw_dataset *ds)
{
    return ds->count;
}

int bw_dataset_has_labels(const bw_dataset *ds)
{
    return ds->has_labels;
}

bw_status bw_dataset_set_classes(bw_dataset *ds, const char *const *names, int64_t count, bw_error *err)
{
    const char *last = NULL; /* sorted pictures come in runs of one label: look each up once */
    int64_t found = -1;
    for (int64_t i = 0; i < ds->pictures.count; i++) {
        bw_dir_entry *e = &ds->pictures.entries[i];
        if (!e->label_text)
            continue;
        if (!last || strcmp(last, e->label_text) != 0) {
            last = e->label_text;
            found = -1;
            for (int64_t k = 0; k < count && found < 0; k++)
                found = names[k] && strcmp(names[k], last) == 0 ? k : -1;
            if (found < 0)
                found = bw_label_number(last);
            if (found < 0)
                return bw_fail(err, BW_NOT_FOUND,
                               "%s: label '%s' of picture '%s' is neither a class of the model nor a number", ds->path,
                               last, e->name);
        }
        e->label = found;
        ds->has_labels = 1;
    }
    return BW_OK;
}

const char *bw_dataset_name(bw_dataset *ds, int64_t index)
{
    if (index < 0 || index >= ds->count)
        return "";
    if (!ds->file)
        return ds->pictures.entries[index].name;
    snprintf(ds->name, sizeof ds->name, "%s[%" PRId64 "]", ds->path, index);
    return ds->name;
}

static bw_status read_picture(bw_dataset *ds, int64_t index, float *out, bw_error *err)
{
    const char *name = ds->pictures.entries[index].name;
    char full[8192];
    if (snprintf(full, sizeof full, "%s/%s", ds->path, name) >= (int)sizeof full)
        return bw_fail(err, BW_INVALID_ARGUMENT, "%s: path too long", name);
    void *bytes;
    size_t size;
    bw_status status = bw_file_read(full, PICTURE_FILE_MAX, &bytes, &size, err);
    if (status)
        return status;
    status = bw_preprocess_input(&ds->preprocess, ds->rank, ds->dims, bytes, size, out, err);
    free(bytes);
    return status ? bw_fail_context(err, status, "%s", full) : BW_OK;
}

static bw_status read_elements(bw_dataset *ds, int64_t first, int64_t count, float *out, bw_error *err)
{
    const bw_npy_header *h = &ds->header;
    size_t n = (size_t)(count * ds->sample);
    uint64_t at = (uint64_t)first * (uint64_t)ds->sample;
    bw_status status;
    if (h->kind == 'f' && h->item == 4 && !h->swap) {
        status = bw_npy_read(ds->file, ds->data, at, n, out, err);
    } else {
        void *raw = malloc(n * (size_t)h->item);
        if (!raw)
            return bw_fail(err, BW_NO_MEMORY, "%s: no memory for %zu numbers", ds->path, n);
        status = bw_npy_read(ds->file, ds->data, at, n, raw, err);
        if (!status)
            bw_npy_to_float(h, raw, n, out);
        free(raw);
    }
    for (size_t i = 0; i < n && !status; i++) {
        if (!isfinite(out[i]))
            status = bw_fail(err, BW_NOT_FINITE, "%s: element %" PRIu64 " is %g, expected finite numbers",
                             bw_dataset_name(ds, first + (int64_t)(i / (uint64_t)ds->sample)),
                             (uint64_t)i % (uint64_t)ds->sample, (double)out[i]);
    }
    return status;
}

bw_status bw_dataset_read(bw_dataset *ds, int64_t first, int64_t count, bw_array *batch, int64_t *labels, bw_error *err)
{
    memset(batch, 0, sizeof *batch);
    if (first < 0 || count < 1 || first > ds->count || count > ds->count - first)
        return bw_fail(err, BW_OUT_OF_RANGE, "%s: samples %" PRId64 " to %" PRId64 " of %" PRId64, ds->path, first,
                       first + count, ds->count);
    int64_t dims[BW_RANK_MAX];
    memcpy(dims, ds->dims, sizeof dims);
    dims[0] = count;
    bw_status status = bw_array_alloc(batch, BW_F32, ds->rank, dims, err);
    if (status)
        return status;
    if (ds->file)
        status = read_elements(ds, first, count, batch->data, err);
    for (int64_t i = 0; !ds->file && i < count && !status; i++)
        status = read_picture(ds, first + i, (float *)batch->data + i * ds->sample, err);
    if (status) {
        bw_array_free(batch);
        return status;
    }
    for (int64_t i = 0; labels && i < count; i++)
        labels[i] = ds->labels ? ds->labels[first + i] : ds->file ? -1 : ds->pictures.entries[first + i].label;
    return BW_OK;
}
