/* SPDX-License-Identifier: Apache-2.0 */
/* Small unary answers by protobuf-c. */
#ifndef BW_SERVICE_REPLY_H
#define BW_SERVICE_REPLY_H

#include "service/wire.h"

/* Ends the call with the message. */
void bw_reply_message(bw_call *call, const ProtobufCMessage *message);
/* The call's request; NULL: malformed, the call has been answered. Free with bw_wire_unpack_free. */
ProtobufCMessage *bw_request_message(bw_call *call, const ProtobufCMessageDescriptor *type);

#endif
