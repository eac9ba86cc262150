/* SPDX-License-Identifier: Apache-2.0 */
/* Operators of the float graph against direct loops written from ONNX's definitions. */
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "host/graph.h"
#include "host/ops/exp.h"
#include "host/ops/gemm.h"
#include "host/ops/parallel.h"

#define D(...)                                                                                                         \
    (int64_t[])                                                                                                        \
    {                                                                                                                  \
        __VA_ARGS__                                                                                                    \
    }

static uint32_t seed = 1;

static float noise(void)
{
    seed = seed * 1664525u + 1013904223u;
    return (float)(int32_t)seed / 2147483648.0f;
}

static bw_array random_array(int rank, const int64_t *dims)
{
    bw_array a;
    bw_error err;
    assert_int_equal(bw_array_alloc(&a, BW_F32, rank, dims, &err), BW_OK);
    for (int64_t i = 0; i < bw_array_count(&a); i++)
        ((float *)a.data)[i] = noise();
    return a;
}

static bw_array make_array(bw_dtype dtype, int rank, const int64_t *dims, const void *values)
{
    bw_array a;
    bw_error err;
    assert_int_equal(bw_array_alloc(&a, dtype, rank, dims, &err), BW_OK);
    if (a.bytes)
        memcpy(a.data, values, a.bytes);
    return a;
}

/* A graph of one node over `count` inputs of the arrays' types and shapes. */
static bw_graph *one_node(const char *op, const bw_array *in, int count, int outputs)
{
    bw_graph *g = bw_graph_new("one");
    int in_ids[8], out_ids[8];
    for (int i = 0; i < count; i++) {
        char name[16];
        snprintf(name, sizeof name, "x%d", i);
        in_ids[i] = bw_graph_add_value(g, name, in[i].dtype, in[i].rank, in[i].dims);
    }
    for (int i = 0; i < outputs; i++) {
        char name[16];
        snprintf(name, sizeof name, "y%d", i);
        out_ids[i] = bw_graph_add_value(g, name, BW_DTYPE_NONE, -1, NULL);
    }
    assert_int_equal(bw_graph_add_node(g, op, "n", in_ids, count, out_ids, outputs), 0);
    assert_int_equal(bw_graph_set_inputs(g, in_ids, count), BW_OK);
    assert_int_equal(bw_graph_set_outputs(g, out_ids, outputs), BW_OK);
    return g;
}

static void run_ok(bw_graph *g, const bw_array *in, bw_array *out)
{
    bw_error err = {0};
    bw_executor *ex = NULL;
    bw_status status = bw_graph_infer_shapes(g, &err);
    if (!status)
        status = bw_executor_create(g, &ex, &err);
    if (status)
        fail_msg("%s", err.message);
    memset(out, 0, sizeof *out * (size_t)g->output_count);
    if (bw_executor_run(ex, in, out, NULL, NULL, &err))
        fail_msg("%s", err.message);
    bw_executor_destroy(ex);
    bw_graph_free(g);
}

static void expect_close(const bw_array *a, const float *want, double tolerance)
{
    for (int64_t i = 0; i < bw_array_count(a); i++) {
        double got = (double)((const float *)a->data)[i], w = (double)want[i];
        if (!(fabs(got - w) <= tolerance * (1 + fabs(w))))
            fail_msg("element %lld is %g: expected %g", (long long)i, got, w);
    }
}

static void expect_dims(const bw_array *a, int rank, const int64_t *dims)
{
    assert_int_equal(a->rank, rank);
    for (int i = 0; i < rank; i++)
        assert_int_equal(a->dims[i], dims[i]);
}

/* --- convolution -------------------------------------------------------------------------------------------------- */

static float *naive_conv(const bw_array *x, const bw_array *w, const float *bias, int64_t group, const int64_t *stride,
                         const int64_t *dilation, const int64_t *pads, int64_t oh, int64_t ow)
{
    int64_t n = x->dims[0], c = x->dims[1], h = x->dims[2], wd = x->dims[3], m = w->dims[0], cg = w->dims[1];
    int64_t kh = w->dims[2], kw = w->dims[3];
    float *y = malloc(sizeof *y * (size_t)(n * m * oh * ow));
    for (int64_t b = 0; b < n; b++)
        for (int64_t o = 0; o < m; o++)
            for (int64_t i = 0; i < oh; i++)
                for (int64_t j = 0; j < ow; j++) {
                    double sum = bias ? (double)bias[o] : 0;
                    for (int64_t k = 0; k < cg; k++)
                        for (int64_t u = 0; u < kh; u++)
                            for (int64_t v = 0; v < kw; v++) {
                                int64_t r = i * stride[0] - pads[0] + u * dilation[0];
                                int64_t s = j * stride[1] - pads[1] + v * dilation[1];
                                if (r < 0 || r >= h || s < 0 || s >= wd)
                                    continue;
                                int64_t ch = o / (m / group) * cg + k;
                                sum += (double)((float *)x->data)[((b * c + ch) * h + r) * wd + s] *
                                       (double)((float *)w->data)[((o * cg + k) * kh + u) * kw + v];
                            }
                    y[((b * m + o) * oh + i) * ow + j] = (float)sum;
                }
    return y;
}

