/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The load over gRPC core: see service/client/load.h. One thread takes all answers and, in the closed loop, sends the
 * next requests; in the open loop a second one sends, because gRPC's own waits are no more exact than a millisecond.
 */
#include "service/client/load.h"

#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <grpc/support/time.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>

#include "hal/base.h"
#include "service/client/request.h"
#include "service/grpc_tsan.h"

#define NS 1000000000u
/* A caller that was refused at once waits so long before it asks again. */
#define REFUSED_PAUSE_NS 10000000u
/* How long to wait for the last answers. */
#define LAST_ANSWERS_NS       (10ull * NS)
#define LAST_ANSWERS_HURRY_NS (1ull * NS)

typedef struct slot {
    struct run *run;
    grpc_channel *channel;
    grpc_call *call;
    grpc_byte_buffer *reply;
    grpc_metadata_array initial, trailing;
    grpc_status_code code;
    grpc_slice text;
    uint64_t intended_ns, resume_ns;
    struct slot *next; /* while it is free */
} slot;

struct bw_load {
    unsigned connections;
    int (*interrupted)(void);
    grpc_channel_credentials *credentials;
    grpc_completion_queue *queue;
    grpc_channel *channels[];
};

typedef struct run {
    bw_load *load;
    const bw_load_options *o;
    bw_load_figures *f;
    grpc_slice path, message;
    slot *slots;
    unsigned slot_count, busy, pausing;
    uint64_t measure_from;
    _Atomic uint64_t measure_to; /* moves forward when interrupted */
    int given_up;
    atomic_int stop;
    /* open loop */
    pthread_mutex_t mutex;
    pthread_cond_t freed;
    slot *free_slots;
    atomic_uint flying;
    uint64_t due, sent; /* of the measured time */
} run;

const char *bw_load_code_name(unsigned code)
{
    static const char *const names[BW_LOAD_CODES] = {
        "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
        "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
        "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
        "DATA_LOSS", "UNAUTHENTICATED"};
    return code < BW_LOAD_CODES ? names[code] : "UNKNOWN";
}

/* --- connections -------------------------------------------------------------------------------------------------- */

static grpc_arg int_arg(const char *key, int value)
{
    return (grpc_arg){.type = GRPC_ARG_INTEGER, .key = (char *)(uintptr_t)key, .value.integer = value};
}

bw_status bw_load_connect(const bw_load_options *o, bw_load **load, bw_error *err)
{
    bw_load *l = calloc(1, sizeof *l + o->connections * sizeof l->channels[0]);
    *load = l;
    if (!l)
        return bw_fail(err, BW_NO_MEMORY, "out of memory for %u connections", o->connections);
    l->interrupted = o->interrupted;
    grpc_init();
    l->credentials = grpc_insecure_credentials_create();
    l->queue = grpc_completion_queue_create_for_next(NULL);
    grpc_arg args[] = {
        /* The client shares the machine with what it measures: no retries, compression, statistics or size limits. */
        int_arg(GRPC_ARG_MINIMAL_STACK, 1),
        int_arg(GRPC_ARG_ENABLE_DEADLINE_CHECKS, 1),
        int_arg(GRPC_ARG_ENABLE_RETRIES, 0),
        int_arg(GRPC_ARG_ENABLE_CHANNELZ, 0),
        /* A connection for each channel, not one for all. */
        int_arg(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1),
        int_arg(GRPC_ARG_ENABLE_HTTP_PROXY, 0),
    };
    grpc_channel_args all = {sizeof args / sizeof args[0], args};
    for (; l->connections < o->connections; l->connections++)
        l->channels[l->connections] = grpc_channel_create(o->address, l->credentials, &all);
    return BW_OK;
}

void bw_load_ignore_interrupts(bw_load *l)
{
    l->interrupted = NULL;
}

void bw_load_close(bw_load *l)
{
    if (!l)
        return;
    for (unsigned i = 0; i < l->connections; i++)
        grpc_channel_destroy(l->channels[i]);
    grpc_completion_queue_shutdown(l->queue);
    while (grpc_completion_queue_next(l->queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL).type != GRPC_QUEUE_SHUTDOWN)
        ;
    grpc_completion_queue_destroy(l->queue);
    grpc_channel_credentials_release(l->credentials);
    grpc_shutdown();
    free(l);
}

/* --- one call ----------------------------------------------------------------------------------------------------- */

