/* SPDX-License-Identifier: Apache-2.0 */
/* Float graphs: arrays, building, rewriting, ordering. */
#include "host/graph.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    size_t size;
} dtypes[] = {
    [BW_DTYPE_NONE] = {"none", 0}, [BW_F32] = {"fp32", 4},    [BW_F64] = {"fp64", 8}, [BW_F16] = {"fp16", 2},
    [BW_I64] = {"int64", 8},       [BW_I32] = {"int32", 4},   [BW_I8] = {"int8", 1},  [BW_U8] = {"uint8", 1},
    [BW_BOOL] = {"bool", 1},       [BW_BYTES] = {"bytes", 0},
};

size_t bw_dtype_size(bw_dtype dtype)
{
    return (unsigned)dtype < sizeof dtypes / sizeof *dtypes ? dtypes[dtype].size : 0;
}

const char *bw_dtype_name(bw_dtype dtype)
{
    return (unsigned)dtype < sizeof dtypes / sizeof *dtypes ? dtypes[dtype].name : "?";
}

/* --- arrays ------------------------------------------------------------------------------------------------------- */

int64_t bw_array_count(const bw_array *a)
{
    int64_t n = 1;
    for (int i = 0; i < a->rank; i++)
        n *= a->dims[i];
    return n;
}

bw_status bw_array_alloc(bw_array *a, bw_dtype dtype, int rank, const int64_t *dims, bw_error *err)
{
    memset(a, 0, sizeof *a);
    size_t size = bw_dtype_size(dtype);
    if (!size)
        return bw_fail(err, BW_INVALID_ARGUMENT, "array of element type %s: expected a fixed-size type",
                       bw_dtype_name(dtype));
    if (rank < 0 || rank > BW_RANK_MAX)
        return bw_fail(err, BW_INVALID_ARGUMENT, "array of rank %d: expected 0 to %d", rank, BW_RANK_MAX);
    size_t bytes = size;
    /* Zero dimensions come last so that the overflow check sees the others. */
    int empty = 0;
    for (int i = 0; i < rank; i++) {
        if (dims[i] < 0)
            return bw_fail(err, BW_INVALID_ARGUMENT, "array dimension %d is %lld: expected a size", i,
                           (long long)dims[i]);
        if (dims[i] == 0)
            empty = 1;
        else if (__builtin_mul_overflow(bytes, (size_t)dims[i], &bytes) || bytes > (size_t)1 << 46)
            return bw_fail(err, BW_OUT_OF_RANGE, "array of rank %d is too large: dimension %d is %lld", rank, i,
                           (long long)dims[i]);
    }
    if (empty)
        bytes = 0;
    void *data = NULL;
    if (posix_memalign(&data, 64, bytes ? bytes : 64))
        return bw_fail(err, BW_NO_MEMORY, "no memory for an array of %zu bytes", bytes);
    a->dtype = dtype;
    a->rank = rank;
    for (int i = 0; i < rank; i++)
        a->dims[i] = dims[i];
    a->data = data;
    a->bytes = bytes;
    a->owned = 1;
    return BW_OK;
}

void bw_array_free(bw_array *a)
{
    if (!a)
        return;
    if (a->owned)
        free(a->data);
    memset(a, 0, sizeof *a);
}

/* --- attributes --------------------------------------------------------------------------------------------------- */

static void attr_clear(bw_attr *a)
{
    free(a->s);
    free(a->ints);
    free(a->floats);
    bw_array_free(&a->array);
    char *name = a->name;
    memset(a, 0, sizeof *a);
    a->name = name;
}

static void attr_free(bw_attr *a)
{
    attr_clear(a);
    free(a->name);
}

const bw_attr *bw_node_attr(const bw_node *n, const char *name)
{
    for (int i = 0; i < n->attr_count; i++)
        if (!strcmp(n->attrs[i].name, name))
            return &n->attrs[i];
    return NULL;
}

/* The attribute of that name, emptied, or a new one. NULL: no memory. */
static bw_attr *attr_slot(bw_node *n, const char *name)
{
    bw_attr *found = (bw_attr *)bw_node_attr(n, name);
    if (found) {
        attr_clear(found);
        return found;
    }
    bw_attr *grown = realloc(n->attrs, sizeof *grown * ((size_t)n->attr_count + 1));
    if (!grown)
        return NULL;
    n->attrs = grown;
    bw_attr *a = &grown[n->attr_count];
    memset(a, 0, sizeof *a);
    if (!(a->name = strdup(name)))
        return NULL;
    n->attr_count++;
    return a;
}

