/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a worker learns of new commands.
 *
 * - A doorbell is a register: the home thread stores the value and kicks the worker.
 * - Shadow doorbells (7.13 and 5.7 "Doorbell Buffer Config"): the guest stores the value in memory,
 *   and writes the register only if the event index says so. We set the event index before we
 *   sleep and look once more afterwards; the guest does it in the opposite order; both with a full
 *   barrier in between. So one of the two sees the other, and no command is forgotten.
 * - A doorbell page that the guest writes as memory: nobody tells us, so we look.
 *
 * Polling. When a queue runs dry, the worker may look again for a short time, at the end of each
 * turn of its loop. The time adapts to the guest: it grows when a doorbell write comes soon after
 * we went to sleep (a little more patience would have spared the exit), and shrinks to nothing when
 * looking was in vain. With a doorbell page, a timer looks after that: it slows down while there is
 * nothing to do.
 */
#include <string.h>

#include "device/nvme/nvme_int.h"

/* The window of looking without a pause. */
#define WINDOW_MIN_NS INT64_C(4000)
#define WINDOW_MAX_NS INT64_C(50000)
/* The timer of a doorbell page: while there is work, without, and after SLEEP_AFTER_NS without. */
#define INTERVAL_MIN_NS   INT64_C(50000)
#define INTERVAL_MAX_NS   INT64_C(1000000)
#define INTERVAL_SLEEP_NS INT64_C(5000000)
#define SLEEP_AFTER_NS    INT64_C(2000000000)

/* ---- values ---- */

/* The value of a doorbell, or of its shadow; false when that is not in guest memory. */
static bool doorbell_value(struct nvme_worker *w, unsigned index, uint64_t shadow, uint32_t *out)
{
    const uint32_t *slot;

    if (shadow == 0) {
        *out = atomic_load_explicit(nvme_db(w->ctrl, index), memory_order_acquire) & 0xffff;
        return true;
    }
    slot = qv_guest_view_ptr(w->view, shadow, sizeof(*slot), false);
    if (slot == NULL) {
        nvme_fatal(w->ctrl, "the shadow doorbells are not in guest memory");
        return false;
    }
    *out = GUINT32_FROM_LE(__atomic_load_n(slot, __ATOMIC_ACQUIRE)) & 0xffff;
    return true;
}

static void refuse(struct nvme_ctrl *c, uint32_t *refused, uint32_t value, unsigned qid)
{
    if (*refused != value) {
        *refused = value;
        qv_log_limited(&c->log_limit, QV_LOG_WARN,
                       "%s: queue %u: doorbell value %u is not possible", c->name, qid, value);
        nvme_event_post(c, NVME_EVENT_ERROR, NVME_EVENT_ERROR_DOORBELL_VALUE,
                        NVME_LOG_SUPPORTED_ERROR);
    }
}

uint32_t nvme_sq_tail(struct nvme_sq *sq)
{
    uint32_t value;

    if (!doorbell_value(sq->worker, 2u * sq->id, sq->shadow, &value)) {
        return sq->head;
    }
    if (value >= sq->size) {
        refuse(sq->ctrl, &sq->refused, value, sq->id);
        return sq->head;
    }
    return value;
}

uint32_t nvme_cq_head(struct nvme_cq *cq)
{
    uint32_t value;

    if (!doorbell_value(cq->worker, 2u * cq->id + 1, cq->shadow, &value)) {
        return cq->head;
    }
    if (value < cq->size) {
        uint32_t moved = value >= cq->head ? value - cq->head : value + cq->size - cq->head;
        uint32_t out = cq->tail >= cq->head ? cq->tail - cq->head : cq->tail + cq->size - cq->head;
        if (moved <= out) {
            return value;
        }
    }
    refuse(cq->ctrl, &cq->refused, value, cq->id);
    return cq->head;
}

/* ---- shadow doorbells ---- */