static void conv_shapes(void **state)
{
    (void)state;
    static const struct {
        int64_t n, c, h, w, m, group, kh, kw, sh, sw, dh, dw, pads[4];
    } cases[] = {
        {1, 3, 9, 8, 4, 1, 3, 3, 1, 1, 1, 1, {1, 1, 1, 1}},   {2, 16, 12, 12, 32, 1, 3, 3, 2, 2, 1, 1, {0, 1, 1, 0}},
        {1, 8, 7, 7, 8, 8, 3, 3, 1, 1, 1, 1, {1, 1, 1, 1}},   {3, 6, 10, 9, 4, 2, 2, 3, 1, 2, 2, 1, {2, 0, 1, 3}},
        {1, 1, 5, 5, 1, 1, 5, 5, 1, 1, 1, 1, {0, 0, 0, 0}},   {2, 17, 6, 5, 19, 1, 1, 1, 1, 1, 1, 1, {0, 0, 0, 0}},
        {1, 4, 11, 11, 6, 2, 3, 3, 3, 3, 2, 2, {4, 4, 4, 4}},
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        int64_t s[2] = {cases[k].sh, cases[k].sw}, d[2] = {cases[k].dh, cases[k].dw};
        const int64_t *p = cases[k].pads;
        int64_t oh = (cases[k].h + p[0] + p[2] - (cases[k].kh - 1) * d[0] - 1) / s[0] + 1;
        int64_t ow = (cases[k].w + p[1] + p[3] - (cases[k].kw - 1) * d[1] - 1) / s[1] + 1;
        for (int bias = 0; bias < 2; bias++) {
            bw_array in[3] = {
                random_array(4, D(cases[k].n, cases[k].c, cases[k].h, cases[k].w)),
                random_array(4, D(cases[k].m, cases[k].c / cases[k].group, cases[k].kh, cases[k].kw)),
                random_array(1, D(cases[k].m)),
            };
            bw_array out;
            bw_graph *g = one_node("Conv", in, 2 + bias, 1);
            bw_node_set_ints(&g->nodes[0], "strides", s, 2);
            bw_node_set_ints(&g->nodes[0], "dilations", d, 2);
            bw_node_set_ints(&g->nodes[0], "pads", p, 4);
            bw_node_set_int(&g->nodes[0], "group", cases[k].group);
            run_ok(g, in, &out);
            expect_dims(&out, 4, D(cases[k].n, cases[k].m, oh, ow));
            float *want = naive_conv(&in[0], &in[1], bias ? in[2].data : NULL, cases[k].group, s, d, p, oh, ow);
            expect_close(&out, want, 1e-5);
            free(want);
            bw_array_free(&out);
            for (int i = 0; i < 3; i++)
                bw_array_free(&in[i]);
        }
    }
}

static void conv_auto_pad(void **state)
{
    (void)state;
    for (int lower = 0; lower < 2; lower++) {
        bw_array in[2] = {random_array(4, D(1, 2, 6, 7)), random_array(4, D(3, 2, 4, 3))};
        bw_array out;
        bw_graph *g = one_node("Conv", in, 2, 1);
        bw_node_set_string(&g->nodes[0], "auto_pad", lower ? "SAME_LOWER" : "SAME_UPPER");
        bw_node_set_ints(&g->nodes[0], "strides", D(1, 2), 2);
        run_ok(g, in, &out);
        expect_dims(&out, 4, D(1, 3, 6, 4));
        /* Height: 3 in total, the odd one below or above; width: (4 - 1) * 2 + 3 - 7 = 2. */
        float *want = naive_conv(&in[0], &in[1], NULL, 1, D(1, 2), D(1, 1), D(lower ? 2 : 1, 1, 0, 0), 6, 4);
        expect_close(&out, want, 1e-5);
        free(want);
        bw_array_free(&out);
        bw_array_free(&in[0]);
        bw_array_free(&in[1]);
    }
}

