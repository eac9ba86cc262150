/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random networks through the compiler: every operator that the accelerator has, wired at random, with several outputs,
 * views, values that are consumed and put out, CPU operators in between. Compiled results must follow the float network
 * to within rounding, where a wrong slice, order or fusion would be off altogether, and every program must pass the
 * validator (bw_compile ends with it).
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "quantize/compile.h"
#include "quantize/runner.h"

static uint32_t state32;

static uint32_t pick(uint32_t n)
{
    state32 = state32 * 1664525u + 1013904223u;
    return (state32 >> 8) % n;
}

static float normal(double spread)
{
    double sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (double)pick(1u << 20) / 0x1p20 - 0.5;
    return (float)(sum * sqrt(3) * spread);
}

struct net {
    bw_graph *g;
    int values[256], count; /* fp32 feature maps [-1, C, H, W] */
    int64_t shape[256][3];
};

static int constant(struct net *n, int rank, const int64_t *dims, double spread, double offset)
{
    bw_array a = {0};
    assert_int_equal(bw_array_alloc(&a, BW_F32, rank, dims, NULL), BW_OK);
    for (int64_t i = 0; i < bw_array_count(&a); i++)
        ((float *)a.data)[i] = normal(spread) + (float)offset;
    int v = bw_graph_add_constant(n->g, "", &a);
    assert_true(v >= 0);
    return v;
}

static int add_node(struct net *n, const char *op, int count, const int *in)
{
    char name[32];
    snprintf(name, sizeof name, "%s_%d", op, n->g->node_count);
    int out = bw_graph_add_value(n->g, name, BW_F32, -1, NULL);
    assert_true(out >= 0);
    assert_true(bw_graph_add_node(n->g, op, name, in, count, &out, 1) >= 0);
    return out;
}

static bw_node *last(struct net *n)
{
    return &n->g->nodes[n->g->node_count - 1];
}

static void keep(struct net *n, int v, int64_t c, int64_t h, int64_t w)
{
    n->values[n->count] = v;
    n->shape[n->count][0] = c;
    n->shape[n->count][1] = h;
    n->shape[n->count++][2] = w;
}

static void add_conv(struct net *n, int i)
{
    static const int64_t widths[] = {3, 8, 16, 20, 32, 33};
    const int64_t *s = n->shape[i];
    int64_t k = 1 + 2 * pick(2), pad = pick((uint32_t)k), stride = 1 + pick(2), out = widths[pick(6)], groups = 1;
    if (s[1] + 2 * pad < k || s[2] + 2 * pad < k)
        k = 1, pad = 0;
    uint32_t kind = pick(4);
    if (kind == 0) { /* depthwise, sometimes with a multiplier */
        groups = s[0];
        out = s[0] * (1 + pick(2));
    } else if (kind == 1) {
        for (groups = 4; s[0] % groups; groups--)
            ;
        out = groups * (1 + pick(12));
    }
    int w =
        constant(n, 4, (int64_t[]){out, s[0] / groups, k, k}, sqrt(1.5 * (double)groups / (double)(s[0] * k * k)), 0);
    int in[3] = {n->values[i], w, -1}, with_bias = pick(2) != 0;
    if (with_bias)
        in[2] = constant(n, 1, &out, 0.3, 0);
    int v = add_node(n, "Conv", with_bias ? 3 : 2, in);
    bw_node_set_ints(last(n), "pads", (int64_t[]){pad, pad, pad, pad}, 4);
    bw_node_set_ints(last(n), "strides", (int64_t[]){stride, stride}, 2);
    bw_node_set_int(last(n), "group", groups);
    keep(n, v, out, (s[1] + 2 * pad - k) / stride + 1, (s[2] + 2 * pad - k) / stride + 1);
}

static void add_pool(struct net *n, int i)
{
    const int64_t *s = n->shape[i];
    int64_t k = s[1] >= 3 && s[2] >= 3 ? 2 + pick(2) : 1, pad = k > 1 ? pick(2) : 0, stride = 1 + pick(2);
    int max = pick(2) != 0;
    int v = add_node(n, max ? "MaxPool" : "AveragePool", 1, &n->values[i]);
    bw_node_set_ints(last(n), "kernel_shape", (int64_t[]){k, k}, 2);
    bw_node_set_ints(last(n), "pads", (int64_t[]){pad, pad, pad, pad}, 4);
    bw_node_set_ints(last(n), "strides", (int64_t[]){stride, stride}, 2);
    if (!max)
        bw_node_set_int(last(n), "count_include_pad", pick(2));
    keep(n, v, s[0], (s[1] + 2 * pad - k) / stride + 1, (s[2] + 2 * pad - k) / stride + 1);
}

/* Up to `most` values of the same height and width as value i, itself first; same channels too if `same`. */
static int partners(struct net *n, int i, int most, int same, int *found)
{
    int count = 0;
    found[count++] = i;
    for (int tries = 0; tries < 12 && count < most; tries++) {
        int j = (int)pick((uint32_t)n->count);
        if (n->shape[j][1] == n->shape[i][1] && n->shape[j][2] == n->shape[i][2] &&
            (!same || n->shape[j][0] == n->shape[i][0]))
            found[count++] = j;
    }
    return count;
}

