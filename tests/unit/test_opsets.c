/* SPDX-License-Identifier: Apache-2.0 */
/* Old and new forms of each operator normalise to graphs that compute the same, and parameters end as attributes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "quantize/import.h"
#include "tests/support/graph_run.h"
#include "tests/support/onnx_builder.h"

#define DIMS(...)                                                                                                      \
    (int64_t[])                                                                                                        \
    {                                                                                                                  \
        __VA_ARGS__                                                                                                    \
    }

static void begin(bw_onnx_builder *b, int64_t opset)
{
    bw_ob_begin(b, opset);
    bw_ob_input(b, "x", 1, 4, DIMS(-1, 4, 6, 6));
}

static bw_graph *finish(bw_onnx_builder *b)
{
    bw_graph *g = NULL;
    bw_error err = {0};
    bw_ob_output(b, "y");
    bw_ob_end(b);
    if (bw_onnx_import_bytes(b->model.bytes, b->model.size, NULL, 0, &g, NULL, &err))
        fail_msg("import: %s", err.message);
    bw_ob_free(b);
    return g;
}

static void refuse(bw_onnx_builder *b, const char *text)
{
    bw_graph *g = NULL;
    bw_error err = {0};
    bw_ob_output(b, "y");
    bw_ob_end(b);
    bw_status st = bw_onnx_import_bytes(b->model.bytes, b->model.size, NULL, 0, &g, NULL, &err);
    bw_ob_free(b);
    if (st != BW_UNSUPPORTED || !strstr(err.message, text))
        fail_msg("%s: '%s', expected BW_UNSUPPORTED with '%s'", bw_status_name(st), err.message, text);
}

/* Equal bits: the same operator on the same numbers. Frees both. */
static void same(bw_graph *a, bw_graph *b)
{
    bw_test_same_function(a, b, 2, 0);
    bw_graph_free(a);
    bw_graph_free(b);
}

static const bw_node *only_node(const bw_graph *g, const char *op)
{
    assert_int_equal(g->node_count, 1);
    assert_string_equal(g->nodes[0].op, op);
    assert_int_equal(g->nodes[0].input_count, 1);
    return &g->nodes[0];
}

static void test_clip(void **state)
{
    (void)state;
    bw_onnx_builder b;
    begin(&b, 7);
    bw_ob_node(&b, "Clip", "n", "x", "y");
    bw_ob_attr_float(&b, "min", -0.25f);
    bw_ob_attr_float(&b, "max", 0.5f);
    bw_graph *old = finish(&b);
    begin(&b, 13);
    bw_ob_raw(&b, "lo", 1, 0, NULL, &(float){-0.25f}, 4);
    bw_ob_raw(&b, "hi", 1, 0, NULL, &(float){0.5f}, 4);
    bw_ob_node(&b, "Clip", "n", "x,lo,hi", "y");
    bw_graph *new = finish(&b);
    const bw_node *n = only_node(new, "Clip");
    assert_true(bw_node_float(n, "min", 9) == -0.25f && bw_node_float(n, "max", 9) == 0.5f);
    same(old, new);
    /* One limit only, the other absent or infinite. */
    begin(&b, 13);
    bw_ob_raw(&b, "hi", 1, 0, NULL, &(float){0.5f}, 4);
    bw_ob_node(&b, "Clip", "n", "x,,hi", "y");
    old = finish(&b);
    begin(&b, 11);
    bw_ob_raw(&b, "lo", 1, 0, NULL, &(float){-INFINITY}, 4);
    bw_ob_raw(&b, "hi", 1, 1, DIMS(1), &(float){0.5f}, 4);
    bw_ob_node(&b, "Clip", "n", "x,lo,hi", "y");
    same(old, finish(&b));
}

