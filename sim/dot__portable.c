/* SPDX-License-Identifier: Apache-2.0 */
/* CONV kernels in plain C; where the compiler's target has SSE2 anyway (x86-64), with its product of 16-bit pairs. */
#include <string.h>
#if defined __SSE2__
#include <emmintrin.h>
#endif

#include "sim/fast.h"

static float from_bits(uint32_t bits)
{
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

#if defined __SSE2__
static void block_sums(const int16_t *a, const int16_t *w, size_t block, int32_t *d)
{
    __m128i s0 = _mm_setzero_si128(), s1 = s0, s2 = s0, s3 = s0;
    const __m128i *v = (const __m128i *)(const void *)w;
    for (size_t i = 0; i < block; i += 2, v += 4) {
        int32_t pair;
        memcpy(&pair, a + i, sizeof pair);
        const __m128i x = _mm_set1_epi32(pair);
        s0 = _mm_add_epi32(s0, _mm_madd_epi16(_mm_loadu_si128(v), x));
        s1 = _mm_add_epi32(s1, _mm_madd_epi16(_mm_loadu_si128(v + 1), x));
        s2 = _mm_add_epi32(s2, _mm_madd_epi16(_mm_loadu_si128(v + 2), x));
        s3 = _mm_add_epi32(s3, _mm_madd_epi16(_mm_loadu_si128(v + 3), x));
    }
    __m128i *to = (__m128i *)(void *)d;
    _mm_storeu_si128(to, s0);
    _mm_storeu_si128(to + 1, s1);
    _mm_storeu_si128(to + 2, s2);
    _mm_storeu_si128(to + 3, s3);
}
#else
static void block_sums(const int16_t *a, const int16_t *w, size_t block, int32_t *d)
{
    memset(d, 0, BW_OUTPUT_TILE * sizeof *d);
    for (size_t i = 0; i < block / 2; i++)
        for (size_t n = 0; n < BW_OUTPUT_TILE; n++)
            d[n] += a[2 * i] * w[(i * BW_OUTPUT_TILE + n) * 2] + a[2 * i + 1] * w[(i * BW_OUTPUT_TILE + n) * 2 + 1];
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
                int32_t d[BW_OUTPUT_TILE];
                block_sums(a, w, block, d);
                for (size_t n = 0; n < BW_OUTPUT_TILE; n++)
                    acc[n] += (float)d[n] * from_bits((uint32_t)*ea + ((uint32_t)we[n] << 23));
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
