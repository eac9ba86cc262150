/* SPDX-License-Identifier: Apache-2.0 */
/* ONNX import: the file, its graph's structure, inputs and outputs. Tensors: import_tensor.c; nodes: import_node.c;
 * operator sets: normalise*.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "quantize/import_internal.h"

/* --- names ------------------------------------------------------------------------------------------------------ */

static size_t name_hash(const char *s)
{
    uint64_t h = UINT64_C(14695981039346656037);
    for (; *s; s++)
        h = (h ^ (unsigned char)*s) * UINT64_C(1099511628211);
    return (size_t)(h ^ h >> 29);
}

static struct bw_name_slot *name_slot(const bw_name_map *m, const char *name)
{
    size_t i = name_hash(name) & (m->capacity - 1);
    while (m->slots[i].name && strcmp(m->slots[i].name, name))
        i = (i + 1) & (m->capacity - 1);
    return &m->slots[i];
}

bw_status bw_name_map_put(bw_name_map *m, const char *name, int value, bw_error *err)
{
    if (m->count * 2 >= m->capacity) {
        bw_name_map grown = {.capacity = m->capacity ? m->capacity * 2 : 64};
        grown.slots = calloc(grown.capacity, sizeof *grown.slots);
        if (!grown.slots)
            return bw_fail(err, BW_NO_MEMORY, "no memory for %zu names", grown.capacity);
        for (size_t i = 0; i < m->capacity; i++)
            if (m->slots[i].name)
                *name_slot(&grown, m->slots[i].name) = m->slots[i];
        grown.count = m->count;
        free(m->slots);
        *m = grown;
    }
    struct bw_name_slot *s = name_slot(m, name);
    m->count += s->name == NULL;
    s->name = name;
    s->value = value;
    return BW_OK;
}

int bw_name_map_get(const bw_name_map *m, const char *name)
{
    if (!m->capacity)
        return -1;
    const struct bw_name_slot *s = name_slot(m, name);
    return s->name ? s->value : -1;
}

void bw_name_map_free(bw_name_map *m)
{
    free(m->slots);
    memset(m, 0, sizeof *m);
}

/* --- inputs and outputs ----------------------------------------------------------------------------------------- */

static int find_binding(bw_importer *im, const char *name, int64_t *value)
{
    for (size_t i = 0; i < im->binding_count; i++) {
        if (!strcmp(im->bindings[i].name, name)) {
            im->binding_used[i] = 1;
            *value = im->bindings[i].value;
            return 1;
        }
    }
    return 0;
}

static bw_status input_dim(bw_importer *im, const BwOnnx__ValueInfoProto *v, size_t axis, const BwOnnx__Dimension *dim,
                           int64_t *out, bw_error *err)
{
    const char *symbol = dim->value_case == BW_ONNX__DIMENSION__VALUE_DIM_PARAM ? dim->dim_param : "";
    if (dim->value_case == BW_ONNX__DIMENSION__VALUE_DIM_VALUE && dim->dim_value > 0) {
        *out = dim->dim_value;
    } else {
        char place[160]; /* an unnamed dimension is bound by its place */
        snprintf(place, sizeof place, "%s:%zu", v->name, axis);
        if (!(symbol[0] && find_binding(im, symbol, out)) && !find_binding(im, place, out)) {
            if (axis > 0)
                return bw_fail(err, BW_INVALID_ARGUMENT,
                               "input '%s': axis %zu is dynamic (%s%s%s), only the batch may be: give it a size with "
                               "--bind %s=VALUE",
                               v->name, axis, symbol[0] ? "'" : "", symbol[0] ? symbol : "no name",
                               symbol[0] ? "'" : "", symbol[0] ? symbol : place);
            *out = -1;
            return BW_OK;
        }
    }
    if (*out < 1 || *out > INT32_MAX)
        return bw_fail(err, BW_INVALID_ARGUMENT, "input '%s': axis %zu is %lld, expected 1 to %d", v->name, axis,
                       (long long)*out, INT32_MAX);
    return BW_OK;
}

static bw_status import_input(bw_importer *im, const BwOnnx__ValueInfoProto *v, int *id, bw_error *err)
{
    const BwOnnx__TensorTypeProto *t = v->type ? v->type->tensor_type : NULL;
    if (!v->name[0])
        return bw_fail(err, BW_CORRUPT, "an input without a name");
    if (!t)
        return bw_fail(err, BW_UNSUPPORTED,
                       "input '%s' is not a tensor: sequences, maps and optionals are not "
                       "supported",
                       v->name);
    bw_dtype dtype = bw_import_dtype(im, t->elem_type);
    if (dtype == BW_DTYPE_NONE)
        return bw_fail(err, BW_UNSUPPORTED,
                       "input '%s': element type %d (%s) is not supported: convert the model to "
                       "float32",
                       v->name, t->elem_type, bw_import_type_name(t->elem_type));
    if (!t->shape)
        return bw_fail(err, BW_UNSUPPORTED, "input '%s' has no shape: export the model with shapes", v->name);
    if (t->shape->n_dim > BW_RANK_MAX)
        return bw_fail(err, BW_UNSUPPORTED, "input '%s': rank %zu, at most %d is supported", v->name, t->shape->n_dim,
                       BW_RANK_MAX);
    int64_t dims[BW_RANK_MAX] = {0};
    for (size_t i = 0; i < t->shape->n_dim; i++) {
        bw_status st = input_dim(im, v, i, t->shape->dim[i], &dims[i], err);
        if (st)
            return st;
    }
    *id = bw_graph_add_value(im->g, v->name, dtype, (int)t->shape->n_dim, dims);
    if (*id < 0)
        return bw_fail(err, BW_NO_MEMORY, "no memory for input '%s'", v->name);
    return bw_name_map_put(&im->values, v->name, *id, err);
}

