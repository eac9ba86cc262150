/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The `xrt` backend on emulated cards behind the genuine XRT libraries: faults of every kind, cards that are killed in
 * the middle of runs, several cards, several devices of one card, many runs. The suite for all devices
 * (test_devices.c) runs on them by tests/cli/test_xrt.sh. Starts itself again inside the emulation.
 */
#include <dirent.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "hal/base.h"
#include "hal/bitstream.h"
#include "hal/hal.h"
#include "kernels/xclbin.h"
#include "sim/sim.h"
#include "tests/support/footprint.h"
#include "tests/support/random_program.h"

#define MS UINT64_C(1000000)

static bw_error err;
static const char *faults;
static int slow = 1; /* a sanitizer's factor */

static bw_device *open_device(const char *uri)
{
    bw_device *dev;
    if (bw_device_open(uri, &dev, &err))
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
    assert_int_equal(bw_device_info_get(dev, &info, &err), BW_OK);
    return info;
}

/* --- a program with its expected output --------------------------------------------------------------------------- */

typedef struct work {
    struct bw_random_case c;
    bw_image *image;
    char *expected, *out;
    size_t bytes;
} work;

static void make_work(bw_device *dev, uint64_t seed, work *w)
{
    memset(w, 0, sizeof *w);
    assert_int_equal(bw_random_case_make(seed, NULL, &w->c), 0);
    w->bytes = w->c.batch * w->c.out_bytes;
    w->expected = malloc(w->bytes);
    w->out = malloc(w->bytes);
    if (bw_image_load(dev, w->c.program, w->c.program_size, w->c.constants, w->c.constants_size, &w->image, &err) ||
        bw_reference_run(bw_image_program(w->image), w->c.constants, w->c.in, w->expected, w->c.batch, &err))
        fail_msg("seed %d: %s", (int)seed, err.message);
}

static void free_work(work *w)
{
    bw_image_release(w->image);
    bw_random_case_free(&w->c);
    free(w->expected);
    free(w->out);
}

static bw_status run(work *w, uint64_t timeout_ns)
{
    memset(w->out, 0xee, w->bytes);
    bw_status status = bw_image_run(w->image, w->c.in, w->out, w->c.batch, timeout_ns, &err);
    if (status && (!err.message[0] || strchr(err.message, '\n')))
        fail_msg("status %d without a line", status);
    if (!status && memcmp(w->out, w->expected, w->bytes) != 0)
        fail_msg("other bits than the reference");
    return status;
}

/* The next run is right, and comes within 2 s. */
static void assert_back(work *w)
{
    const uint64_t start = bw_now_ns();
    if (run(w, 5000 * MS))
        fail_msg("not back: %s", err.message);
    if (bw_now_ns() - start > 2000 * MS * (unsigned)slow)
        fail_msg("back only after %.1f s", (double)(bw_now_ns() - start) / 1e9);
}

static void order(const char *kind, const char *when)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", faults, kind);
    bw_slice slice = {when, strlen(when)};
    assert_int_equal(bw_file_write_atomic(path, &slice, 1, &err), BW_OK);
}

static int is_left(const char *kind)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", faults, kind);
    return access(path, F_OK) == 0;
}

/* The cards' processes: children of this one. */
static unsigned cards(pid_t *pids, unsigned room)
{
    unsigned count = 0;
    DIR *d = opendir("/proc/self/task");
    for (struct dirent *e; d && (e = readdir(d));) {
        char path[300], name[32] = "";
        snprintf(path, sizeof path, "/proc/self/task/%s/children", e->d_name);
        FILE *f = fopen(path, "r");
        for (int pid; f && fscanf(f, "%d", &pid) == 1;) {
            snprintf(path, sizeof path, "/proc/%d/comm", pid);
            FILE *comm = fopen(path, "r");
            if (comm && fgets(name, sizeof name, comm) && strcmp(name, "blockwave-card\n") == 0 && count < room)
                pids[count++] = pid;
            if (comm)
                fclose(comm);
        }
        if (f)
            fclose(f);
    }
    closedir(d);
    return count;
}

/* --- faults ------------------------------------------------------------------------------------------------------- */

