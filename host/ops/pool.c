/* SPDX-License-Identifier: Apache-2.0 */
/*
 * MaxPool, AveragePool and the global pools. oneDNN runs them in its own layouts; windows that it sees otherwise than
 * ONNX (dilated ones, averages that count padding beyond the border) run in a plain loop.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "host/ops/dnnl.h"

#define SHAPES 4

typedef struct pool_shape {
    dnnl_primitive_t primitive; /* NULL: free */
    dnnl_memory_desc_t given, src, dst;
} pool_shape;

typedef struct pool_state {
    pool_shape shapes[SHAPES];
    int next;
} pool_state;

static void free_pool(void *state)
{
    pool_state *s = state;
    for (int i = 0; i < SHAPES; i++)
        if (s->shapes[i].primitive)
            dnnl_primitive_destroy(s->shapes[i].primitive);
    free(s);
}

static int is_global(const bw_node *n)
{
    return n->op[0] == 'G';
}

static int is_average(const bw_node *n)
{
    return strstr(n->op, "Average") != NULL;
}

static bw_status window(bw_error *err, const bw_node *n, int rank, const int64_t *dims, bw_window *w)
{
    int64_t kernel[BW_SPATIAL_MAX];
    if (rank < 3 || rank > 2 + BW_SPATIAL_MAX)
        return bw_op_fail(err, n, BW_UNSUPPORTED, "input of rank %d: expected 3 to 5", rank);
    if (bw_node_ints(n, "kernel_shape", kernel, BW_SPATIAL_MAX) != (size_t)rank - 2)
        return bw_op_fail(err, n, BW_CORRUPT, "kernel_shape: expected %d integers", rank - 2);
    for (int i = 0; i < rank - 2; i++)
        if (kernel[i] < 1)
            return bw_op_fail(err, n, BW_CORRUPT, "kernel size %lld: expected at least 1", (long long)kernel[i]);
    bw_status status = bw_window_resolve(err, n, rank - 2, dims + 2, kernel, w);
    for (int i = 0; i < rank - 2 && !status; i++) {
        int64_t reach = (w->kernel[i] - 1) * w->dilation[i] + 1;
        if (w->begin[i] >= reach || w->end[i] >= reach)
            status = bw_op_fail(err, n, BW_CORRUPT, "padding %lld and %lld: expected less than the window %lld",
                                (long long)w->begin[i], (long long)w->end[i], (long long)reach);
    }
    return status;
}

static bw_status infer_pool(bw_op_infer *c)
{
    bw_window w;
    bw_status status = bw_op_want(c, 0, BW_WANT_FLOAT);
    if (!status)
        status = window(c->err, c->node, c->in[0].rank, c->in[0].dims, &w);
    if (status)
        return status;
    int64_t dims[BW_RANK_MAX];
    memcpy(dims, c->in[0].dims, sizeof dims);
    memcpy(dims + 2, w.out, sizeof *dims * (size_t)w.axes);
    return bw_op_output(c, 0, BW_F32, c->in[0].rank, dims);
}

static bw_status infer_global(bw_op_infer *c)
{
    bw_status status = bw_op_want(c, 0, BW_WANT_FLOAT);
    if (status)
        return status;
    int64_t dims[BW_RANK_MAX];
    memcpy(dims, c->in[0].dims, sizeof dims);
    if (c->in[0].rank < 2)
        return bw_op_fail(c->err, c->node, BW_UNSUPPORTED, "input of rank %d: expected at least 2", c->in[0].rank);
    for (int i = 2; i < c->in[0].rank; i++) {
        if (dims[i] == 0)
            return bw_op_fail(c->err, c->node, BW_CORRUPT, "axis %d is empty: nothing to pool", i);
        dims[i] = 1;
    }
    return bw_op_output(c, 0, BW_F32, c->in[0].rank, dims);
}

/* --- plain loops -------------------------------------------------------------------------------------------------- */

/* Sums run in double, in index order. */
static void pool_global(const bw_array *x, float *y, int average)
{
    int64_t planes = x->dims[0] * x->dims[1], size = bw_dims_product(x->dims, 2, x->rank);
    const float *from = x->data;
    for (int64_t p = 0; p < planes; p++, from += size) {
        double sum = 0;
        float largest = from[0];
        for (int64_t i = 0; i < size; i++) {
            sum += (double)from[i];
            largest = from[i] > largest || from[i] != from[i] ? from[i] : largest;
        }
        y[p] = average ? (float)(sum / (double)size) : largest;
    }
}

