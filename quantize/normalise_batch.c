/* SPDX-License-Identifier: Apache-2.0 */
/* Models exported for one sample: the first dimension of 1 becomes the batch where every node treats the samples
 * independently. The proof is by operator: whatever is not listed below keeps the model at one sample. */
#include <stdlib.h>
#include <string.h>

#include "quantize/import_internal.h"

static int is_one_of(const char *op, const char *const *list)
{
    for (; *list; list++)
        if (!strcmp(op, *list))
            return 1;
    return 0;
}

/* Each element of the output depends on the element(s) at the same place; operands are broadcast. */
static const char *const elementwise[] = {"Abs",         "Add",        "And",
                                          "Cast",        "Ceil",       "Celu",
                                          "Clip",        "Cos",        "Div",
                                          "Dropout",     "Elu",        "Equal",
                                          "Erf",         "Exp",        "Floor",
                                          "Gelu",        "Greater",    "GreaterOrEqual",
                                          "HardSigmoid", "HardSwish",  "Identity",
                                          "IsNaN",       "LeakyRelu",  "Less",
                                          "LessOrEqual", "Log",        "Max",
                                          "Mean",        "Min",        "Mish",
                                          "Mod",         "Mul",        "Neg",
                                          "Not",         "Or",         "PRelu",
                                          "Pow",         "Reciprocal", "Relu",
                                          "Round",       "Selu",       "Sigmoid",
                                          "Sign",        "Sin",        "Softplus",
                                          "Softsign",    "Sqrt",       "Sub",
                                          "Sum",         "Tanh",       "ThresholdedRelu",
                                          "Where",       "Xor",        NULL};
/* The first input carries the batch on axis 0, the others are constants. */
static const char *const spatial[] = {
    "AveragePool",   "BatchNormalization",    "Conv", "ConvTranspose", "DepthToSpace", "GlobalAveragePool",
    "GlobalMaxPool", "InstanceNormalization", "LRN",  "MaxPool",       "SpaceToDepth", NULL};
static const char *const one_axis[] = {"ArgMax", "ArgMin", "LogSoftmax", "Softmax", "Split", "LayerNormalization",
                                       NULL};
static const char *const axes_list[] = {"ReduceL1",  "ReduceL2",        "ReduceLogSum", "ReduceLogSumExp",
                                        "ReduceMax", "ReduceMean",      "ReduceMin",    "ReduceProd",
                                        "ReduceSum", "ReduceSumSquare", "Squeeze",      NULL};

typedef struct batch_walk {
    const bw_graph *g;
    unsigned char *batched; /* per value: axis 0 is the batch */
} batch_walk;

static int is_batched(const batch_walk *w, int value)
{
    return value >= 0 && w->batched[value];
}

static int axis_is_safe(int64_t axis, int rank)
{
    return axis != 0 && axis != -rank;
}

/* All listed axes are present and none is the batch's. */
static int axes_are_safe(const bw_node *n, const char *name, int rank)
{
    int64_t axes[BW_RANK_MAX];
    size_t count = bw_node_ints(n, name, axes, BW_RANK_MAX);
    if (!count || count > BW_RANK_MAX)
        return 0;
    for (size_t i = 0; i < count; i++)
        if (!axis_is_safe(axes[i], rank))
            return 0;
    return 1;
}

/* Operands that are not batched must not have an axis where the batch is, or one of length 1 there. */
static int operands_are_safe(const batch_walk *w, const bw_node *n)
{
    int rank = w->g->values[n->outputs[0]].rank;
    for (int i = 0; i < n->input_count; i++) {
        if (n->inputs[i] < 0)
            continue;
        const bw_value *v = &w->g->values[n->inputs[i]];
        if (is_batched(w, n->inputs[i]) ? v->rank != rank : v->rank < 0 || (v->rank == rank && v->dims[0] != 1))
            return 0;
    }
    return 1;
}

static int only_first_is_batched(const batch_walk *w, const bw_node *n)
{
    for (int i = 1; i < n->input_count; i++)
        if (is_batched(w, n->inputs[i]))
            return 0;
    return is_batched(w, n->inputs[0]);
}

static int all_are_batched(const batch_walk *w, const bw_node *n)
{
    for (int i = 0; i < n->input_count; i++)
        if (!is_batched(w, n->inputs[i]))
            return 0;
    return 1;
}

