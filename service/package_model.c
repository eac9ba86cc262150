/* SPDX-License-Identifier: Apache-2.0 */
/* A model from a package, on one or more devices. */
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "service/model.h"

struct package_model;

typedef struct replica {
    struct package_model *model;
    bw_session *session;
    size_t device;    /* of the fleet */
    atomic_uint runs; /* under way */
    bw_trial trial;
    uint64_t trial_ns; /* what the first one took */
} replica;

typedef struct package_model {
    bw_package *package;
    bw_fleet *fleet;
    const char *path;
    /* A run whose outcome is known, from the first device. */
    int input_count, output_count;
    bw_array inputs[BW_MODEL_IO_MAX], outputs[BW_MODEL_IO_MAX];
    bw_status outcome; /* BW_OK, or BW_NOT_FINITE: no outputs */
    size_t count;
    replica replicas[];
} package_model;

/* The one in use with the fewest runs under way, other than `except` (may be NULL). A lost device fails at once and
 * would draw all work to itself. */
static replica *choose(package_model *p, const replica *except)
{
    replica *best = NULL;
    for (size_t i = 0; i < p->count; i++) {
        replica *r = &p->replicas[i];
        if (r == except || bw_fleet_is_out(p->fleet, r->device))
            continue;
        if (!best || atomic_load(&r->runs) < atomic_load(&best->runs))
            best = r;
    }
    return best;
}

static bw_status run(void *self, const bw_array *inputs, bw_array *outputs, const bw_run_options *options,
                     bw_error *err)
{
    package_model *p = self;
    const replica *faulted = NULL;
    for (;;) {
        replica *r = choose(p, faulted);
        if (!r)
            return faulted ? BW_DEVICE_FAULT /* and its message */
                           : bw_fail(err, BW_BUSY,
                                     "every device of this model is lost, and being tried again: repeat the request "
                                     "later");
        atomic_fetch_add(&r->runs, 1);
        bw_status status = bw_session_run(r->session, inputs, outputs, options, err);
        atomic_fetch_sub(&r->runs, 1);
        const int out =
            (status == BW_DEVICE_LOST || status == BW_DEVICE_FAULT) && bw_fleet_report(p->fleet, r->device, status);
        /* With another device there is another try: nothing was answered yet. After a fault only one, for a request may
         * be what the device cannot bear. */
        if (status == BW_DEVICE_FAULT && !faulted)
            faulted = r;
        else if (status != BW_DEVICE_LOST || !out)
            return status;
    }
}

static int alive(void *self)
{
    return choose(self, NULL) != NULL;
}

static void close_model(void *self)
{
    package_model *p = self;
    for (size_t i = 0; i < p->count; i++) {
        bw_fleet_remove_trial(p->fleet, &p->replicas[i].trial);
        bw_session_close(p->replicas[i].session);
    }
    bw_package_close(p->package);
    for (int i = 0; i < BW_MODEL_IO_MAX; i++) {
        bw_array_free(&p->inputs[i]);
        bw_array_free(&p->outputs[i]);
    }
    free(p);
}

static const bw_model_ops package_ops = {run, alive, close_model};

static const char *device_uri(bw_device *device, bw_device_info *info)
{
    return bw_device_info_get(device, info, NULL) ? "?" : info->uri;
}

/* On every device that can; the last refusal is the error when none can. */
static bw_status open_sessions(package_model *p, bw_error *err)
{
    bw_error refusal = {BW_OK, ""};
    const size_t device_count = bw_fleet_count(p->fleet);
    for (size_t i = 0; i < device_count; i++) {
        bw_device_info info;
        bw_device *device = bw_fleet_device(p->fleet, i);
        replica *r = &p->replicas[p->count];
        bw_status status = bw_session_open(p->package, device, &r->session, &refusal);
        if (!status) {
            r->model = p;
            r->device = i;
            p->count++;
            continue;
        }
        if (status != BW_INCOMPATIBLE)
            return bw_fail(err, status, "%s: %s", device_uri(device, &info), refusal.message);
        if (device_count > 1)
            bw_log(BW_LOG_INFO, "serve", "not on %s: %s", device_uri(device, &info), refusal.message);
    }
    return p->count ? BW_OK : bw_fail(err, refusal.status, "%s", refusal.message); /* which names the package */
}

static bw_status describe(bw_model *m, const bw_session *s, const char *path, bw_error *err)
{
    m->name = bw_session_model_name(s);
    m->version = bw_session_model_version(s);
    m->input_count = bw_session_input_count(s);
    m->output_count = bw_session_output_count(s);
    if (m->input_count < 1 || m->input_count > BW_MODEL_IO_MAX || m->output_count < 1 ||
        m->output_count > BW_MODEL_IO_MAX)
        return bw_fail(err, BW_UNSUPPORTED, "%s: %d inputs and %d outputs, the service takes 1..%d of each", path,
                       m->input_count, m->output_count, BW_MODEL_IO_MAX);
    for (int i = 0; i < m->input_count; i++) {
        m->inputs[i] = bw_session_input(s, i);
        if (m->inputs[i]->dtype != BW_F32)
            return bw_fail(err, BW_UNSUPPORTED, "%s: input '%s' is %s, the service takes fp32 inputs", path,
                           m->inputs[i]->name, bw_dtype_name(m->inputs[i]->dtype));
    }
    for (int i = 0; i < m->output_count; i++)
        m->outputs[i] = bw_session_output(s, i);
    m->pace.device = bw_session_feature_count(s) > 0; /* outputs of the last device stage */
    return bw_model_bind_pictures(m, bw_session_preprocess(s), err);
}

