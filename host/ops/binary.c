/* SPDX-License-Identifier: Apache-2.0 */
/* Element-wise operators of two or more tensors, with numpy's broadcasting. */
#include "host/ops/loops.h"

#include <math.h>
#include <string.h>

#include "host/ops/dnnl.h"
#include "host/ops/op.h"
#include "host/ops/parallel.h"

typedef enum binary {
    B_ADD,
    B_SUB,
    B_MUL,
    B_DIV,
    B_MIN,
    B_MAX,
    B_POW,
    B_MOD,
    B_FMOD,
    B_PRELU,
    B_EQ,
    B_LT,
    B_GT,
    B_LE,
    B_GE,
    B_AND,
    B_OR,
    B_XOR
} binary;

/* One row: n results from operands with strides 0, 1 or any. */
typedef void (*row_function)(binary op, int64_t n, const void *a, int64_t sa, const void *b, int64_t sb, void *y);

#define EACH(type, result, expression)                                                                                 \
    for (int64_t i = 0; i < n; i++) {                                                                                  \
        type u = x[i * sa], v = z[i * sb];                                                                             \
        y[i] = (result)(expression);                                                                                   \
    }

/* The frequent strides as constants, so that the loop vectorises. */
#define LOOP(type, result, expression)                                                                                 \
    if (sa == 1 && sb == 1)                                                                                            \
        for (int64_t i = 0; i < n; i++) {                                                                              \
            type u = x[i], v = z[i];                                                                                   \
            y[i] = (result)(expression);                                                                               \
        }                                                                                                              \
    else if (sa == 1 && sb == 0) {                                                                                     \
        type v = *z;                                                                                                   \
        for (int64_t i = 0; i < n; i++) {                                                                              \
            type u = x[i];                                                                                             \
            y[i] = (result)(expression);                                                                               \
        }                                                                                                              \
    } else                                                                                                             \
        EACH(type, result, expression)                                                                                 \
    break

#define COMPARE(type, expression)                                                                                      \
    for (int64_t i = 0; i < n; i++) {                                                                                  \
        type u = x[i * sa], v = z[i * sb];                                                                             \
        ((uint8_t *)out)[i] = (uint8_t)(expression);                                                                   \
    }                                                                                                                  \
    break

#define COMPARISONS(type)                                                                                              \
    case B_EQ:                                                                                                         \
        COMPARE(type, u == v);                                                                                         \
    case B_LT:                                                                                                         \
        COMPARE(type, u < v);                                                                                          \
    case B_GT:                                                                                                         \
        COMPARE(type, u > v);                                                                                          \
    case B_LE:                                                                                                         \
        COMPARE(type, u <= v);                                                                                         \
    case B_GE:                                                                                                         \
        COMPARE(type, u >= v);

/* NaN wins in Min and Max, as in numpy. The sign of Mod follows the divisor, that of fmod the dividend. */
#define FLOAT_ROW(name, type, power, modulo, floor_of)                                                                 \
    static void name(binary op, int64_t n, const void *a, int64_t sa, const void *b, int64_t sb, void *out)            \
    {                                                                                                                  \
        const type *x = a, *z = b;                                                                                     \
        type *y = out;                                                                                                 \
        switch (op) {                                                                                                  \
        case B_ADD:                                                                                                    \
            LOOP(type, type, u + v);                                                                                   \
        case B_SUB:                                                                                                    \
            LOOP(type, type, u - v);                                                                                   \
        case B_MUL:                                                                                                    \
            LOOP(type, type, u *v);                                                                                    \
        case B_DIV:                                                                                                    \
            LOOP(type, type, u / v);                                                                                   \
        case B_MIN:                                                                                                    \
            LOOP(type, type, u != u ? u : v < u || v != v ? v : u);                                                    \
        case B_MAX:                                                                                                    \
            LOOP(type, type, u != u ? u : v > u || v != v ? v : u);                                                    \
        case B_POW:                                                                                                    \
            LOOP(type, type, power);                                                                                   \
        case B_FMOD:                                                                                                   \
            LOOP(type, type, modulo);                                                                                  \
        case B_MOD:                                                                                                    \
            LOOP(type, type, u - v * floor_of(u / v));                                                                 \
        case B_PRELU:                                                                                                  \
            LOOP(type, type, u < 0 ? u * v : u);                                                                       \
            COMPARISONS(type)                                                                                          \
        default:                                                                                                       \
            break;                                                                                                     \
        }                                                                                                              \
    }

FLOAT_ROW(row_f32, float, pow((double)u, (double)v), fmodf(u, v), floorf)
FLOAT_ROW(row_f64, double, pow(u, v), fmod(u, v), floor)

