/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copying one open image into another, new one: many requests at once on several threads, holes
 * stay holes, and so do blocks of zeros.
 */
#ifndef QV_JOB_COPY_H
#define QV_JOB_COPY_H

#include "job/run.h"

struct qv_copy_opts {
    /* Zero runs of this many bytes, aligned to it, are not written: a power of two. The cluster
     * size of the target, or 4096. */
    uint64_t granularity;
    const struct qv_job_watch *watch; /* units: bytes; NULL: nobody */
    /* Takes what is copied in place of the target, in runs of whole granules (but for the end of
     * the source), in any order, on several threads at once. 0 or -errno. NULL: the target. */
    int (*co_write)(void *arg, uint64_t offset, const void *buf, uint64_t len);
    void *arg;
    /* The file system may share the source's blocks, or its server copy them: neither of both is
     * encrypted. */
    bool clone;
    /* Only what @source takes from its backing image is copied. */
    bool only_backing;
};

/**
 * qv_copy - copies all of @source to the start of @target, which is at least as large, new, and
 * reads as zeros; or is @source itself, with only_backing. @target NULL with co_write. Both are
 * open and used by nobody else. Not durable before @target is flushed or closed. Control; may
 * block; the watch is called on the calling thread.
 */
bool qv_copy(struct qv_node *source, struct qv_node *target, const struct qv_copy_opts *opts,
             GError **error);

#endif
