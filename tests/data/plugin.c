/* SPDX-License-Identifier: Apache-2.0 */
/* A HAL plug-in that tests/unit/test_plugin.c builds in several ways: sound, and wrong in each thing that can be. */
#include "hal/backend.h"

#ifndef NAME
#define NAME "good"
#endif
#ifndef ABI
#define ABI BW_BACKEND_ABI
#endif
#ifndef SIZE
#define SIZE sizeof(bw_backend)
#endif

static bw_status enumerate(unsigned index, bw_device_info *info, bw_error *err)
{
    if (index)
        return bw_fail(err, BW_NOT_FOUND, "one device");
    (void)info;
#ifdef ABSENT
    return bw_fail(err, BW_UNSUPPORTED, "no card in the machine");
#else
    const char uri[] = NAME ":0";
    for (unsigned i = 0; i < sizeof uri; i++)
        info->uri[i] = uri[i];
    return BW_OK;
#endif
}

static bw_status open_device(const char *target, void **device, bw_error *err)
{
    static int one;
    *device = &one;
    return target[0] ? BW_OK : bw_fail(err, BW_NOT_FOUND, "no target '%s', expected a number", target);
}

static void close_device(void *device)
{
    (void)device;
}

static bw_status info(void *device, bw_device_info *info, bw_error *err)
{
    (void)device;
    (void)err;
    info->name[0] = 'p';
    return BW_OK;
}

static bw_status load_bitstream(void *device, const void *payload, size_t size, const char *uuid, bw_error *err)
{
    (void)device;
    (void)payload;
    (void)size;
    (void)uuid;
    return bw_fail(err, BW_UNSUPPORTED, "takes no bitstream");
}

static bw_status image_load(void *device, const bw_program *program, const void *constants, void **image, bw_error *err)
{
    (void)device;
    (void)program;
    (void)constants;
    (void)image;
    return bw_fail(err, BW_UNSUPPORTED, "runs nothing");
}

static void image_release(void *device, void *image)
{
    (void)device;
    (void)image;
}

static bw_status run(void *device, void *image, const void *in, void *out, uint32_t batch, const atomic_int *cancel,
                     bw_error *err)
{
    (void)device;
    (void)image;
    (void)in;
    (void)out;
    (void)batch;
    (void)cancel;
    return bw_fail(err, BW_UNSUPPORTED, "runs nothing");
}

static bw_status reset(void *device, bw_error *err)
{
    (void)device;
    (void)err;
    return BW_OK;
}

static const bw_backend backend = {
    .abi_version = ABI,
    .struct_size = SIZE,
    .name = NAME,
    .enumerate = enumerate,
    .open = open_device,
    .close = close_device,
    .info = info,
    .load_bitstream = load_bitstream,
    .bitstream_kind = "none",
    .image_load = image_load,
    .image_release = image_release,
#ifndef NO_RUN
    .run = run,
#endif
    .reset = reset,
};

#ifdef UNDEFINED
int bw_symbol_that_nobody_defines(void);
#endif

#ifndef NO_ENTRY
const bw_backend *bw_backend_entry(void);
const bw_backend *bw_backend_entry(void)
{
#ifdef UNDEFINED
    if (bw_symbol_that_nobody_defines())
        return 0;
#endif
#ifdef NO_RUN
    (void)run;
#endif
    return &backend;
}
#endif
