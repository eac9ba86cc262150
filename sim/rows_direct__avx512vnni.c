/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CONV of one kernel call (bw_direct in sim/fast.h), AVX-512 VNNI. The sums of 7 or 8 neighbouring pixels x 32 outputs
 * stay in registers from the bias to the result. Sums are those of dot_bytes.h: see there for what `sums` holds.
 * Here every pixel takes the fused multiply-add, which needs the fewest operations: where reductions are short the ends
 * weigh more than the balance between pipes.
 */
#include "sim/rows_avx512.h"

/*
 * Most pixels and tiles of a pass. A group has whole blocks of the output, B, and W channels of each pixel: one block,
 * or two of 64. It is made in one pass of two tiles for blocks of 16 and 32, two for 64 channels, four for 128; the
 * weights of a pass should lie in the first cache while all its pixels meet them. With I = 16, which is for blocks of
 * 16 on both sides, the weights of a block stay in registers for all pixels; else the pixels' integer sums do, and the
 * input's blocks are of any length.
 */
#define DIRECT_PIXELS 8
#define DIRECT_TILES  2
#define PASSES(W)     ((W) >= 64 ? (int)(W) / 32 : 1)

/* What the next passes read, fetched meanwhile: with each block `lines` of 64 bytes of the weights and one of their
 * sums. */
typedef struct direct_ahead {
    const int8_t *at, *end, *sums, *sums_end;
    size_t lines;
} direct_ahead;

INLINE __m512i broadcast_codes(const uint8_t *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm512_set1_epi32(v);
}

INLINE const int8_t *fetch_lines(const int8_t *at, const int8_t *end, size_t lines)
{
    for (; lines && at < end; lines--, at += 64)
        _mm_prefetch((const char *)at, _MM_HINT_T1);
    return at;
}

/* The sums of T tiles from tile number t on for P pixels from `codes`, `scale` on. Inlined with constant P, T, I and
 * is_signed. */
