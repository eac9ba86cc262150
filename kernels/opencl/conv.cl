/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CONV: blocks of integers, multiplied and summed exactly, scaled exactly, added to the accumulator with one rounding.
 *
 * A work-group computes `pixels` x `lanes` outputs. The reduction goes in chunks: the input under the tile's windows is
 * brought to an on-chip panel, decoded to integers, zeros outside the input; then each work-item multiplies 8 pixels of
 * the panel by 16 lanes of weights.
 *
 * The integers are held in fp32: every product and every sum of products is an integer below 2^24, which fp32 holds
 * exactly, so that it does not matter in which order they are added, nor whether a multiplication and an addition are
 * fused. Fp32 multipliers are what most devices have most of.
 *
 * The integers of mxfp8 are too large for that: they are cut into limbs of 9 bits, 2 for e4m3 and 4 for e5m2. A block's
 * sum for one limb of the input and one of the weights again stays below 2^24; all of them together make 64-bit
 * integers, or two words for two e5m2, which are rounded once. Order in the panel: [pixel][block][limb][i], of the
 * weights: [tile][block][limb][i][lane], 16 bits each.
 */

#ifdef FP_FAST_FMAF
#define MULTIPLY_ADD(a, b, c) fma(a, b, c)
#else
#define MULTIPLY_ADD(a, b, c) ((c) + (a) * (b))
#endif

#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)

/* d0 .. d7, the sums of a block: panel from a, weights from w. */
#define ZERO(p)     float16 d##p = 0.0f;
#define MULTIPLY(p) d##p = MULTIPLY_ADD((float16)(a[p * row]), v, d##p);
#define DOT                                                                                                            \
    EACH(ZERO)                                                                                                         \
    for (uint i = 0; i < block; i++, w += 16, a++) {                                                                   \
        const float16 v = convert_float16(vload16(0, w));                                                              \
        EACH(MULTIPLY)                                                                                                 \
    }

/* The sum of two e5m2 blocks, high * 2^27 + low of up to 69 bits, to fp32. */
inline float round_sum(long high, long low)
{
    high += low >> 27;
    low &= 0x7FFFFFF;
    const int negative = high < 0;
    if (negative) {
        high = -high - (low != 0);
        low = -low & 0x7FFFFFF;
    }
    /* The highest 62 bits or so, the rest as one bit below: it cannot change what is nearest. */
    int e = 0;
    ulong m = (ulong)low;
    if (high) {
        const int keep = min((int)clz((ulong)high) - 1, 27);
        e = 27 - keep;
        m = (ulong)high << keep | (ulong)low >> e | ((ulong)low & ((1ul << e) - 1) ? 1 : 0);
    }
    /* 24 bits, to nearest, ties to even */
    const int drop = 40 - (int)clz(m);
    if (drop > 0) {
        const ulong rest = m & ((1ul << drop) - 1), tie = 1ul << (drop - 1);
        m >>= drop;
        m += rest > tie || (rest == tie && (m & 1));
        e += drop;
    }
    const float t = (float)(uint)m * pow2(e);
    return negative ? -t : t;
}

/* Both words fit 64 bits unless both sides are e5m2. */
inline float16 round_sums(long16 high, long16 low, int wide)
{
    if (!wide)
        return convert_float16_rte(as_long16(as_ulong16(high) << 27) + low);
    long h[16], l[16];
    float t[16];
    vstore16(high, 0, h);
    vstore16(low, 0, l);
    for (int i = 0; i < 16; i++)
        t[i] = round_sum(h[i], l[i]);
    return vload16(0, t);
}

