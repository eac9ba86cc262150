/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the fast engine: what its planner (fast.c), its drivers (fast_conv.c, fast_direct.c, fast_vector.c) and its
 * per-ISA kernels (NAME__ISA.c) share. Not public.
 *
 * Why any ISA, thread count and tiling gives the same bits: each output value is computed by one thread in the order
 * of docs/isa.md; parts of a reduction are only ever continued from the stored fp32 accumulator. The products that are
 * added are exact, so a fused multiply-add equals a multiplication and an addition.
 *
 * Why padded taps may be skipped, and blocks outside the input replaced by zero codes with any legal exponent: they
 * would add +-0, and acc + (+-0) = acc unless acc is -0. acc never is: it starts at +0 or at a bias that is not -0
 * (checked by bw_program_check_constants), x + y of round-to-nearest is -0 only if both are -0, and all values are
 * multiples of 2^-126, so that no sum is rounded to zero.
 */
#ifndef BW_SIM_FAST_H
#define BW_SIM_FAST_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/isa.h"
#include "sim/pool.h"
#include "sim/sim.h"

/* Rows of fp32 values in scratch memory are padded to this many elements: the largest block. */
#define BW_ROW_ALIGN 128u
/* Output pixels per kernel call, at most. */
#define BW_GROUP_MAX 12u

/* --- row kernels: fp32 rows to and from device tensors, and arithmetic on them ------------------------------------ */

/* A format as the kernels want it. */
typedef struct bw_row_format {
    const bw_format_traits *traits;
    bw_format_kind kind;
    uint16_t block;
} bw_row_format;

typedef struct bw_row_activation {
    bw_activation kind;
    float lo, hi;
} bw_row_activation;

/* A tensor, or fp32 rows in memory, from some pixel and channel on. */
typedef struct bw_side {
    const bw_row_format *format; /* NULL: absent */
    uint8_t *codes;
    int8_t *exps;               /* block formats */
    size_t code_step, exp_step; /* bytes from one pixel to the next */
} bw_side;

/*
 * acc[p][c] = bias[c] + the sum over taps (ky, kx) in order, one rounding each, of
 *     x[ky * x_row + (left + p * stride + kx * dilation) * x_pixel + c] * w[(ky * columns + kx) * w_tap + c]
 * for neighbours in a row of the output. Columns outside 0..width-1 add nothing. Reads exactly n elements of a pixel;
 * w and bias are padded to 16, and acc is written up to there. Kernels that can (bw_rows.depthwise_writes) take acc
 * NULL and write activation(sums) to `out`, fp16 or INT in blocks of 16, of one tap inside also in longer ones, as
 * bw_fused does.
 */
typedef struct bw_depthwise {
    bw_format x_format;
    const uint16_t *x; /* column 0 of the row of the first tap inside */
    size_t x_row, x_pixel;
    int64_t left; /* column of the first tap of the first pixel; may lie outside */
    int64_t width;
    size_t stride, dilation;
    size_t rows, columns; /* taps: rows inside the input, all columns */
    const float *w;       /* from the first row inside */
    size_t w_tap;
    const float *bias; /* NULL: zeros */
    size_t pixels, n;
    float *acc; /* [pixels][acc_stride] */
    size_t acc_stride;
    bw_side out;
    const bw_row_activation *activation;
} bw_depthwise;

/*
 * y = activation(a), activation(a + b) or activation(a * b) for n channels of some pixels, one rounding for the
 * operation; written to out[0] and out[1]. Reads of b and a exactly n elements, or all of the last block. Writes
 * exactly n elements, or all of the last block with zeros for its padding. b and out[1] may be absent. a has any
 * format, the others all but fp32 for b.
 */
typedef struct bw_fused {
    size_t pixels, n;
    bw_side a, b, out[2];
    int multiply;
    const bw_row_activation *activation;
} bw_fused;

/*
 * y[p][c] = the largest of, or `factor` times the sum (in order, one rounding each) over, the taps
 * x[p][i * rows.. + j * columns..][c], i < rows, j < columns (at least one each), c < n, for some pixels. Reads exactly
 * n elements of x, or all of the last block; writes n rounded up to 16.
 */
