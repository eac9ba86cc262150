/* SPDX-License-Identifier: Apache-2.0 */
/* Reductions, ArgMax and Softmax. Sums run in double, in index order: one answer whatever the machine. */
#include "host/ops/loops.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "host/ops/exp.h"
#include "host/ops/op.h"

/* --- which axes ------------------------------------------------------------------------------------------------------
 */

/* reduced[i] = 1 for the axes to reduce. */
static bw_status mark_axes(bw_error *err, const bw_node *n, int rank, bw_ints_found found, const int64_t *axes,
                           int count, int *reduced)
{
    memset(reduced, 0, sizeof *reduced * BW_RANK_MAX);
    if (found == BW_INTS_ABSENT || count == 0) {
        for (int i = 0; i < rank; i++)
            reduced[i] = !bw_node_int(n, "noop_with_empty_axes", 0);
        return BW_OK;
    }
    for (int i = 0; i < count; i++) {
        int axis;
        bw_status status = bw_op_axis(err, n, axes[i], rank, 0, &axis);
        if (status)
            return status;
        if (reduced[axis]++)
            return bw_op_fail(err, n, BW_CORRUPT, "axis %d is listed twice", axis);
    }
    return BW_OK;
}

static bw_status infer_reduce(bw_op_infer *c)
{
    int64_t axes[BW_RANK_MAX], dims[BW_RANK_MAX];
    int count, reduced[BW_RANK_MAX], rank = 0;
    const bw_op_info *x = &c->in[0];
    int keep = bw_node_int(c->node, "keepdims", 1) != 0;
    int rooted = !strcmp(c->node->op, "ReduceL2") || !strncmp(c->node->op, "ReduceLog", 9);
    bw_status status = bw_op_want(c, 0, rooted ? BW_WANT_FLOATS : BW_WANT_NUMBER);
    if (status)
        return status;
    bw_ints_found found = bw_op_ints(c, "axes", 1, axes, BW_RANK_MAX, &count);
    if (found == BW_INTS_BAD)
        return BW_CORRUPT;
    if (found == BW_INTS_UNKNOWN) /* an empty list would mean all axes, or none */
        return bw_op_output_vague(c, x->dtype, keep ? x->rank : count < 1 ? -1 : x->rank - count);
    status = mark_axes(c->err, c->node, x->rank, found, axes, count, reduced);
    for (int i = 0; i < x->rank; i++)
        if (!reduced[i] || keep)
            dims[rank++] = reduced[i] ? 1 : x->dims[i];
    return status ? status : bw_op_output(c, 0, x->dtype, rank, dims);
}

/* --- the loops ---------------------------------------------------------------------------------------------------- */

typedef enum reduction {
    R_SUM,
    R_MEAN,
    R_MAX,
    R_MIN,
    R_PROD,
    R_L1,
    R_L2,
    R_SQUARES,
    R_LOG_SUM,
    R_LOG_SUM_EXP
} reduction;

static reduction which(const char *op)
{
    static const char *const names[] = {"ReduceSum",    "ReduceMean",     "ReduceMax", "ReduceMin",
                                        "ReduceProd",   "ReduceL1",       "ReduceL2",  "ReduceSumSquare",
                                        "ReduceLogSum", "ReduceLogSumExp"};
    for (int i = 0; i < 10; i++)
        if (!strcmp(names[i], op))
            return (reduction)i;
    return R_SUM;
}

/* The input seen as two boxes: the kept axes, and at each of their positions the reduced ones. */
typedef struct boxes {
    int kept_rank, cut_rank;
    int64_t kept_dims[BW_RANK_MAX + 1], cut_dims[BW_RANK_MAX + 1];
    int64_t kept_strides[BW_RANK_MAX + 1], cut_strides[BW_RANK_MAX + 1];
    int64_t cut_count;
} boxes;

static void make_boxes(boxes *b, int rank, const int64_t *dims, const int *reduced)
{
    int64_t strides[BW_RANK_MAX];
    bw_strides(rank, dims, strides);
    memset(b, 0, sizeof *b);
    b->cut_count = 1;
    for (int i = 0; i < rank; i++) {
        if (reduced[i]) {
            b->cut_dims[b->cut_rank] = dims[i];
            b->cut_strides[b->cut_rank++] = strides[i];
            b->cut_count *= dims[i];
        } else {
            b->kept_dims[b->kept_rank] = dims[i];
            b->kept_strides[b->kept_rank++] = strides[i];
        }
    }
    if (b->cut_count > 0)
        b->cut_rank = bw_merge_dims(b->cut_rank, b->cut_dims, 1, &b->cut_strides);
}

