/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Element-wise functions of one tensor. Transcendental functions are evaluated in double and rounded once, so that
 * they hardly depend (Exp, Sigmoid, Tanh: not at all) on the machine and its C library.
 */
#include "host/ops/loops.h"

#include <math.h>
#include <string.h>

#include "host/ops/exp.h"
#include "host/ops/op.h"
#include "host/ops/parallel.h"

typedef struct params {
    double alpha, beta, gamma;
    int tanh_form;
} params;

typedef double (*function)(double x, const params *p);

static double f_relu(double x, const params *p)
{
    (void)p;
    return x < 0 ? 0 : x;
}
static double f_sigmoid(double x, const params *p)
{
    (void)p;
    return 1 / (1 + exp(-x));
}
static double f_tanh(double x, const params *p)
{
    (void)p;
    return tanh(x);
}
static double f_erf(double x, const params *p)
{
    (void)p;
    return erf(x);
}
static double f_sqrt(double x, const params *p)
{
    (void)p;
    return sqrt(x);
}
static double f_exp(double x, const params *p)
{
    (void)p;
    return exp(x);
}
static double f_log(double x, const params *p)
{
    (void)p;
    return log(x);
}
static double f_abs(double x, const params *p)
{
    (void)p;
    return fabs(x);
}
static double f_neg(double x, const params *p)
{
    (void)p;
    return -x;
}
static double f_sign(double x, const params *p)
{
    (void)p;
    return (x > 0) - (x < 0);
}
static double f_reciprocal(double x, const params *p)
{
    (void)p;
    return 1 / x;
}
static double f_floor(double x, const params *p)
{
    (void)p;
    return floor(x);
}
static double f_ceil(double x, const params *p)
{
    (void)p;
    return ceil(x);
}
static double f_round(double x, const params *p)
{
    (void)p;
    return nearbyint(x);
}
static double f_sin(double x, const params *p)
{
    (void)p;
    return sin(x);
}
static double f_cos(double x, const params *p)
{
    (void)p;
    return cos(x);
}
static double f_softplus(double x, const params *p)
{
    (void)p;
    return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x));
}
static double f_softsign(double x, const params *p)
{
    (void)p;
    return x / (1 + fabs(x));
}
static double f_mish(double x, const params *p)
{
    return x * tanh(f_softplus(x, p));
}
static double f_hard_sigmoid(double x, const params *p)
{
    double y = p->alpha * x + p->beta;
    return y < 0 ? 0 : y > 1 ? 1 : y;
}
static double f_hard_swish(double x, const params *p)
{
    return x * f_hard_sigmoid(x, p);
}
static double f_leaky_relu(double x, const params *p)
{
    return x < 0 ? p->alpha * x : x;
}
static double f_elu(double x, const params *p)
{
    return x < 0 ? p->alpha * expm1(x) : x;
}
static double f_selu(double x, const params *p)
{
    return x < 0 ? p->gamma * p->alpha * expm1(x) : p->gamma * x;
}
static double f_celu(double x, const params *p)
{
    return x < 0 ? p->alpha * expm1(x / p->alpha) : x;
}
static double f_thresholded_relu(double x, const params *p)
{
    return x > p->alpha ? x : x != x ? x : 0;
}
static double f_gelu(double x, const params *p)
{
    if (p->tanh_form)
        return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    return 0.5 * x * (1 + erf(x * 0.7071067811865476));
}

/* Name, function, defaults of alpha, beta, gamma; zero: f(0) = 0, so that the padding of a oneDNN layout stays zero. */
static const struct row {
    const char *name;
    function f;
    float alpha, beta, gamma;
    int zero;
} rows[] = {
    {"Relu", f_relu, 0, 0, 0, 1},
    {"Sigmoid", f_sigmoid, 0, 0, 0, 0},
    {"Tanh", f_tanh, 0, 0, 0, 1},
    {"Erf", f_erf, 0, 0, 0, 1},
    {"Sqrt", f_sqrt, 0, 0, 0, 1},
    {"Exp", f_exp, 0, 0, 0, 0},
    {"Log", f_log, 0, 0, 0, 0},
    {"Abs", f_abs, 0, 0, 0, 1},
    {"Neg", f_neg, 0, 0, 0, 1},
    {"Sign", f_sign, 0, 0, 0, 1},
    {"Reciprocal", f_reciprocal, 0, 0, 0, 0},
    {"Floor", f_floor, 0, 0, 0, 1},
    {"Ceil", f_ceil, 0, 0, 0, 1},
    {"Round", f_round, 0, 0, 0, 1},
    {"Sin", f_sin, 0, 0, 0, 1},
    {"Cos", f_cos, 0, 0, 0, 0},
    {"Softplus", f_softplus, 0, 0, 0, 0},
    {"Softsign", f_softsign, 0, 0, 0, 1},
    {"Mish", f_mish, 0, 0, 0, 1},
    {"HardSigmoid", f_hard_sigmoid, 0.2f, 0.5f, 0, 0},
    {"HardSwish", f_hard_swish, 1.0f / 6, 0.5f, 0, 1},
    {"LeakyRelu", f_leaky_relu, 0.01f, 0, 0, 1},
    {"Elu", f_elu, 1, 0, 0, 1},
    {"Selu", f_selu, 1.67326319217681884765625f, 0, 1.05070102214813232421875f, 1},
    {"Celu", f_celu, 1, 0, 0, 1},
    {"ThresholdedRelu", f_thresholded_relu, 1, 0, 0, 0},
    {"Gelu", f_gelu, 0, 0, 0, 1},
};

