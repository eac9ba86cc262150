/* SPDX-License-Identifier: Apache-2.0 */
/* Inside CONV on the fast engine: what its plan and its sums (fast_conv.c) and its panels (fast_panel.c) share. */
#ifndef BW_SIM_FAST_CONV_H
#define BW_SIM_FAST_CONV_H

#include "sim/fast.h"

static inline size_t bw_divide_up(size_t a, size_t b)
{
    return (a + b - 1) / b;
}

static inline size_t bw_smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Of a code in a panel. */
static inline size_t bw_code_bytes(bw_dot_class c)
{
    return c == BW_DOT_S8 ? 1 : c == BW_DOT_S16 ? 2 : 8;
}

/* Pixels of an item: lines of neighbours whose windows are a fixed step apart. */
typedef struct bw_area {
    size_t first;       /* number in the batch */
    size_t lines, line; /* pixels of a line */
} bw_area;

/* The input under some pixels, as bw_panel_kind says. */
typedef struct bw_panel {
    const uint8_t *codes; /* window of the first pixel */
    const int32_t *scale;
    size_t code_step, scale_step;   /* bytes, and entries, from one pixel to the next */
    size_t line_codes, line_scales; /* from one line to the next */
} bw_panel;

/* Whether the input can be used in place. */
int bw_panel_in_place(const bw_plan *plan);
/* Blocks of a region for so many rows of outputs. */
size_t bw_panel_region_blocks(const bw_plan *plan, size_t rows);
/* Bytes from one pixel's own row to the next, if it holds `blocks`: not a power of two, so that rows lie in different
 * cache sets. */
size_t bw_panel_row_bytes(const bw_plan *plan, size_t blocks);
/* What a panel as planned takes: bytes of codes, entries of scale. */
void bw_panel_size(const bw_plan *plan, size_t *codes, size_t *scales);
/* Blocks k0 .. k0 + count of the reduction (all of it but for rows of parts) of group cg, for all pixels of the area.
 * codes and scale: memory as bw_panel_size wants it. */
bw_panel bw_panel_pack(const bw_fast *engine, const bw_plan *plan, size_t cg, const bw_area *area, size_t k0,
                       size_t count, uint8_t *codes, int32_t *scale);
/* Where blocks k .. k + count of what the panel has of the reduction lie in a window. Returns how many runs there are,
 * at most count. */
size_t bw_panel_runs(const bw_plan *plan, size_t k, size_t count, bw_dot_run *runs);

#endif
