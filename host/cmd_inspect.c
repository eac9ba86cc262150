/* SPDX-License-Identifier: Apache-2.0 */
/* blockwave inspect */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "host/cmd.h"
#include "host/session_plan.h"

static const char help[] =
    "usage: blockwave inspect FILE.bw [--json] [--verify]\n"
    "\n"
    "Shows what is in a package: model, inputs and outputs, formats, stages, quality, provenance, sections. The\n"
    "SHA-256 of every section is checked.\n"
    "\n"
    "  --json     the manifest as it stands in the package\n"
    "  --verify   also check every graph, program and constant as a device would before running it\n"
    "  -h, --help\n";

static const char *text_of(const json_t *object, const char *key)
{
    const char *s = json_string_value(json_object_get(object, key));
    return s ? s : "-";
}

static void row(const char *title, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void row(const char *title, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    printf("%-12s ", title);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
}

static const char *json_shape(const json_t *shape, char *buf, size_t size)
{
    char *text = json_dumps(shape, JSON_ENCODE_ANY);
    snprintf(buf, size, "%s", text ? text : "-");
    free(text);
    return buf;
}

static void print_ios(const char *title, const json_t *list)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *io = json_array_get(list, i);
        char shape[200];
        row(i ? "" : title, "%s  %s %s", text_of(io, "name"), text_of(io, "dtype"),
            json_shape(json_object_get(io, "shape"), shape, sizeof shape));
    }
}

static void print_preprocess(const json_t *json)
{
    bw_preprocess p;
    static const char *const channels[] = {"RGB", "BGR", "gray"};
    if (!json || bw_preprocess_from_json(json, &p, NULL))
        return;
    char resize[64] = "as they are";
    if (p.resize == BW_RESIZE_EXACT)
        snprintf(resize, sizeof resize, "resized to %d x %d", p.resize_height, p.resize_width);
    else if (p.resize == BW_RESIZE_SHORT_SIDE)
        snprintf(resize, sizeof resize, "short side resized to %d", p.resize_height);
    row("pictures", "%s, centre %d x %d, %s", resize, p.height, p.width, channels[p.channels]);
    if (p.channels == BW_CHANNELS_GRAY)
        row("", "(x * %g - %g) / %g", (double)p.scale, (double)p.mean[0], (double)p.std[0]);
    else
        row("", "(x * %g - [%g %g %g]) / [%g %g %g]", (double)p.scale, (double)p.mean[0], (double)p.mean[1],
            (double)p.mean[2], (double)p.std[0], (double)p.std[1], (double)p.std[2]);
}

static void print_numerics(const json_t *n)
{
    if (!json_is_object(n))
        return;
    row("numerics", "weights %s, activations %s, vector %s, block %" JSON_INTEGER_FORMAT, text_of(n, "weights"),
        text_of(n, "activations"), text_of(n, "vector"), json_integer_value(json_object_get(n, "block")));
    row("", "rounding %s, scale rule %s, first and last layer %s", text_of(n, "rounding"), text_of(n, "scale_rule"),
        text_of(n, "first_last"));
}

static void print_program(const bw_package *pkg, const json_t *stage)
{
    const void *bytes;
    size_t size;
    bw_program program;
    bw_error err;
    if (bw_package_section(pkg, text_of(stage, "program"), &bytes, &size, &err) ||
        bw_program_parse(bytes, size, &program, &err)) {
        row("", "  program: %s", err.message);
        return;
    }
    unsigned counts[BW_OP_LIMIT] = {0};
    for (uint32_t i = 0; i < program.header->instruction_count; i++)
        counts[program.instructions[i].opcode]++;
    char text[256] = "", formats[256], act[32], constants[32];
    size_t at = 0;
    for (unsigned o = 1; o < BW_OP_LIMIT; o++) {
        if (counts[o] && at < sizeof text)
            at +=
                (size_t)snprintf(text + at, sizeof text - at, "%s%u %s", at ? ", " : "", counts[o], bw_opcode_name(o));
    }
    row("", "  %u instructions: %s", program.header->instruction_count, text);
    row("", "  formats %s", bw_cmd_formats(program.needs.formats, formats, sizeof formats));
    row("", "  %s of constants, %s of activations an image", bw_cli_bytes(program.header->const_bytes, constants),
        bw_cli_bytes(program.header->act_bytes, act));
}

static void print_stages(const bw_package *pkg, const json_t *stages)
{
    for (size_t i = 0; i < json_array_size(stages); i++) {
        const json_t *stage = json_array_get(stages, i);
        int device = strcmp(text_of(stage, "kind"), "device") == 0;
        const json_t *in = json_object_get(stage, "inputs"), *out = json_object_get(stage, "outputs");
        const json_t *first = json_array_get(in, 0), *last = json_array_get(out, 0);
        row(i ? "" : "stages", "%zu on the %s: %s%s -> %s%s", i, device ? "accelerator" : "CPU",
            device                     ? text_of(first, "name")
            : json_string_value(first) ? json_string_value(first)
                                       : "-",
            json_array_size(in) > 1 ? ", ..." : "",
            device                    ? text_of(last, "name")
            : json_string_value(last) ? json_string_value(last)
                                      : "-",
            json_array_size(out) > 1 ? ", ..." : "");
        if (device)
            print_program(pkg, stage);
    }
}

