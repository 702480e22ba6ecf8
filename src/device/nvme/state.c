/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The controller's state as bytes, for migration: taken while quiesced, so that nothing is in
 * flight but Asynchronous Event Requests, commands that were taken back from a stopped disk, and
 * completions for which there was no room. Namespaces are not part of it: the other side has been
 * given the same disks.
 *
 * Order: little-endian, fields one after the other as in put_* and get_*.
 * Trust: what is loaded is not trusted. It is read and checked as a whole before any of it is used.
 */
#include <string.h>

#include "base/error.h"
#include "base/maths.h"
#include "device/nvme/nvme_int.h"

#define STATE_MAGIC   0x534d564eu /* "NVMS" */
#define STATE_VERSION 2u

#define POWER_ON_NS_MAX (UINT64_C(100) * 366 * 24 * 3600 * 1000000000)

struct reader {
    const uint8_t *at;
    size_t left;
    bool bad; /* too short */
};

static uint64_t get(struct reader *r, unsigned size)
{
    qv_le64 le = {{0}};

    if (r->left < size) {
        r->bad = true;
        return 0;
    }
    memcpy(le.b, r->at, size);
    r->at += size;
    r->left -= size;
    return qv_le64_get(le);
}

static void put(GByteArray *out, uint64_t value, unsigned size)
{
    qv_le64 le = qv_le64_make(value);

    g_byte_array_append(out, le.b, size);
}

/* ---- what is saved ---- */

struct saved_queue {
    bool cq, sq;
    uint64_t cq_base, sq_base;
    uint32_t cq_size, cq_head, cq_tail, sq_size, sq_head;
    uint32_t db_head, db_tail;
    uint16_t vector, cqid;
    bool phase, ien;
    GArray *kept;
};

struct saved {
    uint32_t queues, cc, csts, aqa, intms;
    uint64_t asq, acq;
    bool enabled, fatal, has_cache, has_discard, temp_warned;
    struct nvme_features feat;
    uint64_t no_coalesce[2];
    uint64_t dbbuf_shadow, dbbuf_event;
    uint32_t aer_count;
    uint16_t aer[NVME_AERL + 1];
    uint32_t event_pending[3];
    bool event_masked[3];
    uint64_t changed[NVME_NSIDS / 64 + 1];
    struct nvme_totals totals;
    uint64_t power_cycles, power_on_ns, error_count;
    struct nvme_error_entry errors[NVME_ELPE + 1];
    struct saved_queue q[NVME_QIDS];
};

static void saved_clear(struct saved *s)
{
    for (unsigned i = 0; i < NVME_QIDS; i++) {
        if (s->q[i].kept != NULL) {
            g_array_unref(s->q[i].kept);
            s->q[i].kept = NULL;
        }
    }
}

static void saved_free(struct saved **s)
{
    saved_clear(*s);
    g_free(*s);
}

/* ---- saving ---- */

static void put_common(const struct nvme_ctrl *c, GByteArray *out)
{
    const struct nvme_features *f = &c->feat;
    uint64_t since_ms = (uint64_t)(qv_now_ns() - f->timestamp_set_ns) / 1000000;

    put(out, STATE_MAGIC, 4);
    put(out, STATE_VERSION, 4);
    put(out, c->queues, 4);
    put(out, c->cc, 4);
    put(out, c->csts, 4);
    put(out, c->aqa, 4);
    put(out, c->shared.intms, 4);
    put(out, c->asq, 8);
    put(out, c->acq, 8);
    put(out, c->state == NVME_ENABLED, 1);
    put(out, atomic_load(&c->shared.fatal), 1);
    put(out, c->has_cache, 1);
    put(out, c->has_discard, 1);
    put(out, c->temp_warned, 1);
    put(out, f->arbitration, 4);
    put(out, f->power, 4);
    put(out, f->error_recovery, 4);
    put(out, f->coalescing, 4);
    put(out, f->atomicity, 4);
    put(out, f->events, 4);
    put(out, f->over_temp, 2);
    put(out, f->under_temp, 2);
    put(out, f->write_cache, 1);
    put(out, f->timestamp_origin, 1);
    put(out, f->timestamp_ms + since_ms, 8);
    put(out, atomic_load(&c->shared.no_coalesce[0]), 8);
    put(out, atomic_load(&c->shared.no_coalesce[1]), 8);
    put(out, c->dbbuf_shadow, 8);
    put(out, c->dbbuf_event, 8);
}

