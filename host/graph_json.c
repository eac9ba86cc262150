/* SPDX-License-Identifier: Apache-2.0 */
/* Graphs to and from a JSON text and a blob of constants. Reading trusts nothing. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "host/graph.h"

#define MAX_ITEMS 1000000 /* values, nodes, attributes' entries: far above any network, far below trouble */

/* --- writing ------------------------------------------------------------------------------------------------------ */

typedef struct writer {
    const bw_graph *g;
    int *id; /* value -> number in the file, -1: not written */
    int written;
    char *blob; /* NULL while sizes are counted */
    size_t blob_size;
} writer;

static void use_value(writer *w, unsigned char *used, int value)
{
    (void)w;
    if (value >= 0)
        used[value] = 1;
}

/* Values in use, numbered in their own order. */
static int number_values(writer *w)
{
    const bw_graph *g = w->g;
    unsigned char *used = calloc((size_t)g->value_count + 1, 1);
    w->id = malloc(sizeof *w->id * ((size_t)g->value_count + 1));
    if (!used || !w->id) {
        free(used);
        return -1;
    }
    for (int i = 0; i < g->input_count; i++)
        use_value(w, used, g->inputs[i]);
    for (int i = 0; i < g->output_count; i++)
        use_value(w, used, g->outputs[i]);
    for (int i = 0; i < g->node_count; i++) {
        if (!g->nodes[i].op)
            continue;
        for (int k = 0; k < g->nodes[i].input_count; k++)
            use_value(w, used, g->nodes[i].inputs[k]);
        for (int k = 0; k < g->nodes[i].output_count; k++)
            use_value(w, used, g->nodes[i].outputs[k]);
    }
    for (int i = 0; i < g->value_count; i++)
        w->id[i] = used[i] ? w->written++ : -1;
    free(used);
    return 0;
}

static json_t *ints_json(const int64_t *v, size_t count)
{
    json_t *list = json_array();
    for (size_t i = 0; list && i < count; i++)
        json_array_append_new(list, json_integer((json_int_t)v[i]));
    return list;
}

static json_t *ids_json(const writer *w, const int *ids, int count)
{
    json_t *list = json_array();
    for (int i = 0; list && i < count; i++)
        json_array_append_new(list, json_integer(ids[i] < 0 ? -1 : w->id[ids[i]]));
    return list;
}

/* JSON has no infinities; NaN has no meaning in an attribute. */
static json_t *float_json(float f)
{
    if (isinf(f))
        return json_string(f > 0 ? "inf" : "-inf");
    return json_real((double)f);
}

/* Puts the array into the blob and describes it. */
static json_t *array_json(writer *w, const bw_array *a)
{
    size_t at = (w->blob_size + 63) / 64 * 64;
    if (w->blob) {
        memset(w->blob + w->blob_size, 0, at - w->blob_size);
        if (a->bytes)
            memcpy(w->blob + at, a->data, a->bytes);
    }
    w->blob_size = at + a->bytes;
    return json_pack("{s:s, s:o, s:I, s:I}", "dtype", bw_dtype_name(a->dtype), "dims",
                     ints_json(a->dims, (size_t)a->rank), "offset", (json_int_t)at, "bytes", (json_int_t)a->bytes);
}

static json_t *attr_json(writer *w, const bw_attr *a)
{
    switch (a->kind) {
    case BW_ATTR_INT:
        return json_pack("{s:s, s:I}", "name", a->name, "int", (json_int_t)a->i);
    case BW_ATTR_FLOAT:
        return json_pack("{s:s, s:o}", "name", a->name, "float", float_json(a->f));
    case BW_ATTR_STRING:
        return json_pack("{s:s, s:s}", "name", a->name, "string", a->s);
    case BW_ATTR_INTS:
        return json_pack("{s:s, s:o}", "name", a->name, "ints", ints_json(a->ints, a->count));
    case BW_ATTR_FLOATS: {
        json_t *list = json_array();
        for (size_t i = 0; i < a->count; i++)
            if (json_array_append_new(list, float_json(a->floats[i]))) {
                json_decref(list);
                return NULL;
            }
        return json_pack("{s:s, s:o}", "name", a->name, "floats", list);
    }
    case BW_ATTR_ARRAY:
        return json_pack("{s:s, s:o}", "name", a->name, "array", array_json(w, &a->array));
    }
    return NULL;
}