static void test_slice(void **state)
{
    (void)state;
    bw_onnx_builder b;
    begin(&b, 9);
    bw_ob_node(&b, "Slice", "n", "x", "y");
    bw_ob_attr_ints(&b, "starts", 2, DIMS(1, -4));
    bw_ob_attr_ints(&b, "ends", 2, DIMS(3, INT64_MAX));
    bw_ob_attr_ints(&b, "axes", 2, DIMS(1, -1));
    bw_graph *old = finish(&b);
    begin(&b, 13);
    bw_ob_ints(&b, "s", 2, DIMS(1, -4));
    bw_ob_ints(&b, "e", 2, DIMS(3, 100));
    bw_ob_ints(&b, "a", 2, DIMS(-3, 3));
    bw_ob_node(&b, "Slice", "n", "x,s,e,a", "y");
    bw_graph *new = finish(&b);
    const bw_node *n = only_node(new, "Slice");
    int64_t v[4];
    assert_int_equal(bw_node_ints(n, "axes", v, 4), 2);
    assert_true(v[0] == 1 && v[1] == 3);
    assert_int_equal(bw_node_ints(n, "starts", v, 4), 2);
    assert_true(v[0] == 1 && v[1] == 2);
    assert_int_equal(bw_node_ints(n, "ends", v, 4), 2);
    assert_true(v[0] == 3 && v[1] == 6);
    assert_int_equal(bw_node_ints(n, "steps", v, 4), 2);
    assert_true(v[0] == 1 && v[1] == 1);
    same(old, new);
}

static void test_squeeze_and_unsqueeze(void **state)
{
    (void)state;
    bw_onnx_builder b;
    begin(&b, 11);
    bw_ob_node(&b, "Unsqueeze", "u", "x", "a");
    bw_ob_attr_ints(&b, "axes", 2, DIMS(1, 5));
    bw_ob_node(&b, "Relu", "r", "a", "c");
    bw_ob_node(&b, "Squeeze", "s", "c", "y");
    bw_ob_attr_ints(&b, "axes", 1, DIMS(1));
    bw_graph *old = finish(&b);
    begin(&b, 13);
    bw_ob_ints(&b, "two", 2, DIMS(1, -1));
    bw_ob_ints(&b, "one", 1, DIMS(-5));
    bw_ob_node(&b, "Unsqueeze", "u", "x,two", "a");
    bw_ob_node(&b, "Relu", "r", "a", "c");
    bw_ob_node(&b, "Squeeze", "s", "c,one", "y");
    bw_graph *new = finish(&b);
    for (int i = 0; i < new->node_count; i++)
        assert_int_equal(new->nodes[i].input_count, 1);
    same(old, new);
}

static void test_pad(void **state)
{
    (void)state;
    bw_onnx_builder b;
    begin(&b, 7);
    bw_ob_node(&b, "Pad", "n", "x", "y");
    bw_ob_attr_ints(&b, "pads", 8, DIMS(0, 1, 0, 2, 0, 0, 3, 0));
    bw_ob_attr_float(&b, "value", 2.5f);
    bw_graph *old = finish(&b);
    begin(&b, 13);
    bw_ob_ints(&b, "p", 8, DIMS(0, 1, 0, 2, 0, 0, 3, 0));
    bw_ob_raw(&b, "v", 1, 0, NULL, &(float){2.5f}, 4);
    bw_ob_node(&b, "Pad", "n", "x,p,v", "y");
    same(old, finish(&b));
    begin(&b, 18);
    bw_ob_ints(&b, "p", 6, DIMS(2, 1, 0, 0, 0, 3));
    bw_ob_ints(&b, "a", 3, DIMS(-1, 1, 2));
    bw_ob_raw(&b, "v", 1, 0, NULL, &(float){2.5f}, 4);
    bw_ob_node(&b, "Pad", "n", "x,p,v,a", "y");
    bw_graph *axes = finish(&b);
    int64_t pads[8];
    assert_int_equal(bw_node_ints(only_node(axes, "Pad"), "pads", pads, 8), 8);
    begin(&b, 13);
    bw_ob_ints(&b, "p", 8, DIMS(0, 1, 0, 2, 0, 0, 3, 0));
    bw_ob_raw(&b, "v", 1, 0, NULL, &(float){2.5f}, 4);
    bw_ob_node(&b, "Pad", "n", "x,p,v", "y");
    same(axes, finish(&b));
    begin(&b, 19);
    bw_ob_ints(&b, "p", 8, DIMS(0, 1, 0, 2, 0, 0, 3, 0));
    bw_ob_node(&b, "Pad", "n", "x,p", "y");
    bw_ob_attr_string(&b, "mode", "wrap");
    refuse(&b, "wrap");
}

