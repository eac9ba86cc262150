/* SPDX-License-Identifier: Apache-2.0 */
/* The passes' order and their common machinery: one walk each, uses counted, consumers redirected. */
#include "quantize/passes.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quantize/passes_internal.h"

bw_status bw_pass_no_memory(const bw_pass *p, int node, bw_error *err)
{
    return bw_fail(err, BW_NO_MEMORY, "no memory to rewrite node '%s'", p->g->nodes[node].name);
}

const bw_array *bw_pass_const(const bw_pass *p, int node, int index)
{
    const bw_node *n = &p->g->nodes[node];
    int v = index < n->input_count ? n->inputs[index] : -1;
    return v >= 0 ? p->g->values[v].constant : NULL;
}

static bw_status pass_begin(bw_pass *p, bw_graph *g, bw_error *err)
{
    p->g = g;
    p->capacity = g->value_count + 64;
    for (int i = 0; i < g->node_count; i++)
        p->capacity += 4 + g->nodes[i].input_count;
    p->uses = calloc((size_t)p->capacity, sizeof *p->uses);
    p->alias = malloc((size_t)p->capacity * sizeof *p->alias);
    if (!p->uses || !p->alias)
        return bw_fail(err, BW_NO_MEMORY, "no memory for %d values", p->capacity);
    for (int i = 0; i < p->capacity; i++)
        p->alias[i] = i;
    for (int i = 0; i < g->node_count; i++)
        for (int k = 0; k < g->nodes[i].input_count; k++)
            if (g->nodes[i].inputs[k] >= 0)
                p->uses[g->nodes[i].inputs[k]]++;
    for (int i = 0; i < g->output_count; i++)
        p->uses[g->outputs[i]]++;
    return BW_OK;
}

bw_status bw_pass_run(bw_graph *g, bw_pass_visit *visit, bw_error *err)
{
    bw_pass p = {0};
    bw_status st = bw_graph_sort(g, err);
    if (!st)
        st = pass_begin(&p, g, err);
    int count = g->node_count; /* nodes added on the way are not visited */
    for (int i = 0; i < count && !st; i++) {
        bw_node *n = &g->nodes[i];
        if (!n->op)
            continue;
        for (int k = 0; k < n->input_count; k++)
            if (n->inputs[k] >= 0)
                n->inputs[k] = p.alias[n->inputs[k]];
        st = visit(&p, i, err);
    }
    free(p.uses);
    free(p.alias);
    if (!st)
        st = bw_graph_sort(g, err);
    return st ? st : bw_graph_infer_shapes(g, err);
}

static int is_graph_output(const bw_graph *g, int value)
{
    for (int i = 0; i < g->output_count; i++)
        if (g->outputs[i] == value)
            return 1;
    return 0;
}

bw_status bw_pass_bypass(bw_pass *p, int node, bw_error *err)
{
    bw_graph *g = p->g;
    int in = g->nodes[node].inputs[0], out = g->nodes[node].outputs[0], producer = g->values[in].producer;
    (void)err;
    if (!is_graph_output(g, out)) {
        p->uses[in] += p->uses[out] - 1;
        p->uses[out] = 0;
        bw_graph_remove_node(g, node);
        p->alias[out] = in;
        return BW_OK;
    }
    /* An output keeps its name: the producer writes it directly. An input or constant cannot: the node stays. */
    if (producer < 0 || is_graph_output(g, in) || g->values[in].constant)
        return BW_OK;
    bw_graph_remove_node(g, node);
    bw_graph_replace_uses(g, in, out);
    bw_node *n = &g->nodes[producer];
    for (int i = 0; i < n->output_count; i++)
        if (n->outputs[i] == in)
            n->outputs[i] = out;
    g->values[out].producer = producer;
    g->values[in].producer = -1;
    p->uses[out] += p->uses[in] - 1;
    p->uses[in] = 0;
    for (int i = 0; i < g->value_count; i++)
        if (p->alias[i] == in)
            p->alias[i] = out;
    return BW_OK;
}

void bw_pass_absorb(bw_pass *p, int node, int next)
{
    bw_graph *g = p->g;
    int mid = g->nodes[node].outputs[0], out = g->nodes[next].outputs[0];
    bw_graph_remove_node(g, next);
    p->uses[mid] = 0;
    g->values[mid].producer = -1;
    g->nodes[node].outputs[0] = out;
    g->values[out].producer = node;
}

