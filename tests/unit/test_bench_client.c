/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of the load generator that need no server, and the service's idea of a short run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "service/client/histogram.h"
#include "service/client/request.h"
#include "service/model.h"
#include "service/proto/inference.pb-c.h"

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Against the sorted values: never too low, at most 0.1 % too high. */
static void quantiles_match_sorting(void **state)
{
    (void)state;
    enum { COUNT = 20000 };
    static uint64_t values[COUNT];
    uint64_t seed = 7;
    bw_histogram *h = bw_histogram_new();
    assert_non_null(h);
    double sum = 0;
    for (int i = 0; i < COUNT; i++) {
        /* Over 40 powers of two. */
        values[i] =
            (uint64_t)(bw_bench_random(&seed) * (double)((uint64_t)1 << (uint64_t)(bw_bench_random(&seed) * 40)));
        bw_histogram_add(h, values[i]);
        sum += (double)values[i];
    }
    qsort(values, COUNT, sizeof values[0], by_value);
    for (int i = 0; i <= 1000; i++) {
        double q = i / 1000.0;
        int rank = (int)(q * COUNT + 0.999999);
        uint64_t want = values[rank < 1 ? 0 : rank - 1], got = bw_histogram_quantile(h, q);
        assert_true(got >= want);
        assert_true((double)got <= (double)want * 1.001);
    }
    assert_int_equal(bw_histogram_quantile(h, 1), values[COUNT - 1]);
    assert_int_equal(h->low, values[0]);
    assert_int_equal(h->high, values[COUNT - 1]);
    assert_true(bw_histogram_mean(h) == sum / COUNT);
    free(h);
}

/* Every random number has a byte, whatever the seed: some are so near 1 that as floats they are 1. */
static void random_bytes(void **state)
{
    (void)state;
    for (uint64_t number = 1; number <= 40; number++) {
        bw_bench_input in = {
            .name = "x", .element = number % 2 ? BW_ELEMENT_U8 : BW_ELEMENT_I8, .rank = 2, .dims = {32, 150528}};
        uint64_t seed = 2 * number + 1;
        bw_error err = {0};
        if (bw_bench_fill(&in, "random", 1, &seed, &err))
            fail_msg("seed %d: %s", (int)number, err.message);
        assert_int_equal(in.bytes, 32 * 150528);
        free(in.values);
    }
}

static void histogram_ends(void **state)
{
    (void)state;
    bw_histogram *h = bw_histogram_new();
    assert_non_null(h);
    assert_int_equal(bw_histogram_quantile(h, 0.5), 0);
    assert_true(bw_histogram_mean(h) == 0);
    bw_histogram_add(h, UINT64_MAX);
    assert_true(bw_histogram_quantile(h, 0.5) == UINT64_MAX);
    bw_histogram_add(h, 0);
    assert_int_equal(bw_histogram_quantile(h, 0.5), 0);
    /* Each side of every bucket's border. */
    for (uint64_t v = 1; v < (uint64_t)1 << 44; v += v / 700 + 1) {
        bw_histogram *one = bw_histogram_new();
        assert_non_null(one);
        bw_histogram_add(one, v);
        bw_histogram_add(one, (uint64_t)1 << 44);
        uint64_t got = bw_histogram_quantile(one, 0.5);
        assert_true(got >= v && got - v <= v / 1024);
        free(one);
        if (v > 100000)
            v += v / 10;
    }
    free(h);
}

static void short_runs(void **state)
{
    (void)state;
    bw_pace p = {0};
    assert_false(bw_pace_is_short(&p, 100)); /* not known */
    bw_pace_note(&p, 10000, 1000);
    assert_true(bw_pace_is_short(&p, 1000));
    assert_true(bw_pace_is_short(&p, 4900));
    assert_false(bw_pace_is_short(&p, 5300));
    bw_pace_note(&p, 49000, 1000); /* interrupted for a moment */
    assert_true(bw_pace_is_short(&p, 1000));
    for (int i = 0; i < 100; i++)
        bw_pace_note(&p, 60000, 1000);
    assert_false(bw_pace_is_short(&p, 1));
    for (int i = 0; i < 100; i++)
        bw_pace_note(&p, 1000, 1000);
    assert_true(bw_pace_is_short(&p, 1000));
    p.device = 1; /* it may hang the next time */
    assert_false(bw_pace_is_short(&p, 1000));
}

/* However short the runs before: after one slow run none is on the receiving thread until several were short. */
static void a_slow_run_counts_at_once(void **state)
{
    (void)state;
    bw_pace p = {0};
    for (int i = 0; i < 100; i++)
        bw_pace_note(&p, 2000, 600000);
    assert_true(bw_pace_is_short(&p, 600000));
    bw_pace_note(&p, 30000000, 600000);
    assert_false(bw_pace_is_short(&p, 600000));
    assert_false(bw_pace_is_short(&p, 1));
    bw_pace_note(&p, 2000, 600000);
    assert_false(bw_pace_is_short(&p, 600000));
    for (int i = 0; i < 100; i++)
        bw_pace_note(&p, 2000, 600000);
    assert_true(bw_pace_is_short(&p, 600000));
}

