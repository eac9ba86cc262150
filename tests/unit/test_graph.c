/* SPDX-License-Identifier: Apache-2.0 */
/* The float graph: building, ordering, folding, serialisation, execution. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "host/graph.h"

#define D(...)                                                                                                         \
    (int64_t[])                                                                                                        \
    {                                                                                                                  \
        __VA_ARGS__                                                                                                    \
    }
#define I(...)                                                                                                         \
    (int[])                                                                                                            \
    {                                                                                                                  \
        __VA_ARGS__                                                                                                    \
    }

static int add_const(bw_graph *g, const char *name, bw_dtype dtype, int rank, const int64_t *dims, const void *values)
{
    bw_array a;
    assert_int_equal(bw_array_alloc(&a, dtype, rank, dims, NULL), BW_OK);
    memcpy(a.data, values, a.bytes);
    int id = bw_graph_add_constant(g, name, &a);
    assert_true(id >= 0);
    return id;
}

static int add_random(bw_graph *g, const char *name, int rank, const int64_t *dims, uint32_t seed)
{
    bw_array a;
    assert_int_equal(bw_array_alloc(&a, BW_F32, rank, dims, NULL), BW_OK);
    for (int64_t i = 0; i < bw_array_count(&a); i++) {
        seed = seed * 1664525u + 1013904223u;
        ((float *)a.data)[i] = (float)(int32_t)seed / 4294967296.0f;
    }
    return bw_graph_add_constant(g, name, &a);
}

static int add_op(bw_graph *g, const char *op, const char *out, const int *in, int count)
{
    int y = bw_graph_add_value(g, out, BW_DTYPE_NONE, -1, NULL);
    assert_true(bw_graph_add_node(g, op, out, in, count, &y, 1) >= 0);
    return y;
}

static bw_node *last(bw_graph *g)
{
    return &g->nodes[g->node_count - 1];
}

static void ok(bw_status status, const bw_error *err)
{
    if (status)
        fail_msg("%s: %s", bw_status_name(status), err->message);
}

/* A residual block with everything that has its own layout: conv, relu, conv, add, pool, flatten, gemm, softmax. */
static bw_graph *small_net(void)
{
    bw_graph *g = bw_graph_new("net");
    int x = bw_graph_add_value(g, "x", BW_F32, 4, D(-1, 3, 8, 8));
    int w0 = add_random(g, "w0", 4, D(20, 3, 3, 3), 1), b0 = add_random(g, "b0", 1, D(20), 2);
    int c0 = add_op(g, "Conv", "c0", I(x, w0, b0), 3);
    bw_node_set_ints(last(g), "pads", D(1, 1, 1, 1), 4);
    int r0 = add_op(g, "Relu", "r0", I(c0), 1);
    int w1 = add_random(g, "w1", 4, D(20, 20, 3, 3), 3);
    int c1 = add_op(g, "Conv", "c1", I(r0, w1), 2);
    bw_node_set_ints(last(g), "pads", D(1, 1, 1, 1), 4);
    int s = add_op(g, "Add", "s", I(c1, r0), 2);
    int p = add_op(g, "MaxPool", "p", I(s), 1);
    bw_node_set_ints(last(g), "kernel_shape", D(2, 2), 2);
    bw_node_set_ints(last(g), "strides", D(2, 2), 2);
    int a = add_op(g, "GlobalAveragePool", "a", I(p), 1);
    int f = add_op(g, "Flatten", "f", I(a), 1);
    int w2 = add_random(g, "w2", 2, D(20, 5), 4);
    int m = add_op(g, "Gemm", "m", I(f, w2), 2);
    int y = add_op(g, "Softmax", "y", I(m), 1);
    assert_int_equal(bw_graph_set_inputs(g, &x, 1), BW_OK);
    assert_int_equal(bw_graph_set_outputs(g, &y, 1), BW_OK);
    return g;
}

static bw_array picture(int64_t n)
{
    bw_array a;
    assert_int_equal(bw_array_alloc(&a, BW_F32, 4, D(n, 3, 8, 8), NULL), BW_OK);
    for (int64_t i = 0; i < bw_array_count(&a); i++)
        ((float *)a.data)[i] = (float)((i * 37 + 11) % 101) / 50 - 1;
    return a;
}

