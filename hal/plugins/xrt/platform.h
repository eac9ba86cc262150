/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which cards there are, and whether XRT can be used at all. XRT ends the process, or waits for minutes, when its
 * environment is not in order: what it needs is looked at before it is called.
 */
#ifndef BW_HAL_XRT_PLATFORM_H
#define BW_HAL_XRT_PLATFORM_H

#include <stdint.h>

#include <limits.h>

#include "hal/claim.h"
#include "hal/hal.h"
#include "kernels/status.h"

typedef struct bw_xrt_card_info {
    char name[64];         /* the platform, what an xclbin has to be for: "blockwave_emulated_4x16g_1" */
    char interface_id[37]; /* UUID of the shell */
    char address[16];      /* on the bus, "0000:3b:00.1"; "" for an emulated card */
    char mode[8];          /* "card", "sw_emu", "hw_emu" */
    char tree[PATH_MAX];   /* the folder that describes an emulated card; "" for a card */
} bw_xrt_card_info;

/* Checks the environment and describes the card with the number `index`. BW_NOT_FOUND: past the last.
 * BW_UNSUPPORTED: XRT cannot be used, or there is no card at all: the message says what to do. */
bw_status bw_xrt_card_find(unsigned index, bw_xrt_card_info *info, bw_error *err);

/* Whether a card that was there still is: on the bus; or its program, where it is emulated. BW_DEVICE_LOST. Cheap. */
bw_status bw_xrt_card_present(const bw_xrt_card_info *info, bw_error *err);

/* The sensors of a card at this address, as its driver shows them in `sysfs` (BW_SYSFS); an emulated one ("") has none.
 * What cannot be read stays as it was. The card need not be open. */
void bw_xrt_card_sensors(const char *sysfs, const char *address, bw_sensors *sensors);

/* One process at a time has a card: by its bus address, or by the folder that describes it. A process of its own is
 * behind each opened emulated card; the claim makes them as scarce as cards are. Without a place for claims (logged)
 * XRT's own checks are all there is. BW_BUSY: names the card and who has it. */
bw_status bw_xrt_card_claim(unsigned index, const bw_xrt_card_info *info, bw_claim **claim, bw_error *err);
/* 1: some process has it, *holder. */
int bw_xrt_card_claimed(unsigned index, const bw_xrt_card_info *info, bw_holder *holder);

#endif
