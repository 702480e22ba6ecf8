/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Live counters of an image in use, for `storage stat`. Who serves an image (`storage serve`, a
 * VM's supervisor) listens on a socket in the run directory whose name is made from the image's
 * device and inode, so that any path or name of the image leads to it:
 *
 *     RUN/stat/DEV-INO-PID      (hexadecimal; decimal pid)
 *
 * Whoever connects gets one JSON document, and the end of the stream. Nothing is read from him.
 */
#ifndef QV_CONTROL_STAT_H
#define QV_CONTROL_STAT_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <sys/types.h>

#include "base/error.h"

struct qv_stat_server;

/** One who asked. To be answered once, at any later time. */
struct qv_stat_asker;

/**
 * qv_stat_server_new - listens for the image with @dev and @ino, on the main context @context
 * (NULL: the default one).
 * @asked: is called for each who connects, and must lead to one qv_stat_answer
 * Control; the main context's thread.
 */
bool qv_stat_server_new(const char *run_dir, dev_t dev, ino_t ino, GMainContext *context,
                        void (*asked)(void *arg, struct qv_stat_asker *asker), void *arg,
                        struct qv_stat_server **out, GError **error);

/** qv_stat_server_free - stops listening, removes the socket. NULL is fine. Those not yet answered
 * may be answered still. */
void qv_stat_server_free(struct qv_stat_server *server);

/** qv_stat_answer - sends @doc (taken over; NULL: nothing, the asker sees that the image is not in
 * use) and hangs up. Never blocks. */
void qv_stat_answer(struct qv_stat_asker *asker, json_t *doc);

/**
 * qv_stat_ask - the answer of who serves the image; @out is a new reference. QV_ERROR_NOT_FOUND
 * when nobody does. Removes sockets of processes that are gone. Blocks up to 5 s.
 */
bool qv_stat_ask(const char *run_dir, dev_t dev, ino_t ino, json_t **out, GError **error);

#endif
