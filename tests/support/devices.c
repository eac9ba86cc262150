/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/devices.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "hal/hal.h"
#include "sim/sim.h"

static int add(struct bw_test_devices *devices, const char *uri)
{
    if (devices->count == BW_TEST_DEVICES_MAX || strlen(uri) >= sizeof devices->uris[0]) {
        printf("not ok 0 - device %s: more than %d devices, or too long\n", uri, BW_TEST_DEVICES_MAX);
        return -1;
    }
    strcpy(devices->uris[devices->count++], uri);
    return 0;
}

static int each(const bw_device_info *info, void *user)
{
    return add(user, info->uri);
}

static void absent(const char *backend, const char *reason, void *user)
{
    (void)user;
    printf("ok 0 - devices of %s # SKIP %s\n", backend, reason);
}

void bw_test_use_plugins(void)
{
    const char *bin = getenv("BW_BIN");
    char plugins[1024];
    if (bin && snprintf(plugins, sizeof plugins, "%s/../lib", bin) < (int)sizeof plugins)
        setenv("BW_PLUGIN_PATH", plugins, 0);
}

int bw_test_devices_find(struct bw_test_devices *devices, const char *const *more)
{
    bw_error err = {BW_OK, ""};
    const char *env = getenv("BW_DEVICES");
    int failed = 0;
    devices->count = 0;
    bw_test_use_plugins();
    if (bw_sim_register(&err)) {
        printf("not ok 0 - %s\n", err.message);
        return -1;
    }
    if (env && *env) {
        char list[1024], *rest = list;
        snprintf(list, sizeof list, "%s", env);
        for (char *uri; (uri = strsep(&rest, " "));)
            if (*uri)
                failed |= add(devices, uri);
        return failed;
    }
    if (bw_device_enumerate(each, absent, devices, &err)) {
        printf("not ok 0 - enumerate: %s\n", err.message);
        return -1;
    }
    while (more && *more)
        failed |= add(devices, *more++);
    return failed;
}

int bw_test_devices_main(const char *group, const struct bw_test_case *cases, unsigned count, const char *const *more)
{
    static char names[BW_TEST_DEVICES_MAX * BW_TEST_CASES_MAX][200];
    static struct CMUnitTest tests[BW_TEST_DEVICES_MAX * BW_TEST_CASES_MAX];
    static struct bw_test_devices devices;
    unsigned n = 0;
    if (count > BW_TEST_CASES_MAX || bw_test_devices_find(&devices, more))
        return 1;
    for (unsigned d = 0; d < devices.count; d++)
        for (unsigned i = 0; i < count; i++, n++) {
            snprintf(names[n], sizeof names[n], "%.128s %s", devices.uris[d], cases[i].name);
            tests[n] = (struct CMUnitTest){names[n], cases[i].run, NULL, NULL, devices.uris[d]};
        }
    return _cmocka_run_group_tests(group, tests, n, NULL, NULL);
}
