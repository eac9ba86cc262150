/* SPDX-License-Identifier: Apache-2.0 */
/* Byte kernels for CPUs with four pipes for 512-bit vectors. */
#define PIPES 4
#include "sim/dot_bytes.h"

const bw_byte_kernels bw_dot_bytes_avx512vnni = BYTE_KERNELS;
