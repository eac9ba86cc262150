/* SPDX-License-Identifier: Apache-2.0 */
/* The `sim` backend through the HAL: targets, options, injected faults, bitstreams, several images at once. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "hal/base.h"
#include "hal/bitstream.h"
#include "hal/hal.h"
#include "sim/sim.h"
#include "tests/support/random_program.h"

#define MS              UINT64_C(1000000)
#define assert_ok(e)    check_status(e, BW_OK, #e, __LINE__)
#define assert_is(s, e) check_status(e, s, #e, __LINE__)
#define assert_text(t)  check_text(t, __LINE__)

static bw_error err;

static void check_status(bw_status got, bw_status expected, const char *what, int line)
{
    if (got != expected)
        fail_msg("line %d: %s is %s ('%s'), expected %s", line, what, bw_status_name(got), got ? err.message : "",
                 bw_status_name(expected));
}

static void check_text(const char *part, int line)
{
    if (!strstr(err.message, part))
        fail_msg("line %d: '%s' is not in: %s", line, part, err.message);
}

/* A random program with what the reference interpreter makes of it. */
typedef struct work {
    struct bw_random_case c;
    void *expected, *out;
    size_t bytes;
} work;

static work make_work(uint64_t seed, uint32_t formats, uint32_t blocks)
{
    work w;
    struct bw_random_options options = {.formats = formats, .blocks = blocks, .max_batch = 3};
    if (bw_random_case_make(seed, &options, &w.c))
        fail_msg("seed %llu: no program", (unsigned long long)seed);
    w.bytes = w.c.batch * w.c.out_bytes;
    w.expected = calloc(1, w.bytes);
    w.out = calloc(1, w.bytes);
    assert_non_null(w.expected);
    assert_non_null(w.out);
    bw_program program;
    assert_ok(bw_program_parse(w.c.program, w.c.program_size, &program, &err));
    assert_ok(bw_reference_run(&program, w.c.constants, w.c.in, w.expected, w.c.batch, &err));
    return w;
}

static void free_work(work *w)
{
    bw_random_case_free(&w->c);
    free(w->expected);
    free(w->out);
}

static bw_status load(bw_device *dev, const work *w, bw_image **image)
{
    return bw_image_load(dev, w->c.program, w->c.program_size, w->c.constants, w->c.constants_size, image, &err);
}

static bw_status run(bw_image *image, work *w, uint64_t timeout_ns)
{
    memset(w->out, 0xee, w->bytes);
    return bw_image_run(image, w->c.in, w->out, w->c.batch, timeout_ns, &err);
}

static bw_device_state state_of(bw_device *dev)
{
    bw_device_state s;
    assert_ok(bw_device_state_get(dev, &s, &err));
    return s;
}

static bw_device_info info(bw_device *dev)
{
    bw_device_info i;
    assert_ok(bw_device_info_get(dev, &i, &err));
    return i;
}

/* --- targets and options ---------------------------------------------------------------------------------------- */

static int each(const bw_device_info *i, void *user)
{
    bw_device *dev;
    bw_device_info opened;
    ++*(int *)user;
    assert_ok(bw_device_open(i->uri, &dev, &err));
    opened = info(dev);
    assert_string_equal(opened.uri, i->uri);
    assert_string_equal(opened.name, i->name);
    assert_string_equal(opened.part, i->part);
    assert_string_equal(opened.interface_id, i->interface_id);
    assert_memory_equal(&opened.offers, &i->offers, sizeof i->offers);
    assert_true(opened.memory_bytes > 0);
    bw_device_close(dev);
    return 0;
}

static void enumerated_devices_open(void **state)
{
    (void)state;
    int count = 0;
    assert_ok(bw_device_enumerate(each, NULL, &count, &err));
    assert_int_equal(count, 3);
    assert_ok(bw_sim_register(&err)); /* again: fine */
}

