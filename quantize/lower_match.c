/* SPDX-License-Identifier: Apache-2.0 */
/* What a graph node would be on the accelerator, if anything. One place decides it for placement, lowering and the
 * check command, so that they cannot disagree. */
#include <math.h>
#include <string.h>

#include "quantize/lower.h"

#define MAX_PIXELS   65536
#define MAX_CHANNELS 1048576
#define MAX_KERNEL   1024
#define MAX_ORIGIN   32767

int bw_lower_shape(const bw_graph *g, int value, bw_shape *shape)
{
    if (value < 0 || value >= g->value_count || g->input_count < 1)
        return 0;
    const bw_value *v = &g->values[value];
    int64_t batch = g->values[g->inputs[0]].rank > 0 ? g->values[g->inputs[0]].dims[0] : 0;
    if (v->dtype != BW_F32 || v->constant || v->rank < 2 || v->rank > 4 || v->dims[0] != batch || !batch)
        return 0;
    shape->c = v->dims[1];
    shape->h = v->rank == 4 ? v->dims[2] : 1;
    shape->w = v->rank >= 3 ? v->dims[v->rank - 1] : 1;
    return shape->c >= 1 && shape->c <= MAX_CHANNELS && shape->h >= 1 && shape->h <= MAX_PIXELS && shape->w >= 1 &&
           shape->w <= MAX_PIXELS;
}

static int input_of(const bw_node *n, int index)
{
    return index < n->input_count ? n->inputs[index] : -1;
}

static const bw_array *constant_of(const bw_graph *g, const bw_node *n, int index)
{
    int v = input_of(n, index);
    return v >= 0 ? g->values[v].constant : NULL;
}

/* A list of integers from the attribute or, if that is absent, from a constant input. -1: known at run time only or
 * too long; 0: absent. */
static int int_list(const bw_graph *g, const bw_node *n, const char *name, int index, int64_t *out, int max)
{
    const bw_attr *a = bw_node_attr(n, name);
    if (a && a->kind == BW_ATTR_INTS) {
        if (a->count > (size_t)max)
            return -1;
        return (int)bw_node_ints(n, name, out, (size_t)max);
    }
    if (index < 0 || input_of(n, index) < 0)
        return 0;
    const bw_array *c = constant_of(g, n, index);
    if (!c || (c->dtype != BW_I64 && c->dtype != BW_I32) || bw_array_count(c) > max)
        return -1;
    int count = (int)bw_array_count(c);
    for (int i = 0; i < count; i++)
        out[i] = c->dtype == BW_I64 ? ((const int64_t *)c->data)[i] : ((const int32_t *)c->data)[i];
    return count;
}

