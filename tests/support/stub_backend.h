/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A scripted HAL backend for tests: "stub:ANY". Its runs copy the input to the output, or do what `stub.action` says.
 * It checks the core's side of the contract (one thread at a time, balanced calls) and aborts the test when it is
 * broken.
 */
#ifndef BW_TESTS_STUB_BACKEND_H
#define BW_TESTS_STUB_BACKEND_H

#include <pthread.h>
#include <stdatomic.h>

#include "hal/backend.h"

typedef enum stub_action {
    STUB_COPY = 0,
    STUB_SLEEP, /* stub.sleep_ms, looking at cancel; then copy */
    STUB_FAIL,  /* returns stub.status */
    STUB_HANG,  /* until abort */
    STUB_WEDGE, /* until stub.unwedge, whatever cancel and abort say */
    STUB_GATE   /* until stub.gate is open, looking at cancel; then copy */
} stub_action;

typedef struct stub_state {
    atomic_int action, sleep_ms, status, gate, unwedge;
    atomic_int once; /* the action holds for one run, then STUB_COPY */
    atomic_int reset_status, load_status, bitstream_status, open_status;
    atomic_int opens, closes, loads, releases, runs, resets, aborts, bitstreams, wedged;
    atomic_ullong memory_bytes; /* 0: not limited */
    atomic_uint formats;
    atomic_int forget;         /* the next reset that succeeds leaves it with another bitstream, 2: every one */
    atomic_int celsius, watts; /* what its sensors show; 0: nothing */
    atomic_int images_most;    /* more are BW_NO_MEMORY; 0: not limited */
    _Atomic(pthread_t) runner; /* the thread of the last run, of any device */
} stub_state;

extern stub_state stub;
extern const bw_backend stub_backend;
/* The same, "sure:ANY", whose runs always end (so STUB_WEDGE is not for it). */
extern const bw_backend sure_backend;

#define STUB_PART      "stub-part"
#define STUB_INTERFACE "00112233-4455-6677-8899-aabbccddeeff"
#define STUB_ADDRESS   "0000:5b:00.1"
#define STUB_OTHER     "ffffffff-0000-4000-8000-000000000001" /* a bitstream that nobody loaded */

void stub_clear(void); /* all counters and actions to their defaults */

/* A program that copies 8 floats from its input to its output. Static storage, 8-byte aligned. */
const void *stub_program(size_t *size);
#define STUB_FLOATS 8

#endif
