/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A worker of bench.py: one network, measured whenever it is told to.
 *
 *     bench_network run MODEL.bw [URI]      a session on a device
 *     bench_network float MODEL.onnx        the float graph on the CPU operators (oneDNN), OMP_NUM_THREADS threads
 *     bench_network peak                    prints the peaks of this machine and ends
 *
 * Prints a line of JSON about itself, then answers each line of standard input with a line:
 *     SECONDS    runs for that long and three times at least -> the nanoseconds of each run
 *     check      one run -> the numbers of the first output
 * Inputs are the same numbers in every worker: see fill().
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "host/cost.h"
#include "host/session.h"
#include "quantize/import.h"
#include "quantize/passes.h"
#include "sim/sim.h"

#define RUNS_MIN 3
#define VALUES   16 /* inputs and outputs of a network, at most */

static bw_error err;

static void ok(bw_status status)
{
    if (status) {
        printf("{\"error\": \"%s\"}\n", bw_status_name(status));
        fprintf(stderr, "bench_network: %s\n", err.message);
        exit(1);
    }
}

static void die(const char *what)
{
    fprintf(stderr, "bench_network: %s\n", what);
    exit(1);
}

typedef struct network {
    bw_session *session; /* or */
    bw_executor *executor;
    bw_array in[VALUES], out[VALUES];
    int inputs, outputs;
} network;

/* Numbers of -1 .. 1 from a linear congruential generator that starts at 1 for every network. */
static void fill(bw_array *a, uint32_t *seed)
{
    for (int64_t i = 0; i < bw_array_count(a); i++) {
        *seed = *seed * 1664525u + 1013904223u;
        ((float *)a->data)[i] = (float)(int32_t)*seed * 0x1p-31f;
    }
}

static void add_input(network *n, int rank, const int64_t *dims, uint32_t *seed)
{
    int64_t d[BW_RANK_MAX];
    memcpy(d, dims, (size_t)rank * sizeof *d);
    if (rank > 0 && d[0] < 0)
        d[0] = 1;
    if (n->inputs == VALUES)
        die("the network has too many inputs");
    ok(bw_array_alloc(&n->in[n->inputs], BW_F32, rank, d, &err));
    fill(&n->in[n->inputs++], seed);
}

static uint64_t run(network *n)
{
    for (int i = 0; i < n->outputs; i++)
        bw_array_free(&n->out[i]);
    const uint64_t start = bw_now_ns();
    if (n->session)
        ok(bw_session_run(n->session, n->in, n->out, NULL, &err));
    else
        ok(bw_executor_run(n->executor, n->in, n->out, NULL, NULL, &err));
    return bw_now_ns() - start;
}

static void serve(network *n)
{
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        if (strncmp(line, "check", 5) == 0) {
            run(n);
            const int64_t count = bw_array_count(&n->out[0]);
            for (int64_t i = 0; i < count; i++)
                printf("%s%.9g", i ? ", " : "[", (double)((const float *)n->out[0].data)[i]);
            printf("]\n");
        } else {
            const uint64_t end = bw_now_ns() + (uint64_t)(strtod(line, NULL) * 1e9);
            for (int k = 0; k < RUNS_MIN || bw_now_ns() < end; k++)
                printf("%s%llu", k ? ", " : "[", (unsigned long long)run(n));
            printf("]\n");
        }
        fflush(stdout);
    }
}

/* Work and traffic of all device stages, per image. */
static void print_package(const bw_package *pkg, bw_device *device, double open_ms)
{
    bw_cost sum = {0}, cost;
    uint64_t conv = 0, depthwise = 0, count = 0;
    for (size_t i = 0; i < bw_package_section_count(pkg); i++) {
        const char *name = bw_package_section_name(pkg, i), *end = strstr(name, "/program.bin");
        const void *bytes;
        size_t size;
        bw_program program;
        if (!end)
            continue;
        ok(bw_package_section(pkg, name, &bytes, &size, &err));
        ok(bw_program_parse(bytes, size, &program, &err));
        for (uint32_t k = 0; k < program.header->instruction_count; k++) {
            bw_instruction_cost(&program.instructions[k], &cost);
            conv += program.instructions[k].opcode == BW_OP_CONV ? cost.macs : 0;
            depthwise += program.instructions[k].opcode == BW_OP_DWCONV ? cost.macs : 0;
            sum.in_bytes += cost.in_bytes;
            sum.out_bytes += cost.out_bytes;
            sum.weight_bytes += cost.weight_bytes;
            count++;
        }
    }
    bw_device_info info;
    ok(bw_device_info_get(device, &info, &err));
    printf("{\"isa\": \"%s\", \"threads\": %u, \"macs\": %llu, \"conv_macs\": %llu, \"depthwise_macs\": %llu, "
           "\"instructions\": %llu, \"activation_bytes\": %llu, \"weight_bytes\": %llu, \"package_bytes\": %zu, "
           "\"open_ms\": %.3f}\n",
           info.isa, info.threads, (unsigned long long)(conv + depthwise), (unsigned long long)conv,
           (unsigned long long)depthwise, (unsigned long long)count, (unsigned long long)(sum.in_bytes + sum.out_bytes),
           (unsigned long long)sum.weight_bytes, bw_package_size(pkg), open_ms);
    fflush(stdout);
}

