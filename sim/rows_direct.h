/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The end of CONV of one kernel call (bw_direct in sim/fast.h), AVX-512: what becomes of sums in registers. Included by
 * rows_direct__avx512vnni.c and rows_direct__amx.c, which make the sums, after they have defined
 *   DIRECT_PIXELS, DIRECT_TILES   most pixels and tiles of a pass; of several tiles, channels are a multiple of 64 from
 *                                 blocks of 64 on
 * A group has whole blocks of the output, B, and W channels of each pixel, made in one pass or, from 64 channels on, as
 * many as it takes.
 */
#include "sim/rows_avx512.h"

#define PASSES(W) ((W) > 16 * DIRECT_TILES ? (int)(W) / (16 * DIRECT_TILES) : 1)

/* What the next passes read, fetched meanwhile: with each block `lines` of 64 bytes of the weights and one of their
 * sums. */
typedef struct direct_ahead {
    const int8_t *at, *end, *sums, *sums_end;
    size_t lines;
} direct_ahead;

INLINE const int8_t *fetch_lines(const int8_t *at, const int8_t *end, size_t lines)
{
    for (; lines && at < end; lines--, at += 64)
        _mm_prefetch((const char *)at, _MM_HINT_T1);
    return at;
}

#define ANY SIDE_LINES /* a residual of whatever kind, or none */

/* What the end of a call needs to know, resolved once. */
typedef struct direct_end {
    side b, half, block, single; /* residual; outputs in fp16, in blocks and in fp32 */
} direct_end;

/* Vectors of a pixel, and blocks that those of T tiles belong to. */
#define KEPT(W)         ((W) >= 64 ? (int)(W) / 16 : 2)
#define BLOCKS(T, B, W) ((B) == 16 ? (T) : (B) >= 64 ? (int)((W) / (B)) : 1)

/* A group whose codes are still to be made: that is done when some of the next one's sums are complete. By then its
 * scales are there, and what waits for them does not keep multiplications out of the CPU's window. */
typedef struct direct_later {
    const vf *y;                                  /* its values by pixel, KEPT each */
    _Alignas(64) float scales[2 * DIRECT_PIXELS]; /* 2^-e */
    uint8_t *codes;                               /* to here, first pixel; NULL: nothing is left to do */
    int over;
} direct_later;

/* Finds and writes the exponents of a group that has been made, whose codes are left to do. p, c: first pixel and
 * channel. */
INLINE void direct_scales(const direct_end *to, const vf *y, size_t p, size_t c, const int P, const int T,
                          const size_t B, const size_t W, const int relu, direct_later *later)
{
    const int kept = KEPT(W), each = BLOCKS(T, B, W), per = (int)B / 16, count = P * each;
    const int magnitude = magnitude_bits(relu);
    const size_t step = to->block.exp_pixel; /* exponents are bytes, which may be anything to compilers */
    int8_t *first = to->block.first.exps + p * step + c / B;
    int over = 0;
#pragma GCC unroll 4
    for (int next = 0; next < count; next += 4) {
        const int b = next + 4 > count ? count - 4 : next; /* some of the last ones are done twice */
        vi m[4];
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            const vf *from = y + (b + k) / each * kept + (b + k) % each * per;
            m[k] = (vi)from[0] & magnitude;
#pragma GCC unroll 16
            for (int i = 1; i < per; i++)
                m[k] = v_max_int(m[k], (vi)from[i] & magnitude);
        }
        int32_t bytes;
        over |= four_scales(&to->block, relu, m[0], m[1], m[2], m[3], &bytes, later->scales + b);
        int8_t *exps = first + (size_t)(b / each) * step;
#pragma GCC unroll 4
        for (int k = 0; k < 4; k += each, exps += step) {
            const int32_t some = bytes >> 8 * k;
            memcpy(exps, &some, (size_t)each);
        }
    }
    later->y = y;
    later->over = over;
    later->codes = to->block.first.codes + p * to->block.code_pixel + c;
}

/* Writes codes that are left to do: those of pixels first .. end - 1. */
INLINE void direct_codes(const direct_end *to, const direct_later *later, int first, int end, const int P, const int T,
                         const size_t B, const size_t W, const int relu)
{
    const int kept = KEPT(W), each = BLOCKS(T, B, W), per = B == 16 ? T : kept;
    const int some = per >= 4 ? 1 : 4 / per; /* pixels whose codes fill vectors */
    const size_t bytes = 16 * (size_t)per, step = to->block.code_pixel;
    uint8_t *to_first = later->codes;
    const int over = later->over;
    const vf *all = later->y;
#pragma GCC unroll 4
    for (int next = first; next < end; next += some) {
        const int i = next + some > P ? P - some : next; /* some of the last ones are done twice */
        uint8_t buffer[128], *codes = to_first + (size_t)i * step;
        vf y[8];
#pragma GCC unroll 16
        for (int k = 0; k < some * per; k++)
            y[k] = all[(i + k / per) * kept + k % per];
        write_codes(&to->block, (int)B, some * per, relu, y, later->scales + i * each, over, buffer);
#pragma GCC unroll 4
        for (size_t k = 0; k < (size_t)some; k++, codes += step)
            memcpy(codes, buffer + bytes * k, bytes);
    }
}

