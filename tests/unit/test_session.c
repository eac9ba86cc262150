/* SPDX-License-Identifier: Apache-2.0 */
/* Sessions: what comes out, from how many threads and in which batches, in time, and from which manifests not. */
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "hal/base.h"
#include "host/session.h"
#include "sim/sim.h"

static char dir[256];
static bw_error err;

#define MS UINT64_C(1000000)

static int make_dir(void **state)
{
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/session-%ld", tmp ? tmp : "/tmp", (long)getpid());
    return mkdir(dir, 0700) || bw_sim_register(&err);
}

static int drop_dir(void **state)
{
    (void)state;
    char command[512];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command);
}

static void ok(bw_status status)
{
    if (status)
        fail_msg("%s: %s", bw_status_name(status), err.message);
}

static void is(bw_status expected, bw_status status, const char *says)
{
    if (status != expected || !strstr(err.message, says))
        fail_msg("%s '%s', expected %s '%s'", bw_status_name(status), status ? err.message : "",
                 bw_status_name(expected), says);
}

/* --- a package: relu on the CPU, 3 x 2 x 5 through the device as fp16, plus a constant on the CPU ----------------- */

enum { C = 3, H = 2, W = 5, SAMPLE = C * H * W };

typedef struct parts {
    char *graph[2];
    void *blob[2];
    size_t blob_size[2];
    uint8_t *program;
    size_t program_size;
    uint8_t constants[64] __attribute__((aligned(64)));
} parts;

static bw_tensor tensor(bw_format format, bw_region region, uint64_t codes)
{
    return (bw_tensor){.codes = codes,
                       .height = H,
                       .width = W,
                       .channels = C,
                       .pixel_stride = C,
                       .row_stride = W * C,
                       .format = (uint8_t)format,
                       .region = (uint8_t)region,
                       .block = 1};
}

/* Input to fp16 activations, activations to the output: the identity for numbers that fp16 has. */
static void make_program(parts *p)
{
    struct {
        bw_program_header header;
        bw_instruction instructions[2];
    } program = {0};
    program.header = (bw_program_header){.magic = BW_PROGRAM_MAGIC,
                                         .isa_version = BW_ISA_VERSION,
                                         .instruction_count = 2,
                                         .act_bytes = 128,
                                         .in_bytes = 128,
                                         .out_bytes = 128,
                                         .const_bytes = 0};
    for (int i = 0; i < 2; i++) {
        program.instructions[i] = (bw_instruction){.opcode = i ? BW_OP_COPY : BW_OP_PATCH,
                                                   .kernel_y = 1,
                                                   .kernel_x = 1,
                                                   .stride_y = 1,
                                                   .stride_x = 1,
                                                   .dilation_y = 1,
                                                   .dilation_x = 1,
                                                   .groups = 1};
    }
    program.instructions[0].in = tensor(BW_FORMAT_FP32, BW_REGION_IN, 0);
    program.instructions[0].out0 = tensor(BW_FORMAT_FP16, BW_REGION_ACT, 0);
    program.instructions[1].in = tensor(BW_FORMAT_FP16, BW_REGION_ACT, 0);
    program.instructions[1].out0 = tensor(BW_FORMAT_FP32, BW_REGION_OUT, 0);
    p->program_size = sizeof program;
    p->program = bw_aligned_zalloc(sizeof program);
    memcpy(p->program, &program, sizeof program);
}

static void add_graph(parts *p, int which, bw_graph *g)
{
    ok(bw_graph_sort(g, &err));
    ok(bw_graph_infer_shapes(g, &err));
    ok(bw_graph_write(g, &p->graph[which], &p->blob[which], &p->blob_size[which], &err));
    bw_graph_free(g);
}

static const char *first_operator = "Relu";

static void make_graphs(parts *p, int64_t batch)
{
    int64_t dims[4] = {batch, C, H, W}, one[4] = {1, C, 1, 1};
    bw_graph *g = bw_graph_new("before");
    int x = bw_graph_add_value(g, "x", BW_F32, 4, dims), a = bw_graph_add_value(g, "a", BW_F32, 4, dims);
    bw_graph_add_node(g, first_operator, "first", &x, 1, &a, 1);
    ok(bw_graph_set_inputs(g, &x, 1));
    ok(bw_graph_set_outputs(g, &a, 1));
    add_graph(p, 0, g);
    g = bw_graph_new("after");
    bw_array shift;
    ok(bw_array_alloc(&shift, BW_F32, 4, one, &err));
    for (int c = 0; c < C; c++)
        ((float *)shift.data)[c] = (float)(100 * c);
    int ids[2] = {bw_graph_add_value(g, "b", BW_F32, 4, dims), bw_graph_add_constant(g, "shift", &shift)};
    int y = bw_graph_add_value(g, "y", BW_F32, 4, dims);
    bw_graph_add_node(g, "Add", "add", ids, 2, &y, 1);
    ok(bw_graph_set_inputs(g, ids, 1));
    ok(bw_graph_set_outputs(g, &y, 1));
    add_graph(p, 1, g);
}

