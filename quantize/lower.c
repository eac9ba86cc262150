/* SPDX-License-Identifier: Apache-2.0 */
/* Lowering: the nodes of one accelerator stage become chains over values; activations, residual additions and
 * per-channel shifts fuse into the chain before them where nobody else sees the value in between. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "quantize/lower.h"

static const bw_geometry unit_geometry = {{1, 1}, {1, 1}, {1, 1}, {0, 0}};

static bw_status no_memory(bw_error *err)
{
    return bw_fail(err, BW_NO_MEMORY, "out of memory while lowering a stage");
}

int bw_ir_add_value(bw_ir *ir, int64_t h, int64_t w, int64_t c)
{
    if (ir->value_count == ir->value_capacity) {
        int capacity = ir->value_capacity ? ir->value_capacity * 2 : 64;
        bw_ir_value *more = realloc(ir->values, (size_t)capacity * sizeof *more);
        if (!more)
            return -1;
        ir->values = more;
        ir->value_capacity = capacity;
    }
    bw_ir_value *v = &ir->values[ir->value_count];
    *v = (bw_ir_value){.value = -1, .h = h, .w = w, .c = c, .physical = c, .producer = -1, .input = -1, .output = -1};
    for (int f = 0; f < BW_FORMS; f++)
        v->forms[f] = (bw_ir_form){.parent = -1, .span = -1};
    return ir->value_count++;
}

static void op_clear(bw_ir_op *op)
{
    free(op->bias);
    free(op->scale);
    free(op->map);
    free(op->parts);
    op->bias = op->scale = NULL;
    op->map = op->parts = NULL;
}

int bw_ir_insert_op(bw_ir *ir, int at, int opcode, int in, int out)
{
    if (ir->op_count == ir->op_capacity) {
        int capacity = ir->op_capacity ? ir->op_capacity * 2 : 64;
        bw_ir_op *more = realloc(ir->ops, (size_t)capacity * sizeof *more);
        if (!more)
            return -1;
        ir->ops = more;
        ir->op_capacity = capacity;
    }
    memmove(&ir->ops[at + 1], &ir->ops[at], (size_t)(ir->op_count - at) * sizeof *ir->ops);
    ir->op_count++;
    for (int v = 0; v < ir->value_count; v++)
        ir->values[v].producer += ir->values[v].producer >= at;
    ir->ops[at] = (bw_ir_op){
        .opcode = opcode, .in = in, .in2 = -1, .out = out, .geo = unit_geometry, .groups = 1, .merged = 1, .node = -1};
    ir->values[out].producer = at;
    return at;
}

void bw_ir_free(bw_ir *ir)
{
    for (int i = 0; i < ir->op_count; i++)
        op_clear(&ir->ops[i]);
    for (int i = 0; i < ir->value_count; i++)
        free(ir->values[i].map);
    free(ir->ops);
    free(ir->values);
    free(ir->of_value);
    *ir = (bw_ir){0};
}

/* What the stage being lowered knows besides the IR. */
struct lowering {
    bw_ir *ir;
    const bw_match *m; /* of the node at hand */
    int node;
    bw_error *err;
};

static int add_value_for(struct lowering *l, int value)
{
    bw_shape s;
    if (!bw_lower_shape(l->ir->g, value, &s))
        return -1;
    int v = bw_ir_add_value(l->ir, s.h, s.w, s.c);
    if (v >= 0) {
        l->ir->values[v].value = value;
        l->ir->of_value[value] = v;
    }
    return v;
}

static int append(struct lowering *l, int opcode, int in, int out)
{
    if (out < 0)
        return -1;
    int op = bw_ir_insert_op(l->ir, l->ir->op_count, opcode, in, out);
    if (op >= 0)
        l->ir->ops[op].node = l->node;
    return op;
}

/* The op that computes `value`, if nobody but one consumer sees it; -1 otherwise. */
static int sole_op(const struct lowering *l, int value)
{
    const bw_ir *ir = l->ir;
    int v = ir->of_value[value];
    if (v < 0 || ir->values[v].shared || bw_graph_use_count(ir->g, value) != 1)
        return -1;
    return ir->values[v].producer;
}

