/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The compiler, against the float executor. Networks here compute with small integers that every format on the way
 * holds exactly, so that the accelerator must give the very numbers of the float network: a wrong index, order, slice
 * or fusion cannot hide behind a tolerance.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "quantize/lower.h"
#include "quantize/runner.h"

/* --- building --------------------------------------------------------------------------------------------------- */

static uint32_t seed = 1;

static uint32_t random_u32(void)
{
    seed = seed * 1664525u + 1013904223u;
    return seed >> 8;
}

static bw_graph *g;

static int input(const char *name, int c, int h, int w)
{
    int v = bw_graph_add_value(g, name, BW_F32, h ? 4 : 2, (int64_t[]){-1, c, h, w});
    assert_true(v >= 0);
    return v;
}

/* A constant of small integers, a third of them 0, at most `most` in magnitude. */
static int constant(int most, int rank, const int64_t *dims)
{
    bw_array a = {0};
    assert_int_equal(bw_array_alloc(&a, BW_F32, rank, dims, NULL), BW_OK);
    for (int64_t i = 0; i < bw_array_count(&a); i++) {
        int zero = random_u32() % 3 == 0;
        ((float *)a.data)[i] = zero ? 0 : (float)((int)(random_u32() % (unsigned)(2 * most + 1)) - most);
    }
    int v = bw_graph_add_constant(g, "", &a);
    assert_true(v >= 0);
    return v;
}

static int node(const char *op, int inputs, const int *in)
{
    static int count;
    char name[32];
    snprintf(name, sizeof name, "%s_%d", op, ++count);
    int out = bw_graph_add_value(g, name, BW_F32, -1, NULL);
    assert_true(out >= 0);
    int n = bw_graph_add_node(g, op, name, in, inputs, &out, 1);
    assert_true(n >= 0);
    return out;
}

static bw_node *last(void)
{
    return &g->nodes[g->node_count - 1];
}

static int unary(const char *op, int x)
{
    return node(op, 1, &x);
}

static int binary(const char *op, int a, int b)
{
    return node(op, 2, (int[]){a, b});
}

static void ints(const char *name, size_t count, const int64_t *v)
{
    assert_int_equal(bw_node_set_ints(last(), name, v, count), BW_OK);
}

static int conv(int x, int out, int in, int k, int pad, int stride, int groups, int bias)
{
    int w = constant(1, 4, (int64_t[]){out, in / groups, k, k});
    int v = node("Conv", bias ? 3 : 2, (int[]){x, w, bias ? constant(3, 1, (int64_t[]){out}) : -1});
    ints("pads", 4, (int64_t[]){pad, pad, pad, pad});
    ints("strides", 2, (int64_t[]){stride, stride});
    assert_int_equal(bw_node_set_int(last(), "group", groups), BW_OK);
    return v;
}

static int concat(int count, const int *parts)
{
    int v = node("Concat", count, parts);
    assert_int_equal(bw_node_set_int(last(), "axis", 1), BW_OK);
    return v;
}

static int pool(const char *op, int x, int k, int stride, int pad)
{
    int v = unary(op, x);
    ints("kernel_shape", 2, (int64_t[]){k, k});
    ints("strides", 2, (int64_t[]){stride, stride});
    ints("pads", 4, (int64_t[]){pad, pad, pad, pad});
    return v;
}

static void begin(void)
{
    g = bw_graph_new("test");
    assert_non_null(g);
}

static void finish(int in_count, const int *in, int out_count, const int *out)
{
    bw_error err = {0};
    assert_int_equal(bw_graph_set_inputs(g, in, in_count), BW_OK);
    assert_int_equal(bw_graph_set_outputs(g, out, out_count), BW_OK);
    if (bw_graph_sort(g, &err) || bw_graph_infer_shapes(g, &err))
        fail_msg("%s", err.message);
}

/* --- comparing -------------------------------------------------------------------------------------------------- */

static const bw_recipe exact = {BW_FORMAT_MSFP16, BW_FORMAT_MSFP16, 16, BW_FORMAT_FP16, 0, BW_SCALE_FLOOR, 0};

/* Compiles, runs both on integers of at most `most` and compares every output. Returns the number of stages on the
 * accelerator and leaves the compiled network in *kept if that is not NULL. */
