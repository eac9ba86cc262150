/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a compiled network on the simulator and the CPU, stage by stage, without a package: for calibration and tests.
 *
 * Thread safety: a runner is used by one thread at a time.
 */
#ifndef BW_QUANTIZE_RUNNER_H
#define BW_QUANTIZE_RUNNER_H

#include "quantize/compile.h"

typedef struct bw_runner bw_runner;

/* `g` is the graph that was compiled, `c` the result; both are borrowed. BW_NO_MEMORY and what bw_fast_create says. */
bw_status bw_runner_create(const bw_graph *g, const bw_compiled *c, bw_runner **runner, bw_error *err);
void bw_runner_destroy(bw_runner *runner);

/*
 * inputs: one per input of the graph (dims[0]: the batch). outputs: one zeroed array per output of the graph, filled
 * with owned data. observe (may be NULL): called for every output of every stage, with the graph's value id.
 */
bw_status bw_runner_run(bw_runner *runner, const bw_array *inputs, bw_array *outputs,
                        void (*observe)(int value, const bw_array *array, void *user), void *user, bw_error *err);

/* Memory that runs have left for the next one goes back to the system: of each stage what is beyond `bytes`. */
void bw_runner_trim(bw_runner *runner, size_t bytes);

#endif
