/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A listening socket, TCP or Unix-domain, with its accept thread. gRPC core's own listener dies for good when the
 * process runs out of file descriptors, shares its port silently with a second process, and reports "port in use" as a
 * wall of JSON: so the server accepts by itself and hands connected sockets over. It also ends idle connections, for
 * which core would put another filter into the way of every call.
 *
 * Thread safety: one owner.
 */
#ifndef BW_SERVICE_LISTENER_H
#define BW_SERVICE_LISTENER_H

#include <stdint.h>

#include "kernels/status.h"

typedef struct bw_listener bw_listener;

typedef struct bw_listener_options {
    int max_connections; /* counted by their file descriptors; those above are closed at once */
    uint32_t idle_ms;    /* a TCP connection that carried nothing for so long is closed */
    /* Owns the socket from now on: non-blocking; TCP: TCP_NODELAY, with keep-alive probes. */
    void (*accepted)(int fd, void *user);
    /* Sets in_use[fd], fd <= max_fd, for connections that may be silent because a call waits there. */
    void (*mark_in_use)(uint8_t *in_use, int max_fd, void *user);
    /* Says goodbye to the peer of an idle connection, which is closed then. */
    void (*take_leave)(int fd);
    void *user;
} bw_listener_options;

/* address: "HOST:PORT", "[::1]:PORT", ":PORT" or "*:PORT" (all interfaces); port 0 picks a free one. "unix:PATH": a
 * Unix-domain socket; its file gets what the umask leaves of its mode, replaces one that no process listens to any
 * more, and is removed by stop.
 * BW_INVALID_ARGUMENT: not an address. BW_NOT_FOUND: unknown host. BW_ALREADY_EXISTS: port or path in use.
 * BW_PERMISSION. BW_IO. */
bw_status bw_listener_open(const char *address, bw_listener **listener, bw_error *err);
/* Starts the thread, on which the options' functions are called. BW_NO_MEMORY. */
bw_status bw_listener_start(bw_listener *listener, const bw_listener_options *options, bw_error *err);
/* "127.0.0.1:50051", the port being the real one, or "unix:PATH". */
const char *bw_listener_address(const bw_listener *listener);
int bw_listener_port(const bw_listener *listener); /* 0: a Unix-domain socket */
/* Stops the thread and closes the listening socket; connections stay. */
void bw_listener_stop(bw_listener *listener);
/* After stop: ends the connections that were accepted and are still there, whoever owns them now. Bytes written before
 * still arrive; a client in the middle of a call sees the connection end, which it may take as "try elsewhere". */
void bw_listener_hang_up(bw_listener *listener);
/* Stops, and frees. NULL allowed. */
void bw_listener_close(bw_listener *listener);

#endif
