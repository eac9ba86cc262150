/* SPDX-License-Identifier: Apache-2.0 */
/* How long blocks are: of concatenations and of groups. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "quantize/lower.h"

static bw_recipe msfp(uint16_t block)
{
    return (bw_recipe){
        .weights = BW_FORMAT_MSFP16, .activations = BW_FORMAT_MSFP16, .block = block, .vector = BW_FORMAT_FP16};
}

/* Of a concatenation of up to four values, 0 ends. */
static uint16_t block_of(const bw_recipe *r, const int64_t *channels)
{
    bw_ir_value values[4];
    const int parts[4] = {0, 1, 2, 3};
    int count = 0;
    for (; count < 4 && channels[count]; count++)
        values[count] = (bw_ir_value){.c = channels[count], .physical = channels[count], .producer = -1};
    const bw_ir ir = {.recipe = r, .values = values, .value_count = count};
    return bw_blocks_of_parts(&ir, parts, count);
}

static void concatenations(void **state)
{
    (void)state;
    static const struct {
        uint16_t most, block;
        int64_t channels[4];
    } cases[] = {{128, 64, {64, 64}},          {128, 128, {128, 128}},      {128, 64, {192, 192}},
                 {128, 32, {64, 128, 32, 32}}, {64, 32, {64, 128, 32, 32}}, {128, 16, {16, 16, 16, 16}},
                 {16, 16, {64, 64}},           {128, 128, {256, 256}},      {64, 64, {256, 256}}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const bw_recipe r = msfp(cases[i].most);
        assert_int_equal(block_of(&r, cases[i].channels), cases[i].block);
    }
    bw_recipe mx = msfp(32);
    mx.weights = BW_FORMAT_MXINT8; /* has no other block */
    assert_int_equal(block_of(&mx, (int64_t[]){16, 16, 16, 0}), 32);
}

static void groups(void **state)
{
    (void)state;
    static const struct {
        int64_t channels, groups;
        uint16_t most, block;
        int copied;
    } cases[] = {{192, 2, 128, 64, 0}, {128, 2, 128, 128, 0}, {34, 4, 128, 16, 1},
                 {4, 16, 16, 16, 0},   {16, 8, 128, 16, 0},   {20, 2, 16, 16, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const bw_recipe r = msfp(cases[i].most);
        bw_grouped g = {.channels = cases[i].channels,
                        .groups = cases[i].groups,
                        .outputs = 64 * cases[i].groups,
                        .taps = 9,
                        .pixels_in = 196,
                        .pixels_out = 196};
        const bw_group_layout l = bw_blocks_of_groups(&r, &g);
        assert_int_equal(l.block, cases[i].block);
        assert_int_equal(l.copied, cases[i].copied);
        g.mapped = 1;
        assert_true(bw_blocks_of_groups(&r, &g).copied);
    }
}

/* Whatever the sizes: no channel is lost, groups are whole blocks, and what is not copied keeps its length. */
static void every_group_has_room(void **state)
{
    (void)state;
    for (uint16_t most = 16; most <= 128; most *= 2)
        for (int64_t channels = 2; channels < 200; channels++)
            for (int64_t count = 2; count < 20; count++)
                for (uint16_t block = 0; block <= most; block = block ? block * 2 : 16) {
                    const bw_recipe r = msfp(most);
                    const bw_grouped g = {.channels = channels,
                                          .groups = count,
                                          .outputs = 8 * count,
                                          .taps = 1,
                                          .pixels_in = 49,
                                          .pixels_out = 49,
                                          .block = block};
                    const bw_group_layout l = bw_blocks_of_groups(&r, &g);
                    assert_int_equal(l.groups * l.merged, count);
                    assert_true(l.units * l.block >= l.merged * channels);
                    assert_true(l.block >= 16 && l.block <= most);
                    assert_true(l.merged == 1 || l.units * l.block == l.merged * channels);
                    if (!l.copied) {
                        assert_int_equal(l.groups * l.units * l.block, count * channels);
                        assert_true(!block || l.block == block);
                    }
                }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(concatenations),
        cmocka_unit_test(groups),
        cmocka_unit_test(every_group_has_room),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
