/* SPDX-License-Identifier: Apache-2.0 */
/* blockwave-bench-client: a load generator for scoring services. */
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "host/cli.h"
#include "service/client/load.h"
#include "service/client/report.h"
#include "service/client/request.h"
#include "service/client/shared.h"
#include "service/grpc_transport.h"

#define COMMAND "bench-client"

static const char usage[] =
    "usage: blockwave bench-client ADDR:PORT [options]\n"
    "\n"
    "Sends one request again and again to a scoring service and reports latency, throughput and errors.\n"
    "\n"
    "  --model NAME            the model to score with (default: the server's only one)\n"
    "  --model-version V       its version (default: the highest)\n"
    "  --protocol P            kserve (raw contents), kserve-typed, predict (default kserve)\n"
    "  --input [NAME=]SOURCE   random, zeros, FILE.npy, or a PNG or JPEG file (default random)\n"
    "  --datatype D            what inputs are sent as: FP32 (default), FP16, BF16, UINT8, INT8;\n"
    "                          with kserve and predict\n"
    "  --shape [NAME=]D,D,...  shape of an input; with a shape for every input the server's\n"
    "                          metadata are not asked for\n"
    "  --shared-memory         pass inputs and outputs in POSIX shared memory, to a server on this host\n"
    "                          that was started with --shared-memory\n"
    "  --batch N               samples in a request, 1..4096 (default 1)\n"
    "  --connections N         1..1024 (default 1)\n"
    "  --outstanding N         requests on their way on each connection, 1..4096 (default 1;\n"
    "                          with --rate the most allowed, default 1024)\n"
    "  --rate R                open loop: R requests a second, whatever the answers; latencies\n"
    "                          count from when a request was due\n"
    "  --arrival A             of the open loop: poisson or fixed (default poisson)\n"
    "  --warmup S              seconds before measuring, 0..3600 (default 1)\n"
    "  --duration S            seconds to measure, 0.1..86400 (default 10)\n"
    "  --deadline-ms N         of each request; 0: none (default 0)\n"
    "  --connect-seconds S     patience with a server that is not there yet (default 5)\n"
    "  --seed N                of random input and arrival (default 1)\n"
    "  --json                  print a JSON object\n"
    "  --help, --version\n"
    "\n"
    "Ctrl-C ends the run and prints the figures so far. Exit code 1 if no request was answered well.\n";

typedef struct arguments {
    bw_load_options load;
    const char *model, *version;
    bw_bench_protocol protocol;
    bw_element element; /* of inputs that are no pictures */
    const char *inputs[BW_MODEL_IO_MAX], *shapes[BW_MODEL_IO_MAX];
    size_t input_count, shape_count;
    unsigned batch;
    double connect_seconds;
    int shared_memory, json, done;
} arguments;

enum {
    OPT_MODEL = 256,
    OPT_MODEL_VERSION,
    OPT_PROTOCOL,
    OPT_INPUT,
    OPT_DATATYPE,
    OPT_SHAPE,
    OPT_SHARED_MEMORY,
    OPT_BATCH,
    OPT_CONNECTIONS,
    OPT_OUTSTANDING,
    OPT_RATE,
    OPT_ARRIVAL,
    OPT_WARMUP,
    OPT_DURATION,
    OPT_DEADLINE,
    OPT_CONNECT,
    OPT_SEED,
    OPT_JSON,
    OPT_HELP,
    OPT_VERSION
};

static const struct option options[] = {
    {"model", required_argument, NULL, OPT_MODEL},
    {"model-version", required_argument, NULL, OPT_MODEL_VERSION},
    {"protocol", required_argument, NULL, OPT_PROTOCOL},
    {"input", required_argument, NULL, OPT_INPUT},
    {"datatype", required_argument, NULL, OPT_DATATYPE},
    {"shape", required_argument, NULL, OPT_SHAPE},
    {"shared-memory", no_argument, NULL, OPT_SHARED_MEMORY},
    {"batch", required_argument, NULL, OPT_BATCH},
    {"connections", required_argument, NULL, OPT_CONNECTIONS},
    {"outstanding", required_argument, NULL, OPT_OUTSTANDING},
    {"rate", required_argument, NULL, OPT_RATE},
    {"arrival", required_argument, NULL, OPT_ARRIVAL},
    {"warmup", required_argument, NULL, OPT_WARMUP},
    {"duration", required_argument, NULL, OPT_DURATION},
    {"deadline-ms", required_argument, NULL, OPT_DEADLINE},
    {"connect-seconds", required_argument, NULL, OPT_CONNECT},
    {"seed", required_argument, NULL, OPT_SEED},
    {"json", no_argument, NULL, OPT_JSON},
    {"help", no_argument, NULL, OPT_HELP},
    {"version", no_argument, NULL, OPT_VERSION},
    {NULL, 0, NULL, 0},
};

