/* SPDX-License-Identifier: Apache-2.0 */
/* Strides, dilations and padding of convolutions and pools. */
#include <string.h>

#include "host/ops/op.h"

#define WINDOW_MAX ((int64_t)1 << 16) /* of kernel, stride, dilation and padding: oneDNN computes with int */

/* A list of `count` integers within low..WINDOW_MAX, or the default. */
static bw_status read_list(bw_error *err, const bw_node *n, const char *name, int count, int64_t low, int64_t fallback,
                           int64_t *out)
{
    const bw_attr *a = bw_node_attr(n, name);
    if (!a || (a->kind == BW_ATTR_INTS && a->count == 0)) {
        for (int i = 0; i < count; i++)
            out[i] = fallback;
        return BW_OK;
    }
    int fits = a->kind == BW_ATTR_INTS && bw_node_ints(n, name, out, (size_t)count) == (size_t)count;
    for (int i = 0; fits && i < count; i++)
        fits = out[i] >= low && out[i] <= WINDOW_MAX;
    return fits ? BW_OK
                : bw_op_fail(err, n, BW_CORRUPT, "%s: expected %d integers from %lld to %lld", name, count,
                             (long long)low, (long long)WINDOW_MAX);
}

bw_status bw_window_resolve(bw_error *err, const bw_node *n, int axes, const int64_t *in, const int64_t *kernel,
                            bw_window *w)
{
    memset(w, 0, sizeof *w);
    w->axes = axes;
    int64_t pads[2 * BW_SPATIAL_MAX];
    bw_status status = read_list(err, n, "strides", axes, 1, 1, w->stride);
    if (!status)
        status = read_list(err, n, "dilations", axes, 1, 1, w->dilation);
    if (!status)
        status = read_list(err, n, "pads", 2 * axes, 0, 0, pads);
    if (status)
        return status;
    const char *auto_pad = bw_node_string(n, "auto_pad", "NOTSET");
    int same = !strncmp(auto_pad, "SAME", 4), upper = !strcmp(auto_pad, "SAME_UPPER");
    if (strcmp(auto_pad, "NOTSET") && strcmp(auto_pad, "VALID") && !upper && strcmp(auto_pad, "SAME_LOWER"))
        return bw_op_fail(err, n, BW_UNSUPPORTED, "auto_pad '%s': expected NOTSET, VALID, SAME_UPPER or SAME_LOWER",
                          auto_pad);
    int ceil_mode = bw_node_int(n, "ceil_mode", 0) != 0 && !same;
    for (int i = 0; i < axes; i++) {
        w->kernel[i] = kernel[i];
        w->out[i] = -1;
        if (kernel[i] == 0 || kernel[i] > WINDOW_MAX)
            return bw_op_fail(err, n, BW_CORRUPT, "kernel size %lld: expected 1 to %lld", (long long)kernel[i],
                              (long long)WINDOW_MAX);
        if (in[i] > INT32_MAX)
            return bw_op_fail(err, n, BW_OUT_OF_RANGE, "spatial size %lld: expected at most %d", (long long)in[i],
                              INT32_MAX);
        if (!same && *auto_pad != 'V') {
            w->begin[i] = pads[i];
            w->end[i] = pads[axes + i];
        }
        if (in[i] < 0 || kernel[i] < 0)
            continue;
        int64_t reach = (kernel[i] - 1) * w->dilation[i] + 1, s = w->stride[i];
        if (same) {
            w->out[i] = (in[i] + s - 1) / s;
            int64_t total = (w->out[i] - 1) * s + reach - in[i];
            total = total < 0 ? 0 : total;
            w->begin[i] = upper ? total / 2 : total - total / 2;
            w->end[i] = total - w->begin[i];
            continue;
        }
        int64_t span = in[i] + w->begin[i] + w->end[i] - reach;
        if (span < 0 || in[i] == 0)
            return bw_op_fail(err, n, BW_CORRUPT, "spatial size %lld with padding %lld is smaller than the window %lld",
                              (long long)in[i], (long long)(w->begin[i] + w->end[i]), (long long)reach);
        w->out[i] = span / s + 1;
        if (ceil_mode && span % s && w->out[i] * s < in[i] + w->begin[i]) {
            w->out[i]++; /* one more window, if it starts inside the input or its front padding */
            w->overhang[i] = (w->out[i] - 1) * s - span;
        }
    }
    return BW_OK;
}
