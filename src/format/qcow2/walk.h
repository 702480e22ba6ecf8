/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The walk over all metadata of an image file, as it stands on disk: counts references, reports
 * what breaks the spec. Base of check and of every repair. Needs no open image; nobody writes the
 * file meanwhile.
 *
 * Time is linear in the file: every L1, L2 and bitmap table is read once, however often it is
 * referred to. Memory: three bytes and three bits a cluster of the file, 16 bytes a distinct L2
 * table, and tables whose size the header's limits bound.
 *
 * L2 tables and refcount blocks are looked at by as many threads as there are processors
 * (walk_parts.h). Where two structures claim one cluster, or more claim it than can be counted,
 * what is found depends on the order of the claims: then all is counted once more, by one thread.
 * So the findings are always those of one thread.
 */
#ifndef QV_FORMAT_QCOW2_WALK_H
#define QV_FORMAT_QCOW2_WALK_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "format/qcow2/header.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/tally.h"

/** A distinct L2 table. */
struct qcow2_walk_l2 {
    uint64_t offset;
    uint32_t refs; /* L1 entries that name it */
    bool active;   /* the active L1 table is among them */
};

struct qcow2_walk {
    struct qv_node *file; /* not owned */
    struct qcow2_header header;
    struct qcow2_check *out; /* findings; not owned */
    uint64_t file_size;      /* bytes */
    uint64_t nb_clusters;    /* of the file, the last one may be short */
    struct qcow2_tally tally;
    uint64_t structure;         /* findings that no correction of counts or COPIED flags mends */
    bool refcounts_unusable;    /* the refcount table or a block cannot be corrected in place */
    GArray *l2s;                /* struct qcow2_walk_l2, ascending by offset; after the walk */
    uint64_t *refcount_table;   /* CPU order; entries that cannot be used are 0 */
    uint64_t nb_refcount_table; /* entries */
    uint8_t *is_one;            /* bit per cluster: its refcount is 1; filled by the user */

    void (*progress)(void *arg, double done);
    void *progress_arg;
    double progress_scale; /* the walk ends here; 0: at 1 */
    unsigned threads;      /* that look at tables; 0: as many as there are processors */

    /* private */
    uint8_t *buf;         /* WALK_CHUNK bytes */
    uint8_t *kinds;       /* enum qcow2_use (walk_int.h) per cluster */
    uint64_t l1_budget;   /* bytes of overlapping L1 tables that are still followed */
    bool shared;          /* others count as well, at this moment */
    bool doubtful;        /* something was found that depends on the order of counting */
    uint8_t *l2_seen;     /* bit per cluster */
    uint8_t *l2_active;   /* bit per cluster */
    GArray *small_tables; /* snapshots' L1s, or bitmaps' tables */
};

/* Bytes read at once; the largest cluster. */
#define QCOW2_WALK_CHUNK (UINT64_C(2) << 20)

/** qcow2_co_walk_init - reads header and refcount table of @file. Also after a failure, end with
 * qcow2_walk_clear(). @out must live as long; initialise it with qcow2_check_init(). */
bool qcow2_co_walk_init(struct qcow2_walk *w, struct qv_node *file, struct qcow2_check *out,
                        GError **error);
/** qcow2_co_walk_init_as - the same, but the tables, snapshots and features are those of @as, not
 * those that the file's header names. */
bool qcow2_co_walk_init_as(struct qcow2_walk *w, struct qv_node *file,
                           const struct qcow2_header *as, struct qcow2_check *out, GError **error);
void qcow2_walk_clear(struct qcow2_walk *w);

/** qcow2_co_walk_check - all of it: counts, and compares with refcounts and COPIED flags. */
bool qcow2_co_walk_check(struct qcow2_walk *w, GError **error);
/** qcow2_walk_progress - @done: 0..1 of the walk. */
void qcow2_walk_progress(const struct qcow2_walk *w, double done);

/** qcow2_co_walk_data - counts all but the refcount structures. False: cannot read. */
bool qcow2_co_walk_data(struct qcow2_walk *w, GError **error);

/** qcow2_walk_refcounts - counts the refcount table and its blocks; after qcow2_co_walk_data(). */
void qcow2_walk_refcounts(struct qcow2_walk *w);

/**
 * qcow2_co_walk_copied - compares the COPIED flags of the active tables with @w->is_one.
 * @fix: corrects them in place instead of reporting (counted in out->corruptions_fixed)
 */
bool qcow2_co_walk_copied(struct qcow2_walk *w, bool fix, GError **error);

/** qcow2_co_walk_read - reads @len bytes at @offset; what lies past the end of the file is zeros.
 */
bool qcow2_co_walk_read(struct qcow2_walk *w, uint64_t offset, void *buf, uint64_t len,
                        const char *what, GError **error);

/** qcow2_check_init - an empty result. */
void qcow2_check_init(struct qcow2_check *out);

/** qcow2_check_add - adds what @part holds, whose notes are taken over as far as there is room. */
void qcow2_check_add(struct qcow2_check *out, struct qcow2_check *part);

/** qcow2_corruption / qcow2_leak - counts one and notes it, as long as there is room for notes. */
void qcow2_corruption(struct qcow2_check *out, const char *format, ...) QV_PRINTF(2, 3);
void qcow2_leak(struct qcow2_check *out, const char *format, ...) QV_PRINTF(2, 3);

static inline bool qcow2_bit_get(const uint8_t *bits, uint64_t i)
{
    return (bits[i / 8] >> (i % 8) & 1) != 0;
}

static inline void qcow2_bit_put(uint8_t *bits, uint64_t i, bool on)
{
    bits[i / 8] = (uint8_t)((bits[i / 8] & ~(1u << (i % 8))) | ((unsigned)on << (i % 8)));
}

/** qcow2_co_check_file - as qcow2_co_check (qcow2.h), of a file that is not open as an image. */
bool qcow2_co_check_file(struct qv_node *file, struct qcow2_check *out,
                         void (*progress)(void *arg, double done), void *arg, GError **error);

#endif
