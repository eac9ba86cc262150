/* SPDX-License-Identifier: Apache-2.0 */
/* The fast engine: choice of ISA, planning, memory, the run. */
#include "sim/fast.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "hal/base.h"

/* --- ISA ------------------------------------------------------------------------------------------------------------
 */

typedef struct isa_row {
    const char *name;
    const bw_rows *rows;
    const bw_dot_kernels *dots;
} isa_row;

static const isa_row isas[] = {
    [BW_SIM_ISA_AUTO] = {"auto", NULL, NULL},
    [BW_SIM_ISA_PORTABLE] = {"portable", &bw_rows_portable, &bw_dot_portable},
    [BW_SIM_ISA_AVX2] = {"avx2", &bw_rows_avx2, &bw_dot_avx2},
    [BW_SIM_ISA_AVX512VNNI] = {"avx512vnni", &bw_rows_avx512vnni, &bw_dot_avx512vnni},
    [BW_SIM_ISA_AMX] = {"amx", &bw_rows_amx, &bw_dot_avx512vnni},
};
#define ISAS BW_SIM_ISA_LIMIT

const char *bw_sim_isa_name(bw_sim_isa isa)
{
    return (unsigned)isa < ISAS ? isas[isa].name : "?";
}

static int has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

#define AMX_TILE           (1u << 24) /* CPUID leaf 7, EDX */
#define AMX_INT8           (1u << 25)
#define ARCH_XCOMP_PERM    0x1023
#define XFEATURE_TILE_DATA 18

/* Linux keeps tile registers for a process that has asked for it; it refuses if the CPU has none or if a thread's
 * alternate signal stack is too small for them. Once granted it holds for all threads, later ones too. */
static int has_amx(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (AMX_TILE | AMX_INT8)) != (AMX_TILE | AMX_INT8))
        return 0;
    return syscall(SYS_arch_prctl, ARCH_XCOMP_PERM, XFEATURE_TILE_DATA) == 0;
}

int bw_sim_isa_available(bw_sim_isa isa)
{
    /* The compiler's builtin also asks the operating system whether it keeps the registers. */
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    switch (isa) {
    case BW_SIM_ISA_AUTO:
    case BW_SIM_ISA_PORTABLE:
        return 1;
    case BW_SIM_ISA_AVX2:
        return avx2;
    case BW_SIM_ISA_AVX512VNNI:
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512vnni");
    case BW_SIM_ISA_AMX:
        return bw_sim_isa_available(BW_SIM_ISA_AVX512VNNI) && has_amx();
    }
    return 0;
}

static bw_status choose_isa(bw_sim_isa wanted, bw_sim_isa *isa, bw_error *err)
{
    if (wanted == BW_SIM_ISA_AUTO) {
        const char *name = getenv("BW_SIM_ISA");
        if (name && *name) {
            for (unsigned i = 1; i < ISAS; i++)
                if (strcmp(name, isas[i].name) == 0)
                    wanted = (bw_sim_isa)i;
            if (wanted == BW_SIM_ISA_AUTO)
                return bw_fail(err, BW_UNSUPPORTED, "BW_SIM_ISA=%s: expected portable, avx2, avx512vnni or amx", name);
        }
    }
    if (wanted == BW_SIM_ISA_AUTO) {
        wanted = BW_SIM_ISA_LIMIT - 1;
        while (!bw_sim_isa_available(wanted))
            wanted--;
    }
    if ((unsigned)wanted >= ISAS)
        return bw_fail(err, BW_UNSUPPORTED, "simulator ISA number %d: expected 0..%d", (int)wanted, (int)ISAS - 1);
    if (!bw_sim_isa_available(wanted))
        return bw_fail(err, BW_UNSUPPORTED, "simulator ISA %s: this CPU lacks it; leave the choice to the engine",
                       isas[wanted].name);
    *isa = wanted;
    return BW_OK;
}

