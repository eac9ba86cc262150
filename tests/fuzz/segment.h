/* SPDX-License-Identifier: Apache-2.0 */
/* The segment of shared memory that the fuzzers of the service share: /bw-fuzz, 4096 bytes. */
#ifndef BW_TESTS_FUZZ_SEGMENT_H
#define BW_TESTS_FUZZ_SEGMENT_H

#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define SEGMENT      "/bw-fuzz"
#define SEGMENT_SIZE 4096

static void remove_segment(void)
{
    shm_unlink(SEGMENT);
}

/* Made if it is not there. Others may remove it at their end: what is open stays. */
static int open_segment(void)
{
    int fd = shm_open(SEGMENT, O_RDWR | O_CREAT, 0600);
    if (fd < 0 || ftruncate(fd, SEGMENT_SIZE) || atexit(remove_segment))
        abort();
    return fd;
}

/* Small floats, whatever was written before. */
static inline void fill_segment(int fd)
{
    static uint8_t values[SEGMENT_SIZE];
    for (size_t i = 0; i < sizeof values && !values[sizeof values - 1]; i++)
        values[i] = i % 4 == 3 ? 0x3f : (uint8_t)(i * 7);
    if (pwrite(fd, values, sizeof values, 0) != sizeof values)
        abort();
}

#endif
