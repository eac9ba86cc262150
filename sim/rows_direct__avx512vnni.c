/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CONV of one kernel call (bw_direct in sim/fast.h), AVX-512 VNNI. The sums of 7 or 8 neighbouring pixels x 32 outputs
 * stay in registers from the bias to the result. Sums are those of dot_bytes.h: see there for what `sums` holds.
 * Here every pixel takes the fused multiply-add, which needs the fewest operations: where reductions are short the ends
 * weigh more than the balance between pipes.
 */

/*
 * Most pixels and tiles of a pass. A group is made in one pass of two tiles for blocks of 16 and 32, two for 64
 * channels, four for 128; the weights of a pass should lie in the first cache while all its pixels meet them. With
 * I = 16, which is for blocks of 16 on both sides, the weights of a block stay in registers for all pixels; else the
 * pixels' integer sums do, and the input's blocks are of any length.
 */
#define DIRECT_PIXELS 8
#define DIRECT_TILES  2
#include "sim/rows_direct.h"

INLINE __m512i broadcast_codes(const uint8_t *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm512_set1_epi32(v);
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

/* Whole blocks of the output of P pixels, from tile t on. Inlined with constant P, T, I, B and kinds, as all below. */
INLINE void direct_group(const bw_direct *g, const direct_end *to, size_t p, size_t t, const int P, const int T,
                         const size_t I, const size_t B, const size_t W, const side_kind residual, const int half,
                         const int block, const int relu, direct_ahead *fetch, vf *y, direct_later *later)
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
            direct_keep(pass, P, T, B, W, s, y);
    }
    if (block)
        direct_scales(to, y, p, t * 16, P, T, B, W, relu, later);
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
    /* Of groups of one pass the codes are made before the next one's values are kept. */
    vf y[2][DIRECT_PIXELS * 8];
    int now = 0;
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
                    direct_group(g, to, at, t, P, 1, I, B, W, residual, half, block, relu, &fetch, y[now], &later);
                else
                    direct_group(g, to, at, t, P, 2, I, B, W, residual, half, block, relu, &fetch, y[now], &later);
                now ^= PASSES(W) > 1;
            }
            if (block && alone)
                direct_flush(to, &later, P, 1, B, W, relu);
        }
    if (block)
        direct_flush(to, &later, P, 2, B, W, relu);
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
    direct_run(g, choose_set(g, g->out_block));
}
