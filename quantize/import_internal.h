/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the importer share; nobody else includes this. */
#ifndef BW_QUANTIZE_IMPORT_INTERNAL_H
#define BW_QUANTIZE_IMPORT_INTERNAL_H

#include "quantize/import.h"
#include "quantize/onnx.pb-c.h"

#define BW_OPSET_MIN 7
#define BW_OPSET_MAX 21

/* Numbers of TensorProto.DataType. */
enum {
    BW_ONNX_FLOAT = 1,
    BW_ONNX_UINT8 = 2,
    BW_ONNX_INT8 = 3,
    BW_ONNX_UINT16 = 4,
    BW_ONNX_INT16 = 5,
    BW_ONNX_INT32 = 6,
    BW_ONNX_INT64 = 7,
    BW_ONNX_STRING = 8,
    BW_ONNX_BOOL = 9,
    BW_ONNX_FLOAT16 = 10,
    BW_ONNX_DOUBLE = 11,
    BW_ONNX_UINT32 = 12,
    BW_ONNX_UINT64 = 13,
    BW_ONNX_BFLOAT16 = 16
};

/* Names to numbers; keys are borrowed. Zero-initialised is empty. */
typedef struct bw_name_map {
    struct bw_name_slot {
        const char *name;
        int value;
    } * slots;
    size_t capacity, count;
} bw_name_map;

bw_status bw_name_map_put(bw_name_map *m, const char *name, int value, bw_error *err); /* replaces */
int bw_name_map_get(const bw_name_map *m, const char *name);                           /* -1: absent */
void bw_name_map_free(bw_name_map *m);

/* An external data file, mapped while the import runs. */
typedef struct bw_external_file {
    char *location;
    const void *bytes;
    size_t size;
} bw_external_file;

typedef struct bw_importer {
    bw_graph *g;
    int64_t opset;
    int narrow_floats;  /* fp16 and fp64 become fp32 everywhere: the network has matrix products */
    const char *path;   /* NULL: from memory, no external data */
    uint64_t limit;     /* bytes of constants */
    uint64_t constants; /* bytes so far */
    const bw_binding *bindings;
    size_t binding_count;
    unsigned char *binding_used;
    bw_name_map values;
    bw_name_map node_names;
    bw_external_file *external;
    size_t external_count;
} bw_importer;

/* --- import_tensor.c -------------------------------------------------------------------------------------------- */

/* For protobuf_c unpacking: big blocks are 64-byte aligned, so that a tensor's bytes can be taken over without a copy,
 * and the sum of all blocks is bounded by `left`. */
typedef struct bw_proto_allocator {
    ProtobufCAllocator base;
    uint64_t left;
    int exhausted;
    const void *mapping; /* the message, when it lies in a file mapping: what the parser has copied leaves memory */
    size_t mapped, copied, dropped;
} bw_proto_allocator;
/* mapping: the message's bytes if bw_file_map gave them, else NULL. */
void bw_proto_allocator_init(bw_proto_allocator *a, const void *mapping, size_t message_size);

/* A tensor as an owned array: conversions of docs/import.md, checks of size and finiteness. Takes the data out of *t
 * where it can. `what` names it in errors ("initialiser 'w'"). */
bw_status bw_import_tensor(bw_importer *im, BwOnnx__TensorProto *t, const char *what, bw_array *out, bw_error *err);
/* The dtype that values of an ONNX element type get; NONE if there is none. */
bw_dtype bw_import_dtype(const bw_importer *im, int32_t elem_type);
const char *bw_import_type_name(int32_t elem_type);
void bw_import_close_external(bw_importer *im);

/* --- import_node.c ---------------------------------------------------------------------------------------------- */

/* 1 if any node is a matrix product in the wide sense. */
int bw_import_has_matrix_products(const BwOnnx__GraphProto *p);
/* Every node of the graph, in topological order; Constant nodes become constants. */
bw_status bw_import_nodes(bw_importer *im, BwOnnx__GraphProto *p, bw_error *err);

/* --- normalise*.c ----------------------------------------------------------------------------------------------- */

/* Brings one node, just added with its ONNX attributes, to the newest form as far as that needs no shapes. */
bw_status bw_normalise_node(bw_importer *im, int node, bw_error *err);
/* The whole graph: shapes, constant folding, constant inputs to attributes, explicit pads. */
bw_status bw_normalise_graph(bw_importer *im, bw_error *err);
/* Reshapes to computed shapes that start with the batch: the shape as an attribute. How many were settled; -1 on
 * failure. Needs sorted nodes and what shapes are known so far. */
int bw_normalise_views(bw_importer *im, bw_error *err);
/* Marks (1 per value) the values whose first axis is the batch of unknown size: that of the inputs, no multiple of it.
 */
void bw_normalise_find_batch(const bw_graph *g, unsigned char *batched);
/* If every input has a first dimension of 1 and the network treats samples independently, makes it the batch. Leaves
 * the graph as it was when it cannot. */
bw_status bw_normalise_batch(bw_graph *g, bw_error *err);

/* --- shared small helpers (normalise.c) ------------------------------------------------------------------------- */
void bw_node_drop_attr(bw_node *n, const char *name);
/* Input `index` as a value id, -1 if absent. */
int bw_node_input(const bw_node *n, int index);
/* The constant behind an input, NULL if absent or not constant. */
const bw_array *bw_node_constant(const bw_graph *g, const bw_node *n, int index);
/* Shortens the input list, trailing absent inputs included. */
void bw_node_trim_inputs(bw_node *n, int count);
/* Element of an integer or float array as a number. */
int64_t bw_array_int(const bw_array *a, int64_t index);
double bw_array_real(const bw_array *a, int64_t index);
/* "node 'x' (Conv, opset 13)" into buf; returns buf. */
const char *bw_import_where(const bw_importer *im, const bw_node *n, char buf[200]);

#endif
