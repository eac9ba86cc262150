/* SPDX-License-Identifier: Apache-2.0 */
/* Starting, running and stopping gRPC core; the calls themselves are in grpc_call.c. */
#include <dlfcn.h>
#include <errno.h>
#include <grpc/grpc.h>
#include <grpc/grpc_posix.h>
#include <grpc/grpc_security.h>
#include <grpc/support/log.h>
#include <malloc.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "service/grpc_call.h"
#include "service/grpc_transport.h"

static void forward_log(gpr_log_func_args *args)
{
    char line[400];
    size_t n = 0;
    for (const char *p = args->message; *p && n < sizeof line - 1; p++)
        line[n++] = *p == '\n' ? ' ' : *p;
    line[n] = 0;
    bw_log(args->severity == GPR_LOG_SEVERITY_ERROR ? BW_LOG_WARN : BW_LOG_DEBUG, "grpc", "%s", line);
}

void bw_grpc_prepare_process(void)
{
    gpr_set_log_function(forward_log);
    /* With the defaults every large message is mapped and unmapped anew: more than half of the CPU time at 600 KB. */
    mallopt(M_MMAP_THRESHOLD, 128 << 20);
    mallopt(M_TRIM_THRESHOLD, 128 << 20);
    mallopt(M_TOP_PAD, 16 << 20);
    /* Debian's gRPC is built with abseil's lock-order checker on: about 18 % of the CPU time. */
    void (*set_detection)(int);
    void *symbol = dlsym(RTLD_DEFAULT, "_ZN4absl7debian329SetMutexDeadlockDetectionModeENS0_15OnDeadlockCycleE");
    memcpy(&set_detection, &symbol, sizeof symbol);
    if (symbol)
        set_detection(0);
}

/* --- threads ---------------------------------------------------------------------------------------------------- */

/* This thread has given its seat away in the handler that it is in. */
static _Thread_local int stepped_aside;

int bw_grpc_step_aside(bw_grpc *t)
{
    pthread_mutex_lock(&t->mutex);
    stepped_aside = t->standby > t->seats;
    if (stepped_aside) {
        t->seats++;
        pthread_cond_signal(&t->seat_free);
    }
    pthread_mutex_unlock(&t->mutex);
    return stepped_aside;
}

/* 0: there is nothing to receive any more. */
static int take_seat(bw_grpc *t)
{
    pthread_mutex_lock(&t->mutex);
    while (!t->seats && !t->received_all) {
        t->standby++;
        pthread_cond_wait(&t->seat_free, &t->mutex);
        t->standby--;
    }
    int taken = !t->received_all;
    t->seats -= (unsigned)taken;
    pthread_mutex_unlock(&t->mutex);
    return taken;
}

static void end_receiving(bw_grpc *t)
{
    pthread_mutex_lock(&t->mutex);
    t->received_all = 1;
    pthread_cond_broadcast(&t->seat_free);
    pthread_mutex_unlock(&t->mutex);
}

/* A handler that works for long hands receiving over instead of handing its work over: waking another thread then costs
 * the request no time. */
static void *poll_loop(void *arg)
{
    bw_grpc *t = arg;
    while (take_seat(t)) {
        for (stepped_aside = 0; !stepped_aside;) {
            grpc_event event = grpc_completion_queue_next(t->queue, gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
            if (event.type == GRPC_QUEUE_SHUTDOWN) {
                end_receiving(t);
                return NULL;
            }
            bw_grpc_tag *tag = event.tag;
            BW_TAKE_OVER(tag);
            tag->done(tag, event.success);
        }
    }
    return NULL;
}

/* Slow uploads are invisible to the services: nobody is called before the message is complete. */
static void *watch_loop(void *arg)
{
    bw_grpc *t = arg;
    pthread_mutex_lock(&t->mutex);
    while (!t->stopping) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += 1;
        pthread_cond_timedwait(&t->wake, &t->mutex, &until);
        bw_grpc_refuse_slow(t, bw_now_ns());
    }
    pthread_mutex_unlock(&t->mutex);
    return NULL;
}

static void accepted(int fd, void *user)
{
    bw_grpc *t = user;
    grpc_server_add_channel_from_fd(t->server, fd, t->credentials);
}

/* Calls that have no end, such as a watch, keep their connection open however silent it is. */
static void mark_in_use(uint8_t *in_use, int max_fd, void *user)
{
    bw_grpc *t = user;
    pthread_mutex_lock(&t->mutex);
    bw_grpc_mark_connections(t, in_use, max_fd);
    pthread_mutex_unlock(&t->mutex);
}

/* HTTP/2's GOAWAY, by hand: core can say it to all connections only. Nothing else is on its way on an idle one. "No
 * stream was processed" (the ended ones do not matter) lets a client that calls just now try elsewhere by itself. */