/* The transposed convolution is the gradient: scatter each input into the output. */
static void conv_transposed(void **state)
{
    (void)state;
    for (int k = 0; k < 3; k++) {
        int64_t group = k == 2 ? 2 : 1, stride = k ? 2 : 1, extra = k == 1, pad = k == 2;
        bw_array in[2] = {random_array(4, D(2, 4, 5, 4)), random_array(4, D(4, 3, 3, 2))};
        bw_array out;
        bw_graph *g = one_node("ConvTranspose", in, 2, 1);
        bw_node_set_ints(&g->nodes[0], "strides", D(stride, stride), 2);
        bw_node_set_ints(&g->nodes[0], "output_padding", D(extra, 0), 2);
        bw_node_set_ints(&g->nodes[0], "pads", D(pad, 0, 0, pad), 4);
        bw_node_set_int(&g->nodes[0], "group", group);
        run_ok(g, in, &out);
        int64_t m = 3 * group, oh = 4 * stride + 3 + extra - pad, ow = 3 * stride + 2 - pad;
        expect_dims(&out, 4, D(2, m, oh, ow));
        float *want = calloc((size_t)(2 * m * oh * ow), sizeof *want);
        for (int64_t b = 0; b < 2; b++)
            for (int64_t c = 0; c < 4; c++)
                for (int64_t i = 0; i < 5; i++)
                    for (int64_t j = 0; j < 4; j++)
                        for (int64_t o = 0; o < 3; o++)
                            for (int64_t u = 0; u < 3; u++)
                                for (int64_t v = 0; v < 2; v++) {
                                    int64_t r = i * stride + u - pad, s = j * stride + v;
                                    int64_t ch = c / (4 / group) * 3 + o;
                                    if (r >= 0 && r < oh && s < ow)
                                        want[((b * m + ch) * oh + r) * ow + s] +=
                                            ((float *)in[0].data)[((b * 4 + c) * 5 + i) * 4 + j] *
                                            ((float *)in[1].data)[((c * 3 + o) * 3 + u) * 2 + v];
                                }
        expect_close(&out, want, 1e-5);
        free(want);
        bw_array_free(&out);
        bw_array_free(&in[0]);
        bw_array_free(&in[1]);
    }
}

/* --- pools ----------------------------------------------------------------------------------------------------------
 */

static void pools(void **state)
{
    (void)state;
    for (int k = 0; k < 32; k++) {
        int average = k & 1, count_pads = k >> 1 & 1, ceil_mode = k >> 2 & 1, dilated = k >> 3 & 1, wide = k >> 4;
        int64_t c = wide ? 32 : 3, kernel = 3, stride = 2, dil = dilated ? 2 : 1, pad = 1, h = 10, w = 7;
        bw_array in = random_array(4, D(2, c, h, w)), out;
        bw_graph *g = one_node(average ? "AveragePool" : "MaxPool", &in, 1, 1);
        bw_node_set_ints(&g->nodes[0], "kernel_shape", D(kernel, kernel), 2);
        bw_node_set_ints(&g->nodes[0], "strides", D(stride, stride), 2);
        bw_node_set_ints(&g->nodes[0], "dilations", D(dil, dil), 2);
        bw_node_set_ints(&g->nodes[0], "pads", D(pad, pad, pad, pad), 4);
        bw_node_set_int(&g->nodes[0], "ceil_mode", ceil_mode);
        bw_node_set_int(&g->nodes[0], "count_include_pad", count_pads);
        run_ok(g, &in, &out);
        int64_t size[2] = {h, w}, o[2];
        for (int i = 0; i < 2; i++) {
            int64_t span = size[i] + 2 * pad - ((kernel - 1) * dil + 1);
            o[i] = (ceil_mode ? (span + stride - 1) / stride : span / stride) + 1;
            if (ceil_mode && (o[i] - 1) * stride >= size[i] + pad)
                o[i]--;
        }
        expect_dims(&out, 4, D(2, c, o[0], o[1]));
        float *want = malloc(sizeof *want * (size_t)bw_array_count(&out)), *at = want;
        for (int64_t p = 0; p < 2 * c; p++)
            for (int64_t i = 0; i < o[0]; i++)
                for (int64_t j = 0; j < o[1]; j++) {
                    double sum = 0, top = -(double)INFINITY, inside = 0, padded = 0;
                    for (int64_t u = 0; u < kernel; u++)
                        for (int64_t v = 0; v < kernel; v++) {
                            int64_t r = i * stride - pad + u * dil, s = j * stride - pad + v * dil;
                            padded += r < h + pad && s < w + pad;
                            if (r < 0 || r >= h || s < 0 || s >= w)
                                continue;
                            double f = (double)((float *)in.data)[(p * h + r) * w + s];
                            sum += f;
                            top = f > top ? f : top;
                            inside++;
                        }
                    *at++ = (float)(average ? sum / (count_pads ? padded : inside) : top);
                }
        expect_close(&out, want, 1e-6);
        free(want);
        bw_array_free(&out);
        bw_array_free(&in);
    }
}

/* --- matrix products -------------------------------------------------------------------------------------------------
 */

