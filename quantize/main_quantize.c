/* SPDX-License-Identifier: Apache-2.0 */
/* blockwave-quantize: an ONNX network to a package. */
#include <errno.h>
#include <getopt.h>
#include <malloc.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "hal/base.h"
#include "host/cli.h"
#include "quantize/calibrate.h"
#include "quantize/choose_block.h"
#include "quantize/manifest.h"
#include "quantize/passes.h"
#include "quantize/summary.h"
#include "quantize/survey.h"

#define COMMAND      "quantize"
#define BINDINGS_MAX 64

static const char help[] =
    "Usage: blockwave quantize MODEL.onnx -o MODEL.bw [OPTION]...\n"
    "\n"
    "Quantizes an ONNX network to block floating point and writes a package.\n"
    "\n"
    "Numbers:\n"
    "      --format F           block format of weights and activations (default msfp16):\n"
    "                           msfp16 .. msfp11, mxint8, mxfp6_e2m3, mxfp4_e2m1, mxfp6_e3m2,\n"
    "                           mxfp8_e4m3, mxfp8_e5m2, mx9, mx6, mx4\n"
    "      --weights F          format of the weights alone\n"
    "      --activations F      format of the activations alone\n"
    "      --block N            values that share a scale, at most: 16, 32, 64, 128 (msfp, mx9, mx6,\n"
    "                           mx4) or 32 (mxint8, mxfp); auto: the longest that is as good as\n"
    "                           16 on the samples (needs --calib)\n"
    "      --block-loss DB      what auto takes for as good: signal to noise within DB (default 3)\n"
    "      --vector F           residual and depthwise tensors: fp16 (default) or bf16\n"
    "      --first-last W       float: first and last layer stay on the CPU in fp32;\n"
    "                           narrow (default): quantized like the others\n"
    "      --scale-rule W       scale of a block of weights: floor (default): floor(log2(max));\n"
    "                           mse: the least squared error among it and its neighbours\n"
    "      --no-fold-batchnorm  batch normalisations stay operations of their own, so that\n"
    "                           weights are rounded as they were trained\n"
    "      --input-transform W  auto (default): a first layer of few channels reads gathered\n"
    "                           patches; none: it reads pixels, each a block: finer, slower\n"
    "      --recipe R.json      all of this from a file; options override it\n"
    "Calibration:\n"
    "      --calib DATA         a directory of pictures, FILE.npz or FILE.npy: measures the\n"
    "                           quantized network against the float one\n"
    "      --calib-count N      use the first N samples (default: all)\n"
    "      --bias-correction    take the mean error of each channel from its bias (needs --calib)\n"
    "      --no-bias-correction\n"
    "Package:\n"
    "  -o, --output FILE        the package to write\n"
    "      --name NAME          model name (default: from the file name)\n"
    "      --model-version V    model version, digits (default 1)\n"
    "      --labels FILE        one label per line, in class order\n"
    "      --preprocess FILE    JSON: how pictures become inputs\n"
    "      --bind SYMBOL=N      value of a symbolic dimension\n"
    "Other:\n"
    "      --keep-intermediate DIR  also write graphs and stages there\n"
    "  -q, --quiet              errors only\n"
    "  -h, --help, --version\n"
    "\n"
    "The same model, options and samples give the same bytes. Exit status: 0, 1 failure, 2 usage, 130 interrupted.\n";

enum {
    OPT_FORMAT = 256,
    OPT_WEIGHTS,
    OPT_ACTIVATIONS,
    OPT_BLOCK,
    OPT_BLOCK_LOSS,
    OPT_FOLD,
    OPT_TRANSFORM,
    OPT_NO_FOLD,
    OPT_VECTOR,
    OPT_FIRST_LAST,
    OPT_SCALE_RULE,
    OPT_RECIPE,
    OPT_CALIB,
    OPT_CALIB_COUNT,
    OPT_BIAS,
    OPT_NO_BIAS,
    OPT_NAME,
    OPT_MODEL_VERSION,
    OPT_LABELS,
    OPT_PREPROCESS,
    OPT_BIND,
    OPT_KEEP,
    OPT_VERSION
};

