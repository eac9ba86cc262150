/* SPDX-License-Identifier: Apache-2.0 */
/* One operator set: what can be said of a node without shapes (names, attributes, dropped outputs), by operator. The
 * rest needs shapes and constants: normalise_graph.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quantize/import_internal.h"

/* --- helpers ---------------------------------------------------------------------------------------------------- */

void bw_node_drop_attr(bw_node *n, const char *name)
{
    for (int i = 0; i < n->attr_count; i++) {
        bw_attr *a = &n->attrs[i];
        if (strcmp(a->name, name))
            continue;
        free(a->name);
        free(a->s);
        free(a->ints);
        free(a->floats);
        bw_array_free(&a->array);
        memmove(a, a + 1, (size_t)(n->attr_count - i - 1) * sizeof *a);
        n->attr_count--;
        return;
    }
}

int bw_node_input(const bw_node *n, int index)
{
    return index < n->input_count ? n->inputs[index] : -1;
}

const bw_array *bw_node_constant(const bw_graph *g, const bw_node *n, int index)
{
    int v = bw_node_input(n, index);
    return v >= 0 ? g->values[v].constant : NULL;
}

void bw_node_trim_inputs(bw_node *n, int count)
{
    if (n->input_count > count)
        n->input_count = count;
    while (n->input_count && n->inputs[n->input_count - 1] < 0)
        n->input_count--;
}

int64_t bw_array_int(const bw_array *a, int64_t index)
{
    switch (a->dtype) {
    case BW_I64:
        return ((const int64_t *)a->data)[index];
    case BW_I32:
        return ((const int32_t *)a->data)[index];
    case BW_I8:
        return ((const int8_t *)a->data)[index];
    case BW_U8:
    case BW_BOOL:
        return ((const uint8_t *)a->data)[index];
    default:
        return 0;
    }
}

double bw_array_real(const bw_array *a, int64_t index)
{
    if (a->dtype == BW_F32)
        return ((const float *)a->data)[index];
    if (a->dtype == BW_F64)
        return ((const double *)a->data)[index];
    return (double)bw_array_int(a, index);
}

const char *bw_import_where(const bw_importer *im, const bw_node *n, char buf[200])
{
    snprintf(buf, 200, "node '%.120s' (%.40s, opset %lld)", n->name, n->op, (long long)im->opset);
    return buf;
}

/* --- per operator ----------------------------------------------------------------------------------------------- */

static bw_status no_memory(const bw_importer *im, const bw_node *n, bw_error *err)
{
    char where[200];
    return bw_fail(err, BW_NO_MEMORY, "no memory for %s", bw_import_where(im, n, where));
}

/* Keeps the first `keep` outputs. The others must have no consumer; that is checked when consumers look for them, as
 * the values stay without a producer: so it is checked here by name at the end (bw_normalise_graph). */
static void keep_outputs(bw_node *n, int keep)
{
    if (n->output_count > keep)
        n->output_count = keep;
}

static bw_status fix_batchnorm(bw_importer *im, bw_node *n, bw_error *err)
{
    char where[200];
    if (im->opset < 9 && bw_node_int(n, "spatial", 1) != 1)
        return bw_fail(err, BW_UNSUPPORTED,
                       "%s: spatial = 0 (statistics per element) is not supported: export with "
                       "opset 9 or newer",
                       bw_import_where(im, n, where));
    if (bw_node_int(n, "training_mode", 0))
        return bw_fail(err, BW_UNSUPPORTED, "%s: training_mode = 1: export the model for inference",
                       bw_import_where(im, n, where));
    bw_node_drop_attr(n, "spatial");
    bw_node_drop_attr(n, "training_mode");
    keep_outputs(n, 1);
    return BW_OK;
}

static bw_status fix_dropout(bw_importer *im, bw_node *n, bw_error *err)
{
    char where[200];
    int training = bw_node_input(n, 2);
    const bw_array *mode = bw_node_constant(im->g, n, 2);
    if (training >= 0 && (!mode || bw_array_count(mode) != 1 || bw_array_int(mode, 0)))
        return bw_fail(err, BW_UNSUPPORTED, "%s: training_mode is not false: export the model for inference",
                       bw_import_where(im, n, where));
    bw_node_drop_attr(n, "ratio");
    bw_node_drop_attr(n, "seed");
    bw_node_trim_inputs(n, 1);
    keep_outputs(n, 1);
    return BW_OK;
}