/* Fewer than all axes of a Slice or Pad are touched at the batch. */
static int pads_are_safe(const bw_node *n, int rank)
{
    int64_t pads[2 * BW_RANK_MAX];
    return bw_node_ints(n, "pads", pads, 2 * BW_RANK_MAX) == 2 * (size_t)rank && !pads[0] && !pads[rank];
}

static int scales_are_safe(const bw_node *n, int rank)
{
    const bw_attr *scales = bw_node_attr(n, "scales");
    if (bw_node_attr(n, "axes"))
        return axes_are_safe(n, "axes", rank);
    return scales && scales->kind == BW_ATTR_FLOATS && scales->count && scales->floats[0] == 1.0f &&
           !bw_node_attr(n, "sizes");
}

/* Of a Reshape: as many samples, and as many elements in each, before and after. */
static int keeps_samples(const bw_value *x, const bw_value *y)
{
    int64_t before = 1, after = 1;
    if (x->rank < 1 || y->rank < 1 || x->dims[0] != y->dims[0])
        return 0;
    for (int i = 1; i < x->rank; i++)
        if (x->dims[i] < 1 || __builtin_mul_overflow(before, x->dims[i], &before))
            return 0;
    for (int i = 1; i < y->rank; i++)
        if (y->dims[i] < 1 || __builtin_mul_overflow(after, y->dims[i], &after))
            return 0;
    return before == after;
}

static int node_is_safe(const batch_walk *w, const bw_node *n)
{
    int64_t list[BW_RANK_MAX];
    if (n->inputs[0] < 0 || !n->output_count || n->outputs[0] < 0)
        return 0;
    const bw_value *x = &w->g->values[n->inputs[0]];
    if (is_one_of(n->op, elementwise))
        return operands_are_safe(w, n);
    if (!strcmp(n->op, "Concat"))
        return all_are_batched(w, n) && axis_is_safe(bw_node_int(n, "axis", 0), x->rank);
    if (!strcmp(n->op, "MatMul")) {
        if (bw_node_input(n, 1) < 0)
            return 0;
        const bw_value *b = &w->g->values[n->inputs[1]];
        if (!is_batched(w, n->inputs[0]))
            return is_batched(w, n->inputs[1]) && b->rank > 2 && x->rank >= 1 && x->rank < b->rank;
        return x->rank >= 2 &&
               (is_batched(w, n->inputs[1]) ? x->rank > 2 && b->rank == x->rank : b->rank >= 1 && b->rank <= 2);
    }
    if (!only_first_is_batched(w, n))
        return 0;
    if (is_one_of(n->op, spatial))
        return 1;
    if (!strcmp(n->op, "Gemm")) {
        int c = bw_node_input(n, 2);
        return !bw_node_int(n, "transA", 0) && (c < 0 || w->g->values[c].rank < 2 || w->g->values[c].dims[0] == 1);
    }
    if (is_one_of(n->op, one_axis)) {
        int last = strstr(n->op, "oftmax") || !strcmp(n->op, "LayerNormalization");
        return axis_is_safe(bw_node_int(n, "axis", last ? -1 : 0), x->rank);
    }
    if (is_one_of(n->op, axes_list))
        return axes_are_safe(n, "axes", x->rank);
    if (!strcmp(n->op, "Unsqueeze"))
        return axes_are_safe(n, "axes", w->g->values[n->outputs[0]].rank);
    if (!strcmp(n->op, "Slice"))
        return axes_are_safe(n, "axes", x->rank);
    if (!strcmp(n->op, "Pad"))
        return pads_are_safe(n, x->rank);
    if (!strcmp(n->op, "Resize"))
        return n->input_count == 1 && scales_are_safe(n, x->rank);
    if (!strcmp(n->op, "Gather") || !strcmp(n->op, "CumSum"))
        return axis_is_safe(bw_node_int(n, "axis", 0), x->rank);
    if (!strcmp(n->op, "Flatten"))
        return bw_node_int(n, "axis", 1) == 1;
    if (!strcmp(n->op, "Transpose"))
        return bw_node_ints(n, "perm", list, BW_RANK_MAX) == (size_t)x->rank && list[0] == 0;
    if (!strcmp(n->op, "Reshape"))
        return keeps_samples(x, &w->g->values[n->outputs[0]]);
    return 0;
}

static int reads_batch(const batch_walk *w, const bw_node *n)
{
    for (int k = 0; k < n->input_count; k++)
        if (is_batched(w, n->inputs[k]))
            return 1;
    return 0;
}

