/* SPDX-License-Identifier: Apache-2.0 */
#include "sim/card/unit.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "hal/base.h"
#include "sim/card/faults.h"
#include "sim/sim.h"

#define REGISTERS  (BW_ACCEL_RANGE / 4)
#define LOADED_MAX 16u
#define SHORT_NS   5000000u

/* A program that has passed the validator. Copies: what the host writes during a job must not reach the engine. */
typedef struct loaded {
    uint64_t at[2], bytes[2]; /* program, constants */
    uint64_t version[2], sum[2];
    void *copy[2];
    bw_program program;
    bw_fast *engine;
    int fills_out;
    uint64_t used;     /* for the oldest to go */
    uint64_t image_ns; /* the last run took so long, per image; 0: none yet */
} loaded;

typedef struct job {
    uint64_t program, constants, activations, input, output, status, program_bytes, constant_bytes;
    uint32_t batch, command, sequence;
    unsigned epoch; /* of the configuration that started it */
} job;

struct bw_card_unit {
    bw_card_memory *memory;
    bw_card_unit_options options;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake, ended;
    atomic_int cancel; /* the engine and fault loops look at it */
    atomic_uint epoch;
    /* Under the lock: */
    int stop, has_job, running, done;
    int at_work;   /* the thread is busy, perhaps with a job that nobody wants any more */
    int short_job; /* `next` is for the thread that serves the registers */
    job next;
    uint32_t registers[REGISTERS]; /* the arguments as written */
    uint64_t build;
    uint32_t health, jobs;
    /* Of whoever carries out jobs: */
    loaded loads[LOADED_MAX];
    uint64_t clock;
    void *in, *out;
    size_t in_room, out_room;
};

/* --- programs ----------------------------------------------------------------------------------------------------- */

static void unload(loaded *l)
{
    if (l->engine)
        bw_fast_destroy(l->engine);
    free(l->copy[0]);
    free(l->copy[1]);
    memset(l, 0, sizeof *l);
}

/* The sums say what lies in the memory, also if it is refused. */
static bw_accel_code load(bw_card_unit *u, const job *j, loaded *l, bw_error *err)
{
    const uint64_t at[2] = {j->program, j->constants}, bytes[2] = {j->program_bytes, j->constant_bytes};
    for (int i = 0; i < 2; i++) {
        l->at[i] = at[i];
        l->bytes[i] = bytes[i];
        l->version[i] = bw_card_memory_version(u->memory, at[i], bytes[i]);
        l->copy[i] = bw_aligned_zalloc(bytes[i] ? bytes[i] : 1);
        if (!l->copy[i])
            return bw_fail(err, BW_NO_MEMORY, "no memory for %llu bytes of a program", (unsigned long long)bytes[i]),
                   BW_ACCEL_NO_MEMORY;
        if (bw_card_memory_read(u->memory, at[i], l->copy[i], bytes[i]) == BW_CARD_ACCESS_ECC)
            return bw_fail(err, BW_DEVICE_FAULT, "uncorrectable error in the memory of the %s",
                           i ? "constants" : "program"),
                   BW_ACCEL_MEMORY;
        l->sum[i] = bw_accel_checksum(l->copy[i], bytes[i]);
    }
    bw_status status = bw_program_parse(l->copy[0], l->bytes[0], &l->program, err);
    if (!status)
        status = bw_program_check_constants(&l->program, l->copy[1], l->bytes[1], err);
    if (status == BW_NO_MEMORY)
        return BW_ACCEL_NO_MEMORY;
    if (status)
        return BW_ACCEL_BAD_PROGRAM;
    l->fills_out = bw_program_fills_out(&l->program);
    status = bw_fast_create(&l->program, l->copy[1], NULL, &l->engine, err);
    return status == BW_OK ? BW_ACCEL_OK : status == BW_NO_MEMORY ? BW_ACCEL_NO_MEMORY : BW_ACCEL_INTERNAL;
}

static int is_loaded(bw_card_unit *u, const loaded *l, const job *j)
{
    return l->engine && l->at[0] == j->program && l->at[1] == j->constants && l->bytes[0] == j->program_bytes &&
           l->bytes[1] == j->constant_bytes &&
           l->version[0] == bw_card_memory_version(u->memory, l->at[0], l->bytes[0]) &&
           l->version[1] == bw_card_memory_version(u->memory, l->at[1], l->bytes[1]);
}

