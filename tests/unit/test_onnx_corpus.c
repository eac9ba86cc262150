/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The seeds of the ONNX fuzzer are what this program writes: valid and hostile models, each with its expected outcome.
 * The test compares them with the files; BW_WRITE_CORPUS=1 writes them anew.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "hal/base.h"
#include "quantize/import.h"
#include "quantize/passes.h"
#include "tests/support/onnx_builder.h"

#define DIMS(...)                                                                                                      \
    (int64_t[])                                                                                                        \
    {                                                                                                                  \
        __VA_ARGS__                                                                                                    \
    }

static void ramp(bw_onnx_builder *b, const char *name, int rank, const int64_t *dims)
{
    float v[2048];
    int64_t n = 1;
    for (int i = 0; i < rank; i++)
        n *= dims[i];
    assert_true(n <= 2048);
    for (int64_t i = 0; i < n; i++)
        v[i] = (float)(i % 7 + 1) / 8;
    bw_ob_floats(b, name, rank, dims, v);
}

static void conv_bn(bw_onnx_builder *b)
{
    bw_ob_begin(b, 13);
    bw_ob_input(b, "x", 1, 4, DIMS(-1, 2, 4, 4));
    ramp(b, "w", 4, DIMS(3, 2, 3, 3));
    static const char *const names[] = {"s", "b", "m", "v"};
    for (int i = 0; i < 4; i++)
        ramp(b, names[i], 1, DIMS(3));
    bw_ob_node(b, "Conv", "conv", "x,w", "a");
    bw_ob_attr_ints(b, "pads", 4, DIMS(1, 1, 1, 1));
    bw_ob_node(b, "BatchNormalization", "bn", "a,s,b,m,v", "c");
    bw_ob_node(b, "Relu", "relu", "c", "y");
    bw_ob_output(b, "y");
}

static void fixed_batch(bw_onnx_builder *b)
{
    bw_ob_begin(b, 7);
    bw_ob_input(b, "x", 1, 4, DIMS(1, 1, 8, 8));
    ramp(b, "w", 4, DIMS(4, 1, 3, 3));
    ramp(b, "k", 3, DIMS(4, 1, 1));
    ramp(b, "m", 2, DIMS(16, 5));
    ramp(b, "c", 2, DIMS(1, 5));
    bw_ob_ints(b, "flat", 2, DIMS(1, 16));
    bw_ob_node(b, "Conv", "conv", "x,w", "a");
    bw_ob_attr_string(b, "auto_pad", "SAME_UPPER");
    bw_ob_node(b, "Add", "plus", "a,k", "d");
    bw_ob_node(b, "MaxPool", "pool", "d", "e");
    bw_ob_attr_ints(b, "kernel_shape", 2, DIMS(4, 4));
    bw_ob_attr_ints(b, "strides", 2, DIMS(4, 4));
    bw_ob_node(b, "Reshape", "rs", "e,flat", "f");
    bw_ob_node(b, "MatMul", "mm", "f,m", "g");
    bw_ob_node(b, "Add", "bias", "g,c", "h");
    bw_ob_node(b, "Softmax", "soft", "h", "y");
    bw_ob_output(b, "y");
}

static void shapes(bw_onnx_builder *b)
{
    bw_ob_begin(b, 13);
    bw_ob_input(b, "x", 1, 4, DIMS(-1, 4, 6, 6));
    bw_ob_ints(b, "zero", 1, DIMS(0));
    bw_ob_ints(b, "rest", 1, DIMS(-1));
    bw_ob_ints(b, "starts", 2, DIMS(0, 0));
    bw_ob_ints(b, "ends", 2, DIMS(INT64_MAX, 6));
    bw_ob_ints(b, "axes", 2, DIMS(2, 3));
    bw_ob_ints(b, "steps", 2, DIMS(2, 2));
    bw_ob_ints(b, "pads", 8, DIMS(0, 2, 0, 0, 0, 2, 0, 0));
    bw_ob_node(b, "Slice", "half", "x,starts,ends,axes,steps", "h");
    bw_ob_node(b, "Pad", "wide", "h,pads", "p");
    bw_ob_node(b, "Shape", "shape", "p", "s");
    bw_ob_node(b, "Gather", "batch", "s,zero", "n");
    bw_ob_node(b, "Concat", "target", "n,rest", "t");
    bw_ob_attr_int(b, "axis", 0);
    bw_ob_node(b, "Reshape", "view", "p,t", "v");
    bw_ob_node(b, "ReduceMean", "mean", "v", "y");
    bw_ob_attr_ints(b, "axes", 1, DIMS(-1));
    bw_ob_output(b, "y");
}

