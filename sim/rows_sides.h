/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading and writing tensors by chunks of 64 or 128 channels in registers, for the x86 row kernels: included after
 * sim/rows_simd.h. A writer finds the exponents of all blocks of a chunk together, scales, rounds, packs.
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

static inline table_shape shape_of(const bw_format_traits *t)
{
    const int m = t->mantissa_bits - 1, magnitude = (1 << (t->code_bits - 1)) - 1;
    const int most = t->format == BW_FORMAT_MXFP8_E4M3 ? 0x7E : t->format == BW_FORMAT_MXFP8_E5M2 ? 0x7B : magnitude;
    return (table_shape){10 - m, 16 - t->code_bits, magnitude, most, 14 + m};
}

static inline side side_of(const bw_side *b, size_t chunk, int written)
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
    const int full = vectors / (64 / V_LANES); /* apart: unoptimised, UBSan's checks cost the loop its annotation */
#pragma GCC unroll 2
    for (int f = 0; f < full; f++) {
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

/* Exponents of four blocks, a byte each, from the largest magnitude of each lane, and 2^-e; returns whether one was
 * above the range. relu: as if negative values were zeros. */
INLINE int four_scales(const side *d, int relu, vi m0, vi m1, vi m2, vi m3, int32_t *exps, float *scales)
{
    __m128i max = v_max_four(m0, m1, m2, m3);
    if (relu)
        max = _mm_max_epi32(max, _mm_setzero_si128());
    __m128i e = four_exponents(d, max);
    const int over = _mm_movemask_epi8(_mm_cmpgt_epi32(e, d->scaling.most));
    e = _mm_min_epi32(e, d->scaling.most);
    _mm_storeu_si128((__m128i *)(void *)scales, _mm_slli_epi32(_mm_sub_epi32(_mm_set1_epi32(127), e), 23));
    __asm__("" : "+m"(*(float(*)[4])scales)); /* as keep_in_memory */
    *exps = _mm_cvtsi128_si32(
        _mm_shuffle_epi8(e, _mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1)));
    return over;
}

/* The bits of a float that are compared to find the largest magnitude; negative floats are negative integers. */
INLINE int magnitude_bits(int relu)
{
    return relu ? -1 : 0x7FFFFFFF;
}

/* The same for all blocks of a chunk. */
INLINE int block_scales(const side *d, int block, int vectors, int relu, const vf *y, int8_t *exps,
                        four_factors *scales)
{
    const int magnitude = magnitude_bits(relu);
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
        int32_t bytes;
        over |= four_scales(d, relu, m[b], second, third, left > 3 ? m[b + 3] : second, &bytes, scales[b / 4].f);
        memcpy(exps + b, &bytes, left > 3 ? 4 : (size_t)left);
    }
    return over;
}

/* Codes from block_scales' factors, side by side, and result, at most 16 vectors, whole 64s of values. Within the
 * exponent range |y| * 2^-e is below 2^m, so that rounding leaves the codes by one at most, and bytes can be clamped
 * instead of floats. With relu negative values may be anything: packing saturates. */
INLINE void write_codes(const side *d, int block, int vectors, int relu, const vf *y, const float *scales, int over,
                        uint8_t *codes)
{
    vi q[16];
#pragma GCC unroll 16
    for (int i = 0; i < vectors; i++) {
        const int b = i * V_LANES / block;
        q[i] = v_round(y[i] * v_set(scales[b]));
    }
    if (__builtin_expect(over, 0)) {
        const vf hi = v_set((float)d->limits.most[0]), lo = v_set((float)d->limits.least[0]);
#pragma GCC unroll 16
        for (int i = 0; i < vectors; i++) {
            const int b = i * V_LANES / block;
            q[i] = v_round(v_min(v_max(y[i] * v_set(scales[b]), lo), hi));
        }
    }
    const int full = vectors / (64 / V_LANES);
#pragma GCC unroll 3
    for (int f = 0; f < full; f++)
        v_store_codes(codes + f * 64, q + f * (64 / V_LANES), d->limits.most, relu ? NULL : d->limits.least);
}

/* At most 8 blocks. */
INLINE void write_int(const side *d, int block, int vectors, int relu, const vf *y, spot at)
{
    four_factors scales[2];
    const int over = block_scales(d, block, vectors, relu, y, at.exps, scales);
    write_codes(d, block, vectors, relu, y, scales[0].f, over, at.codes);
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
    const int full = vectors / (64 / V_LANES);
#pragma GCC unroll 2
    for (int f = 0; f < full; f++)
        v_store_bytes(at.codes + f * 64, q + f * (64 / V_LANES));
}

/* n channels, zeros up to the end of the last block after them. */
static inline void write_part(const side *d, size_t n, const float *y, spot at)
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
