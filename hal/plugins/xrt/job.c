/* SPDX-License-Identifier: Apache-2.0 */
/* Programs in the card's memory, and jobs. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#include "hal/base.h"
#include "hal/plugins/xrt/card.h"

struct bw_xrt_image {
    const bw_program *program; /* valid until the release, so are the constants */
    const void *constants;
    bw_xrt_image *next;
    bw_xrt_buffer memory;    /* program, constants, activations; none: it has to be loaded again */
    xrtBufferHandle part[3]; /* the same */
    uint64_t bytes[2], sum[2];
    int fills_out;       /* else what the caller's buffer holds goes to the card first: bytes that nobody writes stay */
    uint64_t generation; /* of the card's configuration that it was loaded into */
    uint64_t runs;
    uint64_t image_ns; /* of a run, per image: the least so far, forgotten slowly */
};

/* --- waiting ------------------------------------------------------------------------------------------------------ */

/* 1: it has ended, somehow. */
static int has_ended(bw_xrt_card *c)
{
    if (c->run_pending && c->xrt->xrtRunState(c->run) >= ERT_CMD_STATE_COMPLETED)
        c->run_pending = 0;
    return !c->run_pending;
}

static void pause_ns(uint64_t ns)
{
    static _Thread_local int exact;
    if (!exact) {
        prctl(PR_SET_TIMERSLACK, 1000); /* else 10 us are 60 */
        exact = 1;
    }
    nanosleep(&(struct timespec){(time_t)(ns / 1000000000), (long)(ns % 1000000000)}, NULL);
}

/* A sixteenth of what it has taken so far, 10 us to 1 ms: late by a few percent, and cheap for the card's driver. */
static void back_off(uint64_t since_ns)
{
    uint64_t pause = (bw_now_ns() - since_ns) / 16;
    pause_ns(pause < 10000 ? 10000 : pause > 1000000 ? 1000000 : pause);
}

int bw_xrt_run_wait(bw_xrt_card *c, uint32_t ms)
{
    const uint64_t start = bw_now_ns();
    while (!has_ended(c)) {
        if (bw_now_ns() - start > ms * UINT64_C(1000000))
            return -1;
        back_off(start);
    }
    return 0;
}

int bw_xrt_run_stop(bw_xrt_card *c, uint32_t ms)
{
    if (has_ended(c))
        return 0;
    c->xrt->xrtKernelWriteRegister(c->kernel, BW_ACCEL_AT_ABORT, 1);
    return bw_xrt_run_wait(c, ms);
}

typedef struct limits {
    const atomic_int *cancel, *aborted; /* NULL: neither */
    uint32_t timeout_ms;
    uint64_t expected_ns; /* what such a run took before; 0: not known */
} limits;

/* Waits for the run under way, or ends it. */
static bw_status wait_for_run(bw_xrt_card *c, const limits *l, bw_error *err)
{
    const uint64_t start = bw_now_ns();
    /* Looking while it cannot have ended takes a CPU from what may be at work on it. */
    if (l->expected_ns > 100000)
        pause_ns(l->expected_ns < 10000000 ? l->expected_ns * 3 / 4 : 7500000);
    while (!has_ended(c)) {
        const int cancelled = l->cancel && atomic_load(l->cancel), aborted = l->aborted && atomic_load(l->aborted);
        const uint64_t ms = (bw_now_ns() - start) / 1000000;
        const int late = l->timeout_ms && ms > l->timeout_ms;
        if (cancelled || aborted || late) {
            if (bw_xrt_run_stop(c, 150))
                return bw_fail(err, BW_DEVICE_FAULT, "the run did not end within 150 ms of its abort");
            if (cancelled && !aborted)
                return bw_fail(err, BW_CANCELLED, "the run was cancelled");
            return late ? bw_fail(err, BW_DEVICE_FAULT, "the run had not ended after %u ms and was aborted",
                                  l->timeout_ms)
                        : bw_fail(err, BW_DEVICE_FAULT, "the run was aborted");
        }
        back_off(start);
    }
    return BW_OK;
}

/* --- jobs --------------------------------------------------------------------------------------------------------- */

static bw_status sync_buffer(bw_xrt_card *c, const bw_xrt_buffer *b, enum xclBOSyncDirection direction, uint64_t bytes,
                             uint64_t offset, bw_error *err)
{
    errno = 0;
    int code = bytes ? c->xrt->xrtBOSync(b->handle, direction, bytes, offset) : 0;
    return code ? bw_fail(err, BW_DEVICE_FAULT, "a transfer of %llu bytes %s the card failed: %s",
                          (unsigned long long)bytes, direction == XCL_BO_SYNC_BO_TO_DEVICE ? "to" : "from",
                          strerror(errno ? errno : abs(code)))
                : BW_OK;
}

