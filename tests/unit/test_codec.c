/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The codecs of Predict and ModelInfer: golden messages encoded by protoc, every number type in both forms, messages
 * cut into pieces at every place, truncated at every place, and what a client is told when it is wrong.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "hal/base.h"
#include "service/kserve.h"
#include "service/predict.h"
#include "service/proto/inference.pb-c.h"
#include "service/proto/predict.pb-c.h"
#include "tests/support/fake_model.h"

typedef bw_status (*decoder)(bw_scoring *, const bw_slice *, size_t, bw_error *);

static bw_scorer scorer;
static const bw_io four = {"input", BW_F32, 2, {-1, 4}}, logits = {"logits", BW_F32, 2, {-1, 2}};
static const bw_io pair = {"input", BW_F32, 2, {-1, 2}},
                   two[2] = {{"input", BW_F32, 2, {-1, 3}}, {"mask", BW_F32, 1, {-1}}};
static const bw_io picture = {"image", BW_F32, 4, {-1, 3, 8, 8}}, fixed = {"input", BW_F32, 2, {1, 4}};
static const bw_preprocess pictures_in = {
    .height = 8, .width = 8, .channels = BW_CHANNELS_RGB, .scale = 1, .std = {1, 1, 1}};

static int set_up(void **state)
{
    (void)state;
    scorer.repository = bw_repository_new();
    scorer.tensor_bytes_max = 1 << 20;
    fake_model(scorer.repository, "resnet20", "7", &four, 1, &logits);
    fake_model(scorer.repository, "resnet20", "1", two, 2, &logits);
    fake_model(scorer.repository, "m", "1", &pair, 1, &logits);
    fake_model(scorer.repository, "four", "10", &four, 1, &logits);
    fake_model(scorer.repository, "four", "9", &pair, 1, &logits);
    fake_model(scorer.repository, "fixed", "1", &fixed, 1, &logits);
    bw_model *m = fake_model(scorer.repository, "brainwave", "1", &picture, 1, &logits);
    assert_int_equal(bw_model_bind_pictures(m, &pictures_in, NULL), BW_OK);
    bw_repository_set_ready(scorer.repository, 1);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    bw_repository_free(scorer.repository);
    return 0;
}

/* --- decoding in pieces ------------------------------------------------------------------------------------------- */

/* Pictures of the result lie in *slice. */
static bw_scoring *decode_in(decoder d, bw_slice *slice, bw_error *err)
{
    bw_scoring *s = bw_scoring_new(&scorer);
    bw_status status = d(s, slice, 1, err);
    if (!status)
        return s;
    bw_scoring_release(s);
    return NULL;
}

static bw_scoring *decode(decoder d, const void *bytes, size_t size, bw_error *err)
{
    bw_slice slice = {bytes, size};
    return decode_in(d, &slice, err);
}

static void assert_same_inputs(const bw_scoring *a, const bw_scoring *b)
{
    for (int i = 0; i < a->model->input_count; i++) {
        assert_int_equal(a->inputs[i].bytes, b->inputs[i].bytes);
        if (a->inputs[i].bytes)
            assert_memory_equal(a->inputs[i].data, b->inputs[i].data, a->inputs[i].bytes);
    }
    assert_int_equal(a->picture_count, b->picture_count);
    for (size_t i = 0; i < a->picture_count; i++) {
        char x[64], y[64];
        bw_cursor p = a->pictures[i], q = b->pictures[i];
        assert_int_equal(p.left, q.left);
        assert_true(p.left <= sizeof x);
        size_t n = p.left;
        bw_cursor_copy(&p, x, n);
        bw_cursor_copy(&q, y, n);
        assert_memory_equal(x, y, n);
    }
}

/* Cut in two at every place, and into single bytes with empty slices between. */
static void assert_pieces_do_not_matter(decoder d, const uint8_t *bytes, size_t size, const bw_scoring *whole)
{
    bw_slice *slices = calloc(2 * size + 2, sizeof *slices);
    for (size_t cut = 0; cut <= size + 1; cut++) {
        size_t count = 2;
        if (cut <= size) {
            slices[0] = (bw_slice){bytes, cut};
            slices[1] = (bw_slice){bytes + cut, size - cut};
        } else {
            for (count = 0; count < 2 * size; count++)
                slices[count] = (bw_slice){bytes + count / 2, count % 2};
        }
        bw_error err;
        bw_scoring *s = bw_scoring_new(&scorer);
        if (d(s, slices, count, &err))
            fail_msg("cut at %zu of %zu: %s", cut, size, err.message);
        assert_same_inputs(whole, s);
        bw_scoring_release(s);
    }
    free(slices);
}

/* A message that ends early is either refused or lacks something: it never gives the same inputs by accident of what
 * lies behind it. (The exact-size copy lets a sanitizer see one byte too many.) */
static void truncate_everywhere(decoder d, const uint8_t *bytes, size_t size)
{
    for (size_t n = 0; n < size; n++) {
        uint8_t *copy = malloc(n ? n : 1);
        memcpy(copy, bytes, n);
        bw_error err = {BW_OK, ""};
        bw_scoring *s = decode(d, copy, n, &err);
        if (!s) {
            assert_int_not_equal(err.status, BW_OK);
            assert_int_not_equal(err.message[0], 0);
        }
        bw_scoring_release(s);
        free(copy);
    }
}

