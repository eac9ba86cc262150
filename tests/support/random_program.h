/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random valid programs with constants and inputs, for comparing devices bit by bit. A seed and limits decide every
 * byte. What a program computes is meaningless; what matters is that it is legal, that every value it computes
 * reaches region OUT, and that the seeds together cover every operation, format pair, block, stride and slice.
 *
 *     struct bw_random_case c;
 *     if (!bw_random_case_make(seed, NULL, &c)) ...       // c.program, c.constants, c.in -> run -> compare c.out_bytes
 *     bw_random_case_free(&c);
 */
#ifndef BW_TESTS_RANDOM_PROGRAM_H
#define BW_TESTS_RANDOM_PROGRAM_H

#include <stdio.h>

#include "kernels/isa.h"

/* 0 in a field: the default. */
struct bw_random_options {
    uint32_t opcodes;        /* bit per bw_opcode that may appear; COPY always may. Default: all */
    uint32_t formats;        /* bit per bw_format; fp32 always may, as input and output. Default: all */
    uint32_t blocks;         /* as bw_requirements.blocks. Default: all */
    uint32_t max_operations; /* before the closing copies to OUT. Default 6 */
    uint32_t max_extent;     /* height and width. Default 9 */
    uint32_t max_channels;   /* default 80 (slices of a concatenation and channel padding may add to it) */
    uint32_t max_batch;      /* default 3 */
    uint32_t max_work;       /* multiply-adds of one operation, about. Default 200000 */
};

struct bw_random_case {
    uint8_t *program; /* all three 64-byte aligned; valid by bw_program_parse and bw_program_check_constants */
    size_t program_size;
    void *constants; /* NULL if constants_size is 0 */
    size_t constants_size;
    void *in; /* batch x in_bytes, finite floats */
    uint32_t batch;
    size_t in_bytes, out_bytes; /* of one image; every byte of OUT is written */
};

/* 0, or -1 when out of memory. options may be NULL. */
int bw_random_case_make(uint64_t seed, const struct bw_random_options *options, struct bw_random_case *out);
void bw_random_case_free(struct bw_random_case *c);

/* One line per instruction, for messages of failed comparisons. */
void bw_program_print(const bw_program *program, FILE *to);

#endif
