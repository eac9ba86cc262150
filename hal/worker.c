/* SPDX-License-Identifier: Apache-2.0 */
/* The two threads of a device: the worker runs, the supervisor ends what does not end by itself. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "hal/base.h"
#include "hal/internal.h"

/* `abort` may come just before the backend's run looks: say it again. */
#define ABORT_REPEAT_NS 100000000u

bool bw_cond_until(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t deadline_ns)
{
    if (!deadline_ns) {
        pthread_cond_wait(cond, lock);
        return true;
    }
    struct timespec t = {(time_t)(deadline_ns / 1000000000u), (long)(deadline_ns % 1000000000u)};
    return pthread_cond_timedwait(cond, lock, &t) != ETIMEDOUT;
}

/* Ends a fence that is in no list any more. The lock is held; it is dropped around the on_done call. After it the fence
 * may be gone. */
static void end_fence(bw_device *dev, bw_fence *fence, bw_status status)
{
    fence->status = status;
    fence->ended_ns = bw_now_ns();
    fence->state = FENCE_ENDING;
    fence->image->active--;
    if (fence->done) {
        void (*done)(void *) = fence->done;
        pthread_mutex_unlock(&dev->lock);
        done(fence->done_user);
        pthread_mutex_lock(&dev->lock);
    }
    fence->state = FENCE_DONE;
    pthread_cond_broadcast(&dev->changed);
}

static void queue_remove(bw_device *dev, bw_fence **at)
{
    bw_fence *fence = *at;
    *at = fence->next;
    if (!*at)
        dev->tail = at;
    fence->next = NULL;
    dev->queued--;
    pthread_cond_broadcast(&dev->changed); /* room for a waiting bw_image_run */
}

static bw_status verdict_error(bw_fence *fence)
{
    if (fence->verdict == BW_CANCELLED)
        return bw_fail(&fence->error, BW_CANCELLED, "%s: the run was cancelled", fence->image->device->uri);
    return bw_fail(&fence->error, fence->verdict, "%s: the device was reset while the run was in flight",
                   fence->image->device->uri);
}

/* --- worker ----------------------------------------------------------------------------------------------------- */

/* The run's status as its waiter sees it. *fault: the device needs a reset. */
static bw_status judge(bw_fence *fence, bw_status status, bool *fault)
{
    *fault = false;
    if (status == BW_OK)
        return status;
    if (status == BW_NO_MEMORY) {
        fence->error.status = status;
        return status;
    }
    if (status == BW_UNSUPPORTED && fence->spent_ns)
        return bw_fail_context(&fence->error, status, "%s", fence->image->device->uri);
    *fault = !(status == BW_CANCELLED && fence->verdict != BW_OK);
    if (fence->verdict)
        return verdict_error(fence);
    bw_status shown = status == BW_DEVICE_LOST ? status : BW_DEVICE_FAULT;
    bw_fail_context(&fence->error, shown, "%s", fence->image->device->uri);
    fence->error.status = shown;
    return shown;
}