/* --- trial runs --------------------------------------------------------------------------------------------------- */

/* Values of 0 up to 1 in no order, as prepared pictures have them: a turned bit anywhere in the weights has something
 * to be multiplied with. */
static void fill(bw_array *a)
{
    float *values = a->data;
    for (size_t i = 0; i < a->bytes / sizeof *values; i++)
        values[i] = (float)((uint32_t)i * UINT32_C(2654435761) >> 16) / 65536;
}

static bw_status make_inputs(const bw_model *m, package_model *p, bw_error *err)
{
    p->input_count = m->input_count;
    p->output_count = m->output_count;
    for (int i = 0; i < m->input_count; i++) {
        int64_t dims[BW_RANK_MAX] = {0};
        for (int k = 0; k < m->inputs[i]->rank; k++)
            dims[k] = m->inputs[i]->dims[k] < 0 ? 1 : m->inputs[i]->dims[k];
        bw_status status = bw_array_alloc(&p->inputs[i], BW_F32, m->inputs[i]->rank, dims, err);
        if (status)
            return status;
        fill(&p->inputs[i]);
    }
    return BW_OK;
}

static int same_bits(const bw_array *a, const bw_array *b)
{
    return a->bytes == b->bytes && (!a->bytes || memcmp(a->data, b->data, a->bytes) == 0);
}

/* One run that gives what the first device gave, in every bit. */
static bw_status try_replica(void *user, bw_error *err)
{
    replica *r = user;
    const package_model *p = r->model;
    bw_device_info info;
    bw_array outputs[BW_MODEL_IO_MAX] = {{0}};
    const uint64_t start = bw_now_ns();
    const bw_run_options options = {.deadline_ns = start + r->trial_ns * 10 + UINT64_C(10000000000)};
    bw_error why = {BW_OK, ""};
    bw_status status = bw_session_run(r->session, p->inputs, outputs, &options, &why);
    int same = status == p->outcome;
    for (int i = 0; i < p->output_count; i++) {
        same &= same_bits(&outputs[i], &p->outputs[i]);
        bw_array_free(&outputs[i]);
    }
    r->trial_ns = bw_now_ns() - start;
    if (same)
        return BW_OK;
    if (status && status != BW_NOT_FINITE)
        return bw_fail(err, status, "%s: trial run: %s", p->path, why.message);
    return bw_fail(err, BW_DEVICE_FAULT, "%s: trial run: %s gives other bits than %s at the start: replace the device",
                   p->path, device_uri(bw_fleet_device(p->fleet, r->device), &info),
                   r == p->replicas ? "it gave" : "the first one gave");
}

/* One run on every device: what can be done once (packing weights, compiling kernels) is done before the first request,
 * and a device that fails, or gives other bits than the others, shows now. A network whose answer to this input is not
 * finite is none that fails. */
static bw_status warm_up(const bw_model *m, package_model *p, bw_error *err)
{
    bw_status status = make_inputs(m, p, err);
    if (status)
        return bw_fail_context(err, status, "%s", p->path);
    const uint64_t start = bw_now_ns();
    p->outcome = bw_session_run(p->replicas[0].session, p->inputs, p->outputs, NULL, err);
    p->replicas[0].trial_ns = bw_now_ns() - start;
    if (p->outcome && p->outcome != BW_NOT_FINITE)
        return bw_fail_context(err, p->outcome, "%s: trial run", p->path);
    for (size_t i = 1; i < p->count; i++) {
        p->replicas[i].trial_ns = UINT64_C(3600000000000) / 10; /* whatever it takes to compile kernels */
        status = try_replica(&p->replicas[i], err);
        if (status)
            return status;
    }
    for (size_t i = 0; i < p->count; i++) {
        replica *r = &p->replicas[i];
        r->trial = (bw_trial){.run = try_replica, .user = r, .device = r->device};
        bw_fleet_add_trial(p->fleet, &r->trial);
    }
    return BW_OK;
}

bw_status bw_package_model_open(const char *path, bw_fleet *fleet, bw_model **model, bw_error *err)
{
    *model = NULL;
    package_model *p = calloc(1, sizeof *p + bw_fleet_count(fleet) * sizeof p->replicas[0]);
    if (!p)
        return bw_fail(err, BW_NO_MEMORY, "%s: out of memory", path);
    p->fleet = fleet;
    bw_status status = bw_package_open(path, &p->package, err);
    if (!status) {
        p->path = bw_package_path(p->package);
        status = open_sessions(p, err);
    }
    bw_model *m = status ? NULL : bw_model_new(&package_ops, p);
    if (!m) {
        close_model(p);
        return status ? status : bw_fail(err, BW_NO_MEMORY, "%s: out of memory", path);
    }
    status = describe(m, p->replicas[0].session, path, err);
    if (!status)
        status = warm_up(m, p, err);
    if (status) {
        bw_model_release(m);
        return status;
    }
    *model = m;
    return BW_OK;
}
