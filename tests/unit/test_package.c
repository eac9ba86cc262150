/* SPDX-License-Identifier: Apache-2.0 */
/* Packages: what is written is read back, equal content gives equal bytes, and no damage goes unnoticed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "hal/base.h"
#include "host/package.h"
#include "host/tar.h"

static char dir[256];

static const char *in_dir(const char *name)
{
    static char path[2][512];
    static int turn;
    turn = !turn;
    snprintf(path[turn], sizeof path[turn], "%s/%s", dir, name);
    return path[turn];
}

static int make_dir(void **state)
{
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/package-%ld", tmp ? tmp : "/tmp", (long)getpid());
    return mkdir(dir, 0700);
}

static int drop_dir(void **state)
{
    (void)state;
    char command[512];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command);
}

/* Sections of sizes around the block size, with content that depends on name and place. */
static uint8_t content[4][1500];
static const bw_package_section_in sections[4] = {
    {"stage0/graph.json", content[0], 511},
    {"stage0/constants.bin", content[1], 512},
    {"stage1/program.bin", content[2], 1500},
    {"empty.bin", content[3], 0},
};

static void write_sample(const char *path)
{
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < 1500; j++)
            content[i][j] = (uint8_t)(i * 31 + j * 7);
    }
    json_t *manifest = json_pack("{s:{s:s,s:s},s:f}", "model", "name", "sample", "version", "1", "accuracy", 0.1);
    bw_error err;
    if (bw_package_write(path, manifest, sections, 4, &err))
        fail_msg("%s", err.message);
    json_decref(manifest);
}

static uint8_t *load(const char *path, size_t *size)
{
    bw_error err;
    void *raw;
    if (bw_file_read(path, 1 << 20, &raw, size, &err))
        fail_msg("%s", err.message);
    uint8_t *bytes = bw_aligned_zalloc(*size);
    memcpy(bytes, raw, *size);
    free(raw);
    return bytes;
}

static void test_round_trip(void **state)
{
    (void)state;
    write_sample(in_dir("a.bw"));
    bw_package *pkg;
    bw_error err;
    if (bw_package_open(in_dir("a.bw"), &pkg, &err))
        fail_msg("%s", err.message);
    assert_int_equal(bw_package_section_count(pkg), 4);
    assert_string_equal(bw_package_path(pkg), in_dir("a.bw"));
    assert_int_equal(bw_package_size(pkg) % BW_TAR_BLOCK, 0);
    for (int i = 0; i < 4; i++) {
        const void *bytes;
        size_t size;
        assert_string_equal(bw_package_section_name(pkg, (size_t)i), sections[i].name);
        assert_int_equal(bw_package_section(pkg, sections[i].name, &bytes, &size, &err), BW_OK);
        assert_int_equal(size, sections[i].size);
        assert_int_equal((uintptr_t)bytes % 64, 0);
        assert_memory_equal(bytes, sections[i].bytes, size);
    }
    assert_null(bw_package_section_name(pkg, 4));
    const void *bytes;
    size_t size;
    assert_int_equal(bw_package_section(pkg, "stage9/program.bin", &bytes, &size, &err), BW_NOT_FOUND);
    assert_non_null(strstr(err.message, "stage9/program.bin"));
    const json_t *model = json_object_get(bw_package_manifest(pkg), "model");
    assert_string_equal(json_string_value(json_object_get(model, "name")), "sample");
    bw_package_close(pkg);
    bw_package_close(NULL);
}

static void test_equal_content_gives_equal_bytes(void **state)
{
    (void)state;
    write_sample(in_dir("a.bw"));
    write_sample(in_dir("b.bw"));
    size_t na, nb;
    uint8_t *a = load(in_dir("a.bw"), &na), *b = load(in_dir("b.bw"), &nb);
    assert_int_equal(na, nb);
    assert_memory_equal(a, b, na);
    free(a);
    free(b);
}

static void test_standard_tar_reads_it(void **state)
{
    (void)state;
    if (system("tar --version >/dev/null 2>&1") != 0) {
        print_message("no tar here\n");
        skip();
    }
    write_sample(in_dir("a.bw"));
    char command[1024];
    snprintf(command, sizeof command, "cd '%s' && tar tf a.bw >list 2>err && ! test -s err && tar xf a.bw", dir);
    assert_int_equal(system(command), 0);
    size_t size;
    uint8_t *list = load(in_dir("list"), &size);
    const char *expected = "manifest.json\nstage0/graph.json\nstage0/constants.bin\nstage1/program.bin\nempty.bin\n";
    assert_int_equal(size, strlen(expected));
    assert_memory_equal(list, expected, size);
    free(list);
    uint8_t *section = load(in_dir("stage1/program.bin"), &size);
    assert_int_equal(size, 1500);
    assert_memory_equal(section, content[2], size);
    free(section);
}

