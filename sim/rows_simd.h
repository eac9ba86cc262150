/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Row kernels for the x86 vector ISAs, written once. The including file (rows__ISA.c) defines
 *   V_LANES        floats in a vector
 *   vf, vi         vectors of float and int32_t (GCC vector types, so that + - * & | << >> and comparisons work)
 *   v_load_s8 v_load_u8 v_load_u16  (pointer) -> vi; v_store_s8 v_store_u16 (pointer, vi): the low bits of each lane
 *   v_float (vi -> vf, exact or RNE), v_round (vf -> vi, RNE), v_min v_max (as MINPS, MAXPS: the second operand
 *   if they are equal or unordered), v_fma, v_half_to_float (pointer -> vf), v_to_half (vf -> vi), v_gather,
 *   v_max_int, v_reduce_max (vi -> int32_t), v_swap (the two lanes of each pair change places)
 * and, if it can do four blocks faster than one after the other, V_FOUR and
 *   v_scale_four (traits, x, block, exps, scales): the exponents of four blocks, and 2^-e of each
 * and then includes this.
 */

typedef vf vf_unaligned __attribute__((aligned(4), may_alias));

static inline vf v_load(const float *p)
{
    return *(const vf_unaligned *)p;
}

static inline void v_store(float *p, vf v)
{
    *(vf_unaligned *)p = v;
}

static inline vf v_set(float x)
{
    return x - (vf){0};
}

static inline vi v_set_int(int32_t x)
{
    return x + (vi){0};
}

/* 2^e as a float for the exponents that tensors hold. */
static inline float power(int e)
{
    uint32_t bits = (uint32_t)(127 + e) << 23;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

static inline vf from_vector(bw_format f, const uint16_t *p)
{
    if (f == BW_FORMAT_FP16)
        return v_half_to_float(p);
    return (vf)(v_load_u16(p) << 16);
}

/* Nearest fp16 code, saturating, zero as +0. */
static inline vi to_fp16(vf x)
{
    vi code = v_to_half(v_min(v_max(x, v_set(-65504.0f)), v_set(65504.0f)));
    return code & ~(vi)(code == v_set_int(0x8000));
}

/* Nearest bf16 code: 8 significant bits, multiples of 2^-63, at most 255 * 2^40. */
static inline vi to_bf16(vf x)
{
    const float most = 255.0f * 0x1p40f, magic = 0x1.8p-40f;
    x = v_min(v_max(x, v_set(-most)), v_set(most));
    vf fixed = (x + magic) - magic; /* to a multiple of 2^-63, the last bit of magic; never -0 */
    vi bits = (vi)x, small = (bits & 0x7FFFFFFF) < v_set_int((int32_t)((127 - 55) << 23));
    bits = (small & (vi)fixed) | (~small & bits);
    bits += 0x7FFF + ((bits >> 16) & 1);
    return (bits >> 16) & 0xFFFF;
}

static void decode_vector(bw_format f, const uint16_t *codes, size_t n, float *y)
{
    size_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES)
        v_store(y + i, from_vector(f, codes + i));
    if (i < n) {
        uint16_t part[V_LANES] = {0};
        memcpy(part, codes + i, (n - i) * sizeof *codes);
        v_store(y + i, from_vector(f, part));
    }
}

static void encode_vector(bw_format f, const float *x, size_t n, uint16_t *codes)
{
    size_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES)
        v_store_u16(codes + i, f == BW_FORMAT_FP16 ? to_fp16(v_load(x + i)) : to_bf16(v_load(x + i)));
    if (i < n) {
        uint16_t part[V_LANES];
        v_store_u16(part, f == BW_FORMAT_FP16 ? to_fp16(v_load(x + i)) : to_bf16(v_load(x + i)));
        memcpy(codes + i, part, (n - i) * sizeof *codes);
    }
}

static void decode(const bw_row_format *f, const uint8_t *codes, const int8_t *exps, size_t n, float *y)
{
    const size_t block = f->block;
    switch (f->kind) {
    case BW_KIND_FLOAT:
        memcpy(y, codes, n * sizeof *y);
        break;
    case BW_KIND_VECTOR:
        decode_vector(f->traits->format, (const uint16_t *)(const void *)codes, n, y);
        break;
    case BW_KIND_INT:
        for (size_t i = 0; i < n; i += block) {
            vf s = v_set(power(exps[i / block]));
            for (size_t j = 0; j < block; j += V_LANES)
                v_store(y + i + j, v_float(v_load_s8(codes + i + j)) * s);
        }
        break;
    case BW_KIND_TABLE:
        for (size_t i = 0; i < n; i += block) {
            vf s = v_set(power(exps[i / block]));
            for (size_t j = 0; j < block; j += V_LANES)
                v_store(y + i + j, v_gather(f->values, v_load_u8(codes + i + j)) * s);
        }
        break;
    case BW_KIND_INT16:
        for (size_t i = 0; i < n; i += block) {
            const uint16_t *words = (const uint16_t *)(const void *)codes + i;
            vf s = v_set(power(exps[i / block]));
            for (size_t j = 0; j < block; j += V_LANES)
                v_store(y + i + j, v_float((v_load_u16(words + j) << 16) >> 16) * s);
        }
        break;
    }
}

