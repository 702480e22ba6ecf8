/* SPDX-License-Identifier: Apache-2.0 */
#ifndef QV_BACKEND_FILE_FILE_INT_H
#define QV_BACKEND_FILE_FILE_INT_H

#include <pthread.h>

#include "backend/file/file.h"
#include "io/coroutine.h"

/* A range that a write holds; see file_range_co_lock. Lives on the stack of the coroutine. */
struct file_range {
    uint64_t start, end;
    struct file_range *next;
};

struct file_node {
    struct qv_node node;
    struct qv_kfile kfile;
    enum qv_engine_kind engine;
    bool is_blockdev;
    /*
     * Sub-block writes exist: the device's block is larger than the guest's 512-byte sector, so
     * each write that does not cover whole blocks is a read-modify-write, kept apart from every
     * other write to the same blocks.
     */
    bool lock_writes;
    /*
     * Granularity of holes and zeroing, bytes. The file system zeroes parts of its blocks through
     * the page cache, even of a file opened with O_DIRECT; a direct write to the same block at the
     * same time then meets a dirty page, and either of the two may be lost (the kernel says "Page
     * cache invalidation failure" and fails a later fdatasync).
     */
    uint64_t falloc_align;
    _Atomic bool no_punch, no_zero_range; /* the file system has refused it once */
    /*
     * After a failed fdatasync of the page cache the kernel may have dropped the dirty pages and
     * calls them clean: no later flush can be believed until the file is opened anew. 0, or the
     * first error.
     */
    _Atomic int flush_error;
    pthread_mutex_t lock; /* all below */
    struct file_range *ranges;
    struct qv_co_queue range_queue;
    unsigned bounces; /* buffers in use by requests that O_DIRECT does not take as they are */
    struct qv_co_queue bounce_queue;
    bool dropping; /* the page cache's copy is on its way out: see co_drop_cache */
    bool closing;
    struct qv_co_queue drop_queue;
};

/** file_submit - the node's submit(). */
void file_submit(struct qv_node *node, struct qv_io *io);

/** file_co_zero_out - writes zeros over a range with ordinary writes. 0 or -errno. */
int file_co_zero_out(struct file_node *file, uint64_t offset, uint64_t len, bool fua);

#endif
