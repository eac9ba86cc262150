/* SPDX-License-Identifier: Apache-2.0 */
/* hal/signature.h: who signed what, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <openssl/evp.h>
#include <openssl/pem.h>

#include "hal/signature.h"

static char work[512];

static const char *path_of(const char *name)
{
    static char paths[4][1024];
    static int next;
    char *p = paths[next++ % 4];
    snprintf(p, sizeof paths[0], "%s/%s", work, name);
    return p;
}

/* A private key as NAME.key and its public key as DIR/NAME.pem. */
static void make_key(const char *name, const char *directory, int type)
{
    char file[256];
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_id(type, NULL);
    EVP_PKEY *key = NULL;
    assert_true(ctx && EVP_PKEY_keygen_init(ctx) == 1 && EVP_PKEY_keygen(ctx, &key) == 1);
    snprintf(file, sizeof file, "%s.key", name);
    FILE *f = fopen(path_of(file), "w");
    assert_true(f && PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL) && fclose(f) == 0);
    mkdir(path_of(directory), 0700);
    snprintf(file, sizeof file, "%s/%s.pem", directory, name);
    f = fopen(path_of(file), "w");
    assert_true(f && PEM_write_PUBKEY(f, key) && fclose(f) == 0);
    EVP_PKEY_free(key);
    EVP_PKEY_CTX_free(ctx);
}

static int set_up(void **state)
{
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(work, sizeof work, "%s/bw-signature-%ld", tmp ? tmp : "/tmp", (long)getpid());
    if (mkdir(work, 0700))
        return -1;
    make_key("ours", "trust", EVP_PKEY_ED25519);
    make_key("theirs", "others", EVP_PKEY_ED25519);
    make_key("wrong", "kinds", EVP_PKEY_X25519);
    return 0;
}

static int clean_up(void **state)
{
    static const char *const files[] = {
        "ours.key",        "theirs.key", "wrong.key", "trust/ours.pem", "others/theirs.pem",
        "kinds/wrong.pem", "trust",      "others",    "kinds"};
    (void)state;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        remove(path_of(files[i]));
    return rmdir(work);
}

static bw_trust *trust_of(const char *directory)
{
    bw_trust *trust = NULL;
    bw_error err;
    if (bw_trust_open(path_of(directory), &trust, &err))
        fail_msg("%s", err.message);
    return trust;
}

static uint8_t *sign(const void *bytes, size_t size, const char *key, size_t *out_size)
{
    void *out = NULL;
    bw_error err;
    if (bw_signature_add(bytes, size, path_of(key), &out, out_size, &err))
        fail_msg("%s", err.message);
    return out;
}

static bw_status verify(const void *bytes, size_t size, const bw_trust *trust, const char *expected)
{
    char signer[BW_SIGNER_NAME] = "";
    bw_error err = {BW_OK, ""};
    const bw_status status = bw_signature_verify(bytes, size, trust, signer, &err);
    if (!status)
        assert_string_equal(signer, expected);
    else
        assert_true(strstr(err.message, expected) && !strchr(err.message, '\n'));
    return status;
}

static const char text[] = "some bytes to configure a device with";

static void signs_and_verifies(void **state)
{
    (void)state;
    bw_trust *ours = trust_of("trust"), *others = trust_of("others");
    size_t n, m, k;
    uint8_t *one = sign(text, sizeof text, "ours.key", &n);
    assert_int_equal(n, sizeof text + 96 + 16);
    assert_memory_equal(one, text, sizeof text);
    assert_int_equal(bw_signed_content(one, n), sizeof text);
    assert_int_equal(verify(one, n, ours, "ours"), BW_OK);
    assert_int_equal(verify(one, n, others, "none of the 1 keys"), BW_PERMISSION);
    assert_int_equal(verify(text, sizeof text, ours, "not signed"), BW_PERMISSION);
    uint8_t *two = sign(one, n, "theirs.key", &m);
    assert_int_equal(bw_signature_count(two, m), 2);
    assert_int_equal(verify(two, m, ours, "ours"), BW_OK);
    assert_int_equal(verify(two, m, others, "theirs"), BW_OK);
    uint8_t *again = sign(two, m, "ours.key", &k); /* in place of the old one */
    assert_int_equal(k, m);
    assert_int_equal(bw_signature_count(again, k), 2);
    assert_int_equal(verify(again, k, others, "theirs"), BW_OK);
    free(one);
    free(two);
    free(again);
    bw_trust_close(ours);
    bw_trust_close(others);
}

