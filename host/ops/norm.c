/* SPDX-License-Identifier: Apache-2.0 */
/* BatchNormalization, InstanceNormalization, LayerNormalization and LRN. Statistics are summed in double, squares of
 * LRN in fp32. */
#include "host/ops/loops.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "host/ops/op.h"
#include "host/ops/parallel.h"

static bw_status want_all_float(bw_op_infer *c)
{
    bw_status status = BW_OK;
    for (int i = 0; i < c->in_count && !status; i++)
        status = bw_op_want(c, i, BW_WANT_FLOAT);
    return status;
}

/* Inputs 1..last hold one number per channel. */
static bw_status infer_per_channel(bw_op_infer *c)
{
    bw_status status = want_all_float(c);
    if (status)
        return status;
    const bw_op_info *x = &c->in[0];
    if (x->rank < 2)
        return bw_op_fail(c->err, c->node, BW_CORRUPT, "input of rank %d: expected at least 2", x->rank);
    for (int i = 1; i < c->in_count; i++)
        if (!c->in[i].present || c->in[i].rank != 1 ||
            (c->in[i].dims[0] >= 0 && x->dims[1] >= 0 && c->in[i].dims[0] != x->dims[1]))
            return bw_op_fail(c->err, c->node, BW_CORRUPT, "input %d: expected %lld numbers, one per channel", i,
                              (long long)x->dims[1]);
    return bw_op_output_like(c, 0);
}

/* y = x * a + b over one stretch. */
static void scale_shift(const float *x, float *y, int64_t n, float a, float b)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] * a + b;
}

static bw_status run_batch_norm(bw_op_run *r)
{
    const float *scale = bw_run_in(r, 1)->data, *shift = bw_run_in(r, 2)->data;
    const float *mean = bw_run_in(r, 3)->data, *variance = bw_run_in(r, 4)->data;
    double epsilon = (double)bw_node_float(r->node, "epsilon", 1e-5f);
    bw_status status = bw_run_alloc_like(r, 0, 0);
    if (status)
        return status;
    const bw_array *x = bw_run_in(r, 0);
    const float *from = x->data;
    float *to = r->out[0].array.data;
    int64_t channels = x->dims[1], size = bw_dims_product(x->dims, 2, x->rank);
    for (int64_t n = 0; n < x->dims[0]; n++)
        for (int64_t c = 0; c < channels; c++, from += size, to += size) {
            double a = (double)scale[c] / sqrt((double)variance[c] + epsilon);
            scale_shift(from, to, size, (float)a, (float)((double)shift[c] - (double)mean[c] * a));
        }
    return BW_OK;
}

/* Mean and 1 / sqrt(variance + epsilon), two passes. */
static void statistics(const float *x, int64_t n, double epsilon, double *mean, double *inverse)
{
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)x[i];
    *mean = sum / (double)n;
    for (int64_t i = 0; i < n; i++)
        squares += ((double)x[i] - *mean) * ((double)x[i] - *mean);
    *inverse = 1 / sqrt(squares / (double)n + epsilon);
}

static bw_status run_instance_norm(bw_op_run *r)
{
    const bw_array *x = bw_run_in(r, 0);
    const float *scale = bw_run_in(r, 1)->data, *shift = bw_run_in(r, 2)->data, *from = x->data;
    float *to = r->out[0].array.data;
    double epsilon = (double)bw_node_float(r->node, "epsilon", 1e-5f), mean, inverse;
    int64_t size = bw_dims_product(x->dims, 2, x->rank);
    for (int64_t n = 0; n < x->dims[0]; n++)
        for (int64_t c = 0; c < x->dims[1]; c++, from += size, to += size) {
            statistics(from, size, epsilon, &mean, &inverse);
            double a = (double)scale[c] * inverse;
            for (int64_t i = 0; i < size; i++)
                to[i] = (float)(((double)from[i] - mean) * a + (double)shift[c]);
        }
    return BW_OK;
}

static bw_status infer_layer_norm(bw_op_infer *c)
{
    int axis;
    bw_status status = want_all_float(c);
    if (!status)
        status = bw_op_axis(c->err, c->node, bw_node_int(c->node, "axis", -1), c->in[0].rank, 0, &axis);
    if (status)
        return status;
    int64_t size = bw_dims_product(c->in[0].dims, axis, c->in[0].rank);
    for (int i = 1; i < c->in_count; i++) {
        int64_t n = bw_dims_product(c->in[i].dims, 0, c->in[i].rank);
        if (c->in[i].present && n >= 0 && size >= 0 && n != size)
            return bw_op_fail(c->err, c->node, BW_UNSUPPORTED, "input %d has %lld numbers: expected %lld", i,
                              (long long)n, (long long)size);
    }
    return bw_op_output_like(c, 0);
}

static bw_status run_layer_norm(bw_op_run *r)
{
    const bw_array *x = bw_run_in(r, 0), *shift_array = bw_run_in(r, 2);
    const float *scale = bw_run_in(r, 1)->data, *shift = shift_array ? shift_array->data : NULL, *from = x->data;
    float *to = r->out[0].array.data;
    int axis;
    bw_status status = bw_op_axis(r->err, r->node, bw_node_int(r->node, "axis", -1), x->rank, 0, &axis);
    if (status)
        return status;
    double epsilon = (double)bw_node_float(r->node, "epsilon", 1e-5f), mean, inverse;
    int64_t rows = bw_dims_product(x->dims, 0, axis), size = bw_dims_product(x->dims, axis, x->rank);
    for (int64_t n = 0; n < rows; n++, from += size, to += size) {
        statistics(from, size, epsilon, &mean, &inverse);
        for (int64_t i = 0; i < size; i++)
            to[i] = (float)(((double)from[i] - mean) * inverse * (double)scale[i] + (shift ? (double)shift[i] : 0));
    }
    return BW_OK;
}

