/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The program validator. Every number in a program is hostile: sizes are bounded before they are multiplied, so that
 * no product below overflows 64 bits (the bounds stand beside each step), and offsets are only ever compared.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/checks.h"
#include "kernels/isa.h"

#define MAX_INSTRUCTIONS     65536u
#define MAX_REGION_BYTES     (1ull << 40)
#define MAX_EXTENT           65536u
#define MAX_CHANNELS         1048576u
#define MAX_WINDOW           1024u
#define MAX_REDUCTION_BLOCKS (1ull << 22) /* keeps every sum inside fp32, see docs/isa.md */

static const char *const opcode_names[BW_OP_LIMIT] = {"?",   "CONV", "DWCONV", "MAXPOOL", "AVGPOOL",
                                                      "ADD", "MUL",  "COPY",   "PATCH"};
static const char *const region_names[] = {"none", "ACT", "IN", "OUT", "CONST"};

const char *bw_opcode_name(unsigned opcode)
{
    return opcode < BW_OP_LIMIT ? opcode_names[opcode] : "?";
}

uint64_t bw_conv_tiles(const bw_instruction *ins)
{
    uint64_t per_group = ins->out0.channels / ins->groups;
    return (per_group + BW_OUTPUT_TILE - 1) / BW_OUTPUT_TILE * ins->groups;
}

static uint64_t blocks_per_group(const bw_instruction *ins)
{
    uint64_t per_group = ins->in.channels / ins->groups;
    return (per_group + ins->in.block - 1) / ins->in.block;
}

uint64_t bw_conv_blocks(const bw_instruction *ins)
{
    return (uint64_t)ins->kernel_y * ins->kernel_x * blocks_per_group(ins);
}

/* --- messages --------------------------------------------------------------------------------------------------------
 */

typedef struct check {
    const bw_program_header *header;
    const bw_instruction *ins;
    uint32_t index;
    bw_error *err;
} check;

