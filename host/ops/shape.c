/* SPDX-License-Identifier: Apache-2.0 */
/* Operators about shapes and types: Shape, Size, ConstantOfShape, Range, Cast. */
#include <math.h>
#include <string.h>

#include "host/ops/op.h"

/* --- Shape, Size ---------------------------------------------------------------------------------------------------
 */

static void shape_range(const bw_node *n, int rank, int *start, int *end)
{
    int64_t s = bw_node_int(n, "start", 0), e = bw_node_int(n, "end", rank);
    s = s < -rank ? 0 : s < 0 ? s + rank : s > rank ? rank : s;
    e = e < -rank ? 0 : e < 0 ? e + rank : e > rank ? rank : e;
    *start = (int)s;
    *end = (int)(e < s ? s : e);
}

static bw_status infer_shape(bw_op_infer *c)
{
    int start, end;
    shape_range(c->node, c->in[0].rank, &start, &end);
    return bw_op_output(c, 0, BW_I64, 1, (int64_t[]){end - start});
}

static bw_status run_shape(bw_op_run *r)
{
    const bw_array *x = bw_run_in(r, 0);
    int start, end;
    shape_range(r->node, x->rank, &start, &end);
    for (int i = start; i < end; i++)
        ((int64_t *)r->out[0].array.data)[i - start] = bw_dim_to_entry(x->dims[i]);
    return BW_OK;
}

static bw_status infer_size(bw_op_infer *c)
{
    return bw_op_output(c, 0, BW_I64, 0, NULL);
}

static bw_status run_size(bw_op_run *r)
{
    const bw_array *x = bw_run_in(r, 0);
    int64_t n = bw_dims_product(x->dims, 0, x->rank);
    *(int64_t *)r->out[0].array.data = bw_dim_to_entry(n);
    return BW_OK;
}

/* --- ConstantOfShape -------------------------------------------------------------------------------------------------
 */

static bw_status infer_constant_of_shape(bw_op_infer *c)
{
    int64_t dims[BW_RANK_MAX];
    int rank;
    bw_ints_found found = bw_op_ints(c, "shape", 0, dims, BW_RANK_MAX, &rank);
    if (found == BW_INTS_BAD)
        return BW_CORRUPT;
    if (rank < 0)
        return bw_op_fail(c->err, c->node, BW_UNSUPPORTED, "the rank of the result depends on data");
    for (int i = 0; i < rank; i++) {
        if (found == BW_INTS_UNKNOWN && bw_is_mark(dims[i]))
            dims[i] = bw_mark_to_dim(dims[i]);
        else if (dims[i] < 0)
            return bw_op_fail(c->err, c->node, BW_CORRUPT, "entry %d of the shape is %lld: expected a size", i,
                              (long long)dims[i]);
    }
    const bw_attr *v = bw_node_attr(c->node, "value");
    if (v && (v->kind != BW_ATTR_ARRAY || bw_array_count(&v->array) != 1))
        return bw_op_fail(c->err, c->node, BW_CORRUPT, "attribute 'value': expected an array of one element");
    return bw_op_output(c, 0, v ? v->array.dtype : BW_F32, rank, dims);
}

static bw_status run_constant_of_shape(bw_op_run *r)
{
    const bw_attr *v = bw_node_attr(r->node, "value");
    bw_array *y = &r->out[0].array;
    if (v)
        bw_fill(bw_dtype_size(y->dtype), y->data, bw_array_count(y), v->array.data);
    else
        memset(y->data, 0, y->bytes);
    return BW_OK;
}

/* --- Range -------------------------------------------------------------------------------------------------------- */

static double scalar(const bw_array *a)
{
    double v;
    bw_cast(a->dtype, a->data, BW_F64, &v, 1);
    return v;
}

