/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Linked in front of Debian's libxrt_swemu.a and libxrt_hwemu.a (with -Wl,--wrap) to make shared objects that a service
 * can live with. The archives' code is meant for short test programs and ends the process at the first irregularity.
 * Between it and the system this puts:
 *
 * memory       its buffer for messages forgets what realloc returns: the buffer is large from the start. Host memory of
 *              buffers is released with munmap but was allocated with posix_memalign: it comes from mmap.
 * processes    the card's process gets none of the host's descriptors and signals, and is waited for by its number;
 *              signal handlers, kill(0, ...), sleep and the shell are left out.
 * environment  setenv is not for programs with threads: what it sets is kept per thread, and given to the card's
 * process. connection   each socket is a link below: with a deadline for every reply, and numbers below 1024 for
 * select(). loss         a card's process that is dead, or does not answer, becomes a card that has left the bus:
 * registers read as ones, so that runs under way end and everything can be closed; transfers move nothing; configuring
 * it fails. Whoever uses the card sees it by what the registers say.
 *
 * BW_XRT_REPLY_MS: how long a reply may take, BW_XRT_START_MS: how long the card's process may take to come up.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LARGE      ((size_t)64 << 20)
#define LINKS      48
#define LINK_BASE  960 /* below FD_SETSIZE, and where a process seldom has descriptors */
#define REPLY_HEAD 9
#define REQUEST    14
#define REPLY_MAX  ((size_t)40 << 20)
#define REPLY_ROOM ((size_t)4096)
#define FAIR_US    200 /* between looks at a command that takes milliseconds */
#define SPIN_US    50  /* most replies are here before a thread could sleep and wake up */

enum {
    CALL_CLOSE = 1,
    CALL_LOAD = 3,
    CALL_TO_DEVICE = 6,
    CALL_FROM_DEVICE = 7,
    CALL_READ_CTRL = 11,
    CALL_REG_READ = 52
};

typedef struct link_state {
    int used, fd;  /* fd -1: lost */
    pid_t process; /* of the card, 0: not known */
    struct sockaddr_un at;
    pthread_t scheduler; /* the thread of the latest configuration; older ones may go */
    int has_scheduler;
    /* The request under way; the archives' code has one at a time. */
    unsigned call;
    uint8_t head[REQUEST]; /* kept until the body comes: one message to the card, not two */
    int has_head;
    size_t request_left; /* bytes of its body that are still to be written */
    uint8_t *reply;
    size_t reply_size, reply_at, reply_room;
} link_state;

/* The driver looks for this text before it lets XRT load the library. */
const char bw_xrt_shim_mark[] = "blockwave emulation shim";

static link_state links[LINKS];
static pthread_mutex_t links_lock = PTHREAD_MUTEX_INITIALIZER;
static int in_child; /* only ever set between fork and exec */
static __thread pid_t last_process;
static __thread link_state *last_link;

void *__real_malloc(size_t size);
void *__real_realloc(void *p, size_t size);
void __real_exit(int code) __attribute__((noreturn));
pid_t __real_fork(void);
pid_t __real_waitpid(pid_t pid, int *status, int options);
int __real_socket(int domain, int type, int protocol);
int __real_connect(int fd, const struct sockaddr *to, socklen_t size);
int __real_bind(int fd, const struct sockaddr *to, socklen_t size);
int __real_listen(int fd, int backlog);
int __real_accept(int fd, struct sockaddr *from, socklen_t *size);
int __real_select(int n, fd_set *r, fd_set *w, fd_set *e, struct timeval *t);
ssize_t __real_read(int fd, void *to, size_t size);
ssize_t __real_write(int fd, const void *from, size_t size);
int __real_close(int fd);
int __real_kill(pid_t pid, int number);
int __real_usleep(unsigned us);
void __real__ZNSt18condition_variable10notify_oneEv(void *condition);
int __real_setenv(const char *name, const char *value, int overwrite);
char *__real_getenv(const char *name);

static int64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static int64_t now_ms(void)
{
    return now_us() / 1000;
}

static int64_t patience(const char *name, int64_t otherwise)
{
    const char *text = __real_getenv(name);
    long ms = text ? strtol(text, NULL, 10) : 0;
    return ms > 0 ? ms : otherwise;
}

