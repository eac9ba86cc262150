/* SPDX-License-Identifier: Apache-2.0 */
/* The ONNX importer on models that are built here: structure, tensors, errors, external data, batch. Operator sets are
 * in test_opsets.c, networks in test_import_models.c. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "hal/base.h"
#include "quantize/import.h"
#include "tests/support/onnx_builder.h"

#define DIMS(...)                                                                                                      \
    (int64_t[])                                                                                                        \
    {                                                                                                                  \
        __VA_ARGS__                                                                                                    \
    }

static bw_graph *import(bw_onnx_builder *b, bw_error *err)
{
    bw_graph *g = NULL;
    bw_ob_end(b);
    memset(err, 0, sizeof *err);
    bw_status st = bw_onnx_import_bytes(b->model.bytes, b->model.size, NULL, 0, &g, NULL, err);
    assert_int_equal(st, err->status);
    assert_true((st == BW_OK) == (g != NULL));
    bw_ob_free(b);
    return g;
}

static bw_graph *import_ok(bw_onnx_builder *b)
{
    bw_error err;
    bw_graph *g = import(b, &err);
    if (!g)
        fail_msg("import: %s", err.message);
    return g;
}

/* Fails with `status` and a message that has every one of the texts. */
static void refuse(bw_onnx_builder *b, bw_status status, const char *const *texts)
{
    bw_error err;
    bw_graph *g = import(b, &err);
    if (g)
        fail_msg("imported, expected %s (%s)", bw_status_name(status), texts[0]);
    if (err.status != status)
        fail_msg("%s: %s, expected %s", bw_status_name(err.status), err.message, bw_status_name(status));
    for (; *texts; texts++)
        if (!strstr(err.message, *texts))
            fail_msg("'%s' does not say '%s'", err.message, *texts);
}
#define REFUSE(b, status, ...) refuse(b, status, (const char *const[]){__VA_ARGS__, NULL})

static int find(const bw_graph *g, const char *name)
{
    int v = bw_graph_find_value(g, name);
    if (v < 0)
        fail_msg("no value '%s'", name);
    return v;
}

/* x [N, 2, 4, 4] -> Conv 3x3 -> Relu -> y */
static void small_conv(bw_onnx_builder *b)
{
    float w[3 * 2 * 9], bias[3] = {1, 2, 3};
    for (int i = 0; i < 54; i++)
        w[i] = (float)(i % 7) - 3;
    bw_ob_begin(b, 13);
    bw_ob_input(b, "x", 1, 4, DIMS(-1, 2, 4, 4));
    bw_ob_floats(b, "w", 4, DIMS(3, 2, 3, 3), w);
    bw_ob_floats(b, "b", 1, DIMS(3), bias);
    bw_ob_node(b, "Conv", "conv", "x,w,b", "c");
    bw_ob_attr_ints(b, "pads", 4, DIMS(1, 1, 1, 1));
    bw_ob_attr_ints(b, "kernel_shape", 2, DIMS(3, 3));
    bw_ob_node(b, "Relu", "relu", "c", "y");
    bw_ob_output(b, "y");
}

/* --- structure -------------------------------------------------------------------------------------------------- */

static void test_small_conv(void **state)
{
    (void)state;
    bw_onnx_builder b;
    small_conv(&b);
    bw_graph *g = import_ok(&b);
    assert_int_equal(g->node_count, 2);
    assert_string_equal(g->nodes[0].op, "Conv");
    assert_string_equal(g->nodes[0].name, "conv");
    assert_string_equal(g->nodes[1].op, "Relu");
    assert_int_equal(g->input_count, 1);
    assert_int_equal(g->output_count, 1);
    const bw_value *y = &g->values[g->outputs[0]];
    assert_string_equal(y->name, "y");
    assert_int_equal(y->dtype, BW_F32);
    assert_int_equal(y->rank, 4);
    assert_int_equal(y->dims[0], -1);
    assert_int_equal(y->dims[1], 3);
    assert_int_equal(y->dims[3], 4);
    const bw_array *w = g->values[find(g, "w")].constant;
    assert_non_null(w);
    assert_int_equal(w->bytes, 54 * 4);
    assert_true(((const float *)w->data)[6] == 3.0f);
    bw_graph_free(g);
}

static void test_info(void **state)
{
    (void)state;
    bw_onnx_builder b;
    bw_import_info info;
    bw_graph *g;
    bw_error err;
    char hex[65];
    small_conv(&b);
    bw_ob_end(&b);
    assert_int_equal(bw_onnx_import_bytes(b.model.bytes, b.model.size, NULL, 0, &g, &info, &err), BW_OK);
    assert_int_equal(info.opset, 13);
    assert_string_equal(info.producer, "onnx_builder");
    bw_sha256_hex(b.model.bytes, b.model.size, hex);
    assert_string_equal(info.sha256, hex);
    bw_graph_free(g);
    bw_ob_free(&b);
}

