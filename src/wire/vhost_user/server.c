/* SPDX-License-Identifier: Apache-2.0 */
/* The listening socket and the life of a server. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include "base/error.h"
#include "io/coroutine.h"
#include "wire/vhost_user/session_int.h"

static void start_session(struct qv_vhost_user *server, int fd)
{
    server->session = vu_session_new(server, fd);
    if (server->connected != NULL) {
        server->connected(server->arg, true);
    }
}

/* Whether the present client has gone, although nobody has read so far from its socket. */
static bool session_leaving(const struct vu_session *ses)
{
    struct pollfd p = {.fd = ses->fd, .events = POLLRDHUP};

    return ses->closing || (poll(&p, 1, 0) == 1 && (p.revents & (POLLHUP | POLLRDHUP | POLLERR)));
}

static void new_client(struct qv_vhost_user *server, int fd)
{
    if (server->session == NULL) {
        start_session(server, fd);
    } else if (server->parked_fd < 0 && session_leaving(server->session)) {
        /* A client that reconnects is often faster than the end of its old connection. */
        server->parked_fd = fd;
        vu_session_close(server->session);
    } else {
        qv_log_limited(&server->log_limit, QV_LOG_WARN, "%s: a second client was refused",
                       server->name);
        close(fd);
    }
}

static void acceptable(struct qv_watch *watch, uint32_t revents)
{
    struct qv_vhost_user *server = qv_container_of(watch, struct qv_vhost_user, listen);

    for (;;) {
        int fd = accept4(watch->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd >= 0) {
            new_client(server, fd);
        } else if (errno != EINTR && errno != ECONNABORTED) {
            if (errno != EAGAIN) {
                qv_log_limited(&server->log_limit, QV_LOG_WARN, "%s: cannot accept a client: %s",
                               server->name, qv_strerror(errno));
            }
            return;
        }
    }
}

void vu_server_session_ended(struct qv_vhost_user *server)
{
    int fd = qv_steal_fd(&server->parked_fd);

    server->session = NULL;
    if (server->connected != NULL) {
        server->connected(server->arg, false);
    }
    if (server->stopping) {
        qv_close_fd(&fd);
        if (server->stopper != NULL) {
            qv_co_wake(server->stopper);
        }
    } else if (fd >= 0) {
        start_session(server, fd);
    }
}

struct qv_vhost_user *qv_vhost_user_new(const struct qv_vhost_user_opts *opts, GError **error)
{
    QV_CLEANUP(qv_close_fd) int listen_fd = opts->listen_fd;
    struct qv_vblk_opts dev_opts = {
        .name = opts->name,
        .disk = opts->disk,
        .queues = opts->queues,
        .serial = opts->serial,
        .threads = opts->threads,
        .nthreads = opts->nthreads,
        .first_thread = opts->first_thread,
    };
    struct qv_vhost_user *server;
    int flags;

    if (opts->queues == 0 || opts->queues > QV_VHOST_USER_QUEUES_MAX || opts->nthreads == 0) {
        qv_fail(error, QV_ERROR_USAGE, "%s: %u queues on %u threads are not possible", opts->name,
                opts->queues, opts->nthreads);
        return NULL;
    }
    flags = fcntl(listen_fd, F_GETFL);
    if (flags < 0 || fcntl(listen_fd, F_SETFL, flags | O_NONBLOCK) < 0) {
        qv_fail_errno(error, errno, "%s: listening socket", opts->name);
        return NULL;
    }
    server = g_new0(struct qv_vhost_user, 1);
    server->name = g_strdup(opts->name);
    server->disk = opts->disk;
    server->dev = qv_vblk_new(&dev_opts);
    server->queues = opts->queues;
    server->home = qv_thread_self();
    server->connected = opts->connected;
    server->arg = opts->arg;
    server->parked_fd = -1;
    server->listen.fd = qv_steal_fd(&listen_fd);
    server->listen.events = POLLIN;
    server->listen.fn = acceptable;
    qv_watch_add(&server->listen);
    return server;
}

void qv_vhost_user_co_free(struct qv_vhost_user *server)
{
    if (server == NULL) {
        return;
    }
    server->stopping = true;
    qv_watch_del(&server->listen);
    close(server->listen.fd);
    if (server->session != NULL) {
        vu_session_close(server->session);
        server->stopper = qv_co_self();
        while (server->session != NULL) {
            qv_co_yield();
        }
    }
    qv_vblk_free(server->dev);
    g_free(server->name);
    g_free(server);
}

void qv_vhost_user_resized(struct qv_vhost_user *server)
{
    if (server->session != NULL) {
        vu_session_config_changed(server->session);
    }
}
