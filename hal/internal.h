/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The HAL core's own structures: registry.c (backends, plug-ins), device.c (devices by URI, the turn, bitstream),
 * reset.c (reset, death, revival), image.c (resident programs, submission, fences), residency.c (which of them are on
 * the device), worker.c (the two threads of a device).
 *
 * A device has two threads. The worker takes runs from the queue and calls the backend. The supervisor ends cancelled
 * runs that still wait in the queue, aborts a run that ignores its cancellation, and gives the device up when even that
 * does not help, so that no caller ever waits for a backend that does not come back.
 *
 * A blocking run on an idle device whose runs always end (abort_grace_ms UINT32_MAX: software in this process) is done
 * by the caller's own thread: handing it to the worker and back costs two wake-ups, more than a small network. Its
 * deadline is the supervisor's: see `watch_ns`.
 *
 * The turn: backend calls of one device come from one thread at a time. Whoever calls the backend (the worker for a
 * run, a caller for load, release, reset) takes `turn` under the lock, calls without the lock, and gives it back.
 * Callers go before the next run.
 *
 * Locks: the registry's list lock is never held together with a device's lock. Callbacks and backend calls happen
 * without any lock.
 */
#ifndef BW_HAL_INTERNAL_H
#define BW_HAL_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "hal/backend.h"

#define BW_QUEUE_MAX 64
/* After a cancellation the backend has this long to notice it, then `abort` is called... */
#define BW_CANCEL_GRACE_NS 250000000u
/* ... and after that this long to come back, then the device is given up. */
#define BW_ABORT_GRACE_NS 1000000000u

#define BW_DEVICE_MAGIC 0x64427721u
#define BW_IMAGE_MAGIC  0x69427721u
#define BW_FENCE_MAGIC  0x66427721u

typedef enum fence_state {
    FENCE_QUEUED,
    FENCE_RUNNING,
    FENCE_ENDING, /* the result stands; the on_done call is being made */
    FENCE_DONE
} fence_state;

struct bw_fence {
    uint32_t magic;
    bw_image *image;
    const void *in;
    void *out;
    uint32_t batch;
    uint64_t *spent_ns; /* borrowed; per instruction, NULL: not wanted */
    atomic_int cancel;  /* what the backend looks at */
    /* Under the device's lock: */
    uint64_t deadline_ns; /* of a run on its caller's thread: the supervisor cancels it then; 0: none */
    unsigned refs;        /* one for the user, one for the worker while the run is in the backend */
    fence_state state;
    bw_status verdict; /* BW_CANCELLED or BW_DEVICE_FAULT (reset): what it ends with if it has not ended before */
    bw_status status;
    bw_error error;
    void (*done)(void *user);
    void *done_user;
    uint64_t submitted_ns, started_ns, ended_ns;
    bw_fence *next;
};

struct bw_image {
    uint32_t magic;
    bw_device *device;
    bw_program program;
    const void *constants;
    uint64_t memory; /* what it counts in memory_used */
    /* Under the device's lock: */
    void *handle; /* the backend's; NULL while it is not on the device: the next run loads it again */
    uint64_t last_use;
    bool dropped;    /* by a bitstream: stays out */
    unsigned refs;   /* one for the user, one for each fence that is not yet released */
    unsigned active; /* runs queued or running */
    bw_image *next;
};

struct bw_device {
    uint32_t magic;
    /* Under the registry's lock: */
    unsigned refs; /* users and images; the entry leaves the list with the last */
    int phase;     /* of the entry: opening, open, closing */
    bw_device *next;

    char uri[128];
    const bw_backend *backend;
    void *handle;

    pthread_mutex_t lock;
    pthread_cond_t wake;      /* the worker: a run was queued, the turn is free, stop */
    pthread_cond_t supervise; /* the supervisor: a cancellation, stop */
    pthread_cond_t changed;   /* callers: a fence ended, the turn is free, the queue has room */
    pthread_t worker, supervisor;
    /* Under `lock`: */
    bool stop;
    bool turn;               /* somebody is inside the backend */
    unsigned turn_waiters;   /* callers that go before the next run */
    bool aborting;           /* the supervisor is inside `abort`: no other run may start */
    bool abandoned;          /* the worker is stuck in the backend: nobody may call the backend any more */
    bool reopening;          /* somebody opens an abandoned device anew */
    unsigned life;           /* counts such openings: whoever comes back from an earlier one has nothing to say */
    bw_fence *queue, **tail; /* waiting runs, oldest first */
    unsigned queued;
    bw_fence *running;
    uint64_t cancel_ns; /* when the running run was asked to end; 0: not */
    uint64_t watch_ns; /* when the supervisor looks at the running run's deadline without being told; 0: never. It stays
                          set when a run ends, so that a series of runs wakes it once in the time that each has. */
    bw_health health;
    char death[256];              /* why it is dead */
    char bitstream[BW_UUID_TEXT]; /* what it has to hold after a reset; "": nothing was loaded */
    bool misconfigured;           /* dead because it holds another one: loading the right one revives it */
    bw_image *images;
    uint64_t budget; /* bytes that resident images may take; 0: the device's memory */
    uint64_t uses;   /* counts up: when an image was used last */
    uint64_t runs, inferences, image_count, faults, resets, evictions, busy_ns, memory_used;
};

