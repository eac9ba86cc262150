/* SPDX-License-Identifier: Apache-2.0 */
#include "quantize/survey.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/isa.h"

static int is_op(const bw_node *n, const char *op)
{
    return !strcmp(n->op, op);
}

static const bw_array *constant_input(const bw_graph *g, const bw_node *n, int index)
{
    return index < n->input_count && n->inputs[index] >= 0 ? g->values[n->inputs[index]].constant : NULL;
}

/* Elements of one image; unknown dimensions (the batch among them) count as 1. Saturates. */
static uint64_t elements(const bw_value *v)
{
    uint64_t n = 1;
    for (int i = 0; i < v->rank; i++)
        if (v->dims[i] >= 0 && __builtin_mul_overflow(n, (uint64_t)v->dims[i], &n))
            return UINT64_MAX;
    return n;
}

static uint64_t times(uint64_t a, uint64_t b)
{
    uint64_t c;
    return __builtin_mul_overflow(a, b, &c) ? UINT64_MAX : c;
}

static uint64_t plus(uint64_t a, uint64_t b)
{
    return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

uint64_t bw_survey_macs(const bw_graph *g, int node)
{
    const bw_node *n = &g->nodes[node];
    const bw_value *w = n->input_count > 1 && n->inputs[1] >= 0 ? &g->values[n->inputs[1]] : NULL;
    const bw_value *y = &g->values[n->outputs[0]];
    if (!w || w->rank < 1)
        return 0;
    uint64_t rows = w->dims[0] > 0 ? (uint64_t)w->dims[0] : 1;
    if (is_op(n, "Conv"))
        return times(elements(y), elements(w) / rows);
    if (is_op(n, "ConvTranspose"))
        return times(elements(&g->values[n->inputs[0]]), elements(w) / rows);
    if (is_op(n, "Gemm") && w->rank == 2) {
        int64_t k = w->dims[bw_node_int(n, "transB", 0) ? 1 : 0];
        return times(elements(y), k > 0 ? (uint64_t)k : 1);
    }
    if (is_op(n, "MatMul")) {
        int64_t k = w->dims[w->rank > 1 ? w->rank - 2 : 0];
        return times(elements(y), k > 0 ? (uint64_t)k : 1);
    }
    return 0;
}

/* --- where a node runs ------------------------------------------------------------------------------------------ */

static int is_feature_map(const bw_value *v)
{
    return v->dtype == BW_F32 && (v->rank == 2 || v->rank == 4);
}

/* A constant with one number per channel, or one for all. */
static int is_per_channel(const bw_array *c, const bw_value *y)
{
    for (int i = 0; i < c->rank; i++)
        if (i + y->rank - c->rank != 1 && c->dims[i] != 1)
            return 0;
    return c->rank <= y->rank;
}

static int same_shape(const bw_value *a, const bw_value *b)
{
    return a->rank == b->rank && a->rank >= 0 && !memcmp(a->dims, b->dims, (size_t)a->rank * sizeof a->dims[0]);
}

static int binary_on_device(const bw_graph *g, const bw_node *n)
{
    const bw_value *y = &g->values[n->outputs[0]];
    if (n->input_count != 2)
        return 0;
    for (int side = 0; side < 2; side++) {
        const bw_array *c = constant_input(g, n, side);
        if (c)
            return is_per_channel(c, y);
    }
    return same_shape(&g->values[n->inputs[0]], &g->values[n->inputs[1]]);
}

/* Padding of channels only: {0, before, 0, 0, 0, after, 0, 0}. */
static int pads_channels_only(const bw_node *n)
{
    int64_t pads[2 * BW_RANK_MAX];
    size_t count = bw_node_ints(n, "pads", pads, 2 * BW_RANK_MAX);
    for (size_t i = 0; i < count && i < 2 * BW_RANK_MAX; i++)
        if (i % (count / 2) != 1 ? pads[i] != 0 : pads[i] < 0)
            return 0;
    return count == 8 && bw_node_float(n, "value", 0) == 0 &&
           !strcmp(bw_node_string(n, "mode", "constant"), "constant");
}

static int slices_forward(const bw_node *n)
{
    int64_t axes[BW_RANK_MAX], steps[BW_RANK_MAX];
    size_t count = bw_node_ints(n, "axes", axes, BW_RANK_MAX);
    if (bw_node_ints(n, "steps", steps, BW_RANK_MAX) != count || !count)
        return 0;
    for (size_t i = 0; i < count; i++)
        if (axes[i] == 0 || steps[i] < 1)
            return 0;
    return 1;
}

int bw_survey_on_device(const bw_graph *g, int node)
{
    const bw_node *n = &g->nodes[node];
    if (n->output_count != 1 || !n->input_count || n->inputs[0] < 0)
        return 0;
    const bw_value *x = &g->values[n->inputs[0]], *y = &g->values[n->outputs[0]];
    const bw_array *w = constant_input(g, n, 1);
    if (!is_feature_map(y) || x->dtype != BW_F32)
        return 0;
    if (is_op(n, "Conv"))
        return w && w->rank == 4;
    if (is_op(n, "Gemm"))
        return w && w->rank == 2 && bw_node_int(n, "transB", 0);
    if (is_op(n, "Relu") || is_op(n, "Flatten"))
        return 1;
    if (is_op(n, "Clip"))
        return n->input_count == 1;
    if (is_op(n, "MaxPool") || is_op(n, "AveragePool") || is_op(n, "GlobalAveragePool") || is_op(n, "GlobalMaxPool"))
        return x->rank == 4;
    if (is_op(n, "Add") || is_op(n, "Mul"))
        return binary_on_device(g, n);
    if (is_op(n, "Concat"))
        return bw_node_int(n, "axis", 0) == 1;
    if (is_op(n, "Slice"))
        return x->rank == 4 && slices_forward(n);
    if (is_op(n, "Pad"))
        return x->rank == 4 && pads_channels_only(n);
    return 0;
}

/* --- the survey ------------------------------------------------------------------------------------------------- */

static bw_survey_op *find_op(bw_survey *s, const char *op)
{
    for (int i = 0; i < s->op_count; i++)
        if (!strcmp(s->ops[i].op, op))
            return &s->ops[i];
    s->ops[s->op_count] = (bw_survey_op){.op = op};
    return &s->ops[s->op_count++];
}

bw_status bw_survey_graph(const bw_graph *g, bw_survey *s, bw_error *err)
{
    memset(s, 0, sizeof *s);
    s->ops = calloc((size_t)g->node_count + 1, sizeof *s->ops);
    if (!s->ops)
        return bw_fail(err, BW_NO_MEMORY, "no memory to survey %d nodes", g->node_count);
    for (int i = 0; i < g->value_count; i++)
        if (g->values[i].constant && g->values[i].dtype == BW_F32)
            s->parameters = plus(s->parameters, elements(&g->values[i]));
    for (int i = 0; i < g->node_count; i++) {
        bw_survey_op *o = find_op(s, g->nodes[i].op);
        uint64_t macs = bw_survey_macs(g, i);
        int device = bw_survey_on_device(g, i);
        o->device += device;
        o->cpu += !device;
        o->macs = plus(o->macs, macs);
        s->device_nodes += device;
        s->cpu_nodes += !device;
        s->macs = plus(s->macs, macs);
        s->device_macs = plus(s->device_macs, device ? macs : 0);
    }
    return BW_OK;
}

void bw_survey_free(bw_survey *s)
{
    if (!s)
        return;
    free(s->ops);
    memset(s, 0, sizeof *s);
}

static uint64_t round_up(uint64_t n, uint64_t to)
{
    return (n + to - 1) / to * to;
}

static int is_depthwise(const bw_node *n, const bw_array *w)
{
    return is_op(n, "Conv") && bw_node_int(n, "group", 1) > 1 && w->dims[1] == 1 &&
           bw_node_int(n, "group", 1) == w->dims[0];
}

/* Tiles of 16 outputs; reduction in blocks at each tap, or over taps and channels together where the input is gathered
 * into patches. */
static uint64_t product_bytes(const bw_node *n, const bw_array *w, const bw_format_traits *format, unsigned block)
{
    uint64_t groups = is_op(n, "Conv") ? (uint64_t)bw_node_int(n, "group", 1) : 1, outputs = (uint64_t)w->dims[0];
    uint64_t channels = w->rank > 1 ? (uint64_t)w->dims[1] : 1, taps = 1;
    for (int i = 2; i < w->rank; i++)
        taps *= (uint64_t)w->dims[i];
    uint64_t rows = groups * round_up(outputs / (groups ? groups : 1), BW_OUTPUT_TILE);
    uint64_t blocks = channels < block && groups == 1 ? round_up(channels * taps, block) / block
                                                      : taps * (round_up(channels, block) / block);
    return rows * (blocks * (bw_packed_size(format, block) + 1) + 4);
}

uint64_t bw_survey_package_bytes(const bw_graph *g, const bw_format_traits *format, unsigned block)
{
    uint64_t total = 0;
    for (int i = 0; i < g->node_count; i++) {
        const bw_node *n = &g->nodes[i];
        int device = bw_survey_on_device(g, i);
        const bw_array *w = constant_input(g, n, 1);
        if (device && w && (is_op(n, "Conv") || is_op(n, "Gemm"))) {
            uint64_t rows = round_up((uint64_t)w->dims[0], BW_OUTPUT_TILE);
            if (is_depthwise(n, w))
                total += rows * ((uint64_t)(bw_array_count(w) / (w->dims[0] ? w->dims[0] : 1)) * 2 + 4);
            else
                total += product_bytes(n, w, format, block);
            continue;
        }
        for (int k = 0; k < n->input_count; k++) {
            const bw_array *c = constant_input(g, n, k);
            if (c)
                total += device ? round_up((uint64_t)bw_array_count(c), BW_OUTPUT_TILE) * 6 : c->bytes;
        }
    }
    return total;
}