INLINE void direct_sums(const bw_direct *g, const uint8_t *codes, const int32_t *scale, size_t t, const int P,
                        const int T, const size_t I, const int is_signed, direct_ahead *fetch,
                        vf s[DIRECT_PIXELS][DIRECT_TILES])
{
    const size_t B = I == 16 ? 16 : g->block;
    const size_t code_step = g->code_step, scale_step = g->scale_step, w_step = g->blocks * 16 * B;
    const size_t q_block = is_signed ? 32 : 16, q_step = g->blocks * q_block;
    const int8_t *w = g->weights + t * w_step;
    const int32_t *q = g->sums + t * q_step, *firsts = is_signed ? q + 16 : q;
    const int8_t *ahead = fetch->at, *sums_ahead = fetch->sums;
    bw_fill fill = g->fill;
#pragma GCC unroll 4
    for (int i = 0; i < T; i++) {
        const vf start = g->bias ? v_load(g->bias + (t + (size_t)i) * 16) : v_set(0.0f);
#pragma GCC unroll 8
        for (int p = 0; p < P; p++)
            s[p][i] = start;
    }
    for (size_t r = 0; r < g->run_count; r++) {
        const uint8_t *a = codes + g->runs[r].at * B;
        const float *ea = (const float *)(const void *)scale + g->runs[r].at;
        for (size_t left = g->runs[r].blocks; left;
             left--, a += B, ea++, w += 16 * B, q += q_block, firsts += q_block) {
            ahead = fetch_lines(ahead, fetch->end, fetch->lines);
            sums_ahead = fetch_lines(sums_ahead, fetch->sums_end, 1);
            __m512i first[DIRECT_TILES];
#pragma GCC unroll 4
            for (int i = 0; i < T; i++)
                first[i] = _mm512_loadu_si512(firsts + (size_t)i * q_step);
            if (I == 16) {
                vf base[2];
#pragma GCC unroll 4
                for (int i = 0; i < T; i++)
                    base[i] = v_load((const float *)(const void *)(q + (size_t)i * q_step));
                __m512i v[2][4];
#pragma GCC unroll 4
                for (int i = 0; i < T; i++)
#pragma GCC unroll 4
                    for (int k = 0; k < 4; k++)
                        v[i][k] = _mm512_loadu_si512(w + (size_t)i * w_step + 64 * k);
#pragma GCC unroll 8
                for (int p = 0; p < P; p++) {
                    __m512i d[2];
#pragma GCC unroll 4
                    for (int i = 0; i < T; i++)
                        d[i] = first[i];
#pragma GCC unroll 4
                    for (int k = 0; k < 4; k++) {
                        const __m512i x = broadcast_codes(a + (size_t)p * code_step + 4 * k);
#pragma GCC unroll 4
                        for (int i = 0; i < T; i++)
                            d[i] = _mm512_dpbusd_epi32(d[i], x, v[i][k]);
                    }
#pragma GCC unroll 4
                    for (int i = 0; i < T; i++)
                        s[p][i] = v_fma((vf)d[i] - base[i], v_set(ea[(size_t)p * scale_step]), s[p][i]);
                }
                continue;
            }
            __m512i d[DIRECT_PIXELS][DIRECT_TILES];
            const int32_t *bases = q;
            __asm__("" : "+r"(bases)); /* else compilers keep what they loaded before, and spill */
#pragma GCC unroll 8
            for (int p = 0; p < P; p++)
#pragma GCC unroll 4
                for (int i = 0; i < T; i++)
                    d[p][i] = first[i];
            const size_t fours =
                bw_fill_next(&fill, B); /* good too that the length is not known: compilers would spill */
#pragma GCC unroll 8
            for (size_t k = 0; k < fours; k++) {
                __m512i v[DIRECT_TILES];
#pragma GCC unroll 4
                for (int i = 0; i < T; i++)
                    v[i] = _mm512_loadu_si512(w + (size_t)i * w_step + 64 * k);
#pragma GCC unroll 8
                for (int p = 0; p < P; p++) {
                    const __m512i x = broadcast_codes(a + (size_t)p * code_step + 4 * k);
#pragma GCC unroll 4
                    for (int i = 0; i < T; i++)
                        d[p][i] = _mm512_dpbusd_epi32(d[p][i], x, v[i]);
                }
            }
#pragma GCC unroll 4
            for (int i = 0; i < T; i++) {
                const vf base = v_load((const float *)(const void *)(bases + (size_t)i * q_step));
#pragma GCC unroll 8
                for (int p = 0; p < P; p++)
                    s[p][i] = v_fma((vf)d[p][i] - base, v_set(ea[(size_t)p * scale_step]), s[p][i]);
            }
        }
    }
    fetch->at = ahead;
    fetch->sums = sums_ahead;
}

#define ANY SIDE_LINES /* a residual of whatever kind, or none */

/* What the end of a call needs to know, resolved once. */
typedef struct direct_end {
    side b, half, block; /* residual; outputs in fp16 and in blocks */
} direct_end;

/* Vectors of a pixel, and blocks that those of T tiles belong to. */
#define KEPT(W)         ((W) >= 64 ? (int)(W) / 16 : 2)
#define BLOCKS(T, B, W) ((B) == 16 ? (T) : (B) >= 64 ? (int)((W) / (B)) : 1)

/* Of two groups their values: of one that is being made, and of the one before, whose codes are made when some of the
 * next one's sums are complete. By then its scales are there, and what waits for them does not keep multiplications out
 * of the CPU's window. */
typedef struct direct_later {
    vf y[2][7 * 8]; /* by pixel, KEPT each; of short blocks (8 * 2) only the first, replaced when its codes are made */
    _Alignas(64) float scales[16]; /* 2^-e of the one before */
    int now;                       /* the one that is being made */
    uint8_t *codes;                /* of the one before, its first pixel; NULL: nothing is left to do */
    int over;
} direct_later;

/* Finds and writes the exponents of the group that has been made, which becomes the one before. p, c: first pixel and
 * channel. */