/* floor(log2(max |x|)) - emax_shift, clamped; zeros and subnormals are far below every exp_min. */
static inline __attribute__((always_inline)) int block_exponent(const bw_format_traits *t, const float *x, size_t block)
{
    vi m = v_set_int(0);
    for (size_t j = 0; j < block; j += V_LANES) {
        m = v_max_int((vi)v_load(x + j) & 0x7FFFFFFF, m);
    }
    int e = (v_reduce_max(m) >> 23) - 127 - t->emax_shift;
    return e < t->exp_min ? t->exp_min : e > t->exp_max ? t->exp_max : e;
}

/* Element encodings of |v| <= max_code units of the smallest subnormal, M mantissa bits. */
static inline vi encode_elements(vf v, int m, float max_code, int sign_bit)
{
    vi sign = (vi)v & (int32_t)0x80000000;
    vf a = v_min((vf)((vi)v & 0x7FFFFFFF), v_set(max_code));
    /* The last kept bit is `last` places above the units; adding and subtracting 1.5 * 2^(23 + last) rounds there. */
    vi last = ((vi)a >> 23) - (127 + m);
    last &= last > 0;
    vf magic = (vf)(((last + (127 + 23)) << 23) | 0x400000);
    vf q = (a + magic) - magic;
    vi normal = q >= v_set((float)(1 << m));
    vi code = (normal & (((vi)q >> (23 - m)) - ((126 + m) << m))) | (~normal & v_round(q));
    vi negative = (sign != 0) & (code != 0);
    return code | (negative & (1 << sign_bit));
}

static inline __attribute__((always_inline)) void encode_int_at(const float *x, size_t block, vf s, float limit,
                                                                uint8_t *codes)
{
    const vf hi = v_set(limit), lo = v_set(-limit);
    for (size_t j = 0; j < block; j += V_LANES)
        v_store_s8(codes + j, v_round(v_min(v_max(v_load(x + j) * s, lo), hi)));
}

static inline void encode_table_at(const bw_format_traits *t, const float *x, size_t block, vf s, float limit,
                                   uint8_t *codes)
{
    for (size_t j = 0; j < block; j += V_LANES)
        v_store_s8(codes + j, encode_elements(v_load(x + j) * s, t->mantissa_bits - 1, limit, t->code_bits - 1));
}

/* Inlined with a constant kind and block, so that the loops unroll. */
static inline __attribute__((always_inline)) void encode_blocks(const bw_format_traits *t, bw_format_kind kind,
                                                                const float *x, size_t n, size_t block, uint8_t *codes,
                                                                int8_t *exps)
{
    const float limit = (float)t->max_code;
    size_t i = 0;
#ifdef V_FOUR
    for (; i + 4 * block <= n; i += 4 * block) {
        vf scales[4];
        v_scale_four(t, x + i, block, exps + i / block, scales);
#pragma GCC unroll 4
        for (size_t b = 0; b < 4; b++) {
            const size_t at = i + b * block;
            if (kind == BW_KIND_INT)
                encode_int_at(x + at, block, scales[b], limit, codes + at);
            else
                encode_table_at(t, x + at, block, scales[b], limit, codes + at);
        }
    }
#endif
    for (; i < n; i += block) {
        int e = block_exponent(t, x + i, block);
        exps[i / block] = (int8_t)e;
        if (kind == BW_KIND_INT)
            encode_int_at(x + i, block, v_set(power(-e)), limit, codes + i);
        else
            encode_table_at(t, x + i, block, v_set(power(-e)), limit, codes + i);
    }
}

/* Formats with microexponents. A coarse pair is rounded to even integers, which are the multiples of 2 that are left of
 * v + 1.5 * 2^24. */
static inline __attribute__((always_inline)) void encode_pairs(const bw_format_traits *t, int bytes, const float *x,
                                                               size_t n, size_t block, uint8_t *codes, int8_t *exps)
{
    const float most = (float)t->max_code;
    const vf edge = v_set((float)(1 << (t->mantissa_bits - 1)));
    const vi limits[2] = {(vi)v_set(most / 2), (vi)v_set(most)};
    const vi magics[2] = {(vi)v_set(0x1.8p23f), (vi)v_set(0x1.8p24f)};
    for (size_t i = 0; i < n; i += block) {
        const int e = block_exponent(t, x + i, block);
        const vf s = v_set(power(-e));
        exps[i / block] = (int8_t)e;
        for (size_t j = i; j < i + block; j += V_LANES) {
            const vf v = v_load(x + j) * s, a = (vf)((vi)v & 0x7FFFFFFF);
            const vi coarse = (vi)(v_max(a, v_swap(a)) >= edge);
            const vf limit = (vf)((coarse & limits[1]) | (~coarse & limits[0]));
            const vf magic = (vf)((coarse & magics[1]) | (~coarse & magics[0]));
            const vi q = v_round((v_min(v_max(v, -limit), limit) + magic) - magic);
            if (bytes == 1)
                v_store_s8(codes + j, q);
            else
                v_store_u16((uint16_t *)(void *)codes + j, q & 0xFFFF);
        }
    }
}

