/* SPDX-License-Identifier: Apache-2.0 */
/* The manifest and the sections of a package, from a compiled network. */
#include "quantize/manifest.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/cli.h"
#include "host/package.h"

int bw_model_name_ok(const char *name)
{
    size_t n = strlen(name);
    return n >= 1 && n <= 128 && strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-") == n;
}

int bw_model_version_ok(const char *version)
{
    size_t n = strlen(version);
    return n >= 1 && n <= 18 && strspn(version, "0123456789") == n;
}

static json_t *shape_json(int rank, const int64_t *dims)
{
    json_t *a = json_array();
    for (int d = 0; d < rank; d++)
        json_array_append_new(a, json_integer(dims[d]));
    return a;
}

static json_t *io_json(const bw_graph *g, const int *ids, int count)
{
    json_t *a = json_array();
    for (int i = 0; i < count; i++) {
        const bw_value *v = &g->values[ids[i]];
        json_array_append_new(a, json_pack("{s:s, s:s, s:o}", "name", v->name, "dtype", bw_dtype_name(v->dtype),
                                           "shape", shape_json(v->rank, v->dims)));
    }
    return a;
}

static json_t *border_json(const bw_stage *s, const bw_stage_tensor *tensors, int count)
{
    json_t *a = json_array();
    for (int i = 0; i < count; i++)
        json_array_append_new(a, s->device ? json_pack("{s:s, s:I, s:o}", "name", tensors[i].name, "offset",
                                                       (json_int_t)tensors[i].offset, "shape",
                                                       shape_json(tensors[i].rank, tensors[i].dims))
                                           : json_string(tensors[i].name));
    return a;
}

/* Sections, and the strings and buffers that they point to. */
struct sections {
    bw_package_section_in *list;
    size_t count;
    void **owned;
    size_t owned_count;
};

static const char *add_section(struct sections *s, int stage, const char *file, const void *bytes, size_t size)
{
    char name[64];
    snprintf(name, sizeof name, "stage%d/%s", stage, file);
    char *copy = strdup(name);
    if (!copy)
        return NULL;
    s->owned[s->owned_count++] = copy;
    s->list[s->count++] = (bw_package_section_in){copy, bytes, size};
    return copy;
}

static json_t *stage_json(const bw_stage *st, int index, struct sections *s, bw_error *err)
{
    const char *what, *constants;
    if (st->device) {
        what = add_section(s, index, "program.bin", st->program, st->program_size);
        constants = add_section(s, index, "constants.bin", st->constants, st->constants_size);
    } else {
        char *text = NULL;
        void *blob = NULL;
        size_t blob_size = 0;
        if (bw_graph_write(st->graph, &text, &blob, &blob_size, err))
            return NULL;
        s->owned[s->owned_count++] = text;
        s->owned[s->owned_count++] = blob;
        what = add_section(s, index, "graph.json", text, strlen(text));
        constants = add_section(s, index, "constants.bin", blob, blob_size);
    }
    if (!what || !constants) {
        bw_fail(err, BW_NO_MEMORY, "out of memory for the manifest");
        return NULL;
    }
    json_t *layers = st->device ? json_array() : NULL;
    for (int i = 0; i < st->layer_count; i++) {
        json_t *name = json_string(st->layers[i]);
        json_array_append_new(layers, name ? name : json_string("")); /* informative: not worth a failure */
    }
    return json_pack("{s:s, s:s, s:s, s:o, s:o, s:o*}", "kind", st->device ? "device" : "cpu",
                     st->device ? "program" : "graph", what, "constants", constants, "inputs",
                     border_json(st, st->inputs, st->input_count), "outputs",
                     border_json(st, st->outputs, st->output_count), "layers", layers);
}

static json_t *requirements_json(const bw_compiled *c)
{
    bw_requirements all = {.isa_version = BW_ISA_VERSION};
    for (int i = 0; i < c->stage_count; i++) {
        bw_program p;
        if (!c->stages[i].device || bw_program_parse(c->stages[i].program, c->stages[i].program_size, &p, NULL))
            continue;
        all.formats |= p.needs.formats;
        all.opcodes |= p.needs.opcodes;
        all.blocks |= p.needs.blocks;
        all.act_bytes = p.needs.act_bytes > all.act_bytes ? p.needs.act_bytes : all.act_bytes;
        all.const_bytes += p.needs.const_bytes;
    }
    json_t *formats = json_array(), *opcodes = json_array(), *blocks = json_array();
    for (int f = 0; f < BW_FORMAT_LIMIT; f++)
        if (all.formats >> f & 1 && bw_format_get((bw_format)f))
            json_array_append_new(formats, json_string(bw_format_get((bw_format)f)->name));
    for (unsigned o = 0; o < BW_OP_LIMIT; o++)
        if (all.opcodes >> o & 1)
            json_array_append_new(opcodes, json_string(bw_opcode_name(o)));
    for (int b = 0; b < 4; b++)
        if (all.blocks >> b & 1)
            json_array_append_new(blocks, json_integer(16 << b));
    return json_pack("{s:i, s:o, s:o, s:o, s:I, s:I}", "isa_version", (int)all.isa_version, "formats", formats,
                     "opcodes", opcodes, "blocks", blocks, "act_bytes", (json_int_t)all.act_bytes, "const_bytes",
                     (json_int_t)all.const_bytes);
}