static const struct row *find_row(const char *name)
{
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (!strcmp(rows[i].name, name))
            return &rows[i];
    return NULL;
}

static bw_status infer_float(bw_op_infer *c)
{
    bw_status status = bw_op_want(c, 0, BW_WANT_FLOATS);
    return status ? status : bw_op_output_like(c, 0);
}

static bw_status infer_number(bw_op_infer *c)
{
    bw_status status = bw_op_want(c, 0, BW_WANT_NUMBER);
    return status ? status : bw_op_output_like(c, 0);
}

/* Elements to visit: in a oneDNN layout its padding too. */
static int64_t element_count(const bw_tensor *t)
{
    return t->layout ? (int64_t)(t->array.bytes / bw_dtype_size(t->array.dtype)) : bw_array_count(&t->array);
}

static bw_status place(bw_op_run *r, int keeps_zero, const bw_tensor **x)
{
    *x = r->in[0];
    bw_status status = BW_OK;
    if (r->in[0]->layout && !keeps_zero)
        status = bw_run_make_plain(r, 0);
    return status ? status : bw_run_alloc_like(r, 0, 0);
}

/* The cheap and frequent ones in fp32 loops that the compiler vectorises. */
static int run_fast(const char *name, int64_t n, const float *x, float *y, const params *p)
{
    if (!strcmp(name, "Relu")) {
        for (int64_t i = 0; i < n; i++)
            y[i] = x[i] < 0 ? 0 : x[i];
    } else if (!strcmp(name, "LeakyRelu")) {
        float alpha = (float)p->alpha;
        for (int64_t i = 0; i < n; i++)
            y[i] = x[i] < 0 ? alpha * x[i] : x[i];
    } else if (!strcmp(name, "HardSwish") || !strcmp(name, "HardSigmoid")) {
        float alpha = (float)p->alpha, beta = (float)p->beta;
        int swish = name[4] == 'S' && name[5] == 'w';
        for (int64_t i = 0; i < n; i++) {
            float s = alpha * x[i] + beta;
            s = s < 0 ? 0 : s > 1 ? 1 : s;
            y[i] = swish ? s * x[i] : s;
        }
    } else if (!strcmp(name, "Sigmoid")) {
        for (int64_t i = 0; i < n; i++)
            y[i] = (float)bw_sigmoid((double)x[i]);
    } else if (!strcmp(name, "Tanh")) {
        for (int64_t i = 0; i < n; i++)
            y[i] = (float)bw_tanh((double)x[i]);
    } else if (!strcmp(name, "Exp")) {
        for (int64_t i = 0; i < n; i++)
            y[i] = (float)bw_exp((double)x[i]);
    } else if (!strcmp(name, "Abs")) {
        for (int64_t i = 0; i < n; i++)
            y[i] = fabsf(x[i]);
    } else if (!strcmp(name, "Sqrt")) {
        for (int64_t i = 0; i < n; i++)
            y[i] = sqrtf(x[i]);
    } else if (!strcmp(name, "Neg")) {
        for (int64_t i = 0; i < n; i++)
            y[i] = -x[i];
    } else {
        return 0;
    }
    return 1;
}

/* Relu, Abs, Neg, Sign of integers; two's complement wraps. */
#define INT_LOOP(type, utype)                                                                                          \
    do {                                                                                                               \
        const type *x = in;                                                                                            \
        type *y = out;                                                                                                 \
        for (int64_t i = 0; i < n; i++) {                                                                              \
            type v = x[i];                                                                                             \
            type negated = (type)(utype)(0u - (utype)v);                                                               \
            y[i] = what == 'R'   ? (v < 0 ? (type)0 : v)                                                               \
                   : what == 'A' ? (v < 0 ? negated : v)                                                               \
                   : what == 'N' ? negated                                                                             \
                                 : (type)((v > 0) - (v < 0));                                                          \
        }                                                                                                              \
    } while (0)

