/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CONV on the fast engine. Work is cut into items of some output pixels x a range of output channels. An item packs
 * the input blocks of its pixels into panels (im2col of a part of the reduction at a time), goes through the weight
 * tiles of its channels, and finishes each pixel's fp32 row while it is hot. Weights are used where they lie in the
 * constants if they are bytes, else one part of a tile is unpacked at a time, for all pixels of the item.
 */
#include <string.h>

#include "sim/fast.h"

#define ITEM_PIXELS   60   /* most pixels of an item */
#define ITEM_CHANNELS 1024 /* most channels of an item, unless groups force more */
#define ACC_BYTES     (256u << 10)

static int64_t largest_code(const bw_format_traits *t)
{
    const int64_t *table = bw_code_table(t);
    int64_t most = table ? 0 : (int64_t)1 << t->mantissa_bits; /* INT16: weights may have -2^m */
    for (int i = 0; table && i < 256; i++) {
        int64_t v = table[i] < 0 ? -table[i] : table[i];
        if (v > most)
            most = v;
    }
    return most;
}

static bw_dot_class choose_class(const bw_fast *engine, const bw_format_traits *a, const bw_format_traits *w,
                                 size_t block)
{
    int64_t ma = largest_code(a), mw = largest_code(w);
    if (ma <= 128 && mw <= 128 && engine->dots->dot8)
        return BW_DOT_S8;
    if (ma <= INT16_MAX && mw <= INT16_MAX && (int64_t)block * ma * mw < INT32_MAX)
        return BW_DOT_S16;
    return (double)block * (double)ma * (double)mw < 0x1p53 ? BW_DOT_F64 : BW_DOT_I128;
}

static size_t code_bytes(bw_dot_class c)
{
    return c == BW_DOT_S8 ? 1 : c == BW_DOT_S16 ? 2 : 8;
}

/* Rows of whole channels: groups whose channel ranges do not end where blocks of the outputs do. */
static int needs_whole_rows(const bw_plan *plan)
{
    return plan->ins->groups > 1 && plan->group_channels % plan->align != 0;
}

/* How one run cuts a CONV. */
typedef struct cut {
    size_t pixels;   /* of the batch */
    size_t per_item; /* pixels, at most */
    size_t parts;    /* items over the pixels */
    size_t span;     /* channels of a range, at most */
    size_t ranges;   /* per group; 1 for whole rows */
    size_t units;    /* groups x ranges; 1 for whole rows */
} cut;

static size_t acc_stride(const bw_plan *plan, size_t span)
{
    size_t n = needs_whole_rows(plan) ? plan->ins->groups * plan->group_tiles * BW_OUTPUT_TILE : span;
    return bw_round_up(n, BW_ROW_ALIGN) + BW_OUTPUT_TILE; /* not a power of two: rows fall in different cache sets */
}

static size_t most_pixels(const bw_plan *plan)
{
    size_t fit = ACC_BYTES / (acc_stride(plan, ITEM_CHANNELS) * sizeof(float));
    return fit < 1 ? 1 : fit < ITEM_PIXELS ? fit : ITEM_PIXELS;
}

static size_t divide_up(size_t a, size_t b)
{
    return (a + b - 1) / b;
}

static cut choose_cut(const bw_fast *engine, const bw_plan *plan, uint32_t batch)
{
    const bw_tensor *out = &plan->ins->out0;
    const size_t threads = bw_pool_threads(engine->pool), wanted = threads > 1 ? threads * 3 : 1;
    const size_t most = most_pixels(plan), group = engine->dots->group;
    cut c = {.pixels = (size_t)batch * out->height * out->width, .ranges = 1, .units = 1};
    c.parts = divide_up(c.pixels, most);
    if (c.parts < wanted) { /* smaller items, but whole kernel calls */
        c.parts = divide_up(c.pixels, group < most ? group : most);
        if (c.parts > wanted)
            c.parts = wanted;
    }
    c.per_item = divide_up(c.pixels, c.parts);
    c.parts = divide_up(c.pixels, c.per_item);
    c.span = plan->group_channels;
    if (needs_whole_rows(plan))
        return c;
    c.ranges = divide_up(c.span, ITEM_CHANNELS);
    if (c.parts * c.ranges * plan->ins->groups < wanted)
        c.ranges = divide_up(wanted, c.parts * plan->ins->groups);
    c.span = bw_round_up(divide_up(c.span, c.ranges), plan->align);
    c.ranges = divide_up(plan->group_channels, c.span);
    c.units = c.ranges * plan->ins->groups;
    return c;
}

