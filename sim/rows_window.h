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

/* Channels from..n, one vector at a time. */
static void window_rest(const bw_window *w, const side *x, size_t from)
{
    const size_t bytes = x->traits->device_bytes;
    for (size_t c = from; c < w->n; c += V_LANES)
        for (size_t p = 0; p < w->pixels; p++) {
            vf y = v_set(w->average ? 0.0f : -__builtin_inff());
            for (size_t i = 0; i < w->rows; i++)
                for (size_t j = 0; j < w->columns; j++) {
                    const spot at =
                        moved(x->first, p * x->code_pixel + i * w->code_row + j * w->code_column + c * bytes,
                              p * x->exp_pixel + i * w->exp_row + j * w->exp_column + c / x->block);
                    y = window_step(w->average, y, read_vector(x, at, w->n - c));
                }
            v_store(w->y + p * w->stride + c, w->average ? y * w->factor : y);
        }
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
    window_rest(w, &x, chunks * chunk);
}
