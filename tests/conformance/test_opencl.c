/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The `opencl` plug-in beyond what all devices have in common: targets, the cache of program binaries, bitstreams with
 * source and with a binary, cancellation, abort and reset, times of instructions, refusals of memory. On opencl:0; SKIP
 * with the reason where there is no OpenCL device.
 */
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "hal/base.h"
#include "hal/bitstream.h"
#include "hal/internal.h"
#include "sim/sim.h"
#include "tests/support/devices.h"
#include "tests/support/footprint.h"
#include "tests/support/random_program.h"

#define MS              UINT64_C(1000000)
#define assert_ok(e)    check_status(e, BW_OK, #e, __LINE__)
#define assert_is(s, e) check_status(e, s, #e, __LINE__)
#define assert_text(t)  check_text(t, __LINE__)

static bw_error err;
static char dir[512]; /* a folder of this test's own */

static void check_status(bw_status got, bw_status expected, const char *what, int line)
{
    if (got != expected)
        fail_msg("line %d: %s is %s ('%s'), expected %s", line, what, bw_status_name(got), got ? err.message : "",
                 bw_status_name(expected));
}

static void check_text(const char *part, int line)
{
    if (!strstr(err.message, part))
        fail_msg("line %d: '%s' is not in: %s", line, part, err.message);
}

/* --- programs ----------------------------------------------------------------------------------------------------- */

typedef struct work {
    struct bw_random_case c;
    char *expected, *out;
    size_t bytes;
} work;

static void make_work(uint64_t seed, work *w)
{
    bw_program program;
    if (bw_random_case_make(seed, NULL, &w->c))
        fail_msg("seed %llu: no program", (unsigned long long)seed);
    w->bytes = w->c.batch * w->c.out_bytes;
    w->expected = calloc(1, w->bytes);
    w->out = calloc(1, w->bytes);
    assert_non_null(w->expected);
    assert_non_null(w->out);
    assert_ok(bw_program_parse(w->c.program, w->c.program_size, &program, &err));
    assert_ok(bw_reference_run(&program, w->c.constants, w->c.in, w->expected, w->c.batch, &err));
}

static void free_work(work *w)
{
    bw_random_case_free(&w->c);
    free(w->expected);
    free(w->out);
}

static bw_status load(bw_device *dev, const work *w, bw_image **image)
{
    return bw_image_load(dev, w->c.program, w->c.program_size, w->c.constants, w->c.constants_size, image, &err);
}

static void assert_right(bw_image *image, work *w)
{
    memset(w->out, 0xee, w->bytes);
    assert_ok(bw_image_run(image, w->c.in, w->out, w->c.batch, 0, &err));
    assert_memory_equal(w->out, w->expected, w->bytes);
}

/* Opens the device and runs a program. */
static void assert_usable(void)
{
    bw_device *dev;
    bw_image *image;
    work w;
    make_work(11, &w);
    assert_ok(bw_device_open("opencl:0", &dev, &err));
    assert_ok(load(dev, &w, &image));
    assert_right(image, &w);
    bw_image_release(image);
    bw_device_close(dev);
    free_work(&w);
}

/* COPY of one float, or of a tensor as large as that, with so many bytes of activations. */
typedef struct copy {
    bw_program_header header;
    bw_instruction ins;
} copy;

static copy make_copy(uint32_t height, uint32_t width, uint64_t act_bytes)
{
    copy c = {.header = {.magic = BW_PROGRAM_MAGIC,
                         .isa_version = BW_ISA_VERSION,
                         .instruction_count = 1,
                         .act_bytes = act_bytes,
                         .in_bytes = (uint64_t)height * width * 4,
                         .out_bytes = (uint64_t)height * width * 4}};
    c.ins = (bw_instruction){.opcode = BW_OP_COPY,
                             .kernel_y = 1,
                             .kernel_x = 1,
                             .stride_y = 1,
                             .stride_x = 1,
                             .dilation_y = 1,
                             .dilation_x = 1,
                             .groups = 1};
    c.ins.in = (bw_tensor){.height = height,
                           .width = width,
                           .channels = 1,
                           .pixel_stride = 1,
                           .row_stride = width,
                           .format = BW_FORMAT_FP32,
                           .region = BW_REGION_IN,
                           .block = 1};
    c.ins.out0 = c.ins.in;
    c.ins.out0.region = BW_REGION_OUT;
    return c;
}

