/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the validator's files; not a public header. */
#ifndef BW_KERNELS_CHECKS_H
#define BW_KERNELS_CHECKS_H

/* 1 if x is finite, not -0 and an integer multiple of 2^-126: adding such numbers never gives a subnormal. */
int bw_multiple_of_2_to_minus_126(float x);

#endif
