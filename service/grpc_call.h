/* SPDX-License-Identifier: Apache-2.0 */
/* Private to the gRPC transport: its state, shared by grpc_transport.c (server) and grpc_call.c (calls). */
#ifndef BW_SERVICE_GRPC_CALL_H
#define BW_SERVICE_GRPC_CALL_H

#include <grpc/grpc.h>
#include <pthread.h>
#include <stdatomic.h>

#include "service/grpc_tsan.h"
#include "service/listener.h"
#include "service/transport.h"

#define BW_GRPC_THREADS 16

typedef struct bw_grpc_call bw_grpc_call;

/* What gRPC hands back when an operation has ended. */
typedef struct bw_grpc_tag {
    void (*done)(struct bw_grpc_tag *tag, int success);
    bw_grpc_call *call;
} bw_grpc_tag;

struct bw_grpc {
    const bw_service *service;
    size_t max_message_bytes;
    uint64_t upload_ns;
    bw_listener *listener;
    grpc_server *server;
    grpc_server_credentials *credentials;
    grpc_completion_queue *queue, *stop_queue;
    pthread_t threads[2 * BW_GRPC_THREADS]; /* half of them receive, the others stand by */
    unsigned thread_count;
    pthread_t watcher;
    int watching, shutting_down;
    atomic_int refusing;   /* new calls are answered UNAVAILABLE */
    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t wake, none_left, seat_free;
    int stopping;
    unsigned seats;      /* of receiving threads, that are free */
    unsigned standby;    /* threads that wait for one */
    int received_all;    /* the queue has ended: nobody receives any more */
    bw_grpc_call *calls; /* all that live */
    bw_grpc_call *spare; /* that ended, for the next */
    unsigned spare_count;
    unsigned call_count;
    uint64_t last_arrival_ns;
};

typedef struct bw_grpc bw_grpc;

/* Gives the calling thread's seat to one that stands by: 1; 0 if none does. */
int bw_grpc_step_aside(bw_grpc *t);
/* Frees the spare calls: nobody makes or ends one any more. */
void bw_grpc_free_spare(bw_grpc *t);
/* Keeps one request for the next call posted; non-zero: out of memory. */
int bw_grpc_request_call(bw_grpc *t);
/* Sets in_use[fd] for the connections that carry a call. t->mutex is held. */
void bw_grpc_mark_connections(bw_grpc *t, uint8_t *in_use, int max_fd);
/* Cancels calls whose message is not there after upload_ns. t->mutex is held. */
void bw_grpc_refuse_slow(bw_grpc *t, uint64_t now_ns);

#endif