/* The one way out: BW_CORRUPT with the instruction named. */
static bw_status bad(const check *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
static bw_status bad(const check *c, const char *format, ...)
{
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return bw_fail(c->err, BW_CORRUPT, "program: instruction %u (%s): %s", c->index, bw_opcode_name(c->ins->opcode),
                   text);
}

static const char *format_name(unsigned format)
{
    const bw_format_traits *t = bw_format_get((bw_format)format);
    return t ? t->name : "?";
}

/* --- tensors ---------------------------------------------------------------------------------------------------------
 */

enum { MAY_BLOCK = 1, MAY_VECTOR = 2, MAY_FP32 = 4 };

static const bw_format_traits *traits_of(const bw_tensor *t)
{
    return bw_format_get((bw_format)t->format);
}

static int is_block_format(const bw_format_traits *t)
{
    return bw_format_is_block(t);
}

static uint64_t unit_bytes(const bw_tensor *t)
{
    return (uint64_t)t->block * traits_of(t)->device_bytes;
}

/* Units from the first to one past the last: < 2^16 * 2^32 + 2^48 + 2^20. */
static uint64_t span_units(const bw_tensor *t)
{
    return (uint64_t)(t->height - 1) * t->row_stride + (uint64_t)(t->width - 1) * t->pixel_stride + bw_tensor_units(t);
}

static int is_absent(const bw_tensor *t)
{
    static const bw_tensor zero;
    return memcmp(t, &zero, sizeof zero) == 0;
}

/* fp32 region: IN for sources, OUT for results. */
static bw_status check_tensor(const check *c, const char *name, const bw_tensor *t, unsigned may, bw_region fp32_region)
{
    const bw_format_traits *f = traits_of(t);
    if (t->region == BW_REGION_NONE)
        return bad(c, "%s is absent, but the operation needs it", name);
    if (!f)
        return bad(c, "%s.format is %u, which is no format of ISA version %u", name, t->format, BW_ISA_VERSION);
    unsigned kind = is_block_format(f) ? MAY_BLOCK : f->kind == BW_KIND_VECTOR ? MAY_VECTOR : MAY_FP32;
    if (!(may & kind))
        return bad(c, "%s.format is %s, the operation takes %s%s%s there", name, f->name,
                   may & MAY_BLOCK ? "block formats " : "", may & MAY_VECTOR ? "fp16 bf16 " : "",
                   may & MAY_FP32 ? "fp32 " : "");
    unsigned region = kind == MAY_FP32 ? (unsigned)fp32_region : (unsigned)BW_REGION_ACT;
    if (t->region != region)
        return bad(c, "%s.region is %u, %s data must lie in %s (%u) there", name, t->region, f->name,
                   region_names[region], region);
    if (!bw_format_block_ok(f, t->block))
        return bad(c, "%s.block is %u, which %s does not have", name, t->block, f->name);
    if (t->height < 1 || t->height > MAX_EXTENT)
        return bad(c, "%s.height is %u, must be 1..%u", name, t->height, MAX_EXTENT);
    if (t->width < 1 || t->width > MAX_EXTENT)
        return bad(c, "%s.width is %u, must be 1..%u", name, t->width, MAX_EXTENT);
    if (t->channels < 1 || t->channels > MAX_CHANNELS)
        return bad(c, "%s.channels is %u, must be 1..%u", name, t->channels, MAX_CHANNELS);
    if (t->pixel_stride < bw_tensor_units(t))
        return bad(c, "%s.pixel_stride is %u, %u channels take %u units", name, t->pixel_stride, t->channels,
                   bw_tensor_units(t));
    if (t->row_stride < (uint64_t)t->width * t->pixel_stride)
        return bad(c, "%s.row_stride is %u, a row takes %" PRIu64 " units", name, t->row_stride,
                   (uint64_t)t->width * t->pixel_stride);
    if (t->reserved)
        return bad(c, "%s.reserved is %" PRIu64 ", must be 0", name, t->reserved);

    uint64_t size = t->region == BW_REGION_ACT  ? c->header->act_bytes
                    : t->region == BW_REGION_IN ? c->header->in_bytes
                                                : c->header->out_bytes;
    uint64_t align = kind == MAY_BLOCK ? 16 : f->device_bytes;
    if (t->codes % align)
        return bad(c, "%s.codes is %" PRIu64 ", must be a multiple of %" PRIu64, name, t->codes, align);
    uint64_t units = span_units(t), bytes = units * unit_bytes(t); /* < 2^50 * 2^7 */
    if (t->codes > size || bytes > size - t->codes)
        return bad(c, "%s.codes is %" PRIu64 " with %" PRIu64 " bytes: outside region %s of %" PRIu64 " bytes", name,
                   t->codes, bytes, region_names[t->region], size);
    if (kind != MAY_BLOCK) {
        if (t->exps)
            return bad(c, "%s.exps is %" PRIu64 ", must be 0 for %s", name, t->exps, f->name);
        return BW_OK;
    }
    if (t->exps > size || units > size - t->exps)
        return bad(c, "%s.exps is %" PRIu64 " with %" PRIu64 " bytes: outside region %s of %" PRIu64 " bytes", name,
                   t->exps, units, region_names[t->region], size);
    if (t->exps < t->codes + bytes && t->codes < t->exps + units)
        return bad(c, "%s.exps at %" PRIu64 " overlap its codes at %" PRIu64, name, t->exps, t->codes);
    return BW_OK;
}

/* One array of a tensor: codes, or exponents. */
typedef struct array {
    uint64_t start, end;   /* bytes */
    uint64_t pixel, row;   /* strides in bytes; row 0: one row only */
    uint64_t units, width; /* bytes of one pixel, and from the first to one past the last byte of a row */
} array;

static array array_of(const bw_tensor *t, int exps)
{
    uint64_t unit = exps ? 1 : unit_bytes(t), start = exps ? t->exps : t->codes, n = bw_tensor_units(t);
    array a = {start,
               start + span_units(t) * unit,
               t->pixel_stride * unit,
               t->height > 1 ? t->row_stride * unit : 0,
               n * unit,
               ((uint64_t)(t->width - 1) * t->pixel_stride + n) * unit};
    return a;
}

/* Windows [a, a+na) and [b, b+nb), both repeated with `period`, have no byte in common. */
static int windows_apart(uint64_t a, uint64_t na, uint64_t b, uint64_t nb, uint64_t period)
{
    uint64_t ahead = b >= a ? (b - a) % period : (period - (a - b) % period) % period;
    return ahead >= na && ahead + nb <= period;
}

/* Slices of one concatenation lie in different channel units of each pixel, or in different columns of each row. */
static int arrays_apart(const array *a, const array *b)
{
    if (a->end <= b->start || b->end <= a->start)
        return 1;
    if (a->pixel == b->pixel && a->row % a->pixel == 0 && b->row % b->pixel == 0 &&
        windows_apart(a->start, a->units, b->start, b->units, a->pixel))
        return 1;
    return a->row == b->row && a->row != 0 && windows_apart(a->start, a->width, b->start, b->width, a->row);
}

static bw_status check_apart(const check *c, const char *name_a, const bw_tensor *a, const char *name_b,
                             const bw_tensor *b)
{
    if (a->region != b->region || a->region == BW_REGION_NONE)
        return BW_OK;
    int parts_a = is_block_format(traits_of(a)) ? 2 : 1, parts_b = is_block_format(traits_of(b)) ? 2 : 1;
    for (int i = 0; i < parts_a; i++)
        for (int j = 0; j < parts_b; j++) {
            array x = array_of(a, i), y = array_of(b, j);
            if (!arrays_apart(&x, &y))
                return bad(c, "%s.%s at %" PRIu64 "..%" PRIu64 " overlap %s.%s at %" PRIu64 "..%" PRIu64, name_a,
                           i ? "exps" : "codes", x.start, x.end, name_b, j ? "exps" : "codes", y.start, y.end);
        }
    return BW_OK;
}

static bw_status check_same_shape(const check *c, const char *name_a, const bw_tensor *a, const char *name_b,
                                  const bw_tensor *b)
{
    if (a->height != b->height || a->width != b->width || a->channels != b->channels)
        return bad(c, "%s is %ux%ux%u, %s is %ux%ux%u: must be alike", name_a, a->height, a->width, a->channels, name_b,
                   b->height, b->width, b->channels);
    return BW_OK;
}

/* --- instructions ----------------------------------------------------------------------------------------------------
 */

/* An array of `count` elements in the constants region; absent arrays have offset 0. */
static bw_status check_constant(const check *c, const char *name, uint64_t offset, uint64_t bytes)
{
    if (bytes == 0) {
        if (offset)
            return bad(c, "%s is %" PRIu64 ", must be 0: nothing is read there", name, offset);
        return BW_OK;
    }
    if (offset % BW_WEIGHT_ALIGN)
        return bad(c, "%s is %" PRIu64 ", must be a multiple of %u", name, offset, BW_WEIGHT_ALIGN);
    if (offset > c->header->const_bytes || bytes > c->header->const_bytes - offset)
        return bad(c, "%s is %" PRIu64 " with %" PRIu64 " bytes: outside region CONST of %" PRIu64 " bytes", name,
                   offset, bytes, c->header->const_bytes);
    return BW_OK;
}

static bw_status check_activation(const check *c)
{
    const bw_instruction *ins = c->ins;
    uint32_t bits[2];
    memcpy(bits, &ins->clip_lo, sizeof bits); /* clip_hi follows */
    if (ins->activation >= BW_ACT_LIMIT)
        return bad(c, "activation is %u, must be below %u", ins->activation, BW_ACT_LIMIT);
    if (ins->activation != BW_ACT_CLIP) {
        if (bits[0] || bits[1])
            return bad(c, "clip_lo, clip_hi are 0x%08x, 0x%08x, must be 0 without CLIP", bits[0], bits[1]);
        return BW_OK;
    }
    if (!bw_multiple_of_2_to_minus_126(ins->clip_lo) || !bw_multiple_of_2_to_minus_126(ins->clip_hi))
        return bad(c, "clip limits 0x%08x, 0x%08x must be finite multiples of 2^-126 and not -0", bits[0], bits[1]);
    if (!(ins->clip_lo <= ins->clip_hi))
        return bad(c, "clip_lo is %g, above clip_hi %g", (double)ins->clip_lo, (double)ins->clip_hi);
    return BW_OK;
}

/* Along one axis, every window of `kernel` taps has at least one inside 0..extent-1. */
static int windows_touch(uint32_t outputs, int origin, uint32_t stride, uint32_t kernel, uint32_t dilation,
                         uint32_t extent)
{
    if ((int64_t)origin + (int64_t)(outputs - 1) * stride >= (int64_t)extent)
        return 0;
    /* Windows that start before the input: the first tap at or after 0 must exist (hardest for the first window) and
     * be inside; where it falls repeats after at most `dilation` windows (<= 1024). */
    for (uint32_t o = 0; o < outputs && o <= dilation; o++) {
        int64_t base = (int64_t)origin + (int64_t)o * stride;
        if (base >= 0)
            break;
        int64_t tap = (-base + dilation - 1) / dilation;
        if (tap >= kernel || base + tap * dilation >= extent)
            return 0;
    }
    return 1;
}

static bw_status check_window(const check *c, int has_window)
{
    const bw_instruction *ins = c->ins;
    const struct {
        const char *name;
        uint16_t value;
    } fields[] = {{"kernel_y", ins->kernel_y}, {"kernel_x", ins->kernel_x},     {"stride_y", ins->stride_y},
                  {"stride_x", ins->stride_x}, {"dilation_y", ins->dilation_y}, {"dilation_x", ins->dilation_x}};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        unsigned limit = has_window ? MAX_WINDOW : 1;
        if (fields[i].value < 1 || fields[i].value > limit)
            return bad(c, "%s is %u, must be 1..%u", fields[i].name, fields[i].value, limit);
    }
    if (!has_window && (ins->origin_y || ins->origin_x))
        return bad(c, "origin is %d,%d, must be 0,0 for this operation", ins->origin_y, ins->origin_x);
    return BW_OK;
}

