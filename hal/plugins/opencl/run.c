/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs. A batch goes through in parts of as many images as have room. The launches of a part are queued in slices of
 * bounded work, two at a time: the device always has something to do, and a run that is not wanted any more ends after
 * two slices. Large launches are cut along their pixels.
 *
 * Commands touch only the image's own host memory, never the caller's: after an abort a command that still hangs in the
 * device does no harm.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "hal/base.h"
#include "hal/plugins/opencl/opencl.h"

#define SLICE_WORK UINT64_C(50000000) /* multiply-adds: some milliseconds of a CPU */
#define TICK_NS    2000000            /* how often cancellation and abort are looked at */

/* What an event's callback and the waiting run share; the last of them frees it. */
typedef struct waiter {
    pthread_mutex_t lock;
    pthread_cond_t ended;
    int refs, over;
    cl_int status;
} waiter;

static void waiter_unref(waiter *w)
{
    pthread_mutex_lock(&w->lock);
    const int refs = --w->refs;
    pthread_mutex_unlock(&w->lock);
    if (refs)
        return;
    pthread_cond_destroy(&w->ended);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

static void CL_CALLBACK on_end(cl_event event, cl_int status, void *user)
{
    (void)event;
    waiter *w = user;
    pthread_mutex_lock(&w->lock);
    w->over = 1;
    w->status = status;
    pthread_cond_signal(&w->ended);
    pthread_mutex_unlock(&w->lock);
    waiter_unref(w);
}

static waiter *waiter_new(void)
{
    waiter *w = calloc(1, sizeof *w);
    pthread_condattr_t attr;
    if (!w)
        return NULL;
    w->refs = 2;
    pthread_mutex_init(&w->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&w->ended, &attr);
    pthread_condattr_destroy(&attr);
    return w;
}

static struct timespec at_ns(uint64_t ns)
{
    return (struct timespec){(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
}

bw_status bw_cl_wait(cl_event event, uint64_t deadline, const atomic_int *aborted, const atomic_int *cancel,
                     bw_error *err)
{
    waiter *w = waiter_new();
    if (!w)
        return bw_fail(err, BW_NO_MEMORY, "no memory to wait for an event");
    cl_int code = clSetEventCallback(event, CL_COMPLETE, on_end, w);
    if (code != CL_SUCCESS) {
        waiter_unref(w);
        waiter_unref(w);
        return bw_fail(err, BW_DEVICE_FAULT, "cannot wait for a command: %s", bw_cl_error(code));
    }
    bw_status status = BW_OK;
    pthread_mutex_lock(&w->lock);
    while (!w->over && !status) {
        const uint64_t now = bw_now_ns();
        const struct timespec tick = at_ns(now + TICK_NS);
        if (aborted && atomic_load(aborted))
            status = BW_DEVICE_FAULT;
        else if (cancel && atomic_load(cancel))
            status = BW_CANCELLED;
        else if (deadline && now >= deadline)
            status = BW_TIMEOUT;
        else
            pthread_cond_timedwait(&w->ended, &w->lock, &tick);
    }
    const cl_int ended = w->over ? w->status : CL_COMPLETE;
    const int over = w->over;
    pthread_mutex_unlock(&w->lock);
    waiter_unref(w);
    if (over && ended < 0)
        return bw_fail(err, BW_DEVICE_FAULT, "a command failed: %s", bw_cl_error(ended));
    if (over)
        return BW_OK;
    return bw_fail(err, status, "%s",
                   status == BW_CANCELLED ? "cancelled"
                   : status == BW_TIMEOUT ? "no end in time"
                                          : "the run did not end and was aborted");
}

/* --- a run -------------------------------------------------------------------------------------------------------- */

typedef struct run {
    bw_cl_device *dev;
    bw_cl_image *img;
    cl_command_queue queue;
    const atomic_int *cancel;
    uint64_t *spent_ns;
    uint32_t images; /* of this part */
    cl_event last;   /* of the command that was queued last and has an event */
    cl_event slices[2];
    uint64_t work; /* queued since the last slice ended */
    /* spent_ns: events of launches, and whose they are. */
    cl_event *events;
    uint32_t *owners;
    size_t event_count, event_room;
} run;

static bw_status queue_failed(cl_int code, const char *what, bw_error *err)
{
    const int memory = code == CL_MEM_OBJECT_ALLOCATION_FAILURE || code == CL_OUT_OF_HOST_MEMORY;
    return bw_fail(err, memory ? BW_NO_MEMORY : BW_DEVICE_FAULT, "cannot queue %s: %s", what, bw_cl_error(code));
}

/* The event of the newest command; takes the reference. */
static void remember(run *r, cl_event event)
{
    if (r->last)
        clReleaseEvent(r->last);
    r->last = event;
}

/* Ends a slice: waits for the one before the last. */
static bw_status end_slice(run *r, bw_error *err)
{
    bw_status status = BW_OK;
    clFlush(r->queue);
    if (r->slices[0]) {
        status = bw_cl_wait(r->slices[0], 0, &r->dev->aborted, r->cancel, err);
        clReleaseEvent(r->slices[0]);
    }
    r->slices[0] = r->slices[1];
    r->slices[1] = r->last;
    if (r->last)
        clRetainEvent(r->last);
    r->work = 0;
    return status;
}

static bw_status keep_event(run *r, cl_event event, uint32_t owner, bw_error *err)
{
    if (r->event_count == r->event_room) {
        const size_t room = r->event_room ? r->event_room * 2 : 256;
        cl_event *events = realloc(r->events, room * sizeof *events);
        if (events)
            r->events = events;
        uint32_t *owners = events ? realloc(r->owners, room * sizeof *owners) : NULL;
        if (!owners)
            return bw_fail(err, BW_NO_MEMORY, "no memory for %zu events", room);
        r->owners = owners;
        r->event_room = room;
    }
    clRetainEvent(event);
    r->events[r->event_count] = event;
    r->owners[r->event_count++] = owner;
    return BW_OK;
}

static cl_int set_arguments(const run *r, cl_kernel kernel, const bw_cl_step *step)
{
    const bw_cl_image *img = r->img;
    const cl_mem weights = step->weights ? step->weights : img->tables;
    const struct {
        size_t size;
        const void *value;
    } arguments[BW_CL_ARGUMENTS] = {
        {sizeof(cl_mem), &img->ops},   {sizeof(cl_uint), &step->op},
        {sizeof(cl_uint), &r->images}, {0, NULL},
        {sizeof(cl_mem), &img->act},   {sizeof(cl_mem), &img->in},
        {sizeof(cl_mem), &img->out},   {sizeof(cl_mem), &img->tables},
        {sizeof(cl_mem), &weights},    {sizeof(cl_mem), &img->raw},
    };
    cl_int code = CL_SUCCESS;
    for (cl_uint i = 0; i < BW_CL_ARGUMENTS && code == CL_SUCCESS; i++)
        if (arguments[i].value)
            code = clSetKernelArg(kernel, i, arguments[i].size, arguments[i].value);
    return code;
}

static bw_status launch(run *r, const bw_cl_step *step, bw_error *err)
{
    cl_kernel kernel = r->dev->kernels[step->kernel];
    const uint64_t pixels = (uint64_t)r->images * step->out_pixels;
    const uint64_t tiles = (pixels + step->pixels - 1) / step->pixels;
    cl_int code = set_arguments(r, kernel, step);
    if (code != CL_SUCCESS)
        return queue_failed(code, bw_cl_kernel_names[step->kernel], err);
    for (uint64_t done = 0; done < tiles;) {
        const uint64_t fit = SLICE_WORK / (step->work ? step->work : 1);
        const uint64_t n = tiles - done < fit || fit == 0 ? (fit ? tiles - done : 1) : fit;
        const cl_uint first = (cl_uint)done;
        const size_t local[2] = {step->items, 1}, global[2] = {(size_t)n * step->items, step->columns};
        cl_event event = NULL;
        code = clSetKernelArg(kernel, 3, sizeof first, &first);
        if (code == CL_SUCCESS)
            code = clEnqueueNDRangeKernel(r->queue, kernel, 2, NULL, global, local, 0, NULL, &event);
        if (code != CL_SUCCESS)
            return queue_failed(code, bw_cl_kernel_names[step->kernel], err);
        remember(r, event);
        bw_status status = r->spent_ns ? keep_event(r, event, step->instruction, err) : BW_OK;
        done += n;
        r->work += n * step->work;
        if (!status && r->work >= SLICE_WORK)
            status = end_slice(r, err);
        if (status)
            return status;
    }
    return BW_OK;
}

static bw_status transfer(run *r, int write, cl_mem buffer, void *host, uint64_t bytes, bw_error *err)
{
    cl_event event = NULL;
    if (!bytes)
        return BW_OK;
    cl_int code = write ? clEnqueueWriteBuffer(r->queue, buffer, CL_FALSE, 0, (size_t)bytes, host, 0, NULL, &event)
                        : clEnqueueReadBuffer(r->queue, buffer, CL_FALSE, 0, (size_t)bytes, host, 0, NULL, &event);
    if (code != CL_SUCCESS)
        return queue_failed(code, write ? "a write" : "a read", err);
    remember(r, event);
    return BW_OK;
}

/* The images of one part: `in` and `out` are the part's. */
static bw_status run_part(run *r, const char *in, char *out, bw_error *err)
{
    bw_cl_image *img = r->img;
    const bw_program_header *h = img->program->header;
    const uint64_t in_bytes = h->in_bytes * r->images, out_bytes = h->out_bytes * r->images;
    bw_status status = BW_OK;
    if (in_bytes)
        memcpy(img->host_in, in, (size_t)in_bytes);
    status = transfer(r, 1, img->in, img->host_in, in_bytes, err);
    if (!status && img->out_gaps && out_bytes) {
        memcpy(img->host_out, out, (size_t)out_bytes);
        status = transfer(r, 1, img->out, img->host_out, out_bytes, err);
    }
    for (uint32_t i = 0; i < img->step_count && !status; i++)
        status = launch(r, &img->steps[i], err);
    if (!status)
        status = transfer(r, 0, img->out, img->host_out, out_bytes, err);
    if (!status) {
        clFlush(r->queue);
        status = r->last ? bw_cl_wait(r->last, 0, &r->dev->aborted, r->cancel, err) : BW_OK;
    }
    if (!status && out_bytes)
        memcpy(out, img->host_out, (size_t)out_bytes);
    return status;
}

/* Nothing of the run is left in the device, or it was aborted or failed and the reset will look after what is left. */
static bw_status drain(run *r, bw_status status, bw_error *err)
{
    if (!r->last)
        return status;
    clFlush(r->queue);
    bw_error why;
    bw_status ended = bw_cl_wait(r->last, 0, &r->dev->aborted, NULL, &why);
    if (ended == BW_OK)
        return status;
    if (r->dev->in_flight)
        clReleaseEvent(r->dev->in_flight);
    r->dev->in_flight = r->last;
    r->last = NULL;
    return bw_fail(err, ended, "%s", why.message);
}

static void add_times(run *r)
{
    for (size_t i = 0; i < r->event_count; i++) {
        cl_ulong start = 0, end = 0;
        if (clGetEventProfilingInfo(r->events[i], CL_PROFILING_COMMAND_START, sizeof start, &start, NULL) ==
                CL_SUCCESS &&
            clGetEventProfilingInfo(r->events[i], CL_PROFILING_COMMAND_END, sizeof end, &end, NULL) == CL_SUCCESS &&
            end > start)
            r->spent_ns[r->owners[i]] += end - start;
    }
}

static bw_status pick_queue(run *r, bw_error *err)
{
    bw_cl_device *dev = r->dev;
    r->queue = dev->queue;
    if (!r->spent_ns)
        return BW_OK;
    cl_int code = CL_SUCCESS;
    if (!dev->timed)
        dev->timed = clCreateCommandQueue(dev->context, dev->id, CL_QUEUE_PROFILING_ENABLE, &code);
    if (code != CL_SUCCESS) {
        dev->timed = NULL;
        return bw_fail(err, BW_UNSUPPORTED, "the device has no profiling queue: %s", bw_cl_error(code));
    }
    r->queue = dev->timed;
    return BW_OK;
}

bw_status bw_cl_run(void *device, void *image, const void *in, void *out, uint32_t batch, const atomic_int *cancel,
                    uint64_t *spent_ns, bw_error *err)
{
    bw_cl_device *dev = device;
    bw_cl_image *img = image;
    const bw_program_header *h = img->program->header;
    run r = {.dev = dev, .img = img, .cancel = cancel, .spent_ns = spent_ns};
    atomic_store(&dev->aborted, 0);
    bw_status status = pick_queue(&r, err);
    if (!status)
        status = bw_cl_scrub(dev, img, cancel, err);
    if (status)
        return status;
    bw_cl_image_grow(dev, img, batch);
    if (!img->capacity)
        return bw_fail(err, BW_NO_MEMORY, "no memory for the activations of one image, %llu bytes",
                       (unsigned long long)img->per_image);
    for (uint32_t done = 0; done < batch && !status; done += r.images) {
        r.images = batch - done < img->capacity ? batch - done : img->capacity;
        status = atomic_load(cancel)
                     ? bw_fail(err, BW_CANCELLED, "cancelled after %u of %u images", done, batch)
                     : run_part(&r, (const char *)in + done * h->in_bytes, (char *)out + done * h->out_bytes, err);
    }
    if (status)
        status = drain(&r, status, err);
    else if (spent_ns)
        add_times(&r);
    for (size_t i = 0; i < r.event_count; i++)
        clReleaseEvent(r.events[i]);
    free(r.events);
    free(r.owners);
    for (int i = 0; i < 2; i++)
        if (r.slices[i])
            clReleaseEvent(r.slices[i]);
    if (r.last)
        clReleaseEvent(r.last);
    return status;
}

void bw_cl_settle(bw_cl_device *dev, uint64_t patience_ns)
{
    if (dev->in_flight) {
        const bw_status status = bw_cl_wait(dev->in_flight, bw_now_ns() + patience_ns, NULL, NULL, NULL);
        clReleaseEvent(dev->in_flight);
        dev->in_flight = NULL;
        if (status == BW_TIMEOUT) {
            bw_log(BW_LOG_WARN, "opencl", "commands of an aborted run hang in the device: their memory is not freed");
            dev->limbo = NULL;
        }
    }
    while (dev->limbo) {
        bw_cl_limbo *l = dev->limbo;
        dev->limbo = l->next;
        free(l->in);
        free(l->out);
        free(l);
    }
}