static void test_unsorted_nodes(void **state)
{
    (void)state;
    bw_onnx_builder b;
    bw_ob_begin(&b, 13);
    bw_ob_input(&b, "x", 1, 2, DIMS(-1, 4));
    bw_ob_node(&b, "Tanh", "last", "b", "y");
    bw_ob_node(&b, "Relu", "middle", "a", "b");
    bw_ob_node(&b, "Abs", "first", "x", "a");
    bw_ob_output(&b, "y");
    bw_graph *g = import_ok(&b);
    assert_int_equal(g->node_count, 3);
    assert_string_equal(g->nodes[0].name, "first");
    assert_string_equal(g->nodes[2].name, "last");
    bw_graph_free(g);
}

static void test_node_names_are_unique(void **state)
{
    (void)state;
    bw_onnx_builder b;
    bw_ob_begin(&b, 13);
    bw_ob_input(&b, "x", 1, 2, DIMS(-1, 4));
    bw_ob_node(&b, "Relu", "n", "x", "a");
    bw_ob_node(&b, "Tanh", "n", "a", "b");
    bw_ob_node(&b, "Relu", "n_0", "b", "c");
    bw_ob_node(&b, "Tanh", "n", "c", "d");
    bw_ob_node(&b, "Abs", "", "d", "y");
    bw_ob_output(&b, "y");
    bw_graph *g = import_ok(&b);
    assert_int_equal(g->node_count, 5);
    for (int i = 0; i < 5; i++) {
        assert_true(g->nodes[i].name[0] != 0);
        for (int k = 0; k < i; k++)
            assert_string_not_equal(g->nodes[i].name, g->nodes[k].name);
    }
    bw_graph_free(g);
}

static void test_initialisers_among_inputs(void **state)
{
    (void)state;
    bw_onnx_builder b;
    bw_ob_begin(&b, 7);
    b.ir_version = 3;
    bw_ob_input(&b, "x", 1, 2, DIMS(-1, 2));
    bw_ob_input(&b, "w", 1, 2, DIMS(2, 2));
    bw_ob_floats(&b, "w", 2, DIMS(2, 2), (float[]){1, 2, 3, 4});
    bw_ob_node(&b, "MatMul", "mm", "x,w", "y");
    bw_ob_output(&b, "y");
    bw_graph *g = import_ok(&b);
    assert_int_equal(g->input_count, 1);
    assert_string_equal(g->values[g->inputs[0]].name, "x");
    bw_graph_free(g);
}

static void test_structure_errors(void **state)
{
    (void)state;
    bw_onnx_builder b;
    float two[2] = {1, 2};

    bw_ob_begin(&b, 13);
    bw_ob_input(&b, "x", 1, 2, DIMS(-1, 4));
    bw_ob_node(&b, "Add", "sum", "x,ghost", "y");
    bw_ob_output(&b, "y");
    REFUSE(&b, BW_CORRUPT, "sum", "ghost");

    bw_ob_begin(&b, 13);
    bw_ob_input(&b, "x", 1, 2, DIMS(-1, 4));
    bw_ob_node(&b, "Add", "one", "x,b", "a");
    bw_ob_node(&b, "Relu", "two", "a", "b");
    bw_ob_output(&b, "b");
    REFUSE(&b, BW_CORRUPT, "cycle");

    bw_ob_begin(&b, 13);
    bw_ob_input(&b, "x", 1, 2, DIMS(-1, 4));
    bw_ob_node(&b, "Relu", "one", "x", "y");
    bw_ob_node(&b, "Tanh", "two", "x", "y");
    bw_ob_output(&b, "y");
    REFUSE(&b, BW_CORRUPT, "two", "'y'");

    bw_ob_begin(&b, 13);
    bw_ob_input(&b, "x", 1, 2, DIMS(-1, 4));
    bw_ob_input(&b, "x", 1, 2, DIMS(-1, 4));
    bw_ob_node(&b, "Relu", "one", "x", "y");
    bw_ob_output(&b, "y");
    REFUSE(&b, BW_CORRUPT, "'x'", "twice");

    bw_ob_begin(&b, 13);
    bw_ob_input(&b, "x", 1, 2, DIMS(-1, 2));
    bw_ob_floats(&b, "w", 1, DIMS(2), two);
    bw_ob_floats(&b, "w", 1, DIMS(2), two);
    bw_ob_node(&b, "Add", "one", "x,w", "y");
    bw_ob_output(&b, "y");
    REFUSE(&b, BW_CORRUPT, "'w'", "twice");

    bw_ob_begin(&b, 13);
    bw_ob_input(&b, "x", 1, 2, DIMS(-1, 4));
    bw_ob_node(&b, "Relu", "one", "x", "y");
    bw_ob_output(&b, "z");
    REFUSE(&b, BW_CORRUPT, "'z'");

    bw_ob_begin(&b, 13);
    bw_ob_input(&b, "x", 1, 2, DIMS(-1, 4));
    bw_ob_node(&b, "Relu", "one", "x", "y");
    REFUSE(&b, BW_CORRUPT, "output");

    bw_ob_begin(&b, 13);
    bw_ob_input(&b, "x", 1, 9, DIMS(-1, 1, 1, 1, 1, 1, 1, 1, 1));
    bw_ob_node(&b, "Relu", "one", "x", "y");
    bw_ob_output(&b, "y");
    REFUSE(&b, BW_UNSUPPORTED, "'x'", "rank 9");

    bw_ob_begin(&b, 13);
    bw_ob_input(&b, "x", 8, 2, DIMS(-1, 4));
    bw_ob_node(&b, "Identity", "one", "x", "y");
    bw_ob_output(&b, "y");
    REFUSE(&b, BW_UNSUPPORTED, "'x'", "string");
}

