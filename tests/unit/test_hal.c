/* SPDX-License-Identifier: Apache-2.0 */
/* The HAL core on a scripted backend: queues, fences, faults, resets. Each test ends with every device closed. */
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

static void check_status(bw_status got, bw_status expected, const bw_error *e, const char *what, int line)
{
    if (got != expected)
        fail_msg("line %d: %s is %s ('%s'), expected %s", line, what, bw_status_name(got), e->message,
                 bw_status_name(expected));
    if (got && (e->status != got || strlen(e->message) < 5))
        fail_msg("line %d: %s: error says %s '%s'", line, what, bw_status_name(e->status), e->message);
}

static bw_device *dev;
static bw_image *img;
static float in[STUB_FLOATS], out[STUB_FLOATS];

static bw_image *load(bw_device *device)
{
    size_t size;
    const void *program = stub_program(&size);
    bw_image *image;
    assert_ok(bw_image_load(device, program, size, NULL, 0, &image, &err));
    return image;
}

static int setup(void **state)
{
    (void)state;
    stub_clear();
    memset(&err, 0, sizeof err);
    for (int i = 0; i < STUB_FLOATS; i++)
        in[i] = (float)i + 0.5f, out[i] = -1;
    if (bw_device_open("stub:0", &dev, &err))
        return -1;
    img = load(dev);
    return 0;
}

/* The same on a device whose runs always end. */
static int setup_sure(void **state)
{
    if (setup(state))
        return -1;
    bw_image_release(img);
    bw_device_close(dev);
    if (bw_device_open("sure:0", &dev, &err))
        return -1;
    img = load(dev);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    bw_image_release(img);
    bw_device_close(dev);
    /* Balanced: nothing of the backend's is left behind. */
    return stub.opens == stub.closes && stub.loads == stub.releases ? 0 : -1;
}

static bw_fence *submit(void)
{
    bw_fence *fence;
    assert_ok(bw_image_submit(img, in, out, 1, &fence, &err));
    return fence;
}

static bw_device_state state_now(void)
{
    bw_device_state s;
    assert_ok(bw_device_state_get(dev, &s, &err));
    return s;
}

static bw_device_info info(void)
{
    bw_device_info i;
    assert_ok(bw_device_info_get(dev, &i, &err));
    return i;
}

static void until(atomic_int *value, int at_least)
{
    for (int i = 0; *value < at_least; i++) {
        if (i > 5000)
            fail_msg("a value stays at %d for 5 s, expected %d", *value, at_least);
        usleep(1000);
    }
}

static void works(void)
{
    memset(out, 0, sizeof out);
    assert_ok(bw_image_run(img, in, out, 1, 0, &err));
    assert_memory_equal(in, out, sizeof in);
}

/* --- running ---------------------------------------------------------------------------------------------------- */

static void a_backend_without_clocks_says_so(void **state)
{
    (void)state;
    uint64_t spent[1] = {7};
    bw_fence *fence = (bw_fence *)&err; /* must be overwritten */
    assert_is(BW_UNSUPPORTED, bw_image_submit_timed(img, in, out, 1, spent, &fence, &err));
    assert_null(fence);
    assert_non_null(strstr(err.message, "stub:0: backend 'stub' does not time instructions: take another device"));
    assert_is(BW_INVALID_ARGUMENT, bw_image_submit_timed(img, in, out, 1, NULL, &fence, &err));
    assert_is(BW_INVALID_ARGUMENT, bw_image_submit_timed(NULL, in, out, 1, spent, &fence, &err));
    assert_int_equal(spent[0], 7);
    assert_int_equal(stub.runs, 0);
    works();
}

static void runs_and_counts(void **state)
{
    (void)state;
    works();
    float in3[3 * STUB_FLOATS], out3[3 * STUB_FLOATS];
    for (int i = 0; i < 3 * STUB_FLOATS; i++)
        in3[i] = (float)i;
    assert_ok(bw_image_run(img, in3, out3, 3, 1000 * MS, &err));
    assert_memory_equal(in3, out3, sizeof in3);
    bw_device_info i = info();
    assert_string_equal(i.uri, "stub:0");
    assert_string_equal(i.part, STUB_PART);
    bw_device_state s = state_now();
    assert_int_equal(s.runs, 2);
    assert_int_equal(s.inferences, 4);
    assert_int_equal(s.images, 1);
    assert_int_equal(s.faults + s.resets, 0);
    assert_int_equal(s.health, BW_HEALTH_OK);
    assert_string_equal(s.reason, "");
    assert_int_equal(bw_image_program(img)->header->in_bytes, sizeof in);
}

