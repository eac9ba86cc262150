/* SPDX-License-Identifier: Apache-2.0 */
/* The bitstream container: as it comes, and with its UUID and checksums made right so that the checks behind them are
 * reached. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "hal/bitstream.h"
#include "hal/signature.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What parses is inside the input and can be written again. */
static void look(const uint8_t *data, size_t size)
{
    bw_bitstream bits;
    bw_error err = {BW_OK, ""};
    const size_t content = bw_signed_content(data, size);
    if (content > size || (content == size) != (bw_signature_count(data, size) == 0))
        abort();
    if (bw_bitstream_parse(data, size, &bits, &err)) {
        if (!err.message[0] || strchr(err.message, '\n'))
            abort();
        return;
    }
    for (unsigned i = 0; i < bits.payload_count; i++) {
        const uint8_t *p = bits.payloads[i].bytes;
        if (p < data || bits.payloads[i].size > size - (size_t)(p - data))
            abort();
    }
    void *again;
    size_t n;
    if (bw_bitstream_write(&bits, &again, &n, &err))
        abort();
    free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    look(data, size);
    const size_t whole = size;
    size = bw_signed_content(data, size); /* what follows makes the content's UUID right */
    if (size < 64)
        return 0;
    uint8_t *copy = malloc(whole);
    if (!copy)
        return 0;
    memcpy(copy, data, whole);
    memcpy(copy, "BWBITS\r\n\1\0\0\0", 12);
    memcpy(copy + 16, "{\"uuid\":\"", 9);
    /* "sha256":"=..." asks for the right sum of the last n bytes, n in the next character. */
    for (size_t i = 61; i + 76 < size; i++)
        if (memcmp(copy + i, "\"sha256\":\"=", 11) == 0) {
            size_t n = copy[i + 11];
            char sum[65];
            if (n && n < size) {
                bw_sha256_hex(copy + size - n, n, sum);
                memcpy(copy + i + 10, sum, 64);
            }
        }
    uint8_t d[32];
    bw_sha256(copy + 61, size - 61, d);
    d[6] = (uint8_t)((d[6] & 15) | 0x80);
    d[8] = (uint8_t)((d[8] & 63) | 0x80);
    char uuid[37];
    snprintf(uuid, sizeof uuid, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", d[0], d[1],
             d[2], d[3], d[4], d[5], d[6], d[7], d[8], d[9], d[10], d[11], d[12], d[13], d[14], d[15]);
    memcpy(copy + 25, uuid, 36);
    look(copy, whole);
    free(copy);
    return 0;
}
