/* SPDX-License-Identifier: Apache-2.0 */
#include "host/session_layout.h"

#include <stdint.h>
#include <string.h>

/* A tile of 16 x 16 floats stays in the first-level cache; it is turned four by four. */
enum { TILE = 16 };

typedef float four __attribute__((vector_size(16)));

static void transpose_four(const float *in, size_t in_stride, float *out, size_t out_stride)
{
    four a, b, c, d;
    memcpy(&a, in, sizeof a);
    memcpy(&b, in + in_stride, sizeof b);
    memcpy(&c, in + 2 * in_stride, sizeof c);
    memcpy(&d, in + 3 * in_stride, sizeof d);
    const four ac = __builtin_shufflevector(a, c, 0, 4, 1, 5), bd = __builtin_shufflevector(b, d, 0, 4, 1, 5);
    const four ca = __builtin_shufflevector(a, c, 2, 6, 3, 7), db = __builtin_shufflevector(b, d, 2, 6, 3, 7);
    a = __builtin_shufflevector(ac, bd, 0, 4, 1, 5);
    b = __builtin_shufflevector(ac, bd, 2, 6, 3, 7);
    c = __builtin_shufflevector(ca, db, 0, 4, 1, 5);
    d = __builtin_shufflevector(ca, db, 2, 6, 3, 7);
    memcpy(out, &a, sizeof a);
    memcpy(out + out_stride, &b, sizeof b);
    memcpy(out + 2 * out_stride, &c, sizeof c);
    memcpy(out + 3 * out_stride, &d, sizeof d);
}

static void transpose_tile(const float *in, size_t in_stride, float *out, size_t out_stride)
{
    for (size_t r = 0; r < TILE; r += 4) {
        for (size_t c = 0; c < TILE; c += 4)
            transpose_four(in + c * in_stride + r, in_stride, out + r * out_stride + c, out_stride);
    }
}

/* A tile of nr x nc, at most TILE each. */
static void transpose_part(const float *in, size_t in_stride, float *out, size_t out_stride, size_t nr, size_t nc)
{
    for (size_t i = 0; i < nc; i++) {
        for (size_t k = 0; k < nr; k++)
            out[i * out_stride + k] = in[k * in_stride + i];
    }
}

/* out[c][r] = in[r][c]. Some tiles at a time along the rows of the output, which are then written in longer runs. */
static void transpose(const float *in, size_t rows, size_t columns, float *out)
{
    enum { RUN = 4 * TILE };
    if (rows == 1 || columns == 1) {
        memcpy(out, in, rows * columns * sizeof *in);
        return;
    }
    for (size_t start = 0; start < rows; start += RUN) {
        const size_t end = rows - start < RUN ? rows : start + RUN;
        for (size_t c = 0; c < columns; c += TILE) {
            const size_t nc = columns - c < TILE ? columns - c : TILE;
            for (size_t r = start; r < end; r += TILE) {
                const size_t nr = end - r < TILE ? end - r : TILE;
                const float *from = in + r * columns + c;
                float *to = out + c * rows + r;
                if (nr == TILE && nc == TILE)
                    transpose_tile(from, columns, to, rows);
                else
                    transpose_part(from, columns, to, rows, nr, nc);
            }
        }
    }
}

#if defined(__x86_64__)
/* The same loops for wide registers, where there are some: pictures arrive as fast as memory gives them. */
#define BW_WIDE __attribute__((target("avx512f")))

typedef float sixteen __attribute__((vector_size(64)));
typedef int32_t sixteen_bits __attribute__((vector_size(64)));

static int is_wide(void)
{
    return __builtin_cpu_supports("avx512f") != 0;
}

