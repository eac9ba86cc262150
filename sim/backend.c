/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The `sim` HAL backend: devices in this process, zero copy (constants, inputs and outputs are used in place).
 *
 * Targets: "" or "fast" (fast engine, everything the ISA knows), "reference" (the same on the reference interpreter),
 * "u250" (what a configuration for that card offers). Options, see docs/hal.md: threads, isa, engine, scrub, and for
 * tests delay, fault, reset.
 */
#include <jansson.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "hal/backend.h"
#include "hal/base.h"
#include "hal/bitstream.h"
#include "kernels/accelerator.h"
#include "sim/sim.h"

#define FAULTS_MAX 16

#define F(name)     (1u << BW_FORMAT_##name)
#define VECTOR      (F(FP32) | F(FP16) | F(BF16))
#define MSFP        (F(MSFP11) | F(MSFP12) | F(MSFP13) | F(MSFP14) | F(MSFP15) | F(MSFP16))
#define MX_NARROW   (F(MXINT8) | F(MXFP6_E2M3) | F(MXFP4_E2M1))
#define MX_WIDE     (F(MXFP6_E3M2) | F(MXFP8_E4M3) | F(MXFP8_E5M2))
#define MX_SHARED   (F(MX9) | F(MX6) | F(MX4))
#define ALL_OPCODES (((1u << BW_OP_LIMIT) - 1u) & ~1u)
#define GIB         (UINT64_C(1) << 30)

/* What a simulated device is configured as: a row below, or the payload of a bitstream. */
typedef struct sim_arch {
    char target[32]; /* the name that bw_sim_write_bitstream knows */
    char part[64];
    char name[96];
    uint64_t memory_bytes; /* 0: the host's */
    bw_requirements offers;
} sim_arch;

#define OFFERS(formats, blocks, bytes)                                                                                 \
    {                                                                                                                  \
        BW_ISA_VERSION, formats, ALL_OPCODES, blocks, bytes, bytes                                                     \
    }
static const sim_arch archs[] = {
    {"sim", "sim", "simulated accelerator", 0,
     OFFERS(VECTOR | MSFP | MX_NARROW | MX_WIDE | MX_SHARED, 15u, 1024 * GIB)},
    /* Four banks of 16 GiB; a region lies within one bank. Formats whose integers need wider multipliers are left out.
     */
    {"u250", "sim-u250", "simulated U250", 64 * GIB, OFFERS(VECTOR | MSFP | MX_NARROW, 3u, 16 * GIB)},
    {"u250-msfp", "sim-u250", "simulated U250, msfp only", 64 * GIB, OFFERS(VECTOR | MSFP, 1u, 16 * GIB)},
    {"u250-mx", "sim-u250", "simulated U250, mx only", 64 * GIB, OFFERS(VECTOR | MX_NARROW, 2u, 16 * GIB)},
};
#define ARCH_COUNT (sizeof archs / sizeof *archs)

/* The shells of the two parts. */
static const char sim_interface[] = "3c0e5a52-7d0f-4c11-9a57-51a0b10c0001";
static const char u250_interface[] = "3c0e5a52-7d0f-4c11-9a57-51a0b10c0250";

typedef enum fault_kind {
    FAULT_ERROR,
    FAULT_DMA,
    FAULT_ECC,
    FAULT_HANG,
    FAULT_LOST,
    FAULT_NO_MEMORY,
    FAULT_FLIP,
    FAULT_UUID,
    FAULT_WRONG,
    FAULT_BLANK,
    FAULT_KINDS
} fault_kind;

static const char *const fault_names[FAULT_KINDS] = {"error", "dma",  "ecc",  "hang",  "lost",
                                                     "nomem", "flip", "uuid", "wrong", "blank"};

/* What a device holds that came up with the bitstream of somebody else. */
static const char foreign_bitstream[] = "ffffffff-0000-4000-8000-000000000000";

typedef struct sim_device {
    int reference;
    bw_fast_options fast;
    unsigned delay_ms;
    unsigned resets_fail; /* so many more; UINT_MAX: all */
    int comes_back;       /* a lost device does after so many resets */
    int blank;            /* the next reset succeeds and leaves no bitstream */
    int wrong;            /* of this run's output a bit turns */
    int foreign;          /* the next reset finds a bitstream that nobody loaded */
    unsigned scrub;       /* sums of constants are compared before every so-manieth run of an image; 0: never */
    int own_memory;       /* images have a copy of the constants, in which bits are to be turned */
    unsigned fault_count;
    struct {
        fault_kind kind;
        uint64_t run; /* 1: the first */
    } faults[FAULTS_MAX];
    uint64_t runs; /* under the core's turn */
    atomic_int aborted;
    pthread_mutex_t lock; /* for arch and bitstream: info comes from any thread */
    sim_arch arch;
    char bitstream[BW_UUID_TEXT];
} sim_device;

