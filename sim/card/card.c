/* SPDX-License-Identifier: Apache-2.0 */
#include "sim/card/card.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "hal/base.h"
#include "sim/card/faults.h"

#define XML_MAX   ((size_t)1 << 20)
#define INBOX_MIN ((size_t)65536)
/* Requests come one after the other: the next is often here before a thread could sleep and wake up. */
#define SPIN_NS 50000u

struct bw_card {
    bw_card_options options;
    bw_card_memory *memory;
    bw_card_unit *unit;
    uint8_t *piece; /* for transfers to the host */
    size_t piece_room;
    uint32_t word; /* of a register, on its way */
    int offsets;   /* hw_emu: addresses of transfers are those of buffers, offsets come beside them */
};

bw_status bw_card_create(const bw_card_options *options, bw_card **card, bw_error *err)
{
    *card = NULL;
    bw_card *c = calloc(1, sizeof *c);
    if (!c)
        return bw_fail(err, BW_NO_MEMORY, "no memory for a card");
    c->options = *options;
    if (!c->options.memory_limit)
        c->options.memory_limit = BW_ACCEL_ADDR_LIMIT;
    *card = c;
    return BW_OK;
}

void bw_card_destroy(bw_card *c)
{
    if (!c)
        return;
    bw_card_unit_destroy(c->unit);
    bw_card_memory_destroy(c->memory);
    free(c->piece);
    free(c);
}

/* --- configuration -------------------------------------------------------------------------------------------------
 */

/* The build number in the XML of the xclbin; 0 if there is none, or no kernel of ours. */
static uint64_t build_of(const char *xml, size_t size)
{
    static const char kernel[] = "<kernel name=\"" BW_ACCEL_KERNEL "\"", build[] = "build=\"";
    const char *at = memmem(xml, size, kernel, sizeof kernel - 1);
    const char *close = at ? memchr(at, '>', size - (size_t)(at - xml)) : NULL;
    at = close ? memmem(at, (size_t)(close - at), build, sizeof build - 1) : NULL;
    char text[24] = "";
    for (size_t i = 0;
         at && i < sizeof text - 1 && at + sizeof build - 1 + i < close && at[sizeof build - 1 + i] != '"'; i++)
        text[i] = at[sizeof build - 1 + i];
    return strtoull(text, NULL, 0);
}

/* Memory and compute unit as wanted; nothing is configured yet. */
static int make(bw_card *c, uint64_t memory)
{
    bw_error err = {BW_OK, ""};
    if (c->memory && bw_card_memory_size(c->memory) != memory) {
        bw_card_unit_destroy(c->unit);
        bw_card_memory_destroy(c->memory);
        c->unit = NULL;
        c->memory = NULL;
    }
    bw_card_unit_options unit = {c->options.faults, c->options.index, c->options.inline_jobs};
    if ((!c->memory && bw_card_memory_create(memory, &c->memory, &err)) ||
        (!c->unit && bw_card_unit_create(c->memory, &unit, &c->unit, &err))) {
        bw_log(BW_LOG_ERROR, "card", "%s", err.message);
        return 0;
    }
    return 1;
}

static void configure(bw_card *c, uint64_t build)
{
    if (build && bw_card_fault(c->options.faults, c->options.index, "build", NULL))
        build ^= 0xbad;
    bw_card_unit_configure(c->unit, build);
    bw_log(BW_LOG_INFO, "card", "configured as build %016llx with %llu bytes of memory", (unsigned long long)build,
           (unsigned long long)bw_card_memory_size(c->memory));
}

