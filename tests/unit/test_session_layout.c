/* SPDX-License-Identifier: Apache-2.0 */
/* Memory orders of a tensor, in every small shape, and the scan for numbers that are none. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "host/session_layout.h"

static void orders_turn_into_each_other(void **state)
{
    (void)state;
    for (size_t channels = 1; channels <= 40; channels++) {
        for (size_t pixels = 1; pixels <= 70; pixels++) {
            size_t n = channels * pixels;
            /* Exact sizes: what reads or writes beyond them shows under AddressSanitizer. */
            float *first = malloc(n * sizeof *first), *last = malloc(n * sizeof *last),
                  *back = malloc(n * sizeof *back);
            assert_true(first && last && back);
            for (size_t i = 0; i < n; i++)
                first[i] = (float)i;
            assert_true(bw_to_channels_last(first, channels, pixels, last));
            for (size_t c = 0; c < channels; c++) {
                for (size_t i = 0; i < pixels; i++)
                    assert_true(last[i * channels + c] == first[c * pixels + i]);
            }
            bw_to_channels_first(last, channels, pixels, back);
            assert_memory_equal(back, first, n * sizeof *first);
            free(first);
            free(last);
            free(back);
        }
    }
}

static void the_first_bad_number_is_found(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    float x[200] = {0};
    for (size_t n = 0; n <= 200; n += 7) {
        for (size_t i = 0; i < n; i++)
            x[i] = i % 2 ? 3.4e38f : -1e-45f;
        assert_int_equal(bw_first_not_finite(x, n), n);
        for (size_t i = n; i--;) {
            x[i] = bad[i % 3];
            assert_int_equal(bw_first_not_finite(x, n), i);
        }
    }
}

/* Wherever it is: in whole tiles, in what is left of them, in copies. And the values go over all the same. */
static void laying_out_tells_bad_numbers(void **state)
{
    (void)state;
    static const size_t shapes[][2] = {{1, 150}, {150, 1}, {2, 40},  {3, 1},  {3, 75},
                                       {4, 64},  {16, 16}, {19, 37}, {64, 16}};
    static const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        const size_t channels = shapes[s][0], pixels = shapes[s][1], n = channels * pixels;
        float *first = malloc(n * sizeof *first), *last = malloc(n * sizeof *last);
        assert_true(first && last);
        for (size_t i = 0; i < n; i++)
            first[i] = i % 2 ? -3.4028235e38f : 1e-45f;
        assert_true(bw_to_channels_last(first, channels, pixels, last));
        for (size_t i = 0; i < n; i++) {
            const float was = first[i];
            first[i] = bad[i % 4];
            assert_false(bw_to_channels_last(first, channels, pixels, last));
            assert_memory_equal(&last[i % pixels * channels + i / pixels], &first[i], sizeof *first);
            first[i] = was;
        }
        free(first);
        free(last);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(orders_turn_into_each_other),
        cmocka_unit_test(the_first_bad_number_is_found),
        cmocka_unit_test(laying_out_tells_bad_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
