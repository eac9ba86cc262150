/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fused pass of the x86 row kernels (bw_fused in sim/fast.h), written once: included by rows__ISA.c after
 * sim/rows_simd.h. Channels go through registers in chunks of 64 (128 if an output has blocks of 128): read, operate,
 * activate, and for each output find the exponents of the chunk's blocks together, scale, round, pack. What is left of
 * a pixel after whole chunks goes through a buffer, block by block.
 */

#define INLINE static inline __attribute__((always_inline))

/* --- formats, resolved once per call ------------------------------------------------------------------------------ */

typedef enum side_kind {
    SIDE_NONE,
    SIDE_FLOAT,
    SIDE_LINES, /* fp32 of several pixels, which do not follow each other in memory, as one run of channels */
    SIDE_FP16,
    SIDE_BF16,
    SIDE_BLOCK16, /* INT, by block */
    SIDE_BLOCK32,
    SIDE_BLOCK64,
    SIDE_BLOCK128,
    SIDE_WORDS, /* INT16 */
    SIDE_PAIRS, /* INT with microexponents, to be written; to readers it is like any other */
    SIDE_TABLE
} side_kind;

/*
 * TABLE elements are small floats: with their bits moved up they are fp16 numbers, which the hardware converts,
 * subnormals included. Code 1, the unit, becomes 2^(10 - M) subnormals of fp16 and so stands for 2^-(14 + M).
 */
typedef struct table_shape {
    int shift, sign; /* left shifts of the magnitude, of the sign */
    int magnitude;   /* its mask */
    int most;        /* larger magnitudes are NaN or infinity, which count as zero */
    int more;        /* what to add to the exponent */
} table_shape;

/* One tensor of the pass, at the current chunk. */
typedef struct side {
    side_kind kind;
    uint32_t block;
    const bw_format_traits *traits;
    uint8_t *codes;
    int8_t *exps;
    size_t code_step, exp_step; /* from one chunk to the next */
    table_shape table;
    const float *lines[8]; /* SIDE_LINES: every 16 channels of the chunk */
} side;

static table_shape shape_of(const bw_format_traits *t)
{
    const int m = t->mantissa_bits - 1, magnitude = (1 << (t->code_bits - 1)) - 1;
    const int most = t->format == BW_FORMAT_MXFP8_E4M3 ? 0x7E : t->format == BW_FORMAT_MXFP8_E5M2 ? 0x7B : magnitude;
    return (table_shape){10 - m, 16 - t->code_bits, magnitude, most, 14 + m};
}

static side side_of(const bw_side *b, size_t chunk, int written)
{
    side s = {.kind = SIDE_NONE};
    if (!b->format)
        return s;
    s.traits = b->format->traits;
    s.block = b->format->block;
    s.code_step = chunk * s.traits->device_bytes;
    s.exp_step = s.block > 1 ? chunk / s.block : 0;
    switch (b->format->kind) {
    case BW_KIND_FLOAT:
        s.kind = SIDE_FLOAT;
        break;
    case BW_KIND_VECTOR:
        s.kind = s.traits->format == BW_FORMAT_FP16 ? SIDE_FP16 : SIDE_BF16;
        break;
    case BW_KIND_INT:
        if (written && s.traits->sub_block) {
            s.kind = SIDE_PAIRS;
            break;
        }
        s.kind = s.block == 16   ? SIDE_BLOCK16
                 : s.block == 32 ? SIDE_BLOCK32
                 : s.block == 64 ? SIDE_BLOCK64
                                 : SIDE_BLOCK128;
        break;
    case BW_KIND_INT16:
        s.kind = SIDE_WORDS;
        break;
    case BW_KIND_TABLE:
        s.kind = SIDE_TABLE;
        s.table = shape_of(s.traits);
    }
    return s;
}

INLINE void advance(side *s)
{
    s->codes += s->code_step;
    s->exps += s->exp_step;
}

/* --- reading a chunk -----------------------------------------------------------------------------------------------
 */

/* Up to four exponents of consecutive blocks; reads no more than `count`. */
INLINE __m128i load_exps(const int8_t *exps, int count)
{
    int32_t bytes = 0;
    if (count >= 4)
        memcpy(&bytes, exps, 4);
    else if (count == 2)
        memcpy(&bytes, exps, 2);
    else
        memcpy(&bytes, exps, 1);
    return _mm_cvtepi8_epi32(_mm_cvtsi32_si128(bytes));
}

