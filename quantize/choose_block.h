/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The length of blocks for a network, by trial: long blocks are fast and small, short ones have less noise. How much
 * the noise grows depends on the network, so it is measured on samples.
 *
 * Thread safety: pure functions; the data set is used by one thread at a time.
 */
#ifndef BW_QUANTIZE_CHOOSE_BLOCK_H
#define BW_QUANTIZE_CHOOSE_BLOCK_H

#include "quantize/calibrate.h"

#define BW_BLOCK_TRIALS  4  /* 16, 32, 64, 128 */
#define BW_BLOCK_SAMPLES 32 /* fewer of networks with large outputs; of a fixed batch at least one */

typedef struct bw_block_trial {
    uint16_t block;
    double sqnr_db; /* of the worst output; INFINITY: no error */
} bw_block_trial;

typedef struct bw_block_choice {
    bw_block_trial tried[BW_BLOCK_TRIALS]; /* the shortest, then from the longest on */
    int count;
    int64_t samples;
} bw_block_choice;

/*
 * Sets recipe->block to the longest block with which no output of the network has more than `loss_db` decibels less
 * signal to noise than with the shortest that the formats have; only fp32 outputs are looked at. Samples: the first
 * BW_BLOCK_SAMPLES. BW_UNSUPPORTED: the network has not exactly one fp32 input, or no fp32 output.
 * BW_INVALID_ARGUMENT: not enough samples. BW_NOT_FINITE: an output is not; names it. BW_CANCELLED: the user
 * interrupted. And what bw_compile says.
 */
bw_status bw_choose_block(const bw_graph *g, bw_recipe *recipe, double loss_db, const bw_calibration *options,
                          bw_block_choice *choice, bw_error *err);

#endif
