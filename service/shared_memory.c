/* SPDX-License-Identifier: Apache-2.0 */
/* Regions of POSIX shared memory: see service/shared_memory.h. */
#include "service/shared_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "hal/base.h"
#include "service/guarded_copy.h"

#define PAGE 4096u

struct bw_shared_region {
    atomic_int refs;
    int fd;
    uint64_t offset, size; /* in the segment */
    void *map;             /* from the page on in which it begins; NULL: not mapped */
    char *key;             /* behind the name */
    char name[];
};

struct bw_shared_memory {
    pthread_mutex_t lock;
    char *prefix; /* NULL: the owner counts */
    int fd_from;
    size_t count, max;
    bw_shared_region *regions[]; /* sorted by name */
};

static atomic_uint_least64_t mapped; /* bytes, of all regions */

bw_shared_memory *bw_shared_memory_new(const char *prefix, size_t regions_max, int fd_from)
{
    bw_shared_memory *m = calloc(1, sizeof *m + regions_max * sizeof m->regions[0]);
    if (!m)
        return NULL;
    bw_guard_install();
    m->max = regions_max;
    m->fd_from = fd_from;
    m->prefix = prefix ? strdup(prefix + (prefix[0] == '/')) : NULL;
    if (prefix && !m->prefix) {
        free(m);
        return NULL;
    }
    pthread_mutex_init(&m->lock, NULL);
    return m;
}

void bw_shared_memory_free(bw_shared_memory *m)
{
    if (!m)
        return;
    bw_shared_memory_unregister(m, "");
    pthread_mutex_destroy(&m->lock);
    free(m->prefix);
    free(m);
}

static uint64_t map_size(const bw_shared_region *r)
{
    return r->offset % PAGE + r->size;
}

/* For reading only: writing to what is gone would end the process. */
static void map_region(bw_shared_region *r)
{
    uint64_t size = map_size(r), sum = atomic_fetch_add(&mapped, size) + size;
    void *map = sum > BW_SHARED_MAPPED_MAX || sum < size
                    ? MAP_FAILED
                    : mmap(NULL, size, PROT_READ, MAP_SHARED, r->fd, (off_t)(r->offset / PAGE * PAGE));
    r->map = map == MAP_FAILED ? NULL : map;
    if (!r->map)
        atomic_fetch_sub(&mapped, size);
}

void bw_shared_region_release(bw_shared_region *r)
{
    if (!r || atomic_fetch_sub(&r->refs, 1) != 1)
        return;
    if (r->map) {
        munmap(r->map, map_size(r));
        atomic_fetch_sub(&mapped, map_size(r));
    }
    close(r->fd);
    free(r);
}

