/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PATCH of neighbours in a row of the output (bw_patch in sim/fast.h), AVX-512: included by rows__avx512vnni.c after
 * sim/rows_fused.h. There are two ways.
 *
 * By blocks: 16 channels at a time are loaded straight from the rows of the input that they come from, one masked load
 * each, whose masked lanes are not touched; the same block of four pixels is encoded together.
 *
 * By planes, where windows overlap much: a code depends on its value and the block's exponent alone, and neighbours
 * have few different exponents. So a row of the input is encoded once for each exponent that a block with values of
 * that row has, and blocks are put together from these codes. What does not fit is left to the other way.
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

/* --- by planes --------------------------------------------------------------------------------------------------- */

#define PLANE_FLOATS (12u << 10) /* of the rows of the input under some pixels */
#define PLANE_CODES  (64u << 10) /* bytes */
#define PLANES       24u         /* exponents, at most */
#define PLANE_PIECES 128u
#define PLANE_PIXELS 128u                  /* at a time */
#define PLANE_BLOCKS (BW_PATCH_BLOCKS / 4) /* at least 64 long */

/* Up to 16 floats that a block has of a row of values, from a pixel's first one on. */
typedef struct plane_values {
    size_t at;
    __mmask16 lanes;
} plane_values;

/* Codes that 64 of a patch have of a row of codes: lane 0 is `at` from a pixel's first one. */
typedef struct plane_codes {
    int64_t at;
    __mmask64 lanes;
} plane_codes;

typedef struct plane_plan {
    size_t line, step;          /* channels of a row of taps, and to the next pixel */
    size_t blocks, row, pixels; /* row: elements from one row of values or codes to the next, of so many pixels */
    size_t tops, planes;        /* rows of largest magnitudes, after those of values; planes that there is room for */
    size_t values_first[PLANE_BLOCKS + 1], codes_first[BW_PATCH_BLOCKS / 4 + 1]; /* by block, by 64 codes */
    uint64_t rows[PLANE_BLOCKS]; /* of taps, that a block has codes of */
    plane_values values[PLANE_PIECES];
    plane_codes codes[PLANE_PIECES];
    struct {
        size_t first, end; /* rows of taps, two at least, that lie whole in one block; in order */
    } top[PLANE_BLOCKS];
} plane_plan;

static inline size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Adds the pieces of channels from .. end - 1 of a row. 0: they are too many. */
static int add_values(plane_plan *a, size_t *count, size_t row, size_t from, size_t end)
{
    for (; from < end && *count < PLANE_PIECES; from += 16)
        a->values[(*count)++] = (plane_values){row * a->row + from, lane_range(0, (int64_t)(end - from))};
    return from >= end;
}

/* 0: this PATCH is better done by blocks. */
static int plan_planes(const bw_patch *g, size_t B, plane_plan *a)
{
    a->line = g->kernel_x * g->channels;
    a->step = g->stride * g->channels;
    const size_t n = g->kernel_y * a->line;
    if (B < 64 || g->kernel_x < 2 * g->stride || g->pixels < 8 || g->kernel_y > 64)
        return 0;
    a->blocks = (n + B - 1) / B;
    a->tops = 0;
    for (size_t b = 0; b < a->blocks; b++) {
        const size_t first = (b * B + a->line - 1) / a->line, end = smaller(n, b * B + B) / a->line;
        if (first + 2 <= end) {
            a->top[a->tops].first = first;
            a->top[a->tops++].end = end;
        }
    }
    const size_t most = smaller(PLANE_FLOATS / (g->kernel_y + a->tops), PLANE_CODES / (4 * g->kernel_y)) / 64 * 64;
    if (most < a->line + 7 * a->step)
        return 0;
    a->pixels = smaller(smaller((most - a->line) / a->step + 1, PLANE_PIXELS), g->pixels);
    a->row = ((a->pixels - 1) * a->step + a->line + 63) / 64 * 64;
    a->planes = smaller(PLANE_CODES / (g->kernel_y * a->row), PLANES);

    size_t values = 0, codes = 0, top = 0;
    for (size_t b = 0; b < a->blocks; b++) {
        const size_t end = smaller(n, b * B + B);
        a->values_first[b] = values;
        a->rows[b] = 0;
        int fits = 1;
        size_t whole = 0, whole_end = 0; /* rows of which only the largest magnitudes are looked at */
        if (top < a->tops && a->top[top].first * a->line >= b * B && a->top[top].end * a->line <= end) {
            whole = a->top[top].first;
            whole_end = a->top[top].end;
            fits = add_values(a, &values, g->kernel_y + top++, 0, a->line);
        }
        for (size_t ky = b * B / a->line; ky * a->line < end && fits; ky++) {
            const size_t from = ky * a->line < b * B ? b * B - ky * a->line : 0,
                         to = smaller(end - ky * a->line, a->line);
            a->rows[b] |= 1ull << ky;
            if (ky >= g->first_row && ky < g->end_row && (ky < whole || ky >= whole_end))
                fits = add_values(a, &values, ky, from, to);
        }
        if (!fits)
            return 0;
    }
    a->values_first[a->blocks] = values;
    for (size_t v = 0; v < a->blocks * B / 64; v++) {
        a->codes_first[v] = codes;
        for (size_t ky = v * 64 / a->line; ky * a->line < smaller(n, v * 64 + 64); ky++) {
            if (codes == PLANE_PIECES || codes - a->codes_first[v] == 5)
                return 0;
            const int64_t first = (int64_t)(ky * a->line) - (int64_t)(v * 64), end = first + (int64_t)a->line;
            const uint64_t below = first > 0 ? (1ull << first) - 1 : 0;
            a->codes[codes++] =
                (plane_codes){(int64_t)(ky * a->row) - first, (end < 64 ? (1ull << end) - 1 : ~0ull) & ~below};
        }
    }
    a->codes_first[a->blocks * B / 64] = codes;
    return 1;
}