static void test_dropout(void **state)
{
    (void)state;
    bw_onnx_builder b;
    begin(&b, 7);
    bw_ob_node(&b, "Dropout", "n", "x", "d,mask");
    bw_ob_attr_float(&b, "ratio", 0.5f);
    bw_ob_node(&b, "Relu", "r", "d", "y");
    bw_graph *old = finish(&b);
    begin(&b, 13);
    bw_ob_raw(&b, "ratio", 1, 0, NULL, &(float){0.5f}, 4);
    bw_ob_raw(&b, "mode", 9, 0, NULL, "\0", 1);
    bw_ob_node(&b, "Dropout", "n", "x,ratio,mode", "d");
    bw_ob_node(&b, "Relu", "r", "d", "y");
    same(old, finish(&b));
    begin(&b, 13);
    bw_ob_raw(&b, "ratio", 1, 0, NULL, &(float){0.5f}, 4);
    bw_ob_raw(&b, "mode", 9, 0, NULL, "\1", 1);
    bw_ob_node(&b, "Dropout", "n", "x,ratio,mode", "y");
    refuse(&b, "training_mode");
    begin(&b, 13);
    bw_ob_node(&b, "Dropout", "n", "x", "d,mask");
    bw_ob_node(&b, "Not", "m", "mask", "y");
    refuse(&b, "'mask'");
}

/* Opset < 13: all axes from `axis` (1) on are one. */
static void test_softmax(void **state)
{
    (void)state;
    bw_onnx_builder b;
    begin(&b, 11);
    bw_ob_node(&b, "Softmax", "n", "x", "y");
    bw_graph *old = finish(&b);
    begin(&b, 13);
    bw_ob_ints(&b, "flat", 2, DIMS(0, -1));
    bw_ob_ints(&b, "back", 4, DIMS(-1, 4, 6, 6));
    bw_ob_node(&b, "Reshape", "f", "x,flat", "a");
    bw_ob_node(&b, "Softmax", "n", "a", "c");
    bw_ob_node(&b, "Reshape", "r", "c,back", "y");
    bw_graph *new = finish(&b);
    bw_test_same_function(old, new, 2, 1e-6);
    bw_graph_free(old);
    bw_graph_free(new);
    /* With one long axis it is the plain form. */
    begin(&b, 7);
    bw_ob_node(&b, "GlobalAveragePool", "p", "x", "a");
    bw_ob_node(&b, "Softmax", "n", "a", "y");
    old = finish(&b);
    assert_int_equal(bw_node_int(&old->nodes[1], "coerce", 0), 0);
    assert_int_equal(bw_node_int(&old->nodes[1], "axis", -9), 1);
    begin(&b, 13);
    bw_ob_node(&b, "GlobalAveragePool", "p", "x", "a");
    bw_ob_node(&b, "Softmax", "n", "a", "y");
    bw_ob_attr_int(&b, "axis", 1);
    same(old, finish(&b));
}

static void test_upsample_and_resize(void **state)
{
    (void)state;
    bw_onnx_builder b;
    static const float scales[4] = {1, 1, 2, 3}, halves[4] = {1, 1, 0.5f, 0.5f};
    begin(&b, 7);
    bw_ob_node(&b, "Upsample", "n", "x", "y");
    bw_ob_attr_floats(&b, "scales", 4, scales);
    bw_ob_attr_string(&b, "mode", "nearest");
    bw_graph *attr = finish(&b);
    assert_string_equal(attr->nodes[0].op, "Resize");
    begin(&b, 9);
    bw_ob_floats(&b, "s", 1, DIMS(4), scales);
    bw_ob_node(&b, "Upsample", "n", "x,s", "y");
    same(attr, finish(&b));
    begin(&b, 10);
    bw_ob_floats(&b, "s", 1, DIMS(4), scales);
    bw_ob_node(&b, "Resize", "n", "x,s", "y");
    bw_graph *ten = finish(&b);
    begin(&b, 13);
    bw_ob_floats(&b, "s", 1, DIMS(4), scales);
    bw_ob_node(&b, "Resize", "n", "x,,s", "y");
    bw_ob_attr_string(&b, "coordinate_transformation_mode", "asymmetric");
    bw_ob_attr_string(&b, "nearest_mode", "floor");
    bw_graph *new = finish(&b);
    only_node(new, "Resize");
    same(ten, new);
    /* Shrinking rounded up in opset 10. */
    begin(&b, 10);
    bw_ob_floats(&b, "s", 1, DIMS(4), halves);
    bw_ob_node(&b, "Resize", "n", "x,s", "y");
    ten = finish(&b);
    assert_string_equal(bw_node_string(&ten->nodes[0], "nearest_mode", ""), "ceil");
    bw_graph_free(ten);
    /* Opset 18: sizes of some axes. */
    begin(&b, 18);
    bw_ob_ints(&b, "z", 2, DIMS(12, 18));
    bw_ob_node(&b, "Resize", "n", "x,,,z", "y");
    bw_ob_attr_ints(&b, "axes", 2, DIMS(2, 3));
    bw_ob_attr_string(&b, "mode", "linear");
    bw_graph *sizes = finish(&b);
    begin(&b, 13);
    bw_ob_floats(&b, "s", 1, DIMS(4), scales);
    bw_ob_node(&b, "Resize", "n", "x,,s", "y");
    bw_ob_attr_string(&b, "mode", "linear");
    same(sizes, finish(&b));
    begin(&b, 13);
    bw_ob_floats(&b, "s", 1, DIMS(4), scales);
    bw_ob_node(&b, "Resize", "n", "x,,s", "y");
    bw_ob_attr_string(&b, "mode", "cubic");
    refuse(&b, "cubic");
}

