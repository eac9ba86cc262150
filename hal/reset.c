/* SPDX-License-Identifier: Apache-2.0 */
/* Reset, death, and the ways back: a reset that succeeds, a bitstream that was lost, an opening anew. */
#include <stdio.h>
#include <string.h>

#include "hal/base.h"
#include "hal/internal.h"

void bw_device_die(bw_device *dev, const char *reason)
{
    dev->health = BW_HEALTH_DEAD;
    /* Whoever tries it again and again says so: the same line need not come each time. */
    const bool known = strcmp(dev->death, reason) == 0;
    snprintf(dev->death, sizeof dev->death, "%s", reason);
    bw_log(known ? BW_LOG_DEBUG : BW_LOG_ERROR, "hal", "%s: marked dead: %s", dev->uri, reason);
    pthread_cond_broadcast(&dev->supervise); /* it ends what waits in the queue */
    pthread_cond_broadcast(&dev->changed);
}

bw_status bw_fail_dead(const bw_device *dev, bw_error *err)
{
    return bw_fail(err, BW_DEVICE_LOST, "%s: the device is dead: %s; %s", dev->uri, dev->death,
                   dev->misconfigured ? "load it again" : "reset it, or close it and open it again");
}

/* After a reset that the backend calls a success. */
static bw_status check_bitstream(bw_device *dev, bw_error *err)
{
    bw_device_info info;
    memset(&info, 0, sizeof info);
    pthread_mutex_unlock(&dev->lock);
    if (dev->backend->info(dev->handle, &info, NULL))
        info.bitstream[0] = 0;
    pthread_mutex_lock(&dev->lock);
    dev->misconfigured = dev->bitstream[0] && strcmp(info.bitstream, dev->bitstream) != 0;
    if (!dev->misconfigured) {
        dev->health = BW_HEALTH_OK;
        return BW_OK;
    }
    char reason[256];
    snprintf(reason, sizeof reason, "after its reset it holds bitstream %s, expected %s",
             info.bitstream[0] ? info.bitstream : "none", dev->bitstream);
    bw_device_die(dev, reason);
    return bw_fail_dead(dev, err);
}

bw_status bw_reset_locked(bw_device *dev, bw_error *err)
{
    dev->health = BW_HEALTH_RESETTING;
    dev->resets++;
    dev->misconfigured = false;
    bw_images_unload_locked(dev);
    bw_error error = {BW_OK, ""};
    snprintf(error.message, sizeof error.message, "the backend gave no reason");
    pthread_mutex_unlock(&dev->lock);
    bw_status status = dev->backend->reset(dev->handle, &error);
    pthread_mutex_lock(&dev->lock);
    if (!status)
        return check_bitstream(dev, err);
    char reason[256];
    snprintf(reason, sizeof reason, "its reset failed: %.200s", error.message);
    bw_device_die(dev, reason);
    return bw_fail_dead(dev, err);
}

/* Opens an abandoned device anew. The worker that is stuck in the old one, its run and whatever the backend holds for
 * it are left behind; images come back before their next run. The lock is held, and dropped while the backend works. */
static bw_status reopen(bw_device *dev, bw_error *err)
{
    while (dev->reopening)
        pthread_cond_wait(&dev->changed, &dev->lock);
    if (!dev->abandoned)
        return dev->health == BW_HEALTH_DEAD ? bw_fail_dead(dev, err) : BW_OK; /* by somebody else, just now */
    dev->reopening = true;
    dev->health = BW_HEALTH_RESETTING;
    dev->resets++;
    bw_error error = {BW_OK, ""};
    snprintf(error.message, sizeof error.message, "the backend gave no reason");
    void *handle = NULL;
    pthread_mutex_unlock(&dev->lock);
    bw_status status = dev->backend->open(strchr(dev->uri, ':') + 1, &handle, &error);
    pthread_mutex_lock(&dev->lock);
    const bool opened = status == BW_OK;
    if (opened) {
        void *stuck = dev->handle;
        dev->handle = handle;
        dev->life++;
        status = bw_worker_replace(dev, &error);
        if (status)
            dev->handle = stuck;
    }
    if (!status) {
        for (bw_image *image = dev->images; image; image = image->next)
            image->handle = NULL;
        dev->memory_used = 0;
        dev->abandoned = false; /* and the turn, which the stuck worker took, is this thread's */
        status = check_bitstream(dev, err);
        bw_turn_give(dev);
    } else {
        char reason[256];
        snprintf(reason, sizeof reason, "it cannot be opened again: %.200s", error.message);
        bw_device_die(dev, reason);
        status = bw_fail_dead(dev, err);
        if (opened) {
            pthread_mutex_unlock(&dev->lock);
            dev->backend->close(handle);
            pthread_mutex_lock(&dev->lock);
        }
    }
    dev->reopening = false;
    const bool back = !dev->abandoned;
    pthread_cond_broadcast(&dev->changed);
    if (back) {
        pthread_mutex_unlock(&dev->lock);
        bw_device_relist(dev);
        pthread_mutex_lock(&dev->lock);
    }
    return status;
}

bw_status bw_device_reset(bw_device *device, bw_error *err)
{
    if (!device || device->magic != BW_DEVICE_MAGIC)
        return bw_fail(err, BW_INVALID_ARGUMENT, "not an open device, expected one from bw_device_open");
    bw_status status;
    pthread_mutex_lock(&device->lock);
    const bool dead = device->health == BW_HEALTH_DEAD;
    for (bw_fence *fence = device->queue; fence; fence = fence->next)
        if (!fence->verdict)
            fence->verdict = BW_DEVICE_FAULT;
    if (device->running) {
        bw_fence *fence = device->running;
        if (!fence->verdict)
            fence->verdict = BW_DEVICE_FAULT;
        atomic_store(&fence->cancel, 1);
        if (!device->cancel_ns)
            device->cancel_ns = bw_now_ns();
    }
    pthread_cond_broadcast(&device->supervise);
    if (bw_turn_take(device)) {
        status = bw_reset_locked(device, err);
        bw_turn_give(device);
    } else {
        status = reopen(device, err);
    }
    if (dead && !status) {
        device->death[0] = 0;
        bw_log(BW_LOG_INFO, "hal", "%s: back after a reset", device->uri);
    }
    pthread_mutex_unlock(&device->lock);
    return status;
}
