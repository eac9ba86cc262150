/* SPDX-License-Identifier: Apache-2.0 */
/* ZIP's central directory. Source: PKWARE APPNOTE.TXT 6.3.10, sections 4.3 to 4.5. */
#include "host/npy_zip.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define SIG_LOCAL   0x04034b50u
#define SIG_CENTRAL 0x02014b50u
#define SIG_END     0x06054b50u
#define SIG_END64   0x06064b50u
#define SIG_LOCATOR 0x07064b50u

enum { LOCAL_SIZE = 30, CENTRAL_SIZE = 46, END_SIZE = 22, END64_SIZE = 56, LOCATOR_SIZE = 20 };

static unsigned get16(const uint8_t *p)
{
    return (unsigned)p[0] | (unsigned)p[1] << 8;
}

static uint32_t get32(const uint8_t *p)
{
    return get16(p) | (uint32_t)get16(p + 2) << 16;
}

static uint64_t get64(const uint8_t *p)
{
    return get32(p) | (uint64_t)get32(p + 4) << 32;
}

typedef struct directory {
    uint64_t offset, size, count;
} directory;

static bw_status find_directory(const uint8_t *bytes, size_t size, directory *d, bw_error *err)
{
    if (size < END_SIZE)
        return bw_fail(err, BW_CORRUPT, "%zu bytes are no ZIP archive", size);
    size_t at = size - END_SIZE, lowest = at > 65535 ? at - 65535 : 0;
    while (get32(bytes + at) != SIG_END || get16(bytes + at + 20) != size - at - END_SIZE) {
        if (at == lowest)
            return bw_fail(err, BW_CORRUPT, "no ZIP directory at the end: truncated, copy it again");
        at--;
    }
    const uint8_t *e = bytes + at;
    if (get16(e + 4) != 0 || get16(e + 6) != 0)
        return bw_fail(err, BW_UNSUPPORTED, "a ZIP archive in several volumes");
    d->count = get16(e + 10);
    d->size = get32(e + 12);
    d->offset = get32(e + 16);
    int large = d->count == 0xffff || d->size == 0xffffffffu || d->offset == 0xffffffffu;
    if (large && at >= LOCATOR_SIZE && get32(e - LOCATOR_SIZE) == SIG_LOCATOR) {
        uint64_t end64 = get64(e - LOCATOR_SIZE + 8);
        if (end64 > at || at - end64 < END64_SIZE || get32(bytes + end64) != SIG_END64)
            return bw_fail(err, BW_CORRUPT, "the ZIP64 directory is not where it should be");
        d->count = get64(bytes + end64 + 32);
        d->size = get64(bytes + end64 + 40);
        d->offset = get64(bytes + end64 + 48);
    }
    if (d->offset > at || d->size > at - d->offset)
        return bw_fail(err, BW_CORRUPT, "the ZIP directory lies outside of the file: truncated, copy it again");
    if (d->count > BW_ZIP_MEMBERS_MAX)
        return bw_fail(err, BW_UNSUPPORTED, "%" PRIu64 " members, at most %d are read", d->count, BW_ZIP_MEMBERS_MAX);
    return BW_OK;
}

/* Sizes and offset that did not fit 32 bits stand in an extra field, in this order, those only. */
static bw_status read_zip64(const uint8_t *extra, size_t length, bw_zip_member *m, uint64_t *offset, bw_error *err)
{
    uint64_t *wide[3];
    int n = 0;
    if (m->size == 0xffffffffu)
        wide[n++] = &m->size;
    if (m->packed_size == 0xffffffffu)
        wide[n++] = &m->packed_size;
    if (*offset == 0xffffffffu)
        wide[n++] = offset;
    if (n == 0)
        return BW_OK;
    while (length >= 4) {
        size_t field = get16(extra + 2);
        if (field > length - 4)
            break;
        if (get16(extra) == 1) {
            if (field < (size_t)n * 8)
                break;
            for (int i = 0; i < n; i++)
                *wide[i] = get64(extra + 4 + 8 * i);
            return BW_OK;
        }
        extra += 4 + field;
        length -= 4 + field;
    }
    return bw_fail(err, BW_CORRUPT, "member '%s' lacks its ZIP64 sizes", m->name);
}

