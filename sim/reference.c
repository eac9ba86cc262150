/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The reference interpreter: docs/isa.md as plain scalar code, one output pixel at a time. It decides what the right
 * bits are, so it is written to be read, not to be fast.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sim/sim.h"

_Static_assert(FLT_EVAL_METHOD == 0, "fp32 arithmetic must round after each operation");

typedef struct machine {
    const uint8_t *constants, *in;
    uint8_t *act, *out;
    /* Scratch of the current instruction. */
    float *source;    /* one decoded pixel of `in` or `in2`, whole blocks */
    float *result;    /* one pixel before encoding */
    uint8_t *weights; /* CONV: all weight codes, unpacked */
} machine;

/* --- tensors ---------------------------------------------------------------------------------------------------------
 */

static uint8_t *region_of(const machine *m, const bw_tensor *t)
{
    return t->region == BW_REGION_ACT ? m->act : t->region == BW_REGION_IN ? (uint8_t *)m->in : m->out;
}

/* First unit of pixel (y, x). */
static uint64_t first_unit(const bw_tensor *t, uint32_t y, uint32_t x)
{
    return (uint64_t)y * t->row_stride + (uint64_t)x * t->pixel_stride;
}

/* Decodes all channels of a pixel; block formats also the padding of the last block. */
static void read_pixel(const machine *m, const bw_tensor *t, uint32_t y, uint32_t x, float *values)
{
    const bw_format_traits *f = bw_format_get((bw_format)t->format);
    const uint8_t *region = region_of(m, t);
    uint64_t k = first_unit(t, y, x);
    if (bw_format_is_block(f)) {
        for (uint32_t u = 0; u < bw_tensor_units(t); u++) {
            const uint8_t *codes = region + t->codes + (k + u) * t->block * f->device_bytes;
            int e = (int8_t)region[t->exps + k + u];
            bw_decode_block(f, codes, e, t->block, values + (size_t)u * t->block);
        }
    } else if (f->kind == BW_KIND_VECTOR) {
        for (uint32_t c = 0; c < t->channels; c++) {
            uint16_t code;
            memcpy(&code, region + t->codes + (k + c) * 2, 2);
            values[c] = bw_decode_vector(f, code);
        }
    } else {
        memcpy(values, region + t->codes + k * 4, (size_t)t->channels * 4);
    }
}

static void write_pixel(const machine *m, const bw_tensor *t, uint32_t y, uint32_t x, const float *values)
{
    if (t->region == BW_REGION_NONE)
        return;
    const bw_format_traits *f = bw_format_get((bw_format)t->format);
    uint8_t *region = region_of(m, t);
    uint64_t k = first_unit(t, y, x);
    if (bw_format_is_block(f)) {
        for (uint32_t u = 0; u < bw_tensor_units(t); u++) {
            uint32_t first = u * t->block, left = t->channels - first, n = left < t->block ? left : t->block;
            uint8_t *codes = region + t->codes + (k + u) * t->block * f->device_bytes;
            int8_t e;
            bw_encode_block(f, BW_ROUND_EVEN, values + first, n, codes, &e);
            memset(codes + n * f->device_bytes, 0, (t->block - n) * f->device_bytes);
            region[t->exps + k + u] = (uint8_t)e;
        }
    } else if (f->kind == BW_KIND_VECTOR) {
        for (uint32_t c = 0; c < t->channels; c++) {
            uint16_t code = bw_encode_vector(f, values[c]);
            memcpy(region + t->codes + (k + c) * 2, &code, 2);
        }
    } else {
        memcpy(region + t->codes + k * 4, values, (size_t)t->channels * 4);
    }
}

/* --- the end of every chain: residual, activation, write -------------------------------------------------------------
 */

static float activate(const bw_instruction *ins, float acc)
{
    if (ins->activation == BW_ACT_RELU)
        return acc > 0.0f ? acc : 0.0f;
    if (ins->activation == BW_ACT_CLIP)
        return acc > ins->clip_hi ? ins->clip_hi : acc < ins->clip_lo ? ins->clip_lo : acc;
    return acc;
}