/* --- arguments ---------------------------------------------------------------------------------------------------- */

static int set_whole(unsigned *to, const char *name, const char *text, unsigned low, unsigned high)
{
    char *end;
    errno = 0;
    unsigned long value = strtoul(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end || errno || value < low || value > high)
        return bw_cli_usage(COMMAND, "--%s %s: expected a whole number of %u..%u", name, text, low, high);
    *to = (unsigned)value;
    return 0;
}

static int set_real(double *to, const char *name, const char *text, double low, double high)
{
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    if (end == text || *end || errno || !(value >= low && value <= high))
        return bw_cli_usage(COMMAND, "--%s %s: expected a number of %g..%g", name, text, low, high);
    *to = value;
    return 0;
}

static int set_protocol(arguments *a, const char *text)
{
    for (int p = BW_BENCH_KSERVE; p <= BW_BENCH_PREDICT; p++) {
        if (!strcmp(text, bw_bench_protocol_name((bw_bench_protocol)p))) {
            a->protocol = (bw_bench_protocol)p;
            return 0;
        }
    }
    return bw_cli_usage(COMMAND, "--protocol %s: expected kserve, kserve-typed or predict", text);
}

static int add_text(const char **texts, size_t *count, const char *name)
{
    if (*count == BW_MODEL_IO_MAX)
        return bw_cli_usage(COMMAND, "--%s is given more than %d times", name, BW_MODEL_IO_MAX);
    texts[(*count)++] = optarg;
    return 0;
}

static int set_option(arguments *a, int opt)
{
    bw_load_options *o = &a->load;
    unsigned n = 0;
    int code;
    switch (opt) {
    case OPT_MODEL:
        a->model = optarg;
        return 0;
    case OPT_MODEL_VERSION:
        a->version = optarg;
        return 0;
    case OPT_PROTOCOL:
        return set_protocol(a, optarg);
    case OPT_INPUT:
        return add_text(a->inputs, &a->input_count, "input");
    case OPT_SHAPE:
        return add_text(a->shapes, &a->shape_count, "shape");
    case OPT_SHARED_MEMORY:
        a->shared_memory = 1;
        return 0;
    case OPT_BATCH:
        return set_whole(&a->batch, "batch", optarg, 1, 4096);
    case OPT_CONNECTIONS:
        return set_whole(&o->connections, "connections", optarg, 1, 1024);
    case OPT_OUTSTANDING:
        return set_whole(&o->outstanding, "outstanding", optarg, 1, 4096);
    case OPT_RATE:
        return set_real(&o->rate, "rate", optarg, 0.001, 1e6);
    case OPT_ARRIVAL:
        o->poisson = !strcmp(optarg, "poisson");
        return o->poisson || !strcmp(optarg, "fixed")
                   ? 0
                   : bw_cli_usage(COMMAND, "--arrival %s: expected poisson or fixed", optarg);
    case OPT_WARMUP:
        return set_real(&o->warmup_seconds, "warmup", optarg, 0, 3600);
    case OPT_DURATION:
        return set_real(&o->seconds, "duration", optarg, 0.1, 86400);
    case OPT_DEADLINE:
        code = set_whole(&n, "deadline-ms", optarg, 0, 86400000);
        o->deadline_seconds = n * 1e-3;
        return code;
    case OPT_CONNECT:
        return set_real(&a->connect_seconds, "connect-seconds", optarg, 0.1, 3600);
    case OPT_SEED:
        code = set_whole(&n, "seed", optarg, 0, 1000000000);
        o->seed = n;
        return code;
    case OPT_DATATYPE:
        a->element = bw_bench_datatype(optarg);
        return a->element ? 0
                          : bw_cli_usage(COMMAND, "--datatype %.40s: expected FP32, FP16, BF16, UINT8 or INT8", optarg);
    case OPT_JSON:
        a->json = 1;
        return 0;
    case OPT_HELP:
        fputs(usage, stdout);
        a->done = 1;
        return 0;
    case OPT_VERSION:
        puts("blockwave-bench-client " BW_VERSION);
        a->done = 1;
        return 0;
    default:
        return bw_cli_usage(COMMAND, "unknown option");
    }
}