static void store(struct nvme_worker *w, uint64_t gpa, uint32_t value)
{
    uint32_t *slot = qv_guest_view_ptr(w->view, gpa, sizeof(*slot), true);

    if (slot == NULL) {
        nvme_fatal(w->ctrl, "the shadow doorbells are not in guest memory");
        return;
    }
    __atomic_store_n(slot, GUINT32_TO_LE(value), __ATOMIC_RELEASE);
    if (w->log != NULL) {
        qv_dirty_log_mark(w->log, gpa, sizeof(*slot));
    }
}

void nvme_sq_arm(struct nvme_sq *sq)
{
    if (sq->shadow != 0) {
        store(sq->worker, sq->event, sq->head);
        atomic_thread_fence(memory_order_seq_cst);
    }
}

void nvme_cq_arm(struct nvme_cq *cq)
{
    if (cq->shadow != 0) {
        store(cq->worker, cq->event, cq->head);
        atomic_thread_fence(memory_order_seq_cst);
    }
}

/* The admin queue has none: drivers ring its register. */
void nvme_sq_shadow(struct nvme_sq *sq, uint64_t shadows, uint64_t events, bool fresh)
{
    sq->shadow = sq->event = 0;
    if (shadows != 0 && sq->id != 0) {
        sq->shadow = shadows + UINT64_C(8) * sq->id;
        sq->event = events + UINT64_C(8) * sq->id;
        if (fresh) {
            store(sq->worker, sq->shadow, atomic_load(nvme_db(sq->ctrl, 2u * sq->id)));
        }
        nvme_sq_run(sq); /* it will be armed */
    }
}

void nvme_cq_shadow(struct nvme_cq *cq, uint64_t shadows, uint64_t events, bool fresh)
{
    cq->shadow = cq->event = 0;
    if (shadows != 0 && cq->id != 0) {
        cq->shadow = shadows + UINT64_C(8) * cq->id + 4;
        cq->event = events + UINT64_C(8) * cq->id + 4;
        if (fresh) {
            store(cq->worker, cq->shadow, atomic_load(nvme_db(cq->ctrl, 2u * cq->id + 1)));
        }
        if (atomic_load(&cq->wants_kick)) {
            nvme_cq_arm(cq);
            nvme_cq_drain(cq);
        }
    }
}

/* ---- polling ---- */

static bool may_poll(const struct nvme_worker *w)
{
    const struct nvme_shared *s = &w->ctrl->shared;

    return w->sqs != NULL && atomic_load(&s->dma) && !atomic_load(&s->fatal) &&
           !atomic_load(&s->paused);
}

static bool look_at_cqs(struct nvme_worker *w)
{
    bool found = false;

    for (struct nvme_cq *cq = w->cqs; cq != NULL; cq = cq->next) {
        if (atomic_load(&cq->wants_kick) && nvme_cq_head(cq) != cq->head) {
            nvme_cq_drain(cq);
            found = true;
        }
    }
    return found;
}

/* Runs queues that have new commands; whether there was one. */
static bool look(struct nvme_worker *w)
{
    bool found = w->ctrl->db_page && look_at_cqs(w);

    for (struct nvme_sq *sq = w->sqs; sq != NULL; sq = sq->next) {
        /* A starved queue is looked at when a command has ended. */
        if (sq->state == NVME_Q_LIVE && !sq->starved && (w->ctrl->db_page || sq->shadow != 0) &&
            nvme_sq_tail(sq) != sq->head) {
            nvme_sq_run(sq);
            found = true;
        }
    }
    return found;
}

/* Asks all queues for doorbell writes; true when a command has come meanwhile. */
static bool arm_all(struct nvme_worker *w)
{
    bool found = false;

    for (struct nvme_sq *sq = w->sqs; sq != NULL; sq = sq->next) {
        if (sq->state == NVME_Q_LIVE && sq->shadow != 0) {
            nvme_sq_arm(sq);
            found = found || (nvme_sq_tail(sq) != sq->head && !sq->starved);
        }
    }
    return found;
}