static void resize(bw_onnx_builder *b)
{
    bw_ob_begin(b, 10);
    bw_ob_input(b, "x", 1, 4, DIMS(-1, 1, 3, 3));
    bw_ob_floats(b, "scales", 1, DIMS(4), (float[]){1, 1, 2, 2});
    bw_ob_node(b, "Resize", "up", "x,scales", "a");
    bw_ob_node(b, "Clip", "clip", "a", "c");
    bw_ob_attr_float(b, "min", 0);
    bw_ob_attr_float(b, "max", 6);
    bw_ob_node(b, "Split", "split", "c", "p,q");
    bw_ob_attr_int(b, "axis", 2);
    bw_ob_node(b, "Sum", "sum", "p,q,p", "y");
    bw_ob_output(b, "y");
}

static void constants(bw_onnx_builder *b)
{
    bw_ob_begin(b, 9);
    bw_ob_input(b, "x", 1, 4, DIMS(1, 4, 2, 2));
    bw_ob_ints(b, "shape", 1, DIMS(4));
    bw_ob_node(b, "ConstantOfShape", "fill", "shape", "k");
    bw_ob_attr_tensor(b, "value", 1, 1, DIMS(1), &(float){0.5f}, 4);
    bw_ob_node(b, "Unsqueeze", "u", "k", "l");
    bw_ob_attr_ints(b, "axes", 2, DIMS(1, 2));
    bw_ob_node(b, "Constant", "c", "", "m");
    bw_ob_attr_tensor(b, "value", 10, 1, DIMS(1), "\0\074", 2);
    bw_ob_node(b, "Cast", "cast", "m", "f");
    bw_ob_attr_int(b, "to", 1);
    bw_ob_node(b, "Mul", "mul", "x,l", "n");
    bw_ob_node(b, "Add", "add", "n,f", "y");
    bw_ob_output(b, "y");
}

static void relu_only(bw_onnx_builder *b)
{
    bw_ob_begin(b, 13);
    bw_ob_input(b, "x", 1, 2, DIMS(-1, 4));
    bw_ob_node(b, "Relu", "r", "x", "y");
    bw_ob_output(b, "y");
}

static void dynamic(bw_onnx_builder *b)
{
    bw_ob_begin(b, 13);
    bw_ob_input(b, "x", 1, 4, DIMS(-1, 2, -2, 4));
    ramp(b, "w", 4, DIMS(2, 2, 1, 1));
    bw_ob_node(b, "Conv", "conv", "x,w", "y");
    bw_ob_output(b, "y");
}

static void unsupported(bw_onnx_builder *b)
{
    bw_ob_begin(b, 13);
    bw_ob_input(b, "x", 1, 2, DIMS(-1, 4));
    bw_ob_node(b, "NonZero", "odd", "x", "y");
    bw_ob_output(b, "y");
}

static void cycle(bw_onnx_builder *b)
{
    bw_ob_begin(b, 13);
    bw_ob_input(b, "x", 1, 2, DIMS(-1, 4));
    bw_ob_node(b, "Add", "one", "x,b", "a");
    bw_ob_node(b, "Relu", "two", "a", "b");
    bw_ob_output(b, "b");
}

static void bomb(bw_onnx_builder *b)
{
    bw_ob_begin(b, 13);
    bw_ob_input(b, "x", 1, 2, DIMS(-1, 4));
    bw_ob_ints(b, "shape", 3, DIMS(INT64_C(1) << 31, INT64_C(1) << 31, 4));
    bw_ob_node(b, "ConstantOfShape", "bomb", "shape", "huge");
    bw_ob_node(b, "Add", "add", "x,huge", "y");
    bw_ob_output(b, "y");
}

