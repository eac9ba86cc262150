/* SPDX-License-Identifier: Apache-2.0 */
/* One run through the stages. */
#include "host/session_lane.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "host/session_layout.h"
#include "host/session_source.h"

void bw_lane_free(bw_session *s, bw_lane *lane)
{
    if (!lane)
        return;
    for (int i = 0; lane->stages && i < s->plan.stage_count; i++) {
        bw_executor_destroy(lane->stages[i].executor);
        free(lane->stages[i].arrays);
        free(lane->stages[i].in);
        free(lane->stages[i].out);
    }
    free(lane->stages);
    for (int i = 0; lane->kept && i < s->plan.value_count; i++)
        bw_array_free(&lane->kept[i]);
    free(lane->values);
    free(lane->sources);
    free(lane->borrowed);
    free(lane->kept);
    free(lane->keeps);
    free(lane);
}

/* Of a CPU stage. */
static bw_status stage_new(const bw_plan_stage *st, bw_lane_stage *l, bw_error *err)
{
    l->arrays = calloc((size_t)(st->input_count + st->output_count) + 1, sizeof *l->arrays);
    uint8_t *all = malloc((size_t)st->graph->value_count + 1);
    bw_status status = l->arrays && all ? bw_executor_create(st->graph, &l->executor, err)
                                        : bw_fail(err, BW_NO_MEMORY, "no memory for a run");
    if (!status) {
        /* The observer only looks at the clock: no value is to be put in order for it. */
        memset(all, 1, (size_t)st->graph->value_count);
        status = bw_executor_observe_unordered(l->executor, all, err);
    }
    free(all);
    return status;
}

static bw_status lane_new(bw_session *s, bw_lane **out, bw_error *err)
{
    const bw_plan *p = &s->plan;
    bw_lane *lane = calloc(1, sizeof *lane);
    bw_status status = BW_OK;
    if (lane) {
        lane->stages = calloc((size_t)p->stage_count, sizeof *lane->stages);
        lane->values = calloc((size_t)p->value_count, sizeof *lane->values);
        lane->sources = calloc((size_t)p->value_count, sizeof *lane->sources);
        lane->borrowed = calloc((size_t)p->value_count, 1);
        lane->kept = calloc((size_t)p->value_count, sizeof *lane->kept);
        lane->keeps = calloc((size_t)p->value_count, 1);
    }
    if (!lane || !lane->stages || !lane->values || !lane->sources || !lane->borrowed || !lane->kept || !lane->keeps)
        status = bw_fail(err, BW_NO_MEMORY, "no memory for a run");
    for (int i = 0; i < p->stage_count && !status; i++) {
        if (p->stages[i].device)
            continue;
        status = stage_new(&p->stages[i], &lane->stages[i], err);
        if (status)
            (void)bw_fail_context(err, status, "stage %d", i);
    }
    if (status) {
        bw_lane_free(s, lane);
        return status;
    }
    *out = lane;
    return BW_OK;
}

bw_status bw_lane_take(bw_session *s, bw_lane **lane, bw_error *err)
{
    pthread_mutex_lock(&s->lock);
    *lane = s->idle;
    if (*lane)
        s->idle = (*lane)->next;
    pthread_mutex_unlock(&s->lock);
    return *lane ? BW_OK : lane_new(s, lane, err);
}

static void drop_value(bw_lane *lane, int v)
{
    if (lane->keeps[v] && lane->values[v].owned) {
        bw_array_free(&lane->kept[v]);
        lane->kept[v] = lane->values[v];
    } else if (!lane->borrowed[v]) {
        bw_array_free(&lane->values[v]);
    }
    memset(&lane->values[v], 0, sizeof lane->values[v]);
    lane->sources[v].read = NULL;
    lane->borrowed[v] = 0;
}

void bw_lane_give(bw_session *s, bw_lane *lane)
{
    for (int v = 0; v < s->plan.value_count; v++)
        drop_value(lane, v);
    pthread_mutex_lock(&s->lock);
    lane->next = s->idle;
    s->idle = lane;
    pthread_mutex_unlock(&s->lock);
}

static int past(int value, const bw_array *array, void *user)
{
    (void)value;
    (void)array;
    return bw_now_ns() >= *(const uint64_t *)user;
}

static bw_status late(int stage, bw_error *err)
{
    return bw_fail(err, BW_TIMEOUT, "deadline exceeded in stage %d", stage);
}

