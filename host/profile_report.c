/* SPDX-License-Identifier: Apache-2.0 */
/* A profile as a table, as JSON, as a trace. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "host/cmd_profile.h"

double bw_profile_rate(const bw_profile_result *r, const bw_profile_row *row)
{
    return row->median > 0 ? (double)row->cost.macs * (double)r->batch / row->median * 1e-6 : 0;
}

double bw_profile_percent(const bw_profile_result *r, double rate)
{
    const double peak = r->peak.int8 * r->device.threads;
    return peak > 0 ? rate / peak * 100 : -1;
}

/* Activations of the batch, weights once. */
static uint64_t bytes_of(const bw_profile_result *r, const bw_profile_row *row)
{
    return (row->cost.in_bytes + row->cost.out_bytes) * (uint64_t)r->batch + row->cost.weight_bytes;
}

/* Of all CONV rows. */
typedef struct conv_sum {
    double macs, ms;
    double percent; /* of the peak, the mean of the rows weighted by their multiply-adds; below 0: not known */
} conv_sum;

static conv_sum sum_convolutions(const bw_profile_result *r)
{
    conv_sum sum = {0, 0, 0};
    for (int i = 0; i < r->row_count; i++)
        if (r->rows[i].index >= 0 && strcmp(r->rows[i].text, bw_opcode_name(BW_OP_CONV)) == 0) {
            const double macs = (double)r->rows[i].cost.macs * (double)r->batch;
            sum.macs += macs;
            sum.ms += r->rows[i].median;
            sum.percent += macs * bw_profile_percent(r, bw_profile_rate(r, &r->rows[i]));
        }
    sum.percent = sum.macs > 0 ? sum.percent / sum.macs : -1;
    return sum;
}

/* --- table ---------------------------------------------------------------------------------------------------------
 */

/* The end of a name that is too long tells more than its beginning. */
static const char *tail(const char *name, size_t most, char *buf, size_t size)
{
    const size_t n = strlen(name);
    size_t from = n > most ? n - most + 2 : 0;
    while (from && from < n && ((unsigned char)name[from] & 0xc0) == 0x80) /* not inside of a UTF-8 character */
        from++;
    snprintf(buf, size, "%s%s", from ? ".." : "", name + from);
    return buf;
}

static void print_row(const bw_profile_result *r, const bw_profile_row *row)
{
    char layer[64], index[24] = "", rate[16] = "", percent[16] = "", bytes[32] = "";
    if (row->index >= 0) {
        snprintf(index, sizeof index, "%" PRId64, row->index);
        bw_cli_bytes(bytes_of(r, row), bytes);
    }
    const double gmacs = bw_profile_rate(r, row);
    if (row->cost.macs) {
        snprintf(rate, sizeof rate, "%.1f", gmacs);
        if (bw_profile_percent(r, gmacs) >= 0)
            snprintf(percent, sizeof percent, "%.1f", bw_profile_percent(r, gmacs));
    }
    printf("%4s %-28s %-13s %-38s %9.4f %6.2f %8s %6s %10s\n", index, tail(row->layer, 28, layer, sizeof layer),
           row->text, row->shape, row->median, r->sum > 0 ? row->median / r->sum * 100 : 0, rate, percent, bytes);
}

static void print_latency(const char *what, const bw_samples *s)
{
    printf("%-44s %9.4f ms  (p10 %.4f, p90 %.4f)\n", what, bw_samples_ms(s, 50), bw_samples_ms(s, 10),
           bw_samples_ms(s, 90));
}

void bw_profile_print(const bw_profile_result *r)
{
    const bw_session *s = r->model->session;
    printf("%s version %s on %s: %s\nbatch %" PRId64 ", %" PRId64 " runs, medians\n", bw_session_model_name(s),
           bw_session_model_version(s), r->device.uri, r->device.name, r->batch, r->runs);
    if (r->peak.int8 > 0)
        printf("peak of one core: %.1f G multiply-adds/s of int8 (%s), %.1f of fp32; %u threads\n", r->peak.int8,
               r->peak.int8_by, r->peak.fp32, r->device.threads);
    printf("\n%4s %-28s %-13s %-38s %9s %6s %8s %6s %10s\n", "", "layer", "operation", "shape", "ms", "%", "GMAC/s",
           "% peak", "bytes");
    for (int i = 0; i < r->row_count; i++)
        print_row(r, &r->rows[i]);
    const conv_sum conv = sum_convolutions(r);
    printf("\n");
    if (conv.ms > 0) {
        const double rate = conv.macs / conv.ms * 1e-6, percent = bw_profile_percent(r, rate);
        printf("%-44s %9.4f ms  %.1f GMAC/s", "all CONV", conv.ms, rate);
        if (percent >= 0)
            printf(", %.1f %% of the int8 peak; layers weighted by work: %.1f %%", percent, conv.percent);
        printf("\n");
    }
    printf("%-44s %9.4f ms\n", "sum of the rows", r->sum);
    print_latency("a run, instructions timed", &r->timed);
    print_latency("a run, not timed", &r->untimed);
}

/* --- JSON ----------------------------------------------------------------------------------------------------------
 */

