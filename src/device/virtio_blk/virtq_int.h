/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by virtq.c, virtq_split.c and virtq_packed.c: layouts, and the parts of each kind. */
#ifndef QV_DEVICE_VIRTIO_BLK_VIRTQ_INT_H
#define QV_DEVICE_VIRTIO_BLK_VIRTQ_INT_H

#include <assert.h>
#include <endian.h>

#include "device/virtio_blk/virtq.h"

enum {
    VIRTQ_DESC_F_NEXT = 1 << 0,
    VIRTQ_DESC_F_WRITE = 1 << 1,
    VIRTQ_DESC_F_INDIRECT = 1 << 2,
    VIRTQ_DESC_F_AVAIL = 1 << 7,    /* packed */
    VIRTQ_DESC_F_USED = 1 << 15,    /* packed */
    VIRTQ_USED_F_NO_NOTIFY = 1,     /* split, used->flags */
    VIRTQ_AVAIL_F_NO_INTERRUPT = 1, /* split, avail->flags */
    VIRTQ_EVENT_ENABLE = 0,         /* packed, event suppression flags */
    VIRTQ_EVENT_DISABLE = 1,
    VIRTQ_EVENT_DESC = 2,
};

/* All ring integers are little-endian. virtio 1.2, 2.7.5 and 2.8.13. */
struct virtq_desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
};

struct virtq_packed_desc {
    uint64_t addr;
    uint32_t len;
    uint16_t id;
    uint16_t flags;
};

struct virtq_avail {
    uint16_t flags;
    uint16_t idx;
    uint16_t ring[]; /* [num], then used_event */
};

struct virtq_used_elem {
    uint32_t id;
    uint32_t len;
};

struct virtq_used {
    uint16_t flags;
    uint16_t idx;
    struct virtq_used_elem ring[]; /* [num], then avail_event */
};

struct virtq_event {
    uint16_t off_wrap;
    uint16_t flags;
};

/* In-flight areas, host byte order. vhost-user, "Inflight I/O tracking". */
#define INFLIGHT_VERSION 1u

struct inflight_split_desc {
    uint8_t inflight;
    uint8_t padding[5];
    uint16_t next;
    uint64_t counter;
};

struct inflight_split {
    uint64_t features;
    uint16_t version;
    uint16_t desc_num;
    uint16_t last_batch_head;
    uint16_t used_idx;
    struct inflight_split_desc desc[];
};

struct inflight_packed_desc {
    uint8_t inflight;
    uint8_t padding;
    uint16_t next;
    uint16_t last;
    uint16_t num;
    uint64_t counter;
    uint16_t id;
    uint16_t flags;
    uint32_t len;
    uint64_t addr;
};

struct inflight_packed {
    uint64_t features;
    uint16_t version;
    uint16_t desc_num;
    uint16_t free_head;
    uint16_t old_free_head;
    union {
        struct {
            uint16_t used_idx;
            uint16_t old_used_idx;
            uint8_t used_wrap_counter;
            uint8_t old_used_wrap_counter;
            uint8_t padding[2];
        } pos;
        uint64_t pos_word; /* all of pos, so that it changes in one store */
    };
    uint8_t padding[8];
    struct inflight_packed_desc desc[];
};

static_assert(sizeof(struct virtq_desc) == 16, "layout is fixed by the spec");
static_assert(sizeof(struct virtq_packed_desc) == 16, "layout is fixed by the spec");
static_assert(sizeof(struct inflight_split) == 16, "layout is fixed by the spec");
static_assert(sizeof(struct inflight_split_desc) == 16, "layout is fixed by the spec");
static_assert(sizeof(struct inflight_packed) == 32, "layout is fixed by the spec");
static_assert(sizeof(struct inflight_packed_desc) == 32, "layout is fixed by the spec");

