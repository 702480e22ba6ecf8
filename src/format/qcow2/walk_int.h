/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by walk.c and walk_l2.c only. */
#ifndef QV_FORMAT_QCOW2_WALK_INT_H
#define QV_FORMAT_QCOW2_WALK_INT_H

#include <string.h>

#include "format/qcow2/walk.h"

enum qcow2_claim {
    QCOW2_CLAIM_OK,
    QCOW2_CLAIM_OVERLAP, /* counted, but something else uses it as well */
    QCOW2_CLAIM_OUTSIDE, /* reported, not counted */
};

/** qcow2_walk_claim - counts @times references to each cluster that [@offset, @offset + @len)
 * touches. */
enum qcow2_claim qcow2_walk_claim(struct qcow2_walk *w, const char *what, uint64_t offset,
                                  uint64_t len, uint64_t times);

/** qcow2_co_walk_l2s - counts what the tables of @w->l2s refer to. */
bool qcow2_co_walk_l2s(struct qcow2_walk *w, GError **error);

static inline uint64_t qcow2_be64_at(const uint8_t *table, uint64_t index)
{
    qv_be64 v;

    memcpy(&v, table + index * 8, sizeof(v));
    return qv_be64_get(v);
}

#endif
