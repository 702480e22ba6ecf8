/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Many tables of one cluster each, looked at in parts: a few coroutines read them, in the order of
 * the file, and the thread pool looks at what was read. What is found is put together in order, so
 * it is the same for any number of threads. Memory is bounded: a part waits for those before it.
 */
#ifndef QV_FORMAT_QCOW2_WALK_PARTS_H
#define QV_FORMAT_QCOW2_WALK_PARTS_H

#include "format/qcow2/walk.h"

/* Some tables that were read. */
struct qcow2_part {
    uint64_t first, n; /* items */
    uint8_t *buf;      /* of a cluster each */
};

struct qcow2_part_ops {
    const char *what; /* an item, for messages */
    /* Where item @i lies; 0: nowhere, it reads as zeros. */
    uint64_t (*place)(const struct qcow2_walk *w, uint64_t i);
    /* Looks at a part. @view is as the walk's but for findings, which are its own. With
     * qcow2_parts_co_run: on the thread pool, beside others; what it changes of the walk is its
     * own, or changed atomically. */
    bool (*look)(struct qcow2_walk *view, const struct qcow2_part *part, GError **error);
    double from, to; /* progress */
};

/** qcow2_parts_co_run - all of @n items. False: one could not be read. */
bool qcow2_parts_co_run(struct qcow2_walk *w, const struct qcow2_part_ops *ops, uint64_t n,
                        GError **error);
/** qcow2_parts_co_run_alone - the same one by one in this coroutine; look may yield. */
bool qcow2_parts_co_run_alone(struct qcow2_walk *w, const struct qcow2_part_ops *ops, uint64_t n,
                              GError **error);

#endif
