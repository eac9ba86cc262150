/* SPDX-License-Identifier: Apache-2.0 */
/* Regions of shared memory, copies out of mappings that go away, and values read from both kinds of regions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "service/guarded_copy.h"
#include "service/shared_memory.h"
#include "service/tensor.h"

static char key[64];
static int fd;
static struct sigaction guarded; /* cmocka takes SIGBUS for each test */
static atomic_int stop;

/* A segment in which each 32-bit word is its own number, as a float. */
static int set_up(void **state)
{
    (void)state;
    snprintf(key, sizeof key, "/bw-unit-%ld", (long)getpid());
    fd = shm_open(key, O_RDWR | O_CREAT | O_EXCL, 0600);
    assert_true(fd >= 0);
    for (uint32_t i = 0; i < 65536; i++) {
        float f = (float)i;
        assert_int_equal(pwrite(fd, &f, 4, i * 4), 4);
    }
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    close(fd);
    return shm_unlink(key);
}

static void expect_name(bw_shared_memory *m, const char *name, int fine)
{
    bw_error err;
    bw_status status = bw_shared_memory_register(m, name, key, 0, 4, &err);
    if ((status == BW_OK) != fine)
        fail_msg("name of %zu bytes, the first %02x: %s", strlen(name), (unsigned)(uint8_t)name[0],
                 status ? err.message : "accepted");
    if (!fine)
        assert_int_equal(status, BW_INVALID_ARGUMENT);
    bw_shared_memory_unregister(m, name);
}

static void names(void **state)
{
    (void)state;
    static const char *const good[] = {"a",
                                       " ",
                                       "~",
                                       "/",
                                       "\xc2\xa0",
                                       "\xdf\xbf",
                                       "\xe0\xa0\x80",
                                       "\xed\x9f\xbf",
                                       "\xef\xbf\xbd",
                                       "\xf0\x90\x80\x80",
                                       "\xf4\x8f\xbf\xbf",
                                       "a\xc3\xa9z"};
    static const char *const bad[] = {"",
                                      "\x1f",
                                      "\x7f",
                                      "\xc2\x80",
                                      "\xc2\x9f",
                                      "\x80",
                                      "\xbf",
                                      "\xc0\x80",
                                      "\xc1\xbf",
                                      "\xe0\x9f\xbf",
                                      "\xed\xa0\x80",
                                      "\xf0\x8f\xbf\xbf",
                                      "\xf4\x90\x80\x80",
                                      "\xf5\x80\x80\x80",
                                      "\xff",
                                      "\xc3",
                                      "\xe2\x82",
                                      "\xf0\x9f\x98",
                                      "a\xc3",
                                      "\xc3z",
                                      "a\nb"};
    char longest[BW_SHARED_NAME_MAX + 2];
    bw_shared_memory *m = bw_shared_memory_new(NULL, 4, 0);
    assert_non_null(m);
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        expect_name(m, good[i], 1);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        expect_name(m, bad[i], 0);
    memset(longest, 'n', sizeof longest);
    longest[BW_SHARED_NAME_MAX + 1] = 0;
    expect_name(m, longest, 0);
    longest[BW_SHARED_NAME_MAX] = 0;
    expect_name(m, longest, 1);
    bw_shared_memory_free(m);
}

/* A region lives as long as somebody uses it; its descriptor's number leaves low ones free. */
static void a_region_outlives_its_registry(void **state)
{
    (void)state;
    bw_error err;
    bw_shared_memory *m = bw_shared_memory_new("bw-unit", 2, 200);
    assert_int_equal(bw_shared_memory_register(m, "r", key, 100, 1000, &err), BW_OK);
    assert_true(fcntl(200, F_GETFD) >= 0);
    bw_shared_range range = {.offset = 300, .size = 4};
    assert_int_equal(bw_shared_memory_find(m, "r", &range, &err), BW_OK);
    assert_int_equal(bw_shared_place(&range), 400);
    bw_shared_memory_free(m);
    float f = 0;
    assert_int_equal(bw_shared_read(&range, 0, &f, 4, &err), BW_OK);
    assert_true(f == 100);
    bw_shared_region_release(range.region);
    assert_int_equal(fcntl(200, F_GETFD), -1);
}