static void options_are_checked(void **state)
{
    (void)state;
    static const struct {
        const char *uri, *text;
        bw_status status;
    } cases[] = {
        {"sim:nonsense", "expected '', fast, reference or u250", BW_NOT_FOUND},
        {"sim:?threads=0", "expected a number in 1..64", BW_INVALID_ARGUMENT},
        {"sim:?threads=65", "'65'", BW_INVALID_ARGUMENT},
        {"sim:?threads=-1", "'-1'", BW_INVALID_ARGUMENT},
        {"sim:?threads=1x", "'1x'", BW_INVALID_ARGUMENT},
        {"sim:?threads=99999999999999999999", "threads", BW_INVALID_ARGUMENT},
        {"sim:?isa=mmx", "expected one of portable, avx2, avx512vnni, amx", BW_INVALID_ARGUMENT},
        {"sim:?engine=warp", "expected fast or reference", BW_INVALID_ARGUMENT},
        {"sim:?delay=x", "delay", BW_INVALID_ARGUMENT},
        {"sim:?fault=hang", "expected error@N", BW_INVALID_ARGUMENT},
        {"sim:?fault=burn@1", "'burn@1'", BW_INVALID_ARGUMENT},
        {"sim:?fault=hang@0", "1..1000000000", BW_INVALID_ARGUMENT},
        {"sim:?scrub=-1", "expected a number in 0..1000000000", BW_INVALID_ARGUMENT},
        {"sim:?reset=maybe", "expected ok, fail or a number", BW_INVALID_ARGUMENT},
        {"sim:?colour=red", "there is no option 'colour'", BW_INVALID_ARGUMENT},
        {"sim:u250?threads", "KEY=VALUE", BW_INVALID_ARGUMENT},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        bw_device *dev = NULL;
        assert_is(cases[i].status, bw_device_open(cases[i].uri, &dev, &err));
        assert_text(cases[i].text);
        assert_text(cases[i].uri);
        assert_null(dev);
    }
    bw_device *dev;
    assert_ok(bw_device_open("sim:fast?threads=3&isa=portable&delay=0", &dev, &err));
    assert_non_null(strstr(info(dev).name, "fast engine, portable, 3 threads"));
    bw_device_close(dev);
    assert_ok(bw_device_open("sim:u250?engine=reference", &dev, &err));
    assert_string_equal(info(dev).name, "simulated U250 (reference interpreter)");
    bw_device_close(dev);
}

static void u250_has_limits(void **state)
{
    (void)state;
    bw_device *dev;
    assert_ok(bw_device_open("sim:u250", &dev, &err));
    /* A program whose only block format is one with wide integers. */
    work w;
    for (uint64_t seed = 1;; seed++) {
        w = make_work(seed, 1u << BW_FORMAT_MXFP8_E5M2 | 1u << BW_FORMAT_FP16, 2);
        bw_program p;
        assert_ok(bw_program_parse(w.c.program, w.c.program_size, &p, &err));
        if (p.needs.formats >> BW_FORMAT_MXFP8_E5M2 & 1u)
            break;
        free_work(&w);
        assert_true(seed < 100);
    }
    bw_image *image;
    assert_is(BW_INCOMPATIBLE, load(dev, &w, &image));
    assert_text("mxfp8_e5m2");
    assert_null(image);
    assert_int_equal(state_of(dev).memory_used, 0);
    free_work(&w);
    bw_device_close(dev);
}

/* --- several images, several threads ---------------------------------------------------------------------------- */

typedef struct caller {
    bw_image *image;
    const work *w;
    int failures;
} caller;

static void *call_often(void *user)
{
    caller *c = user;
    void *out = malloc(c->w->bytes ? c->w->bytes : 1);
    for (int i = 0; i < 20 && out; i++) {
        memset(out, 0xee, c->w->bytes);
        if (bw_image_run(c->image, c->w->c.in, out, c->w->c.batch, 0, NULL) ||
            memcmp(out, c->w->expected, c->w->bytes) != 0)
            c->failures++;
    }
    free(out);
    return NULL;
}

