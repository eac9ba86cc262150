/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What one core can do at most: loops of independent multiply-add instructions on registers, and streaming reads.
 * They are written in assembly so that no compiler thins them out, and so that this file needs no flags of its own.
 */
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"
#include "sim/sim.h"

#define ROUNDS   4
#define ROUND_NS 1000000u

/* Carries out `loops` times a fixed number of multiply-adds; returns that number. */
typedef unsigned (*peak_loop)(uint64_t loops);

#if defined(__x86_64__)

#define CLOBBERS                                                                                                       \
    "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",   \
        "xmm13", "xmm14", "xmm15"
/* 12 accumulators hide the latency of every multiply-add that x86 has had (4 or 5 cycles, two a cycle). */
#define TWELVE(op) op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) op(8) op(9) op(10) op(11)
#define LOOP(before, body, after)                                                                                      \
    __asm__ volatile(before "1:\n" body "dec %0\n jnz 1b\n" after : "+r"(loops) : : CLOBBERS)

#define ZERO_ZMM(n)   "vpxord %%zmm" #n ", %%zmm" #n ", %%zmm" #n "\n"
#define ZERO_YMM(n)   "vpxor %%ymm" #n ", %%ymm" #n ", %%ymm" #n "\n"
#define ZERO_XMM(n)   "pxor %%xmm" #n ", %%xmm" #n "\n"
#define VNNI_ZMM(n)   "vpdpbusd %%zmm14, %%zmm15, %%zmm" #n "\n"
#define FMA_ZMM(n)    "vfmadd231ps %%zmm14, %%zmm15, %%zmm" #n "\n"
#define FMA_YMM(n)    "vfmadd231ps %%ymm14, %%ymm15, %%ymm" #n "\n"
#define MADDWD_YMM(n) "vpmaddwd %%ymm14, %%ymm15, %%ymm13\n vpaddd %%ymm13, %%ymm" #n ", %%ymm" #n "\n"
#define MADDUB_YMM(n)                                                                                                  \
    "vpmaddubsw %%ymm14, %%ymm15, %%ymm13\n vpmaddwd %%ymm12, %%ymm13, %%ymm13\n"                                      \
    "vpaddd %%ymm13, %%ymm" #n ", %%ymm" #n "\n"
#define MADDWD_XMM(n) "movdqa %%xmm15, %%xmm13\n pmaddwd %%xmm14, %%xmm13\n paddd %%xmm13, %%xmm" #n "\n"
#define MULADD_XMM(n) "movaps %%xmm15, %%xmm13\n mulps %%xmm14, %%xmm13\n addps %%xmm13, %%xmm" #n "\n"

static unsigned vnni_zmm(uint64_t loops)
{
    LOOP(TWELVE(ZERO_ZMM) ZERO_ZMM(14) ZERO_ZMM(15), TWELVE(VNNI_ZMM), "vzeroupper\n");
    return 12 * 64;
}

