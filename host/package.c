/* SPDX-License-Identifier: Apache-2.0 */
/* Package reader and writer. The file format and the manifest's schema are in docs/package.md. */
#include "host/package.h"

#include <inttypes.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "hal/base.h"
#include "host/tar.h"

#define MANIFEST_NAME "manifest.json"
#define MANIFEST_MAX  (16u << 20)
#define FORMAT_NAME   "blockwave-package"
#define SECTIONS_MAX  4096u
/* The manifest's hash of itself: of its text with these 64 digits as zeros. Only a key of the outermost object follows
 * a line break and one blank. */
#define SELF_KEY   "manifest_sha256"
#define SELF_TEXT  "\n \"" SELF_KEY "\": \""
#define SELF_ZEROS "0000000000000000000000000000000000000000000000000000000000000000"

struct bw_package {
    const void *bytes;
    size_t size;
    int mapped; /* bytes are ours to unmap */
    char *path;
    json_t *manifest;
    bw_tar_member *sections;
    size_t count;
};

void bw_package_close(bw_package *pkg)
{
    if (!pkg)
        return;
    json_decref(pkg->manifest);
    free(pkg->sections);
    free(pkg->path);
    if (pkg->mapped)
        bw_file_unmap(pkg->bytes, pkg->size);
    free(pkg);
}

/* Where the 64 digits are in a manifest's text, or NULL. */
static char *find_self(const char *text, size_t size)
{
    const char *key = memmem(text, size, SELF_TEXT, strlen(SELF_TEXT));
    if (!key || size - (size_t)(key - text) < strlen(SELF_TEXT) + 64)
        return NULL;
    return (char *)key + strlen(SELF_TEXT);
}

static bw_status check_self(const json_t *manifest, const bw_tar_member *m, bw_error *err)
{
    const json_t *self = json_object_get(manifest, SELF_KEY);
    if (!self)
        return BW_OK;
    size_t size = (size_t)m->size;
    char *copy = malloc(size), *digits, hex[65], said[65] = "";
    if (!copy)
        return bw_fail(err, BW_NO_MEMORY, "no memory to check %s", MANIFEST_NAME);
    memcpy(copy, m->bytes, size);
    if ((digits = find_self(copy, size))) {
        memcpy(said, digits, 64);
        memcpy(digits, SELF_ZEROS, 64);
    }
    bw_sha256_hex(copy, size, hex);
    free(copy);
    if (strcmp(hex, said) != 0)
        return bw_fail(err, BW_CHECKSUM, "%s has SHA-256 %s, its \"%s\" is '%s': the file is damaged, copy it again",
                       MANIFEST_NAME, hex, SELF_KEY, said);
    return BW_OK;
}

static bw_status read_manifest(bw_package *pkg, const bw_tar_member *m, bw_error *err)
{
    if (strcmp(m->name, MANIFEST_NAME) != 0)
        return bw_fail(err, BW_CORRUPT, "first member is '%s', expected '%s': not a package", m->name, MANIFEST_NAME);
    if (m->size > MANIFEST_MAX)
        return bw_fail(err, BW_CORRUPT, "manifest has %" PRIu64 " bytes, at most %u are accepted", m->size,
                       MANIFEST_MAX);
    json_error_t why;
    pkg->manifest = json_loadb((const char *)m->bytes, (size_t)m->size, JSON_REJECT_DUPLICATES, &why);
    if (!pkg->manifest)
        return bw_fail(err, BW_CORRUPT, "%s line %d column %d: %s", MANIFEST_NAME, why.line, why.column, why.text);
    const char *format = json_string_value(json_object_get(pkg->manifest, "format"));
    if (!format || strcmp(format, FORMAT_NAME) != 0)
        return bw_fail(err, BW_CORRUPT, "%s: \"format\" is '%s', expected '%s': not a package", MANIFEST_NAME,
                       format ? format : "(absent)", FORMAT_NAME);
    bw_status status = check_self(pkg->manifest, m, err);
    if (status)
        return status;
    const json_t *version = json_object_get(pkg->manifest, "version");
    if (!json_is_integer(version))
        return bw_fail(err, BW_CORRUPT, "%s: \"version\" is not a number", MANIFEST_NAME);
    if (json_integer_value(version) != BW_PACKAGE_VERSION)
        return bw_fail(err, BW_VERSION_MISMATCH,
                       "package has version %" JSON_INTEGER_FORMAT ", this program reads version %d: rebuild the "
                       "package with 'blockwave quantize', or update this program",
                       json_integer_value(version), BW_PACKAGE_VERSION);
    if (!json_is_array(json_object_get(pkg->manifest, "sections")))
        return bw_fail(err, BW_CORRUPT, "%s: \"sections\" is not a list", MANIFEST_NAME);
    return BW_OK;
}