static void grow(struct nvme_worker *w)
{
    w->poll_window_ns = CLAMP(w->poll_window_ns * 2, WINDOW_MIN_NS * 2, WINDOW_MAX_NS);
}

static void again(struct nvme_worker *w)
{
    w->poll_queued = true;
    qv_thread_defer(&w->poll_work);
}

static void sleep_now(struct nvme_worker *w, int64_t now)
{
    w->slept_ns = now;
    if (!w->ctrl->db_page) {
        return;
    }
    if (now - w->last_work_ns > SLEEP_AFTER_NS) {
        w->poll_interval_ns = INTERVAL_SLEEP_NS;
    } else {
        w->poll_interval_ns = MIN(w->poll_interval_ns * 2, INTERVAL_MAX_NS);
    }
    qv_timer_arm(&w->poll_timer, w->poll_interval_ns);
}

static void poll_work(struct qv_work *work)
{
    struct nvme_worker *w = qv_container_of(work, struct nvme_worker, poll_work);
    int64_t now;

    w->poll_queued = false;
    if (!may_poll(w)) {
        return;
    }
    now = qv_now_ns();
    if (look(w)) {
        w->last_work_ns = now;
        w->poll_interval_ns = INTERVAL_MIN_NS;
        w->poll_end_ns = now + w->poll_window_ns;
        if (!w->poll_queued) {
            again(w);
        }
        return;
    }
    if (now < w->poll_end_ns) {
        again(w);
        return;
    }
    /* In vain. */
    w->poll_window_ns = w->poll_window_ns / 2 < WINDOW_MIN_NS ? 0 : w->poll_window_ns / 2;
    if (arm_all(w)) {
        w->poll_end_ns = now;
        again(w);
        return;
    }
    sleep_now(w, now);
}

/* The end of nvme_poll_after. */
static void look_once(struct nvme_worker *w)
{
    (void)look(w);
    if (!w->poll_timer.armed && !w->poll_queued && arm_all(w)) {
        again(w);
    }
}

static void poll_timer(struct qv_timer *timer)
{
    struct nvme_worker *w = qv_container_of(timer, struct nvme_worker, poll_timer);
    int64_t now = qv_now_ns();

    if (!may_poll(w) || w->poll_queued) {
        return;
    }
    if (!w->ctrl->db_page) {
        look_once(w);
        return;
    }
    if (!look(w)) {
        sleep_now(w, now);
        return;
    }
    if (w->poll_interval_ns == INTERVAL_MIN_NS) {
        grow(w); /* it came at once */
    }
    w->last_work_ns = now;
    w->poll_interval_ns = INTERVAL_MIN_NS;
    w->poll_end_ns = now + w->poll_window_ns;
    if (!w->poll_queued) {
        again(w);
    }
}

bool nvme_poll_after(struct nvme_worker *w, int64_t ns)
{
    if (ns == 0 || w->ctrl->db_page) {
        return false;
    }
    if (!w->poll_timer.armed) {
        qv_timer_arm(&w->poll_timer, ns);
    }
    return true;
}

void nvme_poll_idle(struct nvme_worker *w)
{
    if (w->poll_queued || (!w->ctrl->db_page && w->poll_window_ns == 0)) {
        return;
    }
    w->poll_end_ns = qv_now_ns() + w->poll_window_ns;
    again(w);
}

void nvme_poll_kicked(struct nvme_worker *w)
{
    int64_t now;

    if (w->slept_ns == 0) {
        return;
    }
    now = qv_now_ns();
    if (now - w->slept_ns < WINDOW_MAX_NS) {
        grow(w);
    }
    w->slept_ns = 0;
    w->last_work_ns = now;
}

void nvme_poll_stop(struct nvme_worker *w)
{
    qv_timer_cancel(&w->poll_timer);
    w->poll_window_ns = 0;
    w->slept_ns = 0;
}

void nvme_poll_init(struct nvme_worker *w)
{
    w->poll_work.fn = poll_work;
    w->poll_timer.fn = poll_timer;
    w->poll_interval_ns = INTERVAL_MIN_NS;
}
