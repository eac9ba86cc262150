/* SPDX-License-Identifier: Apache-2.0 */
/* Layout: the forms (vector, block, fp32 output) in which each value of a stage is kept, from what its consumers read,
 * and the concatenations, whose parts are written where they belong instead of being copied. */
#include <stdlib.h>
#include <string.h>

#include "quantize/lower.h"

bw_format bw_form_format(const bw_ir *ir, int form)
{
    return form == BW_FORM_VECTOR  ? ir->recipe->vector
           : form == BW_FORM_BLOCK ? ir->recipe->activations
                                   : BW_FORMAT_FP32;
}

uint16_t bw_form_block(const bw_ir *ir, const bw_ir_value *v, int form)
{
    return form != BW_FORM_BLOCK ? 1 : v->block ? v->block : ir->recipe->block;
}

uint32_t bw_form_units(const bw_ir *ir, const bw_ir_value *v, int form)
{
    if (form != BW_FORM_BLOCK)
        return (uint32_t)v->c;
    int64_t block = bw_form_block(ir, v, form);
    return (uint32_t)((v->physical + block - 1) / block);
}

static void want(bw_ir *ir, int value, int form)
{
    ir->values[value].forms[form].wanted = 1;
}

static int wanted(const bw_ir_value *v, int form)
{
    return v->forms[form].wanted;
}

/* Values that convolutions read, themselves or in a concatenation: their blocks are there anyway. */
static void mark_convolved(bw_ir *ir)
{
    for (int i = ir->op_count - 1; i >= 0; i--) {
        const bw_ir_op *op = &ir->ops[i];
        if (op->opcode == BW_OP_CONV)
            ir->values[op->in].convolved = 1;
        for (int p = 0; p < op->part_count; p++)
            ir->values[op->parts[p]].convolved |= ir->values[op->out].convolved;
    }
}

/* What each op reads, from the last to the first: what is wanted of its result is known when it is its turn. */
static void spread_wants(bw_ir *ir)
{
    mark_convolved(ir);
    for (int v = 0; v < ir->value_count; v++)
        ir->values[v].forms[BW_FORM_OUT].wanted = ir->values[v].output >= 0;
    for (int i = ir->op_count - 1; i >= 0; i--) {
        bw_ir_op *op = &ir->ops[i];
        const bw_ir_value *out = &ir->values[op->out];
        if (!wanted(out, BW_FORM_VECTOR) && !wanted(out, BW_FORM_BLOCK) && !wanted(out, BW_FORM_OUT)) {
            op->dead = 1;
            continue;
        }
        switch (op->opcode) {
        case BW_OP_CONV:
            op->reads = BW_FORM_BLOCK;
            break;
        case BW_OP_MAXPOOL:
            /* The maximum commutes with the block rounding as long as windows share a scale, so that blocks do if they
             * are there anyway; fp16 costs less to write and to read. */
            op->reads = wanted(out, BW_FORM_VECTOR) || wanted(out, BW_FORM_OUT) || ir->values[op->in].map ||
                                !ir->values[op->in].convolved
                            ? BW_FORM_VECTOR
                            : BW_FORM_BLOCK;
            break;
        case BW_OP_COPY:
            op->reads = ir->values[op->in].input >= 0 ? BW_FORM_IN : BW_FORM_VECTOR;
            break;
        case BW_OP_PATCH:
            op->reads = BW_FORM_IN;
            break;
        case BW_IR_CONCAT:
            for (int p = 0; p < op->part_count; p++)
                for (int f = 0; f < BW_FORM_IN; f++)
                    if (wanted(out, f))
                        want(ir, op->parts[p], f);
            continue;
        default:
            op->reads = BW_FORM_VECTOR;
            break;
        }
        want(ir, op->in, op->reads);
        if (op->in2 >= 0)
            want(ir, op->in2, BW_FORM_VECTOR);
    }
}

/* A copy of part `p` of the concatenation at op `at`, in form `form`, that may become a slice of its result. Inserts an
 * op before `at`. Returns the new value, -1 when out of memory. */
static int copy_part(bw_ir *ir, int at, int p, int form)
{
    int v = bw_ir_add_value(ir, ir->values[p].h, ir->values[p].w, ir->values[p].c);
    int op = v < 0 ? -1 : bw_ir_insert_op(ir, at, BW_OP_COPY, p, v);
    if (op < 0)
        return -1;
    const bw_ir_value *part = &ir->values[p];
    if (part->map && form == BW_FORM_BLOCK) {
        size_t bytes = (size_t)part->physical * sizeof *part->map;
        ir->ops[op].map = malloc(bytes);
        ir->values[v].map = malloc(bytes);
        if (!ir->ops[op].map || !ir->values[v].map)
            return -1;
        memcpy(ir->ops[op].map, part->map, bytes);
        memcpy(ir->values[v].map, part->map, bytes);
        ir->values[v].physical = part->physical;
    }
    ir->ops[op].reads = part->input >= 0 ? BW_FORM_IN : BW_FORM_VECTOR;
    ir->ops[op].node = ir->ops[op + 1].node;
    want(ir, p, ir->ops[op].reads);
    return v;
}

static bw_status place_parts(bw_ir *ir, bw_error *err)
{
    for (int i = ir->op_count - 1; i >= 0; i--) {
        if (ir->ops[i].opcode != BW_IR_CONCAT || ir->ops[i].dead)
            continue;
        int at = i; /* moves up with every copy inserted before it */
        uint32_t unit[BW_FORMS] = {0};
        for (int k = 0; k < ir->ops[at].part_count; k++) {
            int p = ir->ops[at].parts[k], out = ir->ops[at].out;
            for (int f = 0; f < BW_FORM_IN; f++) {
                if (!wanted(&ir->values[out], f))
                    continue;
                int slice = p;
                if (ir->values[p].forms[f].parent >= 0 || (f == BW_FORM_OUT && ir->values[p].output >= 0) ||
                    (f == BW_FORM_BLOCK && ir->values[p].block && ir->values[p].block != ir->values[out].block)) {
                    slice = copy_part(ir, at, p, f);
                    if (slice < 0)
                        return bw_fail(err, BW_NO_MEMORY, "out of memory while laying out a concatenation");
                    at++;
                }
                bw_ir_form *form = &ir->values[slice].forms[f];
                form->wanted = 1;
                form->parent = out;
                form->unit = unit[f];
                if (f == BW_FORM_BLOCK)
                    ir->values[slice].block = ir->values[out].block;
                unit[f] += bw_form_units(ir, &ir->values[slice], f);
            }
        }
    }
    return BW_OK;
}

bw_status bw_layout(bw_ir *ir, bw_error *err)
{
    spread_wants(ir);
    bw_status s = place_parts(ir, err);
    if (!s)
        bw_blocks_settle(ir);
    return s;
}
