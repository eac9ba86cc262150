/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Trained and conformance networks, imported, passed and run in float against the answers of another runtime. The data
 * is not part of the project: BW_SHARED (default ../shared/data) says where it is; without it the tests are skipped.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "hal/base.h"
#include "quantize/import.h"
#include "quantize/passes.h"
#include "tests/support/graph_run.h"

static const char *shared(void)
{
    const char *s = getenv("BW_SHARED");
    return s ? s : "../shared/data";
}

/* The path of a file of the shared data; skips the test, saying so, if it is not there. */
static const char *data(const char *name)
{
    static char path[4][1024];
    static int next;
    char *p = path[next++ % 4];
    snprintf(p, 1024, "%s/%s", shared(), name);
    if (access(p, R_OK)) {
        print_message("# %s is not there: BW_SHARED names the test data's directory\n", p);
        skip();
    }
    return p;
}

static bw_graph *load(const char *name)
{
    bw_graph *g = NULL;
    bw_error err = {0};
    if (bw_onnx_import(data(name), NULL, 0, &g, NULL, &err))
        fail_msg("%s", err.message);
    return g;
}

static void pass(bw_graph *g)
{
    bw_error err = {0};
    if (bw_passes_run(g, &err))
        fail_msg("%s", err.message);
}

static int count_op(const bw_graph *g, const char *op)
{
    int n = 0;
    for (int i = 0; i < g->node_count; i++)
        n += !strcmp(g->nodes[i].op, op);
    return n;
}

/* --- against expected outputs ----------------------------------------------------------------------------------- */

typedef struct bytes {
    void *data;
    size_t size;
} bytes;

static bytes slurp(const char *name)
{
    bytes b;
    bw_error err;
    if (bw_file_read(data(name), (size_t)1 << 28, &b.data, &b.size, &err))
        fail_msg("%s", err.message);
    return b;
}

/* How the samples of a data file become the network's input. */
static float cifar_normalised(uint8_t pixel, int channel)
{
    static const float mean[] = {0.485f, 0.456f, 0.406f}, std[] = {0.229f, 0.224f, 0.225f};
    return ((float)pixel / 255.0f - mean[channel]) / std[channel];
}

static void fill_cifar(const bytes *b, float *x, int64_t count, int normalise)
{
    for (int64_t i = 0; i < count; i++)
        for (int k = 0; k < 3072; k++) {
            uint8_t pixel = ((const uint8_t *)b->data)[i * 3073 + 1 + k];
            x[i * 3072 + k] = normalise ? cifar_normalised(pixel, k / 1024) : (float)pixel;
        }
}

static void fill_mnist(const bytes *b, float *x, int64_t count)
{
    for (int64_t i = 0; i < count * 784; i++)
        x[i] = ((const uint8_t *)b->data)[16 + i];
}

/* 64 samples, in one batch and one by one for the first. */
static void check_network(const char *model, const char *input, const char *expected, int conv_count)
{
    enum { COUNT = 64 };
    bytes in = slurp(input), want = slurp(expected);
    bw_graph *g = load(model);
    pass(g);
    const bw_value *v = &g->values[g->inputs[0]];
    assert_int_equal(v->dims[0], -1);
    int64_t dims[BW_RANK_MAX];
    memcpy(dims, v->dims, sizeof dims);
    dims[0] = COUNT;
    bw_array x, y;
    bw_error err;
    assert_int_equal(bw_array_alloc(&x, BW_F32, v->rank, dims, &err), BW_OK);
    if (strstr(input, "cifar"))
        fill_cifar(&in, x.data, COUNT, !strstr(model, "resnet8"));
    else if (strstr(input, "mnist"))
        fill_mnist(&in, x.data, COUNT);
    else
        memcpy(x.data, in.data, x.bytes);
    bw_test_run_on(g, &x, &y);
    assert_true(y.bytes <= want.size);
    bw_array reference = y;
    reference.data = want.data;
    double d = bw_test_difference(&y, &reference);
    print_message("# %s: %d nodes, largest relative difference %.2g\n", model, g->node_count, d);
    if (d > 1e-3)
        fail_msg("%s differs from the expected outputs by %g", model, d);
    assert_int_equal(count_op(g, "BatchNormalization"), 0);
    assert_int_equal(count_op(g, "Conv"), conv_count);
    bw_array_free(&y);
    bw_array_free(&x);
    bw_graph_free(g);
    free(in.data);
    free(want.data);
}

