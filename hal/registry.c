/* SPDX-License-Identifier: Apache-2.0 */
/* Backends: registration, and plug-ins found beside the program. */
#include <ctype.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hal/base.h"
#include "hal/internal.h"

#define BACKENDS_MAX 16
#define DIRS_MAX     16
#define NAME_MAX_LEN 31

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const bw_backend *backends[BACKENDS_MAX];
static unsigned backend_count;
/* Loading a plug-in twice at once would register it twice. Held across dlopen; never taken inside `lock`. */
static pthread_mutex_t load_lock = PTHREAD_MUTEX_INITIALIZER;

/* Plug-ins of the Blockwave sources: reported as absent where nobody installed them. */
static const struct {
    const char *name, *libraries;
} known_plugins[] = {{"opencl", " (Debian: apt-get install ocl-icd-libopencl1)"},
                     {"xrt", " (Debian: apt-get install libxrt1)"}};
#define KNOWN_PLUGINS (sizeof known_plugins / sizeof *known_plugins)

static int name_ok(const char *name)
{
    size_t n = name ? strlen(name) : 0;
    if (n == 0 || n > NAME_MAX_LEN)
        return 0;
    for (size_t i = 0; i < n; i++)
        if (!((name[i] >= 'a' && name[i] <= 'z') || (name[i] >= '0' && name[i] <= '9') || name[i] == '-' ||
              name[i] == '_'))
            return 0;
    return 1;
}

static const char *missing_slot(const bw_backend *b)
{
#define SLOT(s)                                                                                                        \
    if (!b->s)                                                                                                         \
        return #s;
    SLOT(enumerate)
    SLOT(open)
    SLOT(close)
    SLOT(info)
    SLOT(load_bitstream)
    SLOT(bitstream_kind)
    SLOT(image_load)
    SLOT(image_release)
    SLOT(run)
    SLOT(reset)
#undef SLOT
    return NULL;
}

bw_status bw_backend_register(const bw_backend *backend, bw_error *err)
{
    if (!backend)
        return bw_fail(err, BW_INVALID_ARGUMENT, "bw_backend_register: backend is NULL");
    if (backend->abi_version != BW_BACKEND_ABI)
        return bw_fail(err, BW_VERSION_MISMATCH,
                       "backend has ABI version %u, this program expects %u: rebuild the plug-in against its headers",
                       backend->abi_version, BW_BACKEND_ABI);
    if (backend->struct_size < BW_BACKEND_SIZE_MIN)
        return bw_fail(err, BW_VERSION_MISMATCH,
                       "backend struct has %u bytes, this program expects at least %zu: rebuild the plug-in",
                       backend->struct_size, (size_t)BW_BACKEND_SIZE_MIN);
    if (!name_ok(backend->name))
        return bw_fail(err, BW_INVALID_ARGUMENT,
                       "backend name '%s' is no URI scheme, expected 1 to %d characters of a-z 0-9 - _",
                       backend->name ? backend->name : "(null)", NAME_MAX_LEN);
    const char *slot = missing_slot(backend);
    if (slot)
        return bw_fail(err, BW_INVALID_ARGUMENT, "backend '%s': the required slot '%s' is NULL", backend->name, slot);
    bw_status status = BW_OK;
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < backend_count && !status; i++)
        if (strcmp(backends[i]->name, backend->name) == 0)
            status = bw_fail(err, BW_ALREADY_EXISTS, "backend '%s' is already registered", backend->name);
    if (!status && backend_count == BACKENDS_MAX)
        status = bw_fail(err, BW_EXHAUSTED, "backend '%s': %d backends are registered, there is room for no more",
                         backend->name, BACKENDS_MAX);
    if (!status)
        backends[backend_count++] = backend;
    pthread_mutex_unlock(&lock);
    return status;
}

const bw_backend *bw_backend_at(unsigned index)
{
    pthread_mutex_lock(&lock);
    const bw_backend *b = index < backend_count ? backends[index] : NULL;
    pthread_mutex_unlock(&lock);
    return b;
}

static const bw_backend *registered(const char *name)
{
    const bw_backend *b;
    for (unsigned i = 0; (b = bw_backend_at(i)); i++)
        if (strcmp(b->name, name) == 0)
            return b;
    return NULL;
}

/* --- plug-ins --------------------------------------------------------------------------------------------------- */

typedef struct plugin_dirs {
    unsigned count;
    char path[DIRS_MAX][PATH_MAX];
} plugin_dirs;

static void add_dir(plugin_dirs *dirs, const char *path, size_t length)
{
    if (length && length < PATH_MAX && dirs->count < DIRS_MAX) {
        memcpy(dirs->path[dirs->count], path, length);
        dirs->path[dirs->count++][length] = 0;
    }
}

