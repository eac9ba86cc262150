/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CONV kernels of bytes, AVX-512 VNNI, written once: dot_bytes__avx512vnni.c and dot_bytes_2p__avx512vnni.c include
 * this after PIPES, the number of pipes on which their CPUs execute 512-bit arithmetic.
 *
 * VPDPBUSD multiplies unsigned by signed bytes. Activations that may be negative take the unsigned side as code + 128,
 * and each sum starts at -128 * (sum of the block's weights), which sum prepares for a tile; those that cannot (the
 * input has passed a ReLU) go as they are. The sum also starts with
 *   the bits of 1.5 * 2^23 as a float: the int32 sum D, |D| < 2^22, then is the mantissa of a float, 1.5 * 2^23 + D,
 *   the weights' exponents, added to the exponent field: 2^ew * (1.5 * 2^23 + D).
 * A float subtraction, exact, leaves D * 2^ew; a fused multiply-add by 2^ea adds it. All exponents there are legal: ew
 * + ea is -126 .. 80, so that the exponent field is 24 .. 230, and D * 2^e is no subnormal.
 *
 * Why: the inner loop is bound by the pipes. Of six instructions a pixel, tile and block of 16, four multiply, and all
 * six take one of two pipes on Intel's: 2/3 of what VPDPBUSD alone reaches (236 of 370 G multiply-adds/s measured on
 * Emerald Rapids). With four pipes (Zen 4) two of which multiply, three quarters of the pixels get ea into the exponent
 * field by an integer addition and are added without the multiplication, which balances the four best: 208 of 234 G,
 * against 187 with all fused and 198 with none.
 */
#ifndef BW_SIM_DOT_BYTES_H
#define BW_SIM_DOT_BYTES_H

#include <immintrin.h>
#include <string.h>

#include "sim/fast.h"

#define INLINE static inline __attribute__((always_inline))

INLINE __m512i broadcast(const void *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm512_set1_epi32(v);
}

INLINE __m512i load_exponents(const int8_t *e)
{
    return _mm512_slli_epi32(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)e)), 23);
}

#define MAGIC 0x4B400000 /* 1.5 * 2^23 */

INLINE __m512 subtract(__m512i a, __m512i b)
{
    return _mm512_sub_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b));
}

/* For each block: MAGIC + ew; and for signed activations MAGIC + ew - 128 * (sum of weights) after it. */
static void sum8(const int8_t *w, const int8_t *exps, size_t blocks, size_t block, bw_fill fill, int is_signed,
                 int32_t *sums)
{
    const __m512i half = _mm512_set1_epi8((char)0x80), magic = _mm512_set1_epi32(MAGIC);
    if (!is_signed) {
        for (size_t k = 0; k < blocks; k++, exps += 16, sums += 16)
            _mm512_storeu_si512(sums, _mm512_add_epi32(magic, load_exponents(exps)));
        return;
    }
    for (size_t k = 0; k < blocks; k++, w += 16 * block, exps += 16, sums += 32) {
        const size_t fours = bw_fill_next(&fill, block);
        __m512i even = _mm512_setzero_si512(), odd = even;
        for (size_t i = 0; i < fours / 2; i++) {
            even = _mm512_dpbusd_epi32(even, half, _mm512_loadu_si512(w + 128 * i));
            odd = _mm512_dpbusd_epi32(odd, half, _mm512_loadu_si512(w + 128 * i + 64));
        }
        if (fours % 2)
            even = _mm512_dpbusd_epi32(even, half, _mm512_loadu_si512(w + 64 * (fours - 1)));
        const __m512i base = _mm512_add_epi32(magic, load_exponents(exps));
        _mm512_storeu_si512(sums, base);
        _mm512_storeu_si512(sums + 16, _mm512_sub_epi32(base, _mm512_add_epi32(even, odd)));
    }
}

/* Which pixels take the fused multiply-add. In the panel is 2^ea as a float if all do, else ea << 23. */
#define FUSED(p)   (PIPES == 2 || (p) % 4 == 1)
#define SCALE_BIAS (PIPES == 2 ? 127 : 0)

INLINE __m512i first_sum(unsigned p, __m512i q, __m512i ea)
{
    return FUSED(p) ? q : _mm512_add_epi32(q, ea);
}

/* s + d * 2^ea; ew is in d already. */
INLINE __m512 add_fused(__m512 s, __m512i d, __m512i base, __m512i ea)
{
    const __m512i bias = _mm512_set1_epi32(0x3F800000);
    const __m512i scale = SCALE_BIAS ? ea : _mm512_add_epi32(ea, bias);
    return _mm512_fmadd_ps(subtract(d, base), _mm512_castsi512_ps(scale), s);
}

INLINE __m512 add_sum(unsigned p, __m512 s, __m512i d, __m512i base, __m512i ea)
{
    return FUSED(p) ? add_fused(s, d, base, ea) : _mm512_add_ps(s, subtract(d, _mm512_add_epi32(base, ea)));
}

#define TILES 2u

