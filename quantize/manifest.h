/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a compiled network to a package: the manifest of docs/package.md and the sections.
 *
 * Thread safety: pure functions.
 */
#ifndef BW_QUANTIZE_MANIFEST_H
#define BW_QUANTIZE_MANIFEST_H

#include "quantize/import.h"
#include "quantize/recipe.h"

typedef struct bw_manifest_source {
    const bw_graph *g; /* as compiled */
    const bw_compiled *compiled;
    const bw_quantize_recipe *recipe;
    const char *name, *version; /* of the model */
    const char *source_file;    /* base name */
    const bw_import_info *info;
    json_t *preprocess, *labels, *quality; /* borrowed; NULL: absent */
} bw_manifest_source;

/* 1 if `name` / `version` may stand in "model". */
int bw_model_name_ok(const char *name);
int bw_model_version_ok(const char *version);

/* Writes the package, or leaves nothing (host/package.h). */
bw_status bw_package_from_compiled(const bw_manifest_source *source, const char *path, bw_error *err);

#endif
