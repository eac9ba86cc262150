/* SPDX-License-Identifier: Apache-2.0 */
/* Tensors as they arrive: see service/tensor.h. */
#include "service/tensor.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/formats.h"

static const bw_element_traits elements[] = {
#define ROW(name, size, kserve, tf, number) {BW_ELEMENT_##name, size, kserve, tf, number},
    BW_ELEMENT_LIST(ROW)
#undef ROW
};
#define ELEMENT_COUNT (sizeof elements / sizeof elements[0])

const bw_element_traits *bw_element_get(bw_element element)
{
    return element > BW_ELEMENT_NONE && element < BW_ELEMENT_LIMIT ? &elements[element - 1] : NULL;
}

const bw_element_traits *bw_element_of_tf(int number)
{
    for (size_t i = 0; i < ELEMENT_COUNT; i++) {
        if (elements[i].tf_number == number)
            return &elements[i];
    }
    return NULL;
}

const bw_element_traits *bw_element_of_kserve(const char *name)
{
    for (size_t i = 0; i < ELEMENT_COUNT; i++) {
        if (!strcmp(elements[i].kserve, name))
            return &elements[i];
    }
    return NULL;
}

const bw_element_traits *bw_element_of_dtype(bw_dtype dtype)
{
    switch (dtype) {
    case BW_F32:
        return bw_element_get(BW_ELEMENT_F32);
    case BW_F64:
        return bw_element_get(BW_ELEMENT_F64);
    case BW_F16:
        return bw_element_get(BW_ELEMENT_F16);
    case BW_I64:
        return bw_element_get(BW_ELEMENT_I64);
    case BW_I32:
        return bw_element_get(BW_ELEMENT_I32);
    case BW_I8:
        return bw_element_get(BW_ELEMENT_I8);
    case BW_U8:
        return bw_element_get(BW_ELEMENT_U8);
    case BW_BOOL:
        return bw_element_get(BW_ELEMENT_BOOL);
    case BW_BYTES:
    case BW_DTYPE_NONE:
        return NULL;
    }
    return NULL;
}

/* --- values ----------------------------------------------------------------------------------------------------- */

#define STEP 32 /* elements converted at once */