static void add_concat(struct net *n, int i)
{
    int found[4], in[4], count = partners(n, i, 2 + (int)pick(3), 0, found);
    int64_t channels = 0;
    for (int k = 0; k < count; k++) {
        in[k] = n->values[found[k]];
        channels += n->shape[found[k]][0];
    }
    if (channels > 160)
        return;
    int v = add_node(n, "Concat", count, in);
    bw_node_set_int(last(n), "axis", 1);
    keep(n, v, channels, n->shape[i][1], n->shape[i][2]);
}

static void add_window(struct net *n, int i)
{
    const int64_t *s = n->shape[i];
    if (pick(2) && s[0] > 4) { /* channels and every second row */
        int v = add_node(n, "Slice", 1, &n->values[i]);
        int64_t from = pick(3), to = s[0] - pick(2), step = 1 + pick(2);
        bw_node_set_ints(last(n), "starts", (int64_t[]){from, 0}, 2);
        bw_node_set_ints(last(n), "ends", (int64_t[]){to, INT64_MAX}, 2);
        bw_node_set_ints(last(n), "axes", (int64_t[]){1, 2}, 2);
        bw_node_set_ints(last(n), "steps", (int64_t[]){1, step}, 2);
        keep(n, v, to - from, (s[1] + step - 1) / step, s[2]);
        return;
    }
    int64_t before = pick(5), after = pick(5), top = pick(2), left = pick(2);
    int v = add_node(n, "Pad", 1, &n->values[i]);
    bw_node_set_ints(last(n), "pads", (int64_t[]){0, before, top, left, 0, after, 0, 1}, 8);
    keep(n, v, s[0] + before + after, s[1] + top, s[2] + left + 1);
}

static void add_shuffle(struct net *n, int i)
{
    const int64_t *s = n->shape[i];
    int64_t groups = s[0] % 4 == 0 ? 4 : s[0] % 3 == 0 ? 3 : 1;
    int v = add_node(n, "Reshape", 1, &n->values[i]);
    bw_node_set_ints(last(n), "shape", (int64_t[]){-1, groups, s[0] / groups, s[1], s[2]}, 5);
    v = add_node(n, "Transpose", 1, &v);
    bw_node_set_ints(last(n), "perm", (int64_t[]){0, 2, 1, 3, 4}, 5);
    v = add_node(n, "Reshape", 1, &v);
    bw_node_set_ints(last(n), "shape", (int64_t[]){-1, s[0], s[1], s[2]}, 4);
    keep(n, v, s[0], s[1], s[2]);
}

static void add_any(struct net *n)
{
    int i = pick(3) ? n->count - 1 : (int)pick((uint32_t)n->count), found[2], v;
    const int64_t *s = n->shape[i];
    switch (pick(13)) {
    case 0:
    case 1:
    case 2:
    case 3:
        add_conv(n, i);
        return;
    case 4:
        add_pool(n, i);
        return;
    case 5:
        add_concat(n, i);
        return;
    case 6:
        add_window(n, i);
        return;
    case 7:
        add_shuffle(n, i);
        return;
    case 8:
        v = add_node(n, pick(2) ? "Relu" : "Clip", 1, &n->values[i]);
        bw_node_set_float(last(n), "min", -1);
        bw_node_set_float(last(n), "max", 1.5f);
        break;
    case 9:
        if (partners(n, i, 2, 1, found) < 2)
            return;
        v = add_node(n, "Add", 2, (int[]){n->values[i], n->values[found[1]]});
        break;
    case 10:
        v = add_node(n, pick(2) ? "Mul" : "Add", 2,
                     (int[]){n->values[i], constant(n, 3, (int64_t[]){s[0], 1, 1}, 0.2, 1)});
        break;
    case 11:
        v = add_node(n, pick(4) ? "Identity" : "Neg", 1, &n->values[i]);
        break;
    default:
        v = add_node(n, "Mul", 2, (int[]){n->values[i], n->values[i]});
        v = add_node(n, "Clip", 1, &v);
        bw_node_set_float(last(n), "max", 2);
        break;
    }
    keep(n, v, s[0], s[1], s[2]);
}