/* Member number `index` against its entry in the manifest's list: same name, size and hash. */
static bw_status check_section(const bw_package *pkg, size_t index, bw_error *err)
{
    const bw_tar_member *m = &pkg->sections[index];
    const json_t *entry = json_array_get(json_object_get(pkg->manifest, "sections"), index);
    const char *name = json_string_value(json_object_get(entry, "name"));
    const char *expected = json_string_value(json_object_get(entry, "sha256"));
    const json_t *size = json_object_get(entry, "size");
    if (!name || !expected || !json_is_integer(size))
        return bw_fail(err, BW_CORRUPT, "%s: section %zu lacks name, size or sha256", MANIFEST_NAME, index);
    if (strcmp(name, m->name) != 0)
        return bw_fail(err, BW_CORRUPT, "member %zu is '%s', the manifest lists '%s' there", index + 1, m->name, name);
    if (json_integer_value(size) < 0 || (uint64_t)json_integer_value(size) != m->size)
        return bw_fail(err, BW_CORRUPT, "section '%s' has %" PRIu64 " bytes, the manifest says %" JSON_INTEGER_FORMAT,
                       name, m->size, json_integer_value(size));
    char hex[65];
    bw_sha256_hex(m->bytes, (size_t)m->size, hex);
    if (strcmp(hex, expected) != 0)
        return bw_fail(err, BW_CHECKSUM,
                       "section '%s' has SHA-256 %s, the manifest says %.64s: the file is damaged, copy it again", name,
                       hex, expected);
    return BW_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static bw_status check_unique(const bw_package *pkg, bw_error *err)
{
    if (pkg->count == 0)
        return BW_OK;
    const char **names = malloc(pkg->count * sizeof *names);
    if (!names)
        return bw_fail(err, BW_NO_MEMORY, "no memory for %zu section names", pkg->count);
    for (size_t i = 0; i < pkg->count; i++)
        names[i] = pkg->sections[i].name;
    qsort(names, pkg->count, sizeof *names, by_name);
    bw_status status = BW_OK;
    for (size_t i = 0; i < pkg->count && !status; i++) {
        if (strcmp(names[i], MANIFEST_NAME) == 0 || (i > 0 && strcmp(names[i - 1], names[i]) == 0))
            status = bw_fail(err, BW_CORRUPT, "member '%s' occurs twice", names[i]);
    }
    free(names);
    return status;
}

static bw_status read_members(bw_package *pkg, bw_error *err)
{
    bw_tar_member member;
    uint64_t offset = 0;
    int end = 0;
    bw_status status = bw_tar_next(pkg->bytes, pkg->size, &offset, &member, &end, err);
    if (status)
        return status;
    if (end)
        return bw_fail(err, BW_CORRUPT, "the archive is empty, expected '%s'", MANIFEST_NAME);
    status = read_manifest(pkg, &member, err);
    if (status)
        return status;
    size_t listed = json_array_size(json_object_get(pkg->manifest, "sections"));
    if (listed > SECTIONS_MAX)
        return bw_fail(err, BW_CORRUPT, "%zu sections, at most %u are accepted", listed, SECTIONS_MAX);
    pkg->sections = calloc(listed + 1, sizeof *pkg->sections);
    if (!pkg->sections)
        return bw_fail(err, BW_NO_MEMORY, "no memory for %zu sections", listed);
    for (;;) {
        status = bw_tar_next(pkg->bytes, pkg->size, &offset, &member, &end, err);
        if (status)
            return status;
        if (end)
            break;
        if (pkg->count == listed)
            return bw_fail(err, BW_CORRUPT, "member '%s' is not in the manifest's list of %zu sections", member.name,
                           listed);
        pkg->sections[pkg->count++] = member;
    }
    if (pkg->count != listed)
        return bw_fail(err, BW_CORRUPT, "the manifest lists %zu sections, the archive has %zu", listed, pkg->count);
    status = check_unique(pkg, err);
    for (size_t i = 0; i < pkg->count && !status; i++)
        status = check_section(pkg, i, err);
    return status;
}

bw_status bw_package_parse(const void *bytes, size_t size, bw_package **out, bw_error *err)
{
    *out = NULL;
    if ((uintptr_t)bytes % 64 != 0)
        return bw_fail(err, BW_INVALID_ARGUMENT, "package bytes at %p are not 64-byte aligned", bytes);
    bw_package *pkg = calloc(1, sizeof *pkg);
    if (!pkg)
        return bw_fail(err, BW_NO_MEMORY, "no memory for a package");
    pkg->bytes = bytes;
    pkg->size = size;
    pkg->path = strdup("(memory)");
    bw_status status = pkg->path ? read_members(pkg, err) : bw_fail(err, BW_NO_MEMORY, "no memory for a package");
    if (status) {
        bw_package_close(pkg);
        return status;
    }
    *out = pkg;
    return BW_OK;
}

bw_status bw_package_open(const char *path, bw_package **out, bw_error *err)
{
    *out = NULL;
    const void *bytes;
    size_t size;
    bw_status status = bw_file_map(path, &bytes, &size, err);
    if (status)
        return status;
    char *copy = strdup(path);
    if (!copy) {
        bw_file_unmap(bytes, size);
        return bw_fail(err, BW_NO_MEMORY, "%s: no memory for a package", path);
    }
    /* Everything is hashed once, front to back: let the kernel map it in large steps. */
    if (size)
        (void)madvise((void *)bytes, size, MADV_WILLNEED);
    bw_package *pkg;
    status = bw_package_parse(bytes, size, &pkg, err);
    if (status) {
        free(copy);
        bw_file_unmap(bytes, size);
        return bw_fail_context(err, status, "%s", path);
    }
    free(pkg->path);
    pkg->path = copy;
    pkg->mapped = 1;
    *out = pkg;
    return BW_OK;
}

const json_t *bw_package_manifest(const bw_package *pkg)
{
    return pkg->manifest;
}

const char *bw_package_path(const bw_package *pkg)
{
    return pkg->path;
}

size_t bw_package_size(const bw_package *pkg)
{
    return pkg->size;
}

bw_status bw_package_section(const bw_package *pkg, const char *name, const void **bytes, size_t *size, bw_error *err)
{
    for (size_t i = 0; i < pkg->count; i++) {
        if (strcmp(pkg->sections[i].name, name) == 0) {
            *bytes = pkg->sections[i].bytes;
            *size = (size_t)pkg->sections[i].size;
            return BW_OK;
        }
    }
    return bw_fail(err, BW_NOT_FOUND, "package %s has no section '%s'", pkg->path, name);
}

size_t bw_package_section_count(const bw_package *pkg)
{
    return pkg->count;
}

const char *bw_package_section_name(const bw_package *pkg, size_t index)
{
    return index < pkg->count ? pkg->sections[index].name : NULL;
}

/* Sets "format", "version", "sections" and zeros for the hash in the manifest. */
static bw_status complete_manifest(json_t *manifest, const bw_package_section_in *sections, size_t count, bw_error *err)
{
    json_t *list = json_array();
    for (size_t i = 0; i < count; i++) {
        char hex[65];
        bw_sha256_hex(sections[i].bytes, sections[i].size, hex);
        json_t *entry =
            json_pack("{s:s, s:I, s:s}", "name", sections[i].name, "size", (json_int_t)sections[i].size, "sha256", hex);
        if (json_array_append_new(list, entry)) {
            json_decref(list);
            return bw_fail(err, BW_NO_MEMORY, "no memory for the manifest");
        }
    }
    if (!list || json_object_set_new(manifest, "sections", list) ||
        json_object_set_new(manifest, "format", json_string(FORMAT_NAME)) ||
        json_object_set_new(manifest, SELF_KEY, json_string(SELF_ZEROS)) ||
        json_object_set_new(manifest, "version", json_integer(BW_PACKAGE_VERSION)))
        return bw_fail(err, BW_NO_MEMORY, "no memory for the manifest");
    return BW_OK;
}

static bw_status check_write(const json_t *manifest, const bw_package_section_in *sections, size_t count, bw_error *err)
{
    if (!json_is_object(manifest))
        return bw_fail(err, BW_INVALID_ARGUMENT, "the manifest is not a JSON object");
    if (count > SECTIONS_MAX)
        return bw_fail(err, BW_INVALID_ARGUMENT, "%zu sections, at most %u fit a package", count, SECTIONS_MAX);
    for (size_t i = 0; i < count; i++) {
        if (!bw_tar_name_ok(sections[i].name) || strcmp(sections[i].name, MANIFEST_NAME) == 0)
            return bw_fail(err, BW_INVALID_ARGUMENT,
                           "section name '%s' is not a relative path of at most %u characters [A-Za-z0-9_./-]",
                           sections[i].name, BW_TAR_NAME_MAX);
        if (sections[i].size > BW_TAR_SIZE_MAX)
            return bw_fail(err, BW_INVALID_ARGUMENT, "section '%s' has %zu bytes, at most 8 GiB - 1 fit",
                           sections[i].name, sections[i].size);
        for (size_t j = 0; j < i; j++) {
            if (strcmp(sections[i].name, sections[j].name) == 0)
                return bw_fail(err, BW_INVALID_ARGUMENT, "section name '%s' is given twice", sections[i].name);
        }
    }
    return BW_OK;
}

static void add_member(const char *name, const void *bytes, size_t size, uint8_t *header, bw_slice *slices)
{
    static const uint8_t zeros[BW_TAR_BLOCK];
    bw_tar_header(name, size, header);
    slices[0] = (bw_slice){header, BW_TAR_BLOCK};
    slices[1] = (bw_slice){bytes, size};
    slices[2] = (bw_slice){zeros, (BW_TAR_BLOCK - size % BW_TAR_BLOCK) % BW_TAR_BLOCK};
}

bw_status bw_package_write(const char *path, json_t *manifest, const bw_package_section_in *sections, size_t count,
                           bw_error *err)
{
    bw_status status = check_write(manifest, sections, count, err);
    if (!status)
        status = complete_manifest(manifest, sections, count, err);
    if (status)
        return bw_fail_context(err, status, "%s", path);
    static const uint8_t end[2 * BW_TAR_BLOCK];
    size_t slice_count = 3 * (count + 1) + 1;
    /* 15 digits say every number that a decimal of 15 digits gave, and say it as short: 0.485. */
    char *text = json_dumps(manifest, JSON_SORT_KEYS | JSON_INDENT(1) | JSON_REAL_PRECISION(15));
    uint8_t *headers = malloc((count + 1) * BW_TAR_BLOCK);
    bw_slice *slices = malloc(slice_count * sizeof *slices);
    if (!text || !headers || !slices) {
        status = bw_fail(err, BW_NO_MEMORY, "%s: no memory for the manifest", path);
    } else if (strlen(text) > MANIFEST_MAX) {
        status = bw_fail(err, BW_INVALID_ARGUMENT, "%s: the manifest has %zu bytes, at most %u fit a package", path,
                         strlen(text), MANIFEST_MAX);
    } else {
        char hex[65];
        bw_sha256_hex(text, strlen(text), hex);
        memcpy(find_self(text, strlen(text)), hex, 64);
        add_member(MANIFEST_NAME, text, strlen(text), headers, slices);
        for (size_t i = 0; i < count; i++)
            add_member(sections[i].name, sections[i].bytes, sections[i].size, headers + (i + 1) * BW_TAR_BLOCK,
                       slices + 3 * (i + 1));
        slices[slice_count - 1] = (bw_slice){end, sizeof end};
        status = bw_file_write_atomic(path, slices, slice_count, err);
    }
    free(text);
    free(headers);
    free(slices);
    return status;
}
