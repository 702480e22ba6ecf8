/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Interrupts: the client's eventfds, handed to the function. The pin masks itself with each
 * interrupt; the client unmasks it with a message, or (as KVM does) through an eventfd.
 */
#include <errno.h>
#include <glib-unix.h>
#include <poll.h>
#include <unistd.h>

#include "base/error.h"
#include "base/maths.h"
#include "wire/vfio_user/session_int.h"

static void event_free(struct vfu_event *event)
{
    if (event != NULL) {
        close(event->irq.fd);
        g_free(event);
    }
}

void vfu_irqs_init(struct vfu_session *ses)
{
    const struct qv_pci_identity *id = qv_pci_identity(ses->fn);

    ses->irqs[VFU_IRQ_INTX].count = id->intx ? 1 : 0;
    ses->irqs[VFU_IRQ_MSI].count = id->msi_vectors;
    ses->irqs[VFU_IRQ_MSIX].count = id->msix_vectors;
    ses->irqs[VFU_IRQ_ERR].count = 1; /* kept for the client, never raised by us */
    ses->irqs[VFU_IRQ_REQ].count = 1;
    for (unsigned i = 0; i < VFU_IRQS; i++) {
        ses->irqs[i].events = g_new0(struct vfu_event *, ses->irqs[i].count);
    }
    ses->unmask_fd = -1;
}

static bool mode_of(uint32_t index, enum qv_pci_irq_mode *mode)
{
    switch (index) {
    case VFU_IRQ_INTX:
        *mode = QV_PCI_IRQ_INTX;
        return true;
    case VFU_IRQ_MSI:
        *mode = QV_PCI_IRQ_MSI;
        return true;
    case VFU_IRQ_MSIX:
        *mode = QV_PCI_IRQ_MSIX;
        return true;
    default:
        return false; /* no interrupt of the function's */
    }
}

/* @events, taken over, become those of [@start, @start + @count); @off: the whole kind goes off. */
static void replace(struct vfu_session *ses, uint32_t index, uint32_t start, uint32_t count,
                    struct vfu_event **events, bool off)
{
    struct vfu_irq_index *irqs = &ses->irqs[index];
    g_autofree struct qv_irq **list = g_new0(struct qv_irq *, MAX(count, 1));
    enum qv_pci_irq_mode mode;

    for (uint32_t i = 0; i < count; i++) {
        list[i] = events[i] != NULL ? &events[i]->irq.irq : NULL;
    }
    if (mode_of(index, &mode)) {
        bool ok = off ? qv_pci_set_irqs(ses->fn, mode, 0, 0, NULL, NULL)
                      : qv_pci_set_irqs(ses->fn, mode, start, count, list, NULL);

        g_assert(ok); /* the range was checked */
    }
    for (uint32_t i = 0; i < count; i++) {
        event_free(irqs->events[start + i]); /* nobody raises it any more */
        irqs->events[start + i] = events[i];
    }
}

static void drop_index(struct vfu_session *ses, uint32_t index)
{
    uint32_t count = ses->irqs[index].count;
    g_autofree struct vfu_event **none = g_new0(struct vfu_event *, MAX(count, 1));

    replace(ses, index, 0, count, none, true);
}

static void drop_unmask(struct vfu_session *ses)
{
    if (ses->unmask_fd >= 0) {
        qv_watch_del(&ses->unmask_watch);
        qv_close_fd(&ses->unmask_fd);
        ses->unmask_fd = -1;
    }
}

void vfu_irqs_drop(struct vfu_session *ses)
{
    drop_unmask(ses);
    for (uint32_t i = 0; i < VFU_IRQS; i++) {
        drop_index(ses, i);
    }
}

void vfu_irqs_destroy(struct vfu_session *ses)
{
    for (unsigned i = 0; i < VFU_IRQS; i++) {
        g_free(ses->irqs[i].events);
    }
}

static int set_events(struct vfu_session *ses, const struct vfu_irq_set *set, GError **error)
{
    g_autofree struct vfu_event **events = g_new0(struct vfu_event *, MAX(set->count, 1));

    if (ses->msg.in.fd_count != 0 && ses->msg.in.fd_count != set->count) {
        qv_fail(error, QV_ERROR_FAILED, "%u interrupts with %u descriptors", set->count,
                ses->msg.in.fd_count);
        return -EINVAL;
    }
    for (unsigned i = 0; i < ses->msg.in.fd_count; i++) {
        events[i] = g_new0(struct vfu_event, 1);
        events[i]->irq.irq.raise = qv_irq_eventfd_raise;
        events[i]->irq.fd = qv_wire_take_fd(&ses->msg.in);
    }
    if (set->count > 0) {
        replace(ses, set->index, set->start, set->count, events, false);
    }
    return 0;
}

