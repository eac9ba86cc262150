/* SPDX-License-Identifier: Apache-2.0 */
/* blockwave eval */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "host/cmd.h"
#include "host/cmd_data.h"

static const char help[] =
    "usage: blockwave eval MODEL.bw --data DIR|FILE.npz [--device URI] [--batch N] [--count N] [--json]\n"
    "\n"
    "Measures top-1 and top-5 accuracy and speed on a labelled data set: a directory of pictures (labels from\n"
    "labels.csv or from sub-directories named by class), or a .npz file (arrays x and y).\n"
    "\n"
    "  --data PATH    the data set\n"
    "  --device URI   default sim:, see 'blockwave devices'\n"
    "  --batch N      samples of one run, default 16\n"
    "  --count N      only the first N samples\n"
    "  --json         machine-readable result\n"
    "  --quiet        no progress on standard error\n"
    "  -h, --help\n";

typedef struct result {
    int64_t seen, labelled, top1, top5;
    int64_t classes;
    uint64_t wall_ns, run_ns;
    bw_samples latency; /* of one run */
} result;

static bw_status score(result *r, const bw_session *s, const bw_array *out, const int64_t *labels, int64_t batch,
                       bw_error *err)
{
    int64_t classes = bw_array_count(out) / batch;
    const bw_io *io = bw_session_output(s, 0);
    if (out->dtype != BW_F32 || out->rank < 2 || out->dims[0] != batch || classes < 2)
        return bw_fail(err, BW_UNSUPPORTED,
                       "output '%s' has %" PRId64 " numbers a sample, accuracy needs a score for each class", io->name,
                       classes);
    r->classes = classes;
    int64_t best[5], k = classes < 5 ? classes : 5;
    for (int64_t i = 0; i < batch; i++) {
        r->seen++;
        if (labels[i] < 0)
            continue;
        if (labels[i] >= classes)
            return bw_fail(err, BW_OUT_OF_RANGE,
                           "label %" PRId64 " of sample %" PRId64 ", the model has %" PRId64 " classes", labels[i],
                           r->seen - 1, classes);
        bw_cmd_top((const float *)out->data + i * classes, classes, best, k);
        r->labelled++;
        r->top1 += best[0] == labels[i];
        for (int64_t j = 0; j < k; j++)
            r->top5 += best[j] == labels[i];
    }
    return BW_OK;
}

static double per_cent(int64_t part, int64_t whole)
{
    return whole ? 100.0 * (double)part / (double)whole : 0;
}

static double rate(const result *r, uint64_t ns)
{
    return ns ? (double)r->seen / ((double)ns * 1e-9) : 0;
}

static void print_json(const result *r, const bw_cmd_data *d)
{
    const bw_session *s = d->model.session;
    json_t *j = json_pack("{s:s,s:s,s:s,s:s,s:I,s:I,s:I,s:f,s:f,s:f,s:f,s:f,s:{s:f,s:f,s:f,s:f}}", "model",
                          bw_session_model_name(s), "version", bw_session_model_version(s), "device", d->uri, "data",
                          d->path, "samples", (json_int_t)r->seen, "labelled", (json_int_t)r->labelled, "batch",
                          (json_int_t)d->batch, "top1", per_cent(r->top1, r->labelled) / 100, "top5",
                          per_cent(r->top5, r->labelled) / 100, "seconds", (double)r->wall_ns * 1e-9,
                          "samples_per_second", rate(r, r->wall_ns), "model_samples_per_second", rate(r, r->run_ns),
                          "latency_ms", "median", bw_samples_ms(&r->latency, 50), "p90", bw_samples_ms(&r->latency, 90),
                          "p99", bw_samples_ms(&r->latency, 99), "max", bw_samples_ms(&r->latency, 100));
    json_dumpf(j, stdout, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(15));
    putchar('\n');
    json_decref(j);
}

