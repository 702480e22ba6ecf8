/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Open addressing with linear probing. A slot goes from empty to a cluster number, perhaps to
 * removed and never back to empty, so a reader needs nothing but loads. A full table is replaced.
 */
#include "format/qcow2/metaset.h"

#include <glib.h>

#define SLOTS_MIN 1024u
#define REMOVED   UINT64_MAX

static struct qcow2_metaset_table *table_new(uint64_t slots)
{
    struct qcow2_metaset_table *t = g_malloc0(sizeof(*t) + (size_t)slots * sizeof(t->slots[0]));

    t->mask = slots - 1;
    return t;
}

static uint64_t hash(uint64_t cluster)
{
    /* Fibonacci hashing: metadata stands at regular distances. */
    return (cluster * UINT64_C(0x9e3779b97f4a7c15)) >> 20;
}

void qcow2_metaset_init(struct qcow2_metaset *set)
{
    atomic_store(&set->table, table_new(SLOTS_MIN));
    atomic_store(&set->header, false);
}

void qcow2_metaset_destroy(struct qcow2_metaset *set)
{
    g_free(atomic_load(&set->table));
    atomic_store(&set->table, NULL);
}

/* The slot of @cluster, or the empty slot where it belongs. */
static _Atomic uint64_t *find(struct qcow2_metaset_table *t, uint64_t cluster)
{
    for (uint64_t i = hash(cluster);; i++) {
        _Atomic uint64_t *slot = &t->slots[i & t->mask];
        uint64_t v = atomic_load_explicit(slot, memory_order_relaxed);

        if (v == cluster || v == 0) {
            return slot;
        }
    }
}

bool qcow2_metaset_has(struct qcow2_metaset *set, uint64_t cluster)
{
    struct qcow2_metaset_table *t;

    if (cluster == 0) {
        return atomic_load_explicit(&set->header, memory_order_relaxed);
    }
    t = atomic_load_explicit(&set->table, memory_order_acquire);
    return atomic_load_explicit(find(t, cluster), memory_order_relaxed) == cluster;
}

static void insert(struct qcow2_metaset_table *t, uint64_t cluster)
{
    _Atomic uint64_t *slot = find(t, cluster);

    if (atomic_load_explicit(slot, memory_order_relaxed) != cluster) {
        atomic_store_explicit(slot, cluster, memory_order_release);
        t->used++;
    }
}

void *qcow2_metaset_add(struct qcow2_metaset *set, uint64_t cluster)
{
    struct qcow2_metaset_table *t = atomic_load_explicit(&set->table, memory_order_relaxed);
    struct qcow2_metaset_table *old = NULL;

    if (cluster == 0) {
        atomic_store_explicit(&set->header, true, memory_order_relaxed);
        return NULL;
    }
    /* At most half full, so that probing is short. */
    if (t->used >= (t->mask + 1) / 2) {
        old = t;
        t = table_new((old->mask + 1) * 2);
        for (uint64_t i = 0; i <= old->mask; i++) {
            uint64_t v = atomic_load_explicit(&old->slots[i], memory_order_relaxed);

            if (v != 0 && v != REMOVED) {
                insert(t, v);
            }
        }
    }
    insert(t, cluster);
    if (old != NULL) {
        atomic_store_explicit(&set->table, t, memory_order_release);
    }
    return old;
}

void qcow2_metaset_remove(struct qcow2_metaset *set, uint64_t cluster)
{
    struct qcow2_metaset_table *t = atomic_load_explicit(&set->table, memory_order_relaxed);
    _Atomic uint64_t *slot = cluster == 0 ? NULL : find(t, cluster);

    if (slot != NULL && atomic_load_explicit(slot, memory_order_relaxed) == cluster) {
        atomic_store_explicit(slot, REMOVED, memory_order_release);
    }
}
