/* SPDX-License-Identifier: Apache-2.0 */
#include "host/session_layout.h"

#include <stdint.h>
#include <string.h>

typedef float four __attribute__((vector_size(16)));
typedef uint32_t four_bits __attribute__((vector_size(16)));

/* Every function below that moves values also looks at them, which costs nothing beside the memory. `seen` has the sign
 * bit of a lane set as soon as one was NaN or infinity: one more than their exponent carries into it. */
#define EXPONENT     0x7f800000u
#define EXPONENT_ONE 0x00800000u

static inline void look_four(four x, four_bits *seen)
{
    four_bits bits;
    memcpy(&bits, &x, sizeof bits);
    *seen |= (bits & EXPONENT) + EXPONENT_ONE;
}

static inline void look(float x, four_bits *seen)
{
    look_four((four){x}, seen);
}

static inline int is_finite(four_bits seen)
{
    return (seen[0] | seen[1] | seen[2] | seen[3]) >> 31 == 0;
}

#if defined(__x86_64__)
/* The same loops for wide registers, where there are some: pictures arrive as fast as memory gives them. */
#define BW_WIDE __attribute__((target("avx512f")))

typedef float sixteen __attribute__((vector_size(64)));
typedef uint32_t sixteen_bits __attribute__((vector_size(64)));

static int is_wide(void)
{
    return __builtin_cpu_supports("avx512f") != 0;
}

BW_WIDE static inline void look_wide(sixteen x, sixteen_bits *seen)
{
    sixteen_bits bits;
    memcpy(&bits, &x, sizeof bits);
    *seen |= (bits & EXPONENT) + EXPONENT_ONE;
}

BW_WIDE static inline void fold(sixteen_bits wide, four_bits *seen)
{
    four_bits part[4];
    memcpy(part, &wide, sizeof part);
    *seen |= part[0] | part[1] | part[2] | part[3];
}

/* Pixels. The run before has pushed both sides out of the caches; asking beyond the end does no harm. */
enum { AHEAD = 128 };

/* Returns how many pixels it has done: whole sixteens. */
BW_WIDE static size_t interleave_3_wide(const float *in, size_t pixels, float *out, four_bits *seen)
{
    sixteen_bits bits = {0};
    size_t i = 0;
    for (; pixels - i >= 16; i += 16, out += 48) {
        sixteen a, b, c;
        memcpy(&a, in + i, sizeof a);
        memcpy(&b, in + pixels + i, sizeof b);
        memcpy(&c, in + 2 * pixels + i, sizeof c);
        look_wide(a, &bits), look_wide(b, &bits), look_wide(c, &bits);
        for (int k = 0; k < 3; k++) {
            __builtin_prefetch(in + k * pixels + i + AHEAD, 0, 3);
            __builtin_prefetch(out + 3 * AHEAD + 16 * k, 1, 3);
        }
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
    fold(bits, seen);
    return i;
}

/* Returns how many values it has copied: whole sixty-fours. */
BW_WIDE static size_t copy_wide(const float *in, size_t n, float *out, four_bits *seen)
{
    sixteen_bits bits = {0};
    size_t i = 0;
    for (; n - i >= 64; i += 64) {
        sixteen x[4];
        memcpy(x, in + i, sizeof x);
        look_wide(x[0], &bits), look_wide(x[1], &bits), look_wide(x[2], &bits), look_wide(x[3], &bits);
        memcpy(out + i, x, sizeof x);
    }
    fold(bits, seen);
    return i;
}

/* How many are finite at the beginning, in whole pieces of 64. */
BW_WIDE static size_t finite_wide(const float *x, size_t n)
{
    size_t i = 0;
    for (; n - i >= 64; i += 64) {
        sixteen v[4];
        sixteen_bits bits = {0};
        four_bits seen = {0};
        memcpy(v, x + i, sizeof v);
        look_wide(v[0], &bits), look_wide(v[1], &bits), look_wide(v[2], &bits), look_wide(v[3], &bits);
        fold(bits, &seen);
        if (!is_finite(seen))
            break;
    }
    return i;
}
#else
static int is_wide(void)
{
    return 0;
}

static size_t interleave_3_wide(const float *in, size_t pixels, float *out, four_bits *seen)
{
    (void)in, (void)pixels, (void)out, (void)seen;
    return 0;
}

static size_t copy_wide(const float *in, size_t n, float *out, four_bits *seen)
{
    (void)in, (void)n, (void)out, (void)seen;
    return 0;
}

static size_t finite_wide(const float *x, size_t n)
{
    (void)x, (void)n;
    return 0;
}
#endif

/* Colour pictures, which tiles do not fit: four pixels at a time. */
static int interleave_3(const float *in, size_t pixels, float *out)
{
    four_bits seen = {0};
    size_t i = is_wide() ? interleave_3_wide(in, pixels, out, &seen) : 0;
    out += 3 * i;
    for (; pixels - i >= 4; i += 4, out += 12) {
        four a, b, c;
        memcpy(&a, in + i, sizeof a);
        memcpy(&b, in + pixels + i, sizeof b);
        memcpy(&c, in + 2 * pixels + i, sizeof c);
        look_four(a, &seen), look_four(b, &seen), look_four(c, &seen);
        four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), bc = __builtin_shufflevector(b, c, 1, 5, 2, 6);
        four x = __builtin_shufflevector(ab, c, 0, 1, 4, 2), y = __builtin_shufflevector(bc, a, 0, 1, 6, 2);
        four last = __builtin_shufflevector(a, b, 3, 7, 3, 7), z = __builtin_shufflevector(c, last, 2, 4, 5, 3);
        memcpy(out, &x, sizeof x);
        memcpy(out + 4, &y, sizeof y);
        memcpy(out + 8, &z, sizeof z);
    }
    for (; i < pixels; i++, out += 3) {
        for (size_t k = 0; k < 3; k++) {
            out[k] = in[k * pixels + i];
            look(out[k], &seen);
        }
    }
    return is_finite(seen);
}

