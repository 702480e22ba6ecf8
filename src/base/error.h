/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Errors of the control path: a GError whose domain is QV_ERROR and whose code is one of the few
 * stable kinds below. The interface contract's exit code of a kind stands in one table,
 * qv_error_exit_code(). The data path uses plain negative errno values instead (see block/io.h).
 */
#ifndef QV_BASE_ERROR_H
#define QV_BASE_ERROR_H

#include <glib.h>
#include <stdbool.h>

#include "base/cleanup.h"

#define QV_ERROR (qv_error_quark())

enum qv_error_kind {
    QV_ERROR_FAILED,      /* I/O error, no space, peer unreachable: exit 1 */
    QV_ERROR_USAGE,       /* the command line or a configuration file is wrong: exit 2 */
    QV_ERROR_NOT_FOUND,   /* no such image, pool, VM, key or snapshot: exit 3 */
    QV_ERROR_IN_USE,      /* in use or locked; the message names the owner: exit 4 */
    QV_ERROR_CORRUPT,     /* corruption, or data that fails authentication: exit 5 */
    QV_ERROR_LEAKS,       /* check found leaked space only: exit 6 */
    QV_ERROR_UNSUPPORTED, /* valid, but not something we do; named in the message: exit 1 */
    QV_ERROR_EXISTS,      /* the name is taken: exit 1 */
};

GQuark qv_error_quark(void);

/** qv_error_exit_code - the contract's exit code (section 3) for @error; 1 for foreign domains. Any
 * thread. */
int qv_error_exit_code(const GError *error);

/**
 * qv_fail - set @error and return false, so that callers can write "return qv_fail(...)".
 * @error: may be NULL
 * The message is one line, "WHAT: WHY", without a full stop. A hint goes after "\n" (see
 * qv_error_hint). Any thread.
 */
bool qv_fail(GError **error, enum qv_error_kind kind, const char *format, ...) QV_PRINTF(3, 4);

/**
 * qv_fail_errno - as qv_fail; appends ": strerror(@err)" and picks the kind from @err:
 * ENOENT -> NOT_FOUND, EUCLEAN and EBADMSG -> CORRUPT, EEXIST -> EXISTS, EBUSY and ETXTBSY ->
 * IN_USE, else FAILED.
 * @err: positive errno (a negative one is accepted too)
 */
bool qv_fail_errno(GError **error, int err, const char *format, ...) QV_PRINTF(3, 4);

#ifdef __clang_analyzer__
/* The analyser sees one file at a time; without this it follows callers of a failure that
 * "succeeds". */
#define qv_fail(...)       (qv_fail(__VA_ARGS__), false)
#define qv_fail_errno(...) (qv_fail_errno(__VA_ARGS__), false)
#endif

/**
 * qv_error_hint - adds a hint, shown on its own line as "hint: ...". The hint is kept behind a
 * newline in the message. Does nothing when @error is NULL or *@error is not set.
 */
void qv_error_hint(GError **error, const char *format, ...) QV_PRINTF(2, 3);

/**
 * qv_strerror - text for a negative or positive errno, with our meanings for EUCLEAN ("metadata is
 * corrupt") and EBADMSG ("authentication failed"). Static or thread-local storage; any thread.
 */
const char *qv_strerror(int err);

#endif