static bw_status fix_softmax(bw_importer *im, bw_node *n, bw_error *err)
{
    if (im->opset >= 13)
        return BW_OK;
    int64_t axis = bw_node_int(n, "axis", 1);
    if (bw_node_set_int(n, "axis", axis) || bw_node_set_int(n, "coerce", 1))
        return no_memory(im, n, err);
    return BW_OK;
}

static bw_status fix_pool(bw_importer *im, bw_node *n, bw_error *err)
{
    char where[200];
    if (bw_node_int(n, "storage_order", 0))
        return bw_fail(err, BW_UNSUPPORTED, "%s: storage_order = 1 is not supported: use the default",
                       bw_import_where(im, n, where));
    bw_node_drop_attr(n, "storage_order");
    keep_outputs(n, 1);
    return BW_OK;
}

static bw_status fix_one_output(bw_importer *im, bw_node *n, bw_error *err)
{
    (void)im;
    (void)err;
    keep_outputs(n, 1);
    return BW_OK;
}

static bw_status fix_cast(bw_importer *im, bw_node *n, bw_error *err)
{
    char where[200];
    int64_t to = bw_node_int(n, "to", 0);
    bw_dtype dtype = to > 0 && to < 100 ? bw_import_dtype(im, (int32_t)to) : BW_DTYPE_NONE;
    int64_t number = to;
    switch (to) {
    case BW_ONNX_UINT16: /* these wrap around where the wider type does not */
    case BW_ONNX_INT16:
    case BW_ONNX_UINT32:
    case BW_ONNX_UINT64:
        dtype = BW_DTYPE_NONE;
        break;
    default:
        if (dtype == BW_F32)
            number = BW_ONNX_FLOAT;
    }
    if (dtype == BW_DTYPE_NONE)
        return bw_fail(err, BW_UNSUPPORTED,
                       "%s: a cast to type %lld (%s) is not supported: cast to float, int32 or "
                       "int64",
                       bw_import_where(im, n, where), (long long)to,
                       bw_import_type_name(to > 0 && to < 100 ? (int32_t)to : 0));
    return bw_node_set_int(n, "to", number) ? no_memory(im, n, err) : BW_OK;
}

/* Resize of opset 10 and Upsample (7: attribute, 9: input) had fewer words for the same thing. */
static bw_status fix_resize(bw_importer *im, bw_node *n, bw_error *err)
{
    char where[200];
    int upsample = !strcmp(n->op, "Upsample");
    if (upsample && im->opset > 9)
        return bw_fail(err, BW_CORRUPT, "%s: the operator left ONNX with opset 10", bw_import_where(im, n, where));
    if (im->opset < 11) {
        const char *mode = bw_node_string(n, "mode", "nearest");
        if (!strcmp(mode, "bilinear") && bw_node_set_string(n, "mode", "linear"))
            return no_memory(im, n, err);
        if (bw_node_input(n, 1) >= 0) { /* X, scales -> X, roi, scales */
            int *in = realloc(n->inputs, 3 * sizeof *in);
            if (!in)
                return no_memory(im, n, err);
            n->inputs = in;
            in[2] = in[1];
            in[1] = -1;
            n->input_count = 3;
        }
        /* nearest of opset 10 rounded down when enlarging and up when shrinking: settled when the scales are known */
        if (bw_node_set_string(n, "coordinate_transformation_mode", "asymmetric") ||
            bw_node_set_string(n, "nearest_mode", upsample ? "floor" : "simple"))
            return no_memory(im, n, err);
        if (upsample) {
            char *op = strdup("Resize");
            if (!op)
                return no_memory(im, n, err);
            free(n->op);
            n->op = op;
        }
    }
    const char *mode = bw_node_string(n, "mode", "nearest");
    const char *transform = bw_node_string(n, "coordinate_transformation_mode", "half_pixel");
    const char *policy = bw_node_string(n, "keep_aspect_ratio_policy", "stretch");
    if (strcmp(mode, "nearest") && strcmp(mode, "linear"))
        return bw_fail(err, BW_UNSUPPORTED, "%s: mode '%s', supported are nearest and linear",
                       bw_import_where(im, n, where), mode);
    if (!strcmp(transform, "tf_crop_and_resize") || !strcmp(transform, "tf_half_pixel_for_nn"))
        return bw_fail(err, BW_UNSUPPORTED,
                       "%s: coordinate_transformation_mode '%s' is not supported: use half_pixel, "
                       "asymmetric or align_corners",
                       bw_import_where(im, n, where), transform);
    if (bw_node_int(n, "antialias", 0) || strcmp(policy, "stretch"))
        return bw_fail(err, BW_UNSUPPORTED,
                       "%s: antialias and keep_aspect_ratio_policy are not supported: leave them "
                       "at their defaults",
                       bw_import_where(im, n, where));
    if (bw_node_int(n, "exclude_outside", 0))
        return bw_fail(err, BW_UNSUPPORTED, "%s: exclude_outside = 1 is not supported: use 0",
                       bw_import_where(im, n, where));
    static const char *const dropped[] = {"antialias", "keep_aspect_ratio_policy", "exclude_outside", "cubic_coeff_a",
                                          "extrapolation_value"};
    for (size_t i = 0; i < sizeof dropped / sizeof dropped[0]; i++)
        bw_node_drop_attr(n, dropped[i]);
    return BW_OK;
}