static void refuses_bad_arguments(void **state)
{
    (void)state;
    bw_fence *fence;
    bw_image *image;
    size_t size;
    const char *program = stub_program(&size);
    assert_is(BW_INVALID_ARGUMENT, bw_image_run(img, in, out, 0, 0, &err));
    assert_is(BW_INVALID_ARGUMENT, bw_image_run(img, NULL, out, 1, 0, &err));
    assert_is(BW_INVALID_ARGUMENT, bw_image_run(img, in, NULL, 1, 0, &err));
    assert_is(BW_INVALID_ARGUMENT, bw_image_run(img, (char *)in + 1, out, 1, 0, &err));
    assert_is(BW_INVALID_ARGUMENT, bw_image_submit(img, in, out, 1, NULL, &err));
    assert_is(BW_INVALID_ARGUMENT, bw_image_submit(NULL, in, out, 1, &fence, &err));
    assert_is(BW_INVALID_ARGUMENT, bw_image_load(NULL, program, size, NULL, 0, &image, &err));
    assert_is(BW_INVALID_ARGUMENT, bw_image_load(dev, NULL, size, NULL, 0, &image, &err));
    assert_is(BW_INVALID_ARGUMENT, bw_image_load(dev, program + 4, size, NULL, 0, &image, &err));
    assert_is(BW_INVALID_ARGUMENT, bw_image_load(dev, program, size, (char *)64 + 1, 1, &image, &err));
    assert_is(BW_CORRUPT, bw_image_load(dev, program, size - 1, NULL, 0, &image, &err));
    assert_null(image);
    assert_is(BW_INVALID_ARGUMENT, bw_device_info_get(NULL, NULL, &err));
    assert_is(BW_INVALID_ARGUMENT, bw_device_info_get(dev, NULL, &err));
    assert_is(BW_INVALID_ARGUMENT, bw_device_reset(NULL, &err));
    assert_is(BW_INVALID_ARGUMENT, bw_fence_wait(NULL, 0, &err));
    assert_null(bw_image_program(NULL));
    bw_device_close(NULL);
    bw_image_release(NULL);
    bw_fence_release(NULL);
    bw_fence_cancel(NULL);
    works();
}

static void offers_and_memory(void **state)
{
    (void)state;
    size_t size;
    const void *program = stub_program(&size);
    bw_image *image;
    stub.formats = 1u << BW_FORMAT_MSFP12;
    assert_is(BW_INCOMPATIBLE, bw_image_load(dev, program, size, NULL, 0, &image, &err));
    stub.formats = ~0u;
    stub.load_status = BW_NO_MEMORY;
    assert_is(BW_NO_MEMORY, bw_image_load(dev, program, size, NULL, 0, &image, &err));
    assert_non_null(strstr(err.message, "image refused"));
    assert_int_equal(state_now().resets, 0);
    stub.load_status = BW_DEVICE_FAULT;
    assert_is(BW_DEVICE_FAULT, bw_image_load(dev, program, size, NULL, 0, &image, &err));
    assert_int_equal(state_now().resets, 1);
    stub.load_status = 0;
    works();
}

static void run_image(bw_image *image)
{
    memset(out, 0, sizeof out);
    assert_ok(bw_image_run(image, in, out, 1, 0, &err));
    assert_memory_equal(in, out, sizeof in);
}

