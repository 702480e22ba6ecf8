/* SPDX-License-Identifier: Apache-2.0 */
/* A set of host clusters that hold metadata; asked before every write, so asking is lock-free. */
#ifndef QV_FORMAT_QCOW2_METASET_H
#define QV_FORMAT_QCOW2_METASET_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct qcow2_metaset_table {
    uint64_t mask; /* slots - 1 */
    uint64_t used; /* slots that are not empty, removed ones included; by the writer */
    _Atomic uint64_t slots[];
};

struct qcow2_metaset {
    _Atomic(struct qcow2_metaset_table *) table;
    _Atomic bool header; /* cluster 0: stands for the empty slot otherwise */
};

void qcow2_metaset_init(struct qcow2_metaset *set);
void qcow2_metaset_destroy(struct qcow2_metaset *set);

/** qcow2_metaset_has - any thread, inside the guard or with the writers' lock. */
bool qcow2_metaset_has(struct qcow2_metaset *set, uint64_t cluster);

/**
 * qcow2_metaset_add / _remove - writers hold one lock. Returns a table that readers may still look
 * at and that the caller frees when they do not, or NULL.
 */
void *qcow2_metaset_add(struct qcow2_metaset *set, uint64_t cluster);
void qcow2_metaset_remove(struct qcow2_metaset *set, uint64_t cluster);

#endif