typedef struct sim_image {
    const bw_program *program;
    const void *constants;
    uint8_t *own;    /* the constants, where the device has memory of its own; else NULL */
    uint64_t sum;    /* of the constants, as they were loaded; with scrub */
    uint64_t runs;   /* since it was loaded */
    bw_fast *engine; /* NULL on the reference interpreter */
} sim_image;

/* --- information ------------------------------------------------------------------------------------------------ */

static const sim_arch *find_arch(const char *target)
{
    for (size_t i = 0; i < ARCH_COUNT; i++)
        if (strcmp(archs[i].target, target) == 0)
            return &archs[i];
    return NULL;
}

static const char *interface_of(const sim_arch *arch)
{
    return strcmp(arch->part, "sim") == 0 ? sim_interface : u250_interface;
}

/* What the engine will choose; the names are its own. */
static const char *isa_text(bw_sim_isa isa)
{
    const char *env = getenv("BW_SIM_ISA");
    if (isa == BW_SIM_ISA_AUTO && env && *env)
        return env;
    for (int i = BW_SIM_ISA_LIMIT - 1; isa == BW_SIM_ISA_AUTO && i >= BW_SIM_ISA_PORTABLE; i--)
        if (bw_sim_isa_available((bw_sim_isa)i))
            isa = (bw_sim_isa)i;
    return bw_sim_isa_name(isa);
}

static unsigned thread_count(unsigned threads)
{
    const char *env = getenv("BW_SIM_THREADS");
    if (!threads && env)
        threads = (unsigned)strtoul(env, NULL, 10);
    cpu_set_t set;
    if (!threads && sched_getaffinity(0, sizeof set, &set) == 0)
        threads = (unsigned)CPU_COUNT(&set);
    return threads == 0 ? 1 : threads > 64 ? 64 : threads;
}

static void fill_info(const sim_arch *arch, int reference, const bw_fast_options *fast, bw_device_info *info)
{
    if (reference)
        snprintf(info->name, sizeof info->name, "%s (reference interpreter)", arch->name);
    else
        snprintf(info->name, sizeof info->name, "%s (fast engine, %s, %u threads)", arch->name, isa_text(fast->isa),
                 thread_count(fast->threads));
    if (!reference) {
        snprintf(info->isa, sizeof info->isa, "%s", isa_text(fast->isa));
        info->threads = thread_count(fast->threads);
    }
    snprintf(info->part, sizeof info->part, "%s", arch->part);
    snprintf(info->interface_id, sizeof info->interface_id, "%s", interface_of(arch));
    info->offers = arch->offers;
    info->memory_bytes = arch->memory_bytes;
    if (!info->memory_bytes)
        info->memory_bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
}

static bw_status sim_enumerate(unsigned index, bw_device_info *info, bw_error *err)
{
    static const struct {
        const char *uri, *arch;
        int reference;
    } rows[] = {{"sim:", "sim", 0}, {"sim:u250", "u250", 0}, {"sim:reference", "sim", 1}};
    if (index >= sizeof rows / sizeof *rows)
        return bw_fail(err, BW_NOT_FOUND, "sim has %zu targets", sizeof rows / sizeof *rows);
    bw_fast_options fast = {BW_SIM_ISA_AUTO, 0, 0, 0};
    fill_info(find_arch(rows[index].arch), rows[index].reference, &fast, info);
    snprintf(info->uri, sizeof info->uri, "%s", rows[index].uri);
    return BW_OK;
}

static bw_status sim_info(void *device, bw_device_info *info, bw_error *err)
{
    (void)err;
    sim_device *dev = device;
    pthread_mutex_lock(&dev->lock);
    fill_info(&dev->arch, dev->reference, &dev->fast, info);
    snprintf(info->bitstream, sizeof info->bitstream, "%s", dev->bitstream);
    pthread_mutex_unlock(&dev->lock);
    return BW_OK;
}

/* --- open ------------------------------------------------------------------------------------------------------- */

