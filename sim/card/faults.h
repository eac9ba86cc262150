/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Faults to order, for tests of everything above the card. They come from a directory (environment BW_CARD_FAULTS): a
 * file KIND, or KIND.N for the card with the index N alone, holds a number: the fault happens at the so-manieth
 * occasion from now on, once, and the file is gone. So they survive the death of the card's process.
 *
 * kind      occasion     what happens
 * die       job          the process kills itself, as by `kill -9`, in the middle of the job
 * exit      job          the process exits
 * hang      job          the job does not end until it is aborted
 * freeze    job          the job does not end until the card is configured anew
 * error     job          the job fails
 * delay     job          (second number in the file: milliseconds) the job takes so much longer
 * ecc       job          an uncorrectable error in the memory that holds the job's constants (or its program)
 * flip      job          one bit of them turns, and nobody says so
 * stall     request      the process stops answering
 * lost      transfer     a transfer to the card does not arrive
 * zeros     transfer     a transfer from the card brings zeros
 * build     configuration the card comes up as something else
 */
#ifndef BW_SIM_CARD_FAULTS_H
#define BW_SIM_CARD_FAULTS_H

/* Whether it happens now. Counts one occasion. argument (may be NULL): the second number, 0 if there is none.
 * directory NULL: never. */
int bw_card_fault(const char *directory, int card, const char *kind, unsigned *argument);

#endif
