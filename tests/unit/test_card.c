/* SPDX-License-Identifier: Apache-2.0 */
/* The emulated card from the host's side of its socket, without XRT: wire, memory, registers, jobs, faults. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "hal/base.h"
#include "sim/card/card.h"
#include "sim/sim.h"
#include "tests/support/card_host.h"
#include "tests/support/random_program.h"

#define BANK (UINT64_C(64) << 20)

static char folder[64], xml_path[96], faults[96];
static bw_card *card;
static bw_error err;

/* --- talking to it ------------------------------------------------------------------------------------------------ */

static bw_wire_message answer; /* views `body` */
static uint8_t body[1 << 20];

static bw_card_next ask(uint32_t call, card_body request)
{
    bw_wire_reply reply;
    bw_card_next next = bw_card_request(card, call, request.bytes, request.size, &reply, &err);
    free(request.bytes);
    if (next == BW_CARD_BROKEN)
        return next;
    uint64_t size;
    assert_int_equal(reply.head[0], 9);
    memcpy(&size, reply.head + 1, 8);
    assert_true(size == reply.head_size - BW_WIRE_REPLY_HEAD + reply.data_size && size <= sizeof body);
    memcpy(body, reply.head + BW_WIRE_REPLY_HEAD, reply.head_size - BW_WIRE_REPLY_HEAD);
    if (reply.data_size)
        memcpy(body + reply.head_size - BW_WIRE_REPLY_HEAD, reply.data, reply.data_size);
    assert_int_equal(bw_wire_parse(body, size, &answer), 0);
    return next;
}

static uint32_t read_register(uint32_t offset)
{
    uint32_t value;
    assert_int_equal(ask(BW_WIRE_READ_CTRL, card_read_ctrl(BW_ACCEL_BASE + offset)), BW_CARD_GO_ON);
    assert_int_equal(answer.value[1], 1);
    assert_int_equal(answer.size[2], 4);
    memcpy(&value, answer.bytes[2], 4);
    return value;
}

static void write_register(uint32_t offset, uint32_t value)
{
    assert_int_equal(ask(BW_WIRE_WRITE_CTRL, card_write_ctrl(BW_ACCEL_BASE + offset, &value, 4)), BW_CARD_GO_ON);
}

static uint64_t send_bytes(uint64_t address, const void *bytes, size_t size)
{
    assert_int_equal(ask(BW_WIRE_TO_DEVICE, card_to_device(address, bytes, size)), BW_CARD_GO_ON);
    return answer.value[1];
}

static uint64_t fetch_bytes(uint64_t address, void *to, size_t size)
{
    assert_int_equal(ask(BW_WIRE_FROM_DEVICE, card_from_device(address, size)), BW_CARD_GO_ON);
    assert_int_equal(answer.size[2], answer.value[1]);
    memcpy(to, answer.bytes[2], answer.size[2]);
    return answer.value[1];
}

static int alloc(uint64_t address, uint64_t size)
{
    assert_int_equal(ask(BW_WIRE_ALLOC, card_alloc(address, size)), BW_CARD_GO_ON);
    return answer.value[1] == 1;
}

static void start_card(int inline_jobs, const char *fault_dir)
{
    bw_card_options options = {.faults = fault_dir, .inline_jobs = inline_jobs, .memory_limit = 4 * BANK};
    assert_int_equal(bw_card_create(&options, &card, &err), BW_OK);
    ask(BW_WIRE_CLOSE, card_close(0));
    ask(BW_WIRE_SETUP, (card_body){0});
    ask(BW_WIRE_LOAD, card_load(xml_path, 4, BANK));
    assert_int_equal(answer.value[1], 1);
}

static void end_card(void)
{
    assert_int_equal(ask(BW_WIRE_CLOSE, card_close(1)), BW_CARD_END);
    bw_card_destroy(card);
    card = NULL;
}

/* --- jobs --------------------------------------------------------------------------------------------------------- */

enum { AT_STATUS = 0, AT_IN = 1 << 20, AT_OUT = 2 << 20, AT_PROGRAM = 4 << 20, AT_CONST = 8 << 20, AT_ACT = 16 << 20 };

typedef struct setup {
    struct bw_random_case c;
    bw_program program;
    char *expected;
    uint32_t sequence;
} setup;

