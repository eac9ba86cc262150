/* SPDX-License-Identifier: Apache-2.0 */
#include "hal/plugins/xrt/platform.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hal/base.h"
#include "hal/pci.h"
#include "kernels/accelerator.h"

#define HELPER "start this program through 'blockwave-xrt-emulation run --'"
/* In the emulation libraries that Blockwave links from XRT's archives (sim/card/shim/shim.c). */
#define SHIM_MARK "blockwave emulation shim"
#define CARDS_MAX 64

static const char *variable(const char *name)
{
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

static bw_status need_variable(const char *name, const char *what, const char *remedy, bw_error *err)
{
    return variable(name)
               ? BW_OK
               : bw_fail(err, BW_UNSUPPORTED, "the environment variable %s is not set, XRT needs it for %s: %s", name,
                         what, remedy);
}

/* --- emulation ---------------------------------------------------------------------------------------------------- */

static bw_status check_shim(const char *mode, bw_error *err)
{
    bw_status status = need_variable("XILINX_XRT", "its emulation library", HELPER, err);
    if (status)
        return status;
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/lib/libxrt_%s.so.2", getenv("XILINX_XRT"),
             strcmp(mode, "sw_emu") == 0 ? "swemu" : "hwemu");
    const void *bytes;
    size_t size;
    if (bw_file_map(path, &bytes, &size, err))
        return bw_fail(err, BW_UNSUPPORTED, "%s is missing, XRT would end this process: " HELPER, path);
    int ours = memmem(bytes, size, SHIM_MARK, sizeof SHIM_MARK - 1) != NULL;
    bw_file_unmap(bytes, size);
    /* Others' (of a Vitis installation) may be in order; the one that Debian ships is known not to be. */
    return ours || variable("BW_XRT_ANY_SHIM")
               ? BW_OK
               : bw_fail(err, BW_UNSUPPORTED,
                         "%s is not the one that Blockwave builds, and the one Debian ships spoils the memory of its "
                         "process: " HELPER,
                         path);
}

static bw_status check_model(const char *mode, bw_error *err)
{
    if (strcmp(mode, "hw_emu") == 0)
        return BW_OK; /* its simulator is named in an ini file */
    bw_status status = need_variable("XILINX_VITIS", "the emulated card's program", HELPER, err);
    if (status)
        return status;
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/data/emulation/unified/cpu_em/generic_pcie/model/genericpciemodel",
             getenv("XILINX_VITIS"));
    return access(path, X_OK) == 0
               ? BW_OK
               : bw_fail(err, BW_UNSUPPORTED, "%s: %s, XRT would wait for it for 5 minutes: " HELPER, path,
                         strerror(errno));
}

/* XRT puts its socket into /tmp/$USER; without USER all processes of the machine would share one. */
static bw_status check_user(bw_error *err)
{
    bw_status status = need_variable("USER", "the emulated card's socket", HELPER, err);
    if (status)
        return status;
    char path[PATH_MAX];
    int n = snprintf(path, sizeof path, "/tmp/%s", getenv("USER"));
    if (n > 60)
        return bw_fail(err, BW_UNSUPPORTED, "USER has %d characters, a socket's path has room for 55: set another",
                       n - 5);
    if (mkdir(path, 0700) && errno != EEXIST)
        return bw_fail(err, BW_UNSUPPORTED, "%s, the folder of the emulated card's socket: %s", path, strerror(errno));
    return access(path, R_OK | W_OK | X_OK) == 0
               ? BW_OK
               : bw_fail(err, BW_UNSUPPORTED, "%s, the folder of the emulated card's socket: %s", path,
                         strerror(errno));
}

static unsigned count_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    long n = text ? strtol(text, NULL, 10) : 1;
    return n < 0 || n > CARDS_MAX ? 0 : (unsigned)n;
}

