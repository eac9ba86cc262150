/* SPDX-License-Identifier: Apache-2.0 */
/* Durations in buckets: see service/client/histogram.h. */
#include "service/client/histogram.h"

#include <stdlib.h>

bw_histogram *bw_histogram_new(void)
{
    return calloc(1, sizeof(bw_histogram));
}

/* Position: the highest bits of the value, and how far they were moved down. */
static unsigned bucket_of(uint64_t value)
{
    if (value >> BW_HISTOGRAM_LIMIT)
        return BW_HISTOGRAM_BUCKETS - 1;
    if (value >> (BW_HISTOGRAM_BITS + 1) == 0)
        return (unsigned)value;
    unsigned shift = 63u - (unsigned)__builtin_clzll(value) - BW_HISTOGRAM_BITS;
    return (shift << BW_HISTOGRAM_BITS) + (unsigned)(value >> shift);
}

/* The largest value of a bucket. */
static uint64_t top_of(unsigned bucket)
{
    if (bucket >> (BW_HISTOGRAM_BITS + 1) == 0)
        return bucket;
    unsigned shift = (bucket >> BW_HISTOGRAM_BITS) - 1;
    uint64_t head = bucket - (shift << BW_HISTOGRAM_BITS);
    return ((head + 1) << shift) - 1;
}

void bw_histogram_add(bw_histogram *h, uint64_t value)
{
    if (!h->count || value < h->low)
        h->low = value;
    if (value > h->high)
        h->high = value;
    h->count++;
    h->sum += (double)value;
    h->buckets[bucket_of(value)]++;
}

uint64_t bw_histogram_quantile(const bw_histogram *h, double q)
{
    if (!h->count)
        return 0;
    double exact = q * (double)h->count * (1 - 1e-12); /* 0.001 * 20000 is a bit more than 20 */
    uint64_t rank = (uint64_t)exact;
    rank += (double)rank < exact;
    if (rank < 1)
        rank = 1;
    if (rank >= h->count)
        return h->high;
    uint64_t seen = 0;
    for (unsigned i = 0; i < BW_HISTOGRAM_BUCKETS; i++) {
        seen += h->buckets[i];
        if (seen >= rank)
            return top_of(i) < h->high && i < BW_HISTOGRAM_BUCKETS - 1 ? top_of(i) : h->high;
    }
    return h->high;
}

double bw_histogram_mean(const bw_histogram *h)
{
    return h->count ? h->sum / (double)h->count : 0;
}