/* Window parameters of a convolution or pool over `spatial` axes; a missing vertical axis becomes 1. */
static int window(const bw_node *n, int rank, const int64_t kernel[2], const bw_shape *in, const bw_shape *out,
                  bw_geometry *geo, int64_t pad_end[2])
{
    int spatial = rank - 2, shift = 2 - spatial;
    int64_t strides[4] = {1, 1, 1, 1}, dilations[4] = {1, 1, 1, 1}, pads[4] = {0, 0, 0, 0};
    const char *names[3] = {"strides", "dilations", "pads"};
    int64_t *lists[3] = {strides, dilations, pads};
    for (int i = 0; i < 3; i++) {
        const bw_attr *a = bw_node_attr(n, names[i]);
        size_t want = (size_t)(i == 2 ? 2 * spatial : spatial);
        if (a && (a->kind != BW_ATTR_INTS || a->count != want))
            return 0;
        if (a)
            bw_node_ints(n, names[i], lists[i], want);
    }
    const char *auto_pad = bw_node_string(n, "auto_pad", "NOTSET");
    int64_t size_in[2] = {in->h, in->w}, size_out[2] = {out->h, out->w};
    for (int i = 0; i < 2; i++) {
        int own = i - shift; /* axis in the node's lists */
        int64_t k = own < 0 ? 1 : kernel[i], s = own < 0 ? 1 : strides[own], d = own < 0 ? 1 : dilations[own];
        int64_t begin = own < 0 ? 0 : pads[own], end = own < 0 ? 0 : pads[own + spatial];
        if (k < 1 || k > MAX_KERNEL || s < 1 || s > MAX_KERNEL || d < 1 || d > MAX_KERNEL)
            return 0;
        if (own >= 0 && strncmp(auto_pad, "SAME", 4) == 0) {
            int64_t total = (size_out[i] - 1) * s + (k - 1) * d + 1 - size_in[i];
            total = total < 0 ? 0 : total;
            begin = strcmp(auto_pad, "SAME_LOWER") == 0 ? total - total / 2 : total / 2;
            end = total - begin;
        } else if (strcmp(auto_pad, "VALID") == 0) {
            begin = end = 0;
        }
        if (begin < -MAX_ORIGIN || begin > MAX_ORIGIN || end < -MAX_ORIGIN || end > MAX_ORIGIN)
            return 0;
        geo->kernel[i] = k;
        geo->stride[i] = s;
        geo->dilation[i] = d;
        geo->origin[i] = -begin;
        pad_end[i] = end;
    }
    return 1;
}

static const bw_geometry unit_geometry = {{1, 1}, {1, 1}, {1, 1}, {0, 0}};

static const float *float_constant(const bw_graph *g, const bw_node *n, int index, int rank)
{
    const bw_array *c = constant_of(g, n, index);
    return c && c->dtype == BW_F32 && (rank < 0 || c->rank == rank) ? c->data : NULL;
}

static void match_conv(const bw_graph *g, const bw_node *n, bw_match *m)
{
    bw_shape in, out;
    int64_t end[2];
    if (!bw_lower_shape(g, input_of(n, 0), &in) || !bw_lower_shape(g, n->outputs[0], &out))
        return;
    int rank = g->values[n->inputs[0]].rank;
    const float *w = float_constant(g, n, 1, rank);
    if (!w || rank < 3)
        return;
    const bw_array *wa = constant_of(g, n, 1);
    int64_t kernel[2] = {rank == 4 ? wa->dims[2] : 1, wa->dims[rank - 1]};
    int64_t groups = bw_node_int(n, "group", 1);
    if (groups < 1 || wa->dims[1] < 1 || wa->dims[1] > MAX_CHANNELS || groups > MAX_CHANNELS ||
        wa->dims[1] * groups != in.c || wa->dims[0] != out.c || out.c % groups ||
        !window(n, rank, kernel, &in, &out, &m->geo, end))
        return;
    m->w = (bw_weights){.data = w,
                        .sn = wa->dims[1] * kernel[0] * kernel[1],
                        .sc = kernel[0] * kernel[1],
                        .sy = kernel[1],
                        .sx = 1,
                        .scale = 1,
                        .outputs = out.c,
                        .group_channels = wa->dims[1],
                        .groups = groups,
                        .bias_scale = 1,
                        .name = g->values[n->inputs[1]].name};
    if (input_of(n, 2) >= 0) {
        m->w.bias = float_constant(g, n, 2, 1);
        if (!m->w.bias)
            return;
        m->w.bias_count = out.c;
    }
    m->in = n->inputs[0];
    m->kind = BW_MATCH_CONV;
}

