/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a float graph node by node. Before each node its shapes are inferred from the actual inputs; values live in
 * reference-counted buffers that return to a pool after their last use, so that repeated runs allocate nothing.
 */
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "host/graph.h"
#include "host/ops/dnnl.h"
#include "host/ops/op.h"

#define DEFAULT_LIMIT ((size_t)64 << 30)
#define POOL_MAX      64
#define POOL_WASTE    8 /* unused memory kept for later: this part of the largest need */

typedef struct step {
    const bw_op *op;
    void *state;
    unsigned char *last; /* per input: 1 at the value's last use */
    int *release;        /* values to drop after the node */
    int release_count;
} step;

struct bw_executor {
    const bw_graph *g;
    step *steps;
    bw_tensor *tensors; /* per value */
    bw_buffer *
        *filled;      /* per graph input: memory that the caller has filled for the next run; NULL: it lies with him */
    bw_op_info *info; /* room for one node's inputs and outputs */
    bw_tensor **in;
    bw_tensor *out;
    bw_buffer *pool;
    int pool_count;
    size_t pool_bytes, live_bytes, peak_bytes, limit;
    bw_graph *taken_from;     /* the graph, if its weights may be taken; NULL: it keeps them */
    unsigned char *unordered; /* per value: an observer takes its elements in any order; NULL: none */
};

/* --- buffers ------------------------------------------------------------------------------------------------------ */

static void pool_drop(bw_executor *ex, bw_buffer **link)
{
    bw_buffer *b = *link;
    *link = b->next;
    ex->pool_count--;
    ex->pool_bytes -= b->size;
    free(b->data);
    free(b);
}

/* The one unused for longest. */
static bw_buffer **pool_last(bw_executor *ex)
{
    bw_buffer **at = &ex->pool;
    while ((*at)->next)
        at = &(*at)->next;
    return at;
}

/* The smallest pooled buffer that holds `size` without wasting more than it. */
static bw_buffer *pool_take(bw_executor *ex, size_t size)
{
    bw_buffer **best = NULL;
    for (bw_buffer **at = &ex->pool; *at; at = &(*at)->next)
        if ((*at)->size >= size && (*at)->size / 2 <= size && (!best || (*at)->size < (*best)->size))
            best = at;
    if (!best)
        return NULL;
    bw_buffer *b = *best;
    *best = b->next;
    b->next = NULL;
    ex->pool_count--;
    ex->pool_bytes -= b->size;
    return b;
}

/* What is unused makes room for `size` bytes, so that live and pooled memory together stay near what a run has ever
 * needed. */
static void make_room(bw_executor *ex, size_t size)
{
    size_t most = ex->peak_bytes + ex->peak_bytes / POOL_WASTE;
    most = most < ex->limit ? most : ex->limit;
    while (ex->pool && ex->pool_bytes + ex->live_bytes + size > most)
        pool_drop(ex, pool_last(ex));
}

bw_buffer *bw_buffer_get(bw_executor *owner, size_t size, bw_error *err)
{
    if (size > (size_t)1 << 46) {
        bw_fail(err, BW_EXHAUSTED, "a value of %zu bytes is too large", size);
        return NULL;
    }
    size = size ? (size + 63) / 64 * 64 : 64;
    bw_buffer *b = NULL;
    if (owner) {
        if (size > owner->limit || owner->live_bytes > owner->limit - size) {
            bw_fail(err, BW_EXHAUSTED, "a run needs more than %zu bytes for its values: use a smaller batch",
                    owner->limit);
            return NULL;
        }
        if (!(b = pool_take(owner, size)))
            make_room(owner, size);
    }
    if (!b) {
        void *data = NULL;
        if (!(b = calloc(1, sizeof *b)) || posix_memalign(&data, 64, size)) {
            free(b);
            bw_fail(err, BW_NO_MEMORY, "no memory for a value of %zu bytes", size);
            return NULL;
        }
        b->data = data;
        b->size = size;
        b->owner = owner;
    }
    b->references = 1;
    if (owner) {
        owner->live_bytes += b->size;
        owner->peak_bytes = owner->live_bytes > owner->peak_bytes ? owner->live_bytes : owner->peak_bytes;
    }
    return b;
}