static int compare(const bw_recipe *recipe, int most, double tolerance, bw_compiled *kept)
{
    bw_error err = {0};
    bw_compiled c;
    if (bw_compile(g, recipe, &c, &err))
        fail_msg("compile: %s", err.message);
    bw_runner *r;
    bw_executor *ex;
    if (bw_runner_create(g, &c, &r, &err) || bw_executor_create(g, &ex, &err))
        fail_msg("create: %s", err.message);
    enum { BATCH = 2 };
    bw_array in[4] = {{0}}, want[8] = {{0}}, got[8] = {{0}};
    for (int i = 0; i < g->input_count; i++) {
        int64_t dims[BW_RANK_MAX];
        memcpy(dims, g->values[g->inputs[i]].dims, sizeof dims);
        dims[0] = BATCH;
        assert_int_equal(bw_array_alloc(&in[i], BW_F32, g->values[g->inputs[i]].rank, dims, NULL), BW_OK);
        for (int64_t k = 0; k < bw_array_count(&in[i]); k++)
            ((float *)in[i].data)[k] = (float)((int)(random_u32() % (unsigned)(2 * most + 1)) - most);
    }
    if (bw_runner_run(r, in, got, NULL, NULL, &err))
        fail_msg("quantized: %s", err.message);
    for (int i = 0; i < g->output_count; i++)
        bw_array_free(&got[i]);
    bw_runner_trim(r, 0); /* the second run starts without memory of the first */
    if (bw_runner_run(r, in, got, NULL, NULL, &err))
        fail_msg("quantized, again: %s", err.message);
    if (bw_executor_run(ex, in, want, NULL, NULL, &err))
        fail_msg("float: %s", err.message);
    for (int i = 0; i < g->output_count; i++) {
        assert_int_equal(got[i].rank, want[i].rank);
        assert_int_equal(got[i].bytes, want[i].bytes);
        int nonzero = 0;
        for (int64_t k = 0; k < bw_array_count(&want[i]); k++) {
            float w = ((float *)want[i].data)[k], q = ((float *)got[i].data)[k];
            nonzero += w != 0;
            if (!(fabs((double)w - (double)q) <= tolerance * (1 + fabs((double)w))))
                fail_msg("output %s[%lld]: float %g, accelerator %g", g->values[g->outputs[i]].name, (long long)k,
                         (double)w, (double)q);
        }
        assert_true(nonzero > 0); /* else the comparison says nothing */
        bw_array_free(&want[i]);
        bw_array_free(&got[i]);
    }
    for (int i = 0; i < g->input_count; i++)
        bw_array_free(&in[i]);
    bw_runner_destroy(r);
    bw_executor_destroy(ex);
    int devices = 0;
    for (int i = 0; i < c.stage_count; i++)
        devices += c.stages[i].device;
    if (kept)
        *kept = c;
    else
        bw_compiled_free(&c);
    return devices;
}

static void check_exact(int most)
{
    bw_compiled c;
    assert_int_equal(compare(&exact, most, 0, &c), 1);
    assert_int_equal(c.stage_count, 1);
    bw_compiled_free(&c);
    bw_graph_free(g);
}

static int count_opcode(const bw_compiled *c, int opcode)
{
    int count = 0;
    for (int i = 0; i < c->stage_count; i++) {
        bw_program p;
        if (!c->stages[i].device)
            continue;
        assert_int_equal(bw_program_parse(c->stages[i].program, c->stages[i].program_size, &p, NULL), BW_OK);
        for (uint32_t k = 0; k < p.header->instruction_count; k++)
            count += p.instructions[k].opcode == opcode;
    }
    return count;
}

/* --- operators -------------------------------------------------------------------------------------------------- */

static void convolutions(void **state)
{
    (void)state;
    static const struct {
        int in, out, k, pad, stride, groups;
    } cases[] = {{3, 16, 3, 1, 1, 1},   {1, 8, 5, 2, 2, 1},   {16, 16, 3, 1, 1, 1}, {20, 33, 3, 0, 2, 1},
                 {33, 7, 1, 0, 1, 1},   {7, 40, 7, 3, 2, 1},  {32, 32, 3, 1, 1, 2}, {8, 24, 3, 1, 1, 2},
                 {16, 16, 3, 1, 1, 4},  {40, 20, 1, 0, 1, 2}, {36, 36, 3, 1, 1, 3}, {64, 64, 3, 1, 1, 16},
                 {24, 24, 3, 1, 1, 24}, {6, 18, 3, 1, 2, 6},  {17, 17, 5, 2, 1, 17}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int bias = 0; bias < 2; bias++) {
            begin();
            int x = input("x", cases[i].in, 9, 11);
            int y =
                conv(x, cases[i].out, cases[i].in, cases[i].k, cases[i].pad, cases[i].stride, cases[i].groups, bias);
            finish(1, &x, 1, &y);
            check_exact(15);
        }
}

