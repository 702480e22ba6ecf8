/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A queue at work: takes requests from its ring when kicked, gives them back, and carries out the
 * transport's commands. All of it on the queue's I/O thread.
 *
 * A turn takes what the ring holds (up to a budget), with kicks switched off; they are asked for
 * again when the thread goes to sleep. Completions gather and are published, with at most one
 * interrupt, at the end of the turn.
 */
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>

#include "base/error.h"
#include "device/virtio_blk/vblk_int.h"

static void queue_run(struct vblk_queue *q);

/* The states and how a queue moves between them:
 * STOPPED -start-> RUNNING -ring broken-> BROKEN; RUNNING, BROKEN -stop-> STOPPING -last request
 * has ended-> STOPPED. */
static void queue_set_state(struct vblk_queue *q, enum vblk_state to)
{
    bool legal = false;

    switch (q->state) {
    case VBLK_STOPPED:
        legal = to == VBLK_RUNNING;
        break;
    case VBLK_RUNNING:
        legal = to == VBLK_BROKEN || to == VBLK_STOPPING;
        break;
    case VBLK_BROKEN:
        legal = to == VBLK_STOPPING;
        break;
    case VBLK_STOPPING:
        legal = to == VBLK_STOPPED;
        break;
    }
    assert(legal);
    q->state = to;
}

/* ---- requests and buffer lists ---- */

static struct vblk_req *req_get(struct vblk_queue *q)
{
    struct vblk_req *req = q->free;

    if (req != NULL) {
        q->free = req->next_free;
    } else if (q->pool_used < q->pool_size) {
        req = &q->pool[q->pool_used++];
        req->queue = q;
    } else {
        return NULL;
    }
    req->block = NULL;
    req->chain.iov = req->iov;
    req->chain.iov_max = VBLK_IOV_INLINE;
    req->chain.final = false;
    return req;
}

static void req_put(struct vblk_queue *q, struct vblk_req *req)
{
    if (req->block != NULL) {
        req->block->next = q->blocks;
        q->blocks = req->block;
        q->blocks_lent--;
    }
    req->next_free = q->free;
    q->free = req;
}

/* Gives @req room for a long buffer list; false when that must wait. */
static bool req_enlarge(struct vblk_queue *q, struct vblk_req *req)
{
    if (q->blocks_lent == VBLK_BLOCKS_MAX) {
        return false;
    }
    if (q->blocks != NULL) {
        req->block = q->blocks;
        q->blocks = req->block->next;
    } else {
        req->block = g_new(struct vblk_block, 1);
    }
    q->blocks_lent++;
    req->chain.iov = req->block->iov;
    req->chain.iov_max = VBLK_IOV_BLOCK;
    req->chain.final = true;
    return true;
}

/* ---- completion ---- */

static void finish_stop(struct vblk_queue *q);

/* Ends a STOP once nothing refers to the queue any more. */
static void check_stop(struct vblk_queue *q)
{
    if (q->state == VBLK_STOPPING && q->in_flight == 0 && !q->flush_queued && !q->run_queued) {
        finish_stop(q);
    }
}

static void flush(struct vblk_queue *q)
{
    qv_source_served(q->unflushed);
    q->unflushed = 0;
    qv_virtq_publish(&q->vq);
    if (q->call != NULL && qv_virtq_should_signal(&q->vq)) {
        qv_irq_raise(q->call);
    }
}

static void flush_work(struct qv_work *work)
{
    struct vblk_queue *q = qv_container_of(work, struct vblk_queue, flush_work);

    q->flush_queued = false;
    flush(q);
    if (q->starved) {
        queue_run(q);
    }
    check_stop(q);
}

static void queue_flush_later(struct vblk_queue *q)
{
    if (!q->flush_queued) {
        q->flush_queued = true;
        qv_thread_defer(&q->flush_work);
    }
}

/* Marks what the device has written: data, then status. */
static void mark_written(struct vblk_req *req)
{
    struct vblk_queue *q = req->queue;
    uint64_t gpa;

    if (req->fills_data) {
        for (unsigned i = 0; i < req->data_cnt; i++) {
            if (qv_guest_map_gpa_of(req->view->map, req->data[i].iov_base, &gpa)) {
                qv_dirty_log_mark(q->log, gpa, req->data[i].iov_len);
            }
        }
    }
    qv_dirty_log_mark(q->log, req->chain.last_in, 1);
}

