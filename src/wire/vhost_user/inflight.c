/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The area that survives us: requests in flight of all rings, and behind them the little state of
 * the device that a restarted server could not know otherwise. Clients keep it without looking
 * inside. Source: vhost-user, "Inflight I/O tracking".
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <sys/mman.h>

#include "base/error.h"
#include "wire/vhost_user/session_int.h"

#define TRAILER_MAGIC 0x51564231u /* "QVB1" */

struct trailer {
    uint32_t magic;
    uint8_t writeback; /* the guest may have chosen; taking the wrong one could lose its data */
    uint8_t reserved[59];
};
static_assert(sizeof(struct trailer) == 64, "a multiple of the rings' alignment");

static uint64_t area_size(unsigned num_queues, unsigned queue_size)
{
    return num_queues * qv_virtq_inflight_size(queue_size) + sizeof(struct trailer);
}

static struct trailer *trailer_of(const struct vu_inflight_area *area)
{
    return (struct trailer *)(void *)(area->region->host +
                                      area_size(area->num_queues, area->queue_size) -
                                      sizeof(struct trailer));
}

static bool check_desc(const struct vu_session *ses, const struct vu_inflight *desc, GError **error)
{
    if (desc->num_queues == 0 || desc->num_queues > ses->ring_count ||
        !qv_virtq_size_ok(desc->queue_size, true)) {
        return qv_fail(error, QV_ERROR_FAILED, "in-flight area for %u queues of %u descriptors",
                       desc->num_queues, desc->queue_size);
    }
    return true;
}

static bool adopt(struct vu_session *ses, const struct vu_inflight *desc, int fd, GError **error)
{
    struct qv_guest_region_spec spec = {
        .size = area_size(desc->num_queues, desc->queue_size),
        .fd_offset = desc->mmap_offset,
        .fd = fd,
    };
    struct qv_guest_region *region;

    if (spec.size > desc->mmap_size || desc->mmap_offset % 64 != 0) {
        return qv_fail(error, QV_ERROR_FAILED, "in-flight area of %" PRIu64 " bytes, need %" PRIu64,
                       desc->mmap_size, spec.size);
    }
    if (!qv_guest_region_new(&spec, &region, error)) {
        g_prefix_error(error, "in-flight area: ");
        return false;
    }
    vu_inflight_drop(ses);
    ses->inflight.region = region;
    ses->inflight.num_queues = desc->num_queues;
    ses->inflight.queue_size = desc->queue_size;
    return true;
}

bool vu_inflight_create(struct vu_session *ses, struct vu_inflight *desc, int *out, GError **error)
{
    QV_CLEANUP(qv_close_fd) int fd = -1;

    if (!check_desc(ses, desc, error)) {
        return false;
    }
    desc->mmap_size = area_size(desc->num_queues, desc->queue_size);
    desc->mmap_offset = 0;
    fd = memfd_create("vhost-user-inflight", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || ftruncate(fd, (off_t)desc->mmap_size) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        return qv_fail_errno(error, errno, "in-flight area");
    }
    if (!adopt(ses, desc, fd, error)) {
        return false;
    }
    trailer_of(&ses->inflight)->magic = TRAILER_MAGIC;
    vu_inflight_save_writeback(ses);
    *out = qv_steal_fd(&fd);
    return true;
}

bool vu_inflight_adopt(struct vu_session *ses, const struct vu_inflight *desc, int fd,
                       GError **error)
{
    const struct trailer *t;

    if (!check_desc(ses, desc, error) || !adopt(ses, desc, fd, error)) {
        return false;
    }
    t = trailer_of(&ses->inflight);
    if (t->magic == TRAILER_MAGIC) {
        qv_vblk_set_writeback(ses->server->dev, t->writeback == 1);
    }
    return true;
}

void vu_inflight_drop(struct vu_session *ses)
{
    if (ses->inflight.region != NULL) {
        qv_guest_region_unref(ses->inflight.region);
        ses->inflight.region = NULL;
    }
}

void *vu_inflight_ring(const struct vu_session *ses, unsigned index, uint32_t num)
{
    const struct vu_inflight_area *a = &ses->inflight;

    if (a->region == NULL || index >= a->num_queues || num > a->queue_size) {
        return NULL;
    }
    return a->region->host + index * qv_virtq_inflight_size(a->queue_size);
}

void vu_inflight_save_writeback(struct vu_session *ses)
{
    if (ses->inflight.region != NULL) {
        trailer_of(&ses->inflight)->writeback = qv_vblk_writeback(ses->server->dev);
    }
}
