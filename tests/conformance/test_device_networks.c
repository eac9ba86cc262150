/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whole networks on every device that is no simulator, against the simulator's fast engine, compared with ==: batch 1
 * and a batch. (The fast engine is tied to the reference interpreter by test_networks.)
 *
 * `make test` takes two networks in a few formats; BW_LONG=1 all of them in all formats. BW_NETWORK=substring and
 * BW_FORMAT=name pick; BW_DEVICES="URI ..." chooses devices. SKIP where a network or a device is absent.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "hal/hal.h"
#include "quantize/compile.h"
#include "quantize/import.h"
#include "quantize/passes.h"
#include "tests/support/devices.h"
#include "tests/support/networks.h"

#define BATCH 3u

static struct bw_test_devices devices;
static int test_count;

static void result(const char *uri, const char *network, const struct bw_test_numeric *n, int ok, const char *detail)
{
    printf("%sok %d - %s: %s %s block %u%s%s\n", ok ? "" : "not ", ++test_count, uri, network,
           bw_format_get(n->format)->name, n->block, *detail ? ": " : "", detail);
    fflush(stdout);
}

static void skip(const char *what, const char *why)
{
    printf("ok %d - %s # SKIP %s\n", ++test_count, what, why);
}

/* One program with its inputs and what the simulator makes of them. */
typedef struct work {
    const bw_stage *stage;
    size_t in_bytes, out_bytes;
    char *in, *expected, *out;
} work;

static bw_status load(bw_device *dev, const bw_stage *s, bw_image **image, bw_error *err)
{
    return bw_image_load(dev, s->program, s->program_size, s->constants, s->constants_size, image, err);
}

static bw_status prepare(bw_device *sim, const bw_stage *stage, work *w, bw_error *err)
{
    bw_image *image;
    bw_status status = load(sim, stage, &image, err);
    if (status)
        return status;
    const bw_program_header *h = bw_image_program(image)->header;
    *w = (work){.stage = stage, .in_bytes = h->in_bytes, .out_bytes = h->out_bytes};
    w->in = bw_aligned_zalloc(w->in_bytes * BATCH);
    w->expected = bw_aligned_zalloc(w->out_bytes * BATCH);
    w->out = bw_aligned_zalloc(w->out_bytes * BATCH);
    if (w->in && w->expected && w->out) {
        bw_test_fill_input((float *)(void *)w->in, w->in_bytes * BATCH / sizeof(float), 1);
        status = bw_image_run(image, w->in, w->expected, BATCH, 0, err);
    } else {
        status = bw_fail(err, BW_NO_MEMORY, "no memory for inputs and outputs");
    }
    bw_image_release(image);
    return status;
}

static void done(work *w)
{
    free(w->in);
    free(w->expected);
    free(w->out);
    *w = (work){0};
}

static bw_status compare(work *w, bw_image *image, uint32_t batch, bw_error *err)
{
    memset(w->out, 0, w->out_bytes * BATCH);
    bw_status status = bw_image_run(image, w->in, w->out, batch, 0, err);
    for (size_t i = 0; i < w->out_bytes * batch && !status; i += sizeof(float)) {
        float a, b;
        memcpy(&a, w->out + i, sizeof a);
        memcpy(&b, w->expected + i, sizeof b);
        if (memcmp(&a, &b, sizeof a) != 0)
            status = bw_fail(err, BW_INTERNAL, "batch %u: element %zu is %a, expected %a", batch, i / sizeof(float),
                             (double)a, (double)b);
    }
    return status;
}