/* --- targets ------------------------------------------------------------------------------------------------------ */

static void targets_and_options(void **state)
{
    (void)state;
    bw_device *dev;
    assert_is(BW_NOT_FOUND, bw_device_open("opencl:gpu", &dev, &err));
    assert_text("there is no target 'gpu', expected a number as in opencl:0");
    assert_is(BW_NOT_FOUND, bw_device_open("opencl:-1", &dev, &err));
    assert_is(BW_NOT_FOUND, bw_device_open("opencl:9999", &dev, &err));
    assert_text("there is no OpenCL device 9999, expected 0..");
    assert_is(BW_INVALID_ARGUMENT, bw_device_open("opencl:0?threads=2", &dev, &err));
    assert_text("there is no option 'threads', expected scrub or fault");
    assert_is(BW_INVALID_ARGUMENT, bw_device_open("opencl:0?scrub=often", &dev, &err));
    assert_text("option scrub is 'often', expected a number in 0..1000000000");
    assert_is(BW_INVALID_ARGUMENT, bw_device_open("opencl:0?fault=hang@1", &dev, &err));
    assert_text("option fault is 'hang@1', expected flip@N");
    assert_is(BW_INVALID_ARGUMENT, bw_device_open("opencl:0?fault=flip@0", &dev, &err));
    assert_ok(bw_device_open("opencl:", &dev, &err)); /* the first */
    bw_device_close(dev);
}

/* --- scrub -------------------------------------------------------------------------------------------------------- */

static void settle(bw_device *dev)
{
    bw_device_state i;
    do {
        usleep(1000);
        assert_ok(bw_device_state_get(dev, &i, &err));
    } while (i.health == BW_HEALTH_RESETTING);
    assert_int_equal(i.health, BW_HEALTH_OK);
}

static int has_conv(const work *w)
{
    bw_program p;
    assert_ok(bw_program_parse(w->c.program, w->c.program_size, &p, &err));
    for (uint32_t i = 0; i < p.header->instruction_count; i++)
        if (p.instructions[i].opcode == BW_OP_CONV)
            return 1;
    return 0;
}

/* Programs with weights, and one without: tables and instructions are looked at, too. */
static void a_turned_bit_is_found(void **state)
{
    (void)state;
    unsigned with = 0, without = 0;
    for (uint64_t seed = 100; with < 3 || without < 1; seed++) {
        work w;
        make_work(seed, &w);
        bw_device *dev;
        bw_image *image;
        unsigned *kind = has_conv(&w) ? &with : &without;
        const char *uri = "opencl:0?scrub=1&fault=flip@2&fault=flip@5";
        if (*kind == (kind == &with ? 3 : 1) || w.c.constants_size == 0) {
            free_work(&w);
            continue;
        }
        ++*kind;
        assert_ok(bw_device_open(uri, &dev, &err));
        assert_ok(load(dev, &w, &image));
        for (int run = 1; run <= 6; run++) {
            if (run == 2 || run == 5) {
                assert_is(BW_DEVICE_FAULT, bw_image_run(image, w.c.in, w.out, w.c.batch, 0, &err));
                assert_text("in the device's memory changed: sum ");
                settle(dev);
            } else {
                assert_right(image, &w);
            }
        }
        bw_device_state i;
        assert_ok(bw_device_state_get(dev, &i, &err));
        assert_int_equal(i.faults, 2);
        assert_int_equal(i.resets, 2);
        bw_image_release(image);
        bw_device_close(dev);
        free_work(&w);
    }
}

