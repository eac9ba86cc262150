/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a Blockwave accelerator looks like from its host: one kernel with an AXI-Lite register file and buffers in the
 * card's memory. The one source of this for everyone who needs it: the xclbin writer (kernels/xclbin.c), the driver
 * (hal/plugins/xrt), the emulated card (sim/card) and the hardware.
 *
 * A job. The host writes the arguments below into the registers and sets START in the control register (the protocol
 * ap_ctrl_hs, which XRT speaks). The accelerator carries the job out, writes a status block to the memory at `status`,
 * and sets DONE. A job is LOAD, which checks a program with its constants and sums them up, or RUN, which runs a batch.
 *
 *     program     bw_program_header and instructions (docs/isa.md)        written by the host
 *     constants   the region CONST                                        written by the host
 *     activations the region ACT of one image: images run one by one      scratch of the accelerator
 *     input       batch x in_bytes                                        written by the host
 *     output      batch x out_bytes                                       written by the accelerator
 *     status      bw_accel_status                                         written by the accelerator
 *
 * Addresses are multiples of BW_ACCEL_ALIGN. Everything is little endian.
 *
 * Nothing on the way is believed: the status block repeats the host's sequence number, which tells an answer from what
 * lay in the memory before, and carries sums of what the accelerator has read and written (bw_accel_checksum). The host
 * compares them with sums of its own, so that a transfer that went wrong, or was left out, does not become a result.
 */
#ifndef BW_KERNELS_ACCELERATOR_H
#define BW_KERNELS_ACCELERATOR_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/isa.h"

#define BW_ACCEL_KERNEL     "bw_accelerator"
#define BW_ACCEL_INSTANCE   "bw_accelerator_1"
#define BW_ACCEL_BASE       0x1800000u /* of the register file in the card's control space */
#define BW_ACCEL_RANGE      0x1000u    /* its size in bytes */
#define BW_ACCEL_CLOCK_MHZ  300u
#define BW_ACCEL_ALIGN      4096u
#define BW_ACCEL_ADDR_LIMIT (UINT64_C(1) << 40)

/* --- registers, in bytes from the base --------------------------------------------------------------------------- */

#define BW_ACCEL_CTRL          0x00u
#define BW_ACCEL_CTRL_START    0x01u
#define BW_ACCEL_CTRL_DONE     0x02u /* cleared when it is read */
#define BW_ACCEL_CTRL_IDLE     0x04u
#define BW_ACCEL_CTRL_READY    0x08u
#define BW_ACCEL_CTRL_CONTINUE 0x10u

/* Arguments of a job: number, name, bytes, offset of the low word, 1 if it is the address of a buffer. */
#define BW_ACCEL_ARGS(X)                                                                                               \
    X(0, PROGRAM, program, 8, 0x10u, 1)                                                                                \
    X(1, CONSTANTS, constants, 8, 0x1cu, 1)                                                                            \
    X(2, ACTIVATIONS, activations, 8, 0x28u, 1)                                                                        \
    X(3, INPUT, input, 8, 0x34u, 1)                                                                                    \
    X(4, OUTPUT, output, 8, 0x40u, 1)                                                                                  \
    X(5, STATUS, status, 8, 0x4cu, 1)                                                                                  \
    X(6, PROGRAM_BYTES, program_bytes, 8, 0x58u, 0)                                                                    \
    X(7, CONSTANT_BYTES, constant_bytes, 8, 0x64u, 0)                                                                  \
    X(8, BATCH, batch, 4, 0x70u, 0)                                                                                    \
    X(9, COMMAND, command, 4, 0x78u, 0)                                                                                \
    X(10, SEQUENCE, sequence, 4, 0x80u, 0)

enum {
#define X(number, upper, name, bytes, offset, address) BW_ACCEL_ARG_##upper = number, BW_ACCEL_AT_##upper = offset,
    BW_ACCEL_ARGS(X)
#undef X
};
#define BW_ACCEL_ARG_COUNT 11u
#define BW_ACCEL_ARGS_END  0x84u

