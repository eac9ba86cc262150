/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The border between the services (Predict, ModelInfer, health ...) and what carries their calls. A service knows
 * nothing of gRPC; a transport knows nothing of models. gRPC core is one transport (grpc_transport.h).
 *
 *     static void echo(bw_call *call, void *user) { ... bw_call_finish(call, BW_CODE_OK, "", &chunk, 1, NULL, 0); }
 *     static const bw_method methods[] = {{"/test.Echo/Say", echo, NULL}};
 *
 * Life of a call: the transport receives one message and calls the method's handler on one of its own threads (which
 * must not block there, unless it has stepped aside). The handler, or whoever it hands the call to, calls
 * bw_call_finish exactly once, from any thread. After that the call must not be touched, except by its own cancel
 * callback.
 */
#ifndef BW_SERVICE_TRANSPORT_H
#define BW_SERVICE_TRANSPORT_H

#include <stddef.h>
#include <stdint.h>

#include "hal/base.h"
#include "kernels/status.h"

/* gRPC's status codes; other transports map them. */
typedef enum bw_code {
    BW_CODE_OK = 0,
    BW_CODE_CANCELLED = 1,
    BW_CODE_INVALID_ARGUMENT = 3,
    BW_CODE_DEADLINE_EXCEEDED = 4,
    BW_CODE_NOT_FOUND = 5,
    BW_CODE_ALREADY_EXISTS = 6,
    BW_CODE_PERMISSION_DENIED = 7,
    BW_CODE_RESOURCE_EXHAUSTED = 8,
    BW_CODE_FAILED_PRECONDITION = 9,
    BW_CODE_OUT_OF_RANGE = 11,
    BW_CODE_UNIMPLEMENTED = 12,
    BW_CODE_INTERNAL = 13,
    BW_CODE_UNAVAILABLE = 14
} bw_code;

/* What a client is told for a status of ours. Lost and faulty devices are UNAVAILABLE: trying again is right. */
bw_code bw_code_of(bw_status status);

/* A piece of a reply. With `release` the bytes are borrowed and release(user) is called once, from any thread, when
 * they are no longer needed (also when the call has failed meanwhile); without it they are copied in the call. */
typedef struct bw_chunk {
    const void *bytes;
    size_t size;
    void (*release)(void *user);
    void *user;
} bw_chunk;

/* Trailing metadata: ASCII. The key is in lower case and static, the value is copied. */
typedef struct bw_meta {
    const char *key;
    char value[40];
} bw_meta;

typedef struct bw_call bw_call;

typedef struct bw_call_ops {
    void (*write)(bw_call *call, const bw_chunk *chunks, size_t count);
    void (*finish)(bw_call *call, bw_code code, const char *text, const bw_chunk *chunks, size_t count,
                   const bw_meta *trailing, size_t trailing_count);
    void (*watch_cancel)(bw_call *call, void (*on_cancel)(bw_call *call));
    int (*cancelled)(bw_call *call);
    void (*drop_message)(bw_call *call);
    int (*step_aside)(bw_call *call);
    size_t (*metadata)(bw_call *call, const char *key, char *value, size_t size);
} bw_call_ops;

struct bw_call {
    const bw_call_ops *ops;
    uint64_t received_ns;    /* CLOCK_MONOTONIC: when the call's headers arrived */
    uint64_t deadline_ns;    /* CLOCK_MONOTONIC; 0: none */
    const bw_slice *message; /* the request, in pieces; valid until bw_call_drop_message or the finish */
    size_t message_slices;
    size_t message_size;
    void *user; /* the service's; user_release(user) is called when the transport lets go of the call */
    void (*user_release)(void *user);
};

typedef struct bw_method {
    const char *path; /* "/package.Service/Method" */
    void (*handle)(bw_call *call, void *user);
    void *user;
} bw_method;

/* What a transport serves. Borrowed for the transport's life. */
typedef struct bw_service {
    const bw_method *methods;
    size_t count;
} bw_service;

/* Sends one message of a stream. Never blocks; a client that does not read is cancelled when too much has piled up. */
static inline void bw_call_write(bw_call *call, const bw_chunk *chunks, size_t count)
{
    call->ops->write(call, chunks, count);
}

/* Ends the call: with the (last) message if `chunks` is not NULL (of no bytes if count is 0), then status, text (one
 * line) and trailing data. */
static inline void bw_call_finish(bw_call *call, bw_code code, const char *text, const bw_chunk *chunks, size_t count,
                                  const bw_meta *trailing, size_t trailing_count)
{
    call->ops->finish(call, code, text, chunks, count, trailing, trailing_count);
}

/* on_cancel is called at most once, from any thread, when the client has gone or the deadline has passed; at once if
 * that has happened already. The call must still be finished. It may be called after the finish, so what it touches
 * must live until user_release. Set call->user before. */
static inline void bw_call_watch_cancel(bw_call *call, void (*on_cancel)(bw_call *call))
{
    call->ops->watch_cancel(call, on_cancel);
}

/* Only known of calls that are watched. */
static inline int bw_call_cancelled(bw_call *call)
{
    return call->ops->cancelled(call);
}

/* Gives the request's bytes back early: they are not needed any more. */
static inline void bw_call_drop_message(bw_call *call)
{
    call->ops->drop_message(call);
}

/* In the handler, before work that takes long: 1 if another thread receives in this one's place from now on, so that
 * the handler may block; 0 if none is free. */
static inline int bw_call_step_aside(bw_call *call)
{
    return call->ops->step_aside(call);
}

/* Copies the value of a request header into value (terminated, cut); returns its full length, 0 if absent. */
static inline size_t bw_call_metadata(bw_call *call, const char *key, char *value, size_t size)
{
    return call->ops->metadata(call, key, value, size);
}

/* Ends the call with an error of ours. */
void bw_call_fail(bw_call *call, const bw_error *err);

#endif