/* Marks the values whose axis 0, `size` long (1 or -1), is the batch. 0 if some node mixes samples, or may. */
static int walk(batch_walk *w, int64_t size)
{
    const bw_graph *g = w->g;
    int pure = 1;
    for (int i = 0; i < g->input_count; i++) {
        const bw_value *v = &g->values[g->inputs[i]];
        w->batched[g->inputs[i]] = v->rank > 0 && v->dims[0] == size;
        pure &= w->batched[g->inputs[i]];
    }
    for (int i = 0; i < g->node_count; i++) {
        const bw_node *n = &g->nodes[i];
        if (!reads_batch(w, n))
            continue;
        int safe = node_is_safe(w, n);
        for (int k = 0; k < n->output_count; k++) {
            const bw_value *v = n->outputs[k] < 0 ? NULL : &g->values[n->outputs[k]];
            if (v)
                w->batched[n->outputs[k]] = safe && v->rank > 0 && v->dims[0] == size;
            pure &= v && w->batched[n->outputs[k]];
        }
    }
    return pure;
}

void bw_normalise_find_batch(const bw_graph *g, unsigned char *batched)
{
    batch_walk w = {.g = g, .batched = batched};
    walk(&w, -1);
}

/* 1 if the whole network treats its samples independently, one at a time now, and can be told to take more. */
static int can_take_batches(batch_walk *w)
{
    const bw_graph *g = w->g;
    if (!g->input_count || !walk(w, 1))
        return 0;
    for (int i = 0; i < g->output_count; i++)
        if (!w->batched[g->outputs[i]])
            return 0;
    for (int i = 0; i < g->node_count; i++) {
        const bw_node *n = &g->nodes[i];
        int64_t list[BW_RANK_MAX];
        if (!strcmp(n->op, "Reshape") && w->batched[n->outputs[0]] &&
            (n->input_count != 1 ||
             bw_node_ints(n, "shape", list, BW_RANK_MAX) != (size_t)g->values[n->outputs[0]].rank))
            return 0;
    }
    return 1;
}

/* The first dimension of every batched value and of every batched Reshape's shape. */
static bw_status set_batch(bw_graph *g, const batch_walk *w, int64_t batch, bw_error *err)
{
    for (int i = 0; i < g->value_count; i++)
        if (w->batched[i])
            g->values[i].dims[0] = batch;
    for (int i = 0; i < g->node_count; i++) {
        bw_node *n = &g->nodes[i];
        int64_t shape[BW_RANK_MAX];
        if (strcmp(n->op, "Reshape") || !w->batched[n->outputs[0]])
            continue;
        size_t count = bw_node_ints(n, "shape", shape, BW_RANK_MAX);
        shape[0] = batch;
        if (bw_node_set_ints(n, "shape", shape, count))
            return bw_fail(err, BW_NO_MEMORY, "no memory for node '%s'", n->name);
    }
    return BW_OK;
}

/* Inference must find what the walk found. */
static int shapes_agree(const batch_walk *w, const int64_t (*before)[BW_RANK_MAX], const int *ranks)
{
    const bw_graph *g = w->g;
    for (int i = 0; i < g->value_count; i++) {
        const bw_value *v = &g->values[i];
        if (!w->batched[i])
            continue;
        if (v->rank != ranks[i] || v->dims[0] != -1 ||
            memcmp(v->dims + 1, before[i] + 1, (size_t)(v->rank - 1) * sizeof v->dims[0]))
            return 0;
    }
    return 1;
}

bw_status bw_normalise_batch(bw_graph *g, bw_error *err)
{
    size_t n = (size_t)g->value_count + 1;
    batch_walk w = {.g = g, .batched = calloc(n, 1)};
    int64_t(*before)[BW_RANK_MAX] = malloc(n * sizeof *before);
    int *ranks = malloc(n * sizeof *ranks);
    bw_status st = BW_OK;
    if (!w.batched || !before || !ranks) {
        st = bw_fail(err, BW_NO_MEMORY, "no memory for %d values", g->value_count);
    } else if (can_take_batches(&w)) {
        for (int i = 0; i < g->value_count; i++) {
            memcpy(before[i], g->values[i].dims, sizeof before[i]);
            ranks[i] = g->values[i].rank;
        }
        st = set_batch(g, &w, -1, err);
        if (!st &&
            (bw_graph_infer_shapes(g, NULL) || !shapes_agree(&w, (const int64_t(*)[BW_RANK_MAX])before, ranks))) {
            st = set_batch(g, &w, 1, err);
            if (!st)
                st = bw_graph_infer_shapes(g, err);
        }
    }
    free(w.batched);
    free(before);
    free(ranks);
    return st;
}
