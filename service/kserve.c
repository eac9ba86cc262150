/* SPDX-License-Identifier: Apache-2.0 */
/* ModelInfer: raw_input_contents are read where they lie, protobuf-c gets the rest. */
#include "service/kserve.h"

#include <stdlib.h>
#include <string.h>

#include "service/kserve_shared_memory.h"

typedef Inference__ModelInferRequest infer_request;
typedef Inference__ModelInferRequest__InferInputTensor input_tensor;
typedef Inference__InferTensorContents tensor_contents;

_Static_assert(sizeof(protobuf_c_boolean) == 4, "bool_contents is read as int32");

#define PICTURES_MAX 4096

typedef struct reply_output {
    const char *name; /* in the reply */
    int output;
    bw_shared_range shared; /* region not NULL: the values go there instead */
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
    size_t shared_inputs; /* have no raw contents */
    size_t region_count;
    bw_shared_region **regions; /* with references: few_regions, or an own block for all inputs and outputs */
    bw_shared_region *few_regions[2 * FEW];
    bw_slice held;  /* pictures that lay in shared memory */
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
    for (size_t i = 0; i < r->region_count; i++)
        bw_shared_region_release(r->regions[i]);
    if (r->regions != r->few_regions)
        free(r->regions);
    free((void *)(uintptr_t)r->held.bytes);
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

/* A tensor's range of shared memory, whose region stays until the request ends. */
static bw_status find_shared(const bw_scoring *s, kserve_request *r, const bw_kserve_place *place, const char *tensor,
                             bw_shared_range *range, bw_error *err)
{
    bw_status status = bw_kserve_find_place(place, s->scorer->shared_memory, tensor, range, err);
    if (status || !range->region)
        return status;
    if (r->region_count == 2 * FEW && r->regions == r->few_regions) {
        bw_shared_region **many = malloc(2 * BW_MODEL_IO_MAX * sizeof(bw_shared_region *));
        if (many) {
            memcpy(many, r->few_regions, sizeof r->few_regions);
            r->regions = many;
        } else {
            status = no_memory(err);
        }
    }
    if (!status && r->region_count == 2 * BW_MODEL_IO_MAX)
        status = bw_fail(err, BW_INVALID_ARGUMENT, "more than %d tensors in shared memory: send each once",
                         2 * BW_MODEL_IO_MAX);
    if (status)
        bw_shared_region_release(range->region);
    else
        r->regions[r->region_count++] = range->region;
    return status;
}

static size_t count_shared(const infer_request *q)
{
    size_t count = 0;
    for (size_t i = 0; i < q->n_inputs; i++) {
        int found = 0;
        for (size_t k = 0; k < q->inputs[i]->n_parameters; k++)
            found |= !strcmp(q->inputs[i]->parameters[k]->key, "shared_memory_region");
        count += (size_t)found;
    }
    return count;
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

/* Pictures are decoded from memory of ours: the segment may change meanwhile. */
static bw_status shared_pictures(bw_scoring *s, kserve_request *r, const bw_tensor_in *t, bw_error *err)
{
    const size_t size = t->shared.size, limit = s->scorer->tensor_bytes_max;
    if (r->held.bytes)
        return bw_fail(err, BW_INVALID_ARGUMENT, "input '%.100s': only one input takes pictures: send them once",
                       t->name);
    if (size > limit)
        return bw_fail(err, BW_EXHAUSTED,
                       "input '%.100s': %zu bytes of pictures, at most %zu MB: send a smaller batch, or raise "
                       "--max-message-mb",
                       t->name, size, limit >> 20);
    void *bytes = malloc(size ? size : 1);
    if (!bytes)
        return no_memory(err);
    r->held = (bw_slice){bytes, size};
    s->held_bytes = size;
    bw_status status = bw_shared_read(&t->shared, 0, bytes, size, err);
    return status ? status : raw_pictures(s, t, bw_cursor_over(&r->held, 1), err);
}

static bw_status read_input(bw_scoring *s, kserve_request *r, size_t index, bw_cursor **raw, bw_error *err)
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
    bw_kserve_place place = {0};
    bw_status status = BW_OK;
    for (size_t i = 0; i < in->n_parameters && !status; i++)
        status = bw_kserve_take_parameter(&place, in->name, in->parameters[i]->key, in->parameters[i]->value, err);
    if (status)
        return status;
    bw_tensor_in t = {.name = in->name, .element = e->element, .rank = (int)in->n_shape};
    for (size_t i = 0; i < in->n_shape; i++)
        t.dims[i] = in->shape[i];
    status = find_shared(s, r, &place, in->name, &t.shared, err);
    if (status)
        return status;
    if (t.shared.region && content_count(in->contents))
        return bw_fail(err, BW_INVALID_ARGUMENT,
                       "input '%.100s' has contents although it lies in shared memory: use one of the two", in->name);
    if (t.shared.region)
        return e->element == BW_ELEMENT_BYTES ? shared_pictures(s, r, &t, err) : bw_scoring_input(s, &t, err);
    if (r->raw_count && content_count(in->contents))
        return bw_fail(err, BW_INVALID_ARGUMENT,
                       "input '%.100s' has contents although raw_input_contents are sent: use one of the two",
                       in->name);
    t.in_message = r->raw_count > 0;
    if (t.in_message)
        t.values = *(*raw)++;
    if (e->element == BW_ELEMENT_BYTES)
        return t.in_message ? raw_pictures(s, &t, t.values, err) : typed_pictures(s, &t, in->contents, err);
    bw_slice slice;
    if (!t.in_message)
        locate_contents(in->contents, &t, &slice);
    return bw_scoring_input(s, &t, err);
}

static bw_status wanted_outputs(const bw_scoring *s, kserve_request *r, bw_error *err)
{
    const bw_model *m = s->model;
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
            r->outputs[i] = (reply_output){.name = m->outputs[i]->name, .output = i};
        r->output_count = count;
        return BW_OK;
    }
    for (size_t i = 0; i < q->n_outputs; i++) {
        const char *name = q->outputs[i]->name;
        int output = bw_tensor_find(m->outputs, m->output_count, name, "output_alias");
        r->outputs[i] = (reply_output){.name = name, .output = output};
        if (r->outputs[i].output < 0) {
            char list[300];
            bw_tensor_list(m->outputs, m->output_count, list, sizeof list);
            return bw_fail(err, BW_INVALID_ARGUMENT, "model '%.80s' has no output '%.80s': expected %s", m->name, name,
                           list);
        }
        bw_kserve_place place = {0};
        bw_status status = BW_OK;
        for (size_t j = 0; j < q->outputs[i]->n_parameters && !status; j++)
            status = bw_kserve_take_parameter(&place, name, q->outputs[i]->parameters[j]->key,
                                              q->outputs[i]->parameters[j]->value, err);
        if (!status)
            status = find_shared(s, r, &place, name, &r->outputs[i].shared, err);
        if (status)
            return status;
    }
    r->output_count = q->n_outputs;
    return BW_OK;
}

