/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A virtio block device: features, configuration space, and virtqueues that turn requests into I/O
 * on a qv_disk. It knows no transport: that one tells it where the rings are, how to interrupt the
 * guest, and when to start and stop.
 * Source: virtio 1.2, 5.2 "Block Device".
 *
 * Each queue lives on one I/O thread and shares nothing with the others on the data path. The
 * transport controls queues by commands: posted to the queue's thread, and handed back to the
 * thread they came from when done.
 */
#ifndef QV_DEVICE_VIRTIO_BLK_VIRTIO_BLK_H
#define QV_DEVICE_VIRTIO_BLK_VIRTIO_BLK_H

#include <stdbool.h>
#include <stdint.h>

#include "block/disk.h"
#include "device/virtio_blk/virtq.h"
#include "guest/irq.h"
#include "io/thread.h"

#define QV_VBLK_QUEUES_MAX 64u
#define QV_VBLK_SERIAL_MAX 20u

/* Feature bits. virtio 1.2, 5.2.3 and 6. */
#define QV_VBLK_F_SIZE_MAX     (UINT64_C(1) << 1)
#define QV_VBLK_F_SEG_MAX      (UINT64_C(1) << 2)
#define QV_VBLK_F_RO           (UINT64_C(1) << 5)
#define QV_VBLK_F_BLK_SIZE     (UINT64_C(1) << 6)
#define QV_VBLK_F_FLUSH        (UINT64_C(1) << 9)
#define QV_VBLK_F_TOPOLOGY     (UINT64_C(1) << 10)
#define QV_VBLK_F_CONFIG_WCE   (UINT64_C(1) << 11)
#define QV_VBLK_F_MQ           (UINT64_C(1) << 12)
#define QV_VBLK_F_DISCARD      (UINT64_C(1) << 13)
#define QV_VBLK_F_WRITE_ZEROES (UINT64_C(1) << 14)
#define QV_VIRTIO_F_INDIRECT   (UINT64_C(1) << 28)
#define QV_VIRTIO_F_EVENT_IDX  (UINT64_C(1) << 29)
#define QV_VIRTIO_F_VERSION_1  (UINT64_C(1) << 32)
#define QV_VIRTIO_F_PACKED     (UINT64_C(1) << 34)

struct qv_vblk;

struct qv_vblk_opts {
    const char *name;     /* for messages; copied */
    struct qv_disk *disk; /* stays the caller's */
    unsigned queues;      /* 1..QV_VBLK_QUEUES_MAX */
    const char *serial;   /* at most QV_VBLK_SERIAL_MAX bytes; copied; NULL: none */
    /* Queue i runs on threads[(first_thread + i) % nthreads]. */
    struct qv_thread *const *threads;
    unsigned nthreads, first_thread;
};

/** qv_vblk_new - a device with all queues stopped. Any thread. */
struct qv_vblk *qv_vblk_new(const struct qv_vblk_opts *opts);

/** qv_vblk_free - all queues are stopped and no command is under way. NULL is fine. Any thread. */
void qv_vblk_free(struct qv_vblk *dev);

/* ---- features and configuration: the transport's thread ---- */

/** qv_vblk_features - what the device offers. */
uint64_t qv_vblk_features(const struct qv_vblk *dev);

/** qv_vblk_set_features - what the driver accepted; false when the device does not offer all of it.
 * Rings follow at their next start. */
bool qv_vblk_set_features(struct qv_vblk *dev, uint64_t features);

/** qv_vblk_config_read - copies [@offset, @offset + @len) of the configuration space; zeros behind
 * its end. */
void qv_vblk_config_read(const struct qv_vblk *dev, uint32_t offset, void *buf, uint32_t len);

/** qv_vblk_config_write - the driver writes; false when that part is not writable (only writeback
 * is). */
bool qv_vblk_config_write(struct qv_vblk *dev, uint32_t offset, const void *buf, uint32_t len);

/** qv_vblk_writeback / _set_writeback - the cache mode the driver sees: state to keep over a
 * restart or a migration. */
bool qv_vblk_writeback(const struct qv_vblk *dev);
void qv_vblk_set_writeback(struct qv_vblk *dev, bool on);

/** qv_vblk_forget_kept - requests that stops took back are not submitted again by queues that noted
 * them in memory of their own: their driver is gone. Queues are stopped. */
void qv_vblk_forget_kept(struct qv_vblk *dev);

/** qv_vblk_reset - as after qv_vblk_new: features, cache mode, nothing kept. Queues are stopped. */
void qv_vblk_reset(struct qv_vblk *dev);

/* ---- queues ---- */

/** What a queue needs to run. */
struct qv_vblk_ring {
    /* inflight NULL: the queue uses memory of its own, which lasts until the device is freed. base
     * is ignored by an update. packed, event_idx and indirect are filled in from the features. */
    struct qv_virtq_layout layout;
    struct qv_guest_map *map; /* the queue takes a reference */
    struct qv_dirty_log *log; /* data writes are marked; NULL: none; the queue takes a reference */
    bool log_ring;            /* ring writes are marked too */
    bool enabled;             /* requests are taken */
    int kick_fd;              /* eventfd; -1: the ring is polled */
    struct qv_irq *call;      /* completions; NULL: the driver polls */
    struct qv_irq *err;       /* the queue broke; NULL: nobody cares */
};

enum qv_vblk_op {
    QV_VBLK_START,  /* a stopped queue starts */
    QV_VBLK_UPDATE, /* a running queue goes on with another @ring of the same size */
    QV_VBLK_STOP,   /* no more requests are taken; done when none is in flight */
};

/** Embedded by the transport, which keeps it, and what @ring points to, until @done. What a running
 * queue uses of @ring (kick_fd, call, err, in-flight area) must last until the next command on it
 * is done. One command at a time on a queue. */
struct qv_vblk_cmd {
    enum qv_vblk_op op;
    unsigned queue;
    struct qv_vblk_ring ring;
    void (*done)(struct qv_vblk_cmd *cmd); /* on the thread that called qv_vblk_command */
    /* results: */
    GError *error; /* START, UPDATE: why it failed (the queue is stopped, or unchanged); the
                      transport frees it */
    uint32_t base; /* STOP: qv_virtq_base() */
    /* private: */
    struct qv_work work;
    struct qv_vblk *dev;
    struct qv_thread *origin;
};

/**
 * qv_vblk_command - starts @cmd; ends in cmd->done. I/O thread.
 * A STOP ends with the requests in flight, however long they take, with one exception: requests
 * that a stopped disk keeps are taken back. They stay noted in the in-flight area, and a start with
 * that area submits them again. A STOP of a stopped queue is done at once.
 */
void qv_vblk_command(struct qv_vblk *dev, struct qv_vblk_cmd *cmd);

#endif