/* The rows of the input under pixels from `first` on, zeros outside, and the largest magnitudes of some together. */
static void gather_rows(const bw_patch *g, const plane_plan *a, size_t first, float *rows)
{
    const int64_t column = g->left + (int64_t)(first * g->stride);
    const int64_t columns = (int64_t)(a->row / g->channels);
    /* Columns begin .. end - 1 lie inside. */
    const int64_t begin = column < 0 ? (-column < columns ? -column : columns) : 0;
    int64_t end = g->width - column < columns ? g->width - column : columns;
    end = end < begin ? begin : end;
    const size_t before = (size_t)begin * g->channels, inside = (size_t)(end - begin) * g->channels;
    for (size_t ky = 0; ky < g->kernel_y; ky++) {
        float *row = rows + ky * a->row;
        if (ky < g->first_row || ky >= g->end_row) {
            memset(row, 0, a->row * sizeof *row);
            continue;
        }
        memset(row, 0, before * sizeof *row);
        memcpy(row + before, g->x + ky * g->x_row + first * a->step + before, inside * sizeof *row);
        memset(row + before + inside, 0, (a->row - before - inside) * sizeof *row);
    }
    for (size_t t = 0; t < a->tops; t++) {
        float *row = rows + (g->kernel_y + t) * a->row;
        for (size_t i = 0; i < a->row; i += 16) {
            vi m = v_set_int(0);
            for (size_t ky = a->top[t].first; ky < a->top[t].end; ky++)
                m = v_max_int(m, (vi)v_load(rows + ky * a->row + i) & 0x7FFFFFFF);
            v_store(row + i, (vf)m);
        }
    }
}

static __attribute__((noinline)) void encode_row(const side *out, const float *row, size_t n, float scale,
                                                 uint8_t *codes)
{
    for (size_t i = 0; i < n; i += 64) {
        vf y[4];
#pragma GCC unroll 4
        for (size_t k = 0; k < 4; k++)
            y[k] = v_load(row + i + 16 * k);
        write_codes(out, 64, 4, 0, y, &scale, 1, codes + i);
    }
}

/* Planes of codes, made as they are asked for. */
typedef struct plane_set {
    size_t count;
    uint8_t of[256];                 /* by exponent; 0xFF: there is none */
    uint64_t made[PLANES];           /* rows */
    uint8_t codes[64 + PLANE_CODES]; /* pieces begin up to 64 before their row, in lanes that are not loaded */
} plane_set;

/* The plane of an exponent with the rows that are wanted; NULL: there are too many. */
static inline const uint8_t *find_plane(plane_set *s, const bw_patch *g, const plane_plan *a, const side *out,
                                        const float *rows, uint64_t wanted, uint8_t e, float scale)
{
    size_t plane = s->of[e];
    if (__builtin_expect(plane == 0xFF, 0)) {
        if (s->count == a->planes)
            return NULL;
        plane = s->count++;
        s->of[e] = (uint8_t)plane;
        s->made[plane] = 0;
    }
    uint8_t *codes = s->codes + 64 + plane * g->kernel_y * a->row;
    for (uint64_t left = wanted & ~s->made[plane]; __builtin_expect(left != 0, 0); left &= left - 1) {
        const size_t ky = (size_t)__builtin_ctzll(left);
        encode_row(out, rows + ky * a->row, a->row, scale, codes + ky * a->row);
        s->made[plane] |= 1ull << ky;
    }
    return codes;
}

