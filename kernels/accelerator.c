/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/accelerator.h"

#include <stdio.h>
#include <string.h>

#define F(name) (1u << BW_FORMAT_##name)
#define ALL_FORMATS                                                                                                    \
    (F(FP32) | F(FP16) | F(BF16) | F(MSFP11) | F(MSFP12) | F(MSFP13) | F(MSFP14) | F(MSFP15) | F(MSFP16) | F(MXINT8) | \
     F(MXFP6_E2M3) | F(MXFP4_E2M1) | F(MXFP6_E3M2) | F(MXFP8_E4M3) | F(MXFP8_E5M2) | F(MX9) | F(MX6) | F(MX4))
#define GIB (UINT64_C(1) << 30)

#define X(number, upper, name, bytes, offset, address)                                                                 \
    _Static_assert((offset) + (bytes) <= BW_ACCEL_ARGS_END && (number) < BW_ACCEL_ARG_COUNT, #name);
BW_ACCEL_ARGS(X)
#undef X

static const bw_accelerator accelerators[] = {
    {.name = "emulated",
     .platform = "blockwave_emulated_4x16g_1",
     .interface_id = "3c0e5a52-7d0f-4c11-9a57-51a0b10c0e01",
     .bank_count = 4,
     .bank_bytes = 16 * GIB,
     /* A program with its regions lies in one bank. */
     .offers = {.isa_version = BW_ISA_VERSION,
                .formats = ALL_FORMATS,
                .opcodes = ((1u << BW_OP_LIMIT) - 1u) & ~1u,
                .blocks = 15,
                .act_bytes = 4 * GIB,
                .const_bytes = 8 * GIB}},
};

const bw_accelerator *bw_accelerator_find(const char *name)
{
    for (size_t i = 0; i < sizeof accelerators / sizeof *accelerators; i++)
        if (!name || !*name || strcmp(accelerators[i].name, name) == 0)
            return &accelerators[i];
    return NULL;
}

uint64_t bw_accelerator_build(const bw_accelerator *a)
{
    char text[1024];
    int n = snprintf(text, sizeof text, "%s|%s|%s|%u|%llu|%u|%x|%x|%x|%llu|%llu", a->name, a->platform, a->interface_id,
                     a->bank_count, (unsigned long long)a->bank_bytes, a->offers.isa_version, a->offers.formats,
                     a->offers.opcodes, a->offers.blocks, (unsigned long long)a->offers.act_bytes,
                     (unsigned long long)a->offers.const_bytes);
#define X(number, upper, argument, bytes, offset, address)                                                             \
    n += snprintf(text + n, sizeof text - (size_t)n, "|%d %s %d %x %d", number, #argument, bytes, offset, address);
    BW_ACCEL_ARGS(X)
#undef X
    return bw_accel_checksum(text, (size_t)n);
}

uint64_t bw_accel_checksum(const void *bytes, size_t size)
{
    const unsigned char *p = bytes;
    uint64_t a = 0, b = 0;
    for (; size >= 4; p += 4, size -= 4) {
        uint32_t word;
        memcpy(&word, p, 4);
        a += word;
        b += a;
    }
    if (size) {
        uint32_t word = 0;
        memcpy(&word, p, size);
        a += word;
        b += a;
    }
    return a + b * UINT64_C(0x9E3779B97F4A7C15);
}

const char *bw_accel_code_name(unsigned code)
{
    static const char *const names[] = {"ok",           "bad command", "bad address", "bad program",
                                        "memory error", "aborted",     "no memory",   "internal error"};
    _Static_assert(sizeof names / sizeof *names == BW_ACCEL_CODE_LIMIT, "a name for each code");
    return code < BW_ACCEL_CODE_LIMIT ? names[code] : "?";
}
