/* SPDX-License-Identifier: Apache-2.0 */
/* Per-channel scale and shift: MatMul and Gemm to one form; BatchNormalization, Mul and Add into the product before
 * them, in double and rounded once; what is left of BatchNormalization to Mul + Add. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quantize/passes_internal.h"

static int is_op(const bw_node *n, const char *op)
{
    return !strcmp(n->op, op);
}

static const char *stem(const bw_node *n, const char *suffix, char buf[320])
{
    snprintf(buf, 320, "%.250s.%s", n->name, suffix);
    return buf;
}

/* --- Gemm ------------------------------------------------------------------------------------------------------- */

/* B as [N, K], times alpha, as a new constant. */
static bw_status transposed(bw_pass *p, int node, const bw_array *b, int is_transposed, float alpha, int *id,
                            bw_error *err)
{
    char name[320];
    int64_t rows = b->dims[0], columns = b->dims[1];
    int64_t dims[2] = {is_transposed ? rows : columns, is_transposed ? columns : rows};
    bw_array w;
    bw_status st = bw_array_alloc(&w, BW_F32, 2, dims, err);
    if (st)
        return st;
    const float *from = b->data;
    float *to = w.data;
    if (is_transposed)
        for (int64_t i = 0; i < rows * columns; i++)
            to[i] = from[i] * alpha;
    else /* in tiles: both sides stay in cache */
        for (int64_t r0 = 0; r0 < rows; r0 += 32)
            for (int64_t c0 = 0; c0 < columns; c0 += 32)
                for (int64_t c = c0; c < columns && c < c0 + 32; c++)
                    for (int64_t r = r0; r < rows && r < r0 + 32; r++)
                        to[c * rows + r] = from[r * columns + c] * alpha;
    return bw_pass_constant(p, stem(&p->g->nodes[node], "weight", name), &w, id, err);
}

/* A constant that broadcasts to [N] along the last axis (rank 0, 1, or 2 with one row), spread over N. 0: it is not. */
static int spread_row(const bw_array *c, int64_t n, double *out)
{
    if (c->dtype != BW_F32 || c->rank > 2 || (c->rank == 2 && c->dims[0] != 1))
        return 0;
    int64_t count = bw_array_count(c);
    if (count != 1 && count != n)
        return 0;
    for (int64_t i = 0; i < n; i++)
        out[i] = ((const float *)c->data)[count == 1 ? 0 : i];
    return 1;
}

static bw_status gemm_bias(bw_pass *p, int node, const bw_array *c, int64_t n, float beta, int *id, bw_error *err)
{
    char name[320];
    double *v = malloc((size_t)n * sizeof *v);
    if (!v)
        return bw_pass_no_memory(p, node, err);
    bw_status st = BW_OK;
    *id = -1;
    if (spread_row(c, n, v)) {
        for (int64_t i = 0; i < n; i++)
            v[i] *= beta;
        st = bw_pass_vector(p, stem(&p->g->nodes[node], "bias", name), v, n, id, err);
    }
    free(v);
    return st;
}

