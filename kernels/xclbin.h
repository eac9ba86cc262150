/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes and reads xclbin files (the axlf container of XRT's public xclbin.h) of an accelerator as described in
 * kernels/accelerator.h: what XRT needs to know to load it, place buffers and start jobs.
 *
 *     const bw_accelerator *a = bw_accelerator_find("emulated");
 *     void *bytes;  size_t size;
 *     if (bw_xclbin_write(a, NULL, 0, &bytes, &size, &err)) ...       // without a configuration: for emulation
 *
 * Sections: EMBEDDED_METADATA (XML: the kernel and its arguments), MEM_TOPOLOGY, IP_LAYOUT, CONNECTIVITY,
 * KEYVALUE_METADATA (what programs it takes) and, for a card, BITSTREAM. Equal input gives equal bytes; the UUID is a
 * version 8 UUID of the content, and there is no time in it.
 *
 * Thread safety: pure functions.
 */
#ifndef BW_KERNELS_XCLBIN_H
#define BW_KERNELS_XCLBIN_H

#include "kernels/accelerator.h"

/* 0 if this was built where xclbin.h (Debian: libxrt-dev) is not installed: both functions end with BW_UNSUPPORTED. */
int bw_xclbin_available(void);

/* *bytes is malloc'ed, the caller frees. configuration: the bits for the card, `configuration_size` bytes; NULL for an
 * emulated card. BW_INVALID_ARGUMENT: a description without banks or name. BW_UNSUPPORTED. BW_NO_MEMORY. */
bw_status bw_xclbin_write(const bw_accelerator *accelerator, const void *configuration, size_t configuration_size,
                          void **bytes, size_t *size, bw_error *err);

typedef struct bw_xclbin {
    char uuid[37];
    bw_accelerator accelerator; /* as described inside */
    uint64_t build;             /* bw_accelerator_build of it: what the card's BUILD register shows */
} bw_xclbin;

/* Reads one and checks everything that the driver relies on. BW_CORRUPT: not an xclbin, cut short, a section outside
 * the file, or not a Blockwave accelerator (the message says what is missing). BW_VERSION_MISMATCH: its register map is
 * another one. BW_UNSUPPORTED. */
bw_status bw_xclbin_parse(const void *bytes, size_t size, bw_xclbin *xclbin, bw_error *err);

#endif
