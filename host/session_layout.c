/* SPDX-License-Identifier: Apache-2.0 */
#include "host/session_layout.h"

#include <stdint.h>
#include <string.h>

/* A tile of 16 x 16 floats stays in the first-level cache, and its fixed bounds let compilers vectorise. */
enum { TILE = 16 };

static void transpose_tile(const float *in, size_t in_stride, float *out, size_t out_stride)
{
    for (size_t r = 0; r < TILE; r++) {
        for (size_t c = 0; c < TILE; c++)
            out[r * out_stride + c] = in[c * in_stride + r];
    }
}

/* out[c][r] = in[r][c] */
static void transpose(const float *in, size_t rows, size_t columns, float *out)
{
    if (rows == 1 || columns == 1) {
        memcpy(out, in, rows * columns * sizeof *in);
        return;
    }
    for (size_t r = 0; r < rows; r += TILE) {
        for (size_t c = 0; c < columns; c += TILE) {
            const float *from = in + r * columns + c;
            float *to = out + c * rows + r;
            if (rows - r >= TILE && columns - c >= TILE) {
                transpose_tile(from, columns, to, rows);
                continue;
            }
            size_t nr = rows - r < TILE ? rows - r : TILE, nc = columns - c < TILE ? columns - c : TILE;
            for (size_t i = 0; i < nc; i++) {
                for (size_t k = 0; k < nr; k++)
                    to[i * rows + k] = from[k * columns + i];
            }
        }
    }
}

void bw_to_channels_last(const float *in, size_t channels, size_t pixels, float *out)
{
    transpose(in, channels, pixels, out);
}

void bw_to_channels_first(const float *in, size_t channels, size_t pixels, float *out)
{
    transpose(in, pixels, channels, out);
}

static int not_finite(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (bits & 0x7f800000u) == 0x7f800000u;
}

size_t bw_first_not_finite(const float *x, size_t n)
{
    size_t i = 0;
    for (; n - i >= 64; i += 64) {
        int bad = 0;
        for (size_t k = 0; k < 64; k++)
            bad |= not_finite(x[i + k]);
        if (bad)
            break;
    }
    while (i < n && !not_finite(x[i]))
        i++;
    return i;
}