static bw_accel_code find_loaded(bw_card_unit *u, const job *j, loaded **out, uint64_t sum[2], bw_error *err)
{
    loaded *oldest = &u->loads[0];
    for (unsigned i = 0; i < LOADED_MAX; i++) {
        loaded *l = &u->loads[i];
        /* LOAD reads the memory again: what it reports must be what lies there now. */
        if (j->command == BW_ACCEL_RUN && is_loaded(u, l, j)) {
            l->used = ++u->clock;
            *out = l;
            return BW_ACCEL_OK;
        }
        if (l->engine && l->at[0] == j->program) {
            oldest = l;
            break;
        }
        if (l->used < oldest->used)
            oldest = l;
    }
    unload(oldest);
    bw_accel_code code = load(u, j, oldest, err);
    sum[0] = oldest->sum[0];
    sum[1] = oldest->sum[1];
    if (code)
        unload(oldest);
    else
        oldest->used = ++u->clock;
    *out = oldest;
    return code;
}

/* --- jobs --------------------------------------------------------------------------------------------------------- */

static int room_for(void **buffer, size_t *room, uint64_t bytes)
{
    if (bytes <= *room)
        return 0;
    free(*buffer);
    *buffer = bw_aligned_zalloc(bytes);
    *room = *buffer ? bytes : 0;
    return *buffer ? 0 : -1;
}

static void pause_1ms(void)
{
    nanosleep(&(struct timespec){0, 1000000}, NULL);
}

static int unwanted(bw_card_unit *u, const job *j)
{
    return atomic_load(&u->cancel) || atomic_load(&u->epoch) != j->epoch;
}

/* Faults of a job. A job that hangs ends by an abort or another configuration, a frozen one only by the latter. */
static bw_accel_code inject(bw_card_unit *u, const job *j, bw_error *err)
{
    const char *dir = u->options.faults;
    const int card = u->options.card;
    unsigned ms = 0;
    if (!dir)
        return BW_ACCEL_OK;
    if (bw_card_fault(dir, card, "die", NULL))
        raise(SIGKILL);
    if (bw_card_fault(dir, card, "exit", NULL))
        _exit(3);
    if (bw_card_fault(dir, card, "ecc", NULL))
        bw_card_memory_spoil(u->memory, j->constant_bytes ? j->constants + j->constant_bytes / 2 : j->program, 1);
    if (bw_card_fault(dir, card, "flip", NULL))
        bw_card_memory_spoil(u->memory, j->constant_bytes ? j->constants + j->constant_bytes / 2 : j->program, 0);
    if (bw_card_fault(dir, card, "error", NULL))
        return bw_fail(err, BW_DEVICE_FAULT, "fault to order"), BW_ACCEL_INTERNAL;
    if (bw_card_fault(dir, card, "delay", &ms))
        for (const uint64_t end = bw_now_ns() + ms * UINT64_C(1000000); bw_now_ns() < end && !unwanted(u, j);)
            pause_1ms();
    if (bw_card_fault(dir, card, "hang", NULL))
        while (!unwanted(u, j))
            pause_1ms();
    if (bw_card_fault(dir, card, "freeze", NULL))
        while (atomic_load(&u->epoch) == j->epoch)
            pause_1ms();
    return unwanted(u, j) ? BW_ACCEL_ABORTED : BW_ACCEL_OK;
}

