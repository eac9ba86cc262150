/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fast engine gives the bits of the reference interpreter: random programs x ISA x threads x batch, compared with
 * ==. And the comparison itself is shown to find a single wrong bit of a weight, of an exponent, of an output.
 * BW_LONG runs thousands of programs; BW_SEED=n starts at another seed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/compare.h"
#include "tests/support/random_program.h"

static const bw_compare_engine reference = {.name = "reference", .run = bw_compare_reference};

static uint64_t first_seed(void)
{
    const char *text = getenv("BW_SEED");
    return text ? strtoull(text, NULL, 10) : 1;
}

static unsigned count(unsigned quick, unsigned full)
{
    return getenv("BW_LONG") ? full : quick;
}

static void parse(const struct bw_random_case *c, uint64_t seed, bw_program *program)
{
    bw_error err;
    if (bw_program_parse(c->program, c->program_size, program, &err) ||
        bw_program_check_constants(program, c->constants, c->constants_size, &err))
        fail_msg("seed %llu: %s", (unsigned long long)seed, err.message);
}

/* Both layouts of kernels get their share. */
static unsigned pipes_of(uint64_t seed, unsigned threads)
{
    return (seed + threads) % 2 ? 2 : 4;
}

/* Runs one case on `isa` with each number of threads, whole batch and first image alone. */
static void compare_case(uint64_t seed, const struct bw_random_case *c, const bw_program *program, const void *expected,
                         bw_sim_isa isa)
{
    uint8_t *out = malloc(c->out_bytes * c->batch + 1);
    assert_non_null(out);
    for (unsigned threads = 1; threads <= 4; threads++) {
        const bw_fast_options options = {isa, threads, pipes_of(seed, threads), 1};
        bw_fast *engine;
        bw_error err;
        if (bw_fast_create(program, c->constants, &options, &engine, &err))
            fail_msg("seed %llu: %s", (unsigned long long)seed, err.message);
        assert_string_equal(bw_fast_isa_name(engine), bw_sim_isa_name(isa));
        const uint32_t batches[2] = {1, c->batch};
        for (unsigned b = 0; b < 2; b++) {
            const size_t bytes = c->out_bytes * batches[b];
            memset(out, 0xA5, c->out_bytes * c->batch + 1);
            if (bw_fast_run(engine, c->in, out, batches[b], NULL, &err))
                fail_msg("seed %llu: %s", (unsigned long long)seed, err.message);
            assert_int_equal(out[bytes], 0xA5);
            if (memcmp(out, expected, bytes) == 0)
                continue;
            const bw_compare_engine fast = {bw_sim_isa_name(isa), bw_compare_fast, isa, threads, options.pipes, NULL};
            const bw_compare_case detail = {program, c->constants, c->in, batches[b]};
            char report[BW_COMPARE_REPORT] = "differ in this run only: the engine is not deterministic";
            bw_program_print(program, stderr);
            bw_compare_engines(&detail, &reference, &fast, report);
            fail_msg("seed %llu, %u threads, batch %u: %s", (unsigned long long)seed, threads, batches[b], report);
        }
        bw_fast_destroy(engine);
    }
    free(out);
}

static void compare_isa(bw_sim_isa isa, const struct bw_random_options *options, unsigned cases)
{
    if (!bw_sim_isa_available(isa)) {
        print_message("# this CPU lacks %s\n", bw_sim_isa_name(isa));
        skip();
    }
    for (uint64_t seed = first_seed(), end = seed + cases; seed < end; seed++) {
        struct bw_random_case c;
        bw_program program;
        assert_int_equal(bw_random_case_make(seed, options, &c), 0);
        parse(&c, seed, &program);
        uint8_t *expected = malloc(c.out_bytes * c.batch + 1);
        assert_non_null(expected);
        assert_int_equal(bw_reference_run(&program, c.constants, c.in, expected, c.batch, NULL), BW_OK);
        compare_case(seed, &c, &program, expected, isa);
        free(expected);
        bw_random_case_free(&c);
    }
}

