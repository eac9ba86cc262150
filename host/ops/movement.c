/* SPDX-License-Identifier: Apache-2.0 */
/* Operators that reshape, join, cut and permute. They work on every element type. */
#include <string.h>

#include "host/ops/op.h"

static bw_status infer_same(bw_op_infer *c)
{
    return bw_op_output_like(c, 0);
}

static bw_status run_alias(bw_op_run *r)
{
    return bw_run_alias(r, 0, 0);
}

/* --- Reshape, Flatten, Squeeze, Unsqueeze ---------------------------------------------------------------------------
 */

static bw_status infer_reshape(bw_op_infer *c)
{
    int64_t shape[BW_RANK_MAX], dims[BW_RANK_MAX];
    int rank;
    bw_ints_found found = bw_op_ints(c, "shape", 1, shape, BW_RANK_MAX, &rank);
    if (found == BW_INTS_BAD)
        return BW_CORRUPT;
    if (found == BW_INTS_ABSENT)
        return bw_op_fail(c->err, c->node, BW_CORRUPT, "no shape: expected an attribute or input 1");
    if (rank < 0)
        return bw_op_fail(c->err, c->node, BW_UNSUPPORTED, "the rank of the result depends on data");
    const bw_op_info *x = &c->in[0];
    int keep_zero = bw_node_int(c->node, "allowzero", 0) != 0;
    int inferred = -1, vague = 0;
    for (int i = 0; i < rank; i++) {
        dims[i] = shape[i];
        if (found == BW_INTS_UNKNOWN && bw_is_mark(shape[i])) {
            dims[i] = bw_mark_to_dim(shape[i]);
            vague++;
        } else if (shape[i] == 0 && !keep_zero) {
            if (i >= x->rank)
                return bw_op_fail(c->err, c->node, BW_CORRUPT,
                                  "entry %d of the shape copies a dimension that the "
                                  "input has not (rank %d)",
                                  i, x->rank);
            dims[i] = x->dims[i];
        } else if (shape[i] == -1) {
            if (inferred >= 0)
                return bw_op_fail(c->err, c->node, BW_CORRUPT, "the shape has two entries -1: expected one");
            inferred = i;
        } else if (shape[i] < 0) {
            return bw_op_fail(c->err, c->node, BW_CORRUPT, "entry %d of the shape is %lld: expected a size, 0 or -1", i,
                              (long long)shape[i]);
        }
    }
    /* Dimensions copied at their own place cancel, so that an unknown batch does not hide the others. */
    int64_t have = 1, want = 1;
    int have_unknown = 0, want_unknown = 0, batches = 0, have_batch = 0;
    for (int i = 0; i < x->rank || i < rank; i++) {
        int copied = i < rank && i < x->rank && shape[i] == 0 && !keep_zero;
        if (copied && x->dims[i] != 0)
            continue;
        if (i < x->rank) {
            have_unknown += x->dims[i] < 0;
            batches += x->dims[i] == BW_DIM_BATCH;
            have_batch |= x->dims[i] == BW_DIM_BATCH;
            if (x->dims[i] >= 0 && __builtin_mul_overflow(have, x->dims[i], &have))
                return bw_op_fail(c->err, c->node, BW_OUT_OF_RANGE, "the input is too large");
        }
        if (i < rank && i != inferred) {
            want_unknown += dims[i] < 0;
            batches -= dims[i] == BW_DIM_BATCH;
            if (dims[i] >= 0 && __builtin_mul_overflow(want, dims[i], &want))
                return bw_op_fail(c->err, c->node, BW_OUT_OF_RANGE, "the shape is too large");
        }
    }
    if (have_unknown == 1 && want_unknown == 1 && have_batch && batches == 0)
        have_unknown = want_unknown = 0; /* the batch on both sides */
    if (!have_unknown && !want_unknown) {
        if (inferred >= 0 ? (want == 0 ? have != 0 : have % want != 0) : have != want) {
            char a[128], b[128];
            return bw_op_fail(c->err, c->node, BW_CORRUPT, "input of shape %s does not fit into %s",
                              bw_dims_text(x->rank, x->dims, a), bw_dims_text(rank, shape, b));
        }
        if (inferred >= 0)
            dims[inferred] = want ? have / want : 0;
    } else if (!have_unknown && vague == 1 && inferred < 0 && want > 0 && have % want == 0) {
        for (int i = 0; i < rank; i++) /* one unknown entry and nothing else unknown: it follows */
            if (dims[i] < 0)
                dims[i] = have / want;
    }
    return bw_op_output(c, 0, x->dtype, rank, dims);
}

