/* SPDX-License-Identifier: Apache-2.0 */
/* Everything but CONV on the fast engine: one fp32 row of channels per output pixel, through the row kernels. */
#include <stdlib.h>
#include <string.h>

#include "sim/fast.h"

#define SPAN        128u  /* channels of a DWCONV at a time, where that divides them */
#define ROWS_FLOATS 4096u /* of the rows that are made at a time: they stay in the first cache */

bw_side bw_fast_side(const bw_view *v, size_t image, size_t y, size_t x, size_t c0)
{
    if (!v->tensor)
        return (bw_side){0};
    const size_t u = c0 / v->format.block, step = v->tensor->pixel_stride;
    return (bw_side){&v->format, bw_view_codes(v, image, y, x, u), bw_view_exps(v, image, y, x, u),
                     step * v->unit_bytes, step};
}

static bw_side row_side(const bw_fast *engine, const float *rows, size_t stride)
{
    return (bw_side){&engine->fp32, (uint8_t *)(uintptr_t)rows, NULL, stride * sizeof *rows, 0};
}

/* Output pixels from number `pixel` on that are one run of all tensors, `most` at most. `adjoin`: whether rows are. */
static size_t run_of(const bw_plan *plan, size_t pixel, size_t most, int adjoin)
{
    const size_t width = plan->ins->out0.width, period = adjoin ? width * plan->ins->out0.height : width;
    const size_t left = period - pixel % period;
    return left < most ? left : most;
}

void bw_fast_finish_pixels(const bw_fast *engine, const bw_plan *plan, size_t first, size_t pixels, size_t c0, size_t n,
                           const float *acc, size_t stride)
{
    const size_t width = plan->ins->out0.width, area = width * plan->ins->out0.height;
    const unsigned op = plan->ins->opcode;
    const int residual = op == BW_OP_CONV || op == BW_OP_DWCONV;
    bw_fused f = {.n = n, .activation = &plan->activation};
    for (size_t end = first + pixels; first < end; first += f.pixels, acc += f.pixels * stride) {
        const size_t image = first / area, y = first % area / width, x = first % width;
        f.pixels = run_of(plan, first, end - first, plan->adjoin);
        f.a = row_side(engine, acc, stride);
        if (residual)
            f.b = bw_fast_side(&plan->in2, image, y, x, c0);
        f.out[0] = bw_fast_side(&plan->out[0], image, y, x, c0);
        f.out[1] = bw_fast_side(&plan->out[1], image, y, x, c0);
        engine->rows->fused(&f);
    }
}

/* Decodes all channels of a pixel of the input. */
static void read_pixel(const bw_fast *engine, const bw_plan *plan, size_t image, size_t y, size_t x, float *row)
{
    static const bw_row_activation none = {BW_ACT_NONE, 0, 0};
    const bw_fused f = {.pixels = 1,
                        .n = plan->ins->in.channels,
                        .a = bw_fast_side(&plan->in, image, y, x, 0),
                        .out = {row_side(engine, row, 0)},
                        .activation = &none};
    engine->rows->fused(&f);
}

typedef struct job {
    bw_fast *engine;
    const bw_plan *plan;
    uint32_t batch;
    size_t pixels, items;
    size_t part; /* items are a multiple of so many pixels, but for the last */
} job;

/* The input range of a kernel: taps [first, end) of `taps` lie inside 0 .. size - 1. */
static void clip_taps(int64_t start, int64_t dilation, int64_t taps, int64_t size, int64_t *first, int64_t *end)
{
    *first = start >= 0 ? 0 : (-start + dilation - 1) / dilation;
    *end = start >= size ? 0 : (size - start + dilation - 1) / dilation;
    if (*end > taps)
        *end = taps;
    if (*first > *end)
        *first = *end;
}

typedef struct window {
    int64_t y, x; /* input position of tap (0, 0) */
    int64_t ky0, ky1, kx0, kx1;
} window;

