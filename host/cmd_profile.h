/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of `blockwave profile`: what was measured (cmd_profile.c), and how it is shown (profile_report.c). */
#ifndef BW_HOST_CMD_PROFILE_H
#define BW_HOST_CMD_PROFILE_H

#include "host/cmd.h"
#include "host/cost.h"
#include "sim/sim.h"

typedef struct bw_profile_row {
    int stage;         /* -1: around the stages */
    int64_t index;     /* instruction of the stage's program; -1: host */
    const char *layer; /* borrowed from the package; "" */
    char text[96];     /* operation: "CONV", "to device", operators of a CPU stage */
    char shape[96];
    bw_cost cost;
    uint64_t *ns;            /* one per run, in order of the runs */
    double median, p10, p90; /* milliseconds */
} bw_profile_row;

typedef struct bw_profile_result {
    const bw_cmd_model *model;
    bw_device_info device;
    bw_sim_peak peak; /* int8 0: unknown */
    int64_t batch, runs;
    bw_profile_row *rows;
    int row_count;
    bw_samples timed, untimed; /* whole runs, sorted */
    int64_t typical;           /* the timed run with the median latency */
    double sum;                /* of the rows' medians, ms */
} bw_profile_result;

/* G multiply-adds/s of a row; 0 if it has none. */
double bw_profile_rate(const bw_profile_result *r, const bw_profile_row *row);
/* Percent of the device's int8 peak; negative: unknown. */
double bw_profile_percent(const bw_profile_result *r, double rate);

void bw_profile_print(const bw_profile_result *r);
void bw_profile_print_json(const bw_profile_result *r);
/* Trace Event Format of the typical run. BW_NO_MEMORY, BW_IO and others of bw_file_write_atomic. */
bw_status bw_profile_write_trace(const bw_profile_result *r, const char *path, bw_error *err);

#endif
