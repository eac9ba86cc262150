/* SPDX-License-Identifier: Apache-2.0 */
#include "hal/plugins/xrt/api.h"

#include <dlfcn.h>
#include <limits.h>
#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <version.h>

/* The number after .so is XRT's ABI version. */
#define LIBRARY "libxrt_coreutil.so.2"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bw_xrt_api loaded;
static int is_loaded;

/* The file behind the link says the version: libxrt_coreutil.so.2.13.0. */
static bw_status check_version(void *library, bw_xrt_api *api, bw_error *err)
{
    struct link_map *map = NULL;
    char path[PATH_MAX] = "";
    if (dlinfo(library, RTLD_DI_LINKMAP, &map) || !map || !realpath(map->l_name, path))
        snprintf(path, sizeof path, "%s", LIBRARY);
    const char *number = strstr(path, ".so.");
    if (!number || sscanf(number, ".so.%u.%u", &api->major, &api->minor) != 2)
        return bw_fail(err, BW_VERSION_MISMATCH, "%s: its name tells no version, expected " LIBRARY ".%d.0 or later",
                       path, XRT_MINOR(XRT_VERSION_CODE));
    if (api->major != XRT_MAJOR(XRT_VERSION_CODE) || api->minor < XRT_MINOR(XRT_VERSION_CODE))
        return bw_fail(err, BW_VERSION_MISMATCH,
                       "%s is XRT %u.%u, this plug-in was built for %d.%d: install that or a later 2.x", path,
                       api->major, api->minor, XRT_MAJOR(XRT_VERSION_CODE), XRT_MINOR(XRT_VERSION_CODE));
    return BW_OK;
}

static bw_status load(bw_error *err)
{
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return bw_fail(err, BW_UNSUPPORTED, "XRT cannot be loaded: %s (Debian: apt-get install libxrt1)", dlerror());
    bw_xrt_api api;
    memset(&api, 0, sizeof api);
    bw_status status = check_version(library, &api, err);
#define X(name)                                                                                                        \
    if (!status) {                                                                                                     \
        void *symbol = dlsym(library, #name);                                                                          \
        if (!symbol)                                                                                                   \
            status = bw_fail(err, BW_VERSION_MISMATCH, LIBRARY " %u.%u has no function " #name ": install XRT 2.13",   \
                             api.major, api.minor);                                                                    \
        memcpy(&api.name, &symbol, sizeof symbol);                                                                     \
    }
    BW_XRT_FUNCTIONS(X)
#undef X
    if (status) {
        dlclose(library);
        return status;
    }
    loaded = api;
    is_loaded = 1; /* it stays: XRT has threads of its own */
    return BW_OK;
}

bw_status bw_xrt_api_get(const bw_xrt_api **api, bw_error *err)
{
    pthread_mutex_lock(&lock);
    bw_status status = is_loaded ? BW_OK : load(err);
    pthread_mutex_unlock(&lock);
    *api = status ? NULL : &loaded;
    return status;
}
