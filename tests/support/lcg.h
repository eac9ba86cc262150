/* SPDX-License-Identifier: Apache-2.0 */
/* The random numbers of tests: the same on every machine, for each seed. Knuth's linear congruential generator (MMIX);
 * the upper bits are the random ones. */
#ifndef BW_TESTS_SUPPORT_LCG_H
#define BW_TESTS_SUPPORT_LCG_H

#include <stdint.h>

/* The next state, which is also kept. */
static inline uint64_t bw_lcg(uint64_t *state)
{
    return *state = *state * 6364136223846793005u + 1442695040888963407u;
}

#endif
