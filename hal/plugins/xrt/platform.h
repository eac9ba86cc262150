/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which cards there are, and whether XRT can be used at all. XRT ends the process, or waits for minutes, when its
 * environment is not in order: what it needs is looked at before it is called.
 */
#ifndef BW_HAL_XRT_PLATFORM_H
#define BW_HAL_XRT_PLATFORM_H

#include <stdint.h>

#include "kernels/status.h"

typedef struct bw_xrt_card_info {
    char name[64];         /* the platform, what an xclbin has to be for: "blockwave_emulated_4x16g_1" */
    char interface_id[37]; /* UUID of the shell */
    char address[16];      /* on the bus, "0000:3b:00.1"; "" for an emulated card */
    char mode[8];          /* "card", "sw_emu", "hw_emu" */
} bw_xrt_card_info;

/* Checks the environment and describes the card with the number `index`. BW_NOT_FOUND: past the last.
 * BW_UNSUPPORTED: XRT cannot be used, or there is no card at all: the message says what to do. */
bw_status bw_xrt_card_find(unsigned index, bw_xrt_card_info *info, bw_error *err);

#endif
