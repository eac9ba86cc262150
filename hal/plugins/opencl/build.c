/* SPDX-License-Identifier: Apache-2.0 */
/* Programs: from the cache, from source, from a bitstream's payload. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "hal/plugins/opencl/opencl.h"
#include "kernels/opencl/source.h"

/* Part of the cache's key. Nothing that loosens the arithmetic. */
static const char options[] = "-cl-std=CL1.2";

const char *const bw_cl_kernel_names[BW_CL_KERNELS] = {
    [BW_CL_CONV] = "bw_conv",       [BW_CL_DWCONV] = "bw_dwconv", [BW_CL_POOL] = "bw_pool",
    [BW_CL_ELTWISE] = "bw_eltwise", [BW_CL_COPY] = "bw_copy",     [BW_CL_PATCH] = "bw_patch",
};

static void device_digest(cl_device_id id, uint8_t digest[32])
{
    struct {
        char name[256], vendor[256], driver[256], version[256], options[64];
        uint32_t abi;
    } key;
    memset(&key, 0, sizeof key);
    bw_cl_text(id, CL_DEVICE_NAME, key.name, sizeof key.name);
    bw_cl_text(id, CL_DEVICE_VENDOR, key.vendor, sizeof key.vendor);
    bw_cl_text(id, CL_DRIVER_VERSION, key.driver, sizeof key.driver);
    bw_cl_text(id, CL_DEVICE_VERSION, key.version, sizeof key.version);
    snprintf(key.options, sizeof key.options, "%s", options);
    key.abi = BW_CL_ABI;
    bw_sha256(&key, sizeof key, digest);
}

/* The compiler's complaint: its first line with "error", else its first line. */
static bw_status build_failed(cl_program program, cl_device_id id, cl_int code, bw_error *err)
{
    char *log = NULL;
    size_t size = 0;
    clGetProgramBuildInfo(program, id, CL_PROGRAM_BUILD_LOG, 0, NULL, &size);
    if (size && size < 1u << 20 && (log = calloc(1, size + 1)))
        clGetProgramBuildInfo(program, id, CL_PROGRAM_BUILD_LOG, size, log, NULL);
    const char *line = log ? log : "";
    for (const char *p = line; *p; p++)
        if (strncmp(p, "error", 5) == 0) {
            while (p > line && p[-1] != '\n')
                p--;
            line = p;
            break;
        }
    bw_log(BW_LOG_DEBUG, "opencl", "%s", log ? log : "no build log");
    bw_fail(err, BW_CORRUPT, "the kernels do not build: %s: %.*s", bw_cl_error(code), (int)strcspn(line, "\n"), line);
    free(log);
    return BW_CORRUPT;
}

static bw_status build_source(cl_context context, cl_device_id id, const char *text, size_t size, cl_program *program,
                              bw_error *err)
{
    cl_int code;
    *program = clCreateProgramWithSource(context, 1, &text, &size, &code);
    if (code != CL_SUCCESS)
        return bw_fail(err, BW_NO_MEMORY, "no program: %s", bw_cl_error(code));
    code = clBuildProgram(*program, 1, &id, options, NULL, NULL);
    return code == CL_SUCCESS ? BW_OK : build_failed(*program, id, code, err);
}

static bw_status build_binary(cl_context context, cl_device_id id, const void *binary, size_t size, cl_program *program,
                              bw_error *err)
{
    cl_int code, state;
    const unsigned char *bytes = binary;
    *program = clCreateProgramWithBinary(context, 1, &id, &size, &bytes, &state, &code);
    if (code != CL_SUCCESS || state != CL_SUCCESS)
        return bw_fail(err, BW_CORRUPT, "the device does not take the binary: %s",
                       bw_cl_error(code != CL_SUCCESS ? code : state));
    code = clBuildProgram(*program, 1, &id, options, NULL, NULL);
    return code == CL_SUCCESS ? BW_OK : build_failed(*program, id, code, err);
}

/* Of a built program; NULL: the device gives none. */
static void *binary_of(cl_program program, size_t *size)
{
    *size = 0;
    if (clGetProgramInfo(program, CL_PROGRAM_BINARY_SIZES, sizeof *size, size, NULL) != CL_SUCCESS || !*size)
        return NULL;
    unsigned char *binary = malloc(*size);
    if (binary && clGetProgramInfo(program, CL_PROGRAM_BINARIES, sizeof binary, &binary, NULL) == CL_SUCCESS)
        return binary;
    free(binary);
    return NULL;
}

static void release(cl_program *program, cl_kernel kernels[BW_CL_KERNELS])
{
    for (int k = 0; k < BW_CL_KERNELS; k++) {
        if (kernels[k])
            clReleaseKernel(kernels[k]);
        kernels[k] = NULL;
    }
    if (*program)
        clReleaseProgram(*program);
    *program = NULL;
}

static bw_status make_kernels(cl_program program, cl_kernel kernels[BW_CL_KERNELS], bw_error *err)
{
    for (int k = 0; k < BW_CL_KERNELS; k++) {
        cl_int code;
        kernels[k] = clCreateKernel(program, bw_cl_kernel_names[k], &code);
        cl_uint arguments = 0;
        if (code != CL_SUCCESS)
            return bw_fail(err, BW_INCOMPATIBLE, "the program has no kernel %s: %s", bw_cl_kernel_names[k],
                           bw_cl_error(code));
        if (clGetKernelInfo(kernels[k], CL_KERNEL_NUM_ARGS, sizeof arguments, &arguments, NULL) != CL_SUCCESS ||
            arguments != BW_CL_ARGUMENTS)
            return bw_fail(err, BW_INCOMPATIBLE, "kernel %s has %u arguments, expected %d", bw_cl_kernel_names[k],
                           (unsigned)arguments, BW_CL_ARGUMENTS);
    }
    return BW_OK;
}

