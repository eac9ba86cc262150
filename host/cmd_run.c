/* SPDX-License-Identifier: Apache-2.0 */
/* blockwave run */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "host/cmd.h"
#include "host/npy.h"

#define FILE_MAX (1u << 30)

static const char help[] =
    "usage: blockwave run MODEL.bw [--device URI] [--input NAME=FILE]... [FILE]...\n"
    "\n"
    "Scores pictures (PNG, JPEG) or arrays (.npy) and prints the best classes with their scores. A FILE is given to\n"
    "the model's first input, one after the other; an array may hold a batch. Several inputs are named.\n"
    "\n"
    "  --device URI        default sim:, see 'blockwave devices'\n"
    "  --input NAME=FILE   what one input gets\n"
    "  --output FILE.npy   write the first output of all runs as one array, '-' to standard output\n"
    "  --top K             classes to print for each picture, default 5\n"
    "  --repeat N          score everything N times, for the latencies\n"
    "  -h, --help\n";

typedef struct request { /* one file for each input */
    const char **files;
    const char *title;
} request;

typedef struct runner {
    bw_cmd_model model;
    int64_t top, repeat;
    const char *output;
    request *requests;
    int count;
    bw_array *results; /* first output of each request */
    bw_samples read, before, queue, device, after, total;
} runner;

static int ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), k = strlen(end);
    return n >= k && strcmp(s + n - k, end) == 0;
}

static bw_status read_array(const char *path, const bw_io *io, bw_array *a, bw_error *err)
{
    bw_npy_file *f;
    bw_npy_header h;
    bw_status status = bw_npy_open(path, &f, err);
    if (status)
        return status;
    int index = bw_npy_array_count(f) == 1 ? 0 : bw_npy_find(f, io->name);
    if (index < 0)
        index = bw_npy_find(f, "x");
    if (index < 0)
        status =
            bw_fail(err, BW_NOT_FOUND, "%s: %d arrays, none named '%s' or 'x'", path, bw_npy_array_count(f), io->name);
    if (!status)
        status = bw_npy_array_header(f, index, &h, err);
    int64_t dims[BW_RANK_MAX];
    int rank = 0;
    if (!status) {
        /* One sample may come without the batch's dimension. */
        if (h.rank == io->rank - 1)
            dims[rank++] = 1;
        for (int i = 0; i < h.rank && rank < BW_RANK_MAX; i++)
            dims[rank++] = h.dims[i];
        status = bw_array_alloc(a, io->dtype == BW_I64 ? BW_I64 : BW_F32, rank, dims, err);
    }
    void *raw = status ? NULL : malloc((size_t)h.count * (size_t)h.item + 1);
    if (!status && !raw)
        status = bw_fail(err, BW_NO_MEMORY, "%s: no memory for %" PRIu64 " numbers", path, h.count);
    if (!status)
        status = bw_npy_read(f, index, 0, (size_t)h.count, raw, err);
    if (!status && io->dtype == BW_I64)
        status = bw_npy_to_int64(&h, raw, (size_t)h.count, a->data, err);
    else if (!status)
        bw_npy_to_float(&h, raw, (size_t)h.count, a->data);
    free(raw);
    bw_npy_close(f);
    if (status)
        bw_array_free(a);
    return status;
}

static bw_status read_picture(const char *path, const runner *r, int input, bw_array *a, bw_error *err)
{
    const bw_io *io = bw_session_input(r->model.session, input);
    const bw_preprocess *p = input == 0 ? bw_session_preprocess(r->model.session) : NULL;
    if (!p)
        return bw_fail(err, BW_INVALID_ARGUMENT,
                       "%s: the package records no pre-processing for input '%s': give a .npy file, or quantize with "
                       "--preprocess",
                       path, io->name);
    void *bytes;
    size_t size;
    bw_status status = bw_file_read(path, FILE_MAX, &bytes, &size, err);
    if (status)
        return status;
    int64_t dims[BW_RANK_MAX];
    memcpy(dims, io->dims, sizeof dims);
    dims[0] = 1;
    status = bw_array_alloc(a, BW_F32, io->rank, dims, err);
    if (!status) {
        status = bw_preprocess_input(p, io->rank, io->dims, bytes, size, a->data, err);
        if (status) {
            bw_array_free(a);
            (void)bw_fail_context(err, status, "%s", path);
        }
    }
    free(bytes);
    return status;
}

