/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a network would cost, before anything is quantized: operators, parameters, work, where each node would run, and
 * how large its package would be. The numbers behind `blockwave check`.
 *
 * Thread safety: pure functions of the graph.
 */
#ifndef BW_QUANTIZE_SURVEY_H
#define BW_QUANTIZE_SURVEY_H

#include "host/graph.h"
#include "kernels/formats.h"

typedef struct bw_survey_op {
    const char *op;  /* borrowed from the graph */
    int device, cpu; /* nodes on each side */
    uint64_t macs;   /* multiply-adds per image */
} bw_survey_op;

typedef struct bw_survey {
    bw_survey_op *ops; /* in order of first use */
    int op_count;
    unsigned char *device;      /* per node: 1 if the accelerator would run it, 0 for the CPU */
    uint64_t parameters;        /* elements of fp32 constants */
    uint64_t macs, device_macs; /* per image; unknown dimensions count as 1 */
    int device_nodes, cpu_nodes;
} bw_survey;

/* The graph is one that passed bw_passes_run. BW_NO_MEMORY. bw_survey_free releases what *s holds. */
bw_status bw_survey_graph(const bw_graph *g, bw_survey *s, bw_error *err);
void bw_survey_free(bw_survey *s);

/* Multiply-adds of one node for one image; 0 where it has none or the shapes are unknown. */
uint64_t bw_survey_macs(const bw_graph *g, int node);
/* Bytes of the constants of a package with weights in `format` with blocks of `block`; depthwise weights in fp16, CPU
 * nodes' constants in fp32. An estimate: the compiler may lay out a layer otherwise. */
uint64_t bw_survey_package_bytes(const bw_graph *g, const bw_survey *s, const bw_format_traits *format, unsigned block);

#endif
