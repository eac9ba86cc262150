/* SPDX-License-Identifier: Apache-2.0 */
/* Calibration: how far the compiled network is from the float one, on samples. */
#include "quantize/calibrate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/cli.h"
#include "quantize/range.h"
#include "quantize/runner.h"

#define BATCH_MAX    16
#define BATCH_FLOATS (2 << 20) /* of the largest value of a batch: memory stays bounded, and near the caches */
#define KEPT_BYTES   (8 << 20) /* of either network, while the other one runs: small ones need not fetch memory anew */

struct tensor_stats {
    double min, max;         /* of the float network */
    double signal, noise;    /* sums of squares, where the value was compared */
    double worst;            /* largest absolute error */
    int64_t seen, agree, of; /* samples; top-1 agreement among `of` */
};

struct session {
    const bw_graph *g;
    struct tensor_stats *stats; /* per value */
    bw_array *quantized;        /* per value: this batch's result at a stage border */
    int64_t float_hits, quantized_hits, labelled;
    const int64_t *labels;
    bw_error *err;
    bw_status failed;
};

/* Scores of `classes` classes per sample: [N, K] or [N, K, 1, 1], K >= 2, and no reconstruction of the input; else 0.
 */
static int64_t classes_of(const bw_graph *g, const bw_array *a)
{
    const bw_value *in = &g->values[g->inputs[0]];
    if (in->rank == a->rank &&
        !memcmp(in->dims + 1, a->dims + 1, (size_t)(a->rank > 0 ? a->rank - 1 : 0) * sizeof *a->dims))
        return 0;
    int64_t k = a->rank >= 2 ? a->dims[1] : 0;
    for (int d = 2; d < a->rank; d++)
        k = a->dims[d] == 1 ? k : 0;
    return a->dtype == BW_F32 && k >= 2 ? k : 0;
}

static int64_t top(const float *x, int64_t n)
{
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        best = x[i] > x[best] ? i : best;
    return best;
}

static void keep_quantized(int value, const bw_array *a, void *user)
{
    struct session *s = user;
    bw_array *to = &s->quantized[value];
    bw_array_free(to);
    if (s->failed || a->dtype != BW_F32)
        return;
    s->failed = bw_array_alloc(to, a->dtype, a->rank, a->dims, s->err);
    if (!s->failed)
        memcpy(to->data, a->data, a->bytes);
}

static void compare(struct session *s, int value, const bw_array *want, const bw_array *got)
{
    struct tensor_stats *t = &s->stats[value];
    const float *x = want->data, *y = got->data;
    int64_t n = bw_array_count(want), batch = want->dims[0], classes = classes_of(s->g, want);
    for (int64_t i = 0; i < n; i++) {
        double e = (double)y[i] - (double)x[i];
        t->signal += (double)x[i] * (double)x[i];
        t->noise += e * e;
        t->worst = fabs(e) > t->worst ? fabs(e) : t->worst;
    }
    int is_output = s->g->output_count > 0 && s->g->outputs[0] == value;
    for (int64_t b = 0; b < batch && classes; b++) {
        int64_t a = top(x + b * classes, classes), q = top(y + b * classes, classes);
        t->of++;
        t->agree += a == q;
        if (is_output && s->labels && s->labels[b] >= 0) {
            s->labelled++;
            s->float_hits += a == s->labels[b];
            s->quantized_hits += q == s->labels[b];
        }
    }
}

/* Of a Relu's output without looking: what its input has reached, bent. 0: it must be looked at. */
static int bend_range(struct session *s, int value)
{
    int producer = s->g->values[value].producer;
    if (producer < 0 || strcmp(s->g->nodes[producer].op, "Relu") != 0 || s->g->nodes[producer].inputs[0] < 0)
        return 0;
    const struct tensor_stats *x = &s->stats[s->g->nodes[producer].inputs[0]];
    struct tensor_stats *t = &s->stats[value];
    if (!x->seen)
        return 0;
    t->min = x->min > 0 ? x->min : 0;
    t->max = x->max > 0 ? x->max : 0;
    return 1;
}

