/* SPDX-License-Identifier: Apache-2.0 */
/* One request's way through the server: see service/scoring.h. */
#include "service/scoring.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "hal/base.h"

/* --- life ------------------------------------------------------------------------------------------------------- */

bw_scoring *bw_scoring_new(bw_scorer *scorer)
{
    bw_scoring *s = calloc(1, sizeof *s);
    if (s) {
        s->scorer = scorer;
        atomic_store(&s->refs, 1);
    }
    return s;
}

static void free_inputs(bw_scoring *s)
{
    for (int i = 0; s->inputs && i < s->model->input_count; i++) {
        bw_array_free(&s->inputs[i]);
        bw_tensor_close(&s->readers[i]);
    }
    free(s->pictures);
    s->pictures = NULL;
    s->picture_count = 0;
}

void bw_scoring_release(void *scoring)
{
    bw_scoring *s = scoring;
    if (!s || atomic_fetch_sub(&s->refs, 1) != 1)
        return;
    free_inputs(s);
    for (int i = 0; s->inputs && i < s->model->output_count; i++)
        bw_array_free(&s->outputs[i]);
    free(s->inputs);
    if (s->request_free)
        s->request_free(s->request);
    bw_model_release(s->model);
    free(s);
}

/* --- answers ---------------------------------------------------------------------------------------------------- */

static void add_us(bw_meta *meta, size_t *count, const char *key, uint64_t ns)
{
    meta[*count].key = key;
    char digits[24], *p = digits + sizeof digits;
    *--p = 0;
    for (uint64_t us = ns / 1000, first = 1; us || first; us /= 10, first = 0)
        *--p = (char)('0' + us % 10);
    memcpy(meta[*count].value, p, (size_t)(digits + sizeof digits - p));
    ++*count;
}

/* What never takes part is not worth its bytes. */
static void add_us_unless_0(bw_meta *meta, size_t *count, const char *key, uint64_t ns)
{
    if (ns >= 1000)
        add_us(meta, count, key, ns);
}

/* Where the time went, as trailing metadata. Room for 9. */
static size_t timing_meta(const bw_scoring *s, bw_meta *meta)
{
    size_t n = 0;
    uint64_t received = s->call->received_ns, now = bw_now_ns();
    if (s->decoded_ns)
        add_us(meta, &n, "bw-decode-us", s->decoded_ns - received);
    if (s->started_ns) {
        add_us_unless_0(meta, &n, "bw-queue-us", s->started_ns - s->decoded_ns);
        add_us_unless_0(meta, &n, "bw-preprocess-us", s->preprocess_ns);
    }
    if (s->ran) {
        add_us_unless_0(meta, &n, "bw-cpu-before-us", s->timing.cpu_before);
        add_us_unless_0(meta, &n, "bw-device-queue-us", s->timing.device_queue);
        add_us_unless_0(meta, &n, "bw-device-us", s->timing.device_run);
        add_us_unless_0(meta, &n, "bw-cpu-after-us", s->timing.cpu_after);
    }
    add_us(meta, &n, "bw-total-us", now - received);
    return n;
}

void bw_scoring_fail(bw_scoring *s, const bw_error *err)
{
    bw_meta meta[10];
    size_t n = timing_meta(s, meta);
    bw_code code = bw_code_of(err->status);
    if (err->status == BW_EXHAUSTED) {
        /* What gRPC clients with a retry policy obey. */
        meta[n].key = "grpc-retry-pushback-ms";
        snprintf(meta[n].value, sizeof meta[n].value, "%u", bw_scheduler_wait_ms(s->scorer->scheduler));
        n++;
    }
    if (code == BW_CODE_INTERNAL || err->status == BW_DEVICE_LOST || err->status == BW_DEVICE_FAULT)
        bw_log(BW_LOG_ERROR, "serve", "model '%s': %s", s->model ? s->model->name : "?", err->message);
    free_inputs(s);
    bw_call_finish(s->call, code, err->message, NULL, 0, meta, n);
    bw_scoring_release(s);
}

