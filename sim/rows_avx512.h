/* SPDX-License-Identifier: Apache-2.0 */
/* What sim/rows_simd.h wants of an ISA, for AVX-512 (F, BW, DQ, VL). */
#include <immintrin.h>
#include <string.h>

#include "sim/fast.h"

#define V_LANES 16
typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef __m256i vh;

static inline vi v_load_s8(const uint8_t *p)
{
    return (vi)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
}

static inline vi v_load_u16(const uint16_t *p)
{
    return (vi)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

static inline void v_store_s8(uint8_t *p, vi v)
{
    _mm_storeu_si128((__m128i *)(void *)p, _mm512_cvtepi32_epi8((__m512i)v));
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

static inline vh v_to_half(vf v)
{
    const __m256i h = _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm256_maskz_mov_epi16(_mm256_cmpneq_epi16_mask(h, _mm256_set1_epi16((short)0x8000)), h);
}

static inline vh v_positive_to_half(vf v)
{
    return _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static inline vh v_narrow(vi v)
{
    return _mm512_cvtepi32_epi16((__m512i)v);
}

static inline void v_store_half(uint16_t *p, vh v)
{
    _mm256_storeu_si256((__m256i *)(void *)p, v);
}

static inline vf v_swap(vf v)
{
    return (vf)_mm512_permute_ps((__m512)v, 0xB1);
}

static inline vi v_max_int(vi a, vi b)
{
    return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b);
}

/* Halves the lanes of two vectors: a's maxima in the even lanes, b's in the odd ones. */
static inline __m512i merge(__m512i a, __m512i b)
{
    return _mm512_max_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
}

static inline __m128i v_max_four(vi a, vi b, vi c, vi d)
{
    const __m512i ab = merge((__m512i)a, (__m512i)b), cd = merge((__m512i)c, (__m512i)d);
    const __m512i all = _mm512_max_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i half = _mm256_max_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    return _mm_max_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

static inline __mmask16 lanes_below(size_t n)
{
    return (__mmask16)((1u << n) - 1);
}

static inline vf v_keep(vf v, size_t n)
{
    return (vf)_mm512_maskz_mov_ps(lanes_below(n), (__m512)v);
}

static inline vf v_load_part(const float *p, size_t n)
{
    return (vf)_mm512_maskz_loadu_ps(lanes_below(n), p);
}

static inline const uint16_t *v_copy_part(uint16_t *to, const uint16_t *p, size_t n)
{
    _mm256_storeu_si256((__m256i *)(void *)to, _mm256_maskz_loadu_epi16(lanes_below(n), p));
    return to;
}

/* What packing leaves within each 128 bits, four of each vector, in order. */
static inline __m512i in_order(__m512i v)
{
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), v);
}

static inline void v_store_codes(uint8_t *p, const vi *q, const int8_t *most, const int8_t *least)
{
    const __m512i ab = _mm512_packs_epi32((__m512i)q[0], (__m512i)q[1]);
    const __m512i cd = _mm512_packs_epi32((__m512i)q[2], (__m512i)q[3]);
    const __m512i v = _mm512_min_epi8(_mm512_packs_epi16(ab, cd), _mm512_load_si512(most));
    const __m512i low = least ? _mm512_load_si512(least) : _mm512_setzero_si512();
    _mm512_storeu_si512(p, in_order(_mm512_max_epi8(v, low)));
}

static inline void v_store_bytes(uint8_t *p, const vi *q)
{
    const __m512i ab = _mm512_packs_epi32((__m512i)q[0], (__m512i)q[1]);
    const __m512i cd = _mm512_packs_epi32((__m512i)q[2], (__m512i)q[3]);
    _mm512_storeu_si512(p, in_order(_mm512_packus_epi16(ab, cd)));
}

static inline vf v_element_to_float(const uint8_t *p, int magnitude, int most, int shift, int sign)
{
    const __m256i code = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(const void *)p));
    const __m256i m = _mm256_and_si256(code, _mm256_set1_epi16((short)magnitude));
    const __mmask16 finite = _mm256_cmple_epi16_mask(m, _mm256_set1_epi16((short)most));
    const __m256i s = _mm256_andnot_si256(_mm256_set1_epi16(0x7FFF), _mm256_slli_epi16(code, sign));
    const __m256i h = _mm256_or_si256(_mm256_slli_epi16(m, shift), s);
    return (vf)_mm512_cvtph_ps(_mm256_maskz_mov_epi16(finite, h));
}

#include "sim/rows_simd.h"

#include "sim/rows_sides.h"