static void run_package(const char *path, const char *uri)
{
    bw_package *pkg;
    bw_device *device;
    network n = {0};
    uint32_t seed = 1;
    const uint64_t start = bw_now_ns();
    ok(bw_sim_register(&err));
    ok(bw_package_open(path, &pkg, &err));
    ok(bw_device_open(uri, &device, &err));
    ok(bw_session_open(pkg, device, &n.session, &err));
    const uint64_t opened = bw_now_ns();
    for (int i = 0; i < bw_session_input_count(n.session); i++)
        add_input(&n, bw_session_input(n.session, i)->rank, bw_session_input(n.session, i)->dims, &seed);
    n.outputs = bw_session_output_count(n.session);
    if (n.outputs > VALUES)
        die("the network has too many outputs");
    print_package(pkg, device, (double)(opened - start) * 1e-6);
    serve(&n);
    bw_session_close(n.session);
    bw_device_close(device);
    bw_package_close(pkg);
    for (int i = 0; i < VALUES; i++) {
        bw_array_free(&n.in[i]);
        bw_array_free(&n.out[i]);
    }
}

static void run_float(const char *path)
{
    bw_graph *g;
    network n = {0};
    uint32_t seed = 1;
    ok(bw_onnx_import(path, NULL, 0, &g, NULL, &err));
    ok(bw_passes_run(g, &err));
    ok(bw_executor_create(g, &n.executor, &err));
    for (int i = 0; i < g->input_count; i++)
        add_input(&n, g->values[g->inputs[i]].rank, g->values[g->inputs[i]].dims, &seed);
    n.outputs = g->output_count;
    if (n.outputs > VALUES)
        die("the network has too many outputs");
    printf("{\"version\": \"oneDNN through host/ops\"}\n");
    fflush(stdout);
    serve(&n);
    for (int i = 0; i < VALUES; i++) {
        bw_array_free(&n.in[i]);
        bw_array_free(&n.out[i]);
    }
    bw_executor_destroy(n.executor);
    bw_graph_free(g);
}

static void print_peaks(void)
{
    printf("{");
    for (int i = BW_SIM_ISA_PORTABLE; i < BW_SIM_ISA_LIMIT; i++) {
        bw_sim_peak peak;
        if (!bw_sim_isa_available((bw_sim_isa)i))
            continue;
        ok(bw_sim_peak_measure((bw_sim_isa)i, &peak, &err));
        printf("\"%s\": {\"int8\": %.2f, \"int8_by\": \"%s\", \"fp32\": %.2f}, ", bw_sim_isa_name((bw_sim_isa)i),
               peak.int8, peak.int8_by, peak.fp32);
    }
    static const struct {
        const char *name;
        size_t bytes;
    } sizes[] = {{"16k", 1 << 14}, {"512k", 1 << 19}, {"8m", 1 << 23}, {"256m", 1 << 28}};
    printf("\"read_gb_per_s\": {");
    for (int i = 0; i < 4; i++) {
        double rate;
        ok(bw_sim_read_rate(sizes[i].bytes, &rate, &err));
        printf("%s\"%s\": %.2f", i ? ", " : "", sizes[i].name, rate);
    }
    printf("}}\n");
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "peak") == 0)
        print_peaks();
    else if ((argc == 3 || argc == 4) && strcmp(argv[1], "run") == 0)
        run_package(argv[2], argc == 4 ? argv[3] : "sim:");
    else if (argc == 3 && strcmp(argv[1], "float") == 0)
        run_float(argv[2]);
    else
        die("usage: bench_network run MODEL.bw [URI] | float MODEL.onnx | peak; see the top of the source");
    return 0;
}
