/* SPDX-License-Identifier: Apache-2.0 */
/* Writes .npy and .npz files. All shapes are known beforehand, so every byte's place is too: arrays are written where
 * they belong, the checksums are filled in at the end. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <zlib.h>

#include "hal/base.h"
#include "host/npy.h"

enum { LOCAL_SIZE = 30, LOCAL_EXTRA = 20, CENTRAL_SIZE = 46, CENTRAL_EXTRA = 28, END_SIZE = 22 };

typedef struct member {
    char name[260];                          /* with ".npy" */
    uint8_t header[BW_NPY_WRITE_HEADER_MAX]; /* the array's */
    size_t header_size;
    uint64_t local;      /* offset of the local header; unused in a .npy */
    uint64_t data, size; /* offset and bytes of the elements */
    uint64_t written;
    uint32_t crc; /* of header and elements so far */
} member;

struct bw_npy_writer {
    char *path, *target, *temporary; /* as named; without symbolic links; target.PID.tmp */
    int fd, zip, count;
    uint64_t directory; /* offset of the central directory */
    member *members;
};

static void free_writer(bw_npy_writer *w)
{
    if (w->fd >= 0)
        close(w->fd);
    free(w->path);
    free(w->target);
    free(w->temporary);
    free(w->members);
    free(w);
}

void bw_npy_abandon(bw_npy_writer *w)
{
    if (!w)
        return;
    if (w->fd >= 0)
        unlink(w->temporary);
    free_writer(w);
}

