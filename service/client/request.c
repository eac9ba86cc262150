/* SPDX-License-Identifier: Apache-2.0 */
/* What the load generator sends: see service/client/request.h. */
#include "service/client/request.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/npy.h"
#include "kernels/formats.h"
#include "service/proto/inference.pb-c.h"
#include "service/proto/predict.pb-c.h"

#define FILE_LIMIT    ((size_t)1 << 30)
#define MESSAGE_LIMIT ((size_t)1 << 31)

const char *bw_bench_protocol_name(bw_bench_protocol protocol)
{
    static const char *const names[] = {"kserve", "kserve-typed", "predict"};
    return names[protocol];
}

const char *bw_bench_protocol_path(bw_bench_protocol protocol)
{
    return protocol == BW_BENCH_PREDICT ? "/tensorflow.serving.PredictionService/Predict"
                                        : "/inference.GRPCInferenceService/ModelInfer";
}

void bw_bench_inputs_free(bw_bench_input *inputs, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        free(inputs[i].values);
        inputs[i].values = NULL;
    }
}

double bw_bench_random(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return (double)(*state * 0x2545f4914f6cdd1du >> 11) * 0x1p-53;
}

void bw_bench_printable(const void *from, size_t length, char *text, size_t size)
{
    const uint8_t *bytes = from;
    size_t n = length < size ? length : size - 1;
    for (size_t i = 0; i < n; i++)
        text[i] = bytes[i] < 0x20 ? ' ' : bytes[i] > 0x7e ? '?' : (char)bytes[i];
    text[n] = 0;
}

int bw_bench_is_utf8(const char *text)
{
    json_t *j = json_string(text);
    json_decref(j);
    return j != NULL;
}

static bw_status no_memory(bw_error *err)
{
    return bw_fail(err, BW_NO_MEMORY, "out of memory for the request: take a smaller --batch");
}

/* --- metadata ----------------------------------------------------------------------------------------------------- */

static void append_packed(bw_bytes *message, const ProtobufCMessage *m)
{
    size_t size = protobuf_c_message_get_packed_size(m);
    uint8_t *bytes = malloc(size ? size : 1);
    if (!bytes) {
        message->failed = 1;
        return;
    }
    protobuf_c_message_pack(m, bytes);
    bw_bytes_append(message, bytes, size);
    free(bytes);
}

bw_status bw_bench_metadata_request(const char *model, const char *version, bw_bytes *message, bw_error *err)
{
    Inference__ModelMetadataRequest q = INFERENCE__MODEL_METADATA_REQUEST__INIT;
    q.name = (char *)(uintptr_t)model;
    q.version = (char *)(uintptr_t)version;
    append_packed(message, &q.base);
    return message->failed ? no_memory(err) : BW_OK;
}

/* U+0080 to U+009F are control characters as well. */
static bw_status check_name(const char *what, const char *name, bw_error *err)
{
    int plain = strlen(name) < 256 && bw_bench_is_utf8(name);
    for (const uint8_t *p = (const uint8_t *)name; *p && plain; p++)
        plain = *p >= 0x20 && *p != 0x7f && !(*p == 0xc2 && p[1] < 0xa0);
    if (plain)
        return BW_OK;
    char text[100];
    bw_bench_printable(name, strlen(name), text, sizeof text);
    return bw_fail(err, BW_UNSUPPORTED,
                   "the server's %s '%s': expected UTF-8 of at most 255 bytes without control characters", what, text);
}

static bw_status read_input(const Inference__ModelMetadataResponse__TensorMetadata *t, bw_bench_input *in,
                            bw_error *err)
{
    bw_status status = check_name("input name", t->name, err);
    if (!status)
        status = check_name("datatype", t->datatype, err);
    if (status)
        return status;
    const bw_element_traits *e = bw_element_of_kserve(t->datatype);
    if (!e || e->element != BW_ELEMENT_F32)
        return bw_fail(err, BW_UNSUPPORTED,
                       "the model's input '%.100s' is %.20s: only models of FP32 inputs are driven", t->name,
                       t->datatype);
    if (t->n_shape > BW_RANK_MAX)
        return bw_fail(err, BW_UNSUPPORTED, "the model's input '%.100s' has %zu dimensions, at most %d are supported",
                       t->name, t->n_shape, BW_RANK_MAX);
    memset(in, 0, sizeof *in);
    snprintf(in->name, sizeof in->name, "%s", t->name);
    in->element = BW_ELEMENT_F32;
    in->rank = (int)t->n_shape;
    for (size_t i = 0; i < t->n_shape; i++)
        in->dims[i] = t->shape[i];
    return BW_OK;
}

