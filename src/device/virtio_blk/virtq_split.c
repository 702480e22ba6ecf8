/* SPDX-License-Identifier: Apache-2.0 */
/* Split virtqueues. Source: virtio 1.2, 2.7. */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "device/virtio_blk/virtq_int.h"

static struct inflight_split *area(struct qv_virtq *vq)
{
    return vq->l.inflight;
}

static uint16_t *used_event(struct qv_virtq *vq)
{
    return &((struct virtq_avail *)vq->l.avail)->ring[vq->num];
}

static uint16_t *avail_event(struct qv_virtq *vq)
{
    return (uint16_t *)(void *)&((struct virtq_used *)vq->l.used)->ring[vq->num];
}

/* ---- start ---- */

/* The process may have died between publishing a batch and clearing its marks: finish that. */
static bool finish_last_batch(struct qv_virtq *vq, GError **error)
{
    struct inflight_split *a = area(vq);
    uint16_t count = (uint16_t)(vq->used_idx - SHARED_LOAD(&a->used_idx));
    uint16_t head = SHARED_LOAD(&a->last_batch_head);

    if (count > vq->num) {
        return qv_fail(error, QV_ERROR_FAILED, "the in-flight area does not belong to this queue");
    }
    for (uint16_t i = 0; i < count; i++) {
        if (head >= vq->num) {
            return qv_fail(error, QV_ERROR_FAILED, "the in-flight area is damaged");
        }
        SHARED_STORE(&a->desc[head].inflight, 0);
        head = SHARED_LOAD(&a->desc[head].next);
    }
    INFLIGHT_STEP();
    SHARED_STORE(&a->used_idx, vq->used_idx);
    return true;
}

static void collect_resubmits(struct qv_virtq *vq)
{
    struct inflight_split *a = area(vq);
    uint32_t n = 0;

    vq->resubmit = g_new(struct qv_virtq_resubmit, vq->num);
    for (uint32_t head = 0; head < vq->num; head++) {
        if (SHARED_LOAD(&a->desc[head].inflight) == 1) {
            vq->resubmit[n].state = (uint16_t)head;
            vq->resubmit[n].counter = SHARED_LOAD(&a->desc[head].counter);
            vq->busy[head] = 1;
            n++;
        }
    }
    vq->resubmit_count = n;
    virtq_resubmit_sort(vq);
}

bool virtq_split_start(struct qv_virtq *vq, GError **error)
{
    const struct virtq_used *used = vq->l.used;
    struct inflight_split *a = area(vq);

    vq->busy = g_new0(uint8_t, vq->num);
    vq->batch = g_new(uint16_t, vq->num);
    vq->used_idx = le16toh(SHARED_LOAD(&used->idx));
    vq->last_avail = (uint16_t)vq->l.base;
    if (SHARED_LOAD(&a->version) == 0) {
        SHARED_STORE(&a->desc_num, (uint16_t)vq->num);
        SHARED_STORE(&a->used_idx, vq->used_idx);
        INFLIGHT_STEP();
        SHARED_STORE(&a->version, INFLIGHT_VERSION);
    } else if (SHARED_LOAD(&a->version) != INFLIGHT_VERSION ||
               SHARED_LOAD(&a->desc_num) != vq->num) {
        return qv_fail(error, QV_ERROR_FAILED, "the in-flight area does not fit the queue");
    } else {
        if (!finish_last_batch(vq, error)) {
            return false;
        }
        collect_resubmits(vq);
        if (vq->resubmit_count > 0) {
            /* What was taken is what was given back and what is in flight, whatever base says: a
             * client that lost us can only know the used index. */
            vq->last_avail = (uint16_t)(vq->used_idx + vq->resubmit_count);
        }
    }
    vq->shadow_avail = vq->last_avail;
    return true;
}

/* ---- taking requests ---- */

static struct virtq_desc desc_from_le(const void *from)
{
    struct virtq_desc d;

    memcpy(&d, from, sizeof(d));
    d.addr = le64toh(d.addr);
    d.len = le32toh(d.len);
    d.flags = le16toh(d.flags);
    d.next = le16toh(d.next);
    return d;
}

static int walk_indirect(struct qv_virtq *vq, struct qv_guest_view *view,
                         struct qv_virtq_chain *chain, const struct virtq_desc *pointer)
{
    struct virtq_indirect table;
    uint32_t i = 0, left;
    int rc = virtq_indirect_open(vq, view, pointer->addr, pointer->len, &table);

