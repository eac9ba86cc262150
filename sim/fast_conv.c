/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CONV on the fast engine. Work is cut into items of some output pixels x a range of output channels. An item packs
 * the input under its pixels into a panel, goes through the weight tiles of its channels in bunches, and finishes a
 * bunch of all pixels while its sums are hot. Weights are used where they lie in the constants if they are bytes, else
 * unpacked a few tiles and a part of the reduction at a time, for all pixels of the item.
 *
 * The panel is either a region (rows of the input, packed once for all windows that meet in them: 3x3 kernels and the
 * like) or has a row of its own for each pixel (1x1 kernels, strides that leave pixels out, windows too large for a
 * region); if a single such row is too long it holds a part of the reduction at a time.
 */
#include <string.h>

#include "sim/fast.h"

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

static size_t code_bytes(bw_dot_class c)
{
    return c == BW_DOT_S8 ? 1 : c == BW_DOT_S16 ? 2 : 8;
}

/* Rows of whole channels: groups whose channel ranges do not end where blocks of the outputs do. */
static int needs_whole_rows(const bw_plan *plan)
{
    return plan->ins->groups > 1 && plan->group_channels % plan->align != 0;
}

static size_t divide_up(size_t a, size_t b)
{
    return (a + b - 1) / b;
}

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
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

/* Bytes from one pixel's own row to the next: not a power of two, so that they lie in different cache sets. */
static size_t row_step(const bw_plan *plan)
{
    return bw_round_up(plan->part * plan->ins->in.block * code_bytes(plan->dot), 64) + 64;
}

static size_t row_scales(const bw_plan *plan)
{
    return bw_round_up(plan->part, 16) + 16;
}

static size_t tiles_at_once(const bw_fast *engine, const bw_plan *plan)
{
    return plan->dot == BW_DOT_S8 ? engine->bytes->tiles : 1;
}

