/* SPDX-License-Identifier: Apache-2.0 */
/* blockwave profile */
#include "host/cmd_profile.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "host/session_plan.h"

static const char help[] =
    "usage: blockwave profile MODEL.bw [--device URI] [--batch N] [--runs N] [--threads N] [--trace FILE.json] "
    "[--json]\n"
    "\n"
    "Measures where a run spends its time: a row for each instruction, CPU stage and conversion.\n"
    "\n"
    "  --device URI     default sim:, see 'blockwave devices'\n"
    "  --batch N        images of one run, default 1\n"
    "  --runs N         runs that are measured, default 50; as many again without the clocks inside\n"
    "  --threads N      threads of a sim: device (the same as its option threads=N)\n"
    "  --trace FILE     write the typical run for chrome://tracing or ui.perfetto.dev\n"
    "  --json           machine-readable result\n"
    "  -h, --help\n";

#define WARM_UP 3
#define PEAKS   11 /* measurements, if there are as many runs */

typedef struct profiler {
    bw_profile_result r;
    bw_cmd_model model;
    bw_plan plan; /* what the package says, read once more for names and programs */
    bw_profile *profile;
    bw_array *in;
    bw_sim_peak peaks[PEAKS];
    int peak_count;
} profiler;

/* --- rows --------------------------------------------------------------------------------------------------------- */

static bw_profile_row *add_row(profiler *p, int stage, int64_t index, const char *text)
{
    bw_profile_row *row = &p->r.rows[p->r.row_count];
    row->ns = calloc((size_t)p->r.runs, sizeof *row->ns);
    if (!row->ns)
        return NULL;
    p->r.row_count++;
    row->stage = stage;
    row->index = index;
    row->layer = "";
    snprintf(row->text, sizeof row->text, "%s", text);
    return row;
}

/* "Reshape, Softmax": the operators of a CPU stage, each once. */
static void list_operators(const bw_graph *g, char *buf, size_t size)
{
    size_t at = 0;
    buf[0] = 0;
    for (int i = 0; i < g->node_count; i++) {
        int seen = 0;
        for (int k = 0; k < i; k++)
            seen |= strcmp(g->nodes[k].op, g->nodes[i].op) == 0;
        if (seen || at + strlen(g->nodes[i].op) + 6 >= size)
            continue;
        at += (size_t)snprintf(buf + at, size - at, "%s%s", at ? ", " : "", g->nodes[i].op);
    }
}

static bw_status add_device_rows(profiler *p, int stage, bw_error *err)
{
    const bw_plan_stage *st = &p->plan.stages[stage];
    const json_t *json =
        json_array_get(json_object_get(bw_package_manifest(p->model.package), "stages"), (size_t)stage);
    const json_t *layers = json_object_get(json, "layers");
    bw_program program;
    bw_status status = bw_program_parse(st->program, st->program_size, &program, err);
    if (status)
        return status;
    int ok = add_row(p, stage, -1, "to device") && add_row(p, stage, -1, "hand over");
    for (uint32_t i = 0; ok && i < program.header->instruction_count; i++) {
        const bw_instruction *ins = &program.instructions[i];
        bw_profile_row *row = add_row(p, stage, i, bw_opcode_name(ins->opcode));
        if (!(ok = row != NULL))
            break;
        const char *name = json_string_value(json_array_get(layers, i));
        row->layer = name ? name : "";
        bw_instruction_shape(ins, row->shape, sizeof row->shape);
        bw_instruction_cost(ins, &row->cost);
    }
    ok = ok && add_row(p, stage, -1, "device, other") && add_row(p, stage, -1, "from device");
    return ok ? BW_OK : bw_fail(err, BW_NO_MEMORY, "no memory for a profile");
}

static bw_status make_rows(profiler *p, bw_error *err)
{
    size_t most = 2;
    for (int i = 0; i < p->profile->stage_count; i++)
        most += p->profile->stages[i].instruction_count + 4;
    p->r.rows = calloc(most, sizeof *p->r.rows);
    if (!p->r.rows || !add_row(p, -1, -1, "check inputs"))
        return bw_fail(err, BW_NO_MEMORY, "no memory for a profile");
    for (int i = 0; i < p->plan.stage_count; i++) {
        if (p->plan.stages[i].device) {
            bw_status status = add_device_rows(p, i, err);
            if (status)
                return status;
            continue;
        }
        char operators[80];
        list_operators(p->plan.stages[i].graph, operators, sizeof operators);
        bw_profile_row *row = add_row(p, i, -1, "CPU");
        if (!row)
            return bw_fail(err, BW_NO_MEMORY, "no memory for a profile");
        snprintf(row->shape, sizeof row->shape, "%s", operators);
    }
    return add_row(p, -1, -1, "deliver") ? BW_OK : bw_fail(err, BW_NO_MEMORY, "no memory for a profile");
}

static uint64_t less(uint64_t a, uint64_t b)
{
    return a > b ? a - b : 0;
}

