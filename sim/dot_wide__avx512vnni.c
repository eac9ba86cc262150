/* SPDX-License-Identifier: Apache-2.0 */
/* CONV kernels in double, AVX-512. */
#include <immintrin.h>
#include <string.h>

#include "sim/fast.h"

#define V_LANES 8
typedef double vd __attribute__((vector_size(64)));
typedef int64_t vl __attribute__((vector_size(64)));

static inline vd v_fma(vd a, vd b, vd c)
{
    return (vd)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}

static inline void v_accumulate(float *acc, vd d, const int8_t *ew, int32_t ea)
{
    __m256i e = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)ew));
    e = _mm256_add_epi32(_mm256_slli_epi32(e, 23), _mm256_set1_epi32(ea));
    const __m256 f = _mm512_cvtpd_ps((__m512d)d);
    _mm256_storeu_ps(acc, _mm256_fmadd_ps(f, _mm256_castsi256_ps(e), _mm256_loadu_ps(acc)));
}

static inline void v_store_wide(double *out, __m256 f)
{
    _mm512_storeu_pd(out, _mm512_cvtps_pd(f));
}

#include "sim/dot_wide_simd.h"

#define FOR_EACH_COUNT(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)

static void dot_wide(const bw_dot_args *g)
{
#define CASE(P)                                                                                                        \
    case P:                                                                                                            \
        dot_pixels(g, P, 0);                                                                                           \
        break;
    switch (g->pixels) {
        FOR_EACH_COUNT(CASE)
    }
}

const bw_wide_kernels bw_wide_avx512vnni = {.dot = dot_wide, .pack = pack_wide, .widen = widen_wide};
