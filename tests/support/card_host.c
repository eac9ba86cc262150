/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/card_host.h"

#include <stdlib.h>
#include <string.h>

static void put(card_body *b, const void *bytes, size_t size)
{
    b->bytes = realloc(b->bytes, b->size + size + 1);
    if (!b->bytes)
        abort();
    if (size)
        memcpy(b->bytes + b->size, bytes, size);
    b->size += size;
}

static void varint(card_body *b, uint64_t value)
{
    uint8_t byte;
    for (; value >= 0x80; value >>= 7) {
        byte = (uint8_t)(value | 0x80);
        put(b, &byte, 1);
    }
    byte = (uint8_t)value;
    put(b, &byte, 1);
}

void card_body_number(card_body *b, unsigned field, uint64_t value)
{
    varint(b, field << 3);
    varint(b, value);
}

void card_body_bytes(card_body *b, unsigned field, const void *bytes, size_t size)
{
    varint(b, field << 3 | 2);
    varint(b, size);
    put(b, bytes, size);
}

card_body card_load(const char *xml_path, unsigned banks, uint64_t bank_bytes)
{
    card_body b = {0}, bank = {0};
    card_body_bytes(&b, 1, xml_path, strlen(xml_path));
    card_body_bytes(&b, 3, "card", 4);
    card_body_number(&bank, 7, bank_bytes);
    for (unsigned i = 0; i < banks; i++)
        card_body_bytes(&b, 8, bank.bytes, bank.size);
    free(bank.bytes);
    return b;
}

card_body card_alloc(uint64_t address, uint64_t size)
{
    card_body b = {0};
    card_body_number(&b, 1, address);
    card_body_number(&b, 2, size);
    card_body_number(&b, 3, 1);
    return b;
}

card_body card_free(uint64_t address)
{
    card_body b = {0};
    card_body_number(&b, 1, address);
    return b;
}

card_body card_to_device(uint64_t address, const void *bytes, size_t size)
{
    card_body b = {0};
    card_body_bytes(&b, 2, "handle", 6);
    card_body_number(&b, 3, address);
    card_body_bytes(&b, 4, bytes, size);
    card_body_number(&b, 5, size);
    card_body_number(&b, 6, 0);
    return b;
}

card_body card_from_device(uint64_t address, size_t size)
{
    card_body b = {0};
    card_body_bytes(&b, 2, "handle", 6);
    card_body_number(&b, 4, address);
    card_body_number(&b, 5, size);
    card_body_number(&b, 6, 0);
    return b;
}

card_body card_write_ctrl(uint64_t address, const void *bytes, size_t size)
{
    card_body b = {0};
    card_body_number(&b, 2, address);
    card_body_number(&b, 3, size);
    card_body_bytes(&b, 4, bytes, size);
    return b;
}

card_body card_read_ctrl(uint64_t address)
{
    card_body b = {0};
    card_body_number(&b, 2, address);
    card_body_number(&b, 3, 4);
    return b;
}

card_body card_close(int all)
{
    card_body b = {0};
    card_body_bytes(&b, 2, "handle", 6);
    card_body_number(&b, 3, (uint64_t)all);
    return b;
}
