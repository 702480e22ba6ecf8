/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by device.c, queue.c and request.c. */
#ifndef QV_DEVICE_VIRTIO_BLK_VBLK_INT_H
#define QV_DEVICE_VIRTIO_BLK_VBLK_INT_H

#include <stdatomic.h>

#include "base/log.h"
#include "device/virtio_blk/virtio_blk.h"
#include "io/source.h"

/* Requests of one queue in flight; more wait in the ring. Bounds our memory. */
#define VBLK_DEPTH_MAX 1024u
/* Buffers of a request that fit into it: 88 KiB of scattered pages. Larger ones borrow a block. */
#define VBLK_IOV_INLINE 24u
/* Buffers of a block, and of any request: what one system call takes (IOV_MAX). */
#define VBLK_IOV_BLOCK 1024u
/* Blocks of one queue lent out at once; further large requests wait in the ring. */
#define VBLK_BLOCKS_MAX 64u
/* Requests taken before other work of the thread gets its turn. */
#define VBLK_BUDGET 256u
/* Completions after which the guest is told without waiting for the end of the turn. */
#define VBLK_FLUSH_EVERY 16u
/* How often a queue without a kick descriptor looks at its ring. */
#define VBLK_POLL_NS INT64_C(50000)
/* How often a stopping queue takes back what a stopped disk keeps. */
#define VBLK_CANCEL_NS INT64_C(5000000)

/* Ranges of one DISCARD or WRITE_ZEROES request. */
#define VBLK_RANGES_MAX 16u
/* Buffers of one request as the driver sees it: with a header and a status in a ring of 128. */
#define VBLK_SEG_MAX 126u
/* Bytes of one buffer; times VBLK_SEG_MAX stays below QV_IO_MAX_LEN. */
#define VBLK_SIZE_MAX (8u * 1024u * 1024u)

struct vblk_block {
    struct vblk_block *next;
    struct iovec iov[VBLK_IOV_BLOCK];
};

struct vblk_range {
    uint64_t offset, len; /* bytes */
    uint32_t flags;       /* of the qv_io */
};

struct vblk_req {
    struct qv_io io;
    struct vblk_queue *queue;
    struct vblk_req *next_free;
    struct qv_guest_view *view;
    struct vblk_block *block; /* borrowed; NULL: iov is used */
    uint8_t *status;          /* in guest memory */
    struct iovec *data;       /* the part of chain.iov after header and before status */
    unsigned data_cnt;
    uint64_t data_len;
    bool fills_data; /* the device writes to data */
    uint16_t range, range_cnt;
    enum qv_op range_op;
    struct qv_virtq_chain chain;
    union {
        struct iovec iov[VBLK_IOV_INLINE];
        struct vblk_range ranges[VBLK_RANGES_MAX]; /* after the buffers have been read */
    };
};

enum vblk_state { VBLK_STOPPED, VBLK_RUNNING, VBLK_BROKEN, VBLK_STOPPING };

struct vblk_queue {
    struct qv_vblk *dev;
    struct qv_thread *thread;
    unsigned index;
    enum vblk_state state; /* moved by queue_set_state() only */
    bool enabled;
    bool starved;      /* requests wait for a completion */
    bool flush_queued; /* flush_work is deferred */
    bool run_queued;   /* run_work is posted */
    bool watching;
    unsigned unflushed; /* completions since the last flush */
    unsigned in_flight;
    unsigned kept; /* requests taken back by the last stop */
    struct qv_virtq vq;
    struct qv_guest_view *view;
    struct qv_dirty_log *log;
    struct qv_irq *call, *err;
    struct qv_watch watch;
    struct qv_source source; /* the ring; open while kicks are off and none is on its way */
    struct qv_timer timer;   /* running: poll; stopping: cancel */
    struct qv_work flush_work, run_work;
    struct qv_vblk_cmd *stop; /* the STOP under way */
    struct vblk_req *pool;    /* pool_size requests; those below pool_used have been in use */
    unsigned pool_size, pool_used;
    struct vblk_req *free;
    struct vblk_block *blocks; /* free ones */
    unsigned blocks_lent;
    /* In-flight area for clients that bring none. */
    void *own_area;
    uint32_t own_num, own_base;
    bool own_packed;
};

struct qv_vblk {
    char *name;
    struct qv_disk *disk;
    char serial[QV_VBLK_SERIAL_MAX]; /* padded with zeros */
    uint64_t offered;
    _Atomic uint64_t features; /* accepted */
    atomic_bool writeback;     /* of the configuration space */
    atomic_bool fua;           /* writes complete when they are durable */
    struct qv_log_limit log_limit;
    unsigned queue_count;
    struct vblk_queue queues[];
};

/* ---- device.c ---- */

/** vblk_max_zero_sectors - longest range of a WRITE_ZEROES; vblk_max_discard_sectors: of a DISCARD.
 */
uint32_t vblk_max_zero_sectors(const struct qv_vblk *dev);
uint32_t vblk_max_discard_sectors(const struct qv_vblk *dev);

/* ---- queue.c ---- */

void vblk_queue_init(struct vblk_queue *q, struct qv_vblk *dev, unsigned index,
                     struct qv_thread *thread);
void vblk_queue_destroy(struct vblk_queue *q);

/** vblk_queue_complete - gives @req back to the driver; @written: bytes written to its buffers. */
void vblk_queue_complete(struct vblk_req *req, uint8_t status, uint32_t written);

/** vblk_queue_keep - forgets @req without giving it back: it stays in the in-flight area. */
void vblk_queue_keep(struct vblk_req *req);

/* ---- request.c ---- */

/** vblk_request_start - carries out what the chain of @req asks for. Returns 0, or -EPROTO when
 * there is nowhere to put a status: then the request is not started, and *@why says so. */
int vblk_request_start(struct vblk_req *req, const char **why);

#endif
