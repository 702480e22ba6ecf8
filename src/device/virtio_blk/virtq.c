/* SPDX-License-Identifier: Apache-2.0 */
/* What split and packed rings have in common: checks of the layout, chains of buffers. */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/maths.h"
#include "device/virtio_blk/virtq_int.h"

bool qv_virtq_size_ok(uint32_t num, bool packed)
{
    return num > 0 && num <= QV_VIRTQ_SIZE_MAX && (packed || qv_is_pow2(num));
}

void qv_virtq_sizes(uint32_t num, bool packed, bool event_idx, uint64_t *desc, uint64_t *avail,
                    uint64_t *used)
{
    *desc = UINT64_C(16) * num;
    if (packed) {
        *avail = *used = sizeof(struct virtq_event);
        return;
    }
    *avail = sizeof(struct virtq_avail) + UINT64_C(2) * num + (event_idx ? 2 : 0);
    *used = sizeof(struct virtq_used) + sizeof(struct virtq_used_elem) * (uint64_t)num +
            (event_idx ? 2 : 0);
}

uint64_t qv_virtq_inflight_size(uint32_t num)
{
    /* The packed layout is the larger one. */
    return qv_align_up(
        sizeof(struct inflight_packed) + sizeof(struct inflight_packed_desc) * (uint64_t)num, 64);
}

/* virtio 1.2, 2.7 and 2.8: alignment of the parts. Unaligned atomics would also be undefined. */
static bool check_layout(const struct qv_virtq_layout *l, GError **error)
{
    unsigned used_align = 4, avail_align = l->packed ? 4 : 2;

    if (!qv_virtq_size_ok(l->num, l->packed)) {
        return qv_fail(error, QV_ERROR_FAILED, "a queue of %u descriptors is not possible", l->num);
    }
    if (!qv_is_aligned((uintptr_t)l->desc, 16) ||
        !qv_is_aligned((uintptr_t)l->avail, avail_align) ||
        !qv_is_aligned((uintptr_t)l->used, used_align)) {
        return qv_fail(error, QV_ERROR_FAILED, "the queue's rings are not aligned");
    }
    return true;
}

static bool find_desc_gpa(const struct qv_virtq_layout *l, const struct qv_guest_map *map,
                          uint64_t *out, GError **error)
{
    if (!qv_guest_map_gpa_of(map, l->desc, out)) {
        return qv_fail(error, QV_ERROR_FAILED, "the queue's ring is not in guest memory");
    }
    return true;
}

bool qv_virtq_start(struct qv_virtq *vq, const struct qv_virtq_layout *layout,
                    const struct qv_guest_map *map, struct qv_dirty_log *log, GError **error)
{
    memset(vq, 0, sizeof(*vq));
    if (!check_layout(layout, error) || !find_desc_gpa(layout, map, &vq->desc_gpa, error)) {
        return false;
    }
    vq->l = *layout;
    vq->num = layout->num;
    vq->log = log;
    if (!(layout->packed ? virtq_packed_start(vq, error) : virtq_split_start(vq, error))) {
        qv_virtq_stop(vq);
        return false;
    }
    return true;
}

bool qv_virtq_move(struct qv_virtq *vq, const struct qv_virtq_layout *layout,
                   const struct qv_guest_map *map, struct qv_dirty_log *log, GError **error)
{
    uint64_t desc_gpa;

    if (layout->num != vq->num || layout->packed != vq->l.packed) {
        return qv_fail(error, QV_ERROR_FAILED, "a running queue cannot change its size");
    }
    if (!check_layout(layout, error) || !find_desc_gpa(layout, map, &desc_gpa, error)) {
        return false;
    }
    vq->desc_gpa = desc_gpa;
    vq->l.desc = layout->desc;
    vq->l.avail = layout->avail;
    vq->l.used = layout->used;
    vq->l.used_gpa = layout->used_gpa;
    vq->log = log;
    return true;
}

void qv_virtq_stop(struct qv_virtq *vq)
{
    if (!vq->l.packed && vq->batch != NULL) {
        virtq_split_publish(vq);
    }
    g_clear_pointer(&vq->busy, g_free);
    g_clear_pointer(&vq->batch, g_free);
    g_clear_pointer(&vq->resubmit, g_free);
    g_clear_pointer(&vq->next, g_free);
    g_clear_pointer(&vq->free, g_free);
}

uint32_t qv_virtq_base(const struct qv_virtq *vq)
{
    if (!vq->l.packed) {
        return vq->last_avail;
    }
    return (uint32_t)vq->avail_slot | (uint32_t)vq->avail_wrap << 15 |
           (uint32_t)vq->used_slot << 16 | (uint32_t)vq->used_wrap << 31;
}

