/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of the load generator that need no server, and the service's idea of a short run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "service/client/histogram.h"
#include "service/client/request.h"
#include "service/model.h"

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
    assert_false(bw_pace_is_short(&p, 100, 50000)); /* not known */
    bw_pace_note(&p, 10000, 1000, 0);
    assert_true(bw_pace_is_short(&p, 1000, 50000));
    assert_true(bw_pace_is_short(&p, 4900, 50000));
    assert_false(bw_pace_is_short(&p, 5100, 50000));
    bw_pace_note(&p, 4000000, 1000, 0); /* interrupted for a tick */
    assert_true(bw_pace_is_short(&p, 1000, 50000));
    for (int i = 0; i < 100; i++)
        bw_pace_note(&p, 60000, 1000, 0);
    assert_false(bw_pace_is_short(&p, 1, 50000));
    for (int i = 0; i < 100; i++)
        bw_pace_note(&p, 1000, 1000, 0);
    assert_true(bw_pace_is_short(&p, 1000, 50000));
    bw_pace_note(&p, 1000, 1000, 1); /* a device took part: it may hang the next time */
    bw_pace_note(&p, 1000, 1000, 0);
    assert_false(bw_pace_is_short(&p, 1000, 50000));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(quantiles_match_sorting),
        cmocka_unit_test(histogram_ends),
        cmocka_unit_test(short_runs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