static void random_network(uint32_t seed, struct net *n)
{
    state32 = seed * 2654435761u + 12345;
    *n = (struct net){.g = bw_graph_new("random")};
    assert_non_null(n->g);
    static const int64_t channels[] = {1, 3, 16, 20};
    int64_t c = channels[pick(4)], h = 4 + pick(6), w = 4 + pick(6);
    int x = bw_graph_add_value(n->g, "x", BW_F32, 4, (int64_t[]){-1, c, h, w});
    keep(n, x, c, h, w);
    add_conv(n, 0);
    for (int steps = 4 + (int)pick(14); steps > 0; steps--)
        add_any(n);
    int outs[5], count = 0;
    for (int tries = 0; tries < 3; tries++) {
        int v = tries ? n->values[1 + pick((uint32_t)n->count - 1)] : n->values[n->count - 1], known = 0;
        for (int k = 0; k < count; k++)
            known |= outs[k] == v;
        if (!known)
            outs[count++] = v;
    }
    if (pick(2)) { /* a head over the flattened last feature map */
        const int64_t *s = n->shape[n->count - 1];
        int f = add_node(n, "Flatten", 1, &n->values[n->count - 1]);
        int64_t k = s[0] * s[1] * s[2];
        outs[count++] =
            add_node(n, "Gemm", 2, (int[]){f, constant(n, 2, (int64_t[]){k, 10}, sqrt(1.0 / (double)k), 0)});
    }
    bw_error err = {0};
    assert_int_equal(bw_graph_set_inputs(n->g, &x, 1), BW_OK);
    assert_int_equal(bw_graph_set_outputs(n->g, outs, count), BW_OK);
    if (bw_graph_sort(n->g, &err) || bw_graph_infer_shapes(n->g, &err))
        fail_msg("seed %u: %s", seed, err.message);
}

/* 1 if the network had anything for the accelerator. */
static int check(uint32_t seed, const bw_recipe *recipe)
{
    struct net n;
    random_network(seed, &n);
    bw_error err = {0};
    bw_compiled c;
    bw_status s = bw_compile(n.g, recipe, &c, &err);
    if (s == BW_UNSUPPORTED && strstr(err.message, "can run on the accelerator")) {
        bw_graph_free(n.g);
        return 0;
    }
    if (s)
        fail_msg("seed %u: %s", seed, err.message);
    bw_runner *r;
    bw_executor *ex;
    if (bw_runner_create(n.g, &c, &r, &err) || bw_executor_create(n.g, &ex, &err))
        fail_msg("seed %u: %s", seed, err.message);
    bw_array in = {0}, want[5] = {{0}}, got[5] = {{0}};
    int64_t dims[4] = {2, n.shape[0][0], n.shape[0][1], n.shape[0][2]};
    assert_int_equal(bw_array_alloc(&in, BW_F32, 4, dims, NULL), BW_OK);
    for (int64_t i = 0; i < bw_array_count(&in); i++)
        ((float *)in.data)[i] = normal(1);
    if (bw_runner_run(r, &in, got, NULL, NULL, &err) || bw_executor_run(ex, &in, want, NULL, NULL, &err))
        fail_msg("seed %u: %s", seed, err.message);
    for (int o = 0; o < n.g->output_count; o++) {
        const float *x = want[o].data, *y = got[o].data;
        assert_int_equal(want[o].bytes, got[o].bytes);
        double signal = 0, noise = 0;
        for (int64_t i = 0; i < bw_array_count(&want[o]); i++) {
            signal += (double)x[i] * (double)x[i];
            noise += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
        }
        if (!(noise <= signal * 0.03)) /* 15 dB */
            fail_msg("seed %u, block %u: output %s is %.1f dB from the float network", seed, recipe->block,
                     n.g->values[n.g->outputs[o]].name, 10 * log10(signal / noise));
        bw_array_free(&want[o]);
        bw_array_free(&got[o]);
    }
    bw_array_free(&in);
    bw_runner_destroy(r);
    bw_executor_destroy(ex);
    bw_compiled_free(&c);
    bw_graph_free(n.g);
    return 1;
}

static void networks(void **state)
{
    (void)state;
    static const bw_recipe recipes[] = {
        {.weights = BW_FORMAT_MSFP16, .activations = BW_FORMAT_MSFP16, .block = 16, .vector = BW_FORMAT_FP16},
        {.weights = BW_FORMAT_MSFP16, .activations = BW_FORMAT_MSFP16, .block = 128, .vector = BW_FORMAT_FP16},
        {.weights = BW_FORMAT_MXINT8,
         .activations = BW_FORMAT_MXINT8,
         .block = 32,
         .vector = BW_FORMAT_BF16,
         .no_patches = 1},
        {.weights = BW_FORMAT_MSFP15,
         .activations = BW_FORMAT_MSFP16,
         .block = 64,
         .vector = BW_FORMAT_FP16,
         .first_last_float = 1,
         .scale_rule = BW_SCALE_MSE}};
    const size_t recipe_count = sizeof recipes / sizeof recipes[0];
    uint32_t seeds = getenv("BW_LONG") ? 3000 : 150, ran = 0, first = 0;
    if (getenv("BW_SEED")) {
        first = (uint32_t)strtoul(getenv("BW_SEED"), NULL, 10);
        seeds = first + 1;
    }
    for (uint32_t seed = first; seed < seeds; seed++)
        for (size_t r = 0; r < recipe_count; r++)
            ran += (uint32_t)check(seed, &recipes[r]);
    assert_true(first || ran > seeds * 3); /* the most of them are about the accelerator */
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(networks)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
