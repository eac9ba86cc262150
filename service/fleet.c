/* SPDX-License-Identifier: Apache-2.0 */
/* The devices and the threads that try lost ones again: see service/fleet.h. */
#include "service/fleet.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "hal/base.h"

#define MS        UINT64_C(1000000)
#define PAUSE_MIN (100 * MS)
#define PAUSE_MAX (60000 * MS)

typedef struct member {
    bw_fleet *fleet;
    bw_device *device;
    char uri[128];
    void *bitstream; /* the container that it has to hold; NULL: none */
    size_t bitstream_size;
    atomic_int out;
    /* Under the mutex: */
    pthread_cond_t wake;
    pthread_t thread; /* started with the first fault */
    int has_thread, suspect;
    uint64_t lost_ns;
} member;

struct bw_fleet {
    pthread_mutex_t mutex;
    int stopping;
    void (*changed)(void *user);
    void *changed_user;
    pthread_mutex_t trial_mutex; /* held while trials run */
    bw_trial *trials;
    size_t count;
    member **members; /* they do not move */
};

static void nap(void)
{
    nanosleep(&(struct timespec){0, 5000000}, NULL);
}

/* Its health, once a reset that is under way has shown whether it lives. */
static bw_health settled(const member *m, uint64_t patience_ns)
{
    bw_device_state state = {.health = BW_HEALTH_OK};
    const uint64_t until = bw_now_ns() + patience_ns;
    while (!bw_device_state_get(m->device, &state, NULL) && state.health == BW_HEALTH_RESETTING && bw_now_ns() < until)
        nap();
    return state.health;
}

/* --- coming back -------------------------------------------------------------------------------------------------- */

static bw_status run_trials(const member *m, size_t index, unsigned *count, bw_error *err)
{
    bw_status status = BW_OK;
    *count = 0;
    pthread_mutex_lock(&m->fleet->trial_mutex);
    for (bw_trial *t = m->fleet->trials; t && !status; t = t->next)
        if (t->device == index) {
            status = t->run(t->user, err);
            ++*count;
        }
    pthread_mutex_unlock(&m->fleet->trial_mutex);
    return status;
}

static size_t index_of(const member *m)
{
    size_t i = 0;
    while (m->fleet->members[i] != m)
        i++;
    return i;
}

/* Everything that has to be right before it is used. */
static bw_status bring_back(const member *m, int reset, unsigned *trials, bw_error *err)
{
    bw_status status = reset ? bw_device_reset(m->device, err) : BW_OK;
    /* One that has come back with another bitstream is revived by its own; of one that is dead this says so again. */
    if (m->bitstream)
        status = bw_device_load_bitstream(m->device, m->bitstream, m->bitstream_size, err);
    return status ? status : run_trials(m, index_of(m), trials, err);
}

/* The mutex is held, and dropped meanwhile; 0: the fleet stops. */
static int pause_until(member *m, uint64_t deadline_ns)
{
    const struct timespec t = {(time_t)(deadline_ns / (1000 * MS)), (long)(deadline_ns % (1000 * MS))};
    int code = 0;
    while (!m->fleet->stopping && code != ETIMEDOUT)
        code = pthread_cond_timedwait(&m->wake, &m->fleet->mutex, &t);
    return !m->fleet->stopping;
}

static void tell(bw_fleet *f)
{
    pthread_mutex_lock(&f->mutex);
    void (*changed)(void *) = f->stopping ? NULL : f->changed;
    void *user = f->changed_user;
    pthread_mutex_unlock(&f->mutex);
    if (changed)
        changed(user);
}

/* Tries until it is back, or the fleet stops. The mutex is held at entry and exit. */
static void try_again(member *m)
{
    bw_fleet *f = m->fleet;
    uint64_t pause = PAUSE_MIN;
    int reset = 0; /* also of one that lives: its trial run has failed */
    for (unsigned tries = 1; pause_until(m, bw_now_ns() + pause); tries++) {
        pthread_mutex_unlock(&f->mutex);
        bw_error err = {BW_OK, ""};
        unsigned trials = 0;
        const int dead = settled(m, 2000 * MS) != BW_HEALTH_OK;
        bw_status status = bring_back(m, dead || reset, &trials, &err);
        if (!status) {
            bw_log(BW_LOG_WARN, "serve", "device %s is back after %.1f s: %u %s the right bits", m->uri,
                   (double)(bw_now_ns() - m->lost_ns) / 1e9, trials, trials == 1 ? "model gives" : "models give");
            atomic_store(&m->out, 0);
            tell(f);
            pthread_mutex_lock(&f->mutex);
            return;
        }
        reset = 1;
        pause = pause < PAUSE_MAX / 2 ? pause * 2 : PAUSE_MAX;
        /* At the longest pause, a line in ten minutes is enough. */
        if (pause < PAUSE_MAX || tries % 10 == 0)
            bw_log(BW_LOG_WARN, "serve", "device %s is still out, tries: %u, the next one comes in %.1f s: %s", m->uri,
                   tries, (double)pause / 1e9, err.message);
        pthread_mutex_lock(&f->mutex);
    }
}

/* The mutex is not held. */
static void lose(member *m)
{
    if (atomic_exchange(&m->out, 1))
        return;
    m->lost_ns = bw_now_ns();
    bw_log(BW_LOG_ERROR, "serve", "device %s is lost: nothing is sent to it until it gives the right bits again",
           m->uri);
    tell(m->fleet);
}