static void every_fault_ends_in_a_status(void **state)
{
    (void)state;
    static const struct {
        const char *kind, *when;
        bw_status status;
        const char *says;
    } cases[] = {
        {"die", "1", BW_DEVICE_FAULT, "the card is gone"},
        {"exit", "1", BW_DEVICE_FAULT, "the card is gone"},
        {"error", "1", BW_DEVICE_FAULT, "fault to order"},
        {"hang", "1", BW_TIMEOUT, "still running"},
        {"freeze", "1", BW_TIMEOUT, "still running"},
        {"ecc", "1", BW_DEVICE_FAULT, "uncorrectable error"},
        {"flip", "1", BW_OK, ""}, /* see below */
        {"lost", "1", BW_DEVICE_FAULT, "another input"},
        {"zeros", "1", BW_DEVICE_FAULT, "a transfer was lost"},
        {"stall", "3", BW_DEVICE_FAULT, "the card is gone"},
        {"delay", "1 100", BW_OK, ""},
    };
    bw_device *dev = open_device("xrt:0");
    work w;
    make_work(dev, 11, &w);
    assert_back(&w);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (strcmp(cases[i].kind, "flip") == 0)
            continue;
        const uint64_t start = bw_now_ns();
        memset(w.c.in, 0, 4); /* another input than before: a lost transfer must be seen */
        ((float *)w.c.in)[0] = (float)i + 0.5f;
        assert_int_equal(
            bw_reference_run(bw_image_program(w.image), w.c.constants, w.c.in, w.expected, w.c.batch, &err), BW_OK);
        order(cases[i].kind, cases[i].when);
        bw_status status = run(&w, cases[i].status == BW_TIMEOUT ? 300 * MS : 10000 * MS);
        const double seconds = (double)(bw_now_ns() - start) / 1e9;
        print_message("# %s: %s after %.3f s\n", cases[i].kind, status ? err.message : "ok", seconds);
        if (is_left(cases[i].kind))
            fail_msg("%s did not happen", cases[i].kind);
        if (status != cases[i].status || (status && !strstr(err.message, cases[i].says)))
            fail_msg("%s: status %d: %s", cases[i].kind, status, status ? err.message : "");
        if (seconds > 3 * slow)
            fail_msg("%s: %.1f s", cases[i].kind, seconds);
        assert_back(&w);
    }
    bw_device_state now = state_of(dev);
    assert_int_equal(now.health, BW_HEALTH_OK);
    assert_int_equal(now.faults, now.resets);
    free_work(&w);
    bw_device_close(dev);
}

/* A turned bit is not reported by the card: the driver looks at what lies there before every so-manieth run. */
static void a_turned_bit_is_found(void **state)
{
    (void)state;
    bw_device *dev = open_device("xrt:0?scrub=1");
    work w;
    make_work(dev, 12, &w);
    for (int i = 0; i < 3; i++) {
        assert_back(&w);
        order("flip", "1"); /* at the look itself: it sees the change */
        assert_int_equal(run(&w, 10000 * MS), BW_DEVICE_FAULT);
        print_message("# flip: %s\n", err.message);
        assert_back(&w);
    }
    free_work(&w);
    bw_device_close(dev);
}

/* The card comes up as something else after its reset: it is dead, until a reset brings it back. */
static void another_configuration_after_reset(void **state)
{
    (void)state;
    bw_device *dev = open_device("xrt:0");
    work w;
    make_work(dev, 13, &w);
    assert_back(&w);
    order("build", "1");
    assert_int_equal(bw_device_reset(dev, &err), BW_DEVICE_LOST);
    print_message("# %s\n", err.message);
    assert_non_null(strstr(err.message, "came up as build"));
    assert_int_equal(state_of(dev).health, BW_HEALTH_DEAD);
    assert_int_equal(run(&w, 1000 * MS), BW_DEVICE_LOST);
    assert_int_equal(bw_device_reset(dev, &err), BW_OK);
    assert_back(&w);
    free_work(&w);
    bw_device_close(dev);
}

/* --- cards that are killed ---------------------------------------------------------------------------------------- */

typedef struct killer {
    atomic_int go, kills;
} killer;

static void *kill_cards(void *user)
{
    killer *k = user;
    uint32_t random = 12345;
    while (atomic_load(&k->go)) {
        random = random * 1664525u + 1013904223u;
        const long ns = slow * (2000000 + (long)(random >> 8) % 30000000);
        nanosleep(&(struct timespec){ns / 1000000000, ns % 1000000000}, NULL);
        pid_t pids[8];
        unsigned n = cards(pids, 8);
        for (unsigned i = 0; i < n; i++)
            atomic_fetch_add(&k->kills, kill(pids[i], SIGKILL) == 0);
    }
    return NULL;
}

