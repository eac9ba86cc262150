/* SPDX-License-Identifier: Apache-2.0 */
/* Operators that pick elements by index or position: Gather, GatherElements, Pad, Trilu, CumSum. */
#include <math.h>
#include <string.h>

#include "host/ops/op.h"

static int64_t index_at(const bw_array *a, int64_t i)
{
    return a->dtype == BW_I64 ? ((const int64_t *)a->data)[i] : ((const int32_t *)a->data)[i];
}

/* --- Gather ---------------------------------------------------------------------------------------------------------
 */

static bw_status infer_gather(bw_op_infer *c)
{
    int axis, rank = 0;
    int64_t dims[BW_RANK_MAX * 2];
    bw_status status = bw_op_want(c, 1, BW_WANT_INDEX);
    if (!status)
        status = bw_op_axis(c->err, c->node, bw_node_int(c->node, "axis", 0), c->in[0].rank, 0, &axis);
    if (status)
        return status;
    for (int i = 0; i < axis; i++)
        dims[rank++] = c->in[0].dims[i];
    for (int i = 0; i < c->in[1].rank; i++)
        dims[rank++] = c->in[1].dims[i];
    for (int i = axis + 1; i < c->in[0].rank; i++)
        dims[rank++] = c->in[0].dims[i];
    return bw_op_output(c, 0, c->in[0].dtype, rank, dims);
}

static bw_status run_gather(bw_op_run *r)
{
    const bw_array *x = bw_run_in(r, 0), *indices = bw_run_in(r, 1);
    int axis;
    bw_status status = bw_op_axis(r->err, r->node, bw_node_int(r->node, "axis", 0), x->rank, 0, &axis);
    if (status)
        return status;
    int64_t outer = bw_dims_product(x->dims, 0, axis), inner = bw_dims_product(x->dims, axis + 1, x->rank);
    int64_t size = x->dims[axis], count = bw_array_count(indices);
    size_t bytes = (size_t)inner * bw_dtype_size(x->dtype);
    const char *from = x->data;
    char *to = r->out[0].array.data;
    for (int64_t o = 0; o < outer; o++)
        for (int64_t i = 0; i < count; i++, to += bytes) {
            int64_t k = index_at(indices, i);
            k += k < 0 ? size : 0;
            if (k < 0 || k >= size)
                return bw_fail(r->err, BW_OUT_OF_RANGE, "index %lld is %lld: expected %lld to %lld", (long long)i,
                               (long long)index_at(indices, i), (long long)-size, (long long)size - 1);
            memcpy(to, from + (size_t)(o * size + k) * bytes, bytes);
        }
    return BW_OK;
}

static bw_status infer_gather_elements(bw_op_infer *c)
{
    int axis;
    bw_status status = bw_op_want(c, 1, BW_WANT_INDEX);
    if (!status)
        status = bw_op_axis(c->err, c->node, bw_node_int(c->node, "axis", 0), c->in[0].rank, 0, &axis);
    if (status)
        return status;
    int fits = c->in[0].rank == c->in[1].rank;
    for (int i = 0; fits && i < c->in[0].rank; i++)
        fits = i == axis || c->in[0].dims[i] < 0 || c->in[1].dims[i] <= c->in[0].dims[i];
    if (!fits)
        return bw_op_fail(c->err, c->node, BW_CORRUPT,
                          "the indices do not fit into the input: expected the same rank "
                          "and sizes at most the input's");
    return bw_op_output(c, 0, c->in[0].dtype, c->in[1].rank, c->in[1].dims);
}

static bw_status run_gather_elements(bw_op_run *r)
{
    const bw_array *x = bw_run_in(r, 0), *indices = bw_run_in(r, 1);
    int axis;
    bw_status status = bw_op_axis(r->err, r->node, bw_node_int(r->node, "axis", 0), x->rank, 0, &axis);
    if (status)
        return status;
    size_t size = bw_dtype_size(x->dtype);
    int64_t strides[BW_RANK_MAX], at[BW_RANK_MAX] = {0};
    bw_strides(x->rank, x->dims, strides);
    char *to = r->out[0].array.data;
    for (int64_t i = 0, n = bw_array_count(indices); i < n; i++, to += size) {
        int64_t k = index_at(indices, i), offset = 0;
        k += k < 0 ? x->dims[axis] : 0;
        if (k < 0 || k >= x->dims[axis])
            return bw_fail(r->err, BW_OUT_OF_RANGE, "index %lld is %lld: expected %lld to %lld", (long long)i,
                           (long long)index_at(indices, i), (long long)-x->dims[axis], (long long)x->dims[axis] - 1);
        for (int d = 0; d < x->rank; d++)
            offset += (d == axis ? k : at[d]) * strides[d];
        memcpy(to, (const char *)x->data + (size_t)offset * size, size);
        for (int d = x->rank - 1; d >= 0; d--) {
            if (++at[d] < indices->dims[d])
                break;
            at[d] = 0;
        }
    }
    return BW_OK;
}

