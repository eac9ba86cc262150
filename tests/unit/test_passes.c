/* SPDX-License-Identifier: Apache-2.0 */
/* Each pass keeps the function (the graph before and after on random inputs) and does what it is for. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "quantize/import.h"
#include "quantize/passes.h"
#include "tests/support/graph_run.h"
#include "tests/support/onnx_builder.h"

#define DIMS(...)                                                                                                      \
    (int64_t[])                                                                                                        \
    {                                                                                                                  \
        __VA_ARGS__                                                                                                    \
    }

static uint64_t seed;

static void begin(bw_onnx_builder *b)
{
    seed = 100;
    bw_ob_begin(b, 13);
    bw_ob_input(b, "x", 1, 4, DIMS(-1, 4, 6, 6));
}

static void weights(bw_onnx_builder *b, const char *name, int rank, const int64_t *dims)
{
    float v[4096];
    size_t n = 1;
    for (int i = 0; i < rank; i++)
        n *= (size_t)dims[i];
    assert_true(n <= 4096);
    bw_test_random(v, n, seed++);
    bw_ob_floats(b, name, rank, dims, v);
}

/* Four vectors NAME.s, .b, .m, .v with a positive variance, and the node. */
static void batchnorm(bw_onnx_builder *b, const char *name, int64_t channels, const char *in, const char *out)
{
    char text[5][32], inputs[160];
    float v[64];
    static const char *const suffix[] = {"s", "b", "m", "v"};
    for (int k = 0; k < 4; k++) {
        snprintf(text[k], sizeof text[k], "%s.%s", name, suffix[k]);
        bw_test_random(v, (size_t)channels, seed++);
        for (int i = 0; i < channels && k == 3; i++)
            v[i] = fabsf(v[i]) + 0.1f;
        bw_ob_floats(b, text[k], 1, &channels, v);
    }
    snprintf(inputs, sizeof inputs, "%s,%s,%s,%s,%s", in, text[0], text[1], text[2], text[3]);
    bw_ob_node(b, "BatchNormalization", name, inputs, out);
    bw_ob_attr_float(b, "epsilon", 1e-3f);
}

static void conv(bw_onnx_builder *b, const char *name, int64_t out, int64_t in, int64_t k, int64_t group,
                 const char *from, const char *to)
{
    char w[32], inputs[80];
    snprintf(w, sizeof w, "%s.w", name);
    weights(b, w, 4, DIMS(out, in / group, k, k));
    snprintf(inputs, sizeof inputs, "%s,%s", from, w);
    bw_ob_node(b, "Conv", name, inputs, to);
    bw_ob_attr_int(b, "group", group);
    bw_ob_attr_ints(b, "pads", 4, DIMS(k / 2, k / 2, k / 2, k / 2));
}

/* Imports twice, runs the passes on one, compares; returns that one. */
static bw_graph *passed(bw_onnx_builder *b, double tolerance)
{
    bw_graph *before = NULL, *after = NULL;
    bw_error err = {0};
    bw_ob_output(b, "y");
    bw_ob_end(b);
    if (bw_onnx_import_bytes(b->model.bytes, b->model.size, NULL, 0, &before, NULL, &err) ||
        bw_onnx_import_bytes(b->model.bytes, b->model.size, NULL, 0, &after, NULL, &err))
        fail_msg("import: %s", err.message);
    if (bw_passes_run(after, &err))
        fail_msg("passes: %s", err.message);
    assert_string_equal(after->values[after->outputs[0]].name, "y");
    assert_string_equal(after->values[after->inputs[0]].name, "x");
    bw_test_same_function(after, before, 3, tolerance);
    bw_graph_free(before);
    bw_ob_free(b);
    return after;
}

static void expect_ops(bw_graph *g, const char *const *ops)
{
    int i = 0;
    for (; ops[i] && i < g->node_count; i++)
        assert_string_equal(g->nodes[i].op, ops[i]);
    assert_null(ops[i]);
    assert_int_equal(g->node_count, i);
}
#define EXPECT(g, ...)                                                                                                 \
    do {                                                                                                               \
        bw_graph *expected_ = (g);                                                                                     \
        expect_ops(expected_, (const char *const[]){__VA_ARGS__, NULL});                                               \
        bw_graph_free(expected_);                                                                                      \
    } while (0)

