/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One call on gRPC core. References: one for each operation that core has not handed back, one for the service until
 * it finishes the call. Core reports through tags embedded in the call.
 */
#include "service/grpc_call.h"

#include <grpc/byte_buffer.h>
#include <grpc/slice.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WRITES_MAX 32

/* Enough for what most calls need; more has a block of its own. */
#define FEW_SLICES   4
#define FEW_TRAILING 3
#define SPARE_MAX    64

struct bw_grpc_call {
    bw_call base; /* first: what the services see */
    bw_grpc *t;
    bw_grpc_call *previous, *next;
    atomic_int refs;
    bw_grpc_tag arrived, received, closed, sent, ended;
    grpc_call *core;
    grpc_call_details details;
    const bw_method *method;
    grpc_byte_buffer *payload;
    bw_slice *slices, few_slices[FEW_SLICES];
    int close_cancelled; /* written by core */
    atomic_int receiving;

    /* guarded by the mutex */
    int cancelled, finishing, watched; /* watched: core was asked to tell when the client goes */
    void (*on_cancel)(bw_call *call);
    int headers_sent, writing;
    grpc_byte_buffer **writes; /* room for WRITES_MAX, once there was one: waiting for the one under way */
    int write_count;
    grpc_byte_buffer *current;
    /* the end of the call, kept until core has sent it */
    bw_code code;
    grpc_slice text;
    grpc_byte_buffer *last;
    grpc_metadata *trailing, few_trailing[FEW_TRAILING];
    size_t trailing_count;

    /* what a spare call keeps for its next life */
    pthread_mutex_t mutex;
    grpc_metadata_array headers;
};

static bw_grpc_call *of_base(bw_call *call)
{
    return (bw_grpc_call *)call;
}

/* --- life ------------------------------------------------------------------------------------------------------- */

static void destroy_buffer(grpc_byte_buffer **b)
{
    if (*b)
        grpc_byte_buffer_destroy(*b);
    *b = NULL;
}

static void drop_payload(bw_grpc_call *c)
{
    c->base.message = NULL;
    c->base.message_slices = 0;
    if (c->slices != c->few_slices)
        free(c->slices);
    c->slices = NULL;
    destroy_buffer(&c->payload);
}

static void enlist(bw_grpc_call *c)
{
    pthread_mutex_lock(&c->t->mutex);
    c->next = c->t->calls;
    if (c->next)
        c->next->previous = c;
    c->t->calls = c;
    c->t->call_count++;
    c->t->last_arrival_ns = c->base.received_ns;
    pthread_mutex_unlock(&c->t->mutex);
}

static void destroy_call(bw_grpc_call *c)
{
    grpc_metadata_array_destroy(&c->headers);
    pthread_mutex_destroy(&c->mutex);
    free(c);
}

/* Takes a call out of those that live. */
static void delist(bw_grpc_call *c)
{
    bw_grpc *t = c->t;
    pthread_mutex_lock(&t->mutex);
    if (c->previous)
        c->previous->next = c->next;
    else
        t->calls = c->next;
    if (c->next)
        c->next->previous = c->previous;
    pthread_mutex_unlock(&t->mutex);
}

/* The last that happens to a call: who waits for the last one may free the transport after it. */
static void retire(bw_grpc_call *c)
{
    bw_grpc *t = c->t;
    pthread_mutex_lock(&t->mutex);
    int keep = t->spare_count < SPARE_MAX;
    if (keep) {
        c->next = t->spare;
        t->spare = c;
        t->spare_count++;
    } else {
        destroy_call(c);
    }
    if (!--t->call_count)
        pthread_cond_broadcast(&t->none_left);
    pthread_mutex_unlock(&t->mutex);
}

void bw_grpc_free_spare(bw_grpc *t)
{
    while (t->spare) {
        bw_grpc_call *next = t->spare->next;
        destroy_call(t->spare);
        t->spare = next;
    }
}