static void wrong_size(bw_onnx_builder *b)
{
    bw_ob_begin(b, 13);
    bw_ob_input(b, "x", 1, 2, DIMS(-1, 4));
    bw_ob_raw(b, "w", 1, 2, DIMS(4, 4), "abc", 3);
    bw_ob_node(b, "MatMul", "mm", "x,w", "y");
    bw_ob_output(b, "y");
}

/* Too few inputs, and what is computed from the result. */
static void one_operand(bw_onnx_builder *b)
{
    bw_ob_begin(b, 13);
    bw_ob_input(b, "x", 1, 3, DIMS(-1, 3, 4));
    bw_ob_node(b, "MatMul", "mm", "x", "y");
    bw_ob_node(b, "Shape", "shape", "y", "s");
    bw_ob_node(b, "Reshape", "view", "y,s", "z");
    bw_ob_output(b, "z");
}

static void huge_dims(bw_onnx_builder *b)
{
    bw_ob_begin(b, 13);
    bw_ob_input(b, "x", 1, 4, DIMS(-1, INT32_MAX, INT32_MAX, INT32_MAX));
    ramp(b, "w", 4, DIMS(1, 1, 1, 1));
    bw_ob_node(b, "Conv", "conv", "x,w", "a");
    bw_ob_attr_ints(b, "pads", 4, DIMS(INT64_MAX, INT64_MIN, -1, 1));
    bw_ob_attr_ints(b, "strides", 2, DIMS(0, -1));
    bw_ob_attr_int(b, "group", 0);
    bw_ob_node(b, "Flatten", "f", "a", "y");
    bw_ob_output(b, "y");
}

static const struct seed {
    const char *name;
    void (*make)(bw_onnx_builder *b);
    bw_status status; /* of the import; -1: any failure */
} seeds[] = {
    {"conv_bn", conv_bn, BW_OK},
    {"fixed_batch", fixed_batch, BW_OK},
    {"shapes", shapes, BW_OK},
    {"resize", resize, BW_OK},
    {"constants", constants, BW_OK},
    {"relu_only", relu_only, BW_OK},
    {"dynamic", dynamic, BW_INVALID_ARGUMENT},
    {"unsupported", unsupported, BW_UNSUPPORTED},
    {"cycle", cycle, BW_CORRUPT},
    {"bomb", bomb, (bw_status)-1},
    {"wrong_size", wrong_size, BW_CORRUPT},
    {"one_operand", one_operand, BW_CORRUPT},
    {"huge_dims", huge_dims, (bw_status)-1},
};

static void test_corpus(void **state)
{
    (void)state;
    const char *top = getenv("BW_TOP");
    for (size_t i = 0; i < sizeof seeds / sizeof seeds[0]; i++) {
        bw_onnx_builder b;
        char path[1024];
        bw_error err = {0};
        bw_graph *g = NULL;
        snprintf(path, sizeof path, "%s/tests/fuzz/corpus/onnx/%s.onnx", top ? top : ".", seeds[i].name);
        seeds[i].make(&b);
        bw_ob_end(&b);
        if (getenv("BW_WRITE_CORPUS")) {
            bw_slice slice = {b.model.bytes, b.model.size};
            assert_int_equal(bw_file_write_atomic(path, &slice, 1, &err), BW_OK);
        }
        void *bytes;
        size_t size;
        if (bw_file_read(path, 1 << 20, &bytes, &size, &err))
            fail_msg("%s", err.message);
        assert_int_equal(size, b.model.size);
        assert_memory_equal(bytes, b.model.bytes, size);
        bw_status st = bw_onnx_import_bytes(bytes, size, NULL, 0, &g, NULL, &err);
        if ((int)seeds[i].status == -1 ? st == BW_OK : st != seeds[i].status)
            fail_msg("%s: %s %s, expected %s", seeds[i].name, bw_status_name(st), st ? err.message : "",
                     bw_status_name(seeds[i].status));
        if (!st && bw_passes_run(g, &err))
            fail_msg("%s: %s", seeds[i].name, err.message);
        bw_graph_free(g);
        free(bytes);
        bw_ob_free(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_corpus)};
    return cmocka_run_group_tests_name("onnx_corpus", tests, NULL, NULL);
}
