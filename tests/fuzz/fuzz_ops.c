/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bytes choose an operator, its inputs (types, shapes, contents, constant or not) and its attributes, sensible and
 * hostile. The node is inferred, folded and run within tight memory; what inference promised must be what the run
 * gives.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/graph.h"
#include "host/ops/op.h"

#define MAX_ELEMENTS 700
#define MAX_BYTES    65536

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct source {
    const uint8_t *at;
    size_t left;
} source;

static unsigned next(source *s, unsigned limit)
{
    if (!s->left)
        return 0;
    s->left--;
    return *s->at++ % limit;
}

static int64_t next_number(source *s)
{
    static const int64_t odd[] = {INT64_MIN, INT64_MAX, INT32_MAX, -INT32_MAX, 1 << 20, 1000, -1000, 64, 17};
    unsigned b = next(s, 256);
    return b < 230 ? (int64_t)(b % 9) - 2 : odd[b % (sizeof odd / sizeof *odd)];
}

static const bw_op *next_op(source *s)
{
    const bw_op *const families[] = {bw_ops_unary,  bw_ops_binary, bw_ops_movement, bw_ops_index,
                                     bw_ops_reduce, bw_ops_conv,   bw_ops_pool,     bw_ops_matmul,
                                     bw_ops_norm,   bw_ops_resize, bw_ops_shape};
    const bw_op *family = families[next(s, sizeof families / sizeof *families)];
    unsigned count = 0;
    while (family[count].name)
        count++;
    return &family[next(s, count)];
}

static int next_array(source *s, const bw_array *like, bw_array *a)
{
    static const bw_dtype types[] = {BW_F32, BW_F32,  BW_F32, BW_F32, BW_I64, BW_I64,
                                     BW_I32, BW_BOOL, BW_F64, BW_U8,  BW_F16};
    static const int64_t sizes[] = {1, 2, 3, 4, 8, 17, 6, 0, 1, 2};
    bw_dtype dtype = types[next(s, sizeof types / sizeof *types)];
    int64_t dims[BW_RANK_MAX], n = 1;
    int rank = (int)next(s, 7);
    if (like && rank == 6) { /* as the first input, so that shapes meet */
        dtype = like->dtype;
        rank = like->rank;
        memcpy(dims, like->dims, sizeof dims);
    } else {
        rank = rank == 6 ? 4 : rank;
        for (int i = 0; i < rank; i++)
            dims[i] = sizes[next(s, sizeof sizes / sizeof *sizes)];
    }
    for (int i = 0; i < rank; i++)
        n *= dims[i];
    if (n > MAX_ELEMENTS || bw_array_alloc(a, dtype, rank, dims, NULL))
        return -1;
    for (int64_t i = 0; i < n; i++) {
        int64_t v = next_number(s);
        if (dtype == BW_F32 || dtype == BW_F64 || dtype == BW_F16) {
            float f = (float)v * 0.5f;
            bw_cast(BW_F32, &f, dtype, (char *)a->data + (size_t)i * bw_dtype_size(dtype), 1);
        } else {
            bw_cast(BW_I64, &v, dtype, (char *)a->data + (size_t)i * bw_dtype_size(dtype), 1);
        }
    }
    return 0;
}

static void set_attributes(source *s, bw_node *n)
{
    static const char *const ints[] = {"pads",    "strides", "dilations",      "kernel_shape", "axes",
                                       "shape",   "starts",  "ends",           "steps",        "split",
                                       "repeats", "perm",    "output_padding", "output_shape", "sizes"};
    static const char *const numbers[] = {"axis",      "group",  "ceil_mode", "keepdims", "coerce",
                                          "transA",    "transB", "blocksize", "to",       "count_include_pad",
                                          "size",      "upper",  "exclusive", "reverse",  "fmod",
                                          "allowzero", "start",  "end",       "k",        "noop_with_empty_axes"};
    static const char *const strings[][6] = {
        {"auto_pad", "SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET", "?"},
        {"mode", "reflect", "edge", "linear", "nearest", "CRD"},
        {"coordinate_transformation_mode", "align_corners", "asymmetric", "pytorch_half_pixel", "half_pixel_symmetric",
         "?"},
        {"nearest_mode", "floor", "ceil", "round_prefer_ceil", "round_prefer_floor", "?"},
    };
    for (unsigned i = 0, count = next(s, 6); i < count; i++) {
        switch (next(s, 8)) {
        case 0:
        case 1:
        case 2: {
            int64_t v[10];
            unsigned len = next(s, 10);
            for (unsigned k = 0; k < len; k++)
                v[k] = next_number(s);
            bw_node_set_ints(n, ints[next(s, sizeof ints / sizeof *ints)], v, len);
            break;
        }
        case 3:
        case 4:
        case 5:
            bw_node_set_int(n, numbers[next(s, sizeof numbers / sizeof *numbers)], next_number(s));
            break;
        case 6: {
            unsigned which = next(s, 4);
            bw_node_set_string(n, strings[which][0], strings[which][1 + next(s, 5)]);
            break;
        }
        default: {
            float v[8];
            unsigned len = 1 + next(s, 6);
            for (unsigned k = 0; k < len; k++)
                v[k] = (float)next_number(s) * 0.5f;
            bw_node_set_floats(n, "scales", v, len);
            bw_node_set_float(n, next(s, 2) ? "min" : "alpha", v[0]);
        }
        }
    }
}