bw_buffer *bw_buffer_get_kept(bw_executor *beside, size_t size, bw_error *err)
{
    if (beside)
        make_room(beside, size);
    return bw_buffer_get(NULL, size, err);
}

void bw_buffer_put(bw_buffer *b)
{
    if (!b || --b->references > 0)
        return;
    bw_executor *ex = b->owner;
    if (!ex) {
        free(b->data);
        free(b);
        return;
    }
    ex->live_bytes -= b->size;
    b->next = ex->pool;
    ex->pool = b;
    ex->pool_count++;
    ex->pool_bytes += b->size;
    if (ex->pool_count > POOL_MAX)
        pool_drop(ex, pool_last(ex));
}

void bw_tensor_clear(bw_tensor *t)
{
    bw_buffer_put(t->buffer);
    free(t->layout);
    memset(t, 0, sizeof *t);
}

/* --- what operators call ------------------------------------------------------------------------------------------ */

const bw_array *bw_run_in(const bw_op_run *r, int index)
{
    return index < r->in_count && r->in[index] ? &r->in[index]->array : NULL;
}

static size_t plain_bytes(const bw_array *a)
{
    return (size_t)bw_array_count(a) * bw_dtype_size(a->dtype);
}

bw_status bw_run_alloc(bw_op_run *r, int index)
{
    bw_tensor *t = &r->out[index];
    t->array.bytes = plain_bytes(&t->array);
    if (!(t->buffer = bw_buffer_get(r->executor, t->array.bytes, r->err)))
        return r->err && r->err->status ? r->err->status : BW_NO_MEMORY;
    t->array.data = t->buffer->data;
    return BW_OK;
}

bw_status bw_run_alloc_like(bw_op_run *r, int index, int input)
{
    bw_tensor *from = r->in[input], *t = &r->out[index];
    if (!r->last_use || !r->last_use[input] || !from->buffer || from->buffer->references != 1)
        return from->layout ? bw_run_alloc_layout(r, index, from->layout, from->array.bytes) : bw_run_alloc(r, index);
    if (from->layout && !(t->layout = bw_dnnl_layout_copy(from->layout)))
        return bw_fail(r->err, BW_NO_MEMORY, "no memory for a layout");
    from->buffer->references++;
    t->buffer = from->buffer;
    t->array.bytes = from->array.bytes;
    t->array.data = from->array.data;
    return BW_OK;
}

bw_status bw_run_alias(bw_op_run *r, int index, int input)
{
    bw_tensor *from = r->in[input], *t = &r->out[index];
    if (!from->buffer) { /* a constant or the caller's: borrowed for as long as the run */
        if (r->executor) {
            t->array.bytes = from->array.bytes;
            t->array.data = from->array.data;
            return BW_OK;
        }
        bw_status status = bw_run_alloc(r, index);
        if (!status && t->array.bytes)
            memcpy(t->array.data, from->array.data, t->array.bytes);
        return status;
    }
    from->buffer->references++;
    t->buffer = from->buffer;
    t->array.bytes = plain_bytes(&t->array);
    t->array.data = from->array.data;
    return BW_OK;
}

bw_status bw_run_alloc_layout(bw_op_run *r, int index, const void *layout, size_t bytes)
{
    bw_tensor *t = &r->out[index];
    if (!(t->layout = bw_dnnl_layout_copy(layout)))
        return bw_fail(r->err, BW_NO_MEMORY, "no memory for a layout");
    if (!(t->buffer = bw_buffer_get(r->executor, bytes, r->err)))
        return r->err && r->err->status ? r->err->status : BW_NO_MEMORY;
    t->array.bytes = bytes;
    t->array.data = NULL;
    return BW_OK;
}

void *bw_tensor_bytes(const bw_tensor *t)
{
    return t->layout ? t->buffer->data : t->array.data;
}

/* Brings a tensor from a oneDNN layout to row-major order. */
static bw_status make_plain(bw_executor *ex, bw_tensor *t, bw_error *err)
{
    if (!t->layout)
        return BW_OK;
    bw_buffer *plain = bw_buffer_get(ex, plain_bytes(&t->array), err);
    if (!plain)
        return err && err->status ? err->status : BW_NO_MEMORY;
    bw_status status = bw_dnnl_to_plain(t, plain->data, err);
    if (status) {
        bw_buffer_put(plain);
        return status;
    }
    bw_buffer_put(t->buffer);
    free(t->layout);
    t->layout = NULL;
    t->buffer = plain;
    t->array.data = plain->data;
    t->array.bytes = plain_bytes(&t->array);
    return BW_OK;
}

