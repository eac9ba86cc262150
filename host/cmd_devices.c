/* SPDX-License-Identifier: Apache-2.0 */
/* blockwave devices */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "host/cmd.h"
#include "sim/sim.h"

static const char devices_help[] = "usage: blockwave devices [--json]\n"
                                   "\n"
                                   "Lists the devices that programs can run on, and why a driver has none to offer.\n"
                                   "\n"
                                   "  --json   machine-readable: {\"devices\": [...], \"absent\": [...]}\n"
                                   "  -h, --help\n";

typedef struct listing {
    json_t *devices, *absent; /* with --json */
    int count;
    char reasons[2048];
} listing;

static const char *health_name(bw_health health)
{
    return health == BW_HEALTH_OK ? "ok" : health == BW_HEALTH_RESETTING ? "resetting" : "dead";
}

static json_t *words(const char *text)
{
    json_t *list = json_array();
    char copy[512], *save = NULL;
    snprintf(copy, sizeof copy, "%s", text);
    for (char *w = strtok_r(copy, " ", &save); w; w = strtok_r(NULL, " ", &save))
        json_array_append_new(list, json_string(w));
    return list;
}

static json_t *device_json(const bw_device_info *d)
{
    char formats[512];
    json_t *opcodes = json_array(), *sizes = json_array();
    for (unsigned o = 1; o < 32; o++) {
        if (d->offers.opcodes >> o & 1)
            json_array_append_new(opcodes, json_string(bw_opcode_name(o)));
    }
    for (int b = 0; b < 4; b++) {
        if (d->offers.blocks >> b & 1)
            json_array_append_new(sizes, json_integer(16 << b));
    }
    return json_pack(
        "{s:s,s:s,s:s,s:s,s:s,s:s,s:I,s:{s:i,s:o,s:o,s:o,s:I,s:I}}", "uri", d->uri, "name", d->name, "part", d->part,
        "bitstream", d->bitstream, "interface_id", d->interface_id, "health", health_name(d->health), "memory_bytes",
        (json_int_t)d->memory_bytes, "offers", "isa_version", (int)d->offers.isa_version, "formats",
        words(bw_cmd_formats(d->offers.formats, formats, sizeof formats)), "opcodes", opcodes, "blocks", sizes,
        "act_bytes", (json_int_t)d->offers.act_bytes, "const_bytes", (json_int_t)d->offers.const_bytes);
}

static int each_device(const bw_device_info *d, void *user)
{
    listing *l = user;
    char formats[512], blocks[64], memory[32];
    l->count++;
    if (l->devices) {
        json_array_append_new(l->devices, device_json(d));
        return 0;
    }
    if (l->count > 1)
        putchar('\n');
    printf("%s\n", d->uri);
    printf("  name       %s\n", d->name);
    printf("  part       %s\n", d->part);
    printf("  bitstream  %s\n", d->bitstream[0] ? d->bitstream : "none");
    if (d->memory_bytes)
        printf("  memory     %s\n", bw_cli_bytes(d->memory_bytes, memory));
    printf("  formats    %s\n", bw_cmd_formats(d->offers.formats, formats, sizeof formats));
    printf("  blocks     %s\n", bw_cmd_blocks(d->offers.blocks, blocks, sizeof blocks));
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
    static const struct option options[] = {
        {"json", no_argument, NULL, 'j'}, {"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0}};
    int json = 0;
    for (int c; (c = bw_cmd_option(argc, argv, options, devices_help)) != BW_CMD_END;) {
        if (c < 0)
            return c == BW_CMD_HELP ? BW_EXIT_OK : BW_EXIT_USAGE;
        json = 1;
    }
    if (optind < argc)
        return bw_cli_usage("devices", "unexpected argument '%s'", argv[optind]);
    bw_error err;
    listing l = {0};
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
    return status ? bw_cli_fail("devices", &err) : BW_EXIT_OK;
}
