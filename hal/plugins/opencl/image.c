/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Images: a program lowered to launches of kernels, its constants in device memory, room for activations. Arrays that
 * instructions share in CONST are on the device once.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "hal/plugins/opencl/opencl.h"

/* Images of a batch that run at once share at most so much memory. */
#define BATCH_BYTES  (UINT64_C(256) << 20)
#define BATCH_IMAGES 64u
#define ALIGN        128u

bw_status bw_cl_buffer(bw_cl_device *dev, uint64_t bytes, const char *what, cl_mem *buffer, bw_error *err)
{
    if (bytes > dev->limits.max_alloc)
        return bw_fail(err, BW_NO_MEMORY, "%s: %llu bytes in one buffer, the device allows %llu", what,
                       (unsigned long long)bytes, (unsigned long long)dev->limits.max_alloc);
    if (bytes > dev->limits.memory - dev->used)
        return bw_fail(err, BW_NO_MEMORY, "%s: %llu bytes, %llu of the device's %llu are in use: release other images",
                       what, (unsigned long long)bytes, (unsigned long long)dev->used,
                       (unsigned long long)dev->limits.memory);
    cl_int code;
    *buffer = clCreateBuffer(dev->context, CL_MEM_READ_WRITE, bytes ? (size_t)bytes : ALIGN, NULL, &code);
    if (code == CL_SUCCESS) {
        dev->used += bytes;
        return BW_OK;
    }
    *buffer = NULL;
    const int memory =
        code == CL_MEM_OBJECT_ALLOCATION_FAILURE || code == CL_OUT_OF_RESOURCES || code == CL_OUT_OF_HOST_MEMORY;
    return bw_fail(err, memory ? BW_NO_MEMORY : BW_DEVICE_FAULT, "%s: no buffer of %llu bytes: %s", what,
                   (unsigned long long)bytes, bw_cl_error(code));
}

static void drop(bw_cl_device *dev, cl_mem *buffer, uint64_t bytes)
{
    if (*buffer) {
        clReleaseMemObject(*buffer);
        dev->used -= bytes;
    }
    *buffer = NULL;
}

/* --- constants that several instructions may share ---------------------------------------------------------------- */

/* An array that an instruction reads, and where its place on the device is to be noted. */
typedef struct request {
    uint64_t offset, size;
    const bw_instruction *ins; /* weights of a CONV; NULL: plain bytes */
    bw_cl_u64 *place;
    cl_mem *buffer;
} request;

typedef struct requests {
    request *items;
    size_t count;
} requests;

static int by_array(const void *a, const void *b)
{
    const request *x = a, *y = b;
    if (!x->ins != !y->ins)
        return x->ins ? 1 : -1;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    if (x->size != y->size)
        return x->size < y->size ? -1 : 1;
    if (!x->ins)
        return 0;
    const int fx = x->ins->weight_format, fy = y->ins->weight_format;
    return fx != fy ? fx - fy : (int)x->ins->in.block - (int)y->ins->in.block;
}

static void want(requests *r, uint64_t offset, uint64_t size, bw_cl_u64 *place)
{
    r->items[r->count++] = (request){.offset = offset, .size = size, .place = place};
}

