/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CONV with a short reduction on the fast engine, for ISAs that have a kernel for it: the sums of some pixels and
 * outputs stay in registers from the bias to the encoded result, where fast_conv.c goes through memory in between.
 * Layers with few channels spend most of their time there. What depends on the weights alone is worked out once, at
 * load.
 *
 * An item is some rows of the output. The input under it is packed once: for 1x1 windows the pixels that they read,
 * else all rows and columns that windows share.
 *
 * The matrix kernel does the same with reductions of almost any length. It wants more neighbours at a time; where rows
 * are no multiple of them, each pixel gets a window of its own (im2col).
 */
#include <stdlib.h>
#include <string.h>

#include "sim/fast_conv.h"

#define LEAST_PIXELS  7u           /* of a kernel call */
#define ITEM_PIXELS   256u         /* most of an item, unless a row is longer */
#define PANEL_BYTES   (48u << 10)  /* most packed codes of an item, unless those of a row take more */
#define MATRIX_BYTES  (192u << 10) /* the same for the matrix kernel, which had rather read weights once */
#define MOST_BLOCKS   80u          /* of 16, of a reduction; see most_blocks */
#define FEW_PIXELS    64u          /* that wait for weights */
#define WIDE          28u          /* rows that use weights often before the next row needs them again */
#define MOST_OWN      (512u << 10) /* bytes that a layer's plan keeps */
#define MATRIX_OWN    (4u << 20)   /* the same for the matrix kernel, which gains more */
#define MOST_APART    (512u << 10) /* packed codes of an item whose pixels have windows of their own */
#define MATRIX_WORK   (3u << 20)   /* multiply-adds that are worth waking tile units, which takes 10 to 20 us */
#define MOST_TAPS     MOST_BLOCKS  /* of a window that is not a pixel's own */
#define APART_GAP     64u         /* bytes between two such windows: a cache line, so that they lie in different sets */
#define CACHED        (24u << 10) /* weights and their sums that stay in the first cache */
#define SCALE_BIAS    127         /* the kernel multiplies by 2^ea as a float */
#define SERIAL_CYCLES 12000u      /* less work than this is not worth a second thread */

/* Columns of the input that a row of output pixels reads; all in between too if windows have more than one. */
static size_t panel_width(const bw_instruction *ins)
{
    if (ins->kernel_x == 1)
        return ins->out0.width;
    return (size_t)(ins->out0.width - 1) * ins->stride_x + (size_t)(ins->kernel_x - 1) * ins->dilation_x + 1;
}

static size_t panel_height(const bw_instruction *ins, size_t lines)
{
    return ins->kernel_y == 1 ? lines : (lines - 1) * ins->stride_y + (size_t)(ins->kernel_y - 1) * ins->dilation_y + 1;
}

/* 1x1 windows, or those of pixels that have their own: all lines lie one after the other in the panel. */
static int one_line(const bw_plan *plan)
{
    return plan->adjoin && (plan->apart || (plan->ins->kernel_x == 1 && plan->ins->kernel_y == 1));
}

/* Pixels of a kernel call, at least. */
static size_t least_pixels(const bw_plan *plan)
{
    return plan->matrix ? BW_MATRIX_PIXELS : LEAST_PIXELS;
}

/* The codes can be multiplied where they lie: one line whose pixels are those of the input. */
static int in_place(const bw_plan *plan)
{
    const bw_instruction *ins = plan->ins;
    return (plan->matrix || !plan->is_signed) && one_line(plan) && plan->adjoin_in && ins->stride_x == 1 &&
           ins->stride_y == 1 && ins->origin_x == 0 && ins->origin_y == 0 && ins->in.width == ins->out0.width &&
           ins->out0.height <= ins->in.height;
}

static int formats_fit(const bw_plan *plan)
{
    const bw_format_traits *a = plan->in.format.traits, *w = plan->weight_format.traits;
    if (a->kind != BW_KIND_INT || w->kind != BW_KIND_INT || a->device_bytes != 1)
        return 0;
    int half = 0, block = 0, single = 0;
    for (int i = 0; i < 2; i++) {
        const bw_row_format *f = &plan->out[i].format;
        if (!plan->out[i].tensor)
            continue;
        single += f->kind == BW_KIND_FLOAT;
        half += f->traits->format == BW_FORMAT_FP16;
        block += f->kind == BW_KIND_INT && !f->traits->sub_block;
    }
    return half <= 1 && block <= 1 && single <= 1 && half + block + single == 1 + (plan->out[1].tensor != NULL);
}