    if (rc < 0) {
        return rc;
    }
    left = MIN(table.count, QV_VIRTQ_CHAIN_MAX);
    for (;;) {
        struct virtq_desc raw, d;

        if (left-- == 0) {
            return virtq_broken(vq, "an indirect chain too long");
        }
        rc = virtq_indirect_get(vq, view, &table, i, &raw);
        if (rc < 0) {
            return rc;
        }
        d = desc_from_le(&raw);
        if (d.flags & VIRTQ_DESC_F_INDIRECT) {
            return virtq_broken(vq, "an indirect descriptor inside an indirect table");
        }
        rc = virtq_chain_add(vq, view, chain, d.addr, d.len, d.flags & VIRTQ_DESC_F_WRITE);
        if (rc < 0 || !(d.flags & VIRTQ_DESC_F_NEXT)) {
            return rc;
        }
        i = d.next;
        if (i >= table.count) {
            return virtq_broken(vq, "a descriptor index out of its indirect table");
        }
    }
}

static int walk(struct qv_virtq *vq, struct qv_guest_view *view, struct qv_virtq_chain *chain,
                uint16_t head)
{
    const struct virtq_desc *table = vq->l.desc;
    uint32_t left = MIN(vq->num, QV_VIRTQ_CHAIN_MAX);
    uint32_t i = head;

    virtq_chain_reset(chain);
    for (;;) {
        struct virtq_desc d;
        int rc;

        if (left-- == 0) {
            return virtq_broken(vq, "a descriptor chain too long");
        }
        d = desc_from_le(&table[i]);
        if (d.flags & VIRTQ_DESC_F_INDIRECT) {
            if (d.flags & VIRTQ_DESC_F_NEXT) {
                return virtq_broken(vq, "an indirect descriptor that is not the last");
            }
            return walk_indirect(vq, view, chain, &d);
        }
        rc = virtq_chain_add(vq, view, chain, d.addr, d.len, d.flags & VIRTQ_DESC_F_WRITE);
        if (rc < 0 || !(d.flags & VIRTQ_DESC_F_NEXT)) {
            return rc;
        }
        i = d.next;
        if (i >= vq->num) {
            return virtq_broken(vq, "a descriptor index out of the table");
        }
    }
}

static int pop_resubmit(struct qv_virtq *vq, struct qv_guest_view *view,
                        struct qv_virtq_chain *chain)
{
    int rc;

    chain->id = vq->resubmit[vq->resubmit_next].state;
    rc = walk(vq, view, chain, chain->id);
    if (rc < 0) {
        return rc;
    }
    vq->resubmit_next++;
    return 1;
}

/* Looks at the available index again. Returns how many requests wait, or -EPROTO. */
static int load_avail(struct qv_virtq *vq)
{
    const struct virtq_avail *avail = vq->l.avail;
    uint16_t waiting;

    vq->shadow_avail = le16toh(SHARED_LOAD_ACQ(&avail->idx));
    waiting = (uint16_t)(vq->shadow_avail - vq->last_avail);
    if (waiting > vq->num) {
        return virtq_broken(vq, "the available index has jumped");
    }
    return waiting;
}

int virtq_split_pop(struct qv_virtq *vq, struct qv_guest_view *view, struct qv_virtq_chain *chain)
{
    const struct virtq_avail *avail = vq->l.avail;
    struct inflight_split_desc *note;
    uint16_t head;
    int rc;

    if (vq->resubmit_next < vq->resubmit_count) {
        return pop_resubmit(vq, view, chain);
    }
    if (vq->shadow_avail == vq->last_avail) {
        rc = load_avail(vq);
        if (rc <= 0) {
            return rc;
        }
    }
    head = le16toh(SHARED_LOAD(&avail->ring[vq->last_avail & (vq->num - 1)]));
    if (head >= vq->num) {
        return virtq_broken(vq, "a head index out of the table");
    }
    if (vq->busy[head]) {
        return virtq_broken(vq, "a head that is still in use");
    }
    rc = walk(vq, view, chain, head);
    if (rc < 0) {
        return rc;
    }
    chain->id = head;
    vq->busy[head] = 1;
    vq->last_avail++;
    note = &area(vq)->desc[head];
    SHARED_STORE(&note->counter, vq->counter++);
    INFLIGHT_STEP();
    SHARED_STORE(&note->inflight, 1);
    return 1;
}