static int copy(const float *in, size_t n, float *out)
{
    four_bits seen = {0};
    size_t i = is_wide() ? copy_wide(in, n, out, &seen) : 0;
    for (; n - i >= 4; i += 4) {
        four x;
        memcpy(&x, in + i, sizeof x);
        look_four(x, &seen);
        memcpy(out + i, &x, sizeof x);
    }
    for (; i < n; i++) {
        out[i] = in[i];
        look(out[i], &seen);
    }
    return is_finite(seen);
}

/* A tile of 16 x 16 floats stays in the first-level cache; it is turned four by four. */
enum { TILE = 16 };

static inline void transpose_four(const float *in, size_t in_stride, float *out, size_t out_stride, four_bits *seen)
{
    four a, b, c, d;
    memcpy(&a, in, sizeof a);
    memcpy(&b, in + in_stride, sizeof b);
    memcpy(&c, in + 2 * in_stride, sizeof c);
    memcpy(&d, in + 3 * in_stride, sizeof d);
    look_four(a, seen), look_four(b, seen), look_four(c, seen), look_four(d, seen);
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

static void transpose_tile(const float *in, size_t in_stride, float *out, size_t out_stride, four_bits *seen)
{
    four_bits bits = *seen;
    for (size_t r = 0; r < TILE; r += 4) {
        for (size_t c = 0; c < TILE; c += 4)
            transpose_four(in + c * in_stride + r, in_stride, out + r * out_stride + c, out_stride, &bits);
    }
    *seen = bits;
}

/* A tile of nr x nc, at most TILE each. */
static void transpose_part(const float *in, size_t in_stride, float *out, size_t out_stride, size_t nr, size_t nc,
                           four_bits *seen)
{
    four_bits bits = *seen;
    for (size_t i = 0; i < nc; i++) {
        for (size_t k = 0; k < nr; k++) {
            out[i * out_stride + k] = in[k * in_stride + i];
            look(in[k * in_stride + i], &bits);
        }
    }
    *seen = bits;
}

/* out[c][r] = in[r][c]. Some tiles at a time along the rows of the output, which are then written in longer runs. */
static int transpose(const float *in, size_t rows, size_t columns, float *out)
{
    enum { RUN = 4 * TILE };
    four_bits seen = {0};
    if (rows == 1 || columns == 1)
        return copy(in, rows * columns, out);
    for (size_t start = 0; start < rows; start += RUN) {
        const size_t end = rows - start < RUN ? rows : start + RUN;
        for (size_t c = 0; c < columns; c += TILE) {
            const size_t nc = columns - c < TILE ? columns - c : TILE;
            for (size_t r = start; r < end; r += TILE) {
                const size_t nr = end - r < TILE ? end - r : TILE;
                const float *from = in + r * columns + c;
                float *to = out + c * rows + r;
                if (nr == TILE && nc == TILE)
                    transpose_tile(from, columns, to, rows, &seen);
                else
                    transpose_part(from, columns, to, rows, nr, nc, &seen);
            }
        }
    }
    return is_finite(seen);
}

int bw_to_channels_last(const float *in, size_t channels, size_t pixels, float *out)
{
    return channels == 3 ? interleave_3(in, pixels, out) : transpose(in, channels, pixels, out);
}

void bw_to_channels_first(const float *in, size_t channels, size_t pixels, float *out)
{
    (void)transpose(in, pixels, channels, out);
}

size_t bw_first_not_finite(const float *x, size_t n)
{
    size_t i = is_wide() ? finite_wide(x, n) : 0;
    for (; n - i >= 64; i += 64) {
        four v[16];
        four_bits seen = {0};
        memcpy(v, x + i, sizeof v);
        for (int k = 0; k < 16; k++)
            look_four(v[k], &seen);
        if (!is_finite(seen))
            break;
    }
    for (; i < n; i++) {
        four_bits seen = {0};
        look(x[i], &seen);
        if (!is_finite(seen))
            break;
    }
    return i;
}
