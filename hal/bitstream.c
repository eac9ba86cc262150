/* SPDX-License-Identifier: Apache-2.0 */
/* The bitstream container: see hal/bitstream.h. */
#include "hal/bitstream.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "hal/signature.h"
#include "kernels/xclbin.h"

#define VERSION       1u
#define PREAMBLE      16u
#define JSON_SIZE_MAX (1u << 20)
#define UUID_AT       9u /* after {"uuid":" */

static const char magic[8] = {'B', 'W', 'B', 'I', 'T', 'S', '\r', '\n'};
static const char uuid_head[] = "{\"uuid\":\"";

static uint32_t get_u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void put_u32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static size_t align64(size_t n)
{
    return (n + 63) & ~(size_t)63;
}

/* --- offers ----------------------------------------------------------------------------------------------------- */

static bw_status get_u64(const json_t *object, const char *where, const char *key, uint64_t limit, uint64_t *out,
                         bw_error *err)
{
    const json_t *v = json_object_get(object, key);
    if (!json_is_integer(v) || json_integer_value(v) < 0 || (uint64_t)json_integer_value(v) > limit)
        return bw_fail(err, BW_CORRUPT, "%s: \"%s\" is missing or no integer in 0..%llu", where, key,
                       (unsigned long long)limit);
    *out = (uint64_t)json_integer_value(v);
    return BW_OK;
}

static int find_format(const char *name)
{
    const bw_format_traits *t = name ? bw_format_find(name) : NULL;
    return t ? (int)t->format : -1;
}

static int find_opcode(const char *name)
{
    for (unsigned op = 1; name && op < BW_OP_LIMIT; op++)
        if (strcmp(bw_opcode_name(op), name) == 0)
            return (int)op;
    return -1;
}

static bw_status get_names(const json_t *object, const char *where, const char *key, int (*find)(const char *name),
                           uint32_t *mask, bw_error *err)
{
    const json_t *list = json_object_get(object, key), *v;
    if (!json_is_array(list))
        return bw_fail(err, BW_CORRUPT, "%s: \"%s\" is missing or no list of names", where, key);
    size_t i;
    json_array_foreach(list, i, v)
    {
        if (!json_is_string(v))
            return bw_fail(err, BW_CORRUPT, "%s: \"%s\"[%zu] is no string", where, key, i);
        int bit = find(json_string_value(v));
        if (bit < 0)
            return bw_fail(err, BW_VERSION_MISMATCH,
                           "%s: \"%s\"[%zu] is '%.40s', which this version does not know: update Blockwave", where, key,
                           i, json_string_value(v));
        *mask |= 1u << bit;
    }
    return BW_OK;
}

bw_status bw_requirements_from_json(const json_t *object, const char *where, bw_requirements *out, bw_error *err)
{
    memset(out, 0, sizeof *out);
    if (!json_is_object(object))
        return bw_fail(err, BW_CORRUPT, "%s: missing or no JSON object", where);
    uint64_t version = 0;
    bw_status status = get_u64(object, where, "isa_version", UINT32_MAX, &version, err);
    out->isa_version = (uint32_t)version;
    if (!status)
        status = get_names(object, where, "formats", find_format, &out->formats, err);
    if (!status)
        status = get_names(object, where, "opcodes", find_opcode, &out->opcodes, err);
    if (!status)
        status = get_u64(object, where, "act_bytes", INT64_MAX, &out->act_bytes, err);
    if (!status)
        status = get_u64(object, where, "const_bytes", INT64_MAX, &out->const_bytes, err);
    const json_t *blocks = json_object_get(object, "blocks"), *v;
    if (!status && !json_is_array(blocks))
        status = bw_fail(err, BW_CORRUPT, "%s: \"blocks\" is missing or no list of integers", where);
    size_t i;
    json_array_foreach(blocks, i, v)
    {
        int k = 0;
        while (k < 4 && !(json_is_integer(v) && json_integer_value(v) == 16 << k))
            k++;
        if (k == 4 && !status)
            status = bw_fail(err, BW_CORRUPT, "%s: \"blocks\"[%zu] is none of 16, 32, 64, 128", where, i);
        else if (k < 4)
            out->blocks |= 1u << k;
    }
    return status;
}

