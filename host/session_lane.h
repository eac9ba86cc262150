/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of host/session: the session and its lanes. A lane is what one run at a time needs: an executor for each CPU
 * stage, buffers for each device stage. Lanes are made when concurrency asks for them and kept for the next run. */
#ifndef BW_HOST_SESSION_LANE_H
#define BW_HOST_SESSION_LANE_H

#include <pthread.h>

#include "hal/hal.h"
#include "host/session_plan.h"

typedef struct bw_lane_stage {
    bw_executor *executor;
    bw_array *arrays;  /* its inputs and outputs, while it runs */
    uint8_t *in, *out; /* capacity images each */
    uint32_t capacity;
} bw_lane_stage;

typedef struct bw_lane {
    struct bw_lane *next;
    bw_lane_stage *stages; /* one per stage of the plan */
    bw_array *values;      /* one per value of the plan; zeroed between runs */
    bw_source *sources;    /* one per value: fetched by the stage that reads it, if `read` is set */
    uint8_t *borrowed;     /* values[i].data belongs to the caller */
    bw_array *kept;        /* memory for values that device stages make; zeroed where a value has it, or none is kept */
    uint8_t *keeps;        /* values[i] is such a value */
} bw_lane;

struct bw_session {
    bw_plan plan;
    bw_image **images;    /* one per stage; NULL for CPU stages */
    uint32_t *chunk;      /* images that go to the device at once, per stage */
    uint8_t *fetches;     /* one per input: the stage that reads it fetches it from its source */
    uint8_t *enters;      /* one per input: the first stage is a device's and reads it, so laying it out checks it */
    int64_t fixed_batch;  /* all inputs and outputs have this batch; 0: they do not fix it */
    pthread_mutex_t lock; /* of the list of lanes */
    bw_lane *idle;
};

bw_status bw_lane_take(bw_session *s, bw_lane **lane, bw_error *err);
void bw_lane_give(bw_session *s, bw_lane *lane);
void bw_lane_free(bw_session *s, bw_lane *lane);

/* What a run measures of itself; times are added up over the pieces of a batch. */
typedef struct bw_lane_times {
    bw_timing timing;
    bw_profile *profile; /* NULL: not wanted */
    uint64_t start_ns;   /* of the run */
} bw_lane_times;

/* Runs stages 0..last on the lane's values. */
bw_status bw_lane_run(bw_session *s, bw_lane *lane, int last, uint64_t deadline_ns, bw_lane_times *times,
                      bw_error *err);

/* session_profile.c: all times 0. */
void bw_profile_clear(bw_profile *profile);

#endif
