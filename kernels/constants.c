/* SPDX-License-Identifier: Apache-2.0 */
/* Checks of the values that a program's arithmetic relies on, and of what a device offers. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/checks.h"
#include "kernels/isa.h"

int bw_multiple_of_2_to_minus_126(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint32_t field = (bits >> 23) & 0xFF, fraction = bits & 0x7FFFFF;
    if (bits == 0)
        return 1;
    if (field == 0xFF || field == 0) /* infinity, NaN, -0; a subnormal is below 2^-126 */
        return 0;
    /* The last of the 24 significand bits weighs 2^(field - 150); those below 2^-126 must be zero. */
    return field >= 24 || ((fraction | 0x800000) & ((1u << (24 - field)) - 1)) == 0;
}

/* A bf16 or fp16 code that the encoder could have written, or -0. */
static int vector_code_ok(const bw_format_traits *t, uint16_t code)
{
    uint32_t magnitude = code & 0x7FFFu;
    if (t->format == BW_FORMAT_FP16)
        return magnitude < 0x7C00;
    if (magnitude == 0)
        return 1;
    uint32_t field = magnitude >> 7, sig = (magnitude & 0x7F) | 0x80;
    /* value = sig * 2^(field - 134): a multiple of 2^-63, at most 255 * 2^40 */
    if (field > 174 || field < 64)
        return 0;
    return field >= 71 || (sig & ((1u << (71 - field)) - 1)) == 0;
}

typedef struct place {
    const bw_instruction *ins;
    uint32_t index;
    bw_error *err;
} place;

static bw_status bad(const place *p, bw_status status, const char *what, uint64_t at, const char *value,
                     const char *expected)
{
    return bw_fail(p->err, status, "constants: instruction %u (%s): %s %" PRIu64 " is %s, must be %s", p->index,
                   bw_opcode_name(p->ins->opcode), what, at, value, expected);
}

static bw_status check_exponents(const place *p, const int8_t *exps, uint64_t n)
{
    const bw_format_traits *t = bw_format_get((bw_format)p->ins->weight_format);
    /* In chunks, so that the compiler makes vectors of the scan and an early error is still early. */
    for (uint64_t start = 0; start < n; start += 4096) {
        uint64_t end = n - start < 4096 ? n : start + 4096;
        int8_t low = 127, high = -128;
        for (uint64_t i = start; i < end; i++) {
            low = exps[i] < low ? exps[i] : low;
            high = exps[i] > high ? exps[i] : high;
        }
        if (low >= t->exp_min && high <= t->exp_max)
            continue;
        for (uint64_t i = start; i < end; i++)
            if (exps[i] < t->exp_min || exps[i] > t->exp_max) {
                char value[16], range[48];
                snprintf(value, sizeof value, "%d", exps[i]);
                snprintf(range, sizeof range, "%d..%d for %s", t->exp_min, t->exp_max, t->name);
                return bad(p, BW_CORRUPT, "weight exponent", i, value, range);
            }
    }
    return BW_OK;
}

static bw_status check_biases(const place *p, const float *bias, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        float b = bias[i];
        if (bw_multiple_of_2_to_minus_126(b) && b >= -0x1p126f && b <= 0x1p126f)
            continue;
        char value[32];
        snprintf(value, sizeof value, "%a", (double)b);
        return bad(p, b - b != 0 ? BW_NOT_FINITE : BW_CORRUPT, "bias", i, value,
                   "a multiple of 2^-126 within +-2^126 and not -0");
    }
    return BW_OK;
}

static bw_status check_vector_weights(const place *p, const uint16_t *codes, uint64_t n)
{
    const bw_format_traits *t = bw_format_get((bw_format)p->ins->weight_format);
    for (uint64_t i = 0; i < n; i++)
        if (!vector_code_ok(t, codes[i])) {
            char value[32];
            float x = bw_decode_vector(t, codes[i]);
            snprintf(value, sizeof value, "%a (0x%04x)", (double)x, codes[i]);
            return bad(p, x - x != 0 ? BW_NOT_FINITE : BW_CORRUPT, "weight", i, value,
                       t->format == BW_FORMAT_FP16 ? "finite" : "a multiple of 2^-63 within +-255 * 2^40");
        }
    return BW_OK;
}

static bw_status check_reciprocals(const place *p, const float *recips, uint64_t n)
{
    /* Entry 0 is not used. */
    for (uint64_t i = 1; i < n; i++)
        if (!(recips[i] >= 0x1p-40f && recips[i] <= 0x1p40f)) {
            char value[32];
            snprintf(value, sizeof value, "%a", (double)recips[i]);
            return bad(p, recips[i] - recips[i] != 0 ? BW_NOT_FINITE : BW_CORRUPT, "reciprocal", i, value,
                       "2^-40..2^40");
        }
    return BW_OK;
}

