/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From what the client says to what the queues do. Handlers only note the wishes; a sync compares
 * them with what runs and sends each queue the command it needs, until nothing is left to do.
 */
#include "base/error.h"
#include "wire/vhost_user/session_int.h"

static void free_event(gpointer data)
{
    struct vu_event *event = data;

    close(event->irq.fd);
    g_free(event);
}

void vu_ring_set_event(struct vu_session *ses, struct vu_event **event, int fd)
{
    if (ses->stale == NULL) {
        ses->stale = g_ptr_array_new_with_free_func(free_event);
    }
    if (*event != NULL) {
        g_ptr_array_add(ses->stale, *event);
        *event = NULL;
    }
    if (fd >= 0) {
        *event = g_new0(struct vu_event, 1);
        (*event)->irq.irq.raise = qv_irq_eventfd_raise;
        (*event)->irq.fd = fd;
    }
}

void vu_rings_touch(struct vu_session *ses)
{
    for (unsigned i = 0; i < ses->ring_count; i++) {
        ses->rings[i].dirty = true;
    }
}

static bool ring_wanted(const struct vu_session *ses, const struct vu_ring *r)
{
    return !ses->closing && r->started && !r->failed && r->have_addr && r->num > 0 &&
           ses->map != NULL;
}

static void ring_failed(struct vu_ring *r, const GError *error)
{
    struct vu_session *ses = r->session;

    qv_log_limited(&ses->server->listener.log_limit, QV_LOG_WARN, "%s: queue %u cannot run: %s",
                   ses->server->listener.name, (unsigned)(r - ses->rings), error->message);
    r->failed = true;
    if (r->err != NULL) {
        qv_irq_raise(&r->err->irq.irq);
    }
}

/* Fills in the command's ring; false when the client's addresses are not in guest memory. */
static bool build_ring(struct vu_ring *r, struct qv_vblk_ring *out, GError **error)
{
    struct vu_session *ses = r->session;
    bool packed = ses->features & QV_VIRTIO_F_PACKED;
    uint64_t desc, avail, used;

    if (!qv_virtq_size_ok(r->num, packed)) {
        return qv_fail(error, QV_ERROR_FAILED, "a queue of %u descriptors is not possible", r->num);
    }
    qv_virtq_sizes(r->num, packed, ses->features & QV_VIRTIO_F_EVENT_IDX, &desc, &avail, &used);
    *out = (struct qv_vblk_ring){
        .layout = {.num = r->num, .base = r->base, .used_gpa = r->addr.log_gpa},
        .map = ses->map,
        .log = (ses->features & VU_F_LOG_ALL) != 0 ? ses->log : NULL,
        .log_ring = r->addr.flags & VU_VRING_F_LOG,
        .enabled = r->enabled,
        .kick_fd = r->kick != NULL ? r->kick->irq.fd : -1,
        .call = r->call != NULL ? &r->call->irq.irq : NULL,
        .err = r->err != NULL ? &r->err->irq.irq : NULL,
    };
    out->layout.desc = qv_guest_map_user_ptr(ses->map, r->addr.desc, desc);
    out->layout.avail = qv_guest_map_user_ptr(ses->map, r->addr.avail, avail);
    out->layout.used = qv_guest_map_user_ptr(ses->map, r->addr.used, used);
    out->layout.inflight = vu_inflight_ring(ses, (unsigned)(r - ses->rings), r->num);
    if (out->layout.desc == NULL || out->layout.avail == NULL || out->layout.used == NULL) {
        return qv_fail(error, QV_ERROR_FAILED, "its rings are not in guest memory");
    }
    return true;
}

static void sync_step(struct vu_session *ses);

static void cmd_done(struct qv_vblk_cmd *cmd)
{
    struct vu_ring *r = qv_container_of(cmd, struct vu_ring, cmd);
    struct vu_session *ses = r->session;

    switch (cmd->op) {
    case QV_VBLK_START:
        r->running = cmd->error == NULL;
        break;
    case QV_VBLK_STOP:
        r->running = false;
        r->base = cmd->base;
        break;
    case QV_VBLK_UPDATE:
        break;
    }
    if (cmd->error != NULL) {
        ring_failed(r, cmd->error);
        g_clear_error(&cmd->error);
    }
    ses->pending--;
    if (ses->pending == 0) {
        sync_step(ses);
    }
}

static void send_command(struct vu_ring *r, enum qv_vblk_op op)
{
    struct vu_session *ses = r->session;
    g_autoptr(GError) error = NULL;

    r->dirty = false;
    r->cmd.op = op;
    r->cmd.queue = (unsigned)(r - ses->rings);
    r->cmd.done = cmd_done;
    if (op != QV_VBLK_STOP && !build_ring(r, &r->cmd.ring, &error)) {
        ring_failed(r, error);
        if (op == QV_VBLK_START) {
            return;
        }
        r->cmd.op = QV_VBLK_STOP; /* a running queue must let go of memory that has gone */
    }
    ses->pending++;
    qv_vblk_command(ses->server->dev, &r->cmd);
}

static void sync_step(struct vu_session *ses)
{
    for (unsigned i = 0; i < ses->ring_count; i++) {
        struct vu_ring *r = &ses->rings[i];
        bool wanted = ring_wanted(ses, r);

        if (r->running && !wanted) {
            send_command(r, QV_VBLK_STOP);
        } else if (!r->running && wanted) {
            send_command(r, QV_VBLK_START);
        } else if (r->running && r->dirty) {
            send_command(r, QV_VBLK_UPDATE);
        }
    }
    if (ses->pending > 0) {
        return; /* the last one to be done looks again */
    }
    if (ses->stale != NULL) {
        g_ptr_array_set_size(ses->stale, 0);
    }
    ses->busy = false;
    if (ses->closing) {
        vu_session_rings_stopped(ses);
    } else {
        ses->after(ses);
    }
}

void vu_rings_sync(struct vu_session *ses, void (*after)(struct vu_session *ses))
{
    g_assert(!ses->busy);
    ses->busy = true;
    ses->after = after;
    sync_step(ses);
}
