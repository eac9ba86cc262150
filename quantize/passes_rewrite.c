/* SPDX-License-Identifier: Apache-2.0 */
/* Passes that remove or rename: no-ops, Sum, ReduceMean, Pad. */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quantize/passes_internal.h"

static int is_op(const bw_node *n, const char *op)
{
    return !strcmp(n->op, op);
}

static int same_shape(const bw_value *a, const bw_value *b)
{
    int unknown = 0;
    if (a->rank < 0 || a->rank != b->rank || a->dtype != b->dtype)
        return 0;
    for (int i = 0; i < a->rank; i++) {
        if (a->dims[i] != b->dims[i])
            return 0;
        unknown += a->dims[i] < 0;
    }
    return unknown <= 1;
}

static int is_complete(const bw_value *v)
{
    for (int i = 0; i < v->rank; i++)
        if (v->dims[i] < 0)
            return 0;
    return v->rank >= 0;
}

static int all_are(const bw_node *n, const char *attr, int64_t value)
{
    int64_t v[2 * BW_RANK_MAX];
    size_t count = bw_node_ints(n, attr, v, 2 * BW_RANK_MAX);
    for (size_t i = 0; i < count && i < 2 * BW_RANK_MAX; i++)
        if (v[i] != value)
            return 0;
    return count <= 2 * BW_RANK_MAX;
}

/* --- no-ops ----------------------------------------------------------------------------------------------------- */

static int is_noop(const bw_graph *g, const bw_node *n)
{
    if (n->output_count != 1 || !n->input_count || n->inputs[0] < 0)
        return 0;
    const bw_value *x = &g->values[n->inputs[0]], *y = &g->values[n->outputs[0]];
    if (is_op(n, "Identity") || is_op(n, "Dropout"))
        return 1;
    if (!same_shape(x, y))
        return 0;
    /* The same shape and order of elements: nothing moved. */
    if (is_op(n, "Reshape") || is_op(n, "Flatten") || is_op(n, "Squeeze") || is_op(n, "Unsqueeze") || is_op(n, "Cast"))
        return 1;
    if (is_op(n, "Expand"))
        return is_complete(x);
    if (is_op(n, "Slice"))
        return bw_node_attr(n, "starts") && all_are(n, "steps", 1) && is_complete(x);
    if (is_op(n, "Pad"))
        return bw_node_attr(n, "pads") && all_are(n, "pads", 0);
    if (is_op(n, "Tile"))
        return bw_node_attr(n, "repeats") && all_are(n, "repeats", 1);
    if (is_op(n, "Transpose")) {
        int64_t perm[BW_RANK_MAX];
        int ok = bw_node_ints(n, "perm", perm, BW_RANK_MAX) == (size_t)x->rank;
        for (int i = 0; ok && i < x->rank; i++)
            ok = perm[i] == i;
        return ok;
    }
    if (is_op(n, "Concat") || is_op(n, "Sum") || is_op(n, "Mean") || is_op(n, "Max") || is_op(n, "Min"))
        return n->input_count == 1;
    if (is_op(n, "MaxPool") || is_op(n, "AveragePool"))
        return all_are(n, "kernel_shape", 1) && bw_node_attr(n, "kernel_shape") && all_are(n, "strides", 1) &&
               all_are(n, "pads", 0);
    return 0;
}

bw_status bw_pass_noop(bw_pass *p, int node, bw_error *err)
{
    return is_noop(p->g, &p->g->nodes[node]) ? bw_pass_bypass(p, node, err) : BW_OK;
}

/* --- Sum -------------------------------------------------------------------------------------------------------- */

/* Sum of n -> n - 1 Adds, left to right, which is how it is defined. */
bw_status bw_pass_sum(bw_pass *p, int node, bw_error *err)
{
    bw_graph *g = p->g;
    if (!is_op(&g->nodes[node], "Sum") || g->nodes[node].input_count < 2)
        return BW_OK;
    int out = g->nodes[node].outputs[0], count = g->nodes[node].input_count;
    for (int i = 0; i < count; i++) /* broadcasting between partial sums would need its own shapes */
        if (count > 2 && !same_shape(&g->values[g->nodes[node].inputs[i]], &g->values[out]))
            return BW_OK;
    int *in = malloc((size_t)count * sizeof *in);
    char *name = strdup(g->nodes[node].name);
    if (!in || !name) {
        free(in);
        free(name);
        return bw_pass_no_memory(p, node, err);
    }
    memcpy(in, g->nodes[node].inputs, (size_t)count * sizeof *in);
    bw_graph_remove_node(g, node);
    bw_status st = BW_OK;
    int left = in[0];
    for (int i = 1; i < count && !st; i++) {
        char part[300];
        int result = out;
        snprintf(part, sizeof part, i + 1 < count ? "%.250s.part%d" : "%.250s", name, i);
        p->uses[left]--;
        p->uses[in[i]]--;
        if (i + 1 < count && (st = bw_pass_value(p, part, &g->values[out], &result, err)))
            break;
        st = bw_pass_add_node(p, "Add", part, (int[]){left, in[i]}, 2, result, NULL, err);
        left = result;
        if (i + 1 < count)
            p->uses[left]++;
    }
    free(in);
    free(name);
    return st;
}

/* --- ReduceMean ------------------------------------------------------------------------------------------------- */

