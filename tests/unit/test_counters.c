/* SPDX-License-Identifier: Apache-2.0 */
/* What the HAL says of a device while it is used: counters, health with its reason, sensors. On a scripted backend. */
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "hal/base.h"
#include "tests/support/stub_backend.h"

#define MS              UINT64_C(1000000)
#define assert_ok(e)    check_status(e, BW_OK, &err, #e, __LINE__)
#define assert_is(s, e) check_status(e, s, &err, #e, __LINE__)

static bw_error err;
static bw_device *dev;
static bw_image *img;
static float in[4 * STUB_FLOATS], out[4 * STUB_FLOATS];

static void check_status(bw_status got, bw_status expected, const bw_error *e, const char *what, int line)
{
    if (got != expected)
        fail_msg("line %d: %s is %s ('%s'), expected %s", line, what, bw_status_name(got), e->message,
                 bw_status_name(expected));
}

static bw_image *load(void)
{
    size_t size;
    const void *program = stub_program(&size);
    bw_image *image;
    assert_ok(bw_image_load(dev, program, size, NULL, 0, &image, &err));
    return image;
}

static int setup(void **state)
{
    (void)state;
    stub_clear();
    if (bw_device_open("stub:0", &dev, &err))
        return -1;
    img = load();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    bw_image_release(img);
    bw_device_close(dev);
    return stub.opens == stub.closes && stub.loads == stub.releases ? 0 : -1;
}

static bw_device_state now(void)
{
    bw_device_state s;
    assert_ok(bw_device_state_get(dev, &s, &err));
    return s;
}

/* Once a reset under way is over. */
static bw_device_state settled(void)
{
    bw_device_state s = now();
    for (int i = 0; s.health == BW_HEALTH_RESETTING && i < 5000; i++) {
        usleep(1000);
        s = now();
    }
    return s;
}

static bw_status run(uint32_t batch)
{
    return bw_image_run(img, in, out, batch, 0, &err);
}

/* Every counter that is not named must be as it was. */
#define CHECK(name)                                                                                                    \
    if (s.name - before.name != more.name)                                                                             \
    fail_msg("line %d: %s went from %llu to %llu, expected %llu more", line, #name, (unsigned long long)before.name,   \
             (unsigned long long)s.name, (unsigned long long)more.name)
static bw_device_state grown(bw_device_state before, bw_device_state more, int line)
{
    bw_device_state s = settled();
    CHECK(runs);
    CHECK(inferences);
    CHECK(images);
    CHECK(faults);
    CHECK(resets);
    CHECK(evictions);
    CHECK(memory_used);
    assert_int_equal(s.queued, 0);
    assert_true(more.runs ? s.busy_ns > before.busy_ns : s.busy_ns == before.busy_ns);
    return s;
}
#define assert_grown(before, ...) grown(before, (bw_device_state){__VA_ARGS__}, __LINE__)

static void each_counter_counts_its_own(void **state)
{
    (void)state;
    bw_device_state s = now();
    assert_int_equal(s.images, 1);
    assert_int_equal(s.runs + s.inferences + s.faults + s.resets + s.evictions + s.busy_ns, 0);
    const uint64_t each = s.memory_used;
    assert_true(each > 0);

    assert_ok(run(1));
    s = assert_grown(s, .runs = 1, .inferences = 1);
    assert_ok(run(4));
    s = assert_grown(s, .runs = 1, .inferences = 4);

    bw_image *second = load();
    s = assert_grown(s, .images = 1, .memory_used = each);

    /* A run that fails: a fault and a reset; the images come back when they run. */
    stub.status = BW_DEVICE_FAULT;
    stub.once = 1;
    stub.action = STUB_FAIL;
    assert_is(BW_DEVICE_FAULT, run(3));
    s = assert_grown(s, .runs = 1, .faults = 1, .resets = 1, .memory_used = -2 * each);
    assert_int_equal(s.health, BW_HEALTH_OK);
    assert_string_equal(s.reason, "");
    assert_ok(run(2));
    s = assert_grown(s, .runs = 1, .inferences = 2, .memory_used = each);

    /* A run that the device had no memory for is no fault. */
    stub.status = BW_NO_MEMORY;
    stub.once = 1;
    stub.action = STUB_FAIL;
    assert_is(BW_NO_MEMORY, run(1));
    s = assert_grown(s, .runs = 1);

    /* What is refused does not count at all. */
    assert_is(BW_INVALID_ARGUMENT, run(0));
    s = assert_grown(s, .runs = 0);

    /* A reset that is asked for is no fault. */
    assert_ok(bw_device_reset(dev, &err));
    s = assert_grown(s, .resets = 1, .memory_used = -each);

    /* Evictions: a budget for one image. */
    assert_ok(bw_device_set_budget(dev, each, &err));
    assert_ok(run(1));
    s = assert_grown(s, .runs = 1, .inferences = 1, .memory_used = each);
    assert_int_equal(s.memory_budget, each);
    assert_ok(bw_image_run(second, in, out, 1, 0, &err));
    s = assert_grown(s, .runs = 1, .inferences = 1, .evictions = 1);
    assert_ok(run(1));
    s = assert_grown(s, .runs = 1, .inferences = 1, .evictions = 1);
    assert_ok(bw_device_set_budget(dev, 1, &err));
    s = assert_grown(s, .evictions = 1, .memory_used = -each);
    assert_ok(bw_device_set_budget(dev, 0, &err));
    bw_image_release(second);
    assert_grown(s, .runs = 0);
}

