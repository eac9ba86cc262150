/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CONV kernels, AVX2. VPMADDUBSW would saturate, so codes are widened to 16 bits, where VPMADDWD is exact: the largest
 * pair, 2 * 448 * 448, is far below 2^31.
 */
#include <immintrin.h>
#include <string.h>

#include "sim/fast.h"

#define GROUP  4
#define INLINE static inline __attribute__((always_inline))

INLINE __m256i broadcast(const void *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm256_set1_epi32(v);
}

INLINE __m256i load_exponents(const int8_t *e)
{
    return _mm256_slli_epi32(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)e)), 23);
}

INLINE void accumulate(float *acc, __m256i d, __m256i ew, const int32_t *ea)
{
    __m256 scale = _mm256_castsi256_ps(_mm256_add_epi32(ew, broadcast(ea)));
    _mm256_storeu_ps(acc, _mm256_fmadd_ps(_mm256_cvtepi32_ps(d), scale, _mm256_loadu_ps(acc)));
}

/* P is a constant: 2 * P sums of 8 outputs stay in registers. */
INLINE void dot16_any(const bw_dot_args *g, const unsigned P)
{
    const int16_t *w = g->weights;
    const int8_t *we = g->weight_exps;
    const size_t B = g->block, step = g->code_step / 2;
    if (g->start)
        for (unsigned p = 0; p < P; p++)
            memcpy(g->acc + p * g->stride, g->start, BW_OUTPUT_TILE * sizeof(float));
    for (size_t r = 0; r < g->run_count; r++) {
        const int16_t *a = (const int16_t *)g->codes + g->runs[r].at * B;
        const int32_t *ea = g->scale + g->runs[r].at;
        for (size_t left = g->runs[r].blocks; left; left--) {
            __m256i lo[GROUP], hi[GROUP];
#pragma GCC unroll 4
            for (unsigned p = 0; p < P; p++)
                lo[p] = hi[p] = _mm256_setzero_si256();
            for (size_t i = 0; i < B; i += 2, w += 32) {
                __m256i v0 = _mm256_loadu_si256((const __m256i *)(const void *)w);
                __m256i v1 = _mm256_loadu_si256((const __m256i *)(const void *)(w + 16));
#pragma GCC unroll 4
                for (unsigned p = 0; p < P; p++) {
                    __m256i x = broadcast(a + p * step + i);
                    lo[p] = _mm256_add_epi32(lo[p], _mm256_madd_epi16(v0, x));
                    hi[p] = _mm256_add_epi32(hi[p], _mm256_madd_epi16(v1, x));
                }
            }
            __m256i e0 = load_exponents(we), e1 = load_exponents(we + 8);
#pragma GCC unroll 4
            for (unsigned p = 0; p < P; p++) {
                accumulate(g->acc + p * g->stride, lo[p], e0, ea + p * g->scale_step);
                accumulate(g->acc + p * g->stride + 8, hi[p], e1, ea + p * g->scale_step);
            }
            a += B, we += 16, ea++;
        }
    }
}

static void dot16(const bw_dot_args *g)
{
    switch (g->pixels) {
    case 1:
        dot16_any(g, 1);
        break;
    case 2:
        dot16_any(g, 2);
        break;
    case 3:
        dot16_any(g, 3);
        break;
    default:
        dot16_any(g, 4);
    }
}

/* 16 codes are 2 * bits bytes, eight to each 128-bit lane. Each code's two bytes go to a 16-bit lane, its bits to the
 * lane's top (a multiplication, AVX2 has no such shift), and back down with or without sign. */
INLINE void unpack16(const uint8_t *packed, unsigned bits, __m256i pick, __m256i up, int is_signed, uint8_t *codes)
{
    const __m128i down = _mm_cvtsi32_si128(16 - (int)bits);
    __m256i w = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)packed));
    w = _mm256_mullo_epi16(_mm256_shuffle_epi8(w, pick), up);
    if (is_signed) {
        w = _mm256_sra_epi16(w, down);
        w = _mm256_packs_epi16(w, w);
    } else {
        w = _mm256_srl_epi16(w, down);
        w = _mm256_packus_epi16(w, w);
    }
    w = _mm256_permute4x64_epi64(w, 0x08);
    _mm_storeu_si128((__m128i *)(void *)codes, _mm256_castsi256_si128(w));
}