json_t *bw_requirements_to_json(const bw_requirements *r)
{
    json_t *formats = json_array(), *opcodes = json_array(), *blocks = json_array();
    int bad = !formats || !opcodes || !blocks;
    for (unsigned f = 1; f < BW_FORMAT_LIMIT; f++) {
        const bw_format_traits *t = r->formats >> f & 1u ? bw_format_get((bw_format)f) : NULL;
        if (t)
            bad |= json_array_append_new(formats, json_string(t->name));
    }
    for (unsigned op = 1; op < BW_OP_LIMIT; op++)
        if (r->opcodes >> op & 1u)
            bad |= json_array_append_new(opcodes, json_string(bw_opcode_name(op)));
    for (unsigned k = 0; k < 4; k++)
        if (r->blocks >> k & 1u)
            bad |= json_array_append_new(blocks, json_integer(16 << k));
    json_t *object = json_object();
    bad |= json_object_set_new(object, "isa_version", json_integer(r->isa_version));
    bad |= json_object_set_new(object, "formats", formats);
    bad |= json_object_set_new(object, "opcodes", opcodes);
    bad |= json_object_set_new(object, "blocks", blocks);
    bad |= json_object_set_new(object, "act_bytes", json_integer((json_int_t)r->act_bytes));
    bad |= json_object_set_new(object, "const_bytes", json_integer((json_int_t)r->const_bytes));
    if (bad) {
        json_decref(object);
        return NULL;
    }
    return object;
}

/* --- UUID ------------------------------------------------------------------------------------------------------- */

/* RFC 9562 version 8: 122 bits of the digest. */
static void uuid_of(const void *bytes, size_t size, char text[BW_UUID_TEXT])
{
    uint8_t d[32];
    bw_sha256(bytes, size, d);
    d[6] = (uint8_t)((d[6] & 0x0f) | 0x80);
    d[8] = (uint8_t)((d[8] & 0x3f) | 0x80);
    snprintf(text, BW_UUID_TEXT, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", d[0], d[1],
             d[2], d[3], d[4], d[5], d[6], d[7], d[8], d[9], d[10], d[11], d[12], d[13], d[14], d[15]);
}

static int uuid_ok(const char *text)
{
    if (strlen(text) != BW_UUID_TEXT - 1)
        return 0;
    for (int i = 0; i < BW_UUID_TEXT - 1; i++)
        if (i == 8 || i == 13 || i == 18 || i == 23 ? text[i] != '-' : !strchr("0123456789abcdef", text[i]))
            return 0;
    return 1;
}

/* --- parse ------------------------------------------------------------------------------------------------------ */

static bw_status get_text(const json_t *object, const char *where, const char *key, char *out, size_t size,
                          bw_error *err)
{
    const json_t *v = json_object_get(object, key);
    size_t n = json_is_string(v) ? json_string_length(v) : 0;
    if (n == 0 || n >= size || strlen(json_string_value(v)) != n)
        return bw_fail(err, BW_CORRUPT, "%s: \"%s\" is missing or no string of 1 to %zu characters", where, key,
                       size - 1);
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)json_string_value(v)[i] < 0x20)
            return bw_fail(err, BW_CORRUPT, "%s: \"%s\" holds a control character", where, key);
    memcpy(out, json_string_value(v), n + 1);
    return BW_OK;
}

