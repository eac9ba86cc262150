/* SPDX-License-Identifier: Apache-2.0 */
/* The length of blocks by trial: as long as the samples allow. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "quantize/choose_block.h"
#include "tests/support/samples.h"

enum { CHANNELS = 128, OUTPUTS = 24, SAMPLES = 40, EACH = CHANNELS * 4 };

static uint32_t seed = 11;

static float noise(void) /* -1..1 */
{
    seed = seed * 1664525u + 1013904223u;
    return (float)(int32_t)seed * 0x1p-31f;
}

/* A 1x1 convolution that does not read channel 0, with `inputs` inputs. */
static bw_graph *network(int inputs, int64_t batch)
{
    bw_graph *g = bw_graph_new("test");
    int in[2], out[2];
    for (int i = 0; i < inputs; i++) {
        bw_array w = {0};
        assert_int_equal(bw_array_alloc(&w, BW_F32, 4, (int64_t[]){OUTPUTS, CHANNELS, 1, 1}, NULL), BW_OK);
        for (int k = 0; k < OUTPUTS * CHANNELS; k++)
            ((float *)w.data)[k] = k % CHANNELS ? noise() : 0;
        in[i] = bw_graph_add_value(g, i ? "z" : "x", BW_F32, 4, (int64_t[]){batch, CHANNELS, 2, 2});
        int both[2] = {in[i], bw_graph_add_constant(g, "", &w)};
        out[i] = bw_graph_add_value(g, i ? "v" : "y", BW_F32, -1, NULL);
        assert_true(bw_graph_add_node(g, "Conv", i ? "b" : "a", both, 2, &out[i], 1) >= 0);
    }
    assert_int_equal(bw_graph_set_inputs(g, in, inputs), BW_OK);
    assert_int_equal(bw_graph_set_outputs(g, out, inputs), BW_OK);
    assert_int_equal(bw_graph_sort(g, NULL), BW_OK);
    assert_int_equal(bw_graph_infer_shapes(g, NULL), BW_OK);
    return g;
}

/* Samples whose channel 0, one of the 128, reaches `first`. */
static bw_dataset *samples(const bw_graph *g, float first)
{
    static float x[SAMPLES * EACH];
    for (int i = 0; i < SAMPLES * EACH; i++)
        x[i] = noise() * (i % EACH < 4 ? first : 1);
    return test_samples(g, x, SAMPLES);
}

static const bw_recipe msfp16 = {
    .weights = BW_FORMAT_MSFP16, .activations = BW_FORMAT_MSFP16, .block = 16, .vector = BW_FORMAT_FP16};

static bw_block_choice choose(float first, double loss, bw_recipe *r)
{
    bw_graph *g = network(1, -1);
    bw_calibration o = {.data = samples(g, first), .data_name = "test"};
    bw_block_choice choice;
    bw_error err = {0};
    if (bw_choose_block(g, r, loss, &o, &choice, &err))
        fail_msg("%s", err.message);
    bw_dataset_close(o.data);
    bw_graph_free(g);
    return choice;
}

/* A value 1000 times as large as the others of its block costs them all their bits: a block of 16 loses 15 values of
 * 127, one of 32 twice as many, 3 dB. */
static void as_long_as_the_samples_allow(void **state)
{
    (void)state;
    static const struct {
        float first;
        double loss;
        uint16_t block;
        int tried;
    } cases[] = {{1, 6, 128, 2}, {1000, 60, 128, 2}, {1000, 7.5, 64, 3}, {1000, 4.5, 32, 4}, {1000, 2, 16, 4}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        bw_recipe r = msfp16;
        const bw_block_choice c = choose(cases[i].first, cases[i].loss, &r);
        assert_int_equal(r.block, cases[i].block);
        assert_int_equal(c.count, cases[i].tried);
        assert_int_equal(c.samples, BW_BLOCK_SAMPLES);
        assert_int_equal(c.tried[0].block, 16);
        for (int k = 1; k < c.count; k++) {
            const double lost = c.tried[0].sqnr_db - c.tried[k].sqnr_db;
            assert_int_equal(c.tried[k].block, 256 >> k);
            assert_int_equal(lost <= cases[i].loss, k == c.count - 1 && r.block != 16);
        }
    }
}

static void formats_of_one_length(void **state)
{
    (void)state;
    bw_recipe r = msfp16;
    r.weights = BW_FORMAT_MXINT8;
    const bw_block_choice c = choose(1, 3, &r);
    assert_int_equal(r.block, 32);
    assert_int_equal(c.count, 1);
}

static void whole_batches(void **state)
{
    (void)state;
    static const int64_t batches[] = {SAMPLES, 10, 1}, used[] = {SAMPLES, 30, BW_BLOCK_SAMPLES};
    for (int i = 0; i < 3; i++) {
        bw_graph *g = network(1, batches[i]);
        bw_calibration o = {.data = samples(g, 1), .data_name = "test"};
        bw_block_choice choice;
        bw_recipe r = msfp16;
        assert_int_equal(bw_choose_block(g, &r, 6, &o, &choice, NULL), BW_OK);
        assert_int_equal(choice.samples, used[i]);
        assert_int_equal(r.block, 128);
        bw_dataset_close(o.data);
        bw_graph_free(g);
    }
}

static void refusals(void **state)
{
    (void)state;
    bw_graph *g = network(2, -1);
    bw_calibration o = {.data = samples(g, 1), .data_name = "test"};
    bw_block_choice choice;
    bw_error err = {0};
    bw_recipe r = msfp16;
    assert_int_equal(bw_choose_block(g, &r, 3, &o, &choice, &err), BW_UNSUPPORTED);
    assert_non_null(strstr(err.message, "has 2 inputs"));
    bw_dataset_close(o.data);
    bw_graph_free(g);

    g = network(1, 64);
    o.data = samples(g, 1);
    assert_int_equal(bw_choose_block(g, &r, 3, &o, &choice, &err), BW_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "40 samples, choosing a block needs 64"));
    bw_dataset_close(o.data);
    bw_graph_free(g);

    g = network(1, -1); /* classes are no numbers to compare */
    int most = bw_graph_add_value(g, "most", BW_I64, -1, NULL);
    assert_true(bw_graph_add_node(g, "ArgMax", "c", g->outputs, 1, &most, 1) >= 0);
    assert_int_equal(bw_graph_set_outputs(g, &most, 1), BW_OK);
    assert_int_equal(bw_graph_sort(g, NULL), BW_OK);
    assert_int_equal(bw_graph_infer_shapes(g, NULL), BW_OK);
    o.data = samples(g, 1);
    assert_int_equal(bw_choose_block(g, &r, 3, &o, &choice, &err), BW_UNSUPPORTED);
    assert_non_null(strstr(err.message, "no fp32 output"));
    bw_dataset_close(o.data);
    bw_graph_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_long_as_the_samples_allow),
        cmocka_unit_test(formats_of_one_length),
        cmocka_unit_test(whole_batches),
        cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
