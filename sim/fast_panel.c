/* SPDX-License-Identifier: Apache-2.0 */
/* Panels of CONV: how the input under an item's pixels is made ready for the kernels. */
#include "sim/fast_conv.h"

/* Shape of a region: blocks of a row of it, and rows for so many rows of outputs. */
static size_t region_row(const bw_plan *plan)
{
    const bw_instruction *ins = plan->ins;
    const size_t width = (size_t)(ins->out0.width - 1) * ins->stride_x + (size_t)(ins->kernel_x - 1) * ins->dilation_x;
    return (width + 1) * plan->group_blocks;
}

static size_t region_height(const bw_plan *plan, size_t rows)
{
    const bw_instruction *ins = plan->ins;
    return (rows - 1) * ins->stride_y + (size_t)(ins->kernel_y - 1) * ins->dilation_y + 1;
}

/* Scales of a pixel's own row. */
static size_t row_scales(const bw_plan *plan)
{
    return bw_round_up(plan->part, 16) + 16;
}

typedef struct place {
    size_t image, y, x;
} place;

static place place_of(const bw_plan *plan, size_t pixel)
{
    const size_t width = plan->ins->out0.width, all = width * plan->ins->out0.height;
    place p = {pixel / all, pixel % all / width, pixel % width};
    return p;
}

static void next_place(const bw_plan *plan, place *p)
{
    if (++p->x == plan->ins->out0.width) {
        p->x = 0;
        if (++p->y == plan->ins->out0.height) {
            p->y = 0;
            p->image++;
        }
    }
}

/* Packs count blocks from unit u of an input pixel on (y, x: any; outside the input: zeros) and moves past them. */
static void pack_blocks(const bw_fast *engine, const bw_plan *plan, size_t image, int64_t y, int64_t x, size_t u,
                        size_t count, bw_pack_args *args)
{
    const bw_tensor *in = &plan->ins->in;
    args->count = count;
    args->codes = NULL;
    if (y >= 0 && y < in->height && x >= 0 && x < in->width) {
        args->codes = bw_view_codes(&plan->in, image, (size_t)y, (size_t)x, u);
        args->exps = bw_view_exps(&plan->in, image, (size_t)y, (size_t)x, u);
    }
    if (plan->dot == BW_DOT_S8)
        engine->dots->pack8(args);
    else if (plan->dot == BW_DOT_S16 && plan->in.format.kind == BW_KIND_INT16)
        bw_pack_words(args);
    else if (plan->dot == BW_DOT_S16)
        engine->dots->pack16(args);
    else
        engine->dots->wide->pack(plan->dot, plan->in.format.traits, args);
    args->out = (uint8_t *)args->out + count * args->block * bw_code_bytes(plan->dot);
    args->scale += count;
}

static bw_pack_args panel_start(const bw_fast *engine, const bw_plan *plan, uint8_t *codes, int32_t *scale)
{
    const bw_format_traits *in = plan->in.format.traits;
    bw_pack_args args = {.block = plan->ins->in.block, .out = codes, .scale = scale};
    args.values = in->kind == BW_KIND_TABLE ? engine->tables->values16[in->format] : NULL;
    if (plan->dot == BW_DOT_S8) {
        args.offset = plan->is_signed ? 128 : 0;
        args.scale_bias = engine->bytes->scale_bias;
    }
    return args;
}

