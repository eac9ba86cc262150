/* SPDX-License-Identifier: Apache-2.0 */
/* Emission: the chains of a laid-out stage as instructions, with tensors placed and constants packed. */
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "quantize/lower.h"

struct ref { /* a value in one of its forms; value -1: absent */
    int value, form;
};

struct line {
    bw_instruction ins;
    struct ref in, in2, out[2];
    int node; /* of the graph, -1: the compiler's own */
};

struct emitter {
    bw_ir *ir;
    struct line *lines;
    int count, capacity;
    bw_blob blob;
    uint8_t *encoded; /* per value: stage inputs already converted */
    bw_stage *stage;
    bw_error *err;
};

#define ALIGN64(x) (((x) + 63u) / 64u * 64u)

static const struct ref absent = {-1, 0};

/* A new instruction with unit window; NULL when out of memory. */
static struct line *new_line(struct emitter *e, int opcode)
{
    if (e->count == e->capacity) {
        int capacity = e->capacity ? e->capacity * 2 : 64;
        struct line *more = realloc(e->lines, (size_t)capacity * sizeof *more);
        if (!more)
            return NULL;
        e->lines = more;
        e->capacity = capacity;
    }
    struct line *l = &e->lines[e->count++];
    memset(l, 0, sizeof *l);
    l->in = l->in2 = l->out[0] = l->out[1] = absent;
    l->node = -1;
    bw_instruction *ins = &l->ins;
    ins->opcode = (uint8_t)opcode;
    ins->kernel_y = ins->kernel_x = ins->stride_y = ins->stride_x = ins->dilation_y = ins->dilation_x = 1;
    ins->groups = 1;
    return l;
}

/* The forms that a producer must write, in the order in which it writes them. */
static int wanted_forms(const bw_ir_value *v, int forms[3])
{
    static const int order[3] = {BW_FORM_VECTOR, BW_FORM_OUT, BW_FORM_BLOCK};
    int count = 0;
    for (int i = 0; i < 3; i++)
        if (v->forms[order[i]].wanted)
            forms[count++] = order[i];
    return count;
}

static bw_status emit_copy(struct emitter *e, int value, int from, const int *to, int count)
{
    struct line *l = new_line(e, BW_OP_COPY);
    if (!l)
        return bw_fail(e->err, BW_NO_MEMORY, "out of memory while emitting a program");
    l->in = (struct ref){value, from};
    for (int i = 0; i < count; i++)
        l->out[i] = (struct ref){value, to[i]};
    return BW_OK;
}

/* Stage inputs are converted to what their consumers read just before the first of these. */
static bw_status encode_input(struct emitter *e, int value)
{
    if (value < 0 || e->ir->values[value].input < 0 || e->encoded[value])
        return BW_OK;
    e->encoded[value] = 1;
    int forms[3], count = wanted_forms(&e->ir->values[value], forms);
    bw_status s = count ? emit_copy(e, value, BW_FORM_IN, forms, count > 2 ? 2 : count) : BW_OK;
    return !s && count > 2 ? emit_copy(e, value, BW_FORM_IN, &forms[2], 1) : s;
}

static bw_status put_map(struct emitter *e, const bw_ir_op *op, int64_t channels, bw_instruction *ins)
{
    uint64_t offset;
    bw_status s = bw_blob_reserve(&e->blob, (size_t)channels * sizeof *op->map, &offset, e->err);
    if (s)
        return s;
    memcpy(e->blob.bytes + offset, op->map, (size_t)channels * sizeof *op->map);
    ins->weights = offset;
    ins->flags |= BW_FLAG_CHANNEL_MAP;
    return BW_OK;
}

static bw_status put_reciprocals(struct emitter *e, bw_instruction *ins)
{
    size_t taps = (size_t)ins->kernel_y * ins->kernel_x;
    bw_status s = bw_blob_reserve(&e->blob, (taps + 1) * sizeof(float), &ins->weights, e->err);
    float *r = s ? NULL : (float *)(void *)(e->blob.bytes + ins->weights);
    for (size_t i = 1; !s && i <= taps; i++)
        r[i] = 1.0f / (float)i;
    return s;
}

