/* SPDX-License-Identifier: Apache-2.0 */
/* CONV kernels in plain C; where the compiler's target has SSE2 anyway (x86-64), with its product of 16-bit pairs. */
#include <string.h>
#if defined __SSE2__
#include <emmintrin.h>
#endif

#include "sim/fast.h"

#if defined __SSE2__
/* acc += d * 2^(ea + ew) for four outputs, whose ew are the upper bytes of `ew`. */
static inline void add_four(float *acc, __m128i d, __m128i ew, __m128i ea)
{
    const __m128 scale = _mm_castsi128_ps(_mm_add_epi32(_mm_srai_epi32(ew, 1), ea)); /* ew << 23 */
    _mm_storeu_ps(acc, _mm_add_ps(_mm_loadu_ps(acc), _mm_mul_ps(_mm_cvtepi32_ps(d), scale)));
}

static void add_block(const int16_t *a, const int16_t *w, size_t block, int32_t ea, const int8_t *we, float *acc)
{
    const __m128i zero = _mm_setzero_si128();
    const __m128i *v = (const __m128i *)(const void *)w;
    __m128i s0 = zero, s1 = zero, s2 = zero, s3 = zero;
    for (size_t i = 0; i < block; i += 2, v += 4) {
        int32_t pair;
        memcpy(&pair, a + i, sizeof pair);
        const __m128i x = _mm_set1_epi32(pair);
        s0 = _mm_add_epi32(s0, _mm_madd_epi16(_mm_loadu_si128(v), x));
        s1 = _mm_add_epi32(s1, _mm_madd_epi16(_mm_loadu_si128(v + 1), x));
        s2 = _mm_add_epi32(s2, _mm_madd_epi16(_mm_loadu_si128(v + 2), x));
        s3 = _mm_add_epi32(s3, _mm_madd_epi16(_mm_loadu_si128(v + 3), x));
    }
    const __m128i e = _mm_loadu_si128((const __m128i *)(const void *)we), scale = _mm_set1_epi32(ea);
    const __m128i low = _mm_unpacklo_epi8(zero, e), high = _mm_unpackhi_epi8(zero, e);
    add_four(acc, s0, _mm_unpacklo_epi16(zero, low), scale);
    add_four(acc + 4, s1, _mm_unpackhi_epi16(zero, low), scale);
    add_four(acc + 8, s2, _mm_unpacklo_epi16(zero, high), scale);
    add_four(acc + 12, s3, _mm_unpackhi_epi16(zero, high), scale);
}
#else
static float from_bits(uint32_t bits)
{
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

static void add_block(const int16_t *a, const int16_t *w, size_t block, int32_t ea, const int8_t *we, float *acc)
{
    int32_t d[BW_OUTPUT_TILE] = {0};
    for (size_t i = 0; i < block / 2; i++)
        for (size_t n = 0; n < BW_OUTPUT_TILE; n++)
            d[n] += a[2 * i] * w[(i * BW_OUTPUT_TILE + n) * 2] + a[2 * i + 1] * w[(i * BW_OUTPUT_TILE + n) * 2 + 1];
    for (size_t n = 0; n < BW_OUTPUT_TILE; n++)
        acc[n] += (float)d[n] * from_bits((uint32_t)ea + ((uint32_t)we[n] << 23));
}
#endif

static void dot16(const bw_dot_args *g)
{
    const size_t block = g->block;
    for (size_t p = 0; p < g->pixels; p++) {
        const int16_t *w = g->weights;
        const int8_t *we = g->weight_exps;
        float *acc = g->acc + p * g->stride;
        if (g->start)
            memcpy(acc, g->start, BW_OUTPUT_TILE * sizeof *acc);
        for (size_t r = 0; r < g->run_count; r++) {
            const int16_t *a = (const int16_t *)g->codes + p * (g->code_step / 2) + g->runs[r].at * block;
            const int32_t *ea = g->scale + p * g->scale_step + g->runs[r].at;
            for (size_t left = g->runs[r].blocks; left; left--, a += block, w += block * BW_OUTPUT_TILE) {
                add_block(a, w, block, *ea, we, acc);
                ea++, we += BW_OUTPUT_TILE;
            }
        }
    }
}

static void pack16(const bw_pack_args *g)
{
    int16_t *out = g->out;
    for (size_t k = 0; k < g->count; k++)
        g->scale[k] = (int32_t)((uint32_t)(127 + (g->codes ? g->exps[k] : 0)) << 23);
    for (size_t i = 0; i < g->count * g->block; i++)
        out[i] = !g->codes ? 0 : g->values ? g->values[g->codes[i]] : (int8_t)g->codes[i];
}

static void widen(const uint8_t *codes, const int16_t *values, size_t blocks, size_t block, int16_t *out)
{
    for (size_t k = 0; k < blocks; k++, codes += block * BW_OUTPUT_TILE, out += block * BW_OUTPUT_TILE)
        for (size_t i = 0; i < block; i++)
            for (size_t n = 0; n < BW_OUTPUT_TILE; n++) {
                uint8_t code = codes[(i / 4 * BW_OUTPUT_TILE + n) * 4 + i % 4];
                out[(i / 2 * BW_OUTPUT_TILE + n) * 2 + i % 2] = values ? values[code] : (int8_t)code;
            }
}

static void unpack(const bw_format_traits *t, const uint8_t *packed, size_t count, uint8_t *codes)
{
    bw_unpack(t, packed, count, codes);
}

const bw_dot_kernels bw_dot_portable = {
    .group = 4,
    .wide = &bw_wide_portable,
    .dot16 = dot16,
    .pack16 = pack16,
    .unpack = unpack,
    .widen = widen,
    .widen_words = bw_widen_words_portable,
};
