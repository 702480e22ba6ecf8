/* SPDX-License-Identifier: Apache-2.0 */
/* Repair, part 2: writes every table that changes to a new place. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "format/qcow2/header_areas.h"
#include "format/qcow2/repair_int.h"
#include "format/qcow2/tables.h"

static void put64(uint8_t *table, uint64_t i, uint64_t value)
{
    qv_be64 v = qv_be64_make(value);

    memcpy(table + i * 8, &v, sizeof(v));
}

/* ---- L2 tables ---- */

/* The place of @refs references to what @c stands for; written on first use. */
static bool co_copy(struct repair *r, struct repair_clash *c, uint64_t refs, uint64_t *at,
                    uint64_t *total, GError **error)
{
    struct repair_copy *copy = &g_array_index(c->copies, struct repair_copy, c->next);
    uint64_t cs = repair_cs(r);

    if (c->used + refs > copy->refs) { /* as plan_copies filled them */
        copy = &g_array_index(c->copies, struct repair_copy, ++c->next);
        c->used = 0;
    }
    c->used += refs;
    if (copy->at == 0) {
        memset(r->cluster, 0, cs);
        if ((c != &r->zero && !qcow2_co_walk_read(&r->walk, c->cluster * cs, r->cluster, cs,
                                                  "data cluster", error)) ||
            !qcow2_repair_co_alloc(r, 1, copy->refs, &copy->at, error) ||
            !qcow2_repair_co_put(r, copy->at, r->cluster, cs, error)) {
            return false;
        }
    }
    *at = copy->at;
    *total = copy->refs;
    return true;
}

static bool co_place_data(struct repair *r, uint64_t host, uint64_t refs, uint64_t *at,
                          uint64_t *total, GError **error)
{
    uint64_t k = host >> r->walk.header.cluster_bits;
    struct repair_clash *c = qcow2_repair_clash(r, k);

    if (c == NULL || c->moved + refs <= c->kept) {
        if (c != NULL) {
            c->moved += refs;
        }
        *at = host;
        *total = qcow2_tally_get(&r->want, k);
        return true;
    }
    return co_copy(r, c, refs, at, total, error);
}

/* Compressed data that lies in metadata gets clusters of its own, at the same place inside them. */
static bool co_place_compressed(struct repair *r, uint64_t *descriptor, GError **error)
{
    struct repair_copy *copy = g_hash_table_lookup(r->compressed, descriptor);
    unsigned bits = r->walk.header.cluster_bits, shift = 62 - (bits - 8);
    uint64_t offset, len, in, cs = repair_cs(r);

    if (copy == NULL) {
        return true;
    }
    qcow2_compressed_range(bits, *descriptor, &offset, &len);
    in = offset & (cs - 1);
    if (copy->at == 0) {
        uint64_t n = qv_div_up(in + len, cs);
        QV_CLEANUP(qv_freep) uint8_t *buf = qv_node_mem_alloc(n * cs); /* three clusters at most */

        memset(buf, 0, n * cs);
        if (!qcow2_co_walk_read(&r->walk, offset, buf + in, len, "compressed cluster", error) ||
            !qcow2_repair_co_alloc(r, n, copy->refs, &copy->at, error) ||
            !qcow2_repair_co_put(r, copy->at, buf, n * cs, error)) {
            return false;
        }
    }
    *descriptor = (*descriptor & ~((UINT64_C(1) << shift) - 1)) | (copy->at + in);
    return true;
}

/* Makes the entry what it is to be. */
static bool co_entry(struct repair *r, struct repair_entry *e, const struct repair_l2 *l2,
                     GError **error)
{
    bool was_copied = (e->descriptor & QCOW2_OFLAG_COPIED) != 0;
    enum repair_target target = qcow2_repair_entry(r, e);
    uint64_t at = 0, total = 0;

    switch (target) {
    case REPAIR_COMPRESSED:
        return co_place_compressed(r, &e->descriptor, error);
    case REPAIR_DATA:
        if (!co_place_data(r, e->descriptor & QCOW2_L2_OFFSET_MASK, l2->refs, &at, &total, error)) {
            return false;
        }
        break;
    case REPAIR_LOST:
        if (!co_copy(r, &r->zero, l2->refs, &at, &total, error)) {
            return false;
        }
        break;
    case REPAIR_NOTHING:
    default:
        return true;
    }
    e->descriptor = (e->descriptor & ~QCOW2_L2_OFFSET_MASK) | at;
    /* In tables of snapshots alone the flag means nothing, and is left as it is. */
    if (l2->active ? total == 1 : was_copied) {
        e->descriptor |= QCOW2_OFLAG_COPIED;
    }
    return true;
}