static bw_accel_code check_buffers(bw_card_unit *u, const job *j, const bw_program_header *h, bw_error *err)
{
    const uint64_t limit = bw_card_memory_size(u->memory);
    uint64_t in = 0, out = 0, act = 0;
    if (h) {
        if (j->batch == 0 || (h->in_bytes && j->batch > limit / h->in_bytes) ||
            (h->out_bytes && j->batch > limit / h->out_bytes))
            return bw_fail(err, BW_INVALID_ARGUMENT, "a batch of %u does not fit", j->batch), BW_ACCEL_BAD_ADDRESS;
        in = j->batch * h->in_bytes;
        out = j->batch * h->out_bytes;
        act = h->act_bytes;
    }
    const struct {
        const char *name;
        uint64_t at, bytes;
    } buffers[] = {{"program", j->program, j->program_bytes},
                   {"constants", j->constants, j->constant_bytes},
                   {"activations", j->activations, act},
                   {"input", j->input, in},
                   {"output", j->output, out},
                   {"status", j->status, sizeof(bw_accel_status)}};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) {
        if (i >= 2 && i <= 4 && !h)
            continue;
        if (buffers[i].at % 64 || bw_card_memory_check(u->memory, buffers[i].at, buffers[i].bytes))
            return bw_fail(err, BW_INVALID_ARGUMENT,
                           "%s: %llu bytes at 0x%llx lie in no buffer of the host, or unaligned", buffers[i].name,
                           (unsigned long long)buffers[i].bytes, (unsigned long long)buffers[i].at),
                   BW_ACCEL_BAD_ADDRESS;
    }
    return BW_ACCEL_OK;
}

static bw_accel_code run(bw_card_unit *u, const job *j, bw_accel_status *s, bw_error *err)
{
    loaded *l;
    uint64_t sum[2];
    bw_accel_code code = find_loaded(u, j, &l, sum, err);
    if (!code)
        code = check_buffers(u, j, l->program.header, err);
    if (code)
        return code;
    const uint64_t in = j->batch * l->program.header->in_bytes, out = j->batch * l->program.header->out_bytes;
    if (room_for(&u->in, &u->in_room, in) || room_for(&u->out, &u->out_room, out))
        return bw_fail(err, BW_NO_MEMORY, "no memory for a batch of %u", j->batch), BW_ACCEL_NO_MEMORY;
    if (bw_card_memory_read(u->memory, j->input, u->in, in))
        return bw_fail(err, BW_DEVICE_FAULT, "uncorrectable error in the memory of the input"), BW_ACCEL_MEMORY;
    if (!l->fills_out && bw_card_memory_read(u->memory, j->output, u->out, out))
        return bw_fail(err, BW_DEVICE_FAULT, "uncorrectable error in the memory of the output"), BW_ACCEL_MEMORY;
    s->input_sum = bw_accel_checksum(u->in, in);
    const uint64_t start = bw_now_ns();
    bw_status status = bw_fast_run(l->engine, u->in, u->out, j->batch, &u->cancel, err);
    if (status)
        return status == BW_CANCELLED   ? BW_ACCEL_ABORTED
               : status == BW_NO_MEMORY ? BW_ACCEL_NO_MEMORY
                                        : BW_ACCEL_INTERNAL;
    l->image_ns = (bw_now_ns() - start) / j->batch + 1;
    s->output_sum = bw_accel_checksum(u->out, out);
    s->images = j->batch;
    pthread_mutex_lock(&u->lock);
    if (atomic_load(&u->epoch) == j->epoch)
        bw_card_memory_write(u->memory, j->output, u->out, out);
    pthread_mutex_unlock(&u->lock);
    return BW_ACCEL_OK;
}

static bw_accel_code carry_out(bw_card_unit *u, const job *j, bw_accel_status *s, bw_error *err)
{
    bw_accel_code code = check_buffers(u, j, NULL, err);
    if (!code)
        code = inject(u, j, err);
    if (code)
        return code;
    if (j->command == BW_ACCEL_RUN)
        return run(u, j, s, err);
    if (j->command != BW_ACCEL_LOAD)
        return bw_fail(err, BW_INVALID_ARGUMENT, "command %u, expected LOAD or RUN", j->command), BW_ACCEL_BAD_COMMAND;
    loaded *l;
    uint64_t sum[2] = {0, 0};
    code = find_loaded(u, j, &l, sum, err);
    s->program_sum = sum[0];
    s->constant_sum = sum[1];
    return code;
}