static void prepare(setup *s, uint64_t seed)
{
    memset(s, 0, sizeof *s);
    assert_int_equal(bw_random_case_make(seed, NULL, &s->c), 0);
    assert_int_equal(bw_program_parse(s->c.program, s->c.program_size, &s->program, &err), BW_OK);
    s->expected = malloc(s->c.batch * s->c.out_bytes);
    assert_int_equal(bw_reference_run(&s->program, s->c.constants, s->c.in, s->expected, s->c.batch, &err), BW_OK);
    assert_true(alloc(AT_STATUS, 4096) && alloc(AT_IN, 1 << 20) && alloc(AT_OUT, 1 << 20) &&
                alloc(AT_PROGRAM, 1 << 20) && alloc(AT_CONST, 4 << 20) && alloc(AT_ACT, 4 << 20));
    assert_int_equal(send_bytes(AT_PROGRAM, s->c.program, s->c.program_size), s->c.program_size);
    if (s->c.constants_size)
        assert_int_equal(send_bytes(AT_CONST, s->c.constants, s->c.constants_size), s->c.constants_size);
    assert_int_equal(send_bytes(AT_IN, s->c.in, s->c.batch * s->c.in_bytes), s->c.batch * s->c.in_bytes);
}

static void let_go(setup *s)
{
    bw_random_case_free(&s->c);
    free(s->expected);
}

/* The register map as XRT writes it: all of it without START, then again with it. */
static void start_job(setup *s, bw_accel_command command)
{
    uint32_t map[BW_ACCEL_ARGS_END / 4] = {0};
    const uint64_t values[BW_ACCEL_ARG_COUNT] = {
        AT_PROGRAM,          AT_CONST,   AT_ACT,  AT_IN,        AT_OUT, AT_STATUS, s->c.program_size,
        s->c.constants_size, s->c.batch, command, ++s->sequence};
#define X(number, upper, name, bytes, offset, address) memcpy((uint8_t *)map + (offset), &values[number], bytes);
    BW_ACCEL_ARGS(X)
#undef X
    ask(BW_WIRE_WRITE_CTRL, card_write_ctrl(BW_ACCEL_BASE, map, sizeof map));
    assert_int_equal(read_register(BW_ACCEL_CTRL) & BW_ACCEL_CTRL_START, 0);
    map[0] = BW_ACCEL_CTRL_START;
    ask(BW_WIRE_WRITE_CTRL, card_write_ctrl(BW_ACCEL_BASE, map, sizeof map));
}

static bw_accel_status finish_job(void)
{
    bw_accel_status status;
    uint32_t control = 0;
    for (int i = 0; i < 20000 && !(control & BW_ACCEL_CTRL_DONE); i++) {
        control = read_register(BW_ACCEL_CTRL);
        assert_true(control == BW_ACCEL_CTRL_START || (control & BW_ACCEL_CTRL_IDLE));
    }
    assert_true(control & BW_ACCEL_CTRL_DONE);
    assert_int_equal(read_register(BW_ACCEL_CTRL), BW_ACCEL_CTRL_IDLE); /* DONE clears on read */
    assert_int_equal(fetch_bytes(AT_STATUS, &status, sizeof status), sizeof status);
    assert_int_equal(status.magic, BW_ACCEL_STATUS_MAGIC);
    return status;
}

static bw_accel_status do_job(setup *s, bw_accel_command command)
{
    start_job(s, command);
    bw_accel_status status = finish_job();
    assert_int_equal(status.sequence, s->sequence);
    return status;
}

static void check_output(setup *s)
{
    const size_t size = s->c.batch * s->c.out_bytes;
    char *out = malloc(size);
    assert_int_equal(fetch_bytes(AT_OUT, out, size), size);
    assert_memory_equal(out, s->expected, size);
    free(out);
}

/* --- wire --------------------------------------------------------------------------------------------------------- */

static void heads(void **state)
{
    (void)state;
    uint8_t head[BW_WIRE_REQUEST_HEAD] = {9, 1, 2, 0, 0, 0, 0, 0, 0, 0x15, 11, 0, 0, 0};
    uint32_t call;
    uint64_t size;
    assert_int_equal(bw_wire_request_head(head, &call, &size), 0);
    assert_int_equal(call, 11);
    assert_int_equal(size, 513);
    head[5] = 1; /* 4 GiB */
    assert_int_equal(bw_wire_request_head(head, &call, &size), -1);
    head[5] = 0;
    head[0] = 8;
    assert_int_equal(bw_wire_request_head(head, &call, &size), -1);
}