static bw_status check_conv(const check *c)
{
    const bw_instruction *ins = c->ins;
    const bw_tensor *in = &ins->in, *out = &ins->out0;
    const bw_format_traits *fa = traits_of(in), *fw = bw_format_get((bw_format)ins->weight_format);
    if (!fw || !is_block_format(fw))
        return bad(c, "weight_format is %u (%s), must be a block format", ins->weight_format,
                   format_name(ins->weight_format));
    if (!bw_format_block_ok(fw, in->block))
        return bad(c, "weight_format %s has no block of %u as the input has", fw->name, in->block);
    if (fa->kind != BW_KIND_TABLE && fw->kind != BW_KIND_TABLE) {
        /* With the code -2^m, which weights may have. */
        uint64_t bound = (uint64_t)in->block << (fa->mantissa_bits + fw->mantissa_bits);
        if (bound >= 1u << 24)
            return bad(c, "%s x %s over blocks of %u reaches %" PRIu64 ": sums must stay below 2^24", fa->name,
                       fw->name, in->block, bound);
    }
    if (out->channels % ins->groups)
        return bad(c, "groups is %u, does not divide %u output channels", ins->groups, out->channels);
    if (ins->groups > 1 && in->channels % ((uint64_t)ins->groups * in->block))
        return bad(c, "%u input channels must be a multiple of groups x block = %u x %u", in->channels, ins->groups,
                   in->block);
    uint64_t blocks = bw_conv_blocks(ins), tiles = bw_conv_tiles(ins); /* <= 2^36, <= 2^20 */
    if (blocks > MAX_REDUCTION_BLOCKS)
        return bad(c, "the reduction has %" PRIu64 " blocks, at most %llu keep sums inside fp32", blocks,
                   MAX_REDUCTION_BLOCKS);
    bw_status s = check_constant(c, "weights", ins->weights,
                                 tiles * blocks * bw_packed_size(fw, (size_t)BW_OUTPUT_TILE * in->block));
    if (!s)
        s = check_constant(c, "weight_exps", ins->weight_exps, tiles * blocks * BW_OUTPUT_TILE);
    if (!s)
        s = check_constant(c, "bias", ins->bias, ins->flags & BW_FLAG_BIAS ? tiles * BW_OUTPUT_TILE * 4 : 0);
    return s;
}