INLINE void direct_flush(const direct_end *to, direct_later *later, const int P, const int T, const size_t B,
                         const size_t W, const int relu)
{
    if (later->codes)
        direct_codes(to, later, 0, P, P, T, B, W, relu);
    later->codes = NULL;
}

/* Keeps the values of a pass. */
INLINE void direct_keep(int pass, const int P, const int T, const size_t B, const size_t W,
                        vf s[DIRECT_PIXELS][DIRECT_TILES], vf *y)
{
    y += DIRECT_TILES * pass;
#pragma GCC unroll 16
    for (int i = 0; i < P; i++, y += KEPT(W)) {
#pragma GCC unroll 4
        for (int k = 0; k < T; k++)
            y[k] = s[i][k];
        if (B == 32 && T < DIRECT_TILES)
            y[1] = v_set(0.0f);
    }
}

/* Residual, activation, the output in fp16, and the padding of the one in blocks. p: number of the first pixel.
 * residual: SIDE_NONE, SIDE_FP16, or any other; relu: the activation is one. Inlined with constant T and kinds. */
INLINE void direct_finish(const bw_direct *g, const direct_end *to, size_t p, size_t t, const int P, const int T,
                          const size_t B, const side_kind residual, const int half, const int block, const int relu,
                          vf s[DIRECT_PIXELS][DIRECT_TILES])
{
    const size_t c = t * 16, left = g->n - c; /* channels from here on */
    const int whole = (DIRECT_TILES > 1 && B >= 64) || left >= (size_t)T * 16;
    if (residual == SIDE_FP16 && whole) {
        const uint8_t *b = to->b.first.codes + p * to->b.code_pixel + c * 2;
#pragma GCC unroll 16
        for (int i = 0; i < P; i++, b += to->b.code_pixel)
#pragma GCC unroll 4
            for (int k = 0; k < T; k++)
                s[i][k] += v_half_to_float((const uint16_t *)(const void *)b + 16 * k);
    } else if (residual != SIDE_NONE && to->b.kind != SIDE_NONE) {
        const size_t bytes = to->b.traits->device_bytes;
#pragma GCC unroll 16
        for (int i = 0; i < P; i++)
#pragma GCC unroll 4
            for (int k = 0; k < T; k++) {
                const size_t at = p + (size_t)i, from = c + 16 * (size_t)k;
                const spot b =
                    moved(to->b.first, at * to->b.code_pixel + from * bytes, at * to->b.exp_pixel + from / to->b.block);
                s[i][k] += read_vector(&to->b, b, g->n - from);
            }
    }
    if (!relu && g->activation->kind != BW_ACT_NONE) {
        const vf lo = v_set(g->activation->lo), hi = v_set(g->activation->hi);
#pragma GCC unroll 16
        for (int i = 0; i < P; i++)
#pragma GCC unroll 4
            for (int k = 0; k < T; k++)
                s[i][k] = v_max(lo, v_min(hi, s[i][k]));
    }
    if (residual == ANY && to->single.kind != SIDE_NONE) {
        uint8_t *at = to->single.first.codes + p * to->single.code_pixel + c * 4;
#pragma GCC unroll 16
        for (int i = 0; i < P; i++, at += to->single.code_pixel)
#pragma GCC unroll 4
            for (int k = 0; k < T; k++) {
                const size_t n = left - 16 * (size_t)k;
                const __m512 y = (__m512)(relu ? v_max(s[i][k], v_set(0.0f)) : s[i][k]);
                _mm512_mask_storeu_ps(at + 64 * k, whole || n >= 16 ? (__mmask16)-1 : lanes_below(n), y);
            }
    }
    if (half) {
        uint8_t *at = to->half.first.codes + p * to->half.code_pixel + c * 2;
#pragma GCC unroll 16
        for (int i = 0; i < P; i++, at += to->half.code_pixel)
#pragma GCC unroll 4
            for (int k = 0; k < T; k++) {
                const vh h = relu ? to_fp16_relu(s[i][k]) : to_fp16(s[i][k]);
                const size_t n = left - 16 * (size_t)k;
                if (whole || n >= 16)
                    v_store_half((uint16_t *)(void *)at + 16 * k, h);
                else
                    _mm256_mask_storeu_epi16(at + 32 * k, lanes_below(n), h);
            }
    }
    if (block && !whole) {
#pragma GCC unroll 16
        for (int i = 0; i < P; i++)
            s[i][T - 1] = v_keep(s[i][T - 1], left - 16 * (size_t)(T - 1));
    }
}

