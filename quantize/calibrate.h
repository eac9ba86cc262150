/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calibration: the float network and the compiled one side by side on samples, batch by batch, in bounded memory.
 *
 * Thread safety: pure functions; the data set is used by one thread at a time.
 */
#ifndef BW_QUANTIZE_CALIBRATE_H
#define BW_QUANTIZE_CALIBRATE_H

#include <jansson.h>

#include "host/dataset.h"
#include "quantize/compile.h"
#include "quantize/progress.h"

typedef struct bw_calibration {
    bw_dataset *data;
    const char *data_name;     /* base name, recorded */
    int64_t count;             /* samples to use; <= 0: all */
    bw_progress_bar *progress; /* entered by each function; NULL: none */
} bw_calibration;

/*
 * Fills *quality with the figures of docs/package.md ("quality"). The caller releases it. The graph gives its weights
 * to the run (bw_executor_take_weights): afterwards it is good for its names and shapes. BW_UNSUPPORTED: the network
 * has not exactly one fp32 input. BW_INVALID_ARGUMENT: no samples. BW_CANCELLED: the user interrupted. BW_NOT_FINITE:
 * the float network itself gives NaN or infinity (names the value).
 */
bw_status bw_calibrate(bw_graph *g, const bw_compiled *c, const bw_calibration *options, json_t **quality,
                       bw_error *err);

/*
 * Corrects the biases of the network's layers in place: layer by layer, from
 * the input on, the mean error that quantization causes at each output channel is taken from its bias. Layers without
 * bias get one. *corrected: how many layers changed.
 */
bw_status bw_correct_biases(bw_graph *g, const bw_recipe *recipe, const bw_calibration *options, int *corrected,
                            bw_error *err);

/* A figure for the manifest in four significant digits: what follows is noise, and short numbers are readable. NULL
 * when out of memory. */
json_t *bw_quality_number(double v);

/* Samples that are run together: few of a network with large values. Results do not depend on it. */
int64_t bw_calibration_batch(const bw_graph *g);

#endif
