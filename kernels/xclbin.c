/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/xclbin.h"

#if __has_include(<xclbin.h>)
#include <xclbin.h>

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SECTIONS_MAX 6u
#define TEXT_MAX     8192u

int bw_xclbin_available(void)
{
    return 1;
}

/* --- the sections' content ---------------------------------------------------------------------------------------- */

typedef struct text {
    char *bytes;
    size_t size;
} text;

static void put(text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put(text *t, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(t->bytes + t->size, TEXT_MAX - t->size, format, args);
    va_end(args);
    t->size += (size_t)n < TEXT_MAX - t->size ? (size_t)n : TEXT_MAX - 1 - t->size;
}

/* XRT takes the argument map and the register file's place from here. */
static void write_xml(const bw_accelerator *a, text *t)
{
    put(t, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<project name=\"blockwave\">\n");
    put(t, "  <platform vendor=\"blockwave\" boardid=\"%s\" name=\"%s\">\n", a->name, a->platform);
    put(t,
        "    <device name=\"fpga0\" fpgaDevice=\"blockwave\" addrWidth=\"0\">\n      <core name=\"OCL_REGION_0\" "
        "target=\"bitstream\" type=\"clc_region\" clockFreq=\"%uMHz\" numComputeUnits=\"1\">\n",
        BW_ACCEL_CLOCK_MHZ);
    put(t,
        "        <kernelClocks>\n          <clock port=\"KERNEL_CLK\" frequency=\"%u.000000MHz\"/>\n"
        "        </kernelClocks>\n",
        BW_ACCEL_CLOCK_MHZ);
    put(t,
        "        <kernel name=\"%s\" language=\"c\" type=\"pl\" hwControlProtocol=\"ap_ctrl_hs\" "
        "build=\"0x%016" PRIx64 "\">\n",
        BW_ACCEL_KERNEL, bw_accelerator_build(a));
    put(t, "          <port name=\"M_AXI\" mode=\"master\" range=\"0xFFFFFFFFFFFFFFFF\" dataWidth=\"512\" "
           "portType=\"addressable\" base=\"0x0\"/>\n");
    put(t,
        "          <port name=\"S_AXI_CONTROL\" mode=\"slave\" range=\"0x%x\" dataWidth=\"32\" "
        "portType=\"addressable\" base=\"0x0\"/>\n",
        BW_ACCEL_RANGE);
#define X(number, upper, argument, width, at, address)                                                                 \
    put(t,                                                                                                             \
        "          <arg name=\"%s\" addressQualifier=\"%d\" id=\"%d\" port=\"%s\" size=\"0x%x\" offset=\"0x%x\" "      \
        "hostOffset=\"0x0\" hostSize=\"0x%x\" type=\"%s\"/>\n",                                                        \
        #argument, address, number, (address) ? "M_AXI" : "S_AXI_CONTROL", width, at, width,                           \
        (address)      ? "void*"                                                                                       \
        : (width) == 8 ? "ulong"                                                                                       \
                       : "uint");
    BW_ACCEL_ARGS(X)
#undef X
    put(t,
        "          <instance name=\"%s\">\n            <addrRemap base=\"0x%x\" range=\"0x%x\" "
        "port=\"S_AXI_CONTROL\"/>\n          </instance>\n",
        BW_ACCEL_INSTANCE, BW_ACCEL_BASE, BW_ACCEL_RANGE);
    put(t, "        </kernel>\n      </core>\n    </device>\n  </platform>\n</project>\n");
}

/* What the driver reads; keys in the writing of xclbinutil. */
static void write_keys(const bw_accelerator *a, text *t)
{
    put(t, "{\"key_values\":[{\"key\":\"blockwave.name\",\"value\":\"%s\"}", a->name);
    put(t, ",{\"key\":\"blockwave.interface_id\",\"value\":\"%s\"}", a->interface_id);
    const struct {
        const char *key;
        uint64_t value;
    } numbers[] = {{"build", bw_accelerator_build(a)},    {"isa_version", a->offers.isa_version},
                   {"formats", a->offers.formats},        {"opcodes", a->offers.opcodes},
                   {"blocks", a->offers.blocks},          {"act_bytes", a->offers.act_bytes},
                   {"const_bytes", a->offers.const_bytes}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        put(t, ",{\"key\":\"blockwave.%s\",\"value\":\"0x%" PRIx64 "\"}", numbers[i].key, numbers[i].value);
    put(t, "]}");
}

static size_t mem_size(const bw_accelerator *a)
{
    return offsetof(struct mem_topology, m_mem_data) + a->bank_count * sizeof(struct mem_data);
}

static void write_mem(const bw_accelerator *a, unsigned char *to)
{
    struct mem_topology head = {.m_count = (int32_t)a->bank_count};
    memcpy(to, &head, offsetof(struct mem_topology, m_mem_data));
    for (unsigned i = 0; i < a->bank_count; i++) {
        struct mem_data bank = {.m_type = MEM_DDR4, .m_used = 1};
        bank.m_size = a->bank_bytes / 1024;
        bank.m_base_address = i * a->bank_bytes;
        snprintf((char *)bank.m_tag, sizeof bank.m_tag, "bank%u", i);
        memcpy(to + offsetof(struct mem_topology, m_mem_data) + i * sizeof bank, &bank, sizeof bank);
    }
}

static size_t ip_size(void)
{
    return offsetof(struct ip_layout, m_ip_data) + sizeof(struct ip_data);
}

static void write_ip(unsigned char *to)
{
    struct ip_layout layout;
    memset(&layout, 0, sizeof layout);
    layout.m_count = 1;
    layout.m_ip_data[0].m_type = IP_KERNEL;
    layout.m_ip_data[0].properties = AP_CTRL_HS << IP_CONTROL_SHIFT;
    layout.m_ip_data[0].m_base_address = BW_ACCEL_BASE;
    snprintf((char *)layout.m_ip_data[0].m_name, sizeof layout.m_ip_data[0].m_name, "%s:%s", BW_ACCEL_KERNEL,
             BW_ACCEL_INSTANCE);
    memcpy(to, &layout, ip_size());
}

static const int address_args[] = {
#define X(number, upper, name, bytes, offset, address) (address) ? (number) : -1,
    BW_ACCEL_ARGS(X)
#undef X
};

static unsigned connections(const bw_accelerator *a)
{
    unsigned n = 0;
    for (unsigned i = 0; i < BW_ACCEL_ARG_COUNT; i++)
        n += address_args[i] >= 0;
    return n * a->bank_count;
}

static size_t connectivity_size(const bw_accelerator *a)
{
    return offsetof(struct connectivity, m_connection) + connections(a) * sizeof(struct connection);
}

/* Every buffer may lie in every bank. */
static void write_connectivity(const bw_accelerator *a, unsigned char *to)
{
    struct connectivity head = {.m_count = (int32_t)connections(a)};
    memcpy(to, &head, offsetof(struct connectivity, m_connection));
    to += offsetof(struct connectivity, m_connection);
    for (unsigned i = 0; i < BW_ACCEL_ARG_COUNT; i++)
        for (unsigned bank = 0; address_args[i] >= 0 && bank < a->bank_count; bank++) {
            struct connection c = {address_args[i], 0, (int32_t)bank};
            memcpy(to, &c, sizeof c);
            to += sizeof c;
        }
}

/* --- the container ------------------------------------------------------------------------------------------------ */

typedef struct section {
    uint32_t kind;
    const char *name;
    size_t size, offset;
    const void *bytes; /* NULL: written in place */
} section;

static size_t align8(size_t n)
{
    return (n + 7) & ~(size_t)7;
}

static void uuid_of_content(const unsigned char *bytes, size_t size, unsigned char uuid[16])
{
    uint64_t sum = bw_accel_checksum(bytes, size), fnv = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < size; i++)
        fnv = (fnv ^ bytes[i]) * UINT64_C(0x100000001b3);
    memcpy(uuid, &sum, 8);
    memcpy(uuid + 8, &fnv, 8);
    uuid[6] = (unsigned char)((uuid[6] & 15) | 0x80);
    uuid[8] = (unsigned char)((uuid[8] & 63) | 0x80);
}

static void uuid_text(const unsigned char u[16], char out[37])
{
    snprintf(out, 37, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1], u[2], u[3],
             u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
}

/* What goes into XML and JSON without a thought. */
static int plain(const char *s)
{
    return *s && strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.:") == strlen(s);
}

bw_status bw_xclbin_write(const bw_accelerator *a, const void *configuration, size_t configuration_size, void **bytes,
                          size_t *size, bw_error *err)
{
    *bytes = NULL;
    if (!a || !plain(a->name) || !plain(a->platform) || strlen(a->interface_id) != 36 || a->bank_count == 0 ||
        a->bank_count > BW_ACCEL_BANKS_MAX || a->bank_bytes == 0 || a->bank_bytes % 1024)
        return bw_fail(err, BW_INVALID_ARGUMENT,
                       "xclbin: the accelerator's description lacks a name, a platform, an interface id or 1 to %u "
                       "memory banks of whole KiB",
                       BW_ACCEL_BANKS_MAX);
    char *xml = malloc(TEXT_MAX), *keys = malloc(TEXT_MAX);
    unsigned char *out = NULL;
    if (xml && keys) {
        text t = {xml, 0}, k = {keys, 0};
        write_xml(a, &t);
        write_keys(a, &k);
        section sections[SECTIONS_MAX] = {
            {EMBEDDED_METADATA, "xml", t.size, 0, xml},
            {MEM_TOPOLOGY, "mem", mem_size(a), 0, NULL},
            {IP_LAYOUT, "ip", ip_size(), 0, NULL},
            {CONNECTIVITY, "connectivity", connectivity_size(a), 0, NULL},
            {KEYVALUE_METADATA, "keys", k.size, 0, keys},
            {BITSTREAM, "bitstream", configuration_size, 0, configuration},
        };
        unsigned count = SECTIONS_MAX - (configuration_size == 0);
        size_t at = align8(offsetof(struct axlf, m_sections) + count * sizeof(struct axlf_section_header));
        for (unsigned i = 0; i < count; i++) {
            sections[i].offset = at;
            at += align8(sections[i].size);
        }
        *size = at;
        out = calloc(1, at);
        if (out) {
            struct axlf top;
            memset(&top, 0, sizeof top);
            memcpy(top.m_magic, "xclbin2", 8);
            top.m_signature_length = -1;
            memset(top.reserved, 0xff, sizeof top.reserved);
            top.m_header.m_length = at;
            top.m_header.m_versionMajor = 2;
            top.m_header.m_versionMinor = 13;
            top.m_header.m_mode = configuration_size ? XCLBIN_PR : XCLBIN_SW_EMU;
            top.m_header.m_numSections = count;
            snprintf((char *)top.m_header.m_platformVBNV, sizeof top.m_header.m_platformVBNV, "%s", a->platform);
            memcpy(out, &top, offsetof(struct axlf, m_sections));
            for (unsigned i = 0; i < count; i++) {
                const section *s = &sections[i];
                struct axlf_section_header h = {
                    .m_sectionKind = s->kind, .m_sectionOffset = s->offset, .m_sectionSize = s->size};
                memcpy(h.m_sectionName, s->name, strlen(s->name));
                memcpy(out + offsetof(struct axlf, m_sections) + i * sizeof h, &h, sizeof h);
                if (s->bytes)
                    memcpy(out + s->offset, s->bytes, s->size);
            }
            write_mem(a, out + sections[1].offset);
            write_ip(out + sections[2].offset);
            write_connectivity(a, out + sections[3].offset);
            unsigned char uuid[16];
            uuid_of_content(out, at, uuid);
            memcpy(out + offsetof(struct axlf, m_header.uuid), uuid, 16);
        }
    }
    free(xml);
    free(keys);
    *bytes = out;
    return out ? BW_OK : bw_fail(err, BW_NO_MEMORY, "no memory for an xclbin");
}

/* --- reading ------------------------------------------------------------------------------------------------------ */

static bw_status find_section(const unsigned char *bytes, size_t size, const struct axlf *top, uint32_t kind,
                              const char *name, const unsigned char **at, size_t *n, bw_error *err)
{
    for (uint32_t i = 0; i < top->m_header.m_numSections; i++) {
        struct axlf_section_header h;
        memcpy(&h, bytes + offsetof(struct axlf, m_sections) + i * sizeof h, sizeof h);
        if (h.m_sectionKind != kind)
            continue;
        if (h.m_sectionOffset > size || h.m_sectionSize > size - h.m_sectionOffset)
            return bw_fail(err, BW_CORRUPT,
                           "xclbin: section %s (%" PRIu64 " bytes at %" PRIu64 ") lies outside the file of %zu bytes",
                           name, h.m_sectionSize, h.m_sectionOffset, size);
        *at = bytes + h.m_sectionOffset;
        *n = h.m_sectionSize;
        return BW_OK;
    }
    return bw_fail(err, BW_CORRUPT, "xclbin: there is no section %s: it was not written for XRT by 'blockwave'", name);
}

/* The value of a key in KEYVALUE_METADATA, however xclbinutil has spaced it. 0: not there, or longer than `size`. */
static int find_value(const char *json, size_t n, const char *key, char *value, size_t size)
{
    char quoted[64];
    size_t length = (size_t)snprintf(quoted, sizeof quoted, "\"blockwave.%s\"", key);
    const char *end = json + n, *p = memmem(json, n, quoted, length);
    if (!p)
        return 0;
    p += length;
    p = memmem(p, (size_t)(end - p), "\"value\"", 7);
    if (!p)
        return 0;
    for (p += 7; p < end && (*p == ' ' || *p == ':' || *p == '\n' || *p == '\t'); p++)
        ;
    if (p == end || *p++ != '"')
        return 0;
    const char *close = memchr(p, '"', (size_t)(end - p));
    if (!close || (size_t)(close - p) >= size)
        return 0;
    memcpy(value, p, (size_t)(close - p));
    value[close - p] = 0;
    return plain(value);
}

static bw_status number(const char *json, size_t n, const char *key, uint64_t limit, uint64_t *out, bw_error *err)
{
    char value[32] = "", *end;
    if (!find_value(json, n, key, value, sizeof value))
        return bw_fail(err, BW_CORRUPT, "xclbin: the key blockwave.%s is missing: it holds no Blockwave accelerator",
                       key);
    *out = strtoull(value, &end, 0);
    if (*end || *out > limit)
        return bw_fail(err, BW_CORRUPT, "xclbin: blockwave.%s is '%s', expected a number up to %" PRIu64, key, value,
                       limit);
    return BW_OK;
}

static bw_status read_keys(const char *json, size_t n, bw_accelerator *a, uint64_t *build, bw_error *err)
{
    if (!find_value(json, n, "name", a->name, sizeof a->name) ||
        !find_value(json, n, "interface_id", a->interface_id, sizeof a->interface_id) || strlen(a->interface_id) != 36)
        return bw_fail(err, BW_CORRUPT,
                       "xclbin: the keys blockwave.name and blockwave.interface_id are missing or "
                       "malformed: it holds no Blockwave accelerator");
    uint64_t isa = 0, formats = 0, opcodes = 0, blocks = 0;
    bw_status status = number(json, n, "isa_version", UINT32_MAX, &isa, err);
    status = status ? status : number(json, n, "formats", UINT32_MAX, &formats, err);
    status = status ? status : number(json, n, "opcodes", UINT32_MAX, &opcodes, err);
    status = status ? status : number(json, n, "blocks", 15, &blocks, err);
    status = status ? status : number(json, n, "act_bytes", BW_ACCEL_ADDR_LIMIT, &a->offers.act_bytes, err);
    status = status ? status : number(json, n, "const_bytes", BW_ACCEL_ADDR_LIMIT, &a->offers.const_bytes, err);
    status = status ? status : number(json, n, "build", UINT64_MAX, build, err);
    a->offers.isa_version = (uint32_t)isa;
    a->offers.formats = (uint32_t)formats;
    a->offers.opcodes = (uint32_t)opcodes;
    a->offers.blocks = (uint32_t)blocks;
    return status;
}

static bw_status read_banks(const unsigned char *mem, size_t n, bw_accelerator *a, bw_error *err)
{
    const size_t head = offsetof(struct mem_topology, m_mem_data);
    int32_t count = 0;
    if (n >= head)
        memcpy(&count, mem, sizeof count);
    if (count < 1 || count > (int32_t)BW_ACCEL_BANKS_MAX || n < head + (size_t)count * sizeof(struct mem_data))
        return bw_fail(err, BW_CORRUPT, "xclbin: MEM_TOPOLOGY of %zu bytes has %d banks, expected 1 to %u", n, count,
                       BW_ACCEL_BANKS_MAX);
    a->bank_count = (unsigned)count;
    for (unsigned i = 0; i < a->bank_count; i++) {
        struct mem_data bank;
        memcpy(&bank, mem + head + i * sizeof bank, sizeof bank);
        if (i == 0 && bank.m_size <= BW_ACCEL_ADDR_LIMIT / 1024)
            a->bank_bytes = bank.m_size * 1024;
        if (!bank.m_used || bank.m_size == 0 || bank.m_size * 1024 != a->bank_bytes)
            return bw_fail(err, BW_CORRUPT,
                           "xclbin: MEM_TOPOLOGY: bank %u has %" PRIu64 " KiB, expected banks of one size, all in use",
                           i, (uint64_t)bank.m_size);
    }
    return BW_OK;
}

bw_status bw_xclbin_parse(const void *input, size_t size, bw_xclbin *x, bw_error *err)
{
    const unsigned char *bytes = input;
    struct axlf top;
    memset(x, 0, sizeof *x);
    if (size < sizeof top)
        return bw_fail(err, BW_CORRUPT, "xclbin: %zu bytes are too few, expected at least %zu", size, sizeof top);
    memcpy(&top, bytes, sizeof top);
    if (memcmp(top.m_magic, "xclbin2", 8) != 0)
        return bw_fail(err, BW_CORRUPT, "xclbin: it does not begin with 'xclbin2': it is no xclbin");
    if (top.m_header.m_length != size)
        return bw_fail(err, BW_CORRUPT, "xclbin: its header says %" PRIu64 " bytes, the file has %zu: it was cut short",
                       (uint64_t)top.m_header.m_length, size);
    const size_t room = (size - offsetof(struct axlf, m_sections)) / sizeof(struct axlf_section_header);
    if (top.m_header.m_numSections == 0 || top.m_header.m_numSections > room)
        return bw_fail(err, BW_CORRUPT, "xclbin: %u sections do not fit into %zu bytes", top.m_header.m_numSections,
                       size);
    const size_t vbnv = strnlen((const char *)top.m_header.m_platformVBNV, sizeof top.m_header.m_platformVBNV);
    if (vbnv >= sizeof x->accelerator.platform)
        return bw_fail(err, BW_CORRUPT, "xclbin: the platform's name is not terminated");
    memcpy(x->accelerator.platform, top.m_header.m_platformVBNV, vbnv);
    uuid_text(bytes + offsetof(struct axlf, m_header.uuid), x->uuid);

    const unsigned char *at = NULL;
    size_t n = 0;
    uint64_t build = 0;
    bw_status status = find_section(bytes, size, &top, KEYVALUE_METADATA, "KEYVALUE_METADATA", &at, &n, err);
    if (!status)
        status = read_keys((const char *)at, n, &x->accelerator, &build, err);
    if (!status)
        status = find_section(bytes, size, &top, MEM_TOPOLOGY, "MEM_TOPOLOGY", &at, &n, err);
    if (!status)
        status = read_banks(at, n, &x->accelerator, err);
    /* XRT's own reader trusts these. */
    if (!status)
        status = find_section(bytes, size, &top, IP_LAYOUT, "IP_LAYOUT", &at, &n, err);
    if (!status && (n != ip_size() || at[0] != 1))
        status = bw_fail(err, BW_CORRUPT, "xclbin: IP_LAYOUT has %zu bytes, expected one kernel in %zu", n, ip_size());
    if (!status)
        status = find_section(bytes, size, &top, CONNECTIVITY, "CONNECTIVITY", &at, &n, err);
    if (!status && n != connectivity_size(&x->accelerator))
        status = bw_fail(err, BW_CORRUPT, "xclbin: CONNECTIVITY has %zu bytes, expected %zu", n,
                         connectivity_size(&x->accelerator));
    if (!status)
        status = find_section(bytes, size, &top, EMBEDDED_METADATA, "EMBEDDED_METADATA", &at, &n, err);
    if (!status && !memmem(at, n, BW_ACCEL_KERNEL, strlen(BW_ACCEL_KERNEL)))
        status = bw_fail(err, BW_CORRUPT, "xclbin: the XML describes no kernel '%s'", BW_ACCEL_KERNEL);
    if (status)
        return status;
    x->build = bw_accelerator_build(&x->accelerator);
    if (x->build != build)
        return bw_fail(err, BW_VERSION_MISMATCH,
                       "xclbin: it was written for build %016" PRIx64 " of '%s', this version knows it as %016" PRIx64
                       ": write it anew",
                       build, x->accelerator.name, x->build);
    return BW_OK;
}

#else

int bw_xclbin_available(void)
{
    return 0;
}

static bw_status missing(bw_error *err)
{
    return bw_fail(err, BW_UNSUPPORTED, "this program was built without xclbin.h: install libxrt-dev and build again");
}

bw_status bw_xclbin_write(const bw_accelerator *a, const void *configuration, size_t configuration_size, void **bytes,
                          size_t *size, bw_error *err)
{
    (void)a, (void)configuration, (void)configuration_size, (void)size;
    *bytes = NULL;
    return missing(err);
}

bw_status bw_xclbin_parse(const void *bytes, size_t size, bw_xclbin *x, bw_error *err)
{
    (void)bytes, (void)size, (void)x;
    return missing(err);
}

#endif
