/* SPDX-License-Identifier: Apache-2.0 */
/* grpc.health.v1.Health: what load balancers and orchestrators ask. Thread safety: any thread. */
#ifndef BW_SERVICE_HEALTH_H
#define BW_SERVICE_HEALTH_H

#include "service/transport.h"

typedef struct bw_health_service bw_health_service;

/* services: names that can be asked for besides "", which is the server as a whole; borrowed. */
bw_health_service *bw_health_new(const char *const *services, size_t count);
void bw_health_free(bw_health_service *h); /* after the transport has gone; NULL allowed */
/* SERVING or NOT_SERVING, told to all who watch. */
void bw_health_set(bw_health_service *h, int serving);
/* Ends all watches: the server is going. */
void bw_health_close(bw_health_service *h);

/* Method handlers; user is the bw_health_service. */
void bw_health_check(bw_call *call, void *user);
void bw_health_watch(bw_call *call, void *user);

#endif