static void the_least_recently_used_makes_way(void **state)
{
    (void)state;
    size_t size;
    const void *program = stub_program(&size);
    bw_image *images[3];
    const uint64_t each = state_now().memory_used; /* of img */
    assert_true(each > 0);
    stub.memory_bytes = 3 * each;
    for (int i = 0; i < 2; i++)
        assert_ok(bw_image_load(dev, program, size, NULL, 0, &images[i], &err));
    assert_int_equal(state_now().memory_used, 3 * each);
    assert_int_equal(state_now().evictions, 0);
    run_image(img); /* images[0] is now the oldest */
    assert_ok(bw_image_load(dev, program, size, NULL, 0, &images[2], &err));
    assert_int_equal(state_now().evictions, 1);
    int loads = stub.loads;
    run_image(images[1]);
    run_image(img);
    run_image(images[2]);
    assert_int_equal(stub.loads, loads); /* they stayed */
    run_image(images[0]);                /* comes back in place of images[1] */
    assert_int_equal(stub.loads, loads + 1);
    run_image(img);
    assert_int_equal(stub.loads, loads + 1);
    run_image(images[1]);
    assert_int_equal(stub.loads, loads + 2);
    assert_int_equal(state_now().memory_used, 3 * each);
    for (int i = 0; i < 3; i++)
        bw_image_release(images[i]);
    works(); /* img has made way meanwhile, or not */
    assert_int_equal(state_now().memory_used, each);
}

static void a_budget_is_kept(void **state)
{
    (void)state;
    size_t size;
    const void *program = stub_program(&size);
    bw_image *image;
    const uint64_t each = state_now().memory_used;
    assert_ok(bw_image_load(dev, program, size, NULL, 0, &image, &err));
    assert_int_equal(state_now().memory_used, 2 * each);
    assert_ok(bw_device_set_budget(dev, 2 * each - 1, &err));
    assert_int_equal(state_now().memory_used, each); /* at once */
    assert_int_equal(state_now().memory_budget, 2 * each - 1);
    run_image(image);
    works();
    assert_int_equal(state_now().memory_used, each);
    assert_ok(bw_device_set_budget(dev, each - 1, &err));
    assert_int_equal(state_now().memory_used, 0);
    assert_is(BW_NO_MEMORY, bw_image_run(image, in, out, 1, 0, &err));
    assert_non_null(strstr(err.message, "raise the budget"));
    assert_int_equal(state_now().resets, 0);
    assert_ok(bw_device_set_budget(dev, 0, &err));
    run_image(image);
    works();
    assert_int_equal(state_now().memory_used, 2 * each);
    bw_image_release(image);
    assert_is(BW_INVALID_ARGUMENT, bw_device_set_budget(NULL, 0, &err));
}

/* A device that has less room than it says, or shares it with other processes. */
static void others_make_way_when_the_backend_has_no_room(void **state)
{
    (void)state;
    size_t size;
    const void *program = stub_program(&size);
    bw_image *image;
    stub.load_status = BW_NO_MEMORY;
    assert_is(BW_NO_MEMORY, bw_image_load(dev, program, size, NULL, 0, &image, &err));
    assert_int_equal(state_now().evictions, 1); /* img has been tried */
    assert_int_equal(state_now().memory_used, 0);
    assert_is(BW_NO_MEMORY, bw_image_run(img, in, out, 1, 0, &err));
    stub.load_status = 0;
    works();
    stub.images_most = 1;
    assert_ok(bw_image_load(dev, program, size, NULL, 0, &image, &err));
    for (int i = 0; i < 3; i++) {
        run_image(image);
        works();
    }
    assert_int_equal(state_now().evictions, 2 + 6 - 1);
    bw_image_release(image);
    stub.images_most = 0;
    works();
}

typedef struct job {
    bw_image *image;
    int number, failures;
} job;

static void *run_often(void *user)
{
    job *j = user;
    float a[STUB_FLOATS], b[STUB_FLOATS];
    for (int k = 0; k < 200; k++) {
        for (int i = 0; i < STUB_FLOATS; i++)
            a[i] = (float)(j->number * 1000 + k * 10 + i);
        memset(b, 0, sizeof b);
        if (bw_image_run(j->image, a, b, 1, 0, NULL) || memcmp(a, b, sizeof a) != 0)
            j->failures++;
    }
    return NULL;
}

