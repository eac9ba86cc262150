/* SPDX-License-Identifier: Apache-2.0 */
/* Manifest to plan (docs/package.md has the schema). */
#include "host/session_plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STAGES_MAX     1024
#define TENSORS_MAX    4096
#define VALUE_NAME_MAX 1024
#define DIM_MAX        (INT64_C(1) << 40)

const char *bw_shape_text(int rank, const int64_t *dims, char *buf, size_t size)
{
    size_t at = (size_t)snprintf(buf, size, "[");
    for (int i = 0; i < rank && at < size; i++)
        at += (size_t)snprintf(buf + at, size - at, i ? ", %" PRId64 : "%" PRId64, dims[i]);
    if (at < size)
        snprintf(buf + at, size - at, "]");
    return buf;
}

void bw_plan_free(bw_plan *p)
{
    for (int i = 0; p->stages && i < p->stage_count; i++) {
        bw_graph_free(p->stages[i].graph);
        free(p->stages[i].inputs);
        free(p->stages[i].outputs);
    }
    free(p->stages);
    free(p->values);
    free(p->inputs);
    free(p->outputs);
    free(p->features);
    free(p->output_values);
    free(p->feature_values);
    json_decref(p->index);
    memset(p, 0, sizeof *p);
}

static bw_status no_memory(bw_error *err)
{
    return bw_fail(err, BW_NO_MEMORY, "no memory for a session");
}

/* A required list of at most `limit` entries. */
static bw_status get_list(const json_t *object, const char *where, const char *key, size_t limit, const json_t **list,
                          bw_error *err)
{
    *list = json_object_get(object, key);
    if (!json_is_array(*list))
        return bw_fail(err, BW_CORRUPT, "manifest: %s\"%s\" is not a list", where, key);
    if (json_array_size(*list) > limit)
        return bw_fail(err, BW_CORRUPT, "manifest: %s\"%s\" has %zu entries, at most %zu are accepted", where, key,
                       json_array_size(*list), limit);
    return BW_OK;
}

static bw_status get_name(const json_t *v, const char *where, const char **name, bw_error *err)
{
    *name = json_string_value(v);
    if (!*name || json_string_length(v) == 0 || json_string_length(v) > VALUE_NAME_MAX ||
        strlen(*name) != json_string_length(v))
        return bw_fail(err, BW_CORRUPT, "manifest: %s has no name of 1 to %d characters", where, VALUE_NAME_MAX);
    return BW_OK;
}

/* dims[0] may be -1; all others are 0 or more. */
static bw_status get_shape(const json_t *v, const char *name, int rank_max, int *rank, int64_t *dims, bw_error *err)
{
    if (!json_is_array(v) || json_array_size(v) > (size_t)rank_max)
        return bw_fail(err, BW_CORRUPT, "manifest: '%s' has no \"shape\" of at most %d numbers", name, rank_max);
    *rank = (int)json_array_size(v);
    for (int i = 0; i < *rank; i++) {
        const json_t *d = json_array_get(v, (size_t)i);
        dims[i] = json_is_integer(d) ? json_integer_value(d) : -2;
        if (dims[i] < (i ? 0 : -1) || dims[i] > DIM_MAX)
            return bw_fail(err, BW_CORRUPT,
                           "manifest: \"shape\" of '%s', dimension %d: expected a number from 0 to 2^40%s", name, i,
                           i ? "" : " or -1");
    }
    return BW_OK;
}

static int find_value(const bw_plan *p, const char *name)
{
    const json_t *at = json_object_get(p->index, name);
    return at ? (int)json_integer_value(at) : -1;
}

