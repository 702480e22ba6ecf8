/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QMP, QEMU's machine protocol (QEMU docs/interop/qmp-spec.rst): JSON objects, one a line, on a
 * stream socket. Replies arrive at whoever waits for them; events are kept and handed out from the
 * main loop only, never from inside a call, so that a handler may call in turn.
 *
 * QEMU is not trusted more than the guest it runs: lines are bounded, unknown messages ignored.
 * One thread.
 */
#ifndef QV_VM_QMP_H
#define QV_VM_QMP_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

struct qmp;

struct qmp_handler {
    /** event - @data is borrowed, never NULL. */
    void (*event)(void *arg, const char *name, json_t *data);
    /** closed - QEMU closed the connection, or broke the protocol. Once; may not free @qmp. */
    void (*closed)(void *arg);
    /* Something else to watch while a call waits: QEMU may be waiting for it in turn. fd() < 0:
     * nothing at the moment. May be NULL. */
    int (*beside_fd)(void *arg);
    void (*beside_ready)(void *arg);
    void *arg;
};

/** qmp_new - a client on the connected stream socket @fd, which it takes over; events come in the
 * default main context. */
struct qmp *qmp_new(int fd, const struct qmp_handler *handler);

/** qmp_free - NULL is fine. */
void qmp_free(struct qmp *qmp);

/** qmp_negotiate - waits for the greeting and leaves negotiation mode; once, first. */
bool qmp_negotiate(struct qmp *qmp, int timeout_ms, GError **error);

/**
 * qmp_call - runs a command and waits for its reply.
 * @args: taken over; NULL: none. @result: set on success, the caller's; may be NULL
 * QV_ERROR_FAILED with QEMU's description, on time-out, or when the connection is gone.
 */
bool qmp_call(struct qmp *qmp, const char *command, json_t *args, int timeout_ms, json_t **result,
              GError **error);

#endif
