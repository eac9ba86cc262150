/* SPDX-License-Identifier: Apache-2.0 */
/* Canonical ustar archives. Source: POSIX.1-2017, pax, "ustar Interchange Format". */
#include "host/tar.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum {
    AT_NAME = 0,
    AT_MODE = 100,
    AT_UID = 108,
    AT_GID = 116,
    AT_SIZE = 124,
    AT_MTIME = 136,
    AT_CHECKSUM = 148,
    AT_TYPE = 156,
    AT_MAGIC = 257,
    AT_DEVMAJOR = 329,
    AT_DEVMINOR = 337
};

int bw_tar_name_ok(const char *name)
{
    size_t n = strlen(name);
    if (n == 0 || n > BW_TAR_NAME_MAX)
        return 0;
    size_t part = 0; /* length of the path part so far */
    int dots = 1;    /* the part has only dots */
    for (size_t i = 0; i <= n; i++) {
        char c = name[i];
        if (c == '/' || c == 0) {
            if (part == 0 || (dots && part <= 2))
                return 0;
            part = 0;
            dots = 1;
            continue;
        }
        int legal = (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' ||
                    c == '.' || c == '-';
        if (!legal)
            return 0;
        if (c != '.')
            dots = 0;
        part++;
    }
    return 1;
}

static unsigned checksum(const uint8_t *h)
{
    unsigned sum = 0;
    for (unsigned i = 0; i < BW_TAR_BLOCK; i++)
        sum += i >= AT_CHECKSUM && i < AT_CHECKSUM + 8 ? ' ' : h[i];
    return sum;
}

static void put_octal(uint8_t *field, unsigned digits, uint64_t value)
{
    for (unsigned i = digits; i-- > 0; value >>= 3)
        field[i] = (uint8_t)('0' + (value & 7));
}

void bw_tar_header(const char *name, uint64_t size, uint8_t header[BW_TAR_BLOCK])
{
    memset(header, 0, BW_TAR_BLOCK);
    memcpy(header + AT_NAME, name, strlen(name));
    put_octal(header + AT_MODE, 7, 0644);
    put_octal(header + AT_UID, 7, 0);
    put_octal(header + AT_GID, 7, 0);
    put_octal(header + AT_SIZE, 11, size);
    put_octal(header + AT_MTIME, 11, 0);
    header[AT_TYPE] = '0';
    memcpy(header + AT_MAGIC, "ustar\00000", 8);
    put_octal(header + AT_DEVMAJOR, 7, 0);
    put_octal(header + AT_DEVMINOR, 7, 0);
    put_octal(header + AT_CHECKSUM, 6, checksum(header));
    header[AT_CHECKSUM + 6] = 0;
    header[AT_CHECKSUM + 7] = ' ';
}

static int all_zero(const uint8_t *p, uint64_t n)
{
    return n == 0 || (p[0] == 0 && memcmp(p, p + 1, n - 1) == 0);
}

/* Octal digits, then one NUL or space. */
static int get_octal(const uint8_t *field, unsigned digits, uint64_t *value)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < digits; i++) {
        if (field[i] < '0' || field[i] > '7')
            return 0;
        v = v << 3 | (uint64_t)(field[i] - '0');
    }
    *value = v;
    return field[digits] == 0 || field[digits] == ' ';
}

bw_status bw_tar_next(const uint8_t *bytes, uint64_t size, uint64_t *offset, bw_tar_member *member, int *end,
                      bw_error *err)
{
    uint64_t at = *offset;
    *end = 0;
    if (at > size || size - at < 2 * BW_TAR_BLOCK)
        return bw_fail(err, BW_CORRUPT,
                       "archive ends at byte %" PRIu64 " without its closing zero blocks: truncated, copy it again",
                       size);
    const uint8_t *h = bytes + at;
    if (all_zero(h, BW_TAR_BLOCK)) {
        if (!all_zero(h, size - at))
            return bw_fail(err, BW_CORRUPT,
                           "data after the archive's end at byte %" PRIu64 ", expected zeros: damaged, copy it again",
                           at);
        *end = 1;
        return BW_OK;
    }
    uint64_t sum = 0, length = 0;
    if (!get_octal(h + AT_CHECKSUM, 6, &sum) || sum != checksum(h))
        return bw_fail(err, BW_CORRUPT,
                       "bad header checksum at byte %" PRIu64 ": damaged, copy it again, or not a package", at);
    memcpy(member->name, h + AT_NAME, BW_TAR_NAME_MAX);
    member->name[BW_TAR_NAME_MAX] = 0;
    if (h[AT_NAME + BW_TAR_NAME_MAX] != 0 || !bw_tar_name_ok(member->name))
        return bw_fail(err, BW_CORRUPT,
                       "illegal member name '%s' at byte %" PRIu64
                       ", expected a relative path of at most %u characters [A-Za-z0-9_./-]",
                       member->name, at, BW_TAR_NAME_MAX);
    if (!get_octal(h + AT_SIZE, 11, &length))
        return bw_fail(err, BW_CORRUPT, "member '%s': its size is not an octal number", member->name);
    uint8_t expected[BW_TAR_BLOCK];
    bw_tar_header(member->name, length, expected);
    if (memcmp(expected, h, BW_TAR_BLOCK) != 0)
        return bw_fail(err, BW_CORRUPT,
                       "member '%s': header is not a plain ustar file of owner 0, mode 0644, time 0: rebuild the "
                       "package with 'blockwave quantize'",
                       member->name);
    uint64_t room = size - at - BW_TAR_BLOCK;
    if (length > room)
        return bw_fail(err, BW_CORRUPT,
                       "member '%s' needs %" PRIu64 " bytes, the file has %" PRIu64 " left: truncated, copy it again",
                       member->name, length, room);
    uint64_t padded = (length + BW_TAR_BLOCK - 1) / BW_TAR_BLOCK * BW_TAR_BLOCK;
    if (padded > room || !all_zero(h + BW_TAR_BLOCK + length, padded - length))
        return bw_fail(err, BW_CORRUPT,
                       "member '%s': padding after its %" PRIu64 " bytes is cut or not zero: damaged, copy it again",
                       member->name, length);
    member->bytes = h + BW_TAR_BLOCK;
    member->size = length;
    *offset = at + BW_TAR_BLOCK + padded;
    return BW_OK;
}