INLINE vf table_values(const table_shape *t, const uint8_t *codes, vf s)
{
    /* The sum makes +0 of -0. */
    return v_fma(v_element_to_float(codes, t->magnitude, t->most, t->shift, t->sign), s, v_set(0.0f));
}

INLINE void read_blocks(const side *d, int block, int vectors, int table, vf *y)
{
#pragma GCC unroll 2
    for (int f = 0; f < vectors * V_LANES / 64; f++) {
        const __m128i e = load_exps(d->exps + f * 64 / block, block > 64 ? 1 : 64 / block);
        const __m128i powers = _mm_slli_epi32(_mm_add_epi32(e, _mm_set1_epi32(127 + (table ? d->table.more : 0))), 23);
#pragma GCC unroll 8
        for (int i = 0; i < 64 / V_LANES; i++) {
            const int at = f * (64 / V_LANES) + i;
            const vf s = (vf)v_pick(powers, i * V_LANES / block);
            const uint8_t *codes = d->codes + at * V_LANES;
            y[at] = table ? table_values(&d->table, codes, s) : v_float(v_load_s8(codes)) * s;
        }
    }
}

INLINE vf words_to_float(const uint8_t *codes)
{
    return v_float((v_load_u16((const uint16_t *)(const void *)codes) << 16) >> 16);
}

INLINE void read_chunk(const side *d, int vectors, vf *y)
{
    switch (d->kind) {
    case SIDE_FLOAT:
#pragma GCC unroll 16
        for (int i = 0; i < vectors; i++)
            y[i] = v_load((const float *)(const void *)d->codes + i * V_LANES);
        break;
    case SIDE_LINES:
#pragma GCC unroll 16
        for (int i = 0; i < vectors; i++)
            y[i] = v_load(d->lines[i * V_LANES / 16] + i * V_LANES % 16);
        break;
    case SIDE_FP16:
#pragma GCC unroll 16
        for (int i = 0; i < vectors; i++)
            y[i] = from_vector(BW_FORMAT_FP16, (const uint16_t *)(const void *)d->codes + i * V_LANES);
        break;
    case SIDE_BF16:
#pragma GCC unroll 16
        for (int i = 0; i < vectors; i++)
            y[i] = from_vector(BW_FORMAT_BF16, (const uint16_t *)(const void *)d->codes + i * V_LANES);
        break;
    case SIDE_BLOCK16:
        read_blocks(d, 16, vectors, 0, y);
        break;
    case SIDE_BLOCK32:
        read_blocks(d, 32, vectors, 0, y);
        break;
    case SIDE_BLOCK64:
        read_blocks(d, 64, vectors, 0, y);
        break;
    case SIDE_BLOCK128:
        read_blocks(d, 128, vectors, 0, y);
        break;
    case SIDE_WORDS:
#pragma GCC unroll 16
        for (int i = 0; i < vectors; i++)
            y[i] =
                words_to_float(d->codes + i * V_LANES * 2) * v_set(power(d->exps[(uint32_t)(i * V_LANES) / d->block]));
        break;
    default: /* SIDE_TABLE; never SIDE_NONE */
        read_blocks(d, 32, vectors, 1, y);
    }
}

/* --- writing a chunk -----------------------------------------------------------------------------------------------
 */

/* Exponents of the last bits of four blocks from their largest magnitudes, clamped below. Zeros and subnormals are far
 * below every exp_min. */
INLINE __m128i four_exponents(const bw_format_traits *t, __m128i max)
{
    const __m128i e = _mm_sub_epi32(_mm_srli_epi32(max, 23), _mm_set1_epi32(127 + t->emax_shift));
    return _mm_max_epi32(e, _mm_set1_epi32(t->exp_min));
}

