/* SPDX-License-Identifier: Apache-2.0 */
/* What a quantization came to, for people. */
#include "quantize/summary.h"

#include <stdio.h>

#include "host/cli.h"

/* Values beyond the vector format's range saturate there. */
static void warn_of_range(const bw_recipe *r, const json_t *quality)
{
    const bw_format_traits *t = bw_format_get(r->vector);
    double most = (double)bw_decode_vector(t, bw_encode_vector(t, 0x1.fffffep127f));
    const json_t *o, *tensors = json_object_get(quality, "tensors");
    for (size_t i = 0; i < json_array_size(tensors); i++) {
        o = json_array_get(tensors, i);
        double low = json_number_value(json_object_get(o, "min")), high = json_number_value(json_object_get(o, "max"));
        double reach = -low > high ? -low : high;
        if (reach <= most)
            continue;
        fprintf(stderr, "blockwave quantize: warning: '%s' reaches %g, %s ends at %g and saturates%s\n",
                json_string_value(json_object_get(o, "name")), reach, t->name, most,
                t->format == BW_FORMAT_FP16 ? ": try --vector bf16" : "");
        return;
    }
}

void bw_summary_print(const char *path, const bw_recipe *r, const bw_compiled *c, const json_t *quality)
{
    uint64_t constants = 0, act = 0;
    int device = 0, instructions = 0;
    for (int i = 0; i < c->stage_count; i++) {
        bw_program p;
        const bw_stage *s = &c->stages[i];
        if (!s->device || bw_program_parse(s->program, s->program_size, &p, NULL))
            continue;
        device++;
        instructions += (int)p.header->instruction_count;
        constants += p.header->const_bytes;
        act = p.header->act_bytes > act ? p.header->act_bytes : act;
    }
    char a[32], b[32];
    printf("%s: %s weights, %s activations, block %u, %s vectors\n", path, bw_format_get(r->weights)->name,
           bw_format_get(r->activations)->name, r->block, bw_format_get(r->vector)->name);
    printf("stages: %d on the accelerator (%d instructions), %d on the CPU; weights %s, activations %s\n", device,
           instructions, c->stage_count - device, bw_cli_bytes(constants, a), bw_cli_bytes(act, b));
    if (!quality)
        return;
    warn_of_range(r, quality);
    json_t *o, *outputs = json_object_get(quality, "outputs");
    size_t i;
    json_array_foreach(outputs, i, o)
    {
        const json_t *db = json_object_get(o, "sqnr_db"), *top = json_object_get(o, "top1_agreement");
        printf("output %s: ", json_string_value(json_object_get(o, "name")));
        if (json_is_number(db))
            printf("SQNR %.1f dB", json_number_value(db));
        else
            printf("no error");
        if (top)
            printf(", top-1 agreement with fp32 %.1f %%", 100 * json_number_value(top));
        printf(" on %lld samples\n", (long long)json_integer_value(json_object_get(quality, "samples")));
    }
    const json_t *tried = json_object_get(quality, "blocks_tried");
    for (i = 0; i < json_array_size(tried); i++) {
        const json_t *t = json_array_get(tried, i), *db = json_object_get(t, "sqnr_db");
        if (!i)
            printf("blocks tried on %lld samples:", (long long)json_integer_value(json_object_get(t, "samples")));
        printf("%s %d: ", i ? "," : "", (int)json_integer_value(json_object_get(t, "block")));
        if (json_is_number(db))
            printf("%.1f dB", json_number_value(db));
        else
            printf("no error");
    }
    if (tried)
        puts("");
    const json_t *acc = json_object_get(quality, "accuracy");
    if (acc)
        printf("top-1 accuracy: fp32 %.1f %%, quantized %.1f %%\n",
               100 * json_number_value(json_object_get(acc, "float_top1")),
               100 * json_number_value(json_object_get(acc, "quantized_top1")));
}
