/* SPDX-License-Identifier: Apache-2.0 */
/* Everything but CONV on the fast engine: one fp32 row of channels per output pixel, through the row kernels. */
#include <string.h>

#include "sim/fast.h"

#define TAPS 64 /* depthwise taps per kernel call */

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

static void depthwise(const job *j, size_t image, size_t oy, size_t ox, float *row)
{
    const bw_plan *plan = j->plan;
    const bw_instruction *ins = plan->ins;
    const size_t n = ins->in.channels, padded = bw_round_up(n, 16);
    if (plan->bias)
        memcpy(row, plan->bias, padded * sizeof *row);
    else
        memset(row, 0, padded * sizeof *row);
    const window w = window_at(ins, oy, ox);
    const uint16_t *x[TAPS], *k[TAPS];
    size_t taps = 0;
    for (int64_t ky = w.ky0; ky < w.ky1; ky++)
        for (int64_t kx = w.kx0; kx < w.kx1; kx++) {
            x[taps] = (const uint16_t *)(const void *)bw_view_codes(
                &plan->in, image, (size_t)(w.y + ky * ins->dilation_y), (size_t)(w.x + kx * ins->dilation_x), 0);
            k[taps] = (const uint16_t *)(const void *)plan->weights + (size_t)(ky * ins->kernel_x + kx) * padded;
            if (++taps == TAPS) {
                j->engine->rows->depthwise(ins->in.format, ins->weight_format, taps, x, k, n, row);
                taps = 0;
            }
        }
    if (taps)
        j->engine->rows->depthwise(ins->in.format, ins->weight_format, taps, x, k, n, row);
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

static void run_item(void *context, size_t item, unsigned thread)
{
    const job *j = context;
    const bw_plan *plan = j->plan;
    const bw_instruction *ins = plan->ins;
    const size_t width = ins->out0.width, area = width * ins->out0.height, n = ins->out0.channels;
    float *row = (float *)(void *)bw_fast_scratch(j->engine, thread);
    float *spare = row + plan->scratch / (2 * sizeof *row);
    const size_t end = j->pixels * (item + 1) / j->items;
    for (size_t pixel = j->pixels * item / j->items; pixel < end; pixel++) {
        const size_t image = pixel / area, y = pixel % area / width, x = pixel % width;
        switch (ins->opcode) {
        case BW_OP_DWCONV:
            depthwise(j, image, y, x, row);
            break;
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
    /* Two rows; kernels may write up to a vector past the last channel. */
    plan->scratch = 2 * (bw_round_up(n, BW_ROW_ALIGN) + BW_ROW_ALIGN) * sizeof(float);
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
