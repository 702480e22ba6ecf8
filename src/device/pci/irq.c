/* SPDX-License-Identifier: Apache-2.0 */
/* Interrupts: messages (MSI, MSI-X) without locks, the pin under one. */
#include "device/pci/function_int.h"

#include <sched.h>

#include "base/error.h"
#include "base/maths.h"

/* A guest that has not touched the function for so long is not inside of its interrupt handler; and
 * how often that is looked at before it is not believed any more. */
#define QUIET_NS INT64_C(100000)
#define PATIENCE 20u

static void intx_timer_fired(struct qv_timer *timer);

void pci_irq_init(struct qv_pci_function *fn)
{
    fn->msix = g_new0(struct pci_vector, fn->id->msix_vectors);
    fn->msi = g_new0(struct pci_vector, fn->id->msi_vectors);
    atomic_init(&fn->mode, QV_PCI_IRQ_INTX);
    atomic_init(&fn->msi_enabled, 1);
    g_mutex_init(&fn->intx_lock);
    fn->intx_timer.fn = intx_timer_fired;
}

void pci_irq_destroy(struct qv_pci_function *fn)
{
    if (fn->intx_timer.armed) {
        qv_timer_cancel(&fn->intx_timer);
    }
    g_free(fn->msix);
    g_free(fn->msi);
    g_mutex_clear(&fn->intx_lock);
}

enum qv_pci_irq_mode qv_pci_irq_mode(const struct qv_pci_function *fn)
{
    return (enum qv_pci_irq_mode)atomic_load_explicit(&fn->mode, memory_order_acquire);
}

/* ---- messages ---- */

static void vector_raise(struct pci_vector *v)
{
    struct qv_irq *irq;

    /* Sequentially consistent against vector_set(): either it sees us raising, or we see its
     * replacement. */
    atomic_fetch_add(&v->raising, 1);
    irq = atomic_load(&v->irq);
    if (irq != NULL) {
        qv_irq_raise(irq);
    }
    atomic_fetch_sub(&v->raising, 1);
}

static void vector_set(struct pci_vector *v, struct qv_irq *irq)
{
    if (atomic_exchange(&v->irq, irq) == NULL) {
        return;
    }
    /* A raise is one write to an eventfd: short, and nobody begins one with the old receiver. */
    while (atomic_load(&v->raising) != 0) {
        sched_yield();
    }
}

void qv_pci_notify(struct qv_pci_function *fn, unsigned vector)
{
    switch (qv_pci_irq_mode(fn)) {
    case QV_PCI_IRQ_MSIX:
        if (vector < fn->id->msix_vectors) {
            vector_raise(&fn->msix[vector]);
        }
        break;
    case QV_PCI_IRQ_MSI:
        vector_raise(&fn->msi[vector & (atomic_load(&fn->msi_enabled) - 1)]);
        break;
    case QV_PCI_IRQ_INTX:
        break;
    }
}

/* ---- the pin ---- */

/* Raises when there is something to tell. Called with the lock held. */
static void intx_update(struct qv_pci_function *fn)
{
    if (fn->intx_level && !fn->intx_masked && !fn->intx_off && !fn->intx_later &&
        fn->intx_irq != NULL && qv_pci_irq_mode(fn) == QV_PCI_IRQ_INTX) {
        fn->intx_masked = true; /* until the client unmasks: it does so when the guest is done */
        fn->intx_told = true;
        qv_irq_raise(fn->intx_irq);
    }
}

void qv_pci_intx_set(struct qv_pci_function *fn, bool asserted)
{
    g_mutex_lock(&fn->intx_lock);
    fn->intx_level = asserted;
    if (!asserted) {
        fn->intx_told = fn->intx_later = false;
    }
    intx_update(fn);
    g_mutex_unlock(&fn->intx_lock);
}

void qv_pci_intx_mask(struct qv_pci_function *fn, bool masked)
{
    g_mutex_lock(&fn->intx_lock);
    fn->intx_masked = masked;
    fn->intx_later = false;
    intx_update(fn);
    g_mutex_unlock(&fn->intx_lock);
}

