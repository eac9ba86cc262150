/* SPDX-License-Identifier: Apache-2.0 */
/* A model from a package, on one or more devices. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "hal/base.h"
#include "service/model.h"

typedef struct replica {
    bw_session *session;
    bw_device *device;
    atomic_uint runs; /* under way */
    atomic_int dead;  /* its device is lost for good */
} replica;

typedef struct package_model {
    bw_package *package;
    size_t count;
    replica replicas[];
} package_model;

/* The living one with the fewest runs under way. A dead device fails at once and would draw all work to itself. */
static replica *choose(package_model *p)
{
    replica *best = NULL;
    for (size_t i = 0; i < p->count; i++) {
        replica *r = &p->replicas[i];
        if (!atomic_load(&r->dead) && (!best || atomic_load(&r->runs) < atomic_load(&best->runs)))
            best = r;
    }
    return best;
}

/* A run ends before the reset that follows has shown whether the device lives: that is worth waiting for. */
static void mark_if_dead(replica *r)
{
    bw_device_info info = {.health = BW_HEALTH_OK};
    for (int waited_ms = 0; waited_ms < 2000; waited_ms += 5) {
        if (bw_device_info_get(r->device, &info, NULL) || info.health != BW_HEALTH_RESETTING)
            break;
        struct timespec moment = {0, 5000000};
        nanosleep(&moment, NULL);
    }
    if (info.health != BW_HEALTH_DEAD || atomic_exchange(&r->dead, 1))
        return;
    bw_log(BW_LOG_ERROR, "serve", "device %s is lost: nothing is sent to it any more", info.uri);
}

static bw_status run(void *self, const bw_array *inputs, bw_array *outputs, const bw_run_options *options,
                     bw_error *err)
{
    package_model *p = self;
    for (;;) {
        replica *r = choose(p);
        if (!r)
            return bw_fail(err, BW_DEVICE_LOST, "every device of this model is lost: restart the server");
        atomic_fetch_add(&r->runs, 1);
        bw_status status = bw_session_run(r->session, inputs, outputs, options, err);
        atomic_fetch_sub(&r->runs, 1);
        if (status != BW_DEVICE_LOST)
            return status;
        /* With another device there is another try: nothing was answered yet. */
        mark_if_dead(r);
        if (!atomic_load(&r->dead))
            return status;
    }
}

static int alive(void *self)
{
    return choose(self) != NULL;
}

static void close_model(void *self)
{
    package_model *p = self;
    for (size_t i = 0; i < p->count; i++)
        bw_session_close(p->replicas[i].session);
    bw_package_close(p->package);
    free(p);
}

static const bw_model_ops package_ops = {run, alive, close_model};

static const char *device_uri(bw_device *device, bw_device_info *info)
{
    return bw_device_info_get(device, info, NULL) ? "?" : info->uri;
}

/* On every device that can; the last refusal is the error when none can. */
static bw_status open_sessions(package_model *p, bw_device *const *devices, size_t device_count, bw_error *err)
{
    bw_error refusal = {BW_OK, ""};
    for (size_t i = 0; i < device_count; i++) {
        bw_device_info info;
        bw_status status = bw_session_open(p->package, devices[i], &p->replicas[p->count].session, &refusal);
        if (!status) {
            p->replicas[p->count++].device = devices[i];
            continue;
        }
        if (status != BW_INCOMPATIBLE)
            return bw_fail(err, status, "%s: %s", device_uri(devices[i], &info), refusal.message);
        if (device_count > 1)
            bw_log(BW_LOG_INFO, "serve", "not on %s: %s", device_uri(devices[i], &info), refusal.message);
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

/* One picture's worth of zeros through every replica: what can be done once (packing weights, compiling kernels) is
 * done before the first request, and a device that fails shows now. Zeros may be no valid input for a network (0 / 0),
 * so a NaN is no failure. */
static bw_status warm_up(const bw_model *m, const package_model *p, const char *path, bw_error *err)
{
    bw_array inputs[BW_MODEL_IO_MAX] = {{0}}, outputs[BW_MODEL_IO_MAX] = {{0}};
    bw_status status = BW_OK;
    for (int i = 0; i < m->input_count && !status; i++) {
        int64_t dims[BW_RANK_MAX] = {0};
        for (int k = 0; k < m->inputs[i]->rank; k++)
            dims[k] = m->inputs[i]->dims[k] < 0 ? 1 : m->inputs[i]->dims[k];
        status = bw_array_alloc(&inputs[i], BW_F32, m->inputs[i]->rank, dims, err);
        if (!status)
            memset(inputs[i].data, 0, inputs[i].bytes);
    }
    for (size_t i = 0; i < p->count && !status; i++) {
        status = bw_session_run(p->replicas[i].session, inputs, outputs, NULL, err);
        for (int k = 0; k < m->output_count; k++)
            bw_array_free(&outputs[k]);
        if (status == BW_NOT_FINITE)
            status = BW_OK;
        if (status)
            bw_fail_context(err, status, "%s: trial run", path);
    }
    for (int i = 0; i < m->input_count; i++)
        bw_array_free(&inputs[i]);
    return status;
}

bw_status bw_package_model_open(const char *path, bw_device *const *devices, size_t device_count, bw_model **model,
                                bw_error *err)
{
    *model = NULL;
    package_model *p = calloc(1, sizeof *p + device_count * sizeof p->replicas[0]);
    if (!p)
        return bw_fail(err, BW_NO_MEMORY, "%s: out of memory", path);
    bw_status status = bw_package_open(path, &p->package, err);
    if (!status)
        status = open_sessions(p, devices, device_count, err);
    bw_model *m = status ? NULL : bw_model_new(&package_ops, p);
    if (!m) {
        close_model(p);
        return status ? status : bw_fail(err, BW_NO_MEMORY, "%s: out of memory", path);
    }
    status = describe(m, p->replicas[0].session, path, err);
    if (!status)
        status = warm_up(m, p, path, err);
    if (status) {
        bw_model_release(m);
        return status;
    }
    *model = m;
    return BW_OK;
}