static void unmasked(struct qv_watch *watch, uint32_t revents)
{
    struct vfu_session *ses = qv_container_of(watch, struct vfu_session, unmask_watch);
    uint64_t value;

    if (read(ses->unmask_fd, &value, sizeof(value)) == sizeof(value)) {
        qv_pci_intx_mask(ses->fn, false);
    }
}

/* An eventfd that unmasks the pin. */
static int set_unmask_event(struct vfu_session *ses, const struct vfu_irq_set *set, GError **error)
{
    if (set->index != VFU_IRQ_INTX || set->count != 1 || ses->msg.in.fd_count > 1) {
        qv_fail(error, QV_ERROR_FAILED, "event to unmask interrupt index %u", set->index);
        return -EINVAL;
    }
    drop_unmask(ses);
    ses->unmask_fd = qv_wire_take_fd(&ses->msg.in);
    if (ses->unmask_fd >= 0 && !g_unix_set_fd_nonblocking(ses->unmask_fd, TRUE, NULL)) {
        qv_close_fd(&ses->unmask_fd);
        ses->unmask_fd = -1;
        return -EINVAL;
    }
    if (ses->unmask_fd >= 0) {
        ses->unmask_watch =
            (struct qv_watch){.fd = ses->unmask_fd, .events = POLLIN, .fn = unmasked};
        qv_watch_add(&ses->unmask_watch);
    }
    return 0;
}

/* Whether the action holds for interrupt number @i of the message. */
static bool chosen(const struct vfu_session *ses, const struct vfu_irq_set *set, uint32_t i)
{
    return (set->flags & VFU_SET_DATA) == VFU_SET_NONE || ses->msg.payload[sizeof(*set) + i] != 0;
}

static int act(struct vfu_session *ses, const struct vfu_irq_set *set, GError **error)
{
    uint32_t action = set->flags & VFU_SET_ACTION;

    if ((set->flags & VFU_SET_DATA) == VFU_SET_BOOL &&
        vfu_message_size(&ses->msg) - sizeof(*set) < set->count) {
        qv_fail(error, QV_ERROR_FAILED, "%u booleans are not there", set->count);
        return VFU_MALFORMED;
    }
    if (action != VFU_SET_TRIGGER && set->index != VFU_IRQ_INTX) {
        qv_fail(error, QV_ERROR_FAILED, "interrupt index %u cannot be masked", set->index);
        return -EINVAL;
    }
    for (uint32_t i = 0; i < set->count; i++) {
        struct vfu_event *event = ses->irqs[set->index].events[set->start + i];

        if (!chosen(ses, set, i)) {
            continue;
        }
        if (action == VFU_SET_MASK) {
            qv_pci_intx_mask(ses->fn, true);
        } else if (action == VFU_SET_UNMASK) {
            qv_pci_intx_unmask_early(ses->fn);
        } else if (event != NULL) {
            qv_irq_raise(&event->irq.irq);
        }
    }
    return 0;
}

static int carry_out(struct vfu_session *ses, const struct vfu_irq_set *set, GError **error)
{
    uint32_t data = set->flags & VFU_SET_DATA, action = set->flags & VFU_SET_ACTION;

    if (data == VFU_SET_EVENTFD && action == VFU_SET_TRIGGER) {
        return set_events(ses, set, error);
    }
    if (data == VFU_SET_EVENTFD && action == VFU_SET_UNMASK) {
        return set_unmask_event(ses, set, error);
    }
    if (data == VFU_SET_EVENTFD) {
        return -ENOTSUP; /* we mask nothing by ourselves that could be told */
    }
    if (data == VFU_SET_NONE && action == VFU_SET_TRIGGER && set->count == 0) {
        drop_index(ses, set->index);
        return 0;
    }
    return act(ses, set, error);
}

int vfu_set_irqs(struct vfu_session *ses, GError **error)
{
    struct vfu_irq_set set;
    int rc;

    vfu_copy(ses, &set, sizeof(set));
    if (set.index >= VFU_IRQS ||
        !qv_range_inside(set.start, set.count, ses->irqs[set.index].count) ||
        (set.flags & ~(uint32_t)(VFU_SET_DATA | VFU_SET_ACTION)) != 0 ||
        !qv_is_pow2(set.flags & VFU_SET_DATA) || !qv_is_pow2(set.flags & VFU_SET_ACTION)) {
        qv_fail(error, QV_ERROR_FAILED, "interrupts %u to %u of index %u, flags 0x%x", set.start,
                set.start + set.count, set.index, set.flags);
        return -EINVAL;
    }
    rc = carry_out(ses, &set, error);
    if (rc == 0) {
        vfu_session_reply(ses, NULL, 0, -1);
    }
    return rc;
}
