/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A listening UNIX socket that lets in one client at a time, and the next one when it has gone.
 * What is said to a client is its session's business, which a protocol makes. Everything here is on
 * one I/O thread, the home: the one that called qv_wire_listener_init().
 */
#ifndef QV_WIRE_SOCKET_LISTENER_H
#define QV_WIRE_SOCKET_LISTENER_H

#include <glib.h>
#include <stdbool.h>

#include "base/log.h"
#include "io/thread.h"

struct qv_wire_listener;

/** The sessions of a protocol. */
struct qv_wire_ops {
    /** session_new - serves @fd, a non-blocking socket, which it takes over. */
    void *(*session_new)(struct qv_wire_listener *listener, int fd);
    /** session_leaving - its client has gone, or it is being closed. See qv_wire_peer_left(). */
    bool (*session_leaving)(const void *session);
    /** session_close - begins its end, which qv_wire_session_ended() tells: never from inside this
     * call. More calls change nothing. */
    void (*session_close)(void *session);
};

struct qv_wire_listener_opts {
    const char *name; /* for messages; copied */
    int fd; /* a listening stream socket, non-blocking or not; taken over, also on failure */
    const struct qv_wire_ops *ops;
    /* A client came or went; must not free the server. May be NULL. */
    void (*connected)(void *arg, bool connected);
    void *arg;
};

/** Embedded in a protocol's server, which reads the first four fields. */
struct qv_wire_listener {
    char *name;
    struct qv_log_limit log_limit; /* of what its clients can cause */
    struct qv_thread *home;
    void *session; /* NULL: nobody is connected */

    const struct qv_wire_ops *ops;
    struct qv_watch watch;
    int parked_fd; /* a client that came while the last one was still leaving; -1: none */
    bool stopping;
    struct qv_co *stopper; /* in qv_wire_listener_co_destroy() */
    void (*connected)(void *arg, bool connected);
    void *arg;
};

/** qv_wire_listener_init - begins to listen; the first client is let in later. On failure
 * @listener needs no end. */
bool qv_wire_listener_init(struct qv_wire_listener *listener,
                           const struct qv_wire_listener_opts *opts, GError **error);

/** qv_wire_listener_co_destroy - stops listening, closes the session and waits until it has ended.
 * Coroutine of the home thread. */
void qv_wire_listener_co_destroy(struct qv_wire_listener *listener);

/** qv_wire_session_ended - for sessions: this one is freed; the next client may come. */
void qv_wire_session_ended(struct qv_wire_listener *listener);

/** qv_wire_peer_left - whether the other end of a connection is closed, although nobody may have
 * read so far. */
bool qv_wire_peer_left(int fd);

#endif
