/* SPDX-License-Identifier: Apache-2.0 */
/* One operator set, second half: with shapes known and constants folded, parameters become attributes and automatic
 * padding becomes explicit. */
#include <stdlib.h>
#include <string.h>

#include "quantize/import_internal.h"

static bw_status no_memory(const bw_importer *im, const bw_node *n, bw_error *err)
{
    char where[200];
    return bw_fail(err, BW_NO_MEMORY, "no memory for %s", bw_import_where(im, n, where));
}

/* --- constant inputs to attributes ------------------------------------------------------------------------------ */

typedef struct parameter {
    const char *op;
    int input;
    const char *attr;
    bw_attr_kind kind;
} parameter;

static const parameter parameters[] = {
    {"Clip", 1, "min", BW_ATTR_FLOAT},
    {"Clip", 2, "max", BW_ATTR_FLOAT},
    {"CumSum", 1, "axis", BW_ATTR_INT},
    {"Expand", 1, "shape", BW_ATTR_INTS},
    {"Pad", 1, "pads", BW_ATTR_INTS},
    {"Pad", 2, "value", BW_ATTR_FLOAT},
    {"Pad", 3, "axes", BW_ATTR_INTS},
    {"ReduceL1", 1, "axes", BW_ATTR_INTS},
    {"ReduceL2", 1, "axes", BW_ATTR_INTS},
    {"ReduceLogSum", 1, "axes", BW_ATTR_INTS},
    {"ReduceLogSumExp", 1, "axes", BW_ATTR_INTS},
    {"ReduceMax", 1, "axes", BW_ATTR_INTS},
    {"ReduceMean", 1, "axes", BW_ATTR_INTS},
    {"ReduceMin", 1, "axes", BW_ATTR_INTS},
    {"ReduceProd", 1, "axes", BW_ATTR_INTS},
    {"ReduceSum", 1, "axes", BW_ATTR_INTS},
    {"ReduceSumSquare", 1, "axes", BW_ATTR_INTS},
    {"Reshape", 1, "shape", BW_ATTR_INTS},
    {"Resize", 2, "scales", BW_ATTR_FLOATS},
    {"Resize", 3, "sizes", BW_ATTR_INTS},
    {"Slice", 1, "starts", BW_ATTR_INTS},
    {"Slice", 2, "ends", BW_ATTR_INTS},
    {"Slice", 3, "axes", BW_ATTR_INTS},
    {"Slice", 4, "steps", BW_ATTR_INTS},
    {"Split", 1, "split", BW_ATTR_INTS},
    {"Squeeze", 1, "axes", BW_ATTR_INTS},
    {"Tile", 1, "repeats", BW_ATTR_INTS},
    {"Trilu", 1, "k", BW_ATTR_INT},
    {"Unsqueeze", 1, "axes", BW_ATTR_INTS},
};

static bw_status set_parameter(const bw_importer *im, bw_node *n, const parameter *p, const bw_array *a, bw_error *err)
{
    int64_t count = bw_array_count(a);
    char where[200];
    int is_float = a->dtype == BW_F32 || a->dtype == BW_F64;
    int want_float = p->kind == BW_ATTR_FLOAT || p->kind == BW_ATTR_FLOATS;
    if (a->rank > 1 || count > 64 || (is_float && !want_float) || a->dtype == BW_F16)
        return bw_fail(err, BW_CORRUPT,
                       "%s: its input '%s' has rank %d, %lld elements of type %s, expected a short "
                       "list",
                       bw_import_where(im, n, where), p->attr, a->rank, (long long)count, bw_dtype_name(a->dtype));
    int64_t ints[64];
    float floats[64];
    for (int64_t i = 0; i < count; i++) {
        if (want_float)
            floats[i] = (float)bw_array_real(a, i);
        else
            ints[i] = bw_array_int(a, i);
    }
    /* An empty list is how some exporters leave a parameter out; a scalar's shape ([]) really is empty. */
    if (!count && strcmp(p->attr, "shape"))
        return BW_OK;
    if (count != 1 && (p->kind == BW_ATTR_INT || p->kind == BW_ATTR_FLOAT))
        return bw_fail(err, BW_CORRUPT, "%s: its input '%s' has %lld elements, expected one",
                       bw_import_where(im, n, where), p->attr, (long long)count);
    bw_status st = BW_OK;
    switch (p->kind) {
    case BW_ATTR_INT:
        st = bw_node_set_int(n, p->attr, ints[0]);
        break;
    case BW_ATTR_FLOAT:
        st = bw_node_set_float(n, p->attr, floats[0]);
        break;
    case BW_ATTR_FLOATS:
        st = bw_node_set_floats(n, p->attr, floats, (size_t)count);
        break;
    default:
        st = bw_node_set_ints(n, p->attr, ints, (size_t)count);
    }
    return st ? no_memory(im, n, err) : BW_OK;
}

