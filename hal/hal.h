/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hardware abstraction layer: devices that run validated programs (kernels/isa.h) bit for bit alike.
 *
 * Simple:
 *     bw_device *dev;  bw_image *img;
 *     bw_device_open("sim:", &dev, &err);
 *     bw_image_load(dev, program, program_size, constants, constants_size, &img, &err);   // weights to the device
 *     bw_image_run(img, in, out, 1, 0, &err);                                              // one picture, blocking
 *     bw_image_release(img);  bw_device_close(dev);
 * Full: bw_device_load_bitstream, bw_device_info_get, bw_device_state_get, bw_device_sensors_get, bw_device_reset.
 * Async: bw_image_submit -> bw_fence, bw_fence_wait with a deadline, bw_fence_cancel, bw_fence_release.
 * Measuring: bw_image_submit_timed.
 *
 * Thread safety: every function may be called from any thread at any time, except that an object must not be used
 * during or after its own close/release. Objects are reference counted inside: an image keeps its device alive, a
 * fence its image.
 */
#ifndef BW_HAL_HAL_H
#define BW_HAL_HAL_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/isa.h"

typedef struct bw_device bw_device;
typedef struct bw_image bw_image; /* a program with its constants, resident on a device */
typedef struct bw_fence bw_fence; /* one submitted run */

typedef enum bw_health { BW_HEALTH_OK = 0, BW_HEALTH_RESETTING = 1, BW_HEALTH_DEAD = 2 } bw_health;

#define BW_UUID_TEXT 37 /* 36 characters and the terminator */

/* What a device is. It changes with its configuration only. */
typedef struct bw_device_info {
    char uri[128];                   /* what bw_device_open takes: "sim:u250" */
    char name[128];                  /* "simulated U250 (fast engine, avx512vnni, 2 threads)" */
    char part[64];                   /* "sim-u250" */
    char address[32];                /* on its bus, PCI: "0000:3b:00.1"; "" if it is on none, or that is unknown */
    char bitstream[BW_UUID_TEXT];    /* loaded bitstream's UUID; "" if none */
    char interface_id[BW_UUID_TEXT]; /* of the shell; a bitstream must carry the same */
    bw_requirements offers;          /* what programs may need */
    uint64_t memory_bytes;           /* for constants and activations */
    char isa[16];                    /* software devices: instruction set of the kernels; "" */
    uint32_t threads;                /* software devices: threads of a run; 0 */
} bw_device_info;

/* How an open device is doing: what this process has done with it since it opened it. */
typedef struct bw_device_state {
    bw_health health;
    char reason[256];       /* why it is dead, one line; "" if it is not */
    uint32_t queued;        /* runs that wait or are on the device now */
    uint64_t memory_used;   /* constants and activations resident now */
    uint64_t memory_budget; /* of bw_device_set_budget; 0: the device's memory */
    uint64_t runs;          /* that were on the device, however they ended */
    uint64_t inferences;    /* elements of the batches of those that ended well */
    uint64_t images;        /* bw_image_load that succeeded */
    uint64_t faults;        /* of runs, loads and bitstreams, each of which led to a reset or the end */
    uint64_t resets;        /* tried, also by opening the device anew */
    uint64_t evictions;     /* images that made way for others */
    uint64_t busy_ns;       /* time spent in runs */
} bw_device_state;

/* What a device measures of itself. NAN: unknown, as it has no such sensor, or it could not be read. */
typedef struct bw_sensors {
    double temperature_c; /* degrees Celsius of the chip */
    double power_w;       /* watts that the board takes */
} bw_sensors;

/* Calls `each` for every device that the registered backends see, without opening any. A backend that cannot be used is
 * reported through `absent` (may be NULL) with the reason. Stops when `each` returns non-zero. */
bw_status bw_device_enumerate(int (*each)(const bw_device_info *info, void *user),
                              void (*absent)(const char *backend, const char *reason, void *user), void *user,
                              bw_error *err);

/* URI: BACKEND ':' [TARGET] ['?' KEY '=' VALUE ['&' ...]]: "sim:", "sim:reference", "sim:u250?threads=1&isa=avx2",
 * "opencl:0"; at most 127 characters. Opening the same URI twice in a process gives the same device, reference counted.
 * docs/hal.md lists the backends' targets and options.
 * BW_INVALID_ARGUMENT: not a URI. BW_NOT_FOUND: no such backend (names the known ones) or target. BW_BUSY: another
 * process has the device (names both). BW_UNSUPPORTED: what it needs is missing (names it). */
bw_status bw_device_open(const char *uri, bw_device **device, bw_error *err);
void bw_device_close(bw_device *device);
bw_status bw_device_info_get(bw_device *device, bw_device_info *info, bw_error *err);
/* Neither waits for the device nor asks it. BW_INVALID_ARGUMENT. */
bw_status bw_device_state_get(bw_device *device, bw_device_state *state, bw_error *err);
/* Reads the sensors of the device that `info` (of bw_device_info_get or bw_device_enumerate) describes, whoever has it
 * open. Asks the operating system, which may take milliseconds. BW_NOT_FOUND: no backend of that URI. */
bw_status bw_device_sensors_get(const bw_device_info *info, bw_sensors *sensors, bw_error *err);

/* Loads a bitstream container (hal/bitstream.h) unless the device already holds its UUID. Loaded images are dropped
 * from the device and must be loaded again. BW_INCOMPATIBLE: other part or interface id (both are printed).
 * BW_CORRUPT, BW_CHECKSUM: a damaged container. BW_BUSY: runs in flight. BW_DEVICE_LOST: the device is dead. */