void bw_run_release_constant(bw_op_run *r, int index)
{
    bw_graph *g = r->executor ? r->executor->taken_from : NULL;
    int v = r->node->inputs[index];
    if (!g || bw_graph_use_count(g, v) != 1 || !g->values[v].constant->owned)
        return;
    free(g->values[v].constant->data);
    g->values[v].constant->data = NULL;
    g->values[v].constant->owned = 0;
    r->in[index]->array.data = NULL;
}

bw_status bw_run_make_plain(bw_op_run *r, int input)
{
    return make_plain(r->executor, r->in[input], r->err);
}

/* Computes one node whose output types and shapes are in `info`. */
static bw_status run_op(const bw_op *op, bw_op_run *r, const bw_op_info *info)
{
    int empty = 1;
    for (int i = 0; i < r->out_count; i++) {
        bw_array *a = &r->out[i].array;
        a->dtype = info[i].dtype;
        a->rank = info[i].rank;
        memcpy(a->dims, info[i].dims, sizeof a->dims);
        empty = empty && bw_array_count(a) == 0;
    }
    if (!(op->flags & BW_OP_ALLOCATES) || empty)
        for (int i = 0; i < r->out_count; i++) {
            bw_status status = bw_run_alloc(r, i);
            if (status)
                return status;
        }
    return empty ? BW_OK : op->run(r);
}

bw_status bw_op_run_once(const bw_op *op, const bw_node *n, const bw_array *const *in, int in_count,
                         const bw_op_info *info, bw_array *out, int out_count, bw_error *err)
{
    bw_error local = {0};
    void *state = NULL;
    bw_tensor *tensors = calloc((size_t)in_count + (size_t)out_count + 1, sizeof *tensors);
    bw_tensor **ptr = calloc((size_t)in_count + 1, sizeof *ptr);
    if (!tensors || !ptr) {
        free(tensors);
        free(ptr);
        return bw_fail(err, BW_NO_MEMORY, "no memory to run '%s'", n->name);
    }
    for (int i = 0; i < in_count; i++)
        if (in[i]) {
            tensors[i].array = *in[i];
            ptr[i] = &tensors[i];
        }
    bw_tensor *outs = tensors + in_count;
    bw_op_run r = {.node = n,
                   .in = ptr,
                   .in_count = in_count,
                   .out = outs,
                   .out_count = out_count,
                   .state = &state,
                   .err = &local};
    bw_status status = run_op(op, &r, info);
    for (int i = 0; i < out_count; i++) {
        if (!status)
            status = make_plain(NULL, &outs[i], &local);
        if (!status) {
            out[i] = outs[i].array;
            out[i].data = outs[i].buffer->data;
            out[i].owned = 1;
            free(outs[i].buffer);
            outs[i].buffer = NULL;
        }
        bw_tensor_clear(&outs[i]);
    }
    if (status)
        for (int i = 0; i < out_count; i++)
            bw_array_free(&out[i]);
    if (state && op->free_state)
        op->free_state(state);
    free(tensors);
    free(ptr);
    return status && err ? (*err = local, status) : status;
}

/* --- the executor ---------------------------------------------------------------------------------------------------
 */

void bw_executor_destroy(bw_executor *ex)
{
    if (!ex)
        return;
    for (int i = 0; ex->steps && i < ex->g->node_count; i++) {
        step *s = &ex->steps[i];
        if (s->state && s->op->free_state)
            s->op->free_state(s->state);
        free(s->last);
        free(s->release);
    }
    for (int i = 0; ex->tensors && i < ex->g->value_count; i++)
        bw_tensor_clear(&ex->tensors[i]);
    for (int i = 0; ex->filled && i < ex->g->input_count; i++)
        bw_buffer_put(ex->filled[i]);
    while (ex->pool)
        pool_drop(ex, &ex->pool);
    free(ex->filled);
    free(ex->unordered);
    free(ex->steps);
    free(ex->tensors);
    free(ex->info);
    free(ex->in);
    free(ex->out);
    free(ex);
}

void bw_executor_set_memory_limit(bw_executor *ex, size_t bytes)
{
    ex->limit = bytes;
}