/* Lays the scratch out from `base` (NULL: only asking); returns its size. */
static size_t lay_out(const bw_fast *engine, const bw_plan *plan, uint8_t *base, scratch *s)
{
    const size_t block = plan->ins->in.block, wide = code_bytes(plan->dot);
    const size_t weights = tiles_at_once(engine, plan) * plan->chunk * block * BW_OUTPUT_TILE;
    size_t codes, scales, next = 0;
    if (plan->region_rows) {
        scales = region_row(plan) * region_height(plan, plan->region_rows);
        codes = scales * block * wide;
    } else {
        codes = plan->most_pixels * row_step(plan);
        scales = plan->most_pixels * row_scales(plan);
    }
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

/* Output rows of an item that packs a region; 0 if rows for each pixel are better, or a region would be too large. */
static size_t plan_region(const bw_plan *plan)
{
    const bw_instruction *ins = plan->ins;
    const size_t width = ins->out0.width, pixel = ins->in.block * code_bytes(plan->dot);
    const size_t acc = plan->acc_stride * sizeof(float);
    size_t rows = smaller(smaller(ITEM_PIXELS, ACC_BYTES / acc) / width, ins->out0.height);
    while (rows && region_row(plan) * region_height(plan, rows) > PANEL_BYTES / pixel)
        rows--;
    if (!rows || region_row(plan) * region_height(plan, rows) * 4 > plan->reduction * rows * width * 3)
        return 0;
    return rows;
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

    const size_t wide = code_bytes(plan->dot);
    size_t chunk = WEIGHT_BYTES / (block * BW_OUTPUT_TILE * wide * tiles_at_once(engine, plan));
    chunk = chunk < 1 ? 1 : smaller(chunk, BW_DOT_CHUNK);
    plan->chunk = divide_up(plan->reduction, divide_up(plan->reduction, chunk)); /* of about equal size */
    plan->part = plan->reduction;
    plan->bunch = plan->align / BW_OUTPUT_TILE;
    while (plan->bunch < smaller(BUNCH, plan->group_tiles))
        plan->bunch *= 2;
    plan->acc_stride = acc_stride(plan, needs_whole_rows(plan) ? ins->groups * plan->group_tiles : plan->bunch);
    plan->region_rows = plan_region(plan);
    if (plan->region_rows) {
        plan->most_pixels = plan->region_rows * ins->out0.width;
    } else {
        if (plan->reduction > ROW_BYTES / (block * wide)) {
            const size_t chunks = PART_BYTES / (plan->chunk * block * wide);
            const size_t tiles = smaller(bw_round_up(plan->group_tiles, plan->bunch), PART_CHANNELS / BW_OUTPUT_TILE);
            plan->part = smaller(plan->chunk * (chunks ? chunks : 1), plan->reduction);
            if (!needs_whole_rows(plan))
                plan->acc_stride = acc_stride(plan, tiles);
        }
        size_t fit = smaller(ACC_BYTES / (plan->acc_stride * sizeof(float)), PANEL_BYTES / row_step(plan));
        plan->most_pixels = fit < 1 ? 1 : smaller(fit, ITEM_PIXELS);
    }
    scratch unused;
    plan->scratch = lay_out(engine, plan, NULL, &unused);
}

/* How one run cuts a CONV. */
typedef struct cut {
    size_t total;    /* pixels of the batch; with regions: rows of an image */
    size_t per_item; /* of these, at most */
    size_t images;   /* that are cut one by one: those of the batch with regions, else 1 */
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
    if (plan->region_rows) {
        c.total = out->height;
        c.images = batch;
        most = plan->region_rows;
        least = divide_up(LEAST_PIXELS, out->width);
    }
    size_t parts = divide_up(c.total, most);
    if (threads > 1) { /* as many for each thread */
        const size_t more = divide_up(parts, threads) * threads;
        if (more * least <= c.total)
            parts = more;
    }
    c.per_item = divide_up(c.total, parts);
    c.parts = divide_up(c.total, c.per_item) * c.images;
    c.span = plan->group_channels;
    if (needs_whole_rows(plan))
        return c;
    c.ranges = in_parts(plan) ? divide_up(c.span, (plan->acc_stride - BW_OUTPUT_TILE)) : 1;
    const size_t wanted = threads > 1 ? threads * 2 : 1;
    if (c.parts * plan->ins->groups < threads && c.parts * c.ranges * plan->ins->groups < wanted)
        c.ranges = divide_up(wanted, c.parts * plan->ins->groups);
    const size_t step = tiles_at_once(engine, plan) * BW_OUTPUT_TILE;
    c.span = bw_round_up(divide_up(c.span, c.ranges), plan->align > step ? plan->align : step);
    c.ranges = divide_up(plan->group_channels, c.span);
    c.units = c.ranges * plan->ins->groups;
    return c;
}

/* --- an item: its panel ---------------------------------------------------------------------------------------------
 */

typedef struct job {
    bw_fast *engine;
    const bw_plan *plan;
    cut cut;
} job;

typedef struct place {
    size_t image, y, x;
} place;

/* Pixels of an item: lines of neighbours whose windows are a fixed step apart. */
typedef struct area {
    size_t first;       /* number in the batch */
    size_t lines, line; /* pixels of a line */
} area;

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
static void pack_blocks(const job *j, size_t image, int64_t y, int64_t x, size_t u, size_t count, bw_pack_args *args)
{
    const bw_plan *plan = j->plan;
    const bw_tensor *in = &plan->ins->in;
    args->count = count;
    args->codes = NULL;
    if (y >= 0 && y < in->height && x >= 0 && x < in->width) {
        args->codes = bw_view_codes(&plan->in, image, (size_t)y, (size_t)x, u);
        args->exps = bw_view_exps(&plan->in, image, (size_t)y, (size_t)x, u);
    }
    if (plan->dot == BW_DOT_S8)
        j->engine->dots->pack8(args);
    else if (plan->dot == BW_DOT_S16 && plan->in.format.kind == BW_KIND_INT16)
        bw_pack_words(args);
    else if (plan->dot == BW_DOT_S16)
        j->engine->dots->pack16(args);
    else
        j->engine->dots->wide->pack(plan->dot, plan->in.format.traits, args);
    args->out = (uint8_t *)args->out + count * args->block * code_bytes(plan->dot);
    args->scale += count;
}

static bw_pack_args panel_start(const job *j, const scratch *s)
{
    const bw_format_traits *in = j->plan->in.format.traits;
    bw_pack_args args = {.block = j->plan->ins->in.block, .out = s->codes, .scale = s->scale};
    args.values = in->kind == BW_KIND_TABLE ? j->engine->tables->values16[in->format] : NULL;
    if (j->plan->dot == BW_DOT_S8) {
        args.offset = j->plan->is_signed ? 128 : 0;
        args.scale_bias = j->engine->bytes->scale_bias;
    }
    return args;
}

static void pack_region(const job *j, size_t cg, const area *a, const scratch *s)
{
    const bw_plan *plan = j->plan;
    const bw_instruction *ins = plan->ins;
    const place at = place_of(plan, a->first);
    const size_t kb = plan->group_blocks;
    const int64_t y0 = (int64_t)at.y * ins->stride_y + ins->origin_y;
    const int64_t height = (int64_t)region_height(plan, a->lines), width = (int64_t)(region_row(plan) / kb);
    const int64_t x0 = ins->origin_x, x1 = x0 + width, in_width = ins->in.width;
    /* Columns x0 .. left are outside the input, left .. right inside, the rest outside. */
    const int64_t left = x0 >= 0 ? x0 : x1 < 0 ? x1 : 0, right = x1 < in_width ? x1 : in_width;
    bw_pack_args args = panel_start(j, s);
    for (int64_t y = y0; y < y0 + height; y++) {
        if (y < 0 || y >= ins->in.height || right <= left) {
            pack_blocks(j, at.image, -1, 0, 0, (size_t)width * kb, &args);
            continue;
        }
        if (left > x0)
            pack_blocks(j, at.image, -1, 0, 0, (size_t)(left - x0) * kb, &args);
        if (ins->groups == 1 && ins->in.pixel_stride == kb) {
            pack_blocks(j, at.image, y, left, 0, (size_t)(right - left) * kb, &args);
        } else {
            for (int64_t x = left; x < right; x++)
                pack_blocks(j, at.image, y, x, cg * kb, kb, &args);
        }
        if (x1 > right)
            pack_blocks(j, at.image, -1, 0, 0, (size_t)(x1 - right) * kb, &args);
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
    return smaller(n, left);
}

/* Packs blocks k0 .. k0 + count of the reduction for one pixel. */
static void pack_pixel(const job *j, size_t cg, place at, size_t k0, size_t count, bw_pack_args args)
{
    const bw_plan *plan = j->plan;
    const bw_instruction *ins = plan->ins;
    const size_t kb = plan->group_blocks, tap = k0 / kb;
    const int64_t y0 = (int64_t)at.y * ins->stride_y + ins->origin_y;
    const int64_t x0 = (int64_t)at.x * ins->stride_x + ins->origin_x;
    size_t first = k0 % kb, ky = tap / ins->kernel_x, kx = tap % ins->kernel_x;
    while (count) {
        const int64_t y = y0 + (int64_t)ky * ins->dilation_y, x = x0 + (int64_t)kx * ins->dilation_x;
        const size_t taps = equal_taps(plan, y, x, kx), n = smaller(taps * kb - first, count);
        pack_blocks(j, at.image, y, x, cg * kb + first, n, &args);
        count -= n;
        first = 0;
        kx += taps;
        if (kx == ins->kernel_x) {
            kx = 0;
            ky++;
        }
    }
}

static void pack_rows(const job *j, size_t cg, const area *a, size_t k0, size_t count, const scratch *s)
{
    bw_pack_args args = panel_start(j, s);
    place at = place_of(j->plan, a->first);
    for (size_t p = 0; p < a->line; p++, next_place(j->plan, &at)) {
        args.out = s->codes + p * row_step(j->plan);
        args.scale = s->scale + p * row_scales(j->plan);
        pack_pixel(j, cg, at, k0, count, args);
    }
}

/* Where blocks k0 .. k0 + count of the reduction lie in a window of a region. */
static size_t find_runs(const bw_plan *plan, size_t k0, size_t count, bw_dot_run *runs)
{
    const bw_instruction *ins = plan->ins;
    const size_t kb = plan->group_blocks, row = region_row(plan) * ins->dilation_y;
    /* Taps that follow each other in the region are one stretch. */
    const size_t stretch = ins->dilation_x == 1 ? ins->kernel_x * kb : kb;
    const size_t stretches = ins->kernel_x * kb / stretch;
    size_t n = 0;
    while (count) {
        const size_t i = k0 / stretch, in = k0 % stretch, blocks = smaller(stretch - in, count);
        runs[n].at = (uint32_t)(i / stretches * row + i % stretches * ins->dilation_x * kb + in);
        runs[n++].blocks = (uint32_t)blocks;
        k0 += blocks;
        count -= blocks;
    }
    return n;
}

/* --- an item: its sums ----------------------------------------------------------------------------------------------
 */

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
    const size_t block = plan->ins->in.block;
    return engine->bytes->group[block == 16 ? 0 : block == 32 ? 1 : 2];
}

/* What all kernel calls of a chunk have in common. */
typedef struct call {
    bw_dot_args args;
    const scratch *s;
    size_t at_once;                 /* pixels */
    size_t line_codes, line_scales; /* from one line to the next */
    const uint8_t *ahead[2];        /* the weights of the next chunk: tiles, */
    size_t ahead_bytes;             /* and bytes of each */
    size_t blocks;                  /* of this chunk */
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
    c->ahead_bytes = smaller(plan->chunk, plan->reduction - k) * block_bytes;
}

static void run_kernels(const job *j, const area *a, const call *c, float *acc)
{
    const bw_plan *plan = j->plan;
    const bw_dot_kernels *dots = j->engine->dots;
    const size_t groups = divide_up(a->line, c->at_once), calls = groups * a->lines, half = divide_up(calls, 2);
    /* Half of the calls fetch the next weights of one tile, half those of the other. */
    const size_t share = bw_round_up(divide_up(c->ahead_bytes, half), 64);
    bw_dot_args args = c->args;
    args.ahead_lines = c->ahead[0] ? divide_up(share / 64, c->blocks) : 0;
    for (size_t line = 0; line < a->lines; line++) {
        for (size_t g = 0; g < groups; g++) { /* of about equal size */
            const size_t number = line * groups + g;
            if (args.ahead_lines)
                args.ahead = c->ahead[number / half] + number % half * share;
            const size_t first = a->line * g / groups;
            args.pixels = a->line * (g + 1) / groups - first;
            args.codes = c->s->codes + line * c->line_codes + first * args.code_step;
            args.scale = c->s->scale + line * c->line_scales + first * args.scale_step;
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
static void accumulate(const job *j, const area *a, size_t k0, size_t count, size_t t0, size_t t1, const scratch *s,
                       float *acc)
{
    const bw_plan *plan = j->plan;
    const size_t block = plan->ins->in.block, at_once = tiles_at_once(j->engine, plan);
    static const float zeros[2 * BW_OUTPUT_TILE];
    bw_dot_run runs[BW_DOT_CHUNK];
    call c = {.s = s, .at_once = pixels_at_once(j->engine, plan)};
    c.args = (bw_dot_args){.block = block, .runs = runs, .stride = plan->acc_stride, .is_signed = plan->is_signed};
    c.args.sum_step = plan->chunk * bw_dot_sums(plan->is_signed);
    if (plan->region_rows) {
        const size_t step = plan->ins->stride_x * plan->group_blocks, line = region_row(plan) * plan->ins->stride_y;
        c.args.code_step = step * block * code_bytes(plan->dot);
        c.args.scale_step = step;
        c.line_codes = line * block * code_bytes(plan->dot);
        c.line_scales = line;
    } else {
        c.args.code_step = row_step(plan);
        c.args.scale_step = row_scales(plan);
    }
    const int few = plan->dot == BW_DOT_S8 && a->lines * a->line == 1; /* without sums */
    int8_t nibbles[16];
    if (few && plan->weight_format.traits->code_bits == 4) {
        fill_nibbles(plan->weight_format.traits, nibbles);
        c.args.nibbles = nibbles;
    }
    for (size_t t = t0; t < t1; t += c.args.tiles) {
        c.args.tiles = smaller(t1 - t, at_once);
        for (size_t k = 0; k < count; k += plan->chunk) {
            const size_t n = smaller(count - k, plan->chunk), from = k0 + k;
            c.blocks = n;
            if (plan->region_rows) {
                c.args.run_count = find_runs(plan, from, n, runs);
            } else {
                runs[0] = (bw_dot_run){(uint32_t)k, (uint32_t)n};
                c.args.run_count = 1;
            }
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
                                          block, plan->is_signed, s->sums + i * c.args.sum_step);
                c.args.sums = s->sums;
            }
            look_ahead(j, t, t1, from + n, &c);
            run_kernels(j, a, &c, acc + (t - t0) * BW_OUTPUT_TILE);
        }
    }
}

/* acc of tiles t0 .. t1 (of group cg); the whole reduction is in the panel, or packed here part by part. */
static void accumulate_group(const job *j, size_t cg, const area *a, size_t t0, size_t t1, const scratch *s, float *acc)
{
    const bw_plan *plan = j->plan;
    if (plan->region_rows)
        pack_region(j, cg, a, s);
    for (size_t k0 = 0; k0 < plan->reduction; k0 += plan->part) {
        const size_t count = smaller(plan->reduction - k0, plan->part);
        if (!plan->region_rows)
            pack_rows(j, cg, a, k0, count, s);
        accumulate(j, a, k0, count, t0, t1, s, acc);
    }
}

/* Writes channels c0 .. c0 + n of all pixels; acc starts at c0. */
static void finish(const job *j, const area *a, size_t c0, size_t n, const scratch *s)
{
    bw_fast_finish_pixels(j->engine, j->plan, a->first, a->lines * a->line, c0, n, s->acc, j->plan->acc_stride);
}

/* Whole rows: all groups, then the padding lanes between the groups' tiles are taken out. */
static void run_whole_rows(const job *j, const area *a, scratch *s)
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
    const size_t first = part % per_image * c->per_item, count = smaller(c->total - first, c->per_item);
    const size_t width = plan->ins->out0.width;
    area a = {first, 1, count};
    if (plan->region_rows)
        a = (area){(part / per_image * plan->ins->out0.height + first) * width, count, width};
    if (needs_whole_rows(plan)) {
        run_whole_rows(j, &a, &s);
        return;
    }
    const size_t cg = unit / c->ranges, c0 = unit % c->ranges * c->span,
                 n = smaller(plan->group_channels - c0, c->span);
    const size_t t0 = cg * plan->group_tiles + c0 / BW_OUTPUT_TILE, t1 = t0 + divide_up(n, BW_OUTPUT_TILE);
    if (in_parts(plan)) {
        accumulate_group(j, cg, &a, t0, t1, &s, s.acc);
        finish(j, &a, cg * plan->group_channels + c0, n, &s);
        return;
    }
    if (plan->region_rows)
        pack_region(j, cg, &a, &s);
    else
        pack_rows(j, cg, &a, 0, plan->reduction, &s);
    for (size_t t = t0; t < t1; t += plan->bunch) {
        const size_t end = smaller(t + plan->bunch, t1), from = (t - t0) * BW_OUTPUT_TILE;
        accumulate(j, &a, 0, plan->reduction, t, end, &s, s.acc);
        finish(j, &a, cg * plan->group_channels + c0 + from, smaller(n - from, plan->bunch * BW_OUTPUT_TILE), &s);
    }
}

void bw_conv_run(bw_fast *engine, const bw_plan *plan, uint32_t batch)
{
    job j = {.engine = engine, .plan = plan, .cut = choose_cut(engine, plan, batch)};
    bw_pool_run(engine->pool, j.cut.parts * j.cut.units, run_item, &j);
}
