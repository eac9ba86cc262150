/* SPDX-License-Identifier: Apache-2.0 */
/* Shape inference and constant folding: one walk over the sorted graph that carries shapes and known contents. */
#include <stdlib.h>
#include <string.h>

#include "host/graph.h"
#include "host/ops/op.h"

#define SMALL       1024 /* elements of a tensor whose contents inference carries */
#define SMALL_INPUT 4096 /* elements of an input that inference alone is willing to compute with */
#define NODE_INPUTS 1024 /* inputs or outputs of one node */

typedef struct walk {
    bw_graph *g;
    bw_array *known;        /* per value: contents found during the walk; data NULL if none */
    unsigned char *partial; /* per value: `known` has unknown entries */
    size_t fold_bytes;      /* 0: inference only */
    size_t fold_left;       /* what all folded values together may still take */
    bw_error *err;
} walk;

static void describe(const walk *w, int value, bw_op_info *info)
{
    memset(info, 0, sizeof *info);
    if (value < 0)
        return;
    const bw_value *v = &w->g->values[value];
    info->present = 1;
    info->dtype = v->dtype;
    info->rank = v->rank;
    memcpy(info->dims, v->dims, sizeof info->dims);
    if (v->constant)
        info->value = v->constant;
    else if (w->known[value].data)
        info->value = &w->known[value];
    info->partial = info->value && w->partial[value];
}

/* Whether nothing at all is known: not even that an entry is the batch. */
static int all_unknown(const bw_array *a)
{
    for (int64_t i = 0; i < bw_array_count(a); i++)
        if (((const int64_t *)a->data)[i] != BW_UNKNOWN)
            return 0;
    return bw_array_count(a) > 0;
}

static int any_unknown(const bw_array *a)
{
    for (int64_t i = 0; i < bw_array_count(a); i++)
        if (bw_is_mark(((const int64_t *)a->data)[i]))
            return 1;
    return 0;
}

/* An int64 array like `info`: full of unknown entries, or those marked by 1 among zeros. */
static bw_status make_int64(const bw_op_info *info, int mask, bw_array *a, bw_error *err)
{
    bw_status status = bw_array_alloc(a, BW_I64, info->rank, info->dims, err);
    for (int64_t i = 0; !status && i < bw_array_count(a); i++) {
        int64_t v = info->value ? ((const int64_t *)info->value->data)[i] : BW_UNKNOWN;
        ((int64_t *)a->data)[i] = mask ? bw_is_mark(v) : v;
    }
    return status;
}

/* Arithmetic on partly known integers: what an unknown entry reaches is unknown. */
static bw_status mask_result(const walk *w, const bw_op_info *in, int in_count, bw_array *out)
{
    bw_array mask[2] = {{0}}, reached = {0};
    const bw_array *ptr[2] = {&mask[0], &mask[1]};
    bw_status status = BW_OK;
    for (int i = 0; i < in_count && !status; i++) {
        status = make_int64(&in[i], 1, &mask[i], w->err);
    }
    if (!status && in_count == 2) {
        const bw_node add = {.op = "Add", .name = "mask"};
        bw_op_info result = {.present = 1, .dtype = BW_I64, .rank = out->rank};
        memcpy(result.dims, out->dims, sizeof result.dims);
        status = bw_op_run_once(bw_op_find("Add"), &add, ptr, 2, &result, &reached, 1, w->err);
    }
    const bw_array *hit = in_count == 2 ? &reached : &mask[0];
    for (int64_t i = 0; !status && i < bw_array_count(out); i++)
        if (((const int64_t *)hit->data)[i])
            ((int64_t *)out->data)[i] = BW_UNKNOWN;
    bw_array_free(&mask[0]);
    bw_array_free(&mask[1]);
    bw_array_free(&reached);
    return status;
}

static int complete(const bw_op_info *o)
{
    return o->rank >= 0 && bw_dims_product(o->dims, 0, o->rank) >= 0;
}