/* --- structure ------------------------------------------------------------------------------------------------------
 */

static void sort_orders_and_drops(void **state)
{
    (void)state;
    bw_error err;
    bw_graph *g = bw_graph_new("g");
    int v[4];
    for (int i = 0; i < 4; i++)
        v[i] = bw_graph_add_value(g, (char[]){(char)('a' + i), 0}, BW_F32, 1, D(3));
    bw_graph_add_node(g, "Abs", "second", &v[1], 1, &v[2], 1);
    bw_graph_add_node(g, "Neg", "first", &v[0], 1, &v[1], 1);
    bw_graph_add_node(g, "Exp", "nobody's", &v[1], 1, &v[3], 1);
    bw_graph_set_inputs(g, v, 1);
    bw_graph_set_outputs(g, &v[2], 1);
    ok(bw_graph_sort(g, &err), &err);
    assert_int_equal(g->node_count, 2);
    assert_string_equal(g->nodes[0].name, "first");
    assert_string_equal(g->nodes[1].name, "second");
    assert_int_equal(g->values[v[2]].producer, 1);
    assert_int_equal(g->values[v[3]].producer, -1);
    assert_int_equal(bw_graph_use_count(g, v[1]), 1);
    assert_int_equal(bw_graph_use_count(g, v[2]), 1);
    bw_graph_free(g);
}

static void sort_names_cycles(void **state)
{
    (void)state;
    bw_error err;
    bw_graph *g = bw_graph_new("g");
    int a = bw_graph_add_value(g, "a", BW_F32, 1, D(3)), b = bw_graph_add_value(g, "b", BW_F32, 1, D(3));
    bw_graph_add_node(g, "Neg", "n0", &a, 1, &b, 1);
    bw_graph_add_node(g, "Neg", "n1", &b, 1, &a, 1);
    bw_graph_set_outputs(g, &b, 1);
    assert_int_equal(bw_graph_sort(g, &err), BW_CORRUPT);
    assert_non_null(strstr(err.message, "cycle"));
    bw_graph_remove_node(g, 1);
    assert_int_equal(bw_graph_sort(g, &err), BW_CORRUPT);
    assert_non_null(strstr(err.message, "'a'"));
    bw_graph_set_inputs(g, &a, 1);
    ok(bw_graph_sort(g, &err), &err);
    bw_graph_add_node(g, "Abs", "n2", &a, 1, &b, 1);
    assert_int_equal(bw_graph_sort(g, &err), BW_CORRUPT);
    bw_graph_free(g);
}

static void fresh_names_are_fresh(void **state)
{
    (void)state;
    bw_graph *g = bw_graph_new("g");
    bw_graph_add_value(g, "x", BW_F32, 0, NULL);
    int anonymous = bw_graph_add_value(g, "", BW_F32, 0, NULL);
    assert_true(*g->values[anonymous].name != 0);
    char *a = bw_graph_fresh_name(g, "x"), *b = bw_graph_fresh_name(g, "y");
    assert_int_equal(bw_graph_find_value(g, a), -1);
    assert_string_equal(b, "y");
    free(a);
    free(b);
    assert_int_equal(bw_graph_add_value(g, "z", BW_F32, BW_RANK_MAX + 1, NULL), -1);
    assert_int_equal(bw_graph_add_node(g, "Neg", "n", I(99), 1, I(0), 1), -1);
    bw_graph_free(g);
}

static void arrays_check_their_size(void **state)
{
    (void)state;
    bw_array a;
    bw_error err;
    assert_int_equal(bw_array_alloc(&a, BW_F32, 2, D(INT64_MAX, 4), &err), BW_OUT_OF_RANGE);
    assert_int_equal(bw_array_alloc(&a, BW_F32, 2, D(3, -1), &err), BW_INVALID_ARGUMENT);
    assert_int_equal(bw_array_alloc(&a, BW_BYTES, 1, D(3), &err), BW_INVALID_ARGUMENT);
    assert_int_equal(bw_array_alloc(&a, BW_F32, 2, D(3, 0), &err), BW_OK);
    assert_int_equal(a.bytes, 0);
    bw_array_free(&a);
    bw_array_free(&a);
    bw_array_free(NULL);
}

