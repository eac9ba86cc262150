/* SPDX-License-Identifier: Apache-2.0 */
/* The operator registry's lookup and the helpers of infer functions. */
#include <stdio.h>
#include <string.h>

#include "host/ops/op.h"

static const bw_op *const families[] = {bw_ops_unary,  bw_ops_binary, bw_ops_movement, bw_ops_index,
                                        bw_ops_reduce, bw_ops_conv,   bw_ops_pool,     bw_ops_matmul,
                                        bw_ops_norm,   bw_ops_resize, bw_ops_shape};

const bw_op *bw_op_find(const char *name)
{
    for (size_t f = 0; name && f < sizeof families / sizeof *families; f++)
        for (const bw_op *op = families[f]; op->name; op++)
            if (!strcmp(op->name, name))
                return op;
    return NULL;
}

int bw_op_supported(const char *op)
{
    return bw_op_find(op) != NULL;
}

bw_status bw_op_fail(bw_error *err, const bw_node *n, bw_status status, const char *format, ...)
{
    char text[BW_ERROR_MESSAGE_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return bw_fail(err, status, "node '%s' (%s): %s", n->name, n->op, text);
}

const char *bw_dims_text(int rank, const int64_t *dims, char buf[128])
{
    size_t at = 0;
    buf[at++] = '[';
    for (int i = 0; i < rank && at < 100; i++)
        at += (size_t)snprintf(buf + at, 128 - at, "%s%lld", i ? ", " : "", (long long)(dims[i] < 0 ? -1 : dims[i]));
    snprintf(buf + at, 128 - at, "]");
    return buf;
}

bw_status bw_op_output(bw_op_infer *c, int index, bw_dtype dtype, int rank, const int64_t *dims)
{
    if (rank < 0 || rank > BW_RANK_MAX)
        return bw_op_fail(c->err, c->node, BW_UNSUPPORTED, "output %d has rank %d: expected at most %d", index, rank,
                          BW_RANK_MAX);
    if (index >= c->out_count)
        return BW_OK; /* nobody wants it */
    bw_op_info *o = &c->out[index];
    uint64_t bytes = bw_dtype_size(dtype);
    for (int i = 0; i < rank; i++) {
        if (dims[i] < BW_DIM_BATCH)
            return bw_op_fail(c->err, c->node, BW_CORRUPT,
                              "dimension %d of output %d would be %lld: the input is too "
                              "small",
                              i, index, (long long)dims[i]);
        if (dims[i] > 0 && (__builtin_mul_overflow(bytes, (uint64_t)dims[i], &bytes) || bytes > (uint64_t)1 << 46)) {
            char text[128];
            return bw_op_fail(c->err, c->node, BW_OUT_OF_RANGE, "output %d of shape %s is too large", index,
                              bw_dims_text(rank, dims, text));
        }
        o->dims[i] = dims[i];
    }
    o->dtype = dtype;
    o->rank = rank;
    return BW_OK;
}

bw_status bw_op_output_vague(bw_op_infer *c, bw_dtype dtype, int rank)
{
    static const int64_t unknown[BW_RANK_MAX] = {-1, -1, -1, -1, -1, -1, -1, -1};
    if (rank < 0)
        return bw_op_fail(c->err, c->node, BW_UNSUPPORTED, "the rank of the result depends on data");
    return bw_op_output(c, 0, dtype, rank, unknown);
}

bw_status bw_op_output_like(bw_op_infer *c, int index)
{
    return bw_op_output(c, 0, c->in[index].dtype, c->in[index].rank, c->in[index].dims);
}

bw_status bw_op_want(bw_op_infer *c, int input, unsigned dtypes)
{
    const bw_op_info *in = &c->in[input];
    if (input >= c->in_count || !in->present || dtypes >> in->dtype & 1)
        return BW_OK;
    char names[96] = "";
    for (int d = BW_F32; d <= BW_BOOL; d++)
        if (dtypes >> d & 1)
            snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", *names ? ", " : "",
                     bw_dtype_name((bw_dtype)d));
    return bw_op_fail(c->err, c->node, BW_UNSUPPORTED, "input %d is %s: expected %s", input, bw_dtype_name(in->dtype),
                      names);
}

/* Reads the integers of an int64 or int32 array of rank 0 or 1. -1: it is something else or too long. */
static int ints_of(const bw_array *a, int64_t *out, int max)
{
    int64_t n = bw_array_count(a);
    if (a->rank > 1 || n > max || (a->dtype != BW_I64 && a->dtype != BW_I32))
        return -1;
    for (int64_t i = 0; i < n; i++)
        out[i] = a->dtype == BW_I64 ? ((const int64_t *)a->data)[i] : ((const int32_t *)a->data)[i];
    return (int)n;
}