static bw_status infer_flatten(bw_op_infer *c)
{
    int axis;
    bw_status status = bw_op_axis(c->err, c->node, bw_node_int(c->node, "axis", 1), c->in[0].rank, 2, &axis);
    if (status)
        return status;
    int64_t dims[2] = {bw_dims_product(c->in[0].dims, 0, axis), bw_dims_product(c->in[0].dims, axis, c->in[0].rank)};
    return bw_op_output(c, 0, c->in[0].dtype, 2, dims);
}

static bw_status infer_squeeze(bw_op_infer *c)
{
    int64_t axes[BW_RANK_MAX], dims[BW_RANK_MAX];
    int count, drop[BW_RANK_MAX] = {0}, rank = 0;
    bw_ints_found found = bw_op_ints(c, "axes", 1, axes, BW_RANK_MAX, &count);
    if (found == BW_INTS_BAD)
        return BW_CORRUPT;
    if (found == BW_INTS_UNKNOWN)
        return bw_op_output_vague(c, c->in[0].dtype, count < 0 ? -1 : c->in[0].rank - count);
    for (int i = 0; i < count; i++) {
        int axis;
        bw_status status = bw_op_axis(c->err, c->node, axes[i], c->in[0].rank, 0, &axis);
        if (status)
            return status;
        if (c->in[0].dims[axis] != 1 && c->in[0].dims[axis] >= 0)
            return bw_op_fail(c->err, c->node, BW_CORRUPT, "axis %d has size %lld: expected 1", axis,
                              (long long)c->in[0].dims[axis]);
        if (drop[axis]++)
            return bw_op_fail(c->err, c->node, BW_CORRUPT, "axis %d is listed twice", axis);
    }
    for (int i = 0; i < c->in[0].rank; i++)
        if (found == BW_INTS_ABSENT ? c->in[0].dims[i] != 1 : !drop[i])
            dims[rank++] = c->in[0].dims[i];
    return bw_op_output(c, 0, c->in[0].dtype, rank, dims);
}

static bw_status infer_unsqueeze(bw_op_infer *c)
{
    int64_t axes[BW_RANK_MAX], dims[BW_RANK_MAX];
    int count, added[BW_RANK_MAX] = {0};
    bw_ints_found found = bw_op_ints(c, "axes", 1, axes, BW_RANK_MAX, &count);
    if (found == BW_INTS_BAD)
        return BW_CORRUPT;
    if (found == BW_INTS_ABSENT)
        return bw_op_fail(c->err, c->node, BW_CORRUPT, "no axes: expected an attribute or input 1");
    if (found == BW_INTS_UNKNOWN)
        return bw_op_output_vague(c, c->in[0].dtype, count < 0 ? -1 : c->in[0].rank + count);
    int rank = c->in[0].rank + count;
    if (rank > BW_RANK_MAX)
        return bw_op_fail(c->err, c->node, BW_UNSUPPORTED, "the result has rank %d: expected at most %d", rank,
                          BW_RANK_MAX);
    for (int i = 0; i < count; i++) {
        int axis;
        bw_status status = bw_op_axis(c->err, c->node, axes[i], rank, 0, &axis);
        if (status)
            return status;
        if (added[axis]++)
            return bw_op_fail(c->err, c->node, BW_CORRUPT, "axis %d is listed twice", axis);
    }
    for (int i = 0, from = 0; i < rank; i++)
        dims[i] = added[i] ? 1 : c->in[0].dims[from++];
    return bw_op_output(c, 0, c->in[0].dtype, rank, dims);
}