static bw_status plain_gemm(bw_pass *p, int node, bw_error *err)
{
    bw_graph *g = p->g;
    bw_node *n = &g->nodes[node];
    const bw_array *b = bw_pass_const(p, node, 1), *c = bw_pass_const(p, node, 2);
    float alpha = bw_node_float(n, "alpha", 1), beta = bw_node_float(n, "beta", 1);
    int trans_b = bw_node_int(n, "transB", 0) != 0, has_c = n->input_count > 2 && n->inputs[2] >= 0;
    if (!b || b->dtype != BW_F32 || b->rank != 2 || bw_node_int(n, "transA", 0) || (has_c && !c))
        return BW_OK;
    int64_t outputs = b->dims[trans_b ? 0 : 1];
    int bias = -1, weight = n->inputs[1];
    bw_status st = BW_OK;
    if (outputs < 1 || b->dims[trans_b ? 1 : 0] < 1)
        return BW_OK;
    if (has_c && beta != 0) {
        if (beta == 1 && c->rank == 1 && c->dims[0] == outputs)
            bias = n->inputs[2];
        else if ((st = gemm_bias(p, node, c, outputs, beta, &bias, err)))
            return st;
        if (bias < 0) /* a bias per row: left as it is */
            return BW_OK;
    }
    if (!trans_b || alpha != 1)
        st = transposed(p, node, b, trans_b, alpha, &weight, err);
    if (st || (st = bw_pass_set_input(p, node, 1, weight, err)))
        return st;
    if (bias >= 0)
        st = bw_pass_set_input(p, node, 2, bias, err);
    n = &g->nodes[node];
    if (bias < 0)
        n->input_count = 2;
    if (!st && (bw_node_set_int(n, "transB", 1) || bw_node_set_int(n, "transA", 0) ||
                bw_node_set_float(n, "alpha", 1) || bw_node_set_float(n, "beta", 1)))
        st = bw_pass_no_memory(p, node, err);
    return st;
}

bw_status bw_pass_gemm(bw_pass *p, int node, bw_error *err)
{
    bw_graph *g = p->g;
    bw_node *n = &g->nodes[node];
    if (is_op(n, "Gemm"))
        return plain_gemm(p, node, err);
    if (!is_op(n, "MatMul") || n->input_count != 2)
        return BW_OK;
    const bw_array *b = bw_pass_const(p, node, 1);
    const bw_value *a = &g->values[n->inputs[0]];
    if (!b || b->rank != 2 || b->dtype != BW_F32 || a->rank != 2 || a->constant || b->dims[0] < 1 || b->dims[1] < 1)
        return BW_OK;
    char *op = strdup("Gemm");
    if (!op)
        return bw_pass_no_memory(p, node, err);
    free(n->op);
    n->op = op;
    return plain_gemm(p, node, err);
}

/* --- scale and shift -------------------------------------------------------------------------------------------- */

/* y = x * scale + shift per channel (axis 1). */
typedef struct affine {
    int64_t channels;
    double *scale, *shift;
} affine;

static void affine_free(affine *a)
{
    free(a->scale);
    free(a->shift);
}

static bw_status affine_new(bw_pass *p, int node, int64_t channels, affine *a, bw_error *err)
{
    a->channels = channels;
    a->scale = malloc((size_t)channels * sizeof *a->scale);
    a->shift = malloc((size_t)channels * sizeof *a->shift);
    if (!a->scale || !a->shift) {
        affine_free(a);
        return bw_pass_no_memory(p, node, err);
    }
    for (int64_t i = 0; i < channels; i++) {
        a->scale[i] = 1;
        a->shift[i] = 0;
    }
    return BW_OK;
}

static int64_t channels_of(const bw_graph *g, const bw_node *n)
{
    const bw_value *y = &g->values[n->outputs[0]];
    return y->rank >= 2 && y->dtype == BW_F32 ? y->dims[1] : -1;
}

/* A constant operand as one number per channel of a tensor of `rank` axes: all its axes but the channel's are 1. */
static int spread_channels(const bw_array *c, int rank, int64_t channels, double *out)
{
    if (c->dtype != BW_F32 || c->rank > rank)
        return 0;
    int64_t count = bw_array_count(c);
    for (int i = 0; i < c->rank; i++)
        if (i + rank - c->rank != 1 && c->dims[i] != 1)
            return 0;
    if (count != 1 && count != channels)
        return 0;
    for (int64_t i = 0; i < channels; i++)
        out[i] = ((const float *)c->data)[count == 1 ? 0 : i];
    return 1;
}

