/* SPDX-License-Identifier: Apache-2.0 */
/* Hostile manifests over sound sections: a session is opened, and run if it opens. The input is a manifest; its
 * "format", "version" and "sections" are put right, so that the fuzzer gets behind the checksums. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "host/session.h"
#include "host/tar.h"
#include "sim/sim.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct section {
    const char *name;
    void *bytes;
    size_t size;
} section;

enum { SECTIONS = 6, WIDTH = 4 };
static section sections[SECTIONS];
static bw_device *device;

static void must(bw_status status, const bw_error *err)
{
    if (status) {
        fprintf(stderr, "fuzz_manifest: %s\n", err->message);
        abort();
    }
}

/* y = op(x) over [-1, 4], as a section pair */
static void make_graph(const char *op, const char *x, const char *y, section *graph, section *blob)
{
    bw_error err;
    int64_t dims[2] = {-1, WIDTH};
    bw_graph *g = bw_graph_new("g");
    int in = bw_graph_add_value(g, x, BW_F32, 2, dims), out = bw_graph_add_value(g, y, BW_F32, 2, dims);
    bw_graph_add_node(g, op, op, &in, 1, &out, 1);
    must(bw_graph_set_inputs(g, &in, 1), &err);
    must(bw_graph_set_outputs(g, &out, 1), &err);
    must(bw_graph_sort(g, &err), &err);
    must(bw_graph_infer_shapes(g, &err), &err);
    char *text;
    must(bw_graph_write(g, &text, &blob->bytes, &blob->size, &err), &err);
    graph->bytes = text;
    graph->size = strlen(text);
    bw_graph_free(g);
}

static bw_tensor tensor(bw_format format, bw_region region)
{
    return (bw_tensor){.height = 1,
                       .width = 1,
                       .channels = WIDTH,
                       .pixel_stride = WIDTH,
                       .row_stride = WIDTH,
                       .format = (uint8_t)format,
                       .region = (uint8_t)region,
                       .block = 1};
}

static void make_program(section *s)
{
    struct {
        bw_program_header header;
        bw_instruction instructions[2];
    } p = {.header = {.magic = BW_PROGRAM_MAGIC,
                      .isa_version = BW_ISA_VERSION,
                      .instruction_count = 2,
                      .act_bytes = 64,
                      .in_bytes = 192,
                      .out_bytes = 192}};
    for (int i = 0; i < 2; i++)
        p.instructions[i] =
            (bw_instruction){.opcode = i ? BW_OP_COPY : BW_OP_PATCH,
                             .kernel_y = 1,
                             .kernel_x = 1,
                             .stride_y = 1,
                             .stride_x = 1,
                             .dilation_y = 1,
                             .dilation_x = 1,
                             .groups = 1,
                             .in = tensor(i ? BW_FORMAT_FP16 : BW_FORMAT_FP32, i ? BW_REGION_ACT : BW_REGION_IN),
                             .out0 = tensor(i ? BW_FORMAT_FP32 : BW_FORMAT_FP16, i ? BW_REGION_OUT : BW_REGION_ACT)};
    s->bytes = malloc(sizeof p);
    if (!s->bytes)
        abort();
    memcpy(s->bytes, &p, sizeof p);
    s->size = sizeof p;
}

static void prepare(void)
{
    static const char *const names[SECTIONS] = {"g0", "c0", "p1", "c1", "g2", "c2"};
    bw_error err;
    for (int i = 0; i < SECTIONS; i++)
        sections[i].name = names[i];
    make_graph("Relu", "x", "a", &sections[0], &sections[1]);
    make_program(&sections[2]);
    make_graph("Sigmoid", "b", "y", &sections[4], &sections[5]);
    must(bw_sim_register(&err), &err);
    must(bw_device_open("sim:?threads=1", &device, &err), &err);
}

