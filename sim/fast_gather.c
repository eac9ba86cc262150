/* SPDX-License-Identifier: Apache-2.0 */
/* The channel map of a COPY as the ISA's kernel wants it (bw_gather in sim/fast.h). */
#include <stdlib.h>

#include "sim/fast.h"

#define GATHERS 64u /* parts of 32 or 64 channels, of the output and the input; more are slow either way */

/* Bits 0 .. n - 1. */
static uint32_t bits_below(size_t n)
{
    return n >= 32 ? UINT32_MAX : (UINT32_C(1) << n) - 1;
}

/* Neighbours of `count` <= 32 channels of y, whose map this is. parts: NULL to count them only. */
static uint32_t gather_neighbours(const int32_t *map, size_t count, bw_gather_part *parts)
{
    uint32_t n = 0;
    for (size_t i = 0; i < count; i++) {
        if (map[i] < 0)
            continue;
        const int goes_on = i > 0 && map[i - 1] >= 0 && map[i] == map[i - 1] + 1;
        n += !goes_on;
        if (!parts)
            continue;
        if (!goes_on)
            parts[n - 1] = (bw_gather_part){.from = map[i] - (int32_t)i, .neighbours = 1};
        parts[n - 1].lanes |= UINT32_C(1) << i;
    }
    return n;
}

/* The same by 64s of x, which has `channels`. */
static uint32_t gather_others(const int32_t *map, size_t count, size_t channels, bw_gather_part *parts)
{
    uint32_t n = 0;
    for (size_t from = 0; from < channels; from += 64) {
        bw_gather_part part = {.from = (int32_t)from, .there[0] = bits_below(channels - from)};
        part.there[1] = channels - from > 32 ? bits_below(channels - from - 32) : 0;
        for (size_t i = 0; i < count; i++) {
            if (map[i] < 0 || (size_t)map[i] / 64 != from / 64)
                continue;
            part.index[i] = (uint16_t)(map[i] % 64);
            part.lanes |= UINT32_C(1) << i;
        }
        if (part.lanes && parts)
            parts[n] = part;
        n += part.lanes != 0;
    }
    return n;
}

void bw_gather_plan(const bw_fast *engine, bw_plan *plan)
{
    enum { DEAR = 2 }; /* a part of others takes as long as so many of neighbours */
    const bw_instruction *ins = plan->ins;
    const int32_t *map = (const int32_t *)(const void *)plan->weights;
    const size_t n = ins->out0.channels, channels = ins->in.channels, outs = (n + 31) / 32,
                 ins64 = (channels + 63) / 64;
    if (!engine->rows->gather || ins->opcode != BW_OP_COPY || !(ins->flags & BW_FLAG_CHANNEL_MAP) ||
        plan->in.format.kind != BW_KIND_VECTOR || outs > GATHERS || ins64 > GATHERS)
        return;
    const size_t bytes = bw_round_up((outs + 1) * sizeof(uint32_t), 64);
    plan->own = aligned_alloc(64, bytes + bw_round_up(outs * ins64 * DEAR * sizeof(bw_gather_part), 64));
    if (!plan->own)
        return;
    uint32_t *first = (uint32_t *)(void *)plan->own;
    bw_gather_part *parts = (bw_gather_part *)(void *)(plan->own + bytes);
    uint32_t made = 0;
    for (size_t o = 0; o < outs; o++) {
        const int32_t *some = map + o * 32;
        const size_t count = n - o * 32 < 32 ? n - o * 32 : 32;
        first[o] = made;
        if (gather_neighbours(some, count, NULL) <= DEAR * gather_others(some, count, channels, NULL))
            made += gather_neighbours(some, count, parts + made);
        else
            made += gather_others(some, count, channels, parts + made);
    }
    first[outs] = made;
    plan->gather_first = first;
    plan->gather_parts = parts;
}