static bw_status write_at(const bw_npy_writer *w, uint64_t at, const void *bytes, size_t n, bw_error *err)
{
    const uint8_t *p = bytes;
    while (n) {
        ssize_t got = pwrite(w->fd, p, n, (off_t)at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return bw_fail_errno(err, "write", w->path, got ? errno : ENOSPC);
        p += got;
        at += (uint64_t)got;
        n -= (size_t)got;
    }
    return BW_OK;
}

/* Blanks up to a multiple of 64, as NumPy writes them. */
bw_status bw_npy_make_header(const bw_npy_spec *spec, uint8_t header[BW_NPY_WRITE_HEADER_MAX], size_t *header_size,
                             uint64_t *data_bytes, bw_error *err)
{
    if ((spec->dtype != BW_F32 && spec->dtype != BW_I64) || spec->rank < 0 || spec->rank > BW_RANK_MAX)
        return bw_fail(err, BW_INVALID_ARGUMENT, "array '%s' of %s, rank %d: expected fp32 or int64, rank 0 to %d",
                       spec->name, bw_dtype_name(spec->dtype), spec->rank, BW_RANK_MAX);
    char text[900];
    int at = snprintf(text, sizeof text, "{'descr': '%s', 'fortran_order': False, 'shape': (",
                      spec->dtype == BW_I64 ? "<i8" : "<f4");
    uint64_t size = bw_dtype_size(spec->dtype);
    for (int i = 0; i < spec->rank; i++) {
        at += snprintf(text + at, sizeof text - (size_t)at, "%" PRId64 "%s", spec->dims[i],
                       i + 1 < spec->rank ? ", "
                       : spec->rank == 1  ? ","
                                          : "");
        if (spec->dims[i] < 0 || __builtin_mul_overflow(size, (uint64_t)spec->dims[i], &size) ||
            size > (uint64_t)INT64_MAX / 4)
            return bw_fail(err, BW_INVALID_ARGUMENT, "array '%s' is too large to write", spec->name);
    }
    at += snprintf(text + at, sizeof text - (size_t)at, "), }");
    size_t length = ((size_t)at + 1 + 10 + 63) / 64 * 64 - 10;
    memcpy(header, "\x93NUMPY\x01\x00", 8);
    header[8] = (uint8_t)length;
    header[9] = (uint8_t)(length >> 8);
    memset(header + 10, ' ', length);
    memcpy(header + 10, text, (size_t)at);
    header[10 + length - 1] = '\n';
    *header_size = 10 + length;
    *data_bytes = size;
    return BW_OK;
}

static bw_status plan(bw_npy_writer *w, const bw_npy_spec *specs, bw_error *err)
{
    uint64_t at = 0;
    for (int i = 0; i < w->count; i++) {
        member *m = &w->members[i];
        size_t n = strlen(specs[i].name);
        if (n + 4 >= sizeof m->name)
            return bw_fail(err, BW_INVALID_ARGUMENT, "array name of %zu characters, at most 250 fit", n);
        snprintf(m->name, sizeof m->name, "%s.npy", specs[i].name);
        for (char *c = m->name; *c; c++) /* a '/' would make a folder of it */
            *c = *c == '/' || *c == '\\' ? '_' : *c;
        bw_status status = bw_npy_make_header(&specs[i], m->header, &m->header_size, &m->size, err);
        if (status)
            return status;
        m->crc = (uint32_t)crc32_z(0, m->header, m->header_size);
        m->local = at;
        if (w->zip)
            at += LOCAL_SIZE + strlen(m->name) + LOCAL_EXTRA;
        m->data = at + m->header_size;
        at = m->data + m->size;
    }
    w->directory = at;
    return BW_OK;
}

/* The file that will be replaced: a symbolic link stays one, a device or a directory is refused. */
static bw_status find_target(bw_npy_writer *w, bw_error *err)
{
    struct stat st;
    int exists = stat(w->path, &st) == 0;
    if (exists && !S_ISREG(st.st_mode))
        return bw_fail(err, BW_INVALID_ARGUMENT, "%s: is %s, expected the name of a file to write", w->path,
                       S_ISDIR(st.st_mode) ? "a directory" : "not a regular file");
    w->target = exists ? realpath(w->path, NULL) : strdup(w->path);
    if (!w->target)
        return bw_fail_errno(err, "write", w->path, errno);
    size_t size = strlen(w->target) + 32;
    w->temporary = malloc(size);
    if (!w->temporary)
        return bw_fail(err, BW_NO_MEMORY, "%s: no memory to write it", w->path);
    snprintf(w->temporary, size, "%s.%ld.tmp", w->target, (long)getpid());
    return BW_OK;
}

bw_status bw_npy_create(const char *path, const bw_npy_spec *specs, int count, bw_npy_writer **out, bw_error *err)
{
    *out = NULL;
    size_t length = strlen(path);
    int zip = length > 4 && strcmp(path + length - 4, ".npz") == 0;
    if (count < 1 || (!zip && count != 1))
        return bw_fail(err, BW_INVALID_ARGUMENT, "%s: %d arrays do not fit a .npy file: name it .npz", path, count);
    bw_npy_writer *w = calloc(1, sizeof *w);
    if (!w)
        return bw_fail(err, BW_NO_MEMORY, "%s: no memory to write it", path);
    w->fd = -1;
    w->zip = zip;
    w->count = count;
    w->path = strdup(path);
    w->members = calloc((size_t)count, sizeof *w->members);
    bw_status status = BW_OK;
    if (!w->path || !w->members)
        status = bw_fail(err, BW_NO_MEMORY, "%s: no memory to write it", path);
    if (!status)
        status = plan(w, specs, err);
    if (!status)
        status = find_target(w, err);
    if (!status) {
        w->fd = open(w->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (w->fd < 0)
            status = bw_fail_errno(err, "write", path, errno);
    }
    for (int i = 0; !status && i < count; i++)
        status = write_at(w, w->members[i].data - w->members[i].header_size, w->members[i].header,
                          w->members[i].header_size, err);
    if (status) {
        bw_npy_abandon(w);
        return status;
    }
    *out = w;
    return BW_OK;
}

bw_status bw_npy_append(bw_npy_writer *w, int index, const void *elements, size_t bytes, bw_error *err)
{
    member *m = &w->members[index];
    if (bytes > m->size - m->written)
        return bw_fail(err, BW_INTERNAL, "%s: %zu bytes more than array '%s' holds", w->path, bytes, m->name);
    m->crc = (uint32_t)crc32_z(m->crc, elements, bytes);
    bw_status status = write_at(w, m->data + m->written, elements, bytes, err);
    m->written += bytes;
    return status;
}

static uint8_t *put(uint8_t *p, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++)
        *p++ = (uint8_t)(v >> (8 * i));
    return p;
}

static uint32_t narrow(uint64_t v)
{
    return v >= 0xffffffffu ? 0xffffffffu : (uint32_t)v;
}

/* Version, flags, method, time, date and sizes: what local and central headers have in common. The date is the
 * earliest there is, so that equal content gives equal bytes. */
static uint8_t *put_common(uint8_t *p, const member *m, size_t extra)
{
    uint64_t size = m->header_size + m->size;
    p = put(p, 45, 2);
    p = put(p, 0, 2);
    p = put(p, 0, 2);
    p = put(p, 0, 2);
    p = put(p, 33, 2);
    p = put(p, m->crc, 4);
    p = put(p, narrow(size), 4);
    p = put(p, narrow(size), 4);
    p = put(p, strlen(m->name), 2);
    return put(p, extra, 2);
}

static bw_status write_local(const bw_npy_writer *w, const member *m, bw_error *err)
{
    uint8_t local[LOCAL_SIZE + sizeof m->name + LOCAL_EXTRA], *p = local;
    uint64_t size = m->header_size + m->size;
    p = put(p, 0x04034b50u, 4);
    p = put_common(p, m, LOCAL_EXTRA);
    memcpy(p, m->name, strlen(m->name));
    p += strlen(m->name);
    /* Always there, so that the place of the data never depends on the sizes; a private id where it says nothing. */
    p = put(p, narrow(size) == 0xffffffffu ? 1 : 0x5742, 2);
    p = put(p, 16, 2);
    p = put(p, size, 8);
    p = put(p, size, 8);
    return write_at(w, m->local, local, (size_t)(p - local), err);
}

static size_t put_central(const member *m, uint8_t *central)
{
    uint64_t size = m->header_size + m->size;
    int wide = narrow(size) == 0xffffffffu || narrow(m->local) == 0xffffffffu;
    uint8_t *p = put(central, 0x02014b50u, 4);
    p = put(p, 45, 2);
    p = put_common(p, m, wide ? CENTRAL_EXTRA : 0);
    p = put(p, 0, 2);
    p = put(p, 0, 2);
    p = put(p, 0, 2);
    p = put(p, 0, 4);
    /* With one number beyond 32 bits, all three go to the extra field. */
    if (wide) {
        memset(central + 20, 0xff, 8);
        p = put(p, 0xffffffffu, 4);
    } else {
        p = put(p, m->local, 4);
    }
    memcpy(p, m->name, strlen(m->name));
    p += strlen(m->name);
    if (wide) {
        p = put(p, 1, 2);
        p = put(p, 24, 2);
        p = put(p, size, 8);
        p = put(p, size, 8);
        p = put(p, m->local, 8);
    }
    return (size_t)(p - central);
}

static bw_status write_directory(const bw_npy_writer *w, bw_error *err)
{
    uint64_t at = w->directory;
    bw_status status = BW_OK;
    for (int i = 0; i < w->count && !status; i++) {
        const member *m = &w->members[i];
        uint8_t central[CENTRAL_SIZE + sizeof m->name + CENTRAL_EXTRA];
        size_t n = put_central(m, central);
        status = write_local(w, m, err);
        if (!status)
            status = write_at(w, at, central, n, err);
        at += n;
    }
    if (status)
        return status;
    uint64_t size = at - w->directory;
    uint8_t end[56 + 20 + END_SIZE], *p = end;
    if (narrow(w->directory) == 0xffffffffu) {
        p = put(p, 0x06064b50u, 4);
        p = put(p, 44, 8);
        p = put(p, 45, 2);
        p = put(p, 45, 2);
        p = put(p, 0, 8);
        p = put(p, (uint64_t)w->count, 8);
        p = put(p, (uint64_t)w->count, 8);
        p = put(p, size, 8);
        p = put(p, w->directory, 8);
        p = put(p, 0x07064b50u, 4);
        p = put(p, 0, 4);
        p = put(p, at, 8);
        p = put(p, 1, 4);
    }
    p = put(p, 0x06054b50u, 4);
    p = put(p, 0, 4);
    p = put(p, (uint64_t)w->count, 2);
    p = put(p, (uint64_t)w->count, 2);
    p = put(p, size, 4);
    p = put(p, narrow(w->directory), 4);
    p = put(p, 0, 2);
    return write_at(w, at, end, (size_t)(p - end), err);
}

bw_status bw_npy_finish(bw_npy_writer *w, bw_error *err)
{
    bw_status status = BW_OK;
    for (int i = 0; i < w->count && !status; i++) {
        const member *m = &w->members[i];
        if (m->written != m->size)
            status = bw_fail(err, BW_INTERNAL, "%s: array '%s' has %" PRIu64 " of %" PRIu64 " bytes", w->path, m->name,
                             m->written, m->size);
    }
    if (!status && w->zip)
        status = write_directory(w, err);
    if (!status && (fsync(w->fd) || rename(w->temporary, w->target)))
        status = bw_fail_errno(err, "write", w->path, errno);
    if (status)
        bw_npy_abandon(w);
    else
        free_writer(w);
    return status;
}
