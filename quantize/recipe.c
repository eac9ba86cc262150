/* SPDX-License-Identifier: Apache-2.0 */
/* Recipes: defaults, JSON, checks. */
#include "quantize/recipe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hal/base.h"

#define RECIPE_BYTES_MAX (1u << 20)

bw_quantize_recipe bw_recipe_default(void)
{
    return (bw_quantize_recipe){
        .core = {.weights = BW_FORMAT_MSFP16, .activations = BW_FORMAT_MSFP16, .vector = BW_FORMAT_FP16},
        .block_loss = 3};
}

bw_status bw_recipe_format(const char *what, const char *name, int vector, bw_format *format, bw_error *err)
{
    const bw_format_traits *t = bw_format_find(name);
    if (t && (vector ? t->kind == BW_KIND_VECTOR : bw_format_is_block(t))) {
        *format = t->format;
        return BW_OK;
    }
    char names[256] = "";
    for (int f = 0; f < BW_FORMAT_LIMIT; f++) {
        t = bw_format_get((bw_format)f);
        if (t && (vector ? t->kind == BW_KIND_VECTOR : bw_format_is_block(t)) &&
            strlen(names) + strlen(t->name) + 2 < sizeof names) {
            strcat(names, " ");
            strcat(names, t->name);
        }
    }
    return bw_fail(err, BW_INVALID_ARGUMENT, "%s: no format '%s', choose one of%s", what, name, names);
}

bw_status bw_recipe_block(const char *what, const char *text, bw_quantize_recipe *r, bw_error *err)
{
    static const struct {
        const char *text;
        uint16_t block;
    } known[] = {{"auto", 0}, {"16", 16}, {"32", 32}, {"64", 64}, {"128", 128}};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (!strcmp(text, known[i].text)) {
            r->core.block = known[i].block;
            r->choose_block = !known[i].block;
            return BW_OK;
        }
    return bw_fail(err, BW_INVALID_ARGUMENT, "%s: '%.32s', must be 16, 32, 64, 128 or auto", what, text);
}

static bw_status bad_type(const char *key, const char *expected, bw_error *err)
{
    return bw_fail(err, BW_INVALID_ARGUMENT, "recipe: \"%s\" must be %s", key, expected);
}

static bw_status read_key(const char *key, const json_t *v, bw_quantize_recipe *r, bw_error *err)
{
    const char *text = json_string_value(v);
    if (!strcmp(key, "weights") || !strcmp(key, "activations") || !strcmp(key, "vector") || !strcmp(key, "format")) {
        if (!text)
            return bad_type(key, "the name of a format", err);
        if (!strcmp(key, "vector"))
            return bw_recipe_format("recipe \"vector\"", text, 1, &r->core.vector, err);
        bw_format f = BW_FORMAT_NONE;
        bw_status s = bw_recipe_format("recipe", text, 0, &f, err);
        if (!s && strcmp(key, "activations") != 0)
            r->core.weights = f;
        if (!s && strcmp(key, "weights") != 0)
            r->core.activations = f;
        return s;
    }
    if (!strcmp(key, "block")) {
        char number[24];
        if (!text && !json_is_integer(v))
            return bad_type(key, "16, 32, 64, 128 or \"auto\"", err);
        snprintf(number, sizeof number, "%lld", (long long)json_integer_value(v));
        return bw_recipe_block("recipe \"block\"", text ? text : number, r, err);
    }
    if (!strcmp(key, "block_loss_db")) {
        double loss = json_number_value(v);
        if (!json_is_number(v) || !(loss >= 0 && loss <= BW_BLOCK_LOSS_MAX))
            return bad_type(key, "a number from 0 to 60", err);
        r->block_loss = loss;
        return BW_OK;
    }
    if (!strcmp(key, "first_last")) {
        if (!text || (strcmp(text, "float") != 0 && strcmp(text, "narrow") != 0))
            return bad_type(key, "\"float\" or \"narrow\"", err);
        r->core.first_last_float = !strcmp(text, "float");
        return BW_OK;
    }
    if (!strcmp(key, "scale_rule")) {
        if (!text || (strcmp(text, "floor") != 0 && strcmp(text, "mse") != 0))
            return bad_type(key, "\"floor\" or \"mse\"", err);
        r->core.scale_rule = !strcmp(text, "mse") ? BW_SCALE_MSE : BW_SCALE_FLOOR;
        return BW_OK;
    }
    if (!strcmp(key, "bias_correction")) {
        if (!json_is_boolean(v))
            return bad_type(key, "true or false", err);
        r->bias_correction = json_is_true(v);
        return BW_OK;
    }
    if (!strcmp(key, "fold_batchnorm")) {
        if (!json_is_boolean(v))
            return bad_type(key, "true or false", err);
        r->keep_batchnorm = !json_is_true(v);
        return BW_OK;
    }
    if (!strcmp(key, "input_transform")) {
        if (!text || (strcmp(text, "auto") != 0 && strcmp(text, "none") != 0))
            return bad_type(key, "\"auto\" or \"none\"", err);
        r->core.no_patches = !strcmp(text, "none");
        return BW_OK;
    }
    return bw_fail(err, BW_INVALID_ARGUMENT,
                   "recipe: unknown key \"%.64s\", known are format, weights, activations, vector, block, "
                   "block_loss_db, first_last, "
                   "scale_rule, bias_correction, fold_batchnorm, input_transform",
                   key);
}