/* Accesses to memory that others read and write meanwhile: one load or store each. */
#define SHARED_LOAD(p)         __atomic_load_n((p), __ATOMIC_RELAXED)
#define SHARED_LOAD_ACQ(p)     __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define SHARED_STORE(p, v)     __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define SHARED_STORE_REL(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)

/* The in-flight area must hold its steps in order when the process is killed between any two. What
 * a killed process had stored, in program order, is what the next one sees: only the compiler must
 * be held back. */
#define INFLIGHT_STEP() __atomic_signal_fence(__ATOMIC_SEQ_CST)

static inline int virtq_broken(struct qv_virtq *vq, const char *why)
{
    vq->why = why;
    return -EPROTO;
}

/* Whether an index that moved from @old to @now has passed @event. virtio 1.2, 2.7.10. */
static inline bool virtq_need_event(uint16_t event, uint16_t now, uint16_t old)
{
    return (uint16_t)(now - event - 1) < (uint16_t)(now - old);
}

static inline void virtq_mark(struct qv_virtq *vq, uint64_t gpa, uint64_t len)
{
    if (vq->log != NULL) {
        qv_dirty_log_mark(vq->log, gpa, len);
    }
}

/** virtq_chain_reset - empties @chain before a walk. */
static inline void virtq_chain_reset(struct qv_virtq_chain *chain)
{
    chain->out_cnt = chain->in_cnt = 0;
    chain->out_len = chain->in_len = 0;
    chain->fault = 0;
    chain->writable_seen = false;
}

/** virtq_chain_add - appends one buffer; -E2BIG and -EPROTO as qv_virtq_pop. */
int virtq_chain_add(struct qv_virtq *vq, struct qv_guest_view *view, struct qv_virtq_chain *chain,
                    uint64_t addr, uint32_t len, bool writable);

/** A table of descriptors that a descriptor points to. */
struct virtq_indirect {
    const uint8_t *ptr; /* NULL: spans regions, read piecewise */
    uint64_t gpa;
    uint32_t count;
};

/** virtq_indirect_open - checks an INDIRECT descriptor; -EPROTO. */
int virtq_indirect_open(struct qv_virtq *vq, struct qv_guest_view *view, uint64_t addr,
                        uint32_t len, struct virtq_indirect *out);

/** virtq_indirect_get - copies entry @i (16 bytes); -EPROTO. */
int virtq_indirect_get(struct qv_virtq *vq, struct qv_guest_view *view,
                       const struct virtq_indirect *table, uint32_t i, void *desc);

/** virtq_resubmit_sort - orders vq->resubmit by counter and sets vq->counter behind them. */
void virtq_resubmit_sort(struct qv_virtq *vq);

/* ---- the two kinds ---- */

bool virtq_split_start(struct qv_virtq *vq, GError **error);
int virtq_split_pop(struct qv_virtq *vq, struct qv_guest_view *view, struct qv_virtq_chain *chain);
void virtq_split_push(struct qv_virtq *vq, const struct qv_virtq_chain *chain, uint32_t written);
void virtq_split_publish(struct qv_virtq *vq);
bool virtq_split_should_signal(struct qv_virtq *vq);
void virtq_split_kicks_off(struct qv_virtq *vq);
bool virtq_split_kicks_on(struct qv_virtq *vq);
bool virtq_split_has_request(const struct qv_virtq *vq);

bool virtq_packed_start(struct qv_virtq *vq, GError **error);
int virtq_packed_pop(struct qv_virtq *vq, struct qv_guest_view *view, struct qv_virtq_chain *chain);
void virtq_packed_push(struct qv_virtq *vq, const struct qv_virtq_chain *chain, uint32_t written);
bool virtq_packed_should_signal(struct qv_virtq *vq);
void virtq_packed_kicks_off(struct qv_virtq *vq);
bool virtq_packed_kicks_on(struct qv_virtq *vq);
bool virtq_packed_has_request(const struct qv_virtq *vq);

#endif