static bw_status parse_payload(const json_t *entry, unsigned index, const uint8_t *bytes, size_t size, size_t *end,
                               bw_bitstream_payload *p, bw_error *err)
{
    char where[64];
    snprintf(where, sizeof where, "bitstream: payloads[%u]", index);
    char sum[65], real[65];
    uint64_t offset = 0, length = 0;
    if (!json_is_object(entry))
        return bw_fail(err, BW_CORRUPT, "%s: no JSON object", where);
    bw_status status = get_text(entry, where, "kind", p->kind, sizeof p->kind, err);
    if (!status)
        status = get_text(entry, where, "sha256", sum, sizeof sum, err);
    if (!status)
        status = get_u64(entry, where, "offset", INT64_MAX, &offset, err);
    if (!status)
        status = get_u64(entry, where, "size", INT64_MAX, &length, err);
    if (status)
        return status;
    size_t expected = align64(*end);
    if (offset != expected)
        return bw_fail(err, BW_CORRUPT, "%s: \"offset\" is %llu, expected %zu, right after what stands before it",
                       where, (unsigned long long)offset, expected);
    if (length == 0 || offset > size || length > size - offset)
        return bw_fail(err, BW_CORRUPT, "%s: %llu bytes at %llu are not inside the file's %zu bytes: is it cut off?",
                       where, (unsigned long long)length, (unsigned long long)offset, size);
    p->bytes = bytes + offset;
    p->size = (size_t)length;
    bw_sha256_hex(p->bytes, p->size, real);
    if (strcmp(sum, real) != 0)
        return bw_fail(err, BW_CHECKSUM,
                       "%s ('%s'): SHA-256 is %.16s..., the header says %.16s...: the file is damaged", where, p->kind,
                       real, sum);
    *end = (size_t)(offset + length);
    return BW_OK;
}

static bw_status parse_header(const json_t *root, const uint8_t *bytes, size_t size, size_t header_end,
                              bw_bitstream *bits, bw_error *err)
{
    static const char where[] = "bitstream";
    bw_status status = get_text(root, where, "uuid", bits->uuid, sizeof bits->uuid, err);
    if (!status)
        status = get_text(root, where, "interface_id", bits->interface_id, sizeof bits->interface_id, err);
    if (!status)
        status = get_text(root, where, "part", bits->part, sizeof bits->part, err);
    if (!status)
        status = get_text(root, where, "name", bits->name, sizeof bits->name, err);
    if (!status && !uuid_ok(bits->interface_id))
        status = bw_fail(err, BW_CORRUPT, "bitstream: \"interface_id\" is '%s', expected a UUID in lower case",
                         bits->interface_id);
    if (!status)
        status = bw_requirements_from_json(json_object_get(root, "offers"), "bitstream: offers", &bits->offers, err);
    if (status)
        return status;
    const json_t *payloads = json_object_get(root, "payloads"), *entry;
    size_t count = json_array_size(payloads), i, end = header_end;
    if (count == 0 || count > BW_BITSTREAM_PAYLOADS_MAX)
        return bw_fail(err, BW_CORRUPT, "bitstream: \"payloads\" has %zu entries, expected 1 to %d", count,
                       BW_BITSTREAM_PAYLOADS_MAX);
    json_array_foreach(payloads, i, entry)
    {
        status = parse_payload(entry, (unsigned)i, bytes, size, &end, &bits->payloads[i], err);
        for (unsigned k = 0; k < i && !status; k++)
            if (strcmp(bits->payloads[k].kind, bits->payloads[i].kind) == 0)
                status = bw_fail(err, BW_CORRUPT, "bitstream: payloads[%u] and [%zu] are both of kind '%s'", k, i,
                                 bits->payloads[k].kind);
        if (status)
            return status;
        bits->payload_count = (unsigned)i + 1;
    }
    if (end != size)
        return bw_fail(err, BW_CORRUPT, "bitstream: %zu bytes follow the last payload, expected none", size - end);
    return BW_OK;
}

