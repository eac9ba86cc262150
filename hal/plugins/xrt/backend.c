/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The `xrt` HAL backend: AMD/Xilinx cards through XRT, and XRT's own emulation of one. The same code for both: what is
 * different is which cards there are (platform.c). docs/xrt.md.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "hal/backend.h"
#include "hal/base.h"
#include "hal/bitstream.h"
#include "hal/pci.h"
#include "hal/plugins/xrt/card.h"

typedef struct xrt_device {
    bw_xrt_card *card;
    bw_xrt_job_options options;
    atomic_int aborted;
} xrt_device;

/* --- information -------------------------------------------------------------------------------------------------- */

static void fill_info(const bw_xrt_card_info *card, const bw_accelerator *configured, bw_device_info *info)
{
    char memory[48] = "";
    if (configured->bank_count)
        snprintf(memory, sizeof memory, ", %u banks of %llu MiB", configured->bank_count,
                 (unsigned long long)(configured->bank_bytes >> 20));
    if (card->address[0])
        snprintf(info->name, sizeof info->name, "%.48s at %.15s%s", card->name, card->address, memory);
    else
        snprintf(info->name, sizeof info->name, "emulated card (XRT %s)%s", card->mode, memory);
    snprintf(info->part, sizeof info->part, "%s", card->name);
    snprintf(info->address, sizeof info->address, "%s", card->address);
    snprintf(info->interface_id, sizeof info->interface_id, "%s", card->interface_id);
    info->offers = configured->offers;
    info->offers.isa_version = BW_ISA_VERSION;
    info->memory_bytes = configured->bank_count * configured->bank_bytes;
}

/* The file that BW_XRT_XCLBIN names: an xclbin, or a container with one. *bytes is the file. */
static bw_status default_bitstream(const void **bytes, size_t *size, const void **payload, size_t *payload_size,
                                   char uuid[37], bw_error *err)
{
    const char *path = getenv("BW_XRT_XCLBIN");
    *bytes = NULL;
    *payload = NULL;
    if (!path || !*path)
        return BW_OK;
    bw_status status = bw_file_map(path, bytes, size, err);
    if (status)
        return bw_fail_context(err, status, "BW_XRT_XCLBIN");
    *payload = *bytes;
    *payload_size = *size;
    if (*size >= 6 && memcmp(*bytes, "BWBITS", 6) == 0) {
        bw_bitstream *bits = calloc(1, sizeof *bits);
        status = bits ? bw_bitstream_parse(*bytes, *size, bits, err) : bw_fail(err, BW_NO_MEMORY, "no memory");
        *payload = NULL;
        for (unsigned i = 0; !status && i < bits->payload_count; i++)
            if (strcmp(bits->payloads[i].kind, "xclbin") == 0) {
                *payload = bits->payloads[i].bytes;
                *payload_size = bits->payloads[i].size;
                memcpy(uuid, bits->uuid, 37);
            }
        if (!status && !*payload)
            status = bw_fail(err, BW_INCOMPATIBLE, "it has no payload of kind 'xclbin'");
        free(bits);
    } else {
        bw_xclbin xclbin;
        status = bw_xclbin_parse(*bytes, *size, &xclbin, err);
        if (!status)
            memcpy(uuid, xclbin.uuid, 37);
    }
    if (status) {
        bw_file_unmap(*bytes, *size);
        *bytes = NULL;
        return bw_fail_context(err, status, "%s", path);
    }
    return BW_OK;
}

static bw_status xrt_enumerate(unsigned index, bw_device_info *info, bw_error *err)
{
    const bw_xrt_api *xrt;
    bw_xrt_card_info card;
    bw_status status = bw_xrt_api_get(&xrt, err);
    if (!status)
        status = bw_xrt_card_find(index, &card, err);
    if (status)
        return status;
    /* What it offers as soon as it is opened. */
    bw_xclbin xclbin = {.uuid = ""};
    const void *bytes, *payload;
    size_t size = 0, payload_size = 0;
    char uuid[37] = "";
    status = default_bitstream(&bytes, &size, &payload, &payload_size, uuid, err);
    if (!status && payload)
        status = bw_xclbin_parse(payload, payload_size, &xclbin, err);
    bw_file_unmap(bytes, size);
    if (status)
        return status == BW_NOT_FOUND ? bw_fail(err, BW_UNSUPPORTED, "%s", err ? err->message : "") : status;
    fill_info(&card, &xclbin.accelerator, info);
    snprintf(info->uri, sizeof info->uri, "xrt:%u", index);
    bw_holder holder;
    if (bw_xrt_card_claimed(index, &card, &holder)) {
        char who[BW_HOLDER_TEXT];
        const size_t at = strlen(info->name);
        snprintf(info->name + at, sizeof info->name - at, ", in use by %s", bw_holder_text(&holder, who));
    }
    return BW_OK;
}

static bw_status xrt_info(void *device, bw_device_info *info, bw_error *err)
{
    (void)err;
    bw_xrt_card *c = ((xrt_device *)device)->card;
    pthread_mutex_lock(&c->info_lock);
    fill_info(&c->info, &c->shown, info);
    snprintf(info->bitstream, sizeof info->bitstream, "%s", c->bitstream);
    pthread_mutex_unlock(&c->info_lock);
    return BW_OK;
}

static void xrt_sensors(const bw_device_info *info, bw_sensors *sensors)
{
    bw_xrt_card_sensors(BW_SYSFS, info->address, sensors);
}

/* --- open --------------------------------------------------------------------------------------------------------- */

