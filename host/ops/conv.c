/* SPDX-License-Identifier: Apache-2.0 */
/* Conv and ConvTranspose on oneDNN. Primitives and reordered weights are kept per node and input shape. */
#include <stdlib.h>
#include <string.h>

#include "host/ops/dnnl.h"

#define SHAPES 4 /* input shapes remembered per node: a few batch sizes */

typedef struct conv_shape {
    dnnl_primitive_t primitive; /* NULL: free */
    int64_t dims[BW_RANK_MAX], weight_dims[BW_RANK_MAX];
    dnnl_memory_desc_t src, weights, bias, dst;
    dnnl_memory_desc_t given_weights; /* the node's weights as oneDNN sees them */
    bw_buffer *kept;                  /* constant weights in the layout wanted */
} conv_shape;

typedef struct conv_state {
    conv_shape shapes[SHAPES];
    int next;
} conv_state;

static void shape_clear(conv_shape *s)
{
    if (s->primitive)
        dnnl_primitive_destroy(s->primitive);
    bw_buffer_put(s->kept);
    memset(s, 0, sizeof *s);
}

static void free_conv(void *state)
{
    conv_state *s = state;
    for (int i = 0; i < SHAPES; i++)
        shape_clear(&s->shapes[i]);
    free(s);
}

/* --- inference ------------------------------------------------------------------------------------------------------
 */

static bw_status check_inputs(bw_op_infer *c, int transposed, int64_t *group, int64_t *channels)
{
    bw_status status = BW_OK;
    for (int i = 0; i < c->in_count && !status; i++)
        status = bw_op_want(c, i, BW_WANT_FLOAT);
    if (status)
        return status;
    const bw_op_info *x = &c->in[0], *w = &c->in[1];
    char xs[128], ws[128];
    if (x->rank < 3 || x->rank > 2 + BW_SPATIAL_MAX || w->rank != x->rank)
        return bw_op_fail(c->err, c->node, BW_UNSUPPORTED, "input %s, weights %s: expected equal ranks from 3 to 5",
                          bw_dims_text(x->rank, x->dims, xs), bw_dims_text(w->rank, w->dims, ws));
    *group = bw_node_int(c->node, "group", 1);
    int64_t in_channels = w->dims[transposed ? 0 : 1], out_channels = w->dims[transposed ? 1 : 0];
    int fits = *group >= 1 && *group <= INT32_MAX && in_channels != 0 && out_channels != 0 && x->dims[1] != 0 &&
               in_channels <= INT32_MAX && out_channels <= INT32_MAX;
    if (fits && !transposed) {
        fits = (in_channels < 0 || x->dims[1] < 0 || x->dims[1] == in_channels * *group) &&
               (out_channels < 0 || out_channels % *group == 0);
        *channels = out_channels;
    } else if (fits) {
        fits = (in_channels < 0 || x->dims[1] < 0 || x->dims[1] == in_channels) &&
               (in_channels < 0 || in_channels % *group == 0);
        *channels = out_channels < 0 ? -1 : out_channels * *group;
    }
    if (fits && c->in_count > 2 && c->in[2].present)
        fits = c->in[2].rank == 1 && (c->in[2].dims[0] < 0 || *channels < 0 || c->in[2].dims[0] == *channels);
    return fits ? BW_OK
                : bw_op_fail(c->err, c->node, BW_CORRUPT,
                             "input %s, weights %s, group %lld and bias do not fit together",
                             bw_dims_text(x->rank, x->dims, xs), bw_dims_text(w->rank, w->dims, ws), (long long)*group);
}

static bw_status infer_conv(bw_op_infer *c)
{
    int64_t group, dims[BW_RANK_MAX];
    bw_window w;
    bw_status status = check_inputs(c, 0, &group, &dims[1]);
    if (!status)
        status = bw_window_resolve(c->err, c->node, c->in[0].rank - 2, c->in[0].dims + 2, c->in[1].dims + 2, &w);
    if (status)
        return status;
    dims[0] = c->in[0].dims[0];
    memcpy(dims + 2, w.out, sizeof *dims * (size_t)w.axes);
    return bw_op_output(c, 0, BW_F32, c->in[0].rank, dims);
}

