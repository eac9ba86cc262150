/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PredictionService/Predict. The request is walked where it lies: the large members (tensor_content, packed float_val,
 * string_val) are read in place, protobuf-c gets the rest.
 */
#include "service/predict.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "service/proto/predict.pb-c.h"

typedef Tensorflow__Serving__ModelSpec model_spec;
typedef Tensorflow__Serving__TensorProto tensor_proto;

_Static_assert(sizeof(protobuf_c_boolean) == 4, "bool_val is read as int32");

#define NAME_MAX_BYTES 512
#define PICTURES_MAX   4096
/* Own names, TensorFlow's, and one alias. */
#define KEYS_MAX (2 * BW_MODEL_IO_MAX + 1)

typedef struct reply_key {
    char *name;
    int output;
} reply_key;

typedef struct predict_request {
    reply_key keys[KEYS_MAX];
    size_t key_count;
    char *signature;
} predict_request;

/* The request's top level, by reference. */
typedef struct predict_parts {
    bw_bytes spec;
    bw_cursor entries[BW_MODEL_IO_MAX], filters[BW_MODEL_IO_MAX];
    size_t entry_count, filter_count;
} predict_parts;

/* One TensorProto: what is large lies where it came in. */
typedef struct tensor_parts {
    bw_bytes head;
    bw_cursor content, floats, doubles;
    unsigned float_fields, double_fields;
    bw_cursor *strings;
    size_t string_count, string_room;
} tensor_parts;

static void free_request(void *request)
{
    predict_request *r = request;
    for (size_t i = 0; i < r->key_count; i++)
        free(r->keys[i].name);
    free(r->signature);
    free(r);
}

static bw_status malformed(const char *what, bw_error *err)
{
    return bw_fail(err, BW_INVALID_ARGUMENT, "malformed %s: not a protocol buffer message of that type", what);
}

static bw_status no_memory(bw_error *err)
{
    return bw_fail(err, BW_NO_MEMORY, "out of memory for the request: try again later");
}

/* --- the request's top level ------------------------------------------------------------------------------------ */

static bw_status scan_request(bw_cursor c, predict_parts *p, bw_error *err)
{
    bw_wire_field f;
    int more;
    while ((more = bw_wire_next(&c, &f)) > 0) {
        if (f.type != BW_WIRE_BYTES)
            continue;
        if (f.number == 1) {
            bw_bytes_append_cursor(&p->spec, f.body);
        } else if (f.number == 2) {
            if (p->entry_count == BW_MODEL_IO_MAX)
                return bw_fail(err, BW_INVALID_ARGUMENT, "more than %d inputs: send the model's only", BW_MODEL_IO_MAX);
            p->entries[p->entry_count++] = f.body;
        } else if (f.number == 3) {
            if (p->filter_count == BW_MODEL_IO_MAX)
                return bw_fail(err, BW_INVALID_ARGUMENT, "more than %d names in output_filter: name each output once",
                               BW_MODEL_IO_MAX);
            p->filters[p->filter_count++] = f.body;
        }
    }
    if (more < 0)
        return malformed("PredictRequest", err);
    return p->spec.failed ? no_memory(err) : BW_OK;
}

static bw_status choose_model(bw_scoring *s, predict_request *r, const bw_bytes *bytes, bw_error *err)
{
    model_spec *spec =
        (model_spec *)bw_wire_unpack(&tensorflow__serving__model_spec__descriptor, bytes->bytes, bytes->size);
    if (!spec)
        return malformed("ModelSpec", err);
    char version[24] = "";
    bw_status status = BW_OK;
    if (spec->version_choice_case == TENSORFLOW__SERVING__MODEL_SPEC__VERSION_CHOICE_VERSION)
        snprintf(version, sizeof version, "%" PRId64, spec->version->value);
    else if (spec->version_choice_case == TENSORFLOW__SERVING__MODEL_SPEC__VERSION_CHOICE_VERSION_LABEL)
        status =
            bw_fail(err, BW_NOT_FOUND, "no version has the label '%.80s': ask for a version by number, or for none",
                    spec->version_label);
    if (!status && spec->signature_name[0] && strcmp(spec->signature_name, "serving_default"))
        status = bw_fail(err, BW_INVALID_ARGUMENT,
                         "signature '%.80s' is not served: expected 'serving_default' or none", spec->signature_name);
    if (!status)
        status = bw_scoring_choose(s, spec->name, version, err);
    if (!status && !(r->signature = strdup("serving_default")))
        status = no_memory(err);
    bw_wire_unpack_free(&spec->base);
    return status;
}

/* --- tensors ---------------------------------------------------------------------------------------------------- */