static bw_status check_dwconv(const check *c)
{
    const bw_instruction *ins = c->ins;
    const bw_format_traits *fw = bw_format_get((bw_format)ins->weight_format);
    if (!fw || fw->kind != BW_KIND_VECTOR)
        return bad(c, "weight_format is %u (%s), must be fp16 or bf16", ins->weight_format,
                   format_name(ins->weight_format));
    if (ins->in.channels != ins->out0.channels)
        return bad(c, "in has %u channels, out0 %u: must be alike", ins->in.channels, ins->out0.channels);
    uint64_t channels = ((uint64_t)ins->in.channels + 15) / 16 * 16;
    bw_status s = check_constant(c, "weights", ins->weights, channels * ins->kernel_y * ins->kernel_x * 2);
    if (!s)
        s = check_constant(c, "weight_exps", ins->weight_exps, 0);
    if (!s)
        s = check_constant(c, "bias", ins->bias, ins->flags & BW_FLAG_BIAS ? channels * 4 : 0);
    return s;
}

static bw_status check_pool(const check *c)
{
    const bw_instruction *ins = c->ins;
    if (ins->in.channels != ins->out0.channels)
        return bad(c, "in has %u channels, out0 %u: must be alike", ins->in.channels, ins->out0.channels);
    if (!windows_touch(ins->out0.height, ins->origin_y, ins->stride_y, ins->kernel_y, ins->dilation_y, ins->in.height))
        return bad(c, "a window has all its rows outside the input (out0.height %u, origin_y %d, in.height %u)",
                   ins->out0.height, ins->origin_y, ins->in.height);
    if (!windows_touch(ins->out0.width, ins->origin_x, ins->stride_x, ins->kernel_x, ins->dilation_x, ins->in.width))
        return bad(c, "a window has all its columns outside the input (out0.width %u, origin_x %d, in.width %u)",
                   ins->out0.width, ins->origin_x, ins->in.width);
    uint64_t recips = ins->opcode == BW_OP_AVGPOOL ? (uint64_t)ins->kernel_y * ins->kernel_x + 1 : 0;
    return check_constant(c, "weights", ins->weights, recips * 4);
}