static bool co_write_l2(struct repair *r, guint i, GError **error)
{
    const struct qcow2_header *h = &r->walk.header;
    uint64_t offset = g_array_index(r->walk.l2s, struct qcow2_walk_l2, i).offset;
    struct repair_l2 *l2 = &r->l2s[i];
    unsigned words = qcow2_has_extl2(h) ? 2 : 1;
    bool moves = qcow2_repair_l2_moves(r, offset), changed = moves;

    if (!qcow2_co_walk_read(&r->walk, offset, r->table, repair_cs(r), "L2 table", error)) {
        return false;
    }
    for (uint64_t k = 0; k < UINT64_C(1) << qcow2_l2_bits(h); k++) {
        struct repair_entry was = {qcow2_be64_at(r->table, k * words),
                                   words == 2 ? qcow2_be64_at(r->table, k * words + 1) : 0};
        struct repair_entry e = was;

        if ((e.descriptor | e.bitmap) == 0) {
            continue;
        }
        if (!co_entry(r, &e, l2, error)) {
            return false;
        }
        if (e.descriptor != was.descriptor || e.bitmap != was.bitmap) {
            changed = true;
            put64(r->table, k * words, e.descriptor);
            if (words == 2) {
                put64(r->table, k * words + 1, e.bitmap);
            }
        }
    }
    if (!changed) {
        return true;
    }
    if (!moves) { /* counted where it was */
        qcow2_tally_sub(&r->want, offset >> h->cluster_bits, l2->refs);
    }
    return qcow2_repair_co_alloc(r, 1, l2->refs, &l2->new_at, error) &&
           qcow2_repair_co_put(r, l2->new_at, r->table, repair_cs(r), error);
}

/* ---- L1 tables ---- */

static bool any_multi(const struct repair *r, uint64_t offset, uint64_t len)
{
    unsigned bits = r->walk.header.cluster_bits;

    for (uint64_t k = offset >> bits; len > 0 && k <= (offset + len - 1) >> bits; k++) {
        if ((r->walk.kinds[k] & QCOW2_USE_MULTI) != 0) {
            return true;
        }
    }
    return false;
}

static uint64_t l1_entry(const struct repair *r, uint64_t entry, bool active)
{
    guint i;
    uint64_t at = qcow2_repair_l1_entry(r, entry, &i);

    if (at == 0) {
        return 0;
    }
    at = r->l2s[i].new_at != 0 ? r->l2s[i].new_at : at;
    return at |
           (active ? (r->l2s[i].refs == 1 ? QCOW2_OFLAG_COPIED : 0) : (entry & QCOW2_OFLAG_COPIED));
}

static bool co_write_l1(struct repair *r, struct repair_l1 *l1, GError **error)
{
    uint64_t bytes = l1->entries * 8, stored = qv_align_up(bytes, QV_SECTOR_SIZE);
    QV_CLEANUP(qv_freep) uint8_t *buf = qv_node_mem_alloc(qv_max_u64(stored, 8)); /* 32 MiB */
    bool changed = any_multi(r, l1->offset, bytes);

    if (bytes == 0) {
        return true;
    }
    memset(buf + bytes, 0, stored - bytes);
    if (!qcow2_co_walk_read(&r->walk, l1->offset, buf, bytes, "L1 table", error)) {
        return false;
    }
    for (uint64_t i = 0; i < l1->entries; i++) {
        uint64_t was = qcow2_be64_at(buf, i), now = l1_entry(r, was, l1->active);

        if (was != now) {
            changed = true;
            put64(buf, i, now);
        }
    }
    if (!changed) {
        return qcow2_repair_want(r, l1->offset, bytes, 1, error);
    }
    return qcow2_repair_co_alloc(r, qv_div_up(bytes, repair_cs(r)), 1, &l1->new_at, error) &&
           qcow2_repair_co_put(r, l1->new_at, buf, stored, error);
}