/* Every bit of the content and of the signature counts. */
static void any_changed_bit_is_found(void **state)
{
    (void)state;
    bw_trust *ours = trust_of("trust");
    size_t n;
    uint8_t *file = sign(text, sizeof text, "ours.key", &n);
    char signer[BW_SIGNER_NAME];
    for (size_t bit = 0; bit < 8 * n; bit++) {
        file[bit / 8] ^= (uint8_t)(1u << bit % 8);
        const bw_status status = bw_signature_verify(file, n, ours, signer, NULL);
        const size_t byte = bit / 8, id = sizeof text, signature = id + 32, footer = signature + 64;
        if (byte < id || (byte >= signature && byte < footer))
            assert_int_equal(status, BW_CHECKSUM);
        else
            assert_int_equal(status, BW_PERMISSION); /* another key's, or no signature any more */
        file[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    for (size_t cut = 0; cut < n; cut++)
        assert_int_equal(bw_signature_verify(file, cut, ours, signer, NULL), BW_PERMISSION);
    free(file);
    bw_trust_close(ours);
}

static void counts_no_more_than_is_there(void **state)
{
    (void)state;
    static const uint8_t footer[16] = "\x02\0\0\0\x01\0\0\0BWSIGN\r\n";
    uint8_t bytes[16 + 2 * 96] = {0};
    for (size_t size = 16; size <= sizeof bytes; size++) {
        memcpy(bytes + size - 16, footer, 16);
        assert_int_equal(bw_signature_count(bytes, size), size == sizeof bytes ? 2 : 0);
        memset(bytes, 0, sizeof bytes);
    }
    assert_int_equal(bw_signature_count(NULL, 0), 0);
}

static void no_more_than_sixteen(void **state)
{
    (void)state;
    /* Entries of keys that nobody has. */
    const size_t size = 4 + 16 * 96 + 16;
    uint8_t *file = calloc(1, size);
    for (unsigned i = 0; i < 16; i++)
        file[4 + i * 96] = (uint8_t)(i + 1);
    memcpy(file + size - 16, "\x10\0\0\0\x01\0\0\0BWSIGN\r\n", 16);
    assert_int_equal(bw_signature_count(file, size), 16);
    void *out;
    size_t n;
    bw_error err;
    assert_int_equal(bw_signature_add(file, size, path_of("ours.key"), &out, &n, &err), BW_EXHAUSTED);
    free(file);
}

static void wrong_keys_are_named(void **state)
{
    (void)state;
    void *out;
    size_t n;
    bw_trust *trust;
    bw_error err;
    assert_int_equal(bw_signature_add("x", 1, path_of("none.key"), &out, &n, &err), BW_NOT_FOUND);
    assert_int_equal(bw_signature_add("x", 1, path_of("wrong.key"), &out, &n, &err), BW_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "wrong.key"));
    assert_int_equal(bw_signature_add("x", 1, path_of("trust/ours.pem"), &out, &n, &err), BW_INVALID_ARGUMENT);
    assert_int_equal(bw_trust_open(path_of("none"), &trust, &err), BW_NOT_FOUND);
    assert_int_equal(bw_trust_open(path_of("kinds"), &trust, &err), BW_CORRUPT);
    assert_non_null(strstr(err.message, "wrong.pem"));
    assert_int_equal(bw_trust_open(work, &trust, &err), BW_NOT_FOUND); /* no *.pem */
    bw_trust_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(signs_and_verifies),   cmocka_unit_test(any_changed_bit_is_found),
        cmocka_unit_test(no_more_than_sixteen), cmocka_unit_test(counts_no_more_than_is_there),
        cmocka_unit_test(wrong_keys_are_named),
    };
    return cmocka_run_group_tests(tests, set_up, clean_up);
}