/* Whether the outputs' contents are worth computing, and are small enough. */
static int within_limits(const walk *w, const bw_op_info *in, int in_count, const bw_op_info *out, int out_count)
{
    size_t total = 0;
    for (int i = 0; i < out_count; i++) {
        if (!complete(&out[i]) || !bw_dtype_size(out[i].dtype))
            return 0;
        int64_t n = bw_dims_product(out[i].dims, 0, out[i].rank);
        size_t bytes = (size_t)n * bw_dtype_size(out[i].dtype);
        total += bytes;
        if (n > SMALL && bytes > w->fold_bytes)
            return 0;
    }
    if (total > w->fold_left)
        return 0;
    for (int i = 0; !w->fold_bytes && i < in_count; i++)
        if (in[i].value && bw_array_count(in[i].value) > SMALL_INPUT)
            return 0;
    return 1;
}

/* Fills known[] of the node's outputs when their contents follow from what is known. */
static bw_status evaluate(walk *w, const bw_op *op, const bw_node *n, const bw_op_info *in, const bw_op_info *out)
{
    if (!within_limits(w, in, n->input_count, out, n->output_count))
        return BW_OK;
    int known = 0, partial = 0, missing = 0;
    for (int i = 0; i < n->input_count; i++) {
        known += in[i].present && in[i].value && !in[i].partial;
        partial += in[i].present && in[i].partial;
        missing += in[i].present && !in[i].value;
    }
    int int64s = n->output_count == 1 && out[0].dtype == BW_I64;
    int from_shape = (op->flags & BW_OP_SHAPE) != 0;
    int moves = (op->flags & BW_OP_MOVES) && int64s, arith = (op->flags & BW_OP_ARITH) && int64s && n->input_count <= 2;
    if (!from_shape && (missing || partial)) {
        if ((!moves && !arith) || known + partial == 0)
            return BW_OK;
        /* Only data may be partly known, never a list of axes or sizes. */
        int data = arith || !strcmp(op->name, "Concat") ? n->input_count : 1;
        for (int i = 0; i < n->input_count; i++) {
            int vague = in[i].present && (in[i].partial || !in[i].value);
            if (vague && (i >= data || in[i].dtype != BW_I64 || !complete(&in[i]) ||
                          bw_dims_product(in[i].dims, 0, in[i].rank) > SMALL))
                return BW_OK;
        }
        if (arith && in[0].dtype != BW_I64)
            return BW_OK;
    }
    const bw_array **ptr = calloc((size_t)n->input_count + 1, sizeof *ptr);
    bw_array *made = calloc((size_t)n->input_count + 1, sizeof *made);
    bw_array *result = calloc((size_t)n->output_count + 1, sizeof *result);
    bw_status status = ptr && made && result ? BW_OK : bw_fail(w->err, BW_NO_MEMORY, "no memory to fold '%s'", n->name);
    for (int i = 0; i < n->input_count && !status; i++) {
        if (!in[i].present)
            continue;
        ptr[i] = in[i].value;
        if (from_shape) { /* dims only, -1 included */
            made[i] = (bw_array){.dtype = in[i].dtype, .rank = in[i].rank};
            memcpy(made[i].dims, in[i].dims, sizeof made[i].dims);
            ptr[i] = &made[i];
        } else if (!in[i].value) {
            status = make_int64(&in[i], 0, &made[i], w->err);
            ptr[i] = &made[i];
        }
    }
    if (!status)
        status = bw_op_run_once(op, n, ptr, n->input_count, out, result, n->output_count, w->err);
    if (!status && arith && (missing || partial))
        status = mask_result(w, in, n->input_count, &result[0]);
    for (int i = 0; i < n->output_count && !status; i++) {
        int v = n->outputs[i];
        int vague = (from_shape || missing || partial) && result[i].dtype == BW_I64 && any_unknown(&result[i]);
        if (v < 0 || (vague && all_unknown(&result[i])))
            continue;
        w->known[v] = result[i];
        w->partial[v] = (unsigned char)vague;
        w->fold_left -= result[i].bytes < w->fold_left ? result[i].bytes : w->fold_left;
        memset(&result[i], 0, sizeof result[i]);
    }
    for (int i = 0; made && i < n->input_count; i++)
        bw_array_free(&made[i]);
    for (int i = 0; result && i < n->output_count; i++)
        bw_array_free(&result[i]);
    free(ptr);
    free(made);
    free(result);
    return status;
}