static bw_status check_copy(const check *c)
{
    const bw_instruction *ins = c->ins;
    const bw_tensor *in = &ins->in, *out = &ins->out0;
    if (in->height != out->height || in->width != out->width)
        return bad(c, "in is %ux%u, out0 is %ux%u: must be alike", in->height, in->width, out->height, out->width);
    int mapped = ins->flags & BW_FLAG_CHANNEL_MAP;
    if (!mapped && in->channels != out->channels)
        return bad(c, "in has %u channels, out0 %u: without a channel map they must be alike", in->channels,
                   out->channels);
    return check_constant(c, "weights", ins->weights, mapped ? (uint64_t)out->channels * 4 : 0);
}

/* What each operation may have: flags, source formats, second source, window. */
typedef struct rule {
    uint16_t flags;
    uint8_t in, in2; /* formats; in2 0: must be absent */
    uint8_t in2_needed, window;
} rule;

static const rule rules[BW_OP_LIMIT] = {
    [BW_OP_CONV] = {BW_FLAG_BIAS, MAY_BLOCK, MAY_BLOCK | MAY_VECTOR, 0, 1},
    [BW_OP_DWCONV] = {BW_FLAG_BIAS, MAY_VECTOR, MAY_BLOCK | MAY_VECTOR, 0, 1},
    [BW_OP_MAXPOOL] = {0, MAY_BLOCK | MAY_VECTOR, 0, 0, 1},
    [BW_OP_AVGPOOL] = {BW_FLAG_COUNT_PAD, MAY_BLOCK | MAY_VECTOR, 0, 0, 1},
    [BW_OP_ADD] = {0, MAY_BLOCK | MAY_VECTOR, MAY_BLOCK | MAY_VECTOR, 1, 0},
    [BW_OP_MUL] = {0, MAY_VECTOR, MAY_VECTOR, 1, 0},
    [BW_OP_COPY] = {BW_FLAG_CHANNEL_MAP, MAY_BLOCK | MAY_VECTOR | MAY_FP32, 0, 0, 0},
    [BW_OP_PATCH] = {0, MAY_FP32, 0, 0, 1},
};

