/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whatever a host sends to an emulated card: requests {u8 call, u24 size, body}... The card comes up configured,
 * because its description is in a file. Programs run if they pass the validator and are small.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "sim/card/card.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define REQUESTS_MAX 200

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint64_t build;
    if (!build) {
        setenv("BW_SIM_THREADS", "1", 1);
        bw_log_set_level(BW_LOG_ERROR);
        build = bw_accelerator_build(bw_accelerator_find(NULL));
    }
    bw_card_options options = {.inline_jobs = 1, .build = build, .memory_limit = 1 << 20};
    bw_card *card;
    bw_error err = {BW_OK, ""};
    if (bw_card_create(&options, &card, &err))
        abort();
    /* Head and call separately, too. */
    if (size >= BW_WIRE_REQUEST_HEAD) {
        uint32_t call;
        uint64_t body;
        if (bw_wire_request_head(data, &call, &body) == 0 && body > BW_WIRE_BODY_MAX)
            abort();
    }
    bw_card_next next = BW_CARD_GO_ON;
    for (int n = 0; n < REQUESTS_MAX && size >= 4 && next == BW_CARD_GO_ON; n++) {
        const uint32_t call = data[0];
        size_t length = data[1] | (size_t)data[2] << 8 | (size_t)data[3] << 16;
        data += 4;
        size -= 4;
        length = length < size ? length : size;
        uint8_t *body = malloc(length ? length : 1); /* exactly sized: a sanitizer sees a byte too many */
        if (!body)
            abort();
        memcpy(body, data, length);
        bw_wire_reply reply;
        next = bw_card_request(card, call, body, length, &reply, &err);
        if (next == BW_CARD_BROKEN && (!err.message[0] || strchr(err.message, '\n')))
            abort();
        if (next != BW_CARD_BROKEN && (reply.head_size > sizeof reply.head || reply.head[0] != 9))
            abort();
        free(body);
        data += length;
        size -= length;
    }
    bw_card_destroy(card);
    return 0;
}
