/* SPDX-License-Identifier: Apache-2.0 */
/* The life of a server. */
#include "base/error.h"
#include "wire/vhost_user/session_int.h"

static void *session_new(struct qv_wire_listener *listener, int fd)
{
    return vu_session_new(qv_container_of(listener, struct qv_vhost_user, listener), fd);
}

static bool session_leaving(const void *session)
{
    const struct vu_session *ses = session;

    return ses->closing || qv_wire_peer_left(ses->fd);
}

static void session_close(void *session)
{
    vu_session_close(session);
}

static const struct qv_wire_ops sessions = {
    .session_new = session_new,
    .session_leaving = session_leaving,
    .session_close = session_close,
};

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
    struct qv_wire_listener_opts listener = {
        .name = opts->name,
        .fd = opts->listen_fd,
        .ops = &sessions,
        .connected = opts->connected,
        .arg = opts->arg,
    };
    g_autofree struct qv_vhost_user *server = NULL;

    if (opts->queues == 0 || opts->queues > QV_VHOST_USER_QUEUES_MAX || opts->nthreads == 0) {
        qv_fail(error, QV_ERROR_USAGE, "%s: %u queues on %u threads are not possible", opts->name,
                opts->queues, opts->nthreads);
        return NULL;
    }
    server = g_new0(struct qv_vhost_user, 1);
    (void)qv_steal_fd(&listen_fd); /* the listener's now */
    if (!qv_wire_listener_init(&server->listener, &listener, error)) {
        return NULL;
    }
    server->disk = opts->disk;
    server->dev = qv_vblk_new(&dev_opts);
    server->queues = opts->queues;
    return g_steal_pointer(&server);
}

void qv_vhost_user_co_free(struct qv_vhost_user *server)
{
    if (server == NULL) {
        return;
    }
    qv_wire_listener_co_destroy(&server->listener);
    qv_vblk_free(server->dev);
    g_free(server);
}

void qv_vhost_user_resized(struct qv_vhost_user *server)
{
    if (server->listener.session != NULL) {
        vu_session_config_changed(server->listener.session);
    }
}
