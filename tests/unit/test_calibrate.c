/* SPDX-License-Identifier: Apache-2.0 */
/* What calibration stands on: ranges, the progress bar's arithmetic, executors that show and take what they are asked
 * to. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "host/graph.h"
#include "quantize/calibrate.h"
#include "quantize/progress.h"
#include "quantize/range.h"
#include "tests/support/samples.h"

static uint32_t seed = 7;

static float random_float(void)
{
    seed = seed * 1664525u + 1013904223u;
    return (float)(int32_t)seed * 0x1p-28f;
}

/* --- ranges ------------------------------------------------------------------------------------------------------- */

static void test_range(void **unused)
{
    (void)unused;
    enum { MOST = 400000 };
    float *x = malloc(MOST * sizeof *x);
    static const int64_t counts[] = {1, 2, 15, 16, 17, 31, 33, 1000, MOST - 1};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        float *at = x + c % 2; /* aligned and not */
        float lo = INFINITY, hi = -INFINITY;
        for (int64_t i = 0; i < counts[c]; i++) {
            at[i] = random_float();
            lo = at[i] < lo ? at[i] : lo;
            hi = at[i] > hi ? at[i] : hi;
        }
        bw_range r = bw_range_of(at, counts[c]);
        assert_true(r.finite && r.min == lo && r.max == hi);
        /* The extreme at each end of the vectors and of the rest. */
        for (int64_t i = 0; i<counts[c]; i += counts[c]> 100 ? counts[c] / 37 : 1) {
            float was = at[i];
            at[i] = 99;
            assert_true(bw_range_of(at, counts[c]).max == 99);
            at[i] = -99;
            assert_true(bw_range_of(at, counts[c]).min == -99);
            static const float odd[] = {NAN, INFINITY, -INFINITY};
            at[i] = odd[i % 3];
            assert_false(bw_range_of(at, counts[c]).finite);
            at[i] = was;
        }
    }
    float zeros[20] = {0};
    zeros[3] = -0.0f;
    bw_range r = bw_range_of(zeros, 20);
    assert_false(signbit(r.min) || signbit(r.max));
    r = bw_range_of(&zeros[3], 1);
    assert_false(signbit(r.min) || signbit(r.max));
    r = bw_range_of(zeros, 0);
    assert_true(r.finite && r.min == INFINITY && r.max == -INFINITY);
    free(x);
}

/* --- progress ----------------------------------------------------------------------------------------------------- */

static void enter(bw_progress_bar *b, int phase, double took)
{
    b->passed += took;
    b->passed_expected += b->phase < BW_PHASES ? b->expected[b->phase] : 0;
    b->phase = phase;
    b->done = 0;
}

static void test_share(void **unused)
{
    (void)unused;
    static const double real[BW_PHASES] = {0.4, 0.1, 0.5, 0, 8, 1};
    double whole = 0;
    for (int p = 0; p < BW_PHASES; p++)
        whole += real[p];
    /* A machine of any speed, and expectations that are wrong about calibration by half or double. */
    static const double speeds[] = {1, 0.1, 10}, wrong[] = {1, 0.5, 2}, within[] = {0.02, 0.12, 0.12};
    for (int s = 0; s < 3; s++) {
        for (int k = 0; k < 3; k++) {
            bw_progress_bar b;
            bw_bar_begin(&b, 1);
            assert_true(bw_bar_share(&b, 0) == 0);
            for (int p = 0; p < BW_PHASES; p++)
                bw_bar_expect(&b, (bw_phase)p, real[p] * speeds[s] * (p == BW_PHASE_CALIBRATE ? wrong[k] : 1));
            double gone = 0;
            for (int p = 0; p < BW_PHASES; p++) {
                enter(&b, p, p ? real[p - 1] : 0);
                for (int i = 0; i <= 20; i++) {
                    b.done = i / 20.0;
                    double share = bw_bar_share(&b, real[p] * b.done), is = (gone + real[p] * b.done) / whole;
                    assert_true(share >= 0 && share <= 1);
                    if (p > BW_PHASE_READ && fabs(share - is) > within[k])
                        fail_msg("speed %g, wrong by %g: %g shown at %g", speeds[s], wrong[k], share, is);
                }
                gone += real[p];
            }
            assert_true(fabs(bw_bar_share(&b, real[BW_PHASE_WRITE]) - 1) < 1e-3);
        }
    }
}