static void free_parts(parts *p)
{
    for (int i = 0; i < 2; i++) {
        free(p->graph[i]);
        free(p->blob[i]);
    }
    free(p->program);
}

#define MANIFEST                                                                                                       \
    "{\"model\":{\"name\":\"net\",\"version\":\"3\"},"                                                                 \
    "\"inputs\":[{\"name\":\"x\",\"dtype\":\"fp32\",\"shape\":[%d,3,2,5]}],"                                           \
    "\"outputs\":[{\"name\":\"y\",\"dtype\":\"fp32\",\"shape\":[%d,3,2,5]}],"                                          \
    "\"labels\":[\"cat\",\"dog\"],\"preprocess\":{\"size\":[2,5]},\"features\":[\"b\"],"                               \
    "\"stages\":[{\"kind\":\"cpu\",\"graph\":\"stage0/graph.json\",\"constants\":\"stage0/constants.bin\","            \
    "\"inputs\":[\"x\"],\"outputs\":[\"a\"]},"                                                                         \
    "{\"kind\":\"device\",\"program\":\"stage1/program.bin\",\"constants\":\"stage1/constants.bin\","                  \
    "\"inputs\":[{\"name\":\"a\",\"offset\":0,\"shape\":[%d,3,2,5]}],"                                                 \
    "\"outputs\":[{\"name\":\"b\",\"offset\":0,\"shape\":[%d,3,2,5]}]},"                                               \
    "{\"kind\":\"cpu\",\"graph\":\"stage2/graph.json\",\"constants\":\"stage2/constants.bin\","                        \
    "\"inputs\":[\"b\"],\"outputs\":[\"y\"]}]}"

/* edits: pairs, the first replaced by the second in the manifest, and a NULL. */
static bw_status open_with_edits(int batch, const char *uri, const char *const *edits, bw_package **pkg,
                                 bw_device **device, bw_session **session)
{
    parts p = {0};
    make_graphs(&p, batch);
    make_program(&p);
    char text[8192], edited[8192], path[512];
    snprintf(edited, sizeof edited, MANIFEST, batch, batch, batch, batch);
    for (; edits[0]; edits += 2) {
        memcpy(text, edited, sizeof text);
        char *at = strstr(text, edits[0]);
        assert_non_null(at);
        assert_true(snprintf(edited, sizeof edited, "%.*s%s%s", (int)(at - text), text, edits[1],
                             at + strlen(edits[0])) < (int)sizeof edited);
    }
    json_t *manifest = json_loads(edited, 0, NULL);
    if (!manifest)
        fail_msg("test manifest is no JSON: %s", edited);
    const bw_package_section_in sections[] = {
        {"stage0/graph.json", p.graph[0], strlen(p.graph[0])}, {"stage0/constants.bin", p.blob[0], p.blob_size[0]},
        {"stage1/program.bin", p.program, p.program_size},     {"stage1/constants.bin", p.constants, 0},
        {"stage2/graph.json", p.graph[1], strlen(p.graph[1])}, {"stage2/constants.bin", p.blob[1], p.blob_size[1]}};
    snprintf(path, sizeof path, "%s/net.bw", dir);
    ok(bw_package_write(path, manifest, sections, 6, &err));
    json_decref(manifest);
    free_parts(&p);
    ok(bw_package_open(path, pkg, &err));
    ok(bw_device_open(uri, device, &err));
    return bw_session_open(*pkg, *device, session, &err);
}

/* The package with `from` replaced by `to` in its manifest. */
static bw_status open_edited(int batch, const char *uri, const char *from, const char *to, bw_package **pkg,
                             bw_device **device, bw_session **session)
{
    return open_with_edits(batch, uri, (const char *const[]){from, to, NULL}, pkg, device, session);
}

typedef struct open_net {
    bw_package *pkg;
    bw_device *device;
    bw_session *s;
} open_net;

static open_net open_on(int batch, const char *uri)
{
    open_net n;
    ok(open_edited(batch, uri, "net", "net", &n.pkg, &n.device, &n.s));
    return n;
}

static void close_net(open_net *n)
{
    bw_session_close(n->s);
    bw_device_close(n->device);
    bw_package_close(n->pkg);
}

static bw_array input(int64_t batch, unsigned seed)
{
    bw_array a;
    ok(bw_array_alloc(&a, BW_F32, 4, (int64_t[]){batch, C, H, W}, &err));
    for (int64_t i = 0; i < batch * SAMPLE; i++) {
        seed = seed * 1664525u + 1013904223u;
        ((float *)a.data)[i] = (float)((int)(seed >> 16) % 501 - 250); /* fp16 has them all */
    }
    return a;
}

static int right(const bw_array *in, const bw_array *out, int shifted)
{
    if (out->rank != 4 || out->dims[0] != in->dims[0] || out->dims[1] != C || out->dims[2] != H || out->dims[3] != W)
        return 0;
    for (int64_t i = 0; i < in->dims[0] * SAMPLE; i++) {
        float x = ((const float *)in->data)[i], y = x > 0 ? x : 0;
        if (shifted)
            y += (float)(100 * (i / (H * W) % C));
        if (((const float *)out->data)[i] != y)
            return 0;
    }
    return 1;
}