bw_status bw_node_set_int(bw_node *n, const char *name, int64_t v)
{
    bw_attr *a = attr_slot(n, name);
    if (!a)
        return BW_NO_MEMORY;
    a->kind = BW_ATTR_INT;
    a->i = v;
    return BW_OK;
}

bw_status bw_node_set_float(bw_node *n, const char *name, float v)
{
    bw_attr *a = attr_slot(n, name);
    if (!a)
        return BW_NO_MEMORY;
    a->kind = BW_ATTR_FLOAT;
    a->f = v;
    return BW_OK;
}

bw_status bw_node_set_string(bw_node *n, const char *name, const char *v)
{
    char *copy = strdup(v); /* first: v may be the attribute's own text */
    bw_attr *a = copy ? attr_slot(n, name) : NULL;
    if (!a) {
        free(copy);
        return BW_NO_MEMORY;
    }
    a->kind = BW_ATTR_STRING;
    a->s = copy;
    return BW_OK;
}

bw_status bw_node_set_ints(bw_node *n, const char *name, const int64_t *v, size_t count)
{
    int64_t *copy = count < SIZE_MAX / sizeof *v ? malloc(sizeof *v * (count ? count : 1)) : NULL;
    if (copy && count)
        memcpy(copy, v, sizeof *v * count);
    bw_attr *a = copy ? attr_slot(n, name) : NULL;
    if (!a) {
        free(copy);
        return BW_NO_MEMORY;
    }
    a->kind = BW_ATTR_INTS;
    a->ints = copy;
    a->count = count;
    return BW_OK;
}

bw_status bw_node_set_floats(bw_node *n, const char *name, const float *v, size_t count)
{
    float *copy = count < SIZE_MAX / sizeof *v ? malloc(sizeof *v * (count ? count : 1)) : NULL;
    if (copy && count)
        memcpy(copy, v, sizeof *v * count);
    bw_attr *a = copy ? attr_slot(n, name) : NULL;
    if (!a) {
        free(copy);
        return BW_NO_MEMORY;
    }
    a->kind = BW_ATTR_FLOATS;
    a->floats = copy;
    a->count = count;
    return BW_OK;
}

bw_status bw_node_set_array(bw_node *n, const char *name, bw_array *array)
{
    bw_array taken = *array;
    bw_attr *a = attr_slot(n, name);
    if (!a)
        return BW_NO_MEMORY;
    a->kind = BW_ATTR_ARRAY;
    a->array = taken;
    memset(array, 0, sizeof *array);
    return BW_OK;
}

int64_t bw_node_int(const bw_node *n, const char *name, int64_t fallback)
{
    const bw_attr *a = bw_node_attr(n, name);
    return a && a->kind == BW_ATTR_INT ? a->i : fallback;
}

float bw_node_float(const bw_node *n, const char *name, float fallback)
{
    const bw_attr *a = bw_node_attr(n, name);
    return a && a->kind == BW_ATTR_FLOAT ? a->f : fallback;
}

const char *bw_node_string(const bw_node *n, const char *name, const char *fallback)
{
    const bw_attr *a = bw_node_attr(n, name);
    return a && a->kind == BW_ATTR_STRING ? a->s : fallback;
}

size_t bw_node_ints(const bw_node *n, const char *name, int64_t *out, size_t max)
{
    const bw_attr *a = bw_node_attr(n, name);
    if (!a || a->kind != BW_ATTR_INTS)
        return 0;
    for (size_t i = 0; i < a->count && i < max; i++)
        out[i] = a->ints[i];
    return a->count;
}

static void node_free(bw_node *n)
{
    free(n->op);
    free(n->name);
    free(n->inputs);
    free(n->outputs);
    for (int i = 0; i < n->attr_count; i++)
        attr_free(&n->attrs[i]);
    free(n->attrs);
    memset(n, 0, sizeof *n);
}

/* --- building ----------------------------------------------------------------------------------------------------- */

bw_graph *bw_graph_new(const char *name)
{
    bw_graph *g = calloc(1, sizeof *g);
    if (g && !(g->name = strdup(name ? name : ""))) {
        free(g);
        g = NULL;
    }
    return g;
}

void bw_graph_free(bw_graph *g)
{
    if (!g)
        return;
    for (int i = 0; i < g->value_count; i++) {
        free(g->values[i].name);
        bw_array_free(g->values[i].constant);
        free(g->values[i].constant);
    }
    for (int i = 0; i < g->node_count; i++)
        node_free(&g->nodes[i]);
    free(g->values);
    free(g->nodes);
    free(g->inputs);
    free(g->outputs);
    free(g->name);
    free(g);
}