static void match_gemm(const bw_graph *g, const bw_node *n, bw_match *m)
{
    bw_shape in, out;
    if (!bw_lower_shape(g, input_of(n, 0), &in) || !bw_lower_shape(g, n->outputs[0], &out) ||
        g->values[n->inputs[0]].rank != 2 || g->values[n->outputs[0]].rank != 2)
        return;
    const float *b = float_constant(g, n, 1, 2);
    if (!b || bw_node_int(n, "transA", 0))
        return;
    const bw_array *ba = constant_of(g, n, 1);
    int gemm = strcmp(n->op, "Gemm") == 0;
    int trans = gemm && bw_node_int(n, "transB", 0) != 0;
    int64_t outputs = ba->dims[trans ? 0 : 1], inputs = ba->dims[trans ? 1 : 0];
    if (inputs != in.c || outputs != out.c)
        return;
    m->w = (bw_weights){.data = b,
                        .sn = trans ? inputs : 1,
                        .sc = trans ? 1 : outputs,
                        .scale = gemm ? bw_node_float(n, "alpha", 1) : 1,
                        .outputs = outputs,
                        .group_channels = inputs,
                        .groups = 1,
                        .bias_scale = gemm ? bw_node_float(n, "beta", 1) : 1,
                        .name = g->values[n->inputs[1]].name};
    if (gemm && input_of(n, 2) >= 0) {
        m->w.bias = float_constant(g, n, 2, -1);
        const bw_array *c = constant_of(g, n, 2);
        if (!m->w.bias)
            return;
        m->w.bias_count = bw_array_count(c);
        int last_only = m->w.bias_count == 1 || (c->rank >= 1 && c->dims[c->rank - 1] == m->w.bias_count);
        if (!last_only || (m->w.bias_count != 1 && m->w.bias_count != outputs))
            return;
    }
    m->in = n->inputs[0];
    m->geo = unit_geometry;
    m->kind = BW_MATCH_GEMM;
}

static void match_act(const bw_graph *g, const bw_node *n, bw_match *m)
{
    bw_shape in;
    if (!bw_lower_shape(g, input_of(n, 0), &in))
        return;
    m->lo = 0;
    m->hi = INFINITY;
    if (strcmp(n->op, "Clip") == 0) {
        float limit[2] = {-INFINITY, INFINITY};
        const char *names[2] = {"min", "max"};
        for (int i = 0; i < 2; i++) {
            const bw_attr *a = bw_node_attr(n, names[i]);
            if (a && a->kind == BW_ATTR_FLOAT) {
                limit[i] = a->f;
            } else if (input_of(n, i + 1) >= 0) {
                const float *c = float_constant(g, n, i + 1, -1);
                if (!c || bw_array_count(constant_of(g, n, i + 1)) != 1)
                    return;
                limit[i] = *c;
            }
            if (isnan(limit[i]))
                return;
        }
        m->lo = limit[0];
        m->hi = limit[1];
        if (m->lo > m->hi || m->lo == INFINITY || m->hi == -INFINITY)
            return;
    }
    m->in = n->inputs[0];
    m->kind = BW_MATCH_ACT;
}

/* 1: a constant scalar or one value per channel of `shape`; *stride 0 or 1. */
static int per_channel(const bw_graph *g, int value, int rank, const bw_shape *shape, const float **data,
                       int64_t *stride)
{
    const bw_array *c = value >= 0 ? g->values[value].constant : NULL;
    if (!c || c->dtype != BW_F32 || c->rank > rank)
        return 0;
    int64_t count = bw_array_count(c);
    if (count != 1) {
        int axis = 1 - (rank - c->rank); /* where the channels would be */
        if (axis < 0 || c->dims[axis] != count || count != shape->c)
            return 0;
    }
    *data = c->data;
    *stride = count == 1 ? 0 : 1;
    return 1;
}

/* Factors must survive the vector format: fp16 ends at 65504 and loses bits below 2^-14. */
static int factors_fit(const float *data, int64_t count, int reciprocal)
{
    float most = 0;
    for (int64_t i = 0; i < count; i++) {
        float v = reciprocal ? 1.0f / data[i] : data[i];
        if (!isfinite(v))
            return 0;
        most = fabsf(v) > most ? fabsf(v) : most;
    }
    return most == 0 || (most >= 0x1p-10f && most <= 65504.0f);
}

