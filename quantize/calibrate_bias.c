/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bias correction: rounding shifts the mean of a layer's outputs; on the calibration samples that shift is measured,
 * channel by channel, and taken from the bias. From the input on, one depth after the other, so that each layer sees
 * what the corrected layers before it give. See Nagel et al., "Data-Free Quantization Through Weight Equalization and
 * Bias Correction", ICCV 2019, section 4.2 (here: the empirical form).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/cli.h"
#include "host/ops/parallel.h"
#include "quantize/calibrate.h"
#include "quantize/lower.h"
#include "quantize/runner.h"

struct layer {
    int node, value, depth;
    int64_t channels;
    double *want, *got; /* sums over samples and pixels, per channel */
    int64_t pixels;     /* summed into `want` */
};

struct correction {
    bw_graph *g;
    const bw_recipe *recipe;
    const bw_calibration *o;
    struct layer *layers;
    int layer_count, depth;
    int *layer_of;       /* value -> layer, -1 */
    int into_got;        /* which sums are being made */
    double seen, to_see; /* samples, over all runs */
    bw_error *err;
};

struct sums {
    const float *x;
    double *sum; /* per channel */
    int64_t batch, channels, pixels;
};

/* Each channel in the order of the samples: the batch leaves no trace in the sum. */
static void sum_channels(int64_t from, int64_t to, void *user)
{
    const struct sums *s = user;
    for (int64_t ch = from; ch < to; ch++)
        for (int64_t b = 0; b < s->batch; b++) {
            const float *x = s->x + (b * s->channels + ch) * s->pixels;
            for (int64_t p = 0; p < s->pixels; p++)
                s->sum[ch] += (double)x[p];
        }
}

static void add_sums(struct correction *c, int value, const bw_array *a)
{
    int i = c->layer_of[value];
    if (i < 0 || (c->into_got && c->layers[i].depth != c->depth))
        return;
    struct layer *l = &c->layers[i];
    int64_t pixels = 1;
    for (int d = 2; d < a->rank; d++)
        pixels *= a->dims[d];
    struct sums s = {a->data, c->into_got ? l->got : l->want, a->dims[0], l->channels, pixels};
    bw_parallel(l->channels, 1 + 65536 / (pixels * a->dims[0]), sum_channels, &s);
    if (!c->into_got)
        l->pixels += pixels * a->dims[0];
}

static int observe_float(int value, const bw_array *a, void *user)
{
    add_sums(user, value, a);
    return bw_cli_interrupted();
}

static void observe_quantized(int value, const bw_array *a, void *user)
{
    add_sums(user, value, a);
}

static bw_status find_layers(struct correction *c)
{
    bw_placement p;
    bw_status s = bw_place(c->g, c->recipe, &p, c->err);
    if (s)
        return s;
    int *depth = calloc((size_t)c->g->value_count + 1, sizeof *depth);
    c->layers = calloc((size_t)c->g->node_count + 1, sizeof *c->layers);
    c->layer_of = malloc(((size_t)c->g->value_count + 1) * sizeof *c->layer_of);
    if (!depth || !c->layers || !c->layer_of)
        s = bw_fail(c->err, BW_NO_MEMORY, "out of memory while correcting biases");
    for (int v = 0; !s && v <= c->g->value_count; v++)
        c->layer_of[v] = -1;
    for (int n = 0; n < c->g->node_count && !s; n++) {
        const bw_node *node = &c->g->nodes[n];
        const bw_match *m = &p.matches[n];
        int is_layer = (m->kind == BW_MATCH_CONV || m->kind == BW_MATCH_GEMM) && strcmp(node->op, "MatMul") != 0;
        int d = 0;
        for (int i = 0; i < node->input_count; i++)
            if (node->inputs[i] >= 0 && depth[node->inputs[i]] > d)
                d = depth[node->inputs[i]];
        for (int i = 0; i < node->output_count; i++)
            if (node->outputs[i] >= 0)
                depth[node->outputs[i]] = d + is_layer;
        if (!is_layer)
            continue;
        struct layer *l = &c->layers[c->layer_count];
        *l = (struct layer){.node = n, .value = node->outputs[0], .depth = d, .channels = m->w.outputs};
        l->want = calloc((size_t)l->channels, sizeof(double));
        l->got = calloc((size_t)l->channels, sizeof(double));
        c->layer_of[l->value] = c->layer_count++;
        if (!l->want || !l->got)
            s = bw_fail(c->err, BW_NO_MEMORY, "out of memory while correcting biases");
    }
    free(depth);
    bw_placement_free(&p);
    return s;
}

/* One pass over the samples: the float network (runner NULL) or the quantized one. */
static bw_status pass(struct correction *c, const bw_graph *g, bw_executor *ex, bw_runner *runner)
{
    int64_t fixed = c->g->values[c->g->inputs[0]].dims[0], step = bw_calibration_batch(c->g);
    int64_t count = bw_dataset_count(c->o->data);
    count = c->o->count > 0 && c->o->count < count ? c->o->count : count;
    count -= count % (fixed > 0 ? fixed : 1);
    bw_array *out = calloc((size_t)g->output_count + 1, sizeof *out);
    bw_status s = out ? BW_OK : bw_fail(c->err, BW_NO_MEMORY, "out of memory while correcting biases");
    for (int64_t at = 0; at < count && !s; at += step) {
        bw_array batch = {0};
        int64_t n = count - at < step ? count - at : step;
        s = bw_dataset_read(c->o->data, at, n, &batch, NULL, c->err);
        if (!s)
            s = runner ? bw_runner_run(runner, &batch, out, observe_quantized, c, c->err)
                       : bw_executor_run(ex, &batch, out, observe_float, c, c->err);
        for (int i = 0; i < g->output_count; i++)
            bw_array_free(&out[i]);
        bw_array_free(&batch);
        if (bw_cli_interrupted())
            s = bw_fail(c->err, BW_CANCELLED, "interrupted: nothing was written");
        c->seen += (double)n;
        bw_bar_step(c->o->progress, c->seen / c->to_see);
    }
    free(out);
    return s;
}