static bw_status add_value(bw_plan *p, const char *name, bw_dtype dtype, int rank, const int64_t *dims, bw_error *err)
{
    if (find_value(p, name) >= 0)
        return bw_fail(err, BW_CORRUPT, "manifest: value '%s' is produced twice", name);
    if (p->value_count == p->value_capacity) {
        int capacity = p->value_capacity ? 2 * p->value_capacity : 16;
        bw_plan_value *grown = realloc(p->values, (size_t)capacity * sizeof *grown);
        if (!grown)
            return no_memory(err);
        p->values = grown;
        p->value_capacity = capacity;
    }
    bw_plan_value *v = &p->values[p->value_count];
    memset(v, 0, sizeof *v);
    v->name = name;
    v->dtype = dtype;
    v->rank = rank;
    v->last_use = -1;
    for (int i = 0; i < rank; i++)
        v->dims[i] = dims[i];
    if (json_object_set_new(p->index, name, json_integer(p->value_count)))
        return bw_fail(err, BW_CORRUPT, "manifest: value name '%s' is not legal UTF-8", name);
    p->value_count++;
    return BW_OK;
}

static bw_status get_dtype(const json_t *v, const char *name, bw_dtype *dtype, bw_error *err)
{
    const char *text = json_string_value(v);
    for (int d = BW_F32; text && d <= BW_BOOL; d++) {
        if (strcmp(bw_dtype_name((bw_dtype)d), text) == 0) {
            *dtype = (bw_dtype)d;
            return BW_OK;
        }
    }
    return bw_fail(err, BW_CORRUPT, "manifest: '%s' has dtype '%s', expected \"fp32\" or another dense one", name,
                   text ? text : "(absent)");
}

static bw_status read_ios(const bw_package *pkg, const char *key, bw_io **ios, int *count, bw_error *err)
{
    const json_t *list;
    bw_status status = get_list(bw_package_manifest(pkg), "", key, TENSORS_MAX, &list, err);
    if (status)
        return status;
    if (json_array_size(list) == 0)
        return bw_fail(err, BW_CORRUPT, "manifest: \"%s\" is empty", key);
    *ios = calloc(json_array_size(list), sizeof **ios);
    if (!*ios)
        return no_memory(err);
    *count = (int)json_array_size(list);
    for (int i = 0; i < *count && !status; i++) {
        const json_t *entry = json_array_get(list, (size_t)i);
        bw_io *io = &(*ios)[i];
        status = get_name(json_object_get(entry, "name"), key, &io->name, err);
        if (!status)
            status = get_dtype(json_object_get(entry, "dtype"), io->name, &io->dtype, err);
        if (!status)
            status = get_shape(json_object_get(entry, "shape"), io->name, BW_RANK_MAX, &io->rank, io->dims, err);
    }
    return status;
}

static bw_status alloc_tensors(const json_t *stage, const char *where, const char *key, const json_t **list,
                               bw_plan_tensor **tensors, int *count, bw_error *err)
{
    bw_status status = get_list(stage, where, key, TENSORS_MAX, list, err);
    if (status)
        return status;
    *tensors = calloc(json_array_size(*list) + 1, sizeof **tensors);
    if (!*tensors)
        return no_memory(err);
    *count = (int)json_array_size(*list);
    return BW_OK;
}

static bw_status use_value(bw_plan *p, int stage, const char *name, int *value, bw_error *err)
{
    *value = find_value(p, name);
    if (*value < 0)
        return bw_fail(err, BW_CORRUPT,
                       "manifest: stage %d reads '%s', which is no input of the network nor an output of an earlier "
                       "stage",
                       stage, name);
    p->values[*value].last_use = stage;
    return BW_OK;
}

/* Section named by stage[key]. */
static bw_status get_section(const bw_package *pkg, const json_t *stage, const char *where, const char *key,
                             const void **bytes, size_t *size, bw_error *err)
{
    const char *name = json_string_value(json_object_get(stage, key));
    if (!name)
        return bw_fail(err, BW_CORRUPT, "manifest: %s\"%s\" names no section", where, key);
    if (bw_package_section(pkg, name, bytes, size, NULL))
        return bw_fail(err, BW_CORRUPT, "manifest: %s\"%s\" names '%s', there is no such section", where, key, name);
    return BW_OK;
}