static bw_scoring *decode_all_ways(decoder d, const void *bytes, size_t size)
{
    static bw_slice slice; /* until the next call */
    bw_error err;
    slice = (bw_slice){bytes, size};
    bw_scoring *s = decode_in(d, &slice, &err);
    if (!s)
        fail_msg("%s", err.message);
    assert_pieces_do_not_matter(d, bytes, size, s);
    truncate_everywhere(d, bytes, size);
    return s;
}

/* --- golden messages ---------------------------------------------------------------------------------------------- */

/* NULL: skip() has been called. */
static void *golden(const char *name, size_t *size)
{
    const char *shared = getenv("BW_SHARED");
    char path[512];
    snprintf(path, sizeof path, "%s/serving_messages/%s.bin", shared ? shared : "../shared/data", name);
    void *bytes = NULL;
    bw_error err;
    if (bw_file_read(path, 1 << 20, &bytes, size, &err)) {
        print_message("# SKIP %s\n", err.message);
        skip();
    }
    return bytes;
}

static void golden_predict(void **state)
{
    (void)state;
    size_t size;
    void *bytes = golden("predict_request_floatval", &size);
    bw_scoring *s = decode_all_ways(bw_predict_decode, bytes, size);
    assert_string_equal(s->model->name, "resnet20");
    assert_string_equal(s->model->version, "7");
    static const float values[4] = {0.5f, -1.25f, 3.40282347e+38f, 1.17549435e-38f};
    assert_int_equal(s->inputs[0].bytes, sizeof values);
    assert_memory_equal(s->inputs[0].data, values, sizeof values);
    assert_int_equal(s->inputs[0].dims[0], 1);
    bw_scoring_release(s);
    free(bytes);

    bytes = golden("predict_request_string", &size);
    s = decode_all_ways(bw_predict_decode, bytes, size);
    assert_int_equal(s->picture_count, 2);
    assert_int_equal(s->pictures[0].left, 14);
    assert_memory_equal(bw_cursor_flat(&s->pictures[0]), "\377\330\377\340fakejpeg\000\001", 14);
    assert_int_equal(s->pictures[1].left, 0);
    bw_scoring_release(s);
    free(bytes);

    /* Labels are not given to versions yet: said, not guessed. */
    bytes = golden("predict_request_content", &size);
    bw_error err;
    assert_null(decode(bw_predict_decode, bytes, size, &err));
    assert_int_equal(err.status, BW_NOT_FOUND);
    assert_non_null(strstr(err.message, "label 'stable'"));
    free(bytes);
}

static void golden_infer(void **state)
{
    (void)state;
    size_t size;
    void *bytes = golden("oip_infer_request_raw", &size);
    bw_scoring *s = decode_all_ways(bw_kserve_decode, bytes, size);
    static const float raw[2] = {1, 2};
    assert_memory_equal(s->inputs[0].data, raw, sizeof raw);
    bw_scoring_release(s);
    free(bytes);

    bytes = golden("oip_infer_request_contents", &size);
    s = decode_all_ways(bw_kserve_decode, bytes, size);
    assert_string_equal(s->model->version, "1");
    static const float typed[3] = {1, -2, 0.5f}, mask[2] = {1, 0};
    assert_memory_equal(s->inputs[0].data, typed, sizeof typed);
    assert_memory_equal(s->inputs[1].data, mask, sizeof mask);
    /* It decodes, but its two inputs have batches of 1 and 2. */
    bw_error err;
    assert_int_equal(bw_scoring_complete(s, &err), BW_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "'input' has batch 1, input 'mask' has 2"));
    bw_scoring_release(s);
    free(bytes);
}

static void *join(const bw_chunk *chunks, size_t count, size_t *size)
{
    *size = 0;
    for (size_t i = 0; i < count; i++)
        *size += chunks[i].size;
    uint8_t *bytes = malloc(*size + 1), *at = bytes;
    for (size_t i = 0; i < count; i++) {
        memcpy(at, chunks[i].bytes, chunks[i].size);
        at += chunks[i].size;
        if (chunks[i].release)
            chunks[i].release(chunks[i].user);
    }
    return bytes;
}

/* Gives the scoring an output of [n, 2] counting up, and encodes the reply. */
static void *encode(bw_scoring *s, int64_t n, size_t *size)
{
    bw_array *a = &s->outputs[0];
    a->dtype = BW_F32;
    a->rank = 2;
    a->dims[0] = n;
    a->dims[1] = 2;
    a->bytes = (size_t)n * 2 * sizeof(float);
    a->owned = 1;
    a->data = malloc(a->bytes);
    for (int64_t i = 0; i < n * 2; i++)
        ((float *)a->data)[i] = (float)(i + 1);
    bw_writer *w = calloc(1, sizeof *w);
    s->encode(s, w);
    size_t count;
    const bw_chunk *chunks = bw_writer_finish(w, &count);
    assert_non_null(chunks);
    void *bytes = join(chunks, count, size);
    bw_writer_free(w);
    free(w);
    return bytes;
}

