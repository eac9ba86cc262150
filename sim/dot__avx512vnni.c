/* SPDX-License-Identifier: Apache-2.0 */
/* CONV kernels, AVX-512 VNNI: those of words, unpacking, panels. Those of bytes are in dot_bytes.h. */
#include <immintrin.h>
#include <string.h>

#include "sim/fast.h"

#define INLINE static inline __attribute__((always_inline))

INLINE __m512i broadcast(const void *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm512_set1_epi32(v);
}

INLINE __m512i load_exponents(const int8_t *e)
{
    return _mm512_slli_epi32(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)e)), 23);
}

/* s + d * 2^(ea + ew) */
INLINE __m512 accumulate(__m512 s, __m512i d, __m512i ew, const int32_t *ea)
{
    __m512 scale = _mm512_castsi512_ps(_mm512_add_epi32(ew, broadcast(ea)));
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(d), scale, s);
}

INLINE void dot16_any(const bw_dot_args *g, const unsigned P)
{
    const int16_t *w = g->weights;
    const int8_t *we = g->weight_exps;
    const size_t B = g->block, step = g->code_step / 2;
    __m512 s[BW_GROUP_MAX];
#pragma GCC unroll 12
    for (unsigned p = 0; p < P; p++)
        s[p] = _mm512_loadu_ps(g->start ? g->start : g->acc + p * g->stride);
    for (size_t r = 0; r < g->run_count; r++) {
        const int16_t *a = (const int16_t *)g->codes + g->runs[r].at * B;
        const int32_t *ea = g->scale + g->runs[r].at;
        for (size_t left = g->runs[r].blocks; left; left--) {
            __m512i d[BW_GROUP_MAX];
#pragma GCC unroll 12
            for (unsigned p = 0; p < P; p++)
                d[p] = _mm512_setzero_si512();
            for (size_t i = 0; i < B; i += 2, w += 32) {
                __m512i v = _mm512_loadu_si512(w);
#pragma GCC unroll 12
                for (unsigned p = 0; p < P; p++)
                    d[p] = _mm512_dpwssd_epi32(d[p], v, broadcast(a + p * step + i));
            }
            __m512i ew = load_exponents(we);
#pragma GCC unroll 12
            for (unsigned p = 0; p < P; p++)
                s[p] = accumulate(s[p], d[p], ew, ea + p * g->scale_step);
            a += B, we += 16, ea++;
        }
    }
#pragma GCC unroll 12
    for (unsigned p = 0; p < P; p++)
        _mm512_storeu_ps(g->acc + p * g->stride, s[p]);
}

typedef void (*dot_fn)(const bw_dot_args *g);

#define DEFINE16(P)                                                                                                    \
    static void dot16_p##P(const bw_dot_args *g)                                                                       \
    {                                                                                                                  \
        dot16_any(g, P);                                                                                               \
    }
#define ENTRY16(P)     dot16_p##P,
#define FOR_EACH_16(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)

FOR_EACH_16(DEFINE16)
static const dot_fn words[BW_GROUP_MAX] = {FOR_EACH_16(ENTRY16)};

static void dot16(const bw_dot_args *g)
{
    words[g->pixels - 1](g);
}

/* --- codes ---------------------------------------------------------------------------------------------------------
 */

/* The values of up to 64 codes of a TABLE format, 16 bits each; what lies above six bits of a code does not count. */
typedef struct lookup {
    __m512i low, high;
} lookup;

INLINE lookup load_lookup(const int16_t *values)
{
    lookup t = {_mm512_loadu_si512(values), _mm512_loadu_si512(values + 32)};
    return t;
}

INLINE __m512i look_up(const lookup *t, __m512i codes)
{
    return _mm512_permutex2var_epi16(t->low, codes, t->high);
}

INLINE __m512i load_bytes(const uint8_t *codes) /* 32, zero-extended */
{
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)codes));
}

static void unpack4(const bw_format_traits *t, const uint8_t *packed, size_t count, uint8_t *codes)
{
    const __m512i nibbles = _mm512_set1_epi16(0x0F0F);
    const __m512i sign = _mm512_set1_epi8(t->kind == BW_KIND_INT ? 8 : 0);
    for (size_t i = 0; i < count; i += 64) {
        __m512i w = load_bytes(packed + i / 2);
        w = _mm512_and_si512(_mm512_or_si512(w, _mm512_slli_epi16(w, 4)), nibbles);
        w = _mm512_sub_epi8(_mm512_xor_si512(w, sign), sign);
        _mm512_storeu_si512(codes + i, w);
    }
}

/* 32 codes are 4 * bits bytes: two loads of 16 bytes hold 16 codes each, eight to a 128-bit lane. Each code's two bytes
 * go to a 16-bit lane, its bits to the lane's top, and back down with or without sign. */
INLINE void unpack32(const uint8_t *packed, unsigned bits, __m512i pick, __m512i up, int is_signed, uint8_t *codes)
{
    const __m256i lo = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)packed));
    const __m256i hi = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)(packed + 2 * bits)));
    const __m128i down = _mm_cvtsi32_si128(16 - (int)bits);
    __m512i w = _mm512_shuffle_epi8(_mm512_inserti64x4(_mm512_castsi256_si512(lo), hi, 1), pick);
    w = _mm512_sllv_epi16(w, up);
    w = is_signed ? _mm512_sra_epi16(w, down) : _mm512_srl_epi16(w, down);
    _mm256_storeu_si256((__m256i *)(void *)codes, _mm512_cvtepi16_epi8(w));
}

