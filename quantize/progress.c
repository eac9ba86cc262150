/* SPDX-License-Identifier: Apache-2.0 */
#include "quantize/progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hal/base.h"

#define WIDTH   30
#define DRAW_NS 100000000u
/* From here on a phase's own pace says more than what was expected of it. */
#define TRUSTED_SECONDS 0.5

static const char *const labels[BW_PHASES] = {
    [BW_PHASE_READ] = "reading",
    [BW_PHASE_PASSES] = "folding",
    [BW_PHASE_CHOOSE] = "choosing blocks",
    [BW_PHASE_PACK] = "packing weights",
    [BW_PHASE_CORRECT] = "correcting biases",
    [BW_PHASE_CALIBRATE] = "calibrating",
    [BW_PHASE_WRITE] = "writing",
};

static double seconds_since(uint64_t then, uint64_t now)
{
    return (double)(now - then) * 1e-9;
}

double bw_bar_share(const bw_progress_bar *b, double seconds)
{
    if (b->phase >= BW_PHASES)
        return 0;
    /* How this machine compares with the one of the expectations, from all that is done; one part in ten thousand of
     * faith keeps the first moments finite. */
    double here = b->expected[b->phase], foreseen = b->passed_expected + here * b->done;
    double pace = (b->passed + seconds + 1e-4) / (foreseen + 1e-4);
    double rest = here * (1 - b->done) * pace;
    if (b->done > 0) { /* the phase's own pace, the more the longer it has run */
        double trust = seconds / (seconds + TRUSTED_SECONDS), own = seconds * (1 - b->done) / b->done;
        rest += (own - rest) * trust;
    }
    for (int p = b->phase + 1; p < BW_PHASES; p++)
        rest += b->expected[p] * pace;
    double gone = b->passed + seconds;
    return gone + rest > 0 ? gone / (gone + rest) : 0;
}

static void draw(bw_progress_bar *b, uint64_t now)
{
    char bar[WIDTH + 1], left[48] = "";
    int full = (int)(b->shown * WIDTH);
    memset(bar, '.', WIDTH);
    memset(bar, '#', (size_t)full);
    bar[WIDTH] = 0;
    double gone = seconds_since(b->started_ns, now), rest = b->shown > 0 ? gone / b->shown - gone : 0;
    if (b->shown < 1 && gone > 1)
        snprintf(left, sizeof left, rest >= 90 ? "  %.0f min left" : "  %.0f s left", rest >= 90 ? rest / 60 : rest);
    int percent = (int)(b->shown * 100 + 0.5);
    percent = percent > 99 && b->shown < 1 ? 99 : percent;
    fprintf(stderr, "\r[%s] %3d %%  %s%s\033[K", bar, percent, labels[b->phase], left);
    fflush(stderr);
    b->drawn_ns = now;
}

static void update(bw_progress_bar *b, int now_or_never)
{
    uint64_t now = bw_now_ns();
    double share = bw_bar_share(b, seconds_since(b->phase_ns, now));
    share = share > 0.999 ? 0.999 : share; /* 100 % is for the end */
    b->shown = share > b->shown ? share : b->shown;
    if (b->terminal && !b->quiet && (now_or_never || now - b->drawn_ns >= DRAW_NS))
        draw(b, now);
}

void bw_bar_begin(bw_progress_bar *b, int quiet)
{
    if (!b)
        return;
    const char *term = getenv("TERM");
    memset(b, 0, sizeof *b);
    b->quiet = quiet;
    b->terminal = isatty(STDERR_FILENO) && !(term && strcmp(term, "dumb") == 0);
    b->phase = BW_PHASES;
    b->started_ns = b->phase_ns = bw_now_ns();
}

void bw_bar_expect(bw_progress_bar *b, bw_phase phase, double seconds)
{
    if (b)
        b->expected[phase] = seconds > 0 ? seconds : 0;
}

void bw_bar_enter(bw_progress_bar *b, bw_phase phase, const char *note)
{
    if (!b)
        return;
    uint64_t now = bw_now_ns();
    if (b->phase < BW_PHASES) {
        b->passed += seconds_since(b->phase_ns, now);
        b->passed_expected += b->expected[b->phase];
    }
    b->phase = phase;
    b->phase_ns = now;
    b->done = 0;
    if (note && !b->terminal && !b->quiet) {
        fprintf(stderr, "%s\n", note);
        fflush(stderr);
    }
    update(b, 1);
}

void bw_bar_step(bw_progress_bar *b, double done)
{
    if (!b || b->phase >= BW_PHASES)
        return;
    b->done = done > 1 ? 1 : done > b->done ? done : b->done;
    update(b, 0);
}

void bw_bar_end(bw_progress_bar *b, int complete)
{
    if (!b || b->phase >= BW_PHASES)
        return;
    if (b->terminal && !b->quiet) {
        b->shown = complete ? 1 : b->shown;
        draw(b, bw_now_ns());
        fputc('\n', stderr);
    }
    b->quiet = 1;
}
