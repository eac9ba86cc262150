/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PATCH of neighbours in a row of the output (bw_patch in sim/fast.h), AVX-512: included by rows__avx512vnni.c after
 * sim/rows_fused.h. 16 channels at a time are loaded straight from the rows of the input that they come from, one
 * masked load each, whose masked lanes are not touched; the same block of four pixels is encoded together.
 */

/* Of 16 channels those that come from one row of taps. */
typedef struct patch_piece {
    int64_t offset; /* of lane 0 from tap (0, 0), floats */
    int64_t shift;  /* lane 0 is this channel of the row of taps; negative: of the row before */
    uint32_t ky;
    __mmask16 lanes;
} patch_piece;

/* Lanes from..end - 1, as far as they are 0..15. */
INLINE __mmask16 lane_range(int64_t from, int64_t end)
{
    from = from < 0 ? 0 : from;
    end = end > 16 ? 16 : end;
    return from < end ? (__mmask16)(((1u << end) - 1) & ~((1u << from) - 1)) : 0;
}

/* Inlined with constant B, the channels of a block. */
INLINE void patch_blocks(const bw_patch *g, const size_t B)
{
    const size_t per = B / 16, line = g->kernel_x * g->channels, n = g->kernel_y * line, blocks = (n + B - 1) / B;
    patch_piece pieces[BW_PATCH_PIECES];
    size_t first[BW_PATCH_BLOCKS + 1];
    size_t count = 0;
    for (size_t b = 0; b < blocks * per; b++) {
        const size_t end = n < b * 16 + 16 ? n : b * 16 + 16;
        first[b] = count;
        for (size_t ky = b * 16 / line; ky * line < end; ky++) {
            if (ky < g->first_row || ky >= g->end_row)
                continue;
            const int64_t shift = (int64_t)(b * 16) - (int64_t)(ky * line);
            pieces[count++] = (patch_piece){.offset = (int64_t)(ky * g->x_row) + shift,
                                            .shift = shift,
                                            .ky = (uint32_t)ky,
                                            .lanes = lane_range(-shift, (int64_t)line - shift)};
        }
    }
    first[blocks * per] = count;
    const side out = side_of(&g->out, 16, 1);
    const size_t step = g->stride * g->channels;
    for (size_t next = 0; next < g->pixels; next += 4) {
        /* Four neighbours; some of the last ones are done twice. */
        const size_t p = next + 4 <= g->pixels ? next : g->pixels < 4 ? 0 : g->pixels - 4;
        const float *x[4];
        int64_t from[4], end[4]; /* channels of a row of taps that lie inside */
        int inside = 1;
        for (size_t i = 0; i < 4; i++) {
            const size_t at = p + i < g->pixels ? p + i : g->pixels - 1;
            const int64_t column = g->left + (int64_t)(at * g->stride);
            x[i] = g->x + (int64_t)(at * step);
            from[i] = -column * (int64_t)g->channels;
            end[i] = (g->width - column) * (int64_t)g->channels;
            inside = inside && column >= 0 && column + (int64_t)g->kernel_x <= g->width;
        }
        spot to = moved(out.first, p * out.code_pixel, p * out.exp_pixel);
        const size_t written = g->pixels < 4 ? g->pixels : 4;
        for (size_t b = 0; b < blocks; b++, to = moved(to, B, 1)) {
            vf y[32]; /* `per` of each pixel */
#pragma GCC unroll 8
            for (size_t j = 0; j < per; j++) {
                __m512 u[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
                for (size_t k = first[b * per + j]; k < first[b * per + j + 1]; k++) {
                    const patch_piece *piece = &pieces[k];
#pragma GCC unroll 4
                    for (size_t i = 0; i < 4; i++) {
                        __mmask16 lanes = piece->lanes;
                        if (!inside)
                            lanes &= lane_range(from[i] - piece->shift, end[i] - piece->shift);
                        u[i] = _mm512_mask_loadu_ps(u[i], lanes, x[i] + piece->offset);
                    }
                }
#pragma GCC unroll 4
                for (size_t i = 0; i < 4; i++)
                    y[i * per + j] = (vf)u[i];
            }
            int8_t exps[4];
            four_factors scales;
            const int over = block_scales(&out, (int)B, (int)(4 * per), 0, y, exps, &scales);
            const size_t some = per < 4 ? 4 / per : 1; /* pixels whose codes fill vectors */
#pragma GCC unroll 4
            for (size_t i = 0; i < 4; i += some) {
                uint8_t codes[128];
                write_codes(&out, (int)B, (int)(some * per), 0, y + i * per, scales.f + i, over, codes);
                for (size_t k = 0; k < some && i + k < written; k++) {
                    memcpy(to.codes + (i + k) * out.code_pixel, codes + B * k, B);
                    to.exps[(i + k) * out.exp_pixel] = exps[i + k];
                }
            }
        }
    }
}

static void patch(const bw_patch *g)
{
    if (g->out.format->block == 16)
        patch_blocks(g, 16);
    else if (g->out.format->block == 32)
        patch_blocks(g, 32);
    else if (g->out.format->block == 64)
        patch_blocks(g, 64);
    else
        patch_blocks(g, 128);
}
