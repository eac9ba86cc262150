/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The block formats against answers from independent implementations: 890 blocks of 32 floats, all roundings, at the
 * formats' own exponents (no clamp). Every file of the folder is compared. The files are not part of the project;
 * without them the test says SKIP, and tests/golden (test_formats.c) still pins every code.
 */
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/formats.h"

#define VALUES (890 * 32)

static float *values;
static unsigned files_read;

static void *load(const char *name, size_t size)
{
    const char *shared = getenv("BW_SHARED");
    char path[1024];
    snprintf(path, sizeof path, "%s/golden_formats/%s.bin", shared ? shared : "../shared/data", name);
    FILE *f = fopen(path, "rb");
    if (!f)
        return NULL;
    uint8_t *bytes = malloc(size + 1);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, size + 1, f), size);
    fclose(f);
    files_read++;
    return bytes;
}

static void *load_part(const char *format, const char *part, size_t size)
{
    char name[64];
    snprintf(name, sizeof name, "%s_%s", format, part);
    void *bytes = load(name, size);
    if (!bytes)
        fail_msg("golden file %s.bin is missing", name);
    return bytes;
}

static const struct {
    bw_round round;
    const char *name;
} roundings[] = {{BW_ROUND_EVEN, "even"}, {BW_ROUND_NEAREST, "nearest"}, {BW_ROUND_FLOOR, "floor"}};

/* scale_bias: e = scale field + scale_bias. E8M0 has no scale below 2^-127, so the golden scale stops there. */
static void compare(const char *format, size_t block, const char *exp_part, const char *code_part, int is_mx)
{
    const bw_format_traits *t = bw_format_find(format);
    assert_non_null(t);
    size_t blocks = VALUES / block;
    uint8_t *scales = load_part(format, exp_part, blocks);
    int scale_to_e = -127 - (is_mx ? 0 : t->mantissa_bits - 1);
    if (is_mx) /* the scale of 1.0 is 2^-emax: e(1.0) = scale + lsb exponent of an element */
        scale_to_e -= t->format == BW_FORMAT_MXINT8       ? 6
                      : t->format == BW_FORMAT_MXFP6_E2M3 ? 3
                      : t->format == BW_FORMAT_MXFP4_E2M1 ? 1
                      : t->format == BW_FORMAT_MXFP6_E3M2 ? 4
                      : t->format == BW_FORMAT_MXFP8_E4M3 ? 9
                                                          : 16;
    for (size_t r = 0; r < 3; r++) {
        char part[32];
        snprintf(part, sizeof part, "%s_%s", roundings[r].name, code_part);
        uint8_t *golden = load_part(format, part, VALUES);
        for (size_t b = 0; b < blocks; b++) {
            const float *x = values + b * block;
            uint8_t codes[32];
            int own = bw_block_exponent(t, x, block);
            int given = scales[b] + scale_to_e;
            int e = own;
            if (own == INT32_MIN) {
                e = given; /* zeros: any scale will do */
            } else if (is_mx) {
                int lowest = scale_to_e;
                if (e < lowest)
                    e = lowest;
                if (e != given)
                    fail_msg("%s block %zu: exponent %d, golden %d", format, b, e, given);
            } else if (scales[b]) {
                if (e != given)
                    fail_msg("%s block %zu: exponent %d, golden %d", format, b, e, given);
            } /* else: a subnormal maximum, whose exponent field says nothing; the codes use the true exponent */
            bw_encode_block_at(t, roundings[r].round, x, block, e, codes);
            for (size_t i = 0; i < block; i++) {
                int64_t ours = bw_code_value(t, codes[i]), theirs = bw_code_value(t, golden[b * block + i]);
                if (ours != theirs || (ours && codes[i] != golden[b * block + i]))
                    fail_msg("%s %s block %zu value %zu (%a at e=%d): code %d, golden %d", format, roundings[r].name, b,
                             i, x[i], e, codes[i], golden[b * block + i]);
            }
        }
        free(golden);
    }
    free(scales);
}

