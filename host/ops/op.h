/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The operator registry: what shape inference, constant folding and the executor share. Internal to host/.
 *
 * An operator is one row: `infer` gives element types and shapes of its outputs from what is known of its inputs,
 * `run` computes them. `infer` is used twice: on the graph, where dimensions may be unknown (-1) and contents missing,
 * and before each run, where everything is known.
 */
#ifndef BW_HOST_OPS_OP_H
#define BW_HOST_OPS_OP_H

#include "host/graph.h"

/*
 * While the graph is walked, dims[0] of its inputs is a symbol, the batch, when it is not fixed: two dimensions that
 * are the batch are equal. Negative dimensions are unknown in any case. Entries of a partly known int64 tensor are
 * numbers or one of two marks.
 */
#define BW_DIM_BATCH (-2)
#define BW_UNKNOWN   INT64_MIN
#define BW_BATCH     (INT64_MIN + 0x5ba7c4)

static inline int bw_is_mark(int64_t entry)
{
    return entry == BW_UNKNOWN || entry == BW_BATCH;
}

/* Mark to dimension and back. */
static inline int64_t bw_mark_to_dim(int64_t entry)
{
    return entry == BW_BATCH ? BW_DIM_BATCH : -1;
}

static inline int64_t bw_dim_to_entry(int64_t dim)
{
    return dim >= 0 ? dim : dim == BW_DIM_BATCH ? BW_BATCH : BW_UNKNOWN;
}

/* What is known of one input or output. */
typedef struct bw_op_info {
    int present; /* 0: an absent optional input, or an output that nobody named */
    bw_dtype dtype;
    int rank;
    int64_t dims[BW_RANK_MAX]; /* negative: unknown */
    const bw_array *value;     /* contents, NULL if unknown */
    int partial;               /* `value` is int64 and has marks among its entries */
} bw_op_info;

typedef struct bw_op_infer {
    const bw_node *node;
    const bw_op_info *in;
    int in_count;
    bw_op_info *out;
    int out_count;
    bw_error *err;
} bw_op_infer;

/* A tensor at run time: plain row-major, or in a layout of oneDNN's (then array.data is NULL and `layout` set). */
typedef struct bw_buffer bw_buffer;
typedef struct bw_tensor {
    bw_array array; /* dtype, logical dims; data when plain */
    bw_buffer *buffer;
    void *layout; /* dnnl_memory_desc_t, NULL: plain */
    int constant; /* a constant of the graph: the same bytes in every run */
} bw_tensor;

typedef struct bw_op_run {
    const bw_node *node;
    bw_tensor *const *in; /* NULL: absent */
    int in_count;
    bw_tensor *out; /* dtype and dims set; with BW_OP_ALLOCATES no data yet */
    int out_count;
    void **state;                  /* the operator's own cache for this node, freed by its free_state */
    struct bw_executor *executor;  /* NULL while folding */
    const unsigned char *last_use; /* per input: the tensor may be overwritten */
    int observed;                  /* every value must exist as written in the graph */
    bw_error *err;
} bw_op_run;

enum {
    BW_OP_ALLOCATES = 1, /* run() obtains its outputs itself (aliases, layouts, in place) */
    BW_OP_LAYOUTS = 2,   /* run() takes inputs in oneDNN layouts */
    BW_OP_MOVES = 4,     /* only copies elements of input 0 (Concat: of all): partly known integers pass through */
    BW_OP_ARITH = 8,     /* element-wise over integers: unknown in, unknown out */
    BW_OP_SHAPE = 16,    /* the contents follow from the input's shape alone; run() gets no data, dims may be -1 */
};

typedef struct bw_op {
    const char *name;
    int min_in, max_in; /* inputs; the first min_in must be present */
    int max_out;
    int flags;
    bw_status (*infer)(bw_op_infer *c);
    bw_status (*run)(bw_op_run *r);
    void (*free_state)(void *state);
} bw_op;

