/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which inputs of a program cannot hold negative values: kernels of bytes do without an offset there. Instructions are
 * looked through backwards for whoever wrote the tensor, until every block of its pixels is accounted for. What is not
 * understood, as memory that is shared by tensors of other shapes, may hold anything.
 */
#include <stdlib.h>
#include <string.h>

#include "sim/fast.h"

/* Instructions that are looked through for one tensor, so that no program takes long to plan. */
#define LOOK_BACK 512u

typedef struct range {
    uint64_t from, to;
} range;

/* Bytes from the first code, or exponent, to the last. */
static range extent(const bw_tensor *t, uint64_t at, uint64_t unit_bytes)
{
    const uint64_t last = (uint64_t)t->row_stride * (t->height - 1) + (uint64_t)t->pixel_stride * (t->width - 1);
    return (range){at, at + (last + bw_tensor_units(t)) * unit_bytes};
}

static range code_extent(const bw_tensor *t)
{
    const bw_format_traits *f = bw_format_get((bw_format)t->format);
    return extent(t, t->codes, (uint64_t)t->block * f->device_bytes);
}

static int meet(range a, range b)
{
    return a.from < b.to && b.from < a.to;
}

/* Whether the writer touches the codes of t in any way. */
static int touches(const bw_tensor *writer, const bw_tensor *t)
{
    if (writer->region != t->region)
        return 0;
    const range codes = code_extent(t);
    return meet(code_extent(writer), codes) || (writer->block > 1 && meet(extent(writer, writer->exps, 1), codes));
}

/* Where the writer's blocks begin in a pixel of t, if both are slices of one tensor and it touches no exponents as
 * codes; else 0 is returned. */
static int is_slice(const bw_tensor *writer, const bw_tensor *t, int64_t *unit)
{
    const bw_format_traits *f = bw_format_get((bw_format)t->format);
    const int64_t bytes = (int64_t)t->block * f->device_bytes, apart = (int64_t)writer->codes - (int64_t)t->codes;
    if (writer->format != t->format || writer->block != t->block || writer->height != t->height ||
        writer->width != t->width || writer->pixel_stride != t->pixel_stride || writer->row_stride != t->row_stride ||
        apart % bytes || (writer->block > 1 && meet(extent(writer, writer->exps, 1), code_extent(t))))
        return 0;
    *unit = apart / bytes;
    const int64_t first = *unit < 0 ? *unit : 0, own = bw_tensor_units(t), others = *unit + bw_tensor_units(writer);
    return (own > others ? own : others) - first <= (int64_t)t->pixel_stride;
}

static int in_is_never_negative(const bw_instruction *instructions, uint32_t i, const bw_tensor *t, const uint8_t *out)
{
    const size_t units = bw_tensor_units(t);
    uint8_t *known = t->region == BW_REGION_ACT ? calloc(units, 1) : NULL;
    const uint32_t end = i < LOOK_BACK ? 0 : i - LOOK_BACK;
    size_t left = units;
    while (known && left && i-- > end) {
        const bw_tensor *writers[2] = {&instructions[i].out0, &instructions[i].out1};
        for (int o = 0; o < 2 && known; o++) {
            int64_t first;
            if (!touches(writers[o], t))
                continue;
            if (!is_slice(writers[o], t, &first)) {
                free(known);
                return 0;
            }
            for (int64_t u = first; u < first + (int64_t)bw_tensor_units(writers[o]); u++) {
                if (u < 0 || u >= (int64_t)units || known[u])
                    continue;
                known[u] = 1;
                left--;
                if (!out[i]) {
                    free(known);
                    return 0;
                }
            }
        }
    }
    const int all = known && left == 0;
    free(known); /* without memory for it nothing is known */
    return all;
}

void bw_fast_find_signs(const bw_program *program, uint8_t *in)
{
    const uint32_t count = program->header->instruction_count;
    uint8_t *out = calloc(count + 1, 1);
    memset(in, 0, count);
    for (uint32_t i = 0; out && i < count; i++) {
        const bw_instruction *ins = &program->instructions[i];
        in[i] = (uint8_t)in_is_never_negative(program->instructions, i, &ins->in, out);
        switch (ins->activation) {
        case BW_ACT_RELU:
            out[i] = 1;
            continue;
        case BW_ACT_CLIP:
            out[i] = ins->clip_lo >= 0.0f;
            continue;
        }
        switch (ins->opcode) {
        case BW_OP_MAXPOOL:
        case BW_OP_AVGPOOL:
        case BW_OP_COPY:
            out[i] = in[i];
            break;
        case BW_OP_ADD:
        case BW_OP_MUL:
            out[i] = in[i] && in_is_never_negative(program->instructions, i, &ins->in2, out);
            break;
        }
    }
    free(out);
}