static bw_status add_string(tensor_parts *t, bw_cursor body, bw_error *err)
{
    if (t->string_count == PICTURES_MAX)
        return bw_fail(err, BW_INVALID_ARGUMENT, "more than %d pictures in one tensor: split the request",
                       PICTURES_MAX);
    if (t->string_count == t->string_room) {
        size_t room = t->string_room ? t->string_room * 4 : 16;
        bw_cursor *grown = realloc(t->strings, room * sizeof *grown);
        if (!grown)
            return no_memory(err);
        t->strings = grown;
        t->string_room = room;
    }
    t->strings[t->string_count++] = body;
    return BW_OK;
}

/* A member given more than once, or unpacked, is rare: it goes through protobuf-c, which joins its parts. */
static bw_status scan_tensor(bw_cursor value, tensor_parts *t, bw_error *err)
{
    bw_wire_field f;
    int more;
    for (bw_cursor c = value; (more = bw_wire_next(&c, &f)) > 0;) {
        t->float_fields += f.number == 5;
        t->double_fields += f.number == 6;
    }
    for (bw_cursor c = value; more == 0 && c.left;) {
        bw_wire_next(&c, &f);
        bw_status status = BW_OK;
        if (f.type == BW_WIRE_BYTES && f.number == 4)
            t->content = f.body;
        else if (f.type == BW_WIRE_BYTES && f.number == 5 && t->float_fields == 1)
            t->floats = f.body;
        else if (f.type == BW_WIRE_BYTES && f.number == 6 && t->double_fields == 1)
            t->doubles = f.body;
        else if (f.type == BW_WIRE_BYTES && f.number == 8)
            status = add_string(t, f.body, err);
        else
            bw_bytes_append_cursor(&t->head, f.whole);
        if (status)
            return status;
    }
    if (more < 0)
        return malformed("TensorProto", err);
    return t->head.failed ? no_memory(err) : BW_OK;
}

static bw_cursor flat(bw_slice *slice, const void *bytes, size_t size)
{
    *slice = (bw_slice){bytes, size};
    return bw_cursor_over(slice, 1);
}

/* Where the values are, by dtype. `slice` lives as long as the result. */
static void locate_values(const tensor_parts *parts, const tensor_proto *p, bw_tensor_in *t, bw_slice *slice)
{
    t->in_message = parts->content.left || (t->element == BW_ELEMENT_F32 && parts->floats.left) ||
                    (t->element == BW_ELEMENT_F64 && parts->doubles.left);
    if (parts->content.left) {
        t->values = parts->content;
        return;
    }
    t->repeat = 1; /* as TensorFlow does it: a constant tensor may be sent as one value */
    switch (t->element) {
    case BW_ELEMENT_F32:
        t->values =
            parts->floats.left ? parts->floats : flat(slice, p->float_val, p->n_float_val * sizeof *p->float_val);
        break;
    case BW_ELEMENT_F64:
        t->values =
            parts->doubles.left ? parts->doubles : flat(slice, p->double_val, p->n_double_val * sizeof *p->double_val);
        break;
    case BW_ELEMENT_I64:
        t->values = flat(slice, p->int64_val, p->n_int64_val * sizeof *p->int64_val);
        break;
    case BW_ELEMENT_U32:
        t->values = flat(slice, p->uint32_val, p->n_uint32_val * sizeof *p->uint32_val);
        break;
    case BW_ELEMENT_U64:
        t->values = flat(slice, p->uint64_val, p->n_uint64_val * sizeof *p->uint64_val);
        break;
    case BW_ELEMENT_BOOL:
        t->values = flat(slice, p->bool_val, p->n_bool_val * sizeof *p->bool_val);
        t->storage = BW_STORAGE_I32;
        break;
    case BW_ELEMENT_F16:
    case BW_ELEMENT_BF16:
        t->values = flat(slice, p->half_val, p->n_half_val * sizeof *p->half_val);
        t->storage = BW_STORAGE_I32;
        break;
    default: /* the integers of up to 32 bits */
        t->values = flat(slice, p->int_val, p->n_int_val * sizeof *p->int_val);
        t->storage = t->element == BW_ELEMENT_I32 ? BW_STORAGE_SAME : BW_STORAGE_I32;
        break;
    }
}

