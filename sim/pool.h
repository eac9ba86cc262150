/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A persistent pool of threads that share out the items of one job at a time.
 *
 * Thread safety: one job at a time per pool; bw_pool_run is not to be called by two threads at once.
 */
#ifndef BW_SIM_POOL_H
#define BW_SIM_POOL_H

#include <stddef.h>

#include "kernels/status.h"

#define BW_POOL_THREADS_MAX 64

typedef struct bw_pool bw_pool;

/* Called once for each item 0..items-1, in any order; `thread` is 0..threads-1, and no two calls with one thread
 * number overlap, so that it can index scratch memory. */
typedef void (*bw_pool_fn)(void *context, size_t item, unsigned thread);

/* threads 1..BW_POOL_THREADS_MAX, the caller of bw_pool_run included. BW_NO_MEMORY, BW_EXHAUSTED (no more threads). */
bw_status bw_pool_create(unsigned threads, bw_pool **pool, bw_error *err);
void bw_pool_destroy(bw_pool *pool); /* NULL is allowed */
unsigned bw_pool_threads(const bw_pool *pool);

/* Runs a job and returns when every item is done. */
void bw_pool_run(bw_pool *pool, size_t items, bw_pool_fn fn, void *context);

#endif
