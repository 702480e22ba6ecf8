/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log: lines for people on stderr (or to a descriptor given at start), never secrets. The only
 * mutable global state of the project. Every function: any thread; not async-signal-safe.
 */
#ifndef QV_BASE_LOG_H
#define QV_BASE_LOG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"

/* QV_LOG_SILENT is a limit only: nothing is written (fuzzers, fault injection). */
enum qv_log_level { QV_LOG_SILENT = -1, QV_LOG_ERROR, QV_LOG_WARN, QV_LOG_INFO, QV_LOG_DEBUG };

/** qv_log_init - @ident stands before each line ("quantavirt"); lines above @level are dropped.
 * Call once, early. */
void qv_log_init(const char *ident, enum qv_log_level level);

/** qv_log_enabled - whether a line of @level would be written; to spare the cost of building one.
 */
bool qv_log_enabled(enum qv_log_level level);

/** qv_log - writes one line; control characters in it (guest strings!) are escaped. */
void qv_log(enum qv_log_level level, const char *format, ...) QV_PRINTF(2, 3);

#define qv_error(...) qv_log(QV_LOG_ERROR, __VA_ARGS__)
#define qv_warn(...)  qv_log(QV_LOG_WARN, __VA_ARGS__)
#define qv_info(...)  qv_log(QV_LOG_INFO, __VA_ARGS__)
#define qv_debug(...) qv_log(QV_LOG_DEBUG, __VA_ARGS__)

/**
 * A limit for lines that a guest or an image can cause: at most @burst lines, then one a second
 * with the number dropped. Zero-initialise; thread-safe.
 */
struct qv_log_limit {
    int64_t next_us;
    unsigned shown;
    unsigned dropped;
};

/** qv_log_limited - as qv_log, unless @limit says that this source has written enough. */
void qv_log_limited(struct qv_log_limit *limit, enum qv_log_level level, const char *format, ...)
    QV_PRINTF(3, 4);

#endif