static void match_binary(const bw_graph *g, const bw_node *n, bw_match *m)
{
    bw_shape a, b, out;
    if (!bw_lower_shape(g, n->outputs[0], &out))
        return;
    int first = input_of(n, 0), second = input_of(n, 1);
    int have_a = bw_lower_shape(g, first, &a), have_b = bw_lower_shape(g, second, &b);
    int add = strcmp(n->op, "Add") == 0, mul = strcmp(n->op, "Mul") == 0;
    if (have_a && have_b) {
        if ((!add && !mul) || memcmp(&a, &b, sizeof a) != 0 || memcmp(&a, &out, sizeof a) != 0)
            return;
        m->in = first;
        m->in2 = second;
        m->kind = add ? BW_MATCH_ADD : BW_MATCH_MUL;
        return;
    }
    int swapped = !have_a;
    if (!have_a && !have_b)
        return;
    int x = swapped ? second : first;
    const bw_shape *shape = swapped ? &b : &a;
    if (memcmp(shape, &out, sizeof out) != 0 || g->values[x].rank != g->values[n->outputs[0]].rank)
        return;
    const float *data;
    int64_t stride;
    if (!per_channel(g, swapped ? first : second, g->values[x].rank, shape, &data, &stride))
        return;
    int64_t count = stride ? shape->c : 1;
    int div = strcmp(n->op, "Div") == 0, sub = strcmp(n->op, "Sub") == 0;
    m->w = (bw_weights){.scale = 1,
                        .bias_scale = 1,
                        .outputs = shape->c,
                        .group_channels = 1,
                        .groups = shape->c,
                        .name = g->values[swapped ? first : second].name};
    if (mul || (div && !swapped)) {
        if (!factors_fit(data, count, div))
            return;
        m->w.data = data;
        m->w.sn = stride;
        m->reciprocal = div;
    } else if (add || sub) {
        m->w.scale = sub && swapped ? -1 : 1;
        m->w.bias = data;
        m->w.bias_count = count;
        m->w.bias_scale = sub && !swapped ? -1 : 1;
    } else {
        return;
    }
    m->in = x;
    m->geo = unit_geometry;
    m->kind = BW_MATCH_AFFINE;
}

/* At least one tap of every window lies inside. */
static int windows_touch(int64_t in, int64_t out, int64_t k, int64_t s, int64_t d, int64_t origin)
{
    for (int64_t o = 0; o < out; o++) {
        int64_t at = o * s + origin, inside = 0;
        for (int64_t i = 0; i < k && !inside; i++)
            inside = at + i * d >= 0 && at + i * d < in;
        if (!inside)
            return 0;
    }
    return 1;
}

static void match_pool(const bw_graph *g, const bw_node *n, bw_match *m)
{
    bw_shape in, out;
    int max = strstr(n->op, "MaxPool") != NULL;
    if (n->output_count != 1 || !bw_lower_shape(g, input_of(n, 0), &in) || !bw_lower_shape(g, n->outputs[0], &out) ||
        in.c != out.c || g->values[n->inputs[0]].rank < 3)
        return;
    m->geo = unit_geometry;
    int64_t end[2] = {0, 0};
    if (strncmp(n->op, "Global", 6) == 0) {
        m->geo.kernel[0] = in.h;
        m->geo.kernel[1] = in.w;
        if (in.h > MAX_KERNEL || in.w > MAX_KERNEL)
            return;
    } else {
        int rank = g->values[n->inputs[0]].rank;
        int64_t shape[2] = {1, 1}, kernel[2] = {1, 1};
        if ((int)bw_node_ints(n, "kernel_shape", shape, 2) != rank - 2)
            return;
        kernel[0] = rank == 4 ? shape[0] : 1;
        kernel[1] = rank == 4 ? shape[1] : shape[0];
        if (!window(n, rank, kernel, &in, &out, &m->geo, end))
            return;
    }
    int64_t size[2] = {in.h, in.w}, count[2] = {out.h, out.w};
    m->count_pad = !max && bw_node_int(n, "count_include_pad", 0) != 0;
    for (int i = 0; i < 2; i++) {
        const bw_geometry *q = &m->geo;
        if (!windows_touch(size[i], count[i], q->kernel[i], q->stride[i], q->dilation[i], q->origin[i]))
            return;
        /* A window of ceil_mode may hang over the padding: those taps count for nobody, which the device's divisor of
         * all taps cannot say. */
        int64_t reach = (count[i] - 1) * q->stride[i] + (q->kernel[i] - 1) * q->dilation[i] + 1;
        if (m->count_pad && reach > size[i] - q->origin[i] + end[i])
            return;
    }
    m->in = n->inputs[0];
    m->kind = max ? BW_MATCH_MAXPOOL : BW_MATCH_AVGPOOL;
}

