/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/xclbin.h: the container as XRT's header lays it out, and damaged ones. That XRT takes it is shown by the
 * tests of the emulated card. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/xclbin.h"

static bw_error err;

static uint8_t *make(const bw_accelerator *a, const void *bits, size_t bits_size, size_t *size)
{
    void *bytes;
    if (bw_xclbin_write(a, bits, bits_size, &bytes, size, &err))
        fail_msg("%s", err.message);
    return bytes;
}

static void describes_itself(void **state)
{
    (void)state;
    const bw_accelerator *a = bw_accelerator_find("emulated");
    size_t size;
    uint8_t *bytes = make(a, NULL, 0, &size);
    bw_xclbin x;
    if (bw_xclbin_parse(bytes, size, &x, &err))
        fail_msg("%s", err.message);
    assert_string_equal(x.accelerator.name, a->name);
    assert_string_equal(x.accelerator.platform, a->platform);
    assert_string_equal(x.accelerator.interface_id, a->interface_id);
    assert_int_equal(x.accelerator.bank_count, a->bank_count);
    assert_true(x.accelerator.bank_bytes == a->bank_bytes);
    assert_memory_equal(&x.accelerator.offers, &a->offers, sizeof a->offers);
    assert_true(x.build == bw_accelerator_build(a));
    assert_int_equal(strlen(x.uuid), 36);
    assert_int_equal(x.uuid[14], '8');
    free(bytes);
}

static void equal_content_equal_bytes(void **state)
{
    (void)state;
    const bw_accelerator *a = bw_accelerator_find(NULL);
    bw_accelerator other = *a;
    other.offers.blocks = 1;
    size_t n1, n2, n3, n4;
    uint8_t *one = make(a, NULL, 0, &n1), *two = make(a, NULL, 0, &n2), *three = make(&other, NULL, 0, &n3),
            *four = make(a, "bits of a card", 14, &n4);
    assert_int_equal(n1, n2);
    assert_memory_equal(one, two, n1);
    bw_xclbin x1, x3, x4;
    assert_int_equal(bw_xclbin_parse(one, n1, &x1, &err), BW_OK);
    assert_int_equal(bw_xclbin_parse(three, n3, &x3, &err), BW_OK);
    assert_int_equal(bw_xclbin_parse(four, n4, &x4, &err), BW_OK);
    assert_string_not_equal(x1.uuid, x3.uuid);
    assert_string_not_equal(x1.uuid, x4.uuid);
    assert_true(x1.build != x3.build && x1.build == x4.build);
    free(one);
    free(two);
    free(three);
    free(four);
}

/* Offsets that XRT's public header fixes, spelled out: a second opinion on the layout. */
static void layout_is_axlf(void **state)
{
    (void)state;
    size_t size;
    uint8_t *b = make(bw_accelerator_find(NULL), NULL, 0, &size);
    uint64_t length;
    uint32_t sections, kinds = 0;
    memcpy(&length, b + 304, 8);
    memcpy(&sections, b + 448, 4);
    assert_memory_equal(b, "xclbin2", 8);
    assert_true(length == size);
    assert_int_equal(sections, 5);
    assert_string_equal((char *)b + 352, "blockwave_emulated_4x16g_1");
    for (uint32_t i = 0; i < sections; i++) {
        uint32_t kind;
        uint64_t at, n;
        memcpy(&kind, b + 456 + i * 40, 4);
        memcpy(&at, b + 456 + i * 40 + 24, 8);
        memcpy(&n, b + 456 + i * 40 + 32, 8);
        assert_true(at % 8 == 0 && at + n <= size);
        kinds |= 1u << kind;
        if (kind == 8) { /* IP_LAYOUT: count, then type, properties, base, name */
            uint64_t base;
            memcpy(&base, b + at + 16, 8);
            assert_int_equal(b[at], 1);
            assert_int_equal(b[at + 8], 1);
            assert_true(base == BW_ACCEL_BASE);
            assert_string_equal((char *)b + at + 24, "bw_accelerator:bw_accelerator_1");
        }
        if (kind == 6) { /* MEM_TOPOLOGY: count, then type, used, KiB, base, tag */
            uint64_t kib, base;
            memcpy(&kib, b + at + 8 + 3 * 40 + 8, 8);
            memcpy(&base, b + at + 8 + 3 * 40 + 16, 8);
            assert_int_equal(b[at], 4);
            assert_true(kib == UINT64_C(16) << 20 && base == UINT64_C(48) << 30);
            assert_string_equal((char *)b + at + 8 + 3 * 40 + 24, "bank3");
        }
        if (kind == 2) {
            assert_non_null(memmem(b + at, n, "id=\"10\"", 7));
            assert_non_null(memmem(b + at, n, "<addrRemap base=\"0x1800000\"", 27));
        }
    }
    assert_int_equal(kinds, 1u << 2 | 1u << 6 | 1u << 7 | 1u << 8 | 1u << 15);
    free(b);
}

