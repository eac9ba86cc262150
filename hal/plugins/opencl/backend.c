/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The `opencl` HAL backend: devices of the OpenCL ICD loader. Targets are numbers: opencl:0, opencl:1 ... in the order
 * of platforms and their devices; "" is 0. See docs/opencl.md.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "hal/pci.h"
#include "hal/plugins/opencl/opencl.h"

#define SETTLE_NS  UINT64_C(2000000000) /* for what an aborted run left behind */
#define SCRUB_RUNS 1000                 /* of a device with memory of its own */

/* --- information -------------------------------------------------------------------------------------------------- */

/* Devices that the kernels cannot run on are not listed; opening one says why. */
static bw_status cl_enumerate(unsigned index, bw_device_info *info, bw_error *err)
{
    bw_error first = {BW_OK, ""};
    for (unsigned number = 0, fit = 0;; number++) {
        cl_device_id id;
        bw_cl_limits limits;
        bw_status status = bw_cl_find(number, &id, err);
        if (status == BW_NOT_FOUND && fit == 0 && first.status)
            return bw_fail(err, BW_UNSUPPORTED, "%s", first.message);
        if (status)
            return status;
        bw_error why;
        status = bw_cl_check(id, &why);
        if (status && !first.status)
            first = why;
        if (status) {
            bw_log(BW_LOG_INFO, "opencl", "device %u is left out: %s", number, why.message);
            continue;
        }
        if (fit++ == index) {
            bw_cl_describe(id, info, &limits);
            snprintf(info->uri, sizeof info->uri, "opencl:%u", number);
            return BW_OK;
        }
    }
}

static bw_status cl_info(void *device, bw_device_info *info, bw_error *err)
{
    (void)err;
    bw_cl_device *dev = device;
    pthread_mutex_lock(&dev->lock);
    *info = dev->info;
    pthread_mutex_unlock(&dev->lock);
    return BW_OK;
}

static void cl_sensors(const bw_device_info *info, bw_sensors *sensors)
{
    bw_pci_sensors(BW_SYSFS, info->address, sensors);
}

/* --- open, close, reset ------------------------------------------------------------------------------------------- */

static void stop(bw_cl_device *dev)
{
    bw_cl_settle(dev, SETTLE_NS);
    for (int k = 0; k < BW_CL_KERNELS; k++)
        if (dev->kernels[k])
            clReleaseKernel(dev->kernels[k]);
    memset(dev->kernels, 0, sizeof dev->kernels);
    if (dev->program)
        clReleaseProgram(dev->program);
    if (dev->timed)
        clReleaseCommandQueue(dev->timed);
    if (dev->queue)
        clReleaseCommandQueue(dev->queue);
    if (dev->context)
        clReleaseContext(dev->context);
    dev->program = NULL;
    dev->timed = dev->queue = NULL;
    dev->context = NULL;
}

static bw_status start(bw_cl_device *dev, bw_error *err)
{
    cl_int code;
    dev->used = 0;
    dev->context = clCreateContext(NULL, 1, &dev->id, NULL, NULL, &code);
    if (code == CL_SUCCESS)
        dev->queue = clCreateCommandQueue(dev->context, dev->id, 0, &code);
    if (code == CL_DEVICE_NOT_AVAILABLE)
        return bw_fail(err, BW_BUSY,
                       "%.100s is not available, another process may hold it: end that, or take another "
                       "device (blockwave devices lists them)",
                       dev->info.name);
    if (code != CL_SUCCESS)
        return bw_fail(err, BW_DEVICE_LOST, "the device cannot be used: %s", bw_cl_error(code));
    return bw_cl_build(dev->context, dev->id, dev->payload, dev->payload_size, &dev->program, dev->kernels, err);
}

static bw_status number(const char *key, const char *text, unsigned long low, unsigned long *out, bw_error *err)
{
    char *end;
    *out = strtoul(text, &end, 10);
    return text[0] < '0' || text[0] > '9' || *end || *out < low || *out > 1000000000
               ? bw_fail(err, BW_INVALID_ARGUMENT, "option %s is '%s', expected a number in %lu..1000000000", key, text,
                         low)
               : BW_OK;
}

static bw_status option(const char *key, const char *value, void *user, bw_error *err)
{
    bw_cl_options *o = user;
    unsigned long n = 0;
    bw_status status = BW_OK;
    if (strcmp(key, "scrub") == 0) {
        status = number(key, value, 0, &n, err);
        o->scrub = (uint32_t)n;
    } else if (strcmp(key, "fault") == 0) {
        if (strncmp(value, "flip@", 5) != 0)
            return bw_fail(err, BW_INVALID_ARGUMENT, "option fault is '%s', expected flip@N", value);
        if (o->flip_count == BW_CL_FLIPS_MAX)
            return bw_fail(err, BW_EXHAUSTED, "option fault: more than %d", BW_CL_FLIPS_MAX);
        status = number(key, value + 5, 1, &n, err);
        o->flips[o->flip_count++] = n;
    } else {
        status = bw_fail(err, BW_INVALID_ARGUMENT, "there is no option '%s', expected scrub or fault", key);
    }
    return status;
}

