/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes -> validator -> constants check -> fast engine, on every ISA this CPU has. The input is a program followed by
 * its constants (zero-filled or cut to the size that the program wants), as for fuzz_program. Results are not compared:
 * a program may read activations that nobody wrote, which are undefined. A sanitizer sees every address instead.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "sim/sim.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MAX_REGION (1u << 18)
#define MAX_WORK   2e6

static void *aligned(size_t size)
{
    void *p = NULL;
    if (posix_memalign(&p, 64, size ? size : 1))
        abort();
    return p;
}

/* Upper bound of multiply-adds and element visits. */
static double work_of(const bw_program *p)
{
    double work = 0;
    for (uint32_t i = 0; i < p->header->instruction_count; i++) {
        const bw_instruction *s = &p->instructions[i];
        double pixels = (double)s->out0.height * s->out0.width, taps = (double)s->kernel_y * s->kernel_x;
        double per_tap = (double)bw_tensor_units(&s->in) * s->in.block;
        if (s->opcode == BW_OP_CONV)
            per_tap = per_tap * (double)bw_conv_tiles(s) * BW_OUTPUT_TILE;
        work += pixels * (taps * (per_tap + 1) + s->out0.channels + 1);
    }
    return work;
}

static void run(const bw_program *program, const void *constants, bw_sim_isa isa, uint32_t batch, unsigned pipes)
{
    const bw_program_header *h = program->header;
    uint8_t *in = aligned(h->in_bytes * batch), *out = aligned(h->out_bytes * batch);
    for (size_t i = 0; i < h->in_bytes * batch; i++)
        in[i] = (uint8_t)(i * 167 + 13 - (i % 4 == 3) * (i & 0x80));
    const bw_fast_options options = {isa, batch, pipes, 1};
    bw_fast *engine;
    bw_error err;
    if (bw_fast_create(program, constants, &options, &engine, &err) == BW_OK) {
        if (bw_fast_run(engine, in, out, batch, NULL, &err))
            abort();
        bw_fast_destroy(engine);
    } else if (err.status != BW_NO_MEMORY) {
        abort(); /* a valid program is always accepted */
    }
    free(in);
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < sizeof(bw_program_header))
        return 0;
    uint8_t *bytes = aligned(size);
    memcpy(bytes, data, size);
    const uint64_t end =
        sizeof(bw_program_header) +
        (uint64_t)((const bw_program_header *)(const void *)bytes)->instruction_count * sizeof(bw_instruction);
    const size_t program_size = end < size ? (size_t)end : size;
    bw_program program;
    bw_error err;
    if (bw_program_parse(bytes, program_size, &program, &err) == BW_OK) {
        const bw_program_header *h = program.header;
        if (h->const_bytes <= MAX_REGION && h->act_bytes <= MAX_REGION && h->in_bytes <= MAX_REGION &&
            h->out_bytes <= MAX_REGION && work_of(&program) <= MAX_WORK) {
            uint8_t *constants = aligned(h->const_bytes); /* exactly sized: over-reads show */
            const size_t left = size - program_size, copied = left < h->const_bytes ? left : h->const_bytes;
            memset(constants, 0, h->const_bytes);
            memcpy(constants, bytes + program_size, copied);
            if (bw_program_check_constants(&program, constants, h->const_bytes, &err) == BW_OK)
                for (bw_sim_isa isa = BW_SIM_ISA_PORTABLE; isa < BW_SIM_ISA_LIMIT; isa++)
                    for (unsigned pipes = isa >= BW_SIM_ISA_AVX512VNNI ? 2 : 4; pipes <= 4; pipes += 2)
                        if (bw_sim_isa_available(isa))
                            run(&program, constants, isa, pipes == 2 ? 2 : 1, pipes);
            free(constants);
        }
    }
    free(bytes);
    return 0;
}
