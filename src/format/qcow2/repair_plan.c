/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Repair, part 1: what is to become of every entry, and how often each cluster will be referred to.
 * Nothing is written. Trust: every byte of the file may be hostile; positions are those that the
 * walk has checked.
 *
 * Who keeps a cluster that several use: metadata of one place (header, L1, bitmaps) before
 * compressed data, that before L2 tables, these before data. The others get a copy of what they
 * read there now.
 */
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "format/qcow2/repair_int.h"
#include "format/qcow2/tables.h"

/* Clusters in conflict that are dealt with; bounds memory. */
#define CLASHES_MAX (1u << 20)

static bool too_much(const char *what, GError **error)
{
    return qv_fail(error, QV_ERROR_CORRUPT, "it cannot be repaired: %s", what);
}

/* ---- one entry ---- */

bool qcow2_repair_has_data_file(const struct repair *r)
{
    return (r->walk.header.incompatible_features & QCOW2_INCOMPAT_DATA_FILE) != 0;
}

static uint64_t whole_end(const struct repair *r)
{
    return r->walk.nb_clusters << r->walk.header.cluster_bits;
}

/* What leads nowhere becomes zeros; of extended entries, the subclusters @lost do. */
static enum repair_target lose(const struct repair *r, struct repair_entry *e, uint64_t lost)
{
    const struct qcow2_header *h = &r->walk.header;

    if (qcow2_has_extl2(h)) {
        *e = (struct repair_entry){0, (e->bitmap & UINT64_C(0xffffffff00000000)) | lost << 32};
        return REPAIR_NOTHING;
    }
    *e = (struct repair_entry){h->version >= 3 ? QCOW2_OFLAG_ZERO : 0, 0};
    return h->version >= 3 || h->backing_file == NULL ? REPAIR_NOTHING : REPAIR_LOST;
}

static enum repair_target compressed_entry(const struct repair *r, struct repair_entry *e)
{
    unsigned bits = r->walk.header.cluster_bits, shift = 62 - (bits - 8);
    uint64_t offset, len, end = whole_end(r);

    e->descriptor &= ~QCOW2_OFLAG_COPIED;
    e->bitmap = 0;
    qcow2_compressed_range(bits, e->descriptor, &offset, &len);
    /* No reader accepts these. */
    if (qcow2_repair_has_data_file(r) || offset < repair_cs(r) || offset >= r->walk.file_size) {
        return lose(r, e, UINT32_MAX);
    }
    if (offset + len > end) { /* what is past the end is not part of the stream */
        uint64_t sectors =
            (end - qv_align_down(offset, QCOW2_COMPRESSED_SECTOR)) / QCOW2_COMPRESSED_SECTOR;

        e->descriptor = QCOW2_OFLAG_COMPRESSED | (sectors - 1) << shift | offset;
    }
    return REPAIR_COMPRESSED;
}

/* Flags and subclusters, which depend on the version. */
static void mend_kind(const struct repair *r, struct repair_entry *e, bool allocated)
{
    const struct qcow2_header *h = &r->walk.header;
    uint64_t alloc = e->bitmap & UINT32_MAX, zero = e->bitmap >> 32;

    e->descriptor &= ~QCOW2_L2_RESERVED_MASK;
    if (h->version < 3 || qcow2_has_extl2(h)) {
        e->descriptor &= ~QCOW2_OFLAG_ZERO;
    }
    if (!allocated) {
        zero |= alloc;
        alloc = 0;
    }
    e->bitmap = (zero & ~alloc) << 32 | alloc;
}

enum repair_target qcow2_repair_entry(const struct repair *r, struct repair_entry *e)
{
    uint64_t host = e->descriptor & QCOW2_L2_OFFSET_MASK;
    bool data_file = qcow2_repair_has_data_file(r);
    bool allocated = host != 0 || (data_file && (e->descriptor & QCOW2_OFLAG_COPIED) != 0);

    if ((e->descriptor & QCOW2_OFLAG_COMPRESSED) != 0) {
        return compressed_entry(r, e);
    }
    mend_kind(r, e, allocated);
    if (!data_file) {
        e->descriptor &= ~QCOW2_OFLAG_COPIED;
    }
    if (!qv_is_aligned(host, repair_cs(r)) || (!data_file && host >= whole_end(r))) {
        return lose(r, e, e->bitmap & UINT32_MAX);
    }
    return allocated && !data_file ? REPAIR_DATA : REPAIR_NOTHING;
}

static gint compare_l2(const void *a, const void *b)
{
    uint64_t offset = *(const uint64_t *)a;
    const struct qcow2_walk_l2 *l2 = b;

    return offset < l2->offset ? -1 : offset > l2->offset;
}

