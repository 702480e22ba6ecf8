/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by compact*.c only. */
#ifndef QV_FORMAT_QCOW2_COMPACT_INT_H
#define QV_FORMAT_QCOW2_COMPACT_INT_H

#include "format/qcow2/compact.h"
#include "format/qcow2/snapshot_int.h"

#define COMPACT_WINDOW 64u /* L1 entries a step looks at, at most */

struct compact {
    struct qcow2_image *img;
    const struct qcow2_compact_opts *opts;
    struct qcow2_compact_result result;
    uint64_t tables_moved; /* L2 tables that have come below the limit */
    uint64_t budget;       /* bytes a step */
    uint64_t limit;        /* cluster: what lies there or behind is to move below it */
    uint64_t low;          /* cluster: below it nothing is free */
    uint8_t *kinds;        /* of the walk, per cluster (walk_int.h) */
    uint8_t *zeros;        /* bit per cluster: it was found to hold zeros only */
    uint64_t nb;           /* clusters of both */
    bool drop_zeros;       /* this pass drops zeros; else it moves */
    double from, to;       /* progress of this pass */
};

/* Where a step stands. */
struct compact_at {
    uint64_t l1_index;
    bool end; /* of the L1 tables */
};

/** qcow2_compact_co_step - one step from @at on, which it moves. Under ops_lock. */
int qcow2_compact_co_step(struct compact *c, struct compact_at *at);
/** qcow2_compact_co_settle - moves metadata only. Gate closed, commit_lock and ref_lock held. */
int qcow2_compact_co_settle(struct compact *c);

/** qcow2_compact_co_bitmaps - moves dirty bitmaps below the limit. As above; compact_bitmap.c. */
int qcow2_compact_co_bitmaps(struct compact *c);

/* ---- compact_scan.c ---- */

/** qcow2_compact_co_leaks - gives the stock and leaked clusters back. Under ops_lock. */
bool qcow2_compact_co_leaks(struct compact *c, GError **error);
/** qcow2_compact_co_scan - looks for clusters of zeros. No lock. */
int qcow2_compact_co_scan(struct compact *c);
/** qcow2_compact_co_used - clusters with a reference; *@end: one past the last. Under ref_lock. */
int qcow2_compact_co_used(struct qcow2_image *img, uint64_t *used, uint64_t *end);
/** qcow2_compact_co_drop_stock - under commit_lock and ref_lock, the gate closed. */
int qcow2_compact_co_drop_stock(struct qcow2_image *img);
/** qcow2_compact_co_is_zero - whether the cluster at @host reads as zeros; @buf: a cluster. */
int qcow2_compact_co_is_zero(struct qcow2_image *img, uint64_t host, void *buf, bool *zero);

/* ---- compact_meta.c; under ref_lock, the gate closed ---- */

/** qcow2_compact_co_find_free - the first @n adjacent free clusters from *@pos on, below @end,
 * whose refcounts have a block; *@pos moves on. -ENOSPC: there are none. */
int qcow2_compact_co_find_free(struct qcow2_image *img, uint64_t *pos, uint64_t end, uint64_t n,
                               uint64_t *first);
/** qcow2_compact_co_take - the same, and they become metadata with a reference each. */
int qcow2_compact_co_take(struct qcow2_image *img, uint64_t *pos, uint64_t end, uint64_t n,
                          uint64_t *first);
/** qcow2_compact_co_leave - clusters of metadata are nobody's: what named them is changed, durably.
 */
int qcow2_compact_co_leave(struct qcow2_image *img, uint64_t first, uint64_t n);

/* ---- compact_seal.c: encrypted images ---- */

/** qcow2_compact_co_scan_sealed - as qcow2_compact_co_scan, of what the disk shows. No lock. */
int qcow2_compact_co_scan_sealed(struct compact *c);
/** qcow2_compact_co_reads_zero - as qcow2_compact_co_is_zero, of a cluster at guest offset @guest.
 */
int qcow2_compact_co_reads_zero(struct qcow2_image *img, uint64_t guest, uint64_t host, void *buf,
                                bool *zero);
/** qcow2_compact_co_copy_sealed - in clusters; durable after the next sync of the image. */
int qcow2_compact_co_copy_sealed(struct qcow2_image *img, uint64_t guest, uint64_t from,
                                 uint64_t to, uint64_t clusters);
/** qcow2_compact_co_cover - entry blocks for what may move below the limit. Under ref_lock, the
 * gate closed, before a step. Of others it does nothing. */
int qcow2_compact_co_cover(struct compact *c);
/** qcow2_compact_co_trim - entry blocks and their table leave what lies behind cluster @used. Under
 * commit_lock and ref_lock, the gate closed. Of others it does nothing. */
int qcow2_compact_co_trim(struct compact *c, uint64_t used);

static inline bool compact_stopped(const struct compact *c)
{
    return c->opts->stop != NULL && atomic_load(c->opts->stop);
}

static inline void compact_progress(const struct compact *c, double part)
{
    if (c->opts->progress != NULL) {
        c->opts->progress(c->opts->arg, c->from + (c->to - c->from) * part);
    }
}

#endif