static json_t *node_json(writer *w, const bw_node *n)
{
    json_t *attrs = json_array();
    for (int i = 0; i < n->attr_count; i++)
        if (json_array_append_new(attrs, attr_json(w, &n->attrs[i]))) {
            json_decref(attrs);
            return NULL;
        }
    return json_pack("{s:s, s:s, s:o, s:o, s:o}", "op", n->op, "name", n->name, "inputs",
                     ids_json(w, n->inputs, n->input_count), "outputs", ids_json(w, n->outputs, n->output_count),
                     "attrs", attrs);
}

static json_t *value_json(writer *w, const bw_value *v)
{
    if (v->constant)
        return json_pack("{s:s, s:o}", "name", v->name, "constant", array_json(w, v->constant));
    return json_pack("{s:s, s:s, s:o}", "name", v->name, "dtype", bw_dtype_name(v->dtype), "dims",
                     v->rank < 0 ? json_null() : ints_json(v->dims, (size_t)v->rank));
}

static json_t *graph_json(writer *w)
{
    const bw_graph *g = w->g;
    json_t *values = json_array(), *nodes = json_array();
    int bad = !values || !nodes;
    for (int i = 0; !bad && i < g->value_count; i++)
        if (w->id[i] >= 0)
            bad = json_array_append_new(values, value_json(w, &g->values[i]));
    for (int i = 0; !bad && i < g->node_count; i++)
        if (g->nodes[i].op)
            bad = json_array_append_new(nodes, node_json(w, &g->nodes[i]));
    if (bad) {
        json_decref(values);
        json_decref(nodes);
        return NULL;
    }
    return json_pack("{s:s, s:i, s:o, s:o, s:o, s:o}", "name", g->name, "version", 1, "values", values, "nodes", nodes,
                     "inputs", ids_json(w, g->inputs, g->input_count), "outputs",
                     ids_json(w, g->outputs, g->output_count));
}

bw_status bw_graph_write(const bw_graph *g, char **json, void **blob, size_t *blob_size, bw_error *err)
{
    writer w = {.g = g};
    *json = NULL;
    *blob = NULL;
    *blob_size = 0;
    json_t *root = NULL;
    if (!number_values(&w) && (root = graph_json(&w))) { /* the first time only counts the blob's bytes */
        json_decref(root);
        root = NULL;
        size_t size = w.blob_size;
        w.blob_size = 0;
        w.blob = bw_aligned_zalloc(size ? size : 64);
        if (w.blob)
            root = graph_json(&w);
    }
    free(w.id);
    if (root)
        *json = json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(17));
    json_decref(root);
    if (!*json) {
        free(w.blob);
        return bw_fail(err, BW_INVALID_ARGUMENT,
                       "graph '%s' cannot be written: a name is not UTF-8, an attribute is NaN, or memory is short",
                       g->name);
    }
    *blob = w.blob;
    *blob_size = w.blob_size;
    return BW_OK;
}

/* --- reading ------------------------------------------------------------------------------------------------------ */

typedef struct reader {
    const char *blob;
    size_t blob_size;
    bw_graph *g;
    bw_error *err;
} reader;

static bw_status corrupt(reader *r, const char *what, size_t index, const char *expected)
{
    return bw_fail(r->err, BW_CORRUPT, "graph: %s %zu: expected %s", what, index, expected);
}

static bw_dtype dtype_from(const json_t *j)
{
    const char *name = json_string_value(j);
    for (int d = BW_F32; name && d <= BW_BYTES; d++)
        if (!strcmp(name, bw_dtype_name((bw_dtype)d)))
            return (bw_dtype)d;
    return BW_DTYPE_NONE;
}

/* -2: not a list of at most BW_RANK_MAX integers >= least. */
static int dims_from(const json_t *j, int64_t *dims, int64_t least)
{
    size_t n = json_array_size(j);
    if (!json_is_array(j) || n > BW_RANK_MAX)
        return -2;
    for (size_t i = 0; i < n; i++) {
        const json_t *d = json_array_get(j, i);
        if (!json_is_integer(d) || json_integer_value(d) < least)
            return -2;
        dims[i] = (int64_t)json_integer_value(d);
    }
    return (int)n;
}

