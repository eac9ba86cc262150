/* SPDX-License-Identifier: Apache-2.0 */
/* oneDNN's engine, layouts and the execution of its primitives. */
#include "host/ops/dnnl.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static dnnl_engine_t engine;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void make_engine(void)
{
    if (dnnl_engine_create(&engine, dnnl_cpu, 0) != dnnl_success)
        engine = NULL;
}

dnnl_engine_t bw_dnnl_engine(void)
{
    pthread_once(&once, make_engine);
    return engine;
}

bw_status bw_dnnl_check(dnnl_status_t status, const char *what, bw_error *err)
{
    switch (status) {
    case dnnl_success:
        return BW_OK;
    case dnnl_out_of_memory:
        return bw_fail(err, BW_NO_MEMORY, "oneDNN has no memory for %s", what);
    case dnnl_unimplemented:
    case dnnl_invalid_arguments:
        return bw_fail(err, BW_UNSUPPORTED, "oneDNN cannot do %s of this shape", what);
    default:
        return bw_fail(err, BW_INTERNAL, "oneDNN failed with status %d in %s", (int)status, what);
    }
}

void bw_dnnl_plain(dnnl_memory_desc_t *md, int rank, const int64_t *dims)
{
    dnnl_dims_t d = {1}, s;
    int n = rank ? rank : 1;
    for (int i = 0; i < rank; i++)
        d[i] = dims[i];
    bw_strides(n, d, s);
    dnnl_memory_desc_init_by_strides(md, n, d, dnnl_f32, s);
}

void bw_dnnl_of_tensor(dnnl_memory_desc_t *md, const bw_tensor *t)
{
    if (t->layout)
        *md = *(const dnnl_memory_desc_t *)t->layout;
    else
        bw_dnnl_plain(md, t->array.rank, t->array.dims);
}

void *bw_dnnl_layout_copy(const void *layout)
{
    dnnl_memory_desc_t *copy = malloc(sizeof *copy);
    if (copy)
        *copy = *(const dnnl_memory_desc_t *)layout;
    return copy;
}

int bw_dnnl_same_layout(const void *a, const void *b)
{
    return dnnl_memory_desc_equal(a, b);
}

bw_status bw_dnnl_execute(dnnl_primitive_t primitive, const bw_dnnl_arg *args, int count, bw_error *err)
{
    dnnl_exec_arg_t list[8];
    dnnl_stream_t stream = NULL;
    int made = 0;
    dnnl_status_t status = dnnl_stream_create(&stream, bw_dnnl_engine(), dnnl_stream_default_flags);
    for (; made < count && status == dnnl_success; made++) {
        list[made].arg = args[made].arg;
        list[made].memory = NULL;
        status = dnnl_memory_create(&list[made].memory, args[made].md, bw_dnnl_engine(), args[made].data);
    }
    if (status == dnnl_success)
        status = dnnl_primitive_execute(primitive, stream, count, list);
    if (status == dnnl_success)
        status = dnnl_stream_wait(stream);
    for (int i = 0; i < made; i++)
        dnnl_memory_destroy(list[i].memory);
    dnnl_stream_destroy(stream);
    return bw_dnnl_check(status, "the execution", err);
}

bw_status bw_dnnl_reorder(const dnnl_memory_desc_t *from, void *in, const dnnl_memory_desc_t *to, void *out,
                          bw_error *err)
{
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_t p = NULL;
    dnnl_engine_t e = bw_dnnl_engine();
    dnnl_status_t status = dnnl_reorder_primitive_desc_create(&pd, from, e, to, e, NULL);
    if (status == dnnl_success)
        status = dnnl_primitive_create(&p, pd);
    bw_status result = bw_dnnl_check(status, "a reorder", err);
    bw_dnnl_arg args[2] = {{DNNL_ARG_FROM, from, in}, {DNNL_ARG_TO, to, out}};
    if (!result)
        result = bw_dnnl_execute(p, args, 2, err);
    dnnl_primitive_destroy(p);
    dnnl_primitive_desc_destroy(pd);
    return result;
}

bw_status bw_dnnl_to_plain(const bw_tensor *t, void *out, bw_error *err)
{
    dnnl_memory_desc_t plain;
    bw_dnnl_plain(&plain, t->array.rank, t->array.dims);
    return bw_dnnl_reorder(t->layout, t->buffer->data, &plain, out, err);
}

bw_status bw_dnnl_output(bw_op_run *r, int index, const dnnl_memory_desc_t *md)
{
    dnnl_memory_desc_t plain;
    bw_dnnl_plain(&plain, r->out[index].array.rank, r->out[index].array.dims);
    if (dnnl_memory_desc_equal(&plain, md))
        return bw_run_alloc(r, index);
    return bw_run_alloc_layout(r, index, md, dnnl_memory_desc_get_size(md));
}

bw_status bw_dnnl_input(bw_op_run *r, int index, const dnnl_memory_desc_t *md, void **bytes, bw_buffer **temporary)
{
    dnnl_memory_desc_t own;
    bw_dnnl_of_tensor(&own, r->in[index]);
    *temporary = NULL;
    *bytes = bw_tensor_bytes(r->in[index]);
    if (dnnl_memory_desc_equal(&own, md))
        return BW_OK;
    bw_buffer *b = bw_buffer_get(r->executor, dnnl_memory_desc_get_size(md), r->err);
    if (!b)
        return r->err && r->err->status ? r->err->status : BW_NO_MEMORY;
    bw_status status = bw_dnnl_reorder(&own, *bytes, md, b->data, r->err);
    if (status) {
        bw_buffer_put(b);
        return status;
    }
    *bytes = b->data;
    *temporary = b;
    return BW_OK;
}
