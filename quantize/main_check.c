/* SPDX-License-Identifier: Apache-2.0 */
/* blockwave-check: what a model is, what would run where, and what it would cost. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/cli.h"
#include "quantize/import.h"
#include "quantize/passes.h"
#include "quantize/survey.h"

static const char help[] =
    "usage: blockwave check MODEL.onnx [--bind NAME=VALUE]... [--layers] [--json]\n"
    "\n"
    "Says, before anything is quantized, what a network is, what would run on the accelerator and\n"
    "what on the CPU, and how large its package would be in each format.\n"
    "\n"
    "  --bind NAME=VALUE  size of a dynamic dimension, by its symbol or by its place (input:2)\n"
    "  --layers           list every node with its shape and where it runs\n"
    "  --json             the same as a JSON object\n"
    "  --help, --version\n"
    "\n"
    "exit status: 0 the model can be quantized, 1 it cannot (one line says why), 2 wrong usage\n";

typedef struct options {
    const char *path;
    bw_binding *bindings;
    size_t binding_count;
    int json, layers;
} options;

typedef struct report {
    const options *o;
    bw_import_info info;
    bw_graph *g;
    int imported_nodes;
    bw_survey survey;
} report;

/* --- options ---------------------------------------------------------------------------------------------------- */

static int parse_binding(char *text, bw_binding *b)
{
    char *equals = strrchr(text, '='), *end;
    if (!equals || equals == text)
        return 0;
    errno = 0;
    b->value = strtoll(equals + 1, &end, 10);
    if (errno || !equals[1] || *end || b->value < 1)
        return 0;
    *equals = 0;
    b->name = text;
    return 1;
}

/* -1: go on; else the exit status. */
static int parse_options(int argc, char **argv, options *o)
{
    static const struct option longs[] = {
        {"bind", required_argument, NULL, 'b'}, {"json", no_argument, NULL, 'j'},    {"layers", no_argument, NULL, 'l'},
        {"help", no_argument, NULL, 'h'},       {"version", no_argument, NULL, 'V'}, {0},
    };
    o->bindings = calloc((size_t)argc + 1, sizeof *o->bindings);
    if (!o->bindings) {
        fputs("blockwave check: out of memory\n", stderr);
        return BW_EXIT_FAILURE;
    }
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, ":h", longs, NULL)) != -1;) {
        switch (c) {
        case 'b':
            if (!parse_binding(optarg, &o->bindings[o->binding_count]))
                return bw_cli_usage("check", "--bind %s: expected NAME=VALUE with a value of at least 1", optarg);
            o->binding_count++;
            break;
        case 'j':
            o->json = 1;
            break;
        case 'l':
            o->layers = 1;
            break;
        case 'h':
            fputs(help, stdout);
            return BW_EXIT_OK;
        case 'V':
            puts("blockwave " BW_VERSION);
            return BW_EXIT_OK;
        case ':':
            return bw_cli_usage("check", "%s needs a value", argv[optind - 1]);
        default:
            return bw_cli_usage("check", "unknown option '%s'", argv[optind - 1]);
        }
    }
    if (argc - optind != 1)
        return bw_cli_usage("check", "%d models given, expected one", argc - optind);
    o->path = argv[optind];
    return -1;
}

/* --- text ------------------------------------------------------------------------------------------------------- */

/* A name from the model, without control characters: it must not break a line or talk to the terminal. */
static const char *clean(const char *name, char buf[256])
{
    size_t i = 0;
    for (; name[i] && i < 255; i++)
        buf[i] = (unsigned char)name[i] < 0x20 || name[i] == 0x7f ? '?' : name[i];
    buf[i] = 0;
    return buf;
}

static const char *shape_text(const bw_value *v, char buf[160])
{
    size_t at = 0;
    buf[at++] = '[';
    for (int i = 0; i < v->rank && at < 140; i++) {
        const char *comma = i ? ", " : "";
        if (v->dims[i] < 0)
            at += (size_t)snprintf(buf + at, 160 - at, "%s%s", comma, i ? "?" : "N");
        else
            at += (size_t)snprintf(buf + at, 160 - at, "%s%" PRId64, comma, v->dims[i]);
    }
    snprintf(buf + at, 160 - at, "]");
    return buf;
}