static void run_batch(bw_session *s, int64_t batch)
{
    bw_array in = input(batch, (unsigned)batch), out = {0}, feature = {0};
    bw_timing t = {0};
    ok(bw_session_run(s, &in, &out, &(bw_run_options){.timing = &t}, &err));
    assert_true(right(&in, &out, 1));
    assert_true(t.total > 0 && t.device_run > 0 && t.total >= t.device_run);
    ok(bw_session_run(s, &in, &feature, &(bw_run_options){.featurize = 1}, &err));
    assert_true(right(&in, &feature, 0));
    bw_array_free(&in);
    bw_array_free(&out);
    bw_array_free(&feature);
}

static void test_batches(void **state)
{
    (void)state;
    static const char *const uris[] = {"sim:?threads=2", "sim:reference"};
    for (int u = 0; u < 2; u++) {
        open_net n = open_on(-1, uris[u]);
        static const int64_t batches[] = {1, 2, 7, 255, 256, 257, 1};
        for (size_t i = 0; i < sizeof batches / sizeof *batches; i++)
            run_batch(n.s, batches[i]);
        close_net(&n);
    }
    bw_session_close(NULL);
}

/* --- inputs that are fetched -------------------------------------------------------------------------------------- */

typedef struct fetched {
    const float *values;
    size_t count, broken_at; /* reading this one fails; SIZE_MAX: none */
} fetched;

static bw_status fetch(void *user, size_t first, size_t count, float *to, bw_error *e)
{
    const fetched *f = user;
    assert_true(count > 0 && first + count <= f->count);
    if (f->broken_at >= first && f->broken_at < first + count)
        return bw_fail(e, BW_INVALID_ARGUMENT, "value %zu cannot be read", f->broken_at);
    memcpy(to, f->values + first, count * sizeof *to);
    return BW_OK;
}

/* The same network three ways: its input read by the CPU stage; by that and the device; by the device alone. */
static const char *const readers[3][2] = {
    {"net", "net"},
    {"\"inputs\":[{\"name\":\"a\"", "\"inputs\":[{\"name\":\"x\""},
    {"{\"kind\":\"cpu\",\"graph\":\"stage0/graph.json\",\"constants\":\"stage0/constants.bin\","
     "\"inputs\":[\"x\"],\"outputs\":[\"a\"]},"
     "{\"kind\":\"device\",\"program\":\"stage1/program.bin\",\"constants\":\"stage1/constants.bin\","
     "\"inputs\":[{\"name\":\"a\"",
     "{\"kind\":\"device\",\"program\":\"stage1/program.bin\",\"constants\":\"stage1/constants.bin\","
     "\"inputs\":[{\"name\":\"x\""},
};

static void compare_fetched(bw_session *s, int64_t batch)
{
    bw_array in = input(batch, 7), described = in, out = {0}, expected = {0};
    fetched f = {in.data, (size_t)(batch * SAMPLE), SIZE_MAX};
    bw_source source = {fetch, &f}, none = {0};
    described.data = NULL;
    described.bytes = 0;
    ok(bw_session_run(s, &in, &expected, &(bw_run_options){.sources = &none}, &err));
    ok(bw_session_run(s, &described, &out, &(bw_run_options){.sources = &source}, &err));
    assert_int_equal(out.bytes, expected.bytes);
    assert_memory_equal(out.data, expected.data, out.bytes);
    bw_array_free(&out);
    float *values = in.data;
    values[batch * SAMPLE - 1] = INFINITY;
    values[SAMPLE - 2] = NAN; /* in the last plane of the first image; one that comes later in the first: */
    values[SAMPLE - H * W - 1] = NAN;
    char text[64];
    snprintf(text, sizeof text, "input 'x': element %d is nan", SAMPLE - H * W - 1);
    is(BW_NOT_FINITE, bw_session_run(s, &described, &out, &(bw_run_options){.sources = &source}, &err), text);
    is(BW_NOT_FINITE, bw_session_run(s, &in, &out, NULL, &err), text);
    f.broken_at = 3;
    is(BW_INVALID_ARGUMENT, bw_session_run(s, &described, &out, &(bw_run_options){.sources = &source}, &err),
       "value 3 cannot be read");
    assert_null(out.data);
    /* It is none the worse. */
    bw_array_free(&in);
    in = input(batch, 7);
    ok(bw_session_run(s, &in, &out, NULL, &err));
    assert_memory_equal(out.data, expected.data, out.bytes);
    bw_array_free(&out);
    bw_array_free(&in);
    bw_array_free(&expected);
}

static void test_sources(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        open_net n;
        ok(open_edited(-1, "sim:", readers[i][0], readers[i][1], &n.pkg, &n.device, &n.s));
        for (int64_t batch = 1; batch < 400; batch += 128)
            compare_fetched(n.s, batch);
        close_net(&n);
    }
    open_net n = open_on(1, "sim:");
    compare_fetched(n.s, 1);
    compare_fetched(n.s, 4); /* in pieces */
    close_net(&n);
}

static void test_fixed_batch(void **state)
{
    (void)state;
    open_net n = open_on(1, "sim:");
    assert_int_equal(bw_session_input(n.s, 0)->dims[0], 1);
    run_batch(n.s, 1);
    run_batch(n.s, 5);
    close_net(&n);
}

