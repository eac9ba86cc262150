/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The accelerator's contract: tensors, instructions, programs, and the validator that every program passes before a
 * device runs it. docs/isa.md is the full text, with every rounding; a device can be written from it alone.
 *
 * A program is one array of fixed-size little-endian instructions, executed in order, each a chain over an iteration
 * space: read -> matrix or vector operation -> residual -> activation -> write in one or two formats. Every
 * instruction carries absolute tensor descriptors, so a decoder needs no state. Programs work on one image; a batch
 * runs the program on each image with its own copy of the ACT, IN and OUT regions.
 *
 *     bw_program program;
 *     bw_error err;
 *     if (bw_program_parse(bytes, size, &program, &err)) ...     // validates everything
 *     for (uint32_t i = 0; i < program.header->instruction_count; i++) execute(&program.instructions[i]);
 *
 * Thread safety: pure functions; a bw_program is a view into the caller's bytes and must not outlive them.
 */
#ifndef BW_KERNELS_ISA_H
#define BW_KERNELS_ISA_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/formats.h"
#include "kernels/status.h"

#define BW_ISA_VERSION   1u
#define BW_PROGRAM_MAGIC 0x50575742u /* "BWWP" */
#define BW_OUTPUT_TILE   16u         /* outputs per weight tile */
#define BW_WEIGHT_ALIGN  64u         /* alignment of every array in the constants region */

/* Memory regions. Offsets in descriptors are relative to the region's start. */
typedef enum bw_region {
    BW_REGION_NONE = 0, /* an absent tensor */
    BW_REGION_ACT = 1,  /* activations: device memory, one arena per image, contents undefined at start */
    BW_REGION_IN = 2,   /* the program's inputs, fp32 NHWC, one arena per image; read only */
    BW_REGION_OUT = 3,  /* the program's outputs, fp32, one arena per image; write only */
    BW_REGION_CONST = 4 /* weights, biases, tables; shared by all images; read only */
} bw_region;

typedef enum bw_opcode {
    BW_OP_NONE = 0,
    /* Dense or grouped convolution, and fully connected layers as kernel = input size. Block formats. */
    BW_OP_CONV = 1,
    /* Depthwise convolution, also per-channel scale and shift (kernel 1x1). Vector formats. */
    BW_OP_DWCONV = 2,
    /* Pooling: any format in, any out. Kernel 1x1 with a stride is spatial slicing. */
    BW_OP_MAXPOOL = 3,
    BW_OP_AVGPOOL = 4,
    /* Element-wise over two tensors of one shape. */
    BW_OP_ADD = 5,
    BW_OP_MUL = 6,
    /* Re-encode, optionally through a channel map (concat, slice, pad and shuffle of channels) and an activation. */
    BW_OP_COPY = 7,
    /* Input transform: gather kh x kw patches of the fp32 input into the channel axis, then encode. */
    BW_OP_PATCH = 8,
    BW_OP_LIMIT = 9
} bw_opcode;

/* Applied to the fp32 accumulator before encoding. clip: y = min(max(acc, lo), hi). */
typedef enum bw_activation {
    BW_ACT_NONE = 0,
    BW_ACT_RELU = 1, /* acc > 0 ? acc : +0 */
    BW_ACT_CLIP = 2, /* acc > hi ? hi : acc < lo ? lo : acc; lo <= hi, both finite and multiples of 2^-126, no -0 */
    BW_ACT_LIMIT = 3
} bw_activation;

/* Instruction flags. */
#define BW_FLAG_BIAS        0x0001u /* CONV, DWCONV: acc starts at bias[n], else at +0 */
#define BW_FLAG_COUNT_PAD   0x0002u /* AVGPOOL: padded taps count in the divisor */
#define BW_FLAG_CHANNEL_MAP 0x0004u /* COPY: `weights` addresses a channel map */
#define BW_FLAGS_ALL        0x0007u

/*
 * A tensor of one image, height x width x channels. A "unit" is one block of `block` channels (block formats) or one
 * element (vector formats and fp32, block = 1). Pixel (y, x), unit u of the tensor is unit
 *     k = y * row_stride + x * pixel_stride + u
 * with its codes at codes + k * block * device_bytes and, for block formats, its exponent (int8) at exps + k.
 * Channels c..ceil(c / block) * block - 1 of the last block are padding: zero codes, written by every writer.
 * Strides larger than the tensor's own units make it a slice of a concatenation.
 */