static void match_concat(const bw_graph *g, const bw_node *n, bw_match *m)
{
    bw_shape out, in;
    if (!bw_lower_shape(g, n->outputs[0], &out))
        return;
    int64_t axis = bw_node_int(n, "axis", 1);
    int rank = g->values[n->outputs[0]].rank;
    if (axis != 1 && axis != 1 - rank)
        return;
    for (int i = 0; i < n->input_count; i++)
        if (!bw_lower_shape(g, n->inputs[i], &in) || in.h != out.h || in.w != out.w)
            return;
    m->in = n->inputs[0];
    m->kind = BW_MATCH_CONCAT;
}

/* Slices cut and stride, pads add zeros or crop; start and step per axis, in the input's coordinates. */
static void match_window(const bw_graph *g, const bw_node *n, const int64_t *start, const int64_t *step, bw_match *m)
{
    bw_shape in, out;
    int rank = g->values[n->inputs[0]].rank;
    if (!bw_lower_shape(g, n->inputs[0], &in) || !bw_lower_shape(g, n->outputs[0], &out) || start[0] || step[0] != 1 ||
        g->values[n->outputs[0]].rank != rank)
        return;
    m->geo = unit_geometry;
    int64_t size_in[2] = {in.h, in.w}, size_out[2] = {out.h, out.w};
    int outside = 0, beyond = 0;
    for (int i = 0; i < 2; i++) {
        int axis = i - (2 - (rank - 2)) + 2;
        if (axis < 2)
            continue;
        m->geo.origin[i] = start[axis];
        m->geo.stride[i] = step[axis];
        if (step[axis] < 1 || step[axis] > MAX_KERNEL || start[axis] < -MAX_ORIGIN || start[axis] > MAX_ORIGIN)
            return;
        int64_t last = start[axis] + (size_out[i] - 1) * step[axis];
        outside |= start[axis] < 0 || last >= size_in[i];
        beyond |= step[axis] != 1;
    }
    if (outside && beyond) /* neither operator does both */
        return;
    m->count_pad = outside; /* pixels outside the input are zero */
    m->channel_start = start[1];
    m->channel_step = step[1];
    m->in = n->inputs[0];
    m->kind = BW_MATCH_WINDOW;
}