typedef struct bw_window {
    bw_side x; /* first pixel, first tap; steps are from one output pixel to the next */
    size_t rows, columns, pixels, n;
    size_t code_row, code_column, exp_row, exp_column; /* bytes from one tap to the next */
    int average;
    float factor;
    float *y; /* [pixels][stride] */
    size_t stride;
} bw_window;

/*
 * How much of the blocks of a reduction is worth multiplying: the until-th of them, and each period-th after that, is
 * the last of its tap and holds `last` fours of codes before padding, which adds nothing; the others hold block / 4.
 */
typedef struct bw_fill {
    size_t until, period, last; /* at least 1 */
} bw_fill;

/* Fours of the next block. */
static inline size_t bw_fill_next(bw_fill *f, size_t block)
{
    if (--f->until)
        return block / 4;
    f->until = f->period;
    return f->last;
}

/* Blocks that lie side by side in a panel (see CONV) and in the reduction. */
typedef struct bw_dot_run {
    uint32_t at, blocks; /* at: counted in blocks from where the pixel's window starts */
} bw_dot_run;

/*
 * A whole CONV of int8 codes for neighbours in the output: sums, b added, activation, and n channels to out[0] and
 * out[1] as bw_fused does it. One of the outputs may be fp16, one fp32, one INT in blocks, out[1] absent.
 */
typedef struct bw_direct {
    size_t block;     /* of the input and the weights */
    size_t out_block; /* of the output in blocks; as suits if there is none; direct: from 64 on n % 64 is 0 */
    size_t pixels, n; /* at least 7 pixels */
    int all_at_once;  /* each tile for all pixels before the next, else all tiles for some pixels before the next */
    size_t blocks;    /* of the reduction */
    bw_fill fill;
    const bw_dot_run *runs;
    size_t run_count;
    const uint8_t *codes; /* window of the first pixel */
    size_t code_step;     /* bytes to the next */
    const int32_t *scale; /* (127 + e) << 23 */
    size_t scale_step;
    int is_signed;         /* the panel has code + 128 */
    const int8_t *weights; /* of all tiles, canonical order */
    const int32_t *sums;   /* direct: what bw_byte_kernels.sum made of them */
    const float *bias;     /* 16 a tile; NULL: zeros */
    bw_side b, out[2];
    const bw_row_activation *activation;
    /* matrix: pixels may be several lines, which follow each other in the outputs and the residual but not in the
     * panel. The weights need no sums, and the values of a group of channels wait for each other. */
    size_t line, line_codes, line_scales; /* pixels of a line; bytes, and entries, to the next */
    int overlap;                          /* windows of neighbours do, in the input at least */
    const int8_t *weight_exps;            /* [tiles][blocks][16] */
    float *values;                        /* BW_MATRIX_VALUES(line) a line, 64-byte aligned */
} bw_direct;
/* For any number of pixels at a time up to 16, and the largest block. */
#define BW_MATRIX_VALUES(line) (((line) + 15) * BW_ROW_ALIGN)

/*
 * PATCH for neighbours in a row of the output: channel (ky * kernel_x + kx) * channels + c of pixel p is
 * x[ky * x_row + (p * stride + kx) * channels + c], zero if row ky is not first_row..end_row - 1 or column left + p *
 * stride + kx is not 0..width - 1; what is outside is not read. out: INT in blocks.
 */
#define BW_PATCH_BLOCKS 32u /* of 16 channels, of an output pixel, at most */
#define BW_PATCH_PIECES 96u /* rows of taps that those come from, counted block by block, at most */
typedef struct bw_patch {
    const float *x; /* tap (0, 0) of the first pixel; may lie outside */
    size_t x_row, channels, stride, kernel_y, kernel_x, first_row, end_row, pixels;
    int64_t left, width;
    bw_side out;
} bw_patch;

/*
 * y[p][c] = x[p][map[c]] for 16-bit codes, 0 where there is no such channel; c < n. The map comes as parts: lanes of 32
 * channels of y that are neighbours in x too, in the same order, or that are found anywhere among 64 channels of x.
 */
typedef struct bw_gather_part {
    uint32_t lanes;     /* bit i: lane i is one of them */
    int32_t from;       /* neighbours: channel of x for lane 0, which may not exist; else the first of the 64 */
    int neighbours;     /* what follows is for others */
    uint32_t there[2];  /* bit i: channel from + i, from + 32 + i exists */
    uint16_t index[32]; /* below 64 */
} bw_gather_part;

