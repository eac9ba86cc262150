/* SPDX-License-Identifier: Apache-2.0 */
/*
 * POSIX shared memory that clients on the same host name in their requests: regions of segments under /dev/shm,
 * registered by name. Whoever holds a segment may truncate it at any time. They are written with system calls, and read
 * out of a mapping by copies that survive that (service/guarded_copy.h), or with system calls too.
 *
 *     bw_shared_memory_register(m, "input0", "/my-segment", 0, 602112, &err);
 *     bw_shared_range range = {.offset = 0, .size = 602112};
 *     bw_shared_memory_find(m, "input0", &range, &err);
 *     bw_shared_read(&range, 0, values, 602112, &err);
 *     bw_shared_region_release(range.region);
 *
 * What is read may change at any time: look at the copy, never at the segment twice.
 * Thread safety: all functions may be called from any thread.
 */
#ifndef BW_SERVICE_SHARED_MEMORY_H
#define BW_SERVICE_SHARED_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/status.h"

#define BW_SHARED_NAME_MAX    255  /* bytes of a region's name, and of a segment's */
#define BW_SHARED_REGIONS_MAX 1024 /* each keeps a descriptor */
/* All mappings together, which bounds what their page tables take (1/512 of it). Regions beyond it are not mapped. */
#define BW_SHARED_MAPPED_MAX (UINT64_C(16) << 30)

/* The registered regions. */
typedef struct bw_shared_memory bw_shared_memory;
/* One of them; lives until it is unregistered and nobody uses it any more. */
typedef struct bw_shared_region bw_shared_region;

/* A part of a region. */
typedef struct bw_shared_range {
    bw_shared_region *region; /* NULL: none */
    uint64_t offset, size;    /* in the region, bytes */
} bw_shared_range;

/* prefix NULL: segments must belong to the process's effective user. Otherwise their names must begin with it, whoever
 * they belong to (with or without a '/' before it; "" allows all that can be opened). At most regions_max regions,
 * whose descriptors get numbers from fd_from on: lower ones are left for connections, which are counted by theirs.
 * Takes SIGBUS over: bw_guard_install. NULL: out of memory. */
bw_shared_memory *bw_shared_memory_new(const char *prefix, size_t regions_max, int fd_from);
/* Regions in use live on. NULL allowed. */
void bw_shared_memory_free(bw_shared_memory *m);

/*
 * Opens the segment `key`, as shm_open takes it (with or without its '/'), for reading and writing. name: 1 to
 * BW_SHARED_NAME_MAX bytes of UTF-8 without control characters.
 * BW_INVALID_ARGUMENT: a bad name or key, a size of 0, offset + size beyond the segment's end, no regular file.
 * BW_ALREADY_EXISTS: the name is registered. BW_NOT_FOUND: no such segment. BW_PERMISSION: it may not be opened, or not
 * be used (see bw_shared_memory_new). BW_EXHAUSTED: too many regions, or descriptors.
 */
bw_status bw_shared_memory_register(bw_shared_memory *m, const char *name, const char *key, uint64_t offset,
                                    uint64_t size, bw_error *err);
/* "": all of them. One that is not there is no error: it is unregistered. */
void bw_shared_memory_unregister(bw_shared_memory *m, const char *name);

typedef struct bw_shared_info {
    const char *name, *key;
    uint64_t offset, size;
} bw_shared_info;

/* Calls `each` for the region of that name, or with "" for all in the order of their names, under the registry's lock.
 * BW_NOT_FOUND: no region has that name. */
bw_status bw_shared_memory_each(bw_shared_memory *m, const char *name,
                                void (*each)(const bw_shared_info *info, void *user), void *user, bw_error *err);

/* Sets range->region, with a reference, if range->offset and ->size are within it. BW_NOT_FOUND; BW_INVALID_ARGUMENT:
 * beyond its end, or the segment has become shorter. */
bw_status bw_shared_memory_find(bw_shared_memory *m, const char *name, bw_shared_range *range, bw_error *err);
void bw_shared_region_release(bw_shared_region *region); /* NULL allowed */

/* Copies `size` bytes from `at` on; at + size <= range->size. BW_INVALID_ARGUMENT: the segment has become shorter. */
bw_status bw_shared_read(const bw_shared_range *range, uint64_t at, void *to, size_t size, bw_error *err);
/* The same the other way. BW_EXHAUSTED: no memory left for the segment. */
bw_status bw_shared_write(const bw_shared_range *range, uint64_t at, const void *from, size_t size, bw_error *err);
/* 1: reading costs as much as copying. 0: each read is a system call, and faster along page borders of the segment,
 * where the range begins at bw_shared_place. */
int bw_shared_is_mapped(const bw_shared_range *range);
uint64_t bw_shared_place(const bw_shared_range *range);

#endif
