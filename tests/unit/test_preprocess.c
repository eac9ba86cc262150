/* SPDX-License-Identifier: Apache-2.0 */
/* Pictures to inputs: decoding of every kind of PNG and JPEG, resizing against values computed by Pillow 9.4
 * (Image.resize with BILINEAR), crops, channel orders, and hostile bytes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <png.h>

#include <cmocka.h>

#include "host/picture.h"
#include "host/preprocess.h"

static uint8_t pattern(int y, int x, int c)
{
    return (uint8_t)(x * 37 + y * 91 + x * y * 13 + c * 57);
}

static bw_picture make(int height, int width, int channels)
{
    bw_picture p = {.width = width, .height = height, .channels = channels};
    p.pixels = malloc((size_t)height * (size_t)width * (size_t)channels);
    uint8_t *at = p.pixels;
    for (int y = 0; y < height; y++) {
        for (int x = 0; x < width; x++) {
            for (int c = 0; c < channels; c++)
                *at++ = pattern(y, x, c);
        }
    }
    return p;
}

static uint64_t fnv(const uint8_t *p, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}

typedef struct buffer {
    uint8_t *bytes;
    size_t size, capacity;
} buffer;

static void png_write(png_structp png, png_bytep bytes, size_t n)
{
    buffer *b = png_get_io_ptr(png);
    b->bytes = realloc(b->bytes, b->size + n);
    memcpy(b->bytes + b->size, bytes, n);
    b->size += n;
}

static void png_flush_nothing(png_structp png)
{
    (void)png;
}

/* rows as they are; palette and transparency where the type asks for them */
static buffer encode_png(int height, int width, int type, int depth, int interlaced, const uint8_t *rows, size_t stride,
                         int palette_size, const png_byte *alpha)
{
    buffer b = {0};
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
    png_infop info = png_create_info_struct(png);
    if (setjmp(png_jmpbuf(png)))
        abort();
    png_set_write_fn(png, &b, png_write, png_flush_nothing);
    png_set_IHDR(png, info, (png_uint_32)width, (png_uint_32)height, depth, type,
                 interlaced ? PNG_INTERLACE_ADAM7 : PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT,
                 PNG_FILTER_TYPE_DEFAULT);
    png_color palette[256];
    for (int i = 0; i < palette_size; i++)
        palette[i] = (png_color){(png_byte)(i * 3), (png_byte)(255 - i), (png_byte)(i * 7)};
    if (palette_size)
        png_set_PLTE(png, info, palette, palette_size);
    if (alpha)
        png_set_tRNS(png, info, (png_bytep)alpha, palette_size, NULL);
    png_bytep *pointers = malloc((size_t)height * sizeof *pointers);
    for (int y = 0; y < height; y++)
        pointers[y] = (png_bytep)rows + (size_t)y * stride;
    png_set_rows(png, info, pointers);
    png_write_png(png, info, PNG_TRANSFORM_IDENTITY, NULL);
    png_destroy_write_struct(&png, &info);
    free(pointers);
    return b;
}

static buffer encode_picture_png(const bw_picture *p, int interlaced)
{
    return encode_png(p->height, p->width, p->channels == 3 ? PNG_COLOR_TYPE_RGB : PNG_COLOR_TYPE_GRAY, 8, interlaced,
                      p->pixels, (size_t)p->width * (size_t)p->channels, 0, NULL);
}