typedef struct bw_gather {
    const uint16_t *x;
    uint16_t *y;
    size_t x_pixel, y_pixel, pixels, n; /* reads only channels that parts say exist */
    const bw_gather_part *parts;
    const uint32_t *first; /* those of y's channels 32 i.. are first[i]..first[i + 1] - 1 */
} bw_gather;

typedef struct bw_rows {
    void (*fused)(const bw_fused *f);
    void (*window)(const bw_window *w);
    void (*depthwise)(const bw_depthwise *d);
    int depthwise_writes;
    /* NULL: the ISA does not have these. */
    void (*patch)(const bw_patch *g);
    void (*gather)(const bw_gather *g);
    void (*direct)(const bw_direct *g);
    void (*matrix)(const bw_direct *g); /* at least BW_MATRIX_PIXELS, at most BW_MATRIX_BLOCKS of 32
                                           codes or more, as they are */
} bw_rows;

#define BW_MATRIX_PIXELS 14u
#define BW_MATRIX_BLOCKS 1024u /* of a reduction, at most */

extern const bw_rows bw_rows_portable, bw_rows_avx2, bw_rows_avx512vnni, bw_rows_amx;
void bw_direct_avx512vnni(const bw_direct *g);
void bw_direct_amx(const bw_direct *g);

/* --- dot kernels: CONV -------------------------------------------------------------------------------------------- */

/* How the codes of a CONV are multiplied, by the range of its two formats. */
typedef enum bw_dot_class {
    BW_DOT_S8,  /* both fit int8, and the ISA has a byte dot product */
    BW_DOT_S16, /* both fit int16, block sums fit int32 */
    BW_DOT_F64, /* wide: block sums < 2^53 */
    BW_DOT_I128 /* wide: the rest, block sums < 2^69 */
} bw_dot_class;

/*
 * A panel holds input blocks the way the kernels want them, and each output pixel's window is a list of runs in it:
 *   codes   S8: int8 + 128, or int8 if there are no negative codes; S16: int16; wide: double
 *   scale   one int32 a block: (127 + e) << 23, for S8 (scale_bias + e) << 23; I128: | BW_WIDE_MARK if the sums of the
 *           block may not be exact in a double
 * It is either the input region under some rows of output pixels, packed once and
 * shared by all windows that meet there, or a row of its own for each pixel (im2col). Packers go upwards and may write
 * a vector past what they pack.
 */
#define BW_WIDE_MARK   1
#define BW_PANEL_SLACK 64u /* bytes, after the codes and after the scales */

/* Blocks of a reduction that one kernel call takes, at most. */
#define BW_DOT_CHUNK 128u

typedef struct bw_dot_args {
    size_t pixels, block;
    size_t tiles; /* 1; up to bw_byte_kernels.tiles for S8 */
    bw_fill fill; /* S8 */
    const bw_dot_run *runs;
    size_t run_count;
    const void *codes; /* window of the first pixel */
    size_t code_step;  /* bytes to the window of the next */
    const int32_t *scale;
    size_t scale_step; /* entries */
    /* Of a tile. S8: canonical order, int8; S16: [blocks][block / 2][16][2]; else [blocks][block][16]. */
    const void *weights;
    size_t weight_step;        /* bytes to the next tile */
    const int8_t *weight_exps; /* [blocks][16] */
    size_t exp_step;
    int is_signed;       /* S8: the panel has code + 128 */
    const int32_t *sums; /* S8: what bw_byte_kernels.sum made of the tile; NULL for a few pixels, which do without */
    size_t sum_step;
    const int8_t *nibbles; /* S8 without sums: the weights are packed codes of 4 bits for these 16 values; or NULL */
    const float *start;    /* 16 values a tile that acc starts at; NULL: continue from acc */
    float *acc;            /* [pixels][stride], 16 outputs a tile */
    size_t stride;
    const uint8_t *ahead; /* S8 fetches so many lines of 64 bytes from here on with each block; weights to come */
    size_t ahead_lines;
} bw_dot_args;

typedef struct bw_pack_args {
    const uint8_t *codes; /* `count` blocks of device codes; NULL: zeros */
    const int8_t *exps;
    size_t count, block;
    const int16_t *values; /* TABLE formats: 256 code values; else NULL */
    uint8_t offset;        /* S8: 128, or 0 if no code is negative */
    int scale_bias;        /* S8 */
    void *out;
    int32_t *scale;
} bw_pack_args;

