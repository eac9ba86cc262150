/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Protocol buffers over scattered bytes: enough to find the large fields of a request where they lie and to hand
 * protobuf-c the small rest, and to write a reply whose large fields are borrowed.
 *
 *     bw_cursor c = bw_cursor_over(call->message, call->message_slices);
 *     bw_wire_field f;
 *     int more;
 *     while ((more = bw_wire_next(&c, &f)) > 0)
 *         if (f.number == 7 && f.type == BW_WIRE_BYTES) use(f.body);
 *     if (more < 0) malformed;
 *
 * Thread safety: pure functions over the caller's objects.
 */
#ifndef BW_SERVICE_WIRE_H
#define BW_SERVICE_WIRE_H

#include <protobuf-c/protobuf-c.h>
#include <stddef.h>
#include <stdint.h>

#include "hal/base.h"
#include "service/transport.h"

/* A range of a scattered message: it begins in *slice at `at` and has `left` bytes. Copying it is free. */
typedef struct bw_cursor {
    const bw_slice *slice;
    size_t at;
    size_t left;
} bw_cursor;

bw_cursor bw_cursor_over(const bw_slice *slices, size_t count);
/* Steps over n <= left bytes. */
void bw_cursor_skip(bw_cursor *c, size_t n);
/* Copies n <= left bytes to `to` and steps over them. */
void bw_cursor_copy(bw_cursor *c, void *to, size_t n);
/* The range's bytes if they lie in one piece, else NULL. Non-NULL for an empty range. */
const void *bw_cursor_flat(const bw_cursor *c);

typedef enum bw_wire_type { BW_WIRE_VARINT = 0, BW_WIRE_64 = 1, BW_WIRE_BYTES = 2, BW_WIRE_32 = 5 } bw_wire_type;

typedef struct bw_wire_field {
    uint32_t number;
    bw_wire_type type;
    uint64_t value;  /* BW_WIRE_VARINT */
    bw_cursor whole; /* tag and all */
    bw_cursor body;  /* without tag and length */
} bw_wire_field;

/* Reads the next field and steps over it: 1, 0 at the end, -1 malformed. */
int bw_wire_next(bw_cursor *c, bw_wire_field *field);

/* Growing bytes. After a failed allocation `failed` is set and appending does nothing. */
typedef struct bw_bytes {
    uint8_t *bytes;
    size_t size, capacity;
    int failed;
} bw_bytes;

void bw_bytes_append(bw_bytes *b, const void *bytes, size_t size);
void bw_bytes_append_cursor(bw_bytes *b, bw_cursor c);
void bw_bytes_free(bw_bytes *b);

/* Memory that is handed out once and never given back: small messages need no other. */
typedef struct bw_arena {
    uint8_t *bytes;
    size_t size, used;
} bw_arena;

/* Unpacks with a bound on memory of 16 times the input and some more, as a hostile message can ask for much more than
 * it sends. NULL: malformed, or out of bounds. Free with bw_wire_unpack_free. */
ProtobufCMessage *bw_wire_unpack(const ProtobufCMessageDescriptor *type, const void *bytes, size_t size);
/* The same from a scattered range. */
ProtobufCMessage *bw_wire_unpack_cursor(const ProtobufCMessageDescriptor *type, bw_cursor c);
void bw_wire_unpack_free(ProtobufCMessage *message);
/* The same with memory from the arena (16-byte aligned) while there is some. Freed with the arena at hand. */
ProtobufCMessage *bw_wire_unpack_in(const ProtobufCMessageDescriptor *type, bw_cursor c, bw_arena *arena);
void bw_wire_unpack_free_in(ProtobufCMessage *message, bw_arena *arena);

/*
 * A reply under construction: small parts are collected, large ones borrowed. The chunks borrow the writer's own
 * bytes too: send them, then bw_writer_free (small parts are copied by the transport, see bw_chunk).
 */
#define BW_WRITER_PARTS 512
typedef struct bw_writer {
    bw_bytes small;
    struct {
        const void *bytes; /* NULL: `size` bytes of small, at `at` */
        size_t at, size;
        void (*release)(void *user);
        void *user;
    } parts[BW_WRITER_PARTS];
    size_t count;
    bw_chunk chunks[BW_WRITER_PARTS];
    int failed;
} bw_writer;

/* Instead of zeroing it whole: it is large. */
void bw_writer_init(bw_writer *w);
void bw_writer_bytes(bw_writer *w, const void *bytes, size_t size);
void bw_writer_tag(bw_writer *w, uint32_t number, bw_wire_type type);
void bw_writer_varint(bw_writer *w, uint64_t value);
/* Tag, length and bytes of a BW_WIRE_BYTES field. */
void bw_writer_field(bw_writer *w, uint32_t number, const void *bytes, size_t size);
/* Tag and length only: `size` bytes must follow. */
void bw_writer_head(bw_writer *w, uint32_t number, size_t size);
void bw_writer_message(bw_writer *w, const ProtobufCMessage *message);
/* Borrows; `release` is called in any case, at once on failure. Small ones are copied. */
void bw_writer_borrow(bw_writer *w, const void *bytes, size_t size, void (*release)(void *user), void *user);
/* The finished chunks; NULL when something failed (everything borrowed has been released). */
const bw_chunk *bw_writer_finish(bw_writer *w, size_t *count);
void bw_writer_free(bw_writer *w);

size_t bw_varint_size(uint64_t value);
/* Size of a BW_WIRE_BYTES field with its tag and length. */
size_t bw_field_size(uint32_t number, size_t size);

#endif
