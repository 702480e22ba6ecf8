/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packed virtqueues. Source: virtio 1.2, 2.8.
 *
 * Used descriptors are published one by one. Batches of them could not be undone: a process killed
 * after it marked the later ones of a batch used, and before the first, would leave marks that the
 * driver takes for completions once the restarted process has completed the first alone.
 *
 * The in-flight area has the layout of the vhost-user specification, but its free list is not kept
 * in shared memory: which entries are free follows from which are in flight. free_head only names
 * the request that is being completed; a request is in flight from the moment its mark is set.
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "device/virtio_blk/virtq_int.h"

static struct inflight_packed *area(struct qv_virtq *vq)
{
    return vq->l.inflight;
}

static bool is_available(uint16_t flags, bool wrap)
{
    return !!(flags & VIRTQ_DESC_F_AVAIL) == wrap && !!(flags & VIRTQ_DESC_F_USED) != wrap;
}

/* Moves a ring position by @slots, at most num. */
static void advance(uint32_t num, uint32_t slots, uint16_t *slot, bool *wrap)
{
    uint32_t to = *slot + slots;

    if (to >= num) {
        to -= num;
        *wrap = !*wrap;
    }
    *slot = (uint16_t)to;
}

/* ---- start ---- */

static bool area_damaged(GError **error)
{
    return qv_fail(error, QV_ERROR_FAILED, "the in-flight area is damaged");
}

/* Moves the used position noted in the area, from (@old, @old_wrap) on, in one store. */
static void area_set_pos(struct inflight_packed *a, uint16_t now, bool now_wrap, uint16_t old,
                         bool old_wrap)
{
    struct inflight_packed to = {.pos = {.used_idx = now,
                                         .old_used_idx = old,
                                         .used_wrap_counter = now_wrap,
                                         .old_used_wrap_counter = old_wrap}};

    SHARED_STORE(&a->pos_word, to.pos_word);
}

static bool area_init(struct qv_virtq *vq, GError **error)
{
    struct inflight_packed *a = area(vq);

    vq->used_slot = (uint16_t)(vq->l.base >> 16 & 0x7fff);
    vq->used_wrap = vq->l.base >> 31;
    vq->avail_slot = (uint16_t)(vq->l.base & 0x7fff);
    vq->avail_wrap = vq->l.base >> 15 & 1;
    if (vq->used_slot >= vq->num || vq->avail_slot >= vq->num) {
        return qv_fail(error, QV_ERROR_FAILED, "queue base 0x%x lies outside of the ring",
                       vq->l.base);
    }
    SHARED_STORE(&a->desc_num, (uint16_t)vq->num);
    area_set_pos(a, vq->used_slot, vq->used_wrap, vq->used_slot, vq->used_wrap);
    INFLIGHT_STEP();
    SHARED_STORE(&a->version, INFLIGHT_VERSION);
    return true;
}

/* Completes, or takes back, the completion during which the process died. */
static bool area_settle(struct qv_virtq *vq, GError **error)
{
    const struct virtq_packed_desc *ring = vq->l.desc;
    struct inflight_packed *a = area(vq);
    struct inflight_packed at = {.pos_word = SHARED_LOAD(&a->pos_word)};
    uint16_t head = SHARED_LOAD(&a->free_head);
    bool old_wrap = at.pos.old_used_wrap_counter == 1;

    if (at.pos.used_idx >= vq->num || at.pos.old_used_idx >= vq->num || head >= vq->num) {
        return area_damaged(error);
    }
    vq->used_slot = at.pos.used_idx;
    vq->used_wrap = at.pos.used_wrap_counter == 1;
    if (vq->used_slot == at.pos.old_used_idx && vq->used_wrap == old_wrap) {
        return true;
    }
    if (is_available(le16toh(SHARED_LOAD(&ring[at.pos.old_used_idx].flags)), old_wrap)) {
        /* The driver has not seen it. */
        vq->used_slot = at.pos.old_used_idx;
        vq->used_wrap = old_wrap;
    } else {
        SHARED_STORE(&a->desc[head].inflight, 0);
        INFLIGHT_STEP();
    }
    area_set_pos(a, vq->used_slot, vq->used_wrap, vq->used_slot, vq->used_wrap);
    return true;
}

