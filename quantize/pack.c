/* SPDX-License-Identifier: Apache-2.0 */
/* Packing: float weights to the codes, exponents and biases of kernels/isa.h, in the device's order. */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "host/ops/parallel.h"
#include "quantize/lower.h"

#define TILE      BW_OUTPUT_TILE
#define BLOCK_MAX 128
#define CODE_MAX  2 /* bytes of a device code */

bw_status bw_blob_room(bw_blob *b, size_t size, bw_error *err)
{
    if (size <= b->capacity)
        return BW_OK;
    uint8_t *more = bw_aligned_zalloc(size);
    if (!more)
        return bw_fail(err, BW_NO_MEMORY, "out of memory for %zu bytes of constants", size);
    if (b->size)
        memcpy(more, b->bytes, b->size);
    free(b->bytes);
    b->bytes = more;
    b->capacity = size;
    return BW_OK;
}

bw_status bw_blob_reserve(bw_blob *b, size_t size, uint64_t *offset, bw_error *err)
{
    size_t start = (b->size + BW_WEIGHT_ALIGN - 1) / BW_WEIGHT_ALIGN * BW_WEIGHT_ALIGN;
    size_t end = start + (size + BW_WEIGHT_ALIGN - 1) / BW_WEIGHT_ALIGN * BW_WEIGHT_ALIGN;
    if (end < start)
        return bw_fail(err, BW_NO_MEMORY, "constants of more than %zu bytes", b->size);
    if (end > b->capacity) {
        bw_status s = bw_blob_room(b, end > b->capacity * 2 ? end : b->capacity * 2, err);
        if (s)
            return s;
    }
    b->size = end;
    *offset = start;
    return BW_OK;
}

/* The device's biases are multiples of 2^-126 and never -0, so that no subnormal can arise in a sum. */
static float device_bias(float v)
{
    float r = fabsf(v) < 0x1p-102f ? (float)(rint((double)v * 0x1p126) * 0x1p-126) : v;
    return r == 0 ? 0 : r;
}

static bw_status check_finite(const bw_weights *w, float v, const char *what, int64_t n, bw_error *err)
{
    if (isfinite(v))
        return BW_OK;
    return bw_fail(err, BW_NOT_FINITE, "%s of '%s', output channel %lld, is %s: repair the model", what, w->name,
                   (long long)n, isnan(v) ? "NaN" : "infinite");
}

/* Source channel, inside the source group of output n, of physical channel r of the instruction's group; -1: zero. */
static int64_t source_channel(const bw_ir_op *op, const bw_ir_value *in, int64_t n, int64_t r)
{
    const bw_weights *w = &op->w;
    if (op->merged > 1) {
        int64_t group = n / (w->outputs / w->groups);
        int64_t c = group / op->merged * op->merged * w->group_channels + r - group * w->group_channels;
        return c >= 0 && c < w->group_channels && r < op->merged * w->group_channels ? c : -1;
    }
    if (op->groups == 1 && in->map)
        return r < in->physical ? in->map[r] : -1;
    return r < w->group_channels ? r : -1;
}

static bw_status check_bias(const bw_weights *w, float v, int64_t n, bw_error *err)
{
    bw_status s = check_finite(w, v, "the bias", n, err);
    if (!s && fabsf(v) > 0x1p126f)
        s = bw_fail(
            err, BW_OUT_OF_RANGE,
            "the bias of '%s', output channel %lld, is %g, more than the device adds (2^126): scale the layer down",
            w->name, (long long)n, (double)v);
    return s;
}

struct reduction {                  /* of one CONV */
    int64_t taps_y, taps_x, blocks; /* blocks at each tap */
    int64_t block;
};

/* The weights of output n at one reduction block. */
static void gather(const bw_ir_op *op, const bw_ir_value *in, const struct reduction *q, int64_t n, int64_t ky,
                   int64_t kx, int64_t kb, float *x)
{
    const bw_weights *w = &op->w;
    for (int64_t i = 0; i < q->block; i++) {
        int64_t r = kb * q->block + i, c = -1, y = ky, xx = kx;
        if (op->patched) {
            int64_t tap = r / w->group_channels;
            y = tap / op->source.kernel[1];
            xx = tap % op->source.kernel[1];
            c = y < op->source.kernel[0] ? r % w->group_channels : -1;
        } else {
            c = source_channel(op, in, n, r);
        }
        x[i] = c < 0 ? 0 : w->data[n * w->sn + c * w->sc + y * w->sy + xx * w->sx] * w->scale;
    }
}

