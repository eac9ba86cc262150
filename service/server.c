/* SPDX-License-Identifier: Apache-2.0 */
/* The scoring server: see service/server.h. */
#include "service/server.h"

#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "hal/base.h"
#include "host/cli.h"
#include "service/bitstream.h"
#include "service/grpc_transport.h"
#include "service/health.h"
#include "service/kserve.h"
#include "service/kserve_shared_memory.h"
#include "service/metrics.h"
#include "service/predict.h"

#define METHODS_MAX 16
#define INFERENCE   "/inference.GRPCInferenceService/"

struct bw_server {
    bw_scorer scorer;
    bw_health_service *health;
    bw_method methods[METHODS_MAX];
    bw_service service;
    bw_grpc *grpc;
    bw_fleet *fleet;
    bw_metrics *metrics;
    pthread_mutex_t state_mutex; /* of what health says */
    int loaded, draining, sick;
};

static const char *const service_names[] = {"tensorflow.serving.PredictionService", "inference.GRPCInferenceService",
                                            "grpc.health.v1.Health"};

void bw_server_defaults(bw_server_options *o)
{
    static const char *const devices[] = {"sim:"};
    memset(o, 0, sizeof *o);
    o->devices = devices;
    o->device_count = 1;
    o->grpc_address = "127.0.0.1:50051";
    o->max_message_mb = 64;
    o->queue = 256;
    o->timeout_seconds = 60;
    o->upload_seconds = 60;
    o->lame_duck_ms = 1000;
    o->drain_seconds = 30;
    o->max_connections = 10000;
    o->idle_seconds = 600;
    o->shared_memory_regions = BW_SHARED_REGIONS_MAX;
}

/* Pictures and CPU stages want a thread per CPU; one more keeps the device busy meanwhile. */
static unsigned default_workers(void)
{
    cpu_set_t set;
    int cpus = sched_getaffinity(0, sizeof set, &set) ? 2 : CPU_COUNT(&set);
    return (unsigned)(cpus > 31 ? 32 : cpus + 1);
}

static void add_method(bw_server *s, const char *path, void (*handle)(bw_call *, void *), void *user)
{
    s->methods[s->service.count++] = (bw_method){path, handle, user};
}

static void add_methods(bw_server *s)
{
    s->service.methods = s->methods;
    bw_scorer *scorer = &s->scorer;
    add_method(s, "/tensorflow.serving.PredictionService/Predict", bw_predict_handle, scorer);
    add_method(s, INFERENCE "ModelInfer", bw_kserve_model_infer, scorer);
    add_method(s, INFERENCE "ServerLive", bw_kserve_server_live, scorer);
    add_method(s, INFERENCE "ServerReady", bw_kserve_server_ready, scorer);
    add_method(s, INFERENCE "ModelReady", bw_kserve_model_ready, scorer);
    add_method(s, INFERENCE "ServerMetadata", bw_kserve_server_metadata, scorer);
    add_method(s, INFERENCE "ModelMetadata", bw_kserve_model_metadata, scorer);
    add_method(s, INFERENCE "SystemSharedMemoryStatus", bw_kserve_shared_memory_status, scorer);
    add_method(s, INFERENCE "SystemSharedMemoryRegister", bw_kserve_shared_memory_register, scorer);
    add_method(s, INFERENCE "SystemSharedMemoryUnregister", bw_kserve_shared_memory_unregister, scorer);
    add_method(s, "/grpc.health.v1.Health/Check", bw_health_check, s->health);
    add_method(s, "/grpc.health.v1.Health/Watch", bw_health_watch, s->health);
}

/* --- health ------------------------------------------------------------------------------------------------------- */

static void look_for_sick(const bw_model *m, void *user)
{
    const bw_model **sick = user;
    if (!*sick && !m->ops->alive(m->self))
        *sick = m;
}

/* SERVING: loaded, not on its way out, and every model has a device. */
static void update_health(bw_server *s)
{
    pthread_mutex_lock(&s->state_mutex);
    const bw_model *sick = NULL; /* the repository keeps it */
    bw_repository_each(s->scorer.repository, look_for_sick, &sick);
    if (s->loaded && !s->draining && sick && !s->sick)
        bw_log(BW_LOG_ERROR, "serve", "model '%s' has no device left: health is NOT_SERVING until one is back",
               sick->name);
    else if (s->loaded && !s->draining && !sick && s->sick)
        bw_log(BW_LOG_WARN, "serve", "every model has a device again: health is SERVING");
    s->sick = sick != NULL;
    bw_health_set(s->health, s->loaded && !s->draining && !sick);
    pthread_mutex_unlock(&s->state_mutex);
}

static void on_model_lost(const bw_model *m, void *user)
{
    (void)m;
    update_health(user);
}

static void on_fleet_changed(void *user)
{
    update_health(user);
}