static void test_batchnorm_into_conv(void **state)
{
    (void)state;
    bw_onnx_builder b;
    begin(&b);
    conv(&b, "c", 8, 4, 3, 1, "x", "a");
    batchnorm(&b, "bn", 8, "a", "n");
    bw_ob_node(&b, "Relu", "r", "n", "y");
    bw_graph *g = passed(&b, 1e-4);
    assert_int_equal(g->nodes[0].input_count, 3);
    /* Nothing is left of the normalisation's constants or the first weights. */
    assert_int_equal(g->value_count, 5);
    EXPECT(g, "Conv", "Relu");
}

/* The formula itself, in double, rounded once. */
static void test_batchnorm_formula(void **state)
{
    (void)state;
    bw_onnx_builder b;
    float w[2] = {0.3f, -1.7f}, bias[2] = {0.25f, 3}, s[2] = {1.1f, 0.9f}, t[2] = {0.7f, -0.1f}, m[2] = {0.05f, -2},
          v[2] = {0.9f, 0.003f}, epsilon = 1e-3f;
    bw_ob_begin(&b, 13);
    bw_ob_input(&b, "x", 1, 4, DIMS(-1, 1, 2, 2));
    bw_ob_floats(&b, "w", 4, DIMS(2, 1, 1, 1), w);
    bw_ob_floats(&b, "bias", 1, DIMS(2), bias);
    bw_ob_floats(&b, "s", 1, DIMS(2), s);
    bw_ob_floats(&b, "t", 1, DIMS(2), t);
    bw_ob_floats(&b, "m", 1, DIMS(2), m);
    bw_ob_floats(&b, "v", 1, DIMS(2), v);
    bw_ob_node(&b, "Conv", "c", "x,w,bias", "a");
    bw_ob_node(&b, "BatchNormalization", "bn", "a,s,t,m,v", "y");
    bw_ob_attr_float(&b, "epsilon", epsilon);
    bw_graph *g = passed(&b, 1e-4);
    const float *fw = g->values[g->nodes[0].inputs[1]].constant->data;
    const float *fb = g->values[g->nodes[0].inputs[2]].constant->data;
    for (int i = 0; i < 2; i++) {
        double scale = s[i] / sqrt((double)v[i] + epsilon);
        assert_true(fw[i] == (float)(w[i] * scale));
        assert_true(fb[i] == (float)(bias[i] * scale + (t[i] - m[i] * scale)));
    }
    bw_graph_free(g);
}

static void test_depthwise_and_grouped(void **state)
{
    (void)state;
    bw_onnx_builder b;
    begin(&b);
    conv(&b, "dw", 4, 4, 3, 4, "x", "a");
    batchnorm(&b, "bn1", 4, "a", "n");
    conv(&b, "g", 6, 4, 1, 2, "n", "c");
    batchnorm(&b, "bn2", 6, "c", "y");
    EXPECT(passed(&b, 1e-4), "Conv", "Conv");
}

/* Conv -> BN -> Mul -> Add, constants of every shape that broadcasts per channel; Sub and Div too. */
static void test_scale_and_shift_into_conv(void **state)
{
    (void)state;
    bw_onnx_builder b;
    begin(&b);
    weights(&b, "k1", 3, DIMS(8, 1, 1));
    weights(&b, "k2", 4, DIMS(1, 8, 1, 1));
    bw_ob_raw(&b, "k3", 1, 0, NULL, &(float){0.75f}, 4);
    bw_ob_floats(&b, "k4", 1, DIMS(1), &(float){1.5f});
    conv(&b, "c", 8, 4, 3, 1, "x", "a");
    batchnorm(&b, "bn", 8, "a", "n");
    bw_ob_node(&b, "Mul", "m", "k1,n", "p");
    bw_ob_node(&b, "Add", "s", "p,k2", "q");
    bw_ob_node(&b, "Sub", "t", "q,k3", "r");
    bw_ob_node(&b, "Div", "d", "r,k4", "y");
    EXPECT(passed(&b, 1e-4), "Conv");
}