bw_status bw_device_load_bitstream(bw_device *device, const void *bytes, size_t size, bw_error *err);
/* Ends all runs in flight with BW_DEVICE_FAULT and brings the device back to a working state. Images stay usable (they
 * are loaded again before their next run), a loaded bitstream stays. Also tried on a dead device, which it may revive;
 * one that was given up is opened anew, and what was stuck in it is left behind. BW_DEVICE_LOST: the reset failed, the
 * device is dead. Or it holds another bitstream now than was loaded: loading that again revives it, images included. */
bw_status bw_device_reset(bw_device *device, bw_error *err);

/* Bytes that resident images may take in all; 0: as many as the device has. When another image needs room, those that
 * have not run for longest are taken off the device, and loaded again before their next run. Images that do not fit any
 * more make way at once. BW_DEVICE_LOST: the device has been given up. */
bw_status bw_device_set_budget(bw_device *device, uint64_t bytes, bw_error *err);

/*
 * Validates the program and its constants and makes them resident. Both byte ranges are borrowed until release
 * (program 8-byte, constants 64-byte aligned; a `sim` device uses them in place). Blocking.
 * BW_CORRUPT, BW_VERSION_MISMATCH, BW_NOT_FINITE: bw_program_parse / check_constants. BW_INCOMPATIBLE: the program
 * needs what the device lacks. BW_NO_MEMORY: it is larger than the device's memory or budget, or the device has no room
 * even with all others off it. BW_DEVICE_LOST.
 */
bw_status bw_image_load(bw_device *device, const void *program, size_t program_size, const void *constants,
                        size_t constants_size, bw_image **image, bw_error *err);
void bw_image_release(bw_image *image); /* waits for its runs in flight; NULL is allowed */
/* Region sizes and needs of the loaded program. Valid as long as the image. */
const bw_program *bw_image_program(const bw_image *image);

/* Runs a batch and waits, also for room in the queue. in: batch x in_bytes, out: batch x out_bytes, host memory, 4-byte
 * aligned. timeout_ns 0: no deadline. BW_TIMEOUT: the run was cancelled and has ended, the buffers are free; a device
 * that hangs is aborted after 0.25 s more. Else as bw_fence_wait. */
bw_status bw_image_run(bw_image *image, const void *in, void *out, uint32_t batch, uint64_t timeout_ns, bw_error *err);

/* What became of a run: whether the device had it (0: it was refused), and nanoseconds in the queue and on the device.
 */
typedef struct bw_run_times {
    int submitted;
    uint64_t queued_ns, running_ns;
} bw_run_times;
/* The same for whoever measures, but does not wait for room: BW_EXHAUSTED when the queue is full. spent_ns: as for
 * bw_image_submit_timed, or NULL. times: filled if not NULL. After BW_DEVICE_LOST of a run that was submitted a device
 * that never came back may still write to out and spent_ns. */
bw_status bw_image_run_timed(bw_image *image, const void *in, void *out, uint32_t batch, uint64_t timeout_ns,
                             uint64_t *spent_ns, bw_run_times *times, bw_error *err);

/* Queues a run and returns at once. in and out are borrowed until the fence has been waited for with a final result
 * (anything but BW_TIMEOUT) or released; 4-byte aligned. BW_EXHAUSTED: the device's queue (64 runs) is full.
 * BW_DEVICE_LOST: the device is dead. BW_NOT_FOUND: a bitstream was loaded after the image. BW_INVALID_ARGUMENT. */
bw_status bw_image_submit(bw_image *image, const void *in, void *out, uint32_t batch, bw_fence **fence, bw_error *err);
/* The same, and adds to spent_ns[i] the device's time for instruction i and the whole batch, in nanoseconds; an
 * instruction that is done as part of another adds 0. spent_ns: header->instruction_count elements, borrowed as in and
 * out are. A measurement: results are the same, a run may be a little slower. BW_UNSUPPORTED: the backend cannot (here,
 * or as the result of the run, where only some of its devices can). */
bw_status bw_image_submit_timed(bw_image *image, const void *in, void *out, uint32_t batch, uint64_t *spent_ns,
                                bw_fence **fence, bw_error *err);
/* Optional: `done` is called once, from a device thread, when the run has ended (also when cancelled). It must not
 * block nor release the fence. Set before anyone waits; called at once if the run has ended already. */
void bw_fence_on_done(bw_fence *fence, void (*done)(void *user), void *user);
/* Waits until the run has ended or `timeout_ns` (0: for ever) has passed: BW_TIMEOUT (still running; wait again,
 * cancel or release). Else the run's own status: BW_OK, BW_CANCELLED, BW_NO_MEMORY, BW_NOT_FOUND (as in submit),
 * BW_DEVICE_FAULT (the device is being reset; later runs work), BW_DEVICE_LOST (it is dead). */
bw_status bw_fence_wait(bw_fence *fence, uint64_t timeout_ns, bw_error *err);
/* Asks the run to end early, and returns at once; it then ends with BW_CANCELLED if it had not ended yet. A device that
 * does not notice is aborted after 0.25 s, and one that ignores even that is given up after 1 s more: the run ends with
 * BW_DEVICE_LOST and the device is dead. */
void bw_fence_cancel(bw_fence *fence);
/* Device time of an ended run, nanoseconds: waiting in the device's queue, and running. */
void bw_fence_times(bw_fence *fence, uint64_t *queued_ns, uint64_t *running_ns);
/* Cancels if still running, waits for the end, frees. NULL is allowed. */
void bw_fence_release(bw_fence *fence);

#endif
