/* SPDX-License-Identifier: Apache-2.0 */
/* PATCH's AVX-512 kernel, on windows, rows and values of all kinds, against the encoder of kernels/formats.h: each code
 * and exponent, nothing written beside them, nothing read outside the rows of the input. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sim/fast.h"
#include "tests/support/lcg.h"
#include "tests/support/patch_planes.h"

typedef enum filling {
    NORMAL,
    CONSTANT,
    SPIKES,    /* of all magnitudes, in zeros */
    ZEROS,     /* of both signs, with a few spikes */
    WIDE,      /* all magnitudes */
    COLUMNS,   /* all magnitudes, those of a column alike */
    RAMP,      /* each column larger than the one before, up to a fall */
    CALM,      /* normal up to some column, a ramp from there on */
    HUGE_ONES, /* beyond the range of exponents, in normal ones */
    SUBNORMAL, /* and others around the lowest exponent */
    FULL,      /* just below powers of two: codes saturate */
    FILLINGS
} filling;

static const char *const filling_names[FILLINGS] = {"normal", "constant", "spikes", "zeros",     "wide", "columns",
                                                    "ramp",   "calm",     "huge",   "subnormal", "full"};

/* How the rows of the input lie in memory. */
typedef enum layout {
    TIGHT,   /* one after the other, alone in an allocation */
    APART,   /* with something between them */
    AT_END,  /* each ends where no memory is */
    AT_START /* each begins where no memory is before it */
} layout;

typedef struct shape {
    const bw_format_traits *t;
    uint16_t block;
    size_t kernel_y, kernel_x, stride, channels, first_row, end_row, pixels, width;
    int64_t left;
    filling values;
    size_t calm;   /* columns */
    uint32_t salt; /* of the magnitudes of columns */
    layout rows;
    size_t code_gap, exp_gap; /* bytes between the pixels of the output */
} shape;

enum {
    MOST_ROWS = 64,    /* of a kernel */
    ROW_FLOATS = 2048, /* of a row of the input that lies at an edge of memory, at most */
    GUARD = 192        /* bytes before and after the output */
};

/* What the kernel did in the cases of a test. */
typedef struct tally {
    unsigned cases, by_blocks, by_planes, in_parts, with_tops;
    unsigned at_once, in_between; /* planes given up in the first part of the pixels, in a later one */
    unsigned few_left;            /* in a later one of less pixels than blocks are made for at a time */
} tally;

static tally seen;
static uint64_t seed;

static uint32_t next(void)
{
    return (uint32_t)(bw_lcg(&seed) >> 33);
}

static size_t below(size_t n)
{
    return next() % n;
}

/* --- the input --------------------------------------------------------------------------------------------------- */

/* Slots of whole pages, one a row, with a page before and after each that cannot be touched. */
static struct {
    uint8_t *base;
    size_t page, slot;
    unsigned char open[MOST_ROWS];
} edges;

static float *edge_row(size_t row)
{
    return (float *)(void *)(edges.base + edges.page + row * edges.slot);
}