static gpr_timespec deadline_in(double seconds)
{
    if (seconds <= 0)
        return gpr_inf_future(GPR_CLOCK_MONOTONIC);
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_nanos((int64_t)(seconds * 1e9), GPR_TIMESPAN));
}

static void start_call(slot *s, grpc_completion_queue *queue, grpc_slice path, grpc_slice message, double seconds,
                       int wait_for_ready)
{
    s->call = grpc_channel_create_call(s->channel, NULL, GRPC_PROPAGATE_DEFAULTS, queue, path, NULL,
                                       deadline_in(seconds), NULL);
    grpc_byte_buffer *payload = grpc_raw_byte_buffer_create(&message, 1);
    grpc_op ops[6];
    memset(ops, 0, sizeof ops);
    ops[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    if (wait_for_ready)
        ops[0].flags = GRPC_INITIAL_METADATA_WAIT_FOR_READY | GRPC_INITIAL_METADATA_WAIT_FOR_READY_EXPLICITLY_SET;
    ops[1].op = GRPC_OP_SEND_MESSAGE;
    ops[1].data.send_message.send_message = payload;
    ops[2].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    ops[3].op = GRPC_OP_RECV_INITIAL_METADATA;
    ops[3].data.recv_initial_metadata.recv_initial_metadata = &s->initial;
    ops[4].op = GRPC_OP_RECV_MESSAGE;
    ops[4].data.recv_message.recv_message = &s->reply;
    ops[5].op = GRPC_OP_RECV_STATUS_ON_CLIENT;
    ops[5].data.recv_status_on_client.trailing_metadata = &s->trailing;
    ops[5].data.recv_status_on_client.status = &s->code;
    ops[5].data.recv_status_on_client.status_details = &s->text;
    grpc_call *call = s->call; /* s belongs to the receiving thread from here on */
    BW_HAND_OVER(s);
    grpc_call_error error = grpc_call_start_batch(call, ops, 6, s, NULL);
    /* Core has taken the slices out of it. */
    grpc_byte_buffer_destroy(payload);
    if (error != GRPC_CALL_OK) {
        /* Only misuse leads here. */
        bw_log(BW_LOG_ERROR, "bench-client", "start_batch: %s", grpc_call_error_to_string(error));
        abort();
    }
}

static void init_slot(slot *s)
{
    grpc_metadata_array_init(&s->initial);
    grpc_metadata_array_init(&s->trailing);
    s->text = grpc_empty_slice();
}

/* Ready for the next call. */
static void end_call(slot *s)
{
    if (s->reply)
        grpc_byte_buffer_destroy(s->reply);
    s->reply = NULL;
    s->initial.count = s->trailing.count = 0;
    grpc_slice_unref(s->text);
    s->text = grpc_empty_slice();
    grpc_call_unref(s->call);
    s->call = NULL;
}

static void free_slot(slot *s)
{
    grpc_metadata_array_destroy(&s->initial);
    grpc_metadata_array_destroy(&s->trailing);
    grpc_slice_unref(s->text);
}

static void text_of(const slot *s, char *text, size_t size)
{
    bw_bench_printable(GRPC_SLICE_START_PTR(s->text), GRPC_SLICE_LENGTH(s->text), text, size);
}

/* A server may say CANCELLED too: only if this side gave up was it interrupted. */
static bw_status status_of(grpc_status_code code, int given_up)
{
    return code == GRPC_STATUS_UNAVAILABLE             ? BW_BUSY
           : code == GRPC_STATUS_UNIMPLEMENTED         ? BW_UNSUPPORTED
           : code == GRPC_STATUS_DEADLINE_EXCEEDED     ? BW_TIMEOUT
           : code == GRPC_STATUS_CANCELLED && given_up ? BW_CANCELLED
                                                       : BW_INVALID_ARGUMENT;
}

static bw_status take_reply(const slot *s, void **reply, size_t *size, bw_error *err)
{
    *size = s->reply ? grpc_byte_buffer_length(s->reply) : 0;
    *reply = malloc(*size + 1);
    if (!*reply)
        return bw_fail(err, BW_NO_MEMORY, "out of memory for the reply");
    grpc_byte_buffer_reader reader;
    if (!s->reply || !grpc_byte_buffer_reader_init(&reader, s->reply))
        return BW_OK;
    grpc_slice all = grpc_byte_buffer_reader_readall(&reader);
    memcpy(*reply, GRPC_SLICE_START_PTR(all), *size);
    grpc_slice_unref(all);
    grpc_byte_buffer_reader_destroy(&reader);
    return BW_OK;
}

bw_status bw_load_call(bw_load *l, unsigned connection, const char *path, const void *bytes, size_t size,
                       double seconds, void **reply, size_t *reply_size, bw_error *err)
{
    slot s = {.channel = l->channels[connection]};
    *reply = NULL;
    *reply_size = 0;
    init_slot(&s);
    grpc_slice method = grpc_slice_from_static_string(path);
    grpc_slice message = grpc_slice_from_static_buffer(bytes, size);
    start_call(&s, l->queue, method, message, seconds, 1);
    int given_up = 0;
    for (;;) {
        gpr_timespec wait = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(50, GPR_TIMESPAN));
        if (grpc_completion_queue_next(l->queue, wait, NULL).type == GRPC_OP_COMPLETE)
            break;
        if (!given_up && l->interrupted && l->interrupted()) {
            given_up = 1;
            grpc_call_cancel(s.call, NULL);
        }
    }
    BW_TAKE_OVER(&s);
    bw_status status;
    if (s.code == GRPC_STATUS_OK) {
        status = take_reply(&s, reply, reply_size, err);
    } else {
        char text[300];
        text_of(&s, text, sizeof text);
        status =
            bw_fail(err, status_of(s.code, given_up), "%s: %s: %s", path, bw_load_code_name((unsigned)s.code), text);
    }
    end_call(&s);
    free_slot(&s);
    return status;
}