/* The exponents of a chunk's blocks, and 2^-e of each four of them; returns whether one was above the range. */
INLINE int block_scales(const bw_format_traits *t, int block, int vectors, const vf *y, int8_t *exps, __m128i *scales)
{
    const int per = block / V_LANES, blocks = vectors / per;
    vi m[8];
#pragma GCC unroll 8
    for (int b = 0; b < blocks; b++) {
        m[b] = (vi)y[b * per] & 0x7FFFFFFF;
#pragma GCC unroll 16
        for (int i = 1; i < per; i++)
            m[b] = v_max_int(m[b], (vi)y[b * per + i] & 0x7FFFFFFF);
    }
    int over = 0;
#pragma GCC unroll 2
    for (int b = 0; b < blocks; b += 4) {
        const int left = blocks - b;
        const vi second = left > 1 ? m[b + 1] : m[b], third = left > 2 ? m[b + 2] : m[b];
        __m128i e = four_exponents(t, v_max_four(m[b], second, third, left > 2 ? m[b + 3] : second));
        const __m128i most = _mm_set1_epi32(t->exp_max);
        over |= _mm_movemask_epi8(_mm_cmpgt_epi32(e, most));
        e = _mm_min_epi32(e, most);
        const int32_t bytes = _mm_cvtsi128_si32(
            _mm_shuffle_epi8(e, _mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1)));
        memcpy(exps + b, &bytes, left > 3 ? 4 : left > 1 ? 2 : 1);
        scales[b / 4] = _mm_slli_epi32(_mm_sub_epi32(_mm_set1_epi32(127), e), 23);
    }
    return over;
}

/* Within the exponent range |y| * 2^-e is below 2^m, so that rounding leaves the codes by one at most, and bytes can
 * be clamped instead of floats. */
INLINE void write_int(const side *d, int block, int vectors, const vf *y)
{
    const bw_format_traits *t = d->traits;
    __m128i scales[2];
    const int over = block_scales(t, block, vectors, y, d->exps, scales);
    vi q[CHUNK_VECTORS];
#pragma GCC unroll 16
    for (int i = 0; i < vectors; i++) {
        const int b = i * V_LANES / block;
        q[i] = v_round(y[i] * (vf)v_pick(scales[b / 4], b % 4));
    }
    if (__builtin_expect(over, 0)) {
        const vf hi = v_set((float)t->max_code), lo = v_set((float)-t->max_code);
#pragma GCC unroll 16
        for (int i = 0; i < vectors; i++) {
            const int b = i * V_LANES / block;
            q[i] = v_round(v_min(v_max(y[i] * (vf)v_pick(scales[b / 4], b % 4), lo), hi));
        }
    }
#pragma GCC unroll 2
    for (int f = 0; f < vectors * V_LANES / 64; f++)
        v_store_codes(d->codes + f * 64, q + f * (64 / V_LANES), (int)t->max_code);
}

INLINE void write_table(const side *d, int vectors, const vf *y)
{
    const bw_format_traits *t = d->traits;
    __m128i scales[2];
    block_scales(t, 32, vectors, y, d->exps, scales);
#pragma GCC unroll 16
    for (int i = 0; i < vectors; i++) {
        const int b = i * V_LANES / 32;
        const vf v = y[i] * (vf)v_pick(scales[b / 4], b % 4);
        v_store_s8(d->codes + i * V_LANES,
                   encode_elements(v, t->mantissa_bits - 1, (float)t->max_code, t->code_bits - 1));
    }
}

/* n channels, zeros up to the end of the last block after them. */
static void write_part(const side *d, size_t n, const float *y)
{
    const bw_format_traits *t = d->traits;
    if (d->kind == SIDE_FLOAT) {
        memcpy(d->codes, y, n * sizeof *y);
        return;
    }
    if (d->kind == SIDE_FP16 || d->kind == SIDE_BF16) {
        uint16_t codes[128];
        for (size_t i = 0; i < n; i += V_LANES)
            v_store_half(codes + i, d->kind == SIDE_FP16 ? to_fp16(v_load(y + i)) : to_bf16(v_load(y + i)));
        memcpy(d->codes, codes, n * sizeof *codes);
        return;
    }
    const size_t block = d->block;
    const vf hi = v_set((float)t->max_code), lo = v_set((float)-t->max_code);
    for (size_t b = 0; b < n; b += block) {
        vi m = v_set_int(0);
        for (size_t i = 0; i < block; i += V_LANES)
            m = v_max_int(m, (vi)v_load(y + b + i) & 0x7FFFFFFF);
        const __m128i e = _mm_min_epi32(four_exponents(t, v_max_four(m, m, m, m)), _mm_set1_epi32(t->exp_max));
        const int exponent = _mm_cvtsi128_si32(e);
        d->exps[b / block] = (int8_t)exponent;
        const vf s = v_set(power(-exponent));
        for (size_t i = b; i < b + block; i += V_LANES) {
            const vf v = v_load(y + i) * s;
            if (d->kind == SIDE_WORDS)
                v_store_half((uint16_t *)(void *)d->codes + i, v_narrow(encode_pairs(t, v) & 0xFFFF));
            else if (d->kind == SIDE_PAIRS)
                v_store_s8(d->codes + i, encode_pairs(t, v));
            else if (d->kind == SIDE_TABLE)
                v_store_s8(d->codes + i,
                           encode_elements(v, t->mantissa_bits - 1, (float)t->max_code, t->code_bits - 1));
            else
                v_store_s8(d->codes + i, v_round(v_min(v_max(v, lo), hi)));
        }
    }
}

