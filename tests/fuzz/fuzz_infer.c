/* SPDX-License-Identifier: Apache-2.0 */
/* ModelInferRequest from the network: decoded whole and in pieces, which must agree, then scored and encoded. The first
 * byte chooses where to cut; the rest is the message. Region "r" of shared memory is registered. */
#include "service/kserve.h"

#include "tests/fuzz/segment.h"
#include "tests/support/fake_model.h"

/* The same bytes in the segment for each message. */
static void prepare(bw_scorer *scorer)
{
    static int fd = -1;
    if (fd < 0) {
        fd = open_segment();
        scorer->shared_memory = bw_shared_memory_new(NULL, 1, 0);
        if (!scorer->shared_memory ||
            bw_shared_memory_register(scorer->shared_memory, "r", SEGMENT, 0, SEGMENT_SIZE, NULL))
            abort();
    }
    fill_segment(fd);
}

#define DECODE  bw_kserve_decode
#define PREPARE prepare
#include "tests/fuzz/codec.h"