/* --- figures ------------------------------------------------------------------------------------------------------ */

void bw_load_figures_free(bw_load_figures *f)
{
    free(f->latency_ns);
    free(f->late_ns);
    for (unsigned i = 0; i < f->stage_count; i++)
        free(f->stages[i].us);
    memset(f, 0, sizeof *f);
}

/* "bw-NAME-us": NUMBER. */
static void note_stage(bw_load_figures *f, const grpc_metadata *m)
{
    const char *key = (const char *)GRPC_SLICE_START_PTR(m->key), *text = (const char *)GRPC_SLICE_START_PTR(m->value);
    size_t size = GRPC_SLICE_LENGTH(m->key), digits = GRPC_SLICE_LENGTH(m->value);
    if (size < 7 || size - 6 >= sizeof f->stages[0].name || memcmp(key, "bw-", 3) || memcmp(key + size - 3, "-us", 3))
        return;
    if (!digits || digits >= 16)
        return;
    uint64_t value = 0;
    for (size_t i = 0; i < digits; i++) {
        if (text[i] < '0' || text[i] > '9')
            return;
        value = value * 10 + (uint64_t)(text[i] - '0');
    }
    unsigned i = 0;
    while (i < f->stage_count && (strncmp(f->stages[i].name, key + 3, size - 6) || f->stages[i].name[size - 6]))
        i++;
    if (i == BW_LOAD_STAGES)
        return;
    if (i == f->stage_count) {
        f->stages[i].us = bw_histogram_new();
        if (!f->stages[i].us)
            return;
        memcpy(f->stages[i].name, key + 3, size - 6);
        f->stage_count++;
    }
    bw_histogram_add(f->stages[i].us, value);
}

static void record(run *r, const slot *s, uint64_t now)
{
    bw_load_figures *f = r->f;
    if (s->code == GRPC_STATUS_OK && now >= r->measure_from && now < r->measure_to)
        f->in_time++;
    if (s->intended_ns < r->measure_from || s->intended_ns >= r->measure_to)
        return;
    if (r->given_up) {
        f->unfinished++;
        return;
    }
    /* A server may send any number; the enum is signed. */
    unsigned code = (unsigned)s->code < BW_LOAD_CODES ? (unsigned)s->code : GRPC_STATUS_UNKNOWN;
    if (!f->codes[code]++ && code)
        text_of(s, f->first_error[code], sizeof f->first_error[code]);
    if (code) {
        f->failed++;
        return;
    }
    f->ok++;
    f->reply_bytes += s->reply ? grpc_byte_buffer_length(s->reply) : 0;
    bw_histogram_add(f->latency_ns, now - s->intended_ns);
    for (size_t i = 0; i < s->trailing.count; i++)
        note_stage(f, &s->trailing.metadata[i]);
}

