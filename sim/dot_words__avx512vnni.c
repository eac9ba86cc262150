/* SPDX-License-Identifier: Apache-2.0 */
/* Weights of 9 bits to pairs, AVX-512. */
#include <immintrin.h>
#include <string.h>

#include "sim/fast.h"

/* 32 codes of 8 outputs x 4, 36 bytes: each 128-bit lane takes 9 bytes, code j from bit j of bytes j and j + 1 on.
 * Reads 43 bytes. */
static inline __attribute__((always_inline)) __m512i unpack32(const uint8_t *packed)
{
    const __m512i pick = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8));
    const __m512i up = _mm512_broadcast_i32x4(_mm_setr_epi16(7, 6, 5, 4, 3, 2, 1, 0));
    __m512i w = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)packed));
    w = _mm512_inserti32x4(w, _mm_loadu_si128((const __m128i *)(const void *)(packed + 9)), 1);
    w = _mm512_inserti32x4(w, _mm_loadu_si128((const __m128i *)(const void *)(packed + 18)), 2);
    w = _mm512_inserti32x4(w, _mm_loadu_si128((const __m128i *)(const void *)(packed + 27)), 3);
    return _mm512_srai_epi16(_mm512_sllv_epi16(_mm512_shuffle_epi8(w, pick), up), 7);
}

void bw_widen_words_avx512vnni(const uint8_t *packed, size_t blocks, size_t block, int16_t *out)
{
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    uint8_t last[80];
    for (size_t left = blocks * block / 4; left; left--, packed += 72, out += 64) {
        if (left == 1) { /* nothing may follow the last bytes */
            memcpy(last, packed, 72);
            packed = last;
        }
        const __m512i lo = unpack32(packed), hi = unpack32(packed + 36);
        _mm512_storeu_si512(out, _mm512_permutex2var_epi32(lo, even, hi));
        _mm512_storeu_si512(out + 32, _mm512_permutex2var_epi32(lo, odd, hi));
    }
}
