/* SPDX-License-Identifier: Apache-2.0 */
/* Memory planning: activation tensors share one arena; those alive at the same time never overlap. Largest first, each
 * at the lowest offset that fits; ties by order, so that the plan is the same everywhere. */
#include <stdlib.h>
#include <string.h>

#include "quantize/lower.h"

#define ALIGN 64u

struct item {
    bw_span *span;
    int index;
};

static int by_size(const void *a, const void *b)
{
    const struct item *x = a, *y = b;
    if (x->span->size != y->span->size)
        return x->span->size < y->span->size ? 1 : -1;
    return x->index - y->index;
}

static int by_offset(const void *a, const void *b)
{
    const struct item *x = a, *y = b;
    if (x->span->offset != y->span->offset)
        return x->span->offset < y->span->offset ? -1 : 1;
    return x->index - y->index;
}

bw_status bw_plan_memory(bw_span *spans, int count, uint64_t *total, bw_error *err)
{
    *total = 0;
    struct item *order = malloc(((size_t)count + 1) * sizeof *order);
    struct item *live = malloc(((size_t)count + 1) * sizeof *live);
    if (!order || !live) {
        free(order);
        free(live);
        return bw_fail(err, BW_NO_MEMORY, "out of memory while placing %d tensors", count);
    }
    for (int i = 0; i < count; i++)
        order[i] = (struct item){&spans[i], i};
    qsort(order, (size_t)count, sizeof *order, by_size);
    for (int i = 0; i < count; i++) {
        bw_span *s = order[i].span;
        int lives = 0;
        for (int j = 0; j < i; j++)
            if (order[j].span->first <= s->last && s->first <= order[j].span->last)
                live[lives++] = order[j];
        qsort(live, (size_t)lives, sizeof *live, by_offset);
        uint64_t at = 0;
        for (int j = 0; j < lives && live[j].span->offset < at + s->size; j++) {
            uint64_t end = (live[j].span->offset + live[j].span->size + ALIGN - 1) / ALIGN * ALIGN;
            at = end > at ? end : at;
        }
        s->offset = at;
        uint64_t end = (at + s->size + ALIGN - 1) / ALIGN * ALIGN;
        *total = end > *total ? end : *total;
    }
    free(order);
    free(live);
    return BW_OK;
}