static void test_split(void **state)
{
    (void)state;
    bw_onnx_builder b;
    begin(&b, 11);
    bw_ob_node(&b, "Split", "n", "x", "p,q");
    bw_ob_attr_int(&b, "axis", 1);
    bw_ob_attr_ints(&b, "split", 2, DIMS(1, 3));
    bw_ob_node(&b, "Concat", "c", "q,p", "y");
    bw_ob_attr_int(&b, "axis", 1);
    bw_graph *old = finish(&b);
    begin(&b, 13);
    bw_ob_ints(&b, "s", 2, DIMS(1, 3));
    bw_ob_node(&b, "Split", "n", "x,s", "p,q");
    bw_ob_attr_int(&b, "axis", 1);
    bw_ob_node(&b, "Concat", "c", "q,p", "y");
    bw_ob_attr_int(&b, "axis", 1);
    same(old, finish(&b));
    begin(&b, 18);
    bw_ob_node(&b, "Split", "n", "x", "p,q");
    bw_ob_attr_int(&b, "axis", 1);
    bw_ob_attr_int(&b, "num_outputs", 2);
    bw_ob_node(&b, "Concat", "c", "q,p", "y");
    bw_ob_attr_int(&b, "axis", 1);
    bw_graph *halves = finish(&b);
    begin(&b, 11);
    bw_ob_node(&b, "Split", "n", "x", "p,q");
    bw_ob_attr_int(&b, "axis", 1);
    bw_ob_node(&b, "Concat", "c", "q,p", "y");
    bw_ob_attr_int(&b, "axis", 1);
    same(halves, finish(&b));
}

static void test_reductions(void **state)
{
    (void)state;
    static const char *const ops[] = {"ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2"};
    for (int i = 0; i < 4; i++) {
        bw_onnx_builder b;
        begin(&b, 11);
        bw_ob_node(&b, ops[i], "n", "x", "y");
        bw_ob_attr_ints(&b, "axes", 2, DIMS(1, -1));
        bw_ob_attr_int(&b, "keepdims", 0);
        bw_graph *old = finish(&b);
        begin(&b, 18);
        bw_ob_ints(&b, "a", 2, DIMS(1, -1));
        bw_ob_node(&b, ops[i], "n", "x,a", "y");
        bw_ob_attr_int(&b, "keepdims", 0);
        bw_graph *new = finish(&b);
        int64_t axes[4];
        assert_int_equal(bw_node_ints(only_node(new, ops[i]), "axes", axes, 4), 2);
        same(old, new);
    }
}

static void test_batchnorm(void **state)
{
    (void)state;
    bw_onnx_builder b;
    float v[4][4] = {{1, 2, 3, 4}, {0.5f, 0, -1, 2}, {0.1f, 0.2f, 0.3f, 0.4f}, {1, 2, 0.5f, 4}};
    bw_graph *g[2];
    for (int i = 0; i < 2; i++) {
        begin(&b, i ? 15 : 7);
        bw_ob_floats(&b, "s", 1, DIMS(4), v[0]);
        bw_ob_floats(&b, "b", 1, DIMS(4), v[1]);
        bw_ob_floats(&b, "m", 1, DIMS(4), v[2]);
        bw_ob_floats(&b, "v", 1, DIMS(4), v[3]);
        bw_ob_node(&b, "BatchNormalization", "n", "x,s,b,m,v", i ? "y" : "y,o1,o2,o3,o4");
        if (!i)
            bw_ob_attr_int(&b, "spatial", 1);
        bw_ob_attr_float(&b, "momentum", 0.9f);
        g[i] = finish(&b);
        assert_int_equal(g[i]->nodes[0].output_count, 1);
    }
    same(g[0], g[1]);
    for (int i = 0; i < 2; i++) {
        begin(&b, i ? 15 : 7);
        bw_ob_floats(&b, "s", 1, DIMS(4), v[0]);
        bw_ob_node(&b, "BatchNormalization", "n", "x,s,s,s,s", "y");
        bw_ob_attr_int(&b, i ? "training_mode" : "spatial", i);
        refuse(&b, i ? "training_mode" : "spatial");
    }
}

