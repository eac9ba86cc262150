/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a package on disk to ready to score: 25 million parameters (six 1x1 convolutions of 2048 channels on 7 x 7
 * pixels, msfp16), the file in the page cache, in a fresh process. BW_BENCH_RUNS=n (default 10).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "hal/base.h"
#include "host/session.h"
#include "quantize/manifest.h"
#include "quantize/passes.h"
#include "sim/sim.h"

enum { CHANNELS = 2048, LAYERS = 6, SIDE = 7 };

static bw_error err;

static void ok(bw_status status)
{
    if (status) {
        fprintf(stderr, "bench_open: %s\n", err.message);
        exit(1);
    }
}

static void make_package(const char *path)
{
    bw_graph *g = bw_graph_new("wide");
    int64_t dims[4] = {-1, CHANNELS, SIDE, SIDE}, weights[4] = {CHANNELS, CHANNELS, 1, 1};
    int value = bw_graph_add_value(g, "x", BW_F32, 4, dims);
    ok(bw_graph_set_inputs(g, &value, 1));
    uint32_t seed = 1;
    for (int l = 0; l < LAYERS; l++) {
        char name[16];
        bw_array w;
        ok(bw_array_alloc(&w, BW_F32, 4, weights, &err));
        for (size_t i = 0; i < (size_t)CHANNELS * CHANNELS; i++) {
            seed = seed * 1664525u + 1013904223u;
            ((float *)w.data)[i] = (float)(int32_t)seed * 0x1p-36f;
        }
        snprintf(name, sizeof name, "w%d", l);
        int in[2] = {value, bw_graph_add_constant(g, name, &w)};
        snprintf(name, sizeof name, "y%d", l);
        value = bw_graph_add_value(g, name, BW_F32, 4, dims);
        bw_graph_add_node(g, "Conv", name, in, 2, &value, 1);
    }
    ok(bw_graph_set_outputs(g, &value, 1));
    ok(bw_passes_run(g, &err));
    bw_quantize_recipe recipe = bw_recipe_default();
    ok(bw_recipe_settle(&recipe, &err));
    bw_compiled compiled;
    ok(bw_compile(g, &recipe.core, &compiled, &err));
    bw_import_info info = {.opset = 13, .producer = "bench_open", .sha256 = ""};
    memset(info.sha256, '0', 64);
    bw_manifest_source source = {.g = g,
                                 .compiled = &compiled,
                                 .recipe = &recipe,
                                 .name = "wide",
                                 .version = "1",
                                 .source_file = "wide.onnx",
                                 .info = &info};
    ok(bw_package_from_compiled(&source, path, &err));
    bw_compiled_free(&compiled);
    bw_graph_free(g);
}

/* Resident bytes of this process: in all, and of its own (anonymous) memory. */
static void resident(double *all, double *own)
{
    unsigned long pages = 0, total = 0, shared = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f || fscanf(f, "%lu %lu %lu", &total, &pages, &shared) != 3)
        exit(1);
    fclose(f);
    *all = (double)pages * (double)sysconf(_SC_PAGESIZE);
    *own = (double)(pages - shared) * (double)sysconf(_SC_PAGESIZE);
}

static double ms(uint64_t from, uint64_t to)
{
    return (double)(to - from) * 1e-6;
}

/* Processor time: what the figures are on a machine that has nothing else to do. */
static double cpu_ms(void)
{
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) * 1e3 +
           (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) * 1e-3;
}

typedef struct figures {
    double package, device, session, ready, cpu, first, second, resident, own, base, size;
} figures;

/* In a process of its own, so that nothing is warm but the file. */
static void measure(const char *path, figures *f)
{
    double base_own;
    resident(&f->base, &base_own);
    double cpu = cpu_ms();
    uint64_t t0 = bw_now_ns();
    bw_package *pkg;
    bw_device *device;
    bw_session *s;
    ok(bw_package_open(path, &pkg, &err));
    uint64_t t1 = bw_now_ns();
    ok(bw_sim_register(&err));
    ok(bw_device_open("sim:", &device, &err));
    uint64_t t2 = bw_now_ns();
    ok(bw_session_open(pkg, device, &s, &err));
    uint64_t t3 = bw_now_ns();
    f->cpu = cpu_ms() - cpu;
    resident(&f->resident, &f->own);
    f->own -= base_own;
    f->size = (double)bw_package_size(pkg);
    bw_array in, out = {0};
    ok(bw_array_alloc(&in, BW_F32, 4, (int64_t[]){1, CHANNELS, SIDE, SIDE}, &err));
    for (int i = 0; i < CHANNELS * SIDE * SIDE; i++)
        ((float *)in.data)[i] = (float)(i % 13) - 6;
    uint64_t t4 = bw_now_ns();
    ok(bw_session_run(s, &in, &out, NULL, &err));
    uint64_t t5 = bw_now_ns();
    bw_array_free(&out);
    ok(bw_session_run(s, &in, &out, NULL, &err));
    uint64_t t6 = bw_now_ns();
    f->package = ms(t0, t1);
    f->device = ms(t1, t2);
    f->session = ms(t2, t3);
    f->ready = ms(t0, t3);
    f->first = ms(t4, t5);
    f->second = ms(t5, t6);
    bw_array_free(&in);
    bw_array_free(&out);
    bw_session_close(s);
    bw_device_close(device);
    bw_package_close(pkg);
}

static int by_ready(const void *a, const void *b)
{
    double x = ((const figures *)a)->ready, y = ((const figures *)b)->ready;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "measure") == 0) {
        figures f;
        measure(argv[2], &f);
        return fwrite(&f, sizeof f, 1, stdout) == 1 ? 0 : 1;
    }
    const char *tmp = getenv("TMPDIR"), *text = getenv("BW_BENCH_RUNS");
    int runs = text ? atoi(text) : 10;
    runs = runs < 1 ? 1 : runs > 100 ? 100 : runs;
    char path[512], command[1200];
    snprintf(path, sizeof path, "%s/bench_open-%ld.bw", tmp ? tmp : "/tmp", (long)getpid());
    make_package(path);
    figures f[101];
    for (int i = -1; i < runs; i++) { /* the first brings the file into the page cache */
        snprintf(command, sizeof command, "'%s' measure '%s'", argv[0], path);
        FILE *child = popen(command, "r");
        if (!child || fread(&f[i < 0 ? 0 : i], sizeof *f, 1, child) != 1 || pclose(child) != 0) {
            fprintf(stderr, "bench_open: the measuring process failed\n");
            unlink(path);
            return 1;
        }
    }
    unlink(path);
    qsort(f, (size_t)runs, sizeof *f, by_ready);
    const figures *m = &f[runs / 2];
    printf("package of %.1f MB, %d parameters; fresh process, file in the page cache, %d runs, the median one\n",
           m->size * 1e-6, LAYERS * CHANNELS * CHANNELS, runs);
    printf("  open and verify the package  %8.2f ms\n", m->package);
    printf("  open the device              %8.2f ms\n", m->device);
    printf("  open the session             %8.2f ms\n", m->session);
    printf("  ready to score               %8.2f ms  (best %.2f, processor time %.2f; target: below 50)\n", m->ready,
           f[0].ready, m->cpu);
    printf("  first run, second run        %8.2f ms, %.2f ms\n", m->first, m->second);
    double ratio = (m->resident - m->base) / m->size;
    printf(
        "  resident when ready          %8.1f MB more than before: %.2f x file (target: at most 1.3); %.1f MB are its "
        "own\n",
        (m->resident - m->base) * 1e-6, ratio, m->own * 1e-6);
    return 0;
}