/* All pixels, all tiles: the includer's. I: of use to it alone. Inlined with constant P, I, B, W and kinds. */
INLINE void direct_tiles(const bw_direct *g, const direct_end *to, const int P, const size_t I, const size_t B,
                         const size_t W, const side_kind residual, const int half, const int block, const int relu);

INLINE void direct_all(const bw_direct *g, const direct_end *to, const int P, const size_t I, const size_t B,
                       const size_t W, const side_kind residual, const int half, const int block)
{
    if (g->activation->kind == BW_ACT_RELU)
        direct_tiles(g, to, P, I, B, W, residual, half, block, 1);
    else
        direct_tiles(g, to, P, I, B, W, residual, half, block, 0);
}

typedef void (*direct_fn)(const bw_direct *g, const direct_end *to);

/* The common ends: one output alone, in fp16 or blocks, or a residual in fp16 and blocks; and one for the rest. */
typedef struct direct_set {
    direct_fn half, block, residual_block, residual_both, any;
} direct_set;

/* Ends in blocks, of W channels at a time. */
#define DEFINE_BLOCK(P, I, B, W)                                                                                       \
    static void block_##P##_##I##_##B##_##W(const bw_direct *g, const direct_end *to)                                  \
    {                                                                                                                  \
        direct_all(g, to, P, I, B, W, SIDE_NONE, 0, 1);                                                                \
    }                                                                                                                  \
    static void residual_block_##P##_##I##_##B##_##W(const bw_direct *g, const direct_end *to)                         \
    {                                                                                                                  \
        direct_all(g, to, P, I, B, W, SIDE_FP16, 0, 1);                                                                \
    }                                                                                                                  \
    static void residual_both_##P##_##I##_##B##_##W(const bw_direct *g, const direct_end *to)                          \
    {                                                                                                                  \
        direct_all(g, to, P, I, B, W, SIDE_FP16, 1, 1);                                                                \
    }

#define DEFINE(P, I, B)                                                                                                \
    DEFINE_BLOCK(P, I, B, B)                                                                                           \
    static void half_##P##_##I##_##B(const bw_direct *g, const direct_end *to)                                         \
    {                                                                                                                  \
        direct_all(g, to, P, I, B, B, SIDE_NONE, 1, 0);                                                                \
    }                                                                                                                  \
    static void any_##P##_##I##_##B(const bw_direct *g, const direct_end *to)                                          \
    {                                                                                                                  \
        direct_all(g, to, P, I, B, B, ANY, to->half.kind != SIDE_NONE, to->block.kind != SIDE_NONE);                   \
    }                                                                                                                  \
    static const direct_set set_##P##_##I##_##B = SET(P, I, B, B);

#define SET(P, I, B, W)                                                                                                \
    {                                                                                                                  \
        half_##P##_##I##_##B, block_##P##_##I##_##B##_##W, residual_block_##P##_##I##_##B##_##W,                       \
            residual_both_##P##_##I##_##B##_##W, any_##P##_##I##_##B                                                   \
    }

/* set: for the formats of g. */
INLINE void direct_run(const bw_direct *g, const direct_set *set)
{
    const side outs[2] = {side_of(&g->out[0], 16, 1), side_of(&g->out[1], 16, 1)};
    direct_end to = {.b = side_of(&g->b, 16, 0),
                     .half = {.kind = SIDE_NONE},
                     .block = {.kind = SIDE_NONE},
                     .single = {.kind = SIDE_NONE}};
    for (int i = 0; i < 2; i++)
        if (outs[i].kind == SIDE_FP16)
            to.half = outs[i];
        else if (outs[i].kind == SIDE_FLOAT)
            to.single = outs[i];
        else if (outs[i].kind != SIDE_NONE)
            to.block = outs[i];
    const int half = to.half.kind != SIDE_NONE, block = to.block.kind != SIDE_NONE;
    const int common = to.single.kind == SIDE_NONE;
    direct_fn run = set->any;
    if (common && to.b.kind == SIDE_NONE && half != block)
        run = half ? set->half : set->block;
    else if (common && to.b.kind == SIDE_FP16 && block)
        run = half ? set->residual_both : set->residual_block;
    run(g, &to);
}