static void killed_in_mid_run(void **state)
{
    (void)state;
    const int wanted = getenv("BW_LONG") ? 100 : 25;
    bw_device *dev = open_device("xrt:0");
    work w[3];
    for (int i = 0; i < 3; i++)
        make_work(dev, 20 + (uint64_t)i, &w[i]);
    killer k = {1, 0};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, kill_cards, &k), 0);
    int good = 0, failed = 0;
    double worst = 0;
    for (int i = 0; atomic_load(&k.kills) < wanted || i < 50; i++) {
        const uint64_t start = bw_now_ns();
        bw_status status = run(&w[i % 3], 5000 * MS);
        const double seconds = (double)(bw_now_ns() - start) / 1e9;
        worst = seconds > worst ? seconds : worst;
        if (status && status != BW_DEVICE_FAULT && status != BW_DEVICE_LOST)
            fail_msg("status %d: %s", status, err.message);
        good += !status;
        failed += status != BW_OK;
        if (state_of(dev).health == BW_HEALTH_DEAD && bw_device_reset(dev, &err) == BW_OK)
            failed++;
    }
    atomic_store(&k.go, 0);
    pthread_join(thread, NULL);
    print_message("# %d kills: %d runs were right, %d ended with a fault, the longest took %.3f s\n",
                  atomic_load(&k.kills), good, failed, worst);
    if (worst > 2 * slow)
        fail_msg("a run took %.1f s", worst);
    if (state_of(dev).health == BW_HEALTH_DEAD) /* killed in the middle of the last reset */
        assert_int_equal(bw_device_reset(dev, &err), BW_OK);
    run(&w[0], 5000 * MS);
    for (int i = 0; i < 3; i++)
        assert_back(&w[i]);
    for (int i = 0; i < 3; i++)
        free_work(&w[i]);
    bw_device_close(dev);
    pid_t pids[8];
    assert_int_equal(cards(pids, 8), 0); /* nobody is left behind, not even a zombie */
}

/* --- several ------------------------------------------------------------------------------------------------------ */

typedef struct caller {
    const char *uri;
    uint64_t seed;
    int runs, failures;
} caller;

/* No assertions: a thread. */
static void *use_device(void *user)
{
    caller *c = user;
    bw_device *dev;
    bw_error why;
    struct bw_random_case r;
    c->failures = 1000;
    if (bw_device_open(c->uri, &dev, &why) || bw_random_case_make(c->seed, NULL, &r))
        return NULL;
    bw_image *image;
    const size_t bytes = r.batch * r.out_bytes;
    char *out = malloc(bytes), *expected = malloc(bytes);
    if (bw_image_load(dev, r.program, r.program_size, r.constants, r.constants_size, &image, &why) == BW_OK &&
        bw_reference_run(bw_image_program(image), r.constants, r.in, expected, r.batch, &why) == BW_OK) {
        c->failures = 0;
        for (int i = 0; i < c->runs; i++) {
            memset(out, 0xee, bytes);
            c->failures += bw_image_run(image, r.in, out, r.batch, 0, &why) || memcmp(out, expected, bytes) != 0;
        }
        bw_image_release(image);
    }
    bw_device_close(dev);
    free(out);
    free(expected);
    bw_random_case_free(&r);
    return NULL;
}

static void use_all(const char *const *uris, int count)
{
    pthread_t threads[8];
    caller callers[8];
    for (int i = 0; i < count; i++) {
        callers[i] = (caller){uris[i], 40 + (uint64_t)i, 60, 0};
        assert_int_equal(pthread_create(&threads[i], NULL, use_device, &callers[i]), 0);
    }
    for (int i = 0; i < count; i++) {
        pthread_join(threads[i], NULL);
        if (callers[i].failures)
            fail_msg("%s: %d failures", uris[i], callers[i].failures);
    }
}

static void two_cards_four_threads(void **state)
{
    (void)state;
    static const char *const uris[] = {"xrt:0", "xrt:1", "xrt:0", "xrt:1"};
    use_all(uris, 4);
}

