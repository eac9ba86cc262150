/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes small ONNX models for tests: a protocol buffer writer of a few lines, independent of the importer's parser.
 *
 *     bw_onnx_builder b;
 *     bw_ob_begin(&b, 13);
 *     bw_ob_input(&b, "x", 1, 2, (int64_t[]){-1, 4});
 *     bw_ob_node(&b, "Relu", "relu", "x", "y");
 *     bw_ob_output(&b, "y");
 *     bw_ob_end(&b);                       // b.model.bytes, b.model.size
 *     bw_ob_free(&b);
 *
 * Names in a list are separated by commas; an empty one is an absent input. Running out of memory aborts.
 */
#ifndef BW_TESTS_SUPPORT_ONNX_BUILDER_H
#define BW_TESTS_SUPPORT_ONNX_BUILDER_H

#include <stddef.h>
#include <stdint.h>

typedef struct bw_ob_buffer {
    uint8_t *bytes;
    size_t size, capacity;
} bw_ob_buffer;

typedef struct bw_onnx_builder {
    bw_ob_buffer model, graph, node;
    int in_node;
    int64_t opset;
    int64_t ir_version;
    const char *domain; /* of the operator set; "" */
} bw_onnx_builder;

void bw_ob_begin(bw_onnx_builder *b, int64_t opset);
/* dims: -1 is the symbol "N", -2 the symbol "M", -3 a dimension that says nothing. elem: TensorProto.DataType. */
void bw_ob_input(bw_onnx_builder *b, const char *name, int elem, int rank, const int64_t *dims);
void bw_ob_output(bw_onnx_builder *b, const char *name);
void bw_ob_floats(bw_onnx_builder *b, const char *name, int rank, const int64_t *dims, const float *v);
void bw_ob_ints(bw_onnx_builder *b, const char *name, size_t count, const int64_t *v);
/* A tensor of raw bytes, right or wrong. */
void bw_ob_raw(bw_onnx_builder *b, const char *name, int elem, int rank, const int64_t *dims, const void *raw,
               size_t size);
/* The same with its data in another file; offset and length as text, NULL to leave out. */
void bw_ob_external(bw_onnx_builder *b, const char *name, int elem, int rank, const int64_t *dims, const char *location,
                    const char *offset, const char *length);
/* A node; the attribute calls that follow belong to it. */
void bw_ob_node(bw_onnx_builder *b, const char *op, const char *name, const char *inputs, const char *outputs);
void bw_ob_domain(bw_onnx_builder *b, const char *domain);
void bw_ob_attr_int(bw_onnx_builder *b, const char *name, int64_t v);
void bw_ob_attr_float(bw_onnx_builder *b, const char *name, float v);
void bw_ob_attr_string(bw_onnx_builder *b, const char *name, const char *v);
void bw_ob_attr_ints(bw_onnx_builder *b, const char *name, size_t count, const int64_t *v);
void bw_ob_attr_floats(bw_onnx_builder *b, const char *name, size_t count, const float *v);
void bw_ob_attr_tensor(bw_onnx_builder *b, const char *name, int elem, int rank, const int64_t *dims, const void *raw,
                       size_t size);
void bw_ob_end(bw_onnx_builder *b);
void bw_ob_free(bw_onnx_builder *b);

/* Building blocks, for hostile bytes. */
void bw_ob_varint(bw_ob_buffer *o, uint64_t v);
void bw_ob_field_int(bw_ob_buffer *o, unsigned field, uint64_t v);
void bw_ob_field_bytes(bw_ob_buffer *o, unsigned field, const void *bytes, size_t size);
void bw_ob_field_text(bw_ob_buffer *o, unsigned field, const char *text);

#endif
