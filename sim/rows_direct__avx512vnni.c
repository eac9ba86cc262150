/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CONV of one kernel call (bw_direct in sim/fast.h), AVX-512 VNNI. The sums of 8 neighbouring pixels x 32 outputs stay
 * in registers from the bias to the encoded result. Sums are those of dot_bytes.h: see there for what `sums` holds.
 * Here every pixel takes the fused multiply-add, which needs the fewest operations: where reductions are short the ends
 * weigh more than the balance between pipes.
 */
#include "sim/rows_avx512.h"

/*
 * Most pixels and tiles at a time. What is made at once is a whole block of the output, B: 7 or 8 pixels x 2 tiles for
 * blocks of 16 and 32, whichever fits a row better, 3 pixels x 4 tiles for those of 64, the same twice for those of
 * 128. With I = 16, which is for blocks of 16 on both sides, the weights of a block stay in registers for all pixels;
 * else the pixels' integer sums do, and the input's blocks are of any length.
 */
#define DIRECT_PIXELS 8
#define DIRECT_TILES  4
#define TILES(B)      ((B) >= 64 ? 4 : 2)

INLINE __m512i broadcast_codes(const uint8_t *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm512_set1_epi32(v);
}

/* The sums of T tiles from tile number t on for P pixels from `codes`, `scale` on. Inlined with constant P, T, I and
 * is_signed. */
INLINE void direct_sums(const bw_direct *g, const uint8_t *codes, const int32_t *scale, size_t t, const int P,
                        const int T, const size_t I, const int is_signed, vf s[DIRECT_PIXELS][DIRECT_TILES])
{
    const size_t B = I == 16 ? 16 : g->block;
    const size_t code_step = g->code_step, scale_step = g->scale_step, w_step = g->blocks * 16 * B;
    const size_t q_block = is_signed ? 32 : 16, q_step = g->blocks * q_block;
    const int8_t *w = g->weights + t * w_step;
    const int32_t *q = g->sums + t * q_step, *firsts = is_signed ? q + 16 : q;
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
}

#define ANY SIDE_LINES /* a residual of whatever kind, or none */

/* What the end of a call needs to know, resolved once. */
typedef struct direct_end {
    side b, half, block; /* residual; outputs in fp16 and in blocks */
} direct_end;

/* Of a group: its values, and what encodes them. Codes are made when the next group's sums are complete: by then the
 * scales are there, and what waits for them does not keep that group's multiplications out of the CPU's window. */
typedef struct direct_later {
    vf y[24]; /* by pixel */
    four_factors scales[4];
    uint8_t *codes; /* of its first pixel; NULL: nothing is left to do */
    int over;
} direct_later;

/* Blocks are encoded four at a time, as that is what finding their exponents takes, or three of 64 and 128 values; a
 * block of 32 may have a tile alone, and zeros. */
#define PER(T, B)     ((B) == 16 ? (T) : (int)(B) / 16)                 /* vectors of a pixel */
#define EACH(P, T, B) ((B) >= 64 ? (P) : (B) == 16 && (T) == 2 ? 2 : 4) /* pixels at a time */
#define KEPT(T, B)    ((B) == 128 ? 8 : (T))                            /* vectors of a pixel in `y` */

/* Finds and writes the exponents of what is in `later`. p, c: first pixel and channel. */
INLINE void direct_scales(const direct_end *to, size_t p, size_t c, const int P, const int T, const size_t B,
                          const int relu, direct_later *later)
{
    const int per = PER(T, B), each = EACH(P, T, B), kept = KEPT(T, B);
    const size_t blocks = 16 * (size_t)per / B;
    later->codes = to->block.first.codes + p * to->block.code_pixel + c;
    later->over = 0;
#pragma GCC unroll 4
    for (int next = 0; next < P; next += each) {
        const int i = next + each > P ? P - each : next; /* some of the last ones are done twice */
        int8_t four[4], *exps = to->block.first.exps + (p + (size_t)i) * to->block.exp_pixel + c / B;
        vf y[24];
#pragma GCC unroll 24
        for (int k = 0; k < each * per; k++)
            y[k] = k % per < kept ? later->y[(i + k / per) * kept + k % per] : v_set(0.0f);
        later->over |= block_scales(&to->block, (int)B, each * per, relu, y, four, &later->scales[next / each]);
#pragma GCC unroll 4
        for (size_t k = 0; k < (size_t)each; k++, exps += to->block.exp_pixel)
            memcpy(exps, four + blocks * k, blocks);
    }
}

