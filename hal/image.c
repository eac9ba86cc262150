/* SPDX-License-Identifier: Apache-2.0 */
/* Resident programs, submission, fences. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "hal/internal.h"

static bool image_ok(const bw_image *image)
{
    return image && image->magic == BW_IMAGE_MAGIC;
}

static bool fence_ok(const bw_fence *fence)
{
    return fence && fence->magic == BW_FENCE_MAGIC;
}

/* now + timeout; 0 (for ever) stays 0, and the far future stays far. */
static uint64_t deadline_of(uint64_t timeout_ns)
{
    uint64_t now = bw_now_ns();
    return timeout_ns == 0 || timeout_ns > UINT64_MAX / 2 - now ? 0 : now + timeout_ns;
}

/* --- load, release ---------------------------------------------------------------------------------------------- */

static bw_status check_load(const bw_device *dev, const void *program, const void *constants, size_t constants_size,
                            bw_image **image, bw_error *err)
{
    if (!dev || dev->magic != BW_DEVICE_MAGIC)
        return bw_fail(err, BW_INVALID_ARGUMENT, "bw_image_load: not an open device, expected one of bw_device_open");
    if (!image || !program || (!constants && constants_size))
        return bw_fail(err, BW_INVALID_ARGUMENT, "bw_image_load: %s is NULL",
                       !image     ? "image"
                       : !program ? "program"
                                  : "constants");
    if ((uintptr_t)program % 8)
        return bw_fail(err, BW_INVALID_ARGUMENT, "bw_image_load: the program's address %p is not 8-byte aligned",
                       program);
    if ((uintptr_t)constants % 64)
        return bw_fail(err, BW_INVALID_ARGUMENT, "bw_image_load: the constants' address %p is not 64-byte aligned",
                       constants);
    return BW_OK;
}

/* Lock and turn are held. */
static bw_status add_image(bw_device *dev, bw_image *image, bw_error *err)
{
    if (dev->health == BW_HEALTH_DEAD)
        return bw_fail_dead(dev, err);
    bw_error error = {BW_OK, ""};
    bw_status status = bw_image_make_resident(dev, image, &error);
    if (status) {
        bw_fail(err, status, "%s: %s", dev->uri, error.message);
        if (status == BW_DEVICE_FAULT || status == BW_DEVICE_LOST) {
            dev->faults++;
            bw_reset_locked(dev, NULL);
        }
        return status;
    }
    image->next = dev->images;
    dev->images = image;
    dev->image_count++;
    return BW_OK;
}

bw_status bw_image_load(bw_device *device, const void *program, size_t program_size, const void *constants,
                        size_t constants_size, bw_image **image, bw_error *err)
{
    if (image)
        *image = NULL;
    bw_status status = check_load(device, program, constants, constants_size, image, err);
    if (status)
        return status;
    bw_image *made = calloc(1, sizeof *made);
    if (!made)
        return bw_fail(err, BW_NO_MEMORY, "%s: no memory for an image", device->uri);
    status = bw_program_parse(program, program_size, &made->program, err);
    if (!status)
        status = bw_program_check_constants(&made->program, constants, constants_size, err);
    if (status) {
        free(made);
        return status;
    }
    made->magic = BW_IMAGE_MAGIC;
    made->device = device;
    made->constants = constants;
    made->memory = made->program.header->const_bytes + made->program.header->act_bytes;
    made->refs = 1;
    pthread_mutex_lock(&device->lock);
    if (bw_turn_take(device)) {
        status = add_image(device, made, err);
        bw_turn_give(device);
    } else {
        status = bw_fail_dead(device, err);
    }
    pthread_mutex_unlock(&device->lock);
    if (status) {
        free(made);
        return status;
    }
    bw_device_ref(device);
    *image = made;
    return BW_OK;
}

/* The lock is held; true: the image is gone and the caller owes bw_device_unref. */
static bool image_unref(bw_image *image)
{
    if (--image->refs)
        return false;
    image->magic = 0;
    free(image);
    return true;
}