static bw_status fetch_input(const bw_lane *lane, int value, bw_executor *executor, int index, bw_array *a,
                             const bw_io *io, bw_error *err)
{
    size_t count = (size_t)bw_array_count(a);
    a->bytes = count * sizeof(float);
    a->data = bw_executor_input(executor, index, a->bytes, err);
    if (!a->data)
        return err && err->status ? err->status : BW_NO_MEMORY;
    return bw_source_fetch(&lane->sources[value], io, count, a->data, err);
}

static bw_status run_cpu(bw_session *s, bw_lane *lane, int stage, uint64_t deadline, bw_error *err)
{
    const bw_plan_stage *st = &s->plan.stages[stage];
    bw_executor *executor = lane->stages[stage].executor;
    bw_array *arrays = lane->stages[stage].arrays, *outputs = arrays + st->input_count;
    memset(outputs, 0, (size_t)st->output_count * sizeof *outputs);
    for (int i = 0; i < st->input_count; i++) {
        int v = st->inputs[i].value;
        arrays[i] = lane->values[v];
        arrays[i].owned = 0;
        bw_status status =
            lane->sources[v].read ? fetch_input(lane, v, executor, i, &arrays[i], &s->plan.inputs[v], err) : BW_OK;
        if (status)
            return status;
    }
    bw_status status =
        bw_executor_run(executor, arrays, outputs, deadline ? past : NULL, deadline ? &deadline : NULL, err);
    for (int i = 0; i < st->output_count && !status; i++) {
        lane->values[st->outputs[i].value] = outputs[i];
        lane->borrowed[st->outputs[i].value] = !outputs[i].owned;
    }
    if (status == BW_CANCELLED && deadline)
        return late(stage, err);
    return status ? bw_fail_context(err, status, "stage %d", stage) : BW_OK;
}

static bw_status room_for(const bw_session *s, bw_lane *lane, int stage, uint32_t images, bw_error *err)
{
    bw_lane_stage *l = &lane->stages[stage];
    if (l->capacity >= images)
        return BW_OK;
    const bw_program_header *h = bw_image_program(s->images[stage])->header;
    free(l->in);
    free(l->out);
    l->capacity = 0;
    l->in = bw_aligned_zalloc((size_t)(images * h->in_bytes));
    l->out = bw_aligned_zalloc((size_t)(images * h->out_bytes));
    if (!l->in || !l->out)
        return bw_fail(err, BW_NO_MEMORY, "no memory for %u images of stage %d", images, stage);
    l->capacity = images;
    return BW_OK;
}

/* What is not finite in an input of a device stage. An input of the network keeps the words that its check on entry has
 * for it. */
static bw_status check_finite(const bw_session *s, const bw_lane *lane, int stage, int value, bw_error *err)
{
    const bw_plan *p = &s->plan;
    const float *x = lane->values[value].data;
    size_t count = (size_t)bw_array_count(&lane->values[value]), bad = bw_first_not_finite(x, count);
    if (bad == count)
        return BW_OK;
    return value < p->input_count ? bw_fail_not_finite(&p->inputs[value], bad, (double)x[bad], err)
                                  : bw_fail(err, BW_NOT_FINITE, "'%s' before device stage %d: element %zu is %g",
                                            p->values[value].name, stage, bad, (double)x[bad]);
}

/* The arrays that go to a device stage: of the shape that the manifest promised, one batch. All finite is looked at
 * here where the device runs with a part of them before the rest is laid out, else on the way. */
static bw_status check_inputs(const bw_session *s, const bw_lane *lane, int stage, int64_t *batch, bw_error *err)
{
    const bw_plan *p = &s->plan;
    const bw_plan_stage *st = &p->stages[stage];
    *batch = -1;
    for (int i = 0; i < st->input_count; i++) {
        const bw_plan_tensor *t = &st->inputs[i];
        const bw_array *a = &lane->values[t->value];
        const char *name = p->values[t->value].name;
        int fits = a->dtype == BW_F32 && a->rank == t->rank && (t->dims[0] < 0 || a->dims[0] == t->dims[0]) &&
                   a->dims[0] >= 1 && (*batch < 0 || a->dims[0] == *batch);
        for (int d = 1; fits && d < t->rank; d++)
            fits = a->dims[d] == t->dims[d];
        char has[200], wants[120];
        if (!fits)
            return bw_fail(err, BW_CORRUPT, "stage %d: '%s' is %s %s, the package promises fp32 %s of one batch", stage,
                           name, bw_dtype_name(a->dtype), bw_shape_text(a->rank, a->dims, has, sizeof has),
                           bw_shape_text(t->rank, t->dims, wants, sizeof wants));
        *batch = a->dims[0];
        if (t->value < p->input_count || *batch <= s->chunk[stage])
            continue; /* scanned on entry, or to be scanned on the way */
        bw_status status = check_finite(s, lane, stage, t->value, err);
        if (status)
            return status;
    }
    return BW_OK;
}

