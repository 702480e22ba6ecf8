/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by shadow.c and shadow_commit.c only. */
#ifndef QV_FORMAT_QCOW2_SHADOW_INT_H
#define QV_FORMAT_QCOW2_SHADOW_INT_H

#include "format/qcow2/shadow.h"

/** qcow2_shadow_co_find - @n adjacent clusters that are free in the old state, each given out once.
 */
int qcow2_shadow_co_find(struct qcow2_shadow *s, uint64_t n, uint64_t *first);
/** qcow2_shadow_co_move - gives a block its new place. */
int qcow2_shadow_co_move(struct qcow2_shadow *s, struct qcow2_shadow_block *b);
/** qcow2_shadow_co_write_block - writes a block that is in memory to its new place. */
int qcow2_shadow_co_write_block(struct qcow2_shadow *s, struct qcow2_shadow_block *b);

#endif