static void run_integers(char what, bw_dtype dtype, int64_t n, const void *in, void *out)
{
    switch (dtype) {
    case BW_I64:
        INT_LOOP(int64_t, uint64_t);
        break;
    case BW_I32:
        INT_LOOP(int32_t, uint32_t);
        break;
    case BW_I8:
        INT_LOOP(int8_t, uint8_t);
        break;
    default: { /* unsigned: only Sign and (wrapping) Neg do something */
        const uint8_t *x = in;
        uint8_t *y = out;
        for (int64_t i = 0; i < n; i++)
            y[i] = what == 'N' ? (uint8_t)(0u - x[i]) : what == 'S' ? x[i] > 0 : x[i];
    }
    }
}

typedef struct span {
    const struct row *row;
    const params *p;
    const float *x;
    float *y;
} span;

static void run_span(int64_t from, int64_t to, void *user)
{
    const span *s = user;
    if (!run_fast(s->row->name, to - from, s->x + from, s->y + from, s->p))
        for (int64_t i = from; i < to; i++)
            s->y[i] = (float)s->row->f((double)s->x[i], s->p);
}

static bw_status run_unary(bw_op_run *r)
{
    const struct row *row = find_row(r->node->op);
    params p = {bw_node_float(r->node, "alpha", row->alpha), bw_node_float(r->node, "beta", row->beta),
                bw_node_float(r->node, "gamma", row->gamma),
                !strcmp(bw_node_string(r->node, "approximate", "none"), "tanh")};
    const bw_tensor *x;
    bw_status status = place(r, row->zero, &x);
    if (status)
        return status;
    int64_t n = element_count(x);
    const void *in = bw_tensor_bytes(x);
    void *out = bw_tensor_bytes(&r->out[0]);
    if (x->array.dtype == BW_F32) {
        span s = {row, &p, in, out};
        bw_parallel(n, 32768, run_span, &s);
    } else if (x->array.dtype == BW_F64) {
        const double *from = in;
        double *to = out;
        for (int64_t i = 0; i < n; i++)
            to[i] = row->f(from[i], &p);
    } else {
        run_integers(!strcmp(row->name, "Sign") ? 'S' : row->name[0], x->array.dtype, n, in, out);
    }
    return BW_OK;
}

/* --- Clip, Not, IsNaN ------------------------------------------------------------------------------------------------
 */

static bw_status infer_clip(bw_op_infer *c)
{
    bw_status status = bw_op_want(c, 0, BW_WANT_NUMBER);
    for (int i = 1; i < c->in_count && !status; i++) {
        if (!c->in[i].present)
            continue;
        int64_t n = bw_dims_product(c->in[i].dims, 0, c->in[i].rank);
        if (c->in[i].dtype != c->in[0].dtype || (n >= 0 && n != 1))
            status =
                bw_op_fail(c->err, c->node, BW_CORRUPT, "input %d: expected one %s", i, bw_dtype_name(c->in[0].dtype));
    }
    return status ? status : bw_op_output_like(c, 0);
}

/* Attributes are floats: for integers they are truncated, saturating. */
#define CLIP_LOOP(type, lowest, highest)                                                                               \
    do {                                                                                                               \
        type low = lowest, high = highest;                                                                             \
        if (min)                                                                                                       \
            low = *(const type *)min->data;                                                                            \
        else if (has_min)                                                                                              \
            low = fmin >= (double)(highest) ? highest : fmin < (double)(lowest) ? lowest : (type)fmin;                 \
        if (max)                                                                                                       \
            high = *(const type *)max->data;                                                                           \
        else if (has_max)                                                                                              \
            high = fmax >= (double)(highest) ? highest : fmax < (double)(lowest) ? lowest : (type)fmax;                \
        const type *from = in;                                                                                         \
        type *to = out;                                                                                                \
        for (int64_t i = 0; i < n; i++) {                                                                              \
            type v = from[i] < low ? low : from[i];                                                                    \
            to[i] = v > high ? high : v;                                                                               \
        }                                                                                                              \
    } while (0)