static void refuses_what_it_cannot_describe(void **state)
{
    (void)state;
    void *bytes;
    size_t size;
    bw_accelerator a = *bw_accelerator_find(NULL);
    a.bank_count = 0;
    assert_int_equal(bw_xclbin_write(&a, NULL, 0, &bytes, &size, &err), BW_INVALID_ARGUMENT);
    a = *bw_accelerator_find(NULL);
    strcpy(a.platform, "a \"quoted\" name");
    assert_int_equal(bw_xclbin_write(&a, NULL, 0, &bytes, &size, &err), BW_INVALID_ARGUMENT);
    assert_null(bytes);
    assert_null(bw_accelerator_find("u9999"));
}

/* Every byte changed once, every length: a status or the same kind of description, never a crash. */
static void damaged_files(void **state)
{
    (void)state;
    size_t size;
    uint8_t *good = make(bw_accelerator_find(NULL), NULL, 0, &size);
    bw_xclbin x;
    for (size_t n = 0; n < size; n++) {
        uint8_t *cut = malloc(n ? n : 1);
        assert_non_null(cut);
        memcpy(cut, good, n);
        assert_int_equal(bw_xclbin_parse(cut, n, &x, &err), BW_CORRUPT);
        free(cut);
    }
    for (size_t i = 0; i < size; i++) {
        good[i] ^= 0xff;
        bw_status status = bw_xclbin_parse(good, size, &x, &err);
        if (status && (!err.message[0] || strchr(err.message, '\n')))
            fail_msg("byte %zu: status %d without a line", i, status);
        good[i] ^= 0xff;
    }
    free(good);
}

static void wrong_files_are_named(void **state)
{
    (void)state;
    size_t size;
    uint8_t *b = make(bw_accelerator_find(NULL), NULL, 0, &size);
    bw_xclbin x;
    uint8_t *at = memmem(b, size, "blockwave.build\",\"value\":\"0x", 28);
    assert_non_null(at);
    at[28] = at[28] == '1' ? '2' : '1';
    assert_int_equal(bw_xclbin_parse(b, size, &x, &err), BW_VERSION_MISMATCH);
    assert_non_null(strstr(err.message, "write it anew"));
    at[0] = 'B';
    assert_int_equal(bw_xclbin_parse(b, size, &x, &err), BW_CORRUPT);
    assert_non_null(strstr(err.message, "no Blockwave accelerator"));
    assert_int_equal(bw_xclbin_parse("PK\3\4", 4, &x, &err), BW_CORRUPT);
    free(b);
}

/* What the sums are for: one bit, words that changed places, a short tail. */
static void checksum_sees(void **state)
{
    (void)state;
    uint8_t data[103];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i * 37 + 5);
    const uint64_t sum = bw_accel_checksum(data, sizeof data);
    for (size_t bit = 0; bit < 8 * sizeof data; bit++) {
        data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_true(bw_accel_checksum(data, sizeof data) != sum);
        data[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    uint8_t swapped[sizeof data];
    memcpy(swapped, data, sizeof data);
    memcpy(swapped, data + 4, 4);
    memcpy(swapped + 4, data, 4);
    assert_true(bw_accel_checksum(swapped, sizeof data) != sum);
    assert_true(bw_accel_checksum(data, sizeof data - 1) != sum);
    assert_true(bw_accel_checksum(NULL, 0) == 0);
    assert_string_equal(bw_accel_code_name(BW_ACCEL_ABORTED), "aborted");
    assert_string_equal(bw_accel_code_name(99), "?");
}

int main(void)
{
    if (!bw_xclbin_available()) {
        puts("1..1\nok 1 - xclbin # SKIP built without xclbin.h (Debian: libxrt-dev)");
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(describes_itself), cmocka_unit_test(equal_content_equal_bytes),
        cmocka_unit_test(layout_is_axlf),   cmocka_unit_test(refuses_what_it_cannot_describe),
        cmocka_unit_test(damaged_files),    cmocka_unit_test(wrong_files_are_named),
        cmocka_unit_test(checksum_sees),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
