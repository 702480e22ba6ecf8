/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Repair of an image file that is not open as an image: `storage check --repair`.
 *
 * Nothing of the old state is written over. All that has to change - L2, L1 and snapshot tables,
 * refcounts - is written anew, to clusters that nothing refers to, made durable, checked as a
 * whole, and becomes valid with one write of the header's first sector. So power loss leaves the
 * image as it was or repaired, and what is to be valid is known to be clean before it is. The
 * exception are entries of bitmap tables that make no sense: they become "all bits set" in place,
 * which is right before and after.
 *
 * What could be read before reads the same. A cluster that two structures share, and that only one
 * may have, is copied for the other; a reference that leads nowhere becomes zeros.
 */
#ifndef QV_FORMAT_QCOW2_REPAIR_H
#define QV_FORMAT_QCOW2_REPAIR_H

#include <glib.h>
#include <stdbool.h>

#include "block/node.h"
#include "format/qcow2/qcow2.h"

/**
 * qcow2_co_repair - checks @file and repairs what it finds; clears the dirty and the corrupt bit.
 * @file: writable; nobody else uses it
 * @out: the findings; corruptions_fixed and leaks_fixed say what is mended. As of qcow2_co_check.
 * @progress: may be NULL: called with 0..1
 * False, and the image is as it was: QV_ERROR_CORRUPT, it cannot be repaired (its header or L1
 * table is lost, or its refcounts are too narrow for what it holds); QV_ERROR_UNSUPPORTED;
 * QV_ERROR_FAILED. Durable on return. Coroutine.
 */
bool qcow2_co_repair(struct qv_node *file, struct qcow2_check *out,
                     void (*progress)(void *arg, double done), void *arg, GError **error);

#endif