static bw_status choose_threads(unsigned wanted, unsigned *threads, bw_error *err)
{
    if (wanted == 0) {
        const char *text = getenv("BW_SIM_THREADS");
        if (text && *text) {
            char *end;
            unsigned long n = strtoul(text, &end, 10);
            if (*end || *text < '0' || *text > '9' || n < 1 || n > BW_POOL_THREADS_MAX)
                return bw_fail(err, BW_INVALID_ARGUMENT, "BW_SIM_THREADS=%s: expected 1..%d", text,
                               BW_POOL_THREADS_MAX);
            wanted = (unsigned)n;
        }
    }
    if (wanted == 0) {
        cpu_set_t set;
        int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
        wanted = n < 1 ? 1 : n > BW_POOL_THREADS_MAX ? BW_POOL_THREADS_MAX : (unsigned)n;
    }
    if (wanted > BW_POOL_THREADS_MAX)
        return bw_fail(err, BW_INVALID_ARGUMENT, "%u simulator threads: expected 1..%d", wanted, BW_POOL_THREADS_MAX);
    *threads = wanted;
    return BW_OK;
}

/* Vector pipes of this CPU: 512-bit instructions take two on Intel's, and four (in halves, or whole) on AMD's. */
static bw_status choose_pipes(unsigned wanted, unsigned *pipes, bw_error *err)
{
    if (wanted == 0) {
        const char *text = getenv("BW_SIM_PIPES");
        if (text && *text) {
            if (strcmp(text, "2") != 0 && strcmp(text, "4") != 0)
                return bw_fail(err, BW_INVALID_ARGUMENT, "BW_SIM_PIPES=%s: expected 2 or 4", text);
            wanted = (unsigned)(*text - '0');
        }
    }
    if (wanted == 0)
        wanted = __builtin_cpu_is("intel") ? 2 : 4;
    if (wanted != 2 && wanted != 4)
        return bw_fail(err, BW_INVALID_ARGUMENT, "%u simulator pipes: expected 2 or 4", wanted);
    *pipes = wanted;
    return BW_OK;
}

/* --- plan ------------------------------------------------------------------------------------------------------------
 */

static void fill_tables(bw_format_tables *tables)
{
    for (int f = 0; f < BW_FORMAT_LIMIT; f++) {
        const bw_format_traits *t = bw_format_get((bw_format)f);
        if (!t || t->kind != BW_KIND_TABLE)
            continue;
        for (int c = 0; c < 256; c++) {
            int64_t v = bw_code_value(t, (uint8_t)c);
            tables->values16[f][c] = (int16_t)(v > INT16_MAX ? INT16_MAX : v < INT16_MIN ? INT16_MIN : v);
        }
    }
}

static bw_row_format row_format(unsigned format, uint16_t block)
{
    const bw_format_traits *t = bw_format_get((bw_format)format);
    bw_row_format f = {t, t->kind, block};
    return f;
}

static void plan_view(const bw_tensor *t, bw_view *v)
{
    if (t->region == BW_REGION_NONE)
        return;
    v->tensor = t;
    v->format = row_format(t->format, t->block);
    v->units = bw_tensor_units(t);
    v->unit_bytes = (size_t)t->block * v->format.traits->device_bytes;
}

/* Whether the pixels of a row and the rows lie one after the other. */
static int rows_adjoin(const bw_view *v)
{
    return !v->tensor || v->tensor->height == 1 || v->tensor->row_stride == v->tensor->width * v->tensor->pixel_stride;
}

static void plan_reduction(const bw_instruction *ins, bw_plan *plan)
{
    const size_t channels = ins->in.channels / ins->groups, block = ins->in.block;
    plan->group_blocks = (channels + block - 1) / block;
    /* Blocks of 16 have kernels of known length. */
    plan->last_fill = block == 16 ? 4 : (channels - (plan->group_blocks - 1) * block + 3) / 4;
    plan->reduction = bw_conv_blocks(ins);
}