/* A convolution with two readers is not touched: the normalisation becomes Mul and Add. */
static void test_shared_conv_is_not_folded(void **state)
{
    (void)state;
    bw_onnx_builder b;
    begin(&b);
    conv(&b, "c", 4, 4, 3, 1, "x", "a");
    batchnorm(&b, "bn", 4, "a", "n");
    bw_ob_node(&b, "Add", "sum", "a,n", "y");
    EXPECT(passed(&b, 1e-4), "Conv", "Mul", "Add", "Add");
    /* Shared as a graph output. */
    begin(&b);
    conv(&b, "c", 4, 4, 3, 1, "x", "a");
    batchnorm(&b, "bn", 4, "a", "y");
    bw_ob_output(&b, "a");
    bw_graph *g = NULL;
    bw_error err;
    bw_ob_output(&b, "y");
    bw_ob_end(&b);
    assert_int_equal(bw_onnx_import_bytes(b.model.bytes, b.model.size, NULL, 0, &g, NULL, &err), BW_OK);
    assert_int_equal(bw_passes_run(g, &err), BW_OK);
    EXPECT(g, "Conv", "Mul", "Add");
    bw_ob_free(&b);
}

/* Two convolutions share their weights: scaling one must not scale the other. */
static void test_shared_weights_are_copied(void **state)
{
    (void)state;
    bw_onnx_builder b;
    begin(&b);
    weights(&b, "w", 4, DIMS(4, 4, 3, 3));
    bw_ob_node(&b, "Conv", "one", "x,w", "a");
    batchnorm(&b, "bn", 4, "a", "n");
    bw_ob_node(&b, "Conv", "two", "x,w", "c");
    bw_ob_node(&b, "Add", "sum", "n,c", "y");
    EXPECT(passed(&b, 1e-4), "Conv", "Conv", "Add");
}

/* DenseNet: BN -> Mul -> Add before the convolution become one Mul and one Add. */
static void test_batchnorm_before_conv(void **state)
{
    (void)state;
    bw_onnx_builder b;
    begin(&b);
    weights(&b, "k1", 3, DIMS(4, 1, 1));
    weights(&b, "k2", 3, DIMS(4, 1, 1));
    batchnorm(&b, "bn", 4, "x", "n");
    bw_ob_node(&b, "Mul", "m", "n,k1", "p");
    bw_ob_node(&b, "Add", "s", "p,k2", "q");
    bw_ob_node(&b, "Relu", "r", "q", "z");
    conv(&b, "c", 8, 4, 1, 1, "z", "y");
    bw_graph *g = passed(&b, 1e-4);
    for (int i = 0; i < 2; i++) {
        const bw_value *k = &g->values[g->nodes[i].inputs[1]];
        assert_non_null(k->constant);
        assert_true(k->rank == 3 && k->dims[0] == 4 && k->dims[1] == 1 && k->dims[2] == 1);
    }
    EXPECT(g, "Mul", "Add", "Relu", "Conv");
}

static void test_matmul_and_gemm(void **state)
{
    (void)state;
    bw_onnx_builder b;
    begin(&b);
    weights(&b, "w1", 2, DIMS(144, 10));
    weights(&b, "b1", 1, DIMS(10));
    weights(&b, "w2", 2, DIMS(10, 7));
    weights(&b, "b2", 2, DIMS(1, 7));
    weights(&b, "w3", 2, DIMS(5, 7));
    bw_ob_floats(&b, "b3", 1, DIMS(1), &(float){0.5f});
    bw_ob_node(&b, "Flatten", "f", "x", "flat");
    bw_ob_node(&b, "MatMul", "m1", "flat,w1", "a");
    bw_ob_node(&b, "Add", "a1", "b1,a", "c");
    bw_ob_node(&b, "Gemm", "m2", "c,w2,b2", "d");
    bw_ob_attr_float(&b, "alpha", 0.5f);
    bw_ob_attr_float(&b, "beta", 2.0f);
    batchnorm(&b, "bn", 7, "d", "e");
    bw_ob_node(&b, "Gemm", "m3", "e,w3,b3", "y");
    bw_ob_attr_int(&b, "transB", 1);
    bw_graph *g = passed(&b, 1e-4);
    for (int i = 1; i < 4; i++) {
        const bw_node *n = &g->nodes[i];
        assert_int_equal(n->input_count, 3);
        assert_int_equal(bw_node_int(n, "transB", 0), 1);
        assert_true(bw_node_float(n, "alpha", 9) == 1 && bw_node_float(n, "beta", 9) == 1);
        assert_int_equal(g->values[n->inputs[2]].rank, 1);
    }
    EXPECT(g, "Flatten", "Gemm", "Gemm", "Gemm");
}

