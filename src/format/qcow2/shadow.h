/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A change of the metadata as a whole: refcounts, L1 table, snapshot table and disk size, however
 * much of them, become valid with one write of the header. Until then all that is new stands in
 * clusters that are free in the old state, and nothing of the old state is touched. Power loss
 * leaves all of the old state or all of the new one, and no leak in either.
 *
 * Refcount blocks are changed in memory, in copies made on first use, and get a new place in the
 * file; so does the refcount table. Used under commit_lock and ref_lock, with the gate closed and
 * all metadata written. Several coroutines of one thread may work on one shadow.
 */
#ifndef QV_FORMAT_QCOW2_SHADOW_H
#define QV_FORMAT_QCOW2_SHADOW_H

#include "format/qcow2/qcow2_int.h"

struct qcow2_shadow_block {
    uint8_t *data; /* NULL: not in memory */
    uint64_t home; /* host offset where its content stands; 0: nowhere, all zeros */
    uint64_t old;  /* host offset in the old state; 0: none */
    bool dirty;    /* memory differs from what stands at @home */
    bool moved;    /* @home is a new place */
    bool freed;    /* some refcount has become zero */
};

struct qcow2_shadow {
    struct qcow2_image *img;
    struct qcow2_header next; /* the header to be; scalars may be changed by the user */
    /* Refcount table to be: */
    uint64_t entries;
    struct qcow2_shadow_block **blocks;
    uint64_t table_first, table_clusters; /* its place */
    uint64_t loaded, max_loaded;          /* blocks in memory */
    uint64_t hand;                        /* of the clock that evicts */
    struct qv_co_mutex load_lock;         /* before space_lock */
    /* Space: */
    struct qv_co_mutex space_lock; /* also: the image's own refcounts are looked at */
    uint64_t pos, inside_end;      /* where free clusters are looked for, in the file as it was */
    unsigned scan_blocks;
    uint64_t ext_first, ext_count;   /* new clusters at the end of the file */
    struct qcow2_freed_list taken;   /* to be counted */
    struct qcow2_freed_list dropped; /* to lose a reference */
    /* Metadata clusters that come and go: for the metadata set. */
    struct qcow2_freed_list meta_add, meta_remove;
};

/** qcow2_shadow_co_begin - 0, -EIO, -EROFS. End with qcow2_shadow_end in any case. */
int qcow2_shadow_co_begin(struct qcow2_shadow *s, struct qcow2_image *img);
void qcow2_shadow_end(struct qcow2_shadow *s);

/** qcow2_shadow_co_preload - reads all refcount blocks that fit in memory, many at a time. */
int qcow2_shadow_co_preload(struct qcow2_shadow *s);

/** qcow2_shadow_co_add - each of @count clusters from @first on gets one reference more (@up) or
 * less. -ERANGE: more than can be counted; -EUCLEAN: it had none; -EIO. After an error the shadow
 * can only be ended. */
int qcow2_shadow_co_add(struct qcow2_shadow *s, uint64_t first, uint64_t count, bool up);
/** qcow2_shadow_co_set - the refcount becomes @value, which fits. */
int qcow2_shadow_co_set(struct qcow2_shadow *s, uint64_t cluster, uint64_t value);
/** qcow2_shadow_co_get - the refcount to be. */
int qcow2_shadow_co_get(struct qcow2_shadow *s, uint64_t cluster, uint64_t *out);
/** qcow2_shadow_co_look - the refcount block of @cluster to be, to be read until the next yield. */
int qcow2_shadow_co_look(struct qcow2_shadow *s, uint64_t cluster, const uint8_t **block);

/** qcow2_shadow_co_alloc - @n adjacent clusters that are free in the old state; refcount one.
 * @meta: they will hold metadata of the new state. -ENOSPC, -EIO. */
int qcow2_shadow_co_alloc(struct qcow2_shadow *s, uint64_t n, bool meta, uint64_t *first);
/** qcow2_shadow_co_alloc_below - one cluster below cluster @limit, if one is free. -ENOSPC, -EIO.
 */
int qcow2_shadow_co_alloc_below(struct qcow2_shadow *s, uint64_t limit, bool meta, uint64_t *first);
/** qcow2_shadow_co_relocate - refcount block @index, if there is one, gets a new place. */
int qcow2_shadow_co_relocate(struct qcow2_shadow *s, uint64_t index);
/** qcow2_shadow_drop - [@first, @first + @n), metadata so far, loses a reference. */
void qcow2_shadow_drop(struct qcow2_shadow *s, uint64_t first, uint64_t n);

/**
 * qcow2_shadow_co_commit - makes the new state valid: the active L1 table @l1 (@entries, host
 * order), the header as in s->next, the refcounts. After an error the old state is valid, or it is
 * not known which (a failed write of the header): then the image takes no more changes.
 */
int qcow2_shadow_co_commit(struct qcow2_shadow *s, const uint64_t *l1, uint64_t entries);

/** qcow2_shadow_freed - the refcount blocks in which something became free, as a list of block
 * indices; to be taken before qcow2_shadow_end. */
void qcow2_shadow_freed(const struct qcow2_shadow *s, struct qcow2_freed_list *out);

/**
 * qcow2_co_workers - runs @fn(@arg, i) for each i in [0, @n), many at a time, in coroutines of
 * this thread. Returns the first error, which ends the rest.
 */
int qcow2_co_workers(uint64_t n, int (*fn)(void *arg, uint64_t i), void *arg);

#endif