static window window_at(const bw_instruction *ins, size_t oy, size_t ox)
{
    window w = {(int64_t)oy * ins->stride_y + ins->origin_y, (int64_t)ox * ins->stride_x + ins->origin_x, 0, 0, 0, 0};
    clip_taps(w.y, ins->dilation_y, ins->kernel_y, ins->in.height, &w.ky0, &w.ky1);
    clip_taps(w.x, ins->dilation_x, ins->kernel_x, ins->in.width, &w.kx0, &w.kx1);
    return w;
}

/* Channels c0 .. c0 + n of `pixels` neighbours in a row of the output, from (oy, ox) on. rows: NULL if the kernel
 * writes them. */
static void depthwise(const job *j, size_t image, size_t oy, size_t ox, size_t pixels, size_t c0, size_t n, float *rows)
{
    const bw_plan *plan = j->plan;
    const bw_instruction *ins = plan->ins;
    const bw_tensor *in = &ins->in;
    const window w = window_at(ins, oy, ox);
    bw_depthwise d = {.x_format = (bw_format)in->format};
    d.rows = (size_t)(w.ky1 - w.ky0);
    d.columns = ins->kernel_x;
    /* Without a tap inside, x is not read, and may be any row. */
    const size_t y0 = d.rows ? (size_t)(w.y + w.ky0 * ins->dilation_y) : 0;
    d.x = (const uint16_t *)(const void *)bw_view_codes(&plan->in, image, y0, 0, c0);
    d.x_row = (size_t)ins->dilation_y * in->row_stride;
    d.x_pixel = in->pixel_stride;
    d.left = w.x;
    d.width = in->width;
    d.stride = ins->stride_x;
    d.dilation = ins->dilation_x;
    d.w_tap = bw_round_up(in->channels, 16);
    d.w = plan->taps + (size_t)w.ky0 * d.columns * d.w_tap + c0;
    d.bias = plan->bias ? plan->bias + c0 : NULL;
    d.pixels = pixels;
    d.n = n;
    d.acc = rows;
    d.acc_stride = plan->row;
    d.out = bw_fast_side(&plan->out[0], image, oy, ox, c0);
    d.activation = &plan->activation;
    if (plan->flat) /* one row as long as is wanted */
        d.width = d.left + (int64_t)pixels;
    j->engine->rows->depthwise(&d);
}

/* How many output pixels from ox on have windows that are alike: all their columns inside the input. */
static size_t equal_windows(const bw_plan *plan, size_t ox)
{
    const bw_instruction *ins = plan->ins;
    const int64_t x = (int64_t)ox * ins->stride_x + ins->origin_x;
    const int64_t room = (int64_t)ins->in.width - 1 - (int64_t)(ins->kernel_x - 1) * ins->dilation_x - x;
    if (x < 0 || room < 0)
        return 1;
    const size_t n = (size_t)(room / ins->stride_x) + 1, left = ins->out0.width - ox;
    return n < left ? n : left;
}

/* Channels c0 .. c0 + n of `pixels` neighbours in a row whose windows have the taps of `w` inside the input. */
static void pool(const job *j, size_t image, const window *w, size_t pixels, size_t c0, size_t n, float *rows)
{
    const bw_plan *plan = j->plan;
    const bw_instruction *ins = plan->ins;
    const bw_tensor *in = &ins->in;
    const size_t down = (size_t)ins->dilation_y * in->row_stride, across = (size_t)ins->dilation_x * in->pixel_stride;
    bw_window k = {.rows = (size_t)(w->ky1 - w->ky0),
                   .columns = (size_t)(w->kx1 - w->kx0),
                   .pixels = pixels,
                   .n = n,
                   .code_row = down * plan->in.unit_bytes,
                   .code_column = across * plan->in.unit_bytes,
                   .exp_row = down,
                   .exp_column = across,
                   .average = ins->opcode == BW_OP_AVGPOOL,
                   .y = rows,
                   .stride = plan->row};
    k.x = bw_fast_side(&plan->in, image, (size_t)(w->y + w->ky0 * ins->dilation_y),
                       (size_t)(w->x + w->kx0 * ins->dilation_x), c0);
    k.x.code_step *= ins->stride_x;
    k.x.exp_step *= ins->stride_x;
    if (k.average) {
        const float *recip = (const float *)(const void *)plan->weights;
        k.factor = recip[ins->flags & BW_FLAG_COUNT_PAD ? (size_t)ins->kernel_y * ins->kernel_x : k.rows * k.columns];
    }
    j->engine->rows->window(&k);
}