/* Whether the backend can time instructions. */
static inline bool bw_backend_times(const bw_backend *b)
{
    return b->struct_size >= offsetof(bw_backend, run_timed) + sizeof b->run_timed && b->run_timed;
}

/* The slot `sensors`; NULL: none. */
static inline void (*bw_backend_sensors(const bw_backend *b))(const bw_device_info *, bw_sensors *)
{
    return b->struct_size >= offsetof(bw_backend, sensors) + sizeof b->sensors ? b->sensors : NULL;
}

/* registry.c: the backend of a URI scheme; loads its plug-in when it is not registered yet. */
bw_status bw_backend_find(const char *name, const bw_backend **backend, bw_error *err);
/* The i-th known backend in order of registration, NULL past the last. */
const bw_backend *bw_backend_at(unsigned index);
/* Loads every plug-in that can be found; `absent` hears of those that cannot be used. */
void bw_plugins_load_all(void (*absent)(const char *backend, const char *reason, void *user), void *user);

/* device.c */
void bw_device_ref(bw_device *dev);
void bw_device_unref(bw_device *dev); /* may close and free the device */
/* Takes a device out of the list, so that opening its URI again makes a new one. No lock is held. */
void bw_device_unlist(bw_device *dev);
/* Puts it back, unless there is another one of its URI by now. No lock is held. */
void bw_device_relist(bw_device *dev);
/* Takes the turn; the lock is held at entry and exit. false: the device has been abandoned, there is no turn any more.
 */
bool bw_turn_take(bw_device *dev);
void bw_turn_give(bw_device *dev);
/* Releases the backend's side of all images. Lock and turn are held; the lock is dropped while the backend works. */
void bw_images_unload_locked(bw_device *dev);

/* image.c: drops one reference. The lock is held; true: the caller owes bw_device_unref after unlocking. */
bool bw_fence_unref(bw_fence *fence);
void bw_fence_cancel_locked(bw_device *dev, bw_fence *fence); /* unless it has ended; the lock is held */

/* reset.c */
/* Unloads all images, resets, sets the health. Lock and turn are held; the lock is dropped while the backend works. */
bw_status bw_reset_locked(bw_device *dev, bw_error *err);
/* Marks the device dead, with the reason. The lock is held. */
void bw_device_die(bw_device *dev, const char *reason);
bw_status bw_fail_dead(const bw_device *dev, bw_error *err);

/* residency.c. Lock and turn are held; the lock is dropped while the backend works. */
/* Makes room for the image and loads it; it is in the device's list, or not yet. Any status of the backend.
 * BW_DEVICE_LOST, with nothing done: the device was abandoned meanwhile. */
bw_status bw_image_make_resident(bw_device *dev, bw_image *image, bw_error *err);
/* Releases the backend's side of the image, if it has one. */
void bw_image_unload_locked(bw_device *dev, bw_image *image);

/* worker.c */
/* Whether a run that is submitted now may be done by its caller. The lock is held. */
bool bw_worker_idle(const bw_device *dev);
/* Runs the only fence of the queue of an idle device to its end. The lock is held, and dropped meanwhile. */
void bw_worker_run_here(bw_device *dev);
bw_status bw_worker_start(bw_device *dev, bw_error *err);
/* A worker in the place of the one that an abandoned device has lost. The lock is held. */
bw_status bw_worker_replace(bw_device *dev, bw_error *err);
void bw_worker_stop(bw_device *dev); /* ends and joins both threads */
/* pthread_cond_wait until CLOCK_MONOTONIC reaches deadline_ns (0: for ever); false when the time has passed. */
bool bw_cond_until(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t deadline_ns);

#endif