/* Takes over one request's entries; false when they are no proper list. */
static bool claim_entries(struct qv_virtq *vq, uint16_t head, uint8_t *owned, uint16_t *out)
{
    const struct inflight_packed *a = area(vq);
    uint16_t count = SHARED_LOAD(&a->desc[head].num);
    uint16_t entry = head;

    if (count == 0 || count > vq->num - vq->taken_slots) {
        return false;
    }
    for (uint16_t i = 0; i < count; i++) {
        if (entry >= vq->num || owned[entry]) {
            return false;
        }
        owned[entry] = 1;
        vq->next[entry] = SHARED_LOAD(&a->desc[entry].next);
        entry = vq->next[entry];
    }
    vq->taken_slots += count;
    *out = count;
    return true;
}

static bool collect_resubmits(struct qv_virtq *vq, GError **error)
{
    const struct inflight_packed *a = area(vq);
    g_autofree uint8_t *owned = g_new0(uint8_t, vq->num);

    vq->resubmit = g_new(struct qv_virtq_resubmit, vq->num);
    for (uint32_t i = 0; i < vq->num; i++) {
        if (SHARED_LOAD(&a->desc[i].inflight) != 1) {
            continue;
        }
        struct qv_virtq_resubmit *r = &vq->resubmit[vq->resubmit_count];

        if (!claim_entries(vq, (uint16_t)i, owned, &r->slots)) {
            return area_damaged(error);
        }
        r->state = (uint16_t)i;
        r->counter = SHARED_LOAD(&a->desc[i].counter);
        vq->resubmit_count++;
    }
    vq->free_count = 0;
    for (uint32_t i = vq->num; i-- > 0;) {
        if (!owned[i]) {
            vq->free[vq->free_count++] = (uint16_t)i;
        }
    }
    virtq_resubmit_sort(vq);
    /* Slots are given back in a row, so what was taken is what was given back and what is in
     * flight, whatever base says: a client that lost us cannot know it. */
    vq->avail_slot = vq->used_slot;
    vq->avail_wrap = vq->used_wrap;
    advance(vq->num, vq->taken_slots, &vq->avail_slot, &vq->avail_wrap);
    return true;
}

bool virtq_packed_start(struct qv_virtq *vq, GError **error)
{
    struct inflight_packed *a = area(vq);

    vq->next = g_new0(uint16_t, vq->num);
    vq->free = g_new(uint16_t, vq->num);
    if (SHARED_LOAD(&a->version) == 0) {
        for (uint32_t i = 0; i < vq->num; i++) {
            vq->free[i] = (uint16_t)(vq->num - 1 - i);
        }
        vq->free_count = vq->num;
        return area_init(vq, error);
    }
    if (SHARED_LOAD(&a->version) != INFLIGHT_VERSION || SHARED_LOAD(&a->desc_num) != vq->num) {
        return qv_fail(error, QV_ERROR_FAILED, "the in-flight area does not fit the queue");
    }
    return area_settle(vq, error) && collect_resubmits(vq, error);
}

/* ---- taking requests ---- */

static struct virtq_packed_desc desc_from_le(const void *from)
{
    struct virtq_packed_desc d;

    memcpy(&d, from, sizeof(d));
    d.addr = le64toh(d.addr);
    d.len = le32toh(d.len);
    d.id = le16toh(d.id);
    d.flags = le16toh(d.flags);
    return d;
}

static int walk_indirect(struct qv_virtq *vq, struct qv_guest_view *view,
                         struct qv_virtq_chain *chain, uint64_t addr, uint32_t len)
{
    struct virtq_indirect table;
    int rc = virtq_indirect_open(vq, view, addr, len, &table);

    if (rc < 0) {
        return rc;
    }
    if (table.count > QV_VIRTQ_CHAIN_MAX) {
        return virtq_broken(vq, "an indirect table too long");
    }
    for (uint32_t i = 0; i < table.count; i++) {
        struct virtq_packed_desc raw, d;

        rc = virtq_indirect_get(vq, view, &table, i, &raw);
        if (rc < 0) {
            return rc;
        }
        d = desc_from_le(&raw);
        if (d.flags & VIRTQ_DESC_F_INDIRECT) {
            return virtq_broken(vq, "an indirect descriptor inside an indirect table");
        }
        rc = virtq_chain_add(vq, view, chain, d.addr, d.len, d.flags & VIRTQ_DESC_F_WRITE);
        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}

static int add_desc(struct qv_virtq *vq, struct qv_guest_view *view, struct qv_virtq_chain *chain,
                    uint64_t addr, uint32_t len, uint16_t flags)
{
    if (flags & VIRTQ_DESC_F_INDIRECT) {
        if (flags & VIRTQ_DESC_F_NEXT) {
            return virtq_broken(vq, "an indirect descriptor that is not the last");
        }
        return walk_indirect(vq, view, chain, addr, len);
    }
    return virtq_chain_add(vq, view, chain, addr, len, flags & VIRTQ_DESC_F_WRITE);
}

static int pop_resubmit(struct qv_virtq *vq, struct qv_guest_view *view,
                        struct qv_virtq_chain *chain)
{
    const struct qv_virtq_resubmit *r = &vq->resubmit[vq->resubmit_next];
    uint16_t entry = r->state;

