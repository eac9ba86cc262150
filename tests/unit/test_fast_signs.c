/* SPDX-License-Identifier: Apache-2.0 */
/* Which inputs cannot be negative: what wrote them last, slices, and memory that was used before. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "sim/fast.h"

/* 2 x 3 pixels of `units` blocks of 16 from unit `at` of pixels of 8; exponents far behind. */
static bw_tensor slice(uint64_t base, uint32_t at, uint32_t units)
{
    return (bw_tensor){.codes = base + 16 * at,
                       .exps = base + 100000 + at,
                       .height = 2,
                       .width = 3,
                       .channels = units * 16,
                       .pixel_stride = 8,
                       .row_stride = 24,
                       .format = BW_FORMAT_MSFP16,
                       .region = BW_REGION_ACT,
                       .block = 16};
}

static bw_instruction conv(bw_tensor in, bw_tensor out, bw_activation activation)
{
    return (bw_instruction){
        .opcode = BW_OP_CONV, .activation = (uint8_t)activation, .in = in, .out0 = out, .clip_lo = -1, .clip_hi = 1};
}

static void check(const bw_instruction *list, uint32_t count, const char *expected)
{
    bw_program_header header = {.instruction_count = count};
    const bw_program program = {.header = &header, .instructions = list};
    uint8_t in[16];
    bw_fast_find_signs(&program, in);
    for (uint32_t i = 0; i < count; i++)
        if (in[i] != (expected[i] == '+'))
            fail_msg("instruction %u: %d, expected '%c'", i, in[i], expected[i]);
}

static void the_last_writer_counts(void **state)
{
    (void)state;
    const bw_tensor x = slice(0, 0, 4), y = slice(4096, 0, 4);
    const bw_instruction list[] = {conv(y, x, BW_ACT_RELU), conv(x, y, BW_ACT_NONE), conv(y, x, BW_ACT_CLIP),
                                   conv(x, y, BW_ACT_RELU), conv(y, x, BW_ACT_RELU), conv(x, y, BW_ACT_NONE)};
    check(list, 6, "-+--++");
}

static void clips_from_zero_up(void **state)
{
    (void)state;
    const bw_tensor x = slice(0, 0, 4), y = slice(4096, 0, 4);
    bw_instruction list[] = {conv(y, x, BW_ACT_CLIP), conv(x, y, BW_ACT_NONE)};
    list[0].clip_lo = 0;
    check(list, 2, "-+");
}

static void pools_copies_and_sums_keep_signs(void **state)
{
    (void)state;
    const bw_tensor x = slice(0, 0, 4), y = slice(4096, 0, 4), z = slice(8192, 0, 4);
    bw_instruction list[] = {conv(z, x, BW_ACT_RELU), conv(x, y, BW_ACT_NONE), conv(y, z, BW_ACT_NONE),
                             conv(z, z, BW_ACT_NONE)};
    static const bw_opcode keep[] = {BW_OP_MAXPOOL, BW_OP_AVGPOOL, BW_OP_COPY};
    for (int i = 0; i < 3; i++) {
        list[1].opcode = (uint8_t)keep[i];
        check(list, 4, "-++-");
    }
    list[1].opcode = BW_OP_ADD;
    list[1].in2 = x;
    check(list, 4, "-++-");
    list[1].in2 = z; /* never written */
    check(list, 4, "-+--");
}

static void all_slices_count(void **state)
{
    (void)state;
    const bw_tensor whole = slice(0, 0, 8), other = slice(4096, 0, 8);
    bw_instruction list[] = {conv(other, slice(0, 0, 3), BW_ACT_RELU), conv(other, slice(0, 3, 5), BW_ACT_RELU),
                             conv(whole, other, BW_ACT_NONE), conv(slice(0, 2, 4), other, BW_ACT_NONE)};
    check(list, 4, "--++");
    list[1].activation = BW_ACT_NONE;
    check(list, 4, "----");
    list[3].in = slice(0, 1, 2); /* of the first alone */
    check(list, 4, "---+");
    list[1] = conv(other, slice(0, 4, 4), BW_ACT_RELU); /* unit 3 is never written */
    check(list, 4, "---+");
}

static void other_shapes_may_hold_anything(void **state)
{
    (void)state;
    const bw_tensor x = slice(0, 0, 4), y = slice(4096, 0, 4);
    bw_tensor over = x;
    over.width = 2;
    bw_instruction list[] = {conv(y, x, BW_ACT_RELU), conv(y, over, BW_ACT_RELU), conv(x, y, BW_ACT_NONE)};
    check(list, 3, "---");
    list[1].out0 = slice(96, 0, 4); /* a pixel and more further on */
    list[1].out0.width = 1;
    check(list, 3, "---");
    list[1].out0 = slice(8192, 0, 4);
    list[1].out0.exps = 5; /* its exponents among the codes */
    check(list, 3, "---");
    list[1].out0.exps = 200000;
    check(list, 3, "--+");
    list[1].out1 = over; /* a second output does as well */
    check(list, 3, "---");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_last_writer_counts),           cmocka_unit_test(clips_from_zero_up),
        cmocka_unit_test(pools_copies_and_sums_keep_signs), cmocka_unit_test(all_slices_count),
        cmocka_unit_test(other_shapes_may_hold_anything),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
