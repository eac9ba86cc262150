/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of host/session: the two memory orders of a tensor, and the scan for numbers that are none. */
#ifndef BW_HOST_SESSION_LAYOUT_H
#define BW_HOST_SESSION_LAYOUT_H

#include <stddef.h>

/* in: channels x pixels, out: pixels x channels, and back. In and out do not overlap. The way there also looks at the
 * values: 0 if one is NaN or infinity; out is filled all the same. */
int bw_to_channels_last(const float *in, size_t channels, size_t pixels, float *out);
void bw_to_channels_first(const float *in, size_t channels, size_t pixels, float *out);

/* Index of the first NaN or infinity, n if there is none. */
size_t bw_first_not_finite(const float *x, size_t n);

#endif