static void gemm(void **state)
{
    (void)state;
    for (int k = 0; k < 16; k++) {
        int ta = k & 1, tb = k >> 1 & 1, shape = k >> 2;
        int64_t m = 5, n = 7, d = 6;
        static const int64_t c_dims[4][2] = {{5, 7}, {1, 7}, {5, 1}, {7, 0}};
        bw_array in[3] = {random_array(2, ta ? D(d, m) : D(m, d)), random_array(2, tb ? D(n, d) : D(d, n)),
                          random_array(shape == 3 ? 1 : 2, c_dims[shape])};
        bw_array out;
        bw_graph *g = one_node("Gemm", in, 3, 1);
        bw_node_set_int(&g->nodes[0], "transA", ta);
        bw_node_set_int(&g->nodes[0], "transB", tb);
        bw_node_set_float(&g->nodes[0], "alpha", 0.5f);
        bw_node_set_float(&g->nodes[0], "beta", 2);
        run_ok(g, in, &out);
        expect_dims(&out, 2, D(m, n));
        float want[35];
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < n; j++) {
                double sum = 0;
                for (int64_t q = 0; q < d; q++)
                    sum += (double)((float *)in[0].data)[ta ? q * m + i : i * d + q] *
                           (double)((float *)in[1].data)[tb ? j * d + q : q * n + j];
                int64_t at = shape == 0 ? i * n + j : shape == 2 ? i : j;
                want[i * n + j] = (float)(0.5 * sum + 2 * (double)((float *)in[2].data)[at]);
            }
        expect_close(&out, want, 1e-5);
        bw_array_free(&out);
        for (int i = 0; i < 3; i++)
            bw_array_free(&in[i]);
    }
}

/* Every kernel gives the bits of the plain loop, whatever the shape. */
static void gemm_kernels_agree(void **state)
{
    (void)state;
    static const int64_t shapes[][3] = {{1, 1, 1},     {1, 70, 300}, {9, 33, 17},
                                        {130, 16, 40}, {67, 95, 1},  {5, 31, 1024}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        int64_t m = shapes[s][0], n = shapes[s][1], k = shapes[s][2];
        bw_array a = random_array(2, D(m, k)), b = random_array(2, D(n, k)), want = random_array(2, D(m, n)), c, p;
        p = random_array(1, D((int64_t)bw_gemm_packed_size(k, n)));
        bw_gemm_pack(k, n, b.data, 1, k, p.data);
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < n; j++) {
                float sum = 0;
                for (int64_t x = 0; x < k; x++)
                    sum += ((float *)a.data)[i * k + x] * ((float *)b.data)[j * k + x];
                ((float *)want.data)[i * n + j] = sum;
            }
        const char *name;
        bw_gemm_kernel kernel;
        for (int i = 0; (kernel = bw_gemm_kernel_at(i, &name)); i++) {
            bw_gemm_force(kernel);
            c = random_array(2, D(m, n));
            bw_gemm(1, m, n, k, &(const float *){a.data}, &(const float *){p.data}, c.data);
            if (memcmp(c.data, want.data, c.bytes))
                fail_msg("kernel %s differs at %lld x %lld x %lld", name, (long long)m, (long long)n, (long long)k);
            bw_array_free(&c);
        }
        bw_gemm_force(bw_gemm_kernel_at(0, &name));
        bw_array_free(&a);
        bw_array_free(&b);
        bw_array_free(&p);
        bw_array_free(&want);
    }
}

typedef struct marks {
    _Atomic int hits[5000];
} marks;

static void mark(int64_t from, int64_t to, void *user)
{
    for (int64_t i = from; i < to; i++)
        ((marks *)user)->hits[i]++;
}

static void *mark_from_a_thread(void *user)
{
    for (int i = 0; i < 200; i++)
        bw_parallel(5000, 7, mark, user);
    return NULL;
}

/* Each index once per loop, also with several loops at a time. */
static void parallel_covers(void **state)
{
    (void)state;
    static marks m[3];
    pthread_t t[3];
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&t[i], NULL, mark_from_a_thread, &m[i]), 0);
    for (int i = 0; i < 3; i++)
        pthread_join(t[i], NULL);
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < 5000; k++)
            assert_int_equal(m[i].hits[k], 200);
    bw_parallel(0, 1, mark, NULL);
}

