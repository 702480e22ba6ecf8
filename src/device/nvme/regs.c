/* SPDX-License-Identifier: Apache-2.0 */
/*
 * BAR 0: registers and doorbells. Source: NVMe 1.4, 3.1 "Register Definition".
 *
 * Registers are 32 or 64 bits wide and are read at any width; writes narrower than 32 bits are
 * ignored (3.1: undefined).
 */
#include "device/nvme/nvme_int.h"

#define CAP_LOW  ((NVME_QUEUE_ENTRIES - 1) | 1u << 16 /* CQR */ | NVME_TIMEOUT << 24)
#define CAP_HIGH (1u << 5 /* CSS: NVM */ | NVME_MPS_MAX << 20)

static void guest_error(struct nvme_ctrl *c, const char *what, uint64_t offset, uint64_t value)
{
    qv_log_limited(&c->log_limit, QV_LOG_WARN,
                   "%s: %s: 0x%" G_GINT64_MODIFIER "x to register 0x%" G_GINT64_MODIFIER
                   "x is ignored",
                   c->name, what, value, offset);
}

/* ---- reading ---- */

static uint32_t reg_read32(struct nvme_ctrl *c, uint64_t offset)
{
    switch (offset) {
    case NVME_REG_CAP:
        return CAP_LOW;
    case NVME_REG_CAP + 4:
        return CAP_HIGH;
    case NVME_REG_VS:
        return NVME_VERSION;
    case NVME_REG_INTMS:
    case NVME_REG_INTMC:
        return c->shared.intms;
    case NVME_REG_CC:
        return c->cc;
    case NVME_REG_CSTS:
        return c->csts | (atomic_load(&c->shared.fatal) ? NVME_CSTS_CFS : 0);
    case NVME_REG_AQA:
        return c->aqa;
    case NVME_REG_ASQ:
        return (uint32_t)c->asq;
    case NVME_REG_ASQ + 4:
        return (uint32_t)(c->asq >> 32);
    case NVME_REG_ACQ:
        return (uint32_t)c->acq;
    case NVME_REG_ACQ + 4:
        return (uint32_t)(c->acq >> 32);
    default:
        return 0;
    }
}

uint64_t nvme_bar_read(struct qv_pci_function *fn, unsigned bar, uint64_t offset, unsigned size)
{
    struct nvme_ctrl *c = nvme_of(fn);
    uint64_t value;

    if (offset >= NVME_REG_END) {
        return 0; /* doorbells are write-only */
    }
    value = reg_read32(c, offset & ~UINT64_C(3));
    if (size == 8) {
        return value | (uint64_t)reg_read32(c, offset + 4) << 32;
    }
    return value >> 8 * (offset & 3);
}

/* ---- writing ---- */

static void write_cc(struct nvme_ctrl *c, uint32_t value)
{
    uint32_t was = c->cc;
    bool on = value & NVME_CC_EN;

    value &= NVME_CC_WRITABLE;
    if ((was & NVME_CC_EN) && on) {
        /* 3.1.5: the rest may change only while the controller is off. */
        value = (was & ~NVME_CC_WHILE_ON) | (value & NVME_CC_WHILE_ON);
    }
    c->cc = value;
    if (on && !(was & NVME_CC_EN)) {
        nvme_ctrl_enable(c);
    } else if (!on && (was & NVME_CC_EN)) {
        nvme_ctrl_disable(c);
    }
    if (NVME_CC_SHN(value) != 0 && NVME_CC_SHN(was) == 0) {
        nvme_ctrl_shutdown(c);
    }
}

static void write_mask(struct nvme_ctrl *c, uint32_t set, uint32_t clear)
{
    pthread_mutex_lock(&c->shared.lock);
    c->shared.intms = (c->shared.intms | set) & ~clear;
    pthread_mutex_unlock(&c->shared.lock);
    nvme_intx_update(c);
}