static void *load_often(void *user)
{
    job *j = user;
    size_t size;
    const void *program = stub_program(&size);
    for (int k = 0; k < 50; k++) {
        bw_device *d;
        bw_image *image;
        float a[STUB_FLOATS] = {1, 2, 3}, b[STUB_FLOATS];
        if (bw_device_open(k % 2 ? "stub:0" : "stub:other", &d, NULL)) {
            j->failures++;
            continue;
        }
        if (bw_image_load(d, program, size, NULL, 0, &image, NULL)) {
            j->failures++;
        } else {
            bw_device_close(d); /* the image keeps it */
            d = NULL;
            if (bw_image_run(image, a, b, 1, 0, NULL) || memcmp(a, b, sizeof a) != 0)
                j->failures++;
            bw_image_release(image);
        }
        bw_device_close(d);
    }
    return NULL;
}

static void many_threads(void **state)
{
    (void)state;
    bw_image *other = load(dev);
    job jobs[6] = {{img, 1, 0}, {img, 2, 0}, {other, 3, 0}, {other, 4, 0}, {NULL, 5, 0}, {NULL, 6, 0}};
    pthread_t threads[6];
    for (int i = 0; i < 6; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, jobs[i].image ? run_often : load_often, &jobs[i]), 0);
    for (int i = 0; i < 6; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < 6; i++)
        assert_int_equal(jobs[i].failures, 0);
    bw_image_release(other);
    assert_true(state_now().runs >= 800);
    assert_int_equal(state_now().faults, 0);
}

/* --- queue and fences ------------------------------------------------------------------------------------------- */

static void queue_has_64_places(void **state)
{
    (void)state;
    stub.action = STUB_GATE;
    bw_fence *fences[65], *more;
    uint64_t start = bw_now_ns();
    fences[0] = submit();
    until(&stub.runs, 1);
    for (int i = 1; i <= 64; i++)
        fences[i] = submit();
    assert_is(BW_EXHAUSTED, bw_image_submit(img, in, out, 1, &more, &err));
    assert_null(more);
    assert_true(bw_now_ns() - start < 2000 * MS); /* nothing blocked */
    /* The blocking call waits for room, up to its deadline. */
    assert_is(BW_TIMEOUT, bw_image_run(img, in, out, 1, 30 * MS, &err));
    assert_non_null(strstr(err.message, "queue"));
    stub.gate = 1;
    works();
    for (int i = 0; i <= 64; i++) {
        uint64_t queued, running;
        assert_ok(bw_fence_wait(fences[i], 0, &err));
        bw_fence_times(fences[i], &queued, &running);
        assert_true(running < 10000 * MS && queued < 10000 * MS);
        if (i)
            assert_true(queued > 20 * MS); /* they waited for the first one's gate */
        bw_fence_release(fences[i]);
    }
    assert_int_equal(state_now().runs, 66);
}

static void wait_times_out_and_goes_on(void **state)
{
    (void)state;
    stub.action = STUB_GATE;
    bw_fence *fence = submit();
    uint64_t start = bw_now_ns(), queued = 1, running = 1;
    assert_is(BW_TIMEOUT, bw_fence_wait(fence, 50 * MS, &err));
    uint64_t took = bw_now_ns() - start;
    assert_true(took >= 50 * MS && took < 1000 * MS);
    bw_fence_times(fence, &queued, &running);
    assert_int_equal(queued + running, 0); /* not ended */
    stub.gate = 1;
    assert_ok(bw_fence_wait(fence, 5000 * MS, &err));
    assert_ok(bw_fence_wait(fence, 1, &err)); /* again: the same answer */
    bw_fence_cancel(fence);                   /* too late to matter */
    assert_ok(bw_fence_wait(fence, 0, &err));
    bw_fence_release(fence);
    assert_memory_equal(in, out, sizeof in);
}

typedef struct called {
    atomic_int times;
    pthread_t thread;
    bw_fence *fence;
    bw_status status;
} called;

static void on_done(void *user)
{
    called *c = user;
    c->thread = pthread_self();
    c->status = bw_fence_wait(c->fence, 1, NULL);
    c->times++;
}

