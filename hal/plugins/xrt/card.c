/* SPDX-License-Identifier: Apache-2.0 */
#include "hal/plugins/xrt/card.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "hal/base.h"

#define RESET_TRIES 3
/* Who has no claim (hal/claim.h): other programs, other containers. XRT does not say who. */
#define OTHERS "end that (fuser -v /dev/dri/renderD* lists it), or take another card"

static pthread_mutex_t cards_lock = PTHREAD_MUTEX_INITIALIZER;
static bw_xrt_card *cards;
/* Configuring starts an emulated card's process by way of the environment: not two at once. */
static pthread_mutex_t start_lock = PTHREAD_MUTEX_INITIALIZER;

static const char *why(void)
{
    return errno ? strerror(errno) : "no reason given";
}

/* --- buffers ------------------------------------------------------------------------------------------------------ */

bw_status bw_xrt_buffer_make(bw_xrt_card *c, uint64_t bytes, bw_xrt_buffer *b, bw_error *err)
{
    memset(b, 0, sizeof *b);
    bytes = bw_xrt_align(bytes ? bytes : 1);
    const bw_accelerator *a = &c->xclbin.accelerator;
    /* XRT prints to standard output when a bank is full: it is not asked then. */
    unsigned best = 0;
    for (unsigned i = 1; i < a->bank_count && i <= (unsigned)c->group; i++)
        if (c->bank_used[i] < c->bank_used[best])
            best = i;
    if (bytes > a->bank_bytes || c->bank_used[best] > a->bank_bytes - bytes)
        return bw_fail(err, BW_NO_MEMORY,
                       "%llu bytes do not fit: of the %llu bytes of the emptiest bank, %llu are in use: release images",
                       (unsigned long long)bytes, (unsigned long long)a->bank_bytes,
                       (unsigned long long)c->bank_used[best]);
    errno = 0;
    b->handle = c->xrt->xrtBOAlloc(c->device, bytes, XCL_BO_FLAGS_NONE, (xrtMemoryGroup)best);
    b->host = b->handle ? c->xrt->xrtBOMap(b->handle) : NULL;
    if (!b->host) {
        if (b->handle)
            c->xrt->xrtBOFree(b->handle);
        memset(b, 0, sizeof *b);
        return bw_fail(err, BW_NO_MEMORY, "XRT gives no buffer of %llu bytes in bank %u: %s", (unsigned long long)bytes,
                       best, why());
    }
    b->bytes = bytes;
    b->bank = best;
    c->bank_used[best] += bytes;
    return BW_OK;
}

void bw_xrt_buffer_free(bw_xrt_card *c, bw_xrt_buffer *b)
{
    if (!b->handle)
        return;
    c->xrt->xrtBOFree(b->handle);
    c->bank_used[b->bank] -= b->bytes;
    memset(b, 0, sizeof *b);
}

bw_status bw_xrt_buffer_part(bw_xrt_card *c, const bw_xrt_buffer *b, uint64_t offset, uint64_t bytes,
                             xrtBufferHandle *part, bw_error *err)
{
    errno = 0;
    *part = c->xrt->xrtBOSubAlloc(b->handle, bytes, offset);
    return *part ? BW_OK
                 : bw_fail(err, BW_DEVICE_FAULT, "XRT gives no part of %llu bytes of a buffer: %s",
                           (unsigned long long)bytes, why());
}

static void free_io(bw_xrt_card *c)
{
    for (int i = 0; i < 3; i++) {
        if (c->io_part[i])
            c->xrt->xrtBOFree(c->io_part[i]);
        c->io_part[i] = NULL;
    }
    bw_xrt_buffer_free(c, &c->io);
}

/* --- configuration ------------------------------------------------------------------------------------------------ */

uint32_t bw_xrt_card_register(bw_xrt_card *c, uint32_t offset)
{
    uint32_t value = 0xffffffff;
    if (!c->kernel || c->xrt->xrtKernelReadRegister(c->kernel, offset, &value))
        value = 0xffffffff;
    return value;
}

