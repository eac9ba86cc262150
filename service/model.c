/* SPDX-License-Identifier: Apache-2.0 */
/* Models and their repository: see service/model.h. */
#include "service/model.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"

bw_model *bw_model_new(const bw_model_ops *ops, void *self)
{
    bw_model *m = calloc(1, sizeof *m);
    if (m) {
        m->ops = ops;
        m->self = self;
        atomic_store(&m->refs, 1);
    }
    return m;
}

void bw_model_release(bw_model *m)
{
    if (!m || atomic_fetch_sub(&m->refs, 1) != 1)
        return;
    if (m->ops->close)
        m->ops->close(m->self);
    free(m);
}

/* Receiving large values takes the thread some time too: as much again does not hold others up for longer. */
static uint64_t short_run_ns(uint64_t bytes)
{
    return BW_SHORT_RUN_NS + bytes / 2;
}

void bw_pace_note(bw_pace *pace, uint64_t ns, uint64_t bytes)
{
    /* Threads may overwrite each other's notes: each of them is an honest one. A long run counts at once: another one
     * on the receiving thread would hold up all its connections. But on a busy machine it was often an interruption, so
     * half a dozen short ones make up for it, however long it was. */
    uint64_t limit = short_run_ns(bytes);
    if (ns > 2 * limit)
        ns = 2 * limit;
    uint64_t old_ns = ns < limit ? atomic_load_explicit(&pace->ns, memory_order_relaxed) : 0;
    uint64_t old_bytes = atomic_load_explicit(&pace->bytes, memory_order_relaxed);
    /* An interruption says little: no short run counts for more than twice what was to be expected. */
    double grown = bytes > old_bytes ? (double)bytes / (double)(old_bytes + 1) : 1;
    if (old_ns && (double)ns > 2 * grown * (double)old_ns)
        ns = (uint64_t)(2 * grown * (double)old_ns) + 8;
    atomic_store_explicit(&pace->ns, old_ns ? old_ns - old_ns / 8 + ns / 8 : ns, memory_order_relaxed);
    atomic_store_explicit(&pace->bytes, old_ns ? old_bytes - old_bytes / 8 + bytes / 8 : bytes, memory_order_relaxed);
}

int bw_pace_is_short(const bw_pace *pace, uint64_t bytes)
{
    uint64_t usual_ns = atomic_load_explicit(&pace->ns, memory_order_relaxed);
    uint64_t usual_bytes = atomic_load_explicit(&pace->bytes, memory_order_relaxed);
    if (pace->device || !usual_ns || usual_ns >= short_run_ns(usual_bytes))
        return 0;
    return bytes <= usual_bytes || (double)usual_ns * (double)bytes < (double)short_run_ns(bytes) * (double)usual_bytes;
}

bw_status bw_model_bind_pictures(bw_model *m, const bw_preprocess *p, bw_error *err)
{
    if (!p)
        return BW_OK;
    int64_t c = p->channels == BW_CHANNELS_GRAY ? 1 : 3;
    for (int i = 0; i < m->input_count; i++) {
        const bw_io *io = m->inputs[i];
        if (io->rank != 4 || io->dtype != BW_F32)
            continue;
        int chw = io->dims[1] == c && io->dims[2] == p->height && io->dims[3] == p->width;
        int hwc = io->dims[1] == p->height && io->dims[2] == p->width && io->dims[3] == c;
        if (chw || hwc) {
            m->preprocess = p;
            m->picture_input = i;
            m->picture_nhwc = !chw;
            return BW_OK;
        }
    }
    return bw_fail(err, BW_CORRUPT,
                   "model '%s': its pre-processing makes %lldx%dx%d pictures, but no input has that shape: package it "
                   "again with a fitting --preprocess",
                   m->name, (long long)c, p->height, p->width);
}

const char *bw_io_shape_text(const int64_t *dims, int rank, char text[128])
{
    size_t n = 0;
    text[n++] = '[';
    for (int i = 0; i < rank && n < 100; i++)
        n += (size_t)snprintf(text + n, 128 - n, i ? ",%lld" : "%lld", (long long)dims[i]);
    text[n++] = ']';
    text[n] = 0;
    return text;
}

/* --- repository ------------------------------------------------------------------------------------------------- */

struct bw_repository {
    pthread_mutex_t mutex;
    bw_model **models;
    size_t count;
    int ready;
};

bw_repository *bw_repository_new(void)
{
    bw_repository *r = calloc(1, sizeof *r);
    if (r)
        pthread_mutex_init(&r->mutex, NULL);
    return r;
}

void bw_repository_free(bw_repository *r)
{
    if (!r)
        return;
    for (size_t i = 0; i < r->count; i++)
        bw_model_release(r->models[i]);
    free(r->models);
    pthread_mutex_destroy(&r->mutex);
    free(r);
}