int bw_pass_only_producer(const bw_pass *p, int node, int index)
{
    const bw_node *n = &p->g->nodes[node];
    int v = index < n->input_count ? n->inputs[index] : -1;
    if (v < 0 || p->uses[v] != 1)
        return -1;
    int producer = p->g->values[v].producer;
    return producer >= 0 && p->g->nodes[producer].output_count == 1 ? producer : -1;
}

static char *fresh(const bw_pass *p, const char *stem)
{
    return bw_graph_fresh_name(p->g, stem);
}

bw_status bw_pass_constant(bw_pass *p, const char *stem, bw_array *a, int *id, bw_error *err)
{
    char *name = p->g->value_count < p->capacity ? fresh(p, stem) : NULL;
    *id = name ? bw_graph_add_constant(p->g, name, a) : -1;
    free(name);
    if (*id >= 0)
        return BW_OK;
    bw_array_free(a);
    return bw_fail(err, BW_NO_MEMORY, "no memory for constant '%s'", stem);
}

bw_status bw_pass_vector(bw_pass *p, const char *stem, const double *v, int64_t count, int *id, bw_error *err)
{
    bw_array a;
    bw_status st = bw_array_alloc(&a, BW_F32, 1, &count, err);
    if (st)
        return st;
    for (int64_t i = 0; i < count; i++) {
        ((float *)a.data)[i] = (float)v[i];
        if (!isfinite((float)v[i])) {
            bw_array_free(&a);
            return bw_fail(err, BW_NOT_FINITE,
                           "'%s': channel %lld becomes %g when constants are folded: the model's "
                           "normalisation is damaged",
                           stem, (long long)i, v[i]);
        }
    }
    return bw_pass_constant(p, stem, &a, id, err);
}

bw_status bw_pass_value(bw_pass *p, const char *stem, const bw_value *like, int *id, bw_error *err)
{
    bw_value copy = *like;
    char *name = p->g->value_count < p->capacity ? fresh(p, stem) : NULL;
    *id = name ? bw_graph_add_value(p->g, name, copy.dtype, copy.rank, copy.dims) : -1;
    free(name);
    return *id >= 0 ? BW_OK : bw_fail(err, BW_NO_MEMORY, "no memory for value '%s'", stem);
}

bw_status bw_pass_set_input(bw_pass *p, int node, int index, int value, bw_error *err)
{
    bw_node *n = &p->g->nodes[node];
    if (index >= n->input_count) {
        int *grown = realloc(n->inputs, ((size_t)index + 1) * sizeof *grown);
        if (!grown)
            return bw_pass_no_memory(p, node, err);
        n->inputs = grown;
        while (n->input_count <= index)
            n->inputs[n->input_count++] = -1;
    }
    if (n->inputs[index] >= 0)
        p->uses[n->inputs[index]]--;
    n->inputs[index] = value;
    if (value >= 0)
        p->uses[value]++;
    return BW_OK;
}

bw_status bw_pass_add_node(bw_pass *p, const char *op, const char *name, const int *inputs, int input_count, int output,
                           int *node, bw_error *err)
{
    int id = bw_graph_add_node(p->g, op, name, inputs, input_count, &output, 1);
    if (id < 0)
        return bw_fail(err, BW_NO_MEMORY, "no memory for node '%s'", name);
    for (int i = 0; i < input_count; i++)
        if (inputs[i] >= 0)
            p->uses[inputs[i]]++;
    if (node)
        *node = id;
    return BW_OK;
}

/* Values that nothing refers to any more (folded weights among them) leave the graph. */
static bw_status drop_unused_values(bw_graph *g, bw_error *err)
{
    int *map = calloc((size_t)g->value_count + 1, sizeof *map);
    if (!map)
        return bw_fail(err, BW_NO_MEMORY, "no memory for %d values", g->value_count);
    for (int i = 0; i < g->input_count; i++)
        map[g->inputs[i]] = 1;
    for (int i = 0; i < g->output_count; i++)
        map[g->outputs[i]] = 1;
    for (int i = 0; i < g->node_count; i++) {
        for (int k = 0; k < g->nodes[i].input_count; k++)
            if (g->nodes[i].inputs[k] >= 0)
                map[g->nodes[i].inputs[k]] = 1;
        for (int k = 0; k < g->nodes[i].output_count; k++)
            if (g->nodes[i].outputs[k] >= 0)
                map[g->nodes[i].outputs[k]] = 1;
    }
    int count = 0;
    for (int i = 0; i < g->value_count; i++) {
        if (map[i]) {
            map[i] = count;
            g->values[count++] = g->values[i];
        } else {
            free(g->values[i].name);
            bw_array_free(g->values[i].constant);
            free(g->values[i].constant);
        }
    }
    g->value_count = count;
    for (int i = 0; i < g->input_count; i++)
        g->inputs[i] = map[g->inputs[i]];
    for (int i = 0; i < g->output_count; i++)
        g->outputs[i] = map[g->outputs[i]];
    for (int i = 0; i < g->node_count; i++) {
        for (int k = 0; k < g->nodes[i].input_count; k++)
            if (g->nodes[i].inputs[k] >= 0)
                g->nodes[i].inputs[k] = map[g->nodes[i].inputs[k]];
        for (int k = 0; k < g->nodes[i].output_count; k++)
            if (g->nodes[i].outputs[k] >= 0)
                g->nodes[i].outputs[k] = map[g->nodes[i].outputs[k]];
    }
    free(map);
    return BW_OK;
}

