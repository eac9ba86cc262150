/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Status codes and error messages, shared by every part of Blockwave.
 *
 * A function that can fail returns a bw_status and takes a `bw_error *err` as its last parameter. On failure it
 * fills *err with the same status and one line of text: the thing, the value, what was expected, the next step.
 * `err` may be NULL; on success *err is left alone.
 *
 *     bw_error err;
 *     if (bw_package_open(path, &pkg, &err))
 *         fprintf(stderr, "blockwave: %s\n", err.message);
 *
 * Thread safety: a bw_error belongs to its caller; nothing here has global state.
 */
#ifndef BW_KERNELS_STATUS_H
#define BW_KERNELS_STATUS_H

#include <stdarg.h>

/* X(name, number, text). Numbers are wire- and exit-code-stable: grouped with gaps, never renumbered. */
#define BW_STATUS_LIST(X)                                                                                              \
    X(BW_OK, 0, "ok")                                                                                                  \
    /* the caller's input */                                                                                           \
    X(BW_INVALID_ARGUMENT, 1, "invalid argument")                                                                      \
    X(BW_NOT_FOUND, 2, "not found")                                                                                    \
    X(BW_ALREADY_EXISTS, 3, "already exists")                                                                          \
    X(BW_UNSUPPORTED, 4, "not supported")                                                                              \
    X(BW_OUT_OF_RANGE, 5, "out of range")                                                                              \
    X(BW_NOT_FINITE, 6, "NaN or infinity")                                                                             \
    /* data at rest: packages, bitstreams, models, pictures */                                                         \
    X(BW_CORRUPT, 20, "corrupt data")                                                                                  \
    X(BW_VERSION_MISMATCH, 21, "version mismatch")                                                                     \
    X(BW_CHECKSUM, 22, "checksum mismatch")                                                                            \
    X(BW_INCOMPATIBLE, 23, "incompatible with the device")                                                             \
    /* the system */                                                                                                   \
    X(BW_NO_MEMORY, 40, "out of memory")                                                                               \
    X(BW_IO, 41, "input/output error")                                                                                 \
    X(BW_PERMISSION, 42, "permission denied")                                                                          \
    X(BW_EXHAUSTED, 43, "resource exhausted")                                                                          \
    /* time and devices */                                                                                             \
    X(BW_TIMEOUT, 60, "deadline exceeded")                                                                             \
    X(BW_CANCELLED, 61, "cancelled")                                                                                   \
    X(BW_BUSY, 62, "busy")                                                                                             \
    X(BW_DEVICE_LOST, 63, "device lost")                                                                               \
    X(BW_DEVICE_FAULT, 64, "device fault")                                                                             \
    /* us */                                                                                                           \
    X(BW_INTERNAL, 90, "internal error")

typedef enum bw_status {
#define BW_STATUS_ENUM(name, number, text) name = number,
    BW_STATUS_LIST(BW_STATUS_ENUM)
#undef BW_STATUS_ENUM
} bw_status;

#define BW_ERROR_MESSAGE_MAX 512

typedef struct bw_error {
    bw_status status;
    char message[BW_ERROR_MESSAGE_MAX]; /* one line, no trailing newline, always terminated */
} bw_error;

/* The code's name, e.g. "BW_CORRUPT"; "BW_?" for a number that is none. Static storage. */
const char *bw_status_name(bw_status status);

/* The code's text, e.g. "corrupt data". Static storage. */
const char *bw_status_text(bw_status status);

/* Fills *err (if not NULL) and returns `status`, so that a failing function ends in `return bw_fail(...)`.
 * Control characters of the formatted text are replaced by '?', an over-long line is cut. */
bw_status bw_fail(bw_error *err, bw_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Puts "text: " in front of err->message, keeping the status; returns `status`. For adding context on the way up. */
bw_status bw_fail_context(bw_error *err, bw_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