static void succeed(bw_scoring *s)
{
    bw_writer w;
    size_t count = 0;
    free_inputs(s);
    bw_error err;
    if (s->deliver && s->deliver(s, &err)) {
        bw_scoring_fail(s, &err);
        return;
    }
    bw_writer_init(&w);
    s->encode(s, &w);
    const bw_chunk *chunks = bw_writer_finish(&w, &count);
    if (chunks) {
        bw_meta meta[10];
        size_t n = timing_meta(s, meta);
        bw_call_finish(s->call, BW_CODE_OK, "", chunks, count, meta, n);
        bw_scoring_release(s);
    } else {
        bw_fail(&err, BW_NO_MEMORY, "out of memory for the reply: try again later");
        bw_scoring_fail(s, &err);
    }
    bw_writer_free(&w);
}

void bw_scoring_borrow_output(bw_scoring *s, int index, bw_writer *w)
{
    atomic_fetch_add(&s->refs, 1);
    bw_writer_borrow(w, s->outputs[index].data, s->outputs[index].bytes, bw_scoring_release, s);
}

/* --- decoding --------------------------------------------------------------------------------------------------- */

static bw_status check_deadline(const bw_scoring *s, const char *when, bw_error *err)
{
    uint64_t deadline = s->call->deadline_ns, now = deadline ? bw_now_ns() : 0;
    if (now <= deadline)
        return BW_OK;
    return bw_fail(err, BW_TIMEOUT, "the deadline passed %" PRIu64 " us ago, %s: nothing was run, allow more time",
                   (now - deadline) / 1000, when);
}

bw_scoring *bw_scoring_begin(bw_scorer *scorer, bw_call *call)
{
    bw_scoring *s = bw_scoring_new(scorer);
    bw_error err;
    if (!s) {
        bw_fail(&err, BW_NO_MEMORY, "out of memory: try again later");
        bw_call_fail(call, &err);
        return NULL;
    }
    s->call = call;
    atomic_fetch_add(&s->refs, 1); /* the call's */
    call->user = s;
    call->user_release = bw_scoring_release;
    bw_status status = check_deadline(s, "before the request was read", &err);
    if (!status)
        status = bw_scheduler_has_room(scorer->scheduler, call->message_size, &err);
    if (status) {
        bw_scoring_fail(s, &err);
        return NULL;
    }
    return s;
}

static bw_status find_model(bw_scoring *s, const char *name, const char *version, bw_error *err)
{
    char route[200] = "";
    if (!name[0] && s->call && bw_call_metadata(s->call, "x-ms-aml-grpc-service-route", route, sizeof route)) {
        /* The clients of hardware accelerated models leave the model empty and name the service in a header:
         * /api/v1/service/NAME. It selects a model only if there is one of that name. */
        const char *last = strrchr(route, '/');
        if (last && last[1] && !bw_repository_find(s->scorer->repository, last + 1, version, &s->model, NULL))
            return BW_OK;
    }
    return bw_repository_find(s->scorer->repository, name, version, &s->model, err);
}

bw_status bw_scoring_choose(bw_scoring *s, const char *name, const char *version, bw_error *err)
{
    bw_status status = find_model(s, name, version, err);
    if (status)
        return status;
    size_t inputs = (size_t)s->model->input_count, outputs = (size_t)s->model->output_count;
    s->inputs = calloc(1, (inputs + outputs) * sizeof *s->inputs + inputs * (sizeof *s->sources + sizeof *s->readers));
    if (!s->inputs)
        return bw_fail(err, BW_NO_MEMORY, "out of memory for the request: try again later");
    s->outputs = s->inputs + inputs;
    s->readers = (bw_tensor_reader *)(void *)(s->outputs + outputs);
    s->sources = (bw_source *)(void *)(s->readers + inputs);
    return BW_OK;
}

static bw_status find_input(bw_scoring *s, const char *name, int *index, bw_error *err)
{
    const bw_model *m = s->model;
    *index = bw_tensor_find(m->inputs, m->input_count, name, "images");
    if (*index < 0) {
        char list[300];
        bw_tensor_list(m->inputs, m->input_count, list, sizeof list);
        return bw_fail(err, BW_INVALID_ARGUMENT, "model '%.80s' has no input '%.80s': expected %s", m->name, name,
                       list);
    }
    if (s->inputs[*index].dtype || (s->pictures && *index == m->picture_input))
        return bw_fail(err, BW_INVALID_ARGUMENT, "input '%.100s' is given twice: send it once",
                       m->inputs[*index]->name);
    return BW_OK;
}

