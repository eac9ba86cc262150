/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ONNX's own operator cases: every test_* directory of BW_SHARED/onnx/node/{node,simple} is imported and run, its
 * outputs compared. A case is left out only if it needs an operator that bw_op_supported denies, or if the importer
 * refuses it as not supported; both are counted, the refusals listed by reason with BW_LONG. Anything else fails.
 */
#include <dirent.h>
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
#include "host/ops/op.h"
#include "quantize/import.h"
#include "quantize/onnx.pb-c.h"

enum { PASSED, NO_OPERATOR, REFUSED, DIFFERENT, FAILED, OUTCOMES };

static int counts[OUTCOMES];

/* --- TensorProto files ----------------------------------------------------------------------------------------------
 */

static bw_dtype dtype_of(int32_t onnx)
{
    static const bw_dtype types[] = {[1] = BW_F32, [2] = BW_U8,   [3] = BW_I8,   [6] = BW_I32,
                                     [7] = BW_I64, [9] = BW_BOOL, [10] = BW_F16, [11] = BW_F64};
    return onnx < 0 || onnx >= (int32_t)(sizeof types / sizeof *types) ? BW_DTYPE_NONE : types[onnx];
}

static int read_bytes(const char *path, void **bytes, size_t *size)
{
    return bw_file_read(path, (size_t)1 << 28, bytes, size, NULL) != BW_OK;
}

/* 0: read; 1: no such file; -1: a type we have not. */
static int read_tensor(const char *path, bw_array *a)
{
    void *bytes;
    size_t size;
    memset(a, 0, sizeof *a);
    if (access(path, R_OK) || read_bytes(path, &bytes, &size))
        return 1;
    BwOnnx__TensorProto *t = bw_onnx__tensor_proto__unpack(NULL, size, bytes);
    free(bytes);
    int result = -1;
    if (t && dtype_of(t->data_type) && t->n_dims <= BW_RANK_MAX &&
        !bw_array_alloc(a, dtype_of(t->data_type), (int)t->n_dims, t->dims, NULL)) {
        result = 0;
        int64_t n = bw_array_count(a);
        if (a->bytes == 0) {
            result = 0;
        } else if (t->raw_data.len == a->bytes) {
            memcpy(a->data, t->raw_data.data, a->bytes);
        } else if (a->dtype == BW_F32 && t->n_float_data == (size_t)n) {
            memcpy(a->data, t->float_data, a->bytes);
        } else if (a->dtype == BW_I64 && t->n_int64_data == (size_t)n) {
            memcpy(a->data, t->int64_data, a->bytes);
        } else if (a->dtype == BW_F64 && t->n_double_data == (size_t)n) {
            memcpy(a->data, t->double_data, a->bytes);
        } else if (t->n_int32_data == (size_t)n && a->dtype != BW_F16) {
            bw_cast(BW_I32, t->int32_data, a->dtype, a->data, n);
        } else {
            bw_array_free(a);
            result = -1;
        }
    }
    if (t)
        bw_onnx__tensor_proto__free_unpacked(t, NULL);
    return result;
}

static void convert(bw_array *a, bw_dtype to)
{
    bw_array c;
    if (a->dtype == to)
        return;
    assert_int_equal(bw_array_alloc(&c, to, a->rank, a->dims, NULL), BW_OK);
    bw_cast(a->dtype, a->data, to, c.data, bw_array_count(a));
    bw_array_free(a);
    *a = c;
}