/* One run's times into the rows; together they are the run, to the nanosecond. */
static void collect(profiler *p, int64_t run)
{
    const bw_profile *f = p->profile;
    bw_profile_row *row = p->r.rows, *first = row++;
    uint64_t stages = 0;
    first->ns[run] = f->stage_count ? f->stages[0].start_ns : 0;
    for (int i = 0; i < f->stage_count; i++) {
        const bw_stage_profile *s = &f->stages[i];
        stages += s->total_ns;
        if (!s->device) {
            (row++)->ns[run] = s->total_ns;
            continue;
        }
        uint64_t sum = 0;
        (row++)->ns[run] = s->in_ns;
        (row++)->ns[run] = less(s->total_ns, s->in_ns + s->run_ns + s->out_ns);
        for (uint32_t k = 0; k < s->instruction_count; k++) {
            sum += s->instruction_ns[k];
            (row++)->ns[run] = s->instruction_ns[k];
        }
        (row++)->ns[run] = less(s->run_ns, sum);
        (row++)->ns[run] = s->out_ns;
    }
    row->ns[run] = less(f->total_ns, first->ns[run] + stages);
}

/* --- runs ----------------------------------------------------------------------------------------------------------
 */

/* Numbers between -1 and 1, the same every time. */
static bw_status make_inputs(profiler *p, bw_error *err)
{
    const bw_session *s = p->model.session;
    const int count = bw_session_input_count(s);
    p->in = calloc((size_t)count, sizeof *p->in);
    if (!p->in)
        return bw_fail(err, BW_NO_MEMORY, "no memory for the inputs");
    uint32_t seed = 1;
    for (int i = 0; i < count; i++) {
        const bw_io *io = bw_session_input(s, i);
        int64_t dims[BW_RANK_MAX];
        memcpy(dims, io->dims, sizeof dims);
        if (io->rank > 0 && dims[0] < 0)
            dims[0] = p->r.batch;
        else if (io->rank > 0)
            dims[0] *= p->r.batch;
        bw_status status = bw_array_alloc(&p->in[i], BW_F32, io->rank, dims, err);
        if (status)
            return status;
        for (int64_t k = 0; k < bw_array_count(&p->in[i]); k++) {
            seed = seed * 1664525u + 1013904223u;
            ((float *)p->in[i].data)[k] = (float)(int32_t)seed * 0x1p-31f;
        }
    }
    return BW_OK;
}

static bw_status run_once(profiler *p, bw_profile *profile, uint64_t *total_ns, bw_error *err)
{
    const int outputs = bw_session_output_count(p->model.session);
    bw_array *out = calloc((size_t)outputs, sizeof *out);
    if (!out)
        return bw_fail(err, BW_NO_MEMORY, "no memory for a run");
    bw_timing timing;
    bw_run_options options = {.timing = &timing, .profile = profile};
    bw_status status = bw_session_run(p->model.session, p->in, out, &options, err);
    *total_ns = status ? 0 : timing.total;
    for (int i = 0; i < outputs; i++)
        bw_array_free(&out[i]);
    free(out);
    return status;
}

/* One more measurement of the peak of what runs the kernels, if that is a CPU. Between runs, as the clock changes. */
static bw_status sample_peak(profiler *p, bw_error *err)
{
    bw_sim_peak *peak = &p->peaks[p->peak_count];
    bw_status status = BW_OK;
    for (int i = BW_SIM_ISA_PORTABLE; *p->r.device.isa && i < BW_SIM_ISA_LIMIT && !status; i++)
        if (strcmp(bw_sim_isa_name((bw_sim_isa)i), p->r.device.isa) == 0) {
            status = bw_sim_peak_measure((bw_sim_isa)i, peak, err);
            p->peak_count += !status;
        }
    return status;
}

static int by_int8(const void *a, const void *b)
{
    const double x = ((const bw_sim_peak *)a)->int8, y = ((const bw_sim_peak *)b)->int8;
    return (x > y) - (x < y);
}

static bw_status measure(profiler *p, bw_error *err)
{
    bw_status status = BW_OK;
    uint64_t ns;
    for (int i = 0; i < WARM_UP && !status; i++)
        status = run_once(p, i % 2 ? NULL : p->profile, &ns, err);
    /* In turn, so that whatever else the machine does falls on both. */
    for (int64_t i = 0; i < p->r.runs && !status; i++) {
        if (bw_cli_interrupted())
            return bw_fail(err, BW_CANCELLED, "interrupted");
        const int before = p->peak_count;
        if (i * (PEAKS - 1) / p->r.runs >= before)
            status = sample_peak(p, err);
        if (p->peak_count > before) /* caches and threads as between runs */
            status = run_once(p, NULL, &ns, err);
        if (!status)
            status = run_once(p, p->profile, &ns, err);
        if (!status)
            status = bw_samples_add(&p->r.timed, p->profile->total_ns, err);
        if (status)
            break;
        collect(p, i);
        status = run_once(p, NULL, &ns, err);
        if (!status)
            status = bw_samples_add(&p->r.untimed, ns, err);
    }
    return status ? status : sample_peak(p, err);
}