static void msfp_codes(void **state)
{
    (void)state;
    static const char *const names[] = {"msfp11", "msfp12", "msfp13", "msfp14", "msfp15", "msfp16"};
    for (size_t i = 0; i < 6; i++)
        compare(names[i], 16, "exp", "mant", 0);
}

static void mx_codes(void **state)
{
    (void)state;
    static const char *const names[] = {"mxint8", "mxfp6_e2m3", "mxfp4_e2m1", "mxfp6_e3m2", "mxfp8_e4m3", "mxfp8_e5m2"};
    for (size_t i = 0; i < 6; i++)
        compare(names[i], 32, "scale", "codes", 1);
}

/* Shared microexponents: the values are given, not the codes. */
static void microexponent_values(void **state)
{
    (void)state;
    static const char *const names[] = {"mx9", "mx6", "mx4"};
    static const struct {
        bw_round round;
        const char *part;
    } rules[] = {{BW_ROUND_NEAREST, "prime_half_away_values"}, {BW_ROUND_FLOOR, "prime_trunc_values"}};
    for (size_t f = 0; f < 3; f++)
        for (size_t r = 0; r < 2; r++) {
            const bw_format_traits *t = bw_format_find(names[f]);
            assert_non_null(t);
            float *golden = load_part(names[f], rules[r].part, VALUES * sizeof(float));
            size_t compared = 0;
            for (size_t b = 0; b < VALUES / 16; b++) {
                const float *x = values + b * 16, *theirs = golden + b * 16;
                int e = bw_block_exponent(t, x, 16), left_out = 0;
                for (size_t i = 0; i < 16; i++)
                    left_out += isnan(theirs[i]);
                if (left_out) { /* zeros, and blocks near the lower end of fp32: given as NaN throughout */
                    assert_int_equal(left_out, 16);
                    assert_true(e < -100);
                    continue;
                }
                uint8_t codes[32];
                float ours[16];
                bw_encode_block_at(t, rules[r].round, x, 16, e, codes);
                bw_decode_block(t, codes, e, 16, ours);
                for (size_t i = 0; i < 16; i++)
                    if (memcmp(&ours[i], &theirs[i], sizeof ours[i]) && (ours[i] != 0 || theirs[i] != 0))
                        fail_msg("%s %s block %zu value %zu (%a at e=%d): %a, golden %a", names[f], rules[r].part, b, i,
                                 (double)x[i], e, (double)ours[i], (double)theirs[i]);
                compared++;
            }
            assert_int_equal(compared, 1702);
            free(golden);
        }
}

/* Files that no test reads would look as if they were covered. */
static void every_file_is_known(void **state)
{
    (void)state;
    const char *shared = getenv("BW_SHARED");
    char path[1024];
    snprintf(path, sizeof path, "%s/golden_formats", shared ? shared : "../shared/data");
    DIR *folder = opendir(path);
    assert_non_null(folder);
    unsigned count = 0;
    for (struct dirent *entry; (entry = readdir(folder));) {
        const char *dot = strrchr(entry->d_name, '.');
        count += dot && strcmp(dot, ".bin") == 0;
    }
    closedir(folder);
    /* X; 12 formats x (3 roundings + scales); 3 formats x 2 roundings */
    assert_int_equal(count, 1 + 12 * 4 + 3 * 2);
    assert_int_equal(files_read, count);
}

int main(void)
{
    values = load("X", VALUES * sizeof(float));
    if (!values) {
        printf("ok 1 - golden formats # SKIP no golden_formats in $BW_SHARED (default ../shared/data)\n1..1\n");
        return 0;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(msfp_codes), cmocka_unit_test(mx_codes),
                                       cmocka_unit_test(microexponent_values), cmocka_unit_test(every_file_is_known)};
    int failed = cmocka_run_group_tests_name("golden_formats", tests, NULL, NULL);
    free(values);
    return failed;
}
