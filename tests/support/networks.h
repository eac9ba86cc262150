/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The networks and numerics of whole-network tests. The digits network comes with the project, the others are read from
 * BW_SHARED (default ../shared/data).
 */
#ifndef BW_TESTS_SUPPORT_NETWORKS_H
#define BW_TESTS_SUPPORT_NETWORKS_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/formats.h"

struct bw_test_network {
    const char *path;
    int small; /* in make test */
};
extern const struct bw_test_network bw_test_networks[];
extern const size_t bw_test_network_count;

struct bw_test_numeric {
    bw_format format;
    uint16_t block;
};
extern const struct bw_test_numeric bw_test_numerics[];
extern const size_t bw_test_numeric_count;

/* 1 and the network's file; 0 if it is not there. */
int bw_test_network_path(const struct bw_test_network *n, char *path, size_t size);

/* Sums of uniform numbers: bell-shaped, the same on every machine. */
void bw_test_fill_input(float *x, size_t n, uint32_t seed);

#endif
