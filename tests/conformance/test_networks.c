/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whole networks: the fast engine against the reference interpreter, compared with ==, for every format, instruction
 * set, 1..4 threads, batch 1 and 8. The reference runs the first image; the other images of a batch of 8 must equal
 * the fast engine's own runs one by one, which are tied to the reference through the first.
 *
 * `make test` takes the small networks (one, in few formats, in a sanitized build); BW_LONG=1 (make conformance) takes
 * all of them. BW_NETWORK=substring and BW_FORMAT=name pick. The shared networks are read from BW_SHARED (default
 * ../shared/data); SKIP where absent.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "quantize/compile.h"
#include "quantize/import.h"
#include "quantize/passes.h"
#include "sim/sim.h"
#include "tests/support/networks.h"

#define BATCH 8u

/* Sanitizers make the engines 10 to 50 times slower and need each path only once. */
static int sanitized(void)
{
    const char *san = getenv("BW_SAN");
    return san && *san;
}

static int test_count;

static void result(int ok, const char *network, const char *what, const char *detail)
{
    printf("%sok %d - %s %s%s%s\n", ok ? "" : "not ", ++test_count, network, what, *detail ? ": " : "", detail);
    fflush(stdout);
}

static void skip(const char *network, const char *why)
{
    printf("ok %d - %s # SKIP %s\n", ++test_count, network, why);
}

static int equal(const char *got, const char *expected, size_t size, char *detail, size_t detail_size, const char *what)
{
    for (size_t i = 0; i + 4 <= size; i += 4) {
        if (memcmp(got + i, expected + i, 4) != 0) {
            float a, b;
            memcpy(&a, got + i, 4);
            memcpy(&b, expected + i, 4);
            snprintf(detail, detail_size, "%s: element %zu is %a, expected %a", what, i / 4, (double)a, (double)b);
            return 0;
        }
    }
    return 1;
}

struct buffers {
    size_t in_bytes, out_bytes;
    char *in, *out, *expected;
    int have_batch; /* expected holds all images, not only the reference's first */
    char detail[600];
};

static int run_into(struct buffers *b, bw_fast *engine, unsigned image, unsigned batch)
{
    bw_error err;
    memset(b->out, 0xa5, b->out_bytes * batch);
    if (!bw_fast_run(engine, b->in + image * b->in_bytes, b->out, batch, NULL, &err))
        return 1;
    snprintf(b->detail, sizeof b->detail, "%s", err.message);
    return 0;
}

static int compare_engine(struct buffers *b, bw_fast *engine, const char *isa, unsigned threads)
{
    char what[96];
    snprintf(what, sizeof what, "%s, %u threads, batch 1", isa, threads);
    if (!run_into(b, engine, 0, 1) || !equal(b->out, b->expected, b->out_bytes, b->detail, sizeof b->detail, what))
        return 0;
    for (unsigned i = 1; i < BATCH && !b->have_batch; i++) {
        if (!run_into(b, engine, i, 1))
            return 0;
        memcpy(b->expected + i * b->out_bytes, b->out, b->out_bytes);
    }
    b->have_batch = 1;
    snprintf(what, sizeof what, "%s, %u threads, batch %u", isa, threads, BATCH);
    return run_into(b, engine, 0, BATCH) &&
           equal(b->out, b->expected, b->out_bytes * BATCH, b->detail, sizeof b->detail, what);
}

