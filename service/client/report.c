/* SPDX-License-Identifier: Apache-2.0 */
/* The load generator's figures: see service/client/report.h. */
#include "service/client/report.h"

#include <inttypes.h>
#include <string.h>

static const bw_load_stage *find_stage(const bw_load_figures *f, const char *name)
{
    for (unsigned i = 0; i < f->stage_count; i++) {
        if (!strcmp(f->stages[i].name, name))
            return &f->stages[i];
    }
    return NULL;
}

static double stage_mean(const bw_load_figures *f, const char *name)
{
    const bw_load_stage *s = find_stage(f, name);
    return s ? bw_histogram_mean(s->us) : 0;
}

static double latency_us(const bw_load_figures *f)
{
    return bw_histogram_mean(f->latency_ns) * 1e-3;
}

double bw_report_device_share(const bw_load_figures *f)
{
    return f->ok && find_stage(f, "device") ? stage_mean(f, "device") / latency_us(f) : -1;
}

double bw_report_cpu_share(const bw_load_figures *f)
{
    return f->ok && find_stage(f, "device") ? (stage_mean(f, "cpu-before") + stage_mean(f, "cpu-after")) / latency_us(f)
                                            : -1;
}

static double per_second(const bw_load_figures *f, uint64_t n)
{
    return f->seconds > 0 ? (double)n / f->seconds : 0;
}

/* --- text --------------------------------------------------------------------------------------------------------- */

static void print_quantiles(FILE *out, const char *label, const bw_histogram *h, double to_ms)
{
    fprintf(out, "  %-11s p50 %.3f  p90 %.3f  p99 %.3f  p99.9 %.3f  max %.3f  mean %.3f ms\n", label,
            (double)bw_histogram_quantile(h, 0.5) * to_ms, (double)bw_histogram_quantile(h, 0.9) * to_ms,
            (double)bw_histogram_quantile(h, 0.99) * to_ms, (double)bw_histogram_quantile(h, 0.999) * to_ms,
            (double)h->high * to_ms, bw_histogram_mean(h) * to_ms);
}

static void print_stages(FILE *out, const bw_load_figures *f)
{
    double latency = latency_us(f);
    fprintf(out, "  server's own time           p50 us     p99 us    mean us   of latency\n");
    for (unsigned i = 0; i < f->stage_count; i++) {
        const bw_load_stage *s = &f->stages[i];
        double mean = bw_histogram_mean(s->us);
        fprintf(out, "    %-20s %10" PRIu64 " %10" PRIu64 " %10.1f %10.2f %%\n", s->name,
                bw_histogram_quantile(s->us, 0.5), bw_histogram_quantile(s->us, 0.99), mean, 100 * mean / latency);
    }
    if (find_stage(f, "total"))
        fprintf(out, "    %-42s %10.1f %10.2f %%\n", "outside (network, client)", latency - stage_mean(f, "total"),
                100 - 100 * stage_mean(f, "total") / latency);
    double device = bw_report_device_share(f);
    if (device >= 0)
        fprintf(out, "  of the mean latency: device %.2f %%, network's CPU stages %.2f %%, service %.2f %%\n",
                100 * device, 100 * bw_report_cpu_share(f), 100 * (1 - device - bw_report_cpu_share(f)));
}

void bw_report_text(FILE *out, const bw_report_head *head, const bw_load_options *o, const bw_load_figures *f)
{
    fprintf(out, "%s, model '%s'%s%s, %s, input %s, %zu bytes a request", o->address, head->model,
            head->version[0] ? " version " : "", head->version, head->protocol, head->input, o->message_size);
    if (head->shared_memory)
        fprintf(out, " and %zu in shared memory, %zu of the answer", head->shared_in, head->shared_out);
    fputc('\n', out);
    if (o->rate > 0)
        fprintf(out, "open loop: %g requests/s, %s, over %u connections", o->rate,
                o->poisson ? "Poisson arrivals" : "evenly spaced", o->connections);
    else
        fprintf(out, "closed loop: %u connections x %u outstanding", o->connections, o->outstanding);
    fprintf(out, ", %.1f s after %.1f s of warm-up%s\n", f->seconds, o->warmup_seconds,
            f->interrupted ? ", interrupted" : "");
    fprintf(out, "  requests    %" PRIu64 " good, %" PRIu64 " failed", f->ok, f->failed);
    if (f->unfinished)
        fprintf(out, ", %" PRIu64 " without an answer at the end", f->unfinished);
    if (f->not_sent)
        fprintf(out, ", %" PRIu64 " due but not sent (too many on their way)", f->not_sent);
    fprintf(out, "\n  throughput  %.1f requests/s", per_second(f, f->in_time));
    if (head->batch > 1)
        fprintf(out, ", %.1f samples/s", per_second(f, f->in_time) * (double)head->batch);
    fprintf(out, ", %.1f MB/s sent\n", per_second(f, f->in_time) * (double)(o->message_size + head->shared_in) * 1e-6);
    if (f->ok)
        print_quantiles(out, "latency", f->latency_ns, 1e-6);
    if (f->late_ns->count)
        print_quantiles(out, "sent late by", f->late_ns, 1e-6);
    if (f->ok && f->stage_count)
        print_stages(out, f);
    for (unsigned i = 1; i < BW_LOAD_CODES; i++) {
        if (f->codes[i])
            fprintf(out, "  %s: %" PRIu64 ", the first: %s\n", bw_load_code_name(i), f->codes[i], f->first_error[i]);
    }
}