/* A name of the manifest must be that of the graph's value at the same place. */
static bw_status match_graph(const json_t *list, int i, const char *where, const char *key, const bw_value *v,
                             const char **name, bw_error *err)
{
    bw_status status = get_name(json_array_get(list, (size_t)i), where, name, err);
    if (!status && strcmp(*name, v->name) != 0)
        status = bw_fail(err, BW_CORRUPT, "manifest: %s\"%s\" %d is '%s', the graph has '%s' there", where, key, i,
                         *name, v->name);
    return status;
}

static bw_status read_cpu_stage(const bw_package *pkg, const json_t *json, const char *where, int number, bw_plan *p,
                                bw_error *err)
{
    bw_plan_stage *s = &p->stages[number];
    const void *text, *blob;
    size_t text_size, blob_size;
    bw_status status = get_section(pkg, json, where, "graph", &text, &text_size, err);
    if (!status)
        status = get_section(pkg, json, where, "constants", &blob, &blob_size, err);
    if (status)
        return status;
    status = bw_graph_read(text, text_size, blob, blob_size, &s->graph, err);
    if (status)
        return bw_fail_context(err, status, "stage %d", number);
    const bw_graph *g = s->graph;
    const json_t *inputs, *outputs;
    status = alloc_tensors(json, where, "inputs", &inputs, &s->inputs, &s->input_count, err);
    if (!status)
        status = alloc_tensors(json, where, "outputs", &outputs, &s->outputs, &s->output_count, err);
    if (status)
        return status;
    if (s->input_count != g->input_count || s->output_count != g->output_count)
        return bw_fail(err, BW_CORRUPT, "manifest: %s%d inputs and %d outputs, the graph has %d and %d", where,
                       s->input_count, s->output_count, g->input_count, g->output_count);
    for (int i = 0; i < s->input_count && !status; i++) {
        const char *name;
        const bw_value *v = &g->values[g->inputs[i]];
        status = match_graph(inputs, i, where, "inputs", v, &name, err);
        if (!status)
            status = use_value(p, number, name, &s->inputs[i].value, err);
        if (status)
            return status;
        const bw_plan_value *source = &p->values[s->inputs[i].value];
        if (source->dtype != BW_DTYPE_NONE && v->dtype != BW_DTYPE_NONE && source->dtype != v->dtype)
            return bw_fail(err, BW_CORRUPT, "stage %d reads '%s' as %s, it is %s", number, name,
                           bw_dtype_name(v->dtype), bw_dtype_name(source->dtype));
    }
    for (int i = 0; i < s->output_count && !status; i++) {
        const char *name;
        const bw_value *v = &g->values[g->outputs[i]];
        status = match_graph(outputs, i, where, "outputs", v, &name, err);
        if (!status)
            status = add_value(p, name, v->dtype, v->rank, v->dims, err);
        s->outputs[i].value = p->value_count - 1;
    }
    return status;
}

static bw_status read_device_tensor(const json_t *json, const char *where, bw_plan_tensor *t, const char **name,
                                    bw_error *err)
{
    bw_status status = get_name(json_object_get(json, "name"), where, name, err);
    if (!status)
        status = get_shape(json_object_get(json, "shape"), *name, 4, &t->rank, t->dims, err);
    if (status)
        return status;
    char shape[120];
    uint64_t channels = 0, pixels = 1;
    int ok = t->rank >= 2 && (t->dims[0] == -1 || t->dims[0] == 1);
    for (int i = 1; i < t->rank && ok; i++) {
        ok = t->dims[i] > 0;
        if (i == 1)
            channels = (uint64_t)t->dims[i];
        else
            ok = ok && !__builtin_mul_overflow(pixels, (uint64_t)t->dims[i], &pixels);
    }
    uint64_t all;
    if (!ok || __builtin_mul_overflow(channels, pixels, &all) || all > (uint64_t)DIM_MAX)
        return bw_fail(err, BW_CORRUPT,
                       "manifest: %s'%s' has shape %s, expected [-1 or 1, channels, up to two sizes], all at least 1",
                       where, *name, bw_shape_text(t->rank, t->dims, shape, sizeof shape));
    t->channels = (size_t)channels;
    t->pixels = (size_t)pixels;
    const json_t *offset = json_object_get(json, "offset");
    json_int_t at = json_is_integer(offset) ? json_integer_value(offset) : -1;
    if (at < 0 || at % 64 != 0)
        return bw_fail(err, BW_CORRUPT, "manifest: %s'%s' has no \"offset\" that is a multiple of 64", where, *name);
    t->offset = (uint64_t)at;
    return BW_OK;
}