static void test_resnet20(void **state)
{
    (void)state;
    check_network("models/resnet20_cifar10.onnx", "images/cifar10_jpg_ship_test1000.bin",
                  "expected/resnet20_cifar10.ship1000.out_1000x10.f32", 21);
}

static void test_resnet20_torch_export(void **state)
{
    (void)state;
    check_network("models/resnet20_cifar10_torch113export.onnx", "images/cifar10_jpg_ship_test1000.bin",
                  "expected/resnet20_cifar10.ship1000.out_1000x10.f32", 19);
}

static void test_resnet8(void **state)
{
    (void)state;
    check_network("models/resnet8_cifar10_bn.onnx", "images/cifar10_jpg_ship_test1000.bin",
                  "expected/resnet8_cifar10_bn.ship1000.out_1000x10.f32", 9);
}

static void test_kws(void **state)
{
    (void)state;
    check_network("models/kws_dscnn_folded.onnx", "kws/kws_mfcc_1000x49x10.f32",
                  "expected/kws_dscnn_folded.apache1000.out_1000x12.f32", 9);
}

static void test_mnist(void **state)
{
    (void)state;
    check_network("models/mnist_cntk.onnx", "mnist/t1k-images-idx3-ubyte", "expected/mnist_cntk.t1k.out_1000x10.f32",
                  2);
}

static void test_keyword_transformer(void **state)
{
    (void)state;
    check_network("models/kwt1_fsdd_digits.onnx", "digits_audio/test_mfcc_300x98x40.f32",
                  "expected/kwt1_fsdd_digits.test300.out_300x10.f32", 0);
}

/* --- before and after the passes -------------------------------------------------------------------------------- */

static void test_passes_keep_the_function(void **state)
{
    (void)state;
    static const char *const models[] = {"resnet20_cifar10_torch113export", "vww_mobilenet_bn", "ad01_fcae_bn",
                                         "mobilenet_v1_0.25_128_quant_deq"};
    for (size_t i = 0; i < sizeof models / sizeof models[0]; i++) {
        char name[200];
        snprintf(name, sizeof name, "models/%s.onnx", models[i]);
        bw_graph *before = load(name), *after = load(name);
        pass(after);
        assert_true(after->node_count < before->node_count || !count_op(before, "BatchNormalization"));
        assert_int_equal(count_op(after, "BatchNormalization"), 0);
        bw_test_same_function(after, before, 2, 1e-3);
        bw_graph_free(before);
        bw_graph_free(after);
    }
}

/* The shortcuts of the raw export survive as Slice and Pad with constant attributes. */
static void test_option_a_shortcuts(void **state)
{
    (void)state;
    bw_graph *g = load("models/resnet20_cifar10_torch113export.onnx");
    pass(g);
    assert_int_equal(count_op(g, "Shape"), 0);
    assert_int_equal(count_op(g, "Pad"), 2);
    assert_true(count_op(g, "Slice") >= 2);
    for (int i = 0; i < g->node_count; i++)
        if (!strcmp(g->nodes[i].op, "Pad") || !strcmp(g->nodes[i].op, "Slice"))
            assert_int_equal(g->nodes[i].input_count, 1);
    bw_graph_free(g);
}

/* --- every model ------------------------------------------------------------------------------------------------ */

static void test_recurrent_models_are_refused(void **state)
{
    (void)state;
    static const char *const models[][2] = {{"models/mnist_lstm.onnx", "LSTM"},
                                            {"models/gru2_fsdd.onnx", "GRU"},
                                            {"models/silero_vad_16k_clean.onnx", "LSTM"}};
    for (int i = 0; i < 3; i++) {
        bw_graph *g = NULL;
        bw_error err = {0};
        bw_status st = bw_onnx_import(data(models[i][0]), NULL, 0, &g, NULL, &err);
        if (bw_op_supported(models[i][1])) {
            assert_int_equal(st, BW_OK);
            bw_graph_free(g);
            continue;
        }
        assert_int_equal(st, BW_UNSUPPORTED);
        assert_null(g);
        assert_non_null(strstr(err.message, models[i][1]));
        assert_non_null(strstr(err.message, "opset"));
    }
}

