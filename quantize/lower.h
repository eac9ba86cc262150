/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the compiler: from graph nodes to accelerator chains.
 *
 *     match   (lower_match.c)   what a node would be on the accelerator, if anything
 *     place   (compile_place.c) which node runs where, and in which stage
 *     lower   (lower.c)         the nodes of one accelerator stage as chains over values, with fusions
 *     layout  (layout.c)        in which formats each value is kept, which values are slices of a concatenation
 *     blocks  (blocks.c)        how long the blocks of each value are; asked by lower and layout
 *     memory  (memory.c)        where every tensor lies
 *     emit    (compile_emit.c)  instructions and packed constants (pack.c)
 *
 * Private to quantize/. Thread safety: none of these objects is shared.
 */
#ifndef BW_QUANTIZE_LOWER_H
#define BW_QUANTIZE_LOWER_H

#include "quantize/compile.h"

/* --- match -------------------------------------------------------------------------------------------------- */

typedef enum bw_match_kind {
    BW_MATCH_NONE = 0, /* the CPU's */
    BW_MATCH_CONV,     /* dense, grouped or depthwise convolution */
    BW_MATCH_GEMM,     /* fully connected */
    BW_MATCH_ACT,      /* Relu, Clip */
    BW_MATCH_ADD,      /* of two tensors of one shape */
    BW_MATCH_MUL,      /* likewise */
    BW_MATCH_AFFINE,   /* x * constant + constant per channel */
    BW_MATCH_MAXPOOL,  /* also global */
    BW_MATCH_AVGPOOL,  /* also global */
    BW_MATCH_CONCAT,   /* of channels */
    BW_MATCH_WINDOW,   /* slice, crop, stride or zero padding: of pixels, of channels, or both */
    BW_MATCH_SPLIT,    /* of channels */
    BW_MATCH_SHUFFLE,  /* channel shuffle: Reshape, Transpose, Reshape; the match belongs to the last of them */
    BW_MATCH_FLATTEN,  /* feature map to vector */
    BW_MATCH_ALIAS     /* the same numbers in the same order */
} bw_match_kind;

typedef struct bw_geometry { /* [0] vertical, [1] horizontal; as the instruction's fields */
    int64_t kernel[2], stride[2], dilation[2], origin[2];
} bw_geometry;

/* w(n, ky, kx, c) = data[n * sn + c * sc + ky * sy + kx * sx] * scale, c inside the group; borrowed from the graph. */
typedef struct bw_weights {
    const float *data;
    int64_t sn, sc, sy, sx;
    float scale;
    int64_t outputs, group_channels, groups; /* of the source operator */
    const float *bias;                       /* NULL, or bias_count = 1 or `outputs` values */
    int64_t bias_count;
    float bias_scale;
    const char *name; /* of the weights' value, for messages */
} bw_weights;

typedef struct bw_shape {
    int64_t h, w, c;
} bw_shape;

typedef struct bw_match {
    bw_match_kind kind;
    int in, in2; /* graph values; in2 -1 */
    int first;   /* SHUFFLE: nodes first, middle and this one are one */
    int middle;
    bw_geometry geo;
    bw_weights w; /* CONV, GEMM (sc = stride along the input), AFFINE (sn) */
    float lo, hi; /* ACT: y = min(max(x, lo), hi); lo may be -inf, hi +inf */
    int count_pad;
    int64_t channel_start, channel_step; /* WINDOW: channel c comes from start + c * step, zero if there is none */
    int64_t groups;                      /* SHUFFLE */
    int reciprocal;                      /* AFFINE: divide by w instead */
} bw_match;

/* Shape of a value as the accelerator sees one image; 0 if it cannot hold it (dtype, rank, batch, limits). */
int bw_lower_shape(const bw_graph *g, int value, bw_shape *shape);
/* Fills *m; m->kind is BW_MATCH_NONE if the node is the CPU's. Shapes must be known. */
void bw_lower_match(const bw_graph *g, int node, bw_match *m);

/* --- place -------------------------------------------------------------------------------------------------- */

typedef struct bw_placement {
    bw_match *matches; /* per node */
    int *level;        /* per node: stages in ascending order; even on the CPU, odd on the accelerator */
    int levels;        /* one past the highest */
} bw_placement;

bw_status bw_place(const bw_graph *g, const bw_recipe *recipe, bw_placement *p, bw_error *err);
void bw_placement_free(bw_placement *p);

/* --- lower -------------------------------------------------------------------------------------------------- */

/* The forms in which a value may exist. */
enum { BW_FORM_VECTOR, BW_FORM_BLOCK, BW_FORM_OUT, BW_FORM_IN, BW_FORMS };

typedef struct bw_ir_form {
    int wanted;
    int parent;    /* value of whose same form this is a slice, -1 */
    uint32_t unit; /* first unit inside the parent */
    int span;      /* memory span of a form without parent, -1 */
} bw_ir_form;

typedef struct bw_ir_value {
    int value; /* of the graph; -1: made by the compiler */
    int64_t h, w, c;
    int32_t *map;      /* block form: physical channel -> channel or -1; NULL: dense */
    int64_t physical;  /* channels of the block form */
    uint16_t block;    /* of the block form; 0: not decided yet, the recipe's at most */
    int convolved;     /* layout: a convolution reads it, or a concatenation that it is part of */
    int producer;      /* op; -1: a stage input */
    int shared;        /* several graph values are this one and more than one of them is used */
    int input, output; /* index among the stage's inputs and outputs, -1 */
    bw_ir_form forms[BW_FORMS];
} bw_ir_value;

#define BW_IR_CONCAT 100 /* opcode of the one operation that is pure layout */