void bw_image_release(bw_image *image)
{
    if (!image_ok(image))
        return;
    bw_device *dev = image->device;
    pthread_mutex_lock(&dev->lock);
    while (image->active)
        pthread_cond_wait(&dev->changed, &dev->lock);
    bool turn = bw_turn_take(dev);
    if (turn)
        bw_image_unload_locked(dev, image);
    else if (image->handle)
        dev->memory_used -= image->memory; /* an abandoned device keeps the rest */
    for (bw_image **at = &dev->images; *at; at = &(*at)->next)
        if (*at == image) {
            *at = image->next;
            break;
        }
    if (turn)
        bw_turn_give(dev);
    bool owes = image_unref(image);
    pthread_mutex_unlock(&dev->lock);
    if (owes)
        bw_device_unref(dev);
}

const bw_program *bw_image_program(const bw_image *image)
{
    return image_ok(image) ? &image->program : NULL;
}

/* --- submit ----------------------------------------------------------------------------------------------------- */

static bw_status check_submit(const bw_image *image, const void *in, const void *out, uint32_t batch, bw_fence **fence,
                              bw_error *err)
{
    if (!image_ok(image) || !fence)
        return bw_fail(err, BW_INVALID_ARGUMENT, "bw_image_submit: %s",
                       fence ? "not a loaded image, expected one of bw_image_load" : "fence is NULL");
    const bw_program_header *h = image->program.header;
    if (batch == 0)
        return bw_fail(err, BW_INVALID_ARGUMENT, "%s: batch is 0, expected at least 1", image->device->uri);
    if ((h->in_bytes && !in) || (h->out_bytes && !out))
        return bw_fail(err, BW_INVALID_ARGUMENT, "%s: the %s buffer is NULL", image->device->uri,
                       h->in_bytes && !in ? "input" : "output");
    if ((uintptr_t)in % 4 || (uintptr_t)out % 4)
        return bw_fail(err, BW_INVALID_ARGUMENT, "%s: buffers %p, %p are not both 4-byte aligned", image->device->uri,
                       in, out);
    uint64_t most = h->in_bytes > h->out_bytes ? h->in_bytes : h->out_bytes;
    if (most && batch > SIZE_MAX / most)
        return bw_fail(err, BW_OUT_OF_RANGE, "%s: a batch of %u x %llu bytes is more than memory can hold",
                       image->device->uri, batch, (unsigned long long)most);
    return BW_OK;
}

/* How a caller submits. */
typedef enum submit_mode {
    SUBMIT,          /* and goes on */
    SUBMIT_AND_STAY, /* waits for the result next: may do the work itself */
    SUBMIT_PATIENTLY /* the same, and waits until the queue has room or the deadline (0: none) has passed */
} submit_mode;

static bw_status submit(bw_image *image, const void *in, void *out, uint32_t batch, uint64_t *spent_ns,
                        submit_mode mode, uint64_t deadline_ns, bw_fence **fence, bw_error *err)
{
    const bool wait = mode == SUBMIT_PATIENTLY;
    if (fence)
        *fence = NULL;
    bw_status status = check_submit(image, in, out, batch, fence, err);
    if (status)
        return status;
    bw_device *dev = image->device;
    bw_fence *made = calloc(1, sizeof *made);
    if (!made)
        return bw_fail(err, BW_NO_MEMORY, "%s: no memory for a fence", dev->uri);
    made->magic = BW_FENCE_MAGIC;
    made->image = image;
    made->in = in;
    made->out = out;
    made->batch = batch;
    made->spent_ns = spent_ns;
    made->refs = 1;
    pthread_mutex_lock(&dev->lock);
    while (wait && dev->queued >= BW_QUEUE_MAX && dev->health != BW_HEALTH_DEAD)
        if (!bw_cond_until(&dev->changed, &dev->lock, deadline_ns))
            break;
    if (dev->health == BW_HEALTH_DEAD)
        status = bw_fail_dead(dev, err);
    else if (image->dropped)
        status = bw_fail(err, BW_NOT_FOUND, "%s: the image was dropped when a bitstream was loaded, load it again",
                         dev->uri);
    else if (dev->queued >= BW_QUEUE_MAX)
        status = wait ? bw_fail(err, BW_TIMEOUT, "%s: the deadline passed while the run waited for room in the queue",
                                dev->uri)
                      : bw_fail(err, BW_EXHAUSTED, "%s: the queue is full (%d runs wait): try again later", dev->uri,
                                BW_QUEUE_MAX);
    if (status) {
        pthread_mutex_unlock(&dev->lock);
        free(made);
        return status;
    }
    made->submitted_ns = bw_now_ns();
    image->refs++;
    image->active++;
    const bool here = mode != SUBMIT && bw_worker_idle(dev);
    *dev->tail = made;
    dev->tail = &made->next;
    dev->queued++;
    *fence = made;
    if (here) {
        made->deadline_ns = deadline_ns;
        bw_worker_run_here(dev);
    } else {
        pthread_cond_signal(&dev->wake);
    }
    pthread_mutex_unlock(&dev->lock);
    return BW_OK;
}