static void attributes_are_replaced(void **state)
{
    (void)state;
    bw_graph *g = bw_graph_new("g");
    int v = bw_graph_add_value(g, "v", BW_F32, 0, NULL);
    bw_graph_add_node(g, "Neg", NULL, &v, 1, &v, 1);
    bw_node *n = &g->nodes[0];
    assert_true(*n->name != 0);
    bw_node_set_ints(n, "a", D(1, 2, 3), 3);
    bw_node_set_string(n, "a", "text");
    assert_int_equal(n->attr_count, 1);
    assert_string_equal(bw_node_string(n, "a", ""), "text");
    assert_int_equal(bw_node_int(n, "a", 7), 7);
    bw_node_set_string(n, "a", bw_node_string(n, "a", ""));
    assert_string_equal(bw_node_string(n, "a", ""), "text");
    bw_node_set_float(n, "b", 0.5f);
    assert_true(bw_node_float(n, "b", 0) == 0.5f);
    int64_t out[2];
    bw_node_set_ints(n, "c", D(1, 2, 3), 3);
    assert_int_equal(bw_node_ints(n, "c", out, 2), 3);
    assert_int_equal(out[1], 2);
    bw_graph_free(g);
}

/* --- inference and folding ---------------------------------------------------------------------------------------- */

static void batch_is_carried(void **state)
{
    (void)state;
    bw_error err;
    bw_graph *g = small_net();
    ok(bw_graph_infer_shapes(g, &err), &err);
    const bw_value *y = &g->values[g->outputs[0]], *s = &g->values[bw_graph_find_value(g, "s")];
    assert_int_equal(y->rank, 2);
    assert_int_equal(y->dims[0], -1);
    assert_int_equal(y->dims[1], 5);
    assert_int_equal(s->dims[0], -1);
    assert_int_equal(s->dims[1], 20);
    assert_int_equal(s->dims[3], 8);
    bw_graph_free(g);
}

/* What exporters write for x.view(x.size(0), -1) and for computed pads: the batch stays open, the rest folds. */
static void shape_arithmetic_folds(void **state)
{
    (void)state;
    bw_error err;
    bw_graph *g = bw_graph_new("g");
    int x = bw_graph_add_value(g, "x", BW_F32, 4, D(-1, 4, 6, 5));
    int zero = add_const(g, "zero", BW_I64, 0, NULL, D(0)), one = add_const(g, "one", BW_I64, 0, NULL, D(1));
    int minus = add_const(g, "minus", BW_I64, 1, D(1), D(-1));
    int shape = add_op(g, "Shape", "shape", &x, 1);
    int batch = add_op(g, "Gather", "batch", I(shape, zero), 2);
    int batch1 = add_op(g, "Unsqueeze", "batch1", &batch, 1);
    bw_node_set_ints(last(g), "axes", D(0), 1);
    int target = add_op(g, "Concat", "target", I(batch1, minus), 2);
    bw_node_set_int(last(g), "axis", 0);
    int flat = add_op(g, "Reshape", "flat", I(x, target), 2);
    /* channels * 2 - 3 = 5 columns of ones, from the known part of the shape */
    int channels = add_op(g, "Gather", "channels", I(shape, one), 2);
    int two = add_const(g, "two", BW_I64, 0, NULL, D(2)), three = add_const(g, "three", BW_I64, 0, NULL, D(3));
    int twice = add_op(g, "Mul", "twice", I(channels, two), 2);
    int five = add_op(g, "Sub", "five", I(twice, three), 2);
    int five1 = add_op(g, "Unsqueeze", "five1", &five, 1);
    bw_node_set_ints(last(g), "axes", D(0), 1);
    int ones = add_op(g, "ConstantOfShape", "ones", &five1, 1);
    bw_graph_set_inputs(g, &x, 1);
    bw_graph_set_outputs(g, I(flat, ones), 2);
    ok(bw_graph_infer_shapes(g, &err), &err);
    assert_int_equal(g->values[flat].dims[0], -1);
    assert_int_equal(g->values[ones].dims[0], 5);
    ok(bw_graph_fold_constants(g, 1 << 20, &err), &err);
    assert_int_equal(g->node_count, 1); /* Reshape alone is left */
    assert_string_equal(g->nodes[0].op, "Reshape");
    assert_int_equal(g->nodes[0].input_count, 1);
    assert_non_null(g->values[ones].constant);
    assert_int_equal(g->values[flat].rank, 2);

    bw_executor *ex;
    bw_array in, out[2] = {{0}};
    ok(bw_executor_create(g, &ex, &err), &err);
    assert_int_equal(bw_array_alloc(&in, BW_F32, 4, D(3, 4, 6, 5), NULL), BW_OK);
    memset(in.data, 0, in.bytes);
    ok(bw_executor_run(ex, &in, out, NULL, NULL, &err), &err);
    assert_int_equal(out[0].dims[0], 3);
    assert_int_equal(out[0].dims[1], 120);
    assert_int_equal(out[1].dims[0], 5);
    for (int i = 0; i < 2; i++)
        bw_array_free(&out[i]);
    bw_array_free(&in);
    bw_executor_destroy(ex);
    bw_graph_free(g);
}