/* The window of a ConvTranspose: `out` and the padding that gives it. */
static bw_status transposed_window(bw_error *err, const bw_node *n, int axes, const int64_t *in, const int64_t *kernel,
                                   bw_window *w)
{
    int64_t extra[BW_SPATIAL_MAX] = {0}, wanted[BW_SPATIAL_MAX], unknown[BW_SPATIAL_MAX] = {-1, -1, -1};
    bw_status status = bw_window_resolve(err, n, axes, unknown, kernel, w);
    if (status)
        return status;
    const char *auto_pad = bw_node_string(n, "auto_pad", "NOTSET");
    size_t extras = bw_node_ints(n, "output_padding", extra, (size_t)axes);
    size_t wants = bw_node_ints(n, "output_shape", wanted, (size_t)axes);
    if ((extras && extras != (size_t)axes) || (wants && wants != (size_t)axes))
        return bw_op_fail(err, n, BW_CORRUPT, "output_padding or output_shape: expected %d integers", axes);
    for (int i = 0; i < axes; i++) {
        if (extra[i] < 0 || extra[i] > 1 << 20 || (wants && (wanted[i] < 1 || wanted[i] > INT32_MAX)))
            return bw_op_fail(err, n, BW_CORRUPT, "output_padding or output_shape of axis %d is out of range", i);
        if (in[i] < 0 || kernel[i] < 0)
            continue;
        if (in[i] == 0 || in[i] > INT32_MAX)
            return bw_op_fail(err, n, BW_CORRUPT, "spatial size %lld: expected 1 to %d", (long long)in[i], INT32_MAX);
        int64_t full = (in[i] - 1) * w->stride[i] + (kernel[i] - 1) * w->dilation[i] + 1 + extra[i];
        if (wants || !strncmp(auto_pad, "SAME", 4)) {
            w->out[i] = wants ? wanted[i] : in[i] * w->stride[i];
            int64_t total = full - w->out[i];
            total = total < 0 ? 0 : total;
            int upper = !strcmp(auto_pad, "SAME_UPPER");
            w->begin[i] = upper ? total / 2 : total - total / 2;
        } else {
            w->out[i] = full - w->begin[i] - w->end[i];
        }
        if (w->out[i] < 1)
            return bw_op_fail(err, n, BW_CORRUPT, "the padding of axis %d leaves nothing", i);
        w->end[i] = full - extra[i] - w->begin[i] - w->out[i]; /* negative: beyond the last product */
    }
    return BW_OK;
}

static bw_status infer_transposed(bw_op_infer *c)
{
    int64_t group, dims[BW_RANK_MAX];
    bw_window w;
    bw_status status = check_inputs(c, 1, &group, &dims[1]);
    if (!status)
        status = transposed_window(c->err, c->node, c->in[0].rank - 2, c->in[0].dims + 2, c->in[1].dims + 2, &w);
    if (status)
        return status;
    dims[0] = c->in[0].dims[0];
    memcpy(dims + 2, w.out, sizeof *dims * (size_t)w.axes);
    return bw_op_output(c, 0, BW_F32, c->in[0].rank, dims);
}

/* --- running --------------------------------------------------------------------------------------------------------
 */

/* The node's weights in oneDNN's terms: [group,] out, in, kernel; ConvTranspose stores `in` first. */
static void describe_weights(dnnl_memory_desc_t *md, const bw_array *w, int64_t group, int transposed)
{
    int axes = w->rank - 2, at = 0;
    dnnl_dims_t dims, strides;
    int64_t own[BW_RANK_MAX];
    bw_strides(w->rank, w->dims, own);
    if (group > 1) {
        dims[at] = group;
        strides[at++] = own[0] * (w->dims[0] / group);
    }
    dims[at] = transposed ? w->dims[1] : w->dims[0] / group;
    strides[at++] = own[transposed ? 1 : 0];
    dims[at] = transposed ? w->dims[0] / group : w->dims[1];
    strides[at++] = own[transposed ? 0 : 1];
    for (int i = 0; i < axes; i++, at++) {
        dims[at] = w->dims[2 + i];
        strides[at] = own[2 + i];
    }
    dnnl_memory_desc_init_by_strides(md, at, dims, dnnl_f32, strides);
}

