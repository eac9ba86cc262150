/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Recipes: everything that decides the bytes of a package besides the model. docs/quantize.md has the JSON schema.
 *
 *     bw_quantize_recipe r = bw_recipe_default();
 *     if (bw_recipe_read("recipe.json", &r, &err) || bw_recipe_settle(&r, &err)) ...
 *
 * Thread safety: pure functions.
 */
#ifndef BW_QUANTIZE_RECIPE_H
#define BW_QUANTIZE_RECIPE_H

#include <jansson.h>

#include "quantize/compile.h"

#define BW_BLOCK_LOSS_MAX 60.

typedef struct bw_quantize_recipe {
    bw_recipe core;      /* formats; block 0: the default block of the formats */
    int choose_block;    /* core.block is found on the calibration samples (choose_block.h) */
    double block_loss;   /* what that may cost, dB: 0..BW_BLOCK_LOSS_MAX */
    int bias_correction; /* correct biases on the calibration samples */
    int keep_batchnorm;  /* batch normalisations stay operations of their own (bw_passes_run_unfolded) */
} bw_quantize_recipe;

/* msfp16 weights and activations, fp16 vectors, first and last layer narrow, nothing corrected; block 0; 3 dB. */
bw_quantize_recipe bw_recipe_default(void);

/* Overwrites what the JSON object (or file) says, keeps the rest. BW_INVALID_ARGUMENT names the key, its value and what
 * is expected; unknown keys are refused. BW_NOT_FOUND, BW_IO, BW_CORRUPT (not JSON: line and column). */
bw_status bw_recipe_from_json(const json_t *json, bw_quantize_recipe *r, bw_error *err);
bw_status bw_recipe_read(const char *path, bw_quantize_recipe *r, bw_error *err);

/* A format by name as a recipe or option gives it. `what`: for the message. vector: fp16, bf16 only, else block
 * formats. BW_INVALID_ARGUMENT lists the names. */
bw_status bw_recipe_format(const char *what, const char *name, int vector, bw_format *format, bw_error *err);

/* A block as a recipe or option gives it, "auto" included. BW_INVALID_ARGUMENT. */
bw_status bw_recipe_block(const char *what, const char *text, bw_quantize_recipe *r, bw_error *err);

/* Fills the default block and checks that formats and block go together; formats that have one length have nothing to
 * choose. BW_INVALID_ARGUMENT. */
bw_status bw_recipe_settle(bw_quantize_recipe *r, bw_error *err);

/* The complete recipe, once a block that was to be chosen has been; NULL when out of memory. */
json_t *bw_recipe_to_json(const bw_quantize_recipe *r);

#endif