static void unpack(const bw_format_traits *t, const uint8_t *packed, size_t count, uint8_t *codes)
{
    const unsigned bits = t->code_bits;
    if (bits == 4) {
        unpack4(t, packed, count, codes);
        return;
    }
    uint8_t pick_bytes[64];
    uint16_t up_words[32];
    for (unsigned i = 0; i < 32; i++) {
        const unsigned bit = i % 16 * bits;
        pick_bytes[2 * i] = (uint8_t)(bit / 8);
        pick_bytes[2 * i + 1] = (uint8_t)(bit / 8 + 1);
        up_words[i] = (uint16_t)(16 - bits - bit % 8);
    }
    const __m512i pick = _mm512_loadu_si512(pick_bytes), up = _mm512_loadu_si512(up_words);
    const int is_signed = t->kind == BW_KIND_INT;
    size_t i = 0;
    for (; i + 64 <= count; i += 32) /* reads up to 10 bytes past its own, which are there but for the last */
        unpack32(packed + i * bits / 8, bits, pick, up, is_signed, codes + i);
    for (; i < count; i += 32) {
        uint8_t part[64] = {0};
        memcpy(part, packed + i * bits / 8, 4 * bits);
        unpack32(part, bits, pick, up, is_signed, codes + i);
    }
}

static void map8(const int16_t *values, size_t count, uint8_t *codes)
{
    const lookup t = load_lookup(values);
    for (size_t i = 0; i < count; i += 32) {
        __m256i v = _mm512_cvtepi16_epi8(look_up(&t, load_bytes(codes + i)));
        _mm256_storeu_si256((__m256i *)(void *)(codes + i), v);
    }
}

/* Codes of each output [i % 4] to pairs: 64 bytes are 16 outputs x 4. */
static void widen(const uint8_t *codes, const int16_t *values, size_t blocks, size_t block, int16_t *out)
{
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    static const int16_t none[64];
    const lookup t = load_lookup(values ? values : none);
    for (size_t q = 0; q < blocks * block / 4; q++, codes += 64, out += 64) {
        __m512i lo, hi;
        if (values) {
            lo = look_up(&t, load_bytes(codes));
            hi = look_up(&t, load_bytes(codes + 32));
        } else {
            lo = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)codes));
            hi = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)(codes + 32)));
        }
        _mm512_storeu_si512(out, _mm512_permutex2var_epi32(lo, even, hi));
        _mm512_storeu_si512(out + 32, _mm512_permutex2var_epi32(lo, odd, hi));
    }
}

/* --- panels --------------------------------------------------------------------------------------------------------
 */

/* The exponents of `count` blocks plus `bias`, as exponent fields; NULL: zeros. */
static void pack_scales(const int8_t *exps, size_t count, int bias, int32_t *scale)
{
    for (size_t k = 0; k < count; k += 16) {
        const __mmask16 some = (__mmask16)(count - k >= 16 ? 0xFFFF : (1u << (count - k)) - 1);
        __m512i e = _mm512_set1_epi32(bias);
        if (exps)
            e = _mm512_add_epi32(e, _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(some, exps + k)));
        _mm512_mask_storeu_epi32(scale + k, some, _mm512_slli_epi32(e, 23));
    }
}

static void pack8(const bw_pack_args *g)
{
    const __m512i half = _mm512_set1_epi8((char)g->offset);
    const size_t n = g->count * g->block;
    uint8_t *out = g->out;
    pack_scales(g->codes ? g->exps : NULL, g->count, g->scale_bias, g->scale);
    if (!g->codes) {
        memset(out, g->offset, n);
    } else if (g->values) { /* MX: blocks of 32 */
        const lookup t = load_lookup(g->values);
        for (size_t i = 0; i < n; i += 32) {
            __m256i c = _mm512_cvtepi16_epi8(look_up(&t, load_bytes(g->codes + i)));
            _mm256_storeu_si256((__m256i *)(void *)(out + i), _mm256_xor_si256(c, _mm512_castsi512_si256(half)));
        }
    } else {
        size_t i = 0;
        for (; i + 64 <= n; i += 64)
            _mm512_storeu_si512(out + i, _mm512_xor_si512(_mm512_loadu_si512(g->codes + i), half));
        if (i < n) {
            const __mmask64 some = ((__mmask64)1 << (n - i)) - 1;
            _mm512_mask_storeu_epi8(out + i, some, _mm512_xor_si512(_mm512_maskz_loadu_epi8(some, g->codes + i), half));
        }
    }
}

static void pack16(const bw_pack_args *g)
{
    const size_t n = g->count * g->block;
    int16_t *out = g->out;
    pack_scales(g->codes ? g->exps : NULL, g->count, 127, g->scale);
    if (!g->codes) {
        memset(out, 0, n * sizeof *out);
    } else if (g->values) {
        const lookup t = load_lookup(g->values);
        for (size_t i = 0; i < n; i += 32)
            _mm512_storeu_si512(out + i, look_up(&t, load_bytes(g->codes + i)));
    } else {
        for (size_t i = 0; i < n; i += 16)
            _mm256_storeu_si256((__m256i *)(void *)(out + i),
                                _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(g->codes + i))));
    }
}

const bw_dot_kernels bw_dot_avx512vnni = {
    .group = BW_GROUP_MAX,
    .bytes = &bw_dot_bytes_avx512vnni,
    .bytes_2p = &bw_dot_bytes_2p_avx512vnni,
    .pack8 = pack8,
    .scales8 = pack_scales,
    .wide = &bw_wide_avx512vnni,
    .dot16 = dot16,
    .pack16 = pack16,
    .unpack = unpack,
    .map8 = map8,
    .widen = widen,
    .widen_words = bw_widen_words_avx512vnni,
};
