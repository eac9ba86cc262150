/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One request's way through the server, whatever its protocol: decode (on the transport's thread), wait, pre-process,
 * run, encode (on a worker).
 *
 *     bw_scoring *s;
 *     if (!bw_scoring_begin(scorer, call, &s)) return;             // has been answered
 *     status = bw_scoring_choose(s, name, version, &err);
 *     status = bw_scoring_input(s, index, &tensor, &err);          // or bw_scoring_pictures
 *     s->encode = my_encode;
 *     if (status) bw_scoring_fail(s, &err); else bw_scoring_submit(s);
 *
 * Thread safety: a scoring belongs to one thread at a time, as above.
 */
#ifndef BW_SERVICE_SCORING_H
#define BW_SERVICE_SCORING_H

#include "service/model.h"
#include "service/scheduler.h"
#include "service/tensor.h"
#include "service/transport.h"

/* What all requests share. */
typedef struct bw_scorer {
    bw_repository *repository;
    bw_scheduler *scheduler;
    bw_shared_memory *shared_memory; /* NULL: not offered */
    size_t tensor_bytes_max;         /* fp32 inputs of one request */
    uint64_t timeout_ns;             /* of a request without a nearer deadline */
    /* Called when a model has lost its last device; may be NULL. */
    void (*model_lost)(const bw_model *m, void *user);
    void *model_lost_user;
} bw_scorer;

typedef struct bw_scoring bw_scoring;
struct bw_scoring {
    bw_job job;
    atomic_int refs;
    bw_scorer *scorer;
    bw_call *call;
    bw_model *model;
    bw_array *inputs, *outputs; /* as many as the model has, once it is chosen; one block with what follows */
    bw_source *sources;         /* of inputs whose values stay where they lie until the run */
    bw_tensor_reader *readers;
    bw_cursor *pictures; /* in input model->picture_input; they lie in the call's message or in `request` */
    size_t picture_count;
    int keep_message; /* something of it is needed later: values, or (set by the decoder) pictures */

    /* the protocol's: its request, and how outputs become a message */
    void *request;
    void (*request_free)(void *request);
    bw_status (*deliver)(bw_scoring *s, bw_error *err); /* outputs that the message does not carry; NULL: none */
    void (*encode)(bw_scoring *s, bw_writer *w);

    size_t input_bytes;
    size_t held_bytes; /* memory that `request` holds besides the message */
    bw_timing timing;
    uint64_t decoded_ns, started_ns, preprocess_ns;
    int ran;
};

/* One tensor of a request, found but not converted. */
typedef struct bw_tensor_in {
    const char *name; /* as the client wrote it */
    bw_element element;
    bw_storage storage;
    int rank;
    int64_t dims[BW_RANK_MAX];
    bw_cursor values;
    bw_shared_range shared; /* region not NULL: the values lie there, until the protocol's request is freed */
    int in_message;         /* the values lie in the call's message, not in what was unpacked of it */
    int repeat;             /* fewer values than the shape needs are filled up with the last */
} bw_tensor_in;

/* NULL: the call has been answered (deadline over, queue full, no memory). */
bw_scoring *bw_scoring_begin(bw_scorer *scorer, bw_call *call);
bw_status bw_scoring_choose(bw_scoring *s, const char *name, const char *version, bw_error *err);
/* Finds the input by name and converts the tensor into it; values in the call's message or in shared memory only when
 * they are needed. */
bw_status bw_scoring_input(bw_scoring *s, const bw_tensor_in *t, bw_error *err);
/* Encoded pictures for an input; `pictures` is malloc'ed and taken over in any case. t->values is not looked at. */
bw_status bw_scoring_pictures(bw_scoring *s, const bw_tensor_in *t, bw_cursor *pictures, size_t count, bw_error *err);
/* Each input given once, one batch. Called by submit; public for the tests of codecs. */
bw_status bw_scoring_complete(const bw_scoring *s, bw_error *err);
void bw_scoring_submit(bw_scoring *s);
void bw_scoring_fail(bw_scoring *s, const bw_error *err);

/* Adds the output's values to the message, borrowed. */
void bw_scoring_borrow_output(bw_scoring *s, int index, bw_writer *w);
/* For tests and fuzzers: a scoring without a call; release with bw_scoring_release. */
bw_scoring *bw_scoring_new(bw_scorer *scorer);
void bw_scoring_release(void *scoring);

#endif
