/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Zeroing and discarding: whole clusters by metadata, parts of clusters by zeroing the file, or by
 * marking sub-clusters that are not the disk's own.
 * Nothing of a backing image ever shows again in a range that was zeroed or discarded.
 */
#include <errno.h>

#include "format/qcow2/qcow2_int.h"

#define ENTRIES_PER_LOCK 512u

enum outcome {
    OUTCOME_DONE,
    OUTCOME_WRITE_ZEROS, /* version 2 has no mark for it */
    OUTCOME_CORRUPT,
};

struct request {
    bool discard;
    bool unmap;
    uint32_t flags;
};

/* What a cluster without space becomes that is to read as zeros whatever stands behind it. */
static struct qcow2_l2e nothing(const struct qcow2_image *img)
{
    struct qcow2_l2e e = {0};

    if (img->has_backing && img->sub_bits == 0) {
        e.desc = QCOW2_OFLAG_ZERO;
    } else if (img->has_backing) {
        e.bitmap = QCOW2_SUB_ALL_ZERO;
    }
    return e;
}

/* Whether the cluster reads as zeros although nothing of it says so. */
static bool shows_nothing(struct qcow2_image *img, uint64_t guest, struct qcow2_l2e e)
{
    return e.bitmap == QCOW2_SUB_ALL_ZERO || !qcow2_backing_shows(img, guest);
}

/* A cluster that keeps its space. */
static enum outcome keep_space(struct qcow2_image *img, uint64_t guest, struct qcow2_l2e *e)
{
    if (img->sub_bits == 0 || (e->bitmap & QCOW2_SUB_ALL_ALLOC) != 0) {
        /*
         * Not a zero mark on the cluster: overwrites of it may be in flight, and the write that
         * takes the mark away again would have to wait for them, or they would show up late.
         */
        return OUTCOME_WRITE_ZEROS;
    }
    if (!shows_nothing(img, guest, *e)) {
        e->bitmap = QCOW2_SUB_ALL_ZERO;
    }
    return OUTCOME_DONE;
}

/* What entry becomes so that the cluster reads as zeros, or stays. *@free_old: its space goes. */
static enum outcome new_entry(struct qcow2_image *img, const struct request *req, uint64_t cluster,
                              struct qcow2_l2e *e, bool *free_old)
{
    uint64_t guest = cluster << img->cluster_bits;
    enum qcow2_kind kind = qcow2_entry_kind(img, e->desc);
    bool v3 = img->header.version >= 3;
    bool unmap = (req->unmap || kind == QCOW2_COMPRESSED) && img->node.data_file == NULL;

    *free_old = false;
    if (qcow2_sub_kind(img, cluster, *e, 0) == QCOW2_BAD) {
        return OUTCOME_CORRUPT;
    }
    switch (kind) {
    case QCOW2_ZERO_PLAIN:
        return OUTCOME_DONE;
    case QCOW2_UNALLOCATED:
        if (shows_nothing(img, guest, *e)) {
            return OUTCOME_DONE;
        }
        break;
    case QCOW2_ZERO_ALLOC:
        if (!unmap) {
            return OUTCOME_DONE;
        }
        break;
    case QCOW2_NORMAL:
        /* Space of a snapshot that holds nothing for this disk is let go. */
        if (!unmap && (img->sub_bits == 0 || (e->desc & QCOW2_OFLAG_COPIED) != 0 ||
                       (e->bitmap & QCOW2_SUB_ALL_ALLOC) != 0)) {
            return keep_space(img, guest, e);
        }
        break;
    case QCOW2_COMPRESSED:
    case QCOW2_BAD:
        break;
    }
    if (!v3 && img->has_backing) {
        /* Discarding may leave things as they are. */
        return req->discard ? OUTCOME_DONE : OUTCOME_WRITE_ZEROS;
    }
    *free_old = kind != QCOW2_UNALLOCATED;
    *e = nothing(img);
    return OUTCOME_DONE;
}

static bool same(struct qcow2_l2e a, struct qcow2_l2e b)
{
    return a.desc == b.desc && a.bitmap == b.bitmap;
}

