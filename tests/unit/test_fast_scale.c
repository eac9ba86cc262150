/* SPDX-License-Identifier: Apache-2.0 */
/* DWCONV of one tap written as blocks (bw_depthwise in sim/fast.h, acc NULL), on every ISA that has it, against the
 * encoder of kernels/formats.h: each code and exponent, nothing written beside them, nothing read past the input. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>

#include "sim/fast.h"
#include "tests/support/lcg.h"

enum { ROUNDS = 6000, UNTOUCHED = 0x5A };

static uint64_t seed;

static uint32_t next(void)
{
    return (uint32_t)(bw_lcg(&seed) >> 33);
}

static size_t below(size_t n)
{
    return next() % n;
}

/* Mostly alike, some zeros, some of other magnitudes up to those that codes cannot hold. */
static float value(int wild)
{
    const float x = (float)((int)below(4001) - 2000) / 256.0f;
    const size_t kind = below(16);
    return kind == 0 ? 0.0f : kind == 1 && wild ? ldexpf(x, (int)below(220) - 120) : x;
}

static float after(const bw_row_activation *a, float y)
{
    if (a->kind == BW_ACT_RELU)
        return y > 0 ? y : 0.0f;
    if (a->kind == BW_ACT_CLIP)
        return y > a->hi ? a->hi : y < a->lo ? a->lo : y;
    return y;
}

typedef struct strip {
    bw_depthwise d;
    bw_row_format format;
    bw_row_activation activation;
    uint16_t *x;
    float *w, *bias;
    uint8_t *codes, *expected_codes;
    int8_t *exps, *expected_exps;
    size_t code_bytes, exp_bytes;
} strip;

static void fill(strip *s)
{
    const int wild = below(3) == 0;
    for (size_t i = 0; i < s->d.pixels * s->d.x_pixel - (s->d.x_pixel - s->d.n); i++)
        s->x[i] = bw_encode_vector(bw_format_get(s->d.x_format), value(0));
    for (size_t i = 0; i < s->d.w_tap; i++) {
        s->w[i] = value(wild);
        s->bias[i] = value(wild);
    }
}

static void expect(strip *s)
{
    const bw_depthwise *d = &s->d;
    const size_t block = s->format.block;
    memset(s->expected_codes, UNTOUCHED, s->code_bytes);
    memset(s->expected_exps, UNTOUCHED, s->exp_bytes);
    for (size_t p = 0; p < d->pixels; p++)
        for (size_t c = 0; c < d->n; c += block) {
            float y[128] = {0};
            for (size_t i = 0; i < block && c + i < d->n; i++) {
                const float x = bw_decode_vector(bw_format_get(d->x_format), s->x[p * d->x_pixel + c + i]);
                y[i] = after(&s->activation, fmaf(x, s->w[c + i], d->bias ? s->bias[c + i] : 0.0f));
            }
            bw_encode_block(s->format.traits, BW_ROUND_EVEN, y, block, s->expected_codes + p * d->out.code_step + c,
                            s->expected_exps + p * d->out.exp_step + c / block);
        }
}

static strip make(void)
{
    static const bw_format formats[] = {BW_FORMAT_MSFP16, BW_FORMAT_MSFP13, BW_FORMAT_MSFP11};
    strip s = {.format = {bw_format_get(formats[below(3)]), BW_KIND_INT, (uint16_t)(16u << below(4))}};
    const bw_activation kinds[] = {BW_ACT_NONE, BW_ACT_RELU, BW_ACT_CLIP};
    s.activation = (bw_row_activation){kinds[below(3)], -1.5f, 6.0f};
    bw_depthwise *d = &s.d;
    d->x_format = below(4) ? BW_FORMAT_FP16 : BW_FORMAT_BF16;
    d->stride = d->dilation = d->rows = d->columns = 1;
    d->n = below(2) ? 16 * (1 + below(20)) : 1 + below(300);
    d->pixels = 1 + below(7);
    d->width = (int64_t)d->pixels;
    d->x_pixel = d->x_row = d->n + below(3) * 16;
    d->w_tap = bw_round_up(d->n, 16);
    const size_t units = (d->n + s.format.block - 1) / s.format.block;
    d->out = (bw_side){.code_step = units * s.format.block + below(3) * 16, .exp_step = units + below(3)};
    s.code_bytes = d->pixels * d->out.code_step - (d->out.code_step - units * s.format.block);
    s.exp_bytes = d->pixels * d->out.exp_step - (d->out.exp_step - units);
    s.x = malloc((d->pixels * d->x_pixel - (d->x_pixel - d->n)) * sizeof *s.x);
    s.w = malloc(d->w_tap * sizeof *s.w);
    s.bias = malloc(d->w_tap * sizeof *s.bias);
    s.codes = malloc(s.code_bytes);
    s.expected_codes = malloc(s.code_bytes);
    s.exps = malloc(s.exp_bytes);
    s.expected_exps = malloc(s.exp_bytes);
    assert_true(s.x && s.w && s.bias && s.codes && s.expected_codes && s.exps && s.expected_exps);
    return s;
}

static void end(strip *s)
{
    free(s->x);
    free(s->w);
    free(s->bias);
    free(s->codes);
    free(s->expected_codes);
    free(s->exps);
    free(s->expected_exps);
}

static void equals_encoder(void **state)
{
    (void)state;
    static const bw_rows *const rows[BW_SIM_ISA_LIMIT - 1] = {&bw_rows_portable, &bw_rows_avx2, &bw_rows_avx512vnni,
                                                              &bw_rows_amx};
    unsigned run = 0;
    for (unsigned round = 0; round < ROUNDS; round++) {
        strip s = make();
        bw_depthwise *d = &s.d;
        fill(&s);
        d->x = s.x;
        d->w = s.w;
        d->bias = below(4) ? s.bias : NULL;
        d->activation = &s.activation;
        d->out.format = &s.format;
        d->out.codes = s.codes;
        d->out.exps = s.exps;
        expect(&s);
        for (bw_sim_isa isa = BW_SIM_ISA_PORTABLE; isa < BW_SIM_ISA_LIMIT; isa++) {
            const bw_rows *kernels = rows[isa - BW_SIM_ISA_PORTABLE];
            if (!bw_sim_isa_available(isa) || !kernels->depthwise_writes)
                continue;
            memset(s.codes, UNTOUCHED, s.code_bytes);
            memset(s.exps, UNTOUCHED, s.exp_bytes);
            kernels->depthwise(d);
            run++;
            if (memcmp(s.codes, s.expected_codes, s.code_bytes) || memcmp(s.exps, s.expected_exps, s.exp_bytes))
                fail_msg(
                    "round %u, %s: %zu channels of %zu pixels to %s in blocks of %u, activation %d, bias %d: other "
                    "bits",
                    round, bw_sim_isa_name(isa), d->n, d->pixels, s.format.traits->name, s.format.block,
                    s.activation.kind, d->bias != NULL);
        }
        end(&s);
    }
    if (!run)
        skip(); /* the CPU has none of these ISAs */
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(equals_encoder)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
