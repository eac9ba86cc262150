/* SPDX-License-Identifier: Apache-2.0 */
/* The body of the codec fuzzers: DECODE is the decoder under test; PREPARE, if defined, is called with the scorer
 * before each message. */
#ifndef BW_TESTS_FUZZ_CODEC_H
#define BW_TESTS_FUZZ_CODEC_H

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bw_scorer scorer;

static void serve_models(void)
{
    static const bw_io four = {"input", BW_F32, 2, {-1, 4}}, logits = {"logits", BW_F32, 2, {-1, 4}};
    static const bw_io two[2] = {{"a", BW_F32, 2, {-1, 3}}, {"b", BW_F32, 1, {-1}}};
    static const bw_io picture = {"image", BW_F32, 4, {-1, 3, 8, 8}};
    static const bw_preprocess pictures_in = {
        .height = 8, .width = 8, .channels = BW_CHANNELS_RGB, .scale = 1, .std = {1, 1, 1}};
    scorer.repository = bw_repository_new();
    scorer.tensor_bytes_max = 1 << 20;
    fake_model(scorer.repository, "m", "1", &four, 1, &logits);
    fake_model(scorer.repository, "two", "7", two, 2, &logits);
    bw_model *m = fake_model(scorer.repository, "picture", "1", &picture, 1, &logits);
    if (bw_model_bind_pictures(m, &pictures_in, NULL))
        abort();
    bw_repository_set_ready(scorer.repository, 1);
}

static void same_inputs(const bw_scoring *a, const bw_scoring *b)
{
    for (int i = 0; i < a->model->input_count; i++) {
        if (a->inputs[i].bytes != b->inputs[i].bytes ||
            (a->inputs[i].bytes && memcmp(a->inputs[i].data, b->inputs[i].data, a->inputs[i].bytes)))
            abort();
    }
    if (a->picture_count != b->picture_count)
        abort();
    for (size_t i = 0; i < a->picture_count; i++) {
        bw_bytes x = {0}, y = {0};
        bw_bytes_append_cursor(&x, a->pictures[i]);
        bw_bytes_append_cursor(&y, b->pictures[i]);
        if (x.size != y.size || (x.size && memcmp(x.bytes, y.bytes, x.size)))
            abort();
        bw_bytes_free(&x);
        bw_bytes_free(&y);
    }
}

static void encode_reply(bw_scoring *s)
{
    bw_writer *w = calloc(1, sizeof *w);
    if (!w || s->model->ops->run(s->model->self, s->inputs, s->outputs, NULL, NULL))
        abort();
    if (s->deliver && s->deliver(s, NULL)) {
        free(w); /* no room for the output */
        return;
    }
    s->encode(s, w);
    size_t count, total = 0;
    const bw_chunk *chunks = bw_writer_finish(w, &count);
    for (size_t i = 0; i < count; i++) {
        for (size_t k = 0; k < chunks[i].size; k += 64)
            total += ((const uint8_t *)chunks[i].bytes)[k];
        if (chunks[i].release)
            chunks[i].release(chunks[i].user);
    }
    if (!chunks || total == SIZE_MAX)
        abort();
    bw_writer_free(w);
    free(w);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!scorer.repository)
        serve_models();
#ifdef PREPARE
    PREPARE(&scorer);
#endif
    if (!size)
        return 0;
    size_t cut = (size - 1) * data[0] / 255;
    bw_slice whole = {data + 1, size - 1}, pieces[3] = {{data + 1, cut}, {NULL, 0}, {data + 1 + cut, size - 1 - cut}};
    bw_error err = {BW_OK, ""}, other = {BW_OK, ""};
    bw_scoring *a = bw_scoring_new(&scorer), *b = bw_scoring_new(&scorer);
    if (!a || !b)
        abort();
    bw_status x = DECODE(a, &whole, 1, &err), y = DECODE(b, pieces, 3, &other);
    if (x != y || (x && (err.status != x || !err.message[0] || strcmp(err.message, other.message))))
        abort();
    if (!x) {
        same_inputs(a, b);
        if (!bw_scoring_complete(a, &err) && a->inputs[0].data)
            encode_reply(a);
    }
    bw_scoring_release(a);
    bw_scoring_release(b);
    return 0;
}

#endif
