/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest memory. Ranges that come with a descriptor are mapped and used in place. Those without are
 * noted, so that a client may announce all it has (QEMU does so for its firmware's memory), but no
 * device can reach them: we do not ask for memory by messages, which no client of ours needs.
 */
#include <errno.h>
#include <inttypes.h>

#include "base/error.h"
#include "base/maths.h"
#include "wire/vfio_user/session_int.h"

/* Larger memory without a descriptor is most likely the guest's RAM, and a mistake. */
#define UNSHARED_WARN (UINT64_C(16) << 20)

static struct vfu_range *range_at(const struct vfu_session *ses, unsigned i)
{
    return &g_array_index(ses->ranges, struct vfu_range, i);
}

static void range_drop(struct vfu_session *ses, unsigned i)
{
    struct vfu_range *r = range_at(ses, i);

    if (r->region != NULL) {
        qv_guest_region_unref(r->region);
    }
    g_array_remove_index_fast(ses->ranges, i);
}

void vfu_dma_drop(struct vfu_session *ses)
{
    while (ses->ranges->len > 0) {
        range_drop(ses, ses->ranges->len - 1);
    }
}

bool vfu_dma_apply(struct vfu_session *ses, void (*done)(void *ses), GError **error)
{
    struct qv_guest_region *regions[QV_GUEST_REGIONS_MAX];
    struct qv_guest_map *map;
    unsigned count = 0;

    for (unsigned i = 0; i < ses->ranges->len; i++) {
        if (range_at(ses, i)->region != NULL) {
            regions[count++] = range_at(ses, i)->region;
        }
    }
    if (!qv_guest_map_new(regions, count, &map, error)) {
        return false;
    }
    qv_pci_change_memory(ses->fn, map, ses->log, done, ses);
    qv_guest_map_unref(map);
    return true;
}

/* ---- DMA_MAP ---- */

static int check_map(const struct vfu_session *ses, const struct vfu_dma_map *m, GError **error)
{
    uint64_t end;

    if (m->size == 0 || !qv_add_u64(m->address, m->size, &end) ||
        (m->flags & (VFU_MAP_READ | VFU_MAP_WRITE)) == 0 ||
        (m->flags & ~(uint32_t)(VFU_MAP_READ | VFU_MAP_WRITE)) != 0) {
        qv_fail(error, QV_ERROR_FAILED, "memory at 0x%" PRIx64 ", size 0x%" PRIx64 ", flags 0x%x",
                m->address, m->size, m->flags);
        return -EINVAL;
    }
    if (ses->log != NULL && end > VFU_LOG_END) {
        qv_fail(error, QV_ERROR_FAILED, "memory at 0x%" PRIx64 ": out of reach of the log",
                m->address);
        return -EINVAL;
    }
    if (ses->ranges->len == QV_GUEST_REGIONS_MAX) {
        qv_fail(error, QV_ERROR_FAILED, "more than %u ranges of memory", QV_GUEST_REGIONS_MAX);
        return -ENOSPC;
    }
    for (unsigned i = 0; i < ses->ranges->len; i++) {
        const struct vfu_range *r = range_at(ses, i);

        if (m->address < r->address + r->size && r->address < end) {
            qv_fail(error, QV_ERROR_FAILED, "memory at 0x%" PRIx64 ": there is some already",
                    m->address);
            return -EEXIST;
        }
    }
    return 0;
}

static void map_done(void *arg)
{
    struct vfu_session *ses = arg;

    vfu_session_reply(ses, NULL, 0, -1);
    vfu_session_done(ses);
}

static int map_shared(struct vfu_session *ses, const struct vfu_dma_map *m, int fd, GError **error)
{
    struct qv_guest_region_spec spec = {
        .gpa = m->address,
        .size = m->size,
        .fd_offset = m->offset,
        .fd = fd,
        .readonly = !(m->flags & VFU_MAP_WRITE),
    };
    struct vfu_range range = {.address = m->address, .size = m->size};

    if (!qv_guest_region_new(&spec, &range.region, error)) {
        return -EINVAL;
    }
    g_array_append_val(ses->ranges, range);
    vfu_session_wait(ses);
    if (!vfu_dma_apply(ses, map_done, error)) {
        g_assert_not_reached(); /* no overlap, not too many: that was checked */
    }
    return VFU_PENDING;
}

int vfu_dma_map(struct vfu_session *ses, GError **error)
{
    QV_CLEANUP(qv_close_fd) int fd = qv_wire_take_fd(&ses->msg.in);
    struct vfu_range range;
    struct vfu_dma_map m;
    int rc;

    vfu_copy(ses, &m, sizeof(m));
    rc = check_map(ses, &m, error);
    if (rc < 0) {
        return rc;
    }
    if (fd >= 0) {
        return map_shared(ses, &m, fd, error);
    }
    if (m.size >= UNSHARED_WARN) {
        qv_log_limited(&ses->server->listener.log_limit, QV_LOG_WARN,
                       "%s: 0x%" PRIx64 " bytes of memory at 0x%" PRIx64
                       " come without a descriptor, so the device cannot use them: give the VM "
                       "shared memory (memory-backend-memfd,share=on)",
                       ses->server->listener.name, m.size, m.address);
    }
    range = (struct vfu_range){.address = m.address, .size = m.size};
    g_array_append_val(ses->ranges, range);
    vfu_session_reply(ses, NULL, 0, -1);
    return 0;
}

/* ---- DMA_UNMAP ---- */

static void unmap_done(void *arg)
{
    struct vfu_session *ses = arg;
    struct vfu_dma_unmap m;

    vfu_copy(ses, &m, sizeof(m));
    vfu_session_reply(ses, &m, sizeof(m), -1);
    vfu_session_done(ses);
}

static int drop_range(struct vfu_session *ses, const struct vfu_dma_unmap *m, GError **error)
{
    for (unsigned i = 0; i < ses->ranges->len; i++) {
        if (range_at(ses, i)->address == m->address && range_at(ses, i)->size == m->size) {
            range_drop(ses, i);
            return 0;
        }
    }
    qv_fail(error, QV_ERROR_FAILED, "no memory at 0x%" PRIx64 " of 0x%" PRIx64 " bytes", m->address,
            m->size);
    return -ENOENT;
}

int vfu_dma_unmap(struct vfu_session *ses, GError **error)
{
    struct vfu_dma_unmap m;
    int rc = 0;

    vfu_copy(ses, &m, sizeof(m));
    if (m.flags == VFU_UNMAP_ALL && m.address == 0 && m.size == 0) {
        vfu_dma_drop(ses);
    } else if (m.flags == 0) {
        rc = drop_range(ses, &m, error);
    } else {
        qv_fail(error, QV_ERROR_FAILED, "flags 0x%x", m.flags);
        rc = -EINVAL;
    }
    if (rc < 0) {
        return rc;
    }
    vfu_session_wait(ses);
    if (!vfu_dma_apply(ses, unmap_done, error)) {
        g_assert_not_reached(); /* there are less regions than before */
    }
    return VFU_PENDING;
}
