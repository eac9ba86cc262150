/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a compiled network stage by stage: device stages on the simulator, CPU stages in the executor. */
#include "quantize/runner.h"

#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "sim/sim.h"

struct bw_runner {
    const bw_graph *g;
    const bw_compiled *c;
    bw_program *programs;    /* per stage, empty for CPU stages */
    bw_fast **engines;       /* per stage, NULL for CPU stages */
    bw_executor **executors; /* per stage, NULL for device stages */
};

void bw_runner_destroy(bw_runner *r)
{
    if (!r)
        return;
    for (int i = 0; r->engines && i < r->c->stage_count; i++)
        bw_fast_destroy(r->engines[i]);
    for (int i = 0; r->executors && i < r->c->stage_count; i++)
        bw_executor_destroy(r->executors[i]);
    free(r->engines);
    free(r->programs);
    free(r->executors);
    free(r);
}

static bw_status load_device(bw_runner *r, int stage, bw_error *err)
{
    const bw_stage *st = &r->c->stages[stage];
    bw_program *p = &r->programs[stage];
    bw_status s = bw_program_parse(st->program, st->program_size, p, err);
    if (!s)
        s = bw_program_check_constants(p, st->constants, st->constants_size, err);
    return s ? s : bw_fast_create(p, st->constants, NULL, &r->engines[stage], err);
}

bw_status bw_runner_create(const bw_graph *g, const bw_compiled *c, bw_runner **runner, bw_error *err)
{
    bw_runner *r = calloc(1, sizeof *r);
    if (!r)
        return bw_fail(err, BW_NO_MEMORY, "out of memory for a runner");
    r->g = g;
    r->c = c;
    r->programs = calloc((size_t)c->stage_count + 1, sizeof *r->programs);
    r->engines = calloc((size_t)c->stage_count + 1, sizeof *r->engines);
    r->executors = calloc((size_t)c->stage_count + 1, sizeof *r->executors);
    bw_status s =
        r->programs && r->engines && r->executors ? BW_OK : bw_fail(err, BW_NO_MEMORY, "out of memory for a runner");
    for (int i = 0; i < c->stage_count && !s; i++)
        s = c->stages[i].device ? load_device(r, i, err)
                                : bw_executor_create(c->stages[i].graph, &r->executors[i], err);
    if (s)
        bw_runner_destroy(r);
    else
        *runner = r;
    return s;
}

/* [C][pixels] <-> [pixels][C] for one image. */
static void transpose(const float *from, float *to, int64_t rows, int64_t columns)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++)
            to[j * rows + i] = from[i * columns + j];
}

static int64_t pixels_of(const bw_stage_tensor *t)
{
    int64_t n = 1;
    for (int d = 2; d < t->rank; d++)
        n *= t->dims[d];
    return n;
}

static bw_status run_device(bw_runner *r, int stage, bw_array *values, int64_t batch, bw_error *err)
{
    const bw_stage *st = &r->c->stages[stage];
    const bw_program_header *h = r->programs[stage].header;
    char *in = bw_aligned_zalloc((size_t)batch * h->in_bytes + 64);
    char *out = bw_aligned_zalloc((size_t)batch * h->out_bytes + 64);
    bw_status s = in && out ? BW_OK : bw_fail(err, BW_NO_MEMORY, "out of memory for a batch of %lld", (long long)batch);
    for (int i = 0; i < st->input_count && !s; i++) {
        const bw_stage_tensor *t = &st->inputs[i];
        const bw_array *a = &values[bw_graph_find_value(r->g, t->name)];
        int64_t channels = t->dims[1], pixels = pixels_of(t);
        for (int64_t b = 0; b < batch; b++)
            transpose((const float *)a->data + b * channels * pixels,
                      (float *)(void *)(in + (size_t)b * h->in_bytes + t->offset), channels, pixels);
    }
    if (!s)
        s = bw_fast_run(r->engines[stage], in, out, (uint32_t)batch, NULL, err);
    for (int i = 0; i < st->output_count && !s; i++) {
        const bw_stage_tensor *t = &st->outputs[i];
        bw_array *a = &values[bw_graph_find_value(r->g, t->name)];
        int64_t dims[BW_RANK_MAX], channels = t->dims[1], pixels = pixels_of(t);
        memcpy(dims, t->dims, sizeof dims);
        dims[0] = batch;
        s = bw_array_alloc(a, BW_F32, t->rank, dims, err);
        for (int64_t b = 0; b < batch && !s; b++)
            transpose((const float *)(const void *)(out + (size_t)b * h->out_bytes + t->offset),
                      (float *)a->data + b * channels * pixels, pixels, channels);
    }
    free(in);
    free(out);
    return s;
}

static bw_status run_cpu(bw_runner *r, int stage, bw_array *values, bw_error *err)
{
    const bw_stage *st = &r->c->stages[stage];
    bw_array *in = calloc((size_t)st->input_count + 1, sizeof *in);
    bw_array *out = calloc((size_t)st->output_count + 1, sizeof *out);
    bw_status s = in && out ? BW_OK : bw_fail(err, BW_NO_MEMORY, "out of memory for a CPU stage");
    for (int i = 0; i < st->input_count && !s; i++)
        in[i] = values[bw_graph_find_value(r->g, st->inputs[i].name)];
    if (!s)
        s = bw_executor_run(r->executors[stage], in, out, NULL, NULL, err);
    for (int i = 0; i < st->output_count && !s; i++)
        values[bw_graph_find_value(r->g, st->outputs[i].name)] = out[i];
    free(in);
    free(out);
    return s;
}

void bw_runner_trim(bw_runner *r, size_t bytes)
{
    for (int i = 0; i < r->c->stage_count; i++)
        if (r->engines[i])
            bw_fast_trim(r->engines[i], bytes);
        else
            bw_executor_trim(r->executors[i], bytes);
}

static bw_status copy_out(const bw_array *from, bw_array *to, bw_error *err)
{
    bw_status s = bw_array_alloc(to, from->dtype, from->rank, from->dims, err);
    if (!s)
        memcpy(to->data, from->data, from->bytes);
    return s;
}

bw_status bw_runner_run(bw_runner *r, const bw_array *inputs, bw_array *outputs,
                        void (*observe)(int value, const bw_array *array, void *user), void *user, bw_error *err)
{
    const bw_graph *g = r->g;
    bw_array *values = calloc((size_t)g->value_count + 1, sizeof *values);
    if (!values)
        return bw_fail(err, BW_NO_MEMORY, "out of memory for a run");
    for (int i = 0; i < g->input_count; i++) {
        values[g->inputs[i]] = inputs[i];
        values[g->inputs[i]].owned = 0;
    }
    bw_status s = BW_OK;
    for (int i = 0; i < r->c->stage_count && !s; i++) {
        s = r->engines[i] ? run_device(r, i, values, inputs[0].dims[0], err) : run_cpu(r, i, values, err);
        for (int o = 0; observe && !s && o < r->c->stages[i].output_count; o++) {
            int v = bw_graph_find_value(g, r->c->stages[i].outputs[o].name);
            observe(v, &values[v], user);
        }
    }
    for (int i = 0; i < g->output_count && !s; i++)
        s = copy_out(&values[g->outputs[i]], &outputs[i], err);
    for (int v = 0; v < g->value_count; v++)
        bw_array_free(&values[v]);
    for (int i = 0; s && i < g->output_count; i++)
        bw_array_free(&outputs[i]);
    free(values);
    return s;
}