static void golden_reply(void **state)
{
    (void)state;
    size_t size, reply_size;
    void *expected = golden("oip_infer_response", &size);
    Inference__ModelInferRequest__InferInputTensor in = INFERENCE__MODEL_INFER_REQUEST__INFER_INPUT_TENSOR__INIT;
    Inference__ModelInferRequest__InferInputTensor *ins = &in;
    Inference__ModelInferRequest q = INFERENCE__MODEL_INFER_REQUEST__INIT;
    float values[2] = {3, 4};
    int64_t shape[2] = {1, 2};
    ProtobufCBinaryData raw = {sizeof values, (uint8_t *)values};
    q.model_name = (char[]){"m"};
    q.id = (char[]){"r"};
    in.name = (char[]){"input"};
    in.datatype = (char[]){"FP32"};
    in.shape = shape;
    in.n_shape = 2;
    q.inputs = &ins;
    q.n_inputs = 1;
    q.raw_input_contents = &raw;
    q.n_raw_input_contents = 1;
    uint8_t packed[256];
    size_t packed_size = inference__model_infer_request__pack(&q, packed);
    bw_scoring *s = decode_all_ways(bw_kserve_decode, packed, packed_size);
    void *reply = encode(s, 1, &reply_size);
    assert_int_equal(reply_size, size);
    assert_memory_equal(reply, expected, size);
    bw_scoring_release(s);
    free(reply);
    free(expected);
}

/* --- Predict ------------------------------------------------------------------------------------------------------ */

typedef Tensorflow__Serving__TensorProto tensor_proto;

typedef struct predict_message {
    Tensorflow__Serving__PredictRequest q;
    Tensorflow__Serving__ModelSpec spec;
    Tensorflow__Serving__PredictRequest__InputsEntry entry, *entries[2];
    tensor_proto tensor;
    Tensorflow__Serving__TensorShapeProto shape;
    Tensorflow__Serving__TensorShapeProto__Dim dims[4], *dim_pointers[4];
    uint8_t bytes[4096];
    size_t size;
} predict_message;

static void start_predict(predict_message *m, const char *model, const char *key, int dtype, int rank,
                          const int64_t *dims)
{
    tensorflow__serving__predict_request__init(&m->q);
    tensorflow__serving__model_spec__init(&m->spec);
    tensorflow__serving__predict_request__inputs_entry__init(&m->entry);
    tensorflow__serving__tensor_proto__init(&m->tensor);
    tensorflow__serving__tensor_shape_proto__init(&m->shape);
    m->q.model_spec = &m->spec;
    m->spec.name = (char *)(uintptr_t)model;
    m->entries[0] = m->entries[1] = &m->entry;
    m->q.inputs = m->entries;
    m->q.n_inputs = 1;
    m->entry.key = (char *)(uintptr_t)key;
    m->entry.value = &m->tensor;
    m->tensor.dtype = (Tensorflow__Serving__DataType)dtype;
    m->tensor.tensor_shape = &m->shape;
    for (int i = 0; i < rank; i++) {
        tensorflow__serving__tensor_shape_proto__dim__init(&m->dims[i]);
        m->dims[i].size = dims[i];
        m->dim_pointers[i] = &m->dims[i];
    }
    m->shape.dim = m->dim_pointers;
    m->shape.n_dim = (size_t)rank;
}

static void pack_predict(predict_message *m)
{
    assert_true(tensorflow__serving__predict_request__get_packed_size(&m->q) <= sizeof m->bytes);
    m->size = tensorflow__serving__predict_request__pack(&m->q, m->bytes);
}

static void expect_values(predict_message *m, const float *values, size_t count)
{
    pack_predict(m);
    bw_scoring *s = decode_all_ways(bw_predict_decode, m->bytes, m->size);
    assert_int_equal(s->inputs[0].bytes, count * sizeof(float));
    assert_memory_equal(s->inputs[0].data, values, count * sizeof(float));
    assert_int_equal((uintptr_t)s->inputs[0].data % 64, 0);
    bw_scoring_release(s);
}

static const int64_t one_by_four[2] = {1, 4};