/* P pixels, T tiles are constants, and B is 16 or best left a variable: compilers spill where they know the length of
 * the loop over a longer block. `whole`: the weights of a block stay in registers, else the sums do. `padded`: some
 * blocks are not full. */
INLINE void dot8_many(const bw_dot_args *g, const unsigned P, const unsigned T, const size_t B, const int whole,
                      const int padded)
{
    const uint8_t *codes = g->codes;
    const int8_t *w = g->weights;
    const int32_t *sums = g->sums, *firsts = g->is_signed ? sums + 16 : sums;
    const size_t sums_step = g->is_signed ? 32 : 16;
    const uint8_t *ahead = g->ahead;
    const size_t code_step = g->code_step, scale_step = g->scale_step, w_step = g->weight_step, q_step = g->sum_step;
    bw_fill fill = g->fill;
    __m512 s[8][TILES];
#pragma GCC unroll 8
    for (unsigned p = 0; p < P; p++)
#pragma GCC unroll 2
        for (unsigned t = 0; t < T; t++)
            s[p][t] = _mm512_loadu_ps(g->start ? g->start + 16 * t : g->acc + p * g->stride + 16 * t);
    for (size_t r = 0; r < g->run_count; r++) {
        const uint8_t *a = codes + g->runs[r].at * B;
        const int32_t *ea = g->scale + g->runs[r].at;
        for (size_t left = g->runs[r].blocks; left; left--) {
            __m512i q[TILES], base[TILES], d[8][TILES];
            for (size_t i = 0; i < g->ahead_lines; i++, ahead += 64)
                _mm_prefetch((const char *)ahead, _MM_HINT_T1);
#pragma GCC unroll 2
            for (unsigned t = 0; t < T; t++) {
                q[t] = _mm512_loadu_si512(firsts + t * q_step);
                base[t] = _mm512_loadu_si512(sums + t * q_step);
            }
            if (whole) {
                __m512i v[TILES][4];
#pragma GCC unroll 2
                for (unsigned t = 0; t < T; t++)
#pragma GCC unroll 4
                    for (unsigned i = 0; i < 4; i++)
                        v[t][i] = _mm512_loadu_si512(w + t * w_step + 64 * i);
#pragma GCC unroll 8
                for (unsigned p = 0; p < P; p++) {
                    const __m512i e = broadcast(ea + p * scale_step);
#pragma GCC unroll 2
                    for (unsigned t = 0; t < T; t++)
                        d[p][t] = first_sum(p, q[t], e);
#pragma GCC unroll 4
                    for (unsigned i = 0; i < 4; i++) {
                        const __m512i x = broadcast(a + p * code_step + 4 * i);
#pragma GCC unroll 2
                        for (unsigned t = 0; t < T; t++)
                            d[p][t] = _mm512_dpbusd_epi32(d[p][t], x, v[t][i]);
                    }
#pragma GCC unroll 2
                    for (unsigned t = 0; t < T; t++)
                        s[p][t] = add_sum(p, s[p][t], d[p][t], base[t], e);
                }
            } else {
#pragma GCC unroll 8
                for (unsigned p = 0; p < P; p++)
#pragma GCC unroll 2
                    for (unsigned t = 0; t < T; t++)
                        d[p][t] = first_sum(p, q[t], broadcast(ea + p * scale_step));
                const size_t fours = padded ? bw_fill_next(&fill, B) : B / 4;
#pragma GCC unroll 8
                for (size_t i = 0; i < fours; i++) {
                    __m512i v[TILES];
#pragma GCC unroll 2
                    for (unsigned t = 0; t < T; t++)
                        v[t] = _mm512_loadu_si512(w + t * w_step + 64 * i);
#pragma GCC unroll 8
                    for (unsigned p = 0; p < P; p++) {
                        const __m512i x = broadcast(a + p * code_step + 4 * i);
#pragma GCC unroll 2
                        for (unsigned t = 0; t < T; t++)
                            d[p][t] = _mm512_dpbusd_epi32(d[p][t], x, v[t]);
                    }
                }
#pragma GCC unroll 8
                for (unsigned p = 0; p < P; p++) {
                    const __m512i e = broadcast(ea + p * scale_step);
#pragma GCC unroll 2
                    for (unsigned t = 0; t < T; t++)
                        s[p][t] = add_sum(p, s[p][t], d[p][t], base[t], e);
                }
            }
            a += B, w += 16 * B, sums += sums_step, firsts += sums_step, ea++;
        }
    }
#pragma GCC unroll 8
    for (unsigned p = 0; p < P; p++)
#pragma GCC unroll 2
        for (unsigned t = 0; t < T; t++)
            _mm512_storeu_ps(g->acc + p * g->stride + 16 * t, s[p][t]);
}

/* Far enough ahead for memory to keep up with one pixel. */
#define AHEAD 4096