/* A value of a device stage. Its memory is that of the last run where the value has not left the session: fresh pages
 * would cost more than filling them. */
static bw_status make_value(bw_lane *lane, int v, int rank, const int64_t *dims, bw_error *err)
{
    bw_array *kept = &lane->kept[v];
    lane->keeps[v] = 1;
    if (kept->data && kept->rank == rank && memcmp(kept->dims, dims, (size_t)rank * sizeof *dims) == 0) {
        lane->values[v] = *kept;
        memset(kept, 0, sizeof *kept);
        return BW_OK;
    }
    return bw_array_alloc(&lane->values[v], BW_F32, rank, dims, err);
}

static bw_status gather(const bw_session *s, const bw_lane *lane, int stage, int64_t first, uint32_t images,
                        bw_error *err)
{
    const bw_plan_stage *st = &s->plan.stages[stage];
    uint64_t in_bytes = bw_image_program(s->images[stage])->header->in_bytes;
    for (int i = 0; i < st->input_count; i++) {
        const bw_plan_tensor *t = &st->inputs[i];
        const bw_source *source = &lane->sources[t->value];
        size_t at = (size_t)first * t->channels * t->pixels;
        const float *from = source->read ? NULL : (const float *)lane->values[t->value].data;
        for (uint32_t k = 0; k < images; k++, at += t->channels * t->pixels) {
            float *to = (float *)(lane->stages[stage].in + k * in_bytes + t->offset);
            if (from && bw_to_channels_last(from + at, t->channels, t->pixels, to))
                continue;
            bw_status status =
                from ? check_finite(s, lane, stage, t->value, err)
                     : bw_source_channels_last(source, &s->plan.inputs[t->value], at, t->channels, t->pixels, to, err);
            if (from && !status)
                status = bw_fail(err, BW_INTERNAL, "'%s' changed while it was read", s->plan.values[t->value].name);
            if (status)
                return status;
        }
    }
    return BW_OK;
}

static void scatter(const bw_session *s, bw_lane *lane, int stage, int64_t first, uint32_t images)
{
    const bw_plan_stage *st = &s->plan.stages[stage];
    uint64_t out_bytes = bw_image_program(s->images[stage])->header->out_bytes;
    for (int i = 0; i < st->output_count; i++) {
        const bw_plan_tensor *t = &st->outputs[i];
        float *to = (float *)lane->values[t->value].data + (size_t)first * t->channels * t->pixels;
        for (uint32_t k = 0; k < images; k++, to += t->channels * t->pixels)
            bw_to_channels_first((const float *)(lane->stages[stage].out + k * out_bytes + t->offset), t->channels,
                                 t->pixels, to);
    }
}

/* Buffers of runs that a lost device never gave back: a backend that hangs for good may still write there. They stay
 * for the life of the process; a device is lost once, with at most its queue of runs. */
typedef struct lost_buffers {
    struct lost_buffers *next;
    void *in, *out, *spent;
} lost_buffers;

static lost_buffers *lost;
static pthread_mutex_t lost_lock = PTHREAD_MUTEX_INITIALIZER;

static void give_up_buffers(bw_lane_stage *l, uint64_t *spent)
{
    lost_buffers *b = malloc(sizeof *b);
    if (b) {
        b->in = l->in;
        b->out = l->out;
        b->spent = spent;
        pthread_mutex_lock(&lost_lock);
        b->next = lost;
        lost = b;
        pthread_mutex_unlock(&lost_lock);
    }
    l->in = l->out = NULL;
    l->capacity = 0;
}

