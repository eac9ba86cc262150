/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What all kernels share: reading tensors, the end of every chain (residual, activation), and writing a tile.
 *
 * A work-group computes a tile of `pixels` x `lanes` results (pixels of all images of the batch in one row; lanes are
 * channels, a multiple of every block of the outputs) into on-chip memory, then encodes and writes it.
 */

#define ARGUMENTS                                                                                                      \
    __global const bw_cl_op *restrict ops, uint index, uint images, uint first_tile, __global uchar *act,             \
        __global const uchar *restrict in,                                                                             \
        __global uchar *restrict out, __global const uchar *restrict tables, __global const short *restrict weights,   \
        __global float *raw

#define TILE_MEMORY                                                                                                    \
    __local uint tile[BW_CL_TILE];                                                                                     \
    __local int place[3][BW_CL_PLACES] /* image (-1: none), y, x */

#define TILE_BARRIER barrier(CLK_LOCAL_MEM_FENCE)

/* --- reading ------------------------------------------------------------------------------------------------------ */

inline __global const uchar *source(__global const bw_cl_op *op, __global const bw_cl_tensor *t, __global const uchar *act,
                                    __global const uchar *in, __global const float *raw, uint image)
{
    if (t->region == BW_CL_ACT)
        return act + image * op->act_bytes;
    if (t->region == BW_CL_IN)
        return in + image * op->in_bytes;
    return (__global const uchar *)raw + image * op->raw_bytes;
}

inline ulong first_unit(__global const bw_cl_tensor *t, uint y, uint x)
{
    return (ulong)y * t->row_stride + (ulong)x * t->pixel_stride;
}

inline ushort16 load_some_ushort(__global const ushort *p, uint n)
{
    ushort v[16];
    if (n >= 16)
        return vload16(0, p);
    for (uint i = 0; i < 16; i++)
        v[i] = i < n ? p[i] : (ushort)0;
    return vload16(0, v);
}

inline uint16 load_some_uint(__global const uint *p, uint n)
{
    uint v[16];
    if (n >= 16)
        return vload16(0, p);
    for (uint i = 0; i < 16; i++)
        v[i] = i < n ? p[i] : 0;
    return vload16(0, v);
}

/* Channels c .. c + 15 (c a multiple of 16) of the pixel whose first unit is k; those beyond the last are 0. */
inline uint16 load16(__global const bw_cl_tensor *t, __global const uchar *base, ulong k, uint c)
{
    const uint kind = t->code.kind;
    base += t->codes;
    if (kind == BW_CL_FP32)
        return load_some_uint((__global const uint *)base + k + c, t->channels - c);
    if (kind < BW_CL_INT)
        return decode_vector16(kind, convert_uint16(load_some_ushort((__global const ushort *)base + k + c,
                                                                     t->channels - c)));
    const ulong at = (k << t->block_shift) + c;
    const int e = *(__global const char *)(base - t->codes + t->exps + (at >> t->block_shift));
    return decode_block16(&t->code, load_codes(&t->code, base + (kind == BW_CL_INT16 ? at * 2 : at)), e);
}

/* One channel. */
inline uint load1(__global const bw_cl_tensor *t, __global const uchar *base, ulong k, uint c)
{
    const uint kind = t->code.kind;
    if (kind == BW_CL_FP32)
        return ((__global const uint *)(base + t->codes))[k + c];
    if (kind < BW_CL_INT)
        return decode_vector16(kind, (uint16)(((__global const ushort *)(base + t->codes))[k + c])).s0;
    const ulong at = (k << t->block_shift) + c;
    const int e = *(__global const char *)(base + t->exps + (at >> t->block_shift));
    const int code = kind == BW_CL_INT16 ? ((__global const short *)(base + t->codes))[at]
                                         : ((__global const char *)(base + t->codes))[at];
    return decode_block16(&t->code, (short16)((short)code), e).s0;
}

/* --- the end of every chain --------------------------------------------------------------------------------------- */

/* Bits of floats as integers of the same order; -0 equals +0. */
inline int16 order16(uint16 bits)
{
    return bits == 0x80000000u ? (int16)(0) : as_int16(bits) ^ as_int16(as_int16(bits) >> 31 & 0x7FFFFFFF);
}