/* Any order and size of reads, mapped or not, from places that are no page borders. */
static void values_in_any_order(void **state)
{
    (void)state;
    bw_error err;
    enum { COUNT = 30000, AT = 1003 };
    static float got[COUNT];
    bw_shared_memory *m = bw_shared_memory_new(NULL, 2, 0);
    for (int large = 0; large < 2; large++) {
        if (large)
            assert_int_equal(ftruncate(fd, (off_t)(BW_SHARED_MAPPED_MAX + 8192)), 0);
        assert_int_equal(
            bw_shared_memory_register(m, "r", key, 4, large ? BW_SHARED_MAPPED_MAX + 4096 : 65535 * 4, &err), BW_OK);
        bw_shared_range range = {.offset = (AT - 1) * 4, .size = COUNT * 4};
        assert_int_equal(bw_shared_memory_find(m, "r", &range, &err), BW_OK);
        assert_int_equal(bw_shared_is_mapped(&range), !large);
        bw_tensor_reader r = {0};
        assert_int_equal(bw_tensor_open_shared(&r, BW_ELEMENT_F32, &range, COUNT - 1, "x", &err), BW_INVALID_ARGUMENT);
        assert_int_equal(bw_tensor_open_shared(&r, BW_ELEMENT_F32, &range, COUNT, "x", &err), BW_OK);
        uint32_t random = 1;
        for (int i = 0; i < 3000; i++) {
            random = random * 1664525u + 1013904223u;
            size_t first = (random >> 8) % COUNT, count = 1 + (random >> 3) % 700;
            if (i % 100 == 0)
                count = COUNT;
            if (count > COUNT - first)
                count = COUNT - first;
            assert_int_equal(bw_tensor_read(&r, first, count, got, &err), BW_OK);
            for (size_t k = 0; k < count; k++) {
                if (got[k] != (float)(AT + first + k))
                    fail_msg("value %zu of %zu from %zu is %g", k, count, first, (double)got[k]);
            }
        }
        bw_tensor_close(&r);
        bw_shared_region_release(range.region);
        bw_shared_memory_unregister(m, "r");
        assert_int_equal(ftruncate(fd, 65536 * 4), 0);
    }
    bw_shared_memory_free(m);
}

/* --- copies out of what goes away --------------------------------------------------------------------------------- */

static void a_page_that_is_gone(void **state)
{
    (void)state;
    static uint8_t to[4 * 4096];
    const uint8_t *map = mmap(NULL, 4 * 4096, PROT_READ, MAP_SHARED, fd, 0);
    assert_true(map != MAP_FAILED);
    sigaction(SIGBUS, &guarded, NULL);
    for (int i = 0; i < 3; i++) {
        assert_true(bw_guarded_copy(to, map, sizeof to));
        assert_int_equal(ftruncate(fd, 2 * 4096), 0);
        assert_false(bw_guarded_copy(to, map, sizeof to));
        assert_false(bw_guarded_copy(to, map + 2 * 4096, 1));
        assert_false(bw_guarded_copy(to, map + 2 * 4096 - 1, 2));
        assert_true(bw_guarded_copy(to, map, 2 * 4096));
        assert_int_equal(ftruncate(fd, 65536 * 4), 0);
    }
    munmap((void *)(uintptr_t)map, 4 * 4096);
}

/* What no guarded copy has raised ends the process as ever, sent or met. */
static void other_signals_of_this_kind(void **state)
{
    (void)state;
    for (int met = 0; met < 2; met++) {
        pid_t child = fork();
        if (!child) {
            sigaction(SIGBUS, &guarded, NULL);
            volatile const uint8_t *map = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 4096 * 1024);
            uint8_t byte = 0;
            if (bw_guarded_copy(&byte, (const void *)(uintptr_t)map, 1))
                _exit(100);
            if (met)
                byte = map[0];
            else
                raise(SIGBUS);
            _exit(101 + (byte != 0));
        }
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
        /* Theirs reports, and exits. */
        assert_true(WIFSIGNALED(status) || WEXITSTATUS(status) < 100);
#else
        assert_true(WIFSIGNALED(status));
        assert_int_equal(WTERMSIG(status), SIGBUS);
#endif
    }
}

static void *copy_much(void *user)
{
    const uint8_t *map = user;
    uint8_t to[8192];
    uintptr_t failed = 0;
    for (unsigned i = 0; !atomic_load(&stop); i++)
        failed += !bw_guarded_copy(to, map + (size_t)(i % 8) * 4096, sizeof to);
    return (void *)failed;
}

/* Each thread meets its own. */
static void many_threads(void **state)
{
    (void)state;
    void *map = mmap(NULL, 16 * 4096, PROT_READ, MAP_SHARED, fd, 0), *failed;
    pthread_t threads[4];
    uintptr_t all = 0;
    sigaction(SIGBUS, &guarded, NULL);
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, copy_much, map), 0);
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(ftruncate(fd, i % 9 * 4096), 0);
        usleep(50);
        assert_int_equal(ftruncate(fd, 16 * 4096), 0);
        usleep(50);
    }
    atomic_store(&stop, 1);
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], &failed);
        printf("# thread %d: %zu copies failed\n", i, (size_t)(uintptr_t)failed);
        all += (uintptr_t)failed;
    }
    assert_true(all > 0);
    munmap(map, 16 * 4096);
}

int main(void)
{
    bw_guard_install();
    sigaction(SIGBUS, NULL, &guarded);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(names, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_region_outlives_its_registry, set_up, tear_down),
        cmocka_unit_test_setup_teardown(values_in_any_order, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_page_that_is_gone, set_up, tear_down),
        cmocka_unit_test_setup_teardown(other_signals_of_this_kind, set_up, tear_down),
        cmocka_unit_test_setup_teardown(many_threads, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