static void finish_pixel(const machine *m, const bw_instruction *ins, uint32_t y, uint32_t x)
{
    uint32_t channels = ins->out0.channels;
    int residual = (ins->opcode == BW_OP_CONV || ins->opcode == BW_OP_DWCONV) && ins->in2.region != BW_REGION_NONE;
    if (residual) {
        read_pixel(m, &ins->in2, y, x, m->source);
        for (uint32_t c = 0; c < channels; c++)
            m->result[c] = m->result[c] + m->source[c];
    }
    for (uint32_t c = 0; c < channels; c++)
        m->result[c] = activate(ins, m->result[c]);
    write_pixel(m, &ins->out0, y, x, m->result);
    write_pixel(m, &ins->out1, y, x, m->result);
}

/* --- operations: each fills m->result for output pixel (oy, ox) ------------------------------------------------------
 */

/* Input position of tap (ky, kx); 0 if it lies outside. */
static int tap(const bw_instruction *ins, uint32_t oy, uint32_t ox, uint32_t ky, uint32_t kx, uint32_t *iy,
               uint32_t *ix)
{
    int64_t y = (int64_t)oy * ins->stride_y + ins->origin_y + (int64_t)ky * ins->dilation_y;
    int64_t x = (int64_t)ox * ins->stride_x + ins->origin_x + (int64_t)kx * ins->dilation_x;
    if (y < 0 || y >= (int64_t)ins->in.height || x < 0 || x >= (int64_t)ins->in.width)
        return 0;
    *iy = (uint32_t)y;
    *ix = (uint32_t)x;
    return 1;
}

/* Code i of kind INT16. */
static int16_t word_at(const uint8_t *codes, uint32_t i)
{
    int16_t word;
    memcpy(&word, codes + 2 * (size_t)i, sizeof word);
    return word;
}

/* The exact integer dot product of two blocks of codes, rounded once to fp32 (exact below 2^24). */
static float dot(const bw_format_traits *fa, const bw_format_traits *fw, const uint8_t *a, const uint8_t *w_tile,
                 uint32_t lane, uint32_t block)
{
    if (fa->kind == BW_KIND_INT && fw->kind == BW_KIND_INT) { /* codes are their own values, |d| <= 2^21 */
        int32_t d = 0;
        for (uint32_t i = 0; i < block; i++)
            d += (int8_t)a[i] * (int8_t)w_tile[(i / 4 * BW_OUTPUT_TILE + lane) * 4 + i % 4];
        return (float)d;
    }
    const int64_t *va = bw_code_table(fa), *vw = bw_code_table(fw);
    __int128 d = 0; /* two e5m2 blocks reach 2^69 */
    for (uint32_t i = 0; i < block; i++) {
        uint32_t j = (i / 4 * BW_OUTPUT_TILE + lane) * 4 + i % 4;
        d += (__int128)(va ? va[a[i]] : word_at(a, i)) * (vw ? vw[w_tile[j]] : word_at(w_tile, j));
    }
    return (float)d;
}

static void conv_pixel(const machine *m, const bw_instruction *ins, uint32_t oy, uint32_t ox)
{
    const bw_tensor *in = &ins->in;
    const bw_format_traits *fa = bw_format_get((bw_format)in->format);
    const bw_format_traits *fw = bw_format_get((bw_format)ins->weight_format);
    const int8_t *weight_exps = (const int8_t *)m->constants + ins->weight_exps;
    const float *bias = (const float *)(m->constants + ins->bias);
    const uint32_t a_bytes = (uint32_t)in->block * fa->device_bytes, w_bytes = (uint32_t)in->block * fw->device_bytes;
    uint64_t blocks = bw_conv_blocks(ins);
    uint32_t kb_count = (uint32_t)(blocks / ((uint32_t)ins->kernel_y * ins->kernel_x));
    uint32_t per_group = ins->out0.channels / ins->groups;
    uint64_t tiles_per_group = bw_conv_tiles(ins) / ins->groups;

    for (uint32_t n = 0; n < ins->out0.channels; n++) {
        uint32_t group = n / per_group, lane = n % per_group % BW_OUTPUT_TILE;
        uint64_t tile = group * tiles_per_group + n % per_group / BW_OUTPUT_TILE;
        float acc = ins->flags & BW_FLAG_BIAS ? bias[tile * BW_OUTPUT_TILE + lane] : 0.0f;
        uint64_t r = tile * blocks; /* reduction block, in the order of the weights */
        for (uint32_t ky = 0; ky < ins->kernel_y; ky++)
            for (uint32_t kx = 0; kx < ins->kernel_x; kx++) {
                uint32_t iy, ix;
                if (!tap(ins, oy, ox, ky, kx, &iy, &ix)) {
                    r += kb_count; /* zeros add nothing */
                    continue;
                }
                for (uint32_t kb = 0; kb < kb_count; kb++, r++) {
                    uint64_t k = first_unit(in, iy, ix) + (uint64_t)group * kb_count + kb;
                    const uint8_t *a = m->act + in->codes + k * a_bytes;
                    int ea = (int8_t)m->act[in->exps + k], ew = weight_exps[r * BW_OUTPUT_TILE + lane];
                    const uint8_t *w = m->weights + r * BW_OUTPUT_TILE * w_bytes;
                    float t = dot(fa, fw, a, w, lane, in->block);
                    acc = acc + ldexpf(t, ea + ew); /* the scaling is exact: one rounding, in the sum */
                }
            }
        m->result[n] = acc;
    }
}