/* --- scratch memory of a thread -------------------------------------------------------------------------------------
 */

typedef struct scratch {
    uint8_t *codes;
    int32_t *offset, *scale;
    uint8_t *bytes;   /* unpacked weight codes */
    uint8_t *weights; /* widened weights */
    float *acc, *row, *spare;
} scratch;

static void *take(uint8_t *base, size_t *next, size_t bytes)
{
    size_t offset = *next;
    *next += bw_round_up(bytes, 64);
    return base ? base + offset : NULL;
}

/* Lays the scratch out from `base` (NULL: only asking); returns its size. */
static size_t lay_out(const bw_plan *plan, uint8_t *base, scratch *s)
{
    const size_t block = plan->ins->in.block, pixels = most_pixels(plan), wide = code_bytes(plan->dot);
    const size_t stride = acc_stride(plan, ITEM_CHANNELS);
    size_t next = 0;
    s->codes = take(base, &next, pixels * BW_PANEL_BYTES);
    s->offset = take(base, &next, pixels * BW_PANEL_BLOCKS * sizeof(int32_t));
    s->scale = take(base, &next, pixels * BW_PANEL_BLOCKS * sizeof(int32_t));
    s->bytes = take(base, &next, plan->chunk * block * BW_OUTPUT_TILE * plan->weight_format.traits->device_bytes);
    s->weights = take(base, &next, plan->chunk * block * BW_OUTPUT_TILE * wide);
    s->acc = take(base, &next, pixels * stride * sizeof(float));
    s->row = take(base, &next, stride * sizeof(float));
    s->spare = take(base, &next, stride * sizeof(float));
    return next;
}

void bw_conv_plan(const bw_fast *engine, bw_plan *plan)
{
    const bw_instruction *ins = plan->ins;
    const size_t block = ins->in.block;
    const bw_format_traits *wt = plan->weight_format.traits;
    plan->dot = choose_class(engine, plan->in.format.traits, wt, block);
    plan->group_blocks = divide_up(ins->in.channels / ins->groups, block);
    plan->reduction = bw_conv_blocks(ins);
    plan->taps_adjoin = ins->groups == 1 && ins->dilation_x == 1 && ins->in.pixel_stride == plan->group_blocks;
    plan->group_channels = ins->out0.channels / ins->groups;
    plan->group_tiles = divide_up(plan->group_channels, BW_OUTPUT_TILE);
    plan->tile_bytes = plan->reduction * (BW_OUTPUT_TILE * block * wt->code_bits / 8);
    /* One row of a panel; the weights that go with it, 16 times as many bytes, stay in the first cache. */
    plan->chunk = BW_PANEL_CODES / (block * code_bytes(plan->dot));
    if (plan->chunk > plan->reduction)
        plan->chunk = plan->reduction;
    scratch unused;
    plan->scratch = lay_out(plan, NULL, &unused);
}

/* --- an item --------------------------------------------------------------------------------------------------------
 */

typedef struct job {
    bw_fast *engine;
    const bw_plan *plan;
    cut cut;
} job;

typedef struct place {
    size_t image, y, x;
} place;