/* One run, at most until the deadline. One that is late is cancelled before its buffers are used again. */
static bw_status run_images(bw_session *s, bw_lane *lane, int stage, uint32_t images, uint64_t deadline,
                            bw_lane_times *times, bw_error *err)
{
    bw_lane_stage *l = &lane->stages[stage];
    bw_stage_profile *profile = times->profile ? &times->profile->stages[stage] : NULL;
    uint64_t now = bw_now_ns();
    if (deadline && now >= deadline)
        return late(stage, err);
    /* Nothing of the run before may be read again, whatever a program leaves out. */
    memset(l->out, 0, (size_t)(images * bw_image_program(s->images[stage])->header->out_bytes));
    /* A device that is lost may still write into what it was given, so it does not get the caller's array. */
    uint64_t *spent = profile ? calloc(profile->instruction_count, sizeof *spent) : NULL;
    if (profile && !spent)
        return bw_fail(err, BW_NO_MEMORY, "no memory for the times of %u instructions", profile->instruction_count);
    bw_run_times took;
    bw_status status =
        bw_image_run_timed(s->images[stage], l->in, l->out, images, deadline ? deadline - now : 0, spent, &took, err);
    /* A run that ended while it was being cancelled came too late all the same. */
    const int overdue = status == BW_TIMEOUT || (!status && deadline && bw_now_ns() >= deadline);
    times->timing.device_queue += took.queued_ns;
    times->timing.device_run += took.running_ns;
    if (profile) {
        profile->queue_ns += took.queued_ns;
        profile->run_ns += took.running_ns;
        for (uint32_t i = 0; !status && i < profile->instruction_count; i++)
            profile->instruction_ns[i] += spent[i];
    }
    if (status == BW_DEVICE_LOST && took.submitted)
        give_up_buffers(l, spent);
    else
        free(spent);
    return overdue ? late(stage, err) : status;
}

static bw_status run_device(bw_session *s, bw_lane *lane, int stage, uint64_t deadline, bw_lane_times *times,
                            bw_error *err)
{
    const bw_plan_stage *st = &s->plan.stages[stage];
    bw_stage_profile *profile = times->profile ? &times->profile->stages[stage] : NULL;
    int64_t batch;
    uint64_t start = bw_now_ns();
    bw_status status = check_inputs(s, lane, stage, &batch, err);
    for (int i = 0; i < st->output_count && !status; i++) {
        const bw_plan_tensor *t = &st->outputs[i];
        int64_t dims[4];
        memcpy(dims, t->dims, sizeof dims);
        dims[0] = batch;
        status = make_value(lane, t->value, t->rank, dims, err);
    }
    for (int64_t first = 0; first < batch && !status;) {
        uint32_t images = batch - first < s->chunk[stage] ? (uint32_t)(batch - first) : s->chunk[stage];
        status = room_for(s, lane, stage, images, err);
        if (status)
            break;
        status = gather(s, lane, stage, first, images, err);
        if (status)
            break;
        uint64_t gathered = bw_now_ns();
        status = run_images(s, lane, stage, images, deadline, times, err);
        uint64_t ran = bw_now_ns();
        if (!status)
            scatter(s, lane, stage, first, images);
        if (profile)
            profile->in_ns += gathered - start;
        start = bw_now_ns();
        if (profile)
            profile->out_ns += start - ran;
        first += images;
    }
    return status;
}

bw_status bw_lane_run(bw_session *s, bw_lane *lane, int last, uint64_t deadline, bw_lane_times *times, bw_error *err)
{
    bw_timing *timing = &times->timing;
    const bw_plan *p = &s->plan;
    int seen_device = 0;
    for (int i = 0; i <= last; i++) {
        uint64_t start = bw_now_ns(), device = timing->device_queue + timing->device_run;
        if (deadline && start >= deadline)
            return late(i, err);
        bw_status status =
            p->stages[i].device ? run_device(s, lane, i, deadline, times, err) : run_cpu(s, lane, i, deadline, err);
        if (status)
            return status;
        for (int k = 0; k < p->stages[i].input_count; k++) {
            int v = p->stages[i].inputs[k].value;
            if (p->values[v].last_use == i)
                drop_value(lane, v);
        }
        /* What a device stage takes beyond its device time is conversion on this side. */
        uint64_t took = bw_now_ns() - start;
        if (times->profile) {
            bw_stage_profile *profile = &times->profile->stages[i];
            profile->start_ns = profile->total_ns ? profile->start_ns : start - times->start_ns;
            profile->total_ns += took;
        }
        device = timing->device_queue + timing->device_run - device;
        uint64_t cpu = took > device ? took - device : 0;
        if (seen_device)
            timing->cpu_after += cpu;
        else
            timing->cpu_before += cpu;
        seen_device |= p->stages[i].device;
    }
    return BW_OK;
}