static bw_status infer_range(bw_op_infer *c)
{
    bw_status status = bw_op_want(c, 0, BW_WANT_NUMBER);
    int64_t n = -1;
    int known = 1;
    for (int i = 0; i < 3 && !status; i++) {
        if (c->in[i].dtype != c->in[0].dtype || c->in[i].rank > 1)
            status =
                bw_op_fail(c->err, c->node, BW_CORRUPT, "input %d: expected one %s", i, bw_dtype_name(c->in[0].dtype));
        else if (c->in[i].value && bw_array_count(c->in[i].value) != 1)
            status = bw_op_fail(c->err, c->node, BW_CORRUPT, "input %d: expected one element", i);
        known = known && c->in[i].value && !c->in[i].partial;
    }
    if (!status && known) {
        double count = ceil((scalar(c->in[1].value) - scalar(c->in[0].value)) / scalar(c->in[2].value));
        if (!(fabs(count) < 1e12))
            return bw_op_fail(c->err, c->node, BW_CORRUPT, "start, limit and delta give no finite range");
        n = count < 0 ? 0 : (int64_t)count;
    }
    return status ? status : bw_op_output(c, 0, c->in[0].dtype, 1, &n);
}

#define RANGE_LOOP(type, wide)                                                                                         \
    do {                                                                                                               \
        type start = *(const type *)bw_run_in(r, 0)->data, delta = *(const type *)bw_run_in(r, 2)->data;               \
        for (int64_t i = 0; i < n; i++)                                                                                \
            ((type *)y->data)[i] = (type)((wide)start + (wide)i * (wide)delta);                                        \
    } while (0)

static bw_status run_range(bw_op_run *r)
{
    bw_array *y = &r->out[0].array;
    int64_t n = bw_array_count(y);
    switch (y->dtype) {
    case BW_F32:
        RANGE_LOOP(float, float);
        break;
    case BW_F64:
        RANGE_LOOP(double, double);
        break;
    case BW_I64:
        RANGE_LOOP(int64_t, uint64_t);
        break;
    case BW_I32:
        RANGE_LOOP(int32_t, uint64_t);
        break;
    case BW_I8:
        RANGE_LOOP(int8_t, uint64_t);
        break;
    default:
        RANGE_LOOP(uint8_t, uint64_t);
    }
    return BW_OK;
}

/* --- Cast --------------------------------------------------------------------------------------------------------- */

static float from_half(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
    uint32_t bits;
    float f;
    if (exponent == 0) {
        f = (float)fraction * 0x1p-24f;
        return sign ? -f : f;
    }
    bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* To nearest even, from double so that there is one rounding only. */
static uint16_t to_half(double x)
{
    uint16_t sign = signbit(x) ? 0x8000 : 0;
    double a = fabs(x);
    if (isnan(x))
        return sign | 0x7e00;
    if (a >= 65520)
        return sign | 0x7c00;
    if (a < 0x1p-14)
        return (uint16_t)(sign | (uint16_t)nearbyint(a * 0x1p24));
    int e;
    frexp(a, &e);                                     /* a = f * 2^e, f in [0.5, 1) */
    double significand = nearbyint(ldexp(a, 11 - e)); /* 1024 .. 2048 */
    return (uint16_t)(sign | (((e + 14 - 1) << 10) + (uint16_t)significand));
}

/* Every type passes through int64 or double, both wide enough for all others. */
static int64_t to_int(double x, double low, double high)
{
    if (x != x)
        return 0;
    if (x <= low)
        return low <= -0x1p63 ? INT64_MIN : (int64_t)low;
    if (x >= high)
        return high >= 0x1p63 ? INT64_MAX : (int64_t)high;
    return (int64_t)x;
}

static int is_float(bw_dtype d)
{
    return d == BW_F32 || d == BW_F64 || d == BW_F16;
}

static double load_float(bw_dtype d, const void *p, int64_t i)
{
    return d == BW_F32   ? (double)((const float *)p)[i]
           : d == BW_F64 ? ((const double *)p)[i]
                         : (double)from_half(((const uint16_t *)p)[i]);
}

static int64_t load_int(bw_dtype d, const void *p, int64_t i)
{
    switch (d) {
    case BW_I64:
        return ((const int64_t *)p)[i];
    case BW_I32:
        return ((const int32_t *)p)[i];
    case BW_I8:
        return ((const int8_t *)p)[i];
    case BW_U8:
        return ((const uint8_t *)p)[i];
    default:
        return ((const uint8_t *)p)[i] != 0;
    }
}

static void store_int(bw_dtype d, void *p, int64_t i, int64_t v)
{
    switch (d) {
    case BW_I64:
        ((int64_t *)p)[i] = v;
        break;
    case BW_I32:
        ((int32_t *)p)[i] = (int32_t)(uint32_t)(uint64_t)v;
        break;
    case BW_I8:
    case BW_U8:
        ((uint8_t *)p)[i] = (uint8_t)(uint64_t)v;
        break;
    default:
        ((uint8_t *)p)[i] = v != 0;
    }
}

static int64_t clamp_to(bw_dtype d, double x)
{
    switch (d) {
    case BW_I64:
        return to_int(x, -0x1p63, 0x1p63);
    case BW_I32:
        return to_int(x, INT32_MIN, INT32_MAX);
    case BW_I8:
        return to_int(x, INT8_MIN, INT8_MAX);
    case BW_U8:
        return to_int(x, 0, UINT8_MAX);
    default:
        return x != 0;
    }
}

void bw_cast(bw_dtype from, const void *in, bw_dtype to, void *out, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        if (!is_float(to)) {
            store_int(to, out, i, is_float(from) ? clamp_to(to, load_float(from, in, i)) : load_int(from, in, i));
            continue;
        }
        double x = is_float(from) ? load_float(from, in, i) : (double)load_int(from, in, i);
        if (to == BW_F64)
            ((double *)out)[i] = x;
        else if (to == BW_F16)
            ((uint16_t *)out)[i] = to_half(x);
        else /* int64 to fp32 in one rounding */
            ((float *)out)[i] = is_float(from) ? (float)x : (float)load_int(from, in, i);
    }
}

