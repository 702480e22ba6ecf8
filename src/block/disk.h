/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A disk: the top of an open image as a guest's controller (or a job) sees it. Above it: devices,
 * on any number of I/O threads. Below it: the root node. The disk checks sector alignment, keeps
 * the books (requests in flight, counters, latency), holds the gate for draining, applies the cache
 * mode, and decides what an error does: report it, or stop the disk, keep the request, and try
 * again when told to.
 */
#ifndef QV_BLOCK_DISK_H
#define QV_BLOCK_DISK_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/io.h"
#include "block/node.h"

struct qv_disk;
struct qv_thread;

enum qv_disk_policy {
    QV_DISK_REPORT, /* the guest sees the error */
    QV_DISK_STOP,   /* the disk stops, keeps the request and tells the owner */
};

struct qv_disk_opts {
    const char *name; /* for messages; copied */
    bool readonly;
    bool writethrough; /* each write is durable before it completes */
    bool discard;      /* false: DISCARD completes without doing anything, MAY_UNMAP is dropped */
    enum qv_disk_policy on_error;  /* any error but ENOSPC, EROFS, EINVAL, ENOTSUP */
    enum qv_disk_policy on_enospc; /* ENOSPC, EDQUOT */
    /* Called when the disk stops (err > 0: errno, the request's op and offset) and when it goes on
     * by itself (err 0). On an I/O thread; must not block. */
    void (*stopped)(void *arg, int err, enum qv_op op, uint64_t offset);
    void *stopped_arg;
};

#define QV_LATENCY_BUCKETS 40 /* bucket i counts requests of [2^i, 2^(i+1)) ns */

struct qv_disk_stats {
    uint64_t ops[5]; /* by enum qv_op */
    uint64_t bytes[5];
    uint64_t errors[5];
    uint64_t latency[5][QV_LATENCY_BUCKETS];
    uint64_t in_flight;
    int stopped_errno; /* 0: running */
};

/** qv_disk_new - takes over @root. Any thread. */
struct qv_disk *qv_disk_new(struct qv_node *root, const struct qv_disk_opts *opts);

/** qv_disk_co_free - drains, closes the node tree; first error of the close. @disk is gone
 * afterwards. */
int qv_disk_co_free(struct qv_disk *disk);

/**
 * qv_disk_co_revoke - closes the image under a device that goes on using the disk: what is in
 * flight ends first, requests that were kept or come later end with -EIO. Size and limits stay what
 * they were; opts.stopped is not called any more. @threads: all that use the disk, but for the
 * calling one. Returns the first error of the close; the image is closed all the same. @disk lasts
 * until qv_disk_co_free.
 */
int qv_disk_co_revoke(struct qv_disk *disk, struct qv_thread *const *threads, unsigned nthreads);

/** qv_disk_submit - the entry of the data path. I/O thread only; ends in io->done exactly once (a
 * stopped disk: later).
 */
void qv_disk_submit(struct qv_disk *disk, struct qv_io *io);

/** qv_disk_size - bytes. qv_disk_root - the node. qv_disk_readonly. Any thread. */
uint64_t qv_disk_size(const struct qv_disk *disk);
struct qv_node *qv_disk_root(const struct qv_disk *disk);
bool qv_disk_readonly(const struct qv_disk *disk);

/** qv_disk_discards - whether DISCARD and MAY_UNMAP do anything: what a device offers its guest. */
bool qv_disk_discards(const struct qv_disk *disk);

/** qv_disk_set_writethrough - CONFIG_WCE and its like: from now on. Any thread. */
void qv_disk_set_writethrough(struct qv_disk *disk, bool on);
bool qv_disk_writethrough(const struct qv_disk *disk);

/**
 * qv_disk_co_drain_begin - closes the gate (new requests of every thread wait in order) and yields
 * until none is in flight; requests kept by a stopped disk count as waiting, not as in flight.
 * Nests. qv_disk_drain_end opens the gate again.
 */
void qv_disk_co_drain_begin(struct qv_disk *disk);
void qv_disk_drain_end(struct qv_disk *disk);

/** qv_disk_co_resize - drains, grows the root node; 0 or -errno (-EINVAL when smaller). */
int qv_disk_co_resize(struct qv_disk *disk, uint64_t size);

/**
 * qv_disk_cancel_kept - ends with -ECANCELED those requests that a stopped disk keeps, that were
 * submitted from the calling I/O thread and for which
 * @match(io, @arg) holds; their done() runs inside the call. Nothing happens when the disk is not
 * stopped. For a device whose guest is paused, reset or gone: it resubmits what is still wanted.
 */
void qv_disk_cancel_kept(struct qv_disk *disk, bool (*match)(const struct qv_io *io, void *arg),
                         void *arg);

/** qv_disk_retry - a stopped disk submits its kept requests again, in order; when it keeps none any
 * more, the owner is told at once that it goes on. Any thread; calls opts.stopped. */
void qv_disk_retry(struct qv_disk *disk);

/** qv_disk_stats - adds up all threads' counters. Any thread; a snapshot, not atomic as a whole. */
void qv_disk_stats(const struct qv_disk *disk, struct qv_disk_stats *out);

/** qv_disk_co_rw etc. - sequential access for jobs; go through the gate like any request. 0 or
 * -errno. */
int qv_disk_co_io(struct qv_disk *disk, enum qv_op op, uint64_t offset, uint64_t len, void *buf,
                  uint32_t flags);

#endif
