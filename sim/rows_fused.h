/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fused pass of the x86 row kernels (bw_fused in sim/fast.h), written once: included by rows__ISA.c after
 * sim/rows_sides.h. Channels go through registers in chunks of 64 (128 if an output has blocks of 128): read, operate,
 * activate, write. What is left of a pixel after whole chunks goes through a buffer, block by block.
 */

typedef struct fused_pass {
    side a, b, out[2];
    bw_row_activation activation;
    int multiply;
} fused_pass;

INLINE vf activated(const bw_row_activation *a, vf y)
{
    if (a->kind == BW_ACT_RELU)
        return v_max(y, v_set(0.0f));
    if (a->kind == BW_ACT_CLIP)
        return v_max(v_set(a->lo), v_min(v_set(a->hi), y));
    return y;
}

typedef struct kinds {
    side_kind a, b, out0, out1;
    int multiply;
    int relu; /* the activation is one, and left to the outputs */
} kinds;

typedef struct spots {
    spot a, b, out0, out1;
} spots;

/* Bytes from one chunk to the next; constants for most kinds. */
INLINE size_t chunk_codes(const side *d, side_kind kind, size_t chunk)
{
    switch (kind) {
    case SIDE_FLOAT:
        return chunk * 4;
    case SIDE_FP16:
    case SIDE_BF16:
        return chunk * 2;
    case SIDE_BLOCK16:
    case SIDE_BLOCK32:
    case SIDE_BLOCK64:
    case SIDE_TABLE:
        return chunk;
    default:
        return d->code_step;
    }
}

INLINE size_t chunk_exps(const side *d, side_kind kind, size_t chunk)
{
    switch (kind) {
    case SIDE_FLOAT:
    case SIDE_FP16:
    case SIDE_BF16:
        return 0;
    case SIDE_BLOCK16:
        return chunk / 16;
    case SIDE_BLOCK32:
    case SIDE_TABLE:
        return chunk / 32;
    case SIDE_BLOCK64:
        return chunk / 64;
    default:
        return d->exp_step;
    }
}

INLINE spot next_chunk(const side *d, side_kind kind, size_t chunk, spot at)
{
    return moved(at, chunk_codes(d, kind, chunk), chunk_exps(d, kind, chunk));
}

/* Inlined with constant kinds, as far as they are known. */
INLINE void do_chunk(const fused_pass *p, kinds k, spots at, const line_set *lines, int vectors)
{
    vf y[CHUNK_VECTORS];
    read_chunk(&p->a, k.a, at.a, lines, vectors, y);
    if (k.b != SIDE_NONE) {
        vf z[CHUNK_VECTORS];
        read_chunk(&p->b, k.b, at.b, lines, vectors, z);
        if (k.multiply) {
#pragma GCC unroll 16
            for (int i = 0; i < vectors; i++)
                y[i] *= z[i];
        } else {
#pragma GCC unroll 16
            for (int i = 0; i < vectors; i++)
                y[i] += z[i];
        }
    }
    if (k.relu) { /* later */
    } else if (p->activation.kind == BW_ACT_RELU) {
#pragma GCC unroll 16
        for (int i = 0; i < vectors; i++)
            y[i] = v_max(y[i], v_set(0.0f));
    } else if (p->activation.kind == BW_ACT_CLIP) {
        const vf lo = v_set(p->activation.lo), hi = v_set(p->activation.hi);
#pragma GCC unroll 16
        for (int i = 0; i < vectors; i++)
            y[i] = v_max(lo, v_min(hi, y[i]));
    }
    if (k.a == SIDE_PADDED_LINES) { /* padding is zero whatever the activation
                                       makes of it */
#pragma GCC unroll 16
        for (int i = 0; i < vectors; i++)
            y[i] = v_keep(y[i], line_count(lines, (size_t)(i * V_LANES)));
    }
    write_chunk(&p->out[0], k.out0, vectors, k.relu, y, at.out0);
    if (k.out1 != SIDE_NONE)
        write_chunk(&p->out[1], k.out1, vectors, k.relu, y, at.out1);
}

/* What is left of a pixel and ends in a block of 128; n is a multiple of 16. Inlined with constant kinds. */
INLINE void do_last(const fused_pass *p, kinds k, spots at, size_t n)
{
    vf y[CHUNK_VECTORS];
#pragma GCC unroll 16
    for (int i = 0; i < CHUNK_VECTORS; i++) {
        const size_t c = (size_t)(i * V_LANES);
        y[i] = v_set(0.0f);
        if (c >= n)
            continue;
        y[i] = v_load((const float *)(const void *)at.a.codes + c);
        if (k.b != SIDE_NONE)
            y[i] += from_vector(BW_FORMAT_FP16, (const uint16_t *)(const void *)at.b.codes + c);
        if (!k.relu)
            y[i] = activated(&p->activation, y[i]);
        if (k.out1 != SIDE_NONE)
            v_store_half((uint16_t *)(void *)at.out1.codes + c, k.relu ? to_fp16_relu(y[i]) : to_fp16(y[i]));
    }
    write_int(&p->out[0], 128, CHUNK_VECTORS, k.relu, y, at.out0);
}