static bw_status cl_open(const char *target, void **device, bw_error *err)
{
    char name[32];
    bw_cl_options options = {.scrub = UINT32_MAX};
    bw_status status = bw_target_parse(target, name, sizeof name, option, &options, err);
    if (status)
        return status;
    char *end;
    const unsigned long number = strtoul(name, &end, 10);
    if (*end || name[0] == '-' || name[0] == '+' || name[0] == ' ' || number > 9999)
        return bw_fail(err, BW_NOT_FOUND, "there is no target '%s', expected a number as in opencl:0", name);
    bw_cl_device *dev = calloc(1, sizeof *dev);
    if (!dev)
        return bw_fail(err, BW_NO_MEMORY, "no memory for a device");
    pthread_mutex_init(&dev->lock, NULL);
    status = bw_cl_find((unsigned)number, &dev->id, err);
    if (!status)
        status = bw_cl_check(dev->id, err);
    if (!status) {
        bw_cl_describe(dev->id, &dev->info, &dev->limits);
        dev->options = options;
        if (options.scrub == UINT32_MAX)
            dev->options.scrub = bw_cl_is_cpu(dev->id) ? 0 : SCRUB_RUNS;
        status = start(dev, err);
    }
    if (status) {
        stop(dev);
        pthread_mutex_destroy(&dev->lock);
        free(dev);
        return status;
    }
    *device = dev;
    return BW_OK;
}

static void cl_close(void *device)
{
    bw_cl_device *dev = device;
    stop(dev);
    pthread_mutex_destroy(&dev->lock);
    free(dev->payload);
    free(dev);
}

static bw_status cl_reset(void *device, bw_error *err)
{
    bw_cl_device *dev = device;
    stop(dev);
    bw_status status = start(dev, err);
    if (status)
        stop(dev);
    return status;
}

static void cl_abort(void *device)
{
    atomic_store(&((bw_cl_device *)device)->aborted, 1);
}

/* --- bitstream ---------------------------------------------------------------------------------------------------- */

static bw_status cl_load_bitstream(void *device, const void *payload, size_t size, const char *uuid, bw_error *err)
{
    bw_cl_device *dev = device;
    cl_program program;
    cl_kernel kernels[BW_CL_KERNELS];
    void *copy = malloc(size ? size : 1);
    if (!copy)
        return bw_fail(err, BW_NO_MEMORY, "no memory for a payload of %zu bytes", size);
    memcpy(copy, payload, size);
    bw_status status = bw_cl_build(dev->context, dev->id, copy, size, &program, kernels, err);
    if (status) {
        free(copy);
        return status;
    }
    for (int k = 0; k < BW_CL_KERNELS; k++)
        clReleaseKernel(dev->kernels[k]);
    clReleaseProgram(dev->program);
    memcpy(dev->kernels, kernels, sizeof kernels);
    dev->program = program;
    free(dev->payload);
    dev->payload = copy;
    dev->payload_size = size;
    pthread_mutex_lock(&dev->lock);
    snprintf(dev->info.bitstream, sizeof dev->info.bitstream, "%s", uuid);
    pthread_mutex_unlock(&dev->lock);
    return BW_OK;
}

/* ------------------------------------------------------------------------------------------------------------------ */

static bw_status cl_run(void *device, void *image, const void *in, void *out, uint32_t batch, const atomic_int *cancel,
                        bw_error *err)
{
    return bw_cl_run(device, image, in, out, batch, cancel, NULL, err);
}

static const bw_backend backend = {
    .abi_version = BW_BACKEND_ABI,
    .struct_size = sizeof(bw_backend),
    .name = "opencl",
    .enumerate = cl_enumerate,
    .open = cl_open,
    .close = cl_close,
    .info = cl_info,
    .load_bitstream = cl_load_bitstream,
    .bitstream_kind = "opencl-source",
    .image_load = bw_cl_image_load,
    .image_release = bw_cl_image_release,
    .run = cl_run,
    .reset = cl_reset,
    .abort = cl_abort,
    .run_timed = bw_cl_run,
    .sensors = cl_sensors,
};

const bw_backend *bw_backend_entry(void);
const bw_backend *bw_backend_entry(void)
{
    return &backend;
}
