/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rebuilding refcounts from what the image refers to. Power may fail at any moment: the dirty bit
 * stays until everything else is durable, and until then nobody trusts the refcounts.
 */
#ifndef QV_FORMAT_QCOW2_REBUILD_H
#define QV_FORMAT_QCOW2_REBUILD_H

#include <glib.h>
#include <stdbool.h>

#include "block/node.h"
#include "format/qcow2/qcow2.h"

/**
 * qcow2_co_rebuild_dirty - repairs an image that carries the dirty bit, as opening it for writing
 * prescribes: corrects refcounts and COPIED flags, then clears the bit. Durable on return.
 * @file: the image file, not open as an image
 * @out: findings and what was corrected; as of qcow2_co_check. May be NULL.
 * Does nothing when the bit is not set. QV_ERROR_CORRUPT, and nothing is changed, when there is
 * damage that refcounts cannot mend. Coroutine. Any version 3 image; repeatable after power loss.
 */
bool qcow2_co_rebuild_dirty(struct qv_node *file, struct qcow2_check *out, GError **error);

#endif
