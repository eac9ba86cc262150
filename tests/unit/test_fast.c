/* SPDX-License-Identifier: Apache-2.0 */
/* The fast engine from inside: row kernels against kernels/formats.h, the pool, options, cancelling, reuse. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim/fast.h"
#include "tests/support/compare.h"

static uint64_t random_state = 1;

static uint32_t random_u32(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 32);
}

/* Floats of all magnitudes; about one in eight is a zero, a tie of a small format, or the largest float. */
static float random_float(void)
{
    static const float special[] = {0.0f, -0.0f, 0.5f, -1.5f, 2.5f, 0x1p-63f, 0x1p-149f, 3.4028235e38f};
    uint32_t r = random_u32();
    if (r % 8 == 0)
        return special[r / 8 % 8];
    uint32_t bits = random_u32();
    float x;
    if (r % 2) /* near one */
        bits = (bits & 0x80FFFFFF) | ((uint32_t)(120 + r / 8 % 16) << 23);
    memcpy(&x, &bits, sizeof x);
    return isfinite(x) ? x : 1.0f;
}

static const bw_rows *rows_of(bw_sim_isa isa)
{
    return isa == BW_SIM_ISA_AVX512VNNI ? &bw_rows_avx512vnni
           : isa == BW_SIM_ISA_AVX2     ? &bw_rows_avx2
                                        : &bw_rows_portable;
}

/* --- row kernels ----------------------------------------------------------------------------------------------------
 */

enum { N = 128 };

static void fill_values(const bw_format_traits *t, float values[256])
{
    for (int c = 0; c < 256; c++)
        values[c] = t->kind == BW_KIND_TABLE ? (float)bw_code_value(t, (unsigned)c) : 0.0f;
}

static void check_block_format(const bw_rows *rows, const char *isa, const bw_format_traits *t, unsigned block)
{
    float values[256], x[N], y[N], expected[N];
    uint8_t codes[2 * N], expected_codes[2 * N];
    const unsigned bytes = t->device_bytes;
    int8_t exps[N], expected_exps[N];
    fill_values(t, values);
    bw_row_format f = {t, t->kind, (uint16_t)block, values};
    for (int round = 0; round < 300; round++) {
        float factor = ldexpf(1.0f, (int)(random_u32() % 60) - 30);
        for (int i = 0; i < N; i++)
            x[i] = round % 3 == 0 ? random_float() : (float)((int)(random_u32() % 2049) - 1024) * factor / 64.0f;
        if (round % 7 == 0)
            memset(x, 0, block * sizeof *x);
        rows->encode(&f, x, N, codes, exps);
        for (unsigned i = 0; i < N; i += block)
            bw_encode_block(t, BW_ROUND_EVEN, x + i, block, expected_codes + i * bytes, &expected_exps[i / block]);
        for (unsigned i = 0; i < N * bytes; i++)
            if (codes[i] != expected_codes[i] || exps[i / bytes / block] != expected_exps[i / bytes / block])
                fail_msg("%s encodes %a to %s code byte 0x%02x exponent %d, expected 0x%02x %d", isa,
                         (double)x[i / bytes], t->name, codes[i], exps[i / bytes / block], expected_codes[i],
                         expected_exps[i / bytes / block]);
        for (unsigned i = 0; i < N * bytes; i++) /* all codes, the unused ones too */
            codes[i] = (uint8_t)random_u32();
        for (unsigned i = 0; i < N / block; i++)
            exps[i] = (int8_t)(t->exp_min + (int)(random_u32() % (uint32_t)(t->exp_max - t->exp_min + 1)));
        rows->decode(&f, codes, exps, N, y);
        for (unsigned i = 0; i < N; i += block)
            bw_decode_block(t, codes + i * bytes, exps[i / block], block, expected + i);
        assert_memory_equal(y, expected, sizeof y);
    }
}