/* Arithmetic on a shape with an open batch: what the batch reaches stays open, and takes its value at run time. */
static void unknown_entries_stay_unknown(void **state)
{
    (void)state;
    bw_error err;
    bw_graph *g = bw_graph_new("g");
    int x = bw_graph_add_value(g, "x", BW_F32, 2, D(-1, 3));
    int two = add_const(g, "two", BW_I64, 1, D(1), D(2));
    int shape = add_op(g, "Shape", "shape", &x, 1);
    int twice = add_op(g, "Mul", "twice", I(shape, two), 2);
    int box = add_op(g, "ConstantOfShape", "box", &twice, 1);
    int wide = add_op(g, "Expand", "wide", I(two, shape), 2);
    bw_graph_set_inputs(g, &x, 1);
    bw_graph_set_outputs(g, I(box, wide), 2);
    for (int fold = 0; fold < 2; fold++) {
        ok(fold ? bw_graph_fold_constants(g, 1 << 20, &err) : bw_graph_infer_shapes(g, &err), &err);
        assert_int_equal(g->values[box].dims[0], -1);
        assert_int_equal(g->values[box].dims[1], 6);
        assert_int_equal(g->values[wide].dims[0], -1);
        assert_int_equal(g->values[wide].dims[1], 3);
        assert_null(g->values[twice].constant);
        bw_executor *ex;
        bw_array in, out[2] = {{0}};
        ok(bw_executor_create(g, &ex, &err), &err);
        assert_int_equal(bw_array_alloc(&in, BW_F32, 2, D(5, 3), NULL), BW_OK);
        memset(in.data, 0, in.bytes);
        ok(bw_executor_run(ex, &in, out, NULL, NULL, &err), &err);
        assert_int_equal(out[0].dims[0], 10);
        assert_int_equal(out[1].dims[0], 5);
        for (int i = 0; i < 2; i++)
            bw_array_free(&out[i]);
        bw_array_free(&in);
        bw_executor_destroy(ex);
    }
    bw_graph_free(g);
}

/* A batch of 1 is still a batch: Squeeze without axes leaves it alone once folded. */
static void squeeze_keeps_the_batch(void **state)
{
    (void)state;
    bw_error err;
    bw_graph *g = bw_graph_new("g");
    int x = bw_graph_add_value(g, "x", BW_F32, 4, D(-1, 3, 1, 1));
    int y = add_op(g, "Squeeze", "y", &x, 1);
    bw_graph_set_inputs(g, &x, 1);
    bw_graph_set_outputs(g, &y, 1);
    ok(bw_graph_fold_constants(g, 1 << 20, &err), &err);
    bw_executor *ex;
    bw_array in, out = {0};
    ok(bw_executor_create(g, &ex, &err), &err);
    assert_int_equal(bw_array_alloc(&in, BW_F32, 4, D(1, 3, 1, 1), NULL), BW_OK);
    memset(in.data, 0, in.bytes);
    ok(bw_executor_run(ex, &in, &out, NULL, NULL, &err), &err);
    assert_int_equal(out.rank, 2);
    bw_array_free(&out);
    bw_array_free(&in);
    bw_executor_destroy(ex);
    bw_graph_free(g);
}

