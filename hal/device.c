/* SPDX-License-Identifier: Apache-2.0 */
/* Devices: open by URI, reference counts, information, bitstreams, reset. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "hal/bitstream.h"
#include "hal/internal.h"

enum { PHASE_OPENING, PHASE_OPEN, PHASE_CLOSING, PHASE_UNLISTED };

static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t list_changed = PTHREAD_COND_INITIALIZER;
static bw_device *devices;

static void unlink_locked(bw_device *dev)
{
    for (bw_device **at = &devices; *at; at = &(*at)->next)
        if (*at == dev) {
            *at = dev->next;
            break;
        }
    pthread_cond_broadcast(&list_changed);
}

static void free_device(bw_device *dev)
{
    pthread_mutex_destroy(&dev->lock);
    pthread_cond_destroy(&dev->wake);
    pthread_cond_destroy(&dev->supervise);
    pthread_cond_destroy(&dev->changed);
    dev->magic = 0;
    free(dev);
}

static bw_device *new_device(const char *uri, const bw_backend *backend)
{
    bw_device *dev = calloc(1, sizeof *dev);
    if (!dev)
        return NULL;
    dev->magic = BW_DEVICE_MAGIC;
    snprintf(dev->uri, sizeof dev->uri, "%s", uri);
    dev->backend = backend;
    dev->tail = &dev->queue;
    dev->refs = 1;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&dev->lock, NULL);
    pthread_cond_init(&dev->wake, &attr);
    pthread_cond_init(&dev->supervise, &attr);
    pthread_cond_init(&dev->changed, &attr);
    pthread_condattr_destroy(&attr);
    return dev;
}

/* Splits the scheme off and checks the rest. */
static bw_status check_uri(const char *uri, char scheme[32], const char **target, bw_error *err)
{
    const char *colon = uri ? strchr(uri, ':') : NULL;
    if (!colon || colon == uri || colon - uri > 31)
        return bw_fail(err, BW_INVALID_ARGUMENT,
                       "'%.100s' is no device URI, expected BACKEND:TARGET as in 'sim:' or 'opencl:0'",
                       uri ? uri : "(null)");
    if (strlen(uri) >= sizeof((bw_device *)0)->uri)
        return bw_fail(err, BW_INVALID_ARGUMENT, "device URI '%.60s...' has %zu characters, at most %zu are allowed",
                       uri, strlen(uri), sizeof((bw_device *)0)->uri - 1);
    for (const char *p = uri; *p; p++)
        if (*p <= ' ' || *p == 0x7f)
            return bw_fail(err, BW_INVALID_ARGUMENT,
                           "device URI '%s' holds a blank or a character that does not print at position %zu", uri,
                           (size_t)(p - uri));
    memcpy(scheme, uri, (size_t)(colon - uri));
    scheme[colon - uri] = 0;
    *target = colon + 1;
    return BW_OK;
}

bw_status bw_device_open(const char *uri, bw_device **device, bw_error *err)
{
    if (!device)
        return bw_fail(err, BW_INVALID_ARGUMENT, "bw_device_open: device is NULL");
    *device = NULL;
    char scheme[32];
    const char *target = NULL;
    bw_status status = check_uri(uri, scheme, &target, err);
    if (status)
        return status;
    const bw_backend *backend;
    status = bw_backend_find(scheme, &backend, err);
    if (status)
        return status;

    pthread_mutex_lock(&list_lock);
    bw_device *dev = devices;
    while (dev) {
        if (strcmp(dev->uri, uri) != 0) {
            dev = dev->next;
        } else if (dev->phase == PHASE_OPEN) {
            dev->refs++;
            pthread_mutex_unlock(&list_lock);
            *device = dev;
            return BW_OK;
        } else { /* another thread opens or closes it: look again when that is over */
            pthread_cond_wait(&list_changed, &list_lock);
            dev = devices;
        }
    }
    dev = new_device(uri, backend);
    if (!dev) {
        pthread_mutex_unlock(&list_lock);
        return bw_fail(err, BW_NO_MEMORY, "%s: no memory for the device", uri);
    }
    dev->phase = PHASE_OPENING;
    dev->next = devices;
    devices = dev;
    pthread_mutex_unlock(&list_lock);

    status = backend->open(target, &dev->handle, err);
    if (status) {
        bw_fail_context(err, status, "%s", uri);
    } else {
        status = bw_worker_start(dev, err);
        if (status)
            backend->close(dev->handle);
    }
    pthread_mutex_lock(&list_lock);
    if (status) {
        unlink_locked(dev);
        pthread_mutex_unlock(&list_lock);
        free_device(dev);
        return status;
    }
    dev->phase = PHASE_OPEN;
    pthread_cond_broadcast(&list_changed);
    pthread_mutex_unlock(&list_lock);
    bw_log(BW_LOG_INFO, "hal", "%s: opened", uri);
    *device = dev;
    return BW_OK;
}

void bw_device_ref(bw_device *dev)
{
    pthread_mutex_lock(&list_lock);
    dev->refs++;
    pthread_mutex_unlock(&list_lock);
}

