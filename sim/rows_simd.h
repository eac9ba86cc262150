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
 *   v_half_to_float (pointer -> vf), v_to_half (vf -> vh, RNE, -0 becomes +0), v_positive_to_half (no -0), v_narrow (vi
 * -> vh), v_store_half and for the fused pass v_max_four (four vi of non-negatives -> __m128i): the largest lane of
 * each v_keep (vf, n): lanes n.. become 0; v_load_part (pointer, n): n < V_LANES floats, zeros after them; v_copy_part
 * (to, pointer, n): n 16-bit codes, zeros after them; returns `to` v_store_codes (pointer, vi[64 / V_LANES], most,
 * least): 64 int8, saturated, not above most[64] nor below least[64] (NULL: zeros) v_store_bytes (pointer, vi[64 /
 * V_LANES]): 64 bytes; the lanes are 0..255 v_element_to_float (pointer, magnitude, most, shift, sign): table_shape
 * below says what and then includes this and sim/rows_fused.h.
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

static inline vh to_fp16_relu(vf x)
{
    return v_positive_to_half(v_min(v_max(x, v_set(0.0f)), v_set(65504.0f)));
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

/* Element encodings of |v| <= max_code units of the smallest subnormal, M mantissa bits. The last kept bit lies `last`
 * places above the units; adding 1.5 * 2^(23 + last) rounds there, and leaves the multiple of it in the sum's bits. */
static inline vi encode_elements(vf v, int m, float max_code, int sign_bit)
{
    vi a = (vi)v_min((vf)((vi)v & 0x7FFFFFFF), v_set(max_code));
    vi exponent = v_max_int(a >> 23, v_set_int(127 + m)); /* last + 127 + M */
    vi magic = (exponent << 23) + (((23 - m) << 23) | 0x400000);
    vi q = (vi)((vf)a + (vf)magic) - magic;
    vi code = q + (exponent << m) - ((127 + m) << m);
    return code | ((vi)v >> 31 & -code >> 31 & 1 << sign_bit); /* zero has no sign */
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
