/* SPDX-License-Identifier: Apache-2.0 */
/* Everything but CONV on the fast engine: one fp32 row of channels per output pixel, through the row kernels. */
#include <string.h>

#include "sim/fast.h"

#define DEPTHWISE_FLOATS 4096u /* of the rows that are accumulated at a time: they stay in the first cache */

void bw_fast_read(const bw_fast *engine, const bw_view *v, size_t image, size_t y, size_t x, size_t c0, size_t n,
                  float *row)
{
    const size_t block = v->format.block, u = c0 / block;
    engine->rows->decode(&v->format, bw_view_codes(v, image, y, x, u), bw_view_exps(v, image, y, x, u),
                         bw_round_up(n, block), row);
}

void bw_fast_finish(const bw_fast *engine, const bw_plan *plan, size_t image, size_t y, size_t x, size_t c0, size_t n,
                    float *row, float *spare)
{
    const bw_rows *rows = engine->rows;
    const unsigned op = plan->ins->opcode;
    if (plan->in2.tensor && (op == BW_OP_CONV || op == BW_OP_DWCONV)) {
        bw_fast_read(engine, &plan->in2, image, y, x, c0, n, spare);
        rows->add(n, row, spare, row);
    }
    rows->activate(&plan->activation, n, row);
    const size_t padded = bw_round_up(n, plan->align);
    for (size_t c = n; c < padded; c++) /* padding channels are zero whatever the activation makes of them */
        row[c] = 0.0f;
    for (unsigned o = 0; o < 2; o++) {
        const bw_view *v = &plan->out[o];
        if (v->tensor) {
            const size_t block = v->format.block, u = c0 / block;
            rows->encode(&v->format, row, bw_round_up(n, block), bw_view_codes(v, image, y, x, u),
                         bw_view_exps(v, image, y, x, u));
        }
    }
}

