/* SPDX-License-Identifier: Apache-2.0 */
/* The built-in commands of `blockwave`, and what they share. */
#ifndef BW_HOST_CMD_H
#define BW_HOST_CMD_H

#include <getopt.h>
#include <stdint.h>

#include "hal/hal.h"
#include "host/cli.h"
#include "host/session.h"

typedef struct bw_command {
    const char *name;
    const char *summary;
    int (*run)(int argc, char **argv); /* argv[0] is the command's name; returns the exit code */
} bw_command;

int bw_cmd_devices(int argc, char **argv);
int bw_cmd_load(int argc, char **argv);
int bw_cmd_bitstream(int argc, char **argv);
int bw_cmd_sign(int argc, char **argv);
int bw_cmd_inspect(int argc, char **argv);
int bw_cmd_run(int argc, char **argv);
int bw_cmd_eval(int argc, char **argv);
int bw_cmd_featurize(int argc, char **argv);
int bw_cmd_profile(int argc, char **argv);

/* Next option of argv: its val, or one of these. --help prints `help`; a mistake prints a usage line. */
#define BW_CMD_END   (-1)
#define BW_CMD_HELP  (-2)
#define BW_CMD_USAGE (-3)
int bw_cmd_option(int argc, char **argv, const struct option *options, const char *help);

/* A whole number lo..hi; prints a usage line and returns 0 if `text` is none. */
int bw_cmd_number(const char *command, const char *option, const char *text, int64_t lo, int64_t hi, int64_t *value);

/* Registers the simulator and opens the device. */
bw_status bw_cmd_open_device(const char *uri, bw_device **device, bw_error *err);

/* A package on a device. */
typedef struct bw_cmd_model {
    bw_package *package;
    bw_device *device;
    bw_session *session;
} bw_cmd_model;
bw_status bw_cmd_open_model(const char *path, const char *uri, bw_cmd_model *model, bw_error *err);
void bw_cmd_close_model(bw_cmd_model *model);

/* Names of the set bits of requirements, separated by blanks; returns buf. */
const char *bw_cmd_formats(uint32_t formats, char *buf, size_t size);
const char *bw_cmd_blocks(uint32_t blocks, char *buf, size_t size);

/* Durations of one kind, to be summed up in percentiles. */
typedef struct bw_samples {
    uint64_t *ns;
    size_t count, capacity;
} bw_samples;
bw_status bw_samples_add(bw_samples *s, uint64_t ns, bw_error *err);
void bw_samples_sort(bw_samples *s);
/* Of sorted samples, in milliseconds; the smallest sample that `percent` per cent do not exceed. */
double bw_samples_ms(const bw_samples *s, double percent);
void bw_samples_free(bw_samples *s);

/* Indices of the k largest of n scores, best first, equal scores in index order. k <= n. */
void bw_cmd_top(const float *scores, int64_t n, int64_t *best, int64_t k);

#endif