static bw_status read_input(const runner *r, const char *path, int input, bw_array *a, bw_error *err)
{
    if (ends_with(path, ".npy") || ends_with(path, ".npz"))
        return read_array(path, bw_session_input(r->model.session, input), a, err);
    return read_picture(path, r, input, a, err);
}

static bw_status add_times(runner *r, uint64_t read, const bw_timing *t, bw_error *err)
{
    bw_status status = bw_samples_add(&r->read, read, err);
    if (!status)
        status = bw_samples_add(&r->before, t->cpu_before, err);
    if (!status)
        status = bw_samples_add(&r->queue, t->device_queue, err);
    if (!status)
        status = bw_samples_add(&r->device, t->device_run, err);
    if (!status)
        status = bw_samples_add(&r->after, t->cpu_after, err);
    return status ? status : bw_samples_add(&r->total, read + t->total, err);
}

/* Scores one request; keeps its first output the first time. */
static bw_status run_request(runner *r, int index, int keep, bw_error *err)
{
    bw_session *s = r->model.session;
    int inputs = bw_session_input_count(s), outputs = bw_session_output_count(s);
    bw_array *in = calloc((size_t)(inputs + outputs), sizeof *in), *out = in ? in + inputs : NULL;
    if (!in)
        return bw_fail(err, BW_NO_MEMORY, "no memory for a run");
    uint64_t start = bw_now_ns();
    bw_status status = BW_OK;
    for (int i = 0; i < inputs && !status; i++)
        status = read_input(r, r->requests[index].files[i], i, &in[i], err);
    uint64_t read = bw_now_ns() - start;
    bw_timing timing;
    bw_run_options options = {.timing = &timing};
    if (!status) {
        status = bw_session_run(s, in, out, &options, err);
        if (status)
            (void)bw_fail_context(err, status, "%s", r->requests[index].title);
    }
    if (!status)
        status = add_times(r, read, &timing, err);
    if (!status && keep) {
        r->results[index] = out[0];
        memset(&out[0], 0, sizeof out[0]);
    }
    for (int i = 0; i < inputs + outputs; i++)
        bw_array_free(&in[i]);
    free(in);
    return status;
}

static void print_scores(const runner *r, const char *title, const float *scores, int64_t n)
{
    int64_t k = r->top < n ? r->top : n, *best = malloc((size_t)k * sizeof *best + 1);
    if (!best)
        return;
    bw_cmd_top(scores, n, best, k);
    printf("%s\n", title);
    for (int64_t i = 0; i < k; i++) {
        const char *label = bw_session_label(r->model.session, best[i]);
        printf("  %12.6g  %6" PRId64 "  %s\n", (double)scores[best[i]], best[i], label ? label : "");
    }
    free(best);
}

static void print_array(const char *title, const char *name, const bw_array *a)
{
    int64_t n = bw_array_count(a);
    const float *x = a->data;
    double sum = 0;
    float lo = INFINITY, hi = -INFINITY;
    for (int64_t i = 0; i < n; i++) {
        sum += (double)x[i];
        lo = x[i] < lo ? x[i] : lo;
        hi = x[i] > hi ? x[i] : hi;
    }
    printf("%s\n  %s [", title, name);
    for (int i = 0; i < a->rank; i++)
        printf(i ? ", %" PRId64 : "%" PRId64, a->dims[i]);
    printf("]  min %g  mean %g  max %g\n", (double)lo, n ? sum / (double)n : 0.0, (double)hi);
}

