/* SPDX-License-Identifier: Apache-2.0 */
/* TensorProto to bw_array: raw, typed and external data, conversions, checks. */
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "quantize/import_internal.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "raw_data is little-endian and used in place");

/* --- allocator of the parser ------------------------------------------------------------------------------------ */

#define BIG_BLOCK 4096u
#define DROP_STEP (4u << 20)

static void *proto_alloc(void *user, size_t size)
{
    bw_proto_allocator *a = user;
    if (size > a->left) {
        a->exhausted = 1;
        return NULL;
    }
    a->left -= size;
    if (size < BIG_BLOCK)
        return malloc(size ? size : 1);
    /* Big blocks are copies of what lies in the file, in its order: so much, at least, has been read. Were it less, it
     * would only be read again. */
    if (a->mapping && a->copied - a->dropped >= DROP_STEP) {
        size_t done = a->copied < a->mapped ? a->copied : a->mapped;
        bw_file_release_pages((const char *)a->mapping + a->dropped, done - a->dropped);
        a->dropped = done;
    }
    a->copied += size;
    return aligned_alloc(64, (size + 63) / 64 * 64);
}

static void proto_free(void *user, void *p)
{
    (void)user;
    free(p);
}

void bw_proto_allocator_init(bw_proto_allocator *a, const void *mapping, size_t message_size)
{
    *a = (bw_proto_allocator){.mapping = mapping, .mapped = mapping ? message_size : 0};
    a->base = (ProtobufCAllocator){.alloc = proto_alloc, .free = proto_free, .allocator_data = a};
    /* Packed varints grow eightfold, empty messages more: a hostile file may not ask for more than this. */
    a->left = UINT64_C(256) << 20;
    a->left += (uint64_t)message_size * 12;
}

/* --- element types ---------------------------------------------------------------------------------------------- */

typedef struct type_row {
    const char *name;
    unsigned bytes; /* in raw_data */
    bw_dtype dtype; /* what it becomes, NONE: unsupported */
} type_row;

static const type_row types[] = {
    [BW_ONNX_FLOAT] = {"float", 4, BW_F32},    [BW_ONNX_UINT8] = {"uint8", 1, BW_U8},
    [BW_ONNX_INT8] = {"int8", 1, BW_I8},       [BW_ONNX_UINT16] = {"uint16", 2, BW_I32},
    [BW_ONNX_INT16] = {"int16", 2, BW_I32},    [BW_ONNX_INT32] = {"int32", 4, BW_I32},
    [BW_ONNX_INT64] = {"int64", 8, BW_I64},    [BW_ONNX_STRING] = {"string", 0, BW_DTYPE_NONE},
    [BW_ONNX_BOOL] = {"bool", 1, BW_BOOL},     [BW_ONNX_FLOAT16] = {"float16", 2, BW_F16},
    [BW_ONNX_DOUBLE] = {"double", 8, BW_F64},  [BW_ONNX_UINT32] = {"uint32", 4, BW_I64},
    [BW_ONNX_UINT64] = {"uint64", 8, BW_I64},  [14] = {"complex64", 0, BW_DTYPE_NONE},
    [15] = {"complex128", 0, BW_DTYPE_NONE},   [BW_ONNX_BFLOAT16] = {"bfloat16", 2, BW_F32},
    [17] = {"float8e4m3fn", 0, BW_DTYPE_NONE}, [18] = {"float8e4m3fnuz", 0, BW_DTYPE_NONE},
    [19] = {"float8e5m2", 0, BW_DTYPE_NONE},   [20] = {"float8e5m2fnuz", 0, BW_DTYPE_NONE},
    [21] = {"uint4", 0, BW_DTYPE_NONE},        [22] = {"int4", 0, BW_DTYPE_NONE},
};

static const type_row *type_find(int32_t elem_type)
{
    if (elem_type < 1 || (size_t)elem_type >= sizeof types / sizeof types[0] || !types[elem_type].name)
        return NULL;
    return &types[elem_type];
}

