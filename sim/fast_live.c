/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether anybody reads what an instruction has written: values that only the next instruction reads need no place in
 * memory. Byte by byte, since tensors of other shapes and slices share memory.
 */
#include <stdlib.h>
#include <string.h>

#include "sim/fast.h"

/* Instructions that are looked through for one tensor, so that no program takes long to plan. */
#define LOOK_AHEAD 512u
/* A program may claim tensors of any size, which planning must not fill; larger ones are written. */
#define MOST_BYTES (64u << 20)

/* What some bytes of region ACT still hold: 1 a part of the tensor. */
typedef struct held {
    uint64_t from, to;
    uint8_t *bytes; /* from .. to */
} held;

/* Calls `visit` with each run of bytes of a tensor's codes or exponents that lies in from .. to, until it returns 0. */
static int each_run(const bw_tensor *t, uint64_t at, uint64_t unit_bytes, const held *h,
                    int (*visit)(const held *h, uint64_t from, uint64_t to))
{
    const uint64_t run = bw_tensor_units(t) * unit_bytes, pixel = t->pixel_stride * unit_bytes;
    const uint64_t row = t->row_stride * unit_bytes, last = row * (t->height - 1) + pixel * (t->width - 1) + run;
    if (at >= h->to || at + last <= h->from)
        return 1;
    for (uint64_t y = 0; y < t->height; y++)
        for (uint64_t x = 0; x < t->width; x++) {
            uint64_t from = at + y * row + x * pixel, to = from + run;
            from = from < h->from ? h->from : from;
            to = to > h->to ? h->to : to;
            if (from < to && !visit(h, from, to))
                return 0;
        }
    return 1;
}

static int each_byte(const bw_tensor *t, const held *h, int (*visit)(const held *h, uint64_t from, uint64_t to))
{
    if (t->region != BW_REGION_ACT)
        return 1;
    const uint64_t unit = (uint64_t)t->block * bw_format_get((bw_format)t->format)->device_bytes;
    return each_run(t, t->codes, unit, h, visit) && (t->block == 1 || each_run(t, t->exps, 1, h, visit));
}

static int hold(const held *h, uint64_t from, uint64_t to)
{
    memset(h->bytes + (from - h->from), 1, to - from);
    return 1;
}

static int release(const held *h, uint64_t from, uint64_t to)
{
    memset(h->bytes + (from - h->from), 0, to - from);
    return 1;
}

static int is_free(const held *h, uint64_t from, uint64_t to)
{
    return !memchr(h->bytes + (from - h->from), 1, to - from);
}

static void widen(held *h, const bw_tensor *t, uint64_t at, uint64_t unit_bytes)
{
    const uint64_t last = (uint64_t)t->row_stride * (t->height - 1) + (uint64_t)t->pixel_stride * (t->width - 1);
    const uint64_t end = at + (last + bw_tensor_units(t)) * unit_bytes;
    h->from = at < h->from ? at : h->from;
    h->to = end > h->to ? end : h->to;
}

int bw_fast_is_read_later(const bw_program *program, uint32_t reader, const bw_tensor *t)
{
    const bw_instruction *list = program->instructions;
    held h = {.from = UINT64_MAX};
    widen(&h, t, t->codes, (uint64_t)t->block * bw_format_get((bw_format)t->format)->device_bytes);
    if (t->block > 1)
        widen(&h, t, t->exps, 1);
    h.bytes = h.to - h.from > MOST_BYTES ? NULL : calloc(h.to - h.from, 1);
    if (!h.bytes)
        return 1; /* so it will be written */
    each_byte(t, &h, hold);
    const uint32_t count = program->header->instruction_count;
    int read = !each_byte(&list[reader].in2, &h, is_free), done = 0;
    for (uint32_t i = reader; !read && !done && i < count; i++) {
        read = i - reader > LOOK_AHEAD ||
               (i > reader && (!each_byte(&list[i].in, &h, is_free) || !each_byte(&list[i].in2, &h, is_free)));
        each_byte(&list[i].out0, &h, release);
        each_byte(&list[i].out1, &h, release);
        done = is_free(&h, h.from, h.to);
    }
    free(h.bytes);
    return read;
}
