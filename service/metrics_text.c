/* SPDX-License-Identifier: Apache-2.0 */
/* What the metrics say, in Prometheus' text format: see service/metrics.h. */
#include <math.h>
#include <string.h>

#include "service/metrics.h"

#define DEVICES_MAX 64

/* Of one device, read once for all of its samples. */
typedef struct sample {
    bw_device_info info;
    bw_device_state state;
    bw_sensors sensors;
    int out;
} sample;

void bw_metrics_head(FILE *out, const char *name, const char *type, const char *help)
{
    fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* Whole numbers as such; others with all their digits. */
static void print_value(FILE *out, double value)
{
    if (value == floor(value) && fabs(value) < 1e15)
        fprintf(out, " %.0f\n", value);
    else
        fprintf(out, " %.17g\n", value);
}

void bw_metrics_number(FILE *out, const char *name, const char *type, const char *help, double value)
{
    bw_metrics_head(out, name, type, help);
    fputs(name, out);
    print_value(out, value);
}

/* NAME="VALUE" with what the format wants escaped. */
static void print_label(FILE *out, const char *name, const char *value)
{
    fprintf(out, "%s=\"", name);
    for (; *value; value++) {
        if (*value == '\\' || *value == '"')
            fputc('\\', out);
        if (*value == '\n')
            fputs("\\n", out);
        else
            fputc(*value, out);
    }
    fputc('"', out);
}

static void print_sample(FILE *out, const char *name, const sample *s, double value)
{
    fprintf(out, "%s{", name);
    print_label(out, "device", s->info.uri);
    fputc('}', out);
    print_value(out, value);
}

/* --- numbers of a device; NAN: unknown ---------------------------------------------------------------------------- */

#define NUMBER(function, expression)                                                                                   \
    static double function(const sample *s)                                                                            \
    {                                                                                                                  \
        return (double)(expression);                                                                                   \
    }
NUMBER(in_use, !s->out)
NUMBER(queued, s->state.queued)
NUMBER(runs, s->state.runs)
NUMBER(inferences, s->state.inferences)
NUMBER(images, s->state.images)
NUMBER(faults, s->state.faults)
NUMBER(resets, s->state.resets)
NUMBER(evictions, s->state.evictions)
NUMBER(busy, (double)s->state.busy_ns / 1e9)
NUMBER(memory, s->info.memory_bytes)
NUMBER(memory_used, s->state.memory_used)
NUMBER(memory_budget, s->state.memory_budget ? s->state.memory_budget : s->info.memory_bytes)
NUMBER(temperature, s->sensors.temperature_c)
NUMBER(power, s->sensors.power_w)
#undef NUMBER

static const struct {
    const char *name, *type, *help;
    double (*value)(const sample *s);
} metrics[] = {
    {"blockwave_device_in_use", "gauge", "1: requests are sent to the device; 0: it is out, and being tried again.",
     in_use},
    {"blockwave_device_queued_runs", "gauge", "Runs that wait for the device or are on it.", queued},
    {"blockwave_device_runs_total", "counter", "Runs that were on the device, however they ended.", runs},
    {"blockwave_device_inferences_total", "counter", "Elements of the batches of runs that ended well.", inferences},
    {"blockwave_device_images_total", "counter", "Programs with their constants that were loaded.", images},
    {"blockwave_device_faults_total", "counter", "Faults, each of which led to a reset or the loss of the device.",
     faults},
    {"blockwave_device_resets_total", "counter", "Resets that were tried.", resets},
    {"blockwave_device_evictions_total", "counter", "Loaded programs that made way for others.", evictions},
    {"blockwave_device_busy_seconds_total", "counter", "Time spent in runs.", busy},
    {"blockwave_device_memory_bytes", "gauge", "Memory of the device.", memory},
    {"blockwave_device_memory_used_bytes", "gauge", "Memory that loaded programs take on the device.", memory_used},
    {"blockwave_device_memory_budget_bytes", "gauge", "Memory that loaded programs may take on the device.",
     memory_budget},
    {"blockwave_device_temperature_celsius", "gauge", "Temperature of the device, where the platform measures it.",
     temperature},
    {"blockwave_device_power_watts", "gauge", "Power that the device takes, where the platform measures it.", power},
};

static void print_info(FILE *out, const sample *all, size_t count)
{
    const char *name = "blockwave_device_info";
    bw_metrics_head(out, name, "gauge", "What the device is; empty where that is unknown or does not apply.");
    for (size_t i = 0; i < count; i++) {
        const bw_device_info *d = &all[i].info;
        const char *const labels[][2] = {{"device", d->uri},
                                         {"name", d->name},
                                         {"part", d->part},
                                         {"address", d->address},
                                         {"bitstream", d->bitstream}};
        fprintf(out, "%s{", name);
        for (size_t k = 0; k < sizeof labels / sizeof *labels; k++) {
            fputs(k ? "," : "", out);
            print_label(out, labels[k][0], labels[k][1]);
        }
        fputs("} 1\n", out);
    }
}

static void print_health(FILE *out, const sample *all, size_t count)
{
    static const struct {
        bw_health health;
        const char *name;
    } states[] = {{BW_HEALTH_OK, "ok"}, {BW_HEALTH_RESETTING, "resetting"}, {BW_HEALTH_DEAD, "dead"}};
    const char *name = "blockwave_device_health";
    bw_metrics_head(out, name, "gauge", "1 for the state that the device is in, 0 for the others.");
    for (size_t i = 0; i < count; i++)
        for (size_t k = 0; k < sizeof states / sizeof *states; k++) {
            fprintf(out, "%s{", name);
            print_label(out, "device", all[i].info.uri);
            fprintf(out, ",state=\"%s\"} %d\n", states[k].name, all[i].state.health == states[k].health);
        }
}

/* The same URI twice is one device. */
static int seen(const bw_fleet *fleet, size_t device)
{
    for (size_t i = 0; i < device; i++)
        if (bw_fleet_device(fleet, i) == bw_fleet_device(fleet, device))
            return 1;
    return 0;
}

void bw_metrics_devices(FILE *out, const bw_fleet *fleet)
{
    static sample all[DEVICES_MAX]; /* one call at a time */
    size_t count = 0;
    for (size_t i = 0; i < bw_fleet_count(fleet) && count < DEVICES_MAX; i++) {
        sample *s = &all[count];
        if (seen(fleet, i) || bw_device_info_get(bw_fleet_device(fleet, i), &s->info, NULL) ||
            bw_device_state_get(bw_fleet_device(fleet, i), &s->state, NULL))
            continue;
        bw_device_sensors_get(&s->info, &s->sensors, NULL);
        s->out = bw_fleet_is_out(fleet, i);
        count++;
    }
    print_info(out, all, count);
    print_health(out, all, count);
    for (size_t m = 0; m < sizeof metrics / sizeof *metrics; m++) {
        int headed = 0;
        for (size_t i = 0; i < count; i++) {
            const double value = metrics[m].value(&all[i]);
            if (isnan(value))
                continue;
            if (!headed)
                bw_metrics_head(out, metrics[m].name, metrics[m].type, metrics[m].help);
            headed = 1;
            print_sample(out, metrics[m].name, &all[i], value);
        }
    }
}
