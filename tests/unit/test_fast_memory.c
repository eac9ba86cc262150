/* SPDX-License-Identifier: Apache-2.0 */
/* The fast engine allocates nothing once it has run its largest batch: every allocation of the process is counted. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "sim/sim.h"
#include "tests/support/random_program.h"

#if defined(__has_feature)
#define HAS_FEATURE(x) __has_feature(x)
#else
#define HAS_FEATURE(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || HAS_FEATURE(address_sanitizer) ||                 \
    HAS_FEATURE(thread_sanitizer)
#define HAS_OWN_MALLOC 1 /* the sanitizer's, which must stay */
#else
#define HAS_OWN_MALLOC 0

static atomic_uint allocations;

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *p, size_t size);
void *__libc_memalign(size_t align, size_t size);

void *malloc(size_t size)
{
    atomic_fetch_add(&allocations, 1);
    return __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    atomic_fetch_add(&allocations, 1);
    return __libc_calloc(count, size);
}

void *realloc(void *p, size_t size)
{
    atomic_fetch_add(&allocations, 1);
    return __libc_realloc(p, size);
}

void *aligned_alloc(size_t align, size_t size)
{
    atomic_fetch_add(&allocations, 1);
    return __libc_memalign(align, size);
}

int posix_memalign(void **p, size_t align, size_t size)
{
    atomic_fetch_add(&allocations, 1);
    *p = __libc_memalign(align, size);
    return *p ? 0 : ENOMEM;
}
#endif

static void runs_allocate_nothing(void **state)
{
    (void)state;
#if HAS_OWN_MALLOC
    print_message("# SKIP: the sanitizer has its own malloc, which cannot be counted\n");
    skip();
#else
    const uint32_t most = 3;
    unsigned trimmed = 0;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        struct bw_random_case c;
        assert_int_equal(bw_random_case_make(seed, NULL, &c), 0);
        bw_program program;
        bw_error err;
        assert_int_equal(bw_program_parse(c.program, c.program_size, &program, &err), BW_OK);
        uint8_t *in = calloc(most, c.in_bytes), *out = calloc(most, c.out_bytes);
        assert_true(in && out);
        const bw_fast_options options = {BW_SIM_ISA_AUTO, 1 + (unsigned)(seed % 3), 0, 1};
        bw_fast *engine;
        assert_int_equal(bw_fast_create(&program, c.constants, &options, &engine, &err), BW_OK);
        assert_int_equal(bw_fast_run(engine, in, out, most, NULL, &err), BW_OK);
        const unsigned before = atomic_load(&allocations);
        for (uint32_t batch = 1; batch <= most; batch++)
            assert_int_equal(bw_fast_run(engine, in, out, batch, NULL, &err), BW_OK);
        assert_int_equal(atomic_load(&allocations), before);
        /* What is trimmed away comes back with the next run, and nothing else. */
        uint8_t *again = calloc(most, c.out_bytes);
        assert_non_null(again);
        const unsigned kept = atomic_load(&allocations);
        bw_fast_trim(engine, SIZE_MAX);
        assert_int_equal(bw_fast_run(engine, in, out, most, NULL, &err), BW_OK);
        assert_int_equal(atomic_load(&allocations), kept);
        bw_fast_trim(engine, 0);
        assert_int_equal(bw_fast_run(engine, in, again, most, NULL, &err), BW_OK);
        assert_true(atomic_load(&allocations) <= kept + 1);
        assert_memory_equal(out, again, most * c.out_bytes);
        trimmed += atomic_load(&allocations) - kept;
        free(again);
        bw_fast_destroy(engine);
        free(in);
        free(out);
        bw_random_case_free(&c);
    }
    assert_true(atomic_load(&allocations) > 0); /* they are counted */
    assert_true(trimmed > 0);
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(runs_allocate_nothing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