/* --- Pad ---------------------------------------------------------------------------------------------------------- */

/* Spreads the given pads over all axes: pads[0..rank) begins, pads[rank..2*rank) ends. */
static bw_status spread_pads(bw_error *err, const bw_node *n, int rank, const int64_t *given, int count,
                             const int64_t *axes, int axis_count, int64_t *pads)
{
    int covered = axis_count < 0 ? rank : axis_count;
    memset(pads, 0, sizeof *pads * 2 * BW_RANK_MAX);
    if (count != 2 * covered)
        return bw_op_fail(err, n, BW_CORRUPT, "pads has %d entries: expected %d", count, 2 * covered);
    for (int i = 0; i < covered; i++) {
        int axis = i;
        bw_status status = axis_count < 0 ? BW_OK : bw_op_axis(err, n, axes[i], rank, 0, &axis);
        if (status)
            return status;
        pads[axis] = given[i];
        pads[rank + axis] = given[covered + i];
    }
    for (int i = 0; i < 2 * rank; i++)
        if (pads[i] < -((int64_t)1 << 40) || pads[i] > (int64_t)1 << 40)
            return bw_op_fail(err, n, BW_CORRUPT, "pad %lld is out of all proportion", (long long)pads[i]);
    return BW_OK;
}

static bw_status infer_pad(bw_op_infer *c)
{
    const bw_op_info *x = &c->in[0];
    int64_t given[2 * BW_RANK_MAX], axes[BW_RANK_MAX], pads[2 * BW_RANK_MAX], dims[BW_RANK_MAX];
    int count, axis_count;
    const char *mode = bw_node_string(c->node, "mode", "constant");
    bw_ints_found found = bw_op_ints(c, "pads", 1, given, 2 * BW_RANK_MAX, &count);
    bw_ints_found axes_found = bw_op_ints(c, "axes", 3, axes, BW_RANK_MAX, &axis_count);
    if (found == BW_INTS_BAD || axes_found == BW_INTS_BAD)
        return BW_CORRUPT;
    if (found == BW_INTS_ABSENT)
        return bw_op_fail(c->err, c->node, BW_CORRUPT, "no pads: expected an attribute or input 1");
    if (strcmp(mode, "constant") && strcmp(mode, "reflect") && strcmp(mode, "edge"))
        return bw_op_fail(c->err, c->node, BW_UNSUPPORTED, "mode '%s': expected constant, reflect or edge", mode);
    if (c->in_count > 2 && c->in[2].present && c->in[2].dtype != x->dtype)
        return bw_op_fail(c->err, c->node, BW_CORRUPT, "the padding value is %s: expected %s",
                          bw_dtype_name(c->in[2].dtype), bw_dtype_name(x->dtype));
    int vague[2 * BW_RANK_MAX] = {0};
    if (count < 0 || axes_found == BW_INTS_UNKNOWN)
        return bw_op_output_vague(c, x->dtype, x->rank);
    for (int i = 0; found == BW_INTS_UNKNOWN && i < count; i++)
        if (bw_is_mark(given[i])) {
            vague[i] = 1;
            given[i] = 0;
        }
    bw_status status =
        spread_pads(c->err, c->node, x->rank, given, count, axes, axes_found == BW_INTS_ABSENT ? -1 : axis_count, pads);
    if (status)
        return status;
    for (int i = 0; i < x->rank; i++) {
        int64_t size = x->dims[i], begin = pads[i], end = pads[x->rank + i];
        int unclear = size < 0, vague_pads = 0;
        for (int k = 0; k < count; k++)
            vague_pads |= vague[k] && (axes_found == BW_INTS_KNOWN || k % x->rank == i);
        unclear |= vague_pads;
        /* An unknown axis without padding stays what it is. */
        dims[i] = unclear ? -1 : size + begin + end;
        if (size < 0 && !vague_pads && !begin && !end)
            dims[i] = size;
        if (!unclear && dims[i] < 0)
            return bw_op_fail(c->err, c->node, BW_CORRUPT, "axis %d of size %lld is cropped by %lld", i,
                              (long long)size, (long long)-(begin + end));
        if (!unclear && !strcmp(mode, "reflect") && ((begin > 0 && begin >= size) || (end > 0 && end >= size)))
            return bw_op_fail(c->err, c->node, BW_CORRUPT, "axis %d of size %lld cannot reflect pads %lld and %lld", i,
                              (long long)size, (long long)begin, (long long)end);
        if (!unclear && !strcmp(mode, "edge") && size == 0 && dims[i] > 0)
            return bw_op_fail(c->err, c->node, BW_CORRUPT, "axis %d is empty: nothing to repeat", i);
    }
    return bw_op_output(c, 0, x->dtype, x->rank, dims);
}