/* Plain arrays, one after the other, in one buffer. Sorted requests; `count` of them are plain. */
static bw_status load_tables(bw_cl_device *dev, bw_cl_image *img, const requests *r, size_t count,
                             const uint8_t *constants, bw_error *err)
{
    uint64_t bytes = 0, at = 0;
    for (size_t i = 0; i < count; i++)
        if (i == 0 || by_array(&r->items[i - 1], &r->items[i]) != 0)
            bytes += (r->items[i].size + ALIGN - 1) / ALIGN * ALIGN;
    bw_status status = bw_cl_buffer(dev, bytes, "biases, exponents and tables", &img->tables, err);
    if (status)
        return status;
    img->resident += bytes;
    uint8_t *copy = bw_aligned_zalloc(bytes ? (size_t)bytes : 1);
    if (!copy)
        return bw_fail(err, BW_NO_MEMORY, "no memory for %llu bytes of constants", (unsigned long long)bytes);
    for (size_t i = 0; i < count; i++) {
        const request *q = &r->items[i];
        if (i > 0 && by_array(&r->items[i - 1], q) == 0) {
            *q->place = *r->items[i - 1].place;
            continue;
        }
        memcpy(copy + at, constants + q->offset, (size_t)q->size);
        *q->place = at;
        at += (q->size + ALIGN - 1) / ALIGN * ALIGN;
    }
    cl_int code = CL_SUCCESS;
    bw_cl_note(dev, img, BW_CL_SUM_TABLES, copy, bytes);
    if (bytes)
        code = clEnqueueWriteBuffer(dev->queue, img->tables, CL_TRUE, 0, (size_t)bytes, copy, 0, NULL, NULL);
    free(copy);
    return code == CL_SUCCESS ? BW_OK : bw_fail(err, BW_DEVICE_FAULT, "cannot write constants: %s", bw_cl_error(code));
}

static bw_status load_weights(bw_cl_device *dev, bw_cl_image *img, const request *items, size_t count,
                              const uint8_t *constants, bw_error *err)
{
    if (!count)
        return BW_OK;
    img->weights = calloc(count, sizeof *img->weights);
    if (!img->weights)
        return bw_fail(err, BW_NO_MEMORY, "no memory for %zu weights", count);
    for (size_t i = 0; i < count; i++) {
        if (i > 0 && by_array(&items[i - 1], &items[i]) == 0) {
            *items[i].buffer = *items[i - 1].buffer;
            continue;
        }
        bw_status status = bw_cl_weights(dev, img, items[i].ins, constants, err);
        if (img->weights[img->weight_count]) {
            img->resident += bw_cl_weight_bytes(items[i].ins);
            *items[i].buffer = img->weights[img->weight_count++];
        }
        if (status)
            return status;
    }
    return BW_OK;
}

/* --- lowering ----------------------------------------------------------------------------------------------------- */

static bw_cl_code lower_code(bw_format format)
{
    bw_cl_code c = {0};
    const bw_format_traits *f = bw_format_get(format);
    if (!f)
        return c;
    c.kind = f->kind == BW_KIND_FLOAT   ? BW_CL_FP32
             : f->kind == BW_KIND_INT   ? BW_CL_INT
             : f->kind == BW_KIND_INT16 ? BW_CL_INT16
             : f->kind == BW_KIND_TABLE ? BW_CL_TABLE
             : format == BW_FORMAT_FP16 ? BW_CL_FP16
                                        : BW_CL_BF16;
    c.largest = (bw_cl_u32)f->max_code;
    if (f->kind == BW_KIND_TABLE) {
        c.sign_bit = f->code_bits - 1u;
        c.mantissa = f->mantissa_bits - 1u;
        /* All ones, less what e4m3 (NaN) and e5m2 (infinity, NaN) reserve. */
        c.largest = format == BW_FORMAT_MXFP8_E4M3   ? 0x7E
                    : format == BW_FORMAT_MXFP8_E5M2 ? 0x7B
                                                     : (1u << c.sign_bit) - 1;
    }
    return c;
}

static bw_cl_tensor lower_tensor(const bw_tensor *t)
{
    bw_cl_tensor o = {0};
    const bw_format_traits *f = bw_format_get((bw_format)t->format);
    if (t->region == BW_REGION_NONE || !f)
        return o;
    o.codes = t->codes;
    o.exps = t->exps;
    o.code = lower_code((bw_format)t->format);
    o.region = t->region;
    o.height = t->height;
    o.width = t->width;
    o.channels = t->channels;
    o.pixel_stride = t->pixel_stride;
    o.row_stride = t->row_stride;
    o.block_shift = (bw_cl_u32)__builtin_ctz(t->block);
    o.pairs = f->sub_block != 0;
    o.exp_min = f->exp_min;
    o.exp_max = f->exp_max;
    o.shift = f->emax_shift;
    return o;
}

static uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static uint32_t largest_block(const bw_instruction *ins)
{
    const uint32_t a = ins->out0.block, b = ins->out1.region ? ins->out1.block : 0;
    const uint32_t most = a > b ? a : b;
    return most > 16 ? most : 16;
}

/* Channels of a tile: whole blocks of the outputs, and not many more than there are. */
static uint32_t choose_lanes(uint32_t least, uint32_t channels, uint32_t most)
{
    uint32_t lanes = least;
    while (lanes < channels && lanes < most)
        lanes *= 2;
    return lanes;
}

static bw_cl_op lower(const bw_program *program, const bw_instruction *ins)
{
    const bw_program_header *h = program->header;
    bw_cl_op op = {.act_bytes = h->act_bytes, .in_bytes = h->in_bytes, .out_bytes = h->out_bytes};
    op.in = lower_tensor(&ins->in);
    op.in2 = lower_tensor(&ins->in2);
    op.out0 = lower_tensor(&ins->out0);
    op.out1 = lower_tensor(&ins->out1);
    op.weight = lower_code((bw_format)ins->weight_format);
    const int takes_residual = ins->opcode == BW_OP_CONV || ins->opcode == BW_OP_DWCONV;
    op.flags = (ins->flags & BW_FLAG_BIAS ? BW_CL_BIAS : 0u) | (ins->flags & BW_FLAG_COUNT_PAD ? BW_CL_COUNT_PAD : 0u) |
               (ins->flags & BW_FLAG_CHANNEL_MAP ? BW_CL_MAP : 0u) |
               (takes_residual && ins->in2.region ? BW_CL_RESIDUAL : 0u) |
               (ins->opcode == BW_OP_AVGPOOL ? BW_CL_AVERAGE : 0u) | (ins->opcode == BW_OP_MUL ? BW_CL_MULTIPLY : 0u);
    op.activation = ins->activation;
    op.clip_lo = bits_of(ins->clip_lo);
    op.clip_hi = bits_of(ins->clip_hi);
    op.kernel_y = ins->kernel_y;
    op.kernel_x = ins->kernel_x;
    op.stride_y = ins->stride_y;
    op.stride_x = ins->stride_x;
    op.dilation_y = ins->dilation_y;
    op.dilation_x = ins->dilation_x;
    op.origin_y = ins->origin_y;
    op.origin_x = ins->origin_x;
    op.out_pixels = ins->out0.height * ins->out0.width;
    op.lanes = choose_lanes(largest_block(ins), ins->out0.channels, 64);
    op.pixels = BW_CL_TILE / op.lanes;
    if (op.pixels > BW_CL_PLACES)
        op.pixels = BW_CL_PLACES;
    return op;
}

static bw_cl_kernel kernel_of(const bw_instruction *ins)
{
    static const bw_cl_kernel kernels[BW_OP_LIMIT] = {
        [BW_OP_CONV] = BW_CL_CONV,    [BW_OP_DWCONV] = BW_CL_DWCONV, [BW_OP_MAXPOOL] = BW_CL_POOL,
        [BW_OP_AVGPOOL] = BW_CL_POOL, [BW_OP_ADD] = BW_CL_ELTWISE,   [BW_OP_MUL] = BW_CL_ELTWISE,
        [BW_OP_COPY] = BW_CL_COPY,    [BW_OP_PATCH] = BW_CL_PATCH,
    };
    return kernels[ins->opcode];
}

/* The second half of a CONV that leaves its results in RAW. */
static bw_cl_op finish_raw(const bw_cl_op *conv)
{
    bw_cl_op op = *conv;
    op.in = (bw_cl_tensor){.code = {.kind = BW_CL_FP32},
                           .region = BW_CL_RAW,
                           .height = conv->out0.height,
                           .width = conv->out0.width,
                           .channels = conv->out0.channels,
                           .pixel_stride = conv->out0.channels,
                           .row_stride = conv->out0.channels * conv->out0.width};
    op.flags &= BW_CL_RESIDUAL;
    return op;
}

