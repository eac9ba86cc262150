/* SPDX-License-Identifier: Apache-2.0 */
/* What every transport shares: how our statuses look from outside. */
#include "service/transport.h"

bw_code bw_code_of(bw_status status)
{
    switch (status) {
    case BW_OK:
        return BW_CODE_OK;
    case BW_INVALID_ARGUMENT:
    case BW_NOT_FINITE:
        return BW_CODE_INVALID_ARGUMENT;
    case BW_OUT_OF_RANGE:
        return BW_CODE_OUT_OF_RANGE;
    case BW_NOT_FOUND:
        return BW_CODE_NOT_FOUND;
    case BW_ALREADY_EXISTS:
        return BW_CODE_ALREADY_EXISTS;
    case BW_UNSUPPORTED:
        return BW_CODE_UNIMPLEMENTED;
    case BW_INCOMPATIBLE:
        return BW_CODE_FAILED_PRECONDITION;
    case BW_PERMISSION:
        return BW_CODE_PERMISSION_DENIED;
    case BW_NO_MEMORY:
    case BW_EXHAUSTED:
        return BW_CODE_RESOURCE_EXHAUSTED;
    case BW_TIMEOUT:
        return BW_CODE_DEADLINE_EXCEEDED;
    case BW_CANCELLED:
        return BW_CODE_CANCELLED;
    case BW_BUSY:
    case BW_DEVICE_LOST:
    case BW_DEVICE_FAULT:
        return BW_CODE_UNAVAILABLE;
    case BW_CORRUPT:
    case BW_VERSION_MISMATCH:
    case BW_CHECKSUM:
    case BW_IO:
    case BW_INTERNAL:
        return BW_CODE_INTERNAL;
    }
    return BW_CODE_INTERNAL;
}

void bw_call_fail(bw_call *call, const bw_error *err)
{
    bw_call_finish(call, bw_code_of(err->status), err->message, NULL, 0, NULL, 0);
}
