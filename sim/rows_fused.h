/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fused pass of the x86 row kernels (bw_fused in sim/fast.h), written once:
 * included by rows__ISA.c after sim/rows_simd.h. Channels go through registers
 * in chunks of 64 (128 if an output has blocks of 128): read, operate,
 * activate, and for each output find the exponents of the chunk's blocks
 * together, scale, round, pack. What is left of a pixel after whole chunks goes
 * through a buffer, block by block.
 */

#define INLINE static inline __attribute__((always_inline))

/* --- formats, resolved once per call
 * ------------------------------------------------------------------------------
 */

typedef enum side_kind {
    SIDE_NONE,
    SIDE_FLOAT,
    SIDE_LINES,        /* fp32 of several pixels, which do not follow each other in
                          memory, as one run of channels */
    SIDE_PADDED_LINES, /* the same with padding after each pixel's channels */
    SIDE_FP16,
    SIDE_BF16,
    SIDE_BLOCK16, /* INT, by block */
    SIDE_BLOCK32,
    SIDE_BLOCK64,
    SIDE_BLOCK128,
    SIDE_WORDS, /* INT16 */
    SIDE_PAIRS, /* INT with microexponents, to be written; to readers it is like
                   any other */
    SIDE_TABLE
} side_kind;

/*
 * TABLE elements are small floats: with their bits moved up they are fp16
 * numbers, which the hardware converts, subnormals included. Code 1, the unit,
 * becomes 2^(10 - M) subnormals of fp16 and so stands for 2^-(14 + M).
 */
typedef struct table_shape {
    int shift, sign; /* left shifts of the magnitude, of the sign */
    int magnitude;   /* its mask */
    int most;        /* larger magnitudes are NaN or infinity, which count as zero */
    int more;        /* what to add to the exponent */
} table_shape;

/* A place in a tensor. */
typedef struct spot {
    uint8_t *codes;
    int8_t *exps;
} spot;

/* One tensor of the pass. */
typedef struct side {
    side_kind kind;
    uint32_t block;
    const bw_format_traits *traits;
    spot first;                 /* first pixel and channel */
    size_t code_step, exp_step; /* from one chunk to the next */
    size_t code_pixel, exp_pixel;
    table_shape table;
    struct {
        __m128i shift, least, most; /* four times what turns the largest magnitude
                                       into an exponent, and its range */
    } scaling;
    struct {
        _Alignas(64) int8_t most[64], least[64];
    } limits; /* of codes */
} side;

/* Factors of four blocks, in memory: from there they are broadcast by loads,
 * which leaves the shuffle unit alone. */
typedef union four_factors {
    __m128i bits;
    float f[4];
} four_factors;

INLINE void keep_in_memory(four_factors *f)
{
    __asm__("" : "+m"(*f)); /* else compilers extract the lanes */
}

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
    s.first = (spot){b->codes, b->exps};
    s.code_pixel = b->code_step;
    s.block = b->format->block;
    s.exp_pixel = s.block > 1 ? b->exp_step : 0;
    s.code_step = chunk * s.traits->device_bytes;
    s.exp_step = s.block > 1 ? chunk / s.block : 0;
    s.scaling.shift = _mm_set1_epi32(127 + s.traits->emax_shift);
    s.scaling.least = _mm_set1_epi32(s.traits->exp_min);
    s.scaling.most = _mm_set1_epi32(s.traits->exp_max);
    memset(s.limits.most, (int)s.traits->max_code, sizeof s.limits.most);
    memset(s.limits.least, (int)-s.traits->max_code, sizeof s.limits.least);
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

/* SIDE_LINES: where each 16 channels of a chunk are, and how many of them
 * exist; the rest is padding. */
typedef struct line_set {
    const float *at[8];
    size_t count[8];
} line_set;

INLINE int is_lines(side_kind kind)
{
    return kind == SIDE_LINES || kind == SIDE_PADDED_LINES;
}

