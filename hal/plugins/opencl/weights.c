/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Weights of a CONV, from the packed codes of a package to what the kernels read: 16 bits each, [tile][r][i][lane].
 * Done once for each image, straight into the mapped buffer.
 */
#include <stdlib.h>
#include <string.h>

#include "hal/plugins/opencl/opencl.h"

/* Integers that fit neither 16 bits nor block sums of 24. */
static int is_wide(bw_format format)
{
    return format == BW_FORMAT_MXFP8_E4M3 || format == BW_FORMAT_MXFP8_E5M2;
}

int bw_cl_conv_is_wide(const bw_instruction *ins)
{
    return is_wide((bw_format)ins->in.format) || is_wide((bw_format)ins->weight_format);
}

static uint64_t block_codes(const bw_instruction *ins)
{
    return (uint64_t)BW_OUTPUT_TILE * ins->in.block;
}

uint64_t bw_cl_weight_bytes(const bw_instruction *ins)
{
    return bw_conv_tiles(ins) * bw_conv_blocks(ins) * block_codes(ins) * sizeof(int16_t);
}

/* What each code byte becomes. */
static void fill_table(const bw_format_traits *f, int wide, int16_t table[256])
{
    for (unsigned c = 0; c < 256; c++)
        table[c] = wide && f->kind == BW_KIND_TABLE ? (int16_t)(int8_t)c : (int16_t)bw_code_value(f, c);
}

static void lay_out(const bw_instruction *ins, const uint8_t *packed, uint8_t *codes, int16_t *to)
{
    const bw_format_traits *f = bw_format_get((bw_format)ins->weight_format);
    const size_t n = (size_t)block_codes(ins), bytes = bw_packed_size(f, n);
    const uint64_t blocks = bw_conv_tiles(ins) * bw_conv_blocks(ins);
    int16_t table[256];
    fill_table(f, bw_cl_conv_is_wide(ins), table);
    for (uint64_t r = 0; r < blocks; r++, packed += bytes, to += n) {
        bw_unpack(f, packed, n, codes);
        const int16_t *words = (const int16_t *)(void *)codes;
        for (size_t i = 0; i < n / BW_OUTPUT_TILE; i++)
            for (size_t lane = 0; lane < BW_OUTPUT_TILE; lane++) {
                const size_t from = (i / 4 * BW_OUTPUT_TILE + lane) * 4 + i % 4;
                to[i * BW_OUTPUT_TILE + lane] = f->kind == BW_KIND_INT16 ? words[from] : table[codes[from]];
            }
    }
}

bw_status bw_cl_weights(bw_cl_device *dev, const bw_instruction *ins, const uint8_t *constants, cl_mem *buffer,
                        bw_error *err)
{
    const size_t bytes = (size_t)bw_cl_weight_bytes(ins);
    uint8_t *codes = malloc((size_t)block_codes(ins) * sizeof(int16_t));
    if (!codes)
        return bw_fail(err, BW_NO_MEMORY, "no memory for the codes of a block");
    bw_status status = bw_cl_buffer(dev, bytes, "weights of a CONV", buffer, err);
    cl_int code = CL_SUCCESS;
    void *to = NULL;
    if (!status)
        to = clEnqueueMapBuffer(dev->queue, *buffer, CL_TRUE, CL_MAP_WRITE_INVALIDATE_REGION, 0, bytes, 0, NULL, NULL,
                                &code);
    if (!status && (code != CL_SUCCESS || !to))
        status = bw_fail(err, code == CL_MEM_OBJECT_ALLOCATION_FAILURE ? BW_NO_MEMORY : BW_DEVICE_FAULT,
                         "cannot map %zu bytes of weights: %s", bytes, bw_cl_error(code));
    if (!status) {
        lay_out(ins, constants + ins->weights, codes, to);
        code = clEnqueueUnmapMemObject(dev->queue, *buffer, to, 0, NULL, NULL);
        if (code != CL_SUCCESS)
            status = bw_fail(err, BW_DEVICE_FAULT, "cannot unmap %zu bytes of weights: %s", bytes, bw_cl_error(code));
    }
    free(codes);
    return status;
}