__kernel __attribute__((reqd_work_group_size(BW_CL_CONV_ITEMS, 1, 1))) void bw_conv(ARGUMENTS)
{
    TILE_MEMORY;
    __local float panel[BW_CL_PANEL];
    __local int scale[BW_CL_PANEL / 16];
    __local int tap_y[BW_CL_PANEL / 256], tap_x[BW_CL_PANEL / 256];
    __local uint tap_u[BW_CL_PANEL / 256];
    __global const bw_cl_op *op = ops + index;
    __global const bw_cl_tensor *t = &op->in;
    const uint item = get_local_id(0), pixels = op->pixels, lanes = op->lanes, chunk = op->chunk;
    const uint limbs = op->limbs, weight_limbs = op->weight_limbs;
    const uint block_shift = t->block_shift, block = 1u << block_shift, row = (chunk * limbs) << block_shift;
    const uint reduction = op->reduction, tiles = op->group_tiles, each = lanes / 16;
    const uint group = (uint)get_group_id(1) / ((tiles + each - 1) / each);
    const uint first_lanes = (uint)get_group_id(1) % ((tiles + each - 1) / each) * each;
    /* This item's pixels and lanes. */
    const uint mine = item % (pixels / BW_CL_CONV_PIXELS) * BW_CL_CONV_PIXELS;
    const uint lane_tile = first_lanes + item / (pixels / BW_CL_CONV_PIXELS);
    const uint tile_number = group * tiles + lane_tile;
    float16 acc[BW_CL_CONV_PIXELS];

    find_places(op, images, first_tile + (uint)get_group_id(0), place);
    TILE_BARRIER;
    const int active = lane_tile < tiles && place[0][mine] >= 0;
    float16 start = 0.0f;
    if (active && op->flags & BW_CL_BIAS)
        start = vload16(tile_number, (__global const float *)(tables + op->bias));
#define START(p) acc[p] = start;
    EACH(START)

    for (uint r0 = 0; r0 < reduction; r0 += chunk) {
        const uint n = min(chunk, reduction - r0);
        TILE_BARRIER;
        for (uint r = item; r < n; r += BW_CL_CONV_ITEMS) {
            const uint number = (r0 + r) / op->group_blocks;
            tap_y[r] = (int)(number / op->kernel_x * op->dilation_y) + op->origin_y;
            tap_x[r] = (int)(number % op->kernel_x * op->dilation_x) + op->origin_x;
            tap_u[r] = (r0 + r) % op->group_blocks + group * op->group_blocks;
        }
        TILE_BARRIER;
        for (uint p = item; p < pixels; p += BW_CL_CONV_ITEMS) {
            const int image = place[0][p];
            const uint y = (uint)place[1][p] * op->stride_y, x = (uint)place[2][p] * op->stride_x;
            __global const uchar *base = act + (uint)max(image, 0) * op->act_bytes;
            for (uint r = 0; r < n; r++) {
                const uint iy = y + (uint)tap_y[r], ix = x + (uint)tap_x[r];
                __local float *to = panel + p * row + ((r * limbs) << block_shift);
                if (image >= 0 && iy < t->height && ix < t->width) {
                    const ulong unit = first_unit(t, iy, ix) + tap_u[r];
                    const ulong at = (unit << block_shift) << (t->code.kind == BW_CL_INT16);
                    for (uint i = 0; i < block; i += 16) {
                        const short16 codes =
                            load_codes(&t->code, base + t->codes + at + (i << (t->code.kind == BW_CL_INT16)));
                        for (uint l = 0; l < limbs; l++)
                            vstore16(limb_values(&t->code, codes, l), 0, to + (l << block_shift) + i);
                    }
                    scale[p * chunk + r] = *(__global const char *)(base + t->exps + unit) + 127;
                } else {
                    for (uint i = 0; i < limbs << block_shift; i += 16)
                        vstore16((float16)(0.0f), 0, to + i);
                    scale[p * chunk + r] = 127;
                }
            }
        }
        TILE_BARRIER;
        if (active) {
            __global const short *w = weights + ((((ulong)tile_number * reduction + r0) * weight_limbs * 16) << block_shift);
            __global const char *we = (__global const char *)(tables + op->exps) +
                                      ((ulong)tile_number * reduction + r0) * 16;
            __local const float *a = panel + mine * row;
            __local const int *ea = scale + mine * chunk;
#define TAKE(p) float16 s##p = acc[p];
            EACH(TAKE)
            for (uint r = 0; r < n; r++, we += 16) {
                const int16 ew = convert_int16(vload16(0, we));
#define ADD(p)                                                                                                         \
    {                                                                                                                  \
        const float16 scaled = SUM(p) * as_float16((ew + ea[p * chunk + r]) << 23);                                    \
        s##p = s##p + scaled;                                                                                          \
    }
                if (limbs * weight_limbs == 1) {
                    DOT
#define SUM(p) d##p
                    EACH(ADD)
#undef SUM
                    continue;
                }
                __global const short *first_w = w;
                __local const float *first_a = a;
#define CLEAR(p) long16 low##p = 0, high##p = 0;
                EACH(CLEAR)
                for (uint l = 0; l < limbs; l++)
                    for (uint k = 0; k < weight_limbs; k++) {
                        const uint weight = l + k, shift = 9 * (weight < 3 ? weight : weight - 3);
                        a = first_a + (l << block_shift);
                        w = first_w + ((k * 16) << block_shift);
                        DOT
#define FOLD(p)                                                                                                        \
    {                                                                                                                  \
        const long16 d = as_long16(as_ulong16(convert_long16(d##p)) << shift);                                         \
        if (weight < 3)                                                                                                \
            low##p += d;                                                                                               \
        else                                                                                                           \
            high##p += d;                                                                                              \
    }
                        EACH(FOLD)
                    }
                const int wide = limbs + weight_limbs > 7;
#define SUM(p) round_sums(high##p, low##p, wide)
                EACH(ADD)
#undef SUM
                a = first_a + (limbs << block_shift);
                w = first_w + ((weight_limbs * 16) << block_shift);
            }
#define GIVE(p) acc[p] = s##p;
            EACH(GIVE)
        }
    }

    const uint first = first_lanes * 16, limit = op->group_channels, c = group * limit + lane_tile * 16;
    if (active) {
        for (uint p = 0; p < BW_CL_CONV_PIXELS; p++) {
            const int image = place[0][mine + p];
            if (image < 0)
                continue;
            const uint y = (uint)place[1][mine + p], x = (uint)place[2][mine + p];
            if (op->flags & BW_CL_TO_RAW) {
                __global float *to = raw + image * (op->raw_bytes / 4) + (y * op->out0.width + x) * op->out0.channels + c;
                float some[16];
                vstore16(acc[p], 0, some);
                for (uint i = 0; i < min(16u, limit - lane_tile * 16); i++)
                    to[i] = some[i];
            } else {
                vstore16(end_of_chain(op, act, as_uint16(acc[p]), (uint)image, y, x, c), 0,
                         tile + (mine + p) * lanes + (lane_tile - first_lanes) * 16);
            }
        }
    } else if (lane_tile >= tiles) { /* padding of blocks */
        for (uint p = 0; p < BW_CL_CONV_PIXELS; p++)
            vstore16((uint16)(0), 0, tile + (mine + p) * lanes + (lane_tile - first_lanes) * 16);
    }
    if (op->flags & BW_CL_TO_RAW)
        return;
    TILE_BARRIER;
    write_tile(op, act, out, tile, place, group * limit + first, group * limit + limit);
}
