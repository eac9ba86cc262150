/* SPDX-License-Identifier: Apache-2.0 */
#include "sim/pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* How often a worker looks for the next job before it sleeps: some microseconds, the gap between two instructions. */
#define SPINS 1000

typedef struct worker {
    bw_pool *pool;
    pthread_t thread;
    unsigned number;
} worker;

struct bw_pool {
    unsigned threads;
    pthread_mutex_t lock;
    pthread_cond_t wake; /* a job was opened, or the pool ends */
    pthread_cond_t done; /* the last worker left the job */
    /* Under `lock`; `generation` may be read without it, by spinning workers. */
    atomic_uint generation;
    int open, quit;
    unsigned inside; /* workers at work on the open job */
    bw_pool_fn fn;
    void *context;
    size_t items;
    atomic_size_t next;
    unsigned started;
    worker workers[];
};

static void take_items(bw_pool *pool, bw_pool_fn fn, void *context, size_t items, unsigned thread)
{
    for (;;) {
        size_t item = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (item >= items)
            return;
        fn(context, item, thread);
    }
}

static void pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static void *worker_main(void *argument)
{
    worker *self = argument;
    bw_pool *pool = self->pool;
    unsigned seen = 0;
    for (;;) {
        for (int i = 0; i < SPINS && atomic_load_explicit(&pool->generation, memory_order_relaxed) == seen; i++)
            pause_briefly();
        pthread_mutex_lock(&pool->lock);
        while (!pool->quit && (!pool->open || atomic_load(&pool->generation) == seen))
            pthread_cond_wait(&pool->wake, &pool->lock);
        if (pool->quit) {
            pthread_mutex_unlock(&pool->lock);
            return NULL;
        }
        seen = atomic_load(&pool->generation);
        pool->inside++;
        bw_pool_fn fn = pool->fn;
        void *context = pool->context;
        size_t items = pool->items;
        pthread_mutex_unlock(&pool->lock);

        take_items(pool, fn, context, items, self->number);

        pthread_mutex_lock(&pool->lock);
        if (--pool->inside == 0)
            pthread_cond_signal(&pool->done);
        pthread_mutex_unlock(&pool->lock);
    }
}

bw_status bw_pool_create(unsigned threads, bw_pool **out, bw_error *err)
{
    if (threads < 1 || threads > BW_POOL_THREADS_MAX)
        return bw_fail(err, BW_INVALID_ARGUMENT, "%u threads: a pool has 1..%d", threads, BW_POOL_THREADS_MAX);
    bw_pool *pool = calloc(1, sizeof *pool + threads * sizeof pool->workers[0]);
    if (!pool)
        return bw_fail(err, BW_NO_MEMORY, "no memory for a pool of %u threads", threads);
    pool->threads = threads;
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
    pool->quit = 1;
    atomic_fetch_add(&pool->generation, 1);
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

void bw_pool_run(bw_pool *pool, size_t items, bw_pool_fn fn, void *context)
{
    if (pool->threads == 1 || items <= 1) {
        for (size_t i = 0; i < items; i++)
            fn(context, i, 0);
        return;
    }
    pthread_mutex_lock(&pool->lock);
    pool->fn = fn;
    pool->context = context;
    pool->items = items;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    pool->open = 1;
    atomic_fetch_add(&pool->generation, 1);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);

    take_items(pool, fn, context, items, 0);

    /* Workers that have not woken up yet are not waited for: they find the job closed. */
    pthread_mutex_lock(&pool->lock);
    pool->open = 0;
    while (pool->inside)
        pthread_cond_wait(&pool->done, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
}
