/* SPDX-License-Identifier: Apache-2.0 */
/* The load generator's tensors in shared memory: see service/client/shared.h. */
#include "service/client/shared.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "hal/base.h"
#include "service/proto/inference.pb-c.h"

#define ALIGNMENT 4096u /* of each tensor: what servers read fastest */
#define SERVICE   "/inference.GRPCInferenceService/"

typedef Inference__ModelInferRequest__InferInputTensor input_tensor;
typedef Inference__ModelInferRequest__InferInputTensor__ParametersEntry input_parameter;
typedef Inference__ModelInferRequest__InferRequestedOutputTensor output_tensor;
typedef Inference__ModelInferRequest__InferRequestedOutputTensor__ParametersEntry output_parameter;

typedef struct shared_output {
    char name[256];
    size_t at, bytes; /* in a request's part */
} shared_output;

struct bw_bench_shared {
    const bw_bench_input *inputs;
    size_t input_count, output_count;
    size_t at[BW_MODEL_IO_MAX]; /* the inputs, in a request's part */
    shared_output outputs[BW_MODEL_IO_MAX];
    unsigned requests;
    size_t stride, size; /* of a part; of the segment */
    char key[64];        /* "/blockwave-bench-123-456"; without its '/' the region's name */
    int linked, registered;
    uint8_t *memory; /* mapped */
    uint8_t *taken;  /* where outputs are copied to, `requests` times out_bytes */
    size_t in_bytes, out_bytes;
    bw_slice *messages; /* into text */
    bw_bytes text;
};

static bw_status no_memory(bw_error *err)
{
    return bw_fail(err, BW_NO_MEMORY, "out of memory for the requests");
}

/* --- the segment -------------------------------------------------------------------------------------------------- */

/* Raw contents: values, or each picture with its length before it. */
static size_t raw_size(const bw_bench_input *in)
{
    return in->element == BW_ELEMENT_BYTES ? (size_t)in->dims[0] * (in->bytes + 4) : in->bytes;
}

static void copy_raw(const bw_bench_input *in, uint8_t *to)
{
    uint32_t length = (uint32_t)in->bytes;
    if (in->element != BW_ELEMENT_BYTES) {
        memcpy(to, in->values, in->bytes);
        return;
    }
    for (int64_t i = 0; i < in->dims[0]; i++, to += 4 + in->bytes) {
        memcpy(to, &length, 4);
        memcpy(to + 4, in->values, in->bytes);
    }
}

/* Room for a tensor in a part. 0: too large. */
static int add_room(bw_bench_shared *s, size_t bytes, size_t *at)
{
    *at = s->stride;
    return !__builtin_add_overflow(s->stride, bytes, &s->stride) &&
           !__builtin_add_overflow(s->stride, ALIGNMENT - 1, &s->stride) &&
           (s->stride = s->stride / ALIGNMENT * ALIGNMENT);
}

static bw_status lay_out(bw_bench_shared *s, bw_error *err)
{
    int fits = 1;
    for (size_t i = 0; i < s->input_count && fits; i++) {
        fits = add_room(s, raw_size(&s->inputs[i]), &s->at[i]);
        s->in_bytes += raw_size(&s->inputs[i]);
    }
    for (size_t i = 0; i < s->output_count && fits; i++) {
        fits = add_room(s, s->outputs[i].bytes, &s->outputs[i].at);
        s->out_bytes += s->outputs[i].bytes;
    }
    if (!fits || __builtin_mul_overflow(s->stride, s->requests, &s->size) || s->size > INT64_MAX)
        return bw_fail(err, BW_INVALID_ARGUMENT,
                       "%u requests of %zu bytes in shared memory: choose fewer --outstanding", s->requests, s->stride);
    return BW_OK;
}

