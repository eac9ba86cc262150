/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A bounded queue of jobs in order of arrival, and the threads that work on them. What does not fit is refused at
 * once, with an honest guess of when to come back.
 *
 * Thread safety: all functions may be called from any thread, except create and destroy.
 */
#ifndef BW_SERVICE_SCHEDULER_H
#define BW_SERVICE_SCHEDULER_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/status.h"

typedef struct bw_scheduler bw_scheduler;

/* Embedded in the caller's object, which must live until run has been called or the job has been removed. */
typedef struct bw_job {
    void (*run)(struct bw_job *job); /* on a worker thread, exactly once, unless removed */
    size_t bytes;                    /* memory it holds while it waits */
    struct bw_job *previous, *next;  /* the scheduler's */
    int queued;
} bw_job;

/* queue: jobs that may wait (beyond those being worked on); bytes: memory they may hold together. */
bw_status bw_scheduler_create(unsigned workers, unsigned queue, size_t bytes, bw_scheduler **scheduler, bw_error *err);
/* No job may be queued any more. Waits for the running ones. NULL allowed. */
void bw_scheduler_destroy(bw_scheduler *s);

/* BW_EXHAUSTED: the queue is full. */
bw_status bw_scheduler_submit(bw_scheduler *s, bw_job *job, bw_error *err);
/* The number of a worker's place, in which the caller's thread does a job by itself until bw_scheduler_leave (worked 0:
 * it did not); -1: none is free, or others wait. */
int bw_scheduler_enter(bw_scheduler *s);
void bw_scheduler_leave(bw_scheduler *s, int place, int worked);
/* The same answer as submit's beforehand, to spare the work of preparing a job that would be refused. */
bw_status bw_scheduler_has_room(bw_scheduler *s, size_t bytes, bw_error *err);
/* Takes a waiting job out: 1; 0 if it was not waiting (it runs, has run, or was never queued). */
int bw_scheduler_remove(bw_scheduler *s, bw_job *job);
/* Milliseconds until a new job would start, from the recent pace: at least 1. */
unsigned bw_scheduler_wait_ms(bw_scheduler *s);
/* Jobs waiting and running. */
void bw_scheduler_load(bw_scheduler *s, unsigned *waiting, unsigned *running);

#endif