/* Sees every value of the float network; in row-major order those that `quantized` has too. */
static int observe_float(int value, const bw_array *a, void *user)
{
    struct session *s = user;
    if (a->dtype != BW_F32)
        return bw_cli_interrupted();
    struct tensor_stats *t = &s->stats[value];
    if (!bend_range(s, value)) {
        bw_range r = bw_range_of(a->data, bw_array_count(a));
        double lo = (double)r.min, hi = (double)r.max;
        if (!r.finite) {
            s->failed =
                bw_fail(s->err, BW_NOT_FINITE,
                        "value '%s' of the float network is NaN or infinite on the calibration samples: check the "
                        "pre-processing",
                        s->g->values[value].name);
            return 1;
        }
        t->min = !t->seen || lo < t->min ? lo : t->min;
        t->max = !t->seen || hi > t->max ? hi : t->max;
    }
    t->seen += a->rank > 0 ? a->dims[0] : 1;
    if (s->quantized[value].data && s->quantized[value].bytes == a->bytes)
        compare(s, value, a, &s->quantized[value]);
    return bw_cli_interrupted();
}

json_t *bw_quality_number(double v)
{
    char text[32];
    snprintf(text, sizeof text, "%.4g", v);
    return json_real(strtod(text, NULL));
}

static json_t *sqnr(const struct tensor_stats *t)
{
    return t->noise > 0 && t->signal > 0 ? bw_quality_number(10 * log10(t->signal / t->noise)) : json_null();
}

static int is_border(const bw_compiled *c, const char *name)
{
    for (int i = 0; i < c->stage_count; i++)
        for (int o = 0; o < c->stages[i].output_count; o++)
            if (!strcmp(c->stages[i].outputs[o].name, name))
                return 1;
    return 0;
}

static json_t *report(const struct session *s, const bw_compiled *c, int64_t samples, const char *data_name)
{
    json_t *outputs = json_array(), *tensors = json_array();
    for (int i = 0; i < s->g->output_count; i++) {
        const struct tensor_stats *t = &s->stats[s->g->outputs[i]];
        json_t *o = json_pack("{s:s, s:o, s:o}", "name", s->g->values[s->g->outputs[i]].name, "sqnr_db", sqnr(t),
                              "max_abs_error", bw_quality_number(t->worst));
        if (t->of)
            json_object_set_new(o, "top1_agreement", bw_quality_number((double)t->agree / (double)t->of));
        json_array_append_new(outputs, o);
    }
    for (int v = 0; v < s->g->value_count; v++) {
        const struct tensor_stats *t = &s->stats[v];
        if (!t->seen || s->g->values[v].dtype != BW_F32)
            continue;
        json_t *o = json_pack("{s:s, s:o, s:o}", "name", s->g->values[v].name, "min", bw_quality_number(t->min), "max",
                              bw_quality_number(t->max));
        if (is_border(c, s->g->values[v].name))
            json_object_set_new(o, "sqnr_db", sqnr(t));
        json_array_append_new(tensors, o);
    }
    json_t *weights = json_array();
    for (int i = 0; i < c->stage_count; i++)
        for (int k = 0; k < c->stages[i].weight_count; k++) {
            const bw_weight_error *w = &c->stages[i].weights[k];
            struct tensor_stats t = {.signal = w->signal, .noise = w->noise};
            json_array_append_new(weights, json_pack("{s:s, s:o}", "name", w->name, "sqnr_db", sqnr(&t)));
        }
    json_t *q = json_pack("{s:I, s:s, s:o, s:o, s:o}", "samples", (json_int_t)samples, "data", data_name, "outputs",
                          outputs, "tensors", tensors, "weights", weights);
    if (q && s->labelled)
        json_object_set_new(q, "accuracy",
                            json_pack("{s:o, s:o}", "float_top1",
                                      bw_quality_number((double)s->float_hits / (double)s->labelled), "quantized_top1",
                                      bw_quality_number((double)s->quantized_hits / (double)s->labelled)));
    return q;
}

/* Only what is compared element by element must come row by row. */
static bw_status take_unordered(const bw_graph *g, const bw_compiled *c, bw_executor *ex, bw_error *err)
{
    unsigned char *any = malloc((size_t)g->value_count + 1);
    if (!any)
        return bw_fail(err, BW_NO_MEMORY, "out of memory while calibrating");
    for (int v = 0; v < g->value_count; v++)
        any[v] = !is_border(c, g->values[v].name);
    bw_status s = bw_executor_observe_unordered(ex, any, err);
    free(any);
    return s;
}