/* The HAL makes devices by URI; the card is opened once. */
static void devices_of_one_card(void **state)
{
    (void)state;
    static const char *const uris[] = {"xrt:0", "xrt:0?scrub=7", "xrt:0?timeout=5000", "xrt:0?scrub=7"};
    use_all(uris, 4);
    bw_device *a = open_device("xrt:0"), *b = open_device("xrt:0?scrub=7");
    work wa, wb;
    make_work(a, 50, &wa);
    make_work(b, 51, &wb);
    for (int i = 0; i < 3; i++) { /* what a reset of one takes from the other comes back by itself */
        assert_int_equal(bw_device_reset(a, &err), BW_OK);
        assert_back(&wb);
        assert_back(&wa);
        order("die", "1");
        assert_int_equal(run(&wb, 5000 * MS), BW_DEVICE_FAULT);
        assert_back(&wa);
        assert_back(&wb);
    }
    free_work(&wa);
    free_work(&wb);
    bw_device_close(a);
    bw_device_close(b);
}

/* One card's loss is none of the other's business. */
static void loss_of_one_card(void **state)
{
    (void)state;
    bw_device *a = open_device("xrt:0"), *b = open_device("xrt:1");
    work wa, wb;
    make_work(a, 60, &wa);
    make_work(b, 61, &wb);
    for (int i = 0; i < 5; i++) {
        order("die.0", "1");
        assert_int_equal(run(&wa, 5000 * MS), BW_DEVICE_FAULT);
        assert_int_equal(run(&wb, 5000 * MS), BW_OK);
        assert_back(&wa);
    }
    assert_int_equal(state_of(b).faults, 0);
    free_work(&wa);
    free_work(&wb);
    bw_device_close(a);
    bw_device_close(b);
}

/* A caller that gives up gets its buffers back in time, whatever the card does. */
static void cancelled_runs(void **state)
{
    (void)state;
    bw_device *dev = open_device("xrt:0?timeout=700");
    work w;
    make_work(dev, 70, &w);
    assert_back(&w);
    order("hang", "1");
    uint64_t start = bw_now_ns();
    assert_int_equal(run(&w, 50 * MS), BW_TIMEOUT);
    assert_true(bw_now_ns() - start < 500 * MS * (unsigned)slow);
    assert_int_equal(state_of(dev).resets, 0); /* the abort was clean */
    assert_back(&w);
    /* Nobody gives up: the driver's own deadline. */
    order("hang", "1");
    start = bw_now_ns();
    assert_int_equal(run(&w, 0), BW_DEVICE_FAULT);
    assert_non_null(strstr(err.message, "700 ms"));
    assert_true(bw_now_ns() - start < 2000 * MS * (unsigned)slow);
    assert_back(&w);
    free_work(&w);
    bw_device_close(dev);
}

/* A call into XRT that does not return in time: the device is given up, and opened anew when the call is over. */
static void a_call_that_does_not_return(void **state)
{
    (void)state;
    const char *before = getenv("BW_XRT_REPLY_MS");
    char kept[16] = "";
    snprintf(kept, sizeof kept, "%s", before ? before : "");
    setenv("BW_XRT_REPLY_MS", "7000", 1); /* looked at when the card comes up */
    bw_device *dev = open_device("xrt:0");
    work w, v;
    make_work(dev, 75, &w);
    make_work(dev, 76, &v);
    assert_back(&w);
    order("stall", "3");
    const uint64_t start = bw_now_ns();
    bw_status status = run(&w, 50 * MS);
    const double seconds = (double)(bw_now_ns() - start) / 1e9;
    print_message("# given up after %.1f s: %s\n", seconds, err.message);
    assert_int_equal(status, BW_DEVICE_LOST);
    assert_true(seconds < 4 * slow);
    assert_int_equal(state_of(dev).health, BW_HEALTH_DEAD);
    /* XRT has no second way to the card while the first is blocked. */
    assert_int_equal(bw_device_reset(dev, &err), BW_DEVICE_LOST);
    print_message("# %s\n", err.message);
    assert_non_null(strstr(err.message, "busy in this process"));
    while (bw_device_reset(dev, &err) && bw_now_ns() - start < 20000 * MS * (unsigned)slow)
        nanosleep(&(struct timespec){0, 100000000}, NULL);
    print_message("# back after %.1f s\n", (double)(bw_now_ns() - start) / 1e9);
    if (before)
        setenv("BW_XRT_REPLY_MS", kept, 1);
    else
        unsetenv("BW_XRT_REPLY_MS");
    assert_int_equal(state_of(dev).health, BW_HEALTH_OK);
    run(&w, 5000 * MS); /* may still meet what the blocked call has left */
    assert_back(&v);
    assert_back(&w);
    free_work(&w);
    free_work(&v);
    bw_device_close(dev);
}