static bw_status put_weights(struct emitter *e, const bw_ir_op *op, bw_instruction *ins)
{
    bw_weight_error *lost = &e->stage->weights[e->stage->weight_count];
    lost->name = strdup(op->w.name);
    if (!lost->name)
        return bw_fail(e->err, BW_NO_MEMORY, "out of memory while emitting a program");
    e->stage->weight_count++;
    return op->opcode == BW_OP_CONV ? bw_pack_conv(e->ir, op, &e->blob, ins, lost, e->err)
                                    : bw_pack_dwconv(e->ir, op, &e->blob, ins, lost, e->err);
}

/* At least what the operation will put into the blob. */
static size_t constant_bytes(const bw_ir *ir, const bw_ir_op *op)
{
    if (op->dead)
        return 0;
    if (op->opcode == BW_OP_CONV || op->opcode == BW_OP_DWCONV)
        return bw_pack_bytes(ir, op);
    size_t bytes = BW_WEIGHT_ALIGN;
    if (op->opcode == BW_OP_AVGPOOL)
        bytes += ((size_t)(op->geo.kernel[0] * op->geo.kernel[1]) + 1) * sizeof(float);
    else if (op->map)
        bytes += (size_t)(ir->values[op->out].physical + ir->values[op->out].c) * sizeof *op->map;
    return bytes;
}

static bw_status emit_op(struct emitter *e, const bw_ir_op *op)
{
    bw_ir *ir = e->ir;
    bw_status s = encode_input(e, op->in);
    if (!s)
        s = encode_input(e, op->in2);
    for (int p = 0; p < op->part_count && !s; p++)
        s = encode_input(e, op->parts[p]);
    if (s || op->opcode == BW_IR_CONCAT)
        return s;
    struct line *l = new_line(e, op->opcode);
    if (!l)
        return bw_fail(e->err, BW_NO_MEMORY, "out of memory while emitting a program");
    bw_instruction *ins = &l->ins;
    const bw_ir_value *out = &ir->values[op->out];
    int forms[3], count = wanted_forms(out, forms);
    l->node = op->node;
    l->in = (struct ref){op->in, op->reads};
    if (op->in2 >= 0)
        l->in2 = (struct ref){op->in2, BW_FORM_VECTOR};
    for (int i = 0; i < count && i < 2; i++)
        l->out[i] = (struct ref){op->out, forms[i]};
    ins->activation = (uint8_t)op->activation;
    if (op->activation == BW_ACT_CLIP) {
        ins->clip_lo = op->lo == 0 ? 0 : op->lo;
        ins->clip_hi = op->hi == 0 ? 0 : op->hi;
    }
    ins->kernel_y = (uint16_t)op->geo.kernel[0];
    ins->kernel_x = (uint16_t)op->geo.kernel[1];
    ins->stride_y = (uint16_t)op->geo.stride[0];
    ins->stride_x = (uint16_t)op->geo.stride[1];
    ins->dilation_y = (uint16_t)op->geo.dilation[0];
    ins->dilation_x = (uint16_t)op->geo.dilation[1];
    ins->origin_y = (int16_t)op->geo.origin[0];
    ins->origin_x = (int16_t)op->geo.origin[1];
    ins->groups = (uint32_t)op->groups;
    if (op->count_pad && op->opcode == BW_OP_AVGPOOL)
        ins->flags |= BW_FLAG_COUNT_PAD;
    if (op->opcode == BW_OP_CONV || op->opcode == BW_OP_DWCONV)
        s = put_weights(e, op, ins);
    else if (op->opcode == BW_OP_AVGPOOL)
        s = put_reciprocals(e, ins);
    else if (op->map)
        s = put_map(e, op, forms[0] == BW_FORM_BLOCK ? out->physical : out->c, ins);
    if (!s && count > 2)
        s = emit_copy(e, op->out, BW_FORM_VECTOR, &forms[2], 1);
    return s;
}

/* --- places --------------------------------------------------------------------------------------------------- */

/* The value whose tensor holds this form, and the unit in it where the form begins. */
static int root_of(const bw_ir *ir, int value, int form, uint32_t *unit)
{
    *unit = 0;
    while (ir->values[value].forms[form].parent >= 0) {
        *unit += ir->values[value].forms[form].unit;
        value = ir->values[value].forms[form].parent;
    }
    return value;
}

