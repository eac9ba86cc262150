/* SPDX-License-Identifier: Apache-2.0 */
/* Arrays of .npy and .npz files: one place for stored bytes and for streams that are inflated as they are read. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <zlib.h>

#include "hal/base.h"
#include "host/npy.h"
#include "host/npy_zip.h"

#define RELEASE_MIN 65536

typedef struct array {
    bw_npy_header header;
    int parsed;
    z_stream stream; /* of a deflated member; valid if `streaming` */
    int streaming;
    uint64_t fed;      /* packed bytes given to zlib */
    uint64_t position; /* bytes inflated, or for a stored member bytes summed up */
    uint32_t crc;      /* of those */
} array;

struct bw_npy_file {
    char *path;
    const uint8_t *bytes;
    size_t size;
    int mapped;
    bw_zip_member *members;
    array *arrays;
    int count;
};

static void stream_end(array *a)
{
    if (a->streaming)
        inflateEnd(&a->stream);
    a->streaming = 0;
}

void bw_npy_close(bw_npy_file *f)
{
    if (!f)
        return;
    for (int i = 0; f->arrays && i < f->count; i++)
        stream_end(&f->arrays[i]);
    free(f->arrays);
    bw_zip_free(f->members, f->count);
    free(f->path);
    if (f->mapped)
        bw_file_unmap(f->bytes, f->size);
    free(f);
}

static bw_status stream_begin(array *a, bw_error *err)
{
    stream_end(a);
    memset(&a->stream, 0, sizeof a->stream);
    if (inflateInit2(&a->stream, -MAX_WBITS) != Z_OK)
        return bw_fail(err, BW_NO_MEMORY, "no memory to inflate");
    a->streaming = 1;
    a->fed = a->position = 0;
    a->crc = 0;
    return BW_OK;
}

/* Inflates exactly n bytes. */
static bw_status inflate_some(const bw_zip_member *m, array *a, uint8_t *out, size_t n, bw_error *err)
{
    size_t done = 0;
    while (done < n) {
        uint64_t left = m->packed_size - a->fed;
        uInt in = left > (1u << 20) ? 1u << 20 : (uInt)left;
        uInt room = n - done > (1u << 30) ? 1u << 30 : (uInt)(n - done);
        a->stream.next_in = (Bytef *)m->data + a->fed;
        a->stream.avail_in = in;
        a->stream.next_out = out + done;
        a->stream.avail_out = room;
        int code = inflate(&a->stream, Z_NO_FLUSH);
        size_t got = room - a->stream.avail_out;
        a->fed += in - a->stream.avail_in;
        a->crc = (uint32_t)crc32_z(a->crc, out + done, got);
        a->position += got;
        done += got;
        if (code == Z_MEM_ERROR)
            return bw_fail(err, BW_NO_MEMORY, "no memory to inflate");
        if (code != Z_OK && code != Z_STREAM_END)
            return bw_fail(err, BW_CORRUPT, "deflated data is damaged after %" PRIu64 " bytes", a->position);
        if (done < n && (code == Z_STREAM_END || (got == 0 && a->fed == m->packed_size)))
            return bw_fail(err, BW_CORRUPT, "deflated data ends after %" PRIu64 " of %" PRIu64 " bytes", a->position,
                           m->size);
    }
    return BW_OK;
}

static bw_status check_crc(const bw_zip_member *m, const array *a, bw_error *err)
{
    if (a->position != m->size || a->crc == m->crc)
        return BW_OK;
    return bw_fail(err, BW_CHECKSUM, "CRC-32 is %08x, the archive says %08x: the file is damaged, copy it again",
                   a->crc, m->crc);
}

static bw_status read_deflated(const bw_zip_member *m, array *a, uint64_t at, uint8_t *out, size_t n, bw_error *err)
{
    bw_status status = BW_OK;
    if (!a->streaming || at < a->position)
        status = stream_begin(a, err);
    while (!status && a->position < at) {
        uint8_t skipped[16384];
        uint64_t gap = at - a->position;
        status = inflate_some(m, a, skipped, gap < sizeof skipped ? (size_t)gap : sizeof skipped, err);
    }
    if (!status)
        status = inflate_some(m, a, out, n, err);
    if (status) {
        stream_end(a); /* the next read starts afresh */
        return status;
    }
    return check_crc(m, a, err);
}

/* A stored member's sum follows the reader too, as long as it goes forward without gaps. */
static bw_status read_stored(const bw_zip_member *m, array *a, uint64_t at, uint8_t *out, size_t n, bw_error *err)
{
    memcpy(out, m->data + at, n);
    if (at > a->position || at + n <= a->position)
        return BW_OK;
    size_t known = (size_t)(a->position - at);
    a->crc = (uint32_t)crc32_z(a->crc, out + known, n - known);
    a->position = at + n;
    return check_crc(m, a, err);
}

/* Bytes of array `index`, from the start of its .npy file on. The range is inside of the member. */
static bw_status read_bytes(bw_npy_file *f, int index, uint64_t at, uint8_t *out, size_t n, bw_error *err)
{
    if (n == 0)
        return BW_OK;
    if (!f->members) {
        memcpy(out, f->bytes + at, n);
        return BW_OK;
    }
    const bw_zip_member *m = &f->members[index];
    return (m->deflated ? read_deflated : read_stored)(m, &f->arrays[index], at, out, n, err);
}