/* Length of the output's blocks; if it has none, as suits the input. */
static size_t out_block(const bw_plan *plan)
{
    const bw_instruction *ins = plan->ins;
    for (int i = 0; i < 2; i++)
        if (plan->out[i].tensor && plan->out[i].format.block > 1)
            return plan->out[i].format.block;
    return ins->in.block == 16 ? 16 : ins->out0.channels / ins->groups % 64 ? 32 : 64;
}

/* A group's channels begin where a block of the outputs and the residual does. */
static int groups_fit(const bw_plan *plan)
{
    const size_t channels = plan->ins->out0.channels / plan->ins->groups;
    const bw_view *views[] = {&plan->in2, &plan->out[0], &plan->out[1]};
    for (int i = 0; i < 3; i++)
        if (plan->ins->groups > 1 && views[i]->tensor && channels % views[i]->format.block)
            return 0;
    return 1;
}

/* From one pixel's own window to the next. */
static size_t window_bytes(const bw_plan *plan)
{
    return bw_round_up(bw_conv_blocks(plan->ins) * plan->ins->in.block + APART_GAP, 64);
}

/* Lines of an item: as many as the panel has room for. */
static size_t most_lines(const bw_plan *plan)
{
    const bw_instruction *ins = plan->ins;
    const size_t width = ins->out0.width, row = panel_width(ins) * plan->in.units * ins->in.block;
    size_t lines = ITEM_PIXELS / width;
    if (plan->apart)
        lines = bw_smaller(lines, MOST_APART / (width * window_bytes(plan)));
    else if (!plan->matrix || !in_place(plan))
        while (lines > 1 && panel_height(ins, lines) * row > (plan->matrix ? MATRIX_BYTES : PANEL_BYTES))
            lines--;
    return lines < 1 ? 1 : lines > ins->out0.height ? ins->out0.height : lines;
}

/* Sums, and unpacked weights. */
static size_t sum_bytes(const bw_plan *plan)
{
    return plan->matrix
               ? 0
               : bw_conv_tiles(plan->ins) * bw_conv_blocks(plan->ins) * bw_dot_sums(plan->is_signed) * sizeof(int32_t);
}

static size_t unpacked_bytes(const bw_plan *plan)
{
    const bw_instruction *ins = plan->ins;
    return plan->weight_format.traits->code_bits == 8 ? 0
                                                      : bw_conv_tiles(ins) * bw_conv_blocks(ins) * 16 * ins->in.block;
}

/* Longer reductions are better off in chunks (fast_conv.c), the sooner the fewer pixels meet the weights of a pass
 * while these are in the first cache. */
static size_t most_blocks(const bw_fast *engine, const bw_plan *plan)
{
    const bw_instruction *ins = plan->ins;
    const size_t width = ins->out0.width, channels = ins->out0.channels / ins->groups;
    if (engine->pipes == 4)
        return 12; /* their balance is kept by the kernels there */
    if (ins->kernel_y * ins->kernel_x > 1 ? width >= WIDE || channels <= 32 : ins->in.block == 16)
        return MOST_BLOCKS;
    if (ins->in.block == 16)
        return 40;
    return width * ins->out0.height <= FEW_PIXELS ? 64 : 32;
}

/* What the kernels want of the outputs and of memory. */
static int ends_fit(const bw_plan *plan)
{
    if (!plan->matrix && out_block(plan) >= 64 && plan->ins->out0.channels / plan->ins->groups % 64)
        return 0; /* what they make at a time */
    return groups_fit(plan) && sum_bytes(plan) + unpacked_bytes(plan) <= (plan->matrix ? MATRIX_OWN : MOST_OWN);
}

/* Lines are cut into even parts: if not all of them are one, half of an item, or a line, must be enough for a kernel.
 */
static int line_fits(const bw_plan *plan)
{
    const size_t lines = most_lines(plan);
    return (lines == plan->ins->out0.height || lines == 1 ? lines : lines / 2) * plan->ins->out0.width >=
           least_pixels(plan);
}

