/* SPDX-License-Identifier: Apache-2.0 */
/* The Open Inference Protocol (KServe v2): inference.GRPCInferenceService. User of every handler: the bw_scorer. */
#ifndef BW_SERVICE_KSERVE_H
#define BW_SERVICE_KSERVE_H

#include "service/scoring.h"

void bw_kserve_server_live(bw_call *call, void *user);
void bw_kserve_server_ready(bw_call *call, void *user);
void bw_kserve_model_ready(bw_call *call, void *user);
void bw_kserve_server_metadata(bw_call *call, void *user);
void bw_kserve_model_metadata(bw_call *call, void *user);
void bw_kserve_model_infer(bw_call *call, void *user);
/* The request's tensors into the scoring. Public for tests and fuzzers; pictures borrow from the slices. */
bw_status bw_kserve_decode(bw_scoring *s, const bw_slice *slices, size_t count, bw_error *err);

#endif