/* A borrowed array of the blob. Non-zero: damaged. */
static int array_from(const reader *r, const json_t *j, bw_array *a)
{
    memset(a, 0, sizeof *a);
    const json_t *offset = json_object_get(j, "offset"), *bytes = json_object_get(j, "bytes");
    a->dtype = dtype_from(json_object_get(j, "dtype"));
    a->rank = dims_from(json_object_get(j, "dims"), a->dims, 0);
    if (a->rank < 0 || !bw_dtype_size(a->dtype) || !json_is_integer(offset) || !json_is_integer(bytes))
        return -1;
    uint64_t at = (uint64_t)json_integer_value(offset), size = (uint64_t)json_integer_value(bytes);
    uint64_t need = bw_dtype_size(a->dtype);
    int empty = 0;
    for (int i = 0; i < a->rank; i++) {
        empty |= a->dims[i] == 0;
        if (a->dims[i] && (__builtin_mul_overflow(need, (uint64_t)a->dims[i], &need) || need > (uint64_t)1 << 46))
            return -1;
    }
    need = empty ? 0 : need;
    if (need != size || at % 64 || at > r->blob_size || size > r->blob_size - at)
        return -1;
    a->data = size ? (void *)(r->blob + at) : (void *)r->blob;
    a->bytes = size;
    return 0;
}

static bw_status read_values(reader *r, const json_t *list)
{
    if (!json_is_array(list) || json_array_size(list) > MAX_ITEMS)
        return bw_fail(r->err, BW_CORRUPT, "graph: \"values\": expected a list");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *j = json_array_get(list, i);
        const char *name = json_string_value(json_object_get(j, "name"));
        if (!name || !*name)
            return corrupt(r, "value", i, "a name");
        const json_t *constant = json_object_get(j, "constant");
        int id;
        if (constant) {
            bw_array a;
            if (array_from(r, constant, &a))
                return corrupt(r, "value", i, "a constant whose type and dims fit its bytes inside the blob");
            id = bw_graph_add_constant(r->g, name, &a);
        } else {
            int64_t dims[BW_RANK_MAX];
            const json_t *d = json_object_get(j, "dims");
            int rank = json_is_null(d) ? -1 : dims_from(d, dims, -1);
            bw_dtype dtype = dtype_from(json_object_get(j, "dtype"));
            const char *none = json_string_value(json_object_get(j, "dtype"));
            if (rank == -2 || (!dtype && (!none || strcmp(none, bw_dtype_name(BW_DTYPE_NONE)))))
                return corrupt(r, "value", i, "a known dtype and at most 8 dims >= -1");
            id = bw_graph_add_value(r->g, name, dtype, rank, dims);
        }
        if (id < 0)
            return bw_fail(r->err, BW_NO_MEMORY, "graph: no memory for %zu values", json_array_size(list));
    }
    return BW_OK;
}

/* A malloc'ed list of value ids >= least. */
static bw_status read_ids(reader *r, const json_t *list, int least, int **ids, int *count)
{
    size_t n = json_array_size(list);
    *ids = NULL;
    if (!json_is_array(list) || n > MAX_ITEMS)
        return bw_fail(r->err, BW_CORRUPT, "graph: expected a list of value numbers");
    if (!(*ids = malloc(sizeof **ids * (n ? n : 1))))
        return bw_fail(r->err, BW_NO_MEMORY, "graph: no memory for %zu value numbers", n);
    for (size_t i = 0; i < n; i++) {
        const json_t *j = json_array_get(list, i);
        json_int_t v = json_integer_value(j);
        if (!json_is_integer(j) || v < least || v >= r->g->value_count) {
            free(*ids);
            *ids = NULL;
            return bw_fail(r->err, BW_CORRUPT, "graph: value number %lld: expected %d to %d", (long long)v, least,
                           r->g->value_count - 1);
        }
        (*ids)[i] = (int)v;
    }
    *count = (int)n;
    return BW_OK;
}

