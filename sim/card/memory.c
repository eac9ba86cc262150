/* SPDX-License-Identifier: Apache-2.0 */
#include "sim/card/memory.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define BUFFERS_MAX 65536u
#define POISON_MAX  16u
#define PAGE        4096u

typedef struct buffer {
    uint64_t address, size;
    uint64_t version; /* of its last change */
} buffer;

struct bw_card_memory {
    uint8_t *base;
    uint64_t size;
    pthread_mutex_t lock;
    buffer *buffers; /* ascending */
    unsigned count, capacity;
    uint64_t version;
    unsigned poison_count;
    uint64_t poison[POISON_MAX];
};

bw_status bw_card_memory_create(uint64_t size, bw_card_memory **memory, bw_error *err)
{
    *memory = NULL;
    bw_card_memory *m = calloc(1, sizeof *m);
    if (!m)
        return bw_fail(err, BW_NO_MEMORY, "no memory for a card");
    m->base =
        size ? mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) : NULL;
    if (m->base == MAP_FAILED) {
        free(m);
        return bw_fail(err, BW_NO_MEMORY, "no address space for a card's memory of %llu bytes",
                       (unsigned long long)size);
    }
    m->size = size;
    pthread_mutex_init(&m->lock, NULL);
    *memory = m;
    return BW_OK;
}

void bw_card_memory_destroy(bw_card_memory *m)
{
    if (!m)
        return;
    if (m->base)
        munmap(m->base, m->size);
    pthread_mutex_destroy(&m->lock);
    free(m->buffers);
    free(m);
}

uint64_t bw_card_memory_size(const bw_card_memory *m)
{
    return m->size;
}

/* Index of the first buffer that begins beyond `address`. */
static unsigned beyond(const bw_card_memory *m, uint64_t address)
{
    unsigned lo = 0, hi = m->count;
    while (lo < hi) {
        unsigned mid = (lo + hi) / 2;
        if (m->buffers[mid].address <= address)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static buffer *holder(const bw_card_memory *m, uint64_t address, uint64_t size)
{
    unsigned i = beyond(m, address);
    if (i == 0)
        return NULL;
    buffer *b = &m->buffers[i - 1];
    uint64_t offset = address - b->address;
    return offset <= b->size && size <= b->size - offset ? b : NULL;
}

static int insert(bw_card_memory *m, uint64_t address, uint64_t size)
{
    if (size == 0 || address > m->size || size > m->size - address || m->count == BUFFERS_MAX)
        return -1;
    unsigned i = beyond(m, address);
    if (i > 0 && m->buffers[i - 1].address + m->buffers[i - 1].size > address)
        return -1;
    if (i < m->count && address + size > m->buffers[i].address)
        return -1;
    if (m->count == m->capacity) {
        unsigned capacity = m->capacity ? 2 * m->capacity : 64;
        buffer *grown = realloc(m->buffers, capacity * sizeof *grown);
        if (!grown)
            return -1;
        m->buffers = grown;
        m->capacity = capacity;
    }
    memmove(&m->buffers[i + 1], &m->buffers[i], (m->count - i) * sizeof *m->buffers);
    m->buffers[i] = (buffer){address, size, ++m->version};
    m->count++;
    return 0;
}

int bw_card_memory_alloc(bw_card_memory *m, uint64_t address, uint64_t size)
{
    pthread_mutex_lock(&m->lock);
    int code = insert(m, address, size);
    pthread_mutex_unlock(&m->lock);
    return code;
}

/* Gives the pages back. */
static void drop(bw_card_memory *m, const buffer *b)
{
    uint64_t first = (b->address + PAGE - 1) / PAGE * PAGE, end = (b->address + b->size) / PAGE * PAGE;
    if (end > first)
        madvise(m->base + first, end - first, MADV_DONTNEED);
    unsigned kept = 0;
    for (unsigned i = 0; i < m->poison_count; i++)
        if (m->poison[i] < b->address || m->poison[i] >= b->address + b->size)
            m->poison[kept++] = m->poison[i];
    m->poison_count = kept;
}

int bw_card_memory_free(bw_card_memory *m, uint64_t address)
{
    pthread_mutex_lock(&m->lock);
    unsigned i = beyond(m, address);
    int found = i > 0 && m->buffers[i - 1].address == address;
    if (found) {
        drop(m, &m->buffers[i - 1]);
        memmove(&m->buffers[i - 1], &m->buffers[i], (m->count - i) * sizeof *m->buffers);
        m->count--;
        m->version++;
    }
    pthread_mutex_unlock(&m->lock);
    return found ? 0 : -1;
}

void bw_card_memory_clear(bw_card_memory *m)
{
    pthread_mutex_lock(&m->lock);
    for (unsigned i = 0; i < m->count; i++)
        drop(m, &m->buffers[i]);
    m->count = 0;
    m->version++;
    pthread_mutex_unlock(&m->lock);
}

bw_card_access bw_card_memory_check(bw_card_memory *m, uint64_t address, uint64_t size)
{
    pthread_mutex_lock(&m->lock);
    int inside = size == 0 || holder(m, address, size);
    pthread_mutex_unlock(&m->lock);
    return inside ? BW_CARD_ACCESS_OK : BW_CARD_ACCESS_OUTSIDE;
}

bw_card_access bw_card_memory_read(bw_card_memory *m, uint64_t address, void *to, uint64_t size)
{
    bw_card_access result = BW_CARD_ACCESS_OK;
    pthread_mutex_lock(&m->lock);
    if (size && !holder(m, address, size))
        result = BW_CARD_ACCESS_OUTSIDE;
    for (unsigned i = 0; i < m->poison_count && !result; i++)
        if (m->poison[i] + 8 > address && m->poison[i] < address + size)
            result = BW_CARD_ACCESS_ECC;
    if (result != BW_CARD_ACCESS_OUTSIDE && size)
        memcpy(to, m->base + address, size);
    pthread_mutex_unlock(&m->lock);
    return result;
}

bw_card_access bw_card_memory_write(bw_card_memory *m, uint64_t address, const void *from, uint64_t size)
{
    bw_card_access result = BW_CARD_ACCESS_OK;
    pthread_mutex_lock(&m->lock);
    buffer *b = size ? holder(m, address, size) : NULL;
    if (size && !b)
        result = BW_CARD_ACCESS_OUTSIDE;
    if (b) {
        memcpy(m->base + address, from, size);
        b->version = ++m->version;
        unsigned kept = 0;
        for (unsigned i = 0; i < m->poison_count; i++)
            if (m->poison[i] < address || m->poison[i] + 8 > address + size)
                m->poison[kept++] = m->poison[i];
        m->poison_count = kept;
    }
    pthread_mutex_unlock(&m->lock);
    return result;
}

uint64_t bw_card_memory_version(bw_card_memory *m, uint64_t address, uint64_t size)
{
    pthread_mutex_lock(&m->lock);
    buffer *b = holder(m, address, size);
    uint64_t version = b ? b->version : ++m->version; /* outside: never the same twice */
    pthread_mutex_unlock(&m->lock);
    return version;
}

void bw_card_memory_spoil(bw_card_memory *m, uint64_t address, int ecc)
{
    pthread_mutex_lock(&m->lock);
    buffer *b = holder(m, address, 1);
    if (b) {
        m->base[address] ^= 1;
        b->version = ++m->version;
        if (ecc && m->poison_count < POISON_MAX)
            m->poison[m->poison_count++] = address & ~UINT64_C(7);
    }
    pthread_mutex_unlock(&m->lock);
}