/* An input without memory, of a size that is allowed. */
static bw_status shape_input(bw_scoring *s, int index, const int64_t *dims, bw_error *err)
{
    const bw_io *io = s->model->inputs[index];
    size_t used = 0, bytes = sizeof(float);
    for (int i = 0; i < s->model->input_count; i++)
        used += s->inputs[i].bytes;
    size_t limit = s->scorer->tensor_bytes_max;
    for (int i = 0; i < io->rank; i++) {
        if (__builtin_mul_overflow(bytes, (size_t)dims[i], &bytes))
            bytes = SIZE_MAX;
    }
    if (bytes > limit || used > limit - bytes)
        return bw_fail(err, BW_EXHAUSTED,
                       "input '%.100s' needs more than %zu MB as fp32: send a smaller batch, or raise --max-message-mb",
                       io->name, limit >> 20);
    bw_array *a = &s->inputs[index];
    a->bytes = bytes;
    a->dtype = BW_F32;
    a->rank = io->rank;
    memcpy(a->dims, dims, (size_t)io->rank * sizeof dims[0]);
    return BW_OK;
}

static bw_status make_input(bw_scoring *s, int index, const int64_t *dims, bw_error *err)
{
    bw_status status = shape_input(s, index, dims, err);
    bw_array *a = &s->inputs[index];
    if (status)
        return status;
    a->data = aligned_alloc(64, (a->bytes + 63) / 64 * 64);
    if (!a->data)
        return bw_fail(err, BW_NO_MEMORY, "out of memory for input '%.100s': try again later",
                       s->model->inputs[index]->name);
    a->owned = 1;
    return BW_OK;
}

static bw_status read_values(void *user, size_t first, size_t count, float *to, bw_error *err)
{
    return bw_tensor_read(user, first, count, to, err);
}

bw_status bw_scoring_input(bw_scoring *s, const bw_tensor_in *t, bw_error *err)
{
    int index;
    bw_status status = find_input(s, t->name, &index, err);
    if (status)
        return status;
    const bw_io *io = s->model->inputs[index];
    status = bw_tensor_check_shape(s->model, io, t->dims, t->rank, err);
    /* Without a call there is no message that would stay, and no run. */
    int shared = t->shared.region != NULL, later = (t->in_message || shared) && s->call;
    if (!status)
        status = later ? shape_input(s, index, t->dims, err) : make_input(s, index, t->dims, err);
    if (status)
        return status;
    bw_array *a = &s->inputs[index];
    bw_tensor_reader *r = &s->readers[index];
    size_t count = a->bytes / sizeof(float);
    status = shared ? bw_tensor_open_shared(r, t->element, &t->shared, count, io->name, err)
                    : bw_tensor_open(r, t->element, t->storage, t->values, t->repeat, count, io->name, err);
    if (!status && later) {
        s->sources[index] = (bw_source){read_values, r};
        s->keep_message |= t->in_message;
    } else if (!status) {
        status = bw_tensor_read(r, 0, count, a->data, err);
    }
    if (status)
        bw_array_free(a);
    return status;
}