static bw_status locate(const uint8_t *bytes, uint64_t limit, uint64_t offset, bw_zip_member *m, bw_error *err)
{
    if (offset > limit || limit - offset < LOCAL_SIZE || get32(bytes + offset) != SIG_LOCAL)
        return bw_fail(err, BW_CORRUPT, "member '%s' is not where the ZIP directory says", m->name);
    const uint8_t *local = bytes + offset;
    uint64_t start = offset + LOCAL_SIZE + get16(local + 26) + get16(local + 28);
    if (start > limit || m->packed_size > limit - start)
        return bw_fail(err, BW_CORRUPT, "member '%s' of %" PRIu64 " bytes does not fit in the file: truncated", m->name,
                       m->packed_size);
    if (!m->deflated && m->packed_size != m->size)
        return bw_fail(err, BW_CORRUPT, "member '%s' is stored, but has two sizes", m->name);
    m->data = bytes + start;
    return BW_OK;
}

/* One entry at *at of the directory; *at moves past it. */
static bw_status read_entry(const uint8_t *bytes, const directory *d, uint64_t *at, bw_zip_member *m, bw_error *err)
{
    uint64_t left = d->size - *at;
    const uint8_t *c = bytes + d->offset + *at;
    if (left < CENTRAL_SIZE || get32(c) != SIG_CENTRAL)
        return bw_fail(err, BW_CORRUPT, "the ZIP directory is damaged at byte %" PRIu64, d->offset + *at);
    size_t name = get16(c + 28), extra = get16(c + 30), comment = get16(c + 32);
    if (name + extra + comment > left - CENTRAL_SIZE)
        return bw_fail(err, BW_CORRUPT, "the ZIP directory is damaged at byte %" PRIu64, d->offset + *at);
    m->name = strndup((const char *)c + CENTRAL_SIZE, name);
    if (!m->name)
        return bw_fail(err, BW_NO_MEMORY, "no memory for a member's name");
    if (get16(c + 8) & 1)
        return bw_fail(err, BW_UNSUPPORTED, "member '%s' is encrypted", m->name);
    unsigned method = get16(c + 10);
    if (method != 0 && method != 8)
        return bw_fail(err, BW_UNSUPPORTED, "member '%s' has compression method %u, expected stored or deflated",
                       m->name, method);
    m->deflated = method == 8;
    m->crc = get32(c + 16);
    m->packed_size = get32(c + 20);
    m->size = get32(c + 24);
    uint64_t offset = get32(c + 42);
    bw_status status = read_zip64(c + CENTRAL_SIZE + name, extra, m, &offset, err);
    *at += CENTRAL_SIZE + name + extra + comment;
    return status ? status : locate(bytes, d->offset, offset, m, err);
}

void bw_zip_free(bw_zip_member *members, int count)
{
    for (int i = 0; members && i < count; i++)
        free(members[i].name);
    free(members);
}

bw_status bw_zip_list(const uint8_t *bytes, size_t size, bw_zip_member **out, int *count, bw_error *err)
{
    *out = NULL;
    *count = 0;
    directory d = {0};
    bw_status status = find_directory(bytes, size, &d, err);
    if (status)
        return status;
    bw_zip_member *members = calloc((size_t)d.count + 1, sizeof *members);
    if (!members)
        return bw_fail(err, BW_NO_MEMORY, "no memory for %" PRIu64 " members", d.count);
    uint64_t at = 0;
    for (uint64_t i = 0; i < d.count && !status; i++)
        status = read_entry(bytes, &d, &at, &members[i], err);
    if (status) {
        bw_zip_free(members, (int)d.count);
        return status;
    }
    *out = members;
    *count = (int)d.count;
    return BW_OK;
}
