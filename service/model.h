/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Models as the services see them, and the repository that holds them. A model is a struct of functions over
 * something that scores; package_model.c makes one from a package and its devices.
 *
 *     bw_model *m;
 *     if (!bw_repository_find(repository, "resnet20", "", &m, &err)) {
 *         m->ops->run(m->self, inputs, outputs, &options, &err);
 *         bw_model_release(m);
 *     }
 *
 * A found model stays usable until it is released, whatever happens to the repository meanwhile.
 * Thread safety: all functions may be called from any thread.
 */
#ifndef BW_SERVICE_MODEL_H
#define BW_SERVICE_MODEL_H

#include <stdatomic.h>

#include "host/session.h"
#include "service/fleet.h"

#define BW_MODEL_IO_MAX 64

typedef struct bw_model_ops {
    /* As bw_session_run; from several threads at once. BW_BUSY: no device is in use at the moment. */
    bw_status (*run)(void *self, const bw_array *inputs, bw_array *outputs, const bw_run_options *options,
                     bw_error *err);
    /* 0: every device is lost at the moment, runs can only fail. */
    int (*alive)(void *self);
    void (*close)(void *self);
} bw_model_ops;

/* How long runs take lately, and for how much input: good enough to know what is over in no time. */
typedef struct bw_pace {
    _Atomic uint64_t ns, bytes; /* smoothed; ns 0: not known yet */
    int device;                 /* set when opened: a stage runs on a device, which can hang: never taken for short */
} bw_pace;

/* Waking a worker, and core's own threads from it, takes about this much processor time: a run that is shorter is done
 * on the receiving thread; one over many bytes may take half a nanosecond more for each. */
#define BW_SHORT_RUN_NS 50000u

typedef struct bw_model {
    const bw_model_ops *ops;
    void *self;
    const char *name, *version; /* owned by self, as all below */
    int input_count, output_count;
    const bw_io *inputs[BW_MODEL_IO_MAX], *outputs[BW_MODEL_IO_MAX];
    const bw_preprocess *preprocess; /* NULL: takes no pictures */
    int picture_input;               /* which input takes pictures */
    int picture_nhwc;                /* that input is [N, H, W, C]; else [N, C, H, W] */
    atomic_int refs;
    bw_pace pace; /* of its runs */
} bw_model;

/* A model with one reference; *model is zeroed. NULL: out of memory. */
bw_model *bw_model_new(const bw_model_ops *ops, void *self);
/* Finds which input takes pictures and in which layout. BW_CORRUPT: the pre-processing fits no input. */
bw_status bw_model_bind_pictures(bw_model *m, const bw_preprocess *preprocess, bw_error *err);
void bw_model_release(bw_model *m); /* NULL allowed */

/* A run that succeeded: one that failed says nothing about the next. */
void bw_pace_note(bw_pace *pace, uint64_t ns, uint64_t bytes);
/* 1: a run over so many bytes will probably be short enough (BW_SHORT_RUN_NS), without waiting for anything. */
int bw_pace_is_short(const bw_pace *pace, uint64_t bytes);

/* "[-1,3,32,32]" into text; returns text. */
const char *bw_io_shape_text(const int64_t *dims, int rank, char text[128]);

typedef struct bw_repository bw_repository;
bw_repository *bw_repository_new(void);
void bw_repository_free(bw_repository *r); /* NULL allowed */
/* Takes over the caller's reference (also on failure). BW_ALREADY_EXISTS: that name and version is there. */
bw_status bw_repository_add(bw_repository *r, bw_model *m, bw_error *err);
/* From now on requests are answered; before, finding says BW_BUSY. */
void bw_repository_set_ready(bw_repository *r, int ready);
int bw_repository_ready(bw_repository *r);

/*
 * name "": the only model (by name). version "": the highest. BW_NOT_FOUND names what is served,
 * BW_INVALID_ARGUMENT: no name although there are several, BW_BUSY: still loading.
 */
bw_status bw_repository_find(bw_repository *r, const char *name, const char *version, bw_model **model, bw_error *err);
size_t bw_repository_count(bw_repository *r);
/* Calls each model (referenced during the call) in order of loading. */
void bw_repository_each(bw_repository *r, void (*each)(const bw_model *m, void *user), void *user);

/* Opens a package on every device of the fleet that can run it, and lets each make a trial run, which all have to end
 * with the same bits: BW_DEVICE_FAULT. Runs go to the device in use with the fewest under way. The fleet outlives it.
 */
bw_status bw_package_model_open(const char *path, bw_fleet *fleet, bw_model **model, bw_error *err);

#endif
