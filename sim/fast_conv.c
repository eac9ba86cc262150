/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CONV on the fast engine. Work is cut into items of some output pixels x a range of output channels. An item makes
 * a panel of the input under its pixels (fast_panel.c), goes through the weight tiles of its channels in bunches, and
 * finishes a bunch of all pixels while its sums are hot. Weights are used where they lie in the constants if they are
 * bytes, else unpacked a few tiles and a part of the reduction at a time, for all pixels of the item.
 */
#include <string.h>

#include "sim/fast_conv.h"

#define ITEM_PIXELS   224          /* most pixels of an item */
#define LEAST_PIXELS  28           /* fewer cost more in weights than threads gain */
#define PART_CHANNELS 1024         /* most channels of an item whose rows hold parts of the reduction */
#define PANEL_BYTES   (192u << 10) /* codes; half of the second cache or less */
#define ROW_BYTES     (32u << 10)  /* codes of a pixel's own row, at most */
#define PART_BYTES    (2u << 10)   /* of one that holds a part */
#define ACC_BYTES     (256u << 10)
#define WEIGHT_BYTES  (32u << 10) /* of a chunk of tiles: about the first cache */
#define BUNCH         4           /* tiles; more if blocks of the outputs are longer */

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
    if (ma <= 128 && mw <= 128 && engine->bytes)
        return BW_DOT_S8;
    if (ma <= INT16_MAX && mw <= INT16_MAX && (int64_t)block * ma * mw < INT32_MAX)
        return BW_DOT_S16;
    return (double)block * (double)ma * (double)mw < 0x1p53 ? BW_DOT_F64 : BW_DOT_I128;
}

/* Rows of whole channels: groups whose channel ranges do not end where blocks of the outputs do. */
static int needs_whole_rows(const bw_plan *plan)
{
    return plan->ins->groups > 1 && plan->group_channels % plan->align != 0;
}

/* Blocks of the reduction that a pixel's own row takes in all: more than the part that it holds? */
static int in_parts(const bw_plan *plan)
{
    return plan->part < plan->reduction;
}

/* --- scratch memory of a thread -------------------------------------------------------------------------------------
 */

typedef struct scratch {
    uint8_t *codes; /* the panel */
    int32_t *scale;
    uint8_t *bytes;   /* unpacked weight codes of some tiles */
    uint8_t *weights; /* widened weights */
    int32_t *sums;
    float *acc;
} scratch;

static void *take(uint8_t *base, size_t *next, size_t bytes)
{
    size_t offset = *next;
    *next += bw_round_up(bytes, 64);
    return base ? base + offset : NULL;
}

static size_t tiles_at_once(const bw_fast *engine, const bw_plan *plan)
{
    return plan->dot == BW_DOT_S8 ? engine->bytes->tiles : 1;
}

/* Lays the scratch out from `base` (NULL: only asking); returns its size. */
static size_t lay_out(const bw_fast *engine, const bw_plan *plan, uint8_t *base, scratch *s)
{
    const size_t block = plan->ins->in.block, wide = bw_code_bytes(plan->dot);
    const size_t weights = tiles_at_once(engine, plan) * plan->chunk * block * BW_OUTPUT_TILE;
    size_t codes, scales, next = 0;
    bw_panel_size(plan, &codes, &scales);
    s->codes = take(base, &next, codes + BW_PANEL_SLACK);
    s->scale = take(base, &next, scales * sizeof(int32_t) + BW_PANEL_SLACK);
    s->bytes = take(base, &next, weights * plan->weight_format.traits->device_bytes);
    s->weights = take(base, &next, plan->dot == BW_DOT_S8 ? 0 : weights * wide);
    s->sums = take(base, &next, weights / block / BW_OUTPUT_TILE * bw_dot_sums(plan->is_signed) * sizeof(int32_t));
    s->acc = take(base, &next, plan->most_pixels * plan->acc_stride * sizeof(float));
    return next;
}

