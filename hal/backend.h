/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The backend contract. A backend is one `bw_backend` struct, either registered by the program (the simulator) or
 * found in a plug-in `libbw_hal_NAME.so` through its one exported symbol `bw_backend_entry`. See docs/backend.md.
 *
 * The HAL core owns queues, fences, deadlines, reference counts, program validation, capability checks and logs: a
 * backend only moves bytes and runs one batch at a time per device.
 *
 * Locking: the core calls `open`, `close`, `load_bitstream`, `reset`, `image_load`, `image_release` and `run` of one
 * device from one thread at a time (not always the same thread); `info`, `sensors` and `abort` may come from any thread
 * at any time. No lock of the core is held during any call.
 *
 * Reset: before `reset` the core releases every image of the device, and loads each again before its next run. A loaded
 * bitstream stays through a reset.
 */
#ifndef BW_HAL_BACKEND_H
#define BW_HAL_BACKEND_H

#include <stdatomic.h>
#include <stddef.h>

#include "hal/hal.h"

/* 2: the layout of bw_device_info: an address on the bus, no counters; the slot `sensors`. */
#define BW_BACKEND_ABI 2u

typedef struct bw_backend {
    uint32_t abi_version; /* BW_BACKEND_ABI */
    uint32_t struct_size; /* sizeof(bw_backend) */
    const char *name;     /* URI scheme: "sim" */

    /* Fills the info of target number `index` (0, 1, ...) without opening it; BW_NOT_FOUND past the last. */
    bw_status (*enumerate)(unsigned index, bw_device_info *info, bw_error *err);
    /* target: the URI after the colon, "" for the default; options after '?' included. */
    bw_status (*open)(const char *target, void **device, bw_error *err);
    void (*close)(void *device);
    /* Current name, part, address, ids, offers, memory. The struct is zero before. */
    bw_status (*info)(void *device, bw_device_info *info, bw_error *err);
    /* payload: the section of the container that this backend knows (see bitstream_kind), already verified. */
    bw_status (*load_bitstream)(void *device, const void *payload, size_t size, const char *uuid, bw_error *err);
    /* Kind of payload this backend takes from a container: "sim-arch", "opencl-source", "xclbin". */
    const char *bitstream_kind;
    /* The program is validated and its needs are met. *program and all bytes stay valid until image_release. */
    bw_status (*image_load)(void *device, const bw_program *program, const void *constants, void **image,
                            bw_error *err);
    void (*image_release)(void *device, void *image);
    /* Blocking. *cancel becomes non-zero when the run is no longer wanted: return BW_CANCELLED soon. Any other
     * failure than BW_CANCELLED and BW_NO_MEMORY makes the core reset the device. */
    bw_status (*run)(void *device, void *image, const void *in, void *out, uint32_t batch, const atomic_int *cancel,
                     bw_error *err);
    bw_status (*reset)(void *device, bw_error *err);
    /* (optional) Breaks a hung `run` from another thread, so that it returns BW_DEVICE_FAULT. Must not block; may come
     * more than once, or when the run has just ended: then it does nothing, also not to the next run. */
    void (*abort)(void *device);
    /* (optional) Milliseconds that a run may still take to return after `abort` (or, without `abort`, after *cancel)
     * before the device is given up. 0: 1000. UINT32_MAX: wait for ever, for software that always ends. */
    uint32_t abort_grace_ms;
    /* (optional, and absent if struct_size ends before it) As `run`, and adds to spent_ns[i] the nanoseconds that
     * instruction i of the program took for the batch; what is done as part of another adds 0. BW_UNSUPPORTED, before
     * anything has been done: this device cannot, the message says which one can; the core does not reset it. */
    bw_status (*run_timed)(void *device, void *image, const void *in, void *out, uint32_t batch,
                           const atomic_int *cancel, uint64_t *spent_ns, bw_error *err);
    /* (optional, and absent if struct_size ends before it) Sets what it can read of the sensors of the device that
     * `info` (its own, of `enumerate` or `info`) describes; both are NAN before. The device need not be open, may be
     * lost, and may be in the hands of another process: use `info->address`, or whatever else leads there from `info`.
     * A few milliseconds at most. Nothing is estimated: what cannot be read stays NAN. */
    void (*sensors)(const bw_device_info *info, bw_sensors *sensors);
} bw_backend;

/* Size of the struct before slots were added to it: what a backend must have at least. */
#define BW_BACKEND_SIZE_MIN offsetof(bw_backend, run_timed)

/* Registers a backend that lives as long as the process. BW_ALREADY_EXISTS, BW_VERSION_MISMATCH,
 * BW_INVALID_ARGUMENT (a required slot is NULL; the message names it). */
bw_status bw_backend_register(const bw_backend *backend, bw_error *err);

/* For `open`: splits "u250?threads=1&isa=avx2" into the name (copied to `name`) and its options, each of which is
 * handed to `option`. BW_INVALID_ARGUMENT: malformed, or whatever `option` returns. */
bw_status bw_target_parse(const char *target, char *name, size_t name_size,
                          bw_status (*option)(const char *key, const char *value, void *user, bw_error *err),
                          void *user, bw_error *err);

/* What a plug-in exports: `const bw_backend *bw_backend_entry(void);` */
typedef const bw_backend *(*bw_backend_entry_fn)(void);
#define BW_BACKEND_ENTRY "bw_backend_entry"

#endif