/* No-ops go; an output keeps its name, an input that is an output keeps its node. */
static void test_noops(void **state)
{
    (void)state;
    bw_onnx_builder b;
    begin(&b);
    bw_ob_ints(&b, "same", 4, DIMS(0, 4, 6, 6));
    bw_ob_ints(&b, "none", 8, DIMS(0, 0, 0, 0, 0, 0, 0, 0));
    bw_ob_node(&b, "Identity", "i", "x", "a");
    bw_ob_node(&b, "Reshape", "rs", "a,same", "c");
    bw_ob_node(&b, "Transpose", "t", "c", "d");
    bw_ob_attr_ints(&b, "perm", 4, DIMS(0, 1, 2, 3));
    bw_ob_node(&b, "Pad", "p", "d,none", "e");
    bw_ob_node(&b, "Relu", "r", "e", "f");
    bw_ob_node(&b, "Cast", "k", "f", "g");
    bw_ob_attr_int(&b, "to", 1);
    bw_ob_node(&b, "Concat", "cc", "g", "h");
    bw_ob_attr_int(&b, "axis", 1);
    bw_ob_node(&b, "Dropout", "dr", "h", "y");
    EXPECT(passed(&b, 0), "Relu");
    /* The producer of an output is read by others too. */
    begin(&b);
    bw_ob_node(&b, "Relu", "r", "x", "a");
    bw_ob_node(&b, "Tanh", "t", "a", "c");
    bw_ob_node(&b, "Identity", "i", "a", "y");
    bw_ob_node(&b, "Sigmoid", "s", "y", "d");
    bw_ob_node(&b, "Add", "sum", "c,d", "z");
    bw_ob_output(&b, "z");
    bw_graph *g = NULL;
    bw_error err = {0};
    bw_ob_output(&b, "y");
    bw_ob_end(&b);
    assert_int_equal(bw_onnx_import_bytes(b.model.bytes, b.model.size, NULL, 0, &g, NULL, &err), BW_OK);
    if (bw_passes_run(g, &err))
        fail_msg("%s", err.message);
    assert_int_equal(g->node_count, 4);
    assert_string_equal(g->values[g->outputs[1]].name, "y");
    bw_graph_free(g);
    bw_ob_free(&b);
    begin(&b);
    bw_ob_node(&b, "Identity", "i", "x", "y");
    EXPECT(passed(&b, 0), "Identity");
}

static void test_sum(void **state)
{
    (void)state;
    bw_onnx_builder b;
    begin(&b);
    bw_ob_node(&b, "Relu", "r", "x", "a");
    bw_ob_node(&b, "Tanh", "t", "x", "c");
    bw_ob_node(&b, "Sum", "s", "a,c,x", "y");
    EXPECT(passed(&b, 0), "Relu", "Tanh", "Add", "Add");
}

static void test_mean(void **state)
{
    (void)state;
    for (int keep = 0; keep < 2; keep++) {
        bw_onnx_builder b;
        begin(&b);
        bw_ob_node(&b, "ReduceMean", "m", "x", "y");
        bw_ob_attr_ints(&b, "axes", 2, DIMS(-1, 2));
        bw_ob_attr_int(&b, "keepdims", keep);
        bw_graph *g = passed(&b, 1e-5);
        if (keep)
            EXPECT(g, "GlobalAveragePool");
        else
            EXPECT(g, "GlobalAveragePool", "Flatten");
    }
    bw_onnx_builder b;
    begin(&b);
    bw_ob_node(&b, "ReduceMean", "m", "x", "y");
    bw_ob_attr_ints(&b, "axes", 2, DIMS(1, 2));
    EXPECT(passed(&b, 0), "ReduceMean");
}

