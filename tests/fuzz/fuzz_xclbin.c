/* SPDX-License-Identifier: Apache-2.0 */
/* The xclbin reader: as it comes, and with the length in its header made right so that the checks behind it are
 * reached. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/xclbin.h"

#define LENGTH_AT 304u /* of the file's length in the header (struct axlf) */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void terminated(const char *text, size_t room)
{
    if (strnlen(text, room) == room)
        abort();
}

/* What parses can be written again, and reads as the same accelerator. */
static void look(const uint8_t *data, size_t size)
{
    bw_xclbin x, y;
    bw_error err = {BW_OK, ""};
    if (bw_xclbin_parse(data, size, &x, &err)) {
        if (!err.message[0] || strchr(err.message, '\n'))
            abort();
        return;
    }
    const bw_accelerator *a = &x.accelerator;
    terminated(a->name, sizeof a->name);
    terminated(a->platform, sizeof a->platform);
    terminated(a->interface_id, sizeof a->interface_id);
    terminated(x.uuid, sizeof x.uuid);
    void *again;
    size_t n;
    if (bw_xclbin_write(a, NULL, 0, &again, &n, &err) || bw_xclbin_parse(again, n, &y, &err) || y.build != x.build)
        abort();
    free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    look(data, size);
    uint8_t *copy = size >= LENGTH_AT + 8 ? malloc(size) : NULL;
    if (!copy)
        return 0;
    memcpy(copy, data, size);
    const uint64_t length = size;
    memcpy(copy + LENGTH_AT, &length, sizeof length);
    look(copy, size);
    free(copy);
    return 0;
}
