/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device conformance suite: every device that the HAL sees computes the same bits as the reference interpreter, on
 * random programs within what it offers, and keeps the HAL's promises. BW_DEVICES="URI URI..." chooses other devices;
 * BW_LONG runs more programs. A backend that cannot be used is a SKIP with its reason.
 */
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "hal/base.h"
#include "hal/hal.h"
#include "sim/sim.h"
#include "tests/support/compare.h"
#include "tests/support/devices.h"
#include "tests/support/random_program.h"

#define MS UINT64_C(1000000)

static bw_device *open_device(void **state)
{
    bw_device *dev;
    bw_error err = {BW_OK, ""};
    if (bw_device_open(*state, &dev, &err))
        fail_msg("%s", err.message);
    return dev;
}

static bw_device_state state_of(bw_device *dev)
{
    bw_device_state s;
    bw_error why = {BW_OK, ""};
    if (bw_device_state_get(dev, &s, &why))
        fail_msg("%s", why.message);
    return s;
}

static bw_device_info info_of(bw_device *dev)
{
    bw_device_info info;
    bw_error err = {BW_OK, ""};
    if (bw_device_info_get(dev, &info, &err))
        fail_msg("%s", err.message);
    return info;
}

/* A random program that the device can run. Returns 0. Used from several threads: no assertions. */
static int random_case(bw_device *dev, uint64_t seed, struct bw_random_case *c)
{
    bw_device_info info;
    if (bw_device_info_get(dev, &info, NULL))
        return -1;
    struct bw_random_options options = {
        .opcodes = info.offers.opcodes, .formats = info.offers.formats, .blocks = info.offers.blocks, .max_batch = 4};
    return bw_random_case_make(seed, &options, c);
}

static void make_case(bw_device *dev, uint64_t seed, struct bw_random_case *c)
{
    if (random_case(dev, seed, c))
        fail_msg("seed %llu: no program", (unsigned long long)seed);
}

static bw_status run_on_device(const bw_compare_engine *engine, const bw_program *program, const void *constants,
                               const void *in, void *out, uint32_t batch, bw_error *err)
{
    bw_image *image;
    size_t size = sizeof *program->header + program->header->instruction_count * sizeof(bw_instruction);
    bw_status status =
        bw_image_load(engine->user, program->header, size, constants, program->header->const_bytes, &image, err);
    if (status)
        return status;
    status = bw_image_run(image, in, out, batch, 0, err);
    bw_image_release(image);
    return status;
}

/* --- tests ------------------------------------------------------------------------------------------------------ */

static void describes_itself(void **state)
{
    bw_device *dev = open_device(state);
    bw_device_info info = info_of(dev);
    assert_string_equal(info.uri, *state);
    assert_true(info.name[0] && info.part[0]);
    assert_int_equal(strlen(info.interface_id), 36);
    assert_int_equal(info.offers.isa_version, BW_ISA_VERSION);
    assert_true(info.offers.formats && info.offers.opcodes && info.offers.blocks);
    assert_true(strlen(info.address) < sizeof info.address);
    bw_device_state s = state_of(dev);
    assert_int_equal(s.health, BW_HEALTH_OK);
    assert_string_equal(s.reason, "");
    assert_int_equal(s.queued + s.runs + s.inferences + s.images + s.faults + s.resets + s.memory_used, 0);
    bw_sensors sensors;
    bw_error err = {BW_OK, ""};
    assert_int_equal(bw_device_sensors_get(&info, &sensors, &err), BW_OK);
    /* Unknown, or what a device that works can show. */
    assert_true(isnan(sensors.temperature_c) || (sensors.temperature_c > -60 && sensors.temperature_c < 200));
    assert_true(isnan(sensors.power_w) || (sensors.power_w > 0 && sensors.power_w < 2000));
    bw_device_close(dev);
}

static void same_bits_as_the_reference(void **state)
{
    bw_device *dev = open_device(state);
    bw_compare_engine reference = {.name = "reference", .run = bw_compare_reference};
    bw_compare_engine device = {.name = *state, .run = run_on_device, .user = dev};
    const unsigned programs = getenv("BW_LONG") ? 1500 : 80;
    for (uint64_t seed = 1; seed <= programs; seed++) {
        struct bw_random_case c;
        bw_program program;
        bw_error err = {BW_OK, ""};
        char report[BW_COMPARE_REPORT];
        make_case(dev, seed, &c);
        if (bw_program_parse(c.program, c.program_size, &program, &err))
            fail_msg("seed %llu: %s", (unsigned long long)seed, err.message);
        bw_compare_case compared = {&program, c.constants, c.in, c.batch};
        if (bw_compare_engines(&compared, &reference, &device, report))
            fail_msg("seed %llu: %s", (unsigned long long)seed, report);
        bw_random_case_free(&c);
    }
    assert_int_equal(state_of(dev).faults, 0);
    assert_int_equal(state_of(dev).memory_used, 0);
    bw_device_close(dev);
}

/* One loaded program with what the reference makes of it. */
typedef struct work {
    struct bw_random_case c;
    bw_image *image;
    char *expected;
    size_t bytes;
} work;