static bw_status check_channel_map(const place *p, const int32_t *map, uint64_t n)
{
    uint32_t channels = p->ins->in.channels;
    for (uint64_t i = 0; i < n; i++)
        if (map[i] < -1 || map[i] >= (int32_t)channels) {
            char value[16], range[32];
            snprintf(value, sizeof value, "%d", map[i]);
            snprintf(range, sizeof range, "-1..%u", channels - 1);
            return bad(p, BW_CORRUPT, "channel map entry", i, value, range);
        }
    return BW_OK;
}

/* --- what to check
 * ---------------------------------------------------------------------------------------------------- */

typedef enum kind { EXPONENTS, VECTOR_WEIGHTS, BIASES, RECIPROCALS, CHANNEL_MAP } kind;

/* An array of the constants region that instruction `index` reads. */
typedef struct array {
    uint64_t offset, count;
    uint32_t index;
    uint32_t rule; /* what decides besides the kind: the format, or the number of source channels */
    uint8_t kind;
    uint8_t again; /* read by an earlier instruction in the same way */
} array;

/* Fills up to two arrays, returns how many. */
static size_t arrays_of(const bw_instruction *ins, uint32_t index, array *to)
{
    uint64_t taps = (uint64_t)ins->kernel_y * ins->kernel_x, outputs = 0;
    switch (ins->opcode) {
    case BW_OP_CONV:
        outputs = bw_conv_tiles(ins) * BW_OUTPUT_TILE;
        to[0] = (array){ins->weight_exps, bw_conv_blocks(ins) * outputs, index, ins->weight_format, EXPONENTS, 0};
        break;
    case BW_OP_DWCONV:
        outputs = ((uint64_t)ins->in.channels + 15) / 16 * 16;
        to[0] = (array){ins->weights, outputs * taps, index, ins->weight_format, VECTOR_WEIGHTS, 0};
        break;
    case BW_OP_AVGPOOL:
        to[0] = (array){ins->weights, taps + 1, index, 0, RECIPROCALS, 0};
        return 1;
    case BW_OP_COPY:
        to[0] = (array){ins->weights, ins->out0.channels, index, ins->in.channels, CHANNEL_MAP, 0};
        return ins->flags & BW_FLAG_CHANNEL_MAP ? 1 : 0;
    default:
        return 0;
    }
    to[1] = (array){ins->bias, outputs, index, 0, BIASES, 0};
    return ins->flags & BW_FLAG_BIAS ? 2 : 1;
}

static bw_status check_array(const bw_program *program, const array *a, const uint8_t *constants, bw_error *err)
{
    place p = {&program->instructions[a->index], a->index, err};
    const void *at = constants + a->offset;
    switch (a->kind) {
    case EXPONENTS:
        return check_exponents(&p, at, a->count);
    case VECTOR_WEIGHTS:
        return check_vector_weights(&p, at, a->count);
    case BIASES:
        return check_biases(&p, at, a->count);
    case RECIPROCALS:
        return check_reciprocals(&p, at, a->count);
    default:
        return check_channel_map(&p, at, a->count);
    }
}