/* --- Transpose ------------------------------------------------------------------------------------------------------
 */

static bw_status permutation(bw_error *err, const bw_node *n, int rank, int *perm)
{
    int64_t p[BW_RANK_MAX];
    size_t count = bw_node_ints(n, "perm", p, BW_RANK_MAX);
    int seen[BW_RANK_MAX] = {0};
    if (!bw_node_attr(n, "perm")) {
        for (int i = 0; i < rank; i++)
            perm[i] = rank - 1 - i;
        return BW_OK;
    }
    int fits = count == (size_t)rank;
    for (int i = 0; fits && i < rank; i++) {
        int64_t axis = p[i] < 0 ? p[i] + rank : p[i];
        fits = axis >= 0 && axis < rank && !seen[axis]++;
        perm[i] = (int)axis;
    }
    return fits ? BW_OK : bw_op_fail(err, n, BW_CORRUPT, "perm: expected a permutation of 0 to %d", rank - 1);
}

static bw_status infer_transpose(bw_op_infer *c)
{
    int perm[BW_RANK_MAX];
    int64_t dims[BW_RANK_MAX];
    bw_status status = permutation(c->err, c->node, c->in[0].rank, perm);
    for (int i = 0; !status && i < c->in[0].rank; i++)
        dims[i] = c->in[0].dims[perm[i]];
    return status ? status : bw_op_output(c, 0, c->in[0].dtype, c->in[0].rank, dims);
}

static bw_status run_transpose(bw_op_run *r)
{
    const bw_array *x = bw_run_in(r, 0);
    bw_array *y = &r->out[0].array;
    int perm[BW_RANK_MAX];
    int64_t own[BW_RANK_MAX], from[BW_RANK_MAX], to[BW_RANK_MAX];
    bw_status status = permutation(r->err, r->node, x->rank, perm);
    if (status)
        return status;
    bw_strides(x->rank, x->dims, own);
    bw_strides(y->rank, y->dims, to);
    for (int i = 0; i < x->rank; i++)
        from[i] = own[perm[i]];
    bw_copy_strided(bw_dtype_size(x->dtype), y->rank, y->dims, y->data, to, x->data, from);
    return BW_OK;
}

/* --- Concat, Split ---------------------------------------------------------------------------------------------------
 */

static bw_status infer_concat(bw_op_infer *c)
{
    const bw_op_info *first = &c->in[0];
    int axis;
    const bw_attr *a = bw_node_attr(c->node, "axis");
    if (!a || a->kind != BW_ATTR_INT)
        return bw_op_fail(c->err, c->node, BW_CORRUPT, "no axis: expected an integer attribute");
    bw_status status = bw_op_axis(c->err, c->node, a->i, first->rank, 0, &axis);
    if (status)
        return status;
    int64_t dims[BW_RANK_MAX];
    memcpy(dims, first->dims, sizeof dims);
    for (int i = 1; i < c->in_count; i++) {
        const bw_op_info *x = &c->in[i];
        int fits = x->present && x->rank == first->rank && x->dtype == first->dtype;
        for (int k = 0; fits && k < x->rank; k++) {
            if (k == axis)
                dims[k] = dims[k] < 0 || x->dims[k] < 0 ? -1 : dims[k] + x->dims[k];
            else if (dims[k] < 0)
                dims[k] = x->dims[k] == -1 ? dims[k] : x->dims[k];
            else
                fits = x->dims[k] < 0 || x->dims[k] == dims[k];
        }
        if (!fits || dims[axis] > (int64_t)1 << 46)
            return bw_op_fail(c->err, c->node, BW_CORRUPT,
                              "input %d: expected type, rank and sizes of input 0 except "
                              "on axis %d",
                              i, axis);
    }
    return bw_op_output(c, 0, first->dtype, first->rank, dims);
}

