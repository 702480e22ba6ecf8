/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/socket/listener.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include "base/error.h"
#include "io/coroutine.h"

bool qv_wire_peer_left(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLRDHUP};

    return poll(&p, 1, 0) == 1 && (p.revents & (POLLHUP | POLLRDHUP | POLLERR));
}

static void start_session(struct qv_wire_listener *listener, int fd)
{
    listener->session = listener->ops->session_new(listener, fd);
    if (listener->connected != NULL) {
        listener->connected(listener->arg, true);
    }
}

static void new_client(struct qv_wire_listener *listener, int fd)
{
    if (listener->session == NULL) {
        start_session(listener, fd);
    } else if (listener->parked_fd < 0 && listener->ops->session_leaving(listener->session)) {
        /* A client that reconnects is often faster than the end of its old connection. */
        listener->parked_fd = fd;
        listener->ops->session_close(listener->session);
    } else {
        qv_log_limited(&listener->log_limit, QV_LOG_WARN, "%s: a second client was refused",
                       listener->name);
        close(fd);
    }
}

static void acceptable(struct qv_watch *watch, uint32_t revents)
{
    struct qv_wire_listener *listener = qv_container_of(watch, struct qv_wire_listener, watch);

    for (;;) {
        int fd = accept4(watch->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd >= 0) {
            new_client(listener, fd);
        } else if (errno != EINTR && errno != ECONNABORTED) {
            if (errno != EAGAIN) {
                qv_log_limited(&listener->log_limit, QV_LOG_WARN, "%s: cannot accept a client: %s",
                               listener->name, qv_strerror(errno));
            }
            return;
        }
    }
}

void qv_wire_session_ended(struct qv_wire_listener *listener)
{
    int fd = qv_steal_fd(&listener->parked_fd);

    listener->session = NULL;
    if (listener->connected != NULL) {
        listener->connected(listener->arg, false);
    }
    if (listener->stopping) {
        qv_close_fd(&fd);
        if (listener->stopper != NULL) {
            qv_co_wake(listener->stopper);
        }
    } else if (fd >= 0) {
        start_session(listener, fd);
    }
}

bool qv_wire_listener_init(struct qv_wire_listener *listener,
                           const struct qv_wire_listener_opts *opts, GError **error)
{
    QV_CLEANUP(qv_close_fd) int fd = opts->fd;
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) {
        return qv_fail_errno(error, errno, "%s: listening socket", opts->name);
    }
    *listener = (struct qv_wire_listener){
        .name = g_strdup(opts->name),
        .home = qv_thread_self(),
        .ops = opts->ops,
        .watch = {.fd = qv_steal_fd(&fd), .events = POLLIN, .fn = acceptable},
        .parked_fd = -1,
        .connected = opts->connected,
        .arg = opts->arg,
    };
    qv_watch_add(&listener->watch);
    return true;
}

void qv_wire_listener_co_destroy(struct qv_wire_listener *listener)
{
    listener->stopping = true;
    qv_watch_del(&listener->watch);
    close(listener->watch.fd);
    if (listener->session != NULL) {
        listener->ops->session_close(listener->session);
        listener->stopper = qv_co_self();
        while (listener->session != NULL) {
            qv_co_yield();
        }
    }
    g_free(listener->name);
}
