/* SPDX-License-Identifier: Apache-2.0 */
/* ModelInfer: raw_input_contents are read where they lie, protobuf-c gets the rest. */
#include "service/kserve.h"

#include <stdlib.h>
#include <string.h>

#include "service/proto/inference.pb-c.h"

typedef Inference__ModelInferRequest infer_request;
typedef Inference__ModelInferRequest__InferInputTensor input_tensor;
typedef Inference__InferTensorContents tensor_contents;

_Static_assert(sizeof(protobuf_c_boolean) == 4, "bool_contents is read as int32");

#define PICTURES_MAX 4096

typedef struct reply_output {
    const char *name; /* in the reply */
    int output;
} reply_output;

/* Small enough for the allocator's caches: most requests need no more. */
#define FEW 2
typedef struct kserve_request {
    infer_request *message; /* without raw_input_contents */
    size_t raw_count, output_count;
    bw_cursor *raw; /* few_raw, or an own block of BW_MODEL_IO_MAX */
    bw_cursor few_raw[FEW];
    reply_output *outputs; /* few_outputs, or an own block */
    reply_output few_outputs[FEW];
    bw_arena arena; /* over what follows */
    _Alignas(16) uint8_t memory[512];
} kserve_request;

static void free_request(void *request)
{
    kserve_request *r = request;
    if (r->message)
        bw_wire_unpack_free_in(&r->message->base, &r->arena);
    if (r->raw != r->few_raw)
        free(r->raw);
    if (r->outputs != r->few_outputs)
        free(r->outputs);
    free(r);
}

static bw_status no_memory(bw_error *err)
{
    return bw_fail(err, BW_NO_MEMORY, "out of memory for the request: try again later");
}

/* --- decode ------------------------------------------------------------------------------------------------------- */

static bw_status add_raw(kserve_request *r, bw_cursor body, bw_error *err)
{
    if (r->raw_count == BW_MODEL_IO_MAX)
        return bw_fail(err, BW_INVALID_ARGUMENT, "more than %d raw_input_contents: send one for each input",
                       BW_MODEL_IO_MAX);
    if (r->raw_count == FEW && r->raw == r->few_raw) {
        bw_cursor *many = malloc(BW_MODEL_IO_MAX * sizeof *many);
        if (!many)
            return no_memory(err);
        memcpy(many, r->few_raw, sizeof r->few_raw);
        r->raw = many;
    }
    r->raw[r->raw_count++] = body;
    return BW_OK;
}

/* Takes the raw contents out and unpacks what is left: as it lies, if that is in one range, as clients send it. */
static bw_status split_request(kserve_request *r, bw_cursor whole, bw_error *err)
{
    bw_bytes head = {0};
    bw_cursor range = {0};
    bw_wire_field f;
    bw_status status = BW_OK;
    int more, scattered = 0;
    size_t range_end = 0; /* what was left of the message there */
    for (bw_cursor c = whole; !status && (more = bw_wire_next(&c, &f)) > 0;) {
        if (f.number == 7 && f.type == BW_WIRE_BYTES) {
            status = add_raw(r, f.body, err);
            continue;
        }
        size_t begin = c.left + f.whole.left;
        if (!scattered && !range.left) {
            range = f.whole;
        } else if (!scattered && begin == range_end) {
            range.left += f.whole.left;
        } else {
            if (!scattered)
                bw_bytes_append_cursor(&head, range);
            scattered = 1;
            bw_bytes_append_cursor(&head, f.whole);
        }
        range_end = c.left;
    }
    bw_slice joined = {head.bytes, head.size};
    if (scattered)
        range = bw_cursor_over(&joined, 1);
    if (!status && more == 0 && !head.failed)
        r->message = (infer_request *)bw_wire_unpack_in(&inference__model_infer_request__descriptor, range, &r->arena);
    int failed = head.failed;
    bw_bytes_free(&head);
    if (status)
        return status;
    if (failed)
        return no_memory(err);
    return r->message ? BW_OK
                      : bw_fail(err, BW_INVALID_ARGUMENT,
                                "malformed ModelInferRequest: not a protocol buffer message of that type");
}

