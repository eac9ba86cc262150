/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Devices that were lost and come back: through a reset, through a bitstream that they had lost, and, where a run is
 * stuck in them for good, through an opening anew. With the scripted backend, which checks the core's side of the
 * contract, and with the simulator's faults.
 */
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
#include "hal/bitstream.h"
#include "hal/hal.h"
#include "sim/sim.h"
#include "tests/support/random_program.h"
#include "tests/support/stub_backend.h"

#define MS UINT64_C(1000000)

static bw_error err;
static bw_device *dev;
static bw_image *img;
static float in[STUB_FLOATS], out[STUB_FLOATS];

#define assert_ok(e)    check_status(e, BW_OK, #e, __LINE__)
#define assert_is(s, e) check_status(e, s, #e, __LINE__)

static void check_status(bw_status got, bw_status expected, const char *what, int line)
{
    if (got != expected)
        fail_msg("line %d: %s is %s ('%s'), expected %s", line, what, bw_status_name(got), got ? err.message : "",
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
    for (int i = 0; i < STUB_FLOATS; i++)
        in[i] = (float)i + 0.5f;
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

static bw_health health(void)
{
    bw_device_state s;
    assert_ok(bw_device_state_get(dev, &s, &err));
    return s.health;
}

static void until(atomic_int *value, int at_least)
{
    for (int i = 0; *value < at_least; i++) {
        if (i > 5000)
            fail_msg("a value stays at %d for 5 s, expected %d", *value, at_least);
        usleep(1000);
    }
}

/* What the backend has of openings that were given up is never asked for again: not counted by teardown. */
static void left_behind(int opens, int loads)
{
    atomic_fetch_sub(&stub.opens, opens);
    atomic_fetch_sub(&stub.loads, loads);
}

static void works(bw_image *image)
{
    memset(out, 0, sizeof out);
    assert_ok(bw_image_run(image, in, out, 1, 0, &err));
    assert_memory_equal(in, out, sizeof in);
}

/* Has a run that nothing ends, until the device is given up. */
static void wedge(void)
{
    bw_fence *fence;
    stub.unwedge = 0;
    stub.action = STUB_WEDGE;
    stub.once = 1;
    const int wedged = stub.wedged;
    assert_ok(bw_image_submit(img, in, out, 1, &fence, &err));
    until(&stub.wedged, wedged + 1);
    bw_fence_cancel(fence);
    assert_is(BW_DEVICE_LOST, bw_fence_wait(fence, 5000 * MS, &err));
    bw_fence_release(fence);
    assert_int_equal(health(), BW_HEALTH_DEAD);
}

static void *make_bitstream(const char *name, size_t *size)
{
    bw_bitstream bits;
    memset(&bits, 0, sizeof bits);
    strcpy(bits.interface_id, STUB_INTERFACE);
    strcpy(bits.part, STUB_PART);
    snprintf(bits.name, sizeof bits.name, "%s", name);
    bits.payload_count = 1;
    strcpy(bits.payloads[0].kind, "stub-bits");
    bits.payloads[0].bytes = "payload";
    bits.payloads[0].size = 7;
    void *bytes;
    assert_ok(bw_bitstream_write(&bits, &bytes, size, &err));
    return bytes;
}

/* --- scripted ----------------------------------------------------------------------------------------------------- */

static void a_wedged_device_is_opened_anew(void **state)
{
    (void)state;
    bw_image *second = load();
    works(second);
    wedge();
    /* While it cannot be opened it stays dead, and says why. */
    stub.open_status = BW_BUSY;
    assert_is(BW_DEVICE_LOST, bw_device_reset(dev, &err));
    assert_non_null(strstr(err.message, "it cannot be opened again"));
    assert_is(BW_DEVICE_LOST, bw_image_run(img, in, out, 1, 0, &err));
    stub.open_status = 0;
    assert_ok(bw_device_reset(dev, &err));
    assert_int_equal(health(), BW_HEALTH_OK);
    works(img); /* images came along */
    works(second);
    bw_device *same;
    assert_ok(bw_device_open("stub:0", &same, &err));
    assert_ptr_equal(same, dev); /* and so did its place among the open devices */
    bw_device_close(same);
    /* The stuck run may end whenever it likes: it has nothing to say any more. */
    assert_int_equal(stub.wedged, 1);
    stub.unwedge = 1;
    for (int i = 0; stub.wedged && i < 2000; i++)
        usleep(1000);
    usleep(20000);
    works(img);
    bw_image_release(second);
    bw_device_state s;
    assert_ok(bw_device_state_get(dev, &s, &err));
    assert_int_equal(s.memory_used, 4096);
    left_behind(1, 2);
}

/* Again and again, and closed while runs of earlier openings are still stuck. */
static void wedged_many_times(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        wedge();
        assert_ok(bw_device_reset(dev, &err));
        works(img);
    }
    bw_image_release(img);
    bw_device_close(dev);
    assert_int_equal(stub.opens - stub.closes, 4); /* the stuck runs keep the last one open, too */
    stub.unwedge = 1;
    until(&stub.closes, 1);
    assert_int_equal(stub.opens - stub.closes, 3);
    left_behind(3, 3);
    assert_ok(bw_device_open("stub:0", &dev, &err));
    img = load();
}

typedef struct resetter {
    pthread_t thread;
    bw_status status;
} resetter;

static void *reset(void *user)
{
    resetter *r = user;
    r->status = bw_device_reset(dev, NULL);
    return NULL;
}

static void many_resets_of_a_wedged_device(void **state)
{
    (void)state;
    wedge();
    resetter r[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&r[i].thread, NULL, reset, &r[i]), 0);
    for (int i = 0; i < 4; i++) {
        pthread_join(r[i].thread, NULL);
        assert_int_equal(r[i].status, BW_OK);
    }
    works(img);
    assert_int_equal(stub.opens, 2); /* one of them opened it */
    stub.unwedge = 1;
    for (int i = 0; stub.wedged && i < 2000; i++)
        usleep(1000);
    usleep(20000);
    left_behind(1, 1);
}