static json_t *latency_json(const bw_samples *s)
{
    return json_pack("{s:f, s:f, s:f}", "median", bw_samples_ms(s, 50), "p10", bw_samples_ms(s, 10), "p90",
                     bw_samples_ms(s, 90));
}

static json_t *row_json(const bw_profile_result *r, const bw_profile_row *row)
{
    json_t *j = json_pack("{s:i, s:s, s:s, s:s, s:f, s:f, s:f, s:f}", "stage", row->stage, "layer", row->layer,
                          "operation", row->text, "shape", row->shape, "ms", row->median, "p10", row->p10, "p90",
                          row->p90, "share", r->sum > 0 ? row->median / r->sum : 0.0);
    if (row->index < 0)
        return j;
    const double rate = bw_profile_rate(r, row), percent = bw_profile_percent(r, rate);
    json_object_set_new(j, "instruction", json_integer(row->index));
    json_object_set_new(j, "macs", json_integer((json_int_t)row->cost.macs * r->batch));
    json_object_set_new(j, "gmacs_per_s", json_real(rate));
    json_object_set_new(j, "peak_percent", percent >= 0 ? json_real(percent) : json_null());
    json_object_set_new(j, "bytes",
                        json_pack("{s:I, s:I, s:I}", "in", (json_int_t)row->cost.in_bytes * r->batch, "out",
                                  (json_int_t)row->cost.out_bytes * r->batch, "weights",
                                  (json_int_t)row->cost.weight_bytes));
    return j;
}

void bw_profile_print_json(const bw_profile_result *r)
{
    const bw_session *s = r->model->session;
    json_t *rows = json_array();
    for (int i = 0; i < r->row_count; i++)
        json_array_append_new(rows, row_json(r, &r->rows[i]));
    const conv_sum conv = sum_convolutions(r);
    json_t *j =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:i, s:I, s:I, s:o, s:o, s:f, s:{s:f, s:f}, s:o}", "package",
                  bw_package_path(r->model->package), "model", bw_session_model_name(s), "device", r->device.uri,
                  "device_name", r->device.name, "isa", r->device.isa, "threads", (int)r->device.threads, "batch",
                  (json_int_t)r->batch, "runs", (json_int_t)r->runs, "timed_ms", latency_json(&r->timed), "untimed_ms",
                  latency_json(&r->untimed), "sum_ms", r->sum, "conv", "macs", conv.macs, "ms", conv.ms, "rows", rows);
    if (conv.percent >= 0)
        json_object_set_new(json_object_get(j, "conv"), "peak_percent_by_work", json_real(conv.percent));
    if (r->peak.int8 > 0)
        json_object_set_new(j, "peak",
                            json_pack("{s:f, s:s, s:f}", "int8_gmacs_per_s", r->peak.int8, "int8_by", r->peak.int8_by,
                                      "fp32_gmacs_per_s", r->peak.fp32));
    json_dumpf(j, stdout, JSON_INDENT(1) | JSON_SORT_KEYS | JSON_REAL_PRECISION(9));
    putchar('\n');
    json_decref(j);
}

/* --- trace ---------------------------------------------------------------------------------------------------------
 */

static json_t *thread_name(int tid, const char *name)
{
    return json_pack("{s:s, s:s, s:i, s:i, s:{s:s}}", "name", "thread_name", "ph", "M", "pid", 1, "tid", tid, "args",
                     "name", name);
}

bw_status bw_profile_write_trace(const bw_profile_result *r, const char *path, bw_error *err)
{
    enum { HOST = 1, DEVICE = 2 };
    json_t *events = json_array();
    json_array_append_new(events, thread_name(HOST, "host"));
    json_array_append_new(events, thread_name(DEVICE, r->device.name));
    uint64_t at = 0; /* the rows follow each other and leave no gap */
    for (int i = 0; i < r->row_count; i++) {
        const bw_profile_row *row = &r->rows[i];
        const uint64_t ns = row->ns[r->typical];
        const int device = row->index >= 0 || strcmp(row->text, "device, other") == 0;
        json_array_append_new(events, json_pack("{s:s, s:s, s:s, s:f, s:f, s:i, s:i, s:{s:s, s:s, s:I, s:I}}", "name",
                                                *row->layer ? row->layer : row->text, "cat", row->text, "ph", "X", "ts",
                                                (double)at * 1e-3, "dur", (double)ns * 1e-3, "pid", 1, "tid",
                                                device ? DEVICE : HOST, "args", "operation", row->text, "shape",
                                                row->shape, "macs", (json_int_t)row->cost.macs * r->batch, "bytes",
                                                (json_int_t)bytes_of(r, row)));
        at += ns;
    }
    json_t *j = json_pack("{s:o, s:s}", "traceEvents", events, "displayTimeUnit", "ms");
    char *text = j ? json_dumps(j, JSON_INDENT(1) | JSON_REAL_PRECISION(12)) : NULL;
    json_decref(j);
    if (!text)
        return bw_fail(err, BW_NO_MEMORY, "%s: no memory for the trace", path);
    bw_slice slice = {text, strlen(text)};
    bw_status status = bw_file_write_atomic(path, &slice, 1, err);
    free(text);
    return status;
}
