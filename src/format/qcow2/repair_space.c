/* SPDX-License-Identifier: Apache-2.0 */
/* Repair, part 3: space for what is written anew, and the refcounts of the new state. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "format/qcow2/layout.h"
#include "format/qcow2/repair_int.h"

#define GROW_BYTES (UINT64_C(4) << 20) /* the file grows by, at least */

/* ---- references ---- */

bool qcow2_repair_want(struct repair *r, uint64_t offset, uint64_t len, uint64_t refs,
                       GError **error)
{
    unsigned bits = r->walk.header.cluster_bits;

    if (len == 0) {
        return true;
    }
    for (uint64_t k = offset >> bits; k <= (offset + len - 1) >> bits; k++) {
        if (qcow2_tally_add(&r->want, k, refs, qcow2_refcount_max(&r->walk.header)) > 0) {
            return qv_fail(error, QV_ERROR_CORRUPT,
                           "it cannot be repaired: its refcounts are too narrow for what it holds");
        }
    }
    return true;
}

/* ---- space ---- */

static bool is_free(const struct repair *r, uint64_t k)
{
    return k >= r->walk.nb_clusters ||
           (qcow2_tally_get(&r->walk.tally, k) == 0 && qcow2_tally_get(&r->want, k) == 0);
}

/* Makes the file long enough for @end clusters. */
static bool co_grow(struct repair *r, uint64_t end, GError **error)
{
    uint64_t cs = repair_cs(r), size = atomic_load(&r->file->size);
    uint64_t want = qv_align_up(end * cs, qv_max_u64(cs, GROW_BYTES));
    int rc = 0;

    if (end > r->want.nb) {
        return qv_fail(error, QV_ERROR_CORRUPT,
                       "it cannot be repaired: that would more than double it");
    }
    if (end * cs <= size) {
        return true;
    }
    rc = r->file->limits.new_space_is_zero ? qv_node_co_truncate(r->file, want) : -ENOSPC;
    if (rc == -ENOSPC && r->file->limits.new_space_is_zero) {
        rc = qv_node_co_truncate(r->file, end * cs);
    }
    return rc == 0 || qv_fail_errno(error, rc, "no room for what is repaired");
}

bool qcow2_repair_co_alloc(struct repair *r, uint64_t n, uint64_t refs, uint64_t *at,
                           GError **error)
{
    uint64_t first = r->append ? r->end : r->pos, k = first;

    while (k < r->end && k - first < n) { /* past the end all is free */
        if (is_free(r, k)) {
            k++;
        } else {
            first = ++k;
        }
    }
    if (!co_grow(r, first + n, error)) {
        return false;
    }
    /* A short run is left for good: runs are asked for a few times only. */
    r->pos = first + n;
    r->end = qv_max_u64(r->end, first + n);
    *at = first << r->walk.header.cluster_bits;
    return qcow2_repair_want(r, *at, n << r->walk.header.cluster_bits, refs, error);
}

bool qcow2_repair_co_put(struct repair *r, uint64_t at, const void *buf, uint64_t len,
                         GError **error)
{
    int rc = qv_co_pwrite(r->file, at, buf, len);

    return rc == 0 || qv_fail_errno(error, rc, "cannot write at 0x%" PRIx64, at);
}

/* ---- refcounts ---- */

static bool block_needed(const struct repair *r, uint64_t i)
{
    unsigned bits = qcow2_rb_bits(&r->walk.header);
    uint64_t end = qv_min_u64((i + 1) << bits, r->end);

    for (uint64_t k = i << bits; k < end; k++) {
        if (r->want.counts[k] != 0) {
            return true;
        }
    }
    return false;
}

/* Places of the blocks and the table: both take clusters, which take counting. */
static bool co_place(struct repair *r, GArray *blocks, uint64_t *table_at, uint64_t *clusters,
                     GError **error)
{
    unsigned bits = qcow2_rb_bits(&r->walk.header);
    uint64_t cs = repair_cs(r), entries;
    struct qcow2_layout l;

    if (!qcow2_layout_refcounts(&r->walk.header, r->end, &l)) {
        return qv_fail(error, QV_ERROR_UNSUPPORTED, "the file is too large for its refcounts");
    }
    *clusters = l.table_clusters; /* holds the blocks of these, and more than the table adds */
    if (!qcow2_repair_co_alloc(r, l.table_clusters, 1, table_at, error)) {
        return false;
    }
    for (bool more = true; more;) {
        more = false;
        entries = qv_div_up(r->end, UINT64_C(1) << bits);
        g_array_set_size(blocks, (guint)entries); /* zeroed */
        for (uint64_t i = 0; i < entries; i++) {
            uint64_t *at = &g_array_index(blocks, uint64_t, i);

            if (*at == 0 && block_needed(r, i)) {
                if (!qcow2_repair_co_alloc(r, 1, 1, at, error)) {
                    return false;
                }
                more = true; /* maybe in a block that was not needed before */
            }
        }
    }
    return entries * 8 <= *clusters * cs ||
           qv_fail(error, QV_ERROR_FAILED, "the refcount table does not hold its blocks");
}

static bool co_write_block(struct repair *r, uint64_t i, uint64_t at, GError **error)
{
    unsigned bits = qcow2_rb_bits(&r->walk.header), order = r->walk.header.refcount_order;
    uint64_t first = i << bits, n = qv_min_u64(UINT64_C(1) << bits, r->end - first);

    memset(r->cluster, 0, repair_cs(r));
    for (uint64_t k = 0; k < n; k++) {
        if (r->want.counts[first + k] != 0) {
            qcow2_refcount_set(r->cluster, order, k, qcow2_tally_get(&r->want, first + k));
        }
    }
    return qcow2_repair_co_put(r, at, r->cluster, repair_cs(r), error);
}

bool qcow2_repair_co_refcounts(struct repair *r, GError **error)
{
    g_autoptr(GArray) blocks = g_array_new(false, true, sizeof(uint64_t));
    QV_CLEANUP(qv_freep) qv_be64 *table = NULL;
    uint64_t cs = repair_cs(r), table_at = 0, clusters = 0;

    if (!co_place(r, blocks, &table_at, &clusters, error)) {
        return false;
    }
    table = qv_node_mem_alloc(clusters * cs); /* 8 MiB at most */
    memset(table, 0, clusters * cs);
    for (guint i = 0; i < blocks->len; i++) {
        uint64_t at = g_array_index(blocks, uint64_t, i);

        table[i] = qv_be64_make(at);
        if (at != 0 && !co_write_block(r, i, at, error)) {
            return false;
        }
    }
    r->next.refcount_table_offset = table_at;
    r->next.refcount_table_clusters = (uint32_t)clusters;
    return qcow2_repair_co_put(r, table_at, table, clusters * cs, error);
}