static buffer encode_jpeg(const bw_picture *p, J_COLOR_SPACE space, int components, int progressive, int adobe)
{
    struct jpeg_compress_struct j;
    struct jpeg_error_mgr errors;
    j.err = jpeg_std_error(&errors);
    jpeg_create_compress(&j);
    unsigned char *out = NULL;
    unsigned long size = 0;
    jpeg_mem_dest(&j, &out, &size);
    j.image_width = (JDIMENSION)p->width;
    j.image_height = (JDIMENSION)p->height;
    j.input_components = components;
    j.in_color_space = space;
    jpeg_set_defaults(&j);
    jpeg_set_quality(&j, 100, TRUE);
    if (progressive)
        jpeg_simple_progression(&j);
    j.comp_info[0].h_samp_factor = j.comp_info[0].v_samp_factor = 1;
    j.write_Adobe_marker = adobe;
    jpeg_start_compress(&j, TRUE);
    while (j.next_scanline < j.image_height) {
        JSAMPROW row = p->pixels + (size_t)j.next_scanline * (size_t)p->width * (size_t)components;
        jpeg_write_scanlines(&j, &row, 1);
    }
    jpeg_finish_compress(&j);
    jpeg_destroy_compress(&j);
    return (buffer){out, size, size};
}

static bw_picture decode(const buffer *b)
{
    bw_picture p;
    bw_error err;
    uint8_t *exact = malloc(b->size); /* so that a sanitizer sees one byte too many */
    memcpy(exact, b->bytes, b->size);
    if (bw_picture_decode(exact, b->size, &p, &err))
        fail_msg("%s", err.message);
    free(exact);
    return p;
}

static void test_resize_is_pillows(void **state)
{
    (void)state;
    static const uint8_t small[3][4] = {{61, 128, 127, 163}, {151, 142, 148, 140}, {106, 125, 142, 131}};
    static const uint8_t across[5][3] = {
        {32, 111, 190}, {134, 166, 92}, {181, 130, 159}, {82, 170, 152}, {129, 119, 109}};
    static const uint8_t down[2][7] = {{79, 129, 121, 171, 105, 155, 147}, {87, 163, 99, 175, 135, 129, 147}};
    static const uint8_t large[9][11] = {
        {0, 17, 40, 64, 87, 111, 135, 158, 182, 205, 222},     {30, 49, 75, 102, 128, 154, 127, 122, 148, 174, 193},
        {81, 103, 134, 164, 195, 227, 113, 61, 91, 122, 145},  {131, 157, 182, 145, 149, 185, 130, 114, 149, 123, 96},
        {182, 211, 227, 105, 75, 115, 155, 195, 235, 136, 48}, {90, 123, 156, 129, 143, 187, 141, 134, 179, 162, 142},
        {27, 63, 109, 140, 182, 231, 135, 94, 125, 172, 207},  {78, 116, 155, 100, 107, 161, 161, 137, 82, 121, 159},
        {108, 148, 182, 76, 62, 119, 176, 162, 56, 90, 130}};
    const struct {
        int height, width;
        const uint8_t *expected;
    } cases[] = {{3, 4, small[0]}, {5, 3, across[0]}, {2, 7, down[0]}, {9, 11, large[0]}};
    bw_picture gray = make(5, 7, 1), out;
    bw_error err;
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(bw_picture_resize(&gray, cases[i].height, cases[i].width, &out, &err), BW_OK);
        assert_memory_equal(out.pixels, cases[i].expected, (size_t)(cases[i].height * cases[i].width));
        bw_picture_free(&out);
    }
    bw_picture_free(&gray);
    const struct {
        int height, width;
        uint64_t hash;
    } hashes[] = {{32, 32, 0xbd0af2b2c1b4edab},
                  {200, 17, 0xb0a6ef055a41aae3},
                  {61, 20, 0xebd13d2268018c81},
                  {122, 249, 0x455c7aa8186e6503}};
    bw_picture colour = make(61, 83, 3);
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(bw_picture_resize(&colour, hashes[i].height, hashes[i].width, &out, &err), BW_OK);
        if (fnv(out.pixels, (size_t)(hashes[i].height * hashes[i].width * 3)) != hashes[i].hash)
            fail_msg("83 x 61 to %d x %d differs from Pillow", hashes[i].width, hashes[i].height);
        bw_picture_free(&out);
    }
    assert_int_equal(bw_picture_convert(&colour, 1, &err), BW_OK);
    assert_true(fnv(colour.pixels, 61 * 83) == 0x7dfb26f2419155d1);
    bw_picture_free(&colour);
}