/* 40.8 M */
static const char *count_text(uint64_t n, char buf[32])
{
    static const char *const units[] = {"", " k", " M", " G", " T", " P", " E"};
    double v = (double)n;
    int u = 0;
    for (; v >= 1000 && u < 6; u++)
        v /= 1000;
    snprintf(buf, 32, u ? "%.*f%s" : "%.*f", u ? (v < 10 ? 2 : v < 100 ? 1 : 0) : 0, v, units[u]);
    return buf;
}

static void print_values(const bw_graph *g, const char *label, const int *ids, int count)
{
    char shape[160], name[256];
    for (int i = 0; i < count; i++)
        printf("%-12s%s  %s %s\n", i ? "" : label, clean(g->values[ids[i]].name, name),
               bw_dtype_name(g->values[ids[i]].dtype), shape_text(&g->values[ids[i]], shape));
}

static void print_layers(const bw_graph *g, const bw_survey *s)
{
    char shape[160], macs[32], name[256];
    printf("\n%-12s %-20s %-22s %9s  %s\n", "where", "operator", "output", "MACs", "node");
    for (int i = 0; i < g->node_count; i++) {
        const bw_node *n = &g->nodes[i];
        printf("%-12s %-20s %-22s %9s  %s\n", s->device[i] ? "accelerator" : "CPU", n->op,
               shape_text(&g->values[n->outputs[0]], shape), count_text(bw_survey_macs(g, i), macs),
               clean(n->name, name));
    }
}

/* Every format that weights may have, with its default block. */
static const bw_format_traits *weight_format(int index)
{
    int seen = 0;
    for (int f = BW_FORMAT_MSFP11; f < BW_FORMAT_LIMIT; f++) {
        const bw_format_traits *t = bw_format_get((bw_format)f);
        if (bw_format_is_block(t) && seen++ == index)
            return t;
    }
    return NULL;
}

static void print_text(const report *r)
{
    char a[32], b[32], producer[256];
    const bw_graph *g = r->g;
    const bw_survey *s = &r->survey;
    const char *base = strrchr(r->o->path, '/');
    printf("%-12s%s (opset %" PRId64 "%s%s)\n", "model", base ? base + 1 : r->o->path, r->info.opset,
           r->info.producer[0] ? ", " : "", clean(r->info.producer, producer));
    print_values(g, "inputs", g->inputs, g->input_count);
    print_values(g, "outputs", g->outputs, g->output_count);
    printf("%-12s%" PRIu64 " (%s in fp32)\n", "parameters", s->parameters, bw_cli_bytes(s->parameters * 4, a));
    printf("%-12s%s multiply-adds per image, %.1f %% of them on the accelerator\n", "work", count_text(s->macs, a),
           s->macs ? 100.0 * (double)s->device_macs / (double)s->macs : 0.0);
    printf("%-12s%d imported, %d after the passes\n", "nodes", r->imported_nodes, g->node_count);
    if (r->o->layers)
        print_layers(g, s);
    printf("\n%-20s %12s %6s %10s\n", "operator", "accelerator", "CPU", "MACs");
    for (int i = 0; i < s->op_count; i++)
        printf("%-20s %12d %6d %10s\n", s->ops[i].op, s->ops[i].device, s->ops[i].cpu, count_text(s->ops[i].macs, b));
    printf("\n%-20s %12s %10s\n", "format", "package", "of fp32");
    const bw_format_traits *t;
    for (int i = 0; (t = weight_format(i)); i++) {
        uint64_t bytes = bw_survey_package_bytes(g, s, t, t->block);
        printf("%-20s %12s %8.1f %%\n", t->name, bw_cli_bytes(bytes, a),
               s->parameters ? 100.0 * (double)bytes / (4.0 * (double)s->parameters) : 0.0);
    }
}

/* --- JSON ------------------------------------------------------------------------------------------------------- */

static json_t *json_shape(const bw_value *v)
{
    json_t *list = json_array();
    for (int i = 0; i < v->rank; i++)
        json_array_append_new(list, json_integer(v->dims[i]));
    return list;
}

static json_t *json_values(const bw_graph *g, const int *ids, int count)
{
    json_t *list = json_array();
    for (int i = 0; i < count; i++) {
        const bw_value *v = &g->values[ids[i]];
        json_t *o = json_object();
        json_object_set_new(o, "name", json_string_nocheck(v->name));
        json_object_set_new(o, "dtype", json_string(bw_dtype_name(v->dtype)));
        json_object_set_new(o, "shape", json_shape(v));
        json_array_append_new(list, o);
    }
    return list;
}