/* Empty: equal within rtol 1e-3, atol 1e-5 (numbers); otherwise what differs. */
static void compare(const bw_array *got, const bw_array *want, char text[160])
{
    char a[128], b[128];
    *text = 0;
    int same = got->rank == want->rank && got->dtype == want->dtype;
    for (int i = 0; same && i < got->rank; i++)
        same = got->dims[i] == want->dims[i];
    if (!same) {
        snprintf(text, 160, "%s %s: expected %s %s", bw_dtype_name(got->dtype), bw_dims_text(got->rank, got->dims, a),
                 bw_dtype_name(want->dtype), bw_dims_text(want->rank, want->dims, b));
        return;
    }
    for (int64_t i = 0, n = bw_array_count(got); i < n; i++) {
        double x, y;
        size_t size = bw_dtype_size(got->dtype);
        bw_cast(got->dtype, (const char *)got->data + (size_t)i * size, BW_F64, &x, 1);
        bw_cast(want->dtype, (const char *)want->data + (size_t)i * size, BW_F64, &y, 1);
        int integers = got->dtype != BW_F32 && got->dtype != BW_F64 && got->dtype != BW_F16;
        if (x == y || (isnan(x) && isnan(y)))
            continue;
        if (integers || !(fabs(x - y) <= 1e-5 + 1e-3 * fabs(y))) {
            snprintf(text, 160, "element %lld is %.9g: expected %.9g", (long long)i, x, y);
            return;
        }
    }
}

/* Cases whose expected values are not what runtimes and trained networks mean. */
static const struct {
    const char *name, *why;
} known_differences[] = {
    {"test_resize_downsample_scales_linear_align_corners",
     "it divides by the fractional size 2.4 - 1; exporters mean the integer size, as in PyTorch"},
};

static const char *known_difference(const char *name)
{
    for (size_t i = 0; i < sizeof known_differences / sizeof *known_differences; i++)
        if (!strcmp(known_differences[i].name, name))
            return known_differences[i].why;
    return NULL;
}

/* --- one case ----------------------------------------------------------------------------------------------------- */

/* The first operator that the executor has not; NULL: it has all. */
static const char *missing_operator(const char *path, char name[64])
{
    void *bytes;
    size_t size;
    if (read_bytes(path, &bytes, &size))
        return "?";
    BwOnnx__ModelProto *m = bw_onnx__model_proto__unpack(NULL, size, bytes);
    free(bytes);
    const char *missing = m && m->graph ? NULL : "?";
    for (size_t i = 0; !missing && i < m->graph->n_node; i++) {
        const BwOnnx__NodeProto *n = m->graph->node[i];
        int done = (!*n->domain || !strcmp(n->domain, "ai.onnx")) &&
                   (bw_op_supported(n->op_type) || !strcmp(n->op_type, "Constant") || !strcmp(n->op_type, "Upsample"));
        if (!done) {
            snprintf(name, 64, "%s", n->op_type);
            missing = name;
        }
    }
    if (m)
        bw_onnx__model_proto__free_unpacked(m, NULL);
    return missing;
}

/* One test_data_set_N. 1: run and right; 0: not there; -1: wrong, said in `text`; -2: a tensor type we have not. */
static int run_set(const bw_graph *g, const char *dir, int set, char text[600])
{
    enum { MOST = 64 };
    bw_array in[MOST] = {{0}}, out[MOST] = {{0}}, want[MOST] = {{0}};
    char path[1200];
    int result = 1, wanted = 0;
    assert_true(g->input_count <= MOST && g->output_count <= MOST);
    snprintf(path, sizeof path, "%s/test_data_set_%d", dir, set);
    if (access(path, R_OK))
        return 0;
    for (int i = 0; i < g->input_count && result == 1; i++) {
        snprintf(path, sizeof path, "%s/test_data_set_%d/input_%d.pb", dir, set, i);
        int got = read_tensor(path, &in[i]);
        if (got)
            result = -2;
        else
            convert(&in[i], g->values[g->inputs[i]].dtype);
    }
    for (int i = 0; i < g->output_count && result == 1; i++, wanted++) {
        snprintf(path, sizeof path, "%s/test_data_set_%d/output_%d.pb", dir, set, i);
        if (read_tensor(path, &want[i]))
            result = -2;
    }
    bw_executor *ex = NULL;
    bw_error err = {0};
    if (result == 1 && (bw_executor_create(g, &ex, &err) || bw_executor_run(ex, in, out, NULL, NULL, &err))) {
        snprintf(text, 600, "%s", err.message);
        result = -1;
    }
    for (int i = 0; i < wanted && result == 1; i++) {
        char difference[160];
        /* The importer narrows fp64 and fp16 networks to fp32. */
        if (want[i].dtype == BW_F64 || want[i].dtype == BW_F16)
            convert(&want[i], out[i].dtype);
        compare(&out[i], &want[i], difference);
        if (*difference) {
            snprintf(text, 600, "output %d: %s", i, difference);
            result = -1;
        }
    }
    bw_executor_destroy(ex);
    for (int i = 0; i < MOST; i++) {
        bw_array_free(&in[i]);
        bw_array_free(&out[i]);
        bw_array_free(&want[i]);
    }
    return result;
}