static void dwconv_pixel(const machine *m, const bw_instruction *ins, uint32_t oy, uint32_t ox)
{
    const bw_format_traits *fw = bw_format_get((bw_format)ins->weight_format);
    const uint16_t *weights = (const uint16_t *)(m->constants + ins->weights);
    const float *bias = (const float *)(m->constants + ins->bias);
    uint32_t channels = ins->in.channels;
    size_t stride = ((size_t)channels + 15) / 16 * 16;
    for (uint32_t c = 0; c < channels; c++)
        m->result[c] = ins->flags & BW_FLAG_BIAS ? bias[c] : 0.0f;
    for (uint32_t ky = 0; ky < ins->kernel_y; ky++)
        for (uint32_t kx = 0; kx < ins->kernel_x; kx++) {
            uint32_t iy, ix;
            if (!tap(ins, oy, ox, ky, kx, &iy, &ix))
                continue;
            read_pixel(m, &ins->in, iy, ix, m->source);
            const uint16_t *w = weights + ((size_t)ky * ins->kernel_x + kx) * stride;
            for (uint32_t c = 0; c < channels; c++) {
                float product = m->source[c] * bw_decode_vector(fw, w[c]); /* exact */
                m->result[c] = m->result[c] + product;
            }
        }
}

static void pool_pixel(const machine *m, const bw_instruction *ins, uint32_t oy, uint32_t ox)
{
    uint32_t channels = ins->in.channels, count = 0;
    int average = ins->opcode == BW_OP_AVGPOOL;
    memset(m->result, 0, (size_t)channels * sizeof *m->result);
    for (uint32_t ky = 0; ky < ins->kernel_y; ky++)
        for (uint32_t kx = 0; kx < ins->kernel_x; kx++) {
            uint32_t iy, ix;
            if (!tap(ins, oy, ox, ky, kx, &iy, &ix))
                continue;
            read_pixel(m, &ins->in, iy, ix, m->source);
            for (uint32_t c = 0; c < channels; c++) {
                float x = m->source[c];
                if (average)
                    m->result[c] = m->result[c] + x;
                else if (count == 0 || x > m->result[c])
                    m->result[c] = x;
            }
            count++;
        }
    if (average) {
        const float *recip = (const float *)(m->constants + ins->weights);
        if (ins->flags & BW_FLAG_COUNT_PAD)
            count = (uint32_t)ins->kernel_y * ins->kernel_x;
        for (uint32_t c = 0; c < channels; c++)
            m->result[c] = m->result[c] * recip[count];
    }
}

static void eltwise_pixel(const machine *m, const bw_instruction *ins, uint32_t oy, uint32_t ox)
{
    uint32_t channels = ins->out0.channels;
    read_pixel(m, &ins->in, oy, ox, m->source);
    memcpy(m->result, m->source, (size_t)channels * sizeof *m->result);
    read_pixel(m, &ins->in2, oy, ox, m->source);
    for (uint32_t c = 0; c < channels; c++)
        m->result[c] = ins->opcode == BW_OP_ADD ? m->result[c] + m->source[c] : m->result[c] * m->source[c];
}