static void test_unsupported_operators(void **state)
{
    (void)state;
    bw_onnx_builder b;
    bw_ob_begin(&b, 16);
    bw_ob_input(&b, "x", 1, 2, DIMS(-1, 4));
    bw_ob_node(&b, "NonMaxSuppression", "nms_7", "x", "y");
    bw_ob_output(&b, "y");
    REFUSE(&b, BW_UNSUPPORTED, "'nms_7'", "NonMaxSuppression", "opset 16", "docs/import.md");

    bw_ob_begin(&b, 16);
    bw_ob_input(&b, "x", 1, 2, DIMS(-1, 4));
    bw_ob_node(&b, "FusedGelu", "f", "x", "y");
    bw_ob_domain(&b, "com.example");
    bw_ob_output(&b, "y");
    REFUSE(&b, BW_UNSUPPORTED, "'f'", "com.example");

    bw_ob_begin(&b, 13);
    bw_ob_input(&b, "x", 1, 2, DIMS(-1, 4));
    bw_ob_node(&b, "QuantizeLinear", "q", "x", "y");
    bw_ob_output(&b, "y");
    REFUSE(&b, BW_UNSUPPORTED, "'q'", "already quantized");

    bw_ob_begin(&b, 3);
    b.domain = "com.example.only";
    bw_ob_input(&b, "x", 1, 2, DIMS(-1, 4));
    bw_ob_node(&b, "Relu", "r", "x", "y");
    bw_ob_output(&b, "y");
    REFUSE(&b, BW_UNSUPPORTED, "com.example.only");

    for (int64_t opset = 6; opset <= 22; opset += 16) {
        bw_ob_begin(&b, opset);
        bw_ob_input(&b, "x", 1, 2, DIMS(-1, 4));
        bw_ob_node(&b, "Relu", "r", "x", "y");
        bw_ob_output(&b, "y");
        REFUSE(&b, BW_UNSUPPORTED, opset == 6 ? "set 6" : "set 22", "7 to 21");
    }
}

/* --- tensors ---------------------------------------------------------------------------------------------------- */

static bw_graph *one_tensor(int elem, const void *raw, size_t size, int64_t count, int with_gemm)
{
    bw_onnx_builder b;
    bw_ob_begin(&b, 13);
    bw_ob_input(&b, "x", 1, 2, DIMS(-1, 2));
    bw_ob_raw(&b, "t", elem, 1, &count, raw, size);
    bw_ob_node(&b, "Identity", "i", "t", "u");
    bw_ob_node(&b, "Relu", "r", "x", "y");
    if (with_gemm) {
        bw_ob_floats(&b, "w", 2, DIMS(2, 2), (float[]){1, 2, 3, 4});
        bw_ob_node(&b, "MatMul", "mm", "y,w", "z");
        bw_ob_output(&b, "z");
    }
    bw_ob_output(&b, "y");
    bw_ob_output(&b, "u");
    return import_ok(&b);
}