/* Whether any of @count entries from @i on would change. @table may be NULL: none allocated. */
static bool changes_any(struct qcow2_image *img, struct qcow2_table *table,
                        const struct request *req, uint64_t first, uint64_t count)
{
    for (uint64_t n = 0; n < count; n++) {
        struct qcow2_l2e old = {0}, now;
        bool free_old;

        if (table != NULL) {
            old = qcow2_l2_get(img, table, (first + n) & (img->l2_entries - 1));
        }
        now = old;
        if (new_entry(img, req, first + n, &now, &free_old) != OUTCOME_DONE || !same(now, old)) {
            return true;
        }
        if (table == NULL && !qcow2_backing_shows(img, (first + n) << img->cluster_bits)) {
            return false; /* nor any after it */
        }
    }
    return false;
}

/* Changes up to *@count entries; those done into *@count. Lock held. */
static enum outcome change(struct qcow2_image *img, struct qcow2_table *table,
                           const struct request *req, uint64_t first, uint64_t *count)
{
    enum outcome outcome = OUTCOME_DONE;
    uint64_t n;

    for (n = 0; n < *count; n++) {
        uint64_t i = (first + n) & (img->l2_entries - 1);
        struct qcow2_l2e old = qcow2_l2_get(img, table, i), now = old;
        bool free_old;

        if (qcow2_ticket_busy(img, first + n, 1)) {
            break;
        }
        outcome = new_entry(img, req, first + n, &now, &free_old);
        if (outcome != OUTCOME_DONE) {
            break;
        }
        if (!same(now, old)) {
            qcow2_table_set(img, table, i, now, 0);
        }
        if (free_old) {
            qcow2_free_entry(img, old.desc);
        }
    }
    *count = n;
    return outcome;
}

static int co_zero_part(struct qcow2_image *img, uint64_t offset, uint64_t len, uint32_t flags);

/* How many of the @count clusters from @first on need zeros written out, like the first. Lock held.
 */
static uint64_t write_run(struct qcow2_image *img, struct qcow2_table *table,
                          const struct request *req, uint64_t first, uint64_t count)
{
    uint64_t n = 1;

    for (; n < count; n++) {
        struct qcow2_l2e e = qcow2_l2_get(img, table, (first + n) & (img->l2_entries - 1));
        bool free_old;

        if (new_entry(img, req, first + n, &e, &free_old) != OUTCOME_WRITE_ZEROS) {
            break;
        }
    }
    return n;
}

/* @count whole clusters of one L2 table; those dealt with into *@count, at least one. */
static int co_clusters(struct qcow2_image *img, const struct request *req, uint64_t first,
                       uint64_t *count)
{
    struct qcow2_table *table;
    enum outcome outcome;
    uint64_t done = 0, writes = 0;
    bool any;
    int ret = qcow2_journal_co_room(img);

    ret = ret != 0 ? ret : qcow2_co_table_get(img, first >> img->l2_bits, &table);
    if (ret != 0) {
        return ret;
    }
    any = changes_any(img, table, req, first, *count);
    if (table != NULL) {
        qcow2_table_unpin(img, table);
    }
    if (!any) {
        return 0;
    }
    ret = qcow2_co_table_writable(img, first >> img->l2_bits, &table);
    if (ret != 0) {
        return ret;
    }
    pthread_mutex_lock(&img->lock);
    while (qcow2_ticket_busy(img, first, 1)) {
        qv_co_queue_wait(&img->alloc_waiters, &img->lock);
    }
    done = qv_min_u64(*count, ENTRIES_PER_LOCK);
    outcome = change(img, table, req, first, &done);
    if (outcome == OUTCOME_WRITE_ZEROS && done == 0) {
        writes = write_run(img, table, req, first, qv_min_u64(*count, ENTRIES_PER_LOCK));
    }
    pthread_mutex_unlock(&img->lock);
    if (outcome == OUTCOME_CORRUPT) {
        ret = qcow2_co_corrupt(img, table->offset, "invalid entry in the L2 table");
    } else if (writes > 0) {
        done = writes;
        /* All of it, past the end of the disk too: that may be about to move. */
        uint64_t offset = first << img->cluster_bits, len = writes << img->cluster_bits;

        if (img->node.data_file != NULL) { /* which need not hold all of the last cluster */
            len = qv_min_u64(len, qcow2_data_end(img) - offset);
        }
        ret = co_zero_part(img, offset, len, req->flags);
    }
    qcow2_table_unpin(img, table);
    *count = done;
    return ret;
}

