/* SPDX-License-Identifier: Apache-2.0 */
/* OpenCL devices: finding them, what they must provide, what they offer. */
#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hal/base.h"
#include "hal/pci.h"
#include "hal/plugins/opencl/opencl.h"

#include <CL/cl_ext.h>

#define PLATFORMS_MAX 16
#define DEVICES_MAX   64
#define NO_PLATFORM   (-1001) /* of the ICD loader: no driver is installed */

/* The same for all: the kernels are source, and decide what they can do. */
static const char interface_id[] = "3c0e5a52-7d0f-4c11-9a57-51a0b10c0c01";

const char *bw_cl_error(cl_int code)
{
    static const struct {
        cl_int code;
        const char *name;
    } names[] = {
#define NAME(n) {n, #n}
        NAME(CL_DEVICE_NOT_FOUND),
        NAME(CL_DEVICE_NOT_AVAILABLE),
        NAME(CL_COMPILER_NOT_AVAILABLE),
        NAME(CL_MEM_OBJECT_ALLOCATION_FAILURE),
        NAME(CL_OUT_OF_RESOURCES),
        NAME(CL_OUT_OF_HOST_MEMORY),
        NAME(CL_PROFILING_INFO_NOT_AVAILABLE),
        NAME(CL_BUILD_PROGRAM_FAILURE),
        NAME(CL_MAP_FAILURE),
        NAME(CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST),
        NAME(CL_INVALID_VALUE),
        NAME(CL_INVALID_DEVICE),
        NAME(CL_INVALID_CONTEXT),
        NAME(CL_INVALID_COMMAND_QUEUE),
        NAME(CL_INVALID_MEM_OBJECT),
        NAME(CL_INVALID_BINARY),
        NAME(CL_INVALID_BUILD_OPTIONS),
        NAME(CL_INVALID_PROGRAM),
        NAME(CL_INVALID_PROGRAM_EXECUTABLE),
        NAME(CL_INVALID_KERNEL_NAME),
        NAME(CL_INVALID_KERNEL_ARGS),
        NAME(CL_INVALID_WORK_GROUP_SIZE),
        NAME(CL_INVALID_OPERATION),
        NAME(CL_INVALID_BUFFER_SIZE),
#undef NAME
        {NO_PLATFORM, "CL_PLATFORM_NOT_FOUND_KHR"},
    };
    static _Thread_local char other[32];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].code == code)
            return names[i].name;
    snprintf(other, sizeof other, "OpenCL error %d", (int)code);
    return other;
}

void bw_cl_text(cl_device_id id, cl_device_info what, char *text, size_t size)
{
    char long_text[1024] = "";
    if (clGetDeviceInfo(id, what, sizeof long_text - 1, long_text, NULL) != CL_SUCCESS)
        long_text[0] = 0;
    /* Some drivers put blanks in front. */
    const char *p = long_text;
    while (*p == ' ')
        p++;
    snprintf(text, size, "%.*s", (int)size - 1, p);
}

static cl_ulong number(cl_device_id id, cl_device_info what)
{
    /* cl_uint, size_t and cl_ulong alike: little endian, the rest stays 0 (big endian devices' hosts are refused). */
    cl_ulong value = 0;
    return clGetDeviceInfo(id, what, sizeof value, &value, NULL) == CL_SUCCESS ? value : 0;
}

static int names_xrt(const char *path)
{
    char line[PATH_MAX] = "";
    FILE *f = fopen(path, "r");
    if (f && !fgets(line, sizeof line, f))
        line[0] = 0;
    if (f)
        fclose(f);
    return strstr(line, "libxilinxopencl") != NULL;
}