/* --- outputs in shared memory ------------------------------------------------------------------------------------- */

static bw_status check_room(const reply_output *out, size_t bytes, bw_error *err)
{
    return bytes <= out->shared.size
               ? BW_OK
               : bw_fail(err, BW_INVALID_ARGUMENT,
                         "output '%.100s': shared_memory_byte_size is %llu, its values take %zu bytes: give it so many",
                         out->name, (unsigned long long)out->shared.size, bytes);
}

/* As far as sizes are known before the run. */
static bw_status check_rooms(const bw_scoring *s, const kserve_request *r, bw_error *err)
{
    int64_t batch = s->pictures ? (int64_t)s->picture_count : s->inputs[0].rank ? s->inputs[0].dims[0] : 1;
    for (size_t i = 0; i < r->output_count; i++) {
        if (!r->outputs[i].shared.region)
            continue;
        const bw_io *io = s->model->outputs[r->outputs[i].output];
        size_t bytes = bw_dtype_size(io->dtype);
        for (int d = 0; d < io->rank; d++) {
            int64_t n = io->dims[d] >= 0 ? io->dims[d] : d ? 0 : batch;
            if (__builtin_mul_overflow(bytes, (size_t)n, &bytes))
                bytes = SIZE_MAX;
        }
        bw_status status = check_room(&r->outputs[i], bytes, err);
        if (status)
            return status;
    }
    return BW_OK;
}