static void put_logs(struct nvme_ctrl *c, GByteArray *out)
{
    struct nvme_totals t = nvme_totals(c);

    put(out, t.read_bytes, 8);
    put(out, t.write_bytes, 8);
    put(out, t.reads, 8);
    put(out, t.writes, 8);
    put(out, t.errors, 8);
    put(out, c->power_cycles, 8);
    put(out, (uint64_t)(qv_now_ns() - c->born_ns), 8);
    put(out, c->error_count, 8);
    for (unsigned i = 0; i < G_N_ELEMENTS(c->errors); i++) {
        const struct nvme_error_entry *e = &c->errors[i];

        put(out, e->count, 8);
        put(out, e->lba, 8);
        put(out, e->nsid, 4);
        put(out, e->sqid, 2);
        put(out, e->cid, 2);
        put(out, e->status, 2);
        put(out, e->location, 2);
    }
}

static void put_events(const struct nvme_ctrl *c, GByteArray *out)
{
    put(out, c->aer_count, 4);
    for (unsigned i = 0; i < G_N_ELEMENTS(c->aer); i++) {
        put(out, c->aer[i], 2);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(c->event_pending); i++) {
        put(out, c->event_pending[i], 4);
        put(out, c->event_masked[i], 1);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(c->changed); i++) {
        put(out, c->changed[i], 8);
    }
}

static void put_kept(const struct nvme_req *list, const struct nvme_sq *sq, bool completed,
                     GByteArray *out)
{
    for (const struct nvme_req *req = list; req != NULL; req = req->next) {
        if (req->sq == sq) {
            g_byte_array_append(out, (const uint8_t *)&req->sqe, sizeof(req->sqe));
            put(out, completed, 1);
            put(out, req->status, 2);
            put(out, req->dw0, 4);
        }
    }
}

static void put_queue(const struct nvme_ctrl *c, unsigned qid, GByteArray *out)
{
    const struct nvme_sq *sq = &c->sqs[qid];
    const struct nvme_cq *cq = &c->cqs[qid];

    put(out, c->q[qid].cq, 1);
    put(out, c->q[qid].sq, 1);
    if (c->q[qid].cq) {
        put(out, cq->base, 8);
        put(out, cq->size, 4);
        put(out, cq->head, 4);
        put(out, cq->tail, 4);
        put(out, atomic_load(nvme_db(c, 2 * qid + 1)), 4);
        put(out, cq->vector, 2);
        put(out, cq->phase, 1);
        put(out, cq->ien, 1);
    }
    if (c->q[qid].sq) {
        put(out, sq->base, 8);
        put(out, sq->size, 4);
        put(out, sq->head, 4);
        put(out, atomic_load(nvme_db(c, 2 * qid)), 4);
        put(out, c->q[qid].cqid, 2);
        put(out, sq->taken, 4);
        put_kept(sq->cq->waiting, sq, true, out);
        put_kept(sq->parked, sq, false, out);
    }
}

void nvme_save(struct qv_pci_function *fn, GByteArray *out)
{
    struct nvme_ctrl *c = nvme_of(fn);

    put_common(c, out);
    put_events(c, out);
    put_logs(c, out);
    for (unsigned i = 0; i <= c->queues; i++) {
        put_queue(c, i, out);
    }
}

/* ---- loading ---- */

