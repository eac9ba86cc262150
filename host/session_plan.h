/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of host/session: what a manifest says, checked. Everything in it is untrusted until it is here. */
#ifndef BW_HOST_SESSION_PLAN_H
#define BW_HOST_SESSION_PLAN_H

#include <jansson.h>
#include <stdint.h>

#include "host/graph.h"
#include "host/package.h"
#include "host/preprocess.h"
#include "host/session.h"

typedef struct bw_plan_value { /* a value at a stage border */
    const char *name;
    bw_dtype dtype; /* BW_DTYPE_NONE, rank -1: known at run time only */
    int rank;
    int64_t dims[BW_RANK_MAX];
    int last_use; /* the last stage that reads it; stage_count for outputs of the network; -1: nobody */
} bw_plan_value;

typedef struct bw_plan_tensor { /* an input or output of a stage */
    int value;
    /* device stages only: */
    uint64_t offset;         /* bytes, in the IN or OUT region of one image */
    int rank;                /* 2..4 */
    int64_t dims[4];         /* dims[0]: -1 or 1 */
    size_t channels, pixels; /* of one image; their product fits a region */
} bw_plan_tensor;

typedef struct bw_plan_stage {
    int device;
    bw_graph *graph;                 /* CPU */
    const void *program, *constants; /* device; borrowed from the package */
    size_t program_size, constants_size;
    bw_plan_tensor *inputs, *outputs;
    int input_count, output_count;
} bw_plan_stage;

typedef struct bw_plan {
    const char *model_name, *model_version;
    bw_io *inputs, *outputs, *features;
    int input_count, output_count, feature_count;
    int *output_values;    /* one per output */
    int *feature_values;   /* one per feature */
    int last_device;       /* stage whose outputs are the features; -1: none */
    bw_plan_value *values; /* the network's inputs first */
    int value_count, value_capacity;
    json_t *index; /* name -> value */
    bw_plan_stage *stages;
    int stage_count;
    bw_preprocess preprocess;
    int has_preprocess;
    const json_t *labels; /* array of strings or NULL */
} bw_plan;

/* Names and texts are borrowed from the package. BW_CORRUPT names the key. The plan is freed by the caller in any
 * case. */
bw_status bw_plan_read(const bw_package *pkg, bw_plan *plan, bw_error *err);
void bw_plan_free(bw_plan *plan);

/* Checks a device stage against its program: every tensor inside of its region, none overlapping another. */
bw_status bw_plan_check_program(const bw_plan *plan, int stage, const bw_program *program, bw_error *err);

/* "[-1, 3, 32, 32]"; returns buf. */
const char *bw_shape_text(int rank, const int64_t *dims, char *buf, size_t size);

#endif