/* Writes the codes that are left to do. */
INLINE void direct_codes(const direct_end *to, direct_later *later, const int P, const int T, const size_t B,
                         const int relu)
{
    const int per = PER(T, B), each = EACH(P, T, B), kept = KEPT(T, B), some = B >= 64 ? 1 : each;
    const size_t bytes = 16 * (size_t)per;
    if (!later->codes)
        return;
#pragma GCC unroll 4
    for (int next = 0; next < P; next += some) { /* pixels whose codes fill vectors */
        const int i = next + some > P ? P - some : next;
        uint8_t buffer[128], *codes = later->codes + (size_t)i * to->block.code_pixel;
        const float *scales = B >= 64 ? later->scales[0].f + next : later->scales[next / each].f;
        vf y[8];
#pragma GCC unroll 8
        for (int k = 0; k < some * per; k++)
            y[k] = k % per < kept ? later->y[(i + k / per) * kept + k % per] : v_set(0.0f);
        write_codes(&to->block, (int)B, some * per, relu, y, scales, later->over, buffer);
#pragma GCC unroll 4
        for (size_t k = 0; k < (size_t)some; k++, codes += to->block.code_pixel)
            memcpy(codes, buffer + bytes * k, bytes);
    }
    later->codes = NULL;
}

/* Residual, activation, and both outputs. p: number of the first pixel.
 * residual: SIDE_NONE, SIDE_FP16, or any other; relu: the activation is one; second: this is the second half of a
 * block. Inlined with constant T and kinds. */
INLINE void direct_finish(const bw_direct *g, const direct_end *to, size_t p, size_t t, const int P, const int T,
                          const size_t B, const side_kind residual, const int half, const int block, const int relu,
                          const int second, vf s[DIRECT_PIXELS][DIRECT_TILES], direct_later *later)
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
    if (block) {
        if (!whole) { /* padding */
#pragma GCC unroll 8
            for (int i = 0; i < P; i++)
                s[i][T - 1] = v_keep(s[i][T - 1], left - 16 * (size_t)(T - 1));
        }
        const int kept = KEPT(T, B);
        if (!second)
            direct_codes(to, later, P, T, B, relu);
#pragma GCC unroll 8
        for (int i = 0; i < P; i++)
#pragma GCC unroll 4
            for (int k = 0; k < T; k++)
                later->y[i * kept + k + 4 * second] = s[i][k];
    }
}

/* T tiles of P pixels, up to their values in `later`. Inlined with constant P, T, I, B and kinds, as all below. */
INLINE void direct_half(const bw_direct *g, const direct_end *to, size_t p, size_t t, const int P, const int T,
                        const size_t I, const size_t B, const side_kind residual, const int half, const int block,
                        const int relu, const int second, direct_later *later)
{
    const uint8_t *codes = g->codes + p * g->code_step;
    const int32_t *scale = g->scale + p * g->scale_step;
    vf s[DIRECT_PIXELS][DIRECT_TILES];
    if (g->is_signed)
        direct_sums(g, codes, scale, t, P, T, I, 1, s);
    else
        direct_sums(g, codes, scale, t, P, T, I, 0, s);
    direct_finish(g, to, p, t, P, T, B, residual, half, block, relu, second, s, later);
}

/* Whole blocks of the output of P pixels. */
INLINE void direct_group(const bw_direct *g, const direct_end *to, size_t p, size_t t, const int P, const int T,
                         const size_t I, const size_t B, const side_kind residual, const int half, const int block,
                         const int relu, direct_later *later)
{
    direct_half(g, to, p, t, P, T, I, B, residual, half, block, relu, 0, later);
    if (B == 128 && (t + 4) * 16 < g->n) {
        direct_half(g, to, p, t + 4, P, T, I, B, residual, half, block, relu, 1, later);
    } else if (B == 128 && block) {
#pragma GCC unroll 8
        for (int i = 0; i < P; i++)
#pragma GCC unroll 4
            for (int k = 4; k < 8; k++)
                later->y[i * 8 + k] = v_set(0.0f);
    }
    if (block)
        direct_scales(to, p, t * 16, P, T, B, relu, later);
}

/* All pixels, all tiles. If a tile meets all pixels before the next does, the next one's weights are fetched meanwhile.
 */