static bw_status check_range(const bw_weights *w, const bw_format_traits *t, const float *x, size_t block, int64_t n,
                             bw_error *err)
{
    float most = 0;
    for (size_t i = 0; i < block; i++)
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    if (most > 0 && bw_block_exponent(t, x, block) > t->exp_max)
        return bw_fail(
            err, BW_OUT_OF_RANGE,
            "weights of '%s', output channel %lld, reach %g, more than %s holds on the device (%g): scale the "
            "layer down or keep it on the CPU",
            w->name, (long long)n, (double)most, t->name, ldexp((double)t->max_code, t->exp_max));
    return BW_OK;
}

static double squared_error(const float *x, const float *y, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
    return sum;
}

/* Encodes one block of weights by the recipe's rule; adds to *lost. y: room for the decoded block. */
static void encode_weights(const bw_format_traits *t, bw_scale_rule rule, const float *x, size_t n, uint8_t *codes,
                           int8_t *e, float *y, bw_weight_error *lost)
{
    bw_encode_block(t, BW_ROUND_EVEN, x, n, codes, e);
    bw_decode_block(t, codes, *e, n, y);
    double error = squared_error(x, y, n);
    int own = *e;
    static const int around[2] = {1, -1}; /* one up: nothing saturates; one down: the rest is finer */
    for (int i = 0; i < 2 && rule == BW_SCALE_MSE && error > 0; i++) {
        int at = own + around[i];
        if (at < t->exp_min || at > t->exp_max)
            continue;
        _Alignas(16) uint8_t other[BLOCK_MAX * CODE_MAX];
        bw_encode_block_at(t, BW_ROUND_EVEN, x, n, at, other);
        bw_decode_block(t, other, at, n, y);
        double e2 = squared_error(x, y, n);
        if (e2 < error) {
            error = e2;
            *e = (int8_t)at;
            memcpy(codes, other, n * t->device_bytes);
        }
    }
    lost->noise += error;
    for (size_t i = 0; i < n; i++)
        lost->signal += (double)x[i] * (double)x[i];
}

/* The packing of one CONV. Tiles are independent of each other: threads take them, and what they leave behind is added
 * up in the order of the tiles. */
struct packing {
    const bw_ir *ir;
    const bw_ir_op *op;
    const bw_ir_value *in;
    const bw_format_traits *t;
    struct reduction q;
    size_t block, outputs; /* outputs of a group */
    size_t tiles, all_tiles, reductions, packed;
    uint8_t *weights;
    int8_t *exps;
    float *bias;           /* NULL: none */
    bw_weight_error *lost; /* per tile */
    pthread_mutex_t lock;
    size_t bad_tile; /* the first that failed, under the lock; all_tiles: none */
    bw_error bad;
};

static void describe_packing(struct packing *p, const bw_ir *ir, const bw_ir_op *op)
{
    *p = (struct packing){.ir = ir, .op = op, .in = &ir->values[op->in], .t = bw_format_get(ir->recipe->weights)};
    p->q = (struct reduction){op->geo.kernel[0], op->geo.kernel[1], 0, bw_form_block(ir, p->in, BW_FORM_BLOCK)};
    p->q.blocks = (p->in->physical / op->groups + p->q.block - 1) / p->q.block;
    p->block = (size_t)p->q.block;
    p->outputs = (size_t)(op->w.outputs / op->groups);
    p->tiles = (p->outputs + TILE - 1) / TILE;
    p->all_tiles = p->tiles * (size_t)op->groups;
    p->reductions = (size_t)(p->q.taps_y * p->q.taps_x * p->q.blocks);
    p->packed = bw_packed_size(p->t, TILE * p->block);
    p->bad_tile = p->all_tiles;
}

