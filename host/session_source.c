/* SPDX-License-Identifier: Apache-2.0 */
/* Inputs that are fetched: see host/session_source.h. A piece is read, then laid out and looked at while it is in the
 * first-level cache. */
#include "host/session_source.h"

#include "host/session_layout.h"

#define PIECE 2048

bw_status bw_fail_not_finite(const bw_io *io, size_t index, double value, bw_error *err)
{
    return bw_fail(err, BW_NOT_FINITE, "input '%s': element %zu is %g, expected finite numbers", io->name, index,
                   value);
}

/* The run before has pushed this memory out of the caches: asked for early, it comes while the piece is read. */
static void fetch_lines(const float *to, size_t count)
{
    for (size_t i = 0; i < count; i += 64 / sizeof *to)
        __builtin_prefetch(to + i, 1, 3);
}

/* Values first .. first+count-1 in their order. */
static bw_status fetch(const bw_source *source, const bw_io *io, size_t first, size_t count, float *to, bw_error *err)
{
    for (size_t at = 0, n; at < count; at += n) {
        n = count - at < PIECE ? count - at : PIECE;
        bw_status status = source->read(source->user, first + at, n, to + at, err);
        if (status)
            return status;
        size_t bad = bw_first_not_finite(to + at, n);
        if (bad < n)
            return bw_fail_not_finite(io, first + at + bad, (double)to[at + bad], err);
    }
    return BW_OK;
}

/* Something is wrong with the values: tells what comes first in their order. */
static bw_status first_failure(const bw_source *source, const bw_io *io, size_t first, size_t count, float *to,
                               bw_error *err)
{
    bw_status status = fetch(source, io, first, count, to, err);
    return status ? status
                  : bw_fail(err, BW_INVALID_ARGUMENT,
                            "input '%s' changed while it was read: leave it alone until the answer", io->name);
}

bw_status bw_source_fetch(const bw_source *source, const bw_io *io, size_t count, float *to, bw_error *err)
{
    return fetch(source, io, 0, count, to, err);
}

bw_status bw_source_channels_last(const bw_source *source, const bw_io *io, size_t first, size_t channels,
                                  size_t pixels, float *to, bw_error *err)
{
    if (channels == 1 || pixels == 1)
        return fetch(source, io, first, channels * pixels, to, err);
    float piece[PIECE];
    size_t most = PIECE / channels;
    for (size_t at = 0, n; at < pixels; at += n) {
        n = pixels - at < most ? pixels - at : most;
        int failed = 0;
        fetch_lines(to + at * channels, n * channels);
        for (size_t c = 0; c < channels && !failed; c++)
            failed = source->read(source->user, first + c * pixels + at, n, piece + c * n, NULL) != BW_OK;
        if (failed || !bw_to_channels_last(piece, channels, n, to + at * channels))
            return first_failure(source, io, first, channels * pixels, to, err);
    }
    return BW_OK;
}