/* Room for a status, `out` and `in` bytes. */
static bw_status make_io(bw_xrt_card *c, uint64_t in, uint64_t out, bw_error *err)
{
    const uint64_t status_bytes = BW_ACCEL_ALIGN, out_room = bw_xrt_align(out ? out : 1),
                   in_room = bw_xrt_align(in ? in : 1);
    if (c->io.handle && c->io_in - c->io_out >= out_room && c->io.bytes - c->io_in >= in_room)
        return BW_OK;
    for (int i = 0; i < 3; i++) {
        if (c->io_part[i])
            c->xrt->xrtBOFree(c->io_part[i]);
        c->io_part[i] = NULL;
    }
    bw_xrt_buffer_free(c, &c->io);
    bw_status status = bw_xrt_buffer_make(c, status_bytes + out_room + in_room, &c->io, err);
    if (status)
        return status;
    c->io_out = status_bytes;
    c->io_in = status_bytes + out_room;
    status = bw_xrt_buffer_part(c, &c->io, 0, status_bytes, &c->io_part[0], err);
    if (!status)
        status = bw_xrt_buffer_part(c, &c->io, c->io_out, out_room, &c->io_part[1], err);
    if (!status)
        status = bw_xrt_buffer_part(c, &c->io, c->io_in, in_room, &c->io_part[2], err);
    if (status) {
        for (int i = 0; i < 3; i++) {
            if (c->io_part[i])
                c->xrt->xrtBOFree(c->io_part[i]);
            c->io_part[i] = NULL;
        }
        bw_xrt_buffer_free(c, &c->io);
    }
    return status;
}

static bw_status start(bw_xrt_card *c, const bw_xrt_image *img, bw_accel_command command, uint32_t batch, bw_error *err)
{
    const bw_xrt_api *x = c->xrt;
    int bad = 0;
    errno = 0;
    bad |= x->xrtRunSetArg(c->run, BW_ACCEL_ARG_PROGRAM, img->part[0]);
    bad |= x->xrtRunSetArg(c->run, BW_ACCEL_ARG_CONSTANTS, img->part[1]);
    bad |= x->xrtRunSetArg(c->run, BW_ACCEL_ARG_ACTIVATIONS, img->part[2]);
    bad |= x->xrtRunSetArg(c->run, BW_ACCEL_ARG_INPUT, c->io_part[2]);
    bad |= x->xrtRunSetArg(c->run, BW_ACCEL_ARG_OUTPUT, c->io_part[1]);
    bad |= x->xrtRunSetArg(c->run, BW_ACCEL_ARG_STATUS, c->io_part[0]);
    bad |= x->xrtRunSetArg(c->run, BW_ACCEL_ARG_PROGRAM_BYTES, img->bytes[0]);
    bad |= x->xrtRunSetArg(c->run, BW_ACCEL_ARG_CONSTANT_BYTES, img->bytes[1]);
    bad |= x->xrtRunSetArg(c->run, BW_ACCEL_ARG_BATCH, batch);
    bad |= x->xrtRunSetArg(c->run, BW_ACCEL_ARG_COMMAND, (uint32_t)command);
    bad |= x->xrtRunSetArg(c->run, BW_ACCEL_ARG_SEQUENCE, ++c->sequence);
    if (bad || x->xrtRunStart(c->run))
        return bw_fail(err, BW_DEVICE_FAULT, "XRT does not start a run: %s",
                       errno ? strerror(errno) : "no reason given");
    c->run_pending = 1;
    return BW_OK;
}

/* Looks at what the card has written. */
static bw_status check_status(bw_xrt_card *c, const char *what, bw_accel_status *s, bw_error *err)
{
    memcpy(s, c->io.host, sizeof *s);
    s->message[sizeof s->message - 1] = 0;
    if (s->magic != BW_ACCEL_STATUS_MAGIC || s->sequence != c->sequence) {
        if (bw_xrt_card_register(c, BW_ACCEL_AT_MAGIC) == 0xffffffff)
            return bw_fail(err, BW_DEVICE_FAULT, "%s: the card is gone: its registers read as ones", what);
        return bw_fail(err, BW_DEVICE_FAULT, "%s: no status of job %u came back, a transfer was lost", what,
                       c->sequence);
    }
    if (s->code == BW_ACCEL_NO_MEMORY)
        return bw_fail(err, BW_NO_MEMORY, "%s: the card has no memory for it: %s", what, s->message);
    if (s->code)
        return bw_fail(err, BW_DEVICE_FAULT, "%s: the card reports %s%s%s", what, bw_accel_code_name(s->code),
                       s->message[0] ? ": " : "", s->message);
    return BW_OK;
}