typedef struct bw_tensor {
    uint64_t codes;        /* byte offset in the region; multiple of device_bytes (of 16 for block formats) */
    uint64_t exps;         /* byte offset in the region; 0 where the format has none */
    uint32_t height;       /* 1..65536 */
    uint32_t width;        /* 1..65536 */
    uint32_t channels;     /* 1..1048576 */
    uint32_t pixel_stride; /* units, >= ceil(channels / block) */
    uint32_t row_stride;   /* units, >= width * pixel_stride */
    uint8_t format;        /* bw_format */
    uint8_t region;        /* bw_region */
    uint16_t block;        /* channels per block */
    uint64_t reserved;     /* zero */
} bw_tensor;

/*
 * One instruction, 256 bytes. Output pixel (oy, ox) reads input pixels
 *     iy = oy * stride_y + origin_y + ky * dilation_y,   ix likewise;   origin = -padding
 * and positions outside the input contribute zero (CONV, DWCONV), nothing (pools) or zero (PATCH).
 *
 * CONV. kb = ceil((in.channels / groups) / block) blocks per group; the input of group g starts at unit g * kb (with
 * groups > 1, in.channels counts the padded channels: groups * kb * block). Output channel n belongs to group
 * n / (out.channels / groups). Order of the reduction: ky, kx, block, each ascending.
 *   Weights: tiles of 16 output channels, ceil(out.channels / 16) of them (in each group ceil((out.channels /
 *   groups) / 16), groups in order), padded with zero codes. Within a tile, reduction blocks in order (ky, kx, kb);
 *   each is 16 x block codes in the order [i / 4][n][i % 4], packed (bw_pack) to weight_format's code_bits.
 *   weight_exps: int8 [tile][reduction block][16]. bias: fp32 [tile][16].
 * DWCONV. in.channels == out.channels, in and weights in a vector format. weights: uint16 [ky][kx][channels rounded
 *   up to 16]. bias: fp32 [channels rounded up to 16]. acc = RN(acc + x * w), ky then kx ascending.
 * MAXPOOL. Maximum of the decoded values; at least one tap of every window lies inside (checked).
 * AVGPOOL. acc = RN(acc + x), ky then kx ascending, from +0; then RN(acc * r) with r = recip[count], count = taps
 *   inside the input (all kh * kw with COUNT_PAD). `weights` addresses recip: fp32 [kh * kw + 1], entry 0 unused.
 * ADD: RN(a + b). MUL: RN(a * b), both vector formats. a = in, b = in2.
 * COPY: y = x. With CHANNEL_MAP `weights` addresses int32 [out.channels]: source channel, or -1 for zero.
 * Formats: CONV reads block formats (weights and input of one block size), DWCONV and MUL vector formats, pools and ADD
 * any but fp32, COPY any (fp32 from IN), PATCH fp32 from IN. Results: block and vector formats in ACT, fp32 in OUT.
 * PATCH: in is fp32 in region IN; out.channels == kh * kw * in.channels, channel (ky * kw + kx) * in.channels + c.
 * After the operation: acc = RN(acc + in2) for CONV and DWCONV with in2 present (residual: shape of out, any format
 * but fp32), then the activation, then out0 and, if present, out1 are written. fp32 outputs (region OUT) hold the
 * value after the activation, unrounded further.
 */
typedef struct bw_instruction {
    uint8_t opcode;     /* bw_opcode */
    uint8_t activation; /* bw_activation */
    uint16_t flags;
    uint16_t kernel_y, kernel_x;     /* 1..1024 */
    uint16_t stride_y, stride_x;     /* 1..1024 */
    uint16_t dilation_y, dilation_x; /* 1..1024 */
    int16_t origin_y, origin_x;      /* minus the padding before; may be positive (slicing) */
    uint32_t groups;                 /* CONV: 1.., else 1 */
    uint64_t weights;                /* offsets in region CONST */
    uint64_t weight_exps;
    uint64_t bias;
    float clip_lo, clip_hi; /* +0 without BW_ACT_CLIP */
    uint8_t weight_format;  /* bw_format; NONE where there are no weights */
    uint8_t reserved[7];    /* zero */
    bw_tensor in, in2, out0, out1;
} bw_instruction;