/* Integer arithmetic wraps; division truncates; by zero (and the one overflow) it gives 0 (and the dividend). */
static int64_t divide(int64_t u, int64_t v)
{
    return v == 0 ? 0 : v == -1 ? (int64_t)(0 - (uint64_t)u) : u / v;
}

static int64_t modulo(int64_t u, int64_t v, int follows_dividend)
{
    if (v == 0 || v == -1)
        return 0;
    int64_t m = u % v;
    return !follows_dividend && m && (m < 0) != (v < 0) ? m + v : m;
}

static int64_t power(int64_t u, int64_t v)
{
    if (v < 0)
        return u == 1 ? 1 : u == -1 ? (v % 2 ? -1 : 1) : 0;
    uint64_t result = 1, base = (uint64_t)u;
    for (; v; v >>= 1, base *= base)
        if (v & 1)
            result *= base;
    return (int64_t)result;
}

#define INT_ROW(name, type)                                                                                            \
    static void name(binary op, int64_t n, const void *a, int64_t sa, const void *b, int64_t sb, void *out)            \
    {                                                                                                                  \
        const type *x = a, *z = b;                                                                                     \
        type *y = out;                                                                                                 \
        switch (op) {                                                                                                  \
        case B_ADD:                                                                                                    \
            EACH(type, type, (uint64_t)u + (uint64_t)v) break;                                                         \
        case B_SUB:                                                                                                    \
            EACH(type, type, (uint64_t)u - (uint64_t)v) break;                                                         \
        case B_MUL:                                                                                                    \
            EACH(type, type, (uint64_t)u *(uint64_t)v) break;                                                          \
        case B_DIV:                                                                                                    \
            EACH(type, type, divide(u, v)) break;                                                                      \
        case B_MIN:                                                                                                    \
            EACH(type, type, v < u ? v : u) break;                                                                     \
        case B_MAX:                                                                                                    \
            EACH(type, type, v > u ? v : u) break;                                                                     \
        case B_POW:                                                                                                    \
            EACH(type, type, power(u, v)) break;                                                                       \
        case B_MOD:                                                                                                    \
        case B_FMOD:                                                                                                   \
            EACH(type, type, modulo(u, v, op == B_FMOD)) break;                                                        \
            COMPARISONS(type)                                                                                          \
        default:                                                                                                       \
            break;                                                                                                     \
        }                                                                                                              \
    }

INT_ROW(row_i64, int64_t)
INT_ROW(row_i32, int32_t)
INT_ROW(row_i8, int8_t)
INT_ROW(row_u8, uint8_t)

static void row_bool(binary op, int64_t n, const void *a, int64_t sa, const void *b, int64_t sb, void *out)
{
    const uint8_t *x = a, *z = b;
    uint8_t *y = out;
    switch (op) {
    case B_AND:
        EACH(uint8_t, uint8_t, u && v) break;
    case B_OR:
        EACH(uint8_t, uint8_t, u || v) break;
    default: /* Xor; Equal is its negation */
        EACH(uint8_t, uint8_t, (!u != !v) ^ (op == B_EQ)) break;
    }
}

static row_function row_of(bw_dtype dtype)
{
    switch (dtype) {
    case BW_F32:
        return row_f32;
    case BW_F64:
        return row_f64;
    case BW_I64:
        return row_i64;
    case BW_I32:
        return row_i32;
    case BW_I8:
        return row_i8;
    case BW_U8:
        return row_u8;
    default:
        return row_bool;
    }
}

/* y = a op b over the broadcast box of rank `rank`; y is contiguous. */
static void run_box(binary op, bw_dtype dtype, int rank, const int64_t *dims, const bw_array *a, const bw_array *b,
                    void *out, size_t out_size)
{
    row_function row = row_of(dtype);
    size_t size = bw_dtype_size(dtype);
    int64_t d[BW_RANK_MAX + 1], s[3][BW_RANK_MAX + 1], at[BW_RANK_MAX + 1] = {0};
    memcpy(d, dims, sizeof *d * (size_t)rank);
    bw_broadcast_strides(a->rank, a->dims, rank, dims, s[0]);
    bw_broadcast_strides(b->rank, b->dims, rank, dims, s[1]);
    bw_strides(rank, dims, s[2]);
    int r = bw_merge_dims(rank, d, 3, s);
    const char *x = a->data, *z = b->data;
    char *y = out;
    for (;;) {
        row(op, d[r - 1], x, s[0][r - 1], z, s[1][r - 1], y);
        y += d[r - 1] * (int64_t)out_size;
        int k = r - 2;
        for (; k >= 0; k--) {
            x += s[0][k] * (int64_t)size;
            z += s[1][k] * (int64_t)size;
            if (++at[k] < d[k])
                break;
            x -= s[0][k] * d[k] * (int64_t)size;
            z -= s[1][k] * d[k] * (int64_t)size;
            at[k] = 0;
        }
        if (k < 0)
            return;
    }
}

