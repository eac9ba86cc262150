/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Program binaries on disk: $BW_CACHE_DIR, else $XDG_CACHE_HOME/blockwave, else ~/.cache/blockwave. A file is named by
 * what it belongs to and checked against it and its own checksum; whatever does not fit is built again. It is machine
 * code: only a file of this user (or root) that others cannot write is taken.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hal/base.h"
#include "hal/plugins/opencl/opencl.h"

#define BINARY_MAX (256u << 20)

/* 0: there is no place for a cache. */
static int cache_dir(char *path, size_t size)
{
    const char *own = secure_getenv("BW_CACHE_DIR"), *xdg = secure_getenv("XDG_CACHE_HOME");
    const char *home = secure_getenv("HOME");
    int n = 0;
    if (own)
        n = snprintf(path, size, "%s", own);
    else if (xdg && xdg[0] == '/')
        n = snprintf(path, size, "%s/blockwave", xdg);
    else if (home && home[0] == '/')
        n = snprintf(path, size, "%s/.cache/blockwave", home);
    return n > 0 && (size_t)n < size;
}

static int cache_path(const uint8_t device[32], const uint8_t source[32], char *path, size_t size)
{
    char dir[PATH_MAX], hex[65];
    uint8_t both[64];
    if (!cache_dir(dir, sizeof dir))
        return 0;
    memcpy(both, device, 32);
    memcpy(both + 32, source, 32);
    bw_sha256_hex(both, sizeof both, hex);
    int n = snprintf(path, size, "%s/opencl-%s.bin", dir, hex);
    return n > 0 && (size_t)n < size;
}

static const char *refused(const char *path, const bw_cl_binary_header *h, size_t size, const uint8_t device[32],
                           const uint8_t source[32])
{
    struct stat st;
    uint8_t digest[32];
    if (stat(path, &st) || (st.st_uid != geteuid() && st.st_uid != 0) || (st.st_mode & S_IWOTH))
        return "it belongs to somebody else, or others may write it";
    if (size < sizeof *h || memcmp(h->magic, BW_CL_BINARY_MAGIC, sizeof h->magic) != 0)
        return "it is no program binary";
    if (memcmp(h->device, device, 32) != 0 || memcmp(h->source, source, 32) != 0)
        return "it is of another device, driver or source";
    bw_sha256(h + 1, size - sizeof *h, digest);
    if (h->size != size - sizeof *h || memcmp(h->payload, digest, 32) != 0)
        return "it is damaged";
    return NULL;
}

int bw_cl_cache_read(const uint8_t device[32], const uint8_t source[32], void **binary, size_t *size)
{
    char path[PATH_MAX + 128];
    void *bytes;
    size_t file_size;
    bw_error why;
    *binary = NULL;
    if (!cache_path(device, source, path, sizeof path) || access(path, R_OK) != 0)
        return 0;
    if (bw_file_read(path, BINARY_MAX, &bytes, &file_size, &why)) {
        bw_log(BW_LOG_WARN, "opencl", "cache: %s: built again", why.message);
        return 0;
    }
    const char *reason = refused(path, bytes, file_size, device, source);
    if (reason) {
        bw_log(BW_LOG_WARN, "opencl", "cache: %s is not used: %s: built again", path, reason);
        free(bytes);
        return 0;
    }
    *size = file_size - sizeof(bw_cl_binary_header);
    memmove(bytes, (char *)bytes + sizeof(bw_cl_binary_header), *size);
    *binary = bytes;
    return 1;
}

static bw_status make_dirs(const char *path, bw_error *err)
{
    char part[PATH_MAX];
    snprintf(part, sizeof part, "%s", path);
    for (char *p = part + 1;; p++) {
        if (*p && *p != '/')
            continue;
        const char end = *p;
        *p = 0;
        if (mkdir(part, 0700) != 0 && errno != EEXIST)
            return bw_fail_errno(err, "make", part, errno);
        if (!end)
            return BW_OK;
        *p = end;
    }
}

void bw_cl_cache_write(const uint8_t device[32], const uint8_t source[32], const void *binary, size_t size)
{
    static atomic_int warned;
    char dir[PATH_MAX], path[PATH_MAX + 128];
    bw_error why;
    if (!cache_dir(dir, sizeof dir) || !cache_path(device, source, path, sizeof path))
        return; /* no home: nowhere to keep it */
    bw_cl_binary_header h = {.size = size};
    memcpy(h.magic, BW_CL_BINARY_MAGIC, sizeof h.magic);
    memcpy(h.device, device, 32);
    memcpy(h.source, source, 32);
    bw_sha256(binary, size, h.payload);
    const bw_slice slices[] = {{&h, sizeof h}, {binary, size}};
    bw_status status = make_dirs(dir, &why);
    if (!status)
        status = bw_file_write_atomic(path, slices, 2, &why);
    if (status && !atomic_exchange(&warned, 1))
        bw_log(BW_LOG_WARN, "opencl", "no program cache, kernels are built at every start: %s", why.message);
}
