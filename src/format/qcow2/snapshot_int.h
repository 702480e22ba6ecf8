/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by snapshot*.c. */
#ifndef QV_FORMAT_QCOW2_SNAPSHOT_INT_H
#define QV_FORMAT_QCOW2_SNAPSHOT_INT_H

#include "format/qcow2/shadow.h"
#include "format/qcow2/snapshot_list.h"

/** qcow2_co_snapshots_write - puts the table with @list in a new place, into the header to be. */
int qcow2_co_snapshots_write(struct qcow2_shadow *s, const GPtrArray *list);
/** qcow2_snapshots_encode - the table's bytes, whole sectors; NULL: more than a table may have. */
GByteArray *qcow2_snapshots_encode(const GPtrArray *list);
/** qcow2_snapshot_set_extra - extra data from the fields; what is behind them stays. */
void qcow2_snapshot_set_extra(struct qcow2_snapshot *snapshot);

/** qcow2_co_snapshot_l1 - the snapshot's L1 table, checked, in host order without flags; g_free().
 */
int qcow2_co_snapshot_l1(struct qcow2_image *img, const struct qcow2_snapshot *snapshot,
                         uint64_t **out);

/* ---- snapshot.c ---- */

bool qcow2_snapshot_check_node(const struct qv_node *node, GError **error);

/**
 * qcow2_co_still - waits until no request is in flight, all metadata is written and every dropped
 * reference counted; takes commit_lock and ref_lock. End with qcow2_still_end, also after an error.
 * Under ops_lock.
 */
int qcow2_co_still(struct qcow2_image *img);
void qcow2_still_end(struct qcow2_image *img);
/** qcow2_co_punch - gives the free clusters of these refcount blocks back to the file system. */
void qcow2_co_punch(struct qcow2_image *img, const struct qcow2_freed_list *blocks);
bool qcow2_snapshot_fail(GError **error, int err, const char *what, const char *name);
/** qcow2_co_snapshot_begin - whether snapshots may be changed; and the list. */
bool qcow2_co_snapshot_begin(struct qcow2_image *img, GPtrArray **list, uint64_t *stored,
                             GError **error);
/** qcow2_active_l1 - a copy, in host order; g_free(). */
uint64_t *qcow2_active_l1(struct qcow2_image *img, uint64_t *entries);
int qcow2_co_replace_table(struct qcow2_shadow *s, const GPtrArray *list, uint64_t stored);

/* ---- snapshot_tables.c: passes over L2 tables ---- */

/* What is done to each L2 table of an L1 table. */
struct qcow2_pass {
    struct qcow2_shadow *s;
    const uint64_t *l1; /* in host order; entries 0 are left out */
    uint64_t first, n;  /* entries of it to look at */
    /* Called with the table, which it may change; may yield. */
    int (*fn)(struct qcow2_pass *pass, uint64_t i, uint64_t *table);
    const uint64_t *other; /* for fn: the L1 table of what is deleted, and its entries */
    uint64_t other_n;
    uint64_t *out, *out2; /* for fn: L1 tables to be */
    uint64_t done;        /* tables */
};

int qcow2_pass_co_run(struct qcow2_pass *pass);

/* The functions of a pass. */
int qcow2_pass_create(struct qcow2_pass *pass, uint64_t i, uint64_t *table);
int qcow2_pass_restore(struct qcow2_pass *pass, uint64_t i, uint64_t *table);
int qcow2_pass_drop(struct qcow2_pass *pass, uint64_t i, uint64_t *table);
int qcow2_pass_own(struct qcow2_pass *pass, uint64_t i, uint64_t *table);

#endif