static bw_bench_input input_x(void)
{
    return (bw_bench_input){.name = "x", .element = BW_ELEMENT_F32, .rank = 2, .dims = {-1, 4}};
}

static void shape_and_batch_agree(void **state)
{
    (void)state;
    bw_error err;
    bw_bench_input in = input_x();
    assert_int_equal(bw_bench_settle_shape(&in, "2,4", 3, &err), BW_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "--batch 3"));
    assert_int_equal(bw_bench_settle_shape(&in, "3,4", 3, &err), BW_OK);
    assert_int_equal(bw_bench_settle_shape(&in, "2,4", 1, &err), BW_OK);
    assert_int_equal(in.dims[0], 2);
}

/* Neither of them is read before it is refused: together 2 GiB. */
static void too_large_a_request(void **state)
{
    (void)state;
    bw_error err;
    bw_bench_input in[2] = {input_x(), input_x()};
    in[0].dims[0] = in[1].dims[0] = 1 << 26;
    in[0].bytes = in[1].bytes = (size_t)1 << 30;
    for (int p = BW_BENCH_KSERVE; p <= BW_BENCH_PREDICT; p++) {
        bw_bytes message = {0};
        assert_int_equal(bw_bench_message((bw_bench_protocol)p, "m", "", in, 2, &message, &err), BW_INVALID_ARGUMENT);
        assert_non_null(strstr(err.message, "2 GiB"));
        bw_bytes_free(&message);
    }
    bw_bytes message = {0};
    bw_bench_input picture = {.name = "x", .element = BW_ELEMENT_BYTES, .rank = 1, .dims = {4096}, .bytes = 1 << 20};
    assert_int_equal(bw_bench_message(BW_BENCH_KSERVE, "m", "", &picture, 1, &message, &err), BW_INVALID_ARGUMENT);
    bw_bytes_free(&message);
}

static bw_status read_names(const char *model, const char *input, const char *datatype, bw_error *err)
{
    Inference__ModelMetadataResponse r = INFERENCE__MODEL_METADATA_RESPONSE__INIT;
    Inference__ModelMetadataResponse__TensorMetadata t = INFERENCE__MODEL_METADATA_RESPONSE__TENSOR_METADATA__INIT;
    Inference__ModelMetadataResponse__TensorMetadata *inputs[] = {&t};
    int64_t shape[] = {-1, 4};
    uint8_t bytes[2048];
    r.name = (char *)(uintptr_t)model;
    t.name = (char *)(uintptr_t)input;
    t.datatype = (char *)(uintptr_t)datatype;
    t.shape = shape;
    t.n_shape = 2;
    r.inputs = inputs;
    r.n_inputs = 1;
    assert_true(protobuf_c_message_get_packed_size(&r.base) <= sizeof bytes);
    size_t size = protobuf_c_message_pack(&r.base, bytes), count;
    static bw_bench_input in[BW_MODEL_IO_MAX];
    char name[256];
    bw_status status = bw_bench_inputs_from_metadata(bytes, size, in, &count, name, err);
    for (const char *p = status ? err->message : ""; *p; p++)
        assert_in_range(*p, 0x20, 0x7e);
    if (!status) {
        assert_string_equal(name, model);
        assert_string_equal(in[0].name, input);
    }
    return status;
}

static void names_from_the_server(void **state)
{
    (void)state;
    bw_error err;
    char long_name[300];
    memset(long_name, 'n', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = 0;
    assert_int_equal(read_names("m\xc3\xbc", "x:0", "FP32", &err), BW_OK);
    const char *bad[] = {long_name, "a\033[2Jb", "a\x7f", "a\xff\xfe",
                         "a\xc2\x9b"
                         "2J"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(read_names(bad[i], "x", "FP32", &err), BW_UNSUPPORTED);
        assert_int_equal(read_names("m", bad[i], "FP32", &err), BW_UNSUPPORTED);
        assert_int_equal(read_names("m", "x", bad[i], &err), BW_UNSUPPORTED);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(quantiles_match_sorting),
        cmocka_unit_test(histogram_ends),
        cmocka_unit_test(random_bytes),
        cmocka_unit_test(short_runs),
        cmocka_unit_test(a_slow_run_counts_at_once),
        cmocka_unit_test(shape_and_batch_agree),
        cmocka_unit_test(too_large_a_request),
        cmocka_unit_test(names_from_the_server),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