static int is_matrix(const bw_ir_op *op)
{
    return op->opcode == BW_OP_CONV || op->opcode == BW_OP_DWCONV;
}

static float *bias_of(const bw_weights *w)
{
    float *bias = malloc((size_t)w->outputs * sizeof *bias);
    for (int64_t i = 0; bias && i < w->outputs; i++)
        bias[i] = w->bias[w->bias_count == 1 ? 0 : i] * w->bias_scale;
    return bias;
}

/* A copy of `in` in natural channel order, or through a map (taken over). -1 when out of memory. */
static int copy_value(struct lowering *l, int in, int64_t channels, int32_t *map)
{
    const bw_ir_value *x = &l->ir->values[in];
    int out = bw_ir_add_value(l->ir, x->h, x->w, channels);
    int op = append(l, BW_OP_COPY, in, out);
    if (op < 0) {
        free(map);
        return -1;
    }
    l->ir->ops[op].map = map;
    return out;
}

/* The convolution's input with the groups laid out for the instruction; sets groups and merged. */
static int group_input(struct lowering *l, int in, int out_value, int64_t *groups, int64_t *merged)
{
    const bw_weights *w = &l->m->w;
    const bw_geometry *geo = &l->m->geo;
    const bw_ir_value *x = &l->ir->values[in];
    bw_shape o;
    bw_lower_shape(l->ir->g, out_value, &o);
    const bw_grouped g = {.channels = w->group_channels,
                          .groups = w->groups,
                          .outputs = w->outputs,
                          .taps = geo->kernel[0] * geo->kernel[1],
                          .pixels_in = x->h * x->w,
                          .pixels_out = o.h * o.w,
                          .mapped = x->map != NULL,
                          .block = x->block};
    const bw_group_layout layout = bw_blocks_of_groups(l->ir->recipe, &g);
    *groups = layout.groups;
    *merged = layout.merged;
    int64_t each = layout.units * layout.block, channels = layout.groups * each;
    if (layout.copied && each == layout.merged * w->group_channels) {
        in = copy_value(l, in, channels, NULL);
    } else if (layout.copied) {
        int32_t *map = channels <= 1048576 ? malloc((size_t)channels * sizeof *map) : NULL;
        if (!map)
            return -1;
        for (int64_t i = 0; i < channels; i++)
            map[i] = i % each < w->group_channels ? (int32_t)(i / each * w->group_channels + i % each) : -1;
        in = copy_value(l, in, channels, map);
    }
    if (in >= 0)
        l->ir->values[in].block = layout.block;
    return in;
}

static bw_status lower_depthwise(struct lowering *l, int in, int out_value)
{
    const bw_weights *w = &l->m->w;
    int64_t times = w->outputs / w->groups;
    if (times > 1) { /* channel multiplier: each input channel several times */
        int32_t *map = malloc((size_t)w->outputs * sizeof *map);
        if (!map)
            return no_memory(l->err);
        for (int64_t c = 0; c < w->outputs; c++)
            map[c] = (int32_t)(c / times);
        in = copy_value(l, in, w->outputs, map);
    }
    int op = in < 0 ? -1 : append(l, BW_OP_DWCONV, in, add_value_for(l, out_value));
    if (op < 0)
        return no_memory(l->err);
    l->ir->ops[op].geo = l->m->geo;
    l->ir->ops[op].w = *w;
    if (w->bias && !(l->ir->ops[op].bias = bias_of(w)))
        return no_memory(l->err);
    return BW_OK;
}

