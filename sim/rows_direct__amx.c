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

/* Operand of LDTILECFG. */
typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

/* What the products are of that come next. */
typedef struct matrix_walk {
    const uint8_t *codes; /* of the first pixel */
    const int8_t *weights;
    const bw_dot_run *run;
    size_t left; /* of the run */
    size_t at;   /* in the pixel's window, in blocks */
    bw_fill fill;
    int now; /* which sums are made */
    _Alignas(64) int32_t sums[2][DIRECT_PIXELS * 16];
} matrix_walk;

/* To the first block of pixels from p on and tile t. */
INLINE void matrix_begin(const bw_direct *g, matrix_walk *to, size_t p, size_t t)
{
    to->codes = g->codes + p * g->code_step;
    to->weights = g->weights + t * g->blocks * 16 * g->block;
    to->run = g->runs;
    to->left = g->runs->blocks;
    to->at = g->runs->at;
    to->fill = g->fill;
}

/* Multiplies the next block. Returns where it is in the window. */
INLINE size_t matrix_multiply(const bw_direct *g, matrix_walk *to)
{
    const size_t at = to->at, fours = bw_fill_next(&to->fill, g->block);
    const uint8_t *codes = to->codes + at * g->block;
    const int8_t *weights = to->weights;
    to->now ^= 1;
    _tile_zero(SUMS);
    _tile_loadd(CODES, codes, g->code_step);
    _tile_loadd(WEIGHTS, weights, 64);
    _tile_dpbssd(SUMS, CODES, WEIGHTS);
    if (fours > PRODUCT_FOURS) {
        _tile_loadd(MORE_CODES, codes + PRODUCT_CODES, g->code_step);
        _tile_loadd(MORE_WEIGHTS, weights + PRODUCT_WEIGHT, 64);
        _tile_dpbssd(SUMS, MORE_CODES, MORE_WEIGHTS);
    }
    _tile_stored(SUMS, to->sums[to->now], 64);
    to->weights += 16 * g->block;
    to->at++;
    if (--to->left == 0) {
        to->run++;
        if (to->run < g->runs + g->run_count) {
            to->left = to->run->blocks;
            to->at = to->run->at;
        }
    }
    return at;
}

/* A place among the passes: first pixel, tile. */
typedef struct matrix_place {
    size_t p, t;
} matrix_place;

/* The sums of tile t for P pixels from p on. The first block has been multiplied: it is at *at. So is that of the next
 * pass, `next`, when this returns. */
INLINE void matrix_sums(const bw_direct *g, matrix_place here, matrix_place next, const int P, matrix_walk *walk,
                        size_t *at, direct_ahead *fetch, vf s[DIRECT_PIXELS][DIRECT_TILES])
{
    const vf start = g->bias ? v_load(g->bias + here.t * 16) : v_set(0.0f);
    const int32_t *scale = g->scale + here.p * g->scale_step;
    const uint8_t *exps = (const uint8_t *)g->weight_exps + here.t * g->blocks * 16;
    const int8_t *ahead = fetch->at;
#pragma GCC unroll 16
    for (int p = 0; p < P; p++)
        s[p][0] = start;
    for (size_t left = g->blocks; left; left--, exps += 16) {
        const int32_t *ea = scale + *at, *d = walk->sums[walk->now];
        if (left == 1)
            matrix_begin(g, walk, next.p, next.t);
        ahead = fetch_lines(ahead, fetch->end, fetch->lines);
        *at = matrix_multiply(g, walk);
        const vi e = v_load_s8(exps) << 23;
#pragma GCC unroll 16
        for (int p = 0; p < P; p++) {
            const vi both = e + (vi)_mm512_set1_epi32(ea[(size_t)p * g->scale_step]);
            s[p][0] = v_fma(v_float((vi)_mm512_load_si512(d + 16 * p)), (vf)both, s[p][0]);
        }
    }
    fetch->at = ahead;
}

/* Whole blocks of the output of P pixels. Inlined with constant P, B, W and kinds, as all below. */
INLINE void matrix_group(const bw_direct *g, const direct_end *to, matrix_place here, matrix_place next, const int P,
                         const size_t B, const size_t W, const side_kind residual, const int half, const int block,
                         const int relu, matrix_walk *walk, size_t *at, direct_ahead *fetch, direct_later *later)
{
    const int passes = PASSES(W), tiles = (int)((g->n - here.t * 16 + 15) / 16), full = tiles < passes ? tiles : passes;
    for (int pass = 0; pass < passes; pass++) {
        vf s[DIRECT_PIXELS][DIRECT_TILES];
        if (pass < full) {
            const matrix_place place = {here.p, here.t + (size_t)pass}, after = {here.p, place.t + 1};
            matrix_sums(g, place, pass + 1 < full ? after : next, P, walk, at, fetch, s);
            direct_finish(g, to, here.p, place.t, P, 1, B, residual, half, block, relu, s);
        } else {
#pragma GCC unroll 16
            for (int p = 0; p < P; p++)
                s[p][0] = v_set(0.0f);
        }
        if (block && later->codes)
            direct_codes(to, later, P * pass / passes, P * (pass + 1) / passes, P, 1, B, W, relu);
        if (block)
            direct_keep(pass, P, 1, B, W, s, later);
    }
    if (block)
        direct_scales(to, here.p, here.t * 16, P, 1, B, W, relu, later);
}

INLINE void direct_tiles(const bw_direct *g, const direct_end *to, const int P, const size_t I, const size_t B,
                         const size_t W, const side_kind residual, const int half, const int block, const int relu)
{
    (void)I;
    const size_t tiles = (g->n + 15) / 16, step = (size_t)P, at_once = g->all_at_once ? g->pixels : step;
    const size_t each = (size_t)PASSES(W), bytes = each * g->blocks * 16 * g->block;
    const size_t calls = (at_once + step - 1) / step * each * g->blocks;
    direct_later later = {.codes = NULL};
    matrix_walk walk = {.now = 0};
    matrix_begin(g, &walk, 0, 0);
    size_t at = matrix_multiply(g, &walk);
    for (size_t from = 0; from < g->pixels; from += at_once)
        for (size_t t = 0; t < tiles; t += each) {
            const int8_t *after = g->weights + (t / each + 1) * bytes;
            direct_ahead fetch = {.at = after, .end = after};
            if (g->all_at_once && t + 2 * each <= tiles)
                fetch = (direct_ahead){.at = after, .end = after + bytes, .lines = (bytes / 64 + calls - 1) / calls};
            for (size_t p = from; p < from + at_once && p < g->pixels; p += step) {
                /* Some of the last ones are done twice. What comes after the very last is made and not used. */
                matrix_place here = {p, t}, next = {p + step, t};
                if (next.p >= from + at_once || next.p >= g->pixels)
                    next = t + each < tiles ? (matrix_place){from, t + each} : (matrix_place){from + at_once, 0};
                next.p = next.p >= g->pixels ? 0 : next.p;
                next.p = next.p + step > g->pixels ? g->pixels - step : next.p;
                here.p = p + step > g->pixels ? g->pixels - step : p;
                matrix_group(g, to, here, next, P, B, W, residual, half, block, relu, &walk, &at, &fetch, &later);
            }
        }
    if (block)
        direct_flush(to, &later, P, 1, B, W, relu);
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
    const size_t n = g->pixels;
    const int sixteen = n >= 16 && (n + 15) / 16 * 16 <= (n + 13) / 14 * 14;
    configure(sixteen ? 16 : 14, g->block);
    direct_run(g, sets[sixteen][g->out_block == 128 ? 2 : g->out_block == 64]);
    _tile_release();
}
