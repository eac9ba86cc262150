/* SPDX-License-Identifier: Apache-2.0 */
/* A model that doubles its input, for tests of what lies above sessions. */
#ifndef BW_TESTS_SUPPORT_FAKE_MODEL_H
#define BW_TESTS_SUPPORT_FAKE_MODEL_H

#include <stdlib.h>
#include <string.h>

#include "service/scoring.h"

static bw_status fake_run(void *self, const bw_array *inputs, bw_array *outputs, const bw_run_options *options,
                          bw_error *err)
{
    (void)self;
    (void)options;
    outputs[0] = inputs[0];
    outputs[0].data = malloc(inputs[0].bytes ? inputs[0].bytes : 1);
    outputs[0].owned = 1;
    if (!outputs[0].data)
        return bw_fail(err, BW_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < inputs[0].bytes / sizeof(float); i++)
        ((float *)outputs[0].data)[i] = 2 * ((const float *)inputs[0].data)[i];
    return BW_OK;
}

static int fake_alive(void *self)
{
    (void)self;
    return 1;
}

static const bw_model_ops fake_ops = {fake_run, fake_alive, NULL};

/* Serves a model; ios are borrowed. Aborts when out of memory. */
static inline bw_model *fake_model(bw_repository *r, const char *name, const char *version, const bw_io *inputs,
                                   int input_count, const bw_io *output)
{
    bw_model *m = bw_model_new(&fake_ops, NULL);
    if (!m)
        abort();
    m->name = name;
    m->version = version;
    m->input_count = input_count;
    for (int i = 0; i < input_count; i++)
        m->inputs[i] = &inputs[i];
    m->output_count = 1;
    m->outputs[0] = output;
    if (bw_repository_add(r, m, NULL))
        abort();
    return m;
}

#endif