/* All or none of a node's parameters, so that none is read from two places. */
static bw_status absorb_parameters(const bw_importer *im, bw_node *n, bw_error *err)
{
    const parameter *found[8];
    int count = 0;
    for (size_t i = 0; i < sizeof parameters / sizeof parameters[0]; i++) {
        const parameter *p = &parameters[i];
        if (strcmp(p->op, n->op) || bw_node_input(n, p->input) < 0)
            continue;
        if (!bw_node_constant(im->g, n, p->input))
            return BW_OK;
        found[count++] = p;
    }
    if (!count)
        return BW_OK;
    /* The limits of an integer Clip or Pad need not be exact in fp32: they stay inputs. */
    if ((!strcmp(n->op, "Clip") || !strcmp(n->op, "Pad")) && im->g->values[n->inputs[0]].dtype != BW_F32)
        return BW_OK;
    for (int i = 0; i < count; i++) {
        bw_status st = set_parameter(im, n, found[i], bw_node_constant(im->g, n, found[i]->input), err);
        if (st)
            return st;
    }
    bw_node_trim_inputs(n, 1);
    return BW_OK;
}

/* --- spelling out ----------------------------------------------------------------------------------------------- */

static int fold_axis(int64_t *axis, int rank)
{
    if (*axis < -rank || *axis >= rank)
        return 0;
    *axis += *axis < 0 ? rank : 0;
    return 1;
}

