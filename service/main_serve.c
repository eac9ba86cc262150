/* SPDX-License-Identifier: Apache-2.0 */
/* blockwave-serve: the scoring service. */
#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "hal/base.h"
#include "host/cli.h"
#include "service/grpc_transport.h"
#include "service/server.h"
#include "service/shared_memory.h"
#include "sim/sim.h"

#define DEVICES_MAX    64
#define BITSTREAMS_MAX 64

static const char usage[] =
    "usage: blockwave serve MODEL.bw... | --models DIR [options]\n"
    "\n"
    "Serves packages over gRPC: TensorFlow Serving's Predict, KServe v2, grpc.health.v1.\n"
    "\n"
    "  --models DIR           serve every *.bw in DIR\n"
    "  --device URI           run on this device; may be repeated (default sim:)\n"
    "  --bitstream FILE[@URI] configure this device first, or every one of the file's part; may be repeated\n"
    "  --trust DIR            public keys (*.pem) that may sign bitstreams (default: the environment BW_TRUST_DIR)\n"
    "  --require-signed       refuse bitstreams that are not signed\n"
    "  --device-memory SIZE   what the models may take on each device, e.g. 800M or 4G; those not used for longest "
    "make\n"
    "                         way for others (default: the device's memory)\n"
    "  --grpc ADDR:PORT       listen here (default 127.0.0.1:50051; port 0 picks a free one), or on unix:PATH\n"
    "  --metrics ADDR:PORT    metrics for Prometheus over HTTP, at /metrics, or on unix:PATH (default: none)\n"
    "  --shared-memory[=PREFIX]\n"
    "                         let clients on this host pass tensors in POSIX shared memory: segments of the server's\n"
    "                         user, or those whose names begin with PREFIX (default: none)\n"
    "  --port-file FILE       write the port there once the server is ready\n"
    "  --max-message-mb N     largest request, 1..1024 (default 64)\n"
    "  --queue N              requests that may wait, 0..100000 (default 256)\n"
    "  --workers N            requests worked on at once, 1..1024 (default: CPUs + 1)\n"
    "  --timeout-seconds N    end a request after this, 1..3600 (default 60)\n"
    "  --upload-seconds N     refuse a request that takes longer to arrive, 1..3600 (default 60)\n"
    "  --drain-seconds N      time for requests in flight after SIGTERM, 0..3600 (default 30)\n"
    "  --lame-duck-ms N       go on answering so long after SIGTERM, 0..60000 (default 1000)\n"
    "  --max-connections N    1..1000000 (default 10000)\n"
    "  --idle-seconds N       close a connection without traffic and calls, 1..86400 (default 600)\n"
    "  --quiet                errors and warnings only\n"
    "  --help, --version\n";

/* --- signals: blocked everywhere, asked for here -------------------------------------------------------------------
 */

static sigset_t end_signals;