static bw_status number(const char *key, const char *text, unsigned long low, unsigned long high, unsigned long *out,
                        bw_error *err)
{
    char *end;
    *out = strtoul(text, &end, 10);
    if (end == text || *end || text[0] == '-' || *out < low || *out > high)
        return bw_fail(err, BW_INVALID_ARGUMENT, "option %s is '%s', expected a number in %lu..%lu", key, text, low,
                       high);
    return BW_OK;
}

static bw_status isa_option(sim_device *dev, const char *value, bw_error *err)
{
    char known[96] = "";
    for (int i = BW_SIM_ISA_PORTABLE; i < BW_SIM_ISA_LIMIT; i++) {
        const char *name = bw_sim_isa_name((bw_sim_isa)i);
        snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", *known ? ", " : "", name);
        if (strcmp(name, value) != 0)
            continue;
        if (!bw_sim_isa_available((bw_sim_isa)i))
            return bw_fail(err, BW_UNSUPPORTED, "option isa is '%s', which this CPU does not have", value);
        dev->fast.isa = (bw_sim_isa)i;
        return BW_OK;
    }
    return bw_fail(err, BW_INVALID_ARGUMENT, "option isa is '%s', expected one of %s", value, known);
}

/* "hang@3": what happens in the third run since open. */
static bw_status fault_option(sim_device *dev, const char *value, bw_error *err)
{
    const char *at = strchr(value, '@');
    if (dev->fault_count == FAULTS_MAX)
        return bw_fail(err, BW_EXHAUSTED, "option fault: more than %d faults", FAULTS_MAX);
    for (int k = 0; at && k < FAULT_KINDS; k++) {
        if (strlen(fault_names[k]) != (size_t)(at - value) || strncmp(fault_names[k], value, (size_t)(at - value)) != 0)
            continue;
        unsigned long run;
        bw_status status = number("fault", at + 1, 1, 1000000000, &run, err);
        if (!status) {
            dev->faults[dev->fault_count].kind = (fault_kind)k;
            dev->faults[dev->fault_count++].run = run;
            dev->own_memory |= k == FAULT_FLIP;
        }
        return status;
    }
    return bw_fail(err, BW_INVALID_ARGUMENT,
                   "option fault is '%s', expected error@N, dma@N, ecc@N, hang@N, lost@N, nomem@N, flip@N, uuid@N, "
                   "wrong@N or blank@N",
                   value);
}

static bw_status option(const char *key, const char *value, void *user, bw_error *err)
{
    sim_device *dev = user;
    unsigned long n = 0;
    bw_status status = BW_OK;
    if (strcmp(key, "threads") == 0) {
        status = number(key, value, 1, 64, &n, err);
        dev->fast.threads = (unsigned)n;
    } else if (strcmp(key, "isa") == 0) {
        status = isa_option(dev, value, err);
    } else if (strcmp(key, "engine") == 0) {
        dev->reference = strcmp(value, "reference") == 0;
        if (!dev->reference && strcmp(value, "fast") != 0)
            status = bw_fail(err, BW_INVALID_ARGUMENT, "option engine is '%s', expected fast or reference", value);
    } else if (strcmp(key, "delay") == 0) {
        status = number(key, value, 0, 60000, &n, err);
        dev->delay_ms = (unsigned)n;
    } else if (strcmp(key, "fault") == 0) {
        status = fault_option(dev, value, err);
    } else if (strcmp(key, "scrub") == 0) {
        status = number(key, value, 0, 1000000000, &n, err);
        dev->scrub = (unsigned)n;
    } else if (strcmp(key, "reset") == 0) {
        dev->comes_back = value[0] >= '0' && value[0] <= '9';
        if (dev->comes_back)
            status = number(key, value, 0, 1000000000, &n, err);
        else if (strcmp(value, "fail") == 0)
            n = UINT_MAX;
        else if (strcmp(value, "ok") != 0)
            status = bw_fail(err, BW_INVALID_ARGUMENT, "option reset is '%s', expected ok, fail or a number", value);
        dev->resets_fail = (unsigned)n;
    } else {
        status =
            bw_fail(err, BW_INVALID_ARGUMENT,
                    "there is no option '%s', expected one of threads, isa, engine, scrub, delay, fault, reset", key);
    }
    return status;
}