static bw_status run_batch(struct session *s, bw_runner *runner, bw_executor *ex, const bw_array *batch)
{
    bw_array *out = calloc((size_t)s->g->output_count + 1, sizeof *out);
    if (!out)
        return bw_fail(s->err, BW_NO_MEMORY, "out of memory while calibrating");
    bw_status status = bw_runner_run(runner, batch, out, keep_quantized, s, s->err);
    for (int i = 0; i < s->g->output_count; i++)
        bw_array_free(&out[i]);
    bw_runner_trim(runner, KEPT_BYTES);
    if (!status)
        status = s->failed;
    if (!status) {
        status = bw_executor_run(ex, batch, out, observe_float, s, s->err);
        bw_executor_trim(ex, KEPT_BYTES);
        for (int i = 0; i < s->g->output_count; i++)
            bw_array_free(&out[i]);
        if (s->failed)
            status = s->failed;
        else if (status == BW_CANCELLED)
            status = bw_fail(s->err, BW_CANCELLED, "interrupted: nothing was written");
    }
    free(out);
    return status;
}

int64_t bw_calibration_batch(const bw_graph *g)
{
    int64_t largest = 1, fixed = g->values[g->inputs[0]].dims[0];
    for (int v = 0; v < g->value_count; v++) {
        const bw_value *x = &g->values[v];
        int64_t n = 1;
        for (int d = 1; d < x->rank && n < BATCH_FLOATS && !x->constant; d++)
            n *= x->dims[d] > 0 ? x->dims[d] : 1;
        largest = n > largest ? n : largest;
    }
    int64_t step = BATCH_FLOATS / largest;
    return fixed > 0 ? fixed : step < 1 ? 1 : step > BATCH_MAX ? BATCH_MAX : step;
}

bw_status bw_calibrate(bw_graph *g, const bw_compiled *c, const bw_calibration *o, json_t **quality, bw_error *err)
{
    if (g->input_count != 1 || g->values[g->inputs[0]].dtype != BW_F32)
        return bw_fail(err, BW_UNSUPPORTED, "network '%s' has %d inputs: calibration needs exactly one of fp32",
                       g->name, g->input_count);
    int64_t count = bw_dataset_count(o->data), fixed = g->values[g->inputs[0]].dims[0];
    count = o->count > 0 && o->count < count ? o->count : count;
    int64_t step = bw_calibration_batch(g);
    if (count < 1 || (fixed > 1 && (count -= count % fixed) < 1))
        return bw_fail(err, BW_INVALID_ARGUMENT, "%s: not enough samples to calibrate with", o->data_name);
    struct session s = {.g = g,
                        .stats = calloc((size_t)g->value_count + 1, sizeof *s.stats),
                        .quantized = calloc((size_t)g->value_count + 1, sizeof *s.quantized),
                        .err = err};
    bw_runner *runner = NULL;
    bw_executor *ex = NULL;
    int64_t *labels = malloc((size_t)step * sizeof *labels);
    bw_status status =
        s.stats && s.quantized && labels ? BW_OK : bw_fail(err, BW_NO_MEMORY, "out of memory while calibrating");
    if (!status && !(status = bw_runner_create(g, c, &runner, err)))
        status = bw_executor_create(g, &ex, err);
    if (!status && !(status = take_unordered(g, c, ex, err)))
        bw_executor_take_weights(ex, g);
    char note[96];
    snprintf(note, sizeof note, "calibrating on %lld samples", (long long)count);
    bw_bar_enter(o->progress, BW_PHASE_CALIBRATE, note);
    s.labels = bw_dataset_has_labels(o->data) ? labels : NULL;
    for (int64_t at = 0; at < count && !status; at += step) {
        bw_array batch = {0};
        int64_t n = count - at < step ? count - at : step;
        status = bw_dataset_read(o->data, at, n, &batch, labels, err);
        if (!status)
            status = run_batch(&s, runner, ex, &batch);
        bw_array_free(&batch);
        bw_bar_step(o->progress, (double)(at + n) / (double)count);
    }
    if (!status && !(*quality = report(&s, c, count, o->data_name)))
        status = bw_fail(err, BW_NO_MEMORY, "out of memory while calibrating");
    bw_runner_destroy(runner);
    bw_executor_destroy(ex);
    for (int v = 0; s.quantized && v < g->value_count; v++)
        bw_array_free(&s.quantized[v]);
    free(s.stats);
    free(s.quantized);
    free(labels);
    return status;
}