/* The mean over all spatial axes is a global average pool; without keepdims a Flatten follows. */
bw_status bw_pass_mean(bw_pass *p, int node, bw_error *err)
{
    bw_graph *g = p->g;
    bw_node *n = &g->nodes[node];
    if (!is_op(n, "ReduceMean") || n->input_count != 1 || n->output_count != 1)
        return BW_OK;
    const bw_value *x = &g->values[n->inputs[0]];
    int64_t axes[BW_RANK_MAX];
    size_t count = bw_node_ints(n, "axes", axes, BW_RANK_MAX);
    if (x->dtype != BW_F32 || x->rank < 3 || x->rank > 5 || count != (size_t)x->rank - 2)
        return BW_OK;
    unsigned seen = 0;
    for (size_t i = 0; i < count; i++) {
        int64_t a = axes[i] < 0 ? axes[i] + x->rank : axes[i];
        if (a < 2 || a >= x->rank)
            return BW_OK;
        seen |= 1u << a;
    }
    if (seen != (1u << x->rank) - 4)
        return BW_OK;
    int keep = bw_node_int(n, "keepdims", 1) != 0, in = n->inputs[0], out = n->outputs[0], result = out;
    char name[300];
    snprintf(name, sizeof name, "%.250s", n->name);
    bw_status st = BW_OK;
    if (!keep) {
        bw_value like = *x;
        for (int i = 2; i < like.rank; i++)
            like.dims[i] = 1;
        char stem[320];
        snprintf(stem, sizeof stem, "%s.mean", name);
        if ((st = bw_pass_value(p, stem, &like, &result, err)))
            return st;
    }
    bw_graph_remove_node(g, node);
    p->uses[in]--;
    int flat;
    if ((st = bw_pass_add_node(p, "GlobalAveragePool", name, &in, 1, result, NULL, err)) || keep)
        return st;
    char flatten[320];
    snprintf(flatten, sizeof flatten, "%s.flatten", name);
    if ((st = bw_pass_add_node(p, "Flatten", flatten, &result, 1, out, &flat, err)))
        return st;
    return bw_node_set_int(&g->nodes[flat], "axis", 1) ? bw_pass_no_memory(p, flat, err) : BW_OK;
}

/* --- Pad -------------------------------------------------------------------------------------------------------- */

/* 1 if no element of the value is below zero. */
static int is_not_negative(const bw_graph *g, int value)
{
    int producer = g->values[value].producer;
    if (producer < 0)
        return 0;
    const bw_node *n = &g->nodes[producer];
    return is_op(n, "Relu") || is_op(n, "Sigmoid") || (is_op(n, "Clip") && bw_node_float(n, "min", -1) >= 0);
}

/* Whether a pool or convolution `n` may do the padding `pads` (spatial, per side) with `value` itself. */
static int may_take_pads(const bw_graph *g, const bw_node *n, const bw_node *pad, const int64_t *pads, int spatial,
                         float value)
{
    int64_t kernel[BW_RANK_MAX], own[2 * BW_RANK_MAX] = {0};
    if (strcmp(bw_node_string(n, "auto_pad", "NOTSET"), "NOTSET"))
        return 0;
    if (is_op(n, "Conv"))
        return value == 0;
    if (!is_op(n, "MaxPool") && !is_op(n, "AveragePool"))
        return 0;
    if (bw_node_ints(n, "kernel_shape", kernel, BW_RANK_MAX) != (size_t)spatial || bw_node_int(n, "ceil_mode", 0) ||
        !all_are(n, "dilations", 1))
        return 0;
    bw_node_ints(n, "pads", own, 2 * BW_RANK_MAX);
    for (int i = 0; i < 2 * spatial; i++) /* every window keeps an element of the input */
        if (pads[i] + own[i] >= kernel[i % spatial])
            return 0;
    if (is_op(n, "AveragePool"))
        return value == 0 && (all_are(n, "pads", 0) || bw_node_int(n, "count_include_pad", 0));
    return (isinf(value) && value < 0) || value <= -FLT_MAX || (value == 0 && is_not_negative(g, pad->inputs[0]));
}

/* Constant padding in front of a convolution or pool becomes its own. Visits the consumer. */
bw_status bw_pass_pad(bw_pass *p, int node, bw_error *err)
{
    bw_graph *g = p->g;
    bw_node *n = &g->nodes[node];
    int producer = n->input_count && n->inputs[0] >= 0 ? g->values[n->inputs[0]].producer : -1;
    if (producer < 0 || !g->nodes[producer].op || !is_op(&g->nodes[producer], "Pad"))
        return BW_OK;
    const bw_node *pad = &g->nodes[producer];
    int64_t all[2 * BW_RANK_MAX], pads[2 * BW_RANK_MAX], own[2 * BW_RANK_MAX] = {0};
    int rank = g->values[pad->inputs[0]].rank, spatial = rank - 2;
    if (spatial < 1 || pad->input_count != 1 || strcmp(bw_node_string(pad, "mode", "constant"), "constant") ||
        bw_node_ints(pad, "pads", all, 2 * BW_RANK_MAX) != 2 * (size_t)rank || all[0] || all[1] || all[rank] ||
        all[rank + 1])
        return BW_OK;
    for (int i = 0; i < spatial; i++) {
        pads[i] = all[i + 2];
        pads[i + spatial] = all[i + 2 + rank];
        if (pads[i] < 0 || pads[i + spatial] < 0)
            return BW_OK;
    }
    if (!may_take_pads(g, n, pad, pads, spatial, bw_node_float(pad, "value", 0)))
        return BW_OK;
    int average = is_op(n, "AveragePool");
    bw_node_ints(n, "pads", own, 2 * BW_RANK_MAX);
    for (int i = 0; i < 2 * spatial; i++)
        own[i] += pads[i];
    if (bw_node_set_ints(n, "pads", own, 2 * (size_t)spatial) ||
        (average && bw_node_set_int(n, "count_include_pad", 1)))
        return bw_pass_no_memory(p, node, err);
    return bw_pass_set_input(p, node, 0, pad->inputs[0], err); /* the Pad dies with its last consumer */
}