static void test_resize_limits(void **state)
{
    (void)state;
    bw_picture p = make(2, 2, 1), out;
    bw_error err;
    assert_int_equal(bw_picture_resize(&p, 0, 5, &out, &err), BW_INVALID_ARGUMENT);
    assert_int_equal(bw_picture_resize(&p, 5, 70000, &out, &err), BW_INVALID_ARGUMENT);
    assert_int_equal(bw_picture_resize(&p, 60000, 60000, &out, &err), BW_INVALID_ARGUMENT);
    bw_picture_free(&p);
    bw_picture tall = {.width = 1, .height = 65535, .channels = 1, .pixels = calloc(1, 65535)};
    assert_int_equal(bw_picture_resize(&tall, 1, 60000, &out, &err), BW_INVALID_ARGUMENT);
    assert_int_equal(bw_picture_resize(&tall, 1, 1, &out, &err), BW_OK);
    bw_picture_free(&out);
    bw_picture_free(&tall);
}

static void test_png_plain(void **state)
{
    (void)state;
    for (int channels = 1; channels <= 3; channels += 2) {
        for (int interlaced = 0; interlaced < 2; interlaced++) {
            bw_picture p = make(13, 19, channels);
            buffer b = encode_picture_png(&p, interlaced);
            bw_picture q = decode(&b);
            assert_int_equal(q.width, 19);
            assert_int_equal(q.height, 13);
            assert_int_equal(q.channels, channels);
            assert_memory_equal(p.pixels, q.pixels, (size_t)(13 * 19 * channels));
            free(b.bytes);
            bw_picture_free(&p);
            bw_picture_free(&q);
        }
    }
}

static void test_png_kinds(void **state)
{
    (void)state;
    /* 1 bit gray: 1 is white */
    static const uint8_t bits[2] = {0xa0, 0x50};
    buffer b = encode_png(2, 4, PNG_COLOR_TYPE_GRAY, 1, 0, bits, 1, 0, NULL);
    bw_picture p = decode(&b);
    static const uint8_t white[8] = {255, 0, 255, 0, 0, 255, 0, 255};
    assert_int_equal(p.channels, 1);
    assert_memory_equal(p.pixels, white, 8);
    bw_picture_free(&p);
    free(b.bytes);
    /* 16 bits, big-endian samples: scaled, not cut */
    static const uint8_t deep[6] = {0x80, 0x00, 0xff, 0xff, 0x00, 0x80};
    b = encode_png(1, 3, PNG_COLOR_TYPE_GRAY, 16, 0, deep, 6, 0, NULL);
    p = decode(&b);
    assert_int_equal(p.pixels[0], 128);
    assert_int_equal(p.pixels[1], 255);
    assert_int_equal(p.pixels[2], 0);
    bw_picture_free(&p);
    free(b.bytes);
    /* palette of four, two bits each; entry 1 half transparent over white */
    static const uint8_t indices[1] = {0x1b}; /* 0 1 2 3 */
    static const png_byte alpha[4] = {255, 128, 255, 0};
    b = encode_png(1, 4, PNG_COLOR_TYPE_PALETTE, 2, 0, indices, 1, 4, alpha);
    p = decode(&b);
    assert_int_equal(p.channels, 3);
    const int expected[4][3] = {{0, 255, 0}, {128, 254, 130}, {6, 253, 14}, {255, 255, 255}};
    for (int i = 0; i < 4; i++) {
        for (int c = 0; c < 3; c++) {
            int e = i == 1 ? ((c == 0 ? 3 : c == 1 ? 254 : 7) * 128 + 255 * 127 + 127) / 255 : expected[i][c];
            assert_int_equal(p.pixels[3 * i + c], e);
        }
    }
    bw_picture_free(&p);
    free(b.bytes);
    /* RGBA and gray with alpha */
    static const uint8_t rgba[8] = {10, 20, 30, 255, 10, 20, 30, 0};
    b = encode_png(1, 2, PNG_COLOR_TYPE_RGB_ALPHA, 8, 0, rgba, 8, 0, NULL);
    p = decode(&b);
    static const uint8_t flat[6] = {10, 20, 30, 255, 255, 255};
    assert_memory_equal(p.pixels, flat, 6);
    bw_picture_free(&p);
    free(b.bytes);
    static const uint8_t ga[4] = {77, 255, 77, 0};
    b = encode_png(1, 2, PNG_COLOR_TYPE_GRAY_ALPHA, 8, 0, ga, 4, 0, NULL);
    p = decode(&b);
    assert_int_equal(p.channels, 1);
    assert_int_equal(p.pixels[0], 77);
    assert_int_equal(p.pixels[1], 255);
    bw_picture_free(&p);
    free(b.bytes);
}