static bw_status run_concat(bw_op_run *r)
{
    bw_array *y = &r->out[0].array;
    int axis;
    bw_status status = bw_op_axis(r->err, r->node, bw_node_int(r->node, "axis", 0), y->rank, 0, &axis);
    if (status)
        return status;
    size_t size = bw_dtype_size(y->dtype);
    int64_t to[BW_RANK_MAX], from[BW_RANK_MAX];
    bw_strides(y->rank, y->dims, to);
    char *at = y->data;
    for (int i = 0; i < r->in_count; i++) {
        const bw_array *x = bw_run_in(r, i);
        bw_strides(x->rank, x->dims, from);
        bw_copy_strided(size, x->rank, x->dims, at, to, x->data, from);
        at += x->dims[axis] * to[axis] * (int64_t)size;
    }
    return BW_OK;
}

#define PARTS 1024

/* Sizes of the parts along the axis; all -1 when the axis is unknown and the parts equal. */
static bw_status split_sizes(bw_error *err, const bw_node *n, bw_ints_found found, int given, int64_t size, int parts,
                             int64_t *sizes)
{
    if (found == BW_INTS_KNOWN) {
        int64_t sum = 0;
        int fits = given == parts;
        for (int i = 0; fits && i < parts; i++) {
            fits = sizes[i] >= 0 && sizes[i] <= (int64_t)1 << 46;
            sum += fits ? sizes[i] : 0;
        }
        if (!fits || (size >= 0 && sum != size))
            return bw_op_fail(err, n, BW_CORRUPT, "split: expected %d sizes that add up to %lld", parts,
                              (long long)size);
        return BW_OK;
    }
    int64_t chunk = size < 0 ? -1 : (size + parts - 1) / parts;
    for (int i = 0; i < parts; i++) {
        int64_t left = size - chunk * i;
        sizes[i] = size < 0 || found == BW_INTS_UNKNOWN ? -1 : left < 0 ? 0 : left < chunk ? left : chunk;
    }
    return BW_OK;
}

static bw_status infer_split(bw_op_infer *c)
{
    int axis, count;
    int64_t sizes[PARTS], dims[BW_RANK_MAX];
    bw_status status = bw_op_axis(c->err, c->node, bw_node_int(c->node, "axis", 0), c->in[0].rank, 0, &axis);
    if (status)
        return status;
    bw_ints_found found = bw_op_ints(c, "split", 1, sizes, PARTS, &count);
    if (found == BW_INTS_BAD)
        return BW_CORRUPT;
    memcpy(dims, c->in[0].dims, sizeof dims);
    status = split_sizes(c->err, c->node, found, count, dims[axis], c->out_count, sizes);
    for (int i = 0; i < c->out_count && !status; i++) {
        dims[axis] = sizes[i];
        status = bw_op_output(c, i, c->in[0].dtype, c->in[0].rank, dims);
    }
    return status;
}

static bw_status run_split(bw_op_run *r)
{
    const bw_array *x = bw_run_in(r, 0);
    int axis;
    bw_status status = bw_op_axis(r->err, r->node, bw_node_int(r->node, "axis", 0), x->rank, 0, &axis);
    if (status)
        return status;
    size_t size = bw_dtype_size(x->dtype);
    int64_t to[BW_RANK_MAX], from[BW_RANK_MAX];
    bw_strides(x->rank, x->dims, from);
    const char *at = x->data;
    for (int i = 0; i < r->out_count; i++) {
        bw_array *y = &r->out[i].array;
        bw_strides(y->rank, y->dims, to);
        bw_copy_strided(size, y->rank, y->dims, y->data, to, at, from);
        at += y->dims[axis] * from[axis] * (int64_t)size;
    }
    return BW_OK;
}