/* The input position that an output position shows, -1 for the padding value. */
static int64_t pad_source(int64_t at, int64_t begin, int64_t size, char mode)
{
    int64_t i = at - begin;
    if (i >= 0 && i < size)
        return i;
    if (mode == 'c')
        return -1;
    if (mode == 'e')
        return i < 0 ? 0 : size - 1;
    int64_t mirrored = i < 0 ? -i : 2 * (size - 1) - i;
    return mirrored < 0 ? 0 : mirrored >= size ? size - 1 : mirrored; /* crops on the other side only */
}

static bw_status run_pad(bw_op_run *r)
{
    const bw_array *x = bw_run_in(r, 0), *value = bw_run_in(r, 2);
    bw_array *y = &r->out[0].array;
    int64_t given[2 * BW_RANK_MAX], axes[BW_RANK_MAX], pads[2 * BW_RANK_MAX];
    int count, axis_count;
    char mode = *bw_node_string(r->node, "mode", "constant");
    bw_run_ints(r, "pads", 1, given, 2 * BW_RANK_MAX, &count);
    int has_axes = bw_run_ints(r, "axes", 3, axes, BW_RANK_MAX, &axis_count) == BW_INTS_KNOWN;
    bw_status status = spread_pads(r->err, r->node, x->rank, given, count, axes, has_axes ? axis_count : -1, pads);
    if (status)
        return status;
    size_t size = bw_dtype_size(x->dtype);
    uint64_t filler = 0;
    if (value && bw_array_count(value) == 1 && !bw_node_attr(r->node, "value")) {
        memcpy(&filler, value->data, size);
    } else {
        float f = bw_node_float(r->node, "value", 0);
        bw_cast(BW_F32, &f, x->dtype, &filler, 1);
    }
    int64_t strides[BW_RANK_MAX], at[BW_RANK_MAX] = {0}, offset[BW_RANK_MAX];
    bw_strides(x->rank, x->dims, strides);
    int last = x->rank - 1;
    int64_t row = x->rank ? y->dims[last] : 1, rows = x->rank ? bw_array_count(y) / row : 1;
    char *to = y->data;
    if (x->rank == 0) {
        memcpy(to, x->data, size);
        return BW_OK;
    }
    /* The stretch of a row that is copied as it stands. */
    int64_t begin = pads[last], lo = begin > 0 ? begin : 0, hi = begin + x->dims[last];
    hi = hi > row ? row : hi;
    lo = lo > row ? row : lo;
    hi = hi < lo ? lo : hi;
    for (int64_t n = 0; n < rows; n++, to += row * (int64_t)size) {
        int64_t base = 0, inside = 1;
        for (int k = 0; k < last; k++) {
            offset[k] = pad_source(at[k], pads[k], x->dims[k], mode);
            inside = inside && offset[k] >= 0;
            base += offset[k] * strides[k];
        }
        if (!inside || bw_array_count(x) == 0) {
            bw_fill(size, to, row, &filler);
        } else {
            const char *from = (const char *)x->data + base * (int64_t)size;
            for (int64_t i = 0; i < row; i++) {
                if (i == lo && hi > lo) {
                    memcpy(to + i * (int64_t)size, from + (i - begin) * (int64_t)size, (size_t)(hi - lo) * size);
                    i = hi - 1;
                    continue;
                }
                int64_t k = pad_source(i, begin, x->dims[last], mode);
                memcpy(to + i * (int64_t)size, k < 0 ? (const char *)&filler : from + k * (int64_t)size, size);
            }
        }
        for (int k = last - 1; k >= 0; k--) {
            if (++at[k] < y->dims[k])
                break;
            at[k] = 0;
        }
    }
    return BW_OK;
}

/* --- Trilu -------------------------------------------------------------------------------------------------------- */

static bw_status infer_trilu(bw_op_infer *c)
{
    int64_t k;
    int count;
    if (c->in[0].rank < 2)
        return bw_op_fail(c->err, c->node, BW_CORRUPT, "rank %d: expected at least 2", c->in[0].rank);
    if (bw_op_ints(c, "k", 1, &k, 1, &count) == BW_INTS_BAD)
        return BW_CORRUPT;
    return bw_op_output_like(c, 0);
}

