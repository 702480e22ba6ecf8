/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Admin commands: dispatch, queues, Abort, Doorbell Buffer Config.
 * Source: NVMe 1.4, 5 "Admin Command Set".
 */
#include <string.h>

#include "base/maths.h"
#include "device/nvme/nvme_int.h"

static struct nvme_ctrl *ctrl_of(const struct nvme_req *req)
{
    return req->worker->ctrl;
}

/* A group of orders whose end completes @req. */
static struct nvme_group *group_for(struct nvme_req *req, void (*done)(struct nvme_group *group))
{
    struct nvme_group *g = nvme_group_new(ctrl_of(req), done);

    g->req = req;
    return g;
}

static uint16_t qid_of(const struct nvme_req *req)
{
    return (uint16_t)(qv_le32_get(req->sqe.dw10) & 0xffff);
}

/* ---- Create and Delete I/O Completion Queue: 5.3, 5.5 ---- */

static void cq_created(struct nvme_group *g)
{
    g->ctrl->q[qid_of(g->req)].cq_busy = false;
    nvme_complete(g->req, NVME_OK, 0);
}

/* What both kinds of queue have in common; @base and @size are set on success. */
static unsigned check_queue(const struct nvme_req *req, uint64_t *base, uint32_t *size)
{
    const struct nvme_ctrl *c = ctrl_of(req);
    uint64_t page = UINT64_C(1) << atomic_load(&c->shared.page_shift);

    *size = (qv_le32_get(req->sqe.dw10) >> 16) + 1;
    *base = qv_le64_get(req->sqe.prp1);
    if (*size < 2 || *size > NVME_QUEUE_ENTRIES) {
        return NVME_SC_QUEUE_SIZE | NVME_DNR;
    }
    if (!(qv_le32_get(req->sqe.dw11) & NVME_QUEUE_PC)) {
        return NVME_SC_INVALID_FIELD | NVME_DNR; /* CAP.CQR: contiguous only */
    }
    if (*base % page != 0) {
        return NVME_SC_PRP_OFFSET | NVME_DNR;
    }
    return NVME_OK;
}

static unsigned check_cq(const struct nvme_req *req, uint64_t *base, uint32_t *size)
{
    const struct nvme_ctrl *c = ctrl_of(req);
    uint32_t dw11 = qv_le32_get(req->sqe.dw11);
    unsigned qid = qid_of(req);
    unsigned status;

    if (qid == 0 || qid > c->queues || c->q[qid].cq || c->q[qid].cq_busy) {
        return NVME_SC_QID_INVALID | NVME_DNR;
    }
    status = check_queue(req, base, size);
    if (status != NVME_OK) {
        return status;
    }
    if (NVME_CC_IOCQES(c->cc) != 4) {
        return NVME_SC_QUEUE_SIZE | NVME_DNR;
    }
    if (dw11 >> 16 > c->queues ||
        (dw11 >> 16 != 0 && qv_pci_irq_mode(c->fn) == QV_PCI_IRQ_INTX && (dw11 & NVME_CQ_IEN))) {
        return NVME_SC_VECTOR_INVALID | NVME_DNR;
    }
    return NVME_OK;
}

void nvme_create_cq(struct nvme_req *req)
{
    struct nvme_ctrl *c = ctrl_of(req);
    uint32_t dw11 = qv_le32_get(req->sqe.dw11), size;
    uint64_t base;
    unsigned status = check_cq(req, &base, &size), qid = qid_of(req);
    struct nvme_order *o;

    if (status != NVME_OK) {
        nvme_end(req, status);
        return;
    }
    c->q[qid].cq = c->q[qid].cq_busy = true;
    c->q[qid].cq_size = size;
    c->q[qid].users = 0;
    atomic_store(nvme_db(c, 2 * qid + 1), 0);
    o = nvme_order_new(group_for(req, cq_created), c->worker_of[qid], NVME_ORDER_CQ_ADD);
    o->qid = (uint16_t)qid;
    o->size = size;
    o->base = base;
    o->vector = (uint16_t)(dw11 >> 16);
    o->ien = (dw11 & NVME_CQ_IEN) != 0;
    o->shadow = c->dbbuf_shadow;
    o->event = c->dbbuf_event;
    nvme_order_give(o);
}