INLINE void direct_tiles(const bw_direct *g, const direct_end *to, const int P, const size_t I, const size_t B,
                         const side_kind residual, const int half, const int block, const int relu)
{
    const size_t tiles = (g->n + 15) / 16, step = (size_t)P, at_once = g->all_at_once ? g->pixels : step;
    const int T = TILES(B);
    const size_t next = B == 128 ? 8 : (size_t)T, bytes = next * g->blocks * 16 * g->block,
                 groups = (at_once + step - 1) / step;
    const size_t share = g->all_at_once ? (bytes / 64 + groups - 1) / groups * 64 : 0;
    direct_later later = {.codes = NULL};
    for (size_t from = 0; from < g->pixels; from += at_once)
        for (size_t t = 0; t < tiles; t += next) {
            const int8_t *ahead = g->weights + (t / next + 1) * bytes;
            const int8_t *end = ahead + (t + 2 * next <= tiles ? bytes : 0);
            const int alone = B < 64 && t + 1 == tiles;
            if (block && alone)
                direct_codes(to, &later, P, T, B, relu);
            for (size_t p = from; p < from + at_once && p < g->pixels; p += step) {
                for (size_t i = 0; i < share && ahead < end; i += 64, ahead += 64)
                    _mm_prefetch((const char *)ahead, _MM_HINT_T1);
                /* Some of the last ones are done twice. */
                const size_t at = p + step > g->pixels ? g->pixels - step : p;
                if (alone)
                    direct_group(g, to, at, t, P, 1, I, B, residual, half, block, relu, &later);
                else
                    direct_group(g, to, at, t, P, T, I, B, residual, half, block, relu, &later);
            }
            if (block && alone)
                direct_codes(to, &later, P, 1, B, relu);
        }
    if (block)
        direct_codes(to, &later, P, T, B, relu);
}

INLINE void direct_all(const bw_direct *g, const direct_end *to, const int P, const size_t I, const size_t B,
                       const side_kind residual, const int half, const int block)
{
    if (g->activation->kind == BW_ACT_RELU)
        direct_tiles(g, to, P, I, B, residual, half, block, 1);
    else
        direct_tiles(g, to, P, I, B, residual, half, block, 0);
}

typedef void (*direct_fn)(const bw_direct *g, const direct_end *to);

/* The common ends: one output alone, or a residual in fp16 and blocks; and one for the rest. */
typedef struct direct_set {
    direct_fn half, block, residual_block, residual_both, any;
} direct_set;

#define DEFINE(P, I, B)                                                                                                \
    static void half_##P##_##I##_##B(const bw_direct *g, const direct_end *to)                                         \
    {                                                                                                                  \
        direct_all(g, to, P, I, B, SIDE_NONE, 1, 0);                                                                   \
    }                                                                                                                  \
    static void block_##P##_##I##_##B(const bw_direct *g, const direct_end *to)                                        \
    {                                                                                                                  \
        direct_all(g, to, P, I, B, SIDE_NONE, 0, 1);                                                                   \
    }                                                                                                                  \
    static void residual_block_##P##_##I##_##B(const bw_direct *g, const direct_end *to)                               \
    {                                                                                                                  \
        direct_all(g, to, P, I, B, SIDE_FP16, 0, 1);                                                                   \
    }                                                                                                                  \
    static void residual_both_##P##_##I##_##B(const bw_direct *g, const direct_end *to)                                \
    {                                                                                                                  \
        direct_all(g, to, P, I, B, SIDE_FP16, 1, 1);                                                                   \
    }                                                                                                                  \
    static void any_##P##_##I##_##B(const bw_direct *g, const direct_end *to)                                          \
    {                                                                                                                  \
        direct_all(g, to, P, I, B, ANY, to->half.kind != SIDE_NONE, to->block.kind != SIDE_NONE);                      \
    }                                                                                                                  \
    static const direct_set set_##P##_##I##_##B = {half_##P##_##I##_##B, block_##P##_##I##_##B,                        \
                                                   residual_block_##P##_##I##_##B, residual_both_##P##_##I##_##B,      \
                                                   any_##P##_##I##_##B};

DEFINE(3, 0, 128)
DEFINE(3, 0, 64)
DEFINE(7, 0, 32)
DEFINE(7, 0, 16)
DEFINE(7, 16, 16)
DEFINE(8, 16, 16)

static const direct_set *choose_set(const bw_direct *g, size_t out)
{
    if (g->block == 16 && out == 16)
        return (g->pixels + 6) / 7 * 7 < (g->pixels + 7) / 8 * 8 ? &set_7_16_16 : &set_8_16_16;
    return out == 16 ? &set_7_0_16 : out == 32 ? &set_7_0_32 : out == 64 ? &set_3_0_64 : &set_3_0_128;
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