/* --- bitstreams --------------------------------------------------------------------------------------------------- */

static void *container(const char *part, const void *payload, size_t size, size_t *out_size)
{
    bw_device *dev = open_device("xrt:0");
    bw_device_info info = info_of(dev);
    bw_device_close(dev);
    bw_bitstream bits;
    memset(&bits, 0, sizeof bits);
    snprintf(bits.interface_id, sizeof bits.interface_id, "%s", info.interface_id);
    snprintf(bits.part, sizeof bits.part, "%s", part ? part : info.part);
    snprintf(bits.name, sizeof bits.name, "test");
    bits.offers = info.offers;
    bits.payload_count = 1;
    snprintf(bits.payloads[0].kind, sizeof bits.payloads[0].kind, "xclbin");
    bits.payloads[0].bytes = payload;
    bits.payloads[0].size = size;
    void *bytes;
    assert_int_equal(bw_bitstream_write(&bits, &bytes, out_size, &err), BW_OK);
    return bytes;
}

static void bitstreams(void **state)
{
    (void)state;
    const void *xclbin;
    size_t size, n;
    assert_int_equal(bw_file_map(getenv("BW_XRT_XCLBIN"), &xclbin, &size, &err), BW_OK);
    bw_device *dev = open_device("xrt:0");
    work w;
    make_work(dev, 80, &w);
    char uuid[37];
    strcpy(uuid, info_of(dev).bitstream);
    assert_int_equal(strlen(uuid), 36); /* what BW_XRT_XCLBIN names */
    void *good = container(NULL, xclbin, size, &n);
    assert_int_equal(bw_device_load_bitstream(dev, good, n, &err), BW_OK);
    assert_string_not_equal(info_of(dev).bitstream, uuid);
    assert_int_equal(run(&w, 0), BW_NOT_FOUND); /* dropped */
    assert_int_equal(bw_device_load_bitstream(dev, good, n, &err), BW_OK);
    free_work(&w);
    make_work(dev, 81, &w);
    assert_back(&w);
    assert_int_equal(bw_device_reset(dev, &err), BW_OK);
    assert_back(&w); /* and the bitstream has stayed */
    free(good);

    void *other = container("another-card", xclbin, size, &n);
    assert_int_equal(bw_device_load_bitstream(dev, other, n, &err), BW_INCOMPATIBLE);
    assert_non_null(strstr(err.message, "another-card"));
    free(other);
    void *cut = container(NULL, xclbin, size - 100, &n);
    assert_int_equal(bw_device_load_bitstream(dev, cut, n, &err), BW_CORRUPT);
    free(cut);
    bw_accelerator foreign = *bw_accelerator_find(NULL);
    strcpy(foreign.platform, "somebody_elses_card_1");
    void *wrong;
    size_t wrong_size;
    assert_int_equal(bw_xclbin_write(&foreign, NULL, 0, &wrong, &wrong_size, &err), BW_OK);
    void *for_another = container(NULL, wrong, wrong_size, &n);
    assert_int_equal(bw_device_load_bitstream(dev, for_another, n, &err), BW_INCOMPATIBLE);
    print_message("# %s\n", err.message);
    assert_true(strstr(err.message, foreign.platform) && strstr(err.message, info_of(dev).part));
    free(for_another);
    free(wrong);
    assert_back(&w); /* refused: as before */
    free_work(&w);
    bw_device_close(dev);
    bw_file_unmap(xclbin, size);
}

/* --- many runs ---------------------------------------------------------------------------------------------------- */