static void print_result(const runner *r, int index)
{
    const bw_array *a = &r->results[index];
    const char *title = r->requests[index].title;
    int64_t rows = a->rank > 0 ? a->dims[0] : 1, classes = rows > 0 ? bw_array_count(a) / rows : 0;
    /* One number a class: everything behind the classes is of size 1. */
    int scores = a->dtype == BW_F32 && a->rank >= 2 && classes > 1 && a->dims[1] == classes;
    if (a->dtype != BW_F32) {
        printf("%s\n  %" PRId64 " elements of %s\n", title, bw_array_count(a), bw_dtype_name(a->dtype));
        return;
    }
    if (!scores) {
        print_array(title, bw_session_output(r->model.session, 0)->name, a);
        return;
    }
    for (int64_t i = 0; i < rows; i++) {
        char row[4200];
        snprintf(row, sizeof row, rows > 1 ? "%s[%" PRId64 "]" : "%s", title, i);
        print_scores(r, row, (const float *)a->data + i * classes, classes);
    }
}

static void print_times(runner *r)
{
    struct {
        const char *title;
        bw_samples *s;
    } rows[] = {{"read", &r->read},     {"CPU before", &r->before}, {"device queue", &r->queue},
                {"device", &r->device}, {"CPU after", &r->after},   {"total", &r->total}};
    if (r->total.count < 2)
        return;
    printf("\nlatency of %zu runs, ms %8s %8s %8s %8s\n", r->total.count, "median", "p90", "p99", "max");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        bw_samples_sort(rows[i].s);
        printf("  %-20s %8.3f %8.3f %8.3f %8.3f\n", rows[i].title, bw_samples_ms(rows[i].s, 50),
               bw_samples_ms(rows[i].s, 90), bw_samples_ms(rows[i].s, 99), bw_samples_ms(rows[i].s, 100));
    }
}

static bw_status write_results(const runner *r, bw_error *err)
{
    bw_npy_spec spec = {.name = "output", .dtype = r->results[0].dtype, .rank = r->results[0].rank};
    memcpy(spec.dims, r->results[0].dims, sizeof spec.dims);
    for (int i = 1; i < r->count; i++) {
        const bw_array *a = &r->results[i];
        int same = a->dtype == spec.dtype && a->rank == spec.rank && a->rank > 0;
        for (int d = 1; same && d < a->rank; d++)
            same = a->dims[d] == spec.dims[d];
        if (!same)
            return bw_fail(err, BW_UNSUPPORTED,
                           "%s: outputs of different shapes do not make one array: write them "
                           "one at a time",
                           r->output);
        spec.dims[0] += a->dims[0];
    }
    bw_status status = BW_OK;
    if (strcmp(r->output, "-") == 0) {
        uint8_t header[BW_NPY_WRITE_HEADER_MAX];
        size_t size;
        uint64_t bytes;
        status = bw_npy_make_header(&spec, header, &size, &bytes, err);
        if (!status)
            fwrite(header, 1, size, stdout);
        for (int i = 0; i < r->count && !status; i++)
            fwrite(r->results[i].data, 1, r->results[i].bytes, stdout);
        return status;
    }
    bw_npy_writer *w;
    status = bw_npy_create(r->output, &spec, 1, &w, err);
    for (int i = 0; i < r->count && !status; i++) {
        status = bw_npy_append(w, 0, r->results[i].data, r->results[i].bytes, err);
        if (status)
            bw_npy_abandon(w);
    }
    return status ? status : bw_npy_finish(w, err);
}

static bw_status run_all(runner *r, bw_error *err)
{
    bw_status status = BW_OK;
    int quiet = r->output && strcmp(r->output, "-") == 0;
    for (int64_t k = 0; k < r->repeat && !status; k++) {
        for (int i = 0; i < r->count && !status; i++) {
            if (bw_cli_interrupted())
                return bw_fail(err, BW_CANCELLED, "interrupted");
            status = run_request(r, i, k == 0, err);
            if (!status && k == 0 && !quiet)
                print_result(r, i);
        }
    }
    if (!status && r->output)
        status = write_results(r, err);
    if (!status && !quiet)
        print_times(r);
    return status;
}

