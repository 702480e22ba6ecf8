/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

G_DEFINE_QUARK(qv - error - quark, qv_error)

int qv_error_exit_code(const GError *error)
{
    static const int codes[] = {
        [QV_ERROR_FAILED] = 1,      [QV_ERROR_USAGE] = 2,   [QV_ERROR_NOT_FOUND] = 3,
        [QV_ERROR_IN_USE] = 4,      [QV_ERROR_CORRUPT] = 5, [QV_ERROR_LEAKS] = 6,
        [QV_ERROR_UNSUPPORTED] = 1, [QV_ERROR_EXISTS] = 1,
    };

    if (error->domain == QV_ERROR && error->code >= 0 && error->code < (int)G_N_ELEMENTS(codes)) {
        return codes[error->code];
    }
    return 1;
}

/* The names stand in parentheses because the analyser gets macros of them. */
bool(qv_fail)(GError **error, enum qv_error_kind kind, const char *format, ...)
{
    va_list args;

    if (error != NULL) {
        va_start(args, format);
        *error = g_error_new_valist(QV_ERROR, (int)kind, format, args);
        va_end(args);
    }
    return false;
}

static enum qv_error_kind kind_of_errno(int err)
{
    switch (err) {
    case ENOENT:
        return QV_ERROR_NOT_FOUND;
    case EUCLEAN:
    case EBADMSG:
        return QV_ERROR_CORRUPT;
    case EEXIST:
        return QV_ERROR_EXISTS;
    case EBUSY:
    case ETXTBSY:
        return QV_ERROR_IN_USE;
    default:
        return QV_ERROR_FAILED;
    }
}

bool(qv_fail_errno)(GError **error, int err, const char *format, ...)
{
    g_autofree char *what = NULL;
    va_list args;

    err = err < 0 ? -err : err;
    va_start(args, format);
    what = g_strdup_vprintf(format, args);
    va_end(args);
    return qv_fail(error, kind_of_errno(err), "%s: %s", what, qv_strerror(err));
}

void qv_error_hint(GError **error, const char *format, ...)
{
    g_autofree char *hint = NULL;
    char *joined;
    va_list args;

    if (error == NULL || *error == NULL) {
        return;
    }
    va_start(args, format);
    hint = g_strdup_vprintf(format, args);
    va_end(args);
    joined = g_strdup_printf("%s\nhint: %s", (*error)->message, hint);
    g_free((*error)->message);
    (*error)->message = joined;
}

const char *qv_strerror(int err)
{
    err = err < 0 ? -err : err;
    switch (err) {
    case EUCLEAN:
        return "metadata is corrupt";
    case EBADMSG:
        return "authentication failed";
    default:
        return g_strerror(err);
    }
}