static bw_status lower_conv(struct lowering *l, int out_value)
{
    bw_ir *ir = l->ir;
    const bw_weights *w = &l->m->w;
    int in = ir->of_value[l->m->in];
    if (w->groups > 1 && w->group_channels == 1)
        return lower_depthwise(l, in, out_value);
    bw_geometry geo = l->m->geo;
    int64_t groups = 1, merged = 1, block = ir->recipe->block, taps = geo.kernel[0] * geo.kernel[1];
    int patched = 0;
    if (w->groups > 1) {
        in = group_input(l, in, out_value, &groups, &merged);
    } else if (!ir->recipe->no_patches && ir->values[in].input >= 0 && taps > 1 &&
               2 * ((taps * w->group_channels + block - 1) / block) <=
                   taps * ((w->group_channels + block - 1) / block)) {
        /* Few input channels would leave most of each block empty: gather the patches into the channel axis. */
        bw_shape o;
        bw_lower_shape(ir->g, out_value, &o);
        int patches = bw_ir_add_value(ir, o.h, o.w, taps * w->group_channels);
        int op = append(l, BW_OP_PATCH, in, patches);
        if (op < 0)
            return no_memory(l->err);
        ir->ops[op].geo = geo;
        in = patches;
        patched = 1;
    }
    int op = in < 0 ? -1 : append(l, BW_OP_CONV, in, add_value_for(l, out_value));
    if (op < 0)
        return no_memory(l->err);
    bw_ir_op *conv = &ir->ops[op];
    conv->source = geo;
    conv->geo = patched ? unit_geometry : geo;
    conv->patched = patched;
    conv->groups = groups;
    conv->merged = merged;
    conv->w = *w;
    if (w->bias && !(conv->bias = bias_of(w)))
        return no_memory(l->err);
    return BW_OK;
}

/* A fully connected layer is a convolution whose kernel is its whole input; flattened inputs are in C, H, W order. */
static bw_status lower_gemm(struct lowering *l, int out_value)
{
    bw_ir *ir = l->ir;
    int in = ir->of_value[l->m->in];
    int64_t h = ir->values[in].h, w = ir->values[in].w;
    int op = append(l, BW_OP_CONV, in, add_value_for(l, out_value));
    if (op < 0)
        return no_memory(l->err);
    bw_ir_op *conv = &ir->ops[op];
    conv->geo.kernel[0] = h;
    conv->geo.kernel[1] = w;
    conv->source = conv->geo;
    conv->w = l->m->w;
    conv->w.group_channels = ir->values[in].c;
    conv->w.sx = l->m->w.sc;
    conv->w.sy = l->m->w.sc * w;
    conv->w.sc = l->m->w.sc * w * h;
    if (conv->w.bias && !(conv->bias = bias_of(&conv->w)))
        return no_memory(l->err);
    return BW_OK;
}

static int limits_to_activation(float lo, float hi, bw_ir_op *op)
{
    if (lo == -INFINITY && hi == INFINITY)
        return 1;
    if (lo == 0 && hi == INFINITY) {
        op->activation = BW_ACT_RELU;
        return 1;
    }
    op->activation = BW_ACT_CLIP;
    op->lo = lo == -INFINITY ? -0x1.fffffep127f : lo;
    op->hi = hi == INFINITY ? 0x1.fffffep127f : hi;
    return 1;
}

static bw_status lower_act(struct lowering *l, int out_value)
{
    bw_ir *ir = l->ir;
    int op = sole_op(l, l->m->in), v = ir->of_value[l->m->in];
    if (op >= 0 && ir->ops[op].activation == BW_ACT_NONE && ir->ops[op].opcode != BW_IR_CONCAT &&
        ir->ops[op].opcode != BW_OP_PATCH) {
        ir->of_value[out_value] = v;
        ir->values[v].value = out_value;
    } else {
        op = append(l, BW_OP_COPY, v, add_value_for(l, out_value));
        if (op < 0)
            return no_memory(l->err);
    }
    limits_to_activation(l->m->lo, l->m->hi, &ir->ops[op]);
    return BW_OK;
}

/* Moves an op to the end: its only consumer is the node at hand. Returns its new place. */
static int move_to_end(bw_ir *ir, int at)
{
    bw_ir_op op = ir->ops[at];
    memmove(&ir->ops[at], &ir->ops[at + 1], (size_t)(ir->op_count - at - 1) * sizeof op);
    ir->ops[ir->op_count - 1] = op;
    for (int v = 0; v < ir->value_count; v++)
        ir->values[v].producer -= ir->values[v].producer > at;
    ir->values[op.out].producer = ir->op_count - 1;
    return ir->op_count - 1;
}