/* An empty XML file's name is a host that only wants memory. */
static int load(bw_card *c, const bw_wire_message *m)
{
    uint64_t memory = 0;
    for (unsigned i = 0; i < m->bank_count; i++) {
        if (m->banks[i] > c->options.memory_limit - memory) {
            bw_log(BW_LOG_ERROR, "card", "memory banks of more than %llu bytes, expected less",
                   (unsigned long long)c->options.memory_limit);
            return 0;
        }
        memory += m->banks[i];
    }
    if (!make(c, memory))
        return 0;
    char path[4096];
    uint64_t build = c->options.build;
    if (!build && m->size[1] > 0 && m->size[1] < sizeof path) {
        memcpy(path, m->bytes[1], m->size[1]);
        path[m->size[1]] = 0;
        void *xml;
        size_t size;
        bw_error err = {BW_OK, ""};
        if (bw_file_read(path, XML_MAX, &xml, &size, &err)) {
            bw_log(BW_LOG_ERROR, "card", "%s", err.message);
            return 0;
        }
        build = build_of(xml, size);
        free(xml);
    }
    configure(c, build);
    return 1;
}

/* In hw_emu nobody says what to come up as: the simulator is the card of the xclbin. */
static int power_on(bw_card *c)
{
    const bw_accelerator *a = bw_accelerator_find(NULL);
    const uint64_t memory = a->bank_count * a->bank_bytes;
    if (c->unit || memory > c->options.memory_limit || !make(c, memory))
        return 0;
    configure(c, c->options.build ? c->options.build : bw_accelerator_build(a));
    c->offsets = 1;
    return 1;
}

/* --- requests ----------------------------------------------------------------------------------------------------- */

static int has(const bw_wire_message *m, unsigned a, unsigned b)
{
    return (m->seen >> a & 1) && (m->seen >> b & 1);
}

static void refused(const char *what, uint64_t address, uint64_t size, bw_card_access why)
{
    bw_log(BW_LOG_WARN, "card", "%s: %llu bytes at 0x%llx %s", what, (unsigned long long)size,
           (unsigned long long)address,
           why == BW_CARD_ACCESS_ECC ? "have an uncorrectable error" : "lie in no buffer of the host");
}

static void to_device(bw_card *c, const bw_wire_message *m, bw_wire_reply *reply)
{
    const uint64_t at = m->value[3] + (c->offsets ? m->value[6] : 0), size = m->size[4];
    bw_card_access why = c->memory ? BW_CARD_ACCESS_OK : BW_CARD_ACCESS_OUTSIDE;
    if (!why && !bw_card_fault(c->options.faults, c->options.index, "lost", NULL))
        why = bw_card_memory_write(c->memory, at, m->bytes[4], size);
    if (why)
        refused("transfer to the card", at, size, why);
    bw_wire_number(reply, 1, why ? 0 : size);
}

static bw_card_next from_device(bw_card *c, const bw_wire_message *m, bw_wire_reply *reply, bw_error *err)
{
    const uint64_t at = m->value[4] + (c->offsets ? m->value[6] : 0), size = m->value[5];
    if (size > BW_WIRE_BODY_MAX)
        return bw_fail(err, BW_CORRUPT, "a transfer of %llu bytes, expected at most %llu", (unsigned long long)size,
                       (unsigned long long)BW_WIRE_BODY_MAX),
               BW_CARD_BROKEN;
    if (size > c->piece_room) {
        free(c->piece);
        c->piece = malloc(size);
        c->piece_room = c->piece ? size : 0;
    }
    bw_card_access why = c->memory && c->piece_room >= size ? bw_card_memory_read(c->memory, at, c->piece, size)
                                                            : BW_CARD_ACCESS_OUTSIDE;
    if (why) {
        refused("transfer from the card", at, size, why);
    } else if (size && bw_card_fault(c->options.faults, c->options.index, "zeros", NULL)) {
        memset(c->piece, 0, size);
    }
    bw_wire_number(reply, 1, why ? 0 : size);
    bw_wire_bytes(reply, 2, c->piece, why ? 0 : size);
    return BW_CARD_GO_ON;
}

