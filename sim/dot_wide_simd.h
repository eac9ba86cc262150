/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CONV kernels for the formats whose codes do not fit 16 bits, for the x86 vector ISAs, written once. The including
 * file (dot_wide__ISA.c) defines
 *   V_LANES        doubles in a vector
 *   vd, vl         vectors of double and int64_t (GCC vector types)
 *   v_fma
 *   v_accumulate (float *acc, vd d, const int8_t *ew, int32_t ea): acc[i] += (float)d[i] * 2^ew[i], times ea as float
 *   v_store_wide (double *out, __m256 f): 8 floats as doubles
 * and then includes this.
 *
 * Exactness, for blocks of codes a (activations) and w (weights), all integers:
 *   F64: every partial sum is an integer below 2^53 (the planner shows it).
 *   I128, block not marked: all a are multiples of 2^s (dot_wide.c chooses s), so all partial sums are multiples of 2^s
 *   below 2^(53 + s): the same after a shift of the exponents.
 *   I128, marked: a = high + low, high the multiple of 2^16 that is nearest, so that |low| <= 2^15. Sums of high * w
 *   are multiples of 2^16 and at most 32 * 2^32 * 2^31.81 < 2^(53 + 16), sums of low * w at most 32 * 2^15 * 2^31.81 <
 *   2^53: both exact. Their sum is rounded to double by rounding to odd: the exact sum is cut off, and its last bit set
 *   if anything was cut off. Rounding such a double to the 24 bits of a float gives what rounding the exact sum would:
 *   the bits that decide ties, and whether anything lies below them, are still there.
 */

#define TILE_VECTORS (BW_OUTPUT_TILE / V_LANES)
#define INLINE       static inline __attribute__((always_inline))

typedef vd vd_unaligned __attribute__((aligned(8), may_alias));

INLINE vd load(const double *p)
{
    return *(const vd_unaligned *)p;
}

INLINE vd splat(double x)
{
    return x - (vd){0};
}

/* Exponents without the mark. */
INLINE int32_t scale_of(int32_t scale)
{
    return scale & (int32_t)0xFF800000;
}

/* a + b, rounded to odd. a - (s - t) and b - t are exact (Knuth): their sum is what s lacks. */
INLINE vd add_to_odd(vd a, vd b)
{
    const vd s = a + b, t = s - a, lack = (a - (s - t)) + (b - t);
    const vl inexact = (vl)(lack != (vd){0}), beyond = (vl)(((vl)lack ^ (vl)s) < (vl){0});
    /* Beyond the exact sum: one step toward zero, in sign and magnitude a decrement, cuts off. */
    return (vd)(((vl)s + (inexact & beyond)) | (inexact & 1));
}

INLINE void finish_tile(float *acc, const vd d[TILE_VECTORS], const int8_t *ew, int32_t scale)
{
#pragma GCC unroll 4
    for (unsigned v = 0; v < TILE_VECTORS; v++)
        v_accumulate(acc + v * V_LANES, d[v], ew + v * V_LANES, scale_of(scale));
}

/* One block for P pixels (a constant) from a on, which are code_step doubles apart. */
INLINE void block_exact(const bw_dot_args *g, const unsigned P, const double *a, const double *w, const int8_t *ew,
                        const int32_t *scale, float *acc)
{
    const size_t step = g->code_step / sizeof *a;
    vd d[BW_GROUP_MAX][TILE_VECTORS];
#pragma GCC unroll 12
    for (unsigned p = 0; p < P; p++)
#pragma GCC unroll 4
        for (unsigned v = 0; v < TILE_VECTORS; v++)
            d[p][v] = (vd){0};
    for (size_t i = 0; i < g->block; i++, w += BW_OUTPUT_TILE) {
        vd x[TILE_VECTORS];
#pragma GCC unroll 4
        for (unsigned v = 0; v < TILE_VECTORS; v++)
            x[v] = load(w + v * V_LANES);
#pragma GCC unroll 12
        for (unsigned p = 0; p < P; p++)
#pragma GCC unroll 4
            for (unsigned v = 0; v < TILE_VECTORS; v++)
                d[p][v] = v_fma(splat(a[p * step + i]), x[v], d[p][v]);
    }
#pragma GCC unroll 12
    for (unsigned p = 0; p < P; p++)
        finish_tile(acc + p * g->stride, d[p], ew, scale[p * g->scale_step]);
}

static __attribute__((noinline)) void block_marked(const double *a, const double *w, size_t block, const int8_t *ew,
                                                   int32_t scale, float *acc)
{
    const double magic = 0x1.8p68; /* its last bit is 2^16 */
    vd high[TILE_VECTORS], low[TILE_VECTORS], d[TILE_VECTORS];
#pragma GCC unroll 4
    for (unsigned v = 0; v < TILE_VECTORS; v++)
        high[v] = low[v] = (vd){0};
    for (size_t i = 0; i < block; i++, w += BW_OUTPUT_TILE) {
        const double h = (a[i] + magic) - magic;
        const vd ah = splat(h), al = splat(a[i] - h);
#pragma GCC unroll 4
        for (unsigned v = 0; v < TILE_VECTORS; v++) {
            const vd x = load(w + v * V_LANES);
            high[v] = v_fma(ah, x, high[v]);
            low[v] = v_fma(al, x, low[v]);
        }
    }
#pragma GCC unroll 4
    for (unsigned v = 0; v < TILE_VECTORS; v++)
        d[v] = add_to_odd(high[v], low[v]);
    finish_tile(acc, d, ew, scale);
}

