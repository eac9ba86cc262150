/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Row kernels for the x86 vector ISAs, written once. The including file (rows__ISA.c) defines
 *   V_LANES        floats in a vector
 *   vf, vi, vh     vectors of float and int32_t (GCC vector types, so that + - * & | << >> and comparisons work), and
 *                  as many 16-bit codes
 *   v_load_s8 v_load_u16 (pointer -> vi); v_store_s8 (pointer, vi): the low bits of each lane
 *   v_float (vi -> vf, exact or RNE), v_round (vf -> vi, RNE), v_min v_max (as MINPS, MAXPS: the second operand
 *   if they are equal or unordered), v_fma, v_max_int,
 *   v_swap (the two lanes of each pair change places)
 *   v_half_to_float (pointer -> vf), v_to_half (vf -> vh, RNE, -0 becomes +0), v_narrow (vi -> vh), v_store_half
 * and for the fused pass
 *   v_max_four (four vi of non-negatives -> __m128i): the largest lane of each
 *   v_keep (vf, n): lanes n.. become 0; v_load_part (pointer, n): n < V_LANES floats, zeros after them;
 *   v_copy_part (to, pointer, n): n 16-bit codes, zeros after them; returns `to`
 *   v_store_codes (pointer, vi[64 / V_LANES], limit): 64 int8 clamped to +-limit; the lanes fit 16 bits
 *   v_element_to_float (pointer, magnitude, most, shift, sign): table_shape below says what
 * and then includes this and sim/rows_fused.h.
 */

/* Vectors in the largest chunk of the fused pass. */
#define CHUNK_VECTORS (128 / V_LANES)

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
static inline vh to_fp16(vf x)
{
    return v_to_half(v_min(v_max(x, v_set(-65504.0f)), v_set(65504.0f)));
}

/* Nearest bf16 code: 8 significant bits, multiples of 2^-63, at most 255 * 2^40. */
static inline vh to_bf16(vf x)
{
    const float most = 255.0f * 0x1p40f, magic = 0x1.8p-40f;
    x = v_min(v_max(x, v_set(-most)), v_set(most));
    vf fixed = (x + magic) - magic; /* to a multiple of 2^-63, the last bit of magic; never -0 */
    vi bits = (vi)x, small = (bits & 0x7FFFFFFF) < v_set_int((int32_t)((127 - 55) << 23));
    bits = (small & (vi)fixed) | (~small & bits);
    bits += 0x7FFF + ((bits >> 16) & 1);
    return v_narrow((bits >> 16) & 0xFFFF);
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

/* Integers of formats with microexponents. A coarse pair is rounded to even integers, which are the multiples of 2 that
 * are left of v + 1.5 * 2^24. */
static inline vi encode_pairs(const bw_format_traits *t, vf v)
{
    const float most = (float)t->max_code;
    const vf edge = v_set((float)(1 << (t->mantissa_bits - 1)));
    const vi limits[2] = {(vi)v_set(most / 2), (vi)v_set(most)};
    const vi magics[2] = {(vi)v_set(0x1.8p23f), (vi)v_set(0x1.8p24f)};
    const vf a = (vf)((vi)v & 0x7FFFFFFF);
    const vi coarse = (vi)(v_max(a, v_swap(a)) >= edge);
    const vf limit = (vf)((coarse & limits[1]) | (~coarse & limits[0]));
    const vf magic = (vf)((coarse & magics[1]) | (~coarse & magics[0]));
    return v_round((v_min(v_max(v, -limit), limit) + magic) - magic);
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