bw_status bw_bench_inputs_from_metadata(const void *bytes, size_t size, bw_bench_input inputs[BW_MODEL_IO_MAX],
                                        size_t *count, char model[256], bw_error *err)
{
    *count = 0;
    Inference__ModelMetadataResponse *r = (Inference__ModelMetadataResponse *)bw_wire_unpack(
        &inference__model_metadata_response__descriptor, bytes, size);
    if (!r)
        return bw_fail(err, BW_CORRUPT, "the server's ModelMetadata answer is malformed: name the inputs with --shape");
    bw_status status = check_name("model name", r->name, err);
    if (!status && (r->n_inputs < 1 || r->n_inputs > BW_MODEL_IO_MAX))
        status =
            bw_fail(err, BW_UNSUPPORTED, "the model has %zu inputs, 1..%d are supported", r->n_inputs, BW_MODEL_IO_MAX);
    for (size_t i = 0; i < r->n_inputs && !status; i++) {
        status = read_input(r->inputs[i], &inputs[i], err);
        *count = i + 1;
    }
    if (!status)
        snprintf(model, 256, "%s", r->name);
    bw_wire_unpack_free(&r->base);
    return status;
}

/* --- inputs ------------------------------------------------------------------------------------------------------- */

static bw_status parse_shape(bw_bench_input *in, const char *text, bw_error *err)
{
    int rank = 0;
    for (const char *p = text;; p++) {
        char *end;
        errno = 0;
        long long value = strtoll(p, &end, 10);
        if (rank == BW_RANK_MAX || end == p || errno || value < 1 || (*end && *end != ','))
            return bw_fail(err, BW_INVALID_ARGUMENT,
                           "--shape '%.100s': expected 1..%d positive numbers with commas between, such as 1,3,224,224",
                           text, BW_RANK_MAX);
        in->dims[rank++] = value;
        p = end;
        if (!*p)
            break;
    }
    in->rank = rank;
    return BW_OK;
}

bw_status bw_bench_settle_shape(bw_bench_input *in, const char *dims, int64_t batch, bw_error *err)
{
    if (dims) {
        bw_status status = parse_shape(in, dims, err);
        if (!status && batch != 1 && in->dims[0] != batch)
            status = bw_fail(err, BW_INVALID_ARGUMENT,
                             "--batch %lld and --shape %.100s of input '%.100s' disagree: give one of them",
                             (long long)batch, dims, in->name);
        return status;
    }
    if (in->rank && in->dims[0] < 0)
        in->dims[0] = batch;
    else if (in->rank && batch != 1 && in->dims[0] != batch)
        return bw_fail(err, BW_INVALID_ARGUMENT, "--batch %lld: input '%.100s' has a fixed batch of %lld",
                       (long long)batch, in->name, (long long)in->dims[0]);
    for (int i = 0; i < in->rank; i++) {
        if (in->dims[i] < 1) {
            char shape[128];
            return bw_fail(err, BW_INVALID_ARGUMENT,
                           "input '%.80s' has the open shape %s: choose one with --shape %.80s=", in->name,
                           bw_io_shape_text(in->dims, in->rank, shape), in->name);
        }
    }
    return BW_OK;
}

static bw_status float_room(bw_bench_input *in, size_t *count, bw_error *err)
{
    size_t n = sizeof(float);
    for (int i = 0; i < in->rank; i++) {
        if (__builtin_mul_overflow(n, (size_t)in->dims[i], &n) || n > FILE_LIMIT)
            return bw_fail(err, BW_INVALID_ARGUMENT,
                           "input '%.100s' is larger than 1 GB: choose a smaller --batch or "
                           "--shape",
                           in->name);
    }
    in->values = malloc(n ? n : 1);
    if (!in->values)
        return no_memory(err);
    in->bytes = n;
    *count = n / sizeof(float);
    return BW_OK;
}

/* The rows of the file must be those of the input; of them, the first `batch` are taken. */
static bw_status check_npy(const bw_bench_input *in, const char *path, const bw_npy_header *h, bw_error *err)
{
    int fits = h->rank == in->rank && (!in->rank || h->dims[0] >= in->dims[0]);
    for (int i = 1; i < in->rank && fits; i++)
        fits = h->dims[i] == in->dims[i];
    if (fits)
        return BW_OK;
    char got[128], want[128];
    return bw_fail(err, BW_INVALID_ARGUMENT, "%.200s: shape %s, input '%.60s' takes %s (or more rows)", path,
                   bw_io_shape_text(h->dims, h->rank, got), in->name, bw_io_shape_text(in->dims, in->rank, want));
}