static void check_vector_format(const bw_rows *rows, const char *isa, const bw_format_traits *t)
{
    enum { CODES = 65536 };
    uint16_t *codes = malloc(CODES * sizeof *codes);
    float *x = malloc((CODES + 16) * sizeof *x);
    assert_non_null(codes);
    assert_non_null(x);
    bw_row_format f = {t, t->kind, 1, NULL};
    for (int c = 0; c < CODES; c++)
        codes[c] = (uint16_t)c;
    rows->decode(&f, (const uint8_t *)codes, NULL, CODES, x);
    for (int c = 0; c < CODES; c++) {
        float y = bw_decode_vector(t, (uint16_t)c);
        if (!isnan(y) && memcmp(&y, &x[c], sizeof y))
            fail_msg("%s decodes %s 0x%04x to %a, expected %a", isa, t->name, c, (double)x[c], (double)y);
    }
    for (int round = 0; round < 4; round++) {
        size_t n = CODES - (size_t)round * 5; /* ends inside a vector */
        for (size_t i = 0; i < n; i++) {
            float y = bw_decode_vector(t, (uint16_t)i), z = bw_decode_vector(t, (uint16_t)(i + 1));
            /* each code, halfway to the next, and anything */
            x[i] = round == 0 ? y : round == 1 ? y / 2 + z / 2 : random_float();
            if (!isfinite(x[i]))
                x[i] = 1.0f;
        }
        rows->encode(&f, x, n, (uint8_t *)codes, NULL);
        for (size_t i = 0; i < n; i++)
            if (codes[i] != bw_encode_vector(t, x[i]))
                fail_msg("%s encodes %a to %s 0x%04x, expected 0x%04x", isa, (double)x[i], t->name, codes[i],
                         bw_encode_vector(t, x[i]));
    }
    free(codes);
    free(x);
}

static void rows_equal_formats(void **state)
{
    for (bw_sim_isa isa = BW_SIM_ISA_PORTABLE; isa <= BW_SIM_ISA_AVX512VNNI; isa++) {
        if (!bw_sim_isa_available(isa)) {
            print_message("# %s not available on this CPU\n", bw_sim_isa_name(isa));
            continue;
        }
        for (int f = 0; f < BW_FORMAT_LIMIT; f++) {
            const bw_format_traits *t = bw_format_get((bw_format)f);
            if (!t)
                continue;
            if (t->kind == BW_KIND_VECTOR)
                check_vector_format(rows_of(isa), bw_sim_isa_name(isa), t);
            for (unsigned block = 16; block <= 128; block *= 2)
                if (bw_format_is_block(t) && bw_format_block_ok(t, block))
                    check_block_format(rows_of(isa), bw_sim_isa_name(isa), t, block);
        }
    }
    (void)state;
}

static void rows_arithmetic(void **state)
{
    for (bw_sim_isa isa = BW_SIM_ISA_AVX2; isa <= BW_SIM_ISA_AVX512VNNI; isa++) {
        if (!bw_sim_isa_available(isa))
            continue;
        const bw_rows *r = rows_of(isa), *p = &bw_rows_portable;
        float a[N], b[N], y[N], z[N];
        const bw_row_activation acts[] = {
            {BW_ACT_NONE, 0, 0}, {BW_ACT_RELU, 0, 0}, {BW_ACT_CLIP, 0, 6}, {BW_ACT_CLIP, -1.5f, -1.5f}};
        for (int round = 0; round < 200; round++) {
            for (int i = 0; i < N; i++)
                a[i] = random_float(), b[i] = random_u32() % 4 ? random_float() : a[i];
#define CHECK(call_r, call_p)                                                                                          \
    do {                                                                                                               \
        memcpy(y, b, sizeof y);                                                                                        \
        memcpy(z, b, sizeof z);                                                                                        \
        call_r;                                                                                                        \
        call_p;                                                                                                        \
        assert_memory_equal(y, z, sizeof y);                                                                           \
    } while (0)
            CHECK(r->add(N, a, b, y), p->add(N, a, b, z));
            CHECK(r->mul(N, a, b, y), p->mul(N, a, b, z));
            CHECK(r->scale(N, 1.0f / 9, y), p->scale(N, 1.0f / 9, z));
            for (unsigned k = 0; k < 4; k++)
                CHECK(r->activate(&acts[k], N, y), p->activate(&acts[k], N, z));
            for (int i = 0; i < N; i++) /* tensors hold no -0 */
                a[i] += 0.0f, b[i] += 0.0f;
            CHECK(r->max(N, a, y), p->max(N, a, z));
        }
    }
    (void)state;
}

/* --- weight codes ----------------------------------------------------------------------------------------------------
 */