/* --- plan ----------------------------------------------------------------------------------------------------------
 */

static size_t acc_stride(const bw_plan *plan, size_t tiles)
{
    return bw_round_up(tiles * BW_OUTPUT_TILE, plan->align) + BW_OUTPUT_TILE; /* not a power of two */
}

/* Chooses the panel and, but for rows, how many rows of outputs an item has at most. */
static void plan_panel(bw_plan *plan)
{
    const bw_instruction *ins = plan->ins;
    const size_t width = ins->out0.width, pixel = ins->in.block * bw_code_bytes(plan->dot);
    const size_t acc = plan->acc_stride * sizeof(float);
    size_t rows = bw_smaller(bw_smaller(ITEM_PIXELS, ACC_BYTES / acc) / width, ins->out0.height);
    plan->panel = BW_PANEL_ROWS;
    plan->item_rows = 0;
    if (rows && bw_panel_in_place(plan)) {
        plan->panel = BW_PANEL_IN_PLACE;
        plan->item_rows = rows;
        plan->one_line = plan->adjoin_in && ins->stride_x == 1 && ins->stride_y == 1 && ins->in.width == width;
        return;
    }
    while (rows && bw_panel_region_blocks(plan, rows) > PANEL_BYTES / pixel)
        rows--;
    /* Worth it if windows share a quarter of their blocks. */
    if (rows && bw_panel_region_blocks(plan, rows) * 4 <= plan->reduction * rows * width * 3) {
        plan->panel = BW_PANEL_REGION;
        plan->item_rows = rows;
    }
}

void bw_conv_plan(const bw_fast *engine, bw_plan *plan)
{
    const bw_instruction *ins = plan->ins;
    const size_t block = ins->in.block;
    const bw_format_traits *wt = plan->weight_format.traits;
    plan->dot = choose_class(engine, plan->in.format.traits, wt, block);
    plan->taps_adjoin = ins->groups == 1 && ins->dilation_x == 1 && ins->in.pixel_stride == plan->group_blocks;
    plan->group_channels = ins->out0.channels / ins->groups;
    plan->group_tiles = bw_divide_up(plan->group_channels, BW_OUTPUT_TILE);
    plan->tile_bytes = plan->reduction * (BW_OUTPUT_TILE * block * wt->code_bits / 8);

    const size_t wide = bw_code_bytes(plan->dot);
    size_t chunk = WEIGHT_BYTES / (block * BW_OUTPUT_TILE * wide * tiles_at_once(engine, plan));
    chunk = chunk < 1 ? 1 : bw_smaller(chunk, BW_DOT_CHUNK);
    plan->chunk = bw_divide_up(plan->reduction, bw_divide_up(plan->reduction, chunk)); /* of about equal size */
    plan->part = plan->reduction;
    plan->bunch = plan->align / BW_OUTPUT_TILE;
    while (plan->bunch < bw_smaller(BUNCH, plan->group_tiles))
        plan->bunch *= 2;
    plan->acc_stride = acc_stride(plan, needs_whole_rows(plan) ? ins->groups * plan->group_tiles : plan->bunch);
    plan_panel(plan);
    if (plan->item_rows) {
        plan->most_pixels = plan->item_rows * ins->out0.width;
    } else {
        if (plan->reduction > ROW_BYTES / (block * wide)) {
            const size_t chunks = PART_BYTES / (plan->chunk * block * wide);
            const size_t tiles =
                bw_smaller(bw_round_up(plan->group_tiles, plan->bunch), PART_CHANNELS / BW_OUTPUT_TILE);
            plan->part = bw_smaller(plan->chunk * (chunks ? chunks : 1), plan->reduction);
            if (!needs_whole_rows(plan))
                plan->acc_stride = acc_stride(plan, tiles);
        }
        size_t fit = bw_smaller(ACC_BYTES / (plan->acc_stride * sizeof(float)),
                                PANEL_BYTES / bw_panel_row_bytes(plan, plan->part));
        plan->most_pixels = fit < 1 ? 1 : bw_smaller(fit, ITEM_PIXELS);
    }
    scratch unused;
    plan->scratch = lay_out(engine, plan, NULL, &unused);
}