static void match_slice(const bw_graph *g, const bw_node *n, bw_match *m)
{
    bw_shape in;
    if (!bw_lower_shape(g, input_of(n, 0), &in))
        return;
    const bw_value *x = &g->values[n->inputs[0]];
    int64_t starts[BW_RANK_MAX], ends[BW_RANK_MAX], axes[BW_RANK_MAX], steps[BW_RANK_MAX];
    int count = int_list(g, n, "starts", 1, starts, BW_RANK_MAX);
    int end_count = int_list(g, n, "ends", 2, ends, BW_RANK_MAX);
    int axis_count = int_list(g, n, "axes", 3, axes, BW_RANK_MAX);
    int step_count = int_list(g, n, "steps", 4, steps, BW_RANK_MAX);
    if (count < 1 || end_count != count || axis_count < 0 || step_count < 0 || (axis_count && axis_count != count) ||
        (step_count && step_count != count))
        return;
    int64_t start[BW_RANK_MAX] = {0}, step[BW_RANK_MAX];
    for (int i = 0; i < BW_RANK_MAX; i++)
        step[i] = 1;
    for (int i = 0; i < count; i++) {
        int64_t axis = axis_count ? axes[i] : i, s = starts[i], by = step_count ? steps[i] : 1;
        axis += axis < 0 ? x->rank : 0;
        if (axis < 0 || axis >= x->rank || by == 0)
            return;
        if (axis == 0) { /* the whole batch or nothing of ours */
            if (s != 0 || by != 1 || ends[i] < INT32_MAX)
                return;
            continue;
        }
        int64_t size = x->dims[axis];
        s += s < 0 ? size : 0;
        s = s < 0 ? 0 : s;
        s = s > size - (by < 0) ? size - (by < 0) : s;
        start[axis] = s;
        step[axis] = by;
    }
    match_window(g, n, start, step, m);
}

static void match_pad(const bw_graph *g, const bw_node *n, bw_match *m)
{
    bw_shape in;
    if (!bw_lower_shape(g, input_of(n, 0), &in) || strcmp(bw_node_string(n, "mode", "constant"), "constant") != 0)
        return;
    int rank = g->values[n->inputs[0]].rank;
    int64_t pads[2 * BW_RANK_MAX], axes[BW_RANK_MAX];
    int count = int_list(g, n, "pads", 1, pads, 2 * BW_RANK_MAX);
    int axis_count = int_list(g, n, "axes", 3, axes, BW_RANK_MAX);
    if (axis_count < 0 || count < 2 || count != 2 * (axis_count ? axis_count : rank))
        return;
    const bw_attr *value = bw_node_attr(n, "value");
    if (value && (value->kind != BW_ATTR_FLOAT || value->f != 0))
        return;
    if (!value && input_of(n, 2) >= 0) {
        const float *c = float_constant(g, n, 2, -1);
        if (!c || bw_array_count(constant_of(g, n, 2)) != 1 || *c != 0)
            return;
    }
    int64_t start[BW_RANK_MAX] = {0}, step[BW_RANK_MAX];
    for (int i = 0; i < BW_RANK_MAX; i++)
        step[i] = 1;
    for (int i = 0; i < count / 2; i++) {
        int64_t axis = axis_count ? axes[i] : i;
        axis += axis < 0 ? rank : 0;
        if (axis < 0 || axis >= rank || (axis == 0 && (pads[i] || pads[i + count / 2])))
            return;
        start[axis] = -pads[i];
    }
    match_window(g, n, start, step, m);
}

static void match_split(const bw_graph *g, const bw_node *n, bw_match *m)
{
    bw_shape in, out;
    if (!bw_lower_shape(g, input_of(n, 0), &in))
        return;
    int64_t axis = bw_node_int(n, "axis", 0), total = 0;
    if (axis != 1 && axis != 1 - g->values[n->inputs[0]].rank)
        return;
    for (int i = 0; i < n->output_count; i++) {
        if (!bw_lower_shape(g, n->outputs[i], &out) || out.h != in.h || out.w != in.w)
            return;
        total += out.c;
    }
    if (total != in.c)
        return;
    m->in = n->inputs[0];
    m->kind = BW_MATCH_SPLIT;
}

static int sole_producer(const bw_graph *g, int value, const char *op)
{
    int p = value >= 0 && !g->values[value].constant ? g->values[value].producer : -1;
    if (p < 0 || !g->nodes[p].op || strcmp(g->nodes[p].op, op) != 0 || bw_graph_use_count(g, value) != 1)
        return -1;
    return p;
}