static void unpack_equals_formats(void **state)
{
    const bw_dot_kernels *kernels[] = {&bw_dot_portable, &bw_dot_avx2, &bw_dot_avx512vnni};
    for (bw_sim_isa isa = BW_SIM_ISA_PORTABLE; isa <= BW_SIM_ISA_AVX512VNNI; isa++)
        for (int f = 0; f < BW_FORMAT_LIMIT; f++) {
            const bw_format_traits *t = bw_format_get((bw_format)f);
            if (!bw_sim_isa_available(isa) || !t || t->device_bytes != 1 || t->code_bits == 8)
                continue;
            for (size_t count = 256; count <= 1024; count += 256) {
                const size_t size = bw_packed_size(t, count); /* exact, so that a sanitizer sees over-reads */
                uint8_t *packed = malloc(size), *codes = malloc(count), *expected = malloc(count);
                assert_true(packed && codes && expected);
                for (size_t i = 0; i < size; i++)
                    packed[i] = (uint8_t)random_u32();
                kernels[isa - 1]->unpack(t, packed, count, codes);
                bw_unpack(t, packed, count, expected);
                assert_memory_equal(codes, expected, count);
                free(packed);
                free(codes);
                free(expected);
            }
        }
    (void)state;
}

/* Words of nine bits, packed, to the pairs that dot16 takes. */
static void widen_words_equals_formats(void **state)
{
    (void)state;
    const bw_format_traits *t = bw_format_find("mx9");
    enum { BLOCKS = 3 };
    for (size_t block = 16; block <= 128; block *= 2) {
        const size_t count = BLOCKS * block * 16, size = bw_packed_size(t, count);
        uint8_t *packed = malloc(size);
        int16_t *codes = malloc(2 * count), *pairs = malloc(2 * count);
        assert_true(packed && codes && pairs);
        for (size_t i = 0; i < size; i++)
            packed[i] = (uint8_t)random_u32();
        bw_unpack(t, packed, count, codes);
        bw_widen_words(packed, BLOCKS, block, pairs);
        for (size_t k = 0; k < BLOCKS; k++)
            for (size_t i = 0; i < block; i++)
                for (size_t n = 0; n < 16; n++)
                    assert_int_equal(pairs[k * block * 16 + (i / 2 * 16 + n) * 2 + i % 2],
                                     codes[k * block * 16 + (i / 4 * 16 + n) * 4 + i % 4]);
        free(packed);
        free(codes);
        free(pairs);
    }
}

/* --- pool -----------------------------------------------------------------------------------------------------------
 */

typedef struct tally {
    atomic_int done[1000];
    atomic_int busy[BW_POOL_THREADS_MAX];
    atomic_int overlaps;
} tally;

static void count_item(void *context, size_t item, unsigned thread)
{
    tally *t = context;
    if (atomic_fetch_add(&t->busy[thread], 1))
        atomic_fetch_add(&t->overlaps, 1);
    atomic_fetch_add(&t->done[item], 1);
    atomic_fetch_sub(&t->busy[thread], 1);
}

static void pool_does_each_item_once(void **state)
{
    static tally t;
    for (unsigned threads = 1; threads <= 5; threads += 2) {
        bw_pool *pool;
        assert_int_equal(bw_pool_create(threads, &pool, NULL), BW_OK);
        assert_int_equal(bw_pool_threads(pool), threads);
        memset(&t, 0, sizeof t);
        const size_t sizes[] = {0, 1, 2, 7, 1000};
        int expected[1000] = {0};
        for (int round = 0; round < 200; round++) {
            size_t items = sizes[round % 5];
            bw_pool_run(pool, items, count_item, &t);
            for (size_t i = 0; i < items; i++)
                expected[i]++;
        }
        for (int i = 0; i < 1000; i++)
            assert_int_equal(atomic_load(&t.done[i]), expected[i]);
        assert_int_equal(atomic_load(&t.overlaps), 0);
        bw_pool_destroy(pool);
    }
    bw_error err;
    bw_pool *none;
    assert_int_equal(bw_pool_create(0, &none, &err), BW_INVALID_ARGUMENT);
    assert_int_equal(bw_pool_create(BW_POOL_THREADS_MAX + 1, &none, &err), BW_INVALID_ARGUMENT);
    bw_pool_destroy(NULL);
    (void)state;
}

/* --- a small network ------------------------------------------------------------------------------------------------
 */

/* fp32 input 6x6x20 -> msfp16 -> 3x3 CONV to 40 channels with RELU -> fp32. */
typedef struct net {
    struct {
        bw_program_header header;
        bw_instruction list[2];
    } bytes;
    bw_program program;
    uint8_t *constants;
    float in[8 * 6 * 6 * 20], out[8 * 6 * 6 * 40];
} net;

