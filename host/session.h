/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sessions: a package made ready to score on a device. The network runs as a list of stages, each on the CPU (float
 * graph) or on the accelerator (program); typically CPU -> accelerator -> CPU.
 *
 *     bw_session *s;
 *     bw_session_open(pkg, dev, &s, &err);
 *     bw_array in = {...}, out = {0};
 *     bw_session_run(s, &in, &out, NULL, &err);
 *     bw_array_free(&out);
 *     bw_session_close(s);
 *
 * Thread safety: bw_session_run may be called from any number of threads at once.
 */
#ifndef BW_HOST_SESSION_H
#define BW_HOST_SESSION_H

#include "hal/hal.h"
#include "host/graph.h"
#include "host/package.h"
#include "host/preprocess.h"

typedef struct bw_session bw_session;

typedef struct bw_io {
    const char *name; /* owned by the session */
    bw_dtype dtype;   /* BW_F32 */
    int rank;
    int64_t dims[BW_RANK_MAX]; /* dims[0] is -1 (the batch) unless the model fixes it */
} bw_io;

typedef struct bw_timing { /* nanoseconds of one run */
    uint64_t cpu_before, device_queue, device_run, cpu_after, total;
} bw_timing;

/* Where one run spent its time, stage by stage, nanoseconds. */
typedef struct bw_stage_profile {
    int device;        /* 1: on the accelerator; the fields below total_ns are for such stages */
    uint64_t start_ns; /* of the stage, from the start of the run */
    uint64_t total_ns; /* the stage as a whole */
    uint64_t in_ns;    /* checks, and tensors to the device's layout */
    uint64_t queue_ns; /* in the device's queue */
    uint64_t run_ns;   /* on the device */
    uint64_t out_ns;   /* tensors back */
    uint64_t *instruction_ns;
    uint32_t instruction_count;
} bw_stage_profile;

typedef struct bw_profile {
    uint64_t total_ns;
    int stage_count;
    bw_stage_profile *stages;
} bw_profile;

/* Package and device are borrowed and must outlive the session. BW_INCOMPATIBLE: the device cannot run it;
 * BW_CORRUPT: manifest or stages do not fit together. */
bw_status bw_session_open(const bw_package *pkg, bw_device *device, bw_session **session, bw_error *err);
void bw_session_close(bw_session *session);

const char *bw_session_model_name(const bw_session *s);
const char *bw_session_model_version(const bw_session *s); /* "1" */
int bw_session_input_count(const bw_session *s);
int bw_session_output_count(const bw_session *s);
const bw_io *bw_session_input(const bw_session *s, int index);
const bw_io *bw_session_output(const bw_session *s, int index);
/* NULL if the package records none. */
const bw_preprocess *bw_session_preprocess(const bw_session *s);
/* Label of a class, NULL if the package has none. */
const char *bw_session_label(const bw_session *s, int64_t class_index);
int64_t bw_session_label_count(const bw_session *s);

/* An input whose values still lie as they came: in pieces, in another type. The run fetches them straight to where the
 * device wants them, which spares a copy in between. */
typedef struct bw_source {
    /* Writes `count` values from the `first` on, in row-major order, to `to`. Any order of calls, also the same values
     * again; from the thread of the run. What it returns other than BW_OK ends the run. */
    bw_status (*read)(void *user, size_t first, size_t count, float *to, bw_error *err);
    void *user;
} bw_source;

typedef struct bw_run_options {
    uint64_t deadline_ns; /* CLOCK_MONOTONIC; 0: none */
    int featurize;        /* non-zero: stop after the last accelerator stage; outputs are its outputs */
    /* NULL, or one per input. Where `read` is set it gives the values; of the array only dtype, rank and dims count. */
    const bw_source *sources;
    bw_timing *timing;   /* filled if not NULL */
    bw_profile *profile; /* of bw_profile_new for this session; filled if not NULL, by one run at a time */
} bw_run_options;

/* An empty profile of a session's stages. The session is not needed to free it. BW_NO_MEMORY. */
bw_status bw_profile_new(const bw_session *s, bw_profile **profile, bw_error *err);
void bw_profile_free(bw_profile *profile); /* NULL is allowed */

/*
 * inputs: one per session input; the batch (dims[0]) must be the same in all, 1..4096. outputs: zeroed arrays, one
 * per session output (with `featurize`: bw_session_feature_count), filled with owned data.
 * BW_INVALID_ARGUMENT: dtype, rank or shape, naming the tensor, its value and what is expected. BW_NOT_FINITE: NaN or
 * infinity, naming tensor and index. BW_TIMEOUT, BW_DEVICE_LOST, BW_DEVICE_FAULT. BW_UNSUPPORTED: a profile on a device
 * that does not time its instructions.
 */
bw_status bw_session_run(bw_session *s, const bw_array *inputs, bw_array *outputs, const bw_run_options *options,
                         bw_error *err);
int bw_session_feature_count(const bw_session *s);
const bw_io *bw_session_feature(const bw_session *s, int index);

#endif
