/* SPDX-License-Identifier: Apache-2.0 */
#include "host/ops/parallel.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#define THREADS_MAX 64

typedef struct job {
    void (*fn)(int64_t from, int64_t to, void *user);
    void *user;
    int64_t count, step;
    _Atomic int64_t next;
} job;

static pthread_mutex_t owner = PTHREAD_MUTEX_INITIALIZER; /* held by the loop that has the helpers */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER, idle = PTHREAD_COND_INITIALIZER;
static job *current;
static uint64_t generation;
static int helpers = -1, working; /* helpers: -1 before the first loop */
static pid_t started_in;          /* threads do not survive a fork */

static void work(job *j)
{
    for (;;) {
        int64_t from = atomic_fetch_add(&j->next, j->step);
        if (from >= j->count)
            return;
        j->fn(from, from + j->step < j->count ? from + j->step : j->count, j->user);
    }
}

static void *helper(void *unused)
{
    (void)unused;
    uint64_t seen = 0;
    pthread_mutex_lock(&lock);
    for (;;) {
        while (generation == seen || !current) {
            seen = current ? seen : generation;
            pthread_cond_wait(&wake, &lock);
        }
        seen = generation;
        job *j = current;
        working++;
        pthread_mutex_unlock(&lock);
        work(j);
        pthread_mutex_lock(&lock);
        if (--working == 0)
            pthread_cond_signal(&idle);
    }
    return NULL;
}

static int wanted_threads(void)
{
    const char *text = getenv("BW_CPU_THREADS");
    if (!text)
        text = getenv("OMP_NUM_THREADS");
    long n = text ? strtol(text, NULL, 10) : 0;
    if (n < 1) {
        cpu_set_t set;
        n = sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
    }
    return n > THREADS_MAX ? THREADS_MAX : (int)n;
}

/* Under `owner`. */
static void start_helpers(void)
{
    if (helpers >= 0 && started_in == getpid())
        return;
    int wanted = helpers < 0 ? wanted_threads() - 1 : 0; /* the child of a fork works alone */
    helpers = 0;
    started_in = getpid();
    for (int i = 0; i < wanted; i++) {
        pthread_t t;
        if (pthread_create(&t, NULL, helper, NULL))
            break;
        pthread_detach(t);
        helpers++;
    }
}

void bw_parallel(int64_t count, int64_t grain, void (*fn)(int64_t from, int64_t to, void *user), void *user)
{
    if (count <= 0)
        return;
    if (count <= grain || pthread_mutex_trylock(&owner)) {
        fn(0, count, user);
        return;
    }
    start_helpers();
    /* A few pieces per thread, so that a slow one does not hold up the rest. */
    int64_t step = count / ((helpers + 1) * (int64_t)4);
    step = step < grain ? grain : step;
    job j = {fn, user, count, step, 0};
    if (helpers == 0) {
        fn(0, count, user);
    } else {
        pthread_mutex_lock(&lock);
        current = &j;
        generation++;
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&lock);
        work(&j);
        pthread_mutex_lock(&lock);
        current = NULL; /* whoever has not begun finds nothing to do */
        while (working)
            pthread_cond_wait(&idle, &lock);
        pthread_mutex_unlock(&lock);
    }
    pthread_mutex_unlock(&owner);
}