static void asymmetric_and_dilated(void **state)
{
    (void)state;
    begin();
    int x = input("x", 18, 13, 12);
    int a = conv(x, 16, 18, 3, 0, 1, 1, 1);
    ints("pads", 4, (int64_t[]){1, 0, 2, 3});
    ints("dilations", 2, (int64_t[]){2, 3});
    ints("strides", 2, (int64_t[]){2, 1});
    finish(1, &x, 1, &a);
    check_exact(7);
    begin();
    x = input("x", 18, 13, 12);
    a = node("Conv", 2, (int[]){x, constant(1, 4, (int64_t[]){5, 18, 2, 4})});
    ints("strides", 2, (int64_t[]){2, 2});
    assert_int_equal(bw_node_set_string(last(), "auto_pad", "SAME_LOWER"), BW_OK);
    finish(1, &x, 1, &a);
    check_exact(7);
}

static void one_dimensional(void **state)
{
    (void)state;
    begin();
    int x = bw_graph_add_value(g, "x", BW_F32, 3, (int64_t[]){-1, 16, 40});
    int w = constant(1, 3, (int64_t[]){12, 16, 5});
    int y = node("Conv", 2, (int[]){x, w});
    ints("pads", 2, (int64_t[]){1, 2});
    ints("strides", 1, (int64_t[]){3});
    finish(1, &x, 1, &y);
    check_exact(7);
}

static void activations(void **state)
{
    (void)state;
    begin();
    int x = input("x", 16, 6, 6);
    int a = unary("Relu", conv(x, 16, 16, 1, 0, 1, 1, 1));
    int b = unary("Clip", conv(x, 16, 16, 1, 0, 1, 1, 1));
    assert_int_equal(bw_node_set_float(last(), "min", -5), BW_OK);
    assert_int_equal(bw_node_set_float(last(), "max", 6), BW_OK);
    int c = unary("Clip", conv(x, 16, 16, 1, 0, 1, 1, 1));
    assert_int_equal(bw_node_set_float(last(), "max", 6), BW_OK);
    int outs[3] = {a, b, c};
    finish(1, &x, 3, outs);
    bw_compiled compiled;
    assert_int_equal(compare(&exact, 3, 0, &compiled), 1);
    assert_int_equal(count_opcode(&compiled, BW_OP_CONV), 3);
    assert_int_equal(count_opcode(&compiled, BW_OP_COPY), 1); /* the input; every activation is fused */
    bw_compiled_free(&compiled);
    bw_graph_free(g);

    begin(); /* a value under two names: what follows one of them must not change the other */
    x = input("x", 16, 6, 6);
    a = conv(x, 16, 16, 1, 0, 1, 1, 1);
    b = unary("Identity", a);
    c = unary("Relu", b);
    int d = unary("Identity", conv(x, 16, 16, 1, 0, 1, 1, 1));
    int e = conv(unary("Relu", d), 8, 16, 1, 0, 1, 16 / 8, 1);
    int f = binary("Add", a, conv(d, 16, 16, 1, 0, 1, 16, 1));
    int names[4] = {a, c, e, f};
    finish(1, &x, 4, names);
    check_exact(1);
}

static void residuals(void **state)
{
    (void)state;
    begin(); /* a block with identity, one with projection, and one whose convolution is seen by others too */
    int x = input("x", 16, 8, 8);
    int a = unary("Relu", conv(x, 16, 16, 1, 0, 1, 16, 1));
    int b = unary("Relu", binary("Add", conv(a, 16, 16, 1, 0, 1, 16, 1), a));
    int c = unary("Relu", binary("Add", conv(b, 24, 16, 1, 0, 2, 1, 0), conv(b, 24, 16, 1, 0, 2, 1, 1)));
    finish(1, &x, 1, &c);
    bw_compiled compiled;
    assert_int_equal(compare(&exact, 2, 0, &compiled), 1);
    assert_int_equal(count_opcode(&compiled, BW_OP_ADD), 0);
    bw_compiled_free(&compiled);
    bw_graph_free(g);

    begin();
    x = input("x", 16, 8, 8);
    a = conv(x, 16, 16, 1, 0, 1, 1, 1);
    b = conv(x, 16, 16, 3, 1, 1, 1, 1);
    c = binary("Add", a, b);
    int d = conv(a, 8, 16, 1, 0, 1, 16 / 2 / 4, 1);
    int e = binary("Add", binary("Add", a, a), c);
    int f = binary("Mul", a, b);
    int outs[4] = {d, e, f, b};
    finish(1, &x, 4, outs);
    check_exact(2);
}

