/* SPDX-License-Identifier: Apache-2.0 */
/*
 * blockwave-card: the process that XRT's emulation shim starts in place of a card. It finds the shim's socket by the
 * environment that the shim sets, as the vendor's own device models do. Not for people: blockwave-xrt-emulation(1)
 * arranges everything.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "hal/base.h"
#include "sim/card/card.h"

/* The shim listens just after it has started this process. */
#define CONNECT_MS 20000

static int fail(const char *text, const char *detail)
{
    bw_log(BW_LOG_ERROR, "card", "%s: %s", text, detail);
    return 1;
}

static int socket_path(struct sockaddr_un *to)
{
    const char *user = getenv("USER"), *id = getenv("EMULATION_SOCKETID");
    int n = user && id ? snprintf(to->sun_path, sizeof to->sun_path, "/tmp/%s/%s", user, id)
                       : snprintf(to->sun_path, sizeof to->sun_path, "/tmp/xcl_sock");
    to->sun_family = AF_UNIX;
    return n > 0 && n < (int)sizeof to->sun_path ? 0 : -1;
}

static int connect_to_host(const struct sockaddr_un *to)
{
    for (int tries = 0; tries < CONNECT_MS / 2; tries++) {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0 || connect(fd, (const struct sockaddr *)to, sizeof *to) == 0)
            return fd;
        int code = errno;
        close(fd);
        errno = code;
        if (code != ENOENT && code != ECONNREFUSED)
            return -1;
        if (getppid() == 1)
            return -1; /* nobody waits any more */
        nanosleep(&(struct timespec){0, 2000000}, NULL);
    }
    return -1;
}

/* "device1_1_4711": the second card. */
static int card_index(void)
{
    const char *id = getenv("EMULATION_SOCKETID");
    unsigned index = 0;
    return id && sscanf(id, "device%u_", &index) == 1 && index < 1024 ? (int)index : 0;
}

int main(int argc, char **argv)
{
    /* The shims pass words of their own; none matters here. */
    if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        printf("usage: %s\nThe emulated card of XRT's emulation; started by XRT, see blockwave-xrt-emulation(1)\n",
               argv[0]);
        return 0;
    }
    signal(SIGPIPE, SIG_IGN);
    signal(SIGINT, SIG_IGN); /* of the terminal: the host decides when it ends */
    prctl(PR_SET_NAME, "blockwave-card");
    struct sockaddr_un address = {0};
    if (socket_path(&address))
        return fail("socket", "its path is too long: choose a shorter USER");
    int fd = connect_to_host(&address);
    if (fd < 0)
        return fail(address.sun_path, strerror(errno));
    bw_card_options options = {.faults = getenv("BW_CARD_FAULTS"), .index = card_index()};
    bw_card *card;
    bw_error err = {BW_OK, ""};
    bw_status status = bw_card_create(&options, &card, &err);
    if (!status)
        status = bw_card_serve(card, fd, &err);
    bw_card_destroy(card);
    close(fd);
    unlink(address.sun_path);
    return status ? fail("ends", err.message) : 0;
}
