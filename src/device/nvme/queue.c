/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rings: commands are taken from submission queues, completions put into completion queues. A CQ
 * and the SQs that complete into it are on one thread. Ring memory is looked up with each access:
 * it may come and go, and a cached pointer would have to follow.
 * Source: NVMe 1.4, 4.1 "Submission Queue & Completion Queue Definition", 4.6, 7.2.
 */
#include <assert.h>
#include <string.h>

#include "device/nvme/nvme_int.h"

/* ---- completion ---- */

/* Puts the completion of @req into the ring; false: there is no room. */
static bool cq_push(struct nvme_cq *cq, const struct nvme_req *req)
{
    struct nvme_worker *w = cq->worker;
    uint32_t next = cq->tail + 1 == cq->size ? 0 : cq->tail + 1;
    uint64_t at = cq->base + (uint64_t)cq->tail * sizeof(struct nvme_cqe);
    uint16_t sq_head = (uint16_t)req->sq->head, sq_id = req->sq->id;
    uint32_t *slot, last;

    if (next == cq->head) {
        cq->head = nvme_cq_head(cq);
        if (next == cq->head) {
            return false;
        }
    }
    slot = qv_guest_view_ptr(w->view, at, sizeof(struct nvme_cqe), true);
    if (slot == NULL) {
        nvme_fatal(cq->ctrl, "a completion queue is not in guest memory");
        return true; /* nobody will miss it: the controller must be reset */
    }
    last = qv_le16_get(req->sqe.cid) | (uint32_t)(req->status << 1 | cq->phase) << 16;
    slot[0] = GUINT32_TO_LE(req->dw0);
    slot[1] = 0;
    slot[2] = GUINT32_TO_LE(sq_head | (uint32_t)sq_id << 16);
    /* The phase tag makes it the guest's: last. */
    __atomic_store_n(&slot[3], GUINT32_TO_LE(last), __ATOMIC_RELEASE);
    if (w->log != NULL) {
        qv_dirty_log_mark(w->log, at, sizeof(struct nvme_cqe));
    }
    cq->tail = next;
    if (next == 0) {
        cq->phase = !cq->phase;
    }
    cq->fresh++;
    if (!cq->dirty) {
        cq->dirty = true;
        cq->next_dirty = w->dirty;
        w->dirty = cq;
    }
    if (cq->fresh % NVME_FLUSH_EVERY == 0) {
        nvme_cq_signal(cq, false);
    }
    return true;
}

static bool may_dma(const struct nvme_ctrl *c)
{
    return atomic_load_explicit(&c->shared.dma, memory_order_relaxed) &&
           !atomic_load_explicit(&c->shared.fatal, memory_order_relaxed);
}

static void wait_for_room(struct nvme_cq *cq, struct nvme_req *req)
{
    req->next = NULL;
    *cq->waiting_tail = req;
    cq->waiting_tail = &req->next;
}

static void req_gone(struct nvme_req *req)
{
    req->sq->taken--;
    nvme_req_put(req);
}

/* Publishes what waits; false when some is left. */
static bool push_waiting(struct nvme_cq *cq)
{
    while (cq->waiting != NULL) {
        struct nvme_req *req = cq->waiting;

        if (!cq_push(cq, req)) {
            return false;
        }
        cq->waiting = req->next;
        if (cq->waiting == NULL) {
            cq->waiting_tail = &cq->waiting;
        }
        req_gone(req);
    }
    return true;
}