static void test_profile(void **state)
{
    (void)state;
    static const int64_t fixed[] = {-1, 1};
    for (int f = 0; f < 2; f++) {
        open_net n = open_on((int)fixed[f], "sim:?threads=2");
        bw_profile *p;
        ok(bw_profile_new(n.s, &p, &err));
        assert_int_equal(p->stage_count, 3);
        for (int64_t batch = 1; batch <= 300; batch += 299) { /* also in pieces, and in more than one submission */
            bw_array in = input(batch, 5), out = {0};
            ok(bw_session_run(n.s, &in, &out, &(bw_run_options){.profile = p}, &err));
            assert_true(right(&in, &out, 1));
            uint64_t stages = 0;
            for (int i = 0; i < 3; i++) {
                const bw_stage_profile *s = &p->stages[i];
                assert_int_equal(s->device, i == 1);
                assert_int_equal(s->instruction_count, i == 1 ? 2 : 0);
                assert_true(s->total_ns > 0 && s->start_ns <= p->total_ns);
                assert_true(i == 0 || s->start_ns >= p->stages[i - 1].start_ns);
                assert_true(s->in_ns + s->queue_ns + s->run_ns + s->out_ns <= s->total_ns);
                stages += s->total_ns;
            }
            const bw_stage_profile *d = &p->stages[1];
            assert_true(d->run_ns > 0 && d->in_ns > 0 && d->out_ns > 0);
            assert_true(d->instruction_ns[0] + d->instruction_ns[1] > 0);
            assert_true(d->instruction_ns[0] + d->instruction_ns[1] <= d->run_ns);
            assert_true(stages <= p->total_ns); /* nothing of the run before is left in it */
            bw_array_free(&in);
            bw_array_free(&out);
        }
        bw_profile_free(p);
        close_net(&n);
    }
    bw_profile_free(NULL);
    open_net n = open_on(-1, "sim:reference");
    bw_profile *p;
    bw_array in = input(1, 5), out = {0};
    ok(bw_profile_new(n.s, &p, &err));
    is(BW_UNSUPPORTED, bw_session_run(n.s, &in, &out, &(bw_run_options){.profile = p}, &err), "take a device");
    run_batch(n.s, 1);
    bw_profile_free(p);
    bw_array_free(&in);
    close_net(&n);
}

static void test_what_it_tells(void **state)
{
    (void)state;
    open_net n = open_on(-1, "sim:");
    assert_string_equal(bw_session_model_name(n.s), "net");
    assert_string_equal(bw_session_model_version(n.s), "3");
    assert_int_equal(bw_session_input_count(n.s), 1);
    assert_int_equal(bw_session_output_count(n.s), 1);
    assert_int_equal(bw_session_feature_count(n.s), 1);
    const bw_io *io = bw_session_input(n.s, 0);
    assert_string_equal(io->name, "x");
    assert_int_equal(io->dtype, BW_F32);
    assert_int_equal(io->rank, 4);
    assert_int_equal(io->dims[0], -1);
    assert_int_equal(io->dims[3], W);
    assert_string_equal(bw_session_output(n.s, 0)->name, "y");
    assert_string_equal(bw_session_feature(n.s, 0)->name, "b");
    assert_null(bw_session_input(n.s, 1));
    assert_null(bw_session_output(n.s, -1));
    assert_null(bw_session_feature(n.s, 1));
    assert_int_equal(bw_session_preprocess(n.s)->width, 5);
    assert_int_equal(bw_session_label_count(n.s), 2);
    assert_string_equal(bw_session_label(n.s, 1), "dog");
    assert_null(bw_session_label(n.s, 2));
    assert_null(bw_session_label(n.s, -1));
    close_net(&n);
}

static void test_bad_inputs(void **state)
{
    (void)state;
    open_net n = open_on(-1, "sim:");
    bw_array in = input(2, 1), out = {0};
    bw_array bad = in;
    bad.rank = 3;
    is(BW_INVALID_ARGUMENT, bw_session_run(n.s, &bad, &out, NULL, &err), "input 'x' is fp32 [2, 3, 2], expected fp32");
    bad = in;
    bad.dims[3] = 4;
    is(BW_INVALID_ARGUMENT, bw_session_run(n.s, &bad, &out, NULL, &err), "[2, 3, 2, 4], expected fp32 [-1, 3, 2, 5]");
    bad = in;
    bad.dtype = BW_I32;
    is(BW_INVALID_ARGUMENT, bw_session_run(n.s, &bad, &out, NULL, &err), "int32");
    bad = in;
    bad.dims[0] = 0;
    is(BW_INVALID_ARGUMENT, bw_session_run(n.s, &bad, &out, NULL, &err), "batch of 0");
    bad.dims[0] = 4097;
    is(BW_INVALID_ARGUMENT, bw_session_run(n.s, &bad, &out, NULL, &err), "batch of 4097, expected 1 to 4096");
    bad.dims[0] = 3;
    is(BW_INVALID_ARGUMENT, bw_session_run(n.s, &bad, &out, NULL, &err), "takes more");
    ((float *)in.data)[37] = NAN;
    is(BW_NOT_FINITE, bw_session_run(n.s, &in, &out, NULL, &err), "input 'x': element 37 is nan");
    ((float *)in.data)[37] = 0;
    ((float *)in.data)[59] = -INFINITY;
    is(BW_NOT_FINITE, bw_session_run(n.s, &in, &out, NULL, &err), "input 'x': element 59 is -inf");
    assert_null(out.data);
    bw_array_free(&in);
    run_batch(n.s, 2); /* and nothing of it stays */
    close_net(&n);
}