static int same_shape(const bw_array *a, const bw_array *b)
{
    return a->rank == b->rank && !memcmp(a->dims, b->dims, sizeof *a->dims * (size_t)a->rank);
}

/* --- inference -----------------------------------------------------------------------------------------------------
 */

static bw_status infer_broadcast(bw_op_infer *c, bw_dtype result)
{
    int rank = c->in[0].rank;
    int64_t dims[BW_RANK_MAX];
    memcpy(dims, c->in[0].dims, sizeof dims);
    for (int i = 1; i < c->in_count; i++) {
        if (!c->in[i].present)
            return bw_op_fail(c->err, c->node, BW_CORRUPT, "input %d is absent: expected a value", i);
        if (c->in[i].dtype != c->in[0].dtype && strcmp(c->node->op, "Pow"))
            return bw_op_fail(c->err, c->node, BW_CORRUPT, "input %d is %s: expected %s as input 0", i,
                              bw_dtype_name(c->in[i].dtype), bw_dtype_name(c->in[0].dtype));
        if (bw_broadcast(rank, dims, c->in[i].rank, c->in[i].dims, &rank, dims)) {
            char a[128], b[128];
            return bw_op_fail(c->err, c->node, BW_CORRUPT, "shape %s of input %d does not broadcast with %s",
                              bw_dims_text(c->in[i].rank, c->in[i].dims, a), i, bw_dims_text(rank, dims, b));
        }
    }
    return bw_op_output(c, 0, result, rank, dims);
}

static bw_status infer_number(bw_op_infer *c)
{
    bw_status status = bw_op_want(c, 0, BW_WANT_NUMBER);
    if (!status && !strcmp(c->node->op, "Pow"))
        status = bw_op_want(c, 1, BW_WANT_NUMBER);
    return status ? status : infer_broadcast(c, c->in[0].dtype);
}

static bw_status infer_compare(bw_op_infer *c)
{
    unsigned want = BW_WANT_NUMBER | (!strcmp(c->node->op, "Equal") ? 1u << BW_BOOL : 0);
    bw_status status = bw_op_want(c, 0, want);
    return status ? status : infer_broadcast(c, BW_BOOL);
}

static bw_status infer_logic(bw_op_infer *c)
{
    bw_status status = bw_op_want(c, 0, 1u << BW_BOOL);
    return status ? status : infer_broadcast(c, BW_BOOL);
}

static bw_status infer_prelu(bw_op_infer *c)
{
    bw_status status = bw_op_want(c, 0, BW_WANT_FLOATS);
    if (!status)
        status = infer_broadcast(c, c->in[0].dtype);
    if (!status && c->out[0].rank != c->in[0].rank)
        status = bw_op_fail(c->err, c->node, BW_CORRUPT, "the slope has rank %d: expected at most %d", c->in[1].rank,
                            c->in[0].rank);
    return status ? status : bw_op_output_like(c, 0);
}

/* --- running -------------------------------------------------------------------------------------------------------
 */

static binary which(const bw_node *n)
{
    static const struct {
        const char *name;
        binary op;
    } names[] = {{"Add", B_ADD},           {"Sum", B_ADD},  {"Mean", B_ADD}, {"Sub", B_SUB},    {"Mul", B_MUL},
                 {"Div", B_DIV},           {"Min", B_MIN},  {"Max", B_MAX},  {"Pow", B_POW},    {"Mod", B_MOD},
                 {"PRelu", B_PRELU},       {"Equal", B_EQ}, {"Less", B_LT},  {"Greater", B_GT}, {"LessOrEqual", B_LE},
                 {"GreaterOrEqual", B_GE}, {"And", B_AND},  {"Or", B_OR},    {"Xor", B_XOR}};
    if (!strcmp(n->op, "Mod") && bw_node_int(n, "fmod", 0))
        return B_FMOD;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(names[i].name, n->op))
            return names[i].op;
    return B_ADD;
}

/* In one common oneDNN layout, padding included: 0 op 0 must be 0. */
static int stays_in_layout(const bw_op_run *r, binary op)
{
    if (op != B_ADD && op != B_SUB && op != B_MUL && op != B_MIN && op != B_MAX)
        return 0;
    return r->in_count == 2 && r->in[0]->layout && r->in[1]->layout && same_shape(&r->in[0]->array, &r->in[1]->array) &&
           bw_dnnl_same_layout(r->in[0]->layout, r->in[1]->layout);
}