static void get_common(struct reader *r, struct saved *s)
{
    struct nvme_features *f = &s->feat;

    s->queues = (uint32_t)get(r, 4);
    s->cc = (uint32_t)get(r, 4);
    s->csts = (uint32_t)get(r, 4);
    s->aqa = (uint32_t)get(r, 4);
    s->intms = (uint32_t)get(r, 4);
    s->asq = get(r, 8);
    s->acq = get(r, 8);
    s->enabled = get(r, 1);
    s->fatal = get(r, 1);
    s->has_cache = get(r, 1);
    s->has_discard = get(r, 1);
    s->temp_warned = get(r, 1);
    f->arbitration = (uint32_t)get(r, 4);
    f->power = (uint32_t)get(r, 4);
    f->error_recovery = (uint32_t)get(r, 4);
    f->coalescing = (uint32_t)get(r, 4) & 0xffff;
    f->atomicity = (uint32_t)get(r, 4);
    f->events = (uint32_t)get(r, 4) & NVME_AEC_WRITABLE;
    f->over_temp = (uint16_t)get(r, 2);
    f->under_temp = (uint16_t)get(r, 2);
    f->write_cache = get(r, 1);
    f->timestamp_origin = (uint8_t)get(r, 1) & 1;
    f->timestamp_ms = get(r, 8);
    f->timestamp_set_ns = qv_now_ns();
    s->no_coalesce[0] = get(r, 8);
    s->no_coalesce[1] = get(r, 8);
    s->dbbuf_shadow = get(r, 8);
    s->dbbuf_event = get(r, 8);
}

static void get_events(struct reader *r, struct saved *s)
{
    s->aer_count = (uint32_t)get(r, 4);
    for (unsigned i = 0; i < G_N_ELEMENTS(s->aer); i++) {
        s->aer[i] = (uint16_t)get(r, 2);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(s->event_pending); i++) {
        s->event_pending[i] = (uint32_t)get(r, 4);
        s->event_masked[i] = get(r, 1);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(s->changed); i++) {
        s->changed[i] = get(r, 8);
    }
}

static void get_logs(struct reader *r, struct saved *s)
{
    s->totals.read_bytes = get(r, 8);
    s->totals.write_bytes = get(r, 8);
    s->totals.reads = get(r, 8);
    s->totals.writes = get(r, 8);
    s->totals.errors = get(r, 8);
    s->power_cycles = get(r, 8);
    s->power_on_ns = get(r, 8);
    s->error_count = get(r, 8);
    for (unsigned i = 0; i < G_N_ELEMENTS(s->errors); i++) {
        struct nvme_error_entry *e = &s->errors[i];

        e->count = get(r, 8);
        e->lba = get(r, 8);
        e->nsid = (uint32_t)get(r, 4);
        e->sqid = (uint16_t)get(r, 2);
        e->cid = (uint16_t)get(r, 2);
        e->status = (uint16_t)get(r, 2) & 0x7fff;
        e->location = (uint16_t)get(r, 2);
    }
}

/* What was taken from a queue and has not been completed. */
static void get_kept(struct reader *r, struct saved_queue *q)
{
    uint32_t count = (uint32_t)get(r, 4);

    if (count > NVME_DEPTH_MAX) {
        r->bad = true;
        return;
    }
    q->kept = g_array_new(FALSE, TRUE, sizeof(struct nvme_kept));
    for (uint32_t i = 0; i < count && !r->bad; i++) {
        struct nvme_kept k = {0};

        if (r->left < sizeof(k.sqe)) {
            r->bad = true;
            return;
        }
        memcpy(&k.sqe, r->at, sizeof(k.sqe));
        r->at += sizeof(k.sqe);
        r->left -= sizeof(k.sqe);
        k.completed = get(r, 1);
        k.status = (uint16_t)get(r, 2) & 0x7fff;
        k.dw0 = (uint32_t)get(r, 4);
        g_array_append_val(q->kept, k);
    }
}

static void get_queue(struct reader *r, struct saved_queue *q)
{
    q->cq = get(r, 1);
    q->sq = get(r, 1);
    if (q->cq) {
        q->cq_base = get(r, 8);
        q->cq_size = (uint32_t)get(r, 4);
        q->cq_head = (uint32_t)get(r, 4);
        q->cq_tail = (uint32_t)get(r, 4);
        q->db_head = (uint32_t)get(r, 4) & 0xffff;
        q->vector = (uint16_t)get(r, 2);
        q->phase = get(r, 1);
        q->ien = get(r, 1);
    }
    if (q->sq) {
        q->sq_base = get(r, 8);
        q->sq_size = (uint32_t)get(r, 4);
        q->sq_head = (uint32_t)get(r, 4);
        q->db_tail = (uint32_t)get(r, 4) & 0xffff;
        q->cqid = (uint16_t)get(r, 2);
        get_kept(r, q);
    }
}