/* XRT opens a card of its own invention for a number that emconfig.json does not have. */
static bw_status find_emulated(unsigned index, const char *mode, bw_xrt_card_info *info, bw_error *err)
{
    bw_status status = check_shim(mode, err);
    status = status ? status : check_model(mode, err);
    status = status ? status : check_user(err);
    status = status ? status : need_variable("EMCONFIG_PATH", "the list of emulated cards", HELPER, err);
    if (status)
        return status;
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/emconfig.json", getenv("EMCONFIG_PATH"));
    json_error_t je;
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &je);
    if (!root)
        return bw_fail(err, BW_UNSUPPORTED, "%s: %s at line %d: " HELPER, path, je.text, je.line);
    unsigned seen = 0, found = 0;
    size_t b, d;
    const json_t *board, *device;
    json_array_foreach(json_object_get(json_object_get(root, "Platform"), "Boards"), b, board)
        json_array_foreach(json_object_get(board, "Devices"), d, device)
    {
        unsigned n = count_of(device, "NumDevices");
        const char *name = json_string_value(json_object_get(device, "Name"));
        if (!found && name && index >= seen && index < seen + n) {
            snprintf(info->name, sizeof info->name, "%s", name);
            found = 1;
        }
        seen += n;
    }
    json_decref(root);
    if (!found)
        return bw_fail(err, BW_NOT_FOUND,
                       "%s lists %u cards, there is no number %u: take one of them (blockwave devices lists them)",
                       path, seen, index);
    snprintf(info->interface_id, sizeof info->interface_id, "%s", bw_accelerator_find(NULL)->interface_id);
    snprintf(info->mode, sizeof info->mode, "%s", mode);
    if (!realpath(getenv("EMCONFIG_PATH"), info->tree))
        return bw_fail(err, BW_UNSUPPORTED, "EMCONFIG_PATH is '%s': %s: " HELPER, getenv("EMCONFIG_PATH"),
                       strerror(errno));
    return BW_OK;
}

/* --- cards -------------------------------------------------------------------------------------------------------- */

#define DRIVER "/sys/bus/pci/drivers/xocl"

static int by_address(const void *a, const void *b)
{
    return strcmp(a, b);
}

static unsigned list_cards(char addresses[CARDS_MAX][16])
{
    unsigned count = 0;
    DIR *dir = opendir(DRIVER);
    for (struct dirent *e; dir && count < CARDS_MAX && (e = readdir(dir));) {
        unsigned domain, bus, slot, function;
        if (sscanf(e->d_name, "%x:%x:%x.%x", &domain, &bus, &slot, &function) == 4 && strlen(e->d_name) < 16)
            snprintf(addresses[count++], 16, "%.15s", e->d_name);
    }
    if (dir)
        closedir(dir);
    qsort(addresses, count, 16, by_address);
    return count;
}

/* First line of a file of the card's, also in a subfolder "PREFIX..."; "" if there is none. */
static void sysfs_line(const char *address, const char *prefix, const char *name, char *out, size_t size)
{
    char path[PATH_MAX];
    out[0] = 0;
    snprintf(path, sizeof path, DRIVER "/%s", address);
    DIR *dir = *prefix ? opendir(path) : NULL;
    for (struct dirent *e; dir && (e = readdir(dir));)
        if (strncmp(e->d_name, prefix, strlen(prefix)) == 0) {
            snprintf(path, sizeof path, DRIVER "/%s/%.200s", address, e->d_name);
            break;
        }
    if (dir)
        closedir(dir);
    size_t n = strlen(path);
    snprintf(path + n, sizeof path - n, "/%s", name);
    FILE *f = fopen(path, "r");
    if (f && fgets(out, (int)size, f))
        out[strcspn(out, "\n")] = 0;
    else
        out[0] = 0;
    if (f)
        fclose(f);
}

/* 32 digits, or with dashes, to the usual writing. */
static void to_uuid(const char *text, char uuid[37])
{
    char digits[33];
    size_t n = 0;
    for (; *text && n < 32; text++)
        if (isxdigit((unsigned char)*text))
            digits[n++] = (char)tolower((unsigned char)*text);
    digits[n] = 0;
    if (n == 32)
        snprintf(uuid, 37, "%.8s-%.4s-%.4s-%.4s-%.12s", digits, digits + 8, digits + 12, digits + 16, digits + 20);
    else
        snprintf(uuid, 37, "00000000-0000-0000-0000-000000000000");
}