static bw_status fill_npy(bw_bench_input *in, const char *path, bw_error *err)
{
    bw_npy_file *file;
    bw_npy_header h;
    bw_status status = bw_npy_open(path, &file, err);
    if (status)
        return status;
    status = bw_npy_array_header(file, 0, &h, err);
    if (!status)
        status = check_npy(in, path, &h, err);
    size_t n = 0;
    if (!status)
        status = float_room(in, &n, err);
    if (!status) {
        void *raw = malloc(n * (size_t)h.item + 1);
        status = raw ? bw_npy_read(file, 0, 0, n, raw, err) : no_memory(err);
        if (!status)
            bw_npy_to_float(&h, raw, n, in->values);
        free(raw);
    }
    bw_npy_close(file);
    return status;
}

/* The floats of an input as what it sends. */
static bw_status narrow(bw_bench_input *in, const char *source, bw_error *err)
{
    const bw_element_traits *e = bw_element_get(in->element);
    const bw_format_traits *vector = in->element == BW_ELEMENT_F16    ? bw_format_get(BW_FORMAT_FP16)
                                     : in->element == BW_ELEMENT_BF16 ? bw_format_get(BW_FORMAT_BF16)
                                                                      : NULL;
    const float *values = in->values, low = in->element == BW_ELEMENT_I8 ? -128 : 0, high = low + 255;
    const float most = vector ? bw_decode_vector(vector, bw_encode_vector(vector, 0x1.fffffep127f)) : high;
    const size_t n = in->bytes / sizeof *values;
    uint8_t *to = in->values; /* what is written lies behind what is read */
    for (size_t i = 0; i < n; i++) {
        const float v = values[i];
        if (vector) {
            if (!(fabsf(v) <= most))
                return bw_fail(err, BW_INVALID_ARGUMENT, "%.200s: value %g at index %zu, %s ends at %g: send FP32",
                               source, (double)v, i, e->kserve, (double)most);
            const uint16_t code = bw_encode_vector(vector, v);
            memcpy(to + 2 * i, &code, sizeof code);
        } else {
            if (!(v >= low && v <= high) || v != (float)(int)v)
                return bw_fail(err, BW_INVALID_ARGUMENT,
                               "%.200s: value %g at index %zu is no %s, whole numbers from %g to %g: send FP32", source,
                               (double)v, i, e->kserve, (double)low, (double)high);
            to[i] = (uint8_t)(int)v;
        }
    }
    in->bytes = n * e->size;
    return BW_OK;
}

/* Of what the input can hold: all of a byte's values, or -1..1. */
static float random_value(const bw_bench_input *in, uint64_t *seed)
{
    const double r = bw_bench_random(seed);
    if (bw_element_get(in->element)->size > 1)
        return (float)(2 * r - 1);
    return (float)floor(256 * r) - (in->element == BW_ELEMENT_I8 ? 128 : 0);
}

static int is_picture(const uint8_t *b, size_t size)
{
    return (size > 8 && !memcmp(b, "\x89PNG\r\n\x1a\n", 8)) ||
           (size > 3 && b[0] == 0xff && b[1] == 0xd8 && b[2] == 0xff);
}

bw_element bw_bench_datatype(const char *name)
{
    static const bw_element known[] = {BW_ELEMENT_F32, BW_ELEMENT_F16, BW_ELEMENT_BF16, BW_ELEMENT_U8, BW_ELEMENT_I8};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (!strcmp(name, bw_element_get(known[i])->kserve))
            return known[i];
    return BW_ELEMENT_NONE;
}