/* How one run cuts a CONV. */
typedef struct cut {
    size_t total;    /* pixels of the batch; with plan->item_rows: rows of an image */
    size_t per_item; /* of these, at most */
    size_t images;   /* that are cut one by one: those of the batch with plan->item_rows, else 1 */
    size_t parts;    /* items over the pixels of all images */
    size_t span;     /* channels of a range, at most */
    size_t ranges;   /* per group; 1 for whole rows */
    size_t units;    /* groups x ranges; 1 for whole rows */
} cut;

static cut choose_cut(const bw_fast *engine, const bw_plan *plan, uint32_t batch)
{
    const bw_tensor *out = &plan->ins->out0;
    const size_t threads = bw_pool_threads(engine->pool);
    size_t most = plan->most_pixels, least = LEAST_PIXELS;
    cut c = {.total = (size_t)batch * out->height * out->width, .images = 1, .ranges = 1, .units = 1};
    if (plan->item_rows) {
        c.total = out->height;
        c.images = batch;
        most = plan->item_rows;
        least = bw_divide_up(LEAST_PIXELS, out->width);
    }
    size_t parts = bw_divide_up(c.total, most);
    if (threads > 1) { /* as many for each thread */
        const size_t more = bw_divide_up(parts, threads) * threads;
        if (more * least <= c.total)
            parts = more;
    }
    c.per_item = bw_divide_up(c.total, parts);
    c.parts = bw_divide_up(c.total, c.per_item) * c.images;
    c.span = plan->group_channels;
    if (needs_whole_rows(plan))
        return c;
    c.ranges = in_parts(plan) ? bw_divide_up(c.span, (plan->acc_stride - BW_OUTPUT_TILE)) : 1;
    const size_t wanted = threads > 1 ? threads * 2 : 1;
    if (c.parts * plan->ins->groups < threads && c.parts * c.ranges * plan->ins->groups < wanted)
        c.ranges = bw_divide_up(wanted, c.parts * plan->ins->groups);
    const size_t step = tiles_at_once(engine, plan) * BW_OUTPUT_TILE;
    c.span = bw_round_up(bw_divide_up(c.span, c.ranges), plan->align > step ? plan->align : step);
    c.ranges = bw_divide_up(plan->group_channels, c.span);
    c.units = c.ranges * plan->ins->groups;
    return c;
}

/* --- an item: its sums ----------------------------------------------------------------------------------------------
 */

typedef struct job {
    bw_fast *engine;
    const bw_plan *plan;
    cut cut;
} job;

static const uint8_t *packed_weights(const bw_plan *plan, size_t tile, size_t k0)
{
    const size_t codes = BW_OUTPUT_TILE * plan->ins->in.block;
    return plan->weights + tile * plan->tile_bytes + k0 * (codes * plan->weight_format.traits->code_bits / 8);
}