static void done_is_called_once(void **state)
{
    (void)state;
    stub.action = STUB_GATE;
    called a = {.fence = submit()}, b = {.fence = submit()}, c = {.fence = submit()};
    bw_fence_on_done(a.fence, on_done, &a);
    bw_fence_on_done(b.fence, on_done, &b);
    until(&stub.runs, 1);
    bw_fence_cancel(b.fence); /* queued: ends although the first one still runs */
    until(&b.times, 1);
    assert_int_equal(b.status, BW_CANCELLED);
    assert_int_equal(a.times, 0);
    assert_false(pthread_equal(b.thread, pthread_self()));
    stub.gate = 1;
    assert_ok(bw_fence_wait(a.fence, 0, &err));
    until(&a.times, 1);
    assert_int_equal(a.status, BW_OK);
    assert_false(pthread_equal(a.thread, pthread_self()));
    assert_ok(bw_fence_wait(c.fence, 0, &err));
    bw_fence_on_done(c.fence, on_done, &c); /* already ended: at once */
    assert_int_equal(c.times, 1);
    bw_fence_release(a.fence);
    bw_fence_release(b.fence);
    bw_fence_release(c.fence);
    assert_int_equal(a.times + b.times + c.times, 3);
}

typedef struct chain {
    bw_fence *fences[10];
    atomic_int next;
} chain;

static void submit_next(void *user)
{
    chain *c = user;
    int n = c->next;
    if (n < 10 && bw_image_submit(img, in, out, 1, &c->fences[n], NULL) == BW_OK) {
        c->next = n + 1;
        bw_fence_on_done(c->fences[n], submit_next, c);
    }
}

static void done_may_submit(void **state)
{
    (void)state;
    chain c = {.next = 1};
    c.fences[0] = submit();
    bw_fence_on_done(c.fences[0], submit_next, &c);
    until(&c.next, 10);
    for (int i = 0; i < 10; i++) {
        assert_ok(bw_fence_wait(c.fences[i], 0, &err));
        bw_fence_release(c.fences[i]);
    }
}

static void cancel_while_running(void **state)
{
    (void)state;
    stub.action = STUB_SLEEP;
    stub.sleep_ms = 20000;
    bw_fence *fence = submit();
    until(&stub.runs, 1);
    uint64_t start = bw_now_ns();
    bw_fence_cancel(fence);
    assert_is(BW_CANCELLED, bw_fence_wait(fence, 0, &err));
    bw_fence_release(fence);
    assert_true(bw_now_ns() - start < 2000 * MS);
    assert_int_equal(stub.aborts + stub.resets, 0); /* it obeyed */
    fence = submit();
    bw_fence_release(fence); /* cancels and waits for the end */
    assert_is(BW_TIMEOUT, bw_image_run(img, in, out, 1, 20 * MS, &err));
    stub.action = STUB_COPY;
    works();
    assert_int_equal(state_now().faults, 0);
}

static void release_waits_for_runs(void **state)
{
    (void)state;
    stub.action = STUB_SLEEP;
    stub.sleep_ms = 50;
    bw_fence *a = submit(), *b = submit();
    bw_image_release(img); /* the fences keep what they need */
    assert_ok(bw_fence_wait(a, 1, &err));
    assert_ok(bw_fence_wait(b, 1, &err));
    assert_int_equal(stub.releases, 1);
    bw_device_close(dev);
    assert_int_equal(stub.closes, 0);
    bw_fence_release(a);
    bw_fence_release(b);
    assert_int_equal(stub.closes, 1);
    img = NULL;
    dev = NULL;
}

/* --- faults ----------------------------------------------------------------------------------------------------- */

static void fault_resets_the_device(void **state)
{
    (void)state;
    /* Whatever a backend returns, the waiter sees one of the contract's statuses. */
    static const bw_status given[] = {BW_DEVICE_FAULT, BW_IO, BW_TIMEOUT, BW_CANCELLED, BW_INTERNAL, BW_DEVICE_LOST};
    bw_image *other = load(dev);
    for (unsigned i = 0; i < sizeof given / sizeof *given; i++) {
        stub.status = (int)given[i];
        stub.once = 1;
        stub.action = STUB_FAIL;
        assert_is(given[i] == BW_DEVICE_LOST ? BW_DEVICE_LOST : BW_DEVICE_FAULT,
                  bw_image_run(img, in, out, 1, 0, &err));
        assert_non_null(strstr(err.message, "scripted failure"));
        assert_int_equal(state_now().faults, i + 1);
        assert_int_equal(state_now().resets, i + 1);
        works(); /* the image came back by itself */
        assert_ok(bw_image_run(other, in, out, 1, 0, &err));
        assert_int_equal(state_now().health, BW_HEALTH_OK);
    }
    stub.status = BW_NO_MEMORY;
    stub.once = 1;
    stub.action = STUB_FAIL;
    assert_is(BW_NO_MEMORY, bw_image_run(img, in, out, 1, 0, &err));
    assert_int_equal(state_now().faults, 6); /* no fault of the device */
    bw_image_release(other);
}