static bw_status fail_array(const bw_npy_file *f, int index, bw_status status, bw_error *err)
{
    if (!f->members)
        return bw_fail_context(err, status, "%s", f->path);
    return bw_fail_context(err, status, "%s: array '%s'", f->path, f->members[index].name);
}

static bw_status open_bytes(const char *path, const void *bytes, size_t size, int mapped, bw_npy_file **out,
                            bw_error *err)
{
    *out = NULL;
    bw_npy_file *f = calloc(1, sizeof *f);
    if (!f || !(f->path = strdup(path))) {
        free(f);
        if (mapped)
            bw_file_unmap(bytes, size);
        return bw_fail(err, BW_NO_MEMORY, "%s: no memory to open it", path);
    }
    f->bytes = bytes;
    f->size = size;
    f->mapped = mapped;
    bw_status status = BW_OK;
    if (size >= 2 && memcmp(bytes, "PK", 2) == 0) {
        status = bw_zip_list(bytes, size, &f->members, &f->count, err);
        if (status)
            (void)bw_fail_context(err, status, "%s", path);
    } else if (size >= 6 && memcmp(bytes, "\x93NUMPY", 6) == 0) {
        f->count = 1;
    } else {
        status = bw_fail(err, BW_CORRUPT, "%s: %zu bytes that are neither a .npy nor a .npz file", path, size);
    }
    if (!status && !(f->arrays = calloc((size_t)f->count + 1, sizeof *f->arrays)))
        status = bw_fail(err, BW_NO_MEMORY, "%s: no memory for %d arrays", path, f->count);
    for (int i = 0; !status && f->members && i < f->count; i++) {
        char *name = f->members[i].name;
        size_t n = strlen(name);
        if (n > 4 && strcmp(name + n - 4, ".npy") == 0)
            name[n - 4] = 0;
    }
    if (status) {
        bw_npy_close(f);
        return status;
    }
    *out = f;
    return BW_OK;
}

bw_status bw_npy_open_bytes(const char *name, const void *bytes, size_t size, bw_npy_file **file, bw_error *err)
{
    return open_bytes(name, bytes, size, 0, file, err);
}

bw_status bw_npy_open(const char *path, bw_npy_file **file, bw_error *err)
{
    const void *bytes;
    size_t size;
    *file = NULL;
    bw_status status = bw_file_map(path, &bytes, &size, err);
    return status ? status : open_bytes(path, bytes, size, 1, file, err);
}

int bw_npy_array_count(const bw_npy_file *f)
{
    return f->count;
}

const char *bw_npy_array_name(const bw_npy_file *f, int index)
{
    return f->members ? f->members[index].name : "";
}

int bw_npy_find(const bw_npy_file *f, const char *name)
{
    for (int i = 0; i < f->count; i++) {
        if (strcmp(bw_npy_array_name(f, i), name) == 0)
            return i;
    }
    return -1;
}

bw_status bw_npy_array_header(bw_npy_file *f, int index, bw_npy_header *header, bw_error *err)
{
    array *a = &f->arrays[index];
    uint64_t size = f->members ? f->members[index].size : f->size;
    bw_status status = BW_OK;
    if (!a->parsed) {
        /* A header says its own length; nearly all have 128 bytes, so ask for little first. */
        uint8_t *start = malloc(BW_NPY_HEADER_MAX);
        if (!start)
            return bw_fail(err, BW_NO_MEMORY, "%s: no memory for a header", f->path);
        size_t n = size < BW_NPY_HEADER_MAX ? (size_t)size : BW_NPY_HEADER_MAX;
        size_t first = n < 12 ? n : 12;
        status = read_bytes(f, index, 0, start, first, err);
        if (!status && first == 12) {
            size_t length = (size_t)start[8] | (size_t)start[9] << 8;
            length += start[6] == 1 ? 10 : 12;
            n = length < n ? length : n;
            if (n > first)
                status = read_bytes(f, index, first, start + first, n - first, err);
        }
        if (!status)
            status = bw_npy_parse(start, n, &a->header, err);
        free(start);
        if (!status && (a->header.offset > size || a->header.count * (uint64_t)a->header.item > size ||
                        a->header.count * (uint64_t)a->header.item != size - a->header.offset))
            status = bw_fail(err, BW_CORRUPT,
                             "shape wants %" PRIu64 " bytes of data, %" PRIu64 " are there: truncated, copy it again",
                             a->header.count * (uint64_t)a->header.item, size - a->header.offset);
        if (status)
            return fail_array(f, index, status, err);
        a->parsed = 1;
    }
    *header = a->header;
    return BW_OK;
}

bw_status bw_npy_read(bw_npy_file *f, int index, uint64_t first, size_t n, void *out, bw_error *err)
{
    bw_npy_header h;
    bw_status status = bw_npy_array_header(f, index, &h, err);
    if (status)
        return status;
    if (first > h.count || n > h.count - first)
        return bw_fail(err, BW_OUT_OF_RANGE, "%s: elements %" PRIu64 " to %" PRIu64 " of %" PRIu64, f->path, first,
                       first + n, h.count);
    status = read_bytes(f, index, h.offset + first * (uint64_t)h.item, out, n * (size_t)h.item, err);
    if (f->mapped && n * (size_t)h.item >= RELEASE_MIN) /* a long data set goes by without staying */
        bw_file_release_pages(f->bytes, f->size);
    return status ? fail_array(f, index, status, err) : BW_OK;
}