/* From the cache if it has it and the device takes it. */
static bw_status build_cached(cl_context context, cl_device_id id, const char *text, size_t size, cl_program *program,
                              cl_kernel kernels[BW_CL_KERNELS], bw_error *err)
{
    uint8_t device[32], source[32];
    void *binary;
    size_t binary_size;
    bw_error why;
    const uint64_t start = bw_now_ns();
    device_digest(id, device);
    bw_sha256(text, size, source);
    if (bw_cl_cache_read(device, source, &binary, &binary_size)) {
        bw_status status = build_binary(context, id, binary, binary_size, program, &why);
        free(binary);
        if (!status)
            status = make_kernels(*program, kernels, &why);
        if (!status) {
            bw_log(BW_LOG_INFO, "opencl", "kernels from the cache in %.0f ms", (double)(bw_now_ns() - start) * 1e-6);
            return BW_OK;
        }
        bw_log(BW_LOG_WARN, "opencl", "cache: %s: built again", why.message);
        release(program, kernels);
    }
    bw_status status = build_source(context, id, text, size, program, err);
    if (!status)
        status = make_kernels(*program, kernels, err);
    if (status || !(binary = binary_of(*program, &binary_size)))
        return status;
    bw_log(BW_LOG_INFO, "opencl", "kernels built from source in %.0f ms", (double)(bw_now_ns() - start) * 1e-6);
    bw_cl_cache_write(device, source, binary, binary_size);
    /* The binary is used from the start: a driver that compiles at the first launch (PoCL) does not compile twice. */
    cl_program again = NULL;
    cl_kernel again_kernels[BW_CL_KERNELS] = {NULL};
    if (!build_binary(context, id, binary, binary_size, &again, &why) && !make_kernels(again, again_kernels, &why)) {
        release(program, kernels);
        *program = again;
        memcpy(kernels, again_kernels, sizeof again_kernels);
    } else {
        release(&again, again_kernels);
    }
    free(binary);
    return BW_OK;
}

static bw_status build_payload_binary(cl_context context, cl_device_id id, const void *payload, size_t size,
                                      cl_program *program, cl_kernel kernels[BW_CL_KERNELS], bw_error *err)
{
    bw_cl_binary_header h;
    uint8_t device[32], digest[32];
    if (size < sizeof h)
        return bw_fail(err, BW_CORRUPT, "the binary has %zu bytes, expected at least %zu", size, sizeof h);
    memcpy(&h, payload, sizeof h);
    const char *bytes = (const char *)payload + sizeof h;
    bw_sha256(bytes, size - sizeof h, digest);
    if (h.size != size - sizeof h || memcmp(h.payload, digest, sizeof digest) != 0)
        return bw_fail(err, BW_CORRUPT, "the binary of %zu bytes is damaged: its checksum differs", size);
    device_digest(id, device);
    if (memcmp(h.device, device, sizeof device) != 0)
        return bw_fail(
            err, BW_INCOMPATIBLE,
            "the binary is for device and driver %02x%02x%02x%02x..., this one is %02x%02x%02x%02x...: take a "
            "bitstream with source",
            h.device[0], h.device[1], h.device[2], h.device[3], device[0], device[1], device[2], device[3]);
    bw_status status = build_binary(context, id, bytes, size - sizeof h, program, err);
    return status ? status : make_kernels(*program, kernels, err);
}

/* "#define BW_CL_ABI N" of the text; 0: there is none. */
static unsigned abi_of(const char *text, size_t size)
{
    static const char mark[] = "#define BW_CL_ABI ";
    const char *at = memmem(text, size, mark, sizeof mark - 1);
    unsigned n = 0;
    for (at = at ? at + sizeof mark - 1 : NULL; at && at < text + size && *at >= '0' && *at <= '9' && n < 100000; at++)
        n = n * 10 + (unsigned)(*at - '0');
    return n;
}

bw_status bw_cl_build(cl_context context, cl_device_id id, const void *payload, size_t size, cl_program *program,
                      cl_kernel kernels[BW_CL_KERNELS], bw_error *err)
{
    *program = NULL;
    memset(kernels, 0, BW_CL_KERNELS * sizeof *kernels);
    bw_status status;
    if (!payload) {
        status = build_cached(context, id, bw_cl_source, bw_cl_source_size, program, kernels, err);
    } else if (size >= 8 && memcmp(payload, BW_CL_BINARY_MAGIC, 8) == 0) {
        status = build_payload_binary(context, id, payload, size, program, kernels, err);
    } else if (abi_of(payload, size) != BW_CL_ABI) {
        status = bw_fail(err, BW_VERSION_MISMATCH,
                         "the kernels are of version %u (BW_CL_ABI), this plug-in expects %d: rebuild the bitstream",
                         abi_of(payload, size), BW_CL_ABI);
    } else {
        status = build_cached(context, id, payload, size, program, kernels, err);
    }
    if (status)
        release(program, kernels);
    return status;
}