static bw_status make_segment(bw_bench_shared *s, bw_error *err)
{
    int fd = -1;
    for (int tries = 0; tries < 100 && fd < 0; tries++) {
        snprintf(s->key, sizeof s->key, "/blockwave-bench-%ld-%" PRIx64, (long)getpid(), bw_now_ns());
        fd = shm_open(s->key, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (fd < 0 && errno != EEXIST)
            break;
    }
    if (fd < 0)
        return bw_fail_errno(err, "write", s->key, errno);
    s->linked = 1;
    /* Memory that is not there would end the process when it is touched. */
    int code = posix_fallocate(fd, 0, (off_t)s->size);
    if (!code) {
        s->memory = mmap(NULL, s->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
        code = s->memory == MAP_FAILED ? errno : 0;
    }
    if (code)
        s->memory = NULL;
    close(fd);
    if (code == ENOSPC || code == ENOMEM || code == EFBIG)
        return bw_fail(
            err, BW_EXHAUSTED,
            "%zu MB of shared memory for %u requests: %s: free memory on /dev/shm, or choose fewer --outstanding",
            s->size >> 20, s->requests, strerror(code));
    return code ? bw_fail_errno(err, "write", s->key, code) : BW_OK;
}

/* --- the messages ------------------------------------------------------------------------------------------------- */

/* Those whose size follows from the metadata; others come in the message. */
static bw_status find_outputs(bw_bench_shared *s, const bw_bench_shared_head *head, bw_error *err)
{
    if (!head->metadata)
        return BW_OK;
    Inference__ModelMetadataResponse *r = (Inference__ModelMetadataResponse *)bw_wire_unpack(
        &inference__model_metadata_response__descriptor, head->metadata, head->metadata_size);
    if (!r)
        return no_memory(err); /* it has been read before */
    for (size_t i = 0; i < r->n_outputs && s->output_count < BW_MODEL_IO_MAX; i++) {
        const bw_element_traits *e = bw_element_of_kserve(r->outputs[i]->datatype);
        shared_output *out = &s->outputs[s->output_count];
        size_t bytes = e ? e->size : 0;
        int known = bytes && strlen(r->outputs[i]->name) < sizeof out->name;
        for (size_t d = 0; d < r->outputs[i]->n_shape && known; d++) {
            int64_t n = r->outputs[i]->shape[d];
            n = n < 0 && d == 0 ? head->batch : n;
            known = n > 0 && !__builtin_mul_overflow(bytes, (size_t)n, &bytes);
        }
        if (!known)
            continue;
        snprintf(out->name, sizeof out->name, "%s", r->outputs[i]->name);
        out->bytes = bytes;
        s->output_count++;
    }
    /* A request names all outputs or none. */
    if (s->output_count != r->n_outputs)
        s->output_count = 0;
    bw_wire_unpack_free(&r->base);
    return BW_OK;
}

enum { REGION, OFFSET, BYTE_SIZE, PARAMETERS };

static void set_place(Inference__InferParameter values[PARAMETERS], const char *region, size_t at, size_t bytes)
{
    for (int i = 0; i < PARAMETERS; i++)
        inference__infer_parameter__init(&values[i]);
    values[REGION].parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_STRING_PARAM;
    values[REGION].string_param = (char *)(uintptr_t)region;
    values[OFFSET].parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_INT64_PARAM;
    values[OFFSET].int64_param = (int64_t)at;
    values[BYTE_SIZE].parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_INT64_PARAM;
    values[BYTE_SIZE].int64_param = (int64_t)bytes;
}

static char *const keys[PARAMETERS] = {(char[]){"shared_memory_region"}, (char[]){"shared_memory_offset"},
                                       (char[]){"shared_memory_byte_size"}};

static void append(bw_bytes *message, const ProtobufCMessage *part)
{
    uint8_t bytes[4096]; /* names of at most 255 bytes and a few numbers */
    size_t size = protobuf_c_message_get_packed_size(part);
    if (size <= sizeof bytes)
        bw_bytes_append(message, bytes, protobuf_c_message_pack(part, bytes));
    else
        message->failed = 1;
}

/* Parts of a message, one after the other, are the message. */
static void append_input(bw_bench_shared *s, size_t index, size_t at)
{
    const bw_bench_input *in = &s->inputs[index];
    Inference__ModelInferRequest q = INFERENCE__MODEL_INFER_REQUEST__INIT;
    input_tensor t = INFERENCE__MODEL_INFER_REQUEST__INFER_INPUT_TENSOR__INIT, *tensors = &t;
    Inference__InferParameter values[PARAMETERS];
    input_parameter entries[PARAMETERS], *pointers[PARAMETERS];
    set_place(values, s->key + 1, at, raw_size(in));
    for (int i = 0; i < PARAMETERS; i++) {
        inference__model_infer_request__infer_input_tensor__parameters_entry__init(&entries[i]);
        entries[i].key = keys[i];
        entries[i].value = &values[i];
        pointers[i] = &entries[i];
    }
    t.name = (char *)(uintptr_t)in->name;
    t.datatype = (char *)(uintptr_t)bw_element_get(in->element)->kserve;
    t.n_shape = (size_t)in->rank;
    t.shape = (int64_t *)(uintptr_t)in->dims;
    t.n_parameters = PARAMETERS;
    t.parameters = pointers;
    q.n_inputs = 1;
    q.inputs = &tensors;
    append(&s->text, &q.base);
}

static void append_output(bw_bench_shared *s, const shared_output *out, size_t at)
{
    Inference__ModelInferRequest q = INFERENCE__MODEL_INFER_REQUEST__INIT;
    output_tensor t = INFERENCE__MODEL_INFER_REQUEST__INFER_REQUESTED_OUTPUT_TENSOR__INIT, *tensors = &t;
    Inference__InferParameter values[PARAMETERS];
    output_parameter entries[PARAMETERS], *pointers[PARAMETERS];
    set_place(values, s->key + 1, at, out->bytes);
    for (int i = 0; i < PARAMETERS; i++) {
        inference__model_infer_request__infer_requested_output_tensor__parameters_entry__init(&entries[i]);
        entries[i].key = keys[i];
        entries[i].value = &values[i];
        pointers[i] = &entries[i];
    }
    t.name = (char *)(uintptr_t)out->name;
    t.n_parameters = PARAMETERS;
    t.parameters = pointers;
    q.n_outputs = 1;
    q.outputs = &tensors;
    append(&s->text, &q.base);
}

static bw_status make_messages(bw_bench_shared *s, const bw_bench_shared_head *head, bw_error *err)
{
    s->messages = calloc(s->requests, sizeof *s->messages);
    if (!s->messages)
        return no_memory(err);
    for (unsigned i = 0; i < s->requests; i++) {
        size_t begin = s->text.size, base = i * s->stride;
        Inference__ModelInferRequest q = INFERENCE__MODEL_INFER_REQUEST__INIT;
        q.model_name = (char *)(uintptr_t)head->model;
        q.model_version = (char *)(uintptr_t)head->version;
        append(&s->text, &q.base);
        for (size_t k = 0; k < s->input_count; k++)
            append_input(s, k, base + s->at[k]);
        for (size_t k = 0; k < s->output_count; k++)
            append_output(s, &s->outputs[k], base + s->outputs[k].at);
        s->messages[i].size = s->text.size - begin;
    }
    if (s->text.failed)
        return no_memory(err);
    const uint8_t *at = s->text.bytes; /* grows no more */
    for (unsigned i = 0; i < s->requests; at += s->messages[i++].size)
        s->messages[i].bytes = at;
    return BW_OK;
}

/* --- life --------------------------------------------------------------------------------------------------------- */

bw_status bw_bench_shared_open(const bw_bench_shared_head *head, const bw_bench_input *inputs, size_t count,
                               bw_bench_shared **shared, bw_error *err)
{
    bw_bench_shared *s = *shared = calloc(1, sizeof *s);
    if (!s)
        return no_memory(err);
    s->inputs = inputs;
    s->input_count = count;
    s->requests = head->requests;
    bw_status status = find_outputs(s, head, err);
    if (!status)
        status = lay_out(s, err);
    if (!status)
        status = make_segment(s, err);
    if (!status)
        status = make_messages(s, head, err);
    if (!status && s->out_bytes) {
        s->taken = calloc(s->requests, s->out_bytes);
        status = s->taken ? BW_OK : no_memory(err);
    }
    if (status) {
        bw_bench_shared_close(s, NULL);
        *shared = NULL;
    }
    return status;
}

static void unlink_segment(bw_bench_shared *s)
{
    if (s->linked)
        shm_unlink(s->key);
    s->linked = 0;
}

bw_status bw_bench_shared_register(bw_bench_shared *s, bw_load *load, double seconds, bw_error *err)
{
    Inference__SystemSharedMemoryRegisterRequest q = INFERENCE__SYSTEM_SHARED_MEMORY_REGISTER_REQUEST__INIT;
    uint8_t bytes[256];
    void *reply;
    size_t size;
    q.name = s->key + 1;
    q.key = s->key;
    q.byte_size = s->size;
    bw_status status =
        bw_load_call(load, 0, SERVICE "SystemSharedMemoryRegister", bytes,
                     inference__system_shared_memory_register_request__pack(&q, bytes), seconds, &reply, &size, err);
    free(reply);
    unlink_segment(s);
    s->registered = !status;
    return status;
}

static bw_status unregister(bw_load *load, const char *name, double seconds, bw_error *err)
{
    Inference__SystemSharedMemoryUnregisterRequest q = INFERENCE__SYSTEM_SHARED_MEMORY_UNREGISTER_REQUEST__INIT;
    uint8_t bytes[256];
    void *reply;
    size_t size;
    q.name = (char *)(uintptr_t)name;
    bw_status status =
        bw_load_call(load, 0, SERVICE "SystemSharedMemoryUnregister", bytes,
                     inference__system_shared_memory_unregister_request__pack(&q, bytes), seconds, &reply, &size, err);
    free(reply);
    return status;
}

bw_status bw_bench_shared_probe(bw_load *load, double seconds, bw_error *err)
{
    return unregister(load, "blockwave-bench", seconds, err); /* nobody's: it changes nothing */
}

void bw_bench_shared_close(bw_bench_shared *s, bw_load *load)
{
    if (!s)
        return;
    if (s->registered) {
        bw_error ignored; /* the server may have gone */
        bw_load_ignore_interrupts(load);
        unregister(load, s->key + 1, 2, &ignored);
    }
    unlink_segment(s);
    if (s->memory)
        munmap(s->memory, s->size);
    free(s->taken);
    free(s->messages);
    bw_bytes_free(&s->text);
    free(s);
}

/* --- a request ---------------------------------------------------------------------------------------------------- */

const bw_slice *bw_bench_shared_messages(const bw_bench_shared *s)
{
    return s->messages;
}

void bw_bench_shared_bytes(const bw_bench_shared *s, size_t *in, size_t *out)
{
    *in = s->in_bytes;
    *out = s->out_bytes;
}

void bw_bench_shared_fill(void *shared, unsigned request)
{
    bw_bench_shared *s = shared;
    for (size_t i = 0; i < s->input_count; i++)
        copy_raw(&s->inputs[i], s->memory + request * s->stride + s->at[i]);
}

void bw_bench_shared_take(void *shared, unsigned request)
{
    bw_bench_shared *s = shared;
    uint8_t *to = s->taken + request * s->out_bytes;
    for (size_t i = 0; i < s->output_count; to += s->outputs[i++].bytes)
        memcpy(to, s->memory + request * s->stride + s->outputs[i].at, s->outputs[i].bytes);
}
