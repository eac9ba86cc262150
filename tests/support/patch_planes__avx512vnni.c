/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/patch_planes.h"

#include "sim/rows_avx512.h"

#include "sim/rows_patch.h"

bw_patch_way bw_patch_find_way(const bw_patch *g)
{
    (void)patch; /* all of it, which bw_rows_avx512vnni has too */
    plane_plan a;
    if (!plan_planes(g, g->out.format->block, &a))
        return (bw_patch_way){0, 0, 0};
    return (bw_patch_way){a.pixels, patch_planes(g, g->out.format->block, &a), a.tops};
}