/* One job from start to checked status. The output lies in the mirror then. */
static bw_status do_job(bw_xrt_card *c, const bw_xrt_image *img, bw_accel_command command, uint32_t batch, uint64_t out,
                        const limits *l, bw_accel_status *s, bw_error *err)
{
    const char *what = command == BW_ACCEL_RUN ? "run" : "load of a program";
    memset(c->io.host, 0, sizeof *s); /* the status of before must not be taken for this one's */
    bw_status status = start(c, img, command, batch, err);
    if (!status)
        status = wait_for_run(c, l, err);
    if (!status)
        status = sync_buffer(c, &c->io, XCL_BO_SYNC_BO_FROM_DEVICE, c->io_out + out, 0, err);
    if (!status)
        status = check_status(c, what, s, err);
    if (status && status != BW_CANCELLED && status != BW_NO_MEMORY)
        c->needs_reset = 1;
    return status;
}

/* --- images ------------------------------------------------------------------------------------------------------- */

static void drop(bw_xrt_card *c, bw_xrt_image *img)
{
    for (int i = 0; i < 3; i++) {
        if (img->part[i])
            c->xrt->xrtBOFree(img->part[i]);
        img->part[i] = NULL;
    }
    bw_xrt_buffer_free(c, &img->memory);
}

void bw_xrt_images_drop(bw_xrt_card *c)
{
    for (bw_xrt_image *img = c->images; img; img = img->next)
        drop(c, img);
}

/* Has the card sum up what lies in its memory: proof that it arrived, and that it is still there. */
static bw_status verify(bw_xrt_card *c, bw_xrt_image *img, bw_error *err)
{
    const limits l = {NULL, NULL, 30000, 0};
    bw_accel_status s;
    bw_status status = make_io(c, 0, 0, err);
    if (!status)
        status = do_job(c, img, BW_ACCEL_LOAD, 0, 0, &l, &s, err);
    /* A program that was passed by the validator here and not there did not arrive as it was sent. */
    if (!status && (s.program_sum != img->sum[0] || s.constant_sum != img->sum[1]))
        status = bw_fail(err, BW_DEVICE_FAULT, "the %s in the card's memory changed: sum %016llx, expected %016llx",
                         s.program_sum != img->sum[0] ? "program" : "constants",
                         (unsigned long long)(s.program_sum != img->sum[0] ? s.program_sum : s.constant_sum),
                         (unsigned long long)(s.program_sum != img->sum[0] ? img->sum[0] : img->sum[1]));
    return status;
}

static bw_status upload(bw_xrt_card *c, bw_xrt_image *img, bw_error *err)
{
    const bw_program_header *h = img->program->header;
    const uint64_t parts[3] = {img->bytes[0], img->bytes[1], h->act_bytes};
    uint64_t at[4] = {0};
    for (int i = 0; i < 3; i++)
        at[i + 1] = at[i] + bw_xrt_align(parts[i] ? parts[i] : 1);
    bw_status status = bw_xrt_buffer_make(c, at[3], &img->memory, err);
    for (int i = 0; i < 3 && !status; i++)
        status = bw_xrt_buffer_part(c, &img->memory, at[i], at[i + 1] - at[i], &img->part[i], err);
    if (!status) {
        memcpy(img->memory.host, h, img->bytes[0]);
        if (img->bytes[1])
            memcpy(img->memory.host + at[1], img->constants, img->bytes[1]);
        status = sync_buffer(c, &img->memory, XCL_BO_SYNC_BO_TO_DEVICE, at[1] + img->bytes[1], 0, err);
    }
    if (!status)
        status = verify(c, img, err);
    if (status) {
        if (!c->run_pending)
            drop(c, img);
        return status;
    }
    img->generation = c->generation;
    return BW_OK;
}