/* Before every third run of each image; and never, which shows that the bit matters. */
static void scrub_comes_every_so_often(void **state)
{
    (void)state;
    bw_device *dev;
    bw_image *image, *other;
    work w;
    make_work(11, &w);
    assert_true(has_conv(&w));
    assert_ok(bw_device_open("opencl:0?scrub=3&fault=flip@3", &dev, &err));
    assert_ok(load(dev, &w, &image));
    assert_ok(load(dev, &w, &other));
    assert_right(other, &w);
    assert_right(image, &w);
    assert_ok(bw_image_run(image, w.c.in, w.out, w.c.batch, 0, &err)); /* the third of the device: the bit turns */
    assert_right(other, &w);
    assert_is(BW_DEVICE_FAULT, bw_image_run(image, w.c.in, w.out, w.c.batch, 0, &err));
    assert_text("the weights in the device's memory changed");
    settle(dev);
    assert_right(image, &w);
    assert_right(other, &w);
    bw_image_release(other);
    bw_image_release(image);
    bw_device_close(dev);
    free_work(&w);
    unsigned programs = 0, wrong = 0; /* of some programs the bit is one of padding */
    for (uint64_t seed = 11; programs < 8; seed++) {
        make_work(seed, &w);
        if (has_conv(&w)) {
            programs++;
            assert_ok(bw_device_open("opencl:0?scrub=0&fault=flip@2&fault=flip@3", &dev, &err));
            assert_ok(load(dev, &w, &image));
            assert_right(image, &w);
            assert_ok(bw_image_run(image, w.c.in, w.out, w.c.batch, 0, &err));
            wrong += memcmp(w.out, w.expected, w.bytes) != 0;
            assert_right(image, &w); /* turned back */
            bw_image_release(image);
            bw_device_close(dev);
        }
        free_work(&w);
    }
    assert_true(wrong > 0);
}

static void describes_the_device(void **state)
{
    (void)state;
    bw_device *dev;
    bw_device_info info;
    assert_ok(bw_device_open("opencl:0", &dev, &err));
    assert_ok(bw_device_info_get(dev, &info, &err));
    assert_string_equal(info.part, "opencl");
    assert_non_null(strstr(info.name, "driver "));
    assert_true(info.memory_bytes >= info.offers.act_bytes && info.offers.act_bytes > 0);
    assert_string_equal(info.bitstream, "");
    for (unsigned f = 1; f < BW_FORMAT_LIMIT; f++)
        assert_int_equal(info.offers.formats >> f & 1, bw_format_get((bw_format)f) != NULL);
    bw_device_close(dev);
}

/* --- cache -------------------------------------------------------------------------------------------------------- */

/* The one file of the cache, read: malloc'ed. */
static char *cache_file(const char *cache, char *path, size_t path_size, size_t *size)
{
    int files = 0;
    DIR *d = opendir(cache);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));)
        if (e->d_name[0] != '.') {
            snprintf(path, path_size, "%s/%s", cache, e->d_name);
            files++;
        }
    closedir(d);
    assert_int_equal(files, 1);
    void *bytes;
    assert_ok(bw_file_read(path, 256u << 20, &bytes, size, &err));
    return bytes;
}

static void write_file(const char *path, const void *bytes, size_t size)
{
    bw_slice slice = {bytes, size};
    assert_ok(bw_file_write_atomic(path, &slice, 1, &err));
}

static void assert_file_is(const char *cache, const char *bytes, size_t size)
{
    char path[1024];
    size_t now;
    char *read = cache_file(cache, path, sizeof path, &now);
    /* The device decides what its binary is: it need not be the same twice, but it has to be whole. */
    assert_true(now > 100);
    assert_memory_equal(read, bytes, size < 72 ? size : 72); /* magic, device, source */
    free(read);
}

