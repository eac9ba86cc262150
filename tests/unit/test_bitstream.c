/* SPDX-License-Identifier: Apache-2.0 */
/* hal/bitstream.h: the container, sound and damaged. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "hal/base.h"
#include "hal/bitstream.h"

static void fill(bw_bitstream *bits)
{
    memset(bits, 0, sizeof *bits);
    strcpy(bits->interface_id, "00112233-4455-6677-8899-aabbccddeeff");
    strcpy(bits->part, "test-part");
    strcpy(bits->name, "two payloads");
    bits->offers =
        (bw_requirements){1, 1u << BW_FORMAT_MSFP12 | 1u << BW_FORMAT_FP16, 1u << BW_OP_CONV, 5u, 1000, 2000};
    bits->payload_count = 2;
    strcpy(bits->payloads[0].kind, "alpha");
    bits->payloads[0].bytes = "first payload";
    bits->payloads[0].size = 13;
    strcpy(bits->payloads[1].kind, "beta");
    bits->payloads[1].bytes = "2";
    bits->payloads[1].size = 1;
}

static uint8_t *make(size_t *size)
{
    bw_bitstream bits;
    bw_error err = {BW_OK, ""};
    void *bytes;
    fill(&bits);
    if (bw_bitstream_write(&bits, &bytes, size, &err))
        fail_msg("%s", err.message);
    return bytes;
}

static void round_trip(void **state)
{
    (void)state;
    bw_bitstream bits, again;
    fill(&bits);
    void *bytes;
    size_t size;
    bw_error err = {BW_OK, ""};
    assert_int_equal(bw_bitstream_write(&bits, &bytes, &size, &err), BW_OK);
    assert_int_equal(bw_bitstream_parse(bytes, size, &again, &err), BW_OK);
    assert_int_equal(strlen(bits.uuid), 36);
    assert_int_equal(bits.uuid[14], '8');
    assert_string_equal(again.uuid, bits.uuid);
    assert_string_equal(again.interface_id, bits.interface_id);
    assert_string_equal(again.part, "test-part");
    assert_string_equal(again.name, "two payloads");
    assert_memory_equal(&again.offers, &bits.offers, sizeof bits.offers);
    assert_int_equal(again.payload_count, 2);
    for (int i = 0; i < 2; i++) {
        assert_string_equal(again.payloads[i].kind, bits.payloads[i].kind);
        assert_int_equal(again.payloads[i].size, bits.payloads[i].size);
        assert_memory_equal(again.payloads[i].bytes, bits.payloads[i].bytes, bits.payloads[i].size);
        assert_int_equal(((const char *)again.payloads[i].bytes - (const char *)bytes) % 64, 0);
    }
    free(bytes);
}

static void equal_content_equal_uuid(void **state)
{
    (void)state;
    bw_bitstream a, b;
    void *x, *y;
    size_t n, m;
    fill(&a);
    fill(&b);
    strcpy(b.uuid, "is computed");
    assert_int_equal(bw_bitstream_write(&a, &x, &n, NULL), BW_OK);
    assert_int_equal(bw_bitstream_write(&b, &y, &m, NULL), BW_OK);
    assert_int_equal(n, m);
    assert_memory_equal(x, y, n);
    free(y);
    b.offers.act_bytes++;
    assert_int_equal(bw_bitstream_write(&b, &y, &m, NULL), BW_OK);
    assert_string_not_equal(a.uuid, b.uuid);
    free(y);
    fill(&b);
    b.payloads[1].bytes = "3";
    assert_int_equal(bw_bitstream_write(&b, &y, &m, NULL), BW_OK);
    assert_string_not_equal(a.uuid, b.uuid);
    free(y);
    free(x);
}

/* Every prefix and every flipped bit is refused, in exactly sized memory so that a sanitizer sees an over-read. */
static void damage_is_found(void **state)
{
    (void)state;
    size_t size;
    uint8_t *good = make(&size);
    bw_bitstream bits;
    for (size_t n = 0; n < size; n++) {
        uint8_t *cut = malloc(n ? n : 1);
        assert_non_null(cut);
        memcpy(cut, good, n);
        bw_error err = {BW_OK, ""};
        bw_status status = bw_bitstream_parse(cut, n, &bits, &err);
        if (status != BW_CORRUPT && status != BW_CHECKSUM)
            fail_msg("%zu of %zu bytes: %s", n, size, bw_status_name(status));
        assert_true(strlen(err.message) > 10);
        free(cut);
    }
    for (size_t i = 0; i < size * 8; i++) {
        good[i / 8] ^= (uint8_t)(1u << i % 8);
        bw_status status = bw_bitstream_parse(good, size, &bits, NULL);
        if (status != BW_CORRUPT && status != BW_CHECKSUM &&
            !(status == BW_VERSION_MISMATCH && i / 8 >= 8 && i / 8 < 12))
            fail_msg("bit %zu flipped: %s", i, bw_status_name(status));
        good[i / 8] ^= (uint8_t)(1u << i % 8);
    }
    assert_int_equal(bw_bitstream_parse(good, size, &bits, NULL), BW_OK);
    free(good);
}

