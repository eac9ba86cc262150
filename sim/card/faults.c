/* SPDX-License-Identifier: Apache-2.0 */
#include "sim/card/faults.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int occurs(const char *path, unsigned *argument)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return 0;
    char text[64] = "";
    ssize_t n = read(fd, text, sizeof text - 1);
    unsigned count = 0, second = 0;
    int now = 0;
    if (n > 0 && sscanf(text, "%u %u", &count, &second) >= 1) {
        now = count <= 1;
        if (!now) {
            n = snprintf(text, sizeof text, "%u %u\n", count - 1, second);
            if (ftruncate(fd, 0) || pwrite(fd, text, (size_t)n, 0) != n)
                now = 1; /* better once too early than for ever */
        }
    }
    close(fd);
    if (now) {
        unlink(path);
        if (argument)
            *argument = second;
    }
    return now;
}

int bw_card_fault(const char *directory, int card, const char *kind, unsigned *argument)
{
    if (!directory || !*directory)
        return 0;
    char path[512];
    int n = snprintf(path, sizeof path, "%s/%s", directory, kind);
    if (n < 0 || n >= (int)sizeof path - 16)
        return 0;
    if (occurs(path, argument))
        return 1;
    snprintf(path + n, sizeof path - (size_t)n, ".%d", card);
    return occurs(path, argument);
}