/* --- Slice -------------------------------------------------------------------------------------------------------- */

typedef struct slice {
    int64_t start[BW_RANK_MAX], step[BW_RANK_MAX];
} slice;

/* Resolves one axis of known size: where it starts and how many elements it takes. */
static int64_t slice_axis(int64_t size, int64_t start, int64_t end, int64_t step, int64_t *from)
{
    int64_t low = step < 0 ? -1 : 0, high = step < 0 ? size - 1 : size;
    start = start < 0 ? (start < -size ? low : start + size) : start;
    end = end < 0 ? (end < -size ? low : end + size) : end;
    start = start < low ? low : start > high ? high : start;
    end = end < low ? low : end > high ? high : end;
    *from = start;
    if (step > 0)
        return end > start ? (end - start - 1) / step + 1 : 0;
    /* 0 - (uint64) so that INT64_MIN has an absolute value. */
    return start > end ? (int64_t)((uint64_t)(start - end - 1) / (0 - (uint64_t)step)) + 1 : 0;
}

static bw_status infer_slice(bw_op_infer *c)
{
    int64_t starts[BW_RANK_MAX], ends[BW_RANK_MAX], axes[BW_RANK_MAX], steps[BW_RANK_MAX], dims[BW_RANK_MAX];
    int n_starts, n_ends, n_axes, n_steps, rank = c->in[0].rank, seen[BW_RANK_MAX] = {0};
    bw_ints_found f_starts = bw_op_ints(c, "starts", 1, starts, BW_RANK_MAX, &n_starts);
    bw_ints_found f_ends = bw_op_ints(c, "ends", 2, ends, BW_RANK_MAX, &n_ends);
    bw_ints_found f_axes = bw_op_ints(c, "axes", 3, axes, BW_RANK_MAX, &n_axes);
    bw_ints_found f_steps = bw_op_ints(c, "steps", 4, steps, BW_RANK_MAX, &n_steps);
    if (f_starts == BW_INTS_BAD || f_ends == BW_INTS_BAD || f_axes == BW_INTS_BAD || f_steps == BW_INTS_BAD)
        return BW_CORRUPT;
    if (f_starts == BW_INTS_ABSENT || f_ends == BW_INTS_ABSENT)
        return bw_op_fail(c->err, c->node, BW_CORRUPT, "no starts or ends: expected attributes or inputs 1 and 2");
    memcpy(dims, c->in[0].dims, sizeof dims);
    if (f_axes == BW_INTS_UNKNOWN || n_starts < 0) /* any axis may change */
        return bw_op_output_vague(c, c->in[0].dtype, rank);
    if (n_starts > rank || (n_ends >= 0 && n_ends != n_starts) || (f_axes == BW_INTS_KNOWN && n_axes != n_starts) ||
        (f_steps != BW_INTS_ABSENT && n_steps >= 0 && n_steps != n_starts))
        return bw_op_fail(c->err, c->node, BW_CORRUPT,
                          "starts, ends, axes, steps have %d, %d, %d, %d entries: expected "
                          "equal numbers, at most %d",
                          n_starts, n_ends, n_axes, n_steps, rank);
    for (int i = 0; i < n_starts; i++) {
        int axis = i;
        bw_status status = f_axes == BW_INTS_KNOWN ? bw_op_axis(c->err, c->node, axes[i], rank, 0, &axis) : BW_OK;
        if (status)
            return status;
        if (seen[axis]++)
            return bw_op_fail(c->err, c->node, BW_CORRUPT, "axis %d is listed twice", axis);
        int64_t step = f_steps == BW_INTS_ABSENT ? 1 : n_steps < 0 ? BW_UNKNOWN : steps[i], from;
        if (step == 0)
            return bw_op_fail(c->err, c->node, BW_CORRUPT, "step %d is 0: expected another number", i);
        int known = (f_starts == BW_INTS_KNOWN || !bw_is_mark(starts[i])) &&
                    (f_ends == BW_INTS_KNOWN || (n_ends >= 0 && !bw_is_mark(ends[i]))) &&
                    (f_steps != BW_INTS_UNKNOWN || !bw_is_mark(step));
        /* The whole of an unknown axis is that axis. */
        int whole = known && starts[i] == 0 && step == 1 && ends[i] >= INT32_MAX;
        if (!whole)
            dims[axis] = known && dims[axis] >= 0 ? slice_axis(dims[axis], starts[i], ends[i], step, &from) : -1;
    }
    return bw_op_output(c, 0, c->in[0].dtype, rank, dims);
}

