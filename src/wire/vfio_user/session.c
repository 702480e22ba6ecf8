/* SPDX-License-Identifier: Apache-2.0 */
/* One connection: reads messages, has them carried out, answers, ends. */
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "base/error.h"
#include "wire/vfio_user/session_int.h"

/* Messages handled in one turn of the thread, which has queues to serve too. */
#define MESSAGES_PER_TURN 64

static void session_continue(struct vfu_session *ses);

/* ---- answers ---- */

static void rewatch(struct vfu_session *ses, uint32_t events)
{
    qv_watch_del(&ses->watch);
    ses->watch.events = events;
    qv_watch_add(&ses->watch);
}

/* Sends what waits. */
static void flush(struct vfu_session *ses, int send_fd)
{
    while (ses->out_sent < ses->out->len) {
        struct iovec iov = {.iov_base = ses->out->data + ses->out_sent,
                            .iov_len = ses->out->len - ses->out_sent};
        ssize_t n = qv_wire_send(ses->fd, &iov, 1, send_fd);

        if (n == -EAGAIN && send_fd < 0) {
            if (ses->watch.events != POLLOUT) {
                rewatch(ses, POLLOUT);
            }
            return;
        }
        if (n < 0) {
            qv_log_limited(&ses->server->listener.log_limit, QV_LOG_WARN,
                           "%s: the client does not take answers: %s", ses->server->listener.name,
                           qv_strerror((int)n));
            vfu_session_close(ses);
            return;
        }
        ses->out_sent += (size_t)n;
        send_fd = -1;
    }
    if (ses->watch.events != POLLIN) {
        rewatch(ses, POLLIN);
    }
}

static void send_reply(struct vfu_session *ses, uint32_t flags, uint32_t err, const void *payload,
                       size_t size, int fd)
{
    struct vfu_header header = {
        .id = ses->msg.header.id,
        .command = ses->msg.header.command,
        .size = (uint32_t)(sizeof(header) + size),
        .flags = VFU_F_REPLY | flags,
        .error = err,
    };

    if (ses->closing || (ses->msg.header.flags & VFU_F_NO_REPLY)) {
        return;
    }
    g_byte_array_set_size(ses->out, 0);
    g_byte_array_append(ses->out, (const uint8_t *)&header, sizeof(header));
    if (size > 0) {
        g_byte_array_append(ses->out, payload, (unsigned)size);
    }
    ses->out_sent = 0;
    flush(ses, fd);
}

void vfu_session_reply(struct vfu_session *ses, const void *payload, size_t size, int fd)
{
    send_reply(ses, 0, 0, payload, size, fd);
}

void vfu_session_refuse(struct vfu_session *ses, int err)
{
    send_reply(ses, VFU_F_ERROR, (uint32_t)err, NULL, 0, -1);
}

/* ---- looking for messages ---- */

/* A guest's driver touches several registers in a row, and each is a message whose sender waits for
 * the answer. So after a message the next one is near, and to look for it costs less than to sleep
 * and to be woken. There is nothing to look at in memory: the watch tells of what comes. But while
 * a source is open, the thread looks (io/source.c) as long as that pays. */
static bool source_ready(const struct qv_source *source)
{
    return false;
}

static bool source_arm(struct qv_source *source)
{
    return false; /* the watch is always armed */
}

static void source_run(struct qv_source *source)
{
}

/* ---- messages ---- */

static void handle(struct vfu_session *ses)
{
    g_autoptr(GError) error = NULL;
    int rc = vfu_handle(ses, &error);

    if (rc == VFU_MALFORMED) {
        qv_log_limited(&ses->server->listener.log_limit, QV_LOG_WARN,
                       "%s: message %u is malformed%s%s", ses->server->listener.name,
                       ses->msg.header.command, error != NULL ? ": " : "",
                       error != NULL ? error->message : "");
        vfu_session_close(ses);
    } else if (rc < 0) {
        qv_log_limited(&ses->server->listener.log_limit, QV_LOG_WARN, "%s: message %u refused: %s",
                       ses->server->listener.name, ses->msg.header.command,
                       error != NULL ? error->message : qv_strerror(rc));
        vfu_session_refuse(ses, -rc);
    }
}

static void read_failed(struct vfu_session *ses, int rc)
{
    if (rc == -EPROTO) {
        qv_log_limited(&ses->server->listener.log_limit, QV_LOG_WARN,
                       "%s: the client does not speak vfio-user", ses->server->listener.name);
    } else if (rc != -ENOTCONN) {
        qv_log_limited(&ses->server->listener.log_limit, QV_LOG_WARN,
                       "%s: reading from the client: %s", ses->server->listener.name,
                       qv_strerror(rc));
    }
    vfu_session_close(ses);
}