static inline float float_of(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint32_t bits_of(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

/* Without branches and subnormal numbers, so that compilers make vectors of it. */
static inline float half_value(uint16_t bits)
{
    const uint32_t sign = (uint32_t)(bits & 0x8000) << 16, rest = (uint32_t)(bits & 0x7fff) << 13;
    const uint32_t is_small = -(uint32_t)(rest < 0x00800000),
                   is_infinite = -(uint32_t)(rest >= 0x0f800000); /* or NaN */
    const uint32_t small = bits_of(float_of(rest + 0x38800000) - 0x1p-14f);
    const uint32_t other = rest + 0x38000000 + (is_infinite & 0x38000000); /* exponent 31 becomes 255 */
    return float_of(sign | (small & is_small) | (other & ~is_small));
}

/* One aligned piece of `n` elements. The host is little-endian, as the wire is. */
static void convert_piece(bw_element element, const void *from, size_t n, float *restrict out)
{
    /* Compilers make vectors of loops of known length. */
#define EACH(type, expression)                                                                                         \
    do {                                                                                                               \
        const type *restrict v = from;                                                                                 \
        size_t i = 0;                                                                                                  \
        for (size_t end = STEP; end <= n; end += STEP)                                                                 \
            for (size_t k = 0; k < STEP; k++, i++)                                                                     \
                out[i] = (float)(expression);                                                                          \
        for (; i < n; i++)                                                                                             \
            out[i] = (float)(expression);                                                                              \
    } while (0)
    switch (element) {
    case BW_ELEMENT_F32:
        memcpy(out, from, n * sizeof *out);
        break;
    case BW_ELEMENT_F64:
        EACH(double, v[i]);
        break;
    case BW_ELEMENT_I32:
        EACH(int32_t, v[i]);
        break;
    case BW_ELEMENT_U8:
        EACH(uint8_t, v[i]);
        break;
    case BW_ELEMENT_I16:
        EACH(int16_t, v[i]);
        break;
    case BW_ELEMENT_I8:
        EACH(int8_t, v[i]);
        break;
    case BW_ELEMENT_I64:
        EACH(int64_t, v[i]);
        break;
    case BW_ELEMENT_BOOL:
        EACH(uint8_t, v[i] != 0);
        break;
    case BW_ELEMENT_BF16:
        EACH(uint16_t, float_of((uint32_t)v[i] << 16));
        break;
    case BW_ELEMENT_U16:
        EACH(uint16_t, v[i]);
        break;
    case BW_ELEMENT_F16:
        EACH(uint16_t, half_value(v[i]));
        break;
    case BW_ELEMENT_U32:
        EACH(uint32_t, v[i]);
        break;
    case BW_ELEMENT_U64:
        EACH(uint64_t, v[i]);
        break;
    case BW_ELEMENT_NONE:
    case BW_ELEMENT_BYTES:
    case BW_ELEMENT_LIMIT:
        break;
    }
#undef EACH
}

/* Narrows values that arrived in 32 bits. Returns the index of the first that does not fit, or n. */
static size_t narrow_piece(bw_element element, const int64_t *wide, size_t n, void *to)
{
    static const struct {
        bw_element element;
        int64_t low, high;
    } ranges[] = {
        {BW_ELEMENT_I8, -128, 127},      {BW_ELEMENT_U8, 0, 255},
        {BW_ELEMENT_I16, -32768, 32767}, {BW_ELEMENT_U16, 0, 65535},
        {BW_ELEMENT_F16, 0, 65535},      {BW_ELEMENT_BF16, 0, 65535},
        {BW_ELEMENT_BOOL, 0, 1},         {BW_ELEMENT_I32, INT32_MIN, INT32_MAX},
        {BW_ELEMENT_U32, 0, UINT32_MAX},
    };
    size_t size = elements[element - 1].size;
    int64_t low = 0, high = -1;
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        if (ranges[i].element == element) {
            low = ranges[i].low;
            high = ranges[i].high;
        }
    }
    for (size_t i = 0; i < n; i++) {
        if (wide[i] < low || wide[i] > high)
            return i;
        memcpy((uint8_t *)to + i * size, &wide[i], size);
    }
    return n;
}

bw_status bw_tensor_open(bw_tensor_reader *r, bw_element element, bw_storage storage, bw_cursor values, int repeat,
                         size_t count, const char *name, bw_error *err)
{
    const bw_element_traits *t = bw_element_get(element);
    size_t size = storage == BW_STORAGE_SAME ? t->size : 4;
    size_t have = size ? values.left / size : 0;
    if (!size || values.left % size || (have != count && !(repeat && have && have < count)))
        return bw_fail(err, BW_INVALID_ARGUMENT,
                       "tensor '%.100s': %zu bytes of %s data, its shape needs %zu values of %zu bytes: send the whole "
                       "tensor, row-major and little-endian",
                       name, values.left, t->kserve, count, size);
    *r = (bw_tensor_reader){
        .element = element, .storage = storage, .values = values, .have = have, .count = count, .name = name};
    return BW_OK;
}

/* For shared memory that is not mapped. Two pages, read along page borders, cost the kernel the least for a byte, and
 * the windows of a picture's planes stay in the first-level cache with what they are copied to. */
#define PAGE         4096u
#define WINDOW_BYTES (2 * PAGE)
#define WINDOWS      4

struct bw_tensor_window {
    uint64_t begin, end; /* of the tensor, bytes */
    _Alignas(64) uint8_t bytes[WINDOW_BYTES];
};

bw_status bw_tensor_open_shared(bw_tensor_reader *r, bw_element element, const bw_shared_range *values, size_t count,
                                const char *name, bw_error *err)
{
    bw_slice none = {NULL, 0};
    bw_cursor as_if = bw_cursor_over(&none, 1);
    as_if.left = values->size;
    bw_status status = bw_tensor_open(r, element, BW_STORAGE_SAME, as_if, 0, count, name, err);
    if (status)
        return status;
    r->shared = *values;
    if (bw_shared_is_mapped(values))
        return BW_OK;
    r->windows = aligned_alloc(64, WINDOWS * sizeof *r->windows);
    if (!r->windows)
        return bw_fail(err, BW_NO_MEMORY, "out of memory for input '%.100s': try again later", name);
    for (unsigned i = 0; i < WINDOWS; i++)
        r->windows[i].begin = r->windows[i].end = 0;
    return BW_OK;
}

void bw_tensor_close(bw_tensor_reader *r)
{
    free(r->windows);
    r->windows = NULL;
}

/* The window that holds byte `at`, read if there is none: then the one whose turn it is. */
static bw_status find_window(bw_tensor_reader *r, uint64_t at, bw_tensor_window **window, bw_error *err)
{
    for (unsigned i = 0; i < WINDOWS; i++) {
        *window = &r->windows[i];
        if (at >= (*window)->begin && at < (*window)->end)
            return BW_OK;
    }
    r->oldest = (r->oldest + 1) % WINDOWS;
    bw_tensor_window *w = *window = &r->windows[r->oldest];
    uint64_t place = bw_shared_place(&r->shared), page = (place + at) / PAGE * PAGE;
    uint64_t begin = page > place ? page - place : 0, end = page - place + WINDOW_BYTES;
    if (end > r->shared.size)
        end = r->shared.size;
    w->begin = w->end = 0;
    bw_status status = bw_shared_read(&r->shared, begin, w->bytes, (size_t)(end - begin), err);
    if (!status) {
        w->begin = begin;
        w->end = end;
    }
    return status;
}

static bw_status copy_shared(bw_tensor_reader *r, uint64_t at, void *to, size_t size, bw_error *err)
{
    if (!r->windows)
        return bw_shared_read(&r->shared, at, to, size, err);
    for (size_t done = 0, here; done < size; done += here) {
        bw_tensor_window *w;
        bw_status status = find_window(r, at + done, &w, err);
        if (status)
            return status;
        here = (size_t)(w->end - (at + done));
        if (here > size - done)
            here = size - done;
        memcpy((uint8_t *)to + done, w->bytes + (at + done - w->begin), here);
    }
    return BW_OK;
}

/* A cursor at value `first`, from the nearest place before it, and that place's mark, which is to be moved on. */
static unsigned find_mark(bw_tensor_reader *r, size_t first, size_t size, bw_cursor *c)
{
    const unsigned count = sizeof r->marks / sizeof r->marks[0];
    unsigned best = count;
    for (unsigned i = 0; i < count; i++) {
        size_t at = r->marks[i].at;
        if (at && at <= first && (best == count || at > r->marks[best].at))
            best = i;
    }
    size_t at = best < count ? r->marks[best].at : 0;
    *c = best < count ? r->marks[best].rest : r->values;
    bw_cursor_skip(c, (first - at) * size);
    if (best < count && at == first)
        return best;
    r->oldest = (r->oldest + 1) % count;
    return r->oldest;
}

static bw_status convert(bw_tensor_reader *r, bw_cursor *c, size_t first, size_t count, float *out, bw_error *err)
{
    const bw_element_traits *t = bw_element_get(r->element);
    size_t size = r->storage == BW_STORAGE_SAME ? t->size : 4;
    _Alignas(16) uint8_t piece[4096];
    int64_t wide[512];
    size_t step = r->storage == BW_STORAGE_SAME ? sizeof piece / size : 512;
    for (size_t at = 0; at < count; at += step) {
        size_t n = count - at < step ? count - at : step;
        bw_status status = BW_OK;
        if (r->shared.region)
            status = copy_shared(r, (first + at) * size, piece, n * size, err);
        else
            bw_cursor_copy(c, piece, n * size);
        if (status)
            return status;
        if (r->storage != BW_STORAGE_SAME) {
            for (size_t i = 0; i < n; i++) {
                uint32_t bits;
                memcpy(&bits, piece + i * 4, 4);
                wide[i] = r->storage == BW_STORAGE_I32 ? (int64_t)(int32_t)bits : (int64_t)bits;
            }
            size_t bad = narrow_piece(r->element, wide, n, piece);
            if (bad < n)
                return bw_fail(err, BW_INVALID_ARGUMENT,
                               "tensor '%.100s': value %lld at index %zu is out of %s's range", r->name,
                               (long long)wide[bad], first + at + bad, t->kserve);
        }
        convert_piece(r->element, piece, n, out + at);
    }
    return BW_OK;
}

bw_status bw_tensor_read(bw_tensor_reader *r, size_t first, size_t count, float *out, bw_error *err)
{
    size_t size = r->storage == BW_STORAGE_SAME ? bw_element_get(r->element)->size : 4;
    /* Values that were sent, then the last of them again and again. */
    size_t begin = first < r->have ? first : r->have - 1;
    size_t n = first >= r->have ? 1 : r->have - first < count ? r->have - first : count;
    if (!count)
        return BW_OK;
    if (r->shared.region) /* there is never less than the shape needs */
        return r->element == BW_ELEMENT_F32 ? copy_shared(r, first * size, out, count * size, err)
                                            : convert(r, NULL, first, count, out, err);
    bw_cursor c;
    unsigned mark = find_mark(r, begin, size, &c);
    if (r->element == BW_ELEMENT_F32 && r->storage == BW_STORAGE_SAME) {
        bw_cursor_copy(&c, out, n * sizeof *out);
    } else {
        bw_status status = convert(r, &c, begin, n, out, err);
        if (status)
            return status;
    }
    r->marks[mark].at = begin + n;
    r->marks[mark].rest = c;
    for (size_t i = n; i < count; i++)
        out[i] = out[n - 1];
    return BW_OK;
}

/* --- names and shapes ------------------------------------------------------------------------------------------- */

int bw_tensor_find(const bw_io *const *ios, int count, const char *name, const char *alias)
{
    for (int i = 0; i < count; i++) {
        if (!strcmp(ios[i]->name, name))
            return i;
    }
    size_t n = strlen(name);
    for (int i = 0; i < count && n > 2 && !strcmp(name + n - 2, ":0"); i++) {
        if (strlen(ios[i]->name) == n - 2 && !strncmp(ios[i]->name, name, n - 2))
            return i;
    }
    return count == 1 && alias && !strcmp(name, alias) ? 0 : -1;
}

void bw_tensor_list(const bw_io *const *ios, int count, char *text, size_t size)
{
    size_t n = 0;
    text[0] = 0;
    for (int i = 0; i < count; i++) {
        char shape[128];
        const bw_element_traits *t = bw_element_of_dtype(ios[i]->dtype);
        int wrote = snprintf(text + n, size - n, "%s'%s' %s %s", i ? ", " : "", ios[i]->name, t ? t->kserve : "?",
                             bw_io_shape_text(ios[i]->dims, ios[i]->rank, shape));
        if (wrote < 0 || (size_t)wrote >= size - n)
            return;
        n += (size_t)wrote;
    }
}

/* Would the dims fit with the channels moved from the end to the front, or the other way round? */
static int fits_transposed(const bw_io *io, const int64_t *dims, int rank)
{
    if (rank != 4 || io->rank != 4)
        return 0;
    int to_nchw = dims[3] == io->dims[1] && dims[1] == io->dims[2] && dims[2] == io->dims[3];
    int to_nhwc = dims[1] == io->dims[3] && dims[2] == io->dims[1] && dims[3] == io->dims[2];
    return to_nchw ? 1 : to_nhwc ? 2 : 0;
}

bw_status bw_tensor_check_shape(const bw_model *m, const bw_io *io, const int64_t *dims, int rank, bw_error *err)
{
    int ok = rank == io->rank;
    for (int i = 0; i < rank && ok; i++)
        ok = io->dims[i] < 0 ? dims[i] >= 1 : dims[i] == io->dims[i];
    if (ok && rank && dims[0] > 4096 && io->dims[0] < 0)
        return bw_fail(err, BW_INVALID_ARGUMENT, "tensor '%s': batch %lld, at most 4096: split the request", io->name,
                       (long long)dims[0]);
    if (ok)
        return BW_OK;
    char got[128], want[128];
    static const char *const hints[] = {"", ": that is NHWC, transpose it to NCHW",
                                        ": that is NCHW, transpose it to NHWC"};
    return bw_fail(err, BW_INVALID_ARGUMENT, "tensor '%s' of model '%s': shape %s, expected %s%s", io->name, m->name,
                   bw_io_shape_text(dims, rank, got), bw_io_shape_text(io->dims, io->rank, want),
                   hints[fits_transposed(io, dims, rank)]);
}