static uint64_t device_runs(bw_device *device)
{
    bw_device_state now;
    ok(bw_device_state_get(device, &now, &err));
    return now.runs;
}

/* The first stage is the device's, and its input is looked at while it is laid out: what is refused, in what words,
 * does not depend on that, and the device hears nothing of it, however large the batch. */
static void test_refusals_on_the_way(void **state)
{
    (void)state;
    const char *const edits[] = {readers[2][0],
                                 readers[2][1],
                                 "\"inputs\":[{\"name\":\"x\",\"dtype\"",
                                 "\"inputs\":[{\"name\":\"w\",\"dtype\":\"fp64\",\"shape\":[-1,2]},"
                                 "{\"name\":\"x\",\"dtype\":\"fp32\",\"shape\":[-1,3,2,5]},"
                                 "{\"name\":\"z\",\"dtype\"",
                                 "\"preprocess\":{\"size\":[2,5]},",
                                 "",
                                 NULL};
    open_net n;
    ok(open_with_edits(-1, "sim:", edits, &n.pkg, &n.device, &n.s));
    for (int64_t batch = 2; batch < 600; batch += 255) { /* 2, 257, 512: the device takes 256 at once */
        bw_array in[3] = {{0}, input(batch, 3), input(batch, 4)}, out = {0};
        ok(bw_array_alloc(&in[0], BW_F64, 2, (int64_t[]){batch, 2}, &err));
        double *w = in[0].data;
        float *x = in[1].data, *z = in[2].data, was[2] = {x[SAMPLE + 1], x[batch * SAMPLE - 1]};
        memset(w, 0, in[0].bytes);
        char first[64], last[64];
        snprintf(first, sizeof first, "input 'x': element %d is inf, expected finite numbers", SAMPLE + 1);
        snprintf(last, sizeof last, "input 'x': element %d is nan, expected finite numbers", (int)batch * SAMPLE - 1);
        const uint64_t before = device_runs(n.device);
        x[batch * SAMPLE - 1] = NAN;
        is(BW_NOT_FINITE, bw_session_run(n.s, in, &out, NULL, &err), last);
        is(BW_NOT_FINITE, bw_session_run(n.s, in, &out, &(bw_run_options){.featurize = 1}, &err), last);
        z[0] = NAN; /* comes after it */
        is(BW_NOT_FINITE, bw_session_run(n.s, in, &out, NULL, &err), last);
        in[2].rank = 3;
        is(BW_NOT_FINITE, bw_session_run(n.s, in, &out, NULL, &err), last);
        in[2].rank = 4;
        x[SAMPLE + 1] = INFINITY;
        is(BW_NOT_FINITE, bw_session_run(n.s, in, &out, NULL, &err), first);
        is(BW_NOT_FINITE, bw_session_run(n.s, in, &out, &(bw_run_options){.deadline_ns = 1}, &err), first);
        w[1] = -INFINITY; /* comes before it */
        is(BW_NOT_FINITE, bw_session_run(n.s, in, &out, NULL, &err), "input 'w': element 1 is -inf, expected");
        w[1] = 0;
        x[SAMPLE + 1] = was[0];
        x[batch * SAMPLE - 1] = was[1];
        is(BW_NOT_FINITE, bw_session_run(n.s, in, &out, NULL, &err), "input 'z': element 0 is nan, expected");
        assert_null(out.data);
        assert_int_equal(device_runs(n.device), before);
        z[0] = 0;
        is(BW_TIMEOUT, bw_session_run(n.s, in, &out, &(bw_run_options){.deadline_ns = 1}, &err), "deadline exceeded");
        ok(bw_session_run(n.s, in, &out, NULL, &err));
        assert_true(device_runs(n.device) > before);
        for (int64_t i = 0; i < batch * SAMPLE; i++)
            assert_true(((float *)out.data)[i] == x[i] + (float)(100 * (i / (H * W) % C)));
        bw_array_free(&out);
        for (int i = 0; i < 3; i++)
            bw_array_free(&in[i]);
    }
    close_net(&n);
}