/* Runs the oldest fence. The lock is held. false: the device was abandoned meanwhile. */
static bool run_one(bw_device *dev)
{
    bw_fence *fence = dev->queue;
    bw_image *image = fence->image;
    queue_remove(dev, &dev->queue);
    if (fence->verdict) {
        end_fence(dev, fence, verdict_error(fence));
        return true;
    }
    if (image->dropped) {
        end_fence(dev, fence,
                  bw_fail(&fence->error, BW_NOT_FOUND,
                          "%s: the image was dropped when a bitstream was loaded, load it again", dev->uri));
        return true;
    }
    dev->turn = true;
    dev->running = fence;
    dev->cancel_ns = 0;
    fence->refs++;
    fence->state = FENCE_RUNNING;
    fence->started_ns = bw_now_ns();
    const unsigned life = dev->life;
    bw_error error = {BW_OK, ""};
    snprintf(error.message, sizeof error.message, "the backend gave no reason");
    image->last_use = ++dev->uses;
    bw_status status = image->handle ? BW_OK : bw_image_make_resident(dev, image, &error);
    bool restored = status == BW_OK;
    if (restored && !dev->abandoned && dev->life == life) {
        const bw_backend *b = dev->backend;
        void *device = dev->handle, *loaded = image->handle; /* others, once the device is abandoned and opened anew */
        pthread_mutex_unlock(&dev->lock);
        status = fence->spent_ns ? b->run_timed(device, loaded, fence->in, fence->out, fence->batch, &fence->cancel,
                                                fence->spent_ns, &error)
                                 : b->run(device, loaded, fence->in, fence->out, fence->batch, &fence->cancel, &error);
        pthread_mutex_lock(&dev->lock);
    }
    if (dev->abandoned || dev->life != life) {
        /* Too late: the fence was ended by the supervisor. This thread is detached, only its reference is left. */
        bool owes = bw_fence_unref(fence);
        pthread_mutex_unlock(&dev->lock);
        if (owes)
            bw_device_unref(dev);
        return false;
    }
    dev->running = NULL;
    dev->cancel_ns = 0;
    while (dev->aborting)
        pthread_cond_wait(&dev->changed, &dev->lock);
    fence->refs--; /* never the last: the user's stays until the fence is done */
    dev->runs++;
    dev->busy_ns += bw_now_ns() - fence->started_ns;
    fence->error = error;
    bool fault;
    status = judge(fence, status, &fault);
    dev->inferences += status ? 0 : fence->batch;
    if (fault) {
        /* The counters and the state are set before the waiter can see the result. */
        dev->faults++;
        dev->health = BW_HEALTH_RESETTING;
        bw_log(BW_LOG_WARN, "hal", "%s; resetting the device", fence->error.message);
    }
    bool reset = fault && fence->verdict != BW_DEVICE_FAULT; /* else bw_device_reset waits for its turn to do it */
    end_fence(dev, fence, status);
    if (reset)
        bw_reset_locked(dev, NULL);
    bw_turn_give(dev);
    return true;
}

bool bw_worker_idle(const bw_device *dev)
{
    return !dev->queue && !dev->turn && !dev->turn_waiters && !dev->aborting && !dev->stop &&
           dev->health == BW_HEALTH_OK && dev->backend->abort_grace_ms == UINT32_MAX;
}

void bw_worker_run_here(bw_device *dev)
{
    const uint64_t deadline = dev->queue->deadline_ns;
    if (deadline && (!dev->watch_ns || deadline < dev->watch_ns)) {
        dev->watch_ns = deadline;
        pthread_cond_signal(&dev->supervise);
    }
    run_one(dev); /* never abandoned: that takes a limit to the time of a run */
}

static void *worker_main(void *user)
{
    bw_device *dev = user;
    pthread_mutex_lock(&dev->lock);
    for (;;) {
        while (!dev->stop && (!dev->queue || dev->turn || dev->turn_waiters || dev->health == BW_HEALTH_DEAD))
            pthread_cond_wait(&dev->wake, &dev->lock);
        if (dev->stop)
            break;
        if (!run_one(dev))
            return NULL; /* the lock has been released, the device may be gone */
    }
    pthread_mutex_unlock(&dev->lock);
    return NULL;
}

/* --- supervisor ------------------------------------------------------------------------------------------------- */

/* Ends one queued fence that is not wanted any more. */
static bool end_one_queued(bw_device *dev)
{
    for (bw_fence **at = &dev->queue; *at; at = &(*at)->next) {
        bw_fence *fence = *at;
        if (!fence->verdict && dev->health != BW_HEALTH_DEAD)
            continue;
        queue_remove(dev, at);
        end_fence(dev, fence, fence->verdict ? verdict_error(fence) : bw_fail_dead(dev, &fence->error));
        return true;
    }
    return false;
}

/* The backend came back neither for *cancel nor for abort. Its thread and everything it may touch are left behind. */
static void abandon(bw_device *dev, uint64_t waited_ns)
{
    bw_fence *fence = dev->running;
    dev->abandoned = true;
    dev->running = NULL;
    dev->cancel_ns = 0;
    dev->runs++;
    dev->busy_ns += bw_now_ns() - fence->started_ns;
    dev->faults++;
    pthread_detach(dev->worker);
    char reason[128];
    snprintf(reason, sizeof reason, "a run did not end within %u ms of its cancellation",
             (unsigned)(waited_ns / 1000000u));
    bw_device_die(dev, reason);
    end_fence(dev, fence, bw_fail_dead(dev, &fence->error));
    pthread_mutex_unlock(&dev->lock);
    bw_device_unlist(dev);
    pthread_mutex_lock(&dev->lock);
}