/* int32 that bw_byte_kernels.sum writes for a block of a tile. */
static inline size_t bw_dot_sums(int is_signed)
{
    return is_signed ? 32 : 16;
}

/* Class S8, for an ISA and how its CPUs execute it. */
typedef struct bw_byte_kernels {
    int scale_bias;                       /* of the panel's scales */
    unsigned group[2];                    /* pixels per call, for blocks of 16 and longer ones */
    unsigned tiles;                       /* per call, at most */
    void (*dot)(const bw_dot_args *args); /* without sums: one pixel */
    void (*sum)(const int8_t *weights, const int8_t *exps, size_t blocks, size_t block, bw_fill fill, int is_signed,
                int32_t *sums);
} bw_byte_kernels;

extern const bw_byte_kernels bw_dot_bytes_avx512vnni, bw_dot_bytes_2p_avx512vnni;

typedef struct bw_dot_kernels {
    unsigned group;                          /* pixels per call of dot16 and the wide classes, <= BW_GROUP_MAX */
    const bw_byte_kernels *bytes, *bytes_2p; /* for CPUs with four and with two vector pipes; NULL: S8 is as S16 */
    void (*pack8)(const bw_pack_args *args); /* NULL without bytes, as are scales8 and map8 */
    /* The scales of a panel in place, of `count` blocks that lie one after the other. */
    void (*scales8)(const int8_t *exps, size_t count, int bias, int32_t *scale);
    const struct bw_wide_kernels *wide; /* F64 and I128 */
    void (*dot16)(const bw_dot_args *args);
    void (*pack16)(const bw_pack_args *args);
    void (*map8)(const int16_t *values, size_t count, uint8_t *codes); /* in place */
    /* count packed weight codes (a multiple of 256) of code_bits < 8 each to bytes, in order. */
    void (*unpack)(const bw_format_traits *t, const uint8_t *packed, size_t count, uint8_t *codes);
    /* count weight bytes (canonical order, blocks of 16 x block) to S16 order. */
    void (*widen)(const uint8_t *codes, const int16_t *values, size_t blocks, size_t block, int16_t *out);
    void (*widen_words)(const uint8_t *packed, size_t blocks, size_t block, int16_t *out);
} bw_dot_kernels;

extern const bw_dot_kernels bw_dot_portable, bw_dot_avx2, bw_dot_avx512vnni;

/* Operands of kind INT16 in class S16 (dot_words.c, dot_words__ISA.c): as pack16, and as unpack and widen at once. */
void bw_pack_words(const bw_pack_args *args);
void bw_widen_words_portable(const uint8_t *packed, size_t blocks, size_t block, int16_t *out);
void bw_widen_words_avx2(const uint8_t *packed, size_t blocks, size_t block, int16_t *out);
void bw_widen_words_avx512vnni(const uint8_t *packed, size_t blocks, size_t block, int16_t *out);

/* The wide classes (dot_wide.c, dot_wide__ISA.c). Codes: INT16 two bytes each, else one. widen: to
 * [blocks][block][16].
 */
typedef struct bw_wide_kernels {
    void (*dot)(const bw_dot_args *args);
    void (*pack)(bw_dot_class c, const bw_format_traits *t, const bw_pack_args *args);
    void (*widen)(const bw_format_traits *t, const uint8_t *codes, size_t blocks, size_t block, double *out);
} bw_wide_kernels;

extern const bw_wide_kernels bw_wide_portable, bw_wide_avx2, bw_wide_avx512vnni;

void bw_pack_wide_portable(bw_dot_class c, const bw_format_traits *t, const bw_pack_args *args);
void bw_widen_wide_portable(const bw_format_traits *t, const uint8_t *codes, size_t blocks, size_t block, double *out);
/* s: blocks whose activations are all multiples of 2^s have exact sums and are not marked. */
unsigned bw_wide_unit(bw_dot_class c, const bw_format_traits *activations, size_t block);

/* --- plan and run --------------------------------------------------------------------------------------------------
 */

/* Tables derived from the formats once. */
typedef struct bw_format_tables {
    int16_t values16[BW_FORMAT_LIMIT][256]; /* saturated: only used where all values fit */
} bw_format_tables;

