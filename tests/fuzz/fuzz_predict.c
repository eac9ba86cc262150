/* SPDX-License-Identifier: Apache-2.0 */
/* PredictRequest from the network: decoded whole and in pieces, which must agree, then scored and encoded. The first
 * byte chooses where to cut; the rest is the message. */
#include "service/predict.h"

#include "tests/support/fake_model.h"

#define DECODE bw_predict_decode
#include "tests/fuzz/codec.h"
