/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Asynchronous events and the error log. An event of a type that was reported is held back until
 * the guest has read the log page that goes with it; one that finds no Asynchronous Event Request
 * waits for the next.
 * Source: NVMe 1.4, 5.2 "Asynchronous Event Request command", 5.14.1.1.
 */
#include <string.h>

#include "device/nvme/nvme_int.h"

#define PENDING    (1u << 31)
#define POSTED_MAX 64u /* events on their way to the home thread */

/* Completes the AER with @cid. */
static void aer_complete(struct nvme_ctrl *c, uint16_t cid, unsigned status, uint32_t dw0)
{
    struct nvme_req *req = nvme_req_get(c->workers[0]);
    struct nvme_sq *sq = &c->sqs[0];

    req->sq = sq;
    memset(&req->sqe, 0, sizeof(req->sqe));
    req->sqe.opcode = NVME_ADM_AER;
    req->sqe.cid = qv_le16_make(cid);
    sq->taken++;
    sq->active++;
    c->workers[0]->in_flight++;
    nvme_complete(req, status, dw0);
}

void nvme_events_deliver(struct nvme_ctrl *c)
{
    for (unsigned type = 0; type < G_N_ELEMENTS(c->event_pending); type++) {
        uint32_t event = c->event_pending[type];

        if (event == 0 || c->event_masked[type] || c->aer_count == 0 || c->state != NVME_ENABLED ||
            atomic_load(&c->shared.paused)) {
            continue;
        }
        c->event_pending[type] = 0;
        c->event_masked[type] = true;
        c->aer_count--;
        aer_complete(c, c->aer[c->aer_count], NVME_OK, event & ~PENDING);
    }
}

void nvme_aer(struct nvme_req *req)
{
    struct nvme_ctrl *c = req->worker->ctrl;

    if (c->aer_count == G_N_ELEMENTS(c->aer)) {
        nvme_end(req, NVME_SC_AER_LIMIT | NVME_DNR);
        return;
    }
    c->aer[c->aer_count++] = qv_le16_get(req->sqe.cid);
    /* It lasts: what it needs is in aer[]; the request ends without a completion. */
    req->sq->active--;
    req->sq->taken--;
    req->worker->in_flight--;
    nvme_req_put(req);
    nvme_events_deliver(c);
}

bool nvme_aer_abort(struct nvme_ctrl *c, uint16_t cid)
{
    for (unsigned i = 0; i < c->aer_count; i++) {
        if (c->aer[i] == cid) {
            c->aer[i] = c->aer[--c->aer_count];
            aer_complete(c, cid, NVME_SC_ABORT_REQUESTED | NVME_DNR, 0);
            return true;
        }
    }
    return false;
}

void nvme_event(struct nvme_ctrl *c, enum nvme_event_type type, unsigned info, enum nvme_log log)
{
    if (c->state != NVME_ENABLED) {
        return;
    }
    c->event_pending[type] = PENDING | (uint32_t)type | info << 8 | (uint32_t)log << 16;
    nvme_events_deliver(c);
}

struct posted_event {
    struct qv_work work;
    enum nvme_event_type type;
    unsigned info;
    enum nvme_log log;
    struct nvme_ctrl *ctrl;
};

static void run_posted(struct qv_work *work)
{
    struct posted_event *e = qv_container_of(work, struct posted_event, work);

    nvme_event(e->ctrl, e->type, e->info, e->log);
    atomic_fetch_sub(&e->ctrl->events_posted, 1);
    nvme_ctrl_progress(e->ctrl);
    g_free(e);
}

void nvme_event_post(struct nvme_ctrl *c, enum nvme_event_type type, unsigned info,
                     enum nvme_log log)
{
    struct posted_event *e;

    if (atomic_load(&c->events_posted) >= POSTED_MAX) {
        return; /* a guest that makes more of them than we can tell it of */
    }
    e = g_new0(struct posted_event, 1);
    e->work.fn = run_posted;
    e->type = type;
    e->info = info;
    e->log = log;
    e->ctrl = c;
    atomic_fetch_add(&c->events_posted, 1);
    qv_thread_post(c->home, &e->work);
}

void nvme_events_read(struct nvme_ctrl *c, enum nvme_event_type type)
{
    c->event_masked[type] = false;
    nvme_events_deliver(c);
}

void nvme_events_reset(struct nvme_ctrl *c)
{
    c->aer_count = 0;
    memset(c->event_pending, 0, sizeof(c->event_pending));
    memset(c->event_masked, 0, sizeof(c->event_masked));
    memset(c->changed, 0, sizeof(c->changed));
    c->temp_warned = false;
}

void nvme_ns_changed(struct nvme_ctrl *c, uint32_t nsid)
{
    if (c->state != NVME_ENABLED) {
        return; /* a driver that starts reads all of it */
    }
    c->changed[nsid / 64] |= UINT64_C(1) << nsid % 64;
    if (c->feat.events & NVME_AEC_NS_CHANGED) {
        nvme_event(c, NVME_EVENT_NOTICE, NVME_EVENT_NOTICE_NS_CHANGED, NVME_LOG_CHANGED_NS);
    }
}

/* ---- temperature: 5.14.1.2, 5.21.1.4 ---- */

uint8_t nvme_critical_warning(const struct nvme_ctrl *c)
{
    return NVME_TEMP >= c->feat.over_temp || NVME_TEMP <= c->feat.under_temp ? 1u << 1 : 0;
}

void nvme_temperature_check(struct nvme_ctrl *c)
{
    bool warn = nvme_critical_warning(c) != 0;

    if (warn && !c->temp_warned && (c->feat.events & (1u << 1))) {
        nvme_event(c, NVME_EVENT_SMART, NVME_EVENT_SMART_TEMPERATURE, NVME_LOG_SMART);
    }
    c->temp_warned = warn;
}

/* ---- the error log ---- */

void nvme_error_note(struct nvme_req *req, unsigned status)
{
    struct nvme_ctrl *c = req->worker->ctrl;
    struct nvme_error_entry *e;

    /* What is no error of a command: it was taken back. */
    if (req->sq == NULL || (status & 0x7ff) == NVME_SC_ABORT_SQ_DELETED) {
        return;
    }
    pthread_mutex_lock(&c->shared.lock);
    e = &c->errors[c->error_count % G_N_ELEMENTS(c->errors)];
    e->count = ++c->error_count;
    e->sqid = req->sq->id;
    e->cid = qv_le16_get(req->sqe.cid);
    e->status = (uint16_t)status;
    e->location = 0xffff; /* not of one byte of the command */
    e->nsid = qv_le32_get(req->sqe.nsid);
    e->lba = req->sq->id == 0 ? 0 : nvme_sqe_lba(req);
    pthread_mutex_unlock(&c->shared.lock);
}
