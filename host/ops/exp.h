/* SPDX-License-Identifier: Apache-2.0 */
/*
 * exp, sigmoid and tanh in double from additions and products alone, for results that are rounded to fp32: the error is
 * below 1e-13 relative, the bits are the same on every machine (the C library's depend on whether it has FMA), and
 * loops over them vectorise. Internal to host/ops.
 */
#ifndef BW_HOST_OPS_EXP_H
#define BW_HOST_OPS_EXP_H

#include <stdint.h>
#include <string.h>

/* Below -708 and above 709.5 it saturates at about 3e-308 and 1.4e308: 0 and infinity once rounded to fp32. */
static inline double bw_exp(double x)
{
    const double magic = 0x1.8p52; /* adding it rounds to an integer and leaves that in the low bits */
    x = x < -708 ? -708 : x;
    x = x > 709.5 ? 709.5 : x;
    double shifted = x * 1.4426950408889634 + magic, k = shifted - magic;
    double r = x - k * 0x1.62e42fefp-1 - k * 0x1.473de6af278edp-34; /* ln 2 in two parts */
    double p = 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r + 1;
    p = p * r + 1;
    uint64_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 1023) << 52;
    double power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

static inline double bw_sigmoid(double x)
{
    return 1 / (1 + bw_exp(-x));
}

static inline double bw_tanh(double x)
{
    /* Near 0 the quotient would lose what it cancels. */
    double small = x - x * x * x * (1.0 / 3), large = 1 - 2 / (bw_exp(2 * x) + 1);
    return x > -1e-4 && x < 1e-4 ? small : large;
}

#endif