static bw_status option(const char *key, const char *value, void *user, bw_error *err)
{
    bw_xrt_job_options *o = user;
    uint32_t *to = strcmp(key, "timeout") == 0 ? &o->timeout_ms : strcmp(key, "scrub") == 0 ? &o->scrub : NULL;
    if (!to)
        return bw_fail(err, BW_INVALID_ARGUMENT, "there is no option '%s', expected timeout or scrub", key);
    char *end;
    errno = 0;
    unsigned long n = strtoul(value, &end, 10);
    if (errno || end == value || *end || value[0] == '-' || n > 1000000000)
        return bw_fail(err, BW_INVALID_ARGUMENT, "option %s is '%s', expected a number in 0..1000000000", key, value);
    *to = (uint32_t)n;
    return BW_OK;
}

/* A card that is not configured yet gets what BW_XRT_XCLBIN names. A call into XRT that another device of this card is
 * stuck in is not waited for. */
static bw_status configure_first(bw_xrt_card *c, bw_error *err)
{
    const void *bytes, *payload;
    size_t size = 0, payload_size = 0;
    char uuid[37] = "";
    const uint64_t until = bw_now_ns() + UINT64_C(2000000000);
    while (pthread_mutex_trylock(&c->lock)) {
        if (bw_now_ns() > until)
            return bw_fail(err, BW_BUSY,
                           "card %u is busy in this process with a call that does not return: start the process again",
                           c->index);
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    bw_status status = BW_OK;
    if (!c->payload) {
        status = default_bitstream(&bytes, &size, &payload, &payload_size, uuid, err);
        if (!status && payload)
            status = bw_xrt_card_configure(c, payload, payload_size, uuid, err);
        if (!status)
            bw_file_unmap(bytes, size);
    }
    pthread_mutex_unlock(&c->lock);
    return status;
}

static bw_status xrt_open(const char *target, void **device, bw_error *err)
{
    xrt_device *dev = calloc(1, sizeof *dev);
    if (!dev)
        return bw_fail(err, BW_NO_MEMORY, "no memory for a device");
    dev->options = (bw_xrt_job_options){.timeout_ms = 120000, .scrub = 1000};
    char name[32], *end = name;
    bw_status status = bw_target_parse(target, name, sizeof name, option, &dev->options, err);
    unsigned long index = status ? 0 : strtoul(name, &end, 10);
    if (!status && (!*name || *end || strspn(name, "0123456789") != strlen(name) || index > 1023))
        status = bw_fail(err, BW_NOT_FOUND, "there is no target '%s', expected the number of a card: xrt:0", name);
    if (!status)
        status = bw_xrt_card_open((unsigned)index, &dev->card, err);
    if (!status) {
        status = configure_first(dev->card, err);
        if (status)
            bw_xrt_card_close(dev->card);
    }
    if (status) {
        free(dev);
        return status;
    }
    *device = dev;
    return BW_OK;
}

static void xrt_close(void *device)
{
    xrt_device *dev = device;
    bw_xrt_card_close(dev->card);
    free(dev);
}

/* --- the rest ----------------------------------------------------------------------------------------------------- */

static bw_status xrt_load_bitstream(void *device, const void *payload, size_t size, const char *uuid, bw_error *err)
{
    bw_xrt_card *c = ((xrt_device *)device)->card;
    pthread_mutex_lock(&c->lock);
    bw_status status = bw_xrt_card_configure(c, payload, size, uuid, err);
    pthread_mutex_unlock(&c->lock);
    return status;
}

static bw_status xrt_image_load(void *device, const bw_program *program, const void *constants, void **image,
                                bw_error *err)
{
    bw_xrt_image *made;
    bw_status status = bw_xrt_image_load(((xrt_device *)device)->card, program, constants, &made, err);
    *image = made;
    return status;
}

static void xrt_image_release(void *device, void *image)
{
    bw_xrt_image_release(((xrt_device *)device)->card, image);
}

static bw_status xrt_run(void *device, void *image, const void *in, void *out, uint32_t batch, const atomic_int *cancel,
                         bw_error *err)
{
    xrt_device *dev = device;
    atomic_store(&dev->aborted, 0);
    return bw_xrt_image_run(dev->card, image, &dev->options, in, out, batch, cancel, &dev->aborted, err);
}

static bw_status xrt_reset(void *device, bw_error *err)
{
    bw_xrt_card *c = ((xrt_device *)device)->card;
    pthread_mutex_lock(&c->lock);
    bw_status status = bw_xrt_card_reset(c, err);
    pthread_mutex_unlock(&c->lock);
    return status;
}

static void xrt_abort(void *device)
{
    atomic_store(&((xrt_device *)device)->aborted, 1);
}

static const bw_backend backend = {
    .abi_version = BW_BACKEND_ABI,
    .struct_size = sizeof(bw_backend),
    .name = "xrt",
    .enumerate = xrt_enumerate,
    .open = xrt_open,
    .close = xrt_close,
    .info = xrt_info,
    .load_bitstream = xrt_load_bitstream,
    .bitstream_kind = "xclbin",
    .image_load = xrt_image_load,
    .image_release = xrt_image_release,
    .run = xrt_run,
    .reset = xrt_reset,
    .abort = xrt_abort,
    .sensors = xrt_sensors,
    .abort_grace_ms = 3000, /* a call into XRT returns within about a second, also from a card that is gone */
};

const bw_backend *bw_backend_entry(void);
const bw_backend *bw_backend_entry(void)
{
    return &backend;
}
