/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Decoders and encoders, 16 values at a time; docs/isa.md, section 2.
 *
 * Values travel as the bits of fp32 (uint). Arithmetic is that of fp32 with one rounding to nearest, ties to even, and
 * integers; nothing here depends on subnormal numbers, on contraction or on a division. A multiplication by a power of
 * two is exact unless it ends below 2^-126, where all that matters is that it then rounds to zero.
 */
#pragma OPENCL FP_CONTRACT OFF

/* 2^e, -126 <= e <= 127 */
inline float pow2(int e)
{
    return as_float((e + 127) << 23);
}

inline float16 pow2_16(int16 e)
{
    return as_float16((e + 127) << 23);
}

/* To the nearest integer, ties to even, 0 <= v <= 2^21: the sum's last bit is 1. */
inline int16 nearest16(float16 v)
{
    return as_int16(v + 12582912.0f) - 0x4B400000;
}

inline float16 less16(float16 v, float limit)
{
    return v < limit ? v : (float16)(limit);
}

/* floor(log2(x)) of the magnitude bits of a float, subnormal ones too; -150 for zero. */
inline int16 log2_floor16(uint16 mag)
{
    const int16 field = as_int16(mag >> 23);
    return field != 0 ? field - 127 : -118 - as_int16(clz(mag));
}

inline int log2_floor(uint mag)
{
    const int field = (int)(mag >> 23);
    return field ? field - 127 : -118 - (int)clz(mag);
}

/* Element encodings: the significand, and the exponent it is to be shifted by. NaN and infinity are 0. */
inline int16 element_significand(__global const bw_cl_code *f, int16 code, int16 *shift)
{
    const int16 mag = code & ((1 << f->sign_bit) - 1);
    const int16 field = mag >> (int)f->mantissa;
    const int16 fraction = mag & ((1 << f->mantissa) - 1);
    int16 sig = field != 0 ? fraction | (1 << f->mantissa) : fraction;
    sig = mag > (int16)((int)f->largest) ? 0 : sig;
    *shift = field != 0 ? field - 1 : 0;
    return (code >> (int)f->sign_bit & 1) != 0 ? -sig : sig;
}

/* Limb l of the integers of codes: bits 9 l .. 9 l + 8 of the magnitude, with the sign. Formats of one limb: the
 * integers themselves, all below 2^9. */
inline float16 limb_values(__global const bw_cl_code *f, short16 code, uint l)
{
    if (f->kind != BW_CL_TABLE)
        return convert_float16(code);
    int16 shift;
    const int16 sig = element_significand(f, convert_int16(code), &shift);
    const uint16 limb = (abs(sig) << as_uint16(shift)) >> (9 * l) & 511;
    const float16 v = convert_float16(limb);
    return sig < 0 ? -v : v;
}

/* A byte or a word of each code, sign extended: the integers of INT and INT16, the encodings of TABLE. */
inline short16 load_codes(__global const bw_cl_code *f, __global const uchar *p)
{
    if (f->kind == BW_CL_INT16)
        return vload16(0, (__global const short *)p);
    return convert_short16(vload16(0, (__global const char *)p));
}

inline uint16 decode_block16(__global const bw_cl_code *f, short16 code, int e)
{
    int16 shift = 0, sig = convert_int16(code);
    if (f->kind == BW_CL_TABLE)
        sig = element_significand(f, sig, &shift);
    return as_uint16(convert_float16(sig) * pow2_16(e + shift));
}

inline uint16 decode_vector16(uint kind, uint16 code)
{
    if (kind == BW_CL_BF16)
        return code << 16;
    const uint16 field = code >> 10 & 31, fraction = code & 1023, sign = (code & 0x8000) << 16;
    const uint16 normal = (field == 31 ? field + 224 : field + 112) << 23 | fraction << 13;
    return (field != 0 ? normal : as_uint16(convert_float16(fraction) * 0x1p-24f)) | sign;
}

inline ushort16 encode_vector16(uint kind, uint16 bits)
{
    const uint16 mag = bits & 0x7FFFFFFF;
    const int16 e = log2_floor16(mag);
    uint16 code;
    if (kind == BW_CL_FP16) {
        const int16 last = max(e - 10, -24);
        code = as_uint16(((last + 24) << 10) + nearest16(as_float16(mag) * pow2_16(-last)));
        code = min(code, 0x7BFFu);
    } else {
        const int16 last = max(e - 7, -63);
        const int16 q = nearest16(as_float16(mag) * pow2_16(-last));
        code = min(as_uint16(convert_float16(q) * pow2_16(last)) >> 16, 0x577Fu);
    }
    return convert_ushort16(code | (code != 0 ? bits >> 16 & 0x8000 : 0));
}

/* Codes of a block whose last bit weighs 2^e. */
inline short16 encode_codes16(__global const bw_cl_tensor *t, uint16 bits, int e)
{
    const uint16 mag = bits & 0x7FFFFFFF;
    const int16 negative = as_int16(bits) < 0;
    float16 v = as_float16(mag) * pow2(-e);
    int16 q;
    if (t->code.kind == BW_CL_TABLE) {
        const int m = (int)t->code.mantissa;
        const int16 last = clamp(log2_floor16(mag) - e - m, 0, 31);
        q = (last << m) + nearest16(less16(v * pow2_16(-last), 65536.0f));
        q = min(q, (int16)((int)t->code.largest));
        return convert_short16(q | (negative && q != 0 ? (int16)(1 << t->code.sign_bit) : (int16)(0)));
    }
    if (t->pairs) {
        const float16 other = (float16)(v.odd.s0, v.even.s0, v.odd.s1, v.even.s1, v.odd.s2, v.even.s2, v.odd.s3, v.even.s3,
                                        v.odd.s4, v.even.s4, v.odd.s5, v.even.s5, v.odd.s6, v.even.s6, v.odd.s7, v.even.s7);
        const int16 coarse = (v > other ? v : other) >= pow2(t->shift);
        const float limit = (float)(int)(t->code.largest / 2);
        q = nearest16(less16(coarse ? v * 0.5f : v, limit));
        q = coarse ? q * 2 : q;
    } else {
        q = nearest16(less16(v, (float)(int)t->code.largest));
    }
    return convert_short16(negative ? -q : q);
}