static void predict_number_types(void **state)
{
    (void)state;
    static const float values[4] = {0, 1, 2, 100}, small[4] = {0, 1, 1, 0};
    predict_message *m = calloc(1, sizeof *m);
    const struct {
        int dtype;
        size_t size;
        const void *content;
    } raw[] = {
        {1, 4, (float[]){0, 1, 2, 100}},
        {2, 8, (double[]){0, 1, 2, 100}},
        {3, 4, (int32_t[]){0, 1, 2, 100}},
        {4, 1, (uint8_t[]){0, 1, 2, 100}},
        {5, 2, (int16_t[]){0, 1, 2, 100}},
        {6, 1, (int8_t[]){0, 1, 2, 100}},
        {9, 8, (int64_t[]){0, 1, 2, 100}},
        {17, 2, (uint16_t[]){0, 1, 2, 100}},
        {22, 4, (uint32_t[]){0, 1, 2, 100}},
        {23, 8, (uint64_t[]){0, 1, 2, 100}},
        {19, 2, (uint16_t[]){0, 0x3c00, 0x4000, 0x5640}},
        {14, 2, (uint16_t[]){0, 0x3f80, 0x4000, 0x42c8}},
    };
    for (size_t i = 0; i < sizeof raw / sizeof raw[0]; i++) {
        start_predict(m, "resnet20", "input", raw[i].dtype, 2, one_by_four);
        m->tensor.tensor_content.data = (uint8_t *)(uintptr_t)raw[i].content;
        m->tensor.tensor_content.len = raw[i].size * 4;
        expect_values(m, values, 4);
    }
    start_predict(m, "resnet20", "input", 10, 2, one_by_four);
    m->tensor.tensor_content.data = (uint8_t[]){0, 1, 2, 0};
    m->tensor.tensor_content.len = 4;
    expect_values(m, small, 4);

#define TYPED(number, member, type, ...)                                                                               \
    start_predict(m, "resnet20", "input", number, 2, one_by_four);                                                     \
    m->tensor.member = (type[]){__VA_ARGS__};                                                                          \
    m->tensor.n_##member = 4;                                                                                          \
    expect_values(m, values, 4)
    TYPED(1, float_val, float, 0, 1, 2, 100);
    TYPED(2, double_val, double, 0, 1, 2, 100);
    TYPED(3, int_val, int32_t, 0, 1, 2, 100);
    TYPED(4, int_val, int32_t, 0, 1, 2, 100);
    TYPED(5, int_val, int32_t, 0, 1, 2, 100);
    TYPED(6, int_val, int32_t, 0, 1, 2, 100);
    TYPED(17, int_val, int32_t, 0, 1, 2, 100);
    TYPED(9, int64_val, int64_t, 0, 1, 2, 100);
    TYPED(22, uint32_val, uint32_t, 0, 1, 2, 100);
    TYPED(23, uint64_val, uint64_t, 0, 1, 2, 100);
    TYPED(19, half_val, int32_t, 0, 0x3c00, 0x4000, 0x5640);
    TYPED(14, half_val, int32_t, 0, 0x3f80, 0x4000, 0x42c8);
#undef TYPED
    start_predict(m, "resnet20", "input", 10, 2, one_by_four);
    m->tensor.bool_val = (protobuf_c_boolean[]){0, 1, 1, 0};
    m->tensor.n_bool_val = 4;
    expect_values(m, small, 4);

    /* One value for all, as TensorFlow writes constants. */
    static const float same[4] = {7, 7, 7, 7}, filled[4] = {7, 8, 8, 8};
    start_predict(m, "resnet20", "input", 1, 2, one_by_four);
    m->tensor.float_val = (float[]){7, 8};
    m->tensor.n_float_val = 1;
    expect_values(m, same, 4);
    m->tensor.n_float_val = 2;
    expect_values(m, filled, 4);
    free(m);
}

/* Packed and unpacked members may be mixed by a writer; both are legal. */
static void predict_odd_encodings(void **state)
{
    (void)state;
    static const uint8_t tensor_head[] = {0x08, 1, 0x12, 8, 0x12, 2, 0x08, 1, 0x12, 2, 0x08, 4};
    static const float values[4] = {1, 2, 3, 4};
    static const uint8_t first[] = {0x2a, 8, 0, 0, 0x80, 0x3f, 0, 0, 0, 0x40};               /* packed 1, 2 */
    static const uint8_t rest[] = {0x2d, 0, 0, 0x40, 0x40, 0x2d, 0, 0, 0x80, 0x40};          /* 3 and 4, one by one */
    static const uint8_t unknown[] = {0xa2, 0x06, 3, 'a', 'b', 'c', 0xa8, 0x06, 0xff, 0x01}; /* fields 100 and 101 */
    bw_bytes tensor = {0}, entry = {0}, message = {0};
    bw_bytes_append(&tensor, first, sizeof first);
    bw_bytes_append(&tensor, unknown, sizeof unknown);
    bw_bytes_append(&tensor, tensor_head, sizeof tensor_head);
    bw_bytes_append(&tensor, rest, sizeof rest);
    uint8_t head[] = {0x12, (uint8_t)tensor.size};
    bw_bytes_append(&entry, head, 2);
    bw_bytes_append(&entry, tensor.bytes, tensor.size);
    bw_bytes_append(&entry, "\x0a\x05input", 7); /* the key behind the value */
    uint8_t outer[] = {0x12, (uint8_t)entry.size};
    bw_bytes_append(&message, outer, 2);
    bw_bytes_append(&message, entry.bytes, entry.size);
    bw_bytes_append(&message, "\x0a\x03\x0a\x01x", 5); /* model_spec twice: the later name wins */
    bw_bytes_append(&message, "\x0a\x0a\x0a\x08resnet20", 12);
    bw_scoring *s = decode_all_ways(bw_predict_decode, message.bytes, message.size);
    assert_memory_equal(s->inputs[0].data, values, sizeof values);
    bw_scoring_release(s);
    bw_bytes_free(&tensor);
    bw_bytes_free(&entry);
    bw_bytes_free(&message);
}

static void reply_names(predict_message *m, char *names, size_t names_size)
{
    pack_predict(m);
    bw_error err;
    bw_scoring *s = decode(bw_predict_decode, m->bytes, m->size, &err);
    if (!s)
        fail_msg("%s", err.message);
    size_t size;
    void *bytes = encode(s, 300, &size); /* large enough to be borrowed */
    Tensorflow__Serving__PredictResponse *r = tensorflow__serving__predict_response__unpack(NULL, size, bytes);
    assert_non_null(r);
    names[0] = 0;
    for (size_t i = 0; i < r->n_outputs; i++) {
        const tensor_proto *t = r->outputs[i]->value;
        assert_int_equal(t->dtype, 1);
        assert_int_equal(t->tensor_shape->n_dim, 2);
        assert_int_equal(t->tensor_shape->dim[0]->size, 300);
        assert_int_equal(t->n_float_val, 600);
        assert_true(t->float_val[599] == 600);
        strncat(names, r->outputs[i]->key, names_size - strlen(names) - 2);
        strcat(names, " ");
    }
    assert_string_equal(r->model_spec->name, s->model->name);
    assert_string_equal(r->model_spec->signature_name, "serving_default");
    assert_int_equal(r->model_spec->version->value, atoi(s->model->version));
    tensorflow__serving__predict_response__free_unpacked(r, NULL);
    free(bytes);
    bw_scoring_release(s);
}

