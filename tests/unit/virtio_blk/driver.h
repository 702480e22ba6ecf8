/* SPDX-License-Identifier: Apache-2.0 */
/* The driver's side of a virtqueue, for tests: written from the specification, sharing nothing with
 * the device's side. Source: virtio 1.2, 2.7.13 and 2.8.21. */
#ifndef TESTS_UNIT_VIRTIO_BLK_DRIVER_H
#define TESTS_UNIT_VIRTIO_BLK_DRIVER_H

#include <stdbool.h>
#include <stdint.h>

#include "device/virtio_blk/virtq.h"
#include "guest/fake_vm.h"
#include "io/thread.h"

#define DRIVER_NUM_MAX 1024

struct driver_buf {
    uint64_t gpa;
    uint32_t len;
    bool write;
};

struct driver {
    struct qv_fake_vm *vm;
    uint32_t num;
    bool packed, event_idx;
    uint64_t desc, avail, used;    /* guest addresses of the parts */
    uint16_t free[DRIVER_NUM_MAX]; /* split: free descriptors; packed: free buffer ids */
    uint32_t free_count;
    uint16_t chain_len[DRIVER_NUM_MAX]; /* by head or id: descriptors taken */
    uint16_t chain[DRIVER_NUM_MAX];     /* split: link to the next descriptor of a chain */
    uint16_t avail_idx, used_idx;       /* packed: slots */
    bool avail_wrap, used_wrap;
    uint32_t slots_free; /* packed */
    uint16_t old_avail;  /* at the last driver_kick_needed() */
    uint32_t added;      /* since then; packed: slots */
};

void driver_init(struct driver *d, struct qv_fake_vm *vm, uint32_t num, bool packed,
                 bool event_idx);

/** driver_layout - the ring for qv_virtq_start; pointers by the VM's map. */
struct qv_virtq_layout driver_layout(const struct driver *d, void *inflight);

/** driver_add - offers a request; returns its token, or -1 when the ring has no room. */
int driver_add(struct driver *d, const struct driver_buf *bufs, unsigned count, bool indirect);

/** driver_get - takes one used request; false: there is none. */
bool driver_get(struct driver *d, int *token, uint32_t *len);

/** driver_kick_needed - whether the device wants a notification for what was added. */
bool driver_kick_needed(struct driver *d);

/** driver_want_irq - asks for an interrupt with the next used request (@on), or for none. */
void driver_want_irq(struct driver *d, bool on);

/**
 * driver_meet - meets @thread, when the thread sanitizer watches. It cannot see that a ring orders
 * accesses of driver and device, who map the same memory at different addresses: tests meet the
 * device's thread before a kick and after a completion.
 */
void driver_meet(struct qv_thread *thread);

/* Pointers to fields of the ring, for tests that break it. */
uint16_t *driver_desc_flags(struct driver *d, unsigned i);
uint16_t *driver_desc_next(struct driver *d, unsigned i); /* split: next; packed: id */
uint64_t *driver_desc_addr(struct driver *d, unsigned i);
uint32_t *driver_desc_len(struct driver *d, unsigned i);
uint16_t *driver_avail_idx(struct driver *d);
uint16_t *driver_avail_ring(struct driver *d, unsigned i);
uint16_t *driver_used_idx(struct driver *d);

/** The four kinds of rings. */
struct driver_kind {
    bool packed, event_idx;
};
enum { DRIVER_SPLIT, DRIVER_SPLIT_EVENT_IDX, DRIVER_PACKED, DRIVER_PACKED_EVENT_IDX };
extern const struct driver_kind driver_kinds[4]; /* by that */

/** DRIVER_EACH_KIND - four lines of a table of tests: @fn with each kind of ring, its state a
 * pointer into @kinds, which is driver_kinds or has its order. */
#define DRIVER_EACH_KIND(fn, kinds)                                                                \
    {#fn " split", fn, NULL, NULL, (void *)(uintptr_t) & (kinds)[0]},                              \
        {#fn " split event_idx", fn, NULL, NULL, (void *)(uintptr_t) & (kinds)[1]},                \
        {#fn " packed", fn, NULL, NULL, (void *)(uintptr_t) & (kinds)[2]},                         \
    {                                                                                              \
#fn " packed event_idx", fn, NULL, NULL, (void *)(uintptr_t) & (kinds)[3]                  \
    }

/** DRIVER_ONE_KIND - a line of such a table: @fn with one kind of ring only. */
#define DRIVER_ONE_KIND(fn, kind)                                                                  \
    {                                                                                              \
#fn, fn, NULL, NULL, (void *)(uintptr_t)&driver_kinds[kind]                                \
    }

#endif