static double cpu_seconds(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

/* Sends the slot's request, whose time has begun. */
static void send(run *r, slot *s)
{
    const bw_load_options *o = r->o;
    unsigned number = (unsigned)(s - r->slots);
    if (o->before)
        o->before(o->user, number);
    const bw_slice *own = o->messages ? &o->messages[number] : NULL;
    atomic_fetch_add(&r->flying, 1);
    start_call(s, r->load->queue, r->path, own ? grpc_slice_from_static_buffer(own->bytes, own->size) : r->message,
               o->deadline_seconds, 0);
}

/* --- open loop ---------------------------------------------------------------------------------------------------- */

static void push_free(run *r, slot *s)
{
    pthread_mutex_lock(&r->mutex);
    s->next = r->free_slots;
    r->free_slots = s;
    pthread_cond_signal(&r->freed);
    pthread_mutex_unlock(&r->mutex);
}

/* NULL: the run has ended. */
static slot *pop_free(run *r)
{
    pthread_mutex_lock(&r->mutex);
    while (!r->free_slots && !atomic_load(&r->stop))
        pthread_cond_wait(&r->freed, &r->mutex);
    slot *s = atomic_load(&r->stop) ? NULL : r->free_slots;
    if (s)
        r->free_slots = s->next;
    pthread_mutex_unlock(&r->mutex);
    return s;
}

/* Until `at`, in steps that notice the end. */
static void sleep_until(run *r, uint64_t at)
{
    for (uint64_t now; (now = bw_now_ns()) < at && !atomic_load(&r->stop);) {
        uint64_t to = at - now > NS / 10 ? now + NS / 10 : at;
        struct timespec t = {(time_t)(to / NS), (long)(to % NS)};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
    }
}

static void *send_loop(void *arg)
{
    run *r = arg;
    const bw_load_options *o = r->o;
    uint64_t seed = o->seed * 2 + 1;
    double gap = 1e9 / o->rate, at = (double)bw_now_ns();
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
    for (;;) {
        at += o->poisson ? -log(1 - bw_bench_random(&seed)) * gap : gap;
        uint64_t intended = (uint64_t)at;
        sleep_until(r, intended);
        if (intended >= atomic_load(&r->measure_to))
            break;
        int measured = intended >= r->measure_from;
        r->due += (uint64_t)measured;
        slot *s = pop_free(r);
        if (!s)
            continue; /* counts what else was due */
        if (measured) {
            r->sent++;
            bw_histogram_add(r->f->late_ns, bw_now_ns() - intended);
        }
        s->intended_ns = intended;
        send(r, s);
    }
    return NULL;
}

/* --- the run ------------------------------------------------------------------------------------------------------ */

static void send_next(slot *s, uint64_t now)
{
    s->intended_ns = now;
    send(s->run, s);
}

static void answered(run *r, slot *s)
{
    BW_TAKE_OVER(s);
    if (r->o->after && s->code == GRPC_STATUS_OK)
        r->o->after(r->o->user, (unsigned)(s - r->slots));
    uint64_t now = bw_now_ns();
    record(r, s, now);
    int refused = s->code != GRPC_STATUS_OK && now - s->intended_ns < REFUSED_PAUSE_NS;
    end_call(s);
    atomic_fetch_sub(&r->flying, 1);
    if (r->o->rate > 0) {
        push_free(r, s);
    } else if (atomic_load(&r->stop) || now >= r->measure_to) {
        return;
    } else if (refused) {
        s->resume_ns = now + REFUSED_PAUSE_NS;
        r->pausing++;
    } else {
        send_next(s, bw_now_ns()); /* what was done with this answer is not the next one's latency */
    }
}

/* Callers that were refused ask again. */
static void resume(run *r)
{
    uint64_t now = bw_now_ns();
    for (unsigned i = 0; i < r->slot_count && r->pausing; i++) {
        slot *s = &r->slots[i];
        if (!s->resume_ns || now < s->resume_ns)
            continue;
        s->resume_ns = 0;
        r->pausing--;
        if (!atomic_load(&r->stop) && now < r->measure_to)
            send_next(s, now);
    }
}

static void interrupt_run(run *r, uint64_t now)
{
    r->f->interrupted = 1;
    if (now < r->measure_to)
        r->measure_to = now;
}

/* Until the end of the measured time, then until the last answer. */
static void receive(run *r)
{
    double cpu_from = -1, cpu_to = -1;
    uint64_t asked = 0;
    for (;;) {
        gpr_timespec wait =
            gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(r->pausing ? 5 : 50, GPR_TIMESPAN));
        grpc_event event = grpc_completion_queue_next(r->load->queue, wait, NULL);
        if (event.type == GRPC_OP_COMPLETE)
            answered(r, event.tag);
        if (r->pausing)
            resume(r);
        uint64_t now = bw_now_ns();
        if (cpu_from < 0 && now >= r->measure_from)
            cpu_from = cpu_seconds();
        if (now - asked > NS / 20) {
            asked = now;
            if (!r->f->interrupted && r->o->interrupted && r->o->interrupted())
                interrupt_run(r, now);
        }
        if (now < r->measure_to)
            continue;
        cpu_to = cpu_seconds();
        pthread_mutex_lock(&r->mutex);
        atomic_store(&r->stop, 1);
        pthread_cond_broadcast(&r->freed);
        pthread_mutex_unlock(&r->mutex);
        break;
    }
    r->f->client_cpu_seconds = cpu_from < 0 ? 0 : cpu_to - cpu_from;
}