void nvme_cq_drain(struct nvme_cq *cq)
{
    struct nvme_ctrl *c = cq->ctrl;

    if (cq->state != NVME_Q_LIVE || atomic_load(&c->shared.paused)) {
        return;
    }
    if (nvme_cq_uses_pin(cq)) {
        nvme_cq_want_head(cq);
        nvme_cq_set_level(cq, cq->head != cq->tail);
    }
    if (cq->waiting == NULL || !may_dma(c)) {
        return;
    }
    if (!push_waiting(cq)) {
        nvme_cq_want_head(cq);
        if (!push_waiting(cq)) {
            nvme_poll_idle(cq->worker);
            nvme_worker_flush_later(cq->worker);
            return;
        }
    }
    if (!nvme_cq_uses_pin(cq)) {
        atomic_store(&cq->wants_kick, false);
    }
    /* Its queues may go on. */
    nvme_worker_flush_later(cq->worker);
}

void nvme_complete(struct nvme_req *req, unsigned status, uint32_t dw0)
{
    struct nvme_worker *w = req->worker;
    struct nvme_sq *sq = req->sq;
    struct nvme_cq *cq;

    if (status != NVME_OK) {
        nvme_error_note(req, status);
    }
    nvme_req_release(req);
    w->in_flight--;
    nvme_worker_flush_later(w);
    req->status = (uint16_t)status;
    req->dw0 = dw0;
    if (sq == NULL) {
        req->finished(req);
        nvme_req_put(req);
        return;
    }
    sq->active--;
    if (sq->silent) {
        req_gone(req);
        return;
    }
    cq = sq->cq;
    if (cq->waiting == NULL && may_dma(cq->ctrl) && cq_push(cq, req)) {
        req_gone(req);
        return;
    }
    wait_for_room(cq, req);
    nvme_cq_drain(cq);
}

void nvme_park(struct nvme_req *req)
{
    struct nvme_worker *w = req->worker;
    struct nvme_sq *sq = req->sq;

    nvme_req_release(req);
    w->in_flight--;
    sq->active--;
    req->next = NULL;
    *sq->parked_tail = req;
    sq->parked_tail = &req->next;
    nvme_worker_flush_later(w);
}

/* ---- taking commands ---- */

static void begin(struct nvme_req *req)
{
    struct nvme_sq *sq = req->sq;

    sq->active++;
    sq->worker->in_flight++;
    req->step = NULL;
    req->status = NVME_OK;
    req->dw0 = 0;
    req->fills = req->aborted = req->in_step = req->again = false;
}

/* Starts what @req->sqe says; false: not now. */
static bool start(struct nvme_req *req)
{
    if (req->sq->id == 0) {
        nvme_admin_start(req);
        return true;
    }
    return nvme_io_start(req);
}

static void unbegin(struct nvme_req *req)
{
    nvme_req_release(req);
    req->sq->active--;
    req->worker->in_flight--;
}

static bool take_one(struct nvme_sq *sq)
{
    struct nvme_worker *w = sq->worker;
    struct nvme_req *req = nvme_req_get(w);
    uint32_t head = sq->head;

    if (qv_guest_view_read(w->view, sq->base + (uint64_t)head * sizeof(req->sqe), &req->sqe,
                           sizeof(req->sqe)) != 0) {
        nvme_req_put(req);
        nvme_fatal(sq->ctrl, "a submission queue is not in guest memory");
        return false;
    }
    req->sq = sq;
    sq->head = head + 1 == sq->size ? 0 : head + 1;
    sq->taken++;
    begin(req);
    if (start(req)) {
        return true;
    }
    unbegin(req);
    sq->head = head;
    req_gone(req);
    sq->starved = true;
    return false;
}

static bool may_run(const struct nvme_sq *sq)
{
    return sq->state == NVME_Q_LIVE && may_dma(sq->ctrl) &&
           !atomic_load_explicit(&sq->ctrl->shared.paused, memory_order_relaxed);
}

static void run_later(struct nvme_sq *sq)
{
    if (!atomic_exchange(&sq->kicked, true)) {
        qv_thread_post(sq->worker->thread, &sq->kick);
    }
}

/* The ring is empty as far as we know: whether we will hear of the next command. False: it has come
 * already. */