static bw_status run_passes(bw_graph *g, bw_pass_visit *fold, bw_error *err)
{
    bw_pass_visit *const passes[] = {
        bw_pass_noop, bw_pass_sum, bw_pass_mean, bw_pass_gemm, bw_pass_pad, fold, bw_pass_split_batchnorm, bw_pass_noop,
    };
    bw_status st = bw_graph_sort(g, err);
    if (!st)
        st = bw_graph_infer_shapes(g, err);
    if (!st)
        st = bw_graph_fold_constants(g, (size_t)1 << 34, err);
    if (!st)
        st = bw_graph_sort(g, err);
    if (!st)
        st = drop_unused_values(g, err);
    if (!st)
        st = bw_graph_infer_shapes(g, err);
    for (size_t i = 0; i < sizeof passes / sizeof passes[0] && !st; i++)
        st = bw_pass_run(g, passes[i], err);
    return st ? st : drop_unused_values(g, err);
}

bw_status bw_passes_run(bw_graph *g, bw_error *err)
{
    return run_passes(g, bw_pass_fold_affine, err);
}

bw_status bw_passes_run_unfolded(bw_graph *g, bw_error *err)
{
    return run_passes(g, bw_pass_fold_operands, err);
}

/* --- matchers --------------------------------------------------------------------------------------------------- */

/* The only consumer of a value that is no graph output, -1 otherwise. */
static int only_consumer(const bw_graph *g, int value)
{
    int found = -1;
    if (is_graph_output(g, value))
        return -1;
    for (int i = 0; i < g->node_count; i++) {
        for (int k = 0; g->nodes[i].op && k < g->nodes[i].input_count; k++) {
            if (g->nodes[i].inputs[k] != value)
                continue;
            if (found >= 0)
                return -1;
            found = i;
        }
    }
    return found;
}

static int is_op(const bw_graph *g, int node, const char *op)
{
    return node >= 0 && g->nodes[node].op && !strcmp(g->nodes[node].op, op);
}

static int same_dims(const bw_value *a, const bw_value *b, int from_a, int from_b)
{
    if (a->rank - from_a != b->rank - from_b)
        return 0;
    for (int i = 0; from_a + i < a->rank; i++)
        if (a->dims[from_a + i] != b->dims[from_b + i])
            return 0;
    return 1;
}

int bw_match_channel_shuffle(const bw_graph *g, int node, int *groups, int *last_node)
{
    int64_t perm[BW_RANK_MAX];
    if (!is_op(g, node, "Reshape"))
        return 0;
    const bw_value *x = &g->values[g->nodes[node].inputs[0]], *a = &g->values[g->nodes[node].outputs[0]];
    /* [N, C, ...] -> [N, g, C / g, ...] */
    if (x->rank < 2 || a->rank != x->rank + 1 || a->dims[0] != x->dims[0] || a->dims[1] < 1 || a->dims[1] > INT32_MAX ||
        a->dims[1] * a->dims[2] != x->dims[1] || !same_dims(a, x, 3, 2))
        return 0;
    int transpose = only_consumer(g, g->nodes[node].outputs[0]);
    if (!is_op(g, transpose, "Transpose") ||
        bw_node_ints(&g->nodes[transpose], "perm", perm, BW_RANK_MAX) != (size_t)a->rank)
        return 0;
    for (int i = 0; i < a->rank; i++)
        if (perm[i] != (i == 1 ? 2 : i == 2 ? 1 : i))
            return 0;
    int last = only_consumer(g, g->nodes[transpose].outputs[0]);
    if (!is_op(g, last, "Reshape") || !same_dims(&g->values[g->nodes[last].outputs[0]], x, 0, 0))
        return 0;
    *groups = (int)a->dims[1];
    *last_node = last;
    return 1;
}