/* One request of --input options, or one for each file. Returns an exit code. */
static int make_requests(runner *r, char **named, int named_count, char **files, int file_count)
{
    bw_session *s = r->model.session;
    int inputs = bw_session_input_count(s);
    if (named_count && file_count)
        return bw_cli_usage("run", "'%s' beside --input: name it too", files[0]);
    if (!named_count && inputs > 1)
        return bw_cli_usage("run", "the model has %d inputs: give each with --input NAME=FILE", inputs);
    r->count = named_count ? 1 : file_count;
    r->requests = calloc((size_t)r->count, sizeof *r->requests);
    r->results = calloc((size_t)r->count, sizeof *r->results);
    const char **all = calloc((size_t)r->count * (size_t)inputs, sizeof *all);
    if (!r->requests || !r->results || !all) {
        free(all);
        fprintf(stderr, "blockwave run: no memory\n");
        return BW_EXIT_FAILURE;
    }
    for (int i = 0; i < r->count; i++) {
        r->requests[i].files = all + (size_t)i * (size_t)inputs;
        r->requests[i].title = file_count ? files[i] : "inputs";
        if (file_count)
            r->requests[i].files[0] = files[i];
    }
    for (int k = 0; k < named_count; k++) {
        int input = -1;
        for (int i = 0; i < inputs; i++) {
            const char *name = bw_session_input(s, i)->name;
            size_t n = strlen(name);
            if (strncmp(named[k], name, n) == 0 && named[k][n] == '=')
                input = i;
        }
        if (input < 0)
            return bw_cli_usage("run", "--input '%s': expected NAME=FILE, the first input is '%s'", named[k],
                                bw_session_input(s, 0)->name);
        if (all[input])
            return bw_cli_usage("run", "input '%s' is given twice", bw_session_input(s, input)->name);
        all[input] = named[k] + strlen(bw_session_input(s, input)->name) + 1;
    }
    for (int i = 0; i < inputs; i++) {
        if (!all[i])
            return bw_cli_usage("run", "input '%s' is missing: give it with --input", bw_session_input(s, i)->name);
    }
    if (named_count == 1)
        r->requests[0].title = all[0];
    return BW_EXIT_OK;
}

static void free_runner(runner *r)
{
    for (int i = 0; i < r->count && r->results; i++)
        bw_array_free(&r->results[i]);
    if (r->requests && r->count)
        free(r->requests[0].files);
    free(r->requests);
    free(r->results);
    bw_samples *all[] = {&r->read, &r->before, &r->queue, &r->device, &r->after, &r->total};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        bw_samples_free(all[i]);
    bw_cmd_close_model(&r->model);
}

int bw_cmd_run(int argc, char **argv)
{
    static const struct option options[] = {{"device", required_argument, NULL, 'd'},
                                            {"input", required_argument, NULL, 'i'},
                                            {"output", required_argument, NULL, 'o'},
                                            {"top", required_argument, NULL, 't'},
                                            {"repeat", required_argument, NULL, 'n'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    runner r = {.top = 5, .repeat = 1};
    const char *uri = "sim:";
    char **named = calloc((size_t)argc, sizeof *named);
    int named_count = 0, code = BW_EXIT_OK;
    if (!named)
        return BW_EXIT_FAILURE;
    for (int c; code == BW_EXIT_OK && (c = bw_cmd_option(argc, argv, options, help)) != BW_CMD_END;) {
        if (c < 0) {
            free(named);
            return c == BW_CMD_HELP ? BW_EXIT_OK : BW_EXIT_USAGE;
        }
        if (c == 'd')
            uri = optarg;
        else if (c == 'i')
            named[named_count++] = optarg;
        else if (c == 'o')
            r.output = optarg;
        else if (!bw_cmd_number("run", c == 't' ? "--top" : "--repeat", optarg, 1, 1000000,
                                c == 't' ? &r.top : &r.repeat))
            code = BW_EXIT_USAGE;
    }
    if (!code && optind >= argc)
        code = bw_cli_usage("run", "no package given");
    if (!code && optind + 1 >= argc && !named_count)
        code = bw_cli_usage("run", "nothing to score: give pictures or .npy files");
    bw_error err;
    if (!code) {
        bw_cli_catch_interrupts();
        if (bw_cmd_open_model(argv[optind], uri, &r.model, &err))
            code = bw_cli_fail("run", &err);
    }
    if (!code)
        code = make_requests(&r, named, named_count, argv + optind + 1, argc - optind - 1);
    if (!code && run_all(&r, &err))
        code = bw_cli_fail("run", &err);
    free_runner(&r);
    free(named);
    return code;
}