static bool queue_ok(const struct nvme_ctrl *c, const struct saved *s, unsigned qid)
{
    const struct saved_queue *q = &s->q[qid];
    uint32_t max = qid == 0 ? 4096 : NVME_QUEUE_ENTRIES;

    if (q->cq && (q->cq_size < 2 || q->cq_size > max || q->cq_head >= q->cq_size ||
                  q->cq_tail >= q->cq_size || q->vector > c->queues || q->cq_base % 16 != 0)) {
        return false;
    }
    if (q->sq &&
        (q->sq_size < 2 || q->sq_size > max || q->sq_head >= q->sq_size || q->cqid > c->queues ||
         !s->q[q->cqid].cq || (qid == 0) != (q->cqid == 0) || q->sq_base % 64 != 0)) {
        return false;
    }
    return true;
}

static const char *check(const struct nvme_ctrl *c, const struct saved *s)
{
    if (s->queues != c->queues) {
        return "the number of queues differs";
    }
    if (s->aer_count > G_N_ELEMENTS(s->aer) || NVME_CC_MPS(s->cc) > NVME_MPS_MAX) {
        return "impossible values";
    }
    if (s->dbbuf_shadow % 4096 != 0 || s->dbbuf_event % 4096 != 0 ||
        (s->dbbuf_shadow == 0) != (s->dbbuf_event == 0)) {
        return "impossible shadow doorbells";
    }
    for (unsigned i = 0; i <= c->queues; i++) {
        if (!queue_ok(c, s, i)) {
            return "an impossible queue";
        }
        if (!s->enabled && (s->q[i].cq || s->q[i].sq)) {
            return "queues of a controller that is off";
        }
    }
    if (s->enabled && (!s->q[0].cq || !s->q[0].sq || !(s->cc & NVME_CC_EN))) {
        return "no admin queue";
    }
    return NULL;
}

/* SMART goes on from where it was; what the disks have counted here so far is not counted twice. */
static void apply_totals(struct nvme_ctrl *c, const struct saved *s)
{
    struct nvme_totals here;

    c->gone = (struct nvme_totals){0};
    here = nvme_totals(c);
    c->gone.read_bytes = s->totals.read_bytes - here.read_bytes;
    c->gone.write_bytes = s->totals.write_bytes - here.write_bytes;
    c->gone.reads = s->totals.reads - here.reads;
    c->gone.writes = s->totals.writes - here.writes;
    c->gone.errors = s->totals.errors - here.errors;
    c->power_cycles = s->power_cycles;
    /* Of 100 years at most: what is loaded is not trusted. */
    c->born_ns = qv_now_ns() - (int64_t)qv_min_u64(s->power_on_ns, POWER_ON_NS_MAX);
}

static void apply_common(struct nvme_ctrl *c, const struct saved *s)
{
    c->cc = s->cc & NVME_CC_WRITABLE;
    c->csts = s->csts & (NVME_CSTS_RDY | 3u << NVME_CSTS_SHST_SHIFT);
    c->aqa = s->aqa & 0x0fff0fff;
    c->asq = s->asq & ~UINT64_C(0xfff);
    c->acq = s->acq & ~UINT64_C(0xfff);
    c->has_cache = s->has_cache;
    c->has_discard = s->has_discard;
    c->used = true;
    c->feat = s->feat;
    c->feat.write_cache = s->feat.write_cache && s->has_cache;
    nvme_features_publish(c);
    atomic_store(&c->shared.no_coalesce[0], s->no_coalesce[0]);
    atomic_store(&c->shared.no_coalesce[1], s->no_coalesce[1]);
    atomic_store(&c->shared.fatal, s->fatal);
    atomic_store(&c->shared.page_shift, 12 + NVME_CC_MPS(s->cc));
    pthread_mutex_lock(&c->shared.lock);
    c->shared.intms = s->intms;
    c->error_count = s->error_count;
    memcpy(c->errors, s->errors, sizeof(c->errors));
    pthread_mutex_unlock(&c->shared.lock);
    c->dbbuf_shadow = s->dbbuf_shadow;
    c->dbbuf_event = s->dbbuf_event;
    c->aer_count = s->aer_count;
    memcpy(c->aer, s->aer, sizeof(c->aer));
    memcpy(c->event_pending, s->event_pending, sizeof(c->event_pending));
    memcpy(c->event_masked, s->event_masked, sizeof(c->event_masked));
    memcpy(c->changed, s->changed, sizeof(c->changed));
    c->changed[NVME_NSIDS / 64] &= (UINT64_C(1) << NVME_NSIDS % 64) - 1;
    c->temp_warned = s->temp_warned;
    apply_totals(c, s);
    c->state = s->enabled ? NVME_ENABLED : NVME_DISABLED;
}

