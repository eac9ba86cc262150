/* SPDX-License-Identifier: Apache-2.0 */
/* MatMul and Gemm on bw_gemm. The right matrix is packed; a constant one once. */
#include <stdlib.h>
#include <string.h>

#include "host/ops/gemm.h"
#include "host/ops/op.h"

typedef struct matmul_state {
    bw_buffer *packed; /* of constant input 1 */
} matmul_state;

static void free_matmul(void *state)
{
    bw_buffer_put(((matmul_state *)state)->packed);
    free(state);
}

static bw_status no_memory(const bw_op_run *r)
{
    return r->err && r->err->status ? r->err->status : bw_fail(r->err, BW_NO_MEMORY, "no memory for a matrix product");
}

/* Input 1, `count` matrices of k x n (stored transposed or not), packed one after the other. Give back *temporary. */
static bw_status pack_right(bw_op_run *r, int64_t count, int64_t k, int64_t n, int transposed, const float **packed,
                            bw_buffer **temporary)
{
    matmul_state *state = *r->state;
    int keep = r->in[1]->constant;
    size_t each = bw_gemm_packed_size(k, n);
    *temporary = NULL;
    if (!state && !(state = *r->state = calloc(1, sizeof *state)))
        return no_memory(r);
    if (keep && state->packed) {
        *packed = state->packed->data;
        return BW_OK;
    }
    size_t size = each * (size_t)count * sizeof(float);
    bw_buffer *b = keep ? bw_buffer_get_kept(r->executor, size, r->err) : bw_buffer_get(r->executor, size, r->err);
    if (!b)
        return no_memory(r);
    const float *from = r->in[1]->array.data;
    for (int64_t i = 0; i < count; i++)
        bw_gemm_pack(k, n, from + i * k * n, transposed ? 1 : n, transposed ? k : 1,
                     (float *)b->data + each * (size_t)i);
    if (keep) {
        state->packed = b;
        bw_run_release_constant(r, 1);
    } else {
        *temporary = b;
    }
    *packed = b->data;
    return BW_OK;
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
    int64_t m = a[ra - 2], n = b[rb - 1], k = a[ra - 1], count = bw_dims_product(lead, 0, rank);
    int64_t count_a = bw_dims_product(a, 0, ra - 2), count_b = bw_dims_product(b, 0, rb - 2);
    const float *packed;
    bw_buffer *temporary;
    bw_status status = pack_right(r, count_b, k, n, 0, &packed, &temporary);
    if (status)
        return status;
    if (count_b == 1 && count_a == count) { /* one matrix on the right: all rows at once */
        const float *left = x->data;
        bw_gemm(1, m * count, n, k, &left, &packed, y);
        bw_buffer_put(temporary);
        return BW_OK;
    }
    const float **left = malloc(sizeof *left * 2 * (size_t)count), **right = left + count;
    if (!left) {
        bw_buffer_put(temporary);
        return no_memory(r);
    }
    int64_t sa[BW_RANK_MAX], sb[BW_RANK_MAX], at[BW_RANK_MAX] = {0}, ia = 0, ib = 0;
    bw_broadcast_strides(ra - 2, a, rank, lead, sa);
    bw_broadcast_strides(rb - 2, b, rank, lead, sb);
    for (int64_t i = 0; i < count; i++) {
        left[i] = (const float *)x->data + ia * m * k;
        right[i] = packed + (size_t)ib * bw_gemm_packed_size(k, n);
        for (int d = rank - 1; d >= 0; d--) {
            ia += sa[d];
            ib += sb[d];
            if (++at[d] < lead[d])
                break;
            ia -= sa[d] * lead[d];
            ib -= sb[d] * lead[d];
            at[d] = 0;
        }
    }
    bw_gemm(count, m, n, k, left, right, y);
    free(left);
    bw_buffer_put(temporary);
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
    const bw_array *x = bw_run_in(r, 0), *c = bw_run_in(r, 2);
    bw_array *y = &r->out[0].array;
    int ta = bw_node_int(r->node, "transA", 0) != 0, tb = bw_node_int(r->node, "transB", 0) != 0;
    int64_t m = y->dims[0], n = y->dims[1], k = x->dims[ta ? 0 : 1];
    const float *left = x->data, *packed;
    bw_buffer *turned = NULL, *temporary;
    bw_status status = pack_right(r, 1, k, n, tb, &packed, &temporary);
    if (status)
        return status;
    if (ta) {
        if (!(turned = bw_buffer_get(r->executor, sizeof *left * (size_t)(m * k), r->err))) {
            bw_buffer_put(temporary);
            return no_memory(r);
        }
        bw_copy_strided(sizeof *left, 2, (int64_t[]){m, k}, turned->data, (int64_t[]){k, 1}, left, (int64_t[]){1, m});
        left = turned->data;
    }
    bw_gemm(1, m, n, k, &left, &packed, y->data);
    bw_buffer_put(turned);
    bw_buffer_put(temporary);
    float alpha = bw_node_float(r->node, "alpha", 1), beta = bw_node_float(r->node, "beta", 1), *out = y->data;
    int64_t s[BW_RANK_MAX] = {0};
    if (c)
        bw_broadcast_strides(c->rank, c->dims, 2, y->dims, s);
    for (int64_t i = 0; i < m; i++, out += n) {
        const float *row = c ? (const float *)c->data + i * s[0] : NULL;
        for (int64_t j = 0; alpha != 1 && j < n; j++)
            out[j] *= alpha;
        for (int64_t j = 0; row && j < n; j++)
            out[j] += beta * row[j * s[1]];
    }
    return BW_OK;
}

const bw_op bw_ops_matmul[] = {
    {"MatMul", 2, 2, 1, 0, infer_matmul, run_matmul, free_matmul},
    {"Gemm", 2, 3, 1, 0, infer_gemm, run_gemm, free_matmul},
    {0},
};
