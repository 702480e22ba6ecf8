/* SPDX-License-Identifier: Apache-2.0 */
/* The life of a server. */
#include "wire/vfio_user/session_int.h"

static void *session_new(struct qv_wire_listener *listener, int fd)
{
    return vfu_session_new(qv_container_of(listener, struct qv_vfio_user, listener), fd);
}

static bool session_leaving(const void *session)
{
    const struct vfu_session *ses = session;

    return ses->closing || qv_wire_peer_left(ses->fd);
}

static void session_close(void *session)
{
    vfu_session_close(session);
}

static const struct qv_wire_ops sessions = {
    .session_new = session_new,
    .session_leaving = session_leaving,
    .session_close = session_close,
};

struct qv_vfio_user *qv_vfio_user_new(const struct qv_vfio_user_opts *opts, GError **error)
{
    struct qv_wire_listener_opts listener = {
        .name = opts->name,
        .fd = opts->listen_fd,
        .ops = &sessions,
        .connected = opts->connected,
        .arg = opts->arg,
    };
    g_autofree struct qv_vfio_user *server = g_new0(struct qv_vfio_user, 1);

    if (!qv_wire_listener_init(&server->listener, &listener, error)) {
        return NULL;
    }
    server->fn = opts->fn;
    return g_steal_pointer(&server);
}

void qv_vfio_user_co_free(struct qv_vfio_user *server)
{
    if (server == NULL) {
        return;
    }
    qv_wire_listener_co_destroy(&server->listener);
    g_free(server);
}