/* The next position of a box; returns its offset, -1 after the last. */
static int64_t advance(int rank, const int64_t *dims, const int64_t *strides, int64_t *at, int64_t offset)
{
    for (int k = rank - 1; k >= 0; k--) {
        offset += strides[k];
        if (++at[k] < dims[k])
            return offset;
        offset -= strides[k] * dims[k];
        at[k] = 0;
    }
    return -1;
}

static double start_of(reduction op)
{
    return op == R_PROD                         ? 1
           : op == R_MAX || op == R_LOG_SUM_EXP ? -(double)INFINITY
           : op == R_MIN                        ? (double)INFINITY
                                                : 0;
}

static double step_of(reduction op, double sum, double v)
{
    switch (op) {
    case R_MAX:
    case R_LOG_SUM_EXP: /* first pass: the largest */
        return v > sum || v != v ? v : sum;
    case R_MIN:
        return v < sum || v != v ? v : sum;
    case R_PROD:
        return sum * v;
    case R_L1:
        return sum + fabs(v);
    case R_L2:
    case R_SQUARES:
        return sum + v * v;
    default:
        return sum + v;
    }
}

static double finish(reduction op, double sum, int64_t count)
{
    switch (op) {
    case R_MEAN:
        return sum / (double)count;
    case R_L2:
        return sqrt(sum);
    case R_LOG_SUM:
        return log(sum);
    default:
        return sum;
    }
}

#define FLOAT_BOX(type)                                                                                                \
    static double reduce_##type(reduction op, const boxes *b, const type *x)                                           \
    {                                                                                                                  \
        double sum = start_of(op);                                                                                     \
        int64_t at[BW_RANK_MAX + 1] = {0}, inner = b->cut_rank ? b->cut_dims[b->cut_rank - 1] : 1;                     \
        int64_t step = b->cut_rank ? b->cut_strides[b->cut_rank - 1] : 0;                                              \
        if (b->cut_count == 0)                                                                                         \
            return finish(op, sum, 0);                                                                                 \
        for (int64_t offset = 0; offset >= 0;                                                                          \
             offset = advance(b->cut_rank - 1, b->cut_dims, b->cut_strides, at, offset))                               \
            for (int64_t i = 0; i < inner; i++)                                                                        \
                sum = step_of(op, sum, (double)x[offset + i * step]);                                                  \
        if (op != R_LOG_SUM_EXP)                                                                                       \
            return finish(op, sum, b->cut_count);                                                                      \
        double largest = isfinite(sum) ? sum : 0, total = 0;                                                           \
        memset(at, 0, sizeof at);                                                                                      \
        for (int64_t offset = 0; offset >= 0;                                                                          \
             offset = advance(b->cut_rank - 1, b->cut_dims, b->cut_strides, at, offset))                               \
            for (int64_t i = 0; i < inner; i++)                                                                        \
                total += exp((double)x[offset + i * step] - largest);                                                  \
        return largest + log(total);                                                                                   \
    }

FLOAT_BOX(float)
FLOAT_BOX(double)

static int64_t load_int(bw_dtype d, const void *p, int64_t i)
{
    return d == BW_I64   ? ((const int64_t *)p)[i]
           : d == BW_I32 ? ((const int32_t *)p)[i]
           : d == BW_I8  ? ((const int8_t *)p)[i]
                         : ((const uint8_t *)p)[i];
}

/* Integers wrap; the mean truncates; an empty maximum is the type's lowest. */
static int64_t reduce_ints(reduction op, const boxes *b, bw_dtype d, const void *x, int64_t base)
{
    static const int64_t low[] = {[BW_I64] = INT64_MIN, [BW_I32] = INT32_MIN, [BW_I8] = INT8_MIN, [BW_U8] = 0};
    static const int64_t high[] = {[BW_I64] = INT64_MAX, [BW_I32] = INT32_MAX, [BW_I8] = INT8_MAX, [BW_U8] = UINT8_MAX};
    uint64_t sum = op == R_PROD ? 1 : 0;
    int64_t best = op == R_MAX ? low[d] : high[d], at[BW_RANK_MAX + 1] = {0};
    for (int64_t offset = b->cut_count ? 0 : -1; offset >= 0;
         offset = advance(b->cut_rank, b->cut_dims, b->cut_strides, at, offset)) {
        int64_t v = load_int(d, x, base + offset);
        if (op == R_MAX ? v > best : v < best)
            best = v;
        if (op == R_PROD)
            sum *= (uint64_t)v;
        else if (op == R_L1)
            sum += v < 0 ? 0 - (uint64_t)v : (uint64_t)v;
        else
            sum += op == R_SQUARES ? (uint64_t)v * (uint64_t)v : (uint64_t)v;
    }
    if (op == R_MAX || op == R_MIN)
        return best;
    if (op == R_MEAN)
        return b->cut_count ? (int64_t)sum / b->cut_count : 0;
    return (int64_t)sum;
}

