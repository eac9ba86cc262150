/* SPDX-License-Identifier: Apache-2.0 */
/* A serialised graph (JSON text, a zero byte, the blob) is read, inferred, folded, written, and run within tight
 * memory. Anything but a crash, a leak or a hang is right; what is read must survive being written. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "host/graph.h"

#define MAX_NODES    24
#define MAX_ELEMENTS 512
#define MAX_BYTES    32768

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_rewrite(const bw_graph *g)
{
    char *json = NULL, *again = NULL;
    void *blob = NULL, *blob_again = NULL;
    size_t blob_size, size_again;
    bw_graph *copy = NULL;
    if (bw_graph_write(g, &json, &blob, &blob_size, NULL))
        return; /* a NaN */
    if (bw_graph_read(json, strlen(json), blob, blob_size, &copy, NULL) ||
        bw_graph_write(copy, &again, &blob_again, &size_again, NULL) || strcmp(json, again) ||
        blob_size != size_again || memcmp(blob, blob_again, blob_size))
        abort();
    bw_graph_free(copy);
    free(json);
    free(again);
    free(blob);
    free(blob_again);
}

static void run(const bw_graph *g)
{
    bw_executor *ex;
    if (g->input_count > 8 || g->output_count > 8 || bw_executor_create(g, &ex, NULL))
        return;
    bw_executor_set_memory_limit(ex, MAX_BYTES);
    bw_array in[8] = {{0}}, out[8] = {{0}};
    int fits = 1;
    for (int i = 0; i < g->input_count && fits; i++) {
        const bw_value *v = &g->values[g->inputs[i]];
        int64_t dims[BW_RANK_MAX] = {0}, n = 1;
        for (int k = 0; k < v->rank && fits; k++) {
            dims[k] = v->dims[k] < 0 ? 2 : v->dims[k];
            fits = dims[k] <= MAX_ELEMENTS && (n *= dims[k]) <= MAX_ELEMENTS;
        }
        fits = fits && v->rank >= 0 && !bw_array_alloc(&in[i], v->dtype, v->rank, dims, NULL);
        for (size_t b = 0; fits && b < in[i].bytes; b++)
            ((uint8_t *)in[i].data)[b] = (uint8_t)(b % 4 == 3 ? 0x3f : b * 37);
    }
    for (int twice = 0; twice < 2 && fits; twice++) {
        bw_error err;
        if (bw_executor_run(ex, in, out, NULL, NULL, &err))
            break;
        for (int i = 0; i < g->output_count; i++)
            bw_array_free(&out[i]);
    }
    for (int i = 0; i < 8; i++)
        bw_array_free(&in[i]);
    bw_executor_destroy(ex);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *end = memchr(data, 0, size);
    size_t json_size = end ? (size_t)(end - data) : size, blob_size = end ? size - json_size - 1 : 0;
    void *blob = NULL;
    if (blob_size) {
        if (posix_memalign(&blob, 64, blob_size))
            return 0;
        memcpy(blob, end + 1, blob_size);
    }
    bw_graph *g = NULL;
    bw_error err;
    if (!bw_graph_read((const char *)data, json_size, blob, blob_size, &g, &err)) {
        check_rewrite(g);
        if (g->node_count <= MAX_NODES) {
            bw_graph *c = bw_graph_clone(g);
            if (c && !bw_graph_infer_shapes(c, &err) && !bw_graph_fold_constants(c, 4096, &err))
                run(c);
            bw_graph_free(c);
            run(g);
        }
        bw_graph_free(g);
    }
    free(blob);
    return 0;
}