static void copy_pixel(const machine *m, const bw_instruction *ins, uint32_t oy, uint32_t ox)
{
    const int32_t *map = ins->flags & BW_FLAG_CHANNEL_MAP ? (const int32_t *)(m->constants + ins->weights) : NULL;
    read_pixel(m, &ins->in, oy, ox, m->source);
    for (uint32_t c = 0; c < ins->out0.channels; c++) {
        int32_t from = map ? map[c] : (int32_t)c;
        m->result[c] = from < 0 ? 0.0f : m->source[from];
    }
}

static void patch_pixel(const machine *m, const bw_instruction *ins, uint32_t oy, uint32_t ox)
{
    float *to = m->result;
    for (uint32_t ky = 0; ky < ins->kernel_y; ky++)
        for (uint32_t kx = 0; kx < ins->kernel_x; kx++, to += ins->in.channels) {
            uint32_t iy, ix;
            if (tap(ins, oy, ox, ky, kx, &iy, &ix))
                read_pixel(m, &ins->in, iy, ix, to);
            else
                memset(to, 0, (size_t)ins->in.channels * sizeof *to);
        }
}

static void (*const operations[BW_OP_LIMIT])(const machine *, const bw_instruction *, uint32_t, uint32_t) = {
    [BW_OP_CONV] = conv_pixel,    [BW_OP_DWCONV] = dwconv_pixel, [BW_OP_MAXPOOL] = pool_pixel,
    [BW_OP_AVGPOOL] = pool_pixel, [BW_OP_ADD] = eltwise_pixel,   [BW_OP_MUL] = eltwise_pixel,
    [BW_OP_COPY] = copy_pixel,    [BW_OP_PATCH] = patch_pixel,
};

/* --- programs --------------------------------------------------------------------------------------------------------
 */

static size_t padded_channels(const bw_tensor *t)
{
    return t->region == BW_REGION_NONE ? 0 : (size_t)bw_tensor_units(t) * t->block;
}

static bw_status run_instruction(machine *m, const bw_instruction *ins, uint32_t index, bw_error *err)
{
    size_t source = padded_channels(&ins->in), second = padded_channels(&ins->in2);
    if (second > source)
        source = second;
    uint64_t codes = 0; /* of weights; in bytes at most 8 / 3 of const_bytes */
    const bw_format_traits *fw = bw_format_get((bw_format)ins->weight_format);
    if (ins->opcode == BW_OP_CONV)
        codes = bw_conv_tiles(ins) * bw_conv_blocks(ins) * BW_OUTPUT_TILE * ins->in.block;
    m->source = calloc(source, sizeof(float));
    m->result = calloc(ins->out0.channels, sizeof(float));
    m->weights = codes ? malloc(codes * fw->device_bytes) : NULL;
    bw_status s = BW_OK;
    if (!m->source || !m->result || (codes && !m->weights)) {
        s = bw_fail(err, BW_NO_MEMORY, "reference: no memory for instruction %u (%s)", index,
                    bw_opcode_name(ins->opcode));
    } else {
        if (codes)
            bw_unpack(fw, m->constants + ins->weights, codes, m->weights);
        for (uint32_t oy = 0; oy < ins->out0.height; oy++)
            for (uint32_t ox = 0; ox < ins->out0.width; ox++) {
                operations[ins->opcode](m, ins, oy, ox);
                finish_pixel(m, ins, oy, ox);
            }
    }
    free(m->weights);
    free(m->result);
    free(m->source);
    return s;
}

bw_status bw_reference_run(const bw_program *program, const void *constants, const void *in, void *out, uint32_t batch,
                           bw_error *err)
{
    const bw_program_header *h = program->header;
    bw_status s = BW_OK;
    for (uint32_t image = 0; image < batch && !s; image++) {
        machine m = {.constants = constants,
                     .in = in ? (const uint8_t *)in + image * h->in_bytes : NULL,
                     .out = out ? (uint8_t *)out + image * h->out_bytes : NULL};
        /* Zeroed anew for each image, so that a batch gives what its images give alone. */
        m.act = calloc(h->act_bytes ? h->act_bytes : 1, 1);
        if (!m.act)
            return bw_fail(err, BW_NO_MEMORY, "reference: no memory for %llu bytes of activations",
                           (unsigned long long)h->act_bytes);
        for (uint32_t i = 0; i < h->instruction_count && !s; i++)
            s = run_instruction(&m, &program->instructions[i], i, err);
        free(m.act);
    }
    return s;
}
