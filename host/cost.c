/* SPDX-License-Identifier: Apache-2.0 */
#include "host/cost.h"

#include <stdio.h>

static uint64_t tensor_bytes(const bw_tensor *t)
{
    if (t->region == BW_REGION_NONE)
        return 0;
    const bw_format_traits *f = bw_format_get((bw_format)t->format);
    const uint64_t units = (uint64_t)t->height * t->width * bw_tensor_units(t);
    return units * ((uint64_t)t->block * f->device_bytes + (bw_format_is_block(f) ? 1u : 0u));
}

static uint64_t round16(uint64_t n)
{
    return (n + 15) / 16 * 16;
}

void bw_instruction_cost(const bw_instruction *ins, bw_cost *cost)
{
    const uint64_t taps = (uint64_t)ins->kernel_y * ins->kernel_x, channels = ins->out0.channels;
    const uint64_t results = (uint64_t)ins->out0.height * ins->out0.width * channels;
    *cost = (bw_cost){.in_bytes = tensor_bytes(&ins->in) + tensor_bytes(&ins->in2),
                      .out_bytes = tensor_bytes(&ins->out0) + tensor_bytes(&ins->out1)};
    switch (ins->opcode) {
    case BW_OP_CONV: {
        const uint64_t blocks = bw_conv_tiles(ins) * bw_conv_blocks(ins);
        cost->macs = results * taps * (ins->in.channels / ins->groups);
        cost->weight_bytes =
            blocks * (bw_packed_size(bw_format_get((bw_format)ins->weight_format), (size_t)ins->in.block * 16) + 16);
        if (ins->flags & BW_FLAG_BIAS)
            cost->weight_bytes += bw_conv_tiles(ins) * 16 * sizeof(float);
        break;
    }
    case BW_OP_DWCONV:
        cost->macs = results * taps;
        cost->weight_bytes = taps * round16(channels) * 2;
        if (ins->flags & BW_FLAG_BIAS)
            cost->weight_bytes += round16(channels) * sizeof(float);
        break;
    case BW_OP_AVGPOOL:
        cost->weight_bytes = (taps + 1) * sizeof(float);
        break;
    case BW_OP_COPY:
        if (ins->flags & BW_FLAG_CHANNEL_MAP)
            cost->weight_bytes = channels * sizeof(int32_t);
        break;
    default:
        break;
    }
}

const char *bw_instruction_shape(const bw_instruction *ins, char *buf, size_t size)
{
    const bw_tensor *in = &ins->in, *out = &ins->out0;
    const int window = ins->kernel_y > 1 || ins->kernel_x > 1, stride = ins->stride_y > 1 || ins->stride_x > 1;
    char kernel[24] = "", step[24] = "", groups[24] = "";
    if (window || ins->opcode == BW_OP_CONV)
        snprintf(kernel, sizeof kernel, " %ux%u", ins->kernel_y, ins->kernel_x);
    if (stride && ins->stride_y == ins->stride_x)
        snprintf(step, sizeof step, " /%u", ins->stride_y);
    else if (stride)
        snprintf(step, sizeof step, " /%ux%u", ins->stride_y, ins->stride_x);
    if (ins->groups > 1)
        snprintf(groups, sizeof groups, " g%u", ins->groups);
    snprintf(buf, size, "%ux%ux%u -> %ux%ux%u%s%s%s", in->height, in->width, in->channels, out->height, out->width,
             out->channels, kernel, step, groups);
    return buf;
}