/* --- memory ------------------------------------------------------------------------------------------------------- */

void *__wrap_malloc(size_t size)
{
    return __real_malloc(size < LARGE ? LARGE : size);
}

void *__wrap_realloc(void *p, size_t size)
{
    if (!p)
        return __wrap_malloc(size);
    return size <= LARGE ? p : NULL;
}

int __wrap_posix_memalign(void **out, size_t alignment, size_t size)
{
    (void)alignment; /* never more than a page */
    void *p = mmap(NULL, size ? size : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return ENOMEM;
    *out = p;
    return 0;
}

/* --- environment -------------------------------------------------------------------------------------------------- */

#define VARIABLES 16
typedef struct variable {
    char name[64], value[256];
} variable;
static __thread variable variables[VARIABLES];

int __wrap_setenv(const char *name, const char *value, int overwrite)
{
    (void)overwrite;
    for (int i = 0; i < VARIABLES; i++)
        if (!variables[i].name[0] || strcmp(variables[i].name, name) == 0) {
            snprintf(variables[i].name, sizeof variables[i].name, "%s", name);
            snprintf(variables[i].value, sizeof variables[i].value, "%s", value);
            return 0;
        }
    return -1;
}

char *__wrap_getenv(const char *name)
{
    for (int i = 0; i < VARIABLES && variables[i].name[0]; i++)
        if (strcmp(variables[i].name, name) == 0)
            return variables[i].value;
    return __real_getenv(name);
}

/* --- processes ---------------------------------------------------------------------------------------------------- */

pid_t __wrap_fork(void)
{
    fflush(stdout); /* hw_emu closes it in the child, which would write what waits here once more */
    pid_t pid = __real_fork();
    if (pid == 0) {
        in_child = 1;
        setpgid(0, 0); /* an interrupt at the terminal is the host's */
        close_range(3, ~0u, 0);
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        for (int i = 0; i < VARIABLES && variables[i].name[0]; i++)
            __real_setenv(variables[i].name, variables[i].value, 1);
    } else {
        last_process = pid > 0 ? pid : 0;
    }
    return pid;
}

/* The child that could not become the card must not run the host's atexit functions. */
void __wrap_exit(int code) __attribute__((noreturn));
void __wrap_exit(int code)
{
    if (in_child)
        _exit(code);
    __real_exit(code);
}

/* Whether the process has ended; it stays to be waited for. */
static int has_ended(pid_t pid)
{
    siginfo_t info;
    memset(&info, 0, sizeof info);
    return waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == pid;
}

/* Asked for with 0, "any": the host has children of its own. */
pid_t __wrap_waitpid(pid_t pid, int *status, int options)
{
    if (pid > 0)
        return __real_waitpid(pid, status, options);
    link_state *l = last_link;
    pid_t process = l ? l->process : 0;
    if (process) {
        l->process = 0;
        for (int64_t end = now_ms() + 2000; !has_ended(process) && now_ms() < end;)
            poll(NULL, 0, 2);
        if (!has_ended(process))
            __real_kill(process, SIGKILL);
        __real_waitpid(process, status, 0);
    }
    return process ? process : 1; /* -1 would be asked again, for ever */
}

int __wrap_kill(pid_t pid, int number)
{
    (void)pid;
    (void)number;
    return 0;
}

int __wrap_sigaction(int number, const struct sigaction *action, struct sigaction *old)
{
    (void)number;
    (void)action;
    if (old)
        memset(old, 0, sizeof *old);
    return 0;
}

unsigned __wrap_sleep(unsigned seconds)
{
    (void)seconds;
    return 0;
}

/* chmod and cp of folders that are ours alone. */
int __wrap_system(const char *command)
{
    (void)command;
    return 0;
}

/* Another device may be open, or this one may be opened again. */
void __wrap__ZN6google8protobuf23ShutdownProtobufLibraryEv(void);
void __wrap__ZN6google8protobuf23ShutdownProtobufLibraryEv(void)
{
}

/* --- the scheduler's thread --------------------------------------------------------------------------------------- */

/* It looks for commands every 10 us, for ever. Here it sleeps until there is one: add_cmd notifies a condition on which
 * nobody waits. */
static pthread_mutex_t news_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t news_came = PTHREAD_COND_INITIALIZER;
static unsigned news;
static __thread unsigned requests; /* that this thread has sent */

void __wrap__ZNSt18condition_variable10notify_oneEv(void *condition);
void __wrap__ZNSt18condition_variable10notify_oneEv(void *condition)
{
    __real__ZNSt18condition_variable10notify_oneEv(condition);
    pthread_mutex_lock(&news_lock);
    news++;
    pthread_cond_broadcast(&news_came);
    pthread_mutex_unlock(&news_lock);
}

int __wrap_usleep(unsigned us)
{
    static __thread unsigned requests_before, news_before;
    static __thread int64_t last_ms;
    if (requests != requests_before) { /* a command is under way: the card makes it wait while it works on it */
        /* Without a pause whoever waits for the lock, to abort a slow command for example, would never get it. */
        const int64_t now = now_ms();
        if (now == last_ms)
            __real_usleep(us);
        else if (now > last_ms + 1)
            __real_usleep(FAIR_US);
        last_ms = now;
        requests_before = requests;
        if (last_link) {
            last_link->scheduler = pthread_self();
            last_link->has_scheduler = 1;
        }
        return 0;
    }
    /* Configured anew, a device gets another scheduler, and nobody ends the old one. */
    if (last_link && last_link->has_scheduler && !pthread_equal(last_link->scheduler, pthread_self())) {
        pthread_detach(pthread_self());
        pthread_exit(NULL);
    }
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 100000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&news_lock);
    if (news == news_before)
        pthread_cond_timedwait(&news_came, &news_lock, &until);
    news_before = news;
    pthread_mutex_unlock(&news_lock);
    return 0;
}

