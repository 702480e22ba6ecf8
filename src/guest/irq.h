/* SPDX-License-Identifier: Apache-2.0 */
/* How a device interrupts its guest: whatever the transport provides, behind one function. */
#ifndef QV_GUEST_IRQ_H
#define QV_GUEST_IRQ_H

#include <stdint.h>
#include <unistd.h>

#include "base/cleanup.h"

/** Embedded in the transport's own struct. */
struct qv_irq {
    /** raise - tells the guest that something happened; never blocks. I/O thread. */
    void (*raise)(struct qv_irq *irq);
};

/** An interrupt that is an eventfd: KVM, or the client, waits on the other end. */
struct qv_irq_eventfd {
    struct qv_irq irq;
    int fd; /* not owned; -1: the guest polls */
};

static inline void qv_irq_eventfd_raise(struct qv_irq *irq)
{
    struct qv_irq_eventfd *self = qv_container_of(irq, struct qv_irq_eventfd, irq);
    uint64_t one = 1;

    if (self->fd >= 0) {
        /* EAGAIN: the counter is full, so the reader has an event to see anyway. */
        ssize_t done = write(self->fd, &one, sizeof(one));
        (void)done;
    }
}

static inline void qv_irq_raise(struct qv_irq *irq)
{
    irq->raise(irq);
}

#endif