/* A container around any header text, with a right UUID: what a hostile writer makes. */
static bw_status parse_text(const char *rest, const char *payload, bw_error *err)
{
    char text[2048], uuid[64];
    snprintf(text, sizeof text, "{\"uuid\":\"00000000-0000-8000-8000-000000000000\"%s", rest);
    size_t json_size = strlen(text), end = 16 + json_size, start = (end + 63) & ~(size_t)63;
    size_t size = payload ? start + strlen(payload) : end;
    uint8_t *file = calloc(1, size);
    assert_non_null(file);
    memcpy(file, "BWBITS\r\n\1\0\0\0", 12);
    for (int i = 0; i < 4; i++)
        file[12 + i] = (uint8_t)(json_size >> 8 * i);
    memcpy(file + 16, text, json_size);
    if (payload)
        memcpy(file + start, payload, strlen(payload));
    uint8_t d[32];
    bw_sha256(file + 61, size - 61, d);
    d[6] = (uint8_t)((d[6] & 15) | 0x80);
    d[8] = (uint8_t)((d[8] & 63) | 0x80);
    snprintf(uuid, sizeof uuid, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", d[0], d[1],
             d[2], d[3], d[4], d[5], d[6], d[7], d[8], d[9], d[10], d[11], d[12], d[13], d[14], d[15]);
    memcpy(file + 25, uuid, 36);
    bw_bitstream bits;
    bw_status status = bw_bitstream_parse(file, size, &bits, err);
    free(file);
    return status;
}

#define IDS ",\"interface_id\":\"00112233-4455-6677-8899-aabbccddeeff\",\"part\":\"p\",\"name\":\"n\""
#define OFFERS                                                                                                         \
    ",\"offers\":{\"isa_version\":1,\"formats\":[],\"opcodes\":[],\"blocks\":[16],\"act_bytes\":1,\"const_bytes\":1}"
#define SUM         "\"sha256\":\"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\""
#define ONE(offset) ",\"payloads\":[{\"kind\":\"k\",\"offset\":" offset ",\"size\":3," SUM "}]}"

