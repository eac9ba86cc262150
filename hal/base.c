/* SPDX-License-Identifier: Apache-2.0 */
/* Clock, log, files, hashes: see hal/base.h. */
#include "hal/base.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <openssl/evp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

uint64_t bw_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* --- log -------------------------------------------------------------------------------------------------------- */

static const char *const level_names[] = {"error", "warn", "info", "debug"};
static atomic_int log_level = -1; /* -1: not yet read from the environment */

void bw_log_set_level(bw_log_level level)
{
    atomic_store(&log_level, (int)level < 0 ? 0 : level > BW_LOG_DEBUG ? BW_LOG_DEBUG : level);
}

static int current_level(void)
{
    int level = atomic_load_explicit(&log_level, memory_order_relaxed);
    if (level >= 0)
        return level;
    const char *text = getenv("BW_LOG");
    int chosen = BW_LOG_WARN;
    for (int i = 0; text && i <= BW_LOG_DEBUG; i++)
        if (strcmp(text, level_names[i]) == 0)
            chosen = i;
    /* A level set by another thread meanwhile wins. */
    return atomic_compare_exchange_strong(&log_level, &level, chosen) ? chosen : level;
}

static void write_fully(int fd, const char *text, size_t size)
{
    while (size) {
        ssize_t n = write(fd, text, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return; /* nowhere left to complain */
        text += n;
        size -= (size_t)n;
    }
}

void bw_log(bw_log_level level, const char *component, const char *format, ...)
{
    if ((int)level > current_level() || (int)level < 0)
        return;
    int saved = errno;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    struct tm tm;
    gmtime_r(&now.tv_sec, &tm);
    char line[1024];
    size_t n = strftime(line, sizeof line, "%Y-%m-%dT%H:%M:%S", &tm);
    int m = snprintf(line + n, sizeof line - n, ".%03ldZ %s %s: ", now.tv_nsec / 1000000, level_names[level],
                     component ? component : "blockwave");
    n = m < 0 ? n : n + (size_t)m < sizeof line - 2 ? n + (size_t)m : sizeof line - 2;
    va_list args;
    va_start(args, format);
    m = vsnprintf(line + n, sizeof line - 1 - n, format, args);
    va_end(args);
    if (m > 0)
        n = n + (size_t)m < sizeof line - 2 ? n + (size_t)m : sizeof line - 2;
    /* One line whatever the text holds: names from files and clients end up here. */
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
            line[i] = '?';
    line[n++] = '\n';
    write_fully(STDERR_FILENO, line, n); /* one write: lines of several threads do not mix */
    errno = saved;
}

/* --- files ------------------------------------------------------------------------------------------------------ */

static bw_status errno_status(int code)
{
    switch (code) {
    case ENOENT:
    case ENOTDIR:
        return BW_NOT_FOUND;
    case EACCES:
    case EPERM:
    case EROFS:
        return BW_PERMISSION;
    case ENOMEM:
        return BW_NO_MEMORY;
    case ENAMETOOLONG:
    case EISDIR:
        return BW_INVALID_ARGUMENT;
    default:
        return BW_IO;
    }
}

/* What to do about it; "" where the reason says it all. */
static const char *remedy(const char *verb, int code)
{
    int writes = strcmp(verb, "write") == 0;
    switch (code) {
    case ENOENT:
        return writes ? ": make its directory first" : ": check the name";
    case ENOTDIR:
        return ": what stands before the last '/' must be a directory";
    case EACCES:
    case EPERM:
        return writes ? ": get the right to write there or pick another place" : ": get the right to read it";
    case EROFS:
        return ": pick another place";
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return ": make room or pick another place";
    default:
        return "";
    }
}

bw_status bw_fail_errno(bw_error *err, const char *verb, const char *path, int code)
{
    char text[128];
    return bw_fail(err, errno_status(code), "%s: cannot %s: %s%s", path, verb, strerror_r(code, text, sizeof text),
                   remedy(verb, code));
}

bw_status bw_file_map(const char *path, const void **bytes, size_t *size, bw_error *err)
{
    if (!path || !bytes || !size)
        return bw_fail(err, BW_INVALID_ARGUMENT, "bw_file_map: a NULL argument, expected a path and two results");
    *bytes = NULL;
    *size = 0;
    /* O_NONBLOCK: a FIFO without a writer must not hang the open; it has no effect on files. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return bw_fail_errno(err, "open", path, errno);
    struct stat st;
    bw_status status = BW_OK;
    if (fstat(fd, &st))
        status = bw_fail_errno(err, "read", path, errno);
    else if (!S_ISREG(st.st_mode))
        status = bw_fail(err, BW_INVALID_ARGUMENT, "%s: is %s, expected a regular file", path,
                         S_ISDIR(st.st_mode) ? "a directory" : "not a regular file");
    else if (st.st_size > 0) {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED)
            status = bw_fail_errno(err, "map", path, errno);
        else {
            *bytes = p;
            *size = (size_t)st.st_size;
        }
    }
    close(fd);
    return status;
}

void bw_file_unmap(const void *bytes, size_t size)
{
    if (bytes && size)
        munmap((void *)(uintptr_t)bytes, size);
}

void bw_file_release_pages(const void *bytes, size_t size)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = (uintptr_t)bytes, to = (from + size) / page * page;
    from = (from + page - 1) / page * page;
    if (bytes && from < to)
        (void)madvise((void *)from, to - from, MADV_DONTNEED);
}

bw_status bw_file_read(const char *path, size_t limit, void **bytes, size_t *size, bw_error *err)
{
    if (!path || !bytes || !size)
        return bw_fail(err, BW_INVALID_ARGUMENT, "bw_file_read: a NULL argument, expected a path and two results");
    *bytes = NULL;
    *size = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return bw_fail_errno(err, "open", path, errno);
    struct stat st;
    if (fstat(fd, &st)) {
        bw_status status = bw_fail_errno(err, "read", path, errno);
        close(fd);
        return status;
    }
    if (S_ISDIR(st.st_mode)) {
        close(fd);
        return bw_fail(err, BW_INVALID_ARGUMENT, "%s: is a directory, expected a file", path);
    }
    /* The size is a hint only: pipes and /proc files have none. */
    size_t capacity = st.st_size > 0 && (uint64_t)st.st_size <= limit ? (size_t)st.st_size + 1 : 4096;
    size_t used = 0;
    char *data = malloc(capacity);
    bw_status status = BW_OK;
    if (S_ISREG(st.st_mode) && (uint64_t)st.st_size > limit)
        status = bw_fail(err, BW_OUT_OF_RANGE, "%s: has %lld bytes, at most %zu are expected", path,
                         (long long)st.st_size, limit);
    while (!status) {
        if (!data) {
            status = bw_fail(err, BW_NO_MEMORY, "%s: no memory for its %zu bytes", path, capacity);
            break;
        }
        if (used == capacity - 1) { /* room for the terminator stays */
            size_t more = capacity > SIZE_MAX / 2 ? 0 : capacity * 2;
            char *grown = more ? realloc(data, more) : NULL;
            if (!grown) {
                status = bw_fail(err, BW_NO_MEMORY, "%s: no memory for more than %zu bytes", path, capacity);
                break;
            }
            data = grown;
            capacity = more;
        }
        ssize_t n = read(fd, data + used, capacity - 1 - used);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            status = bw_fail_errno(err, "read", path, errno);
        if (n <= 0)
            break;
        used += (size_t)n;
        if (used > limit)
            status =
                bw_fail(err, BW_OUT_OF_RANGE, "%s: has more than %zu bytes, the most that are expected", path, limit);
    }
    close(fd);
    if (status) {
        free(data);
        return status;
    }
    data[used] = 0;
    *bytes = data;
    *size = used;
    return BW_OK;
}

static int write_slices(int fd, const bw_slice *slices, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const char *p = slices[i].bytes;
        size_t left = slices[i].size;
        while (left) {
            /* Linux writes at most 0x7ffff000 bytes at a time; smaller portions are interruptible. */
            ssize_t n = write(fd, p, left < (64u << 20) ? left : 64u << 20);
            if (n < 0 && errno == EINTR)
                continue;
            if (n < 0)
                return errno;
            p += n;
            left -= (size_t)n;
        }
    }
    return 0;
}

