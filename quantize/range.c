/* SPDX-License-Identifier: Apache-2.0 */
#include "quantize/range.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

#include "host/ops/parallel.h"

/* SSE2's width, which every x86-64 has; several at once: minima in one register would each wait for the one before. */
#define LANES 4
#define ROWS  4
#if defined __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 4")
#endif
typedef float lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));
typedef int32_t words __attribute__((vector_size(LANES * sizeof(int32_t)), aligned(4), may_alias));

static inline lanes choose(words mask, lanes yes, lanes no) /* C has no ?: over vectors */
{
    return (lanes)((mask & (words)yes) | (~mask & (words)no));
}

struct work {
    const float *x;
    pthread_mutex_t lock;
    bw_range all; /* under the lock */
};

static bw_range join(bw_range a, bw_range b)
{
    a.min = b.min < a.min ? b.min : a.min;
    a.max = b.max > a.max ? b.max : a.max;
    a.finite &= b.finite;
    return a;
}

static void part(int64_t from, int64_t to, void *user)
{
    struct work *w = user;
    const float *x = w->x;
    bw_range r = {INFINITY, -INFINITY, 1};
    words odd = {0};
    lanes lo[ROWS], hi[ROWS];
    for (int k = 0; k < ROWS; k++) {
        lo[k] = (lanes){INFINITY, INFINITY, INFINITY, INFINITY};
        hi[k] = -lo[k];
    }
    int64_t i = from;
    for (; i + LANES * ROWS <= to; i += LANES * ROWS) {
        UNROLL
        for (int k = 0; k < ROWS; k++) {
            lanes v = *(const lanes *)(const void *)(x + i + LANES * k);
            lo[k] = choose((words)(v < lo[k]), v, lo[k]);
            hi[k] = choose((words)(v > hi[k]), v, hi[k]);
            odd |= ((words)v & 0x7f800000) == 0x7f800000; /* the exponent of NaN and infinity */
        }
    }
    for (int k = 0; k < LANES * ROWS; k++)
        r = join(r, (bw_range){lo[k / LANES][k % LANES], hi[k / LANES][k % LANES], !odd[k % LANES]});
    for (; i < to; i++)
        r = join(r, (bw_range){x[i], x[i], isfinite(x[i]) != 0});
    pthread_mutex_lock(&w->lock);
    w->all = join(w->all, r);
    pthread_mutex_unlock(&w->lock);
}

bw_range bw_range_of(const float *x, int64_t count)
{
    struct work w = {.x = x, .lock = PTHREAD_MUTEX_INITIALIZER, .all = {INFINITY, -INFINITY, 1}};
    bw_parallel(count, 65536, part, &w);
    w.all.min += 0.0f; /* which of two zeros came first is nobody's business */
    w.all.max += 0.0f;
    return w.all;
}