static void lower_conv(const bw_instruction *ins, bw_cl_op *op, bw_cl_step *step)
{
    const uint32_t taps = (uint32_t)ins->kernel_y * ins->kernel_x, block = ins->in.block;
    op->reduction = (uint32_t)bw_conv_blocks(ins);
    op->group_blocks = op->reduction / taps;
    op->group_tiles = (uint32_t)(bw_conv_tiles(ins) / ins->groups);
    op->group_channels = ins->out0.channels / ins->groups;
    op->limbs = bw_cl_limbs((bw_format)ins->in.format);
    op->weight_limbs = bw_cl_limbs((bw_format)ins->weight_format);
    /* A group's channels have to be whole blocks of the outputs, unless it is the only one. */
    if (ins->groups > 1 && op->group_channels % largest_block(ins) != 0)
        op->flags |= BW_CL_TO_RAW;
    /* The panel holds at least one block of each pixel. */
    uint32_t least = largest_block(ins);
    while (least * BW_CL_PANEL < BW_CL_TILE * block * op->limbs)
        least *= 2;
    op->lanes = choose_lanes(least, op->group_channels, op->out_pixels <= 16 ? 128 : 64);
    op->pixels = BW_CL_TILE / op->lanes;
    op->chunk = BW_CL_PANEL / op->pixels / (block * op->limbs);
    step->pixels = op->pixels;
    step->columns = (op->group_channels + op->lanes - 1) / op->lanes * ins->groups;
    step->work =
        (uint64_t)op->reduction * block * op->pixels * op->lanes * step->columns * op->limbs * op->weight_limbs;
}

/* ops has room for two, steps too; returns how many there are. */
static uint32_t lower_steps(const bw_program *program, uint32_t index, bw_cl_op *ops, bw_cl_step *steps)
{
    const bw_instruction *ins = &program->instructions[index];
    const uint64_t taps = (uint64_t)ins->kernel_y * ins->kernel_x;
    ops[0] = lower(program, ins);
    bw_cl_step step = {.kernel = kernel_of(ins),
                       .instruction = index,
                       .pixels = ops[0].pixels,
                       .out_pixels = ops[0].out_pixels,
                       .columns = (ins->out0.channels + ops[0].lanes - 1) / ops[0].lanes,
                       .items = BW_CL_VECTOR_ITEMS};
    const int windowed = ins->opcode != BW_OP_PATCH;
    step.work = 4u * BW_CL_TILE * step.columns * (windowed ? taps : 1);
    steps[0] = steps[1] = step;
    if (ins->opcode != BW_OP_CONV)
        return 1;
    steps[0].items = BW_CL_CONV_ITEMS;
    lower_conv(ins, &ops[0], &steps[0]);
    if (!(ops[0].flags & BW_CL_TO_RAW))
        return 1;
    const bw_cl_op shape = lower(program, ins);
    ops[0].raw_bytes = (uint64_t)ops[0].out_pixels * ins->out0.channels * sizeof(float);
    ops[1] = finish_raw(&ops[0]);
    ops[1].lanes = shape.lanes;
    ops[1].pixels = shape.pixels;
    steps[1].kernel = BW_CL_COPY;
    steps[1].work = 4u * BW_CL_TILE * step.columns;
    return 2;
}