/* Extensions that change the meaning of a request are refused, others ignored. */
static bw_status refuse_parameter(const char *tensor, const char *key, bw_error *err)
{
    if (strncmp(key, "shared_memory", 13) && strcmp(key, "classification"))
        return BW_OK;
    return bw_fail(err, BW_UNSUPPORTED,
                   "tensor '%.100s': the parameter '%.60s' is not supported: send the values, and "
                   "take the whole output",
                   tensor, key);
}

static size_t content_count(const tensor_contents *c)
{
    return c ? c->n_bool_contents + c->n_int_contents + c->n_int64_contents + c->n_uint_contents +
                   c->n_uint64_contents + c->n_fp32_contents + c->n_fp64_contents + c->n_bytes_contents
             : 0;
}

static void locate_contents(const tensor_contents *c, bw_tensor_in *t, bw_slice *slice)
{
    *slice = (bw_slice){NULL, 0};
    if (!c) {
        t->values = bw_cursor_over(slice, 1);
        return;
    }
#define FROM(member)                                                                                                   \
    *slice = (bw_slice)                                                                                                \
    {                                                                                                                  \
        c->member, c->n_##member * sizeof *c->member                                                                   \
    }
    switch (t->element) {
    case BW_ELEMENT_F32:
        FROM(fp32_contents);
        break;
    case BW_ELEMENT_F64:
        FROM(fp64_contents);
        break;
    case BW_ELEMENT_I64:
        FROM(int64_contents);
        break;
    case BW_ELEMENT_U64:
        FROM(uint64_contents);
        break;
    case BW_ELEMENT_BOOL:
        FROM(bool_contents);
        t->storage = BW_STORAGE_I32;
        break;
    case BW_ELEMENT_U8:
    case BW_ELEMENT_U16:
    case BW_ELEMENT_U32:
        FROM(uint_contents);
        t->storage = t->element == BW_ELEMENT_U32 ? BW_STORAGE_SAME : BW_STORAGE_U32;
        break;
    case BW_ELEMENT_I8:
    case BW_ELEMENT_I16:
    case BW_ELEMENT_I32:
        FROM(int_contents);
        t->storage = t->element == BW_ELEMENT_I32 ? BW_STORAGE_SAME : BW_STORAGE_I32;
        break;
    default: /* FP16 and BF16 have no typed member: raw only */
        break;
    }
#undef FROM
    t->values = bw_cursor_over(slice, 1);
}

/* Raw strings: each a 4-byte little-endian length and its bytes. */
static bw_status raw_pictures(bw_scoring *s, const bw_tensor_in *t, bw_cursor c, bw_error *err)
{
    size_t count = 0, room = 0;
    bw_cursor *pictures = NULL;
    while (c.left) {
        uint32_t size = 0;
        int whole = c.left >= 4;
        if (whole)
            bw_cursor_copy(&c, &size, 4);
        if (!whole || size > c.left || count == PICTURES_MAX) {
            free(pictures);
            return bw_fail(
                err, BW_INVALID_ARGUMENT,
                "input '%.100s': raw BYTES do not hold together at element %zu: expected at most %d elements, "
                "each a 4-byte little-endian length and that many bytes",
                t->name, count, PICTURES_MAX);
        }
        if (count == room) {
            room = room ? room * 4 : 16;
            bw_cursor *grown = realloc(pictures, room * sizeof *grown);
            if (!grown) {
                free(pictures);
                return no_memory(err);
            }
            pictures = grown;
        }
        pictures[count] = c;
        pictures[count++].left = size;
        bw_cursor_skip(&c, size);
    }
    s->keep_message = 1;
    return bw_scoring_pictures(s, t, pictures, count, err);
}

