/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Workers: one for each I/O thread that serves the controller. The home thread gives them orders;
 * an order that must wait for requests in flight is looked at again at the end of each turn in
 * which a request has ended.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "device/nvme/nvme_int.h"

/* ---- requests ---- */

struct nvme_req *nvme_req_get(struct nvme_worker *w)
{
    struct nvme_req *req = w->free;

    if (req == NULL) {
        struct nvme_chunk *chunk = g_new0(struct nvme_chunk, 1);

        chunk->next = w->chunks;
        w->chunks = chunk;
        for (unsigned i = 0; i < NVME_REQS_CHUNK; i++) {
            chunk->reqs[i].worker = w;
            chunk->reqs[i].next = w->free;
            w->free = &chunk->reqs[i];
        }
        req = w->free;
    }
    w->free = req->next;
    req->next = NULL;
    req->sq = NULL;
    req->view = NULL;
    req->ns = NULL;
    req->block = NULL;
    req->bounce = NULL;
    req->list = NULL;
    req->step = NULL;
    req->iov = req->own_iov;
    req->iovcnt = 0;
    req->len = 0;
    req->dw0 = 0;
    req->status = NVME_OK;
    req->busy = true;
    req->fills = req->aborted = req->in_step = req->again = false;
    return req;
}

void nvme_req_put(struct nvme_req *req)
{
    struct nvme_worker *w = req->worker;

    req->busy = false;
    req->next = w->free;
    w->free = req;
}

void nvme_req_release(struct nvme_req *req)
{
    struct nvme_worker *w = req->worker;

    if (req->view != NULL) {
        /* The last one out of a view that was replaced frees it. */
        if (req->view == w->old_view && req->view->users == 1) {
            w->old_view = NULL;
        }
        qv_guest_view_leave(req->view);
        req->view = NULL;
    }
    if (req->ns != NULL) {
        w->ns_users[req->ns->nsid]--;
        req->ns = NULL;
    }
    if (req->block != NULL) {
        req->block->next = w->blocks;
        w->blocks = req->block;
        w->blocks_lent--;
        req->block = NULL;
    }
    if (req->bounce != NULL) {
        req->bounce->next = w->bounces;
        w->bounces = req->bounce;
        w->bounces_lent--;
        req->bounce = NULL;
    }
    g_free(req->list);
    req->list = NULL;
    req->iov = req->own_iov;
    req->iovcnt = 0;
}

bool nvme_req_enlarge(struct nvme_req *req)
{
    struct nvme_worker *w = req->worker;

    /* Admin commands end before anything else is looked at, so theirs are few. */
    if (w->blocks_lent >= NVME_BLOCKS_MAX && req->sq->id != 0) {
        return false;
    }
    if (w->blocks != NULL) {
        req->block = w->blocks;
        w->blocks = req->block->next;
    } else {
        req->block = g_new(struct nvme_block, 1);
    }
    w->blocks_lent++;
    memcpy(req->block->iov, req->own_iov, req->iovcnt * sizeof(req->own_iov[0]));
    req->iov = req->block->iov;
    return true;
}

static bool bounce_take(struct nvme_req *req)
{
    struct nvme_worker *w = req->worker;

    if (w->bounces == NULL) {
        void *mem;

        if (w->bounces_lent >= NVME_BOUNCE_MAX) {
            return false;
        }
        mem = qv_node_mem_alloc(sizeof(struct nvme_bounce));
        w->bounces = mem;
        w->bounces->next = NULL;
    }
    req->bounce = w->bounces;
    w->bounces = req->bounce->next;
    w->bounces_lent++;
    return true;
}

bool nvme_req_bounce(struct nvme_req *req)
{
    struct nvme_worker *w = req->worker;

    if (bounce_take(req)) {
        return true;
    }
    req->next = NULL;
    *w->bounce_wait_tail = req;
    w->bounce_wait_tail = &req->next;
    return false;
}

/* Gives buffers to those that wait for one. */
static void serve_bounces(struct nvme_worker *w)
{
    while (w->bounce_wait != NULL && bounce_take(w->bounce_wait)) {
        struct nvme_req *req = w->bounce_wait;

        w->bounce_wait = req->next;
        if (w->bounce_wait == NULL) {
            w->bounce_wait_tail = &w->bounce_wait;
        }
        nvme_step_run(req);
    }
}

/* ---- taking back what stopped disks keep ---- */

