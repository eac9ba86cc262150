/* SPDX-License-Identifier: Apache-2.0 */
/* Protocol buffers over scattered bytes: see service/wire.h. */
#include "service/wire.h"

#include <stdlib.h>
#include <string.h>

/* --- reading ---------------------------------------------------------------------------------------------------- */

bw_cursor bw_cursor_over(const bw_slice *slices, size_t count)
{
    bw_cursor c = {slices, 0, 0};
    for (size_t i = 0; i < count; i++)
        c.left += slices[i].size;
    return c;
}

/* Moves from the end of a slice (and over empty ones) to the next byte there is. */
static void settle(bw_cursor *c)
{
    while (c->left && c->at == c->slice->size) {
        c->slice++;
        c->at = 0;
    }
}

void bw_cursor_skip(bw_cursor *c, size_t n)
{
    while (n) {
        settle(c);
        size_t here = c->slice->size - c->at;
        if (here > n)
            here = n;
        c->at += here;
        c->left -= here;
        n -= here;
    }
}

void bw_cursor_copy(bw_cursor *c, void *to, size_t n)
{
    uint8_t *out = to;
    while (n) {
        settle(c);
        size_t here = c->slice->size - c->at;
        if (here > n)
            here = n;
        memcpy(out, (const uint8_t *)c->slice->bytes + c->at, here);
        out += here;
        c->at += here;
        c->left -= here;
        n -= here;
    }
}

const void *bw_cursor_flat(const bw_cursor *c)
{
    bw_cursor copy = *c;
    if (!copy.left)
        return "";
    settle(&copy);
    return copy.slice->size - copy.at >= copy.left ? (const uint8_t *)copy.slice->bytes + copy.at : NULL;
}

static int read_varint(bw_cursor *c, uint64_t *value)
{
    *value = 0;
    for (unsigned shift = 0; shift < 70; shift += 7) {
        if (!c->left)
            return -1;
        settle(c);
        uint8_t byte = ((const uint8_t *)c->slice->bytes)[c->at];
        c->at++;
        c->left--;
        if (shift < 64)
            *value |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80))
            return 0;
    }
    return -1;
}

int bw_wire_next(bw_cursor *c, bw_wire_field *field)
{
    if (!c->left)
        return 0;
    bw_cursor start = *c;
    uint64_t tag, size;
    if (read_varint(c, &tag) || tag >> 32 || !(tag >> 3))
        return -1;
    field->number = (uint32_t)(tag >> 3);
    field->value = 0;
    switch (tag & 7) {
    case BW_WIRE_VARINT:
        field->body = *c;
        if (read_varint(c, &field->value))
            return -1;
        field->body.left -= c->left;
        break;
    case BW_WIRE_64:
    case BW_WIRE_32:
    case BW_WIRE_BYTES:
        size = (tag & 7) == BW_WIRE_64 ? 8 : 4;
        if ((tag & 7) == BW_WIRE_BYTES && read_varint(c, &size))
            return -1;
        if (size > c->left)
            return -1;
        field->body = *c;
        field->body.left = (size_t)size;
        bw_cursor_skip(c, (size_t)size);
        break;
    default: /* groups are not used by any protocol here */
        return -1;
    }
    field->type = (bw_wire_type)(tag & 7);
    field->whole = start;
    field->whole.left = start.left - c->left;
    return 1;
}

/* --- growing bytes ---------------------------------------------------------------------------------------------- */

static uint8_t *buffer_room(bw_bytes *b, size_t size)
{
    if (b->failed)
        return NULL;
    if (b->capacity - b->size < size) {
        size_t wanted = b->capacity ? b->capacity * 2 : 256;
        while (wanted - b->size < size)
            wanted *= 2;
        uint8_t *bytes = realloc(b->bytes, wanted);
        if (!bytes) {
            b->failed = 1;
            return NULL;
        }
        b->bytes = bytes;
        b->capacity = wanted;
    }
    uint8_t *room = b->bytes + b->size;
    b->size += size;
    return room;
}

void bw_bytes_append(bw_bytes *b, const void *bytes, size_t size)
{
    uint8_t *room = size ? buffer_room(b, size) : NULL;
    if (room)
        memcpy(room, bytes, size);
}

void bw_bytes_append_cursor(bw_bytes *b, bw_cursor c)
{
    uint8_t *room = c.left ? buffer_room(b, c.left) : NULL;
    if (room)
        bw_cursor_copy(&c, room, c.left);
}

void bw_bytes_free(bw_bytes *b)
{
    free(b->bytes);
    memset(b, 0, sizeof *b);
}

/* --- protobuf-c with a bound ------------------------------------------------------------------------------------ */

typedef struct bounded {
    size_t left;
    bw_arena *arena; /* NULL: none */
} bounded;

static void *bounded_alloc(void *data, size_t size)
{
    bounded *b = data;
    /* malloc's own overhead counts too: many tiny pieces are the attack. */
    size_t cost = size + 16;
    if (cost < size || cost > b->left)
        return NULL;
    b->left -= cost;
    bw_arena *a = b->arena;
    size_t aligned = (size + 15) / 16 * 16;
    if (!a || a->size - a->used < aligned)
        return malloc(size ? size : 1);
    void *memory = a->bytes + a->used;
    a->used += aligned;
    return memory;
}

static void bounded_free(void *data, void *pointer)
{
    const bounded *b = data;
    uintptr_t at = (uintptr_t)pointer, begin = b->arena ? (uintptr_t)b->arena->bytes : 0;
    if (!b->arena || at < begin || at >= begin + b->arena->size)
        free(pointer);
}