/* XRT's OpenCL library ends the process when the loader asks it for platforms without XRT's own environment. */
static bw_status check_drivers(bw_error *err)
{
    const char *vendors = getenv("OCL_ICD_VENDORS"), *xrt = getenv("XILINX_XRT"), *mode = getenv("XCL_EMULATION_MODE");
    char path[PATH_MAX], library[PATH_MAX];
    if (!vendors || !*vendors)
        vendors = getenv("OPENCL_VENDOR_PATH");
    if (!vendors || !*vendors)
        vendors = "/etc/OpenCL/vendors";
    const char *name = !mode ? "core" : strcmp(mode, "hw_emu") == 0 ? "hwemu" : "swemu";
    snprintf(library, sizeof library, "%s/lib/libxrt_%s.so.2", xrt ? xrt : "", name);
    if (xrt && *xrt && access(library, R_OK) == 0)
        return BW_OK;
    int found = names_xrt(vendors);
    snprintf(path, sizeof path, "%s", vendors);
    DIR *dir = opendir(vendors);
    for (struct dirent *e; dir && !found && (e = readdir(dir));) {
        const char *end = strrchr(e->d_name, '.');
        if (end && strcmp(end, ".icd") == 0) {
            snprintf(path, sizeof path, "%s/%s", vendors, e->d_name);
            found = names_xrt(path);
        }
    }
    if (dir)
        closedir(dir);
    return !found          ? BW_OK
           : !xrt || !*xrt ? bw_fail(err, BW_UNSUPPORTED,
                                     "%s names XRT's OpenCL library, which ends a process without XILINX_XRT: set it "
                                     "(XRT's setup.sh), or name other drivers in OCL_ICD_VENDORS",
                                     path)
                           : bw_fail(err, BW_UNSUPPORTED,
                                     "%s names XRT's OpenCL library, which ends a process without %s: correct "
                                     "XILINX_XRT, or name other drivers in OCL_ICD_VENDORS",
                                     path, library);
}

bw_status bw_cl_find(unsigned wanted, cl_device_id *id, bw_error *err)
{
    bw_status status = check_drivers(err);
    if (status)
        return status;
    cl_platform_id platforms[PLATFORMS_MAX];
    cl_uint platform_count = 0;
    unsigned seen = 0;
    cl_int code = clGetPlatformIDs(PLATFORMS_MAX, platforms, &platform_count);
    if (code == NO_PLATFORM || (code == CL_SUCCESS && platform_count == 0))
        return bw_fail(err, BW_UNSUPPORTED,
                       "there is no OpenCL platform: install the ICD of a device, e.g. pocl-opencl-icd for the CPU");
    if (code != CL_SUCCESS)
        return bw_fail(err, BW_UNSUPPORTED, "OpenCL lists no platforms: %s", bw_cl_error(code));
    for (cl_uint p = 0; p < platform_count && p < PLATFORMS_MAX; p++) {
        cl_device_id devices[DEVICES_MAX];
        cl_uint count = 0;
        /* All but custom devices. XRT's library finds none for a union of types. */
        if (clGetDeviceIDs(platforms[p], CL_DEVICE_TYPE_ALL, DEVICES_MAX, devices, &count) != CL_SUCCESS)
            continue; /* a platform without devices is no error */
        for (cl_uint d = 0; d < count && d < DEVICES_MAX; d++)
            if (seen++ == wanted) {
                *id = devices[d];
                return BW_OK;
            }
    }
    if (seen == 0)
        return bw_fail(err, BW_UNSUPPORTED, "%u OpenCL platforms, none with a GPU, accelerator or CPU",
                       (unsigned)platform_count);
    return bw_fail(err, BW_NOT_FOUND, "there is no OpenCL device %u, expected 0..%u (blockwave devices lists them)",
                   wanted, seen - 1);
}

int bw_cl_is_cpu(cl_device_id id)
{
    cl_device_type type = 0;
    return clGetDeviceInfo(id, CL_DEVICE_TYPE, sizeof type, &type, NULL) == CL_SUCCESS && type & CL_DEVICE_TYPE_CPU;
}