static int parse(arguments *a, int argc, char **argv)
{
    *a = (arguments){.model = "", .version = "", .element = BW_ELEMENT_F32, .batch = 1, .connect_seconds = 5};
    a->load = (bw_load_options){.connections = 1, .poisson = 1, .warmup_seconds = 1, .seconds = 10, .seed = 1};
    opterr = 0;
    for (int opt; !a->done && (opt = getopt_long(argc, argv, ":", options, NULL)) != -1;) {
        if (opt == ':')
            return bw_cli_usage(COMMAND, "%s needs a value", argv[optind - 1]);
        if (opt == '?')
            return bw_cli_usage(COMMAND, "unknown option '%s'", argv[optind - 1]);
        int code = set_option(a, opt);
        if (code)
            return code;
    }
    if (a->done)
        return 0;
    if (argc - optind != 1)
        return argc == optind ? bw_cli_usage(COMMAND, "no address given: name a server as ADDR:PORT")
                              : bw_cli_usage(COMMAND, "one address expected, got '%s' too", argv[optind + 1]);
    a->load.address = argv[optind];
    if (strlen(a->model) > 255)
        return bw_cli_usage(COMMAND, "--model %.40s...: a name of at most 255 bytes", a->model);
    if (a->json && !(bw_bench_is_utf8(a->load.address) && bw_bench_is_utf8(a->model) && bw_bench_is_utf8(a->version) &&
                     (!a->input_count || bw_bench_is_utf8(a->inputs[0]))))
        return bw_cli_usage(COMMAND, "--json: address, model, version and input must be UTF-8");
    if (a->element != BW_ELEMENT_F32 && a->protocol == BW_BENCH_KSERVE_TYPED)
        return bw_cli_usage(COMMAND, "--datatype %s with --protocol kserve-typed: only kserve and predict have it",
                            bw_element_get(a->element)->kserve);
    if (a->shared_memory && a->protocol != BW_BENCH_KSERVE)
        return bw_cli_usage(COMMAND, "--shared-memory with --protocol %s: only kserve has it",
                            bw_bench_protocol_name(a->protocol));
    if (!a->load.outstanding)
        a->load.outstanding = a->load.rate > 0 ? 1024 : 1;
    if ((uint64_t)a->load.connections * a->load.outstanding > 65536)
        return bw_cli_usage(COMMAND, "%u connections x %u outstanding: at most 65536 together", a->load.connections,
                            a->load.outstanding);
    return 0;
}

/* The value of "[NAME=]VALUE" for an input; a value without a name goes to the only input. */
static const char *value_for(const char *const *texts, size_t count, const char *name, size_t inputs)
{
    size_t n = strlen(name);
    for (size_t i = 0; i < count; i++) {
        if (!strncmp(texts[i], name, n) && texts[i][n] == '=')
            return texts[i] + n + 1;
        if (!strchr(texts[i], '=') && inputs == 1)
            return texts[i];
    }
    return NULL;
}

/* Every "NAME=VALUE" must name an input. */
static bw_status check_names(const char *option, const char *const *texts, size_t count, const bw_bench_input *inputs,
                             size_t input_count, bw_error *err)
{
    for (size_t i = 0; i < count; i++) {
        const char *equals = strchr(texts[i], '=');
        size_t n = equals ? (size_t)(equals - texts[i]) : 0;
        int found = !equals && input_count == 1;
        for (size_t k = 0; k < input_count && equals; k++)
            found |= strlen(inputs[k].name) == n && !strncmp(inputs[k].name, texts[i], n);
        if (!found)
            return bw_fail(err, BW_INVALID_ARGUMENT,
                           "--%s %.200s: the model has %zu inputs, the first is '%.100s': write "
                           "NAME=VALUE with the name of one of them",
                           option, texts[i], input_count, inputs[0].name);
    }
    return BW_OK;
}

/* --- the request -------------------------------------------------------------------------------------------------- */