/* SAME_UPPER and SAME_LOWER become the pads that ONNX's formula gives. */
static void test_auto_pad(void **state)
{
    (void)state;
    static const char *const modes[] = {"SAME_UPPER", "SAME_LOWER", "VALID"};
    static const int64_t expected[3][4] = {{0, 0, 1, 1}, {1, 1, 0, 0}, {0, 0, 0, 0}};
    for (int i = 0; i < 3; i++) {
        bw_onnx_builder b;
        begin(&b, 11);
        float w[4 * 3 * 3];
        bw_test_random(w, 36, 3);
        bw_ob_floats(&b, "w", 4, DIMS(1, 4, 3, 3), w);
        bw_ob_node(&b, "Conv", "n", "x,w", "y");
        bw_ob_attr_string(&b, "auto_pad", modes[i]);
        bw_ob_attr_ints(&b, "strides", 2, DIMS(2, 2));
        bw_graph *g = finish(&b);
        int64_t pads[4];
        assert_int_equal(bw_node_ints(&g->nodes[0], "pads", pads, 4), 4);
        assert_memory_equal(pads, expected[i], sizeof pads);
        assert_null(bw_node_attr(&g->nodes[0], "auto_pad"));
        assert_int_equal(g->values[g->outputs[0]].dims[2], i == 2 ? 2 : 3);
        bw_graph_free(g);
    }
}

/* Constant nodes, shape arithmetic and a symbolic batch, as torch writes a view(x.size(0), -1). */
static void test_shape_arithmetic_folds(void **state)
{
    (void)state;
    bw_onnx_builder b;
    begin(&b, 13);
    bw_ob_node(&b, "Shape", "shape", "x", "s");
    bw_ob_node(&b, "Constant", "zero", "", "z");
    bw_ob_attr_int(&b, "value_int", 0);
    bw_ob_node(&b, "Gather", "batch", "s,z", "n");
    bw_ob_node(&b, "Constant", "axes", "", "ax");
    bw_ob_attr_ints(&b, "value_ints", 1, DIMS(0));
    bw_ob_node(&b, "Unsqueeze", "un", "n,ax", "nv");
    bw_ob_node(&b, "Constant", "rest", "", "r");
    bw_ob_attr_tensor(&b, "value", 7, 1, DIMS(1), DIMS(-1), 8);
    bw_ob_node(&b, "Concat", "target", "nv,r", "t");
    bw_ob_attr_int(&b, "axis", 0);
    bw_ob_node(&b, "Reshape", "view", "x,t", "y");
    bw_graph *g = finish(&b);
    const bw_node *n = only_node(g, "Reshape");
    int64_t shape[4];
    assert_int_equal(bw_node_ints(n, "shape", shape, 4), 2);
    assert_true(shape[0] == -1 && shape[1] == 144);
    assert_int_equal(g->values[g->outputs[0]].dims[1], 144);
    bw_graph_free(g);
}

/* As torch writes a channel shuffle, with sizes taken from the tensor, behind a Squeeze with an input. */
static void test_views_with_a_batch(void **state)
{
    (void)state;
    bw_onnx_builder b;
    begin(&b, 13);
    bw_ob_ints(&b, "zero", 1, DIMS(0));
    bw_ob_ints(&b, "one", 1, DIMS(1));
    bw_ob_ints(&b, "two", 1, DIMS(2));
    bw_ob_ints(&b, "rest", 3, DIMS(2, 6, -1));
    bw_ob_node(&b, "Unsqueeze", "u", "x,one", "a");
    bw_ob_node(&b, "Squeeze", "q", "a,one", "c");
    bw_ob_node(&b, "Shape", "shape", "c", "s");
    bw_ob_node(&b, "Slice", "batch", "s,zero,one", "n");
    bw_ob_node(&b, "Concat", "target", "n,two,rest", "t");
    bw_ob_attr_int(&b, "axis", 0);
    bw_ob_node(&b, "Reshape", "split", "c,t", "v");
    bw_ob_node(&b, "Transpose", "swap", "v", "w");
    bw_ob_attr_ints(&b, "perm", 5, DIMS(0, 2, 1, 3, 4));
    bw_ob_node(&b, "Reshape", "join", "w,s", "y");
    bw_graph *g = finish(&b);
    assert_int_equal(g->node_count, 5);
    const bw_value *y = &g->values[g->outputs[0]];
    assert_true(y->dims[0] == -1 && y->dims[1] == 4 && y->dims[2] == 6 && y->dims[3] == 6);
    for (int i = 0; i < g->node_count; i++)
        assert_int_equal(g->nodes[i].input_count, 1);
    bw_graph_free(g);
}