static void predict_names(void **state)
{
    (void)state;
    predict_message *m = calloc(1, sizeof *m);
    static const struct {
        const char *key, *filter, *expected;
    } cases[] = {
        {"input", NULL, "logits "},
        {"input:0", NULL, "logits logits:0 "},
        {"images", NULL, "logits output_alias "},
        {"images", "output_alias", "output_alias "},
        {"input", "logits", "logits "},
        {"input", "logits:0", "logits:0 "},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *filters[1] = {(char *)(uintptr_t)cases[i].filter}, names[256];
        start_predict(m, "four", cases[i].key, 1, 2, one_by_four);
        m->tensor.float_val = (float[]){1};
        m->tensor.n_float_val = 1;
        m->q.output_filter = filters;
        m->q.n_output_filter = cases[i].filter != NULL;
        reply_names(m, names, sizeof names);
        assert_string_equal(names, cases[i].expected);
    }
    free(m);
}

static void expect_error(decoder d, const void *bytes, size_t size, bw_status status, const char *text)
{
    bw_error err;
    bw_scoring *s = decode(d, bytes, size, &err);
    assert_null(s);
    if (err.status != status || !strstr(err.message, text))
        fail_msg("expected %s with '%s', got %s: %s", bw_status_name(status), text, bw_status_name(err.status),
                 err.message);
}

static void predict_errors(void **state)
{
    (void)state;
    predict_message *m = calloc(1, sizeof *m);
    static const int64_t wrong[2] = {1, 5}, nhwc[4] = {2, 8, 8, 3}, negative[2] = {-1, 4}, huge[2] = {5000, 4};
    static const int64_t wide[2] = {INT64_MAX, 4}, three = 3, many[2] = {4096, 4};
    float values[4] = {1, 2, 3, 4};
    char *filters[1] = {(char[]){"nope"}};
#define CASE(model, key, dtype, rank, dims, change, status, text)                                                      \
    do {                                                                                                               \
        start_predict(m, model, key, dtype, rank, dims);                                                               \
        m->tensor.float_val = values;                                                                                  \
        m->tensor.n_float_val = 4;                                                                                     \
        change;                                                                                                        \
        pack_predict(m);                                                                                               \
        expect_error(bw_predict_decode, m->bytes, m->size, status, text);                                              \
    } while (0)
    CASE("nobody", "input", 1, 2, one_by_four, , BW_NOT_FOUND, "served are 'resnet20' version 7");
    CASE("", "input", 1, 2, one_by_four, , BW_INVALID_ARGUMENT, "names no model");
    CASE("four", "inputs", 1, 2, one_by_four, , BW_INVALID_ARGUMENT, "no input 'inputs': expected 'input' FP32 [-1,4]");
    CASE("four", "input", 1, 2, wrong, , BW_INVALID_ARGUMENT, "shape [1,5], expected [-1,4]");
    CASE("four", "input", 1, 1, one_by_four, , BW_INVALID_ARGUMENT, "shape [1], expected [-1,4]");
    CASE("four", "input", 1, 2, negative, , BW_INVALID_ARGUMENT, "shape [-1,4]");
    CASE("four", "input", 1, 2, huge, , BW_INVALID_ARGUMENT, "batch 5000, at most 4096");
    CASE("four", "input", 1, 2, wide, , BW_INVALID_ARGUMENT, "at most 4096");
    CASE("brainwave", "image", 1, 4, nhwc, , BW_INVALID_ARGUMENT, "that is NHWC, transpose it to NCHW");
    CASE("four", "input", 8, 2, one_by_four, , BW_INVALID_ARGUMENT, "dtype 8, expected DT_FLOAT");
    CASE("four", "input", 7, 1, &three, , BW_INVALID_ARGUMENT, "takes no pictures");
    CASE("brainwave", "image", 7, 1, &three, , BW_INVALID_ARGUMENT, "0 pictures in shape [3]");
    CASE("four", "input", 1, 2, one_by_four, m->q.n_inputs = 2, BW_INVALID_ARGUMENT, "given twice");
    CASE("four", "input", 1, 2, one_by_four, m->tensor.n_float_val = 0, BW_INVALID_ARGUMENT, "needs 4 values");
    CASE("four", "input", 1, 2, one_by_four, m->shape.unknown_rank = 1, BW_INVALID_ARGUMENT, "known shape");
    CASE("four", "input", 1, 2, one_by_four, (m->q.output_filter = filters, m->q.n_output_filter = 1),
         BW_INVALID_ARGUMENT, "no output 'nope': expected 'logits'");
    CASE("four", "input", 1, 2, one_by_four, m->spec.signature_name = (char *)"other", BW_INVALID_ARGUMENT,
         "signature 'other'");
    CASE("fixed", "input", 1, 2, many, , BW_INVALID_ARGUMENT, "expected [1,4]");
    int32_t bad[4] = {1, 2, 256, 3};
    CASE("four", "input", 4, 2, one_by_four, (m->tensor.int_val = bad, m->tensor.n_int_val = 4), BW_INVALID_ARGUMENT,
         "value 256 at index 2 is out of UINT8's range");
    uint8_t content[15] = {0};
    CASE("four", "input", 1, 2, one_by_four,
         (m->tensor.tensor_content.data = content, m->tensor.tensor_content.len = 15), BW_INVALID_ARGUMENT, "15 bytes");
    size_t limit = scorer.tensor_bytes_max;
    scorer.tensor_bytes_max = 60000;
    CASE("four", "input", 1, 2, many, , BW_EXHAUSTED, "--max-message-mb");
    scorer.tensor_bytes_max = limit;
#undef CASE
    expect_error(bw_predict_decode, "\xff\xff\xff", 3, BW_INVALID_ARGUMENT, "malformed PredictRequest");
    expect_error(bw_predict_decode, "\x0a\x05", 2, BW_INVALID_ARGUMENT, "malformed PredictRequest");
    bw_repository_set_ready(scorer.repository, 0);
    start_predict(m, "four", "input", 1, 2, one_by_four);
    pack_predict(m);
    expect_error(bw_predict_decode, m->bytes, m->size, BW_BUSY, "not ready");
    bw_repository_set_ready(scorer.repository, 1);
    free(m);
}