/* The new content under a temporary name in `dir`, synced. Written without a name (O_TMPFILE) where the file system
 * can, so that a killed process leaves nothing behind. Returns an errno and the name in temp. */
static int write_temporary(const char *dir, char *temp, size_t temp_size, mode_t mode, const bw_slice *slices,
                           size_t count)
{
    static atomic_uint serial;
    int unnamed = 1;
    int fd = open(dir, O_TMPFILE | O_WRONLY | O_CLOEXEC, mode);
    int code = 0;
    for (int tries = 0; tries < 100; tries++) {
        int n = snprintf(temp, temp_size, "%s/.bw-%ld-%u-%08x.tmp", dir, (long)getpid(), atomic_fetch_add(&serial, 1),
                         (unsigned)bw_now_ns());
        if (n < 0 || (size_t)n >= temp_size) {
            if (fd >= 0)
                close(fd);
            return ENAMETOOLONG;
        }
        if (fd < 0) {
            unnamed = 0;
            fd = open(temp, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, mode);
            if (fd < 0 && errno == EEXIST)
                continue;
            if (fd < 0)
                return errno;
        }
        break;
    }
    if (fd < 0)
        return EEXIST;
    code = write_slices(fd, slices, count);
    if (!code && fsync(fd) && errno != EINVAL)
        code = errno;
    if (unnamed) {
        if (!code) {
            char self[64];
            snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
            if (linkat(AT_FDCWD, self, AT_FDCWD, temp, AT_SYMLINK_FOLLOW))
                code = errno;
        }
        close(fd);
        return code;
    }
    if (close(fd) && !code)
        code = errno;
    if (code)
        unlink(temp);
    return code;
}

