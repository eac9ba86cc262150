/* SPDX-License-Identifier: Apache-2.0 */
/*
 * DWCONV of the x86 row kernels (bw_depthwise in sim/fast.h), written once: included by rows__ISA.c after
 * sim/rows_fused.h. The sums of some neighbouring pixels stay in registers over all taps. A row of taps goes through
 * the input once, from left to right, so that each element is converted once and each sum takes its taps in order.
 */

/* Neighbours at a time, the more the fewer conversions: 14 is the size of many feature maps, or divides it. */
#if V_LANES == 16
#define DEPTHWISE_PIXELS 14
#else
#define DEPTHWISE_PIXELS 7 /* half the registers */
#endif

#if V_LANES == 16
/* One vector of channels from c on, the sums of `pixels` pixels from number p on, to the output: activation and
 * encoding as in sim/rows_fused.h. */
static void depthwise_end(const bw_depthwise *d, const side *out, size_t pixels, size_t p, size_t c, const vf *acc)
{
    const bw_row_activation *a = d->activation;
    const size_t left = d->n - c;
    spot to = moved(out->first, p * out->code_pixel + c * out->traits->device_bytes, p * out->exp_pixel + c / 16);
    if (out->kind == SIDE_FP16) {
        for (size_t i = 0; i < pixels; i++, to.codes += out->code_pixel) {
            const vh h = to_fp16(activated(a, acc[i]));
            if (left >= V_LANES)
                v_store_half((uint16_t *)(void *)to.codes, h);
            else
                _mm256_mask_storeu_epi16(to.codes, lanes_below(left), h);
        }
        return;
    }
    const int relu = a->kind == BW_ACT_RELU, clip = a->kind == BW_ACT_CLIP;
    const vf lo = v_set(a->lo), hi = v_set(a->hi);
    for (size_t done = 0; done < pixels; done += 4) {
        /* Some of the last ones are done twice. */
        const size_t first = pixels < 4 ? 0 : done + 4 > pixels ? pixels - 4 : done, count = pixels < 4 ? pixels : 4;
        vf y[4];
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; i++)
            y[i] = acc[first + (i < count ? i : 0)];
        if (clip)
#pragma GCC unroll 4
            for (size_t i = 0; i < 4; i++)
                y[i] = v_max(lo, v_min(hi, y[i]));
        if (left < 16)
#pragma GCC unroll 4
            for (size_t i = 0; i < 4; i++)
                y[i] = v_keep(y[i], left);
        uint8_t codes[64];
        int8_t exps[4];
        if (relu)
            write_int(out, 16, 4, 1, y, (spot){codes, exps});
        else
            write_int(out, 16, 4, 0, y, (spot){codes, exps});
        spot at = moved(to, first * out->code_pixel, first * out->exp_pixel);
        for (size_t i = 0; i < count; i++, at = moved(at, out->code_pixel, out->exp_pixel)) {
            memcpy(at.codes, codes + 16 * i, 16);
            at.exps[0] = exps[i];
        }
    }
}

/* --- scale and shift per channel, to blocks ---------------------------------------------------------------------- */

/* What the functions below are inlined with as constants. */
typedef struct scale_kind {
    bw_format format; /* of the input */
    int relu;
} scale_kind;

/* Activation of x * w + bias for 16 channels from c on, or the `left` < 16 that there are, zeros after those. */
INLINE vf scaled(const bw_depthwise *d, scale_kind k, const uint16_t *x, size_t c, size_t left)
{
    const uint16_t *from = x + c;
    uint16_t some[V_LANES];
    if (left < 16)
        from = v_copy_part(some, from, left);
    const vf v = v_fma(from_vector(k.format, from), v_load(d->w + c), d->bias ? v_load(d->bias + c) : v_set(0.0f));
    const vf y = k.relu ? v : activated(d->activation, v);
    return left < 16 ? v_keep(y, left) : y;
}