/* Reshape [N, C, ...] -> [N, G, C / G, ...], Transpose of the middle two, Reshape back. */
static int match_shuffle(const bw_graph *g, const bw_node *last, bw_match *m)
{
    int t = sole_producer(g, input_of(last, 0), "Transpose");
    int r = t >= 0 ? sole_producer(g, input_of(&g->nodes[t], 0), "Reshape") : -1;
    bw_shape in, out;
    if (r < 0 || !bw_lower_shape(g, input_of(&g->nodes[r], 0), &in) || !bw_lower_shape(g, last->outputs[0], &out) ||
        memcmp(&in, &out, sizeof in) != 0)
        return 0;
    const bw_value *mid = &g->values[g->nodes[r].outputs[0]];
    int64_t perm[BW_RANK_MAX], pixels = 1;
    if (mid->rank < 3 || bw_node_ints(&g->nodes[t], "perm", perm, BW_RANK_MAX) != (size_t)mid->rank ||
        mid->dims[0] != g->values[g->inputs[0]].dims[0])
        return 0;
    for (int i = 0; i < mid->rank; i++) {
        int64_t want = i == 1 ? 2 : i == 2 ? 1 : i;
        if (perm[i] != want || (i > 0 && mid->dims[i] < 1))
            return 0;
        pixels *= i > 2 ? mid->dims[i] : 1;
    }
    if (mid->dims[1] * mid->dims[2] != in.c || pixels != in.h * in.w)
        return 0;
    m->groups = mid->dims[1];
    m->first = r;
    m->middle = t;
    m->in = g->nodes[r].inputs[0];
    m->kind = BW_MATCH_SHUFFLE;
    return 1;
}

static void match_view(const bw_graph *g, const bw_node *n, bw_match *m)
{
    bw_shape in, out;
    if (strcmp(n->op, "Reshape") == 0 && match_shuffle(g, n, m))
        return;
    if (!bw_lower_shape(g, input_of(n, 0), &in) || !bw_lower_shape(g, n->outputs[0], &out))
        return;
    m->in = n->inputs[0];
    if (memcmp(&in, &out, sizeof in) == 0)
        m->kind = BW_MATCH_ALIAS;
    else if (out.h == 1 && out.w == 1 && in.h * in.w * in.c == out.c && g->values[n->outputs[0]].rank == 2 &&
             in.h <= MAX_KERNEL && in.w <= MAX_KERNEL)
        m->kind = BW_MATCH_FLATTEN;
}

static const struct {
    const char *op;
    void (*match)(const bw_graph *g, const bw_node *n, bw_match *m);
} matchers[] = {
    {"Conv", match_conv},          {"Gemm", match_gemm},
    {"MatMul", match_gemm},        {"Relu", match_act},
    {"Clip", match_act},           {"Add", match_binary},
    {"Sub", match_binary},         {"Mul", match_binary},
    {"Div", match_binary},         {"MaxPool", match_pool},
    {"AveragePool", match_pool},   {"GlobalAveragePool", match_pool},
    {"GlobalMaxPool", match_pool}, {"Concat", match_concat},
    {"Slice", match_slice},        {"Pad", match_pad},
    {"Split", match_split},        {"Reshape", match_view},
    {"Flatten", match_view},       {"Squeeze", match_view},
    {"Unsqueeze", match_view},     {"Identity", match_view},
    {"Dropout", match_view},
};

void bw_lower_match(const bw_graph *g, int node, bw_match *m)
{
    const bw_node *n = &g->nodes[node];
    *m = (bw_match){.kind = BW_MATCH_NONE, .in = -1, .in2 = -1, .first = -1, .middle = -1};
    if (!n->op || n->output_count < 1)
        return;
    for (size_t i = 0; i < sizeof matchers / sizeof matchers[0]; i++)
        if (strcmp(matchers[i].op, n->op) == 0) {
            matchers[i].match(g, n, m);
            return;
        }
}