void bw_device_unref(bw_device *dev)
{
    pthread_mutex_lock(&list_lock);
    if (--dev->refs) {
        pthread_mutex_unlock(&list_lock);
        return;
    }
    bool listed = dev->phase != PHASE_UNLISTED;
    dev->phase = PHASE_CLOSING; /* an open of the same URI waits until the backend has let go */
    pthread_mutex_unlock(&list_lock);
    bw_worker_stop(dev);
    if (!dev->abandoned)
        dev->backend->close(dev->handle);
    bw_log(BW_LOG_INFO, "hal", "%s: closed", dev->uri);
    if (listed) {
        pthread_mutex_lock(&list_lock);
        unlink_locked(dev);
        pthread_mutex_unlock(&list_lock);
    }
    free_device(dev);
}

void bw_device_unlist(bw_device *dev)
{
    pthread_mutex_lock(&list_lock);
    /* In PHASE_CLOSING the closing thread takes it out itself. */
    if (dev->phase == PHASE_OPEN) {
        dev->phase = PHASE_UNLISTED;
        unlink_locked(dev);
    }
    pthread_mutex_unlock(&list_lock);
}

void bw_device_relist(bw_device *dev)
{
    pthread_mutex_lock(&list_lock);
    const bw_device *other = devices;
    while (other && strcmp(other->uri, dev->uri) != 0)
        other = other->next;
    if (!other && dev->phase == PHASE_UNLISTED) {
        dev->phase = PHASE_OPEN;
        dev->next = devices;
        devices = dev;
    }
    pthread_mutex_unlock(&list_lock);
}

void bw_device_close(bw_device *device)
{
    if (device && device->magic == BW_DEVICE_MAGIC)
        bw_device_unref(device);
}

static bw_status check_device(const bw_device *dev, bw_error *err)
{
    return dev && dev->magic == BW_DEVICE_MAGIC
               ? BW_OK
               : bw_fail(err, BW_INVALID_ARGUMENT, "not an open device, expected one from bw_device_open");
}

bw_status bw_device_info_get(bw_device *device, bw_device_info *info, bw_error *err)
{
    bw_status status = check_device(device, err);
    if (!status && !info)
        status = bw_fail(err, BW_INVALID_ARGUMENT, "bw_device_info_get: info is NULL");
    if (status)
        return status;
    memset(info, 0, sizeof *info);
    pthread_mutex_lock(&device->lock);
    void *handle = device->handle; /* of an abandoned device it may become another one */
    pthread_mutex_unlock(&device->lock);
    status = device->backend->info(handle, info, err);
    if (status)
        return bw_fail_context(err, status, "%s", device->uri);
    memcpy(info->uri, device->uri, sizeof info->uri);
    return BW_OK;
}

bw_status bw_device_state_get(bw_device *device, bw_device_state *state, bw_error *err)
{
    bw_status status = check_device(device, err);
    if (!status && !state)
        status = bw_fail(err, BW_INVALID_ARGUMENT, "bw_device_state_get: state is NULL");
    if (status)
        return status;
    memset(state, 0, sizeof *state);
    pthread_mutex_lock(&device->lock);
    state->health = device->health;
    if (device->health == BW_HEALTH_DEAD)
        memcpy(state->reason, device->death, sizeof state->reason);
    state->queued = device->queued + (device->running != NULL);
    state->memory_used = device->memory_used;
    state->memory_budget = device->budget;
    state->runs = device->runs;
    state->inferences = device->inferences;
    state->images = device->image_count;
    state->faults = device->faults;
    state->resets = device->resets;
    state->evictions = device->evictions;
    state->busy_ns = device->busy_ns;
    pthread_mutex_unlock(&device->lock);
    return BW_OK;
}

bw_status bw_device_sensors_get(const bw_device_info *info, bw_sensors *sensors, bw_error *err)
{
    if (!info || !sensors)
        return bw_fail(err, BW_INVALID_ARGUMENT, "bw_device_sensors_get: %s is NULL", info ? "sensors" : "info");
    *sensors = (bw_sensors){.temperature_c = NAN, .power_w = NAN};
    char scheme[32];
    const char *target;
    const bw_backend *backend = NULL;
    bw_status status = check_uri(info->uri, scheme, &target, err);
    if (!status)
        status = bw_backend_find(scheme, &backend, err);
    if (!status && bw_backend_sensors(backend))
        bw_backend_sensors(backend)(info, sensors);
    return status;
}

/* --- the turn, health ------------------------------------------------------------------------------------------- */

bool bw_turn_take(bw_device *dev)
{
    dev->turn_waiters++;
    while ((dev->turn || dev->aborting) && !dev->abandoned)
        pthread_cond_wait(&dev->changed, &dev->lock);
    dev->turn_waiters--;
    if (dev->abandoned)
        return false;
    dev->turn = true;
    return true;
}

void bw_turn_give(bw_device *dev)
{
    dev->turn = false;
    pthread_cond_broadcast(&dev->changed);
    if (dev->queue)
        pthread_cond_broadcast(&dev->wake);
}