/* How many of the V_LANES channels from c on exist. */
INLINE size_t line_count(const line_set *l, size_t c)
{
    const size_t n = l->count[c / 16];
    return V_LANES == 16 ? n : n < c % 16 ? 0 : n - c % 16 < V_LANES ? n - c % 16 : V_LANES;
}

INLINE vf line_vector(const line_set *l, size_t c)
{
    return v_load_part(l->at[c / 16] + c % 16, line_count(l, c));
}

INLINE spot moved(spot at, size_t codes, size_t exps)
{
    return (spot){at.codes + codes, at.exps + exps};
}

/* --- reading a chunk
 * -----------------------------------------------------------------------------------------------
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

INLINE void read_blocks(const side *d, spot at, int block, int vectors, int table, vf *y)
{
#pragma GCC unroll 2
    for (int f = 0; f < vectors * V_LANES / 64; f++) {
        const __m128i e = load_exps(at.exps + f * 64 / block, block > 64 ? 1 : 64 / block);
        four_factors s = {_mm_slli_epi32(_mm_add_epi32(e, _mm_set1_epi32(127 + (table ? d->table.more : 0))), 23)};
        keep_in_memory(&s);
#pragma GCC unroll 8
        for (int i = 0; i < 64 / V_LANES; i++) {
            const int k = f * (64 / V_LANES) + i;
            const uint8_t *codes = at.codes + k * V_LANES;
            const vf factor = v_set(s.f[i * V_LANES / block]);
            y[k] = table ? table_values(&d->table, codes, factor) : v_float(v_load_s8(codes)) * factor;
        }
    }
}

INLINE vf words_to_float(const uint8_t *codes)
{
    return v_float((v_load_u16((const uint16_t *)(const void *)codes) << 16) >> 16);
}

/* kind: that of *d, as a constant if it is known. lines: for SIDE_LINES, where
 * each 16 channels are. */
INLINE void read_chunk(const side *d, side_kind kind, spot at, const line_set *lines, int vectors, vf *y)
{
    switch (kind) {
    case SIDE_FLOAT:
#pragma GCC unroll 16
        for (int i = 0; i < vectors; i++)
            y[i] = v_load((const float *)(const void *)at.codes + i * V_LANES);
        break;
    case SIDE_LINES:
#pragma GCC unroll 16
        for (int i = 0; i < vectors; i++)
            y[i] = v_load(lines->at[i * V_LANES / 16] + i * V_LANES % 16);
        break;
    case SIDE_PADDED_LINES:
#pragma GCC unroll 16
        for (int i = 0; i < vectors; i++)
            y[i] = line_vector(lines, (size_t)(i * V_LANES));
        break;
    case SIDE_FP16:
#pragma GCC unroll 16
        for (int i = 0; i < vectors; i++)
            y[i] = from_vector(BW_FORMAT_FP16, (const uint16_t *)(const void *)at.codes + i * V_LANES);
        break;
    case SIDE_BF16:
#pragma GCC unroll 16
        for (int i = 0; i < vectors; i++)
            y[i] = from_vector(BW_FORMAT_BF16, (const uint16_t *)(const void *)at.codes + i * V_LANES);
        break;
    case SIDE_BLOCK16:
        read_blocks(d, at, 16, vectors, 0, y);
        break;
    case SIDE_BLOCK32:
        read_blocks(d, at, 32, vectors, 0, y);
        break;
    case SIDE_BLOCK64:
        read_blocks(d, at, 64, vectors, 0, y);
        break;
    case SIDE_BLOCK128:
        read_blocks(d, at, 128, vectors, 0, y);
        break;
    case SIDE_WORDS:
#pragma GCC unroll 16
        for (int i = 0; i < vectors; i++)
            y[i] =
                words_to_float(at.codes + i * V_LANES * 2) * v_set(power(at.exps[(uint32_t)(i * V_LANES) / d->block]));
        break;
    default: /* SIDE_TABLE; never SIDE_NONE */
        read_blocks(d, at, 32, vectors, 1, y);
    }
}

/* --- writing a chunk
 * -----------------------------------------------------------------------------------------------
 */

/* Exponents of the last bits of four blocks from their largest magnitudes,
 * clamped below. Zeros and subnormals are far below every exp_min. */
