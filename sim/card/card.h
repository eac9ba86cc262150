/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An emulated card as XRT's emulation shims see it: requests of sim/card/wire.h in, replies out. Nothing of the card's
 * memory is shared with the host: what the host does not move, the card does not see.
 *
 * Thread safety: one thread at a time.
 */
#ifndef BW_SIM_CARD_CARD_H
#define BW_SIM_CARD_CARD_H

#include "sim/card/unit.h"
#include "sim/card/wire.h"

typedef struct bw_card bw_card;

typedef struct bw_card_options {
    const char *faults;    /* sim/card/faults.h; NULL: none; borrowed */
    int index;             /* of the card, for faults */
    int inline_jobs;       /* as in bw_card_unit_options */
    uint64_t build;        /* come up as this, whatever the file of a LOAD says; 0: as it says */
    uint64_t memory_limit; /* more memory than this is not configured; 0: BW_ACCEL_ADDR_LIMIT */
} bw_card_options;

bw_status bw_card_create(const bw_card_options *options, bw_card **card, bw_error *err);
void bw_card_destroy(bw_card *card);

typedef enum bw_card_next { BW_CARD_GO_ON, BW_CARD_END, BW_CARD_BROKEN } bw_card_next;

/*
 * Carries out one request. *reply (valid until the next call) is to be sent for GO_ON and END, which is the host's
 * goodbye. BROKEN: the request is none; *err says why, and the connection is of no more use.
 */
bw_card_next bw_card_request(bw_card *card, uint32_t call, const void *body, size_t size, bw_wire_reply *reply,
                             bw_error *err);

/* Serves a connection until the host says goodbye or is gone. BW_CORRUPT: BROKEN. BW_IO, BW_NO_MEMORY. */
bw_status bw_card_serve(bw_card *card, int fd, bw_error *err);

#endif
