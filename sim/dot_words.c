/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CONV operands of kind INT16 (mx9), in class S16: activations are copied as they are, whatever the ISA; weights of 9
 * bits are brought from their packed order to pairs.
 */
#include <string.h>

#include "sim/fast.h"

void bw_pack_words(const bw_pack_args *g)
{
    const size_t bytes = g->count * g->block * sizeof(int16_t);
    for (size_t k = 0; k < g->count; k++)
        g->scale[k] = (int32_t)((uint32_t)(127 + (g->codes ? g->exps[k] : 0)) << 23);
    if (g->codes)
        memcpy(g->out, g->codes, bytes);
    else
        memset(g->out, 0, bytes);
}

/* Bits shift .. shift + 8, with sign. */
static inline int16_t nine_bits(uint64_t word, unsigned shift)
{
    return (int16_t)((int64_t)(word << (55 - shift)) >> 55);
}

/* Packed: 8 codes, of two outputs x 4, are 9 bytes. */
void bw_widen_words_portable(const uint8_t *packed, size_t blocks, size_t block, int16_t *out)
{
    for (size_t q = 0; q < blocks * block / 4; q++, out += BW_OUTPUT_TILE * 4)
        for (size_t n = 0; n < BW_OUTPUT_TILE; n += 2, packed += 9) {
            uint64_t low, high;
            memcpy(&low, packed, sizeof low);
            memcpy(&high, packed + 1, sizeof high);
            int16_t *first = out + n * 2, *second = first + BW_OUTPUT_TILE * 2;
            first[0] = nine_bits(low, 0);
            first[1] = nine_bits(low, 9);
            second[0] = nine_bits(low, 18);
            second[1] = nine_bits(low, 27);
            first[2] = nine_bits(low, 36);
            first[3] = nine_bits(low, 45);
            second[2] = nine_bits(low, 54);
            second[3] = nine_bits(high, 55);
        }
}