static bw_status run_slice(bw_op_run *r)
{
    const bw_array *x = bw_run_in(r, 0);
    bw_array *y = &r->out[0].array;
    int64_t starts[BW_RANK_MAX], ends[BW_RANK_MAX], axes[BW_RANK_MAX], steps[BW_RANK_MAX];
    int count, ignored;
    bw_run_ints(r, "starts", 1, starts, BW_RANK_MAX, &count);
    bw_run_ints(r, "ends", 2, ends, BW_RANK_MAX, &ignored);
    int has_axes = bw_run_ints(r, "axes", 3, axes, BW_RANK_MAX, &ignored) == BW_INTS_KNOWN;
    int has_steps = bw_run_ints(r, "steps", 4, steps, BW_RANK_MAX, &ignored) == BW_INTS_KNOWN;
    size_t size = bw_dtype_size(x->dtype);
    int64_t from[BW_RANK_MAX], to[BW_RANK_MAX], offset = 0;
    bw_strides(x->rank, x->dims, from);
    bw_strides(y->rank, y->dims, to);
    for (int i = 0; i < count; i++) {
        int axis = i;
        bw_status status = has_axes ? bw_op_axis(r->err, r->node, axes[i], x->rank, 0, &axis) : BW_OK;
        if (status)
            return status;
        int64_t first, step = has_steps ? steps[i] : 1;
        slice_axis(x->dims[axis], starts[i], ends[i], step, &first);
        offset += first * from[axis];
        from[axis] *= y->dims[axis] > 1 ? step : 1; /* a single element's huge step must not overflow */
    }
    bw_copy_strided(size, y->rank, y->dims, y->data, to, (const char *)x->data + offset * (int64_t)size, from);
    return BW_OK;
}

/* --- Expand, Tile ------------------------------------------------------------------------------------------------- */

static bw_status infer_expand(bw_op_infer *c)
{
    int64_t shape[BW_RANK_MAX], dims[BW_RANK_MAX];
    int count, rank;
    bw_ints_found found = bw_op_ints(c, "shape", 1, shape, BW_RANK_MAX, &count);
    if (found == BW_INTS_BAD)
        return BW_CORRUPT;
    if (found == BW_INTS_ABSENT || count < 0)
        return bw_op_fail(c->err, c->node, BW_UNSUPPORTED, "the rank of the result depends on data");
    for (int i = 0; i < count; i++) {
        if (found == BW_INTS_UNKNOWN && bw_is_mark(shape[i]))
            shape[i] = bw_mark_to_dim(shape[i]);
        else if (shape[i] == -1 && found == BW_INTS_KNOWN)
            shape[i] = 1; /* as exporters mean it: keep the input's size */
        else if (shape[i] < 0)
            return bw_op_fail(c->err, c->node, BW_CORRUPT, "entry %d of the shape is %lld: expected a size", i,
                              (long long)shape[i]);
    }
    if (bw_broadcast(c->in[0].rank, c->in[0].dims, count, shape, &rank, dims))
        return bw_op_fail(c->err, c->node, BW_CORRUPT, "the input's shape does not broadcast with the one asked for");
    return bw_op_output(c, 0, c->in[0].dtype, rank, dims);
}

