/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Progress of a whole quantization on stderr. A bar whose percentage is a share of time, not of steps: each phase has
 * an expected cost, which what is already done on this machine corrects.
 *
 *     bw_progress_bar bar;
 *     bw_bar_begin(&bar, quiet);
 *     bw_bar_expect(&bar, BW_PHASE_READ, seconds);       // for every phase that will come
 *     bw_bar_enter(&bar, BW_PHASE_READ, NULL);
 *     bw_bar_step(&bar, 0.5);                            // half of the phase is done
 *     ...
 *     bw_bar_end(&bar, !status);
 *
 * A terminal sees one line, drawn ten times a second, that never goes back and ends at 100 %. Elsewhere nothing is
 * drawn; phases with a note write it as a line when they begin. Thread safety: one thread at a time.
 */
#ifndef BW_QUANTIZE_PROGRESS_H
#define BW_QUANTIZE_PROGRESS_H

#include <stdint.h>

typedef enum bw_phase { /* in their order */
                        BW_PHASE_READ,
                        BW_PHASE_PASSES,
                        BW_PHASE_CHOOSE,
                        BW_PHASE_PACK,
                        BW_PHASE_CORRECT,
                        BW_PHASE_CALIBRATE,
                        BW_PHASE_WRITE,
                        BW_PHASES
} bw_phase;

typedef struct bw_progress_bar {
    int quiet, terminal;
    int phase;                      /* BW_PHASES before the first */
    double expected[BW_PHASES];     /* seconds on some machine: their ratios count */
    double passed, passed_expected; /* of the phases gone by: seconds taken and foreseen */
    double done;                    /* share of the phase, 0..1 */
    double shown;                   /* share of everything, 0..1, never falls */
    uint64_t started_ns, phase_ns, drawn_ns;
} bw_progress_bar;

/* quiet: nothing is ever written. Every function takes NULL for no progress at all. */
void bw_bar_begin(bw_progress_bar *b, int quiet);
/* May be called again when more is known. */
void bw_bar_expect(bw_progress_bar *b, bw_phase phase, double seconds);
/* Ends the phase before. note: "calibrating on 64 samples", written as a line where there is no terminal; or NULL. */
void bw_bar_enter(bw_progress_bar *b, bw_phase phase, const char *note);
void bw_bar_step(bw_progress_bar *b, double done);
/* complete: 100 %; else the bar stays where it was. The line is ended. */
void bw_bar_end(bw_progress_bar *b, int complete);

/* The share of all time that has gone by, from the expectations and what was measured; `seconds`: in this phase. */
double bw_bar_share(const bw_progress_bar *b, double seconds);

#endif
