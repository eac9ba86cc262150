/* SPDX-License-Identifier: Apache-2.0 */
/* Values of requests as floats: every type, lengths that fill no vector, slices that cut values. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/formats.h"
#include "service/tensor.h"

/* Reads `count` values in pieces of `step` from a message that is cut at byte `cut`. */
static void read_values(bw_element element, const void *bytes, size_t count, size_t step, size_t cut, float *out)
{
    const size_t size = count * bw_element_get(element)->size;
    cut = cut < size ? cut : size;
    const bw_slice slices[2] = {{bytes, cut}, {(const uint8_t *)bytes + cut, size - cut}};
    bw_tensor_reader r;
    bw_error err = {0};
    if (bw_tensor_open(&r, element, BW_STORAGE_SAME, bw_cursor_over(slices, 2), 0, count, "x", &err))
        fail_msg("%s", err.message);
    for (size_t at = 0; at < count; at += step)
        assert_int_equal(bw_tensor_read(&r, at, count - at < step ? count - at : step, out + at, &err), BW_OK);
    bw_tensor_close(&r);
}

static void every_half(void **state)
{
    (void)state;
    enum { ALL = 65536 };
    static uint16_t codes[ALL];
    static float out[ALL];
    const bw_format_traits *half = bw_format_get(BW_FORMAT_FP16);
    for (int i = 0; i < ALL; i++)
        codes[i] = (uint16_t)i;
    read_values(BW_ELEMENT_F16, codes, ALL, ALL, 1001, out);
    for (int i = 0; i < ALL; i++) {
        const int exponent = i >> 10 & 31, mantissa = i & 1023;
        const float want = bw_decode_vector(half, (uint16_t)i);
        if (exponent < 31)
            assert_memory_equal(&out[i], &want, sizeof want);
        else
            assert_true(mantissa ? isnan(out[i]) : out[i] == (i & 0x8000 ? -INFINITY : INFINITY));
    }
}

#define CHECK(element, type, value)                                                                                    \
    do {                                                                                                               \
        type x[100];                                                                                                   \
        float want[100], got[100];                                                                                     \
        for (int i = 0; i < 100; i++) {                                                                                \
            x[i] = (type)(value);                                                                                      \
            want[i] = (float)x[i];                                                                                     \
        }                                                                                                              \
        for (size_t n = 1; n <= 100; n++) {                                                                            \
            read_values(element, x, n, 1 + n / 2, n, got);                                                             \
            assert_memory_equal(got, want, n * sizeof *got);                                                           \
        }                                                                                                              \
    } while (0)

static void every_type(void **state)
{
    (void)state;
    CHECK(BW_ELEMENT_F32, float, i * 0.37f - 9);
    CHECK(BW_ELEMENT_F64, double, i * 0.37 - 9);
    CHECK(BW_ELEMENT_U8, uint8_t, i * 37);
    CHECK(BW_ELEMENT_I8, int8_t, i * 37);
    CHECK(BW_ELEMENT_U16, uint16_t, i * 3701);
    CHECK(BW_ELEMENT_I16, int16_t, i * 3701);
    CHECK(BW_ELEMENT_U32, uint32_t, (uint32_t)i * 370100017u);
    CHECK(BW_ELEMENT_I32, int32_t, (uint32_t)i * 370100017u);
    CHECK(BW_ELEMENT_U64, uint64_t, (uint64_t)i * 370100017000000019u);
    CHECK(BW_ELEMENT_I64, int64_t, (uint64_t)i * 370100017000000019u);
    uint8_t flags[40];
    uint16_t brain[40];
    float got[40];
    for (int i = 0; i < 40; i++) {
        flags[i] = (uint8_t)(i % 3);
        const float v = (float)(i - 20) * 0.75f; /* fits 8 bits of significand */
        uint32_t bits;
        memcpy(&bits, &v, sizeof bits);
        brain[i] = (uint16_t)(bits >> 16);
    }
    read_values(BW_ELEMENT_BOOL, flags, 40, 40, 7, got);
    for (int i = 0; i < 40; i++)
        assert_true(got[i] == (i % 3 ? 1 : 0));
    read_values(BW_ELEMENT_BF16, brain, 40, 33, 7, got);
    for (int i = 0; i < 40; i++)
        assert_true(got[i] == (float)(i - 20) * 0.75f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_half), cmocka_unit_test(every_type)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
