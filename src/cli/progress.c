/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "base/size.h"
#include "cli/cli_int.h"

#define QUIET_US G_GINT64_CONSTANT(1000000) /* work shorter than this shows nothing */
#define EVERY_US (G_USEC_PER_SEC / 5)
#define BAR      24

struct cli_progress {
    char *what;
    enum { SHOW_NOTHING, SHOW_BAR, SHOW_JSON } mode;
    int64_t begun_us, next_us;
    bool shown;
};

struct cli_progress *cli_progress_new(struct cli *cli, const char *what)
{
    struct cli_progress *p = g_new0(struct cli_progress, 1);

    p->what = g_strdup(what);
    p->begun_us = g_get_monotonic_time();
    p->next_us = p->begun_us + QUIET_US;
    if (cli->quiet || cli->no_progress) {
        p->mode = SHOW_NOTHING;
    } else if (cli->json) {
        p->mode = SHOW_JSON;
    } else {
        p->mode = isatty(STDERR_FILENO) ? SHOW_BAR : SHOW_NOTHING;
    }
    return p;
}

static void show_bar(struct cli_progress *p, uint64_t done, uint64_t total, int64_t now)
{
    double part = (double)done / (double)total;
    double seconds = (double)(now - p->begun_us) / G_USEC_PER_SEC;
    double rate = (double)done / seconds;
    unsigned left = rate < 1 ? 0 : (unsigned)((double)(total - done) / rate);
    g_autofree char *speed = qv_size_format((uint64_t)rate);
    char bar[BAR + 1];

    for (int i = 0; i < BAR; i++) {
        bar[i] = i < (int)(part * BAR) ? '#' : '.';
    }
    bar[BAR] = '\0';
    fprintf(stderr, "\r%s [%s] %3d %%  %s/s  %u:%02u:%02u left\033[K", p->what, bar,
            (int)(part * 100), speed, left / 3600, left / 60 % 60, left % 60);
    fflush(stderr);
}

void cli_progress_set(void *arg, uint64_t done, uint64_t total)
{
    struct cli_progress *p = arg;
    int64_t now;

    if (p == NULL || p->mode == SHOW_NOTHING || total == 0) {
        return;
    }
    now = g_get_monotonic_time();
    if (now < p->next_us) {
        return;
    }
    done = MIN(done, total);
    p->next_us = now + EVERY_US;
    p->shown = true;
    if (p->mode == SHOW_JSON) {
        char number[G_ASCII_DTOSTR_BUF_SIZE];

        g_ascii_formatd(number, sizeof(number), "%.4f", (double)done / (double)total);
        fprintf(stderr, "{\"progress\":%s}\n", number);
    } else {
        show_bar(p, done, total, now);
    }
}

void cli_progress_free(struct cli_progress *p)
{
    if (p == NULL) {
        return;
    }
    if (p->shown && p->mode == SHOW_BAR) {
        fputs("\r\033[K", stderr);
        fflush(stderr);
    }
    g_free(p->what);
    g_free(p);
}