static int shape_fits(const bw_fast *engine, const bw_plan *plan)
{
    const bw_instruction *ins = plan->ins;
    const size_t width = ins->out0.width, made = out_block(plan);
    if (bw_conv_blocks(ins) * (ins->in.block / 16) > most_blocks(engine, plan) || !ends_fit(plan))
        return 0;
    if (one_line(plan))
        return line_fits(plan);
    /* Pixels that are done twice at the end of each row must be few. */
    const size_t sevens = bw_divide_up(width, 7) * 7, eights = bw_divide_up(width, 8) * 8;
    const size_t done = made == 16 && ins->in.block == 16 ? bw_smaller(sevens, eights) : sevens;
    return width >= LEAST_PIXELS && done * 8 <= width * 9;
}

/* Whether the matrix kernel takes it, and if so how its pixels lie in the panel. */
static void choose_matrix(const bw_fast *engine, bw_plan *plan)
{
    const bw_instruction *ins = plan->ins;
    const size_t width = ins->out0.width, fourteens = bw_divide_up(width, 14) * 14,
                 sixteens = bw_divide_up(width, 16) * 16;
    if (!engine->rows->matrix || ins->in.block < 32 || out_block(plan) < 32 || bw_conv_blocks(ins) > BW_MATRIX_BLOCKS)
        return;
    const uint64_t work =
        (uint64_t)width * ins->out0.height * bw_conv_tiles(ins) * 16 * bw_conv_blocks(ins) * ins->in.block;
    if (work < (engine->least_matrix ? engine->least_matrix : MATRIX_WORK))
        return;
    plan->matrix = 1;
    if (ends_fit(plan)) {
        if (one_line(plan)) {
            if (line_fits(plan))
                return;
        } else if ((size_t)ins->kernel_y * ins->kernel_x <= MOST_TAPS && width >= BW_MATRIX_PIXELS &&
                   bw_smaller(fourteens, sixteens) * 8 <= width * 9) {
            return;
        } else if (ins->groups == 1 && plan->adjoin && window_bytes(plan) * width <= MOST_APART) {
            plan->apart = 1;
            if (line_fits(plan))
                return;
        }
    }
    plan->matrix = plan->apart = 0;
}

/* Of a panel: blocks, and bytes of their codes. */
static size_t panel_blocks(const bw_plan *plan, size_t lines)
{
    const bw_instruction *ins = plan->ins;
    if (plan->apart)
        return lines * ins->out0.width * bw_conv_blocks(ins);
    return panel_height(ins, lines) * panel_width(ins) * plan->in.units;
}

/* What the matrix kernel keeps for the lines of an item, at most. */
static size_t value_bytes(const bw_plan *plan)
{
    const size_t lines = plan->item_rows, width = plan->ins->out0.width;
    if (!plan->matrix)
        return 0;
    return sizeof(float) * (one_line(plan) ? BW_MATRIX_VALUES(lines * width) : lines * BW_MATRIX_VALUES(width));
}

static size_t panel_bytes(const bw_plan *plan, size_t lines)
{
    const bw_instruction *ins = plan->ins;
    const size_t codes =
        plan->apart ? lines * ins->out0.width * window_bytes(plan) : panel_blocks(plan, lines) * ins->in.block;
    return bw_round_up(codes + BW_PANEL_SLACK, 64);
}

int bw_direct_plan(const bw_fast *engine, bw_plan *plan)
{
    const bw_instruction *ins = plan->ins;
    if (!engine->rows->direct || !engine->bytes || !formats_fit(plan))
        return 0;
    choose_matrix(engine, plan);
    if (!plan->matrix && !shape_fits(engine, plan))
        return 0;
    const size_t tiles = bw_conv_tiles(ins), blocks = bw_conv_blocks(ins), codes = tiles * blocks * 16 * ins->in.block;
    const size_t sums = sum_bytes(plan), unpacked = unpacked_bytes(plan);
    if (sums + unpacked) {
        plan->own = aligned_alloc(64, bw_round_up(sums + unpacked, 64));
        if (!plan->own) {
            plan->matrix = plan->apart = 0;
            return 0; /* the other way does without */
        }
    }
    plan->direct = 1;
    plan->direct_sums = (int32_t *)(void *)plan->own;
    plan->direct_weights = (const int8_t *)plan->weights;
    if (unpacked) {
        engine->dots->unpack(plan->weight_format.traits, plan->weights, codes, plan->own + sums);
        plan->direct_weights = (const int8_t *)plan->own + sums;
    }
    if (sums)
        engine->bytes->sum(plan->direct_weights, plan->weight_exps, tiles * blocks, ins->in.block,
                           bw_plan_fill(plan, 0), plan->is_signed, plan->direct_sums);
    plan->group_channels = ins->out0.channels / ins->groups;
    plan->item_rows = most_lines(plan);
    const size_t panel = panel_blocks(plan, plan->item_rows);
    plan->scratch = value_bytes(plan) + panel_bytes(plan, plan->item_rows) + panel * sizeof(int32_t) + BW_PANEL_SLACK;
    return 1;
}

