/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CONV of one kernel call (bw_direct in sim/fast.h), AVX-512 VNNI: included by rows__avx512vnni.c after
 * sim/rows_fused.h. The sums of 8 neighbouring pixels x 32 outputs stay in registers from the bias to the encoded
 * result. Sums are those of dot_bytes.h: see there for what `sums` holds. Here every pixel takes the fused
 * multiply-add, which needs the fewest operations: where reductions are short the ends weigh more than the balance
 * between pipes.
 */

#define DIRECT_PIXELS 8 /* and 7, where rows are a multiple of that */

INLINE __m512i broadcast_codes(const uint8_t *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm512_set1_epi32(v);
}

/* The sums of T tiles from tile number t on for P pixels from `codes`, `scale` on. Inlined with constant P, T and
 * is_signed. */
INLINE void direct_sums(const bw_direct *g, const uint8_t *codes, const int32_t *scale, size_t t, const int P,
                        const int T, const int is_signed, vf s[DIRECT_PIXELS][2])
{
    const size_t code_step = g->code_step, scale_step = g->scale_step, w_step = g->blocks * 256;
    const size_t q_block = is_signed ? 32 : 16, q_step = g->blocks * q_block;
    const int8_t *w = g->weights + t * w_step;
    const int32_t *q = g->sums + t * q_step;
#pragma GCC unroll 2
    for (int i = 0; i < T; i++) {
        const vf start = g->bias ? v_load(g->bias + (t + (size_t)i) * 16) : v_set(0.0f);
#pragma GCC unroll 8
        for (int p = 0; p < P; p++)
            s[p][i] = start;
    }
    for (size_t r = 0; r < g->run_count; r++) {
        const uint8_t *a = codes + g->runs[r].at * 16u;
        const int32_t *ea = scale + g->runs[r].at;
        for (size_t left = g->runs[r].blocks; left; left--, a += 16, ea++, w += 256, q += q_block) {
            __m512i v[2][4], first[2];
            vf base[2];
#pragma GCC unroll 2
            for (int i = 0; i < T; i++) {
                base[i] = (vf)_mm512_loadu_ps(q + (size_t)i * q_step);
                first[i] = is_signed ? _mm512_loadu_si512(q + (size_t)i * q_step + 16) : (__m512i)base[i];
#pragma GCC unroll 4
                for (int k = 0; k < 4; k++)
                    v[i][k] = _mm512_loadu_si512(w + (size_t)i * w_step + 64 * k);
            }
#pragma GCC unroll 8
            for (int p = 0; p < P; p++) {
                __m512i d[2];
#pragma GCC unroll 2
                for (int i = 0; i < T; i++)
                    d[i] = first[i];
#pragma GCC unroll 4
                for (int k = 0; k < 4; k++) {
                    const __m512i x = broadcast_codes(a + (size_t)p * code_step + 4 * k);
#pragma GCC unroll 2
                    for (int i = 0; i < T; i++)
                        d[i] = _mm512_dpbusd_epi32(d[i], x, v[i][k]);
                }
                const vf e = v_set(((const float *)(const void *)ea)[(size_t)p * scale_step]);
#pragma GCC unroll 2
                for (int i = 0; i < T; i++)
                    s[p][i] = v_fma((vf)d[i] - base[i], e, s[p][i]);
            }
        }
    }
}

/* What the end of a call needs to know, resolved once. */
typedef struct direct_end {
    side b, half, block; /* residual; outputs in fp16 and in blocks */
} direct_end;

