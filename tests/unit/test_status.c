/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/status.h"

static void names_and_texts(void **state)
{
    (void)state;
    static const struct {
        bw_status status;
        int number;
        const char *name, *text;
    } rows[] = {{BW_OK, 0, "BW_OK", "ok"},
                {BW_NOT_FINITE, 6, "BW_NOT_FINITE", "NaN or infinity"},
                {BW_CORRUPT, 20, "BW_CORRUPT", "corrupt data"},
                {BW_NO_MEMORY, 40, "BW_NO_MEMORY", "out of memory"},
                {BW_TIMEOUT, 60, "BW_TIMEOUT", "deadline exceeded"},
                {BW_INTERNAL, 90, "BW_INTERNAL", "internal error"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_int_equal(rows[i].status, rows[i].number);
        assert_string_equal(bw_status_name(rows[i].status), rows[i].name);
        assert_string_equal(bw_status_text(rows[i].status), rows[i].text);
    }
    assert_string_equal(bw_status_name((bw_status)7), "BW_?");
    assert_string_equal(bw_status_text((bw_status)-1), "unknown status");
}

static void messages_are_one_line(void **state)
{
    (void)state;
    bw_error err;
    assert_int_equal(bw_fail(&err, BW_CORRUPT, "file '%s': %d bytes", "a\nb\x1b[31m\x7f", 7), BW_CORRUPT);
    assert_int_equal(err.status, BW_CORRUPT);
    assert_string_equal(err.message, "file 'a?b?[31m?': 7 bytes");
    assert_int_equal(bw_fail(NULL, BW_IO, "nobody %s", "listens"), BW_IO);
    /* The message may be its own argument. */
    assert_int_equal(bw_fail(&err, BW_IO, "again: %s", err.message), BW_IO);
    assert_string_equal(err.message, "again: file 'a?b?[31m?': 7 bytes");
}

static void long_messages_are_cut(void **state)
{
    (void)state;
    bw_error err;
    char text[2000];
    memset(text, 'x', sizeof text);
    text[1999] = '\0';
    bw_fail(&err, BW_IO, "%s", text);
    assert_int_equal(strlen(err.message), BW_ERROR_MESSAGE_MAX - 1);
    /* Characters of 2, 3 and 4 bytes are never cut in two: whatever the phase, the rest is whole. */
    static const char *const characters[] = {"\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80"};
    for (size_t k = 0; k < 3; k++)
        for (size_t phase = 0; phase < 4; phase++) {
            size_t n = strlen(characters[k]), at = phase;
            memset(text, 'x', phase);
            for (; at + n < sizeof text; at += n)
                memcpy(text + at, characters[k], n);
            text[at] = '\0';
            bw_fail(&err, BW_IO, "%s", text);
            size_t length = strlen(err.message);
            assert_true(length < BW_ERROR_MESSAGE_MAX && length + n >= BW_ERROR_MESSAGE_MAX);
            assert_int_equal((length - phase) % n, 0);
        }
}

static void context_goes_in_front(void **state)
{
    (void)state;
    bw_error err;
    bw_fail(&err, BW_CHECKSUM, "section weights");
    assert_int_equal(bw_fail_context(&err, BW_CHECKSUM, "package '%s\n'", "m.bw"), BW_CHECKSUM);
    assert_int_equal(err.status, BW_CHECKSUM);
    assert_string_equal(err.message, "package 'm.bw?': section weights");
    for (int i = 0; i < 100; i++)
        bw_fail_context(&err, BW_CHECKSUM, "layer %d", i);
    assert_int_equal(strlen(err.message), BW_ERROR_MESSAGE_MAX - 1);
    assert_int_equal(strncmp(err.message, "layer 99: layer 98: ", 20), 0);
    assert_int_equal(bw_fail_context(NULL, BW_IO, "x"), BW_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_and_texts),
        cmocka_unit_test(messages_are_one_line),
        cmocka_unit_test(long_messages_are_cut),
        cmocka_unit_test(context_goes_in_front),
    };
    return cmocka_run_group_tests_name("status", tests, NULL, NULL);
}
