/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ONNX import: a model file to a normalised float graph (host/graph.h).
 *
 * Opsets 7 to the newest that the installed reader knows how to normalise; external data; initialisers as raw or typed
 * data. Dynamic dimensions: the first dimension of an input may be symbolic (the batch); every other needs a binding by
 * its symbol or, for a dimension without a name, by its place ("input:2"). A first dimension fixed to 1 becomes the
 * batch (-1) where the network treats the samples independently.
 *
 * The result is in the normal form of host/ops.md, sorted, with known shapes and constants folded. docs/import.md says
 * what is converted and how.
 * Source: ONNX IR specification (onnx.proto3) and operator schemas.
 */
#ifndef BW_QUANTIZE_IMPORT_H
#define BW_QUANTIZE_IMPORT_H

#include "host/graph.h"

typedef struct bw_binding { /* --bind N=1 */
    const char *name;
    int64_t value;
} bw_binding;

typedef struct bw_import_info {
    int64_t opset;
    char producer[64];
    char sha256[65]; /* of the model file */
} bw_import_info;

/* BW_NOT_FOUND, BW_IO; BW_CORRUPT: not an ONNX model, or damaged; BW_UNSUPPORTED: names node, operator, opset;
 * BW_INVALID_ARGUMENT: an unbound dynamic dimension (names input, axis, symbol and the --bind to give);
 * BW_NOT_FINITE: NaN or infinity in an initialiser (names it and the index; a single infinity alone in a tensor is let
 * through: limits of Clip); BW_EXHAUSTED: see BW_IMPORT_CONSTANT_BYTES. info may be NULL; the caller frees *g. */
bw_status bw_onnx_import(const char *path, const bw_binding *bindings, size_t binding_count, bw_graph **g,
                         bw_import_info *info, bw_error *err);
/* From memory, no external data. */
bw_status bw_onnx_import_bytes(const void *bytes, size_t size, const bw_binding *bindings, size_t binding_count,
                               bw_graph **g, bw_import_info *info, bw_error *err);

/* The limit that the functions above put on the sum of all constants, folded ones included. */
#define BW_IMPORT_CONSTANT_BYTES (UINT64_C(16) << 30)

/* The same with a limit in bytes; BW_EXHAUSTED names the constant that goes over it. For the fuzzer and for services
 * that take models from strangers. */
bw_status bw_onnx_import_bounded(const void *bytes, size_t size, const bw_binding *bindings, size_t binding_count,
                                 uint64_t limit, bw_graph **g, bw_import_info *info, bw_error *err);

#endif