static bw_status make_inputs_plain(bw_op_run *r)
{
    bw_status status = BW_OK;
    for (int i = 0; i < r->in_count && !status; i++)
        if (r->in[i]->layout)
            status = bw_run_make_plain(r, i);
    return status;
}

/* An output in the place of an input of its very type and shape. */
static bw_status alloc_over(bw_op_run *r, int inputs)
{
    const bw_array *y = &r->out[0].array;
    for (int i = 0; i < inputs; i++) {
        const bw_array *x = &r->in[i]->array;
        if (x->dtype == y->dtype && same_shape(x, y) && r->last_use && r->last_use[i])
            return bw_run_alloc_like(r, 0, i);
    }
    return bw_run_alloc(r, 0);
}

struct layout_row {
    row_function row;
    binary op;
    size_t size; /* of an element */
    const char *a, *b;
    char *y;
};

static void run_layout_row(int64_t from, int64_t to, void *user)
{
    const struct layout_row *s = user;
    size_t at = (size_t)from * s->size;
    s->row(s->op, to - from, s->a + at, 1, s->b + at, 1, s->y + at);
}

static bw_status run_binary(bw_op_run *r)
{
    binary op = which(r->node);
    bw_status status;
    bw_tensor *y = &r->out[0];
    if (stays_in_layout(r, op)) {
        status = bw_run_alloc_like(r, 0, r->last_use && r->last_use[0] ? 0 : 1);
        if (status)
            return status;
        struct layout_row row = {row_of(y->array.dtype),        op,
                                 bw_dtype_size(y->array.dtype), bw_tensor_bytes(r->in[0]),
                                 bw_tensor_bytes(r->in[1]),     bw_tensor_bytes(y)};
        bw_parallel((int64_t)(y->array.bytes / row.size), 32768, run_layout_row, &row);
        return BW_OK;
    }
    if ((status = make_inputs_plain(r)) || (status = alloc_over(r, r->in_count)))
        return status;
    const bw_array *a = &r->in[0]->array, *b = &r->in[1]->array;
    bw_array cast = {0};
    if (a->dtype != b->dtype) { /* Pow alone */
        if ((status = bw_array_alloc(&cast, a->dtype, b->rank, b->dims, r->err)))
            return status;
        bw_cast(b->dtype, b->data, a->dtype, cast.data, bw_array_count(b));
        b = &cast;
    }
    run_box(op, a->dtype, y->array.rank, y->array.dims, a, b, y->array.data, bw_dtype_size(y->array.dtype));
    bw_array_free(&cast);
    return BW_OK;
}

/* Min, Max, Sum, Mean: the first operand spread over the output, then one after the other into it. */
static bw_status run_many(bw_op_run *r)
{
    if (r->in_count == 2 && strcmp(r->node->op, "Mean"))
        return run_binary(r);
    bw_tensor *y = &r->out[0];
    bw_status status = make_inputs_plain(r);
    /* Fresh memory: operands after the first are still to be read. */
    if (status || (status = bw_run_alloc(r, 0)))
        return status;
    const bw_array *a = &r->in[0]->array;
    int64_t from[BW_RANK_MAX], to[BW_RANK_MAX];
    bw_broadcast_strides(a->rank, a->dims, y->array.rank, y->array.dims, from);
    bw_strides(y->array.rank, y->array.dims, to);
    bw_copy_strided(bw_dtype_size(a->dtype), y->array.rank, y->array.dims, y->array.data, to, a->data, from);
    for (int i = 1; i < r->in_count; i++)
        run_box(which(r->node), a->dtype, y->array.rank, y->array.dims, &y->array, &r->in[i]->array, y->array.data,
                bw_dtype_size(a->dtype));
    if (!strcmp(r->node->op, "Mean")) {
        double count_f64 = r->in_count;
        float count_f32 = (float)r->in_count;
        bw_array count = {.dtype = a->dtype, .data = a->dtype == BW_F32 ? (void *)&count_f32 : (void *)&count_f64};
        run_box(B_DIV, a->dtype, y->array.rank, y->array.dims, &y->array, &count, y->array.data,
                bw_dtype_size(a->dtype));
    }
    return BW_OK;
}

static bw_status infer_mean(bw_op_infer *c)
{
    bw_status status = bw_op_want(c, 0, BW_WANT_FLOATS);
    return status ? status : infer_broadcast(c, c->in[0].dtype);
}

/* --- Where ---------------------------------------------------------------------------------------------------------
 */

