/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The scoring server: models, scheduler, services and transports put together.
 *
 *     bw_server_start(&options, &server, &err);      // listening, not ready
 *     bw_server_load(server, &options, &err);        // models on their devices; then SERVING
 *     ...
 *     bw_server_stop(server, 30, hurry, NULL, &cut);
 *
 * Thread safety: all functions belong to one thread.
 */
#ifndef BW_SERVICE_SERVER_H
#define BW_SERVICE_SERVER_H

#include "service/model.h"

typedef struct bw_server bw_server;

typedef struct bw_server_options {
    const char *const *packages; /* files */
    size_t package_count;
    const char *models_dir; /* every *.bw in it; NULL: none */
    const char *const *devices;
    size_t device_count;
    uint64_t device_memory;        /* budget of each device, bytes; 0: its memory */
    const char *const *bitstreams; /* FILE or FILE@DEVICE: service/bitstream.h */
    size_t bitstream_count;
    const char *trust_dir; /* public keys that may sign bitstreams; NULL: signatures do not matter */
    int require_signed;    /* refuse bitstreams without a trusted signature */
    const char *grpc_address;
    const char *metrics_address;             /* of the HTTP endpoint for Prometheus; NULL: none */
    unsigned max_message_mb, queue, workers; /* workers 0: by the number of CPUs */
    unsigned timeout_seconds, upload_seconds;
    unsigned lame_duck_ms, drain_seconds;
    int max_connections;
    int shared_memory;                /* let clients on this host name segments: service/shared_memory.h */
    const char *shared_memory_prefix; /* that their names begin with; NULL: those of the server's user */
    size_t shared_memory_regions;     /* the most that are registered */
    int shared_memory_fd_from;        /* their descriptors' lowest number */
    unsigned idle_seconds;
} bw_server_options;

/* The defaults of `blockwave serve`. */
void bw_server_defaults(bw_server_options *o);

/* Listens; health says NOT_SERVING and scoring UNAVAILABLE until loaded. Errors as bw_listener_open. */
bw_status bw_server_start(const bw_server_options *o, bw_server **server, bw_error *err);
const char *bw_server_grpc_address(const bw_server *server);
int bw_server_grpc_port(const bw_server *server);
const char *bw_server_metrics_address(const bw_server *server); /* NULL: none */

/* Opens devices, configures them, opens packages and becomes ready. BW_NOT_FOUND: no packages at all; else as
 * bw_device_open, bw_signature_check, bw_device_load_bitstream, bw_package_open, bw_session_open; BW_CANCELLED when
 * `interrupted` (may be NULL) says so between packages. */
bw_status bw_server_load(bw_server *server, const bw_server_options *o, int (*interrupted)(void *user), void *user,
                         bw_error *err);
/* Serves a model that is not a package (tests). Takes over the reference. */
bw_status bw_server_add_model(bw_server *server, bw_model *model, bw_error *err);
void bw_server_set_ready(bw_server *server);

/*
 * Drains and frees: NOT_SERVING, lame duck (still answering), no new calls, waits for those in flight until
 * drain_seconds have passed since the call, cuts off the rest. `hurry` (may be NULL) is asked often: non-zero cuts the
 * waiting short. *cut: calls that were cut off. BW_BUSY: a device run did not end; nothing was freed and the process
 * should _exit.
 */
bw_status bw_server_stop(bw_server *server, const bw_server_options *o, int (*hurry)(void *user), void *user,
                         unsigned *cut, bw_error *err);

#endif