void bw_executor_trim(bw_executor *ex, size_t bytes)
{
    while (ex->pool && ex->pool_bytes > bytes)
        pool_drop(ex, pool_last(ex));
}

void bw_executor_take_weights(bw_executor *ex, bw_graph *g)
{
    ex->taken_from = g == ex->g ? g : NULL;
}

size_t bw_executor_peak_bytes(const bw_executor *ex)
{
    return ex->peak_bytes;
}

bw_status bw_executor_observe_unordered(bw_executor *ex, const unsigned char *values, bw_error *err)
{
    size_t count = (size_t)ex->g->value_count;
    unsigned char *copy = malloc(count + 1);
    if (!copy)
        return bw_fail(err, BW_NO_MEMORY, "no memory for the executor of '%s'", ex->g->name);
    memcpy(copy, values, count);
    free(ex->unordered);
    ex->unordered = copy;
    return BW_OK;
}

/* Finds each value's last use, and refuses a graph whose order is wrong. */
static bw_status plan(bw_executor *ex, int *last, bw_error *err)
{
    const bw_graph *g = ex->g;
    for (int v = 0; v < g->value_count; v++)
        last[v] = g->values[v].constant ? -1 : -2; /* -2: not defined yet */
    for (int i = 0; i < g->input_count; i++)
        last[g->inputs[i]] = -1;
    for (int i = 0; i < g->node_count; i++) {
        const bw_node *n = &g->nodes[i];
        if (!n->op)
            return bw_fail(err, BW_CORRUPT, "graph '%s' has removed nodes: sort it first", g->name);
        for (int k = 0; k < n->input_count; k++) {
            int v = n->inputs[k];
            if (v >= 0 && last[v] == -2)
                return bw_fail(err, BW_CORRUPT, "node '%s' (%s) reads value '%s' before it is computed", n->name, n->op,
                               g->values[v].name);
            if (v >= 0)
                last[v] = i;
        }
        for (int k = 0; k < n->output_count; k++) {
            int v = n->outputs[k];
            if (v >= 0 && last[v] != -2)
                return bw_fail(err, BW_CORRUPT, "node '%s' (%s) writes value '%s' a second time", n->name, n->op,
                               g->values[v].name);
            if (v >= 0)
                last[v] = i;
        }
    }
    for (int i = 0; i < g->output_count; i++) {
        if (last[g->outputs[i]] == -2)
            return bw_fail(err, BW_CORRUPT, "graph output '%s' is defined by nothing", g->values[g->outputs[i]].name);
        last[g->outputs[i]] = g->node_count;
    }
    for (int i = 0; i < g->node_count; i++) {
        const bw_node *n = &g->nodes[i];
        step *s = &ex->steps[i];
        s->last = calloc((size_t)n->input_count + 1, 1);
        s->release = malloc(sizeof *s->release * ((size_t)n->input_count + (size_t)n->output_count + 1));
        if (!s->last || !s->release)
            return bw_fail(err, BW_NO_MEMORY, "no memory for the executor of '%s'", g->name);
        for (int k = 0; k < n->input_count + n->output_count; k++) {
            int v = k < n->input_count ? n->inputs[k] : n->outputs[k - n->input_count];
            if (v < 0 || last[v] != i)
                continue;
            if (k < n->input_count)
                s->last[k] = 1;
            s->release[s->release_count++] = v; /* twice is harmless */
        }
    }
    return BW_OK;
}

