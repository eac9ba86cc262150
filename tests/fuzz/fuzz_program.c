/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes -> validator -> constants check -> reference interpreter. The input is a program followed by its constants
 * (zero-filled or cut to the size that the program wants). What passes the checks and is small is run, so that a
 * sanitizer sees each address that the validator let through.
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
            per_tap = per_tap * s->out0.channels;
        work += pixels * (taps * (per_tap + 1) + s->out0.channels + 1);
    }
    return work;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    /* Exactly sized, aligned copies: one byte too many is an error that a sanitizer sees. */
    uint8_t *bytes = aligned(size);
    if (size)
        memcpy(bytes, data, size);
    size_t program_size = size;
    if (size >= sizeof(bw_program_header)) {
        uint64_t end = sizeof(bw_program_header) +
                       (uint64_t)((const bw_program_header *)bytes)->instruction_count * sizeof(bw_instruction);
        if (end < size)
            program_size = end;
    }
    uint8_t *program_bytes = aligned(program_size);
    memcpy(program_bytes, bytes, program_size);
    bw_program program;
    bw_error err;
    err.message[0] = '\0';
    if (bw_program_parse(program_bytes, program_size, &program, &err)) {
        if (!err.message[0] || strchr(err.message, '\n'))
            abort(); /* every refusal says why, on one line */
    } else {
        const bw_program_header *h = program.header;
        if (h->const_bytes <= MAX_REGION && h->act_bytes <= MAX_REGION && h->in_bytes <= MAX_REGION &&
            h->out_bytes <= MAX_REGION) {
            uint8_t *constants = aligned(h->const_bytes), *in = aligned(h->in_bytes), *out = aligned(h->out_bytes);
            size_t left = size - program_size, copied = left < h->const_bytes ? left : h->const_bytes;
            memset(constants, 0, h->const_bytes);
            memcpy(constants, bytes + program_size, copied);
            for (size_t i = 0; i < h->in_bytes; i++)
                in[i] = (uint8_t)(i * 167 + 13 - (i % 4 == 3) * (i & 0x80));
            bw_status s = bw_program_check_constants(&program, constants, h->const_bytes, &err);
            if (s && !err.message[0])
                abort();
            if (!s && work_of(&program) <= MAX_WORK && bw_reference_run(&program, constants, in, out, 1, &err))
                abort();
            free(constants);
            free(in);
            free(out);
        }
    }
    free(program_bytes);
    free(bytes);
    return 0;
}