/* Runs the network compiled with the layers of this depth as outputs, so that their sums can be seen. */
static bw_status measure(struct correction *c)
{
    bw_graph *h = bw_graph_clone(c->g);
    int *ids = malloc(((size_t)c->g->output_count + (size_t)c->layer_count + 1) * sizeof *ids), count = 0;
    bw_compiled compiled = {0};
    bw_runner *runner = NULL;
    bw_status s = h && ids ? BW_OK : bw_fail(c->err, BW_NO_MEMORY, "out of memory while correcting biases");
    for (int i = 0; !s && i < c->g->output_count; i++)
        ids[count++] = c->g->outputs[i];
    for (int i = 0; !s && i < c->layer_count; i++) {
        int known = c->layers[i].depth != c->depth;
        for (int k = 0; k < c->g->output_count; k++)
            known |= c->g->outputs[k] == c->layers[i].value;
        if (!known)
            ids[count++] = c->layers[i].value;
    }
    if (!s)
        s = bw_graph_set_outputs(h, ids, count);
    if (!s && !(s = bw_compile(h, c->recipe, &compiled, c->err)) &&
        !(s = bw_runner_create(h, &compiled, &runner, c->err)))
        s = pass(c, h, NULL, runner);
    bw_runner_destroy(runner);
    bw_compiled_free(&compiled);
    bw_graph_free(h);
    free(ids);
    return s;
}

/* A bias of its own for the layer, less the mean error. */
static bw_status correct(struct correction *c, const struct layer *l)
{
    bw_node *node = &c->g->nodes[l->node];
    int old = node->input_count > 2 ? node->inputs[2] : -1;
    const bw_array *b = old >= 0 ? c->g->values[old].constant : NULL;
    int64_t given = b ? bw_array_count(b) : 0;
    float beta = !strcmp(node->op, "Gemm") ? bw_node_float(node, "beta", 1) : 1;
    bw_array fresh = {0};
    bw_status s = bw_array_alloc(&fresh, BW_F32, 1, &l->channels, c->err);
    if (s)
        return s;
    for (int64_t i = 0; i < l->channels; i++) {
        float was = given ? ((const float *)b->data)[given == 1 ? 0 : i] * beta : 0;
        ((float *)fresh.data)[i] = (float)((double)was - (l->got[i] - l->want[i]) / (double)l->pixels);
    }
    int v = bw_graph_add_constant(c->g, "", &fresh);
    bw_array_free(&fresh);
    node = &c->g->nodes[l->node];
    if (v >= 0 && node->input_count < 3) {
        int *more = realloc(node->inputs, 3 * sizeof *more);
        if (more) {
            node->inputs = more;
            node->input_count = 3;
        }
    }
    if (v < 0 || node->input_count < 3)
        return bw_fail(c->err, BW_NO_MEMORY, "out of memory while correcting biases");
    node->inputs[2] = v;
    return beta != 1 ? bw_node_set_float(node, "beta", 1) : BW_OK;
}

bw_status bw_correct_biases(bw_graph *g, const bw_recipe *recipe, const bw_calibration *options, int *corrected,
                            bw_error *err)
{
    *corrected = 0;
    if (g->input_count != 1 || g->values[g->inputs[0]].dtype != BW_F32)
        return bw_fail(err, BW_UNSUPPORTED, "network '%s' has %d inputs: bias correction needs exactly one of fp32",
                       g->name, g->input_count);
    struct correction c = {.g = g, .recipe = recipe, .o = options, .err = err};
    bw_executor *ex = NULL;
    bw_status s = find_layers(&c);
    int depths = 0;
    for (int i = 0; i < c.layer_count; i++)
        depths = c.layers[i].depth + 1 > depths ? c.layers[i].depth + 1 : depths;
    int64_t count = bw_dataset_count(options->data);
    count = options->count > 0 && options->count < count ? options->count : count;
    char note[96];
    snprintf(note, sizeof note, "correcting the biases of %d layers on %lld samples", c.layer_count, (long long)count);
    c.to_see = (double)count * (double)(depths + 1);
    bw_bar_enter(options->progress, BW_PHASE_CORRECT, note);
    unsigned char *any = malloc((size_t)g->value_count + 1);
    for (int v = 0; any && !s && v < g->value_count; v++)
        any[v] = c.layer_of[v] < 0;
    if (!s && !any)
        s = bw_fail(err, BW_NO_MEMORY, "out of memory while correcting biases");
    if (!s && !(s = bw_executor_create(g, &ex, err)) && !(s = bw_executor_observe_unordered(ex, any, err)))
        s = pass(&c, g, ex, NULL);
    free(any);
    bw_executor_destroy(ex);
    c.into_got = 1;
    for (c.depth = 0; c.depth < depths && !s; c.depth++) {
        s = measure(&c);
        for (int i = 0; i < c.layer_count && !s; i++)
            if (c.layers[i].depth == c.depth && c.layers[i].pixels > 0) {
                s = correct(&c, &c.layers[i]);
                *corrected += !s;
            }
    }
    for (int i = 0; i < c.layer_count; i++) {
        free(c.layers[i].want);
        free(c.layers[i].got);
    }
    free(c.layers);
    free(c.layer_of);
    return s;
}