static place place_of(const bw_plan *plan, size_t pixel)
{
    const size_t width = plan->ins->out0.width, area = width * plan->ins->out0.height;
    place p = {pixel / area, pixel % area / width, pixel % width};
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

/* Where in the kernel window a part of the reduction starts. */
typedef struct window_start {
    size_t ky, kx, first; /* tap, and its first block */
} window_start;

/* Taps from kx on that are alike: all outside the input, or inside and one run of memory. */
static size_t equal_taps(const bw_plan *plan, int64_t y, int64_t x, size_t kx, int *inside)
{
    const bw_instruction *ins = plan->ins;
    const size_t left = ins->kernel_x - kx;
    const int64_t width = ins->in.width, dilation = ins->dilation_x;
    *inside = 0;
    if (y < 0 || y >= ins->in.height || x >= width)
        return left;
    size_t n = 1;
    if (x < 0) {
        n = (size_t)((-x + dilation - 1) / dilation);
    } else {
        *inside = 1;
        if (plan->taps_adjoin)
            n = (size_t)(width - x);
    }
    return n < left ? n : left;
}

/* Packs blocks k0 .. k0 + count of the reduction of group `cg` for one pixel. */
static void pack_pixel(const job *j, size_t cg, place at, size_t count, window_start start, bw_pack_args args)
{
    const bw_plan *plan = j->plan;
    const bw_instruction *ins = plan->ins;
    const size_t kb = plan->group_blocks, wide = code_bytes(plan->dot);
    const int64_t y0 = (int64_t)at.y * ins->stride_y + ins->origin_y;
    const int64_t x0 = (int64_t)at.x * ins->stride_x + ins->origin_x;
    uint8_t *out = args.out;
    size_t first = start.first, ky = start.ky, kx = start.kx;
    while (count) {
        const int64_t y = y0 + (int64_t)ky * ins->dilation_y, x = x0 + (int64_t)kx * ins->dilation_x;
        int inside;
        const size_t taps = equal_taps(plan, y, x, kx, &inside);
        args.count = taps * kb - first;
        if (args.count > count)
            args.count = count;
        args.codes = NULL;
        if (inside) {
            args.codes = bw_view_codes(&plan->in, at.image, (size_t)y, (size_t)x, cg * kb + first);
            args.exps = bw_view_exps(&plan->in, at.image, (size_t)y, (size_t)x, cg * kb + first);
        }
        args.out = out;
        if (plan->dot == BW_DOT_S8)
            j->engine->dots->pack8(&args);
        else if (plan->dot == BW_DOT_S16 && plan->in.format.kind == BW_KIND_INT16)
            bw_pack_words(&args);
        else if (plan->dot == BW_DOT_S16)
            j->engine->dots->pack16(&args);
        else
            bw_pack_wide(plan->dot, plan->in.format.traits, &args);
        out += args.count * args.block * wide;
        args.offset += args.count;
        args.scale += args.count;
        count -= args.count;
        first = 0;
        kx += taps;
        if (kx == ins->kernel_x) {
            kx = 0;
            ky++;
        }
    }
}

/* The weights of blocks k0 .. k0 + count of a tile, as the kernel wants them. */
static const void *tile_weights(const job *j, size_t tile, size_t k0, size_t count, scratch *s)
{
    const bw_plan *plan = j->plan;
    const bw_dot_kernels *dots = j->engine->dots;
    const bw_format_traits *t = plan->weight_format.traits;
    const size_t block = plan->ins->in.block, codes = count * block * BW_OUTPUT_TILE;
    const uint8_t *packed = plan->weights + tile * plan->tile_bytes + k0 * (BW_OUTPUT_TILE * block * t->code_bits / 8);
    const int16_t *values = t->kind == BW_KIND_TABLE ? j->engine->tables->values16[t->format] : NULL;
    const uint8_t *bytes = packed;
    if (t->kind == BW_KIND_INT16 && plan->dot == BW_DOT_S16) {
        bw_widen_words(packed, count, block, (int16_t *)(void *)s->weights);
        return s->weights;
    }
    if (t->kind == BW_KIND_INT16) {
        bw_unpack(t, packed, codes, s->bytes);
        bytes = s->bytes;
    } else if (t->code_bits != 8) {
        dots->unpack(t, packed, codes, s->bytes);
        bytes = s->bytes;
    }
    switch (plan->dot) {
    case BW_DOT_S8:
        if (values) /* at most six bits: unpacked above */
            dots->map8(values, codes, s->bytes);
        return bytes;
    case BW_DOT_S16:
        dots->widen(bytes, values, count, block, (int16_t *)(void *)s->weights);
        return s->weights;
    default:
        bw_widen_wide(plan->dot, t, bytes, count, block, s->weights);
        return s->weights;
    }
}

/* acc of tiles t0 .. t1 (of group cg) for `pixels` pixels from `first`; column 0 of acc is tile t0. */
static void accumulate(const job *j, size_t cg, size_t first, size_t pixels, size_t t0, size_t t1, scratch *s,
                       float *acc, size_t stride)
{
    const bw_plan *plan = j->plan;
    const bw_dot_kernels *dots = j->engine->dots;
    const bw_format_traits *in = plan->in.format.traits;
    const size_t block = plan->ins->in.block, groups = divide_up(pixels, dots->group);
    static const float zeros[BW_OUTPUT_TILE];
    uint8_t starts[ITEM_PIXELS + 1]; /* the pixels fall into groups of about equal size, one kernel call each */
    for (size_t g = 0; g <= groups; g++)
        starts[g] = (uint8_t)(pixels * g / groups);

    for (size_t k0 = 0; k0 < plan->reduction; k0 += plan->chunk) {
        const size_t count = plan->reduction - k0 < plan->chunk ? plan->reduction - k0 : plan->chunk;
        const size_t tap = k0 / plan->group_blocks;
        const window_start w = {tap / plan->ins->kernel_x, tap % plan->ins->kernel_x, k0 % plan->group_blocks};
        bw_pack_args pack = {.block = block};
        pack.values = in->kind == BW_KIND_TABLE ? j->engine->tables->values16[in->format] : NULL;
        place at = place_of(plan, first);
        for (size_t p = 0; p < pixels; p++, next_place(plan, &at)) {
            pack.out = s->codes + p * BW_PANEL_BYTES;
            pack.offset = s->offset + p * BW_PANEL_BLOCKS;
            pack.scale = s->scale + p * BW_PANEL_BLOCKS;
            pack_pixel(j, cg, at, count, w, pack);
        }
        bw_dot_args args = {.block = block, .blocks = count, .stride = stride};
        for (size_t t = t0; t < t1; t++) {
            args.weights = tile_weights(j, t, k0, count, s);
            args.weight_exps = plan->weight_exps + (t * plan->reduction + k0) * BW_OUTPUT_TILE;
            args.start = k0 ? NULL : plan->bias ? plan->bias + t * BW_OUTPUT_TILE : zeros;
            for (size_t g = 0; g < groups; g++) {
                const size_t start = starts[g];
                args.pixels = starts[g + 1] - start;
                args.codes = s->codes + start * BW_PANEL_BYTES;
                args.offset = s->offset + start * BW_PANEL_BLOCKS;
                args.scale = s->scale + start * BW_PANEL_BLOCKS;
                args.acc = acc + start * stride + (t - t0) * BW_OUTPUT_TILE;
                if (plan->dot == BW_DOT_S8)
                    dots->dot8(&args);
                else if (plan->dot == BW_DOT_S16)
                    dots->dot16(&args);
                else
                    bw_dot_wide(plan->dot, &args);
            }
        }
    }
}

/* Whole rows: all groups, then the padding lanes between the groups' tiles are taken out. */
static void run_whole_rows(const job *j, size_t first, size_t pixels, scratch *s)
{
    const bw_plan *plan = j->plan;
    const size_t tiles = plan->group_tiles, n = plan->group_channels, groups = plan->ins->groups;
    const size_t stride = acc_stride(plan, 0);
    for (size_t cg = 0; cg < groups; cg++)
        accumulate(j, cg, first, pixels, cg * tiles, (cg + 1) * tiles, s, s->acc + cg * tiles * BW_OUTPUT_TILE, stride);
    for (size_t p = 0; p < pixels; p++) {
        for (size_t cg = 0; cg < groups; cg++)
            memcpy(s->row + cg * n, s->acc + p * stride + cg * tiles * BW_OUTPUT_TILE, n * sizeof(float));
        place at = place_of(plan, first + p);
        bw_fast_finish(j->engine, plan, at.image, at.y, at.x, 0, n * groups, s->row, s->spare);
    }
}

static void run_item(void *context, size_t item, unsigned thread)
{
    const job *j = context;
    const bw_plan *plan = j->plan;
    scratch s;
    lay_out(plan, bw_fast_scratch(j->engine, thread), &s);
    const size_t unit = item / j->cut.parts, first = item % j->cut.parts * j->cut.per_item;
    const size_t left = j->cut.pixels - first, pixels = left < j->cut.per_item ? left : j->cut.per_item;
    if (needs_whole_rows(plan)) {
        run_whole_rows(j, first, pixels, &s);
        return;
    }
    const size_t cg = unit / j->cut.ranges, c0 = unit % j->cut.ranges * j->cut.span;
    const size_t rest = plan->group_channels - c0, n = rest < j->cut.span ? rest : j->cut.span;
    const size_t t0 = cg * plan->group_tiles + c0 / BW_OUTPUT_TILE, t1 = t0 + divide_up(n, BW_OUTPUT_TILE);
    const size_t stride = acc_stride(plan, j->cut.span);
    accumulate(j, cg, first, pixels, t0, t1, &s, s.acc, stride);
    place at = place_of(plan, first);
    for (size_t p = 0; p < pixels; p++, next_place(plan, &at)) {
        bw_fast_finish(j->engine, plan, at.image, at.y, at.x, cg * plan->group_channels + c0, n, s.acc + p * stride,
                       s.spare);
    }
}

void bw_conv_run(bw_fast *engine, const bw_plan *plan, uint32_t batch)
{
    job j = {.engine = engine, .plan = plan, .cut = choose_cut(engine, plan, batch)};
    bw_pool_run(engine->pool, j.cut.parts * j.cut.units, run_item, &j);
}
