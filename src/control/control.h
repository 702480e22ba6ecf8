/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control channel between a supervisor (vm/, cli/) and an I/O process (server/): a pair of
 * connected SOCK_SEQPACKET sockets. One message is one packet: a JSON object, with descriptors
 * beside it (SCM_RIGHTS). README.md in this folder describes the messages.
 *
 * The peer is not trusted: sizes are bounded, descriptors that nobody asked for are closed, and
 * every descriptor received is close-on-exec.
 */
#ifndef QV_CONTROL_CONTROL_H
#define QV_CONTROL_CONTROL_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

#include "base/error.h"
#include "base/secret.h"

/* Longest message, bytes: a packet must fit the kernel's default socket buffer. */
#define QV_CONTROL_MSG_MAX 65536u

/* Descriptors in one message; the kernel's own limit (SCM_MAX_FD) is 253. */
#define QV_CONTROL_FDS_MAX 64u

/* ---- messages: what both ends share ---- */

/** A received message. Descriptors that are taken out are replaced by -1; clear closes the rest. */
struct qv_control_msg {
    json_t *doc; /* a JSON object; owned */
    int fds[QV_CONTROL_FDS_MAX];
    unsigned nfds;
};

/** qv_control_msg_clear - frees the document, closes descriptors that were not taken. Any thread.
 */
void qv_control_msg_clear(struct qv_control_msg *msg);

/** qv_control_msg_take_fd - descriptor number @index, which is the caller's from now on; -1 when
 * there is none or it was taken before. Any thread. */
int qv_control_msg_take_fd(struct qv_control_msg *msg, json_int_t index);

/** qv_control_pair - two connected sockets, non-blocking, close-on-exec. Any thread. */
bool qv_control_pair(int *ours, int *theirs, GError **error);

/**
 * qv_control_send - sends one message; never blocks.
 * @fds: @nfds descriptors to pass; they stay the caller's
 * Returns 0, -EAGAIN (the peer reads too slowly; nothing was sent), -EPIPE (peer is gone),
 * -EMSGSIZE (more than QV_CONTROL_MSG_MAX), or another -errno. Any thread.
 */
int qv_control_send(int sock, const json_t *doc, const int *fds, unsigned nfds);

/**
 * qv_control_recv - receives one message; never blocks.
 * @out: written on success only; to be cleared
 * Returns 0, -EAGAIN (nothing there), -EPIPE (the peer is gone), -EPROTO (not a JSON object, or too
 * long: the channel is of no use any more). Any thread.
 */
int qv_control_recv(int sock, struct qv_control_msg *out);

/** qv_control_request_new / _reply_new / _error_new / _event_new - the four kinds of message. They
 * take over @args, @result, @data (each may be NULL: an empty object). Any thread. */
json_t *qv_control_request_new(json_int_t id, const char *command, json_t *args);
json_t *qv_control_reply_new(json_int_t id, json_t *result);
json_t *qv_control_error_new(json_int_t id, const GError *error);
json_t *qv_control_event_new(const char *name, json_t *data);

/** qv_control_error_get - sets @error from the "error" object of a reply. Always returns false. */
bool qv_control_error_get(const json_t *reply_error, GError **error);

/* ---- secrets: never in a message, always in a pipe whose read end is passed along ---- */

/** qv_control_secret_send - a descriptor from which @secret can be read once; the caller closes it.
 * -1: @error. Any thread. */
int qv_control_secret_send(const struct qv_secret *secret, GError **error);

/** qv_control_secret_receive - what is in the pipe @fd: exactly @len bytes. @fd stays the caller's.
 * NULL with @error. Does not block. Any thread. */
struct qv_secret *qv_control_secret_receive(int fd, size_t len, GError **error);

/* ---- messages that wait because the peer reads too slowly ---- */

/** Zero-initialise. Not thread-safe. */
struct qv_control_queue {
    struct qv_control_pending *head, *tail;
    unsigned length;
};

/** qv_control_queue_send - sends @doc (taken over) after all that wait; keeps it, with duplicates
 * of
 * @fds, when the socket is full. 0, or -errno: the channel is broken. */
int qv_control_queue_send(struct qv_control_queue *queue, int sock, json_t *doc, const int *fds,
                          unsigned nfds);

/** qv_control_queue_flush - sends what waits; to be called when the socket is writable. 0: queue is
 * empty; -EAGAIN: call again; else -errno. */
int qv_control_queue_flush(struct qv_control_queue *queue, int sock);

/** qv_control_queue_clear - drops what waits. */
void qv_control_queue_clear(struct qv_control_queue *queue);

/* ---- the client: a supervisor's end ---- */

/*
 * All calls and callbacks of one client happen on one thread. It serves both styles at once:
 * blocking calls (qv_control_client_call), and, once attached to a main context, callbacks.
 */
struct qv_control_client;

/** Called once per request. @result: borrowed, NULL on failure; @error: borrowed, NULL on success.
 * May not free the client. */
typedef void (*qv_control_reply_fn)(void *arg, json_t *result, const GError *error);

struct qv_control_handler {
    /** event - @data is borrowed. Also called from inside a blocking call. May be NULL. */
    void (*event)(void *arg, const char *name, json_t *data);
    /** closed - the peer is gone or broken; all pending requests have failed before. Once. May not
     * free the client (do that from an idle callback). May be NULL. */
    void (*closed)(void *arg);
    void *arg;
};

/** qv_control_client_new - a client on @sock, which it takes over. @handler is copied; may be NULL.
 */
struct qv_control_client *qv_control_client_new(int sock, const struct qv_control_handler *handler);

/** qv_control_client_set_handler - replaces the handler. */
void qv_control_client_set_handler(struct qv_control_client *client,
                                   const struct qv_control_handler *handler);

/** qv_control_client_free - closes the socket (an I/O process then finishes and exits). Pending
 * requests fail first. NULL is fine. */
void qv_control_client_free(struct qv_control_client *client);

/** qv_control_client_fd - the socket, to be polled by a loop of the caller's; -1 when closed. */
int qv_control_client_fd(const struct qv_control_client *client);

/** qv_control_client_attach - from now on @context (NULL: the default one) handles messages as they
 * come. */
void qv_control_client_attach(struct qv_control_client *client, GMainContext *context);

/**
 * qv_control_client_call_async - sends a request; @reply (may be NULL) is called later, never from
 * inside this function.
 * @args: taken over; NULL: none. @fds: duplicated by the kernel; stay the caller's
 */
void qv_control_client_call_async(struct qv_control_client *client, const char *command,
                                  json_t *args, const int *fds, unsigned nfds,
                                  qv_control_reply_fn reply, void *arg);

/**
 * qv_control_client_call - sends a request and waits for its reply; events and other replies that
 * come in between are handled.
 * @timeout_ms: -1: no limit. After a time-out the request may still be done by the peer
 * @result: set on success; the caller's; may be NULL
 */
bool qv_control_client_call(struct qv_control_client *client, const char *command, json_t *args,
                            const int *fds, unsigned nfds, int timeout_ms, json_t **result,
                            GError **error);

/** qv_control_client_process - waits up to @timeout_ms for messages and handles all that are there.
 * False when the channel is closed. For callers without a main loop. */
bool qv_control_client_process(struct qv_control_client *client, int timeout_ms);

#endif
