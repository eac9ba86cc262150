/* SPDX-License-Identifier: Apache-2.0 */
/* Byte kernels for CPUs with two pipes for 512-bit vectors. */
#define PIPES 2
#include "sim/dot_bytes.h"

const bw_byte_kernels bw_dot_bytes_2p_avx512vnni = BYTE_KERNELS;