static void padded(bw_onnx_builder *b, const char *before, float value, const char *op)
{
    begin(b);
    bw_ob_ints(b, "pads", 8, DIMS(0, 0, 1, 0, 0, 0, 2, 1));
    bw_ob_raw(b, "value", 1, 0, NULL, &value, 4);
    bw_ob_node(b, before, "b", "x", "a");
    bw_ob_node(b, "Pad", "p", "a,pads,value", "c");
    if (strcmp(op, "Conv")) {
        bw_ob_node(b, op, "n", "c", "y");
        bw_ob_attr_ints(b, "kernel_shape", 2, DIMS(3, 3));
        bw_ob_attr_ints(b, "strides", 2, DIMS(2, 1));
    } else {
        weights(b, "w", 4, DIMS(8, 4, 3, 3));
        bw_ob_node(b, "Conv", "n", "c,w", "y");
        bw_ob_attr_ints(b, "pads", 4, DIMS(1, 0, 0, 1));
    }
}

static void test_pad(void **state)
{
    (void)state;
    bw_onnx_builder b;
    int64_t pads[4];
    padded(&b, "Tanh", 0, "Conv");
    bw_graph *g = passed(&b, 1e-5);
    assert_int_equal(bw_node_ints(&g->nodes[1], "pads", pads, 4), 4);
    assert_true(pads[0] == 2 && pads[1] == 0 && pads[2] == 2 && pads[3] == 2);
    EXPECT(g, "Tanh", "Conv");
    padded(&b, "Tanh", 1, "Conv");
    EXPECT(passed(&b, 0), "Tanh", "Pad", "Conv");
    padded(&b, "Relu", 0, "MaxPool");
    EXPECT(passed(&b, 0), "Relu", "MaxPool");
    padded(&b, "Tanh", 0, "MaxPool"); /* values below zero: the padding would win */
    EXPECT(passed(&b, 0), "Tanh", "Pad", "MaxPool");
    padded(&b, "Tanh", -FLT_MAX, "MaxPool");
    EXPECT(passed(&b, 0), "Tanh", "MaxPool");
    padded(&b, "Tanh", 0, "AveragePool");
    g = passed(&b, 1e-5);
    assert_int_equal(bw_node_int(&g->nodes[1], "count_include_pad", 0), 1);
    EXPECT(g, "Tanh", "AveragePool");
}

/* ResNet's option A shortcut stays a Slice and a Pad with constant attributes. */
static void test_channel_pad_stays(void **state)
{
    (void)state;
    bw_onnx_builder b;
    begin(&b);
    bw_ob_ints(&b, "s", 2, DIMS(0, 0));
    bw_ob_ints(&b, "e", 2, DIMS(INT64_MAX, INT64_MAX));
    bw_ob_ints(&b, "a", 2, DIMS(2, 3));
    bw_ob_ints(&b, "t", 2, DIMS(2, 2));
    bw_ob_ints(&b, "pads", 8, DIMS(0, 2, 0, 0, 0, 2, 0, 0));
    bw_ob_node(&b, "Slice", "half", "x,s,e,a,t", "h");
    bw_ob_node(&b, "Pad", "more", "h,pads", "p");
    bw_ob_node(&b, "Relu", "r", "p", "y");
    bw_graph *g = passed(&b, 0);
    int64_t v[8];
    assert_int_equal(bw_node_ints(&g->nodes[0], "steps", v, 8), 2);
    assert_int_equal(bw_node_ints(&g->nodes[1], "pads", v, 8), 8);
    EXPECT(g, "Slice", "Pad", "Relu");
}