static void matmul_broadcasts(void **state)
{
    (void)state;
    static const struct {
        int ra, rb, ro;
        int64_t a[4], b[4], o[4];
    } cases[] = {
        {2, 2, 2, {3, 4}, {4, 5}, {3, 5}},
        {3, 2, 3, {2, 3, 4}, {4, 5}, {2, 3, 5}},
        {4, 4, 4, {2, 3, 3, 4}, {2, 3, 4, 5}, {2, 3, 3, 5}},
        {4, 3, 4, {2, 3, 3, 4}, {3, 4, 5}, {2, 3, 3, 5}},
        {3, 4, 4, {1, 3, 4}, {2, 3, 4, 5}, {2, 3, 3, 5}},
        {1, 2, 1, {4}, {4, 5}, {5}},
        {3, 1, 2, {2, 3, 4}, {4}, {2, 3}},
        {1, 1, 0, {4}, {4}, {0}},
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        bw_array in[2] = {random_array(cases[k].ra, cases[k].a), random_array(cases[k].rb, cases[k].b)}, out;
        run_ok(one_node("MatMul", in, 2, 1), in, &out);
        expect_dims(&out, cases[k].ro, cases[k].o);
        int64_t m = cases[k].ra == 1 ? 1 : 3, n = cases[k].rb == 1 ? 1 : 5, count = bw_array_count(&out) / (m * n);
        int64_t ma = bw_array_count(&in[0]) / (m * 4), mb = bw_array_count(&in[1]) / (4 * n);
        float want[120];
        for (int64_t b = 0; b < count; b++)
            for (int64_t i = 0; i < m; i++)
                for (int64_t j = 0; j < n; j++) {
                    double sum = 0;
                    for (int64_t q = 0; q < 4; q++)
                        sum += (double)((float *)in[0].data)[(b % ma * m + i) * 4 + q] *
                               (double)((float *)in[1].data)[(b % mb * 4 + q) * n + j];
                    want[(b * m + i) * n + j] = (float)sum;
                }
        expect_close(&out, want, 1e-5);
        bw_array_free(&out);
        bw_array_free(&in[0]);
        bw_array_free(&in[1]);
    }
}

/* --- element-wise ------------------------------------------------------------------------------------------------- */

static void add_broadcasts(void **state)
{
    (void)state;
    static const struct {
        int ra, rb;
        int64_t a[4], b[4];
    } cases[] = {
        {4, 4, {2, 3, 4, 5}, {2, 3, 4, 5}}, {4, 1, {2, 3, 4, 5}, {5}},          {4, 3, {2, 3, 4, 5}, {3, 1, 1}},
        {4, 4, {2, 1, 4, 1}, {1, 3, 1, 5}}, {0, 4, {0}, {2, 3, 4, 5}},          {4, 0, {2, 3, 4, 5}, {0}},
        {2, 4, {4, 1}, {2, 3, 4, 5}},       {4, 4, {2, 3, 1, 1}, {2, 3, 4, 5}},
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        bw_array in[2] = {random_array(cases[k].ra, cases[k].a), random_array(cases[k].rb, cases[k].b)}, out;
        run_ok(one_node("Sub", in, 2, 1), in, &out);
        expect_dims(&out, 4, D(2, 3, 4, 5));
        float want[120];
        int64_t full[4] = {2, 3, 4, 5};
        for (int64_t i = 0; i < 120; i++) {
            int64_t at[4] = {i / 60, i / 20 % 3, i / 5 % 4, i % 5}, index[2] = {0, 0};
            for (int o = 0; o < 2; o++)
                for (int axis = 0; axis < 4; axis++) {
                    int r = axis - (4 - in[o].rank);
                    if (r >= 0)
                        index[o] = index[o] * in[o].dims[r] + (in[o].dims[r] == full[axis] ? at[axis] : 0);
                }
            want[i] = ((float *)in[0].data)[index[0]] - ((float *)in[1].data)[index[1]];
        }
        expect_close(&out, want, 0);
        bw_array_free(&out);
        bw_array_free(&in[0]);
        bw_array_free(&in[1]);
    }
}

static void activations(void **state)
{
    (void)state;
    static const struct {
        const char *op;
        double x, y;
    } cases[] = {
        {"Relu", -1, 0},
        {"Relu", 2, 2},
        {"Sigmoid", 1, 0.7310585786300049},
        {"Tanh", 0.5, 0.46211715726000973},
        {"Erf", 0.5, 0.5204998778130465},
        {"Elu", -1, -0.6321205588285577},
        {"LeakyRelu", -2, -0.02},
        {"HardSigmoid", 1, 0.7},
        {"HardSwish", 1, 0.6666666666666666},
        {"Gelu", 1, 0.8413447460685429},
        {"Softplus", 1, 1.3132616875182228},
        {"Softsign", -3, -0.75},
        {"Mish", 1, 0.8650983882673103},
        {"Selu", -1, -1.1113307378125625},
        {"Sqrt", 9, 3},
        {"Exp", 1, 2.718281828459045},
        {"Log", 2, 0.6931471805599453},
        {"Abs", -2, 2},
        {"Neg", -2, 2},
        {"Reciprocal", 4, 0.25},
        {"Floor", -1.5, -2},
        {"Ceil", -1.5, -1},
        {"Round", 2.5, 2},
        {"Sign", -7, -1},
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        float x[3] = {(float)cases[k].x, (float)cases[k].x, (float)cases[k].x};
        bw_array in = make_array(BW_F32, 1, D(3), x), out;
        run_ok(one_node(cases[k].op, &in, 1, 1), &in, &out);
        float want[3] = {(float)cases[k].y, (float)cases[k].y, (float)cases[k].y};
        expect_close(&out, want, 1e-6);
        bw_array_free(&out);
        bw_array_free(&in);
    }
}

