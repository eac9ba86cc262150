/* SPDX-License-Identifier: Apache-2.0 */
/* CONV kernels in double, AVX2 with FMA. */
#include <immintrin.h>
#include <string.h>

#include "sim/fast.h"

#define V_LANES 4
typedef double vd __attribute__((vector_size(32)));
typedef int64_t vl __attribute__((vector_size(32)));

static inline vd v_fma(vd a, vd b, vd c)
{
    return (vd)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}

static inline void v_accumulate(float *acc, vd d, const int8_t *ew, int32_t ea)
{
    int32_t bytes;
    memcpy(&bytes, ew, sizeof bytes);
    __m128i e = _mm_slli_epi32(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(bytes)), 23);
    e = _mm_add_epi32(e, _mm_set1_epi32(ea));
    const __m128 f = _mm256_cvtpd_ps((__m256d)d);
    _mm_storeu_ps(acc, _mm_fmadd_ps(f, _mm_castsi128_ps(e), _mm_loadu_ps(acc)));
}

static inline void v_store_wide(double *out, __m256 f)
{
    _mm256_storeu_pd(out, _mm256_cvtps_pd(_mm256_castps256_ps128(f)));
    _mm256_storeu_pd(out + 4, _mm256_cvtps_pd(_mm256_extractf128_ps(f, 1)));
}

#include "sim/dot_wide_simd.h"

/* The sums of two pixels leave room for the rest in 16 registers. */
static void dot_wide(const bw_dot_args *g)
{
    size_t p = 0;
    for (; p + 2 <= g->pixels; p += 2)
        dot_pixels(g, 2, p);
    if (p < g->pixels)
        dot_pixels(g, 1, p);
}

const bw_wide_kernels bw_wide_avx2 = {.dot = dot_wide, .pack = pack_wide, .widen = widen_wide};
