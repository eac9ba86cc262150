/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The emulated card through XRT's OpenCL library (libxilinxopencl) and the ICD loader: found, configured with the
 * accelerator's xclbin, programs loaded and run as the kernel that kernels/accelerator.h describes, the same bits as
 * the reference interpreter. It takes no source, which the plug-in `opencl` says. Starts itself again under
 * `blockwave-xrt-emulation run --opencl`, once in each mode.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined __has_include
#if __has_include(<CL/cl.h>)
#define CL_TARGET_OPENCL_VERSION 120
#define CL_USE_DEPRECATED_OPENCL_1_1_APIS
#include <CL/cl.h>
#define HAVE_CL 1
#endif
#endif

#include "hal/base.h"
#include "hal/hal.h"
#include "kernels/accelerator.h"
#include "sim/sim.h"
#include "tests/support/devices.h"
#include "tests/support/random_program.h"

#ifdef HAVE_CL
#define PROGRAMS 20

#define FUNCTIONS(X)                                                                                                   \
    X(clGetPlatformIDs)                                                                                                \
    X(clGetPlatformInfo)                                                                                               \
    X(clGetDeviceIDs)                                                                                                  \
    X(clCreateContext)                                                                                                 \
    X(clReleaseContext)                                                                                                \
    X(clCreateCommandQueue)                                                                                            \
    X(clReleaseCommandQueue)                                                                                           \
    X(clCreateProgramWithSource)                                                                                       \
    X(clCreateProgramWithBinary)                                                                                       \
    X(clReleaseProgram)                                                                                                \
    X(clCreateKernel)                                                                                                  \
    X(clReleaseKernel)                                                                                                 \
    X(clCreateBuffer)                                                                                                  \
    X(clReleaseMemObject)                                                                                              \
    X(clSetKernelArg)                                                                                                  \
    X(clEnqueueWriteBuffer)                                                                                            \
    X(clEnqueueReadBuffer)                                                                                             \
    X(clEnqueueTask)                                                                                                   \
    X(clFinish)                                                                                                        \
    X(clReleaseEvent)

/* Of the loader, which is opened at run time: the test builds and says so where there is none. */
static struct {
#define X(f) __typeof__(&f) f;
    FUNCTIONS(X)
#undef X
} cl;

static int count, failed;

static void result(int ok, const char *what)
{
    printf("%sok %d - %s: %s\n", ok ? "" : "not ", ++count, getenv("XCL_EMULATION_MODE"), what);
    failed |= !ok;
}

typedef struct card {
    cl_context context;
    cl_command_queue queue;
    cl_kernel kernel;
} card;

/* program, constants, activations, input, output, status: the order of the kernel's arguments */
typedef struct job {
    cl_mem buffers[6];
    uint64_t program_bytes, constant_bytes;
    uint32_t sequence;
} job;

static int start(card *c, job *j, uint32_t batch, uint32_t command, bw_accel_status *s)
{
    const struct {
        size_t size;
        const void *value;
    } scalars[] = {{8, &j->program_bytes}, {8, &j->constant_bytes}, {4, &batch}, {4, &command}, {4, &j->sequence}};
    cl_event event = NULL;
    int bad = 0;
    j->sequence++;
    for (cl_uint i = 0; i < 6; i++)
        bad |= cl.clSetKernelArg(c->kernel, i, sizeof(cl_mem), &j->buffers[i]);
    for (cl_uint i = 0; i < 5; i++)
        bad |= cl.clSetKernelArg(c->kernel, 6 + i, scalars[i].size, scalars[i].value);
    bad = bad || cl.clEnqueueTask(c->queue, c->kernel, 0, NULL, &event);
    bad = bad || cl.clFinish(c->queue);
    if (event)
        cl.clReleaseEvent(event);
    bad = bad || cl.clEnqueueReadBuffer(c->queue, j->buffers[5], CL_TRUE, 0, sizeof *s, s, 0, NULL, NULL);
    return !bad && s->magic == BW_ACCEL_STATUS_MAGIC && s->sequence == j->sequence && s->code == BW_ACCEL_OK;
}