static bool cancel_match(const struct qv_io *io, void *arg)
{
    const struct nvme_worker *w = arg;
    const struct nvme_req *req;

    if (io->user != w) {
        return false; /* not ours */
    }
    req = qv_container_of(io, struct nvme_req, io);
    if (req->aborted) {
        return true;
    }
    for (const struct nvme_order *o = w->orders; o != NULL; o = o->next) {
        switch (o->op) {
        case NVME_ORDER_STOP:
        case NVME_ORDER_QUIESCE:
        case NVME_ORDER_MEMORY:
            return true;
        case NVME_ORDER_SQ_DEL:
            if (req->sq == &w->ctrl->sqs[o->qid]) {
                return true;
            }
            break;
        case NVME_ORDER_NS_DRAIN:
            if (req->ns == o->ns) {
                return true;
            }
            break;
        case NVME_ORDER_CQ_ADD:
        case NVME_ORDER_CQ_DEL:
        case NVME_ORDER_SQ_ADD:
        case NVME_ORDER_RUN:
        case NVME_ORDER_ABORT:
        case NVME_ORDER_DBBUF:
            break;
        }
    }
    return false;
}

static void cancel_kept(struct nvme_worker *w)
{
    if (w->in_flight == 0) {
        return;
    }
    for (uint32_t i = 1; i < NVME_NSIDS; i++) {
        struct nvme_ns *ns = nvme_ns_get(w->ctrl, i);

        if (w->ns_users[i] > 0 && ns != NULL) {
            qv_disk_cancel_kept(ns->disk, cancel_match, w);
        }
    }
    for (const struct nvme_order *o = w->orders; o != NULL; o = o->next) {
        if (o->op == NVME_ORDER_NS_DRAIN && w->ns_users[o->ns->nsid] > 0) {
            qv_disk_cancel_kept(o->ns->disk, cancel_match, w);
        }
    }
}

static void cancel_timer(struct qv_timer *timer)
{
    struct nvme_worker *w = qv_container_of(timer, struct nvme_worker, cancel_timer);

    if (w->orders != NULL) {
        qv_timer_arm(timer, NVME_CANCEL_NS);
        cancel_kept(w);
        nvme_worker_flush_later(w);
    }
}

/* ---- orders ---- */

static void order_done(struct qv_work *work)
{
    struct nvme_order *o = qv_container_of(work, struct nvme_order, work);
    struct nvme_group *g = o->group;

    g->result = g->result || o->result;
    qv_guest_map_unref(o->map);
    qv_dirty_log_unref(o->log);
    if (o->kept != NULL) {
        g_array_unref(o->kept);
    }
    g_free(o);
    if (--g->left == 0) {
        g->ctrl->groups_out--;
        g->done(g);
        nvme_ctrl_progress(g->ctrl);
        g_free(g);
    }
}

static void order_end(struct nvme_order *o)
{
    o->work.fn = order_done;
    qv_thread_post(o->worker->ctrl->home, &o->work);
}

static void stop_queues(struct nvme_worker *w)
{
    for (struct nvme_sq *sq = w->sqs; sq != NULL; sq = sq->next) {
        sq->state = NVME_Q_DYING;
        sq->silent = true;
    }
    nvme_poll_stop(w);
}

static void end_queues(struct nvme_worker *w)
{
    while (w->sqs != NULL) {
        nvme_sq_end(w->sqs);
    }
    while (w->cqs != NULL) {
        nvme_cq_end(w->cqs);
    }
    nvme_poll_stop(w);
}

static void change_view(struct nvme_worker *w, struct nvme_order *o)
{
    struct qv_guest_view *old = w->view;

    assert(w->old_view == NULL);
    w->view = qv_guest_view_new(o->map);
    if (old->users > 0) {
        w->old_view = old;
    }
    qv_guest_view_retire(old);
    qv_dirty_log_unref(w->log);
    w->log = g_steal_pointer(&o->log);
}

/* The command @cid of the queue is aborted if a stopped disk keeps it: all others end by
 * themselves, and soon. */
static bool abort_command(struct nvme_worker *w, const struct nvme_order *o)
{
    struct nvme_sq *sq = &w->ctrl->sqs[o->qid];
    struct nvme_req *found = NULL;
    struct qv_disk *disk = NULL;

    for (struct nvme_chunk *chunk = w->chunks; chunk != NULL; chunk = chunk->next) {
        for (unsigned i = 0; i < NVME_REQS_CHUNK; i++) {
            struct nvme_req *req = &chunk->reqs[i];

            if (req->busy && req->sq == sq && req->ns != NULL &&
                qv_le16_get(req->sqe.cid) == o->cid) {
                found = req;
                disk = req->ns->disk;
            }
        }
    }
    if (found == NULL) {
        return false;
    }
    found->aborted = true;
    qv_disk_cancel_kept(disk, cancel_match, w);
    if (found->busy && found->ns != NULL) {
        found->aborted = false; /* it goes on */
        return false;
    }
    return true;
}