static bool may_read(const struct vfu_session *ses)
{
    return !ses->busy && !ses->closing && ses->out_sent == ses->out->len;
}

static void next_turn(struct qv_work *work)
{
    struct vfu_session *ses = qv_container_of(work, struct vfu_session, turn);

    ses->yielded = false;
    session_continue(ses);
}

static void session_continue(struct vfu_session *ses)
{
    int budget = MESSAGES_PER_TURN;

    if (ses->reading || ses->yielded) {
        return;
    }
    ses->reading = true;
    while (may_read(ses)) {
        int rc;

        if (budget-- == 0) {
            ses->yielded = true;
            qv_thread_post(ses->server->listener.home, &ses->turn);
            break;
        }
        rc = vfu_message_read(ses->fd, &ses->msg);
        if (rc == 0) {
            break;
        }
        if (rc < 0) {
            read_failed(ses, rc);
            break;
        }
        qv_source_open(&ses->source);
        qv_source_served(1);
        handle(ses);
        if (!ses->busy) {
            vfu_message_clear(&ses->msg);
        }
    }
    ses->reading = false;
}

static void ready(struct qv_watch *watch, uint32_t revents)
{
    struct vfu_session *ses = qv_container_of(watch, struct vfu_session, watch);

    if (ses->out_sent < ses->out->len) {
        flush(ses, -1);
    }
    if (!ses->closing) {
        session_continue(ses);
    }
}

/* ---- the end ---- */

static void end_work(struct qv_work *work)
{
    struct vfu_session *ses = qv_container_of(work, struct vfu_session, end_work);
    struct qv_vfio_user *server = ses->server;

    if (ses->yielded) {
        qv_thread_post(server->listener.home, &ses->end_work); /* behind next_turn() */
        return;
    }
    vfu_irqs_destroy(ses);
    vfu_message_destroy(&ses->msg);
    g_byte_array_unref(ses->out);
    g_array_unref(ses->ranges);
    close(ses->fd);
    g_free(ses);
    qv_wire_session_ended(&server->listener);
}

static void memory_gone(void *arg)
{
    struct vfu_session *ses = arg;

    /* Callers up the stack may still look at the session. */
    ses->end_work.fn = end_work;
    qv_thread_post(ses->server->listener.home, &ses->end_work);
}

static void function_reset(void *arg)
{
    struct vfu_session *ses = arg;

    vfu_migration_reset(ses);
    vfu_irqs_drop(ses);
    vfu_log_drop(ses);
    vfu_dma_drop(ses);
    if (!vfu_dma_apply(ses, memory_gone, NULL)) {
        g_assert_not_reached(); /* an empty map has nothing that could fail */
    }
}

/* The device is as after power-on for the next client: what it knew belongs to the one that left.
 */
static void end(struct vfu_session *ses)
{
    vfu_message_clear(&ses->msg);
    qv_pci_reset(ses->fn, function_reset, ses);
}

void vfu_session_close(struct vfu_session *ses)
{
    if (ses->closing) {
        return;
    }
    ses->closing = true;
    qv_source_close(&ses->source);
    qv_watch_del(&ses->watch);
    if (!ses->busy) {
        end(ses);
    }
}

void vfu_session_wait(struct vfu_session *ses)
{
    ses->busy = true;
}

void vfu_session_done(struct vfu_session *ses)
{
    ses->busy = false;
    if (ses->closing) {
        end(ses);
        return;
    }
    if (!ses->reading) { /* else the read loop below us does both */
        vfu_message_clear(&ses->msg);
        session_continue(ses);
    }
}

struct vfu_session *vfu_session_new(struct qv_vfio_user *server, int fd)
{
    struct vfu_session *ses = g_new0(struct vfu_session, 1);

    ses->server = server;
    ses->fn = server->fn;
    ses->fd = fd;
    ses->out = g_byte_array_new();
    ses->ranges = g_array_new(FALSE, FALSE, sizeof(struct vfu_range));
    ses->state = VFU_STATE_RUNNING;
    ses->log_fd = -1;
    ses->turn.fn = next_turn;
    vfu_irqs_init(ses);
    ses->source = (struct qv_source){
        .ready = source_ready, .arm = source_arm, .run = source_run, .eager = true};
    ses->watch.fd = fd;
    ses->watch.events = POLLIN;
    ses->watch.fn = ready;
    qv_watch_add(&ses->watch);
    return ses;
}
