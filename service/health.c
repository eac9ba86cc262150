/* SPDX-License-Identifier: Apache-2.0 */
/* grpc.health.v1.Health: see service/health.h. */
#include "service/health.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "service/proto/health.pb-c.h"
#include "service/reply.h"

typedef Grpc__Health__V1__HealthCheckRequest request;
typedef Grpc__Health__V1__HealthCheckResponse response;
typedef Grpc__Health__V1__HealthCheckResponse__ServingStatus serving_status;

#define SERVING         GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING
#define NOT_SERVING     GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING
#define SERVICE_UNKNOWN GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN

/* One who watches. Freed when the transport lets go of the call. */
typedef struct watcher {
    bw_health_service *health;
    bw_call *call;
    struct watcher *previous, *next;
    int listed, known;
} watcher;

struct bw_health_service {
    pthread_mutex_t mutex;
    const char *const *services;
    size_t count;
    int serving, closed;
    watcher *watchers;
};

bw_health_service *bw_health_new(const char *const *services, size_t count)
{
    bw_health_service *h = calloc(1, sizeof *h);
    if (h) {
        pthread_mutexattr_t attr;
        pthread_mutexattr_init(&attr);
        pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
        pthread_mutex_init(&h->mutex, &attr);
        pthread_mutexattr_destroy(&attr);
        h->services = services;
        h->count = count;
    }
    return h;
}

void bw_health_free(bw_health_service *h)
{
    if (!h)
        return;
    pthread_mutex_destroy(&h->mutex);
    free(h);
}

static int known(const bw_health_service *h, const char *service)
{
    if (!service[0])
        return 1;
    for (size_t i = 0; i < h->count; i++) {
        if (!strcmp(h->services[i], service))
            return 1;
    }
    return 0;
}

void bw_health_check(bw_call *call, void *user)
{
    bw_health_service *h = user;
    request *q = (request *)bw_request_message(call, &grpc__health__v1__health_check_request__descriptor);
    if (!q)
        return;
    bw_error err;
    if (known(h, q->service)) {
        response r = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
        pthread_mutex_lock(&h->mutex);
        r.status = h->serving ? SERVING : NOT_SERVING;
        pthread_mutex_unlock(&h->mutex);
        bw_reply_message(call, &r.base);
    } else {
        bw_fail(&err, BW_NOT_FOUND,
                "service '%.100s' is not known here: ask for '' (the server), or one of its services", q->service);
        bw_call_fail(call, &err);
    }
    bw_wire_unpack_free(&q->base);
}

static void tell(const watcher *w, serving_status status)
{
    response r = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    uint8_t bytes[16];
    r.status = status;
    bw_chunk chunk = {bytes, protobuf_c_message_pack(&r.base, bytes), NULL, NULL};
    bw_call_write(w->call, &chunk, 1);
}

/* The mutex is held; afterwards the caller finishes the call. 0: somebody else does. */
static int unlist(watcher *w)
{
    if (!w->listed)
        return 0;
    w->listed = 0;
    if (w->previous)
        w->previous->next = w->next;
    else
        w->health->watchers = w->next;
    if (w->next)
        w->next->previous = w->previous;
    return 1;
}

static void on_cancel(bw_call *call)
{
    watcher *w = call->user;
    pthread_mutex_lock(&w->health->mutex);
    int ours = unlist(w);
    pthread_mutex_unlock(&w->health->mutex);
    if (ours)
        bw_call_finish(call, BW_CODE_CANCELLED, "the client has gone", NULL, 0, NULL, 0);
}

static void finish_closed(bw_call *call)
{
    bw_call_finish(call, BW_CODE_UNAVAILABLE, "the server is going: ask another", NULL, 0, NULL, 0);
}

void bw_health_watch(bw_call *call, void *user)
{
    bw_health_service *h = user;
    request *q = (request *)bw_request_message(call, &grpc__health__v1__health_check_request__descriptor);
    if (!q)
        return;
    watcher *w = calloc(1, sizeof *w);
    if (!w) {
        bw_wire_unpack_free(&q->base);
        bw_call_finish(call, BW_CODE_RESOURCE_EXHAUSTED, "out of memory: try again later", NULL, 0, NULL, 0);
        return;
    }
    w->health = h;
    w->call = call;
    w->known = known(h, q->service);
    bw_wire_unpack_free(&q->base);
    call->user = w;
    call->user_release = free;
    bw_call_drop_message(call);
    pthread_mutex_lock(&h->mutex);
    int closed = h->closed;
    if (!closed) {
        tell(w, !w->known ? SERVICE_UNKNOWN : h->serving ? SERVING : NOT_SERVING);
        w->next = h->watchers;
        if (w->next)
            w->next->previous = w;
        h->watchers = w;
        w->listed = 1;
        bw_call_watch_cancel(call, on_cancel); /* calls back right here if the client has gone: a recursive mutex */
    }
    pthread_mutex_unlock(&h->mutex);
    if (closed)
        finish_closed(call);
}

void bw_health_set(bw_health_service *h, int serving)
{
    pthread_mutex_lock(&h->mutex);
    int changed = h->serving != serving;
    h->serving = serving;
    for (const watcher *w = h->watchers; w && changed; w = w->next) {
        if (w->known)
            tell(w, serving ? SERVING : NOT_SERVING);
    }
    pthread_mutex_unlock(&h->mutex);
}

void bw_health_close(bw_health_service *h)
{
    pthread_mutex_lock(&h->mutex);
    h->closed = 1;
    while (h->watchers) {
        watcher *w = h->watchers;
        bw_call *call = w->call;
        unlist(w);
        finish_closed(call);
    }
    pthread_mutex_unlock(&h->mutex);
}