/* The weights of blocks k0 .. k0 + count of a tile, as the kernel wants them; n: which of the tiles at once it is. */
static const uint8_t *tile_weights(const job *j, size_t tile, size_t n, size_t k0, size_t count, const scratch *s)
{
    const bw_plan *plan = j->plan;
    const bw_dot_kernels *dots = j->engine->dots;
    const bw_format_traits *t = plan->weight_format.traits;
    const size_t block = plan->ins->in.block, codes = count * block * BW_OUTPUT_TILE;
    const uint8_t *packed = packed_weights(plan, tile, k0);
    const int16_t *values = t->kind == BW_KIND_TABLE ? j->engine->tables->values16[t->format] : NULL;
    uint8_t *own = s->bytes + n * plan->chunk * block * BW_OUTPUT_TILE;
    const uint8_t *bytes = packed;
    if (t->kind == BW_KIND_INT16 && plan->dot == BW_DOT_S16) {
        dots->widen_words(packed, count, block, (int16_t *)(void *)s->weights);
        return s->weights;
    }
    if (t->kind == BW_KIND_INT16) {
        bw_unpack(t, packed, codes, own);
        bytes = own;
    } else if (t->code_bits != 8) {
        dots->unpack(t, packed, codes, own);
        bytes = own;
    }
    switch (plan->dot) {
    case BW_DOT_S8:
        if (values) /* at most six bits: unpacked above */
            dots->map8(values, codes, own);
        return bytes;
    case BW_DOT_S16:
        dots->widen(bytes, values, count, block, (int16_t *)(void *)s->weights);
        return s->weights;
    default:
        dots->wide->widen(t, bytes, count, block, (double *)(void *)s->weights);
        return s->weights;
    }
}

/* The values of all codes of 4 bits. */
static void fill_nibbles(const bw_format_traits *t, int8_t values[16])
{
    static const uint8_t packed[8] = {0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE};
    uint8_t codes[16];
    bw_unpack(t, packed, 16, codes);
    for (unsigned i = 0; i < 16; i++)
        values[i] = (int8_t)bw_code_value(t, codes[i]);
}

static size_t pixels_at_once(const bw_fast *engine, const bw_plan *plan)
{
    if (plan->dot != BW_DOT_S8)
        return engine->dots->group;
    return engine->bytes->group[plan->ins->in.block != 16];
}

/* What all kernel calls of a chunk have in common. */
typedef struct call {
    bw_dot_args args;
    const scratch *s;
    const bw_panel *panel;
    size_t at_once;          /* pixels */
    const uint8_t *ahead[2]; /* the weights of the next chunk: tiles, */
    size_t ahead_bytes;      /* and bytes of each */
    size_t blocks;           /* of this chunk */
} call;

/* The chunk after blocks .. k of tile t: worth fetching if it is used as it lies in the constants. */
static void look_ahead(const job *j, size_t t, size_t t1, size_t k, call *c)
{
    const bw_plan *plan = j->plan;
    const size_t block_bytes = BW_OUTPUT_TILE * plan->ins->in.block;
    c->ahead[0] = NULL;
    if (k == plan->reduction) {
        t += c->args.tiles;
        k = 0;
    }
    if (plan->dot != BW_DOT_S8 || plan->weight_format.traits->code_bits != 8 || !c->args.sums || t >= t1)
        return;
    c->ahead[0] = c->ahead[1] = plan->weights + t * plan->tile_bytes + k * block_bytes;
    if (t + 1 < t1)
        c->ahead[1] += plan->tile_bytes;
    c->ahead_bytes = bw_smaller(plan->chunk, plan->reduction - k) * block_bytes;
}

static void run_kernels(const job *j, const bw_area *a, const call *c, float *acc)
{
    const bw_plan *plan = j->plan;
    const bw_dot_kernels *dots = j->engine->dots;
    const size_t groups = bw_divide_up(a->line, c->at_once), calls = groups * a->lines, half = bw_divide_up(calls, 2);
    /* Half of the calls fetch the next weights of one tile, half those of the other. */
    const size_t share = bw_round_up(bw_divide_up(c->ahead_bytes, half), 64);
    bw_dot_args args = c->args;
    args.ahead_lines = c->ahead[0] ? bw_divide_up(share / 64, c->blocks) : 0;
    for (size_t line = 0; line < a->lines; line++) {
        for (size_t g = 0; g < groups; g++) { /* of about equal size */
            const size_t number = line * groups + g;
            if (args.ahead_lines)
                args.ahead = c->ahead[number / half] + number % half * share;
            const size_t first = a->line * g / groups;
            args.pixels = a->line * (g + 1) / groups - first;
            args.codes = c->panel->codes + line * c->panel->line_codes + first * args.code_step;
            args.scale = c->panel->scale + line * c->panel->line_scales + first * args.scale_step;
            args.acc = acc + (line * a->line + first) * args.stride;
            if (plan->dot == BW_DOT_S8)
                j->engine->bytes->dot(&args);
            else if (plan->dot == BW_DOT_S16)
                dots->dot16(&args);
            else
                dots->wide->dot(&args);
        }
    }
}

