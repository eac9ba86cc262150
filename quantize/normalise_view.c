/* SPDX-License-Identifier: Apache-2.0 */
/* Reshapes to computed shapes. Exporters write x.view(x.size(0), -1) as Shape, Gather, Concat and Reshape; with a batch
 * of unknown size that does not fold. But an entry that comes from the first place of the Shape of a tensor whose first
 * axis is the batch is the batch, and the rest of the target follows from the rest of the input. */
#include <stdlib.h>
#include <string.h>

#include "quantize/import_internal.h"

#define ENTRIES_MAX 16
#define VISITS_MAX  256

typedef struct entry {
    enum { ENTRY_KNOWN, ENTRY_BATCH } kind;
    int64_t value;
} entry;

typedef struct trace {
    const bw_graph *g;
    const unsigned char *batched; /* per value: its first axis is the batch */
    int visits;                   /* bounds the work on graphs that share values */
} trace;

static int trace_value(trace *t, int value, entry *out, int *count);

static int trace_constant(const bw_array *a, entry *out, int *count)
{
    int64_t n = bw_array_count(a);
    if ((a->dtype != BW_I64 && a->dtype != BW_I32) || a->rank > 1 || n > ENTRIES_MAX)
        return 0;
    for (int64_t i = 0; i < n; i++)
        out[i] = (entry){ENTRY_KNOWN, bw_array_int(a, i)};
    *count = (int)n;
    return 1;
}

static int trace_shape(const trace *t, const bw_node *n, entry *out, int *count)
{
    const bw_value *x = &t->g->values[n->inputs[0]];
    if (x->rank < 0 || bw_node_attr(n, "start") || bw_node_attr(n, "end"))
        return 0;
    for (int i = 0; i < x->rank; i++) {
        if (x->dims[i] < 0 && (i > 0 || !t->batched[n->inputs[0]]))
            return 0;
        out[i] = x->dims[i] < 0 ? (entry){ENTRY_BATCH, -1} : (entry){ENTRY_KNOWN, x->dims[i]};
    }
    *count = x->rank;
    return 1;
}

static int trace_gather(trace *t, const bw_node *n, entry *out, int *count)
{
    entry data[ENTRIES_MAX];
    int have;
    const bw_array *indices = bw_node_constant(t->g, n, 1);
    if (!indices || bw_node_int(n, "axis", 0) || !trace_value(t, n->inputs[0], data, &have))
        return 0;
    if (!trace_constant(indices, out, count))
        return 0;
    for (int i = 0; i < *count; i++) {
        int64_t at = out[i].value + (out[i].value < 0 ? have : 0);
        if (at < 0 || at >= have)
            return 0;
        out[i] = data[at];
    }
    return 1;
}

/* One bound of a Slice of a vector. */
static int slice_bound(const trace *t, const bw_node *n, const char *attr, int input, int64_t *v)
{
    const bw_array *a = bw_node_constant(t->g, n, input);
    int64_t list[2];
    if (bw_node_attr(n, attr))
        return bw_node_ints(n, attr, list, 2) == 1 && (*v = list[0], 1);
    if (bw_node_input(n, input) < 0)
        return 1; /* keeps the default */
    if (!a || bw_array_count(a) != 1 || (a->dtype != BW_I64 && a->dtype != BW_I32))
        return 0;
    *v = bw_array_int(a, 0);
    return 1;
}

static int trace_slice(trace *t, const bw_node *n, entry *out, int *count)
{
    entry data[ENTRIES_MAX];
    int have;
    int64_t start = 0, end = INT64_MAX, axis = 0, step = 1;
    if (!slice_bound(t, n, "starts", 1, &start) || !slice_bound(t, n, "ends", 2, &end) ||
        !slice_bound(t, n, "axes", 3, &axis) || !slice_bound(t, n, "steps", 4, &step) || (axis != 0 && axis != -1) ||
        step != 1 || !trace_value(t, n->inputs[0], data, &have))
        return 0;
    start += start < 0 ? have : 0;
    end += end < 0 ? have : 0;
    start = start < 0 ? 0 : start;
    end = end > have ? have : end;
    *count = 0;
    for (int64_t i = start; i < end; i++)
        out[(*count)++] = data[i];
    return 1;
}