static void hostile_headers(void **state)
{
    (void)state;
    static const struct {
        const char *rest, *payload;
        bw_status status;
        const char *text;
    } cases[] = {
        {IDS OFFERS ONE("384"), "abc", BW_OK, ""},
        {IDS OFFERS ONE("512"), "abc", BW_CORRUPT, "expected 384"},
        {IDS OFFERS ONE("9223372036854775807"), "abc", BW_CORRUPT, "expected 384"},
        {IDS OFFERS ONE("-64"), "abc", BW_CORRUPT, "\"offset\" is missing or no integer"},
        {IDS OFFERS ONE("\"384\""), "abc", BW_CORRUPT, "\"offset\""},
        {IDS OFFERS ONE("384"), "abd", BW_CHECKSUM, "SHA-256"},
        {IDS OFFERS ONE("384"), "abcd", BW_CORRUPT, "1 bytes follow"},
        {IDS OFFERS ONE("384"), "ab", BW_CORRUPT, "cut off"},
        {IDS OFFERS ONE("384"), NULL, BW_CORRUPT, "cut off"},
        {IDS OFFERS ",\"payloads\":[]}", NULL, BW_CORRUPT, "0 entries"},
        {IDS OFFERS ",\"payloads\":{}}", NULL, BW_CORRUPT, "0 entries"},
        {IDS OFFERS ",\"payloads\":[1]}", NULL, BW_CORRUPT, "payloads[0]: no JSON object"},
        {IDS OFFERS "}", NULL, BW_CORRUPT, "\"payloads\" has 0"},
        {IDS "}", NULL, BW_CORRUPT, "offers"},
        {",\"interface_id\":\"x\",\"part\":\"p\",\"name\":\"n\"" OFFERS "}", NULL, BW_CORRUPT, "expected a UUID"},
        {",\"interface_id\":7}", NULL, BW_CORRUPT, "interface_id"},
        {",\"uuid\":\"\"}", NULL, BW_CORRUPT, "no JSON"}, /* twice the same name */
        {IDS ",\"part\":\"q\"}", NULL, BW_CORRUPT, "no JSON"},
        {"", NULL, BW_CORRUPT, "no JSON"},
        {"}trailing", NULL, BW_CORRUPT, "no JSON"},
        {IDS ",\"offers\":{\"isa_version\":1,\"formats\":[\"fp99\"]}}", NULL, BW_VERSION_MISMATCH, "'fp99'"},
        {IDS ",\"offers\":{\"isa_version\":1,\"formats\":[3]}}", NULL, BW_CORRUPT, "\"formats\"[0] is no string"},
        {IDS ",\"offers\":{\"isa_version\":-1}}", NULL, BW_CORRUPT, "isa_version"},
        {IDS ",\"offers\":{\"isa_version\":1,\"formats\":[],\"opcodes\":[\"WARP\"]}}", NULL, BW_VERSION_MISMATCH,
         "'WARP'"},
        {IDS ",\"offers\":{\"isa_version\":1,\"formats\":[],\"opcodes\":[],\"act_bytes\":1,\"const_bytes\":1,"
             "\"blocks\":[17]}}",
         NULL, BW_CORRUPT, "none of 16, 32, 64, 128"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bw_error err = {BW_OK, ""};
        bw_status status = parse_text(cases[i].rest, cases[i].payload, &err);
        if (status != cases[i].status || !strstr(err.message, cases[i].text))
            fail_msg("case %zu: %s '%s', expected %s '%s'", i, bw_status_name(status), err.message,
                     bw_status_name(cases[i].status), cases[i].text);
    }
    /* Deep nesting ends in the JSON parser's own limit, not on the stack. */
    static char deep[2000];
    memcpy(deep, ",\"x\":", 5);
    memset(deep + 5, '[', 1900);
    assert_int_equal(parse_text(deep, NULL, NULL), BW_CORRUPT);
}

static void same_kind_twice(void **state)
{
    (void)state;
    bw_bitstream bits;
    fill(&bits);
    strcpy(bits.payloads[1].kind, "alpha");
    void *bytes;
    size_t size;
    bw_error err;
    assert_int_equal(bw_bitstream_write(&bits, &bytes, &size, &err), BW_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "both of kind 'alpha'"));
    assert_null(bytes);
}

static void refuses_to_write_nonsense(void **state)
{
    (void)state;
    bw_bitstream bits;
    void *bytes;
    size_t size;
    bw_error err;
    fill(&bits);
    bits.payload_count = 0;
    assert_int_equal(bw_bitstream_write(&bits, &bytes, &size, &err), BW_INVALID_ARGUMENT);
    bits.payload_count = BW_BITSTREAM_PAYLOADS_MAX + 1;
    assert_int_equal(bw_bitstream_write(&bits, &bytes, &size, &err), BW_INVALID_ARGUMENT);
    fill(&bits);
    bits.payloads[1].size = 0;
    assert_int_equal(bw_bitstream_write(&bits, &bytes, &size, &err), BW_INVALID_ARGUMENT);
    fill(&bits);
    bits.interface_id[0] = 0;
    assert_int_equal(bw_bitstream_write(&bits, &bytes, &size, &err), BW_INVALID_ARGUMENT);
    fill(&bits);
    strcpy(bits.part, "\xff\xfe");
    assert_true(bw_bitstream_write(&bits, &bytes, &size, &err) != BW_OK);
    assert_int_equal(bw_bitstream_write(NULL, &bytes, &size, &err), BW_INVALID_ARGUMENT);
}

static void offers_as_json(void **state)
{
    (void)state;
    bw_requirements all = {1, 0, ((1u << BW_OP_LIMIT) - 1u) & ~1u, 15, INT64_MAX, 0}, back;
    for (unsigned f = 1; f < BW_FORMAT_LIMIT; f++)
        if (bw_format_get((bw_format)f))
            all.formats |= 1u << f;
    json_t *object = bw_requirements_to_json(&all);
    assert_non_null(object);
    assert_int_equal(bw_requirements_from_json(object, "test", &back, NULL), BW_OK);
    assert_memory_equal(&all, &back, sizeof all);
    json_decref(object);
    bw_error err;
    assert_int_equal(bw_requirements_from_json(NULL, "test", &back, &err), BW_CORRUPT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip),      cmocka_unit_test(equal_content_equal_uuid),
        cmocka_unit_test(damage_is_found), cmocka_unit_test(hostile_headers),
        cmocka_unit_test(same_kind_twice), cmocka_unit_test(refuses_to_write_nonsense),
        cmocka_unit_test(offers_as_json),
    };
    return cmocka_run_group_tests_name("bitstream", tests, NULL, NULL);
}