static bw_status lower_binary(struct lowering *l, int out_value)
{
    bw_ir *ir = l->ir;
    int a = l->m->in, b = l->m->in2;
    if (l->m->kind == BW_MATCH_ADD) {
        int op_a = sole_op(l, a), op_b = sole_op(l, b);
        int fit_a = op_a >= 0 && is_matrix(&ir->ops[op_a]) && ir->ops[op_a].in2 < 0 && !ir->ops[op_a].activation;
        int fit_b = op_b >= 0 && is_matrix(&ir->ops[op_b]) && ir->ops[op_b].in2 < 0 && !ir->ops[op_b].activation;
        /* Of two candidates the later one: the earlier ends the shorter path. */
        if (fit_a || fit_b) {
            int take_a = fit_a && (!fit_b || op_a > op_b);
            int op = move_to_end(ir, take_a ? op_a : op_b);
            ir->ops[op].in2 = ir->of_value[take_a ? b : a];
            ir->of_value[out_value] = ir->ops[op].out;
            ir->values[ir->ops[op].out].value = out_value;
            return BW_OK;
        }
    }
    int op =
        append(l, l->m->kind == BW_MATCH_ADD ? BW_OP_ADD : BW_OP_MUL, ir->of_value[a], add_value_for(l, out_value));
    if (op < 0)
        return no_memory(l->err);
    ir->ops[op].in2 = ir->of_value[b];
    return BW_OK;
}

static bw_status lower_affine(struct lowering *l, int out_value)
{
    bw_ir *ir = l->ir;
    const bw_match *m = l->m;
    int op = sole_op(l, m->in), v = ir->of_value[m->in];
    if (!m->w.data && m->w.scale == 1 && op >= 0 && is_matrix(&ir->ops[op]) && !ir->ops[op].bias &&
        ir->ops[op].in2 < 0 && !ir->ops[op].activation) { /* a shift becomes the bias */
        if (!(ir->ops[op].bias = bias_of(&m->w)))
            return no_memory(l->err);
        ir->of_value[out_value] = v;
        ir->values[v].value = out_value;
        return BW_OK;
    }
    op = append(l, BW_OP_DWCONV, v, add_value_for(l, out_value));
    if (op < 0)
        return no_memory(l->err);
    bw_ir_op *dw = &ir->ops[op];
    dw->w = m->w;
    dw->scale = malloc((size_t)m->w.outputs * sizeof *dw->scale);
    if (!dw->scale || (m->w.bias && !(dw->bias = bias_of(&m->w))))
        return no_memory(l->err);
    for (int64_t c = 0; c < m->w.outputs; c++) {
        float f = m->w.data ? m->w.data[c * m->w.sn] : 1;
        dw->scale[c] = (m->reciprocal ? 1 / f : f) * m->w.scale;
    }
    return BW_OK;
}

static bw_status lower_pool(struct lowering *l, int out_value)
{
    int op = append(l, l->m->kind == BW_MATCH_MAXPOOL ? BW_OP_MAXPOOL : BW_OP_AVGPOOL, l->ir->of_value[l->m->in],
                    add_value_for(l, out_value));
    if (op < 0)
        return no_memory(l->err);
    l->ir->ops[op].geo = l->m->geo;
    l->ir->ops[op].count_pad = l->m->count_pad;
    return BW_OK;
}