static void bodies(void **state)
{
    (void)state;
    static const struct {
        uint8_t bytes[16];
        size_t size;
        int ok;
    } cases[] = {
        {{0}, 0, 1},
        {{0x08, 0x96, 0x01}, 3, 1},
        {{0x08, 0x96}, 2, 0},                                                        /* cut varint */
        {{0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}, 11, 1},    /* 2^64 - 1 */
        {{0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2}, 11, 0},    /* 2^64 and more */
        {{0x08, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80}, 11, 0}, /* no end */
        {{0x12, 3, 'a', 'b', 'c'}, 5, 1},
        {{0x12, 4, 'a', 'b', 'c'}, 5, 0}, /* beyond the end */
        {{0x19, 1, 2, 3, 4, 5, 6, 7, 8}, 9, 1},
        {{0x19, 1, 2, 3, 4, 5, 6, 7}, 8, 0},
        {{0x1d, 1, 2, 3, 4}, 5, 1},
        {{0x1b}, 1, 0},       /* a group */
        {{0x00, 1}, 2, 0},    /* field 0 */
        {{0x80, 1, 1}, 3, 0}, /* field 16 */
        {{0x42, 2, 0x38, 5}, 4, 1},
        {{0x42, 2, 0x38, 0x85}, 4, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bw_wire_message m;
        int code = bw_wire_parse(cases[i].bytes, cases[i].size, &m);
        if ((code == 0) != cases[i].ok)
            fail_msg("case %zu: %d", i, code);
    }
    bw_wire_message m;
    assert_int_equal(bw_wire_parse(cases[3].bytes, cases[3].size, &m), 0);
    assert_true(m.value[1] == UINT64_MAX && m.seen == 2);
    assert_int_equal(bw_wire_parse(cases[14].bytes, cases[14].size, &m), 0);
    assert_int_equal(m.bank_count, 1);
    assert_int_equal(m.banks[0], 5);
}

static void malformed_requests_end_it(void **state)
{
    (void)state;
    start_card(1, NULL);
    static const struct {
        uint32_t call;
        uint8_t bytes[8];
        size_t size;
    } cases[] = {{BW_WIRE_ALLOC, {0x08, 0x80}, 2},
                 {BW_WIRE_TO_DEVICE, {0x18, 1}, 2},                      /* no bytes */
                 {BW_WIRE_TO_DEVICE, {0x18, 1, 0x22, 1, 9, 0x28, 2}, 7}, /* two bytes said, one given */
                 {BW_WIRE_FROM_DEVICE, {0x20, 1}, 2},
                 {BW_WIRE_REG_WRITE, {0x08, 1, 0x10, 1, 0x1a, 1, 9}, 7}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bw_wire_reply reply;
        err.message[0] = 0;
        assert_int_equal(bw_card_request(card, cases[i].call, cases[i].bytes, cases[i].size, &reply, &err),
                         BW_CARD_BROKEN);
        assert_true(err.message[0]);
    }
    assert_int_equal(ask(BW_WIRE_FROM_DEVICE, card_from_device(0, BW_WIRE_BODY_MAX + 1)), BW_CARD_BROKEN);
    bw_card_destroy(card);
}

/* --- memory ------------------------------------------------------------------------------------------------------- */

static void memory_is_strict(void **state)
{
    (void)state;
    start_card(1, NULL);
    char data[64] = "what the host has written", back[64] = "";
    assert_true(alloc(4096, 8192));
    assert_false(alloc(8192, 4096)); /* overlaps */
    assert_false(alloc(0, 4097));
    assert_true(alloc(0, 4096));
    assert_false(alloc(4 * BANK - 4096, 8192)); /* beyond the memory */
    assert_false(alloc(4096 + 8192, 0));
    assert_int_equal(send_bytes(4096 + 8192 - 64, data, 64), 64);
    assert_int_equal(send_bytes(4096 + 8192 - 63, data, 64), 0); /* one byte beyond the buffer */
    assert_int_equal(send_bytes(4000, data, 64), 64);
    assert_int_equal(send_bytes(4090, data, 64), 0); /* across two buffers */
    assert_int_equal(fetch_bytes(4096 + 8192 - 64, back, 64), 64);
    assert_memory_equal(back, data, 64);
    assert_int_equal(fetch_bytes(UINT64_MAX - 10, back, 64), 0);
    ask(BW_WIRE_FREE, card_free(4096));
    assert_int_equal(answer.value[1], 1);
    assert_int_equal(fetch_bytes(4096 + 8192 - 64, back, 64), 0); /* free again: out of reach */
    ask(BW_WIRE_FREE, card_free(4096));
    assert_int_equal(answer.value[1], 0);
    assert_true(alloc(4096, 8192));
    memset(data, 0, sizeof data);
    assert_int_equal(fetch_bytes(4096 + 8192 - 64, back, 64), 64);
    assert_memory_equal(back, data, 64); /* and nothing left in it */
    end_card();
}

static void memory_is_sparse(void **state)
{
    (void)state;
    bw_card_memory *m;
    if (bw_card_memory_create(UINT64_C(64) << 30, &m, &err))
        fail_msg("%s", err.message);
    char c = 'x';
    for (uint64_t at = 0; at < UINT64_C(64) << 30; at += UINT64_C(4) << 30) {
        assert_int_equal(bw_card_memory_alloc(m, at, UINT64_C(4) << 30), 0);
        assert_int_equal(bw_card_memory_write(m, at + 12345, &c, 1), BW_CARD_ACCESS_OK);
    }
    bw_card_memory_destroy(m);
}

static void too_much_memory_is_refused(void **state)
{
    (void)state;
    bw_card_options options = {.inline_jobs = 1, .memory_limit = BANK};
    assert_int_equal(bw_card_create(&options, &card, &err), BW_OK);
    ask(BW_WIRE_LOAD, card_load(xml_path, 2, BANK));
    assert_int_equal(answer.value[1], 0);
    ask(BW_WIRE_LOAD, card_load(xml_path, 2, UINT64_MAX));
    assert_int_equal(answer.value[1], 0);
    ask(BW_WIRE_ALLOC, card_alloc(0, 4096));
    assert_int_equal(answer.value[1], 0);
    end_card();
}

/* --- registers ---------------------------------------------------------------------------------------------------- */

static void registers(void **state)
{
    (void)state;
    start_card(1, NULL);
    assert_int_equal(read_register(BW_ACCEL_AT_MAGIC), BW_ACCEL_MAGIC);
    assert_int_equal(read_register(BW_ACCEL_AT_ISA), BW_ISA_VERSION);
    const uint64_t build = bw_accelerator_build(bw_accelerator_find(NULL));
    assert_int_equal(read_register(BW_ACCEL_AT_BUILD), (uint32_t)build);
    assert_int_equal(read_register(BW_ACCEL_AT_BUILD + 4), (uint32_t)(build >> 32));
    assert_int_equal(read_register(BW_ACCEL_CTRL), BW_ACCEL_CTRL_IDLE);
    write_register(BW_ACCEL_AT_BATCH, 17);
    assert_int_equal(read_register(BW_ACCEL_AT_BATCH), 17);
    write_register(BW_ACCEL_AT_MAGIC, 1);
    assert_int_equal(read_register(BW_ACCEL_AT_MAGIC), BW_ACCEL_MAGIC);
    /* Where nothing is, a bus gives ones. */
    ask(BW_WIRE_READ_CTRL, card_read_ctrl(BW_ACCEL_BASE - 4));
    assert_memory_equal(answer.bytes[2], "\xff\xff\xff\xff", 4);
    ask(BW_WIRE_READ_CTRL, card_read_ctrl(BW_ACCEL_BASE + BW_ACCEL_RANGE));
    assert_memory_equal(answer.bytes[2], "\xff\xff\xff\xff", 4);
    write_register(BW_ACCEL_RANGE, 1);
    /* Configured as nothing. */
    ask(BW_WIRE_CLOSE, card_close(0));
    assert_int_equal(read_register(BW_ACCEL_AT_MAGIC), 0);
    write_register(BW_ACCEL_CTRL, BW_ACCEL_CTRL_START);
    assert_int_equal(read_register(BW_ACCEL_CTRL), BW_ACCEL_CTRL_IDLE);
    end_card();
}

/* --- jobs --------------------------------------------------------------------------------------------------------- */

static void same_bits_as_the_reference(void **state)
{
    (void)state;
    for (int inline_jobs = 0; inline_jobs < 2; inline_jobs++)
        for (uint64_t seed = 1; seed <= 12; seed++) {
            setup s;
            start_card(inline_jobs, NULL);
            prepare(&s, seed);
            bw_accel_status status = do_job(&s, BW_ACCEL_LOAD);
            if (status.code)
                fail_msg("seed %d: %s", (int)seed, status.message);
            assert_true(status.program_sum == bw_accel_checksum(s.c.program, s.c.program_size));
            assert_true(status.constant_sum == bw_accel_checksum(s.c.constants, s.c.constants_size));
            for (int again = 0; again < 2; again++) {
                status = do_job(&s, BW_ACCEL_RUN);
                assert_int_equal(status.code, BW_ACCEL_OK);
                assert_int_equal(status.images, s.c.batch);
                assert_true(status.input_sum == bw_accel_checksum(s.c.in, s.c.batch * s.c.in_bytes));
                assert_true(status.output_sum == bw_accel_checksum(s.expected, s.c.batch * s.c.out_bytes));
                check_output(&s);
            }
            assert_int_equal(read_register(BW_ACCEL_AT_JOBS), 3);
            let_go(&s);
            end_card();
        }
}

/* What the host changes under a loaded program is noticed: it is checked again, and refused. */
static void checks_before_every_run(void **state)
{
    (void)state;
    setup s;
    start_card(1, NULL);
    prepare(&s, 3);
    assert_int_equal(do_job(&s, BW_ACCEL_RUN).code, BW_ACCEL_OK);
    const uint64_t far = UINT64_C(1) << 39;
    assert_int_equal(send_bytes(AT_PROGRAM + sizeof(bw_program_header) + offsetof(bw_instruction, in), &far, 8), 8);
    bw_accel_status status = do_job(&s, BW_ACCEL_RUN);
    assert_int_equal(status.code, BW_ACCEL_BAD_PROGRAM);
    assert_true(status.message[0]);
    assert_int_equal(send_bytes(AT_PROGRAM, s.c.program, s.c.program_size), s.c.program_size);
    assert_int_equal(do_job(&s, BW_ACCEL_RUN).code, BW_ACCEL_OK);
    check_output(&s);
    /* Buffers that are gone. */
    ask(BW_WIRE_FREE, card_free(AT_IN));
    assert_int_equal(do_job(&s, BW_ACCEL_RUN).code, BW_ACCEL_BAD_ADDRESS);
    assert_true(alloc(AT_IN, 1 << 20));
    ask(BW_WIRE_FREE, card_free(AT_ACT));
    if (s.program.header->act_bytes)
        assert_int_equal(do_job(&s, BW_ACCEL_RUN).code, BW_ACCEL_BAD_ADDRESS);
    assert_int_equal(do_job(&s, (bw_accel_command)7).code, BW_ACCEL_BAD_COMMAND);
    let_go(&s);
    end_card();
}

/* --- faults ------------------------------------------------------------------------------------------------------- */

static void order_fault(const char *kind, const char *when)
{
    char path[160];
    snprintf(path, sizeof path, "%s/%s", faults, kind);
    bw_slice slice = {when, strlen(when)};
    assert_int_equal(bw_file_write_atomic(path, &slice, 1, &err), BW_OK);
}

static int fault_is_left(const char *kind)
{
    char path[160];
    snprintf(path, sizeof path, "%s/%s", faults, kind);
    return access(path, F_OK) == 0;
}

static void faults_come_as_ordered(void **state)
{
    (void)state;
    setup s;
    start_card(0, faults);
    prepare(&s, 5);
    order_fault("error", "2");
    assert_int_equal(do_job(&s, BW_ACCEL_RUN).code, BW_ACCEL_OK);
    assert_true(fault_is_left("error"));
    assert_int_equal(do_job(&s, BW_ACCEL_RUN).code, BW_ACCEL_INTERNAL);
    assert_false(fault_is_left("error"));
    assert_int_equal(do_job(&s, BW_ACCEL_RUN).code, BW_ACCEL_OK);

    order_fault("flip", "1");
    const uint64_t before = bw_accel_checksum(s.c.constants, s.c.constants_size);
    bw_accel_status status = do_job(&s, BW_ACCEL_LOAD);
    assert_true(status.code == BW_ACCEL_BAD_PROGRAM || status.constant_sum != before);
    assert_int_equal(send_bytes(AT_CONST, s.c.constants, s.c.constants_size), s.c.constants_size);

    order_fault("ecc", "1");
    assert_int_equal(do_job(&s, BW_ACCEL_RUN).code, BW_ACCEL_MEMORY);
    assert_int_equal(read_register(BW_ACCEL_AT_HEALTH), BW_ACCEL_HEALTH_ECC);
    assert_int_equal(send_bytes(AT_CONST, s.c.constants, s.c.constants_size), s.c.constants_size); /* mends it */
    assert_int_equal(do_job(&s, BW_ACCEL_RUN).code, BW_ACCEL_OK);
    check_output(&s);

    order_fault("zeros.0", "1"); /* this card's */
    order_fault("zeros.1", "1"); /* another's */
    char byte[2];
    assert_int_equal(fetch_bytes(AT_PROGRAM, byte, 2), 2);
    assert_int_equal(byte[0] | byte[1], 0);
    assert_int_equal(fetch_bytes(AT_PROGRAM, byte, 2), 2);
    assert_int_equal((uint8_t)byte[0], BW_PROGRAM_MAGIC & 0xff);
    assert_true(fault_is_left("zeros.1"));

    order_fault("delay", "1 60");
    const uint64_t start = bw_now_ns();
    assert_int_equal(do_job(&s, BW_ACCEL_RUN).code, BW_ACCEL_OK);
    assert_true(bw_now_ns() - start >= 60000000);
    let_go(&s);
    end_card();
}

static void a_hang_ends_by_abort(void **state)
{
    (void)state;
    setup s;
    start_card(0, faults);
    prepare(&s, 6);
    order_fault("hang", "1");
    start_job(&s, BW_ACCEL_RUN);
    for (int i = 0; i < 20; i++)
        assert_int_equal(read_register(BW_ACCEL_CTRL), BW_ACCEL_CTRL_START);
    write_register(BW_ACCEL_AT_ABORT, 1);
    assert_int_equal(finish_job().code, BW_ACCEL_ABORTED);
    assert_int_equal(do_job(&s, BW_ACCEL_RUN).code, BW_ACCEL_OK);
    check_output(&s);
    let_go(&s);
    end_card();
}

static void a_freeze_ends_by_configuration(void **state)
{
    (void)state;
    setup s;
    start_card(0, faults);
    prepare(&s, 7);
    order_fault("freeze", "1");
    start_job(&s, BW_ACCEL_RUN);
    write_register(BW_ACCEL_AT_ABORT, 1);
    for (int i = 0; i < 20; i++)
        assert_int_equal(read_register(BW_ACCEL_CTRL), BW_ACCEL_CTRL_START);
    ask(BW_WIRE_CLOSE, card_close(0));
    assert_int_equal(read_register(BW_ACCEL_CTRL), BW_ACCEL_CTRL_IDLE);
    order_fault("build", "1");
    ask(BW_WIRE_LOAD, card_load(xml_path, 4, BANK));
    assert_int_not_equal(read_register(BW_ACCEL_AT_BUILD), (uint32_t)bw_accelerator_build(bw_accelerator_find(NULL)));
    ask(BW_WIRE_LOAD, card_load(xml_path, 4, BANK));
    assert_int_equal(do_job(&s, BW_ACCEL_RUN).code, BW_ACCEL_OK);
    check_output(&s);
    let_go(&s);
    end_card();
}

/* A whole conversation of the kind above, for tests/fuzz/corpus/card: BW_WRITE_CORPUS=FILE. */
static void append(FILE *f, uint8_t call, card_body b)
{
    uint8_t head[4] = {call, (uint8_t)b.size, (uint8_t)(b.size >> 8), (uint8_t)(b.size >> 16)};
    fwrite(head, 1, 4, f);
    fwrite(b.bytes, 1, b.size, f);
    free(b.bytes);
}

static void write_corpus(const char *path, uint64_t seed)
{
    struct bw_random_options small = {.max_operations = 1, .max_extent = 3, .max_channels = 20, .max_batch = 1};
    struct bw_random_case c;
    FILE *f = fopen(path, "wb");
    if (!f || bw_random_case_make(seed, &small, &c))
        exit(1);
    append(f, BW_WIRE_CLOSE, card_close(0));
    append(f, BW_WIRE_LOAD, card_load("x", 2, 1 << 16));
    append(f, BW_WIRE_ALLOC, card_alloc(0, 4096));
    append(f, BW_WIRE_ALLOC, card_alloc(4096, 16384));
    append(f, BW_WIRE_ALLOC, card_alloc(32768, 65536));
    append(f, BW_WIRE_TO_DEVICE, card_to_device(4096, c.program, c.program_size));
    append(f, BW_WIRE_TO_DEVICE, card_to_device(32768, c.constants, c.constants_size));
    append(f, BW_WIRE_TO_DEVICE, card_to_device(65536, c.in, c.in_bytes));
    for (uint32_t command = 1; command <= 2; command++) {
        uint32_t map[BW_ACCEL_ARGS_END / 4] = {BW_ACCEL_CTRL_START};
        const uint64_t values[BW_ACCEL_ARG_COUNT] = {
            4096, 32768, 65536 + 16384, 65536, 65536 + 8192, 0, c.program_size, c.constants_size, 1, command, command};
#define X(number, upper, name, bytes, offset, address) memcpy((uint8_t *)map + (offset), &values[number], bytes);
        BW_ACCEL_ARGS(X)
#undef X
        append(f, BW_WIRE_WRITE_CTRL, card_write_ctrl(BW_ACCEL_BASE, map, sizeof map));
        append(f, BW_WIRE_READ_CTRL, card_read_ctrl(BW_ACCEL_BASE));
    }
    append(f, BW_WIRE_FROM_DEVICE, card_from_device(65536 + 8192, c.out_bytes));
    append(f, BW_WIRE_FREE, card_free(32768));
    append(f, BW_WIRE_CLOSE, card_close(1));
    bw_random_case_free(&c);
    fclose(f);
}

static int set_up(void **state)
{
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder,
             "%.40s/bw-card."
             "XX"
             "XX"
             "XX",
             tmp ? tmp : "/tmp");
    if (!mkdtemp(folder))
        return -1;
    snprintf(xml_path, sizeof xml_path, "%s/xml", folder);
    snprintf(faults, sizeof faults, "%s/faults", folder);
    char xml[256];
    snprintf(xml, sizeof xml, "<project><kernel name=\"%s\" language=\"c\" build=\"0x%llx\"></kernel></project>",
             BW_ACCEL_KERNEL, (unsigned long long)bw_accelerator_build(bw_accelerator_find(NULL)));
    bw_slice slice = {xml, strlen(xml)};
    bw_log_set_level(BW_LOG_ERROR);
    return mkdir(faults, 0700) || bw_file_write_atomic(xml_path, &slice, 1, &err);
}

static int tear_down(void **state)
{
    (void)state;
    char path[200];
    snprintf(path, sizeof path, "%s/zeros.1", faults);
    unlink(path);
    rmdir(faults);
    unlink(xml_path);
    return rmdir(folder);
}

int main(void)
{
    const char *corpus = getenv("BW_WRITE_CORPUS"), *seed = getenv("BW_SEED");
    if (corpus) {
        write_corpus(corpus, seed ? strtoull(seed, NULL, 10) : 1);
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(heads),
        cmocka_unit_test(bodies),
        cmocka_unit_test(malformed_requests_end_it),
        cmocka_unit_test(memory_is_strict),
        cmocka_unit_test(memory_is_sparse),
        cmocka_unit_test(too_much_memory_is_refused),
        cmocka_unit_test(registers),
        cmocka_unit_test(same_bits_as_the_reference),
        cmocka_unit_test(checks_before_every_run),
        cmocka_unit_test(faults_come_as_ordered),
        cmocka_unit_test(a_hang_ends_by_abort),
        cmocka_unit_test(a_freeze_ends_by_configuration),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