static int run_case(const char *dir, char text[600])
{
    char path[1100], missing[64];
    snprintf(path, sizeof path, "%s/model.onnx", dir);
    *text = 0;
    const char *op = missing_operator(path, missing);
    if (op) {
        snprintf(text, 600, "operator %s", op);
        return NO_OPERATOR;
    }
    bw_graph *g;
    bw_error err = {0};
    bw_status status = bw_onnx_import(path, NULL, 0, &g, NULL, &err);
    if (status) {
        snprintf(text, 600, "%s", err.message);
        return status == BW_UNSUPPORTED || status == BW_INVALID_ARGUMENT ? REFUSED : FAILED;
    }
    int result = 1, sets = 0;
    while ((result = run_set(g, dir, sets, text)) == 1)
        sets++;
    bw_graph_free(g);
    if (result == -2) {
        snprintf(text, 600, "tensor type");
        return REFUSED;
    }
    return result == 0 && sets ? PASSED : FAILED;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int is_case(const struct dirent *e)
{
    return !strncmp(e->d_name, "test_", 5);
}

static void run_folder(const char *folder)
{
    const char *shared = getenv("BW_SHARED"), *only = getenv("BW_CASE");
    char base[600], dir[900], path[1000], text[600];
    snprintf(base, sizeof base, "%s/onnx/node/%s", shared ? shared : "../shared/data", folder);
    struct dirent **list;
    int n = scandir(base, &list, is_case, by_name);
    if (n < 0) {
        print_message("# %s is not there: BW_SHARED names the test data's directory\n", base);
        skip();
    }
    memset(counts, 0, sizeof counts);
    for (int i = 0; i < n; i++) {
        snprintf(dir, sizeof dir, "%s/%s", base, list[i]->d_name);
        snprintf(path, sizeof path, "%s/model.onnx", dir);
        if (!access(path, R_OK) && (!only || strstr(list[i]->d_name, only))) {
            int outcome = run_case(dir, text);
            const char *why = known_difference(list[i]->d_name);
            if (outcome == FAILED && why) {
                print_message("# differs: %s: %s\n", list[i]->d_name, why);
                outcome = DIFFERENT;
            } else if (why) {
                print_message("# %s is listed as different but is not\n", list[i]->d_name);
                outcome = FAILED;
            }
            counts[outcome]++;
            if (outcome == FAILED || (outcome == REFUSED && getenv("BW_LONG")))
                print_message("# %s: %s: %s\n", outcome == FAILED ? "FAILED" : "refused", list[i]->d_name, text);
        }
        free(list[i]);
    }
    free(list);
    print_message("# %s: %d passed, %d need an operator that is not supported, %d refused by the importer, %d known to "
                  "differ, %d failed\n",
                  folder, counts[PASSED], counts[NO_OPERATOR], counts[REFUSED], counts[DIFFERENT], counts[FAILED]);
    assert_int_equal(counts[FAILED], 0);
}

static void node_cases(void **state)
{
    (void)state;
    run_folder("node");
    if (!getenv("BW_CASE"))
        assert_true(counts[PASSED] >= 535);
}

static void simple_cases(void **state)
{
    (void)state;
    run_folder("simple");
    if (!getenv("BW_CASE"))
        assert_true(counts[PASSED] >= 6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(node_cases),
        cmocka_unit_test(simple_cases),
    };
    return cmocka_run_group_tests_name("ONNX operator cases", tests, NULL, NULL);
}