static void block_signals(void)
{
    sigemptyset(&end_signals);
    sigaddset(&end_signals, SIGINT);
    sigaddset(&end_signals, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &end_signals, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a limit on files, met in shared memory, is the request's error */
}

/* One signal less pending: its number (also into *user), or 0. */
static int take_signal(void *user)
{
    struct timespec none = {0, 0};
    int number = sigtimedwait(&end_signals, NULL, &none);
    if (number > 0 && user)
        *(int *)user = number;
    return number > 0 ? number : 0;
}

static int wait_signal(void)
{
    int number;
    do
        number = sigwaitinfo(&end_signals, NULL);
    while (number < 0 && errno == EINTR);
    return number;
}

/* --- arguments ---------------------------------------------------------------------------------------------------- */

typedef struct arguments {
    bw_server_options server;
    const char *port_file;
    const char *devices[DEVICES_MAX], *bitstreams[BITSTREAMS_MAX];
    int quiet, done;
} arguments;

enum {
    OPT_MODELS = 256,
    OPT_DEVICE,
    OPT_BITSTREAM,
    OPT_TRUST,
    OPT_REQUIRE_SIGNED,
    OPT_DEVICE_MEMORY,
    OPT_GRPC,
    OPT_METRICS,
    OPT_PORT_FILE,
    OPT_MESSAGE,
    OPT_QUEUE,
    OPT_WORKERS,
    OPT_TIMEOUT,
    OPT_UPLOAD,
    OPT_DRAIN,
    OPT_LAME_DUCK,
    OPT_CONNECTIONS,
    OPT_IDLE,
    OPT_SHARED_MEMORY,
    OPT_QUIET,
    OPT_HELP,
    OPT_VERSION
};

static const struct option options[] = {
    {"models", required_argument, NULL, OPT_MODELS},
    {"device", required_argument, NULL, OPT_DEVICE},
    {"bitstream", required_argument, NULL, OPT_BITSTREAM},
    {"trust", required_argument, NULL, OPT_TRUST},
    {"require-signed", no_argument, NULL, OPT_REQUIRE_SIGNED},
    {"device-memory", required_argument, NULL, OPT_DEVICE_MEMORY},
    {"grpc", required_argument, NULL, OPT_GRPC},
    {"metrics", required_argument, NULL, OPT_METRICS},
    {"port-file", required_argument, NULL, OPT_PORT_FILE},
    {"max-message-mb", required_argument, NULL, OPT_MESSAGE},
    {"queue", required_argument, NULL, OPT_QUEUE},
    {"workers", required_argument, NULL, OPT_WORKERS},
    {"timeout-seconds", required_argument, NULL, OPT_TIMEOUT},
    {"upload-seconds", required_argument, NULL, OPT_UPLOAD},
    {"drain-seconds", required_argument, NULL, OPT_DRAIN},
    {"lame-duck-ms", required_argument, NULL, OPT_LAME_DUCK},
    {"max-connections", required_argument, NULL, OPT_CONNECTIONS},
    {"idle-seconds", required_argument, NULL, OPT_IDLE},
    {"shared-memory", optional_argument, NULL, OPT_SHARED_MEMORY},
    {"quiet", no_argument, NULL, OPT_QUIET},
    {"help", no_argument, NULL, OPT_HELP},
    {"version", no_argument, NULL, OPT_VERSION},
    {NULL, 0, NULL, 0},
};

static int set_number(unsigned *to, const char *name, const char *text, unsigned low, unsigned high)
{
    char *end;
    errno = 0;
    unsigned long value = strtoul(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end || errno || value < low || value > high)
        return bw_cli_usage("serve", "--%s %s: expected a whole number of %u..%u", name, text, low, high);
    *to = (unsigned)value;
    return 0;
}

/* Bytes, with K, M or G for powers of 1024. */
static int set_size(uint64_t *to, const char *name, const char *text)
{
    static const char units[] = "KMG";
    char *end;
    errno = 0;
    const unsigned long long value = strtoull(text, &end, 10);
    const char *unit = *end ? strchr(units, *end) : NULL;
    const unsigned shift = unit ? 10 * (unsigned)(unit - units + 1) : 0;
    if (text[0] < '0' || text[0] > '9' || errno || (*end && (!unit || end[1])) || value < 1 ||
        value > UINT64_MAX >> 1 >> shift)
        return bw_cli_usage("serve", "--%s %s: expected a size such as 800M or 4G", name, text);
    *to = (uint64_t)value << shift;
    return 0;
}

static int set_option(arguments *a, int opt)
{
    bw_server_options *s = &a->server;
    unsigned connections = 0;
    int code;
    switch (opt) {
    case OPT_MODELS:
        s->models_dir = optarg;
        return 0;
    case OPT_DEVICE:
        if (s->devices != a->devices)
            s->device_count = 0;
        if (s->device_count == DEVICES_MAX)
            return bw_cli_usage("serve", "more than %d devices", DEVICES_MAX);
        s->devices = a->devices;
        a->devices[s->device_count++] = optarg;
        return 0;
    case OPT_BITSTREAM:
        if (s->bitstream_count == BITSTREAMS_MAX)
            return bw_cli_usage("serve", "more than %d bitstreams", BITSTREAMS_MAX);
        s->bitstreams = a->bitstreams;
        a->bitstreams[s->bitstream_count++] = optarg;
        return 0;
    case OPT_TRUST:
        s->trust_dir = optarg;
        return 0;
    case OPT_REQUIRE_SIGNED:
        s->require_signed = 1;
        return 0;
    case OPT_DEVICE_MEMORY:
        return set_size(&s->device_memory, "device-memory", optarg);
    case OPT_GRPC:
        s->grpc_address = optarg;
        return 0;
    case OPT_METRICS:
        s->metrics_address = optarg;
        return 0;
    case OPT_PORT_FILE:
        a->port_file = optarg;
        return 0;
    case OPT_MESSAGE:
        return set_number(&s->max_message_mb, "max-message-mb", optarg, 1, 1024);
    case OPT_QUEUE:
        return set_number(&s->queue, "queue", optarg, 0, 100000);
    case OPT_WORKERS:
        return set_number(&s->workers, "workers", optarg, 1, 1024);
    case OPT_TIMEOUT:
        return set_number(&s->timeout_seconds, "timeout-seconds", optarg, 1, 3600);
    case OPT_UPLOAD:
        return set_number(&s->upload_seconds, "upload-seconds", optarg, 1, 3600);
    case OPT_DRAIN:
        return set_number(&s->drain_seconds, "drain-seconds", optarg, 0, 3600);
    case OPT_LAME_DUCK:
        return set_number(&s->lame_duck_ms, "lame-duck-ms", optarg, 0, 60000);
    case OPT_CONNECTIONS:
        code = set_number(&connections, "max-connections", optarg, 1, 1000000);
        s->max_connections = (int)connections;
        return code;
    case OPT_IDLE:
        return set_number(&s->idle_seconds, "idle-seconds", optarg, 1, 86400);
    case OPT_SHARED_MEMORY:
        s->shared_memory = 1;
        s->shared_memory_prefix = optarg;
        if (optarg && (!optarg[strspn(optarg, "/")] || strchr(optarg + 1, '/') || strlen(optarg) > BW_SHARED_NAME_MAX))
            return bw_cli_usage(
                "serve",
                "--shared-memory=%.60s: expected 1 to %d bytes with no '/' but one before them, that names "
                "of segments begin with",
                optarg, BW_SHARED_NAME_MAX);
        return 0;
    case OPT_QUIET:
        a->quiet = 1;
        return 0;
    case OPT_HELP:
        fputs(usage, stdout);
        a->done = 1;
        return 0;
    case OPT_VERSION:
        puts("blockwave-serve " BW_VERSION);
        a->done = 1;
        return 0;
    default:
        return bw_cli_usage("serve", "unknown option");
    }
}

static int parse(arguments *a, int argc, char **argv)
{
    bw_server_defaults(&a->server);
    const char *trust = getenv("BW_TRUST_DIR");
    a->server.trust_dir = trust && *trust ? trust : NULL;
    opterr = 0;
    for (int opt; !a->done && (opt = getopt_long(argc, argv, ":", options, NULL)) != -1;) {
        if (opt == ':')
            return bw_cli_usage("serve", "%s needs a value", argv[optind - 1]);
        if (opt == '?')
            return bw_cli_usage("serve", "unknown option '%s'", argv[optind - 1]);
        int code = set_option(a, opt);
        if (code)
            return code;
    }
    a->server.packages = (const char *const *)(argv + optind);
    a->server.package_count = (size_t)(argc - optind);
    if (!a->done && a->server.require_signed && !a->server.bitstream_count)
        return bw_cli_usage("serve", "--require-signed without --bitstream: there is no file to verify");
    if (!a->done && !a->server.package_count && !a->server.models_dir)
        return bw_cli_usage("serve", "no model given: name packages (*.bw), or a directory with --models");
    return 0;
}

/* --- main --------------------------------------------------------------------------------------------------------- */

/* Descriptors for models, devices and libraries. */
#define RESERVE 128

/* As many descriptors as allowed; fewer connections, and regions of shared memory, if that is not enough for them. */
static void fit_descriptors(bw_server_options *o)
{
    struct rlimit limit;
    rlim_t regions = o->shared_memory ? o->shared_memory_regions : 0;
    if (!getrlimit(RLIMIT_NOFILE, &limit)) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    if (!getrlimit(RLIMIT_NOFILE, &limit) && limit.rlim_cur != RLIM_INFINITY) {
        if (regions > limit.rlim_cur / 4)
            regions = limit.rlim_cur / 4;
        rlim_t others = RESERVE + regions;
        if (limit.rlim_cur < (rlim_t)o->max_connections + others)
            o->max_connections = limit.rlim_cur > others + 16 ? (int)(limit.rlim_cur - others) : 16;
    }
    o->shared_memory_regions = regions;
    o->shared_memory_fd_from = o->max_connections + RESERVE;
}

static bw_status write_port(const char *path, int port, bw_error *err)
{
    char text[16];
    int size = snprintf(text, sizeof text, "%d\n", port);
    bw_slice slice = {text, (size_t)size};
    return bw_file_write_atomic(path, &slice, 1, err);
}

static int stop(bw_server *server, const bw_server_options *o)
{
    bw_error err;
    unsigned cut;
    int hurried = 0;
    uint64_t started = bw_now_ns();
    bw_status status = bw_server_stop(server, o, take_signal, &hurried, &cut, &err);
    if (cut)
        bw_log(BW_LOG_WARN, "serve", "%u requests in flight were cut off", cut);
    bw_log(BW_LOG_INFO, "serve", "stopped after %.1f s", (double)(bw_now_ns() - started) / 1e9);
    int code = cut && hurried ? BW_EXIT_INTERRUPTED : BW_EXIT_OK;
    if (status) {
        /* Threads are still at work: nothing may be torn down under them. */
        bw_log(BW_LOG_WARN, "serve", "%s", err.message);
        _exit(code);
    }
    return code;
}

static int serve(arguments *a)
{
    bw_error err;
    bw_server *server;
    if (bw_sim_register(&err) || bw_server_start(&a->server, &server, &err))
        return bw_cli_fail("serve", &err);
    bw_log(BW_LOG_INFO, "serve", "listening on %s, loading", bw_server_grpc_address(server));
    if (bw_server_metrics_address(server))
        bw_log(BW_LOG_INFO, "serve", "metrics on %s", bw_server_metrics_address(server));
    bw_status status = bw_server_load(server, &a->server, take_signal, NULL, &err);
    if (!status && a->port_file)
        status = write_port(a->port_file, bw_server_grpc_port(server), &err);
    if (status) {
        int code = bw_cli_fail("serve", &err);
        a->server.drain_seconds = 0;
        a->server.lame_duck_ms = 0;
        stop(server, &a->server);
        return code;
    }
    bw_log(BW_LOG_INFO, "serve", "ready on %s", bw_server_grpc_address(server));
    int number = wait_signal();
    bw_log(BW_LOG_INFO, "serve", "%s: draining, at most %u s", number == SIGINT ? "SIGINT" : "SIGTERM",
           a->server.drain_seconds);
    if (a->port_file)
        unlink(a->port_file);
    return stop(server, &a->server);
}

int main(int argc, char **argv)
{
    bw_cli_let_threads_sleep(argv);
    bw_grpc_prepare_process();
    block_signals();
    arguments a = {0};
    int code = parse(&a, argc, argv);
    if (code || a.done)
        return code;
    if (!getenv("BW_LOG"))
        bw_log_set_level(a.quiet ? BW_LOG_WARN : BW_LOG_INFO);
    fit_descriptors(&a.server);
    return serve(&a);
}