/* --- metrics ------------------------------------------------------------------------------------------------------ */

/* From the metrics' thread. The devices are shown when all of them are there. */
static void write_metrics(FILE *out, void *user)
{
    bw_server *s = user;
    unsigned waiting, running;
    pthread_mutex_lock(&s->state_mutex);
    const int loaded = s->loaded, serving = loaded && !s->draining && !s->sick;
    pthread_mutex_unlock(&s->state_mutex);
    bw_scheduler_load(s->scorer.scheduler, &waiting, &running);
    bw_metrics_head(out, "blockwave_build_info", "gauge", "Version of the server.");
    fputs("blockwave_build_info{version=\"" BW_VERSION "\"} 1\n", out);
    bw_metrics_number(out, "blockwave_serving", "gauge", "1: the health service says SERVING.", serving);
    bw_metrics_number(out, "blockwave_requests_waiting", "gauge", "Requests in the queue.", waiting);
    bw_metrics_number(out, "blockwave_requests_running", "gauge", "Requests that workers are at.", running);
    if (loaded)
        bw_metrics_devices(out, s->fleet);
}

const char *bw_server_metrics_address(const bw_server *s)
{
    return s->metrics ? bw_metrics_address(s->metrics) : NULL;
}

/* --- start -------------------------------------------------------------------------------------------------------- */

/* The transport is gone: nobody calls in any more. */
static void free_server(bw_server *s)
{
    bw_metrics_close(s->metrics);
    if (s->fleet)
        bw_fleet_stop(s->fleet);
    bw_scheduler_destroy(s->scorer.scheduler);
    bw_repository_free(s->scorer.repository);
    bw_shared_memory_free(s->scorer.shared_memory);
    bw_health_free(s->health);
    bw_fleet_free(s->fleet);
    pthread_mutex_destroy(&s->state_mutex);
    free(s);
}

bw_status bw_server_start(const bw_server_options *o, bw_server **server, bw_error *err)
{
    *server = NULL;
    bw_server *s = calloc(1, sizeof *s);
    if (!s)
        return bw_fail(err, BW_NO_MEMORY, "out of memory starting the server");
    pthread_mutex_init(&s->state_mutex, NULL);
    size_t message_bytes = (size_t)o->max_message_mb << 20;
    s->scorer.tensor_bytes_max = message_bytes * 4; /* bytes of pictures and uint8 become floats */
    s->scorer.timeout_ns = (uint64_t)o->timeout_seconds * 1000000000u;
    s->scorer.model_lost = on_model_lost;
    s->scorer.model_lost_user = s;
    s->scorer.repository = bw_repository_new();
    s->health = bw_health_new(service_names, sizeof service_names / sizeof service_names[0]);
    if (o->shared_memory)
        s->scorer.shared_memory =
            bw_shared_memory_new(o->shared_memory_prefix, o->shared_memory_regions, o->shared_memory_fd_from);
    bw_status status = s->scorer.repository && s->health && (s->scorer.shared_memory || !o->shared_memory)
                           ? bw_scheduler_create(o->workers ? o->workers : default_workers(), o->queue,
                                                 message_bytes * 8, &s->scorer.scheduler, err)
                           : bw_fail(err, BW_NO_MEMORY, "out of memory starting the server");
    if (!status)
        status = bw_fleet_new(&s->fleet, err);
    if (!status && o->metrics_address)
        status = bw_metrics_open(o->metrics_address, write_metrics, s, &s->metrics, err);
    if (!status) {
        bw_fleet_watch(s->fleet, on_fleet_changed, s);
        add_methods(s);
        bw_grpc_options grpc = {
            .address = o->grpc_address,
            .service = &s->service,
            .max_message_bytes = message_bytes,
            .upload_seconds = o->upload_seconds,
            .max_connections = o->max_connections,
            .idle_seconds = o->idle_seconds,
        };
        status = bw_grpc_start(&grpc, &s->grpc, err);
    }
    if (status)
        free_server(s);
    else
        *server = s;
    return status;
}

const char *bw_server_grpc_address(const bw_server *s)
{
    return bw_grpc_address(s->grpc);
}

int bw_server_grpc_port(const bw_server *s)
{
    return bw_grpc_port(s->grpc);
}

/* --- models ------------------------------------------------------------------------------------------------------- */

bw_status bw_server_add_model(bw_server *s, bw_model *m, bw_error *err)
{
    return bw_repository_add(s->scorer.repository, m, err);
}

void bw_server_set_ready(bw_server *s)
{
    bw_repository_set_ready(s->scorer.repository, 1);
    pthread_mutex_lock(&s->state_mutex);
    s->loaded = 1;
    pthread_mutex_unlock(&s->state_mutex);
    update_health(s);
}