static int scalar(float v)
{
    int c = constant(1, 0, NULL);
    *(float *)g->values[c].constant->data = v;
    return c;
}

static void affine(void **state)
{
    (void)state;
    begin();
    int x = input("x", 20, 7, 5);
    int scale = constant(3, 3, (int64_t[]){20, 1, 1}), shift = constant(9, 4, (int64_t[]){1, 20, 1, 1});
    int a = unary("Relu", binary("Add", binary("Mul", x, scale), shift)); /* one chain */
    int b = conv(a, 9, 20, 1, 0, 1, 1, 0);
    int c = binary("Div", binary("Sub", constant(5, 3, (int64_t[]){9, 1, 1}), b), scalar(2));
    int d = binary("Add", binary("Sub", c, scalar(3)), a = conv(x, 9, 20, 1, 0, 1, 1, 1));
    int outs[2] = {d, a};
    finish(1, &x, 2, outs);
    check_exact(2);
}

static void pools(void **state)
{
    (void)state;
    begin();
    int x = input("x", 20, 12, 12);
    int y = conv(x, 20, 20, 1, 0, 1, 20, 1);
    int a = pool("MaxPool", y, 3, 2, 1);
    int b = pool("AveragePool", y, 2, 2, 0);
    int c = pool("AveragePool", y, 4, 2, 1);
    assert_int_equal(bw_node_set_int(last(), "count_include_pad", 1), BW_OK);
    int d = pool("MaxPool", y, 3, 2, 0);
    assert_int_equal(bw_node_set_int(last(), "ceil_mode", 1), BW_OK);
    int e = conv(pool("MaxPool", y, 2, 2, 0), 16, 20, 3, 1, 1, 1, 0); /* pooled in the block format */
    int f = unary("GlobalMaxPool", y);
    int outs[6] = {a, b, c, d, e, f};
    finish(1, &x, 6, outs);
    check_exact(2);

    begin();
    x = input("x", 24, 8, 8);
    y = unary("GlobalAveragePool", conv(x, 24, 24, 1, 0, 1, 24, 0));
    int flat = unary("Flatten", y);
    int z = node("Gemm", 2, (int[]){flat, constant(1, 2, (int64_t[]){10, 24})});
    assert_int_equal(bw_node_set_int(last(), "transB", 1), BW_OK);
    int both[3] = {y, flat, z};
    finish(1, &x, 3, both);
    check_exact(1); /* sixty-fourths up to 1 */

    begin(); /* windows that hang over counted padding divide by what no device table says: the CPU's */
    x = input("x", 16, 8, 8);
    y = conv(x, 16, 16, 1, 0, 1, 16, 0);
    a = pool("AveragePool", y, 3, 2, 1);
    assert_int_equal(bw_node_set_int(last(), "count_include_pad", 1), BW_OK);
    assert_int_equal(bw_node_set_int(last(), "ceil_mode", 1), BW_OK);
    finish(1, &x, 1, &a);
    bw_compiled compiled;
    assert_int_equal(compare(&exact, 15, 0, &compiled), 1);
    assert_int_equal(compiled.stage_count, 2);
    bw_compiled_free(&compiled);
    bw_graph_free(g);
}

static void fully_connected(void **state)
{
    (void)state;
    begin(); /* the weights follow the channels-last order of a flattened feature map */
    int x = input("x", 3, 8, 10);
    int y = unary("Relu", conv(x, 20, 3, 3, 0, 2, 1, 1));
    int flat = unary("Flatten", y);
    int a = node("MatMul", 2, (int[]){flat, constant(1, 2, (int64_t[]){20 * 3 * 4, 33})});
    int b = node("Gemm", 3, (int[]){flat, constant(1, 2, (int64_t[]){7, 20 * 3 * 4}), constant(3, 1, (int64_t[]){7})});
    assert_int_equal(bw_node_set_int(last(), "transB", 1), BW_OK);
    int outs[2] = {a, b};
    finish(1, &x, 2, outs);
    check_exact(2);

    begin(); /* vectors in, vectors out */
    x = input("x", 640, 0, 0);
    a = unary("Relu", node("Gemm", 2, (int[]){x, constant(1, 2, (int64_t[]){640, 50})}));
    finish(1, &x, 1, &a);
    check_exact(15);
}