/* The same for MAXPOOL and any neighbours whose columns overlap: the maxima of the input's columns first, then those of
 * neighbouring columns. There is no NaN and no -0, so the order does not matter. */
static void pool_columns(const job *j, size_t image, size_t oy, size_t ox, size_t pixels, size_t c0, size_t n,
                         float *rows)
{
    const bw_plan *plan = j->plan;
    const bw_instruction *ins = plan->ins;
    const window first = window_at(ins, oy, ox), last = window_at(ins, oy, ox + pixels - 1);
    const int64_t x0 = first.x + first.kx0, x1 = last.x + last.kx1; /* dilation 1 */
    float *columns = rows + plan->rows * plan->row;
    bw_window k = {.rows = (size_t)(first.ky1 - first.ky0),
                   .columns = 1,
                   .pixels = (size_t)(x1 - x0),
                   .n = n,
                   .y = columns,
                   .stride = plan->row};
    k.x = bw_fast_side(&plan->in, image, (size_t)(first.y + first.ky0 * ins->dilation_y), (size_t)x0, c0);
    k.exp_row = (size_t)ins->dilation_y * ins->in.row_stride;
    k.code_row = k.exp_row * plan->in.unit_bytes;
    j->engine->rows->window(&k);

    const size_t bytes = plan->row * sizeof(float);
    for (size_t p = 0; p < pixels; p += k.pixels) {
        const window w = window_at(ins, oy, ox + p);
        k = (bw_window){.rows = 1, .columns = (size_t)(w.kx1 - w.kx0), .n = n, .code_column = bytes};
        k.x = row_side(j->engine, columns + (size_t)(w.x + w.kx0 - x0) * plan->row, plan->row * ins->stride_x);
        k.y = rows + p * plan->row;
        k.stride = plan->row;
        k.pixels = equal_windows(plan, ox + p);
        k.pixels = k.pixels < pixels - p ? k.pixels : pixels - p;
        j->engine->rows->window(&k);
    }
}

/* spare[-1] is zero. */
static void copy_mapped(const job *j, size_t image, size_t oy, size_t ox, float *row, float *spare)
{
    const size_t n = j->plan->ins->out0.channels;
    const int32_t *map = (const int32_t *)(const void *)j->plan->weights;
    read_pixel(j->engine, j->plan, image, oy, ox, spare);
    for (size_t c = 0; c < n; c++)
        row[c] = spare[map[c]];
}

/* memcpy for some tens of floats. */
static void copy_floats(float *to, const float *from, size_t n)
{
    enum { STEP = 8 };
    if (n < STEP) {
        for (size_t i = 0; i < n; i++)
            to[i] = from[i];
        return;
    }
    for (size_t i = 0; i + STEP < n; i += STEP)
        memcpy(to + i, from + i, STEP * sizeof *to);
    memcpy(to + n - STEP, from + n - STEP, STEP * sizeof *to);
}

/* PATCH whose rows in scratch memory follow each other as the output's blocks do, with zeros for padding: the end then
 * takes all channels of all pixels as one run. */
static size_t dense_patch_row(const bw_plan *plan)
{
    const bw_instruction *ins = plan->ins;
    const bw_row_activation *a = &plan->activation;
    const int zero_stays = a->kind != BW_ACT_CLIP || (a->lo <= 0.0f && a->hi >= 0.0f);
    for (int i = 0; i < 2; i++)
        if (plan->out[i].tensor && plan->out[i].format.block != plan->align)
            return 0;
    return ins->opcode == BW_OP_PATCH && zero_stays ? bw_round_up(ins->out0.channels, plan->align) : 0;
}

