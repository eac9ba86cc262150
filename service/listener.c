/* SPDX-License-Identifier: Apache-2.0 */
/* The listening socket: see service/listener.h. */
#include "service/listener.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "hal/base.h"

struct bw_listener {
    int fd, wake;
    int port; /* 0: a Unix-domain socket */
    struct sockaddr_un local;
    dev_t device; /* of the Unix-domain socket's file, */
    ino_t inode;  /* which may have been replaced meanwhile */
    char address[300];
    int started;
    int max_fd;        /* sockets numbered above this are over the limit */
    uint8_t *accepted; /* by number: has been a connection of ours */
    uint8_t *in_use;   /* by number, of the last look: a call is under way on it */
    pthread_t thread;
    bw_listener_options options;
};

/* A peer that is gone is noticed by the kernel: after a minute of silence it asks, after 20 s without an answer, or
 * with data that nobody confirms, the connection ends. */
static void watch_peer(int fd)
{
    static const struct {
        int level, name, value;
    } options[] = {
        {SOL_SOCKET, SO_KEEPALIVE, 1}, {IPPROTO_TCP, TCP_KEEPIDLE, 60},        {IPPROTO_TCP, TCP_KEEPINTVL, 10},
        {IPPROTO_TCP, TCP_KEEPCNT, 2}, {IPPROTO_TCP, TCP_USER_TIMEOUT, 20000},
    };
    for (size_t i = 0; i < sizeof options / sizeof options[0]; i++)
        setsockopt(fd, options[i].level, options[i].name, &options[i].value, sizeof options[i].value);
}

/* Splits "HOST:PORT"; brackets around the host are dropped. */
static bw_status split_address(const char *address, char *host, size_t host_size, char *port, size_t port_size,
                               bw_error *err)
{
    const char *colon = strrchr(address, ':');
    size_t host_len = colon ? (size_t)(colon - address) : 0;
    const char *start = address;
    char *end = NULL;
    long number = colon && colon[1] >= '0' && colon[1] <= '9' ? strtol(colon + 1, &end, 10) : -1;
    if (!colon || number < 0 || number > 65535 || *end || host_len >= host_size)
        return bw_fail(err, BW_INVALID_ARGUMENT,
                       "address '%s': expected HOST:PORT with a port of 0..65535, such as 127.0.0.1:50051 or "
                       "[::]:50051, or unix:PATH",
                       address);
    if (host_len >= 2 && start[0] == '[' && start[host_len - 1] == ']') {
        start++;
        host_len -= 2;
    } else if (memchr(start, ':', host_len)) {
        return bw_fail(err, BW_INVALID_ARGUMENT, "address '%s': write an IPv6 host in brackets, such as [::1]:50051",
                       address);
    }
    if (host_len == 1 && start[0] == '*')
        host_len = 0;
    memcpy(host, start, host_len);
    host[host_len] = 0;
    snprintf(port, port_size, "%ld", number);
    return BW_OK;
}

static bw_status bind_failed(const char *address, int error, bw_error *err)
{
    if (error == EADDRINUSE)
        return bw_fail(err, BW_ALREADY_EXISTS,
                       "address %s is in use by another process: stop it, or choose another port (0 picks a free one)",
                       address);
    if (error == EACCES)
        return bw_fail(err, BW_PERMISSION, "no permission to listen on %s: ports below 1024 need privileges", address);
    return bw_fail(err, BW_IO, "cannot listen on %s: %s", address, strerror(error));
}