bw_status bw_recipe_from_json(const json_t *json, bw_quantize_recipe *r, bw_error *err)
{
    if (!json_is_object(json))
        return bw_fail(err, BW_INVALID_ARGUMENT, "recipe: must be a JSON object");
    const char *key;
    json_t *v;
    /* "format" first, so that "weights" and "activations" refine it whatever the order in the file. */
    bw_status s = BW_OK;
    if ((v = json_object_get(json, "format")))
        s = read_key("format", v, r, err);
    json_object_foreach((json_t *)(uintptr_t)json, key, v)
    {
        if (!s && strcmp(key, "format") != 0)
            s = read_key(key, v, r, err);
    }
    return s;
}

bw_status bw_recipe_read(const char *path, bw_quantize_recipe *r, bw_error *err)
{
    void *bytes;
    size_t size;
    bw_status s = bw_file_read(path, RECIPE_BYTES_MAX, &bytes, &size, err);
    if (s)
        return s;
    json_error_t why;
    json_t *json = json_loadb(bytes, size, JSON_REJECT_DUPLICATES, &why);
    free(bytes);
    if (!json)
        return bw_fail(err, BW_CORRUPT, "%s: line %d, column %d: %s: a recipe is a JSON object", path, why.line,
                       why.column, why.text);
    s = bw_recipe_from_json(json, r, err);
    json_decref(json);
    return s ? bw_fail_context(err, s, "%s", path) : BW_OK;
}

bw_status bw_recipe_settle(bw_quantize_recipe *r, bw_error *err)
{
    const bw_format_traits *w = bw_format_get(r->core.weights), *a = bw_format_get(r->core.activations);
    if (!bw_format_is_block(w) || !bw_format_is_block(a))
        return bw_fail(err, BW_INVALID_ARGUMENT, "recipe: weights and activations must be block formats");
    if (!r->core.block)
        r->core.block = w->block > a->block ? w->block : a->block;
    r->choose_block = r->choose_block && w->block == 16 && a->block == 16;
    const bw_format_traits *both[2] = {w, a};
    for (int i = 0; i < 2; i++)
        if (!bw_format_block_ok(both[i], r->core.block))
            return bw_fail(err, BW_INVALID_ARGUMENT, "%s %s have no block of %u: choose %s", both[i]->name,
                           i ? "activations" : "weights", r->core.block,
                           both[i]->block == 16 ? "16, 32, 64 or 128" : "32");
    return BW_OK;
}

json_t *bw_recipe_to_json(const bw_quantize_recipe *r)
{
    return json_pack("{s:s, s:s, s:s, s:i, s:s, s:s, s:b, s:b, s:s}", "weights", bw_format_get(r->core.weights)->name,
                     "activations", bw_format_get(r->core.activations)->name, "vector",
                     bw_format_get(r->core.vector)->name, "block", (int)r->core.block, "first_last",
                     r->core.first_last_float ? "float" : "narrow", "scale_rule",
                     r->core.scale_rule == BW_SCALE_MSE ? "mse" : "floor", "bias_correction", r->bias_correction,
                     "fold_batchnorm", !r->keep_batchnorm, "input_transform", r->core.no_patches ? "none" : "auto");
}