bw_status bw_file_write_atomic(const char *path, const bw_slice *slices, size_t count, bw_error *err)
{
    if (!path || (count && !slices))
        return bw_fail(err, BW_INVALID_ARGUMENT, "bw_file_write_atomic: no path or no slices, expected both");
    if (!*path)
        return bw_fail(err, BW_INVALID_ARGUMENT, "the output's name is empty, expected the name of a file to write");
    struct stat st;
    mode_t mode = 0666;
    char real[PATH_MAX];
    if (stat(path, &st) == 0) {
        if (S_ISDIR(st.st_mode))
            return bw_fail(err, BW_INVALID_ARGUMENT, "%s: is a directory, expected the name of a file to write", path);
        if (!S_ISREG(st.st_mode)) {
            /* /dev/stdout, a pipe: there is nothing to keep whole, and renaming over a device would destroy it. */
            int fd = open(path, O_WRONLY | O_CLOEXEC);
            if (fd < 0)
                return bw_fail_errno(err, "open", path, errno);
            int code = write_slices(fd, slices, count);
            if (close(fd) && !code)
                code = errno;
            return code ? bw_fail_errno(err, "write", path, code) : BW_OK;
        }
        mode = st.st_mode & 0777;
        if (!realpath(path, real)) /* a symbolic link stays one */
            return bw_fail_errno(err, "write", path, errno);
    } else if (strlen(path) >= sizeof real) {
        return bw_fail_errno(err, "write", path, ENAMETOOLONG);
    } else {
        strcpy(real, path);
    }
    char dir_buffer[PATH_MAX], temp[PATH_MAX];
    strcpy(dir_buffer, real);
    const char *dir = dirname(dir_buffer);
    int code = write_temporary(dir, temp, sizeof temp, mode, slices, count);
    if (code)
        return bw_fail_errno(err, "write", path, code);
    if (rename(temp, real)) {
        code = errno;
        unlink(temp);
        return bw_fail_errno(err, "write", path, code);
    }
    /* The rename itself reaches the disk with the directory. The file is complete either way, so this cannot fail it.
     */
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)fsync(fd);
        close(fd);
    }
    return BW_OK;
}

/* --- hashes, memory --------------------------------------------------------------------------------------------- */

void bw_sha256(const void *bytes, size_t size, uint8_t digest[32])
{
    unsigned n = 0;
    if (EVP_Digest(size ? bytes : "", size, digest, &n, EVP_sha256(), NULL) != 1 || n != 32) {
        /* Only when libcrypto is broken or out of memory. Any digest made up here might pass for a check. */
        bw_log(BW_LOG_ERROR, "base", "SHA-256 of %zu bytes failed in libcrypto", size);
        abort();
    }
}

void bw_sha256_hex(const void *bytes, size_t size, char hex[65])
{
    static const char digits[] = "0123456789abcdef";
    uint8_t digest[32];
    bw_sha256(bytes, size, digest);
    for (int i = 0; i < 32; i++) {
        hex[2 * i] = digits[digest[i] >> 4];
        hex[2 * i + 1] = digits[digest[i] & 15];
    }
    hex[64] = 0;
}

void *bw_aligned_zalloc(size_t size)
{
    if (size > PTRDIFF_MAX - 63)
        return NULL;
    size = size ? (size + 63) & ~(size_t)63 : 64;
    void *p = aligned_alloc(64, size);
    if (p)
        memset(p, 0, size);
    return p;
}