static void load_done(struct nvme_group *g)
{
}

static void apply_cq(struct nvme_group *g, const struct saved_queue *q, unsigned qid)
{
    struct nvme_ctrl *c = g->ctrl;
    struct nvme_order *o = nvme_order_new(g, c->worker_of[qid], NVME_ORDER_CQ_ADD);

    c->q[qid].cq = true;
    c->q[qid].cq_size = q->cq_size;
    atomic_store(nvme_db(c, 2 * qid + 1), q->db_head);
    o->qid = (uint16_t)qid;
    o->restored = true;
    o->base = q->cq_base;
    o->size = q->cq_size;
    o->head = q->cq_head;
    o->tail = q->cq_tail;
    o->vector = q->vector;
    o->phase = q->phase;
    o->ien = q->ien;
    o->shadow = c->dbbuf_shadow;
    o->event = c->dbbuf_event;
    nvme_order_give(o);
}

static void apply_sq(struct nvme_group *g, struct saved_queue *q, unsigned qid)
{
    struct nvme_ctrl *c = g->ctrl;
    struct nvme_order *o = nvme_order_new(g, c->worker_of[q->cqid], NVME_ORDER_SQ_ADD);

    c->q[qid].sq = true;
    c->q[qid].sq_size = q->sq_size;
    c->q[qid].cqid = q->cqid;
    c->q[q->cqid].users++;
    atomic_store(nvme_db(c, 2 * qid), q->db_tail);
    o->qid = (uint16_t)qid;
    o->cqid = q->cqid;
    o->restored = true;
    o->base = q->sq_base;
    o->size = q->sq_size;
    o->head = q->sq_head;
    o->kept = g_steal_pointer(&q->kept);
    o->shadow = c->dbbuf_shadow;
    o->event = c->dbbuf_event;
    nvme_order_give(o);
}

static void apply_queues(struct nvme_ctrl *c, struct saved *s)
{
    struct nvme_group *g = nvme_group_new(c, load_done);

    memset(c->q, 0, sizeof(c->q));
    for (unsigned i = 0; i <= c->queues; i++) {
        if (s->q[i].cq) {
            apply_cq(g, &s->q[i], i);
        }
    }
    for (unsigned i = 0; i <= c->queues; i++) {
        if (s->q[i].sq) {
            apply_sq(g, &s->q[i], i);
        }
    }
    if (g->left == 0) { /* a controller that is off */
        c->groups_out--;
        g_free(g);
    }
}

bool nvme_load(struct qv_pci_function *fn, const uint8_t *bytes, size_t len, GError **error)
{
    struct nvme_ctrl *c = nvme_of(fn);
    QV_CLEANUP(saved_free) struct saved *s = g_new0(struct saved, 1);
    struct reader r = {.at = bytes, .left = len};
    const char *wrong;

    if (c->state != NVME_DISABLED || c->resetting) {
        return qv_fail(error, QV_ERROR_FAILED, "%s: state is loaded into a controller that runs",
                       c->name);
    }
    if (get(&r, 4) != STATE_MAGIC || get(&r, 4) != STATE_VERSION) {
        return qv_fail(error, QV_ERROR_CORRUPT, "%s: the state is not of an NVMe controller",
                       c->name);
    }
    get_common(&r, s);
    get_events(&r, s);
    get_logs(&r, s);
    for (unsigned i = 0; i <= c->queues && !r.bad; i++) {
        get_queue(&r, &s->q[i]);
    }
    if (r.bad || r.left > 0) {
        return qv_fail(error, QV_ERROR_CORRUPT, "%s: the state has the wrong length", c->name);
    }
    wrong = check(c, s);
    if (wrong != NULL) {
        return qv_fail(error, QV_ERROR_CORRUPT, "%s: the state is not valid: %s", c->name, wrong);
    }
    atomic_store(&c->shared.paused, true); /* until resume */
    apply_common(c, s);
    apply_queues(c, s);
    return true;
}
