/* SPDX-License-Identifier: Apache-2.0 */
/* blockwave featurize */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "host/cmd.h"
#include "host/cmd_data.h"
#include "host/npy.h"

static const char help[] =
    "usage: blockwave featurize MODEL.bw --data DIR|FILE.npz|FILE.npy -o FEATURES.npz|FEATURES.npy\n"
    "\n"
    "Runs a data set up to the last accelerator stage and writes what comes out of it: the features for a classifier\n"
    "of your own. A .npz file holds the features as 'x' (under their own names if there are several) and the labels,\n"
    "if the data has any, as 'y' (-1 where unknown).\n"
    "\n"
    "  --data PATH        the data set, as for 'blockwave eval'; labels are optional\n"
    "  -o, --output FILE  where the features go\n"
    "  --device URI       default sim:, see 'blockwave devices'\n"
    "  --batch N          samples of one run, default 16\n"
    "  --count N          only the first N samples\n"
    "  --quiet            no progress on standard error\n"
    "  -h, --help\n";

static int ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), k = strlen(end);
    return n >= k && strcmp(s + n - k, end) == 0;
}

static bw_status create(const bw_cmd_data *d, const char *path, int labels, bw_npy_writer **w, bw_error *err)
{
    const bw_session *s = d->model.session;
    int count = bw_session_feature_count(s);
    if (count == 0)
        return bw_fail(err, BW_UNSUPPORTED, "model '%s' has no accelerator stage, so it has no features",
                       bw_session_model_name(s));
    bw_npy_spec *specs = calloc((size_t)count + 1, sizeof *specs);
    if (!specs)
        return bw_fail(err, BW_NO_MEMORY, "no memory");
    for (int i = 0; i < count; i++) {
        const bw_io *io = bw_session_feature(s, i);
        specs[i] = (bw_npy_spec){.name = count == 1 ? "x" : io->name, .dtype = BW_F32, .rank = io->rank};
        memcpy(specs[i].dims, io->dims, sizeof specs[i].dims);
        specs[i].dims[0] = d->count;
    }
    specs[count] = (bw_npy_spec){.name = "y", .dtype = BW_I64, .rank = 1, .dims = {d->count}};
    bw_status status = bw_npy_create(path, specs, count + labels, w, err);
    free(specs);
    return status;
}

static bw_status featurize(bw_cmd_data *d, bw_npy_writer *w, int write_labels, bw_error *err)
{
    bw_session *s = d->model.session;
    int features = bw_session_feature_count(s);
    int64_t *labels = malloc((size_t)d->batch * sizeof *labels);
    bw_array *out = calloc((size_t)features, sizeof *out);
    bw_status status = labels && out ? BW_OK : bw_fail(err, BW_NO_MEMORY, "no memory");
    bw_progress progress;
    bw_progress_begin(&progress, "featurize", (uint64_t)d->count, d->quiet);
    for (int64_t first = 0; first < d->count && !status; first += d->batch) {
        int64_t n = d->count - first < d->batch ? d->count - first : d->batch;
        bw_array in;
        if (bw_cli_interrupted()) {
            status = bw_fail(err, BW_CANCELLED, "interrupted after %" PRId64 " samples, nothing written", first);
            break;
        }
        status = bw_dataset_read(d->data, first, n, &in, labels, err);
        if (status)
            break;
        bw_run_options options = {.featurize = 1};
        status = bw_session_run(s, &in, out, &options, err);
        bw_array_free(&in);
        for (int i = 0; i < features && !status; i++)
            status = bw_npy_append(w, i, out[i].data, out[i].bytes, err);
        if (!status && write_labels)
            status = bw_npy_append(w, features, labels, (size_t)n * sizeof *labels, err);
        for (int i = 0; i < features; i++)
            bw_array_free(&out[i]);
        bw_progress_step(&progress, (uint64_t)(first + n));
    }
    bw_progress_end(&progress);
    free(labels);
    free(out);
    return status;
}

int bw_cmd_featurize(int argc, char **argv)
{
    static const struct option options[] = {
        {"data", required_argument, NULL, 'D'},   {"device", required_argument, NULL, 'd'},
        {"batch", required_argument, NULL, 'b'},  {"count", required_argument, NULL, 'c'},
        {"output", required_argument, NULL, 'o'}, {"quiet", no_argument, NULL, 'q'},
        {"help", no_argument, NULL, 'h'},         {NULL, 0, NULL, 0}};
    bw_cmd_data d = {.command = "featurize", .uri = "sim:", .batch = 16};
    const char *output = NULL;
    for (int c; (c = bw_cmd_option(argc, argv, options, help)) != BW_CMD_END;) {
        if (c == 'o')
            output = optarg;
        else if (c < 0 || !bw_cmd_data_option(&d, c))
            return c == BW_CMD_HELP ? BW_EXIT_OK : BW_EXIT_USAGE;
    }
    if (!output || (!ends_with(output, ".npz") && !ends_with(output, ".npy")))
        return bw_cli_usage("featurize", output ? "--output '%s' is neither .npz nor .npy" : "--output is missing%s",
                            output ? output : "");
    int code = bw_cmd_data_open(&d, argc - optind, argv + optind);
    if (code)
        return code;
    bw_error err;
    bw_npy_writer *w = NULL;
    int labels = bw_dataset_has_labels(d.data) && ends_with(output, ".npz");
    bw_status status = create(&d, output, labels, &w, &err);
    if (!status) {
        status = featurize(&d, w, labels, &err);
        if (status)
            bw_npy_abandon(w);
        else
            status = bw_npy_finish(w, &err);
    }
    if (status)
        code = bw_cli_fail("featurize", &err);
    else
        printf("%s: features of %" PRId64 " samples%s\n", output, d.count, labels ? ", with labels" : "");
    bw_cmd_data_close(&d);
    return code;
}