static void test_jpeg(void **state)
{
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        int components = kind == 1 ? 1 : kind >= 2 ? 4 : 3;
        bw_picture p = {.width = 16, .height = 16, .channels = components};
        p.pixels = malloc(16 * 16 * 4);
        /* smooth, so that the loss of the coding stays small */
        for (int i = 0; i < 16 * 16; i++) {
            for (int c = 0; c < components; c++)
                p.pixels[i * components + c] = (uint8_t)(40 + i / 16 * 8 + c * 15);
        }
        buffer b = encode_jpeg(&p,
                               components == 1   ? JCS_GRAYSCALE
                               : components == 3 ? JCS_RGB
                                                 : JCS_CMYK,
                               components, kind == 0, kind == 3);
        bw_picture q = decode(&b);
        assert_int_equal(q.channels, components == 1 ? 1 : 3);
        for (int i = 0; i < 16 * 16; i++) {
            for (int c = 0; c < q.channels; c++) {
                int e = p.pixels[i * components + c];
                if (kind == 2) { /* ink */
                    int k = p.pixels[i * 4 + 3];
                    e = (255 - e) * (255 - k) / 255;
                } else if (kind == 3) { /* Adobe: inverted */
                    e = e * p.pixels[i * 4 + 3] / 255;
                }
                assert_in_range(q.pixels[i * q.channels + c], e > 4 ? e - 4 : 0, e + 4);
            }
        }
        free(b.bytes);
        bw_picture_free(&p);
        bw_picture_free(&q);
    }
}

static void refuse(const void *bytes, size_t size, const char *says)
{
    bw_picture p;
    bw_error err = {BW_OK, ""};
    uint8_t *exact = malloc(size ? size : 1);
    memcpy(exact, bytes, size);
    bw_status status = bw_picture_decode(exact, size, &p, &err);
    if (status != BW_INVALID_ARGUMENT || !strstr(err.message, says))
        fail_msg("%zu bytes: %s '%s', expected '%s'", size, bw_status_name(status), err.message, says);
    assert_null(p.pixels);
    free(exact);
}

static void test_damaged(void **state)
{
    (void)state;
    refuse("", 0, "0 bytes, expected");
    refuse("GIF89a", 6, "47 49 46 38");
    refuse("\x89PNG\r\n\x1a\n", 8, "damaged PNG");
    refuse("\xff\xd8\xff", 3, "damaged JPEG");
    bw_picture p = make(40, 40, 3);
    buffer png = encode_picture_png(&p, 0), jpeg = encode_jpeg(&p, JCS_RGB, 3, 1, 0);
    for (size_t cut = 8; cut < png.size; cut += 41)
        refuse(png.bytes, cut, "damaged PNG");
    for (size_t cut = 3; cut < jpeg.size - 2; cut += 41)
        refuse(jpeg.bytes, cut, "damaged JPEG");
    png.bytes[png.size / 2] ^= 4;
    refuse(png.bytes, png.size, "damaged PNG");
    free(png.bytes);
    free(jpeg.bytes);
    bw_picture_free(&p);
}