static void req_end(struct vblk_queue *q, struct vblk_req *req)
{
    qv_guest_view_leave(req->view);
    req_put(q, req);
    q->in_flight--;
}

void vblk_queue_complete(struct vblk_req *req, uint8_t status, uint32_t written)
{
    struct vblk_queue *q = req->queue;

    *req->status = status;
    if (q->log != NULL) {
        mark_written(req);
    }
    qv_virtq_push(&q->vq, &req->chain, written);
    req_end(q, req);
    if (++q->unflushed >= VBLK_FLUSH_EVERY) {
        flush(q);
    }
    /* Also when just flushed: the deferred work looks after starved and stopping queues. */
    queue_flush_later(q);
}

void vblk_queue_keep(struct vblk_req *req)
{
    struct vblk_queue *q = req->queue;

    q->kept++;
    req_end(q, req);
    queue_flush_later(q);
}

/* ---- taking requests ---- */

static void break_queue(struct vblk_queue *q, const char *why)
{
    qv_log_limited(&q->dev->log_limit, QV_LOG_WARN, "%s: queue %u disabled: %s", q->dev->name,
                   q->index, why);
    queue_set_state(q, VBLK_BROKEN);
    qv_source_close(&q->source);
    if (q->err != NULL) {
        qv_irq_raise(q->err);
    }
}

/* Takes one request and starts it. 1: done; 0: there is none; -EAGAIN: it must wait for a
 * completion; -EPROTO: the queue is broken. */
static int take_one(struct vblk_queue *q)
{
    struct vblk_req *req = req_get(q);
    int rc;

    if (req == NULL) {
        return -EAGAIN;
    }
    rc = qv_virtq_pop(&q->vq, q->view, &req->chain);
    if (rc == -E2BIG) {
        if (!req_enlarge(q, req)) {
            req_put(q, req);
            return -EAGAIN;
        }
        rc = qv_virtq_pop(&q->vq, q->view, &req->chain);
    }
    if (rc <= 0) {
        req_put(q, req);
        return rc;
    }
    req->view = q->view;
    qv_guest_view_enter(q->view);
    q->in_flight++;
    rc = vblk_request_start(req, &q->vq.why);
    if (rc < 0) {
        req_end(q, req);
        return rc;
    }
    return 1;
}

static void run_later(struct vblk_queue *q)
{
    if (!q->run_queued) {
        q->run_queued = true;
        qv_thread_post(q->thread, &q->run_work);
    }
}

static void run_work(struct qv_work *work)
{
    struct vblk_queue *q = qv_container_of(work, struct vblk_queue, run_work);

    q->run_queued = false;
    queue_run(q);
    check_stop(q);
}

/* Takes requests until there are none, or the budget is used up. */
static void take_all(struct vblk_queue *q)
{
    for (unsigned left = VBLK_BUDGET; left > 0; left--) {
        int rc = take_one(q);

        if (rc == -EAGAIN) {
            q->starved = true; /* flush_work runs us again */
            return;
        }
        if (rc < 0) {
            break_queue(q, q->vq.why);
            return;
        }
        if (rc == 0) {
            qv_source_open(&q->source); /* the loop asks for kicks before it sleeps */
            return;
        }
    }
    run_later(q);
}

static void queue_run(struct vblk_queue *q)
{
    if (q->state != VBLK_RUNNING || !q->enabled) {
        return;
    }
    q->starved = false;
    if (qv_guest_map_broken(q->view->map)) {
        break_queue(q, "the client took guest memory away");
        return;
    }
    qv_virtq_kicks_off(&q->vq);
    take_all(q);
}

static bool ring_ready(const struct qv_source *source)
{
    const struct vblk_queue *q = qv_container_of(source, const struct vblk_queue, source);

    return !q->starved && qv_virtq_has_request(&q->vq);
}

static bool ring_arm(struct qv_source *source)
{
    struct vblk_queue *q = qv_container_of(source, struct vblk_queue, source);

    return !q->starved && qv_virtq_kicks_on(&q->vq);
}

static void ring_run(struct qv_source *source)
{
    queue_run(qv_container_of(source, struct vblk_queue, source));
}

static void kicked(struct qv_watch *watch, uint32_t revents)
{
    queue_run(qv_container_of(watch, struct vblk_queue, watch));
}

/* ---- commands ---- */