static int trace_concat(trace *t, const bw_node *n, entry *out, int *count)
{
    *count = 0;
    for (int i = 0; i < n->input_count; i++) {
        entry part[ENTRIES_MAX];
        int have;
        if (n->inputs[i] < 0 || !trace_value(t, n->inputs[i], part, &have) || *count + have > ENTRIES_MAX)
            return 0;
        for (int k = 0; k < have; k++)
            out[(*count)++] = part[k];
    }
    return 1;
}

/* The entries of a small integer vector or scalar, if each is known or the batch. */
static int trace_value(trace *t, int value, entry *out, int *count)
{
    static const char *const same[] = {"Unsqueeze", "Squeeze", "Cast", "Identity", "Reshape", "Flatten"};
    const bw_value *v = &t->g->values[value];
    if (v->constant)
        return trace_constant(v->constant, out, count);
    if (v->producer < 0 || t->visits++ >= VISITS_MAX)
        return 0;
    const bw_node *n = &t->g->nodes[v->producer];
    if (!n->op || !n->input_count || n->inputs[0] < 0 || n->output_count != 1)
        return 0;
    if (!strcmp(n->op, "Shape"))
        return trace_shape(t, n, out, count);
    if (v->dtype != BW_I64 && v->dtype != BW_I32)
        return 0;
    if (!strcmp(n->op, "Gather"))
        return trace_gather(t, n, out, count);
    if (!strcmp(n->op, "Slice"))
        return trace_slice(t, n, out, count);
    if (!strcmp(n->op, "Concat"))
        return trace_concat(t, n, out, count);
    for (size_t i = 0; i < sizeof same / sizeof same[0]; i++)
        if (!strcmp(n->op, same[i]))
            return trace_value(t, n->inputs[0], out, count);
    return 0;
}

/* The target [batch, ...] of a Reshape of x, all but the batch known. */
static int view_of(const bw_value *x, const entry *target, int count, int64_t *shape)
{
    int64_t all = 1, known = 1;
    int open = -1;
    if (count < 1 || count > BW_RANK_MAX || target[0].kind != ENTRY_BATCH || x->rank < 1 || x->dims[0] != -1)
        return 0;
    for (int i = 1; i < x->rank; i++)
        if (x->dims[i] < 1 || __builtin_mul_overflow(all, x->dims[i], &all))
            return 0;
    shape[0] = -1;
    for (int i = 1; i < count; i++) {
        shape[i] = target[i].value;
        if (target[i].kind != ENTRY_KNOWN || shape[i] < -1 || (shape[i] == 0 && i >= x->rank))
            return 0;
        if (shape[i] == 0)
            shape[i] = x->dims[i];
        if (shape[i] == -1 && open >= 0)
            return 0;
        if (shape[i] == -1)
            open = i;
        else if (__builtin_mul_overflow(known, shape[i], &known))
            return 0;
    }
    if (open < 0)
        return known == all;
    shape[open] = all / known;
    return all % known == 0;
}

int bw_normalise_views(bw_importer *im, bw_error *err)
{
    bw_graph *g = im->g;
    int settled = 0;
    unsigned char *batched = calloc((size_t)g->value_count + 1, 1);
    if (!batched) {
        bw_fail(err, BW_NO_MEMORY, "no memory for %d values", g->value_count);
        return -1;
    }
    bw_normalise_find_batch(g, batched);
    for (int i = 0; i < g->node_count; i++) {
        bw_node *n = &g->nodes[i];
        entry target[ENTRIES_MAX];
        int64_t shape[BW_RANK_MAX];
        int count;
        trace t = {.g = g, .batched = batched};
        if (strcmp(n->op, "Reshape") || bw_node_input(n, 1) < 0 || bw_node_constant(g, n, 1) ||
            bw_node_int(n, "allowzero", 0) || bw_node_attr(n, "shape") || n->inputs[0] < 0 || !batched[n->inputs[0]])
            continue;
        if (!trace_value(&t, n->inputs[1], target, &count) || !view_of(&g->values[n->inputs[0]], target, count, shape))
            continue;
        if (bw_node_set_ints(n, "shape", shape, (size_t)count)) {
            bw_fail(err, BW_NO_MEMORY, "no memory for node '%s'", n->name);
            settled = -1;
            break;
        }
        bw_node_trim_inputs(n, 1);
        settled++;
    }
    free(batched);
    return settled;
}
