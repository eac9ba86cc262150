/* SPDX-License-Identifier: Apache-2.0 */
/* Resize: nearest and linear are separable, so each axis is resampled in its own pass. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "host/ops/op.h"

typedef struct plan {
    double scale[BW_RANK_MAX]; /* 1 for axes that stay */
    int64_t out[BW_RANK_MAX];  /* -1: unknown */
} plan;

/* Scales as floats, by attribute or input 2; -1: absent, -2: unknown. */
static int read_scales(const bw_node *n, const bw_array *input, int has_input, float *scales, int max)
{
    const bw_attr *a = bw_node_attr(n, "scales");
    if (a && a->kind == BW_ATTR_FLOATS && a->count <= (size_t)max) {
        memcpy(scales, a->floats, sizeof *scales * a->count);
        return a->count ? (int)a->count : -1;
    }
    if (!has_input)
        return -1;
    if (!input)
        return -2;
    int64_t count = bw_array_count(input);
    if (input->dtype != BW_F32 || count > max || count == 0)
        return -1;
    memcpy(scales, input->data, sizeof *scales * (size_t)count);
    return (int)count;
}

/* Spreads sizes or scales over the axes of a tensor. `sizes_found`: ABSENT, KNOWN or UNKNOWN. */
static bw_status make_plan(bw_error *err, const bw_node *n, int rank, const int64_t *dims, bw_ints_found sizes_found,
                           const int64_t *sizes, int size_count, const float *scales, int scale_count, plan *p)
{
    int64_t axes[BW_RANK_MAX];
    int axis_count = (int)bw_node_ints(n, "axes", axes, BW_RANK_MAX), has_axes = axis_count > 0;
    int given = sizes_found != BW_INTS_ABSENT ? size_count : scale_count;
    if (axis_count > BW_RANK_MAX || given != (has_axes ? axis_count : rank))
        return bw_op_fail(err, n, BW_CORRUPT, "sizes or scales: expected %d entries", has_axes ? axis_count : rank);
    for (int i = 0; i < rank; i++) {
        p->scale[i] = 1;
        p->out[i] = dims[i];
    }
    for (int i = 0; i < given; i++) {
        int axis = i;
        bw_status status = has_axes ? bw_op_axis(err, n, axes[i], rank, 0, &axis) : BW_OK;
        if (status)
            return status;
        int64_t in = dims[axis];
        if (sizes_found != BW_INTS_ABSENT) {
            int unknown = sizes_found == BW_INTS_UNKNOWN && bw_is_mark(sizes[i]);
            if (!unknown && (sizes[i] < 0 || sizes[i] > INT32_MAX || (in == 0 && sizes[i] > 0)))
                return bw_op_fail(err, n, BW_CORRUPT, "size %lld of axis %d: expected 0 to %d", (long long)sizes[i],
                                  axis, INT32_MAX);
            p->out[axis] = unknown ? bw_mark_to_dim(sizes[i]) : sizes[i];
            p->scale[axis] = in > 0 && !unknown ? (double)sizes[i] / (double)in : 1;
            continue;
        }
        double s = (double)scales[i];
        if (!(s > 0) || !(s < 1e6))
            return bw_op_fail(err, n, BW_CORRUPT, "scale %g of axis %d: expected a positive number", s, axis);
        p->scale[axis] = s;
        if (in < 0 && s != 1)
            p->out[axis] = -1;
        if (in >= 0) {
            double out = floor((double)in * s);
            if (out > INT32_MAX)
                return bw_op_fail(err, n, BW_OUT_OF_RANGE, "axis %d would have %.0f elements", axis, out);
            p->out[axis] = (int64_t)out;
        }
    }
    return BW_OK;
}

static int known_transformation(const char *t)
{
    static const char *const known[] = {"half_pixel", "pytorch_half_pixel",   "align_corners",
                                        "asymmetric", "half_pixel_symmetric", "tf_half_pixel_for_nn"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(known[i], t))
            return 1;
    return 0;
}

