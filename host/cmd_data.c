/* SPDX-License-Identifier: Apache-2.0 */
#include "host/cmd_data.h"

#include <stdlib.h>

int bw_cmd_data_option(bw_cmd_data *d, int option)
{
    switch (option) {
    case 'D':
        d->path = optarg;
        return 1;
    case 'd':
        d->uri = optarg;
        return 1;
    case 'b':
        return bw_cmd_number(d->command, "--batch", optarg, 1, 4096, &d->batch);
    case 'c':
        return bw_cmd_number(d->command, "--count", optarg, 1, INT64_MAX, &d->limit);
    case 'q':
        d->quiet = 1;
        return 1;
    default:
        return 0;
    }
}

static bw_status name_classes(bw_cmd_data *d, bw_error *err)
{
    bw_session *s = d->model.session;
    int64_t n = bw_session_label_count(s);
    if (n == 0)
        return BW_OK;
    const char **names = malloc((size_t)n * sizeof *names);
    if (!names)
        return bw_fail(err, BW_NO_MEMORY, "no memory for labels");
    for (int64_t i = 0; i < n; i++)
        names[i] = bw_session_label(s, i);
    bw_status status = bw_dataset_set_classes(d->data, names, n, err);
    free(names);
    return status;
}

int bw_cmd_data_open(bw_cmd_data *d, int file_count, char **files)
{
    if (file_count != 1)
        return bw_cli_usage(d->command, "expected one package, got %d", file_count);
    if (!d->path)
        return bw_cli_usage(d->command, "--data is missing");
    bw_error err;
    bw_cli_catch_interrupts();
    bw_status status = bw_cmd_open_model(files[0], d->uri, &d->model, &err);
    bw_session *s = d->model.session;
    if (!status && bw_session_input_count(s) != 1)
        status = bw_fail(&err, BW_UNSUPPORTED, "%s: the model has %d inputs, data sets feed one: use 'blockwave run'",
                         files[0], bw_session_input_count(s));
    if (!status) {
        const bw_io *io = bw_session_input(s, 0);
        status = bw_dataset_open(d->path, bw_session_preprocess(s), io->name, io->rank, io->dims, &d->data, &err);
    }
    if (!status)
        status = name_classes(d, &err);
    if (status) {
        bw_cmd_data_close(d);
        return bw_cli_fail(d->command, &err);
    }
    d->count = bw_dataset_count(d->data);
    if (d->limit && d->limit < d->count)
        d->count = d->limit;
    /* A network with a batch of its own wants whole batches of it. */
    int64_t fixed = bw_session_input(s, 0)->dims[0];
    if (fixed > 0 && d->batch % fixed != 0)
        d->batch = d->batch < fixed ? fixed : d->batch / fixed * fixed;
    if (fixed > 1)
        d->count = d->count / fixed * fixed;
    return BW_EXIT_OK;
}

void bw_cmd_data_close(bw_cmd_data *d)
{
    bw_dataset_close(d->data);
    d->data = NULL;
    bw_cmd_close_model(&d->model);
}
