/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses and sensors of PCI devices, in a folder that is laid out as the kernel's sysfs. */
#include <dlfcn.h>
#include <ftw.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "hal/pci.h"

#define CARD "0000:3b:00.1"

static char root[200];

/* Writes a file below the card's folder, with its folders. */
static void put(const char *path, const char *text)
{
    char full[600];
    snprintf(full, sizeof full, "%s/bus/pci/devices/" CARD "/%s", root, path);
    for (char *p = full + strlen(root) + 1; (p = strchr(p, '/')); p++) {
        *p = 0;
        mkdir(full, 0700);
        *p = '/';
    }
    FILE *f = fopen(full, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static int setup(void **state)
{
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(root, sizeof root, "%s/bw-pci-%ld", tmp ? tmp : "/tmp", (long)getpid());
    return mkdir(root, 0700);
}

static int delete_it(const char *path, const struct stat *info, int type, struct FTW *where)
{
    (void)info, (void)type, (void)where;
    return remove(path);
}

static int teardown(void **state)
{
    (void)state;
    return nftw(root, delete_it, 16, FTW_DEPTH | FTW_PHYS);
}

static bw_sensors sensors(const char *address)
{
    bw_sensors s = {NAN, NAN};
    bw_pci_sensors(root, address, &s);
    return s;
}

static void addresses(void **state)
{
    (void)state;
    char text[32];
    bw_pci_address(text, sizeof text, 0, 0x3b, 0, 1);
    assert_string_equal(text, CARD);
    bw_pci_address(text, sizeof text, 0x10000, 255, 31, 7);
    assert_string_equal(text, "10000:ff:1f.7");
}

static void hwmon_is_read(void **state)
{
    (void)state;
    bw_sensors s = sensors(CARD);
    assert_true(isnan(s.temperature_c) && isnan(s.power_w));
    put("hwmon/hwmon3/temp1_input", "41500\n");
    s = sensors(CARD);
    assert_true(s.temperature_c == 41.5 && isnan(s.power_w));
    put("hwmon/hwmon3/temp2_input", "63250\n"); /* the hottest */
    put("hwmon/hwmon3/temp3_input", "20000\n");
    put("hwmon/hwmon3/power1_average", "19000000\n");
    s = sensors(CARD);
    assert_true(s.temperature_c == 63.25 && s.power_w == 19);
    put("hwmon/hwmon3/power1_input", "23500000\n"); /* now, rather than a mean */
    assert_true(sensors(CARD).power_w == 23.5);
    put("hwmon_sdm.u.7/hwmon/hwmon4/temp1_input", "70000\n"); /* a part of the card */
    put("hwmon_sdm.u.7/hwmon/hwmon4/power1_input", "99000000\n");
    s = sensors(CARD);
    assert_true(s.temperature_c == 70 && s.power_w == 23.5);
    /* Another device, or none. */
    const char *const others[] = {"", "0000:3b:00.0", "0000:3b:00.1/", "../" CARD, "*", "0000:3b:00.*", "?000:3b:00.1"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        s = sensors(others[i]);
        assert_true(isnan(s.temperature_c) && isnan(s.power_w));
    }
}

static void what_cannot_be_is_unknown(void **state)
{
    (void)state;
    static const char *const bad[] = {"",      "\n",       "0\n",      "none\n", "nan\n",
                                      "inf\n", "201000\n", "-60000\n", "12x\n",  "99999999999999999999\n"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put("hwmon/hwmon0/temp1_input", bad[i]);
        assert_true(isnan(sensors(CARD).temperature_c));
    }
    static const char *const bad_power[] = {"0\n", "-1\n", "2000000001\n", "x"};
    for (size_t i = 0; i < sizeof bad_power / sizeof *bad_power; i++) {
        put("hwmon/hwmon0/power1_input", bad_power[i]);
        assert_true(isnan(sensors(CARD).power_w));
    }
    put("hwmon/hwmon0/power2_input", "7000000"); /* the first that can be */
    assert_true(sensors(CARD).power_w == 7);
    put("hwmon/hwmon0/temp1_input", "-12500\n"); /* outdoors */
    assert_true(sensors(CARD).temperature_c == -12.5);
}

static void numbers_by_pattern(void **state)
{
    (void)state;
    assert_true(isnan(bw_pci_number(root, CARD, "xmc*/xmc_fpga_temp")));
    put("xmc.u.25165824/xmc_fpga_temp", "47\n");
    put("xmc.u.25165824/xmc_power", "23456789\n");
    assert_true(bw_pci_number(root, CARD, "xmc*/xmc_fpga_temp") == 47);
    assert_true(bw_pci_number(root, CARD, "xmc*/xmc_power") == 23456789);
    assert_true(isnan(bw_pci_number(root, CARD, "xmc*/none")));
    assert_true(isnan(bw_pci_number(root, "", "xmc*/xmc_power")));
    assert_false(bw_sensor_temperature_ok(NAN) || bw_sensor_power_ok(NAN));
}

/* The xrt plug-in's own reading of a card: XMC's files go before hwmon's. */
static void cards_of_xrt(void **state)
{
    (void)state;
    char path[600];
    const char *build = getenv("BW_BUILD");
    snprintf(path, sizeof path, "%s/lib/libbw_hal_xrt.so", build ? build : "build");
    void *plugin = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!plugin) {
        print_message("# SKIP the plug-in xrt is not built: %s\n", dlerror());
        skip();
    }
    void (*read_card)(const char *, const char *, bw_sensors *);
    void *symbol = dlsym(plugin, "bw_xrt_card_sensors");
    assert_non_null(symbol);
    memcpy(&read_card, &symbol, sizeof read_card);
    bw_sensors s = {NAN, NAN};
    read_card(root, CARD, &s);
    read_card(root, "", &s); /* an emulated one */
    assert_true(isnan(s.temperature_c) && isnan(s.power_w));
    put("xmc.u.25165824/xmc_fpga_temp", "0\n"); /* what XMC shows while it has measured nothing */
    put("xmc.u.25165824/xmc_power", "0\n");
    read_card(root, CARD, &s);
    assert_true(isnan(s.temperature_c) && isnan(s.power_w));
    put("hwmon/hwmon0/temp1_input", "35000\n");
    read_card(root, CARD, &s);
    assert_true(s.temperature_c == 35 && isnan(s.power_w));
    put("xmc.u.25165824/xmc_fpga_temp", "47\n");
    put("xmc.u.25165824/xmc_power", "23456789\n");
    read_card(root, CARD, &s);
    assert_true(s.temperature_c == 47 && s.power_w == 23.456789);
    dlclose(plugin);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(addresses),
        cmocka_unit_test_setup_teardown(hwmon_is_read, setup, teardown),
        cmocka_unit_test_setup_teardown(what_cannot_be_is_unknown, setup, teardown),
        cmocka_unit_test_setup_teardown(numbers_by_pattern, setup, teardown),
        cmocka_unit_test_setup_teardown(cards_of_xrt, setup, teardown),
    };
    return cmocka_run_group_tests_name("pci", tests, NULL, NULL);
}