static bw_status run_trilu(bw_op_run *r)
{
    const bw_array *x = bw_run_in(r, 0);
    bw_array *y = &r->out[0].array;
    int64_t k = 0, given;
    int count, upper = bw_node_int(r->node, "upper", 1) != 0;
    if (bw_run_ints(r, "k", 1, &given, 1, &count) == BW_INTS_KNOWN && count == 1)
        k = given;
    size_t size = bw_dtype_size(x->dtype);
    int64_t cols = x->dims[x->rank - 1], rows = x->dims[x->rank - 2], all = bw_array_count(x) / cols;
    k = k < -rows ? -rows : k > cols ? cols : k;
    memcpy(y->data, x->data, (size_t)bw_array_count(x) * size);
    for (int64_t i = 0; i < all; i++) {
        int64_t edge = i % rows + k; /* upper keeps columns >= edge, lower keeps columns <= edge */
        int64_t from = upper ? 0 : edge + 1, to = upper ? edge : cols;
        from = from < 0 ? 0 : from;
        to = to > cols ? cols : to;
        if (to > from)
            memset((char *)y->data + (size_t)(i * cols + from) * size, 0, (size_t)(to - from) * size);
    }
    return BW_OK;
}

/* --- CumSum ------------------------------------------------------------------------------------------------------- */

static bw_status infer_cumsum(bw_op_infer *c)
{
    int64_t axis;
    int count, resolved;
    bw_status status = bw_op_want(c, 0, BW_WANT_FLOATS | BW_WANT_INDEX);
    if (status)
        return status;
    bw_ints_found found = bw_op_ints(c, "axis", 1, &axis, 1, &count);
    if (found == BW_INTS_BAD)
        return BW_CORRUPT;
    if (found == BW_INTS_ABSENT || count > 1 || count == 0)
        return bw_op_fail(c->err, c->node, BW_CORRUPT, "axis: expected one integer");
    if (found == BW_INTS_KNOWN && (status = bw_op_axis(c->err, c->node, axis, c->in[0].rank, 0, &resolved)))
        return status;
    return bw_op_output_like(c, 0);
}

#define CUMSUM_LOOP(type, wide)                                                                                        \
    do {                                                                                                               \
        const type *from = (const type *)x->data + o * size * inner + k;                                               \
        type *to = (type *)y->data + o * size * inner + k;                                                             \
        wide sum = 0;                                                                                                  \
        for (int64_t i = 0; i < size; i++) {                                                                           \
            int64_t at = (reverse ? size - 1 - i : i) * inner;                                                         \
            wide before = sum;                                                                                         \
            sum += (wide)from[at];                                                                                     \
            to[at] = (type)(exclusive ? before : sum);                                                                 \
        }                                                                                                              \
    } while (0)

static bw_status run_cumsum(bw_op_run *r)
{
    const bw_array *x = bw_run_in(r, 0);
    bw_array *y = &r->out[0].array;
    int64_t given = 0;
    int count, axis;
    bw_run_ints(r, "axis", 1, &given, 1, &count);
    bw_status status = bw_op_axis(r->err, r->node, given, x->rank, 0, &axis);
    if (status)
        return status;
    int exclusive = bw_node_int(r->node, "exclusive", 0) != 0, reverse = bw_node_int(r->node, "reverse", 0) != 0;
    int64_t outer = bw_dims_product(x->dims, 0, axis), inner = bw_dims_product(x->dims, axis + 1, x->rank);
    int64_t size = x->dims[axis];
    for (int64_t o = 0; o < outer; o++)
        for (int64_t k = 0; k < inner; k++)
            switch (x->dtype) {
            case BW_F32:
                CUMSUM_LOOP(float, float);
                break;
            case BW_F64:
                CUMSUM_LOOP(double, double);
                break;
            case BW_I64:
                CUMSUM_LOOP(int64_t, uint64_t);
                break;
            default:
                CUMSUM_LOOP(int32_t, uint64_t);
            }
    return BW_OK;
}

const bw_op bw_ops_index[] = {
    {"Gather", 2, 2, 1, BW_OP_MOVES, infer_gather, run_gather, NULL},
    {"GatherElements", 2, 2, 1, BW_OP_MOVES, infer_gather_elements, run_gather_elements, NULL},
    {"Pad", 1, 4, 1, BW_OP_MOVES, infer_pad, run_pad, NULL},
    {"Trilu", 1, 2, 1, 0, infer_trilu, run_trilu, NULL},
    {"CumSum", 1, 2, 1, 0, infer_cumsum, run_cumsum, NULL},
    {0},
};