static void folding_respects_the_limit(void **state)
{
    (void)state;
    bw_error err;
    bw_graph *g = bw_graph_new("g");
    int w = add_random(g, "w", 2, D(64, 64), 1), x = bw_graph_add_value(g, "x", BW_F32, 2, D(-1, 64));
    int t = add_op(g, "Transpose", "t", &w, 1);
    int y = add_op(g, "MatMul", "y", I(x, t), 2);
    bw_graph_set_inputs(g, &x, 1);
    bw_graph_set_outputs(g, &y, 1);
    ok(bw_graph_fold_constants(g, 64 * 64 * 4 - 1, &err), &err);
    assert_int_equal(g->node_count, 2);
    ok(bw_graph_fold_constants(g, 64 * 64 * 4, &err), &err);
    assert_int_equal(g->node_count, 1);
    const float *a = g->values[w].constant->data, *b = g->values[t].constant->data;
    assert_true(a[3 * 64 + 7] == b[7 * 64 + 3]);
    bw_graph_free(g);
}

static void unsupported_is_named(void **state)
{
    (void)state;
    bw_error err;
    bw_graph *g = bw_graph_new("g");
    int x = bw_graph_add_value(g, "x", BW_F32, 1, D(3));
    int y = add_op(g, "Frobnicate", "y", &x, 1);
    bw_graph_set_inputs(g, &x, 1);
    bw_graph_set_outputs(g, &y, 1);
    assert_int_equal(bw_graph_infer_shapes(g, &err), BW_UNSUPPORTED);
    assert_non_null(strstr(err.message, "Frobnicate"));
    bw_executor *ex;
    assert_int_equal(bw_executor_create(g, &ex, &err), BW_UNSUPPORTED);
    assert_null(ex);
    assert_false(bw_op_supported("Frobnicate"));
    assert_true(bw_op_supported("Conv"));
    bw_graph_free(g);
}

/* --- execution ---------------------------------------------------------------------------------------------------- */

typedef struct seen {
    int count, order[32];
    float first[32];
    int stop_at;
} seen;

static int watch(int value, const bw_array *a, void *user)
{
    seen *s = user;
    s->order[s->count] = value;
    s->first[s->count++] = ((const float *)a->data)[0];
    return s->count == s->stop_at;
}

static void runs_repeat_and_batches_agree(void **state)
{
    (void)state;
    bw_error err;
    bw_graph *g = small_net();
    bw_executor *ex;
    ok(bw_executor_create(g, &ex, &err), &err);
    bw_array in = picture(6), out = {0}, again = {0};
    ok(bw_executor_run(ex, &in, &out, NULL, NULL, &err), &err);
    assert_int_equal(out.dims[0], 6);
    for (int64_t n = 0; n < 6; n++) { /* one by one, and each twice */
        bw_array one = in;
        one.owned = 0;
        one.dims[0] = 1;
        one.bytes = 3 * 64 * 4;
        one.data = (float *)in.data + n * 3 * 64;
        for (int k = 0; k < 2; k++) {
            ok(bw_executor_run(ex, &one, &again, NULL, NULL, &err), &err);
            assert_memory_equal(again.data, (float *)out.data + n * 5, 5 * sizeof(float));
            bw_array_free(&again);
        }
    }
    seen s = {0}; /* observing does not change the result, and shows every value in order */
    ok(bw_executor_run(ex, &in, &again, watch, &s, &err), &err);
    assert_int_equal(s.count, g->node_count);
    for (int i = 0; i < s.count; i++)
        assert_int_equal(s.order[i], g->nodes[i].outputs[0]);
    assert_memory_equal(again.data, out.data, out.bytes);
    bw_array_free(&again);
    memset(&again, 0, sizeof again);
    s = (seen){.stop_at = 3};
    assert_int_equal(bw_executor_run(ex, &in, &again, watch, &s, &err), BW_CANCELLED);
    assert_null(again.data);
    ok(bw_executor_run(ex, &in, &again, NULL, NULL, &err), &err);
    bw_array_free(&again);
    bw_array_free(&out);
    bw_array_free(&in);
    bw_executor_destroy(ex);
    bw_graph_free(g);
}