/* The highest version by number, not by text. */
static void predict_versions(void **state)
{
    (void)state;
    bw_model *m;
    bw_error err;
    assert_int_equal(bw_repository_find(scorer.repository, "four", "", &m, NULL), BW_OK);
    assert_string_equal(m->version, "10");
    bw_model_release(m);
    assert_int_equal(bw_repository_find(scorer.repository, "four", "9", &m, NULL), BW_OK);
    assert_string_equal(m->version, "9");
    bw_model_release(m);
    assert_int_equal(bw_repository_find(scorer.repository, "four", "8", &m, &err), BW_NOT_FOUND);
    assert_non_null(strstr(err.message, "no version '8'"));
    bw_model *twin = bw_model_new(&fake_ops, NULL);
    twin->name = "four";
    twin->version = "9";
    assert_int_equal(bw_repository_add(scorer.repository, twin, &err), BW_ALREADY_EXISTS);
}

/* --- ModelInfer --------------------------------------------------------------------------------------------------- */

typedef struct infer_message {
    Inference__ModelInferRequest q;
    Inference__ModelInferRequest__InferInputTensor in, *ins[2];
    Inference__InferTensorContents contents;
    ProtobufCBinaryData raw[2];
    uint8_t bytes[4096];
    size_t size;
} infer_message;

static void start_infer(infer_message *m, const char *model, const char *name, const char *datatype, size_t rank,
                        const int64_t *dims)
{
    inference__model_infer_request__init(&m->q);
    inference__model_infer_request__infer_input_tensor__init(&m->in);
    inference__infer_tensor_contents__init(&m->contents);
    m->q.model_name = (char *)(uintptr_t)model;
    m->ins[0] = m->ins[1] = &m->in;
    m->q.inputs = m->ins;
    m->q.n_inputs = 1;
    m->q.raw_input_contents = m->raw;
    m->in.name = (char *)(uintptr_t)name;
    m->in.datatype = (char *)(uintptr_t)datatype;
    m->in.shape = (int64_t *)(uintptr_t)dims;
    m->in.n_shape = rank;
}

static void pack_infer(infer_message *m)
{
    assert_true(inference__model_infer_request__get_packed_size(&m->q) <= sizeof m->bytes);
    m->size = inference__model_infer_request__pack(&m->q, m->bytes);
}

static void expect_infer(infer_message *m, const float *values)
{
    pack_infer(m);
    bw_scoring *s = decode_all_ways(bw_kserve_decode, m->bytes, m->size);
    assert_memory_equal(s->inputs[0].data, values, 4 * sizeof(float));
    bw_scoring_release(s);
}