int qv_virtq_pop(struct qv_virtq *vq, struct qv_guest_view *view, struct qv_virtq_chain *chain)
{
    return vq->l.packed ? virtq_packed_pop(vq, view, chain) : virtq_split_pop(vq, view, chain);
}

void qv_virtq_push(struct qv_virtq *vq, const struct qv_virtq_chain *chain, uint32_t written)
{
    if (vq->l.packed) {
        virtq_packed_push(vq, chain, written);
    } else {
        virtq_split_push(vq, chain, written);
    }
}

void qv_virtq_publish(struct qv_virtq *vq)
{
    if (!vq->l.packed) {
        virtq_split_publish(vq);
    }
}

bool qv_virtq_should_signal(struct qv_virtq *vq)
{
    return vq->l.packed ? virtq_packed_should_signal(vq) : virtq_split_should_signal(vq);
}

void qv_virtq_kicks_off(struct qv_virtq *vq)
{
    if (vq->l.packed) {
        virtq_packed_kicks_off(vq);
    } else {
        virtq_split_kicks_off(vq);
    }
}

bool qv_virtq_kicks_on(struct qv_virtq *vq)
{
    return vq->l.packed ? virtq_packed_kicks_on(vq) : virtq_split_kicks_on(vq);
}

bool qv_virtq_has_request(const struct qv_virtq *vq)
{
    return vq->l.packed ? virtq_packed_has_request(vq) : virtq_split_has_request(vq);
}

/* ---- chains ---- */

int virtq_chain_add(struct qv_virtq *vq, struct qv_guest_view *view, struct qv_virtq_chain *chain,
                    uint64_t addr, uint32_t len, bool writable)
{
    unsigned used = chain->out_cnt + chain->in_cnt;
    int n;

    if (writable) {
        chain->writable_seen = true;
    } else if (chain->writable_seen) {
        return virtq_broken(vq, "a readable buffer follows a writable one");
    }
    if (len == 0) {
        return 0;
    }
    n = qv_guest_view_iov(view, addr, len, writable, chain->iov + used, chain->iov_max - used);
    if (n == -E2BIG && !chain->final) {
        return n;
    }
    if (n < 0) {
        /* The request fails, the ring is fine. Go on: the status byte is at the end. */
        chain->fault = n;
        n = 0;
    }
    if (writable) {
        chain->in_cnt += (unsigned)n;
        chain->in_len += len;
        chain->last_in = addr + len - 1;
    } else {
        chain->out_cnt += (unsigned)n;
        chain->out_len += len;
    }
    return 0;
}

int virtq_indirect_open(struct qv_virtq *vq, struct qv_guest_view *view, uint64_t addr,
                        uint32_t len, struct virtq_indirect *out)
{
    if (!vq->l.indirect) {
        return virtq_broken(vq, "an indirect descriptor, which was not negotiated");
    }
    if (len == 0 || len % sizeof(struct virtq_desc) != 0) {
        return virtq_broken(vq, "an indirect table of a wrong size");
    }
    out->gpa = addr;
    out->count = len / (uint32_t)sizeof(struct virtq_desc);
    out->ptr = qv_guest_view_ptr(view, addr, len, false);
    return 0;
}

int virtq_indirect_get(struct qv_virtq *vq, struct qv_guest_view *view,
                       const struct virtq_indirect *table, uint32_t i, void *desc)
{
    uint64_t offset = sizeof(struct virtq_desc) * (uint64_t)i;
    uint64_t at;

    if (table->ptr != NULL) {
        memcpy(desc, table->ptr + offset, sizeof(struct virtq_desc));
        return 0;
    }
    if (!qv_add_u64(table->gpa, offset, &at) ||
        qv_guest_view_read(view, at, desc, sizeof(struct virtq_desc)) < 0) {
        return virtq_broken(vq, "an indirect table outside of guest memory");
    }
    return 0;
}

static int compare_counter(const void *a, const void *b)
{
    const struct qv_virtq_resubmit *ra = a, *rb = b;

    return (ra->counter > rb->counter) - (ra->counter < rb->counter);
}

void virtq_resubmit_sort(struct qv_virtq *vq)
{
    if (vq->resubmit_count > 0) {
        qsort(vq->resubmit, vq->resubmit_count, sizeof(vq->resubmit[0]), compare_counter);
        vq->counter = vq->resubmit[vq->resubmit_count - 1].counter + 1;
    }
}