/* Line ky of the patches of n neighbours from (oy, ox) on; rows: of the first, from where the line goes. */
static void patch_line(const job *j, size_t image, size_t oy, size_t ox, size_t n, int64_t ky, float *rows)
{
    const bw_plan *plan = j->plan;
    const bw_instruction *ins = plan->ins;
    const bw_tensor *in = &ins->in;
    const size_t line = ins->kernel_x * in->channels, bytes = line * sizeof *rows;
    const int64_t y = (int64_t)oy * ins->stride_y + ins->origin_y + ky * ins->dilation_y;
    const int64_t last = (int64_t)(ins->kernel_x - 1) * ins->dilation_x;
    const int adjoin = ins->dilation_x == 1 && in->pixel_stride == in->channels; /* taps of a line, in memory */
    const int inside_y = y >= 0 && y < in->height;
    const float *from = inside_y ? (const float *)(const void *)bw_view_codes(&plan->in, image, (size_t)y, 0, 0) : NULL;
    int64_t x = (int64_t)ox * ins->stride_x + ins->origin_x;
    for (size_t p = 0; p < n; p++, x += ins->stride_x, rows += plan->row) {
        if (inside_y && adjoin && x >= 0 && x + last < in->width) {
            copy_floats(rows, from + (size_t)x * in->channels, line);
            continue;
        }
        memset(rows, 0, bytes);
        int64_t first, end;
        clip_taps(x, ins->dilation_x, ins->kernel_x, in->width, &first, &end);
        for (int64_t kx = first; inside_y && kx < end; kx++)
            copy_floats(rows + (size_t)kx * in->channels, from + (size_t)(x + kx * ins->dilation_x) * in->pixel_stride,
                        in->channels);
    }
}

static void run_patch_rows(const job *j, size_t first, size_t end, float *rows)
{
    const bw_plan *plan = j->plan;
    const bw_instruction *ins = plan->ins;
    const size_t width = ins->out0.width, area = width * ins->out0.height, line = ins->kernel_x * ins->in.channels;
    const size_t dense = dense_patch_row(plan);
    size_t n;
    memset(rows, 0, plan->rows * plan->row * sizeof *rows);
    for (size_t pixel = first; pixel < end; pixel += n) {
        const size_t image = pixel / area, y = pixel % area / width, x = pixel % width;
        n = run_of(plan, pixel, end - pixel < plan->rows ? end - pixel : plan->rows, 0);
        for (size_t ky = 0; ky < ins->kernel_y; ky++)
            patch_line(j, image, y, x, n, (int64_t)ky, rows + ky * line);
        bw_fast_finish_pixels(j->engine, plan, pixel, n, 0, dense ? dense : ins->out0.channels, rows, plan->row);
    }
}

/* PATCH, of inputs whose rows are runs of memory: rows of the output. to: where, and is moved on; NULL: the tensor. */
static void run_patches(const bw_fast *engine, const bw_plan *plan, size_t first, size_t end, bw_side *to)
{
    const bw_instruction *ins = plan->ins;
    const size_t width = ins->out0.width, area = width * ins->out0.height;
    bw_patch g = {.channels = ins->in.channels, .stride = ins->stride_x, .width = ins->in.width};
    g.kernel_y = ins->kernel_y;
    g.kernel_x = ins->kernel_x;
    g.x_row = (size_t)ins->dilation_y * ins->in.row_stride;
    for (size_t pixel = first; pixel < end; pixel += g.pixels) {
        const size_t image = pixel / area, y = pixel % area / width, x = pixel % width;
        const window w = window_at(ins, y, x);
        g.pixels = run_of(plan, pixel, end - pixel, 0);
        g.left = w.x;
        g.first_row = (size_t)w.ky0;
        g.end_row = (size_t)w.ky1;
        /* Relative to the first pixel of the image, which may lie before or behind the window. */
        g.x = (const float *)(const void *)bw_view_codes(&plan->in, image, 0, 0, 0);
        g.x += w.y * (int64_t)ins->in.row_stride + w.x * (int64_t)ins->in.channels;
        g.out = to ? *to : bw_fast_side(&plan->out[0], image, y, x, 0);
        engine->rows->patch(&g);
        if (to) {
            to->codes += g.pixels * to->code_step;
            to->exps += g.pixels * to->exp_step;
        }
    }
}

