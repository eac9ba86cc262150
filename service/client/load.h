/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The load itself, over gRPC core: one request sent again and again, by a fixed number of callers that each wait for
 * their answer (closed loop), or at times that do not depend on the answers (open loop).
 *
 *     bw_load_connect(&options, &load, &err);
 *     bw_load_call(load, 0, path, bytes, size, 5, &reply, &reply_size, &err);   // metadata, a first try
 *     bw_load_run(load, &options, &figures, &err);
 *     bw_load_close(load);
 *
 * In the open loop latencies count from the moment at which a request should have been sent: if the server is slow, the
 * requests that queue up behind show it ("no coordinated omission").
 *
 * Thread safety: one owner.
 */
#ifndef BW_SERVICE_CLIENT_LOAD_H
#define BW_SERVICE_CLIENT_LOAD_H

#include <stddef.h>

#include "hal/base.h"
#include "kernels/status.h"
#include "service/client/histogram.h"

#define BW_LOAD_CODES  17 /* gRPC's status codes */
#define BW_LOAD_STAGES 16

typedef struct bw_load_options {
    const char *address;
    unsigned connections;
    unsigned outstanding; /* of each connection; in the open loop the most that may be on their way */
    double rate;          /* open loop: requests a second; 0: closed loop */
    int poisson;          /* open loop: exponential gaps; else even ones */
    double warmup_seconds, seconds, deadline_seconds; /* deadline 0: none */
    uint64_t seed;
    const char *path; /* of the method */
    const void *message;
    size_t message_size;
    /* NULL, or the messages of those that are on their way at once, connections * outstanding of them, instead. */
    const bw_slice *messages;
    /* NULL, or called with the number of a message: before it is sent, when its time is running, from the thread that
     * sends; and after a good answer, whose time is running still, from the thread that receives. */
    void (*before)(void *user, unsigned number), (*after)(void *user, unsigned number);
    void *user;
    int (*interrupted)(void); /* asked ten times a second; may be NULL */
} bw_load_options;

/* A time that the server reports with its answers: trailing metadata bw-NAME-us. */
typedef struct bw_load_stage {
    char name[32];
    bw_histogram *us;
} bw_load_stage;

typedef struct bw_load_figures {
    double seconds; /* measured: shorter than asked for if interrupted */
    int interrupted;
    uint64_t ok, failed;      /* answers to requests of the measured time */
    uint64_t in_time;         /* good answers that came within the measured time: what the throughput counts */
    uint64_t unfinished;      /* were given up at the end */
    uint64_t not_sent;        /* open loop: were due, but too many were on their way */
    uint64_t reply_bytes;     /* of good answers */
    bw_histogram *latency_ns; /* of good answers */
    bw_histogram *late_ns;    /* open loop: sent so much after they should have been */
    uint64_t codes[BW_LOAD_CODES];
    char first_error[BW_LOAD_CODES][200];
    bw_load_stage stages[BW_LOAD_STAGES];
    unsigned stage_count;
    double client_cpu_seconds; /* user and system time of this process while measuring */
} bw_load_figures;

typedef struct bw_load bw_load;

/* Makes the channels; connecting is left to the first call. BW_NO_MEMORY. */
bw_status bw_load_connect(const bw_load_options *options, bw_load **load, bw_error *err);
/*
 * One call, waited for. *reply is malloc'ed. `seconds` also bounds the wait for a connection. `code`, if not NULL, is
 * the call's gRPC status. Statuses: BW_BUSY (UNAVAILABLE), BW_UNSUPPORTED (UNIMPLEMENTED), BW_TIMEOUT, BW_CANCELLED by
 * *interrupted; BW_INVALID_ARGUMENT for all others, with the server's text.
 */
bw_status bw_load_call(bw_load *load, unsigned connection, const char *path, const void *bytes, size_t size,
                       double seconds, void **reply, size_t *reply_size, bw_error *err);
/* Runs the load to its end. figures is zeroed and filled; bw_load_figures_free in any case. BW_NO_MEMORY. */
bw_status bw_load_run(bw_load *load, const bw_load_options *options, bw_load_figures *figures, bw_error *err);
void bw_load_figures_free(bw_load_figures *figures);
/* Calls from here on are not given up for *interrupted: what has to be said at the end. */
void bw_load_ignore_interrupts(bw_load *load);
void bw_load_close(bw_load *load); /* NULL allowed */

const char *bw_load_code_name(unsigned code); /* "UNAVAILABLE" */

#endif