typedef struct job {
    bw_fast *engine;
    const bw_plan *plan;
    uint32_t batch;
    size_t pixels, items;
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

/* Accumulates `pixels` neighbours in a row whose windows have the taps of `w` inside the input. */
static void depthwise(const job *j, size_t image, const window *w, size_t pixels, float *rows)
{
    const bw_plan *plan = j->plan;
    const bw_instruction *ins = plan->ins;
    const bw_tensor *in = &ins->in;
    const size_t padded = bw_round_up(in->channels, 16);
    const uint16_t *weights = (const uint16_t *)(const void *)plan->weights, *k[BW_DEPTHWISE_TAPS];
    size_t x_at[BW_DEPTHWISE_TAPS];
    bw_depthwise d = {.x_format = (bw_format)in->format, .w_format = (bw_format)ins->weight_format};
    /* Without a tap inside, x is not read, and may be any pixel. */
    const int empty = w->ky0 >= w->ky1 || w->kx0 >= w->kx1;
    const size_t y0 = empty ? 0 : (size_t)(w->y + w->ky0 * ins->dilation_y);
    const size_t x0 = empty ? 0 : (size_t)(w->x + w->kx0 * ins->dilation_x);
    d.x = (const uint16_t *)(const void *)bw_view_codes(&plan->in, image, y0, x0, 0);
    d.step = (size_t)in->pixel_stride * ins->stride_x;
    d.pixels = pixels;
    d.n = in->channels;
    d.x_at = x_at;
    d.w = k;
    d.fresh = 1;
    d.start = plan->bias;
    d.acc = rows;
    d.stride = plan->row;
    for (int64_t ky = w->ky0; ky < w->ky1; ky++)
        for (int64_t kx = w->kx0; kx < w->kx1; kx++) {
            x_at[d.taps] = (size_t)((ky - w->ky0) * ins->dilation_y) * in->row_stride +
                           (size_t)((kx - w->kx0) * ins->dilation_x) * in->pixel_stride;
            k[d.taps] = weights + (size_t)(ky * ins->kernel_x + kx) * padded;
            if (++d.taps == BW_DEPTHWISE_TAPS) {
                j->engine->rows->depthwise(&d);
                d.taps = 0;
                d.fresh = 0;
            }
        }
    if (d.taps || d.fresh)
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

static void pool(const job *j, size_t image, size_t oy, size_t ox, float *row, float *spare)
{
    const bw_plan *plan = j->plan;
    const bw_instruction *ins = plan->ins;
    const bw_rows *rows = j->engine->rows;
    const size_t n = ins->in.channels;
    const window w = window_at(ins, oy, ox);
    const int average = ins->opcode == BW_OP_AVGPOOL;
    memset(row, 0, bw_round_up(n, 16) * sizeof *row);
    for (int64_t ky = w.ky0; ky < w.ky1; ky++)
        for (int64_t kx = w.kx0; kx < w.kx1; kx++) {
            const int first = !average && ky == w.ky0 && kx == w.kx0;
            bw_fast_read(j->engine, &plan->in, image, (size_t)(w.y + ky * ins->dilation_y),
                         (size_t)(w.x + kx * ins->dilation_x), 0, n, first ? row : spare);
            if (average)
                rows->add(n, row, spare, row);
            else if (!first)
                rows->max(n, spare, row);
        }
    if (average) {
        const float *recip = (const float *)(const void *)plan->weights;
        size_t count = ins->flags & BW_FLAG_COUNT_PAD ? (size_t)ins->kernel_y * ins->kernel_x
                                                      : (size_t)((w.ky1 - w.ky0) * (w.kx1 - w.kx0));
        rows->scale(n, recip[count], row);
    }
}

static void copy(const job *j, size_t image, size_t oy, size_t ox, float *row, float *spare)
{
    const bw_plan *plan = j->plan;
    const size_t n = plan->ins->out0.channels;
    if (!(plan->ins->flags & BW_FLAG_CHANNEL_MAP)) {
        bw_fast_read(j->engine, &plan->in, image, oy, ox, 0, n, row);
        return;
    }
    const int32_t *map = (const int32_t *)(const void *)plan->weights;
    bw_fast_read(j->engine, &plan->in, image, oy, ox, 0, plan->ins->in.channels, spare);
    for (size_t c = 0; c < n; c++)
        row[c] = map[c] < 0 ? 0.0f : spare[map[c]];
}

static void patch(const job *j, size_t image, size_t oy, size_t ox, float *row)
{
    const bw_plan *plan = j->plan;
    const bw_instruction *ins = plan->ins;
    const size_t n = ins->in.channels;
    const window w = window_at(ins, oy, ox);
    for (int64_t ky = 0; ky < ins->kernel_y; ky++)
        for (int64_t kx = 0; kx < ins->kernel_x; kx++, row += n) {
            if (ky >= w.ky0 && ky < w.ky1 && kx >= w.kx0 && kx < w.kx1)
                bw_fast_read(j->engine, &plan->in, image, (size_t)(w.y + ky * ins->dilation_y),
                             (size_t)(w.x + kx * ins->dilation_x), 0, n, row);
            else
                memset(row, 0, n * sizeof *row);
        }
}

static void run_depthwise(const job *j, size_t first, size_t end, float *rows)
{
    const bw_plan *plan = j->plan;
    const size_t width = plan->ins->out0.width, area = width * plan->ins->out0.height;
    size_t n;
    for (size_t pixel = first; pixel < end; pixel += n) {
        const size_t image = pixel / area, y = pixel % area / width, x = pixel % width;
        const window w = window_at(plan->ins, y, x);
        n = equal_windows(plan, x);
        n = n < plan->rows ? n : plan->rows;
        n = n < end - pixel ? n : end - pixel;
        depthwise(j, image, &w, n, rows);
        for (size_t p = 0; p < n; p++)
            bw_fast_finish(j->engine, plan, image, y, x + p, 0, plan->ins->out0.channels, rows + p * plan->row,
                           rows + plan->rows * plan->row);
    }
}

static void run_item(void *context, size_t item, unsigned thread)
{
    const job *j = context;
    const bw_plan *plan = j->plan;
    const bw_instruction *ins = plan->ins;
    const size_t width = ins->out0.width, area = width * ins->out0.height, n = ins->out0.channels;
    float *row = (float *)(void *)bw_fast_scratch(j->engine, thread);
    float *spare = row + plan->row;
    const size_t first = j->pixels * item / j->items, end = j->pixels * (item + 1) / j->items;
    if (ins->opcode == BW_OP_DWCONV) {
        run_depthwise(j, first, end, row);
        return;
    }
    for (size_t pixel = first; pixel < end; pixel++) {
        const size_t image = pixel / area, y = pixel % area / width, x = pixel % width;
        switch (ins->opcode) {
        case BW_OP_MAXPOOL:
        case BW_OP_AVGPOOL:
            pool(j, image, y, x, row, spare);
            break;
        case BW_OP_ADD:
        case BW_OP_MUL:
            bw_fast_read(j->engine, &plan->in, image, y, x, 0, n, row);
            bw_fast_read(j->engine, &plan->in2, image, y, x, 0, n, spare);
            (ins->opcode == BW_OP_ADD ? j->engine->rows->add : j->engine->rows->mul)(n, row, spare, row);
            break;
        case BW_OP_COPY:
            copy(j, image, y, x, row, spare);
            break;
        default:
            patch(j, image, y, x, row);
        }
        bw_fast_finish(j->engine, plan, image, y, x, 0, n, row, spare);
    }
}

void bw_vector_plan(bw_plan *plan)
{
    size_t n = plan->ins->in.channels;
    if (n < plan->ins->out0.channels)
        n = plan->ins->out0.channels;
    /* Kernels may write up to a vector past the last channel; the odd vector keeps rows in different cache sets. */
    plan->row = bw_round_up(n, BW_ROW_ALIGN) + 16;
    plan->rows = 1;
    if (plan->ins->opcode == BW_OP_DWCONV)
        plan->rows = plan->row > DEPTHWISE_FLOATS ? 1 : DEPTHWISE_FLOATS / plan->row;
    plan->scratch = (plan->rows + 1) * plan->row * sizeof(float);
}

void bw_vector_run(bw_fast *engine, const bw_plan *plan, uint32_t batch)
{
    const bw_tensor *out = &plan->ins->out0;
    const size_t threads = bw_pool_threads(engine->pool);
    job j = {.engine = engine, .plan = plan, .batch = batch};
    j.pixels = (size_t)batch * out->height * out->width;
    /* Waking a thread costs more than some thousand elements. */
    j.items = threads == 1 || j.pixels * out->channels < 8192 ? 1 : threads * 8;
    if (j.items > j.pixels)
        j.items = j.pixels;
    bw_pool_run(engine->pool, j.items, run_item, &j);
}