typedef struct session {
    bw_load *load;
    bw_bench_input inputs[BW_MODEL_IO_MAX];
    size_t input_count;
    char model[256];
    void *metadata; /* the server's answer; NULL: not asked for */
    size_t metadata_size;
    bw_bytes message;
    bw_bench_shared *shared; /* NULL: not used */
} session;

/* With a shape for each input nothing is asked: also for servers that cannot tell. */
static bw_status inputs_from_shapes(const arguments *a, session *s, bw_error *err)
{
    s->input_count = a->shape_count;
    for (size_t i = 0; i < a->shape_count; i++) {
        const char *equals = strchr(a->shapes[i], '=');
        size_t n = equals ? (size_t)(equals - a->shapes[i]) : 0;
        if (n >= sizeof s->inputs[i].name)
            return bw_fail(err, BW_INVALID_ARGUMENT, "--shape %.60s...: a name of at most 255 characters",
                           a->shapes[i]);
        memcpy(s->inputs[i].name, a->shapes[i], n);
        s->inputs[i].element = BW_ELEMENT_F32;
    }
    return BW_OK;
}

static bw_status nobody_answered(const arguments *a, bw_status status, bw_error *err)
{
    return bw_fail(err, status, "%s: no server answered within %g s: start one, or wait longer with --connect-seconds",
                   a->load.address, a->connect_seconds);
}

static bw_status ask_inputs(const arguments *a, session *s, bw_error *err)
{
    bw_bytes question = {0};
    bw_status status = bw_bench_metadata_request(a->model, a->version, &question, err);
    if (!status) {
        status = bw_load_call(s->load, 0, "/inference.GRPCInferenceService/ModelMetadata",
                              question.bytes ? question.bytes : (const uint8_t *)"", question.size, a->connect_seconds,
                              &s->metadata, &s->metadata_size, err);
        if (status == BW_UNSUPPORTED)
            bw_fail(err, status, "%s does not tell its models' inputs: give --model, and --shape NAME=D,D,... for each",
                    a->load.address);
        else if (status == BW_TIMEOUT || status == BW_BUSY)
            nobody_answered(a, status, err);
        else if (status)
            bw_fail_context(err, status, "%s", a->load.address);
    }
    if (!status)
        status =
            bw_bench_inputs_from_metadata(s->metadata, s->metadata_size, s->inputs, &s->input_count, s->model, err);
    bw_bytes_free(&question);
    return status;
}

static int all_named(const arguments *a)
{
    for (size_t i = 0; i < a->shape_count; i++) {
        if (!strchr(a->shapes[i], '='))
            return 0;
    }
    return a->shape_count > 0;
}

static bw_status make_message(const arguments *a, session *s, bw_error *err)
{
    uint64_t seed = a->load.seed * 2 + 1;
    snprintf(s->model, sizeof s->model, "%s", a->model);
    bw_status status = all_named(a) ? inputs_from_shapes(a, s, err) : ask_inputs(a, s, err);
    if (!status)
        status = check_names("shape", a->shapes, a->shape_count, s->inputs, s->input_count, err);
    if (!status)
        status = check_names("input", a->inputs, a->input_count, s->inputs, s->input_count, err);
    for (size_t i = 0; i < s->input_count && !status; i++) {
        bw_bench_input *in = &s->inputs[i];
        const char *source = value_for(a->inputs, a->input_count, in->name, s->input_count);
        status =
            bw_bench_settle_shape(in, value_for(a->shapes, a->shape_count, in->name, s->input_count), a->batch, err);
        in->element = a->element;
        if (!status)
            status = bw_bench_fill(in, source ? source : "random", a->batch, &seed, err);
    }
    return status ? status
                  : bw_bench_message(a->protocol, s->model, a->version, s->inputs, s->input_count, &s->message, err);
}

/* Asks first whether the server is there and offers it: the segment then has its name for a moment only. */
static bw_status share_memory(const arguments *a, session *s, bw_error *err)
{
    bw_status status = bw_bench_shared_probe(s->load, a->connect_seconds, err);
    if (status == BW_TIMEOUT || status == BW_BUSY)
        return nobody_answered(a, status, err);
    bw_bench_shared_head head = {s->model,         a->version, s->metadata,
                                 s->metadata_size, a->batch,   a->load.connections * a->load.outstanding};
    if (!status)
        status = bw_bench_shared_open(&head, s->inputs, s->input_count, &s->shared, err);
    if (!status)
        status = bw_bench_shared_register(s->shared, s->load, 60, err);
    return status ? bw_fail_context(err, status, "%s", a->load.address) : BW_OK;
}