bw_status bw_executor_create(const bw_graph *g, bw_executor **out, bw_error *err)
{
    *out = NULL;
    size_t widest = 1;
    for (int i = 0; i < g->node_count; i++)
        if ((size_t)g->nodes[i].input_count + (size_t)g->nodes[i].output_count > widest)
            widest = (size_t)g->nodes[i].input_count + (size_t)g->nodes[i].output_count;
    bw_executor *ex = calloc(1, sizeof *ex);
    int *last = malloc(sizeof *last * ((size_t)g->value_count + 1));
    bw_status status = BW_OK;
    if (ex) {
        ex->g = g;
        ex->limit = DEFAULT_LIMIT;
        ex->steps = calloc((size_t)g->node_count + 1, sizeof *ex->steps);
        ex->tensors = calloc((size_t)g->value_count + 1, sizeof *ex->tensors);
        ex->filled = calloc((size_t)g->input_count + 1, sizeof *ex->filled);
        ex->info = calloc(widest, sizeof *ex->info);
        ex->in = calloc(widest, sizeof *ex->in);
        ex->out = calloc(widest, sizeof *ex->out);
    }
    if (!ex || !last || !ex->steps || !ex->tensors || !ex->filled || !ex->info || !ex->in || !ex->out)
        status = bw_fail(err, BW_NO_MEMORY, "no memory for the executor of '%s'", g->name);
    if (!status)
        status = plan(ex, last, err);
    for (int i = 0; i < g->node_count && !status; i++)
        status = bw_op_check_node(&g->nodes[i], &ex->steps[i].op, err);
    free(last);
    if (status) {
        bw_executor_destroy(ex);
        return status;
    }
    *out = ex;
    return BW_OK;
}

void *bw_executor_input(bw_executor *ex, int index, size_t bytes, bw_error *err)
{
    bw_buffer_put(ex->filled[index]);
    ex->filled[index] = bw_buffer_get(ex, bytes, err);
    return ex->filled[index] ? ex->filled[index]->data : NULL;
}

static bw_status take_inputs(bw_executor *ex, const bw_array *inputs, bw_error *err)
{
    const bw_graph *g = ex->g;
    for (int i = 0; i < g->input_count; i++) {
        const bw_value *v = &g->values[g->inputs[i]];
        const bw_array *a = &inputs[i];
        char got[128], want[128];
        if (a->dtype != v->dtype)
            return bw_fail(err, BW_INVALID_ARGUMENT, "input '%s' is %s: expected %s", v->name, bw_dtype_name(a->dtype),
                           bw_dtype_name(v->dtype));
        int fits = a->rank >= 0 && a->rank <= BW_RANK_MAX && (v->rank < 0 || v->rank == a->rank);
        for (int k = 0; fits && k < a->rank; k++)
            fits = a->dims[k] >= 0 && (v->rank < 0 || v->dims[k] < 0 || v->dims[k] == a->dims[k]);
        int64_t count = fits ? bw_dims_product(a->dims, 0, a->rank) : -1;
        if (count < 0)
            return bw_fail(err, BW_INVALID_ARGUMENT, "input '%s' has shape %s: expected %s (-1: any)", v->name,
                           bw_dims_text(a->rank < 0 || a->rank > BW_RANK_MAX ? 0 : a->rank, a->dims, got),
                           bw_dims_text(v->rank < 0 ? 0 : v->rank, v->dims, want));
        size_t bytes = (size_t)count * bw_dtype_size(a->dtype);
        if (a->bytes < bytes || (bytes && !a->data))
            return bw_fail(err, BW_INVALID_ARGUMENT, "input '%s' has %zu bytes: expected %zu", v->name, a->bytes,
                           bytes);
        ex->tensors[g->inputs[i]].array = *a;
        ex->tensors[g->inputs[i]].array.owned = 0;
        ex->tensors[g->inputs[i]].array.bytes = bytes;
        if (ex->filled[i] && a->data == ex->filled[i]->data) {
            ex->tensors[g->inputs[i]].buffer = ex->filled[i];
            ex->filled[i] = NULL;
        }
    }
    for (int v = 0; v < g->value_count; v++)
        if (g->values[v].constant) {
            ex->tensors[v].array = *g->values[v].constant;
            ex->tensors[v].array.owned = 0;
            ex->tensors[v].constant = 1;
        }
    return BW_OK;
}

