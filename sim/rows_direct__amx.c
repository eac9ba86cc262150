/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CONV of one kernel call (bw_direct in sim/fast.h), AMX-INT8: a tile of sums, of one block of the reduction for 14 or
 * 16 neighbouring pixels x 16 outputs, is multiplied at once, and added with its exponents to fp32 sums, which stay in
 * registers from the bias to the result. Codes of weights lie in memory as tiles want them (docs/isa.md).
 * Instructions: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
 *
 * Products are made a block ahead of the additions, beyond the end of a pass too: from a tile's first load until its
 * sums are back in memory it takes longer than the CPU's window reaches.
 */
#define DIRECT_PIXELS 16
#define DIRECT_TILES  1
#include "sim/rows_direct.h"

/* Numbers of tile registers. A block is one or two products; those of 128 codes are two. */
#define SUMS           0
#define CODES          1
#define MORE_CODES     2
#define WEIGHTS        3
#define MORE_WEIGHTS   4
#define PRODUCT_FOURS  16 /* of a reduction */
#define PRODUCT_CODES  64
#define PRODUCT_WEIGHT 1024

#define WEIGHTS_CACHED (32u << 10) /* bytes of a first cache of 48 KB that weights may take */

/* Operand of LDTILECFG. */
typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

/* Blocks of a reduction, in order. */
typedef struct matrix_block {
    uint32_t codes, scale; /* where they are in a pixel's window */
    uint32_t more;         /* it takes two products */
} matrix_block;

/* A place among the passes: P pixels of a line from column x on, and a tile. */
typedef struct matrix_place {
    size_t line, x, t;
} matrix_place;

/* What all passes of a call share. */
typedef struct matrix_call {
    matrix_block blocks[BW_MATRIX_BLOCKS];
    _Alignas(64) int32_t sums[2][DIRECT_PIXELS * 16]; /* of two blocks: one is added, the next is made */
} matrix_call;

INLINE void matrix_multiply(const bw_direct *g, const uint8_t *codes, const int8_t *weights, matrix_block block,
                            int32_t *sums)
{
    codes += block.codes;
    _tile_zero(SUMS);
    _tile_loadd(CODES, codes, g->code_step);
    _tile_loadd(WEIGHTS, weights, 64);
    _tile_dpbssd(SUMS, CODES, WEIGHTS);
    if (block.more) {
        _tile_loadd(MORE_CODES, codes + PRODUCT_CODES, g->code_step);
        _tile_loadd(MORE_WEIGHTS, weights + PRODUCT_WEIGHT, 64);
        _tile_dpbssd(SUMS, MORE_CODES, MORE_WEIGHTS);
    }
    _tile_stored(SUMS, sums, 64);
}

/* The sums of the first block at a place. */
INLINE void matrix_first(const bw_direct *g, matrix_call *call, matrix_place to, int32_t *sums)
{
    matrix_multiply(g, g->codes + to.line * g->line_codes + to.x * g->code_step,
                    g->weights + to.t * g->blocks * 16 * g->block, call->blocks[0], sums);
}

INLINE void matrix_add(const bw_direct *g, const int32_t *sums, const int32_t *ea, const uint8_t *exps, const int P,
                       vf s[DIRECT_PIXELS][DIRECT_TILES])
{
    const vi e = v_load_s8(exps) << 23;
    const size_t step = g->scale_step;
#pragma GCC unroll 16
    for (int p = 0; p < P; p++) {
        if (p && p % 3 == 0) { /* three pixels with one address; else compilers add up one for each */
            ea += 3 * step;
            __asm__("" : "+r"(ea));
        }
        const vi both = e + (vi)_mm512_set1_epi32(ea[(size_t)(p % 3) * step]);
        s[p][0] = v_fma(v_float((vi)_mm512_load_si512(sums + 16 * p)), (vf)both, s[p][0]);
    }
}

/* The sums of a place. Its first block has been multiplied, to call->sums[*now]. So has that of the next pass when this
 * returns. */