bw_status bw_op_check_node(const bw_node *n, const bw_op **op, bw_error *err)
{
    *op = bw_op_find(n->op);
    if (!*op)
        return bw_op_fail(err, n, BW_UNSUPPORTED, "the CPU executor has no such operator");
    int least = (*op)->min_in, most = (*op)->max_in < NODE_INPUTS ? (*op)->max_in : NODE_INPUTS;
    if (n->input_count < least || n->input_count > most)
        return bw_op_fail(err, n, BW_CORRUPT, "%d inputs: expected %d to %d", n->input_count, least, most);
    for (int i = 0; i < n->input_count; i++)
        if (n->inputs[i] < 0 && i < least)
            return bw_op_fail(err, n, BW_CORRUPT, "input %d is absent: expected a value", i);
    most = (*op)->max_out < NODE_INPUTS ? (*op)->max_out : NODE_INPUTS;
    if (n->output_count < 1 || n->output_count > most)
        return bw_op_fail(err, n, BW_UNSUPPORTED, "%d outputs: expected 1 to %d", n->output_count, most);
    return BW_OK;
}

static bw_status walk_node(walk *w, const bw_node *n)
{
    const bw_op *op;
    bw_status status = bw_op_check_node(n, &op, w->err);
    if (status)
        return status;
    for (int i = 0; i < n->input_count; i++)
        if (n->inputs[i] >= 0 && w->g->values[n->inputs[i]].rank < 0)
            return bw_op_fail(w->err, n, BW_UNSUPPORTED, "the shape of input '%s' is unknown",
                              w->g->values[n->inputs[i]].name);
    bw_op_info *info = calloc((size_t)n->input_count + (size_t)n->output_count, sizeof *info);
    if (!info)
        return bw_fail(w->err, BW_NO_MEMORY, "no memory for the shapes of '%s'", n->name);
    bw_op_info *out = info + n->input_count;
    for (int i = 0; i < n->input_count; i++)
        describe(w, n->inputs[i], &info[i]);
    for (int i = 0; i < n->output_count; i++) {
        out[i].present = n->outputs[i] >= 0;
        out[i].rank = -1;
    }
    bw_op_infer c = {n, info, n->input_count, out, n->output_count, w->err};
    status = op->infer(&c);
    for (int i = 0; i < n->output_count && !status; i++) {
        if (n->outputs[i] < 0)
            continue;
        bw_value *v = &w->g->values[n->outputs[i]];
        v->dtype = out[i].dtype;
        v->rank = out[i].rank;
        memcpy(v->dims, out[i].dims, sizeof v->dims);
    }
    if (!status)
        status = evaluate(w, op, n, info, out);
    free(info);
    return status;
}

static bw_status walk_begin(walk *w, bw_graph *g, size_t fold_bytes, bw_error *err)
{
    bw_status status = bw_graph_sort(g, err);
    if (status)
        return status;
    memset(w, 0, sizeof *w);
    w->g = g;
    w->fold_bytes = fold_bytes;
    w->fold_left = fold_bytes > SIZE_MAX / 64 ? SIZE_MAX : fold_bytes * 64;
    if (w->fold_left < (size_t)64 << 20)
        w->fold_left = (size_t)64 << 20;
    w->err = err;
    w->known = calloc((size_t)g->value_count + 1, sizeof *w->known);
    w->partial = calloc((size_t)g->value_count + 1, 1);
    if (!w->known || !w->partial)
        return bw_fail(err, BW_NO_MEMORY, "no memory for the shapes of %d values", g->value_count);
    for (int i = 0; i < g->input_count; i++) {
        bw_value *v = &g->values[g->inputs[i]];
        if (v->rank > 0 && v->dims[0] == -1)
            v->dims[0] = BW_DIM_BATCH;
    }
    return BW_OK;
}