/* A picture of 65535 x 65535 pixels in a few bytes. */
static void test_bombs(void **state)
{
    (void)state;
    bw_picture p = make(1, 1, 3);
    buffer png = encode_picture_png(&p, 0), jpeg = encode_jpeg(&p, JCS_RGB, 3, 0, 0);
    static const uint8_t side[4] = {0, 0, 0x80, 0};
    memcpy(png.bytes + 16, side, 4);
    memcpy(png.bytes + 20, side, 4);
    uint32_t crc = 0xffffffffu;
    for (size_t i = 12; i < 29; i++) {
        crc ^= png.bytes[i];
        for (int k = 0; k < 8; k++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    crc = ~crc;
    for (int i = 0; i < 4; i++)
        png.bytes[29 + i] = (uint8_t)(crc >> (24 - 8 * i));
    refuse(png.bytes, png.size, "PNG of 32768 x 32768 pixels, expected 1 to 64 megapixels");
    for (size_t i = 0; i + 8 < jpeg.size; i++) {
        if (jpeg.bytes[i] == 0xff && jpeg.bytes[i + 1] == 0xc0)
            memcpy(jpeg.bytes + i + 5, "\x80\x00\x80\x00", 4);
    }
    refuse(jpeg.bytes, jpeg.size, "JPEG of 32768 x 32768 pixels, expected 1 to 64 megapixels");
    free(png.bytes);
    free(jpeg.bytes);
    bw_picture_free(&p);
}

static bw_preprocess parse(const char *text)
{
    json_t *json = json_loads(text, 0, NULL);
    bw_preprocess p;
    bw_error err;
    if (bw_preprocess_from_json(json, &p, &err))
        fail_msg("%s: %s", text, err.message);
    json_decref(json);
    return p;
}

static void test_inputs(void **state)
{
    (void)state;
    bw_picture p = make(6, 9, 3);
    buffer b = encode_picture_png(&p, 0);
    bw_error err;
    /* no resizing, centre crop of 3 x 4: rows from (6 - 3) / 2 = 1.5 -> 2, columns from (9 - 4) / 2 = 2.5 -> 2 */
    bw_preprocess bgr = parse("{\"resize\":\"none\",\"size\":[3,4],\"channels\":\"BGR\",\"scale\":0.5,"
                              "\"mean\":[1,2,3],\"std\":[4,5,6]}");
    float out[3 * 3 * 4], last[3 * 3 * 4];
    assert_int_equal(bw_preprocess_picture(&bgr, b.bytes, b.size, out, &err), BW_OK);
    static const int64_t nhwc[4] = {-1, 3, 4, 3}, nchw[4] = {-1, 3, 3, 4}, flat[2] = {-1, 36};
    assert_int_equal(bw_preprocess_input(&bgr, 4, nhwc, b.bytes, b.size, last, &err), BW_OK);
    for (int c = 0; c < 3; c++) {
        for (int y = 0; y < 3; y++) {
            for (int x = 0; x < 4; x++) {
                float v = (float)pattern(y + 2, x + 2, 2 - c);
                float e = (v * 0.5f - (float)(c + 1)) / (float)(c + 4);
                assert_true(out[(c * 3 + y) * 4 + x] == e);
                assert_true(last[(y * 4 + x) * 3 + c] == e);
            }
        }
    }
    assert_int_equal(bw_preprocess_input(&bgr, 4, nchw, b.bytes, b.size, last, &err), BW_OK);
    assert_memory_equal(out, last, sizeof out);
    assert_int_equal(bw_preprocess_input(&bgr, 2, flat, b.bytes, b.size, last, &err), BW_OK);
    assert_memory_equal(out, last, sizeof out);
    static const int64_t other[4] = {-1, 3, 4, 4};
    assert_int_equal(bw_preprocess_check(&bgr, "data", 4, other, &err), BW_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "'data' wants [-1, 3, 4, 4]"));
    assert_int_equal(bw_preprocess_input(&bgr, 4, other, b.bytes, b.size, last, &err), BW_INVALID_ARGUMENT);
    /* larger than the picture */
    bw_preprocess big = parse("{\"resize\":\"none\",\"size\":[7,4]}");
    float more[3 * 7 * 4];
    assert_int_equal(bw_preprocess_picture(&big, b.bytes, b.size, more, &err), BW_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "9 x 6"));
    /* short side: 6 x 9 -> 12 x 18, crop 12 x 12 from column 3 */
    bw_preprocess side = parse("{\"resize\":\"short-side\",\"resize_size\":12,\"size\":12,\"channels\":\"GRAY\"}");
    bw_picture gray = make(6, 9, 3), resized;
    assert_int_equal(bw_picture_convert(&gray, 1, &err), BW_OK);
    assert_int_equal(bw_picture_resize(&gray, 12, 18, &resized, &err), BW_OK);
    float crop[12 * 12];
    assert_int_equal(bw_preprocess_picture(&side, b.bytes, b.size, crop, &err), BW_OK);
    for (int y = 0; y < 12; y++) {
        for (int x = 0; x < 12; x++)
            assert_true(crop[y * 12 + x] == (float)resized.pixels[y * 18 + x + 3]);
    }
    bw_picture_free(&gray);
    bw_picture_free(&resized);
    free(b.bytes);
    bw_picture_free(&p);
}