static const struct option options[] = {{"format", 1, NULL, OPT_FORMAT},
                                        {"weights", 1, NULL, OPT_WEIGHTS},
                                        {"activations", 1, NULL, OPT_ACTIVATIONS},
                                        {"block", 1, NULL, OPT_BLOCK},
                                        {"block-loss", 1, NULL, OPT_BLOCK_LOSS},
                                        {"vector", 1, NULL, OPT_VECTOR},
                                        {"first-last", 1, NULL, OPT_FIRST_LAST},
                                        {"scale-rule", 1, NULL, OPT_SCALE_RULE},
                                        {"fold-batchnorm", 0, NULL, OPT_FOLD},
                                        {"no-fold-batchnorm", 0, NULL, OPT_NO_FOLD},
                                        {"input-transform", 1, NULL, OPT_TRANSFORM},
                                        {"recipe", 1, NULL, OPT_RECIPE},
                                        {"calib", 1, NULL, OPT_CALIB},
                                        {"calib-count", 1, NULL, OPT_CALIB_COUNT},
                                        {"bias-correction", 0, NULL, OPT_BIAS},
                                        {"no-bias-correction", 0, NULL, OPT_NO_BIAS},
                                        {"output", 1, NULL, 'o'},
                                        {"name", 1, NULL, OPT_NAME},
                                        {"model-version", 1, NULL, OPT_MODEL_VERSION},
                                        {"labels", 1, NULL, OPT_LABELS},
                                        {"preprocess", 1, NULL, OPT_PREPROCESS},
                                        {"bind", 1, NULL, OPT_BIND},
                                        {"keep-intermediate", 1, NULL, OPT_KEEP},
                                        {"quiet", 0, NULL, 'q'},
                                        {"help", 0, NULL, 'h'},
                                        {"version", 0, NULL, OPT_VERSION},
                                        {NULL, 0, NULL, 0}};

struct arguments {
    const char *model, *output, *calib, *name, *version, *labels, *preprocess, *keep;
    int64_t calib_count;
    int quiet, loss_given;
    bw_quantize_recipe recipe;
    bw_binding bindings[BINDINGS_MAX];
    size_t binding_count;
};

static int parse_count(const char *text, int64_t most, int64_t *value)
{
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (errno || end == text || *end || v < 1 || v > most)
        return 0;
    *value = v;
    return 1;
}

/* What the recipe decides; separate, because a recipe file comes first wherever it stands. */
static bw_status recipe_option(int c, const char *arg, bw_quantize_recipe *r, bw_error *err)
{
    char *end;
    bw_status s = BW_OK;
    switch (c) {
    case OPT_FORMAT:
    case OPT_WEIGHTS:
        s = bw_recipe_format(c == OPT_FORMAT ? "--format" : "--weights", arg, 0, &r->core.weights, err);
        if (!s && c == OPT_FORMAT)
            r->core.activations = r->core.weights;
        return s;
    case OPT_ACTIVATIONS:
        return bw_recipe_format("--activations", arg, 0, &r->core.activations, err);
    case OPT_VECTOR:
        return bw_recipe_format("--vector", arg, 1, &r->core.vector, err);
    case OPT_BLOCK:
        return bw_recipe_block("--block", arg, r, err);
    case OPT_BLOCK_LOSS:
        r->block_loss = strtod(arg, &end);
        if (end == arg || *end || !(r->block_loss >= 0 && r->block_loss <= BW_BLOCK_LOSS_MAX))
            return bw_fail(err, BW_INVALID_ARGUMENT, "--block-loss: '%s', must be decibels from 0 to %g", arg,
                           BW_BLOCK_LOSS_MAX);
        return BW_OK;
    case OPT_FIRST_LAST:
        if (strcmp(arg, "float") != 0 && strcmp(arg, "narrow") != 0)
            return bw_fail(err, BW_INVALID_ARGUMENT, "--first-last: '%s', must be float or narrow", arg);
        r->core.first_last_float = !strcmp(arg, "float");
        return BW_OK;
    case OPT_SCALE_RULE:
        if (strcmp(arg, "floor") != 0 && strcmp(arg, "mse") != 0)
            return bw_fail(err, BW_INVALID_ARGUMENT, "--scale-rule: '%s', must be floor or mse", arg);
        r->core.scale_rule = !strcmp(arg, "mse") ? BW_SCALE_MSE : BW_SCALE_FLOOR;
        return BW_OK;
    case OPT_FOLD:
    case OPT_NO_FOLD:
        r->keep_batchnorm = c == OPT_NO_FOLD;
        return BW_OK;
    case OPT_TRANSFORM:
        if (strcmp(arg, "auto") != 0 && strcmp(arg, "none") != 0)
            return bw_fail(err, BW_INVALID_ARGUMENT, "--input-transform: '%s', must be auto or none", arg);
        r->core.no_patches = !strcmp(arg, "none");
        return BW_OK;
    case OPT_BIAS:
    case OPT_NO_BIAS:
        r->bias_correction = c == OPT_BIAS;
        return BW_OK;
    default:
        return BW_OK;
    }
}