/* Room for one more element in a growing array. */
static int grow(void **array, int *capacity, int count, size_t size)
{
    if (count < *capacity)
        return 0;
    if (count > 1 << 28)
        return -1;
    int wanted = count ? count * 2 : 32;
    void *grown = realloc(*array, size * (size_t)wanted);
    if (!grown)
        return -1;
    *array = grown;
    *capacity = wanted;
    return 0;
}

int bw_graph_find_value(const bw_graph *g, const char *name)
{
    for (int i = 0; i < g->value_count; i++)
        if (!strcmp(g->values[i].name, name))
            return i;
    return -1;
}

char *bw_graph_fresh_name(const bw_graph *g, const char *stem)
{
    size_t size = strlen(stem) + 24;
    char *name = malloc(size);
    if (!name)
        return NULL;
    snprintf(name, size, "%s", stem);
    for (int k = g->value_count; !*name || bw_graph_find_value(g, name) >= 0; k++)
        snprintf(name, size, "%s_%d", *stem ? stem : "v", k);
    return name;
}

int bw_graph_add_value(bw_graph *g, const char *name, bw_dtype dtype, int rank, const int64_t *dims)
{
    if (rank < -1 || rank > BW_RANK_MAX ||
        grow((void **)&g->values, &g->value_capacity, g->value_count, sizeof *g->values))
        return -1;
    bw_value *v = &g->values[g->value_count];
    memset(v, 0, sizeof *v);
    v->name = name && *name ? strdup(name) : bw_graph_fresh_name(g, "v");
    if (!v->name)
        return -1;
    v->dtype = dtype;
    v->rank = rank;
    for (int i = 0; i < rank; i++)
        v->dims[i] = dims ? dims[i] : -1;
    v->producer = -1;
    return g->value_count++;
}

int bw_graph_add_constant(bw_graph *g, const char *name, bw_array *a)
{
    bw_array *held = malloc(sizeof *held);
    int id = held ? bw_graph_add_value(g, name, a->dtype, a->rank, a->dims) : -1;
    if (id < 0) {
        free(held);
        return -1;
    }
    *held = *a;
    memset(a, 0, sizeof *a);
    g->values[id].constant = held;
    return id;
}

static int *copy_ids(const int *ids, int count)
{
    int *copy = malloc(sizeof *copy * (count > 0 ? (size_t)count : 1));
    if (copy && count > 0)
        memcpy(copy, ids, sizeof *copy * (size_t)count);
    return copy;
}

int bw_graph_add_node(bw_graph *g, const char *op, const char *name, const int *inputs, int input_count,
                      const int *outputs, int output_count)
{
    if (!op || !*op || input_count < 0 || output_count < 0 ||
        grow((void **)&g->nodes, &g->node_capacity, g->node_count, sizeof *g->nodes))
        return -1;
    for (int i = 0; i < input_count; i++)
        if (inputs[i] < -1 || inputs[i] >= g->value_count)
            return -1;
    for (int i = 0; i < output_count; i++)
        if (outputs[i] < -1 || outputs[i] >= g->value_count)
            return -1;
    bw_node n = {0};
    n.op = strdup(op);
    if (name && *name) {
        n.name = strdup(name);
    } else {
        size_t size = strlen(op) + 16;
        if ((n.name = malloc(size)))
            snprintf(n.name, size, "%s_%d", op, g->node_count);
    }
    n.inputs = copy_ids(inputs, input_count);
    n.outputs = copy_ids(outputs, output_count);
    n.input_count = input_count;
    n.output_count = output_count;
    if (!n.op || !n.name || !n.inputs || !n.outputs) {
        node_free(&n);
        return -1;
    }
    for (int i = 0; i < output_count; i++)
        if (outputs[i] >= 0)
            g->values[outputs[i]].producer = g->node_count;
    g->nodes[g->node_count] = n;
    return g->node_count++;
}

static bw_status set_ids(const bw_graph *g, int **slot, int *slot_count, const int *ids, int count)
{
    if (count < 0)
        return BW_INVALID_ARGUMENT;
    for (int i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= g->value_count)
            return BW_INVALID_ARGUMENT;
    int *copy = copy_ids(ids, count);
    if (!copy)
        return BW_NO_MEMORY;
    free(*slot);
    *slot = copy;
    *slot_count = count;
    return BW_OK;
}

