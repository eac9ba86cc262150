/* SPDX-License-Identifier: Apache-2.0 */
/* What a process holds of the system, for tests that nothing is left behind. */
#ifndef BW_TESTS_FOOTPRINT_H
#define BW_TESTS_FOOTPRINT_H

#include <sys/types.h>

typedef struct bw_footprint {
    unsigned files, threads;
    long anonymous_kib; /* memory that is not a file's */
} bw_footprint;

/* All 0 if there is no such process. */
bw_footprint bw_footprint_of(pid_t pid);

#endif