static bool co_write_l1s(struct repair *r, GError **error)
{
    for (guint i = 0; i < r->l1s->len; i++) {
        struct repair_l1 *l1 = &g_array_index(r->l1s, struct repair_l1, i);

        if (!co_write_l1(r, l1, error)) {
            return false;
        }
        if (l1->new_at == 0) {
            continue;
        }
        if (l1->active) {
            r->next.l1_table_offset = l1->new_at;
        } else {
            ((struct qcow2_snapshot *)r->snapshots->pdata[i - 1])->l1_table_offset = l1->new_at;
            r->snapshots_changed = true;
        }
    }
    return true;
}

static bool co_write_snapshots(struct repair *r, GError **error)
{
    g_autoptr(GByteArray) bytes = NULL;
    uint64_t at = r->walk.header.snapshots_offset;

    if (r->walk.header.nb_snapshots == 0) {
        return true;
    }
    if (!r->snapshots_changed && !any_multi(r, at, r->snapshots_stored)) {
        return qcow2_repair_want(r, at, r->snapshots_stored, 1, error);
    }
    r->next.nb_snapshots = r->snapshots->len;
    r->next.snapshots_offset = 0;
    if (r->snapshots->len == 0) {
        return true;
    }
    bytes = qcow2_snapshots_encode(r->snapshots);
    return (bytes != NULL || qv_fail(error, QV_ERROR_CORRUPT, "the snapshot table is too long")) &&
           qcow2_repair_co_alloc(r, qv_div_up(bytes->len, repair_cs(r)), 1,
                                 &r->next.snapshots_offset, error) &&
           qcow2_repair_co_put(r, r->next.snapshots_offset, bytes->data, bytes->len, error);
}

/* ---- bitmaps ---- */

/* Whether bitmaps alone use [@offset, @offset + @len). */
static bool own(const struct repair *r, uint64_t offset, uint64_t len)
{
    unsigned bits = r->walk.header.cluster_bits;

    if (!qv_is_aligned(offset, repair_cs(r)) ||
        !qv_range_inside(offset, len, r->walk.nb_clusters << bits)) {
        return false;
    }
    for (uint64_t k = offset >> bits; len > 0 && k <= (offset + len - 1) >> bits; k++) {
        if (r->walk.kinds[k] != QCOW2_USE_META) {
            return false;
        }
    }
    return true;
}

/* An entry that makes no sense, or whose bits somebody else has written over, says "all bits set"
 * from now on: what a bitmap stands for is then copied once more, and never missed. */
static bool co_bitmap_entry(struct repair *r, uint64_t table, uint64_t i, uint64_t entry,
                            GError **error)
{
    uint64_t offset = entry & QCOW2_BITMAP_ENTRY_OFFSET_MASK;
    qv_be64 all = qv_be64_make(QCOW2_BITMAP_ENTRY_ALL_ONES);

    if ((entry & QCOW2_BITMAP_ENTRY_RESERVED_MASK) == 0) {
        if (offset == 0) {
            return true;
        }
        if ((entry & QCOW2_BITMAP_ENTRY_ALL_ONES) == 0 && own(r, offset, repair_cs(r))) {
            return qcow2_repair_want(r, offset, 1, 1, error);
        }
    }
    return qcow2_repair_co_put(r, table + i * 8, &all, sizeof(all), error);
}