static void infer_number_types(void **state)
{
    (void)state;
    static const float values[4] = {0, 1, 2, 100}, small[4] = {0, 1, 1, 0};
    infer_message *m = calloc(1, sizeof *m);
    const struct {
        const char *datatype;
        size_t size;
        const void *content;
    } raw[] = {
        {"FP32", 4, (float[]){0, 1, 2, 100}},
        {"FP64", 8, (double[]){0, 1, 2, 100}},
        {"INT32", 4, (int32_t[]){0, 1, 2, 100}},
        {"UINT8", 1, (uint8_t[]){0, 1, 2, 100}},
        {"INT16", 2, (int16_t[]){0, 1, 2, 100}},
        {"INT8", 1, (int8_t[]){0, 1, 2, 100}},
        {"INT64", 8, (int64_t[]){0, 1, 2, 100}},
        {"UINT16", 2, (uint16_t[]){0, 1, 2, 100}},
        {"FP16", 2, (uint16_t[]){0, 0x3c00, 0x4000, 0x5640}},
    };
    for (size_t i = 0; i < sizeof raw / sizeof raw[0]; i++) {
        start_infer(m, "four", "input", raw[i].datatype, 2, one_by_four);
        m->raw[0] = (ProtobufCBinaryData){raw[i].size * 4, (uint8_t *)(uintptr_t)raw[i].content};
        m->q.n_raw_input_contents = 1;
        expect_infer(m, values);
    }
#define TYPED(datatype, member, type, ...)                                                                             \
    start_infer(m, "four", "input", datatype, 2, one_by_four);                                                         \
    m->in.contents = &m->contents;                                                                                     \
    m->contents.member = (type[]){__VA_ARGS__};                                                                        \
    m->contents.n_##member = 4;                                                                                        \
    expect_infer(m, values)
    TYPED("FP32", fp32_contents, float, 0, 1, 2, 100);
    TYPED("FP64", fp64_contents, double, 0, 1, 2, 100);
    TYPED("INT8", int_contents, int32_t, 0, 1, 2, 100);
    TYPED("INT16", int_contents, int32_t, 0, 1, 2, 100);
    TYPED("INT32", int_contents, int32_t, 0, 1, 2, 100);
    TYPED("INT64", int64_contents, int64_t, 0, 1, 2, 100);
    TYPED("UINT8", uint_contents, uint32_t, 0, 1, 2, 100);
    TYPED("UINT16", uint_contents, uint32_t, 0, 1, 2, 100);
    TYPED("UINT32", uint_contents, uint32_t, 0, 1, 2, 100);
    TYPED("UINT64", uint64_contents, uint64_t, 0, 1, 2, 100);
#undef TYPED
    start_infer(m, "four", "input", "BOOL", 2, one_by_four);
    m->in.contents = &m->contents;
    m->contents.bool_contents = (protobuf_c_boolean[]){0, 1, 1, 0};
    m->contents.n_bool_contents = 4;
    expect_infer(m, small);
    free(m);
}

static void infer_pictures(void **state)
{
    (void)state;
    infer_message *m = calloc(1, sizeof *m);
    static const int64_t n = 2;
    ProtobufCBinaryData strings[2] = {{3, (uint8_t *)(uintptr_t) "abc"}, {0, NULL}};
    start_infer(m, "brainwave", "images", "BYTES", 1, &n);
    m->in.contents = &m->contents;
    m->contents.bytes_contents = strings;
    m->contents.n_bytes_contents = 2;
    pack_infer(m);
    bw_scoring *s = decode_all_ways(bw_kserve_decode, m->bytes, m->size);
    assert_int_equal(s->picture_count, 2);
    assert_memory_equal(bw_cursor_flat(&s->pictures[0]), "abc", 3);
    bw_scoring_release(s);

    start_infer(m, "brainwave", "image", "BYTES", 1, &n);
    m->raw[0] = (ProtobufCBinaryData){11, (uint8_t *)(uintptr_t) "\x03\0\0\0abc\0\0\0\0"};
    m->q.n_raw_input_contents = 1;
    pack_infer(m);
    s = decode_all_ways(bw_kserve_decode, m->bytes, m->size);
    assert_int_equal(s->picture_count, 2);
    assert_int_equal(s->keep_message, 1);
    assert_memory_equal(bw_cursor_flat(&s->pictures[0]), "abc", 3);
    bw_scoring_release(s);
    for (size_t cut = 1; cut < 11; cut++) {
        if (cut == 7)
            continue; /* one whole picture: fails for another reason */
        m->raw[0].len = cut;
        pack_infer(m);
        expect_error(bw_kserve_decode, m->bytes, m->size, BW_INVALID_ARGUMENT, "do not hold together");
    }
    m->raw[0].len = 7;
    pack_infer(m);
    expect_error(bw_kserve_decode, m->bytes, m->size, BW_INVALID_ARGUMENT, "1 pictures in shape [2]");
    free(m);
}