static void test_no_bar(void **unused)
{
    (void)unused;
    bw_bar_begin(NULL, 0);
    bw_bar_expect(NULL, BW_PHASE_READ, 1);
    bw_bar_enter(NULL, BW_PHASE_READ, "not written");
    bw_bar_step(NULL, 0.5);
    bw_bar_end(NULL, 1);
    bw_progress_bar b;
    bw_bar_begin(&b, 1);
    bw_bar_step(&b, 0.5); /* no phase yet */
    bw_bar_end(&b, 1);
    assert_true(b.shown == 0);
}

/* --- executors ---------------------------------------------------------------------------------------------------- */

static int constant(bw_graph *g, const char *name, int rank, const int64_t *dims)
{
    bw_array a;
    assert_int_equal(bw_array_alloc(&a, BW_F32, rank, dims, NULL), BW_OK);
    for (int64_t i = 0; i < bw_array_count(&a); i++)
        ((float *)a.data)[i] = random_float() * 0.1f;
    return bw_graph_add_constant(g, name, &a);
}

/* Two convolutions with weights of their own, two that share theirs, a residual addition and a matrix product. */
static bw_graph *network(void)
{
    bw_graph *g = bw_graph_new("net");
    int64_t in[4] = {-1, 8, 12, 12}, any[4] = {-1, 16, 12, 12};
    int x = bw_graph_add_value(g, "x", BW_F32, 4, in), v[9];
    static const char *const names[] = {"a", "b", "c", "d", "e", "f", "flat", "y"};
    for (int i = 0; i < 8; i++)
        v[i] = bw_graph_add_value(g, names[i], BW_F32, 4, any);
    int wa = constant(g, "wa", 4, (int64_t[]){16, 8, 3, 3}), wb = constant(g, "wb", 4, (int64_t[]){16, 16, 3, 3});
    int ws = constant(g, "ws", 4, (int64_t[]){16, 16, 1, 1}), wy = constant(g, "wy", 2, (int64_t[]){10, 2304});
    int64_t pads[4] = {1, 1, 1, 1};
    const struct {
        const char *op;
        int in[2], out, padded;
    } nodes[] = {{"Conv", {x, wa}, 0, 1},       {"Relu", {v[0], -1}, 1, 0}, {"Conv", {v[1], wb}, 2, 1},
                 {"Conv", {v[2], ws}, 3, 0},    {"Conv", {v[3], ws}, 4, 0}, {"Add", {v[4], v[1]}, 5, 0},
                 {"Flatten", {v[5], -1}, 6, 0}, {"Gemm", {v[6], wy}, 7, 0}};
    for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++) {
        int n =
            bw_graph_add_node(g, nodes[i].op, names[i], nodes[i].in, nodes[i].in[1] < 0 ? 1 : 2, &v[nodes[i].out], 1);
        if (nodes[i].padded)
            assert_int_equal(bw_node_set_ints(&g->nodes[n], "pads", pads, 4), BW_OK);
    }
    assert_int_equal(bw_node_set_int(&g->nodes[7], "transB", 1), BW_OK);
    assert_int_equal(bw_graph_set_inputs(g, &x, 1), BW_OK);
    assert_int_equal(bw_graph_set_outputs(g, &v[7], 1), BW_OK);
    assert_int_equal(bw_graph_infer_shapes(g, NULL), BW_OK);
    return g;
}

struct sums {
    double sum[32], squares[32];
    int64_t dims[32][4];
};

