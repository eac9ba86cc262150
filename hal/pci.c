/* SPDX-License-Identifier: Apache-2.0 */
#include "hal/pci.h"

#include <ctype.h>
#include <glob.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void bw_pci_address(char *text, size_t size, unsigned domain, unsigned bus, unsigned device, unsigned function)
{
    snprintf(text, size, "%04x:%02x:%02x.%x", domain, bus, device, function);
}

int bw_sensor_temperature_ok(double celsius)
{
    return celsius != 0 && celsius >= -55 && celsius <= 200;
}

int bw_sensor_power_ok(double watts)
{
    return watts > 0 && watts <= 2000;
}

/* It becomes part of a path and of a pattern. */
static int address_ok(const char *address)
{
    return *address && strspn(address, "0123456789abcdefABCDEF:.") == strlen(address) && strchr(address, ':');
}

/* 1: the file holds a number. */
static int read_number(const char *path, double *value)
{
    char line[64] = "", *end;
    FILE *f = fopen(path, "re");
    if (!f)
        return 0;
    if (!fgets(line, sizeof line, f)) /* a driver may refuse: the device sleeps, or is gone */
        line[0] = 0;
    fclose(f);
    const double number = strtod(line, &end);
    if (end == line || (*end && !isspace((unsigned char)*end)) || !isfinite(number))
        return 0;
    *value = number;
    return 1;
}

/* Hands the number in each file that matches to `each`, in the order of their names, until it returns non-zero. */
static void each_number(const char *sysfs, const char *address, const char *pattern,
                        int (*each)(double number, void *user), void *user)
{
    char path[PATH_MAX];
    glob_t found;
    if (!address_ok(address) ||
        snprintf(path, sizeof path, "%s/bus/pci/devices/%s/%s", sysfs, address, pattern) >= (int)sizeof path ||
        glob(path, 0, NULL, &found))
        return;
    double number;
    for (size_t i = 0; i < found.gl_pathc; i++)
        if (read_number(found.gl_pathv[i], &number) && each(number, user))
            break;
    globfree(&found);
}

static int hottest(double millidegrees, void *user)
{
    double *t = user;
    const double celsius = millidegrees / 1000;
    if (bw_sensor_temperature_ok(celsius) && !(*t >= celsius))
        *t = celsius;
    return 0;
}

static int first_power(double microwatts, void *user)
{
    double *p = user;
    if (!bw_sensor_power_ok(microwatts / 1e6))
        return 0;
    *p = microwatts / 1e6;
    return 1;
}

void bw_pci_sensors(const char *sysfs, const char *address, bw_sensors *sensors)
{
    double t = NAN, p = NAN;
    /* Of the device itself, and of parts of it that have drivers of their own. */
    static const char *const where[] = {"hwmon/hwmon*", "*/hwmon/hwmon*"};
    for (size_t i = 0; i < sizeof where / sizeof *where; i++) {
        char pattern[64];
        snprintf(pattern, sizeof pattern, "%s/temp*_input", where[i]);
        each_number(sysfs, address, pattern, hottest, &t);
        /* The moment's power if it is measured, else the mean of the last moments. */
        static const char *const powers[] = {"input", "average"};
        for (size_t k = 0; k < 2 && isnan(p); k++) {
            snprintf(pattern, sizeof pattern, "%s/power*_%s", where[i], powers[k]);
            each_number(sysfs, address, pattern, first_power, &p);
        }
    }
    if (!isnan(t))
        sensors->temperature_c = t;
    if (!isnan(p))
        sensors->power_w = p;
}

static int take(double number, void *user)
{
    *(double *)user = number;
    return 1;
}

double bw_pci_number(const char *sysfs, const char *address, const char *pattern)
{
    double number = NAN;
    each_number(sysfs, address, pattern, take, &number);
    return number;
}