/* --- JSON --------------------------------------------------------------------------------------------------------- */

static json_t *quantiles(const bw_histogram *h, double to_us)
{
    return json_pack(
        "{s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "count", (json_int_t)h->count, "mean", bw_histogram_mean(h) * to_us,
        "min", (double)h->low * to_us, "p50", (double)bw_histogram_quantile(h, 0.5) * to_us, "p90",
        (double)bw_histogram_quantile(h, 0.9) * to_us, "p99", (double)bw_histogram_quantile(h, 0.99) * to_us, "p99.9",
        (double)bw_histogram_quantile(h, 0.999) * to_us, "max", (double)h->high * to_us);
}

json_t *bw_report_json(const bw_report_head *head, const bw_load_options *o, const bw_load_figures *f)
{
    json_t *errors = json_object(), *server = json_object();
    for (unsigned i = 1; i < BW_LOAD_CODES; i++) {
        if (f->codes[i])
            json_object_set_new(errors, bw_load_code_name(i),
                                json_pack("{s:I, s:s}", "count", (json_int_t)f->codes[i], "first", f->first_error[i]));
    }
    for (unsigned i = 0; i < f->stage_count; i++)
        json_object_set_new(server, f->stages[i].name, quantiles(f->stages[i].us, 1));
    double device = bw_report_device_share(f), cpu = bw_report_cpu_share(f);
    json_t *root = json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:s, s:I, s:I}", "address", o->address, "model",
                             head->model, "version", head->version, "protocol", head->protocol, "input", head->input,
                             "batch", (json_int_t)head->batch, "loop", o->rate > 0 ? "open" : "closed", "connections",
                             (json_int_t)o->connections, "outstanding", (json_int_t)o->outstanding);
    if (o->rate > 0) {
        json_object_set_new(root, "rate", json_real(o->rate));
        json_object_set_new(root, "arrival", json_string(o->poisson ? "poisson" : "fixed"));
        json_object_set_new(root, "send_delay_us", quantiles(f->late_ns, 1e-3));
        json_object_set_new(root, "not_sent", json_integer((json_int_t)f->not_sent));
    }
    json_t *rest =
        json_pack("{s:I, s:f, s:f, s:b, s:I, s:I, s:I, s:f, s:I, s:f, s:o, s:o, s:o}", "request_bytes",
                  (json_int_t)o->message_size, "warmup_seconds", o->warmup_seconds, "seconds", f->seconds,
                  "interrupted", f->interrupted, "ok", (json_int_t)f->ok, "failed", (json_int_t)f->failed, "unfinished",
                  (json_int_t)f->unfinished, "throughput_per_second", per_second(f, f->in_time), "reply_bytes",
                  (json_int_t)(f->ok ? f->reply_bytes / f->ok : 0), "client_cpu_us_per_request",
                  f->in_time ? f->client_cpu_seconds * 1e6 / (double)f->in_time : 0.0, "latency_us",
                  quantiles(f->latency_ns, 1e-3), "server_us", server, "errors", errors);
    if (root && rest)
        json_object_update(root, rest);
    if (root && head->shared_memory) {
        json_object_set_new(root, "shared_request_bytes", json_integer((json_int_t)head->shared_in));
        json_object_set_new(root, "shared_reply_bytes", json_integer((json_int_t)head->shared_out));
    }
    json_decref(rest);
    if (root && device >= 0) {
        json_object_set_new(root, "device_share", json_real(device));
        json_object_set_new(root, "cpu_stage_share", json_real(cpu));
        json_object_set_new(root, "service_share", json_real(1 - device - cpu));
    }
    return rest ? root : (json_decref(root), NULL);
}