    virtq_chain_reset(chain);
    chain->state = r->state;
    chain->slots = r->slots; /* not by the flags below: anybody may have changed those since */
    for (uint16_t i = 0; i < r->slots; i++) {
        const struct inflight_packed_desc *e = &area(vq)->desc[entry];
        uint16_t flags = SHARED_LOAD(&e->flags);
        int rc;

        flags &= (uint16_t)~VIRTQ_DESC_F_NEXT;
        rc = add_desc(vq, view, chain, SHARED_LOAD(&e->addr), SHARED_LOAD(&e->len), flags);
        if (rc < 0) {
            return rc;
        }
        chain->id = SHARED_LOAD(&e->id);
        chain->last = entry;
        entry = vq->next[entry];
    }
    vq->resubmit_next++;
    return 1;
}

/* Puts a copy of @d into the next free entry, linked behind the one before. */
static void note_desc(struct qv_virtq *vq, struct qv_virtq_chain *chain,
                      const struct virtq_packed_desc *d)
{
    uint16_t entry = vq->free[vq->free_count - 1 - chain->slots];
    struct inflight_packed_desc *e = &area(vq)->desc[entry];

    if (chain->slots == 0) {
        chain->state = entry;
    } else {
        vq->next[chain->last] = entry;
        SHARED_STORE(&area(vq)->desc[chain->last].next, entry);
    }
    SHARED_STORE(&e->next, 0);
    SHARED_STORE(&e->id, d->id);
    SHARED_STORE(&e->flags, d->flags);
    SHARED_STORE(&e->len, d->len);
    SHARED_STORE(&e->addr, d->addr);
    vq->next[entry] = 0;
    chain->last = entry;
    chain->slots++;
    chain->id = d->id;
}

static void take(struct qv_virtq *vq, const struct qv_virtq_chain *chain)
{
    struct inflight_packed_desc *e = &area(vq)->desc[chain->state];

    vq->free_count -= chain->slots;
    vq->taken_slots += chain->slots;
    advance(vq->num, chain->slots, &vq->avail_slot, &vq->avail_wrap);
    SHARED_STORE(&e->num, chain->slots);
    SHARED_STORE(&e->last, chain->last);
    SHARED_STORE(&e->counter, vq->counter++);
    INFLIGHT_STEP();
    SHARED_STORE(&e->inflight, 1);
}

int virtq_packed_pop(struct qv_virtq *vq, struct qv_guest_view *view, struct qv_virtq_chain *chain)
{
    const struct virtq_packed_desc *ring = vq->l.desc;
    uint16_t slot = vq->avail_slot;
    bool wrap = vq->avail_wrap;
    uint16_t flags;

    if (vq->resubmit_next < vq->resubmit_count) {
        return pop_resubmit(vq, view, chain);
    }
    flags = le16toh(SHARED_LOAD_ACQ(&ring[slot].flags));
    if (!is_available(flags, wrap)) {
        return 0;
    }
    virtq_chain_reset(chain);
    chain->slots = 0;
    for (;;) {
        struct virtq_packed_desc d = desc_from_le(&ring[slot]);
        int rc;

        if (chain->slots == 0) {
            d.flags = flags;
        }
        if (chain->slots == vq->free_count || chain->slots == QV_VIRTQ_CHAIN_MAX) {
            return virtq_broken(vq, "more descriptors in use than the ring has");
        }
        rc = add_desc(vq, view, chain, d.addr, d.len, d.flags);
        if (rc < 0) {
            return rc;
        }
        note_desc(vq, chain, &d);
        if (!(d.flags & VIRTQ_DESC_F_NEXT)) {
            break;
        }
        advance(vq->num, 1, &slot, &wrap);
    }
    take(vq, chain);
    return 1;
}

/* ---- giving them back ---- */

static void free_entries(struct qv_virtq *vq, const struct qv_virtq_chain *chain)
{
    uint16_t entry = chain->state;

    for (uint16_t i = 0; i < chain->slots; i++) {
        vq->free[vq->free_count++] = entry;
        entry = vq->next[entry];
    }
    vq->taken_slots -= chain->slots;
}

void virtq_packed_push(struct qv_virtq *vq, const struct qv_virtq_chain *chain, uint32_t written)
{
    struct virtq_packed_desc *d = &((struct virtq_packed_desc *)vq->l.desc)[vq->used_slot];
    struct inflight_packed *a = area(vq);
    uint16_t flags = vq->used_wrap ? VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED : 0;
    uint64_t gpa = vq->desc_gpa + sizeof(*d) * vq->used_slot;
    uint16_t old = vq->used_slot;
    bool old_wrap = vq->used_wrap;

    SHARED_STORE(&d->id, htole16(chain->id));
    SHARED_STORE(&d->len, htole32(written));
    advance(vq->num, chain->slots, &vq->used_slot, &vq->used_wrap);
    SHARED_STORE(&a->free_head, chain->state);
    INFLIGHT_STEP();
    area_set_pos(a, vq->used_slot, vq->used_wrap, old, old_wrap);
    INFLIGHT_STEP();
    if (written > 0) {
        flags |= VIRTQ_DESC_F_WRITE;
    }
    SHARED_STORE_REL(&d->flags, htole16(flags));
    INFLIGHT_STEP();
    SHARED_STORE(&a->desc[chain->state].inflight, 0);
    INFLIGHT_STEP();
    area_set_pos(a, vq->used_slot, vq->used_wrap, vq->used_slot, vq->used_wrap);
    SHARED_STORE(&a->old_free_head, chain->state);
    virtq_mark(vq, gpa, sizeof(*d));
    free_entries(vq, chain);
    vq->since_signal += chain->slots;
}

bool virtq_packed_should_signal(struct qv_virtq *vq)
{
    const struct virtq_event *event = vq->l.avail;
    uint32_t since = vq->since_signal;
    uint16_t flags, off_wrap, at;

    if (since == 0) {
        return false;
    }
    vq->since_signal = 0;
    /* The driver stores its wish, then looks at the ring; we do the reverse. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    flags = le16toh(SHARED_LOAD_ACQ(&event->flags));
    if (flags == VIRTQ_EVENT_DISABLE) {
        return false;
    }
    if (flags != VIRTQ_EVENT_DESC || !vq->l.event_idx || since >= vq->num) {
        return true;
    }
    off_wrap = le16toh(SHARED_LOAD(&event->off_wrap));
    at = off_wrap & 0x7fff;
    if (off_wrap >> 15 != vq->used_wrap) {
        at = (uint16_t)(at - vq->num);
    }
    return virtq_need_event(at, vq->used_slot, (uint16_t)(vq->used_slot - since));
}

void virtq_packed_kicks_off(struct qv_virtq *vq)
{
    struct virtq_event *event = vq->l.used;

    SHARED_STORE(&event->flags, htole16(VIRTQ_EVENT_DISABLE));
    virtq_mark(vq, vq->l.used_gpa, sizeof(*event));
}

bool virtq_packed_has_request(const struct qv_virtq *vq)
{
    const struct virtq_packed_desc *ring = vq->l.desc;

    return is_available(le16toh(SHARED_LOAD(&ring[vq->avail_slot].flags)), vq->avail_wrap);
}

bool virtq_packed_kicks_on(struct qv_virtq *vq)
{
    struct virtq_event *event = vq->l.used;

    if (vq->l.event_idx) {
        SHARED_STORE(&event->off_wrap,
                     htole16((uint16_t)(vq->avail_slot | (uint16_t)(vq->avail_wrap << 15))));
        SHARED_STORE_REL(&event->flags, htole16(VIRTQ_EVENT_DESC));
    } else {
        SHARED_STORE(&event->flags, htole16(VIRTQ_EVENT_ENABLE));
    }
    virtq_mark(vq, vq->l.used_gpa, sizeof(*event));
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return virtq_packed_has_request(vq);
}
