/* SPDX-License-Identifier: Apache-2.0 */
/* MatMul and Gemm on oneDNN's matrix product. */
#include <stdlib.h>
#include <string.h>

#include "host/ops/dnnl.h"

#define SHAPES 4

/* One batched product: c[b] = a[b] * b[b]; strides in elements. */
typedef struct product {
    int64_t batch, m, n, k;
    int transpose_a, transpose_b;
} product;

typedef struct matmul_shape {
    dnnl_primitive_t primitive; /* NULL: free */
    product p;
    dnnl_memory_desc_t a, b, c;
} matmul_shape;

typedef struct matmul_state {
    matmul_shape shapes[SHAPES];
    int next;
} matmul_state;

static void free_matmul(void *state)
{
    matmul_state *s = state;
    for (int i = 0; i < SHAPES; i++)
        if (s->shapes[i].primitive)
            dnnl_primitive_destroy(s->shapes[i].primitive);
    free(s);
}

/* rows x cols matrices, one after the other; stored transposed or not. */
static void matrices(dnnl_memory_desc_t *md, int64_t batch, int64_t rows, int64_t cols, int transposed)
{
    int64_t row = transposed ? 1 : cols, col = transposed ? rows : 1;
    if (batch == 1)
        dnnl_memory_desc_init_by_strides(md, 2, (dnnl_dims_t){rows, cols}, dnnl_f32, (dnnl_dims_t){row, col});
    else
        dnnl_memory_desc_init_by_strides(md, 3, (dnnl_dims_t){batch, rows, cols}, dnnl_f32,
                                         (dnnl_dims_t){rows * cols, row, col});
}

static bw_status find_shape(const bw_op_run *r, const product *p, matmul_shape **found)
{
    matmul_state *state = *r->state;
    if (!state && !(state = *r->state = calloc(1, sizeof *state)))
        return bw_fail(r->err, BW_NO_MEMORY, "no memory for a matrix product");
    for (int i = 0; i < SHAPES; i++)
        if (state->shapes[i].primitive && !memcmp(&state->shapes[i].p, p, sizeof *p)) {
            *found = &state->shapes[i];
            return BW_OK;
        }
    matmul_shape *s = &state->shapes[state->next];
    state->next = (state->next + 1) % SHAPES;
    if (s->primitive)
        dnnl_primitive_destroy(s->primitive);
    memset(s, 0, sizeof *s);
    memcpy(&s->p, p, sizeof *p);
    matrices(&s->a, p->batch, p->m, p->k, p->transpose_a);
    matrices(&s->b, p->batch, p->k, p->n, p->transpose_b);
    matrices(&s->c, p->batch, p->m, p->n, 0);
    dnnl_matmul_desc_t desc;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_status_t st = dnnl_matmul_desc_init(&desc, &s->a, &s->b, NULL, &s->c);
    if (st == dnnl_success)
        st = dnnl_primitive_desc_create(&pd, &desc, NULL, bw_dnnl_engine(), NULL);
    if (st == dnnl_success)
        st = dnnl_primitive_create(&s->primitive, pd);
    dnnl_primitive_desc_destroy(pd);
    *found = s;
    return bw_dnnl_check(st, "a matrix product", r->err);
}

static bw_status multiply(bw_op_run *r, const product *p, const float *a, const float *b, float *c)
{
    if (p->k == 0) {
        memset(c, 0, sizeof *c * (size_t)(p->batch * p->m * p->n));
        return BW_OK;
    }
    matmul_shape *s = NULL;
    bw_status status = find_shape(r, p, &s);
    if (status)
        return status;
    bw_dnnl_arg args[3] = {
        {DNNL_ARG_SRC, &s->a, (void *)a}, {DNNL_ARG_WEIGHTS, &s->b, (void *)b}, {DNNL_ARG_DST, &s->c, c}};
    return bw_dnnl_execute(s->primitive, args, 3, r->err);
}