static ProtobufCMessage *unpack(const ProtobufCMessageDescriptor *type, const void *bytes, size_t size, bw_arena *arena)
{
    bounded b = {65536 + (size > SIZE_MAX / 32 ? SIZE_MAX / 2 : size * 16), arena};
    ProtobufCAllocator allocator = {bounded_alloc, bounded_free, &b};
    return protobuf_c_message_unpack(type, &allocator, size, bytes);
}

ProtobufCMessage *bw_wire_unpack(const ProtobufCMessageDescriptor *type, const void *bytes, size_t size)
{
    return unpack(type, bytes, size, NULL);
}

ProtobufCMessage *bw_wire_unpack_in(const ProtobufCMessageDescriptor *type, bw_cursor c, bw_arena *arena)
{
    const void *flat = bw_cursor_flat(&c);
    if (flat)
        return unpack(type, flat, c.left, arena);
    bw_bytes b = {0};
    bw_bytes_append_cursor(&b, c);
    ProtobufCMessage *message = b.failed ? NULL : unpack(type, b.bytes, b.size, arena);
    bw_bytes_free(&b);
    return message;
}

ProtobufCMessage *bw_wire_unpack_cursor(const ProtobufCMessageDescriptor *type, bw_cursor c)
{
    return bw_wire_unpack_in(type, c, NULL);
}

void bw_wire_unpack_free_in(ProtobufCMessage *message, bw_arena *arena)
{
    bounded b = {0, arena};
    ProtobufCAllocator allocator = {bounded_alloc, bounded_free, &b};
    if (message)
        protobuf_c_message_free_unpacked(message, &allocator);
}

void bw_wire_unpack_free(ProtobufCMessage *message)
{
    bw_wire_unpack_free_in(message, NULL);
}

/* --- writing ---------------------------------------------------------------------------------------------------- */

/* Below this a copy is cheaper than the bookkeeping of a borrowed piece. */
#define COPY_LIMIT 1024

size_t bw_varint_size(uint64_t value)
{
    size_t n = 1;
    while (value >>= 7)
        n++;
    return n;
}

size_t bw_field_size(uint32_t number, size_t size)
{
    return bw_varint_size((uint64_t)number << 3) + bw_varint_size(size) + size;
}

void bw_writer_init(bw_writer *w)
{
    w->small = (bw_bytes){0};
    w->count = 0;
    w->failed = 0;
}

/* Room for `size` small bytes, joined with the part before if that is small too. */
static uint8_t *writer_room(bw_writer *w, size_t size)
{
    size_t at = w->small.size;
    uint8_t *room = w->failed ? NULL : buffer_room(&w->small, size);
    if (!room) {
        w->failed = 1;
        return NULL;
    }
    if (w->count && !w->parts[w->count - 1].bytes) {
        w->parts[w->count - 1].size += size;
    } else if (w->count == BW_WRITER_PARTS) {
        w->failed = 1;
        return NULL;
    } else {
        w->parts[w->count].bytes = NULL;
        w->parts[w->count].at = at;
        w->parts[w->count].size = size;
        w->parts[w->count].release = NULL;
        w->count++;
    }
    return room;
}

void bw_writer_bytes(bw_writer *w, const void *bytes, size_t size)
{
    uint8_t *room = size ? writer_room(w, size) : NULL;
    if (room)
        memcpy(room, bytes, size);
}

void bw_writer_varint(bw_writer *w, uint64_t value)
{
    uint8_t bytes[10];
    size_t n = 0;
    do {
        bytes[n++] = (uint8_t)((value & 0x7f) | (value > 0x7f ? 0x80 : 0));
        value >>= 7;
    } while (value);
    bw_writer_bytes(w, bytes, n);
}

void bw_writer_tag(bw_writer *w, uint32_t number, bw_wire_type type)
{
    bw_writer_varint(w, (uint64_t)number << 3 | type);
}

void bw_writer_head(bw_writer *w, uint32_t number, size_t size)
{
    bw_writer_tag(w, number, BW_WIRE_BYTES);
    bw_writer_varint(w, size);
}

void bw_writer_field(bw_writer *w, uint32_t number, const void *bytes, size_t size)
{
    bw_writer_head(w, number, size);
    bw_writer_bytes(w, bytes, size);
}

void bw_writer_message(bw_writer *w, const ProtobufCMessage *message)
{
    size_t size = protobuf_c_message_get_packed_size(message);
    uint8_t *room = size ? writer_room(w, size) : NULL;
    if (room)
        protobuf_c_message_pack(message, room);
}

void bw_writer_borrow(bw_writer *w, const void *bytes, size_t size, void (*release)(void *user), void *user)
{
    if (w->failed || size < COPY_LIMIT || w->count == BW_WRITER_PARTS) {
        if (size >= COPY_LIMIT)
            w->failed = 1;
        bw_writer_bytes(w, bytes, size);
        if (release)
            release(user);
        return;
    }
    w->parts[w->count].bytes = bytes;
    w->parts[w->count].at = 0;
    w->parts[w->count].size = size;
    w->parts[w->count].release = release;
    w->parts[w->count].user = user;
    w->count++;
}

const bw_chunk *bw_writer_finish(bw_writer *w, size_t *count)
{
    for (size_t i = 0; i < w->count; i++) {
        if (w->failed) {
            if (w->parts[i].release)
                w->parts[i].release(w->parts[i].user);
            continue;
        }
        const void *bytes = w->parts[i].bytes ? w->parts[i].bytes : w->small.bytes + w->parts[i].at;
        w->chunks[i] = (bw_chunk){bytes, w->parts[i].size, w->parts[i].release, w->parts[i].user};
    }
    *count = w->failed ? 0 : w->count;
    w->count = 0;
    return w->failed ? NULL : w->chunks;
}

void bw_writer_free(bw_writer *w)
{
    bw_bytes_free(&w->small);
}
