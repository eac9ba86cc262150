/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/footprint.h"

#include <dirent.h>
#include <stdio.h>

static unsigned count(pid_t pid, const char *what)
{
    char path[64];
    unsigned n = 0;
    snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, what);
    DIR *d = opendir(path);
    if (!d)
        return 0;
    for (const struct dirent *e; (e = readdir(d));)
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

bw_footprint bw_footprint_of(pid_t pid)
{
    bw_footprint f = {count(pid, "fd"), count(pid, "task"), 0};
    char path[64], line[128];
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    FILE *status = fopen(path, "r");
    while (status && fgets(line, sizeof line, status))
        if (sscanf(line, "RssAnon: %ld", &f.anonymous_kib) == 1)
            break;
    if (status)
        fclose(status);
    return f;
}