static void walk_end(walk *w)
{
    for (int i = 0; i < w->g->value_count; i++)
        for (int k = 0; k < w->g->values[i].rank; k++)
            if (w->g->values[i].dims[k] < 0)
                w->g->values[i].dims[k] = -1;
    for (int i = 0; w->known && i < w->g->value_count; i++)
        bw_array_free(&w->known[i]);
    free(w->known);
    free(w->partial);
}

bw_status bw_graph_infer_shapes(bw_graph *g, bw_error *err)
{
    walk w = {.g = g};
    bw_status status = walk_begin(&w, g, 0, err);
    for (int i = 0; i < g->node_count && !status; i++)
        status = walk_node(&w, &g->nodes[i]);
    walk_end(&w);
    return status;
}

/* --- folding ------------------------------------------------------------------------------------------------------ */

static void drop_input(bw_node *n, int input)
{
    n->inputs[input] = -1;
    while (n->input_count > 0 && n->inputs[n->input_count - 1] < 0)
        n->input_count--;
}

/* Parameters that the normal form (ops.md) wants as attributes once they are constant. */
static bw_status parameters_to_attributes(const walk *w, bw_node *n)
{
    static const struct {
        const char *op, *attr;
        int input;
        char kind; /* 'L' list of ints, 'I' int, 'F' float, 'G' list of floats */
    } table[] = {
        {"Squeeze", "axes", 1, 'L'},
        {"Unsqueeze", "axes", 1, 'L'},
        {"Slice", "starts", 1, 'L'},
        {"Slice", "ends", 2, 'L'},
        {"Slice", "axes", 3, 'L'},
        {"Slice", "steps", 4, 'L'},
        {"Pad", "pads", 1, 'L'},
        {"Pad", "value", 2, 'F'},
        {"Pad", "axes", 3, 'L'},
        {"Split", "split", 1, 'L'},
        {"Reshape", "shape", 1, 'L'},
        {"Expand", "shape", 1, 'L'},
        {"Tile", "repeats", 1, 'L'},
        {"Clip", "min", 1, 'F'},
        {"Clip", "max", 2, 'F'},
        {"ReduceMean", "axes", 1, 'L'},
        {"ReduceSum", "axes", 1, 'L'},
        {"ReduceMax", "axes", 1, 'L'},
        {"ReduceMin", "axes", 1, 'L'},
        {"ReduceProd", "axes", 1, 'L'},
        {"ReduceL1", "axes", 1, 'L'},
        {"ReduceL2", "axes", 1, 'L'},
        {"ReduceSumSquare", "axes", 1, 'L'},
        {"ReduceLogSum", "axes", 1, 'L'},
        {"CumSum", "axis", 1, 'I'},
        {"ReduceLogSumExp", "axes", 1, 'L'},
        {"Resize", "scales", 2, 'G'},
        {"Resize", "sizes", 3, 'L'},
        {"Trilu", "k", 1, 'I'},
    };
    for (size_t t = 0; t < sizeof table / sizeof *table; t++) {
        int input = table[t].input;
        if (strcmp(table[t].op, n->op) || input >= n->input_count || n->inputs[input] < 0)
            continue;
        const bw_array *a = w->g->values[n->inputs[input]].constant;
        if (!a || bw_node_attr(n, table[t].attr) || a->rank > 1)
            continue;
        int64_t count = bw_array_count(a), v[BW_RANK_MAX * 2];
        int ints = table[t].kind == 'L' || table[t].kind == 'I';
        if ((ints && a->dtype != BW_I64) || (!ints && a->dtype != BW_F32))
            continue;
        bw_status status = BW_OK;
        if (ints && count <= BW_RANK_MAX * 2 && (table[t].kind == 'L' || count == 1)) {
            memcpy(v, a->data, sizeof *v * (size_t)count);
            status = table[t].kind == 'I' ? bw_node_set_int(n, table[t].attr, v[0])
                                          : bw_node_set_ints(n, table[t].attr, v, (size_t)count);
        } else if (table[t].kind == 'F' && count == 1) {
            status = bw_node_set_float(n, table[t].attr, *(const float *)a->data);
        } else if (table[t].kind == 'G' && count > 0) {
            status = bw_node_set_floats(n, table[t].attr, a->data, (size_t)count);
        } else if (count > 0) {
            continue;
        } else if (table[t].kind != 'G') {
            continue;
        }
        if (status)
            return bw_op_fail(w->err, n, status, "no memory for attribute '%s'", table[t].attr);
        drop_input(n, input);
    }
    return BW_OK;
}

