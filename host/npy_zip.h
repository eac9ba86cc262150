/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of host/npy: the members of a ZIP archive, found through its central directory. */
#ifndef BW_HOST_NPY_ZIP_H
#define BW_HOST_NPY_ZIP_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/status.h"

#define BW_ZIP_MEMBERS_MAX 1024

typedef struct bw_zip_member {
    char *name;          /* owned */
    int deflated;        /* else stored */
    const uint8_t *data; /* as it stands in the archive */
    uint64_t packed_size, size;
    uint32_t crc;
} bw_zip_member;

/* *members: count entries, to be released with bw_zip_free. Bytes are borrowed. BW_CORRUPT; BW_UNSUPPORTED: encrypted,
 * split over volumes, other compression methods, too many members. */
bw_status bw_zip_list(const uint8_t *bytes, size_t size, bw_zip_member **members, int *count, bw_error *err);
void bw_zip_free(bw_zip_member *members, int count);

#endif