/* Reads n < 128 channels into y. */
INLINE void read_rest(const side *d, side_kind kind, spot at, const line_set *lines, size_t n, vf *y)
{
    const size_t bytes = d->traits->device_bytes;
    for (size_t c = 0; c < n; c += V_LANES)
        y[c / V_LANES] =
            is_lines(kind) ? line_vector(lines, c) : read_vector(d, moved(at, c * bytes, c / d->block), n - c);
}

/* The rest of a pixel after whole chunks. */
static void do_rest(const fused_pass *p, kinds k, spots at, const line_set *lines, size_t n)
{
    vf y[CHUNK_VECTORS], z[CHUNK_VECTORS];
    read_rest(&p->a, k.a, at.a, lines, n, y);
    if (k.b != SIDE_NONE)
        read_rest(&p->b, k.b, at.b, lines, n, z);
    for (int i = 0; i < CHUNK_VECTORS; i++) {
        const size_t c = (size_t)(i * V_LANES);
        if (c >= n) {
            y[i] = v_set(0.0f);
            continue;
        }
        if (k.b != SIDE_NONE)
            y[i] = k.multiply ? y[i] * z[i] : y[i] + z[i];
        y[i] = activated(&p->activation, y[i]);
        if (is_lines(k.a))
            y[i] = v_keep(y[i], line_count(lines, c));
        else if (n - c < V_LANES)
            y[i] = v_keep(y[i], n - c);
    }
    for (int o = 0; o < 2; o++) {
        const side *d = &p->out[o];
        const spot to = o ? at.out1 : at.out0;
        if (d->kind == SIDE_NONE)
            continue;
        if (d->kind == SIDE_BLOCK16 && n <= 64) {
            const size_t blocks = (n + 15) / 16;
            uint8_t codes[64];
            int8_t exps[4];
            write_int(d, 16, 64 / V_LANES, 0, y, (spot){codes, exps});
            for (size_t b = 0; b < blocks; b++) {
                memcpy(to.codes + 16 * b, codes + 16 * b, 16);
                to.exps[b] = exps[b];
            }
        } else {
            write_part(d, n, (const float *)y, to);
        }
    }
}

/*
 * Channels from..n of each pixel, fewer than a chunk, if all blocks are of 16:
 * four times 16 of them at a time, from whatever pixels they are.
 */
INLINE void run_pieces(const fused_pass *p, kinds k, size_t pixels, size_t n, size_t from)
{
    enum { PER = 16 / V_LANES };
    const size_t a_bytes = p->a.traits->device_bytes, b_bytes = k.b == SIDE_NONE ? 0 : p->b.traits->device_bytes;
    size_t pixel = 0, c = from;
    while (pixel < pixels) {
        vf y[4 * PER];
        spot to[4];
        size_t half[4], count[4], pieces = 0; /* half: elements before this piece in out1 */
        for (; pieces < 4 && pixel < pixels; pieces++) {
            const size_t left = n - c < 16 ? n - c : 16;
            const spot a = moved(p->a.first, pixel * p->a.code_pixel + c * a_bytes, pixel * p->a.exp_pixel + c / 16);
            const spot b = moved(p->b.first, pixel * p->b.code_pixel + c * b_bytes, pixel * p->b.exp_pixel + c / 16);
            to[pieces] = moved(p->out[0].first, pixel * p->out[0].code_pixel + c, pixel * p->out[0].exp_pixel + c / 16);
            half[pieces] = pixel * p->out[1].code_pixel / 2 + c;
            count[pieces] = left;
#pragma GCC unroll 2
            for (size_t i = 0; i < 16; i += V_LANES) {
                vf v = v_set(0.0f);
                if (i < left) {
                    const size_t lanes = left - i < V_LANES ? left - i : V_LANES;
                    v = v_load_part((const float *)(const void *)a.codes + i, lanes);
                    if (k.b != SIDE_NONE)
                        v += read_vector(&p->b, moved(b, i * b_bytes, 0), lanes);
                    v = v_keep(activated(&p->activation, v), lanes);
                }
                y[pieces * PER + i / V_LANES] = v;
            }
            c += 16;
            if (c >= n) {
                c = from;
                pixel++;
            }
        }
        for (size_t i = pieces * PER; i < 4 * PER; i++)
            y[i] = v_set(0.0f);
        uint8_t codes[64];
        int8_t exps[4];
        write_int(&p->out[0], 16, 64 / V_LANES, 0, y, (spot){codes, exps});
        for (size_t i = 0; i < pieces; i++) {
            memcpy(to[i].codes, codes + 16 * i, 16);
            to[i].exps[0] = exps[i];
        }
        if (k.out1 == SIDE_NONE)
            continue;
        for (size_t i = 0; i < pieces; i++)
            write_part(&p->out[1], count[i], (const float *)&y[i * PER],
                       (spot){(uint8_t *)((uint16_t *)(void *)p->out[1].first.codes + half[i]), NULL});
    }
}