static bw_status infer_where(bw_op_infer *c)
{
    bw_status status = bw_op_want(c, 0, 1u << BW_BOOL);
    if (status)
        return status;
    if (c->in[1].dtype != c->in[2].dtype || !bw_dtype_size(c->in[1].dtype))
        return bw_op_fail(c->err, c->node, BW_CORRUPT, "inputs 1 and 2 are %s and %s: expected one type",
                          bw_dtype_name(c->in[1].dtype), bw_dtype_name(c->in[2].dtype));
    int rank = c->in[0].rank;
    int64_t dims[BW_RANK_MAX];
    memcpy(dims, c->in[0].dims, sizeof dims);
    for (int i = 1; i < 3; i++)
        if (bw_broadcast(rank, dims, c->in[i].rank, c->in[i].dims, &rank, dims))
            return bw_op_fail(c->err, c->node, BW_CORRUPT, "the shape of input %d does not broadcast with the others",
                              i);
    return bw_op_output(c, 0, c->in[1].dtype, rank, dims);
}

static bw_status run_where(bw_op_run *r)
{
    const bw_array *test = bw_run_in(r, 0), *a = bw_run_in(r, 1), *b = bw_run_in(r, 2);
    bw_array *y = &r->out[0].array;
    size_t size = bw_dtype_size(y->dtype);
    int64_t s[3][BW_RANK_MAX], at[BW_RANK_MAX] = {0};
    const bw_array *operand[3] = {test, a, b};
    for (int i = 0; i < 3; i++)
        bw_broadcast_strides(operand[i]->rank, operand[i]->dims, y->rank, y->dims, s[i]);
    int64_t offset[3] = {0};
    char *to = y->data;
    for (int64_t i = 0, n = bw_array_count(y); i < n; i++, to += size) {
        int choice = ((const uint8_t *)test->data)[offset[0]] ? 1 : 2;
        memcpy(to, (const char *)operand[choice]->data + offset[choice] * (int64_t)size, size);
        for (int k = y->rank - 1; k >= 0; k--) {
            for (int j = 0; j < 3; j++)
                offset[j] += s[j][k];
            if (++at[k] < y->dims[k])
                break;
            for (int j = 0; j < 3; j++)
                offset[j] -= s[j][k] * y->dims[k];
            at[k] = 0;
        }
    }
    return BW_OK;
}

#define MANY     1024
#define IN_PLACE (BW_OP_ALLOCATES | BW_OP_LAYOUTS)

const bw_op bw_ops_binary[] = {
    {"Add", 2, 2, 1, IN_PLACE | BW_OP_ARITH, infer_number, run_binary, NULL},
    {"Sub", 2, 2, 1, IN_PLACE | BW_OP_ARITH, infer_number, run_binary, NULL},
    {"Mul", 2, 2, 1, IN_PLACE | BW_OP_ARITH, infer_number, run_binary, NULL},
    {"Div", 2, 2, 1, IN_PLACE | BW_OP_ARITH, infer_number, run_binary, NULL},
    {"Pow", 2, 2, 1, IN_PLACE, infer_number, run_binary, NULL},
    {"Mod", 2, 2, 1, IN_PLACE, infer_number, run_binary, NULL},
    {"PRelu", 2, 2, 1, IN_PLACE, infer_prelu, run_binary, NULL},
    {"Min", 1, MANY, 1, IN_PLACE, infer_number, run_many, NULL},
    {"Max", 1, MANY, 1, IN_PLACE, infer_number, run_many, NULL},
    {"Sum", 1, MANY, 1, IN_PLACE, infer_number, run_many, NULL},
    {"Mean", 1, MANY, 1, IN_PLACE, infer_mean, run_many, NULL},
    {"Equal", 2, 2, 1, IN_PLACE, infer_compare, run_binary, NULL},
    {"Less", 2, 2, 1, IN_PLACE, infer_compare, run_binary, NULL},
    {"Greater", 2, 2, 1, IN_PLACE, infer_compare, run_binary, NULL},
    {"LessOrEqual", 2, 2, 1, IN_PLACE, infer_compare, run_binary, NULL},
    {"GreaterOrEqual", 2, 2, 1, IN_PLACE, infer_compare, run_binary, NULL},
    {"And", 2, 2, 1, IN_PLACE, infer_logic, run_binary, NULL},
    {"Or", 2, 2, 1, IN_PLACE, infer_logic, run_binary, NULL},
    {"Xor", 2, 2, 1, IN_PLACE, infer_logic, run_binary, NULL},
    {"Where", 3, 3, 1, 0, infer_where, run_where, NULL},
    {0},
};
