/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which images are on the device. All that fit stay; when another one needs their room, or the backend has none, those
 * that have not run for longest make way, and come back before their next run.
 */
#include <stdio.h>
#include <string.h>

#include "hal/base.h"
#include "hal/internal.h"

void bw_image_unload_locked(bw_device *dev, bw_image *image)
{
    void *handle = image->handle;
    if (!handle)
        return;
    image->handle = NULL;
    dev->memory_used -= image->memory;
    void *device = dev->handle;
    pthread_mutex_unlock(&dev->lock);
    dev->backend->image_release(device, handle);
    pthread_mutex_lock(&dev->lock);
}

/* Takes the image off the device that was used longest ago; 0: there is none but `keep`. */
static int evict_one(bw_device *dev, const bw_image *keep)
{
    bw_image *oldest = NULL;
    for (bw_image *i = dev->images; i; i = i->next)
        if (i != keep && i->handle && (!oldest || i->last_use < oldest->last_use))
            oldest = i;
    if (!oldest)
        return 0;
    bw_log(BW_LOG_INFO, "hal", "%s: an image of %llu bytes makes way, the one that has not run for longest", dev->uri,
           (unsigned long long)oldest->memory);
    dev->evictions++;
    bw_image_unload_locked(dev, oldest);
    return 1;
}

/* The smaller of the device's memory and the budget; UINT64_MAX: no limit is known. */
static uint64_t limit_of(const bw_device *dev, uint64_t memory_bytes)
{
    const uint64_t memory = memory_bytes ? memory_bytes : UINT64_MAX, budget = dev->budget ? dev->budget : UINT64_MAX;
    return memory < budget ? memory : budget;
}

static bw_status no_room(const bw_device *dev, const bw_image *image, uint64_t memory_bytes, bw_error *err)
{
    const uint64_t limit = limit_of(dev, memory_bytes);
    return bw_fail(err, BW_NO_MEMORY, "the program needs %llu bytes, the device's %s %llu: %s",
                   (unsigned long long)image->memory, limit == memory_bytes ? "memory is" : "budget is",
                   (unsigned long long)limit,
                   limit == memory_bytes ? "take a smaller model or another device" : "raise the budget");
}

/* The caller is the worker of an abandoned device: what it holds of it is not there any more. */
static bool is_orphan(const bw_device *dev, unsigned life)
{
    return dev->abandoned || dev->life != life;
}

static bw_status fail_orphan(bw_error *err)
{
    return bw_fail(err, BW_DEVICE_LOST, "the device was given up meanwhile");
}

bw_status bw_image_make_resident(bw_device *dev, bw_image *image, bw_error *err)
{
    const unsigned life = dev->life;
    void *device = dev->handle;
    bw_device_info info;
    memset(&info, 0, sizeof info);
    pthread_mutex_unlock(&dev->lock);
    bw_status status = dev->backend->info(device, &info, err);
    if (!status && !info.offers.opcodes)
        status =
            bw_fail(err, BW_INCOMPATIBLE, "the device holds no configuration: load a bitstream first (blockwave load)");
    if (!status)
        status = bw_requirements_met(&image->program.needs, &info.offers, err);
    pthread_mutex_lock(&dev->lock);
    if (status || is_orphan(dev, life))
        return status ? status : fail_orphan(err);
    const uint64_t limit = limit_of(dev, info.memory_bytes);
    if (image->memory > limit)
        return no_room(dev, image, info.memory_bytes, err);
    while (!is_orphan(dev, life) && dev->memory_used > limit - image->memory && evict_one(dev, image)) {
    }
    if (is_orphan(dev, life))
        return fail_orphan(err);
    void *handle = NULL;
    do {
        pthread_mutex_unlock(&dev->lock);
        status = dev->backend->image_load(device, &image->program, image->constants, &handle, err);
        pthread_mutex_lock(&dev->lock);
    } while (status == BW_NO_MEMORY && !is_orphan(dev, life) && evict_one(dev, image) && !is_orphan(dev, life));
    if (status || is_orphan(dev, life))
        return status ? status : fail_orphan(err);
    image->handle = handle;
    image->last_use = ++dev->uses;
    dev->memory_used += image->memory;
    return BW_OK;
}

bw_status bw_device_set_budget(bw_device *device, uint64_t bytes, bw_error *err)
{
    if (!device || device->magic != BW_DEVICE_MAGIC)
        return bw_fail(err, BW_INVALID_ARGUMENT, "not an open device, expected one from bw_device_open");
    pthread_mutex_lock(&device->lock);
    device->budget = bytes;
    if (!bw_turn_take(device)) {
        bw_status status = bw_fail_dead(device, err);
        pthread_mutex_unlock(&device->lock);
        return status;
    }
    while (bytes && device->memory_used > bytes && evict_one(device, NULL)) {
    }
    bw_turn_give(device);
    pthread_mutex_unlock(&device->lock);
    return BW_OK;
}
