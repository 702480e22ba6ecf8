/* SPDX-License-Identifier: Apache-2.0 */
#include "driver.h"

#include <stdlib.h>
#include <string.h>

const struct driver_kind driver_kinds[4] = {
    {false, false}, {false, true}, {true, false}, {true, true}};

enum { F_NEXT = 1, F_WRITE = 2, F_INDIRECT = 4, F_AVAIL = 1 << 7, F_USED = 1 << 15 };

static void *at(const struct driver *d, uint64_t gpa)
{
    return qv_fake_vm_ptr(d->vm, gpa);
}

uint64_t *driver_desc_addr(struct driver *d, unsigned i)
{
    return at(d, d->desc + 16 * i);
}

uint32_t *driver_desc_len(struct driver *d, unsigned i)
{
    return at(d, d->desc + 16 * i + 8);
}

uint16_t *driver_desc_flags(struct driver *d, unsigned i)
{
    return at(d, d->desc + 16 * i + (d->packed ? 14 : 12));
}

uint16_t *driver_desc_next(struct driver *d, unsigned i)
{
    return at(d, d->desc + 16 * i + (d->packed ? 12 : 14));
}

uint16_t *driver_avail_idx(struct driver *d)
{
    return at(d, d->avail + 2);
}

uint16_t *driver_avail_ring(struct driver *d, unsigned i)
{
    return at(d, d->avail + 4 + 2 * (i % d->num));
}

uint16_t *driver_used_idx(struct driver *d)
{
    return at(d, d->used + 2);
}

void driver_init(struct driver *d, struct qv_fake_vm *vm, uint32_t num, bool packed, bool event_idx)
{
    uint64_t desc, avail, used;

    memset(d, 0, sizeof(*d));
    d->vm = vm;
    d->num = num;
    d->packed = packed;
    d->event_idx = event_idx;
    qv_virtq_sizes(num, packed, event_idx, &desc, &avail, &used);
    d->desc = qv_fake_vm_alloc(vm, desc, 64);
    d->avail = qv_fake_vm_alloc(vm, avail, 64);
    d->used = qv_fake_vm_alloc(vm, used, 64);
    for (uint32_t i = 0; i < num; i++) {
        d->free[d->free_count++] = (uint16_t)(num - 1 - i);
    }
    d->slots_free = num;
    d->avail_wrap = d->used_wrap = true;
}

struct qv_virtq_layout driver_layout(const struct driver *d, void *inflight)
{
    struct qv_guest_view *view = qv_guest_view_new(d->vm->map);
    struct qv_virtq_layout l = {
        .num = d->num,
        .packed = d->packed,
        .event_idx = d->event_idx,
        .indirect = true,
        .desc = qv_guest_view_ptr(view, d->desc, 1, true),
        .avail = qv_guest_view_ptr(view, d->avail, 1, true),
        .used = qv_guest_view_ptr(view, d->used, 1, true),
        .base = d->packed ? 0x80008000u : 0,
        .used_gpa = d->used,
        .inflight = inflight,
    };

    qv_guest_view_retire(view);
    return l;
}

/* Writes a table of descriptors for an indirect request; returns its address. */
static uint64_t indirect_table(struct driver *d, const struct driver_buf *bufs, unsigned count)
{
    uint64_t table = qv_fake_vm_alloc(d->vm, 16 * count, 16);

    for (unsigned i = 0; i < count; i++) {
        uint16_t flags = bufs[i].write ? F_WRITE : 0, next = (uint16_t)(i + 1);
        uint8_t *to = at(d, table + 16 * i);

        if (!d->packed && i + 1 < count) {
            flags |= F_NEXT;
        }
        memcpy(to, &bufs[i].gpa, 8);
        memcpy(to + 8, &bufs[i].len, 4);
        memcpy(to + 12, d->packed ? &next : &flags, 2);
        memcpy(to + 14, d->packed ? &flags : &next, 2);
    }
    return table;
}

static int add_split(struct driver *d, const struct driver_buf *bufs, unsigned count,
                     uint16_t last_flags)
{
    uint16_t head = 0, prev = 0;

    if (d->free_count < count) {
        return -1;
    }
    for (unsigned i = 0; i < count; i++) {
        uint16_t n = d->free[--d->free_count];

        *driver_desc_addr(d, n) = bufs[i].gpa;
        *driver_desc_len(d, n) = bufs[i].len;
        *driver_desc_flags(d, n) =
            (uint16_t)((bufs[i].write ? F_WRITE : 0) | (i + 1 < count ? F_NEXT : last_flags));
        if (i == 0) {
            head = n;
        } else {
            *driver_desc_next(d, prev) = n;
            d->chain[prev] = n;
        }
        prev = n;
    }
    d->chain_len[head] = (uint16_t)count;
    *driver_avail_ring(d, d->avail_idx) = head;
    d->avail_idx++;
    d->added++;
    __atomic_store_n(driver_avail_idx(d), d->avail_idx, __ATOMIC_RELEASE);
    return head;
}

