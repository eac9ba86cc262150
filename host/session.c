/* SPDX-License-Identifier: Apache-2.0 */
/* Sessions: opening, what they tell about themselves, and the border checks of a run. */
#include "host/session.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "host/session_lane.h"
#include "host/session_layout.h"
#include "host/session_source.h"

#define BATCH_MAX 4096
/* At most this much goes to a device at once; larger batches are cut. */
#define CHUNK_BYTES  (UINT64_C(256) << 20)
#define CHUNK_IMAGES 256u

void bw_session_close(bw_session *s)
{
    if (!s)
        return;
    while (s->idle) {
        bw_lane *next = s->idle->next;
        bw_lane_free(s, s->idle);
        s->idle = next;
    }
    for (int i = 0; s->images && i < s->plan.stage_count; i++) {
        if (s->images[i])
            bw_image_release(s->images[i]);
    }
    free(s->images);
    free(s->chunk);
    free(s->fetches);
    free(s->enters);
    bw_plan_free(&s->plan);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

static bw_status load_stage(bw_session *s, int stage, bw_device *device, bw_error *err)
{
    const bw_plan_stage *st = &s->plan.stages[stage];
    bw_status status =
        bw_image_load(device, st->program, st->program_size, st->constants, st->constants_size, &s->images[stage], err);
    if (status)
        return bw_fail_context(err, status, "stage %d", stage);
    const bw_program *program = bw_image_program(s->images[stage]);
    status = bw_plan_check_program(&s->plan, stage, program, err);
    if (status)
        return status;
    const bw_program_header *h = program->header;
    uint64_t bytes = h->in_bytes + h->out_bytes + h->act_bytes; /* each at most 2^40 */
    uint64_t images = CHUNK_BYTES / (bytes ? bytes : 1);
    s->chunk[stage] = images < 1 ? 1 : images > CHUNK_IMAGES ? CHUNK_IMAGES : (uint32_t)images;
    return BW_OK;
}

/* The batch that every input and output fixes, so that larger ones can be cut; 0 if they do not. */
static int64_t find_fixed_batch(const bw_plan *p)
{
    int64_t fixed = p->inputs[0].rank > 0 ? p->inputs[0].dims[0] : 0;
    for (int i = 0; i < p->input_count; i++) {
        if (p->inputs[i].rank < 1 || p->inputs[i].dims[0] != fixed)
            return 0;
    }
    for (int i = 0; i < p->output_count; i++) {
        if (p->outputs[i].rank < 1 || p->outputs[i].dims[0] != fixed)
            return 0;
    }
    return fixed > 0 ? fixed : 0;
}

/* Is the input read by one stage alone? By a device only in an order that can be made piece by piece. */
static int is_fetched(const bw_plan *p, int input)
{
    int readers = 0, fits = 0;
    for (int k = 0; k < p->stage_count; k++) {
        const bw_plan_stage *st = &p->stages[k];
        for (int i = 0; i < st->input_count; i++) {
            if (st->inputs[i].value != input)
                continue;
            readers++;
            fits = p->values[input].last_use == k &&
                   (!st->device || st->inputs[i].channels <= BW_FETCH_CHANNELS || st->inputs[i].pixels == 1);
        }
    }
    return readers == 1 && fits;
}

/* Is the input among those of a first stage that is a device's? */
static int enters_device(const bw_plan *p, int input)
{
    const bw_plan_stage *st = &p->stages[0];
    int reads = 0;
    for (int i = 0; st->device && i < st->input_count; i++)
        reads |= st->inputs[i].value == input;
    return reads;
}

bw_status bw_session_open(const bw_package *pkg, bw_device *device, bw_session **out, bw_error *err)
{
    *out = NULL;
    bw_session *s = calloc(1, sizeof *s);
    if (!s)
        return bw_fail(err, BW_NO_MEMORY, "no memory for a session");
    pthread_mutex_init(&s->lock, NULL);
    bw_status status = bw_plan_read(pkg, &s->plan, err);
    if (!status) {
        s->images = calloc((size_t)s->plan.stage_count, sizeof(bw_image *));
        s->chunk = calloc((size_t)s->plan.stage_count, sizeof *s->chunk);
        s->fetches = calloc((size_t)s->plan.input_count, 1);
        s->enters = calloc((size_t)s->plan.input_count, 1);
        if (!s->images || !s->chunk || !s->fetches || !s->enters)
            status = bw_fail(err, BW_NO_MEMORY, "no memory for a session");
    }
    for (int i = 0; !status && i < s->plan.stage_count; i++) {
        if (s->plan.stages[i].device)
            status = load_stage(s, i, device, err);
    }
    if (!status) {
        s->fixed_batch = find_fixed_batch(&s->plan);
        for (int i = 0; i < s->plan.input_count; i++) {
            s->fetches[i] = (uint8_t)is_fetched(&s->plan, i);
            s->enters[i] = (uint8_t)enters_device(&s->plan, i);
        }
        /* The first lane now: what it cannot do is told at once and not by the first request. */
        bw_lane *lane;
        status = bw_lane_take(s, &lane, err);
        if (!status)
            bw_lane_give(s, lane);
    }
    if (status) {
        bw_session_close(s);
        return bw_fail_context(err, status, "%s", bw_package_path(pkg));
    }
    *out = s;
    return BW_OK;
}

const char *bw_session_model_name(const bw_session *s)
{
    return s->plan.model_name;
}

const char *bw_session_model_version(const bw_session *s)
{
    return s->plan.model_version;
}

int bw_session_input_count(const bw_session *s)
{
    return s->plan.input_count;
}

int bw_session_output_count(const bw_session *s)
{
    return s->plan.output_count;
}

int bw_session_feature_count(const bw_session *s)
{
    return s->plan.feature_count;
}

const bw_io *bw_session_input(const bw_session *s, int index)
{
    return index >= 0 && index < s->plan.input_count ? &s->plan.inputs[index] : NULL;
}

const bw_io *bw_session_output(const bw_session *s, int index)
{
    return index >= 0 && index < s->plan.output_count ? &s->plan.outputs[index] : NULL;
}

const bw_io *bw_session_feature(const bw_session *s, int index)
{
    return index >= 0 && index < s->plan.feature_count ? &s->plan.features[index] : NULL;
}

const bw_preprocess *bw_session_preprocess(const bw_session *s)
{
    return s->plan.has_preprocess ? &s->plan.preprocess : NULL;
}

const char *bw_session_label(const bw_session *s, int64_t class_index)
{
    return class_index < 0 ? NULL : json_string_value(json_array_get(s->plan.labels, (size_t)class_index));
}

int64_t bw_session_label_count(const bw_session *s)
{
    return (int64_t)json_array_size(s->plan.labels);
}

static bw_status check_finite(const bw_io *io, const bw_array *a, bw_error *err)
{
    size_t count = (size_t)bw_array_count(a), bad = count;
    double value = 0;
    if (a->dtype == BW_F32) {
        bad = bw_first_not_finite(a->data, count);
        value = bad < count ? (double)((const float *)a->data)[bad] : 0;
    } else if (a->dtype == BW_F64) {
        for (bad = 0; bad < count && isfinite(((const double *)a->data)[bad]);)
            bad++;
        value = bad < count ? ((const double *)a->data)[bad] : 0;
    }
    return bad == count ? BW_OK : bw_fail_not_finite(io, bad, value, err);
}

/* dtype, shape, batch and size. *batch: of the inputs with a free batch; -1 while none has been seen. */
static bw_status check_shape(const bw_io *io, const bw_array *a, int64_t *batch, int64_t fixed, int fetched,
                             bw_error *err)
{
    char has[200], wants[200];
    int fits = a->rank == io->rank;
    for (int d = 1; fits && d < io->rank; d++)
        fits = a->dims[d] == io->dims[d];
    if (fits && io->rank > 0 && io->dims[0] >= 0)
        fits = a->dims[0] == io->dims[0] || (fixed > 0 && a->dims[0] > 0 && a->dims[0] % fixed == 0);
    if (a->dtype != io->dtype || !fits)
        return bw_fail(err, BW_INVALID_ARGUMENT, "input '%s' is %s %s, expected %s %s", io->name,
                       bw_dtype_name(a->dtype), bw_shape_text(a->rank, a->dims, has, sizeof has),
                       bw_dtype_name(io->dtype), bw_shape_text(io->rank, io->dims, wants, sizeof wants));
    if (io->rank > 0 && (io->dims[0] < 0 || fixed > 0)) {
        if (a->dims[0] < 1 || a->dims[0] > BATCH_MAX)
            return bw_fail(err, BW_INVALID_ARGUMENT, "input '%s' has a batch of %" PRId64 ", expected 1 to %d",
                           io->name, a->dims[0], BATCH_MAX);
        if (*batch >= 0 && a->dims[0] != *batch)
            return bw_fail(err, BW_INVALID_ARGUMENT,
                           "input '%s' has a batch of %" PRId64 ", another input one of %" PRId64 ": give all the same",
                           io->name, a->dims[0], *batch);
        *batch = a->dims[0];
    }
    if (fetched)
        return BW_OK;
    if (a->bytes < (size_t)bw_array_count(a) * bw_dtype_size(a->dtype) || (!a->data && bw_array_count(a) > 0))
        return bw_fail(err, BW_INVALID_ARGUMENT, "input '%s' has %zu bytes, shape %s of %s takes more", io->name,
                       a->bytes, bw_shape_text(a->rank, a->dims, has, sizeof has), bw_dtype_name(a->dtype));
    return BW_OK;
}

/* Laying the input out for the first stage looks at all of its values before the device gets any: nothing reads it
 * twice. Not so where the device has run with a part of the batch before the rest is laid out. */
static int is_checked_later(const bw_session *s, int input, const bw_array *a, const bw_source *source)
{
    return s->enters[input] && !(source && source->read) && a->dims[0] <= s->chunk[0] &&
           (s->fixed_batch == 0 || a->dims[0] == s->fixed_batch);
}

/* Something has failed: of the first `count` inputs, a value that should have been refused on entry goes before it. */
static bw_status refuse_first(const bw_session *s, const bw_array *inputs, const bw_source *sources, int count,
                              bw_status status, bw_error *err)
{
    for (int i = 0; i < count; i++) {
        if (!is_checked_later(s, i, &inputs[i], sources ? &sources[i] : NULL))
            continue;
        bw_status refused = check_finite(&s->plan.inputs[i], &inputs[i], err);
        if (refused)
            return refused;
    }
    return status;
}

/* All that can be said about inputs before the run, in their order. */
static bw_status check_inputs(const bw_session *s, const bw_array *inputs, const bw_source *sources, int64_t *batch,
                              bw_error *err)
{
    *batch = -1;
    for (int i = 0; i < s->plan.input_count; i++) {
        const bw_source *source = sources ? &sources[i] : NULL;
        const int fetched = source && source->read;
        bw_status status = check_shape(&s->plan.inputs[i], &inputs[i], batch, s->fixed_batch, fetched, err);
        if (!status && !fetched && !is_checked_later(s, i, &inputs[i], source))
            status = check_finite(&s->plan.inputs[i], &inputs[i], err);
        if (status)
            return refuse_first(s, inputs, sources, i, status, err);
    }
    return BW_OK;
}

static bw_status copy_array(const bw_array *from, bw_array *to, bw_error *err)
{
    bw_status status = bw_array_alloc(to, from->dtype, from->rank, from->dims, err);
    if (!status && to->bytes)
        memcpy(to->data, from->data, to->bytes);
    return status;
}

/* Hands a value over to the caller, or copies what is not ours or is wanted twice. */
static bw_status deliver(bw_lane *lane, int v, const bw_io *io, const int *later, int later_count, bw_array *out,
                         bw_error *err)
{
    bw_array *a = &lane->values[v];
    int fits = a->dtype == io->dtype && a->rank == io->rank;
    for (int d = 0; fits && d < io->rank; d++)
        fits = io->dims[d] < 0 || a->dims[d] == io->dims[d];
    char has[200], wants[200];
    if (!fits)
        return bw_fail(err, BW_CORRUPT, "output '%s' came out as %s %s, the package promises %s %s", io->name,
                       bw_dtype_name(a->dtype), bw_shape_text(a->rank, a->dims, has, sizeof has),
                       bw_dtype_name(io->dtype), bw_shape_text(io->rank, io->dims, wants, sizeof wants));
    int again = lane->borrowed[v] || !a->owned;
    for (int i = 0; i < later_count; i++)
        again |= later[i] == v;
    if (again)
        return copy_array(a, out, err);
    *out = *a;
    memset(a, 0, sizeof *a);
    return BW_OK;
}

/* An input, or where it comes from. What several stages read is fetched here. */
static bw_status take_input(bw_session *s, bw_lane *lane, int i, const bw_array *input, const bw_source *source,
                            bw_error *err)
{
    lane->values[i] = *input;
    lane->borrowed[i] = 1;
    if (!source || !source->read)
        return BW_OK;
    lane->values[i].data = NULL;
    if (s->fetches[i]) {
        lane->sources[i] = *source;
        return BW_OK;
    }
    bw_status status = bw_array_alloc(&lane->values[i], input->dtype, input->rank, input->dims, err);
    lane->borrowed[i] = 0;
    return status
               ? status
               : bw_source_fetch(source, &s->plan.inputs[i], (size_t)bw_array_count(input), lane->values[i].data, err);
}

static bw_status run_once(bw_session *s, const bw_array *inputs, const bw_source *sources, bw_array *outputs,
                          int featurize, uint64_t deadline, bw_lane_times *times, bw_error *err)
{
    const bw_plan *p = &s->plan;
    bw_lane *lane;
    bw_status status = bw_lane_take(s, &lane, err);
    if (status)
        return status;
    for (int i = 0; i < p->input_count && !status; i++)
        status = take_input(s, lane, i, &inputs[i], sources ? &sources[i] : NULL, err);
    int count = featurize ? p->feature_count : p->output_count;
    const int *values = featurize ? p->feature_values : p->output_values;
    const bw_io *ios = featurize ? p->features : p->outputs;
    if (!status)
        status = bw_lane_run(s, lane, featurize ? p->last_device : p->stage_count - 1, deadline, times, err);
    for (int i = 0; i < count && !status; i++)
        status = deliver(lane, values[i], &ios[i], values + i + 1, count - i - 1, &outputs[i], err);
    bw_lane_give(s, lane);
    for (int i = 0; i < count && status; i++)
        bw_array_free(&outputs[i]);
    return status;
}

/* For networks that fix their batch: runs piece by piece and puts the outputs together. */
static bw_status run_pieces(bw_session *s, const bw_array *inputs, int64_t batch, bw_array *outputs, int featurize,
                            uint64_t deadline, bw_lane_times *times, bw_error *err)
{
    const bw_plan *p = &s->plan;
    int count = featurize ? p->feature_count : p->output_count;
    int64_t pieces = batch / s->fixed_batch;
    bw_array *part = calloc((size_t)(p->input_count + count), sizeof *part);
    if (!part)
        return bw_fail(err, BW_NO_MEMORY, "no memory for a run");
    bw_status status = BW_OK;
    for (int64_t k = 0; k < pieces && !status; k++) {
        bw_array *out = part + p->input_count;
        for (int i = 0; i < p->input_count; i++) {
            part[i] = inputs[i];
            part[i].dims[0] = s->fixed_batch;
            part[i].bytes = (size_t)bw_array_count(&part[i]) * bw_dtype_size(part[i].dtype);
            part[i].data = (char *)inputs[i].data + (size_t)k * part[i].bytes;
            part[i].owned = 0;
        }
        status = run_once(s, part, NULL, out, featurize, deadline, times, err);
        for (int i = 0; i < count && !status; i++) {
            if (k == 0) {
                int64_t dims[BW_RANK_MAX];
                memcpy(dims, out[i].dims, sizeof dims);
                dims[0] *= pieces;
                status = bw_array_alloc(&outputs[i], out[i].dtype, out[i].rank, dims, err);
            }
            if (!status)
                memcpy((char *)outputs[i].data + (size_t)k * out[i].bytes, out[i].data, out[i].bytes);
        }
        for (int i = 0; i < count; i++)
            bw_array_free(&out[i]);
    }
    free(part);
    for (int i = 0; i < count && status; i++)
        bw_array_free(&outputs[i]);
    return status;
}

/* The same for inputs that are still to be fetched. */
static bw_status fetch_and_run_pieces(bw_session *s, const bw_array *inputs, const bw_source *sources, int64_t batch,
                                      bw_array *outputs, int featurize, uint64_t deadline, bw_lane_times *times,
                                      bw_error *err)
{
    int count = s->plan.input_count;
    bw_array *arrays = calloc((size_t)count, sizeof *arrays);
    if (!arrays)
        return bw_fail(err, BW_NO_MEMORY, "no memory for a run");
    bw_status status = BW_OK;
    for (int i = 0; i < count && !status; i++) {
        if (sources[i].read) {
            status = bw_array_alloc(&arrays[i], inputs[i].dtype, inputs[i].rank, inputs[i].dims, err);
            if (!status)
                status = bw_source_fetch(&sources[i], &s->plan.inputs[i], (size_t)bw_array_count(&arrays[i]),
                                         arrays[i].data, err);
        } else {
            arrays[i] = inputs[i];
            arrays[i].owned = 0;
        }
    }
    if (!status)
        status = run_pieces(s, arrays, batch, outputs, featurize, deadline, times, err);
    for (int i = 0; i < count; i++)
        bw_array_free(&arrays[i]);
    free(arrays);
    return status;
}

bw_status bw_session_run(bw_session *s, const bw_array *inputs, bw_array *outputs, const bw_run_options *options,
                         bw_error *err)
{
    uint64_t start = bw_now_ns(), deadline = options ? options->deadline_ns : 0;
    int featurize = options && options->featurize;
    const bw_source *sources = options ? options->sources : NULL;
    bw_lane_times times = {.profile = options ? options->profile : NULL, .start_ns = start};
    if (featurize && s->plan.feature_count == 0)
        return bw_fail(err, BW_UNSUPPORTED, "model '%s' has no accelerator stage, so it has no features",
                       s->plan.model_name);
    int64_t batch;
    bw_status status = check_inputs(s, inputs, sources, &batch, err);
    if (status)
        return status;
    if (times.profile)
        bw_profile_clear(times.profile);
    if (s->fixed_batch > 0 && batch != s->fixed_batch && sources)
        status = fetch_and_run_pieces(s, inputs, sources, batch, outputs, featurize, deadline, &times, err);
    else if (s->fixed_batch > 0 && batch != s->fixed_batch)
        status = run_pieces(s, inputs, batch, outputs, featurize, deadline, &times, err);
    else
        status = run_once(s, inputs, sources, outputs, featurize, deadline, &times, err);
    if (status)
        status = refuse_first(s, inputs, sources, s->plan.input_count, status, err);
    times.timing.total = bw_now_ns() - start;
    if (times.profile)
        times.profile->total_ns = times.timing.total;
    if (options && options->timing)
        *options->timing = times.timing;
    return status;
}