/* 0: no memory. */
static int plan_instruction(const bw_fast *engine, const bw_instruction *ins, int is_signed, bw_plan *plan)
{
    plan->ins = ins;
    plan->is_signed = is_signed;
    plan_view(&ins->in, &plan->in);
    plan_view(&ins->in2, &plan->in2);
    plan_view(&ins->out0, &plan->out[0]);
    plan_view(&ins->out1, &plan->out[1]);
    plan->align = BW_OUTPUT_TILE;
    const bw_view *views[] = {&plan->in2, &plan->out[0], &plan->out[1]};
    for (unsigned i = 0; i < 3; i++)
        if (views[i]->tensor && views[i]->format.block > plan->align)
            plan->align = views[i]->format.block;
    plan->adjoin_in = rows_adjoin(&plan->in);
    plan->adjoin = rows_adjoin(&plan->in2) && rows_adjoin(&plan->out[0]) && rows_adjoin(&plan->out[1]);
    plan->activation = (bw_row_activation){(bw_activation)ins->activation, ins->clip_lo, ins->clip_hi};
    plan->weights = engine->constants + ins->weights;
    plan->weight_exps = (const int8_t *)engine->constants + ins->weight_exps;
    if (ins->flags & BW_FLAG_BIAS)
        plan->bias = (const float *)(const void *)(engine->constants + ins->bias);
    if (ins->weight_format != BW_FORMAT_NONE)
        plan->weight_format = row_format(ins->weight_format, ins->in.block);
    if (ins->opcode != BW_OP_CONV)
        return bw_vector_plan(engine, plan);
    plan_reduction(ins, plan);
    if (!bw_direct_plan(engine, plan))
        bw_conv_plan(engine, plan);
    return 1;
}

/* A convolution makes the patches that nobody else reads itself: they never leave the first caches. */
static void join_patches(const bw_program *program, bw_plan *plans)
{
    for (uint32_t i = 0; i + 1 < program->header->instruction_count; i++)
        if (plans[i].patches && plans[i + 1].direct && !bw_fast_is_read_later(program, i + 1, &plans[i].ins->out0))
            bw_direct_join(&plans[i + 1], &plans[i]);
}

static void *aligned(size_t bytes)
{
    return bytes > SIZE_MAX - 64 ? NULL : aligned_alloc(64, bw_round_up(bytes + !bytes, 64));
}

static bw_status fill_engine(bw_fast *engine, const bw_fast_options *options, bw_error *err)
{
    unsigned threads = 0;
    bw_status status = choose_isa(options ? options->isa : BW_SIM_ISA_AUTO, &engine->isa, err);
    if (!status)
        status = choose_threads(options ? options->threads : 0, &threads, err);
    if (!status)
        status = choose_pipes(options ? options->pipes : 0, &engine->pipes, err);
    if (status)
        return status;
    engine->least_matrix = options ? options->least_matrix : 0;
    engine->rows = isas[engine->isa].rows;
    engine->dots = isas[engine->isa].dots;
    engine->bytes = engine->pipes == 2 ? engine->dots->bytes_2p : engine->dots->bytes;

    const uint32_t count = engine->program->header->instruction_count;
    engine->tables = calloc(1, sizeof *engine->tables);
    engine->plans = calloc(count ? count : 1, sizeof *engine->plans);
    uint8_t *never_negative = malloc(count + 1);
    if (!engine->tables || !engine->plans || !never_negative) {
        free(never_negative);
        return bw_fail(err, BW_NO_MEMORY, "no memory for the plan of %u instructions", count);
    }
    bw_fast_find_signs(engine->program, never_negative);
    fill_tables(engine->tables);
    engine->fp32 = row_format(BW_FORMAT_FP32, 1);
    for (uint32_t i = 0; i < count; i++) {
        bw_plan *plan = &engine->plans[i];
        if (!plan_instruction(engine, &engine->program->instructions[i], !never_negative[i], plan)) {
            free(never_negative);
            return bw_fail(err, BW_NO_MEMORY, "no memory for the weights of instruction %u", i);
        }
    }
    free(never_negative);
    join_patches(engine->program, engine->plans);
    for (uint32_t i = 0; i < count; i++)
        if (engine->plans[i].scratch > engine->scratch_bytes)
            engine->scratch_bytes = engine->plans[i].scratch;
    engine->scratch_bytes = bw_round_up(engine->scratch_bytes, 4096) + 64;
    if (engine->scratch_bytes <= SIZE_MAX / threads)
        engine->scratch = aligned(engine->scratch_bytes * threads);
    if (!engine->scratch)
        return bw_fail(err, BW_NO_MEMORY, "no memory for scratch: %zu bytes for each of %u threads",
                       engine->scratch_bytes, threads);
    engine->act_stride = bw_round_up(engine->program->header->act_bytes, 64);
    return bw_pool_create(threads, &engine->pool, err);
}