static bw_status make_shape(const bw_op_run *r, int transposed, conv_shape *s)
{
    const bw_array *x = &r->in[0]->array, *w = &r->in[1]->array, *y = &r->out[0].array;
    int has_bias = r->in_count > 2 && r->in[2];
    int64_t group = bw_node_int(r->node, "group", 1);
    bw_window win;
    bw_status status = transposed ? transposed_window(r->err, r->node, x->rank - 2, x->dims + 2, w->dims + 2, &win)
                                  : bw_window_resolve(r->err, r->node, x->rank - 2, x->dims + 2, w->dims + 2, &win);
    if (status)
        return status;
    dnnl_dims_t strides, dilations, begin, end, dims;
    for (int i = 0; i < win.axes; i++) {
        strides[i] = win.stride[i];
        dilations[i] = win.dilation[i] - 1;
        begin[i] = win.begin[i];
        end[i] = win.end[i];
    }
    describe_weights(&s->given_weights, w, group, transposed);
    dnnl_memory_desc_t src, weights, dst;
    memcpy(dims, x->dims, sizeof *dims * (size_t)x->rank);
    dnnl_memory_desc_init_by_tag(&src, x->rank, dims, dnnl_f32, dnnl_format_tag_any);
    memcpy(dims, y->dims, sizeof *dims * (size_t)y->rank);
    dnnl_memory_desc_init_by_tag(&dst, y->rank, dims, dnnl_f32, dnnl_format_tag_any);
    dnnl_memory_desc_init_by_tag(&weights, s->given_weights.ndims, s->given_weights.dims, dnnl_f32,
                                 dnnl_format_tag_any);
    dims[0] = y->dims[1];
    dnnl_memory_desc_init_by_tag(&s->bias, 1, dims, dnnl_f32, dnnl_a);
    dnnl_convolution_desc_t conv;
    dnnl_status_t st =
        transposed
            ? dnnl_dilated_deconvolution_forward_desc_init(&conv, dnnl_forward_inference, dnnl_deconvolution_direct,
                                                           &src, &weights, has_bias ? &s->bias : NULL, &dst, strides,
                                                           dilations, begin, end)
            : dnnl_dilated_convolution_forward_desc_init(&conv, dnnl_forward_inference, dnnl_convolution_direct, &src,
                                                         &weights, has_bias ? &s->bias : NULL, &dst, strides, dilations,
                                                         begin, end);
    dnnl_primitive_desc_t pd = NULL;
    if (st == dnnl_success)
        st = dnnl_primitive_desc_create(&pd, &conv, NULL, bw_dnnl_engine(), NULL);
    if (st == dnnl_success)
        st = dnnl_primitive_create(&s->primitive, pd);
    if (st == dnnl_success) {
        s->src = *dnnl_primitive_desc_query_md(pd, dnnl_query_src_md, 0);
        s->weights = *dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
        s->dst = *dnnl_primitive_desc_query_md(pd, dnnl_query_dst_md, 0);
        memcpy(s->dims, x->dims, sizeof *s->dims * (size_t)x->rank);
        memcpy(s->weight_dims, w->dims, sizeof *s->weight_dims * (size_t)w->rank);
    }
    dnnl_primitive_desc_destroy(pd);
    return bw_dnnl_check(st, "a convolution", r->err);
}

static bw_status find_shape(const bw_op_run *r, int transposed, conv_shape **found)
{
    conv_state *state = *r->state;
    if (!state && !(state = *r->state = calloc(1, sizeof *state)))
        return bw_fail(r->err, BW_NO_MEMORY, "no memory for a convolution");
    size_t rank_bytes = sizeof(int64_t) * (size_t)r->in[0]->array.rank;
    for (int i = 0; i < SHAPES; i++) {
        conv_shape *s = &state->shapes[i];
        if (s->primitive && !memcmp(s->dims, r->in[0]->array.dims, rank_bytes) &&
            !memcmp(s->weight_dims, r->in[1]->array.dims, rank_bytes)) {
            *found = s;
            return BW_OK;
        }
    }
    conv_shape *s = &state->shapes[state->next];
    state->next = (state->next + 1) % SHAPES;
    shape_clear(s);
    *found = s;
    return make_shape(r, transposed, s);
}

