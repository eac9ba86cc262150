/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The host's side of sim/card/wire.h, without XRT: builds requests one after the other into a buffer, in the form that
 * the fuzz target of the card takes ({u8 call, u24 size, body}...), or as they go over a socket.
 */
#ifndef BW_TESTS_CARD_HOST_H
#define BW_TESTS_CARD_HOST_H

#include <stddef.h>
#include <stdint.h>

typedef struct card_body {
    uint8_t *bytes; /* malloc'ed */
    size_t size;
} card_body;

void card_body_number(card_body *b, unsigned field, uint64_t value);
void card_body_bytes(card_body *b, unsigned field, const void *bytes, size_t size);

card_body card_load(const char *xml_path, unsigned banks, uint64_t bank_bytes);
card_body card_alloc(uint64_t address, uint64_t size);
card_body card_free(uint64_t address);
card_body card_to_device(uint64_t address, const void *bytes, size_t size);
card_body card_from_device(uint64_t address, size_t size);
card_body card_write_ctrl(uint64_t address, const void *bytes, size_t size);
card_body card_read_ctrl(uint64_t address);
card_body card_close(int all);

#endif
