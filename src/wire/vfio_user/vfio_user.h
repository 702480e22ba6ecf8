/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A vfio-user server: shows one PCI function to one client at a time (the next one when it is gone)
 * on a UNIX socket. The server lives on the function's I/O thread; all calls are there.
 */
#ifndef QV_WIRE_VFIO_USER_VFIO_USER_H
#define QV_WIRE_VFIO_USER_VFIO_USER_H

#include <glib.h>
#include <stdbool.h>

#include "device/pci/function.h"
#include "io/thread.h"

struct qv_vfio_user;

struct qv_vfio_user_opts {
    const char *name;           /* for messages; copied */
    struct qv_pci_function *fn; /* after power-on; stays the caller's, and outlives the server */
    int listen_fd; /* a listening stream socket, non-blocking or not; taken over, also on failure */
    /* A client came or went; must not free the server. May be NULL. */
    void (*connected)(void *arg, bool connected);
    void *arg;
};

/** qv_vfio_user_new - starts to listen; NULL on failure. */
struct qv_vfio_user *qv_vfio_user_new(const struct qv_vfio_user_opts *opts, GError **error);

/** qv_vfio_user_co_free - disconnects, resets the function and waits until it uses no guest memory,
 * stops listening. Coroutine. NULL is fine. */
void qv_vfio_user_co_free(struct qv_vfio_user *server);

#endif
