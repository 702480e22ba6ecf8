/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Compaction of an open image in place: leaked clusters are given back, clusters that hold nothing
 * but zeros are dropped, what lies at the end of the file moves into gaps, and the file gets
 * shorter.
 *
 * It goes on in steps while requests of any number of threads are under way; during a step they
 * wait (shadow.h). Each step is atomic at power loss, so it may be ended at any moment and begun
 * again.
 */
#ifndef QV_FORMAT_QCOW2_COMPACT_H
#define QV_FORMAT_QCOW2_COMPACT_H

#include <glib.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/node.h"

struct qcow2_compact_opts {
    uint64_t step; /* bytes moved or looked at while requests wait; 0: as many as is quickest */
    bool gentle;   /* between two steps, as much time for requests as the step has taken */
    const _Atomic bool *stop; /* becomes true: end after this step, without an error; NULL: never */
    void (*progress)(void *arg, double done); /* NULL: nobody; 0..1 */
    void *arg;
};

struct qcow2_compact_result {
    uint64_t leaked, zero, moved; /* clusters */
    uint64_t
        stuck; /* bytes in use that could not be moved, so that the file could end before them */
};

/**
 * qcow2_co_compact - @out: what was done, also when it ended early; may be NULL. Durable on return.
 * QV_ERROR_CORRUPT: the image needs a repair first, and was not changed. Coroutine, on the thread
 * that has opened the image.
 */
bool qcow2_co_compact(struct qv_node *node, const struct qcow2_compact_opts *opts,
                      struct qcow2_compact_result *out, GError **error);

#endif