static void concatenations(void **state)
{
    (void)state;
    static const int widths[][3] = {{16, 32, 16}, {16, 20, 8}, {5, 7, 3}};
    for (size_t i = 0; i < sizeof widths / sizeof widths[0]; i++) {
        const int *n = widths[i];
        begin();
        int x = input("x", 16, 6, 7);
        int a = conv(x, n[0], 16, 1, 0, 1, 1, 1), b = conv(x, n[1], 16, 3, 1, 1, 1, 0),
            c = conv(x, n[2], 16, 1, 0, 1, 1, 1);
        int first = concat(3, (int[]){a, b, c}), total = n[0] + n[1] + n[2];
        int second = concat(4, (int[]){first, x, a, a}); /* nested, a stage input, the same part again */
        int p = conv(first, 16, total, 1, 0, 1, 1, 0);
        int q = conv(second, 18, total + 16 + 2 * n[0], 1, 0, 1, 1, 1);
        int r = pool("MaxPool", first, 2, 2, 0);
        int s = conv(r, 16, total, 1, 0, 1, 1, 0);
        int outs[4] = {p, q, second, s};
        finish(1, &x, 4, outs);
        check_exact(1);
    }
    begin(); /* parts that are outputs themselves, and an output that is a concatenation only */
    int x = input("x", 16, 4, 4);
    int a = conv(x, 16, 16, 1, 0, 1, 1, 1), b = conv(x, 4, 16, 1, 0, 1, 1, 1);
    int c = concat(2, (int[]){a, b});
    int outs[2] = {a, c};
    finish(1, &x, 2, outs);
    check_exact(5);

    begin(); /* DenseNet: each layer reads all before it through a scale and shift; slices without copies */
    x = input("x", 16, 6, 6);
    int features = conv(x, 16, 16, 1, 0, 1, 16, 0), channels = 16;
    for (int i = 0; i < 3; i++) {
        int t = binary("Mul", features, constant(1, 3, (int64_t[]){channels, 1, 1}));
        t = unary("Relu", binary("Add", t, constant(1, 3, (int64_t[]){channels, 1, 1})));
        features = concat(2, (int[]){features, conv(t, 12, channels, 1, 0, 1, 1, 0)});
        channels += 12;
    }
    finish(1, &x, 1, &features);
    bw_compiled compiled;
    assert_int_equal(compare(&exact, 1, 0.05, &compiled), 1);
    assert_int_equal(count_opcode(&compiled, BW_OP_COPY), 1); /* the input */
    bw_compiled_free(&compiled);
    bw_graph_free(g);
}

static void windows(void **state)
{
    (void)state;
    begin(); /* the parameter-free shortcut of CIFAR ResNets: every second pixel, zero channels around */
    int x = input("x", 16, 8, 8);
    int y = conv(x, 16, 16, 1, 0, 1, 16, 1);
    int s = unary("Slice", y);
    ints("starts", 2, (int64_t[]){0, 1});
    ints("ends", 2, (int64_t[]){INT64_MAX, INT64_MAX});
    ints("axes", 2, (int64_t[]){2, 3});
    ints("steps", 2, (int64_t[]){2, 2});
    int p = unary("Pad", s);
    ints("pads", 8, (int64_t[]){0, 8, 0, 0, 0, 8, 0, 0});
    int a = unary("Relu", binary("Add", conv(y, 32, 16, 1, 0, 2, 1, 0), p));
    int b = unary("Pad", y); /* pixels: zeros on two sides, a crop on the others */
    ints("pads", 8, (int64_t[]){0, 0, 1, -2, 0, 0, 2, -1});
    int c = unary("Slice", y); /* channels backwards, pixels from an offset */
    ints("starts", 2, (int64_t[]){-2, 2});
    ints("ends", 2, (int64_t[]){INT64_MIN + 1, 7});
    ints("axes", 2, (int64_t[]){1, 2});
    ints("steps", 2, (int64_t[]){-3, 1});
    int d = conv(c, 3, 5, 1, 0, 1, 1, 0);
    int outs[4] = {a, b, c, d};
    finish(1, &x, 4, outs);
    check_exact(3);
}

