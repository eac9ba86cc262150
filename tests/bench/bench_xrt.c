/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a run costs on an emulated card, above the same run on the simulator: the first accelerator stage of packages
 * (BW_BENCH_MODELS="A.bw B.bw", default the smallest program there is), resident, alternately on both, medians of
 * BW_BENCH_RUNS (default 500), and what the difference is at the tenth percentile, where others disturb less. To be run
 * inside the emulation: make bench-xrt.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "hal/hal.h"
#include "host/package.h"
#include "sim/sim.h"
#include "tests/support/random_program.h"

enum { RUNS_MAX = 100000 };
static bw_error err;
static double times[2][RUNS_MAX];

static void ok(bw_status status)
{
    if (status) {
        fprintf(stderr, "bench_xrt: %s\n", err.message);
        exit(1);
    }
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void measure(const char *name, bw_device *const *devices, const void *program, size_t program_size,
                    const void *constants, size_t constants_size, uint32_t batch)
{
    const char *env = getenv("BW_BENCH_RUNS");
    const int runs = env && atoi(env) > 0 && atoi(env) <= RUNS_MAX ? atoi(env) : 500;
    bw_image *images[2];
    for (int d = 0; d < 2; d++)
        ok(bw_image_load(devices[d], program, program_size, constants, constants_size, &images[d], &err));
    const bw_program_header *h = bw_image_program(images[0])->header;
    float *in = bw_aligned_zalloc(batch * h->in_bytes);
    char *out[2] = {bw_aligned_zalloc(batch * h->out_bytes), bw_aligned_zalloc(batch * h->out_bytes)};
    for (size_t i = 0; i < batch * h->in_bytes / 4; i++)
        in[i] = (float)((int)(i * 37 % 255) - 127) / 64;
    for (int i = -20; i < runs; i++)
        for (int d = 0; d < 2; d++) {
            const uint64_t start = bw_now_ns();
            ok(bw_image_run(images[d], in, out[d], batch, 0, &err));
            if (i >= 0)
                times[d][i] = (double)(bw_now_ns() - start) * 1e-6;
        }
    if (memcmp(out[0], out[1], batch * h->out_bytes) != 0) {
        fprintf(stderr, "bench_xrt: %s: the outputs differ\n", name);
        exit(1);
    }
    for (int d = 0; d < 2; d++)
        qsort(times[d], (size_t)runs, sizeof times[d][0], ascending);
    printf("%-20s %5u %9llu %9llu %8.3f %8.3f %8.3f %8.3f %8.3f\n", name, batch,
           (unsigned long long)(batch * h->in_bytes), (unsigned long long)(batch * h->out_bytes), times[0][runs / 2],
           times[1][runs / 2], times[1][runs * 9 / 10], times[1][runs / 2] - times[0][runs / 2],
           times[1][runs / 10] - times[0][runs / 10]);
    for (int d = 0; d < 2; d++) {
        bw_image_release(images[d]);
        free(out[d]);
    }
    free(in);
}

int main(void)
{
    bw_device *devices[2];
    ok(bw_sim_register(&err));
    ok(bw_device_open("sim:", &devices[0], &err));
    ok(bw_device_open("xrt:0", &devices[1], &err));
    printf("%-20s %5s %9s %9s %8s %8s %8s %8s %8s\n", "program", "batch", "in bytes", "out bytes", "sim: ms",
           "xrt:0 ms", "p90", "above", "at p10");
    const struct bw_random_options small = {
        .opcodes = 1u << BW_OP_COPY, .max_operations = 1, .max_extent = 2, .max_channels = 16, .max_batch = 1};
    struct bw_random_case c;
    if (bw_random_case_make(1, &small, &c))
        return 1;
    measure("smallest", devices, c.program, c.program_size, c.constants, c.constants_size, 1);
    bw_random_case_free(&c);
    const char *models = getenv("BW_BENCH_MODELS");
    char list[4096], *save = NULL;
    snprintf(list, sizeof list, "%s", models ? models : "");
    for (char *path = strtok_r(list, " ", &save); path; path = strtok_r(NULL, " ", &save)) {
        bw_package *pkg;
        const void *program, *constants;
        size_t program_size, constants_size;
        ok(bw_package_open(path, &pkg, &err));
        ok(bw_package_section(pkg, "stage0/program.bin", &program, &program_size, &err));
        ok(bw_package_section(pkg, "stage0/constants.bin", &constants, &constants_size, &err));
        const char *name = strrchr(path, '/');
        for (uint32_t batch = 1; batch <= 8; batch *= 8)
            measure(name ? name + 1 : path, devices, program, program_size, constants, constants_size, batch);
        bw_package_close(pkg);
    }
    for (int d = 0; d < 2; d++)
        bw_device_close(devices[d]);
    return 0;
}