static bw_status read_device_stage(const bw_package *pkg, const json_t *json, const char *where, int number, bw_plan *p,
                                   bw_error *err)
{
    bw_plan_stage *s = &p->stages[number];
    s->device = 1;
    p->last_device = number;
    const json_t *inputs, *outputs;
    bw_status status = get_section(pkg, json, where, "program", &s->program, &s->program_size, err);
    if (!status)
        status = get_section(pkg, json, where, "constants", &s->constants, &s->constants_size, err);
    if (!status)
        status = alloc_tensors(json, where, "inputs", &inputs, &s->inputs, &s->input_count, err);
    if (!status)
        status = alloc_tensors(json, where, "outputs", &outputs, &s->outputs, &s->output_count, err);
    if (!status && (s->input_count == 0 || s->output_count == 0))
        status = bw_fail(err, BW_CORRUPT, "manifest: %sa device stage has an input and an output at least", where);
    for (int i = 0; !status && i < s->input_count; i++) {
        const char *name;
        bw_plan_tensor *t = &s->inputs[i];
        status = read_device_tensor(json_array_get(inputs, (size_t)i), where, t, &name, err);
        if (!status)
            status = use_value(p, number, name, &t->value, err);
        if (status)
            break;
        const bw_plan_value *source = &p->values[t->value];
        int fits = source->dtype == BW_DTYPE_NONE || source->dtype == BW_F32;
        if (source->rank >= 0) {
            fits = fits && source->rank == t->rank;
            for (int d = 1; fits && d < t->rank; d++)
                fits = source->dims[d] < 0 || source->dims[d] == t->dims[d];
        }
        char a[200], b[120];
        if (!fits)
            status = bw_fail(err, BW_CORRUPT, "stage %d reads '%s' as fp32 %s, it is %s %s", number, name,
                             bw_shape_text(t->rank, t->dims, b, sizeof b), bw_dtype_name(source->dtype),
                             bw_shape_text(source->rank, source->dims, a, sizeof a));
    }
    for (int i = 0; !status && i < s->output_count; i++) {
        const char *name;
        bw_plan_tensor *t = &s->outputs[i];
        status = read_device_tensor(json_array_get(outputs, (size_t)i), where, t, &name, err);
        if (!status)
            status = add_value(p, name, BW_F32, t->rank, t->dims, err);
        t->value = p->value_count - 1;
    }
    return status;
}

static bw_status read_stages(const bw_package *pkg, bw_plan *p, bw_error *err)
{
    const json_t *list;
    bw_status status = get_list(bw_package_manifest(pkg), "", "stages", STAGES_MAX, &list, err);
    if (status)
        return status;
    if (json_array_size(list) == 0)
        return bw_fail(err, BW_CORRUPT, "manifest: \"stages\" is empty");
    p->stages = calloc(json_array_size(list), sizeof *p->stages);
    if (!p->stages)
        return no_memory(err);
    p->stage_count = (int)json_array_size(list);
    for (int i = 0; i < p->stage_count && !status; i++) {
        const json_t *json = json_array_get(list, (size_t)i);
        const char *kind = json_string_value(json_object_get(json, "kind"));
        char where[32];
        snprintf(where, sizeof where, "stage %d: ", i);
        if (kind && strcmp(kind, "cpu") == 0)
            status = read_cpu_stage(pkg, json, where, i, p, err);
        else if (kind && strcmp(kind, "device") == 0)
            status = read_device_stage(pkg, json, where, i, p, err);
        else
            status = bw_fail(err, BW_CORRUPT, "manifest: stage %d has kind '%s', expected cpu or device", i,
                             kind ? kind : "(absent)");
    }
    return status;
}