uint64_t qcow2_repair_l1_entry(const struct repair *r, uint64_t entry, guint *i)
{
    uint64_t offset = entry & QCOW2_L1_OFFSET_MASK;
    const GArray *l2s = r->walk.l2s;
    const struct qcow2_walk_l2 *found;

    if (offset == 0 || !qv_is_aligned(offset, repair_cs(r)) || l2s->len == 0) {
        return 0;
    }
    found = bsearch(&offset, l2s->data, l2s->len, sizeof(*found), compare_l2);
    if (found == NULL) {
        return 0; /* past the end */
    }
    *i = (guint)(found - (const struct qcow2_walk_l2 *)(const void *)l2s->data);
    return offset;
}

bool qcow2_repair_l2_moves(const struct repair *r, uint64_t offset)
{
    return (r->walk.kinds[offset >> r->walk.header.cluster_bits] &
            (QCOW2_USE_META | QCOW2_USE_COMPRESSED)) != 0;
}

bool qcow2_repair_compressed_moves(const struct repair *r, uint64_t descriptor)
{
    unsigned bits = r->walk.header.cluster_bits;
    uint64_t offset, len;

    qcow2_compressed_range(bits, descriptor, &offset, &len);
    for (uint64_t k = offset >> bits; k <= (offset + len - 1) >> bits; k++) {
        if ((r->walk.kinds[k] & QCOW2_USE_META) != 0) {
            return true;
        }
    }
    return false;
}

/* ---- clusters in conflict ---- */

void qcow2_repair_copy_free(void *copy)
{
    g_free(copy);
}

void qcow2_repair_clash_free(void *clash)
{
    struct repair_clash *c = clash;

    g_array_unref(c->copies);
    g_free(c);
}

struct repair_clash *qcow2_repair_clash(const struct repair *r, uint64_t cluster)
{
    if ((r->walk.kinds[cluster] & (QCOW2_USE_META | QCOW2_USE_L2 | QCOW2_USE_OVER)) == 0) {
        return NULL;
    }
    return g_hash_table_lookup(r->clashes, &cluster);
}

static struct repair_clash *clash_of(struct repair *r, uint64_t cluster)
{
    struct repair_clash *c = g_hash_table_lookup(r->clashes, &cluster);

    if (c == NULL && g_hash_table_size(r->clashes) < CLASHES_MAX) {
        c = g_new0(struct repair_clash, 1);
        c->cluster = cluster;
        c->copies = g_array_new(false, false, sizeof(struct repair_copy));
        g_hash_table_insert(r->clashes, &c->cluster, c);
    }
    return c;
}

static void plan_copies(const struct repair *r, struct repair_clash *c, uint64_t refs)
{
    uint64_t max = qcow2_refcount_max(&r->walk.header);
    struct repair_copy *last =
        c->copies->len > 0 ? &g_array_index(c->copies, struct repair_copy, c->copies->len - 1)
                           : NULL;

    if (last != NULL && last->refs + refs <= max) {
        last->refs += refs;
    } else {
        struct repair_copy fresh = {.refs = refs};

        g_array_append_val(c->copies, fresh);
    }
}

static bool plan_data(struct repair *r, uint64_t host, uint64_t refs, GError **error)
{
    uint64_t k = host >> r->walk.header.cluster_bits;
    uint64_t max = qcow2_refcount_max(&r->walk.header);
    uint8_t kinds = r->walk.kinds[k];
    struct repair_clash *c;

    if ((kinds & (QCOW2_USE_META | QCOW2_USE_L2 | QCOW2_USE_OVER)) == 0) {
        return qcow2_repair_want(r, host, 1, refs, error);
    }
    c = clash_of(r, k);
    if (c == NULL) {
        return too_much("too many clusters have several users", error);
    }
    if ((kinds & (QCOW2_USE_META | QCOW2_USE_L2)) == 0 && c->kept + refs <= max) {
        c->kept += refs;
        return qcow2_repair_want(r, host, 1, refs, error);
    }
    if ((r->walk.header.incompatible_features & QCOW2_INCOMPAT_QV_SEALED) != 0) {
        return too_much("an encrypted cluster lies where metadata does", error);
    }
    plan_copies(r, c, refs);
    return true;
}

