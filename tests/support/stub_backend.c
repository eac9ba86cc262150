/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/stub_backend.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "hal/base.h"

stub_state stub;

typedef struct stub_device {
    atomic_int inside, aborted;
    pthread_mutex_t lock;
    char bitstream[BW_UUID_TEXT];
    int images;
} stub_device;

typedef struct stub_image {
    const bw_program *program;
    stub_device *device;
} stub_image;

void stub_clear(void)
{
    memset(&stub, 0, sizeof stub);
    stub.formats = ~0u;
}

/* What a given-up device holds is never released: it stays reachable here, so that leak checks see the core's leaks. */
static void *alive[256];
static pthread_mutex_t alive_lock = PTHREAD_MUTEX_INITIALIZER;

static void replace_alive(void *from, void *to)
{
    pthread_mutex_lock(&alive_lock);
    for (unsigned i = 0; i < sizeof alive / sizeof *alive; i++)
        if (alive[i] == from) {
            alive[i] = to;
            break;
        }
    pthread_mutex_unlock(&alive_lock);
}

static void *new_alive(size_t size)
{
    void *p = calloc(1, size);
    if (p)
        replace_alive(NULL, p);
    return p;
}

static void free_alive(void *p)
{
    replace_alive(p, NULL);
    free(p);
}

static void broken(const char *what)
{
    fprintf(stderr, "stub backend: the core broke the contract: %s\n", what);
    abort();
}

static void enter(stub_device *dev)
{
    if (atomic_fetch_add(&dev->inside, 1) != 0)
        broken("two calls at once");
}

static void leave(stub_device *dev)
{
    atomic_fetch_sub(&dev->inside, 1);
}

static void nap(void)
{
    nanosleep(&(struct timespec){0, 1000000}, NULL);
}

static bw_status stub_enumerate(unsigned index, bw_device_info *info, bw_error *err)
{
    if (index >= 2)
        return bw_fail(err, BW_NOT_FOUND, "no more");
    snprintf(info->uri, sizeof info->uri, "stub:%u", index);
    strcpy(info->address, STUB_ADDRESS);
    return BW_OK;
}

static bw_status stub_open(const char *target, void **device, bw_error *err)
{
    if (stub.open_status)
        return bw_fail(err, (bw_status)stub.open_status, "no target '%s'", target);
    stub_device *dev = new_alive(sizeof *dev);
    if (!dev)
        return bw_fail(err, BW_NO_MEMORY, "no memory");
    pthread_mutex_init(&dev->lock, NULL);
    nap(); /* a window for races */
    stub.opens++;
    *device = dev;
    return BW_OK;
}

static void stub_close(void *device)
{
    stub_device *dev = device;
    enter(dev);
    if (dev->images)
        broken("close with images");
    nap();
    stub.closes++;
    pthread_mutex_destroy(&dev->lock);
    free_alive(dev);
}

static bw_status stub_info(void *device, bw_device_info *info, bw_error *err)
{
    (void)err;
    stub_device *dev = device;
    pthread_mutex_lock(&dev->lock);
    strcpy(info->name, "stub");
    strcpy(info->part, STUB_PART);
    strcpy(info->interface_id, STUB_INTERFACE);
    strcpy(info->address, STUB_ADDRESS);
    strcpy(info->bitstream, dev->bitstream);
    pthread_mutex_unlock(&dev->lock);
    info->offers = (bw_requirements){BW_ISA_VERSION, stub.formats, ~0u, 15, UINT64_MAX, UINT64_MAX};
    info->memory_bytes = stub.memory_bytes;
    return BW_OK;
}

static bw_status stub_load_bitstream(void *device, const void *payload, size_t size, const char *uuid, bw_error *err)
{
    stub_device *dev = device;
    enter(dev);
    if (dev->images)
        broken("bitstream with images");
    stub.bitstreams++;
    bw_status status = (bw_status)stub.bitstream_status;
    if (status)
        bw_fail(err, status, "bitstream refused");
    else if (size != 7 || memcmp(payload, "payload", 7) != 0)
        broken("wrong payload");
    else {
        pthread_mutex_lock(&dev->lock);
        snprintf(dev->bitstream, sizeof dev->bitstream, "%s", uuid);
        pthread_mutex_unlock(&dev->lock);
    }
    leave(dev);
    return status;
}

static bw_status stub_image_load(void *device, const bw_program *program, const void *constants, void **image,
                                 bw_error *err)
{
    (void)constants;
    stub_device *dev = device;
    enter(dev);
    bw_status status = (bw_status)stub.load_status;
    if (!status && stub.images_most && (int)dev->images >= stub.images_most)
        status = BW_NO_MEMORY;
    stub_image *img = status ? NULL : new_alive(sizeof *img);
    if (img) {
        img->program = program;
        img->device = dev;
        dev->images++;
        stub.loads++;
        *image = img;
    } else if (status) {
        bw_fail(err, status, "image refused");
    }
    leave(dev);
    return status;
}

static void stub_image_release(void *device, void *image)
{
    stub_device *dev = device;
    enter(dev);
    if (((stub_image *)image)->device != dev)
        broken("image of another device");
    dev->images--;
    stub.releases++;
    free_alive(image);
    leave(dev);
}