/* --- links -------------------------------------------------------------------------------------------------------- */

static link_state *link_of(int number)
{
    int i = number - LINK_BASE;
    return i >= 0 && i < LINKS && links[i].used ? &links[i] : NULL;
}

static int new_link(int fd)
{
    int number = -1;
    pthread_mutex_lock(&links_lock);
    for (int i = 0; i < LINKS && number < 0; i++)
        if (!links[i].used) {
            memset(&links[i], 0, sizeof links[i]);
            links[i].used = 1;
            links[i].fd = fd;
            links[i].process = last_process;
            number = LINK_BASE + i;
        }
    pthread_mutex_unlock(&links_lock);
    return number;
}

static void lose(link_state *l)
{
    if (l->fd >= 0)
        __real_close(l->fd);
    l->fd = -1;
    /* One that hangs would wake up to a host that has gone on. */
    if (l->process && !has_ended(l->process))
        __real_kill(l->process, SIGKILL);
}

int __wrap_socket(int domain, int type, int protocol)
{
    return new_link(__real_socket(domain, type | SOCK_CLOEXEC, protocol));
}

int __wrap_connect(int number, const struct sockaddr *to, socklen_t size)
{
    link_state *l = link_of(number);
    if (!l)
        return __real_connect(number, to, size);
    return l->fd >= 0 ? __real_connect(l->fd, to, size) : -1;
}

int __wrap_bind(int number, const struct sockaddr *to, socklen_t size)
{
    link_state *l = link_of(number);
    if (!l)
        return __real_bind(number, to, size);
    if (size <= sizeof l->at)
        memcpy(&l->at, to, size);
    if (l->fd >= 0 && __real_bind(l->fd, to, size))
        lose(l);
    return 0;
}

int __wrap_listen(int number, int backlog)
{
    link_state *l = link_of(number);
    if (!l)
        return __real_listen(number, backlog);
    if (l->fd >= 0 && __real_listen(l->fd, backlog))
        lose(l);
    return 0;
}

/* The archives' code ends the process unless this finds somebody: accept decides. hw_emu also looks for a simulator
 * that wants to read the host's memory: there is none. */
int __wrap_select(int n, fd_set *r, fd_set *w, fd_set *e, struct timeval *t)
{
    link_state *l = n > LINK_BASE ? link_of(n - 1) : NULL;
    if (!l)
        return __real_select(n, r, w, e, t);
    if (!strstr(l->at.sun_path, "D2X_unix_sock"))
        return 1;
    poll(NULL, 0, 100);
    return 0;
}