/* One program, all instruction sets, threads and batches. */
static int compare_stage(const bw_stage *stage, struct buffers *b)
{
    bw_error err = {0};
    bw_program program;
    if (bw_program_parse(stage->program, stage->program_size, &program, &err)) {
        snprintf(b->detail, sizeof b->detail, "%s", err.message);
        return 0;
    }
    b->in_bytes = program.header->in_bytes;
    b->out_bytes = program.header->out_bytes;
    b->in = bw_aligned_zalloc(b->in_bytes * BATCH);
    b->out = bw_aligned_zalloc(b->out_bytes * BATCH);
    b->expected = bw_aligned_zalloc(b->out_bytes * BATCH);
    int ok = b->in && b->out && b->expected;
    if (ok) {
        bw_test_fill_input((float *)b->in, b->in_bytes * BATCH / 4, 1);
        /* Gaps between outputs keep what was there before, in both. */
        memset(b->expected, 0xa5, b->out_bytes * BATCH);
        ok = bw_reference_run(&program, stage->constants, b->in, b->expected, 1, &err) == BW_OK;
    }
    for (int isa = BW_SIM_ISA_PORTABLE; ok && isa < BW_SIM_ISA_LIMIT; isa++) {
        for (unsigned threads = 1; ok && bw_sim_isa_available((bw_sim_isa)isa) && threads <= 4; threads++) {
            bw_fast_options options = {(bw_sim_isa)isa, threads, threads % 2 ? 2 : 4, threads % 2};
            bw_fast *engine;
            ok = bw_fast_create(&program, stage->constants, &options, &engine, &err) == BW_OK;
            if (ok) {
                ok = compare_engine(b, engine, bw_sim_isa_name((bw_sim_isa)isa), threads);
                bw_fast_destroy(engine);
            }
        }
    }
    if (!ok && !*b->detail)
        snprintf(b->detail, sizeof b->detail, "%s", *err.message ? err.message : "out of memory");
    free(b->in);
    free(b->out);
    free(b->expected);
    return ok;
}

static void run_format(const bw_graph *g, const char *network, bw_format format, uint16_t block)
{
    bw_error err;
    char what[64];
    struct buffers b = {0};
    bw_recipe recipe = {.weights = format, .activations = format, .block = block, .vector = BW_FORMAT_FP16};
    bw_compiled compiled;
    snprintf(what, sizeof what, "%s block %u", bw_format_get(format)->name, block);
    if (bw_compile(g, &recipe, &compiled, &err)) {
        result(0, network, what, err.message);
        return;
    }
    int ok = 1, device_stages = 0;
    for (int i = 0; i < compiled.stage_count && ok; i++) {
        if (compiled.stages[i].device) {
            device_stages++;
            b = (struct buffers){0};
            ok = compare_stage(&compiled.stages[i], &b);
        }
    }
    bw_compiled_free(&compiled);
    if (ok && !device_stages)
        result(0, network, what, "nothing of the network runs on the device");
    else
        result(ok, network, what, b.detail);
}

static void run_network(const struct bw_test_network *n)
{
    const char *only = getenv("BW_FORMAT");
    char path[1024];
    if (!bw_test_network_path(n, path, sizeof path)) {
        skip(n->path, "no such file: set BW_SHARED");
        return;
    }
    bw_graph *g;
    bw_error err;
    if (bw_onnx_import(path, NULL, 0, &g, NULL, &err)) {
        result(0, n->path, "import", err.message);
        return;
    }
    if (bw_passes_run(g, &err)) {
        result(0, n->path, "passes", err.message);
    } else {
        for (size_t f = 0; f < bw_test_numeric_count; f++) {
            if (only ? strcmp(only, bw_format_get(bw_test_numerics[f].format)->name) == 0 : f % 5 == 0 || !sanitized())
                run_format(g, n->path, bw_test_numerics[f].format, bw_test_numerics[f].block);
        }
    }
    bw_graph_free(g);
}

int main(void)
{
    const char *pick = getenv("BW_NETWORK");
    if (!pick && sanitized() && !getenv("BW_LONG"))
        pick = "digits";
    for (size_t i = 0; i < bw_test_network_count; i++) {
        if (pick ? strstr(bw_test_networks[i].path, pick) != NULL : bw_test_networks[i].small || getenv("BW_LONG"))
            run_network(&bw_test_networks[i]);
    }
    for (int isa = BW_SIM_ISA_PORTABLE; isa < BW_SIM_ISA_LIMIT; isa++) {
        if (!bw_sim_isa_available((bw_sim_isa)isa))
            skip(bw_sim_isa_name((bw_sim_isa)isa), "this CPU lacks it");
    }
    printf("1..%d\n", test_count);
    return 0;
}