static int edges_make(void **state)
{
    (void)state;
    edges.page = (size_t)sysconf(_SC_PAGESIZE);
    edges.slot = (ROW_FLOATS * sizeof(float) + edges.page - 1) / edges.page * edges.page + edges.page;
    void *p = mmap(NULL, edges.page + MOST_ROWS * edges.slot, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return 1;
    edges.base = p;
    return 0;
}

static int edges_free(void **state)
{
    (void)state;
    return munmap(edges.base, edges.page + MOST_ROWS * edges.slot);
}

/* Only rows first .. end - 1 can be read. */
static void edges_open(size_t first, size_t end)
{
    for (size_t row = 0; row < MOST_ROWS; row++) {
        const unsigned char open = row >= first && row < end;
        if (open != edges.open[row])
            assert_int_equal(
                mprotect(edge_row(row), edges.slot - edges.page, open ? PROT_READ | PROT_WRITE : PROT_NONE), 0);
        edges.open[row] = open;
    }
}

static float spread(int low, int high)
{
    const int exponent = low + (int)below((size_t)(high - low + 1));
    /* Short significands are often halfway between two codes. */
    const float m = below(2) ? 1.0f + (float)below(256) / 256.0f : 1.0f + (float)below(1 << 23) / (float)(1 << 23);
    return ldexpf(below(2) ? m : -m, exponent);
}

static float value_at(const shape *s, size_t column, float constant)
{
    const float normal = (float)((int)below(2001) - 1000) / 64.0f;
    switch (s->values) {
    case CONSTANT:
        return constant;
    case SPIKES:
        return below(40) ? 0.0f : spread(-60, 60);
    case ZEROS:
        return below(100) ? (below(2) ? 0.0f : -0.0f) : spread(-3, 3);
    case WIDE:
        return spread(-60, 60);
    case COLUMNS: {
        const int own = (int)(((uint32_t)column * 2654435761u ^ s->salt) % 119);
        return spread(own - 60, own - 58);
    }
    case RAMP:
        return spread(-60 + (int)(column % 121), -58 + (int)(column % 121));
    case CALM: {
        const int own = column < s->calm ? 0 : (int)((column - s->calm) * (1 + s->salt % 4) % 90) - 50;
        return column < s->calm ? normal : spread(own, own + 2);
    }
    case HUGE_ONES:
        return below(30) ? normal : spread(40, 127);
    case SUBNORMAL: {
        const uint32_t bits = next() << 1;
        float tiny;
        memcpy(&tiny, &(uint32_t){bits & 0x807FFFFF}, sizeof tiny);
        return below(60) ? tiny : spread(-126, -50);
    }
    case FULL:
        return nextafterf(ldexpf(below(2) ? 1.0f : -1.0f, (int)below(5) - 2), 0.0f);
    default:
        return normal;
    }
}

typedef struct input {
    void *memory; /* to be freed */
    float *first; /* column 0 of row first_row */
    size_t row;   /* floats to the next */
} input;

static input make_input(const shape *s)
{
    const size_t line = s->width * s->channels, rows = s->end_row - s->first_row;
    input in = {NULL, NULL, line + (s->rows == APART ? 1 + below(40) : 0)};
    if (s->rows == AT_END || s->rows == AT_START) {
        const size_t all = (edges.slot - edges.page) / sizeof(float);
        assert_true(line <= all && s->kernel_y <= MOST_ROWS);
        edges_open(s->first_row, s->end_row);
        in.row = edges.slot / sizeof(float);
        in.first = edge_row(s->first_row) + (s->rows == AT_END ? all - line : 0);
        for (size_t row = s->first_row; row < s->end_row; row++)
            for (size_t i = 0; i < all; i++)
                edge_row(row)[i] = 3e38f; /* would be seen in the exponents */
    } else {
        const size_t count = rows ? (rows - 1) * in.row + line : 0;
        in.memory = malloc(count * sizeof(float));
        assert_true(in.memory || !count);
        in.first = in.memory;
        for (size_t i = 0; i < count; i++)
            in.first[i] = 3e38f;
    }
    const float constant = spread(-20, 20);
    for (size_t row = 0; row < rows; row++)
        for (size_t i = 0; i < line; i++)
            in.first[row * in.row + i] = value_at(s, i / s->channels, constant);
    return in;
}

/* --- one case ---------------------------------------------------------------------------------------------------- */

typedef struct output {
    uint8_t *codes;
    int8_t *exps;
} output;

static size_t blocks_of(const shape *s)
{
    return (s->kernel_y * s->kernel_x * s->channels + s->block - 1) / s->block;
}

/* What the planner of the engine gives to the kernel. */
static int fits(const shape *s)
{
    const size_t pieces = blocks_of(s) * s->block / 16;
    return pieces <= BW_PATCH_BLOCKS && pieces * (15 / (s->kernel_x * s->channels) + 2) <= BW_PATCH_PIECES;
}

static void expect(const shape *s, const input *in, output out, size_t code_step, size_t exp_step)
{
    const size_t line = s->kernel_x * s->channels, n = s->kernel_y * line, block = s->block;
    float x[BW_PATCH_BLOCKS * 16];
    for (size_t p = 0; p < s->pixels; p++) {
        const int64_t column = s->left + (int64_t)(p * s->stride);
        for (size_t i = 0; i < n; i++) {
            const size_t ky = i / line;
            const int64_t at = column + (int64_t)(i % line / s->channels);
            const int inside = ky >= s->first_row && ky < s->end_row && at >= 0 && at < (int64_t)s->width;
            x[i] = inside ? in->first[(ky - s->first_row) * in->row + (size_t)at * s->channels + i % s->channels] : 0;
        }
        for (size_t b = 0; b * block < n; b++) {
            const size_t some = n - b * block < block ? n - b * block : block;
            uint8_t *codes = out.codes + GUARD + p * code_step + b * block;
            memset(codes, 0, block);
            bw_encode_block(s->t, BW_ROUND_EVEN, x + b * block, some, codes, out.exps + GUARD + p * exp_step + b);
        }
    }
}

static void differ(const shape *s, const char *what, size_t at, size_t step, size_t each, int is, int expected)
{
    const size_t from = at - GUARD; /* wraps before the output */
    fail_msg("%s/%u, kernel %zux%zu, stride %zu, %zu channels, rows %zu..%zu, columns 0..%zu from %lld, %zu pixels, "
             "values %s, layout %d, gaps %zu and %zu: %s of pixel %lld, block %zu (byte %zu): %d, expected %d",
             s->t->name, s->block, s->kernel_y, s->kernel_x, s->stride, s->channels, s->first_row, s->end_row, s->width,
             (long long)s->left, s->pixels, filling_names[s->values], s->rows, s->code_gap, s->exp_gap, what,
             at < GUARD ? -1LL : (long long)(from / step), from % step / each, from % step, is, expected);
}

static bw_patch_way count(const bw_patch *g)
{
    const bw_patch_way way = bw_patch_find_way(g);
    seen.cases++;
    seen.by_blocks += !way.part;
    if (!way.part)
        return way;
    /* What planes are for. */
    assert_true(g->out.format->block >= 64 && g->kernel_x >= 2 * g->stride && g->pixels >= 8);
    seen.by_planes += way.done == g->pixels;
    seen.in_parts += way.done > way.part;
    seen.with_tops += way.done && way.tops;
    seen.at_once += !way.done;
    seen.in_between += way.done && way.done < g->pixels;
    seen.few_left += way.done && way.done < g->pixels && way.done + 4 > g->pixels;
    return way;
}

static bw_patch_way compare(const shape *s)
{
    const size_t blocks = blocks_of(s), code_step = blocks * s->block + s->code_gap, exp_step = blocks + s->exp_gap;
    const size_t code_bytes = 2 * GUARD + s->pixels * code_step, exp_bytes = 2 * GUARD + s->pixels * exp_step;
    const input in = make_input(s);
    const int fill = (int)below(256);
    output out[2];
    for (int i = 0; i < 2; i++) {
        out[i] = (output){malloc(code_bytes), malloc(exp_bytes)};
        assert_true(out[i].codes && out[i].exps);
        memset(out[i].codes, fill, code_bytes);
        memset(out[i].exps, fill, exp_bytes);
    }
    const bw_row_format format = {s->t, s->t->kind, s->block};
    bw_patch g = {.x_row = in.row, .channels = s->channels, .stride = s->stride, .pixels = s->pixels};
    g.x = in.first - (ptrdiff_t)(s->first_row * in.row) + s->left * (ptrdiff_t)s->channels;
    g.kernel_y = s->kernel_y;
    g.kernel_x = s->kernel_x;
    g.first_row = s->first_row;
    g.end_row = s->end_row;
    g.left = s->left;
    g.width = (int64_t)s->width;
    g.out = (bw_side){&format, out[0].codes + GUARD, out[0].exps + GUARD, code_step, exp_step};
    const bw_patch_way way = count(&g); /* what it writes is not looked at */
    memset(out[0].codes, fill, code_bytes);
    memset(out[0].exps, fill, exp_bytes);
    bw_rows_avx512vnni.patch(&g);
    expect(s, &in, out[1], code_step, exp_step);
    if (memcmp(out[0].exps, out[1].exps, exp_bytes) != 0)
        for (size_t i = 0; i < exp_bytes; i++)
            if (out[0].exps[i] != out[1].exps[i])
                differ(s, "exponent", i, exp_step, 1, out[0].exps[i], out[1].exps[i]);
    if (memcmp(out[0].codes, out[1].codes, code_bytes) != 0)
        for (size_t i = 0; i < code_bytes; i++)
            if (out[0].codes[i] != out[1].codes[i])
                differ(s, "code", i, code_step, s->block, (int8_t)out[0].codes[i], (int8_t)out[1].codes[i]);
    for (int i = 0; i < 2; i++) {
        free(out[i].codes);
        free(out[i].exps);
    }
    free(in.memory);
    return way;
}

/* --- cases at random --------------------------------------------------------------------------------------------- */

/* One of the formats that the planner gives to the kernel, in blocks of a length that it may have. */
static void choose_format(shape *s, uint16_t block)
{
    do
        s->t = bw_format_get((bw_format)below(BW_FORMAT_LIMIT));
    while (!s->t || s->t->kind != BW_KIND_INT || s->t->sub_block || !bw_format_block_ok(s->t, block));
    s->block = block;
}

/* All that a kernel's size leaves open. */
static void choose_rest(shape *s)
{
    s->values = (filling)below(FILLINGS);
    s->rows = (layout)below(4);
    s->pixels = 1 + below(below(3) ? 300 : 12);
    const size_t most = s->channels > 5 ? ROW_FLOATS / s->channels : 300;
    s->width = below(4) ? 1 + below(most) : 1 + below(s->kernel_x);
    s->width = s->width > most ? most : s->width;
    switch (below(4)) {
    case 0:
        s->left = -(int64_t)below(s->kernel_x + 3);
        break;
    case 1:
        s->left = (int64_t)below(s->width + 2);
        break;
    case 2:
        s->left = -(int64_t)below(300);
        break;
    default:
        s->left = 0;
    }
    s->calm = below(s->width + 1);
    s->salt = next();
    s->first_row = 0;
    s->end_row = s->kernel_y;
    if (below(2) == 0) {
        s->first_row = below(s->kernel_y + 1);
        s->end_row = s->first_row + below(s->kernel_y - s->first_row + 1);
    }
    s->code_gap = below(2) ? 0 : below(150);
    s->exp_gap = below(2) ? 0 : below(9);
}

static unsigned rounds(unsigned n)
{
    return getenv("BW_LONG") ? 20 * n : n;
}

static void need_kernel(void)
{
    if (!bw_sim_isa_available(BW_SIM_ISA_AVX512VNNI)) {
        print_message("# SKIP: this CPU has no AVX-512 VNNI to run the kernel\n");
        skip();
    }
    memset(&seen, 0, sizeof seen);
    seed = 0;
}

static void kernels_of_all_sizes(void **state)
{
    (void)state;
    need_kernel();
    shape s;
    for (unsigned round = 0; round < rounds(1); round++)
        for (s.kernel_y = 1; s.kernel_y <= 12; s.kernel_y++)
            for (s.kernel_x = 1; s.kernel_x <= 12; s.kernel_x++)
                for (s.stride = 1; s.stride <= 4; s.stride++)
                    for (s.channels = 1; s.channels <= 5; s.channels++)
                        for (uint16_t block = 16; block <= 128; block *= 2) {
                            choose_format(&s, block);
                            choose_rest(&s);
                            if (fits(&s))
                                compare(&s);
                        }
    assert_true(seen.cases > 10000 && seen.by_blocks > 4000 && seen.by_planes > 1000 && seen.in_parts > 500);
    assert_true(seen.with_tops > 800 && seen.at_once > 100 && seen.in_between > 5);
}

/* Rows of taps that are longer than 64 codes, and than a block. */
static void long_lines(void **state)
{
    (void)state;
    need_kernel();
    shape s;
    for (unsigned round = 0; round < rounds(3000); round++) {
        s.kernel_y = 1 + below(8);
        s.kernel_x = 1 + below(12);
        s.stride = 1 + below(2);
        s.channels = 6 + below(120);
        choose_format(&s, (uint16_t)(16 << below(4)));
        choose_rest(&s);
        if (fits(&s) && s.kernel_x * s.channels > 64)
            compare(&s);
    }
    assert_true(seen.cases > 400 && seen.by_planes > 70 && seen.in_parts > 30 && seen.at_once > 5);
}

/* Tall kernels, of lines so short that many are in 64 codes. */
static void short_lines(void **state)
{
    (void)state;
    need_kernel();
    shape s;
    for (unsigned round = 0; round < rounds(3000); round++) {
        s.kernel_y = 1 + below(MOST_ROWS);
        s.kernel_x = 2 + below(15);
        s.stride = 1;
        s.channels = 1 + below(2);
        choose_format(&s, below(2) ? 64 : 128);
        choose_rest(&s);
        if (fits(&s))
            compare(&s);
    }
    assert_true(seen.cases > 1000 && seen.by_blocks > 500 && seen.by_planes > 200 && seen.at_once > 20);
}

/* All values in all formats and blocks, where planes are made if they can be. */
static void values_of_all_kinds(void **state)
{
    (void)state;
    need_kernel();
    for (unsigned round = 0; round < rounds(12); round++)
        for (filling values = NORMAL; values < FILLINGS; values++)
            for (unsigned format = 0; format < BW_FORMAT_LIMIT; format++)
                for (uint16_t block = 16; block <= 128; block *= 2) {
                    shape s = {.t = bw_format_get((bw_format)format), .block = block};
                    if (!s.t || s.t->kind != BW_KIND_INT || s.t->sub_block || !bw_format_block_ok(s.t, block))
                        continue;
                    do {
                        s.stride = 1 + below(3);
                        s.kernel_x = 2 * s.stride + below(6);
                        s.kernel_y = 1 + below(9);
                        s.channels = 1 + below(5);
                        choose_rest(&s);
                        s.values = values;
                        if (round % 2) {
                            s.pixels = 180 + below(121);
                            s.width = ROW_FLOATS / 5;
                            s.left = -(int64_t)below(4);
                            s.calm = 120 * s.stride + below(150);
                        }
                    } while (!fits(&s));
                    compare(&s);
                }
    assert_true(seen.by_planes > 500 && seen.in_parts > 300 && seen.at_once > 100 && seen.in_between > 10);
}

static void rows_outside(void **state)
{
    (void)state;
    need_kernel();
    shape s;
    for (unsigned round = 0; round < rounds(2); round++)
        for (size_t kernel_y = 1; kernel_y <= 9; kernel_y++)
            for (size_t first = 0; first <= kernel_y; first++)
                for (size_t end = first; end <= kernel_y; end++)
                    for (uint16_t block = 16; block <= 128; block *= 2) {
                        s.kernel_y = kernel_y;
                        s.kernel_x = 4 + below(5);
                        s.stride = 1 + below(2);
                        s.channels = 1 + below(4);
                        choose_format(&s, block);
                        choose_rest(&s);
                        s.first_row = first;
                        s.end_row = end;
                        if (fits(&s))
                            compare(&s);
                    }
    assert_true(seen.by_planes > 200 && seen.at_once > 10);
}

/* Narrow inputs, from a kernel's width left of them to right of them. */
static void columns_outside(void **state)
{
    (void)state;
    need_kernel();
    shape s;
    for (size_t width = 1; width <= 12; width++)
        for (int64_t left = -20; left <= 14; left++)
            for (uint16_t block = 16; block <= 128; block *= 2) {
                s.kernel_y = 1 + below(7);
                s.kernel_x = 4 + below(7);
                s.stride = 1 + below(2);
                s.channels = 1 + below(4);
                choose_format(&s, block);
                choose_rest(&s);
                s.pixels = 1 + below(30);
                s.width = width;
                s.left = left;
                if (fits(&s))
                    compare(&s);
            }
    assert_true(seen.by_planes > 300);
}

/* Columns of few magnitudes, then of many: planes do some parts of the pixels, blocks the others. */
static void planes_given_up(void **state)
{
    (void)state;
    need_kernel();
    shape s;
    for (unsigned round = 0; round < rounds(2000); round++) {
        const int is_long = (int)(round % 2);
        s.stride = 1 + below(2);
        s.kernel_x = 2 * s.stride + below(4);
        s.kernel_y = 1 + below(is_long ? 3 : 8);
        s.channels = is_long ? 20 + below(40) : 1 + below(5);
        choose_format(&s, below(2) ? 64 : 128);
        choose_rest(&s);
        s.values = CALM;
        s.width = (is_long ? ROW_FLOATS : 1500) / s.channels;
        s.left = 0;
        s.pixels = (s.width - s.kernel_x) / s.stride + below(2);
        s.calm = below(s.width);
        if (fits(&s))
            compare(&s);
    }
    assert_true(seen.in_between > 100);
}

/* What planes are there for: they do it all, or as much as there are exponents for. */
static void planes_until_they_are_too_many(void **state)
{
    (void)state;
    need_kernel();
    shape s = {.t = bw_format_get(BW_FORMAT_MSFP16), .kernel_y = 7, .kernel_x = 7, .stride = 2, .channels = 3};
    s.end_row = 7;
    s.left = -3;
    for (s.block = 64; s.block <= 128; s.block *= 2)
        for (s.rows = TIGHT; s.rows <= AT_START; s.rows++) {
            s.pixels = 112;
            s.width = 224;
            s.values = NORMAL;
            memset(&seen, 0, sizeof seen);
            compare(&s);
            assert_true(seen.by_planes == 1 && seen.with_tops == 1 && !seen.in_parts);
            /* Two parts. */
            s.pixels = 300;
            s.width = 600;
            compare(&s);
            assert_true(seen.by_planes == 2 && seen.in_parts == 1);
            s.values = RAMP;
            compare(&s);
            assert_true(seen.by_planes == 2 && seen.at_once == 1);
            /* The second part, not the first, has columns of many magnitudes, or the third. */
            s.values = CALM;
            for (s.calm = 263; s.calm <= 519; s.calm += 256)
                compare(&s);
            assert_true(seen.by_planes == 2 && seen.at_once == 1 && seen.in_between == 2 && !seen.by_blocks);
        }
}

/* Blocks are made for four pixels at a time: less than that is left to them. */
static void few_left_to_blocks(void **state)
{
    (void)state;
    need_kernel();
    for (unsigned round = 0; round < rounds(40); round++) {
        shape s = {.kernel_y = 2, .kernel_x = 4, .stride = 1 + round % 2, .channels = 45 + below(20), .pixels = 300};
        s.end_row = s.kernel_y;
        s.width = 300 * s.stride;
        s.values = CALM;
        s.calm = s.width;
        choose_format(&s, 64);
        assert_true(fits(&s));
        const size_t part = compare(&s).part;
        assert_in_range(part, 8, 296);
        s.calm = (part - 1) * s.stride + s.kernel_x;
        for (s.pixels = part + 1; s.pixels <= part + 5; s.pixels++) {
            s.salt = next();
            compare(&s);
        }
    }
    assert_true(seen.few_left > 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kernels_of_all_sizes), cmocka_unit_test(long_lines),
        cmocka_unit_test(short_lines),          cmocka_unit_test(values_of_all_kinds),
        cmocka_unit_test(rows_outside),         cmocka_unit_test(columns_outside),
        cmocka_unit_test(planes_given_up),      cmocka_unit_test(planes_until_they_are_too_many),
        cmocka_unit_test(few_left_to_blocks),
    };
    return cmocka_run_group_tests(tests, edges_make, edges_free);
}
