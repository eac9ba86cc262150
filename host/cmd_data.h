/* SPDX-License-Identifier: Apache-2.0 */
/* What the commands share that run a model over a data set: options, opening, closing. */
#ifndef BW_HOST_CMD_DATA_H
#define BW_HOST_CMD_DATA_H

#include "host/cmd.h"
#include "host/dataset.h"

typedef struct bw_cmd_data {
    const char *command, *uri, *path;
    int64_t batch, limit; /* limit 0: all samples */
    int quiet;
    /* once open */
    bw_cmd_model model;
    bw_dataset *data;
    int64_t count;
} bw_cmd_data;

/* 'D' --data, 'd' --device, 'b' --batch, 'c' --count, 'q' --quiet. 0: a usage line has been printed. */
int bw_cmd_data_option(bw_cmd_data *d, int option);
/* Opens the package files[0] and the data; prints what is wrong and returns the exit code. */
int bw_cmd_data_open(bw_cmd_data *d, int file_count, char **files);
void bw_cmd_data_close(bw_cmd_data *d);

#endif