bw_dtype bw_import_dtype(const bw_importer *im, int32_t elem_type)
{
    const type_row *t = type_find(elem_type);
    if (!t)
        return BW_DTYPE_NONE;
    if (im->narrow_floats && (t->dtype == BW_F16 || t->dtype == BW_F64))
        return BW_F32;
    return t->dtype;
}

const char *bw_import_type_name(int32_t elem_type)
{
    const type_row *t = type_find(elem_type);
    return t ? t->name : "unknown";
}

/* --- external data ---------------------------------------------------------------------------------------------- */

static int has_parent_component(const char *path)
{
    for (const char *p = path; *p;) {
        size_t n = strcspn(p, "/\\");
        if (n == 2 && p[0] == '.' && p[1] == '.')
            return 1;
        p += n;
        p += *p != 0;
    }
    return 0;
}

/* The location's file, resolved, inside the model's own directory: a model may not read elsewhere, not by a symbolic
 * link either. Caller frees *resolved. */
static bw_status external_path(const bw_importer *im, const char *location, const char *what, char **resolved,
                               bw_error *err)
{
    if (!location[0] || location[0] == '/' || location[0] == '\\' || has_parent_component(location))
        return bw_fail(err, BW_CORRUPT,
                       "%s: external data location '%s' must be a relative path inside the model's "
                       "directory",
                       what, location);
    const char *slash = strrchr(im->path, '/');
    size_t dir_length = slash ? (size_t)(slash - im->path) + 1 : 0;
    size_t length = dir_length + strlen(location) + 3;
    char *joined = malloc(length);
    if (!joined)
        return bw_fail(err, BW_NO_MEMORY, "%s: no memory for a path", what);
    snprintf(joined, length, "%.*s%s", (int)dir_length, im->path, location);
    char dir[PATH_MAX], file[PATH_MAX];
    char *parent = strndup(dir_length ? im->path : "./", dir_length ? dir_length : 2);
    int ok = parent && realpath(parent, dir);
    int found = ok && realpath(joined, file);
    free(parent);
    free(joined);
    if (!found)
        return bw_fail(err, BW_NOT_FOUND,
                       "%s: external data file '%s' is not in the model's directory: put it beside "
                       "the model",
                       what, location);
    size_t n = strlen(dir);
    if (strncmp(dir, file, n) || (n > 1 && file[n] != '/'))
        return bw_fail(err, BW_CORRUPT, "%s: external data file '%s' leads out of the model's directory", what,
                       location);
    *resolved = strdup(file);
    return *resolved ? BW_OK : bw_fail(err, BW_NO_MEMORY, "%s: no memory for a path", what);
}

static bw_status external_open(bw_importer *im, const char *location, const char *what, const bw_external_file **out,
                               bw_error *err)
{
    for (size_t i = 0; i < im->external_count; i++) {
        if (!strcmp(im->external[i].location, location)) {
            *out = &im->external[i];
            return BW_OK;
        }
    }
    char *resolved;
    bw_status st = external_path(im, location, what, &resolved, err);
    if (st)
        return st;
    bw_external_file f = {.location = strdup(location)};
    bw_external_file *grown = realloc(im->external, (im->external_count + 1) * sizeof *grown);
    if (grown)
        im->external = grown;
    if (!grown || !f.location)
        st = bw_fail(err, BW_NO_MEMORY, "%s: no memory for external data", what);
    else if ((st = bw_file_map(resolved, &f.bytes, &f.size, err)))
        bw_fail_context(err, st, "%s", what);
    free(resolved);
    if (st) {
        free(f.location);
        return st;
    }
    im->external[im->external_count] = f;
    *out = &im->external[im->external_count++];
    return BW_OK;
}

void bw_import_close_external(bw_importer *im)
{
    for (size_t i = 0; i < im->external_count; i++) {
        bw_file_unmap(im->external[i].bytes, im->external[i].size);
        free(im->external[i].location);
    }
    free(im->external);
    im->external = NULL;
    im->external_count = 0;
}