static void pack_region(const bw_fast *engine, const bw_plan *plan, size_t cg, const bw_area *a, uint8_t *codes,
                        int32_t *scale)
{
    const bw_instruction *ins = plan->ins;
    const place at = place_of(plan, a->first);
    const size_t kb = plan->group_blocks;
    const int64_t y0 = (int64_t)at.y * ins->stride_y + ins->origin_y;
    const int64_t height = (int64_t)region_height(plan, a->lines), width = (int64_t)(region_row(plan) / kb);
    const int64_t x0 = ins->origin_x, x1 = x0 + width, in_width = ins->in.width;
    /* Columns x0 .. left are outside the input, left .. right inside, the rest outside. */
    const int64_t left = x0 >= 0 ? x0 : x1 < 0 ? x1 : 0, right = x1 < in_width ? x1 : in_width;
    bw_pack_args args = panel_start(engine, plan, codes, scale);
    for (int64_t y = y0; y < y0 + height; y++) {
        if (y < 0 || y >= ins->in.height || right <= left) {
            pack_blocks(engine, plan, at.image, -1, 0, 0, (size_t)width * kb, &args);
            continue;
        }
        if (left > x0)
            pack_blocks(engine, plan, at.image, -1, 0, 0, (size_t)(left - x0) * kb, &args);
        if (ins->groups == 1 && ins->in.pixel_stride == kb) {
            pack_blocks(engine, plan, at.image, y, left, 0, (size_t)(right - left) * kb, &args);
        } else {
            for (int64_t x = left; x < right; x++)
                pack_blocks(engine, plan, at.image, y, x, cg * kb, kb, &args);
        }
        if (x1 > right)
            pack_blocks(engine, plan, at.image, -1, 0, 0, (size_t)(x1 - right) * kb, &args);
    }
}

/* Taps from kx on that are alike: all outside the input, or inside and one run of memory. */
static size_t equal_taps(const bw_plan *plan, int64_t y, int64_t x, size_t kx)
{
    const bw_instruction *ins = plan->ins;
    const size_t left = ins->kernel_x - kx;
    const int64_t width = ins->in.width, dilation = ins->dilation_x;
    if (y < 0 || y >= ins->in.height || x >= width)
        return left;
    size_t n = 1;
    if (x < 0)
        n = (size_t)((-x + dilation - 1) / dilation);
    else if (plan->taps_adjoin)
        n = (size_t)(width - x);
    return bw_smaller(n, left);
}

/* Packs blocks k0 .. k0 + count of the reduction for one pixel. */
static void pack_pixel(const bw_fast *engine, const bw_plan *plan, size_t cg, place at, size_t k0, size_t count,
                       bw_pack_args args)
{
    const bw_instruction *ins = plan->ins;
    const size_t kb = plan->group_blocks, tap = k0 / kb;
    const int64_t y0 = (int64_t)at.y * ins->stride_y + ins->origin_y;
    const int64_t x0 = (int64_t)at.x * ins->stride_x + ins->origin_x;
    size_t first = k0 % kb, ky = tap / ins->kernel_x, kx = tap % ins->kernel_x;
    while (count) {
        const int64_t y = y0 + (int64_t)ky * ins->dilation_y, x = x0 + (int64_t)kx * ins->dilation_x;
        const size_t taps = equal_taps(plan, y, x, kx), n = bw_smaller(taps * kb - first, count);
        pack_blocks(engine, plan, at.image, y, x, cg * kb + first, n, &args);
        count -= n;
        first = 0;
        kx += taps;
        if (kx == ins->kernel_x) {
            kx = 0;
            ky++;
        }
    }
}

static void pack_rows(const bw_fast *engine, const bw_plan *plan, size_t cg, const bw_area *a, size_t k0, size_t count,
                      uint8_t *codes, int32_t *scale)
{
    bw_pack_args args = panel_start(engine, plan, codes, scale);
    place at = place_of(plan, a->first);
    for (size_t p = 0; p < a->line; p++, next_place(plan, &at)) {
        args.out = codes + p * bw_panel_row_bytes(plan, plan->part);
        args.scale = scale + p * row_scales(plan);
        pack_pixel(engine, plan, cg, at, k0, count, args);
    }
}

/* Takes the input's codes as they are, and packs the exponents of their blocks. */
static bw_panel use_in_place(const bw_fast *engine, const bw_plan *plan, size_t cg, const bw_area *a, int32_t *scale)
{
    const bw_instruction *ins = plan->ins;
    const place at = place_of(plan, a->first);
    const size_t kb = plan->group_blocks, step = (size_t)ins->stride_x * ins->in.pixel_stride;
    const size_t line = (size_t)ins->stride_y * ins->in.row_stride;
    const size_t y = at.y * ins->stride_y + (size_t)ins->origin_y, x = at.x * ins->stride_x + (size_t)ins->origin_x;
    const int8_t *exps = bw_view_exps(&plan->in, at.image, y, x, cg * kb);
    const int bias = engine->bytes->scale_bias;
    for (size_t l = 0; l < a->lines; l++, exps += line) {
        int32_t *to = scale + l * a->line * kb;
        if (step == kb) {
            engine->dots->scales8(exps, a->line * kb, bias, to);
            continue;
        }
        for (size_t p = 0; p < a->line; p++)
            engine->dots->scales8(exps + p * step, kb, bias, to + p * kb);
    }
    return (bw_panel){bw_view_codes(&plan->in, at.image, y, x, cg * kb),
                      scale,
                      step * ins->in.block,
                      kb,
                      line * ins->in.block,
                      a->line * kb};
}

