/* SPDX-License-Identifier: Apache-2.0 */
/* The length of blocks for a network, by trial. */
#include "quantize/choose_block.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/cli.h"
#include "quantize/lower.h"
#include "quantize/runner.h"

#define OUTPUT_BYTES (32 << 20) /* of the float network, kept for the trials */

struct trials {
    const bw_graph *g;
    const bw_calibration *o;
    int64_t count, step; /* samples, and how many at a time */
    bw_array *want;      /* per batch and output */
    size_t want_count;
    double *noise, *limit; /* per output: of the trial, and what is allowed */
    double *signal;
    double seen, to_see;
    bw_error *err;
};

static bw_status no_memory(bw_error *err)
{
    return bw_fail(err, BW_NO_MEMORY, "out of memory while choosing a block");
}

/* BW_BLOCK_SAMPLES, fewer if their outputs are large, but whole batches where the network fixes one. */
static int64_t sample_count(const bw_graph *g, const bw_calibration *o, int64_t step)
{
    const int fixed = g->values[g->inputs[0]].dims[0] > 0;
    int64_t have = bw_dataset_count(o->data), most = BW_BLOCK_SAMPLES, bytes = 1;
    have = o->count > 0 && o->count < have ? o->count : have;
    for (int i = 0; i < g->output_count; i++) {
        const bw_value *v = &g->values[g->outputs[i]];
        int64_t n = sizeof(float);
        for (int d = 1; d < v->rank && n < OUTPUT_BYTES; d++)
            n *= v->dims[d] > 0 ? v->dims[d] : 1;
        bytes += n;
    }
    most = most > OUTPUT_BYTES / bytes + 1 ? OUTPUT_BYTES / bytes + 1 : most;
    most = fixed && most < step ? step : most;
    most = have < most ? have : most;
    return fixed ? most - most % step : most;
}

/* All samples through the float network (ex), which leaves its outputs in t->want, or through a compiled one, compared
 * with those. */
static bw_status pass(struct trials *t, bw_executor *ex, bw_runner *runner)
{
    const int outputs = t->g->output_count;
    bw_array *got = calloc((size_t)outputs + 1, sizeof *got);
    bw_status s = got ? BW_OK : no_memory(t->err);
    for (int64_t at = 0, b = 0; at < t->count && !s; at += t->step, b++) {
        bw_array batch = {0}, *want = t->want + b * outputs;
        int64_t n = t->count - at < t->step ? t->count - at : t->step;
        s = bw_dataset_read(t->o->data, at, n, &batch, NULL, t->err);
        if (!s)
            s = ex ? bw_executor_run(ex, &batch, want, NULL, NULL, t->err)
                   : bw_runner_run(runner, &batch, got, NULL, NULL, t->err);
        for (int i = 0; i < outputs && !s && !ex; i++) {
            const float *x = want[i].data, *y = got[i].data;
            for (int64_t k = want[i].dtype == BW_F32 ? bw_array_count(&want[i]) : 0; k-- > 0; x++, y++) {
                t->signal[i] += (double)*x * (double)*x;
                t->noise[i] += ((double)*y - (double)*x) * ((double)*y - (double)*x);
            }
        }
        for (int i = 0; i < outputs; i++)
            bw_array_free(&got[i]);
        bw_array_free(&batch);
        if (!s && bw_cli_interrupted())
            s = bw_fail(t->err, BW_CANCELLED, "interrupted: nothing was written");
        t->seen += (double)n;
        bw_bar_step(t->o->progress, t->seen / t->to_see);
    }
    free(got);
    return s;
}

static bw_status run_float(struct trials *t)
{
    bw_executor *ex = NULL;
    bw_status s = bw_executor_create(t->g, &ex, t->err);
    if (!s)
        s = pass(t, ex, NULL);
    bw_executor_destroy(ex);
    return s;
}

