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

static inline int32_t v_reduce_max(vi v)
{
    return _mm512_reduce_max_epi32((__m512i)v);
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
