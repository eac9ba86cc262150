/* SPDX-License-Identifier: Apache-2.0 */
#include "sim/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* How long a thread looks for news before it sleeps: longer than the gap between two instructions of a program, too
 * short to matter between two requests. */
#define SPIN_NS 40000

/*
 * `state` says whether a job is open and who works on it, so that joining is one compare-and-swap:
 *   bit 32 and up   generation: odd while a job is open; each job has its own
 *   bits 0..31      workers inside the job
 * What describes the job is written while it is closed and nobody is inside, and published by opening it.
 *
 * Sleepers: a thread first says that it will sleep, then looks at `state` for the last time; who changes `state` does
 * so first and looks for sleepers then. All four are sequentially consistent, so one of the two sees the other.
 */
#define GENERATION ((uint64_t)1 << 32)
#define INSIDE     (GENERATION - 1)

typedef struct worker {
    bw_pool *pool;
    pthread_t thread;
    unsigned number;
} worker;

/* The items that a thread starts with: the same part of every job, so that what it wrote in one is in its caches in the
 * next. Whoever has done its own helps others. */
typedef struct share {
    _Alignas(64) atomic_size_t next; /* in a cache line of its own */
    size_t end;
} share;

struct bw_pool {
    share shares[BW_POOL_THREADS_MAX];
    _Alignas(64) _Atomic uint64_t state;
    atomic_int quit;
    atomic_uint sleepers; /* workers */
    atomic_int waiting;   /* the caller sleeps until nobody is inside */
    bw_pool_fn fn;
    void *context;
    unsigned threads, started;
    int spin; /* there is a CPU for each thread */
    pthread_mutex_t lock;
    pthread_cond_t wake; /* a job was opened, or the pool ends */
    pthread_cond_t done; /* the last worker left the job */
    worker workers[];
};

static void take_items(bw_pool *pool, bw_pool_fn fn, void *context, unsigned threads, unsigned thread)
{
    for (unsigned i = 0; i < threads; i++) {
        share *from = &pool->shares[thread + i < threads ? thread + i : thread + i - threads];
        for (;;) {
            /* Looks first: what others are at is left alone once it is done. */
            size_t item = atomic_load_explicit(&from->next, memory_order_relaxed);
            if (item >= from->end)
                break;
            item = atomic_fetch_add_explicit(&from->next, 1, memory_order_relaxed);
            if (item >= from->end)
                break;
            fn(context, item, thread);
        }
    }
}

static void pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int is_new(uint64_t state, uint64_t seen)
{
    return (state / GENERATION & 1) && state / GENERATION != seen;
}

static int is_empty(const bw_pool *pool)
{
    return (atomic_load(&pool->state) & INSIDE) == 0;
}

/* Looks for a job other than `seen`, or the end, for a while. */
static void spin_for_job(const bw_pool *pool, uint64_t seen)
{
    const uint64_t end = now_ns() + SPIN_NS;
    do {
        for (int i = 0; i < 64; i++) {
            if (is_new(atomic_load_explicit(&pool->state, memory_order_relaxed), seen) ||
                atomic_load_explicit(&pool->quit, memory_order_relaxed))
                return;
            pause_briefly();
        }
    } while (now_ns() < end);
}

static void sleep_for_job(bw_pool *pool, uint64_t seen)
{
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->sleepers, 1);
    while (!atomic_load(&pool->quit) && !is_new(atomic_load(&pool->state), seen))
        pthread_cond_wait(&pool->wake, &pool->lock);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->lock);
}

static void leave_job(bw_pool *pool)
{
    const uint64_t before = atomic_fetch_sub(&pool->state, 1);
    if ((before & INSIDE) == 1 && atomic_load(&pool->waiting)) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_signal(&pool->done);
        pthread_mutex_unlock(&pool->lock);
    }
}