static int float_from(const json_t *j, float *f)
{
    const char *s = json_string_value(j);
    if (s) {
        *f = *s == '-' ? -INFINITY : INFINITY;
        return strcmp(s, *s == '-' ? "-inf" : "inf") != 0;
    }
    double d = json_number_value(j);
    *f = (float)d;
    return !json_is_number(j) || !isfinite(*f);
}

static bw_status read_ints(bw_node *n, const char *name, const json_t *list)
{
    size_t count = json_array_size(list);
    int64_t *v = malloc(sizeof *v * (count ? count : 1));
    bw_status status = v ? BW_OK : BW_NO_MEMORY;
    for (size_t i = 0; i < count && !status; i++) {
        v[i] = (int64_t)json_integer_value(json_array_get(list, i));
        status = json_is_integer(json_array_get(list, i)) ? BW_OK : BW_CORRUPT;
    }
    if (!status)
        status = bw_node_set_ints(n, name, v, count);
    free(v);
    return status;
}

static bw_status read_floats(bw_node *n, const char *name, const json_t *list)
{
    size_t count = json_array_size(list);
    float *v = malloc(sizeof *v * (count ? count : 1));
    bw_status status = v ? BW_OK : BW_NO_MEMORY;
    for (size_t i = 0; i < count && !status; i++)
        status = float_from(json_array_get(list, i), &v[i]) ? BW_CORRUPT : BW_OK;
    if (!status)
        status = bw_node_set_floats(n, name, v, count);
    free(v);
    return status;
}

static bw_status read_attr(reader *r, bw_node *n, const json_t *j)
{
    const char *name = json_string_value(json_object_get(j, "name"));
    if (!name || !*name || bw_node_attr(n, name))
        return BW_CORRUPT;
    const json_t *v;
    if ((v = json_object_get(j, "int")))
        return json_is_integer(v) ? bw_node_set_int(n, name, (int64_t)json_integer_value(v)) : BW_CORRUPT;
    if ((v = json_object_get(j, "string")))
        return json_is_string(v) ? bw_node_set_string(n, name, json_string_value(v)) : BW_CORRUPT;
    if ((v = json_object_get(j, "float"))) {
        float f;
        return float_from(v, &f) ? BW_CORRUPT : bw_node_set_float(n, name, f);
    }
    if ((v = json_object_get(j, "ints")))
        return json_is_array(v) ? read_ints(n, name, v) : BW_CORRUPT;
    if ((v = json_object_get(j, "floats")))
        return json_is_array(v) ? read_floats(n, name, v) : BW_CORRUPT;
    if ((v = json_object_get(j, "array"))) {
        bw_array a;
        return array_from(r, v, &a) ? BW_CORRUPT : bw_node_set_array(n, name, &a);
    }
    return BW_CORRUPT;
}

static bw_status read_nodes(reader *r, const json_t *list)
{
    if (!json_is_array(list) || json_array_size(list) > MAX_ITEMS)
        return bw_fail(r->err, BW_CORRUPT, "graph: \"nodes\": expected a list");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *j = json_array_get(list, i);
        const char *op = json_string_value(json_object_get(j, "op"));
        const char *name = json_string_value(json_object_get(j, "name"));
        if (!op || !*op || !name || !*name)
            return corrupt(r, "node", i, "an operator and a name");
        int *in = NULL, *out = NULL, in_count = 0, out_count = 0;
        bw_status status = read_ids(r, json_object_get(j, "inputs"), -1, &in, &in_count);
        if (!status)
            status = read_ids(r, json_object_get(j, "outputs"), -1, &out, &out_count);
        int node = status ? -1 : bw_graph_add_node(r->g, op, name, in, in_count, out, out_count);
        free(in);
        free(out);
        if (status)
            return bw_fail_context(r->err, status, "node '%s'", name);
        if (node < 0)
            return bw_fail(r->err, BW_NO_MEMORY, "graph: no memory for node '%s'", name);
        const json_t *attrs = json_object_get(j, "attrs");
        if (attrs && (!json_is_array(attrs) || json_array_size(attrs) > 256))
            return corrupt(r, "node", i, "a list of at most 256 attributes");
        for (size_t k = 0; k < json_array_size(attrs); k++)
            if ((status = read_attr(r, &r->g->nodes[node], json_array_get(attrs, k))))
                return bw_fail(r->err, status,
                               "graph: node '%s': attribute %zu: expected a new name and one value of "
                               "a known kind",
                               name, k);
    }
    return BW_OK;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Value names are what the world refers to: no two alike. */