INLINE void dot_pixels(const bw_dot_args *g, const unsigned P, size_t first)
{
    const size_t step = g->code_step / sizeof(double);
    const double *codes = (const double *)g->codes + first * step, *w = g->weights;
    const int8_t *ew = g->weight_exps;
    float *acc = g->acc + first * g->stride;
    for (unsigned p = 0; g->start && p < P; p++)
        memcpy(acc + p * g->stride, g->start, BW_OUTPUT_TILE * sizeof *acc);
    for (size_t r = 0; r < g->run_count; r++) {
        const int32_t *scale = g->scale + first * g->scale_step + g->runs[r].at;
        const double *a = codes + g->runs[r].at * g->block;
        for (size_t left = g->runs[r].blocks; left; left--) {
            int32_t marks = 0;
#pragma GCC unroll 12
            for (unsigned p = 0; p < P; p++)
                marks |= scale[p * g->scale_step];
            if (!(marks & BW_WIDE_MARK)) {
                block_exact(g, P, a, w, ew, scale, acc);
            } else {
                for (unsigned p = 0; p < P; p++) {
                    const int32_t e = scale[p * g->scale_step];
                    if (e & BW_WIDE_MARK)
                        block_marked(a + p * step, w, g->block, ew, e, acc + p * g->stride);
                    else
                        block_exact(g, 1, a + p * step, w, ew, scale + p * g->scale_step, acc + p * g->stride);
                }
            }
            a += g->block, w += g->block * BW_OUTPUT_TILE, ew += BW_OUTPUT_TILE, scale++;
        }
    }
}

/* --- operands ------------------------------------------------------------------------------------------------------
 */

/* Formats whose codes are turned into values eight at a time; the others are rare beside mxfp8. */
INLINE int is_quick(const bw_format_traits *t)
{
    return t->format == BW_FORMAT_MXFP8_E4M3 || t->format == BW_FORMAT_MXFP8_E5M2 || t->kind == BW_KIND_INT;
}

/* Values of 8 code bytes, zero-extended. Shifted to their places in an fp16, the bits of an mxfp8 code are its value
 * but for a power of two: 2^-16 for e5m2, 2^-17 for e4m3, counting from the smallest subnormal. */
INLINE __m256 values_of(const bw_format_traits *t, __m256i c)
{
    if (t->kind == BW_KIND_INT)
        return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(c, 24), 24));
    const int e5m2 = t->format == BW_FORMAT_MXFP8_E5M2;
    const __m256i special = _mm256_set1_epi32(e5m2 ? 0x7C : 0x7F),
                  magnitude = _mm256_set1_epi32(e5m2 ? 0x7F00 : 0x3F80);
    const __m256i high = _mm256_slli_epi32(c, 8), low = e5m2 ? high : _mm256_slli_epi32(c, 7);
    __m256i half = _mm256_or_si256(_mm256_and_si256(high, _mm256_set1_epi32(0x8000)), _mm256_and_si256(low, magnitude));
    half = _mm256_andnot_si256(_mm256_cmpeq_epi32(_mm256_and_si256(c, special), special), half);
    half = _mm256_permute4x64_epi64(_mm256_packus_epi32(half, half), 0x08);
    return _mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(half)), _mm256_set1_ps(e5m2 ? 0x1p16f : 0x1p17f));
}

static void pack_wide(bw_dot_class c, const bw_format_traits *t, const bw_pack_args *g)
{
    if (!is_quick(t) || !g->codes) {
        bw_pack_wide_portable(c, t, g);
        return;
    }
    const __m256 unit = _mm256_set1_ps(1.0f / (float)(1u << bw_wide_unit(c, t, g->block)));
    const uint8_t *codes = g->codes;
    double *out = g->out;
    for (size_t k = 0; k < g->count; k++) {
        __m256 all = _mm256_setzero_ps();
        for (size_t i = 0; i < g->block; i += 8, codes += 8, out += 8) {
            const __m256 v = values_of(t, _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)codes)));
            const __m256 units = _mm256_mul_ps(v, unit);
            const __m256 whole = _mm256_round_ps(units, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
            all = _mm256_or_ps(all, _mm256_cmp_ps(units, whole, _CMP_NEQ_OQ));
            v_store_wide(out, v);
        }
        g->scale[k] = (int32_t)((uint32_t)(127 + g->exps[k]) << 23);
        g->scale[k] |= _mm256_movemask_ps(all) ? BW_WIDE_MARK : 0;
    }
}

static void widen_wide(const bw_format_traits *t, const uint8_t *codes, size_t blocks, size_t block, double *out)
{
    if (!is_quick(t)) {
        bw_widen_wide_portable(t, codes, blocks, block, out);
        return;
    }
    const __m256i byte = _mm256_set1_epi32(0xFF);
    for (size_t q = 0; q < blocks * block / 4; q++, out += 4 * BW_OUTPUT_TILE)
        for (size_t n = 0; n < BW_OUTPUT_TILE; n += 8, codes += 32) { /* of 8 outputs: 4 codes each */
            const __m256i c = _mm256_loadu_si256((const __m256i *)(const void *)codes);
            v_store_wide(out + n, values_of(t, _mm256_and_si256(c, byte)));
            v_store_wide(out + n + 16, values_of(t, _mm256_and_si256(_mm256_srli_epi32(c, 8), byte)));
            v_store_wide(out + n + 32, values_of(t, _mm256_and_si256(_mm256_srli_epi32(c, 16), byte)));
            v_store_wide(out + n + 48, values_of(t, _mm256_srli_epi32(c, 24)));
        }
}