bw_status bw_bench_fill(bw_bench_input *in, const char *source, int64_t batch, uint64_t *seed, bw_error *err)
{
    size_t n = 0;
    int random = !strcmp(source, "random");
    if (random || !strcmp(source, "zeros")) {
        bw_status status = float_room(in, &n, err);
        for (size_t i = 0; i < n && !status; i++)
            ((float *)in->values)[i] = random ? random_value(in, seed) : 0;
        return status || in->element == BW_ELEMENT_F32 ? status : narrow(in, source, err);
    }
    void *bytes;
    size_t size;
    bw_status status = bw_file_read(source, FILE_LIMIT, &bytes, &size, err);
    if (status)
        return status;
    if (is_picture(bytes, size)) {
        if (in->element != BW_ELEMENT_F32) {
            free(bytes);
            return bw_fail(err, BW_INVALID_ARGUMENT, "%.300s: a picture is sent as it is: leave --datatype out",
                           source);
        }
        in->element = BW_ELEMENT_BYTES;
        in->values = bytes;
        in->bytes = size;
        in->rank = 1;
        in->dims[0] = batch;
        return BW_OK;
    }
    int npy = size > 6 && !memcmp(bytes, "\x93NUMPY", 6);
    free(bytes);
    if (!npy)
        return bw_fail(err, BW_INVALID_ARGUMENT, "%.300s: neither .npy nor PNG nor JPEG: give such a file, or 'random'",
                       source);
    status = fill_npy(in, source, err);
    return status || in->element == BW_ELEMENT_F32 ? status : narrow(in, source, err);
}

/* --- KServe ------------------------------------------------------------------------------------------------------- */

/* Raw strings: length and bytes, `batch` times. */
static void append_raw(bw_bytes *message, const bw_bench_input *in)
{
    size_t times = in->element == BW_ELEMENT_BYTES ? (size_t)in->dims[0] : 1;
    uint32_t length = (uint32_t)in->bytes;
    size_t head = in->element == BW_ELEMENT_BYTES ? sizeof length : 0;
    bw_writer w;
    bw_writer_init(&w);
    bw_writer_head(&w, 7, times * (head + in->bytes));
    message->failed |= w.failed;
    bw_bytes_append(message, w.small.bytes, w.small.size);
    bw_writer_free(&w);
    for (size_t i = 0; i < times; i++) {
        bw_bytes_append(message, &length, head);
        bw_bytes_append(message, in->values, in->bytes);
    }
}

/* One input tensor, and with `typed` its values, packed. */
static bw_status append_kserve(bw_bytes *message, const bw_bench_input *in, int typed, bw_error *err)
{
    Inference__ModelInferRequest q = INFERENCE__MODEL_INFER_REQUEST__INIT;
    Inference__ModelInferRequest__InferInputTensor t = INFERENCE__MODEL_INFER_REQUEST__INFER_INPUT_TENSOR__INIT;
    Inference__ModelInferRequest__InferInputTensor *pointer = &t;
    Inference__InferTensorContents contents = INFERENCE__INFER_TENSOR_CONTENTS__INIT;
    ProtobufCBinaryData *pictures = NULL;
    t.name = (char *)(uintptr_t)in->name;
    t.datatype = (char *)(uintptr_t)bw_element_get(in->element)->kserve;
    t.n_shape = (size_t)in->rank;
    t.shape = (int64_t *)(uintptr_t)in->dims;
    if (typed)
        t.contents = &contents;
    if (in->element == BW_ELEMENT_BYTES) {
        pictures = calloc((size_t)in->dims[0], sizeof *pictures);
        if (!pictures)
            return no_memory(err);
        for (int64_t i = 0; i < in->dims[0]; i++)
            pictures[i] = (ProtobufCBinaryData){in->bytes, in->values};
        contents.bytes_contents = pictures;
        contents.n_bytes_contents = (size_t)in->dims[0];
    } else {
        contents.fp32_contents = in->values;
        contents.n_fp32_contents = in->bytes / sizeof(float);
    }
    q.inputs = &pointer;
    q.n_inputs = 1;
    append_packed(message, &q.base);
    free(pictures);
    return BW_OK;
}

static bw_status kserve_message(int typed, const char *model, const char *version, const bw_bench_input *inputs,
                                size_t count, bw_bytes *message, bw_error *err)
{
    Inference__ModelInferRequest q = INFERENCE__MODEL_INFER_REQUEST__INIT;
    q.model_name = (char *)(uintptr_t)model;
    q.model_version = (char *)(uintptr_t)version;
    append_packed(message, &q.base);
    bw_status status = BW_OK;
    for (size_t i = 0; i < count && !status; i++)
        status = append_kserve(message, &inputs[i], typed, err);
    for (size_t i = 0; i < count && !typed; i++)
        append_raw(message, &inputs[i]);
    return status;
}

/* --- Predict ------------------------------------------------------------------------------------------------------ */