/* Small programs of everything; larger convolutions, whose work is cut into several items, chunks and groups. */
static const struct bw_random_options mixed = {.max_batch = 8, .max_work = 60000};
static const struct bw_random_options convolutions = {.opcodes = 1u << BW_OP_CONV | 1u << BW_OP_COPY,
                                                      .max_operations = 2,
                                                      .max_extent = 14,
                                                      .max_channels = 300,
                                                      .max_batch = 2,
                                                      .max_work = 3000000};

static void portable_mixed(void **state)
{
    (void)state;
    compare_isa(BW_SIM_ISA_PORTABLE, &mixed, count(150, 3000));
}

static void portable_convolutions(void **state)
{
    (void)state;
    compare_isa(BW_SIM_ISA_PORTABLE, &convolutions, count(10, 200));
}

static void avx2_mixed(void **state)
{
    (void)state;
    compare_isa(BW_SIM_ISA_AVX2, &mixed, count(150, 3000));
}

static void avx2_convolutions(void **state)
{
    (void)state;
    compare_isa(BW_SIM_ISA_AVX2, &convolutions, count(20, 400));
}

static void avx512vnni_mixed(void **state)
{
    (void)state;
    compare_isa(BW_SIM_ISA_AVX512VNNI, &mixed, count(250, 5000));
}

static void avx512vnni_convolutions(void **state)
{
    (void)state;
    compare_isa(BW_SIM_ISA_AVX512VNNI, &convolutions, count(30, 600));
}

static void amx_mixed(void **state)
{
    (void)state;
    compare_isa(BW_SIM_ISA_AMX, &mixed, count(250, 5000));
}

static void amx_convolutions(void **state)
{
    (void)state;
    compare_isa(BW_SIM_ISA_AMX, &convolutions, count(60, 1200));
}

/* --- planted errors --------------------------------------------------------------------------------------------------
 */

typedef struct planted {
    const void *constants; /* instead of the case's own */
    size_t flip_bit;       /* of the outputs; SIZE_MAX: none */
} planted;

static bw_status run_planted(const bw_compare_engine *engine, const bw_program *program, const void *constants,
                             const void *in, void *out, uint32_t batch, bw_error *err)
{
    const planted *p = engine->user;
    bw_status status = bw_compare_fast(engine, program, p->constants ? p->constants : constants, in, out, batch, err);
    if (!status && p->flip_bit != SIZE_MAX)
        ((uint8_t *)out)[p->flip_bit / 8] ^= (uint8_t)(1u << p->flip_bit % 8);
    return status;
}

/* Flips one bit of the first CONV's weights or exponents. What is expected comes from the reference interpreter run
 * on the spoiled constants: exactly where its outputs change, the comparison must speak up and name the CONV. */
static unsigned plant_in_constants(uint64_t seed, int in_exponents)
{
    struct bw_random_case c;
    bw_program program;
    assert_int_equal(bw_random_case_make(seed, &mixed, &c), 0);
    parse(&c, seed, &program);
    uint32_t i = 0;
    while (i < program.header->instruction_count && program.instructions[i].opcode != BW_OP_CONV)
        i++;
    unsigned found = 0;
    if (i < program.header->instruction_count) {
        const bw_instruction *ins = &program.instructions[i];
        const bw_format_traits *t = bw_format_get((bw_format)ins->weight_format);
        const size_t bytes = c.out_bytes * c.batch, size = (c.constants_size + 63) / 64 * 64;
        uint8_t *spoiled = aligned_alloc(64, size), *good = malloc(bytes), *bad = malloc(bytes);
        assert_true(spoiled && good && bad);
        memcpy(spoiled, c.constants, c.constants_size);
        if (in_exponents) { /* the exponent of output 0, block 0: one less, or one more at the low end */
            int8_t *e = (int8_t *)spoiled + ins->weight_exps;
            *e = (int8_t)(*e > t->exp_min ? *e - 1 : *e + 1);
        } else {
            spoiled[ins->weights] ^= 1; /* the last bit of output 0, input 0 */
        }
        assert_int_equal(bw_reference_run(&program, c.constants, c.in, good, c.batch, NULL), BW_OK);
        assert_int_equal(bw_reference_run(&program, spoiled, c.in, bad, c.batch, NULL), BW_OK);
        planted p = {spoiled, SIZE_MAX};
        const bw_compare_engine engine = {"planted", run_planted, BW_SIM_ISA_AUTO, 2, 0, &p};
        const bw_compare_case detail = {&program, c.constants, c.in, c.batch};
        char report[BW_COMPARE_REPORT] = "", expected[64];
        const int changed = memcmp(good, bad, bytes) != 0;
        if (bw_compare_engines(&detail, &reference, &engine, report) != changed)
            fail_msg("seed %llu: planted error %s: %s", (unsigned long long)seed, changed ? "missed" : "imagined",
                     report);
        snprintf(expected, sizeof expected, "instruction %u (CONV)", i);
        if (changed && !strstr(report, expected))
            fail_msg("seed %llu: expected %s, reported: %s", (unsigned long long)seed, expected, report);
        found = (unsigned)changed;
        free(spoiled);
        free(good);
        free(bad);
    }
    bw_random_case_free(&c);
    return found;
}