static int run_program(card *c, uint64_t seed)
{
    struct bw_random_case r;
    bw_program program;
    bw_accel_status s;
    job j = {.sequence = (uint32_t)seed * 16};
    if (bw_random_case_make(seed, NULL, &r))
        return 0;
    const size_t out_bytes = r.batch * r.out_bytes;
    char *out = calloc(1, out_bytes + 1), *expected = calloc(1, out_bytes + 1);
    int ok = out && expected && !bw_program_parse(r.program, r.program_size, &program, NULL) &&
             !bw_reference_run(&program, r.constants, r.in, expected, r.batch, NULL);
    const size_t in_bytes = ok ? r.batch * program.header->in_bytes : 0;
    const struct {
        size_t size;
        const void *bytes;
    } parts[6] = {{r.program_size, r.program},
                  {r.constants_size, r.constants},
                  {ok ? program.header->act_bytes : 0, NULL},
                  {in_bytes, r.in},
                  {out_bytes, out},
                  {sizeof s, NULL}};
    j.program_bytes = r.program_size;
    j.constant_bytes = r.constants_size;
    for (int i = 0; i < 6 && ok; i++) {
        cl_int code;
        const size_t room = (parts[i].size + BW_ACCEL_ALIGN) / BW_ACCEL_ALIGN * BW_ACCEL_ALIGN;
        j.buffers[i] = cl.clCreateBuffer(c->context, CL_MEM_READ_WRITE, room, NULL, &code);
        ok = code == CL_SUCCESS && !cl.clSetKernelArg(c->kernel, (cl_uint)i, sizeof(cl_mem), &j.buffers[i]);
        if (ok && parts[i].bytes && parts[i].size)
            ok = !cl.clEnqueueWriteBuffer(c->queue, j.buffers[i], CL_TRUE, 0, parts[i].size, parts[i].bytes, 0, NULL,
                                          NULL);
    }
    ok = ok && start(c, &j, 0, BW_ACCEL_LOAD, &s) && s.program_sum == bw_accel_checksum(r.program, r.program_size) &&
         s.constant_sum == bw_accel_checksum(r.constants, r.constants_size);
    ok = ok && start(c, &j, (uint32_t)r.batch, BW_ACCEL_RUN, &s) && s.images == r.batch;
    ok = ok && !cl.clEnqueueReadBuffer(c->queue, j.buffers[4], CL_TRUE, 0, out_bytes, out, 0, NULL, NULL) &&
         memcmp(out, expected, out_bytes) == 0;
    for (int i = 0; i < 6; i++)
        if (j.buffers[i])
            cl.clReleaseMemObject(j.buffers[i]);
    free(out);
    free(expected);
    bw_random_case_free(&r);
    return ok;
}

