/* SPDX-License-Identifier: Apache-2.0 */
/* DWCONV, MAXPOOL, AVGPOOL, ADD, MUL, COPY, PATCH: one value of a channel from values of channels. */

/* Position of a tap on one axis; it lies inside if it is below the extent, as an unsigned number. */
inline uint tap(uint o, uint stride, int origin, uint k, uint dilation)
{
    return o * stride + (uint)origin + k * dilation;
}

/* acc = RN(acc + x * w); the product is exact. */
inline uint16 depthwise(__global const bw_cl_op *op, __global const uchar *base, __global const uchar *tables, uint y,
                        uint x, uint c)
{
    __global const ushort *w = (__global const ushort *)(tables + op->table) + c;
    const uint stride = (op->in.channels + 15) / 16 * 16;
    float16 acc = 0.0f;
    if (op->flags & BW_CL_BIAS)
        acc = vload16(0, (__global const float *)(tables + op->bias) + c);
    for (uint ky = 0; ky < op->kernel_y; ky++) {
        const uint iy = tap(y, op->stride_y, op->origin_y, ky, op->dilation_y);
        for (uint kx = 0; kx < op->kernel_x; kx++, w += stride) {
            const uint ix = tap(x, op->stride_x, op->origin_x, kx, op->dilation_x);
            if (iy >= op->in.height || ix >= op->in.width)
                continue;
            const float16 a = as_float16(load16(&op->in, base, first_unit(&op->in, iy, ix), c));
            const float16 b = as_float16(decode_vector16(op->weight.kind, convert_uint16(vload16(0, w))));
            const float16 product = a * b;
            acc = acc + product;
        }
    }
    return as_uint16(acc);
}

VECTOR_KERNEL(bw_dwconv, value = depthwise(op, source(op, &op->in, act, in, raw, image), tables, y, x, c))

inline uint16 pool(__global const bw_cl_op *op, __global const uchar *base, __global const uchar *tables, uint y, uint x,
                   uint c)
{
    const uint average = op->flags & BW_CL_AVERAGE;
    uint count = 0;
    float16 acc = 0.0f;
    for (uint ky = 0; ky < op->kernel_y; ky++) {
        const uint iy = tap(y, op->stride_y, op->origin_y, ky, op->dilation_y);
        if (iy >= op->in.height)
            continue;
        for (uint kx = 0; kx < op->kernel_x; kx++) {
            const uint ix = tap(x, op->stride_x, op->origin_x, kx, op->dilation_x);
            if (ix >= op->in.width)
                continue;
            const float16 v = as_float16(load16(&op->in, base, first_unit(&op->in, iy, ix), c));
            if (average)
                acc = acc + v;
            else if (count == 0)
                acc = v;
            else
                acc = v > acc ? v : acc;
            count++;
        }
    }
    if (average) {
        if (op->flags & BW_CL_COUNT_PAD)
            count = op->kernel_y * op->kernel_x;
        acc = acc * ((__global const float *)(tables + op->table))[count];
    }
    return as_uint16(acc);
}

VECTOR_KERNEL(bw_pool, value = pool(op, source(op, &op->in, act, in, raw, image), tables, y, x, c))

inline uint16 eltwise(__global const bw_cl_op *op, __global const uchar *base, uint y, uint x, uint c)
{
    const float16 a = as_float16(load16(&op->in, base, first_unit(&op->in, y, x), c));
    const float16 b = as_float16(load16(&op->in2, base, first_unit(&op->in2, y, x), c));
    return as_uint16(op->flags & BW_CL_MULTIPLY ? a * b : a + b);
}

VECTOR_KERNEL(bw_eltwise, value = eltwise(op, act + image * op->act_bytes, y, x, c))

inline uint16 copy(__global const bw_cl_op *op, __global const uchar *base, __global const uchar *tables, uint y, uint x,
                   uint c)
{
    const ulong k = first_unit(&op->in, y, x);
    if (!(op->flags & BW_CL_MAP))
        return load16(&op->in, base, k, c);
    __global const int *map = (__global const int *)(tables + op->table) + c;
    const uint n = op->out0.channels - c;
    uint v[16];
    for (uint i = 0; i < 16; i++) {
        const int from = i < n ? map[i] : -1;
        v[i] = from < 0 ? 0 : load1(&op->in, base, k, (uint)from);
    }
    return vload16(0, v);
}

VECTOR_KERNEL(bw_copy, value = copy(op, source(op, &op->in, act, in, raw, image), tables, y, x, c))

inline uint16 patch(__global const bw_cl_op *op, __global const uchar *base, uint y, uint x, uint c)
{
    const uint channels = op->in.channels, n = op->out0.channels - c;
    uint v[16], from = c % channels, kx = c / channels % op->kernel_x, ky = c / channels / op->kernel_x;
    __global const uint *values = (__global const uint *)(base + op->in.codes);
    for (uint i = 0; i < 16; i++) {
        const uint iy = tap(y, op->stride_y, op->origin_y, ky, op->dilation_y);
        const uint ix = tap(x, op->stride_x, op->origin_x, kx, op->dilation_x);
        v[i] = 0;
        if (i < n && iy < op->in.height && ix < op->in.width)
            v[i] = values[first_unit(&op->in, iy, ix) + from];
        if (++from == channels) {
            from = 0;
            if (++kx == op->kernel_x) {
                kx = 0;
                ky++;
            }
        }
    }
    return vload16(0, v);
}

VECTOR_KERNEL(bw_patch, value = patch(op, source(op, &op->in, act, in, raw, image), y, x, c))
