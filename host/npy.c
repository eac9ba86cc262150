/* SPDX-License-Identifier: Apache-2.0 */
/* The .npy header and element conversion. */
#include "host/npy.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Finds "'key':" in the header's Python literal and returns what follows, blanks skipped. */
static const char *find_key(const char *text, const char *key)
{
    char quoted[32];
    snprintf(quoted, sizeof quoted, "'%s':", key);
    const char *at = strstr(text, quoted);
    if (!at)
        return NULL;
    at += strlen(quoted);
    while (*at == ' ')
        at++;
    return at;
}

static bw_status parse_descr(const char *text, bw_npy_header *h, bw_error *err)
{
    const char *at = find_key(text, "descr");
    if (!at)
        return bw_fail(err, BW_CORRUPT, "header has no 'descr'");
    char descr[16] = "";
    if (sscanf(at, "'%15[^']'", descr) != 1)
        return bw_fail(err, BW_UNSUPPORTED, "structured dtype, expected a plain array of numbers");
    int item = 0, used = 0;
    if (sscanf(descr + 1, "%c%1d%n", &h->kind, &item, &used) != 2 || descr[1 + used] != 0)
        h->kind = '?';
    int legal = (h->kind == 'f' && (item == 2 || item == 4 || item == 8)) || (h->kind == 'b' && item == 1) ||
                ((h->kind == 'i' || h->kind == 'u') && (item == 1 || item == 2 || item == 4 || item == 8));
    if (!legal || !strchr("<>|=", descr[0]) || (item > 1 && descr[0] == '|'))
        return bw_fail(err, BW_UNSUPPORTED,
                       "dtype '%s', expected float16/32/64, int8..64, uint8..64 or bool: convert it with astype()",
                       descr);
    h->item = item;
    h->swap = item > 1 && descr[0] == '>'; /* the host is little-endian */
    return BW_OK;
}

static bw_status parse_shape(const char *text, bw_npy_header *h, bw_error *err)
{
    const char *at = find_key(text, "shape");
    if (!at || *at != '(')
        return bw_fail(err, BW_CORRUPT, "header has no 'shape'");
    at++;
    h->rank = 0;
    h->count = 1;
    for (;;) {
        while (*at == ' ' || *at == ',')
            at++;
        if (*at == ')')
            break;
        if (*at < '0' || *at > '9')
            return bw_fail(err, BW_CORRUPT, "'shape' is not a list of sizes");
        if (h->rank == BW_RANK_MAX)
            return bw_fail(err, BW_UNSUPPORTED, "more than %d dimensions", BW_RANK_MAX);
        uint64_t v = 0;
        for (; *at >= '0' && *at <= '9'; at++) {
            if (v > ((uint64_t)INT64_MAX - 9) / 10)
                return bw_fail(err, BW_CORRUPT, "'shape' has a size beyond 2^63");
            v = v * 10 + (uint64_t)(*at - '0');
        }
        h->dims[h->rank++] = (int64_t)v;
        if (__builtin_mul_overflow(h->count, v, &h->count) || h->count > (uint64_t)INT64_MAX / 8)
            return bw_fail(err, BW_CORRUPT, "'shape' has more elements than memory could hold");
    }
    return BW_OK;
}

