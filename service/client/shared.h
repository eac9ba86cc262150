/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The load generator's tensors in POSIX shared memory: one segment, with a part for each request on its way, into which
 * its inputs are copied before it is sent and from which its outputs are copied when it is answered.
 *
 *     bw_bench_shared_open(&head, inputs, count, &shared, &err);
 *     bw_bench_shared_register(shared, load, 5, &err);
 *     options.messages = bw_bench_shared_messages(shared);
 *     options.before = bw_bench_shared_fill, options.after = bw_bench_shared_take, options.user = shared;
 *     ...
 *     bw_bench_shared_close(shared, load);
 *
 * Thread safety: fill and take of different requests may run at once; the rest has one owner.
 */
#ifndef BW_SERVICE_CLIENT_SHARED_H
#define BW_SERVICE_CLIENT_SHARED_H

#include "service/client/load.h"
#include "service/client/request.h"

typedef struct bw_bench_shared bw_bench_shared;

/* What the messages say besides. Borrowed for the call. */
typedef struct bw_bench_shared_head {
    const char *model, *version;
    const void *metadata; /* a ModelMetadata answer: outputs of known size are asked for in shared memory; NULL: none */
    size_t metadata_size;
    int64_t batch;
    unsigned requests; /* on their way at once */
} bw_bench_shared_head;

/* Whether the server offers shared memory; statuses as bw_load_call. */
bw_status bw_bench_shared_probe(bw_load *load, double seconds, bw_error *err);
/* Makes the segment, of all its memory at once. The inputs outlive it. BW_EXHAUSTED: /dev/shm has not so much;
 * BW_INVALID_ARGUMENT, BW_NO_MEMORY, BW_IO. */
bw_status bw_bench_shared_open(const bw_bench_shared_head *head, const bw_bench_input *inputs, size_t count,
                               bw_bench_shared **shared, bw_error *err);
/* Registers the segment with the server and unlinks it: nothing is left behind however the process ends. Statuses as
 * bw_load_call. */
bw_status bw_bench_shared_register(bw_bench_shared *shared, bw_load *load, double seconds, bw_error *err);
const bw_slice *bw_bench_shared_messages(const bw_bench_shared *shared);            /* one for each request */
void bw_bench_shared_bytes(const bw_bench_shared *shared, size_t *in, size_t *out); /* of one request */
void bw_bench_shared_fill(void *shared, unsigned request);
void bw_bench_shared_take(void *shared, unsigned request);
/* Unregisters and frees; NULL allowed. */
void bw_bench_shared_close(bw_bench_shared *shared, bw_load *load);

#endif
