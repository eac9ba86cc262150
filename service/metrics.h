/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Metrics for Prometheus: GET /metrics over HTTP, in its text format 0.0.4, on a port of its own. The text is written
 * anew for each request, from numbers that are counted anyway.
 *
 *     bw_metrics_open("127.0.0.1:9100", write_all, server, &metrics, &err);   // write_all calls bw_metrics_devices ...
 *     ...
 *     bw_metrics_close(metrics);
 *
 * Thread safety: one owner; `write` is called from a thread of the endpoint's, one call at a time.
 * Source of the format: https://prometheus.io/docs/instrumenting/exposition_formats/
 */
#ifndef BW_SERVICE_METRICS_H
#define BW_SERVICE_METRICS_H

#include <stdio.h>

#include "service/fleet.h"

typedef struct bw_metrics bw_metrics;

/* address: as of bw_listener_open, whose errors it has. `write` fills a request's answer and must not wait. */
bw_status bw_metrics_open(const char *address, void (*write)(FILE *out, void *user), void *user, bw_metrics **metrics,
                          bw_error *err);
const char *bw_metrics_address(const bw_metrics *metrics); /* "127.0.0.1:9100", the port being the real one */
/* Ends requests under way. NULL is allowed. */
void bw_metrics_close(bw_metrics *metrics);

/* A metric's two lines of heading, and a sample of it without labels. */
void bw_metrics_head(FILE *out, const char *name, const char *type, const char *help);
void bw_metrics_number(FILE *out, const char *name, const char *type, const char *help, double value);
/* Every device of the fleet: what it is, its health, counters and sensors; what is unknown is left out. The fleet must
 * be complete. */
void bw_metrics_devices(FILE *out, const bw_fleet *fleet);

#endif