static bw_status load_package(bw_server *s, const char *path, bw_error *err)
{
    bw_model *m;
    uint64_t started = bw_now_ns();
    bw_status status = bw_package_model_open(path, s->fleet, &m, err);
    if (status)
        return status;
    char list[300];
    bw_tensor_list(m->inputs, m->input_count, list, sizeof list);
    bw_log(BW_LOG_INFO, "serve", "model '%s' version %s from %s in %.0f ms: takes %s%s", m->name, m->version, path,
           (double)(bw_now_ns() - started) / 1e6, list, m->preprocess ? " or pictures" : "");
    return bw_repository_add(s->scorer.repository, m, err);
}

static int is_package(const struct dirent *e)
{
    size_t n = strlen(e->d_name);
    return n > 3 && e->d_name[0] != '.' && !strcmp(e->d_name + n - 3, ".bw");
}

static bw_status load_dir(bw_server *s, const char *dir, int (*interrupted)(void *), void *user, bw_error *err)
{
    struct dirent **entries;
    int count = scandir(dir, &entries, is_package, alphasort);
    if (count < 0)
        return bw_fail(err, BW_NOT_FOUND, "--models %s: %m", dir);
    bw_status status =
        count ? BW_OK : bw_fail(err, BW_NOT_FOUND, "--models %s: no *.bw in it: put packages there", dir);
    for (int i = 0; i < count; i++) {
        char path[4096];
        if (!status && interrupted && interrupted(user))
            status = bw_fail(err, BW_CANCELLED, "interrupted while loading");
        if (!status && snprintf(path, sizeof path, "%s/%s", dir, entries[i]->d_name) < (int)sizeof path)
            status = load_package(s, path, err);
        free(entries[i]);
    }
    free(entries);
    return status;
}

bw_status bw_server_load(bw_server *s, const bw_server_options *o, int (*interrupted)(void *), void *user,
                         bw_error *err)
{
    bw_status status = BW_OK;
    for (size_t i = 0; i < o->device_count && !status; i++)
        status = bw_fleet_open(s->fleet, o->devices[i], o->device_memory, err);
    for (size_t i = 0; i < o->bitstream_count && !status; i++)
        status = bw_bitstream_load(o->bitstreams[i], o->trust_dir, o->require_signed, s->fleet, err);
    for (size_t i = 0; i < o->package_count && !status; i++) {
        if (interrupted && interrupted(user))
            status = bw_fail(err, BW_CANCELLED, "interrupted while loading");
        else
            status = load_package(s, o->packages[i], err);
    }
    if (!status && o->models_dir)
        status = load_dir(s, o->models_dir, interrupted, user, err);
    if (!status && !bw_repository_count(s->scorer.repository))
        status = bw_fail(err, BW_NOT_FOUND, "no model to serve: name packages, or a directory with --models");
    if (!status)
        bw_server_set_ready(s);
    return status;
}

/* --- stop --------------------------------------------------------------------------------------------------------- */

static void sleep_ms(int ms)
{
    struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000};
    nanosleep(&t, NULL);
}

bw_status bw_server_stop(bw_server *s, const bw_server_options *o, int (*hurry)(void *), void *user, unsigned *cut,
                         bw_error *err)
{
    uint64_t now = bw_now_ns();
    uint64_t until = now + (uint64_t)o->drain_seconds * 1000000000u;
    uint64_t duck = now + (uint64_t)o->lame_duck_ms * 1000000u;
    int in_hurry = 0;
    *cut = 0;
    pthread_mutex_lock(&s->state_mutex);
    s->draining = 1;
    pthread_mutex_unlock(&s->state_mutex);
    update_health(s);
    while (!in_hurry && (now = bw_now_ns()) < duck && now < until) {
        sleep_ms(20);
        in_hurry = hurry && hurry(user);
    }
    bw_health_close(s->health);
    bw_grpc_refuse_new(s->grpc);
    /* Idle for a moment is not enough: a client that has just been answered may send again, and should hear
     * UNAVAILABLE. But one that does not listen to that is not waited for. */
    uint64_t patience = bw_now_ns() + 1000000000u;
    while (!in_hurry && (now = bw_now_ns()) < until) {
        if (bw_grpc_idle(s->grpc, 20) && (bw_grpc_quiet(s->grpc, 100) || now > patience))
            break;
        sleep_ms(5);
        in_hurry = hurry && hurry(user);
    }
    if (!bw_grpc_idle(s->grpc, 0)) {
        *cut = bw_grpc_calls(s->grpc);
        bw_grpc_cancel_all(s->grpc);
    }
    /* Runs on a device end with their call's deadline; most are over in no time. */
    if (!bw_grpc_stop(s->grpc, 2000)) {
        unsigned waiting, running;
        bw_scheduler_load(s->scorer.scheduler, &waiting, &running);
        return bw_fail(err, BW_BUSY, "%u runs on a device did not end in time and were abandoned", running);
    }
    free_server(s);
    return BW_OK;
}