static void shuffles(void **state)
{
    (void)state;
    begin();
    int x = input("x", 24, 4, 4);
    int y = conv(x, 24, 24, 1, 0, 1, 3, 1);
    int t = unary("Reshape", y);
    ints("shape", 5, (int64_t[]){-1, 3, 8, 4, 4});
    t = unary("Transpose", t);
    ints("perm", 5, (int64_t[]){0, 2, 1, 3, 4});
    t = unary("Reshape", t);
    ints("shape", 4, (int64_t[]){-1, 24, 4, 4});
    int z = conv(conv(t, 24, 24, 3, 1, 1, 24, 0), 24, 24, 1, 0, 1, 3, 0);
    int parts[3], split[3];
    for (int i = 0; i < 3; i++) {
        char name[16];
        snprintf(name, sizeof name, "part%d", i);
        split[i] = bw_graph_add_value(g, name, BW_F32, -1, NULL);
    }
    assert_true(bw_graph_add_node(g, "Split", "split", &y, 1, split, 3) >= 0);
    assert_int_equal(bw_node_set_int(last(), "axis", 1), BW_OK);
    ints("split", 3, (int64_t[]){5, 3, 16});
    for (int i = 0; i < 3; i++)
        parts[i] = split[2 - i];
    int outs[2] = {z, concat(3, parts)};
    finish(1, &x, 2, outs);
    check_exact(2);
}

static void formats_and_blocks(void **state)
{
    (void)state;
    static const char *const names[] = {"msfp16", "msfp14", "mxint8", "mxfp6_e2m3", "mxfp8_e4m3", "mxfp4_e2m1"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const bw_format_traits *t = bw_format_find(names[i]);
        for (unsigned block = t->block; block <= 128 && bw_format_block_ok(t, block); block *= 2) {
            bw_recipe r = {t->format,      t->format, (uint16_t)block, i % 2 ? BW_FORMAT_BF16 : BW_FORMAT_FP16, 0,
                           BW_SCALE_FLOOR, 0};
            begin(); /* all in {-1, 0, 1}: exact in every format */
            int x = input("x", 40, 5, 5);
            int y = conv(x, 50, 40, 3, 1, 1, 2, 0);
            finish(1, &x, 1, &y);
            assert_int_equal(compare(&r, 1, 0, NULL), 1);
            bw_graph_free(g);
        }
    }
}

/* The instruction of the first stage that makes so many channels. */
static bw_instruction instruction(const bw_compiled *c, int opcode, uint32_t channels)
{
    bw_program p;
    assert_int_equal(bw_program_parse(c->stages[0].program, c->stages[0].program_size, &p, NULL), BW_OK);
    for (uint32_t i = 0; i < p.header->instruction_count; i++)
        if (p.instructions[i].opcode == opcode && p.instructions[i].out0.channels == channels)
            return p.instructions[i];
    fail_msg("no such instruction");
    return (bw_instruction){0};
}

static void lengths_of_blocks(void **state)
{
    (void)state;
    bw_recipe r = exact;
    r.block = 128;
    begin(); /* two concatenations of other lengths inside a third; a part whose groups want another length still */
    int x = input("x", 64, 5, 6);
    int a = conv(x, 64, 64, 1, 0, 1, 1, 0), b = conv(x, 64, 64, 1, 0, 1, 1, 1), c = conv(x, 32, 64, 1, 0, 1, 1, 0);
    int wide = concat(2, (int[]){a, b}), narrow = concat(3, (int[]){c, c, a});
    int all = concat(3, (int[]){wide, narrow, c});
    int y[5] = {conv(wide, 16, 128, 1, 0, 1, 1, 0), conv(narrow, 17, 128, 1, 0, 1, 1, 0),
                conv(all, 18, 288, 1, 0, 1, 1, 1), conv(c, 20, 32, 1, 0, 1, 2, 0),
                conv(pool("MaxPool", a, 2, 2, 0), 21, 64, 1, 0, 1, 1, 0)};
    finish(1, &x, 5, y);
    bw_compiled compiled;
    assert_int_equal(compare(&r, 1, 0, &compiled), 1);
    assert_int_equal(instruction(&compiled, BW_OP_CONV, 16).in.block, 64); /* wide */
    assert_int_equal(instruction(&compiled, BW_OP_CONV, 17).in.block, 32); /* narrow */
    assert_int_equal(instruction(&compiled, BW_OP_CONV, 18).in.block, 64); /* all: as its first part */
    assert_int_equal(instruction(&compiled, BW_OP_CONV, 20).in.block, 16); /* groups of 16 */
    assert_int_equal(instruction(&compiled, BW_OP_MAXPOOL, 64).in.format, BW_FORMAT_MSFP16); /* blocks are there */
    bw_compiled_free(&compiled);
    bw_graph_free(g);

    begin(); /* a pool whose input nobody else reads */
    x = input("x", 64, 6, 6);
    a = conv(pool("MaxPool", conv(x, 64, 64, 1, 0, 1, 1, 0), 2, 2, 0), 16, 64, 1, 0, 1, 1, 0);
    finish(1, &x, 1, &a);
    assert_int_equal(compare(&r, 1, 0, &compiled), 1);
    assert_int_equal(instruction(&compiled, BW_OP_MAXPOOL, 64).in.format, BW_FORMAT_FP16);
    assert_int_equal(instruction(&compiled, BW_OP_CONV, 16).in.block, 64);
    bw_compiled_free(&compiled);
    bw_graph_free(g);
}