static void program_binaries_are_cached(void **state)
{
    (void)state;
    char cache[600], path[1024];
    size_t size;
    const char *before = getenv("BW_CACHE_DIR");
    char *kept = before ? strdup(before) : NULL;
    snprintf(cache, sizeof cache, "%s/a/b", dir); /* folders are made */
    setenv("BW_CACHE_DIR", cache, 1);
    assert_usable();
    char *bytes = cache_file(cache, path, sizeof path, &size);
    struct stat st, again;
    assert_int_equal(stat(path, &st), 0);
    assert_usable();
    assert_int_equal(stat(path, &again), 0); /* read, not written */
    assert_int_equal(st.st_ino, again.st_ino);

    /* Damaged, cut, of something else, for everybody to write: built and written again. */
    char *bad = malloc(size);
    assert_non_null(bad);
    for (int kind = 0; kind < 5; kind++) {
        memcpy(bad, bytes, size);
        bad[kind == 0   ? size / 2 /* payload */
            : kind == 1 ? 0        /* magic */
            : kind == 2 ? 10       /* device */
                        : 50 /* source */] ^= 0x40;
        if (kind == 4)
            memcpy(bad, bytes, size);
        write_file(path, bad, kind == 3 ? 50 : size);
        if (kind == 4)
            assert_int_equal(chmod(path, 0666), 0);
        assert_int_equal(stat(path, &st), 0);
        assert_usable();
        assert_int_equal(stat(path, &again), 0);
        assert_true(st.st_ino != again.st_ino || st.st_mode != again.st_mode);
        assert_file_is(cache, bytes, size);
    }

    /* Its checksum is right, but the device does not take it. */
    uint8_t digest[32];
    memset(bad + 112, 'x', size - 112);
    memcpy(bad, bytes, 112);
    bw_sha256(bad + 112, size - 112, digest);
    memcpy(bad + 72, digest, 32);
    write_file(path, bad, size);
    assert_usable();
    assert_file_is(cache, bytes, size);

    /* Nowhere to write: it works without. */
    setenv("BW_CACHE_DIR", "/proc/blockwave/nowhere", 1);
    assert_usable();
    if (kept)
        setenv("BW_CACHE_DIR", kept, 1);
    else
        unsetenv("BW_CACHE_DIR");
    free(kept);
    free(bad);
    free(bytes);
}

/* --- bitstreams --------------------------------------------------------------------------------------------------- */

static char *read_kernels(size_t *size)
{
    static const char *const files[] = {"op.h", "formats.cl", "tile.cl", "vector.cl", "conv.cl"};
    char *all = calloc(1, 1 << 20);
    assert_non_null(all);
    *size = 0;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[1024];
        void *bytes;
        size_t n;
        const char *top = getenv("BW_TOP");
        snprintf(path, sizeof path, "%s/kernels/opencl/%s", top ? top : ".", files[i]);
        assert_ok(bw_file_read(path, 1 << 18, &bytes, &n, &err));
        memcpy(all + *size, bytes, n);
        *size += n;
        free(bytes);
    }
    return all;
}

static bw_status load_payload(bw_device *dev, const void *payload, size_t size, char uuid[BW_UUID_TEXT])
{
    bw_device_info info;
    bw_bitstream bits = {.payload_count = 1};
    void *bytes;
    size_t total;
    assert_ok(bw_device_info_get(dev, &info, &err));
    snprintf(bits.interface_id, sizeof bits.interface_id, "%s", info.interface_id);
    snprintf(bits.part, sizeof bits.part, "%s", info.part);
    snprintf(bits.name, sizeof bits.name, "kernels");
    bits.offers = info.offers;
    snprintf(bits.payloads[0].kind, sizeof bits.payloads[0].kind, "opencl-source");
    bits.payloads[0].bytes = payload;
    bits.payloads[0].size = size;
    assert_ok(bw_bitstream_write(&bits, &bytes, &total, &err));
    bw_status status = bw_device_load_bitstream(dev, bytes, total, &err);
    if (uuid)
        snprintf(uuid, BW_UUID_TEXT, "%s", bits.uuid);
    free(bytes);
    return status;
}

static void run_after_load(bw_device *dev)
{
    bw_image *image;
    work w;
    make_work(12, &w);
    assert_ok(load(dev, &w, &image));
    assert_right(image, &w);
    bw_image_release(image);
    free_work(&w);
}

