/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Record locks of fcntl, for F_GETLK names the holder. They have a trap: closing any descriptor of the file gives the
 * lock back, so what this process holds is known here and its file is not opened again.
 */
#include "hal/claim.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hal/base.h"

struct bw_claim {
    bw_claim *next;
    int fd;
    char path[];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bw_claim *held;

static void path_of(const char *dir, const char *name, char path[PATH_MAX])
{
    const char *env = getenv("BW_LOCK_DIR");
    if (!dir)
        dir = env && *env ? env : access("/run/lock", X_OK) == 0 ? "/run/lock" : "/tmp";
    snprintf(path, PATH_MAX, "%s/%s", dir, name);
}

/* A file that all users may lock. In directories that everybody may write to, the kernel refuses O_CREAT on a file of
 * somebody else's, so it comes second. */
static int open_file(const char *path)
{
    for (int tries = 0; tries < 10; tries++) {
        int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
        if (fd >= 0 || errno != ENOENT)
            return fd;
        fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_CREAT | O_EXCL, 0666);
        if (fd >= 0)
            (void)fchmod(fd, 0666); /* whatever the umask */
        if (fd >= 0 || errno != EEXIST)
            return fd;
    }
    return -1;
}

static void name_holder(pid_t pid, bw_holder *holder)
{
    memset(holder, 0, sizeof *holder);
    holder->pid = pid > 0 ? (int)pid : 0;
    if (!holder->pid)
        return;
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/comm", holder->pid);
    FILE *f = fopen(path, "re");
    if (f && fgets(holder->name, sizeof holder->name, f))
        holder->name[strcspn(holder->name, "\n")] = 0;
    if (f)
        fclose(f);
}

/* 1: it is locked by another process. */
static int is_locked(int fd, bw_holder *holder)
{
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(fd, F_GETLK, &l) || l.l_type == F_UNLCK)
        return 0;
    name_holder(l.l_pid, holder);
    return 1;
}

/* The mutex is held. */
static int is_ours(const char *path, bw_holder *holder)
{
    const bw_claim *c = held;
    while (c && strcmp(c->path, path) != 0)
        c = c->next;
    if (c)
        name_holder(getpid(), holder);
    return c != NULL;
}

static bw_status take(const char *path, bw_claim **claim, bw_holder *holder, bw_error *err)
{
    char who[BW_HOLDER_TEXT];
    if (is_ours(path, holder))
        return bw_fail(err, BW_BUSY, "%s is locked by %s", path, bw_holder_text(holder, who));
    bw_claim *made = malloc(sizeof *made + strlen(path) + 1);
    if (!made)
        return bw_fail(err, BW_NO_MEMORY, "no memory for a claim");
    strcpy(made->path, path);
    made->fd = open_file(path);
    if (made->fd < 0) {
        bw_status status = bw_fail_errno(err, "lock", path, errno);
        free(made);
        return status;
    }
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    /* Who had it may have let go before F_GETLK names them: then it is free. */
    int code = fcntl(made->fd, F_SETLK, &l);
    for (int tries = 0; code && (errno == EAGAIN || errno == EACCES) && tries < 10; tries++) {
        if (is_locked(made->fd, holder)) {
            close(made->fd);
            free(made);
            return bw_fail(err, BW_BUSY, "%s is locked by %s", path, bw_holder_text(holder, who));
        }
        code = fcntl(made->fd, F_SETLK, &l);
    }
    if (code) {
        bw_status status = bw_fail_errno(err, "lock", path, errno);
        close(made->fd);
        free(made);
        return status;
    }
    made->next = held;
    held = made;
    *claim = made;
    return BW_OK;
}

bw_status bw_claim_take(const char *dir, const char *name, bw_claim **claim, bw_holder *holder, bw_error *err)
{
    char path[PATH_MAX];
    *claim = NULL;
    memset(holder, 0, sizeof *holder);
    path_of(dir, name, path);
    pthread_mutex_lock(&lock);
    bw_status status = take(path, claim, holder, err);
    pthread_mutex_unlock(&lock);
    return status;
}

void bw_claim_release(bw_claim *claim)
{
    if (!claim)
        return;
    pthread_mutex_lock(&lock);
    for (bw_claim **at = &held; *at; at = &(*at)->next)
        if (*at == claim) {
            *at = claim->next;
            break;
        }
    close(claim->fd);
    pthread_mutex_unlock(&lock);
    free(claim);
}

int bw_claim_look(const char *dir, const char *name, bw_holder *holder)
{
    char path[PATH_MAX];
    memset(holder, 0, sizeof *holder);
    path_of(dir, name, path);
    pthread_mutex_lock(&lock);
    int found = is_ours(path, holder);
    int fd = found ? -1 : open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd >= 0) {
        found = is_locked(fd, holder);
        close(fd);
    }
    pthread_mutex_unlock(&lock);
    return found;
}

const char *bw_holder_text(const bw_holder *holder, char text[BW_HOLDER_TEXT])
{
    if (holder->pid == (int)getpid())
        snprintf(text, BW_HOLDER_TEXT, "this process");
    else if (!holder->pid)
        snprintf(text, BW_HOLDER_TEXT, "another process");
    else
        snprintf(text, BW_HOLDER_TEXT, "process %d%s%s%s", holder->pid, holder->name[0] ? " (" : "", holder->name,
                 holder->name[0] ? ")" : "");
    return text;
}