static bool plan_compressed(struct repair *r, uint64_t descriptor, uint64_t refs, GError **error)
{
    uint64_t offset, len;
    struct repair_copy *copy;

    qcow2_compressed_range(r->walk.header.cluster_bits, descriptor, &offset, &len);
    if (!qcow2_repair_compressed_moves(r, descriptor)) {
        return qcow2_repair_want(r, offset, len, refs, error);
    }
    copy = g_hash_table_lookup(r->compressed, &descriptor);
    if (copy == NULL) {
        if (g_hash_table_size(r->compressed) >= CLASHES_MAX) {
            return too_much("too many compressed clusters lie in metadata", error);
        }
        copy = g_new0(struct repair_copy, 1);
        g_hash_table_insert(r->compressed, g_memdup2(&descriptor, sizeof(descriptor)), copy);
    }
    copy->refs += refs;
    return true;
}

/* ---- the passes ---- */

static bool plan_entry(struct repair *r, struct repair_entry e, uint64_t refs, GError **error)
{
    switch (qcow2_repair_entry(r, &e)) {
    case REPAIR_DATA:
        return plan_data(r, e.descriptor & QCOW2_L2_OFFSET_MASK, refs, error);
    case REPAIR_COMPRESSED:
        return plan_compressed(r, e.descriptor, refs, error);
    case REPAIR_LOST:
        plan_copies(r, &r->zero, refs);
        return true;
    case REPAIR_NOTHING:
    default:
        return true;
    }
}

static bool co_plan_l2(struct repair *r, guint i, GError **error)
{
    const struct qcow2_header *h = &r->walk.header;
    uint64_t offset = g_array_index(r->walk.l2s, struct qcow2_walk_l2, i).offset;
    unsigned words = qcow2_has_extl2(h) ? 2 : 1;

    if (!qcow2_co_walk_read(&r->walk, offset, r->table, repair_cs(r), "L2 table", error)) {
        return false;
    }
    for (uint64_t k = 0; k < UINT64_C(1) << qcow2_l2_bits(h); k++) {
        struct repair_entry e = {qcow2_be64_at(r->table, k * words),
                                 words == 2 ? qcow2_be64_at(r->table, k * words + 1) : 0};

        if ((e.descriptor | e.bitmap) != 0 && !plan_entry(r, e, r->l2s[i].refs, error)) {
            return false;
        }
    }
    return qcow2_repair_l2_moves(r, offset) ||
           qcow2_repair_want(r, offset, 1, r->l2s[i].refs, error);
}

static bool co_plan_l1(struct repair *r, const struct repair_l1 *l1, GError **error)
{
    uint64_t bytes = l1->entries * 8;

    for (uint64_t done = 0; done < bytes; done += QCOW2_WALK_CHUNK) {
        uint64_t n = qv_min_u64(bytes - done, QCOW2_WALK_CHUNK);

        if (!qcow2_co_walk_read(&r->walk, l1->offset + done, r->cluster, n, "L1 table", error)) {
            return false;
        }
        for (uint64_t k = 0; k < n / 8; k++) {
            guint i;

            if (qcow2_repair_l1_entry(r, qcow2_be64_at(r->cluster, k), &i) != 0) {
                r->l2s[i].refs++;
                r->l2s[i].active |= l1->active;
            }
        }
    }
    return true;
}

static bool plan_l1s(struct repair *r, GError **error)
{
    const struct qcow2_header *h = &r->walk.header;
    struct repair_l1 active = {.offset = h->l1_table_offset, .entries = h->l1_size, .active = true};

    if (!qv_range_inside(active.offset, active.entries * 8, whole_end(r))) {
        return too_much("its L1 table lies past the end of the file", error);
    }
    g_array_append_val(r->l1s, active);
    for (guint i = 0; i < r->snapshots->len; i++) {
        const struct qcow2_snapshot *s = r->snapshots->pdata[i];
        struct repair_l1 l1 = {.offset = s->l1_table_offset, .entries = s->l1_size};

        g_array_append_val(r->l1s, l1);
    }
    return true;
}

bool qcow2_repair_co_plan(struct repair *r, GError **error)
{
    uint64_t max = qcow2_refcount_max(&r->walk.header);

    if (!qcow2_repair_co_snapshots(r, error) || !plan_l1s(r, error)) {
        return false;
    }
    for (guint i = 0; i < r->l1s->len; i++) {
        if (!co_plan_l1(r, &g_array_index(r->l1s, struct repair_l1, i), error)) {
            return false;
        }
    }
    for (guint i = 0; i < r->walk.l2s->len; i++) {
        if (r->l2s[i].refs > max) {
            return too_much("its refcounts are too narrow for what it holds", error);
        }
        if (r->l2s[i].refs > 0 && !co_plan_l2(r, i, error)) {
            return false;
        }
        qcow2_repair_step(r, 0.4 + 0.2 * i / r->walk.l2s->len);
    }
    return true;
}
