/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Claims: a thing that one process at a time may have, such as a card, as a record lock on a file. The kernel gives a
 * claim back when its process ends, however it ends, and knows whose it is.
 *
 *     bw_claim *claim;  bw_holder holder;
 *     if (bw_claim_take(NULL, "blockwave-xrt-0000:3b:00.1", &claim, &holder, &err) == BW_BUSY)
 *         ... bw_holder_text(&holder, text) ...
 *     bw_claim_release(claim);
 *
 * The file stays: removing it would let two processes lock two files of one name. Processes see each other's claims
 * where they see the same directory.
 *
 * Thread safety: every function may be called from any thread. Claims belong to the process; a child of fork has none.
 */
#ifndef BW_HAL_CLAIM_H
#define BW_HAL_CLAIM_H

#include "kernels/status.h"

typedef struct bw_claim bw_claim;

typedef struct bw_holder {
    int pid;       /* 0: not known: of another container */
    char name[32]; /* the program's, as the kernel has it; "": not known */
} bw_holder;

/* Takes the claim `name` in `dir` (NULL: the environment BW_LOCK_DIR, else /run/lock, else /tmp), without waiting.
 * BW_BUSY: it is taken, by *holder (this process, too). Anything else (BW_PERMISSION, BW_NOT_FOUND, BW_IO,
 * BW_NO_MEMORY): no claim can be kept there. */
bw_status bw_claim_take(const char *dir, const char *name, bw_claim **claim, bw_holder *holder, bw_error *err);
void bw_claim_release(bw_claim *claim); /* NULL is allowed */
/* Whether somebody has it, without taking it: 1, and *holder. 0: nobody, or nobody can say. */
int bw_claim_look(const char *dir, const char *name, bw_holder *holder);

#define BW_HOLDER_TEXT 80
/* "process 1234 (blockwave-serve)", "this process", "another process"; returns text. */
const char *bw_holder_text(const bw_holder *holder, char text[BW_HOLDER_TEXT]);

#endif