/* The lock is not held. */
static void finish_job(bw_card_unit *u, const job *j)
{
    bw_accel_status s;
    memset(&s, 0, sizeof s);
    s.magic = BW_ACCEL_STATUS_MAGIC;
    s.sequence = j->sequence;
    bw_error err = {BW_OK, ""};
    const uint64_t start = bw_now_ns();
    s.code = (uint32_t)carry_out(u, j, &s, &err);
    s.busy_ns = bw_now_ns() - start;
    if (s.code)
        snprintf(s.message, sizeof s.message, "%.191s", err.message);
    pthread_mutex_lock(&u->lock);
    if (s.code == BW_ACCEL_MEMORY)
        u->health |= BW_ACCEL_HEALTH_ECC;
    if (atomic_load(&u->epoch) == j->epoch) {
        bw_card_memory_write(u->memory, j->status, &s, sizeof s);
        u->jobs++;
        u->running = 0;
        u->done = 1;
        pthread_cond_signal(&u->ended);
    }
    pthread_mutex_unlock(&u->lock);
}

static void *unit_main(void *user)
{
    bw_card_unit *u = user;
    pthread_mutex_lock(&u->lock);
    for (;;) {
        while (!u->stop && !u->has_job)
            pthread_cond_wait(&u->wake, &u->lock);
        if (u->stop)
            break;
        job j = u->next;
        u->has_job = 0;
        u->at_work = 1;
        pthread_mutex_unlock(&u->lock);
        finish_job(u, &j);
        pthread_mutex_lock(&u->lock);
        u->at_work = 0;
    }
    pthread_mutex_unlock(&u->lock);
    return NULL;
}

/* --- registers ---------------------------------------------------------------------------------------------------- */

static uint64_t wide(const bw_card_unit *u, uint32_t offset)
{
    return u->registers[offset / 4] | (uint64_t)u->registers[offset / 4 + 1] << 32;
}

/* A run that is known to be short is not worth waking a thread for. Not if faults are to order: it could hang. The lock
 * is held, and nobody is at work. */
static int is_short(bw_card_unit *u, const job *j)
{
    for (unsigned i = 0; i < LOADED_MAX && !u->options.faults && j->command == BW_ACCEL_RUN; i++)
        if (is_loaded(u, &u->loads[i], j))
            return u->loads[i].image_ns && j->batch <= SHORT_NS / u->loads[i].image_ns;
    return 0;
}

/* The lock is held. */
static void start(bw_card_unit *u)
{
    if (u->running || !u->build)
        return;
    u->next = (job){.program = wide(u, BW_ACCEL_AT_PROGRAM),
                    .constants = wide(u, BW_ACCEL_AT_CONSTANTS),
                    .activations = wide(u, BW_ACCEL_AT_ACTIVATIONS),
                    .input = wide(u, BW_ACCEL_AT_INPUT),
                    .output = wide(u, BW_ACCEL_AT_OUTPUT),
                    .status = wide(u, BW_ACCEL_AT_STATUS),
                    .program_bytes = wide(u, BW_ACCEL_AT_PROGRAM_BYTES),
                    .constant_bytes = wide(u, BW_ACCEL_AT_CONSTANT_BYTES),
                    .batch = u->registers[BW_ACCEL_AT_BATCH / 4],
                    .command = u->registers[BW_ACCEL_AT_COMMAND / 4],
                    .sequence = u->registers[BW_ACCEL_AT_SEQUENCE / 4],
                    .epoch = atomic_load(&u->epoch)};
    u->short_job = u->options.inline_jobs || (!u->at_work && is_short(u, &u->next));
    u->has_job = !u->short_job;
    u->running = 1;
    u->done = 0;
    atomic_store(&u->cancel, 0);
    if (u->has_job)
        pthread_cond_signal(&u->wake);
}

void bw_card_unit_work(bw_card_unit *u)
{
    pthread_mutex_lock(&u->lock);
    const int now = u->short_job;
    const job j = u->next;
    u->short_job = 0;
    pthread_mutex_unlock(&u->lock);
    if (now)
        finish_job(u, &j);
}

void bw_card_unit_write(bw_card_unit *u, uint32_t offset, uint32_t value)
{
    pthread_mutex_lock(&u->lock);
    if (offset == BW_ACCEL_CTRL) {
        if (value & BW_ACCEL_CTRL_START)
            start(u);
    } else if (offset == BW_ACCEL_AT_ABORT) {
        if (value & 1 && u->running)
            atomic_store(&u->cancel, 1);
    } else if (offset < BW_ACCEL_ARGS_END) {
        u->registers[offset / 4] = value;
    }
    pthread_mutex_unlock(&u->lock);
}