static bw_status batchnorm_affine(bw_pass *p, int node, affine *a, int *found, bw_error *err)
{
    const bw_node *n = &p->g->nodes[node];
    int64_t channels = channels_of(p->g, n);
    const float *v[4];
    for (int i = 0; i < 4; i++) {
        const bw_array *c = bw_pass_const(p, node, i + 1);
        if (!c || c->dtype != BW_F32 || bw_array_count(c) != channels)
            return BW_OK;
        v[i] = c->data;
    }
    double epsilon = bw_node_float(n, "epsilon", 1e-5f);
    bw_status st = affine_new(p, node, channels, a, err);
    if (st)
        return st;
    for (int64_t i = 0; i < channels; i++) {
        double variance = (double)v[3][i] + epsilon;
        if (!(variance > 0)) {
            affine_free(a);
            return bw_fail(err, BW_NOT_FINITE,
                           "node '%s' (BatchNormalization): variance + epsilon of channel %lld is "
                           "%g, expected more than 0",
                           n->name, (long long)i, variance);
        }
        a->scale[i] = v[0][i] / sqrt(variance);
        a->shift[i] = v[1][i] - v[2][i] * a->scale[i];
    }
    *found = 1;
    return BW_OK;
}

/* Add, Sub, Mul, Div with one constant operand per channel. *data: index of the other operand. */
static bw_status operand_affine(bw_pass *p, int node, affine *a, int *data, int *found, bw_error *err)
{
    const bw_graph *g = p->g;
    const bw_node *n = &g->nodes[node];
    int add = is_op(n, "Add"), sub = is_op(n, "Sub"), mul = is_op(n, "Mul"), divide = is_op(n, "Div");
    if ((!add && !sub && !mul && !divide) || n->input_count != 2)
        return BW_OK;
    int side = bw_pass_const(p, node, 1) ? 1 : 0;
    const bw_array *c = bw_pass_const(p, node, side);
    if (!c || (side == 0 && (sub || divide)) || n->inputs[1 - side] < 0)
        return BW_OK;
    const bw_value *x = &g->values[n->inputs[1 - side]], *y = &g->values[n->outputs[0]];
    int64_t channels = channels_of(g, n);
    if (channels < 1 || x->rank != y->rank || x->dims[1] != channels)
        return BW_OK;
    bw_status st = affine_new(p, node, channels, a, err);
    if (st)
        return st;
    double *v = add || sub ? a->shift : a->scale;
    *found = spread_channels(c, x->rank, channels, v);
    for (int64_t i = 0; i < channels && *found; i++) {
        v[i] = sub ? -v[i] : divide ? 1 / v[i] : v[i];
        *found = isfinite(v[i]);
    }
    if (!*found)
        affine_free(a);
    *data = 1 - side;
    return BW_OK;
}

/* --- into the node before --------------------------------------------------------------------------------------- */

/* 1 if `node` is Conv or Gemm with one output channel per row of a constant weight and a constant bias or none. */
static int is_product(const bw_pass *p, int node, int64_t channels)
{
    const bw_node *n = &p->g->nodes[node];
    const bw_array *w = bw_pass_const(p, node, 1), *b = bw_pass_const(p, node, 2);
    int has_bias = n->input_count > 2 && n->inputs[2] >= 0;
    if (!w || w->dtype != BW_F32 || w->rank < 2 || w->dims[0] != channels)
        return 0;
    if (has_bias && (!b || b->dtype != BW_F32 || b->rank != 1 || b->dims[0] != channels))
        return 0;
    if (is_op(n, "Conv"))
        return 1;
    return is_op(n, "Gemm") && bw_node_int(n, "transB", 0) == 1 && !bw_node_int(n, "transA", 0) &&
           bw_node_float(n, "alpha", 1) == 1 && bw_node_float(n, "beta", 1) == 1;
}

