/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files that are whole or not there: changed by a rename, durable on return. A process killed at
 * any instruction leaves the old content or the new. Any thread; may block.
 */
#ifndef QV_BASE_ATOMIC_FILE_H
#define QV_BASE_ATOMIC_FILE_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/** qv_file_replace - @path holds @data from now on (created with @mode, or replaced). */
bool qv_file_replace(const char *path, const void *data, size_t len, mode_t mode, GError **error);

/** qv_file_read - the whole file with a NUL added behind; QV_ERROR_FAILED above @max bytes. The
 * caller frees *@out. */
bool qv_file_read(const char *path, size_t max, char **out, size_t *len, GError **error);

/** qv_file_remove - unlinks @path, durably; a file that is not there is fine. */
bool qv_file_remove(const char *path, GError **error);

/** qv_dir_make - creates @path and what is missing above it, with @mode; durable. Existing is fine.
 */
bool qv_dir_make(const char *path, mode_t mode, GError **error);

/** qv_dir_sync - makes the directory's entries durable. */
bool qv_dir_sync(const char *path, GError **error);

/* ---- a file that gets its name only when it is finished ---- */

/**
 * A staged file: written under no name (O_TMPFILE), or, where the file system has no such thing,
 * under a name that starts with QV_STAGE_PREFIX and with a flock held, so that qv_stage_sweep can
 * tell what a killed process left behind.
 */
struct qv_stage {
    int fd;     /* read-write; the stage's until qv_stage_commit or qv_stage_abort */
    char *dir;  /* directory it lies in */
    char *temp; /* path, NULL when it has no name */
};

#define QV_STAGE_PREFIX ".tmp-"

/** qv_stage_open - a new empty file in @dir, of mode 0600. @named: with a name in any case (tests).
 */
bool qv_stage_open(const char *dir, bool named, struct qv_stage *out, GError **error);

/**
 * qv_stage_commit - makes the content durable and gives it the name @path, in the stage's
 * directory. QV_ERROR_EXISTS when @path exists; nothing is ever replaced. The stage stays open:
 * call qv_stage_abort, which then only lets go.
 */
bool qv_stage_commit(struct qv_stage *stage, const char *path, GError **error);

/** qv_stage_abort - closes and forgets; for QV_CLEANUP. Fine on {.fd = -1}, and after a commit. */
void qv_stage_abort(struct qv_stage *stage);

/** qv_stage_sweep - removes what killed processes staged in @dir; files still locked stay. Best
 * effort. */
void qv_stage_sweep(const char *dir);

#endif
