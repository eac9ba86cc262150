/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Trained networks in float, on all of their labelled samples: outputs within 1e-4 of another runtime's, accuracy the
 * same to the sample. Run as imported (the executor's own BatchNormalization, Pad, Softmax ...), not after the passes.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "hal/base.h"
#include "quantize/import.h"

#define CHUNK 125

typedef struct network {
    const char *model, *samples, *labels, *expected;
    enum { CIFAR_NORMALISED, CIFAR_RAW, MNIST, MNIST_UNIT, FLOATS } kind;
    int count;
    double top1; /* percent; 0: no labels */
} network;

static const network networks[] = {
    {"resnet20_cifar10", "images/cifar10_jpg_ship_test1000.bin", NULL, "resnet20_cifar10.ship1000.out_1000x10",
     CIFAR_NORMALISED, 1000, 80.4},
    {"resnet20_cifar10_torch113export", "images/cifar10_jpg_ship_test1000.bin", NULL,
     "resnet20_cifar10.ship1000.out_1000x10", CIFAR_NORMALISED, 1000, 80.4},
    {"resnet8_cifar10_bn", "images/cifar10_jpg_ship_test1000.bin", NULL, "resnet8_cifar10_bn.ship1000.out_1000x10",
     CIFAR_RAW, 1000, 75.1},
    {"kws_dscnn_folded", "kws/kws_mfcc_1000x49x10.f32", "kws/labels_1000.u8", "kws_dscnn_folded.apache1000.out_1000x12",
     FLOATS, 1000, 91.0},
    {"mnist_cntk", "mnist/t1k-images-idx3-ubyte", "mnist/t1k-labels-idx1-ubyte", "mnist_cntk.t1k.out_1000x10", MNIST,
     1000, 98.7},
    {"kwt1_fsdd_digits", "digits_audio/test_mfcc_300x98x40.f32", "digits_audio/test_labels_300.u8",
     "kwt1_fsdd_digits.test300.out_300x10", FLOATS, 300, 99.67},
};

static int load(const char *name, void **bytes, size_t *size)
{
    const char *shared = getenv("BW_SHARED");
    char path[600];
    snprintf(path, sizeof path, "%s/%s", shared ? shared : "../shared/data", name);
    if (bw_file_read(path, (size_t)1 << 28, bytes, size, NULL)) {
        print_message("# %s is not there: BW_SHARED names the test data's directory\n", path);
        return -1;
    }
    return 0;
}

static void fill(const network *n, const uint8_t *samples, int64_t first, int64_t count, int64_t size, float *x)
{
    static const float mean[] = {0.485f, 0.456f, 0.406f}, std[] = {0.229f, 0.224f, 0.225f};
    for (int64_t i = 0; i < count; i++)
        for (int64_t k = 0; k < size; k++) {
            int64_t at = first + i;
            float *to = &x[i * size + k];
            if (n->kind == FLOATS)
                memcpy(to, samples + (at * size + k) * 4, 4);
            else if (n->kind == MNIST || n->kind == MNIST_UNIT)
                *to = (float)samples[16 + at * 784 + k] / (n->kind == MNIST ? 1.0f : 255.0f);
            else if (n->kind == CIFAR_RAW)
                *to = (float)samples[at * 3073 + 1 + k];
            else
                *to = ((float)samples[at * 3073 + 1 + k] / 255.0f - mean[k / 1024]) / std[k / 1024];
        }
}

static int label_of(const network *n, const uint8_t *samples, const uint8_t *labels, int64_t i)
{
    if (!n->labels)
        return samples[i * 3073];
    return labels[(n->kind == MNIST || n->kind == MNIST_UNIT ? 8 : 0) + i];
}

static void check(const network *n)
{
    void *samples = NULL, *labels = NULL, *expected = NULL;
    size_t sample_size, label_size = 0, expected_size;
    char model[600], path[200];
    const char *shared = getenv("BW_SHARED");
    snprintf(path, sizeof path, "expected/%s.f32", n->expected);
    if (load(n->samples, &samples, &sample_size) || load(path, &expected, &expected_size) ||
        (n->labels && load(n->labels, &labels, &label_size))) {
        free(samples);
        free(expected);
        skip();
    }
    snprintf(model, sizeof model, "%s/models/%s.onnx", shared ? shared : "../shared/data", n->model);
    bw_graph *g;
    bw_executor *ex;
    bw_error err = {0};
    if (bw_onnx_import(model, NULL, 0, &g, NULL, &err) || bw_executor_create(g, &ex, &err))
        fail_msg("%s", err.message);
    const bw_value *v = &g->values[g->inputs[0]];
    int64_t dims[BW_RANK_MAX], size = 1, chunk = v->dims[0] < 0 ? CHUNK : v->dims[0], right = 0, classes = 0;
    memcpy(dims, v->dims, sizeof dims);
    for (int i = 1; i < v->rank; i++)
        size *= dims[i];
    double scale = 0, worst = 0;
    for (size_t i = 0; i < expected_size / 4; i++)
        scale = fmax(scale, fabs((double)((float *)expected)[i]));
    for (int64_t first = 0; first < n->count; first += chunk) {
        dims[0] = first + chunk > n->count ? n->count - first : chunk;
        bw_array x, y = {0};
        assert_int_equal(bw_array_alloc(&x, BW_F32, v->rank, dims, NULL), BW_OK);
        fill(n, samples, first, dims[0], size, x.data);
        if (bw_executor_run(ex, &x, &y, NULL, NULL, &err))
            fail_msg("%s", err.message);
        classes = bw_array_count(&y) / dims[0];
        assert_true((size_t)((first + dims[0]) * classes * 4) <= expected_size);
        for (int64_t i = 0; i < dims[0]; i++) {
            const float *row = (float *)y.data + i * classes, *want = (float *)expected + (first + i) * classes;
            int64_t best = 0;
            for (int64_t k = 0; k < classes; k++) {
                best = row[k] > row[best] ? k : best;
                worst = fmax(worst, fabs((double)row[k] - (double)want[k]) / (fabs((double)want[k]) + 0.01 * scale));
            }
            right += best == label_of(n, samples, labels, first + i);
        }
        bw_array_free(&x);
        bw_array_free(&y);
    }
    double top1 = 100.0 * (double)right / n->count;
    print_message("# %s: top-1 %.2f %% of %d, largest relative difference %.2g\n", n->model, top1, n->count, worst);
    bw_executor_destroy(ex);
    bw_graph_free(g);
    free(samples);
    free(labels);
    free(expected);
    assert_true(fabs(top1 - n->top1) < 0.005);
    assert_true(worst < 1e-4);
}

static void run(void **state)
{
    check(*state);
}

int main(void)
{
    enum { COUNT = sizeof networks / sizeof *networks };
    struct CMUnitTest tests[COUNT];
    for (int i = 0; i < COUNT; i++)
        tests[i] = (struct CMUnitTest){networks[i].model, run, NULL, NULL, (void *)&networks[i]};
    return cmocka_run_group_tests_name("float networks", tests, NULL, NULL);
}