/* Blocks whose codes are still to be found: four at a time, of whatever pixels. */
typedef struct scaled_blocks {
    vf y[4 * 8]; /* of each block its vectors */
    vi most[4];  /* its largest magnitudes by lane */
    spot to[4];
} scaled_blocks;

/* Inlined with constant B. */
INLINE void write_scaled(const side *out, const scaled_blocks *s, size_t count, const int B, const int relu)
{
    const int per = B / 16;
    int32_t exps;
    four_factors scales;
    const int over = four_scales(out, relu, s->most[0], s->most[1], s->most[2], s->most[3], &exps, scales.f);
    uint8_t codes[4 * 32];
    if (B < 64)
        write_codes(out, B, 4 * per, relu, s->y, scales.f, over, codes);
    for (size_t i = 0; i < count; i++) {
        s->to[i].exps[0] = (int8_t)(exps >> 8 * i);
        if (B < 64)
            memcpy(s->to[i].codes, codes + B * i, (size_t)B);
        else
            write_codes(out, B, per, relu, s->y + i * (size_t)per, scales.f + i, over, s->to[i].codes);
    }
}

/* Blocks of B channels. Inlined with constant B. */
INLINE void scale_as(const bw_depthwise *d, const side *out, const int B, const scale_kind k)
{
    enum { FOUR = 4 * 16 };
    const int per = B / 16, magnitude = magnitude_bits(k.relu);
    const uint16_t *x = d->x + d->left * (int64_t)d->x_pixel;
    scaled_blocks s;
    size_t held = 0;
    memset(&s, 0, sizeof s);
    for (size_t p = 0; p < d->pixels; p++, x += d->x_pixel) {
        spot to = moved(out->first, p * out->code_pixel, p * out->exp_pixel);
        size_t c = 0;
        for (; B == 16 && c + FOUR <= d->n; c += FOUR, to = moved(to, FOUR, 4)) {
            vf y[4];
#pragma GCC unroll 4
            for (size_t i = 0; i < 4; i++)
                y[i] = scaled(d, k, x, c + 16 * i, 16);
            write_int(out, 16, 4, k.relu, y, to);
        }
        for (; c < d->n; c += (size_t)B, to = moved(to, (size_t)B, 1)) {
            vf *y = s.y + held * (size_t)per;
            vi most = v_set_int(0);
#pragma GCC unroll 8
            for (size_t i = 0; i < (size_t)per; i++) {
                const size_t at = c + 16 * i;
                y[i] = at < d->n ? scaled(d, k, x, at, d->n - at) : v_set(0.0f);
                most = i ? v_max_int(most, (vi)y[i] & magnitude) : (vi)y[i] & magnitude;
            }
            s.most[held] = most;
            s.to[held++] = to;
            if (held == 4) {
                write_scaled(out, &s, 4, B, k.relu);
                held = 0;
            }
        }
    }
    if (held)
        write_scaled(out, &s, held, B, k.relu);
}

INLINE void scale_to(const bw_depthwise *d, const side *out, const scale_kind k)
{
    if (out->kind == SIDE_BLOCK16)
        scale_as(d, out, 16, k);
    else if (out->kind == SIDE_BLOCK32)
        scale_as(d, out, 32, k);
    else if (out->kind == SIDE_BLOCK64)
        scale_as(d, out, 64, k);
    else
        scale_as(d, out, 128, k);
}

static void depthwise_scale(const bw_depthwise *d, const side *out)
{
    const int relu = d->activation->kind == BW_ACT_RELU;
    if (d->x_format != BW_FORMAT_FP16)
        scale_to(d, out, (scale_kind){BW_FORMAT_BF16, 0});
    else if (relu)
        scale_to(d, out, (scale_kind){BW_FORMAT_FP16, 1});
    else
        scale_to(d, out, (scale_kind){BW_FORMAT_FP16, 0});
}

/* Whether it can. */
static int depthwise_scales(const bw_depthwise *d, const side *out)
{
    return out && out->kind >= SIDE_BLOCK16 && out->kind <= SIDE_BLOCK128 && d->columns == 1 && d->rows == 1 &&
           d->stride == 1 && d->left >= 0 && d->left + (int64_t)d->pixels <= d->width;
}
#else
static void depthwise_scale(const bw_depthwise *d, const side *out)
{
    (void)d, (void)out;
}