static bw_status append_predict(bw_bytes *message, const bw_bench_input *in, bw_error *err)
{
    Tensorflow__Serving__PredictRequest q = TENSORFLOW__SERVING__PREDICT_REQUEST__INIT;
    Tensorflow__Serving__PredictRequest__InputsEntry entry = TENSORFLOW__SERVING__PREDICT_REQUEST__INPUTS_ENTRY__INIT;
    Tensorflow__Serving__PredictRequest__InputsEntry *entries = &entry;
    Tensorflow__Serving__TensorProto t = TENSORFLOW__SERVING__TENSOR_PROTO__INIT;
    Tensorflow__Serving__TensorShapeProto shape = TENSORFLOW__SERVING__TENSOR_SHAPE_PROTO__INIT;
    Tensorflow__Serving__TensorShapeProto__Dim dims[BW_RANK_MAX], *pointers[BW_RANK_MAX];
    ProtobufCBinaryData *pictures = NULL;
    for (int i = 0; i < in->rank; i++) {
        tensorflow__serving__tensor_shape_proto__dim__init(&dims[i]);
        dims[i].size = in->dims[i];
        pointers[i] = &dims[i];
    }
    shape.dim = pointers;
    shape.n_dim = (size_t)in->rank;
    t.dtype = (Tensorflow__Serving__DataType)bw_element_get(in->element)->tf_number;
    t.tensor_shape = &shape;
    if (in->element == BW_ELEMENT_BYTES) {
        pictures = calloc((size_t)in->dims[0], sizeof *pictures);
        if (!pictures)
            return no_memory(err);
        for (int64_t i = 0; i < in->dims[0]; i++)
            pictures[i] = (ProtobufCBinaryData){in->bytes, in->values};
        t.string_val = pictures;
        t.n_string_val = (size_t)in->dims[0];
    } else {
        t.tensor_content = (ProtobufCBinaryData){in->bytes, in->values};
    }
    entry.key = (char *)(uintptr_t)in->name;
    entry.value = &t;
    q.inputs = &entries;
    q.n_inputs = 1;
    append_packed(message, &q.base);
    free(pictures);
    return BW_OK;
}

static bw_status predict_message(const char *model, const char *version, const bw_bench_input *inputs, size_t count,
                                 bw_bytes *message, bw_error *err)
{
    Tensorflow__Serving__PredictRequest q = TENSORFLOW__SERVING__PREDICT_REQUEST__INIT;
    Tensorflow__Serving__ModelSpec spec = TENSORFLOW__SERVING__MODEL_SPEC__INIT;
    Tensorflow__Serving__Int64Value number = TENSORFLOW__SERVING__INT64_VALUE__INIT;
    spec.name = (char *)(uintptr_t)model;
    if (version[0]) {
        char *end;
        errno = 0;
        number.value = strtoll(version, &end, 10);
        if (*end || errno)
            return bw_fail(err, BW_INVALID_ARGUMENT, "--model-version %.60s: Predict takes whole numbers only",
                           version);
        spec.version_choice_case = TENSORFLOW__SERVING__MODEL_SPEC__VERSION_CHOICE_VERSION;
        spec.version = &number;
    }
    q.model_spec = &spec;
    append_packed(message, &q.base);
    bw_status status = BW_OK;
    for (size_t i = 0; i < count && !status; i++)
        status = append_predict(message, &inputs[i], err);
    return status;
}

bw_status bw_bench_message(bw_bench_protocol protocol, const char *model, const char *version,
                           const bw_bench_input *inputs, size_t count, bw_bytes *message, bw_error *err)
{
    size_t total = 0;
    for (size_t i = 0; i < count; i++) {
        size_t times = inputs[i].element == BW_ELEMENT_BYTES ? (size_t)inputs[i].dims[0] : 1, bytes;
        /* 16: the bytes around a picture. */
        if (__builtin_mul_overflow(times, inputs[i].bytes + 16, &bytes) || bytes > MESSAGE_LIMIT - total)
            return bw_fail(
                err, BW_INVALID_ARGUMENT,
                "the request is larger than 2 GiB, which gRPC cannot send: choose a smaller --batch or --shape");
        total += bytes;
    }
    /* Repeated fields of one message may stand apart: the parts are packed one after the other. */
    bw_status status = protocol == BW_BENCH_PREDICT ? predict_message(model, version, inputs, count, message, err)
                                                    : kserve_message(protocol == BW_BENCH_KSERVE_TYPED, model, version,
                                                                     inputs, count, message, err);
    return status ? status : message->failed ? no_memory(err) : BW_OK;
}
