/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/onnx_builder.h"

#include <stdlib.h>
#include <string.h>

static void put(bw_ob_buffer *o, const void *bytes, size_t size)
{
    if (o->size + size > o->capacity) {
        o->capacity = (o->size + size) * 2 + 64;
        if (!(o->bytes = realloc(o->bytes, o->capacity)))
            abort();
    }
    if (size)
        memcpy(o->bytes + o->size, bytes, size);
    o->size += size;
}

void bw_ob_varint(bw_ob_buffer *o, uint64_t v)
{
    do {
        uint8_t byte = (uint8_t)((v & 0x7f) | (v > 0x7f ? 0x80 : 0));
        put(o, &byte, 1);
        v >>= 7;
    } while (v);
}

void bw_ob_field_int(bw_ob_buffer *o, unsigned field, uint64_t v)
{
    bw_ob_varint(o, field << 3);
    bw_ob_varint(o, v);
}

void bw_ob_field_bytes(bw_ob_buffer *o, unsigned field, const void *bytes, size_t size)
{
    bw_ob_varint(o, field << 3 | 2);
    bw_ob_varint(o, size);
    put(o, bytes, size);
}

void bw_ob_field_text(bw_ob_buffer *o, unsigned field, const char *text)
{
    bw_ob_field_bytes(o, field, text, strlen(text));
}

static void field_float(bw_ob_buffer *o, unsigned field, float v)
{
    bw_ob_varint(o, field << 3 | 5);
    put(o, &v, sizeof v);
}

static void buffer_free(bw_ob_buffer *o)
{
    free(o->bytes);
    memset(o, 0, sizeof *o);
}

static void close_node(bw_onnx_builder *b)
{
    if (b->in_node)
        bw_ob_field_bytes(&b->graph, 1, b->node.bytes, b->node.size);
    b->in_node = 0;
    b->node.size = 0;
}

void bw_ob_begin(bw_onnx_builder *b, int64_t opset)
{
    memset(b, 0, sizeof *b);
    b->opset = opset;
    b->ir_version = 8;
    b->domain = "";
    bw_ob_field_text(&b->graph, 2, "test");
}

void bw_ob_input(bw_onnx_builder *b, const char *name, int elem, int rank, const int64_t *dims)
{
    bw_ob_buffer shape = {0}, tensor = {0}, type = {0}, info = {0}, dim = {0};
    for (int i = 0; i < rank; i++) {
        dim.size = 0;
        if (dims[i] >= 0)
            bw_ob_field_int(&dim, 1, (uint64_t)dims[i]);
        else if (dims[i] > -3)
            bw_ob_field_text(&dim, 2, dims[i] == -1 ? "N" : "M");
        bw_ob_field_bytes(&shape, 1, dim.bytes, dim.size);
    }
    bw_ob_field_int(&tensor, 1, (uint64_t)elem);
    bw_ob_field_bytes(&tensor, 2, shape.bytes, shape.size);
    bw_ob_field_bytes(&type, 1, tensor.bytes, tensor.size);
    bw_ob_field_text(&info, 1, name);
    bw_ob_field_bytes(&info, 2, type.bytes, type.size);
    bw_ob_field_bytes(&b->graph, 11, info.bytes, info.size);
    buffer_free(&shape);
    buffer_free(&tensor);
    buffer_free(&type);
    buffer_free(&info);
    buffer_free(&dim);
}

void bw_ob_output(bw_onnx_builder *b, const char *name)
{
    bw_ob_buffer info = {0};
    bw_ob_field_text(&info, 1, name);
    bw_ob_field_bytes(&b->graph, 12, info.bytes, info.size);
    buffer_free(&info);
}

static void tensor_head(bw_ob_buffer *t, const char *name, int elem, int rank, const int64_t *dims)
{
    for (int i = 0; i < rank; i++)
        bw_ob_field_int(t, 1, (uint64_t)dims[i]);
    bw_ob_field_int(t, 2, (uint64_t)elem);
    if (name)
        bw_ob_field_text(t, 8, name);
}

void bw_ob_raw(bw_onnx_builder *b, const char *name, int elem, int rank, const int64_t *dims, const void *raw,
               size_t size)
{
    bw_ob_buffer t = {0};
    tensor_head(&t, name, elem, rank, dims);
    bw_ob_field_bytes(&t, 9, raw, size);
    bw_ob_field_bytes(&b->graph, 5, t.bytes, t.size);
    buffer_free(&t);
}

static size_t count_of(int rank, const int64_t *dims)
{
    size_t n = 1;
    for (int i = 0; i < rank; i++)
        n *= (size_t)dims[i];
    return n;
}

void bw_ob_floats(bw_onnx_builder *b, const char *name, int rank, const int64_t *dims, const float *v)
{
    bw_ob_raw(b, name, 1, rank, dims, v, count_of(rank, dims) * sizeof *v);
}