/* Channels c .. c + 15 of the output pixel at (image, y, x); those beyond the last become 0. */
inline uint16 end_of_chain(__global const bw_cl_op *op, __global const uchar *act, uint16 value, uint image, uint y,
                           uint x, uint c)
{
    const uint channels = op->out0.channels;
    if (op->flags & BW_CL_RESIDUAL) {
        const uint16 other = load16(&op->in2, act + image * op->act_bytes, first_unit(&op->in2, y, x), c);
        value = as_uint16(as_float16(value) + as_float16(other));
    }
    if (op->activation == BW_CL_RELU) {
        value = as_int16(value) > 0 ? value : 0;
    } else if (op->activation == BW_CL_CLIP) {
        const int16 v = order16(value);
        const uint16 low = op->clip_lo, high = op->clip_hi;
        value = v > order16(high) ? high : v < order16(low) ? low : value;
    }
    if (channels - c < 16) {
        const int16 lane = (int16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        value = lane < (int16)((int)(channels - c)) ? value : 0;
    }
    return value;
}

/* --- writing ------------------------------------------------------------------------------------------------------ */

inline uint largest_of16(uint16 v)
{
    const uint8 a = max(v.lo, v.hi);
    const uint4 b = max(a.lo, a.hi);
    const uint2 c = max(b.lo, b.hi);
    return max(c.x, c.y);
}

inline void write_block(__global const bw_cl_tensor *t, __global uchar *base, ulong unit, __local const uint *values)
{
    const uint vectors = 1u << t->block_shift >> 4;
    uint16 most = 0;
    for (uint v = 0; v < vectors; v++)
        most = max(most, vload16(v, values) & 0x7FFFFFFF);
    const uint mag = largest_of16(most);
    int e = mag ? log2_floor(mag) - t->shift : t->exp_min;
    e = clamp(e, t->exp_min, t->exp_max);
    *(__global char *)(base + t->exps + unit) = (char)e;
    const ulong at = unit << t->block_shift;
    for (uint v = 0; v < vectors; v++) {
        const short16 codes = encode_codes16(t, vload16(v, values), e);
        if (t->code.kind == BW_CL_INT16)
            vstore16(codes, v, (__global short *)(base + t->codes) + at);
        else
            vstore16(convert_char16(codes), v, (__global char *)(base + t->codes) + at);
    }
}

inline void write_some(__global const bw_cl_tensor *t, __global uchar *base, ulong at, __local const uint *values, uint n)
{
    const uint16 bits = vload16(0, values);
    if (t->code.kind == BW_CL_FP32) {
        __global uint *to = (__global uint *)(base + t->codes) + at;
        if (n >= 16)
            vstore16(bits, 0, to);
        else
            for (uint i = 0; i < n; i++)
                to[i] = values[i];
        return;
    }
    const ushort16 codes = encode_vector16(t->code.kind, bits);
    __global ushort *to = (__global ushort *)(base + t->codes) + at;
    if (n >= 16) {
        vstore16(codes, 0, to);
    } else {
        ushort some[16];
        vstore16(codes, 0, some);
        for (uint i = 0; i < n; i++)
            to[i] = some[i];
    }
}

/* The tile's channels from `first` on, up to `limit`, of one output. */
inline void write_output(__global const bw_cl_op *op, __global const bw_cl_tensor *t, __global uchar *act,
                         __global uchar *out, __local const uint *tile, __local int (*place)[BW_CL_PLACES], uint first,
                         uint limit)
{
    const uint kind = t->code.kind, lanes = op->lanes;
    if (!kind || first >= limit)
        return;
    const uint step = kind >= BW_CL_INT ? 1u << t->block_shift : 16;
    const uint each = (min(lanes, limit - first) + step - 1) / step, items = each * op->pixels;
    for (uint item = get_local_id(0); item < items; item += get_local_size(0)) {
        const uint p = item / each, c = item % each * step;
        const int image = place[0][p];
        if (image < 0)
            continue;
        __global uchar *base = t->region == BW_CL_OUT ? out + image * op->out_bytes : act + image * op->act_bytes;
        const ulong k = first_unit(t, place[1][p], place[2][p]);
        if (kind >= BW_CL_INT)
            write_block(t, base, k + ((first + c) >> t->block_shift), tile + p * lanes + c);
        else
            write_some(t, base, k + first + c, tile + p * lanes + c, limit - first - c);
    }
}

inline void write_tile(__global const bw_cl_op *op, __global uchar *act, __global uchar *out, __local const uint *tile,
                       __local int (*place)[BW_CL_PLACES], uint first, uint limit)
{
    write_output(op, &op->out0, act, out, tile, place, first, limit);
    write_output(op, &op->out1, act, out, tile, place, first, limit);
}

/* Where the pixels of this group's tile lie. */
inline void find_places(__global const bw_cl_op *op, uint images, uint tile_number, __local int (*place)[BW_CL_PLACES])
{
    const uint pixels = op->pixels, all = op->out_pixels, width = op->out0.width;
    for (uint i = get_local_id(0); i < pixels; i += get_local_size(0)) {
        const uint p = tile_number * pixels + i, image = p / all;
        place[0][i] = image < images ? (int)image : -1;
        place[1][i] = (int)(p % all / width);
        place[2][i] = (int)(p % all % width);
    }
}

/* --- what the kernels of vector operations share ------------------------------------------------------------------- */

/*
 * A kernel is BODY for 16 channels: `value` (uint16, bits) from `op`, `image`, `y`, `x`, `c`. Each work-item takes some
 * of the tile's vectors.
 */
#define VECTOR_KERNEL(name, BODY)                                                                                      \
    __kernel __attribute__((reqd_work_group_size(BW_CL_VECTOR_ITEMS, 1, 1))) void name(ARGUMENTS)                      \
    {                                                                                                                  \
        TILE_MEMORY;                                                                                                   \
        __global const bw_cl_op *op = ops + index;                                                                     \
        const uint lanes = op->lanes, first = (uint)get_group_id(1) * lanes, channels = op->out0.channels;             \
        const uint each = lanes / 16, items = each * op->pixels;                                                       \
        find_places(op, images, first_tile + (uint)get_group_id(0), place);                                                                                \
        TILE_BARRIER;                                                                                                  \
        for (uint item = get_local_id(0); item < items; item += BW_CL_VECTOR_ITEMS) {                                  \
            const uint p = item / each, c = first + item % each * 16;                                                  \
            uint16 value = 0;                                                                                          \
            if (place[0][p] >= 0 && c < channels) {                                                                    \
                const uint image = (uint)place[0][p], y = (uint)place[1][p], x = (uint)place[2][p];                    \
                BODY;                                                                                                  \
                value = end_of_chain(op, act, value, image, y, x, c);                                                  \
            }                                                                                                          \
            vstore16(value, item, tile);                                                                               \
        }                                                                                                              \
        TILE_BARRIER;                                                                                                  \
        write_tile(op, act, out, tile, place, first, channels);                                                        \
    }