static void bitstreams_with_source(void **state)
{
    (void)state;
    bw_device *dev;
    bw_device_info info;
    char uuid[BW_UUID_TEXT];
    size_t size;
    char *kernels = read_kernels(&size);
    assert_ok(bw_device_open("opencl:0", &dev, &err));
    strcpy(kernels + size, "/* mine */\n");
    assert_ok(load_payload(dev, kernels, size + 11, uuid));
    assert_ok(bw_device_info_get(dev, &info, &err));
    assert_string_equal(info.bitstream, uuid);
    run_after_load(dev);
    assert_ok(bw_device_reset(dev, &err));
    run_after_load(dev);

    /* Refused ones leave it as it was. */
    strcpy(kernels + size, "int broken = ;\n");
    assert_is(BW_CORRUPT, load_payload(dev, kernels, size + 15, NULL));
    assert_text("the kernels do not build");
    char *abi = strstr(kernels, "#define BW_CL_ABI 1");
    assert_non_null(abi);
    abi[18] = '7';
    assert_is(BW_VERSION_MISMATCH, load_payload(dev, kernels, size, NULL));
    assert_text("the kernels are of version 7 (BW_CL_ABI), this plug-in expects 1");
    assert_is(BW_INCOMPATIBLE, load_payload(dev, "#define BW_CL_ABI 1\n__kernel void other(void) {}\n", 48, NULL));
    assert_text("has no kernel bw_conv");
    assert_ok(bw_device_info_get(dev, &info, &err));
    assert_string_equal(info.bitstream, uuid);
    bw_device_state now;
    assert_ok(bw_device_state_get(dev, &now, &err));
    assert_int_equal(now.faults, 0);
    run_after_load(dev);
    bw_device_close(dev);
    free(kernels);
}

static void bitstreams_with_a_binary(void **state)
{
    (void)state;
    bw_device *dev;
    char cache[600], path[1024];
    size_t size;
    const char *before = getenv("BW_CACHE_DIR");
    char *kept = before ? strdup(before) : NULL;
    snprintf(cache, sizeof cache, "%s/binary", dir);
    setenv("BW_CACHE_DIR", cache, 1);
    assert_ok(bw_device_open("opencl:0", &dev, &err));
    char *bytes = cache_file(cache, path, sizeof path, &size); /* a payload as it is */
    assert_ok(load_payload(dev, bytes, size, NULL));
    run_after_load(dev);
    bytes[20] ^= 1; /* another device */
    assert_is(BW_INCOMPATIBLE, load_payload(dev, bytes, size, NULL));
    assert_text("the binary is for device and driver ");
    bytes[20] ^= 1;
    bytes[size - 1] ^= 1;
    assert_is(BW_CORRUPT, load_payload(dev, bytes, size, NULL));
    assert_text("its checksum differs");
    assert_is(BW_CORRUPT, load_payload(dev, bytes, 60, NULL));
    run_after_load(dev);
    bw_device_close(dev);
    if (kept)
        setenv("BW_CACHE_DIR", kept, 1);
    else
        unsetenv("BW_CACHE_DIR");
    free(kept);
    free(bytes);
}

/* --- runs --------------------------------------------------------------------------------------------------------- */

/* Some seconds of work: a large batch of a program that is small. */
enum { MANY = 10000 };

typedef struct long_run {
    work w;
    char *in, *out;
} long_run;

static void make_long(long_run *l)
{
    make_work(13, &l->w);
    l->in = calloc(MANY, l->w.c.in_bytes);
    l->out = calloc(MANY, l->w.c.out_bytes);
    assert_non_null(l->in);
    assert_non_null(l->out);
}

static void free_long(long_run *l)
{
    free(l->in);
    free(l->out);
    free_work(&l->w);
}