bw_status bw_graph_set_inputs(bw_graph *g, const int *ids, int count)
{
    return set_ids(g, &g->inputs, &g->input_count, ids, count);
}

bw_status bw_graph_set_outputs(bw_graph *g, const int *ids, int count)
{
    return set_ids(g, &g->outputs, &g->output_count, ids, count);
}

static int clone_attr(bw_node *to, const bw_attr *a)
{
    switch (a->kind) {
    case BW_ATTR_INT:
        return bw_node_set_int(to, a->name, a->i);
    case BW_ATTR_FLOAT:
        return bw_node_set_float(to, a->name, a->f);
    case BW_ATTR_STRING:
        return bw_node_set_string(to, a->name, a->s);
    case BW_ATTR_INTS:
        return bw_node_set_ints(to, a->name, a->ints, a->count);
    case BW_ATTR_FLOATS:
        return bw_node_set_floats(to, a->name, a->floats, a->count);
    case BW_ATTR_ARRAY: {
        bw_array shared = a->array;
        shared.owned = 0;
        return bw_node_set_array(to, a->name, &shared);
    }
    }
    return -1;
}

bw_graph *bw_graph_clone(const bw_graph *g)
{
    bw_graph *c = bw_graph_new(g->name);
    int bad = !c;
    for (int i = 0; !bad && i < g->value_count; i++) {
        const bw_value *v = &g->values[i];
        int id;
        if (v->constant) {
            bw_array shared = *v->constant;
            shared.owned = 0;
            id = bw_graph_add_constant(c, v->name, &shared);
        } else {
            id = bw_graph_add_value(c, v->name, v->dtype, v->rank, v->dims);
        }
        bad = id != i;
    }
    for (int i = 0; !bad && i < g->node_count; i++) {
        const bw_node *n = &g->nodes[i];
        bad = bw_graph_add_node(c, n->op ? n->op : "Identity", n->name, n->inputs, n->input_count, n->outputs,
                                n->output_count) != i;
        for (int k = 0; !bad && k < n->attr_count; k++)
            bad = clone_attr(&c->nodes[i], &n->attrs[k]) != 0;
        if (!bad && !n->op) {
            free(c->nodes[i].op);
            c->nodes[i].op = NULL;
        }
    }
    for (int i = 0; !bad && i < g->value_count; i++)
        c->values[i].producer = g->values[i].producer;
    if (!bad)
        bad = bw_graph_set_inputs(c, g->inputs, g->input_count) || bw_graph_set_outputs(c, g->outputs, g->output_count);
    if (bad) {
        bw_graph_free(c);
        return NULL;
    }
    return c;
}

/* --- rewriting ---------------------------------------------------------------------------------------------------- */

void bw_graph_replace_uses(bw_graph *g, int old_value, int new_value)
{
    for (int i = 0; i < g->node_count; i++)
        for (int k = 0; k < g->nodes[i].input_count; k++)
            if (g->nodes[i].op && g->nodes[i].inputs[k] == old_value)
                g->nodes[i].inputs[k] = new_value;
    for (int i = 0; i < g->output_count; i++)
        if (g->outputs[i] == old_value)
            g->outputs[i] = new_value;
}

void bw_graph_remove_node(bw_graph *g, int node)
{
    bw_node *n = &g->nodes[node];
    for (int i = 0; i < n->output_count; i++)
        if (n->outputs[i] >= 0 && g->values[n->outputs[i]].producer == node)
            g->values[n->outputs[i]].producer = -1;
    node_free(n);
}

int bw_graph_use_count(const bw_graph *g, int value)
{
    int count = 0;
    for (int i = 0; i < g->node_count; i++)
        for (int k = 0; g->nodes[i].op && k < g->nodes[i].input_count; k++)
            count += g->nodes[i].inputs[k] == value;
    for (int i = 0; i < g->output_count; i++)
        count += g->outputs[i] == value;
    return count;
}

/* producer[value] from the living nodes; a second producer, or one for an input or a constant, is an error. */
static bw_status find_producers(const bw_graph *g, int *producer, bw_error *err)
{
    for (int i = 0; i < g->value_count; i++)
        producer[i] = -1;
    for (int i = 0; i < g->input_count; i++)
        producer[g->inputs[i]] = -2;
    for (int i = 0; i < g->node_count; i++) {
        const bw_node *n = &g->nodes[i];
        for (int k = 0; n->op && k < n->output_count; k++) {
            int v = n->outputs[k];
            if (v < 0)
                continue;
            if (producer[v] != -1 || g->values[v].constant)
                return bw_fail(err, BW_CORRUPT,
                               "node '%s' (%s) writes value '%s', which another node, an input or a "
                               "constant already defines: expected one definition",
                               n->name, n->op, g->values[v].name);
            producer[v] = i;
        }
    }
    return BW_OK;
}

