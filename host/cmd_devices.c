/* SPDX-License-Identifier: Apache-2.0 */
/* blockwave devices */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "host/cmd.h"
#include "sim/sim.h"

static const char devices_help[] =
    "usage: blockwave devices [--check] [--json]\n"
    "\n"
    "Lists the devices that programs can run on, and why a driver has none to offer.\n"
    "\n"
    "  --check  open each device and run a small program on it; exit code 1 if one fails\n"
    "  --json   machine-readable: {\"devices\": [...], \"absent\": [...]}\n"
    "  -h, --help\n";

typedef struct listing {
    json_t *devices, *absent; /* with --json */
    int count, check, failed;
    char reasons[2048];
} listing;

/* What is known of a device. */
typedef struct report {
    bw_device_info info;
    bw_sensors sensors;
    const char *health;
    char reason[sizeof((bw_error *)0)->message]; /* why it is not "ok" */
    int counted;                                 /* `state` is that of the device as --check left it */
    bw_device_state state;
} report;

/* --- check -------------------------------------------------------------------------------------------------------- */

enum { CHECK_FLOATS = 1024, CHECK_BATCH = 3, CHECK_SECONDS = 60 };

typedef struct check_program {
    bw_program_header header;
    bw_instruction copy;
} check_program;

/* Copies the input to the output: every device can, and it goes the whole way there and back. */
static void make_program(check_program *p)
{
    memset(p, 0, sizeof *p);
    p->header.magic = BW_PROGRAM_MAGIC;
    p->header.isa_version = BW_ISA_VERSION;
    p->header.instruction_count = 1;
    p->header.in_bytes = p->header.out_bytes = CHECK_FLOATS * sizeof(float);
    bw_instruction *i = &p->copy;
    i->opcode = BW_OP_COPY;
    i->kernel_y = i->kernel_x = i->stride_y = i->stride_x = i->dilation_y = i->dilation_x = i->groups = 1;
    i->in.height = i->in.width = i->in.block = 1;
    i->in.channels = i->in.pixel_stride = i->in.row_stride = CHECK_FLOATS;
    i->in.format = BW_FORMAT_FP32;
    i->in.region = BW_REGION_IN;
    i->out0 = i->in;
    i->out0.region = BW_REGION_OUT;
}

static bw_status run_check(bw_device *device, bw_error *err)
{
    static float in[CHECK_BATCH * CHECK_FLOATS], out[CHECK_BATCH * CHECK_FLOATS];
    _Alignas(64) check_program program; /* borrowed until the release */
    make_program(&program);
    for (int i = 0; i < CHECK_BATCH * CHECK_FLOATS; i++)
        in[i] = (float)(i * 7919 % 65536) - 32768.0f;
    memset(out, 0, sizeof out);
    bw_image *image;
    bw_status status = bw_image_load(device, &program, sizeof program, NULL, 0, &image, err);
    if (status)
        return status;
    status = bw_image_run(image, in, out, CHECK_BATCH, CHECK_SECONDS * UINT64_C(1000000000), err);
    if (!status && memcmp(in, out, sizeof in) != 0)
        status = bw_fail(err, BW_DEVICE_FAULT, "%s",
                         "a program that copies its input gives other bits: do not use the device");
    bw_image_release(image);
    return status;
}

static void check_device(report *r)
{
    bw_device *device;
    bw_error err = {BW_OK, ""};
    bw_status status = bw_device_open(r->info.uri, &device, &err);
    if (!status) {
        bw_device_info opened; /* it may be configured only now */
        if (bw_device_info_get(device, &opened, NULL) == BW_OK)
            r->info = opened;
        status = run_check(device, &err);
        r->counted = bw_device_state_get(device, &r->state, NULL) == BW_OK;
        bw_device_close(device);
    }
    r->health = !status ? "ok" : status == BW_BUSY ? "busy" : status == BW_DEVICE_LOST ? "dead" : "failed";
    snprintf(r->reason, sizeof r->reason, "%s", status ? err.message : "");
}

/* --- output ------------------------------------------------------------------------------------------------------- */

static json_t *words(const char *text)
{
    json_t *list = json_array();
    char copy[512], *save = NULL;
    snprintf(copy, sizeof copy, "%s", text);
    for (char *w = strtok_r(copy, " ", &save); w; w = strtok_r(NULL, " ", &save))
        json_array_append_new(list, json_string(w));
    return list;
}

static json_t *offers_json(const bw_requirements *o)
{
    char formats[512];
    json_t *opcodes = json_array(), *sizes = json_array();
    for (unsigned i = 1; i < 32; i++) {
        if (o->opcodes >> i & 1)
            json_array_append_new(opcodes, json_string(bw_opcode_name(i)));
    }
    for (int b = 0; b < 4; b++) {
        if (o->blocks >> b & 1)
            json_array_append_new(sizes, json_integer(16 << b));
    }
    return json_pack("{s:i,s:o,s:o,s:o,s:I,s:I}", "isa_version", (int)o->isa_version, "formats",
                     words(bw_cmd_formats(o->formats, formats, sizeof formats)), "opcodes", opcodes, "blocks", sizes,
                     "act_bytes", (json_int_t)o->act_bytes, "const_bytes", (json_int_t)o->const_bytes);
}

static json_t *number_or_null(double value)
{
    return isnan(value) ? json_null() : json_real(value);
}

static json_t *text_or_null(const char *text)
{
    return text[0] ? json_string(text) : json_null();
}