static net *make_net(void)
{
    net *n = calloc(1, sizeof *n);
    assert_non_null(n);
    const uint64_t weights = 3 * 18 * 256, exps = 3 * 18 * 16;
    const bw_instruction plain = {
        .kernel_y = 1, .kernel_x = 1, .stride_y = 1, .stride_x = 1, .dilation_y = 1, .dilation_x = 1, .groups = 1};
    const bw_tensor act = {.exps = 6 * 6 * 32,
                           .height = 6,
                           .width = 6,
                           .channels = 20,
                           .pixel_stride = 2,
                           .row_stride = 12,
                           .format = BW_FORMAT_MSFP16,
                           .region = BW_REGION_ACT,
                           .block = 16};
    bw_instruction *copy = &n->bytes.list[0], *conv = &n->bytes.list[1];
    *copy = *conv = plain;
    copy->opcode = BW_OP_COPY;
    copy->in = (bw_tensor){.height = 6,
                           .width = 6,
                           .channels = 20,
                           .pixel_stride = 20,
                           .row_stride = 120,
                           .format = BW_FORMAT_FP32,
                           .region = BW_REGION_IN,
                           .block = 1};
    copy->out0 = conv->in = act;
    conv->opcode = BW_OP_CONV;
    conv->activation = BW_ACT_RELU;
    conv->kernel_y = conv->kernel_x = 3;
    conv->origin_y = conv->origin_x = -1;
    conv->weight_format = BW_FORMAT_MSFP16;
    conv->weight_exps = bw_round_up(weights, 64);
    conv->out0 = (bw_tensor){.height = 6,
                             .width = 6,
                             .channels = 40,
                             .pixel_stride = 40,
                             .row_stride = 240,
                             .format = BW_FORMAT_FP32,
                             .region = BW_REGION_OUT,
                             .block = 1};
    n->bytes.header = (bw_program_header){.magic = BW_PROGRAM_MAGIC,
                                          .isa_version = BW_ISA_VERSION,
                                          .instruction_count = 2,
                                          .act_bytes = 6 * 6 * 34,
                                          .in_bytes = 6 * 6 * 20 * 4,
                                          .out_bytes = 6 * 6 * 40 * 4,
                                          .const_bytes = conv->weight_exps + bw_round_up(exps, 64)};
    n->constants = aligned_alloc(64, n->bytes.header.const_bytes);
    assert_non_null(n->constants);
    for (uint64_t i = 0; i < n->bytes.header.const_bytes; i++)
        n->constants[i] = i < conv->weight_exps ? (uint8_t)random_u32() : (uint8_t)(int8_t) - (int)(random_u32() % 12);
    for (size_t i = 0; i < sizeof n->in / sizeof n->in[0]; i++)
        n->in[i] = (float)((int)(random_u32() % 2001) - 1000) / 100.0f;
    bw_error err;
    if (bw_program_parse(&n->bytes, sizeof n->bytes, &n->program, &err) ||
        bw_program_check_constants(&n->program, n->constants, n->bytes.header.const_bytes, &err))
        fail_msg("%s", err.message);
    return n;
}

static void free_net(net *n)
{
    free(n->constants);
    free(n);
}

static void runs_give_the_same_bits(void **state)
{
    net *n = make_net();
    const bw_compare_engine reference = {.name = "reference", .run = bw_compare_reference};
    for (bw_sim_isa isa = BW_SIM_ISA_PORTABLE; isa <= BW_SIM_ISA_AVX512VNNI; isa++)
        for (unsigned threads = 1; threads <= 4; threads++)
            for (uint32_t batch = 1; batch <= 8; batch += 7) {
                if (!bw_sim_isa_available(isa))
                    continue;
                const bw_compare_engine fast = {bw_sim_isa_name(isa), bw_compare_fast, isa, threads, NULL};
                const bw_compare_case c = {&n->program, n->constants, n->in, batch};
                char report[BW_COMPARE_REPORT];
                if (bw_compare_engines(&c, &reference, &fast, report))
                    fail_msg("%u threads, batch %u: %s", threads, batch, report);
            }
    free_net(n);
    (void)state;
}

static void engine_is_reusable(void **state)
{
    net *n = make_net();
    const size_t image = 6 * 6 * 40;
    float *expected = malloc(sizeof n->out);
    assert_non_null(expected);
    assert_int_equal(bw_reference_run(&n->program, n->constants, n->in, expected, 8, NULL), BW_OK);
    bw_fast *engine;
    const bw_fast_options options = {BW_SIM_ISA_AUTO, 2};
    assert_int_equal(bw_fast_create(&n->program, n->constants, &options, &engine, NULL), BW_OK);
    const uint32_t batches[] = {1, 8, 3, 1, 5, 8};
    for (unsigned i = 0; i < 6; i++) {
        memset(n->out, 0xFF, sizeof n->out);
        assert_int_equal(bw_fast_run(engine, n->in, n->out, batches[i], NULL, NULL), BW_OK);
        assert_memory_equal(n->out, expected, batches[i] * image * sizeof(float));
        for (size_t k = batches[i] * image; k < 8 * image; k++)
            assert_true(isnan(n->out[k])); /* untouched */
    }
    bw_fast_destroy(engine);
    free(expected);
    free_net(n);
    (void)state;
}