static bw_status find_card(unsigned index, bw_xrt_card_info *info, bw_error *err)
{
    char addresses[CARDS_MAX][16], text[128], path[PATH_MAX];
    unsigned count = list_cards(addresses);
    if (count == 0)
        return bw_fail(err, BW_UNSUPPORTED,
                       "there is no card: no PCI device is bound to the driver xocl (" DRIVER
                       "); for an emulated one " HELPER);
    if (index >= count)
        return bw_fail(err, BW_NOT_FOUND,
                       "there are %u cards, there is no number %u: take one of them (blockwave devices lists them)",
                       count, index);
    bw_status status = need_variable("XILINX_XRT", "its driver library", "source XRT's setup.sh", err);
    if (status)
        return status;
    snprintf(path, sizeof path, "%s/lib/libxrt_core.so.2", getenv("XILINX_XRT"));
    if (access(path, R_OK))
        return bw_fail(err, BW_UNSUPPORTED,
                       "%s: %s, XRT would end this process: set XILINX_XRT to a folder whose lib "
                       "holds it",
                       path, strerror(errno));
    snprintf(info->address, sizeof info->address, "%s", addresses[index]);
    snprintf(info->mode, sizeof info->mode, "card");
    sysfs_line(info->address, "rom", "VBNV", text, sizeof text);
    snprintf(info->name, sizeof info->name, "%.63s", text[0] ? text : "unknown");
    sysfs_line(info->address, "", "interface_uuids", text, sizeof text);
    to_uuid(text, info->interface_id);
    return BW_OK;
}

bw_status bw_xrt_card_find(unsigned index, bw_xrt_card_info *info, bw_error *err)
{
    memset(info, 0, sizeof *info);
    /* XRT looks whether the variable is there, not what is in it. */
    const char *mode = getenv("XCL_EMULATION_MODE");
    if (!mode)
        return find_card(index, info, err);
    if (strcmp(mode, "sw_emu") != 0 && strcmp(mode, "hw_emu") != 0)
        return bw_fail(err, BW_UNSUPPORTED,
                       "XCL_EMULATION_MODE is '%s', expected sw_emu or hw_emu, or unset for a card", mode);
    return find_emulated(index, mode, info, err);
}

bw_status bw_xrt_card_present(const bw_xrt_card_info *info, bw_error *err)
{
    bw_error why;
    if (!info->address[0])
        return check_model(info->mode, &why) ? bw_fail(err, BW_DEVICE_LOST, "%s", why.message) : BW_OK;
    char path[PATH_MAX];
    snprintf(path, sizeof path, DRIVER "/%s", info->address);
    return access(path, F_OK) == 0
               ? BW_OK
               : bw_fail(err, BW_DEVICE_LOST, "the card at %s has left the bus, or its driver xocl: %s is missing",
                         info->address, path);
}

/* XRT's own tools read the same files, which xocl fills for a process without privileges: XMC is the card's controller.
 * XRT has no call for it in C that works on a card without opening it. Newer cards' controllers come as hwmon. */
void bw_xrt_card_sensors(const char *sysfs, const char *address, bw_sensors *sensors)
{
    bw_pci_sensors(sysfs, address, sensors);
    const double celsius = bw_pci_number(sysfs, address, "xmc*/xmc_fpga_temp");
    const double watts = bw_pci_number(sysfs, address, "xmc*/xmc_power") / 1e6;
    if (bw_sensor_temperature_ok(celsius))
        sensors->temperature_c = celsius;
    if (bw_sensor_power_ok(watts))
        sensors->power_w = watts;
}

/* --- claims ------------------------------------------------------------------------------------------------------- */

static const char *claim_name(unsigned index, const bw_xrt_card_info *info, char name[64])
{
    if (info->address[0])
        snprintf(name, 64, "blockwave-xrt-%s", info->address);
    else
        snprintf(name, 64, "card-%u.lock", index);
    return name;
}

static const char *claim_dir(const bw_xrt_card_info *info)
{
    return info->address[0] ? NULL : info->tree;
}

bw_status bw_xrt_card_claim(unsigned index, const bw_xrt_card_info *info, bw_claim **claim, bw_error *err)
{
    char name[64], who[BW_HOLDER_TEXT];
    bw_holder holder;
    bw_error why;
    bw_status status = bw_claim_take(claim_dir(info), claim_name(index, info, name), claim, &holder, &why);
    if (status == BW_BUSY)
        return bw_fail(err, status,
                       "card %u (%s) is in use by %s: end that, or take another card (blockwave devices lists them)",
                       index, info->address[0] ? info->address : info->tree, bw_holder_text(&holder, who));
    if (status)
        bw_log(BW_LOG_WARN, "xrt", "card %u is not claimed, other processes do not see that it is in use: %s", index,
               why.message);
    return BW_OK;
}

int bw_xrt_card_claimed(unsigned index, const bw_xrt_card_info *info, bw_holder *holder)
{
    char name[64];
    return bw_claim_look(claim_dir(info), claim_name(index, info, name), holder);
}
