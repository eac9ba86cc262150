/* SPDX-License-Identifier: Apache-2.0 */
/* Runs float graphs in tests: random inputs, comparison of two graphs. Fails the cmocka test on any error. */
#ifndef BW_TESTS_SUPPORT_GRAPH_RUN_H
#define BW_TESTS_SUPPORT_GRAPH_RUN_H

#include "host/graph.h"

/* fp32 values in -1..1 from a seed, the same everywhere. */
void bw_test_random(float *v, size_t count, uint64_t seed);
/* Runs with a random fp32 input of `batch` samples per graph input; outputs[i] is owned by the caller. */
void bw_test_run(const bw_graph *g, int64_t batch, uint64_t seed, bw_array *outputs);
/* Runs with given inputs. */
void bw_test_run_on(const bw_graph *g, const bw_array *inputs, bw_array *outputs);
/* Largest |a - b| / (|b| + scale), scale = largest |b| times 1e-3 (1e-30 at least); fails if shapes differ. */
double bw_test_difference(const bw_array *a, const bw_array *b);
/* Both graphs on the same inputs; fails if they differ by more than `tolerance`. */
void bw_test_same_function(const bw_graph *a, const bw_graph *b, int64_t batch, double tolerance);

#endif