bw_status bw_scoring_pictures(bw_scoring *s, const bw_tensor_in *t, bw_cursor *pictures, size_t count, bw_error *err)
{
    int index;
    bw_status status = find_input(s, t->name, &index, err);
    const bw_model *m = s->model;
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++)
        n = t->dims[i] == 1 || n == 1 ? n * t->dims[i] : -1;
    if (!status && (!m->preprocess || index != m->picture_input))
        status =
            bw_fail(err, BW_INVALID_ARGUMENT,
                    "input '%.100s' of model '%.100s' takes no pictures (its package has no pre-processing for it): "
                    "send fp32 values, or package it with --preprocess",
                    m->inputs[index]->name, m->name);
    if (!status && (n < 1 || n > 4096 || (size_t)n != count)) {
        char shape[128];
        status = bw_fail(err, BW_INVALID_ARGUMENT,
                         "input '%.100s': %zu pictures in shape %s, expected [N] with N pictures, 1..4096", t->name,
                         count, bw_io_shape_text(t->dims, t->rank, shape));
    }
    int64_t batch = status ? 0 : m->inputs[index]->dims[0];
    if (!status && batch > 0 && n != batch)
        status = bw_fail(err, BW_INVALID_ARGUMENT, "input '%.100s': %zu pictures, this model takes exactly %lld",
                         t->name, count, (long long)batch);
    if (status) {
        free(pictures);
        return status;
    }
    s->pictures = pictures;
    s->picture_count = count;
    return BW_OK;
}

bw_status bw_scoring_complete(const bw_scoring *s, bw_error *err)
{
    const bw_model *m = s->model;
    int64_t batch = 0;
    const char *first = NULL;
    for (int i = 0; i < m->input_count; i++) {
        int pictures = s->pictures && i == m->picture_input;
        if (!s->inputs[i].dtype && !pictures)
            return bw_fail(err, BW_INVALID_ARGUMENT, "input '%.100s' of model '%.100s' is missing: send it too",
                           m->inputs[i]->name, m->name);
        int64_t n = pictures ? (int64_t)s->picture_count : s->inputs[i].rank ? s->inputs[i].dims[0] : 1;
        if (first && n != batch)
            return bw_fail(err, BW_INVALID_ARGUMENT,
                           "input '%.80s' has batch %lld, input '%.80s' has %lld: send the same", first,
                           (long long)batch, m->inputs[i]->name, (long long)n);
        batch = n;
        first = m->inputs[i]->name;
    }
    return BW_OK;
}

/* --- working ---------------------------------------------------------------------------------------------------- */

static bw_status alive(const bw_scoring *s, const char *when, bw_error *err)
{
    bw_status status = check_deadline(s, when, err);
    if (!status && bw_call_cancelled(s->call))
        status = bw_fail(err, BW_CANCELLED, "the client cancelled the request %s", when);
    return status;
}

/* [C, H, W] -> [H, W, C]. */
static void to_nhwc(const float *from, float *to, size_t channels, size_t pixels)
{
    for (size_t c = 0; c < channels; c++) {
        for (size_t i = 0; i < pixels; i++)
            to[i * channels + c] = from[c * pixels + i];
    }
}

static bw_status preprocess(bw_scoring *s, bw_error *err)
{
    const bw_model *m = s->model;
    if (!s->pictures)
        return BW_OK;
    int index = m->picture_input;
    int64_t dims[BW_RANK_MAX];
    memcpy(dims, m->inputs[index]->dims, sizeof dims);
    dims[0] = (int64_t)s->picture_count;
    bw_status status = make_input(s, index, dims, err);
    if (status)
        return status;
    size_t size = s->inputs[index].bytes / sizeof(float) / s->picture_count;
    size_t pixels = (size_t)m->preprocess->height * (size_t)m->preprocess->width;
    float *turned = m->picture_nhwc ? malloc(size * sizeof *turned) : NULL;
    bw_bytes joined = {0};
    if (m->picture_nhwc && !turned)
        status = bw_fail(err, BW_NO_MEMORY, "out of memory for pictures: try again later");
    for (size_t i = 0; i < s->picture_count && !status; i++) {
        bw_cursor picture = s->pictures[i];
        const void *bytes = bw_cursor_flat(&picture);
        if (!bytes) {
            joined.size = 0;
            bw_bytes_append_cursor(&joined, picture);
            bytes = joined.failed ? NULL : joined.bytes;
        }
        float *out = (float *)s->inputs[index].data + i * size;
        status = bytes ? alive(s, "while its pictures were decoded", err)
                       : bw_fail(err, BW_NO_MEMORY, "out of memory for pictures: try again later");
        if (status)
            break;
        status = bw_preprocess_picture(m->preprocess, bytes, picture.left, turned ? turned : out, err);
        if (status)
            bw_fail_context(err, status, "picture %zu of input '%.100s'", i, m->inputs[index]->name);
        else if (turned)
            to_nhwc(turned, out, size / pixels, pixels);
    }
    bw_bytes_free(&joined);
    free(turned);
    return status;
}

