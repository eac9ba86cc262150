/* SPDX-License-Identifier: Apache-2.0 */
/* The load generator's figures, for people and for programs. */
#ifndef BW_SERVICE_CLIENT_REPORT_H
#define BW_SERVICE_CLIENT_REPORT_H

#include <jansson.h>
#include <stdio.h>

#include "service/client/load.h"

typedef struct bw_report_head {
    const char *model, *version, *protocol, *input;
    long long batch;
    size_t shared_in, shared_out; /* bytes of a request's tensors in shared memory */
    int shared_memory;
} bw_report_head;

void bw_report_text(FILE *out, const bw_report_head *head, const bw_load_options *o, const bw_load_figures *f);
/* docs/service.md has the members. NULL: out of memory. */
json_t *bw_report_json(const bw_report_head *head, const bw_load_options *o, const bw_load_figures *f);

/* The device's part of the mean latency, 0..1; -1: the server reports no device time. */
double bw_report_device_share(const bw_load_figures *f);
/* The same for the network's stages on the server's CPU. */
double bw_report_cpu_share(const bw_load_figures *f);

#endif