static bw_status run_expand(bw_op_run *r)
{
    const bw_array *x = bw_run_in(r, 0);
    bw_array *y = &r->out[0].array;
    int64_t from[BW_RANK_MAX], to[BW_RANK_MAX];
    bw_broadcast_strides(x->rank, x->dims, y->rank, y->dims, from);
    bw_strides(y->rank, y->dims, to);
    bw_copy_strided(bw_dtype_size(x->dtype), y->rank, y->dims, y->data, to, x->data, from);
    return BW_OK;
}

static bw_status infer_tile(bw_op_infer *c)
{
    int64_t repeats[BW_RANK_MAX], dims[BW_RANK_MAX];
    int count;
    bw_ints_found found = bw_op_ints(c, "repeats", 1, repeats, BW_RANK_MAX, &count);
    if (found == BW_INTS_BAD)
        return BW_CORRUPT;
    if (found == BW_INTS_ABSENT || (count >= 0 && count != c->in[0].rank))
        return bw_op_fail(c->err, c->node, BW_CORRUPT, "repeats: expected %d entries", c->in[0].rank);
    for (int i = 0; i < c->in[0].rank; i++) {
        int known = count >= 0 && (found == BW_INTS_KNOWN || !bw_is_mark(repeats[i]));
        if (known && (repeats[i] < 0 || repeats[i] > (int64_t)1 << 40))
            return bw_op_fail(c->err, c->node, BW_CORRUPT, "repeat %d is %lld: expected a count", i,
                              (long long)repeats[i]);
        dims[i] = known && repeats[i] == 1 ? c->in[0].dims[i] : -1;
        if (known && c->in[0].dims[i] >= 0 && __builtin_mul_overflow(c->in[0].dims[i], repeats[i], &dims[i]))
            return bw_op_fail(c->err, c->node, BW_OUT_OF_RANGE, "repeat %d is too large", i);
    }
    return bw_op_output(c, 0, c->in[0].dtype, c->in[0].rank, dims);
}

static bw_status run_tile(bw_op_run *r)
{
    const bw_array *x = bw_run_in(r, 0);
    bw_array *y = &r->out[0].array;
    /* The output seen as [repeat, size] pairs; at most 8 + 1 dimensions in one copy, so the first axis is looped. */
    size_t size = bw_dtype_size(x->dtype);
    int64_t own[BW_RANK_MAX], to[BW_RANK_MAX], at[BW_RANK_MAX] = {0}, count = 1;
    bw_strides(x->rank, x->dims, own);
    bw_strides(y->rank, y->dims, to);
    for (int i = 0; i < x->rank; i++)
        count *= y->dims[i] / x->dims[i];
    for (int64_t n = 0; n < count; n++) {
        int64_t offset = 0;
        for (int i = 0; i < x->rank; i++)
            offset += at[i] * x->dims[i] * to[i];
        bw_copy_strided(size, x->rank, x->dims, (char *)y->data + offset * (int64_t)size, to, x->data, own);
        for (int k = x->rank - 1; k >= 0; k--) {
            if (++at[k] < y->dims[k] / x->dims[k])
                break;
            at[k] = 0;
        }
    }
    return BW_OK;
}

/* --- DepthToSpace, SpaceToDepth ----------------------------------------------------------------------------------- */

