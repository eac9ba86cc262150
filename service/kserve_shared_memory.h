/* SPDX-License-Identifier: Apache-2.0 */
/* Triton's extension of the Open Inference Protocol for tensors in POSIX shared memory, which its clients speak:
 * extension "system_shared_memory". User of every handler: the bw_scorer. */
#ifndef BW_SERVICE_KSERVE_SHARED_MEMORY_H
#define BW_SERVICE_KSERVE_SHARED_MEMORY_H

#include "service/proto/inference.pb-c.h"
#include "service/scoring.h"

void bw_kserve_shared_memory_status(bw_call *call, void *user);
void bw_kserve_shared_memory_register(bw_call *call, void *user);
void bw_kserve_shared_memory_unregister(bw_call *call, void *user);

/* Where a tensor lies, after its parameters; zeroed before the first of them. Borrows from the request. */
typedef struct bw_kserve_place {
    const char *region; /* NULL: not given */
    uint64_t offset, size;
    int offset_given, size_given;
} bw_kserve_place;

/* Takes one parameter of a tensor. Those that would change the answer and are not known are refused, others ignored.
 * BW_INVALID_ARGUMENT: a value of the wrong kind; BW_UNSUPPORTED. */
bw_status bw_kserve_take_parameter(bw_kserve_place *place, const char *tensor, const char *key,
                                   const Inference__InferParameter *value, bw_error *err);
/* The place as a range, with a reference to its region; region NULL if the tensor is not in shared memory. m may be
 * NULL: it is not offered. BW_INVALID_ARGUMENT, BW_NOT_FOUND, BW_UNSUPPORTED. */
bw_status bw_kserve_find_place(const bw_kserve_place *place, bw_shared_memory *m, const char *tensor,
                               bw_shared_range *range, bw_error *err);

#endif
