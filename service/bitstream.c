/* SPDX-License-Identifier: Apache-2.0 */
/* Bitstreams for the server's devices: see service/bitstream.h. */
#include "service/bitstream.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "hal/bitstream.h"
#include "hal/signature.h"

const char *bw_bitstream_device(const char *text, size_t *length)
{
    static const char scheme[] = "abcdefghijklmnopqrstuvwxyz0123456789-_";
    for (const char *at = strchr(text, '@'); at; at = strchr(at + 1, '@')) {
        const size_t n = strspn(at + 1, scheme);
        if (n && at[1 + n] == ':') {
            *length = (size_t)(at - text);
            return at + 1;
        }
    }
    *length = strlen(text);
    return NULL;
}

static bw_status load_on(bw_fleet *fleet, size_t device, const bw_bitstream *b, const void *bytes, size_t size,
                         const char *signer, bw_error *err)
{
    bw_device_info info;
    bw_status status = bw_device_load_bitstream(bw_fleet_device(fleet, device), bytes, size, err);
    if (!status)
        status = bw_fleet_keep_bitstream(fleet, device, bytes, size, err);
    if (!status)
        status = bw_device_info_get(bw_fleet_device(fleet, device), &info, err);
    if (!status)
        bw_log(BW_LOG_INFO, "serve", "device %s holds bitstream '%s' (%s)%s%s", info.uri, b->name, info.bitstream,
               *signer ? ", signed by " : "", signer);
    return status;
}

static bw_status load(const bw_bitstream *b, const void *bytes, size_t size, const char *uri, const char *signer,
                      bw_fleet *fleet, bw_error *err)
{
    const size_t device_count = bw_fleet_count(fleet);
    size_t loaded = 0;
    char parts[256] = "";
    for (size_t i = 0; i < device_count; i++) {
        bw_device_info info;
        bw_status status = bw_device_info_get(bw_fleet_device(fleet, i), &info, err);
        if (status)
            return status;
        const size_t at = strlen(parts);
        snprintf(parts + at, sizeof parts - at, "%s%s is a '%s'", at ? ", " : "", info.uri, info.part);
        if (uri ? strcmp(info.uri, uri) != 0 : strcmp(info.part, b->part) != 0 && device_count > 1)
            continue;
        status = load_on(fleet, i, b, bytes, size, signer, err);
        if (status)
            return status;
        loaded++;
    }
    if (loaded)
        return BW_OK;
    if (uri)
        return bw_fail(err, BW_NOT_FOUND, "there is no --device %s to load it onto: add one, or name another device",
                       uri);
    return bw_fail(err, BW_INCOMPATIBLE, "it is for part '%s', but %s: pick a bitstream for one of them", b->part,
                   parts);
}

bw_status bw_bitstream_load(const char *text, const char *trust_dir, int require_signed, bw_fleet *fleet, bw_error *err)
{
    size_t length, size = 0;
    const char *uri = bw_bitstream_device(text, &length);
    char *path = strndup(text, length), signer[BW_SIGNER_NAME] = "";
    bw_bitstream *b = calloc(1, sizeof *b);
    void *bytes = NULL;
    bw_status status = path && b ? BW_OK : bw_fail(err, BW_NO_MEMORY, "out of memory for a bitstream");
    if (!status)
        status = bw_file_read(path, BW_BITSTREAM_FILE_MAX, &bytes, &size, err);
    if (!status) {
        status = bw_signature_check(bytes, size, trust_dir, require_signed, signer, err);
        if (!status)
            status = bw_bitstream_parse(bytes, size, b, err);
        if (!status)
            status = load(b, bytes, size, uri, signer, fleet, err);
        if (status)
            bw_fail_context(err, status, "%s", path);
    }
    free(bytes);
    free(b);
    free(path);
    return status;
}