static void inputs_are_checked(void **state)
{
    (void)state;
    bw_error err;
    bw_graph *g = small_net();
    bw_executor *ex;
    ok(bw_executor_create(g, &ex, &err), &err);
    bw_array in = picture(2), out = {0}, bad;
    bad = in;
    bad.dims[1] = 4;
    assert_int_equal(bw_executor_run(ex, &bad, &out, NULL, NULL, &err), BW_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "'x'"));
    bad = in;
    bad.rank = 3;
    assert_int_equal(bw_executor_run(ex, &bad, &out, NULL, NULL, &err), BW_INVALID_ARGUMENT);
    bad = in;
    bad.dtype = BW_I32;
    assert_int_equal(bw_executor_run(ex, &bad, &out, NULL, NULL, &err), BW_INVALID_ARGUMENT);
    bad = in;
    bad.bytes -= 4;
    assert_int_equal(bw_executor_run(ex, &bad, &out, NULL, NULL, &err), BW_INVALID_ARGUMENT);
    bad = in;
    bad.dims[0] = 0;
    ok(bw_executor_run(ex, &bad, &out, NULL, NULL, &err), &err);
    assert_int_equal(out.dims[0], 0);
    bw_array_free(&out);
    bw_executor_set_memory_limit(ex, 10000);
    assert_int_equal(bw_executor_run(ex, &in, &out, NULL, NULL, &err), BW_EXHAUSTED);
    assert_null(out.data);
    bw_array_free(&in);
    bw_executor_destroy(ex);
    bw_graph_free(g);
}

/* In-place and aliased values: outputs that are inputs, constants, twice the same, or views of values still in use. */
static void views_do_not_interfere(void **state)
{
    (void)state;
    bw_error err;
    bw_graph *g = bw_graph_new("g");
    int x = bw_graph_add_value(g, "x", BW_F32, 2, D(2, 3));
    int k = add_const(g, "k", BW_F32, 1, D(1), (float[]){5});
    int n = add_op(g, "Neg", "n", &x, 1);
    int view = add_op(g, "Flatten", "view", &n, 1);
    bw_node_set_int(last(g), "axis", 0);
    int r = add_op(g, "Relu", "r", &n, 1); /* must not overwrite what `view` shows */
    int d = add_op(g, "Add", "d", I(r, r), 2);
    int same = add_op(g, "Identity", "same", &x, 1);
    bw_graph_set_inputs(g, &x, 1);
    bw_graph_set_outputs(g, I(view, d, same, k, x, d), 6);
    bw_executor *ex;
    ok(bw_executor_create(g, &ex, &err), &err);
    bw_array in, out[6] = {{0}};
    assert_int_equal(bw_array_alloc(&in, BW_F32, 2, D(2, 3), NULL), BW_OK);
    for (int i = 0; i < 6; i++)
        ((float *)in.data)[i] = (float)(i - 3);
    for (int twice = 0; twice < 2; twice++) {
        ok(bw_executor_run(ex, &in, out, NULL, NULL, &err), &err);
        for (int i = 0; i < 6; i++) {
            float v = (float)(i - 3);
            assert_true(((float *)in.data)[i] == v);
            assert_true(((float *)out[0].data)[i] == -v);
            assert_true(((float *)out[1].data)[i] == (v < 0 ? -2 * v : 0));
            assert_true(((float *)out[2].data)[i] == v);
            assert_true(((float *)out[4].data)[i] == v);
            assert_true(((float *)out[5].data)[i] == (v < 0 ? -2 * v : 0));
        }
        assert_true(((float *)out[3].data)[0] == 5);
        for (int i = 0; i < 6; i++) {
            assert_true(out[i].owned);
            bw_array_free(&out[i]);
        }
    }
    bw_array_free(&in);
    bw_executor_destroy(ex);
    bw_graph_free(g);
}