/* Index of the name, or of where it would be. */
static size_t find_place(const bw_shared_memory *m, const char *name, int *found)
{
    size_t low = 0, high = m->count;
    *found = 0;
    while (low < high && !*found) {
        size_t middle = (low + high) / 2;
        int order = strcmp(m->regions[middle]->name, name);
        *found = order == 0;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return high;
}

/* --- registering ------------------------------------------------------------------------------------------------ */

/* The bytes of the character at `c`; 0: none that a name may have. */
static size_t character_size(const uint8_t *c)
{
    if (c[0] < 0x80)
        return c[0] >= 0x20 && c[0] != 0x7f;
    size_t size = c[0] < 0xc2 ? 0 : c[0] < 0xe0 ? 2 : c[0] < 0xf0 ? 3 : c[0] < 0xf5 ? 4 : 0;
    for (size_t i = 1; i < size; i++) {
        if ((c[i] & 0xc0) != 0x80)
            return 0;
    }
    /* C1 controls; what could be written shorter; surrogates; beyond Unicode. */
    if ((c[0] == 0xc2 && c[1] < 0xa0) || (c[0] == 0xe0 && c[1] < 0xa0) || (c[0] == 0xed && c[1] > 0x9f) ||
        (c[0] == 0xf0 && c[1] < 0x90) || (c[0] == 0xf4 && c[1] > 0x8f))
        return 0;
    return size;
}

/* What a reply can carry back, and a log line show. */
static int is_plain(const char *text)
{
    size_t n = strlen(text), size = 1;
    for (size_t i = 0; i < n && size; i += size)
        size = character_size((const uint8_t *)text + i);
    return n >= 1 && n <= BW_SHARED_NAME_MAX && size;
}

static bw_status check_names(const bw_shared_memory *m, const char *name, const char *key, bw_error *err)
{
    const char *file = key + (key[0] == '/');
    if (!is_plain(name))
        return bw_fail(
            err, BW_INVALID_ARGUMENT,
            "shared memory region '%.60s': expected a name of 1 to %d bytes of UTF-8 without control characters", name,
            BW_SHARED_NAME_MAX);
    if (!is_plain(file) || strchr(file, '/') || !strcmp(file, ".") || !strcmp(file, ".."))
        return bw_fail(err, BW_INVALID_ARGUMENT,
                       "shared memory region '%.60s': key '%.60s' is no name of a segment: expected 1 to %d bytes of "
                       "UTF-8 with no '/' but one before them, as shm_open takes it",
                       name, key, BW_SHARED_NAME_MAX);
    if (m->prefix && strncmp(file, m->prefix, strlen(m->prefix)))
        return bw_fail(err, BW_PERMISSION,
                       "shared memory region '%.60s': key '%.60s' does not begin with '%.60s': name the segment so, or "
                       "start the server with another --shared-memory=PREFIX",
                       name, key, m->prefix);
    return BW_OK;
}

static bw_status open_failed(const char *name, const char *key, int code, bw_error *err)
{
    bw_status status = code == ENOENT                                       ? BW_NOT_FOUND
                       : code == EACCES || code == EPERM                    ? BW_PERMISSION
                       : code == EMFILE || code == ENFILE || code == ENOMEM ? BW_EXHAUSTED
                                                                            : BW_INVALID_ARGUMENT;
    static const struct {
        bw_status status;
        const char *advice;
    } advices[] = {
        {BW_NOT_FOUND, "create it first, on the host (and in the IPC namespace) of the server"},
        {BW_PERMISSION, "let the server's user read and write it"},
        {BW_EXHAUSTED, "unregister regions, or raise the server's limit on open files"},
        {BW_INVALID_ARGUMENT, "expected a regular file, made by shm_open"},
    };
    size_t i = 0;
    while (advices[i].status != status)
        i++;
    return bw_fail(err, status, "shared memory region '%.60s': segment '%.60s' cannot be opened: %s: %s", name, key,
                   strerror(code), advices[i].advice);
}

static bw_status check_segment(const bw_shared_memory *m, int fd, const char *name, const char *key, uint64_t offset,
                               uint64_t size, bw_error *err)
{
    struct stat st;
    struct statfs fs;
    if (fstat(fd, &st) || fstatfs(fd, &fs))
        return open_failed(name, key, errno, err);
    if (!S_ISREG(st.st_mode) || fs.f_type != TMPFS_MAGIC)
        return bw_fail(
            err, BW_INVALID_ARGUMENT,
            "shared memory region '%.60s': '%.60s' is no shared memory: expected a regular file on tmpfs, made "
            "by shm_open",
            name, key);
    if (!m->prefix && st.st_uid != geteuid())
        return bw_fail(err, BW_PERMISSION,
                       "shared memory region '%.60s': segment '%.60s' belongs to user %u, the server runs as user %u: "
                       "create it as that user, or start the server with --shared-memory=PREFIX",
                       name, key, (unsigned)st.st_uid, (unsigned)geteuid());
    uint64_t end;
    if (!size || __builtin_add_overflow(offset, size, &end) || end > (uint64_t)st.st_size)
        return bw_fail(err, BW_INVALID_ARGUMENT,
                       "shared memory region '%.60s': %" PRIu64 " bytes at offset %" PRIu64
                       " are not within segment '%.60s' of %" PRIu64 " bytes: register a part of it of at least 1 byte",
                       name, size, offset, key, (uint64_t)st.st_size);
    return BW_OK;
}

/* What shm_open does, which ThreadSanitizer does not see through, to a descriptor where ours belong. */
static int open_segment(const bw_shared_memory *m, const char *key)
{
    char path[sizeof "/dev/shm/" + BW_SHARED_NAME_MAX];
    snprintf(path, sizeof path, "/dev/shm/%s", key + (key[0] == '/'));
    /* O_NONBLOCK for what is no segment. */
    int low = open(path, O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (low < 0)
        return -1;
    int fd = fcntl(low, F_DUPFD_CLOEXEC, m->fd_from);
    close(low);
    if (fd < 0)
        errno = EMFILE;
    return fd;
}

static bw_status open_region(const bw_shared_memory *m, const char *name, const char *key, uint64_t offset,
                             uint64_t size, bw_shared_region **region, bw_error *err)
{
    int fd = open_segment(m, key);
    if (fd < 0)
        return open_failed(name, key, errno, err);
    bw_status status = check_segment(m, fd, name, key, offset, size, err);
    size_t name_size = strlen(name) + 1, key_size = strlen(key) + 1;
    bw_shared_region *r = status ? NULL : malloc(sizeof *r + name_size + key_size);
    if (!r) {
        close(fd);
        return status ? status : bw_fail(err, BW_NO_MEMORY, "out of memory for a shared memory region");
    }
    atomic_init(&r->refs, 1);
    r->fd = fd;
    r->offset = offset;
    r->size = size;
    r->key = r->name + name_size;
    memcpy(r->name, name, name_size);
    memcpy(r->key, key, key_size);
    map_region(r);
    *region = r;
    return BW_OK;
}

bw_status bw_shared_memory_register(bw_shared_memory *m, const char *name, const char *key, uint64_t offset,
                                    uint64_t size, bw_error *err)
{
    int found;
    bw_shared_region *r = NULL;
    bw_status status = check_names(m, name, key, err);
    if (status)
        return status;
    /* Opening under the lock, which requests take too: on tmpfs it waits for nothing. */
    pthread_mutex_lock(&m->lock);
    size_t at = find_place(m, name, &found);
    if (found)
        status =
            bw_fail(err, BW_ALREADY_EXISTS,
                    "shared memory region '%.60s' is registered already, for segment '%.60s': unregister it first, or "
                    "choose another name",
                    name, m->regions[at]->key);
    else if (m->count == m->max)
        status = bw_fail(err, BW_EXHAUSTED,
                         "shared memory region '%.60s': %zu are registered, which is the most: unregister some", name,
                         m->max);
    else
        status = open_region(m, name, key, offset, size, &r, err);
    if (!status) {
        memmove(&m->regions[at + 1], &m->regions[at], (m->count - at) * sizeof r);
        m->regions[at] = r;
        m->count++;
    }
    pthread_mutex_unlock(&m->lock);
    return status;
}

void bw_shared_memory_unregister(bw_shared_memory *m, const char *name)
{
    int found = 1;
    pthread_mutex_lock(&m->lock);
    size_t at = name[0] ? find_place(m, name, &found) : 0, n = !found ? 0 : name[0] ? 1 : m->count;
    for (size_t i = 0; i < n; i++)
        bw_shared_region_release(m->regions[at + i]);
    memmove(&m->regions[at], &m->regions[at + n], (m->count - at - n) * sizeof m->regions[0]);
    m->count -= n;
    pthread_mutex_unlock(&m->lock);
}

/* --- using ------------------------------------------------------------------------------------------------------ */

static bw_status not_registered(const char *name, bw_error *err)
{
    return bw_fail(err, BW_NOT_FOUND,
                   "shared memory region '%.100s' is not registered: call SystemSharedMemoryRegister", name);
}

bw_status bw_shared_memory_each(bw_shared_memory *m, const char *name,
                                void (*each)(const bw_shared_info *info, void *user), void *user, bw_error *err)
{
    int found = 1;
    pthread_mutex_lock(&m->lock);
    size_t at = name[0] ? find_place(m, name, &found) : 0, n = !found ? 0 : name[0] ? 1 : m->count;
    for (size_t i = 0; i < n; i++) {
        const bw_shared_region *r = m->regions[at + i];
        bw_shared_info info = {r->name, r->key, r->offset, r->size};
        each(&info, user);
    }
    pthread_mutex_unlock(&m->lock);
    return found ? BW_OK : not_registered(name, err);
}

static bw_status too_short(const bw_shared_region *r, bw_error *err)
{
    return bw_fail(
        err, BW_INVALID_ARGUMENT,
        "shared memory region '%.100s': segment '%.100s' has become shorter than what was registered of it: keep "
        "its size until the region is unregistered",
        r->name, r->key);
}

/* Not so many bytes are left of the segment, at least at this moment. */
static int is_too_short(const bw_shared_region *r, uint64_t end)
{
    struct stat st;
    return fstat(r->fd, &st) || (uint64_t)st.st_size < r->offset + end;
}

bw_status bw_shared_memory_find(bw_shared_memory *m, const char *name, bw_shared_range *range, bw_error *err)
{
    int found;
    pthread_mutex_lock(&m->lock);
    size_t at = find_place(m, name, &found);
    bw_shared_region *r = found ? m->regions[at] : NULL;
    if (r)
        atomic_fetch_add(&r->refs, 1);
    pthread_mutex_unlock(&m->lock);
    if (!r)
        return not_registered(name, err);
    uint64_t end;
    if (__builtin_add_overflow(range->offset, range->size, &end) || end > r->size) {
        bw_status status = bw_fail(err, BW_INVALID_ARGUMENT,
                                   "%" PRIu64 " bytes at shared_memory_offset %" PRIu64
                                   " are not within region '%.100s' of %" PRIu64 " bytes: register a larger one",
                                   range->size, range->offset, name, r->size);
        bw_shared_region_release(r);
        return status;
    }
    /* Said before the run; of the page it ends in, a mapping would show zeros behind the end. */
    if (is_too_short(r, end)) {
        bw_status status = too_short(r, err);
        bw_shared_region_release(r);
        return status;
    }
    range->region = r;
    return BW_OK;
}

int bw_shared_is_mapped(const bw_shared_range *range)
{
    return range->region->map != NULL;
}

uint64_t bw_shared_place(const bw_shared_range *range)
{
    return range->region->offset + range->offset;
}

bw_status bw_shared_read(const bw_shared_range *range, uint64_t at, void *to, size_t size, bw_error *err)
{
    const bw_shared_region *r = range->region;
    /* What is not there is told better by the system call. */
    if (r->map && bw_guarded_copy(to, (const char *)r->map + r->offset % PAGE + range->offset + at, size))
        return BW_OK;
    for (size_t done = 0; done < size;) {
        ssize_t n = pread(r->fd, (char *)to + done, size - done, (off_t)(bw_shared_place(range) + at + done));
        if (n == 0)
            return too_short(r, err);
        if (n < 0 && errno != EINTR)
            return bw_fail_errno(err, "read", r->key, errno);
        done += n < 0 ? 0 : (size_t)n;
    }
    return BW_OK;
}

bw_status bw_shared_write(const bw_shared_range *range, uint64_t at, const void *from, size_t size, bw_error *err)
{
    const bw_shared_region *r = range->region;
    uint64_t place = bw_shared_place(range) + at;
    /* Writing would make it longer again: nobody wants that. */
    if (is_too_short(r, range->offset + at + size))
        return too_short(r, err);
    for (size_t done = 0; done < size;) {
        ssize_t n = pwrite(r->fd, (const char *)from + done, size - done, (off_t)(place + done));
        if (n < 0 && (errno == ENOSPC || errno == ENOMEM || errno == EFBIG))
            return bw_fail(err, BW_EXHAUSTED,
                           "shared memory region '%.100s': segment '%.100s' cannot be written: %m: "
                           "free memory on /dev/shm",
                           r->name, r->key);
        if (n < 0 && errno != EINTR)
            return bw_fail_errno(err, "write", r->key, errno);
        done += n < 0 ? 0 : (size_t)n;
    }
    return BW_OK;
}
