/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define LIMIT_BURST     10u
#define LIMIT_PERIOD_US G_USEC_PER_SEC

static struct {
    const char *ident;
    enum qv_log_level level;
} sink = {.ident = "quantavirt", .level = QV_LOG_WARN};

static pthread_mutex_t limit_lock = PTHREAD_MUTEX_INITIALIZER;

void qv_log_init(const char *ident, enum qv_log_level level)
{
    sink.ident = ident;
    sink.level = level;
}

bool qv_log_enabled(enum qv_log_level level)
{
    return level <= sink.level;
}

QV_PRINTF(2, 0)
static void write_line(enum qv_log_level level, const char *format, va_list args)
{
    static const char *const names[] = {"error: ", "warning: ", "", "debug: "};
    char text[1024];
    char line[1200];
    int n;

    vsnprintf(text, sizeof(text), format, args);
    for (char *p = text; *p != '\0'; p++) {
        if ((unsigned char)*p < 0x20 || *p == 0x7f) {
            *p = '?';
        }
    }
    n = snprintf(line, sizeof(line), "%s: %s%s\n", sink.ident, names[level], text);
    if (n > 0) {
        /* One write, so that lines of several threads and processes do not mix. */
        ssize_t done = write(STDERR_FILENO, line, MIN((size_t)n, sizeof(line) - 1));
        (void)done;
    }
}

void qv_log(enum qv_log_level level, const char *format, ...)
{
    va_list args;

    if (!qv_log_enabled(level)) {
        return;
    }
    va_start(args, format);
    write_line(level, format, args);
    va_end(args);
}

void qv_log_limited(struct qv_log_limit *limit, enum qv_log_level level, const char *format, ...)
{
    int64_t now = g_get_monotonic_time();
    unsigned dropped = 0;
    bool show = false;
    va_list args;

    if (!qv_log_enabled(level)) {
        return;
    }
    pthread_mutex_lock(&limit_lock);
    if (limit->shown < LIMIT_BURST || now >= limit->next_us) {
        limit->shown += limit->shown < LIMIT_BURST;
        limit->next_us = now + LIMIT_PERIOD_US;
        dropped = limit->dropped;
        limit->dropped = 0;
        show = true;
    } else {
        limit->dropped++;
    }
    pthread_mutex_unlock(&limit_lock);
    if (!show) {
        return;
    }
    if (dropped > 0) {
        qv_log(level, "(%u like the next were not shown)", dropped);
    }
    va_start(args, format);
    write_line(level, format, args);
    va_end(args);
}
