/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CONV kernels, AVX-512 VNNI. VPDPBUSD multiplies unsigned by signed bytes: the weights take the unsigned side as
 * w + 128 (an exclusive-or while they are loaded once for 12 pixels), the activations stay signed so that they can be
 * broadcast from memory, and 128 * sum(activations of the block), known per pixel, is what each sum starts below zero.
 * No sum leaves int32: |sum| <= 255 * 128 * 128 < 2^23. The scale 2^(ea + ew) is built by adding exponent fields.
 */
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

/* s + d * 2^(ea + ew) */
INLINE __m512 accumulate(__m512 s, __m512i d, __m512i ew, const int32_t *ea)
{
    __m512 scale = _mm512_castsi512_ps(_mm512_add_epi32(ew, broadcast(ea)));
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(d), scale, s);
}

/* Blocks of 16 and 32: the weights of a block stay in registers. P and B are constants. */
INLINE void dot8_small(const bw_dot_args *g, const unsigned P, const unsigned B)
{
    const int8_t *a = g->codes, *w = g->weights, *we = g->weight_exps;
    const int32_t *offset = g->offset, *ea = g->scale;
    const __m512i flip = _mm512_set1_epi8((char)0x80);
    __m512 s[BW_GROUP_MAX];
#pragma GCC unroll 12
    for (unsigned p = 0; p < P; p++)
        s[p] = _mm512_loadu_ps(g->acc + p * g->stride);
    for (size_t k = 0; k < g->blocks; k++) {
        __m512i v[8];
#pragma GCC unroll 8
        for (unsigned j = 0; j < B / 4; j++)
            v[j] = _mm512_xor_si512(_mm512_loadu_si512(w + 64 * j), flip);
        __m512i ew = load_exponents(we);
#pragma GCC unroll 12
        for (unsigned p = 0; p < P; p++) {
            __m512i d = broadcast(offset + p);
#pragma GCC unroll 8
            for (unsigned j = 0; j < B / 4; j++)
                d = _mm512_dpbusd_epi32(d, v[j], broadcast(a + p * B + 4 * j));
            s[p] = accumulate(s[p], d, ew, ea + p);
        }
        a += P * B, w += 16 * B, we += 16, offset += P, ea += P;
    }
#pragma GCC unroll 12
    for (unsigned p = 0; p < P; p++)
        _mm512_storeu_ps(g->acc + p * g->stride, s[p]);
}

/* Blocks of 64 and 128: the integer sums of all pixels stay in registers, weights come 16 codes at a time. */
INLINE void dot8_large(const bw_dot_args *g, const unsigned P)
{
    const int8_t *a = g->codes, *w = g->weights, *we = g->weight_exps;
    const int32_t *offset = g->offset, *ea = g->scale;
    const size_t B = g->block;
    const __m512i flip = _mm512_set1_epi8((char)0x80);
    __m512 s[BW_GROUP_MAX];
#pragma GCC unroll 12
    for (unsigned p = 0; p < P; p++)
        s[p] = _mm512_loadu_ps(g->acc + p * g->stride);
    for (size_t k = 0; k < g->blocks; k++) {
        __m512i d[BW_GROUP_MAX];
#pragma GCC unroll 12
        for (unsigned p = 0; p < P; p++)
            d[p] = broadcast(offset + p);
        for (size_t i = 0; i < B; i += 4, w += 64) {
            __m512i v = _mm512_xor_si512(_mm512_loadu_si512(w), flip);
#pragma GCC unroll 12
            for (unsigned p = 0; p < P; p++)
                d[p] = _mm512_dpbusd_epi32(d[p], v, broadcast(a + p * B + i));
        }
        __m512i ew = load_exponents(we);
#pragma GCC unroll 12
        for (unsigned p = 0; p < P; p++)
            s[p] = accumulate(s[p], d[p], ew, ea + p);
        a += P * B, we += 16, offset += P, ea += P;
    }
#pragma GCC unroll 12
    for (unsigned p = 0; p < P; p++)
        _mm512_storeu_ps(g->acc + p * g->stride, s[p]);
}

INLINE void dot16_any(const bw_dot_args *g, const unsigned P)
{
    const int16_t *a = g->codes, *w = g->weights;
    const int8_t *we = g->weight_exps;
    const int32_t *ea = g->scale;
    const size_t B = g->block;
    __m512 s[BW_GROUP_MAX];
#pragma GCC unroll 12
    for (unsigned p = 0; p < P; p++)
        s[p] = _mm512_loadu_ps(g->acc + p * g->stride);
    for (size_t k = 0; k < g->blocks; k++) {
        __m512i d[BW_GROUP_MAX];
#pragma GCC unroll 12
        for (unsigned p = 0; p < P; p++)
            d[p] = _mm512_setzero_si512();
        for (size_t i = 0; i < B; i += 2, w += 32) {
            __m512i v = _mm512_loadu_si512(w);
#pragma GCC unroll 12
            for (unsigned p = 0; p < P; p++)
                d[p] = _mm512_dpwssd_epi32(d[p], v, broadcast(a + p * B + i));
        }
        __m512i ew = load_exponents(we);
#pragma GCC unroll 12
        for (unsigned p = 0; p < P; p++)
            s[p] = accumulate(s[p], d[p], ew, ea + p);
        a += P * B, we += 16, ea += P;
    }
#pragma GCC unroll 12
    for (unsigned p = 0; p < P; p++)
        _mm512_storeu_ps(g->acc + p * g->stride, s[p]);
}