/* --- serialisation ------------------------------------------------------------------------------------------------ */

static void written_graphs_come_back(void **state)
{
    (void)state;
    bw_error err;
    bw_graph *g = small_net(), *back;
    bw_node *clip = NULL;
    int y = add_op(g, "Clip", "clipped", &g->outputs[0], 1);
    clip = last(g);
    bw_node_set_float(clip, "min", -INFINITY);
    bw_node_set_float(clip, "max", 0.1f);
    bw_node_set_floats(clip, "note", (float[]){1.1f, -3e-39f}, 2);
    bw_node_set_string(clip, "text", "quote \" and \\");
    bw_array a;
    assert_int_equal(bw_array_alloc(&a, BW_U8, 1, D(3), NULL), BW_OK);
    memcpy(a.data, "abc", 3);
    bw_node_set_array(clip, "bytes", &a);
    bw_graph_set_outputs(g, &y, 1);
    bw_graph_add_value(g, "unused", BW_F32, 0, NULL);
    ok(bw_graph_sort(g, &err), &err);

    char *json, *json2;
    void *blob, *blob2;
    size_t size, size2;
    ok(bw_graph_write(g, &json, &blob, &size, &err), &err);
    ok(bw_graph_read(json, strlen(json), blob, size, &back, &err), &err);
    assert_int_equal(bw_graph_find_value(back, "unused"), -1);
    ok(bw_graph_write(back, &json2, &blob2, &size2, &err), &err);
    assert_string_equal(json, json2);
    assert_int_equal(size, size2);
    assert_memory_equal(blob, blob2, size);
    assert_true(bw_node_float(last(back), "max", 0) == 0.1f);
    assert_true(isinf(bw_node_float(last(back), "min", 0)));

    bw_executor *ex[2];
    bw_array in = picture(2), out[2] = {{0}};
    ok(bw_executor_create(g, &ex[0], &err), &err);
    ok(bw_executor_create(back, &ex[1], &err), &err);
    for (int i = 0; i < 2; i++)
        ok(bw_executor_run(ex[i], &in, &out[i], NULL, NULL, &err), &err);
    assert_memory_equal(out[0].data, out[1].data, out[0].bytes);
    for (int i = 0; i < 2; i++) {
        bw_array_free(&out[i]);
        bw_executor_destroy(ex[i]);
    }
    bw_array_free(&in);

    /* Every truncation of the text is refused; so is a blob that ends early. */
    for (size_t cut = 0; cut < strlen(json); cut += 13) {
        bw_graph *none;
        assert_int_equal(bw_graph_read(json, cut, blob, size, &none, &err), BW_CORRUPT);
        assert_null(none);
    }
    bw_graph *none;
    assert_int_equal(bw_graph_read(json, strlen(json), blob, size - 1, &none, &err), BW_CORRUPT);
    bw_graph_free(back);
    bw_graph_free(g);
    free(json);
    free(json2);
    free(blob);
    free(blob2);
}

