/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as an ONNX model: import, passes, import of the result's shapes; small limits. */
#include <stdlib.h>
#include <string.h>

#include "quantize/import.h"
#include "quantize/passes.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > 1 << 20)
        return 0;
    bw_binding bindings[] = {{"M", 8}};
    bw_graph *g = NULL;
    bw_error err = {0};
    bw_import_info info;
    bw_status st = bw_onnx_import_bounded(data, size, NULL, 0, 16 << 20, &g, &info, &err);
    if (st == BW_INVALID_ARGUMENT)
        st = bw_onnx_import_bounded(data, size, bindings, 1, 16 << 20, &g, &info, &err);
    if (st) {
        /* A failure says what failed and leaves nothing. */
        if (g || err.status != st || !err.message[0] || strchr(err.message, '\n'))
            abort();
        return 0;
    }
    if (!g)
        abort();
    st = bw_passes_run(g, &err);
    if (!st && bw_graph_infer_shapes(g, &err))
        abort(); /* the passes leave a good graph */
    bw_graph_free(g);
    return 0;
}