/* BW_PLUGIN_PATH first, then beside the program. NULL when out of memory. */
static plugin_dirs *find_dirs(void)
{
    plugin_dirs *dirs = malloc(sizeof *dirs);
    if (!dirs)
        return NULL;
    dirs->count = 0;
    const char *env = secure_getenv("BW_PLUGIN_PATH");
    while (env && *env) {
        size_t n = strcspn(env, ":");
        add_dir(dirs, env, n);
        env += n + (env[n] == ':');
    }
    char exe[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (n > 0) {
        exe[n] = 0;
        for (int up = 0; up < 2; up++) { /* the program's name, then its bin/ */
            char *slash = strrchr(exe, '/');
            if (slash)
                *slash = 0;
        }
        char path[PATH_MAX + 32];
        int m = snprintf(path, sizeof path, "%s/lib", exe);
        add_dir(dirs, path, (size_t)m);
        m = snprintf(path, sizeof path, "%s/lib/blockwave", exe);
        add_dir(dirs, path, (size_t)m);
    }
    return dirs;
}

static bw_status load_file(const char *file, const char *name, bw_error *err)
{
    void *so = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!so) {
        const char *why = dlerror(), *remedy = "";
        for (unsigned i = 0; i < KNOWN_PLUGINS; i++)
            if (strcmp(known_plugins[i].name, name) == 0)
                remedy = known_plugins[i].libraries;
        return bw_fail(err, BW_UNSUPPORTED, "%s: install what it needs%s", why, remedy);
    }
    void *symbol = dlsym(so, BW_BACKEND_ENTRY);
    if (!symbol) {
        dlclose(so);
        return bw_fail(err, BW_CORRUPT, "%s: exports no symbol %s, it is no Blockwave plug-in", file, BW_BACKEND_ENTRY);
    }
    bw_backend_entry_fn entry;
    memcpy(&entry, &symbol, sizeof entry); /* ISO C has no cast from object to function pointers */
    const bw_backend *backend = entry();
    bw_status status = BW_OK;
    /* The name is behind the version: it may be read only when the version is ours. */
    if (backend && backend->abi_version == BW_BACKEND_ABI && backend->struct_size >= BW_BACKEND_SIZE_MIN &&
        backend->name && strcmp(backend->name, name) != 0)
        status = bw_fail(err, BW_INVALID_ARGUMENT, "the backend calls itself '%s', expected '%s' as in the file's name",
                         backend->name, name);
    if (!status)
        status = bw_backend_register(backend, err);
    if (status) {
        bw_fail_context(err, status, "%s", file);
        dlclose(so);
    }
    return status; /* a used plug-in stays loaded: its devices' threads run in it */
}

/* BW_NOT_FOUND if no directory has it; else the reason why it cannot be used. load_lock is held. */
static bw_status load_plugin(const plugin_dirs *dirs, const char *name, bw_error *err)
{
    for (unsigned i = 0; i < dirs->count; i++) {
        char file[PATH_MAX + 64];
        snprintf(file, sizeof file, "%s/libbw_hal_%s.so", dirs->path[i], name);
        if (access(file, F_OK) == 0)
            return load_file(file, name, err);
    }
    char looked[256] = "";
    for (unsigned i = 0, at = 0; i < dirs->count && at < sizeof looked; i++)
        at += (unsigned)snprintf(looked + at, sizeof looked - at, "%s%s", i ? ":" : "", dirs->path[i]);
    return bw_fail(err, BW_NOT_FOUND, "plug-in libbw_hal_%s.so is not installed (looked in %s)", name, looked);
}

static bw_status load_once(const plugin_dirs *dirs, const char *name, bw_error *err)
{
    pthread_mutex_lock(&load_lock);
    bw_status status = registered(name) ? BW_OK : load_plugin(dirs, name, err);
    pthread_mutex_unlock(&load_lock);
    return status;
}

typedef void (*absent_fn)(const char *backend, const char *reason, void *user);

static void try_plugin(const plugin_dirs *dirs, const char *name, absent_fn absent, void *user)
{
    bw_error err;
    if (load_once(dirs, name, &err)) {
        bw_log(BW_LOG_INFO, "hal", "plug-in %s: %s", name, err.message);
        if (absent)
            absent(name, err.message, user);
    }
}