/* ---- giving them back ---- */

void virtq_split_push(struct qv_virtq *vq, const struct qv_virtq_chain *chain, uint32_t written)
{
    struct virtq_used *used = vq->l.used;
    uint32_t slot = (uint16_t)(vq->used_idx + vq->unpublished) & (vq->num - 1);

    SHARED_STORE(&used->ring[slot].id, htole32(chain->id));
    SHARED_STORE(&used->ring[slot].len, htole32(written));
    virtq_mark(vq,
               vq->l.used_gpa + offsetof(struct virtq_used, ring) + slot * sizeof(used->ring[0]),
               sizeof(used->ring[0]));
    vq->busy[chain->id] = 0;
    /* busy[] keeps the number of unpublished ones at num at most: a head is pushed once and cannot
     * be taken again before the driver sees it. */
    vq->batch[vq->unpublished++] = chain->id;
}

void virtq_split_publish(struct qv_virtq *vq)
{
    struct virtq_used *used = vq->l.used;
    struct inflight_split *a = area(vq);

    if (vq->unpublished == 0) {
        return;
    }
    for (uint16_t i = 0; i < vq->unpublished; i++) {
        SHARED_STORE(&a->desc[vq->batch[i]].next, SHARED_LOAD(&a->last_batch_head));
        INFLIGHT_STEP();
        SHARED_STORE(&a->last_batch_head, vq->batch[i]);
    }
    vq->used_idx = (uint16_t)(vq->used_idx + vq->unpublished);
    vq->since_signal += vq->unpublished;
    SHARED_STORE_REL(&used->idx, htole16(vq->used_idx));
    INFLIGHT_STEP();
    virtq_mark(vq, vq->l.used_gpa, sizeof(*used));
    for (uint16_t i = 0; i < vq->unpublished; i++) {
        SHARED_STORE(&a->desc[vq->batch[i]].inflight, 0);
    }
    INFLIGHT_STEP();
    SHARED_STORE(&a->used_idx, vq->used_idx);
    vq->unpublished = 0;
}

bool virtq_split_should_signal(struct qv_virtq *vq)
{
    const struct virtq_avail *avail = vq->l.avail;
    uint32_t since = vq->since_signal;
    bool wanted;

    if (since == 0) {
        return false;
    }
    /* The driver stores its wish, then looks at our index; we do the reverse. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (vq->l.event_idx) {
        wanted =
            since > UINT16_MAX || virtq_need_event(le16toh(SHARED_LOAD(used_event(vq))),
                                                   vq->used_idx, (uint16_t)(vq->used_idx - since));
    } else {
        wanted = !(le16toh(SHARED_LOAD(&avail->flags)) & VIRTQ_AVAIL_F_NO_INTERRUPT);
    }
    vq->since_signal = 0;
    return wanted;
}

void virtq_split_kicks_off(struct qv_virtq *vq)
{
    struct virtq_used *used = vq->l.used;

    /* With event indices nothing need be done: the one event asked for has happened. */
    if (!vq->l.event_idx) {
        SHARED_STORE(&used->flags, htole16(VIRTQ_USED_F_NO_NOTIFY));
        virtq_mark(vq, vq->l.used_gpa, sizeof(*used));
    }
}

bool virtq_split_has_request(const struct qv_virtq *vq)
{
    const struct virtq_avail *avail = vq->l.avail;

    return le16toh(SHARED_LOAD(&avail->idx)) != vq->last_avail;
}

bool virtq_split_kicks_on(struct qv_virtq *vq)
{
    struct virtq_used *used = vq->l.used;

    if (vq->l.event_idx) {
        SHARED_STORE(avail_event(vq), htole16(vq->last_avail));
        virtq_mark(vq,
                   vq->l.used_gpa + offsetof(struct virtq_used, ring) +
                       vq->num * sizeof(used->ring[0]),
                   sizeof(uint16_t));
    } else {
        SHARED_STORE(&used->flags, 0);
        virtq_mark(vq, vq->l.used_gpa, sizeof(*used));
    }
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return virtq_split_has_request(vq);
}