INLINE __m128i four_exponents(const side *d, __m128i max)
{
    return _mm_max_epi32(_mm_sub_epi32(_mm_srli_epi32(max, 23), d->scaling.shift), d->scaling.least);
}

/* relu: as if negative values were zeros. The exponents of a chunk's blocks, and 2^-e of each four of them; returns
 * whether one was above the range. */
INLINE int block_scales(const side *d, int block, int vectors, int relu, const vf *y, int8_t *exps,
                        four_factors *scales)
{
    const int magnitude = relu ? -1 : 0x7FFFFFFF; /* negative floats are negative integers */
    const int per = block / V_LANES, blocks = vectors / per;
    vi m[8];
#pragma GCC unroll 8
    for (int b = 0; b < blocks; b++) {
        m[b] = (vi)y[b * per] & magnitude;
#pragma GCC unroll 16
        for (int i = 1; i < per; i++)
            m[b] = v_max_int(m[b], (vi)y[b * per + i] & magnitude);
    }
    int over = 0;
#pragma GCC unroll 2
    for (int b = 0; b < blocks; b += 4) {
        const int left = blocks - b;
        const vi second = left > 1 ? m[b + 1] : m[b], third = left > 2 ? m[b + 2] : m[b];
        __m128i max = v_max_four(m[b], second, third, left > 2 ? m[b + 3] : second);
        if (relu)
            max = _mm_max_epi32(max, _mm_setzero_si128());
        __m128i e = four_exponents(d, max);
        over |= _mm_movemask_epi8(_mm_cmpgt_epi32(e, d->scaling.most));
        e = _mm_min_epi32(e, d->scaling.most);
        scales[b / 4].bits = _mm_slli_epi32(_mm_sub_epi32(_mm_set1_epi32(127), e), 23);
        keep_in_memory(&scales[b / 4]);
        const int32_t bytes = _mm_cvtsi128_si32(
            _mm_shuffle_epi8(e, _mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1)));
        memcpy(exps + b, &bytes, left > 3 ? 4 : left > 1 ? 2 : 1);
    }
    return over;
}

/* Within the exponent range |y| * 2^-e is below 2^m, so that rounding leaves
 * the codes by one at most, and bytes can be clamped instead of floats. With
 * relu negative values may be anything: packing saturates. */
INLINE void write_int(const side *d, int block, int vectors, int relu, const vf *y, spot at)
{
    four_factors scales[2];
    const int over = block_scales(d, block, vectors, relu, y, at.exps, scales);
    vi q[CHUNK_VECTORS];
#pragma GCC unroll 16
    for (int i = 0; i < vectors; i++) {
        const int b = i * V_LANES / block;
        q[i] = v_round(y[i] * v_set(scales[b / 4].f[b % 4]));
    }
    if (__builtin_expect(over, 0)) {
        const vf hi = v_set((float)d->limits.most[0]), lo = v_set((float)d->limits.least[0]);
#pragma GCC unroll 16
        for (int i = 0; i < vectors; i++) {
            const int b = i * V_LANES / block;
            q[i] = v_round(v_min(v_max(y[i] * v_set(scales[b / 4].f[b % 4]), lo), hi));
        }
    }
#pragma GCC unroll 2
    for (int f = 0; f < vectors * V_LANES / 64; f++)
        v_store_codes(at.codes + f * 64, q + f * (64 / V_LANES), d->limits.most, relu ? NULL : d->limits.least);
}

INLINE void write_table(const side *d, int vectors, const vf *y, spot at)
{
    const bw_format_traits *t = d->traits;
    four_factors scales[2];
    block_scales(d, 32, vectors, 0, y, at.exps, scales);
    vi q[CHUNK_VECTORS];
#pragma GCC unroll 16
    for (int i = 0; i < vectors; i++) {
        const int b = i * V_LANES / 32;
        const vf v = y[i] * v_set(scales[b / 4].f[b % 4]);
        q[i] = encode_elements(v, t->mantissa_bits - 1, (float)t->max_code, t->code_bits - 1);
    }
#pragma GCC unroll 2
    for (int f = 0; f < vectors * V_LANES / 64; f++)
        v_store_bytes(at.codes + f * 64, q + f * (64 / V_LANES));
}

