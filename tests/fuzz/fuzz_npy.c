/* SPDX-License-Identifier: Apache-2.0 */
/* .npy and .npz files from hostile bytes: every array is opened, and read forwards and again from the start. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "host/npy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MOST = 4096 };

static void read_array(bw_npy_file *f, int index)
{
    static uint8_t raw[MOST * 8];
    static float floats[MOST];
    static int64_t integers[MOST];
    bw_npy_header h;
    bw_error err;
    if (bw_npy_array_header(f, index, &h, &err))
        return;
    for (int round = 0; round < 2; round++) {
        for (uint64_t first = 0; first < h.count && first < 4 * MOST; first += MOST) {
            size_t n = h.count - first < MOST ? (size_t)(h.count - first) : MOST;
            if (bw_npy_read(f, index, first, n, raw, &err))
                return;
            bw_npy_to_float(&h, raw, n, floats);
            (void)bw_npy_to_int64(&h, raw, n, integers, &err);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bw_npy_file *f;
    bw_error err;
    if (bw_npy_open_bytes("fuzz", data, size, &f, &err))
        return 0;
    for (int i = 0; i < bw_npy_array_count(f); i++) {
        if (bw_npy_find(f, bw_npy_array_name(f, i)) < 0)
            abort();
        read_array(f, i);
    }
    bw_npy_close(f);
    return 0;
}
