/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packages (*.bw): a quantized model in one file. The file is an uncompressed POSIX (ustar) archive, so
 * `tar tvf model.bw` lists it and `tar xOf model.bw manifest.json` prints the manifest; every section starts at a
 * 512-byte boundary and is used in place through mmap. The first member is manifest.json, docs/package.md has its
 * schema; its "sections" list gives name, size and SHA-256 of every other member. Equal content gives equal bytes.
 *
 *     bw_package *pkg;
 *     if (bw_package_open("resnet20.bw", &pkg, &err)) ...
 *     bw_package_section(pkg, "stage0/program.bin", &bytes, &size, &err);
 *     bw_package_close(pkg);
 *
 * Thread safety: an open package is immutable; sections may be read from any thread.
 */
#ifndef BW_HOST_PACKAGE_H
#define BW_HOST_PACKAGE_H

#include <jansson.h>
#include <stddef.h>

#include "kernels/status.h"

#define BW_PACKAGE_VERSION 1

typedef struct bw_package bw_package;

/* Maps the file, checks structure and every section's SHA-256. BW_NOT_FOUND, BW_IO, BW_CORRUPT, BW_CHECKSUM,
 * BW_VERSION_MISMATCH. */
bw_status bw_package_open(const char *path, bw_package **pkg, bw_error *err);
/* The same from memory (borrowed, 64-byte aligned); used by the fuzzer and tests. */
bw_status bw_package_parse(const void *bytes, size_t size, bw_package **pkg, bw_error *err);
void bw_package_close(bw_package *pkg);

const json_t *bw_package_manifest(const bw_package *pkg); /* borrowed */
const char *bw_package_path(const bw_package *pkg);
size_t bw_package_size(const bw_package *pkg); /* of the whole file */
/* 64-byte aligned, valid until close. BW_NOT_FOUND. */
bw_status bw_package_section(const bw_package *pkg, const char *name, const void **bytes, size_t *size, bw_error *err);
size_t bw_package_section_count(const bw_package *pkg);
const char *bw_package_section_name(const bw_package *pkg, size_t index);

typedef struct bw_package_section_in {
    const char *name; /* [A-Za-z0-9_./-], at most 99 characters */
    const void *bytes;
    size_t size;
} bw_package_section_in;

/* Writes the package to a temporary file beside `path` and renames it: a failure leaves nothing behind. `manifest`
 * gets "format", "version", "sections" and "manifest_sha256" set. BW_IO, BW_NO_MEMORY, BW_INVALID_ARGUMENT. */
bw_status bw_package_write(const char *path, json_t *manifest, const bw_package_section_in *sections, size_t count,
                           bw_error *err);

#endif
