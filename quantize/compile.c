/* SPDX-License-Identifier: Apache-2.0 */
/* The compiler's top: recipe checks, stages with their borders, CPU stages cut out of the graph. */
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "quantize/lower.h"

static bw_status no_memory(bw_error *err)
{
    return bw_fail(err, BW_NO_MEMORY, "out of memory while compiling");
}

static bw_status check_format(bw_format format, unsigned block, const char *what, bw_error *err)
{
    const bw_format_traits *t = bw_format_get(format);
    if (!bw_format_is_block(t))
        return bw_fail(err, BW_INVALID_ARGUMENT, "%s format %s is no block format: choose one such as msfp16 or mxint8",
                       what, t ? t->name : "?");
    if (!bw_format_block_ok(t, block))
        return bw_fail(err, BW_INVALID_ARGUMENT, "%s format %s has no block of %u: %s", what, t->name, block,
                       t->block == 16 ? "choose 16, 32, 64 or 128" : "choose 32");
    return BW_OK;
}

static bw_status check_recipe(const bw_recipe *r, bw_error *err)
{
    bw_status s = check_format(r->weights, r->block, "weight", err);
    if (!s)
        s = check_format(r->activations, r->block, "activation", err);
    const bw_format_traits *v = bw_format_get(r->vector);
    if (!s && (!v || v->kind != BW_KIND_VECTOR))
        s = bw_fail(err, BW_INVALID_ARGUMENT, "vector format %s is none: choose fp16 or bf16", v ? v->name : "?");
    return s;
}

/* --- borders --------------------------------------------------------------------------------------------------- */

struct id_list {
    int *ids;
    int count;
};

static int is_graph_output(const bw_graph *g, int value)
{
    for (int i = 0; i < g->output_count; i++)
        if (g->outputs[i] == value)
            return 1;
    return 0;
}

static int level_of(const bw_graph *g, const bw_placement *p, int value)
{
    return g->values[value].producer < 0 ? -1 : p->level[g->values[value].producer];
}

/* Values that stage `level` reads from outside, in order of first use, and those that it computes for others. */
static bw_status borders(const bw_graph *g, const bw_placement *p, int level, struct id_list *in, struct id_list *out,
                         bw_error *err)
{
    size_t room = ((size_t)g->value_count + 1) * sizeof(int);
    char *seen = calloc((size_t)g->value_count + 1, 1);
    *in = (struct id_list){malloc(room), 0};
    *out = (struct id_list){malloc(room), 0};
    if (!seen || !in->ids || !out->ids) {
        free(seen);
        return no_memory(err);
    }
    for (int n = 0; n < g->node_count; n++) {
        const bw_node *node = &g->nodes[n];
        for (int i = 0; i < node->input_count; i++) {
            int v = node->inputs[i];
            if (v < 0 || g->values[v].constant || seen[v])
                continue;
            int from = level_of(g, p, v);
            if (p->level[n] == level && from != level) {
                seen[v] = 1;
                in->ids[in->count++] = v;
            } else if (p->level[n] != level && from == level) {
                seen[v] = 1; /* an output: listed below, in the order of computation */
            }
        }
    }
    for (int n = 0; n < g->node_count; n++) {
        const bw_node *node = &g->nodes[n];
        for (int i = 0; i < node->output_count && p->level[n] == level; i++) {
            int v = node->outputs[i];
            if (v >= 0 && (seen[v] || is_graph_output(g, v)))
                out->ids[out->count++] = v;
        }
    }
    free(seen);
    return BW_OK;
}

static bw_status describe(const bw_graph *g, const struct id_list *l, bw_stage_tensor **tensors, int *count,
                          bw_error *err)
{
    *tensors = calloc((size_t)l->count + 1, sizeof **tensors);
    if (!*tensors)
        return no_memory(err);
    *count = l->count;
    for (int i = 0; i < l->count; i++) {
        const bw_value *v = &g->values[l->ids[i]];
        bw_stage_tensor *t = &(*tensors)[i];
        t->name = strdup(v->name);
        t->rank = v->rank;
        memcpy(t->dims, v->dims, sizeof t->dims);
        if (!t->name)
            return no_memory(err);
    }
    return BW_OK;
}

