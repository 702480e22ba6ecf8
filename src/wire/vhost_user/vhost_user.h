/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A vhost-user-blk server: listens on a UNIX socket, serves one client at a time (the next one when
 * it is gone), and turns its virtqueues into requests for a qv_disk.
 *
 * The server lives on the I/O thread that made it, its home: messages of the protocol are handled
 * there. Each virtqueue runs on one of the I/O threads it was given.
 */
#ifndef QV_WIRE_VHOST_USER_VHOST_USER_H
#define QV_WIRE_VHOST_USER_VHOST_USER_H

#include <glib.h>
#include <stdbool.h>

#include "block/disk.h"
#include "io/thread.h"

#define QV_VHOST_USER_QUEUES_MAX 64u
#define QV_VHOST_USER_SERIAL_MAX 20u

struct qv_vhost_user;

struct qv_vhost_user_opts {
    const char *name;     /* for messages; copied */
    struct qv_disk *disk; /* stays the caller's, and outlives the server */
    int listen_fd; /* a listening stream socket, non-blocking or not; taken over, also on failure */
    unsigned queues;    /* 1..QV_VHOST_USER_QUEUES_MAX */
    const char *serial; /* at most QV_VHOST_USER_SERIAL_MAX bytes; copied; NULL: none */
    /* Queue i runs on threads[(first_thread + i) % nthreads]; the array is copied, its threads
     * outlive the server. */
    struct qv_thread *const *threads;
    unsigned nthreads, first_thread;
    /* A client came or went. On the home thread; must not free the server. May be NULL. */
    void (*connected)(void *arg, bool connected);
    void *arg;
};

/** qv_vhost_user_new - starts to listen; NULL on failure. I/O thread, which becomes the home. */
struct qv_vhost_user *qv_vhost_user_new(const struct qv_vhost_user_opts *opts, GError **error);

/**
 * qv_vhost_user_co_free - stops the queues, waits until their requests have ended (those that a
 * stopped disk keeps are cancelled, and stay marked as in flight for the client's next server),
 * disconnects, stops listening. Coroutine of the home thread. NULL is fine.
 */
void qv_vhost_user_co_free(struct qv_vhost_user *server);

/** qv_vhost_user_resized - the disk has a new size: tells the guest. Home thread. */
void qv_vhost_user_resized(struct qv_vhost_user *server);

#endif