static bool go_idle(struct nvme_sq *sq, uint32_t *tail)
{
    struct nvme_worker *w = sq->worker;

    if (sq->shadow != 0 && nvme_poll_after(w, qv_moderation_look(&sq->cq->moderation))) {
        return true;
    }
    if (sq->ctrl->db_page || (sq->shadow != 0 && w->poll_window_ns > 0)) {
        nvme_poll_idle(w); /* looks by itself, and arms when it gives up */
        return true;
    }
    if (sq->shadow == 0) {
        return true; /* a register write comes with every command */
    }
    nvme_sq_arm(sq);
    *tail = nvme_sq_tail(sq);
    if (*tail != sq->head) {
        return false;
    }
    w->slept_ns = qv_now_ns();
    return true;
}

/* Starts again what was parked; false when some is left. */
static bool restart(struct nvme_sq *sq)
{
    while (sq->parked != NULL && may_run(sq)) {
        struct nvme_req *req = sq->parked;

        sq->parked = req->next;
        if (sq->parked == NULL) {
            sq->parked_tail = &sq->parked;
        }
        begin(req);
        if (!start(req)) {
            unbegin(req);
            req->next = sq->parked;
            if (sq->parked == NULL) {
                sq->parked_tail = &req->next;
            }
            sq->parked = req;
            return false;
        }
    }
    return sq->parked == NULL;
}

void nvme_sq_run(struct nvme_sq *sq)
{
    uint32_t tail;

    if (!may_run(sq)) {
        return;
    }
    sq->starved = false;
    if (!restart(sq)) {
        sq->starved = true;
        return;
    }
    tail = nvme_sq_tail(sq);
    if (tail != sq->head) {
        qv_moderation_arrived(&sq->cq->moderation,
                              tail > sq->head ? tail - sq->head : tail + sq->size - sq->head,
                              qv_now_ns());
    }
    for (unsigned left = NVME_BUDGET; left > 0; left--) {
        if (sq->head == tail) {
            tail = nvme_sq_tail(sq);
            if (sq->head == tail && go_idle(sq, &tail)) {
                return;
            }
        }
        if (sq->taken >= NVME_DEPTH_MAX || sq->cq->waiting != NULL) {
            sq->starved = true; /* the end of a turn with a completion looks again */
            return;
        }
        if (!may_run(sq) || !take_one(sq)) {
            return;
        }
    }
    run_later(sq);
}

static void sq_kicked(struct qv_work *work)
{
    struct nvme_sq *sq = qv_container_of(work, struct nvme_sq, kick);

    atomic_store(&sq->kicked, false);
    if (sq->state == NVME_Q_LIVE) {
        nvme_poll_kicked(sq->worker);
        nvme_sq_run(sq);
    }
}

static void cq_kicked(struct qv_work *work)
{
    struct nvme_cq *cq = qv_container_of(work, struct nvme_cq, kick);

    atomic_store(&cq->kicked, false);
    nvme_cq_drain(cq);
}

/* ---- life ---- */

void nvme_sq_init(struct nvme_ctrl *c, unsigned id)
{
    struct nvme_sq *sq = &c->sqs[id];

    sq->ctrl = c;
    sq->worker = c->worker_of[id];
    sq->id = (uint16_t)id;
    sq->kick.fn = sq_kicked;
    sq->parked_tail = &sq->parked;
}

void nvme_cq_init(struct nvme_ctrl *c, unsigned id)
{
    struct nvme_cq *cq = &c->cqs[id];

    cq->ctrl = c;
    cq->worker = c->worker_of[id];
    cq->id = (uint16_t)id;
    cq->kick.fn = cq_kicked;
    nvme_cq_irq_init(cq);
    cq->waiting_tail = &cq->waiting;
}

