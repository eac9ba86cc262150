/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The server's devices: which are in use, and how one that was lost comes back into use.
 *
 * A device whose reset has failed is out: nothing is sent to it. It is then tried again, after 0.1 s and with growing
 * pauses up to a minute, for as long as the server runs: reset (bw_device_reset, which also opens a device anew that
 * had to be given up), the bitstream it held, whose verified bytes are kept, and a trial run of every model that is on
 * it. Only when all of them have given the bits that they gave at the start is it in use again.
 *
 *     bw_fleet_new(&fleet, &err);
 *     bw_fleet_open(fleet, "xrt:0", 0, &err);            // for each
 *     bw_fleet_watch(fleet, on_change, user);
 *     ... models: bw_fleet_add_trial, bw_fleet_is_out, bw_fleet_report ...
 *     bw_fleet_stop(fleet);  bw_fleet_free(fleet);
 *
 * Thread safety: is_out, report, add_trial and remove_trial from any thread; the rest belongs to the thread that starts
 * and stops the server.
 */
#ifndef BW_SERVICE_FLEET_H
#define BW_SERVICE_FLEET_H

#include "hal/hal.h"

typedef struct bw_fleet bw_fleet;

/* What a model has to show before a device is used again. */
typedef struct bw_trial {
    bw_status (*run)(void *user, bw_error *err); /* BW_OK: the right bits. From a thread of the fleet's. */
    void *user;
    size_t device;
    struct bw_trial *next; /* the fleet's */
} bw_trial;

bw_status bw_fleet_new(bw_fleet **fleet, bw_error *err);
/* Ends the trying; afterwards devices that are out stay out. May last as long as a reset does. */
void bw_fleet_stop(bw_fleet *fleet);
/* Closes the devices. No trial may be left. NULL is allowed. */
void bw_fleet_free(bw_fleet *fleet);

/* Opens the next device, with a budget of its memory (0: all). As bw_device_open, bw_device_set_budget. */
bw_status bw_fleet_open(bw_fleet *fleet, const char *uri, uint64_t budget, bw_error *err);
size_t bw_fleet_count(const bw_fleet *fleet);
bw_device *bw_fleet_device(const bw_fleet *fleet, size_t device);
/* The container that the device holds; copied. BW_NO_MEMORY. */
bw_status bw_fleet_keep_bitstream(bw_fleet *fleet, size_t device, const void *bytes, size_t size, bw_error *err);
/* From now on `changed` hears when a device has gone out or come back; no lock is held. */
void bw_fleet_watch(bw_fleet *fleet, void (*changed)(void *user), void *user);

int bw_fleet_is_out(const bw_fleet *fleet, size_t device);
/* A run on the device ended with BW_DEVICE_FAULT or BW_DEVICE_LOST. Returns whether it is out; after BW_DEVICE_LOST it
 * waits for that (a run ends before the reset that shows it), at most 2 s. */
int bw_fleet_report(bw_fleet *fleet, size_t device, bw_status status);

/* The trial is borrowed until it is removed, which waits for one under way. */
void bw_fleet_add_trial(bw_fleet *fleet, bw_trial *trial);
void bw_fleet_remove_trial(bw_fleet *fleet, bw_trial *trial);

#endif