/* Part of a cluster: zeros in the file, unless it reads as zeros already. */
static int co_zero_part(struct qcow2_image *img, uint64_t offset, uint64_t len, uint32_t flags)
{
    struct qv_node *node = &img->node;
    uint64_t end = offset + len;
    int ret = 0;

    while (offset < end && ret == 0) {
        uint32_t ticket = qv_guard_enter(node->guard);
        struct qv_extent extent;
        struct qv_alloc *alloc;

        len = end - offset;
        if (qcow2_lookup(node, offset, len, true, &extent) == 0) {
            ret = qcow2_co_data_zero(img, offset, extent.host, extent.len, flags);
            qv_guard_exit(node->guard, ticket);
            offset += extent.len;
            continue;
        }
        ret = qcow2_lookup(node, offset, len, false, &extent);
        qv_guard_exit(node->guard, ticket);
        if (ret == 0 && (extent.kind == QV_EXTENT_ZERO || extent.kind == QV_EXTENT_HOLE)) {
            offset += extent.len;
            continue;
        }
        if (ret == -EAGAIN) {
            ret = qcow2_co_load(node, offset);
            if (ret != 0) {
                break;
            }
        }
        ret = qcow2_co_alloc(node, offset, &len, &alloc);
        if (ret == 0) {
            ret = qcow2_co_data_zero(img, offset, alloc->extent.host, len, flags);
            ret = qcow2_co_commit(node, alloc, ret);
            offset += len;
        }
    }
    return ret;
}

/* ---- sub-clusters ---- */

/* Of sub-clusters @mask of guest cluster @cluster: those that a mark makes zeros. */
static uint32_t to_mark(struct qcow2_image *img, uint64_t cluster, struct qcow2_l2e e,
                        uint32_t mask)
{
    enum qcow2_kind kind = qcow2_entry_kind(img, e.desc);
    uint32_t alloc = (uint32_t)e.bitmap, zero = (uint32_t)(e.bitmap >> 32), mark = 0;

    if (kind != QCOW2_NORMAL && kind != QCOW2_UNALLOCATED) {
        return 0; /* compressed: as a whole, or not at all */
    }
    for (unsigned sub = 0; sub < 32; sub++) {
        uint32_t bit = UINT32_C(1) << sub & mask & ~zero;
        uint64_t guest = (cluster << img->cluster_bits) + ((uint64_t)sub << qcow2_unit_bits(img));
        /* The disk's own data is written over: see keep_space. A snapshot's nobody writes. */
        bool may = (bit & alloc) != 0 ? (e.desc & QCOW2_OFLAG_COPIED) == 0
                                      : qcow2_backing_shows(img, guest);

        mark |= may ? bit : 0;
    }
    return mark;
}

/* Marks what can be of @mask. Lock held. */
static void mark_zero(struct qcow2_image *img, struct qcow2_table *table, uint64_t cluster,
                      uint32_t mask)
{
    uint64_t i = cluster & (img->l2_entries - 1);
    struct qcow2_l2e old = qcow2_l2_get(img, table, i), now = old;
    uint64_t mark = to_mark(img, cluster, old, mask);

    if (mark == 0) {
        return;
    }
    now.bitmap = (old.bitmap & ~mark) | mark << 32;
    if ((now.bitmap & QCOW2_SUB_ALL_ALLOC) == 0 && (old.desc & QCOW2_OFLAG_COPIED) == 0) {
        now.desc = 0; /* space of a snapshot that holds nothing for this disk is let go */
    }
    qcow2_table_set(img, table, i, now, 0);
    if (now.desc != old.desc) {
        qcow2_free_entry(img, old.desc);
    }
}

