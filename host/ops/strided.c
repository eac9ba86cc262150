/* SPDX-License-Identifier: Apache-2.0 */
/* Strided copies and broadcasting, for every operator that moves elements. */
#include <string.h>

#include "host/ops/op.h"

void bw_strides(int rank, const int64_t *dims, int64_t *strides)
{
    int64_t s = 1;
    for (int i = rank - 1; i >= 0; i--) {
        strides[i] = s;
        s *= dims[i];
    }
}

void bw_broadcast_strides(int rank, const int64_t *dims, int out_rank, const int64_t *out_dims, int64_t *strides)
{
    int64_t own[BW_RANK_MAX];
    bw_strides(rank, dims, own);
    for (int i = 0; i < out_rank; i++) {
        int k = i - (out_rank - rank);
        strides[i] = k < 0 || (dims[k] == 1 && out_dims[i] != 1) ? 0 : own[k];
    }
}

int bw_merge_dims(int rank, int64_t *dims, int count, int64_t (*strides)[BW_RANK_MAX + 1])
{
    int kept = 0;
    for (int i = 0; i < rank; i++) {
        if (dims[i] == 1)
            continue;
        int merge = kept > 0;
        for (int k = 0; merge && k < count; k++)
            merge = strides[k][kept - 1] == strides[k][i] * dims[i];
        if (!merge)
            kept++;
        dims[kept - 1] = merge ? dims[kept - 1] * dims[i] : dims[i];
        for (int k = 0; k < count; k++)
            strides[k][kept - 1] = strides[k][i];
    }
    if (!kept) {
        dims[0] = 1;
        for (int k = 0; k < count; k++)
            strides[k][0] = 0;
        kept = 1;
    }
    return kept;
}

#define COPY_LOOP(type)                                                                                                \
    for (int64_t i = 0; i < n; i++)                                                                                    \
    ((type *)dst)[i * ds] = ((const type *)src)[i * ss]

static void copy_row(size_t size, int64_t n, void *dst, int64_t ds, const void *src, int64_t ss)
{
    if (ds == 1 && ss == 1) {
        memcpy(dst, src, (size_t)n * size);
        return;
    }
    switch (size) {
    case 1:
        COPY_LOOP(uint8_t);
        break;
    case 2:
        COPY_LOOP(uint16_t);
        break;
    case 4:
        COPY_LOOP(uint32_t);
        break;
    default:
        COPY_LOOP(uint64_t);
    }
}

void bw_copy_strided(size_t size, int rank, const int64_t *dims, void *dst, const int64_t *dst_strides, const void *src,
                     const int64_t *src_strides)
{
    int64_t d[BW_RANK_MAX + 1], s[2][BW_RANK_MAX + 1], at[BW_RANK_MAX + 1] = {0};
    for (int i = 0; i < rank; i++) {
        if (dims[i] == 0)
            return;
        d[i] = dims[i];
        s[0][i] = dst_strides[i];
        s[1][i] = src_strides[i];
    }
    int r = bw_merge_dims(rank, d, 2, s);
    char *to = dst;
    const char *from = src;
    for (;;) {
        copy_row(size, d[r - 1], to, s[0][r - 1], from, s[1][r - 1]);
        int k = r - 2;
        for (; k >= 0; k--) {
            to += s[0][k] * (int64_t)size;
            from += s[1][k] * (int64_t)size;
            if (++at[k] < d[k])
                break;
            to -= s[0][k] * d[k] * (int64_t)size;
            from -= s[1][k] * d[k] * (int64_t)size;
            at[k] = 0;
        }
        if (k < 0)
            return;
    }
}

void bw_fill(size_t size, void *dst, int64_t count, const void *element)
{
    int64_t zero = 0;
    copy_row(size, count, dst, 1, element, zero);
}
