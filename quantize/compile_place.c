/* SPDX-License-Identifier: Apache-2.0 */
/* Placement: which node runs on the accelerator, and the ordered stages. */
#include <stdlib.h>
#include <string.h>

#include "quantize/lower.h"

static int is_layer(const bw_match *m)
{
    return m->kind == BW_MATCH_CONV || m->kind == BW_MATCH_GEMM;
}

/* A flattened feature map exists on the accelerator only as the input of fully connected layers, whose weights take
 * its order. */
static int feeds_layers_only(const bw_graph *g, const bw_match *matches, int value)
{
    for (int i = 0; i < g->output_count; i++)
        if (g->outputs[i] == value)
            return 0;
    for (int n = 0; n < g->node_count; n++) {
        for (int i = 0; i < g->nodes[n].input_count; i++)
            if (g->nodes[n].inputs[i] == value && matches[n].kind != BW_MATCH_GEMM)
                return 0;
    }
    return 1;
}

static void settle_flattens(const bw_graph *g, bw_match *matches)
{
    for (int n = 0; n < g->node_count; n++)
        if (matches[n].kind == BW_MATCH_FLATTEN && !feeds_layers_only(g, matches, g->nodes[n].outputs[0]))
            matches[n].kind = BW_MATCH_NONE;
}

/* Marks layers that no other layer precedes, or follows, as the CPU's. */
static bw_status keep_ends_float(const bw_graph *g, bw_match *matches, bw_error *err)
{
    char *before = calloc((size_t)g->value_count + 1, 1), *after = calloc((size_t)g->value_count + 1, 1);
    if (!before || !after) {
        free(before);
        free(after);
        return bw_fail(err, BW_NO_MEMORY, "out of memory while placing %d nodes", g->node_count);
    }
    for (int n = 0; n < g->node_count; n++) { /* before[v]: a layer lies on a path from an input to v */
        int seen = is_layer(&matches[n]);
        for (int i = 0; i < g->nodes[n].input_count; i++)
            seen |= g->nodes[n].inputs[i] >= 0 && before[g->nodes[n].inputs[i]];
        for (int i = 0; i < g->nodes[n].output_count; i++)
            if (g->nodes[n].outputs[i] >= 0)
                before[g->nodes[n].outputs[i]] = (char)seen;
    }
    for (int n = g->node_count - 1; n >= 0; n--) {
        int seen = is_layer(&matches[n]);
        for (int i = 0; i < g->nodes[n].output_count; i++)
            seen |= g->nodes[n].outputs[i] >= 0 && after[g->nodes[n].outputs[i]];
        for (int i = 0; i < g->nodes[n].input_count; i++)
            if (g->nodes[n].inputs[i] >= 0)
                after[g->nodes[n].inputs[i]] |= (char)seen;
    }
    for (int n = 0; n < g->node_count; n++)
        if (is_layer(&matches[n]) && (!before[matches[n].in] || !after[g->nodes[n].outputs[0]]))
            matches[n].kind = BW_MATCH_NONE;
    free(before);
    free(after);
    return BW_OK;
}

static int level_of_input(const bw_graph *g, const int *level, int value)
{
    if (value < 0 || g->values[value].constant || g->values[value].producer < 0)
        return 0;
    return level[g->values[value].producer];
}

/* Stages by topological level: a node's level is the lowest of its side's parity that no input exceeds. */
static void assign_levels(const bw_graph *g, bw_placement *p)
{
    p->levels = 0;
    for (int n = 0; n < g->node_count; n++) {
        const bw_match *m = &p->matches[n];
        int on_device = m->kind != BW_MATCH_NONE, base = 0;
        if (m->kind == BW_MATCH_SHUFFLE) {
            base = level_of_input(g, p->level, m->in);
        } else {
            for (int i = 0; i < g->nodes[n].input_count; i++) {
                int l = level_of_input(g, p->level, g->nodes[n].inputs[i]);
                base = l > base ? l : base;
            }
        }
        if ((base & 1) != on_device)
            base++;
        p->level[n] = base;
        if (m->kind == BW_MATCH_SHUFFLE)
            p->level[m->first] = p->level[m->middle] = base;
        p->levels = base + 1 > p->levels ? base + 1 : p->levels;
    }
}

/* An accelerator stage without any layer is not worth the two ways: 1 if one was given to the CPU. */
static int drop_tiny_stages(const bw_graph *g, bw_placement *p)
{
    int dropped = 0;
    for (int l = 1; l < p->levels; l += 2) {
        int layers = 0;
        for (int n = 0; n < g->node_count; n++)
            layers += p->level[n] == l && is_layer(&p->matches[n]);
        for (int n = 0; n < g->node_count && !layers; n++)
            if (p->level[n] == l && p->matches[n].kind != BW_MATCH_NONE) {
                p->matches[n].kind = BW_MATCH_NONE;
                dropped = 1;
            }
    }
    return dropped;
}

bw_status bw_place(const bw_graph *g, const bw_recipe *recipe, bw_placement *p, bw_error *err)
{
    *p = (bw_placement){.matches = calloc((size_t)g->node_count + 1, sizeof *p->matches),
                        .level = calloc((size_t)g->node_count + 1, sizeof *p->level)};
    if (!p->matches || !p->level) {
        bw_placement_free(p);
        return bw_fail(err, BW_NO_MEMORY, "out of memory while placing %d nodes", g->node_count);
    }
    for (int n = 0; n < g->node_count; n++)
        bw_lower_match(g, n, &p->matches[n]);
    bw_status s = recipe && recipe->first_last_float ? keep_ends_float(g, p->matches, err) : BW_OK;
    if (s) {
        bw_placement_free(p);
        return s;
    }
    /* Nodes only ever move to the CPU, so this ends. */
    do {
        settle_flattens(g, p->matches);
        assign_levels(g, p);
    } while (drop_tiny_stages(g, p));
    return BW_OK;
}

void bw_placement_free(bw_placement *p)
{
    free(p->matches);
    free(p->level);
    *p = (bw_placement){0};
}

int bw_compile_on_device(const bw_graph *g, int node)
{
    bw_placement p;
    if (node < 0 || node >= g->node_count || bw_place(g, NULL, &p, NULL))
        return 0;
    int on = p.level[node] & 1;
    bw_placement_free(&p);
    return on;
}