void bw_direct_join(bw_plan *plan, bw_plan *patch)
{
    const bw_instruction *ins = plan->ins;
    if (ins->kernel_y != 1 || ins->kernel_x != 1 || ins->stride_y != 1 || ins->stride_x != 1 || ins->origin_y != 0 ||
        ins->origin_x != 0 || ins->out0.height != ins->in.height || ins->out0.width != ins->in.width ||
        memcmp(&ins->in, &patch->ins->out0, sizeof ins->in) != 0)
        return;
    plan->patch = patch;
    plan->scratch += panel_blocks(plan, plan->item_rows); /* their exponents */
    patch->with_next = 1;
}

/* --- run ------------------------------------------------------------------------------------------------------------
 */

typedef struct job {
    bw_fast *engine;
    const bw_plan *plan;
    size_t parts;  /* items of an image, of about as many lines each; */
    size_t ranges; /* of those, of about as many channels each */
} job;

/* Where packing has got to. */
typedef struct panel {
    uint8_t *codes; /* NULL: they stay where they are */
    int32_t *scale;
} panel;

/* Blocks of the input, or of zeros (NULL). */
static void pack(const job *j, panel *to, const uint8_t *codes, const int8_t *exps, size_t blocks)
{
    const bw_dot_kernels *dots = j->engine->dots;
    bw_pack_args args = {.codes = codes,
                         .exps = exps,
                         .count = blocks,
                         .block = j->plan->ins->in.block,
                         .offset = j->plan->is_signed && !j->plan->matrix ? 128 : 0,
                         .scale_bias = SCALE_BIAS,
                         .out = to->codes,
                         .scale = to->scale};
    if (!blocks)
        return;
    if (to->codes) {
        dots->pack8(&args);
        to->codes += blocks * args.block;
    } else {
        dots->scales8(exps, blocks, SCALE_BIAS, to->scale);
    }
    to->scale += blocks;
}

/* A row of the panel: `width` columns from input position (y, x) on, `step` apart. */
static void pack_row(const job *j, panel *to, size_t image, int64_t y, int64_t x, int64_t step, size_t width)
{
    const bw_plan *plan = j->plan;
    const bw_instruction *ins = plan->ins;
    const size_t kb = plan->in.units;
    /* Columns first .. end lie inside. */
    int64_t first = x >= 0 ? 0 : (-x + step - 1) / step,
            end = x >= ins->in.width ? 0 : (ins->in.width - x + step - 1) / step;
    end = end > (int64_t)width ? (int64_t)width : end;
    if (y < 0 || y >= ins->in.height || first >= end) {
        pack(j, to, NULL, NULL, width * kb);
        return;
    }
    pack(j, to, NULL, NULL, (size_t)first * kb);
    const uint8_t *codes = bw_view_codes(&plan->in, image, (size_t)y, (size_t)(x + first * step), 0);
    const int8_t *exps = bw_view_exps(&plan->in, image, (size_t)y, (size_t)(x + first * step), 0);
    if (step == 1 && ins->in.pixel_stride == kb) {
        pack(j, to, codes, exps, (size_t)(end - first) * kb);
    } else {
        const size_t units = (size_t)step * ins->in.pixel_stride;
        for (int64_t i = first; i < end; i++, codes += units * ins->in.block, exps += units)
            pack(j, to, codes, exps, kb);
    }
    pack(j, to, NULL, NULL, (width - (size_t)end) * kb);
}