static void set_shadows(struct nvme_worker *w, const struct nvme_order *o)
{
    for (struct nvme_sq *sq = w->sqs; sq != NULL; sq = sq->next) {
        nvme_sq_shadow(sq, o->shadow, o->event, true);
    }
    for (struct nvme_cq *cq = w->cqs; cq != NULL; cq = cq->next) {
        nvme_cq_shadow(cq, o->shadow, o->event, true);
    }
}

static void run_all(struct nvme_worker *w)
{
    for (struct nvme_cq *cq = w->cqs; cq != NULL; cq = cq->next) {
        nvme_cq_drain(cq);
        nvme_cq_signal(cq, false);
    }
    for (struct nvme_sq *sq = w->sqs; sq != NULL; sq = sq->next) {
        nvme_sq_run(sq);
    }
}

/* Begins @o; true when it is carried out, false when it has to wait. */
static bool order_begin(struct nvme_order *o)
{
    struct nvme_worker *w = o->worker;
    struct nvme_ctrl *c = w->ctrl;

    switch (o->op) {
    case NVME_ORDER_CQ_ADD:
        nvme_cq_start(&c->cqs[o->qid], o);
        return true;
    case NVME_ORDER_CQ_DEL:
        nvme_cq_end(&c->cqs[o->qid]);
        return true;
    case NVME_ORDER_SQ_ADD:
        nvme_sq_start(&c->sqs[o->qid], o);
        return true;
    case NVME_ORDER_SQ_DEL:
        c->sqs[o->qid].state = NVME_Q_DYING;
        return false;
    case NVME_ORDER_STOP:
        stop_queues(w);
        return false;
    case NVME_ORDER_MEMORY:
        change_view(w, o);
        return false;
    case NVME_ORDER_QUIESCE:
    case NVME_ORDER_NS_DRAIN:
        return false;
    case NVME_ORDER_RUN:
        run_all(w);
        return true;
    case NVME_ORDER_ABORT:
        o->result = abort_command(w, o);
        return true;
    case NVME_ORDER_DBBUF:
        set_shadows(w, o);
        return true;
    }
    return true;
}

/* Whether what @o waits for has come. Called at the end of a turn only. */
static bool order_ready(const struct nvme_order *o)
{
    struct nvme_worker *w = o->worker;

    switch (o->op) {
    case NVME_ORDER_SQ_DEL:
        return w->ctrl->sqs[o->qid].active == 0;
    case NVME_ORDER_STOP:
        /* Nothing of ours may run on this thread afterwards. */
        return w->in_flight == 0 && !w->poll_queued && !w->flush_queued;
    case NVME_ORDER_MEMORY:
        return w->old_view == NULL;
    case NVME_ORDER_QUIESCE:
        return w->in_flight == 0;
    case NVME_ORDER_NS_DRAIN:
        return w->ns_users[o->nsid] == 0;
    case NVME_ORDER_CQ_ADD:
    case NVME_ORDER_CQ_DEL:
    case NVME_ORDER_SQ_ADD:
    case NVME_ORDER_RUN:
    case NVME_ORDER_ABORT:
    case NVME_ORDER_DBBUF:
        break;
    }
    return true;
}

static void order_complete(struct nvme_order *o)
{
    struct nvme_worker *w = o->worker;

    if (o->op == NVME_ORDER_SQ_DEL) {
        nvme_sq_end(&w->ctrl->sqs[o->qid]);
    } else if (o->op == NVME_ORDER_STOP) {
        end_queues(w);
    } else if (o->op == NVME_ORDER_MEMORY) {
        run_all(w); /* what was taken back, and what waited for memory */
    } else if (o->op == NVME_ORDER_QUIESCE) {
        for (struct nvme_cq *cq = w->cqs; cq != NULL; cq = cq->next) {
            nvme_cq_signal(cq, true);
        }
    }
    order_end(o);
}

