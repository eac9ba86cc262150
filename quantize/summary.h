/* SPDX-License-Identifier: Apache-2.0 */
/* What a quantization came to, for people. Thread safety: none needed. */
#ifndef BW_QUANTIZE_SUMMARY_H
#define BW_QUANTIZE_SUMMARY_H

#include <jansson.h>

#include "quantize/compile.h"

/* Numbers, stages and sizes of the package at `path` on stdout; with `quality` (may be NULL; docs/package.md) also
 * what calibration measured, and a warning on stderr if values leave the vector format's range. */
void bw_summary_print(const char *path, const bw_recipe *r, const bw_compiled *c, const json_t *quality);

#endif