static void a_load_that_faults_counts(void **state)
{
    (void)state;
    bw_device_state s = now();
    size_t size;
    const void *program = stub_program(&size);
    bw_image *image;
    stub.load_status = BW_DEVICE_FAULT;
    assert_is(BW_DEVICE_FAULT, bw_image_load(dev, program, size, NULL, 0, &image, &err));
    stub.load_status = 0;
    s = assert_grown(s, .faults = 1, .resets = 1, .memory_used = -s.memory_used);
    assert_ok(run(1));
    assert_int_equal(now().inferences, 1);
}

static void a_dead_device_says_why(void **state)
{
    (void)state;
    stub.status = BW_DEVICE_LOST;
    stub.once = 1;
    stub.action = STUB_FAIL;
    stub.reset_status = BW_DEVICE_LOST;
    bw_device_state s = now();
    assert_is(BW_DEVICE_LOST, run(1));
    s = assert_grown(s, .runs = 1, .faults = 1, .resets = 1, .memory_used = -s.memory_used);
    assert_int_equal(s.health, BW_HEALTH_DEAD);
    assert_string_equal(s.reason, "its reset failed: reset refused");
    assert_is(BW_DEVICE_LOST, run(1)); /* not submitted */
    s = assert_grown(s, .runs = 0);
    assert_is(BW_DEVICE_LOST, bw_device_reset(dev, &err));
    s = assert_grown(s, .resets = 1);
    stub.reset_status = 0;
    assert_ok(bw_device_reset(dev, &err));
    s = assert_grown(s, .resets = 1);
    assert_int_equal(s.health, BW_HEALTH_OK);
    assert_string_equal(s.reason, "");
}

static void a_device_that_was_given_up_counts(void **state)
{
    (void)state;
    bw_device_state s = now();
    stub.action = STUB_WEDGE;
    bw_status status = bw_image_run(img, in, out, 1, 1 * MS, &err);
    assert_int_equal(status, BW_DEVICE_LOST);
    bw_device_state dead = now();
    assert_int_equal(dead.health, BW_HEALTH_DEAD);
    assert_non_null(strstr(dead.reason, "a run did not end within"));
    assert_int_equal(dead.runs - s.runs, 1);
    assert_int_equal(dead.inferences, 0);
    assert_int_equal(dead.faults - s.faults, 1);
    assert_true(dead.busy_ns >= 1000 * MS); /* it was inside for as long as it was waited for */
    stub.action = STUB_COPY;
    assert_ok(bw_device_reset(dev, &err)); /* opens it anew */
    assert_ok(run(1));
    stub.unwedge = 1;
    while (stub.wedged)
        usleep(1000);
    usleep(20000);
    dead = now();
    assert_int_equal(dead.resets, 1);
    assert_int_equal(dead.runs, 2); /* the late one is not counted again */
    assert_int_equal(dead.inferences, 1);
    stub.closes++;   /* of the opening that was left behind */
    stub.releases++; /* with its image */
}

static void what_waits_is_seen(void **state)
{
    (void)state;
    bw_fence *fences[3];
    stub.action = STUB_GATE;
    for (int i = 0; i < 3; i++)
        assert_ok(bw_image_submit(img, in, out, 1, &fences[i], &err));
    assert_int_equal(now().queued, 3);
    stub.gate = 1;
    for (int i = 0; i < 3; i++) {
        assert_ok(bw_fence_wait(fences[i], 0, &err));
        bw_fence_release(fences[i]);
    }
    bw_device_state s = now();
    assert_int_equal(s.queued, 0);
    assert_int_equal(s.runs, 3);
}

/* --- two threads -------------------------------------------------------------------------------------------------- */

enum { EACH = 300 };

typedef struct worker {
    pthread_t thread;
    uint32_t batch;
    uint64_t ok, faults;
} worker;

static void *work(void *user)
{
    worker *w = user;
    float from[3 * STUB_FLOATS] = {0}, to[3 * STUB_FLOATS];
    for (int i = 0; i < EACH; i++) {
        bw_status status = bw_image_run(img, from, to, w->batch, 0, NULL);
        w->ok += status == BW_OK;
        w->faults += status == BW_DEVICE_FAULT;
    }
    return NULL;
}