static void cancelled_runs_end_soon(void **state)
{
    (void)state;
    bw_device *dev;
    bw_image *image;
    bw_fence *fence;
    long_run l;
    make_long(&l);
    assert_ok(bw_device_open("opencl:0", &dev, &err));
    assert_ok(load(dev, &l.w, &image));
    assert_ok(bw_image_submit(image, l.in, l.out, MANY, &fence, &err));
    assert_is(BW_TIMEOUT, bw_fence_wait(fence, 20 * MS, &err));
    bw_fence_cancel(fence);
    assert_is(BW_CANCELLED, bw_fence_wait(fence, 20000 * MS, &err));
    bw_fence_release(fence);
    assert_right(image, &l.w);
    bw_image_release(image);
    bw_device_close(dev);
    free_long(&l);
}

typedef struct direct_run {
    const bw_backend *backend;
    void *device, *image;
    long_run *l;
    atomic_int cancel, entered;
    bw_status status;
    bw_error error;
} direct_run;

static void *run_directly(void *user)
{
    direct_run *r = user;
    atomic_store(&r->entered, 1);
    r->status = r->backend->run(r->device, r->image, r->l->in, r->l->out, MANY, &r->cancel, &r->error);
    return NULL;
}

/* What the core does with a run that ignores its cancellation: abort, release, reset, load again. */
static void aborted_runs_end_and_the_device_comes_back(void **state)
{
    (void)state;
    long_run l;
    bw_program program;
    pthread_t thread;
    direct_run r = {.l = &l};
    make_long(&l);
    assert_ok(bw_program_parse(l.w.c.program, l.w.c.program_size, &program, &err));
    assert_ok(bw_backend_find("opencl", &r.backend, &err));
    assert_ok(r.backend->open("0", &r.device, &err));
    for (int i = 0; i < 3; i++) {
        assert_ok(r.backend->image_load(r.device, &program, l.w.c.constants, &r.image, &err));
        atomic_store(&r.entered, 0);
        assert_int_equal(pthread_create(&thread, NULL, run_directly, &r), 0);
        while (!atomic_load(&r.entered))
            nanosleep(&(struct timespec){0, 1000000}, NULL);
        nanosleep(&(struct timespec){0, 30000000}, NULL);
        r.backend->abort(r.device);
        r.backend->abort(r.device);
        pthread_join(thread, NULL);
        err = r.error;
        assert_is(BW_DEVICE_FAULT, r.status);
        assert_text("aborted");
        r.backend->image_release(r.device, r.image);
        assert_ok(r.backend->reset(r.device, &err));
    }
    assert_ok(r.backend->image_load(r.device, &program, l.w.c.constants, &r.image, &err));
    r.backend->abort(r.device); /* not while a run is inside: nothing to the next one */
    assert_ok(r.backend->run(r.device, r.image, l.w.c.in, l.w.out, l.w.c.batch, &r.cancel, &err));
    assert_memory_equal(l.w.out, l.w.expected, l.w.bytes);
    r.backend->image_release(r.device, r.image);
    r.backend->close(r.device);
    free_long(&l);
}

static void instructions_are_timed(void **state)
{
    (void)state;
    bw_device *dev;
    bw_image *image;
    bw_fence *fence;
    work w;
    make_work(14, &w);
    assert_ok(bw_device_open("opencl:0", &dev, &err));
    assert_ok(load(dev, &w, &image));
    const uint32_t count = bw_image_program(image)->header->instruction_count;
    uint64_t *spent = calloc(count, sizeof *spent), sum = 0;
    assert_non_null(spent);
    assert_ok(bw_image_submit_timed(image, w.c.in, w.out, w.c.batch, spent, &fence, &err));
    assert_ok(bw_fence_wait(fence, 0, &err));
    bw_fence_release(fence);
    assert_memory_equal(w.out, w.expected, w.bytes);
    for (uint32_t i = 0; i < count; i++) {
        assert_true(spent[i] > 0);
        sum += spent[i];
    }
    assert_true(sum < 60000 * MS);
    free(spent);
    bw_image_release(image);
    bw_device_close(dev);
    free_work(&w);
}

