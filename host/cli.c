/* SPDX-License-Identifier: Apache-2.0 */
/* What the commands share: error lines, exit codes, progress, interruption, sizes. */
#include "host/cli.h"

#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hal/base.h"

int bw_cli_fail(const char *command, const bw_error *err)
{
    fflush(stdout);
    fprintf(stderr, "blockwave %s: %s\n", command, err->message);
    return err->status == BW_CANCELLED ? BW_EXIT_INTERRUPTED : BW_EXIT_FAILURE;
}

int bw_cli_usage(const char *command, const char *format, ...)
{
    char text[BW_ERROR_MESSAGE_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    for (char *p = text; *p; p++) {
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = '?';
    }
    fflush(stdout);
    fprintf(stderr, "blockwave %s: %s, see 'blockwave %s --help'\n", command, text, command);
    return BW_EXIT_USAGE;
}

void bw_cli_let_threads_sleep(char **argv)
{
    char self[PATH_MAX];
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT"))
        return;
    /* By its name, not as /proc/self/exe, which would be the process's name then. */
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0 || setenv("OMP_WAIT_POLICY", "passive", 1))
        return;
    self[n] = 0;
    const char *name = strrchr(self, '/');
    if (name && strncmp(name + 1, "blockwave", 9) == 0) /* not a dynamic loader that was told to run it */
        execv(self, argv);
}

static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
    (void)number;
    if (interrupted)
        _exit(BW_EXIT_INTERRUPTED);
    interrupted = 1;
}

void bw_cli_catch_interrupts(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_interrupt;
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

int bw_cli_interrupted(void)
{
    return interrupted != 0;
}

static void format_seconds(double seconds, char buf[32])
{
    if (seconds >= 3600)
        snprintf(buf, 32, "%d:%02d:%02d", (int)(seconds / 3600), (int)(seconds / 60) % 60, (int)seconds % 60);
    else if (seconds >= 60)
        snprintf(buf, 32, "%d:%02d", (int)(seconds / 60), (int)seconds % 60);
    else
        snprintf(buf, 32, "%.0f s", seconds);
}

static void progress_draw(bw_progress *p, uint64_t now)
{
    double seconds = (double)(now - p->started_ns) * 1e-9;
    double rate = seconds > 0 ? (double)p->done / seconds : 0;
    char left[32] = "";
    if (p->done < p->total && rate > 0)
        format_seconds((double)(p->total - p->done) / rate, left);
    char rate_text[32];
    snprintf(rate_text, sizeof rate_text, rate >= 100 ? "%.0f/s" : "%.1f/s", rate);
    if (p->terminal) {
        enum { WIDTH = 30 };
        int full = p->total ? (int)((double)p->done / (double)p->total * WIDTH) : WIDTH;
        char bar[WIDTH + 1];
        for (int i = 0; i < WIDTH; i++)
            bar[i] = i < full ? '#' : '.';
        bar[WIDTH] = 0;
        fprintf(stderr, "\r%s [%s] %" PRIu64 "/%" PRIu64 "  %s%s%s\033[K", p->label, bar, p->done, p->total, rate_text,
                left[0] ? "  left " : "", left);
    } else {
        fprintf(stderr, "%s %" PRIu64 "/%" PRIu64 "  %s%s%s\n", p->label, p->done, p->total, rate_text,
                left[0] ? "  left " : "", left);
    }
    fflush(stderr);
    p->drawn_ns = now;
}

void bw_progress_begin(bw_progress *p, const char *label, uint64_t total, int quiet)
{
    memset(p, 0, sizeof *p);
    p->label = label;
    p->total = total;
    p->quiet = quiet;
    p->started_ns = bw_now_ns();
    const char *term = getenv("TERM");
    p->terminal = isatty(STDERR_FILENO) && !(term && strcmp(term, "dumb") == 0);
    if (!quiet && p->terminal)
        progress_draw(p, p->started_ns);
}

void bw_progress_step(bw_progress *p, uint64_t done)
{
    p->done = done < p->total ? done : p->total;
    if (p->quiet || p->total == 0)
        return;
    uint64_t now = bw_now_ns();
    if (p->terminal) {
        /* Ten pictures a second are enough for an eye, and cheap for a slow terminal. */
        if (now - p->drawn_ns >= 100000000u || p->done == p->total)
            progress_draw(p, now);
        return;
    }
    int tenth = (int)((double)p->done * 10 / (double)p->total);
    if (tenth > p->last_tenth) {
        p->last_tenth = tenth;
        progress_draw(p, now);
    }
}

void bw_progress_end(bw_progress *p)
{
    if (!p->quiet && p->terminal)
        fputc('\n', stderr);
    p->quiet = 1;
}

const char *bw_cli_bytes(uint64_t bytes, char buf[32])
{
    static const char *const units[] = {"kB", "MB", "GB", "TB", "PB", "EB"};
    if (bytes < 1000) {
        snprintf(buf, 32, "%" PRIu64 " B", bytes);
        return buf;
    }
    double v = (double)bytes / 1000;
    size_t u = 0;
    while (v >= 999.5 && u + 1 < sizeof units / sizeof *units) {
        v /= 1000;
        u++;
    }
    snprintf(buf, 32, v < 9.995 ? "%.2f %s" : v < 99.95 ? "%.1f %s" : "%.0f %s", v, units[u]);
    return buf;
}
