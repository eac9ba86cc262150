/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pools of the x86 row kernels (bw_window in sim/fast.h), written once: included by rows__ISA.c after
 * sim/rows_fused.h. Some channels stay in registers over all taps.
 */

/* One step of the reduction. The sum starts at +0, the maximum at -infinity. */
INLINE vf window_step(int average, vf y, vf x)
{
    return average ? y + x : v_max(x, y);
}

/* Whole chunks, from the first channel on. Inlined with constant kind, vectors and operation. */
INLINE void window_chunks(const bw_window *w, const side *x, side_kind kind, int vectors, int average, size_t chunks)
{
    for (size_t c = 0; c < chunks; c++)
        for (size_t p = 0; p < w->pixels; p++) {
            const spot first =
                moved(x->first, c * x->code_step + p * x->code_pixel, c * x->exp_step + p * x->exp_pixel);
            vf y[CHUNK_VECTORS];
#pragma GCC unroll 16
            for (int i = 0; i < vectors; i++)
                y[i] = v_set(average ? 0.0f : -__builtin_inff());
            for (size_t i = 0; i < w->rows; i++)
                for (size_t j = 0; j < w->columns; j++) {
                    vf v[CHUNK_VECTORS];
                    const spot at =
                        moved(first, i * w->code_row + j * w->code_column, i * w->exp_row + j * w->exp_column);
                    read_chunk(x, kind, at, NULL, vectors, v);
#pragma GCC unroll 16
                    for (int k = 0; k < vectors; k++)
                        y[k] = window_step(average, y[k], v[k]);
                }
            float *to = w->y + p * w->stride + c * (size_t)(vectors * V_LANES);
#pragma GCC unroll 16
            for (int i = 0; i < vectors; i++)
                v_store(to + i * V_LANES, average ? y[i] * w->factor : y[i]);
        }
}

/* The next vector of the n > 0 channels that are left. Inlined with constant `half`. */
INLINE vf window_read(const side *x, const int half, spot at, size_t n)
{
    uint16_t part[V_LANES];
    const uint16_t *codes = (const uint16_t *)(const void *)at.codes;
    if (!half)
        return read_vector(x, at, n);
    return v_half_to_float(n < V_LANES ? v_copy_part(part, codes, n) : codes);
}

/* `vectors` from channel c on, the last one whole or not. Inlined with constant half, vectors and operation. */
INLINE void window_few(const bw_window *w, const side *x, const int half, const int vectors, const int average,
                       size_t c)
{
    const size_t bytes = x->traits->device_bytes, n = w->n - c;
    for (size_t p = 0; p < w->pixels; p++) {
        const spot first = moved(x->first, p * x->code_pixel + c * bytes, p * x->exp_pixel);
        vf y[2];
#pragma GCC unroll 2
        for (int i = 0; i < vectors; i++)
            y[i] = v_set(average ? 0.0f : -__builtin_inff());
        for (size_t i = 0; i < w->rows; i++)
            for (size_t j = 0; j < w->columns; j++) {
                const spot at = moved(first, i * w->code_row + j * w->code_column, i * w->exp_row + j * w->exp_column);
#pragma GCC unroll 2
                for (int k = 0; k < vectors; k++) {
                    const size_t from = (size_t)k * V_LANES;
                    const spot here = moved(at, from * bytes, (c + from) / x->block);
                    y[k] = window_step(average, y[k], window_read(x, half, here, n - from));
                }
            }
#pragma GCC unroll 2
        for (int i = 0; i < vectors; i++)
            v_store(w->y + p * w->stride + c + (size_t)i * V_LANES, average ? y[i] * w->factor : y[i]);
    }
}

/* Channels from..n. half: of fp16. Inlined with constant half. */
INLINE void window_rest(const bw_window *w, const side *x, const int half, const int average, size_t from)
{
    for (; from + V_LANES < w->n; from += 2 * V_LANES)
        window_few(w, x, half, 2, average, from);
    if (from < w->n)
        window_few(w, x, half, 1, average, from);
}

INLINE void window_kinds(const bw_window *w, const side *x, int average, size_t chunks)
{
    const int half = 64 / V_LANES, whole = 128 / V_LANES;
    switch (x->kind) {
    case SIDE_FLOAT:
        window_chunks(w, x, SIDE_FLOAT, half, average, chunks);
        break;
    case SIDE_FP16:
        window_chunks(w, x, SIDE_FP16, half, average, chunks);
        break;
    case SIDE_BF16:
        window_chunks(w, x, SIDE_BF16, half, average, chunks);
        break;
    case SIDE_BLOCK16:
        window_chunks(w, x, SIDE_BLOCK16, half, average, chunks);
        break;
    case SIDE_BLOCK32:
        window_chunks(w, x, SIDE_BLOCK32, half, average, chunks);
        break;
    case SIDE_BLOCK64:
        window_chunks(w, x, SIDE_BLOCK64, half, average, chunks);
        break;
    case SIDE_BLOCK128:
        window_chunks(w, x, SIDE_BLOCK128, whole, average, chunks);
        break;
    case SIDE_WORDS:
        if (x->block > 64)
            window_chunks(w, x, SIDE_WORDS, whole, average, chunks);
        else
            window_chunks(w, x, SIDE_WORDS, half, average, chunks);
        break;
    case SIDE_TABLE:
        window_chunks(w, x, SIDE_TABLE, half, average, chunks);
        break;
    default:
        break;
    }
}

static void window(const bw_window *w)
{
    const size_t chunk = w->x.format->block > 64 ? 128 : 64, chunks = w->n / chunk;
    const side x = side_of(&w->x, chunk, 0);
    if (w->average)
        window_kinds(w, &x, 1, chunks);
    else
        window_kinds(w, &x, 0, chunks);
    if (x.kind != SIDE_FP16)
        window_rest(w, &x, 0, w->average, chunks * chunk);
    else if (w->average)
        window_rest(w, &x, 1, 1, chunks * chunk);
    else
        window_rest(w, &x, 1, 0, chunks * chunk);
}