static bw_status infer_resize(bw_op_infer *c)
{
    const bw_node *n = c->node;
    const bw_op_info *x = &c->in[0];
    const char *mode = bw_node_string(n, "mode", "nearest");
    const char *t = bw_node_string(n, "coordinate_transformation_mode", "half_pixel");
    if (strcmp(mode, "nearest") && strcmp(mode, "linear"))
        return bw_op_fail(c->err, n, BW_UNSUPPORTED, "mode '%s': expected nearest or linear", mode);
    if (!known_transformation(t))
        return bw_op_fail(c->err, n, BW_UNSUPPORTED, "coordinate_transformation_mode '%s'", t);
    if (bw_node_int(n, "antialias", 0) || strcmp(bw_node_string(n, "keep_aspect_ratio_policy", "stretch"), "stretch"))
        return bw_op_fail(c->err, n, BW_UNSUPPORTED, "antialias or keep_aspect_ratio_policy: expected neither");
    bw_status status = bw_op_want(c, 0, *mode == 'l' ? BW_WANT_FLOAT : BW_WANT_NUMBER | 1u << BW_BOOL | 1u << BW_F16);
    if (status)
        return status;
    int64_t sizes[BW_RANK_MAX];
    float scales[BW_RANK_MAX];
    int size_count;
    bw_ints_found found = bw_op_ints(c, "sizes", 3, sizes, BW_RANK_MAX, &size_count);
    if (found == BW_INTS_BAD)
        return BW_CORRUPT;
    if (found == BW_INTS_KNOWN && size_count == 0)
        found = BW_INTS_ABSENT;
    int has_scales = c->in_count > 2 && c->in[2].present && c->in[2].dtype == BW_F32;
    int scale_count = found != BW_INTS_ABSENT
                          ? -1
                          : read_scales(n, has_scales ? c->in[2].value : NULL, has_scales, scales, BW_RANK_MAX);
    plan p;
    if ((found != BW_INTS_ABSENT && size_count < 0) || scale_count == -2)
        return bw_op_output_vague(c, x->dtype, x->rank);
    if (found == BW_INTS_ABSENT && scale_count < 0)
        return bw_op_fail(c->err, n, BW_CORRUPT, "neither sizes nor scales: expected one of them");
    status = make_plan(c->err, n, x->rank, x->dims, found, sizes, size_count, scales, scale_count, &p);
    return status ? status : bw_op_output(c, 0, x->dtype, x->rank, p.out);
}

/* Where output position i lies in the input. */
static double coordinate(const char *t, int64_t i, int64_t in, int64_t out, double scale)
{
    double x = (double)i;
    if (!strcmp(t, "asymmetric"))
        return x / scale;
    if (!strcmp(t, "align_corners"))
        return out == 1 ? 0 : x * (double)(in - 1) / (double)(out - 1);
    if (!strcmp(t, "tf_half_pixel_for_nn"))
        return (x + 0.5) / scale;
    if (!strcmp(t, "pytorch_half_pixel") && out == 1)
        return 0;
    double half = (x + 0.5) / scale - 0.5;
    if (!strcmp(t, "half_pixel_symmetric")) {
        double adjustment = (double)out / (scale * (double)in);
        return (double)in / 2 * (1 - adjustment) + half;
    }
    return half;
}

static int64_t nearest(const char *mode, double x)
{
    if (!strcmp(mode, "floor"))
        return (int64_t)floor(x);
    if (!strcmp(mode, "ceil"))
        return (int64_t)ceil(x);
    if (!strcmp(mode, "round_prefer_ceil"))
        return (int64_t)floor(x + 0.5);
    return (int64_t)ceil(x - 0.5);
}

static int64_t within(int64_t i, int64_t size)
{
    return i < 0 ? 0 : i >= size ? size - 1 : i;
}