static bw_status fix_split(bw_importer *im, bw_node *n, bw_error *err)
{
    char where[200];
    int64_t parts = bw_node_int(n, "num_outputs", n->output_count);
    if (parts != n->output_count)
        return bw_fail(err, BW_CORRUPT, "%s: num_outputs is %lld, the node has %d", bw_import_where(im, n, where),
                       (long long)parts, n->output_count);
    bw_node_drop_attr(n, "num_outputs");
    return BW_OK;
}

static bw_status fix_pad(bw_importer *im, bw_node *n, bw_error *err)
{
    char where[200];
    const char *mode = bw_node_string(n, "mode", "constant");
    if (strcmp(mode, "constant") && strcmp(mode, "reflect") && strcmp(mode, "edge"))
        return bw_fail(err, BW_UNSUPPORTED, "%s: mode '%s', supported are constant, reflect and edge",
                       bw_import_where(im, n, where), mode);
    return BW_OK;
}

static bw_status fix_constant_of_shape(bw_importer *im, bw_node *n, bw_error *err)
{
    char where[200];
    const bw_attr *value = bw_node_attr(n, "value");
    if (value && (value->kind != BW_ATTR_ARRAY || bw_array_count(&value->array) != 1))
        return bw_fail(err, BW_CORRUPT, "%s: attribute 'value' must be a tensor of one element",
                       bw_import_where(im, n, where));
    return BW_OK;
}

typedef struct fix_row {
    const char *op;
    bw_status (*fix)(bw_importer *im, bw_node *n, bw_error *err);
} fix_row;

static const fix_row fixes[] = {
    {"AveragePool", fix_pool},
    {"BatchNormalization", fix_batchnorm},
    {"Cast", fix_cast},
    {"ConstantOfShape", fix_constant_of_shape},
    {"Dropout", fix_dropout},
    {"LayerNormalization", fix_one_output},
    {"LogSoftmax", fix_softmax},
    {"MaxPool", fix_pool},
    {"Pad", fix_pad},
    {"Resize", fix_resize},
    {"Softmax", fix_softmax},
    {"Split", fix_split},
    {"Upsample", fix_resize},
};

bw_status bw_normalise_node(bw_importer *im, int node, bw_error *err)
{
    bw_node *n = &im->g->nodes[node];
    for (size_t i = 0; i < sizeof fixes / sizeof fixes[0]; i++)
        if (!strcmp(fixes[i].op, n->op))
            return fixes[i].fix(im, n, err);
    return BW_OK;
}