static bool co_bitmap_table(struct repair *r, const struct qcow2_bitmap_entry *b, GError **error)
{
    uint64_t bytes = (uint64_t)b->table_size * 8;

    for (uint64_t done = 0; done < bytes; done += QCOW2_WALK_CHUNK) {
        uint64_t n = qv_min_u64(bytes - done, QCOW2_WALK_CHUNK);

        if (!qcow2_co_walk_read(&r->walk, b->table_offset + done, r->cluster, n, "bitmap table",
                                error)) {
            return false;
        }
        for (uint64_t i = 0; i < n / 8; i++) {
            if (!co_bitmap_entry(r, b->table_offset + done, i, qcow2_be64_at(r->cluster, i),
                                 error)) {
                return false;
            }
        }
    }
    return qcow2_repair_want(r, b->table_offset, bytes, 1, error);
}

/* All tables of the directory, or *@good is false and nothing is said. */
static bool co_bitmap_list(struct repair *r, GArray *tables, bool *good, GError **error)
{
    const struct qcow2_header *h = &r->walk.header;
    uint64_t len = h->bitmap_directory_size, pos = 0;
    QV_CLEANUP(qv_freep) uint8_t *dir = NULL;

    *good = own(r, h->bitmap_directory_offset, len);
    if (!*good) {
        return true;
    }
    dir = qv_node_mem_alloc(qv_max_u64(len, 1)); /* 64 MiB at most, and inside the file */
    if (!qcow2_co_walk_read(&r->walk, h->bitmap_directory_offset, dir, len, "bitmap directory",
                            error)) {
        return false;
    }
    for (uint32_t i = 0; i < h->nb_bitmaps && *good; i++) {
        struct qcow2_bitmap_entry b;

        *good = qcow2_bitmap_parse(dir + pos, len - pos, &b) == 0 &&
                own(r, b.table_offset, (uint64_t)b.table_size * 8);
        if (*good) {
            g_array_append_val(tables, b);
            pos += b.stored;
        }
    }
    *good = *good && pos == len;
    return true;
}

static bool co_bitmaps(struct repair *r, GError **error)
{
    const struct qcow2_header *h = &r->walk.header;
    g_autoptr(GArray) tables = g_array_new(false, false, sizeof(struct qcow2_bitmap_entry));
    bool good;

    if (!h->has_bitmaps) {
        return true;
    }
    if (!co_bitmap_list(r, tables, &good, error)) {
        return false;
    }
    if (!good) { /* void without this bit; so any program treats them */
        r->next.autoclear_features &= ~QCOW2_AUTOCLEAR_BITMAPS;
        return true;
    }
    for (guint i = 0; i < tables->len; i++) {
        if (!co_bitmap_table(r, &g_array_index(tables, struct qcow2_bitmap_entry, i), error)) {
            return false;
        }
    }
    return qcow2_repair_want(r, h->bitmap_directory_offset, h->bitmap_directory_size, 1, error);
}

/* ---- all of it ---- */

static bool want_header(struct repair *r, GError **error)
{
    struct qcow2_area areas[QCOW2_AREAS_MAX];
    unsigned n = qcow2_header_areas(&r->walk.header, areas);

    for (unsigned i = 0; i < n; i++) {
        if (qv_range_inside(areas[i].offset, areas[i].len,
                            r->walk.nb_clusters << r->walk.header.cluster_bits) &&
            !qcow2_repair_want(r, areas[i].offset, areas[i].len, 1, error)) {
            return false;
        }
    }
    for (uint64_t k = 0; k < r->walk.nb_clusters; k++) {
        if ((r->walk.kinds[k] & QCOW2_USE_FIXED) != 0 &&
            !qcow2_repair_want(r, k << r->walk.header.cluster_bits, 1, 1, error)) {
            return false;
        }
    }
    return qcow2_repair_want(r, 0, 1, 1, error);
}

bool qcow2_repair_co_write(struct repair *r, GError **error)
{
    for (guint i = 0; i < r->walk.l2s->len; i++) {
        if (r->l2s[i].refs > 0 && !co_write_l2(r, i, error)) {
            return false;
        }
        qcow2_repair_step(r, 0.6 + 0.2 * i / r->walk.l2s->len);
    }
    return co_write_l1s(r, error) && co_write_snapshots(r, error) && want_header(r, error) &&
           co_bitmaps(r, error) && qcow2_repair_co_refcounts(r, error);
}
