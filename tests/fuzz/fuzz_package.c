/* SPDX-License-Identifier: Apache-2.0 */
/* Packages from hostile bytes: the input once as the whole archive, once as the manifest of a well-formed one (hashes
 * would else keep a fuzzer from ever getting behind the manifest). */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "host/package.h"
#include "host/tar.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile uint8_t touched;

static void parse(const uint8_t *bytes, size_t size)
{
    void *copy = NULL;
    if (posix_memalign(&copy, 64, size ? size : 1))
        return;
    memcpy(copy, bytes, size);
    bw_package *pkg;
    bw_error err;
    if (!bw_package_parse(copy, size, &pkg, &err)) {
        for (size_t i = 0; i < bw_package_section_count(pkg); i++) {
            const void *section;
            size_t n;
            if (bw_package_section(pkg, bw_package_section_name(pkg, i), &section, &n, &err))
                abort();
            uint8_t sum = 0;
            for (size_t k = 0; k < n; k++)
                sum ^= ((const uint8_t *)section)[k];
            touched = sum;
        }
        bw_package_close(pkg);
    }
    free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    parse(data, size);
    static const char names[2][4] = {"a", "b/c"};
    size_t padded = (size + BW_TAR_BLOCK - 1) / BW_TAR_BLOCK * BW_TAR_BLOCK;
    size_t total = BW_TAR_BLOCK + padded + 2 * 2 * BW_TAR_BLOCK + 2 * BW_TAR_BLOCK;
    uint8_t *archive = calloc(1, total);
    if (!archive)
        return 0;
    uint8_t *at = archive;
    bw_tar_header("manifest.json", size, at);
    memcpy(at + BW_TAR_BLOCK, data, size);
    at += BW_TAR_BLOCK + padded;
    for (int i = 0; i < 2; i++) {
        bw_tar_header(names[i], 3, at);
        memcpy(at + BW_TAR_BLOCK, "abc", 3);
        at += 2 * BW_TAR_BLOCK;
    }
    parse(archive, total);
    free(archive);
    return 0;
}