/* --- MatMul ------------------------------------------------------------------------------------------------------- */

/* Vectors as matrices: [k] is [1, k] on the left, [k, 1] on the right. */
static int as_matrix(int rank, const int64_t *dims, int left, int64_t *out)
{
    if (rank != 1) {
        memcpy(out, dims, sizeof *out * (size_t)rank);
        return rank;
    }
    out[0] = left ? 1 : dims[0];
    out[1] = left ? dims[0] : 1;
    return 2;
}

static bw_status infer_matmul(bw_op_infer *c)
{
    bw_status status = bw_op_want(c, 0, BW_WANT_FLOAT);
    if (!status)
        status = bw_op_want(c, 1, BW_WANT_FLOAT);
    if (status)
        return status;
    const bw_op_info *x = &c->in[0], *w = &c->in[1];
    int64_t a[BW_RANK_MAX + 1], b[BW_RANK_MAX + 1], dims[BW_RANK_MAX + 1];
    int ra = x->rank ? as_matrix(x->rank, x->dims, 1, a) : 0, rb = w->rank ? as_matrix(w->rank, w->dims, 0, b) : 0,
        rank;
    int fits = ra >= 2 && rb >= 2 && (a[ra - 1] == b[rb - 2] || a[ra - 1] < 0 || b[rb - 2] < 0) &&
               !bw_broadcast(ra - 2, a, rb - 2, b, &rank, dims);
    for (int i = 0; fits && i < 2; i++)
        fits = a[ra - 1 - i] <= INT32_MAX && b[rb - 1 - i] <= INT32_MAX;
    if (!fits) {
        char at[128], bt[128];
        return bw_op_fail(c->err, c->node, BW_CORRUPT, "%s times %s: expected matrices that fit",
                          bw_dims_text(x->rank, x->dims, at), bw_dims_text(w->rank, w->dims, bt));
    }
    if (x->rank > 1)
        dims[rank++] = a[ra - 2];
    if (w->rank > 1)
        dims[rank++] = b[rb - 1];
    return bw_op_output(c, 0, BW_F32, rank, dims);
}

static bw_status run_matmul(bw_op_run *r)
{
    const bw_array *x = bw_run_in(r, 0), *w = bw_run_in(r, 1);
    int64_t a[BW_RANK_MAX + 1], b[BW_RANK_MAX + 1], lead[BW_RANK_MAX];
    int ra = as_matrix(x->rank, x->dims, 1, a), rb = as_matrix(w->rank, w->dims, 0, b), rank;
    bw_broadcast(ra - 2, a, rb - 2, b, &rank, lead);
    float *y = r->out[0].array.data;
    product p = {0}; /* compared as bytes */
    p.batch = 1;
    p.m = a[ra - 2];
    p.n = b[rb - 1];
    p.k = a[ra - 1];
    int64_t count_a = bw_dims_product(a, 0, ra - 2), count_b = bw_dims_product(b, 0, rb - 2);
    int64_t count = bw_dims_product(lead, 0, rank);
    if (count_b == 1 && count_a == count) { /* one matrix on the right: all rows at once */
        p.m *= count;
        return multiply(r, &p, x->data, w->data, y);
    }
    if (count_a == count && count_b == count) {
        p.batch = count;
        return multiply(r, &p, x->data, w->data, y);
    }
    int64_t sa[BW_RANK_MAX], sb[BW_RANK_MAX], at[BW_RANK_MAX] = {0}, ia = 0, ib = 0;
    bw_broadcast_strides(ra - 2, a, rank, lead, sa);
    bw_broadcast_strides(rb - 2, b, rank, lead, sb);
    for (int64_t i = 0; i < count; i++) {
        bw_status status = multiply(r, &p, (const float *)x->data + ia * p.m * p.k,
                                    (const float *)w->data + ib * p.k * p.n, y + i * p.m * p.n);
        if (status)
            return status;
        for (int k = rank - 1; k >= 0; k--) {
            ia += sa[k];
            ib += sb[k];
            if (++at[k] < lead[k])
                break;
            ia -= sa[k] * lead[k];
            ib -= sb[k] * lead[k];
            at[k] = 0;
        }
    }
    return BW_OK;
}