/* Constants of an instruction; its first op is `op`, its first step `step`. */
static void want_constants(requests *r, const bw_instruction *ins, bw_cl_op *op, bw_cl_step *step)
{
    const uint64_t taps = (uint64_t)ins->kernel_y * ins->kernel_x, whole = (ins->in.channels + 15ull) / 16 * 16;
    uint64_t lanes = whole;
    switch (ins->opcode) {
    case BW_OP_CONV:
        lanes = bw_conv_tiles(ins) * BW_OUTPUT_TILE;
        r->items[r->count++] =
            (request){.offset = ins->weights, .size = bw_cl_weight_bytes(ins), .ins = ins, .buffer = &step->weights};
        want(r, ins->weight_exps, lanes * bw_conv_blocks(ins), &op->exps);
        break;
    case BW_OP_DWCONV:
        want(r, ins->weights, taps * whole * sizeof(uint16_t), &op->table);
        break;
    case BW_OP_AVGPOOL:
        want(r, ins->weights, (taps + 1) * sizeof(float), &op->table);
        break;
    case BW_OP_COPY:
        if (ins->flags & BW_FLAG_CHANNEL_MAP)
            want(r, ins->weights, (uint64_t)ins->out0.channels * sizeof(int32_t), &op->table);
        break;
    default:
        break;
    }
    if (ins->flags & BW_FLAG_BIAS)
        want(r, ins->bias, lanes * sizeof(float), &op->bias);
}

/* --- load, release ------------------------------------------------------------------------------------------------ */

static bw_status lower_all(bw_cl_device *dev, bw_cl_image *img, const void *constants, bw_error *err)
{
    const bw_program *program = img->program;
    const size_t count = program->header->instruction_count;
    bw_cl_op *ops = calloc(2 * count, sizeof *ops);
    requests r = {calloc(3 * count, sizeof(request)), 0};
    img->steps = calloc(2 * count, sizeof *img->steps);
    bw_status status = BW_OK;
    if (dev->options.scrub)
        img->sums = calloc(BW_CL_SUM_WEIGHTS + count, sizeof *img->sums); /* a CONV has one array of weights */
    if (!ops || !r.items || !img->steps || (dev->options.scrub && !img->sums))
        status = bw_fail(err, BW_NO_MEMORY, "no memory to lower %zu instructions", count);
    for (uint32_t i = 0; i < count && !status; i++) {
        bw_cl_op *op = ops + img->step_count;
        bw_cl_step *step = img->steps + img->step_count;
        const uint32_t n = lower_steps(program, i, op, step);
        for (uint32_t k = 0; k < n; k++)
            step[k].op = img->step_count + k;
        want_constants(&r, &program->instructions[i], op, step);
        if (op->raw_bytes > img->raw_bytes)
            img->raw_bytes = op->raw_bytes;
        img->step_count += n;
    }
    size_t plain = 0;
    if (!status) {
        /* The second half of a CONV finds the first one's results with the stride of the largest. */
        for (uint32_t i = 0; i < img->step_count; i++)
            ops[i].raw_bytes = img->raw_bytes;
        qsort(r.items, r.count, sizeof *r.items, by_array);
        while (plain < r.count && !r.items[plain].ins)
            plain++;
        status = load_tables(dev, img, &r, plain, constants, err);
    }
    if (!status)
        status = load_weights(dev, img, r.items + plain, r.count - plain, constants, err);
    const size_t bytes = img->step_count * sizeof *ops;
    if (!status)
        status = bw_cl_buffer(dev, bytes, "instructions", &img->ops, err);
    if (!status) {
        img->resident += bytes;
        bw_cl_note(dev, img, BW_CL_SUM_OPS, ops, bytes);
        cl_int code = clEnqueueWriteBuffer(dev->queue, img->ops, CL_TRUE, 0, bytes, ops, 0, NULL, NULL);
        if (code != CL_SUCCESS)
            status = bw_fail(err, BW_DEVICE_FAULT, "cannot write instructions: %s", bw_cl_error(code));
    }
    free(r.items);
    free(ops);
    return status;
}

static void drop_arena(bw_cl_device *dev, bw_cl_image *img)
{
    const bw_program_header *h = img->program->header;
    drop(dev, &img->act, h->act_bytes * img->capacity);
    drop(dev, &img->in, h->in_bytes * img->capacity);
    drop(dev, &img->out, h->out_bytes * img->capacity);
    drop(dev, &img->raw, img->raw_bytes * img->capacity);
    free(img->host_in);
    free(img->host_out);
    img->host_in = img->host_out = NULL;
}