static int listen_on(const struct addrinfo *a)
{
    int fd = socket(a->ai_family, a->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, a->ai_protocol);
    if (fd < 0)
        return -1;
    int on = 1, off = 0;
    /* Restarting over connections in TIME_WAIT is fine; sharing a live port is not: no SO_REUSEPORT. */
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (a->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    if (bind(fd, a->ai_addr, a->ai_addrlen) || listen(fd, 1024)) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

static void note_address(bw_listener *l)
{
    struct sockaddr_storage name;
    socklen_t size = sizeof name;
    char host[256] = "?", port[16] = "0";
    if (!getsockname(l->fd, (struct sockaddr *)&name, &size))
        getnameinfo((struct sockaddr *)&name, size, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV);
    l->port = atoi(port);
    snprintf(l->address, sizeof l->address, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
}

static bw_status open_tcp(const char *address, int *fd, bw_error *err)
{
    char host[256], port[16];
    bw_status status = split_address(address, host, sizeof host, port, sizeof port, err);
    if (status)
        return status;
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *found = NULL;
    int code = getaddrinfo(host[0] ? host : NULL, port, &hints, &found);
    if (code)
        return bw_fail(err, BW_NOT_FOUND, "address '%s': %s", address, gai_strerror(code));
    int error = 0;
    /* For "all interfaces" prefer IPv6, which takes IPv4 connections too. */
    for (int pass = host[0] ? 1 : 0; pass < 2 && *fd < 0; pass++) {
        for (const struct addrinfo *a = found; a && *fd < 0; a = a->ai_next) {
            if (pass == 0 && a->ai_family != AF_INET6)
                continue;
            *fd = listen_on(a);
            error = *fd < 0 ? errno : 0;
        }
    }
    freeaddrinfo(found);
    return *fd < 0 ? bind_failed(address, error, err) : BW_OK;
}

/* --- Unix-domain sockets ---------------------------------------------------------------------------------------- */

/* The path of "unix:PATH" or "unix:///PATH", as clients of gRPC write it; NULL: another kind of address. */
static const char *unix_path(const char *address)
{
    if (strncmp(address, "unix:", 5) != 0)
        return NULL;
    return strncmp(address + 5, "///", 3) == 0 ? address + 7 : address + 5;
}

static int bind_local(int fd, const struct sockaddr_un *name)
{
    return bind(fd, (const struct sockaddr *)name, sizeof *name);
}

/* A socket's file outlives its process. One that nobody listens to is in the way. */
static int is_left_behind(const struct sockaddr_un *name)
{
    struct stat file;
    if (lstat(name->sun_path, &file) || !S_ISSOCK(file.st_mode))
        return 0;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return 0;
    int refused = connect(fd, (const struct sockaddr *)name, sizeof *name) && errno == ECONNREFUSED;
    close(fd);
    return refused;
}

static bw_status open_unix(const char *path, struct sockaddr_un *name, int *fd, bw_error *err)
{
    *name = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (!*path || strlen(path) >= sizeof name->sun_path)
        return bw_fail(err, BW_INVALID_ARGUMENT, "address 'unix:%s': expected a path of 1..%zu bytes", path,
                       sizeof name->sun_path - 1);
    memcpy(name->sun_path, path, strlen(path));
    *fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int error = *fd < 0 || bind_local(*fd, name) ? errno : 0;
    if (error == EADDRINUSE && is_left_behind(name))
        error = unlink(path) || bind_local(*fd, name) ? errno : 0;
    if (!error && listen(*fd, 1024))
        error = errno;
    if (!error)
        return BW_OK;
    if (*fd >= 0)
        close(*fd);
    if (error == EADDRINUSE)
        return bw_fail(err, BW_ALREADY_EXISTS,
                       "unix:%s is in use by another process, or no socket: stop it, or choose another path", path);
    return bw_fail(err, error == EACCES ? BW_PERMISSION : BW_IO, "cannot listen on unix:%s: %s", path, strerror(error));
}

static void note_local(bw_listener *l)
{
    struct stat file;
    if (!lstat(l->local.sun_path, &file)) {
        l->device = file.st_dev;
        l->inode = file.st_ino;
    }
    snprintf(l->address, sizeof l->address, "unix:%s", l->local.sun_path);
}

static void remove_local(const bw_listener *l)
{
    struct stat file;
    if (l->local.sun_family && !lstat(l->local.sun_path, &file) && file.st_dev == l->device && file.st_ino == l->inode)
        unlink(l->local.sun_path);
}

bw_status bw_listener_open(const char *address, bw_listener **listener, bw_error *err)
{
    *listener = NULL;
    const char *path = unix_path(address);
    int fd = -1;
    struct sockaddr_un local = {0};
    bw_status status = path ? open_unix(path, &local, &fd, err) : open_tcp(address, &fd, err);
    if (status)
        return status;
    bw_listener *l = calloc(1, sizeof *l);
    int wake = l ? eventfd(0, EFD_CLOEXEC) : -1;
    if (wake < 0) {
        close(fd);
        if (path)
            unlink(path);
        free(l);
        return bw_fail(err, BW_NO_MEMORY, "out of memory opening the listener");
    }
    l->fd = fd;
    l->wake = wake;
    l->local = local;
    if (path)
        note_local(l);
    else
        note_address(l);
    *listener = l;
    return BW_OK;
}

/* --- connections ------------------------------------------------------------------------------------------------ */

/* Out of descriptors or memory: the connection waits in the backlog until there is room again. */
static int worth_waiting(int error)
{
    return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM;
}

/* Numbers are used again by others; what has our address at its own end is a connection of ours. */
static int is_ours(const bw_listener *l, int fd)
{
    struct sockaddr_storage name = {0};
    socklen_t size = sizeof name;
    if (!l->accepted[fd] || getpeername(fd, (struct sockaddr *)&name, &size))
        return 0;
    size = sizeof name;
    memset(&name, 0, sizeof name);
    if (getsockname(fd, (struct sockaddr *)&name, &size))
        return 0;
    if (name.ss_family == AF_UNIX)
        return !strcmp(((struct sockaddr_un *)&name)->sun_path, l->local.sun_path);
    if (name.ss_family == AF_INET)
        return ntohs(((struct sockaddr_in *)&name)->sin_port) == l->port;
    return name.ss_family == AF_INET6 && ntohs(((struct sockaddr_in6 *)&name)->sin6_port) == l->port;
}

/* Never true of Unix-domain sockets: the kernel does not say, and no network forgets them. */
static int is_idle(const bw_listener *l, int fd)
{
    struct tcp_info info;
    socklen_t size = sizeof info;
    return is_ours(l, fd) && !getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) &&
           info.tcpi_last_data_recv >= l->options.idle_ms && info.tcpi_last_data_sent >= l->options.idle_ms;
}

/* Ends the connections on which nothing came or went for too long and no call is under way. On the accept thread, so
 * that no number becomes a new connection meanwhile. */
static void close_idle(bw_listener *l)
{
    int looked = 0;
    for (int fd = 0; fd <= l->max_fd; fd++) {
        if (!is_idle(l, fd))
            continue;
        if (!looked) {
            memset(l->in_use, 0, (size_t)l->max_fd + 1);
            l->options.mark_in_use(l->in_use, l->max_fd, l->options.user);
            looked = 1;
        }
        if (l->in_use[fd])
            continue;
        l->options.take_leave(fd);
        shutdown(fd, SHUT_RDWR);
    }
}

static void *accept_loop(void *arg)
{
    bw_listener *l = arg;
    uint64_t complained_ns = 0, looked_ns = bw_now_ns();
    /* An idle connection lives up to a tenth longer than it may. */
    int look_ms = l->options.idle_ms / 10 < 50 ? 50 : (int)(l->options.idle_ms / 10);
    for (;;) {
        struct pollfd fds[2] = {{l->fd, POLLIN, 0}, {l->wake, POLLIN, 0}};
        if (poll(fds, 2, look_ms) < 0 && errno != EINTR)
            break;
        if (fds[1].revents)
            break;
        if (bw_now_ns() - looked_ns >= (uint64_t)look_ms * 1000000u) {
            close_idle(l);
            looked_ns = bw_now_ns();
        }
        if (!fds[0].revents)
            continue;
        int fd = accept4(l->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        int error = fd < 0 ? errno : 0;
        int full = fd >= 0 && fd > l->max_fd;
        if (full || worth_waiting(error)) {
            if (full)
                close(fd);
            uint64_t now = bw_now_ns();
            if (now - complained_ns > 10000000000u) {
                complained_ns = now;
                bw_log(BW_LOG_WARN, "serve", "too many connections: %s",
                       full ? "closing new ones" : "new ones wait for a free descriptor");
            }
            if (!full) {
                struct pollfd wake = {l->wake, POLLIN, 0};
                poll(&wake, 1, 100);
            }
            continue;
        }
        if (error)
            continue; /* the peer gave up meanwhile, or a signal */
        if (!l->local.sun_family) {
            int on = 1;
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            watch_peer(fd);
        }
        l->accepted[fd] = 1;
        l->options.accepted(fd, l->options.user);
    }
    return NULL;
}

bw_status bw_listener_start(bw_listener *l, const bw_listener_options *options, bw_error *err)
{
    /* Descriptors are handed out lowest first: a new one's number tells how many are in use. */
    int lowest = fcntl(l->fd, F_DUPFD_CLOEXEC, 0);
    if (lowest >= 0)
        close(lowest);
    l->max_fd = (lowest > 0 ? lowest : l->fd) + options->max_connections - 1;
    l->options = *options;
    l->accepted = calloc((size_t)l->max_fd + 1, 1);
    l->in_use = calloc((size_t)l->max_fd + 1, 1);
    if (!l->accepted || !l->in_use)
        return bw_fail(err, BW_NO_MEMORY, "out of memory for %d connections", options->max_connections);
    if (pthread_create(&l->thread, NULL, accept_loop, l))
        return bw_fail(err, BW_NO_MEMORY, "cannot start the accept thread");
    l->started = 1;
    return BW_OK;
}

const char *bw_listener_address(const bw_listener *l)
{
    return l->address;
}

int bw_listener_port(const bw_listener *l)
{
    return l->port;
}

void bw_listener_stop(bw_listener *l)
{
    uint64_t one = 1;
    if (l->started && write(l->wake, &one, sizeof one) == sizeof one)
        pthread_join(l->thread, NULL);
    l->started = 0;
    if (l->fd >= 0) {
        remove_local(l);
        close(l->fd);
    }
    l->fd = -1;
}

void bw_listener_hang_up(bw_listener *l)
{
    for (int fd = 0; l->accepted && fd <= l->max_fd; fd++) {
        if (is_ours(l, fd))
            shutdown(fd, SHUT_RDWR);
    }
}

void bw_listener_close(bw_listener *l)
{
    if (!l)
        return;
    bw_listener_stop(l);
    close(l->wake);
    free(l->accepted);
    free(l->in_use);
    free(l);
}