/* A CPU stage that overflows: told before the device runs, in one chunk or in several. */
static void test_infinity_between_stages(void **state)
{
    (void)state;
    first_operator = "Exp";
    open_net n = open_on(-1, "sim:");
    first_operator = "Relu";
    for (int64_t batch = 1; batch < 400; batch += 299) {
        bw_array in = input(batch, 3), out = {0};
        const int bad = (int)batch * SAMPLE - 4;
        memset(in.data, 0, in.bytes);
        ((float *)in.data)[bad] = 89;
        const uint64_t before = device_runs(n.device);
        char text[80];
        snprintf(text, sizeof text, "'a' before device stage 1: element %d is inf", bad);
        is(BW_NOT_FINITE, bw_session_run(n.s, &in, &out, NULL, &err), text);
        assert_null(out.data);
        assert_int_equal(device_runs(n.device), before);
        ((float *)in.data)[bad] = 1;
        ok(bw_session_run(n.s, &in, &out, NULL, &err));
        assert_true(((float *)out.data)[bad] > 2.7f);
        bw_array_free(&out);
        bw_array_free(&in);
    }
    close_net(&n);
}

static void test_deadlines(void **state)
{
    (void)state;
    open_net n = open_on(-1, "sim:?delay=30000&threads=1");
    bw_array in = input(1, 1), out = {0};
    is(BW_TIMEOUT, bw_session_run(n.s, &in, &out, &(bw_run_options){.deadline_ns = 1}, &err), "deadline exceeded");
    uint64_t start = bw_now_ns();
    bw_run_options soon = {.deadline_ns = start + 60 * MS};
    is(BW_TIMEOUT, bw_session_run(n.s, &in, &out, &soon, &err), "deadline exceeded in stage 1");
    assert_true(bw_now_ns() - start >= 60 * MS && bw_now_ns() - start < 5000 * MS);
    assert_null(out.data);
    close_net(&n);
    /* far deadlines change nothing */
    n = open_on(-1, "sim:");
    bw_run_options far = {.deadline_ns = bw_now_ns() + 60000 * MS};
    ok(bw_session_run(n.s, &in, &out, &far, &err));
    assert_true(right(&in, &out, 1));
    bw_array_free(&out);
    bw_array_free(&in);
    close_net(&n);
}

static void test_faults(void **state)
{
    (void)state;
    open_net n = open_on(-1, "sim:?threads=1&fault=error@1&fault=hang@3&fault=lost@5");
    bw_array in = input(1, 1), out = {0};
    is(BW_DEVICE_FAULT, bw_session_run(n.s, &in, &out, NULL, &err), "fault");
    ok(bw_session_run(n.s, &in, &out, NULL, &err));
    bw_array_free(&out);
    bw_run_options soon = {.deadline_ns = bw_now_ns() + 50 * MS};
    is(BW_TIMEOUT, bw_session_run(n.s, &in, &out, &soon, &err), "deadline");
    ok(bw_session_run(n.s, &in, &out, NULL, &err));
    assert_true(right(&in, &out, 1));
    bw_array_free(&out);
    bw_status status = bw_session_run(n.s, &in, &out, NULL, &err);
    assert_int_not_equal(status, BW_OK);
    bw_array_free(&in);
    close_net(&n);
}

typedef struct worker {
    bw_session *s;
    unsigned seed;
    int wrong;
} worker;

