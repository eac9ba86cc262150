/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/samples.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

bw_dataset *test_samples(const bw_graph *g, const float *x, int count)
{
    const bw_value *in = &g->values[g->inputs[0]];
    const size_t bytes = (size_t)count * (size_t)(in->dims[1] * in->dims[2] * in->dims[3]) * sizeof *x;
    const char *tmp = getenv("TMPDIR");
    char path[512], header[128];
    snprintf(path, sizeof path, "%.400s/samples-%s.npy", tmp ? tmp : "/tmp",
             "XX"
             "XX"
             "XX");
    int fd = mkstemps(path, 4);
    assert_true(fd >= 0);
    memset(header, ' ', sizeof header);
    memcpy(header, "\x93NUMPY\x01\x00\x76\x00", 10);
    int n = snprintf(header + 10, 117, "{'descr': '<f4', 'fortran_order': False, 'shape': (%d, %d, %d, %d), }", count,
                     (int)in->dims[1], (int)in->dims[2], (int)in->dims[3]);
    header[10 + n] = ' ';
    header[127] = '\n';
    assert_int_equal(write(fd, header, sizeof header), sizeof header);
    assert_int_equal(write(fd, x, bytes), bytes);
    close(fd);
    bw_dataset *data = NULL;
    bw_error err;
    if (bw_dataset_open(path, NULL, in->name, in->rank, in->dims, &data, &err))
        fail_msg("%s", err.message);
    unlink(path);
    return data;
}