/* The archive around the manifest; NULL if the input is no JSON object. */
static uint8_t *make_archive(const uint8_t *data, size_t size, size_t *total)
{
    json_t *manifest = json_loadb((const char *)data, size, JSON_REJECT_DUPLICATES, NULL), *list = json_array();
    if (!json_is_object(manifest)) {
        json_decref(manifest);
        json_decref(list);
        return NULL;
    }
    *total = 2 * BW_TAR_BLOCK;
    for (int i = 0; i < SECTIONS; i++) {
        char hex[65];
        bw_sha256_hex(sections[i].bytes, sections[i].size, hex);
        json_array_append_new(list, json_pack("{s:s,s:I,s:s}", "name", sections[i].name, "size",
                                              (json_int_t)sections[i].size, "sha256", hex));
        *total += BW_TAR_BLOCK + (sections[i].size + BW_TAR_BLOCK - 1) / BW_TAR_BLOCK * BW_TAR_BLOCK;
    }
    json_object_set_new(manifest, "sections", list);
    json_object_set_new(manifest, "format", json_string("blockwave-package"));
    json_object_set_new(manifest, "version", json_integer(1));
    char *text = json_dumps(manifest, JSON_COMPACT);
    json_decref(manifest);
    if (!text)
        return NULL;
    size_t n = strlen(text);
    *total += BW_TAR_BLOCK + (n + BW_TAR_BLOCK - 1) / BW_TAR_BLOCK * BW_TAR_BLOCK;
    uint8_t *bytes = bw_aligned_zalloc(*total), *at = bytes;
    for (int i = -1; i < SECTIONS && bytes; i++) {
        size_t bytes_here = i < 0 ? n : sections[i].size;
        bw_tar_header(i < 0 ? "manifest.json" : sections[i].name, bytes_here, at);
        if (bytes_here)
            memcpy(at + BW_TAR_BLOCK, i < 0 ? (void *)text : sections[i].bytes, bytes_here);
        at += BW_TAR_BLOCK + (bytes_here + BW_TAR_BLOCK - 1) / BW_TAR_BLOCK * BW_TAR_BLOCK;
    }
    free(text);
    return bytes;
}

/* Small inputs of the promised shapes. */
static void run(bw_session *s)
{
    bw_error err;
    int in_count = bw_session_input_count(s), out_count = bw_session_output_count(s);
    int features = bw_session_feature_count(s), room = out_count > features ? out_count : features, small = 1;
    bw_array *in = calloc((size_t)in_count, sizeof *in), *out = calloc((size_t)room + 1, sizeof *out);
    for (int i = 0; i < in_count && in && out && small; i++) {
        const bw_io *io = bw_session_input(s, i);
        int64_t dims[BW_RANK_MAX], count = 1;
        for (int d = 0; d < io->rank && small; d++) {
            dims[d] = d == 0 && io->dims[0] < 0 ? 2 : io->dims[d];
            small = dims[d] <= 4096 && (count *= dims[d]) <= 4096;
        }
        small = small && !bw_array_alloc(&in[i], io->dtype, io->rank, dims, &err);
        if (small && in[i].bytes)
            memset(in[i].data, 0, in[i].bytes);
    }
    for (int featurize = 0; featurize < 2 && in && out && small; featurize++) {
        bw_run_options options = {.featurize = featurize};
        int count = featurize ? features : out_count;
        if (!bw_session_run(s, in, out, &options, &err)) {
            for (int i = 0; i < count; i++)
                bw_array_free(&out[i]);
        }
        for (int i = 0; i < count; i++) {
            if (out[i].data)
                abort(); /* a failed run leaves nothing to free */
        }
    }
    for (int i = 0; i < in_count && in; i++)
        bw_array_free(&in[i]);
    free(in);
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!device)
        prepare();
    size_t total;
    uint8_t *bytes = make_archive(data, size, &total);
    if (!bytes)
        return 0;
    bw_package *pkg;
    bw_session *s;
    bw_error err;
    if (!bw_package_parse(bytes, total, &pkg, &err)) {
        if (!bw_session_open(pkg, device, &s, &err)) {
            run(s);
            bw_session_close(s);
        }
        bw_package_close(pkg);
    }
    free(bytes);
    return 0;
}