static void test_channel_shuffle(void **state)
{
    (void)state;
    bw_onnx_builder b;
    bw_ob_begin(&b, 13);
    bw_ob_input(&b, "x", 1, 4, DIMS(-1, 12, 5, 5));
    bw_ob_ints(&b, "split", 5, DIMS(-1, 3, 4, 5, 5));
    bw_ob_ints(&b, "join", 4, DIMS(-1, 12, 5, 5));
    bw_ob_node(&b, "Relu", "r", "x", "a");
    bw_ob_node(&b, "Reshape", "one", "a,split", "c");
    bw_ob_node(&b, "Transpose", "two", "c", "d");
    bw_ob_attr_ints(&b, "perm", 5, DIMS(0, 2, 1, 3, 4));
    bw_ob_node(&b, "Reshape", "three", "d,join", "y");
    bw_graph *g = passed(&b, 0);
    int groups = 0, last = -1;
    assert_int_equal(bw_match_channel_shuffle(g, 0, &groups, &last), 0);
    assert_int_equal(bw_match_channel_shuffle(g, 1, &groups, &last), 1);
    assert_int_equal(groups, 3);
    assert_int_equal(last, 3);
    /* The formula of the header, on numbers. */
    bw_array in, out;
    bw_error err;
    assert_int_equal(bw_array_alloc(&in, BW_F32, 4, DIMS(1, 12, 5, 5), &err), BW_OK);
    for (int i = 0; i < 300; i++)
        ((float *)in.data)[i] = (float)i;
    bw_test_run_on(g, &in, &out);
    for (int c = 0; c < 12; c++)
        assert_true(((float *)out.data)[c * 25] == (float)(25 * ((c % groups) * (12 / groups) + c / groups)));
    bw_array_free(&in);
    bw_array_free(&out);
    EXPECT(g, "Relu", "Reshape", "Transpose", "Reshape");
}

static void test_damaged_normalisation(void **state)
{
    (void)state;
    for (int kind = 0; kind < 2; kind++) {
        bw_onnx_builder b;
        float one[4] = {1, 1, 1, 1}, huge[4] = {1, 3e38f, 1, 1}, variance[4] = {1, 1e-12f, 1, 1};
        if (kind)
            variance[2] = -1;
        begin(&b);
        conv(&b, "c", 4, 4, 3, 1, "x", "a");
        bw_ob_floats(&b, "s", 1, DIMS(4), kind ? one : huge);
        bw_ob_floats(&b, "o", 1, DIMS(4), one);
        bw_ob_floats(&b, "v", 1, DIMS(4), variance);
        bw_ob_node(&b, "BatchNormalization", "bn", "a,s,o,o,v", "y");
        bw_ob_attr_float(&b, "epsilon", 1e-12f);
        bw_ob_output(&b, "y");
        bw_ob_end(&b);
        bw_graph *g = NULL;
        bw_error err;
        assert_int_equal(bw_onnx_import_bytes(b.model.bytes, b.model.size, NULL, 0, &g, NULL, &err), BW_OK);
        assert_int_equal(bw_passes_run(g, &err), BW_NOT_FINITE);
        assert_non_null(strstr(err.message, kind ? "'bn'" : "'c"));
        bw_graph_free(g);
        bw_ob_free(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batchnorm_into_conv),
        cmocka_unit_test(test_batchnorm_formula),
        cmocka_unit_test(test_depthwise_and_grouped),
        cmocka_unit_test(test_scale_and_shift_into_conv),
        cmocka_unit_test(test_shared_conv_is_not_folded),
        cmocka_unit_test(test_shared_weights_are_copied),
        cmocka_unit_test(test_batchnorm_before_conv),
        cmocka_unit_test(test_matmul_and_gemm),
        cmocka_unit_test(test_noops),
        cmocka_unit_test(test_sum),
        cmocka_unit_test(test_mean),
        cmocka_unit_test(test_pad),
        cmocka_unit_test(test_channel_pad_stays),
        cmocka_unit_test(test_channel_shuffle),
        cmocka_unit_test(test_damaged_normalisation),
    };
    return cmocka_run_group_tests_name("passes", tests, NULL, NULL);
}