void bw_images_unload_locked(bw_device *dev)
{
    /* The list does not change: that takes the turn. */
    for (bw_image *image = dev->images; image; image = image->next)
        bw_image_unload_locked(dev, image);
}

/* --- bitstream -------------------------------------------------------------------------------------------------- */

static bw_status check_target(const bw_device_info *info, const bw_bitstream *bits, bw_error *err)
{
    if (strcmp(info->part, bits->part) != 0)
        return bw_fail(err, BW_INCOMPATIBLE,
                       "%s: bitstream '%s' is for part '%s', the device is a '%s': pick a bitstream for that part",
                       info->uri, bits->name, bits->part, info->part);
    if (strcmp(info->interface_id, bits->interface_id) != 0)
        return bw_fail(err, BW_INCOMPATIBLE,
                       "%s: bitstream '%s' wants interface %s, the device's shell has %s: pick a bitstream built for "
                       "this shell",
                       info->uri, bits->name, bits->interface_id, info->interface_id);
    return BW_OK;
}

static const bw_bitstream_payload *find_payload(const bw_bitstream *bits, const char *kind)
{
    for (unsigned i = 0; i < bits->payload_count; i++)
        if (strcmp(bits->payloads[i].kind, kind) == 0)
            return &bits->payloads[i];
    return NULL;
}

/* With lock and turn. */
static bw_status configure(bw_device *dev, const bw_bitstream *bits, const bw_bitstream_payload *payload, bw_error *err)
{
    if (dev->queue)
        return bw_fail(err, BW_BUSY, "%s: %u runs wait: wait for them before a bitstream is loaded", dev->uri,
                       dev->queued);
    bw_images_unload_locked(dev);
    pthread_mutex_unlock(&dev->lock);
    bw_error error = {BW_OK, ""};
    snprintf(error.message, sizeof error.message, "the backend gave no reason");
    bw_status status = dev->backend->load_bitstream(dev->handle, payload->bytes, payload->size, bits->uuid, &error);
    pthread_mutex_lock(&dev->lock);
    if (!status) {
        const bool same = strcmp(dev->bitstream, bits->uuid) == 0; /* it had lost what it held: images fit as before */
        for (bw_image *image = dev->images; image && !same; image = image->next)
            image->dropped = true;
        memcpy(dev->bitstream, bits->uuid, sizeof dev->bitstream);
        if (dev->misconfigured) {
            dev->misconfigured = false;
            dev->health = BW_HEALTH_OK;
            bw_log(BW_LOG_INFO, "hal", "%s: back: bitstream %s is loaded again", dev->uri, bits->uuid);
        }
        return BW_OK;
    }
    /* A payload that is refused leaves the device as it was; anything else leaves it in an unknown state. */
    bool refused = status == BW_CORRUPT || status == BW_INCOMPATIBLE || status == BW_UNSUPPORTED ||
                   status == BW_VERSION_MISMATCH || status == BW_NO_MEMORY;
    bw_fail(err, status, "%s: bitstream '%s' %s: %s", dev->uri, bits->name, bits->uuid, error.message);
    if (!refused && !dev->misconfigured) {
        dev->faults++;
        bw_reset_locked(dev, NULL);
    }
    return status;
}

bw_status bw_device_load_bitstream(bw_device *device, const void *bytes, size_t size, bw_error *err)
{
    bw_status status = check_device(device, err);
    bw_bitstream bits;
    if (!status)
        status = bw_bitstream_parse(bytes, size, &bits, err);
    bw_device_info info;
    if (!status)
        status = bw_device_info_get(device, &info, err);
    if (!status)
        status = check_target(&info, &bits, err);
    if (status)
        return status;
    const char *kind = device->backend->bitstream_kind;
    const bw_bitstream_payload *payload = find_payload(&bits, kind);
    if (!payload)
        return bw_fail(err, BW_INCOMPATIBLE,
                       "%s: bitstream '%s' has no payload of kind '%s' (its first of %u is '%s'): pick another",
                       device->uri, bits.name, kind, bits.payload_count, bits.payloads[0].kind);
    pthread_mutex_lock(&device->lock);
    const bool dead = device->health == BW_HEALTH_DEAD;
    if (dead && (!device->misconfigured || strcmp(device->bitstream, bits.uuid) != 0))
        status = bw_fail_dead(device, err);
    else if (device->running || device->queue)
        status = bw_fail(err, BW_BUSY, "%s: %u runs are in flight: wait for them before a bitstream is loaded",
                         device->uri, device->queued + (device->running != NULL));
    else if (!bw_turn_take(device))
        status = bw_fail_dead(device, err);
    else {
        /* Only with the turn does the answer stay true: two loads at once must not configure twice. */
        pthread_mutex_unlock(&device->lock);
        status = device->backend->info(device->handle, &info, err);
        pthread_mutex_lock(&device->lock);
        if (!status && strcmp(info.bitstream, bits.uuid) != 0)
            status = configure(device, &bits, payload, err);
        else if (!status)
            memcpy(device->bitstream, bits.uuid, sizeof device->bitstream);
        bw_turn_give(device);
    }
    pthread_mutex_unlock(&device->lock);
    return status;
}