static bw_status check_names(reader *r)
{
    const bw_graph *g = r->g;
    char **names = malloc(sizeof *names * ((size_t)g->value_count + 1));
    if (!names)
        return bw_fail(r->err, BW_NO_MEMORY, "graph: no memory for %d names", g->value_count);
    for (int i = 0; i < g->value_count; i++)
        names[i] = g->values[i].name;
    qsort(names, (size_t)g->value_count, sizeof *names, compare_names);
    bw_status status = BW_OK;
    for (int i = 1; i < g->value_count && !status; i++)
        if (!strcmp(names[i - 1], names[i]))
            status = bw_fail(r->err, BW_CORRUPT, "graph: two values are named '%s': expected unique names", names[i]);
    free(names);
    return status;
}

static bw_status read_border(reader *r, const json_t *root)
{
    for (int out = 0; out < 2; out++) {
        int *ids, count = 0;
        bw_status status = read_ids(r, json_object_get(root, out ? "outputs" : "inputs"), 0, &ids, &count);
        if (!status)
            status = out ? bw_graph_set_outputs(r->g, ids, count) : bw_graph_set_inputs(r->g, ids, count);
        for (int i = 0; i < count && !status && !out; i++) {
            if (r->g->values[ids[i]].constant)
                status = bw_fail(r->err, BW_CORRUPT, "graph: input '%s' is a constant", r->g->values[ids[i]].name);
            for (int k = 0; k < i && !status; k++)
                if (ids[k] == ids[i])
                    status =
                        bw_fail(r->err, BW_CORRUPT, "graph: input '%s' is listed twice", r->g->values[ids[i]].name);
        }
        free(ids);
        if (status)
            return status;
        if (count == 0 || count > 4096)
            return bw_fail(r->err, BW_CORRUPT, "graph: %d %s: expected 1 to 4096", count, out ? "outputs" : "inputs");
    }
    return BW_OK;
}

bw_status bw_graph_read(const char *json, size_t json_size, const void *blob, size_t blob_size, bw_graph **g,
                        bw_error *err)
{
    *g = NULL;
    if (blob_size && (uintptr_t)blob % 64)
        return bw_fail(err, BW_INVALID_ARGUMENT, "graph: the blob of constants is not aligned to 64 bytes");
    json_error_t why;
    json_t *root = json_loadb(json, json_size, JSON_REJECT_DUPLICATES, &why);
    if (!root)
        return bw_fail(err, BW_CORRUPT, "graph: line %d: %s", why.line, why.text);
    const char *name = json_string_value(json_object_get(root, "name"));
    json_int_t version = json_integer_value(json_object_get(root, "version"));
    /* A place for empty constants to point to, so that no data pointer is NULL. */
    static const char nothing[64] __attribute__((aligned(64)));
    reader r = {blob_size ? blob : nothing, blob_size, NULL, err};
    bw_status status = BW_OK;
    if (!name)
        status = bw_fail(err, BW_CORRUPT, "graph: expected an object with a name");
    else if (version != 1)
        status = bw_fail(err, BW_VERSION_MISMATCH, "graph '%s' has version %lld: expected 1", name, (long long)version);
    else if (!(r.g = bw_graph_new(name)))
        status = bw_fail(err, BW_NO_MEMORY, "graph '%s': no memory", name);
    if (!status)
        status = read_values(&r, json_object_get(root, "values"));
    if (!status)
        status = check_names(&r);
    if (!status)
        status = read_nodes(&r, json_object_get(root, "nodes"));
    if (!status)
        status = read_border(&r, root);
    if (!status)
        status = bw_graph_sort(r.g, err);
    json_decref(root);
    if (status) {
        bw_graph_free(r.g);
        return status;
    }
    *g = r.g;
    return BW_OK;
}