/* n channels, zeros up to the end of the last block after them. */
static void write_part(const side *d, size_t n, const float *y, spot at)
{
    const bw_format_traits *t = d->traits;
    if (d->kind == SIDE_FLOAT) {
        memcpy(at.codes, y, n * sizeof *y);
        return;
    }
    if (d->kind == SIDE_FP16 || d->kind == SIDE_BF16) {
        uint16_t codes[128];
        for (size_t i = 0; i < n; i += V_LANES)
            v_store_half(codes + i, d->kind == SIDE_FP16 ? to_fp16(v_load(y + i)) : to_bf16(v_load(y + i)));
        memcpy(at.codes, codes, n * sizeof *codes);
        return;
    }
    const size_t block = d->block;
    const vf hi = v_set((float)t->max_code), lo = v_set((float)-t->max_code);
    for (size_t b = 0; b < n; b += block) {
        vi m = v_set_int(0);
        for (size_t i = 0; i < block; i += V_LANES)
            m = v_max_int(m, (vi)v_load(y + b + i) & 0x7FFFFFFF);
        const __m128i e = _mm_min_epi32(four_exponents(d, v_max_four(m, m, m, m)), d->scaling.most);
        const int exponent = _mm_cvtsi128_si32(e);
        at.exps[b / block] = (int8_t)exponent;
        const vf s = v_set(power(-exponent));
        for (size_t i = b; i < b + block; i += V_LANES) {
            const vf v = v_load(y + i) * s;
            if (d->kind == SIDE_WORDS)
                v_store_half((uint16_t *)(void *)at.codes + i, v_narrow(encode_pairs(t, v) & 0xFFFF));
            else if (d->kind == SIDE_PAIRS)
                v_store_s8(at.codes + i, encode_pairs(t, v));
            else if (d->kind == SIDE_TABLE)
                v_store_s8(at.codes + i,
                           encode_elements(v, t->mantissa_bits - 1, (float)t->max_code, t->code_bits - 1));
            else
                v_store_s8(at.codes + i, v_round(v_min(v_max(v, lo), hi)));
        }
    }
}

/* relu, a constant: negative values count as zeros; only for FP16 and BLOCKs. */
INLINE void write_chunk(const side *d, side_kind kind, int vectors, int relu, const vf *y, spot at)
{
    switch (kind) {
    case SIDE_FLOAT:
#pragma GCC unroll 16
        for (int i = 0; i < vectors; i++)
            v_store((float *)(void *)at.codes + i * V_LANES, y[i]);
        break;
    case SIDE_FP16:
#pragma GCC unroll 16
        for (int i = 0; i < vectors; i++)
            v_store_half((uint16_t *)(void *)at.codes + i * V_LANES, relu ? to_fp16_relu(y[i]) : to_fp16(y[i]));
        break;
    case SIDE_BF16:
#pragma GCC unroll 16
        for (int i = 0; i < vectors; i++)
            v_store_half((uint16_t *)(void *)at.codes + i * V_LANES, to_bf16(y[i]));
        break;
    case SIDE_BLOCK16:
        write_int(d, 16, vectors, relu, y, at);
        break;
    case SIDE_BLOCK32:
        write_int(d, 32, vectors, relu, y, at);
        break;
    case SIDE_BLOCK64:
        write_int(d, 64, vectors, relu, y, at);
        break;
    case SIDE_BLOCK128:
        if (vectors == CHUNK_VECTORS) /* as pass() sees to */
            write_int(d, 128, CHUNK_VECTORS, relu, y, at);
        break;
    case SIDE_TABLE:
        write_table(d, vectors, y, at);
        break;
    case SIDE_WORDS:
    case SIDE_PAIRS: {
        float buffer[128];
#pragma GCC unroll 16
        for (int i = 0; i < vectors; i++)
            v_store(buffer + i * V_LANES, y[i]);
        write_part(d, (size_t)(vectors * V_LANES), buffer, at);
        break;
    }
    default:
        break;
    }
}

