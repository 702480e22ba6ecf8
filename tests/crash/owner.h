/* SPDX-License-Identifier: Apache-2.0 */
/* What the owner of a disk does to it: beside the guests, between their rounds, and while the disk
 * is closed. What fails is a failure of the run, unless requests are made to fail. Coroutines. */
#ifndef QV_TESTS_CRASH_OWNER_H
#define QV_TESTS_CRASH_OWNER_H

#include "workload.h"

/** owner_co_beside - all that the workload asks for while guests are at work. */
void owner_co_beside(struct run *run, struct qv_node *node);
void owner_co_grow(struct run *run, struct qv_node *node);
/** owner_co_flatten - what the image takes from below becomes its own; to the guest nothing
 * happens. */
void owner_co_flatten(struct run *run, struct qv_node *node);
/** owner_co_closed - what is done to an image that nobody has open. */
void owner_co_closed(struct run *run);

/**
 * owner_co_reseal - seals anew what an older data key has sealed, in all snapshots and the disk,
 * and drops that key. @bytes: of the image, which nobody has open; NULL: the run's own file,
 * recorded.
 * *@old_key: whether it is still needed
 */
bool owner_co_reseal(struct run *run, struct mem_file *bytes, bool *old_key, GError **error);

#endif