static void pack_panel(const job *j, size_t image, size_t line, size_t lines, panel to)
{
    const bw_instruction *ins = j->plan->ins;
    const size_t width = panel_width(ins), height = panel_height(ins, lines);
    const int64_t step_x = ins->kernel_x == 1 ? ins->stride_x : 1, step_y = ins->kernel_y == 1 ? ins->stride_y : 1;
    const int64_t y = (int64_t)line * ins->stride_y + ins->origin_y;
    for (size_t i = 0; i < height; i++)
        pack_row(j, &to, image, y + (int64_t)i * step_y, ins->origin_x, step_x, width);
}

static void pack_apart(const job *j, size_t image, size_t line, size_t lines, panel to)
{
    const bw_instruction *ins = j->plan->ins;
    const size_t step = window_bytes(j->plan);
    uint8_t *codes = to.codes;
    for (size_t i = 0; i < lines; i++)
        for (size_t k = 0; k < ins->out0.width; k++, codes += step) {
            const int64_t y = (int64_t)(line + i) * ins->stride_y + ins->origin_y;
            to.codes = codes;
            for (size_t ky = 0; ky < ins->kernel_y; ky++)
                pack_row(j, &to, image, y + (int64_t)(ky * ins->dilation_y), (int64_t)k * ins->stride_x + ins->origin_x,
                         ins->dilation_x, ins->kernel_x);
        }
}

/* The window of a pixel in the panel. */
static size_t find_runs(const bw_plan *plan, bw_dot_run *runs)
{
    const bw_instruction *ins = plan->ins;
    if (plan->apart) {
        runs[0] = (bw_dot_run){0, (uint32_t)plan->reduction};
        return 1;
    }
    const size_t kb = plan->in.units, row = panel_width(ins) * kb * ins->dilation_y;
    const int adjoin = ins->kernel_x == 1 || (ins->dilation_x == 1 && ins->groups == 1);
    size_t n = 0;
    for (size_t ky = 0; ky < ins->kernel_y; ky++)
        for (size_t kx = 0; kx < ins->kernel_x; kx += adjoin ? ins->kernel_x : 1u) {
            runs[n].at = (uint32_t)(ky * row + kx * ins->dilation_x * kb);
            runs[n++].blocks = (uint32_t)(adjoin ? ins->kernel_x * plan->group_blocks : plan->group_blocks);
        }
    return n;
}

/* Channels of the output that stay together: blocks, and what kernels make at a time. */
static size_t range_unit(const bw_plan *plan)
{
    return out_block(plan) < 32 ? 32 : out_block(plan);
}