static int depthwise_scales(const bw_depthwise *d, const side *out)
{
    (void)d, (void)out;
    return 0;
}

static void depthwise_end(const bw_depthwise *d, const side *out, size_t pixels, size_t p, size_t c, const vf *acc)
{
    (void)d, (void)out, (void)pixels, (void)p, (void)c, (void)acc; /* these kernels write rows only */
}
#endif

/* out: NULL for rows. */
static void depthwise_store(const bw_depthwise *d, const side *out, size_t pixels, size_t p, size_t c, const vf *acc)
{
    if (out) {
        depthwise_end(d, out, pixels, p, c, acc);
        return;
    }
    for (size_t i = 0; i < pixels; i++)
        v_store(d->acc + (p + i) * d->acc_stride + c, acc[i]);
}

/* `pixels` neighbours from number p on, one vector of channels from c on. Inlined with constant format, pixels, taps
 * and stride (dilation 1). inside: no column lies outside the input. part: the last channels, fewer than a vector. */
INLINE void depthwise_block(const bw_depthwise *d, const side *out, bw_format format, int pixels, int columns,
                            int stride, int inside, int part, size_t p, size_t c)
{
    const int64_t left = d->left + (int64_t)p * stride;
    const uint16_t *x = d->x + left * (int64_t)d->x_pixel + (int64_t)c;
    const float *w = d->w + c;
    const vf bias = d->bias ? v_load(d->bias + c) : v_set(0.0f);
    static const uint16_t zeros[V_LANES];
    vf acc[DEPTHWISE_PIXELS];
#pragma GCC unroll 16
    for (int i = 0; i < pixels; i++)
        acc[i] = bias;
    for (size_t ky = 0; ky < d->rows; ky++, x += d->x_row) {
        vf k[8];
#pragma GCC unroll 8
        for (int kx = 0; kx < columns; kx++, w += d->w_tap)
            k[kx] = v_load(w);
        const uint16_t *at = x;
#pragma GCC unroll 64
        for (int i = 0; i < (pixels - 1) * stride + columns; i++, at += d->x_pixel) {
            /* Zeros add nothing: no sum is -0. */
            const int beyond = !inside && (uint64_t)(left + i) >= (uint64_t)d->width;
            uint16_t some[V_LANES];
            const uint16_t *from = beyond ? zeros : at;
            if (part)
                from = v_copy_part(some, from, d->n - c);
            const vf v = from_vector(format, from);
#pragma GCC unroll 8
            for (int kx = 0; kx < columns; kx++)
                if (i >= kx && (i - kx) % stride == 0 && (i - kx) / stride < pixels)
                    acc[(i - kx) / stride] = v_fma(v, k[kx], acc[(i - kx) / stride]);
        }
    }
    depthwise_store(d, out, (size_t)pixels, p, c, acc);
}

/* All channels, at least `pixels` pixels. */
INLINE void depthwise_known(const bw_depthwise *d, const side *out, bw_format format, int pixels, int columns,
                            int stride)
{
    const size_t step = (size_t)pixels;
    const int64_t reach = (pixels - 1) * stride + columns;
    for (size_t c = 0; c < d->n; c += V_LANES)
        for (size_t p = 0; p < d->pixels; p += step) {
            if (p + step > d->pixels) /* some of the last ones are done twice */
                p = d->pixels - step;
            const int64_t left = d->left + (int64_t)p * stride;
            if (c + V_LANES > d->n)
                depthwise_block(d, out, format, pixels, columns, stride, 0, 1, p, c);
            else if (left >= 0 && left + reach <= d->width)
                depthwise_block(d, out, format, pixels, columns, stride, 1, 0, p, c);
            else
                depthwise_block(d, out, format, pixels, columns, stride, 0, 0, p, c);
        }
}