static int observe(int value, const bw_array *a, void *user)
{
    struct sums *s = user;
    for (int64_t i = 0; i < bw_array_count(a); i++) {
        s->sum[value] += (double)((const float *)a->data)[i];
        s->squares[value] += (double)((const float *)a->data)[i] * (double)((const float *)a->data)[i];
    }
    memcpy(s->dims[value], a->dims, sizeof s->dims[value]);
    return 0;
}

static void run(bw_executor *ex, const float *x, int64_t batch, float *y, struct sums *s)
{
    bw_array in = {BW_F32, 4, {batch, 8, 12, 12}, (void *)(uintptr_t)x, (size_t)batch * 1152 * 4, 0}, out = {0};
    bw_error err;
    if (bw_executor_run(ex, &in, &out, s ? observe : NULL, s, &err))
        fail_msg("%s", err.message);
    assert_int_equal(out.bytes, (size_t)batch * 40);
    memcpy(y, out.data, out.bytes);
    bw_array_free(&out);
}

static void test_take_weights(void **unused)
{
    (void)unused;
    enum { BATCH = 6 };
    static float x[BATCH * 1152], want[BATCH * 10], got[BATCH * 10];
    for (size_t i = 0; i < sizeof x / sizeof *x; i++)
        x[i] = random_float();
    bw_graph *g = network();
    bw_executor *plain = NULL, *taker = NULL;
    assert_int_equal(bw_executor_create(g, &plain, NULL), BW_OK);
    run(plain, x, BATCH, want, NULL);
    bw_executor_destroy(plain);
    assert_int_equal(bw_executor_create(g, &taker, NULL), BW_OK);
    bw_executor_take_weights(taker, g);
    /* Several shapes, more than an executor remembers, and back: weights are gone from the graph by then. */
    static const int64_t batches[] = {BATCH, 1, 2, 3, 4, 5, BATCH, 1};
    for (size_t i = 0; i < sizeof batches / sizeof *batches; i++) {
        memset(got, 0, sizeof got);
        run(taker, x, batches[i], got, NULL);
        assert_memory_equal(got, want, (size_t)batches[i] * 40);
        bw_executor_trim(taker, i % 3 ? 0 : 1 << 30); /* the next run finds nothing, or everything */
    }
    assert_non_null(g->values[bw_graph_find_value(g, "ws")].constant->data); /* another node reads it */
    assert_null(g->values[bw_graph_find_value(g, "wy")].constant->data);
    assert_true(bw_executor_peak_bytes(taker) >= BATCH * 2304 * 4);
    bw_executor_destroy(taker);
    bw_graph_free(g);
}

static void test_unordered(void **unused)
{
    (void)unused;
    enum { BATCH = 2 };
    static float x[BATCH * 1152], y[2][BATCH * 10];
    for (size_t i = 0; i < sizeof x / sizeof *x; i++)
        x[i] = random_float();
    bw_graph *g = network();
    static struct sums s[2];
    unsigned char all[32];
    memset(all, 1, sizeof all);
    for (int k = 0; k < 2; k++) {
        bw_executor *ex = NULL;
        assert_int_equal(bw_executor_create(g, &ex, NULL), BW_OK);
        if (k)
            assert_int_equal(bw_executor_observe_unordered(ex, all, NULL), BW_OK);
        run(ex, x, BATCH, y[k], &s[k]);
        bw_executor_destroy(ex);
    }
    assert_memory_equal(y[0], y[1], sizeof y[0]);
    assert_memory_equal(s[0].dims, s[1].dims, sizeof s[0].dims);
    for (int v = 0; v < g->value_count; v++) {
        assert_true(fabs(s[0].sum[v] - s[1].sum[v]) <= 1e-9 * s[0].squares[v]);
        assert_true(fabs(s[0].squares[v] - s[1].squares[v]) <= 1e-9 * s[0].squares[v]);
    }
    bw_graph_free(g);
}