/* Everything that belongs to a configuration. No run may be pending. */
static void let_go(bw_xrt_card *c)
{
    bw_xrt_images_drop(c);
    free_io(c);
    if (c->run)
        c->xrt->xrtRunClose(c->run);
    if (c->kernel)
        c->xrt->xrtKernelClose(c->kernel);
    c->run = NULL;
    c->kernel = NULL;
    memset(c->bank_used, 0, sizeof c->bank_used);
}

static void close_device(bw_xrt_card *c)
{
    let_go(c);
    if (c->device)
        c->xrt->xrtDeviceClose(c->device);
    c->device = NULL;
}

static bw_status open_device(bw_xrt_card *c, bw_error *err)
{
    errno = 0;
    c->device = c->info.address[0] ? c->xrt->xrtDeviceOpenByBDF(c->info.address) : c->xrt->xrtDeviceOpen(c->index);
    if (c->device)
        return BW_OK;
    return errno == EBUSY
               ? bw_fail(err, BW_BUSY, "card %u (%s) is in use by another process: " OTHERS, c->index, c->info.address)
               : bw_fail(err, BW_DEVICE_LOST, "card %u %s cannot be opened: %s", c->index, c->info.address, why());
}

static bw_status open_kernel(bw_xrt_card *c, const xuid_t uuid, const char *uuid_text, bw_error *err)
{
    errno = 0;
    c->kernel = c->xrt->xrtPLKernelOpenExclusive(c->device, uuid, BW_ACCEL_KERNEL);
    if (!c->kernel)
        return errno == EBUSY || errno == EAGAIN
                   ? bw_fail(err, BW_BUSY, "the accelerator of card %u (%s) is in use by another process: " OTHERS,
                             c->index, c->info.address)
                   : bw_fail(err, BW_DEVICE_FAULT, "kernel '%s' of xclbin %s cannot be opened: %s", BW_ACCEL_KERNEL,
                             uuid_text, why());
    c->group = -1;
#define X(number, upper, name, bytes, offset, address)                                                                 \
    if (address) {                                                                                                     \
        int group = c->xrt->xrtKernelArgGroupId(c->kernel, number);                                                    \
        c->group = c->group < 0 || group < c->group ? group : c->group;                                                \
        if (group < 0)                                                                                                 \
            return bw_fail(err, BW_DEVICE_FAULT, "xclbin %s connects argument '%s' to no memory bank", uuid_text,      \
                           #name);                                                                                     \
    }
    BW_ACCEL_ARGS(X)
#undef X
    errno = 0;
    c->run = c->xrt->xrtRunOpen(c->kernel);
    return c->run ? BW_OK : bw_fail(err, BW_DEVICE_FAULT, "XRT gives no run handle: %s", why());
}

/* What the hardware says of itself. */
static bw_status check_identity(bw_xrt_card *c, bw_error *err)
{
    const uint32_t magic = bw_xrt_card_register(c, BW_ACCEL_AT_MAGIC), isa = bw_xrt_card_register(c, BW_ACCEL_AT_ISA);
    const uint64_t build =
        bw_xrt_card_register(c, BW_ACCEL_AT_BUILD) | (uint64_t)bw_xrt_card_register(c, BW_ACCEL_AT_BUILD + 4) << 32;
    /* It may have been lost between two reads. */
    if (magic == 0xffffffff || bw_xrt_card_register(c, BW_ACCEL_AT_MAGIC) == 0xffffffff)
        return bw_fail(err, BW_DEVICE_LOST, "card %u does not answer: its registers read as ones", c->index);
    if (magic != BW_ACCEL_MAGIC || build != c->xclbin.build)
        return bw_fail(
            err, BW_DEVICE_FAULT,
            "card %u came up as build %016llx (magic %08x), expected %016llx of xclbin %s: reset it, or write "
            "the xclbin anew",
            c->index, (unsigned long long)build, magic, (unsigned long long)c->xclbin.build, c->xclbin.uuid);
    if (isa != BW_ISA_VERSION)
        return bw_fail(err, BW_VERSION_MISMATCH, "card %u runs ISA version %u, expected %u", c->index, isa,
                       BW_ISA_VERSION);
    return BW_OK;
}

/* Loads the xclbin in `payload` into an open device, and everything on top of it. */
static bw_status bring_up(bw_xrt_card *c, bw_error *err)
{
    xuid_t uuid;
    char text[37];
    errno = 0;
    pthread_mutex_lock(&start_lock);
    int code = c->xrt->xrtDeviceLoadXclbin(c->device, c->payload);
    pthread_mutex_unlock(&start_lock);
    if (code)
        return errno == EBUSY || code == -EBUSY
                   ? bw_fail(err, BW_BUSY,
                             "xclbin %s cannot be loaded: card %u (%s) is in use by another process: " OTHERS,
                             c->xclbin.uuid, c->index, c->info.address)
                   : bw_fail(err, BW_DEVICE_LOST, "xclbin %s cannot be loaded onto card %u: %s", c->xclbin.uuid,
                             c->index, why());
    if (c->xrt->xrtDeviceGetXclbinUUID(c->device, uuid))
        return bw_fail(err, BW_DEVICE_FAULT, "card %u does not say which xclbin it holds", c->index);
    uuid_unparse_lower(uuid, text);
    if (strcmp(text, c->xclbin.uuid) != 0)
        return bw_fail(err, BW_DEVICE_FAULT, "card %u holds xclbin %s after %s was loaded: reset it", c->index, text,
                       c->xclbin.uuid);
    bw_status status = open_kernel(c, uuid, text, err);
    if (!status)
        status = check_identity(c, err);
    if (status)
        return status;
    c->generation++;
    c->needs_reset = 0;
    pthread_mutex_lock(&c->info_lock);
    c->shown = c->xclbin.accelerator;
    pthread_mutex_unlock(&c->info_lock);
    return BW_OK;
}

bw_status bw_xrt_card_configure(bw_xrt_card *c, const void *payload, size_t size, const char *bitstream, bw_error *err)
{
    bw_xclbin xclbin;
    bw_status status = bw_xclbin_parse(payload, size, &xclbin, err);
    if (status)
        return status;
    if (strcmp(xclbin.accelerator.platform, c->info.name) != 0)
        return bw_fail(err, BW_INCOMPATIBLE,
                       "xclbin %s is for platform '%s', card %u is a '%s': pick one for that platform", xclbin.uuid,
                       xclbin.accelerator.platform, c->index, c->info.name);
    void *copy = malloc(size);
    if (!copy)
        return bw_fail(err, BW_NO_MEMORY, "no memory for an xclbin of %zu bytes", size);
    memcpy(copy, payload, size);
    let_go(c);
    void *old = c->payload;
    const size_t old_size = c->payload_size;
    const bw_xclbin old_xclbin = c->xclbin;
    c->payload = copy;
    c->payload_size = size;
    c->xclbin = xclbin;
    status = c->device ? BW_OK : open_device(c, err);
    if (!status)
        status = bring_up(c, err);
    if (status) { /* a reset brings back what was there */
        free(copy);
        c->payload = old;
        c->payload_size = old_size;
        c->xclbin = old_xclbin;
        return status;
    }
    free(old);
    pthread_mutex_lock(&c->info_lock);
    snprintf(c->bitstream, sizeof c->bitstream, "%s", bitstream);
    pthread_mutex_unlock(&c->info_lock);
    return BW_OK;
}

bw_status bw_xrt_card_reset(bw_xrt_card *c, bw_error *err)
{
    if (c->lost)
        return bw_fail(err, BW_DEVICE_LOST, "card %u %s: start the process again", c->index, c->lost);
    /* XRT does not survive that a device is closed with a run pending: the run has to end first. Configuring the card
     * anew ends it, if nothing else does. */
    if (c->run_pending && bw_xrt_run_stop(c, 100)) {
        bw_log(BW_LOG_WARN, "xrt", "card %u ignores an abort, it is configured anew", c->index);
        pthread_mutex_lock(&start_lock);
        c->xrt->xrtDeviceLoadXclbin(c->device, c->payload);
        pthread_mutex_unlock(&start_lock);
        if (bw_xrt_run_wait(c, 1000)) {
            c->lost = "has a run that cannot be ended";
            return bw_fail(err, BW_DEVICE_LOST, "card %u %s: reset it with xbutil, and start the process again",
                           c->index, c->lost);
        }
    }
    bw_error why_not = {BW_OK, ""};
    /* What is not there need not be asked: each time XRT fails to configure an emulated card, or opens a device again,
     * may cost a thread that it never ends. */
    if (bw_xrt_card_present(&c->info, &why_not)) {
        c->failures++;
        return bw_fail(err, BW_DEVICE_LOST, "%s", why_not.message);
    }
    bw_status status = BW_DEVICE_LOST;
    /* One that is lost while it comes up is worth another try; one that comes up as something else is not. Opening the
     * device again comes last. Nor is one that failed before: whoever resets it again has waited in between. */
    const int most = c->failures ? 1 : RESET_TRIES;
    for (int tries = 0; tries < most && status == BW_DEVICE_LOST; tries++) {
        let_go(c);
        if (tries == RESET_TRIES - 1 || c->failures % 4 == 3)
            close_device(c);
        status = c->device ? BW_OK : open_device(c, &why_not);
        if (!status && c->payload)
            status = bring_up(c, &why_not);
    }
    c->failures = status ? c->failures + 1 : 0;
    return status ? bw_fail(err, BW_DEVICE_LOST, "%s", why_not.message) : BW_OK;
}

/* --- open, close -------------------------------------------------------------------------------------------------- */

/* A process that ends with an open device ends with a signal. */
static void close_all(void)
{
    const struct timespec wait = {0, 10000000};
    for (bw_xrt_card *c = cards; c; c = c->next) {
        int tries = 0;
        while (pthread_mutex_trylock(&c->lock) && tries++ < 100)
            nanosleep(&wait, NULL);
        if (tries > 100)
            continue;
        if (!c->run_pending || !bw_xrt_run_stop(c, 100))
            close_device(c);
        c->lost = "is closed: the process ends";
        pthread_mutex_unlock(&c->lock);
    }
}

bw_status bw_xrt_card_open(unsigned index, bw_xrt_card **card, bw_error *err)
{
    bw_status status = BW_OK;
    pthread_mutex_lock(&cards_lock);
    bw_xrt_card *c = cards;
    while (c && c->index != index)
        c = c->next;
    if (c) {
        c->users++;
    } else {
        const bw_xrt_api *xrt;
        bw_xrt_card_info info;
        status = bw_xrt_api_get(&xrt, err);
        if (!status)
            status = bw_xrt_card_find(index, &info, err);
        c = status ? NULL : calloc(1, sizeof *c);
        if (!status && !c)
            status = bw_fail(err, BW_NO_MEMORY, "no memory for a card");
        if (!status) {
            c->index = index;
            c->users = 1;
            c->xrt = xrt;
            c->info = info;
            pthread_mutex_init(&c->lock, NULL);
            pthread_mutex_init(&c->info_lock, NULL);
            status = bw_xrt_card_claim(index, &info, &c->claim, err);
            if (!status)
                status = open_device(c, err);
            if (!status) {
                /* Each time: it has to run before whatever XRT has registered meanwhile. */
                atexit(close_all);
                c->next = cards;
                cards = c;
            } else {
                bw_claim_release(c->claim);
                pthread_mutex_destroy(&c->lock);
                pthread_mutex_destroy(&c->info_lock);
                free(c);
            }
        }
    }
    pthread_mutex_unlock(&cards_lock);
    *card = status ? NULL : c;
    return status;
}

void bw_xrt_card_close(bw_xrt_card *c)
{
    pthread_mutex_lock(&cards_lock);
    if (--c->users) {
        pthread_mutex_unlock(&cards_lock);
        return;
    }
    for (bw_xrt_card **at = &cards; *at; at = &(*at)->next)
        if (*at == c) {
            *at = c->next;
            break;
        }
    pthread_mutex_lock(&c->lock);
    if (c->run_pending)
        bw_xrt_card_reset(c, NULL);
    const int leave = c->run_pending; /* better a leak than XRT's end of the process */
    if (!leave)
        close_device(c);
    pthread_mutex_unlock(&c->lock);
    pthread_mutex_unlock(&cards_lock);
    if (leave)
        return;
    bw_claim_release(c->claim);
    free(c->payload);
    pthread_mutex_destroy(&c->lock);
    pthread_mutex_destroy(&c->info_lock);
    free(c);
}