static bw_status plain_option(int c, char *arg, struct arguments *a, bw_error *err)
{
    char *equals;
    int64_t n;
    switch (c) {
    case 'o':
        a->output = arg;
        return BW_OK;
    case 'q':
        a->quiet = 1;
        return BW_OK;
    case OPT_CALIB:
        a->calib = arg;
        return BW_OK;
    case OPT_CALIB_COUNT:
        if (!parse_count(arg, INT64_MAX, &a->calib_count))
            return bw_fail(err, BW_INVALID_ARGUMENT, "--calib-count: '%s', must be a whole number from 1 on", arg);
        return BW_OK;
    case OPT_NAME:
        a->name = arg;
        if (!bw_model_name_ok(arg))
            return bw_fail(err, BW_INVALID_ARGUMENT, "--name: '%s', must be 1 to 128 of A-Z a-z 0-9 _ . -", arg);
        return BW_OK;
    case OPT_MODEL_VERSION:
        a->version = arg;
        if (!bw_model_version_ok(arg))
            return bw_fail(err, BW_INVALID_ARGUMENT, "--model-version: '%s', must be 1 to 18 digits", arg);
        return BW_OK;
    case OPT_LABELS:
        a->labels = arg;
        return BW_OK;
    case OPT_PREPROCESS:
        a->preprocess = arg;
        return BW_OK;
    case OPT_KEEP:
        a->keep = arg;
        return BW_OK;
    case OPT_BIND:
        equals = strchr(arg, '=');
        if (!equals || equals == arg || !parse_count(equals + 1, INT32_MAX, &n))
            return bw_fail(err, BW_INVALID_ARGUMENT, "--bind: '%s', must be SYMBOL=N with N from 1 on", arg);
        if (a->binding_count == BINDINGS_MAX)
            return bw_fail(err, BW_INVALID_ARGUMENT, "--bind: more than %d of them", BINDINGS_MAX);
        *equals = 0;
        a->bindings[a->binding_count++] = (bw_binding){arg, n};
        return BW_OK;
    default:
        return BW_OK;
    }
}