/* --- CPU stages ------------------------------------------------------------------------------------------------- */

static bw_status copy_attr(const bw_attr *a, bw_node *to, bw_error *err)
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
        bw_array copy = {0};
        bw_status s = bw_array_alloc(&copy, a->array.dtype, a->array.rank, a->array.dims, err);
        if (s)
            return s;
        memcpy(copy.data, a->array.data, a->array.bytes);
        s = bw_node_set_array(to, a->name, &copy);
        bw_array_free(&copy);
        return s;
    }
    }
    return BW_OK;
}

/* The value of the new graph that stands for value v of g; constants are copied, so that the stage lives alone. */
static int copy_value(const bw_graph *g, bw_graph *to, int v, int *of, bw_error *err)
{
    if (v < 0 || of[v] >= 0)
        return v < 0 ? -1 : of[v];
    const bw_value *x = &g->values[v];
    if (x->constant) {
        bw_array copy = {0};
        if (bw_array_alloc(&copy, x->constant->dtype, x->constant->rank, x->constant->dims, err))
            return -1;
        memcpy(copy.data, x->constant->data, x->constant->bytes);
        of[v] = bw_graph_add_constant(to, x->name, &copy);
        bw_array_free(&copy);
    } else {
        of[v] = bw_graph_add_value(to, x->name, x->dtype, x->rank, x->dims);
    }
    return of[v];
}

static bw_status copy_node(const bw_graph *g, int n, bw_graph *to, int *of, bw_error *err)
{
    const bw_node *node = &g->nodes[n];
    int count = node->input_count + node->output_count;
    int *ids = malloc(((size_t)count + 1) * sizeof *ids);
    if (!ids)
        return no_memory(err);
    bw_status s = BW_OK;
    for (int i = 0; i < count && !s; i++) {
        int v = i < node->input_count ? node->inputs[i] : node->outputs[i - node->input_count];
        ids[i] = copy_value(g, to, v, of, err);
        if (v >= 0 && ids[i] < 0)
            s = no_memory(err);
    }
    int made = s ? -1
                 : bw_graph_add_node(to, node->op, node->name, ids, node->input_count, ids + node->input_count,
                                     node->output_count);
    if (!s && made < 0)
        s = no_memory(err);
    for (int i = 0; i < node->attr_count && !s; i++)
        s = copy_attr(&node->attrs[i], &to->nodes[made], err) ? no_memory(err) : BW_OK;
    free(ids);
    return s;
}

static bw_status cut_graph(const bw_graph *g, const bw_placement *p, int level, const struct id_list *in,
                           const struct id_list *out, bw_graph **result, bw_error *err)
{
    bw_graph *to = bw_graph_new(g->name);
    int *of = malloc(((size_t)g->value_count + 1) * sizeof *of);
    int *ids = malloc(((size_t)in->count + (size_t)out->count + 1) * sizeof *ids);
    bw_status s = to && of && ids ? BW_OK : no_memory(err);
    if (!s)
        memset(of, -1, ((size_t)g->value_count + 1) * sizeof *of);
    for (int i = 0; i < in->count && !s; i++)
        if ((ids[i] = copy_value(g, to, in->ids[i], of, err)) < 0)
            s = no_memory(err);
    if (!s)
        s = bw_graph_set_inputs(to, ids, in->count);
    for (int n = 0; n < g->node_count && !s; n++) {
        if (p->level[n] != level)
            continue;
        if (!bw_op_supported(g->nodes[n].op))
            s = bw_fail(
                err, BW_UNSUPPORTED,
                "node '%s': operator %s runs neither on the accelerator nor on the CPU: replace it in the model",
                g->nodes[n].name, g->nodes[n].op);
        else
            s = copy_node(g, n, to, of, err);
    }
    for (int i = 0; i < out->count && !s; i++)
        ids[i] = of[out->ids[i]];
    if (!s)
        s = bw_graph_set_outputs(to, ids, out->count);
    if (!s)
        s = bw_graph_sort(to, err);
    free(of);
    free(ids);
    if (s)
        bw_graph_free(to);
    else
        *result = to;
    return s;
}

/* --- stages ----------------------------------------------------------------------------------------------------- */