static bw_status read_features(const bw_package *pkg, bw_plan *p, bw_error *err)
{
    const json_t *list;
    bw_status status = get_list(bw_package_manifest(pkg), "", "features", TENSORS_MAX, &list, err);
    if (status)
        return status;
    int count = p->last_device < 0 ? 0 : p->stages[p->last_device].output_count;
    if ((int)json_array_size(list) != count)
        return bw_fail(err, BW_CORRUPT, "manifest: %zu \"features\", the last device stage has %d outputs",
                       json_array_size(list), count);
    p->features = calloc((size_t)count + 1, sizeof *p->features);
    p->feature_values = calloc((size_t)count + 1, sizeof *p->feature_values);
    if (!p->features || !p->feature_values)
        return no_memory(err);
    p->feature_count = count;
    for (int i = 0; i < count; i++) {
        const bw_plan_tensor *t = &p->stages[p->last_device].outputs[i];
        const char *name = json_string_value(json_array_get(list, (size_t)i));
        if (!name || strcmp(name, p->values[t->value].name) != 0)
            return bw_fail(err, BW_CORRUPT, "manifest: feature %d is '%s', the last device stage puts out '%s' there",
                           i, name ? name : "(absent)", p->values[t->value].name);
        p->feature_values[i] = t->value;
        p->features[i] = (bw_io){.name = name, .dtype = BW_F32, .rank = t->rank};
        memcpy(p->features[i].dims, t->dims, sizeof t->dims);
    }
    return BW_OK;
}

static bw_status read_outputs(bw_plan *p, bw_error *err)
{
    p->output_values = calloc((size_t)p->output_count, sizeof *p->output_values);
    if (!p->output_values)
        return no_memory(err);
    for (int i = 0; i < p->output_count; i++) {
        int v = find_value(p, p->outputs[i].name);
        if (v < 0)
            return bw_fail(err, BW_CORRUPT, "manifest: no stage puts out the network's output '%s'",
                           p->outputs[i].name);
        p->output_values[i] = v;
        p->values[v].last_use = p->stage_count;
    }
    return BW_OK;
}