static void *look_after(void *user)
{
    member *m = user;
    bw_fleet *f = m->fleet;
    pthread_mutex_lock(&f->mutex);
    while (!f->stopping) {
        if (!m->suspect) {
            pthread_cond_wait(&m->wake, &f->mutex);
            continue;
        }
        m->suspect = 0;
        pthread_mutex_unlock(&f->mutex);
        const int dead = settled(m, 30000 * MS) == BW_HEALTH_DEAD;
        if (dead)
            lose(m);
        pthread_mutex_lock(&f->mutex);
        if (dead)
            try_again(m);
    }
    pthread_mutex_unlock(&f->mutex);
    return NULL;
}

int bw_fleet_is_out(const bw_fleet *f, size_t device)
{
    return atomic_load(&f->members[device]->out);
}

int bw_fleet_report(bw_fleet *f, size_t device, bw_status status)
{
    member *m = f->members[device];
    pthread_mutex_lock(&f->mutex);
    if (!f->stopping) {
        m->suspect = 1;
        if (!m->has_thread) {
            const int code = pthread_create(&m->thread, NULL, look_after, m);
            m->has_thread = !code;
            if (code)
                bw_log(BW_LOG_ERROR, "serve", "no thread that looks after device %s: %s", m->uri, strerror(code));
        }
        pthread_cond_signal(&m->wake);
    }
    pthread_mutex_unlock(&f->mutex);
    if (status == BW_DEVICE_LOST && settled(m, 2000 * MS) == BW_HEALTH_DEAD)
        lose(m);
    return atomic_load(&m->out);
}

void bw_fleet_add_trial(bw_fleet *f, bw_trial *trial)
{
    pthread_mutex_lock(&f->trial_mutex);
    trial->next = f->trials;
    f->trials = trial;
    pthread_mutex_unlock(&f->trial_mutex);
}

void bw_fleet_remove_trial(bw_fleet *f, bw_trial *trial)
{
    pthread_mutex_lock(&f->trial_mutex);
    for (bw_trial **at = &f->trials; *at; at = &(*at)->next)
        if (*at == trial) {
            *at = trial->next;
            break;
        }
    pthread_mutex_unlock(&f->trial_mutex);
}

/* --- the devices -------------------------------------------------------------------------------------------------- */

bw_status bw_fleet_new(bw_fleet **fleet, bw_error *err)
{
    bw_fleet *f = calloc(1, sizeof *f);
    *fleet = f;
    if (!f)
        return bw_fail(err, BW_NO_MEMORY, "out of memory for the devices");
    pthread_mutex_init(&f->mutex, NULL);
    pthread_mutex_init(&f->trial_mutex, NULL);
    return BW_OK;
}

void bw_fleet_stop(bw_fleet *f)
{
    pthread_mutex_lock(&f->mutex);
    f->stopping = 1;
    for (size_t i = 0; i < f->count; i++)
        pthread_cond_broadcast(&f->members[i]->wake);
    pthread_mutex_unlock(&f->mutex);
    for (size_t i = 0; i < f->count; i++) {
        if (f->members[i]->has_thread)
            pthread_join(f->members[i]->thread, NULL);
        f->members[i]->has_thread = 0;
    }
}

void bw_fleet_free(bw_fleet *f)
{
    if (!f)
        return;
    bw_fleet_stop(f);
    for (size_t i = 0; i < f->count; i++) {
        bw_device_close(f->members[i]->device);
        pthread_cond_destroy(&f->members[i]->wake);
        free(f->members[i]->bitstream);
        free(f->members[i]);
    }
    free(f->members);
    pthread_mutex_destroy(&f->mutex);
    pthread_mutex_destroy(&f->trial_mutex);
    free(f);
}

bw_status bw_fleet_open(bw_fleet *f, const char *uri, uint64_t budget, bw_error *err)
{
    bw_device *device;
    bw_device_info info;
    bw_status status = bw_device_open(uri, &device, err);
    if (status)
        return status;
    if (budget)
        status = bw_device_set_budget(device, budget, err);
    if (!status)
        status = bw_device_info_get(device, &info, err);
    member **grown = status ? NULL : realloc(f->members, (f->count + 1) * sizeof *grown);
    if (grown)
        f->members = grown;
    member *m = grown ? calloc(1, sizeof *m) : NULL;
    if (!m) {
        bw_device_close(device);
        return status ? status : bw_fail(err, BW_NO_MEMORY, "out of memory for device %s", uri);
    }
    m->fleet = f;
    m->device = device;
    memcpy(m->uri, info.uri, sizeof m->uri);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&m->wake, &attr);
    pthread_condattr_destroy(&attr);
    f->members[f->count++] = m;
    bw_log(BW_LOG_INFO, "serve", "device %s: %s", info.uri, info.name);
    return BW_OK;
}

size_t bw_fleet_count(const bw_fleet *f)
{
    return f->count;
}

bw_device *bw_fleet_device(const bw_fleet *f, size_t device)
{
    return f->members[device]->device;
}

bw_status bw_fleet_keep_bitstream(bw_fleet *f, size_t device, const void *bytes, size_t size, bw_error *err)
{
    member *m = f->members[device];
    void *copy = malloc(size);
    if (!copy)
        return bw_fail(err, BW_NO_MEMORY, "out of memory for a bitstream of %zu bytes", size);
    memcpy(copy, bytes, size);
    free(m->bitstream);
    m->bitstream = copy;
    m->bitstream_size = size;
    return BW_OK;
}

void bw_fleet_watch(bw_fleet *f, void (*changed)(void *user), void *user)
{
    pthread_mutex_lock(&f->mutex);
    f->changed = changed;
    f->changed_user = user;
    pthread_mutex_unlock(&f->mutex);
}
