/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Float graphs: what the ONNX importer produces, the calibrator runs, the compiler cuts up, and a package's CPU
 * stages hold. A graph is a list of nodes over values in ONNX's terms (operator names, attributes, NCHW), normalised
 * to one operator set (the newest form of each operator: axes as inputs become attributes where they are constant).
 *
 *     bw_graph *g = bw_graph_new("net");
 *     int x = bw_graph_add_value(g, "x", BW_F32, 4, (int64_t[]){-1, 3, 32, 32});
 *     ...
 *     bw_graph_infer_shapes(g, &err);
 *
 * Thread safety: a graph is not synchronised; concurrent reads are fine.
 */
#ifndef BW_HOST_GRAPH_H
#define BW_HOST_GRAPH_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/status.h"

#define BW_RANK_MAX 8

typedef enum bw_dtype {
    BW_DTYPE_NONE = 0,
    BW_F32,
    BW_F64,
    BW_F16,
    BW_I64,
    BW_I32,
    BW_I8,
    BW_U8,
    BW_BOOL,
    BW_BYTES /* variable-length strings: only at a service's border */
} bw_dtype;

size_t bw_dtype_size(bw_dtype dtype);      /* 0 for NONE and BYTES */
const char *bw_dtype_name(bw_dtype dtype); /* "fp32", "int64", ... */

/* A dense row-major array. `data` is owned if `owned`, else borrowed (mmap, caller). 64-byte aligned when owned. */
typedef struct bw_array {
    bw_dtype dtype;
    int rank;
    int64_t dims[BW_RANK_MAX];
    void *data;
    size_t bytes;
    int owned;
} bw_array;

bw_status bw_array_alloc(bw_array *a, bw_dtype dtype, int rank, const int64_t *dims, bw_error *err);
void bw_array_free(bw_array *a); /* frees owned data, zeroes the struct; NULL allowed */
int64_t bw_array_count(const bw_array *a);

typedef enum bw_attr_kind {
    BW_ATTR_INT,
    BW_ATTR_FLOAT,
    BW_ATTR_STRING,
    BW_ATTR_INTS,
    BW_ATTR_FLOATS,
    BW_ATTR_ARRAY
} bw_attr_kind;

typedef struct bw_attr {
    char *name;
    bw_attr_kind kind;
    int64_t i;
    float f;
    char *s;
    int64_t *ints; /* count entries */
    float *floats;
    size_t count;
    bw_array array;
} bw_attr;

typedef struct bw_node {
    char *op;    /* ONNX operator, "Conv" */
    char *name;  /* unique, never empty */
    int *inputs; /* value ids; -1 for an absent optional input */
    int input_count;
    int *outputs;
    int output_count;
    bw_attr *attrs;
    int attr_count;
} bw_node;

typedef struct bw_value {
    char *name;
    bw_dtype dtype;
    int rank;                  /* -1: unknown */
    int64_t dims[BW_RANK_MAX]; /* -1: the batch, or unknown */
    bw_array *constant;        /* not NULL for constants; owned by the graph */
    int producer;              /* node index, -1 for inputs and constants */
} bw_value;

typedef struct bw_graph {
    char *name;
    bw_value *values;
    int value_count, value_capacity;
    bw_node *nodes; /* in topological order after bw_graph_sort */
    int node_count, node_capacity;
    int *inputs; /* value ids */
    int input_count;
    int *outputs;
    int output_count;
} bw_graph;

/* Building. All names are copied. Allocation failure aborts only the call: -1 / BW_NO_MEMORY. */
bw_graph *bw_graph_new(const char *name);
void bw_graph_free(bw_graph *g);
bw_graph *bw_graph_clone(const bw_graph *g); /* constants' data is shared (borrowed from g): g must outlive it */
int bw_graph_find_value(const bw_graph *g, const char *name);
int bw_graph_add_value(bw_graph *g, const char *name, bw_dtype dtype, int rank, const int64_t *dims);
/* Takes over a->data; *a is zeroed. An empty name gets a fresh one. */
int bw_graph_add_constant(bw_graph *g, const char *name, bw_array *a);
/* Returns the node index. Pointers into g->nodes are invalidated. */
int bw_graph_add_node(bw_graph *g, const char *op, const char *name, const int *inputs, int input_count,
                      const int *outputs, int output_count);
bw_status bw_graph_set_inputs(bw_graph *g, const int *ids, int count);
bw_status bw_graph_set_outputs(bw_graph *g, const int *ids, int count);
/* A name not yet used by any value, from a stem. Caller frees. */
char *bw_graph_fresh_name(const bw_graph *g, const char *stem);