INLINE void matrix_sums(const bw_direct *g, matrix_call *call, int *now, matrix_place here, matrix_place next,
                        const int P, direct_ahead *fetch, vf s[DIRECT_PIXELS][DIRECT_TILES])
{
    const vf start = g->bias ? v_load(g->bias + here.t * 16) : v_set(0.0f);
    const uint8_t *codes = g->codes + here.line * g->line_codes + here.x * g->code_step;
    const int32_t *scale = g->scale + here.line * g->line_scales + here.x * g->scale_step;
    const uint8_t *exps = (const uint8_t *)g->weight_exps + here.t * g->blocks * 16;
    const size_t bytes = 16 * g->block, lines = fetch->at < fetch->end ? fetch->lines : 0;
    const int8_t *weights = g->weights + here.t * g->blocks * bytes, *ahead = fetch->at;
    const matrix_block *block = call->blocks, *last = block + g->blocks - 1;
    int32_t *made = call->sums[*now], *other = call->sums[*now ^ 1];
#pragma GCC unroll 16
    for (int p = 0; p < P; p++)
        s[p][0] = start;
    for (; block < last; block++, exps += 16) {
        for (size_t i = 0; i < lines; i++, ahead += 64)
            _mm_prefetch((const char *)ahead, _MM_HINT_T1);
        weights += bytes;
        matrix_multiply(g, codes, weights, block[1], other);
        matrix_add(g, made, scale + block->scale, exps, P, s);
        int32_t *swap = made;
        made = other;
        other = swap;
    }
    matrix_first(g, call, next, other);
    matrix_add(g, made, scale + block->scale, exps, P, s);
    *now ^= (int)(g->blocks & 1);
    fetch->at = ahead;
}

INLINE void matrix_list(const bw_direct *g, matrix_block *to)
{
    bw_fill fill = g->fill;
    for (size_t r = 0; r < g->run_count; r++)
        for (uint32_t i = 0; i < g->runs[r].blocks; i++, to++) {
            to->scale = g->runs[r].at + i;
            to->codes = to->scale * (uint32_t)g->block;
            to->more = bw_fill_next(&fill, g->block) > PRODUCT_FOURS;
        }
}

/* The place of the next P pixels of the same tile, some of the last of a line twice; 0: there are none. */
INLINE int matrix_step(const bw_direct *g, matrix_place *at, const int P)
{
    const size_t x = at->x + (size_t)P;
    if (x < g->line) {
        at->x = x + (size_t)P > g->line ? g->line - (size_t)P : x;
        return 1;
    }
    at->x = 0;
    return ++at->line < g->pixels / g->line;
}

/* What the residual and the output of a place's group will be in, fetched: one part of `parts`. */
INLINE void matrix_fetch(const bw_direct *g, const direct_end *to, matrix_place at, int part, int parts, const int P,
                         const size_t W, const int half)
{
    const size_t p = at.line * g->line + at.x;
    for (int i = P * part / parts; i < P * (part + 1) / parts; i++) {
        const uint8_t *b = to->b.first.codes + (p + (size_t)i) * to->b.code_pixel + at.t * 32;
        for (size_t n = 0; n < W * 2; n += 64)
            _mm_prefetch((const char *)b + n, _MM_HINT_T0);
        if (half) {
            const uint8_t *h = to->half.first.codes + (p + (size_t)i) * to->half.code_pixel + at.t * 32;
            for (size_t n = 0; n < W * 2; n += 64)
                __builtin_prefetch(h + n, 1);
        }
    }
}