/* A reset that "succeeds" and leaves another configuration behind: nothing runs on it. */
static void a_lost_bitstream(void **state)
{
    (void)state;
    size_t size, other_size;
    void *bits = make_bitstream("right", &size), *other = make_bitstream("other", &other_size);
    assert_ok(bw_device_load_bitstream(dev, bits, size, &err));
    bw_image_release(img);
    img = load();
    works(img);
    assert_ok(bw_device_reset(dev, &err)); /* it stays through a reset */
    works(img);
    stub.forget = 1;
    stub.once = 1;
    stub.status = BW_DEVICE_FAULT;
    stub.action = STUB_FAIL;
    const int runs = stub.runs;
    assert_is(BW_DEVICE_FAULT, bw_image_run(img, in, out, 1, 0, &err));
    for (int i = 0; health() != BW_HEALTH_DEAD && i < 2000; i++)
        usleep(1000);
    assert_is(BW_DEVICE_LOST, bw_image_run(img, in, out, 1, 0, &err));
    assert_non_null(strstr(err.message, "holds bitstream " STUB_OTHER ", expected "));
    assert_int_equal(stub.runs, runs + 1);
    /* Only what was there revives it; a load that fails does not. */
    assert_is(BW_DEVICE_LOST, bw_device_load_bitstream(dev, other, other_size, &err));
    stub.bitstream_status = BW_IO;
    assert_is(BW_IO, bw_device_load_bitstream(dev, bits, size, &err));
    assert_int_equal(health(), BW_HEALTH_DEAD);
    stub.bitstream_status = 0;
    assert_ok(bw_device_load_bitstream(dev, bits, size, &err));
    assert_int_equal(health(), BW_HEALTH_OK);
    works(img); /* the image was for this configuration */
    /* Another one drops it, as ever. */
    assert_ok(bw_device_load_bitstream(dev, other, other_size, &err));
    assert_is(BW_NOT_FOUND, bw_image_run(img, in, out, 1, 0, &err));
    free(bits);
    free(other);
}

