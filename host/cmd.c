/* SPDX-License-Identifier: Apache-2.0 */
/* What the built-in commands share. */
#include "host/cmd.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sim/sim.h"

int bw_cmd_option(int argc, char **argv, const struct option *options, const char *help)
{
    opterr = 0;
    int c = getopt_long(argc, argv, ":ho:", options, NULL);
    if (c == 'h') {
        fputs(help, stdout);
        return BW_CMD_HELP;
    }
    /* -o is short for --output, where there is one. */
    const struct option *known = options;
    while (c == 'o' && known->name && known->val != 'o')
        known++;
    if (c == 'o' && !known->name) {
        bw_cli_usage(argv[0], "unknown option '-o'");
        return BW_CMD_USAGE;
    }
    if (c == ':' || c == '?') {
        const char *text = optind > 0 && optind <= argc ? argv[optind - 1] : "";
        if (c == ':')
            bw_cli_usage(argv[0], "option '%s' needs a value", text);
        else if (strncmp(text, "--", 2) == 0)
            bw_cli_usage(argv[0], "unknown option '%s'", text);
        else
            bw_cli_usage(argv[0], "unknown option '-%c'", optopt);
        return BW_CMD_USAGE;
    }
    return c;
}

int bw_cmd_number(const char *command, const char *option, const char *text, int64_t lo, int64_t hi, int64_t *value)
{
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (errno || end == text || *end || v < lo || v > hi) {
        bw_cli_usage(command, "%s is '%s', expected a whole number from %" PRId64 " to %" PRId64, option, text, lo, hi);
        return 0;
    }
    *value = v;
    return 1;
}

bw_status bw_cmd_open_device(const char *uri, bw_device **device, bw_error *err)
{
    bw_status status = bw_sim_register(err);
    return status ? status : bw_device_open(uri, device, err);
}

bw_status bw_cmd_open_model(const char *path, const char *uri, bw_cmd_model *m, bw_error *err)
{
    memset(m, 0, sizeof *m);
    bw_status status = bw_package_open(path, &m->package, err);
    if (!status)
        status = bw_cmd_open_device(uri, &m->device, err);
    if (!status)
        status = bw_session_open(m->package, m->device, &m->session, err);
    if (status)
        bw_cmd_close_model(m);
    return status;
}

void bw_cmd_close_model(bw_cmd_model *m)
{
    bw_session_close(m->session);
    if (m->device)
        bw_device_close(m->device);
    bw_package_close(m->package);
    memset(m, 0, sizeof *m);
}

const char *bw_cmd_formats(uint32_t formats, char *buf, size_t size)
{
    size_t at = 0;
    buf[0] = 0;
    for (int f = 1; f < 32; f++) {
        if (!(formats >> f & 1) || at >= size)
            continue;
        const bw_format_traits *t = bw_format_get((bw_format)f);
        at += (size_t)snprintf(buf + at, size - at, "%s%s", at ? " " : "", t ? t->name : "?");
    }
    return buf;
}

const char *bw_cmd_blocks(uint32_t blocks, char *buf, size_t size)
{
    size_t at = 0;
    buf[0] = 0;
    for (int b = 0; b < 4; b++) {
        if ((blocks >> b & 1) && at < size)
            at += (size_t)snprintf(buf + at, size - at, "%s%d", at ? " " : "", 16 << b);
    }
    return buf;
}

bw_status bw_samples_add(bw_samples *s, uint64_t ns, bw_error *err)
{
    if (s->count == s->capacity) {
        size_t capacity = s->capacity ? 2 * s->capacity : 256;
        uint64_t *grown = realloc(s->ns, capacity * sizeof *grown);
        if (!grown)
            return bw_fail(err, BW_NO_MEMORY, "no memory for %zu times", capacity);
        s->ns = grown;
        s->capacity = capacity;
    }
    s->ns[s->count++] = ns;
    return BW_OK;
}

static int ascending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

void bw_samples_sort(bw_samples *s)
{
    if (s->count)
        qsort(s->ns, s->count, sizeof *s->ns, ascending);
}

double bw_samples_ms(const bw_samples *s, double percent)
{
    if (s->count == 0)
        return 0;
    double rank = ceil(percent / 100 * (double)s->count);
    size_t at = rank < 1 ? 0 : (size_t)rank - 1;
    return (double)s->ns[at < s->count ? at : s->count - 1] * 1e-6;
}

void bw_samples_free(bw_samples *s)
{
    free(s->ns);
    memset(s, 0, sizeof *s);
}

void bw_cmd_top(const float *scores, int64_t n, int64_t *best, int64_t k)
{
    int64_t have = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t at = have;
        while (at > 0 && scores[i] > scores[best[at - 1]])
            at--;
        if (at == k)
            continue;
        if (have < k)
            have++;
        for (int64_t m = have - 1; m > at; m--)
            best[m] = best[m - 1];
        best[at] = i;
    }
}
