/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How long the blocks of each value are: the recipe's length at most. Concatenations, whose parts start a block each,
 * and groups of convolutions take less where padding would cost more than long blocks save. What counts is what a
 * convolution that reads the value executes for one of its outputs: a multiplication for each four codes, padding
 * included, and what scaling and adding a block costs, as much as two of them (sim/dot_bytes.h). Other values have
 * padding at their end alone, which engines skip.
 */
#include "quantize/lower.h"

/* In multiplications of four codes for 16 outputs: what ends a block, and what copies a value (docs/performance.md). */
#define SCALING 2
#define COPYING 2

int bw_blocks_exist(const bw_recipe *r, uint16_t block)
{
    return bw_format_block_ok(bw_format_get(r->weights), block) &&
           bw_format_block_ok(bw_format_get(r->activations), block);
}

static int64_t blocks_of(int64_t channels, int64_t block)
{
    return (channels + block - 1) / block;
}

static int64_t work(int64_t blocks, int64_t block)
{
    return blocks * (block / 4 + SCALING);
}

uint16_t bw_blocks_of_parts(const bw_ir *ir, const int *parts, int count)
{
    const bw_recipe *r = ir->recipe;
    uint16_t best = r->block;
    for (int i = 0; i < count; i++) { /* one that is a concatenation itself would be copied for another length */
        const bw_ir_value *part = &ir->values[parts[i]];
        if (part->producer >= 0 && ir->ops[part->producer].opcode == BW_IR_CONCAT)
            return part->block;
    }
    int64_t least = INT64_MAX;
    for (uint16_t block = r->block; block >= 16; block /= 2) {
        int64_t blocks = 0;
        for (int i = 0; i < count; i++)
            blocks += blocks_of(ir->values[parts[i]].physical, block);
        if (bw_blocks_exist(r, block) && work(blocks, block) < least) {
            least = work(blocks, block);
            best = block;
        }
    }
    return best;
}

/* Groups at one length of blocks. */
static bw_group_layout lay_out(const bw_grouped *g, int64_t block)
{
    int64_t a = g->channels, b = block;
    while (b) { /* greatest common divisor */
        int64_t r = a % b;
        a = b;
        b = r;
    }
    int64_t join = block / a, units = blocks_of(g->channels, block);
    bw_group_layout l = {.block = (uint16_t)block, .groups = g->groups, .merged = 1, .units = units, .copied = 1};
    if (g->groups % join == 0 && join * g->channels / block <= units) {
        l.groups = g->groups / join;
        l.merged = join;
        l.units = join * g->channels / block;
        l.copied = g->mapped || (g->block && g->block != block);
    }
    return l;
}

/* In double: sizes of a file's choosing may exceed 64 bits. */
static double cost(const bw_grouped *g, const bw_group_layout *l)
{
    const double tiles = (double)l->groups * (double)blocks_of(g->outputs / l->groups, 16);
    const double copied = l->copied ? (double)g->pixels_in * (double)l->groups * (double)(l->units * l->block) : 0;
    return (double)g->pixels_out * (double)g->taps * tiles * (double)work(l->units, l->block) + COPYING * copied;
}

bw_group_layout bw_blocks_of_groups(const bw_recipe *r, const bw_grouped *g)
{
    bw_group_layout best = lay_out(g, r->block);
    for (uint16_t block = r->block / 2; block >= 16; block /= 2) {
        const bw_group_layout l = lay_out(g, block);
        if (bw_blocks_exist(r, block) && cost(g, &l) < cost(g, &best))
            best = l;
    }
    return best;
}

void bw_blocks_settle(bw_ir *ir)
{
    for (int i = 0; i < ir->value_count; i++) {
        bw_ir_value *v = &ir->values[i];
        if (v->block)
            continue;
        v->block = ir->recipe->block;
        for (uint16_t block = 16; block < v->block; block *= 2)
            if (v->physical <= block && bw_blocks_exist(ir->recipe, block))
                v->block = block;
    }
}
