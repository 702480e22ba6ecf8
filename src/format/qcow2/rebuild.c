/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two ways to correct refcounts. See rebuild.h.
 *
 * In place, where every refcount block that is needed exists and is used by nothing else: blocks
 * whose counts differ are written again.
 *
 * Anew, else: a new table and new blocks are written past the end of the file, made durable, and
 * then the header is switched to them in one sector. The old ones are free from then on.
 *
 * Either way the order is: counts and COPIED flags, flush, dirty bit, flush.
 */
#include "format/qcow2/rebuild.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "format/qcow2/layout.h"
#include "format/qcow2/walk.h"

static bool co_write(struct qcow2_walk *w, uint64_t offset, const void *buf, uint64_t len,
                     GError **error)
{
    int rc = qv_co_pwrite(w->file, offset, buf, len);

    return rc == 0 || qv_fail_errno(error, rc, "cannot write refcounts at 0x%" PRIx64, offset);
}

static bool co_flush(struct qcow2_walk *w, GError **error)
{
    int rc = qv_co_flush(w->file);

    return rc == 0 || qv_fail_errno(error, rc, "cannot flush refcounts");
}

/* The count of @cluster as it should be. Clusters from the end of the file to @past_end are those
 * of the new refcount structures. */
static uint64_t wanted(const struct qcow2_walk *w, uint64_t cluster, uint64_t past_end)
{
    if (cluster < w->nb_clusters) {
        return qcow2_tally_get(&w->tally, cluster);
    }
    return cluster < past_end ? 1 : 0;
}

/* Whether any cluster of block @i is used. */
static bool block_needed(const struct qcow2_walk *w, uint64_t i)
{
    unsigned bits = qcow2_rb_bits(&w->header);
    uint64_t end = qv_min_u64((i + 1) << bits, w->nb_clusters);

    for (uint64_t k = i << bits; k < end; k++) {
        if (w->tally.counts[k] != 0) {
            return true;
        }
    }
    return false;
}

static bool can_correct_in_place(const struct qcow2_walk *w)
{
    unsigned bits = qcow2_rb_bits(&w->header);

    if (w->refcounts_unusable) {
        return false;
    }
    for (uint64_t i = 0; i << bits < w->nb_clusters; i++) {
        if ((i >= w->nb_refcount_table || w->refcount_table[i] == 0) && block_needed(w, i)) {
            return false;
        }
    }
    return true;
}

/* Sets the counts of block @i in @block; returns how many were wrong. */
static uint64_t correct_block(struct qcow2_walk *w, uint64_t i, uint8_t *block)
{
    unsigned bits = qcow2_rb_bits(&w->header), order = w->header.refcount_order;
    uint64_t wrong = 0;

    for (uint64_t j = 0; j < UINT64_C(1) << bits; j++) {
        uint64_t have = qcow2_refcount_get(block, order, j);
        uint64_t want = wanted(w, (i << bits) + j, 0);

        if (have == want) {
            continue;
        }
        qcow2_refcount_set(block, order, j, want);
        wrong++;
        if (have < want) {
            w->out->corruptions_fixed++;
        } else if ((i << bits) + j < w->nb_clusters) {
            w->out->leaks_fixed++;
        }
    }
    return wrong;
}

static bool co_correct_in_place(struct qcow2_walk *w, GError **error)
{
    uint64_t cs = qcow2_cluster_size(&w->header);

    for (uint64_t i = 0; i < w->nb_refcount_table; i++) {
        uint64_t offset = w->refcount_table[i];

        if (offset == 0) {
            continue;
        }
        if (!qcow2_co_walk_read(w, offset, w->buf, cs, "refcount block", error)) {
            return false;
        }
        if (correct_block(w, i, w->buf) > 0 && !co_write(w, offset, w->buf, cs, error)) {
            return false;
        }
    }
    return true;
}