/* The control word comes last: it starts what the others describe. */
static void write_registers(bw_card *c, uint64_t address, const uint8_t *bytes, size_t size)
{
    uint32_t control = 0;
    int has_control = 0;
    for (size_t i = 0; i + 4 <= size; i += 4) {
        uint64_t offset = address + i - BW_ACCEL_BASE;
        uint32_t value;
        memcpy(&value, bytes + i, 4);
        if (address + i < BW_ACCEL_BASE || offset >= BW_ACCEL_RANGE || offset % 4 || !c->unit) {
            bw_log(BW_LOG_WARN, "card", "write to 0x%llx, where no register is", (unsigned long long)(address + i));
        } else if (offset == BW_ACCEL_CTRL) {
            control = value;
            has_control = 1;
        } else {
            bw_card_unit_write(c->unit, (uint32_t)offset, value);
        }
    }
    if (has_control)
        bw_card_unit_write(c->unit, BW_ACCEL_CTRL, control);
}

static void read_registers(bw_card *c, uint64_t address, uint64_t size, bw_wire_reply *reply)
{
    static const uint32_t nothing = 0xffffffff; /* as a bus gives it */
    uint64_t offset = address - BW_ACCEL_BASE;
    int there = address >= BW_ACCEL_BASE && offset < BW_ACCEL_RANGE && offset % 4 == 0 && c->unit;
    c->word = there && size <= 4 ? bw_card_unit_read(c->unit, (uint32_t)offset) : nothing;
    bw_wire_number(reply, 1, 1);
    bw_wire_bytes(reply, 2, &c->word, 4);
}

bw_card_next bw_card_request(bw_card *c, uint32_t call, const void *body, size_t size, bw_wire_reply *reply,
                             bw_error *err)
{
    bw_wire_message m;
    bw_card_next next = BW_CARD_GO_ON;
    bw_wire_begin(reply);
    if (bw_wire_parse(body, size, &m))
        return bw_fail(err, BW_CORRUPT, "request %u: its body of %zu bytes is malformed", call, size), BW_CARD_BROKEN;
    int ok = 1;
    switch (call) {
    case BW_WIRE_CLOSE:
        if (c->unit)
            bw_card_unit_configure(c->unit, 0);
        if (m.value[3] || c->offsets) /* hw_emu starts another for the next configuration */
            next = BW_CARD_END;
        bw_wire_number(reply, 1, 1);
        break;
    case BW_WIRE_LOAD:
        bw_wire_number(reply, 1, (uint64_t)load(c, &m));
        break;
    case BW_WIRE_ENVIRONMENT:
        power_on(c);
        bw_wire_number(reply, 1, 1);
        break;
    case BW_WIRE_ALLOC: {
        int fits = c->memory && has(&m, 1, 2) && bw_card_memory_alloc(c->memory, m.value[1], m.value[2]) == 0;
        if (!fits)
            bw_log(BW_LOG_WARN, "card", "no buffer of %llu bytes at 0x%llx", (unsigned long long)m.value[2],
                   (unsigned long long)m.value[1]);
        bw_wire_number(reply, 1, (uint64_t)fits);
        break;
    }
    case BW_WIRE_FREE:
        bw_wire_number(reply, 1, c->memory && bw_card_memory_free(c->memory, m.value[1]) == 0);
        break;
    case BW_WIRE_TO_DEVICE:
        ok = has(&m, 3, 4) && m.value[5] == m.size[4];
        if (ok)
            to_device(c, &m, reply);
        break;
    case BW_WIRE_FROM_DEVICE:
        ok = has(&m, 4, 5);
        if (ok)
            next = from_device(c, &m, reply, err);
        break;
    case BW_WIRE_WRITE_CTRL:
        ok = has(&m, 2, 4) && m.size[4] <= BW_ACCEL_RANGE;
        if (ok)
            write_registers(c, m.value[2], m.bytes[4], m.size[4]);
        bw_wire_number(reply, 1, 1);
        break;
    case BW_WIRE_REG_WRITE:
        ok = has(&m, 2, 3) && m.size[3] == 4;
        if (ok)
            write_registers(c, m.value[1] + m.value[2], m.bytes[3], 4);
        bw_wire_number(reply, 1, 1);
        break;
    case BW_WIRE_READ_CTRL:
        read_registers(c, m.value[2], m.value[3], reply);
        break;
    case BW_WIRE_REG_READ:
        read_registers(c, m.value[1] + m.value[2], m.value[3], reply);
        break;
    default:
        /* Counters, messages for the console, streams: nothing to say, and an acknowledgement is always right. */
        bw_wire_number(reply, 1, 1);
    }
    if (!ok)
        return bw_fail(err, BW_CORRUPT, "request %u: fields are missing or contradict each other", call),
               BW_CARD_BROKEN;
    bw_wire_finish(reply);
    return next;
}

