/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device side of a virtqueue, split or packed.
 * Source: virtio 1.2, 2.7 "Split Virtqueues", 2.8 "Packed Virtqueues"; vhost-user, "Inflight I/O
 * tracking".
 *
 * Every request taken from the ring is noted in an in-flight area before it starts and removed from
 * it after it has been given back. The area is memory shared with the client, or our own: a ring
 * that is started again with an area that is not empty first takes the requests noted there, in
 * their old order. So neither a restart of the process nor a pause of the guest loses a request.
 *
 * Trust: ring, descriptors and the area are written by others at any time; each value is read once,
 * checked, and then used from the copy. All functions: one thread at a time, the queue's.
 */
#ifndef QV_DEVICE_VIRTIO_BLK_VIRTQ_H
#define QV_DEVICE_VIRTIO_BLK_VIRTQ_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "guest/dirty_log.h"
#include "guest/memory.h"

#define QV_VIRTQ_SIZE_MAX 32768u

/* Most descriptors of one request that are looked at; bounds the time a hostile chain can take. */
#define QV_VIRTQ_CHAIN_MAX 4096u

/** Where a ring is and how it works. Pointers are host addresses inside the view's map. */
struct qv_virtq_layout {
    uint32_t num; /* descriptors; split: a power of two */
    bool packed, event_idx, indirect;
    void *desc;        /* descriptor table; packed: descriptor ring */
    void *avail;       /* available ring; packed: driver event suppression */
    void *used;        /* used ring; packed: device event suppression */
    uint32_t base;     /* where to go on: see qv_virtq_base() */
    uint64_t used_gpa; /* for the dirty page log: address of *used */
    void *inflight;    /* in-flight area, qv_virtq_inflight_size() bytes, zeroed when new */
};

/** One request, as found in the ring. */
struct qv_virtq_chain {
    /* set by the caller of qv_virtq_pop: */
    struct iovec *iov;
    unsigned iov_max;
    bool final; /* no larger iov can be had */
    /* the result: out_cnt entries the device reads, then in_cnt entries it writes */
    unsigned out_cnt, in_cnt;
    uint64_t out_len, in_len; /* bytes; as announced, also when fault is set */
    int fault;                /* the iov is not usable: -EFAULT, -E2BIG */
    uint64_t last_in;         /* guest address of the last writable byte; valid when in_len > 0 */
    /* private to the ring: */
    uint16_t id;    /* split: head; packed: buffer ID */
    uint16_t slots; /* packed: ring slots */
    uint16_t state; /* packed: first and last entry in the in-flight area */
    uint16_t last;
    bool writable_seen;
};

struct qv_virtq_resubmit {
    uint64_t counter;
    uint16_t state; /* split: head; packed: first entry */
    uint16_t slots; /* packed: entries claimed */
};

struct qv_virtq {
    struct qv_virtq_layout l;
    uint32_t num;
    const char *why;          /* of the last -EPROTO */
    struct qv_dirty_log *log; /* not NULL: writes to the ring are marked; not owned */
    uint64_t desc_gpa;        /* packed, with log */
    uint64_t counter;         /* in-flight area: number of the next request */
    struct qv_virtq_resubmit *resubmit;
    uint32_t resubmit_next, resubmit_count;
    uint32_t since_signal; /* split: used entries, packed: slots, since the last signal */
    /* split */
    uint16_t last_avail, shadow_avail, used_idx, unpublished;
    uint8_t *busy;   /* by head: taken and not given back */
    uint16_t *batch; /* heads given back but not published */
    /* packed */
    uint16_t avail_slot, used_slot;
    bool avail_wrap, used_wrap;
    uint32_t taken_slots; /* slots of requests in flight */
    uint16_t *next;       /* in-flight entries: our own copy of their links */
    uint16_t *free;       /* in-flight entries: a stack of free ones */
    uint32_t free_count;
};

/** qv_virtq_size_ok - whether a ring of @num descriptors may exist. */
bool qv_virtq_size_ok(uint32_t num, bool packed);

/** qv_virtq_sizes - bytes of the three parts of a ring. */
void qv_virtq_sizes(uint32_t num, bool packed, bool event_idx, uint64_t *desc, uint64_t *avail,
                    uint64_t *used);

/** qv_virtq_inflight_size - bytes of the in-flight area of one ring of up to @num descriptors of
 * either kind; a multiple of 64. */
uint64_t qv_virtq_inflight_size(uint32_t num);

/**
 * qv_virtq_start - prepares the ring, recovers what its in-flight area holds.
 * @log: see struct; may be NULL
 * Fails, with nothing to clean up, when the layout is impossible or the area does not fit the ring.
 */
bool qv_virtq_start(struct qv_virtq *vq, const struct qv_virtq_layout *layout,
                    const struct qv_guest_map *map, struct qv_dirty_log *log, GError **error);

/** qv_virtq_move - the same ring at other host addresses (memory was mapped anew), or another log.
 * Fails without a change. */
bool qv_virtq_move(struct qv_virtq *vq, const struct qv_virtq_layout *layout,
                   const struct qv_guest_map *map, struct qv_dirty_log *log, GError **error);

/** qv_virtq_stop - publishes what was given back, frees what start allocated. */
void qv_virtq_stop(struct qv_virtq *vq);

/**
 * qv_virtq_base - where a restarted ring goes on, as vhost-user's GET_VRING_BASE has it. Split: the
 * next available index. Packed: available slot and wrap counter in the low 16 bits, used ones in
 * the high 16.
 */
uint32_t qv_virtq_base(const struct qv_virtq *vq);

/**
 * qv_virtq_pop - takes the next request.
 * Returns 1: taken; 0: there is none; -E2BIG: the caller's iov is too small and not final, nothing
 * was taken; -EPROTO: the ring is broken, vq->why says how.
 */
int qv_virtq_pop(struct qv_virtq *vq, struct qv_guest_view *view, struct qv_virtq_chain *chain);

/** qv_virtq_push - gives a request back; @written: bytes written to its writable part. The driver
 * may see it only after qv_virtq_publish. */
void qv_virtq_push(struct qv_virtq *vq, const struct qv_virtq_chain *chain, uint32_t written);

/** qv_virtq_publish - lets the driver see all that was given back. */
void qv_virtq_publish(struct qv_virtq *vq);

/** qv_virtq_should_signal - after a publish: whether the driver wants an interrupt. Assumes that it
 * then gets one. */
bool qv_virtq_should_signal(struct qv_virtq *vq);

/** qv_virtq_kicks_off - the driver need not notify us: we are looking. Only a hint. */
void qv_virtq_kicks_off(struct qv_virtq *vq);

/** qv_virtq_kicks_on - asks for a notification with the next request. Returns whether there is one
 * already (then no notification may come). */
bool qv_virtq_kicks_on(struct qv_virtq *vq);

/** qv_virtq_has_request - whether the ring holds a request, as far as one look tells. */
bool qv_virtq_has_request(const struct qv_virtq *vq);

#endif