static void run_device(const char *uri, bw_device *sim, const bw_compiled *c, const char *network,
                       const struct bw_test_numeric *n)
{
    bw_error err = {BW_OK, ""};
    bw_device *dev = NULL;
    bw_device_info info;
    int compared = 0;
    bw_status status = bw_device_open(uri, &dev, &err);
    if (!status)
        status = bw_device_info_get(dev, &info, &err);
    for (int i = 0; i < c->stage_count && !status; i++) {
        work w = {0};
        bw_image *image = NULL;
        if (!c->stages[i].device)
            continue;
        status = prepare(sim, &c->stages[i], &w, &err);
        if (!status)
            status = load(dev, &c->stages[i], &image, &err);
        if (!status)
            status = compare(&w, image, 1, &err);
        if (!status)
            status = compare(&w, image, BATCH, &err);
        compared++;
        bw_image_release(image);
        done(&w);
    }
    if (status == BW_INCOMPATIBLE)
        skip(uri, err.message);
    else if (!status && !compared)
        result(uri, network, n, 0, "nothing of the network runs on a device");
    else
        result(uri, network, n, !status, status ? err.message : "");
    bw_device_close(dev);
}

static void run_format(bw_device *sim, const bw_graph *g, const char *network, const struct bw_test_numeric *n)
{
    bw_recipe recipe = {.weights = n->format, .activations = n->format, .block = n->block, .vector = BW_FORMAT_FP16};
    bw_compiled compiled;
    bw_error err;
    if (bw_compile(g, &recipe, &compiled, &err)) {
        result("compile", network, n, 0, err.message);
        return;
    }
    for (unsigned d = 0; d < devices.count; d++)
        if (strncmp(devices.uris[d], "sim:", 4) != 0)
            run_device(devices.uris[d], sim, &compiled, network, n);
    bw_compiled_free(&compiled);
}

static int wanted(const struct bw_test_numeric *n)
{
    static const bw_format few[] = {BW_FORMAT_MSFP16, BW_FORMAT_MX9, BW_FORMAT_MXFP8_E4M3};
    const char *only = getenv("BW_FORMAT");
    if (only)
        return strcmp(only, bw_format_get(n->format)->name) == 0;
    for (size_t i = 0; i < sizeof few / sizeof *few; i++)
        if (few[i] == n->format && n->block <= 32)
            return 1;
    return getenv("BW_LONG") != NULL;
}

static void run_network(bw_device *sim, const struct bw_test_network *n)
{
    char path[1024];
    bw_graph *g;
    bw_error err;
    if (!bw_test_network_path(n, path, sizeof path)) {
        skip(n->path, "no such file: set BW_SHARED");
        return;
    }
    if (bw_onnx_import(path, NULL, 0, &g, NULL, &err)) {
        result("import", n->path, &bw_test_numerics[0], 0, err.message);
        return;
    }
    if (bw_passes_run(g, &err))
        result("passes", n->path, &bw_test_numerics[0], 0, err.message);
    else
        for (size_t f = 0; f < bw_test_numeric_count; f++)
            if (wanted(&bw_test_numerics[f]))
                run_format(sim, g, n->path, &bw_test_numerics[f]);
    bw_graph_free(g);
}

int main(void)
{
    const char *pick = getenv("BW_NETWORK"), *san = getenv("BW_SAN");
    bw_device *sim;
    bw_error err = {BW_OK, ""};
    if (bw_test_devices_find(&devices, NULL))
        return 1;
    if (bw_device_open("sim:", &sim, &err)) {
        printf("not ok 1 - %s\n", err.message);
        return 1;
    }
    size_t networks = 0;
    for (size_t i = 0; i < bw_test_network_count; i++) {
        const struct bw_test_network *n = &bw_test_networks[i];
        const int usual = strstr(n->path, "digits") || (strstr(n->path, "resnet20_cifar10.onnx") && !(san && *san));
        if (pick ? strstr(n->path, pick) != NULL : usual || getenv("BW_LONG")) {
            run_network(sim, n);
            networks++;
        }
    }
    bw_device_close(sim);
    if (!networks) {
        printf("not ok 1 - BW_NETWORK=%s: no network has that in its name (tests/support/networks.c)\n", pick);
        return 1;
    }
    if (!test_count)
        skip("networks", "there is no device but the simulator");
    printf("1..%d\n", test_count);
    return 0;
}