/* Strings in the unpacked message, which lives as long as the scoring. */
static bw_status typed_pictures(bw_scoring *s, const bw_tensor_in *t, const tensor_contents *c, bw_error *err)
{
    size_t count = c ? c->n_bytes_contents : 0;
    if (count > PICTURES_MAX)
        return bw_fail(err, BW_INVALID_ARGUMENT, "input '%.100s': %zu pictures, at most %d: split the request", t->name,
                       count, PICTURES_MAX);
    /* One block: the cursors, and behind them the slices they point to. */
    bw_cursor *pictures = malloc((count + 1) * (sizeof(bw_cursor) + sizeof(bw_slice)));
    if (!pictures)
        return no_memory(err);
    bw_slice *slices = (bw_slice *)(void *)(pictures + count + 1);
    for (size_t i = 0; i < count; i++) {
        slices[i] = (bw_slice){c->bytes_contents[i].data, c->bytes_contents[i].len};
        pictures[i] = bw_cursor_over(&slices[i], 1);
    }
    return bw_scoring_pictures(s, t, pictures, count, err);
}

static bw_status read_input(bw_scoring *s, const kserve_request *r, size_t index, bw_error *err)
{
    const input_tensor *in = r->message->inputs[index];
    const bw_element_traits *e = bw_element_of_kserve(in->datatype);
    if (!e)
        return bw_fail(
            err, BW_INVALID_ARGUMENT,
            "input '%.100s': datatype '%.20s', expected FP32, another real number type, or BYTES for pictures",
            in->name, in->datatype);
    if (in->n_shape > BW_RANK_MAX)
        return bw_fail(err, BW_INVALID_ARGUMENT, "input '%.100s': %zu dimensions, expected at most %d", in->name,
                       in->n_shape, BW_RANK_MAX);
    for (size_t i = 0; i < in->n_parameters; i++) {
        bw_status status = refuse_parameter(in->name, in->parameters[i]->key, err);
        if (status)
            return status;
    }
    bw_tensor_in t = {.name = in->name, .element = e->element, .rank = (int)in->n_shape};
    for (size_t i = 0; i < in->n_shape; i++)
        t.dims[i] = in->shape[i];
    if (r->raw_count && content_count(in->contents))
        return bw_fail(err, BW_INVALID_ARGUMENT,
                       "input '%.100s' has contents although raw_input_contents are sent: use one of the two",
                       in->name);
    if (e->element == BW_ELEMENT_BYTES)
        return r->raw_count ? raw_pictures(s, &t, r->raw[index], err) : typed_pictures(s, &t, in->contents, err);
    bw_slice slice;
    t.in_message = r->raw_count > 0;
    if (t.in_message)
        t.values = r->raw[index];
    else
        locate_contents(in->contents, &t, &slice);
    return bw_scoring_input(s, &t, err);
}

static bw_status wanted_outputs(const bw_model *m, kserve_request *r, bw_error *err)
{
    const infer_request *q = r->message;
    if (q->n_outputs > BW_MODEL_IO_MAX)
        return bw_fail(err, BW_INVALID_ARGUMENT, "more than %d outputs: name each once", BW_MODEL_IO_MAX);
    size_t count = q->n_outputs ? q->n_outputs : (size_t)m->output_count;
    if (count > FEW) {
        r->outputs = malloc(count * sizeof *r->outputs);
        if (!r->outputs)
            return no_memory(err);
    }
    if (!q->n_outputs) {
        for (int i = 0; i < m->output_count; i++)
            r->outputs[i] = (reply_output){m->outputs[i]->name, i};
        r->output_count = count;
        return BW_OK;
    }
    for (size_t i = 0; i < q->n_outputs; i++) {
        const char *name = q->outputs[i]->name;
        r->outputs[i] = (reply_output){name, bw_tensor_find(m->outputs, m->output_count, name, "output_alias")};
        if (r->outputs[i].output < 0) {
            char list[300];
            bw_tensor_list(m->outputs, m->output_count, list, sizeof list);
            return bw_fail(err, BW_INVALID_ARGUMENT, "model '%.80s' has no output '%.80s': expected %s", m->name, name,
                           list);
        }
        for (size_t j = 0; j < q->outputs[i]->n_parameters; j++) {
            bw_status status = refuse_parameter(name, q->outputs[i]->parameters[j]->key, err);
            if (status)
                return status;
        }
    }
    r->output_count = q->n_outputs;
    return BW_OK;
}

/* --- encode ------------------------------------------------------------------------------------------------------- */