static void many_runs(void **state)
{
    (void)state;
    const int rounds = getenv("BW_LONG") ? 10 : 2, runs = getenv("BW_LONG") ? 1000 : 500;
    const char *san = getenv("BW_SAN");
    bw_device *dev = open_device("xrt:0");
    work keep;
    make_work(dev, 90, &keep);
    bw_footprint before = {0}, card_before = {0};
    for (int round = -1; round < rounds; round++) {
        for (int i = 0; i < runs / 100; i++) { /* images come and go */
            work w;
            make_work(dev, 100 + (uint64_t)i % 10, &w);
            assert_back(&w);
            for (int k = 0; k < 99; k++)
                assert_int_equal(run(&keep, 0), BW_OK);
            free_work(&w);
        }
        if (round == 0) /* a reset is no leak either */
            assert_int_equal(bw_device_reset(dev, &err), BW_OK);
        pid_t pid;
        assert_int_equal(cards(&pid, 1), 1);
        const bw_footprint now = bw_footprint_of(getpid()), card = bw_footprint_of(pid);
        if (round == -1) {
            before = now;
            card_before = card;
        }
        assert_int_equal(now.files, before.files);
        assert_true(now.threads <=
                    before.threads + 1); /* a scheduler of XRT's that has had its day ends at the next run */
        print_message("# %d runs: %u files, %u threads, %ld + %ld KiB\n", (round + 2) * runs, now.files, now.threads,
                      now.anonymous_kib, card.anonymous_kib);
        if (!san || !*san) { /* a sanitizer keeps what was freed */
            assert_true(now.anonymous_kib - before.anonymous_kib < 4096);
            assert_true(card.anonymous_kib - card_before.anonymous_kib < 8192);
        }
    }
    assert_int_equal(state_of(dev).faults, 0);
    free_work(&keep);
    bw_device_close(dev);
    pid_t pid;
    assert_int_equal(cards(&pid, 1), 0);
}

/* --- inside the emulation ----------------------------------------------------------------------------------------- */

static int skip_all(const char *why)
{
    printf("1..1\nok 1 - emulated cards # SKIP %s\n", why);
    return 0;
}

/* Runs this program again as a command of blockwave-xrt-emulation. */
static int start_inside(char **argv)
{
    const char *bin = getenv("BW_BIN"), *tmp = getenv("TMPDIR");
    char helper[576], plugins[512], directory[256];
    if (!bin)
        return skip_all("BW_BIN is not set");
    snprintf(plugins, sizeof plugins, "%s/../lib", bin);
    snprintf(helper, sizeof helper, "%s/xrt/libxrt_swemu.so.2", plugins);
    if (access(helper, R_OK))
        return skip_all("XRT's emulation was not built (Debian: libxrt-dev, libxrt1)");
    snprintf(helper, sizeof helper, "%s/libbw_hal_xrt.so", plugins);
    if (access(helper, R_OK))
        return skip_all("the plug-in xrt was not built (Debian: libxrt-dev, uuid-dev)");
    snprintf(helper, sizeof helper, "%s/blockwave-xrt-emulation", bin);
    snprintf(directory, sizeof directory, "%s/bw-xrt-faults.%d", tmp ? tmp : "/tmp", (int)getpid());
    if (mkdir(directory, 0700))
        return skip_all("no folder for faults");
    setenv("BW_PLUGIN_PATH", plugins, 0);
    setenv("BW_XRT_TEST", directory, 1);
    const char *san = getenv("BW_SAN");
    if (san && *san) {
        setenv("BW_XRT_REPLY_MS", "3000", 0);
        /* XRT leaks in every call, and its threads outlive main: what is ours is looked at by test_card. */
        setenv("ASAN_OPTIONS", "detect_leaks=0:allocator_may_return_null=1", 1);
    }
    char run_word[] = "run", cards_word[] = "--cards", two[] = "2", faults_word[] = "--faults", end[] = "--";
    char *command[] = {helper, run_word, cards_word, two, faults_word, directory, end, argv[0], NULL};
    setsid(); /* whatever is killed in there, it is not the caller */
    execv(helper, command);
    return skip_all("blockwave-xrt-emulation cannot be started");
}

int main(int argc, char **argv)
{
    (void)argc;
    faults = getenv("BW_XRT_TEST");
    if (!faults)
        return start_inside(argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_fault_ends_in_a_status),
        cmocka_unit_test(a_turned_bit_is_found),
        cmocka_unit_test(another_configuration_after_reset),
        cmocka_unit_test(killed_in_mid_run),
        cmocka_unit_test(two_cards_four_threads),
        cmocka_unit_test(devices_of_one_card),
        cmocka_unit_test(loss_of_one_card),
        cmocka_unit_test(cancelled_runs),
        cmocka_unit_test(bitstreams),
        cmocka_unit_test(many_runs),
        cmocka_unit_test(a_call_that_does_not_return), /* the last: it leaves the card open for good */
    };
    const char *san = getenv("BW_SAN");
    slow = san && *san ? 5 : 1;
    bw_log_set_level(BW_LOG_ERROR);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    rmdir(faults);
    return failed;
}