static uint64_t form_codes_bytes(const bw_ir *ir, const bw_ir_value *v, int form)
{
    return (uint64_t)(v->h * v->w) * bw_form_units(ir, v, form) * bw_form_block(ir, v, form) *
           bw_format_get(bw_form_format(ir, form))->device_bytes;
}

static void touch(struct emitter *e, struct ref r, int at, bw_span *spans, int *count)
{
    if (r.value < 0 || r.form > BW_FORM_BLOCK)
        return;
    uint32_t unit;
    bw_ir_value *v = &e->ir->values[root_of(e->ir, r.value, r.form, &unit)];
    bw_ir_form *form = &v->forms[r.form];
    if (form->span < 0) {
        form->span = (*count)++;
        uint64_t bytes = ALIGN64(form_codes_bytes(e->ir, v, r.form));
        if (r.form == BW_FORM_BLOCK)
            bytes += (uint64_t)(v->h * v->w) * bw_form_units(e->ir, v, r.form);
        spans[form->span] = (bw_span){.size = bytes, .first = at, .last = at};
    }
    spans[form->span].last = at;
}

static void fill_tensor(const struct emitter *e, const bw_stage *stage, const bw_span *spans, struct ref r,
                        bw_tensor *t)
{
    if (r.value < 0)
        return;
    const bw_ir *ir = e->ir;
    uint32_t unit;
    const bw_ir_value *v = &ir->values[r.value], *root = &ir->values[root_of(ir, r.value, r.form, &unit)];
    t->height = (uint32_t)v->h;
    t->width = (uint32_t)v->w;
    t->channels = (uint32_t)(r.form == BW_FORM_BLOCK ? v->physical : v->c);
    t->format = (uint8_t)bw_form_format(ir, r.form);
    t->block = bw_form_block(ir, v, r.form);
    t->pixel_stride = bw_form_units(ir, root, r.form);
    t->row_stride = t->width * t->pixel_stride;
    uint64_t base;
    if (r.form == BW_FORM_IN) {
        t->region = BW_REGION_IN;
        base = stage->inputs[root->input].offset;
    } else if (r.form == BW_FORM_OUT) {
        t->region = BW_REGION_OUT;
        base = stage->outputs[root->output].offset;
    } else {
        t->region = BW_REGION_ACT;
        base = spans[root->forms[r.form].span].offset;
    }
    t->codes = base + (uint64_t)unit * t->block * bw_format_get((bw_format)t->format)->device_bytes;
    if (r.form == BW_FORM_BLOCK)
        t->exps = base + ALIGN64(form_codes_bytes(ir, root, r.form)) + unit;
}

static uint64_t place_borders(bw_stage_tensor *tensors, int count)
{
    uint64_t at = 0;
    for (int i = 0; i < count; i++) {
        uint64_t elements = 1;
        for (int d = 1; d < tensors[i].rank; d++)
            elements *= (uint64_t)tensors[i].dims[d];
        tensors[i].offset = at;
        at += ALIGN64(elements * sizeof(float));
    }
    return at;
}

/* Whose work an instruction is: a node, or the value that it converts. */
static const char *layer_of(const bw_ir *ir, const struct line *l)
{
    if (l->node >= 0)
        return ir->g->nodes[l->node].name;
    const struct ref refs[] = {l->out[0], l->in};
    for (int i = 0; i < 2; i++)
        if (refs[i].value >= 0 && ir->values[refs[i].value].value >= 0)
            return ir->g->values[ir->values[refs[i].value].value].name;
    return "";
}

static bw_status name_layers(const struct emitter *e, bw_stage *stage)
{
    stage->layers = calloc((size_t)e->count + 1, sizeof *stage->layers);
    for (int i = 0; stage->layers && i < e->count; i++) {
        stage->layers[i] = strdup(layer_of(e->ir, &e->lines[i]));
        if (!stage->layers[i])
            break;
        stage->layer_count++;
    }
    return stage->layer_count == e->count ? BW_OK
                                          : bw_fail(e->err, BW_NO_MEMORY, "out of memory while emitting a program");
}