bw_status bw_image_submit(bw_image *image, const void *in, void *out, uint32_t batch, bw_fence **fence, bw_error *err)
{
    return submit(image, in, out, batch, NULL, SUBMIT, 0, fence, err);
}

static bw_status check_timed(const bw_image *image, bw_error *err)
{
    if (image_ok(image) && !bw_backend_times(image->device->backend))
        return bw_fail(err, BW_UNSUPPORTED,
                       "%s: backend '%s' does not time instructions: take another device, or measure whole runs",
                       image->device->uri, image->device->backend->name);
    return BW_OK;
}

bw_status bw_image_submit_timed(bw_image *image, const void *in, void *out, uint32_t batch, uint64_t *spent_ns,
                                bw_fence **fence, bw_error *err)
{
    if (fence)
        *fence = NULL;
    if (!spent_ns)
        return bw_fail(err, BW_INVALID_ARGUMENT,
                       "bw_image_submit_timed: spent_ns is NULL, expected an element for each instruction");
    bw_status status = check_timed(image, err);
    return status ? status : submit(image, in, out, batch, spent_ns, SUBMIT, 0, fence, err);
}

/* Submits, waits, and sees to it that the run has ended. */
static bw_status run(bw_image *image, const void *in, void *out, uint32_t batch, uint64_t *spent_ns, submit_mode mode,
                     uint64_t timeout_ns, bw_run_times *times, bw_error *err)
{
    uint64_t deadline = deadline_of(timeout_ns);
    bw_fence *fence;
    bw_status status = submit(image, in, out, batch, spent_ns, mode, deadline, &fence, err);
    if (status)
        return status;
    uint64_t now = bw_now_ns();
    status = bw_fence_wait(fence, !deadline ? 0 : deadline > now ? deadline - now : 1, err);
    if (status == BW_CANCELLED && fence->deadline_ns) { /* by the supervisor: nobody else knows the fence */
        status = bw_fail(err, BW_TIMEOUT, "%s: the run was not over after %.3f ms", image->device->uri,
                         (double)timeout_ns / 1e6);
    } else if (status == BW_TIMEOUT) {
        /* The buffers are the caller's again when this returns: the run has to end first. */
        bw_fence_cancel(fence);
        bw_error error;
        bw_status ended = bw_fence_wait(fence, 0, &error);
        if (ended == BW_OK || ended == BW_DEVICE_LOST) {
            status = ended; /* it was just ready, or the device is worse than late */
            if (ended && err)
                *err = error;
        }
    }
    if (times) {
        times->submitted = 1;
        bw_fence_times(fence, &times->queued_ns, &times->running_ns);
    }
    bw_fence_release(fence);
    return status;
}

bw_status bw_image_run(bw_image *image, const void *in, void *out, uint32_t batch, uint64_t timeout_ns, bw_error *err)
{
    return run(image, in, out, batch, NULL, SUBMIT_PATIENTLY, timeout_ns, NULL, err);
}