static bw_status run_clip(bw_op_run *r)
{
    const bw_attr *amin = bw_node_attr(r->node, "min"), *amax = bw_node_attr(r->node, "max");
    const bw_array *min = amin ? NULL : bw_run_in(r, 1), *max = amax ? NULL : bw_run_in(r, 2);
    double fmin = (double)bw_node_float(r->node, "min", -INFINITY),
           fmax = (double)bw_node_float(r->node, "max", INFINITY);
    int has_min = amin && !isnan(fmin), has_max = amax && !isnan(fmax);
    for (int i = 1; i < r->in_count; i++)
        if (r->in[i] && r->in[i]->layout) {
            bw_status plain = bw_run_make_plain(r, i);
            if (plain)
                return plain;
        }
    const bw_tensor *x;
    bw_status status = place(r, !min && !max && fmin <= 0 && fmax >= 0, &x);
    if (status)
        return status;
    int64_t n = element_count(x);
    const void *in = bw_tensor_bytes(x);
    void *out = bw_tensor_bytes(&r->out[0]);
    switch (x->array.dtype) {
    case BW_F32:
        CLIP_LOOP(float, -INFINITY, INFINITY);
        break;
    case BW_F64:
        CLIP_LOOP(double, -(double)INFINITY, (double)INFINITY);
        break;
    case BW_I64:
        CLIP_LOOP(int64_t, INT64_MIN, INT64_MAX);
        break;
    case BW_I32:
        CLIP_LOOP(int32_t, INT32_MIN, INT32_MAX);
        break;
    case BW_I8:
        CLIP_LOOP(int8_t, INT8_MIN, INT8_MAX);
        break;
    default:
        CLIP_LOOP(uint8_t, 0, UINT8_MAX);
    }
    return BW_OK;
}

static bw_status infer_not(bw_op_infer *c)
{
    bw_status status = bw_op_want(c, 0, 1u << BW_BOOL);
    return status ? status : bw_op_output_like(c, 0);
}

static bw_status run_not(bw_op_run *r)
{
    const bw_array *x = bw_run_in(r, 0);
    for (int64_t i = 0, n = bw_array_count(x); i < n; i++)
        ((uint8_t *)r->out[0].array.data)[i] = !((const uint8_t *)x->data)[i];
    return BW_OK;
}

static bw_status infer_is_nan(bw_op_infer *c)
{
    bw_status status = bw_op_want(c, 0, BW_WANT_FLOATS);
    return status ? status : bw_op_output(c, 0, BW_BOOL, c->in[0].rank, c->in[0].dims);
}

static bw_status run_is_nan(bw_op_run *r)
{
    const bw_array *x = bw_run_in(r, 0);
    uint8_t *y = r->out[0].array.data;
    for (int64_t i = 0, n = bw_array_count(x); i < n; i++)
        y[i] = x->dtype == BW_F32 ? isnan(((const float *)x->data)[i]) != 0 : isnan(((const double *)x->data)[i]) != 0;
    return BW_OK;
}

#define FLOATS(name)                                                                                                   \
    {                                                                                                                  \
        name, 1, 1, 1, BW_OP_ALLOCATES | BW_OP_LAYOUTS, infer_float, run_unary, NULL                                   \
    }
#define NUMBERS(name)                                                                                                  \
    {                                                                                                                  \
        name, 1, 1, 1, BW_OP_ALLOCATES | BW_OP_LAYOUTS, infer_number, run_unary, NULL                                  \
    }

const bw_op bw_ops_unary[] = {
    NUMBERS("Relu"),
    NUMBERS("Abs"),
    NUMBERS("Neg"),
    NUMBERS("Sign"),
    FLOATS("Sigmoid"),
    FLOATS("Tanh"),
    FLOATS("Erf"),
    FLOATS("Sqrt"),
    FLOATS("Exp"),
    FLOATS("Log"),
    FLOATS("Reciprocal"),
    FLOATS("Floor"),
    FLOATS("Ceil"),
    FLOATS("Round"),
    FLOATS("Sin"),
    FLOATS("Cos"),
    FLOATS("Softplus"),
    FLOATS("Softsign"),
    FLOATS("Mish"),
    FLOATS("HardSigmoid"),
    FLOATS("HardSwish"),
    FLOATS("LeakyRelu"),
    FLOATS("Elu"),
    FLOATS("Selu"),
    FLOATS("Celu"),
    FLOATS("ThresholdedRelu"),
    FLOATS("Gelu"),
    {"Clip", 1, 3, 1, BW_OP_ALLOCATES | BW_OP_LAYOUTS, infer_clip, run_clip, NULL},
    {"Not", 1, 1, 1, 0, infer_not, run_not, NULL},
    {"IsNaN", 1, 1, 1, 0, infer_is_nan, run_is_nan, NULL},
    {0},
};
