/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The range of many numbers: what calibration records of every value of the float network. Threads share the work; the
 * result depends neither on their number nor on the order of the elements.
 *
 * Thread safety: pure.
 */
#ifndef BW_QUANTIZE_RANGE_H
#define BW_QUANTIZE_RANGE_H

#include <stdint.h>

typedef struct bw_range {
    float min, max; /* +INFINITY, -INFINITY for no elements; a zero is +0 */
    int finite;     /* 0: some element is NaN or infinite, min and max say nothing */
} bw_range;

bw_range bw_range_of(const float *x, int64_t count);

#endif
