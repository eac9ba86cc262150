/* SPDX-License-Identifier: Apache-2.0 */
#include "sim/card/wire.h"

#include <string.h>

enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };

int bw_wire_request_head(const uint8_t head[BW_WIRE_REQUEST_HEAD], uint32_t *call, uint64_t *size)
{
    if (head[0] != (1 << 3 | FIXED64) || head[9] != (2 << 3 | FIXED32))
        return -1;
    memcpy(size, head + 1, 8);
    memcpy(call, head + 10, 4);
    return *size > BW_WIRE_BODY_MAX ? -1 : 0;
}

static int varint(const uint8_t **at, const uint8_t *end, uint64_t *value)
{
    *value = 0;
    for (unsigned shift = 0; shift < 70; shift += 7) {
        if (*at == end)
            return -1;
        uint8_t byte = *(*at)++;
        if (shift == 63 && byte > 1)
            return -1;
        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80))
            return 0;
    }
    return -1;
}

/* A memory bank, {7: varint}: the only message inside a message that matters. */
static int bank(const uint8_t *at, const uint8_t *end, uint64_t *bytes)
{
    *bytes = 0;
    while (at < end) {
        uint64_t key, value;
        if (varint(&at, end, &key) || (key & 7) != VARINT || varint(&at, end, &value))
            return -1;
        if (key >> 3 == 7)
            *bytes = value;
    }
    return 0;
}

int bw_wire_parse(const uint8_t *body, size_t size, bw_wire_message *m)
{
    memset(m, 0, sizeof *m);
    const uint8_t *at = body, *end = body + size;
    while (at < end) {
        uint64_t key, value = 0;
        const uint8_t *bytes = NULL;
        if (varint(&at, end, &key) || key >> 3 == 0 || key >> 3 >= BW_WIRE_FIELDS)
            return -1;
        const unsigned field = (unsigned)(key >> 3);
        switch (key & 7) {
        case VARINT:
            if (varint(&at, end, &value))
                return -1;
            break;
        case FIXED64:
        case FIXED32: {
            size_t n = (key & 7) == FIXED64 ? 8 : 4;
            if ((size_t)(end - at) < n)
                return -1;
            memcpy(&value, at, n);
            at += n;
            break;
        }
        case BYTES:
            if (varint(&at, end, &value) || value > (size_t)(end - at))
                return -1;
            bytes = at;
            at += value;
            break;
        default:
            return -1;
        }
        if (field == 8 && bytes) {
            if (m->bank_count == BW_WIRE_BANKS || bank(bytes, at, &m->banks[m->bank_count]))
                return -1;
            m->bank_count++;
        }
        m->seen |= 1u << field;
        m->value[field] = bytes ? 0 : value;
        m->bytes[field] = bytes;
        m->size[field] = bytes ? (size_t)value : 0;
    }
    return 0;
}

void bw_wire_begin(bw_wire_reply *r)
{
    r->head_size = BW_WIRE_REPLY_HEAD;
    r->data = NULL;
    r->data_size = 0;
}

static void put_varint(bw_wire_reply *r, uint64_t value)
{
    for (; value >= 0x80; value >>= 7)
        r->head[r->head_size++] = (uint8_t)(value | 0x80);
    r->head[r->head_size++] = (uint8_t)value;
}

void bw_wire_number(bw_wire_reply *r, unsigned field, uint64_t value)
{
    put_varint(r, field << 3 | VARINT);
    put_varint(r, value);
}

void bw_wire_bytes(bw_wire_reply *r, unsigned field, const void *data, size_t size)
{
    put_varint(r, field << 3 | BYTES);
    put_varint(r, size);
    r->data = data;
    r->data_size = size;
}

void bw_wire_finish(bw_wire_reply *r)
{
    uint64_t size = r->head_size - BW_WIRE_REPLY_HEAD + r->data_size;
    r->head[0] = 1 << 3 | FIXED64;
    memcpy(r->head + 1, &size, 8);
}