/* The card's process, and nobody else who may have found the path. */
static int wait_for_card(link_state *l)
{
    const int64_t end = now_ms() + patience("BW_XRT_START_MS", 10000);
    while (l->fd >= 0 && now_ms() < end && !(l->process && has_ended(l->process))) {
        struct pollfd p = {l->fd, POLLIN, 0};
        if (poll(&p, 1, 20) <= 0)
            continue;
        int fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC);
        struct ucred who;
        socklen_t size = sizeof who;
        if (fd >= 0 &&
            (!l->process || (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) == 0 && who.pid == l->process)))
            return fd;
        if (fd >= 0)
            __real_close(fd);
    }
    return -1;
}

/* The patience with a card's replies. */
static void limit_time(int fd)
{
    const int64_t ms = patience("BW_XRT_REPLY_MS", 1000);
    const struct timeval limit = {ms / 1000, ms % 1000 * 1000};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
}

int __wrap_accept(int number, struct sockaddr *from, socklen_t *size)
{
    link_state *l = link_of(number);
    if (!l)
        return __real_accept(number, from, size);
    int fd = wait_for_card(l);
    pid_t process = l->process;
    l->process = 0; /* it is the new link's */
    int made = new_link(fd);
    link_state *card = link_of(made);
    if (card) {
        card->process = process;
        card->at = l->at;
        if (fd >= 0)
            limit_time(fd);
        else
            lose(card);
    }
    return made;
}

/* A lost card is to be configured: another process takes its place, as a card does that was reset. The archives' code
 * starts one only for a device that has never had one. */
static void revive(link_state *l)
{
    const char *vitis = __real_getenv("XILINX_VITIS"), *mode = __real_getenv("XCL_EMULATION_MODE");
    char path[4096];
    if (!vitis || !mode || strcmp(mode, "sw_emu") != 0 || !l->at.sun_path[0])
        return;
    snprintf(path, sizeof path, "%s/data/emulation/unified/cpu_em/generic_pcie/model/genericpciemodel", vitis);
    if (l->process) {
        if (!has_ended(l->process))
            __real_kill(l->process, SIGKILL);
        __real_waitpid(l->process, NULL, 0);
    }
    l->process = 0;
    unlink(l->at.sun_path);
    const int fd = __real_socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && __real_bind(fd, (const struct sockaddr *)&l->at, sizeof l->at) == 0 && __real_listen(fd, 1) == 0) {
        const char *id = strrchr(l->at.sun_path, '/');
        __wrap_setenv("EMULATION_SOCKETID", id ? id + 1 : l->at.sun_path, 1);
        pid_t pid = __wrap_fork();
        if (pid == 0) {
            execl(path, path, (char *)NULL);
            _exit(127);
        }
        if (pid > 0) {
            l->process = pid;
            l->fd = fd; /* to wait on */
            l->fd = wait_for_card(l);
            if (l->fd >= 0)
                limit_time(l->fd);
        }
    }
    if (fd >= 0)
        __real_close(fd);
}

int __wrap_close(int number)
{
    link_state *l = link_of(number);
    if (!l)
        return __real_close(number);
    if (l->fd >= 0)
        __real_close(l->fd);
    pthread_mutex_lock(&links_lock);
    free(l->reply);
    l->used = 0;
    pthread_mutex_unlock(&links_lock);
    if (last_link == l)
        last_link = NULL;
    return 0;
}

/* --- requests ----------------------------------------------------------------------------------------------------- */

