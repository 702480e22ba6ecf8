/* SPDX-License-Identifier: Apache-2.0 */
/* One connection: reads messages, has them carried out, answers. */
#include "wire/vhost_user/session_int.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

#include "base/error.h"

static bool wants_ack(const struct vu_session *ses)
{
    return (ses->msg.header.flags & VU_FLAG_NEED_REPLY) &&
           (ses->protocol_features & VU_PROTOCOL_F_REPLY_ACK);
}

void vu_session_reply(struct vu_session *ses, const void *payload, uint32_t size, int fd)
{
    struct vu_header header = {
        .request = ses->msg.header.request, .flags = VU_FLAG_VERSION | VU_FLAG_REPLY, .size = size};
    int rc;

    if (ses->closing) {
        return;
    }
    rc = vu_message_send(ses->fd, &header, payload, fd);
    if (rc < 0) {
        qv_log_limited(&ses->server->listener.log_limit, QV_LOG_WARN,
                       "%s: the client does not take answers: %s", ses->server->listener.name,
                       qv_strerror(rc));
        vu_session_close(ses);
    }
}

void vu_session_reply_u64(struct vu_session *ses, uint64_t value)
{
    vu_session_reply(ses, &value, sizeof(value), -1);
}

void vu_session_ack(struct vu_session *ses, bool ok)
{
    if (wants_ack(ses)) {
        vu_session_reply_u64(ses, ok ? 0 : 1);
    } else if (!ok) {
        vu_session_close(ses);
    }
}

/* Has one complete message carried out. */
static void handle(struct vu_session *ses)
{
    g_autoptr(GError) error = NULL;

    switch (vu_handle(ses, &error)) {
    case VU_DONE:
        vu_session_ack(ses, true);
        break;
    case VU_REPLIED:
    case VU_PENDING:
        break;
    case VU_REFUSED:
        qv_log_limited(&ses->server->listener.log_limit, QV_LOG_WARN, "%s: message %u refused: %s",
                       ses->server->listener.name, ses->msg.header.request, error->message);
        vu_session_ack(ses, false);
        break;
    case VU_MALFORMED:
        qv_log_limited(&ses->server->listener.log_limit, QV_LOG_WARN,
                       "%s: message %u is malformed: %s", ses->server->listener.name,
                       ses->msg.header.request, error->message);
        vu_session_close(ses);
        break;
    }
}

static void read_failed(struct vu_session *ses, int rc)
{
    if (rc == -EPROTO) {
        qv_log_limited(&ses->server->listener.log_limit, QV_LOG_WARN,
                       "%s: the client does not speak vhost-user", ses->server->listener.name);
    } else if (rc != -ENOTCONN) {
        qv_log_limited(&ses->server->listener.log_limit, QV_LOG_WARN,
                       "%s: reading from the client: %s", ses->server->listener.name,
                       qv_strerror(rc));
    }
    vu_session_close(ses);
}

void vu_session_continue(struct vu_session *ses)
{
    if (ses->reading) {
        return; /* the sync was over at once: the loop below is still running */
    }
    ses->reading = true;
    while (!ses->busy && !ses->closing) {
        int rc = vu_message_read(ses->fd, &ses->msg);

        if (rc == 0) {
            break;
        }
        if (rc < 0) {
            read_failed(ses, rc);
            break;
        }
        handle(ses);
        if (!ses->busy) {
            vu_message_clear(&ses->msg);
        }
    }
    ses->reading = false;
}

static void readable(struct qv_watch *watch, uint32_t revents)
{
    vu_session_continue(qv_container_of(watch, struct vu_session, watch));
}

struct vu_session *vu_session_new(struct qv_vhost_user *server, int fd)
{
    struct vu_session *ses = g_new0(struct vu_session, 1);

    ses->server = server;
    ses->fd = fd;
    ses->backend_fd = -1;
    ses->ring_count = server->queues;
    for (unsigned i = 0; i < ses->ring_count; i++) {
        ses->rings[i].session = ses;
    }
    ses->watch.fd = fd;
    ses->watch.events = POLLIN;
    ses->watch.fn = readable;
    qv_watch_add(&ses->watch);
    return ses;
}

static void end_work(struct qv_work *work)
{
    struct vu_session *ses = qv_container_of(work, struct vu_session, end_work);
    struct qv_vhost_user *server = ses->server;

    g_free(ses);
    qv_wire_session_ended(&server->listener);
}

void vu_session_rings_stopped(struct vu_session *ses)
{
    for (unsigned i = 0; i < ses->ring_count; i++) {
        vu_ring_set_event(ses, &ses->rings[i].kick, -1);
        vu_ring_set_event(ses, &ses->rings[i].call, -1);
        vu_ring_set_event(ses, &ses->rings[i].err, -1);
    }
    g_clear_pointer(&ses->stale, g_ptr_array_unref);
    vu_inflight_drop(ses);
    qv_guest_map_unref(ses->map);
    qv_dirty_log_unref(ses->log);
    vu_message_clear(&ses->msg);
    if (ses->backend_fd >= 0) {
        close(ses->backend_fd);
    }
    close(ses->fd);
    /* The cache mode stays: a guest that comes back after a broken connection still counts on it.
     */
    qv_vblk_set_features(ses->server->dev, 0);
    qv_vblk_forget_kept(ses->server->dev);
    /* Callers up the stack may still look at the session. */
    ses->end_work.fn = end_work;
    qv_thread_post(ses->server->listener.home, &ses->end_work);
}

static void nothing(struct vu_session *ses)
{
}

void vu_session_close(struct vu_session *ses)
{
    if (ses->closing) {
        return;
    }
    ses->closing = true;
    qv_watch_del(&ses->watch);
    if (!ses->busy) {
        vu_rings_sync(ses, nothing); /* ends in vu_session_rings_stopped() */
    }
}

void vu_session_config_changed(struct vu_session *ses)
{
    struct vu_header header = {.request = VU_BACKEND_CONFIG_CHANGE, .flags = VU_FLAG_VERSION};
    int rc;

    if (ses->closing || ses->backend_fd < 0 || !(ses->protocol_features & VU_PROTOCOL_F_CONFIG)) {
        return;
    }
    rc = vu_message_send(ses->backend_fd, &header, NULL, -1);
    if (rc < 0) {
        qv_log_limited(&ses->server->listener.log_limit, QV_LOG_WARN,
                       "%s: the client was not told of the new size: %s",
                       ses->server->listener.name, qv_strerror(rc));
    }
}