/* A Reshape to a computed shape of which all but one entry are known is a Reshape with one -1. */
static bw_status settle_reshape(const walk *w, bw_node *n)
{
    if (strcmp(n->op, "Reshape") || n->input_count < 2 || n->inputs[1] < 0 || bw_node_attr(n, "shape"))
        return BW_OK;
    const bw_value *out = &w->g->values[n->outputs[0]];
    int64_t shape[BW_RANK_MAX];
    int unknown = 0;
    for (int i = 0; i < out->rank; i++) {
        if (out->dims[i] == 0)
            return BW_OK;
        unknown += out->dims[i] < 0;
        shape[i] = out->dims[i] < 0 ? -1 : out->dims[i];
    }
    if (out->rank < 0 || unknown > 1)
        return BW_OK;
    if (bw_node_set_ints(n, "shape", shape, (size_t)out->rank) || bw_node_set_int(n, "allowzero", 0))
        return bw_op_fail(w->err, n, BW_NO_MEMORY, "no memory for attribute 'shape'");
    drop_input(n, 1);
    return BW_OK;
}

/* Squeeze without axes takes what is 1 by now, and never an open batch that happens to be 1 in some run. */
static bw_status settle_squeeze(const walk *w, bw_node *n)
{
    if (strcmp(n->op, "Squeeze") || n->input_count > 1 || bw_node_attr(n, "axes"))
        return BW_OK;
    const bw_value *x = &w->g->values[n->inputs[0]];
    int64_t axes[BW_RANK_MAX];
    size_t count = 0;
    for (int i = 0; i < x->rank; i++)
        if (x->dims[i] == 1)
            axes[count++] = i;
    return bw_node_set_ints(n, "axes", axes, count)
               ? bw_op_fail(w->err, n, BW_NO_MEMORY, "no memory for attribute 'axes'")
               : BW_OK;
}

/* Turns the node's outputs into constants when all of them are known. */
static bw_status fold_node(walk *w, int node)
{
    bw_graph *g = w->g;
    const bw_node *n = &g->nodes[node];
    for (int i = 0; i < n->output_count; i++)
        if (n->outputs[i] >= 0 && (!w->known[n->outputs[i]].data || w->partial[n->outputs[i]]))
            return BW_OK;
    for (int i = 0; i < n->output_count; i++) {
        int v = n->outputs[i];
        if (v < 0)
            continue;
        bw_array *held = malloc(sizeof *held);
        if (!held)
            return bw_fail(w->err, BW_NO_MEMORY, "no memory to fold '%s'", n->name);
        *held = w->known[v];
        memset(&w->known[v], 0, sizeof w->known[v]);
        bw_array_free(g->values[v].constant);
        free(g->values[v].constant);
        g->values[v].constant = held;
    }
    bw_graph_remove_node(g, node);
    return BW_OK;
}

bw_status bw_graph_fold_constants(bw_graph *g, size_t max_bytes, bw_error *err)
{
    walk w = {.g = g};
    bw_status status = walk_begin(&w, g, max_bytes ? max_bytes : 1, err);
    for (int i = 0; i < g->node_count && !status; i++) {
        status = walk_node(&w, &g->nodes[i]);
        if (!status)
            status = parameters_to_attributes(&w, &g->nodes[i]);
        if (!status)
            status = settle_reshape(&w, &g->nodes[i]);
        if (!status)
            status = settle_squeeze(&w, &g->nodes[i]);
        if (!status)
            status = fold_node(&w, i);
    }
    walk_end(&w);
    if (!status)
        status = bw_graph_sort(g, err);
    return status;
}