/* Used from several threads: no assertions. */
static bw_status load_work(bw_device *dev, uint64_t seed, work *w, bw_error *err)
{
    if (random_case(dev, seed, &w->c))
        return bw_fail(err, BW_INTERNAL, "no program");
    w->bytes = w->c.batch * w->c.out_bytes;
    w->expected = malloc(w->bytes);
    bw_status status =
        bw_image_load(dev, w->c.program, w->c.program_size, w->c.constants, w->c.constants_size, &w->image, err);
    if (!status && w->expected)
        status = bw_reference_run(bw_image_program(w->image), w->c.constants, w->c.in, w->expected, w->c.batch, err);
    return status ? status : w->expected ? BW_OK : bw_fail(err, BW_NO_MEMORY, "no memory");
}

static void make_work(bw_device *dev, uint64_t seed, work *w)
{
    bw_error err = {BW_OK, ""};
    if (load_work(dev, seed, w, &err))
        fail_msg("seed %llu: %s", (unsigned long long)seed, err.message);
}

static void free_work(work *w)
{
    bw_image_release(w->image);
    bw_random_case_free(&w->c);
    free(w->expected);
}

#define IMAGES 3

/* Many runs of several images in flight, waited for in any order. */
static void many_runs_in_flight(void **state)
{
    bw_device *dev = open_device(state);
    work works[IMAGES];
    for (int i = 0; i < IMAGES; i++)
        make_work(dev, 1000 + (uint64_t)i, &works[i]);
    enum { RUNS = 30 };
    bw_fence *fences[RUNS];
    char *outs[RUNS];
    bw_error err = {BW_OK, ""};
    for (int k = 0; k < RUNS; k++) {
        work *w = &works[k % IMAGES];
        outs[k] = calloc(1, w->bytes);
        assert_non_null(outs[k]);
        if (bw_image_submit(w->image, w->c.in, outs[k], w->c.batch, &fences[k], &err))
            fail_msg("run %d: %s", k, err.message);
    }
    for (int k = RUNS - 1; k >= 0; k--) {
        uint64_t queued, running;
        if (bw_fence_wait(fences[k], 60000 * MS, &err))
            fail_msg("run %d: %s", k, err.message);
        bw_fence_times(fences[k], &queued, &running);
        assert_true(running > 0);
        if (memcmp(outs[k], works[k % IMAGES].expected, works[k % IMAGES].bytes) != 0)
            fail_msg("run %d of image %d: other bits than the reference", k, k % IMAGES);
        bw_fence_release(fences[k]);
        free(outs[k]);
    }
    assert_int_equal(state_of(dev).runs, RUNS);
    for (int i = 0; i < IMAGES; i++)
        free_work(&works[i]);
    bw_device_close(dev);
}

typedef struct caller {
    const char *uri;
    uint64_t seed;
    int failures;
} caller;

/* A user of its own: opens, loads, runs, now and then gives up, closes. */
static void *use_device(void *user)
{
    caller *c = user;
    bw_device *dev;
    if (bw_device_open(c->uri, &dev, NULL)) {
        c->failures = 1000;
        return NULL;
    }
    work w;
    if (load_work(dev, c->seed, &w, NULL)) {
        c->failures = 1000;
        return NULL;
    }
    char *out = malloc(w.bytes);
    for (int i = 0; i < 12 && out; i++) {
        bw_fence *fence;
        if (i % 4 == 3) { /* not wanted any more: whatever it did, the buffer is ours again */
            if (bw_image_submit(w.image, w.c.in, out, w.c.batch, &fence, NULL) == BW_OK)
                bw_fence_release(fence);
            continue;
        }
        memset(out, 0xee, w.bytes);
        c->failures += bw_image_run(w.image, w.c.in, out, w.c.batch, 0, NULL) || memcmp(out, w.expected, w.bytes) != 0;
    }
    free(out);
    free_work(&w);
    bw_device_close(dev);
    return NULL;
}

