/* SPDX-License-Identifier: Apache-2.0 */
/* Row kernels, AVX2 with FMA and F16C. */
#include <immintrin.h>
#include <string.h>

#include "sim/fast.h"

#define V_LANES 8
typedef float vf __attribute__((vector_size(32)));
typedef int32_t vi __attribute__((vector_size(32)));
typedef __m128i vh;

static inline vi v_load_s8(const uint8_t *p)
{
    return (vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p));
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

static inline vh v_to_half(vf v)
{
    const __m128i h = _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm_andnot_si128(_mm_cmpeq_epi16(h, _mm_set1_epi16((short)0x8000)), h);
}

static inline vh v_positive_to_half(vf v)
{
    return _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static inline vh v_narrow(vi v)
{
    __m256i w = _mm256_packus_epi32((__m256i)v, (__m256i)v); /* codes are 0..65535: nothing saturates */
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(w, 0x08));
}

static inline void v_store_half(uint16_t *p, vh v)
{
    _mm_storeu_si128((__m128i *)(void *)p, v);
}

static inline vf v_swap(vf v)
{
    return (vf)_mm256_permute_ps((__m256)v, 0xB1);
}

static inline vi v_max_int(vi a, vi b)
{
    return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b);
}

/* Halves the lanes of two vectors: a's maxima in the even lanes, b's in the odd ones. */
static inline __m256i merge(__m256i a, __m256i b)
{
    return _mm256_max_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
}

static inline __m128i v_max_four(vi a, vi b, vi c, vi d)
{
    const __m256i ab = merge((__m256i)a, (__m256i)b), cd = merge((__m256i)c, (__m256i)d);
    const __m256i all = _mm256_max_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
    return _mm_max_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}

static inline __m256i lanes_below(size_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline vf v_keep(vf v, size_t n)
{
    return (vf)_mm256_and_si256((__m256i)v, lanes_below(n));
}

static inline vf v_load_part(const float *p, size_t n)
{
    return (vf)_mm256_maskload_ps(p, lanes_below(n));
}

static inline const uint16_t *v_copy_part(uint16_t *to, const uint16_t *p, size_t n)
{
    memset(to, 0, V_LANES * sizeof *to);
    return memcpy(to, p, n * sizeof *to);
}

static inline void v_store_codes(uint8_t *p, const vi *q, const int8_t *most, const int8_t *least)
{
    /* Within each 128 bits: four of a, four of b, ... */
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i high = _mm256_load_si256((const __m256i *)(const void *)most);
    const __m256i low = least ? _mm256_load_si256((const __m256i *)(const void *)least) : _mm256_setzero_si256();
    for (int i = 0; i < 2; i++, q += 4) {
        const __m256i ab = _mm256_packs_epi32((__m256i)q[0], (__m256i)q[1]);
        const __m256i cd = _mm256_packs_epi32((__m256i)q[2], (__m256i)q[3]);
        __m256i v = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(ab, cd), order);
        v = _mm256_max_epi8(_mm256_min_epi8(v, high), low);
        _mm256_storeu_si256((__m256i *)(void *)(p + 32 * i), v);
    }
}

static inline void v_store_bytes(uint8_t *p, const vi *q)
{
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int i = 0; i < 2; i++, q += 4) {
        const __m256i ab = _mm256_packs_epi32((__m256i)q[0], (__m256i)q[1]);
        const __m256i cd = _mm256_packs_epi32((__m256i)q[2], (__m256i)q[3]);
        const __m256i v = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(ab, cd), order);
        _mm256_storeu_si256((__m256i *)(void *)(p + 32 * i), v);
    }
}

static inline vf v_element_to_float(const uint8_t *p, int magnitude, int most, int shift, int sign)
{
    const __m128i code = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)(const void *)p));
    const __m128i m = _mm_and_si128(code, _mm_set1_epi16((short)magnitude));
    const __m128i other = _mm_cmpgt_epi16(m, _mm_set1_epi16((short)most));
    const __m128i s = _mm_andnot_si128(_mm_set1_epi16(0x7FFF), _mm_slli_epi16(code, sign));
    const __m128i h = _mm_or_si128(_mm_slli_epi16(m, shift), s);
    return (vf)_mm256_cvtph_ps(_mm_andnot_si128(other, h));
}

#include "sim/rows_simd.h"

#include "sim/rows_sides.h"

#include "sim/rows_fused.h"

#include "sim/rows_window.h"

#include "sim/rows_depthwise.h"

const bw_rows bw_rows_avx2 = {
    .fused = fused,
    .window = window,
    .depthwise = depthwise,
};