static void hostile_texts_are_refused(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "[]",
        "{\"name\":\"g\",\"version\":1}",
        "{\"name\":\"g\",\"version\":2,\"values\":[],\"nodes\":[],\"inputs\":[],\"outputs\":[]}",
        "{\"name\":\"g\",\"version\":1,\"values\":[],\"nodes\":[],\"inputs\":[],\"outputs\":[]}",
        /* ids outside, dims huge, names twice, a value defined twice, a constant beyond the blob, a cycle */
        "{\"name\":\"g\",\"version\":1,\"values\":[{\"name\":\"x\",\"dtype\":\"fp32\",\"dims\":[1]}],\"nodes\":[],"
        "\"inputs\":[0],\"outputs\":[1]}",
        "{\"name\":\"g\",\"version\":1,\"values\":[{\"name\":\"x\",\"dtype\":\"fp32\",\"dims\":[-2]}],\"nodes\":[],"
        "\"inputs\":[0],\"outputs\":[0]}",
        "{\"name\":\"g\",\"version\":1,\"values\":[{\"name\":\"x\",\"dtype\":\"fp32\",\"dims\":[1]},{\"name\":\"x\","
        "\"dtype\":\"fp32\",\"dims\":[1]}],\"nodes\":[],\"inputs\":[0],\"outputs\":[0]}",
        "{\"name\":\"g\",\"version\":1,\"values\":[{\"name\":\"x\",\"dtype\":\"fp32\",\"dims\":[1]}],\"nodes\":[{"
        "\"op\":\"Neg\",\"name\":\"n\",\"inputs\":[0],\"outputs\":[0]}],\"inputs\":[0],\"outputs\":[0]}",
        "{\"name\":\"g\",\"version\":1,\"values\":[{\"name\":\"x\",\"constant\":{\"dtype\":\"fp32\",\"dims\":"
        "[4611686018427387904,4],\"offset\":0,\"bytes\":0}}],\"nodes\":[],\"inputs\":[],\"outputs\":[0]}",
        "{\"name\":\"g\",\"version\":1,\"values\":[{\"name\":\"x\",\"dtype\":\"fp32\",\"dims\":[1]},{\"name\":\"y\","
        "\"dtype\":\"fp32\",\"dims\":[1]},{\"name\":\"z\",\"dtype\":\"fp32\",\"dims\":[1]}],\"nodes\":[{\"op\":\"Neg\","
        "\"name\":\"n\",\"inputs\":[2],\"outputs\":[1]},{\"op\":\"Neg\",\"name\":\"m\",\"inputs\":[1],\"outputs\":[2]}]"
        ","
        "\"inputs\":[0],\"outputs\":[1]}",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        bw_graph *g;
        bw_error err = {0};
        bw_status status = bw_graph_read(texts[i], strlen(texts[i]), NULL, 0, &g, &err);
        if (status != (i == 2 ? BW_VERSION_MISMATCH : BW_CORRUPT))
            fail_msg("text %zu gave %s (%s)", i, bw_status_name(status), err.message);
        assert_null(g);
        assert_true(*err.message != 0);
    }
}

static void clones_share_and_stand_alone(void **state)
{
    (void)state;
    bw_error err;
    bw_graph *g = small_net(), *c = bw_graph_clone(g);
    assert_non_null(c);
    int w = bw_graph_find_value(c, "w1");
    assert_ptr_equal(c->values[w].constant->data, g->values[w].constant->data);
    assert_false(c->values[w].constant->owned);
    bw_graph_remove_node(c, c->node_count - 1); /* the original keeps its softmax */
    bw_graph_set_outputs(c, I(bw_graph_find_value(c, "m")), 1);
    ok(bw_graph_infer_shapes(c, &err), &err);
    ok(bw_graph_infer_shapes(g, &err), &err);
    assert_int_equal(c->node_count + 1, g->node_count);
    bw_graph_free(c);
    bw_graph_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sort_orders_and_drops),        cmocka_unit_test(sort_names_cycles),
        cmocka_unit_test(fresh_names_are_fresh),        cmocka_unit_test(arrays_check_their_size),
        cmocka_unit_test(attributes_are_replaced),      cmocka_unit_test(batch_is_carried),
        cmocka_unit_test(shape_arithmetic_folds),       cmocka_unit_test(folding_respects_the_limit),
        cmocka_unit_test(unknown_entries_stay_unknown), cmocka_unit_test(squeeze_keeps_the_batch),
        cmocka_unit_test(unsupported_is_named),         cmocka_unit_test(runs_repeat_and_batches_agree),
        cmocka_unit_test(inputs_are_checked),           cmocka_unit_test(views_do_not_interfere),
        cmocka_unit_test(written_graphs_come_back),     cmocka_unit_test(hostile_texts_are_refused),
        cmocka_unit_test(clones_share_and_stand_alone),
    };
    return cmocka_run_group_tests_name("graph", tests, NULL, NULL);
}