/* --- what fast_conv.c sees -----------------------------------------------------------------------------------------
 */

int bw_panel_in_place(const bw_plan *plan)
{
    const bw_instruction *ins = plan->ins;
    return plan->dot == BW_DOT_S8 && !plan->is_signed && plan->in.format.kind == BW_KIND_INT && ins->kernel_x == 1 &&
           ins->kernel_y == 1 && ins->origin_x >= 0 && ins->origin_y >= 0 &&
           (uint64_t)(ins->out0.width - 1) * ins->stride_x + (uint64_t)ins->origin_x < ins->in.width &&
           (uint64_t)(ins->out0.height - 1) * ins->stride_y + (uint64_t)ins->origin_y < ins->in.height;
}

size_t bw_panel_region_blocks(const bw_plan *plan, size_t rows)
{
    return region_row(plan) * region_height(plan, rows);
}

size_t bw_panel_row_bytes(const bw_plan *plan, size_t blocks)
{
    return bw_round_up(blocks * plan->ins->in.block * bw_code_bytes(plan->dot), 64) + 64;
}

void bw_panel_size(const bw_plan *plan, size_t *codes, size_t *scales)
{
    switch (plan->panel) {
    case BW_PANEL_IN_PLACE:
        *codes = 0;
        *scales = plan->most_pixels * plan->group_blocks;
        break;
    case BW_PANEL_REGION:
        *scales = bw_panel_region_blocks(plan, plan->item_rows);
        *codes = *scales * plan->ins->in.block * bw_code_bytes(plan->dot);
        break;
    default:
        *codes = plan->most_pixels * bw_panel_row_bytes(plan, plan->part);
        *scales = plan->most_pixels * row_scales(plan);
    }
}

bw_panel bw_panel_pack(const bw_fast *engine, const bw_plan *plan, size_t cg, const bw_area *area, size_t k0,
                       size_t count, uint8_t *codes, int32_t *scale)
{
    const bw_instruction *ins = plan->ins;
    if (plan->panel == BW_PANEL_IN_PLACE)
        return use_in_place(engine, plan, cg, area, scale);
    if (plan->panel == BW_PANEL_ROWS) {
        pack_rows(engine, plan, cg, area, k0, count, codes, scale);
        return (bw_panel){codes, scale, bw_panel_row_bytes(plan, plan->part), row_scales(plan), 0, 0};
    }
    const size_t step = (size_t)ins->stride_x * plan->group_blocks, line = region_row(plan) * ins->stride_y;
    const size_t bytes = ins->in.block * bw_code_bytes(plan->dot);
    pack_region(engine, plan, cg, area, codes, scale);
    return (bw_panel){codes, scale, step * bytes, step, line * bytes, line};
}

size_t bw_panel_runs(const bw_plan *plan, size_t k, size_t count, bw_dot_run *runs)
{
    const bw_instruction *ins = plan->ins;
    if (plan->panel != BW_PANEL_REGION) {
        runs[0] = (bw_dot_run){(uint32_t)k, (uint32_t)count};
        return 1;
    }
    const size_t kb = plan->group_blocks, row = region_row(plan) * ins->dilation_y;
    /* Taps that follow each other in the region are one stretch. */
    const size_t stretch = ins->dilation_x == 1 ? ins->kernel_x * kb : kb;
    const size_t stretches = ins->kernel_x * kb / stretch;
    size_t n = 0;
    while (count) {
        const size_t i = k / stretch, in = k % stretch, blocks = bw_smaller(stretch - in, count);
        runs[n].at = (uint32_t)(i / stretches * row + i % stretches * ins->dilation_x * kb + in);
        runs[n++].blocks = (uint32_t)blocks;
        k += blocks;
        count -= blocks;
    }
    return n;
}