/* One block of weights of output n, 16 of which make up a tile's row of `codes`. */
static bw_status pack_block(const struct packing *p, int64_t n, size_t k, size_t r, uint8_t *codes, int8_t *e,
                            bw_weight_error *lost, bw_error *err)
{
    float x[BLOCK_MAX], y[BLOCK_MAX];
    _Alignas(16) uint8_t row[BLOCK_MAX * CODE_MAX];
    size_t wide = p->t->device_bytes;
    int64_t kb = (int64_t)k % p->q.blocks, tap = (int64_t)k / p->q.blocks;
    if (n >= 0)
        gather(p->op, p->in, &p->q, n, tap / p->q.taps_x, tap % p->q.taps_x, kb, x);
    else
        memset(x, 0, p->block * sizeof *x);
    bw_status s = BW_OK;
    for (size_t i = 0; i < p->block && !s; i++)
        s = check_finite(&p->op->w, x[i], "a weight", n, err);
    if (s || (s = check_range(&p->op->w, p->t, x, p->block, n, err)))
        return s;
    encode_weights(p->t, p->ir->recipe->scale_rule, x, p->block, row, e, y, lost);
    for (size_t i = 0; i < p->block; i++)
        memcpy(codes + (i / 4 * 4 * TILE + r * 4 + i % 4) * wide, row + i * wide, wide);
    return BW_OK;
}

static bw_status pack_tile(const struct packing *p, size_t tile, bw_error *err)
{
    _Alignas(16) uint8_t codes[BLOCK_MAX * TILE * CODE_MAX];
    uint8_t *to = p->weights + tile * p->reductions * p->packed;
    int8_t *exps = p->exps + tile * p->reductions * TILE;
    int64_t first = (int64_t)(tile / p->tiles * p->outputs + tile % p->tiles * TILE);
    size_t rows = p->outputs - tile % p->tiles * TILE < TILE ? p->outputs - tile % p->tiles * TILE : TILE;
    bw_status s = BW_OK;
    for (size_t k = 0; k < p->reductions && !s; k++, to += p->packed, exps += TILE) {
        for (size_t r = 0; r < TILE && !s; r++)
            s = pack_block(p, r < rows ? first + (int64_t)r : -1, k, r, codes, &exps[r], &p->lost[tile], err);
        bw_pack(p->t, codes, TILE * p->block, to);
    }
    for (size_t r = 0; p->bias && r < rows && !s; r++) {
        float v = p->op->bias[first + (int64_t)r];
        if (!(s = check_bias(&p->op->w, v, first + (int64_t)r, err)))
            p->bias[tile * TILE + r] = device_bias(v);
    }
    return s;
}

static void pack_tiles(int64_t from, int64_t to, void *user)
{
    struct packing *p = user;
    bw_error err;
    for (int64_t tile = from; tile < to; tile++) {
        if (!pack_tile(p, (size_t)tile, &err))
            continue;
        pthread_mutex_lock(&p->lock);
        if ((size_t)tile < p->bad_tile) {
            p->bad_tile = (size_t)tile;
            p->bad = err;
        }
        pthread_mutex_unlock(&p->lock);
        return;
    }
}

bw_status bw_pack_conv(const bw_ir *ir, const bw_ir_op *op, bw_blob *blob, bw_instruction *ins, bw_weight_error *lost,
                       bw_error *err)
{
    struct packing p;
    describe_packing(&p, ir, op);
    bw_status s;
    ins->weight_format = (uint8_t)ir->recipe->weights;
    if ((s = bw_blob_reserve(blob, p.all_tiles * p.reductions * p.packed, &ins->weights, err)) ||
        (s = bw_blob_reserve(blob, p.all_tiles * p.reductions * TILE, &ins->weight_exps, err)))
        return s;
    if (op->bias) {
        ins->flags |= BW_FLAG_BIAS;
        if ((s = bw_blob_reserve(blob, p.all_tiles * TILE * sizeof(float), &ins->bias, err)))
            return s;
    }
    if (!(p.lost = calloc(p.all_tiles + 1, sizeof *p.lost)))
        return bw_fail(err, BW_NO_MEMORY, "out of memory while packing '%s'", op->w.name);
    p.weights = blob->bytes + ins->weights;
    p.exps = (int8_t *)blob->bytes + ins->weight_exps;
    p.bias = op->bias ? (float *)(void *)(blob->bytes + ins->bias) : NULL;
    pthread_mutex_init(&p.lock, NULL);
    bw_parallel((int64_t)p.all_tiles, 1 + (int64_t)(32768 / (p.reductions * p.block * TILE)), pack_tiles, &p);
    pthread_mutex_destroy(&p.lock);
    for (size_t i = 0; i < p.all_tiles; i++) {
        lost->signal += p.lost[i].signal;
        lost->noise += p.lost[i].noise;
    }
    free(p.lost);
    return p.bad_tile < p.all_tiles ? bw_fail(err, p.bad.status, "%s", p.bad.message) : BW_OK;
}