const bw_op *bw_op_find(const char *name); /* NULL: not supported */

/* Finds the node's operator and checks the number of its inputs and outputs. */
bw_status bw_op_check_node(const bw_node *n, const bw_op **op, bw_error *err);

/* Rows of the families, each ended by a row without a name. */
extern const bw_op bw_ops_unary[], bw_ops_binary[], bw_ops_movement[], bw_ops_index[], bw_ops_reduce[], bw_ops_conv[],
    bw_ops_pool[], bw_ops_matmul[], bw_ops_norm[], bw_ops_resize[], bw_ops_shape[];

/* --- for infer ---------------------------------------------------------------------------------------------------- */

/* Checks the rank and that the tensor can exist. */
bw_status bw_op_output(bw_op_infer *c, int index, bw_dtype dtype, int rank, const int64_t *dims);
/* Output 0 of a known rank and unknown dimensions; BW_UNSUPPORTED for a rank that is no rank ("depends on data"). */
bw_status bw_op_output_vague(bw_op_infer *c, bw_dtype dtype, int rank);
/* Output 0 like input `index`. */
bw_status bw_op_output_like(bw_op_infer *c, int index);
/* "node 'x' (Op): ..." with the status. */
bw_status bw_op_fail(bw_error *err, const bw_node *n, bw_status status, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* BW_UNSUPPORTED unless the input's element type is among the bits (1u << BW_F32 | ...). */
bw_status bw_op_want(bw_op_infer *c, int input, unsigned dtypes);
#define BW_WANT_FLOAT  (1u << BW_F32)
#define BW_WANT_FLOATS (1u << BW_F32 | 1u << BW_F64)
#define BW_WANT_NUMBER (BW_WANT_FLOATS | 1u << BW_I64 | 1u << BW_I32 | 1u << BW_I8 | 1u << BW_U8)
#define BW_WANT_INDEX  (1u << BW_I64 | 1u << BW_I32)

typedef enum bw_ints_found { BW_INTS_ABSENT, BW_INTS_KNOWN, BW_INTS_UNKNOWN, BW_INTS_BAD } bw_ints_found;
/*
 * Integers given by attribute `name` or, failing that, by input `input` (-1: attribute only), at most max. UNKNOWN:
 * the input is there but its contents are not known (*count is its length, -1 if that is not known either; the entries
 * that are known are filled in, the others are marks). BAD: too many, or not integers; the error is set.
 */
bw_ints_found bw_op_ints(bw_op_infer *c, const char *name, int input, int64_t *out, int max, int *count);
/* Axis of an attribute, normalised to 0..rank-1 (rank when `past_end` allows it). BW_CORRUPT otherwise. */
bw_status bw_op_axis(bw_error *err, const bw_node *n, int64_t axis, int rank, int past_end, int *out);

/* a and b broadcast; unknown entries allowed. Non-zero: they do not fit. */
int bw_broadcast(int rank_a, const int64_t *a, int rank_b, const int64_t *b, int *rank, int64_t *out);
/* Product of dims[from..to); negative if one is unknown or it does not fit in 2^46; the batch times ones is the batch.
 */
int64_t bw_dims_product(const int64_t *dims, int from, int to);
/* "[1, 3, -1]" into buf; returns buf. */
const char *bw_dims_text(int rank, const int64_t *dims, char buf[128]);

/* The sliding window of convolutions and pools, per spatial axis. */
#define BW_SPATIAL_MAX 3
typedef struct bw_window {
    int axes;
    int64_t kernel[BW_SPATIAL_MAX], stride[BW_SPATIAL_MAX], dilation[BW_SPATIAL_MAX];
    int64_t begin[BW_SPATIAL_MAX], end[BW_SPATIAL_MAX]; /* padding; end as the attributes have it */
    int64_t overhang[BW_SPATIAL_MAX];                   /* what ceil_mode reaches beyond the padding */
    int64_t out[BW_SPATIAL_MAX];                        /* -1: unknown */
} bw_window;
/* From the node's strides, dilations, pads, auto_pad and ceil_mode; `in` and `kernel` per spatial axis, -1 unknown. */
bw_status bw_window_resolve(bw_error *err, const bw_node *n, int axes, const int64_t *in, const int64_t *kernel,
                            bw_window *w);

/* --- for run ------------------------------------------------------------------------------------------------------ */

/* The same integers at run time, where they are always known; ABSENT or KNOWN. */
bw_ints_found bw_run_ints(const bw_op_run *r, const char *name, int input, int64_t *out, int max, int *count);
const bw_array *bw_run_in(const bw_op_run *r, int index); /* NULL: absent */
/* Gives output `index` its memory: plain; in the layout of an input of the same type and shape, and in its place when
 * this is its last use; sharing input `input`'s bytes (plain only); in a oneDNN layout. */
bw_status bw_run_alloc(bw_op_run *r, int index);
bw_status bw_run_alloc_like(bw_op_run *r, int index, int input);
bw_status bw_run_alias(bw_op_run *r, int index, int input);
bw_status bw_run_alloc_layout(bw_op_run *r, int index, const void *layout, size_t bytes);
/* The operator keeps what it needs of constant input `index` for all runs to come: the bytes may leave the graph. */
void bw_run_release_constant(bw_op_run *r, int index);
/* Brings an input to row-major order. */
bw_status bw_run_make_plain(bw_op_run *r, int input);
/* The raw bytes of a tensor, whatever its layout. */
void *bw_tensor_bytes(const bw_tensor *t);

/* --- strided loops ------------------------------------------------------------------------------------------------ */

/* Row-major strides, in elements. */
void bw_strides(int rank, const int64_t *dims, int64_t *strides);
/* Strides that read an operand of shape `dims` broadcast to rank `out_rank`: 0 where it repeats. */
void bw_broadcast_strides(int rank, const int64_t *dims, int out_rank, const int64_t *out_dims, int64_t *strides);
/* Merges dimensions that are contiguous in all `count` operands; returns the new rank, at least 1. */
int bw_merge_dims(int rank, int64_t *dims, int count, int64_t (*strides)[BW_RANK_MAX + 1]);
/* dst[i * dst_strides] = src[i * src_strides] for every index i of a box; strides in elements of `size` bytes and of
 * either sign. rank <= BW_RANK_MAX + 1. */
void bw_copy_strided(size_t size, int rank, const int64_t *dims, void *dst, const int64_t *dst_strides, const void *src,
                     const int64_t *src_strides);
/* Fills with one element of `size` bytes. */
void bw_fill(size_t size, void *dst, int64_t count, const void *element);

/* Converts count elements between any two fixed-size types: float to integer truncates and saturates, NaN gives 0. */
void bw_cast(bw_dtype from, const void *in, bw_dtype to, void *out, int64_t count);

/* --- buffers ------------------------------------------------------------------------------------------------------ */

/* Reference-counted 64-byte aligned memory, given back to its executor's pool. */
struct bw_buffer {
    void *data;
    size_t size;
    int references;
    struct bw_executor *owner;
    bw_buffer *next; /* in the pool */
};
bw_buffer *bw_buffer_get(struct bw_executor *owner, size_t size, bw_error *err);
/* For what outlives the run and so does not count as one of its values; unused memory of `beside` (may be NULL) makes
 * room for it. */
bw_buffer *bw_buffer_get_kept(struct bw_executor *beside, size_t size, bw_error *err);
void bw_buffer_put(bw_buffer *b);
void bw_tensor_clear(bw_tensor *t);

/* Runs one node on plain arrays outside an executor (constant folding): `out` are zeroed, owned afterwards. */
bw_status bw_op_run_once(const bw_op *op, const bw_node *n, const bw_array *const *in, int in_count,
                         const bw_op_info *info, bw_array *out, int out_count, bw_error *err);

#endif