/* A call in its first state. */
static bw_grpc_call *new_call(bw_grpc *t)
{
    pthread_mutex_lock(&t->mutex);
    bw_grpc_call *c = t->spare;
    if (c) {
        t->spare = c->next;
        t->spare_count--;
    }
    pthread_mutex_unlock(&t->mutex);
    if (c) {
        memset(c, 0, offsetof(bw_grpc_call, mutex));
        c->headers.count = 0;
        return c;
    }
    c = calloc(1, sizeof *c);
    if (c) {
        grpc_metadata_array_init(&c->headers);
        pthread_mutex_init(&c->mutex, NULL);
    }
    return c;
}

/* What a call holds, but its memory. */
static void clear_call(bw_grpc_call *c)
{
    drop_payload(c);
    if (c->base.user_release)
        c->base.user_release(c->base.user);
    for (int i = 0; i < c->write_count; i++)
        destroy_buffer(&c->writes[i]);
    free(c->writes);
    destroy_buffer(&c->current);
    destroy_buffer(&c->last);
    for (size_t i = 0; i < c->trailing_count; i++)
        grpc_slice_unref(c->trailing[i].value);
    if (c->trailing != c->few_trailing)
        free(c->trailing);
    grpc_slice_unref(c->text);
    grpc_call_details_destroy(&c->details);
    if (c->core)
        grpc_call_unref(c->core);
}

static void unref(bw_grpc_call *c)
{
    if (atomic_fetch_sub(&c->refs, 1) != 1)
        return;
    delist(c);
    clear_call(c);
    retire(c);
}

/* Starts a batch that holds a reference. */
static int start(bw_grpc_call *c, const grpc_op *ops, size_t count, bw_grpc_tag *tag)
{
    atomic_fetch_add(&c->refs, 1);
    BW_HAND_OVER(tag);
    grpc_call_error error = grpc_call_start_batch(c->core, ops, count, tag, NULL);
    if (error == GRPC_CALL_OK)
        return 0;
    bw_log(BW_LOG_ERROR, "grpc", "start_batch: %s", grpc_call_error_to_string(error));
    unref(c);
    return -1;
}

/* --- sending ---------------------------------------------------------------------------------------------------- */

static grpc_byte_buffer *make_buffer(const bw_chunk *chunks, size_t count)
{
    grpc_byte_buffer *b = grpc_raw_byte_buffer_create(NULL, 0);
    for (size_t i = 0; i < count; i++) {
        const bw_chunk *p = &chunks[i];
        /* gRPC takes its bytes through a pointer to non-const, but only reads them. */
        grpc_slice s = p->release
                           ? grpc_slice_new_with_user_data((void *)(uintptr_t)p->bytes, p->size, p->release, p->user)
                           : grpc_slice_from_copied_buffer(p->bytes, p->size);
        grpc_slice_buffer_add(&b->data.raw.slice_buffer, s);
    }
    return b;
}