static void set_half(uint64_t *reg, bool high, uint32_t value)
{
    unsigned shift = high ? 32 : 0;

    *reg = (*reg & ~(UINT64_C(0xffffffff) << shift)) | (uint64_t)value << shift;
}

static void reg_write32(struct nvme_ctrl *c, uint64_t offset, uint32_t value)
{
    bool off = !(c->cc & NVME_CC_EN);

    switch (offset) {
    case NVME_REG_INTMS:
        write_mask(c, value, 0);
        return;
    case NVME_REG_INTMC:
        write_mask(c, 0, value);
        return;
    case NVME_REG_CC:
        write_cc(c, value);
        return;
    case NVME_REG_AQA:
        if (off) {
            c->aqa = value & 0x0fff0fff;
            return;
        }
        break;
    case NVME_REG_ASQ:
    case NVME_REG_ASQ + 4:
        if (off) {
            set_half(&c->asq, offset != NVME_REG_ASQ, value);
            c->asq &= ~UINT64_C(0xfff);
            return;
        }
        break;
    case NVME_REG_ACQ:
    case NVME_REG_ACQ + 4:
        if (off) {
            set_half(&c->acq, offset != NVME_REG_ACQ, value);
            c->acq &= ~UINT64_C(0xfff);
            return;
        }
        break;
    default:
        break;
    }
    guest_error(c, "a write that is not possible", offset, value);
}

/* ---- doorbells: 3.1.24, 3.1.25 ---- */

static void kick_sq(struct nvme_ctrl *c, unsigned qid)
{
    struct nvme_sq *sq = &c->sqs[qid];
    struct nvme_worker *w = c->worker_of[qid == 0 ? 0 : c->q[qid].cqid];

    if (!atomic_exchange(&sq->kicked, true)) {
        qv_thread_post(w->thread, &sq->kick);
    }
}

static void kick_cq(struct nvme_ctrl *c, unsigned qid)
{
    struct nvme_cq *cq = &c->cqs[qid];

    /* Sequentially consistent against want_head(): one of the two sees the other. */
    if (atomic_load(&cq->wants_kick) && !atomic_exchange(&cq->kicked, true)) {
        qv_thread_post(c->worker_of[qid]->thread, &cq->kick);
    }
}

static void doorbell(struct nvme_ctrl *c, uint64_t offset, uint64_t value)
{
    unsigned index = (unsigned)((offset - NVME_DB_PAGE) / 4), qid = index / 2;
    bool is_cq = index % 2 != 0;

    if (c->state != NVME_ENABLED) {
        return; /* of a driver that has not noticed */
    }
    if (offset % 4 != 0 || qid > c->queues || !(is_cq ? c->q[qid].cq : c->q[qid].sq)) {
        guest_error(c, "a doorbell of no queue", offset, value);
        nvme_event(c, NVME_EVENT_ERROR, NVME_EVENT_ERROR_DOORBELL, NVME_LOG_SUPPORTED_ERROR);
        return;
    }
    atomic_store(nvme_db(c, index), (uint32_t)value & 0xffff);
    if (is_cq) {
        kick_cq(c, qid);
    } else {
        kick_sq(c, qid);
    }
}

void nvme_bar_write(struct qv_pci_function *fn, unsigned bar, uint64_t offset, uint64_t value,
                    unsigned size)
{
    struct nvme_ctrl *c = nvme_of(fn);

    if (offset >= NVME_REG_END) {
        if (offset >= NVME_DB_PAGE + NVME_DB_SIZE) {
            return; /* behind the MSI-X structures */
        }
        doorbell(c, offset, value);
        if (size == 8) {
            doorbell(c, offset + 4, value >> 32);
        }
        return;
    }
    if (size < 4) {
        guest_error(c, "a narrow write", offset, value);
        return;
    }
    reg_write32(c, offset, (uint32_t)value);
    if (size == 8) {
        reg_write32(c, offset + 4, (uint32_t)(value >> 32));
    }
}
