/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Interrupts of completion queues: messages or the pin, at once or for several completions.
 * Source: NVMe 1.4, 7.5 "Interrupts".
 */
#include "device/nvme/nvme_int.h"

static void pin_set(struct nvme_ctrl *c)
{
    /* All queues use vector 0 while there is only the pin. */
    qv_pci_intx_set(c->fn, c->shared.levels > 0 && !(c->shared.intms & 1));
}

void nvme_intx_update(struct nvme_ctrl *c)
{
    pthread_mutex_lock(&c->shared.lock);
    pin_set(c);
    pthread_mutex_unlock(&c->shared.lock);
}

void nvme_cq_set_level(struct nvme_cq *cq, bool level)
{
    struct nvme_shared *shared = &cq->ctrl->shared;

    pthread_mutex_lock(&shared->lock);
    if (cq->level != level) {
        cq->level = level;
        shared->levels += level ? 1 : -1u;
    }
    pin_set(cq->ctrl);
    pthread_mutex_unlock(&shared->lock);
}

/* The event index must be the head that we know when we stop looking; this ends, because the head
 * can not pass the tail. */
void nvme_cq_want_head(struct nvme_cq *cq)
{
    uint32_t armed;

    atomic_store(&cq->wants_kick, true);
    do {
        armed = cq->head;
        nvme_cq_arm(cq);
        cq->head = nvme_cq_head(cq);
    } while (cq->head != armed);
}

bool nvme_cq_uses_pin(const struct nvme_cq *cq)
{
    return cq->ien && qv_pci_irq_mode(cq->ctrl->fn) == QV_PCI_IRQ_INTX;
}

static void signal_pin(struct nvme_cq *cq)
{
    nvme_cq_want_head(cq);
    nvme_cq_set_level(cq, cq->head != cq->tail);
    cq->fresh = 0;
}

/* How long the interrupt waits for more completions, in ns; 0: not at all. Either as the guest has
 * said (5.21.1.8, 5.21.1.9), or as is learned. */
static int64_t interrupt_waits(struct nvme_cq *cq)
{
    struct nvme_shared *shared = &cq->ctrl->shared;
    uint32_t value = atomic_load_explicit(&shared->coalesce, memory_order_relaxed);
    uint32_t threshold = (value & 0xff) + 1, time = value >> 8 & 0xff;
    uint64_t off =
        atomic_load_explicit(&shared->no_coalesce[cq->vector / 64], memory_order_relaxed);

    if (!cq->ien || cq->id == 0 || (off >> cq->vector % 64 & 1)) {
        return 0;
    }
    if (time != 0) {
        return cq->fresh < threshold ? (int64_t)time * 100000 : 0;
    }
    return qv_moderation_ended(&cq->moderation, cq->fresh, cq->worker->in_flight, qv_now_ns());
}

void nvme_cq_signal(struct nvme_cq *cq, bool now)
{
    int64_t wait;

    if (cq->fresh == 0 || cq->state == NVME_Q_NONE) {
        return;
    }
    if (nvme_cq_uses_pin(cq)) {
        signal_pin(cq);
        return;
    }
    wait = now ? 0 : interrupt_waits(cq);
    if (wait > 0) {
        if (!cq->timer.armed) {
            qv_timer_arm(&cq->timer, wait);
        }
        return;
    }
    cq->fresh = 0;
    qv_moderation_stop(&cq->moderation);
    qv_timer_cancel(&cq->timer);
    if (cq->ien) {
        qv_pci_notify(cq->ctrl->fn, cq->vector);
    }
}

static void timer_fired(struct qv_timer *timer)
{
    struct nvme_cq *cq = qv_container_of(timer, struct nvme_cq, timer);
    int64_t wait = qv_moderation_expired(&cq->moderation, cq->fresh, qv_now_ns());

    if (wait > 0) {
        qv_timer_arm(timer, wait);
    } else {
        nvme_cq_signal(cq, true);
    }
}

void nvme_cq_irq_init(struct nvme_cq *cq)
{
    cq->timer.fn = timer_fired;
}
