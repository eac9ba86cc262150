/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Compares two engines on one program, bit for bit, and finds where they first differ: which instruction, which
 * tensor, which element. For tests of devices.
 *
 *     bw_compare_engine a = {"reference", bw_compare_reference};
 *     bw_compare_engine b = {"avx2, 3 threads", bw_compare_fast, BW_SIM_ISA_AVX2, 3};
 *     char report[BW_COMPARE_REPORT];
 *     if (bw_compare_engines(&c, &a, &b, report)) fail_msg("%s", report);
 */
#ifndef BW_TESTS_SUPPORT_COMPARE_H
#define BW_TESTS_SUPPORT_COMPARE_H

#include "sim/sim.h"

#define BW_COMPARE_REPORT 1024

/* Anything that runs a validated program. user: free for the engine. */
typedef struct bw_compare_engine {
    const char *name;
    bw_status (*run)(const struct bw_compare_engine *engine, const bw_program *program, const void *constants,
                     const void *in, void *out, uint32_t batch, bw_error *err);
    bw_sim_isa isa;          /* this and the next two: of bw_compare_fast */
    unsigned threads, pipes; /* 0: as the engine chooses */
    void *user;
} bw_compare_engine;

/* Ready-made values of `run`. */
bw_status bw_compare_reference(const bw_compare_engine *engine, const bw_program *program, const void *constants,
                               const void *in, void *out, uint32_t batch, bw_error *err);
bw_status bw_compare_fast(const bw_compare_engine *engine, const bw_program *program, const void *constants,
                          const void *in, void *out, uint32_t batch, bw_error *err);

typedef struct bw_compare_case {
    const bw_program *program;
    const void *constants; /* 64-byte aligned */
    const void *in;        /* batch x in_bytes */
    uint32_t batch;
} bw_compare_case;

/* One fp32 output element that differs: "out0 of instruction 7 (CONV), image 2, y 3, x 1, channel 40: A 0x1p+3
 * (1.5...), B ...". Returns 0 and leaves report alone if the outputs (batch x out_bytes each) are equal, else 1. */
int bw_compare_outputs(const bw_compare_case *c, const void *a, const void *b, char report[BW_COMPARE_REPORT]);

/* 0: same bits everywhere in the outputs. 1: they differ; the report names the first instruction whose results differ,
 * found by running the program up to each instruction and reading its results back. -1: an engine failed. */
int bw_compare_engines(const bw_compare_case *c, const bw_compare_engine *a, const bw_compare_engine *b,
                       char report[BW_COMPARE_REPORT]);

#endif