static bw_status run_reduce(bw_op_run *r)
{
    const bw_array *x = bw_run_in(r, 0);
    bw_array *y = &r->out[0].array;
    int64_t axes[BW_RANK_MAX];
    int count, reduced[BW_RANK_MAX];
    bw_ints_found found = bw_run_ints(r, "axes", 1, axes, BW_RANK_MAX, &count);
    bw_status status = mark_axes(r->err, r->node, x->rank, found, axes, count, reduced);
    if (status)
        return status;
    boxes b;
    make_boxes(&b, x->rank, x->dims, reduced);
    reduction op = which(r->node->op);
    int64_t at[BW_RANK_MAX + 1] = {0}, n = 0;
    for (int64_t base = 0; base >= 0; base = advance(b.kept_rank, b.kept_dims, b.kept_strides, at, base), n++) {
        if (x->dtype == BW_F32) {
            ((float *)y->data)[n] = (float)reduce_float(op, &b, (const float *)x->data + base);
        } else if (x->dtype == BW_F64) {
            ((double *)y->data)[n] = reduce_double(op, &b, (const double *)x->data + base);
        } else {
            int64_t v = reduce_ints(op, &b, x->dtype, x->data, base);
            bw_cast(BW_I64, &v, x->dtype, (char *)y->data + (size_t)n * bw_dtype_size(x->dtype), 1);
        }
    }
    return BW_OK;
}

/* --- ArgMax, ArgMin ----------------------------------------------------------------------------------------------- */

static bw_status infer_arg(bw_op_infer *c)
{
    int axis, rank = 0;
    int64_t dims[BW_RANK_MAX];
    bw_status status = bw_op_want(c, 0, BW_WANT_NUMBER);
    if (!status)
        status = bw_op_axis(c->err, c->node, bw_node_int(c->node, "axis", 0), c->in[0].rank, 0, &axis);
    if (status)
        return status;
    if (c->in[0].dims[axis] == 0)
        return bw_op_fail(c->err, c->node, BW_CORRUPT, "axis %d is empty: expected at least one element", axis);
    for (int i = 0; i < c->in[0].rank; i++)
        if (i != axis || bw_node_int(c->node, "keepdims", 1))
            dims[rank++] = i == axis ? 1 : c->in[0].dims[i];
    return bw_op_output(c, 0, BW_I64, rank, dims);
}

static bw_status run_arg(bw_op_run *r)
{
    const bw_array *x = bw_run_in(r, 0);
    int axis, last = bw_node_int(r->node, "select_last_index", 0) != 0;
    bw_status status = bw_op_axis(r->err, r->node, bw_node_int(r->node, "axis", 0), x->rank, 0, &axis);
    if (status)
        return status;
    int64_t outer = bw_dims_product(x->dims, 0, axis), inner = bw_dims_product(x->dims, axis + 1, x->rank);
    int64_t size = x->dims[axis], *y = r->out[0].array.data;
    int sign = !strcmp(r->node->op, "ArgMax") ? 1 : -1;
    int floats = x->dtype == BW_F32 || x->dtype == BW_F64;
    for (int64_t o = 0; o < outer; o++)
        for (int64_t k = 0; k < inner; k++) {
            int64_t best = 0;
            for (int64_t i = 1; i < size; i++) {
                int64_t ia = (o * size + i) * inner + k, ib = (o * size + best) * inner + k;
                int order; /* of the candidate against the best */
                if (floats) {
                    double a =
                        x->dtype == BW_F32 ? (double)((const float *)x->data)[ia] : ((const double *)x->data)[ia];
                    double b =
                        x->dtype == BW_F32 ? (double)((const float *)x->data)[ib] : ((const double *)x->data)[ib];
                    order = (a > b) - (a < b);
                } else {
                    int64_t a = load_int(x->dtype, x->data, ia), b = load_int(x->dtype, x->data, ib);
                    order = (a > b) - (a < b);
                }
                if (order * sign > 0 || (order == 0 && last))
                    best = i;
            }
            y[o * inner + k] = best;
        }
    return BW_OK;
}

/* --- Softmax ------------------------------------------------------------------------------------------------------ */