/* Beyond the arguments; read only but for ABORT. */
#define BW_ACCEL_AT_MAGIC 0x100u /* BW_ACCEL_MAGIC */
#define BW_ACCEL_AT_ISA   0x104u /* BW_ISA_VERSION that it runs */
#define BW_ACCEL_AT_BUILD                                                                                              \
    0x108u /* low word of bw_accelerator_build, then the high word: what the card is configured as */
#define BW_ACCEL_AT_ABORT  0x110u /* write 1: the job ends soon, with BW_ACCEL_ABORTED */
#define BW_ACCEL_AT_HEALTH 0x114u /* bits below */
#define BW_ACCEL_AT_JOBS   0x118u /* jobs since configuration */

#define BW_ACCEL_MAGIC        0x31415742u /* "BWA1" */
#define BW_ACCEL_HEALTH_ECC   0x1u        /* an uncorrectable memory error was seen since configuration */
#define BW_ACCEL_STATUS_MAGIC 0x53415742u /* "BWAS" */

typedef enum bw_accel_command { BW_ACCEL_LOAD = 1, BW_ACCEL_RUN = 2 } bw_accel_command;

typedef enum bw_accel_code {
    BW_ACCEL_OK = 0,
    BW_ACCEL_BAD_COMMAND = 1,
    BW_ACCEL_BAD_ADDRESS = 2, /* a buffer lies outside what the host has allocated, or is not aligned */
    BW_ACCEL_BAD_PROGRAM = 3, /* the validator refuses the program or its constants */
    BW_ACCEL_MEMORY = 4,      /* an uncorrectable error of the card's memory */
    BW_ACCEL_ABORTED = 5,
    BW_ACCEL_NO_MEMORY = 6,
    BW_ACCEL_INTERNAL = 7,
    BW_ACCEL_CODE_LIMIT = 8
} bw_accel_code;

/* "ok", "bad address", ...; "?" for a number that is none. Static storage. */
const char *bw_accel_code_name(unsigned code);

typedef struct bw_accel_status {
    uint32_t magic;
    uint32_t sequence;                  /* of the job */
    uint32_t code;                      /* bw_accel_code */
    uint32_t images;                    /* RUN: done */
    uint64_t program_sum, constant_sum; /* LOAD */
    uint64_t input_sum, output_sum;     /* RUN, of the whole batch */
    uint64_t busy_ns;                   /* what the job took */
    uint64_t reserved;
    char message[192]; /* why, terminated; hardware leaves it empty */
} bw_accel_status;

_Static_assert(sizeof(bw_accel_status) == 256, "bw_accel_status is 256 bytes");

/*
 * a = sum of the 32-bit words, b = sum of all a on the way, both modulo 2^64; a + b * 0x9E3779B97F4A7C15. The last word
 * is filled up with zeros. Finds every change of one bit, and words that moved. `bytes` need no alignment.
 */
uint64_t bw_accel_checksum(const void *bytes, size_t size);

/* --- a configuration --------------------------------------------------------------------------------------------- */

#define BW_ACCEL_BANKS_MAX 8u

typedef struct bw_accelerator {
    char name[64];         /* "emulated" */
    char platform[64];     /* what the card calls itself; in an xclbin the platform that it is for */
    char interface_id[37]; /* UUID of the shell */
    unsigned bank_count;   /* 1..BW_ACCEL_BANKS_MAX */
    uint64_t bank_bytes;   /* of each; they follow one another from address 0 */
    bw_requirements offers;
} bw_accelerator;

/* A known configuration: "emulated" (also NULL or ""); NULL if there is none of that name. Static storage. */
const bw_accelerator *bw_accelerator_find(const char *name);

/* Tells configurations apart: a hash of everything above and of the argument map. */
uint64_t bw_accelerator_build(const bw_accelerator *accelerator);

#endif