static void check_orders(struct nvme_worker *w)
{
    struct nvme_order **at = &w->orders;

    while (*at != NULL) {
        struct nvme_order *o = *at;

        if (order_ready(o)) {
            *at = o->next;
            order_complete(o);
        } else {
            at = &o->next;
        }
    }
    if (w->orders == NULL) {
        qv_timer_cancel(&w->cancel_timer);
    }
}

static void order_run(struct qv_work *work)
{
    struct nvme_order *o = qv_container_of(work, struct nvme_order, work);
    struct nvme_worker *w = o->worker;
    struct nvme_order **at = &w->orders;

    if (order_begin(o)) {
        order_end(o);
        return;
    }
    while (*at != NULL) {
        at = &(*at)->next;
    }
    o->next = NULL;
    *at = o;
    cancel_kept(w);
    qv_timer_arm(&w->cancel_timer, NVME_CANCEL_NS);
    nvme_worker_flush_later(w);
}

struct nvme_group *nvme_group_new(struct nvme_ctrl *c, void (*done)(struct nvme_group *group))
{
    struct nvme_group *g = g_new0(struct nvme_group, 1);

    g->ctrl = c;
    g->done = done;
    c->groups_out++;
    return g;
}

struct nvme_order *nvme_order_new(struct nvme_group *g, struct nvme_worker *w,
                                  enum nvme_order_op op)
{
    struct nvme_order *o = g_new0(struct nvme_order, 1);

    o->worker = w;
    o->group = g;
    o->op = op;
    g->left++;
    return o;
}

void nvme_order_give(struct nvme_order *o)
{
    o->work.fn = order_run;
    qv_thread_post(o->worker->thread, &o->work);
}

void nvme_order_all(struct nvme_group *g, enum nvme_order_op op)
{
    struct nvme_ctrl *c = g->ctrl;

    for (unsigned i = 0; i < c->worker_count; i++) {
        struct nvme_order *o = nvme_order_new(g, c->workers[i], op);

        if (op == NVME_ORDER_MEMORY) {
            struct qv_dirty_log *log = qv_pci_dirty_log(c->fn);

            o->map = qv_guest_map_ref(qv_pci_memory(c->fn));
            o->log = log != NULL ? qv_dirty_log_ref(log) : NULL;
        }
        nvme_order_give(o);
    }
}

/* ---- the end of a turn ---- */

static void run_starved(struct nvme_worker *w)
{
    for (struct nvme_sq *sq = w->sqs; sq != NULL; sq = sq->next) {
        if (sq->starved) {
            nvme_sq_run(sq);
        }
    }
}

static void flush_work(struct qv_work *work)
{
    struct nvme_worker *w = qv_container_of(work, struct nvme_worker, flush_work);

    w->flush_queued = false;
    while (w->dirty != NULL) {
        struct nvme_cq *cq = w->dirty;

        w->dirty = cq->next_dirty;
        cq->dirty = false;
        nvme_cq_signal(cq, false);
    }
    serve_bounces(w);
    run_starved(w);
    if (w->orders != NULL) {
        check_orders(w);
    }
}

void nvme_worker_flush_later(struct nvme_worker *w)
{
    if (!w->flush_queued) {
        w->flush_queued = true;
        qv_thread_defer(&w->flush_work);
    }
}

/* ---- life ---- */

struct nvme_worker *nvme_worker_new(struct nvme_ctrl *c, struct qv_thread *thread)
{
    struct nvme_worker *w = g_new0(struct nvme_worker, 1);

    w->ctrl = c;
    w->thread = thread;
    w->view = qv_guest_view_new(qv_pci_memory(c->fn));
    w->bounce_wait_tail = &w->bounce_wait;
    w->flush_work.fn = flush_work;
    w->cancel_timer.fn = cancel_timer;
    nvme_poll_init(w);
    return w;
}

void nvme_worker_free(struct nvme_worker *w)
{
    assert(w->in_flight == 0 && w->sqs == NULL && w->cqs == NULL && w->orders == NULL);
    qv_guest_view_retire(w->view);
    qv_dirty_log_unref(w->log);
    while (w->chunks != NULL) {
        struct nvme_chunk *chunk = w->chunks;

        w->chunks = chunk->next;
        g_free(chunk);
    }
    while (w->blocks != NULL) {
        struct nvme_block *block = w->blocks;

        w->blocks = block->next;
        g_free(block);
    }
    while (w->bounces != NULL) {
        struct nvme_bounce *bounce = w->bounces;

        w->bounces = bounce->next;
        free(bounce);
    }
    free(w->bucket);
    g_free(w);
}