static bw_status run_node(bw_executor *ex, int node, int observed, bw_error *err)
{
    const bw_node *n = &ex->g->nodes[node];
    step *s = &ex->steps[node];
    bw_op_info *in = ex->info, *out = ex->info + n->input_count;
    bw_status status = BW_OK;
    for (int i = 0; i < n->input_count; i++) {
        bw_tensor *t = n->inputs[i] < 0 ? NULL : &ex->tensors[n->inputs[i]];
        ex->in[i] = t;
        memset(&in[i], 0, sizeof in[i]);
        if (!t)
            continue;
        if (!(s->op->flags & BW_OP_LAYOUTS) && (status = make_plain(ex, t, err)))
            return status;
        in[i].present = 1;
        in[i].dtype = t->array.dtype;
        in[i].rank = t->array.rank;
        memcpy(in[i].dims, t->array.dims, sizeof in[i].dims);
        in[i].value = t->layout ? NULL : &t->array;
    }
    memset(out, 0, sizeof *out * (size_t)n->output_count);
    memset(ex->out, 0, sizeof *ex->out * (size_t)n->output_count);
    bw_op_infer c = {n, in, n->input_count, out, n->output_count, err};
    if ((status = s->op->infer(&c)))
        return status;
    for (int i = 0; i < n->output_count; i++)
        if (out[i].rank < 0 || bw_dims_product(out[i].dims, 0, out[i].rank) < 0)
            return bw_op_fail(err, n, BW_CORRUPT, "output %d has no definite shape", i);
    bw_op_run r = {n, ex->in, n->input_count, ex->out, n->output_count, &s->state, ex, s->last, observed, err};
    status = run_op(s->op, &r, out);
    for (int i = 0; i < n->output_count; i++) {
        if (status || n->outputs[i] < 0)
            bw_tensor_clear(&ex->out[i]);
        else
            ex->tensors[n->outputs[i]] = ex->out[i];
    }
    return status ? bw_fail_context(err, status, "node '%s' (%s)", n->name, n->op) : BW_OK;
}

/* Hands a value to the caller: its own memory when nobody else needs it, else a copy. */
static bw_status give_output(bw_executor *ex, int index, bw_array *out, bw_error *err)
{
    const bw_graph *g = ex->g;
    bw_tensor *t = &ex->tensors[g->outputs[index]];
    bw_status status = make_plain(ex, t, err);
    int again = 0;
    for (int k = index + 1; k < g->output_count; k++)
        again |= g->outputs[k] == g->outputs[index];
    if (status)
        return status;
    bw_buffer *b = t->buffer;
    if (b && b->references == 1 && !again && b->data == t->array.data) {
        *out = t->array;
        out->owned = 1;
        ex->live_bytes -= b->size;
        free(b);
        memset(t, 0, sizeof *t);
        return BW_OK;
    }
    if ((status = bw_array_alloc(out, t->array.dtype, t->array.rank, t->array.dims, err)))
        return status;
    if (out->bytes)
        memcpy(out->data, t->array.data, out->bytes);
    return BW_OK;
}

/* What the observer sees of a value: a layout without padding as it lies, where that is asked for, else row-major. */
static bw_status show(bw_executor *ex, int value, bw_array *seen, bw_error *err)
{
    bw_tensor *t = &ex->tensors[value];
    if (t->layout && ex->unordered && ex->unordered[value] && t->array.bytes == plain_bytes(&t->array)) {
        *seen = t->array;
        seen->data = t->buffer->data;
        seen->owned = 0;
        return BW_OK;
    }
    bw_status status = make_plain(ex, t, err);
    *seen = t->array;
    return status;
}

bw_status bw_executor_run(bw_executor *ex, const bw_array *inputs, bw_array *outputs,
                          int (*observe)(int value, const bw_array *array, void *user), void *user, bw_error *err)
{
    bw_error local = {0};
    const bw_graph *g = ex->g;
    bw_status status = take_inputs(ex, inputs, &local);
    for (int i = 0; i < g->node_count && !status; i++) {
        const bw_node *n = &g->nodes[i];
        status = run_node(ex, i, observe != NULL, &local);
        for (int k = 0; k < n->output_count && observe && !status; k++) {
            int v = n->outputs[k];
            if (v < 0)
                continue;
            bw_array seen;
            status = show(ex, v, &seen, &local);
            if (!status && observe(v, &seen, user))
                status = bw_fail(&local, BW_CANCELLED, "the observer ended the run at value '%s'", g->values[v].name);
        }
        for (int k = 0; k < ex->steps[i].release_count && !status; k++)
            bw_tensor_clear(&ex->tensors[ex->steps[i].release[k]]);
    }
    int given = 0;
    for (; given < g->output_count && !status; given++)
        status = give_output(ex, given, &outputs[given], &local);
    for (int i = 0; status && i < given; i++)
        bw_array_free(&outputs[i]);
    for (int v = 0; v < g->value_count; v++)
        bw_tensor_clear(&ex->tensors[v]);
    if (status && err)
        *err = local;
    return status;
}