static size_t add_headers_op(bw_grpc_call *c, grpc_op *ops)
{
    if (c->headers_sent)
        return 0;
    c->headers_sent = 1;
    memset(&ops[0], 0, sizeof ops[0]);
    ops[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    return 1;
}

static size_t add_message_op(grpc_byte_buffer *b, grpc_op *op)
{
    if (!b)
        return 0;
    memset(op, 0, sizeof *op);
    op->op = GRPC_OP_SEND_MESSAGE;
    op->data.send_message.send_message = b;
    return 1;
}

static void add_close_op(bw_grpc_call *c, grpc_op *op)
{
    memset(op, 0, sizeof *op);
    op->op = GRPC_OP_RECV_CLOSE_ON_SERVER;
    op->data.recv_close_on_server.cancelled = &c->close_cancelled;
    c->watched = 1;
}

/* Sends the next waiting message, or the end when none is left. c->mutex is held. */
static void send_next(bw_grpc_call *c)
{
    grpc_op ops[4];
    if (c->writing)
        return;
    if (c->write_count) {
        c->current = c->writes[0];
        memmove(c->writes, c->writes + 1, (size_t)--c->write_count * sizeof c->writes[0]);
        c->writing = 1;
        size_t n = add_headers_op(c, ops);
        n += add_message_op(c->current, &ops[n]);
        if (start(c, ops, n, &c->sent))
            c->writing = 0;
        return;
    }
    if (c->finishing != 1)
        return;
    c->finishing = 2;
    size_t n = add_headers_op(c, ops);
    n += add_message_op(c->last, &ops[n]);
    memset(&ops[n], 0, sizeof ops[n]);
    ops[n].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    ops[n].data.send_status_from_server.trailing_metadata_count = c->trailing_count;
    ops[n].data.send_status_from_server.trailing_metadata = c->trailing;
    ops[n].data.send_status_from_server.status = (grpc_status_code)c->code;
    ops[n].data.send_status_from_server.status_details = &c->text;
    n++;
    /* Nobody wanted to hear of the call's end before: one event for both. */
    if (!c->watched)
        add_close_op(c, &ops[n++]);
    start(c, ops, n, &c->ended);
}

static void on_sent(bw_grpc_tag *tag, int success)
{
    bw_grpc_call *c = tag->call;
    (void)success; /* a broken connection shows as a cancellation */
    pthread_mutex_lock(&c->mutex);
    c->writing = 0;
    destroy_buffer(&c->current);
    send_next(c);
    pthread_mutex_unlock(&c->mutex);
    unref(c);
}

static void on_ended(bw_grpc_tag *tag, int success)
{
    (void)success;
    unref(tag->call);
}

static void call_write(bw_call *call, const bw_chunk *chunks, size_t count)
{
    bw_grpc_call *c = of_base(call);
    grpc_byte_buffer *b = make_buffer(chunks, count);
    pthread_mutex_lock(&c->mutex);
    if (!c->writes)
        c->writes = malloc(WRITES_MAX * sizeof *c->writes);
    int full = !c->writes || c->write_count == WRITES_MAX;
    if (!full && !c->finishing) {
        c->writes[c->write_count++] = b;
        b = NULL;
        send_next(c);
    }
    pthread_mutex_unlock(&c->mutex);
    destroy_buffer(&b);
    if (full)
        grpc_call_cancel_with_status(c->core, GRPC_STATUS_RESOURCE_EXHAUSTED, "the client does not read", NULL);
}

static void call_finish(bw_call *call, bw_code code, const char *text, const bw_chunk *chunks, size_t count,
                        const bw_meta *trailing, size_t trailing_count)
{
    bw_grpc_call *c = of_base(call);
    grpc_byte_buffer *last = chunks ? make_buffer(chunks, count) : NULL;
    pthread_mutex_lock(&c->mutex);
    c->finishing = 1;
    c->code = code;
    c->last = last;
    c->text = grpc_slice_from_copied_string(text ? text : "");
    /* Without memory for it the answer goes without. */
    c->trailing = trailing_count <= FEW_TRAILING ? c->few_trailing : calloc(trailing_count, sizeof *c->trailing);
    for (size_t i = 0; c->trailing && i < trailing_count; i++) {
        c->trailing[i].key = grpc_slice_from_static_string(trailing[i].key);
        c->trailing[i].value = grpc_slice_from_copied_string(trailing[i].value);
        c->trailing_count = i + 1;
    }
    send_next(c);
    pthread_mutex_unlock(&c->mutex);
    unref(c); /* the service's */
}

/* --- cancellation ----------------------------------------------------------------------------------------------- */

static void on_closed(bw_grpc_tag *tag, int success)
{
    bw_grpc_call *c = tag->call;
    (void)success;
    void (*callback)(bw_call *) = NULL;
    pthread_mutex_lock(&c->mutex);
    if (c->close_cancelled) {
        c->cancelled = 1;
        callback = c->on_cancel;
        c->on_cancel = NULL;
    }
    pthread_mutex_unlock(&c->mutex);
    if (callback)
        callback(&c->base);
    unref(c);
}

static void call_watch_cancel(bw_call *call, void (*on_cancel)(bw_call *call))
{
    bw_grpc_call *c = of_base(call);
    pthread_mutex_lock(&c->mutex);
    int now = c->cancelled;
    if (!now)
        c->on_cancel = on_cancel;
    if (!c->watched) {
        grpc_op op;
        add_close_op(c, &op);
        start(c, &op, 1, &c->closed);
    }
    pthread_mutex_unlock(&c->mutex);
    if (now)
        on_cancel(call);
}

static int call_cancelled(bw_call *call)
{
    bw_grpc_call *c = of_base(call);
    pthread_mutex_lock(&c->mutex);
    int cancelled = c->cancelled;
    pthread_mutex_unlock(&c->mutex);
    return cancelled;
}

static void call_drop_message(bw_call *call)
{
    drop_payload(of_base(call));
}

static int call_step_aside(bw_call *call)
{
    return bw_grpc_step_aside(of_base(call)->t);
}

static size_t call_metadata(bw_call *call, const char *key, char *value, size_t size)
{
    bw_grpc_call *c = of_base(call);
    size_t key_size = strlen(key);
    for (size_t i = 0; i < c->headers.count; i++) {
        const grpc_metadata *m = &c->headers.metadata[i];
        if (GRPC_SLICE_LENGTH(m->key) != key_size || memcmp(GRPC_SLICE_START_PTR(m->key), key, key_size))
            continue;
        size_t n = GRPC_SLICE_LENGTH(m->value);
        size_t copy = n < size ? n : size - 1;
        memcpy(value, GRPC_SLICE_START_PTR(m->value), copy);
        value[copy] = 0;
        return n;
    }
    return 0;
}

static const bw_call_ops ops_of_grpc = {
    call_write, call_finish, call_watch_cancel, call_cancelled, call_drop_message, call_step_aside, call_metadata,
};

/* --- receiving -------------------------------------------------------------------------------------------------- */

static uint64_t deadline_of(gpr_timespec deadline)
{
    if (gpr_time_cmp(deadline, gpr_inf_future(deadline.clock_type)) == 0)
        return 0;
    gpr_timespec left = gpr_time_sub(deadline, gpr_now(deadline.clock_type));
    int64_t ns = left.tv_sec > 1000000000 ? INT64_MAX / 4 : left.tv_sec * 1000000000 + left.tv_nsec;
    uint64_t now = bw_now_ns();
    return ns > 0 ? now + (uint64_t)ns : now;
}

static const bw_method *find_method(const bw_service *service, grpc_slice path)
{
    for (size_t i = 0; i < service->count; i++) {
        if (grpc_slice_str_cmp(path, service->methods[i].path) == 0)
            return &service->methods[i];
    }
    return NULL;
}

static void refuse_unknown(bw_grpc_call *c)
{
    int size = (int)GRPC_SLICE_LENGTH(c->details.method);
    bw_error err;
    bw_fail(&err, BW_UNSUPPORTED,
            "method '%.*s' is not served here: expected one of tensorflow.serving.PredictionService/Predict, "
            "inference.GRPCInferenceService/..., grpc.health.v1.Health/...",
            size > 128 ? 128 : size, (const char *)GRPC_SLICE_START_PTR(c->details.method));
    bw_call_fail(&c->base, &err);
}

static void on_received(bw_grpc_tag *tag, int success)
{
    bw_grpc_call *c = tag->call;
    atomic_store(&c->receiving, 0);
    if (!success || !c->payload) {
        /* Cut off, too large (core answers that itself), or a client that closed without a message. */
        bw_call_finish(&c->base, BW_CODE_INVALID_ARGUMENT, "the call carried no message: send one request", NULL, 0,
                       NULL, 0);
        unref(c);
        return;
    }
    grpc_slice_buffer *all = &c->payload->data.raw.slice_buffer;
    c->slices = all->count <= FEW_SLICES ? c->few_slices : malloc(all->count * sizeof *c->slices);
    if (!c->slices) {
        bw_call_finish(&c->base, BW_CODE_RESOURCE_EXHAUSTED, "out of memory: try again later", NULL, 0, NULL, 0);
        unref(c);
        return;
    }
    for (size_t i = 0; i < all->count; i++)
        c->slices[i] = (bw_slice){GRPC_SLICE_START_PTR(all->slices[i]), GRPC_SLICE_LENGTH(all->slices[i])};
    c->base.message = c->slices;
    c->base.message_slices = all->count;
    c->base.message_size = all->length;
    c->method->handle(&c->base, c->method->user);
    unref(c);
}

static void on_arrived(bw_grpc_tag *tag, int success)
{
    bw_grpc_call *c = tag->call;
    if (!success) { /* shutting down */
        clear_call(c);
        destroy_call(c);
        return;
    }
    if (bw_grpc_request_call(c->t))
        bw_log(BW_LOG_ERROR, "grpc", "out of memory: one receiving slot is lost");
    c->base.received_ns = bw_now_ns();
    c->base.deadline_ns = deadline_of(c->details.deadline);
    enlist(c);
    c->method = find_method(c->t->service, c->details.method);
    if (!c->method) {
        refuse_unknown(c);
        return;
    }
    if (atomic_load(&c->t->refusing)) {
        bw_call_finish(&c->base, BW_CODE_UNAVAILABLE, "the server is going: ask another", NULL, 0, NULL, 0);
        return;
    }
    grpc_op op;
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_RECV_MESSAGE;
    op.data.recv_message.recv_message = &c->payload;
    atomic_store(&c->receiving, 1);
    if (start(c, &op, 1, &c->received))
        bw_call_finish(&c->base, BW_CODE_INTERNAL, "cannot receive the message", NULL, 0, NULL, 0);
}

int bw_grpc_request_call(bw_grpc *t)
{
    bw_grpc_call *c = new_call(t);
    if (!c)
        return -1;
    c->base.ops = &ops_of_grpc;
    c->t = t;
    atomic_store(&c->refs, 1);
    c->arrived = (bw_grpc_tag){on_arrived, c};
    c->received = (bw_grpc_tag){on_received, c};
    c->closed = (bw_grpc_tag){on_closed, c};
    c->sent = (bw_grpc_tag){on_sent, c};
    c->ended = (bw_grpc_tag){on_ended, c};
    c->text = grpc_empty_slice();
    grpc_call_details_init(&c->details);
    BW_HAND_OVER(&c->arrived);
    if (grpc_server_request_call(t->server, &c->core, &c->details, &c->headers, t->queue, t->queue, &c->arrived) !=
        GRPC_CALL_OK) {
        clear_call(c);
        destroy_call(c);
        return -1;
    }
    return 0;
}

void bw_grpc_refuse_slow(bw_grpc *t, uint64_t now_ns)
{
    for (bw_grpc_call *c = t->calls; c; c = c->next) {
        if (atomic_load(&c->receiving) == 1 && now_ns - c->base.received_ns > t->upload_ns) {
            atomic_store(&c->receiving, 2);
            grpc_call_cancel_with_status(c->core, GRPC_STATUS_DEADLINE_EXCEEDED,
                                         "the request's message took too long to arrive", NULL);
        }
    }
}

void bw_grpc_mark_connections(bw_grpc *t, uint8_t *in_use, int max_fd)
{
    for (bw_grpc_call *c = t->calls; c; c = c->next) {
        char *peer = grpc_call_get_peer(c->core); /* "fd:12", for connections that core was given as a socket */
        int fd;
        if (peer && sscanf(peer, "fd:%d", &fd) == 1 && fd >= 0 && fd <= max_fd)
            in_use[fd] = 1;
        gpr_free(peer);
    }
}