/* 64 codes; 4 bits each if `values` has what they stand for (16 values, four times). */
INLINE __m512i load_codes(const uint8_t *w, const __m512i *values)
{
    if (!values)
        return _mm512_loadu_si512(w);
    const __m512i nibbles = _mm512_set1_epi16(0x0F0F);
    const __m512i x = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)w));
    /* (x | x << 4) & nibbles */
    return _mm512_shuffle_epi8(*values, _mm512_ternarylogic_epi32(x, _mm512_slli_epi16(x, 4), nibbles, 0xA8));
}

/* One pixel: the weights are read once, unpacked and summed on the way. */
INLINE void dot8_one(const bw_dot_args *g, const __m512i *values)
{
    const __m512i half = _mm512_set1_epi8(g->is_signed ? (char)0x80 : 0), magic = _mm512_set1_epi32(MAGIC);
    const size_t B = g->block, bytes = values ? 32 : 64;
    for (size_t t = 0; t < g->tiles; t++) {
        const uint8_t *w = (const uint8_t *)g->weights + t * g->weight_step;
        const int8_t *we = g->weight_exps + t * g->exp_step;
        __m512 s = _mm512_loadu_ps(g->start ? g->start + 16 * t : g->acc + 16 * t);
        for (size_t r = 0; r < g->run_count; r++) {
            const uint8_t *a = (const uint8_t *)g->codes + g->runs[r].at * B;
            const int32_t *ea = g->scale + g->runs[r].at;
            for (size_t left = g->runs[r].blocks; left; left--, we += 16, ea++) {
                const __m512i base = _mm512_add_epi32(magic, load_exponents(we));
                __m512i even = base, odd = _mm512_setzero_si512(), less = odd, more = odd;
                for (size_t i = 0; i < B; i += 8, w += 2 * bytes, a += 8) {
                    const __m512i v0 = load_codes(w, values), v1 = load_codes(w + bytes, values);
                    for (size_t b = 0; b < 2 * bytes; b += 64)
                        _mm_prefetch((const char *)w + AHEAD + b, _MM_HINT_T0);
                    even = _mm512_dpbusd_epi32(even, broadcast(a), v0);
                    odd = _mm512_dpbusd_epi32(odd, broadcast(a + 4), v1);
                    less = _mm512_dpbusd_epi32(less, half, v0);
                    more = _mm512_dpbusd_epi32(more, half, v1);
                }
                const __m512i d = _mm512_sub_epi32(_mm512_add_epi32(even, odd), _mm512_add_epi32(less, more));
                s = add_fused(s, d, base, broadcast(ea));
            }
        }
        _mm512_storeu_ps(g->acc + 16 * t, s);
    }
}

typedef void (*dot_fn)(const bw_dot_args *g);

/* Pixels that leave the registers room. */
#define PIXELS_16   8 /* blocks of 16 */
#define PIXELS_LONG 7

#define DEFINE8(P)                                                                                                     \
    static void dot8_p##P##_t1_b16(const bw_dot_args *g)                                                               \
    {                                                                                                                  \
        dot8_many(g, P, 1, 16, 0, 0);                                                                                  \
    }                                                                                                                  \
    static void dot8_p##P##_t2_b16(const bw_dot_args *g)                                                               \
    {                                                                                                                  \
        dot8_many(g, P, 2, 16, 1, 0);                                                                                  \
    }                                                                                                                  \
    static void dot8_p##P##_t1_padded(const bw_dot_args *g)                                                            \
    {                                                                                                                  \
        dot8_many(g, P, 1, g->block, 0, 1);                                                                            \
    }                                                                                                                  \
    static void dot8_p##P##_t2_long(const bw_dot_args *g)                                                              \
    {                                                                                                                  \
        dot8_many(g, P, 2, g->block, 0, 0);                                                                            \
    }                                                                                                                  \
    static void dot8_p##P##_t2_padded(const bw_dot_args *g)                                                            \
    {                                                                                                                  \
        dot8_many(g, P, 2, g->block, 0, 1);                                                                            \
    }
#define ENTRY8(P)                                                                                                      \
    {{dot8_p##P##_t1_b16, dot8_p##P##_t2_b16},                                                                         \
     {dot8_p##P##_t1_padded, dot8_p##P##_t2_long},                                                                     \
     {dot8_p##P##_t1_padded, dot8_p##P##_t2_padded}},
#define FOR_EACH_8(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8)

FOR_EACH_8(DEFINE8)
static const dot_fn bytes[8][3][TILES] = {FOR_EACH_8(ENTRY8)};

static void dot8(const bw_dot_args *g)
{
    if (g->nibbles) {
        const __m512i values = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)g->nibbles));
        dot8_one(g, &values);
    } else if (g->sums) {
        const int kind = g->block == 16 ? 0 : g->fill.last * 4 == g->block ? 1 : 2;
        bytes[g->pixels - 1][kind][g->tiles - 1](g);
    } else {
        dot8_one(g, NULL);
    }
}

#define BYTE_KERNELS                                                                                                   \
    {                                                                                                                  \
        .scale_bias = SCALE_BIAS, .group = {PIXELS_16, PIXELS_LONG}, .tiles = TILES, .dot = dot8, .sum = sum8          \
    }

#endif
