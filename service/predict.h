/* SPDX-License-Identifier: Apache-2.0 */
/* TensorFlow Serving's PredictionService: Predict. */
#ifndef BW_SERVICE_PREDICT_H
#define BW_SERVICE_PREDICT_H

#include "service/scoring.h"

/* Method handler; user is the bw_scorer. */
void bw_predict_handle(bw_call *call, void *user);
/* The request's tensors into the scoring. Public for tests and fuzzers; pictures borrow from the slices. */
bw_status bw_predict_decode(bw_scoring *s, const bw_slice *slices, size_t count, bw_error *err);

#endif
