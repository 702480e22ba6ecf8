/* SPDX-License-Identifier: Apache-2.0 */
/* What the device is: regions and interrupts. */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "wire/vfio_user/session_int.h"

int vfu_get_info(struct vfu_session *ses, GError **error)
{
    struct vfu_device_info info = {
        .argsz = sizeof(info),
        .flags = VFU_DEVICE_RESET | VFU_DEVICE_PCI,
        .num_regions = VFU_REGIONS,
        .num_irqs = VFU_IRQS,
    };

    vfu_session_reply(ses, &info, sizeof(info), -1);
    return 0;
}

uint64_t vfu_config_size(const struct vfu_session *ses)
{
    return qv_pci_identity(ses->fn)->express ? 4096 : QV_PCI_CONFIG_SIZE;
}

static const struct qv_pci_bar *bar_of(const struct vfu_session *ses, uint32_t index)
{
    const struct qv_pci_bar *bar = &qv_pci_identity(ses->fn)->bars[index];

    return bar->kind != QV_PCI_BAR_NONE ? bar : NULL;
}

int vfu_get_region_info(struct vfu_session *ses, GError **error)
{
    struct {
        struct vfu_region_info info;
        struct vfu_sparse_cap cap;
    } reply = {.info.argsz = sizeof(reply.info)};
    const struct qv_pci_bar *bar = NULL;
    uint32_t room;
    int fd = -1;

    vfu_copy(ses, &reply.info, sizeof(reply.info));
    room = reply.info.argsz;
    if (reply.info.index >= VFU_REGIONS || room < sizeof(reply.info)) {
        qv_fail(error, QV_ERROR_FAILED, "region %u, room for %u bytes", reply.info.index, room);
        return -EINVAL;
    }
    reply.info = (struct vfu_region_info){.argsz = sizeof(reply.info), .index = reply.info.index};
    if (reply.info.index == VFU_REGION_CONFIG) {
        reply.info.size = vfu_config_size(ses);
        reply.info.flags = VFU_RF_READ | VFU_RF_WRITE;
    } else if (reply.info.index < QV_PCI_BARS) {
        bar = bar_of(ses, reply.info.index);
    }
    if (bar != NULL) {
        reply.info.size = bar->size;
        reply.info.flags = VFU_RF_READ | VFU_RF_WRITE;
    }
    if (bar != NULL && bar->shared.fd >= 0 && bar->shared.size > 0) {
        fd = bar->shared.fd;
        reply.info.flags |= VFU_RF_MMAP;
        reply.info.offset = bar->shared.fd_offset - bar->shared.offset;
        reply.info.argsz = sizeof(reply);
        if (room >= sizeof(reply)) { /* QEMU refuses the flag without a place to look at */
            reply.info.flags |= VFU_RF_CAPS;
            reply.info.cap_offset = sizeof(reply.info);
        }
        reply.cap = (struct vfu_sparse_cap){.id = 1,
                                            .version = 1,
                                            .areas = 1,
                                            .offset = bar->shared.offset,
                                            .size = bar->shared.size};
    }
    vfu_session_reply(ses, &reply, MIN(room, reply.info.argsz), fd);
    return 0;
}

int vfu_get_irq_info(struct vfu_session *ses, GError **error)
{
    static const uint32_t flags[VFU_IRQS] = {
        [VFU_IRQ_INTX] = VFU_IF_EVENTFD | VFU_IF_MASKABLE | VFU_IF_AUTOMASKED,
        [VFU_IRQ_MSI] = VFU_IF_EVENTFD | VFU_IF_NORESIZE,
        [VFU_IRQ_MSIX] = VFU_IF_EVENTFD,
        [VFU_IRQ_ERR] = VFU_IF_EVENTFD,
        [VFU_IRQ_REQ] = VFU_IF_EVENTFD,
    };
    struct vfu_irq_info info;

    vfu_copy(ses, &info, sizeof(info));
    if (info.index >= VFU_IRQS) {
        qv_fail(error, QV_ERROR_FAILED, "interrupt index %u", info.index);
        return -EINVAL;
    }
    info.argsz = sizeof(info);
    info.flags = flags[info.index];
    info.count = ses->irqs[info.index].count;
    vfu_session_reply(ses, &info, sizeof(info), -1);
    return 0;
}