/* What a program needs of a device; also what a device offers (hal.h). */
typedef struct bw_requirements {
    uint32_t isa_version;
    uint32_t formats;   /* bit f set: bw_format f is used */
    uint32_t opcodes;   /* bit o set: bw_opcode o is used */
    uint32_t blocks;    /* bits 0..3: block 16, 32, 64, 128 */
    uint64_t act_bytes; /* per image */
    uint64_t const_bytes;
} bw_requirements;

typedef struct bw_program_header {
    uint32_t magic;
    uint32_t isa_version;
    uint32_t instruction_count;
    uint32_t reserved;
    uint64_t act_bytes; /* size of each region; per image for ACT, IN, OUT */
    uint64_t in_bytes;
    uint64_t out_bytes;
    uint64_t const_bytes;
    uint64_t reserved2[2];
} bw_program_header;

_Static_assert(sizeof(bw_tensor) == 48, "bw_tensor is 48 bytes");
_Static_assert(sizeof(bw_instruction) == 256, "bw_instruction is 256 bytes");
_Static_assert(sizeof(bw_program_header) == 64, "bw_program_header is 64 bytes");

/* A validated program: pointers into the parsed bytes. */
typedef struct bw_program {
    const bw_program_header *header;
    const bw_instruction *instructions;
    bw_requirements needs;
} bw_program;

/*
 * Parses and validates. `bytes` must be 8-byte aligned and stay valid as long as *program is used.
 * BW_CORRUPT: not a program, wrong size, or an instruction that breaks a rule (the message names its index, the
 * field, the value and the limit). BW_VERSION_MISMATCH: another ISA version.
 * Everything above is checked: every address inside its region, formats and blocks legal for the operation, shapes
 * consistent, exact-sum bound block * max_code^2 < 2^24 for integer formats, no output overlapping an input or the
 * other output (slices of one concatenation are recognised as disjoint), clip limits legal, reserved fields zero.
 * Fields that an instruction does not use are zero too: the offset of an absent array, clip limits without CLIP, all of
 * an absent tensor; unused windows are 1x1, stride 1, dilation 1, origin 0. At most 65536 instructions, regions of at
 * most 2^40 bytes (IN and OUT multiples of 4), reductions of at most 2^22 blocks.
 */
bw_status bw_program_parse(const void *bytes, size_t size, bw_program *program, bw_error *err);

/*
 * Checks the values in a constants region that a program relies on: exponents within the format's range; biases
 * multiples of 2^-126 within +-2^126, not -0; reciprocals within 2^-40..2^40; fp16 weights finite, bf16 weights
 * multiples of 2^-63 within +-255 * 2^40; channel maps in range; padding included. Weight codes need no check: every
 * code has a defined value. constants: `size` == const_bytes, 64-byte aligned (BW_INVALID_ARGUMENT otherwise).
 * Arrays may be shared, but all different ones together may not exceed 64 times the region (they would overlap).
 * BW_CORRUPT / BW_NOT_FINITE name the instruction, the index and the value. BW_NO_MEMORY.
 */
bw_status bw_program_check_constants(const bw_program *program, const void *constants, size_t size, bw_error *err);

/* BW_INCOMPATIBLE, naming the first thing that `device` lacks and both values; BW_OK if it can run. */
bw_status bw_requirements_met(const bw_requirements *program, const bw_requirements *device, bw_error *err);

/* 1 if every byte of region OUT is surely written by the program; else a device that returns the whole region has to
 * have what the caller's buffer held before: bytes that no instruction writes stay. 0 also when out of memory. */
int bw_program_fills_out(const bw_program *program);

/* Units (blocks or elements) per pixel: ceil(channels / block). */
static inline uint32_t bw_tensor_units(const bw_tensor *t)
{
    return (t->channels + t->block - 1) / t->block;
}

/* Number of weight tiles of a CONV, and reduction blocks per tile. */
uint64_t bw_conv_tiles(const bw_instruction *ins);
uint64_t bw_conv_blocks(const bw_instruction *ins);

/* "CONV", ...; "?" for a number that is none. Static storage. */
const char *bw_opcode_name(unsigned opcode);

#endif