static void hang_is_aborted(void **state)
{
    (void)state;
    stub.action = STUB_HANG;
    stub.once = 1;
    bw_fence *fence = submit(), *behind = submit();
    assert_is(BW_TIMEOUT, bw_fence_wait(fence, 50 * MS, &err));
    uint64_t start = bw_now_ns();
    bw_fence_release(fence);
    assert_true(bw_now_ns() - start < 2000 * MS);
    assert_true(stub.aborts >= 1);
    assert_ok(bw_fence_wait(behind, 2000 * MS, &err)); /* what waited behind it runs after the reset */
    bw_fence_release(behind);
    assert_int_equal(state_now().faults, 1);
    assert_int_equal(state_now().resets, 1);
    works();
    /* The same through the blocking call. */
    stub.action = STUB_HANG;
    stub.once = 1;
    start = bw_now_ns();
    assert_is(BW_TIMEOUT, bw_image_run(img, in, out, 1, 50 * MS, &err));
    assert_true(bw_now_ns() - start < 2000 * MS);
    works();
}

static void failed_reset_is_death(void **state)
{
    (void)state;
    stub.action = STUB_GATE;
    bw_fence *first = submit(), *waiting = submit(), *fence;
    until(&stub.runs, 1);
    stub.reset_status = BW_IO;
    stub.once = 1;
    bw_fence_release(first); /* cancelled cleanly: no reset yet */
    assert_int_equal(stub.resets, 0);
    until(&stub.runs, 2);
    bw_fence *third = submit();
    stub.status = BW_DEVICE_FAULT;
    stub.action = STUB_FAIL;
    stub.gate = 1;
    assert_ok(bw_fence_wait(waiting, 0, &err));
    assert_is(BW_DEVICE_FAULT, bw_fence_wait(third, 0, &err));
    for (int i = 0; state_now().health != BW_HEALTH_DEAD; i++) {
        assert_true(i < 2000);
        usleep(1000);
    }
    stub.action = STUB_COPY;
    size_t size;
    const void *program = stub_program(&size);
    bw_image *image;
    assert_is(BW_DEVICE_LOST, bw_image_submit(img, in, out, 1, &fence, &err));
    assert_non_null(strstr(err.message, "reset refused"));
    assert_is(BW_DEVICE_LOST, bw_image_run(img, in, out, 1, 0, &err));
    assert_is(BW_DEVICE_LOST, bw_image_load(dev, program, size, NULL, 0, &image, &err));
    assert_is(BW_DEVICE_LOST, bw_device_reset(dev, &err));
    bw_fence_release(waiting);
    bw_fence_release(third);
    /* An explicit reset that works revives it. */
    stub.reset_status = 0;
    assert_ok(bw_device_reset(dev, &err));
    works();
}

static void death_ends_the_queue(void **state)
{
    (void)state;
    stub.action = STUB_GATE;
    stub.reset_status = BW_IO;
    bw_fence *fences[20];
    called c = {.fence = NULL};
    for (int i = 0; i < 20; i++)
        fences[i] = submit();
    c.fence = fences[19];
    bw_fence_on_done(fences[19], on_done, &c);
    until(&stub.runs, 1);
    stub.status = BW_DEVICE_LOST;
    stub.action = STUB_FAIL;
    stub.gate = 1;
    assert_ok(bw_fence_wait(fences[0], 0, &err));
    for (int i = 1; i < 20; i++)
        assert_is(BW_DEVICE_LOST, bw_fence_wait(fences[i], 2000 * MS, &err));
    until(&c.times, 1);
    assert_int_equal(c.status, BW_DEVICE_LOST);
    for (int i = 0; i < 20; i++)
        bw_fence_release(fences[i]);
    assert_int_equal(stub.runs, 2);
}

