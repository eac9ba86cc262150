/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NumPy arrays: reading .npy files and members of .npz archives, writing both.
 * Sources: NEP 1 (the .npy format, versions 1 to 3); PKWARE APPNOTE 6.3 (ZIP, stored and deflated members, ZIP64).
 *
 * Thread safety: one reader or writer is used by one thread at a time.
 */
#ifndef BW_HOST_NPY_H
#define BW_HOST_NPY_H

#include <stddef.h>
#include <stdint.h>

#include "host/graph.h"
#include "kernels/status.h"

typedef struct bw_npy_header {
    char kind; /* 'f', 'i', 'u' or 'b' */
    int item;  /* bytes of an element: 1, 2, 4 or 8 */
    int swap;  /* the file has the other byte order */
    int rank;
    int64_t dims[BW_RANK_MAX];
    uint64_t count; /* elements; count * item fits 63 bits */
    size_t offset;  /* of the first element */
} bw_npy_header;

/* The most bytes that bw_npy_parse looks at. */
#define BW_NPY_HEADER_MAX 65600u

/* Reads the header from the file's first bytes. BW_CORRUPT: not a .npy file, or damaged. BW_UNSUPPORTED: dtype
 * (strings, objects, complex numbers), Fortran order, rank above 8; says what to do. */
bw_status bw_npy_parse(const void *bytes, size_t size, bw_npy_header *header, bw_error *err);

/* Converts n elements as they stand in the file. Doubles beyond the range of float become infinities. */
void bw_npy_to_float(const bw_npy_header *header, const void *elements, size_t n, float *out);
/* BW_INVALID_ARGUMENT: a float that is no whole number, or a number beyond int64; names the element. */
bw_status bw_npy_to_int64(const bw_npy_header *header, const void *elements, size_t n, int64_t *out, bw_error *err);

/* Arrays of a .npy (one, named "") or a .npz file, by its first bytes. */
typedef struct bw_npy_file bw_npy_file;
/* path: for messages and to map. BW_NOT_FOUND, BW_IO; BW_CORRUPT, BW_UNSUPPORTED name the array. */
bw_status bw_npy_open(const char *path, bw_npy_file **file, bw_error *err);
/* The same from memory, borrowed; `name` stands for the path in messages. */
bw_status bw_npy_open_bytes(const char *name, const void *bytes, size_t size, bw_npy_file **file, bw_error *err);
void bw_npy_close(bw_npy_file *file);
int bw_npy_array_count(const bw_npy_file *file);
const char *bw_npy_array_name(const bw_npy_file *file, int index); /* without ".npy" */
int bw_npy_find(const bw_npy_file *file, const char *name);        /* -1 if there is none */
/* Header of an array, read when first asked for. */
bw_status bw_npy_array_header(bw_npy_file *file, int index, bw_npy_header *header, bw_error *err);
/*
 * Elements first..first+n-1 of an array as they stand in the file; `out` has room for n * item bytes. Deflated
 * members are inflated as they are read: cheap in ascending order, from the start again otherwise. The CRC-32 of a
 * member is checked when its last element is read. BW_OUT_OF_RANGE, BW_CORRUPT, BW_CHECKSUM, BW_NO_MEMORY.
 */
bw_status bw_npy_read(bw_npy_file *file, int index, uint64_t first, size_t n, void *out, bw_error *err);

/*
 * Writer. Arrays are announced with their full shape, then filled in any interleaving, each from front to back, then
 * the file appears under its name. path ending in ".npz": stored members NAME.npy; else one .npy array.
 */
typedef struct bw_npy_writer bw_npy_writer;
typedef struct bw_npy_spec {
    const char *name;
    bw_dtype dtype; /* BW_F32, BW_I64 */
    int rank;
    int64_t dims[BW_RANK_MAX];
} bw_npy_spec;
#define BW_NPY_WRITE_HEADER_MAX 1024
/* The header alone, for streams: header_size bytes of `header`; data_bytes of elements are to follow. */
bw_status bw_npy_make_header(const bw_npy_spec *spec, uint8_t header[BW_NPY_WRITE_HEADER_MAX], size_t *header_size,
                             uint64_t *data_bytes, bw_error *err);
/* BW_INVALID_ARGUMENT: several arrays for a .npy file, or a device or directory in its place. BW_NOT_FOUND, BW_IO,
 * BW_PERMISSION, BW_NO_MEMORY. */
bw_status bw_npy_create(const char *path, const bw_npy_spec *specs, int count, bw_npy_writer **writer, bw_error *err);
bw_status bw_npy_append(bw_npy_writer *writer, int index, const void *elements, size_t bytes, bw_error *err);
/* Completes the file and renames it into place; the writer is gone in any case. BW_INTERNAL: an array is not full. */
bw_status bw_npy_finish(bw_npy_writer *writer, bw_error *err);
void bw_npy_abandon(bw_npy_writer *writer); /* leaves nothing behind; NULL allowed */

#endif