static int parse_u64(const char *text, uint64_t *v)
{
    *v = 0;
    if (!*text)
        return 0;
    for (; *text; text++) {
        if (*text < '0' || *text > '9' || *v > (UINT64_MAX - 9) / 10)
            return 0;
        *v = *v * 10 + (uint64_t)(*text - '0');
    }
    return 1;
}

static bw_status external_data(bw_importer *im, const BwOnnx__TensorProto *t, const char *what, uint64_t need,
                               const void **bytes, bw_error *err)
{
    if (!im->path)
        return bw_fail(err, BW_UNSUPPORTED, "%s: external data in a model from memory: import it from a file", what);
    const char *location = NULL;
    uint64_t offset = 0, length = need;
    for (size_t i = 0; i < t->n_external_data; i++) {
        const char *key = t->external_data[i]->key, *value = t->external_data[i]->value;
        int ok = 1;
        if (!strcmp(key, "location"))
            location = value;
        else if (!strcmp(key, "offset"))
            ok = parse_u64(value, &offset);
        else if (!strcmp(key, "length"))
            ok = parse_u64(value, &length);
        if (!ok)
            return bw_fail(err, BW_CORRUPT, "%s: external data %s '%s' is no number", what, key, value);
    }
    if (!location)
        return bw_fail(err, BW_CORRUPT, "%s: external data without a location", what);
    if (length != need)
        return bw_fail(err, BW_CORRUPT, "%s: external data of %llu bytes, its shape needs %llu", what,
                       (unsigned long long)length, (unsigned long long)need);
    const bw_external_file *f;
    bw_status st = external_open(im, location, what, &f, err);
    if (st)
        return st;
    if (offset > f->size || f->size - offset < need)
        return bw_fail(err, BW_CORRUPT,
                       "%s: bytes %llu to %llu of '%s', which has %llu: the file is truncated or not "
                       "of this model",
                       what, (unsigned long long)offset, (unsigned long long)(offset + need), location,
                       (unsigned long long)f->size);
    *bytes = need ? (const char *)f->bytes + offset : "";
    return BW_OK;
}

/* --- conversions ------------------------------------------------------------------------------------------------ */

