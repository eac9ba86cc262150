/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A few threads for the loops of big tensors. Work is cut by outputs, never within a sum, so the result does not depend
 * on their number (BW_CPU_THREADS, else OMP_NUM_THREADS, else the CPUs that the process may use; at most 64).
 *
 * Thread safety: any thread may call; one loop at a time gets the helpers, others run alone meanwhile.
 */
#ifndef BW_HOST_OPS_PARALLEL_H
#define BW_HOST_OPS_PARALLEL_H

#include <stdint.h>

/* Calls fn on disjoint ranges that cover 0..count, none smaller than `grain` except the last; returns when all are
 * done. fn must not call bw_parallel. */
void bw_parallel(int64_t count, int64_t grain, void (*fn)(int64_t from, int64_t to, void *user), void *user);

#endif