/* The library's own functions against libm in double, and their ends in fp32. */
static void exponentials(void **state)
{
    (void)state;
    for (int i = -400000; i <= 400000; i++) {
        double x = i * 0.001743, small = i * 1e-9, e = exp(x), t = tanh(x / 20), s = tanh(small);
        assert_true(fabs(bw_exp(x) - e) <= 1e-13 * e);
        assert_true(fabs(bw_tanh(x / 20) - t) <= 1e-11 * fabs(t));
        assert_true(fabs(bw_tanh(small) - s) <= 1e-11 * fabs(s));
        assert_true(fabs(bw_sigmoid(x / 20) - 1 / (1 + exp(-x / 20))) <= 1e-13);
    }
    assert_true((float)bw_exp(-1e30) == 0 && isinf((float)bw_exp(1e30)));
    assert_true(bw_tanh(1e30) == 1 && bw_tanh(-1e30) == -1 && isnan(bw_tanh((double)NAN)));
    assert_true(isnan(bw_exp((double)NAN)) && bw_exp(0) == 1);
    assert_true((float)bw_sigmoid(-1e30) == 0 && bw_sigmoid(1e30) == 1);
}

static void integer_division_is_safe(void **state)
{
    (void)state;
    int64_t a[4] = {7, -7, INT64_MIN, 5}, b[4] = {2, 2, -1, 0}, want[4] = {3, -3, INT64_MIN, 0};
    bw_array in[2] = {make_array(BW_I64, 1, D(4), a), make_array(BW_I64, 1, D(4), b)}, out;
    run_ok(one_node("Div", in, 2, 1), in, &out);
    assert_memory_equal(out.data, want, sizeof want);
    bw_array_free(&out);
    run_ok(one_node("Mod", in, 2, 1), in, &out);
    int64_t mod[4] = {1, 1, 0, 0};
    assert_memory_equal(out.data, mod, sizeof mod);
    bw_array_free(&out);
    bw_array_free(&in[0]);
    bw_array_free(&in[1]);
}

static void casts_saturate(void **state)
{
    (void)state;
    float x[6] = {1.9f, -1.9f, 1e20f, -1e20f, NAN, 300};
    bw_array in = make_array(BW_F32, 1, D(6), x), out;
    bw_graph *g = one_node("Cast", &in, 1, 1);
    bw_node_set_int(&g->nodes[0], "to", 7);
    run_ok(g, &in, &out);
    int64_t want[6] = {1, -1, INT64_MAX, INT64_MIN, 0, 300};
    assert_memory_equal(out.data, want, sizeof want);
    bw_array_free(&out);
    g = one_node("Cast", &in, 1, 1);
    bw_node_set_int(&g->nodes[0], "to", 2);
    run_ok(g, &in, &out);
    uint8_t bytes[6] = {1, 0, 255, 0, 0, 255};
    assert_memory_equal(out.data, bytes, sizeof bytes);
    bw_array_free(&out);
    bw_array_free(&in);
    /* fp16 and back: every finite half survives. */
    uint16_t *halves = malloc(65536 * 2);
    int n = 0;
    for (int i = 0; i < 65536; i++)
        if ((i & 0x7c00) != 0x7c00)
            halves[n++] = (uint16_t)i;
    bw_array h = make_array(BW_F16, 1, D(n), halves), wide;
    g = one_node("Cast", &h, 1, 1);
    bw_node_set_int(&g->nodes[0], "to", 1);
    run_ok(g, &h, &wide);
    g = one_node("Cast", &wide, 1, 1);
    bw_node_set_int(&g->nodes[0], "to", 10);
    run_ok(g, &wide, &out);
    assert_memory_equal(out.data, halves, (size_t)n * 2);
    free(halves);
    bw_array_free(&h);
    bw_array_free(&wide);
    bw_array_free(&out);
}

/* --- data movement ------------------------------------------------------------------------------------------------ */

static void slices(void **state)
{
    (void)state;
    bw_array in = random_array(2, D(5, 6)), out;
    bw_graph *g = one_node("Slice", &in, 1, 1);
    bw_node_set_ints(&g->nodes[0], "starts", D(INT64_MAX, 1), 2);
    bw_node_set_ints(&g->nodes[0], "ends", D(INT64_MIN, -1), 2);
    bw_node_set_ints(&g->nodes[0], "steps", D(-2, 3), 2);
    run_ok(g, &in, &out);
    expect_dims(&out, 2, D(3, 2));
    float want[6];
    for (int i = 0; i < 6; i++)
        want[i] = ((float *)in.data)[(4 - i / 2 * 2) * 6 + 1 + i % 2 * 3];
    expect_close(&out, want, 0);
    bw_array_free(&out);
    bw_array_free(&in);
}