/* Depth first from `root`, inputs before the node; state: 0 new, 1 open, 2 done. */
static bw_status visit(const bw_graph *g, int root, const int *producer, unsigned char *state, int *stack, int *next,
                       int *order, int *count, bw_error *err)
{
    if (state[root])
        return BW_OK;
    int depth = 0;
    stack[0] = root;
    next[root] = 0;
    state[root] = 1;
    while (depth >= 0) {
        int i = stack[depth];
        const bw_node *n = &g->nodes[i];
        if (next[i] == n->input_count) {
            state[i] = 2;
            order[(*count)++] = i;
            depth--;
            continue;
        }
        int v = n->inputs[next[i]++];
        int p = v < 0 ? -1 : producer[v];
        if (v >= 0 && p == -1 && !g->values[v].constant)
            return bw_fail(err, BW_CORRUPT, "node '%s' (%s) reads value '%s', which nothing defines", n->name, n->op,
                           g->values[v].name);
        if (p < 0 || state[p] == 2)
            continue;
        if (state[p] == 1)
            return bw_fail(err, BW_CORRUPT, "node '%s' (%s) is part of a cycle: expected a graph without loops",
                           g->nodes[p].name, g->nodes[p].op);
        state[p] = 1;
        next[p] = 0;
        stack[++depth] = p;
    }
    return BW_OK;
}

/* Marks in needed[] the nodes that the outputs depend on. */
static void mark_needed(const bw_graph *g, const int *producer, unsigned char *needed, int *stack)
{
    int depth = 0;
    for (int i = 0; i < g->output_count; i++) {
        int p = producer[g->outputs[i]];
        if (p >= 0 && !needed[p]) {
            needed[p] = 1;
            stack[depth++] = p;
        }
    }
    while (depth > 0) {
        const bw_node *n = &g->nodes[stack[--depth]];
        for (int k = 0; k < n->input_count; k++) {
            int p = n->inputs[k] < 0 ? -1 : producer[n->inputs[k]];
            if (p >= 0 && !needed[p]) {
                needed[p] = 1;
                stack[depth++] = p;
            }
        }
    }
}

bw_status bw_graph_sort(bw_graph *g, bw_error *err)
{
    size_t nodes = (size_t)g->node_count + 1, values = (size_t)g->value_count + 1;
    int *producer = malloc(sizeof *producer * values);
    int *ints = malloc(sizeof *ints * nodes * 3);
    unsigned char *state = calloc(nodes, 2);
    bw_node *sorted = malloc(sizeof *sorted * nodes);
    bw_status status = BW_OK;
    if (!producer || !ints || !state || !sorted) {
        status = bw_fail(err, BW_NO_MEMORY, "no memory to order %d nodes", g->node_count);
        goto out;
    }
    if ((status = find_producers(g, producer, err)))
        goto out;
    int *stack = ints, *next = ints + nodes, *order = ints + 2 * nodes, count = 0;
    unsigned char *needed = state + nodes;
    mark_needed(g, producer, needed, stack);
    for (int i = 0; i < g->output_count && !status; i++) {
        int v = g->outputs[i];
        if (producer[v] == -1 && !g->values[v].constant)
            status = bw_fail(err, BW_CORRUPT, "graph output '%s' is defined by nothing", g->values[v].name);
    }
    for (int i = 0; i < g->node_count && !status; i++)
        if (needed[i])
            status = visit(g, i, producer, state, stack, next, order, &count, err);
    if (status)
        goto out;
    for (int i = 0; i < g->node_count; i++)
        if (!needed[i])
            node_free(&g->nodes[i]);
    for (int i = 0; i < count; i++)
        sorted[i] = g->nodes[order[i]];
    if (count)
        memcpy(g->nodes, sorted, sizeof *sorted * (size_t)count);
    g->node_count = count;
    for (int i = 0; i < g->value_count; i++)
        g->values[i].producer = -1;
    for (int i = 0; i < count; i++)
        for (int k = 0; k < g->nodes[i].output_count; k++)
            if (g->nodes[i].outputs[k] >= 0)
                g->values[g->nodes[i].outputs[k]].producer = i;
out:
    free(producer);
    free(ints);
    free(state);
    free(sorted);
    return status;
}