static int compare_arrays(const void *left, const void *right)
{
    const array *a = *(array *const *)left, *b = *(array *const *)right;
    if (a->kind != b->kind)
        return a->kind < b->kind ? -1 : 1;
    if (a->rule != b->rule)
        return a->rule < b->rule ? -1 : 1;
    if (a->offset != b->offset)
        return a->offset < b->offset ? -1 : 1;
    if (a->count != b->count)
        return a->count < b->count ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

/* Marks arrays that are read again in the same way, as an unrolled recurrent layer does. What is left may cover the
 * region only so many times: a small file must not keep the checker busy for hours. */
static bw_status mark_repeated(const bw_program *program, array *arrays, array **order, size_t n, bw_error *err)
{
    static const uint8_t element[] = {
        [EXPONENTS] = 1, [VECTOR_WEIGHTS] = 2, [BIASES] = 4, [RECIPROCALS] = 4, [CHANNEL_MAP] = 4};
    const uint64_t limit = 64;
    for (size_t i = 0; i < n; i++)
        order[i] = &arrays[i];
    qsort(order, n, sizeof *order, compare_arrays);
    uint64_t bytes = 0; /* each array lies inside the region: < 2^17 * 2^40 */
    for (size_t i = 0; i < n; i++) {
        const array *last = i ? order[i - 1] : NULL, *a = order[i];
        if (last && last->kind == a->kind && last->rule == a->rule && last->offset == a->offset &&
            last->count == a->count)
            order[i]->again = 1;
        else
            bytes += a->count * element[a->kind];
    }
    if (bytes > limit * program->header->const_bytes)
        return bw_fail(err, BW_CORRUPT,
                       "constants: arrays of %" PRIu64 " bytes overlap in a region of %" PRIu64
                       " bytes, at most %" PRIu64 " times its size may be in use",
                       bytes, program->header->const_bytes, limit);
    return BW_OK;
}

bw_status bw_program_check_constants(const bw_program *program, const void *constants, size_t size, bw_error *err)
{
    if (size != program->header->const_bytes)
        return bw_fail(err, BW_CORRUPT, "constants: %zu bytes, the program was made for %" PRIu64 ": rebuild", size,
                       program->header->const_bytes);
    if (size && (!constants || (uintptr_t)constants % BW_WEIGHT_ALIGN))
        return bw_fail(err, BW_INVALID_ARGUMENT, "constants: bytes at %p, must be %u-byte aligned", constants,
                       BW_WEIGHT_ALIGN);
    if (size == 0) /* validated: nothing reads constants */
        return BW_OK;
    uint32_t instructions = program->header->instruction_count;
    array *arrays = malloc(2 * (size_t)instructions * (sizeof *arrays + sizeof(array *)));
    if (!arrays)
        return bw_fail(err, BW_NO_MEMORY, "constants: no memory to check %u instructions", instructions);
    size_t n = 0;
    for (uint32_t i = 0; i < instructions; i++)
        n += arrays_of(&program->instructions[i], i, arrays + n);
    array **order = (array **)(arrays + 2 * (size_t)instructions);
    bw_status s = mark_repeated(program, arrays, order, n, err);
    for (size_t i = 0; i < n && !s; i++)
        if (!arrays[i].again)
            s = check_array(program, &arrays[i], constants, err);
    free(arrays);
    return s;
}

/* "fp16 msfp12": the names of a set of formats. */
static const char *format_names(uint32_t formats, char *text, size_t size)
{
    size_t n = 0;
    text[0] = 0;
    for (unsigned f = 1; f < 32 && n < size; f++) {
        const bw_format_traits *t = formats >> f & 1 ? bw_format_get((bw_format)f) : NULL;
        if (t)
            n += (size_t)snprintf(text + n, size - n, "%s%s", n ? " " : "", t->name);
    }
    return n ? text : "none";
}

static const char *block_sizes(uint32_t blocks, char *text, size_t size)
{
    size_t n = 0;
    text[0] = 0;
    for (unsigned b = 0; b < 4 && n < size; b++)
        if (blocks >> b & 1)
            n += (size_t)snprintf(text + n, size - n, "%s%u", n ? " " : "", 16u << b);
    return n ? text : "none";
}

bw_status bw_requirements_met(const bw_requirements *program, const bw_requirements *device, bw_error *err)
{
    if (program->isa_version != device->isa_version)
        return bw_fail(err, BW_INCOMPATIBLE, "program: ISA version %u, the device runs %u: rebuild the package",
                       program->isa_version, device->isa_version);
    char text[256];
    uint32_t lacks = program->formats & ~device->formats;
    if (lacks) {
        const bw_format_traits *t = bw_format_get((bw_format)__builtin_ctz(lacks));
        return bw_fail(err, BW_INCOMPATIBLE,
                       "program: uses format %s, the device has %s: quantize to one of these or pick another device",
                       t ? t->name : "?", format_names(device->formats, text, sizeof text));
    }
    lacks = program->opcodes & ~device->opcodes;
    if (lacks)
        return bw_fail(err, BW_INCOMPATIBLE,
                       "program: uses operation %s (operations 0x%x), the device has 0x%x: pick another bitstream",
                       bw_opcode_name((unsigned)__builtin_ctz(lacks)), program->opcodes, device->opcodes);
    lacks = program->blocks & ~device->blocks;
    if (lacks)
        return bw_fail(err, BW_INCOMPATIBLE,
                       "program: uses blocks of %u, the device has %s: quantize with one of these or pick another "
                       "device",
                       16u << __builtin_ctz(lacks), block_sizes(device->blocks, text, sizeof text));
    if (program->act_bytes > device->act_bytes)
        return bw_fail(err, BW_INCOMPATIBLE,
                       "program: needs %" PRIu64 " bytes of activations, the device has %" PRIu64
                       ": pick a device with more memory",
                       program->act_bytes, device->act_bytes);
    if (program->const_bytes > device->const_bytes)
        return bw_fail(err, BW_INCOMPATIBLE,
                       "program: needs %" PRIu64 " bytes of constants, the device has %" PRIu64
                       ": pick a device with more memory or a narrower format",
                       program->const_bytes, device->const_bytes);
    return BW_OK;
}