static void *worker_main(void *argument)
{
    worker *self = argument;
    bw_pool *pool = self->pool;
    uint64_t seen = 0; /* generation of the last job that this worker was in */
    while (!atomic_load(&pool->quit)) {
        uint64_t state = atomic_load(&pool->state);
        if (!is_new(state, seen)) {
            if (pool->spin)
                spin_for_job(pool, seen);
            if (!is_new(atomic_load(&pool->state), seen))
                sleep_for_job(pool, seen);
            continue;
        }
        if (!atomic_compare_exchange_strong(&pool->state, &state, state + 1))
            continue; /* closed, or another one came in */
        seen = state / GENERATION;
        take_items(pool, pool->fn, pool->context, pool->threads, self->number);
        leave_job(pool);
    }
    return NULL;
}

static unsigned cpus(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? (unsigned)CPU_COUNT(&set) : 1;
}

bw_status bw_pool_create(unsigned threads, bw_pool **out, bw_error *err)
{
    if (threads < 1 || threads > BW_POOL_THREADS_MAX)
        return bw_fail(err, BW_INVALID_ARGUMENT, "%u threads: a pool has 1..%d", threads, BW_POOL_THREADS_MAX);
    const size_t bytes = (sizeof(bw_pool) + threads * sizeof(worker) + 63) / 64 * 64;
    bw_pool *pool = aligned_alloc(64, bytes);
    if (!pool)
        return bw_fail(err, BW_NO_MEMORY, "no memory for a pool of %u threads", threads);
    memset(pool, 0, bytes);
    pool->threads = threads;
    pool->spin = threads <= cpus();
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->done, NULL);
    for (unsigned i = 1; i < threads; i++) {
        worker *w = &pool->workers[pool->started];
        w->pool = pool;
        w->number = i;
        int code = pthread_create(&w->thread, NULL, worker_main, w);
        if (code) {
            bw_pool_destroy(pool);
            return bw_fail(err, BW_EXHAUSTED, "cannot start thread %u of %u: %s; ask for fewer threads", i, threads,
                           strerror(code));
        }
        pool->started++;
    }
    *out = pool;
    return BW_OK;
}

void bw_pool_destroy(bw_pool *pool)
{
    if (!pool)
        return;
    pthread_mutex_lock(&pool->lock);
    atomic_store(&pool->quit, 1);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    for (unsigned i = 0; i < pool->started; i++)
        pthread_join(pool->workers[i].thread, NULL);
    pthread_cond_destroy(&pool->done);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

unsigned bw_pool_threads(const bw_pool *pool)
{
    return pool->threads;
}

/* Workers that have not noticed the job are not waited for: they find it closed. */
static void wait_for_workers(bw_pool *pool)
{
    const uint64_t end = now_ns() + SPIN_NS;
    do {
        for (int i = 0; i < 64; i++) {
            if (is_empty(pool))
                return;
            pause_briefly();
        }
    } while (pool->spin && now_ns() < end);
    pthread_mutex_lock(&pool->lock);
    atomic_store(&pool->waiting, 1);
    while (!is_empty(pool))
        pthread_cond_wait(&pool->done, &pool->lock);
    atomic_store(&pool->waiting, 0);
    pthread_mutex_unlock(&pool->lock);
}

void bw_pool_run(bw_pool *pool, size_t items, bw_pool_fn fn, void *context)
{
    if (pool->threads == 1 || items <= 1) {
        for (size_t i = 0; i < items; i++)
            fn(context, i, 0);
        return;
    }
    pool->fn = fn;
    pool->context = context;
    for (unsigned i = 0; i < pool->threads; i++) {
        atomic_store_explicit(&pool->shares[i].next, items * i / pool->threads, memory_order_relaxed);
        pool->shares[i].end = items * (i + 1) / pool->threads;
    }
    atomic_fetch_add(&pool->state, GENERATION); /* open */
    if (atomic_load(&pool->sleepers)) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);
    }

    take_items(pool, fn, context, pool->threads, 0);

    atomic_fetch_add(&pool->state, GENERATION); /* close */
    if (!is_empty(pool))
        wait_for_workers(pool);
}