static bw_status read_model(const bw_package *pkg, bw_plan *p, bw_error *err)
{
    const json_t *manifest = bw_package_manifest(pkg), *model = json_object_get(manifest, "model");
    const char *name = json_string_value(json_object_get(model, "name"));
    const char *version = json_string_value(json_object_get(model, "version"));
    static const char legal[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-";
    if (!name || !*name || strlen(name) > 128 || strspn(name, legal) != strlen(name))
        return bw_fail(err, BW_CORRUPT, "manifest: \"model\" has no \"name\" of 1 to 128 characters [A-Za-z0-9_.-]");
    if (!version || !*version || strlen(version) > 18 || strspn(version, "0123456789") != strlen(version))
        return bw_fail(err, BW_CORRUPT, "manifest: \"model\" has no \"version\" of decimal digits");
    p->model_name = name;
    p->model_version = version;
    p->labels = json_object_get(manifest, "labels");
    if (p->labels && !json_is_array(p->labels))
        return bw_fail(err, BW_CORRUPT, "manifest: \"labels\" is not a list");
    for (size_t i = 0; i < json_array_size(p->labels); i++) {
        if (!json_is_string(json_array_get(p->labels, i)))
            return bw_fail(err, BW_CORRUPT, "manifest: label %zu is no text", i);
    }
    return BW_OK;
}

static bw_status read_preprocess(const bw_package *pkg, bw_plan *p, bw_error *err)
{
    const json_t *json = json_object_get(bw_package_manifest(pkg), "preprocess");
    if (!json || json_is_null(json))
        return BW_OK;
    const bw_io *io = &p->inputs[0];
    bw_error why;
    bw_status status = bw_preprocess_from_json(json, &p->preprocess, &why);
    if (!status)
        status = bw_preprocess_check(&p->preprocess, io->name, io->rank, io->dims, &why);
    if (status)
        return bw_fail(err, BW_CORRUPT, "manifest: %s", why.message);
    p->has_preprocess = 1;
    return BW_OK;
}

bw_status bw_plan_read(const bw_package *pkg, bw_plan *p, bw_error *err)
{
    memset(p, 0, sizeof *p);
    p->last_device = -1;
    p->index = json_object();
    if (!p->index)
        return no_memory(err);
    bw_status status = read_model(pkg, p, err);
    if (!status)
        status = read_ios(pkg, "inputs", &p->inputs, &p->input_count, err);
    for (int i = 0; i < p->input_count && !status; i++)
        status = add_value(p, p->inputs[i].name, p->inputs[i].dtype, p->inputs[i].rank, p->inputs[i].dims, err);
    if (!status)
        status = read_ios(pkg, "outputs", &p->outputs, &p->output_count, err);
    if (!status)
        status = read_stages(pkg, p, err);
    if (!status)
        status = read_features(pkg, p, err);
    if (!status)
        status = read_outputs(p, err);
    return status ? status : read_preprocess(pkg, p, err);
}

static int by_offset(const void *a, const void *b)
{
    const bw_plan_tensor *const *x = a, *const *y = b;
    return (*x)->offset < (*y)->offset ? -1 : (*x)->offset > (*y)->offset;
}

/* In ascending order of offsets each must end before the next begins. */
static bw_status check_region(const bw_plan *p, int stage, const char *region, uint64_t bytes,
                              const bw_plan_tensor *tensors, int count, bw_error *err)
{
    const bw_plan_tensor **sorted = malloc(((size_t)count + 1) * sizeof *sorted);
    if (!sorted)
        return no_memory(err);
    for (int i = 0; i < count; i++)
        sorted[i] = &tensors[i];
    qsort(sorted, (size_t)count, sizeof *sorted, by_offset);
    bw_status status = BW_OK;
    uint64_t used = 0;
    for (int i = 0; i < count && !status; i++) {
        const bw_plan_tensor *t = sorted[i];
        uint64_t size = 4 * (uint64_t)t->channels * t->pixels; /* at most 2^42 */
        const char *name = p->values[t->value].name;
        used += size + 64;
        if (t->offset > bytes || size > bytes - t->offset)
            status =
                bw_fail(err, BW_CORRUPT,
                        "stage %d: '%s' takes bytes %" PRIu64 " to %" PRIu64 " of the program's %s region of %" PRIu64,
                        stage, name, t->offset, t->offset + size, region, bytes);
        else if (i + 1 < count && sorted[i + 1]->offset - t->offset < size)
            status = bw_fail(err, BW_CORRUPT, "stage %d: '%s' and '%s' overlap in the program's %s region", stage, name,
                             p->values[sorted[i + 1]->value].name, region);
    }
    /* A region far larger than what goes through it would only serve to exhaust memory. */
    if (!status && bytes > used + 4096)
        status = bw_fail(err, BW_CORRUPT, "stage %d: %s region of %" PRIu64 " bytes for tensors of %" PRIu64, stage,
                         region, bytes, used);
    free(sorted);
    return status;
}

bw_status bw_plan_check_program(const bw_plan *p, int stage, const bw_program *program, bw_error *err)
{
    const bw_plan_stage *s = &p->stages[stage];
    bw_status status = check_region(p, stage, "IN", program->header->in_bytes, s->inputs, s->input_count, err);
    return status ? status
                  : check_region(p, stage, "OUT", program->header->out_bytes, s->outputs, s->output_count, err);
}