bw_status bw_image_run_timed(bw_image *image, const void *in, void *out, uint32_t batch, uint64_t timeout_ns,
                             uint64_t *spent_ns, bw_run_times *times, bw_error *err)
{
    if (times)
        *times = (bw_run_times){0, 0, 0};
    bw_status status = spent_ns ? check_timed(image, err) : BW_OK;
    return status ? status : run(image, in, out, batch, spent_ns, SUBMIT_AND_STAY, timeout_ns, times, err);
}

/* --- fences ----------------------------------------------------------------------------------------------------- */

bool bw_fence_unref(bw_fence *fence)
{
    if (--fence->refs)
        return false;
    bw_image *image = fence->image;
    fence->magic = 0;
    free(fence);
    return image_unref(image);
}

void bw_fence_on_done(bw_fence *fence, void (*done)(void *user), void *user)
{
    if (!fence_ok(fence) || !done)
        return;
    bw_device *dev = fence->image->device;
    pthread_mutex_lock(&dev->lock);
    bool ended = fence->state >= FENCE_ENDING;
    if (!ended) {
        fence->done = done;
        fence->done_user = user;
    }
    pthread_mutex_unlock(&dev->lock);
    if (ended)
        done(user);
}

bw_status bw_fence_wait(bw_fence *fence, uint64_t timeout_ns, bw_error *err)
{
    if (!fence_ok(fence))
        return bw_fail(err, BW_INVALID_ARGUMENT, "bw_fence_wait: not a fence, expected one of bw_image_submit");
    bw_device *dev = fence->image->device;
    uint64_t deadline = deadline_of(timeout_ns);
    pthread_mutex_lock(&dev->lock);
    while (fence->state < FENCE_ENDING)
        if (!bw_cond_until(&dev->changed, &dev->lock, deadline) && fence->state < FENCE_ENDING) {
            const char *where = fence->state == FENCE_QUEUED ? "still queued" : "still running";
            pthread_mutex_unlock(&dev->lock);
            return bw_fail(err, BW_TIMEOUT, "%s: the run is %s after %.3f ms", dev->uri, where,
                           (double)timeout_ns / 1e6);
        }
    bw_status status = fence->status;
    if (status && err)
        *err = fence->error;
    pthread_mutex_unlock(&dev->lock);
    return status;
}

void bw_fence_cancel_locked(bw_device *dev, bw_fence *fence)
{
    if (fence->state >= FENCE_ENDING)
        return;
    if (!fence->verdict)
        fence->verdict = BW_CANCELLED;
    atomic_store(&fence->cancel, 1);
    if (dev->running == fence && !dev->cancel_ns)
        dev->cancel_ns = bw_now_ns();
    pthread_cond_signal(&dev->supervise);
}

void bw_fence_cancel(bw_fence *fence)
{
    if (!fence_ok(fence))
        return;
    bw_device *dev = fence->image->device;
    pthread_mutex_lock(&dev->lock);
    bw_fence_cancel_locked(dev, fence);
    pthread_mutex_unlock(&dev->lock);
}

void bw_fence_times(bw_fence *fence, uint64_t *queued_ns, uint64_t *running_ns)
{
    uint64_t queued = 0, running = 0;
    if (fence_ok(fence)) {
        bw_device *dev = fence->image->device;
        pthread_mutex_lock(&dev->lock);
        if (fence->state >= FENCE_ENDING) {
            uint64_t started = fence->started_ns ? fence->started_ns : fence->ended_ns;
            queued = started - fence->submitted_ns;
            running = fence->ended_ns - started;
        }
        pthread_mutex_unlock(&dev->lock);
    }
    if (queued_ns)
        *queued_ns = queued;
    if (running_ns)
        *running_ns = running;
}

void bw_fence_release(bw_fence *fence)
{
    if (!fence_ok(fence))
        return;
    bw_device *dev = fence->image->device;
    pthread_mutex_lock(&dev->lock);
    bw_fence_cancel_locked(dev, fence);
    while (fence->state != FENCE_DONE)
        pthread_cond_wait(&dev->changed, &dev->lock);
    bool owes = bw_fence_unref(fence);
    pthread_mutex_unlock(&dev->lock);
    if (owes)
        bw_device_unref(dev);
}