static void several_users(void **state)
{
    pthread_t threads[4];
    caller callers[4];
    for (int i = 0; i < 4; i++) {
        callers[i] = (caller){*state, 2000 + (uint64_t)i, 0};
        assert_int_equal(pthread_create(&threads[i], NULL, use_device, &callers[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(callers[i].failures, 0);
    }
}

/* --- with a second device in the process -------------------------------------------------------------------------- */

typedef struct pair_caller {
    const char *uris[2];
    uint64_t seed;
    int failures, faults, right;
} pair_caller;

/* Opens both devices, loads an image on each, runs them in turn, closes. While others reset, a run may end with
 * BW_DEVICE_FAULT, and nothing else; bits are right or there are none. */
static void *use_both(void *user)
{
    pair_caller *c = user;
    for (int round = 0; round < 3 && !c->failures; round++) {
        bw_device *devs[2] = {NULL, NULL};
        work works[2];
        memset(works, 0, sizeof works);
        for (int d = 0; d < 2 && !c->failures; d++)
            c->failures += bw_device_open(c->uris[d], &devs[d], NULL) ||
                           load_work(devs[d], c->seed + (uint64_t)(2 * round + d), &works[d], NULL);
        for (int i = 0; i < 16 && !c->failures; i++) {
            work *w = &works[i % 2];
            char *out = calloc(1, w->bytes ? w->bytes : 1);
            bw_status status = out ? bw_image_run(w->image, w->c.in, out, w->c.batch, 0, NULL) : BW_NO_MEMORY;
            c->faults += status == BW_DEVICE_FAULT;
            c->right += status == BW_OK;
            c->failures += status == BW_OK ? memcmp(out, w->expected, w->bytes) != 0 : status != BW_DEVICE_FAULT;
            free(out);
        }
        for (int d = 0; d < 2; d++) {
            free_work(&works[d]);
            bw_device_close(devs[d]);
        }
    }
    return NULL;
}

typedef struct resetter {
    bw_device *dev;
    atomic_int go;
    int failures, resets;
} resetter;

static void *reset_often(void *user)
{
    resetter *r = user;
    while (atomic_load(&r->go)) {
        r->failures += bw_device_reset(r->dev, NULL) != BW_OK;
        r->resets++;
        nanosleep(&(struct timespec){0, 3000000}, NULL);
    }
    return NULL;
}

static void two_devices_four_threads(void **state)
{
    for (int resets = 0; resets < 2; resets++) {
        pthread_t threads[4], reset_thread;
        pair_caller callers[4];
        resetter r = {.dev = open_device(state), .go = 1};
        if (resets)
            assert_int_equal(pthread_create(&reset_thread, NULL, reset_often, &r), 0);
        for (int i = 0; i < 4; i++) {
            callers[i] = (pair_caller){.uris = {*state, "sim:u250?threads=2"}, .seed = 5000 + 10 * (uint64_t)i};
            assert_int_equal(pthread_create(&threads[i], NULL, use_both, &callers[i]), 0);
        }
        int right = 0;
        for (int i = 0; i < 4; i++) {
            pthread_join(threads[i], NULL);
            assert_int_equal(callers[i].failures, 0);
            right += callers[i].right;
            if (!resets)
                assert_int_equal(callers[i].faults, 0);
        }
        atomic_store(&r.go, 0);
        if (resets) {
            pthread_join(reset_thread, NULL);
            assert_int_equal(r.failures, 0);
            assert_true(r.resets > 0);
        }
        assert_true(right > 0);
        bw_device_close(r.dev);
    }
}

static void reset_keeps_images_usable(void **state)
{
    bw_device *dev = open_device(state);
    work w;
    make_work(dev, 3000, &w);
    char *out = malloc(w.bytes);
    assert_non_null(out);
    for (int i = 0; i < 3; i++) {
        bw_error err = {BW_OK, ""};
        memset(out, 0xee, w.bytes);
        if (bw_image_run(w.image, w.c.in, out, w.c.batch, 0, &err))
            fail_msg("after %d resets: %s", i, err.message);
        assert_memory_equal(out, w.expected, w.bytes);
        if (bw_device_reset(dev, &err))
            fail_msg("%s", err.message);
        assert_int_equal(state_of(dev).health, BW_HEALTH_OK);
        assert_int_equal(state_of(dev).resets, i + 1);
    }
    free(out);
    free_work(&w);
    bw_device_close(dev);
}

/* A device never runs what the validator has not passed. */
static void refuses_illegal_programs(void **state)
{
    bw_device *dev = open_device(state);
    struct bw_random_case c;
    make_case(dev, 4000, &c);
    bw_image *image;
    bw_error err = {BW_OK, ""};
    bw_instruction *ins = (bw_instruction *)(c.program + sizeof(bw_program_header));
    uint64_t codes = ins->in.codes;
    ins->in.codes = UINT64_MAX - 63;
    assert_int_equal(bw_image_load(dev, c.program, c.program_size, c.constants, c.constants_size, &image, &err),
                     BW_CORRUPT);
    assert_null(image);
    ins->in.codes = codes;
    assert_int_equal(bw_image_load(dev, c.program, c.program_size - 1, c.constants, c.constants_size, &image, &err),
                     BW_CORRUPT);
    ((bw_program_header *)c.program)->isa_version++;
    assert_int_equal(bw_image_load(dev, c.program, c.program_size, c.constants, c.constants_size, &image, &err),
                     BW_VERSION_MISMATCH);
    assert_int_equal(state_of(dev).memory_used, 0);
    bw_random_case_free(&c);
    bw_device_close(dev);
}

/* ------------------------------------------------------------------------------------------------------------------ */

int main(void)
{
    static const struct bw_test_case cases[] = {
        {"describes itself", describes_itself},
        {"same bits as the reference", same_bits_as_the_reference},
        {"many runs in flight", many_runs_in_flight},
        {"several users", several_users},
        {"two devices, four threads", two_devices_four_threads},
        {"reset keeps images usable", reset_keeps_images_usable},
        {"refuses illegal programs", refuses_illegal_programs},
    };
    /* The devices that are found use all threads and the best instruction set: other ways to the same bits. */
    static const char *const more[] = {"sim:?threads=1&isa=portable", "sim:u250?threads=3", NULL};
    return bw_test_devices_main("devices", cases, sizeof cases / sizeof *cases, more);
}