/* One length: leaves the noise of each output, and notes the worst ratio. */
static bw_status try_block(struct trials *t, uint16_t block, bw_recipe *r, bw_block_choice *choice)
{
    bw_compiled c = {0};
    bw_runner *runner = NULL;
    memset(t->noise, 0, (size_t)t->g->output_count * sizeof *t->noise);
    memset(t->signal, 0, (size_t)t->g->output_count * sizeof *t->signal);
    r->block = block;
    bw_status s = bw_compile(t->g, r, &c, t->err);
    if (!s && !(s = bw_runner_create(t->g, &c, &runner, t->err)))
        s = pass(t, NULL, runner);
    bw_runner_destroy(runner);
    bw_compiled_free(&c);
    double worst = INFINITY;
    for (int i = 0; i < t->g->output_count && !s; i++) {
        if (!isfinite(t->signal[i]) || !isfinite(t->noise[i]))
            s = bw_fail(t->err, BW_NOT_FINITE,
                        "output '%s' is NaN or infinite on the samples, in blocks of %u: check the pre-processing",
                        t->g->values[t->g->outputs[i]].name, block);
        else if (t->noise[i] > 0)
            worst = fmin(worst, 10 * log10(t->signal[i] / t->noise[i]));
    }
    bw_block_trial *trial = &choice->tried[choice->count++];
    *trial = (bw_block_trial){block, worst};
    return s;
}

static bw_status choose(struct trials *t, bw_recipe *r, double loss_db, bw_block_choice *choice)
{
    uint16_t shortest = 16, longest = 128;
    while (shortest < longest && !bw_blocks_exist(r, shortest))
        shortest *= 2;
    while (longest > shortest && !bw_blocks_exist(r, longest))
        longest /= 2;
    bw_status s = try_block(t, shortest, r, choice);
    for (int i = 0; i < t->g->output_count; i++)
        t->limit[i] = t->noise[i] * pow(10, loss_db / 10);
    for (uint16_t block = longest; block > shortest && !s; block /= 2) {
        s = try_block(t, block, r, choice);
        int good = !s;
        for (int i = 0; i < t->g->output_count; i++)
            good &= t->noise[i] <= t->limit[i];
        if (good)
            return BW_OK;
    }
    r->block = shortest;
    return s;
}

bw_status bw_choose_block(const bw_graph *g, bw_recipe *recipe, double loss_db, const bw_calibration *o,
                          bw_block_choice *choice, bw_error *err)
{
    if (g->input_count != 1 || g->values[g->inputs[0]].dtype != BW_F32)
        return bw_fail(err, BW_UNSUPPORTED, "network '%s' has %d inputs: choosing a block needs exactly one of fp32",
                       g->name, g->input_count);
    int floats = 0;
    for (int i = 0; i < g->output_count; i++)
        floats += g->values[g->outputs[i]].dtype == BW_F32;
    if (!floats)
        return bw_fail(err, BW_UNSUPPORTED,
                       "network '%s' has no fp32 output by which to choose a block: name one with --block", g->name);
    const int64_t step = bw_calibration_batch(g), count = sample_count(g, o, step);
    const size_t outputs = (size_t)g->output_count;
    if (count < 1)
        return bw_fail(err, BW_INVALID_ARGUMENT, "%s: %lld samples, choosing a block needs %lld: give --calib more",
                       o->data_name, (long long)bw_dataset_count(o->data),
                       (long long)(g->values[g->inputs[0]].dims[0] > 0 ? step : 1));
    *choice = (bw_block_choice){.samples = count};
    struct trials t = {.g = g,
                       .o = o,
                       .count = count,
                       .step = step,
                       .want_count = (size_t)((count + step - 1) / step) * outputs,
                       .to_see = (double)count * (1 + BW_BLOCK_TRIALS),
                       .err = err};
    t.want = calloc(t.want_count + 1, sizeof *t.want);
    t.noise = calloc(outputs + 1, sizeof *t.noise);
    t.limit = calloc(outputs + 1, sizeof *t.limit);
    t.signal = calloc(outputs + 1, sizeof *t.signal);
    bw_status s = t.want && t.noise && t.limit && t.signal ? BW_OK : no_memory(err);
    char note[96];
    snprintf(note, sizeof note, "choosing a block on %lld samples", (long long)count);
    bw_bar_enter(o->progress, BW_PHASE_CHOOSE, note);
    if (!s)
        s = run_float(&t);
    if (!s)
        s = choose(&t, recipe, loss_db, choice);
    for (size_t i = 0; t.want && i < t.want_count; i++)
        bw_array_free(&t.want[i]);
    free(t.want);
    free(t.noise);
    free(t.limit);
    free(t.signal);
    return s;
}