static bw_status sim_open(const char *target, void **device, bw_error *err)
{
    sim_device *dev = calloc(1, sizeof *dev);
    if (!dev)
        return bw_fail(err, BW_NO_MEMORY, "no memory for a simulated device");
    char name[32] = "";
    /* The name decides the defaults, the options come after it. */
    dev->reference = strncmp(target, "reference", 9) == 0;
    bw_status status = bw_target_parse(target, name, sizeof name, option, dev, err);
    if (!status && strcmp(name, "") != 0 && strcmp(name, "fast") != 0 && strcmp(name, "reference") != 0 &&
        strcmp(name, "u250") != 0)
        status = bw_fail(err, BW_NOT_FOUND, "there is no target '%s', expected '', fast, reference or u250", name);
    if (status) {
        free(dev);
        return status;
    }
    dev->arch = *find_arch(strcmp(name, "u250") == 0 ? "u250" : "sim");
    pthread_mutex_init(&dev->lock, NULL);
    *device = dev;
    return BW_OK;
}

static void sim_close(void *device)
{
    sim_device *dev = device;
    pthread_mutex_destroy(&dev->lock);
    free(dev);
}

/* --- bitstream -------------------------------------------------------------------------------------------------- */

static bw_status parse_arch(const void *payload, size_t size, sim_arch *arch, bw_error *err)
{
    json_error_t je;
    json_t *root = json_loadb(payload, size, JSON_REJECT_DUPLICATES, &je);
    if (!root)
        return bw_fail(err, BW_CORRUPT, "sim-arch: no JSON: %s at byte %d", je.text, je.position);
    const json_t *name = json_object_get(root, "name"), *memory = json_object_get(root, "memory_bytes");
    bw_status status = BW_OK;
    if (!json_is_string(name) || json_string_length(name) == 0 || json_string_length(name) >= sizeof arch->name)
        status = bw_fail(err, BW_CORRUPT, "sim-arch: \"name\" is missing or no string of 1 to %zu characters",
                         sizeof arch->name - 1);
    else if (!json_is_integer(memory) || json_integer_value(memory) < 0)
        status = bw_fail(err, BW_CORRUPT, "sim-arch: \"memory_bytes\" is missing or no integer from 0");
    else
        status = bw_requirements_from_json(json_object_get(root, "offers"), "sim-arch: offers", &arch->offers, err);
    if (!status && arch->offers.isa_version != BW_ISA_VERSION)
        status = bw_fail(err, BW_VERSION_MISMATCH, "sim-arch: it offers ISA version %u, the simulator runs %u",
                         arch->offers.isa_version, BW_ISA_VERSION);
    if (!status) {
        snprintf(arch->name, sizeof arch->name, "%s", json_string_value(name));
        arch->memory_bytes = (uint64_t)json_integer_value(memory);
    }
    json_decref(root);
    return status;
}

static bw_status sim_load_bitstream(void *device, const void *payload, size_t size, const char *uuid, bw_error *err)
{
    sim_device *dev = device;
    sim_arch arch = dev->arch; /* part and interface stay */
    bw_status status = parse_arch(payload, size, &arch, err);
    if (status)
        return status;
    pthread_mutex_lock(&dev->lock);
    dev->arch = arch;
    snprintf(dev->bitstream, sizeof dev->bitstream, "%s", uuid);
    pthread_mutex_unlock(&dev->lock);
    return BW_OK;
}

bw_status bw_sim_write_bitstream(const char *target, const char *path, bw_error *err)
{
    const sim_arch *arch = find_arch(target && *target ? target : "sim");
    if (!arch)
        return bw_fail(err, BW_NOT_FOUND,
                       "there is no simulated configuration '%s', expected sim, u250, u250-msfp or "
                       "u250-mx",
                       target);
    json_t *offers = bw_requirements_to_json(&arch->offers);
    json_t *root = offers ? json_pack("{s:s, s:I, s:o}", "name", arch->name, "memory_bytes",
                                      (json_int_t)arch->memory_bytes, "offers", offers)
                          : NULL;
    char *payload = root ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    if (!payload)
        return bw_fail(err, BW_NO_MEMORY, "no memory for the bitstream '%s'", arch->target);
    bw_bitstream bits;
    memset(&bits, 0, sizeof bits);
    snprintf(bits.interface_id, sizeof bits.interface_id, "%s", interface_of(arch));
    snprintf(bits.part, sizeof bits.part, "%s", arch->part);
    snprintf(bits.name, sizeof bits.name, "%s", arch->target);
    bits.offers = arch->offers;
    bits.payload_count = 1;
    snprintf(bits.payloads[0].kind, sizeof bits.payloads[0].kind, "sim-arch");
    bits.payloads[0].bytes = payload;
    bits.payloads[0].size = strlen(payload);
    void *bytes;
    size_t size;
    bw_status status = bw_bitstream_write(&bits, &bytes, &size, err);
    if (!status) {
        bw_slice slice = {bytes, size};
        status = bw_file_write_atomic(path, &slice, 1, err);
        free(bytes);
    }
    free(payload);
    return status;
}

