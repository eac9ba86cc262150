/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/compare.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bw_status bw_compare_reference(const bw_compare_engine *engine, const bw_program *program, const void *constants,
                               const void *in, void *out, uint32_t batch, bw_error *err)
{
    (void)engine;
    return bw_reference_run(program, constants, in, out, batch, err);
}

bw_status bw_compare_fast(const bw_compare_engine *engine, const bw_program *program, const void *constants,
                          const void *in, void *out, uint32_t batch, bw_error *err)
{
    bw_fast_options options = {engine->isa, engine->threads, engine->pipes, 1};
    bw_fast *fast;
    bw_status status = bw_fast_create(program, constants, &options, &fast, err);
    if (status)
        return status;
    status = bw_fast_run(fast, in, out, batch, NULL, err);
    bw_fast_destroy(fast);
    return status;
}

/* First element of `t` (fp32, in OUT) whose bits differ in any image. */
static int differs(const bw_compare_case *c, uint32_t index, const char *name, const bw_tensor *t, const uint8_t *a,
                   const uint8_t *b, char *report)
{
    const bw_instruction *ins = &c->program->instructions[index];
    for (uint32_t image = 0; image < c->batch; image++)
        for (uint32_t y = 0; y < t->height; y++)
            for (uint32_t x = 0; x < t->width; x++)
                for (uint32_t n = 0; n < t->channels; n++) {
                    size_t at = image * c->program->header->out_bytes + t->codes +
                                ((size_t)y * t->row_stride + (size_t)x * t->pixel_stride + n) * 4;
                    float va, vb;
                    memcpy(&va, a + at, 4);
                    memcpy(&vb, b + at, 4);
                    if (memcmp(a + at, b + at, 4) == 0)
                        continue;
                    snprintf(report, BW_COMPARE_REPORT,
                             "%s of instruction %u (%s), image %u, y %u, x %u, channel %u: %a (%.9g) and %a (%.9g)",
                             name, index, bw_opcode_name(ins->opcode), image, y, x, n, (double)va, (double)va,
                             (double)vb, (double)vb);
                    return 1;
                }
    return 0;
}

int bw_compare_outputs(const bw_compare_case *c, const void *a, const void *b, char report[BW_COMPARE_REPORT])
{
    const size_t bytes = c->program->header->out_bytes * c->batch;
    if (bytes == 0 || memcmp(a, b, bytes) == 0)
        return 0;
    for (uint32_t i = 0; i < c->program->header->instruction_count; i++) {
        const bw_instruction *ins = &c->program->instructions[i];
        if (ins->out0.region == BW_REGION_OUT && differs(c, i, "out0", &ins->out0, a, b, report))
            return 1;
        if (ins->out1.region == BW_REGION_OUT && differs(c, i, "out1", &ins->out1, a, b, report))
            return 1;
    }
    size_t at = 0;
    while (((const uint8_t *)a)[at] == ((const uint8_t *)b)[at])
        at++;
    snprintf(report, BW_COMPARE_REPORT, "byte %zu of the outputs, which no instruction writes", at);
    return 1;
}

/* Runs both engines into fresh outputs, filled alike, so that an element that is not written shows. */
static int run_both(const bw_compare_case *c, const bw_compare_engine *a, const bw_compare_engine *b, uint8_t **outs,
                    char *report)
{
    const bw_compare_engine *engines[2] = {a, b};
    const size_t bytes = c->program->header->out_bytes * c->batch;
    for (int i = 0; i < 2; i++) {
        bw_error err;
        outs[i] = malloc(bytes + 1);
        if (!outs[i]) {
            snprintf(report, BW_COMPARE_REPORT, "no memory for outputs of %zu bytes", bytes);
            return -1;
        }
        memset(outs[i], 0xA5, bytes + 1);
        if (engines[i]->run(engines[i], c->program, c->constants, c->in, outs[i], c->batch, &err)) {
            snprintf(report, BW_COMPARE_REPORT, "%s failed: %s", engines[i]->name, err.message);
            return -1;
        }
        if (outs[i][bytes] != 0xA5) {
            snprintf(report, BW_COMPARE_REPORT, "%s wrote past the outputs", engines[i]->name);
            return 1;
        }
    }
    return 0;
}

/* Compares tensor `t`, a result of instruction `index`, through a program that ends there and copies it out. */
static int compare_result(const bw_compare_case *c, const bw_compare_engine *a, const bw_compare_engine *b,
                          uint32_t index, const char *name, const bw_tensor *t, char *report)
{
    if (t->region != BW_REGION_ACT)
        return 0;
    const size_t head = sizeof(bw_program_header), size = head + (index + 2) * sizeof(bw_instruction);
    uint8_t *bytes = calloc(1, size);
    if (!bytes)
        return 0;
    bw_program_header *header = (bw_program_header *)(void *)bytes;
    bw_instruction *list = (bw_instruction *)(void *)(bytes + head), *last = &list[index + 1];
    *header = *c->program->header;
    header->instruction_count = index + 2;
    memcpy(list, c->program->instructions, (index + 1) * sizeof *list);
    *last = (bw_instruction){.opcode = BW_OP_COPY,
                             .kernel_y = 1,
                             .kernel_x = 1,
                             .stride_y = 1,
                             .stride_x = 1,
                             .dilation_y = 1,
                             .dilation_x = 1,
                             .groups = 1,
                             .in = *t};
    last->out0 = (bw_tensor){.codes = header->out_bytes,
                             .height = t->height,
                             .width = t->width,
                             .channels = t->channels,
                             .pixel_stride = t->channels,
                             .row_stride = t->channels * t->width,
                             .format = BW_FORMAT_FP32,
                             .region = BW_REGION_OUT,
                             .block = 1};
    header->out_bytes += (uint64_t)t->height * t->width * t->channels * 4;
    bw_program program;
    uint8_t *outs[2] = {NULL, NULL};
    int result = 0;
    bw_error err;
    if (bw_program_parse(bytes, size, &program, &err) == BW_OK) {
        bw_compare_case part = {&program, c->constants, c->in, c->batch};
        char text[BW_COMPARE_REPORT];
        if (run_both(&part, a, b, outs, text) == 0 &&
            differs(&part, index + 1, "copy", &last->out0, outs[0], outs[1], text)) {
            const char *element = strchr(text, ',');
            snprintf(report, BW_COMPARE_REPORT, "%s of instruction %u (%s)%s", name, index,
                     bw_opcode_name(list[index].opcode), element ? element : "");
            result = 1;
        }
    }
    free(outs[0]);
    free(outs[1]);
    free(bytes);
    return result;
}

int bw_compare_engines(const bw_compare_case *c, const bw_compare_engine *a, const bw_compare_engine *b,
                       char report[BW_COMPARE_REPORT])
{
    uint8_t *outs[2] = {NULL, NULL};
    char text[BW_COMPARE_REPORT];
    int result = run_both(c, a, b, outs, text);
    if (result == 0)
        result = bw_compare_outputs(c, outs[0], outs[1], text);
    free(outs[0]);
    free(outs[1]);
    for (uint32_t i = 0; result == 1 && i < c->program->header->instruction_count; i++) {
        const bw_instruction *ins = &c->program->instructions[i];
        if (compare_result(c, a, b, i, "out0", &ins->out0, text) ||
            compare_result(c, a, b, i, "out1", &ins->out1, text))
            break;
    }
    if (result)
        snprintf(report, BW_COMPARE_REPORT, "%s and %s: %.800s", a->name, b->name, text);
    return result;
}
