/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The `opencl` plug-in's own structures: discover.c (devices and what they must provide), build.c (programs), cache.c
 * (program binaries on disk), image.c and weights.c (a program's instructions and constants on the device), run.c,
 * scrub.c (looks at what lies in the device's memory), backend.c (the slots). docs/opencl.md describes the whole.
 */
#ifndef BW_HAL_OPENCL_H
#define BW_HAL_OPENCL_H

#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>

#include <pthread.h>
#include <stdatomic.h>

#include "hal/backend.h"
#include "kernels/opencl/op.h"

typedef enum bw_cl_kernel {
    BW_CL_CONV,
    BW_CL_DWCONV,
    BW_CL_POOL,
    BW_CL_ELTWISE,
    BW_CL_COPY,
    BW_CL_PATCH,
    BW_CL_KERNELS
} bw_cl_kernel;

typedef struct bw_cl_limits {
    uint64_t memory, max_alloc; /* bytes: of the device, of one buffer */
} bw_cl_limits;

/* Host memory that commands of an aborted run may still use. */
typedef struct bw_cl_limbo {
    struct bw_cl_limbo *next;
    void *in, *out;
} bw_cl_limbo;

#define BW_CL_FLIPS_MAX 16

typedef struct bw_cl_options {
    uint32_t scrub;                  /* before every so-manieth run of an image; 0: never */
    uint64_t flips[BW_CL_FLIPS_MAX]; /* a bit turns in the weights before these runs since open; for tests */
    unsigned flip_count;
} bw_cl_options;

typedef struct bw_cl_device {
    cl_device_id id;
    bw_cl_options options;
    uint64_t runs; /* since open */
    bw_cl_limits limits;
    cl_context context;
    cl_command_queue queue, timed; /* timed: with profiling, made when first wanted */
    cl_program program;
    cl_kernel kernels[BW_CL_KERNELS];
    uint64_t used; /* device memory of all images */
    atomic_int aborted;
    cl_event in_flight; /* the last command of a run that was aborted or failed */
    bw_cl_limbo *limbo;
    void *payload; /* of the loaded bitstream; NULL: the built-in kernels */
    size_t payload_size;
    pthread_mutex_t lock; /* for info, which comes from any thread */
    bw_device_info info;
} bw_cl_device;

/* One launch of a kernel. */
typedef struct bw_cl_step {
    bw_cl_kernel kernel;
    uint32_t op;          /* index of its bw_cl_op */
    uint32_t instruction; /* whose work this is */
    uint32_t pixels;      /* pixels of a work-group; pixels of all images are cut into such tiles */
    uint32_t out_pixels;  /* of an image */
    uint32_t columns;     /* work-groups of a tile */
    uint32_t items;       /* of a work-group */
    uint64_t work;        /* about so many multiply-adds for a tile: all its columns */
    cl_mem weights;
} bw_cl_step;

typedef struct bw_cl_image {
    const bw_program *program;
    bw_cl_step *steps;
    uint32_t step_count;
    cl_mem ops, tables;
    cl_mem *weights; /* one for each different array */
    uint32_t weight_count;
    /* What was written there, with options.scrub: sums and bytes, of the instructions, of the tables, of each weight.
     */
    struct bw_cl_sum {
        uint64_t sum, bytes;
    } * sums;
    uint64_t runs;     /* since it was loaded */
    uint64_t resident; /* bytes of all the above */
    /* For `capacity` images of a batch at once: */
    uint32_t capacity;
    uint64_t per_image;
    cl_mem act, in, out, raw;
    void *host_in, *host_out;
    uint64_t raw_bytes; /* of one image */
    int out_gaps;       /* bytes of OUT that no tensor describes, which keep what they hold */
} bw_cl_image;

/* discover.c */
/* The device behind "opencl:NUMBER"; devices of all platforms are counted in order. BW_NOT_FOUND past the last, naming
 * how many there are; BW_UNSUPPORTED: there is no platform. */
bw_status bw_cl_find(unsigned number, cl_device_id *id, bw_error *err);
/* BW_UNSUPPORTED, naming what it lacks, if the kernels cannot run on it. */
bw_status bw_cl_check(cl_device_id id, bw_error *err);
void bw_cl_describe(cl_device_id id, bw_device_info *info, bw_cl_limits *limits);
/* A string property, "" if the device does not tell. */
void bw_cl_text(cl_device_id id, cl_device_info what, char *text, size_t size);
const char *bw_cl_error(cl_int code);
int bw_cl_is_cpu(cl_device_id id); /* its memory is the host's */

/* build.c: the program of the built-in kernels, or of a bitstream's payload (kernels in OpenCL C, or a binary as in the
 * cache). BW_INCOMPATIBLE: a binary of another device or driver. BW_VERSION_MISMATCH: kernels of another BW_CL_ABI.
 * BW_CORRUPT: does not compile, the log's first line is in the message. */
bw_status bw_cl_build(cl_context context, cl_device_id id, const void *payload, size_t size, cl_program *program,
                      cl_kernel kernels[BW_CL_KERNELS], bw_error *err);
extern const char *const bw_cl_kernel_names[BW_CL_KERNELS];

/* cache.c: a binary and what it belongs to. */
#define BW_CL_BINARY_MAGIC "BWCLBIN1"
typedef struct bw_cl_binary_header {
    char magic[8];
    uint8_t device[32];  /* SHA-256 of the device's name, vendor and driver version, and the build options */
    uint8_t source[32];  /* SHA-256 of the source */
    uint8_t payload[32]; /* SHA-256 of the bytes that follow */
    uint64_t size;       /* of them */
} bw_cl_binary_header;
/* malloc'ed; 0: there is none that is whole, of this device and source, and of a trustworthy owner. */
int bw_cl_cache_read(const uint8_t device[32], const uint8_t source[32], void **binary, size_t *size);
void bw_cl_cache_write(const uint8_t device[32], const uint8_t source[32], const void *binary, size_t size);

/* image.c */
bw_status bw_cl_image_load(void *device, const bw_program *program, const void *constants, void **image, bw_error *err);
void bw_cl_image_release(void *device, void *image);
/* Makes room for `images` of a batch at once, or fewer if memory does not allow; at least one is there since the load.
 */
void bw_cl_image_grow(bw_cl_device *dev, bw_cl_image *img, uint32_t images);
bw_status bw_cl_buffer(bw_cl_device *dev, uint64_t bytes, const char *what, cl_mem *buffer, bw_error *err);

/* scrub.c */
#define BW_CL_SUM_OPS     0
#define BW_CL_SUM_TABLES  1
#define BW_CL_SUM_WEIGHTS 2
/* Notes what is being written to a buffer of the image; does nothing without options.scrub. */
void bw_cl_note(const bw_cl_device *dev, bw_cl_image *img, uint32_t which, const void *bytes, uint64_t size);
/* Before a run: turns bits that the options order, and looks whether the buffers hold what was written if this run is
 * one of those. BW_DEVICE_FAULT: they do not. BW_CANCELLED. BW_NO_MEMORY. */
bw_status bw_cl_scrub(bw_cl_device *dev, bw_cl_image *img, const atomic_int *cancel, bw_error *err);

/* weights.c: the weights of a CONV in the kernels' layout. Integers of a format have so many limbs of 9 bits. */
uint32_t bw_cl_limbs(bw_format format);
uint64_t bw_cl_weight_bytes(const bw_instruction *ins);
/* The next of img->weights. */
bw_status bw_cl_weights(bw_cl_device *dev, bw_cl_image *img, const bw_instruction *ins, const uint8_t *constants,
                        bw_error *err);

/* run.c */
bw_status bw_cl_run(void *device, void *image, const void *in, void *out, uint32_t batch, const atomic_int *cancel,
                    uint64_t *spent_ns, bw_error *err);
/* Until the event has ended, the deadline (0: none) has passed, or `aborted` or `cancel` (may be NULL) is set. BW_OK,
 * BW_TIMEOUT, BW_CANCELLED, BW_DEVICE_FAULT. */
bw_status bw_cl_wait(cl_event event, uint64_t deadline, const atomic_int *aborted, const atomic_int *cancel,
                     bw_error *err);
/* Waits at most so long for what an aborted run left behind, and frees it if it has ended. */
void bw_cl_settle(bw_cl_device *dev, uint64_t patience_ns);

#endif