/* Fields that every operation has, then tensors and their places. */
static bw_status check_common(const check *c, const rule *r)
{
    const bw_instruction *ins = c->ins;
    bw_status s;
    if (ins->flags & ~r->flags)
        return bad(c, "flags are 0x%04x, the operation takes 0x%04x", ins->flags, r->flags);
    for (size_t i = 0; i < sizeof ins->reserved; i++)
        if (ins->reserved[i])
            return bad(c, "reserved[%zu] is %u, must be 0", i, ins->reserved[i]);
    if ((s = check_activation(c)) || (s = check_window(c, r->window)))
        return s;
    if (ins->groups < 1 || (ins->groups > 1 && ins->opcode != BW_OP_CONV))
        return bad(c, "groups is %u, must be %s", ins->groups, ins->opcode == BW_OP_CONV ? "at least 1" : "1");
    if (ins->opcode != BW_OP_CONV && ins->opcode != BW_OP_DWCONV && ins->weight_format)
        return bad(c, "weight_format is %u, must be 0 for this operation", ins->weight_format);

    if ((s = check_tensor(c, "in", &ins->in, r->in, BW_REGION_IN)) ||
        (s = check_tensor(c, "out0", &ins->out0, MAY_BLOCK | MAY_VECTOR | MAY_FP32, BW_REGION_OUT)))
        return s;
    int has_in2 = r->in2_needed || !is_absent(&ins->in2), has_out1 = !is_absent(&ins->out1);
    if (has_in2) {
        if (!r->in2)
            return bad(c, "in2 must be absent (all zero) for this operation");
        if ((s = check_tensor(c, "in2", &ins->in2, r->in2, BW_REGION_IN)) ||
            (s = check_same_shape(c, "in2", &ins->in2, "out0", &ins->out0)))
            return s;
    }
    if (has_out1 && ((s = check_tensor(c, "out1", &ins->out1, MAY_BLOCK | MAY_VECTOR | MAY_FP32, BW_REGION_OUT)) ||
                     (s = check_same_shape(c, "out1", &ins->out1, "out0", &ins->out0)) ||
                     (s = check_apart(c, "out1", &ins->out1, "in", &ins->in)) ||
                     (s = check_apart(c, "out1", &ins->out1, "in2", &ins->in2)) ||
                     (s = check_apart(c, "out1", &ins->out1, "out0", &ins->out0))))
        return s;
    if ((s = check_apart(c, "out0", &ins->out0, "in", &ins->in)) ||
        (s = check_apart(c, "out0", &ins->out0, "in2", &ins->in2)))
        return s;
    return BW_OK;
}

static bw_status check_instruction(const check *c)
{
    const bw_instruction *ins = c->ins;
    if (ins->opcode == BW_OP_NONE || ins->opcode >= BW_OP_LIMIT)
        return bad(c, "opcode is %u, must be 1..%u", ins->opcode, BW_OP_LIMIT - 1);
    const rule *r = &rules[ins->opcode];
    bw_status s = check_common(c, r);
    if (s)
        return s;
    if (ins->opcode == BW_OP_CONV)
        return check_conv(c);
    if (ins->opcode == BW_OP_DWCONV)
        return check_dwconv(c);

    if ((s = check_constant(c, "weight_exps", ins->weight_exps, 0)) || (s = check_constant(c, "bias", ins->bias, 0)))
        return s;
    switch (ins->opcode) {
    case BW_OP_MAXPOOL:
    case BW_OP_AVGPOOL:
        return check_pool(c);
    case BW_OP_COPY:
        return check_copy(c);
    case BW_OP_PATCH: {
        uint64_t channels = (uint64_t)ins->kernel_y * ins->kernel_x * ins->in.channels;
        if (channels != ins->out0.channels)
            return bad(c, "out0 has %u channels, %ux%u patches of %u take %" PRIu64, ins->out0.channels, ins->kernel_y,
                       ins->kernel_x, ins->in.channels, channels);
        return check_constant(c, "weights", ins->weights, 0);
    }
    default: /* ADD, MUL */
        if ((s = check_same_shape(c, "in", &ins->in, "out0", &ins->out0)))
            return s;
        return check_constant(c, "weights", ins->weights, 0);
    }
}

static void add_needs(bw_requirements *needs, const bw_tensor *t)
{
    if (t->region == BW_REGION_NONE)
        return;
    needs->formats |= 1u << t->format;
    for (unsigned i = 0; i < 4; i++)
        if (t->block == 16u << i)
            needs->blocks |= 1u << i;
}