static void encode(const bw_row_format *f, const float *x, size_t n, uint8_t *codes, int8_t *exps)
{
    if (f->kind == BW_KIND_FLOAT)
        memcpy(codes, x, n * sizeof *x);
    else if (f->kind == BW_KIND_VECTOR)
        encode_vector(f->traits->format, x, n, (uint16_t *)(void *)codes);
    else if (f->kind == BW_KIND_INT16)
        encode_pairs(f->traits, 2, x, n, f->block, codes, exps);
    else if (f->traits->sub_block)
        encode_pairs(f->traits, 1, x, n, f->block, codes, exps);
    else if (f->kind == BW_KIND_TABLE)
        encode_blocks(f->traits, BW_KIND_TABLE, x, n, f->block, codes, exps);
    else if (f->block == 16)
        encode_blocks(f->traits, BW_KIND_INT, x, n, 16, codes, exps);
    else if (f->block == 32)
        encode_blocks(f->traits, BW_KIND_INT, x, n, 32, codes, exps);
    else
        encode_blocks(f->traits, BW_KIND_INT, x, n, f->block, codes, exps);
}

static void add(size_t n, const float *a, const float *b, float *y)
{
    for (size_t i = 0; i < n; i += V_LANES)
        v_store(y + i, v_load(a + i) + v_load(b + i));
}

static void mul(size_t n, const float *a, const float *b, float *y)
{
    for (size_t i = 0; i < n; i += V_LANES)
        v_store(y + i, v_load(a + i) * v_load(b + i));
}

static void max(size_t n, const float *a, float *y)
{
    for (size_t i = 0; i < n; i += V_LANES)
        v_store(y + i, v_max(v_load(a + i), v_load(y + i)));
}

static void scale(size_t n, float r, float *y)
{
    for (size_t i = 0; i < n; i += V_LANES)
        v_store(y + i, v_load(y + i) * v_set(r));
}

static void activate(const bw_row_activation *a, size_t n, float *y)
{
    if (a->kind == BW_ACT_RELU) {
        for (size_t i = 0; i < n; i += V_LANES)
            v_store(y + i, v_max(v_load(y + i), v_set(0.0f)));
    } else if (a->kind == BW_ACT_CLIP) {
        for (size_t i = 0; i < n; i += V_LANES)
            v_store(y + i, v_max(v_set(a->lo), v_min(v_set(a->hi), v_load(y + i))));
    }
}

/* Inlined with constant formats and, for 3x3, a constant number of taps, so that weights stay in registers. */
static inline __attribute__((always_inline)) void depthwise_taps(const bw_depthwise *d, bw_format xf, bw_format wf,
                                                                 size_t taps)
{
    for (size_t c = 0; c < d->n; c += V_LANES) {
        vf w[BW_DEPTHWISE_TAPS];
#pragma GCC unroll 9
        for (size_t t = 0; t < taps; t++)
            w[t] = from_vector(wf, d->w[t] + c);
        const vf start = d->start ? v_load(d->start + c) : v_set(0.0f);
        const size_t left = d->n - c;
        for (size_t p = 0; p < d->pixels; p++) {
            const uint16_t *x = d->x + p * d->step + c;
            float *to = d->acc + p * d->stride + c;
            vf acc = d->fresh ? start : v_load(to);
            if (left >= V_LANES) {
#pragma GCC unroll 9
                for (size_t t = 0; t < taps; t++)
                    acc = v_fma(from_vector(xf, x + d->x_at[t]), w[t], acc);
            } else {
                for (size_t t = 0; t < taps; t++) {
                    uint16_t part[V_LANES] = {0};
                    memcpy(part, x + d->x_at[t], left * sizeof *part);
                    acc = v_fma(from_vector(xf, part), w[t], acc);
                }
            }
            v_store(to, acc);
        }
    }
}

static inline __attribute__((always_inline)) void depthwise_formats(const bw_depthwise *d, bw_format xf, bw_format wf)
{
    if (d->taps == 9)
        depthwise_taps(d, xf, wf, 9);
    else
        depthwise_taps(d, xf, wf, d->taps);
}

static void depthwise(const bw_depthwise *d)
{
    const bw_format h = BW_FORMAT_FP16, b = BW_FORMAT_BF16;
    if (d->x_format == h && d->w_format == h)
        depthwise_formats(d, h, h);
    else if (d->x_format == h)
        depthwise_formats(d, h, b);
    else if (d->w_format == h)
        depthwise_formats(d, b, h);
    else
        depthwise_formats(d, b, b);
}
