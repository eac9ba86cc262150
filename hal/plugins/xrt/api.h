/* SPDX-License-Identifier: Apache-2.0 */
/*
 * XRT's native C API, loaded at run time: a program that never opens an `xrt:` device does not load XRT, and one on a
 * machine without XRT says so instead of not starting. Signatures are those of XRT's own headers.
 */
#ifndef BW_HAL_XRT_API_H
#define BW_HAL_XRT_API_H

#include <ert.h>
#include <xclbin.h>
#include <xrt/xrt_bo.h>
#include <xrt/xrt_device.h>
#include <xrt/xrt_kernel.h>

#include "kernels/status.h"

#define BW_XRT_FUNCTIONS(X)                                                                                            \
    X(xrtDeviceOpen)                                                                                                   \
    X(xrtDeviceOpenByBDF)                                                                                              \
    X(xrtDeviceClose)                                                                                                  \
    X(xrtDeviceLoadXclbin)                                                                                             \
    X(xrtDeviceGetXclbinUUID)                                                                                          \
    X(xrtPLKernelOpenExclusive)                                                                                        \
    X(xrtKernelClose)                                                                                                  \
    X(xrtKernelArgGroupId)                                                                                             \
    X(xrtKernelReadRegister)                                                                                           \
    X(xrtKernelWriteRegister)                                                                                          \
    X(xrtRunOpen)                                                                                                      \
    X(xrtRunSetArg)                                                                                                    \
    X(xrtRunStart)                                                                                                     \
    X(xrtRunState)                                                                                                     \
    X(xrtRunClose)                                                                                                     \
    X(xrtBOAlloc)                                                                                                      \
    X(xrtBOSubAlloc)                                                                                                   \
    X(xrtBOFree)                                                                                                       \
    X(xrtBOMap)                                                                                                        \
    X(xrtBOSync)

typedef struct bw_xrt_api {
#define X(name) __typeof__(name) *name;
    BW_XRT_FUNCTIONS(X)
#undef X
    unsigned major, minor; /* of the library: 2.13 */
} bw_xrt_api;

/* Loads it once. BW_UNSUPPORTED: not installed, too old, or a function is missing. */
bw_status bw_xrt_api_get(const bw_xrt_api **api, bw_error *err);

#endif