static void test_tensor_types(void **state)
{
    (void)state;
    static const uint16_t half[4] = {0x3c00, 0xc000, 0x0001, 0x7bff}, brain[2] = {0x3f80, 0xc040};
    static const uint16_t u16[2] = {65535, 1};
    static const int16_t i16[2] = {-32768, 7};
    static const uint32_t u32[1] = {4294967295u};
    static const uint64_t u64[1] = {9};
    static const double f64[2] = {0.1, -2};
    bw_graph *g = one_tensor(10, half, sizeof half, 4, 1);
    const bw_array *a = g->values[find(g, "u")].constant;
    assert_non_null(a);
    assert_int_equal(a->dtype, BW_F32);
    assert_true(((float *)a->data)[0] == 1.0f && ((float *)a->data)[1] == -2.0f);
    assert_true(((float *)a->data)[2] == ldexpf(1, -24) && ((float *)a->data)[3] == 65504.0f);
    bw_graph_free(g);

    g = one_tensor(16, brain, sizeof brain, 2, 0);
    a = g->values[find(g, "u")].constant;
    assert_int_equal(a->dtype, BW_F32);
    assert_true(((float *)a->data)[0] == 1.0f && ((float *)a->data)[1] == -3.0f);
    bw_graph_free(g);

    g = one_tensor(11, f64, sizeof f64, 2, 1);
    a = g->values[find(g, "u")].constant;
    assert_int_equal(a->dtype, BW_F32);
    assert_true(((float *)a->data)[0] == 0.1f);
    bw_graph_free(g);

    g = one_tensor(11, f64, sizeof f64, 2, 0);
    a = g->values[find(g, "u")].constant;
    assert_int_equal(a->dtype, BW_F64);
    assert_true(((double *)a->data)[0] == 0.1);
    bw_graph_free(g);

    g = one_tensor(4, u16, sizeof u16, 2, 0);
    a = g->values[find(g, "u")].constant;
    assert_int_equal(a->dtype, BW_I32);
    assert_int_equal(((int32_t *)a->data)[0], 65535);
    bw_graph_free(g);

    g = one_tensor(5, i16, sizeof i16, 2, 0);
    a = g->values[find(g, "u")].constant;
    assert_int_equal(((int32_t *)a->data)[0], -32768);
    bw_graph_free(g);

    g = one_tensor(12, u32, sizeof u32, 1, 0);
    a = g->values[find(g, "u")].constant;
    assert_int_equal(a->dtype, BW_I64);
    assert_int_equal(((int64_t *)a->data)[0], 4294967295);
    bw_graph_free(g);

    g = one_tensor(13, u64, sizeof u64, 1, 0);
    a = g->values[find(g, "u")].constant;
    assert_int_equal(((int64_t *)a->data)[0], 9);
    bw_graph_free(g);
}

/* Typed fields instead of raw bytes, as CNTK writes them: floats, and int32 that hold narrower types. */
static void test_typed_fields(void **state)
{
    (void)state;
    bw_onnx_builder b;
    bw_ob_buffer t = {0}, packed = {0};
    float big[2048];
    for (int i = 0; i < 2048; i++)
        big[i] = (float)i / 8;
    bw_ob_begin(&b, 13);
    bw_ob_input(&b, "x", 1, 2, DIMS(-1, 2048));
    bw_ob_field_int(&t, 1, 2048);
    bw_ob_field_int(&t, 2, 1);
    bw_ob_field_bytes(&t, 4, big, sizeof big);
    bw_ob_field_text(&t, 8, "big");
    bw_ob_field_bytes(&b.graph, 5, t.bytes, t.size);
    t.size = 0;
    bw_ob_varint(&packed, 1);
    bw_ob_varint(&packed, (uint64_t)-5);
    bw_ob_field_int(&t, 1, 2);
    bw_ob_field_int(&t, 2, 3); /* int8 */
    bw_ob_field_bytes(&t, 5, packed.bytes, packed.size);
    bw_ob_field_text(&t, 8, "narrow");
    bw_ob_field_bytes(&b.graph, 5, t.bytes, t.size);
    free(t.bytes);
    free(packed.bytes);
    bw_ob_node(&b, "Add", "a", "x,big", "y");
    bw_ob_node(&b, "Identity", "i", "narrow", "u");
    bw_ob_output(&b, "y");
    bw_ob_output(&b, "u");
    bw_graph *g = import_ok(&b);
    const bw_array *a = g->values[find(g, "big")].constant;
    assert_memory_equal(a->data, big, sizeof big);
    assert_int_equal((uintptr_t)a->data % 64, 0);
    a = g->values[find(g, "u")].constant;
    assert_int_equal(a->dtype, BW_I8);
    assert_int_equal(((int8_t *)a->data)[1], -5);
    bw_graph_free(g);
}

