/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Weights of a CONV, from the packed codes of a package to what the kernels read: [tile][r][limb][i][lane], 16 bits
 * each. Done once for each image, straight into the mapped buffer.
 */
#include <stdlib.h>
#include <string.h>

#include "hal/plugins/opencl/opencl.h"

uint32_t bw_cl_limbs(bw_format format)
{
    return format == BW_FORMAT_MXFP8_E5M2 ? 4 : format == BW_FORMAT_MXFP8_E4M3 ? 2 : 1;
}

static uint64_t block_codes(const bw_instruction *ins)
{
    return (uint64_t)BW_OUTPUT_TILE * ins->in.block;
}

uint64_t bw_cl_weight_bytes(const bw_instruction *ins)
{
    return bw_conv_tiles(ins) * bw_conv_blocks(ins) * block_codes(ins) * bw_cl_limbs(ins->weight_format) *
           sizeof(int16_t);
}

/* Limb l of what each code byte stands for; all of it in formats of one limb. */
static void fill_table(const bw_format_traits *f, unsigned limbs, unsigned l, int16_t table[256])
{
    for (unsigned c = 0; c < 256; c++) {
        const int64_t value = bw_code_value(f, c), magnitude = value < 0 ? -value : value;
        const int16_t limb = (int16_t)(magnitude >> 9 * l & 511);
        table[c] = limbs == 1 ? (int16_t)value : value < 0 ? (int16_t)-limb : limb;
    }
}

static void lay_out(const bw_instruction *ins, const uint8_t *packed, uint8_t *codes, int16_t *to)
{
    const bw_format_traits *f = bw_format_get((bw_format)ins->weight_format);
    const size_t n = (size_t)block_codes(ins), bytes = bw_packed_size(f, n);
    const uint64_t blocks = bw_conv_tiles(ins) * bw_conv_blocks(ins);
    const unsigned limbs = bw_cl_limbs(f->format);
    int16_t tables[4][256];
    for (unsigned l = 0; l < limbs; l++)
        fill_table(f, limbs, l, tables[l]);
    for (uint64_t r = 0; r < blocks; r++, packed += bytes) {
        bw_unpack(f, packed, n, codes);
        const int16_t *words = (const int16_t *)(void *)codes;
        for (unsigned l = 0; l < limbs; l++, to += n)
            for (size_t i = 0; i < n / BW_OUTPUT_TILE; i++)
                for (size_t lane = 0; lane < BW_OUTPUT_TILE; lane++) {
                    const size_t from = (i / 4 * BW_OUTPUT_TILE + lane) * 4 + i % 4;
                    to[i * BW_OUTPUT_TILE + lane] = f->kind == BW_KIND_INT16 ? words[from] : tables[l][codes[from]];
                }
    }
}

bw_status bw_cl_weights(bw_cl_device *dev, bw_cl_image *img, const bw_instruction *ins, const uint8_t *constants,
                        bw_error *err)
{
    const size_t bytes = (size_t)bw_cl_weight_bytes(ins);
    cl_mem *buffer = &img->weights[img->weight_count];
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
        bw_cl_note(dev, img, BW_CL_SUM_WEIGHTS + img->weight_count, to, bytes);
        code = clEnqueueUnmapMemObject(dev->queue, *buffer, to, 0, NULL, NULL);
        if (code != CL_SUCCESS)
            status = bw_fail(err, BW_DEVICE_FAULT, "cannot unmap %zu bytes of weights: %s", bytes, bw_cl_error(code));
    }
    free(codes);
    return status;
}