static int add_packed(struct driver *d, const struct driver_buf *bufs, unsigned count,
                      uint16_t last_flags)
{
    uint16_t first = d->avail_idx, first_flags = 0, id;

    if (d->slots_free < count || d->free_count == 0) {
        return -1;
    }
    id = d->free[--d->free_count];
    for (unsigned i = 0; i < count; i++) {
        uint16_t flags =
            (uint16_t)((bufs[i].write ? F_WRITE : 0) | (i + 1 < count ? F_NEXT : last_flags) |
                       (d->avail_wrap ? F_AVAIL : F_USED));

        *driver_desc_addr(d, d->avail_idx) = bufs[i].gpa;
        *driver_desc_len(d, d->avail_idx) = bufs[i].len;
        *driver_desc_next(d, d->avail_idx) = id;
        if (i == 0) {
            first_flags = flags;
        } else {
            *driver_desc_flags(d, d->avail_idx) = flags;
        }
        if (++d->avail_idx == d->num) {
            d->avail_idx = 0;
            d->avail_wrap = !d->avail_wrap;
        }
    }
    d->chain_len[id] = (uint16_t)count;
    d->slots_free -= count;
    d->added += count;
    __atomic_store_n(driver_desc_flags(d, first), first_flags, __ATOMIC_RELEASE);
    return id;
}

int driver_add(struct driver *d, const struct driver_buf *bufs, unsigned count, bool indirect)
{
    struct driver_buf one;
    uint16_t last_flags = 0;

    if (indirect) {
        one.gpa = indirect_table(d, bufs, count);
        one.len = 16 * count;
        one.write = false;
        bufs = &one;
        count = 1;
        last_flags = F_INDIRECT;
    }
    return d->packed ? add_packed(d, bufs, count, last_flags)
                     : add_split(d, bufs, count, last_flags);
}

static bool get_split(struct driver *d, int *token, uint32_t *len)
{
    const uint32_t *elem;
    uint16_t n;

    if (__atomic_load_n(driver_used_idx(d), __ATOMIC_ACQUIRE) == d->used_idx) {
        return false;
    }
    elem = at(d, d->used + 4 + 8 * (d->used_idx % d->num));
    *token = (int)elem[0];
    *len = elem[1];
    d->used_idx++;
    n = (uint16_t)*token;
    for (unsigned left = d->chain_len[*token]; left > 0; left--) {
        d->free[d->free_count++] = n;
        n = d->chain[n];
    }
    return true;
}

static bool get_packed(struct driver *d, int *token, uint32_t *len)
{
    uint16_t flags = __atomic_load_n(driver_desc_flags(d, d->used_idx), __ATOMIC_ACQUIRE);

    if (!!(flags & F_AVAIL) != d->used_wrap || !!(flags & F_USED) != d->used_wrap) {
        return false;
    }
    *token = *driver_desc_next(d, d->used_idx);
    *len = *driver_desc_len(d, d->used_idx);
    d->free[d->free_count++] = (uint16_t)*token;
    d->slots_free += d->chain_len[*token];
    d->used_idx = (uint16_t)(d->used_idx + d->chain_len[*token]);
    if (d->used_idx >= d->num) {
        d->used_idx = (uint16_t)(d->used_idx - d->num);
        d->used_wrap = !d->used_wrap;
    }
    return true;
}

bool driver_get(struct driver *d, int *token, uint32_t *len)
{
    return d->packed ? get_packed(d, token, len) : get_split(d, token, len);
}

static bool passed(uint16_t event, uint16_t now, uint16_t old)
{
    return (uint16_t)(now - event - 1) < (uint16_t)(now - old);
}

bool driver_kick_needed(struct driver *d)
{
    uint32_t added = d->added;
    const uint16_t *event = at(d, d->used); /* packed: device event suppression */
    uint16_t off;

    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    d->added = 0;
    if (added == 0) {
        return false;
    }
    if (!d->packed && !d->event_idx) {
        return !(*(uint16_t *)at(d, d->used) & 1);
    }
    if (!d->packed) {
        return passed(*(uint16_t *)at(d, d->used + 4 + 8 * d->num), d->avail_idx,
                      (uint16_t)(d->avail_idx - added));
    }
    if (event[1] != 2) {
        return event[1] == 0;
    }
    off = event[0] & 0x7fff;
    if (event[0] >> 15 != d->avail_wrap) {
        off = (uint16_t)(off - d->num);
    }
    return added >= d->num || passed(off, d->avail_idx, (uint16_t)(d->avail_idx - added));
}

void driver_want_irq(struct driver *d, bool on)
{
    uint16_t *area = at(d, d->avail);

    if (!d->packed && !d->event_idx) {
        area[0] = !on;
    } else if (!d->packed) {
        area[2 + d->num] = (uint16_t)(d->used_idx + (on ? 0 : 0x8000));
    } else if (d->event_idx && on) {
        area[0] = (uint16_t)(d->used_idx | d->used_wrap << 15);
        area[1] = 2;
    } else {
        area[1] = !on;
    }
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

#ifndef __has_feature
#define __has_feature(x) 0
#endif

static void nothing(void *arg)
{
}

void driver_meet(struct qv_thread *thread)
{
    if (__has_feature(thread_sanitizer)) {
        qv_thread_call(thread, nothing, NULL);
    }
}
