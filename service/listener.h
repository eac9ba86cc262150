/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A listening TCP socket with its accept thread. gRPC core's own listener dies for good when the process runs out of
 * file descriptors, shares its port silently with a second process, and reports "port in use" as a wall of JSON: so
 * the server accepts by itself and hands connected sockets over.
 *
 * Thread safety: one owner.
 */
#ifndef BW_SERVICE_LISTENER_H
#define BW_SERVICE_LISTENER_H

#include "kernels/status.h"

typedef struct bw_listener bw_listener;

/* address: "HOST:PORT", "[::1]:PORT", ":PORT" or "*:PORT" (all interfaces); port 0 picks a free one.
 * Connections above max_connections (counted by their file descriptors) are closed at once.
 * BW_INVALID_ARGUMENT: not an address. BW_NOT_FOUND: unknown host. BW_ALREADY_EXISTS: port in use. BW_PERMISSION. */
bw_status bw_listener_open(const char *address, bw_listener **listener, bw_error *err);
/* Starts the thread; each accepted socket (non-blocking, TCP_NODELAY) goes to `accepted`, which owns it. */
bw_status bw_listener_start(bw_listener *listener, int max_connections, void (*accepted)(int fd, void *user),
                            void *user, bw_error *err);
/* "127.0.0.1:50051", the port being the real one. */
const char *bw_listener_address(const bw_listener *listener);
int bw_listener_port(const bw_listener *listener);
/* Stops the thread and closes the listening socket; connections stay. */
void bw_listener_stop(bw_listener *listener);
/* After stop: ends the connections that were accepted and are still there, whoever owns them now. Bytes written before
 * still arrive; a client in the middle of a call sees the connection end, which it may take as "try elsewhere". */
void bw_listener_hang_up(bw_listener *listener);
/* Stops, and frees. NULL allowed. */
void bw_listener_close(bw_listener *listener);

#endif