bw_status bw_npy_parse(const void *bytes, size_t size, bw_npy_header *h, bw_error *err)
{
    const uint8_t *b = bytes;
    memset(h, 0, sizeof *h);
    if (size < 10 || memcmp(b, "\x93NUMPY", 6) != 0)
        return bw_fail(err, BW_CORRUPT, "not a .npy array (it does not start with \\x93NUMPY)");
    if (b[6] < 1 || b[6] > 3)
        return bw_fail(err, BW_UNSUPPORTED, ".npy version %u, expected 1 to 3", b[6]);
    size_t start = b[6] == 1 ? 10 : 12;
    if (size < start)
        return bw_fail(err, BW_CORRUPT, "header is cut");
    size_t length = (size_t)b[8] | (size_t)b[9] << 8;
    if (start == 12)
        length |= (size_t)b[10] << 16 | (size_t)b[11] << 24;
    if (length > size - start || length + start > BW_NPY_HEADER_MAX)
        return bw_fail(err, BW_CORRUPT, "header of %zu bytes, %zu are there", length, size - start);
    char *text = malloc(length + 1);
    if (!text)
        return bw_fail(err, BW_NO_MEMORY, "no memory for a header");
    memcpy(text, b + start, length);
    text[length] = 0;
    h->offset = start + length;
    bw_status status = parse_descr(text, h, err);
    if (!status)
        status = parse_shape(text, h, err);
    const char *order = find_key(text, "fortran_order");
    if (!status && !order)
        status = bw_fail(err, BW_CORRUPT, "header has no 'fortran_order'");
    /* Up to one dimension both orders are the same. */
    if (!status && strncmp(order, "False", 5) != 0 && h->rank > 1)
        status = bw_fail(err, BW_UNSUPPORTED, "Fortran order: save numpy.ascontiguousarray(x)");
    free(text);
    return status;
}

static uint64_t load(const uint8_t *p, int item, int swap)
{
    uint64_t v = 0;
    for (int i = 0; i < item; i++)
        v |= (uint64_t)p[swap ? item - 1 - i : i] << (8 * i);
    return v;
}

static int64_t extend(uint64_t v, int item)
{
    int shift = 64 - 8 * item;
    return (int64_t)(v << shift) >> shift;
}

static double half_value(uint16_t v)
{
    int e = v >> 10 & 31, m = v & 1023;
    double x = e == 0 ? ldexp(m, -24) : e == 31 ? (m ? NAN : INFINITY) : ldexp(1024 + m, e - 25);
    return v >> 15 ? -x : x;
}

static double float_element(const bw_npy_header *h, const uint8_t *p)
{
    uint64_t v = load(p, h->item, h->swap);
    if (h->item == 2)
        return half_value((uint16_t)v);
    if (h->item == 4) {
        uint32_t bits = (uint32_t)v;
        float f;
        memcpy(&f, &bits, 4);
        return (double)f;
    }
    double d;
    memcpy(&d, &v, 8);
    return d;
}

void bw_npy_to_float(const bw_npy_header *h, const void *elements, size_t n, float *out)
{
    const uint8_t *p = elements;
    if (h->kind == 'f' && h->item == 4 && !h->swap) {
        memcpy(out, p, n * 4);
    } else if (h->item == 1) {
        for (size_t i = 0; i < n; i++)
            out[i] = h->kind == 'i' ? (float)(int8_t)p[i] : (float)p[i];
    } else if (h->kind == 'f') {
        for (size_t i = 0; i < n; i++)
            out[i] = (float)float_element(h, p + i * (size_t)h->item);
    } else {
        for (size_t i = 0; i < n; i++) {
            uint64_t v = load(p + i * (size_t)h->item, h->item, h->swap);
            out[i] = h->kind == 'i' ? (float)extend(v, h->item) : (float)v;
        }
    }
}

bw_status bw_npy_to_int64(const bw_npy_header *h, const void *elements, size_t n, int64_t *out, bw_error *err)
{
    const uint8_t *p = elements;
    for (size_t i = 0; i < n; i++, p += h->item) {
        if (h->kind == 'f') {
            double d = float_element(h, p);
            if (!(d >= -0x1p53 && d <= 0x1p53) || d != floor(d))
                return bw_fail(err, BW_INVALID_ARGUMENT, "element %zu is %g, expected a whole number", i, d);
            out[i] = (int64_t)d;
            continue;
        }
        uint64_t v = load(p, h->item, h->swap);
        if (h->kind != 'i' && v > (uint64_t)INT64_MAX)
            return bw_fail(err, BW_INVALID_ARGUMENT, "element %zu is %" PRIu64 ", expected at most 2^63 - 1", i, v);
        out[i] = h->kind == 'i' ? extend(v, h->item) : (int64_t)v;
    }
    return BW_OK;
}