static bw_status infer_space(bw_op_infer *c)
{
    int64_t b = bw_node_int(c->node, "blocksize", 0), d[BW_RANK_MAX];
    const bw_op_info *x = &c->in[0];
    int deep = !strcmp(c->node->op, "DepthToSpace");
    if (b < 1 || b > 1 << 15 || x->rank != 4)
        return bw_op_fail(c->err, c->node, BW_CORRUPT, "blocksize %lld, rank %d: expected a positive size and rank 4",
                          (long long)b, x->rank);
    memcpy(d, x->dims, sizeof d);
    int fits = deep ? d[1] < 0 || d[1] % (b * b) == 0 : (d[2] < 0 || d[2] % b == 0) && (d[3] < 0 || d[3] % b == 0);
    if (!fits || d[1] > INT32_MAX || d[2] > INT32_MAX || d[3] > INT32_MAX)
        return bw_op_fail(c->err, c->node, BW_CORRUPT, "blocksize %lld does not divide the input", (long long)b);
    d[1] = d[1] < 0 ? -1 : deep ? d[1] / (b * b) : d[1] * b * b;
    for (int i = 2; i < 4; i++)
        d[i] = d[i] < 0 ? -1 : deep ? d[i] * b : d[i] / b;
    return bw_op_output(c, 0, x->dtype, 4, d);
}

static bw_status run_space(bw_op_run *r)
{
    const bw_array *x = bw_run_in(r, 0);
    bw_array *y = &r->out[0].array;
    int64_t b = bw_node_int(r->node, "blocksize", 1);
    int deep = !strcmp(r->node->op, "DepthToSpace");
    int crd = !strcmp(bw_node_string(r->node, "mode", "DCR"), "CRD");
    const bw_array *wide = deep ? y : x; /* the one with the large pictures */
    int64_t n = wide->dims[0], ch = wide->dims[1], h = wide->dims[2] / b, w = wide->dims[3] / b;
    /* Index order: n, c, h, by, w, bx. */
    int64_t dims[6] = {n, ch, h, b, w, b}, plane = h * w;
    int64_t big[6] = {ch * h * b * w * b, h * b * w * b, b * w * b, w * b, b, 1};
    int64_t deep_c = crd ? b * b * plane : plane, deep_by = crd ? b * plane : b * ch * plane;
    int64_t deep_bx = crd ? plane : ch * plane;
    int64_t small[6] = {ch * b * b * plane, deep_c, w, deep_by, 1, deep_bx};
    bw_copy_strided(bw_dtype_size(x->dtype), 6, dims, y->data, deep ? big : small, x->data, deep ? small : big);
    return BW_OK;
}

const bw_op bw_ops_movement[] = {
    {"Identity", 1, 1, 1, BW_OP_ALLOCATES | BW_OP_MOVES, infer_same, run_alias, NULL},
    {"Dropout", 1, 3, 1, BW_OP_ALLOCATES | BW_OP_MOVES, infer_same, run_alias, NULL},
    {"Reshape", 1, 2, 1, BW_OP_ALLOCATES | BW_OP_MOVES, infer_reshape, run_alias, NULL},
    {"Flatten", 1, 1, 1, BW_OP_ALLOCATES | BW_OP_MOVES, infer_flatten, run_alias, NULL},
    {"Squeeze", 1, 2, 1, BW_OP_ALLOCATES | BW_OP_MOVES, infer_squeeze, run_alias, NULL},
    {"Unsqueeze", 1, 2, 1, BW_OP_ALLOCATES | BW_OP_MOVES, infer_unsqueeze, run_alias, NULL},
    {"Transpose", 1, 1, 1, BW_OP_MOVES, infer_transpose, run_transpose, NULL},
    {"Concat", 1, 1024, 1, BW_OP_MOVES, infer_concat, run_concat, NULL},
    {"Split", 1, 2, PARTS, BW_OP_MOVES, infer_split, run_split, NULL},
    {"Slice", 1, 5, 1, BW_OP_MOVES, infer_slice, run_slice, NULL},
    {"Expand", 1, 2, 1, BW_OP_MOVES, infer_expand, run_expand, NULL},
    {"Tile", 1, 2, 1, BW_OP_MOVES, infer_tile, run_tile, NULL},
    {"DepthToSpace", 1, 1, 1, 0, infer_space, run_space, NULL},
    {"SpaceToDepth", 1, 1, 1, 0, infer_space, run_space, NULL},
    {0},
};