/* Whole blocks of P pixels. next: the place that comes after them. */
INLINE void matrix_group(const bw_direct *g, const direct_end *to, matrix_call *call, int *now, matrix_place here,
                         matrix_place next, const int P, const size_t B, const size_t W, const side_kind residual,
                         const int half, const int block, const int relu, direct_ahead *fetch, vf *y,
                         direct_later *later)
{
    const int passes = PASSES(W), tiles = (int)((g->n - here.t * 16 + 15) / 16), full = tiles < passes ? tiles : passes;
    const size_t p = here.line * g->line + here.x, t = here.t;
    for (int pass = 0; pass < passes; pass++, here.t++) {
        vf s[DIRECT_PIXELS][DIRECT_TILES];
        if (pass < full) {
            matrix_place after = here;
            after.t++;
            matrix_sums(g, call, now, here, pass + 1 < full ? after : next, P, fetch, s);
            direct_finish(g, to, p, here.t, P, 1, B, residual, half, block, relu, s);
        } else {
#pragma GCC unroll 16
            for (int i = 0; i < P; i++)
                s[i][0] = v_set(0.0f);
        }
        if (residual == SIDE_FP16)
            matrix_fetch(g, to, next, pass, passes, P, W, half);
        if (block && later->codes)
            direct_codes(to, later, P * pass / passes, P * (pass + 1) / passes, P, 1, B, W, relu);
        if (block)
            direct_keep(pass, P, 1, B, W, s, y);
    }
    if (block)
        direct_scales(to, y, p, t * 16, P, 1, B, W, relu, later);
}

/* A group of pixels meets all weights of a group of channels and is finished: for weights that stay in the first cache,
 * and for 1x1 windows, whose input would have to come from the second one as often as the weights do. */
INLINE void matrix_by_pixels(const bw_direct *g, const direct_end *to, matrix_call *call, const int P, const size_t B,
                             const size_t W, const side_kind residual, const int half, const int block, const int relu,
                             size_t groups)
{
    const size_t tiles = (g->n + 15) / 16, each = (size_t)PASSES(W), bytes = each * g->blocks * 16 * g->block;
    const size_t calls = groups * each * g->blocks;
    vf y[2][DIRECT_PIXELS * KEPT(128)];
    direct_later later = {.codes = NULL};
    int now = 0, which = 0;
    matrix_place here = {0, 0, 0};
    direct_ahead fetch = {
        .at = g->weights + bytes, .end = g->weights + bytes, .lines = (bytes / 64 + calls - 1) / calls};
    matrix_first(g, call, here, call->sums[now]);
    for (;;) {
        matrix_place next = here;
        int over = 0;
        if (!g->all_at_once && here.t + each < tiles) {
            next.t += each;
        } else if (g->all_at_once) {
            if (!matrix_step(g, &next, P)) {
                next = (matrix_place){0, 0, here.t + each};
                over = next.t >= tiles;
                fetch.at = g->weights + (here.t / each + 2) * bytes;
                fetch.end = next.t + 2 * each <= tiles ? fetch.at + bytes : fetch.at;
            }
        } else {
            over = !matrix_step(g, &next, P);
            next.t = 0;
        }
        if (over)
            next = (matrix_place){0, 0, 0};
        matrix_group(g, to, call, &now, here, next, P, B, W, residual, half, block, relu, &fetch, y[which], &later);
        if (over)
            break;
        which ^= 1;
        here = next;
    }
    if (block)
        direct_flush(to, &later, P, 1, B, W, relu);
}

/* Some tiles meet all pixels before the next ones do, and values wait in memory until all of a block are there: for
 * windows that overlap, whose input is in the first cache more often than not. */
