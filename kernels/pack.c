/* SPDX-License-Identifier: Apache-2.0 */
/* Packing of device codes to their true width, least significant bit first. */
#include <string.h>

#include "kernels/formats.h"

size_t bw_packed_size(const bw_format_traits *t, size_t n)
{
    /* In two parts, so that n * code_bits cannot overflow. */
    return n / 8 * t->code_bits + (n % 8 * t->code_bits + 7) / 8;
}

/* Elements of 8 bits and more are whole bytes in little-endian order: nothing to pack. */
static size_t whole_bytes(const bw_format_traits *t)
{
    return t->code_bits % 8 == 0 ? t->code_bits / 8u : 0;
}

static uint32_t load_code(const bw_format_traits *t, const uint8_t *codes, size_t i)
{
    uint16_t wide;
    if (t->device_bytes == 1)
        return codes[i];
    memcpy(&wide, codes + 2 * i, sizeof wide);
    return wide;
}

void bw_pack(const bw_format_traits *t, const void *from, size_t n, uint8_t *packed)
{
    const uint8_t *codes = from;
    size_t bytes = whole_bytes(t);
    if (bytes) {
        memcpy(packed, codes, n * bytes);
        return;
    }
    uint32_t window = 0, mask = (1u << t->code_bits) - 1;
    unsigned held = 0;
    for (size_t i = 0; i < n; i++) {
        window |= (load_code(t, codes, i) & mask) << held;
        for (held += t->code_bits; held >= 8; held -= 8) {
            *packed++ = (uint8_t)window;
            window >>= 8;
        }
    }
    if (held)
        *packed = (uint8_t)window;
}

void bw_unpack(const bw_format_traits *t, const uint8_t *packed, size_t n, void *to)
{
    uint8_t *codes = to;
    size_t bytes = whole_bytes(t);
    if (bytes) {
        memcpy(codes, packed, n * bytes);
        return;
    }
    uint32_t window = 0, mask = (1u << t->code_bits) - 1, sign = 1u << (t->code_bits - 1);
    unsigned held = 0;
    for (size_t i = 0; i < n; i++) {
        while (held < t->code_bits) {
            window |= (uint32_t)*packed++ << held;
            held += 8;
        }
        uint32_t code = window & mask;
        window >>= t->code_bits;
        held -= t->code_bits;
        if (t->kind != BW_KIND_TABLE) /* signed integers: the sign goes through the whole code */
            code = (code ^ sign) - sign;
        uint16_t wide = (uint16_t)code;
        if (t->device_bytes == 1)
            codes[i] = (uint8_t)code;
        else
            memcpy(codes + 2 * i, &wide, sizeof wide);
    }
}