/* --- connection ----------------------------------------------------------------------------------------------------
 */

/* What has been received and not used yet. */
typedef struct inbox {
    uint8_t *bytes;
    size_t have, room;
} inbox;

/* Until `size` bytes are there. 1; 0: the other side is gone; -1: errno. */
static int receive(int fd, inbox *in, size_t size)
{
    if (size > in->room) {
        const size_t room = size < INBOX_MIN ? INBOX_MIN : size;
        uint8_t *grown = realloc(in->bytes, room);
        if (!grown) {
            errno = ENOMEM;
            return -1;
        }
        in->bytes = grown;
        in->room = room;
    }
    for (const uint64_t end = bw_now_ns() + SPIN_NS; in->have < size && bw_now_ns() < end;) {
        ssize_t n = recv(fd, in->bytes + in->have, in->room - in->have, MSG_DONTWAIT);
        if (n == 0)
            return 0;
        if (n > 0)
            in->have += (size_t)n;
    }
    while (in->have < size) {
        ssize_t n = read(fd, in->bytes + in->have, in->room - in->have);
        if (n == 0)
            return 0;
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno == ECONNRESET ? 0 : -1;
        in->have += (size_t)n;
    }
    return 1;
}

static int transmit(int fd, const bw_wire_reply *reply)
{
    struct iovec parts[2] = {{(void *)reply->head, reply->head_size}, {(void *)reply->data, reply->data_size}};
    int first = 0;
    while (first < 2) {
        ssize_t n = writev(fd, parts + first, 2 - first);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno == EPIPE || errno == ECONNRESET ? 0 : -1;
        for (; first < 2 && (size_t)n >= parts[first].iov_len; first++)
            n -= (ssize_t)parts[first].iov_len;
        if (first < 2) {
            parts[first].iov_base = (uint8_t *)parts[first].iov_base + n;
            parts[first].iov_len -= (size_t)n;
        }
    }
    return 1;
}

bw_status bw_card_serve(bw_card *c, int fd, bw_error *err)
{
    inbox in = {NULL, 0, 0};
    bw_status status = BW_OK;
    bw_card_next next = BW_CARD_GO_ON;
    while (!status && next == BW_CARD_GO_ON) {
        uint32_t call = 0;
        uint64_t size = 0;
        int there = receive(fd, &in, BW_WIRE_REQUEST_HEAD);
        if (there > 0 && bw_wire_request_head(in.bytes, &call, &size)) {
            status =
                bw_fail(err, BW_CORRUPT, "the host sent no request of XRT's emulation (first byte %02x)", in.bytes[0]);
            break;
        }
        if (there > 0)
            there = receive(fd, &in, BW_WIRE_REQUEST_HEAD + size);
        if (there == 0)
            break;
        if (there > 0 && bw_card_fault(c->options.faults, c->options.index, "stall", NULL))
            for (;;)
                pause();
        if (there > 0) {
            bw_wire_reply reply;
            next = bw_card_request(c, call, in.bytes + BW_WIRE_REQUEST_HEAD, size, &reply, err);
            if (next == BW_CARD_BROKEN)
                status = BW_CORRUPT;
            else
                there = transmit(fd, &reply);
            if (c->unit && there > 0)
                bw_card_unit_work(c->unit);
            in.have -= BW_WIRE_REQUEST_HEAD + size;
            memmove(in.bytes, in.bytes + BW_WIRE_REQUEST_HEAD + size, in.have);
        }
        if (there == 0)
            break;
        if (there < 0)
            status = bw_fail(err, BW_IO, "connection to the host: %s", strerror(errno));
    }
    free(in.bytes);
    return status;
}