static void pads(void **state)
{
    (void)state;
    static const char *const modes[] = {"constant", "reflect", "edge"};
    static const float rows[3][7] = {{9, 9, 0, 1, 2, 3, 9}, {2, 1, 0, 1, 2, 3, 2}, {0, 0, 0, 1, 2, 3, 3}};
    for (int m = 0; m < 3; m++) {
        float x[8] = {0, 1, 2, 3, 0, 1, 2, 3};
        bw_array in = make_array(BW_F32, 2, D(2, 4), x), out;
        bw_graph *g = one_node("Pad", &in, 1, 1);
        bw_node_set_ints(&g->nodes[0], "pads", D(0, 2, -1, 1), 4);
        bw_node_set_float(&g->nodes[0], "value", 9);
        bw_node_set_string(&g->nodes[0], "mode", modes[m]);
        run_ok(g, &in, &out);
        expect_dims(&out, 2, D(1, 7));
        expect_close(&out, rows[m], 0);
        bw_array_free(&out);
        bw_array_free(&in);
    }
}

static void depth_and_space_invert(void **state)
{
    (void)state;
    bw_array in = random_array(4, D(2, 12, 3, 5)), wide, back;
    bw_graph *g = one_node("DepthToSpace", &in, 1, 1);
    bw_node_set_int(&g->nodes[0], "blocksize", 2);
    run_ok(g, &in, &wide);
    expect_dims(&wide, 4, D(2, 3, 6, 10));
    /* DCR: output (c, 2h + i, 2w + j) is input channel (2i + j) * 3 + c. */
    for (int64_t c = 0; c < 3; c++)
        for (int64_t y = 0; y < 6; y++)
            for (int64_t x = 0; x < 10; x++)
                assert_true(((float *)wide.data)[(c * 6 + y) * 10 + x] ==
                            ((float *)in.data)[(((y % 2 * 2 + x % 2) * 3 + c) * 3 + y / 2) * 5 + x / 2]);
    g = one_node("SpaceToDepth", &wide, 1, 1);
    bw_node_set_int(&g->nodes[0], "blocksize", 2);
    run_ok(g, &wide, &back);
    expect_close(&back, in.data, 0);
    bw_array_free(&in);
    bw_array_free(&wide);
    bw_array_free(&back);
}

static void split_and_concat(void **state)
{
    (void)state;
    bw_array in = random_array(3, D(2, 7, 3)), out[3], joined;
    bw_graph *g = one_node("Split", &in, 1, 3);
    bw_node_set_int(&g->nodes[0], "axis", 1);
    run_ok(g, &in, out);
    expect_dims(&out[0], 3, D(2, 3, 3));
    expect_dims(&out[2], 3, D(2, 1, 3));
    g = one_node("Concat", out, 3, 1);
    bw_node_set_int(&g->nodes[0], "axis", -2);
    run_ok(g, out, &joined);
    expect_dims(&joined, 3, D(2, 7, 3));
    expect_close(&joined, in.data, 0);
    bw_array_free(&in);
    bw_array_free(&joined);
    for (int i = 0; i < 3; i++)
        bw_array_free(&out[i]);
}

static void softmax_rows(void **state)
{
    (void)state;
    bw_array in = random_array(3, D(2, 3, 4)), out;
    for (int mode = 0; mode < 3; mode++) { /* last axis, middle axis, coerced */
        bw_graph *g = one_node("Softmax", &in, 1, 1);
        bw_node_set_int(&g->nodes[0], "axis", mode ? 1 : -1);
        bw_node_set_int(&g->nodes[0], "coerce", mode == 2);
        run_ok(g, &in, &out);
        float want[24];
        for (int i = 0; i < 24; i++) {
            double sum = 0;
            for (int j = 0; j < 24; j++) {
                int same = mode == 0   ? i / 4 == j / 4
                           : mode == 1 ? i / 12 == j / 12 && i % 4 == j % 4
                                       : i / 12 == j / 12;
                sum += same ? exp((double)((float *)in.data)[j]) : 0;
            }
            want[i] = (float)(exp((double)((float *)in.data)[i]) / sum);
        }
        expect_close(&out, want, 1e-6);
        bw_array_free(&out);
    }
    bw_array_free(&in);
}

static void resize_linear(void **state)
{
    (void)state;
    float x[4] = {1, 2, 3, 4};
    bw_array in = make_array(BW_F32, 4, D(1, 1, 2, 2), x), out;
    bw_graph *g = one_node("Resize", &in, 1, 1);
    bw_node_set_floats(&g->nodes[0], "scales", (float[]){1, 1, 2, 2}, 4);
    bw_node_set_string(&g->nodes[0], "mode", "linear");
    run_ok(g, &in, &out);
    static const float want[16] = {1,    1.25f, 1.75f, 2,    1.5f, 1.75f, 2.25f, 2.5f,
                                   2.5f, 2.75f, 3.25f, 3.5f, 3,    3.25f, 3.75f, 4};
    expect_dims(&out, 4, D(1, 1, 4, 4));
    expect_close(&out, want, 1e-6);
    bw_array_free(&out);
    bw_array_free(&in);
}

