/* SPDX-License-Identifier: Apache-2.0 */
/* What the oneDNN operators share. Internal to host/ops. */
#ifndef BW_HOST_OPS_DNNL_H
#define BW_HOST_OPS_DNNL_H

#include <dnnl.h>

#include "host/ops/op.h"

/* Layouts are dnnl_memory_desc_t behind a void pointer. */
void *bw_dnnl_layout_copy(const void *layout); /* NULL: no memory */
int bw_dnnl_same_layout(const void *a, const void *b);
/* Reorders a tensor in a layout to row-major `out`. */
bw_status bw_dnnl_to_plain(const bw_tensor *t, void *out, bw_error *err);

dnnl_engine_t bw_dnnl_engine(void); /* the process's one; NULL if oneDNN cannot make it */
/* BW_OK, or the failure of `what`. */
bw_status bw_dnnl_check(dnnl_status_t status, const char *what, bw_error *err);
/* Row-major fp32. */
void bw_dnnl_plain(dnnl_memory_desc_t *md, int rank, const int64_t *dims);
/* The tensor's layout, or row-major with these dims. */
void bw_dnnl_of_tensor(dnnl_memory_desc_t *md, const bw_tensor *t);

typedef struct bw_dnnl_arg {
    int arg; /* DNNL_ARG_SRC ... */
    const dnnl_memory_desc_t *md;
    void *data;
} bw_dnnl_arg;
bw_status bw_dnnl_execute(dnnl_primitive_t primitive, const bw_dnnl_arg *args, int count, bw_error *err);
bw_status bw_dnnl_reorder(const dnnl_memory_desc_t *from, void *in, const dnnl_memory_desc_t *to, void *out,
                          bw_error *err);
/* Output `index` in the layout `md`; plain when md is the plain layout. */
bw_status bw_dnnl_output(bw_op_run *r, int index, const dnnl_memory_desc_t *md);
/* Input `index` in the layout `md`: its own bytes, or reordered into *temporary (to be given back). */
bw_status bw_dnnl_input(bw_op_run *r, int index, const dnnl_memory_desc_t *md, void **bytes, bw_buffer **temporary);

#endif