static void print_text(const result *r, const bw_cmd_data *d)
{
    const bw_session *s = d->model.session;
    printf("model    %s version %s on %s\n", bw_session_model_name(s), bw_session_model_version(s), d->uri);
    printf("data     %s, %" PRId64 " of %" PRId64 " samples", d->path, r->seen, bw_dataset_count(d->data));
    if (r->labelled != r->seen)
        printf(", %" PRId64 " with a label", r->labelled);
    printf("\ntop-1    %6.2f %%  (%" PRId64 " of %" PRId64 ")\n", per_cent(r->top1, r->labelled), r->top1, r->labelled);
    if (r->classes > 5)
        printf("top-5    %6.2f %%  (%" PRId64 " of %" PRId64 ")\n", per_cent(r->top5, r->labelled), r->top5,
               r->labelled);
    printf("speed    %.1f samples/s with reading, %.1f without\n", rate(r, r->wall_ns), rate(r, r->run_ns));
    printf("latency  of a batch of %" PRId64 ": median %.3f ms, p90 %.3f, p99 %.3f, max %.3f\n", d->batch,
           bw_samples_ms(&r->latency, 50), bw_samples_ms(&r->latency, 90), bw_samples_ms(&r->latency, 99),
           bw_samples_ms(&r->latency, 100));
}

static bw_status evaluate(bw_cmd_data *d, result *r, bw_error *err)
{
    bw_session *s = d->model.session;
    int outputs = bw_session_output_count(s);
    int64_t *labels = malloc((size_t)d->batch * sizeof *labels);
    bw_array *out = calloc((size_t)outputs, sizeof *out);
    bw_progress progress;
    bw_progress_begin(&progress, "eval", (uint64_t)d->count, d->quiet);
    bw_status status = labels && out ? BW_OK : bw_fail(err, BW_NO_MEMORY, "no memory");
    uint64_t start = bw_now_ns();
    for (int64_t first = 0; first < d->count && !status && !bw_cli_interrupted(); first += d->batch) {
        int64_t n = d->count - first < d->batch ? d->count - first : d->batch;
        bw_array in;
        bw_timing timing;
        bw_run_options options = {.timing = &timing};
        status = bw_dataset_read(d->data, first, n, &in, labels, err);
        if (status)
            break;
        status = bw_session_run(s, &in, out, &options, err);
        bw_array_free(&in);
        if (!status)
            status = bw_samples_add(&r->latency, timing.total, err);
        if (!status) {
            r->run_ns += timing.total;
            status = score(r, s, &out[0], labels, n, err);
        }
        for (int i = 0; i < outputs; i++)
            bw_array_free(&out[i]);
        bw_progress_step(&progress, (uint64_t)(first + n));
    }
    r->wall_ns = bw_now_ns() - start;
    bw_progress_end(&progress);
    bw_samples_sort(&r->latency);
    free(labels);
    free(out);
    return status;
}

int bw_cmd_eval(int argc, char **argv)
{
    static const struct option options[] = {
        {"data", required_argument, NULL, 'D'},  {"device", required_argument, NULL, 'd'},
        {"batch", required_argument, NULL, 'b'}, {"count", required_argument, NULL, 'c'},
        {"json", no_argument, NULL, 'j'},        {"quiet", no_argument, NULL, 'q'},
        {"help", no_argument, NULL, 'h'},        {NULL, 0, NULL, 0}};
    bw_cmd_data d = {.command = "eval", .uri = "sim:", .batch = 16};
    int json = 0;
    for (int c; (c = bw_cmd_option(argc, argv, options, help)) != BW_CMD_END;) {
        if (c == 'j')
            json = 1;
        else if (c < 0 || !bw_cmd_data_option(&d, c))
            return c == BW_CMD_HELP ? BW_EXIT_OK : BW_EXIT_USAGE;
    }
    int code = bw_cmd_data_open(&d, argc - optind, argv + optind);
    if (code)
        return code;
    bw_error err;
    result r = {0};
    bw_status status = BW_OK;
    if (!bw_dataset_has_labels(d.data))
        status = bw_fail(&err, BW_INVALID_ARGUMENT,
                         "%s has no labels: add labels.csv, sub-directories named by class, or an array 'y'", d.path);
    if (!status)
        status = evaluate(&d, &r, &err);
    if (status)
        code = bw_cli_fail("eval", &err);
    else if (json)
        print_json(&r, &d);
    else
        print_text(&r, &d);
    if (!code && bw_cli_interrupted()) {
        fprintf(stderr, "blockwave eval: interrupted after %" PRId64 " samples\n", r.seen);
        code = BW_EXIT_INTERRUPTED;
    }
    bw_samples_free(&r.latency);
    bw_cmd_data_close(&d);
    return code;
}