static bw_status compile_device(const bw_graph *g, const bw_recipe *recipe, const bw_placement *p, int level,
                                const struct id_list *in, const struct id_list *out, bw_pack_progress *progress,
                                bw_stage *stage, bw_error *err)
{
    bw_ir ir;
    bw_status s = bw_lower(g, recipe, p, level, in->ids, in->count, out->ids, out->count, &ir, err);
    if (s)
        return s;
    ir.progress = progress;
    s = bw_layout(&ir, err);
    if (!s)
        s = bw_emit(&ir, stage, err);
    bw_ir_free(&ir);
    return s;
}

static bw_status compile_stage(const bw_graph *g, const bw_recipe *recipe, const bw_placement *p, int level,
                               bw_pack_progress *progress, bw_stage *stage, bw_error *err)
{
    struct id_list in, out;
    stage->device = level & 1;
    bw_status s = borders(g, p, level, &in, &out, err);
    if (!s)
        s = describe(g, &in, &stage->inputs, &stage->input_count, err);
    if (!s)
        s = describe(g, &out, &stage->outputs, &stage->output_count, err);
    if (!s && stage->device)
        s = compile_device(g, recipe, p, level, &in, &out, progress, stage, err);
    else if (!s)
        s = cut_graph(g, p, level, &in, &out, &stage->graph, err);
    free(in.ids);
    free(out.ids);
    return s;
}

static int level_used(const bw_graph *g, const bw_placement *p, int level)
{
    for (int n = 0; n < g->node_count; n++)
        if (p->level[n] == level)
            return 1;
    return 0;
}

bw_status bw_compile(const bw_graph *g, const bw_recipe *recipe, bw_compiled *out, bw_error *err)
{
    return bw_compile_watched(g, recipe, NULL, NULL, out, err);
}

bw_status bw_compile_watched(const bw_graph *g, const bw_recipe *recipe, bw_compile_watch *watch, void *user,
                             bw_compiled *out, bw_error *err)
{
    bw_pack_progress progress = {.watch = watch, .user = user};
    for (int v = 0; v < g->value_count && watch; v++)
        progress.total += g->values[v].constant ? (uint64_t)bw_array_count(g->values[v].constant) : 0;
    *out = (bw_compiled){0};
    bw_status s = check_recipe(recipe, err);
    bw_placement p;
    if (s || (s = bw_place(g, recipe, &p, err)))
        return s;
    int devices = 0;
    for (int l = 1; l < p.levels; l += 2)
        devices += level_used(g, &p, l);
    for (int i = 0; i < g->output_count && !s; i++)
        if (g->values[g->outputs[i]].constant)
            s = bw_fail(err, BW_UNSUPPORTED, "output '%s' of the network is constant: remove it from the model",
                        g->values[g->outputs[i]].name);
    if (!s && !devices)
        s = bw_fail(err, BW_UNSUPPORTED,
                    "network '%s': none of its %d nodes can run on the accelerator, which wants convolutions or fully "
                    "connected layers with constant weights: run 'blockwave check' for the reasons",
                    g->name, g->node_count);
    if (!s && !(out->stages = calloc((size_t)p.levels + 1, sizeof *out->stages)))
        s = no_memory(err);
    for (int l = 0; l < p.levels && !s; l++)
        if (level_used(g, &p, l))
            s = compile_stage(g, recipe, &p, l, &progress, &out->stages[out->stage_count++], err);
    bw_placement_free(&p);
    if (s)
        bw_compiled_free(out);
    return s;
}

static void free_tensors(bw_stage_tensor *t, int count)
{
    for (int i = 0; i < count; i++)
        free(t[i].name);
    free(t);
}

void bw_compiled_free(bw_compiled *c)
{
    for (int i = 0; i < c->stage_count; i++) {
        bw_stage *s = &c->stages[i];
        bw_graph_free(s->graph);
        free(s->program);
        free(s->constants);
        free_tensors(s->inputs, s->input_count);
        free_tensors(s->outputs, s->output_count);
        for (int k = 0; k < s->weight_count; k++)
            free(s->weights[k].name);
        free(s->weights);
        for (int k = 0; k < s->layer_count; k++)
            free(s->layers[k]);
        free(s->layers);
    }
    free(c->stages);
    *c = (bw_compiled){0};
}