/* A tensor, resolved. base: start of its region of image 0. */
typedef struct bw_view {
    const bw_tensor *tensor;
    bw_row_format format;
    size_t units;      /* per pixel */
    size_t unit_bytes; /* codes of one unit */
    uint8_t *base;
    size_t image_stride; /* bytes from one image's region to the next */
} bw_view;

/* How an item of CONV holds the input under its pixels. */
typedef enum bw_panel_kind {
    /* A row of its own for each pixel, its window (im2col); if that is too long, a part of the reduction at a time. */
    BW_PANEL_ROWS,
    /* Rows of the input, packed once for all windows that meet in them: 3x3 kernels and the like. */
    BW_PANEL_REGION,
    /* 1x1 kernels on codes that can be multiplied as they are: only the scales are packed. */
    BW_PANEL_IN_PLACE
} bw_panel_kind;

/* What is planned once for each instruction. */
typedef struct bw_plan {
    const bw_instruction *ins;
    bw_view in, in2, out[2]; /* tensor NULL: absent; base and image_stride filled in for each run */
    size_t align;            /* channels: largest block of in2 and the outputs, at least 16 */
    int adjoin_in, adjoin;   /* rows of `in`, of in2 and the outputs, follow each other without a gap */
    bw_row_activation activation;
    const uint8_t *weights; /* pointers into the constants */
    const int8_t *weight_exps;
    const float *bias; /* NULL: none */
    bw_row_format weight_format;
    uint8_t *own; /* memory of the plan; freed with it */
    /* CONV, the direct way */
    int direct; /* it is taken */
    int matrix; /* with the kernel of that name */
    int apart;  /* each pixel has a window of its own in the panel (im2col), else they share what they overlap in */
    int32_t *direct_sums;
    const int8_t *direct_weights;
    /* CONV */
    bw_dot_class dot;
    int is_signed;         /* the input may have negative codes */
    size_t group_blocks;   /* kb: blocks per pixel and group */
    size_t last_fill;      /* fours of codes in the last of them */
    size_t reduction;      /* blocks of the whole reduction */
    int taps_adjoin;       /* the blocks of tap kx + 1 follow those of tap kx in the input */
    size_t group_channels; /* outputs per group */
    size_t group_tiles;
    size_t tile_bytes; /* packed codes of one tile */
    size_t chunk;      /* reduction blocks per kernel call */
    size_t bunch;      /* tiles that are finished together */
    bw_panel_kind panel;
    size_t item_rows;   /* output rows of an item; 0 for BW_PANEL_ROWS, whose items are of pixels */
    int one_line;       /* the pixels of item_rows are one line: a fixed step apart */
    size_t part;        /* BW_PANEL_ROWS: reduction blocks of a row at a time */
    size_t most_pixels; /* of an item */
    size_t acc_stride;
    size_t row;                         /* floats of an fp32 row in scratch; not CONV */
    const float *taps;                  /* DWCONV: [ky][kx][channels rounded up to 16] */
    int writes;                         /* DWCONV: its kernel writes the results */
    int flat;                           /* DWCONV: rows follow each other as pixels do, in all tensors */
    size_t span;                        /* DWCONV, MAXPOOL: channels made at a time; a multiple of align, or all */
    size_t rows;                        /* fp32 rows made at a time; not CONV */
    int patches;                        /* PATCH: has a kernel of its own */
    const struct bw_plan *patch;        /* CONV: the PATCH that it runs for its own lines; or NULL */
    int with_next;                      /* PATCH: the next instruction runs it */
    const bw_gather_part *gather_parts; /* COPY with a map of 16-bit codes: NULL if there is no kernel for it */
    const uint32_t *gather_first;
    size_t columns; /* MAXPOOL: columns of the input whose maxima are shared by windows; 0: none are */
    size_t scratch; /* bytes per thread */
} bw_plan;