/* --- stages ----------------------------------------------------------------------------------------------------- */

static void stages(void **state)
{
    (void)state;
    begin(); /* accelerator, CPU, accelerator, CPU; a value crosses two borders */
    int x = input("x", 16, 6, 6);
    int a = unary("Relu", conv(x, 16, 16, 1, 0, 1, 16, 1));
    int b = unary("Neg", a);
    int c = binary("Add", conv(b, 16, 16, 1, 0, 1, 16, 1), a);
    int d = unary("Abs", unary("Flatten", c));
    int outs[2] = {d, c};
    finish(1, &x, 2, outs);
    bw_compiled compiled;
    assert_int_equal(compare(&exact, 7, 0, &compiled), 2);
    assert_int_equal(compiled.stage_count, 4);
    for (int i = 0; i < 4; i++)
        assert_int_equal(compiled.stages[i].device, i % 2 == 0);
    assert_int_equal(compiled.stages[2].input_count, 2);
    bw_compiled_free(&compiled);

    bw_recipe ends = exact; /* both layers are ends: nothing is left */
    ends.first_last_float = 1;
    bw_error err;
    assert_int_equal(bw_compile(g, &ends, &compiled, &err), BW_UNSUPPORTED);
    assert_non_null(strstr(err.message, "none of its"));
    bw_graph_free(g);

    begin(); /* a pool alone is not worth the way to the accelerator */
    x = input("x", 16, 6, 6);
    a = pool("MaxPool", unary("Neg", conv(x, 16, 16, 1, 0, 1, 1, 1)), 2, 2, 0);
    finish(1, &x, 1, &a);
    assert_int_equal(compare(&exact, 7, 0, &compiled), 1);
    assert_int_equal(compiled.stage_count, 2);
    assert_true(bw_compile_on_device(g, 0));
    assert_false(bw_compile_on_device(g, 1));
    assert_false(bw_compile_on_device(g, 2));
    assert_false(bw_compile_on_device(g, 99));
    bw_compiled_free(&compiled);
    bw_graph_free(g);
}

static void first_and_last_in_float(void **state)
{
    (void)state;
    begin();
    int x = input("x", 3, 6, 6), y = x;
    for (int i = 0; i < 4; i++)
        y = unary("Relu", conv(y, 16, i ? 16 : 3, 1, 0, 1, 1, 1));
    finish(1, &x, 1, &y);
    bw_recipe r = exact;
    r.first_last_float = 1;
    bw_compiled c;
    assert_int_equal(compare(&r, 1, 0.05, &c), 1);
    assert_int_equal(count_opcode(&c, BW_OP_CONV), 2);
    assert_int_equal(c.stage_count, 3);
    bw_compiled_free(&c);
    bw_graph_free(g);
}

static void deterministic(void **state)
{
    (void)state;
    begin();
    int x = input("x", 3, 16, 16), y = x;
    for (int i = 0; i < 5; i++)
        y = conv(y, 20, i ? 20 : 3, 3, 1, 1, 1, 1);
    finish(1, &x, 1, &y);
    bw_compiled a, b;
    assert_int_equal(bw_compile(g, &exact, &a, NULL), BW_OK);
    assert_int_equal(bw_compile(g, &exact, &b, NULL), BW_OK);
    assert_int_equal(a.stages[0].program_size, b.stages[0].program_size);
    assert_memory_equal(a.stages[0].program, b.stages[0].program, a.stages[0].program_size);
    assert_int_equal(a.stages[0].constants_size, b.stages[0].constants_size);
    assert_memory_equal(a.stages[0].constants, b.stages[0].constants, a.stages[0].constants_size);
    bw_compiled_free(&a);
    bw_compiled_free(&b);
    bw_graph_free(g);
}

