/* SPDX-License-Identifier: Apache-2.0 */
/* Calls of the shared memory extension, one after the other: for each a byte that chooses the method, one for the size
 * of the message, and the message, in two pieces. Each is answered once, in one line; at the end no region is left. */
#include <string.h>

#include "service/kserve_shared_memory.h"
#include "tests/fuzz/segment.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int answers;

static void finish(bw_call *call, bw_code code, const char *text, const bw_chunk *chunks, size_t count,
                   const bw_meta *trailing, size_t trailing_count)
{
    (void)call;
    (void)trailing;
    size_t total = 0;
    for (size_t i = 0; i < count; i++) {
        for (size_t k = 0; k < chunks[i].size; k++)
            total += ((const uint8_t *)chunks[i].bytes)[k];
    }
    if (total == SIZE_MAX || trailing_count || (code != BW_CODE_OK) != (text[0] != 0) || strchr(text, '\n') ||
        code == BW_CODE_INTERNAL)
        abort();
    answers++;
}

static const bw_call_ops ops = {.finish = finish};

static void count_regions(const bw_shared_info *info, void *user)
{
    if (!info->name[0] || !info->key[0] || !info->size || info->size > SEGMENT_SIZE)
        abort();
    ++*(size_t *)user;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const methods[])(bw_call *, void *) = {
        bw_kserve_shared_memory_register, bw_kserve_shared_memory_status, bw_kserve_shared_memory_unregister};
    static bw_scorer scorer;
    static int fd = -1;
    if (fd < 0) {
        fd = open_segment();
        scorer.shared_memory = bw_shared_memory_new("bw-fuzz", 3, 0);
        if (!scorer.shared_memory)
            abort();
    }
    while (size > 2) {
        size_t n = data[1] < size - 2 ? data[1] : size - 2;
        bw_slice pieces[2] = {{data + 2, n / 2}, {data + 2 + n / 2, n - n / 2}};
        bw_call call = {.ops = &ops, .message = pieces, .message_slices = 2, .message_size = n};
        answers = 0;
        methods[data[0] % 3](&call, &scorer);
        if (answers != 1)
            abort();
        data += 2 + n;
        size -= 2 + n;
    }
    size_t count = 0;
    if (bw_shared_memory_each(scorer.shared_memory, "", count_regions, &count, NULL) || count > 3)
        abort();
    bw_shared_memory_unregister(scorer.shared_memory, "");
    return 0;
}
