/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an instruction costs, read off its descriptors: the work and the traffic that every device has in common.
 * Thread safety: pure functions.
 */
#ifndef BW_HOST_COST_H
#define BW_HOST_COST_H

#include <stddef.h>

#include "kernels/isa.h"

typedef struct bw_cost { /* of one image */
    /* CONV, DWCONV: multiply-adds, taps in the padding and channels that a group was filled up with included.
     * Others: 0. */
    uint64_t macs;
    /* Codes and exponents, each tensor once however often it is read. */
    uint64_t in_bytes, out_bytes;
    /* Packed codes, exponents, biases and tables; shared by the images of a batch. */
    uint64_t weight_bytes;
} bw_cost;

void bw_instruction_cost(const bw_instruction *ins, bw_cost *cost);

/* "56x56x64 -> 28x28x128 3x3 /2 g32", as height x width x channels; returns buf. */
const char *bw_instruction_shape(const bw_instruction *ins, char *buf, size_t size);

#endif