bw_status bw_fast_create(const bw_program *program, const void *constants, const bw_fast_options *options,
                         bw_fast **out, bw_error *err)
{
    bw_fast *engine = calloc(1, sizeof *engine);
    if (!engine)
        return bw_fail(err, BW_NO_MEMORY, "no memory for an engine");
    pthread_mutex_init(&engine->lock, NULL);
    engine->program = program;
    engine->constants = constants;
    bw_status status = fill_engine(engine, options, err);
    if (status) {
        bw_fast_destroy(engine);
        return status;
    }
    *out = engine;
    return BW_OK;
}

void bw_fast_destroy(bw_fast *engine)
{
    if (!engine)
        return;
    bw_pool_destroy(engine->pool);
    pthread_mutex_destroy(&engine->lock);
    free(engine->act);
    free(engine->scratch);
    for (uint32_t i = 0; engine->plans && i < engine->program->header->instruction_count; i++)
        free(engine->plans[i].own);
    free(engine->plans);
    free(engine->tables);
    free(engine);
}

const char *bw_fast_isa_name(const bw_fast *engine)
{
    return isas[engine->isa].name;
}

/* --- run ------------------------------------------------------------------------------------------------------------
 */

static void bind(bw_fast *engine, bw_view *v, const void *in, void *out)
{
    if (!v->tensor)
        return;
    switch (v->tensor->region) {
    case BW_REGION_IN:
        v->base = (uint8_t *)(uintptr_t)in; /* never written: the validator forbids outputs in region IN */
        v->image_stride = engine->program->header->in_bytes;
        break;
    case BW_REGION_OUT:
        v->base = out;
        v->image_stride = engine->program->header->out_bytes;
        break;
    default:
        v->base = engine->act;
        v->image_stride = engine->act_stride;
    }
}

static bw_status run_locked(bw_fast *engine, const void *in, void *out, uint32_t batch, const atomic_int *cancel,
                            uint64_t *spent_ns, bw_error *err)
{
    if (batch > engine->act_batch) {
        uint8_t *act = NULL;
        if (engine->act_stride <= (SIZE_MAX - 64) / batch)
            act = aligned(engine->act_stride * batch);
        if (!act)
            return bw_fail(err, BW_NO_MEMORY,
                           "no memory for the activations of %u images of %zu bytes: use a smaller batch", batch,
                           engine->act_stride);
        free(engine->act);
        engine->act = act;
        engine->act_batch = batch;
    }
    const uint32_t count = engine->program->header->instruction_count;
    for (uint32_t i = 0; i < count; i++) {
        if (cancel && atomic_load_explicit(cancel, memory_order_relaxed))
            return bw_fail(err, BW_CANCELLED, "run cancelled before instruction %u of %u", i, count);
        bw_plan *plan = &engine->plans[i];
        const uint64_t start = spent_ns ? bw_now_ns() : 0;
        bind(engine, &plan->in, in, out);
        bind(engine, &plan->in2, in, out);
        bind(engine, &plan->out[0], in, out);
        bind(engine, &plan->out[1], in, out);
        if (plan->with_next)
            continue;
        if (plan->direct)
            bw_direct_run(engine, plan, batch);
        else if (plan->ins->opcode == BW_OP_CONV)
            bw_conv_run(engine, plan, batch);
        else
            bw_vector_run(engine, plan, batch);
        if (spent_ns)
            spent_ns[i] += bw_now_ns() - start;
    }
    return BW_OK;
}

bw_status bw_fast_run_timed(bw_fast *engine, const void *in, void *out, uint32_t batch, const atomic_int *cancel,
                            uint64_t *spent_ns, bw_error *err)
{
    if (batch == 0)
        return bw_fail(err, BW_INVALID_ARGUMENT, "a batch of 0 images: expected 1 or more");
    pthread_mutex_lock(&engine->lock);
    bw_status status = run_locked(engine, in, out, batch, cancel, spent_ns, err);
    pthread_mutex_unlock(&engine->lock);
    return status;
}

void bw_fast_trim(bw_fast *engine, size_t bytes)
{
    pthread_mutex_lock(&engine->lock);
    if (engine->act_batch * engine->act_stride > bytes) {
        free(engine->act);
        engine->act = NULL;
        engine->act_batch = 0;
    }
    pthread_mutex_unlock(&engine->lock);
}

bw_status bw_fast_run(bw_fast *engine, const void *in, void *out, uint32_t batch, const atomic_int *cancel,
                      bw_error *err)
{
    return bw_fast_run_timed(engine, in, out, batch, cancel, NULL, err);
}