static void *work(void *user)
{
    worker *w = user;
    for (int i = 0; i < 25; i++) {
        bw_error why;
        int64_t batch = 1 + (w->seed + (unsigned)i) % 5;
        bw_array in = {0}, out = {0};
        if (bw_array_alloc(&in, BW_F32, 4, (int64_t[]){batch, C, H, W}, &why)) {
            w->wrong++;
            continue;
        }
        for (int64_t k = 0; k < batch * SAMPLE; k++)
            ((float *)in.data)[k] = (float)((int)((unsigned)k * 7 + w->seed * 131 + (unsigned)i) % 301 - 150);
        int featurize = i % 3 == 0;
        bw_status status = bw_session_run(w->s, &in, &out, &(bw_run_options){.featurize = featurize}, &why);
        w->wrong += status || !right(&in, &out, !featurize);
        bw_array_free(&in);
        bw_array_free(&out);
    }
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    enum { THREADS = 8 };
    open_net n = open_on(-1, "sim:?threads=2");
    pthread_t threads[THREADS];
    worker workers[THREADS];
    for (int i = 0; i < THREADS; i++) {
        workers[i] = (worker){n.s, (unsigned)i, 0};
        assert_int_equal(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(workers[i].wrong, 0);
    }
    close_net(&n);
}

static void test_hostile_manifests(void **state)
{
    (void)state;
#define DEVICE_IN "{\"name\":\"a\",\"offset\":0,\"shape\":[-1,3,2,5]}"
    static const struct {
        const char *from, *to, *says;
    } cases[] = {
        {"\"name\":\"net\"", "\"name\":\"../net\"", "\"model\" has no \"name\""},
        {"\"version\":\"3\"", "\"version\":3", "decimal digits"},
        {"\"version\":\"3\"", "\"version\":\"3a\"", "decimal digits"},
        {"\"inputs\":[{", "\"inpits\":[{", "\"inputs\" is not a list"},
        {"\"dtype\":\"fp32\"", "\"dtype\":\"fp33\"", "'fp33'"},
        {"\"dtype\":\"fp32\"", "\"dtype\":\"int64\"", "stage 0 reads 'x' as fp32"},
        {"\"shape\":[-1,3,2,5]}],\"outputs\"", "\"shape\":[-1,-1,2,5]}],\"outputs\"", "dimension 1"},
        {"\"shape\":[-1,3,2,5]}],\"outputs\"", "\"shape\":[-1,3,2,5,1,1,1,1,1]}],\"outputs\"", "\"shape\""},
        {"\"name\":\"y\",\"dtype\"", "\"name\":\"z\",\"dtype\"", "no stage puts out the network's output 'z'"},
        {"\"labels\":[\"cat\"", "\"labels\":[1", "label 0"},
        {"{\"size\":[2,5]}", "{\"size\":[5,2]}", "'x' wants [-1, 3, 2, 5]"},
        {"{\"size\":[2,5]}", "{\"size\":[2,5],\"std\":0}", "std 0"},
        {"\"features\":[\"b\"]", "\"features\":[]", "0 \"features\""},
        {"\"features\":[\"b\"]", "\"features\":[\"y\"]", "feature 0 is 'y'"},
        {"\"features\":[\"b\"]", "\"features\":\"b\"", "\"features\" is not a list"},
        {"\"kind\":\"device\"", "\"kind\":\"gpu\"", "kind 'gpu'"},
        {"stage1/program.bin", "stage9/program.bin", "no such section"},
        {"stage1/program.bin", "stage0/graph.json", "stage 1: program"},
        {"stage0/graph.json", "stage1/program.bin", "stage 0"},
        {"\"graph\":\"stage0/graph.json\"", "\"graph\":7", "names no section"},
        {"\"inputs\":[\"x\"]", "\"inputs\":[\"q\"]", "the graph has 'x'"},
        {"\"inputs\":[\"x\"]", "\"inputs\":[]", "0 inputs and 1 outputs"},
        {"\"inputs\":[\"x\"]", "\"inputs\":[5]", "no name"},
        {DEVICE_IN, "{\"name\":\"q\",\"offset\":0,\"shape\":[-1,3,2,5]}", "stage 1 reads 'q'"},
        {DEVICE_IN, "{\"name\":\"y\",\"offset\":0,\"shape\":[-1,3,2,5]}", "stage 1 reads 'y'"},
        {DEVICE_IN, "{\"name\":\"a\",\"offset\":4,\"shape\":[-1,3,2,5]}", "multiple of 64"},
        {DEVICE_IN, "{\"name\":\"a\",\"offset\":-64,\"shape\":[-1,3,2,5]}", "multiple of 64"},
        {DEVICE_IN, "{\"name\":\"a\",\"offset\":64,\"shape\":[-1,3,2,5]}", "takes bytes 64 to 184"},
        {DEVICE_IN, "{\"name\":\"a\",\"offset\":9223372036854775744,\"shape\":[-1,3,2,5]}", "takes bytes"},
        {DEVICE_IN, "{\"name\":\"a\",\"offset\":0,\"shape\":[-1,3,2,6]}", "it is fp32 [-1, 3, 2, 5]"},
        {DEVICE_IN, "{\"name\":\"a\",\"offset\":0,\"shape\":[2,3,2,5]}", "expected [-1 or 1"},
        {DEVICE_IN, "{\"name\":\"a\",\"offset\":0,\"shape\":[-1,3,0,5]}", "expected [-1 or 1"},
        {DEVICE_IN, "{\"name\":\"a\",\"offset\":0,\"shape\":[-1,1099511627776,1099511627776,5]}", "expected [-1 or 1"},
        {DEVICE_IN, "{\"name\":\"a\",\"offset\":0,\"shape\":[-1,3]}", "it is fp32"},
        {DEVICE_IN, DEVICE_IN "," DEVICE_IN, "overlap"},
        {DEVICE_IN, "", "an input and an output at least"},
        {"{\"name\":\"b\",\"offset\":0,\"shape\":[-1,3,2,5]}", "{\"name\":\"a\",\"offset\":0,\"shape\":[-1,3,2,5]}",
         "'a' is produced twice"},
        {"{\"name\":\"b\",\"offset\":0,\"shape\":[-1,3,2,5]}", "{\"name\":\"b\",\"offset\":0,\"shape\":[-1,3,2,7]}",
         "takes bytes 0 to 168"},
        {"\"stages\":[{", "\"stages\":[],\"x\":[{", "\"stages\" is empty"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        open_net n = {0};
        bw_status status = open_edited(-1, "sim:", cases[i].from, cases[i].to, &n.pkg, &n.device, &n.s);
        if (status != BW_CORRUPT || !strstr(err.message, cases[i].says))
            fail_msg("case %zu (%s -> %s): %s '%s', expected BW_CORRUPT '%s'", i, cases[i].from, cases[i].to,
                     bw_status_name(status), status ? err.message : "", cases[i].says);
        assert_null(n.s);
        close_net(&n);
    }
}

/* What the graph computes must be what the manifest promises, at the latest when it runs. */
static void test_broken_promises(void **state)
{
    (void)state;
    open_net n = {0};
    ok(open_edited(-1, "sim:", "\"outputs\":[{\"name\":\"y\",\"dtype\":\"fp32\",\"shape\":[-1,3,2,5]}]",
                   "\"outputs\":[{\"name\":\"y\",\"dtype\":\"fp32\",\"shape\":[-1,3,2,6]}]", &n.pkg, &n.device, &n.s));
    bw_array in = input(1, 1), out = {0};
    is(BW_CORRUPT, bw_session_run(n.s, &in, &out, NULL, &err), "the package promises fp32 [-1, 3, 2, 6]");
    assert_null(out.data);
    bw_array_free(&in);
    close_net(&n);
}

/* --- CPU only, several inputs, a value that is asked for twice ------------------------------------------------- */

static void test_several_inputs(void **state)
{
    (void)state;
    int64_t dims[2] = {-1, 4}, state_dims[2] = {2, 4};
    bw_graph *g = bw_graph_new("sum");
    int ids[2] = {bw_graph_add_value(g, "p", BW_F32, 2, dims), bw_graph_add_value(g, "q", BW_F32, 2, dims)};
    int y = bw_graph_add_value(g, "y", BW_F32, 2, dims);
    bw_graph_add_node(g, "Add", "add", ids, 2, &y, 1);
    ok(bw_graph_set_inputs(g, ids, 2));
    ok(bw_graph_set_outputs(g, &y, 1));
    parts p = {0};
    add_graph(&p, 0, g);
    json_t *manifest = json_loads(
        "{\"model\":{\"name\":\"sum\",\"version\":\"1\"},\"features\":[],"
        "\"inputs\":[{\"name\":\"p\",\"dtype\":\"fp32\",\"shape\":[-1,4]},{\"name\":\"q\",\"dtype\":\"fp32\",\"shape\":"
        "[-1,4]},{\"name\":\"s\",\"dtype\":\"fp32\",\"shape\":[2,4]}],"
        "\"outputs\":[{\"name\":\"y\",\"dtype\":\"fp32\",\"shape\":[-1,4]},{\"name\":\"y\",\"dtype\":\"fp32\","
        "\"shape\":"
        "[-1,4]},{\"name\":\"s\",\"dtype\":\"fp32\",\"shape\":[2,4]}],"
        "\"stages\":[{\"kind\":\"cpu\",\"graph\":\"g\",\"constants\":\"c\",\"inputs\":[\"p\",\"q\"],\"outputs\":"
        "[\"y\"]}]}",
        0, NULL);
    assert_non_null(manifest);
    char path[512];
    snprintf(path, sizeof path, "%s/sum.bw", dir);
    const bw_package_section_in sections[] = {{"g", p.graph[0], strlen(p.graph[0])}, {"c", p.blob[0], p.blob_size[0]}};
    ok(bw_package_write(path, manifest, sections, 2, &err));
    json_decref(manifest);
    free_parts(&p);
    open_net n;
    ok(bw_package_open(path, &n.pkg, &err));
    ok(bw_device_open("sim:", &n.device, &err));
    ok(bw_session_open(n.pkg, n.device, &n.s, &err));
    bw_array in[3], out[3] = {{0}};
    for (int i = 0; i < 3; i++) {
        dims[0] = 3;
        ok(bw_array_alloc(&in[i], BW_F32, 2, i == 2 ? state_dims : dims, &err));
        for (int k = 0; k < (i == 2 ? 8 : 12); k++)
            ((float *)in[i].data)[k] = (float)(i * 1000 + k);
    }
    ok(bw_session_run(n.s, in, out, NULL, &err));
    for (int i = 0; i < 2; i++) {
        for (int k = 0; k < 12; k++)
            assert_true(((float *)out[i].data)[k] == (float)(1000 + 2 * k));
    }
    assert_memory_equal(out[2].data, in[2].data, 32);
    assert_ptr_not_equal(out[0].data, out[1].data);
    assert_ptr_not_equal(out[2].data, in[2].data);
    for (int i = 0; i < 3; i++)
        bw_array_free(&out[i]);
    in[1].dims[0] = 2;
    is(BW_INVALID_ARGUMENT, bw_session_run(n.s, in, out, NULL, &err), "'q' has a batch of 2, another input one of 3");
    in[1].dims[0] = 3;
    in[2].dims[0] = 1;
    is(BW_INVALID_ARGUMENT, bw_session_run(n.s, in, out, NULL, &err), "'s' is fp32 [1, 4], expected fp32 [2, 4]");
    in[2].dims[0] = 2;
    is(BW_UNSUPPORTED, bw_session_run(n.s, in, out, &(bw_run_options){.featurize = 1}, &err), "no accelerator stage");
    for (int i = 0; i < 3; i++)
        bw_array_free(&in[i]);
    close_net(&n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batches),
        cmocka_unit_test(test_fixed_batch),
        cmocka_unit_test(test_what_it_tells),
        cmocka_unit_test(test_bad_inputs),
        cmocka_unit_test(test_deadlines),
        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_hostile_manifests),
        cmocka_unit_test(test_broken_promises),
        cmocka_unit_test(test_several_inputs),
        cmocka_unit_test(test_profile),
        cmocka_unit_test(test_sources),
        cmocka_unit_test(test_refusals_on_the_way),
        cmocka_unit_test(test_infinity_between_stages),
    };
    return cmocka_run_group_tests(tests, make_dir, drop_dir);
}