/* --- less than a chunk
 * ---------------------------------------------------------------------------------------------
 */

/* The next V_LANES channels of the n > 0 that are left of a pixel. Of a block
 * format all of the last block may be read, of the others exactly n elements.
 */
INLINE vf read_vector(const side *d, spot at, size_t n)
{
    if (d->kind == SIDE_FLOAT) {
        const float *x = (const float *)(const void *)at.codes;
        return n >= V_LANES ? v_load(x) : v_load_part(x, n);
    }
    if (d->kind == SIDE_FP16 || d->kind == SIDE_BF16) {
        const uint16_t *x = (const uint16_t *)(const void *)at.codes;
        uint16_t part[V_LANES];
        if (n < V_LANES)
            x = v_copy_part(part, x, n);
        return from_vector(d->traits->format, x);
    }
    const vf s = v_set(power(at.exps[0] + d->table.more));
    if (d->kind == SIDE_WORDS)
        return words_to_float(at.codes) * s;
    return d->kind == SIDE_TABLE ? table_values(&d->table, at.codes, s) : v_float(v_load_s8(at.codes)) * s;
}

/* --- the pass
 * ------------------------------------------------------------------------------------------------------
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
INLINE int run_known(const fused_pass *p, size_t pixels, size_t n, size_t line, size_t padded, int relu, side_kind a,
                     side_kind b, side_kind out0, side_kind out1)
{
    const kinds k = {a, b, out0, out1, 0, relu};
    if (p->a.kind != a || p->b.kind != b || p->out[0].kind != out0 || p->out[1].kind != out1 || p->multiply ||
        (relu && p->activation.kind != BW_ACT_RELU))
        return 0;
    run_pixels(p, k, 64, pixels, n, line, padded);
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
    } else if (dense && n % chunk && p.a.kind == SIDE_FLOAT) {
        p.a.kind = n == padded ? SIDE_LINES : SIDE_PADDED_LINES;
        line = n;
        n = padded * pixels;
        pixels = 1;
    }
    const kinds k = {p.a.kind, p.b.kind, p.out[0].kind, p.out[1].kind, p.multiply, 0};
    if (chunk == 128)
        run_pixels(&p, k, 128, pixels, n, line, padded);
#define KNOWN(relu, a, b, out0, out1)                                                                                  \
    run_known(&p, pixels, n, line, padded, relu, SIDE_##a, SIDE_##b, SIDE_##out0, SIDE_##out1)
    else if (!KNOWN(1, FLOAT, NONE, BLOCK16, NONE) && !KNOWN(1, FLOAT, FP16, BLOCK16, NONE) &&
             !KNOWN(1, FLOAT, FP16, BLOCK16, FP16) && !KNOWN(1, FLOAT, NONE, BLOCK32, NONE) &&
             !KNOWN(1, FLOAT, NONE, FP16, NONE) && !KNOWN(1, LINES, NONE, BLOCK16, NONE) &&
             !KNOWN(0, FLOAT, NONE, BLOCK16, NONE) && !KNOWN(0, FLOAT, BLOCK16, BLOCK16, NONE) &&
             !KNOWN(0, FLOAT, FP16, BLOCK16, NONE) && !KNOWN(0, FLOAT, FP16, BLOCK16, FP16) &&
             !KNOWN(0, FLOAT, NONE, TABLE, NONE) && !KNOWN(0, FLOAT, FP16, TABLE, NONE) &&
             !KNOWN(0, FLOAT, NONE, BLOCK32, NONE) && !KNOWN(0, FLOAT, NONE, FP16, NONE) &&
             !KNOWN(0, FLOAT, FP16, FP16, NONE) && !KNOWN(0, LINES, NONE, BLOCK16, NONE) &&
             !KNOWN(0, LINES, NONE, FP16, NONE) && !KNOWN(0, PADDED_LINES, NONE, BLOCK16, NONE))
        run_pixels(&p, k, 64, pixels, n, line, padded);
#undef KNOWN
}