void bw_vector_patch(const bw_fast *engine, const bw_plan *plan, size_t image, size_t line, size_t lines,
                     uint8_t *codes, int8_t *exps)
{
    const bw_tensor *out = &plan->ins->out0;
    const bw_view *v = &plan->out[0];
    const size_t first = (image * out->height + line) * out->width;
    bw_side to = {&v->format, codes, exps, v->units * v->unit_bytes, v->units};
    run_patches(engine, plan, first, first + lines * out->width, &to);
}

/* ADD, MUL, and COPY without a map: tensor to tensor. */
static void run_through(const job *j, size_t first, size_t end)
{
    const bw_plan *plan = j->plan;
    const size_t width = plan->ins->out0.width, area = width * plan->ins->out0.height;
    bw_fused f = {
        .n = plan->ins->out0.channels, .multiply = plan->ins->opcode == BW_OP_MUL, .activation = &plan->activation};
    for (size_t pixel = first; pixel < end; pixel += f.pixels) {
        const size_t image = pixel / area, y = pixel % area / width, x = pixel % width;
        f.pixels = run_of(plan, pixel, end - pixel, plan->adjoin && plan->adjoin_in);
        f.a = bw_fast_side(&plan->in, image, y, x, 0);
        f.b = bw_fast_side(&plan->in2, image, y, x, 0);
        f.out[0] = bw_fast_side(&plan->out[0], image, y, x, 0);
        f.out[1] = bw_fast_side(&plan->out[1], image, y, x, 0);
        j->engine->rows->fused(&f);
    }
}

/* DWCONV: rows of the output, a part of the channels at a time if they are many. */
static void run_depthwise(const job *j, size_t first, size_t end, float *rows)
{
    const bw_plan *plan = j->plan;
    const size_t width = plan->ins->out0.width, area = width * plan->ins->out0.height;
    const size_t channels = plan->ins->out0.channels;
    size_t n;
    for (size_t pixel = first; pixel < end; pixel += n) {
        const size_t image = pixel / area, y = pixel % area / width, x = pixel % width;
        const size_t most = plan->writes || end - pixel < plan->rows ? end - pixel : plan->rows;
        n = run_of(plan, pixel, most, plan->flat);
        for (size_t c = 0; c < channels; c += plan->span) {
            const size_t span = channels - c < plan->span ? channels - c : plan->span;
            depthwise(j, image, y, x, n, c, span, plan->writes ? NULL : rows);
            if (!plan->writes)
                bw_fast_finish_pixels(j->engine, plan, pixel, n, c, span, rows, plan->row);
        }
    }
}

/* Pools: runs of pixels whose windows are alike, or whose columns are shared. */
static void run_pools(const job *j, size_t first, size_t end, float *rows)
{
    const bw_plan *plan = j->plan;
    const size_t width = plan->ins->out0.width, area = width * plan->ins->out0.height;
    const size_t channels = plan->ins->out0.channels;
    size_t n;
    for (size_t pixel = first; pixel < end; pixel += n) {
        const size_t image = pixel / area, y = pixel % area / width, x = pixel % width;
        const window w = window_at(plan->ins, y, x);
        n = plan->columns ? width - x : equal_windows(plan, x);
        n = n < plan->rows ? n : plan->rows;
        n = n < end - pixel ? n : end - pixel;
        for (size_t c = 0; c < channels; c += plan->span) {
            const size_t span = channels - c < plan->span ? channels - c : plan->span;
            if (plan->columns)
                pool_columns(j, image, y, x, n, c, span, rows);
            else
                pool(j, image, &w, n, c, span, rows);
            bw_fast_finish_pixels(j->engine, plan, pixel, n, c, span, rows, plan->row);
        }
    }
}