static bw_status act(stub_device *dev, int action, const atomic_int *cancel, bw_error *err)
{
    uint64_t end = bw_now_ns() + (uint64_t)stub.sleep_ms * 1000000u;
    switch (action) {
    case STUB_FAIL:
        return bw_fail(err, (bw_status)stub.status, "scripted failure");
    case STUB_HANG:
        while (!dev->aborted)
            nap();
        return bw_fail(err, BW_DEVICE_FAULT, "aborted");
    case STUB_WEDGE:
        stub.wedged++;
        while (!stub.unwedge)
            nap();
        stub.wedged--;
        return BW_OK;
    default:
        break;
    }
    while ((action == STUB_SLEEP && bw_now_ns() < end) || (action == STUB_GATE && !stub.gate)) {
        if (atomic_load(cancel))
            return bw_fail(err, BW_CANCELLED, "cancelled");
        nap();
    }
    return BW_OK;
}

static bw_status stub_run(void *device, void *image, const void *in, void *out, uint32_t batch,
                          const atomic_int *cancel, bw_error *err)
{
    stub_device *dev = device;
    stub_image *img = image;
    enter(dev);
    dev->aborted = 0;
    if (img->device != dev)
        broken("image of another device");
    int action = stub.action;
    if (stub.once) {
        stub.once = 0;
        stub.action = STUB_COPY;
    }
    stub.runner = pthread_self();
    stub.runs++;
    bw_status status = act(dev, action, cancel, err);
    if (!status && action != STUB_WEDGE) /* after abort nothing of the caller's is touched */
        memcpy(out, in, batch * img->program->header->in_bytes);
    leave(dev);
    return status;
}

static bw_status stub_reset(void *device, bw_error *err)
{
    stub_device *dev = device;
    enter(dev);
    if (dev->images)
        broken("reset with images");
    stub.resets++;
    bw_status status = (bw_status)stub.reset_status;
    if (status) {
        bw_fail(err, status, "reset refused");
    } else if (stub.forget) {
        stub.forget = stub.forget == 2 ? 2 : 0;
        pthread_mutex_lock(&dev->lock);
        strcpy(dev->bitstream, STUB_OTHER);
        pthread_mutex_unlock(&dev->lock);
    }
    leave(dev);
    return status;
}

static void stub_abort(void *device)
{
    stub.aborts++;
    ((stub_device *)device)->aborted = 1;
}

static void stub_sensors(const bw_device_info *info, bw_sensors *sensors)
{
    if (strcmp(info->address, STUB_ADDRESS) != 0)
        return;
    if (stub.celsius)
        sensors->temperature_c = stub.celsius;
    if (stub.watts)
        sensors->power_w = stub.watts;
}

const bw_backend stub_backend = {
    .abi_version = BW_BACKEND_ABI,
    .struct_size = sizeof(bw_backend),
    .name = "stub",
    .enumerate = stub_enumerate,
    .open = stub_open,
    .close = stub_close,
    .info = stub_info,
    .load_bitstream = stub_load_bitstream,
    .bitstream_kind = "stub-bits",
    .image_load = stub_image_load,
    .image_release = stub_image_release,
    .run = stub_run,
    .reset = stub_reset,
    .abort = stub_abort,
    .sensors = stub_sensors,
};

const bw_backend sure_backend = {
    .abi_version = BW_BACKEND_ABI,
    .struct_size = sizeof(bw_backend),
    .name = "sure",
    .enumerate = stub_enumerate,
    .open = stub_open,
    .close = stub_close,
    .info = stub_info,
    .load_bitstream = stub_load_bitstream,
    .bitstream_kind = "stub-bits",
    .image_load = stub_image_load,
    .image_release = stub_image_release,
    .run = stub_run,
    .reset = stub_reset,
    .abort = stub_abort,
    .abort_grace_ms = UINT32_MAX,
};

static struct {
    bw_program_header header;
    bw_instruction instruction;
} program;

static void build(void)
{
    program.header.magic = BW_PROGRAM_MAGIC;
    program.header.isa_version = BW_ISA_VERSION;
    program.header.instruction_count = 1;
    program.header.in_bytes = program.header.out_bytes = STUB_FLOATS * sizeof(float);
    program.header.act_bytes = 4096; /* of no use, but it takes memory */
    bw_instruction *ins = &program.instruction;
    ins->opcode = BW_OP_COPY;
    ins->kernel_y = ins->kernel_x = ins->stride_y = ins->stride_x = ins->dilation_y = ins->dilation_x = 1;
    ins->groups = 1;
    ins->in.height = ins->in.width = 1;
    ins->in.channels = ins->in.pixel_stride = ins->in.row_stride = STUB_FLOATS;
    ins->in.format = BW_FORMAT_FP32;
    ins->in.block = 1;
    ins->in.region = BW_REGION_IN;
    ins->out0 = ins->in;
    ins->out0.region = BW_REGION_OUT;
}

const void *stub_program(size_t *size)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, build);
    *size = sizeof program;
    return &program;
}
