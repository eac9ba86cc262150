/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A histogram of durations in the manner of HdrHistogram: counts in buckets that grow with the value, so that every
 * quantile is known within 0.1 % whatever the range, at the price of one increment.
 *
 * Thread safety: none; one writer, read it afterwards.
 */
#ifndef BW_SERVICE_CLIENT_HISTOGRAM_H
#define BW_SERVICE_CLIENT_HISTOGRAM_H

#include <stdint.h>

/* 1024 buckets for each power of two from 2^11 on; below that each value has its own. Up to 2^44: five hours in ns. */
#define BW_HISTOGRAM_BITS    10
#define BW_HISTOGRAM_LIMIT   44
#define BW_HISTOGRAM_BUCKETS ((BW_HISTOGRAM_LIMIT - BW_HISTOGRAM_BITS + 1) << BW_HISTOGRAM_BITS)

typedef struct bw_histogram {
    uint64_t count, low, high; /* low, high: exact smallest and largest */
    double sum;
    uint64_t buckets[BW_HISTOGRAM_BUCKETS];
} bw_histogram;

/* NULL: out of memory. free() releases it. */
bw_histogram *bw_histogram_new(void);
/* Values of 2^44 and more are counted in the last bucket. */
void bw_histogram_add(bw_histogram *h, uint64_t value);
/* The value that a share q (0..1) of all values does not exceed, at most 0.1 % too high; 0 if there are none. */
uint64_t bw_histogram_quantile(const bw_histogram *h, double q);
double bw_histogram_mean(const bw_histogram *h); /* exact; 0 if there are none */

#endif