void bw_ob_ints(bw_onnx_builder *b, const char *name, size_t count, const int64_t *v)
{
    bw_ob_raw(b, name, 7, 1, (int64_t[]){(int64_t)count}, v, count * sizeof *v);
}

void bw_ob_external(bw_onnx_builder *b, const char *name, int elem, int rank, const int64_t *dims, const char *location,
                    const char *offset, const char *length)
{
    const char *const entries[][2] = {{"location", location}, {"offset", offset}, {"length", length}};
    bw_ob_buffer t = {0}, e = {0};
    tensor_head(&t, name, elem, rank, dims);
    for (int i = 0; i < 3; i++) {
        if (!entries[i][1])
            continue;
        e.size = 0;
        bw_ob_field_text(&e, 1, entries[i][0]);
        bw_ob_field_text(&e, 2, entries[i][1]);
        bw_ob_field_bytes(&t, 13, e.bytes, e.size);
    }
    bw_ob_field_int(&t, 14, 1);
    bw_ob_field_bytes(&b->graph, 5, t.bytes, t.size);
    buffer_free(&t);
    buffer_free(&e);
}

static void name_list(bw_ob_buffer *o, unsigned field, const char *list)
{
    while (list && *list) {
        size_t n = strcspn(list, ",");
        bw_ob_field_bytes(o, field, list, n);
        list += n;
        if (*list == ',' && !*++list)
            bw_ob_field_bytes(o, field, "", 0);
    }
}

void bw_ob_node(bw_onnx_builder *b, const char *op, const char *name, const char *inputs, const char *outputs)
{
    close_node(b);
    b->in_node = 1;
    name_list(&b->node, 1, inputs);
    name_list(&b->node, 2, outputs);
    bw_ob_field_text(&b->node, 3, name);
    bw_ob_field_text(&b->node, 4, op);
}

void bw_ob_domain(bw_onnx_builder *b, const char *domain)
{
    bw_ob_field_text(&b->node, 7, domain);
}

static void close_attr(bw_onnx_builder *b, bw_ob_buffer *a, const char *name, int type)
{
    bw_ob_field_text(a, 1, name);
    bw_ob_field_int(a, 20, (uint64_t)type);
    bw_ob_field_bytes(&b->node, 5, a->bytes, a->size);
    buffer_free(a);
}

void bw_ob_attr_int(bw_onnx_builder *b, const char *name, int64_t v)
{
    bw_ob_buffer a = {0};
    bw_ob_field_int(&a, 3, (uint64_t)v);
    close_attr(b, &a, name, 2);
}

void bw_ob_attr_float(bw_onnx_builder *b, const char *name, float v)
{
    bw_ob_buffer a = {0};
    field_float(&a, 2, v);
    close_attr(b, &a, name, 1);
}

void bw_ob_attr_string(bw_onnx_builder *b, const char *name, const char *v)
{
    bw_ob_buffer a = {0};
    bw_ob_field_text(&a, 4, v);
    close_attr(b, &a, name, 3);
}

void bw_ob_attr_ints(bw_onnx_builder *b, const char *name, size_t count, const int64_t *v)
{
    bw_ob_buffer a = {0};
    for (size_t i = 0; i < count; i++)
        bw_ob_field_int(&a, 8, (uint64_t)v[i]);
    close_attr(b, &a, name, 7);
}

void bw_ob_attr_floats(bw_onnx_builder *b, const char *name, size_t count, const float *v)
{
    bw_ob_buffer a = {0};
    bw_ob_field_bytes(&a, 7, v, count * sizeof *v);
    close_attr(b, &a, name, 6);
}

void bw_ob_attr_tensor(bw_onnx_builder *b, const char *name, int elem, int rank, const int64_t *dims, const void *raw,
                       size_t size)
{
    bw_ob_buffer a = {0}, t = {0};
    tensor_head(&t, NULL, elem, rank, dims);
    bw_ob_field_bytes(&t, 9, raw, size);
    bw_ob_field_bytes(&a, 5, t.bytes, t.size);
    buffer_free(&t);
    close_attr(b, &a, name, 4);
}

void bw_ob_end(bw_onnx_builder *b)
{
    bw_ob_buffer opset = {0};
    close_node(b);
    bw_ob_field_int(&b->model, 1, (uint64_t)b->ir_version);
    bw_ob_field_text(&b->model, 2, "onnx_builder");
    bw_ob_field_text(&opset, 1, b->domain);
    bw_ob_field_int(&opset, 2, (uint64_t)b->opset);
    bw_ob_field_bytes(&b->model, 8, opset.bytes, opset.size);
    bw_ob_field_bytes(&b->model, 7, b->graph.bytes, b->graph.size);
    buffer_free(&opset);
}

void bw_ob_free(bw_onnx_builder *b)
{
    buffer_free(&b->model);
    buffer_free(&b->graph);
    buffer_free(&b->node);
}