/* acc of tiles t0 .. t1 for all pixels; the panel holds blocks k0 .. k0 + count of the reduction. */
static void accumulate(const job *j, const bw_area *a, const bw_panel *panel, size_t k0, size_t count, size_t t0,
                       size_t t1, const scratch *s, float *acc)
{
    const bw_plan *plan = j->plan;
    const size_t block = plan->ins->in.block, at_once = tiles_at_once(j->engine, plan);
    static const float zeros[2 * BW_OUTPUT_TILE];
    bw_dot_run runs[BW_DOT_CHUNK];
    call c = {.panel = panel, .at_once = pixels_at_once(j->engine, plan)};
    c.args = (bw_dot_args){.block = block, .runs = runs, .stride = plan->acc_stride, .is_signed = plan->is_signed};
    c.args.sum_step = plan->chunk * bw_dot_sums(plan->is_signed);
    c.args.code_step = panel->code_step;
    c.args.scale_step = panel->scale_step;
    const int few = plan->dot == BW_DOT_S8 && a->lines * a->line == 1; /* without sums */
    int8_t nibbles[16];
    if (few && plan->weight_format.traits->code_bits == 4) {
        fill_nibbles(plan->weight_format.traits, nibbles);
        c.args.nibbles = nibbles;
    }
    for (size_t t = t0; t < t1; t += c.args.tiles) {
        c.args.tiles = bw_smaller(t1 - t, at_once);
        for (size_t k = 0; k < count; k += plan->chunk) {
            const size_t n = bw_smaller(count - k, plan->chunk), from = k0 + k;
            c.blocks = n;
            c.args.fill = bw_plan_fill(plan, from);
            c.args.run_count = bw_panel_runs(plan, k, n, runs);
            c.args.weight_exps = plan->weight_exps + (t * plan->reduction + from) * BW_OUTPUT_TILE;
            c.args.exp_step = plan->reduction * BW_OUTPUT_TILE;
            c.args.start = from ? NULL : plan->bias ? plan->bias + t * BW_OUTPUT_TILE : zeros;
            const uint8_t *weights[2] = {NULL, NULL};
            for (size_t i = 0; i < c.args.tiles; i++)
                weights[i] = c.args.nibbles ? packed_weights(plan, t + i, from) : tile_weights(j, t + i, i, from, n, s);
            c.args.weights = weights[0];
            c.args.weight_step = c.args.tiles > 1 ? (size_t)(weights[1] - weights[0]) : 0;
            if (plan->dot == BW_DOT_S8 && !few) {
                for (size_t i = 0; i < c.args.tiles; i++)
                    j->engine->bytes->sum((const int8_t *)weights[i], c.args.weight_exps + i * c.args.exp_step, n,
                                          block, c.args.fill, plan->is_signed, s->sums + i * c.args.sum_step);
                c.args.sums = s->sums;
            }
            look_ahead(j, t, t1, from + n, &c);
            run_kernels(j, a, &c, acc + (t - t0) * BW_OUTPUT_TILE);
        }
    }
}

/* acc of tiles t0 .. t1 (of group cg), with a panel made here, or panels of parts. */
static void accumulate_group(const job *j, size_t cg, const bw_area *a, size_t t0, size_t t1, const scratch *s,
                             float *acc)
{
    const bw_plan *plan = j->plan;
    for (size_t k0 = 0; k0 < plan->reduction; k0 += plan->part) {
        const size_t count = bw_smaller(plan->reduction - k0, plan->part);
        const bw_panel panel = bw_panel_pack(j->engine, plan, cg, a, k0, count, s->codes, s->scale);
        accumulate(j, a, &panel, k0, count, t0, t1, s, acc);
    }
}