bw_status bw_cl_check(cl_device_id id, bw_error *err)
{
    char version[128], profile[64];
    unsigned major = 0, minor = 0;
    if (!number(id, CL_DEVICE_COMPILER_AVAILABLE)) {
        char name[96];
        bw_cl_text(id, CL_DEVICE_NAME, name, sizeof name);
        return bw_fail(err, BW_UNSUPPORTED,
                       "the device '%s' takes binaries only and compiles no source, which the kernels are: use it as "
                       "xrt:N if it is a card of XRT's, else pick another device",
                       name);
    }
    bw_cl_text(id, CL_DEVICE_VERSION, version, sizeof version);
    bw_cl_text(id, CL_DEVICE_PROFILE, profile, sizeof profile);
    if (sscanf(version, "OpenCL %u.%u", &major, &minor) != 2 || major * 10 + minor < 12)
        return bw_fail(err, BW_UNSUPPORTED, "the device has '%s', expected OpenCL 1.2 or newer", version);
    const struct {
        int fine;
        const char *what;
    } needs[] = {
        {strcmp(profile, "FULL_PROFILE") == 0, "the full profile"},
        {number(id, CL_DEVICE_AVAILABLE) != 0, "to be available"},
        {number(id, CL_DEVICE_ENDIAN_LITTLE) != 0, "little endian memory"},
        {(number(id, CL_DEVICE_SINGLE_FP_CONFIG) & CL_FP_ROUND_TO_NEAREST) != 0, "fp32 that rounds to nearest even"},
        {number(id, CL_DEVICE_LOCAL_MEM_SIZE) >= 32u << 10, "32 KiB of local memory"},
        {number(id, CL_DEVICE_MAX_WORK_GROUP_SIZE) >= BW_CL_VECTOR_ITEMS, "work-groups of 32 items"},
        {number(id, CL_DEVICE_MAX_WORK_ITEM_DIMENSIONS) >= 2, "two dimensions of work-items"},
    };
    for (size_t i = 0; i < sizeof needs / sizeof *needs; i++)
        if (!needs[i].fine)
            return bw_fail(err, BW_UNSUPPORTED, "the device lacks %s, which the kernels need: pick another device",
                           needs[i].what);
    return BW_OK;
}

/* Whether the name is one of the device's extensions, which blanks separate. */
static int has_extension(cl_device_id id, const char *name)
{
    size_t size = 0;
    if (clGetDeviceInfo(id, CL_DEVICE_EXTENSIONS, 0, NULL, &size) != CL_SUCCESS || !size)
        return 0;
    char *all = calloc(1, size + 1), *save = NULL;
    int found = 0;
    if (all && clGetDeviceInfo(id, CL_DEVICE_EXTENSIONS, size, all, NULL) == CL_SUCCESS)
        for (char *word = strtok_r(all, " ", &save); word && !found; word = strtok_r(NULL, " ", &save))
            found = strcmp(word, name) == 0;
    free(all);
    return found;
}

static void describe_address(cl_device_id id, bw_device_info *info)
{
    cl_device_pci_bus_info_khr at;
    if (has_extension(id, "cl_khr_pci_bus_info") &&
        clGetDeviceInfo(id, CL_DEVICE_PCI_BUS_INFO_KHR, sizeof at, &at, NULL) == CL_SUCCESS)
        bw_pci_address(info->address, sizeof info->address, at.pci_domain, at.pci_bus, at.pci_device, at.pci_function);
}

void bw_cl_describe(cl_device_id id, bw_device_info *info, bw_cl_limits *limits)
{
    char name[96], platform[48] = "?", driver[48];
    cl_platform_id pid = NULL;
    bw_cl_text(id, CL_DEVICE_NAME, name, sizeof name);
    bw_cl_text(id, CL_DRIVER_VERSION, driver, sizeof driver);
    if (clGetDeviceInfo(id, CL_DEVICE_PLATFORM, sizeof pid, &pid, NULL) == CL_SUCCESS)
        clGetPlatformInfo(pid, CL_PLATFORM_NAME, sizeof platform - 1, platform, NULL);
    platform[sizeof platform - 1] = 0;
    snprintf(info->name, sizeof info->name, "%.64s (%.30s, driver %.20s)", name, platform, driver);
    snprintf(info->part, sizeof info->part, "opencl");
    snprintf(info->interface_id, sizeof info->interface_id, "%s", interface_id);
    describe_address(id, info);
    limits->memory = number(id, CL_DEVICE_GLOBAL_MEM_SIZE);
    limits->max_alloc = number(id, CL_DEVICE_MAX_MEM_ALLOC_SIZE);
    if (limits->max_alloc > limits->memory)
        limits->max_alloc = limits->memory;
    if (limits->max_alloc > UINT32_MAX) /* the kernels count pixels of a region in 32 bits */
        limits->max_alloc = UINT32_MAX;
    info->memory_bytes = limits->memory;
    info->offers = (bw_requirements){.isa_version = BW_ISA_VERSION,
                                     .opcodes = ((1u << BW_OP_LIMIT) - 1u) & ~1u,
                                     .blocks = 15u,
                                     .act_bytes = limits->max_alloc,
                                     .const_bytes = limits->memory};
    for (unsigned f = 1; f < BW_FORMAT_LIMIT; f++)
        if (bw_format_get((bw_format)f))
            info->offers.formats |= 1u << f;
}
