/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What Linux knows of a PCI device, for backends whose devices are PCI cards: the usual writing of its address, and the
 * sensors that its driver shows under hwmon.
 *
 *     bw_pci_address(info->address, sizeof info->address, 0, 0x3b, 0, 1);          // "0000:3b:00.1"
 *     bw_pci_sensors(BW_SYSFS, info->address, sensors);
 *
 * Thread safety: any thread.
 */
#ifndef BW_HAL_PCI_H
#define BW_HAL_PCI_H

#include "hal/hal.h"

#define BW_SYSFS "/sys"

void bw_pci_address(char *text, size_t size, unsigned domain, unsigned bus, unsigned device, unsigned function);

/* Reads SYSFS/bus/pci/devices/ADDRESS/hwmon and those of its parts: the hottest temperature, the power that comes
 * first. What is not there, cannot be read or is no possible value is left as it was. An address that is none (or "")
 * leaves everything.
 * Source: Documentation/hwmon/sysfs-interface.rst of Linux (millidegrees, microwatts). */
void bw_pci_sensors(const char *sysfs, const char *address, bw_sensors *sensors);

/* The number in the first file below the device's folder that the pattern (glob(7)) matches and that holds one:
 * "xmc.*" "/xmc_power". NAN: there is none. */
double bw_pci_number(const char *sysfs, const char *address, const char *pattern);

/* Whether a reading can be true: what drivers show of a sensor that does not answer is not. */
int bw_sensor_temperature_ok(double celsius); /* -55..200, not 0 */
int bw_sensor_power_ok(double watts);         /* above 0, at most 2000 */

#endif
