/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bitstream container (*.bwbit): one file that carries a device configuration for one part, for one or more
 * backends. Layout, little endian: 16-byte preamble {char magic[8] = "BWBITS\r\n", u32 version = 1, u32 json_size},
 * JSON header, then payloads at 64-byte aligned offsets. The JSON header:
 *   { "uuid": "...", "interface_id": "...", "part": "sim-u250", "name": "...", "offers": {...bw_requirements...},
 *     "payloads": [ {"kind": "sim-arch", "offset": N, "size": N, "sha256": "hex"} ] }
 * The UUID is derived from the SHA-256 of everything after it, so that equal content has an equal UUID.
 *
 * Thread safety: pure; a bw_bitstream is a view into the caller's bytes.
 */
#ifndef BW_HAL_BITSTREAM_H
#define BW_HAL_BITSTREAM_H

#include "hal/hal.h"

#define BW_BITSTREAM_PAYLOADS_MAX 8

typedef struct bw_bitstream_payload {
    char kind[32];
    const void *bytes;
    size_t size;
} bw_bitstream_payload;

typedef struct bw_bitstream {
    char uuid[BW_UUID_TEXT];
    char interface_id[BW_UUID_TEXT];
    char part[64];
    char name[128];
    bw_requirements offers;
    unsigned payload_count;
    bw_bitstream_payload payloads[BW_BITSTREAM_PAYLOADS_MAX];
} bw_bitstream;

/* Parses and verifies every checksum. BW_CORRUPT, BW_CHECKSUM, BW_VERSION_MISMATCH. */
bw_status bw_bitstream_parse(const void *bytes, size_t size, bw_bitstream *bitstream, bw_error *err);

/* Serialises (uuid is computed and written back into *bitstream). *bytes is malloc'ed, the caller frees. */
bw_status bw_bitstream_write(bw_bitstream *bitstream, void **bytes, size_t *size, bw_error *err);

#endif