static void refusals(void **state)
{
    (void)state;
    static const struct {
        float weight, bias;
        bw_status status;
        const char *says;
    } cases[] = {{0x1p60f, 0, BW_OUT_OF_RANGE, "weights of"},
                 {NAN, 0, BW_NOT_FINITE, "NaN"},
                 {1, INFINITY, BW_NOT_FINITE, "bias"},
                 {1, 0x1p127f, BW_OUT_OF_RANGE, "bias"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        begin();
        int x = input("x", 16, 4, 4);
        int y = conv(x, 16, 16, 1, 0, 1, 1, 1);
        ((float *)g->values[g->nodes[0].inputs[1]].constant->data)[5] = cases[i].weight;
        ((float *)g->values[g->nodes[0].inputs[2]].constant->data)[3] = cases[i].bias;
        finish(1, &x, 1, &y);
        bw_error err = {0};
        bw_compiled c;
        assert_int_equal(bw_compile(g, &exact, &c, &err), cases[i].status);
        assert_non_null(strstr(err.message, cases[i].says));
        assert_null(c.stages);
        bw_graph_free(g);
    }
    static const bw_recipe wrong[] = {{BW_FORMAT_FP16, BW_FORMAT_MSFP16, 16, BW_FORMAT_FP16, 0, BW_SCALE_FLOOR, 0},
                                      {BW_FORMAT_MSFP16, BW_FORMAT_MXINT8, 16, BW_FORMAT_FP16, 0, BW_SCALE_FLOOR, 0},
                                      {BW_FORMAT_MSFP16, BW_FORMAT_MSFP16, 24, BW_FORMAT_FP16, 0, BW_SCALE_FLOOR, 0},
                                      {BW_FORMAT_MSFP16, BW_FORMAT_MSFP16, 16, BW_FORMAT_FP32, 0, BW_SCALE_FLOOR, 0}};
    begin();
    int x = input("x", 16, 4, 4);
    int y = conv(x, 16, 16, 1, 0, 1, 1, 1);
    finish(1, &x, 1, &y);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        bw_error err = {0};
        bw_compiled c;
        assert_int_equal(bw_compile(g, &wrong[i], &c, &err), BW_INVALID_ARGUMENT);
        assert_non_null(strstr(err.message, "choose"));
    }
    bw_graph_free(g);
}

static void memory_plans(void **state)
{
    (void)state;
    for (int round = 0; round < 200; round++) {
        enum { COUNT = 40 };
        bw_span s[COUNT];
        uint64_t total, peak = 0;
        for (int i = 0; i < COUNT; i++) {
            int first = (int)(random_u32() % 30);
            s[i] = (bw_span){1 + random_u32() % 5000, first, first + (int)(random_u32() % 6), 0};
        }
        assert_int_equal(bw_plan_memory(s, COUNT, &total, NULL), BW_OK);
        for (int i = 0; i < COUNT; i++) {
            assert_int_equal(s[i].offset % 64, 0);
            assert_true(s[i].offset + s[i].size <= total);
            for (int j = 0; j < i; j++)
                if (s[i].first <= s[j].last && s[j].first <= s[i].last)
                    assert_true(s[i].offset + s[i].size <= s[j].offset || s[j].offset + s[j].size <= s[i].offset);
        }
        for (int t = 0; t < 36; t++) {
            uint64_t live = 0;
            for (int i = 0; i < COUNT; i++)
                live += s[i].first <= t && t <= s[i].last ? s[i].size : 0;
            peak = live > peak ? live : peak;
        }
        assert_true(total <= 2 * peak + 64 * COUNT); /* a plan, not a pile */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(convolutions),
        cmocka_unit_test(asymmetric_and_dilated),
        cmocka_unit_test(one_dimensional),
        cmocka_unit_test(activations),
        cmocka_unit_test(residuals),
        cmocka_unit_test(affine),
        cmocka_unit_test(pools),
        cmocka_unit_test(fully_connected),
        cmocka_unit_test(concatenations),
        cmocka_unit_test(windows),
        cmocka_unit_test(shuffles),
        cmocka_unit_test(formats_and_blocks),
        cmocka_unit_test(lengths_of_blocks),
        cmocka_unit_test(stages),
        cmocka_unit_test(first_and_last_in_float),
        cmocka_unit_test(deterministic),
        cmocka_unit_test(refusals),
        cmocka_unit_test(memory_plans),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