static void bad_tensor(bw_onnx_builder *b, int elem, int rank, const int64_t *dims, const void *raw, size_t size)
{
    bw_ob_begin(b, 13);
    bw_ob_input(b, "x", 1, 2, DIMS(-1, 2));
    bw_ob_raw(b, "weights", elem, rank, dims, raw, size);
    bw_ob_node(b, "Add", "a", "x,weights", "y");
    bw_ob_output(b, "y");
}

static void test_tensor_errors(void **state)
{
    (void)state;
    bw_onnx_builder b;
    float v[4] = {1, 2, 3, 4}, bad[3] = {1, NAN, INFINITY};
    bad_tensor(&b, 1, 1, DIMS(4), v, 15);
    REFUSE(&b, BW_CORRUPT, "'weights'", "15 bytes", "16");
    bad_tensor(&b, 1, 1, DIMS(4), v, 0);
    REFUSE(&b, BW_CORRUPT, "'weights'", "16");
    bad_tensor(&b, 1, 1, DIMS(-4), v, 16);
    REFUSE(&b, BW_CORRUPT, "'weights'", "-4");
    bad_tensor(&b, 1, 3, DIMS(INT64_C(1) << 40, INT64_C(1) << 40, 1), v, 16);
    REFUSE(&b, BW_CORRUPT, "'weights'");
    bad_tensor(&b, 1, 2, DIMS(INT64_MAX, INT64_MAX), v, 4);
    REFUSE(&b, BW_CORRUPT, "'weights'");
    bad_tensor(&b, 1, 1, DIMS(INT64_C(1) << 40), v, 4);
    REFUSE(&b, BW_EXHAUSTED, "'weights'", "limit");
    bad_tensor(&b, 1, 9, DIMS(1, 1, 1, 1, 1, 1, 1, 1, 1), v, 4);
    REFUSE(&b, BW_UNSUPPORTED, "'weights'", "rank 9");
    bad_tensor(&b, 99, 1, DIMS(4), v, 16);
    REFUSE(&b, BW_UNSUPPORTED, "'weights'", "99");
    bad_tensor(&b, 15, 1, DIMS(1), v, 16);
    REFUSE(&b, BW_UNSUPPORTED, "'weights'", "complex128");
    bad_tensor(&b, 1, 1, DIMS(3), bad, 12);
    REFUSE(&b, BW_NOT_FINITE, "'weights'", "NaN", "index 1");
    bad_tensor(&b, 1, 1, DIMS(2), bad + 1, 8);
    REFUSE(&b, BW_NOT_FINITE, "'weights'", "index 0");
    bad_tensor(&b, 1, 1, DIMS(1), bad + 1, 4);
    REFUSE(&b, BW_NOT_FINITE, "'weights'", "NaN");
    bad_tensor(&b, 13, 1, DIMS(1), &(uint64_t){UINT64_MAX}, 8);
    REFUSE(&b, BW_OUT_OF_RANGE, "'weights'", "index 0");
    bad_tensor(&b, 1, 2, DIMS(0, 2), v, 0); /* an empty tensor is legal, whatever its use */
    bw_error err;
    bw_graph *g = import(&b, &err);
    bw_graph_free(g);
}

/* --- hostile bytes ---------------------------------------------------------------------------------------------- */

static void test_truncated_anywhere(void **state)
{
    (void)state;
    bw_onnx_builder b;
    small_conv(&b);
    bw_ob_end(&b);
    for (size_t n = 0; n < b.model.size; n++) {
        uint8_t *copy = malloc(n ? n : 1);
        assert_non_null(copy);
        memcpy(copy, b.model.bytes, n);
        bw_graph *g = NULL;
        bw_error err = {0};
        bw_status st = bw_onnx_import_bytes(copy, n, NULL, 0, &g, NULL, &err);
        assert_int_not_equal(st, BW_OK); /* the graph is the last field */
        assert_int_equal(st, err.status);
        assert_null(g);
        free(copy);
    }
    bw_ob_free(&b);
}

static void test_flipped_bits(void **state)
{
    (void)state;
    bw_onnx_builder b;
    small_conv(&b);
    bw_ob_end(&b);
    int refused = 0;
    for (size_t i = 0; i < b.model.size * 8; i++) {
        b.model.bytes[i / 8] ^= (uint8_t)(1u << i % 8);
        bw_graph *g = NULL;
        bw_error err = {0};
        if (bw_onnx_import_bounded(b.model.bytes, b.model.size, NULL, 0, 1 << 20, &g, NULL, &err)) {
            assert_null(g);
            assert_true(err.message[0] != 0);
            refused++;
        }
        bw_graph_free(g);
        b.model.bytes[i / 8] ^= (uint8_t)(1u << i % 8);
    }
    assert_true(refused > 100);
    bw_ob_free(&b);
}

