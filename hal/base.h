/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The small base that everyone above the kernels shares: clock, log, files, hashes.
 *
 * Thread safety: every function may be called from any thread.
 */
#ifndef BW_HAL_BASE_H
#define BW_HAL_BASE_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/status.h"

/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t bw_now_ns(void);

typedef enum bw_log_level { BW_LOG_ERROR = 0, BW_LOG_WARN = 1, BW_LOG_INFO = 2, BW_LOG_DEBUG = 3 } bw_log_level;

/* One line to stderr: "2026-01-31T12:00:00.123Z warn hal: text". Level from the environment BW_LOG
 * (error | warn | info | debug), default warn; bw_log_set_level overrides it. Never interleaves lines. */
void bw_log(bw_log_level level, const char *component, const char *format, ...) __attribute__((format(printf, 3, 4)));
void bw_log_set_level(bw_log_level level);

/* "PATH: cannot VERB: reason: what to do", `code` being an errno; verb is "write" for whatever makes a file.
 * BW_NOT_FOUND, BW_PERMISSION, BW_NO_MEMORY, BW_INVALID_ARGUMENT or BW_IO, as the errno is. */
bw_status bw_fail_errno(bw_error *err, const char *verb, const char *path, int code);

/* Maps a whole file read-only. An empty file gives bytes = NULL, size = 0. BW_NOT_FOUND, BW_PERMISSION, BW_IO. */
bw_status bw_file_map(const char *path, const void **bytes, size_t *size, bw_error *err);
void bw_file_unmap(const void *bytes, size_t size);
/* Bytes of such a mapping that have been read leave this process's memory; reading them again brings them back. */
void bw_file_release_pages(const void *bytes, size_t size);
/* Reads a whole file of at most `limit` bytes into malloc'ed memory, with a terminating 0 after the end. */
bw_status bw_file_read(const char *path, size_t limit, void **bytes, size_t *size, bw_error *err);

typedef struct bw_slice {
    const void *bytes;
    size_t size;
} bw_slice;

/* Writes the slices one after the other to a temporary file beside `path`, syncs it and renames it into place; on
 * failure nothing is left behind and an old file is untouched. */
bw_status bw_file_write_atomic(const char *path, const bw_slice *slices, size_t count, bw_error *err);

void bw_sha256(const void *bytes, size_t size, uint8_t digest[32]);
void bw_sha256_hex(const void *bytes, size_t size, char hex[65]);

/* 64-byte aligned, zeroed; NULL when out of memory. free() releases it. */
void *bw_aligned_zalloc(size_t size);

#endif
