/* SPDX-License-Identifier: Apache-2.0 */
/* Giving back the space of those parts of a raw image that hold nothing but zeros. */
#ifndef QV_FORMAT_RAW_COMPACT_H
#define QV_FORMAT_RAW_COMPACT_H

#include <glib.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/node.h"

struct qv_raw_compact_opts {
    /* Around the moment in which a part is looked at and made a hole: nobody may write to the image
     * meanwhile. NULL: nobody else uses it. */
    void (*co_hold)(void *arg);
    void (*release)(void *arg);
    void *hold_arg;
    bool gentle;              /* as much time for requests as the work itself takes */
    const _Atomic bool *stop; /* becomes true: end soon, without an error; NULL: never */
    void (*progress)(void *arg, double done); /* NULL: nobody; 0..1 */
    void *arg;
};

/** qv_raw_co_compact - punches all 4 KiB blocks of zeros out of @node, a raw node or the file below
 * one. *@out: bytes. What they read as does not change, so it may end at any moment. Durable on
 * return. QV_ERROR_FAILED. Coroutine. */
bool qv_raw_co_compact(struct qv_node *node, const struct qv_raw_compact_opts *opts, uint64_t *out,
                       GError **error);

#endif