static void test_nested_forever(void **state)
{
    (void)state;
    /* attribute.g (field 6) of node.attribute (5) of graph.node (1), again and again: the parser must not recurse. */
    bw_onnx_builder b;
    bw_ob_buffer inner = {0}, outer = {0};
    for (int i = 0; i < 3000; i++) {
        static const unsigned fields[] = {6, 5, 1};
        outer.size = 0;
        bw_ob_field_bytes(&outer, fields[i % 3], inner.bytes, inner.size);
        bw_ob_buffer swap = inner;
        inner = outer;
        outer = swap;
    }
    bw_ob_begin(&b, 13);
    bw_ob_input(&b, "x", 1, 2, DIMS(-1, 2));
    bw_ob_node(&b, "Relu", "r", "x", "y");
    bw_ob_field_bytes(&b.node, 5, inner.bytes, inner.size);
    bw_ob_output(&b, "y");
    bw_error err;
    bw_graph *g = import(&b, &err);
    assert_null(g);
    assert_true(err.status == BW_UNSUPPORTED || err.status == BW_CORRUPT);
    free(inner.bytes);
    free(outer.bytes);
}

static void test_memory_bombs(void **state)
{
    (void)state;
    bw_onnx_builder b;
    bw_ob_begin(&b, 13);
    bw_ob_input(&b, "x", 1, 2, DIMS(-1, 2));
    bw_ob_ints(&b, "shape", 2, DIMS(1000000, 1000000));
    bw_ob_node(&b, "ConstantOfShape", "bomb", "shape", "huge");
    bw_ob_node(&b, "ReduceSum", "sum", "huge", "s");
    bw_ob_node(&b, "Add", "a", "x,s", "y");
    bw_ob_output(&b, "y");
    REFUSE(&b, BW_EXHAUSTED, "'bomb'", "limit");

    /* Each is allowed, together they are not. */
    bw_ob_begin(&b, 13);
    bw_ob_input(&b, "x", 1, 2, DIMS(-1, 2));
    bw_ob_ints(&b, "shape", 2, DIMS(1 << 20, 2));
    bw_ob_node(&b, "ConstantOfShape", "one", "shape", "h1");
    bw_ob_node(&b, "ConstantOfShape", "two", "shape", "h2");
    bw_ob_node(&b, "Add", "three", "h1,h2", "h3");
    bw_ob_node(&b, "ReduceSum", "sum", "h3", "s");
    bw_ob_node(&b, "Add", "a", "x,s", "y");
    bw_ob_output(&b, "y");
    bw_ob_end(&b);
    bw_graph *g;
    bw_error err;
    assert_int_equal(bw_onnx_import_bounded(b.model.bytes, b.model.size, NULL, 0, 12 << 20, &g, NULL, &err),
                     BW_EXHAUSTED);
    assert_int_equal(bw_onnx_import_bounded(b.model.bytes, b.model.size, NULL, 0, 64 << 20, &g, NULL, &err), BW_OK);
    bw_graph_free(g);
    bw_ob_free(&b);
}

/* --- dynamic dimensions ----------------------------------------------------------------------------------------- */

static bw_status import_bound(bw_onnx_builder *b, const bw_binding *bindings, size_t count, bw_graph **g, bw_error *err)
{
    return bw_onnx_import_bytes(b->model.bytes, b->model.size, bindings, count, g, NULL, err);
}

static void test_dynamic_dimensions(void **state)
{
    (void)state;
    bw_onnx_builder b;
    bw_graph *g;
    bw_error err;
    bw_ob_begin(&b, 13);
    bw_ob_input(&b, "x", 1, 4, DIMS(-1, 3, -2, -3));
    bw_ob_node(&b, "Relu", "r", "x", "y");
    bw_ob_output(&b, "y");
    bw_ob_end(&b);
    assert_int_equal(import_bound(&b, NULL, 0, &g, &err), BW_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "--bind M="));
    assert_non_null(strstr(err.message, "axis 2"));
    assert_int_equal(import_bound(&b, (bw_binding[]){{"M", 8}}, 1, &g, &err), BW_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "--bind x:3="));
    assert_int_equal(import_bound(&b, (bw_binding[]){{"M", 8}, {"x:3", 9}}, 2, &g, &err), BW_OK);
    const bw_value *y = &g->values[g->outputs[0]];
    assert_int_equal(y->dims[0], -1);
    assert_int_equal(y->dims[2], 8);
    assert_int_equal(y->dims[3], 9);
    bw_graph_free(g);
    assert_int_equal(import_bound(&b, (bw_binding[]){{"M", 8}, {"x:3", 9}, {"N", 4}}, 3, &g, &err), BW_OK);
    assert_int_equal(g->values[g->outputs[0]].dims[0], 4);
    bw_graph_free(g);
    assert_int_equal(import_bound(&b, (bw_binding[]){{"M", 8}, {"x:3", 9}, {"Q", 4}}, 3, &g, &err),
                     BW_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "Q=4"));
    assert_int_equal(import_bound(&b, (bw_binding[]){{"M", -8}, {"x:3", 9}}, 2, &g, &err), BW_INVALID_ARGUMENT);
    bw_ob_free(&b);
}