static void cq_deleted(struct nvme_group *g)
{
    g->ctrl->q[qid_of(g->req)].cq_busy = false;
    nvme_complete(g->req, NVME_OK, 0);
}

void nvme_delete_cq(struct nvme_req *req)
{
    struct nvme_ctrl *c = ctrl_of(req);
    unsigned qid = qid_of(req);
    struct nvme_order *o;

    if (qid == 0 || qid > c->queues || !c->q[qid].cq || c->q[qid].cq_busy) {
        nvme_end(req, NVME_SC_QID_INVALID | NVME_DNR);
        return;
    }
    if (c->q[qid].users > 0) {
        nvme_end(req, NVME_SC_QUEUE_DELETION | NVME_DNR);
        return;
    }
    c->q[qid].cq = false;
    c->q[qid].cq_busy = true;
    o = nvme_order_new(group_for(req, cq_deleted), c->worker_of[qid], NVME_ORDER_CQ_DEL);
    o->qid = (uint16_t)qid;
    nvme_order_give(o);
}

/* ---- Create and Delete I/O Submission Queue: 5.4, 5.6 ---- */

static void sq_created(struct nvme_group *g)
{
    g->ctrl->q[qid_of(g->req)].sq_busy = false;
    nvme_complete(g->req, NVME_OK, 0);
}

static unsigned check_sq(const struct nvme_req *req, uint64_t *base, uint32_t *size)
{
    const struct nvme_ctrl *c = ctrl_of(req);
    unsigned qid = qid_of(req), cqid = qv_le32_get(req->sqe.dw11) >> 16;
    unsigned status;

    if (cqid > c->queues || cqid == 0 || !c->q[cqid].cq || c->q[cqid].cq_busy) {
        return NVME_SC_CQ_INVALID | NVME_DNR;
    }
    if (qid == 0 || qid > c->queues || c->q[qid].sq || c->q[qid].sq_busy) {
        return NVME_SC_QID_INVALID | NVME_DNR;
    }
    status = check_queue(req, base, size);
    if (status != NVME_OK) {
        return status;
    }
    return NVME_CC_IOSQES(c->cc) == 6 ? NVME_OK : NVME_SC_QUEUE_SIZE | NVME_DNR;
}

void nvme_create_sq(struct nvme_req *req)
{
    struct nvme_ctrl *c = ctrl_of(req);
    uint32_t size;
    uint64_t base;
    unsigned status = check_sq(req, &base, &size), qid = qid_of(req);
    unsigned cqid = qv_le32_get(req->sqe.dw11) >> 16;
    struct nvme_order *o;

    if (status != NVME_OK) {
        nvme_end(req, status);
        return;
    }
    c->q[qid].sq = c->q[qid].sq_busy = true;
    c->q[qid].sq_size = size;
    c->q[qid].cqid = (uint16_t)cqid;
    c->q[cqid].users++;
    atomic_store(nvme_db(c, 2 * qid), 0);
    /* It runs where its CQ is. */
    o = nvme_order_new(group_for(req, sq_created), c->worker_of[cqid], NVME_ORDER_SQ_ADD);
    o->qid = (uint16_t)qid;
    o->cqid = (uint16_t)cqid;
    o->size = size;
    o->base = base;
    o->shadow = c->dbbuf_shadow;
    o->event = c->dbbuf_event;
    nvme_order_give(o);
}

static void sq_deleted(struct nvme_group *g)
{
    struct nvme_qinfo *q = &g->ctrl->q[qid_of(g->req)];

    q->sq_busy = false;
    g->ctrl->q[q->cqid].users--;
    nvme_complete(g->req, NVME_OK, 0);
}

void nvme_delete_sq(struct nvme_req *req)
{
    struct nvme_ctrl *c = ctrl_of(req);
    unsigned qid = qid_of(req);
    struct nvme_order *o;

    if (qid == 0 || qid > c->queues || !c->q[qid].sq || c->q[qid].sq_busy) {
        nvme_end(req, NVME_SC_QID_INVALID | NVME_DNR);
        return;
    }
    c->q[qid].sq = false;
    c->q[qid].sq_busy = true;
    o = nvme_order_new(group_for(req, sq_deleted), c->worker_of[c->q[qid].cqid], NVME_ORDER_SQ_DEL);
    o->qid = (uint16_t)qid;
    nvme_order_give(o);
}

/* ---- Abort: 5.1 ---- */