static void take_leave(int fd)
{
    static const uint8_t goaway[] = {0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    send(fd, goaway, sizeof goaway, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* --- start ------------------------------------------------------------------------------------------------------ */

static grpc_arg int_arg(const char *key, int value)
{
    return (grpc_arg){.type = GRPC_ARG_INTEGER, .key = (char *)(uintptr_t)key, .value.integer = value};
}

static grpc_server *make_server(const bw_grpc_options *o)
{
    grpc_arg args[] = {
        int_arg(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, (int)o->max_message_bytes),
        int_arg(GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, -1),
        int_arg(GRPC_ARG_ALLOW_REUSEPORT, 0),
        /* Identity only: the size limit is checked after inflation, so a small bomb would pass it. */
        int_arg(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1),
        int_arg(GRPC_ARG_MAX_CONCURRENT_STREAMS, 1024),
        int_arg(GRPC_ARG_MAX_METADATA_SIZE, 16384),
        int_arg(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
        int_arg(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10000),
        /* Only with probes does core open the connection's window beyond 64 KB: at once to 4 MB, and frames too.
         * Without them a client with a large request waits for leave after its first 64 KB. */
        int_arg(GRPC_ARG_HTTP2_BDP_PROBE, 1),
        /* What every call would pass through for nothing: messages are never compressed (those that say so are
         * refused before), nobody asks for the channels' statistics. */
        int_arg(GRPC_ARG_ENABLE_PER_MESSAGE_COMPRESSION, 0),
        int_arg(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0),
        int_arg(GRPC_ARG_ENABLE_CHANNELZ, 0),
    };
    grpc_channel_args all = {sizeof args / sizeof args[0], args};
    return grpc_server_create(&all, NULL);
}

static unsigned default_threads(void)
{
    cpu_set_t set;
    int cpus = sched_getaffinity(0, sizeof set, &set) ? 2 : CPU_COUNT(&set);
    return cpus < 4 ? 1 : cpus > 8 ? 4 : (unsigned)cpus / 2;
}

static void free_transport(bw_grpc *t)
{
    pthread_cond_destroy(&t->wake);
    pthread_cond_destroy(&t->none_left);
    pthread_cond_destroy(&t->seat_free);
    pthread_mutex_destroy(&t->mutex);
    bw_listener_close(t->listener);
    bw_grpc_free_spare(t);
    free(t);
}

/* Everything of gRPC's, after the last event. */
static void destroy_core(bw_grpc *t)
{
    grpc_completion_queue_shutdown(t->queue);
    for (unsigned i = 0; i < t->thread_count; i++)
        pthread_join(t->threads[i], NULL);
    if (!t->thread_count) {
        t->seats = 1;
        poll_loop(t);
    }
    grpc_server_destroy(t->server);
    grpc_completion_queue_destroy(t->queue);
    grpc_completion_queue_shutdown(t->stop_queue);
    while (grpc_completion_queue_next(t->stop_queue, gpr_inf_future(GPR_CLOCK_REALTIME), NULL).type !=
           GRPC_QUEUE_SHUTDOWN)
        ;
    grpc_completion_queue_destroy(t->stop_queue);
    grpc_server_credentials_release(t->credentials);
    grpc_shutdown();
}

static bw_status start_threads(bw_grpc *t, const bw_grpc_options *o, bw_error *err)
{
    unsigned wanted = o->threads ? o->threads : default_threads();
    if (wanted > BW_GRPC_THREADS)
        wanted = BW_GRPC_THREADS;
    t->seats = wanted;
    while (t->thread_count < 2 * wanted) {
        if (pthread_create(&t->threads[t->thread_count], NULL, poll_loop, t))
            return bw_fail(err, BW_NO_MEMORY, "cannot start a receiving thread");
        t->thread_count++;
    }
    if (pthread_create(&t->watcher, NULL, watch_loop, t))
        return bw_fail(err, BW_NO_MEMORY, "cannot start the upload watch");
    t->watching = 1;
    /* One standing request per receiving thread: a generic one, so that unknown methods are answered too. */
    for (unsigned i = 0; i < wanted; i++) {
        if (bw_grpc_request_call(t))
            return bw_fail(err, BW_NO_MEMORY, "out of memory starting gRPC");
    }
    bw_listener_options listening = {
        .max_connections = o->max_connections,
        .idle_ms = o->idle_seconds * 1000,
        .accepted = accepted,
        .mark_in_use = mark_in_use,
        .take_leave = take_leave,
        .user = t,
    };
    return bw_listener_start(t->listener, &listening, err);
}

bw_status bw_grpc_start(const bw_grpc_options *o, bw_grpc **transport, bw_error *err)
{
    *transport = NULL;
    bw_grpc *t = calloc(1, sizeof *t);
    if (!t)
        return bw_fail(err, BW_NO_MEMORY, "out of memory starting gRPC");
    pthread_mutex_init(&t->mutex, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&t->wake, &attr);
    pthread_cond_init(&t->none_left, &attr);
    pthread_cond_init(&t->seat_free, NULL);
    pthread_condattr_destroy(&attr);
    t->service = o->service;
    t->max_message_bytes = o->max_message_bytes;
    t->upload_ns = (uint64_t)o->upload_seconds * 1000000000u;
    bw_status status = bw_listener_open(o->address, &t->listener, err);
    if (status) {
        free_transport(t);
        return status;
    }
    gpr_set_log_function(forward_log);
    grpc_init();
    t->credentials = grpc_insecure_server_credentials_create();
    t->queue = grpc_completion_queue_create_for_next(NULL);
    grpc_completion_queue_attributes attributes = {
        .version = 1, .cq_completion_type = GRPC_CQ_NEXT, .cq_polling_type = GRPC_CQ_NON_LISTENING};
    t->stop_queue = grpc_completion_queue_create(grpc_completion_queue_factory_lookup(&attributes), &attributes, NULL);
    t->server = make_server(o);
    grpc_server_register_completion_queue(t->server, t->queue, NULL);
    grpc_server_start(t->server);
    status = start_threads(t, o, err);
    if (status) {
        bw_grpc_stop(t, 10000);
        return status;
    }
    *transport = t;
    return BW_OK;
}

const char *bw_grpc_address(const bw_grpc *t)
{
    return bw_listener_address(t->listener);
}

int bw_grpc_port(const bw_grpc *t)
{
    return bw_listener_port(t->listener);
}

/* --- stop ------------------------------------------------------------------------------------------------------- */

void bw_grpc_refuse_new(bw_grpc *t)
{
    /* Core's own shutdown answers calls that are on their way with CANCELLED, which clients do not try again: so calls
     * are refused here, and core is shut down when none is left. */
    atomic_store(&t->refusing, 1);
    bw_listener_stop(t->listener);
}

int bw_grpc_idle(bw_grpc *t, int ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += ms / 1000;
    until.tv_nsec += (long)(ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    pthread_mutex_lock(&t->mutex);
    while (t->call_count && pthread_cond_timedwait(&t->none_left, &t->mutex, &until) != ETIMEDOUT)
        ;
    int idle = !t->call_count;
    pthread_mutex_unlock(&t->mutex);
    return idle;
}

int bw_grpc_quiet(bw_grpc *t, int ms)
{
    pthread_mutex_lock(&t->mutex);
    uint64_t last = t->last_arrival_ns;
    pthread_mutex_unlock(&t->mutex);
    return bw_now_ns() - last >= (uint64_t)ms * 1000000u;
}

unsigned bw_grpc_calls(bw_grpc *t)
{
    pthread_mutex_lock(&t->mutex);
    unsigned n = t->call_count;
    pthread_mutex_unlock(&t->mutex);
    return n;
}

static void begin_shutdown(bw_grpc *t)
{
    if (t->shutting_down)
        return;
    t->shutting_down = 1;
    /* First the connections: a request on its way then fails as UNAVAILABLE, not as CANCELLED. */
    bw_listener_hang_up(t->listener);
    grpc_server_shutdown_and_notify(t->server, t->stop_queue, t);
}

void bw_grpc_cancel_all(bw_grpc *t)
{
    bw_grpc_refuse_new(t);
    begin_shutdown(t);
    grpc_server_cancel_all_calls(t->server);
}

int bw_grpc_stop(bw_grpc *t, int ms)
{
    if (!t)
        return 1;
    bw_grpc_refuse_new(t);
    /* Two conditions: core forgets a cancelled call that we still hold. */
    if (!bw_grpc_idle(t, ms))
        return 0;
    begin_shutdown(t);
    gpr_timespec until = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(ms, GPR_TIMESPAN));
    if (grpc_completion_queue_next(t->stop_queue, until, NULL).type != GRPC_OP_COMPLETE) {
        /* A call slipped in after the last one had gone. */
        grpc_server_cancel_all_calls(t->server);
        grpc_completion_queue_next(t->stop_queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    }
    while (!bw_grpc_idle(t, 1000))
        ;
    pthread_mutex_lock(&t->mutex);
    t->stopping = 1;
    pthread_cond_signal(&t->wake);
    pthread_mutex_unlock(&t->mutex);
    if (t->watching)
        pthread_join(t->watcher, NULL);
    destroy_core(t);
    free_transport(t);
    return 1;
}