/* What the run sends. */
static bw_status choose_messages(arguments *a, session *s, bw_error *err)
{
    bw_status status = make_message(a, s, err);
    if (!status && a->shared_memory)
        status = share_memory(a, s, err);
    a->load.message = s->message.bytes;
    a->load.message_size = s->message.size;
    if (s->shared) {
        a->load.messages = bw_bench_shared_messages(s->shared);
        a->load.message = a->load.messages[0].bytes;
        a->load.message_size = a->load.messages[0].size;
        a->load.before = bw_bench_shared_fill;
        a->load.after = bw_bench_shared_take;
        a->load.user = s->shared;
    }
    return status;
}

/* One request on each connection: they are open before the run, and a request that is refused says why. */
static bw_status try_once(const arguments *a, session *s, bw_error *err)
{
    bw_status status = BW_OK;
    for (unsigned i = 0; i < a->load.connections && !status; i++) {
        void *reply;
        size_t size;
        if (bw_cli_interrupted())
            return bw_fail(err, BW_CANCELLED, "interrupted before the run");
        /* Without metadata this is the first call of all. */
        int first = !i && all_named(a);
        double seconds = first || a->connect_seconds > 60 ? a->connect_seconds : 60;
        if (a->load.before)
            a->load.before(a->load.user, 0);
        status =
            bw_load_call(s->load, i, a->load.path, a->load.message, a->load.message_size, seconds, &reply, &size, err);
        free(reply);
        if (first && status == BW_TIMEOUT)
            nobody_answered(a, status, err);
        else if (status)
            bw_fail_context(err, status, "%s: the first request", a->load.address);
    }
    return status;
}

/* --- main --------------------------------------------------------------------------------------------------------- */

static int report(const arguments *a, const session *s, const bw_load_figures *f)
{
    bw_report_head head = {.model = s->model,
                           .version = a->version,
                           .protocol = bw_bench_protocol_name(a->protocol),
                           .input = a->input_count ? a->inputs[0] : "random",
                           .batch = s->inputs[0].rank ? s->inputs[0].dims[0] : 1,
                           .shared_memory = a->shared_memory};
    if (s->shared)
        bw_bench_shared_bytes(s->shared, &head.shared_in, &head.shared_out);
    if (a->json) {
        json_t *root = bw_report_json(&head, &a->load, f);
        char *text = root ? json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(6)) : NULL;
        if (text)
            puts(text);
        free(text);
        json_decref(root);
        if (!text) {
            bw_error err;
            bw_fail(&err, BW_NO_MEMORY, "out of memory for the report");
            return bw_cli_fail(COMMAND, &err);
        }
    } else {
        bw_report_text(stdout, &head, &a->load, f);
    }
    if (fflush(stdout)) {
        bw_error err;
        bw_fail_errno(&err, "write", "standard output", errno);
        return bw_cli_fail(COMMAND, &err);
    }
    return f->interrupted ? BW_EXIT_INTERRUPTED : f->ok ? BW_EXIT_OK : BW_EXIT_FAILURE;
}

static int bench(arguments *a, session *s)
{
    bw_error err;
    bw_load_figures figures = {0};
    a->load.path = bw_bench_protocol_path(a->protocol);
    a->load.interrupted = bw_cli_interrupted;
    bw_status status = bw_load_connect(&a->load, &s->load, &err);
    if (!status)
        status = choose_messages(a, s, &err);
    if (!status)
        status = try_once(a, s, &err);
    if (!status)
        status = bw_load_run(s->load, &a->load, &figures, &err);
    int code = status ? bw_cli_fail(COMMAND, &err) : report(a, s, &figures);
    bw_load_figures_free(&figures);
    bw_bench_shared_close(s->shared, s->load);
    free(s->metadata);
    bw_bench_inputs_free(s->inputs, s->input_count);
    bw_load_close(s->load);
    bw_bytes_free(&s->message);
    return code;
}

int main(int argc, char **argv)
{
    bw_grpc_prepare_process();
    arguments a;
    int code = parse(&a, argc, argv);
    if (code || a.done)
        return code;
    signal(SIGPIPE, SIG_IGN);
    bw_cli_catch_interrupts();
    static session s;
    return bench(&a, &s);
}