static void finds_a_wrong_weight(void **state)
{
    unsigned found = 0;
    for (uint64_t seed = 1; seed <= 60; seed++)
        found += plant_in_constants(seed, 0);
    assert_in_range(found, 5, 60);
    (void)state;
}

static void finds_a_wrong_exponent(void **state)
{
    unsigned found = 0;
    for (uint64_t seed = 1; seed <= 60; seed++)
        found += plant_in_constants(seed, 1);
    assert_in_range(found, 5, 60);
    (void)state;
}

static void finds_a_wrong_output_bit(void **state)
{
    for (uint64_t seed = 1; seed <= 40; seed++) {
        struct bw_random_case c;
        bw_program program;
        assert_int_equal(bw_random_case_make(seed, &mixed, &c), 0);
        parse(&c, seed, &program);
        planted p = {NULL, seed * 7919 % (c.out_bytes * c.batch * 8)};
        const bw_compare_engine engine = {"planted", run_planted, BW_SIM_ISA_AUTO, 1, 0, &p};
        const bw_compare_case detail = {&program, c.constants, c.in, c.batch};
        char report[BW_COMPARE_REPORT];
        assert_int_equal(bw_compare_engines(&detail, &reference, &engine, report), 1);
        p.flip_bit = SIZE_MAX; /* and without the error all is well */
        assert_int_equal(bw_compare_engines(&detail, &reference, &engine, report), 0);
        bw_random_case_free(&c);
    }
    (void)state;
}

/* The environment forces an ISA where the options leave the choice. */
static void environment_forces_isa(void **state)
{
    struct bw_random_case c;
    bw_program program;
    assert_int_equal(bw_random_case_make(1, &mixed, &c), 0);
    parse(&c, 1, &program);
    for (bw_sim_isa isa = BW_SIM_ISA_PORTABLE; isa < BW_SIM_ISA_LIMIT; isa++) {
        bw_fast *engine;
        bw_error err;
        setenv("BW_SIM_ISA", bw_sim_isa_name(isa), 1);
        bw_status status = bw_fast_create(&program, c.constants, NULL, &engine, &err);
        unsetenv("BW_SIM_ISA");
        assert_int_equal(status, bw_sim_isa_available(isa) ? BW_OK : BW_UNSUPPORTED);
        if (!status) {
            assert_string_equal(bw_fast_isa_name(engine), bw_sim_isa_name(isa));
            bw_fast_destroy(engine);
        }
    }
    bw_random_case_free(&c);
    (void)state;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(portable_mixed),
        cmocka_unit_test(portable_convolutions),
        cmocka_unit_test(avx2_mixed),
        cmocka_unit_test(avx2_convolutions),
        cmocka_unit_test(avx512vnni_mixed),
        cmocka_unit_test(avx512vnni_convolutions),
        cmocka_unit_test(amx_mixed),
        cmocka_unit_test(amx_convolutions),
        cmocka_unit_test(finds_a_wrong_weight),
        cmocka_unit_test(finds_a_wrong_exponent),
        cmocka_unit_test(finds_a_wrong_output_bit),
        cmocka_unit_test(environment_forces_isa),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