bw_status bw_node_set_int(bw_node *n, const char *name, int64_t v);
bw_status bw_node_set_float(bw_node *n, const char *name, float v);
bw_status bw_node_set_string(bw_node *n, const char *name, const char *v);
bw_status bw_node_set_ints(bw_node *n, const char *name, const int64_t *v, size_t count);
bw_status bw_node_set_floats(bw_node *n, const char *name, const float *v, size_t count);
/* Takes over a->data; *a is zeroed. */
bw_status bw_node_set_array(bw_node *n, const char *name, bw_array *a);
const bw_attr *bw_node_attr(const bw_node *n, const char *name); /* NULL if absent */
int64_t bw_node_int(const bw_node *n, const char *name, int64_t fallback);
float bw_node_float(const bw_node *n, const char *name, float fallback);
const char *bw_node_string(const bw_node *n, const char *name, const char *fallback);
/* Copies up to `max` ints; returns how many the attribute has, 0 if absent. */
size_t bw_node_ints(const bw_node *n, const char *name, int64_t *out, size_t max);

/* Rewriting. */
void bw_graph_replace_uses(bw_graph *g, int old_value, int new_value); /* node inputs and graph outputs */
void bw_graph_remove_node(bw_graph *g, int node);                      /* marks it dead (op NULL) until the sort */
int bw_graph_use_count(const bw_graph *g, int value);                  /* consumers, graph outputs included */
/* Drops dead nodes and nodes nobody needs, orders the rest, renews producers. BW_CORRUPT: a cycle (names a node). */
bw_status bw_graph_sort(bw_graph *g, bw_error *err);

/* Types and shapes of every value, from the inputs on. BW_UNSUPPORTED names node, operator and what is missing;
 * BW_CORRUPT: shapes that do not fit. A leading -1 is carried through as the batch. */
bw_status bw_graph_infer_shapes(bw_graph *g, bw_error *err);
/* 1 if the CPU executor has the operator. */
int bw_op_supported(const char *op);
/* Runs nodes whose inputs are all constants (and Shape of known shapes) and replaces them by constants. Outputs of
 * more than max_bytes are left to run time. */
bw_status bw_graph_fold_constants(bw_graph *g, size_t max_bytes, bw_error *err);

/* Serialisation for packages: JSON text (malloc'ed) and one blob of constants (64-byte aligned arrays). */
bw_status bw_graph_write(const bw_graph *g, char **json, void **blob, size_t *blob_size, bw_error *err);
/* Constants borrow from `blob`. Untrusted input: everything is checked. */
bw_status bw_graph_read(const char *json, size_t json_size, const void *blob, size_t blob_size, bw_graph **g,
                        bw_error *err);

/*
 * Execution in fp32 on the CPU (oneDNN for convolutions and pools). A sample's result does not depend on its batch or
 * on the number of threads. The graph is borrowed and must not change. An executor is used by one thread at a time.
 */
typedef struct bw_executor bw_executor;
bw_status bw_executor_create(const bw_graph *g, bw_executor **ex, bw_error *err);
void bw_executor_destroy(bw_executor *ex);
/* Bytes that the values of one run may hold at a time (default 64 GiB); more ends the run with BW_EXHAUSTED. */
void bw_executor_set_memory_limit(bw_executor *ex, size_t bytes);
/* Bytes that the values of one run have held at a time, at most, since the executor was made. */
size_t bw_executor_peak_bytes(const bw_executor *ex);
/* Memory that runs have left for the next one goes back to the system until at most `bytes` are left. */
void bw_executor_trim(bw_executor *ex, size_t bytes);
/*
 * Lets the executor take what it keeps in an order of its own (weights of convolutions and matrix products) out of `g`,
 * the graph that it was made for, so that these weights exist once. From the first run on, such constants of the graph
 * have no data: it is good for runs of this executor, for its names and shapes, and to be freed.
 */
void bw_executor_take_weights(bw_executor *ex, bw_graph *g);
/*
 * Values of which an observer wants each element once but in no certain order (for ranges and sums): per value of the
 * graph, non-zero. These are shown as they lie in memory, which spares two reorders per convolution. Copied. The
 * shape shown stays the value's own. BW_NO_MEMORY.
 */
bw_status bw_executor_observe_unordered(bw_executor *ex, const unsigned char *values, bw_error *err);
/* Memory of the executor's own for a graph input of the next run: inputs[index].data of that run may be this, and then
 * leaves it as an output where the graph does not change it, uncopied. NULL: BW_NO_MEMORY, BW_EXHAUSTED. */
void *bw_executor_input(bw_executor *ex, int index, size_t bytes, bw_error *err);
/*
 * inputs: one array per graph input, in order; outputs: one zeroed bw_array per graph output, filled with owned
 * data that the caller frees. BW_INVALID_ARGUMENT: rank, shape or dtype of an input (names it). Peak memory is
 * bounded by freeing each value after its last use.
 * observe (may be NULL): called for every computed value in order, before it is freed; non-zero ends with BW_CANCELLED.
 */
bw_status bw_executor_run(bw_executor *ex, const bw_array *inputs, bw_array *outputs,
                          int (*observe)(int value, const bw_array *array, void *user), void *user, bw_error *err);

#endif