/* Opened anew, a device may hold nothing: the same. */
static void a_wedged_device_with_a_bitstream(void **state)
{
    (void)state;
    size_t size;
    void *bits = make_bitstream("right", &size);
    assert_ok(bw_device_load_bitstream(dev, bits, size, &err));
    bw_image_release(img);
    img = load();
    works(img);
    wedge();
    assert_is(BW_DEVICE_LOST, bw_device_reset(dev, &err));
    assert_non_null(strstr(err.message, "holds bitstream none, expected "));
    assert_is(BW_DEVICE_LOST, bw_image_run(img, in, out, 1, 0, &err));
    assert_ok(bw_device_load_bitstream(dev, bits, size, &err));
    works(img);
    stub.unwedge = 1;
    for (int i = 0; stub.wedged && i < 2000; i++)
        usleep(1000);
    usleep(20000);
    free(bits);
    left_behind(1, 1);
}

/* --- simulated ---------------------------------------------------------------------------------------------------- */

static void a_lost_device_comes_back(void **state)
{
    (void)state;
    bw_device *sim;
    bw_image *image;
    struct bw_random_case c;
    assert_int_equal(bw_random_case_make(7, NULL, &c), 0);
    const size_t bytes = c.batch * c.out_bytes;
    char *got = malloc(bytes), *expected = malloc(bytes);
    assert_ok(bw_device_open("sim:?threads=1&fault=lost@2&reset=3&fault=wrong@4", &sim, &err));
    assert_ok(bw_image_load(sim, c.program, c.program_size, c.constants, c.constants_size, &image, &err));
    assert_ok(bw_reference_run(bw_image_program(image), c.constants, c.in, expected, c.batch, &err));
    assert_ok(bw_image_run(image, c.in, got, c.batch, 0, &err));
    assert_memory_equal(got, expected, bytes);
    assert_is(BW_DEVICE_LOST, bw_image_run(image, c.in, got, c.batch, 0, &err)); /* the first reset fails */
    bw_device_state now;
    for (int i = 0; i < 2000; i++) {
        assert_ok(bw_device_state_get(sim, &now, &err));
        if (now.health == BW_HEALTH_DEAD)
            break;
        usleep(1000);
    }
    assert_is(BW_DEVICE_LOST, bw_device_reset(sim, &err));
    assert_is(BW_DEVICE_LOST, bw_device_reset(sim, &err));
    assert_ok(bw_device_reset(sim, &err));
    assert_ok(bw_image_run(image, c.in, got, c.batch, 0, &err));
    assert_memory_equal(got, expected, bytes);
    assert_ok(bw_image_run(image, c.in, got, c.batch, 0, &err));
    assert_memory_not_equal(got, expected, bytes); /* `wrong` */
    assert_ok(bw_image_run(image, c.in, got, c.batch, 0, &err));
    assert_memory_equal(got, expected, bytes);
    bw_image_release(image);
    bw_device_close(sim);
    assert_is(BW_INVALID_ARGUMENT, bw_device_open("sim:?reset=soon", &sim, &err));
    assert_non_null(strstr(err.message, "expected ok, fail or a number"));
    bw_random_case_free(&c);
    free(got);
    free(expected);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    if (bw_backend_register(&stub_backend, &err) || bw_sim_register(&err)) {
        printf("not ok 1 - register: %s\n", err.message);
        return 1;
    }
    bw_log_set_level(BW_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        T(a_wedged_device_is_opened_anew),   T(wedged_many_times),
        T(many_resets_of_a_wedged_device),   T(a_lost_bitstream),
        T(a_wedged_device_with_a_bitstream), cmocka_unit_test(a_lost_device_comes_back),
    };
    return cmocka_run_group_tests_name("revive", tests, NULL, NULL);
}