/* Whole sub-clusters of one cluster, [@first, @end) of it: no data moves where a mark will do. */
static int co_mark_subs(struct qcow2_image *img, uint64_t cluster, unsigned first, unsigned end)
{
    uint32_t mask = (uint32_t)((UINT64_C(1) << end) - (UINT64_C(1) << first));
    struct qcow2_l2e e = {0};
    struct qcow2_table *table;
    int ret = qcow2_journal_co_room(img);

    ret = ret != 0 ? ret : qcow2_co_table_get(img, cluster >> img->l2_bits, &table);
    if (ret != 0) {
        return ret;
    }
    if (table != NULL) {
        e = qcow2_l2_get(img, table, cluster & (img->l2_entries - 1));
        qcow2_table_unpin(img, table);
    }
    if (to_mark(img, cluster, e, mask) == 0) {
        return 0; /* both words may be of different moments: then they change, and so do zeros */
    }
    ret = qcow2_co_table_writable(img, cluster >> img->l2_bits, &table);
    if (ret != 0) {
        return ret;
    }
    pthread_mutex_lock(&img->lock);
    while (qcow2_ticket_busy(img, cluster, 1)) {
        qv_co_queue_wait(&img->alloc_waiters, &img->lock);
    }
    mark_zero(img, table, cluster, mask);
    pthread_mutex_unlock(&img->lock);
    qcow2_table_unpin(img, table);
    return 0;
}

/* Part of one cluster. */
static int co_zero_inside(struct qcow2_image *img, uint64_t offset, uint64_t len, uint32_t flags)
{
    uint64_t unit = UINT64_C(1) << qcow2_unit_bits(img), in = offset & (img->cluster_size - 1);
    unsigned first = (unsigned)qv_div_up(in, unit), end = (unsigned)((in + len) / unit);
    int ret = 0;

    if (img->sub_bits != 0 && first < end && img->node.data_file == NULL) {
        ret = co_mark_subs(img, offset >> img->cluster_bits, first, end);
    }
    return ret != 0 ? ret : co_zero_part(img, offset, len, flags);
}

int qcow2_co_zero(struct qv_node *node, uint64_t offset, uint64_t len, uint32_t flags)
{
    struct qcow2_image *img = qcow2_image_of(node);
    struct request req = {.unmap = (flags & QV_IO_MAY_UNMAP) != 0, .flags = flags};
    uint64_t end = offset + len;
    int ret = 0;

    if (atomic_load(&img->corrupt) || node->readonly) {
        return -EROFS;
    }
    qcow2_bitmaps_mark(img, offset, len);
    while (offset < end && ret == 0) {
        uint64_t in = offset & (img->cluster_size - 1);
        uint64_t size = atomic_load(&node->size);
        uint64_t table_left = img->l2_entries - qcow2_l2_index(img, offset);
        uint64_t n = qv_min_u64(table_left, (end - offset) >> img->cluster_bits);

        if (in == 0 && n == 0 && end == size) {
            n = 1; /* what lies past the end of the disk is nobody's */
        }
        if (in == 0 && n > 0) {
            ret = co_clusters(img, &req, offset >> img->cluster_bits, &n);
            offset = qv_min_u64(end, offset + (n << img->cluster_bits));
        } else {
            n = qv_min_u64(img->cluster_size - in, end - offset);
            ret = co_zero_inside(img, offset, n, flags);
            offset += n;
        }
    }
    return ret;
}

int qcow2_co_discard(struct qv_node *node, uint64_t offset, uint64_t len)
{
    struct qcow2_image *img = qcow2_image_of(node);
    struct request req = {.discard = true, .unmap = true};
    uint64_t first = qv_div_up(offset, img->cluster_size);
    uint64_t end = (offset + len) >> img->cluster_bits;
    int ret = 0;

    if (atomic_load(&img->corrupt) || node->readonly) {
        return -EROFS;
    }
    if (offset + len == atomic_load(&node->size)) {
        end = qv_div_up(offset + len, img->cluster_size);
    }
    qcow2_bitmaps_mark(img, offset, len);
    while (first < end && ret == 0) {
        uint64_t n = qv_min_u64(img->l2_entries - (first & (img->l2_entries - 1)), end - first);

        ret = co_clusters(img, &req, first, &n);
        first += n;
    }
    return ret;
}