/* Any one changed byte anywhere, and any cut, must be refused: no byte of the file is unguarded. */
static void test_every_changed_byte_is_noticed(void **state)
{
    (void)state;
    write_sample(in_dir("a.bw"));
    size_t size;
    uint8_t *bytes = load(in_dir("a.bw"), &size);
    /* But for the key of the manifest's hash: another key is one more that no reader knows. */
    const uint8_t *key = memmem(bytes, size, "manifest_sha256", 15);
    assert_non_null(key);
    size_t key_at = (size_t)(key - bytes);
    for (size_t i = 0; i < size; i++) {
        bw_package *pkg = NULL;
        bw_error err = {0};
        uint8_t old = bytes[i];
        bytes[i] ^= 1;
        bw_status status = bw_package_parse(bytes, size, &pkg, &err);
        int in_key = i >= key_at && i < key_at + 15;
        if (!status && !in_key)
            fail_msg("byte %zu of %zu changed and nobody noticed", i, size);
        if (status) {
            assert_null(pkg);
            assert_int_equal(err.status, status);
            if (status != BW_CORRUPT && status != BW_CHECKSUM)
                fail_msg("byte %zu: %s: %s", i, bw_status_name(status), err.message);
        }
        bw_package_close(pkg);
        bytes[i] = old;
    }
    for (size_t cut = 0; cut < size; cut += 64) {
        bw_package *pkg = NULL;
        bw_error err;
        if (bw_package_parse(bytes, cut, &pkg, &err) != BW_CORRUPT)
            fail_msg("cut at %zu of %zu was not noticed", cut, size);
        assert_null(pkg);
    }
    free(bytes);
}

/* Builds an archive from a manifest text and members as they are, legal or not. */
static uint8_t *archive(const char *manifest, const bw_package_section_in *members, size_t count, size_t *size)
{
    size_t total = 2 * BW_TAR_BLOCK;
    for (size_t i = 0; i <= count; i++) {
        size_t n = i ? members[i - 1].size : strlen(manifest);
        total += BW_TAR_BLOCK + (n + BW_TAR_BLOCK - 1) / BW_TAR_BLOCK * BW_TAR_BLOCK;
    }
    uint8_t *bytes = bw_aligned_zalloc(total), *at = bytes;
    for (size_t i = 0; i <= count; i++) {
        size_t n = i ? members[i - 1].size : strlen(manifest);
        bw_tar_header(i ? members[i - 1].name : "manifest.json", n, at);
        memcpy(at + BW_TAR_BLOCK, i ? members[i - 1].bytes : manifest, n);
        at += BW_TAR_BLOCK + (n + BW_TAR_BLOCK - 1) / BW_TAR_BLOCK * BW_TAR_BLOCK;
    }
    *size = total;
    return bytes;
}

#define SHA_ABC "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
#define HEAD    "{\"format\":\"blockwave-package\",\"version\":1,"