static void reset_ends_all_runs(void **state)
{
    (void)state;
    stub.action = STUB_GATE;
    bw_fence *fences[10];
    for (int i = 0; i < 10; i++)
        fences[i] = submit();
    until(&stub.runs, 1);
    assert_ok(bw_device_reset(dev, &err));
    stub.gate = 1;
    for (int i = 0; i < 10; i++) {
        assert_is(BW_DEVICE_FAULT, bw_fence_wait(fences[i], 2000 * MS, &err));
        assert_non_null(strstr(err.message, "reset"));
        bw_fence_release(fences[i]);
    }
    works();
    assert_int_equal(state_now().resets, 1);
    /* Of a hung device, too. */
    stub.action = STUB_HANG;
    stub.once = 1;
    bw_fence *fence = submit();
    until(&stub.runs, 3);
    uint64_t start = bw_now_ns();
    assert_ok(bw_device_reset(dev, &err));
    assert_true(bw_now_ns() - start < 2000 * MS);
    assert_is(BW_DEVICE_FAULT, bw_fence_wait(fence, 0, &err));
    bw_fence_release(fence);
    assert_int_equal(state_now().resets, 2);
    works();
}

/* A backend that comes back neither for cancel nor for abort costs its device, not its callers. */
static void wedged_device_is_given_up(void **state)
{
    (void)state;
    stub.action = STUB_WEDGE;
    stub.once = 1;
    bw_fence *fence = submit(), *behind = submit();
    until(&stub.wedged, 1);
    uint64_t start = bw_now_ns();
    bw_fence_cancel(fence);
    assert_is(BW_DEVICE_LOST, bw_fence_wait(fence, 0, &err));
    assert_is(BW_DEVICE_LOST, bw_fence_wait(behind, 0, &err));
    assert_true(bw_now_ns() - start < 2000 * MS);
    bw_fence_release(fence);
    bw_fence_release(behind);
    assert_int_equal(state_now().health, BW_HEALTH_DEAD);
    assert_is(BW_DEVICE_LOST, bw_image_submit(img, in, out, 1, &fence, &err));
    assert_is(BW_DEVICE_LOST, bw_image_run(img, in, out, 1, 0, &err));
    /* Opening it again while the old one is still held gives a new device. */
    bw_device *fresh;
    assert_ok(bw_device_open("stub:0", &fresh, &err));
    assert_ptr_not_equal(fresh, dev);
    bw_image_release(img);
    bw_device_close(dev);
    assert_int_equal(stub.wedged, 1);
    dev = fresh;
    img = load(dev);
    works();
    /* The lost thread may come back whenever it likes; the given-up device and its image are never called again. */
    stub.unwedge = 1;
    for (int i = 0; stub.wedged && i < 2000; i++)
        usleep(1000);
    usleep(20000);
    works();
    assert_int_equal(stub.opens - stub.closes, 2);
    stub.opens--;
    stub.loads--;
}

/* --- runs on their caller's thread -------------------------------------------------------------------------------- */

static void only_a_sure_device_runs_on_the_callers_thread(void **state)
{
    (void)state;
    works();
    assert_true(pthread_equal(stub.runner, pthread_self()));
    bw_device *other;
    assert_ok(bw_device_open("stub:1", &other, &err));
    bw_image *image = load(other);
    assert_ok(bw_image_run(image, in, out, 1, 0, &err));
    assert_false(pthread_equal(stub.runner, pthread_self()));
    bw_image_release(image);
    bw_device_close(other);
    bw_run_times times;
    stub.action = STUB_SLEEP;
    stub.sleep_ms = 20;
    assert_ok(bw_image_run_timed(img, in, out, 1, 0, NULL, &times, &err));
    assert_true(times.running_ns >= 20 * MS && times.queued_ns < times.running_ns);
    uint64_t spent[1];
    assert_is(BW_UNSUPPORTED, bw_image_run_timed(img, in, out, 1, 0, spent, &times, &err));
    assert_int_equal(times.running_ns, 0);
}

