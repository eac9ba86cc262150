/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of host/session: inputs that are fetched while they are laid out, and checked on the way. */
#ifndef BW_HOST_SESSION_SOURCE_H
#define BW_HOST_SESSION_SOURCE_H

#include "host/session.h"

/* At most so many channels are fetched side by side. */
#define BW_FETCH_CHANNELS 4

/* The first `count` values, in row-major order. BW_NOT_FINITE names the input and the first bad element;
 * else what the source returns. */
bw_status bw_source_fetch(const bw_source *source, const bw_io *io, size_t count, float *to, bw_error *err);
/* One image, whose values begin with number `first`: [channels][pixels] becomes [pixels][channels]. channels 1 to
 * BW_FETCH_CHANNELS, or pixels 1. Errors as above. */
bw_status bw_source_channels_last(const bw_source *source, const bw_io *io, size_t first, size_t channels,
                                  size_t pixels, float *to, bw_error *err);
/* "input 'x': element 12 is nan, expected finite numbers" */
bw_status bw_fail_not_finite(const bw_io *io, size_t index, double value, bw_error *err);

#endif
