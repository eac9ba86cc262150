/* SPDX-License-Identifier: Apache-2.0 */
/* How the AVX-512 kernel of PATCH goes about a job: sim/rows_patch.h once more, for tests that want to know. */
#ifndef BW_TESTS_PATCH_PLANES_H
#define BW_TESTS_PATCH_PLANES_H

#include "sim/fast.h"

typedef struct bw_patch_way {
    size_t part; /* pixels whose rows are encoded together; 0: the job is done by blocks from the start */
    size_t done; /* pixels that are done by planes of codes, before blocks take over */
    size_t tops; /* blocks whose largest magnitudes are found among those of whole rows of taps */
} bw_patch_way;

/* Runs the part of `g` that is done by planes; only where the CPU has AVX-512 VNNI. */
bw_patch_way bw_patch_find_way(const bw_patch *g);

#endif