static bw_status lower_concat(struct lowering *l, int out_value)
{
    bw_ir *ir = l->ir;
    const bw_node *n = &ir->g->nodes[l->node];
    int *parts = malloc((size_t)n->input_count * sizeof *parts);
    for (int i = 0; parts && i < n->input_count; i++)
        parts[i] = ir->of_value[n->inputs[i]];
    int op = parts ? append(l, BW_IR_CONCAT, ir->of_value[n->inputs[0]], add_value_for(l, out_value)) : -1;
    if (op < 0) {
        free(parts);
        return no_memory(l->err);
    }
    ir->ops[op].parts = parts;
    ir->ops[op].part_count = n->input_count;
    bw_ir_value *out = &ir->values[ir->ops[op].out];
    out->block = bw_blocks_of_parts(ir, parts, n->input_count);
    int64_t block = out->block, physical = 0;
    int dense = 1;
    for (int i = 0; i < n->input_count; i++) {
        const bw_ir_value *part = &ir->values[parts[i]];
        dense &= !part->map && (part->c % block == 0 || i == n->input_count - 1);
        physical += (part->physical + block - 1) / block * block;
    }
    if (dense)
        return BW_OK;
    /* Each part starts a block of its own: the consumers' weights take that order. */
    out->physical = physical;
    out->map = malloc((size_t)physical * sizeof *out->map);
    if (!out->map)
        return no_memory(l->err);
    int64_t at = 0, first = 0;
    for (int i = 0; i < n->input_count; i++) {
        const bw_ir_value *part = &ir->values[parts[i]];
        int64_t room = (part->physical + block - 1) / block * block;
        for (int64_t c = 0; c < room; c++) {
            int64_t from = c >= part->physical ? -1 : part->map ? part->map[c] : c;
            out->map[at + c] = from < 0 ? -1 : (int32_t)(first + from);
        }
        at += room;
        first += part->c;
    }
    return BW_OK;
}

static bw_status lower_window(struct lowering *l, int out_value)
{
    bw_ir *ir = l->ir;
    const bw_match *m = l->m;
    int in = ir->of_value[m->in];
    bw_shape out;
    bw_lower_shape(ir->g, out_value, &out);
    int64_t channels_in = ir->values[in].c;
    int moves = m->geo.origin[0] || m->geo.origin[1] || m->geo.stride[0] != 1 || m->geo.stride[1] != 1 ||
                out.h != ir->values[in].h || out.w != ir->values[in].w;
    int maps = m->channel_start || m->channel_step != 1 || out.c != channels_in;
    if (moves) {
        int v = maps ? bw_ir_add_value(ir, out.h, out.w, channels_in) : add_value_for(l, out_value);
        int op = append(l, m->count_pad ? BW_OP_DWCONV : BW_OP_MAXPOOL, in, v);
        if (op < 0)
            return no_memory(l->err);
        bw_ir_op *step = &ir->ops[op];
        step->geo = m->geo;
        if (m->count_pad) { /* outside the input a depthwise convolution reads zeros: x * 1 */
            step->w =
                (bw_weights){.outputs = channels_in, .groups = channels_in, .group_channels = 1, .name = "padding"};
            step->scale = malloc((size_t)channels_in * sizeof *step->scale);
            if (!step->scale)
                return no_memory(l->err);
            for (int64_t c = 0; c < channels_in; c++)
                step->scale[c] = 1;
        }
        in = v;
    }
    if (maps) {
        int32_t *map = malloc((size_t)out.c * sizeof *map);
        int op = map ? append(l, BW_OP_COPY, in, add_value_for(l, out_value)) : -1;
        if (op < 0) {
            free(map);
            return no_memory(l->err);
        }
        for (int64_t c = 0; c < out.c; c++) {
            int64_t from = m->channel_start + c * m->channel_step;
            map[c] = from >= 0 && from < channels_in ? (int32_t)from : -1;
        }
        ir->ops[op].map = map;
    }
    if (!moves && !maps && append(l, BW_OP_COPY, in, add_value_for(l, out_value)) < 0)
        return no_memory(l->err);
    return BW_OK;
}

static bw_status lower_split(struct lowering *l)
{
    bw_ir *ir = l->ir;
    const bw_node *n = &ir->g->nodes[l->node];
    int64_t first = 0;
    for (int i = 0; i < n->output_count; i++) {
        int v = add_value_for(l, n->outputs[i]);
        int64_t channels = v < 0 ? 0 : ir->values[v].c;
        int32_t *map = v < 0 ? NULL : malloc((size_t)channels * sizeof *map);
        int op = map ? append(l, BW_OP_COPY, ir->of_value[l->m->in], v) : -1;
        if (op < 0) {
            free(map);
            return no_memory(l->err);
        }
        for (int64_t c = 0; c < channels; c++)
            map[c] = (int32_t)(first + c);
        ir->ops[op].map = map;
        first += channels;
    }
    return BW_OK;
}