/* The first size of a tensor that is a multiple of the batch is not the batch. */
static void test_views_of_merged_samples(void **state)
{
    (void)state;
    bw_onnx_builder b;
    begin(&b, 13);
    bw_ob_ints(&b, "flat", 2, DIMS(-1, 36));
    bw_ob_ints(&b, "zero", 1, DIMS(0));
    bw_ob_ints(&b, "open", 1, DIMS(-1));
    bw_ob_node(&b, "Reshape", "rows", "x,flat", "r");
    bw_ob_node(&b, "Shape", "shape", "r", "s");
    bw_ob_node(&b, "Gather", "count", "s,zero", "n");
    bw_ob_node(&b, "Concat", "target", "n,open", "t");
    bw_ob_attr_int(&b, "axis", 0);
    bw_ob_node(&b, "Reshape", "view", "x,t", "y");
    bw_graph *g = finish(&b);
    bw_array y;
    bw_test_run(g, 3, 1, &y);
    assert_int_equal(y.dims[0], 12);
    assert_int_equal(y.dims[1], 36);
    bw_array_free(&y);
    bw_graph_free(g);
}

static void test_cast(void **state)
{
    (void)state;
    bw_onnx_builder b;
    float w[16];
    bw_test_random(w, 16, 5);
    begin(&b, 13); /* a network: half precision inside it is single */
    bw_ob_floats(&b, "w", 4, DIMS(4, 4, 1, 1), w);
    bw_ob_node(&b, "Cast", "half", "x", "h");
    bw_ob_attr_int(&b, "to", 10);
    bw_ob_node(&b, "Conv", "c", "h,w", "y");
    bw_graph *cast = finish(&b);
    begin(&b, 13);
    bw_ob_floats(&b, "w", 4, DIMS(4, 4, 1, 1), w);
    bw_ob_node(&b, "Conv", "c", "x,w", "y");
    same(cast, finish(&b));
    begin(&b, 13);
    bw_ob_node(&b, "Cast", "n", "x", "y");
    bw_ob_attr_int(&b, "to", 12);
    refuse(&b, "uint32");
}

static void test_pools(void **state)
{
    (void)state;
    bw_onnx_builder b;
    begin(&b, 11);
    bw_ob_node(&b, "MaxPool", "n", "x", "p,indices");
    bw_ob_attr_ints(&b, "kernel_shape", 2, DIMS(2, 2));
    bw_ob_node(&b, "Relu", "r", "p", "y");
    bw_graph *g = finish(&b);
    assert_int_equal(g->nodes[0].output_count, 1);
    bw_graph_free(g);
    begin(&b, 11);
    bw_ob_node(&b, "MaxPool", "n", "x", "p,y");
    bw_ob_attr_ints(&b, "kernel_shape", 2, DIMS(2, 2));
    refuse(&b, "'y'");
    begin(&b, 11);
    bw_ob_node(&b, "MaxPool", "n", "x", "y");
    bw_ob_attr_ints(&b, "kernel_shape", 2, DIMS(2, 2));
    bw_ob_attr_int(&b, "storage_order", 1);
    refuse(&b, "storage_order");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_clip),
        cmocka_unit_test(test_slice),
        cmocka_unit_test(test_squeeze_and_unsqueeze),
        cmocka_unit_test(test_pad),
        cmocka_unit_test(test_dropout),
        cmocka_unit_test(test_softmax),
        cmocka_unit_test(test_upsample_and_resize),
        cmocka_unit_test(test_split),
        cmocka_unit_test(test_reductions),
        cmocka_unit_test(test_batchnorm),
        cmocka_unit_test(test_auto_pad),
        cmocka_unit_test(test_shape_arithmetic_folds),
        cmocka_unit_test(test_views_with_a_batch),
        cmocka_unit_test(test_views_of_merged_samples),
        cmocka_unit_test(test_cast),
        cmocka_unit_test(test_pools),
    };
    return cmocka_run_group_tests_name("opsets", tests, NULL, NULL);
}