/* The sender has ended: what is on its way can only become less. */
static void receive_last(run *r)
{
    uint64_t ended = bw_now_ns();
    while (atomic_load(&r->flying)) {
        gpr_timespec wait = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(50, GPR_TIMESPAN));
        grpc_event event = grpc_completion_queue_next(r->load->queue, wait, NULL);
        if (event.type == GRPC_OP_COMPLETE)
            answered(r, event.tag);
        if (r->o->interrupted && r->o->interrupted())
            r->f->interrupted = 1;
        uint64_t patience = r->f->interrupted ? LAST_ANSWERS_HURRY_NS : LAST_ANSWERS_NS;
        if (!r->given_up && bw_now_ns() - ended > patience) {
            r->given_up = 1;
            for (unsigned i = 0; i < r->slot_count; i++) {
                if (r->slots[i].call)
                    grpc_call_cancel(r->slots[i].call, NULL);
            }
        }
    }
}

static bw_status prepare(run *r, bw_error *err)
{
    r->f->latency_ns = bw_histogram_new();
    r->f->late_ns = bw_histogram_new();
    r->slots = calloc(r->slot_count, sizeof *r->slots);
    if (!r->f->latency_ns || !r->f->late_ns || !r->slots)
        return bw_fail(err, BW_NO_MEMORY, "out of memory for %u requests at once", r->slot_count);
    for (unsigned i = r->slot_count; i--;) {
        slot *s = &r->slots[i];
        s->run = r;
        s->channel = r->load->channels[i % r->load->connections];
        init_slot(s);
        s->next = r->free_slots;
        r->free_slots = s;
    }
    return BW_OK;
}

bw_status bw_load_run(bw_load *l, const bw_load_options *o, bw_load_figures *f, bw_error *err)
{
    memset(f, 0, sizeof *f);
    run r = {.load = l, .o = o, .f = f, .slot_count = l->connections * o->outstanding};
    bw_status status = prepare(&r, err);
    pthread_mutex_init(&r.mutex, NULL);
    pthread_cond_init(&r.freed, NULL);
    r.path = grpc_slice_from_static_string(o->path);
    r.message = grpc_slice_from_static_buffer(o->message, o->message_size);
    r.measure_from = bw_now_ns() + (uint64_t)(o->warmup_seconds * 1e9);
    atomic_init(&r.measure_to, r.measure_from + (uint64_t)(o->seconds * 1e9));
    pthread_t sender;
    int sending = 0;
    if (!status && o->rate > 0) {
        sending = !pthread_create(&sender, NULL, send_loop, &r);
        if (!sending)
            status = bw_fail(err, BW_NO_MEMORY, "cannot start the sending thread");
    }
    for (unsigned i = 0; i < r.slot_count && !status && !sending; i++)
        send_next(&r.slots[i], bw_now_ns());
    if (!status)
        receive(&r);
    if (sending)
        pthread_join(sender, NULL);
    if (!status)
        receive_last(&r);
    for (unsigned i = 0; r.slots && i < r.slot_count; i++)
        free_slot(&r.slots[i]);
    free(r.slots);
    pthread_cond_destroy(&r.freed);
    pthread_mutex_destroy(&r.mutex);
    f->not_sent = r.due - r.sent;
    f->seconds = r.measure_to > r.measure_from ? (double)(r.measure_to - r.measure_from) * 1e-9 : 0;
    return status;
}