static int push(link_state *l, const uint8_t *at, size_t size)
{
    struct iovec parts[2] = {{l->head, l->has_head ? REQUEST : 0}, {(void *)at, size}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    l->has_head = 0;
    while (parts[0].iov_len + parts[1].iov_len) {
        ssize_t n = sendmsg(l->fd, &message, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) /* also when it takes too long: the socket has a time limit */
            return -1;
        for (int i = 0; i < 2; i++) {
            size_t part = (size_t)n < parts[i].iov_len ? (size_t)n : parts[i].iov_len;
            parts[i].iov_base = (uint8_t *)parts[i].iov_base + part;
            parts[i].iov_len -= part;
            n -= (ssize_t)part;
        }
    }
    return 0;
}

static int room_for(link_state *l, size_t size)
{
    if (size <= l->reply_room)
        return 0;
    free(l->reply);
    l->reply = __real_malloc(size);
    l->reply_room = l->reply ? size : 0;
    return l->reply ? 0 : -1;
}

/* All of it, in as few calls as it comes in: there is never more than one reply on its way. */
static int fetch_reply(link_state *l)
{
    uint64_t size = 0;
    size_t have = 0, want = REPLY_HEAD;
    if (room_for(l, REPLY_ROOM))
        return -1;
    while (have < want) {
        ssize_t n = -1;
        for (int64_t end = l->call == CALL_READ_CTRL ? 0 : now_us() + SPIN_US; n < 0 && now_us() < end;)
            n = recv(l->fd, l->reply + have, l->reply_room - have, MSG_DONTWAIT);
        if (n < 0)
            n = recv(l->fd, l->reply + have, l->reply_room - have, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -1;
        const size_t before = have;
        have += (size_t)n;
        if (before < REPLY_HEAD && have >= REPLY_HEAD) {
            memcpy(&size, l->reply + 1, 8);
            if (l->reply[0] != 9 || size > REPLY_MAX)
                return -1;
            want = REPLY_HEAD + size;
            if (want > l->reply_room) {
                uint8_t *grown = __real_realloc(l->reply, want);
                if (!grown)
                    return -1;
                l->reply = grown;
                l->reply_room = want;
            }
        }
    }
    l->reply_size = want;
    return have == want ? 0 : -1;
}

/* What a card says that is not there. */
static void make_reply(link_state *l)
{
    static const uint8_t done[] = {0x08, 1}, none[] = {0x08, 0}, empty[] = {0x08, 0, 0x12, 0},
                         ones[] = {0x08, 1, 0x12, 4, 0xff, 0xff, 0xff, 0xff};
    const uint8_t *body = done;
    uint64_t size = sizeof done;
    if (l->call == CALL_LOAD || l->call == CALL_TO_DEVICE)
        body = none;
    if (l->call == CALL_FROM_DEVICE)
        body = empty, size = sizeof empty;
    if (l->call == CALL_READ_CTRL || l->call == CALL_REG_READ)
        body = ones, size = sizeof ones;
    l->reply_size = 0;
    if (room_for(l, REPLY_HEAD + size))
        abort(); /* not even 20 bytes */
    l->reply[0] = 9;
    memcpy(l->reply + 1, &size, 8);
    memcpy(l->reply + REPLY_HEAD, body, size);
    l->reply_size = REPLY_HEAD + size;
}

ssize_t __wrap_write(int number, const void *from, size_t size)
{
    link_state *l = link_of(number);
    if (!l)
        return __real_write(number, from, size);
    last_link = l;
    if (l->request_left == 0 && size == REQUEST) {
        uint64_t body;
        uint32_t call;
        memcpy(&body, (const uint8_t *)from + 1, 8);
        memcpy(&call, (const uint8_t *)from + 10, 4);
        l->call = call;
        requests++;
        l->request_left = body;
        l->reply_size = l->reply_at = 0;
        memcpy(l->head, from, REQUEST);
        l->has_head = 1;
        return (ssize_t)size; /* even an empty body is written */
    }
    l->request_left -= size < l->request_left ? size : l->request_left;
    /* {2: handle, 3: 0}: what is configured ends, a configuration follows. */
    if (l->fd < 0 && l->call == CALL_CLOSE && size >= 2 && memcmp((const uint8_t *)from + size - 2, "\x18", 2) == 0)
        revive(l);
    if (l->fd >= 0 && push(l, from, size))
        lose(l);
    return (ssize_t)size;
}

ssize_t __wrap_read(int number, void *to, size_t size)
{
    link_state *l = link_of(number);
    if (!l)
        return __real_read(number, to, size);
    last_link = l;
    if (l->reply_at == l->reply_size && size) {
        l->reply_at = 0;
        if (l->fd >= 0 && fetch_reply(l))
            lose(l);
        if (l->fd < 0)
            make_reply(l);
    }
    size_t n = l->reply_size - l->reply_at;
    n = n < size ? n : size;
    memcpy(to, l->reply + l->reply_at, n);
    l->reply_at += n;
    return (ssize_t)n;
}