static bw_status import_inputs(bw_importer *im, const BwOnnx__GraphProto *p, bw_error *err)
{
    int *ids = malloc((p->n_input + 1) * sizeof *ids), count = 0;
    if (!ids)
        return bw_fail(err, BW_NO_MEMORY, "no memory for %zu inputs", p->n_input);
    bw_status st = BW_OK;
    for (size_t i = 0; !st && i < p->n_input; i++) {
        const BwOnnx__ValueInfoProto *v = p->input[i];
        int known = bw_name_map_get(&im->values, v->name);
        if (known >= 0 && im->g->values[known].constant) /* IR 3 lists the initialisers among the inputs */
            continue;
        if (known >= 0)
            st = bw_fail(err, BW_CORRUPT, "input '%s' is declared twice", v->name);
        else
            st = import_input(im, v, &ids[count], err);
        count += st == BW_OK;
    }
    if (!st && (st = bw_graph_set_inputs(im->g, ids, count)))
        bw_fail(err, st, "no memory for %d inputs", count);
    free(ids);
    return st;
}

static bw_status import_outputs(bw_importer *im, const BwOnnx__GraphProto *p, bw_error *err)
{
    if (!p->n_output)
        return bw_fail(err, BW_CORRUPT, "the graph has no output");
    int *ids = malloc(p->n_output * sizeof *ids);
    if (!ids)
        return bw_fail(err, BW_NO_MEMORY, "no memory for %zu outputs", p->n_output);
    bw_status st = BW_OK;
    for (size_t i = 0; !st && i < p->n_output; i++) {
        ids[i] = bw_name_map_get(&im->values, p->output[i]->name);
        if (ids[i] < 0)
            st = bw_fail(err, BW_CORRUPT, "output '%s' is produced by no node", p->output[i]->name);
        for (size_t k = 0; !st && k < i; k++)
            if (ids[k] == ids[i])
                st = bw_fail(err, BW_CORRUPT, "output '%s' is declared twice", p->output[i]->name);
    }
    if (!st && (st = bw_graph_set_outputs(im->g, ids, (int)p->n_output)))
        bw_fail(err, st, "no memory for %zu outputs", p->n_output);
    free(ids);
    return st;
}

static bw_status import_initialisers(bw_importer *im, BwOnnx__GraphProto *p, bw_error *err)
{
    if (p->n_sparse_initializer)
        return bw_fail(err, BW_UNSUPPORTED, "sparse initialisers are not supported: export the model with dense ones");
    for (size_t i = 0; i < p->n_initializer; i++) {
        BwOnnx__TensorProto *t = p->initializer[i];
        if (!t->name[0])
            return bw_fail(err, BW_CORRUPT, "initialiser %zu has no name", i);
        if (bw_name_map_get(&im->values, t->name) >= 0)
            return bw_fail(err, BW_CORRUPT, "initialiser '%s' is declared twice", t->name);
        char what[160];
        snprintf(what, sizeof what, "initialiser '%.128s'", t->name);
        bw_array a;
        bw_status st = bw_import_tensor(im, t, what, &a, err);
        if (st)
            return st;
        int id = bw_graph_add_constant(im->g, t->name, &a);
        if (id < 0) {
            bw_array_free(&a);
            return bw_fail(err, BW_NO_MEMORY, "no memory for %s", what);
        }
        if ((st = bw_name_map_put(&im->values, t->name, id, err)))
            return st;
    }
    return BW_OK;
}

/* --- the model -------------------------------------------------------------------------------------------------- */

static bw_status find_opset(bw_importer *im, const BwOnnx__ModelProto *m, bw_error *err)
{
    im->opset = 0;
    for (size_t i = 0; i < m->n_opset_import; i++) {
        const BwOnnx__OperatorSetIdProto *o = m->opset_import[i];
        if (!o->domain[0] || !strcmp(o->domain, "ai.onnx"))
            im->opset = o->version;
    }
    if (im->opset == 0 && m->n_opset_import)
        return bw_fail(err, BW_UNSUPPORTED,
                       "the model names no version of the standard ONNX operators, only the domain '%s': export it "
                       "with standard operators",
                       m->opset_import[0]->domain);
    if (im->opset == 0)
        return bw_fail(err, BW_CORRUPT, "the model names no operator set: is it an ONNX model?");
    if (im->opset < BW_OPSET_MIN || im->opset > BW_OPSET_MAX)
        return bw_fail(err, BW_UNSUPPORTED,
                       "operator set %lld, supported are %d to %d: convert the model with "
                       "onnx.version_converter",
                       (long long)im->opset, BW_OPSET_MIN, BW_OPSET_MAX);
    return BW_OK;
}

