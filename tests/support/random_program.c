/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/random_program.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_LIVE         64
#define MAX_INSTRUCTIONS 512

enum { BLOCK = 1, VECTOR = 2, FP32 = 4 };

typedef struct maker {
    struct bw_random_options o;
    uint64_t state;
    bw_instruction ins[MAX_INSTRUCTIONS];
    uint32_t count;
    bw_tensor live[MAX_LIVE]; /* written tensors in ACT */
    int shown[MAX_LIVE];      /* already copied to OUT */
    uint32_t live_count;
    bw_tensor inputs[2];
    uint32_t input_count;
    uint64_t act, act_max, in, out;
    uint8_t *constants;
    size_t constants_size, constants_room;
    int failed; /* out of memory */
} maker;

/* --- chance ----------------------------------------------------------------------------------------------------------
 */

static uint64_t next(maker *m)
{
    uint64_t z = (m->state += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

/* low..high, both included */
static int64_t between(maker *m, int64_t low, int64_t high)
{
    return low + (int64_t)(next(m) % (uint64_t)(high - low + 1));
}

static int one_in(maker *m, unsigned n)
{
    return next(m) % n == 0;
}

/* A random integer times a random power of two. (As one expression the order of the draws would be the compiler's.) */
static float random_dyadic(maker *m, int low, int high, int low_exp, int high_exp)
{
    float x = (float)between(m, low, high);
    return ldexpf(x, (int)between(m, low_exp, high_exp));
}

/* A finite float: mostly of ordinary size, sometimes special. `wild`: any exponent at all. */
static float random_float(maker *m, int wild)
{
    static const float special[] = {0.0f,     -0.0f,     1.0f,      -1.0f,     0.5f,     1.5f,
                                    2.5f,     65504.0f,  65520.0f,  -65536.0f, 0x1p-63f, 0x1p-64f,
                                    0x3p-64f, 0x1p-149f, 0x1p-126f, 0x1p40f,   -0x1p47f, 3.4e38f};
    float x;
    if (one_in(m, 16))
        return special[next(m) % (sizeof special / sizeof *special)];
    if (wild) {
        uint32_t bits = (uint32_t)next(m);
        if ((bits & 0x7F800000) == 0x7F800000)
            bits &= ~0x40000000u;
        memcpy(&x, &bits, sizeof x);
        return x;
    }
    if (one_in(m, 4)) /* few significant bits: ties */
        return random_dyadic(m, -33, 33, -8, 4);
    return random_dyadic(m, -(1 << 23), 1 << 23, -27, -20);
}

/* --- memory ----------------------------------------------------------------------------------------------------------
 */

static uint64_t take(maker *m, uint64_t *region, uint64_t bytes, uint64_t align)
{
    uint64_t at = (*region + align - 1) / align * align;
    if (one_in(m, 4))
        at += align * (uint64_t)between(m, 0, 3);
    *region = at + bytes;
    return at;
}

/* `bytes` of constants; NULL after a failed allocation. The pointer is valid until the next call. */
static void *take_constants(maker *m, size_t bytes, uint64_t *offset)
{
    size_t at = (m->constants_size + BW_WEIGHT_ALIGN - 1) / BW_WEIGHT_ALIGN * BW_WEIGHT_ALIGN;
    size_t room = m->constants_room;
    while (room < at + bytes)
        room = room ? room * 2 : 65536;
    if (room != m->constants_room) {
        uint8_t *bigger = realloc(m->constants, room);
        if (!bigger) {
            m->failed = 1;
            return NULL;
        }
        m->constants = bigger;
        m->constants_room = room;
    }
    memset(m->constants + m->constants_size, 0, at - m->constants_size);
    m->constants_size = at + bytes;
    *offset = at;
    return m->constants + at;
}

/* --- tensors ---------------------------------------------------------------------------------------------------------
 */

static unsigned kind_of(unsigned format)
{
    switch (bw_format_get((bw_format)format)->kind) {
    case BW_KIND_FLOAT:
        return FP32;
    case BW_KIND_VECTOR:
        return VECTOR;
    default:
        return BLOCK;
    }
}

/* 1 and a format with its block from those allowed; block 0: any. */
static int pick_format(maker *m, unsigned kinds, unsigned block, uint8_t *format, uint16_t *chosen)
{
    struct {
        uint8_t format;
        uint16_t block;
    } list[BW_FORMAT_LIMIT * 4];
    static const unsigned blocks[] = {16, 32, 64, 128, 1};
    unsigned n = 0;
    for (unsigned f = 1; f < BW_FORMAT_LIMIT; f++) {
        const bw_format_traits *t = bw_format_get((bw_format)f);
        if (!t || !(kind_of(f) & kinds) || (f != BW_FORMAT_FP32 && !(m->o.formats >> f & 1)))
            continue;
        for (unsigned b = 0; b < 5; b++)
            if (bw_format_block_ok(t, blocks[b]) && (!block || block == blocks[b]) &&
                (blocks[b] == 1 || (m->o.blocks >> b & 1))) {
                list[n].format = (uint8_t)f;
                list[n++].block = (uint16_t)blocks[b];
            }
    }
    if (!n)
        return 0;
    unsigned i = (unsigned)(next(m) % n);
    *format = list[i].format;
    *chosen = list[i].block;
    return 1;
}

/* Gives `t` (shape and format set) strides and memory in its region. */
static void place(maker *m, bw_tensor *t)
{
    const bw_format_traits *f = bw_format_get((bw_format)t->format);
    uint32_t units = bw_tensor_units(t);
    int loose = t->region != BW_REGION_OUT && one_in(m, 4); /* no gaps in OUT: each of its bytes is compared */
    t->pixel_stride = units + (loose ? (uint32_t)between(m, 0, 3) : 0);
    t->row_stride = t->width * t->pixel_stride + (loose ? (uint32_t)between(m, 0, 9) : 0);
    uint64_t all = (uint64_t)t->height * t->row_stride;
    uint64_t *region = t->region == BW_REGION_ACT ? &m->act : t->region == BW_REGION_IN ? &m->in : &m->out;
    if (t->region == BW_REGION_OUT) {
        t->codes = m->out;
        m->out += all * 4;
        return;
    }
    t->codes = take(m, region, all * t->block * f->device_bytes, kind_of(t->format) == BLOCK ? 16 : f->device_bytes);
    t->exps = kind_of(t->format) == BLOCK ? take(m, region, all, 1) : 0;
    if (m->act > m->act_max)
        m->act_max = m->act;
}

static void keep(maker *m, const bw_tensor *t)
{
    if (t->region != BW_REGION_ACT)
        return;
    m->shown[m->live_count] = 0;
    m->live[m->live_count++] = *t;
}

/* A new result of this shape. */
static bw_tensor new_output(maker *m, uint32_t height, uint32_t width, uint32_t channels, unsigned kinds)
{
    bw_tensor t = {.height = height, .width = width, .channels = channels};
    if (!pick_format(m, kinds, 0, &t.format, &t.block))
        pick_format(m, FP32, 1, &t.format, &t.block);
    t.region = t.format == BW_FORMAT_FP32 ? BW_REGION_OUT : BW_REGION_ACT;
    place(m, &t);
    return t;
}

static const bw_tensor *pick_live(maker *m, unsigned kinds)
{
    uint32_t n = 0, found[MAX_LIVE];
    for (uint32_t i = 0; i < m->live_count; i++)
        if (kind_of(m->live[i].format) & kinds)
            found[n++] = i;
    return n ? &m->live[found[next(m) % n]] : NULL;
}

static int same_shape(const bw_tensor *a, const bw_tensor *b)
{
    return a->height == b->height && a->width == b->width && a->channels == b->channels;
}

/* --- instructions ----------------------------------------------------------------------------------------------------
 */

static bw_instruction *start(bw_instruction *ins, bw_opcode opcode, const bw_tensor *in)
{
    memset(ins, 0, sizeof *ins);
    ins->opcode = (uint8_t)opcode;
    ins->kernel_y = ins->kernel_x = ins->stride_y = ins->stride_x = ins->dilation_y = ins->dilation_x = 1;
    ins->groups = 1;
    ins->in = *in;
    return ins;
}

static void random_activation(maker *m, bw_instruction *ins)
{
    ins->activation = (uint8_t)between(m, 0, BW_ACT_LIMIT - 1);
    if (ins->activation != BW_ACT_CLIP)
        return;
    float a = random_dyadic(m, -96, 96, -6, 2);
    float b = random_dyadic(m, -96, 96, -6, 2);
    if (one_in(m, 2))
        a = 0.0f, b = 6.0f;
    ins->clip_lo = a < b ? a : b;
    ins->clip_hi = a < b ? b : a;
}

/* The second output, the activation, and the end of the chain. */
static void finish(maker *m, bw_instruction *ins)
{
    const bw_tensor *o = &ins->out0;
    random_activation(m, ins);
    if (one_in(m, 3))
        ins->out1 = new_output(m, o->height, o->width, o->channels, BLOCK | VECTOR | (one_in(m, 4) ? FP32 : 0));
    m->ins[m->count++] = *ins;
    keep(m, &ins->out0);
    if (ins->out1.region)
        keep(m, &ins->out1);
}

/* A live tensor of these kinds; converts one (or an input) when there is none. NULL if the options allow no format. */
static const bw_tensor *source(maker *m, unsigned kinds)
{
    const bw_tensor *t = pick_live(m, kinds);
    uint8_t format;
    uint16_t block;
    if ((t && !one_in(m, 8)) || !pick_format(m, kinds, 0, &format, &block))
        return t;
    const bw_tensor *from = pick_live(m, BLOCK | VECTOR);
    if (!from || one_in(m, 6))
        from = &m->inputs[next(m) % m->input_count];
    bw_instruction ins;
    start(&ins, BW_OP_COPY, from);
    ins.out0 = new_output(m, from->height, from->width, from->channels, kinds);
    random_activation(m, &ins);
    m->ins[m->count++] = ins;
    keep(m, &ins.out0);
    return &m->live[m->live_count - 1];
}

static void random_window(maker *m, bw_instruction *ins)
{
    if (one_in(m, 3)) { /* 1x1 */
        if (one_in(m, 2)) {
            ins->stride_y = (uint16_t)between(m, 1, 3);
            ins->stride_x = (uint16_t)between(m, 1, 3);
        }
        return;
    }
    ins->kernel_y = (uint16_t)between(m, 1, 3);
    ins->kernel_x = (uint16_t)between(m, 1, 3);
    if (one_in(m, 6)) { /* the whole input, as a fully connected layer has it */
        ins->kernel_y = (uint16_t)ins->in.height;
        ins->kernel_x = (uint16_t)ins->in.width;
    }
    ins->stride_y = (uint16_t)between(m, 1, 3);
    ins->stride_x = (uint16_t)between(m, 1, 3);
    if (one_in(m, 3)) {
        ins->dilation_y = (uint16_t)between(m, 1, 3);
        ins->dilation_x = (uint16_t)between(m, 1, 3);
    }
    ins->origin_y = (int16_t)between(m, -2, one_in(m, 4) ? 2 : 0);
    ins->origin_x = (int16_t)between(m, -2, one_in(m, 4) ? 2 : 0);
}

/* Outputs along one axis: mostly what a framework would compute, sometimes fewer or more. */
static uint32_t random_outputs(maker *m, uint32_t extent, uint32_t kernel, uint32_t stride, uint32_t dilation,
                               int origin)
{
    int64_t room = (int64_t)extent - 2 * origin - (int64_t)dilation * (kernel - 1) - 1;
    int64_t n = room < 0 ? 1 : room / stride + 1;
    if (one_in(m, 6))
        n = between(m, 1, m->o.max_extent);
    return n < m->o.max_extent ? (uint32_t)n : m->o.max_extent;
}

static uint32_t random_channels(maker *m)
{
    if (one_in(m, 3))
        return (uint32_t)between(m, 1, m->o.max_channels < 8 ? m->o.max_channels : 8);
    if (m->o.max_channels >= 16 && one_in(m, 2)) /* whole blocks, which groups need */
        return 16 * (uint32_t)between(m, 1, m->o.max_channels / 16);
    return (uint32_t)between(m, 1, m->o.max_channels);
}

static void random_bias(maker *m, bw_instruction *ins, size_t n)
{
    if (one_in(m, 3))
        return;
    float *bias = take_constants(m, n * sizeof *bias, &ins->bias);
    if (!bias)
        return;
    ins->flags |= BW_FLAG_BIAS;
    for (size_t i = 0; i < n; i++) {
        bias[i] = one_in(m, 20) ? ldexpf(1.0f, (int)between(m, -126, 100)) : random_float(m, 0);
        if (fabsf(bias[i]) < 0x1p-100f || fabsf(bias[i]) > 0x1p126f)
            bias[i] = one_in(m, 2) ? 0.0f : 0x1p-126f;
    }
}

/* Shape of the result: the shape of an existing tensor, so that it can be a residual, or (oh, ow, channels). */
static void choose_output(maker *m, bw_instruction *ins, uint32_t oh, uint32_t ow, uint32_t channels,
                          int fixed_channels, uint64_t work_per_pixel_channel)
{
    if (one_in(m, 2))
        for (int attempt = 0; attempt < 8; attempt++) {
            const bw_tensor *r = pick_live(m, BLOCK | VECTOR);
            if (r && (!fixed_channels || r->channels == channels) &&
                (uint64_t)r->height * r->width * r->channels * work_per_pixel_channel <= m->o.max_work &&
                r->channels % ins->groups == 0) {
                ins->in2 = *r;
                oh = r->height;
                ow = r->width;
                channels = r->channels;
                break;
            }
        }
    while ((uint64_t)oh * ow * channels * work_per_pixel_channel > m->o.max_work && (oh > 1 || ow > 1)) {
        oh = (oh + 1) / 2;
        ow = (ow + 1) / 2;
    }
    while ((uint64_t)channels * work_per_pixel_channel > m->o.max_work && channels > ins->groups && !fixed_channels)
        channels = (channels / ins->groups + 1) / 2 * ins->groups;
    ins->out0 = new_output(m, oh, ow, channels, BLOCK | VECTOR | (one_in(m, 12) ? FP32 : 0));
}

static void make_conv(maker *m)
{
    const bw_tensor *in = source(m, BLOCK);
    if (!in)
        return;
    bw_instruction ins;
    start(&ins, BW_OP_CONV, in);
    random_window(m, &ins);
    uint16_t block;
    if (!pick_format(m, BLOCK, ins.in.block, &ins.weight_format, &block))
        return;
    uint32_t units = bw_tensor_units(&ins.in);
    if (units > 1 && one_in(m, 2)) { /* the padding of the last block is zeros: whole blocks may be read */
        ins.in.channels = units * ins.in.block;
        do
            ins.groups = (uint32_t)between(m, 2, units);
        while (units % ins.groups);
    }
    uint32_t oh = random_outputs(m, ins.in.height, ins.kernel_y, ins.stride_y, ins.dilation_y, ins.origin_y);
    uint32_t ow = random_outputs(m, ins.in.width, ins.kernel_x, ins.stride_x, ins.dilation_x, ins.origin_x);
    uint32_t channels = (random_channels(m) + ins.groups - 1) / ins.groups * ins.groups;
    uint64_t work = (uint64_t)ins.kernel_y * ins.kernel_x * units / ins.groups * ins.in.block;
    choose_output(m, &ins, oh, ow, channels, 0, work);

    uint64_t tiles = bw_conv_tiles(&ins), blocks = bw_conv_blocks(&ins);
    const bw_format_traits *fw = bw_format_get((bw_format)ins.weight_format);
    size_t bytes = tiles * blocks * bw_packed_size(fw, (size_t)BW_OUTPUT_TILE * ins.in.block);
    uint8_t *w = take_constants(m, bytes, &ins.weights);
    if (!w)
        return;
    int sparse = one_in(m, 5); /* every bit pattern is a legal weight */
    for (size_t i = 0; i < bytes; i++)
        w[i] = sparse && !one_in(m, 4) ? 0 : (uint8_t)next(m);
    bytes = tiles * blocks * BW_OUTPUT_TILE;
    int8_t *e = take_constants(m, bytes, &ins.weight_exps);
    if (!e)
        return;
    int low = -fw->emax_shift - 6, high = -fw->emax_shift; /* values of about 1 */
    if (one_in(m, 6))
        low = fw->exp_min, high = fw->exp_max;
    for (size_t i = 0; i < bytes; i++)
        e[i] = (int8_t)between(m, low, high);
    random_bias(m, &ins, tiles * BW_OUTPUT_TILE);
    finish(m, &ins);
}

static void make_dwconv(maker *m)
{
    const bw_tensor *in = source(m, VECTOR);
    if (!in)
        return;
    bw_instruction ins;
    start(&ins, BW_OP_DWCONV, in);
    random_window(m, &ins);
    uint16_t block;
    pick_format(m, VECTOR, 1, &ins.weight_format, &block);
    uint32_t oh = random_outputs(m, ins.in.height, ins.kernel_y, ins.stride_y, ins.dilation_y, ins.origin_y);
    uint32_t ow = random_outputs(m, ins.in.width, ins.kernel_x, ins.stride_x, ins.dilation_x, ins.origin_x);
    choose_output(m, &ins, oh, ow, ins.in.channels, 1, (uint64_t)ins.kernel_y * ins.kernel_x);
    const bw_format_traits *fw = bw_format_get((bw_format)ins.weight_format);
    size_t padded = ((size_t)ins.in.channels + 15) / 16 * 16, n = padded * ins.kernel_y * ins.kernel_x;
    uint16_t *w = take_constants(m, n * 2, &ins.weights);
    if (!w)
        return;
    int wild = one_in(m, 6);
    for (size_t i = 0; i < n; i++)
        w[i] = bw_encode_vector(fw, random_float(m, wild));
    random_bias(m, &ins, padded);
    finish(m, &ins);
}

static int windows_ok(uint32_t outputs, uint32_t extent, uint32_t kernel, uint32_t stride, uint32_t dilation,
                      int origin)
{
    for (int64_t o = 0; o < outputs; o++) {
        int hit = 0;
        for (int64_t k = 0; k < kernel; k++) {
            int64_t i = o * stride + origin + k * dilation;
            hit |= i >= 0 && i < extent;
        }
        if (!hit)
            return 0;
    }
    return 1;
}

static void make_pool(maker *m, bw_opcode opcode)
{
    const bw_tensor *in = source(m, BLOCK | VECTOR);
    if (!in)
        return;
    bw_instruction ins;
    start(&ins, opcode, in);
    random_window(m, &ins);
    uint32_t oh = random_outputs(m, ins.in.height, ins.kernel_y, ins.stride_y, ins.dilation_y, ins.origin_y);
    uint32_t ow = random_outputs(m, ins.in.width, ins.kernel_x, ins.stride_x, ins.dilation_x, ins.origin_x);
    while (oh && !windows_ok(oh, ins.in.height, ins.kernel_y, ins.stride_y, ins.dilation_y, ins.origin_y))
        oh--;
    while (ow && !windows_ok(ow, ins.in.width, ins.kernel_x, ins.stride_x, ins.dilation_x, ins.origin_x))
        ow--;
    if (!oh || !ow)
        return;
    ins.out0 = new_output(m, oh, ow, ins.in.channels, BLOCK | VECTOR | (one_in(m, 12) ? FP32 : 0));
    if (opcode == BW_OP_AVGPOOL) {
        size_t n = (size_t)ins.kernel_y * ins.kernel_x + 1;
        float *recip = take_constants(m, n * sizeof *recip, &ins.weights);
        if (!recip)
            return;
        int odd = one_in(m, 6);
        recip[0] = 0;
        for (size_t i = 1; i < n; i++)
            recip[i] = odd ? random_dyadic(m, 1 << 22, 1 << 23, -62, 16) : 1.0f / (float)i;
        if (one_in(m, 3))
            ins.flags |= BW_FLAG_COUNT_PAD;
    }
    finish(m, &ins);
}

static void make_eltwise(maker *m, bw_opcode opcode)
{
    unsigned kinds = opcode == BW_OP_MUL ? VECTOR : BLOCK | VECTOR;
    const bw_tensor *found = source(m, kinds);
    if (!found)
        return;
    bw_tensor a = *found;
    const bw_tensor *b = NULL;
    for (int attempt = 0; attempt < 8 && !b; attempt++) {
        b = pick_live(m, kinds);
        if (b && !same_shape(&a, b))
            b = NULL;
    }
    bw_instruction ins;
    if (!b || one_in(m, 3)) {
        start(&ins, BW_OP_COPY, &a);
        ins.out0 = new_output(m, a.height, a.width, a.channels, kinds);
        random_activation(m, &ins);
        m->ins[m->count++] = ins;
        keep(m, &ins.out0);
        b = &m->live[m->live_count - 1];
    }
    start(&ins, opcode, &a);
    ins.in2 = *b;
    ins.out0 = new_output(m, a.height, a.width, a.channels, BLOCK | VECTOR | (one_in(m, 12) ? FP32 : 0));
    finish(m, &ins);
}

/* Channels from anywhere, or runs of neighbours with and without gaps between them, as slices and shuffles have. */
static void random_map(maker *m, int32_t *map, uint32_t channels, uint32_t from)
{
    const int runs = one_in(m, 2);
    for (uint32_t c = 0; c < channels;) {
        const int64_t first = between(m, -1, (int64_t)from - 1);
        const int64_t count = runs ? between(m, 1, (int64_t)from - (first < 0 ? 0 : first)) : 1;
        for (int64_t i = 0; i < count && c < channels; i++)
            map[c++] = (int32_t)(first < 0 ? -1 : first + i);
    }
}

static void make_copy(maker *m)
{
    const bw_tensor *in = one_in(m, 4) ? &m->inputs[next(m) % m->input_count] : source(m, BLOCK | VECTOR);
    if (!in)
        return;
    bw_instruction ins;
    start(&ins, BW_OP_COPY, in);
    uint32_t channels = ins.in.channels;
    if (one_in(m, 2)) {
        channels = random_channels(m);
        int32_t *map = take_constants(m, channels * sizeof *map, &ins.weights);
        if (!map)
            return;
        ins.flags |= BW_FLAG_CHANNEL_MAP;
        random_map(m, map, channels, ins.in.channels);
    }
    ins.out0 = new_output(m, ins.in.height, ins.in.width, channels, BLOCK | VECTOR | (one_in(m, 12) ? FP32 : 0));
    finish(m, &ins);
}

static void make_patch(maker *m)
{
    bw_instruction ins;
    start(&ins, BW_OP_PATCH, &m->inputs[next(m) % m->input_count]);
    random_window(m, &ins);
    while ((uint32_t)ins.kernel_y * ins.kernel_x * ins.in.channels > 4 * m->o.max_channels) {
        ins.kernel_y = (uint16_t)((ins.kernel_y + 1) / 2);
        ins.kernel_x = (uint16_t)((ins.kernel_x + 1) / 2);
        if (ins.kernel_y == 1 && ins.kernel_x == 1)
            break;
    }
    uint32_t oh = random_outputs(m, ins.in.height, ins.kernel_y, ins.stride_y, ins.dilation_y, ins.origin_y);
    uint32_t ow = random_outputs(m, ins.in.width, ins.kernel_x, ins.stride_x, ins.dilation_x, ins.origin_x);
    uint32_t channels = (uint32_t)ins.kernel_y * ins.kernel_x * ins.in.channels;
    ins.out0 = new_output(m, oh, ow, channels, BLOCK | VECTOR | (one_in(m, 12) ? FP32 : 0));
    finish(m, &ins);
}

/* Several operations write the parts of one tensor, side by side in channel units or in columns. */
static void make_concat(maker *m)
{
    const bw_tensor *first = source(m, BLOCK | VECTOR);
    if (!first)
        return;
    bw_tensor whole = {.height = first->height, .width = first->width, .region = BW_REGION_ACT};
    if (!pick_format(m, BLOCK | VECTOR | (one_in(m, 6) ? FP32 : 0), 0, &whole.format, &whole.block))
        return;
    if (whole.format == BW_FORMAT_FP32)
        whole.region = BW_REGION_OUT;
    const bw_format_traits *f = bw_format_get((bw_format)whole.format);
    unsigned parts = (unsigned)between(m, 2, 3);
    int columns = whole.region == BW_REGION_ACT && one_in(m, 3);
    bw_instruction part[3];
    uint32_t units = 0, wide = 0;
    for (unsigned i = 0; i < parts; i++) {
        const bw_tensor *from = NULL;
        for (int attempt = 0; attempt < 8 && !from; attempt++) {
            from = pick_live(m, BLOCK | VECTOR);
            if (from && (from->height != whole.height ||
                         (columns ? from->channels != first->channels : from->width != whole.width)))
                from = NULL;
        }
        start(&part[i], BW_OP_COPY, from ? from : first);
        random_activation(m, &part[i]);
        part[i].out0 = whole;
        part[i].out0.width = part[i].in.width;
        part[i].out0.channels = part[i].in.channels;
        units += bw_tensor_units(&part[i].out0);
        wide += part[i].in.width;
    }
    if (columns) {
        units = bw_tensor_units(&part[0].out0);
        whole.width = wide;
        whole.channels = part[0].out0.channels;
    } else {
        /* The last part's padding stays padding; inner padding becomes channels of zeros. */
        const bw_tensor *last = &part[parts - 1].out0;
        whole.channels = (units - bw_tensor_units(last)) * whole.block + last->channels;
    }
    place(m, &whole);
    uint64_t at = 0;
    for (unsigned i = 0; i < parts; i++) {
        bw_tensor *o = &part[i].out0;
        o->pixel_stride = whole.pixel_stride;
        o->row_stride = whole.row_stride;
        o->codes = whole.codes + at * whole.block * f->device_bytes;
        o->exps = kind_of(whole.format) == BLOCK ? whole.exps + at : 0;
        at += columns ? (uint64_t)o->width * whole.pixel_stride : bw_tensor_units(o);
        m->ins[m->count++] = part[i];
    }
    keep(m, &whole);
}

/* Copies to OUT what has not been seen there yet. */
static void show_all(maker *m)
{
    for (uint32_t i = 0; i < m->live_count; i++) {
        if (m->shown[i])
            continue;
        bw_instruction ins;
        start(&ins, BW_OP_COPY, &m->live[i]);
        ins.out0 = new_output(m, ins.in.height, ins.in.width, ins.in.channels, FP32);
        m->ins[m->count++] = ins;
        m->shown[i] = 1;
    }
}

static void make_operation(maker *m)
{
    unsigned pick = (unsigned)between(m, 1, BW_OP_LIMIT);
    if (pick == BW_OP_LIMIT) {
        make_concat(m);
        return;
    }
    if (!(m->o.opcodes >> pick & 1))
        return;
    switch (pick) {
    case BW_OP_CONV:
        make_conv(m);
        break;
    case BW_OP_DWCONV:
        make_dwconv(m);
        break;
    case BW_OP_MAXPOOL:
    case BW_OP_AVGPOOL:
        make_pool(m, (bw_opcode)pick);
        break;
    case BW_OP_ADD:
    case BW_OP_MUL:
        make_eltwise(m, (bw_opcode)pick);
        break;
    case BW_OP_COPY:
        make_copy(m);
        break;
    default:
        make_patch(m);
    }
}

/* --- the case --------------------------------------------------------------------------------------------------------
 */

static void *aligned_copy(const void *bytes, size_t size)
{
    void *p = NULL;
    if (posix_memalign(&p, 64, size ? size : 1))
        return NULL;
    if (size)
        memcpy(p, bytes, size);
    return p;
}

static int deliver(maker *m, struct bw_random_case *out)
{
    bw_program_header h = {.magic = BW_PROGRAM_MAGIC,
                           .isa_version = BW_ISA_VERSION,
                           .instruction_count = m->count,
                           .act_bytes = m->act_max,
                           .in_bytes = m->in,
                           .out_bytes = m->out,
                           .const_bytes = m->constants_size};
    out->batch = (uint32_t)between(m, 1, m->o.max_batch);
    out->in_bytes = m->in;
    out->out_bytes = m->out;
    out->program_size = sizeof h + m->count * sizeof(bw_instruction);
    void *program = NULL, *in = NULL;
    if (posix_memalign(&program, 64, out->program_size))
        return -1;
    out->program = program;
    memcpy(out->program, &h, sizeof h);
    memcpy(out->program + sizeof h, m->ins, m->count * sizeof(bw_instruction));
    if (posix_memalign(&in, 64, out->batch * m->in))
        return -1;
    out->in = in;
    int wild = one_in(m, 10);
    for (uint64_t i = 0; i < out->batch * m->in / 4; i++)
        ((float *)out->in)[i] = random_float(m, wild);
    out->constants_size = m->constants_size;
    if (m->constants_size && !(out->constants = aligned_copy(m->constants, m->constants_size)))
        return -1;
    return 0;
}

int bw_random_case_make(uint64_t seed, const struct bw_random_options *options, struct bw_random_case *out)
{
    memset(out, 0, sizeof *out);
    maker *m = calloc(1, sizeof *m);
    if (!m)
        return -1;
    if (options)
        m->o = *options;
    const struct {
        uint32_t *field, value;
    } defaults[] = {{&m->o.opcodes, UINT32_MAX}, {&m->o.formats, UINT32_MAX}, {&m->o.blocks, 15},
                    {&m->o.max_operations, 6},   {&m->o.max_extent, 9},       {&m->o.max_channels, 80},
                    {&m->o.max_batch, 3},        {&m->o.max_work, 200000}};
    for (size_t i = 0; i < sizeof defaults / sizeof *defaults; i++)
        if (!*defaults[i].field)
            *defaults[i].field = defaults[i].value;
    m->state = seed;
    m->input_count = (uint32_t)between(m, 1, 2);
    for (uint32_t i = 0; i < m->input_count; i++) {
        bw_tensor *t = &m->inputs[i];
        t->height = (uint32_t)between(m, 1, m->o.max_extent);
        t->width = (uint32_t)between(m, 1, m->o.max_extent);
        t->channels = random_channels(m);
        t->format = BW_FORMAT_FP32;
        t->region = BW_REGION_IN;
        t->block = 1;
        place(m, t);
    }
    /* An operation adds at most 5 instructions and 4 live tensors; showing all of them happens twice at most. */
    for (uint32_t i = 0; i < m->o.max_operations && m->count < MAX_INSTRUCTIONS - 2 * MAX_LIVE - 8; i++) {
        if (m->live_count > MAX_LIVE - 8 || one_in(m, 8)) {
            show_all(m); /* then use the same memory again */
            m->live_count = 0;
            m->act = 0;
        }
        make_operation(m);
    }
    show_all(m);
    if (!m->count || !m->out) { /* every operation declined: still a program */
        bw_instruction ins;
        start(&ins, BW_OP_COPY, &m->inputs[0]);
        ins.out0 = new_output(m, ins.in.height, ins.in.width, ins.in.channels, FP32);
        m->ins[m->count++] = ins;
    }
    int result = m->failed ? -1 : deliver(m, out);
    if (result)
        bw_random_case_free(out);
    free(m->constants);
    free(m);
    return result;
}

void bw_random_case_free(struct bw_random_case *c)
{
    if (!c)
        return;
    free(c->program);
    free(c->constants);
    free(c->in);
    memset(c, 0, sizeof *c);
}

static void print_tensor(const char *name, const bw_tensor *t, FILE *to)
{
    static const char *const regions[] = {"-", "ACT", "IN", "OUT", "CONST"};
    if (!t->region)
        return;
    const bw_format_traits *f = bw_format_get((bw_format)t->format);
    fprintf(to, " %s=%s/%u %ux%ux%u %s:%" PRIu64 ",%" PRIu64 " strides %u,%u", name, f ? f->name : "?", t->block,
            t->height, t->width, t->channels, t->region < 5 ? regions[t->region] : "?", t->codes, t->exps,
            t->pixel_stride, t->row_stride);
}

void bw_program_print(const bw_program *program, FILE *to)
{
    for (uint32_t i = 0; i < program->header->instruction_count; i++) {
        const bw_instruction *s = &program->instructions[i];
        const bw_format_traits *fw = bw_format_get((bw_format)s->weight_format);
        fprintf(to, "# %3u %s", i, bw_opcode_name(s->opcode));
        fprintf(to, " kernel %ux%u stride %ux%u dilation %ux%u origin %d,%d groups %u flags 0x%x activation %u",
                s->kernel_y, s->kernel_x, s->stride_y, s->stride_x, s->dilation_y, s->dilation_x, s->origin_y,
                s->origin_x, s->groups, s->flags, s->activation);
        if (fw)
            fprintf(to, " weights=%s", fw->name);
        print_tensor("in", &s->in, to);
        print_tensor("in2", &s->in2, to);
        print_tensor("out0", &s->out0, to);
        print_tensor("out1", &s->out1, to);
        fputc('\n', to);
    }
}
