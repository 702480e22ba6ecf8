/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by walk*.c; and what clusters are used for. */
#ifndef QV_FORMAT_QCOW2_WALK_INT_H
#define QV_FORMAT_QCOW2_WALK_INT_H

#include <string.h>

#include "format/qcow2/walk.h"

/* What a cluster is used for: bits of w->kinds. */
enum qcow2_use {
    QCOW2_USE_META = 1, /* header, L1 and snapshot tables, bitmaps: one user, written in place */
    QCOW2_USE_COMPRESSED = 2,
    QCOW2_USE_L2 = 4,
    QCOW2_USE_DATA = 8,
    QCOW2_USE_REFCOUNTS = 16,
    QCOW2_USE_MULTI = 32,  /* two structures that need a place of their own */
    QCOW2_USE_OVER = 64,   /* more references than a refcount can hold */
    QCOW2_USE_FIXED = 128, /* metadata that repair does not know: it stays as it is */
};
/* Of these a cluster may have one; or data and compressed data. */
#define QCOW2_USE_CLASSES                                                                          \
    (QCOW2_USE_META | QCOW2_USE_COMPRESSED | QCOW2_USE_L2 | QCOW2_USE_DATA | QCOW2_USE_REFCOUNTS)

enum qcow2_claim {
    QCOW2_CLAIM_OK,
    QCOW2_CLAIM_OVERLAP, /* counted, but something else uses it as well */
    QCOW2_CLAIM_OUTSIDE, /* reported, not counted */
};

/** qcow2_walk_claim - counts @times references to each cluster that [@offset, @offset + @len)
 * touches, and reports where the cluster has a use already that @use cannot stand beside. */
enum qcow2_claim qcow2_walk_claim(struct qcow2_walk *w, enum qcow2_use use, uint64_t offset,
                                  uint64_t len, uint64_t times);

/** qcow2_walk_claim_table - the same for metadata that begins at a cluster and that nothing else
 * may own; @what overlaps is reported once. */
enum qcow2_claim qcow2_walk_claim_table(struct qcow2_walk *w, const char *what, uint64_t offset,
                                        uint64_t len);

/* A table found in the snapshot table or the bitmap directory. */
struct qcow2_walk_table {
    uint64_t offset;
    uint32_t entries;
};

/** qcow2_co_walk_bitmaps - counts the bitmap directory and what it names (walk_bitmaps.c). */
bool qcow2_co_walk_bitmaps(struct qcow2_walk *w, GError **error);

/** qcow2_co_walk_seal - counts what an encrypted image has besides (walk_seal.c). */
bool qcow2_co_walk_seal(struct qcow2_walk *w, GError **error);

/** qcow2_co_walk_l2s - counts what the tables of @w->l2s refer to. */
bool qcow2_co_walk_l2s(struct qcow2_walk *w, GError **error);

static inline uint64_t qcow2_be64_at(const uint8_t *table, uint64_t index)
{
    qv_be64 v;

    memcpy(&v, table + index * 8, sizeof(v));
    return qv_be64_get(v);
}

#endif