/* Returns how many pixels it has done: whole sixteens. */
BW_WIDE static size_t interleave_3_wide(const float *in, size_t pixels, float *out)
{
    size_t i = 0;
    for (; pixels - i >= 16; i += 16, out += 48) {
        sixteen a, b, c;
        memcpy(&a, in + i, sizeof a);
        memcpy(&b, in + pixels + i, sizeof b);
        memcpy(&c, in + 2 * pixels + i, sizeof c);
        /* First a and b at their places, then c between them. */
        sixteen x = __builtin_shufflevector(a, b, 0, 16, 0, 1, 17, 0, 2, 18, 0, 3, 19, 0, 4, 20, 0, 5);
        sixteen y = __builtin_shufflevector(a, b, 21, 0, 6, 22, 0, 7, 23, 0, 8, 24, 0, 9, 25, 0, 10, 26);
        sixteen z = __builtin_shufflevector(a, b, 0, 11, 27, 0, 12, 28, 0, 13, 29, 0, 14, 30, 0, 15, 31, 0);
        x = __builtin_shufflevector(x, c, 0, 1, 16, 3, 4, 17, 6, 7, 18, 9, 10, 19, 12, 13, 20, 15);
        y = __builtin_shufflevector(y, c, 0, 21, 2, 3, 22, 5, 6, 23, 8, 9, 24, 11, 12, 25, 14, 15);
        z = __builtin_shufflevector(z, c, 26, 1, 2, 27, 4, 5, 28, 7, 8, 29, 10, 11, 30, 13, 14, 31);
        memcpy(out, &x, sizeof x);
        memcpy(out + 16, &y, sizeof y);
        memcpy(out + 32, &z, sizeof z);
    }
    return i;
}

/* How many are finite at the beginning, in whole pieces of 64. */
BW_WIDE static size_t finite_wide(const float *x, size_t n)
{
    const sixteen_bits exponent = (sixteen_bits){0} + 0x7f800000;
    size_t i = 0;
    for (; n - i >= 64; i += 64) {
        sixteen_bits v[4];
        memcpy(v, x + i, sizeof v);
        sixteen_bits bad = ((v[0] & exponent) == exponent) | ((v[1] & exponent) == exponent) |
                           ((v[2] & exponent) == exponent) | ((v[3] & exponent) == exponent);
        int32_t lanes[16], any = 0;
        memcpy(lanes, &bad, sizeof lanes);
        for (int k = 0; k < 16; k++)
            any |= lanes[k];
        if (any)
            break;
    }
    return i;
}
#else
static int is_wide(void)
{
    return 0;
}

static size_t interleave_3_wide(const float *in, size_t pixels, float *out)
{
    (void)in, (void)pixels, (void)out;
    return 0;
}

static size_t finite_wide(const float *x, size_t n)
{
    (void)x, (void)n;
    return 0;
}
#endif

/* Colour pictures, which tiles do not fit: four pixels at a time. */
static void interleave_3(const float *in, size_t pixels, float *out)
{
    size_t i = is_wide() ? interleave_3_wide(in, pixels, out) : 0;
    out += 3 * i;
    for (; pixels - i >= 4; i += 4, out += 12) {
        four a, b, c;
        memcpy(&a, in + i, sizeof a);
        memcpy(&b, in + pixels + i, sizeof b);
        memcpy(&c, in + 2 * pixels + i, sizeof c);
        four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), bc = __builtin_shufflevector(b, c, 1, 5, 2, 6);
        four x = __builtin_shufflevector(ab, c, 0, 1, 4, 2), y = __builtin_shufflevector(bc, a, 0, 1, 6, 2);
        four last = __builtin_shufflevector(a, b, 3, 7, 3, 7), z = __builtin_shufflevector(c, last, 2, 4, 5, 3);
        memcpy(out, &x, sizeof x);
        memcpy(out + 4, &y, sizeof y);
        memcpy(out + 8, &z, sizeof z);
    }
    for (; i < pixels; i++, out += 3) {
        for (size_t k = 0; k < 3; k++)
            out[k] = in[k * pixels + i];
    }
}

void bw_to_channels_last(const float *in, size_t channels, size_t pixels, float *out)
{
    if (channels == 3) {
        interleave_3(in, pixels, out);
        return;
    }
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
    size_t i = is_wide() ? finite_wide(x, n) : 0;
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
