/* SPDX-License-Identifier: Apache-2.0 */
/* UNIX stream sockets that clients find by a path. */
#ifndef QV_CONTROL_LISTEN_H
#define QV_CONTROL_LISTEN_H

#include <glib.h>
#include <stdbool.h>
#include <sys/types.h>
#include <time.h>

#include "base/error.h"

/** A path where a socket listens; the file is known by its inode, so that only our own is removed.
 */
struct qv_listen_path {
    char *path;
    dev_t dev;
    ino_t ino;
    struct timespec changed;
};

/**
 * qv_listen_unix - a listening, non-blocking, close-on-exec socket at @path, mode 0600. What is
 * left of a process that is gone (a socket nobody listens on) is replaced; a socket somebody
 * listens on is QV_ERROR_IN_USE, any other file QV_ERROR_EXISTS. Of several at once one wins.
 * Control; may block.
 */
bool qv_listen_unix(const char *path, int *fd, struct qv_listen_path *at, GError **error);

/** qv_listen_check - the part of qv_listen_unix before the socket is made: @path is usable, and
 * free now. For programs that make the socket themselves. */
bool qv_listen_check(const char *path, GError **error);

/** qv_listen_adopt - for a socket that another program made at @path: sets mode 0600, fills in @at.
 */
bool qv_listen_adopt(const char *path, struct qv_listen_path *at, GError **error);

/** qv_listen_remove - removes the socket if it is still the one in @at; clears @at. */
void qv_listen_remove(struct qv_listen_path *at);

/** qv_connect_unix - a connected blocking stream socket, close-on-exec. -errno on failure. */
int qv_connect_unix(const char *path);

#endif