/* Constant weights that another shape of this node keeps: the same buffer, or what it holds in another order. */
static const conv_shape *find_kept(const conv_state *state, const conv_shape *s)
{
    const conv_shape *found = NULL;
    for (int i = 0; i < SHAPES; i++) {
        const conv_shape *other = &state->shapes[i];
        if (!other->kept || memcmp(other->weight_dims, s->weight_dims, sizeof s->weight_dims))
            continue;
        found = other;
        if (dnnl_memory_desc_equal(&other->weights, &s->weights))
            break;
    }
    return found;
}

/* The weights in the layout wanted: the node's own bytes, the kept copy, or a fresh one (*temporary). */
static bw_status get_weights(bw_op_run *r, conv_shape *s, void **bytes, bw_buffer **temporary)
{
    *temporary = NULL;
    *bytes = r->in[1]->array.data;
    if (s->kept) {
        *bytes = s->kept->data;
        return BW_OK;
    }
    int keep = r->in[1]->constant;
    const conv_shape *other = keep ? find_kept(*r->state, s) : NULL;
    const dnnl_memory_desc_t *from = other ? &other->weights : &s->given_weights;
    if (other)
        *bytes = other->kept->data;
    if (dnnl_memory_desc_equal(&s->weights, from)) {
        if (other) {
            s->kept = other->kept;
            s->kept->references++;
        }
        return BW_OK;
    }
    size_t size = dnnl_memory_desc_get_size(&s->weights);
    bw_buffer *b = keep ? bw_buffer_get_kept(r->executor, size, r->err) : bw_buffer_get(r->executor, size, r->err);
    if (!b)
        return BW_NO_MEMORY;
    bw_status status = bw_dnnl_reorder(from, *bytes, &s->weights, b->data, r->err);
    if (status) {
        bw_buffer_put(b);
        return status;
    }
    *bytes = b->data;
    if (!keep) {
        *temporary = b;
        return BW_OK;
    }
    s->kept = b;
    bw_run_release_constant(r, 1);
    return BW_OK;
}

static bw_status run(bw_op_run *r, int transposed)
{
    conv_shape *s = NULL;
    bw_status status = BW_OK;
    for (int i = 1; i < r->in_count && !status; i++)
        if (r->in[i] && r->in[i]->layout)
            status = bw_run_make_plain(r, i);
    if (status || (status = find_shape(r, transposed, &s)))
        return status;
    void *weights = NULL, *src = NULL;
    bw_buffer *weights_buffer = NULL, *src_buffer = NULL;
    status = get_weights(r, s, &weights, &weights_buffer);
    if (!status)
        status = bw_dnnl_input(r, 0, &s->src, &src, &src_buffer);
    if (!status)
        status = bw_dnnl_output(r, 0, &s->dst);
    if (!status) {
        bw_dnnl_arg args[4] = {{DNNL_ARG_SRC, &s->src, src},
                               {DNNL_ARG_WEIGHTS, &s->weights, weights},
                               {DNNL_ARG_DST, &s->dst, bw_tensor_bytes(&r->out[0])}};
        int count = 3;
        if (r->in_count > 2 && r->in[2])
            args[count++] = (bw_dnnl_arg){DNNL_ARG_BIAS, &s->bias, r->in[2]->array.data};
        status = bw_dnnl_execute(s->primitive, args, count, r->err);
    }
    bw_buffer_put(weights_buffer);
    bw_buffer_put(src_buffer);
    return status;
}

static bw_status run_conv(bw_op_run *r)
{
    return run(r, 0);
}

static bw_status run_transposed(bw_op_run *r)
{
    return run(r, 1);
}

const bw_op bw_ops_conv[] = {
    {"Conv", 2, 3, 1, BW_OP_ALLOCATES | BW_OP_LAYOUTS, infer_conv, run_conv, free_conv},
    {"ConvTranspose", 2, 3, 1, BW_OP_ALLOCATES | BW_OP_LAYOUTS, infer_transposed, run_transposed, free_conv},
    {0},
};
