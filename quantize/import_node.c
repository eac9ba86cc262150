/* SPDX-License-Identifier: Apache-2.0 */
/* NodeProto to bw_node: order, names, attributes, Constant nodes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quantize/import_internal.h"

/* Numbers of AttributeProto.AttributeType. */
enum { ATTR_FLOAT = 1, ATTR_INT = 2, ATTR_STRING = 3, ATTR_TENSOR = 4, ATTR_GRAPH = 5, ATTR_FLOATS = 6, ATTR_INTS = 7 };

int bw_import_has_matrix_products(const BwOnnx__GraphProto *p)
{
    static const char *const ops[] = {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU"};
    for (size_t i = 0; i < p->n_node; i++)
        for (size_t k = 0; k < sizeof ops / sizeof ops[0]; k++)
            if (!strcmp(p->node[i]->op_type, ops[k]))
                return 1;
    return 0;
}

static const char *proto_where(const BwOnnx__NodeProto *n, char buf[200])
{
    const char *name = n->name[0] ? n->name : n->n_output ? n->output[0] : "";
    snprintf(buf, 200, "node '%.120s' (%.40s)", name, n->op_type);
    return buf;
}

/* --- attributes ------------------------------------------------------------------------------------------------- */

/* Attributes that say nothing about the function at inference. */
static int is_ignored(const char *name)
{
    static const char *const names[] = {"momentum", "consumed_inputs", "stash_type", "saturate", "layout_hint"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (!strcmp(name, names[i]))
            return 1;
    return 0;
}

static bw_status no_memory(bw_error *err, const char *where)
{
    return bw_fail(err, BW_NO_MEMORY, "no memory for %s", where);
}

static bw_status import_attribute(bw_importer *im, int node, BwOnnx__AttributeProto *a, const char *where,
                                  bw_error *err)
{
    bw_node *n = &im->g->nodes[node];
    if (is_ignored(a->name))
        return BW_OK;
    if (a->ref_attr_name[0])
        return bw_fail(err, BW_UNSUPPORTED,
                       "%s: attribute '%s' refers to a function's attribute: inline the "
                       "functions of the model",
                       where, a->name);
    if (bw_node_attr(n, a->name))
        return bw_fail(err, BW_CORRUPT, "%s: attribute '%s' is given twice", where, a->name);
    bw_status st;
    switch (a->type) {
    case ATTR_INT:
        st = bw_node_set_int(n, a->name, a->i);
        break;
    case ATTR_FLOAT:
        st = bw_node_set_float(n, a->name, a->f);
        break;
    case ATTR_STRING: {
        char text[64];
        if (a->s.len >= sizeof text || memchr(a->s.data ? (const char *)a->s.data : "", 0, a->s.len))
            return bw_fail(err, BW_CORRUPT, "%s: attribute '%s' is no short text", where, a->name);
        if (a->s.len)
            memcpy(text, a->s.data, a->s.len);
        text[a->s.len] = 0;
        st = bw_node_set_string(n, a->name, text);
        break;
    }
    case ATTR_INTS:
        st = bw_node_set_ints(n, a->name, a->ints, a->n_ints);
        break;
    case ATTR_FLOATS:
        st = bw_node_set_floats(n, a->name, a->floats, a->n_floats);
        break;
    case ATTR_TENSOR: {
        char what[300];
        snprintf(what, sizeof what, "%s: attribute '%.60s'", where, a->name);
        if (!a->t)
            return bw_fail(err, BW_CORRUPT, "%s: no tensor", what);
        bw_array array;
        if ((st = bw_import_tensor(im, a->t, what, &array, err)))
            return st;
        st = bw_node_set_array(n, a->name, &array);
        if (st)
            bw_array_free(&array);
        break;
    }
    default:
        return bw_fail(err, BW_UNSUPPORTED,
                       "%s: attribute '%s' has type %d (graph, strings or other), which is not "
                       "supported",
                       where, a->name, a->type);
    }
    return st ? no_memory(err, where) : BW_OK;
}

/* --- Constant --------------------------------------------------------------------------------------------------- */

static bw_status constant_array(bw_importer *im, BwOnnx__AttributeProto *a, const char *where, bw_array *out,
                                bw_error *err)
{
    const void *data = NULL;
    bw_dtype dtype = BW_DTYPE_NONE;
    size_t count = 1;
    int rank = 0;
    if (!strcmp(a->name, "value") && a->t)
        return bw_import_tensor(im, a->t, where, out, err);
    if (!strcmp(a->name, "value_float"))
        dtype = BW_F32, data = &a->f;
    else if (!strcmp(a->name, "value_int"))
        dtype = BW_I64, data = &a->i;
    else if (!strcmp(a->name, "value_floats"))
        dtype = BW_F32, data = a->floats, count = a->n_floats, rank = 1;
    else if (!strcmp(a->name, "value_ints"))
        dtype = BW_I64, data = a->ints, count = a->n_ints, rank = 1;
    else
        return bw_fail(err, BW_UNSUPPORTED, "%s: a constant by '%s' is not supported: use a dense numeric tensor",
                       where, a->name);
    int64_t dims[1] = {(int64_t)count};
    bw_status st = bw_array_alloc(out, dtype, rank, dims, err);
    if (!st && count)
        memcpy(out->data, data, count * bw_dtype_size(dtype));
    return st;
}

static bw_status import_constant(bw_importer *im, BwOnnx__NodeProto *n, bw_error *err)
{
    char where[200];
    proto_where(n, where);
    if (n->n_output != 1 || n->n_attribute != 1 || n->n_input)
        return bw_fail(err, BW_CORRUPT, "%s: %zu inputs, %zu attributes and %zu outputs, expected 0, 1 and 1", where,
                       n->n_input, n->n_attribute, n->n_output);
    bw_array a;
    bw_status st = constant_array(im, n->attribute[0], where, &a, err);
    if (st)
        return st;
    int id = bw_graph_add_constant(im->g, n->output[0], &a);
    if (id < 0) {
        bw_array_free(&a);
        return no_memory(err, where);
    }
    return bw_name_map_put(&im->values, n->output[0], id, err);
}

/* --- nodes ------------------------------------------------------------------------------------------------------ */

static bw_status check_operator(const bw_importer *im, const BwOnnx__NodeProto *n, bw_error *err)
{
    static const char *const quantized[] = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear",
                                            "QLinearConv",    "QLinearMatMul",    "ConvInteger",
                                            "MatMulInteger"};
    char where[200];
    proto_where(n, where);
    if (n->domain[0] && strcmp(n->domain, "ai.onnx"))
        return bw_fail(err, BW_UNSUPPORTED,
                       "%s: operators of domain '%s' are not supported: export the model with "
                       "standard ONNX operators",
                       where, n->domain);
    for (size_t i = 0; i < sizeof quantized / sizeof quantized[0]; i++)
        if (!strcmp(n->op_type, quantized[i]))
            return bw_fail(err, BW_UNSUPPORTED,
                           "%s: the model is already quantized, which this version does not "
                           "read: give it the float model",
                           where);
    if (!strcmp(n->op_type, "Constant") || !strcmp(n->op_type, "Upsample") || bw_op_supported(n->op_type))
        return BW_OK;
    return bw_fail(err, BW_UNSUPPORTED,
                   "%s, opset %lld: the operator is not supported: cut the model before it or "
                   "replace it, docs/import.md lists the operators",
                   where, (long long)im->opset);
}

/* A node name that no other node has: its own, its first output's or its operator's, numbered if need be. */
static bw_status unique_name(bw_importer *im, const BwOnnx__NodeProto *n, char **out, bw_error *err)
{
    const char *stem = n->name[0] ? n->name : n->n_output && n->output[0][0] ? n->output[0] : n->op_type;
    size_t size = strlen(stem) + 24;
    char *name = malloc(size);
    if (!name)
        return bw_fail(err, BW_NO_MEMORY, "no memory for a node name");
    strcpy(name, stem);
    /* The map counts how often a stem was seen, so that a thousand equal names do not cost a million look-ups. */
    int seen = bw_name_map_get(&im->node_names, stem);
    for (int i = seen + 1; bw_name_map_get(&im->node_names, name) >= 0; i++) {
        snprintf(name, size, "%s_%d", stem, i);
        seen = i;
    }
    *out = name;
    return bw_name_map_put(&im->node_names, stem, seen < 0 ? 0 : seen, err);
}

static bw_status input_ids(const bw_importer *im, const BwOnnx__NodeProto *n, int *ids, int *count, bw_error *err)
{
    char where[200];
    *count = (int)n->n_input;
    while (*count && !n->input[*count - 1][0])
        --*count;
    for (int i = 0; i < *count; i++) {
        ids[i] = n->input[i][0] ? bw_name_map_get(&im->values, n->input[i]) : -1;
        if (n->input[i][0] && ids[i] < 0)
            return bw_fail(err, BW_CORRUPT, "%s: input '%s' is neither an input of the graph nor produced by a node",
                           proto_where(n, where), n->input[i]);
    }
    return BW_OK;
}

static bw_status output_ids(bw_importer *im, const BwOnnx__NodeProto *n, int *ids, int *count, bw_error *err)
{
    char where[200];
    *count = (int)n->n_output;
    while (*count && !n->output[*count - 1][0])
        --*count;
    for (int i = 0; i < *count; i++) {
        char *fresh = n->output[i][0] ? NULL : bw_graph_fresh_name(im->g, "(unused)");
        const char *name = fresh ? fresh : n->output[i];
        ids[i] = bw_graph_add_value(im->g, name, BW_DTYPE_NONE, -1, NULL);
        free(fresh);
        if (ids[i] < 0)
            return no_memory(err, proto_where(n, where));
        bw_status st = n->output[i][0] ? bw_name_map_put(&im->values, n->output[i], ids[i], err) : BW_OK;
        if (st)
            return st;
    }
    if (!*count)
        return bw_fail(err, BW_CORRUPT, "%s: no output", proto_where(n, where));
    return BW_OK;
}

static bw_status import_node(bw_importer *im, BwOnnx__NodeProto *n, bw_error *err)
{
    bw_status st;
    if (!strcmp(n->op_type, "Constant"))
        return import_constant(im, n, err);
    int *ids = malloc((n->n_input + n->n_output + 1) * sizeof *ids), inputs, outputs, node = -1;
    char *name = NULL, where[200];
    if (!ids)
        return no_memory(err, proto_where(n, where));
    if (!(st = input_ids(im, n, ids, &inputs, err)) && !(st = output_ids(im, n, ids + n->n_input, &outputs, err)) &&
        !(st = unique_name(im, n, &name, err))) {
        node = bw_graph_add_node(im->g, n->op_type, name, ids, inputs, ids + n->n_input, outputs);
        if (node < 0)
            st = no_memory(err, proto_where(n, where));
        else if (bw_name_map_get(&im->node_names, name) < 0) /* with the copy that lives as long as the map */
            st = bw_name_map_put(&im->node_names, im->g->nodes[node].name, 0, err);
    }
    free(ids);
    free(name);
    for (size_t i = 0; !st && i < n->n_attribute; i++)
        st = import_attribute(im, node, n->attribute[i], proto_where(n, where), err);
    return st ? st : bw_normalise_node(im, node, err);
}

/* --- order ------------------------------------------------------------------------------------------------------ */

/* ONNX wants the nodes in topological order; some exporters forget. Kahn's algorithm over names, stable. */
typedef struct order {
    bw_name_map producer; /* value name -> node */
    int *waiting;         /* inputs of node i not yet there */
    int *first, *next;    /* consumers of node i: linked list over edges */
    int *edge_node;
    int *queue;
} order;

static void order_free(order *o)
{
    bw_name_map_free(&o->producer);
    free(o->waiting);
    free(o->first);
    free(o->next);
    free(o->edge_node);
    free(o->queue);
}

static bw_status order_producers(const bw_importer *im, const BwOnnx__GraphProto *p, order *o, size_t *edges,
                                 bw_error *err)
{
    char where[200];
    *edges = 0;
    for (size_t i = 0; i < p->n_node; i++) {
        const BwOnnx__NodeProto *n = p->node[i];
        *edges += n->n_input;
        for (size_t k = 0; k < n->n_output; k++) {
            const char *name = n->output[k];
            if (!name[0])
                continue;
            if (bw_name_map_get(&o->producer, name) >= 0 || bw_name_map_get(&im->values, name) >= 0)
                return bw_fail(err, BW_CORRUPT, "%s: its output '%s' exists already: a value is written once",
                               proto_where(n, where), name);
            bw_status st = bw_name_map_put(&o->producer, name, (int)i, err);
            if (st)
                return st;
        }
    }
    return BW_OK;
}

static bw_status order_nodes(const BwOnnx__GraphProto *p, order *o, size_t edges, bw_error *err)
{
    size_t n = p->n_node;
    o->waiting = calloc(n + 1, sizeof *o->waiting);
    o->first = malloc((n + 1) * sizeof *o->first);
    o->queue = malloc((n + 1) * sizeof *o->queue);
    o->next = malloc((edges + 1) * sizeof *o->next);
    o->edge_node = malloc((edges + 1) * sizeof *o->edge_node);
    if (!o->waiting || !o->first || !o->queue || !o->next || !o->edge_node)
        return bw_fail(err, BW_NO_MEMORY, "no memory for the order of %zu nodes", n);
    for (size_t i = 0; i < n; i++)
        o->first[i] = -1;
    int edge = 0, sorted = 1;
    for (size_t back = n; back-- > 0;) { /* from the back, so that each list is in ascending order */
        for (size_t k = 0; k < p->node[back]->n_input; k++) {
            const char *name = p->node[back]->input[k];
            int from = name[0] ? bw_name_map_get(&o->producer, name) : -1;
            if (from < 0)
                continue;
            sorted &= from < (int)back;
            o->waiting[back]++;
            o->edge_node[edge] = (int)back;
            o->next[edge] = o->first[from];
            o->first[from] = edge++;
        }
    }
    if (sorted) {
        for (size_t i = 0; i < n; i++)
            o->queue[i] = (int)i;
        return BW_OK;
    }
    size_t head = 0, tail = 0;
    for (size_t i = 0; i < n; i++)
        if (!o->waiting[i])
            o->queue[tail++] = (int)i;
    while (head < tail)
        for (int e = o->first[o->queue[head++]]; e >= 0; e = o->next[e])
            if (!--o->waiting[o->edge_node[e]])
                o->queue[tail++] = o->edge_node[e];
    for (size_t i = 0; tail < n && i < n; i++) {
        char where[200];
        if (o->waiting[i])
            return bw_fail(err, BW_CORRUPT, "%s: it is part of a cycle, or depends on one",
                           proto_where(p->node[i], where));
    }
    return BW_OK;
}

bw_status bw_import_nodes(bw_importer *im, BwOnnx__GraphProto *p, bw_error *err)
{
    order o = {0};
    size_t edges;
    bw_status st = BW_OK;
    if (p->n_node > INT32_MAX / 4)
        return bw_fail(err, BW_CORRUPT, "%zu nodes", p->n_node);
    for (size_t i = 0; !st && i < p->n_node; i++)
        st = check_operator(im, p->node[i], err);
    if (!st)
        st = order_producers(im, p, &o, &edges, err);
    if (!st)
        st = order_nodes(p, &o, edges, err);
    for (size_t i = 0; !st && i < p->n_node; i++)
        st = import_node(im, p->node[o.queue[i]], err);
    order_free(&o);
    return st;
}