/* `pixels` times n channels. For SIDE_LINES these are the pixels' `line`
 * channels, padded to `padded` each. Inlined with constant chunk of 64 or 128,
 * and kinds. */
INLINE void run_pixels(const fused_pass *p, kinds k, size_t chunk, size_t pixels, size_t n, size_t line, size_t padded)
{
    const float *row = (const float *)(const void *)p->a.first.codes;
    line_set lines = {{NULL}, {0}};
    size_t column = 0;
    /* What is left of the pixels after whole chunks: together, if formats allow.
     */
    const int pieces = k.a == SIDE_FLOAT && k.out0 == SIDE_BLOCK16 && !k.multiply && n % chunk && pixels > 1 &&
                       (k.b == SIDE_NONE || k.b == SIDE_BLOCK16 || k.b == SIDE_FP16) &&
                       (k.out1 == SIDE_NONE || k.out1 == SIDE_FP16) && chunk == 64;
    if (pieces)
        run_pieces(p, k, pixels, n, n - n % chunk);
    const int last = chunk == 128 && k.a == SIDE_FLOAT && (k.b == SIDE_NONE || k.b == SIDE_FP16) && !k.multiply &&
                     k.out0 == SIDE_BLOCK128 && (k.out1 == SIDE_NONE || k.out1 == SIDE_FP16);
    /* Copies, as what is written through bytes' pointers may be anything in memory. */
    const size_t code_a = p->a.code_pixel, code_b = p->b.code_pixel, code_0 = p->out[0].code_pixel,
                 code_1 = p->out[1].code_pixel, exp_a = p->a.exp_pixel, exp_b = p->b.exp_pixel,
                 exp_0 = p->out[0].exp_pixel, exp_1 = p->out[1].exp_pixel;
    spots first = {p->a.first, p->b.first, p->out[0].first, p->out[1].first};
    for (; pixels; pixels--) {
        spots at = first;
        for (size_t left = n; left; left -= chunk) {
            if (is_lines(k.a)) {
#pragma GCC unroll 8
                for (size_t i = 0; i < chunk / 16; i++) {
                    lines.at[i] = row + column;
                    lines.count[i] = column >= line ? 0 : line - column < 16 ? line - column : 16;
                    column += 16;
                    if (column == padded) {
                        column = 0;
                        row += p->a.code_pixel / sizeof *row;
                    }
                }
            }
            if (left < chunk) {
                if (pieces)
                    break; /* later, those of all pixels */
                if (last && left % 16 == 0)
                    do_last(p, k, at, left);
                else
                    do_rest(p, k, at, &lines, left);
                break;
            }
            do_chunk(p, k, at, &lines, (int)chunk / V_LANES);
            at.a = next_chunk(&p->a, k.a, chunk, at.a);
            at.b = next_chunk(&p->b, k.b, chunk, at.b);
            at.out0 = next_chunk(&p->out[0], k.out0, chunk, at.out0);
            at.out1 = next_chunk(&p->out[1], k.out1, chunk, at.out1);
        }
        first.a = moved(first.a, code_a, exp_a);
        first.b = moved(first.b, code_b, exp_b);
        first.out0 = moved(first.out0, code_0, exp_0);
        first.out1 = moved(first.out1, code_1, exp_1);
    }
}

/* The common kinds have loops of their own. */
INLINE int run_known(const fused_pass *p, size_t chunk, size_t pixels, size_t n, size_t line, size_t padded, int relu,
                     side_kind a, side_kind b, side_kind out0, side_kind out1)
{
    const kinds k = {a, b, out0, out1, 0, relu};
    if (p->a.kind != a || p->b.kind != b || p->out[0].kind != out0 || p->out[1].kind != out1 || p->multiply ||
        (relu && p->activation.kind != BW_ACT_RELU))
        return 0;
    run_pixels(p, k, chunk, pixels, n, line, padded);
    return 1;
}