static void test_hostile_archives(void **state)
{
    (void)state;
    static const bw_package_section_in abc[] = {{"a", "abc", 3}, {"a", "abc", 3}};
    static const bw_package_section_in again[] = {{"manifest.json", "abc", 3}};
    static const bw_package_section_in up[] = {{"../a", "abc", 3}};
    static const bw_package_section_in rooted[] = {{"/a", "abc", 3}};
    static const struct {
        const char *manifest;
        const bw_package_section_in *members;
        size_t count;
        bw_status status;
        const char *says;
    } cases[] = {
        {HEAD "\"sections\":[{\"name\":\"a\",\"size\":3,\"sha256\":\"" SHA_ABC "\"}]}", abc, 1, BW_OK, ""},
        {HEAD "\"sections\":[]}", abc, 1, BW_CORRUPT, "not in the manifest"},
        {HEAD "\"sections\":[{\"name\":\"a\",\"size\":3,\"sha256\":\"" SHA_ABC "\"},{}]}", abc, 1, BW_CORRUPT,
         "lists 2 sections"},
        {HEAD "\"sections\":[{\"name\":\"a\",\"size\":3,\"sha256\":\"" SHA_ABC
              "\"},{\"name\":\"a\",\"size\":3,\"sha256\":\"" SHA_ABC "\"}]}",
         abc, 2, BW_CORRUPT, "occurs twice"},
        {HEAD "\"sections\":[{\"name\":\"manifest.json\",\"size\":3,\"sha256\":\"" SHA_ABC "\"}]}", again, 1,
         BW_CORRUPT, "occurs twice"},
        {HEAD "\"sections\":[{\"name\":\"../a\",\"size\":3,\"sha256\":\"" SHA_ABC "\"}]}", up, 1, BW_CORRUPT,
         "illegal member name"},
        {HEAD "\"sections\":[{\"name\":\"/a\",\"size\":3,\"sha256\":\"" SHA_ABC "\"}]}", rooted, 1, BW_CORRUPT,
         "illegal member name"},
        {HEAD "\"sections\":[{\"name\":\"b\",\"size\":3,\"sha256\":\"" SHA_ABC "\"}]}", abc, 1, BW_CORRUPT,
         "lists 'b'"},
        {HEAD "\"sections\":[{\"name\":\"a\",\"size\":-3,\"sha256\":\"" SHA_ABC "\"}]}", abc, 1, BW_CORRUPT, "-3"},
        {HEAD "\"sections\":[{\"name\":\"a\",\"size\":3,\"sha256\":\"00\"}]}", abc, 1, BW_CHECKSUM, "SHA-256"},
        {HEAD "\"sections\":[{\"name\":\"a\",\"size\":3}]}", abc, 1, BW_CORRUPT, "lacks"},
        {HEAD "\"sections\":[[]]}", abc, 1, BW_CORRUPT, "lacks"},
        {HEAD "\"sections\":7}", NULL, 0, BW_CORRUPT, "not a list"},
        {"{\"format\":\"blockwave-package\",\"version\":2,\"sections\":[]}", NULL, 0, BW_VERSION_MISMATCH, "version 2"},
        {"{\"format\":\"zip\",\"version\":1,\"sections\":[]}", NULL, 0, BW_CORRUPT, "'zip'"},
        {"{\"format\":\"blockwave-package\",\"version\":1,\"version\":1,\"sections\":[]}", NULL, 0, BW_CORRUPT,
         "manifest.json line 1"},
        {"[]", NULL, 0, BW_CORRUPT, "\"format\""},
        {"", NULL, 0, BW_CORRUPT, "manifest.json line"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t size;
        uint8_t *bytes = archive(cases[i].manifest, cases[i].members, cases[i].count, &size);
        bw_package *pkg;
        bw_error err = {BW_OK, ""};
        bw_status status = bw_package_parse(bytes, size, &pkg, &err);
        if (status != cases[i].status || !strstr(err.message, cases[i].says))
            fail_msg("case %zu: %s: %s, expected %s with '%s'", i, bw_status_name(status), err.message,
                     bw_status_name(cases[i].status), cases[i].says);
        bw_package_close(pkg);
        free(bytes);
    }
}

static void test_deep_manifest(void **state)
{
    (void)state;
    enum { DEPTH = 200000 };
    char *text = malloc(DEPTH + 1);
    memset(text, '[', DEPTH);
    text[DEPTH] = 0;
    size_t size;
    uint8_t *bytes = archive(text, NULL, 0, &size);
    bw_package *pkg;
    bw_error err;
    assert_int_equal(bw_package_parse(bytes, size, &pkg, &err), BW_CORRUPT);
    free(bytes);
    free(text);
}

static void test_open_failures(void **state)
{
    (void)state;
    bw_package *pkg;
    bw_error err;
    assert_int_equal(bw_package_open(in_dir("absent.bw"), &pkg, &err), BW_NOT_FOUND);
    assert_non_null(strstr(err.message, "absent.bw"));
    assert_null(pkg);
    FILE *f = fopen(in_dir("empty.bw"), "w");
    fclose(f);
    assert_int_equal(bw_package_open(in_dir("empty.bw"), &pkg, &err), BW_CORRUPT);
    assert_non_null(strstr(err.message, "empty.bw"));
    f = fopen(in_dir("text.bw"), "w");
    for (int i = 0; i < 300; i++)
        fputs("this is no package\n", f);
    fclose(f);
    assert_int_equal(bw_package_open(in_dir("text.bw"), &pkg, &err), BW_CORRUPT);
    static uint8_t block[2048] __attribute__((aligned(64)));
    assert_int_equal(bw_package_parse(block + 8, 1024, &pkg, &err), BW_INVALID_ARGUMENT);
}

static void test_write_failures(void **state)
{
    (void)state;
    bw_error err;
    json_t *manifest = json_object(), *list = json_array();
    const bw_package_section_in bad[] = {{"a b", "x", 1}, {"..", "x", 1}, {"manifest.json", "x", 1}, {"", "x", 1}};
    const bw_package_section_in twice[] = {{"a", "x", 1}, {"a", "y", 1}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(bw_package_write(in_dir("w.bw"), manifest, &bad[i], 1, &err), BW_INVALID_ARGUMENT);
    assert_int_equal(bw_package_write(in_dir("w.bw"), manifest, twice, 2, &err), BW_INVALID_ARGUMENT);
    assert_int_equal(bw_package_write(in_dir("w.bw"), list, NULL, 0, &err), BW_INVALID_ARGUMENT);
    assert_int_not_equal(bw_package_write(in_dir("no/such/w.bw"), manifest, NULL, 0, &err), BW_OK);
    assert_int_equal(access(in_dir("w.bw"), F_OK), -1);
    char command[512];
    snprintf(command, sizeof command, "test -z \"$(ls '%s' | grep -F w.bw)\"", dir);
    assert_int_equal(system(command), 0);
    json_decref(manifest);
    json_decref(list);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_equal_content_gives_equal_bytes),
        cmocka_unit_test(test_standard_tar_reads_it),
        cmocka_unit_test(test_every_changed_byte_is_noticed),
        cmocka_unit_test(test_hostile_archives),
        cmocka_unit_test(test_deep_manifest),
        cmocka_unit_test(test_open_failures),
        cmocka_unit_test(test_write_failures),
    };
    return cmocka_run_group_tests(tests, make_dir, drop_dir);
}