/* Memory, tensors, header. */
static bw_status finish(struct emitter *e, bw_stage *stage)
{
    bw_span *spans = malloc(((size_t)e->ir->value_count * 2 + 1) * sizeof *spans);
    if (!spans)
        return bw_fail(e->err, BW_NO_MEMORY, "out of memory while placing tensors");
    int count = 0;
    for (int i = 0; i < e->count; i++) {
        touch(e, e->lines[i].in, i, spans, &count);
        touch(e, e->lines[i].in2, i, spans, &count);
        touch(e, e->lines[i].out[0], i, spans, &count);
        touch(e, e->lines[i].out[1], i, spans, &count);
    }
    bw_program_header header = {.magic = BW_PROGRAM_MAGIC,
                                .isa_version = BW_ISA_VERSION,
                                .instruction_count = (uint32_t)e->count,
                                .in_bytes = place_borders(stage->inputs, stage->input_count),
                                .out_bytes = place_borders(stage->outputs, stage->output_count),
                                .const_bytes = e->blob.size};
    bw_status s = bw_plan_memory(spans, count, &header.act_bytes, e->err);
    size_t size = sizeof header + (size_t)e->count * sizeof(bw_instruction);
    uint8_t *program = s ? NULL : bw_aligned_zalloc(size);
    if (!s && !program)
        s = bw_fail(e->err, BW_NO_MEMORY, "out of memory for a program of %zu bytes", size);
    if (!s) {
        memcpy(program, &header, sizeof header);
        for (int i = 0; i < e->count; i++) {
            struct line *l = &e->lines[i];
            fill_tensor(e, stage, spans, l->in, &l->ins.in);
            fill_tensor(e, stage, spans, l->in2, &l->ins.in2);
            fill_tensor(e, stage, spans, l->out[0], &l->ins.out0);
            fill_tensor(e, stage, spans, l->out[1], &l->ins.out1);
            memcpy(program + sizeof header + (size_t)i * sizeof l->ins, &l->ins, sizeof l->ins);
        }
        stage->program = program;
        stage->program_size = size;
        stage->constants = e->blob.bytes;
        stage->constants_size = e->blob.size;
        e->blob = (bw_blob){0};
    }
    free(spans);
    return s;
}

/* Tells whoever watches that one more layer is packed. */
static bw_status tell(const bw_ir *ir, const bw_ir_op *op, bw_error *err)
{
    bw_pack_progress *p = ir->progress;
    if (!p || !p->watch || (op->opcode != BW_OP_CONV && op->opcode != BW_OP_DWCONV))
        return BW_OK;
    const bw_geometry *geo = op->patched ? &op->source : &op->geo;
    p->done += (uint64_t)(op->w.outputs * op->w.group_channels * geo->kernel[0] * geo->kernel[1]);
    p->done = p->done < p->total ? p->done : p->total;
    return p->watch(p->done, p->total, p->user) ? bw_fail(err, BW_CANCELLED, "interrupted: nothing was written")
                                                : BW_OK;
}

bw_status bw_emit(bw_ir *ir, bw_stage *stage, bw_error *err)
{
    struct emitter e = {.ir = ir, .encoded = calloc((size_t)ir->value_count + 1, 1), .stage = stage, .err = err};
    stage->weights = calloc((size_t)ir->op_count + 1, sizeof *stage->weights);
    bw_status s =
        e.encoded && stage->weights ? BW_OK : bw_fail(err, BW_NO_MEMORY, "out of memory while emitting a program");
    size_t room = 0;
    for (int i = 0; i < ir->op_count; i++)
        room += constant_bytes(ir, &ir->ops[i]);
    if (!s)
        s = bw_blob_room(&e.blob, room, err);
    for (int i = 0; i < ir->op_count && !s; i++)
        if (!ir->ops[i].dead && !(s = emit_op(&e, &ir->ops[i])))
            s = tell(ir, &ir->ops[i], err);
    if (!s)
        s = finish(&e, stage);
    if (!s)
        s = name_layers(&e, stage);
    bw_program program;
    if (!s && !(s = bw_program_parse(stage->program, stage->program_size, &program, err)))
        s = bw_program_check_constants(&program, stage->constants, stage->constants_size, err);
    free(e.lines);
    free(e.encoded);
    free(e.blob.bytes);
    return s;
}
