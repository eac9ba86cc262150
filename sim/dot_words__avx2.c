/* SPDX-License-Identifier: Apache-2.0 */
/* Weights of 9 bits to pairs, AVX2. */
#include <immintrin.h>
#include <string.h>

#include "sim/fast.h"

/* 16 codes of 4 outputs x 4, 18 bytes: each 128-bit lane takes 9 bytes, code j from bit j of bytes j and j + 1 on.
 * Reads 25 bytes. */
static inline __attribute__((always_inline)) __m256 unpack16(const uint8_t *packed)
{
    const __m256i pick = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8));
    const __m256i up = _mm256_broadcastsi128_si256(_mm_setr_epi16(128, 64, 32, 16, 8, 4, 2, 1));
    __m256i w = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)packed));
    w = _mm256_inserti128_si256(w, _mm_loadu_si128((const __m128i *)(const void *)(packed + 9)), 1);
    w = _mm256_srai_epi16(_mm256_mullo_epi16(_mm256_shuffle_epi8(w, pick), up), 7);
    return _mm256_castsi256_ps(w);
}

void bw_widen_words_avx2(const uint8_t *packed, size_t blocks, size_t block, int16_t *out)
{
    uint8_t last[80];
    for (size_t left = blocks * block / 4; left; left--, packed += 72, out += 64) {
        if (left == 1) { /* nothing may follow the last bytes */
            memcpy(last, packed, 72);
            packed = last;
        }
        for (size_t h = 0; h < 2; h++) { /* 8 outputs; pairs: n0a n0b n1a n1b | n2a n2b n3a n3b */
            const __m256 x = unpack16(packed + 36 * h), y = unpack16(packed + 36 * h + 18);
            const __m256d a = _mm256_castps_pd(_mm256_shuffle_ps(x, y, 0x88)); /* n0 n1 n4 n5 | n2 n3 n6 n7 */
            const __m256d b = _mm256_castps_pd(_mm256_shuffle_ps(x, y, 0xDD));
            _mm256_storeu_pd((double *)(void *)(out + 16 * h), _mm256_permute4x64_pd(a, 0xD8));
            _mm256_storeu_pd((double *)(void *)(out + 32 + 16 * h), _mm256_permute4x64_pd(b, 0xD8));
        }
    }
}
