/* SPDX-License-Identifier: Apache-2.0 */
/* COPY with a channel map of 16-bit codes (bw_gather in sim/fast.h), AVX-512: included by rows__avx512vnni.c. */

static void gather(const bw_gather *g)
{
    for (size_t p = 0; p < g->pixels; p++) {
        const uint16_t *x = g->x + p * g->x_pixel;
        uint16_t *y = g->y + p * g->y_pixel;
        for (size_t o = 0; o < g->n; o += 32) {
            __m512i v = _mm512_setzero_si512();
            for (size_t i = g->first[o / 32]; i < g->first[o / 32 + 1]; i++) {
                const bw_gather_part *part = &g->parts[i];
                const uint16_t *from = x + part->from;
                if (part->neighbours) {
                    v = _mm512_or_si512(v, _mm512_maskz_loadu_epi16(part->lanes, from));
                    continue;
                }
                const __m512i a = _mm512_maskz_loadu_epi16(part->there[0], from);
                const __m512i b = _mm512_maskz_loadu_epi16(part->there[1], from + 32);
                const __m512i index = _mm512_loadu_si512(part->index);
                v = _mm512_or_si512(v, _mm512_maskz_permutex2var_epi16(part->lanes, a, index, b));
            }
            const size_t left = g->n - o;
            _mm512_mask_storeu_epi16(y + o, left >= 32 ? 0xFFFFFFFF : (__mmask32)((1u << left) - 1), v);
        }
    }
}