/* Taps of one axis that lie inside the input, and inside input plus padding. */
static void taps(const bw_window *w, int axis, int64_t in, int64_t at, int64_t *first, int64_t *last, int64_t *padded)
{
    int64_t start = at * w->stride[axis] - w->begin[axis], d = w->dilation[axis], k = w->kernel[axis];
    int64_t border = in + w->end[axis] - start;
    *first = start < 0 ? (-start + d - 1) / d : 0;
    *last = in - 1 < start ? -1 : (in - 1 - start) / d;
    *last = *last > k - 1 ? k - 1 : *last;
    *padded = border <= 0 ? 0 : (border + d - 1) / d;
    *padded = *padded > k ? k : *padded;
}

static void pool_plain(const bw_array *x, bw_array *y, const bw_window *given, int average, int count_pads)
{
    /* Missing spatial axes are axes of one. */
    bw_window w = *given;
    int64_t in[3] = {1, 1, 1}, out[3] = {1, 1, 1};
    int pad = 3 - w.axes;
    for (int i = 2; i >= 0; i--) {
        int k = i - pad;
        w.kernel[i] = k < 0 ? 1 : given->kernel[k];
        w.stride[i] = k < 0 ? 1 : given->stride[k];
        w.dilation[i] = k < 0 ? 1 : given->dilation[k];
        w.begin[i] = k < 0 ? 0 : given->begin[k];
        w.end[i] = k < 0 ? 0 : given->end[k];
        in[i] = k < 0 ? 1 : x->dims[2 + k];
        out[i] = k < 0 ? 1 : y->dims[2 + k];
    }
    int64_t planes = x->dims[0] * x->dims[1], size = in[0] * in[1] * in[2];
    const float *from = x->data;
    float *to = y->data;
    for (int64_t p = 0; p < planes; p++, from += size)
        for (int64_t a = 0; a < out[0]; a++)
            for (int64_t b = 0; b < out[1]; b++)
                for (int64_t c = 0; c < out[2]; c++) {
                    int64_t at[3] = {a, b, c}, first[3], last[3], padded[3], inside = 0;
                    for (int i = 0; i < 3; i++)
                        taps(&w, i, in[i], at[i], &first[i], &last[i], &padded[i]);
                    double sum = 0;
                    float largest = -INFINITY;
                    for (int64_t i = first[0]; i <= last[0]; i++)
                        for (int64_t j = first[1]; j <= last[1]; j++)
                            for (int64_t k = first[2]; k <= last[2]; k++) {
                                int64_t u = a * w.stride[0] - w.begin[0] + i * w.dilation[0];
                                int64_t v = b * w.stride[1] - w.begin[1] + j * w.dilation[1];
                                int64_t t = c * w.stride[2] - w.begin[2] + k * w.dilation[2];
                                float f = from[(u * in[1] + v) * in[2] + t];
                                sum += (double)f;
                                largest = f > largest || f != f ? f : largest;
                                inside++;
                            }
                    int64_t count = count_pads ? padded[0] * padded[1] * padded[2] : inside;
                    *to++ = !average ? largest : count ? (float)(sum / (double)count) : 0;
                }
}

/* --- oneDNN ------------------------------------------------------------------------------------------------------- */

static bw_status make_shape(const bw_op_run *r, const bw_window *w, int average, int count_pads, pool_shape *s)
{
    const bw_array *y = &r->out[0].array;
    dnnl_dims_t strides, kernel, begin, end, dims;
    for (int i = 0; i < w->axes; i++) {
        strides[i] = w->stride[i];
        kernel[i] = w->kernel[i];
        begin[i] = w->begin[i];
        end[i] = w->end[i] + w->overhang[i];
    }
    dnnl_memory_desc_t dst;
    memcpy(dims, y->dims, sizeof *dims * (size_t)y->rank);
    dnnl_memory_desc_init_by_tag(&dst, y->rank, dims, dnnl_f32, dnnl_format_tag_any);
    dnnl_alg_kind_t kind = !average     ? dnnl_pooling_max
                           : count_pads ? dnnl_pooling_avg_include_padding
                                        : dnnl_pooling_avg_exclude_padding;
    dnnl_pooling_desc_t desc;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_status_t st = dnnl_pooling_forward_desc_init(&desc, dnnl_forward_inference, kind, &s->given, &dst, strides,
                                                      kernel, begin, end);
    if (st == dnnl_success)
        st = dnnl_primitive_desc_create(&pd, &desc, NULL, bw_dnnl_engine(), NULL);
    if (st == dnnl_success)
        st = dnnl_primitive_create(&s->primitive, pd);
    if (st == dnnl_success) {
        s->src = *dnnl_primitive_desc_query_md(pd, dnnl_query_src_md, 0);
        s->dst = *dnnl_primitive_desc_query_md(pd, dnnl_query_dst_md, 0);
    }
    dnnl_primitive_desc_destroy(pd);
    return bw_dnnl_check(st, "a pool", r->err);
}