/* Any window. */
static void depthwise_any(const bw_depthwise *d, const side *out)
{
    for (size_t c = 0; c < d->n; c += V_LANES) {
        const size_t left = d->n - c < V_LANES ? d->n - c : V_LANES;
        for (size_t p = 0; p < d->pixels; p++) {
            vf acc = d->bias ? v_load(d->bias + c) : v_set(0.0f);
            for (size_t ky = 0; ky < d->rows; ky++)
                for (size_t kx = 0; kx < d->columns; kx++) {
                    const int64_t column = d->left + (int64_t)(p * d->stride + kx * d->dilation);
                    if (column < 0 || column >= d->width)
                        continue;
                    const uint16_t *x = d->x + ky * d->x_row + (size_t)column * d->x_pixel + c;
                    uint16_t part[V_LANES];
                    if (left < V_LANES)
                        x = v_copy_part(part, x, left);
                    const vf w = v_load(d->w + (ky * d->columns + kx) * d->w_tap + c);
                    acc = v_fma(from_vector(d->x_format, x), w, acc);
                }
            depthwise_store(d, out, 1, p, c, &acc);
        }
    }
}

/* Of the numbers of pixels that there are kernels for, the one that does a row fastest: each block also takes the time
 * of about two pixels for what is around them. */
INLINE int depthwise_best(size_t pixels, const int *some, int count)
{
    int best = 1;
    size_t least = SIZE_MAX;
    for (int i = 0; i < count; i++) {
        const size_t n = (size_t)some[i], time = (pixels + n - 1) / n * (n + 2);
        if (n <= pixels && n <= DEPTHWISE_PIXELS && time < least) {
            least = time;
            best = some[i];
        }
    }
    return best;
}

#define DEPTHWISE_CASE(n)                                                                                              \
    case n:                                                                                                            \
        depthwise_known(d, out, BW_FORMAT_FP16, n, columns, stride);                                                   \
        break

/* Inlined with constant columns and stride. */
INLINE int depthwise_shape(const bw_depthwise *d, const side *out, int columns, int stride)
{
    static const int few[] = {14, 7, 4, 2, 1}, many[] = {14, 8, 7, 6, 5, 4, 3, 2, 1};
    if (d->columns != (size_t)columns || d->stride != (size_t)stride)
        return 0;
    if (d->x_format != BW_FORMAT_FP16) {
        if (d->pixels < 7)
            return 0;
        depthwise_known(d, out, BW_FORMAT_BF16, 7, columns, stride);
    } else if (columns == 3) {
        switch (depthwise_best(d->pixels, many, 9)) {
#if V_LANES == 16
            DEPTHWISE_CASE(14);
            DEPTHWISE_CASE(8);
#endif
            DEPTHWISE_CASE(7);
            DEPTHWISE_CASE(6);
            DEPTHWISE_CASE(5);
            DEPTHWISE_CASE(4);
            DEPTHWISE_CASE(3);
            DEPTHWISE_CASE(2);
            DEPTHWISE_CASE(1);
        }
    } else {
        switch (depthwise_best(d->pixels, few, 5)) {
#if V_LANES == 16
            DEPTHWISE_CASE(14);
#endif
            DEPTHWISE_CASE(7);
            DEPTHWISE_CASE(4);
            DEPTHWISE_CASE(2);
            DEPTHWISE_CASE(1);
        }
    }
    return 1;
}

static void depthwise(const bw_depthwise *d)
{
    side resolved;
    const side *out = NULL;
    if (!d->acc) {
        resolved = side_of(&d->out, 16, 1);
        out = &resolved;
    }
    if (depthwise_scales(d, out)) {
        depthwise_scale(d, out);
        return;
    }
    const int known = d->dilation == 1 && (depthwise_shape(d, out, 3, 1) || depthwise_shape(d, out, 3, 2) ||
                                           depthwise_shape(d, out, 1, 1) || depthwise_shape(d, out, 5, 1) ||
                                           depthwise_shape(d, out, 5, 2) || depthwise_shape(d, out, 7, 1));
    if (!known)
        depthwise_any(d, out);
}