/* Resamples one axis: [outer, in, inner] to [outer, out, inner]. */
static bw_status resample(const bw_op_run *r, size_t size, int64_t outer, int64_t in, int64_t out, int64_t inner,
                          double scale, const char *from, char *to)
{
    const char *t = bw_node_string(r->node, "coordinate_transformation_mode", "half_pixel");
    const char *rounding = bw_node_string(r->node, "nearest_mode", "round_prefer_floor");
    int linear = *bw_node_string(r->node, "mode", "nearest") == 'l';
    size_t row = (size_t)inner * size;
    int64_t *low = malloc(sizeof *low * (size_t)out);
    float *weight = malloc(sizeof *weight * (size_t)out);
    if (!low || !weight) {
        free(low);
        free(weight);
        return bw_fail(r->err, BW_NO_MEMORY, "no memory to resize");
    }
    for (int64_t i = 0; i < out; i++) {
        double x = coordinate(t, i, in, out, scale);
        double at = linear ? floor(x) : 0;
        low[i] = linear ? (int64_t)at : nearest(rounding, x);
        weight[i] = (float)(x - at);
    }
    for (int64_t o = 0; o < outer; o++, from += (size_t)in * row)
        for (int64_t i = 0; i < out; i++, to += row) {
            const char *a = from + (size_t)within(low[i], in) * row;
            if (!linear) {
                memcpy(to, a, row);
                continue;
            }
            const float *x = (const float *)a, *y = (const float *)(from + (size_t)within(low[i] + 1, in) * row);
            float w = weight[i], *z = (float *)to;
            for (int64_t k = 0; k < inner; k++)
                z[k] = x[k] * (1 - w) + y[k] * w;
        }
    free(low);
    free(weight);
    return BW_OK;
}

static bw_status run_resize(bw_op_run *r)
{
    const bw_array *x = bw_run_in(r, 0);
    bw_array *y = &r->out[0].array;
    size_t size = bw_dtype_size(x->dtype);
    int64_t sizes[BW_RANK_MAX], dims[BW_RANK_MAX];
    float scales[BW_RANK_MAX];
    int size_count, has_scales = r->in_count > 2 && r->in[2] && r->in[2]->array.dtype == BW_F32;
    bw_ints_found found = bw_run_ints(r, "sizes", 3, sizes, BW_RANK_MAX, &size_count);
    if (found == BW_INTS_KNOWN && size_count == 0)
        found = BW_INTS_ABSENT;
    int scale_count = read_scales(r->node, has_scales ? bw_run_in(r, 2) : NULL, has_scales, scales, BW_RANK_MAX);
    plan p;
    bw_status status = make_plan(r->err, r->node, x->rank, x->dims, found, sizes, size_count, scales, scale_count, &p);
    if (status)
        return status;
    memcpy(dims, x->dims, sizeof dims);
    const char *from = x->data;
    bw_buffer *held = NULL;
    for (int axis = 0; axis < x->rank && !status; axis++) {
        /* The last pass writes the output; one that changes nothing is left out. */
        if (p.out[axis] == dims[axis] && p.scale[axis] == 1)
            continue;
        int64_t in = dims[axis];
        dims[axis] = p.out[axis];
        int64_t count = bw_dims_product(dims, 0, x->rank);
        if (count < 0) {
            status = bw_fail(r->err, BW_OUT_OF_RANGE, "axis %d makes the intermediate result too large", axis);
            break;
        }
        bw_buffer *next = bw_buffer_get(r->executor, (size_t)count * size, r->err);
        if (!next)
            status = r->err && r->err->status ? r->err->status : BW_NO_MEMORY;
        else
            status = resample(r, size, bw_dims_product(dims, 0, axis), in, dims[axis],
                              bw_dims_product(dims, axis + 1, x->rank), p.scale[axis], from, next->data);
        bw_buffer_put(held);
        held = next;
        from = next ? next->data : NULL;
    }
    if (!status)
        memcpy(y->data, from, y->bytes);
    bw_buffer_put(held);
    return status;
}

const bw_op bw_ops_resize[] = {
    {"Resize", 1, 4, 1, 0, infer_resize, run_resize, NULL},
    {0},
};