static void unwatch(struct vblk_queue *q)
{
    if (q->watching) {
        qv_watch_del(&q->watch);
        q->watching = false;
    }
    qv_timer_cancel(&q->timer);
    qv_source_close(&q->source);
}

static void watch(struct vblk_queue *q, int kick_fd)
{
    unwatch(q);
    q->watch.fd = kick_fd;
    if (kick_fd >= 0) {
        qv_watch_add(&q->watch);
        q->watching = true;
    } else {
        qv_timer_arm(&q->timer, VBLK_POLL_NS);
    }
}

static bool cancel_match(const struct qv_io *io, void *arg)
{
    const struct vblk_queue *q = arg;
    uintptr_t first = (uintptr_t)q->pool, at = (uintptr_t)io;

    return at >= first && at - first < q->pool_size * sizeof(q->pool[0]);
}

static void timer_fired(struct qv_timer *timer)
{
    struct vblk_queue *q = qv_container_of(timer, struct vblk_queue, timer);

    if (q->state == VBLK_STOPPING) {
        qv_timer_arm(timer, VBLK_CANCEL_NS);
        qv_disk_cancel_kept(q->dev->disk, cancel_match, q);
    } else if (q->state == VBLK_RUNNING) {
        qv_timer_arm(timer, VBLK_POLL_NS);
        queue_run(q);
    }
}

/* Takes over what @ring brings besides its layout. */
static void adopt(struct vblk_queue *q, const struct qv_vblk_ring *ring)
{
    struct qv_dirty_log *log = ring->log != NULL ? qv_dirty_log_ref(ring->log) : NULL;
    struct qv_guest_view *view = qv_guest_view_new(ring->map);

    qv_guest_view_retire(q->view);
    q->view = view;
    qv_dirty_log_unref(q->log);
    q->log = log;
    q->call = ring->call;
    q->err = ring->err;
    q->enabled = ring->enabled;
}

/* The queue's own in-flight area, emptied unless it belongs to this very ring: one that was stopped
 * with requests kept, and now goes on from where it was. */
static void *own_area(struct vblk_queue *q, const struct qv_virtq_layout *l)
{
    if (q->own_area != NULL && q->kept > 0 && q->own_num == l->num && q->own_packed == l->packed &&
        q->own_base == l->base) {
        return q->own_area;
    }
    g_free(q->own_area);
    q->own_area = g_malloc0(qv_virtq_inflight_size(l->num));
    q->own_num = l->num;
    q->own_packed = l->packed;
    return q->own_area;
}

static struct qv_virtq_layout complete_layout(const struct vblk_queue *q,
                                              const struct qv_virtq_layout *from)
{
    uint64_t features = atomic_load(&q->dev->features);
    struct qv_virtq_layout l = *from;

    l.packed = features & QV_VIRTIO_F_PACKED;
    l.event_idx = features & QV_VIRTIO_F_EVENT_IDX;
    l.indirect = features & QV_VIRTIO_F_INDIRECT;
    return l;
}

static void start(struct vblk_queue *q, struct qv_vblk_cmd *cmd)
{
    struct qv_virtq_layout l = complete_layout(q, &cmd->ring.layout);

    if (q->state != VBLK_STOPPED) {
        qv_fail(&cmd->error, QV_ERROR_FAILED, "the queue is running");
        return;
    }
    if (!qv_virtq_size_ok(l.num, l.packed)) {
        qv_fail(&cmd->error, QV_ERROR_FAILED, "a queue of %u descriptors is not possible", l.num);
        return;
    }
    if (l.inflight == NULL) {
        l.inflight = own_area(q, &l);
    }
    if (!qv_virtq_start(&q->vq, &l, cmd->ring.map, cmd->ring.log_ring ? cmd->ring.log : NULL,
                        &cmd->error)) {
        return;
    }
    q->kept = 0;
    q->starved = false;
    q->unflushed = 0;
    q->pool_size = MIN(l.num, VBLK_DEPTH_MAX);
    q->pool_used = 0;
    q->free = NULL;
    q->pool = g_malloc0_n(q->pool_size, sizeof(q->pool[0]));
    adopt(q, &cmd->ring);
    queue_set_state(q, VBLK_RUNNING);
    watch(q, cmd->ring.kick_fd);
    /*
     * Signals may have been lost in both directions: the ring, or the in-flight area, may hold
     * requests for which no kick will come, and a server that died may have published completions
     * without telling the driver. One interrupt too many does no harm.
     */
    if (q->call != NULL) {
        qv_irq_raise(q->call);
    }
    run_later(q);
}

