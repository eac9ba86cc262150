/* SPDX-License-Identifier: Apache-2.0 */
#include "quantize/survey.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/isa.h"
#include "quantize/compile.h"

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
    s->device = calloc((size_t)g->node_count + 1, 1);
    if (!s->ops || !s->device)
        return bw_fail(err, BW_NO_MEMORY, "no memory to survey %d nodes", g->node_count);
    for (int i = 0; i < g->value_count; i++)
        if (g->values[i].constant && g->values[i].dtype == BW_F32)
            s->parameters = plus(s->parameters, elements(&g->values[i]));
    for (int i = 0; i < g->node_count; i++) {
        bw_survey_op *o = find_op(s, g->nodes[i].op);
        uint64_t macs = bw_survey_macs(g, i);
        int device = bw_compile_on_device(g, i);
        s->device[i] = (unsigned char)device;
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
    free(s->device);
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

uint64_t bw_survey_package_bytes(const bw_graph *g, const bw_survey *s, const bw_format_traits *format, unsigned block)
{
    uint64_t total = 0;
    for (int i = 0; i < g->node_count; i++) {
        const bw_node *n = &g->nodes[i];
        int device = s->device[i];
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
            /* on the accelerator a scale is a weight in fp16, a shift a bias in fp32 */
            uint64_t element = is_op(n, "Mul") ? 2 : 4;
            if (c)
                total += device ? round_up((uint64_t)bw_array_count(c), BW_OUTPUT_TILE) * element : c->bytes;
        }
    }
    return total;
}