/* The convention of the ONNX backend tests for these: x[i] = i / n. */
static void check_light(const char *name, int shuffles)
{
    char file[200];
    snprintf(file, sizeof file, "onnx/light/light_%s.onnx", name);
    bw_graph *g = load(file);
    pass(g);
    assert_int_equal(g->input_count, 1);
    const bw_value *v = &g->values[g->inputs[0]];
    assert_int_equal(v->dims[0], -1);
    int64_t dims[BW_RANK_MAX];
    memcpy(dims, v->dims, sizeof dims);
    dims[0] = 1;
    bw_array x, y, reference;
    bw_error err;
    assert_int_equal(bw_array_alloc(&x, BW_F32, v->rank, dims, &err), BW_OK);
    int64_t n = bw_array_count(&x);
    for (int64_t i = 0; i < n; i++)
        ((float *)x.data)[i] = (float)((double)i / (double)n);
    bw_test_run_on(g, &x, &y);
    snprintf(file, sizeof file, "onnx/light/light_%s_output_0.pb", name);
    bytes want = slurp(file);
    assert_true(want.size > y.bytes);
    /* A TensorProto whose raw_data is its longest field: the answer is found by its length. */
    reference = y;
    reference.data = NULL;
    for (size_t i = 0; i + y.bytes + 3 <= want.size && !reference.data; i++) {
        const uint8_t *p = (const uint8_t *)want.data + i;
        size_t length = p[1] & 0x7f, used = 2;
        if (p[1] & 0x80) {
            length |= (size_t)(p[2] & 0x7f) << 7;
            used = 3;
        }
        if (p[0] == (9 << 3 | 2) && length == y.bytes) {
            reference.data = malloc(length);
            assert_non_null(reference.data);
            memcpy(reference.data, p + used, length);
        }
    }
    if (!reference.data)
        fail_msg("%s holds no tensor of %zu bytes", file, y.bytes);
    double d = bw_test_difference(&y, &reference);
    int groups, last, found = 0;
    for (int i = 0; i < g->node_count; i++)
        found += bw_match_channel_shuffle(g, i, &groups, &last);
    print_message("# light_%s: %d nodes, largest relative difference %.2g\n", name, g->node_count, d);
    if (d > 2e-3)
        fail_msg("light_%s differs from the expected output by %g", name, d);
    assert_int_equal(found, shuffles);
    free(reference.data);
    free(want.data);
    bw_array_free(&x);
    bw_array_free(&y);
    bw_graph_free(g);
}

static void test_light_networks(void **state)
{
    (void)state;
    check_light("squeezenet", 0);
    check_light("shufflenet", 16);
    check_light("inception_v1", 0);
}

static void test_light_networks_long(void **state)
{
    (void)state;
    if (!getenv("BW_LONG")) {
        print_message("# BW_LONG is not set: the large light_ networks wait\n");
        skip();
    }
    check_light("densenet121", 0);
    check_light("inception_v2", 0);
    check_light("resnet50", 0);
    check_light("bvlc_alexnet", 0);
    check_light("zfnet512", 0);
    check_light("vgg19", 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_resnet20),
        cmocka_unit_test(test_resnet20_torch_export),
        cmocka_unit_test(test_resnet8),
        cmocka_unit_test(test_kws),
        cmocka_unit_test(test_mnist),
        cmocka_unit_test(test_keyword_transformer),
        cmocka_unit_test(test_passes_keep_the_function),
        cmocka_unit_test(test_option_a_shortcuts),
        cmocka_unit_test(test_recurrent_models_are_refused),
        cmocka_unit_test(test_light_networks),
        cmocka_unit_test(test_light_networks_long),
    };
    return cmocka_run_group_tests_name("import_models", tests, NULL, NULL);
}