static void intx_wait(struct qv_pci_function *fn)
{
    fn->intx_accesses = fn->accesses;
    qv_timer_arm(&fn->intx_timer, QUIET_NS);
}

static void intx_timer_fired(struct qv_timer *timer)
{
    struct qv_pci_function *fn = qv_container_of(timer, struct qv_pci_function, intx_timer);
    bool busy = fn->accesses != fn->intx_accesses && fn->intx_patience > 0;

    g_mutex_lock(&fn->intx_lock);
    busy = busy && fn->intx_later;
    if (!busy) {
        fn->intx_later = false;
        intx_update(fn);
    }
    g_mutex_unlock(&fn->intx_lock);
    if (busy) {
        fn->intx_patience--;
        intx_wait(fn);
    }
}

void qv_pci_intx_unmask_early(struct qv_pci_function *fn)
{
    bool later;

    g_mutex_lock(&fn->intx_lock);
    fn->intx_masked = false;
    fn->intx_later = later = fn->intx_level && fn->intx_told;
    intx_update(fn);
    g_mutex_unlock(&fn->intx_lock);
    if (later) {
        fn->intx_patience = PATIENCE;
        intx_wait(fn);
    }
}

void pci_intx_disable(struct qv_pci_function *fn, bool off)
{
    g_mutex_lock(&fn->intx_lock);
    fn->intx_off = off;
    intx_update(fn);
    g_mutex_unlock(&fn->intx_lock);
}

bool pci_intx_level(struct qv_pci_function *fn)
{
    bool level;

    g_mutex_lock(&fn->intx_lock);
    level = fn->intx_level;
    g_mutex_unlock(&fn->intx_lock);
    return level;
}

/* ---- receivers ---- */

static void set_mode(struct qv_pci_function *fn, enum qv_pci_irq_mode mode)
{
    g_mutex_lock(&fn->intx_lock);
    atomic_store(&fn->mode, (int)mode);
    intx_update(fn); /* back to the pin: its level counts again */
    g_mutex_unlock(&fn->intx_lock);
}

static bool set_intx(struct qv_pci_function *fn, struct qv_irq *irq)
{
    g_mutex_lock(&fn->intx_lock);
    fn->intx_irq = irq;
    fn->intx_masked = fn->intx_later = false;
    intx_update(fn);
    g_mutex_unlock(&fn->intx_lock);
    return true;
}

static unsigned vectors_of(const struct qv_pci_function *fn, enum qv_pci_irq_mode mode,
                           struct pci_vector **out)
{
    switch (mode) {
    case QV_PCI_IRQ_MSIX:
        *out = fn->msix;
        return fn->id->msix_vectors;
    case QV_PCI_IRQ_MSI:
        *out = fn->msi;
        return fn->id->msi_vectors;
    case QV_PCI_IRQ_INTX:
        break;
    }
    *out = NULL;
    return fn->id->intx ? 1 : 0;
}

bool qv_pci_set_irqs(struct qv_pci_function *fn, enum qv_pci_irq_mode mode, unsigned start,
                     unsigned count, struct qv_irq *const *irqs, GError **error)
{
    struct pci_vector *vectors;
    unsigned total = vectors_of(fn, mode, &vectors);

    if (!qv_range_inside(start, count, total)) {
        return qv_fail(error, QV_ERROR_USAGE, "interrupts %u to %u: there are %u", start,
                       start + count, total);
    }
    if (mode == QV_PCI_IRQ_INTX) {
        if (count > 0) {
            return set_intx(fn, irqs[0]);
        }
        return start != 0 || set_intx(fn, NULL);
    }
    if (count == 0 && start == 0) {
        for (unsigned i = 0; i < total; i++) {
            vector_set(&vectors[i], NULL);
        }
        if (qv_pci_irq_mode(fn) == mode) {
            set_mode(fn, QV_PCI_IRQ_INTX);
        }
        return true;
    }
    for (unsigned i = 0; i < count; i++) {
        vector_set(&vectors[start + i], irqs[i]);
    }
    if (count > 0) {
        set_mode(fn, mode);
    }
    return true;
}