/* The supervisor has slept on a far deadline when a near one comes, and the other way round. */
static void deadlines_of_callers_are_kept(void **state)
{
    (void)state;
    uint64_t start = bw_now_ns();
    assert_ok(bw_image_run(img, in, out, 1, 60000 * MS, &err));
    stub.sleep_ms = 20000;
    for (int i = 0; i < 3; i++) {
        stub.action = STUB_SLEEP;
        assert_is(BW_TIMEOUT, bw_image_run(img, in, out, 1, 30 * MS, &err));
        assert_non_null(strstr(err.message, "the run was not over after 30.000 ms"));
        stub.action = STUB_COPY;
        assert_ok(bw_image_run(img, in, out, 1, 10 * MS, &err));
        assert_ok(bw_image_run(img, in, out, 1, 60000 * MS, &err));
    }
    assert_int_equal(stub.aborts + stub.resets, 0);
    /* One that hangs is aborted, and the device works again. */
    stub.once = 1;
    stub.action = STUB_HANG;
    assert_is(BW_TIMEOUT, bw_image_run(img, in, out, 1, 30 * MS, &err));
    assert_true(stub.aborts > 0);
    assert_int_equal(stub.resets, 1);
    works();
    stub.once = 1;
    stub.status = BW_DEVICE_FAULT;
    stub.action = STUB_FAIL;
    assert_is(BW_DEVICE_FAULT, bw_image_run(img, in, out, 1, 5000 * MS, &err));
    works();
    assert_true(bw_now_ns() - start < 15000 * MS);
}

static void *run_it(void *user)
{
    bw_error e;
    float mine[STUB_FLOATS];
    *(bw_status *)user = bw_image_run(img, in, mine, 1, 0, &e);
    return NULL;
}

/* While a caller runs, others queue behind it, and a reset ends it. */
static void others_wait_for_the_callers_run(void **state)
{
    (void)state;
    stub.action = STUB_GATE;
    pthread_t thread;
    bw_status status = BW_INTERNAL;
    pthread_create(&thread, NULL, run_it, &status);
    until(&stub.runs, 1);
    bw_fence *behind = submit();
    assert_is(BW_TIMEOUT, bw_image_run(img, in, out, 1, 20 * MS, &err));
    assert_int_equal(stub.runs, 1);
    stub.gate = 1;
    pthread_join(thread, NULL);
    assert_int_equal(status, BW_OK);
    assert_ok(bw_fence_wait(behind, 5000 * MS, &err));
    bw_fence_release(behind);
    int runs = stub.runs;
    stub.gate = 0;
    pthread_create(&thread, NULL, run_it, &status);
    until(&stub.runs, runs + 1);
    assert_ok(bw_device_reset(dev, &err));
    pthread_join(thread, NULL);
    assert_int_equal(status, BW_DEVICE_FAULT);
    stub.action = STUB_COPY;
    works();
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
#define S(f) cmocka_unit_test_setup_teardown(f, setup_sure, teardown)

int main(void)
{
    if (bw_backend_register(&stub_backend, &err) || bw_backend_register(&sure_backend, &err)) {
        printf("not ok 1 - register: %s\n", err.message);
        return 1;
    }
    const struct CMUnitTest tests[] = {
        T(a_backend_without_clocks_says_so),
        T(runs_and_counts),
        T(refuses_bad_arguments),
        T(offers_and_memory),
        T(the_least_recently_used_makes_way),
        T(a_budget_is_kept),
        T(others_make_way_when_the_backend_has_no_room),
        T(many_threads),
        T(queue_has_64_places),
        T(wait_times_out_and_goes_on),
        T(done_is_called_once),
        T(done_may_submit),
        T(cancel_while_running),
        T(release_waits_for_runs),
        T(fault_resets_the_device),
        T(hang_is_aborted),
        T(failed_reset_is_death),
        T(death_ends_the_queue),
        T(reset_ends_all_runs),
        T(wedged_device_is_given_up),
        S(only_a_sure_device_runs_on_the_callers_thread),
        S(deadlines_of_callers_are_kept),
        S(others_wait_for_the_callers_run),
        S(many_threads),
        S(cancel_while_running),
        S(fault_resets_the_device),
        S(hang_is_aborted),
        S(failed_reset_is_death),
        S(death_ends_the_queue),
        S(reset_ends_all_runs),
    };
    return cmocka_run_group_tests_name("hal", tests, NULL, NULL);
}