static json_t *features_json(const bw_compiled *c)
{
    json_t *a = json_array();
    for (int i = c->stage_count - 1; i >= 0; i--) {
        if (!c->stages[i].device)
            continue;
        for (int o = 0; o < c->stages[i].output_count; o++)
            json_array_append_new(a, json_string(c->stages[i].outputs[o].name));
        break;
    }
    return a;
}

static json_t *manifest_json(const bw_manifest_source *m, json_t *stages)
{
    const bw_recipe *r = &m->recipe->core;
    json_t *numerics =
        json_pack("{s:s, s:s, s:s, s:i, s:s, s:s, s:s}", "weights", bw_format_get(r->weights)->name, "activations",
                  bw_format_get(r->activations)->name, "vector", bw_format_get(r->vector)->name, "block", (int)r->block,
                  "rounding", "even", "scale_rule", r->scale_rule == BW_SCALE_MSE ? "mse" : "floor", "first_last",
                  r->first_last_float ? "float" : "narrow");
    json_t *provenance = json_pack("{s:s, s:s, s:I, s:s, s:o, s:s}", "source_file", m->source_file, "source_sha256",
                                   m->info->sha256, "opset", (json_int_t)m->info->opset, "producer", m->info->producer,
                                   "recipe", bw_recipe_to_json(m->recipe), "tool", "blockwave " BW_VERSION);
    json_t *j =
        json_pack("{s:{s:s, s:s}, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "model", "name", m->name, "version", m->version,
                  "inputs", io_json(m->g, m->g->inputs, m->g->input_count), "outputs",
                  io_json(m->g, m->g->outputs, m->g->output_count), "numerics", numerics, "stages", stages, "features",
                  features_json(m->compiled), "requirements", requirements_json(m->compiled), "provenance", provenance);
    if (j && m->preprocess)
        json_object_set(j, "preprocess", m->preprocess);
    if (j && m->labels)
        json_object_set(j, "labels", m->labels);
    if (j && m->quality)
        json_object_set(j, "quality", m->quality);
    return j;
}

static bw_status check_io(const bw_graph *g, const int *ids, int count, const char *what, bw_error *err)
{
    for (int i = 0; i < count; i++)
        if (g->values[ids[i]].dtype != BW_F32)
            return bw_fail(err, BW_UNSUPPORTED, "%s '%s' of the network is %s: packages take and give fp32 only", what,
                           g->values[ids[i]].name, bw_dtype_name(g->values[ids[i]].dtype));
    return BW_OK;
}

bw_status bw_package_from_compiled(const bw_manifest_source *m, const char *path, bw_error *err)
{
    bw_status bad = check_io(m->g, m->g->inputs, m->g->input_count, "input", err);
    if (bad || (bad = check_io(m->g, m->g->outputs, m->g->output_count, "output", err)))
        return bad;
    size_t stages = (size_t)m->compiled->stage_count;
    struct sections s = {.list = calloc(stages * 2 + 1, sizeof *s.list),
                         .owned = calloc(stages * 4 + 1, sizeof *s.owned)};
    json_t *list = json_array(), *manifest = NULL;
    bw_status status = s.list && s.owned && list ? BW_OK : bw_fail(err, BW_NO_MEMORY, "out of memory for the manifest");
    for (int i = 0; i < m->compiled->stage_count && !status; i++) {
        bw_error why = {.status = BW_NO_MEMORY, .message = "out of memory for the manifest"};
        json_t *stage = stage_json(&m->compiled->stages[i], i, &s, &why);
        if (!stage || json_array_append_new(list, stage))
            status = bw_fail(err, why.status, "%s", why.message);
    }
    if (!status && !(manifest = manifest_json(m, json_incref(list))))
        status = bw_fail(err, BW_NO_MEMORY, "out of memory for the manifest, or a name in the model is not UTF-8");
    if (!status)
        status = bw_package_write(path, manifest, s.list, s.count, err);
    json_decref(manifest);
    json_decref(list);
    for (size_t i = 0; i < s.owned_count; i++)
        free(s.owned[i]);
    free(s.owned);
    free(s.list);
    return status;
}