static bool co_write_new(struct qcow2_walk *w, uint64_t table_at, const struct qcow2_layout *l,
                         GError **error)
{
    unsigned bits = qcow2_rb_bits(&w->header);
    uint64_t cs = qcow2_cluster_size(&w->header);
    uint64_t block_at = table_at + l->table_clusters * cs;
    g_autofree qv_be64 *table = g_malloc0(l->table_clusters * cs); /* 8 MiB at most */

    for (uint64_t i = 0; i < l->blocks; i++) {
        memset(w->buf, 0, cs);
        for (uint64_t j = 0; j < UINT64_C(1) << bits; j++) {
            uint64_t count = wanted(w, (i << bits) + j, l->total);

            if (count != 0) {
                qcow2_refcount_set(w->buf, w->header.refcount_order, j, count);
            }
        }
        if (!co_write(w, block_at + i * cs, w->buf, cs, error)) {
            return false;
        }
        table[i] = qv_be64_make(block_at + i * cs);
    }
    return co_write(w, table_at, table, l->table_clusters * cs, error);
}

/* @w has counted everything but the old refcount structures. */
static bool co_build_anew(struct qcow2_walk *w, GError **error)
{
    uint64_t cs = qcow2_cluster_size(&w->header), table_at = w->nb_clusters * cs;
    struct qcow2_layout l;
    int rc;

    if (!qcow2_layout_refcounts(&w->header, w->nb_clusters, &l)) {
        return qv_fail(error, QV_ERROR_UNSUPPORTED, "the file is too large for its refcounts");
    }
    if (l.total * cs > w->file_size) {
        rc = qv_node_co_truncate(w->file, l.total * cs);
        if (rc < 0) {
            return qv_fail_errno(error, rc, "no room for new refcounts");
        }
    }
    if (!co_write_new(w, table_at, &l, error) || !co_flush(w, error)) {
        return false;
    }
    w->header.refcount_table_offset = table_at;
    w->header.refcount_table_clusters = (uint32_t)l.table_clusters;
    w->out->corruptions_fixed++;
    return qcow2_co_header_write_fixed(w->file, &w->header, error);
}

/* Counts once more without the refcount structures, which are about to be replaced. */
static bool co_recount(struct qcow2_walk *w, GError **error)
{
    struct qv_node *file = w->file;
    struct qcow2_check *out = w->out;
    uint64_t fixed = out->corruptions_fixed;

    qcow2_walk_clear(w);
    qcow2_check_clear(out);
    qcow2_check_init(out);
    out->corruptions_fixed = fixed;
    return qcow2_co_walk_init(w, file, out, error) && qcow2_co_walk_data(w, error);
}

static bool co_rebuild(struct qcow2_walk *w, GError **error)
{
    if (!qcow2_co_walk_data(w, error)) {
        return false;
    }
    if (w->structure > 0) {
        return qv_fail(error, QV_ERROR_CORRUPT,
                       "the image was not closed and has %" PRIu64
                       " errors that cannot be repaired on opening: %s",
                       w->structure, (const char *)g_ptr_array_index(w->out->details, 0));
    }
    qcow2_walk_refcounts(w);
    if (can_correct_in_place(w)) {
        if (!co_correct_in_place(w, error)) {
            return false;
        }
    } else if (!co_recount(w, error) || !co_build_anew(w, error)) {
        return false;
    }
    for (uint64_t k = 0; k < w->nb_clusters; k++) {
        qcow2_bit_put(w->is_one, k, qcow2_tally_get(&w->tally, k) == 1);
    }
    if (!qcow2_co_walk_copied(w, true, error) || !co_flush(w, error)) {
        return false;
    }
    w->header.incompatible_features &= ~QCOW2_INCOMPAT_DIRTY;
    return qcow2_co_header_write_fixed(w->file, &w->header, error);
}

bool qcow2_co_rebuild_dirty(struct qv_node *file, struct qcow2_check *out, GError **error)
{
    struct qcow2_check found;
    struct qcow2_walk w;
    bool ok;

    qcow2_check_init(&found);
    ok = qcow2_co_walk_init(&w, file, &found, error);
    if (ok && (w.header.incompatible_features & QCOW2_INCOMPAT_DIRTY) != 0) {
        ok = co_rebuild(&w, error);
    }
    qcow2_walk_clear(&w);
    if (ok && out != NULL) {
        *out = found;
    } else {
        qcow2_check_clear(&found);
    }
    return ok;
}