bw_status bw_program_parse(const void *bytes, size_t size, bw_program *program, bw_error *err)
{
    if (!bytes || (uintptr_t)bytes % 8)
        return bw_fail(err, BW_INVALID_ARGUMENT, "program: bytes at %p, must be 8-byte aligned", bytes);
    if (size < sizeof(bw_program_header))
        return bw_fail(err, BW_CORRUPT, "program: %zu bytes, a header takes %zu: rebuild the package", size,
                       sizeof(bw_program_header));
    const bw_program_header *h = bytes;
    if (h->magic != BW_PROGRAM_MAGIC)
        return bw_fail(err, BW_CORRUPT, "program: magic is 0x%08x, expected 0x%08x: not a program", h->magic,
                       BW_PROGRAM_MAGIC);
    if (h->isa_version != BW_ISA_VERSION)
        return bw_fail(err, BW_VERSION_MISMATCH,
                       "program: ISA version %u, this version knows %u: rebuild the package or update", h->isa_version,
                       BW_ISA_VERSION);
    if (h->reserved || h->reserved2[0] || h->reserved2[1])
        return bw_fail(err, BW_CORRUPT, "program: reserved header fields must be 0: rebuild the package");
    if (h->instruction_count < 1 || h->instruction_count > MAX_INSTRUCTIONS)
        return bw_fail(err, BW_CORRUPT, "program: %u instructions, must be 1..%u", h->instruction_count,
                       MAX_INSTRUCTIONS);
    uint64_t expected = sizeof *h + (uint64_t)h->instruction_count * sizeof(bw_instruction);
    if (size != expected)
        return bw_fail(err, BW_CORRUPT, "program: %zu bytes, %u instructions take %" PRIu64 ": truncated or damaged",
                       size, h->instruction_count, expected);
    const struct {
        const char *name;
        uint64_t bytes, align;
    } regions[] = {{"act_bytes", h->act_bytes, 1},
                   {"in_bytes", h->in_bytes, 4},
                   {"out_bytes", h->out_bytes, 4},
                   {"const_bytes", h->const_bytes, 1}};
    for (size_t i = 0; i < 4; i++)
        if (regions[i].bytes > MAX_REGION_BYTES || regions[i].bytes % regions[i].align)
            return bw_fail(err, BW_CORRUPT, "program: %s is %" PRIu64 ", must be at most 2^40 and a multiple of %d",
                           regions[i].name, regions[i].bytes, (int)regions[i].align);

    const bw_instruction *instructions = (const bw_instruction *)(h + 1);
    bw_requirements needs = {.isa_version = h->isa_version, .act_bytes = h->act_bytes, .const_bytes = h->const_bytes};
    for (uint32_t i = 0; i < h->instruction_count; i++) {
        const bw_instruction *ins = &instructions[i];
        check c = {h, ins, i, err};
        bw_status s = check_instruction(&c);
        if (s)
            return s;
        needs.opcodes |= 1u << ins->opcode;
        if (ins->weight_format)
            needs.formats |= 1u << ins->weight_format;
        add_needs(&needs, &ins->in);
        add_needs(&needs, &ins->in2);
        add_needs(&needs, &ins->out0);
        add_needs(&needs, &ins->out1);
    }
    program->header = h;
    program->instructions = instructions;
    program->needs = needs;
    return BW_OK;
}

/* --- the whole of OUT --------------------------------------------------------------------------------------------- */

typedef struct range {
    uint64_t from, to;
} range;

static int by_start(const void *a, const void *b)
{
    const range *x = a, *y = b;
    return x->from < y->from ? -1 : x->from > y->from;
}

int bw_program_fills_out(const bw_program *program)
{
    const uint32_t count = program->header->instruction_count;
    range *ranges = malloc((2 * (size_t)count + 1) * sizeof *ranges);
    size_t n = 0;
    if (!ranges)
        return 0;
    for (uint32_t i = 0; i < 2 * count; i++) {
        const bw_instruction *ins = &program->instructions[i / 2];
        const bw_tensor *t = i % 2 ? &ins->out1 : &ins->out0;
        const uint64_t row = (uint64_t)t->width * t->channels, size = row * t->height;
        if (t->region == BW_REGION_OUT && (t->width == 1 || t->pixel_stride == t->channels) &&
            (t->height == 1 || t->row_stride == row))
            ranges[n++] = (range){t->codes, t->codes + size * sizeof(float)};
    }
    qsort(ranges, n, sizeof *ranges, by_start);
    uint64_t end = 0;
    for (size_t i = 0; i < n && ranges[i].from <= end; i++)
        if (ranges[i].to > end)
            end = ranges[i].to;
    free(ranges);
    return end >= program->header->out_bytes;
}