/* Writes channels c0 .. c0 + n of all pixels; acc starts at c0. */
static void finish(const job *j, const bw_area *a, size_t c0, size_t n, const scratch *s)
{
    bw_fast_finish_pixels(j->engine, j->plan, a->first, a->lines * a->line, c0, n, s->acc, j->plan->acc_stride);
}

/* Whole rows: all groups, then the padding lanes between the groups' tiles are taken out. */
static void run_whole_rows(const job *j, const bw_area *a, scratch *s)
{
    const bw_plan *plan = j->plan;
    const size_t tiles = plan->group_tiles, n = plan->group_channels, groups = plan->ins->groups;
    for (size_t cg = 0; cg < groups; cg++)
        accumulate_group(j, cg, a, cg * tiles, (cg + 1) * tiles, s, s->acc + cg * tiles * BW_OUTPUT_TILE);
    if (n % BW_OUTPUT_TILE) {
        for (size_t p = 0; p < a->lines * a->line; p++)
            for (size_t cg = 1; cg < groups; cg++) /* to lower places: no group overruns the next */
                memmove(s->acc + p * plan->acc_stride + cg * n,
                        s->acc + p * plan->acc_stride + cg * tiles * BW_OUTPUT_TILE, n * sizeof(float));
    }
    finish(j, a, 0, n * groups, s);
}

static void run_item(void *context, size_t item, unsigned thread)
{
    const job *j = context;
    const bw_plan *plan = j->plan;
    const cut *c = &j->cut;
    scratch s;
    lay_out(j->engine, plan, bw_fast_scratch(j->engine, thread), &s);
    const size_t unit = item / c->parts, part = item % c->parts, per_image = c->parts / c->images;
    const size_t first = part % per_image * c->per_item, count = bw_smaller(c->total - first, c->per_item);
    const size_t width = plan->ins->out0.width;
    bw_area a = {first, 1, count};
    if (plan->item_rows) {
        a = (bw_area){(part / per_image * plan->ins->out0.height + first) * width, count, width};
        if (plan->one_line)
            a = (bw_area){a.first, 1, count * width};
    }
    if (needs_whole_rows(plan)) {
        run_whole_rows(j, &a, &s);
        return;
    }
    const size_t cg = unit / c->ranges, c0 = unit % c->ranges * c->span,
                 n = bw_smaller(plan->group_channels - c0, c->span);
    const size_t t0 = cg * plan->group_tiles + c0 / BW_OUTPUT_TILE, t1 = t0 + bw_divide_up(n, BW_OUTPUT_TILE);
    if (in_parts(plan)) {
        accumulate_group(j, cg, &a, t0, t1, &s, s.acc);
        finish(j, &a, cg * plan->group_channels + c0, n, &s);
        return;
    }
    const bw_panel panel = bw_panel_pack(j->engine, plan, cg, &a, 0, plan->reduction, s.codes, s.scale);
    for (size_t t = t0; t < t1; t += plan->bunch) {
        const size_t end = bw_smaller(t + plan->bunch, t1), from = (t - t0) * BW_OUTPUT_TILE;
        accumulate(j, &a, &panel, 0, plan->reduction, t, end, &s, s.acc);
        finish(j, &a, cg * plan->group_channels + c0 + from, bw_smaller(n - from, plan->bunch * BW_OUTPUT_TILE), &s);
    }
}

void bw_conv_run(bw_fast *engine, const bw_plan *plan, uint32_t batch)
{
    job j = {.engine = engine, .plan = plan, .cut = choose_cut(engine, plan, batch)};
    bw_pool_run(engine->pool, j.cut.parts * j.cut.units, run_item, &j);
}