/* Tiles of sums 0..3, of codes 4, 5 and 6, 7. */
static unsigned tdp_tile(uint64_t loops)
{
    static const struct {
        uint8_t palette, start, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
    __asm__ volatile("ldtilecfg %1\n tilezero %%tmm4\n tilezero %%tmm5\n tilezero %%tmm6\n tilezero %%tmm7\n"
                     "tilezero %%tmm0\n tilezero %%tmm1\n tilezero %%tmm2\n tilezero %%tmm3\n 1:\n"
                     "tdpbssd %%tmm6, %%tmm4, %%tmm0\n tdpbssd %%tmm7, %%tmm4, %%tmm1\n"
                     "tdpbssd %%tmm6, %%tmm5, %%tmm2\n tdpbssd %%tmm7, %%tmm5, %%tmm3\n"
                     "dec %0\n jnz 1b\n tilerelease\n"
                     : "+r"(loops)
                     : "m"(config)
                     : "cc");
    return 4 * 16 * 16 * 64;
}

static unsigned fma_zmm(uint64_t loops)
{
    LOOP(TWELVE(ZERO_ZMM) ZERO_ZMM(14) ZERO_ZMM(15), TWELVE(FMA_ZMM), "vzeroupper\n");
    return 12 * 16;
}

static unsigned fma_ymm(uint64_t loops)
{
    LOOP(TWELVE(ZERO_YMM) ZERO_YMM(14) ZERO_YMM(15), TWELVE(FMA_YMM), "vzeroupper\n");
    return 12 * 8;
}

static unsigned maddwd_ymm(uint64_t loops)
{
    LOOP(TWELVE(ZERO_YMM) ZERO_YMM(14) ZERO_YMM(15), TWELVE(MADDWD_YMM), "vzeroupper\n");
    return 12 * 16;
}

static unsigned maddub_ymm(uint64_t loops)
{
    LOOP(TWELVE(ZERO_YMM) ZERO_YMM(12) ZERO_YMM(14) ZERO_YMM(15), TWELVE(MADDUB_YMM), "vzeroupper\n");
    return 12 * 32;
}

/* Portable code on this machine may be compiled to what all of its CPUs have. */
static unsigned maddwd_xmm(uint64_t loops)
{
    LOOP(TWELVE(ZERO_XMM) ZERO_XMM(14) ZERO_XMM(15), TWELVE(MADDWD_XMM), "");
    return 12 * 8;
}

static unsigned muladd_xmm(uint64_t loops)
{
    LOOP(TWELVE(ZERO_XMM) ZERO_XMM(14) ZERO_XMM(15), TWELVE(MULADD_XMM), "");
    return 12 * 4;
}

#define INT8_PORTABLE maddwd_xmm
#define FP32_PORTABLE muladd_xmm

#else

/* The empty assembly makes every value opaque: nothing is folded, nothing is vectorised. */
#define SCALAR_LOOP(type)                                                                                              \
    type acc[8] = {0}, x = 0, y = 0;                                                                                   \
    while (loops--)                                                                                                    \
        for (int i = 0; i < 8; i++) {                                                                                  \
            __asm__ volatile("" : "+m"(x), "+m"(y));                                                                   \
            acc[i] += x * y;                                                                                           \
        }                                                                                                              \
    __asm__ volatile("" : : "m"(acc));                                                                                 \
    return 8

static unsigned int_scalar(uint64_t loops)
{
    SCALAR_LOOP(int32_t);
}

static unsigned float_scalar(uint64_t loops)
{
    SCALAR_LOOP(float);
}

#define INT8_PORTABLE int_scalar
#define FP32_PORTABLE float_scalar

#endif

/* The best of some rounds: anything that disturbs only makes it slower. G multiply-adds a second. */
static double measure(peak_loop loop)
{
    double best = 0;
    uint64_t loops = 1000;
    for (int round = 0; round < ROUNDS;) {
        const uint64_t start = bw_now_ns();
        const unsigned each = loop(loops);
        const uint64_t took = bw_now_ns() - start;
        if (took < ROUND_NS && loops < UINT64_C(1) << 40) { /* the first only find the length, and wake the core */
            loops *= 2;
            continue;
        }
        const double rate = (double)loops * each / (double)took;
        best = rate > best ? rate : best;
        round++;
    }
    return best;
}

bw_status bw_sim_peak_measure(bw_sim_isa isa, bw_sim_peak *peak, bw_error *err)
{
    memset(peak, 0, sizeof *peak);
    if (isa == BW_SIM_ISA_AUTO)
        for (isa = BW_SIM_ISA_LIMIT - 1; !bw_sim_isa_available(isa);)
            isa--;
    if (!bw_sim_isa_available(isa))
        return bw_fail(err, BW_UNSUPPORTED, "the peak of ISA %s: this CPU lacks it, expected one that it has",
                       bw_sim_isa_name(isa));
    peak->isa = isa;
    peak->int8_by = "multiply and add";
#if defined(__x86_64__)
    if (isa == BW_SIM_ISA_AVX512VNNI || isa == BW_SIM_ISA_AMX) {
        const int tiles = isa == BW_SIM_ISA_AMX;
        peak->int8 = measure(tiles ? tdp_tile : vnni_zmm);
        peak->int8_by = tiles ? "tdpbssd" : "vpdpbusd zmm";
        peak->fp32 = measure(fma_zmm);
        return BW_OK;
    }
    if (isa == BW_SIM_ISA_AVX2) {
        const double bytes = measure(maddub_ymm), words = measure(maddwd_ymm);
        peak->int8 = bytes > words ? bytes : words;
        peak->int8_by = bytes > words ? "vpmaddubsw, vpmaddwd, vpaddd ymm" : "vpmaddwd, vpaddd ymm";
        peak->fp32 = measure(fma_ymm);
        return BW_OK;
    }
    peak->int8_by = "pmaddwd, paddd xmm";
#endif
    peak->int8 = measure(INT8_PORTABLE);
    peak->fp32 = measure(FP32_PORTABLE);
    return BW_OK;
}

/* --- memory ------------------------------------------------------------------------------------------------------ */

/* Reads everything once; count is a multiple of 8. wide: the CPU has AVX. */
static void read_words(const uint64_t *words, size_t count, int wide)
{
#if defined(__x86_64__)
    const uint64_t *end = words + count;
    if (wide)
        __asm__ volatile("1:\n vmovdqa (%0), %%ymm0\n vmovdqa 32(%0), %%ymm1\n add $64, %0\n cmp %1, %0\n jb 1b\n"
                         "vzeroupper\n"
                         : "+r"(words)
                         : "r"(end)
                         : "cc", "memory", "xmm0", "xmm1");
    else
        __asm__ volatile("1:\n movdqa (%0), %%xmm0\n movdqa 16(%0), %%xmm1\n movdqa 32(%0), %%xmm2\n"
                         "movdqa 48(%0), %%xmm3\n add $64, %0\n cmp %1, %0\n jb 1b\n"
                         : "+r"(words)
                         : "r"(end)
                         : "cc", "memory", "xmm0", "xmm1", "xmm2", "xmm3");
#else
    uint64_t sum[8] = {0};
    for (size_t i = 0; i < count; i += 8)
        for (size_t k = 0; k < 8; k++)
            sum[k] += words[i + k];
    (void)wide;
    __asm__ volatile("" : : "m"(sum) : "memory");
#endif
}

bw_status bw_sim_read_rate(size_t bytes, double *rate, bw_error *err)
{
    bytes = bytes / 64 * 64;
    *rate = 0;
    uint64_t *words = bytes ? bw_aligned_zalloc(bytes) : NULL;
    if (!bytes)
        return bw_fail(err, BW_INVALID_ARGUMENT, "a reading rate of 0 bytes: expected 64 at least");
    if (!words)
        return bw_fail(err, BW_NO_MEMORY, "no memory to measure reading of %zu bytes", bytes);
    memset(words, 1, bytes); /* pages of its own */
    const int wide = bw_sim_isa_available(BW_SIM_ISA_AVX2);
    uint64_t passes = 1;
    for (int round = 0; round < ROUNDS;) {
        const uint64_t start = bw_now_ns();
        for (uint64_t i = 0; i < passes; i++)
            read_words(words, bytes / sizeof *words, wide);
        const uint64_t took = bw_now_ns() - start;
        if (took < ROUND_NS) {
            passes *= 2;
            continue;
        }
        const double now = (double)passes * (double)bytes / (double)took;
        *rate = now > *rate ? now : *rate;
        round++;
    }
    free(words);
    return BW_OK;
}
