/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Number formats: traits, encode, decode, packing.
 *
 * A narrow format is a decoder to small integers: a block of B values is B signed integers ("codes") and one
 * scale, value = code * 2^e, where e is the exponent of the code's last bit. See docs/isa.md for the arithmetic.
 *
 *     const bw_format_traits *t = bw_format_find("msfp12");
 *     uint8_t codes[16]; int8_t e;
 *     bw_encode_block(t, BW_ROUND_EVEN, x, 16, codes, &e);       // 16 floats -> 16 device codes + exponent
 *     bw_decode_block(t, codes, e, 16, y);                       // exact
 *
 * Sources: MSFP: Darvish Rouhani et al., "Pushing the Limits of Narrow Precision Inferencing at Cloud Scale with
 * Microsoft Floating Point", NeurIPS 2020. MX: OCP Microscaling Formats (MX) Specification v1.0, sections 5-6. MX9,
 * MX6, MX4 (shared microexponents, not OCP's formats): Darvish Rouhani et al., "With Shared Microexponents, A Little
 * Shifting Goes a Long Way", ISCA 2023.
 *
 * Thread safety: all functions are pure; the traits table is constant.
 */
#ifndef BW_KERNELS_FORMATS_H
#define BW_KERNELS_FORMATS_H

#include <stddef.h>
#include <stdint.h>

/* Numbers are part of the package and program formats: never renumbered. 0 means "no tensor". */
typedef enum bw_format {
    BW_FORMAT_NONE = 0,
    BW_FORMAT_FP32 = 1, /* only at a program's inputs and outputs */
    BW_FORMAT_FP16 = 2, /* vector formats */
    BW_FORMAT_BF16 = 3,
    BW_FORMAT_MSFP11 = 8, /* sign + 2 magnitude bits ... */
    BW_FORMAT_MSFP12 = 9,
    BW_FORMAT_MSFP13 = 10,
    BW_FORMAT_MSFP14 = 11,
    BW_FORMAT_MSFP15 = 12,
    BW_FORMAT_MSFP16 = 13, /* ... sign + 7 magnitude bits */
    BW_FORMAT_MXINT8 = 16,
    BW_FORMAT_MXFP6_E2M3 = 17,
    BW_FORMAT_MXFP4_E2M1 = 18,
    BW_FORMAT_MXFP6_E3M2 = 19,
    BW_FORMAT_MXFP8_E4M3 = 20,
    BW_FORMAT_MXFP8_E5M2 = 21,
    BW_FORMAT_MX9 = 24,  /* sign + 7 magnitude bits, a microexponent for each pair */
    BW_FORMAT_MX6 = 25,  /* sign + 4 */
    BW_FORMAT_MX4 = 26,  /* sign + 2 */
    BW_FORMAT_LIMIT = 27 /* one past the last number in use */
} bw_format;

typedef enum bw_format_kind {
    BW_KIND_FLOAT,  /* fp32: codes are IEEE binary32, 4 bytes, no exponent */
    BW_KIND_VECTOR, /* fp16, bf16: codes are the 16 bits, 2 bytes, block of 1, no separate exponent */
    BW_KIND_INT,    /* the device code byte is the signed integer itself (int8_t) */
    BW_KIND_TABLE,  /* the device code byte is the OCP element encoding; its integer is bw_code_value() */
    BW_KIND_INT16   /* the device code is the signed integer itself, two bytes (int16_t) */
} bw_format_kind;

/* Element rounding of the encoder. The device encodes activations with BW_ROUND_EVEN only. */
typedef enum bw_round {
    BW_ROUND_EVEN = 0,    /* to nearest, ties to even */
    BW_ROUND_NEAREST = 1, /* to nearest, ties away from zero */
    BW_ROUND_FLOOR = 2    /* toward zero (what the literature on block formats calls floor) */
} bw_round;

typedef struct bw_format_traits {
    bw_format format;
    const char *name; /* "msfp12" */
    bw_format_kind kind;
    uint8_t code_bits;     /* packed width of one element, 3..9; 16 for vectors, 32 for fp32 */
    uint8_t device_bytes;  /* bytes of one element in device tensors: 1, 2 or 4 */
    uint8_t mantissa_bits; /* m: significand bits of an element; INT: max code < 2^m; TABLE: stored ones plus one */
    uint16_t block;        /* default block: 16 msfp and mx9, mx6, mx4; 32 OCP's mx; 1 otherwise */
    int8_t exp_min;        /* range of the exponent e of the last bit (stored one by one in block formats) */
    int8_t exp_max;
    int8_t emax_shift; /* e = floor(log2(max|x|)) - emax_shift: m-1 for msfp, 6 for mxint8, emax + lsb for mxfp */
    int64_t max_code;  /* largest |code value| that the encoder writes */
    uint8_t sub_block; /* 2: pairs share a microexponent (mx9, mx6, mx4); else 0 */
} bw_format_traits;

/* NULL for a number that is no format / an unknown name. */
const bw_format_traits *bw_format_get(bw_format format);
const bw_format_traits *bw_format_find(const char *name);

/* 1 for the kinds with a shared exponent: INT, TABLE, INT16. NULL: 0. */
int bw_format_is_block(const bw_format_traits *t);
/* 1 if `block` is legal for the format: 16, 32, 64, 128 for msfp, mx9, mx6, mx4; 32 for OCP's mx; 1 otherwise. */
int bw_format_block_ok(const bw_format_traits *t, unsigned block);

/* The signed integer of a device code (block formats; INT and TABLE read the low byte, TABLE its low code_bits only,
 * INT16 the low 16 bits). The encodings of NaN and infinity (e4m3, e5m2) have the value 0; no encoder writes them. -2^m
 * is the value of that INT code. */
int64_t bw_code_value(const bw_format_traits *t, unsigned code);
/* 256 entries of bw_code_value(), kinds INT and TABLE; static storage. NULL for other kinds. */
const int64_t *bw_code_table(const bw_format_traits *t);

/*
 * Block formats. Encodes n <= block finite floats into `block`-independent n device codes (n * device_bytes bytes, any
 * alignment) and the stored exponent e. The scale is floor(log2(max|x|)), saturating codes, the exponent never bumped,
 * then clamped to exp_min..exp_max; a block of zeros has e = exp_min; zero is +0 (code 0). Subnormal inputs are
 * honoured. The caller guarantees finite input; others give some legal codes (infinity saturates).
 */
void bw_encode_block(const bw_format_traits *t, bw_round round, const float *x, size_t n, void *codes, int8_t *e);
/* The exponent by the format's own rule, before the clamp to exp_min..exp_max (the OCP/MSFP scale proper);
 * INT_MIN for a block of zeros. */
int bw_block_exponent(const bw_format_traits *t, const float *x, size_t n);
/*
 * Encodes with a given exponent of the last bit, -400 <= e <= 127: codes = round(x / 2^e), saturating.
 *
 * Formats with microexponents: x[0], x[1] are a pair, x[2], x[3] the next ...; an odd last value is alone. A pair whose
 * larger magnitude is below 2^(e + m - 1) is fine: its codes are round(x / 2^e), at most 2^(m-1) - 1 in magnitude. Any
 * other is coarse: its codes are even, 2 * round(x / 2^(e + 1)), at most 2 * (2^(m-1) - 1). (In the paper's words: the
 * microexponent is 1 for a fine pair, whose own exponent is below the block's, and 0 for a coarse one; both round
 * against the exponent of their pair and saturate there. A value just below 2^(e + m - 1) in a fine pair saturates and
 * does not make the pair coarse.) The code is the element shifted left by 1 - microexponent.
 */
void bw_encode_block_at(const bw_format_traits *t, bw_round round, const float *x, size_t n, int e, void *codes);
/* y[i] = (float)(bw_code_value(codes[i]) * 2^e); exact for every e in exp_min..exp_max. */
void bw_decode_block(const bw_format_traits *t, const void *codes, int e, size_t n, float *y);

/*
 * Vector formats, one element. fp16: IEEE binary16 with saturation instead of infinity (|x| > 65504 -> 65504).
 * bf16: 8-bit significand, value = sig * 2^e with -63 <= e <= 40: multiples of 2^-63 below 2^-55, saturating at
 * 255 * 2^40, so that the product of two is a multiple of 2^-126. Ties to even. Zero is +0.
 * Decoding takes every code: fp16 infinity and NaN decode as such (no encoder writes them).
 */
uint16_t bw_encode_vector(const bw_format_traits *t, float x);
float bw_decode_vector(const bw_format_traits *t, uint16_t code);

/*
 * Packing: n device codes (device_bytes each) to and from a stream of code_bits each, least significant bit first.
 * INT kinds are stored as two's complement, TABLE kinds as the element encoding. Bytes: bw_packed_size(t, n).
 */
size_t bw_packed_size(const bw_format_traits *t, size_t n);
void bw_pack(const bw_format_traits *t, const void *codes, size_t n, uint8_t *packed);
void bw_unpack(const bw_format_traits *t, const uint8_t *packed, size_t n, void *codes);

#endif