#define FOR_EACH_COUNT(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)

#define DEFINE(P)                                                                                                      \
    static void dot8_b16_p##P(const bw_dot_args *g)                                                                    \
    {                                                                                                                  \
        dot8_small(g, P, 16);                                                                                          \
    }                                                                                                                  \
    static void dot8_b32_p##P(const bw_dot_args *g)                                                                    \
    {                                                                                                                  \
        dot8_small(g, P, 32);                                                                                          \
    }                                                                                                                  \
    static void dot8_large_p##P(const bw_dot_args *g)                                                                  \
    {                                                                                                                  \
        dot8_large(g, P);                                                                                              \
    }                                                                                                                  \
    static void dot16_p##P(const bw_dot_args *g)                                                                       \
    {                                                                                                                  \
        dot16_any(g, P);                                                                                               \
    }
FOR_EACH_COUNT(DEFINE)

typedef void (*dot_fn)(const bw_dot_args *g);
#define B16(P)   dot8_b16_p##P,
#define B32(P)   dot8_b32_p##P,
#define LARGE(P) dot8_large_p##P,
#define WORDS(P) dot16_p##P,
static const dot_fn bytes[3][BW_GROUP_MAX] = {{FOR_EACH_COUNT(B16)}, {FOR_EACH_COUNT(B32)}, {FOR_EACH_COUNT(LARGE)}};
static const dot_fn words[BW_GROUP_MAX] = {FOR_EACH_COUNT(WORDS)};

static void dot8(const bw_dot_args *g)
{
    bytes[g->block == 16 ? 0 : g->block == 32 ? 1 : 2][g->pixels - 1](g);
}

static void dot16(const bw_dot_args *g)
{
    words[g->pixels - 1](g);
}

/* --- panels --------------------------------------------------------------------------------------------------------
 */

static void pack8(const bw_pack_args *g)
{
    const __m128i ones = _mm_set1_epi8(1);
    const size_t block = g->block, step = g->pixels * block;
    int8_t *out = g->out;
    for (size_t k = 0; k < g->count; k++, out += step) {
        __m128i sum = _mm_setzero_si128();
        if (!g->codes) {
            for (size_t i = 0; i < block; i += 16)
                _mm_storeu_si128((__m128i *)(void *)(out + i), sum);
            g->offset[k * g->pixels] = 0;
            g->scale[k * g->pixels] = 127 << 23;
            continue;
        }
        const uint8_t *codes = g->codes + k * block;
        for (size_t i = 0; i < block; i += 16) {
            __m128i c;
            if (g->values) {
                int8_t decoded[16];
                for (size_t j = 0; j < 16; j++)
                    decoded[j] = (int8_t)g->values[codes[i + j]];
                c = _mm_loadu_si128((const __m128i *)(const void *)decoded);
            } else {
                c = _mm_loadu_si128((const __m128i *)(const void *)(codes + i));
            }
            _mm_storeu_si128((__m128i *)(void *)(out + i), c);
            sum = _mm_dpbusd_epi32(sum, ones, c);
        }
        sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
        sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1));
        g->offset[k * g->pixels] = -128 * _mm_cvtsi128_si32(sum);
        g->scale[k * g->pixels] = (int32_t)((uint32_t)(127 + g->exps[k]) << 23);
    }
}

static void pack16(const bw_pack_args *g)
{
    const size_t block = g->block, step = g->pixels * block;
    int16_t *out = g->out;
    for (size_t k = 0; k < g->count; k++, out += step) {
        g->scale[k * g->pixels] = (int32_t)((uint32_t)(127 + (g->codes ? g->exps[k] : 0)) << 23);
        if (!g->codes) {
            memset(out, 0, block * sizeof *out);
            continue;
        }
        const uint8_t *codes = g->codes + k * block;
        if (g->values) {
            for (size_t i = 0; i < block; i++)
                out[i] = g->values[codes[i]];
        } else {
            for (size_t i = 0; i < block; i += 16)
                _mm256_storeu_si256((__m256i *)(void *)(out + i),
                                    _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(codes + i))));
        }
    }
}

/* Codes of each output [i % 4] to pairs: 64 bytes are 16 outputs x 4. */
static void widen(const uint8_t *codes, const int16_t *values, size_t blocks, size_t block, int16_t *out)
{
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    for (size_t q = 0; q < blocks * block / 4; q++, codes += 64, out += 64) {
        __m512i lo, hi;
        if (values) {
            int16_t wide[64];
            for (size_t j = 0; j < 64; j++)
                wide[j] = values[codes[j]];
            lo = _mm512_loadu_si512(wide);
            hi = _mm512_loadu_si512(wide + 32);
        } else {
            lo = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)codes));
            hi = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)(codes + 32)));
        }
        _mm512_storeu_si512(out, _mm512_permutex2var_epi32(lo, even, hi));
        _mm512_storeu_si512(out + 32, _mm512_permutex2var_epi32(lo, odd, hi));
    }
}

const bw_dot_kernels bw_dot_avx512vnni = {
    .group = BW_GROUP_MAX,
    .dot8 = dot8,
    .pack8 = pack8,
    .dot16 = dot16,
    .pack16 = pack16,
    .unpack = bw_unpack,
    .widen = widen,
};