typedef struct other {
    work w;
    int failures;
} other;

/* In a thread of its own: no assertions. */
static void *use_another(void *user)
{
    other *o = user;
    work *w = &o->w;
    bw_image *image;
    bw_device *dev;
    o->failures = bw_device_open("opencl:", &dev, NULL) != BW_OK;
    if (o->failures)
        return NULL;
    for (int i = 0; i < 20; i++) {
        o->failures +=
            bw_image_load(dev, w->c.program, w->c.program_size, w->c.constants, w->c.constants_size, &image, NULL) ||
            bw_image_run(image, w->c.in, w->out, w->c.batch, 0, NULL) || memcmp(w->out, w->expected, w->bytes) != 0;
        bw_image_release(image);
    }
    bw_device_close(dev);
    return NULL;
}

/* Contexts of their own on one device. */
static void two_devices_in_a_process(void **state)
{
    (void)state;
    pthread_t thread;
    other o;
    bw_device *dev;
    bw_image *image;
    work w;
    make_work(15, &o.w);
    make_work(16, &w);
    assert_ok(bw_device_open("opencl:0", &dev, &err));
    assert_ok(load(dev, &w, &image));
    assert_int_equal(pthread_create(&thread, NULL, use_another, &o), 0);
    for (int i = 0; i < 40; i++)
        assert_right(image, &w);
    pthread_join(thread, NULL);
    assert_int_equal(o.failures, 0);
    bw_image_release(image);
    bw_device_close(dev);
    free_work(&o.w);
    free_work(&w);
}

/* Parts of a batch, and one buffer that grows between runs. */
static void batches_of_any_size(void **state)
{
    (void)state;
    enum { H = 300, W = 400 }; /* 0.96 MB an image */
    static const uint32_t batches[] = {1, 3, 64, 2, 300};
    bw_device *dev;
    bw_image *image;
    copy c = make_copy(H, W, 0);
    float *in = malloc((size_t)H * W * 300 * sizeof *in), *out = malloc((size_t)H * W * 300 * sizeof *out);
    assert_non_null(in);
    assert_non_null(out);
    for (size_t i = 0; i < (size_t)H * W * 300; i++)
        in[i] = (float)i;
    assert_ok(bw_device_open("opencl:0", &dev, &err));
    assert_ok(bw_image_load(dev, &c, sizeof c, NULL, 0, &image, &err));
    for (size_t k = 0; k < sizeof batches / sizeof *batches; k++) {
        const size_t bytes = (size_t)H * W * batches[k] * sizeof *in;
        memset(out, 0xee, bytes);
        assert_ok(bw_image_run(image, in, out, batches[k], 0, &err));
        assert_int_equal(memcmp(in, out, bytes), 0);
    }
    bw_image_release(image);
    bw_device_close(dev);
    free(in);
    free(out);
}

/* Images of a quarter of the memory or so: the oldest make way, and come back for their next run. */
static void memory_is_shared_and_refused(void **state)
{
    (void)state;
    enum { IMAGES = 12 };
    const float in = 2.5f;
    bw_device *dev;
    bw_device_info info;
    bw_image *images[IMAGES], *image;
    assert_ok(bw_device_open("opencl:0", &dev, &err));
    assert_ok(bw_device_info_get(dev, &info, &err));
    copy c = make_copy(1, 1, info.offers.act_bytes + 16);
    assert_is(BW_INCOMPATIBLE, bw_image_load(dev, &c, sizeof c, NULL, 0, &image, &err));
    c = make_copy(1, 1, info.offers.act_bytes / 16 * 16);
    for (int i = 0; i < IMAGES; i++)
        assert_ok(bw_image_load(dev, &c, sizeof c, NULL, 0, &images[i], &err));
    for (int i = 0; i < IMAGES; i++) {
        float out = 0;
        assert_ok(bw_image_run(images[i], &in, &out, 1, 0, &err));
        assert_true(out == in);
    }
    /* Together too large, each buffer of its own not. */
    copy large = c;
    large.header.in_bytes = large.header.out_bytes = c.header.act_bytes;
    if (info.memory_bytes / 3 < c.header.act_bytes) {
        assert_is(BW_NO_MEMORY, bw_image_load(dev, &large, sizeof large, NULL, 0, &image, &err));
        assert_text(" bytes");
    }
    for (int i = 0; i < IMAGES; i++)
        bw_image_release(images[i]);
    bw_device_state now;
    assert_ok(bw_device_state_get(dev, &now, &err));
    assert_int_equal(now.faults, 0);
    assert_int_equal(now.memory_used, 0);
    bw_device_close(dev);
}

