/* SPDX-License-Identifier: Apache-2.0 */
/* Registration, URIs, plug-ins: built here with the compiler, found through BW_PLUGIN_PATH. */
#include <dirent.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/stub_backend.h"

static bw_error err;
static char dir[256];
static int have_plugins;

/* --- registration ----------------------------------------------------------------------------------------------- */

static void registration_is_checked(void **state)
{
    (void)state;
    bw_backend b = stub_backend;
    assert_int_equal(bw_backend_register(NULL, &err), BW_INVALID_ARGUMENT);
    b.abi_version = BW_BACKEND_ABI + 1;
    assert_int_equal(bw_backend_register(&b, &err), BW_VERSION_MISMATCH);
    b = stub_backend;
    b.struct_size = BW_BACKEND_SIZE_MIN - 1;
    assert_int_equal(bw_backend_register(&b, &err), BW_VERSION_MISMATCH);
    static const char *const bad[] = {NULL,  "",           "Upper",
                                      "a:b", "with blank", "0123456789012345678901234567890123456789"};
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        b = stub_backend;
        b.name = bad[i];
        assert_int_equal(bw_backend_register(&b, &err), BW_INVALID_ARGUMENT);
    }
    b = stub_backend;
    b.image_release = NULL;
    assert_int_equal(bw_backend_register(&b, &err), BW_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "'image_release'"));
    b = stub_backend;
    b.bitstream_kind = NULL;
    assert_int_equal(bw_backend_register(&b, &err), BW_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "'bitstream_kind'"));
    assert_int_equal(bw_backend_register(&stub_backend, &err), BW_OK); /* without abort: it is optional */
    assert_int_equal(bw_backend_register(&stub_backend, &err), BW_ALREADY_EXISTS);
}

/* A plug-in without the slots from `run_timed` on: what lies behind its struct is not a slot. */
static void older_backends_are_taken(void **state)
{
    (void)state;
    static bw_backend older;
    memset(&older, 0xee, sizeof older);
    memcpy(&older, &stub_backend, BW_BACKEND_SIZE_MIN);
    older.struct_size = BW_BACKEND_SIZE_MIN;
    older.name = "older";
    assert_int_equal(bw_backend_register(&older, &err), BW_OK);
    bw_device *dev;
    bw_image *image;
    bw_fence *fence;
    size_t size;
    const void *program = stub_program(&size);
    float in[STUB_FLOATS] = {1, 2, 3}, out[STUB_FLOATS] = {0};
    uint64_t spent[1] = {0};
    assert_int_equal(bw_device_open("older:0", &dev, &err), BW_OK);
    assert_int_equal(bw_image_load(dev, program, size, NULL, 0, &image, &err), BW_OK);
    assert_int_equal(bw_image_submit_timed(image, in, out, 1, spent, &fence, &err), BW_UNSUPPORTED);
    assert_non_null(strstr(err.message, "backend 'older' does not time instructions: take another device"));
    assert_null(fence);
    assert_int_equal(bw_image_run(image, in, out, 1, 0, &err), BW_OK);
    assert_memory_equal(in, out, sizeof in);
    bw_device_info info;
    bw_sensors sensors = {1, 1};
    assert_int_equal(bw_device_info_get(dev, &info, &err), BW_OK);
    assert_int_equal(bw_device_sensors_get(&info, &sensors, &err), BW_OK);
    assert_true(isnan(sensors.temperature_c) && isnan(sensors.power_w));
    bw_image_release(image);
    bw_device_close(dev);
}

static void uris_are_checked(void **state)
{
    (void)state;
    bw_device *dev;
    char longest[200];
    memset(longest, 'x', sizeof longest);
    memcpy(longest, "stub:", 5);
    longest[150] = 0;
    const char *const bad[] = {NULL, "", "stub", ":0", "stub:a b", "stub:\n", longest, "://"};
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        dev = (bw_device *)&err;
        assert_int_equal(bw_device_open(bad[i], &dev, &err), BW_INVALID_ARGUMENT);
        assert_null(dev);
    }
    assert_int_equal(bw_device_open("stub:0", NULL, &err), BW_INVALID_ARGUMENT);
    assert_int_equal(bw_device_open("nosuch:0", &dev, &err), BW_NOT_FOUND);
    assert_non_null(strstr(err.message, "the known ones are: stub"));
    assert_non_null(strstr(err.message, "libbw_hal_nosuch.so"));
    assert_int_equal(bw_device_open("../etc:0", &dev, &err), BW_NOT_FOUND);
    stub.open_status = BW_NOT_FOUND;
    assert_int_equal(bw_device_open("stub:9", &dev, &err), BW_NOT_FOUND);
    assert_string_equal(err.message, "stub:9: no target '9'");
    stub.open_status = 0;
}