static bw_status make_arena(bw_cl_device *dev, bw_cl_image *img, uint32_t images, bw_error *err)
{
    const bw_program_header *h = img->program->header;
    img->capacity = images;
    bw_status status = bw_cl_buffer(dev, h->act_bytes * images, "activations", &img->act, err);
    if (!status)
        status = bw_cl_buffer(dev, h->in_bytes * images, "inputs", &img->in, err);
    if (!status)
        status = bw_cl_buffer(dev, h->out_bytes * images, "outputs", &img->out, err);
    if (!status)
        status = bw_cl_buffer(dev, img->raw_bytes * images, "results of a CONV", &img->raw, err);
    if (!status) {
        img->host_in = bw_aligned_zalloc((size_t)h->in_bytes * images + 1);
        img->host_out = bw_aligned_zalloc((size_t)h->out_bytes * images + 1);
        if (!img->host_in || !img->host_out)
            status = bw_fail(err, BW_NO_MEMORY, "no memory for inputs and outputs of %u images", images);
    }
    if (status)
        drop_arena(dev, img);
    return status;
}

void bw_cl_image_grow(bw_cl_device *dev, bw_cl_image *img, uint32_t images)
{
    const bw_program_header *h = img->program->header;
    uint64_t largest = h->act_bytes, most;
    largest = h->in_bytes > largest ? h->in_bytes : largest;
    largest = h->out_bytes > largest ? h->out_bytes : largest;
    largest = img->raw_bytes > largest ? img->raw_bytes : largest;
    most = img->per_image ? BATCH_BYTES / img->per_image : images;
    if (largest && most > dev->limits.max_alloc / largest)
        most = dev->limits.max_alloc / largest;
    if (most > BATCH_IMAGES)
        most = BATCH_IMAGES;
    if (images > most)
        images = (uint32_t)most;
    if (images <= img->capacity)
        return;
    const uint32_t before = img->capacity;
    drop_arena(dev, img);
    /* What was there a moment ago is there again. */
    if (make_arena(dev, img, images, NULL) && make_arena(dev, img, before, NULL))
        img->capacity = 0;
}

bw_status bw_cl_image_load(void *device, const bw_program *program, const void *constants, void **image, bw_error *err)
{
    bw_cl_device *dev = device;
    const bw_program_header *h = program->header;
    bw_cl_image *img = calloc(1, sizeof *img);
    if (!img)
        return bw_fail(err, BW_NO_MEMORY, "no memory for an image");
    img->program = program;
    img->out_gaps = !bw_program_fills_out(program);
    bw_status status = lower_all(dev, img, constants, err);
    img->per_image = h->act_bytes + h->in_bytes + h->out_bytes + img->raw_bytes;
    if (!status)
        status = make_arena(dev, img, 1, err);
    if (!status && clFinish(dev->queue) != CL_SUCCESS)
        status = bw_fail(err, BW_DEVICE_FAULT, "the device did not take the constants");
    if (status) {
        bw_cl_image_release(dev, img);
        return status;
    }
    *image = img;
    return BW_OK;
}

void bw_cl_image_release(void *device, void *image)
{
    bw_cl_device *dev = device;
    bw_cl_image *img = image;
    if (dev->in_flight && (img->host_in || img->host_out)) {
        /* Commands of an aborted run may still read and write these: kept until they have ended. */
        bw_cl_limbo *l = malloc(sizeof *l);
        if (l) {
            *l = (bw_cl_limbo){dev->limbo, img->host_in, img->host_out};
            dev->limbo = l;
        }
        img->host_in = img->host_out = NULL;
    }
    drop_arena(dev, img);
    if (img->ops)
        clReleaseMemObject(img->ops);
    if (img->tables)
        clReleaseMemObject(img->tables);
    for (uint32_t i = 0; i < img->weight_count; i++)
        clReleaseMemObject(img->weights[i]);
    dev->used -= img->resident;
    free(img->weights);
    free(img->sums);
    free(img->steps);
    free(img);
}