static void update(struct vblk_queue *q, struct qv_vblk_cmd *cmd)
{
    struct qv_virtq_layout l = complete_layout(q, &cmd->ring.layout);

    if (q->state != VBLK_RUNNING && q->state != VBLK_BROKEN) {
        qv_fail(&cmd->error, QV_ERROR_FAILED, "the queue is not running");
        return;
    }
    if (!qv_virtq_move(&q->vq, &l, cmd->ring.map, cmd->ring.log_ring ? cmd->ring.log : NULL,
                       &cmd->error)) {
        return;
    }
    adopt(q, &cmd->ring);
    if (q->state == VBLK_RUNNING) {
        watch(q, cmd->ring.kick_fd);
        run_later(q);
    }
}

static void cmd_done_work(struct qv_work *work)
{
    struct qv_vblk_cmd *cmd = qv_container_of(work, struct qv_vblk_cmd, work);

    cmd->done(cmd);
}

static void cmd_end(struct qv_vblk_cmd *cmd)
{
    cmd->work.fn = cmd_done_work;
    qv_thread_post(cmd->origin, &cmd->work);
}

static void finish_stop(struct vblk_queue *q)
{
    struct qv_vblk_cmd *cmd = q->stop;

    flush(q);
    qv_timer_cancel(&q->timer);
    cmd->base = q->own_base = qv_virtq_base(&q->vq);
    qv_virtq_stop(&q->vq);
    qv_guest_view_retire(q->view);
    q->view = NULL;
    qv_dirty_log_unref(q->log);
    q->log = NULL;
    q->call = q->err = NULL;
    g_free(q->pool);
    q->pool = NULL;
    q->free = NULL;
    while (q->blocks != NULL) {
        struct vblk_block *block = q->blocks;

        q->blocks = block->next;
        g_free(block);
    }
    queue_set_state(q, VBLK_STOPPED);
    q->stop = NULL;
    cmd_end(cmd);
}

static void stop(struct vblk_queue *q, struct qv_vblk_cmd *cmd)
{
    unwatch(q);
    queue_set_state(q, VBLK_STOPPING);
    q->stop = cmd;
    qv_timer_arm(&q->timer, VBLK_CANCEL_NS);
    if (q->in_flight > 0) {
        qv_disk_cancel_kept(q->dev->disk, cancel_match, q);
    }
    check_stop(q);
}

static void cmd_work(struct qv_work *work)
{
    struct qv_vblk_cmd *cmd = qv_container_of(work, struct qv_vblk_cmd, work);
    struct vblk_queue *q = &cmd->dev->queues[cmd->queue];

    switch (cmd->op) {
    case QV_VBLK_START:
        start(q, cmd);
        break;
    case QV_VBLK_UPDATE:
        update(q, cmd);
        break;
    case QV_VBLK_STOP:
        if (q->state == VBLK_RUNNING || q->state == VBLK_BROKEN) {
            stop(q, cmd); /* ends in finish_stop() */
            return;
        }
        cmd->base = q->own_base;
        break;
    }
    cmd_end(cmd);
}

void qv_vblk_command(struct qv_vblk *dev, struct qv_vblk_cmd *cmd)
{
    assert(cmd->queue < dev->queue_count);
    cmd->dev = dev;
    cmd->origin = qv_thread_self();
    cmd->error = NULL;
    cmd->base = 0;
    cmd->work.fn = cmd_work;
    qv_thread_post(dev->queues[cmd->queue].thread, &cmd->work);
}

void vblk_queue_init(struct vblk_queue *q, struct qv_vblk *dev, unsigned index,
                     struct qv_thread *thread)
{
    q->dev = dev;
    q->thread = thread;
    q->index = index;
    q->watch.fd = -1;
    q->watch.events = POLLIN;
    q->watch.fn = kicked;
    q->timer.fn = timer_fired;
    q->source = (struct qv_source){.ready = ring_ready, .arm = ring_arm, .run = ring_run};
    q->flush_work.fn = flush_work;
    q->run_work.fn = run_work;
}

void vblk_queue_destroy(struct vblk_queue *q)
{
    assert(q->state == VBLK_STOPPED);
    g_free(q->own_area);
}
