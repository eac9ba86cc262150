/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The messages between XRT's emulation shim and the process that plays the card, over one stream socket.
 *
 * A request is 14 bytes (09, u64 size of the body, 15, u32 number of the call) and a body, a reply 9 bytes (09, u64
 * size) and a body. Bodies are protobuf 2 messages. This codec knows what of protobuf occurs in them: fields 1 to 15,
 * varints, 32 and 64 bit, bytes, and one repeated message {7: varint} as field 8. It copies nothing: bytes point into
 * the input. Numbers are those of XRT 2.13's rpc_messages.proto and xcl_api_macros.h.
 *
 * Thread safety: pure.
 */
#ifndef BW_SIM_CARD_WIRE_H
#define BW_SIM_CARD_WIRE_H

#include <stddef.h>
#include <stdint.h>

#define BW_WIRE_REQUEST_HEAD 14u
#define BW_WIRE_REPLY_HEAD   9u
#define BW_WIRE_BODY_MAX     (UINT64_C(32) << 20) /* XRT moves buffers in pieces of 8 MiB */
#define BW_WIRE_FIELDS       16u
#define BW_WIRE_BANKS        16u

enum {
    BW_WIRE_CLOSE = 1,        /* 3: bool, the last; without it: what is configured ends */
    BW_WIRE_LOAD = 3,         /* 1: XML file, 8: {7: bytes of a memory bank}... */
    BW_WIRE_ALLOC = 4,        /* 1: address, 2: bytes */
    BW_WIRE_FREE = 5,         /* 1: address */
    BW_WIRE_TO_DEVICE = 6,    /* 3: address, 4: bytes, 5: their count */
    BW_WIRE_FROM_DEVICE = 7,  /* 4: address, 5: count; reply 1: count, 2: bytes */
    BW_WIRE_WRITE_CTRL = 9,   /* 2: address, 3: count, 4: bytes */
    BW_WIRE_READ_CTRL = 11,   /* 2: address, 3: count; reply 1: ok, 2: bytes */
    BW_WIRE_ENVIRONMENT = 20, /* hw_emu, the first */
    BW_WIRE_SETUP = 28,       /* streams: none here */
    BW_WIRE_REG_WRITE = 51,   /* 1: base, 2: offset, 3: four bytes */
    BW_WIRE_REG_READ = 52,    /* 1: base, 2: offset, 3: count; reply as READ_CTRL */
};

typedef struct bw_wire_message {
    uint32_t seen; /* bit f: field f occurs; the last one counts */
    uint64_t value[BW_WIRE_FIELDS];
    const uint8_t *bytes[BW_WIRE_FIELDS];
    size_t size[BW_WIRE_FIELDS];
    unsigned bank_count;
    uint64_t banks[BW_WIRE_BANKS];
} bw_wire_message;

/* 0; -1: not such a header, or a body beyond BW_WIRE_BODY_MAX. */
int bw_wire_request_head(const uint8_t head[BW_WIRE_REQUEST_HEAD], uint32_t *call, uint64_t *size);
/* 0; -1: not a protobuf message, or with what does not occur in one of XRT's. */
int bw_wire_parse(const uint8_t *body, size_t size, bw_wire_message *message);

/* A reply: `head` and then, if there are any, `data_size` bytes at `data` that are not copied. */
typedef struct bw_wire_reply {
    uint8_t head[64];
    size_t head_size;
    const void *data;
    size_t data_size;
} bw_wire_reply;

/* Starts with the body; bw_wire_finish puts the header in front. At most three numbers fit. */
void bw_wire_begin(bw_wire_reply *reply);
void bw_wire_number(bw_wire_reply *reply, unsigned field, uint64_t value);
/* The last field of a reply: `data` is borrowed until it has been sent. */
void bw_wire_bytes(bw_wire_reply *reply, unsigned field, const void *data, size_t size);
void bw_wire_finish(bw_wire_reply *reply);

#endif
