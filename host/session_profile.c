/* SPDX-License-Identifier: Apache-2.0 */
/* What a profiled run fills in. */
#include <stdlib.h>
#include <string.h>

#include "host/session_lane.h"

bw_status bw_profile_new(const bw_session *s, bw_profile **out, bw_error *err)
{
    *out = NULL;
    bw_profile *p = calloc(1, sizeof *p);
    if (p)
        p->stages = calloc((size_t)s->plan.stage_count, sizeof *p->stages);
    int ok = p && p->stages;
    for (int i = 0; ok && i < s->plan.stage_count; i++) {
        bw_stage_profile *st = &p->stages[p->stage_count++];
        st->device = s->plan.stages[i].device;
        if (!st->device)
            continue;
        st->instruction_count = bw_image_program(s->images[i])->header->instruction_count;
        st->instruction_ns = calloc(st->instruction_count, sizeof *st->instruction_ns);
        ok = st->instruction_ns != NULL;
    }
    if (!ok) {
        bw_profile_free(p);
        return bw_fail(err, BW_NO_MEMORY, "no memory for a profile of %d stages", s->plan.stage_count);
    }
    *out = p;
    return BW_OK;
}

void bw_profile_free(bw_profile *p)
{
    if (!p)
        return;
    for (int i = 0; i < p->stage_count; i++)
        free(p->stages[i].instruction_ns);
    free(p->stages);
    free(p);
}

void bw_profile_clear(bw_profile *p)
{
    p->total_ns = 0;
    for (int i = 0; i < p->stage_count; i++) {
        bw_stage_profile *st = &p->stages[i];
        if (st->device)
            memset(st->instruction_ns, 0, st->instruction_count * sizeof *st->instruction_ns);
        *st = (bw_stage_profile){
            .device = st->device, .instruction_ns = st->instruction_ns, .instruction_count = st->instruction_count};
    }
}
