/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A card as this process holds it: opened once however many devices the HAL makes of it (XRT does not survive a second
 * open of the same card), configured with an xclbin, with one kernel and one run handle.
 *
 * Whoever uses a card holds its lock. What `info` shows has a lock of its own.
 */
#ifndef BW_HAL_XRT_CARD_H
#define BW_HAL_XRT_CARD_H

#include <pthread.h>
#include <stdatomic.h>

#include "hal/plugins/xrt/api.h"
#include "hal/plugins/xrt/platform.h"
#include "kernels/accelerator.h"
#include "kernels/xclbin.h"

/* A piece of the card's memory with its mirror in the host's. */
typedef struct bw_xrt_buffer {
    xrtBufferHandle handle; /* NULL: none */
    uint8_t *host;
    uint64_t bytes;
    unsigned bank;
} bw_xrt_buffer;

typedef struct bw_xrt_image bw_xrt_image;

typedef struct bw_xrt_card {
    unsigned index, users;
    struct bw_xrt_card *next;
    const bw_xrt_api *xrt;
    pthread_mutex_t lock;

    bw_claim *claim; /* NULL: none could be kept */
    xrtDeviceHandle device;
    void *payload; /* the xclbin it is configured with, for a reset; NULL: none */
    size_t payload_size;
    bw_xclbin xclbin;
    xrtKernelHandle kernel; /* NULL: not configured */
    xrtRunHandle run;
    int group;           /* memory group of the kernel's buffers, the highest bank that they may lie in */
    int run_pending;     /* a run has been started and has not ended */
    unsigned failures;   /* resets in a row that have failed */
    int needs_reset;     /* a job has failed; the device that had it will reset the card, another must not run before */
    uint32_t sequence;   /* of the last job */
    uint64_t generation; /* counts configurations: what was in the card's memory before is gone */
    uint64_t bank_used[BW_ACCEL_BANKS_MAX];
    bw_xrt_image *images;
    /* Of runs: status, output and input in one buffer, grown as needed, and their parts as arguments. */
    bw_xrt_buffer io;
    uint64_t io_out, io_in; /* offsets */
    xrtBufferHandle io_part[3];

    pthread_mutex_t info_lock;
    bw_xrt_card_info info;
    bw_accelerator shown; /* what it is configured as; bank_count 0: not */
    char bitstream[37];
    const char *lost; /* why it will not work in this process again; NULL */
} bw_xrt_card;

/* Opens it, or counts a user up. */
bw_status bw_xrt_card_open(unsigned index, bw_xrt_card **card, bw_error *err);
void bw_xrt_card_close(bw_xrt_card *card);

/* With the lock: */

/* Configures the card with an xclbin, which becomes `bitstream` to `info`. BW_CORRUPT, BW_VERSION_MISMATCH,
 * BW_INCOMPATIBLE: refused, nothing has changed. Else the card is in an unknown state. */
bw_status bw_xrt_card_configure(bw_xrt_card *card, const void *payload, size_t size, const char *bitstream,
                                bw_error *err);
/* Ends what the card is doing and configures it as before. BW_DEVICE_LOST: it does not come back. */
bw_status bw_xrt_card_reset(bw_xrt_card *card, bw_error *err);

/* BW_NO_MEMORY: no bank has so much left. */
bw_status bw_xrt_buffer_make(bw_xrt_card *card, uint64_t bytes, bw_xrt_buffer *buffer, bw_error *err);
void bw_xrt_buffer_free(bw_xrt_card *card, bw_xrt_buffer *buffer);
/* A part of it as an argument of a run: offset and bytes are multiples of BW_ACCEL_ALIGN. */
bw_status bw_xrt_buffer_part(bw_xrt_card *card, const bw_xrt_buffer *buffer, uint64_t offset, uint64_t bytes,
                             xrtBufferHandle *part, bw_error *err);

/* All ones, as of a card that has left the bus, if it cannot be read. */
uint32_t bw_xrt_card_register(bw_xrt_card *card, uint32_t offset);

static inline uint64_t bw_xrt_align(uint64_t bytes)
{
    return (bytes + BW_ACCEL_ALIGN - 1) / BW_ACCEL_ALIGN * BW_ACCEL_ALIGN;
}

/* job.c: programs and their runs. */
typedef struct bw_xrt_job_options {
    uint32_t timeout_ms; /* a run that takes longer hangs; 0: never */
    uint32_t scrub; /* look at the program and constants in the card's memory before every so-manieth run; 0: never */
} bw_xrt_job_options;

/* Without the lock: */
bw_status bw_xrt_image_load(bw_xrt_card *card, const bw_program *program, const void *constants, bw_xrt_image **image,
                            bw_error *err);
void bw_xrt_image_release(bw_xrt_card *card, bw_xrt_image *image);
bw_status bw_xrt_image_run(bw_xrt_card *card, bw_xrt_image *image, const bw_xrt_job_options *options, const void *in,
                           void *out, uint32_t batch, const atomic_int *cancel, const atomic_int *aborted,
                           bw_error *err);

/* With the lock; a reset takes everything out of the card's memory. */
void bw_xrt_images_drop(bw_xrt_card *card);
/* Asks the run under way to end and waits so long for it. 0: it has. */
int bw_xrt_run_stop(bw_xrt_card *card, uint32_t ms);
int bw_xrt_run_wait(bw_xrt_card *card, uint32_t ms);

#endif
