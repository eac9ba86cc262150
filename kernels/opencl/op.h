/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An instruction as the OpenCL kernels read it: bw_instruction with the traits of its formats looked up, the shape of
 * the work-groups' tiles chosen, and offsets of its constants in the device's own layout. This file is read twice: by
 * the C compiler for the host, and by the OpenCL compiler in front of the kernels. Both see the same bytes (members are
 * aligned to their own size, and there are no gaps).
 *
 * BW_CL_ABI counts the changes of this file and of the kernels' arguments: kernels of another number are refused.
 */
#ifndef BW_KERNELS_OPENCL_OP_H
#define BW_KERNELS_OPENCL_OP_H

#define BW_CL_ABI 1

/* Of every kernel: tile.cl, ARGUMENTS. */
#define BW_CL_ARGUMENTS 10

#ifdef __OPENCL_VERSION__
typedef uint bw_cl_u32;
typedef int bw_cl_i32;
typedef ulong bw_cl_u64;
#else
#include <stdint.h>
typedef uint32_t bw_cl_u32;
typedef int32_t bw_cl_i32;
typedef uint64_t bw_cl_u64;
#endif

/* Work-items of a group: CONV's array of multipliers, and all others. */
#define BW_CL_CONV_ITEMS   16
#define BW_CL_VECTOR_ITEMS 32
/* CONV: pixels that a work-item computes, each in 16 channels. */
#define BW_CL_CONV_PIXELS 8
/* On-chip buffers of a group: results (fp32) of a tile, at most so many pixels of it, and integers (in fp32) of the
 * input panel. */
#define BW_CL_TILE   2048
#define BW_CL_PLACES 128
#define BW_CL_PANEL  4096

/* How an element is stored; 0: there is no tensor. */
#define BW_CL_FP32  1
#define BW_CL_FP16  2
#define BW_CL_BF16  3
#define BW_CL_INT   4 /* from here on with a shared exponent */
#define BW_CL_INT16 5
#define BW_CL_TABLE 6

/* Regions beside those of kernels/isa.h. */
#define BW_CL_ACT 1
#define BW_CL_IN  2
#define BW_CL_OUT 3
#define BW_CL_RAW 5 /* fp32 results of a CONV that another kernel finishes */

#define BW_CL_RELU 1
#define BW_CL_CLIP 2

#define BW_CL_COUNT_PAD 1
#define BW_CL_MAP       2
#define BW_CL_BIAS      4
#define BW_CL_RESIDUAL  8
#define BW_CL_AVERAGE   16
#define BW_CL_MULTIPLY  32
#define BW_CL_TO_RAW    64 /* CONV: results to RAW as they are */

typedef struct bw_cl_code {
    bw_cl_u32 kind;
    bw_cl_u32 sign_bit; /* TABLE: number of the element's sign bit */
    bw_cl_u32 mantissa; /* TABLE: stored mantissa bits M */
    bw_cl_u32 largest;  /* magnitude of the largest code: the integer, or the element's encoding */
} bw_cl_code;

typedef struct bw_cl_tensor {
    bw_cl_u64 codes, exps; /* offsets in the region of an image, bytes */
    bw_cl_code code;
    bw_cl_u32 region;
    bw_cl_u32 height, width, channels;
    bw_cl_u32 pixel_stride, row_stride; /* units */
    bw_cl_u32 block_shift;              /* log2 of the block */
    bw_cl_u32 pairs;                    /* 1: pairs share a microexponent */
    bw_cl_i32 exp_min, exp_max, shift;  /* of the encoder */
    bw_cl_u32 zero;
} bw_cl_tensor;

typedef struct bw_cl_op {
    bw_cl_tensor in, in2, out0, out1;
    bw_cl_u64 act_bytes, in_bytes, out_bytes, raw_bytes; /* regions of one image */
    bw_cl_u64 bias, exps, table;                         /* offsets in the constants that are not weights of a CONV */
    bw_cl_u32 flags, activation, clip_lo, clip_hi;       /* bits of floats */
    bw_cl_u32 kernel_y, kernel_x, stride_y, stride_x, dilation_y, dilation_x;
    bw_cl_i32 origin_y, origin_x;
    bw_cl_u32 out_pixels;                                           /* of an image */
    bw_cl_u32 pixels, lanes;                                        /* a tile: pixels x channels = BW_CL_TILE */
    bw_cl_u32 group_blocks, reduction, group_tiles, group_channels; /* CONV: see docs/isa.md: KB, R, T, OG */
    bw_cl_u32 chunk;                                                /* CONV: blocks of the reduction in the panel */
    bw_cl_u32 limbs, weight_limbs;                                  /* CONV: words of 9 bits of an integer */
    bw_cl_code weight;
} bw_cl_op;

#endif
