/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The request that the load generator sends over and over: inputs after the model's metadata, filled with random
 * numbers or from files, in one of three protocols.
 *
 *     bw_bench_input inputs[BW_MODEL_IO_MAX];
 *     bw_bench_inputs_from_metadata(reply, size, inputs, &count, name, version, &err);
 *     bw_bench_fill(&inputs[0], "cat.png", batch, &seed, &err);
 *     bw_bench_message(BW_BENCH_KSERVE, name, version, inputs, count, &bytes, &err);
 *
 * Thread safety: pure functions over the caller's objects.
 */
#ifndef BW_SERVICE_CLIENT_REQUEST_H
#define BW_SERVICE_CLIENT_REQUEST_H

#include "service/model.h"
#include "service/tensor.h"

typedef enum bw_bench_protocol {
    BW_BENCH_KSERVE,       /* ModelInfer, raw_input_contents */
    BW_BENCH_KSERVE_TYPED, /* ModelInfer, typed contents */
    BW_BENCH_PREDICT       /* TensorFlow Serving's Predict, tensor_content */
} bw_bench_protocol;

const char *bw_bench_protocol_name(bw_bench_protocol protocol);
const char *bw_bench_protocol_path(bw_bench_protocol protocol); /* of the method */

typedef struct bw_bench_input {
    char name[256];
    bw_element element; /* what is sent: F32, or F16, BF16, U8, I8; BYTES once filled with a picture */
    int rank;
    int64_t dims[BW_RANK_MAX]; /* -1: open; none is once filled */
    void *values;              /* owned: of that element, or one picture file */
    size_t bytes;              /* of values */
} bw_bench_input;

void bw_bench_inputs_free(bw_bench_input *inputs, size_t count);

/* The message that asks for a model's metadata. */
bw_status bw_bench_metadata_request(const char *model, const char *version, bw_bytes *message, bw_error *err);
/* Reads the answer: inputs, and the model's real name. BW_CORRUPT, BW_UNSUPPORTED (an input that is not FP32; a name of
 * more than 255 bytes, that is not UTF-8, or with control characters, which terminals obey). */
bw_status bw_bench_inputs_from_metadata(const void *bytes, size_t size, bw_bench_input inputs[BW_MODEL_IO_MAX],
                                        size_t *count, char model[256], bw_error *err);

/* Sets the open dims: the first to `batch`. `dims` as text "1,3,224,224" overrides all if not NULL.
 * BW_INVALID_ARGUMENT: another dim is open, the text is no shape, or a batch other than 1 and the first dim differ. */
bw_status bw_bench_settle_shape(bw_bench_input *input, const char *dims, int64_t batch, bw_error *err);
/* What an input can send, by KServe's name: FP32, FP16, BF16, UINT8 or INT8; else BW_ELEMENT_NONE. */
bw_element bw_bench_datatype(const char *name);
/* Before: the element that is to be sent. source: "random" (uniform in [-1, 1), from *seed; of bytes all values),
 * "zeros", a .npy file (the first `batch` rows of it), or a PNG or JPEG file, sent `batch` times. BW_NOT_FOUND,
 * BW_INVALID_ARGUMENT (also a value that the element does not hold), BW_CORRUPT, BW_NO_MEMORY. */
bw_status bw_bench_fill(bw_bench_input *input, const char *source, int64_t batch, uint64_t *seed, bw_error *err);

/* The message, appended to *message. BW_INVALID_ARGUMENT: more than 2 GiB, which no gRPC server takes. */
bw_status bw_bench_message(bw_bench_protocol protocol, const char *model, const char *version,
                           const bw_bench_input *inputs, size_t count, bw_bytes *message, bw_error *err);

/* Bytes as text for a terminal: ASCII, cut to what fits. */
void bw_bench_printable(const void *from, size_t length, char *text, size_t size);
/* 1: UTF-8 without NUL, as JSON takes it. */
int bw_bench_is_utf8(const char *text);

/* xorshift64*: uniform in [0, 1). *state is not 0. */
double bw_bench_random(uint64_t *state);

#endif