/* Typed members whose packed bytes are the values themselves; others are sent raw. */
static uint32_t packed_member(bw_dtype dtype)
{
    return dtype == BW_F32 ? 6 : dtype == BW_F64 ? 7 : 0;
}

static void encode_output(bw_scoring *s, const char *name, int output, int typed, bw_writer *w)
{
    const bw_array *a = &s->outputs[output];
    const bw_element_traits *e = bw_element_of_dtype(a->dtype);
    Inference__ModelInferResponse__InferOutputTensor head = INFERENCE__MODEL_INFER_RESPONSE__INFER_OUTPUT_TENSOR__INIT;
    head.name = (char *)(uintptr_t)name;
    head.datatype = (char *)(uintptr_t)(e ? e->kserve : "");
    head.n_shape = (size_t)a->rank;
    head.shape = (int64_t *)(uintptr_t)a->dims;
    size_t head_size = protobuf_c_message_get_packed_size(&head.base);
    uint32_t member = packed_member(a->dtype);
    size_t contents_size = bw_field_size(member, a->bytes);
    bw_writer_head(w, 5, head_size + (typed ? bw_field_size(5, contents_size) : 0));
    bw_writer_message(w, &head.base);
    if (typed) {
        bw_writer_head(w, 5, contents_size);
        bw_writer_head(w, member, a->bytes);
        bw_scoring_borrow_output(s, output, w);
    }
}

/* Values come back the way they were sent: raw for raw, typed for typed. All outputs alike, as the protocol wants. */
static void encode(bw_scoring *s, bw_writer *w)
{
    const kserve_request *r = s->request;
    Inference__ModelInferResponse head = INFERENCE__MODEL_INFER_RESPONSE__INIT;
    head.model_name = (char *)(uintptr_t)s->model->name;
    head.model_version = (char *)(uintptr_t)s->model->version;
    head.id = r->message->id;
    bw_writer_message(w, &head.base);
    int typed = !r->raw_count;
    for (size_t i = 0; i < r->output_count; i++)
        typed &= packed_member(s->outputs[r->outputs[i].output].dtype) != 0;
    for (size_t i = 0; i < r->output_count; i++)
        encode_output(s, r->outputs[i].name, r->outputs[i].output, typed, w);
    for (size_t i = 0; i < r->output_count && !typed; i++) {
        bw_writer_head(w, 6, s->outputs[r->outputs[i].output].bytes);
        bw_scoring_borrow_output(s, r->outputs[i].output, w);
    }
}

/* --- the method --------------------------------------------------------------------------------------------------- */

static bw_status decode(bw_scoring *s, kserve_request *r, bw_cursor whole, bw_error *err)
{
    bw_status status = split_request(r, whole, err);
    if (!status)
        status = bw_scoring_choose(s, r->message->model_name, r->message->model_version, err);
    if (!status && r->raw_count && r->raw_count != r->message->n_inputs)
        status = bw_fail(err, BW_INVALID_ARGUMENT, "%zu raw_input_contents for %zu inputs: send one for each input",
                         r->raw_count, r->message->n_inputs);
    if (!status)
        status = wanted_outputs(s->model, r, err);
    for (size_t i = 0; !status && i < r->message->n_inputs; i++)
        status = read_input(s, r, i, err);
    return status;
}

bw_status bw_kserve_decode(bw_scoring *s, const bw_slice *slices, size_t count, bw_error *err)
{
    kserve_request *r = malloc(sizeof *r);
    if (!r)
        return no_memory(err);
    r->message = NULL;
    r->raw_count = r->output_count = 0;
    r->raw = r->few_raw;
    r->outputs = r->few_outputs;
    r->arena = (bw_arena){r->memory, sizeof r->memory, 0};
    s->request = r;
    s->request_free = free_request;
    s->encode = encode;
    return decode(s, r, bw_cursor_over(slices, count), err);
}

void bw_kserve_model_infer(bw_call *call, void *user)
{
    bw_scoring *s = bw_scoring_begin(user, call);
    if (!s)
        return;
    bw_error err;
    if (bw_kserve_decode(s, call->message, call->message_slices, &err))
        bw_scoring_fail(s, &err);
    else
        bw_scoring_submit(s);
}