static void aborted(struct nvme_group *g)
{
    g->ctrl->aborts--;
    nvme_complete(g->req, NVME_OK, g->result ? 0 : 1);
}

static void do_abort(struct nvme_req *req)
{
    struct nvme_ctrl *c = ctrl_of(req);
    uint32_t dw10 = qv_le32_get(req->sqe.dw10);
    unsigned sqid = dw10 & 0xffff;
    uint16_t cid = (uint16_t)(dw10 >> 16);
    struct nvme_order *o;

    if (sqid == 0) {
        nvme_complete(req, NVME_OK, nvme_aer_abort(c, cid) ? 0 : 1);
        return;
    }
    if (sqid > c->queues || !c->q[sqid].sq || c->q[sqid].sq_busy) {
        nvme_complete(req, NVME_OK, 1); /* nothing there to abort */
        return;
    }
    if (c->aborts > NVME_ACL) {
        nvme_end(req, NVME_SC_ABORT_LIMIT | NVME_DNR);
        return;
    }
    c->aborts++;
    o = nvme_order_new(group_for(req, aborted), c->worker_of[c->q[sqid].cqid], NVME_ORDER_ABORT);
    o->qid = (uint16_t)sqid;
    o->cid = cid;
    nvme_order_give(o);
}

/* ---- Doorbell Buffer Config: 5.7 ---- */

static void dbbuf_set(struct nvme_group *g)
{
    nvme_complete(g->req, NVME_OK, 0);
}

static void set_dbbuf(struct nvme_req *req)
{
    struct nvme_ctrl *c = ctrl_of(req);
    uint64_t page = UINT64_C(1) << atomic_load(&c->shared.page_shift);
    uint64_t shadow = qv_le64_get(req->sqe.prp1), event = qv_le64_get(req->sqe.prp2);
    struct qv_guest_view *view = req->worker->view;
    uint64_t size = (uint64_t)NVME_QIDS * 8;
    struct nvme_group *g;

    if (shadow == 0 || event == 0 || shadow % page != 0 || event % page != 0 ||
        qv_guest_view_ptr(view, shadow, size, true) == NULL ||
        qv_guest_view_ptr(view, event, size, true) == NULL) {
        nvme_end(req, NVME_SC_INVALID_FIELD | NVME_DNR);
        return;
    }
    c->dbbuf_shadow = shadow;
    c->dbbuf_event = event;
    g = group_for(req, dbbuf_set);
    for (unsigned i = 0; i < c->worker_count; i++) {
        struct nvme_order *o = nvme_order_new(g, c->workers[i], NVME_ORDER_DBBUF);

        o->shadow = shadow;
        o->event = event;
        nvme_order_give(o);
    }
}

/* ---- dispatch ---- */

struct admin_command {
    void (*start)(struct nvme_req *req);
};

static const struct admin_command commands[] = {
    [NVME_ADM_DELETE_SQ] = {nvme_delete_sq},
    [NVME_ADM_CREATE_SQ] = {nvme_create_sq},
    [NVME_ADM_GET_LOG] = {nvme_get_log},
    [NVME_ADM_DELETE_CQ] = {nvme_delete_cq},
    [NVME_ADM_CREATE_CQ] = {nvme_create_cq},
    [NVME_ADM_IDENTIFY] = {nvme_identify},
    [NVME_ADM_ABORT] = {do_abort},
    [NVME_ADM_SET_FEATURES] = {nvme_set_features},
    [NVME_ADM_GET_FEATURES] = {nvme_get_features},
    [NVME_ADM_AER] = {nvme_aer},
    [NVME_ADM_DBBUF] = {set_dbbuf},
};

void nvme_admin_start(struct nvme_req *req)
{
    uint8_t opcode = req->sqe.opcode;

    if (opcode >= G_N_ELEMENTS(commands) || commands[opcode].start == NULL) {
        nvme_end(req, NVME_SC_INVALID_OPCODE | NVME_DNR);
        return;
    }
    /* 4.3: admin commands use PRPs. */
    if (NVME_FLAGS_FUSE(req->sqe.flags) != 0 || NVME_FLAGS_PSDT(req->sqe.flags) != 0) {
        nvme_end(req, NVME_SC_INVALID_FIELD | NVME_DNR);
        return;
    }
    commands[opcode].start(req);
}