/* Residual, activation, and both outputs. p: number of the first pixel. Inlined with constant T and kinds. */
INLINE void direct_finish(const bw_direct *g, const direct_end *to, size_t p, size_t t, const int P, const int T,
                          const int residual, const int half, const int block, vf s[DIRECT_PIXELS][2])
{
    const size_t c = t * 16, left = g->n - c; /* channels from here on */
    const int whole = left >= (size_t)T * 16;
    if (residual) {
        const size_t bytes = to->b.traits->device_bytes;
#pragma GCC unroll 8
        for (int i = 0; i < P; i++)
#pragma GCC unroll 2
            for (int k = 0; k < T; k++) {
                const size_t at = p + (size_t)i, from = c + 16 * (size_t)k;
                const spot b =
                    moved(to->b.first, at * to->b.code_pixel + from * bytes, at * to->b.exp_pixel + from / to->b.block);
                s[i][k] += read_vector(&to->b, b, g->n - from);
            }
    }
    /* Blocks alone take a ReLU in their stride. */
    const int relu = g->activation->kind == BW_ACT_RELU && !half;
    if (g->activation->kind != BW_ACT_NONE && !relu) {
        const int clip = g->activation->kind == BW_ACT_CLIP;
        const vf lo = v_set(clip ? g->activation->lo : 0.0f), hi = v_set(g->activation->hi);
#pragma GCC unroll 8
        for (int i = 0; i < P; i++)
#pragma GCC unroll 2
            for (int k = 0; k < T; k++)
                s[i][k] = clip ? v_max(lo, v_min(hi, s[i][k])) : v_max(s[i][k], lo);
    }
    if (half) {
        uint8_t *at = to->half.first.codes + p * to->half.code_pixel + c * 2;
#pragma GCC unroll 8
        for (int i = 0; i < P; i++, at += to->half.code_pixel)
#pragma GCC unroll 2
            for (int k = 0; k < T; k++) {
                const vh h = to_fp16(s[i][k]);
                const size_t n = left - 16 * (size_t)k;
                if (whole || n >= 16)
                    v_store_half((uint16_t *)(void *)at + 16 * k, h);
                else
                    _mm256_mask_storeu_epi16(at + 32 * k, lanes_below(n), h);
            }
    }
    if (block) {
        if (!whole) { /* padding */
#pragma GCC unroll 8
            for (int i = 0; i < P; i++)
                s[i][T - 1] = v_keep(s[i][T - 1], left - 16 * (size_t)(T - 1));
        }
        const int each = T == 2 ? 2 : 4; /* pixels of 64 values */
#pragma GCC unroll 4
        for (int next = 0; next < P; next += each) {
            const int i = next + each > P ? P - each : next; /* some of the last ones are done twice */
            uint8_t buffer[64], *codes = to->block.first.codes + (p + (size_t)i) * to->block.code_pixel + c;
            int8_t four[4], *exps = to->block.first.exps + (p + (size_t)i) * to->block.exp_pixel + t;
            const vf y[4] = {s[i][0], T == 2 ? s[i][T - 1] : s[i + 1][0], T == 2 ? s[i + 1][0] : s[i + 2][0],
                             T == 2 ? s[i + 1][T - 1] : s[i + 3][0]};
            if (relu)
                write_int(&to->block, 16, 4, 1, y, (spot){buffer, four});
            else
                write_int(&to->block, 16, 4, 0, y, (spot){buffer, four});
#pragma GCC unroll 4
            for (int k = 0; k < each; k++, codes += to->block.code_pixel, exps += to->block.exp_pixel) {
                memcpy(codes, buffer + 16 * T * k, 16 * (size_t)T);
                memcpy(exps, four + T * k, (size_t)T);
            }
        }
    }
}

/* Inlined with constant P, T and kinds. */
INLINE void direct_group(const bw_direct *g, const direct_end *to, size_t p, size_t t, const int P, const int T,
                         const int residual, const int half, const int block)
{
    const uint8_t *codes = g->codes + p * g->code_step;
    const int32_t *scale = g->scale + p * g->scale_step;
    vf s[DIRECT_PIXELS][2];
    if (g->is_signed)
        direct_sums(g, codes, scale, t, P, T, 1, s);
    else
        direct_sums(g, codes, scale, t, P, T, 0, s);
    direct_finish(g, to, p, t, P, T, residual, half, block, s);
}

/* All pixels, all tiles. */
INLINE void direct_all(const bw_direct *g, const direct_end *to, const int P, const int residual, const int half,
                       const int block)
{
    const size_t tiles = (g->n + 15) / 16, step = (size_t)P, at_once = g->all_at_once ? g->pixels : step;
    for (size_t from = 0; from < g->pixels; from += at_once)
        for (size_t t = 0; t < tiles; t += 2)
            for (size_t p = from; p < from + at_once && p < g->pixels; p += step) {
                /* Some of the last ones are done twice. */
                const size_t at = p + step > g->pixels ? g->pixels - step : p;
                if (t + 1 < tiles)
                    direct_group(g, to, at, t, P, 2, residual, half, block);
                else
                    direct_group(g, to, at, t, P, 1, residual, half, block);
            }
}

INLINE void direct_pixels(const bw_direct *g, const direct_end *to, const int residual, const int half, const int block)
{
    if ((g->pixels + 6) / 7 * 7 < (g->pixels + 7) / 8 * 8)
        direct_all(g, to, 7, residual, half, block);
    else
        direct_all(g, to, 8, residual, half, block);
}

static void direct(const bw_direct *g)
{
    const side outs[2] = {side_of(&g->out[0], 16, 1), side_of(&g->out[1], 16, 1)};
    direct_end to = {.b = side_of(&g->b, 16, 0), .half = {.kind = SIDE_NONE}, .block = {.kind = SIDE_NONE}};
    for (int i = 0; i < 2; i++)
        if (outs[i].kind == SIDE_FP16)
            to.half = outs[i];
        else if (outs[i].kind == SIDE_BLOCK16)
            to.block = outs[i];
    const int residual = to.b.kind != SIDE_NONE, half = to.half.kind != SIDE_NONE, block = to.block.kind != SIDE_NONE;
    if (!residual && half && !block)
        direct_pixels(g, &to, 0, 1, 0);
    else if (!residual && !half)
        direct_pixels(g, &to, 0, 0, 1);
    else if (!residual)
        direct_pixels(g, &to, 0, 1, 1);
    else if (half && !block)
        direct_pixels(g, &to, 1, 1, 0);
    else if (!half)
        direct_pixels(g, &to, 1, 0, 1);
    else
        direct_pixels(g, &to, 1, 1, 1);
}