static void refuses_and_cancels(void **state)
{
    net *n = make_net();
    bw_fast *engine;
    bw_error err;
    bw_fast_options options = {(bw_sim_isa)77, 1};
    assert_int_equal(bw_fast_create(&n->program, n->constants, &options, &engine, &err), BW_UNSUPPORTED);
    assert_non_null(strstr(err.message, "77"));
    options = (bw_fast_options){BW_SIM_ISA_PORTABLE, 65};
    assert_int_equal(bw_fast_create(&n->program, n->constants, &options, &engine, &err), BW_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "65"));

    setenv("BW_SIM_ISA", "sse9", 1);
    assert_int_equal(bw_fast_create(&n->program, n->constants, NULL, &engine, &err), BW_UNSUPPORTED);
    assert_non_null(strstr(err.message, "sse9"));
    setenv("BW_SIM_ISA", "portable", 1);
    const char *wrong[] = {"0", "-1", "65", "2x", " 2"};
    for (unsigned i = 0; i < 5; i++) {
        setenv("BW_SIM_THREADS", wrong[i], 1);
        assert_int_equal(bw_fast_create(&n->program, n->constants, NULL, &engine, &err), BW_INVALID_ARGUMENT);
        assert_non_null(strstr(err.message, wrong[i]));
    }
    setenv("BW_SIM_THREADS", "2", 1);
    assert_int_equal(bw_fast_create(&n->program, n->constants, NULL, &engine, &err), BW_OK);
    assert_string_equal(bw_fast_isa_name(engine), "portable");
    unsetenv("BW_SIM_ISA");
    unsetenv("BW_SIM_THREADS");

    atomic_int cancel = 1;
    assert_int_equal(bw_fast_run(engine, n->in, n->out, 1, &cancel, &err), BW_CANCELLED);
    assert_int_equal(bw_fast_run(engine, n->in, n->out, 0, NULL, &err), BW_INVALID_ARGUMENT);
    cancel = 0;
    assert_int_equal(bw_fast_run(engine, n->in, n->out, 1, &cancel, &err), BW_OK);
    bw_fast_destroy(engine);
    bw_fast_destroy(NULL);
    assert_string_equal(bw_sim_isa_name((bw_sim_isa)77), "?");
    assert_false(bw_sim_isa_available((bw_sim_isa)77));
    free_net(n);
    (void)state;
}

typedef struct caller {
    bw_fast *engine;
    const net *net;
    const float *expected;
    int wrong;
} caller;

static void *call_many(void *argument)
{
    caller *c = argument;
    float out[2 * 6 * 6 * 40];
    for (int i = 0; i < 20; i++)
        if (bw_fast_run(c->engine, c->net->in, out, 2, NULL, NULL) || memcmp(out, c->expected, sizeof out))
            c->wrong++;
    return NULL;
}

static void concurrent_runs_queue(void **state)
{
    net *n = make_net();
    bw_fast *engine;
    const bw_fast_options options = {BW_SIM_ISA_AUTO, 3};
    assert_int_equal(bw_reference_run(&n->program, n->constants, n->in, n->out, 2, NULL), BW_OK);
    assert_int_equal(bw_fast_create(&n->program, n->constants, &options, &engine, NULL), BW_OK);
    pthread_t threads[3];
    caller callers[3];
    for (int i = 0; i < 3; i++) {
        callers[i] = (caller){engine, n, n->out, 0};
        assert_int_equal(pthread_create(&threads[i], NULL, call_many, &callers[i]), 0);
    }
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(callers[i].wrong, 0);
    }
    bw_fast_destroy(engine);
    free_net(n);
    (void)state;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_equal_formats),       cmocka_unit_test(rows_arithmetic),
        cmocka_unit_test(unpack_equals_formats),    cmocka_unit_test(widen_words_equals_formats),
        cmocka_unit_test(pool_does_each_item_once), cmocka_unit_test(runs_give_the_same_bits),
        cmocka_unit_test(engine_is_reusable),       cmocka_unit_test(refuses_and_cancels),
        cmocka_unit_test(concurrent_runs_queue),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
