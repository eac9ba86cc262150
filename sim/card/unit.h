/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The compute unit of an emulated card: the register file of kernels/accelerator.h and a thread that carries out one
 * job at a time with the fast engine. It believes nothing: addresses are checked against the host's buffers, and a
 * program with its constants passes the validator before it runs, again whenever their buffer has been written.
 *
 * Thread safety: register functions from one thread at a time.
 */
#ifndef BW_SIM_CARD_UNIT_H
#define BW_SIM_CARD_UNIT_H

#include "kernels/accelerator.h"
#include "sim/card/memory.h"

typedef struct bw_card_unit bw_card_unit;

typedef struct bw_card_unit_options {
    const char *faults; /* directory, NULL: none; borrowed */
    int card;           /* its index, for faults */
    int inline_jobs;    /* carry every job out as if it were a short one, without a thread */
} bw_card_unit_options;

bw_status bw_card_unit_create(bw_card_memory *memory, const bw_card_unit_options *options, bw_card_unit **unit,
                              bw_error *err);
/* Ends a job under way. */
void bw_card_unit_destroy(bw_card_unit *unit);

/* Offsets from the unit's base, multiples of 4. Reading CTRL clears DONE, and takes up to 1 ms while a job
 * is under way. */
uint32_t bw_card_unit_read(bw_card_unit *unit, uint32_t offset);
void bw_card_unit_write(bw_card_unit *unit, uint32_t offset, uint32_t value);

/* Carries out a started job that is known to be short, on the calling thread; to be called when there is nothing else
 * to do. A read of CTRL does so too. */
void bw_card_unit_work(bw_card_unit *unit);

/* The card is configured as `build` (0: as nothing, jobs fail): a job under way is given up, even a frozen one, and
 * what it computes does not arrive; registers are as after power-on. */
void bw_card_unit_configure(bw_card_unit *unit, uint64_t build);

#endif
