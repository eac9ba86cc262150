/* SPDX-License-Identifier: Apache-2.0 */
/* A data set of given samples. */
#ifndef TESTS_SUPPORT_SAMPLES_H
#define TESTS_SUPPORT_SAMPLES_H

#include "host/dataset.h"

/* `count` samples of c * h * w values for the network's only input, [N, c, h, w], from a file of its own that is gone
 * when this returns. Fails the test where that is not possible. */
bw_dataset *test_samples(const bw_graph *g, const float *x, int count);

#endif