INLINE void write_chunk(const side *d, int vectors, const vf *y)
{
    switch (d->kind) {
    case SIDE_FLOAT:
#pragma GCC unroll 16
        for (int i = 0; i < vectors; i++)
            v_store((float *)(void *)d->codes + i * V_LANES, y[i]);
        break;
    case SIDE_FP16:
#pragma GCC unroll 16
        for (int i = 0; i < vectors; i++)
            v_store_half((uint16_t *)(void *)d->codes + i * V_LANES, to_fp16(y[i]));
        break;
    case SIDE_BF16:
#pragma GCC unroll 16
        for (int i = 0; i < vectors; i++)
            v_store_half((uint16_t *)(void *)d->codes + i * V_LANES, to_bf16(y[i]));
        break;
    case SIDE_BLOCK16:
        write_int(d, 16, vectors, y);
        break;
    case SIDE_BLOCK32:
        write_int(d, 32, vectors, y);
        break;
    case SIDE_BLOCK64:
        write_int(d, 64, vectors, y);
        break;
    case SIDE_BLOCK128:
        if (vectors == CHUNK_VECTORS) /* as pass() sees to */
            write_int(d, 128, CHUNK_VECTORS, y);
        break;
    case SIDE_TABLE:
        write_table(d, vectors, y);
        break;
    case SIDE_WORDS:
    case SIDE_PAIRS: {
        float buffer[128];
#pragma GCC unroll 16
        for (int i = 0; i < vectors; i++)
            v_store(buffer + i * V_LANES, y[i]);
        write_part(d, (size_t)(vectors * V_LANES), buffer);
        break;
    }
    default:
        break;
    }
}

/* --- less than a chunk ---------------------------------------------------------------------------------------------
 */

/* The next V_LANES channels of the n > 0 that are left of a pixel. Of a block format all of the last block may be
 * read, of the others exactly n elements. */
INLINE vf read_vector(const side *d, size_t n)
{
    if (d->kind == SIDE_FLOAT) {
        float part[V_LANES] = {0};
        if (n >= V_LANES)
            return v_load((const float *)(const void *)d->codes);
        memcpy(part, d->codes, n * sizeof *part);
        return v_load(part);
    }
    if (d->kind == SIDE_FP16 || d->kind == SIDE_BF16) {
        uint16_t part[V_LANES] = {0};
        if (n >= V_LANES)
            return from_vector(d->traits->format, (const uint16_t *)(const void *)d->codes);
        memcpy(part, d->codes, n * sizeof *part);
        return from_vector(d->traits->format, part);
    }
    const vf s = v_set(power(d->exps[0] + d->table.more));
    if (d->kind == SIDE_WORDS)
        return words_to_float(d->codes) * s;
    return d->kind == SIDE_TABLE ? table_values(&d->table, d->codes, s) : v_float(v_load_s8(d->codes)) * s;
}

/* n channels into y[0 .. n rounded up to V_LANES]. */
static void read_part(const side *d, size_t n, float *y)
{
    const size_t bytes = d->traits->device_bytes;
    side at = *d;
    for (size_t i = 0; i < n; i += V_LANES) {
        at.codes = d->codes + i * bytes;
        at.exps = d->exps + i / d->block;
        v_store(y + i, read_vector(&at, n - i));
    }
}

