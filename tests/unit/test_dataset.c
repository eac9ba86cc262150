/* SPDX-License-Identifier: Apache-2.0 */
/* Data sets: arrays of every kind, archives stored and deflated, directories with labels, and damage. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <png.h>
#include <zlib.h>

#include <cmocka.h>

#include "hal/base.h"
#include "host/dataset.h"
#include "host/npy.h"

static char dir[256];

static int make_dir(void **state)
{
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/dataset-%ld", tmp ? tmp : "/tmp", (long)getpid());
    return mkdir(dir, 0700);
}

static int drop_dir(void **state)
{
    (void)state;
    char command[512];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command);
}

static const char *in_dir(const char *name)
{
    static char path[2][512];
    static int turn;
    turn = !turn;
    snprintf(path[turn], sizeof path[turn], "%s/%s", dir, name);
    return path[turn];
}

typedef struct bytes {
    uint8_t data[1 << 16];
    size_t size;
} bytes;

static void put(bytes *b, const void *p, size_t n)
{
    assert_true(n <= sizeof b->data - b->size);
    memcpy(b->data + b->size, p, n);
    b->size += n;
}

static void put_number(bytes *b, uint64_t v, int n)
{
    for (int i = 0; i < n; i++) {
        uint8_t c = i < 8 ? (uint8_t)(v >> (8 * i)) : 0;
        put(b, &c, 1);
    }
}

static void put_npy(bytes *b, const char *descr, const char *order, const char *shape, const void *data, size_t size)
{
    char text[256];
    int n = snprintf(text, sizeof text, "{'descr': %s, 'fortran_order': %s, 'shape': %s, }\n", descr, order, shape);
    put(b, "\x93NUMPY\x01\x00", 8);
    put_number(b, (uint64_t)n, 2);
    put(b, text, (size_t)n);
    put(b, data, size);
}

static void save(const char *name, const bytes *b)
{
    bw_error err;
    bw_slice slice = {b->data, b->size};
    if (bw_file_write_atomic(in_dir(name), &slice, 1, &err))
        fail_msg("%s", err.message);
}

typedef struct zip_in {
    const char *name;
    const bytes *content;
} zip_in;

static void make_zip(bytes *zip, const zip_in *members, int count, int deflated)
{
    bytes *directory = calloc(1, sizeof *directory);
    zip->size = 0;
    for (int i = 0; i < count; i++) {
        const bytes *c = members[i].content;
        uint8_t *packed = malloc(c->size + 1024);
        size_t packed_size = c->size;
        memcpy(packed, c->data, c->size);
        if (deflated) {
            z_stream z = {0};
            assert_int_equal(deflateInit2(&z, 6, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY), Z_OK);
            z.next_in = (Bytef *)c->data;
            z.avail_in = (uInt)c->size;
            z.next_out = packed;
            z.avail_out = (uInt)c->size + 1024;
            assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
            packed_size = z.total_out;
            deflateEnd(&z);
        }
        uint64_t local = zip->size, crc = crc32(0, c->data, (uInt)c->size), n = strlen(members[i].name);
        put_number(zip, 0x04034b50, 4);
        put_number(directory, 0x02014b50, 4);
        put_number(directory, 20, 2);
        for (int k = 0; k < 2; k++) {
            bytes *b = k ? directory : zip;
            put_number(b, 20, 2);
            put_number(b, 0, 2);
            put_number(b, deflated ? 8 : 0, 2);
            put_number(b, 0, 4);
            put_number(b, crc, 4);
            put_number(b, packed_size, 4);
            put_number(b, c->size, 4);
            put_number(b, n, 2);
            put_number(b, 0, 2);
        }
        put_number(directory, 0, 10);
        put_number(directory, local, 4);
        put(directory, members[i].name, n);
        put(zip, members[i].name, n);
        put(zip, packed, packed_size);
        free(packed);
    }
    uint64_t start = zip->size;
    put(zip, directory->data, directory->size);
    put_number(zip, 0x06054b50, 4);
    put_number(zip, 0, 4);
    put_number(zip, (uint64_t)count, 2);
    put_number(zip, (uint64_t)count, 2);
    put_number(zip, directory->size, 4);
    put_number(zip, start, 4);
    put_number(zip, 0, 2);
    free(directory);
}

static bw_dataset *open_or_fail(const char *name, const bw_preprocess *p, int rank, const int64_t *dims)
{
    bw_dataset *ds;
    bw_error err;
    if (bw_dataset_open(in_dir(name), p, "input", rank, dims, &ds, &err))
        fail_msg("%s", err.message);
    return ds;
}

static void expect_fail(const char *name, bw_status status, const char *says, int rank, const int64_t *dims)
{
    bw_dataset *ds;
    bw_error err = {BW_OK, ""};
    bw_status got = bw_dataset_open(in_dir(name), NULL, "input", rank, dims, &ds, &err);
    if (got != status || !strstr(err.message, says))
        fail_msg("%s: %s '%s', expected %s '%s'", name, bw_status_name(got), err.message, bw_status_name(status), says);
    assert_null(ds);
}

/* Each dtype with its own bytes for 1, 2, 200 (or what fits). */
static void test_dtypes(void **state)
{
    (void)state;
    static const int64_t dims[2] = {-1, 3};
    static const struct {
        const char *descr;
        const char *data;
        size_t size;
        float expected[3];
    } cases[] = {
        {"'<f4'", "\0\0\x80\x3f\0\0\0\x40\0\0\x48\x43", 12, {1, 2, 200}},
        {"'>f4'", "\x3f\x80\0\0\x40\0\0\0\x43\x48\0\0", 12, {1, 2, 200}},
        {"'<f2'", "\0\x3c\0\xc0\x40\x5a", 6, {1, -2, 200}},
        {"'<f2'", "\x01\x00\xff\x7b\xff\x03", 6, {0x1p-24f, 65504, 0x1.ff8p-15f}},
        {"'<f8'", "\0\0\0\0\0\0\xf0\x3f\0\0\0\0\0\0\0\x40\0\0\0\0\0\0\x69\x40", 24, {1, 2, 200}},
        {"'|u1'", "\1\2\xc8", 3, {1, 2, 200}},
        {"'|i1'", "\1\2\xc8", 3, {1, 2, -56}},
        {"'|b1'", "\1\0\1", 3, {1, 0, 1}},
        {"'<u2'", "\1\0\2\0\xff\xff", 6, {1, 2, 65535}},
        {"'<i2'", "\1\0\2\0\xff\xff", 6, {1, 2, -1}},
        {"'>i4'", "\0\0\0\1\0\0\0\2\xff\xff\xff\xfe", 12, {1, 2, -2}},
        {"'<u4'", "\1\0\0\0\2\0\0\0\xff\xff\xff\xff", 12, {1, 2, 4294967296.0f}},
        {"'<i8'", "\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", 24, {1, 2, -1}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bytes *b = calloc(1, sizeof *b);
        put_npy(b, cases[i].descr, "False", "(1, 3)", cases[i].data, cases[i].size);
        save("a.npy", b);
        bw_dataset *ds = open_or_fail("a.npy", NULL, 2, dims);
        assert_int_equal(bw_dataset_count(ds), 1);
        assert_int_equal(bw_dataset_has_labels(ds), 0);
        bw_array batch;
        int64_t label;
        bw_error err;
        assert_int_equal(bw_dataset_read(ds, 0, 1, &batch, &label, &err), BW_OK);
        assert_int_equal(label, -1);
        for (int k = 0; k < 3; k++) {
            if (((float *)batch.data)[k] != cases[i].expected[k])
                fail_msg("%s element %d is %g", cases[i].descr, k, (double)((float *)batch.data)[k]);
        }
        bw_array_free(&batch);
        bw_dataset_close(ds);
        free(b);
    }
}

static void test_bad_npy(void **state)
{
    (void)state;
    static const int64_t dims[2] = {-1, 3};
    static const uint8_t data[24] = {0};
    static const struct {
        const char *descr, *order, *shape;
        size_t size;
        bw_status status;
        const char *says;
    } cases[] = {
        {"'<f4'", "True", "(2, 3)", 24, BW_UNSUPPORTED, "ascontiguousarray"},
        {"'<c8'", "False", "(1, 3)", 24, BW_UNSUPPORTED, "<c8"},
        {"'|O'", "False", "(1, 3)", 24, BW_UNSUPPORTED, "|O"},
        {"'<U3'", "False", "(1, 3)", 24, BW_UNSUPPORTED, "astype"},
        {"[('a', '<f4')]", "False", "(1, 3)", 24, BW_UNSUPPORTED, "structured"},
        {"'<f4'", "False", "(2, 3)", 23, BW_CORRUPT, "truncated"},
        {"'<f4'", "False", "(2, 4)", 24, BW_CORRUPT, "truncated"},
        {"'<f4'", "False", "(-2, 3)", 24, BW_CORRUPT, "list of sizes"},
        {"'<f4'", "False", "(2, 3", 24, BW_CORRUPT, "list of sizes"},
        {"'<f4'", "False", "(4294967296, 4294967296, 4294967296)", 24, BW_CORRUPT, "more elements"},
        {"'<f4'", "False", "(99999999999999999999999, 3)", 24, BW_CORRUPT, "2^63"},
        {"'<f4'", "False", "(1, 1, 1, 1, 1, 1, 1, 1, 6)", 24, BW_UNSUPPORTED, "dimensions"},
        {"'<f4'", "False", "(3, 2)", 24, BW_INVALID_ARGUMENT, "has shape [3, 2], input 'input' wants [N, 3]"},
        {"'<f4'", "False", "(6,)", 24, BW_INVALID_ARGUMENT, "has shape [6]"},
        {"'<f4'", "False", "(0, 3)", 0, BW_INVALID_ARGUMENT, "no samples"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bytes *b = calloc(1, sizeof *b);
        put_npy(b, cases[i].descr, cases[i].order, cases[i].shape, data, cases[i].size);
        save("bad.npy", b);
        expect_fail("bad.npy", cases[i].status, cases[i].says, 2, dims);
        free(b);
    }
    bytes *b = calloc(1, sizeof *b);
    put(b, "\x93NUMPY\x01\x00\xff\xff{", 11);
    save("bad.npy", b);
    expect_fail("bad.npy", BW_CORRUPT, "header of 65535 bytes", 2, dims);
    b->size = 0;
    put(b, "hello", 5);
    save("bad.npy", b);
    expect_fail("bad.npy", BW_CORRUPT, "neither", 2, dims);
    expect_fail("absent.npy", BW_NOT_FOUND, "absent.npy", 2, dims);
    free(b);
}

static void test_not_finite(void **state)
{
    (void)state;
    static const int64_t dims[2] = {-1, 2};
    bytes *b = calloc(1, sizeof *b);
    put_npy(b, "'<f4'", "False", "(2, 2)", "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\xc0\x7f", 16);
    save("nan.npy", b);
    bw_dataset *ds = open_or_fail("nan.npy", NULL, 2, dims);
    bw_array batch;
    bw_error err;
    assert_int_equal(bw_dataset_read(ds, 0, 1, &batch, NULL, &err), BW_OK);
    bw_array_free(&batch);
    assert_int_equal(bw_dataset_read(ds, 0, 2, &batch, NULL, &err), BW_NOT_FINITE);
    assert_non_null(strstr(err.message, "nan.npy[1]: element 1 is nan"));
    assert_null(batch.data);
    assert_int_equal(bw_dataset_read(ds, 1, 2, &batch, NULL, &err), BW_OUT_OF_RANGE);
    bw_dataset_close(ds);
    free(b);
}

enum { SAMPLES = 300, WIDTH = 21 };

static void numbers(bytes *x, bytes *y)
{
    static float values[SAMPLES][WIDTH];
    static int64_t labels[SAMPLES];
    char shape[64];
    for (int i = 0; i < SAMPLES; i++) {
        labels[i] = i % 7;
        for (int k = 0; k < WIDTH; k++)
            values[i][k] = (float)(i * 3 + k);
    }
    snprintf(shape, sizeof shape, "(%d, %d)", SAMPLES, WIDTH);
    put_npy(x, "'<f4'", "False", shape, values, sizeof values);
    snprintf(shape, sizeof shape, "(%d,)", SAMPLES);
    put_npy(y, "'<i8'", "False", shape, labels, sizeof labels);
}

static void test_archives(void **state)
{
    (void)state;
    static const int64_t dims[2] = {-1, WIDTH};
    bytes *x = calloc(1, sizeof *x), *y = calloc(1, sizeof *y), *zip = calloc(1, sizeof *zip);
    numbers(x, y);
    for (int deflated = 0; deflated < 2; deflated++) {
        const zip_in members[] = {{"x.npy", x}, {"y.npy", y}};
        make_zip(zip, members, 2, deflated);
        save("a.npz", zip);
        bw_dataset *ds = open_or_fail("a.npz", NULL, 2, dims);
        assert_int_equal(bw_dataset_count(ds), SAMPLES);
        assert_int_equal(bw_dataset_has_labels(ds), 1);
        /* forwards in odd steps, then back to the start: a stream must begin again */
        for (int round = 0; round < 2; round++) {
            for (int64_t first = 0; first < SAMPLES; first += 17) {
                int64_t n = SAMPLES - first < 17 ? SAMPLES - first : 17, labels[17];
                bw_array batch;
                bw_error err;
                if (bw_dataset_read(ds, first, n, &batch, labels, &err))
                    fail_msg("%s", err.message);
                assert_int_equal(batch.rank, 2);
                assert_int_equal(batch.dims[0], n);
                for (int64_t i = 0; i < n; i++) {
                    assert_int_equal(labels[i], (first + i) % 7);
                    for (int k = 0; k < WIDTH; k++)
                        assert_true(((float *)batch.data)[i * WIDTH + k] == (float)((first + i) * 3 + k));
                }
                bw_array_free(&batch);
            }
        }
        bw_dataset_close(ds);
    }
    free(x);
    free(y);
    free(zip);
}

/* Reads everything that can be read; a status, never a crash. */
static bw_status read_all(const uint8_t *data, size_t size)
{
    uint8_t *exact = malloc(size ? size : 1);
    memcpy(exact, data, size);
    bw_npy_file *f;
    bw_error err;
    bw_status status = bw_npy_open_bytes("test", exact, size, &f, &err);
    if (!status) {
        for (int i = 0; i < bw_npy_array_count(f) && !status; i++) {
            bw_npy_header h;
            status = bw_npy_array_header(f, i, &h, &err);
            if (!status && h.count <= 1 << 16) {
                void *out = malloc((size_t)h.count * (size_t)h.item + 1);
                status = bw_npy_read(f, i, 0, (size_t)h.count, out, &err);
                free(out);
            }
        }
        bw_npy_close(f);
    }
    free(exact);
    return status;
}

static void test_damaged_archives(void **state)
{
    (void)state;
    bytes *x = calloc(1, sizeof *x), *y = calloc(1, sizeof *y), *zip = calloc(1, sizeof *zip);
    put_npy(x, "'|u1'", "False", "(40, 5)", y->data, 200);
    for (int deflated = 0; deflated < 2; deflated++) {
        const zip_in members[] = {{"x.npy", x}};
        make_zip(zip, members, 1, deflated);
        assert_int_equal(read_all(zip->data, zip->size), BW_OK);
        size_t data = 30 + 5, directory = zip->size - 22 - 46 - 5;
        for (size_t i = data; i < directory; i++) {
            zip->data[i] ^= 0x10;
            /* several deflated streams may say the same: there only the sanitizers judge */
            if (read_all(zip->data, zip->size) == BW_OK && !deflated)
                fail_msg("changed byte %zu was not noticed", i);
            zip->data[i] ^= 0x10;
        }
        for (size_t i = 0; i < zip->size; i++) {
            for (int bit = 0; bit < 8; bit++) {
                zip->data[i] ^= (uint8_t)(1 << bit);
                (void)read_all(zip->data, zip->size);
                zip->data[i] ^= (uint8_t)(1 << bit);
            }
            assert_int_not_equal(read_all(zip->data, i), BW_OK);
        }
        /* encrypted; another compression */
        zip->data[directory + 8] ^= 1;
        assert_int_equal(read_all(zip->data, zip->size), BW_UNSUPPORTED);
        zip->data[directory + 8] ^= 1;
        zip->data[directory + 10] = 12;
        assert_int_equal(read_all(zip->data, zip->size), BW_UNSUPPORTED);
    }
    free(x);
    free(y);
    free(zip);
}

static void test_labels_of_arrays(void **state)
{
    (void)state;
    static const int64_t dims[2] = {-1, 3};
    bytes *x = calloc(1, sizeof *x), *y = calloc(1, sizeof *y), *zip = calloc(1, sizeof *zip);
    const zip_in members[] = {{"images.npy", x}, {"labels.npy", y}};
    put_npy(x, "'|u1'", "False", "(2, 3)", "\1\2\3\4\5\6", 6);
    put_npy(y, "'|u1'", "False", "(2, 1)", "\7\x08", 2);
    make_zip(zip, members, 2, 0);
    save("l.npz", zip);
    bw_dataset *ds = open_or_fail("l.npz", NULL, 2, dims);
    bw_array batch;
    int64_t labels[2];
    bw_error err;
    assert_int_equal(bw_dataset_read(ds, 0, 2, &batch, labels, &err), BW_OK);
    assert_int_equal(labels[0], 7);
    assert_int_equal(labels[1], 8);
    assert_non_null(strstr(bw_dataset_name(ds, 1), "l.npz[1]"));
    bw_array_free(&batch);
    bw_dataset_close(ds);
    y->size = 0;
    put_npy(y, "'|u1'", "False", "(3,)", "\7\x08\x09", 3);
    make_zip(zip, members, 2, 0);
    save("l.npz", zip);
    expect_fail("l.npz", BW_INVALID_ARGUMENT, "labels 'labels' have shape [3], expected [2]", 2, dims);
    y->size = 0;
    put_npy(y, "'<f4'", "False", "(2,)", "\0\0\0\x3f\0\0\0\0", 8);
    make_zip(zip, members, 2, 0);
    save("l.npz", zip);
    expect_fail("l.npz", BW_INVALID_ARGUMENT, "element 0 is 0.5", 2, dims);
    const zip_in strangers[] = {{"a.npy", x}, {"b.npy", x}};
    make_zip(zip, strangers, 2, 0);
    save("l.npz", zip);
    expect_fail("l.npz", BW_NOT_FOUND, "none named 'input'", 2, dims);
    free(x);
    free(y);
    free(zip);
}

static void write_png(const char *name, uint8_t value)
{
    uint8_t pixels[4] = {value, value, value, value};
    png_image image = {.version = PNG_IMAGE_VERSION, .width = 2, .height = 2, .format = PNG_FORMAT_GRAY};
    assert_int_not_equal(png_image_write_to_file(&image, in_dir(name), 0, pixels, 0, NULL), 0);
}

static void write_text(const char *name, const char *text)
{
    FILE *f = fopen(in_dir(name), "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static const bw_preprocess gray2 = {
    .resize = BW_RESIZE_NONE, .height = 2, .width = 2, .channels = BW_CHANNELS_GRAY, .scale = 1, .std = {1, 1, 1}};
static const int64_t gray2_dims[4] = {-1, 1, 2, 2};

static void test_directory(void **state)
{
    (void)state;
    mkdir(in_dir("pics"), 0700);
    write_png("pics/b.png", 20);
    write_png("pics/a.PNG", 10);
    write_png("pics/c, \"d\".png", 30);
    write_text("pics/notes.txt", "no picture");
    bw_dataset *ds = open_or_fail("pics", &gray2, 4, gray2_dims);
    assert_int_equal(bw_dataset_count(ds), 3);
    assert_int_equal(bw_dataset_has_labels(ds), 0);
    assert_string_equal(bw_dataset_name(ds, 0), "a.PNG");
    assert_string_equal(bw_dataset_name(ds, 2), "c, \"d\".png");
    assert_string_equal(bw_dataset_name(ds, 3), "");
    bw_array batch;
    bw_error err;
    assert_int_equal(bw_dataset_read(ds, 0, 3, &batch, NULL, &err), BW_OK);
    for (int i = 0; i < 12; i++)
        assert_true(((float *)batch.data)[i] == (float)(10 * (i / 4 + 1)));
    bw_array_free(&batch);
    bw_dataset_close(ds);
    write_text("pics/labels.csv", "file,label\r\nb.png,5\r\n\"c, \"\"d\"\".png\",cat\n");
    ds = open_or_fail("pics", &gray2, 4, gray2_dims);
    int64_t labels[3];
    assert_int_equal(bw_dataset_has_labels(ds), 1);
    assert_int_equal(bw_dataset_read(ds, 0, 3, &batch, labels, &err), BW_OK);
    bw_array_free(&batch);
    assert_int_equal(labels[0], -1);
    assert_int_equal(labels[1], 5);
    assert_int_equal(labels[2], -1);
    const char *const classes[] = {"dog", "cat"};
    assert_int_equal(bw_dataset_set_classes(ds, classes, 1, &err), BW_NOT_FOUND);
    assert_non_null(strstr(err.message, "'cat'"));
    assert_int_equal(bw_dataset_set_classes(ds, classes, 2, &err), BW_OK);
    assert_int_equal(bw_dataset_read(ds, 0, 3, &batch, labels, &err), BW_OK);
    bw_array_free(&batch);
    assert_int_equal(labels[1], 5);
    assert_int_equal(labels[2], 1);
    bw_dataset_close(ds);
}

static void expect_dir_fail(bw_status status, const char *says)
{
    bw_dataset *ds;
    bw_error err = {BW_OK, ""};
    bw_status got = bw_dataset_open(in_dir("pics"), &gray2, "input", 4, gray2_dims, &ds, &err);
    if (got != status || !strstr(err.message, says))
        fail_msg("%s '%s', expected %s '%s'", bw_status_name(got), err.message, bw_status_name(status), says);
}

static void test_bad_directory(void **state)
{
    (void)state;
    write_text("pics/labels.csv", "b.png,5\nz.png,1\n");
    expect_dir_fail(BW_NOT_FOUND, "line 2: no picture 'z.png'");
    write_text("pics/labels.csv", "b.png\n");
    expect_dir_fail(BW_CORRUPT, "line 1: expected 'file,label'");
    write_text("pics/labels.csv", "\"b.png,5\n");
    expect_dir_fail(BW_CORRUPT, "line 1");
    unlink(in_dir("pics/labels.csv"));
    write_text("pics/d.jpg", "no picture at all");
    bw_dataset *ds = open_or_fail("pics", &gray2, 4, gray2_dims);
    bw_array batch;
    bw_error err;
    assert_int_equal(bw_dataset_read(ds, 2, 2, &batch, NULL, &err), BW_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "d.jpg"));
    bw_dataset_close(ds);
    expect_fail("pics", BW_INVALID_ARGUMENT, "--preprocess", 4, gray2_dims);
    static const int64_t other[4] = {-1, 3, 2, 2};
    assert_int_equal(bw_dataset_open(in_dir("pics"), &gray2, "input", 4, other, &ds, &err), BW_INVALID_ARGUMENT);
    mkdir(in_dir("none"), 0700);
    assert_int_equal(bw_dataset_open(in_dir("none"), &gray2, "input", 4, gray2_dims, &ds, &err), BW_NOT_FOUND);
}

static void test_sub_directories(void **state)
{
    (void)state;
    mkdir(in_dir("tree"), 0700);
    mkdir(in_dir("tree/1"), 0700);
    mkdir(in_dir("tree/cat"), 0700);
    mkdir(in_dir("tree/.hidden"), 0700);
    write_png("tree/1/x.png", 1);
    write_png("tree/cat/y.png", 2);
    write_png("tree/.hidden/z.png", 3);
    bw_dataset *ds = open_or_fail("tree", &gray2, 4, gray2_dims);
    assert_int_equal(bw_dataset_count(ds), 2);
    assert_string_equal(bw_dataset_name(ds, 0), "1/x.png");
    const char *const classes[] = {"cat"};
    bw_error err;
    assert_int_equal(bw_dataset_set_classes(ds, classes, 1, &err), BW_OK);
    bw_array batch;
    int64_t labels[2];
    assert_int_equal(bw_dataset_read(ds, 0, 2, &batch, labels, &err), BW_OK);
    bw_array_free(&batch);
    assert_int_equal(labels[0], 1);
    assert_int_equal(labels[1], 0);
    bw_dataset_close(ds);
}

static void test_writer(void **state)
{
    (void)state;
    static const float a[6] = {1, 2, 3, 4, 5, 6};
    static const int64_t y[3] = {7, -1, 9};
    const bw_npy_spec specs[] = {{"x", BW_F32, 2, {3, 2}}, {"y", BW_I64, 1, {3}}};
    bw_npy_writer *w;
    bw_error err;
    for (int round = 0; round < 2; round++) {
        assert_int_equal(bw_npy_create(in_dir(round ? "w2.npz" : "w.npz"), specs, 2, &w, &err), BW_OK);
        for (int i = 0; i < 3; i++) {
            assert_int_equal(bw_npy_append(w, 0, a + 2 * i, 8, &err), BW_OK);
            assert_int_equal(bw_npy_append(w, 1, y + i, 8, &err), BW_OK);
        }
        assert_int_equal(bw_npy_append(w, 1, y, 8, &err), BW_INTERNAL);
        assert_int_equal(bw_npy_finish(w, &err), BW_OK);
    }
    char command[1200];
    snprintf(command, sizeof command, "cmp -s '%s' '%s'", in_dir("w.npz"), in_dir("w2.npz"));
    assert_int_equal(system(command), 0);
    static const int64_t dims[2] = {-1, 2};
    bw_dataset *ds = open_or_fail("w.npz", NULL, 2, dims);
    bw_array batch;
    int64_t labels[3];
    assert_int_equal(bw_dataset_read(ds, 0, 3, &batch, labels, &err), BW_OK);
    assert_memory_equal(batch.data, a, sizeof a);
    assert_memory_equal(labels, y, sizeof y);
    bw_array_free(&batch);
    bw_dataset_close(ds);
    /* one array in a .npy; not complete; abandoned; several do not fit */
    assert_int_equal(bw_npy_create(in_dir("v.npy"), specs, 1, &w, &err), BW_OK);
    assert_int_equal(bw_npy_append(w, 0, a, 24, &err), BW_OK);
    assert_int_equal(bw_npy_finish(w, &err), BW_OK);
    ds = open_or_fail("v.npy", NULL, 2, dims);
    bw_dataset_close(ds);
    assert_int_equal(bw_npy_create(in_dir("u.npy"), specs, 1, &w, &err), BW_OK);
    assert_int_equal(bw_npy_finish(w, &err), BW_INTERNAL);
    assert_int_equal(bw_npy_create(in_dir("u.npz"), specs, 2, &w, &err), BW_OK);
    bw_npy_abandon(w);
    assert_int_equal(bw_npy_create(in_dir("u.npy"), specs, 2, &w, &err), BW_INVALID_ARGUMENT);
    assert_int_not_equal(bw_npy_create(in_dir("no/such/u.npy"), specs, 1, &w, &err), BW_OK);
    snprintf(command, sizeof command, "test -z \"$(ls '%s' | grep '^u')\"", dir);
    assert_int_equal(system(command), 0);
}

/* Reads w.npz of the test before. */
static void test_numpy_reads_it(void **state)
{
    (void)state;
    char command[1200];
    if (system("${PYTHON:-/usr/bin/python3} -c 'import numpy' 2>/dev/null") != 0) {
        print_message("NumPy is not installed\n");
        skip();
    }
    snprintf(command, sizeof command,
             "${PYTHON:-/usr/bin/python3} -c \"import numpy as n; f=n.load('%s'); "
             "assert f['x'].tolist()==[[1,2],[3,4],[5,6]] and f['y'].tolist()==[7,-1,9]\"",
             in_dir("w.npz"));
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dtypes),           cmocka_unit_test(test_bad_npy),
        cmocka_unit_test(test_not_finite),       cmocka_unit_test(test_archives),
        cmocka_unit_test(test_damaged_archives), cmocka_unit_test(test_labels_of_arrays),
        cmocka_unit_test(test_directory),        cmocka_unit_test(test_bad_directory),
        cmocka_unit_test(test_sub_directories),  cmocka_unit_test(test_writer),
        cmocka_unit_test(test_numpy_reads_it),
    };
    return cmocka_run_group_tests(tests, make_dir, drop_dir);
}