/* -1: go on; else the exit status. */
static int parse_arguments(int argc, char **argv, struct arguments *a)
{
    bw_error err;
    *a = (struct arguments){.version = "1", .recipe = bw_recipe_default()};
    opterr = 0;
    for (int round = 0; round < 2; round++) { /* recipe files first, then everything else */
        optind = 1;
        int c;
        while ((c = getopt_long(argc, argv, "o:qh", options, NULL)) != -1) {
            bw_status s = BW_OK;
            if (c == '?')
                return bw_cli_usage(COMMAND, "unknown option or missing value at '%s'", argv[optind - 1]);
            if (c == 'h') {
                fputs(help, stdout);
                return BW_EXIT_OK;
            }
            if (c == OPT_VERSION) {
                printf("blockwave %s\n", BW_VERSION);
                return BW_EXIT_OK;
            }
            if (round == 0 && c == OPT_RECIPE) {
                s = bw_recipe_read(optarg, &a->recipe, &err);
                if (s)
                    return bw_cli_fail(COMMAND, &err);
            } else if (round == 1) {
                a->loss_given |= c == OPT_BLOCK_LOSS;
                s = recipe_option(c, optarg, &a->recipe, &err);
                if (!s)
                    s = plain_option(c, optarg, a, &err);
            }
            if (s)
                return bw_cli_usage(COMMAND, "%s", err.message);
        }
    }
    if (optind != argc - 1)
        return bw_cli_usage(COMMAND, optind >= argc ? "no MODEL.onnx given" : "more than one model given: '%s'",
                            optind >= argc ? "" : argv[optind + 1]);
    a->model = argv[optind];
    if (!a->output)
        return bw_cli_usage(COMMAND, "no output given: -o MODEL.bw");
    if (a->recipe.bias_correction && !a->calib)
        return bw_cli_usage(COMMAND, "bias correction needs samples: --calib DATA");
    if (a->loss_given && !a->recipe.choose_block)
        return bw_cli_usage(COMMAND, "--block-loss goes with --block auto");
    if (bw_recipe_settle(&a->recipe, &err))
        return bw_cli_usage(COMMAND, "%s", err.message);
    if (a->recipe.choose_block && !a->calib)
        return bw_cli_usage(COMMAND, "--block auto needs samples: --calib DATA");
    return -1;
}

static bw_status read_labels(const char *path, json_t **labels, bw_error *err)
{
    void *bytes;
    size_t size;
    bw_status s = bw_file_read(path, 16u << 20, &bytes, &size, err);
    if (s)
        return s;
    *labels = json_array();
    for (char *p = bytes; *p && !s;) {
        size_t n = strcspn(p, "\n"), keep = n && p[n - 1] == '\r' ? n - 1 : n;
        json_t *label = json_stringn(p, keep);
        if (!label || json_array_append_new(*labels, label))
            s = bw_fail(err, BW_CORRUPT, "%s: line %zu is not UTF-8 text", path, json_array_size(*labels) + 1);
        p += n + (p[n] == '\n');
    }
    if (!s && !json_array_size(*labels))
        s = bw_fail(err, BW_CORRUPT, "%s: no labels, one per line is expected", path);
    free(bytes);
    if (s) {
        json_decref(*labels);
        *labels = NULL;
    }
    return s;
}