static bw_status check_bindings(const bw_importer *im, bw_error *err)
{
    for (size_t i = 0; i < im->binding_count; i++)
        if (!im->binding_used[i])
            return bw_fail(err, BW_INVALID_ARGUMENT, "--bind %s=%lld: no input has a dynamic dimension of that name",
                           im->bindings[i].name, (long long)im->bindings[i].value);
    return BW_OK;
}

static bw_status import_graph(bw_importer *im, BwOnnx__ModelProto *m, bw_error *err)
{
    BwOnnx__GraphProto *p = m->graph;
    if (!p)
        return bw_fail(err, BW_CORRUPT, "the model has no graph: is it an ONNX model?");
    bw_status st = find_opset(im, m, err);
    if (st)
        return st;
    if (!(im->g = bw_graph_new(p->name[0] ? p->name : "graph")))
        return bw_fail(err, BW_NO_MEMORY, "no memory for the graph");
    im->narrow_floats = bw_import_has_matrix_products(p);
    if ((st = import_initialisers(im, p, err)) || (st = import_inputs(im, p, err)) || (st = check_bindings(im, err)) ||
        (st = bw_import_nodes(im, p, err)) || (st = import_outputs(im, p, err)))
        return st;
    if ((st = bw_normalise_graph(im, err)))
        return st;
    return bw_normalise_batch(im->g, err);
}

/* mapped: the bytes are a file mapping, of which only what is being read need be in memory. */
static bw_status import_model(bw_importer *im, const void *bytes, size_t size, int mapped, bw_graph **g,
                              bw_import_info *info, bw_error *err)
{
    *g = NULL;
    if (!size)
        return bw_fail(err, BW_CORRUPT, "the file is empty, expected an ONNX model");
    char sha256[sizeof info->sha256] = "";
    if (info)
        bw_sha256_hex(bytes, size, sha256);
    if (mapped)
        bw_file_release_pages(bytes, size);
    bw_proto_allocator allocator;
    bw_proto_allocator_init(&allocator, mapped ? bytes : NULL, size);
    BwOnnx__ModelProto *m = bw_onnx__model_proto__unpack(&allocator.base, size, bytes);
    if (mapped)
        bw_file_release_pages(bytes, size);
    if (!m && allocator.exhausted)
        return bw_fail(err, BW_CORRUPT, "the model asks for far more memory than its %zu bytes can hold", size);
    if (!m)
        return bw_fail(err, BW_CORRUPT,
                       "no ONNX model, or damaged: the protocol buffer ends or breaks within its %zu "
                       "bytes",
                       size);
    if (info) {
        memset(info, 0, sizeof *info);
        snprintf(info->producer, sizeof info->producer, "%s%s%s", m->producer_name, m->producer_version[0] ? " " : "",
                 m->producer_version);
        memcpy(info->sha256, sha256, sizeof sha256);
    }
    bw_status st = BW_OK;
    if (im->binding_count && !(im->binding_used = calloc(im->binding_count, 1)))
        st = bw_fail(err, BW_NO_MEMORY, "no memory for %zu bindings", im->binding_count);
    if (!st)
        st = import_graph(im, m, err);
    if (info)
        info->opset = im->opset;
    bw_onnx__model_proto__free_unpacked(m, &allocator.base);
    bw_import_close_external(im);
    bw_name_map_free(&im->values);
    bw_name_map_free(&im->node_names);
    free(im->binding_used);
    if (st)
        bw_graph_free(im->g);
    else
        *g = im->g;
    return st;
}

bw_status bw_onnx_import(const char *path, const bw_binding *bindings, size_t binding_count, bw_graph **g,
                         bw_import_info *info, bw_error *err)
{
    const void *bytes;
    size_t size;
    *g = NULL;
    bw_status st = bw_file_map(path, &bytes, &size, err);
    if (st)
        return st;
    bw_importer im = {
        .path = path, .limit = BW_IMPORT_CONSTANT_BYTES, .bindings = bindings, .binding_count = binding_count};
    st = import_model(&im, bytes, size, 1, g, info, err);
    bw_file_unmap(bytes, size);
    return st ? bw_fail_context(err, st, "%s", path) : BW_OK;
}

bw_status bw_onnx_import_bytes(const void *bytes, size_t size, const bw_binding *bindings, size_t binding_count,
                               bw_graph **g, bw_import_info *info, bw_error *err)
{
    return bw_onnx_import_bounded(bytes, size, bindings, binding_count, BW_IMPORT_CONSTANT_BYTES, g, info, err);
}

bw_status bw_onnx_import_bounded(const void *bytes, size_t size, const bw_binding *bindings, size_t binding_count,
                                 uint64_t limit, bw_graph **g, bw_import_info *info, bw_error *err)
{
    bw_importer im = {.limit = limit, .bindings = bindings, .binding_count = binding_count};
    return import_model(&im, bytes, size, 0, g, info, err);
}