/* Looks after the running run that was asked to end. */
static void press(bw_device *dev)
{
    const bw_backend *be = dev->backend;
    uint64_t now = bw_now_ns(), since = dev->cancel_ns;
    uint64_t abort_at = since + BW_CANCEL_GRACE_NS;
    uint64_t limit = be->abort_grace_ms == UINT32_MAX ? UINT64_MAX
                     : be->abort_grace_ms             ? abort_at + be->abort_grace_ms * UINT64_C(1000000)
                                                      : abort_at + BW_ABORT_GRACE_NS;
    if (now < abort_at) {
        bw_cond_until(&dev->supervise, &dev->lock, abort_at);
        return;
    }
    if (now >= limit) {
        abandon(dev, now - since);
        return;
    }
    uint64_t next = limit;
    if (be->abort) {
        dev->aborting = true;
        pthread_mutex_unlock(&dev->lock);
        be->abort(dev->handle);
        pthread_mutex_lock(&dev->lock);
        dev->aborting = false;
        pthread_cond_broadcast(&dev->changed);
        next = bw_now_ns() + ABORT_REPEAT_NS;
        if (next > limit)
            next = limit;
    }
    if (dev->running && dev->cancel_ns == since)
        bw_cond_until(&dev->supervise, &dev->lock, next == UINT64_MAX ? 0 : next);
}

/* The time to look at the running run's deadline has come. */
static void watch(bw_device *dev)
{
    bw_fence *fence = dev->running;
    dev->watch_ns = fence ? fence->deadline_ns : 0;
    if (!dev->watch_ns || dev->watch_ns > bw_now_ns())
        return;
    dev->watch_ns = 0;
    bw_fence_cancel_locked(dev, fence);
}

static void *supervisor_main(void *user)
{
    bw_device *dev = user;
    pthread_mutex_lock(&dev->lock);
    for (;;) {
        if (end_one_queued(dev))
            continue;
        if (dev->stop)
            break;
        if (dev->running && dev->cancel_ns)
            press(dev);
        else if (!bw_cond_until(&dev->supervise, &dev->lock, dev->watch_ns))
            watch(dev);
    }
    pthread_mutex_unlock(&dev->lock);
    return NULL;
}

/* --- start, stop ------------------------------------------------------------------------------------------------ */

bw_status bw_worker_replace(bw_device *dev, bw_error *err)
{
    int code = pthread_create(&dev->worker, NULL, worker_main, dev);
    return code ? bw_fail(err, BW_NO_MEMORY, "cannot start its thread: error %d", code) : BW_OK;
}

bw_status bw_worker_start(bw_device *dev, bw_error *err)
{
    int code = pthread_create(&dev->worker, NULL, worker_main, dev);
    if (code)
        return bw_fail(err, BW_NO_MEMORY, "%s: cannot start its thread: error %d", dev->uri, code);
    code = pthread_create(&dev->supervisor, NULL, supervisor_main, dev);
    if (code) {
        pthread_mutex_lock(&dev->lock);
        dev->stop = true;
        pthread_cond_broadcast(&dev->wake);
        pthread_mutex_unlock(&dev->lock);
        pthread_join(dev->worker, NULL);
        return bw_fail(err, BW_NO_MEMORY, "%s: cannot start its supervisor: error %d", dev->uri, code);
    }
    return BW_OK;
}

void bw_worker_stop(bw_device *dev)
{
    pthread_mutex_lock(&dev->lock);
    dev->stop = true;
    bool join = !dev->abandoned; /* else detached; it may be the caller */
    pthread_cond_broadcast(&dev->wake);
    pthread_cond_broadcast(&dev->supervise);
    pthread_mutex_unlock(&dev->lock);
    if (join)
        pthread_join(dev->worker, NULL);
    pthread_join(dev->supervisor, NULL);
}