/* The host asks as fast as it can: an answer just after the end of the job is worth more than many before. The lock is
 * held. */
static void wait_a_moment(bw_card_unit *u)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += 1000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    while (u->running && pthread_cond_timedwait(&u->ended, &u->lock, &until) == 0)
        ;
}

uint32_t bw_card_unit_read(bw_card_unit *u, uint32_t offset)
{
    uint32_t value = 0;
    if (offset == BW_ACCEL_CTRL)
        bw_card_unit_work(u);
    pthread_mutex_lock(&u->lock);
    switch (offset) {
    case BW_ACCEL_CTRL:
        if (u->running)
            wait_a_moment(u);
        if (u->running)
            value = BW_ACCEL_CTRL_START;
        else
            value = BW_ACCEL_CTRL_IDLE | (u->done ? BW_ACCEL_CTRL_DONE | BW_ACCEL_CTRL_READY : 0);
        u->done = 0;
        break;
    case BW_ACCEL_AT_MAGIC:
        value = u->build ? BW_ACCEL_MAGIC : 0;
        break;
    case BW_ACCEL_AT_ISA:
        value = u->build ? BW_ISA_VERSION : 0;
        break;
    case BW_ACCEL_AT_BUILD:
        value = (uint32_t)u->build;
        break;
    case BW_ACCEL_AT_BUILD + 4:
        value = (uint32_t)(u->build >> 32);
        break;
    case BW_ACCEL_AT_HEALTH:
        value = u->health;
        break;
    case BW_ACCEL_AT_JOBS:
        value = u->jobs;
        break;
    default:
        if (offset < BW_ACCEL_ARGS_END)
            value = u->registers[offset / 4];
    }
    pthread_mutex_unlock(&u->lock);
    return value;
}

void bw_card_unit_configure(bw_card_unit *u, uint64_t build)
{
    pthread_mutex_lock(&u->lock);
    atomic_store(&u->cancel, 1);
    atomic_fetch_add(&u->epoch, 1);
    memset(u->registers, 0, sizeof u->registers);
    u->has_job = u->short_job = u->running = u->done = 0;
    u->health = u->jobs = 0;
    u->build = build;
    pthread_mutex_unlock(&u->lock);
}

/* --- life --------------------------------------------------------------------------------------------------------- */

bw_status bw_card_unit_create(bw_card_memory *memory, const bw_card_unit_options *options, bw_card_unit **unit,
                              bw_error *err)
{
    *unit = NULL;
    bw_card_unit *u = calloc(1, sizeof *u);
    if (!u)
        return bw_fail(err, BW_NO_MEMORY, "no memory for a compute unit");
    u->memory = memory;
    u->options = *options;
    pthread_mutex_init(&u->lock, NULL);
    pthread_cond_init(&u->wake, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&u->ended, &attr);
    pthread_condattr_destroy(&attr);
    int code = options->inline_jobs ? 0 : pthread_create(&u->thread, NULL, unit_main, u);
    if (code) {
        pthread_mutex_destroy(&u->lock);
        pthread_cond_destroy(&u->wake);
        pthread_cond_destroy(&u->ended);
        free(u);
        return bw_fail(err, BW_EXHAUSTED, "cannot start the compute unit's thread: error %d", code);
    }
    *unit = u;
    return BW_OK;
}

void bw_card_unit_destroy(bw_card_unit *u)
{
    if (!u)
        return;
    bw_card_unit_configure(u, 0);
    pthread_mutex_lock(&u->lock);
    u->stop = 1;
    pthread_cond_signal(&u->wake);
    pthread_mutex_unlock(&u->lock);
    if (!u->options.inline_jobs)
        pthread_join(u->thread, NULL);
    for (unsigned i = 0; i < LOADED_MAX; i++)
        unload(&u->loads[i]);
    free(u->in);
    free(u->out);
    pthread_mutex_destroy(&u->lock);
    pthread_cond_destroy(&u->wake);
    pthread_cond_destroy(&u->ended);
    free(u);
}