static void print_quality(const json_t *q)
{
    const json_t *accuracy = json_object_get(q, "accuracy"), *outputs = json_object_get(q, "outputs");
    if (json_is_object(accuracy))
        row("quality", "top-1 %.2f %%, float %.2f %% (%" JSON_INTEGER_FORMAT " samples of %s)",
            100 * json_number_value(json_object_get(accuracy, "quantized_top1")),
            100 * json_number_value(json_object_get(accuracy, "float_top1")),
            json_integer_value(json_object_get(q, "samples")), text_of(q, "data"));
    for (size_t i = 0; i < json_array_size(outputs); i++) {
        const json_t *o = json_array_get(outputs, i);
        const json_t *sqnr = json_object_get(o, "sqnr_db"), *agree = json_object_get(o, "top1_agreement");
        char ratio[64] = "exact", same[64] = "";
        if (json_is_number(sqnr))
            snprintf(ratio, sizeof ratio, "%.1f dB against fp32", json_number_value(sqnr));
        if (json_is_number(agree))
            snprintf(same, sizeof same, ", same top-1 for %.1f %%", 100 * json_number_value(agree));
        row(i || accuracy ? "" : "quality", "%s: %s%s", text_of(o, "name"), ratio, same);
    }
}

static void print_sections(const bw_package *pkg)
{
    for (size_t i = 0; i < bw_package_section_count(pkg); i++) {
        const char *name = bw_package_section_name(pkg, i);
        const json_t *entry =
            json_array_get(json_object_get(bw_package_manifest(pkg), "sections"), i); /* same order, checked */
        const void *bytes;
        size_t size = 0;
        char buf[32];
        (void)bw_package_section(pkg, name, &bytes, &size, NULL);
        row(i ? "" : "sections", "%-26s %9s  sha256 %.16s...", name, bw_cli_bytes(size, buf), text_of(entry, "sha256"));
    }
}

static void print_package(const bw_package *pkg)
{
    const json_t *m = bw_package_manifest(pkg), *model = json_object_get(m, "model");
    const json_t *from = json_object_get(m, "provenance"), *labels = json_object_get(m, "labels");
    char size[32];
    row("package", "%s  %s", bw_package_path(pkg), bw_cli_bytes(bw_package_size(pkg), size));
    row("model", "%s version %s", text_of(model, "name"), text_of(model, "version"));
    print_ios("inputs", json_object_get(m, "inputs"));
    print_ios("outputs", json_object_get(m, "outputs"));
    print_preprocess(json_object_get(m, "preprocess"));
    if (json_array_size(labels))
        row("labels", "%zu: %s, ...", json_array_size(labels), json_string_value(json_array_get(labels, 0)));
    print_numerics(json_object_get(m, "numerics"));
    print_stages(pkg, json_object_get(m, "stages"));
    print_quality(json_object_get(m, "quality"));
    if (json_is_object(from)) {
        row("from", "%s  sha256 %s", text_of(from, "source_file"), text_of(from, "source_sha256"));
        row("", "by %s", text_of(from, "tool"));
    }
    print_sections(pkg);
}

static bw_status verify(const bw_package *pkg, bw_error *err)
{
    bw_plan *plan = calloc(1, sizeof *plan);
    if (!plan)
        return bw_fail(err, BW_NO_MEMORY, "no memory");
    bw_status status = bw_plan_read(pkg, plan, err);
    for (int i = 0; i < plan->stage_count && !status; i++) {
        const bw_plan_stage *s = &plan->stages[i];
        bw_program program;
        bw_executor *executor = NULL;
        if (s->device) {
            status = bw_program_parse(s->program, s->program_size, &program, err);
            if (!status)
                status = bw_program_check_constants(&program, s->constants, s->constants_size, err);
            if (!status)
                status = bw_plan_check_program(plan, i, &program, err);
        } else {
            status = bw_executor_create(s->graph, &executor, err);
            bw_executor_destroy(executor);
        }
        if (status)
            (void)bw_fail_context(err, status, "stage %d", i);
    }
    bw_plan_free(plan);
    free(plan);
    return status ? bw_fail_context(err, status, "%s", bw_package_path(pkg)) : BW_OK;
}

int bw_cmd_inspect(int argc, char **argv)
{
    static const struct option options[] = {{"json", no_argument, NULL, 'j'},
                                            {"verify", no_argument, NULL, 'v'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    int json = 0, check = 0;
    for (int c; (c = bw_cmd_option(argc, argv, options, help)) != BW_CMD_END;) {
        if (c < 0)
            return c == BW_CMD_HELP ? BW_EXIT_OK : BW_EXIT_USAGE;
        json |= c == 'j';
        check |= c == 'v';
    }
    if (optind + 1 != argc)
        return bw_cli_usage("inspect", "expected one package, got %d", argc - optind);
    bw_error err;
    bw_package *pkg;
    bw_status status = bw_package_open(argv[optind], &pkg, &err);
    if (!status && check)
        status = verify(pkg, &err);
    if (!status && json) {
        json_dumpf(bw_package_manifest(pkg), stdout, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(15));
        putchar('\n');
    } else if (!status) {
        print_package(pkg);
        if (check)
            row("verified", "every graph, program and constant");
    }
    bw_package_close(pkg);
    return status ? bw_cli_fail("inspect", &err) : BW_EXIT_OK;
}
