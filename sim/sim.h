/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The software accelerator: two engines that run the same programs with the same bits.
 *
 * - reference: a direct transcription of docs/isa.md, scalar, slow, obviously right.
 * - fast: planned per instruction, per-ISA kernels (AMX, AVX-512 VNNI, AVX2, portable C), threads.
 *
 *     bw_fast *engine;
 *     if (bw_fast_create(&program, constants, NULL, &engine, &err)) ...
 *     bw_fast_run(engine, in, out, 8, NULL, &err);       // 8 images
 *     bw_fast_destroy(engine);
 */
#ifndef BW_SIM_SIM_H
#define BW_SIM_SIM_H

#include <stdatomic.h>

#include "kernels/isa.h"

/*
 * Runs `batch` images through the program on the reference interpreter. constants: header->const_bytes bytes, 64-byte
 * aligned; in: batch x in_bytes; out: batch x out_bytes. Blocking; thread-safe (allocates its own activations).
 * BW_NO_MEMORY.
 */
bw_status bw_reference_run(const bw_program *program, const void *constants, const void *in, void *out, uint32_t batch,
                           bw_error *err);

typedef enum bw_sim_isa {
    BW_SIM_ISA_AUTO = 0, /* environment BW_SIM_ISA = portable | avx2 | avx512vnni | amx, else the best this CPU has */
    BW_SIM_ISA_PORTABLE = 1,
    BW_SIM_ISA_AVX2 = 2,
    BW_SIM_ISA_AVX512VNNI = 3,
    BW_SIM_ISA_AMX = 4 /* AVX-512 VNNI, and convolutions in blocks of 32 and more on AMX-INT8 tiles */
} bw_sim_isa;
#define BW_SIM_ISA_LIMIT 5 /* one past the last */

typedef struct bw_fast_options {
    bw_sim_isa isa;
    unsigned threads; /* 0: environment BW_SIM_THREADS, else the CPUs this process may use; at most 64 */
    /* Vector pipes that kernels are laid out for, 2 or 4; some ISAs only have both. 0: environment BW_SIM_PIPES, else
     * as this CPU has. Speed only, never bits. */
    unsigned pipes;
    /* AMX: convolutions of fewer multiply-adds an image leave the tile units asleep, which wake in 10 to 20 us. 0: as
     * is best. Speed only, never bits. */
    unsigned least_matrix;
} bw_fast_options;

typedef struct bw_fast bw_fast; /* a planned program and its thread pool */

/*
 * Plans the program. `program` (its bytes) and `constants` (64-byte aligned) are borrowed and must outlive the
 * engine; constants are used in place, never copied as a whole. options NULL: all defaults.
 * BW_UNSUPPORTED: the forced ISA is unknown or this CPU lacks it. BW_INVALID_ARGUMENT: threads (the option or the
 * environment) outside 1..64, pipes neither 0, 2 nor 4. BW_EXHAUSTED: the system starts no more threads. BW_NO_MEMORY.
 */
bw_status bw_fast_create(const bw_program *program, const void *constants, const bw_fast_options *options,
                         bw_fast **engine, bw_error *err);
void bw_fast_destroy(bw_fast *engine);

/*
 * Runs `batch` images. Blocking; one run at a time per engine (concurrent calls queue on an internal mutex).
 * cancel: if not NULL, looked at between instructions; non-zero ends the run with BW_CANCELLED.
 * Activations are kept for the next run of the same or a smaller batch (bw_fast_trim). in and out: 4-byte aligned.
 * BW_INVALID_ARGUMENT: a batch of 0. BW_NO_MEMORY: the engine stays usable with a smaller batch.
 */
bw_status bw_fast_run(bw_fast *engine, const void *in, void *out, uint32_t batch, const atomic_int *cancel,
                      bw_error *err);

/* Activations of more than `bytes` go back to the system; the next run makes new ones. Waits for a run that goes on. */
void bw_fast_trim(bw_fast *engine, size_t bytes);

/*
 * The same, and adds to spent_ns[i] the time that instruction i took, for the whole batch; header->instruction_count
 * elements. An instruction that the engine carries out as part of another adds 0.
 */
bw_status bw_fast_run_timed(bw_fast *engine, const void *in, void *out, uint32_t batch, const atomic_int *cancel,
                            uint64_t *spent_ns, bw_error *err);

/* "avx512vnni", ...: what the engine chose. Static storage. */
const char *bw_fast_isa_name(const bw_fast *engine);
const char *bw_sim_isa_name(bw_sim_isa isa);
/* 1 if this CPU, build and system can run `isa`. Asks the system for AMX's registers, which then keeps them for the
 * process: signal frames of threads that use them grow by 8 KB. */
int bw_sim_isa_available(bw_sim_isa isa);

/* What one core of this machine can do at most, in G multiply-adds a second. */
typedef struct bw_sim_peak {
    bw_sim_isa isa;
    double int8;         /* products of bytes, summed up in int32 */
    const char *int8_by; /* by these instructions; static storage */
    double fp32;
} bw_sim_peak;

/* Measures it on the calling thread, in some tens of milliseconds. AUTO: the best ISA this CPU has. Measure on an idle
 * machine, near the figures it is compared with: clocks change. BW_UNSUPPORTED: this CPU lacks the ISA. */
bw_status bw_sim_peak_measure(bw_sim_isa isa, bw_sim_peak *peak, bw_error *err);
/* GB/s at which one core reads an array of `bytes` bytes again and again: of a cache, if it fits there.
 * BW_INVALID_ARGUMENT: less than 64 bytes. BW_NO_MEMORY. */
bw_status bw_sim_read_rate(size_t bytes, double *rate, bw_error *err);

/* Registers the `sim` HAL backend (sim:, sim:u250, sim:reference ...). Idempotent, thread-safe. */
bw_status bw_sim_register(bw_error *err);

/* Writes the bitstream container (hal/bitstream.h) of a simulated configuration: "sim" (or ""), "u250", "u250-msfp",
 * "u250-mx". Loaded into a device of the same part it changes what the device offers. BW_NOT_FOUND: no such
 * configuration. BW_IO and others of bw_file_write_atomic. */
bw_status bw_sim_write_bitstream(const char *target, const char *path, bw_error *err);

#endif
