/* SPDX-License-Identifier: Apache-2.0 */
/* Row kernels, AVX2 with FMA and F16C. */
#include <immintrin.h>
#include <string.h>

#include "sim/fast.h"

#define V_LANES 8
typedef float vf __attribute__((vector_size(32)));
typedef int32_t vi __attribute__((vector_size(32)));

static inline vi v_load_s8(const uint8_t *p)
{
    return (vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p));
}

static inline vi v_load_u8(const uint8_t *p)
{
    return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p));
}

static inline vi v_load_u16(const uint16_t *p)
{
    return (vi)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
}

/* The low byte of each of four bytes of each half, side by side. */
static inline void v_store_s8(uint8_t *p, vi v)
{
    const __m256i pick = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1,
                                          -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    __m256i b = _mm256_shuffle_epi8((__m256i)v, pick);
    __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
    _mm_storel_epi64((__m128i *)(void *)p, both);
}

static inline void v_store_u16(uint16_t *p, vi v)
{
    __m256i w = _mm256_packus_epi32((__m256i)v, (__m256i)v); /* codes are 0..65535: nothing saturates */
    w = _mm256_permute4x64_epi64(w, 0x08);
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_castsi256_si128(w));
}

static inline vf v_float(vi v)
{
    return (vf)_mm256_cvtepi32_ps((__m256i)v);
}

static inline vi v_round(vf v)
{
    return (vi)_mm256_cvtps_epi32((__m256)v);
}

static inline vf v_min(vf a, vf b)
{
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
}

static inline vf v_max(vf a, vf b)
{
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
}

static inline vf v_fma(vf a, vf b, vf c)
{
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}

static inline vf v_half_to_float(const uint16_t *p)
{
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}

static inline vi v_to_half(vf v)
{
    return (vi)_mm256_cvtepu16_epi32(_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

static inline vf v_gather(const float *table, vi index)
{
    return (vf)_mm256_i32gather_ps(table, (__m256i)index, 4);
}

static inline vf v_swap(vf v)
{
    return (vf)_mm256_permute_ps((__m256)v, 0xB1);
}

static inline vi v_max_int(vi a, vi b)
{
    return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b);
}

static inline int32_t v_reduce_max(vi v)
{
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4E));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xB1));
    return _mm_cvtsi128_si32(m);
}

#include "sim/rows_simd.h"

const bw_rows bw_rows_avx2 = {
    .decode = decode,
    .encode = encode,
    .add = add,
    .mul = mul,
    .max = max,
    .scale = scale,
    .activate = activate,
    .depthwise = depthwise,
};