static size_t aligned(size_t size)
{
    return (size + BW_WEIGHT_ALIGN - 1) / BW_WEIGHT_ALIGN * BW_WEIGHT_ALIGN;
}

size_t bw_pack_bytes(const bw_ir *ir, const bw_ir_op *op)
{
    if (op->opcode == BW_OP_DWCONV) {
        size_t padded = ((size_t)op->w.outputs + TILE - 1) / TILE * TILE;
        size_t taps = (size_t)(op->geo.kernel[0] * op->geo.kernel[1]);
        return aligned(taps * padded * sizeof(uint16_t)) + (op->bias ? aligned(padded * sizeof(float)) : 0);
    }
    struct packing p;
    describe_packing(&p, ir, op);
    return aligned(p.all_tiles * p.reductions * p.packed) + aligned(p.all_tiles * p.reductions * TILE) +
           (op->bias ? aligned(p.all_tiles * TILE * sizeof(float)) : 0);
}

bw_status bw_pack_dwconv(const bw_ir *ir, const bw_ir_op *op, bw_blob *blob, bw_instruction *ins, bw_weight_error *lost,
                         bw_error *err)
{
    const bw_format_traits *t = bw_format_get(ir->recipe->vector);
    const bw_weights *w = &op->w;
    size_t channels = (size_t)w->outputs, padded = (channels + TILE - 1) / TILE * TILE;
    size_t taps = (size_t)(op->geo.kernel[0] * op->geo.kernel[1]);
    bw_status s;
    ins->weight_format = (uint8_t)ir->recipe->vector;
    if ((s = bw_blob_reserve(blob, taps * padded * sizeof(uint16_t), &ins->weights, err)))
        return s;
    if (op->bias) {
        ins->flags |= BW_FLAG_BIAS;
        if ((s = bw_blob_reserve(blob, padded * sizeof(float), &ins->bias, err)))
            return s;
    }
    float most = bw_decode_vector(t, bw_encode_vector(t, 0x1.fffffep127f));
    uint16_t *to = (uint16_t *)(void *)(blob->bytes + ins->weights);
    for (size_t tap = 0; tap < taps; tap++)
        for (size_t c = 0; c < channels; c++) {
            int64_t n = (int64_t)c, y = (int64_t)tap / op->geo.kernel[1], x = (int64_t)tap % op->geo.kernel[1];
            float v = op->scale ? op->scale[c] : w->data[n * w->sn + y * w->sy + x * w->sx] * w->scale;
            if ((s = check_finite(w, v, "a weight", n, err)))
                return s;
            if (fabsf(v) > most)
                return bw_fail(err, BW_OUT_OF_RANGE,
                               "weight %g of '%s', channel %zu, is more than %s holds (%g): use --vector bf16 or scale "
                               "the layer down",
                               (double)v, w->name, c, t->name, (double)most);
            to[tap * padded + c] = bw_encode_vector(t, v);
            double error = (double)bw_decode_vector(t, to[tap * padded + c]) - (double)v;
            lost->noise += error * error;
            lost->signal += (double)v * (double)v;
        }
    for (size_t c = 0; op->bias && c < channels; c++) {
        if ((s = check_bias(w, op->bias[c], (int64_t)c, err)))
            return s;
        ((float *)(void *)(blob->bytes + ins->bias))[c] = device_bias(op->bias[c]);
    }
    return BW_OK;
}