/* ONNX's TensorProto.DataType. */
static bw_dtype onnx_type(int64_t to)
{
    static const bw_dtype types[] = {[1] = BW_F32, [2] = BW_U8,   [3] = BW_I8,   [6] = BW_I32,
                                     [7] = BW_I64, [9] = BW_BOOL, [10] = BW_F16, [11] = BW_F64};
    return to < 0 || to >= (int64_t)(sizeof types / sizeof *types) ? BW_DTYPE_NONE : types[to];
}

static bw_status infer_cast(bw_op_infer *c)
{
    int64_t to = bw_node_int(c->node, "to", 0);
    if (!onnx_type(to) || !bw_dtype_size(c->in[0].dtype))
        return bw_op_fail(c->err, c->node, BW_UNSUPPORTED, "from %s to ONNX type %lld: expected numbers or bool",
                          bw_dtype_name(c->in[0].dtype), (long long)to);
    return bw_op_output(c, 0, onnx_type(to), c->in[0].rank, c->in[0].dims);
}

static bw_status run_cast(bw_op_run *r)
{
    const bw_array *x = bw_run_in(r, 0);
    bw_array *y = &r->out[0].array;
    if (x->dtype == y->dtype)
        return bw_run_alias(r, 0, 0);
    bw_status status = bw_run_alloc(r, 0);
    if (!status)
        bw_cast(x->dtype, x->data, y->dtype, y->data, bw_array_count(x));
    return status;
}

const bw_op bw_ops_shape[] = {
    {"Shape", 1, 1, 1, BW_OP_SHAPE | BW_OP_LAYOUTS, infer_shape, run_shape, NULL},
    {"Size", 1, 1, 1, BW_OP_SHAPE | BW_OP_LAYOUTS, infer_size, run_size, NULL},
    {"ConstantOfShape", 1, 1, 1, 0, infer_constant_of_shape, run_constant_of_shape, NULL},
    {"Range", 3, 3, 1, 0, infer_range, run_range, NULL},
    {"Cast", 1, 1, 1, BW_OP_ALLOCATES | BW_OP_MOVES, infer_cast, run_cast, NULL},
    {0},
};