static bw_status deliver(bw_scoring *s, bw_error *err)
{
    const kserve_request *r = s->request;
    bw_status status = BW_OK;
    for (size_t i = 0; i < r->output_count && !status; i++) {
        const reply_output *out = &r->outputs[i];
        const bw_array *a = &s->outputs[out->output];
        if (!out->shared.region)
            continue;
        status = check_room(out, a->bytes, err);
        if (!status)
            status = bw_shared_write(&out->shared, 0, a->data, a->bytes, err);
    }
    return status;
}

/* --- encode ------------------------------------------------------------------------------------------------------- */

/* Typed members whose packed bytes are the values themselves; others are sent raw. */
static uint32_t packed_member(bw_dtype dtype)
{
    return dtype == BW_F32 ? 6 : dtype == BW_F64 ? 7 : 0;
}

static void encode_output(bw_scoring *s, const reply_output *out, int typed, bw_writer *w)
{
    const bw_array *a = &s->outputs[out->output];
    const bw_element_traits *e = bw_element_of_dtype(a->dtype);
    Inference__ModelInferResponse__InferOutputTensor head = INFERENCE__MODEL_INFER_RESPONSE__INFER_OUTPUT_TENSOR__INIT;
    head.name = (char *)(uintptr_t)out->name;
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
        bw_scoring_borrow_output(s, out->output, w);
    }
}

/* Values come back the way they were sent: raw for raw (and for shared memory), typed for typed. All outputs alike, as
 * the protocol wants. One in shared memory has raw contents of no bytes: clients count them. */
static void encode(bw_scoring *s, bw_writer *w)
{
    const kserve_request *r = s->request;
    Inference__ModelInferResponse head = INFERENCE__MODEL_INFER_RESPONSE__INIT;
    head.model_name = (char *)(uintptr_t)s->model->name;
    head.model_version = (char *)(uintptr_t)s->model->version;
    head.id = r->message->id;
    bw_writer_message(w, &head.base);
    int typed = !r->raw_count && !r->shared_inputs;
    for (size_t i = 0; i < r->output_count; i++)
        typed &= r->outputs[i].shared.region || packed_member(s->outputs[r->outputs[i].output].dtype);
    for (size_t i = 0; i < r->output_count; i++)
        encode_output(s, &r->outputs[i], typed && !r->outputs[i].shared.region, w);
    for (size_t i = 0; i < r->output_count && !typed; i++) {
        const reply_output *out = &r->outputs[i];
        bw_writer_head(w, 6, out->shared.region ? 0 : s->outputs[out->output].bytes);
        if (!out->shared.region)
            bw_scoring_borrow_output(s, out->output, w);
    }
}

/* --- the method --------------------------------------------------------------------------------------------------- */

static bw_status decode(bw_scoring *s, kserve_request *r, bw_cursor whole, bw_error *err)
{
    bw_status status = split_request(r, whole, err);
    if (!status)
        status = bw_scoring_choose(s, r->message->model_name, r->message->model_version, err);
    if (status)
        return status;
    const infer_request *q = r->message;
    r->shared_inputs = s->scorer->shared_memory ? count_shared(q) : 0;
    if (r->raw_count && r->raw_count != q->n_inputs - r->shared_inputs)
        return bw_fail(err, BW_INVALID_ARGUMENT, "%zu raw_input_contents for %zu inputs%s: send one for each input%s",
                       r->raw_count, q->n_inputs - r->shared_inputs,
                       r->shared_inputs ? " that are not in shared memory" : "", r->shared_inputs ? " of these" : "");
    status = wanted_outputs(s, r, err);
    bw_cursor *raw = r->raw;
    for (size_t i = 0; !status && i < q->n_inputs; i++)
        status = read_input(s, r, i, &raw, err);
    if (!status && r->region_count) {
        s->deliver = deliver;
        status = check_rooms(s, r, err);
    }
    return status;
}

bw_status bw_kserve_decode(bw_scoring *s, const bw_slice *slices, size_t count, bw_error *err)
{
    kserve_request *r = malloc(sizeof *r);
    if (!r)
        return no_memory(err);
    r->message = NULL;
    r->raw_count = r->output_count = r->shared_inputs = r->region_count = 0;
    r->regions = r->few_regions;
    r->held = (bw_slice){NULL, 0};
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
