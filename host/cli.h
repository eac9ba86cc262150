/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the commands share: error lines, exit codes, progress, interruption, sizes. Used by the built-ins of `blockwave`
 * and by the programs of quantize/ and service/.
 */
#ifndef BW_HOST_CLI_H
#define BW_HOST_CLI_H

#include <stdint.h>
#include <stdio.h>

#include "kernels/status.h"

#define BW_EXIT_OK          0
#define BW_EXIT_FAILURE     1
#define BW_EXIT_USAGE       2
#define BW_EXIT_INTERRUPTED 130

#define BW_VERSION "0.1.0"

/* Prints "blockwave COMMAND: message" to stderr; returns BW_EXIT_FAILURE (BW_EXIT_INTERRUPTED for BW_CANCELLED). */
int bw_cli_fail(const char *command, const bw_error *err);
/* The same with a formatted text and ", see 'blockwave COMMAND --help'"; returns BW_EXIT_USAGE. */
int bw_cli_usage(const char *command, const char *format, ...) __attribute__((format(printf, 2, 3)));

/*
 * To be called first thing in main by programs that run CPU stages. oneDNN's OpenMP threads spin for milliseconds after
 * each operator and starve whoever shares the CPUs, unless OMP_WAIT_POLICY is passive. The runtime reads that when it
 * is loaded, before main: so it is set here, unless the user has set it (or GOMP_SPINCOUNT), and the program started
 * over once. Goes on as it is if that cannot be done.
 */
void bw_cli_let_threads_sleep(char **argv);

/* Installs SIGINT and SIGTERM handlers that set a flag; a second signal ends the process. */
void bw_cli_catch_interrupts(void);
int bw_cli_interrupted(void);

/* Progress on stderr: a redrawn bar with rate and remaining time on a terminal, a line at every tenth elsewhere;
 * nothing with quiet. */
typedef struct bw_progress {
    const char *label;
    uint64_t total, done, started_ns, drawn_ns;
    int quiet, terminal, last_tenth;
} bw_progress;
void bw_progress_begin(bw_progress *p, const char *label, uint64_t total, int quiet);
void bw_progress_step(bw_progress *p, uint64_t done);
void bw_progress_end(bw_progress *p);

/* "1.23 MB"; returns buf. */
const char *bw_cli_bytes(uint64_t bytes, char buf[32]);

#endif