void nvme_cq_start(struct nvme_cq *cq, const struct nvme_order *o)
{
    struct nvme_worker *w = cq->worker;

    assert(cq->state == NVME_Q_NONE);
    cq->state = NVME_Q_LIVE;
    cq->base = o->base;
    cq->size = o->size;
    cq->vector = o->vector;
    cq->ien = o->ien;
    cq->head = o->restored ? o->head : 0;
    cq->tail = o->restored ? o->tail : 0;
    cq->phase = o->restored ? o->phase : true;
    cq->refused = UINT32_MAX;
    cq->fresh = cq->head != cq->tail; /* from another host: an interrupt may have been lost */
    atomic_store(&cq->wants_kick, false);
    cq->next = w->cqs;
    w->cqs = cq;
    nvme_cq_shadow(cq, o->shadow, o->event, !o->restored);
}

/* Commands that came with a queue from another host. */
static void take_kept(struct nvme_sq *sq, const GArray *kept)
{
    for (guint i = 0; i < kept->len; i++) {
        const struct nvme_kept *k = &g_array_index(kept, struct nvme_kept, i);
        struct nvme_req *req = nvme_req_get(sq->worker);

        req->sq = sq;
        req->sqe = k->sqe;
        req->status = k->status;
        req->dw0 = k->dw0;
        sq->taken++;
        if (k->completed) {
            wait_for_room(sq->cq, req);
        } else {
            *sq->parked_tail = req;
            sq->parked_tail = &req->next;
        }
    }
}

void nvme_sq_start(struct nvme_sq *sq, const struct nvme_order *o)
{
    /* The queue runs where its CQ is. */
    struct nvme_worker *w = o->worker;

    assert(sq->state == NVME_Q_NONE && w == sq->ctrl->cqs[o->cqid].worker);
    sq->state = NVME_Q_LIVE;
    sq->worker = w;
    sq->cq = &sq->ctrl->cqs[o->cqid];
    sq->base = o->base;
    sq->size = o->size;
    sq->head = o->restored ? o->head : 0;
    sq->refused = UINT32_MAX;
    sq->taken = sq->active = 0;
    sq->starved = sq->silent = false;
    sq->next = w->sqs;
    w->sqs = sq;
    nvme_sq_shadow(sq, o->shadow, o->event, !o->restored);
    if (o->kept != NULL) {
        take_kept(sq, o->kept);
    }
    nvme_sq_run(sq); /* a polled doorbell may have been rung */
}

/* Takes the requests of @sq out of a list. */
static void purge(struct nvme_req **list, struct nvme_req ***tail, const struct nvme_sq *sq)
{
    struct nvme_req **at = list;

    while (*at != NULL) {
        struct nvme_req *req = *at;

        if (req->sq == sq) {
            *at = req->next;
            req_gone(req);
        } else {
            at = &req->next;
        }
    }
    *tail = at;
}

void nvme_sq_end(struct nvme_sq *sq)
{
    struct nvme_sq **at = &sq->worker->sqs;

    assert(sq->active == 0);
    purge(&sq->cq->waiting, &sq->cq->waiting_tail, sq);
    purge(&sq->parked, &sq->parked_tail, sq);
    assert(sq->taken == 0);
    while (*at != sq) {
        at = &(*at)->next;
    }
    *at = sq->next;
    sq->state = NVME_Q_NONE;
}

void nvme_cq_end(struct nvme_cq *cq)
{
    struct nvme_worker *w = cq->worker;
    struct nvme_cq **at = &w->cqs, **dirty = &w->dirty;

    assert(cq->waiting == NULL);
    while (*at != cq) {
        at = &(*at)->next;
    }
    *at = cq->next;
    while (*dirty != NULL && *dirty != cq) {
        dirty = &(*dirty)->next_dirty;
    }
    if (*dirty == cq) {
        *dirty = cq->next_dirty;
        cq->dirty = false;
    }
    qv_moderation_stop(&cq->moderation);
    qv_timer_cancel(&cq->timer);
    cq->state = NVME_Q_NONE;
    nvme_cq_set_level(cq, false);
}