/* COPY with a map of 16-bit codes: straight to the output if that has the same, else through rows. */
static void run_gathers(const job *j, size_t first, size_t end, uint16_t *rows)
{
    const bw_plan *plan = j->plan;
    const bw_instruction *ins = plan->ins;
    const size_t width = ins->out0.width, area = width * ins->out0.height;
    const int straight = ins->out0.format == ins->in.format && !plan->out[1].tensor && ins->activation == BW_ACT_NONE;
    bw_gather g = {.x_pixel = ins->in.pixel_stride,
                   .n = ins->out0.channels,
                   .parts = plan->gather_parts,
                   .first = plan->gather_first};
    bw_fused f = {.n = g.n, .activation = &plan->activation};
    for (size_t pixel = first; pixel < end; pixel += g.pixels) {
        const size_t image = pixel / area, y = pixel % area / width, x = pixel % width;
        const size_t most = straight || end - pixel < plan->rows ? end - pixel : plan->rows;
        g.pixels = run_of(plan, pixel, most, plan->adjoin && plan->adjoin_in);
        g.x = (const uint16_t *)(const void *)bw_view_codes(&plan->in, image, y, x, 0);
        f.out[0] = bw_fast_side(&plan->out[0], image, y, x, 0);
        g.y = straight ? (uint16_t *)(void *)f.out[0].codes : rows;
        g.y_pixel = straight ? ins->out0.pixel_stride : plan->row;
        j->engine->rows->gather(&g);
        if (straight)
            continue;
        f.pixels = g.pixels;
        f.a = (bw_side){&plan->in.format, (uint8_t *)rows, NULL, plan->row * sizeof *rows, 0};
        f.out[1] = bw_fast_side(&plan->out[1], image, y, x, 0);
        j->engine->rows->fused(&f);
    }
}

/* COPY with a map: rows of channels, then the rest. */
static void run_mapped(const job *j, size_t first, size_t end, float *rows)
{
    const bw_plan *plan = j->plan;
    const size_t width = plan->ins->out0.width, area = width * plan->ins->out0.height;
    float *spare = rows + plan->rows * plan->row + 16;
    spare[-1] = 0.0f;
    size_t n;
    for (size_t pixel = first; pixel < end; pixel += n) {
        n = end - pixel < plan->rows ? end - pixel : plan->rows;
        for (size_t p = 0; p < n; p++) {
            const size_t at = pixel + p, image = at / area, y = at % area / width, x = at % width;
            copy_mapped(j, image, y, x, rows + p * plan->row, spare);
        }
        bw_fast_finish_pixels(j->engine, plan, pixel, n, 0, plan->ins->out0.channels, rows, plan->row);
    }
}

static void run_item(void *context, size_t item, unsigned thread)
{
    const job *j = context;
    const bw_instruction *ins = j->plan->ins;
    float *rows = (float *)(void *)bw_fast_scratch(j->engine, thread);
    const size_t parts = j->pixels / j->part;
    const size_t first = parts * item / j->items * j->part;
    const size_t end = item + 1 == j->items ? j->pixels : parts * (item + 1) / j->items * j->part;
    if (j->plan->patches)
        run_patches(j->engine, j->plan, first, end, NULL);
    else if (ins->opcode == BW_OP_PATCH)
        run_patch_rows(j, first, end, rows);
    else if (j->plan->gather_parts)
        run_gathers(j, first, end, (uint16_t *)(void *)rows);
    else if (ins->opcode == BW_OP_COPY && ins->flags & BW_FLAG_CHANNEL_MAP)
        run_mapped(j, first, end, rows);
    else if (ins->opcode == BW_OP_ADD || ins->opcode == BW_OP_MUL || ins->opcode == BW_OP_COPY)
        run_through(j, first, end);
    else if (ins->opcode == BW_OP_DWCONV)
        run_depthwise(j, first, end, rows);
    else
        run_pools(j, first, end, rows);
}

/* Whether the ISA's kernel can do this PATCH. */
static int patches(const bw_fast *engine, const bw_plan *plan)
{
    const bw_instruction *ins = plan->ins;
    const size_t line = (size_t)ins->kernel_x * ins->in.channels;
    const size_t pieces = plan->out[0].units * (plan->out[0].format.block / 16); /* of 16 channels */
    return ins->opcode == BW_OP_PATCH && engine->rows->patch && ins->activation == BW_ACT_NONE &&
           ins->dilation_x == 1 && ins->in.pixel_stride == ins->in.channels && !plan->out[1].tensor &&
           plan->out[0].format.kind == BW_KIND_INT && !plan->out[0].format.traits->sub_block &&
           pieces <= BW_PATCH_BLOCKS && pieces * (15 / line + 2) <= BW_PATCH_PIECES;
}