static void unpack(const bw_format_traits *t, const uint8_t *packed, size_t count, uint8_t *codes)
{
    const unsigned bits = t->code_bits;
    uint8_t pick_bytes[32];
    uint16_t up_words[16];
    for (unsigned i = 0; i < 16; i++) {
        const unsigned bit = i * bits;
        pick_bytes[2 * i] = (uint8_t)(bit / 8);
        pick_bytes[2 * i + 1] = (uint8_t)(bit / 8 + 1);
        up_words[i] = (uint16_t)(1u << (16 - bits - bit % 8));
    }
    const __m256i pick = _mm256_loadu_si256((const __m256i *)(const void *)pick_bytes);
    const __m256i up = _mm256_loadu_si256((const __m256i *)(const void *)up_words);
    const int is_signed = t->kind == BW_KIND_INT;
    size_t i = 0;
    for (; i + 64 <= count; i += 16) /* reads up to 10 bytes past its own, which are there but for the last */
        unpack16(packed + i * bits / 8, bits, pick, up, is_signed, codes + i);
    for (; i < count; i += 16) {
        uint8_t part[16] = {0};
        memcpy(part, packed + i * bits / 8, 2 * bits);
        unpack16(part, bits, pick, up, is_signed, codes + i);
    }
}

static void pack16(const bw_pack_args *g)
{
    const size_t n = g->count * g->block;
    int16_t *out = g->out;
    for (size_t k = 0; k < g->count; k++)
        g->scale[k] = (int32_t)((uint32_t)(127 + (g->codes ? g->exps[k] : 0)) << 23);
    if (!g->codes)
        memset(out, 0, n * sizeof *out);
    else if (g->values)
        for (size_t i = 0; i < n; i++)
            out[i] = g->values[g->codes[i]];
    else
        for (size_t i = 0; i < n; i += 16)
            _mm256_storeu_si256((__m256i *)(void *)(out + i),
                                _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(g->codes + i))));
}

/* Codes of each output [i % 4] to pairs: 64 bytes are 16 outputs x 4. */
static void widen(const uint8_t *codes, const int16_t *values, size_t blocks, size_t block, int16_t *out)
{
    for (size_t q = 0; q < blocks * block / 4; q++, codes += 64, out += 64) {
        for (size_t h = 0; h < 64; h += 32) { /* 8 outputs: 32 codes to 16 + 16 */
            __m256i x, y;
            if (values) {
                int16_t wide[32];
                for (size_t j = 0; j < 32; j++)
                    wide[j] = values[codes[h + j]];
                x = _mm256_loadu_si256((const __m256i *)(const void *)wide);
                y = _mm256_loadu_si256((const __m256i *)(const void *)(wide + 16));
            } else {
                x = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(codes + h)));
                y = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(codes + h + 16)));
            }
            /* 32-bit pairs x: n0a n0b n1a n1b | n2a n2b n3a n3b; a: pairs 0, b: pairs 1 */
            __m256 fx = _mm256_castsi256_ps(x), fy = _mm256_castsi256_ps(y);
            __m256i first = _mm256_castps_si256(_mm256_shuffle_ps(fx, fy, 0x88)); /* n0 n1 n4 n5 | n2 n3 n6 n7 */
            __m256i second = _mm256_castps_si256(_mm256_shuffle_ps(fx, fy, 0xDD));
            first = _mm256_permute4x64_epi64(first, 0xD8);
            second = _mm256_permute4x64_epi64(second, 0xD8);
            _mm256_storeu_si256((__m256i *)(void *)(out + h / 2), first);
            _mm256_storeu_si256((__m256i *)(void *)(out + 32 + h / 2), second);
        }
    }
}

const bw_dot_kernels bw_dot_avx2 = {
    .group = GROUP,
    .wide = &bw_wide_avx2,
    .dot16 = dot16,
    .pack16 = pack16,
    .unpack = unpack,
    .widen = widen,
    .widen_words = bw_widen_words_avx2,
};