INLINE void direct_scales(const direct_end *to, size_t p, size_t c, const int P, const int T, const size_t B,
                          const size_t W, const int relu, direct_later *later)
{
    const int kept = KEPT(W), each = BLOCKS(T, B, W), per = (int)B / 16, count = P * each;
    const int magnitude = magnitude_bits(relu);
    const vf *y = later->y[W >= 64 ? later->now : 0];
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
#pragma GCC unroll 8
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
    later->over = over;
    later->now ^= 1;
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
    const vf *all = later->y[W >= 64 ? later->now ^ 1 : 0];
#pragma GCC unroll 4
    for (int next = first; next < end; next += some) {
        const int i = next + some > P ? P - some : next; /* some of the last ones are done twice */
        uint8_t buffer[128], *codes = to_first + (size_t)i * step;
        vf y[8];
#pragma GCC unroll 8
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
                        vf s[DIRECT_PIXELS][DIRECT_TILES], direct_later *later)
{
    vf *y = later->y[W >= 64 ? later->now : 0] + 2 * pass;
#pragma GCC unroll 8
    for (int i = 0; i < P; i++, y += KEPT(W)) {
#pragma GCC unroll 4
        for (int k = 0; k < T; k++)
            y[k] = s[i][k];
        if (B == 32 && T == 1)
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
    const int whole = B >= 64 || left >= (size_t)T * 16;
    if (residual == SIDE_FP16 && whole) {
        const uint8_t *b = to->b.first.codes + p * to->b.code_pixel + c * 2;
#pragma GCC unroll 8
        for (int i = 0; i < P; i++, b += to->b.code_pixel)
#pragma GCC unroll 4
            for (int k = 0; k < T; k++)
                s[i][k] += v_half_to_float((const uint16_t *)(const void *)b + 16 * k);
    } else if (residual != SIDE_NONE && to->b.kind != SIDE_NONE) {
        const size_t bytes = to->b.traits->device_bytes;
#pragma GCC unroll 8
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
#pragma GCC unroll 8
        for (int i = 0; i < P; i++)
#pragma GCC unroll 4
            for (int k = 0; k < T; k++)
                s[i][k] = v_max(lo, v_min(hi, s[i][k]));
    }
    if (half) {
        uint8_t *at = to->half.first.codes + p * to->half.code_pixel + c * 2;
#pragma GCC unroll 8
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
#pragma GCC unroll 8
        for (int i = 0; i < P; i++)
            s[i][T - 1] = v_keep(s[i][T - 1], left - 16 * (size_t)(T - 1));
    }
}

/* Whole blocks of the output of P pixels, from tile t on. Inlined with constant P, T, I, B and kinds, as all below. */
INLINE void direct_group(const bw_direct *g, const direct_end *to, size_t p, size_t t, const int P, const int T,
                         const size_t I, const size_t B, const size_t W, const side_kind residual, const int half,
                         const int block, const int relu, direct_ahead *fetch, direct_later *later)
{
    const uint8_t *codes = g->codes + p * g->code_step;
    const int32_t *scale = g->scale + p * g->scale_step;
    for (int pass = 0; pass < PASSES(W); pass++) {
        const size_t at = t + 2 * (size_t)pass;
        vf s[DIRECT_PIXELS][DIRECT_TILES];
        if (B < 128 || at * 16 < g->n) {
            if (g->is_signed)
                direct_sums(g, codes, scale, at, P, T, I, 1, fetch, s);
            else
                direct_sums(g, codes, scale, at, P, T, I, 0, fetch, s);
            direct_finish(g, to, p, at, P, T, B, residual, half, block, relu, s);
        } else {
#pragma GCC unroll 8
            for (int i = 0; i < P; i++)
                s[i][0] = s[i][1] = v_set(0.0f);
        }
        if (block && later->codes)
            direct_codes(to, later, P * pass / PASSES(W), P * (pass + 1) / PASSES(W), P, T, B, W, relu);
        if (block)
            direct_keep(pass, P, T, B, W, s, later);
    }
    if (block)
        direct_scales(to, p, t * 16, P, T, B, W, relu, later);
}

/* All pixels, all tiles. If a tile meets all pixels before the next does, the next one's weights are fetched meanwhile.
 */
INLINE void direct_tiles(const bw_direct *g, const direct_end *to, const int P, const size_t I, const size_t B,
                         const size_t W, const side_kind residual, const int half, const int block, const int relu)
{
    const size_t tiles = (g->n + 15) / 16, step = (size_t)P, at_once = g->all_at_once ? g->pixels : step;
    const size_t next = 2 * (size_t)PASSES(W), bytes = next * g->blocks * 16 * g->block;
    const size_t calls = (at_once + step - 1) / step * (size_t)PASSES(W) * g->blocks;
    const size_t sum_step = g->blocks * (g->is_signed ? 32 : 16), sum_bytes = next * sum_step * sizeof(int32_t);
    direct_later later = {.codes = NULL};
    for (size_t from = 0; from < g->pixels; from += at_once)
        for (size_t t = 0; t < tiles; t += next) {
            const int8_t *after = g->weights + (t / next + 1) * bytes;
            direct_ahead fetch = {.at = after, .end = after};
            if (g->all_at_once && t + 2 * next <= tiles) {
                const int8_t *sums = (const int8_t *)(g->sums + (t + next) * sum_step);
                fetch = (direct_ahead){after, after + bytes, sums, sums + sum_bytes, (bytes / 64 + calls - 1) / calls};
            }
            const int alone = B < 64 && t + 1 == tiles;
            if (block && alone)
                direct_flush(to, &later, P, 2, B, W, relu);
            for (size_t p = from; p < from + at_once && p < g->pixels; p += step) {
                /* Some of the last ones are done twice. */
                const size_t at = p + step > g->pixels ? g->pixels - step : p;
                if (alone)
                    direct_group(g, to, at, t, P, 1, I, B, W, residual, half, block, relu, &fetch, &later);
                else
                    direct_group(g, to, at, t, P, 2, I, B, W, residual, half, block, relu, &fetch, &later);
            }
            if (block && alone)
                direct_flush(to, &later, P, 1, B, W, relu);
        }
    if (block)
        direct_flush(to, &later, P, 2, B, W, relu);
}

INLINE void direct_all(const bw_direct *g, const direct_end *to, const int P, const size_t I, const size_t B,
                       const size_t W, const side_kind residual, const int half, const int block)
{
    if (g->activation->kind == BW_ACT_RELU)
        direct_tiles(g, to, P, I, B, W, residual, half, block, 1);
    else
        direct_tiles(g, to, P, I, B, W, residual, half, block, 0);
}

typedef void (*direct_fn)(const bw_direct *g, const direct_end *to);

/* The common ends: one output alone, or a residual in fp16 and blocks; and one for the rest. */
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

DEFINE(7, 0, 128)
DEFINE(7, 0, 64)
DEFINE(7, 0, 32)
DEFINE(7, 0, 16)
DEFINE(7, 16, 16)
DEFINE(8, 16, 16)

/* Two blocks of 64 at a time: the chains that find their scales are side by side. */
DEFINE_BLOCK(7, 0, 64, 128)
static const direct_set set_7_0_twice_64 = SET(7, 0, 64, 128);

static const direct_set *choose_set(const bw_direct *g, size_t out)
{
    if (g->block == 16 && out == 16)
        return (g->pixels + 6) / 7 * 7 < (g->pixels + 7) / 8 * 8 ? &set_7_16_16 : &set_8_16_16;
    if (out == 64)
        return g->n % 128 ? &set_7_0_64 : &set_7_0_twice_64;
    return out == 16 ? &set_7_0_16 : out == 32 ? &set_7_0_32 : &set_7_0_128;
}

void bw_direct_avx512vnni(const bw_direct *g)
{
    const side outs[2] = {side_of(&g->out[0], 16, 1), side_of(&g->out[1], 16, 1)};
    direct_end to = {.b = side_of(&g->b, 16, 0), .half = {.kind = SIDE_NONE}, .block = {.kind = SIDE_NONE}};
    for (int i = 0; i < 2; i++)
        if (outs[i].kind == SIDE_FP16)
            to.half = outs[i];
        else if (outs[i].kind != SIDE_NONE)
            to.block = outs[i];
    const int half = to.half.kind != SIDE_NONE, block = to.block.kind != SIDE_NONE;
    const direct_set *set = choose_set(g, g->out_block);
    direct_fn run = set->any;
    if (to.b.kind == SIDE_NONE && half != block)
        run = half ? set->half : set->block;
    else if (to.b.kind == SIDE_FP16 && block)
        run = half ? set->residual_both : set->residual_block;
    run(g, &to);
}