/* --- LRN ---------------------------------------------------------------------------------------------------------- */

static bw_status infer_lrn(bw_op_infer *c)
{
    bw_status status = want_all_float(c);
    int64_t size = bw_node_int(c->node, "size", 0);
    if (!status && (c->in[0].rank < 2 || size < 1 || size > 1 << 20))
        status = bw_op_fail(c->err, c->node, BW_CORRUPT, "rank %d, size %lld: expected rank 2 or more, a positive size",
                            c->in[0].rank, (long long)size);
    return status ? status : bw_op_output_like(c, 0);
}

typedef struct lrn_job {
    const float *x;
    float *y;
    int64_t channels, plane, below, above;
    float alpha, bias;
    double beta;
} lrn_job;

/* Elements of a plane taken at a time: their sums stay in the first cache. */
#define LRN_STRETCH 512

static void lrn_squares(const float *x, float *sum, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        sum[i] += x[i] * x[i];
}

/* v^-0.75 = 1 / (sqrt(v) * sqrt(sqrt(v))): roots and quotients are exactly rounded, so the bits do not depend on the
 * machine, and the loop vectorises. */
static void lrn_usual(const lrn_job *j, const float *x, const float *sum, float *y, int64_t n)
{
    const float alpha = j->alpha, bias = j->bias;
    for (int64_t i = 0; i < n; i++) {
        float root = sqrtf(bias + alpha * sum[i]);
        y[i] = x[i] / (root * sqrtf(root));
    }
}

static void lrn_power(const lrn_job *j, const float *x, const float *sum, float *y, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = (float)((double)x[i] / pow((double)(j->bias + j->alpha * sum[i]), j->beta));
}

/* The same for the usual window of five channels, `plane` apart, in one pass. */
static void lrn_usual_five(const lrn_job *j, const float *first, const float *x, float *y, int64_t n)
{
    const float alpha = j->alpha, bias = j->bias;
    const float *a = first, *b = a + j->plane, *c = b + j->plane, *d = c + j->plane, *e = d + j->plane;
    for (int64_t i = 0; i < n; i++) {
        const float sum = a[i] * a[i] + b[i] * b[i] + c[i] * c[i] + d[i] * d[i] + e[i] * e[i];
        const float root = sqrtf(bias + alpha * sum);
        y[i] = x[i] / (root * sqrtf(root));
    }
}

/* Channels from .. to of all images. */
static void lrn_channels(int64_t from, int64_t to, void *user)
{
    const lrn_job *j = user;
    for (int64_t at = from; at < to; at++) {
        const int64_t c = at % j->channels, image = at - c;
        const int64_t first = c < j->below ? 0 : c - j->below;
        const int64_t last = c + j->above >= j->channels ? j->channels - 1 : c + j->above;
        if (j->beta == 0.75 && last - first == 4) {
            lrn_usual_five(j, j->x + (image + first) * j->plane, j->x + at * j->plane, j->y + at * j->plane, j->plane);
            continue;
        }
        for (int64_t i = 0; i < j->plane; i += LRN_STRETCH) {
            const int64_t n = j->plane - i < LRN_STRETCH ? j->plane - i : LRN_STRETCH;
            float sum[LRN_STRETCH] = {0};
            for (int64_t k = first; k <= last; k++)
                lrn_squares(j->x + (image + k) * j->plane + i, sum, n);
            (j->beta == 0.75 ? lrn_usual : lrn_power)(j, j->x + at * j->plane + i, sum, j->y + at * j->plane + i, n);
        }
    }
}

/* Across channels, window floor((size-1)/2) below and ceil((size-1)/2) above. oneDNN takes odd sizes only. */
static bw_status run_lrn(bw_op_run *r)
{
    const bw_array *x = bw_run_in(r, 0);
    const int64_t size = bw_node_int(r->node, "size", 1);
    lrn_job j = {.x = x->data, .y = r->out[0].array.data, .channels = x->dims[1], .below = (size - 1) / 2};
    j.above = size - 1 - j.below;
    j.plane = bw_dims_product(x->dims, 2, x->rank);
    j.alpha = bw_node_float(r->node, "alpha", 1e-4f) / (float)size;
    j.beta = (double)bw_node_float(r->node, "beta", 0.75f);
    j.bias = bw_node_float(r->node, "bias", 1);
    bw_parallel(x->dims[0] * j.channels, 1 + 16384 / (j.plane + 1), lrn_channels, &j);
    return BW_OK;
}

const bw_op bw_ops_norm[] = {
    {"BatchNormalization", 5, 5, 1, BW_OP_ALLOCATES, infer_per_channel, run_batch_norm, NULL},
    {"InstanceNormalization", 3, 3, 1, 0, infer_per_channel, run_instance_norm, NULL},
    {"LayerNormalization", 2, 3, 1, 0, infer_layer_norm, run_layer_norm, NULL},
    {"LRN", 1, 1, 1, 0, infer_lrn, run_lrn, NULL},
    {0},
};
