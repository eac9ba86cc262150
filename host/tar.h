/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one kind of tar archive that packages are: POSIX ustar, regular files only, owner 0, mode 0644, time 0, names of
 * at most 99 characters. Every field of a header follows from name and size, so a reader can demand it bit for bit.
 *
 * Thread safety: pure functions.
 */
#ifndef BW_HOST_TAR_H
#define BW_HOST_TAR_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/status.h"

#define BW_TAR_BLOCK    512u
#define BW_TAR_NAME_MAX 99u
#define BW_TAR_SIZE_MAX 077777777777u /* 8 GiB - 1: eleven octal digits */

/* 1 if `name` is a relative path of [A-Za-z0-9_./-] without empty, "." or ".." parts, at most 99 characters. */
int bw_tar_name_ok(const char *name);

/* Writes the 512 bytes of a member's header. The name is legal and size <= BW_TAR_SIZE_MAX. */
void bw_tar_header(const char *name, uint64_t size, uint8_t header[BW_TAR_BLOCK]);

typedef struct bw_tar_member {
    char name[BW_TAR_NAME_MAX + 1];
    const uint8_t *bytes;
    uint64_t size;
} bw_tar_member;

/*
 * The member whose header is at *offset; *offset moves to the next header, *end is set and nothing else when the
 * archive's end is there (zeros up to the end of the bytes, 1024 of them at least). BW_CORRUPT says what is wrong.
 */
bw_status bw_tar_next(const uint8_t *bytes, uint64_t size, uint64_t *offset, bw_tar_member *member, int *end,
                      bw_error *err);

#endif