static bw_status infer_softmax(bw_op_infer *c)
{
    int axis;
    bw_status status = bw_op_want(c, 0, BW_WANT_FLOATS);
    if (!status && c->in[0].rank)
        status = bw_op_axis(c->err, c->node, bw_node_int(c->node, "axis", -1), c->in[0].rank,
                            bw_node_int(c->node, "coerce", 0) ? 2 : 0, &axis);
    return status ? status : bw_op_output_like(c, 0);
}

/* x[i] = exp(x[i] - largest) */
static inline __attribute__((always_inline)) void exponentials_of(double *x, int64_t size, double largest)
{
    for (int64_t i = 0; i < size; i++)
        x[i] = bw_exp(x[i] - largest);
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static void exponentials_wide(double *x, int64_t size, double largest)
{
    exponentials_of(x, size, largest);
}

static void exponentials(double *x, int64_t size, double largest)
{
    if (__builtin_cpu_supports("avx512f"))
        exponentials_wide(x, size, largest);
    else
        exponentials_of(x, size, largest);
}
#else
static void exponentials(double *x, int64_t size, double largest)
{
    exponentials_of(x, size, largest);
}
#endif

#define SOFTMAX_LINE(type)                                                                                             \
    do {                                                                                                               \
        const type *from = (const type *)x->data + o * size * inner + k;                                               \
        type *to = (type *)y->data + o * size * inner + k;                                                             \
        double largest = -(double)INFINITY, total = 0;                                                                 \
        for (int64_t i = 0; i < size; i++) {                                                                           \
            e[i] = (double)from[i * inner];                                                                            \
            largest = e[i] > largest ? e[i] : largest;                                                                 \
        }                                                                                                              \
        exponentials(e, size, largest);                                                                                \
        for (int64_t i = 0; i < size; i++)                                                                             \
            total += e[i];                                                                                             \
        double log_total = logarithm ? log(total) : 0, inverse = 1 / total;                                            \
        for (int64_t i = 0; i < size; i++)                                                                             \
            to[i * inner] = (type)(logarithm ? (double)from[i * inner] - largest - log_total : e[i] * inverse);        \
    } while (0)

static bw_status run_softmax(bw_op_run *r)
{
    const bw_array *x = bw_run_in(r, 0);
    bw_array *y = &r->out[0].array;
    int axis = 0, coerce = bw_node_int(r->node, "coerce", 0) != 0;
    bw_status status = BW_OK;
    if (x->rank)
        status = bw_op_axis(r->err, r->node, bw_node_int(r->node, "axis", -1), x->rank, coerce ? 2 : 0, &axis);
    if (status)
        return status;
    int64_t outer = bw_dims_product(x->dims, 0, axis), size, inner;
    size = coerce ? bw_dims_product(x->dims, axis, x->rank) : x->rank ? x->dims[axis] : 1;
    inner = coerce || !x->rank ? 1 : bw_dims_product(x->dims, axis + 1, x->rank);
    int logarithm = !strcmp(r->node->op, "LogSoftmax");
    double *e = malloc(sizeof *e * (size_t)size);
    if (!e)
        return bw_fail(r->err, BW_NO_MEMORY, "no memory for a softmax over %lld elements", (long long)size);
    for (int64_t o = 0; o < outer; o++)
        for (int64_t k = 0; k < inner; k++) {
            if (x->dtype == BW_F32)
                SOFTMAX_LINE(float);
            else
                SOFTMAX_LINE(double);
        }
    free(e);
    return BW_OK;
}

#define REDUCE(name)                                                                                                   \
    {                                                                                                                  \
        name, 1, 2, 1, 0, infer_reduce, run_reduce, NULL                                                               \
    }

const bw_op bw_ops_reduce[] = {
    REDUCE("ReduceSum"),
    REDUCE("ReduceMean"),
    REDUCE("ReduceMax"),
    REDUCE("ReduceMin"),
    REDUCE("ReduceProd"),
    REDUCE("ReduceL1"),
    REDUCE("ReduceL2"),
    REDUCE("ReduceSumSquare"),
    REDUCE("ReduceLogSum"),
    REDUCE("ReduceLogSumExp"),
    {"ArgMax", 1, 1, 1, 0, infer_arg, run_arg, NULL},
    {"ArgMin", 1, 1, 1, 0, infer_arg, run_arg, NULL},
    {"Softmax", 1, 1, 1, 0, infer_softmax, run_softmax, NULL},
    {"LogSoftmax", 1, 1, 1, 0, infer_softmax, run_softmax, NULL},
    {0},
};