/* --- what must be refused ----------------------------------------------------------------------------------------- */

static void refuse(const char *op, const bw_array *in, int count, void (*prepare)(bw_node *n), bw_status expected)
{
    bw_error err = {0};
    bw_graph *g = one_node(op, in, count, 1);
    if (prepare)
        prepare(&g->nodes[0]);
    bw_status status = bw_graph_infer_shapes(g, &err);
    if (status != expected)
        fail_msg("%s gave %s (%s): expected %s", op, bw_status_name(status), err.message, bw_status_name(expected));
    assert_non_null(strstr(err.message, "node 'n'"));
    bw_graph_free(g);
}

static void wide_pads(bw_node *n)
{
    bw_node_set_ints(n, "pads", D(9, 9, 9, 9), 4);
    bw_node_set_ints(n, "kernel_shape", D(2, 2), 2);
}

static void zero_stride(bw_node *n)
{
    bw_node_set_ints(n, "strides", D(0, 1), 2);
}

static void bad_shape(bw_node *n)
{
    bw_node_set_ints(n, "shape", D(7, -1), 2);
}

static void bad_axis(bw_node *n)
{
    bw_node_set_int(n, "axis", 4);
}

static void refusals(void **state)
{
    (void)state;
    bw_array x = random_array(4, D(1, 3, 8, 8)), w = random_array(4, D(4, 2, 3, 3)), v = random_array(1, D(5));
    bw_array w3 = random_array(4, D(4, 3, 3, 3)), i64 = make_array(BW_I64, 1, D(1), D(1));
    refuse("Conv", (bw_array[]){x, w}, 2, NULL, BW_CORRUPT);
    refuse("Conv", (bw_array[]){x, w3}, 2, zero_stride, BW_CORRUPT);
    refuse("MaxPool", &x, 1, wide_pads, BW_CORRUPT);
    refuse("Add", (bw_array[]){x, v}, 2, NULL, BW_CORRUPT);
    refuse("Add", (bw_array[]){x, i64}, 2, NULL, BW_CORRUPT);
    refuse("MatMul", (bw_array[]){x, v}, 2, NULL, BW_CORRUPT);
    refuse("Reshape", &x, 1, bad_shape, BW_CORRUPT);
    refuse("Concat", (bw_array[]){x, x}, 2, bad_axis, BW_CORRUPT);
    refuse("Sigmoid", &i64, 1, NULL, BW_UNSUPPORTED);
    refuse("LSTM", &x, 1, NULL, BW_UNSUPPORTED);
    refuse("Conv", &x, 1, NULL, BW_CORRUPT);
    bw_array_free(&x);
    bw_array_free(&w);
    bw_array_free(&w3);
    bw_array_free(&v);
    bw_array_free(&i64);
}

static void gather_out_of_range(void **state)
{
    (void)state;
    bw_array in[2] = {random_array(1, D(3)), make_array(BW_I64, 1, D(1), D(3))}, out = {0};
    bw_graph *g = one_node("Gather", in, 2, 1);
    bw_error err = {0};
    bw_executor *ex;
    assert_int_equal(bw_graph_infer_shapes(g, &err), BW_OK);
    assert_int_equal(bw_executor_create(g, &ex, &err), BW_OK);
    assert_int_equal(bw_executor_run(ex, in, &out, NULL, NULL, &err), BW_OUT_OF_RANGE);
    assert_null(out.data);
    bw_executor_destroy(ex);
    bw_graph_free(g);
    bw_array_free(&in[0]);
    bw_array_free(&in[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(conv_shapes),
        cmocka_unit_test(conv_auto_pad),
        cmocka_unit_test(conv_transposed),
        cmocka_unit_test(pools),
        cmocka_unit_test(gemm),
        cmocka_unit_test(matmul_broadcasts),
        cmocka_unit_test(gemm_kernels_agree),
        cmocka_unit_test(parallel_covers),
        cmocka_unit_test(add_broadcasts),
        cmocka_unit_test(activations),
        cmocka_unit_test(exponentials),
        cmocka_unit_test(integer_division_is_safe),
        cmocka_unit_test(casts_saturate),
        cmocka_unit_test(slices),
        cmocka_unit_test(pads),
        cmocka_unit_test(depth_and_space_invert),
        cmocka_unit_test(split_and_concat),
        cmocka_unit_test(softmax_rows),
        cmocka_unit_test(resize_linear),
        cmocka_unit_test(refusals),
        cmocka_unit_test(gather_out_of_range),
    };
    return cmocka_run_group_tests_name("ops", tests, NULL, NULL);
}