typedef struct bw_ir_op {
    int opcode; /* bw_opcode or BW_IR_CONCAT */
    int dead;
    int in, in2, out; /* ir values; in2 -1 */
    int reads;        /* form in which `in` is read */
    int activation;
    float lo, hi;
    int count_pad;
    bw_geometry geo;
    int64_t groups; /* of the instruction */
    int64_t merged; /* source groups in each of them */
    int patched;    /* CONV over patches: its reduction axis is (ky, kx, c) of `source` */
    bw_geometry source;
    bw_weights w;
    float *bias;  /* owned: w.outputs values or NULL */
    float *scale; /* owned: DWCONV per-channel factors in place of w.data, or NULL */
    int32_t *map; /* owned: COPY: channel of `in`, or -1 */
    int *parts;   /* owned: CONCAT */
    int part_count;
    int node; /* of the graph, for messages */
} bw_ir_op;

typedef struct bw_pack_progress { /* over all stages */
    bw_compile_watch *watch;      /* NULL: nobody */
    void *user;
    uint64_t done, total; /* weights */
} bw_pack_progress;

typedef struct bw_ir {
    const bw_graph *g;
    const bw_recipe *recipe;
    bw_pack_progress *progress;
    bw_ir_value *values;
    int value_count, value_capacity;
    bw_ir_op *ops;
    int op_count, op_capacity;
    int *of_value; /* graph value -> ir value, -1 */
} bw_ir;

/* Lowers the nodes of accelerator stage `level`; inputs and outputs are its borders (graph values). */
bw_status bw_lower(const bw_graph *g, const bw_recipe *recipe, const bw_placement *p, int level, const int *inputs,
                   int input_count, const int *outputs, int output_count, bw_ir *ir, bw_error *err);
void bw_ir_free(bw_ir *ir);
/* New value or op; -1 when out of memory. `at`: position of the op, later ones move up. Both invalidate pointers. */
int bw_ir_add_value(bw_ir *ir, int64_t h, int64_t w, int64_t c);
int bw_ir_insert_op(bw_ir *ir, int at, int opcode, int in, int out);

/* --- layout -------------------------------------------------------------------------------------------------- */

/* Decides forms, slices and lengths of blocks; may insert copies. */
bw_status bw_layout(bw_ir *ir, bw_error *err);
uint32_t bw_form_units(const bw_ir *ir, const bw_ir_value *v, int form);
bw_format bw_form_format(const bw_ir *ir, int form);
uint16_t bw_form_block(const bw_ir *ir, const bw_ir_value *v, int form);

/* --- blocks -------------------------------------------------------------------------------------------------- */

/* 1 if weights and activations have blocks of this length. */
int bw_blocks_exist(const bw_recipe *r, uint16_t block);

/* The block of a concatenation of these values, each of which starts a block of its own. */
uint16_t bw_blocks_of_parts(const bw_ir *ir, const int *parts, int count);

typedef struct bw_grouped {   /* a grouped convolution */
    int64_t channels, groups; /* of a group; of them */
    int64_t outputs, taps;    /* of all groups */
    int64_t pixels_in, pixels_out;
    int mapped;     /* its input's channels are not in their order */
    uint16_t block; /* the input's if that is decided, 0 */
} bw_grouped;

typedef struct bw_group_layout {
    uint16_t block;
    int64_t groups, merged; /* of the instruction; source groups in each of them, weights between them zero */
    int64_t units;          /* blocks of each group */
    int copied;             /* the input must be copied, each group to whole blocks */
} bw_group_layout;

bw_group_layout bw_blocks_of_groups(const bw_recipe *r, const bw_grouped *g);

/* Decides for all values that are left: the recipe's length, or the shortest that holds all of their channels. */
void bw_blocks_settle(bw_ir *ir);

/* --- memory -------------------------------------------------------------------------------------------------- */

typedef struct bw_span {
    uint64_t size;   /* bytes */
    int first, last; /* live from instruction first to last, both included */
    uint64_t offset; /* result, multiple of 64 */
} bw_span;

/* Spans that live at the same time do not overlap; *total is what they need. Deterministic. */
bw_status bw_plan_memory(bw_span *spans, int count, uint64_t *total, bw_error *err);

/* --- emit and pack ------------------------------------------------------------------------------------------- */

typedef struct bw_blob { /* a growing constants region */
    uint8_t *bytes;      /* 64-byte aligned */
    size_t size, capacity;
} bw_blob;

/* Zeroed room of `size` bytes at a multiple of 64. */
bw_status bw_blob_reserve(bw_blob *b, size_t size, uint64_t *offset, bw_error *err);

/* Makes room for `size` bytes at once: growing step by step holds two regions at a time. */
bw_status bw_blob_room(bw_blob *b, size_t size, bw_error *err);
/* Bytes that bw_pack_conv or bw_pack_dwconv will reserve for an operation with weights, alignment included. */
size_t bw_pack_bytes(const bw_ir *ir, const bw_ir_op *op);

/* Packs the weights of a CONV / DWCONV into the blob and fills the instruction's constant fields and *lost's sums. */
bw_status bw_pack_conv(const bw_ir *ir, const bw_ir_op *op, bw_blob *blob, bw_instruction *ins, bw_weight_error *lost,
                       bw_error *err);
bw_status bw_pack_dwconv(const bw_ir *ir, const bw_ir_op *op, bw_blob *blob, bw_instruction *ins, bw_weight_error *lost,
                         bw_error *err);

/* Program and constants of a lowered stage; offsets of inputs and outputs go to stage->inputs, ->outputs. */
bw_status bw_emit(bw_ir *ir, bw_stage *stage, bw_error *err);

#endif