static void one_device_for_one_uri(void **state)
{
    (void)state;
    bw_device *a, *b, *c;
    stub_clear();
    assert_int_equal(bw_device_open("stub:0", &a, &err), BW_OK);
    assert_int_equal(bw_device_open("stub:0", &b, &err), BW_OK);
    assert_int_equal(bw_device_open("stub:1", &c, &err), BW_OK);
    assert_ptr_equal(a, b);
    assert_ptr_not_equal(a, c);
    assert_int_equal(stub.opens, 2);
    bw_device_close(a);
    assert_int_equal(stub.closes, 0);
    bw_device_close(b);
    assert_int_equal(stub.closes, 1);
    bw_device_close(c);
    assert_int_equal(bw_device_open("stub:0", &a, &err), BW_OK);
    assert_int_equal(stub.opens, 3);
    bw_device_close(a);
}

static void *open_and_close(void *user)
{
    for (int i = 0; i < 40; i++) {
        bw_device *dev;
        if (bw_device_open("stub:race", &dev, NULL))
            (*(atomic_int *)user)++;
        else
            bw_device_close(dev);
    }
    return NULL;
}

static void opening_races(void **state)
{
    (void)state;
    stub_clear();
    pthread_t threads[4];
    atomic_int failures = 0;
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, open_and_close, &failures), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(failures, 0);
    assert_int_equal(stub.opens, stub.closes);
}

static bw_status collect(const char *key, const char *value, void *user, bw_error *e)
{
    if (strcmp(key, "bad") == 0)
        return bw_fail(e, BW_INVALID_ARGUMENT, "bad option");
    char *text = user;
    snprintf(text + strlen(text), 200 - strlen(text), "[%s=%s]", key, value);
    return BW_OK;
}

static void targets_are_split(void **state)
{
    (void)state;
    static const struct {
        const char *target, *name, *options;
        bw_status status;
    } cases[] = {
        {"", "", "", BW_OK},
        {"u250", "u250", "", BW_OK},
        {"?a=1", "", "[a=1]", BW_OK},
        {"x?a=1&b=two@3", "x", "[a=1][b=two@3]", BW_OK},
        {"x?a=", NULL, NULL, BW_INVALID_ARGUMENT},
        {"x?=1", NULL, NULL, BW_INVALID_ARGUMENT},
        {"x?a", NULL, NULL, BW_INVALID_ARGUMENT},
        {"x?a=1&", NULL, NULL, BW_INVALID_ARGUMENT},
        {"x?", NULL, NULL, BW_INVALID_ARGUMENT},
        {"x?a=1&bad=2", NULL, NULL, BW_INVALID_ARGUMENT},
        {"muchtoolong", NULL, NULL, BW_INVALID_ARGUMENT},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        char name[8], options[200] = "";
        bw_status s = bw_target_parse(cases[i].target, name, sizeof name, collect, options, &err);
        if (s != cases[i].status || (!s && (strcmp(name, cases[i].name) || strcmp(options, cases[i].options))))
            fail_msg("'%s': %s, '%s', '%s'", cases[i].target, bw_status_name(s), name, options);
    }
}

/* --- plug-ins --------------------------------------------------------------------------------------------------- */

static int build(const char *name, const char *flags)
{
    const char *cc = getenv("CC");
    char command[1024];
    snprintf(command, sizeof command, "%s -std=c11 -shared -fPIC -I. %s -o %s/libbw_hal_%s.so tests/data/plugin.c",
             cc ? cc : "cc", flags, dir, name);
    return system(command);
}

typedef struct seen {
    char devices[1024], absent[4096];
} seen;

static int each(const bw_device_info *info, void *user)
{
    seen *s = user;
    snprintf(s->devices + strlen(s->devices), sizeof s->devices - strlen(s->devices), "%s ", info->uri);
    return 0;
}

static int stop_at_once(const bw_device_info *info, void *user)
{
    (void)info;
    ++*(int *)user;
    return 1;
}

static void absent(const char *backend, const char *reason, void *user)
{
    seen *s = user;
    snprintf(s->absent + strlen(s->absent), sizeof s->absent - strlen(s->absent), "%s: %s\n", backend, reason);
}

#define assert_has(text, part)                                                                                         \
    do {                                                                                                               \
        if (!strstr(text, part))                                                                                       \
            fail_msg("'%s' is not in: %s", part, text);                                                                \
    } while (0)

