/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Included first by files of long element loops. At -O2 gcc vectorises only loops of known length without conditions
 * that might trap; clang needs no telling. Neither option changes a result.
 */
#ifndef BW_HOST_OPS_LOOPS_H
#define BW_HOST_OPS_LOOPS_H

#if defined __GNUC__ && !defined __clang__
#pragma GCC optimize("vect-cost-model=dynamic", "no-trapping-math")
#endif

#endif