static void infer_errors(void **state)
{
    (void)state;
    infer_message *m = calloc(1, sizeof *m);
    float values[4] = {1, 2, 3, 4};
#define CASE(model, name, datatype, change, status, text)                                                              \
    do {                                                                                                               \
        start_infer(m, model, name, datatype, 2, one_by_four);                                                         \
        m->raw[0] = m->raw[1] = (ProtobufCBinaryData){16, (uint8_t *)values};                                          \
        m->q.n_raw_input_contents = 1;                                                                                 \
        change;                                                                                                        \
        pack_infer(m);                                                                                                 \
        expect_error(bw_kserve_decode, m->bytes, m->size, status, text);                                               \
    } while (0)
    CASE("nobody", "input", "FP32", , BW_NOT_FOUND, "served are");
    CASE("four", "x", "FP32", , BW_INVALID_ARGUMENT, "expected 'input' FP32 [-1,4]");
    CASE("four", "input", "FP33", , BW_INVALID_ARGUMENT, "datatype 'FP33', expected FP32");
    CASE("four", "input", "FP64", , BW_INVALID_ARGUMENT, "needs 4 values of 8 bytes");
    CASE("four", "input", "FP32", m->q.n_raw_input_contents = 2, BW_INVALID_ARGUMENT,
         "2 raw_input_contents for 1 inputs");
    CASE("four", "input", "FP32", m->q.n_raw_input_contents = 0, BW_INVALID_ARGUMENT, "0 bytes");
    CASE("four", "input", "FP32",
         (m->in.contents = &m->contents, m->contents.fp32_contents = values, m->contents.n_fp32_contents = 4),
         BW_INVALID_ARGUMENT, "use one of the two");
    CASE("four", "input", "FP32", m->q.model_version = (char *)"3", BW_NOT_FOUND, "no version '3'");
    Inference__ModelInferRequest__InferRequestedOutputTensor out =
        INFERENCE__MODEL_INFER_REQUEST__INFER_REQUESTED_OUTPUT_TENSOR__INIT;
    Inference__ModelInferRequest__InferRequestedOutputTensor *outs = &out;
    out.name = (char[]){"nope"};
    CASE("four", "input", "FP32", (m->q.outputs = &outs, m->q.n_outputs = 1), BW_INVALID_ARGUMENT,
         "no output 'nope': expected 'logits'");
    Inference__ModelInferRequest__InferInputTensor__ParametersEntry p =
        INFERENCE__MODEL_INFER_REQUEST__INFER_INPUT_TENSOR__PARAMETERS_ENTRY__INIT;
    Inference__ModelInferRequest__InferInputTensor__ParametersEntry *ps = &p;
    Inference__InferParameter region = INFERENCE__INFER_PARAMETER__INIT;
    region.parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_STRING_PARAM;
    region.string_param = (char[]){"r"};
    p.key = (char[]){"shared_memory_region"};
    p.value = &region;
    CASE("four", "input", "FP32", (m->in.parameters = &ps, m->in.n_parameters = 1), BW_UNSUPPORTED,
         "tensor 'input': shared memory is not offered");
#undef CASE
    /* An input is missing. */
    static const int64_t dims[2] = {1, 3};
    start_infer(m, "resnet20", "input", "FP32", 2, dims);
    m->q.model_version = (char[]){"1"};
    m->raw[0] = (ProtobufCBinaryData){12, (uint8_t *)values};
    m->q.n_raw_input_contents = 1;
    pack_infer(m);
    bw_error err;
    bw_scoring *s = decode(bw_kserve_decode, m->bytes, m->size, &err);
    assert_non_null(s);
    assert_int_equal(bw_scoring_complete(s, &err), BW_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "input 'mask' of model 'resnet20' is missing"));
    bw_scoring_release(s);
    expect_error(bw_kserve_decode, "\x3a\x09", 2, BW_INVALID_ARGUMENT, "malformed ModelInferRequest");
    free(m);
}

/* Typed contents are answered typed, raw raw. */
static void infer_reply_style(void **state)
{
    (void)state;
    infer_message *m = calloc(1, sizeof *m);
    for (int raw = 0; raw < 2; raw++) {
        float values[4] = {1, 2, 3, 4};
        start_infer(m, "four", "input", "FP32", 2, one_by_four);
        m->in.contents = raw ? NULL : &m->contents;
        m->contents.fp32_contents = values;
        m->contents.n_fp32_contents = 4;
        m->raw[0] = (ProtobufCBinaryData){16, (uint8_t *)values};
        m->q.n_raw_input_contents = (size_t)raw;
        pack_infer(m);
        bw_error err;
        bw_scoring *s = decode(bw_kserve_decode, m->bytes, m->size, &err);
        assert_non_null(s);
        size_t size;
        void *bytes = encode(s, 300, &size);
        Inference__ModelInferResponse *r = inference__model_infer_response__unpack(NULL, size, bytes);
        assert_non_null(r);
        assert_int_equal(r->n_outputs, 1);
        assert_int_equal(r->n_raw_output_contents, raw);
        const float *out =
            raw ? (const float *)(const void *)r->raw_output_contents[0].data : r->outputs[0]->contents->fp32_contents;
        assert_int_equal(raw ? r->raw_output_contents[0].len / 4 : r->outputs[0]->contents->n_fp32_contents, 600);
        assert_memory_equal(&out[599], &(float){600}, sizeof(float));
        inference__model_infer_response__free_unpacked(r, NULL);
        free(bytes);
        bw_scoring_release(s);
    }
    free(m);
}

/* --- hostile sizes -------------------------------------------------------------------------------------------------
 */

/* Two bytes on the wire, a hundred in memory: unpacking stops at its bound instead of taking gigabytes. */
static void unpack_is_bounded(void **state)
{
    (void)state;
    size_t size = 4 << 20;
    uint8_t *bytes = malloc(size);
    for (size_t i = 0; i < size; i += 2) {
        bytes[i] = 0x2a; /* ModelInferRequest.inputs, empty */
        bytes[i + 1] = 0;
    }
    assert_null(bw_wire_unpack(&inference__model_infer_request__descriptor, bytes, size));
    expect_error(bw_kserve_decode, bytes, size, BW_INVALID_ARGUMENT, "malformed");
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_predict),        cmocka_unit_test(golden_infer),
        cmocka_unit_test(golden_reply),          cmocka_unit_test(predict_number_types),
        cmocka_unit_test(predict_odd_encodings), cmocka_unit_test(predict_names),
        cmocka_unit_test(predict_errors),        cmocka_unit_test(predict_versions),
        cmocka_unit_test(infer_number_types),    cmocka_unit_test(infer_pictures),
        cmocka_unit_test(infer_errors),          cmocka_unit_test(infer_reply_style),
        cmocka_unit_test(unpack_is_bounded),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