void bw_plugins_load_all(absent_fn absent, void *user)
{
    plugin_dirs *dirs = find_dirs();
    if (!dirs)
        return;
    char seen[32][NAME_MAX_LEN + 1];
    unsigned seen_count = 0;
    for (unsigned i = 0; i < KNOWN_PLUGINS; i++) {
        snprintf(seen[seen_count++], sizeof seen[0], "%s", known_plugins[i].name);
        try_plugin(dirs, known_plugins[i].name, absent, user);
    }
    for (unsigned i = 0; i < dirs->count; i++) {
        DIR *d = opendir(dirs->path[i]);
        if (!d)
            continue;
        for (struct dirent *e; (e = readdir(d));) {
            static const char prefix[] = "libbw_hal_", suffix[] = ".so";
            size_t n = strlen(e->d_name), fixed = sizeof prefix - 1 + sizeof suffix - 1;
            if (n <= fixed || n - fixed > NAME_MAX_LEN || strncmp(e->d_name, prefix, sizeof prefix - 1) != 0 ||
                strcmp(e->d_name + n - (sizeof suffix - 1), suffix) != 0)
                continue;
            char name[NAME_MAX_LEN + 1];
            memcpy(name, e->d_name + sizeof prefix - 1, n - fixed);
            name[n - fixed] = 0;
            unsigned k = 0;
            while (k < seen_count && strcmp(seen[k], name) != 0)
                k++;
            if (!name_ok(name) || k < seen_count || seen_count == sizeof seen / sizeof *seen)
                continue;
            strcpy(seen[seen_count++], name);
            try_plugin(dirs, name, absent, user);
        }
        closedir(d);
    }
    free(dirs);
}

bw_status bw_backend_find(const char *name, const bw_backend **backend, bw_error *err)
{
    *backend = registered(name);
    if (*backend)
        return BW_OK;
    bw_error why;
    plugin_dirs *dirs = name_ok(name) ? find_dirs() : NULL;
    bw_status status = dirs ? load_once(dirs, name, &why) : BW_NOT_FOUND;
    free(dirs);
    if (!status) {
        *backend = registered(name);
        return BW_OK;
    }
    char known[256] = "none";
    const bw_backend *b;
    for (unsigned i = 0, at = 0; (b = bw_backend_at(i)) && at < sizeof known; i++)
        at += (unsigned)snprintf(known + at, sizeof known - at, "%s%s", i ? ", " : "", b->name);
    if (!dirs)
        return bw_fail(err, BW_NOT_FOUND, "there is no backend '%s', the known ones are: %s", name, known);
    return bw_fail(err, BW_NOT_FOUND, "backend '%s' cannot be used: %s; the known ones are: %s", name, why.message,
                   known);
}

/* --- enumeration ------------------------------------------------------------------------------------------------ */

bw_status bw_device_enumerate(int (*each)(const bw_device_info *info, void *user), absent_fn absent, void *user,
                              bw_error *err)
{
    if (!each)
        return bw_fail(err, BW_INVALID_ARGUMENT, "bw_device_enumerate: each is NULL, expected a function");
    bw_plugins_load_all(absent, user);
    const bw_backend *b;
    for (unsigned i = 0; (b = bw_backend_at(i)); i++) {
        for (unsigned k = 0;; k++) {
            bw_device_info info;
            memset(&info, 0, sizeof info);
            bw_error why;
            why.message[0] = 0;
            bw_status status = b->enumerate(k, &info, &why);
            if (status && status != BW_NOT_FOUND && absent)
                absent(b->name, why.message, user);
            if (status)
                break;
            if (each(&info, user))
                return BW_OK;
        }
    }
    return BW_OK;
}

/* --- targets ---------------------------------------------------------------------------------------------------- */

bw_status bw_target_parse(const char *target, char *name, size_t name_size,
                          bw_status (*option)(const char *key, const char *value, void *user, bw_error *err),
                          void *user, bw_error *err)
{
    size_t n = strcspn(target, "?");
    if (n >= name_size)
        return bw_fail(err, BW_INVALID_ARGUMENT, "target '%s': the name is longer than %zu characters", target,
                       name_size - 1);
    memcpy(name, target, n);
    name[n] = 0;
    const char *p = target + n;
    while (*p == '?' || *p == '&') {
        p++;
        size_t length = strcspn(p, "&");
        size_t equal = strcspn(p, "=&");
        char key[32], value[96];
        if (equal == 0 || equal + 1 >= length || equal >= sizeof key || length - equal - 1 >= sizeof value)
            return bw_fail(err, BW_INVALID_ARGUMENT, "option '%.*s' is malformed, expected KEY=VALUE", (int)length, p);
        memcpy(key, p, equal);
        key[equal] = 0;
        memcpy(value, p + equal + 1, length - equal - 1);
        value[length - equal - 1] = 0;
        bw_status status = option(key, value, user, err);
        if (status)
            return status;
        p += length;
    }
    return BW_OK;
}