/* The weights to write to: the constant itself if nobody else reads it, else a copy. */
static bw_status own_weights(bw_pass *p, int node, float **data, bw_error *err)
{
    char name[320];
    bw_graph *g = p->g;
    int v = g->nodes[node].inputs[1];
    bw_array *w = g->values[v].constant;
    if (p->uses[v] == 1 && w->owned) {
        *data = w->data;
        return BW_OK;
    }
    bw_array copy;
    bw_status st = bw_array_alloc(&copy, BW_F32, w->rank, w->dims, err);
    if (st)
        return st;
    memcpy(copy.data, w->data, w->bytes);
    *data = copy.data;
    int id;
    if ((st = bw_pass_constant(p, stem(&g->nodes[node], "weight", name), &copy, &id, err)))
        return st;
    return bw_pass_set_input(p, node, 1, id, err);
}

static bw_status fold_into_product(bw_pass *p, int product, const affine *a, bw_error *err)
{
    char name[320];
    bw_graph *g = p->g;
    const bw_array *w = bw_pass_const(p, product, 1), *b = bw_pass_const(p, product, 2);
    int64_t row = bw_array_count(w) / a->channels;
    double *bias = malloc((size_t)a->channels * sizeof *bias);
    if (!bias)
        return bw_pass_no_memory(p, product, err);
    int id, scales = 0;
    for (int64_t i = 0; i < a->channels; i++) {
        bias[i] = (b ? ((const float *)b->data)[i] : 0.0) * a->scale[i] + a->shift[i];
        scales |= a->scale[i] != 1;
    }
    float *data = NULL;
    bw_status st = bw_pass_vector(p, stem(&g->nodes[product], "bias", name), bias, a->channels, &id, err);
    if (!st)
        st = bw_pass_set_input(p, product, 2, id, err);
    if (!st && scales)
        st = own_weights(p, product, &data, err);
    for (int64_t i = 0; i < a->channels && !st && scales; i++) {
        for (int64_t k = i * row; k < (i + 1) * row && !st; k++) {
            data[k] = (float)(data[k] * a->scale[i]);
            if (!isfinite(data[k]))
                st = bw_fail(err, BW_NOT_FINITE,
                             "node '%s' (%s): folding the scale %g into output channel %lld "
                             "overflows fp32: the model's normalisation is damaged",
                             g->nodes[product].name, g->nodes[product].op, a->scale[i], (long long)i);
        }
    }
    free(bias);
    return st;
}

/* BatchNormalization as scale, shift with mean 0, variance 1, epsilon 0: the form that later Mul and Add fold into. */
static bw_status set_batchnorm(bw_pass *p, int node, const affine *a, bw_error *err)
{
    char name[320];
    double *v = malloc((size_t)a->channels * sizeof *v);
    if (!v)
        return bw_pass_no_memory(p, node, err);
    bw_status st = BW_OK;
    static const char *const suffix[] = {"scale", "shift", "mean", "variance"};
    for (int k = 0; k < 4 && !st; k++) {
        int id;
        for (int64_t i = 0; i < a->channels; i++)
            v[i] = k == 0 ? a->scale[i] : k == 1 ? a->shift[i] : k == 2 ? 0 : 1;
        st = bw_pass_vector(p, stem(&p->g->nodes[node], suffix[k], name), v, a->channels, &id, err);
        if (!st)
            st = bw_pass_set_input(p, node, k + 1, id, err);
    }
    free(v);
    if (!st && bw_node_set_float(&p->g->nodes[node], "epsilon", 0))
        st = bw_pass_no_memory(p, node, err);
    return st;
}

static bw_status fold_into_batchnorm(bw_pass *p, int before, const affine *a, int *done, bw_error *err)
{
    affine b;
    int found = 0;
    bw_status st = batchnorm_affine(p, before, &b, &found, err);
    if (st || !found || b.channels != a->channels) {
        if (found)
            affine_free(&b);
        return st;
    }
    for (int64_t i = 0; i < b.channels; i++) {
        b.scale[i] *= a->scale[i];
        b.shift[i] = b.shift[i] * a->scale[i] + a->shift[i];
    }
    st = set_batchnorm(p, before, &b, err);
    affine_free(&b);
    *done = !st;
    return st;
}