bw_status bw_bitstream_parse(const void *data, size_t size, bw_bitstream *bits, bw_error *err)
{
    const uint8_t *bytes = data;
    if (!bits || (!bytes && size))
        return bw_fail(err, BW_INVALID_ARGUMENT, "bw_bitstream_parse: a NULL argument");
    memset(bits, 0, sizeof *bits);
    size = bw_signed_content(bytes, size);
    if (size < PREAMBLE || memcmp(bytes, magic, sizeof magic) != 0)
        return bw_fail(err, BW_CORRUPT, "bitstream: %zu bytes do not start with the magic BWBITS: not a bitstream",
                       size);
    uint32_t version = get_u32(bytes + 8), json_size = get_u32(bytes + 12);
    if (version != VERSION)
        return bw_fail(err, BW_VERSION_MISMATCH, "bitstream: container version is %u, this program reads %u", version,
                       VERSION);
    if (json_size < UUID_AT + BW_UUID_TEXT || json_size > JSON_SIZE_MAX || json_size > size - PREAMBLE)
        return bw_fail(err, BW_CORRUPT, "bitstream: the header's size is %u, expected %u to %u inside the file's %zu",
                       json_size, UUID_AT + BW_UUID_TEXT, JSON_SIZE_MAX, size);
    const char *text = (const char *)bytes + PREAMBLE;
    char uuid[BW_UUID_TEXT], real[BW_UUID_TEXT];
    memcpy(uuid, text + UUID_AT, BW_UUID_TEXT - 1);
    uuid[BW_UUID_TEXT - 1] = 0;
    if (memcmp(text, uuid_head, UUID_AT) != 0 || !uuid_ok(uuid))
        return bw_fail(err, BW_CORRUPT, "bitstream: the header does not start with its UUID");
    size_t hashed = PREAMBLE + UUID_AT + BW_UUID_TEXT - 1;
    uuid_of(bytes + hashed, size - hashed, real);
    if (strcmp(uuid, real) != 0)
        return bw_fail(err, BW_CHECKSUM, "bitstream: its UUID is %s, its content gives %s: the file is damaged", uuid,
                       real);
    json_error_t je;
    json_t *root = json_loadb(text, json_size, JSON_REJECT_DUPLICATES, &je);
    if (!root)
        return bw_fail(err, BW_CORRUPT, "bitstream: the header is no JSON: %s at byte %d", je.text, je.position);
    bw_status status = parse_header(root, bytes, size, PREAMBLE + json_size, bits, err);
    json_decref(root);
    return status;
}

/* --- write ------------------------------------------------------------------------------------------------------ */

static size_t payload_start(const bw_bitstream *bits, unsigned index, size_t json_size)
{
    size_t at = PREAMBLE + json_size;
    for (unsigned i = 0; i < index; i++)
        at = align64(at) + bits->payloads[i].size;
    return align64(at);
}

/* The header with the offsets that follow from a header of json_size bytes. */
static char *dump_header(const bw_bitstream *bits, size_t json_size)
{
    json_t *payloads = json_array();
    int bad = !payloads;
    for (unsigned i = 0; i < bits->payload_count; i++) {
        const bw_bitstream_payload *p = &bits->payloads[i];
        char sum[65];
        bw_sha256_hex(p->bytes, p->size, sum);
        bad |= json_array_append_new(payloads, json_pack("{s:s, s:I, s:I, s:s}", "kind", p->kind, "offset",
                                                         (json_int_t)payload_start(bits, i, json_size), "size",
                                                         (json_int_t)p->size, "sha256", sum));
    }
    json_t *root = json_object();
    bad |= json_object_set_new(root, "uuid", json_string("00000000-0000-8000-8000-000000000000"));
    bad |= json_object_set_new(root, "interface_id", json_string(bits->interface_id));
    bad |= json_object_set_new(root, "part", json_string(bits->part));
    bad |= json_object_set_new(root, "name", json_string(bits->name));
    bad |= json_object_set_new(root, "offers", bw_requirements_to_json(&bits->offers));
    bad |= json_object_set_new(root, "payloads", payloads);
    char *text = bad ? NULL : json_dumps(root, JSON_COMPACT); /* members in the order above */
    json_decref(root);
    return text;
}