static json_t *json_report(const report *r)
{
    const bw_graph *g = r->g;
    const bw_survey *s = &r->survey;
    json_t *o = json_object(), *ops = json_array(), *nodes = json_array(), *sizes = json_object();
    const char *base = strrchr(r->o->path, '/');
    json_object_set_new(o, "model", json_string(base ? base + 1 : r->o->path));
    json_object_set_new(o, "sha256", json_string(r->info.sha256));
    json_object_set_new(o, "opset", json_integer(r->info.opset));
    json_object_set_new(o, "producer", json_string(r->info.producer));
    json_object_set_new(o, "inputs", json_values(g, g->inputs, g->input_count));
    json_object_set_new(o, "outputs", json_values(g, g->outputs, g->output_count));
    json_object_set_new(o, "parameters", json_integer((json_int_t)s->parameters));
    json_object_set_new(o, "macs", json_integer((json_int_t)s->macs));
    json_object_set_new(o, "accelerator_macs", json_integer((json_int_t)s->device_macs));
    json_object_set_new(o, "imported_nodes", json_integer(r->imported_nodes));
    for (int i = 0; i < s->op_count; i++)
        json_array_append_new(ops,
                              json_pack("{s:s, s:i, s:i, s:I}", "operator", s->ops[i].op, "accelerator",
                                        s->ops[i].device, "cpu", s->ops[i].cpu, "macs", (json_int_t)s->ops[i].macs));
    json_object_set_new(o, "operators", ops);
    for (int i = 0; i < g->node_count; i++) {
        json_t *n = json_object();
        json_object_set_new(n, "name", json_string(g->nodes[i].name));
        json_object_set_new(n, "operator", json_string(g->nodes[i].op));
        json_object_set_new(n, "shape", json_shape(&g->values[g->nodes[i].outputs[0]]));
        json_object_set_new(n, "where", json_string(s->device[i] ? "accelerator" : "cpu"));
        json_object_set_new(n, "macs", json_integer((json_int_t)bw_survey_macs(g, i)));
        json_array_append_new(nodes, n);
    }
    json_object_set_new(o, "nodes", nodes);
    const bw_format_traits *t;
    for (int i = 0; (t = weight_format(i)); i++)
        json_object_set_new(sizes, t->name, json_integer((json_int_t)bw_survey_package_bytes(g, s, t, t->block)));
    json_object_set_new(o, "package_bytes", sizes);
    return o;
}

static int print_json(const report *r)
{
    json_t *o = json_report(r);
    char *text = o ? json_dumps(o, JSON_INDENT(2)) : NULL;
    json_decref(o);
    if (!text) {
        bw_error err;
        bw_fail(&err, BW_INTERNAL, "%s: the report cannot be written as JSON", r->o->path);
        return bw_cli_fail("check", &err);
    }
    puts(text);
    free(text);
    return BW_EXIT_OK;
}

/* --- main ------------------------------------------------------------------------------------------------------- */

static int check(const options *o)
{
    bw_error err = {0};
    report r = {.o = o};
    if (bw_onnx_import(o->path, o->bindings, o->binding_count, &r.g, &r.info, &err))
        return bw_cli_fail("check", &err);
    r.imported_nodes = r.g->node_count;
    int status = BW_EXIT_OK;
    if (bw_passes_run(r.g, &err) || bw_survey_graph(r.g, &r.survey, &err)) {
        bw_fail_context(&err, err.status, "%s", o->path);
        status = bw_cli_fail("check", &err);
    } else {
        if (o->json)
            status = print_json(&r);
        else
            print_text(&r);
        if (!r.survey.device_macs && !status) {
            bw_fail(&err, BW_UNSUPPORTED,
                    "%s: nothing of this network can run on the accelerator: it needs Conv, or "
                    "Gemm and MatMul with constant weights",
                    o->path);
            status = bw_cli_fail("check", &err);
        }
    }
    bw_survey_free(&r.survey);
    bw_graph_free(r.g);
    if (fflush(stdout) || ferror(stdout)) {
        fprintf(stderr, "blockwave check: cannot write the report: %s\n", strerror(errno));
        status = BW_EXIT_FAILURE;
    }
    return status;
}

int main(int argc, char **argv)
{
    options o = {0};
    int status = parse_options(argc, argv, &o);
    if (status < 0)
        status = check(&o);
    free(o.bindings);
    return status;
}