INLINE void matrix_by_tiles(const bw_direct *g, const direct_end *to, matrix_call *call, const int P, const size_t B,
                            const size_t W, const side_kind residual, const int half, const int block, const int relu,
                            size_t groups, size_t some)
{
    const size_t tiles = (g->n + 15) / 16, each = (size_t)PASSES(W), bytes = g->blocks * 16 * g->block;
    const size_t kept = (size_t)(P * KEPT(W)), calls = groups * some * g->blocks;
    vf *values = (vf *)(void *)g->values;
    int now = 0;
    matrix_first(g, call, (matrix_place){0, 0, 0}, call->sums[now]);
    for (size_t t = 0; t < tiles; t += each) {
        const size_t full = t + each < tiles ? each : tiles - t;
        if (block && full < each) /* padding of the last block */
            memset(values, 0, groups * kept * sizeof *values);
        for (size_t first = 0; first < full; first += some) {
            const size_t count = first + some < full ? some : full - first, after = t + first + count;
            direct_ahead fetch = {.at = g->weights + after * bytes, .lines = (some * bytes / 64 + calls - 1) / calls};
            fetch.end = fetch.at + (after + some <= tiles ? some * bytes : 0);
            matrix_place here = {0, 0, t + first};
            vf *y = values;
            for (int more = 1; more; y += kept) {
                matrix_place next = here;
                more = matrix_step(g, &next, P);
                if (!more)
                    next = (matrix_place){0, 0, after < tiles ? after : 0};
                for (size_t k = 0; k < count; k++) {
                    vf s[DIRECT_PIXELS][DIRECT_TILES];
                    matrix_place pass = here, follows = here;
                    pass.t += k;
                    follows.t += k + 1;
                    matrix_sums(g, call, &now, pass, k + 1 < count ? follows : next, P, &fetch, s);
                    direct_finish(g, to, here.line * g->line + here.x, pass.t, P, 1, B, residual, half, block, relu, s);
                    if (block)
                        direct_keep((int)(first + k), P, 1, B, W, s, y);
                }
                here = next;
            }
        }
        direct_later later = {.codes = NULL};
        matrix_place at = {0, 0, 0};
        const vf *y = values;
        for (int more = block; more; more = matrix_step(g, &at, P), y += kept) {
            direct_flush(to, &later, P, 1, B, W, relu);
            direct_scales(to, y, at.line * g->line + at.x, t * 16, P, 1, B, W, relu, &later);
        }
        if (block)
            direct_flush(to, &later, P, 1, B, W, relu);
    }
}

INLINE void direct_tiles(const bw_direct *g, const direct_end *to, const int P, const size_t I, const size_t B,
                         const size_t W, const side_kind residual, const int half, const int block, const int relu)
{
    (void)I;
    const size_t groups = (g->line + (size_t)P - 1) / (size_t)P * (g->pixels / g->line);
    const size_t bytes = g->blocks * 16 * g->block;
    matrix_call call;
    matrix_list(g, call.blocks);
    size_t some = (size_t)PASSES(W);
    while (some > 1 && some * bytes > WEIGHTS_CACHED)
        some /= 2;
    if (some == (size_t)PASSES(W) || !g->overlap)
        matrix_by_pixels(g, to, &call, P, B, W, residual, half, block, relu, groups);
    else
        matrix_by_tiles(g, to, &call, P, B, W, residual, half, block, relu, groups, some);
}

DEFINE(14, 0, 128)
DEFINE(14, 0, 64)
DEFINE(14, 0, 32)
DEFINE(16, 0, 128)
DEFINE(16, 0, 64)
DEFINE(16, 0, 32)

static void configure(size_t pixels, size_t block)
{
    const size_t codes = block < PRODUCT_CODES ? block : PRODUCT_CODES;
    tile_config to = {.palette = 1};
    to.rows[SUMS] = to.rows[CODES] = to.rows[MORE_CODES] = (uint8_t)pixels;
    to.rows[WEIGHTS] = to.rows[MORE_WEIGHTS] = (uint8_t)(codes / 4);
    to.row_bytes[CODES] = to.row_bytes[MORE_CODES] = (uint16_t)codes;
    to.row_bytes[SUMS] = to.row_bytes[WEIGHTS] = to.row_bytes[MORE_WEIGHTS] = 64;
    _tile_loadconfig(&to);
}

void bw_direct_amx(const bw_direct *g)
{
    static const direct_set *const sets[2][3] = {{&set_14_0_32, &set_14_0_64, &set_14_0_128},
                                                 {&set_16_0_32, &set_16_0_64, &set_16_0_128}};
    const size_t n = g->line;
    const int sixteen = n >= 16 && (n + 15) / 16 * 16 <= (n + 13) / 14 * 14;
    configure(sixteen ? 16 : 14, g->block);
    direct_run(g, sets[sixteen][g->out_block == 128 ? 2 : g->out_block == 64]);
    _tile_release();
}