static bw_status read_tensor(bw_scoring *s, const char *name, tensor_parts *parts, const tensor_proto *p, bw_error *err)
{
    const bw_element_traits *e = bw_element_of_tf((int)p->dtype);
    if (!e)
        return bw_fail(
            err, BW_INVALID_ARGUMENT,
            "input '%.100s': dtype %d, expected DT_FLOAT, another real number type, or DT_STRING for pictures", name,
            (int)p->dtype);
    bw_tensor_in t = {.name = name, .element = e->element};
    size_t rank = p->tensor_shape ? p->tensor_shape->n_dim : 0;
    if (rank > BW_RANK_MAX || (p->tensor_shape && p->tensor_shape->unknown_rank))
        return bw_fail(err, BW_INVALID_ARGUMENT, "input '%.100s': %zu dimensions, expected a known shape of at most %d",
                       name, rank, BW_RANK_MAX);
    t.rank = (int)rank;
    for (size_t i = 0; i < rank; i++)
        t.dims[i] = p->tensor_shape->dim[i]->size;
    if (e->element == BW_ELEMENT_BYTES) {
        bw_cursor *pictures = parts->strings;
        parts->strings = NULL;
        s->keep_message = 1;
        return bw_scoring_pictures(s, &t, pictures, parts->string_count, err);
    }
    bw_slice slice;
    locate_values(parts, p, &t, &slice);
    return bw_scoring_input(s, &t, err);
}

static bw_status read_name(bw_cursor c, char name[NAME_MAX_BYTES], const char *what, bw_error *err)
{
    if (c.left >= NAME_MAX_BYTES)
        return bw_fail(err, BW_INVALID_ARGUMENT, "%s of %zu bytes: a name has at most %d", what, c.left,
                       NAME_MAX_BYTES - 1);
    size_t size = c.left;
    bw_cursor_copy(&c, name, size);
    name[size] = 0;
    return BW_OK;
}

/* One entry of the map of inputs. */
static bw_status read_entry(bw_scoring *s, bw_cursor entry, char name[NAME_MAX_BYTES], bw_error *err)
{
    bw_cursor key = {0}, value = {0};
    bw_wire_field f;
    int more;
    while ((more = bw_wire_next(&entry, &f)) > 0) {
        if (f.type == BW_WIRE_BYTES && f.number == 1)
            key = f.body;
        else if (f.type == BW_WIRE_BYTES && f.number == 2)
            value = f.body;
    }
    if (more < 0)
        return malformed("PredictRequest.inputs", err);
    bw_status status = read_name(key, name, "an input's name", err);
    if (status)
        return status;
    tensor_parts parts = {0};
    status = scan_tensor(value, &parts, err);
    tensor_proto *p = NULL;
    if (!status) {
        p = (tensor_proto *)bw_wire_unpack(&tensorflow__serving__tensor_proto__descriptor, parts.head.bytes,
                                           parts.head.size);
        status = p ? read_tensor(s, name, &parts, p, err) : malformed("TensorProto", err);
    }
    if (p)
        bw_wire_unpack_free(&p->base);
    bw_bytes_free(&parts.head);
    free(parts.strings);
    return status;
}

/* --- which outputs, under which names ----------------------------------------------------------------------------- */

static bw_status add_key(predict_request *r, const char *name, const char *suffix, int output, bw_error *err)
{
    char *copy = malloc(strlen(name) + strlen(suffix) + 1);
    if (!copy)
        return no_memory(err);
    strcpy(copy, name);
    strcat(copy, suffix);
    for (size_t i = 0; i < r->key_count; i++) {
        if (!strcmp(r->keys[i].name, copy)) {
            free(copy);
            return BW_OK;
        }
    }
    r->keys[r->key_count++] = (reply_key){copy, output};
    return BW_OK;
}

static bw_status wanted_outputs(const bw_model *m, predict_request *r, const predict_parts *p, bw_error *err)
{
    for (size_t i = 0; i < p->filter_count; i++) {
        char name[NAME_MAX_BYTES];
        bw_status status = read_name(p->filters[i], name, "a name in output_filter", err);
        if (status)
            return status;
        int output = bw_tensor_find(m->outputs, m->output_count, name, "output_alias");
        if (output < 0) {
            char list[300];
            bw_tensor_list(m->outputs, m->output_count, list, sizeof list);
            return bw_fail(err, BW_INVALID_ARGUMENT,
                           "model '%.80s' has no output '%.80s': expected %s in output_filter", m->name, name, list);
        }
        status = add_key(r, name, "", output, err);
        if (status)
            return status;
    }
    return BW_OK;
}

static int has_suffix(const char *name)
{
    size_t n = strlen(name);
    return n > 2 && !strcmp(name + n - 2, ":0");
}

/* Without a filter: every output under its own name, and under those that the client's way of naming its inputs shows
 * it to expect (see docs/service.md). */
static bw_status all_outputs(const bw_model *m, predict_request *r, int preview_client, int tf_client, bw_error *err)
{
    bw_status status = BW_OK;
    for (int i = 0; i < m->output_count && !status; i++) {
        status = add_key(r, m->outputs[i]->name, "", i, err);
        if (!status && tf_client && !has_suffix(m->outputs[i]->name))
            status = add_key(r, m->outputs[i]->name, ":0", i, err);
    }
    if (!status && preview_client && m->output_count == 1)
        status = add_key(r, "output_alias", "", 0, err);
    return status;
}