/* 64 codes of some pixels from `count` pieces of a plane, a constant. */
INLINE void copy_pieces(const plane_codes *piece, const size_t count, const uint8_t *from, size_t from_step,
                        uint8_t *to, size_t to_step, size_t pixels)
{
    const uint8_t *x[5];
    __mmask64 lanes[5];
#pragma GCC unroll 5
    for (size_t k = 0; k < count; k++) {
        x[k] = from + piece[k].at;
        lanes[k] = piece[k].lanes;
    }
    for (size_t i = 0; pixels; pixels--, i += from_step, to += to_step) {
        __m512i v = _mm512_setzero_si512();
#pragma GCC unroll 5
        for (size_t k = 0; k < count; k++)
            v = _mm512_mask_loadu_epi8(v, lanes[k], x[k] + i);
        _mm512_storeu_si512(to, v);
    }
}

static void copy_codes(const plane_codes *piece, size_t count, const uint8_t *from, size_t from_step, uint8_t *to,
                       size_t to_step, size_t pixels)
{
    switch (count) {
    case 0:
        copy_pieces(piece, 0, from, from_step, to, to_step, pixels);
        break;
    case 1:
        copy_pieces(piece, 1, from, from_step, to, to_step, pixels);
        break;
    case 2:
        copy_pieces(piece, 2, from, from_step, to, to_step, pixels);
        break;
    case 3:
        copy_pieces(piece, 3, from, from_step, to, to_step, pixels);
        break;
    case 4:
        copy_pieces(piece, 4, from, from_step, to, to_step, pixels);
        break;
    default:
        copy_pieces(piece, 5, from, from_step, to, to_step, pixels);
    }
}

/* Exponents of block b of some pixels, and 2^-e. Both have room for three more. */
static void plane_exponents(const plane_plan *a, const side *out, const float *rows, size_t b, size_t pixels,
                            int8_t *exps, float *scales)
{
    for (size_t p = 0; p < pixels; p += 4) {
        const float *x[4];
        vi m[4];
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; i++) {
            x[i] = rows + smaller(p + i, pixels - 1) * a->step;
            m[i] = v_set_int(0);
        }
        for (size_t k = a->values_first[b]; k < a->values_first[b + 1]; k++) {
            const size_t at = a->values[k].at;
            const __mmask16 lanes = a->values[k].lanes;
#pragma GCC unroll 4
            for (size_t i = 0; i < 4; i++)
                m[i] = v_max_int(m[i], (vi)_mm512_maskz_loadu_ps(lanes, x[i] + at) & 0x7FFFFFFF);
        }
        int32_t bytes;
        four_scales(out, 0, m[0], m[1], m[2], m[3], &bytes, scales + p);
        memcpy(exps + p, &bytes, sizeof bytes);
    }
}

/* Returns how many pixels it has done; the others have too many different exponents. */
static size_t patch_planes(const bw_patch *g, const size_t B, const plane_plan *a)
{
    float rows[PLANE_FLOATS];
    plane_set set;
    int8_t exps[PLANE_PIXELS + 4];
    float scales[PLANE_PIXELS + 4];
    const side out = side_of(&g->out, 16, 1);
    for (size_t first = 0; first < g->pixels; first += a->pixels) {
        const size_t pixels = smaller(a->pixels, g->pixels - first);
        uint8_t *to = out.first.codes + first * out.code_pixel;
        set.count = 0;
        memset(set.of, 0xFF, sizeof set.of);
        gather_rows(g, a, first, rows);
        for (size_t b = 0; b < a->blocks; b++) {
            plane_exponents(a, &out, rows, b, pixels, exps, scales);
            for (size_t p = 0, alike; p < pixels; p += alike) {
                for (alike = 1; p + alike < pixels && exps[p + alike] == exps[p];)
                    alike++;
                const uint8_t *from = find_plane(&set, g, a, &out, rows, a->rows[b], (uint8_t)exps[p], scales[p]);
                if (!from)
                    return first;
                for (size_t v = b * B / 64; v < (b + 1) * B / 64; v++)
                    copy_codes(a->codes + a->codes_first[v], a->codes_first[v + 1] - a->codes_first[v],
                               from + p * a->step, a->step, to + p * out.code_pixel + v * 64, out.code_pixel, alike);
            }
            const size_t step = out.exp_pixel;
            int8_t *e = out.first.exps + first * step + b;
            for (size_t p = 0; p < pixels; p++)
                e[p * step] = exps[p];
        }
    }
    return g->pixels;
}

static void patch(const bw_patch *g)
{
    const size_t block = g->out.format->block;
    plane_plan a;
    bw_patch rest = *g;
    if (plan_planes(g, block, &a)) {
        const size_t done = patch_planes(g, block, &a);
        rest.x += done * a.step;
        rest.left += (int64_t)(done * g->stride);
        rest.out.codes += done * g->out.code_step;
        rest.out.exps += done * g->out.exp_step;
        rest.pixels -= done;
    }
    if (rest.pixels == 0)
        return;
    if (block == 16)
        patch_blocks(&rest, 16);
    else if (block == 32)
        patch_blocks(&rest, 32);
    else if (block == 64)
        patch_blocks(&rest, 64);
    else
        patch_blocks(&rest, 128);
}
