/* SPDX-License-Identifier: Apache-2.0 */
/* Small unary answers: see service/reply.h. */
#include "service/reply.h"

#include <stdlib.h>

void bw_reply_message(bw_call *call, const ProtobufCMessage *message)
{
    size_t size = protobuf_c_message_get_packed_size(message);
    uint8_t *bytes = malloc(size ? size : 1);
    if (!bytes) {
        bw_call_finish(call, BW_CODE_RESOURCE_EXHAUSTED, "out of memory: try again later", NULL, 0, NULL, 0);
        return;
    }
    protobuf_c_message_pack(message, bytes);
    bw_chunk chunk = {bytes, size, NULL, NULL};
    bw_call_finish(call, BW_CODE_OK, "", &chunk, 1, NULL, 0);
    free(bytes);
}

ProtobufCMessage *bw_request_message(bw_call *call, const ProtobufCMessageDescriptor *type)
{
    ProtobufCMessage *m = bw_wire_unpack_cursor(type, bw_cursor_over(call->message, call->message_slices));
    if (!m) {
        bw_error err;
        bw_fail(&err, BW_INVALID_ARGUMENT, "malformed %s: not a protocol buffer message of that type",
                type->short_name);
        bw_call_fail(call, &err);
    }
    return m;
}