static void two_threads_and_one_who_looks(void **state)
{
    (void)state;
    worker w[2] = {{.batch = 1}, {.batch = 3}};
    bw_device_state last = now();
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&w[i].thread, NULL, work, &w[i]), 0);
    for (int i = 0; i < 100; i++) { /* meanwhile no counter ever goes back */
        if (i % 20 == 10) {
            stub.status = BW_DEVICE_FAULT;
            stub.once = 1;
            stub.action = STUB_FAIL;
        }
        bw_device_state s = now();
        assert_true(s.runs >= last.runs && s.inferences >= last.inferences && s.faults >= last.faults &&
                    s.resets >= last.resets && s.busy_ns >= last.busy_ns && s.queued <= 2);
        last = s;
        usleep(500);
    }
    for (int i = 0; i < 2; i++)
        pthread_join(w[i].thread, NULL);
    bw_device_state s = settled();
    assert_int_equal(s.runs, 2 * EACH);
    assert_int_equal(w[0].ok + w[1].ok + w[0].faults + w[1].faults, 2 * EACH);
    assert_int_equal(s.inferences, w[0].ok + 3 * w[1].ok);
    assert_int_equal(s.faults, w[0].faults + w[1].faults);
    assert_int_equal(s.resets, s.faults);
    assert_int_equal(s.health, BW_HEALTH_OK);
}

/* --- sensors ------------------------------------------------------------------------------------------------------ */

static void sensors_show_what_the_backend_reads(void **state)
{
    (void)state;
    bw_device_info info;
    bw_sensors s = {1, 1};
    assert_ok(bw_device_info_get(dev, &info, &err));
    assert_string_equal(info.address, STUB_ADDRESS);
    assert_ok(bw_device_sensors_get(&info, &s, &err));
    assert_true(isnan(s.temperature_c) && isnan(s.power_w));
    stub.celsius = 41;
    assert_ok(bw_device_sensors_get(&info, &s, &err));
    assert_true(s.temperature_c == 41 && isnan(s.power_w));
    stub.watts = 23;
    assert_ok(bw_device_sensors_get(&info, &s, &err));
    assert_true(s.temperature_c == 41 && s.power_w == 23);
    /* Also while a run is on the device, and of one that is dead. */
    bw_fence *fence;
    stub.action = STUB_GATE;
    assert_ok(bw_image_submit(img, in, out, 1, &fence, &err));
    assert_ok(bw_device_sensors_get(&info, &s, &err));
    assert_true(s.temperature_c == 41);
    stub.gate = 1;
    bw_fence_release(fence);
    /* A backend without the slot. */
    snprintf(info.uri, sizeof info.uri, "sure:0");
    assert_ok(bw_device_sensors_get(&info, &s, &err));
    assert_true(isnan(s.temperature_c) && isnan(s.power_w));
}

static int one(const bw_device_info *info, void *user)
{
    bw_sensors *s = user;
    return strcmp(info->uri, "stub:1") == 0 && bw_device_sensors_get(info, s, NULL) == BW_OK;
}

static void sensors_of_what_is_not_open(void **state)
{
    (void)state;
    bw_sensors s = {NAN, NAN};
    stub.celsius = 30;
    const int opens = stub.opens;
    assert_ok(bw_device_enumerate(one, NULL, &s, &err));
    assert_true(s.temperature_c == 30 && isnan(s.power_w));
    assert_int_equal(stub.opens, opens);
}

static void bad_arguments(void **state)
{
    (void)state;
    bw_device_state s;
    bw_sensors sensors;
    bw_device_info info = {.uri = "nosuch:0"};
    assert_is(BW_INVALID_ARGUMENT, bw_device_state_get(NULL, &s, &err));
    assert_is(BW_INVALID_ARGUMENT, bw_device_state_get(dev, NULL, &err));
    assert_is(BW_INVALID_ARGUMENT, bw_device_sensors_get(NULL, &sensors, &err));
    assert_is(BW_INVALID_ARGUMENT, bw_device_sensors_get(&info, NULL, &err));
    assert_is(BW_NOT_FOUND, bw_device_sensors_get(&info, &sensors, &err));
    assert_true(isnan(sensors.temperature_c) && isnan(sensors.power_w));
    info.uri[0] = 0;
    assert_is(BW_INVALID_ARGUMENT, bw_device_sensors_get(&info, &sensors, &err));
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    if (bw_backend_register(&stub_backend, &err) || bw_backend_register(&sure_backend, &err)) {
        printf("not ok 1 - register: %s\n", err.message);
        return 1;
    }
    const struct CMUnitTest tests[] = {
        T(each_counter_counts_its_own),         T(a_load_that_faults_counts),   T(a_dead_device_says_why),
        T(a_device_that_was_given_up_counts),   T(what_waits_is_seen),          T(two_threads_and_one_who_looks),
        T(sensors_show_what_the_backend_reads), T(sensors_of_what_is_not_open), T(bad_arguments),
    };
    return cmocka_run_group_tests_name("counters", tests, NULL, NULL);
}