bw_status bw_repository_add(bw_repository *r, bw_model *m, bw_error *err)
{
    bw_status status = BW_OK;
    pthread_mutex_lock(&r->mutex);
    for (size_t i = 0; i < r->count && !status; i++) {
        if (!strcmp(r->models[i]->name, m->name) && !strcmp(r->models[i]->version, m->version))
            status = bw_fail(err, BW_ALREADY_EXISTS,
                             "model '%s' version %s is there twice: give one package another name or version", m->name,
                             m->version);
    }
    if (!status) {
        bw_model **grown = realloc(r->models, (r->count + 1) * sizeof *grown);
        if (grown) {
            r->models = grown;
            r->models[r->count++] = m;
        } else {
            status = bw_fail(err, BW_NO_MEMORY, "out of memory for model '%s'", m->name);
        }
    }
    pthread_mutex_unlock(&r->mutex);
    if (status)
        bw_model_release(m);
    return status;
}

void bw_repository_set_ready(bw_repository *r, int ready)
{
    pthread_mutex_lock(&r->mutex);
    r->ready = ready;
    pthread_mutex_unlock(&r->mutex);
}

int bw_repository_ready(bw_repository *r)
{
    pthread_mutex_lock(&r->mutex);
    int ready = r->ready;
    pthread_mutex_unlock(&r->mutex);
    return ready;
}

size_t bw_repository_count(bw_repository *r)
{
    pthread_mutex_lock(&r->mutex);
    size_t count = r->count;
    pthread_mutex_unlock(&r->mutex);
    return count;
}

void bw_repository_each(bw_repository *r, void (*each)(const bw_model *m, void *user), void *user)
{
    for (size_t i = 0;; i++) {
        pthread_mutex_lock(&r->mutex);
        bw_model *m = i < r->count ? r->models[i] : NULL;
        if (m)
            atomic_fetch_add(&m->refs, 1);
        pthread_mutex_unlock(&r->mutex);
        if (!m)
            return;
        each(m, user);
        bw_model_release(m);
    }
}

/* "1" and "01" are the same version, "10" is above "9"; anything that is no number sorts by its text. */
static int compare_versions(const char *a, const char *b)
{
    char *end_a, *end_b;
    unsigned long long x = strtoull(a, &end_a, 10), y = strtoull(b, &end_b, 10);
    if (*a && *b && !*end_a && !*end_b)
        return x < y ? -1 : x > y;
    return strcmp(a, b);
}

/* "'a' (1, 2), 'b' (1)", cut to what fits. */
static void list_models(const bw_repository *r, char *text, size_t size)
{
    size_t n = 0;
    text[0] = 0;
    for (size_t i = 0; i < r->count; i++) {
        int wrote =
            snprintf(text + n, size - n, "%s'%s' version %s", i ? ", " : "", r->models[i]->name, r->models[i]->version);
        if (wrote < 0 || (size_t)wrote >= size - n) {
            snprintf(text + (n < size - 4 ? n : size - 4), 4, "...");
            return;
        }
        n += (size_t)wrote;
    }
}

static bw_status find_locked(const bw_repository *r, const char *name, const char *version, bw_model **model,
                             bw_error *err)
{
    char served[300];
    *model = NULL;
    if (!r->ready)
        return bw_fail(err, BW_BUSY, "the models are not ready: wait until grpc.health.v1.Health/Check says SERVING");
    if (!name[0]) {
        for (size_t i = 1; i < r->count; i++) {
            if (strcmp(r->models[i]->name, r->models[0]->name)) {
                list_models(r, served, sizeof served);
                return bw_fail(err, BW_INVALID_ARGUMENT,
                               "the request names no model and several are served: name one of %s", served);
            }
        }
        name = r->count ? r->models[0]->name : "";
    }
    int name_known = 0;
    for (size_t i = 0; i < r->count; i++) {
        bw_model *m = r->models[i];
        if (strcmp(m->name, name))
            continue;
        name_known = 1;
        if (version[0] ? !compare_versions(m->version, version)
                       : !*model || compare_versions(m->version, (*model)->version) > 0)
            *model = m;
    }
    if (*model)
        return BW_OK;
    list_models(r, served, sizeof served);
    if (name_known)
        return bw_fail(err, BW_NOT_FOUND, "model '%.100s' has no version '%.40s' here: served are %s", name, version,
                       served);
    return bw_fail(err, BW_NOT_FOUND, "model '%.100s' is not served here: served are %s", name, served);
}

bw_status bw_repository_find(bw_repository *r, const char *name, const char *version, bw_model **model, bw_error *err)
{
    pthread_mutex_lock(&r->mutex);
    bw_status status = find_locked(r, name, version, model, err);
    if (!status)
        atomic_fetch_add(&(*model)->refs, 1);
    pthread_mutex_unlock(&r->mutex);
    return status;
}
