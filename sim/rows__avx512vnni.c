/* SPDX-License-Identifier: Apache-2.0 */
/* Row kernels, AVX-512 (F, BW, DQ, VL). */
#include <immintrin.h>
#include <string.h>

#include "sim/fast.h"

#define V_LANES 16
typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));

static inline vi v_load_s8(const uint8_t *p)
{
    return (vi)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
}

static inline vi v_load_u8(const uint8_t *p)
{
    return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
}

static inline vi v_load_u16(const uint16_t *p)
{
    return (vi)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

static inline void v_store_s8(uint8_t *p, vi v)
{
    _mm_storeu_si128((__m128i *)(void *)p, _mm512_cvtepi32_epi8((__m512i)v));
}

static inline void v_store_u16(uint16_t *p, vi v)
{
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtepi32_epi16((__m512i)v));
}

static inline vf v_float(vi v)
{
    return (vf)_mm512_cvtepi32_ps((__m512i)v);
}

static inline vi v_round(vf v)
{
    return (vi)_mm512_cvtps_epi32((__m512)v);
}

static inline vf v_min(vf a, vf b)
{
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
}

static inline vf v_max(vf a, vf b)
{
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
}

static inline vf v_fma(vf a, vf b, vf c)
{
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}

static inline vf v_half_to_float(const uint16_t *p)
{
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

static inline vi v_to_half(vf v)
{
    return (vi)_mm512_cvtepu16_epi32(_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

static inline vf v_gather(const float *table, vi index)
{
    return (vf)_mm512_i32gather_ps((__m512i)index, table, 4);
}

static inline vf v_swap(vf v)
{
    return (vf)_mm512_permute_ps((__m512)v, 0xB1);
}

static inline vi v_max_int(vi a, vi b)
{
    return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b);
}

static inline int32_t v_reduce_max(vi v)
{
    return _mm512_reduce_max_epi32((__m512i)v);
}

/* Halves the lanes of two blocks: a's maxima in the even lanes, b's in the odd ones. */
static inline __m512i merge(__m512i a, __m512i b)
{
    return _mm512_max_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
}

#define V_FOUR
static inline __attribute__((always_inline)) void v_scale_four(const bw_format_traits *t, const float *x, size_t block,
                                                               int8_t *exps, vf scales[4])
{
    const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
    __m512i m[4];
#pragma GCC unroll 4
    for (size_t b = 0; b < 4; b++) {
        m[b] = _mm512_and_si512(_mm512_loadu_si512(x + b * block), magnitude);
        for (size_t j = 16; j < block; j += 16)
            m[b] = _mm512_max_epi32(m[b], _mm512_and_si512(_mm512_loadu_si512(x + b * block + j), magnitude));
    }
    const __m512i ab = merge(m[0], m[1]), cd = merge(m[2], m[3]);
    const __m512i all = _mm512_max_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i half = _mm256_max_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    const __m128i max = _mm_max_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    /* As block_exponent(). */
    __m128i e = _mm_sub_epi32(_mm_srli_epi32(max, 23), _mm_set1_epi32(127 + t->emax_shift));
    e = _mm_min_epi32(_mm_max_epi32(e, _mm_set1_epi32(t->exp_min)), _mm_set1_epi32(t->exp_max));
    const int32_t bytes = _mm_cvtsi128_si32(_mm_cvtepi32_epi8(e));
    memcpy(exps, &bytes, sizeof bytes);
    const __m512i powers = _mm512_castsi128_si512(_mm_slli_epi32(_mm_sub_epi32(_mm_set1_epi32(127), e), 23));
#pragma GCC unroll 4
    for (int b = 0; b < 4; b++)
        scales[b] = (vf)_mm512_permutexvar_epi32(_mm512_set1_epi32(b), powers);
}

#include "sim/rows_simd.h"

const bw_rows bw_rows_avx512vnni = {
    .decode = decode,
    .encode = encode,
    .add = add,
    .mul = mul,
    .max = max,
    .scale = scale,
    .activate = activate,
    .depthwise = depthwise,
};