struct bw_fast {
    const bw_program *program;
    const uint8_t *constants;
    bw_sim_isa isa;
    unsigned pipes; /* as in bw_fast_options, chosen */
    unsigned least_matrix;
    const bw_rows *rows;
    const bw_dot_kernels *dots;
    const bw_byte_kernels *bytes; /* of dots, or NULL */
    bw_pool *pool;
    bw_plan *plans;
    bw_format_tables *tables;
    bw_row_format fp32; /* rows in scratch memory */
    uint8_t *scratch;   /* threads x scratch_bytes */
    size_t scratch_bytes;
    uint8_t *act; /* act_batch x act_stride */
    size_t act_stride;
    uint32_t act_batch;
    pthread_mutex_t lock; /* one run at a time */
};

/* Rounds up to a multiple of a power of two. */
static inline size_t bw_round_up(size_t n, size_t to)
{
    return (n + to - 1) & ~(to - 1);
}

/* Address of pixel (y, x), unit u. */
static inline uint8_t *bw_view_codes(const bw_view *v, size_t image, size_t y, size_t x, size_t u)
{
    const bw_tensor *t = v->tensor;
    return v->base + image * v->image_stride + t->codes +
           ((size_t)t->row_stride * y + (size_t)t->pixel_stride * x + u) * v->unit_bytes;
}

static inline int8_t *bw_view_exps(const bw_view *v, size_t image, size_t y, size_t x, size_t u)
{
    const bw_tensor *t = v->tensor;
    return (int8_t *)v->base + image * v->image_stride + t->exps +
           ((size_t)t->row_stride * y + (size_t)t->pixel_stride * x + u);
}

/* For blocks k.. of the reduction. */
static inline bw_fill bw_plan_fill(const bw_plan *plan, size_t k)
{
    return (bw_fill){plan->group_blocks - k % plan->group_blocks, plan->group_blocks, plan->last_fill};
}

/* The thread's scratch memory. */
static inline uint8_t *bw_fast_scratch(const bw_fast *engine, unsigned thread)
{
    return engine->scratch + thread * engine->scratch_bytes;
}

/* Channels from c0 on of pixel (y, x) and those after it in its row; c0 is a multiple of the tensor's block. An absent
 * tensor gives an absent side. */
bw_side bw_fast_side(const bw_view *v, size_t image, size_t y, size_t x, size_t c0);
/*
 * The end of CONV, and of every operation that makes fp32 rows, for `pixels` consecutive output pixels of the batch
 * from number `first` on, number = (image * out.height + y) * out.width + x: residual (if the plan has one and it is
 * CONV or DWCONV), activation, and writing channels c0 .. c0 + n. c0 is a multiple of plan->align, as is n unless it
 * reaches the last channel. acc: [pixels][stride], read only.
 */
void bw_fast_finish_pixels(const bw_fast *engine, const bw_plan *plan, size_t first, size_t pixels, size_t c0, size_t n,
                           const float *acc, size_t stride);

/* in[i] = 1 if the input of instruction i cannot hold negative values, for all of the program. */
void bw_fast_find_signs(const bw_program *program, uint8_t *in);

/* Whether an instruction after `reader`, or its residual, reads what t holds before `reader` runs; region ACT. */
int bw_fast_is_read_later(const bw_program *program, uint32_t reader, const bw_tensor *t);

/* Fill the CONV part of a plan (scratch included) / run it. */
void bw_conv_plan(const bw_fast *engine, bw_plan *plan);
void bw_conv_run(bw_fast *engine, const bw_plan *plan, uint32_t batch);
/* The same for those with a short reduction; 0: this one is not done so. */
int bw_direct_plan(const bw_fast *engine, bw_plan *plan);
void bw_direct_run(bw_fast *engine, const bw_plan *plan, uint32_t batch);
/* The same for all other opcodes. */
/* 0: no memory. */
int bw_vector_plan(const bw_fast *engine, bw_plan *plan);
void bw_vector_run(bw_fast *engine, const bw_plan *plan, uint32_t batch);
/* A PATCH with a kernel of its own: some lines of an image to codes and exponents that lie side by side. */
void bw_vector_patch(const bw_fast *engine, const bw_plan *plan, size_t image, size_t line, size_t lines,
                     uint8_t *codes, int8_t *exps);
/* Of a COPY with a map: its parts, if there is a kernel for it, and memory; else the other way stays. */
void bw_gather_plan(const bw_fast *engine, bw_plan *plan);
/* Lets a CONV of bw_direct_plan run the PATCH before it, if it reads all pixels of that once. */
void bw_direct_join(bw_plan *plan, bw_plan *patch);

#endif