static int emulated(void)
{
    cl_platform_id platform = NULL;
    cl_device_id device = NULL;
    cl_uint n = 0;
    cl_int code, state = CL_SUCCESS;
    char name[64] = "";
    card c = {0};
    size_t size = 0;
    void *xclbin = NULL;
    bw_device *dev;
    bw_error err = {BW_OK, ""};
    const char *path = getenv("BW_XRT_XCLBIN");
    result(!cl.clGetPlatformIDs(1, &platform, &n) && n == 1 &&
               !cl.clGetPlatformInfo(platform, CL_PLATFORM_NAME, sizeof name, name, NULL) && !strcmp(name, "Xilinx"),
           "XRT's platform is the only one");
    result(!cl.clGetDeviceIDs(platform, CL_DEVICE_TYPE_ACCELERATOR, 1, &device, &n) && n == 1, "it has a device");
    bw_test_use_plugins();
    result(bw_device_open("opencl:0", &dev, &err) == BW_UNSUPPORTED && strstr(err.message, "takes binaries only"),
           "the plug-in finds it, and says that it takes no source");
    if (failed)
        return 1;
    c.context = cl.clCreateContext(NULL, 1, &device, NULL, NULL, &code);
    result(code == CL_SUCCESS, "context");
    c.queue = cl.clCreateCommandQueue(c.context, device, 0, &code);
    result(code == CL_SUCCESS, "queue");
    const char *text = "__kernel void f(void) {}\n";
    result(!cl.clCreateProgramWithSource(c.context, 1, &text, NULL, &code) && code == CL_INVALID_OPERATION,
           "source is refused");
    const int have = path && !bw_file_read(path, 1 << 20, &xclbin, &size, &err);
    const unsigned char *bytes = xclbin;
    cl_program program =
        have ? cl.clCreateProgramWithBinary(c.context, 1, &device, &size, &bytes, &state, &code) : NULL;
    result(program && code == CL_SUCCESS && state == CL_SUCCESS, "the xclbin is loaded");
    c.kernel = program ? cl.clCreateKernel(program, BW_ACCEL_KERNEL, &code) : NULL;
    result(c.kernel != NULL, "its kernel is " BW_ACCEL_KERNEL);
    int right = 0;
    for (uint64_t seed = 1; seed <= PROGRAMS && c.kernel; seed++)
        right += run_program(&c, seed);
    result(right == PROGRAMS, "programs give the bits of the reference");
    if (c.kernel)
        cl.clReleaseKernel(c.kernel);
    if (program)
        cl.clReleaseProgram(program);
    cl.clReleaseCommandQueue(c.queue);
    cl.clReleaseContext(c.context);
    free(xclbin);
    return failed;
}

/* Runs this program again under the helper; its lines come through. */
static int start_again(const char *self, const char *helper, const char *mode)
{
    fflush(NULL);
    const pid_t pid = fork();
    if (pid == 0) {
        execl("/usr/bin/timeout", "timeout", "60", helper, "run", "--opencl", "--mode", mode, "--", self, (char *)NULL);
        _exit(127);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    if (!WIFEXITED(status) || WEXITSTATUS(status))
        printf("not ok - %s ended with status %d\n", mode, status);
    return status != 0;
}
#endif

static int skip(const char *why)
{
    printf("ok 1 - OpenCL through XRT # SKIP %s\n1..1\n", why);
    return 0;
}

int main(int argc, char **argv)
{
    (void)argc;
#ifdef HAVE_CL
    void *loader = dlopen("libOpenCL.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!loader)
        return skip("the ICD loader is not installed (Debian: ocl-icd-libopencl1)");
#define X(f)                                                                                                           \
    {                                                                                                                  \
        void *symbol = dlsym(loader, #f);                                                                              \
        if (!symbol)                                                                                                   \
            return skip("the ICD loader lacks " #f);                                                                   \
        memcpy(&cl.f, &symbol, sizeof symbol);                                                                         \
    }
    FUNCTIONS(X)
#undef X
    if (getenv("XCL_EMULATION_MODE"))
        return emulated();
    const char *bin = getenv("BW_BIN"), *san = getenv("BW_SAN");
    char helper[1024], shim[1100];
    snprintf(helper, sizeof helper, "%s/blockwave-xrt-emulation", bin ? bin : "build/bin");
    snprintf(shim, sizeof shim, "%s/../lib/xrt/libxrt_hwemu.so.2", bin ? bin : "build/bin");
    if (san && *san)
        return skip("XRT's library is not clean under sanitizers");
    if (access(shim, R_OK) || access(helper, X_OK))
        return skip("XRT's emulation was not built (Debian: libxrt-dev)");
    int bad = start_again(argv[0], helper, "sw_emu") | start_again(argv[0], helper, "hw_emu");
    return bad;
#else
    (void)argv;
    return skip("the OpenCL headers are not installed (Debian: opencl-c-headers)");
#endif
}