/* --- Gemm --------------------------------------------------------------------------------------------------------- */

static bw_status infer_gemm(bw_op_infer *c)
{
    bw_status status = BW_OK;
    for (int i = 0; i < c->in_count && !status; i++)
        status = bw_op_want(c, i, BW_WANT_FLOAT);
    if (status)
        return status;
    const bw_op_info *x = &c->in[0], *w = &c->in[1];
    char xs[128], ws[128];
    int ta = bw_node_int(c->node, "transA", 0) != 0, tb = bw_node_int(c->node, "transB", 0) != 0;
    int64_t ka = x->dims[ta ? 0 : 1], kb = w->dims[tb ? 1 : 0];
    int fits = x->rank == 2 && w->rank == 2 && (ka == kb || ka < 0 || kb < 0);
    for (int i = 0; fits && i < 2; i++)
        fits = x->dims[i] <= INT32_MAX && w->dims[i] <= INT32_MAX;
    if (!fits)
        return bw_op_fail(c->err, c->node, BW_CORRUPT, "%s times %s (transA %d, transB %d): expected matrices that fit",
                          bw_dims_text(x->rank, x->dims, xs), bw_dims_text(w->rank, w->dims, ws), ta, tb);
    int64_t dims[BW_RANK_MAX] = {x->dims[ta ? 1 : 0], w->dims[tb ? 0 : 1]}, all[BW_RANK_MAX];
    if (c->in_count > 2 && c->in[2].present) {
        int rank;
        fits = !bw_broadcast(2, dims, c->in[2].rank, c->in[2].dims, &rank, all) && rank == 2;
        for (int i = 0; fits && i < 2; i++)
            fits = dims[i] < 0 || all[i] == dims[i];
        if (!fits)
            return bw_op_fail(c->err, c->node, BW_CORRUPT, "input 2 of shape %s does not broadcast to %s",
                              bw_dims_text(c->in[2].rank, c->in[2].dims, xs), bw_dims_text(2, dims, ws));
    }
    return bw_op_output(c, 0, BW_F32, 2, dims);
}

static bw_status run_gemm(bw_op_run *r)
{
    const bw_array *x = bw_run_in(r, 0), *w = bw_run_in(r, 1), *c = bw_run_in(r, 2);
    bw_array *y = &r->out[0].array;
    product p = {0};
    p.batch = 1;
    p.transpose_a = bw_node_int(r->node, "transA", 0) != 0;
    p.transpose_b = bw_node_int(r->node, "transB", 0) != 0;
    p.m = y->dims[0];
    p.n = y->dims[1];
    p.k = x->dims[p.transpose_a ? 0 : 1];
    bw_status status = multiply(r, &p, x->data, w->data, y->data);
    if (status)
        return status;
    float alpha = bw_node_float(r->node, "alpha", 1), beta = bw_node_float(r->node, "beta", 1), *out = y->data;
    int64_t s[BW_RANK_MAX] = {0};
    if (c)
        bw_broadcast_strides(c->rank, c->dims, 2, y->dims, s);
    for (int64_t i = 0; i < p.m; i++, out += p.n) {
        const float *row = c ? (const float *)c->data + i * s[0] : NULL;
        for (int64_t j = 0; alpha != 1 && j < p.n; j++)
            out[j] *= alpha;
        for (int64_t j = 0; row && j < p.n; j++)
            out[j] += beta * row[j * s[1]];
    }
    return BW_OK;
}

const bw_op bw_ops_matmul[] = {
    {"MatMul", 2, 2, 1, 0, infer_matmul, run_matmul, free_matmul},
    {"Gemm", 2, 3, 1, 0, infer_gemm, run_gemm, free_matmul},
    {0},
};