static bw_status run_dnnl(bw_op_run *r, const bw_window *w, int average, int count_pads)
{
    pool_state *state = *r->state;
    if (!state && !(state = *r->state = calloc(1, sizeof *state)))
        return bw_fail(r->err, BW_NO_MEMORY, "no memory for a pool");
    dnnl_memory_desc_t given;
    bw_dnnl_of_tensor(&given, r->in[0]);
    pool_shape *s = NULL;
    for (int i = 0; i < SHAPES && !s; i++)
        if (state->shapes[i].primitive && dnnl_memory_desc_equal(&state->shapes[i].given, &given))
            s = &state->shapes[i];
    bw_status status = BW_OK;
    if (!s) {
        s = &state->shapes[state->next];
        state->next = (state->next + 1) % SHAPES;
        if (s->primitive)
            dnnl_primitive_destroy(s->primitive);
        memset(s, 0, sizeof *s);
        s->given = given;
        status = make_shape(r, w, average, count_pads, s);
    }
    void *src = NULL;
    bw_buffer *temporary = NULL;
    if (!status)
        status = bw_dnnl_input(r, 0, &s->src, &src, &temporary);
    if (!status)
        status = bw_dnnl_output(r, 0, &s->dst);
    if (!status) {
        bw_dnnl_arg args[2] = {{DNNL_ARG_SRC, &s->src, src}, {DNNL_ARG_DST, &s->dst, bw_tensor_bytes(&r->out[0])}};
        status = bw_dnnl_execute(s->primitive, args, 2, r->err);
    }
    bw_buffer_put(temporary);
    return status;
}

static bw_status run_pool(bw_op_run *r)
{
    bw_array *x = &r->in[0]->array, *y = &r->out[0].array;
    int average = is_average(r->node), global = is_global(r->node);
    bw_status status;
    if (global) {
        if (r->in[0]->layout && (status = bw_run_make_plain(r, 0)))
            return status;
        if ((status = bw_run_alloc(r, 0)))
            return status;
        pool_global(x, y->data, average);
        return BW_OK;
    }
    bw_window w;
    if ((status = window(r->err, r->node, x->rank, x->dims, &w)))
        return status;
    int count_pads = bw_node_int(r->node, "count_include_pad", 0) != 0, odd = 0;
    for (int i = 0; i < w.axes; i++)
        odd |= w.dilation[i] > 1 || (average && count_pads && w.overhang[i]);
    if (!odd)
        return run_dnnl(r, &w, average, count_pads);
    if (r->in[0]->layout && (status = bw_run_make_plain(r, 0)))
        return status;
    if ((status = bw_run_alloc(r, 0)))
        return status;
    pool_plain(x, y, &w, average, count_pads);
    return BW_OK;
}

const bw_op bw_ops_pool[] = {
    {"MaxPool", 1, 1, 1, BW_OP_ALLOCATES | BW_OP_LAYOUTS, infer_pool, run_pool, free_pool},
    {"AveragePool", 1, 1, 1, BW_OP_ALLOCATES | BW_OP_LAYOUTS, infer_pool, run_pool, free_pool},
    {"GlobalMaxPool", 1, 1, 1, BW_OP_ALLOCATES | BW_OP_LAYOUTS, infer_global, run_pool, free_pool},
    {"GlobalAveragePool", 1, 1, 1, BW_OP_ALLOCATES | BW_OP_LAYOUTS, infer_global, run_pool, free_pool},
    {0},
};
