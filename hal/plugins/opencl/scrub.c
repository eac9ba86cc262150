/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether what lies in the device's memory is what was written there. It is read back, piece by piece, and summed up
 * here: a kernel that sums would have to be believed, and would be one more that a bitstream has to bring.
 */
#include <stdlib.h>

#include "hal/base.h"
#include "hal/plugins/opencl/opencl.h"
#include "kernels/accelerator.h"

#define PIECE ((size_t)1 << 20)

/* Of pieces, in their order. */
static uint64_t add_piece(uint64_t sum, const void *bytes, size_t size)
{
    return sum * UINT64_C(0x9E3779B97F4A7C15) + bw_accel_checksum(bytes, size);
}

void bw_cl_note(const bw_cl_device *dev, bw_cl_image *img, uint32_t which, const void *bytes, uint64_t size)
{
    if (!dev->options.scrub)
        return;
    uint64_t sum = 0;
    for (uint64_t at = 0; at < size; at += PIECE)
        sum = add_piece(sum, (const char *)bytes + at, size - at < PIECE ? (size_t)(size - at) : PIECE);
    img->sums[which].sum = sum;
    img->sums[which].bytes = size;
}

static bw_status read_failed(cl_int code, bw_error *err)
{
    const int memory = code == CL_MEM_OBJECT_ALLOCATION_FAILURE || code == CL_OUT_OF_HOST_MEMORY;
    return bw_fail(err, memory ? BW_NO_MEMORY : BW_DEVICE_FAULT, "cannot read constants back: %s", bw_cl_error(code));
}

/* A command of the device's still writes to the memory: it stays until the reset has seen its end. */
static void leave_behind(bw_cl_device *dev, cl_event event, void **memory)
{
    bw_cl_limbo *l = malloc(sizeof *l);
    if (l) {
        *l = (bw_cl_limbo){dev->limbo, *memory, NULL};
        dev->limbo = l;
    }
    *memory = NULL;
    if (dev->in_flight)
        clReleaseEvent(dev->in_flight);
    dev->in_flight = event;
}

static bw_status look_at(bw_cl_device *dev, cl_mem buffer, const struct bw_cl_sum *expected, const char *what,
                         void **piece, const atomic_int *cancel, bw_error *err)
{
    uint64_t sum = 0;
    for (uint64_t at = 0; at < expected->bytes; at += PIECE) {
        const size_t size = expected->bytes - at < PIECE ? (size_t)(expected->bytes - at) : PIECE;
        cl_event event = NULL;
        cl_int code = clEnqueueReadBuffer(dev->queue, buffer, CL_FALSE, (size_t)at, size, *piece, 0, NULL, &event);
        if (code != CL_SUCCESS)
            return read_failed(code, err);
        clFlush(dev->queue);
        /* The piece is read to its end before a cancellation is looked at. */
        bw_status status = bw_cl_wait(event, 0, &dev->aborted, NULL, err);
        if (status) {
            leave_behind(dev, event, piece);
            return status;
        }
        clReleaseEvent(event);
        if (atomic_load(cancel))
            return bw_fail(err, BW_CANCELLED, "cancelled while constants were read back");
        sum = add_piece(sum, *piece, size);
    }
    return sum == expected->sum
               ? BW_OK
               : bw_fail(err, BW_DEVICE_FAULT, "the %s in the device's memory changed: sum %016llx, expected %016llx",
                         what, (unsigned long long)sum, (unsigned long long)expected->sum);
}

static bw_status look(bw_cl_device *dev, bw_cl_image *img, const atomic_int *cancel, bw_error *err)
{
    void *piece = malloc(PIECE);
    if (!piece)
        return bw_fail(err, BW_NO_MEMORY, "no memory to read constants back");
    bw_status status = look_at(dev, img->ops, &img->sums[BW_CL_SUM_OPS], "instructions", &piece, cancel, err);
    if (!status)
        status =
            look_at(dev, img->tables, &img->sums[BW_CL_SUM_TABLES], "biases, exponents or tables", &piece, cancel, err);
    for (uint32_t i = 0; i < img->weight_count && !status; i++)
        status = look_at(dev, img->weights[i], &img->sums[BW_CL_SUM_WEIGHTS + i], "weights", &piece, cancel, err);
    free(piece);
    return status;
}

/* In the middle of the first weights, or of the tables of an image without any. */
static bw_status turn_a_bit(bw_cl_device *dev, const bw_cl_image *img, bw_error *err)
{
    cl_mem buffer = img->weight_count ? img->weights[0] : img->tables;
    size_t size = 0;
    uint8_t byte = 0;
    cl_int code = clGetMemObjectInfo(buffer, CL_MEM_SIZE, sizeof size, &size, NULL);
    if (code == CL_SUCCESS)
        code = clEnqueueReadBuffer(dev->queue, buffer, CL_TRUE, size / 2, 1, &byte, 0, NULL, NULL);
    byte ^= 1;
    if (code == CL_SUCCESS)
        code = clEnqueueWriteBuffer(dev->queue, buffer, CL_TRUE, size / 2, 1, &byte, 0, NULL, NULL);
    return code == CL_SUCCESS ? BW_OK : read_failed(code, err);
}

bw_status bw_cl_scrub(bw_cl_device *dev, bw_cl_image *img, const atomic_int *cancel, bw_error *err)
{
    const bw_cl_options *o = &dev->options;
    bw_status status = BW_OK;
    dev->runs++;
    for (unsigned i = 0; i < o->flip_count && !status; i++)
        if (o->flips[i] == dev->runs)
            status = turn_a_bit(dev, img, err);
    if (!status && o->scrub && ++img->runs % o->scrub == 0)
        status = look(dev, img, cancel, err);
    return status;
}