bw_status bw_xrt_image_load(bw_xrt_card *c, const bw_program *program, const void *constants, bw_xrt_image **image,
                            bw_error *err)
{
    bw_xrt_image *img = calloc(1, sizeof *img);
    if (!img)
        return bw_fail(err, BW_NO_MEMORY, "no memory for an image");
    img->program = program;
    img->constants = constants;
    img->bytes[0] = sizeof *program->header + program->header->instruction_count * sizeof(bw_instruction);
    img->bytes[1] = program->header->const_bytes;
    img->fills_out = bw_program_fills_out(program);
    img->sum[0] = bw_accel_checksum(program->header, img->bytes[0]);
    img->sum[1] = bw_accel_checksum(constants, img->bytes[1]);
    pthread_mutex_lock(&c->lock);
    bw_status status = c->kernel
                           ? upload(c, img, err)
                           : bw_fail(err, BW_UNSUPPORTED,
                                     "card %u is not configured: load a bitstream (blockwave load), or name one in "
                                     "BW_XRT_XCLBIN",
                                     c->index);
    if (!status) {
        img->next = c->images;
        c->images = img;
    } else {
        drop(c, img);
        free(img);
    }
    pthread_mutex_unlock(&c->lock);
    *image = status ? NULL : img;
    return status;
}

void bw_xrt_image_release(bw_xrt_card *c, bw_xrt_image *img)
{
    pthread_mutex_lock(&c->lock);
    for (bw_xrt_image **at = &c->images; *at; at = &(*at)->next)
        if (*at == img) {
            *at = img->next;
            break;
        }
    drop(c, img);
    pthread_mutex_unlock(&c->lock);
    free(img);
}

/* --- runs --------------------------------------------------------------------------------------------------------- */

/* With the lock. */
static bw_status run(bw_xrt_card *c, bw_xrt_image *img, const bw_xrt_job_options *o, const void *in, void *out,
                     uint32_t batch, const limits *l, bw_error *err)
{
    const bw_program_header *h = img->program->header;
    const uint64_t in_bytes = batch * h->in_bytes, out_bytes = batch * h->out_bytes;
    bw_status status = BW_OK;
    if (c->lost || !c->kernel)
        return bw_fail(err, BW_DEVICE_LOST, "card %u %s", c->index, c->lost ? c->lost : "is not configured");
    if (c->needs_reset)
        status = bw_xrt_card_reset(c, err);
    if (status)
        return status;
    if (!img->memory.handle || img->generation != c->generation)
        status = upload(c, img, err); /* another device of the same card has reset it */
    else if (o->scrub && ++img->runs % o->scrub == 0)
        status = verify(c, img, err);
    if (!status)
        status = make_io(c, in_bytes, out_bytes, err);
    if (status)
        return status;
    if (in_bytes)
        memcpy(c->io.host + c->io_in, in, in_bytes);
    status = sync_buffer(c, &c->io, XCL_BO_SYNC_BO_TO_DEVICE, in_bytes, c->io_in, err);
    if (!status && !img->fills_out && out_bytes) {
        memcpy(c->io.host + c->io_out, out, out_bytes);
        status = sync_buffer(c, &c->io, XCL_BO_SYNC_BO_TO_DEVICE, out_bytes, c->io_out, err);
    }
    bw_accel_status s;
    if (!status)
        status = do_job(c, img, BW_ACCEL_RUN, batch, out_bytes, l, &s, err);
    if (status)
        return status;
    img->image_ns =
        img->image_ns && s.busy_ns / batch > img->image_ns ? img->image_ns + img->image_ns / 64 : s.busy_ns / batch;
    if (s.input_sum != bw_accel_checksum(c->io.host + c->io_in, in_bytes))
        return bw_fail(err, BW_DEVICE_FAULT, "run: the card has read another input than it was sent");
    if (s.images != batch || s.output_sum != bw_accel_checksum(c->io.host + c->io_out, out_bytes))
        return bw_fail(err, BW_DEVICE_FAULT, "run: another output came back than the card has written");
    /* The core gives the buffers back to the caller after an abort. */
    if (l->aborted && atomic_load(l->aborted))
        return bw_fail(err, BW_DEVICE_FAULT, "the run was aborted");
    if (out_bytes)
        memcpy(out, c->io.host + c->io_out, out_bytes);
    return BW_OK;
}

bw_status bw_xrt_image_run(bw_xrt_card *c, bw_xrt_image *img, const bw_xrt_job_options *o, const void *in, void *out,
                           uint32_t batch, const atomic_int *cancel, const atomic_int *aborted, bw_error *err)
{
    /* Another device of this card may be running. */
    for (const uint64_t start = bw_now_ns(); pthread_mutex_trylock(&c->lock); back_off(start)) {
        if (atomic_load(cancel))
            return bw_fail(err, BW_CANCELLED, "cancelled while it waited for card %u", c->index);
        if (atomic_load(aborted))
            return bw_fail(err, BW_DEVICE_FAULT, "aborted while it waited for card %u", c->index);
    }
    const limits l = {cancel, aborted, o->timeout_ms, img->image_ns * batch};
    bw_status status = run(c, img, o, in, out, batch, &l, err);
    pthread_mutex_unlock(&c->lock);
    return status;
}