static void test_batch(void **unused)
{
    (void)unused;
    bw_graph *g = network();
    int64_t small = bw_calibration_batch(g);
    assert_int_equal(small, 16);
    g->values[g->inputs[0]].dims[2] = g->values[g->inputs[0]].dims[3] = 4096; /* 512 MB a sample */
    assert_int_equal(bw_calibration_batch(g), 1);
    g->values[g->inputs[0]].dims[0] = 3;
    assert_int_equal(bw_calibration_batch(g), 3);
    bw_graph_free(g);
}

struct ranges {
    float min[32], max[32];
};

static int find_range(int value, const bw_array *a, void *user)
{
    struct ranges *r = user;
    for (int64_t i = 0; i < bw_array_count(a); i++) {
        float x = ((const float *)a->data)[i];
        r->min[value] = x < r->min[value] ? x : r->min[value];
        r->max[value] = x > r->max[value] ? x : r->max[value];
    }
    return 0;
}

static bw_dataset *samples(float *x, int count, const bw_graph *g)
{
    for (int i = 0; i < count * 1152; i++)
        x[i] = random_float();
    return test_samples(g, x, count);
}

/* What is recorded of every value, a Relu's too, is what the float network reaches. */
static void test_ranges(void **unused)
{
    (void)unused;
    enum { COUNT = 19 }; /* not a multiple of the batch */
    static float x[COUNT * 1152];
    bw_graph *g = network();
    bw_dataset *data = samples(x, COUNT, g);
    struct ranges want;
    for (int v = 0; v < 32; v++) {
        want.min[v] = INFINITY;
        want.max[v] = -INFINITY;
    }
    bw_array in = {BW_F32, 4, {COUNT, 8, 12, 12}, x, sizeof x, 0}, out = {0};
    bw_executor *ex = NULL;
    bw_error err;
    assert_int_equal(bw_executor_create(g, &ex, &err), BW_OK);
    assert_int_equal(bw_executor_run(ex, &in, &out, find_range, &want, &err), BW_OK);
    bw_array_free(&out);
    bw_executor_destroy(ex);

    const bw_recipe recipe = {BW_FORMAT_MSFP16, BW_FORMAT_MSFP16, 16, BW_FORMAT_FP16, 0, BW_SCALE_FLOOR, 0};
    bw_compiled c;
    json_t *quality = NULL, *tensor, *tensors;
    if (bw_compile(g, &recipe, &c, &err))
        fail_msg("%s", err.message);
    const bw_calibration options = {data, "x.npy", 0, NULL};
    if (bw_calibrate(g, &c, &options, &quality, &err))
        fail_msg("%s", err.message);
    size_t i;
    tensors = json_object_get(quality, "tensors");
    assert_int_equal(json_array_size(tensors), 8);
    int relus = 0;
    json_array_foreach(tensors, i, tensor)
    {
        int v = bw_graph_find_value(g, json_string_value(json_object_get(tensor, "name")));
        assert_true(v >= 0);
        double lo = json_number_value(json_object_get(tensor, "min"));
        double hi = json_number_value(json_object_get(tensor, "max"));
        assert_true(fabs(lo - (double)want.min[v]) <= 1e-3 * fabs(lo)); /* four digits are kept */
        assert_true(fabs(hi - (double)want.max[v]) <= 1e-3 * fabs(hi));
        relus += !strcmp(g->nodes[g->values[v].producer].op, "Relu") && lo == 0 && !signbit(lo) && hi > 0;
    }
    assert_int_equal(relus, 1);
    json_decref(quality);
    bw_compiled_free(&c);
    bw_dataset_close(data);
    bw_graph_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_range),        cmocka_unit_test(test_share),     cmocka_unit_test(test_no_bar),
        cmocka_unit_test(test_take_weights), cmocka_unit_test(test_unordered), cmocka_unit_test(test_batch),
        cmocka_unit_test(test_ranges),
    };
    return cmocka_run_group_tests_name("calibrate", tests, NULL, NULL);
}
