/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gRPC core as a transport (service/transport.h). Plain text: for trusted networks or behind a proxy, docs/service.md
 * says why and what is defended against.
 *
 *     bw_grpc_start(&options, &transport, &err);
 *     ...
 *     bw_grpc_refuse_new(transport);                          // no new connections or calls
 *     while (!bw_grpc_idle(transport, 100)) ...               // calls in flight end
 *     bw_grpc_cancel_all(transport);                          // or are cut off
 *     bw_grpc_stop(transport, 1000);
 *
 * Thread safety: start and the shutdown functions belong to one thread; handlers run on the transport's threads.
 */
#ifndef BW_SERVICE_GRPC_TRANSPORT_H
#define BW_SERVICE_GRPC_TRANSPORT_H

#include "service/transport.h"

typedef struct bw_grpc bw_grpc;

typedef struct bw_grpc_options {
    const char *address;       /* see bw_listener_open */
    const bw_service *service; /* borrowed */
    size_t max_message_bytes;
    unsigned threads;        /* that receive and decode; 0: one per two CPUs, at most 4 */
    unsigned upload_seconds; /* a request that has not arrived by then is refused */
    int max_connections;
    unsigned idle_seconds; /* a connection without traffic and calls is closed */
} bw_grpc_options;

/* To be called first thing in main, before other threads: memory and lock settings measured to matter. */
void bw_grpc_prepare_process(void);

/* Listens and serves at once. Errors as bw_listener_open. */
bw_status bw_grpc_start(const bw_grpc_options *options, bw_grpc **transport, bw_error *err);
const char *bw_grpc_address(const bw_grpc *transport);
int bw_grpc_port(const bw_grpc *transport);

/* Closes the listening socket and answers new calls with UNAVAILABLE; calls in flight go on. */
void bw_grpc_refuse_new(bw_grpc *transport);
/* Waits up to `ms` for the last call to end; 1 if it has. */
int bw_grpc_idle(bw_grpc *transport, int ms);
/* 1 if no call has arrived for `ms`. */
int bw_grpc_quiet(bw_grpc *transport, int ms);
/* Calls that have not ended. */
unsigned bw_grpc_calls(bw_grpc *transport);
/* Refuses new calls and cuts off every call in flight. */
void bw_grpc_cancel_all(bw_grpc *transport);
/* Waits up to `ms` for idleness, then frees everything. 0: calls are still being worked on and nothing was freed; the
 * process should end without returning from main. NULL allowed. */
int bw_grpc_stop(bw_grpc *transport, int ms);

#endif