static void plugins_are_found(void **state)
{
    (void)state;
    if (!have_plugins)
        skip();
    seen s = {"", ""};
    assert_int_equal(bw_device_enumerate(each, absent, &s, &err), BW_OK);
    assert_has(s.devices, "stub:0 stub:1 ");
    assert_has(s.devices, "good:0 ");
    assert_null(strstr(s.absent, "good:"));
    assert_has(s.absent, "nocard: no card in the machine");
    assert_has(s.absent, "noentry: ");
    assert_has(s.absent, "exports no symbol bw_backend_entry");
    assert_has(s.absent, "norun: ");
    assert_has(s.absent, "the required slot 'run' is NULL");
    assert_has(s.absent, "newabi: ");
    assert_has(s.absent, "ABI version 99");
    /* One that was built before the counters left bw_device_info: the whole line. */
    char line[512];
    snprintf(line, sizeof line,
             "oldabi: %s/libbw_hal_oldabi.so: backend has ABI version 1, this program expects 2: rebuild the plug-in "
             "against its headers\n",
             dir);
    assert_has(s.absent, line);
    assert_has(s.absent, "alias: ");
    assert_has(s.absent, "calls itself 'good', expected 'alias'");
    assert_has(s.absent, "undefined: ");
    assert_has(s.absent, "bw_symbol_that_nobody_defines");
    assert_has(s.absent, "text: ");
    /* Known ones that nobody installed are named with where they were looked for. */
    assert_has(s.absent, "opencl: plug-in libbw_hal_opencl.so is not installed (looked in ");
    assert_has(s.absent, dir);
    /* Again: the same, nothing twice. */
    seen again = {"", ""};
    assert_int_equal(bw_device_enumerate(each, absent, &again, &err), BW_OK);
    assert_string_equal(s.devices, again.devices);
    assert_string_equal(s.absent, again.absent);
    int count = 0;
    assert_int_equal(bw_device_enumerate(stop_at_once, NULL, &count, &err), BW_OK);
    assert_int_equal(count, 1);
    assert_int_equal(bw_device_enumerate(NULL, NULL, NULL, &err), BW_INVALID_ARGUMENT);
}

static void plugins_open_on_demand(void **state)
{
    (void)state;
    if (!have_plugins)
        skip();
    bw_device *dev;
    bw_device_info info;
    /* Never enumerated under this name: loaded by the open. */
    assert_int_equal(build("later", "-DNAME='\"later\"'"), 0);
    assert_int_equal(bw_device_open("later:0", &dev, &err), BW_OK);
    assert_int_equal(bw_device_info_get(dev, &info, &err), BW_OK);
    assert_string_equal(info.name, "p");
    size_t size;
    const void *program = stub_program(&size);
    bw_image *image;
    assert_int_equal(bw_image_load(dev, program, size, NULL, 0, &image, &err), BW_INCOMPATIBLE); /* it offers nothing */
    bw_device_close(dev);
    assert_int_equal(bw_device_open("later:", &dev, &err), BW_NOT_FOUND);
    assert_int_equal(bw_device_open("newabi:0", &dev, &err), BW_NOT_FOUND);
    assert_has(err.message, "rebuild the plug-in");
    assert_int_equal(bw_device_open("oldabi:0", &dev, &err), BW_NOT_FOUND);
    assert_has(err.message, "ABI version 1, this program expects 2: rebuild the plug-in");
    assert_null(strchr(err.message, '\n'));
}

static int prepare(void **state)
{
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/bw-plugin-%ld", tmp ? tmp : "/tmp", (long)getpid());
    if (mkdir(dir, 0700) || setenv("BW_PLUGIN_PATH", dir, 1))
        return -1;
    have_plugins = build("good", "") == 0;
    if (!have_plugins) {
        printf("ok 0 - plug-ins # SKIP the C compiler (CC, default cc) cannot build a shared object here\n");
        return 0;
    }
    char path[512];
    snprintf(path, sizeof path, "%s/libbw_hal_text.so", dir);
    FILE *f = fopen(path, "w");
    if (!f || fputs("no ELF file", f) < 0 || fclose(f))
        return -1;
    return build("alias", "") || build("nocard", "-DNAME='\"nocard\"' -DABSENT") ||
                   build("noentry", "-DNAME='\"noentry\"' -DNO_ENTRY") ||
                   build("norun", "-DNAME='\"norun\"' -DNO_RUN") || build("newabi", "-DNAME='\"newabi\"' -DABI=99") ||
                   build("oldabi", "-DNAME='\"oldabi\"' -DABI=1") ||
                   build("undefined", "-DNAME='\"undefined\"' -DUNDEFINED")
               ? -1
               : 0;
}

static int clean(void **state)
{
    (void)state;
    DIR *d = opendir(dir);
    char path[600];
    for (struct dirent *e; d && (e = readdir(d));) {
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        unlink(path);
    }
    if (d)
        closedir(d);
    return rmdir(dir);
}

int main(void)
{
    stub_clear();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(registration_is_checked), cmocka_unit_test(older_backends_are_taken),
        cmocka_unit_test(uris_are_checked),        cmocka_unit_test(one_device_for_one_uri),
        cmocka_unit_test(opening_races),           cmocka_unit_test(targets_are_split),
        cmocka_unit_test(plugins_are_found),       cmocka_unit_test(plugins_open_on_demand),
    };
    return cmocka_run_group_tests_name("plugin", tests, prepare, clean);
}