static bw_status check_write(const bw_bitstream *bits, bw_error *err)
{
    if (!bits->payload_count || bits->payload_count > BW_BITSTREAM_PAYLOADS_MAX)
        return bw_fail(err, BW_INVALID_ARGUMENT, "bitstream: it has %u payloads, expected 1 to %d", bits->payload_count,
                       BW_BITSTREAM_PAYLOADS_MAX);
    for (unsigned i = 0; i < bits->payload_count; i++)
        if (!bits->payloads[i].bytes || !bits->payloads[i].size)
            return bw_fail(err, BW_INVALID_ARGUMENT, "bitstream: payload %u is empty", i);
    return BW_OK;
}

bw_status bw_bitstream_write(bw_bitstream *bits, void **bytes, size_t *size, bw_error *err)
{
    if (!bits || !bytes || !size)
        return bw_fail(err, BW_INVALID_ARGUMENT, "bw_bitstream_write: a NULL argument");
    *bytes = NULL;
    *size = 0;
    bw_status status = check_write(bits, err);
    if (status)
        return status;
    /* The offsets stand in the header whose size they depend on: a few rounds settle it. */
    char *text = dump_header(bits, 0);
    for (size_t last = 0; text && strlen(text) != last;) {
        last = strlen(text);
        free(text);
        text = dump_header(bits, last);
    }
    if (!text)
        return bw_fail(err, BW_NO_MEMORY, "bitstream: no memory for its header, or a name is not UTF-8");
    size_t json_size = strlen(text);
    unsigned last = bits->payload_count - 1;
    size_t total = payload_start(bits, last, json_size) + bits->payloads[last].size;
    uint8_t *file = calloc(1, total);
    if (!file) {
        free(text);
        return bw_fail(err, BW_NO_MEMORY, "bitstream: no memory for its %zu bytes", total);
    }
    memcpy(file, magic, sizeof magic);
    put_u32(file + 8, VERSION);
    put_u32(file + 12, (uint32_t)json_size);
    memcpy(file + PREAMBLE, text, json_size);
    free(text);
    for (unsigned i = 0; i < bits->payload_count; i++)
        memcpy(file + payload_start(bits, i, json_size), bits->payloads[i].bytes, bits->payloads[i].size);
    size_t hashed = PREAMBLE + UUID_AT + BW_UUID_TEXT - 1;
    uuid_of(file + hashed, total - hashed, bits->uuid);
    memcpy(file + PREAMBLE + UUID_AT, bits->uuid, BW_UUID_TEXT - 1);
    /* What is written can be read: an illegal field of the caller's is found here, not on another machine. */
    bw_bitstream again;
    bw_error why;
    if (bw_bitstream_parse(file, total, &again, &why)) {
        free(file);
        return bw_fail(err, BW_INVALID_ARGUMENT, "%s", why.message);
    }
    *bytes = file;
    *size = total;
    return BW_OK;
}

bw_status bw_bitstream_of_xclbin(const void *bytes, size_t size, bw_bitstream *bits, bw_error *err)
{
    bw_xclbin x;
    memset(bits, 0, sizeof *bits);
    bw_status status = bw_xclbin_parse(bytes, size, &x, err);
    if (status)
        return status;
    snprintf(bits->interface_id, sizeof bits->interface_id, "%s", x.accelerator.interface_id);
    snprintf(bits->part, sizeof bits->part, "%s", x.accelerator.platform);
    snprintf(bits->name, sizeof bits->name, "%s", x.accelerator.name);
    bits->offers = x.accelerator.offers;
    bits->payload_count = 1;
    snprintf(bits->payloads[0].kind, sizeof bits->payloads[0].kind, "xclbin");
    bits->payloads[0].bytes = bytes;
    bits->payloads[0].size = size;
    return BW_OK;
}