static void run(const bw_graph *g, const bw_array *in)
{
    bw_executor *ex;
    bw_error err;
    bw_array out[8] = {{0}};
    if (bw_executor_create(g, &ex, &err))
        return;
    bw_executor_set_memory_limit(ex, MAX_BYTES);
    for (int twice = 0; twice < 2; twice++) {
        if (bw_executor_run(ex, in, out, NULL, NULL, &err))
            break;
        for (int i = 0; i < g->output_count; i++) {
            const bw_value *v = &g->values[g->outputs[i]];
            /* Squeeze without axes is settled by folding; until then an open dimension may turn out to be 1. */
            int open = g->node_count && !strcmp(g->nodes[0].op, "Squeeze") && !bw_node_attr(&g->nodes[0], "axes");
            int same = open || (v->rank == out[i].rank && v->dtype == out[i].dtype);
            for (int k = 0; same && !open && k < v->rank; k++)
                same = v->dims[k] < 0 || v->dims[k] == out[i].dims[k];
            if (!same) {
                fprintf(stderr, "%s: output %d is not what inference promised\n", g->node_count ? g->nodes[0].op : "",
                        i);
                abort();
            }
            bw_array_free(&out[i]);
        }
    }
    bw_executor_destroy(ex);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    source s = {data, size};
    bw_graph *g = bw_graph_new("g");
    bw_array in[6] = {{0}};
    int ids[6], outs[4], graph_inputs[6], inputs = 0, count = 0;
    const bw_op *op = next_op(&s);
    unsigned wanted = (unsigned)op->min_in + next(&s, 3), outputs = 1 + (op->max_out > 1 ? next(&s, 3) : 0);
    bw_array given[6] = {{0}};
    bw_error err;
    for (; count < (int)wanted && count < 6 && g; count++) {
        if (next_array(&s, count ? &in[0] : NULL, &in[count]))
            goto out;
        bw_array view = in[count];
        view.owned = 0;
        if (next(&s, 3) == 0) {
            ids[count] = bw_graph_add_constant(g, NULL, &view);
        } else {
            int64_t dims[BW_RANK_MAX];
            memcpy(dims, view.dims, sizeof dims);
            if (view.rank && next(&s, 3) == 0)
                dims[0] = -1;
            ids[count] = bw_graph_add_value(g, NULL, view.dtype, view.rank, dims);
            given[inputs] = view;
            graph_inputs[inputs++] = ids[count];
        }
        if (ids[count] < 0)
            goto out;
    }
    for (unsigned i = 0; i < outputs; i++)
        outs[i] = bw_graph_add_value(g, NULL, BW_DTYPE_NONE, -1, NULL);
    if (bw_graph_add_node(g, op->name, "n", ids, count, outs, (int)outputs) < 0)
        goto out;
    set_attributes(&s, &g->nodes[0]);
    bw_graph_set_inputs(g, graph_inputs, inputs);
    bw_graph_set_outputs(g, outs, (int)outputs);
    if (!bw_graph_infer_shapes(g, &err)) {
        run(g, given);
        if (!bw_graph_fold_constants(g, 4096, &err))
            run(g, given);
    }
out:
    bw_graph_free(g);
    for (int i = 0; i < 6; i++)
        bw_array_free(&in[i]);
    return 0;
}