/* --- encode ------------------------------------------------------------------------------------------------------- */

static void encode_output(bw_scoring *s, const reply_key *key, bw_writer *w)
{
    const bw_array *a = &s->outputs[key->output];
    const bw_element_traits *e = bw_element_of_dtype(a->dtype);
    Tensorflow__Serving__TensorShapeProto shape = TENSORFLOW__SERVING__TENSOR_SHAPE_PROTO__INIT;
    Tensorflow__Serving__TensorShapeProto__Dim dims[BW_RANK_MAX], *pointers[BW_RANK_MAX];
    for (int i = 0; i < a->rank; i++) {
        tensorflow__serving__tensor_shape_proto__dim__init(&dims[i]);
        dims[i].size = a->dims[i];
        pointers[i] = &dims[i];
    }
    shape.n_dim = (size_t)a->rank;
    shape.dim = pointers;
    tensor_proto head = TENSORFLOW__SERVING__TENSOR_PROTO__INIT;
    head.dtype = (Tensorflow__Serving__DataType)(e ? e->tf_number : 0);
    head.tensor_shape = &shape;
    /* float_val is packed: the same bytes as tensor_content, and every client reads it (some read nothing else). */
    uint32_t member = a->dtype == BW_F32 ? 5 : a->dtype == BW_F64 ? 6 : 4;
    size_t tensor_size = protobuf_c_message_get_packed_size(&head.base) + bw_field_size(member, a->bytes);
    size_t name_size = strlen(key->name);
    bw_writer_head(w, 1, bw_field_size(1, name_size) + bw_field_size(2, tensor_size));
    bw_writer_field(w, 1, key->name, name_size);
    bw_writer_head(w, 2, tensor_size);
    bw_writer_message(w, &head.base);
    bw_writer_head(w, member, a->bytes);
    bw_scoring_borrow_output(s, key->output, w);
}

static void encode(bw_scoring *s, bw_writer *w)
{
    const predict_request *r = s->request;
    for (size_t i = 0; i < r->key_count; i++)
        encode_output(s, &r->keys[i], w);
    model_spec spec = TENSORFLOW__SERVING__MODEL_SPEC__INIT;
    Tensorflow__Serving__Int64Value version = TENSORFLOW__SERVING__INT64_VALUE__INIT;
    char *end;
    spec.name = (char *)(uintptr_t)s->model->name;
    spec.signature_name = r->signature;
    version.value = strtoll(s->model->version, &end, 10);
    if (s->model->version[0] && !*end) {
        spec.version_choice_case = TENSORFLOW__SERVING__MODEL_SPEC__VERSION_CHOICE_VERSION;
        spec.version = &version;
    }
    bw_writer_head(w, 2, protobuf_c_message_get_packed_size(&spec.base));
    bw_writer_message(w, &spec.base);
}

/* --- the method --------------------------------------------------------------------------------------------------- */

static bw_status decode_parts(bw_scoring *s, predict_request *r, const predict_parts *p, bw_error *err)
{
    bw_status status = choose_model(s, r, &p->spec, err);
    /* Names first: a request that cannot be answered costs no conversion. */
    if (!status)
        status = wanted_outputs(s->model, r, p, err);
    int preview_client = 0, tf_client = 0;
    for (size_t i = 0; i < p->entry_count && !status; i++) {
        char name[NAME_MAX_BYTES];
        status = read_entry(s, p->entries[i], name, err);
        if (!status) {
            preview_client |= !strcmp(name, "images");
            tf_client |= has_suffix(name);
        }
    }
    if (!status && !p->filter_count)
        status = all_outputs(s->model, r, preview_client, tf_client, err);
    return status;
}

bw_status bw_predict_decode(bw_scoring *s, const bw_slice *slices, size_t count, bw_error *err)
{
    predict_request *r = calloc(1, sizeof *r);
    predict_parts *p = calloc(1, sizeof *p);
    if (!r || !p) {
        free(r);
        free(p);
        return no_memory(err);
    }
    s->request = r;
    s->request_free = free_request;
    s->encode = encode;
    bw_status status = scan_request(bw_cursor_over(slices, count), p, err);
    if (!status)
        status = decode_parts(s, r, p, err);
    bw_bytes_free(&p->spec);
    free(p);
    return status;
}

void bw_predict_handle(bw_call *call, void *user)
{
    bw_scoring *s = bw_scoring_begin(user, call);
    if (!s)
        return;
    bw_error err;
    if (bw_predict_decode(s, call->message, call->message_slices, &err))
        bw_scoring_fail(s, &err);
    else
        bw_scoring_submit(s);
}