static bw_status lower_shuffle(struct lowering *l, int out_value)
{
    bw_ir *ir = l->ir;
    int in = ir->of_value[l->m->in];
    int64_t channels = ir->values[in].c, groups = l->m->groups, per = channels / groups;
    int32_t *map = malloc((size_t)channels * sizeof *map);
    int op = map ? append(l, BW_OP_COPY, in, add_value_for(l, out_value)) : -1;
    if (op < 0) {
        free(map);
        return no_memory(l->err);
    }
    for (int64_t c = 0; c < channels; c++)
        map[c] = (int32_t)(c % groups * per + c / groups);
    ir->ops[op].map = map;
    return BW_OK;
}

/* The value under another name. One that leaves the stage under both names is copied. */
static bw_status lower_alias(struct lowering *l, int out_value, int is_output)
{
    bw_ir *ir = l->ir;
    int v = ir->of_value[l->m->in];
    if (is_output && (bw_graph_use_count(ir->g, l->m->in) > 1 || ir->values[v].input >= 0 || ir->values[v].shared))
        return append(l, BW_OP_COPY, v, add_value_for(l, out_value)) < 0 ? no_memory(l->err) : BW_OK;
    ir->values[v].shared |= bw_graph_use_count(ir->g, l->m->in) > 1;
    ir->of_value[out_value] = v;
    return BW_OK;
}

static bw_status lower_node(struct lowering *l, int is_output)
{
    int out = l->ir->g->nodes[l->node].outputs[0];
    switch (l->m->kind) {
    case BW_MATCH_CONV:
        return lower_conv(l, out);
    case BW_MATCH_GEMM:
        return lower_gemm(l, out);
    case BW_MATCH_ACT:
        return lower_act(l, out);
    case BW_MATCH_ADD:
    case BW_MATCH_MUL:
        return lower_binary(l, out);
    case BW_MATCH_AFFINE:
        return lower_affine(l, out);
    case BW_MATCH_MAXPOOL:
    case BW_MATCH_AVGPOOL:
        return lower_pool(l, out);
    case BW_MATCH_CONCAT:
        return lower_concat(l, out);
    case BW_MATCH_WINDOW:
        return lower_window(l, out);
    case BW_MATCH_SPLIT:
        return lower_split(l);
    case BW_MATCH_SHUFFLE:
        return lower_shuffle(l, out);
    case BW_MATCH_FLATTEN:
    case BW_MATCH_ALIAS:
        return lower_alias(l, out, is_output);
    case BW_MATCH_NONE:
        break;
    }
    return BW_OK; /* the first two nodes of a shuffle */
}

bw_status bw_lower(const bw_graph *g, const bw_recipe *recipe, const bw_placement *p, int level, const int *inputs,
                   int input_count, const int *outputs, int output_count, bw_ir *ir, bw_error *err)
{
    *ir = (bw_ir){.g = g, .recipe = recipe, .of_value = malloc(((size_t)g->value_count + 1) * sizeof *ir->of_value)};
    if (!ir->of_value)
        return no_memory(err);
    memset(ir->of_value, -1, ((size_t)g->value_count + 1) * sizeof *ir->of_value);
    struct lowering l = {.ir = ir, .err = err};
    bw_status s = BW_OK;
    for (int i = 0; i < input_count && !s; i++) {
        int v = add_value_for(&l, inputs[i]);
        if (v < 0)
            s = no_memory(err);
        else
            ir->values[v].input = i;
    }
    for (int n = 0; n < g->node_count && !s; n++) {
        if (p->level[n] != level)
            continue;
        l.node = n;
        l.m = &p->matches[n];
        int is_output = 0;
        for (int i = 0; i < output_count; i++)
            is_output |= outputs[i] == g->nodes[n].outputs[0];
        s = lower_node(&l, is_output);
    }
    for (int i = 0; i < output_count && !s; i++) {
        int v = ir->of_value[outputs[i]];
        if (v < 0 || ir->values[v].output >= 0)
            s = bw_fail(err, BW_INTERNAL, "value '%s' was not lowered", g->values[outputs[i]].name);
        else
            ir->values[v].output = i;
    }
    if (s)
        bw_ir_free(ir);
    return s;
}