/* ------------------------------------------------------------------------------------------------------------------ */

static void many_runs_leave_nothing(void **state)
{
    (void)state;
    const int rounds = getenv("BW_LONG") ? 20 : 2, runs = 500;
    const char *san = getenv("BW_SAN");
    bw_device *dev;
    bw_image *keep;
    work w;
    bw_footprint before = {0};
    make_work(90, &w);
    assert_ok(bw_device_open("opencl:0", &dev, &err));
    assert_ok(load(dev, &w, &keep));
    for (int round = -1; round < rounds; round++) { /* the first makes the driver's own threads and buffers */
        for (int i = 0; i < runs / 50; i++) {       /* images come and go */
            work v;
            bw_image *image;
            make_work(100 + (uint64_t)i, &v);
            assert_ok(load(dev, &v, &image));
            assert_right(image, &v);
            bw_image_release(image);
            free_work(&v);
            for (int k = 0; k < 49; k++)
                assert_right(keep, &w);
        }
        if (round == 0) /* a reset leaves nothing either */
            assert_ok(bw_device_reset(dev, &err));
        const bw_footprint now = bw_footprint_of(getpid());
        if (round == -1)
            before = now;
        print_message("# %d runs: %u files, %u threads, %ld KiB\n", (round + 2) * runs, now.files, now.threads,
                      now.anonymous_kib);
        assert_int_equal(now.files, before.files);
        assert_int_equal(now.threads, before.threads);
        if (!san || !*san) /* a sanitizer keeps what was freed */
            assert_true(now.anonymous_kib - before.anonymous_kib < 16384);
    }
    bw_image_release(keep);
    bw_device_close(dev);
    free_work(&w);
}

static int remove_folder(const char *path)
{
    char command[700];
    snprintf(command, sizeof command, "rm -rf '%s'", path);
    return system(command);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(targets_and_options),
        cmocka_unit_test(a_turned_bit_is_found),
        cmocka_unit_test(scrub_comes_every_so_often),
        cmocka_unit_test(describes_the_device),
        cmocka_unit_test(program_binaries_are_cached),
        cmocka_unit_test(bitstreams_with_source),
        cmocka_unit_test(bitstreams_with_a_binary),
        cmocka_unit_test(cancelled_runs_end_soon),
        cmocka_unit_test(aborted_runs_end_and_the_device_comes_back),
        cmocka_unit_test(instructions_are_timed),
        cmocka_unit_test(two_devices_in_a_process),
        cmocka_unit_test(batches_of_any_size),
        cmocka_unit_test(memory_is_shared_and_refused),
        cmocka_unit_test(many_runs_leave_nothing),
    };
    const char *tmp = getenv("TMPDIR");
    bw_device *dev;
    bw_test_use_plugins();
    if (bw_device_open("opencl:0", &dev, &err)) {
        printf("ok 1 - opencl:0 # SKIP %s\n1..1\n", err.message);
        return 0;
    }
    bw_device_close(dev);
    snprintf(dir, sizeof dir, "%s/bw-opencl-%d", tmp ? tmp : "/tmp", (int)getpid());
    if (mkdir(dir, 0700)) {
        printf("not ok 1 - no temporary folder %s\n", dir);
        return 1;
    }
    int failed = cmocka_run_group_tests_name("opencl", tests, NULL, NULL);
    return remove_folder(dir) || failed;
}