/* --- the pass ------------------------------------------------------------------------------------------------------
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

INLINE void do_chunk(fused_pass *p, int vectors)
{
    vf y[CHUNK_VECTORS];
    read_chunk(&p->a, vectors, y);
    if (p->b.kind != SIDE_NONE) {
        vf z[CHUNK_VECTORS];
        read_chunk(&p->b, vectors, z);
        if (p->multiply) {
#pragma GCC unroll 16
            for (int i = 0; i < vectors; i++)
                y[i] *= z[i];
        } else {
#pragma GCC unroll 16
            for (int i = 0; i < vectors; i++)
                y[i] += z[i];
        }
    }
    if (p->activation.kind == BW_ACT_RELU) {
#pragma GCC unroll 16
        for (int i = 0; i < vectors; i++)
            y[i] = v_max(y[i], v_set(0.0f));
    } else if (p->activation.kind == BW_ACT_CLIP) {
        const vf lo = v_set(p->activation.lo), hi = v_set(p->activation.hi);
#pragma GCC unroll 16
        for (int i = 0; i < vectors; i++)
            y[i] = v_max(lo, v_min(hi, y[i]));
    }
    write_chunk(&p->out[0], vectors, y);
    if (p->out[1].kind != SIDE_NONE)
        write_chunk(&p->out[1], vectors, y);
}

static void do_part(fused_pass *p, size_t n)
{
    float y[128], z[128];
    if (p->a.kind == SIDE_LINES) { /* only runs of whole 16 channels */
        for (size_t i = 0; i < n; i += 16)
            memcpy(y + i, p->a.lines[i / 16], 16 * sizeof *y);
    } else {
        read_part(&p->a, n, y);
    }
    if (p->b.kind != SIDE_NONE)
        read_part(&p->b, n, z);
    for (size_t i = 0; i < n; i += V_LANES) {
        vf v = v_load(y + i);
        if (p->b.kind != SIDE_NONE)
            v = p->multiply ? v * v_load(z + i) : v + v_load(z + i);
        v_store(y + i, activated(&p->activation, v));
    }
    memset(y + n, 0, (128 - n) * sizeof *y); /* padding is zero whatever the activation makes of it */
    write_part(&p->out[0], n, y);
    if (p->out[1].kind != SIDE_NONE)
        write_part(&p->out[1], n, y);
}

/* Inlined with a constant chunk of 64 or 128. line: how many channels follow each other in a, stride: floats from one
 * such run to the next. */
INLINE void do_run(fused_pass *p, size_t chunk, size_t n, size_t line, size_t stride)
{
    const float *at = (const float *)(const void *)p->a.codes;
    size_t column = 0;
    for (size_t c = 0; c < n; c += chunk) {
        if (p->a.kind == SIDE_LINES) {
#pragma GCC unroll 8
            for (size_t i = 0; i < chunk / 16; i++) {
                p->a.lines[i] = at + column;
                column += 16;
                if (column == line) {
                    column = 0;
                    at += stride;
                }
            }
        }
        if (n - c < chunk) {
            do_part(p, n - c);
            return;
        }
        do_chunk(p, (int)chunk / V_LANES);
        advance(&p->a);
        advance(&p->b);
        advance(&p->out[0]);
        advance(&p->out[1]);
    }
}

/* Whether the pixels of a tensor follow each other without a gap. */
static int adjoin(const bw_side *s, size_t n)
{
    return !s->format || (n % s->format->block == 0 && s->code_step == n * s->format->traits->device_bytes &&
                          (s->format->block == 1 || s->exp_step == n / s->format->block));
}

static void place_side(side *to, const bw_side *from, size_t pixel)
{
    if (!from->format)
        return;
    to->codes = from->codes + pixel * from->code_step;
    to->exps = from->exps + pixel * from->exp_step;
}

static void fused(const bw_fused *f)
{
    const bw_side *sides[] = {&f->a, &f->b, &f->out[0], &f->out[1]};
    size_t chunk = 64, n = f->n, pixels = f->pixels, line = 0, stride = 0;
    int dense = n % 16 == 0;
    for (int i = 0; i < 4; i++) {
        if (i > 0)
            dense = dense && adjoin(sides[i], n);
        if (sides[i]->format && sides[i]->format->block > 64)
            chunk = 128;
    }
    fused_pass p = {.activation = *f->activation, .multiply = f->multiply};
    side *const to[] = {&p.a, &p.b, &p.out[0], &p.out[1]};
    for (int i = 0; i < 4; i++)
        *to[i] = side_of(sides[i], chunk, i > 1);
    if (dense && adjoin(&f->a, n)) { /* one run of channels */
        n *= pixels;
        pixels = 1;
    } else if (dense && n % chunk && p.a.kind == SIDE_FLOAT) {
        p.a.kind = SIDE_LINES;
        line = n;
        stride = f->a.code_step / sizeof(float);
        n *= pixels;
        pixels = 1;
    }
    for (size_t pixel = 0; pixel < pixels; pixel++) {
        for (int i = 0; i < 4; i++)
            place_side(to[i], sides[i], pixel);
        if (chunk == 64)
            do_run(&p, 64, n, line, stride);
        else
            do_run(&p, 128, n, line, stride);
    }
}