bw_status bw_pass_fold_affine(bw_pass *p, int node, bw_error *err)
{
    bw_graph *g = p->g;
    affine a;
    int found = 0, data = 0, done = 0;
    bw_status st;
    if (is_op(&g->nodes[node], "BatchNormalization"))
        st = batchnorm_affine(p, node, &a, &found, err);
    else
        st = operand_affine(p, node, &a, &data, &found, err);
    if (st || !found)
        return st;
    int before = bw_pass_only_producer(p, node, data);
    if (before >= 0 && is_product(p, before, a.channels)) {
        st = fold_into_product(p, before, &a, err);
        done = !st;
    } else if (before >= 0 && is_op(&g->nodes[before], "BatchNormalization")) {
        st = fold_into_batchnorm(p, before, &a, &done, err);
    }
    if (done)
        bw_pass_absorb(p, before, node);
    affine_free(&a);
    return st;
}

/* Mul and Add only: a BatchNormalization stays apart from the product before it. */
bw_status bw_pass_fold_operands(bw_pass *p, int node, bw_error *err)
{
    return is_op(&p->g->nodes[node], "BatchNormalization") ? BW_OK : bw_pass_fold_affine(p, node, err);
}

/* --- what is left ----------------------------------------------------------------------------------------------- */

/* A per-channel constant as [C, 1, ...], so that it broadcasts against a tensor of `rank` axes. */
static bw_status channel_constant(bw_pass *p, const char *name, const double *v, int64_t channels, int rank, int *id,
                                  bw_error *err)
{
    bw_status st = bw_pass_vector(p, name, v, channels, id, err);
    if (st)
        return st;
    bw_value *value = &p->g->values[*id];
    value->rank = value->constant->rank = rank - 1;
    for (int i = 1; i < rank - 1; i++)
        value->dims[i] = value->constant->dims[i] = 1;
    return BW_OK;
}

/* BatchNormalization that nothing took up becomes Mul and Add, which an accelerator has. */
bw_status bw_pass_split_batchnorm(bw_pass *p, int node, bw_error *err)
{
    bw_graph *g = p->g;
    char name[300], text[320];
    affine a;
    int found = 0, scale = -1, shift = -1, mid = -1;
    if (!is_op(&g->nodes[node], "BatchNormalization"))
        return BW_OK;
    bw_status st = batchnorm_affine(p, node, &a, &found, err);
    if (st || !found)
        return st;
    bw_node *n = &g->nodes[node];
    int in = n->inputs[0], out = n->outputs[0], rank = g->values[in].rank, scales = 0, shifts = 0;
    snprintf(name, sizeof name, "%.250s", n->name);
    for (int64_t i = 0; i < a.channels; i++) {
        scales |= a.scale[i] != 1;
        shifts |= a.shift[i] != 0;
    }
    scales |= !shifts; /* at least one node, so that the output has a producer */
    if (scales)
        st = channel_constant(p, stem(n, "scale", text), a.scale, a.channels, rank, &scale, err);
    if (!st && shifts)
        st = channel_constant(p, stem(n, "shift", text), a.shift, a.channels, rank, &shift, err);
    affine_free(&a);
    if (!st && scales && shifts)
        st = bw_pass_value(p, stem(n, "scaled", text), &g->values[out], &mid, err);
    if (st)
        return st;
    bw_graph_remove_node(g, node);
    p->uses[in]--;
    if (scales) {
        snprintf(text, sizeof text, shifts ? "%s.mul" : "%s", name);
        st = bw_pass_add_node(p, "Mul", text, (int[]){in, scale}, 2, shifts ? mid : out, NULL, err);
    }
    if (!st && shifts)
        st = bw_pass_add_node(p, "Add", name, (int[]){scales ? mid : in, shift}, 2, out, NULL, err);
    return st;
}