static json_t *counters_json(const report *r)
{
    if (!r->counted)
        return json_null();
    const bw_device_state *s = &r->state;
    return json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "runs", (json_int_t)s->runs, "inferences",
                     (json_int_t)s->inferences, "images", (json_int_t)s->images, "faults", (json_int_t)s->faults,
                     "resets", (json_int_t)s->resets, "evictions", (json_int_t)s->evictions, "busy_ns",
                     (json_int_t)s->busy_ns, "memory_used_bytes", (json_int_t)s->memory_used, "memory_budget_bytes",
                     (json_int_t)s->memory_budget);
}

static json_t *device_json(const report *r)
{
    const bw_device_info *d = &r->info;
    return json_pack("{s:s,s:s,s:s,s:o,s:s,s:s,s:s,s:o,s:I,s:o,s:o,s:o,s:o}", "uri", d->uri, "name", d->name, "part",
                     d->part, "address", text_or_null(d->address), "bitstream", d->bitstream, "interface_id",
                     d->interface_id, "health", r->health, "reason", text_or_null(r->reason), "memory_bytes",
                     (json_int_t)d->memory_bytes, "temperature_c", number_or_null(r->sensors.temperature_c), "power_w",
                     number_or_null(r->sensors.power_w), "counters", counters_json(r), "offers",
                     offers_json(&d->offers));
}

static const char *measured(double value, const char *unit, char buf[32])
{
    if (isnan(value))
        return "unknown";
    snprintf(buf, 32, "%.1f %s", value, unit);
    return buf;
}

static void print_device(const report *r)
{
    const bw_device_info *d = &r->info;
    char formats[512], blocks[64], memory[32], used[32], celsius[32], watts[32];
    printf("%s\n", d->uri);
    printf("  name       %s\n", d->name);
    printf("  part       %s\n", d->part);
    printf("  address    %s\n", d->address[0] ? d->address : "none");
    printf("  bitstream  %s\n", d->bitstream[0] ? d->bitstream : "none");
    if (d->memory_bytes)
        printf("  memory     %s\n", bw_cli_bytes(d->memory_bytes, memory));
    printf("  formats    %s\n", bw_cmd_formats(d->offers.formats, formats, sizeof formats));
    printf("  blocks     %s\n", bw_cmd_blocks(d->offers.blocks, blocks, sizeof blocks));
    printf("  sensors    temperature %s, power %s\n", measured(r->sensors.temperature_c, "C", celsius),
           measured(r->sensors.power_w, "W", watts));
    printf("  health     %s%s%s\n", r->health, r->reason[0] ? ": " : "", r->reason);
    const bw_device_state *s = &r->state;
    if (r->counted)
        printf("  counters   runs %llu, inferences %llu, images %llu, faults %llu, resets %llu, evictions %llu, busy "
               "%.3f ms, memory used %s\n",
               (unsigned long long)s->runs, (unsigned long long)s->inferences, (unsigned long long)s->images,
               (unsigned long long)s->faults, (unsigned long long)s->resets, (unsigned long long)s->evictions,
               (double)s->busy_ns / 1e6, bw_cli_bytes(s->memory_used, used));
}

static int each_device(const bw_device_info *d, void *user)
{
    listing *l = user;
    report r = {.info = *d, .health = "ok"};
    if (l->check)
        check_device(&r);
    bw_device_sensors_get(d, &r.sensors, NULL);
    l->failed += strcmp(r.health, "ok") != 0;
    l->count++;
    if (l->devices) {
        json_array_append_new(l->devices, device_json(&r));
        return 0;
    }
    if (l->count > 1)
        putchar('\n');
    print_device(&r);
    return 0;
}

static void absent_backend(const char *backend, const char *reason, void *user)
{
    listing *l = user;
    if (l->absent) {
        json_array_append_new(l->absent, json_pack("{s:s,s:s}", "backend", backend, "reason", reason));
        return;
    }
    size_t at = strlen(l->reasons);
    snprintf(l->reasons + at, sizeof l->reasons - at, "%s: not usable: %s\n", backend, reason);
}

int bw_cmd_devices(int argc, char **argv)
{
    static const struct option options[] = {{"check", no_argument, NULL, 'c'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    int json = 0;
    listing l = {0};
    for (int c; (c = bw_cmd_option(argc, argv, options, devices_help)) != BW_CMD_END;) {
        if (c < 0)
            return c == BW_CMD_HELP ? BW_EXIT_OK : BW_EXIT_USAGE;
        if (c == 'c')
            l.check = 1;
        else
            json = 1;
    }
    if (optind < argc)
        return bw_cli_usage("devices", "unexpected argument '%s'", argv[optind]);
    bw_error err;
    if (json) {
        l.devices = json_array();
        l.absent = json_array();
    }
    bw_status status = bw_sim_register(&err);
    if (!status)
        status = bw_device_enumerate(each_device, absent_backend, &l, &err);
    if (!status && json) {
        json_t *all = json_pack("{s:O,s:O}", "devices", l.devices, "absent", l.absent);
        json_dumpf(all, stdout, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(15));
        putchar('\n');
        json_decref(all);
    } else if (!status && l.reasons[0]) {
        printf("%s%s", l.count ? "\n" : "", l.reasons);
    }
    json_decref(l.devices);
    json_decref(l.absent);
    return status ? bw_cli_fail("devices", &err) : l.failed ? BW_EXIT_FAILURE : BW_EXIT_OK;
}