/* --- images, runs ----------------------------------------------------------------------------------------------- */

static void sim_image_release(void *device, void *image)
{
    (void)device;
    sim_image *img = image;
    if (img->engine)
        bw_fast_destroy(img->engine);
    free(img->own);
    free(img);
}

static bw_status sim_image_load(void *device, const bw_program *program, const void *constants, void **image,
                                bw_error *err)
{
    sim_device *dev = device;
    const size_t bytes = program->header->const_bytes;
    sim_image *made = calloc(1, sizeof *made);
    if (!made)
        return bw_fail(err, BW_NO_MEMORY, "no memory for an image");
    made->program = program;
    made->constants = constants;
    if (dev->own_memory && bytes) {
        made->own = aligned_alloc(64, (bytes + 63) / 64 * 64);
        if (!made->own) {
            sim_image_release(dev, made);
            return bw_fail(err, BW_NO_MEMORY, "no memory for %zu bytes of constants", bytes);
        }
        made->constants = memcpy(made->own, constants, bytes);
    }
    if (dev->scrub)
        made->sum = bw_accel_checksum(made->constants, bytes);
    bw_status status =
        dev->reference ? BW_OK : bw_fast_create(program, made->constants, &dev->fast, &made->engine, err);
    if (status) {
        sim_image_release(dev, made);
        return status;
    }
    *image = made;
    return BW_OK;
}

/* What lies in the device's memory is what was loaded. */
static bw_status scrub(const sim_device *dev, sim_image *img, bw_error *err)
{
    if (!dev->scrub || ++img->runs % dev->scrub)
        return BW_OK;
    const uint64_t sum = bw_accel_checksum(img->constants, img->program->header->const_bytes);
    if (sum != img->sum)
        return bw_fail(err, BW_DEVICE_FAULT,
                       "the constants in the device's memory changed: sum %016llx, expected %016llx",
                       (unsigned long long)sum, (unsigned long long)img->sum);
    return BW_OK;
}