/* A model for one image: a Reshape with a constant 1 in front. */
static void test_batch_of_one_becomes_the_batch(void **state)
{
    (void)state;
    bw_onnx_builder b;
    bw_ob_begin(&b, 9);
    bw_ob_input(&b, "x", 1, 4, DIMS(1, 2, 3, 3));
    bw_ob_ints(&b, "shape", 2, DIMS(1, 18));
    bw_ob_ints(&b, "back", 4, DIMS(1, 2, 9, 1));
    bw_ob_node(&b, "Relu", "r", "x", "a");
    bw_ob_node(&b, "Reshape", "flat", "a,shape", "f");
    bw_ob_node(&b, "Reshape", "again", "f,back", "s");
    bw_ob_node(&b, "Softmax", "soft", "s", "y");
    bw_ob_output(&b, "y");
    bw_graph *g = import_ok(&b);
    assert_int_equal(g->values[g->inputs[0]].dims[0], -1);
    const bw_value *y = &g->values[g->outputs[0]];
    assert_int_equal(y->dims[0], -1);
    assert_int_equal(y->dims[1], 2);
    assert_int_equal(y->dims[2], 9);
    bw_graph_free(g);
}

/* The same models where samples are mixed: the batch stays 1. */
static void test_mixed_samples_keep_one(void **state)
{
    (void)state;
    for (int kind = 0; kind < 5; kind++) {
        bw_onnx_builder b;
        bw_ob_begin(&b, 13);
        bw_ob_input(&b, "x", 1, 3, DIMS(1, 4, 6));
        bw_ob_ints(&b, "shape", 2, DIMS(4, 6));
        bw_ob_ints(&b, "back", 3, DIMS(1, 4, 6));
        bw_ob_ints(&b, "zero", 1, DIMS(0));
        switch (kind) {
        case 0: /* rows move into the batch's place */
            bw_ob_node(&b, "Reshape", "r", "x,shape", "a");
            bw_ob_node(&b, "Softmax", "s", "a", "c");
            bw_ob_node(&b, "Reshape", "q", "c,back", "y");
            break;
        case 1:
            bw_ob_node(&b, "Softmax", "s", "x", "y");
            bw_ob_attr_int(&b, "axis", 0);
            break;
        case 2:
            bw_ob_node(&b, "ReduceSum", "s", "x,zero", "y");
            break;
        case 3:
            bw_ob_node(&b, "Transpose", "t", "x", "y");
            bw_ob_attr_ints(&b, "perm", 3, DIMS(1, 0, 2));
            break;
        default:
            bw_ob_node(&b, "Concat", "c", "x,x", "y");
            bw_ob_attr_int(&b, "axis", 0);
        }
        bw_ob_output(&b, "y");
        bw_graph *g = import_ok(&b);
        assert_int_equal(g->values[g->inputs[0]].dims[0], 1);
        assert_true(g->values[g->outputs[0]].dims[0] >= 1);
        bw_graph_free(g);
    }
}

/* --- external data ---------------------------------------------------------------------------------------------- */

static char dir[512];

static void write_file(const char *name, const void *bytes, size_t size)
{
    char path[700];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
}

static bw_status import_external(const char *location, const char *offset, const char *length, bw_graph **g,
                                 bw_error *err)
{
    bw_onnx_builder b;
    bw_ob_begin(&b, 13);
    bw_ob_input(&b, "x", 1, 2, DIMS(-1, 4));
    bw_ob_external(&b, "w", 1, 1, DIMS(4), location, offset, length);
    bw_ob_node(&b, "Add", "a", "x,w", "y");
    bw_ob_output(&b, "y");
    bw_ob_end(&b);
    write_file("model.onnx", b.model.bytes, b.model.size);
    bw_ob_free(&b);
    char path[700];
    snprintf(path, sizeof path, "%s/model.onnx", dir);
    *g = NULL;
    return bw_onnx_import(path, NULL, 0, g, NULL, err);
}