static float half_to_float(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ffu;
    float f;
    if (exponent == 0) {
        f = ldexpf((float)mantissa, -24);
        return sign ? -f : f;
    }
    uint32_t bits =
        exponent == 31 ? sign | 0x7f800000u | mantissa << 13 : sign | (exponent + 112) << 23 | mantissa << 13;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* One element of raw little-endian data into dtype `to`. 0 if the value does not fit. */
static int convert_raw(int32_t from, const unsigned char *p, bw_dtype to, unsigned char *out)
{
    union {
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        uint64_t u64;
        double d;
        float f;
        int32_t i;
        int64_t l;
    } in, v;
    in.u64 = 0;
    memcpy(&in, p, types[from].bytes);
    switch (from) {
    case BW_ONNX_UINT16:
        v.i = in.u16;
        break;
    case BW_ONNX_INT16:
        v.i = in.i16;
        break;
    case BW_ONNX_UINT32:
        v.l = in.u32;
        break;
    case BW_ONNX_UINT64:
        if (in.u64 > INT64_MAX)
            return 0;
        v.l = (int64_t)in.u64;
        break;
    case BW_ONNX_FLOAT16:
        v.f = half_to_float(in.u16);
        break;
    case BW_ONNX_BFLOAT16:
        v.u32 = (uint32_t)in.u16 << 16;
        break;
    case BW_ONNX_DOUBLE:
        v.f = (float)in.d;
        if (isfinite(in.d) && !isfinite(v.f))
            return 0;
        break;
    default:
        return 0;
    }
    memcpy(out, &v, bw_dtype_size(to));
    return 1;
}

static bw_status check_finite(const bw_array *a, const char *what, bw_error *err)
{
    int64_t n = bw_array_count(a);
    for (int64_t i = 0; i < n; i++) {
        double v;
        if (a->dtype == BW_F32)
            v = ((const float *)a->data)[i];
        else if (a->dtype == BW_F64)
            v = ((const double *)a->data)[i];
        else if (a->dtype == BW_F16)
            v = half_to_float(((const uint16_t *)a->data)[i]);
        else
            return BW_OK;
        /* A single infinity is a legal limit of Clip or value of Pad; in weights it is damage. */
        if (isnan(v) || (isinf(v) && n > 1))
            return bw_fail(err, BW_NOT_FINITE,
                           "%s: %s at index %lld: the model is damaged or was not trained to the "
                           "end",
                           what, isnan(v) ? "NaN" : "infinity", (long long)i);
    }
    return BW_OK;
}

/* The typed field that holds elements of a type, as memory of `stride`-byte entries. */
static const void *typed_data(const BwOnnx__TensorProto *t, int32_t type, size_t *count, size_t *stride)
{
    switch (type) {
    case BW_ONNX_FLOAT:
        *count = t->n_float_data, *stride = 4;
        return t->float_data;
    case BW_ONNX_DOUBLE:
        *count = t->n_double_data, *stride = 8;
        return t->double_data;
    case BW_ONNX_INT64:
        *count = t->n_int64_data, *stride = 8;
        return t->int64_data;
    case BW_ONNX_UINT32:
    case BW_ONNX_UINT64:
        *count = t->n_uint64_data, *stride = 8;
        return t->uint64_data;
    default: /* the narrow integers, bool and the 16-bit floats' bits */
        *count = t->n_int32_data, *stride = 4;
        return t->int32_data;
    }
}

/* Takes over a block of the parser. */
static int steal(bw_array *out, void **block, size_t *size_field)
{
    if (out->bytes < BIG_BLOCK)
        return 0;
    out->data = *block;
    out->owned = 1;
    *block = NULL;
    *size_field = 0;
    return 1;
}

static bw_status fill(bw_importer *im, BwOnnx__TensorProto *t, const char *what, bw_array *out, bw_error *err)
{
    const type_row *row = type_find(t->data_type);
    bw_dtype dtype = out->dtype;
    int64_t n = bw_array_count(out);
    int same = dtype == row->dtype && t->data_type != BW_ONNX_BFLOAT16 && t->data_type != BW_ONNX_UINT64 &&
               bw_dtype_size(dtype) == row->bytes;
    const void *source = NULL;
    size_t stride = row->bytes;
    if (t->data_location == 1) {
        bw_status st = external_data(im, t, what, (uint64_t)n * row->bytes, &source, err);
        if (st)
            return st;
    } else if (t->raw_data.len ||
               (!t->n_float_data && !t->n_int32_data && !t->n_int64_data && !t->n_double_data && !t->n_uint64_data)) {
        if (t->raw_data.len != (uint64_t)n * row->bytes)
            return bw_fail(err, BW_CORRUPT, "%s: %zu bytes of data, its shape needs %llu", what, t->raw_data.len,
                           (unsigned long long)((uint64_t)n * row->bytes));
        if (same && steal(out, (void **)&t->raw_data.data, &t->raw_data.len))
            return BW_OK;
        source = t->raw_data.data;
    } else {
        size_t count;
        source = typed_data(t, t->data_type, &count, &stride);
        if (count != (uint64_t)n)
            return bw_fail(err, BW_CORRUPT, "%s: %zu elements of type %s, its shape needs %lld", what, count, row->name,
                           (long long)n);
        if (same && stride == row->bytes && t->data_type == BW_ONNX_FLOAT &&
            steal(out, (void **)&t->float_data, &t->n_float_data))
            return BW_OK;
    }
    bw_array a;
    bw_status st = bw_array_alloc(&a, dtype, out->rank, out->dims, err);
    if (st)
        return bw_fail_context(err, st, "%s", what);
    *out = a;
    const unsigned char *p = source;
    unsigned char *q = out->data;
    size_t size = bw_dtype_size(dtype);
    if (same && stride == row->bytes) {
        if (n)
            memcpy(q, p, (size_t)n * size);
    } else {
        for (int64_t i = 0; i < n; i++, p += stride, q += size) {
            if (same) /* typed fields are wider than the element, little-endian */
                memcpy(q, p, size);
            else if (!convert_raw(t->data_type, p, dtype, q))
                return bw_fail(err, BW_OUT_OF_RANGE, "%s: the %s at index %lld does not fit into %s", what, row->name,
                               (long long)i, bw_dtype_name(dtype));
        }
    }
    if (t->data_location == 1) /* two copies of the weights are one too many */
        bw_file_release_pages(source, (size_t)n * row->bytes);
    if (t->data_location != 1 && t->raw_data.len >= BIG_BLOCK) {
        free(t->raw_data.data);
        t->raw_data.data = NULL;
        t->raw_data.len = 0;
    }
    return BW_OK;
}

bw_status bw_import_tensor(bw_importer *im, BwOnnx__TensorProto *t, const char *what, bw_array *out, bw_error *err)
{
    memset(out, 0, sizeof *out);
    const type_row *row = type_find(t->data_type);
    if (!row || row->dtype == BW_DTYPE_NONE)
        return bw_fail(err, BW_UNSUPPORTED, "%s: element type %d (%s) is not supported: convert the model to float32",
                       what, t->data_type, bw_import_type_name(t->data_type));
    if (t->segment.len)
        return bw_fail(err, BW_UNSUPPORTED, "%s: segmented tensors are not supported: save the model again", what);
    if (t->n_dims > BW_RANK_MAX)
        return bw_fail(err, BW_UNSUPPORTED, "%s: rank %zu, at most %d is supported", what, t->n_dims, BW_RANK_MAX);
    if (t->data_location != 0 && t->data_location != 1)
        return bw_fail(err, BW_CORRUPT, "%s: data location %d, expected 0 or 1", what, t->data_location);
    uint64_t n = 1;
    int empty = 0;
    for (size_t i = 0; i < t->n_dims; i++) {
        int64_t d = t->dims[i];
        if (d < 0)
            return bw_fail(err, BW_CORRUPT, "%s: dimension %zu is %lld", what, i, (long long)d);
        empty |= d == 0;
        out->dims[i] = d;
    }
    for (size_t i = 0; i < t->n_dims && !empty; i++)
        if (__builtin_mul_overflow(n, (uint64_t)t->dims[i], &n) || n > (UINT64_C(1) << 56))
            return bw_fail(err, BW_CORRUPT, "%s: its dimensions multiply to more than any memory holds", what);
    if (empty)
        n = 0;
    out->rank = (int)t->n_dims;
    out->dtype = bw_import_dtype(im, t->data_type);
    uint64_t bytes = n * bw_dtype_size(out->dtype);
    if (bytes > im->limit - im->constants) {
        memset(out, 0, sizeof *out);
        return bw_fail(err, BW_EXHAUSTED, "%s: %llu bytes bring the constants over the limit of %llu", what,
                       (unsigned long long)bytes, (unsigned long long)im->limit);
    }
    im->constants += bytes;
    out->bytes = bytes;
    bw_status st = fill(im, t, what, out, err);
    if (!st) {
        if (out->dtype == BW_BOOL) /* any non-zero byte is true, but the executor may assume 0 and 1 */
            for (uint64_t i = 0; i < n; i++)
                ((unsigned char *)out->data)[i] = ((unsigned char *)out->data)[i] != 0;
        st = check_finite(out, what, err);
    }
    if (st) {
        if (out->owned)
            bw_array_free(out);
        memset(out, 0, sizeof *out);
    }
    return st;
}