static bw_status summarise(profiler *p, bw_error *err)
{
    bw_profile_result *r = &p->r;
    if (p->peak_count) {
        qsort(p->peaks, (size_t)p->peak_count, sizeof *p->peaks, by_int8);
        r->peak = p->peaks[p->peak_count / 2];
    }
    uint64_t *order = malloc((size_t)r->runs * sizeof *order);
    if (!order)
        return bw_fail(err, BW_NO_MEMORY, "no memory for a profile");
    memcpy(order, r->timed.ns, (size_t)r->runs * sizeof *order);
    bw_samples_sort(&r->timed);
    bw_samples_sort(&r->untimed);
    const uint64_t median = r->timed.ns[(r->runs - 1) / 2];
    while (order[r->typical] != median)
        r->typical++;
    for (int i = 0; i < r->row_count; i++) {
        bw_profile_row *row = &r->rows[i];
        memcpy(order, row->ns, (size_t)r->runs * sizeof *order);
        bw_samples s = {.ns = order, .count = (size_t)r->runs};
        bw_samples_sort(&s);
        row->median = bw_samples_ms(&s, 50);
        row->p10 = bw_samples_ms(&s, 10);
        row->p90 = bw_samples_ms(&s, 90);
        r->sum += row->median;
    }
    free(order);
    return BW_OK;
}

static bw_status profile(profiler *p, const char *path, const char *uri, bw_error *err)
{
    bw_status status = bw_cmd_open_model(path, uri, &p->model, err);
    if (!status)
        status = bw_plan_read(p->model.package, &p->plan, err);
    if (!status)
        status = bw_device_info_get(p->model.device, &p->r.device, err);
    if (!status)
        status = bw_profile_new(p->model.session, &p->profile, err);
    if (!status)
        status = make_inputs(p, err);
    if (!status)
        status = make_rows(p, err);
    if (!status)
        status = measure(p, err);
    return status ? status : summarise(p, err);
}

static void free_profiler(profiler *p)
{
    for (int i = 0; i < p->r.row_count; i++)
        free(p->r.rows[i].ns);
    free(p->r.rows);
    for (int i = 0; p->in && i < bw_session_input_count(p->model.session); i++)
        bw_array_free(&p->in[i]);
    free(p->in);
    bw_samples_free(&p->r.timed);
    bw_samples_free(&p->r.untimed);
    bw_profile_free(p->profile);
    bw_plan_free(&p->plan);
    bw_cmd_close_model(&p->model);
}

int bw_cmd_profile(int argc, char **argv)
{
    static const struct option options[] = {
        {"device", required_argument, NULL, 'd'}, {"batch", required_argument, NULL, 'b'},
        {"runs", required_argument, NULL, 'n'},   {"threads", required_argument, NULL, 't'},
        {"trace", required_argument, NULL, 'T'},  {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},         {NULL, 0, NULL, 0}};
    profiler p = {.r = {.batch = 1, .runs = 50}};
    const char *uri = "sim:", *trace = NULL;
    int64_t threads = 0;
    int json = 0;
    for (int c; (c = bw_cmd_option(argc, argv, options, help)) != BW_CMD_END;) {
        if (c < 0)
            return c == BW_CMD_HELP ? BW_EXIT_OK : BW_EXIT_USAGE;
        int ok = 1;
        if (c == 'd')
            uri = optarg;
        else if (c == 'T')
            trace = optarg;
        else if (c == 'b')
            ok = bw_cmd_number("profile", "--batch", optarg, 1, 4096, &p.r.batch);
        else if (c == 'n')
            ok = bw_cmd_number("profile", "--runs", optarg, 1, 100000, &p.r.runs);
        else if (c == 't')
            ok = bw_cmd_number("profile", "--threads", optarg, 1, 64, &threads);
        json |= c == 'j';
        if (!ok)
            return BW_EXIT_USAGE;
    }
    if (optind + 1 != argc)
        return bw_cli_usage("profile", "expected one package, got %d", argc - optind);
    char with_threads[256];
    if (threads) {
        int n = snprintf(with_threads, sizeof with_threads, "%s%sthreads=%" PRId64, uri, strchr(uri, '?') ? "&" : "?",
                         threads);
        if (n < 0 || (size_t)n >= sizeof with_threads)
            return bw_cli_usage("profile", "--device of %zu characters: expected at most %zu", strlen(uri),
                                sizeof with_threads - 30);
        uri = with_threads;
    }
    bw_cli_catch_interrupts();
    p.r.model = &p.model;
    bw_error err;
    bw_status status = profile(&p, argv[optind], uri, &err);
    if (!status && trace)
        status = bw_profile_write_trace(&p.r, trace, &err);
    if (!status && json)
        bw_profile_print_json(&p.r);
    else if (!status)
        bw_profile_print(&p.r);
    free_profiler(&p);
    return status ? bw_cli_fail("profile", &err) : BW_EXIT_OK;
}