static void test_external_data(void **state)
{
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/bw-import.%d", tmp ? tmp : "/tmp", (int)getpid());
    assert_int_equal(mkdir(dir, 0700), 0);
    float v[6] = {9, 9, 1, 2, 3, 4};
    write_file("weights.bin", v, sizeof v);
    bw_graph *g;
    bw_error err;
    if (import_external("weights.bin", "8", "16", &g, &err))
        fail_msg("%s", err.message);
    const bw_array *w = g->values[find(g, "w")].constant;
    assert_memory_equal(w->data, v + 2, 16);
    bw_graph_free(g);
    assert_int_equal(import_external("./weights.bin", "8", NULL, &g, &err), BW_OK);
    bw_graph_free(g);

    assert_int_equal(import_external("weights.bin", "12", "16", &g, &err), BW_CORRUPT);
    assert_non_null(strstr(err.message, "truncated"));
    assert_int_equal(import_external("weights.bin", "18446744073709551615", "16", &g, &err), BW_CORRUPT);
    assert_int_equal(import_external("weights.bin", "-4", "16", &g, &err), BW_CORRUPT);
    assert_int_equal(import_external("weights.bin", "0", "12", &g, &err), BW_CORRUPT);
    assert_int_equal(import_external("nothing.bin", "0", "16", &g, &err), BW_NOT_FOUND);
    assert_non_null(strstr(err.message, "nothing.bin"));
    assert_int_equal(import_external(NULL, "0", "16", &g, &err), BW_CORRUPT);
    assert_int_equal(import_external("", "0", "16", &g, &err), BW_CORRUPT);
    assert_int_equal(import_external("/etc/passwd", "0", "16", &g, &err), BW_CORRUPT);
    assert_int_equal(import_external("../weights.bin", "0", "16", &g, &err), BW_CORRUPT);
    assert_int_equal(import_external("a/../../weights.bin", "0", "16", &g, &err), BW_CORRUPT);
    char link_path[700];
    snprintf(link_path, sizeof link_path, "%s/link.bin", dir);
    assert_int_equal(symlink("/etc/passwd", link_path), 0);
    assert_int_equal(import_external("link.bin", "0", "16", &g, &err), BW_CORRUPT);
    assert_non_null(strstr(err.message, "out of the model's directory"));
    assert_int_equal(import_external(".", "0", "16", &g, &err), BW_CORRUPT);

    static const char *const names[] = {"model.onnx", "weights.bin", "link.bin"};
    for (int i = 0; i < 3; i++) {
        snprintf(link_path, sizeof link_path, "%s/%s", dir, names[i]);
        assert_int_equal(unlink(link_path), 0);
    }
    assert_int_equal(rmdir(dir), 0);
}

static void test_files(void **state)
{
    (void)state;
    bw_graph *g;
    bw_error err;
    assert_int_equal(bw_onnx_import("/nonexistent/model.onnx", NULL, 0, &g, NULL, &err), BW_NOT_FOUND);
    assert_null(g);
    assert_int_equal(bw_onnx_import("/dev/null", NULL, 0, &g, NULL, NULL) != BW_OK, 1);
    assert_int_equal(bw_onnx_import_bytes("hello, world", 12, NULL, 0, &g, NULL, &err), BW_CORRUPT);
    assert_int_equal(bw_onnx_import_bytes("", 0, NULL, 0, &g, NULL, &err), BW_CORRUPT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small_conv),
        cmocka_unit_test(test_info),
        cmocka_unit_test(test_unsorted_nodes),
        cmocka_unit_test(test_node_names_are_unique),
        cmocka_unit_test(test_initialisers_among_inputs),
        cmocka_unit_test(test_structure_errors),
        cmocka_unit_test(test_unsupported_operators),
        cmocka_unit_test(test_tensor_types),
        cmocka_unit_test(test_typed_fields),
        cmocka_unit_test(test_tensor_errors),
        cmocka_unit_test(test_truncated_anywhere),
        cmocka_unit_test(test_flipped_bits),
        cmocka_unit_test(test_nested_forever),
        cmocka_unit_test(test_memory_bombs),
        cmocka_unit_test(test_dynamic_dimensions),
        cmocka_unit_test(test_batch_of_one_becomes_the_batch),
        cmocka_unit_test(test_mixed_samples_keep_one),
        cmocka_unit_test(test_external_data),
        cmocka_unit_test(test_files),
    };
    return cmocka_run_group_tests_name("import", tests, NULL, NULL);
}
