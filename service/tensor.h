/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tensors as they arrive: any numeric type of the protocols, in pieces, becomes fp32 in one pass; pictures stay where
 * they lie until a worker decodes them.
 *
 * Thread safety: pure functions over the caller's objects.
 */
#ifndef BW_SERVICE_TENSOR_H
#define BW_SERVICE_TENSOR_H

#include "host/graph.h"
#include "service/model.h"
#include "service/shared_memory.h"
#include "service/wire.h"

/* X(name, bytes on the wire, KServe's name, TensorFlow's name, TensorFlow's number) */
#define BW_ELEMENT_LIST(X)                                                                                             \
    X(F32, 4, "FP32", "DT_FLOAT", 1)                                                                                   \
    X(F64, 8, "FP64", "DT_DOUBLE", 2)                                                                                  \
    X(I32, 4, "INT32", "DT_INT32", 3)                                                                                  \
    X(U8, 1, "UINT8", "DT_UINT8", 4)                                                                                   \
    X(I16, 2, "INT16", "DT_INT16", 5)                                                                                  \
    X(I8, 1, "INT8", "DT_INT8", 6)                                                                                     \
    X(BYTES, 0, "BYTES", "DT_STRING", 7)                                                                               \
    X(I64, 8, "INT64", "DT_INT64", 9)                                                                                  \
    X(BOOL, 1, "BOOL", "DT_BOOL", 10)                                                                                  \
    X(BF16, 2, "BF16", "DT_BFLOAT16", 14)                                                                              \
    X(U16, 2, "UINT16", "DT_UINT16", 17)                                                                               \
    X(F16, 2, "FP16", "DT_HALF", 19)                                                                                   \
    X(U32, 4, "UINT32", "DT_UINT32", 22)                                                                               \
    X(U64, 8, "UINT64", "DT_UINT64", 23)

typedef enum bw_element {
    BW_ELEMENT_NONE = 0,
#define BW_ELEMENT_ENUM(name, size, kserve, tf, number) BW_ELEMENT_##name,
    BW_ELEMENT_LIST(BW_ELEMENT_ENUM)
#undef BW_ELEMENT_ENUM
        BW_ELEMENT_LIMIT
} bw_element;

typedef struct bw_element_traits {
    bw_element element;
    size_t size; /* 0 for BYTES */
    const char *kserve, *tf;
    int tf_number;
} bw_element_traits;

const bw_element_traits *bw_element_get(bw_element element);     /* NULL for NONE */
const bw_element_traits *bw_element_of_tf(int number);           /* NULL: unknown */
const bw_element_traits *bw_element_of_kserve(const char *name); /* NULL: unknown */
const bw_element_traits *bw_element_of_dtype(bw_dtype dtype);    /* of a model's output; NULL: none */

/*
 * How the values lie: as the element itself, or as the wider type that the protocol's typed members use.
 * Values in a wider type are checked against the element's range.
 */
typedef enum bw_storage {
    BW_STORAGE_SAME = 0,
    BW_STORAGE_I32, /* int32 holding INT8, INT16, UINT8, UINT16 or BOOL, or the bits of FP16 and BF16 */
    BW_STORAGE_U32  /* uint32 holding UINT8, UINT16 */
} bw_storage;

/* What was read last of a tensor in shared memory that is not mapped: pages around each place where reading goes on. */
typedef struct bw_tensor_window bw_tensor_window;

/* A tensor as it arrived, its size checked: the values are read from where they lie, in any order. */
typedef struct bw_tensor_reader {
    bw_element element;
    bw_storage storage;
    bw_cursor values;
    bw_shared_range shared;    /* region not NULL: the values lie there; borrowed */
    bw_tensor_window *windows; /* of it, owned; NULL: mapped */
    size_t have, count;        /* values sent, and of the shape: the last one fills up */
    const char *name;          /* borrowed */
    /* Where reading ended lately: the planes of a picture are read side by side. */
    struct {
        size_t at; /* 0: not yet */
        bw_cursor rest;
    } marks[4];
    unsigned oldest;
} bw_tensor_reader;

/* For `count` values; with `repeat` fewer (but one) are filled up with the last one. BW_INVALID_ARGUMENT: another
 * number of bytes. */
bw_status bw_tensor_open(bw_tensor_reader *r, bw_element element, bw_storage storage, bw_cursor values, int repeat,
                         size_t count, const char *name, bw_error *err);
/* The same for values in shared memory; the range outlives the reader. Close the reader. BW_NO_MEMORY too. */
bw_status bw_tensor_open_shared(bw_tensor_reader *r, bw_element element, const bw_shared_range *values, size_t count,
                                const char *name, bw_error *err);
void bw_tensor_close(bw_tensor_reader *r); /* a zeroed one is allowed */
/* Converts values first .. first+count-1 to fp32. BW_INVALID_ARGUMENT: a value out of the element's range; errors of
 * bw_shared_read. */
bw_status bw_tensor_read(bw_tensor_reader *r, size_t first, size_t count, float *out, bw_error *err);

/* Index of the input (or output) meant by `name`: its exact name; the name with ":0" behind; `alias` if there is just
 * one. -1: none of these. */
int bw_tensor_find(const bw_io *const *ios, int count, const char *name, const char *alias);
/* "'x' FP32 [-1,3,32,32], 'y' FP32 [-1,10]", cut to what fits. */
void bw_tensor_list(const bw_io *const *ios, int count, char *text, size_t size);

/* BW_INVALID_ARGUMENT unless dims fit the model's, -1 being 1..4096. */
bw_status bw_tensor_check_shape(const bw_model *m, const bw_io *io, const int64_t *dims, int rank, bw_error *err);

#endif