static void images_share_a_device(void **state)
{
    (void)state;
    bw_device *dev;
    assert_ok(bw_device_open("sim:?threads=2", &dev, &err));
    work works[4];
    bw_image *images[4];
    uint64_t used = 0;
    for (int i = 0; i < 4; i++) {
        works[i] = make_work(100 + (uint64_t)i, 0, 0);
        assert_ok(load(dev, &works[i], &images[i]));
        const bw_program_header *h = bw_image_program(images[i])->header;
        used += h->act_bytes + h->const_bytes;
        assert_int_equal(state_of(dev).memory_used, used);
    }
    caller callers[4];
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        callers[i] = (caller){images[i], &works[i], 0};
        assert_int_equal(pthread_create(&threads[i], NULL, call_often, &callers[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(callers[i].failures, 0);
    }
    assert_int_equal(state_of(dev).runs, 80);
    assert_true(state_of(dev).busy_ns > 0);
    for (int i = 0; i < 4; i++) {
        bw_image_release(images[i]);
        free_work(&works[i]);
    }
    assert_int_equal(state_of(dev).memory_used, 0);
    bw_device_close(dev);
}

static void timed_runs_give_the_same_bits(void **state)
{
    (void)state;
    bw_device *dev;
    assert_ok(bw_device_open("sim:?threads=2", &dev, &err));
    assert_int_equal(info(dev).threads, 2);
    assert_true(strlen(info(dev).isa) > 0);
    for (uint64_t seed = 300; seed < 310; seed++) {
        work w = make_work(seed, 0, 0);
        bw_image *image;
        bw_fence *fence;
        assert_ok(load(dev, &w, &image));
        const uint32_t count = bw_image_program(image)->header->instruction_count;
        uint64_t *spent = calloc(count, sizeof *spent), queued, running, sum = 0;
        assert_non_null(spent);
        for (int i = 0; i < 2; i++) { /* times are added up */
            memset(w.out, 0xee, w.bytes);
            assert_ok(bw_image_submit_timed(image, w.c.in, w.out, w.c.batch, spent, &fence, &err));
            assert_ok(bw_fence_wait(fence, 0, &err));
            bw_fence_times(fence, &queued, &running);
            bw_fence_release(fence);
            assert_memory_equal(w.out, w.expected, w.bytes);
            uint64_t before = sum;
            sum = 0;
            for (uint32_t k = 0; k < count; k++)
                sum += spent[k];
            assert_true(sum > before);
            assert_true(sum - before <= running);
        }
        free(spent);
        bw_image_release(image);
        free_work(&w);
    }
    bw_device_close(dev);
}

static void the_reference_does_not_time(void **state)
{
    (void)state;
    bw_device *dev;
    bw_image *image;
    bw_fence *fence;
    work w = make_work(9, 0, 0);
    assert_ok(bw_device_open("sim:reference", &dev, &err));
    assert_string_equal(info(dev).isa, "");
    assert_int_equal(info(dev).threads, 0);
    assert_ok(load(dev, &w, &image));
    uint64_t *spent = calloc(bw_image_program(image)->header->instruction_count, sizeof *spent);
    assert_non_null(spent);
    assert_ok(bw_image_submit_timed(image, w.c.in, w.out, w.c.batch, spent, &fence, &err));
    assert_is(BW_UNSUPPORTED, bw_fence_wait(fence, 0, &err));
    assert_text("sim:reference: the reference interpreter does not time instructions: take a device of");
    bw_fence_release(fence);
    assert_int_equal(state_of(dev).health, BW_HEALTH_OK); /* a refusal, no fault */
    assert_int_equal(state_of(dev).faults, 0);
    assert_ok(run(image, &w, 0));
    assert_memory_equal(w.out, w.expected, w.bytes);
    assert_int_equal(state_of(dev).resets, 0);
    free(spent);
    bw_image_release(image);
    bw_device_close(dev);
    free_work(&w);
}

static void peaks_are_measured(void **state)
{
    (void)state;
    for (int i = BW_SIM_ISA_AUTO; i < BW_SIM_ISA_LIMIT; i++) {
        bw_sim_peak peak;
        if (!bw_sim_isa_available((bw_sim_isa)i)) {
            assert_is(BW_UNSUPPORTED, bw_sim_peak_measure((bw_sim_isa)i, &peak, &err));
            continue;
        }
        assert_ok(bw_sim_peak_measure((bw_sim_isa)i, &peak, &err));
        assert_true(bw_sim_isa_available(peak.isa) && peak.isa != BW_SIM_ISA_AUTO);
        assert_true(peak.int8 > 0.05 && peak.int8 < 1e5); /* a slow emulator .. any core for years */
        assert_true(peak.fp32 > 0.05 && peak.fp32 < 1e5);
        assert_non_null(peak.int8_by);
    }
    double rate;
    assert_ok(bw_sim_read_rate(1 << 16, &rate, &err));
    assert_true(rate > 0.05 && rate < 1e5);
    assert_is(BW_INVALID_ARGUMENT, bw_sim_read_rate(63, &rate, &err));
}

/* --- faults ----------------------------------------------------------------------------------------------------- */

static void wait_for_reset(bw_device *dev)
{
    for (int k = 0; state_of(dev).health == BW_HEALTH_RESETTING && k < 1000; k++)
        usleep(1000);
}

static void injected_faults(void **state)
{
    (void)state;
    bw_device *dev;
    bw_image *image;
    work w = make_work(7, 0, 0);
    assert_ok(bw_device_open("sim:?threads=1&fault=error@2&fault=hang@4&fault=nomem@6&fault=lost@8", &dev, &err));
    assert_ok(load(dev, &w, &image));
    for (int i = 1; i <= 7; i++) {
        uint64_t start = bw_now_ns();
        bw_status status = run(image, &w, i == 4 ? 100 * MS : 0);
        assert_is(i == 2 ? BW_DEVICE_FAULT : i == 4 ? BW_TIMEOUT : i == 6 ? BW_NO_MEMORY : BW_OK, status);
        assert_true(bw_now_ns() - start < 2000 * MS);
        if (!status)
            assert_memory_equal(w.out, w.expected, w.bytes);
        wait_for_reset(dev); /* a run may be queued before it is over; the state settles at once */
        assert_int_equal(state_of(dev).health, BW_HEALTH_OK);
    }
    assert_int_equal(state_of(dev).faults, 2);
    assert_int_equal(state_of(dev).resets, 2);
    assert_is(BW_DEVICE_LOST, run(image, &w, 0));
    assert_is(BW_DEVICE_LOST, run(image, &w, 0));
    assert_text("dead");
    assert_int_equal(state_of(dev).health, BW_HEALTH_DEAD);
    bw_image_release(image);
    bw_device_close(dev);
    /* Closed and opened: as new. */
    assert_ok(bw_device_open("sim:?threads=1&fault=error@2&fault=hang@4&fault=nomem@6&fault=lost@8", &dev, &err));
    assert_ok(load(dev, &w, &image));
    assert_ok(run(image, &w, 0));
    assert_int_equal(state_of(dev).runs, 1);
    bw_image_release(image);
    bw_device_close(dev);
    free_work(&w);
}

/* A transfer and a memory that fail, and a bit that turns: found before it spoils a result. */
static void faults_of_memory(void **state)
{
    (void)state;
    static const char *const engines[] = {"fast", "reference"};
    for (unsigned e = 0; e < sizeof engines / sizeof *engines; e++) {
        bw_device *dev;
        bw_image *image;
        char uri[120];
        work w = make_work(7, 0, 0);
        assert_true(w.c.constants_size > 0);
        snprintf(uri, sizeof uri, "sim:?engine=%s&threads=1&scrub=1&fault=dma@2&fault=ecc@4&fault=flip@6", engines[e]);
        assert_ok(bw_device_open(uri, &dev, &err));
        assert_ok(load(dev, &w, &image));
        for (int i = 1; i <= 8; i++) {
            assert_is(i == 2 || i == 4 || i == 6 ? BW_DEVICE_FAULT : BW_OK, run(image, &w, 0));
            if (i % 2)
                assert_memory_equal(w.out, w.expected, w.bytes);
            else if (i < 8)
                assert_text(i == 2 ? "transfer" : i == 4 ? "memory error" : "constants in the device's memory changed");
            wait_for_reset(dev);
            assert_int_equal(state_of(dev).health, BW_HEALTH_OK);
        }
        assert_int_equal(state_of(dev).faults, 3);
        assert_int_equal(state_of(dev).resets, 3);
        bw_image_release(image);
        bw_device_close(dev);
        free_work(&w);
    }
}

/* The bit turns in run 1; the sum is looked at before every third run. */
static void scrub_comes_every_so_often(void **state)
{
    (void)state;
    bw_device *dev;
    bw_image *image;
    work w = make_work(7, 0, 0);
    assert_ok(bw_device_open("sim:?threads=1&scrub=3&fault=flip@1", &dev, &err));
    assert_ok(load(dev, &w, &image));
    for (int i = 1; i <= 6; i++) {
        assert_is(i == 3 ? BW_DEVICE_FAULT : BW_OK, run(image, &w, 0));
        wait_for_reset(dev);
        if (i > 3)
            assert_memory_equal(w.out, w.expected, w.bytes);
    }
    bw_image_release(image);
    bw_device_close(dev);
    free_work(&w);
}

static void another_bitstream_after_reset_is_death(void **state)
{
    (void)state;
    bw_device *dev;
    bw_image *image;
    work w = make_work(7, 0, 0);
    assert_ok(bw_device_open("sim:?threads=1&fault=uuid@2", &dev, &err));
    assert_ok(load(dev, &w, &image));
    assert_ok(run(image, &w, 0));
    assert_is(BW_DEVICE_FAULT, run(image, &w, 0));
    wait_for_reset(dev);
    assert_int_equal(state_of(dev).health, BW_HEALTH_DEAD);
    assert_is(BW_DEVICE_LOST, run(image, &w, 0));
    /* Its next reset finds what belongs there. */
    assert_ok(bw_device_reset(dev, &err));
    assert_ok(run(image, &w, 0));
    assert_memory_equal(w.out, w.expected, w.bytes);
    bw_image_release(image);
    bw_device_close(dev);
    free_work(&w);
}

static void hang_without_reset_is_death(void **state)
{
    (void)state;
    bw_device *dev;
    bw_image *image;
    bw_fence *fence, *behind;
    work w = make_work(8, 0, 0), v = make_work(8, 0, 0);
    assert_ok(bw_device_open("sim:?fault=hang@1&reset=fail&threads=1", &dev, &err));
    assert_ok(load(dev, &w, &image));
    assert_ok(bw_image_submit(image, w.c.in, w.out, w.c.batch, &fence, &err));
    assert_ok(bw_image_submit(image, v.c.in, v.out, v.c.batch, &behind, &err));
    assert_is(BW_TIMEOUT, bw_fence_wait(fence, 50 * MS, &err));
    uint64_t start = bw_now_ns();
    bw_fence_cancel(fence);
    assert_is(BW_CANCELLED, bw_fence_wait(fence, 0, &err));
    assert_is(BW_DEVICE_LOST, bw_fence_wait(behind, 0, &err));
    assert_true(bw_now_ns() - start < 2000 * MS);
    bw_fence_release(fence);
    bw_fence_release(behind);
    assert_int_equal(state_of(dev).health, BW_HEALTH_DEAD);
    bw_image_release(image);
    bw_device_close(dev);
    free_work(&w);
    free_work(&v);
}

static void slow_runs_are_cancelled(void **state)
{
    (void)state;
    bw_device *dev;
    bw_image *image;
    work w = make_work(9, 0, 0);
    assert_ok(bw_device_open("sim:?delay=30000&threads=1", &dev, &err));
    assert_ok(load(dev, &w, &image));
    uint64_t start = bw_now_ns();
    assert_is(BW_TIMEOUT, run(image, &w, 30 * MS));
    assert_true(bw_now_ns() - start < 1000 * MS);
    assert_int_equal(state_of(dev).faults, 0);
    bw_image_release(image);
    bw_device_close(dev);
    free_work(&w);
}

/* Each run's own deadline counts, whatever the supervisor was waiting for before. */
static void deadlines_follow_each_other(void **state)
{
    (void)state;
    bw_device *dev;
    bw_image *image;
    work w = make_work(9, 0, 0);
    assert_ok(bw_device_open("sim:?fault=hang@4&fault=hang@6&threads=1", &dev, &err));
    assert_ok(load(dev, &w, &image));
    assert_ok(run(image, &w, 60000 * MS));
    assert_ok(run(image, &w, 0));
    assert_ok(run(image, &w, 20 * MS));
    for (int i = 4; i <= 7; i++) {
        const uint64_t start = bw_now_ns();
        assert_is(i % 2 ? BW_OK : BW_TIMEOUT, run(image, &w, i % 2 ? 60000 * MS : 50 * MS));
        assert_true(bw_now_ns() - start < 2000 * MS);
    }
    bw_image_release(image);
    bw_device_close(dev);
    free_work(&w);
}

/* --- bitstreams ------------------------------------------------------------------------------------------------- */

static void *bitstream(const char *target, size_t *size)
{
    const char *tmp = getenv("TMPDIR");
    char path[512];
    snprintf(path, sizeof path, "%s/bw-sim-%ld.bwbit", tmp ? tmp : "/tmp", (long)getpid());
    assert_ok(bw_sim_write_bitstream(target, path, &err));
    void *bytes;
    assert_ok(bw_file_read(path, 1 << 20, &bytes, size, &err));
    unlink(path);
    return bytes;
}

static void bitstream_changes_the_device(void **state)
{
    (void)state;
    size_t mx_size, msfp_size, sim_size;
    char *mx = bitstream("u250-mx", &mx_size), *msfp = bitstream("u250-msfp", &msfp_size);
    char *sim = bitstream("", &sim_size);
    bw_device *dev;
    bw_image *image, *again;
    work w = make_work(10, 1u << BW_FORMAT_MSFP12 | 1u << BW_FORMAT_BF16, 1);
    assert_ok(bw_device_open("sim:u250?delay=30&threads=1", &dev, &err));
    assert_string_equal(info(dev).bitstream, "");
    assert_ok(load(dev, &w, &image));

    /* Refused ones leave everything as it was. */
    assert_is(BW_INCOMPATIBLE, bw_device_load_bitstream(dev, sim, sim_size, &err));
    assert_text("'sim'");
    assert_text("'sim-u250'");
    msfp[msfp_size - 2] ^= 1;
    assert_is(BW_CHECKSUM, bw_device_load_bitstream(dev, msfp, msfp_size, &err));
    msfp[msfp_size - 2] ^= 1;
    assert_is(BW_CORRUPT, bw_device_load_bitstream(dev, msfp, 7, &err));
    assert_ok(run(image, &w, 0));
    assert_memory_equal(w.out, w.expected, w.bytes);

    bw_fence *fence;
    assert_ok(bw_image_submit(image, w.c.in, w.out, w.c.batch, &fence, &err));
    assert_is(BW_BUSY, bw_device_load_bitstream(dev, mx, mx_size, &err));
    assert_ok(bw_fence_wait(fence, 0, &err));
    bw_fence_release(fence);

    uint32_t before = info(dev).offers.formats;
    assert_ok(bw_device_load_bitstream(dev, mx, mx_size, &err));
    assert_int_equal(strlen(info(dev).bitstream), 36);
    assert_true(info(dev).offers.formats != before);
    assert_non_null(strstr(info(dev).name, "mx only"));
    assert_int_equal(state_of(dev).memory_used, 0);
    assert_is(BW_NOT_FOUND, run(image, &w, 0)); /* dropped */
    assert_text("load it again");
    assert_is(BW_NOT_FOUND, bw_image_submit(image, w.c.in, w.out, w.c.batch, &fence, &err));
    assert_true(bw_image_program(image)->needs.formats >> BW_FORMAT_MSFP12 & 1u);
    assert_is(BW_INCOMPATIBLE, load(dev, &w, &again));
    assert_text("uses format msfp12, the device has ");
    assert_text("mxfp4_e2m1");
    assert_text("quantize to one of these or pick another device");
    assert_ok(bw_device_load_bitstream(dev, msfp, msfp_size, &err));
    assert_ok(load(dev, &w, &again));
    char uuid[BW_UUID_TEXT];
    strcpy(uuid, info(dev).bitstream);
    assert_ok(bw_device_load_bitstream(dev, msfp, msfp_size, &err)); /* it is there already: nothing is dropped */
    assert_ok(run(again, &w, 0));
    assert_memory_equal(w.out, w.expected, w.bytes);
    assert_ok(bw_device_reset(dev, &err)); /* the bitstream stays */
    assert_string_equal(info(dev).bitstream, uuid);
    assert_ok(run(again, &w, 0));
    assert_memory_equal(w.out, w.expected, w.bytes);
    bw_image_release(image);
    bw_image_release(again);
    assert_int_equal(state_of(dev).memory_used, 0);
    bw_device_close(dev);
    assert_is(BW_NOT_FOUND, bw_sim_write_bitstream("vu9p", "/dev/null", &err));
    free(mx);
    free(msfp);
    free(sim);
    free_work(&w);
}

#define OFFERS(version)                                                                                                \
    "\"offers\":{\"isa_version\":" version ",\"formats\":[\"fp32\"],\"opcodes\":[\"COPY\"],\"blocks\":[16],"           \
    "\"act_bytes\":1048576,\"const_bytes\":1048576}"

static bw_status configure(bw_device *dev, const char *kind, const char *payload, char uuid[BW_UUID_TEXT])
{
    bw_bitstream bits;
    memset(&bits, 0, sizeof bits);
    strcpy(bits.interface_id, info(dev).interface_id);
    strcpy(bits.part, info(dev).part);
    strcpy(bits.name, "of a test");
    bits.offers = info(dev).offers;
    bits.payload_count = 1;
    strcpy(bits.payloads[0].kind, kind);
    bits.payloads[0].bytes = payload;
    bits.payloads[0].size = strlen(payload);
    void *bytes;
    size_t size;
    assert_ok(bw_bitstream_write(&bits, &bytes, &size, &err));
    strcpy(uuid, bits.uuid);
    bw_status status = bw_device_load_bitstream(dev, bytes, size, &err);
    free(bytes);
    return status;
}

static void memory_is_limited(void **state)
{
    (void)state;
    bw_device *dev;
    bw_image *first, *second;
    char uuid[BW_UUID_TEXT];
    assert_ok(bw_device_open("sim:?threads=1", &dev, &err));
    work w = make_work(20, 0, 0);
    assert_ok(load(dev, &w, &first));
    uint64_t need = state_of(dev).memory_used;
    bw_image_release(first);
    bw_requirements offers = info(dev).offers;
    for (uint64_t room = need - 1; room <= 2 * need; room = room == need - 1 ? 2 * need - 1 : room + 1) {
        json_t *root = json_pack("{s:s, s:I, s:o}", "name", "small", "memory_bytes", (json_int_t)room, "offers",
                                 bw_requirements_to_json(&offers));
        char *text = json_dumps(root, 0);
        json_decref(root);
        assert_non_null(text);
        assert_ok(configure(dev, "sim-arch", text, uuid));
        free(text);
        assert_is(room < need ? BW_NO_MEMORY : BW_OK, load(dev, &w, &first));
        if (room < need) {
            assert_text("take a smaller model");
            continue;
        }
        const uint64_t evictions = state_of(dev).evictions;
        assert_ok(load(dev, &w, &second)); /* in the place of the first, if there is no other */
        assert_int_equal(state_of(dev).memory_used, room < 2 * need ? need : 2 * need);
        assert_int_equal(state_of(dev).evictions - evictions, room < 2 * need ? 1 : 0);
        assert_ok(run(first, &w, 0));
        assert_memory_equal(w.out, w.expected, w.bytes);
        assert_ok(run(second, &w, 0));
        assert_memory_equal(w.out, w.expected, w.bytes);
        assert_int_equal(state_of(dev).evictions - evictions, room < 2 * need ? 3 : 0);
        bw_image_release(first);
        bw_image_release(second);
        assert_int_equal(state_of(dev).memory_used, 0);
    }
    assert_is(BW_INCOMPATIBLE, configure(dev, "xclbin", "x", uuid));
    assert_text("no payload of kind 'sim-arch'");
    bw_device_close(dev);
    free_work(&w);
}

/* A container that is sound around a payload that is not: refused, and the device is as before. */
static void hostile_payloads_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *payload, *text;
        bw_status status;
    } cases[] = {
        {"{\"name\":\"tiny\",\"memory_bytes\":4096," OFFERS("1") "}", "", BW_OK},
        {"{\"name\":\"tiny\",\"memory_bytes\":4096," OFFERS("2") "}", "ISA version 2", BW_VERSION_MISMATCH},
        {"{\"name\":\"tiny\",\"memory_bytes\":-1," OFFERS("1") "}", "memory_bytes", BW_CORRUPT},
        {"{\"name\":\"tiny\",\"memory_bytes\":1e3," OFFERS("1") "}", "memory_bytes", BW_CORRUPT},
        {"{\"name\":\"\",\"memory_bytes\":1," OFFERS("1") "}", "name", BW_CORRUPT},
        {"{\"memory_bytes\":1," OFFERS("1") "}", "name", BW_CORRUPT},
        {"{\"name\":\"tiny\",\"memory_bytes\":1}", "offers", BW_CORRUPT},
        {"[1,2]", "name", BW_CORRUPT},
        {"not json", "no JSON", BW_CORRUPT},
        {"{\"name\":\"tiny\"", "no JSON", BW_CORRUPT},
    };
    bw_device *dev;
    assert_ok(bw_device_open("sim:?threads=1", &dev, &err));
    char before[BW_UUID_TEXT] = "";
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        char uuid[BW_UUID_TEXT];
        assert_is(cases[i].status, configure(dev, "sim-arch", cases[i].payload, uuid));
        if (cases[i].status)
            assert_text(cases[i].text);
        else
            strcpy(before, uuid);
        assert_string_equal(info(dev).bitstream, before);
        assert_int_equal(info(dev).memory_bytes, 4096);
        assert_int_equal(state_of(dev).health, BW_HEALTH_OK);
    }
    bw_device_close(dev);
}

int main(void)
{
    if (bw_sim_register(&err)) {
        printf("not ok 1 - register: %s\n", err.message);
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(enumerated_devices_open),
        cmocka_unit_test(options_are_checked),
        cmocka_unit_test(u250_has_limits),
        cmocka_unit_test(images_share_a_device),
        cmocka_unit_test(timed_runs_give_the_same_bits),
        cmocka_unit_test(the_reference_does_not_time),
        cmocka_unit_test(peaks_are_measured),
        cmocka_unit_test(injected_faults),
        cmocka_unit_test(faults_of_memory),
        cmocka_unit_test(scrub_comes_every_so_often),
        cmocka_unit_test(another_bitstream_after_reset_is_death),
        cmocka_unit_test(hang_without_reset_is_death),
        cmocka_unit_test(slow_runs_are_cancelled),
        cmocka_unit_test(deadlines_follow_each_other),
        cmocka_unit_test(bitstream_changes_the_device),
        cmocka_unit_test(hostile_payloads_are_refused),
        cmocka_unit_test(memory_is_limited),
    };
    return cmocka_run_group_tests_name("sim device", tests, NULL, NULL);
}