static void run_item(void *context, size_t item, unsigned thread)
{
    const job *j = context;
    const bw_plan *plan = j->plan;
    const bw_instruction *ins = plan->ins;
    const size_t range = item % j->ranges, place = item / j->ranges;
    const size_t image = place / j->parts, part = place % j->parts, height = ins->out0.height;
    const size_t line = height * part / j->parts, lines = height * (part + 1) / j->parts - line;
    const size_t width = ins->out0.width, kb = plan->in.units, block = ins->in.block;
    uint8_t *values = bw_fast_scratch(j->engine, thread);
    panel at = {.codes = values + value_bytes(plan)};
    at.scale = (int32_t *)(void *)(at.codes + panel_bytes(plan, plan->item_rows));
    const int lies = !plan->patch && in_place(plan);
    if (plan->patch) {
        int8_t *exps = (int8_t *)(at.scale + panel_blocks(plan, plan->item_rows)) + BW_PANEL_SLACK;
        bw_vector_patch(j->engine, plan->patch, image, line, lines, at.codes, exps);
        /* Their codes are packed already, unless they want an offset. */
        const int offset = plan->is_signed && !plan->matrix;
        pack(j, &(panel){offset ? at.codes : NULL, at.scale}, at.codes, exps, panel_blocks(plan, lines));
    } else if (plan->apart) {
        pack_apart(j, image, line, lines, at);
    } else {
        pack_panel(j, image, line, lines, (panel){lies ? NULL : at.codes, at.scale});
    }

    bw_dot_run runs[MOST_TAPS];
    const size_t step = ins->kernel_x == 1 ? 1 : ins->stride_x;
    bw_direct g = {.block = block,
                   .out_block = out_block(plan),
                   .blocks = plan->reduction,
                   .fill = bw_plan_fill(plan, 0),
                   .runs = runs,
                   .run_count = find_runs(plan, runs)};
    g.code_step = lies          ? plan->in.unit_bytes * ins->in.pixel_stride
                  : plan->apart ? window_bytes(plan)
                                : step * kb * block;
    g.scale_step = plan->apart ? plan->reduction : step * kb;
    g.is_signed = plan->is_signed;
    g.activation = &plan->activation;
    /* Lines of a call: those that are one, or that the kernel can take at once. */
    const int merged = one_line(plan), together = merged || (plan->matrix && plan->adjoin);
    g.pixels = together ? lines * width : width;
    g.line = merged ? g.pixels : width;
    g.overlap = ins->kernel_y > 1 || ins->kernel_x > 1;
    g.values = (float *)(void *)values;
    /* All weights for some pixels, or some weights for all of them. */
    const size_t tiles = bw_conv_tiles(ins) / ins->groups,
                 sums = plan->matrix ? 0 : plan->reduction * bw_dot_sums(plan->is_signed);
    g.all_at_once = tiles * (plan->reduction * 16 * block + sums * sizeof(int32_t)) > CACHED;
    const size_t down = panel_width(ins) * kb * (ins->kernel_y == 1 ? 1 : ins->stride_y);
    const size_t count = together ? 1 : lines;
    g.line_codes = down * block;
    g.line_scales = down;
    const size_t units = plan->group_channels / range_unit(plan);
    const size_t first = units * range / j->ranges * range_unit(plan);
    g.n = (range + 1 == j->ranges ? plan->group_channels : units * (range + 1) / j->ranges * range_unit(plan)) - first;
    for (size_t n = 0; n < count * ins->groups; n++) {
        const size_t i = n % count, group = n / count, c0 = group * plan->group_channels + first;
        const size_t unit = group * plan->group_blocks, tile = group * tiles + first / 16;
        g.codes = lies ? bw_view_codes(&plan->in, image, line, 0, unit) : at.codes + (i * down + unit) * block;
        g.scale = at.scale + i * down + unit;
        g.weights = plan->direct_weights + tile * plan->reduction * 16 * block;
        g.sums = sums ? plan->direct_sums + tile * sums : NULL;
        g.weight_exps = plan->weight_exps + tile * plan->reduction * 16;
        g.bias = plan->bias ? plan->bias + tile * 16 : NULL;
        g.b = bw_fast_side(&plan->in2, image, line + i, 0, c0);
        g.out[0] = bw_fast_side(&plan->out[0], image, line + i, 0, c0);
        g.out[1] = bw_fast_side(&plan->out[1], image, line + i, 0, c0);
        (plan->matrix ? j->engine->rows->matrix : j->engine->rows->direct)(&g);
    }
}

/* Pixels whose threads had rather divide the weights than read all of them each. */
static size_t few_pixels(const bw_plan *plan)
{
    return plan->matrix && plan->ins->kernel_y * plan->ins->kernel_x > 1 ? ITEM_PIXELS : FEW_PIXELS;
}

void bw_direct_run(bw_fast *engine, const bw_plan *plan, uint32_t batch)
{
    const bw_tensor *out = &plan->ins->out0;
    const size_t threads = bw_pool_threads(engine->pool), width = out->width;
    job j = {.engine = engine, .plan = plan, .ranges = 1};
    j.parts = bw_divide_up(out->height, plan->item_rows);
    const size_t cycles = (size_t)batch * out->height * width * bw_conv_tiles(plan->ins) * (3 * plan->reduction + 8);
    if (threads > 1 && cycles >= SERIAL_CYCLES && batch == 1 && plan->ins->groups == 1 &&
        out->height * width <= few_pixels(plan) && plan->group_channels >= threads * range_unit(plan)) {
        /* Each thread reads its part of the weights alone. */
        j.ranges = threads;
    } else if (threads > 1 && cycles >= SERIAL_CYCLES) {
        /* As many for each thread, and still as many pixels to each as a kernel takes. */
        const size_t least = one_line(plan) ? bw_divide_up(least_pixels(plan), width) : 1, most = out->height / least;
        size_t wanted = bw_divide_up(threads * 2, batch);
        if (batch == 1)
            wanted = bw_divide_up(j.parts < wanted ? wanted : j.parts, threads) * threads;
        if (wanted > j.parts && most > j.parts)
            j.parts = bw_smaller(wanted, most);
    }
    bw_pool_run(engine->pool, batch * j.parts * j.ranges, run_item, &j);
}