/* The clock for the pace. Interruptions, common on a busy machine, do not make a run long; but a small one's are rare,
 * and asking for the thread's own time costs as much as some runs. */
static uint64_t pace_ns(const bw_scoring *s)
{
    struct timespec t;
    if (s->input_bytes < 16384 || clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t))
        return bw_now_ns();
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void work(bw_job *job)
{
    bw_scoring *s = (bw_scoring *)job; /* its first member */
    bw_error err;
    /* What is done at once needs no look at the clock. */
    if (!s->started_ns)
        s->started_ns = bw_now_ns();
    bw_status status = alive(s, "while it waited in the queue", &err);
    if (!status)
        status = preprocess(s, &err);
    s->preprocess_ns = s->pictures ? bw_now_ns() - s->started_ns : 0;
    if (!status) {
        uint64_t limit = s->started_ns + s->scorer->timeout_ns, run_ns = pace_ns(s);
        bw_run_options options = {
            .deadline_ns = s->call->deadline_ns && s->call->deadline_ns < limit ? s->call->deadline_ns : limit,
            .sources = s->sources,
            .timing = &s->timing,
        };
        status = s->model->ops->run(s->model->self, s->inputs, s->outputs, &options, &err);
        s->ran = !status;
        if (!status)
            bw_pace_note(&s->model->pace, pace_ns(s) - run_ns, s->input_bytes);
        if (status == BW_DEVICE_LOST && s->scorer->model_lost && !s->model->ops->alive(s->model->self))
            s->scorer->model_lost(s->model, s->scorer->model_lost_user);
    }
    if (status)
        bw_scoring_fail(s, &err);
    else
        succeed(s);
}

static void on_cancel(bw_call *call)
{
    bw_scoring *s = call->user;
    if (!bw_scheduler_remove(s->scorer->scheduler, &s->job))
        return; /* a worker has it, and looks for itself */
    bw_error err;
    if (!check_deadline(s, "while it waited in the queue", &err))
        bw_fail(&err, BW_CANCELLED, "the client cancelled the request while it waited in the queue");
    bw_scoring_fail(s, &err);
}

/* When nobody waits this thread does the work and another one receives meanwhile: 1, and the scoring has ended. */
static int work_here(bw_scoring *s)
{
    bw_scheduler *scheduler = s->scorer->scheduler;
    int place = bw_scheduler_enter(scheduler);
    if (place < 0)
        return 0;
    int mine = bw_call_step_aside(s->call);
    if (mine) {
        if (s->pictures) /* the only work that is given up in the middle */
            bw_call_watch_cancel(s->call, on_cancel);
        work(&s->job);
    }
    bw_scheduler_leave(scheduler, place, mine);
    return mine;
}

void bw_scoring_submit(bw_scoring *s)
{
    bw_error err;
    bw_status status = bw_scoring_complete(s, &err);
    if (status) {
        bw_scoring_fail(s, &err);
        return;
    }
    if (!s->keep_message)
        bw_call_drop_message(s->call);
    s->job.run = work;
    s->job.bytes = s->held_bytes + (s->keep_message ? s->call->message_size : 0);
    for (int i = 0; i < s->model->input_count; i++) {
        s->input_bytes += s->inputs[i].bytes;
        s->job.bytes += s->inputs[i].data ? s->inputs[i].bytes : 0;
    }
    s->decoded_ns = bw_now_ns();
    if (!s->pictures && bw_pace_is_short(&s->model->pace, s->input_bytes)) {
        s->started_ns = s->decoded_ns;
        work(&s->job);
        return;
    }
    if (work_here(s))
        return;
    bw_call_watch_cancel(s->call, on_cancel);
    /* A worker may finish the scoring before submit returns: nothing of it is touched after success. */
    status = bw_scheduler_submit(s->scorer->scheduler, &s->job, &err);
    if (status)
        bw_scoring_fail(s, &err);
}