/* Weights as numbers, and what else only a DWCONV has. */
static int plan_depthwise(const bw_fast *engine, bw_plan *plan)
{
    const bw_instruction *ins = plan->ins;
    const size_t count = (size_t)ins->kernel_y * ins->kernel_x * bw_round_up(ins->in.channels, 16);
    float *taps = aligned_alloc(64, bw_round_up(count * sizeof *taps, 64));
    if (!taps)
        return 0;
    for (size_t i = 0; i < count; i++)
        taps[i] = bw_decode_vector(plan->weight_format.traits, ((const uint16_t *)(const void *)plan->weights)[i]);
    plan->own = (uint8_t *)taps;
    plan->taps = taps;
    const bw_row_format *out = &plan->out[0].format;
    plan->flat = ins->kernel_y == 1 && ins->kernel_x == 1 && ins->stride_y == 1 && ins->stride_x == 1 &&
                 ins->origin_y == 0 && ins->origin_x == 0 && ins->in.width == ins->out0.width &&
                 ins->in.height == ins->out0.height && plan->adjoin && plan->adjoin_in;
    plan->writes = engine->rows->depthwise_writes && !plan->in2.tensor && !plan->out[1].tensor &&
                   (out->traits->format == BW_FORMAT_FP16 ||
                    (out->kind == BW_KIND_INT && !out->traits->sub_block && (out->block == 16 || plan->flat)));
    return 1;
}

int bw_vector_plan(const bw_fast *engine, bw_plan *plan)
{
    const bw_instruction *ins = plan->ins;
    bw_gather_plan(engine, plan);
    plan->patches = patches(engine, plan);
    if (ins->opcode == BW_OP_DWCONV && !plan_depthwise(engine, plan))
        return 0;
    const int deep = ins->opcode == BW_OP_DWCONV, max = ins->opcode == BW_OP_MAXPOOL;
    size_t n = ins->in.channels;
    if (n < ins->out0.channels)
        n = ins->out0.channels;
    plan->span = n;
    if (((deep && !plan->flat) || max) && n % SPAN == 0)
        n = plan->span = SPAN;
    else if (max && n % 64 == 0 && plan->align <= 64 && plan->in.format.block <= 64)
        n = plan->span = 64;
    /* Kernels write up to a vector past the last channel; the odd vector keeps rows in different cache sets. */
    plan->row = dense_patch_row(plan) ? dense_patch_row(plan) : bw_round_up(n, 16) + 16;
    plan->rows = plan->row > ROWS_FLOATS ? 1 : ROWS_FLOATS / plan->row;
    if (deep) /* what its kernels take at a time */
        plan->rows = plan->rows < 14 ? 7 : plan->rows - plan->rows % 14;
    if (max && ins->dilation_x == 1 && ins->stride_x < ins->kernel_x) {
        /* rows + columns of the input = twice as many as without */
        const size_t most = 2 * plan->rows, rows = (most + ins->stride_x - ins->kernel_x) / (1 + ins->stride_x);
        if (most > ins->kernel_x && rows >= 4) {
            plan->rows = rows;
            plan->columns = (rows - 1) * ins->stride_x + ins->kernel_x;
        }
    }
    plan->scratch = ((plan->rows + plan->columns + 1) * plan->row + 16) * sizeof(float);
    return 1;
}

void bw_vector_run(bw_fast *engine, const bw_plan *plan, uint32_t batch)
{
    const bw_tensor *out = &plan->ins->out0;
    const size_t threads = bw_pool_threads(engine->pool);
    job j = {.engine = engine, .plan = plan, .batch = batch};
    j.pixels = (size_t)batch * out->height * out->width;
    /* Waking a thread costs more than some thousand elements. */
    j.items = threads == 1 || j.pixels * out->channels < 8192 ? 1 : threads * 8;
    /* Windows along a row share what they read. */
    j.part = (plan->ins->kernel_x > 1 && j.pixels / out->width >= threads) ? out->width : 1;
    if (j.items > j.pixels / j.part)
        j.items = j.pixels / j.part;
    bw_pool_run(engine->pool, j.items, run_item, &j);
}
