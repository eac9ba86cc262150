/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory of an emulated card: sparse (a page takes memory when it is first written), and strict: only what the host
 * has allocated may be moved or used, each access within one buffer. Contents survive as on a card: a new buffer holds
 * what lay there, or zeros where nothing did since the last free.
 *
 * Thread safety: all functions may be called from any thread.
 */
#ifndef BW_SIM_CARD_MEMORY_H
#define BW_SIM_CARD_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/status.h"

typedef struct bw_card_memory bw_card_memory;

/* BW_NO_MEMORY: not even address space for `size` bytes. */
bw_status bw_card_memory_create(uint64_t size, bw_card_memory **memory, bw_error *err);
void bw_card_memory_destroy(bw_card_memory *memory);
uint64_t bw_card_memory_size(const bw_card_memory *memory);

/* 0; -1: outside the memory, overlapping another buffer, or too many buffers. */
int bw_card_memory_alloc(bw_card_memory *memory, uint64_t address, uint64_t size);
/* 0; -1: no buffer begins there. */
int bw_card_memory_free(bw_card_memory *memory, uint64_t address);
/* Frees every buffer. */
void bw_card_memory_clear(bw_card_memory *memory);

typedef enum bw_card_access {
    BW_CARD_ACCESS_OK = 0,
    BW_CARD_ACCESS_OUTSIDE = 1,
    BW_CARD_ACCESS_ECC = 2
} bw_card_access;

/* Whether [address, address + size) lies in one buffer. Size 0 is inside everywhere. */
bw_card_access bw_card_memory_check(bw_card_memory *memory, uint64_t address, uint64_t size);
/* Copies; OUTSIDE: nothing is copied. ECC: a word that bw_card_memory_poison has spoilt. Writing it mends it. */
bw_card_access bw_card_memory_read(bw_card_memory *memory, uint64_t address, void *to, uint64_t size);
bw_card_access bw_card_memory_write(bw_card_memory *memory, uint64_t address, const void *from, uint64_t size);

/* Counts up when bytes of [address, address + size) may have changed: by writes, poison, alloc or free. */
uint64_t bw_card_memory_version(bw_card_memory *memory, uint64_t address, uint64_t size);

/* Faults. Turns bit 0 of a byte; ecc: and any read of the byte's word is an uncorrectable error from now on. */
void bw_card_memory_spoil(bw_card_memory *memory, uint64_t address, int ecc);

#endif