/* Whether the pixels of a tensor follow each other without a gap, with `padded`
 * channels each. */
static int adjoin(const bw_side *s, size_t n, size_t padded)
{
    if (!s->format)
        return 1;
    const size_t block = s->format->block;
    return s->code_step == padded * s->format->traits->device_bytes &&
           (block == 1 ? n == padded : bw_round_up(n, block) == padded && s->exp_step == padded / block);
}

static void fused(const bw_fused *f)
{
    /* A block format first: which output is which makes no difference here. */
    const int swap = f->out[1].format && f->out[1].format->block > 1;
    const bw_side *sides[] = {&f->a, &f->b, &f->out[swap], &f->out[!swap]};
    size_t chunk = 64, align = 16, n = f->n, pixels = f->pixels, line = 0;
    for (int i = 0; i < 4; i++)
        if (sides[i]->format && sides[i]->format->block > align)
            align = sides[i]->format->block;
    if (align > chunk)
        chunk = align;
    const size_t padded = bw_round_up(n, align);
    fused_pass p = {.activation = *f->activation, .multiply = f->multiply};
    side *const to[] = {&p.a, &p.b, &p.out[0], &p.out[1]};
    int dense = 1;
    for (int i = 0; i < 4; i++) {
        *to[i] = side_of(sides[i], chunk, i > 1);
        dense = dense && (i == 0 || adjoin(sides[i], n, padded));
    }
    if (dense && n == padded && adjoin(&f->a, n, n)) { /* one run of channels */
        n *= pixels;
        pixels = 1;
    } else if (dense && n % chunk && p.a.kind == SIDE_FLOAT && (chunk == 64 || n % 16)) {
        p.a.kind = n == padded ? SIDE_LINES : SIDE_PADDED_LINES;
        line = n;
        n = padded * pixels;
        pixels = 1;
    }
    const kinds k = {p.a.kind, p.b.kind, p.out[0].kind, p.out[1].kind, p.multiply, 0};
#define KNOWN(chunk, relu, a, b, out0, out1)                                                                           \
    run_known(&p, chunk, pixels, n, line, padded, relu, SIDE_##a, SIDE_##b, SIDE_##out0, SIDE_##out1)
/* What convolutions end with: alone, or with a residual and both outputs. */
#define KNOWN_BLOCKS(chunk, relu, block)                                                                               \
    (KNOWN(chunk, relu, FLOAT, NONE, block, NONE) || KNOWN(chunk, relu, FLOAT, FP16, block, NONE) ||                   \
     KNOWN(chunk, relu, FLOAT, FP16, block, FP16))
    if (chunk == 128) {
        if (!KNOWN_BLOCKS(128, 1, BLOCK128) && !KNOWN(128, 0, FLOAT, NONE, BLOCK128, NONE) &&
            !KNOWN(128, 0, FP16, NONE, BLOCK128, NONE))
            run_pixels(&p, k, 128, pixels, n, line, padded);
    } else if (!KNOWN_BLOCKS(64, 1, BLOCK16) && !KNOWN_BLOCKS(64, 1, BLOCK32) && !KNOWN_BLOCKS(64, 1, BLOCK64) &&
               !KNOWN(64, 1, FLOAT, NONE, FP16, NONE) && !KNOWN(64, 1, LINES, NONE, BLOCK16, NONE) &&
               !KNOWN_BLOCKS(64, 0, BLOCK16) && !KNOWN(64, 0, FLOAT, BLOCK16, BLOCK16, NONE) &&
               !KNOWN(64, 0, FLOAT, NONE, TABLE, NONE) && !KNOWN(64, 0, FLOAT, FP16, TABLE, NONE) &&
               !KNOWN(64, 0, FLOAT, NONE, BLOCK32, NONE) && !KNOWN(64, 0, FLOAT, NONE, BLOCK64, NONE) &&
               !KNOWN(64, 0, FP16, NONE, BLOCK16, NONE) && !KNOWN(64, 0, FP16, NONE, BLOCK64, NONE) &&
               !KNOWN(64, 0, FLOAT, NONE, FP16, NONE) && !KNOWN(64, 0, FLOAT, FP16, FP16, NONE) &&
               !KNOWN(64, 0, LINES, NONE, BLOCK16, NONE) && !KNOWN(64, 0, LINES, NONE, FP16, NONE) &&
               !KNOWN(64, 0, PADDED_LINES, NONE, BLOCK16, NONE)) {
        run_pixels(&p, k, 64, pixels, n, line, padded);
    }
#undef KNOWN_BLOCKS
#undef KNOWN
}