static void test_json(void **state)
{
    (void)state;
    bw_preprocess p = parse("{\"resize\":\"exact\",\"resize_size\":[256,300],\"size\":[224,224],\"channels\":\"RGB\","
                            "\"scale\":0.00392156862745098,\"mean\":[0.485,0.456,0.406],\"std\":[0.229,0.224,0.225]}");
    json_t *json = bw_preprocess_to_json(&p);
    char *text = json_dumps(json, JSON_SORT_KEYS | JSON_COMPACT | JSON_REAL_PRECISION(15));
    bw_preprocess q = parse(text);
    assert_memory_equal(&p, &q, sizeof p);
    assert_non_null(strstr(text, "0.485,"));
    free(text);
    json_decref(json);
    p = parse("{\"size\":32,\"channels\":\"GRAY\",\"mean\":[0.5]}");
    assert_int_equal(p.resize, BW_RESIZE_EXACT);
    assert_int_equal(p.resize_height, 32);
    assert_true(p.scale == 1 && p.std[0] == 1 && p.mean[0] == 0.5f);
    static const struct {
        const char *text, *says;
    } bad[] = {
        {"[]", "not a JSON object"},
        {"{}", "\"size\""},
        {"{\"size\":0}", "from 1 to"},
        {"{\"size\":[1,2,3]}", "3 numbers"},
        {"{\"size\":1000000}", "from 1 to"},
        {"{\"size\":4,\"sise\":4}", "'sise'"},
        {"{\"size\":4,\"resize\":\"fit\"}", "'fit'"},
        {"{\"size\":4,\"channels\":3}", "no text"},
        {"{\"size\":4,\"std\":[1,1]}", "2 numbers, expected 3"},
        {"{\"size\":4,\"std\":0}", "finite"},
        {"{\"size\":4,\"std\":1e-45}", "finite"},
        {"{\"size\":4,\"mean\":1e300}", "finite"},
        {"{\"size\":4,\"scale\":\"1/255\"}", "scale"},
        {"{\"size\":4,\"resize_size\":3}", "does not fit"},
        {"{\"size\":4,\"resize\":\"short-side\",\"resize_size\":[3,9]}", "one number"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        bw_error err = {BW_OK, ""};
        json = json_loads(bad[i].text, 0, NULL);
        if (bw_preprocess_from_json(json, &p, &err) != BW_INVALID_ARGUMENT || !strstr(err.message, bad[i].says))
            fail_msg("%s: '%s', expected '%s'", bad[i].text, err.message, bad[i].says);
        json_decref(json);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_resize_is_pillows),
        cmocka_unit_test(test_resize_limits),
        cmocka_unit_test(test_png_plain),
        cmocka_unit_test(test_png_kinds),
        cmocka_unit_test(test_jpeg),
        cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_bombs),
        cmocka_unit_test(test_inputs),
        cmocka_unit_test(test_json),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