/* auto_pad to pads: what SAME means depends on the size of the input. */
static bw_status explicit_pads(const bw_importer *im, bw_node *n, bw_error *err)
{
    const char *mode = bw_node_string(n, "auto_pad", "NOTSET");
    if (!strcmp(mode, "NOTSET")) {
        bw_node_drop_attr(n, "auto_pad");
        return BW_OK;
    }
    const bw_value *x = &im->g->values[n->inputs[0]];
    int64_t kernel[BW_RANK_MAX], strides[BW_RANK_MAX], dilations[BW_RANK_MAX], pads[2 * BW_RANK_MAX] = {0};
    int spatial = x->rank - 2;
    if (spatial < 1)
        return BW_OK; /* shape inference has the message */
    for (int i = 0; i < spatial; i++)
        strides[i] = dilations[i] = 1;
    size_t have = bw_node_ints(n, "kernel_shape", kernel, BW_RANK_MAX);
    if (!strcmp(n->op, "Conv") && bw_node_input(n, 1) >= 0) {
        const bw_value *w = &im->g->values[n->inputs[1]];
        for (int i = 0; i < spatial && w->rank == x->rank; i++)
            kernel[i] = w->dims[i + 2];
        have = w->rank == x->rank ? (size_t)spatial : 0;
    }
    bw_node_ints(n, "strides", strides, BW_RANK_MAX);
    bw_node_ints(n, "dilations", dilations, BW_RANK_MAX);
    if (have != (size_t)spatial)
        return BW_OK;
    int upper = !strcmp(mode, "SAME_UPPER"), lower = !strcmp(mode, "SAME_LOWER");
    for (int i = 0; i < spatial && (upper || lower); i++) {
        int64_t in = x->dims[i + 2];
        if (in < 1 || strides[i] < 1 || kernel[i] < 1 || dilations[i] < 1 || kernel[i] > INT32_MAX ||
            dilations[i] > INT32_MAX || strides[i] > INT32_MAX || in > INT32_MAX)
            return BW_OK; /* left to shape inference */
        int64_t out = (in + strides[i] - 1) / strides[i];
        int64_t total = (out - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 - in;
        if (total < 0)
            total = 0;
        pads[i] = lower ? (total + 1) / 2 : total / 2;
        pads[i + spatial] = total - pads[i];
    }
    bw_node_drop_attr(n, "auto_pad");
    return bw_node_set_ints(n, "pads", pads, (size_t)spatial * 2) ? no_memory(im, n, err) : BW_OK;
}

/* Slice: non-negative axes, starts and ends inside the known dimensions. */
static bw_status explicit_slice(const bw_importer *im, bw_node *n, bw_error *err)
{
    const bw_value *x = &im->g->values[n->inputs[0]];
    int64_t starts[BW_RANK_MAX], ends[BW_RANK_MAX], axes[BW_RANK_MAX], steps[BW_RANK_MAX];
    size_t count = bw_node_ints(n, "starts", starts, BW_RANK_MAX);
    if (!count || count > BW_RANK_MAX || bw_node_ints(n, "ends", ends, BW_RANK_MAX) != count || x->rank < 1)
        return BW_OK;
    for (size_t i = 0; i < count; i++) {
        axes[i] = (int64_t)i;
        steps[i] = 1;
    }
    size_t axis_count = bw_node_ints(n, "axes", axes, BW_RANK_MAX),
           steps_count = bw_node_ints(n, "steps", steps, BW_RANK_MAX);
    if ((axis_count && axis_count != count) || (steps_count && steps_count != count))
        return BW_OK; /* shape inference has the message */
    for (size_t i = 0; i < count; i++) {
        if (!fold_axis(&axes[i], x->rank))
            return BW_OK;
        int64_t d = x->dims[axes[i]];
        if (d < 0 || steps[i] <= 0)
            continue;
        starts[i] += starts[i] < 0 ? d : 0;
        ends[i] += ends[i] < 0 ? d : 0;
        starts[i] = starts[i] < 0 ? 0 : starts[i] > d ? d : starts[i];
        ends[i] = ends[i] < starts[i] ? starts[i] : ends[i] > d ? d : ends[i];
    }
    if (bw_node_set_ints(n, "starts", starts, count) || bw_node_set_ints(n, "ends", ends, count) ||
        bw_node_set_ints(n, "axes", axes, count) || bw_node_set_ints(n, "steps", steps, count))
        return no_memory(im, n, err);
    return BW_OK;
}

/* Pad: pads for every axis. */
static bw_status explicit_pad(const bw_importer *im, bw_node *n, bw_error *err)
{
    const bw_value *x = &im->g->values[n->inputs[0]];
    int64_t pads[2 * BW_RANK_MAX], axes[BW_RANK_MAX], full[2 * BW_RANK_MAX] = {0};
    size_t count = bw_node_ints(n, "axes", axes, BW_RANK_MAX);
    if (!count || count > BW_RANK_MAX || x->rank < 1 || bw_node_ints(n, "pads", pads, 2 * BW_RANK_MAX) != 2 * count)
        return BW_OK;
    for (size_t i = 0; i < count; i++) {
        if (!fold_axis(&axes[i], x->rank))
            return BW_OK;
        full[axes[i]] = pads[i];
        full[axes[i] + x->rank] = pads[i + count];
    }
    bw_node_drop_attr(n, "axes");
    return bw_node_set_ints(n, "pads", full, 2 * (size_t)x->rank) ? no_memory(im, n, err) : BW_OK;
}

/* Reshape: the shape that inference found, with at most one -1. */
static bw_status explicit_reshape(const bw_importer *im, bw_node *n, bw_error *err)
{
    const bw_value *y = &im->g->values[n->outputs[0]];
    int unknown = 0;
    if (y->rank < 1)
        return BW_OK;
    for (int i = 0; i < y->rank; i++) {
        unknown += y->dims[i] < 0;
        if (y->dims[i] == 0)
            return BW_OK;
    }
    if (unknown > 1)
        return BW_OK;
    bw_node_trim_inputs(n, 1);
    bw_node_drop_attr(n, "allowzero");
    return bw_node_set_ints(n, "shape", y->dims, (size_t)y->rank) ? no_memory(im, n, err) : BW_OK;
}

/* Resize of opset 10: the rounding of its nearest mode, which depends on the direction. */
static bw_status explicit_resize(const bw_importer *im, bw_node *n, bw_error *err)
{
    char where[200];
    const bw_attr *scales = bw_node_attr(n, "scales");
    if (strcmp(bw_node_string(n, "nearest_mode", ""), "simple"))
        return BW_OK;
    int up = 1, down = 1;
    for (size_t i = 0; scales && scales->kind == BW_ATTR_FLOATS && i < scales->count; i++) {
        up &= scales->floats[i] >= 1;
        down &= scales->floats[i] <= 1;
    }
    if (!scales || (!up && !down))
        return bw_fail(err, BW_UNSUPPORTED,
                       "%s: scales that are computed at run time, or enlarge one axis and shrink "
                       "another: export with opset 11 or newer",
                       bw_import_where(im, n, where));
    return bw_node_set_string(n, "nearest_mode", up ? "floor" : "ceil") ? no_memory(im, n, err) : BW_OK;
}

/* Softmax of opset < 13 over [axis, rank): plain when only one of these axes is longer than 1. */
static bw_status explicit_softmax(const bw_importer *im, bw_node *n, bw_error *err)
{
    const bw_value *x = &im->g->values[n->inputs[0]];
    int64_t axis = bw_node_int(n, "axis", -1);
    if (!bw_node_int(n, "coerce", 0) || x->rank < 1 || !fold_axis(&axis, x->rank))
        return BW_OK;
    int64_t only = axis;
    int longer = 0;
    for (int i = (int)axis; i < x->rank; i++) {
        if (x->dims[i] != 1) {
            longer++;
            only = i;
        }
    }
    if (longer > 1)
        return BW_OK;
    bw_node_drop_attr(n, "coerce");
    return bw_node_set_int(n, "axis", only) ? no_memory(im, n, err) : BW_OK;
}

static bw_status spell_out(const bw_importer *im, bw_node *n, bw_error *err)
{
    if (!n->input_count || n->inputs[0] < 0)
        return BW_OK;
    bw_status st = absorb_parameters(im, n, err);
    if (st)
        return st;
    if (!strcmp(n->op, "Conv") || !strcmp(n->op, "MaxPool") || !strcmp(n->op, "AveragePool"))
        return explicit_pads(im, n, err);
    if (!strcmp(n->op, "Slice"))
        return explicit_slice(im, n, err);
    if (!strcmp(n->op, "Pad"))
        return explicit_pad(im, n, err);
    if (!strcmp(n->op, "Reshape"))
        return explicit_reshape(im, n, err);
    if (!strcmp(n->op, "Resize"))
        return explicit_resize(im, n, err);
    if (!strcmp(n->op, "Softmax") || !strcmp(n->op, "LogSoftmax"))
        return explicit_softmax(im, n, err);
    return BW_OK;
}

/* --- the whole graph -------------------------------------------------------------------------------------------- */

/* Outputs that normalisation dropped (Dropout's mask, MaxPool's indices) must be read by nobody. */
static bw_status check_dropped(const bw_importer *im, bw_error *err)
{
    const bw_graph *g = im->g;
    unsigned char *written = calloc((size_t)g->value_count + 1, 1);
    if (!written)
        return bw_fail(err, BW_NO_MEMORY, "no memory for %d values", g->value_count);
    for (int i = 0; i < g->node_count; i++)
        for (int k = 0; k < g->nodes[i].output_count; k++)
            written[g->nodes[i].outputs[k]] = 1;
    int bad = -1;
    for (int i = 0; i < g->node_count; i++)
        for (int k = 0; k < g->nodes[i].input_count; k++) {
            int v = g->nodes[i].inputs[k];
            if (v >= 0 && g->values[v].producer >= 0 && !written[v])
                bad = v;
        }
    for (int i = 0; i < g->output_count; i++)
        if (g->values[g->outputs[i]].producer >= 0 && !written[g->outputs[i]])
            bad = g->outputs[i];
    free(written);
    if (bad < 0)
        return BW_OK;
    char where[200];
    return bw_fail(err, BW_UNSUPPORTED,
                   "%s: its output '%s' is used, only the first output is supported: export the "
                   "model for inference",
                   bw_import_where(im, &g->nodes[g->values[bad].producer], where), g->values[bad].name);
}

/* What folding will allocate, before it does. */
static bw_status check_folding(const bw_importer *im, bw_error *err)
{
    const bw_graph *g = im->g;
    unsigned char *known = calloc((size_t)g->value_count + 1, 1);
    if (!known)
        return bw_fail(err, BW_NO_MEMORY, "no memory for %d values", g->value_count);
    uint64_t total = 0;
    bw_status st = BW_OK;
    for (int i = 0; i < g->value_count; i++) {
        known[i] = g->values[i].constant != NULL;
        total += known[i] ? g->values[i].constant->bytes : 0;
    }
    for (int i = 0; i < g->node_count && !st; i++) {
        const bw_node *n = &g->nodes[i];
        int all = 1;
        for (int k = 0; k < n->input_count; k++)
            all &= n->inputs[k] < 0 || known[n->inputs[k]];
        for (int k = 0; k < n->output_count && all; k++) {
            const bw_value *v = &g->values[n->outputs[k]];
            uint64_t bytes = bw_dtype_size(v->dtype);
            int overflow = 0;
            for (int d = 0; d < v->rank; d++)
                overflow |= v->dims[d] >= 0 && __builtin_mul_overflow(bytes, (uint64_t)v->dims[d], &bytes);
            if (overflow || bytes > im->limit || total + bytes > im->limit) {
                char where[200];
                st = bw_fail(err, BW_EXHAUSTED,
                             "%s: its constant output '%s' brings the constants over the limit of "
                             "%llu bytes",
                             bw_import_where(im, n, where), v->name, (unsigned long long)im->limit);
                break;
            }
            total += bytes;
            known[n->outputs[k]] = 1;
        }
    }
    free(known);
    return st;
}

/* Shapes, as far as it takes to settle what depends on them. */
static bw_status infer(bw_importer *im, bw_error *err)
{
    bw_status st = bw_graph_sort(im->g, err);
    /* Each round settles at least one Reshape, and in most models all. */
    for (int round = 0; round < 256 && !st; round++) {
        bw_error found = {0};
        st = bw_graph_infer_shapes(im->g, &found);
        /* Also after a failure, up to which shapes are known: it may be for want of what is settled here. */
        for (int i = 0; i < im->g->node_count; i++) {
            bw_node *n = &im->g->nodes[i];
            bw_status bad = n->input_count && n->inputs[0] >= 0 ? absorb_parameters(im, n, err) : BW_OK;
            if (bad)
                return bad;
        }
        int settled = bw_normalise_views(im, &found);
        if (settled > 0)
            st = bw_graph_sort(im->g, err);
        else if (settled < 0 || st)
            return bw_fail(err, found.status, "%s", found.message);
        else
            break;
    }
    return st;
}

bw_status bw_normalise_graph(bw_importer *im, bw_error *err)
{
    bw_graph *g = im->g;
    bw_status st = check_dropped(im, err);
    /* Twice: a folded parameter can make the shapes known that the next one is computed from. */
    for (int round = 0; round < 2 && !st; round++) {
        if ((st = infer(im, err)) || (st = check_folding(im, err)) ||
            (st = bw_graph_fold_constants(g, im->limit, err)) || (st = infer(im, err)))
            break;
        for (int i = 0; i < g->node_count && !st; i++)
            st = spell_out(im, &g->nodes[i], err);
    }
    return st ? st : infer(im, err);
}