/* Waits, 1 ms at a time: for ever with ms UINT32_MAX. A hang looks at abort alone, as hung hardware would. */
static bw_status stall(sim_device *dev, uint32_t ms, const atomic_int *cancel, bw_error *err)
{
    const uint64_t end = bw_now_ns() + ms * UINT64_C(1000000);
    while (ms == UINT32_MAX || bw_now_ns() < end) {
        if (cancel && atomic_load(cancel))
            return bw_fail(err, BW_CANCELLED, "cancelled");
        if (atomic_load(&dev->aborted))
            return bw_fail(err, BW_DEVICE_FAULT, "the run hung and was aborted");
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    return BW_OK;
}

static bw_status inject(sim_device *dev, sim_image *img, bw_error *err)
{
    const unsigned long long run = dev->runs;
    for (unsigned i = 0; i < dev->fault_count; i++) {
        if (dev->faults[i].run != dev->runs)
            continue;
        switch (dev->faults[i].kind) {
        case FAULT_ERROR:
            return bw_fail(err, BW_DEVICE_FAULT, "injected fault in run %llu", run);
        case FAULT_DMA:
            return bw_fail(err, BW_DEVICE_FAULT, "injected error of a transfer in run %llu", run);
        case FAULT_ECC:
            return bw_fail(err, BW_DEVICE_FAULT, "injected uncorrectable memory error in run %llu", run);
        case FAULT_HANG:
            return stall(dev, UINT32_MAX, NULL, err);
        case FAULT_LOST:
            if (!dev->comes_back)
                dev->resets_fail = UINT_MAX;
            return bw_fail(err, BW_DEVICE_LOST, "injected loss in run %llu", run);
        case FAULT_NO_MEMORY:
            return bw_fail(err, BW_NO_MEMORY, "injected lack of memory in run %llu", run);
        case FAULT_FLIP:
            if (img->own)
                img->own[img->program->header->const_bytes / 2] ^= 1;
            break;
        case FAULT_UUID:
            dev->foreign = 1;
            return bw_fail(err, BW_DEVICE_FAULT, "injected fault in run %llu", run);
        case FAULT_BLANK:
            dev->blank = 1;
            return bw_fail(err, BW_DEVICE_FAULT, "injected fault in run %llu", run);
        case FAULT_WRONG:
            dev->wrong = 1;
            break;
        case FAULT_KINDS:
            break;
        }
    }
    return scrub(dev, img, err);
}

static bw_status compute(const sim_image *img, const void *in, void *out, uint32_t batch, const atomic_int *cancel,
                         uint64_t *spent_ns, bw_error *err)
{
    if (img->engine)
        return bw_fast_run_timed(img->engine, in, out, batch, cancel, spent_ns, err);
    const bw_program_header *h = img->program->header;
    bw_status status = BW_OK;
    for (uint32_t i = 0; i < batch && !status; i++) {
        if (atomic_load(cancel))
            return bw_fail(err, BW_CANCELLED, "cancelled");
        status = bw_reference_run(img->program, img->constants, (const char *)in + i * h->in_bytes,
                                  (char *)out + i * h->out_bytes, 1, err);
    }
    return status;
}

static bw_status sim_run_timed(void *device, void *image, const void *in, void *out, uint32_t batch,
                               const atomic_int *cancel, uint64_t *spent_ns, bw_error *err)
{
    sim_device *dev = device;
    sim_image *img = image;
    if (spent_ns && !img->engine)
        return bw_fail(err, BW_UNSUPPORTED,
                       "the reference interpreter does not time instructions: take a device of the fast engine (sim:)");
    atomic_store(&dev->aborted, 0);
    dev->runs++;
    dev->wrong = 0;
    bw_status status = inject(dev, img, err);
    if (!status && dev->delay_ms)
        status = stall(dev, dev->delay_ms, cancel, err);
    if (!status)
        status = compute(img, in, out, batch, cancel, spent_ns, err);
    if (!status && dev->wrong && img->program->header->out_bytes)
        *(uint8_t *)out ^= 1;
    return status;
}

static bw_status sim_run(void *device, void *image, const void *in, void *out, uint32_t batch, const atomic_int *cancel,
                         bw_error *err)
{
    return sim_run_timed(device, image, in, out, batch, cancel, NULL, err);
}

static bw_status sim_reset(void *device, bw_error *err)
{
    sim_device *dev = device;
    if (dev->foreign) { /* another reset is another chance */
        dev->foreign = 0;
        return bw_fail(err, BW_DEVICE_LOST, "after the reset the device holds bitstream %s, expected %s",
                       foreign_bitstream, dev->bitstream[0] ? dev->bitstream : "none");
    }
    if (dev->blank) {
        dev->blank = 0;
        pthread_mutex_lock(&dev->lock);
        dev->bitstream[0] = 0;
        pthread_mutex_unlock(&dev->lock);
    }
    if (!dev->resets_fail)
        return BW_OK;
    if (dev->resets_fail != UINT_MAX)
        dev->resets_fail--;
    return bw_fail(err, BW_DEVICE_LOST, "injected failure of the reset");
}

static void sim_abort(void *device)
{
    atomic_store(&((sim_device *)device)->aborted, 1);
}

static const bw_backend sim_backend = {
    .abi_version = BW_BACKEND_ABI,
    .struct_size = sizeof(bw_backend),
    .name = "sim",
    .enumerate = sim_enumerate,
    .open = sim_open,
    .close = sim_close,
    .info = sim_info,
    .load_bitstream = sim_load_bitstream,
    .bitstream_kind = "sim-arch",
    .image_load = sim_image_load,
    .image_release = sim_image_release,
    .run = sim_run,
    .reset = sim_reset,
    .abort = sim_abort,
    .abort_grace_ms = UINT32_MAX, /* a computation in this process always ends; giving up would leave it writing */
    .run_timed = sim_run_timed,
};

bw_status bw_sim_register(bw_error *err)
{
    bw_error error;
    bw_status status = bw_backend_register(&sim_backend, &error);
    if (status == BW_ALREADY_EXISTS)
        return BW_OK;
    return status ? bw_fail(err, status, "%s", error.message) : BW_OK;
}