static bw_status read_preprocess(const char *path, bw_preprocess *p, json_t **json, bw_error *err)
{
    void *bytes;
    size_t size;
    bw_status s = bw_file_read(path, 1u << 20, &bytes, &size, err);
    if (s)
        return s;
    json_error_t why;
    json_t *text = json_loadb(bytes, size, JSON_REJECT_DUPLICATES, &why);
    free(bytes);
    if (!text)
        return bw_fail(err, BW_CORRUPT, "%s: line %d, column %d: %s", path, why.line, why.column, why.text);
    s = bw_preprocess_from_json(text, p, err);
    json_decref(text);
    if (s)
        return bw_fail_context(err, s, "%s", path);
    *json = bw_preprocess_to_json(p);
    return *json ? BW_OK : bw_fail(err, BW_NO_MEMORY, "out of memory");
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* The file name without its extension, other characters replaced. */
static void default_name(const char *path, char name[129])
{
    const char *base = base_name(path);
    size_t n = strlen(base), dot = n;
    for (size_t i = 1; i < n; i++)
        dot = base[i] == '.' ? i : dot;
    n = dot < 128 ? dot : 128;
    for (size_t i = 0; i < n; i++) {
        char one[2] = {base[i], 0};
        name[i] = bw_model_name_ok(one) ? base[i] : '_';
    }
    name[n] = 0;
    if (!n)
        strcpy(name, "model");
}

/* --- intermediate files ----------------------------------------------------------------------------------------- */

static bw_status keep_file(const char *dir, const char *name, const void *bytes, size_t size, bw_error *err)
{
    char path[4096];
    if (snprintf(path, sizeof path, "%s/%s", dir, name) >= (int)sizeof path)
        return bw_fail(err, BW_INVALID_ARGUMENT, "--keep-intermediate: path of more than %zu characters", sizeof path);
    bw_slice slice = {bytes, size};
    return bw_file_write_atomic(path, &slice, 1, err);
}

static bw_status keep_graph(const char *dir, const char *stem, const bw_graph *g, bw_error *err)
{
    char *text = NULL, name[64];
    void *blob = NULL;
    size_t size = 0;
    if (!dir)
        return BW_OK;
    bw_status s = bw_graph_write(g, &text, &blob, &size, err);
    if (s)
        return s;
    snprintf(name, sizeof name, "%s.json", stem);
    s = keep_file(dir, name, text, strlen(text), err);
    snprintf(name, sizeof name, "%s.bin", stem);
    if (!s)
        s = keep_file(dir, name, blob, size, err);
    free(text);
    free(blob);
    return s;
}

static bw_status keep_stages(const char *dir, const bw_compiled *c, bw_error *err)
{
    bw_status s = BW_OK;
    for (int i = 0; dir && i < c->stage_count && !s; i++) {
        const bw_stage *st = &c->stages[i];
        char name[64];
        snprintf(name, sizeof name, "3-stage%d", i);
        if (!st->device) {
            s = keep_graph(dir, name, st->graph, err);
            continue;
        }
        snprintf(name, sizeof name, "3-stage%d-program.bin", i);
        s = keep_file(dir, name, st->program, st->program_size, err);
        snprintf(name, sizeof name, "3-stage%d-constants.bin", i);
        if (!s)
            s = keep_file(dir, name, st->constants, st->constants_size, err);
    }
    return s;
}

/* --- the command ------------------------------------------------------------------------------------------------ */

struct job {
    struct arguments a;
    bw_graph *g;
    bw_import_info info;
    bw_compiled compiled;
    bw_dataset *data;
    bw_preprocess preprocess;
    json_t *preprocess_json, *labels, *quality;
    bw_block_choice choice;
    bw_progress_bar bar;
};

static bw_status interrupted(bw_error *err)
{
    return bw_cli_interrupted() ? bw_fail(err, BW_CANCELLED, "interrupted: nothing was written") : BW_OK;
}

/* --- what each phase will take, in seconds on some machine ------------------------------------------------------ */

#define READ_BYTE     1.6e-9
#define FOLD_BYTE     0.2e-9
#define PACK_WEIGHT   9e-9
#define PACK_MSE      2.5 /* times as much with that scale rule */
#define FLOAT_MAC     10e-12
#define NARROW_MAC    6e-12
#define WRITE_BYTE    1.5e-9
#define MACS_OF_BYTE  40. /* a guess, before the network is known */
#define COUNT_UNKNOWN 100.
#define TRIALS        2.5 /* of blocks, before one is good */

static double pack_seconds(const struct job *j, double weights)
{
    return weights * PACK_WEIGHT * (j->a.recipe.core.scale_rule == BW_SCALE_MSE ? PACK_MSE : 1);
}

/* Of the network, once it is known, else of its file. */
static void expect(struct job *j)
{
    struct stat st;
    double bytes = stat(j->a.model, &st) ? 0 : (double)st.st_size, weights = bytes / 4, macs = bytes * MACS_OF_BYTE;
    double count = j->a.calib_count > 0 ? (double)j->a.calib_count : COUNT_UNKNOWN;
    int layers = 50;
    if (j->g) {
        weights = macs = layers = 0;
        for (int v = 0; v < j->g->value_count; v++)
            weights += j->g->values[v].constant ? (double)bw_array_count(j->g->values[v].constant) : 0;
        for (int n = 0; n < j->g->node_count; n++) {
            macs += (double)bw_survey_macs(j->g, n);
            layers += bw_survey_macs(j->g, n) > 0;
        }
    }
    if (j->data && (double)bw_dataset_count(j->data) < (j->a.calib_count > 0 ? count : INFINITY))
        count = (double)bw_dataset_count(j->data);
    double narrow = count * macs * NARROW_MAC, both = narrow + count * macs * FLOAT_MAC;
    bw_bar_expect(&j->bar, BW_PHASE_READ, bytes * READ_BYTE);
    bw_bar_expect(&j->bar, BW_PHASE_PASSES, bytes * FOLD_BYTE);
    double tried = fmin(count, BW_BLOCK_SAMPLES) * macs;
    bw_bar_expect(
        &j->bar, BW_PHASE_CHOOSE,
        j->a.recipe.choose_block ? tried * FLOAT_MAC + TRIALS * (tried * NARROW_MAC + pack_seconds(j, weights)) : 0);
    bw_bar_expect(&j->bar, BW_PHASE_PACK, pack_seconds(j, weights));
    bw_bar_expect(&j->bar, BW_PHASE_CORRECT,
                  j->a.recipe.bias_correction ? both + layers * (narrow + pack_seconds(j, weights)) : 0);
    bw_bar_expect(&j->bar, BW_PHASE_CALIBRATE, j->a.calib ? both : 0);
    bw_bar_expect(&j->bar, BW_PHASE_WRITE, weights * WRITE_BYTE);
}

static bw_status open_samples(struct job *j, bw_error *err)
{
    const bw_value *in = &j->g->values[j->g->inputs[0]];
    return bw_dataset_open(j->a.calib, j->preprocess_json ? &j->preprocess : NULL, in->name, in->rank, in->dims,
                           &j->data, err);
}

static int on_packed(uint64_t done, uint64_t total, void *user)
{
    bw_bar_step(user, (double)done / (double)(total ? total : 1));
    return bw_cli_interrupted();
}

static bw_status load(struct job *j, bw_error *err)
{
    bw_status s = BW_OK;
    bw_bar_begin(&j->bar, j->a.quiet);
    expect(j);
    bw_bar_enter(&j->bar, BW_PHASE_READ, NULL);
    if (j->a.labels && (s = read_labels(j->a.labels, &j->labels, err)))
        return s;
    if (j->a.preprocess && (s = read_preprocess(j->a.preprocess, &j->preprocess, &j->preprocess_json, err)))
        return s;
    if ((s = bw_onnx_import(j->a.model, j->a.bindings, j->a.binding_count, &j->g, &j->info, err)) ||
        (s = keep_graph(j->a.keep, "1-imported", j->g, err)))
        return s;
    bw_bar_enter(&j->bar, BW_PHASE_PASSES, NULL);
    if ((s = j->a.recipe.keep_batchnorm ? bw_passes_run_unfolded(j->g, err) : bw_passes_run(j->g, err)) ||
        (s = keep_graph(j->a.keep, "2-passes", j->g, err)))
        return s;
    if (j->g->input_count < 1 && (j->preprocess_json || j->a.calib))
        return bw_fail(err, BW_UNSUPPORTED, "%s has no inputs: expected one to give samples to; quantize without them",
                       j->a.model);
    if (j->preprocess_json) {
        const bw_value *in = &j->g->values[j->g->inputs[0]];
        if ((s = bw_preprocess_check(&j->preprocess, in->name, in->rank, in->dims, err)))
            return s;
    }
    if (j->a.calib && (s = open_samples(j, err)))
        return s;
    expect(j);
    return interrupted(err);
}

static bw_calibration samples_of(struct job *j)
{
    return (bw_calibration){j->data, base_name(j->a.calib), j->a.calib_count, &j->bar};
}

static bw_status choose_block(struct job *j, bw_error *err)
{
    const bw_calibration o = samples_of(j);
    return bw_choose_block(j->g, &j->a.recipe.core, j->a.recipe.block_loss, &o, &j->choice, err);
}

/* What was tried, for the package. */
static bw_status note_choice(const struct job *j, bw_error *err)
{
    json_t *all = json_array();
    int failed = 0;
    for (int i = 0; i < j->choice.count; i++) {
        const bw_block_trial *t = &j->choice.tried[i];
        json_t *db = isfinite(t->sqnr_db) ? bw_quality_number(t->sqnr_db) : json_null();
        failed |= json_array_append_new(all, json_pack("{s:i, s:o, s:I}", "block", (int)t->block, "sqnr_db", db,
                                                       "samples", (json_int_t)j->choice.samples));
    }
    return json_object_set_new(j->quality, "blocks_tried", all) || failed
               ? bw_fail(err, BW_NO_MEMORY, "out of memory while calibrating")
               : BW_OK;
}

static bw_status calibrate(struct job *j, bw_error *err)
{
    bw_status s;
    const bw_calibration o = samples_of(j);
    if (j->a.recipe.bias_correction) {
        int corrected = 0;
        s = bw_correct_biases(j->g, &j->a.recipe.core, &o, &corrected, err);
        if (s)
            return s;
        bw_compiled_free(&j->compiled);
        if ((s = bw_compile(j->g, &j->a.recipe.core, &j->compiled, err)))
            return s;
    }
    s = bw_calibrate(j->g, &j->compiled, &o, &j->quality, err);
    if (!s && j->a.recipe.bias_correction)
        json_object_set_new(j->quality, "bias_correction", json_true());
    if (!s && j->choice.count)
        s = note_choice(j, err);
    return s;
}

static bw_status run(struct job *j, bw_error *err)
{
    if (j->a.keep && mkdir(j->a.keep, 0777) && errno != EEXIST)
        return bw_fail(err, BW_IO, "--keep-intermediate: cannot make '%s': %s", j->a.keep, strerror(errno));
    bw_status s = load(j, err);
    if (s)
        return s;
    if (j->a.recipe.choose_block && (s = choose_block(j, err)))
        return s;
    bw_bar_enter(&j->bar, BW_PHASE_PACK, NULL);
    if ((s = bw_compile_watched(j->g, &j->a.recipe.core, on_packed, &j->bar, &j->compiled, err)))
        return s;
    if ((s = interrupted(err)) || (j->a.calib && (s = calibrate(j, err))))
        return s;
    if ((s = keep_stages(j->a.keep, &j->compiled, err)))
        return s;
    char name[129];
    default_name(j->a.model, name);
    bw_manifest_source m = {.g = j->g,
                            .compiled = &j->compiled,
                            .recipe = &j->a.recipe,
                            .name = j->a.name ? j->a.name : name,
                            .version = j->a.version,
                            .source_file = base_name(j->a.model),
                            .info = &j->info,
                            .preprocess = j->preprocess_json,
                            .labels = j->labels,
                            .quality = j->quality};
    if ((s = interrupted(err)))
        return s;
    bw_bar_enter(&j->bar, BW_PHASE_WRITE, NULL);
    return bw_package_from_compiled(&m, j->a.output, err);
}

int main(int argc, char **argv)
{
    bw_cli_let_threads_sleep(argv);
    struct job j;
    memset(&j, 0, sizeof j);
    int code = parse_arguments(argc, argv, &j.a);
    if (code >= 0)
        return code;
    /* Weights and batches go back to the system when they are freed: the largest moment decides, not their sum. */
    mallopt(M_MMAP_THRESHOLD, 256 << 10);
    bw_cli_catch_interrupts();
    bw_error err;
    code = BW_EXIT_OK;
    bw_status failed = run(&j, &err);
    bw_bar_end(&j.bar, !failed);
    if (failed)
        code = bw_cli_fail(COMMAND, &err);
    else if (!j.a.quiet)
        bw_summary_print(j.a.output, &j.a.recipe.core, &j.compiled, j.quality);
    bw_dataset_close(j.data);
    bw_compiled_free(&j.compiled);
    bw_graph_free(j.g);
    json_decref(j.preprocess_json);
    json_decref(j.labels);
    json_decref(j.quality);
    return code;
}
