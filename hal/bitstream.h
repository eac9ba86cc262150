/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bitstream container (*.bwbit): one file that carries a device configuration for one part, for one or more
 * backends. Layout, little endian: 16-byte preamble {char magic[8] = "BWBITS\r\n", u32 version = 1, u32 json_size},
 * JSON header, then payloads at 64-byte aligned offsets. The JSON header:
 *   { "uuid": "...", "interface_id": "...", "part": "sim-u250", "name": "...", "offers": {...bw_requirements...},
 *     "payloads": [ {"kind": "sim-arch", "offset": N, "size": N, "sha256": "hex"} ] }
 * "offers" is written with names: {"isa_version": 1, "formats": ["msfp12", ...], "opcodes": ["CONV", ...],
 * "blocks": [16, 32], "act_bytes": N, "const_bytes": N}. "uuid" is the first member, written as the first 46 bytes of
 * the JSON: {"uuid":"........-....-8...-....-............". It is a version 8 UUID of the first 16 bytes of the SHA-256
 * of everything after it in the file, so that equal content has an equal UUID, and a damaged byte another. Payloads
 * stand in order, each right after the one before (aligned), and the file ends with the last; signatures may follow
 * (hal/signature.h), which the UUID does not cover.
 *
 * Thread safety: pure; a bw_bitstream is a view into the caller's bytes.
 */
#ifndef BW_HAL_BITSTREAM_H
#define BW_HAL_BITSTREAM_H

#include "hal/hal.h"

#define BW_BITSTREAM_PAYLOADS_MAX 8
/* Most bytes of a file that is loaded: configurations of large cards have some hundred megabytes. Such files are read,
 * not mapped, so that what is loaded is what was verified. */
#define BW_BITSTREAM_FILE_MAX ((size_t)1 << 30)

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

/* Parses and verifies the UUID and every checksum, but no signature: bw_signature_verify does. `bytes` need no
 * alignment. BW_CORRUPT: not a container, or its header breaks a rule (the message names it). BW_CHECKSUM: damaged.
 * BW_VERSION_MISMATCH: a newer container, or it offers a format or an operation that this version does not know. */
bw_status bw_bitstream_parse(const void *bytes, size_t size, bw_bitstream *bitstream, bw_error *err);

/* Serialises (uuid is computed and written back into *bitstream). *bytes is malloc'ed, the caller frees.
 * BW_INVALID_ARGUMENT: no payload, or a field that the parser would refuse. BW_NO_MEMORY. */
bw_status bw_bitstream_write(bw_bitstream *bitstream, void **bytes, size_t *size, bw_error *err);

/* Describes an xclbin (kernels/xclbin.h) as the one payload; `bytes` are borrowed as long as *bitstream is used. As
 * bw_xclbin_parse. */
bw_status bw_bitstream_of_xclbin(const void *bytes, size_t size, bw_bitstream *bitstream, bw_error *err);

/* "offers" of the header, also used inside payloads: what a device can run, as a JSON object. `where` starts the error
 * messages. BW_CORRUPT: a member is missing or of the wrong type; BW_VERSION_MISMATCH: an unknown name.
 * bw_requirements_to_json returns a new reference, NULL when out of memory. */
struct json_t;
bw_status bw_requirements_from_json(const struct json_t *object, const char *where, bw_requirements *out,
                                    bw_error *err);
struct json_t *bw_requirements_to_json(const bw_requirements *requirements);

#endif