bw_ints_found bw_op_ints(bw_op_infer *c, const char *name, int input, int64_t *out, int max, int *count)
{
    *count = 0;
    const bw_attr *a = bw_node_attr(c->node, name);
    if (a && a->kind == BW_ATTR_INT) {
        out[0] = a->i;
        *count = 1;
        return BW_INTS_KNOWN;
    }
    if (a && a->kind == BW_ATTR_INTS && a->count <= (size_t)max) {
        *count = (int)bw_node_ints(c->node, name, out, (size_t)max);
        return BW_INTS_KNOWN;
    }
    if (a) {
        bw_op_fail(c->err, c->node, BW_CORRUPT, "attribute '%s': expected at most %d integers", name, max);
        return BW_INTS_BAD;
    }
    if (input < 0 || input >= c->in_count || !c->in[input].present)
        return BW_INTS_ABSENT;
    const bw_op_info *in = &c->in[input];
    int64_t length = in->rank == 0 ? 1 : in->dims[0];
    if ((in->dtype != BW_I64 && in->dtype != BW_I32) || in->rank > 1 || length > max) {
        bw_op_fail(c->err, c->node, BW_CORRUPT, "input %d ('%s'): expected a list of at most %d integers", input, name,
                   max);
        return BW_INTS_BAD;
    }
    *count = (int)length;
    for (int i = 0; i < (int)length; i++)
        out[i] = BW_UNKNOWN;
    if (!in->value)
        return BW_INTS_UNKNOWN;
    *count = ints_of(in->value, out, max);
    return in->partial ? BW_INTS_UNKNOWN : BW_INTS_KNOWN;
}

bw_ints_found bw_run_ints(const bw_op_run *r, const char *name, int input, int64_t *out, int max, int *count)
{
    *count = 0;
    const bw_attr *a = bw_node_attr(r->node, name);
    if (a && a->kind == BW_ATTR_INT) {
        out[0] = a->i;
        *count = 1;
        return BW_INTS_KNOWN;
    }
    if (a) {
        size_t n = bw_node_ints(r->node, name, out, (size_t)max);
        *count = (int)(n < (size_t)max ? n : (size_t)max);
        return BW_INTS_KNOWN;
    }
    const bw_array *in = input < 0 ? NULL : bw_run_in(r, input);
    if (!in || (*count = ints_of(in, out, max)) < 0)
        return BW_INTS_ABSENT;
    return BW_INTS_KNOWN;
}

bw_status bw_op_axis(bw_error *err, const bw_node *n, int64_t axis, int rank, int past_end, int *out)
{
    int64_t limit = rank + (past_end != 0);
    int64_t a = axis < 0 ? axis + limit : axis;
    /* Flatten counts negative axes from the rank, not from one past it. */
    if (past_end == 2 && axis < 0)
        a = axis + rank;
    if (a < 0 || a >= limit)
        return bw_op_fail(err, n, BW_CORRUPT, "axis %lld: expected %d to %lld", (long long)axis, -rank,
                          (long long)limit - 1);
    *out = (int)a;
    return BW_OK;
}

int bw_broadcast(int rank_a, const int64_t *a, int rank_b, const int64_t *b, int *rank, int64_t *out)
{
    int r = rank_a > rank_b ? rank_a : rank_b;
    int64_t dims[BW_RANK_MAX];
    for (int i = 0; i < r; i++) {
        int ia = i - (r - rank_a), ib = i - (r - rank_b);
        int64_t da = ia < 0 ? 1 : a[ia], db = ib < 0 ? 1 : b[ib];
        if (da == db || db == 1)
            dims[i] = da;
        else if (da == 1)
            dims[i] = db;
        else if (da < 0 && db < 0)
            dims[i] = -1;
        else if (da < 0 || db < 0)
            dims[i] = da < 0 ? db : da; /* the unknown one must be 1 or the same */
        else
            return -1;
    }
    memcpy(out, dims, sizeof *dims * (size_t)r);
    *rank = r;
    return 0;
}

int64_t bw_dims_product(const int64_t *dims, int from, int to)
{
    int64_t n = 1;
    for (int i = from; i < to; i++)
        if (dims[i] == 0)
            return 0;
    int64_t unknown = 0;
    for (int i = from; i < to; i++)
        if (dims[i] < 0)
            unknown = unknown ? -1 : dims[i];
        else if (__builtin_mul_overflow(n, dims[i], &n) || n > (int64_t)1 << 46)
            return -1;
    return unknown ? (n == 1 ? unknown : -1) : n;
}
