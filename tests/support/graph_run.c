/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/graph_run.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

void bw_test_random(float *v, size_t count, uint64_t seed)
{
    uint64_t s = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
    for (size_t i = 0; i < count; i++) {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        v[i] = (float)(int32_t)(s >> 40) / 8388608.0f - 1.0f;
    }
}

void bw_test_run_on(const bw_graph *g, const bw_array *inputs, bw_array *outputs)
{
    bw_error err = {0};
    bw_executor *ex = NULL;
    memset(outputs, 0, (size_t)g->output_count * sizeof *outputs);
    if (bw_executor_create(g, &ex, &err) || bw_executor_run(ex, inputs, outputs, NULL, NULL, &err))
        fail_msg("run: %s", err.message);
    bw_executor_destroy(ex);
}

void bw_test_run(const bw_graph *g, int64_t batch, uint64_t seed, bw_array *outputs)
{
    bw_array *inputs = calloc((size_t)g->input_count + 1, sizeof *inputs);
    assert_non_null(inputs);
    for (int i = 0; i < g->input_count; i++) {
        const bw_value *v = &g->values[g->inputs[i]];
        int64_t dims[BW_RANK_MAX];
        bw_error err;
        assert_int_equal(v->dtype, BW_F32);
        for (int k = 0; k < v->rank; k++)
            dims[k] = v->dims[k] < 0 ? batch : v->dims[k];
        assert_int_equal(bw_array_alloc(&inputs[i], BW_F32, v->rank, dims, &err), BW_OK);
        bw_test_random(inputs[i].data, (size_t)bw_array_count(&inputs[i]), seed + (uint64_t)i);
    }
    bw_test_run_on(g, inputs, outputs);
    for (int i = 0; i < g->input_count; i++)
        bw_array_free(&inputs[i]);
    free(inputs);
}

double bw_test_difference(const bw_array *a, const bw_array *b)
{
    assert_int_equal(a->dtype, b->dtype);
    assert_int_equal(a->rank, b->rank);
    for (int i = 0; i < a->rank; i++)
        assert_int_equal(a->dims[i], b->dims[i]);
    if (a->dtype != BW_F32)
        return memcmp(a->data, b->data, a->bytes) ? HUGE_VAL : 0;
    const float *x = a->data, *y = b->data;
    int64_t n = bw_array_count(a);
    double scale = 0, worst = 0;
    for (int64_t i = 0; i < n; i++)
        scale = fmax(scale, fabs((double)y[i]));
    scale = fmax(scale * 1e-3, 1e-30);
    for (int64_t i = 0; i < n; i++) {
        double d = fabs((double)x[i] - y[i]) / (fabs((double)y[i]) + scale);
        if (!(d <= worst)) /* NaN counts */
            worst = isnan(d) ? HUGE_VAL : d;
    }
    return worst;
}

void bw_test_same_function(const bw_graph *a, const bw_graph *b, int64_t batch, double tolerance)
{
    assert_int_equal(a->input_count, b->input_count);
    assert_int_equal(a->output_count, b->output_count);
    bw_array *x = calloc((size_t)a->output_count * 2, sizeof *x);
    assert_non_null(x);
    bw_array *y = x + a->output_count;
    bw_test_run(a, batch, 7, x);
    bw_test_run(b, batch, 7, y);
    for (int i = 0; i < a->output_count; i++) {
        double d = bw_test_difference(&x[i], &y[i]);
        if (d > tolerance)
            fail_msg("output '%s' differs by %g, at most %g", a->values[a->outputs[i]].name, d, tolerance);
        bw_array_free(&x[i]);
        bw_array_free(&y[i]);
    }
    free(x);
}
