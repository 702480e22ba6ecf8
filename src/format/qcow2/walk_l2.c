/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Walk over the metadata, part 2: the L2 tables and the COPIED flags. See walk.h.
 * Source: QEMU docs/interop/qcow2.rst, "Cluster mapping".
 */
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "block/node.h"
#include "format/qcow2/walk.h"
#include "format/qcow2/walk_int.h"
#include "format/qcow2/walk_parts.h"

/* One L2 table while it is looked at. */
struct table {
    const struct qcow2_walk_l2 *l2;
    uint8_t *bytes;
    uint64_t next; /* where the next cluster lies when the disk is not fragmented; 0: anywhere */
};

struct entry {
    uint64_t descriptor;
    uint64_t bitmap; /* extended L2: allocated subclusters low, zero ones high */
};

static void structure(struct qcow2_walk *w, const struct table *t, uint64_t i, const char *why)
{
    qcow2_corruption(w->out, "L2 table at 0x%" PRIx64 ", entry %" PRIu64 ": %s", t->l2->offset, i,
                     why);
    w->structure++;
}

static void compressed(struct qcow2_walk *w, struct table *t, uint64_t i, struct entry e)
{
    uint64_t offset, len;

    if ((e.descriptor & QCOW2_OFLAG_COPIED) != 0) {
        structure(w, t, i, "compressed cluster with the COPIED flag");
    }
    if ((w->header.incompatible_features & QCOW2_INCOMPAT_DATA_FILE) != 0) {
        structure(w, t, i, "compressed cluster in an image with a data file");
        return;
    }
    if (w->header.has_seal) {
        structure(w, t, i, "compressed cluster in an encrypted image");
        return;
    }
    if (e.bitmap != 0) {
        structure(w, t, i, "compressed cluster with subclusters");
        return;
    }
    qcow2_compressed_range(w->header.cluster_bits, e.descriptor, &offset, &len);
    qcow2_walk_claim(w, QCOW2_USE_COMPRESSED, offset, len, t->l2->refs);
    if (t->l2->active) {
        w->out->allocated_clusters++;
        w->out->compressed_clusters++;
        w->out->fragmented_clusters++; /* by nature */
    }
}

/* Rules for the zero flag and the subcluster bitmap, which depend on the version. */
static void check_kind(struct qcow2_walk *w, const struct table *t, uint64_t i, struct entry e,
                       bool allocated)
{
    if ((e.descriptor & QCOW2_OFLAG_ZERO) != 0) {
        if (w->header.version == 2) {
            structure(w, t, i, "zero cluster in version 2");
        } else if (qcow2_has_extl2(&w->header)) {
            structure(w, t, i, "zero flag besides extended L2 entries");
        }
    }
    if ((e.descriptor & QCOW2_L2_RESERVED_MASK) != 0) {
        structure(w, t, i, "reserved bits set");
    }
    if ((e.bitmap >> 32 & e.bitmap) != 0) {
        structure(w, t, i, "subcluster both allocated and zero");
    }
    if (!allocated && (uint32_t)e.bitmap != 0) {
        structure(w, t, i, "unallocated cluster with allocated subclusters");
    }
}

static void standard(struct qcow2_walk *w, struct table *t, uint64_t i, struct entry e)
{
    uint64_t host = e.descriptor & QCOW2_L2_OFFSET_MASK, cs = qcow2_cluster_size(&w->header);
    bool data_file = (w->header.incompatible_features & QCOW2_INCOMPAT_DATA_FILE) != 0;
    /* In a data file offset 0 is a place like any other; the COPIED flag tells. */
    bool allocated = host != 0 || (data_file && (e.descriptor & QCOW2_OFLAG_COPIED) != 0);

    check_kind(w, t, i, e, allocated);
    if (!allocated) {
        return;
    }
    if (t->l2->active) {
        w->out->allocated_clusters++;
        if (t->next != 0 && host != t->next) {
            w->out->fragmented_clusters++;
        }
        t->next = host + cs;
    }
    if (!qv_is_aligned(host, cs)) {
        structure(w, t, i, "data cluster is not cluster aligned");
    }
    if (!data_file) {
        qcow2_walk_claim(w, QCOW2_USE_DATA, host, cs, t->l2->refs);
    }
}

static struct entry entry_at(const struct qcow2_walk *w, const uint8_t *bytes, uint64_t i)
{
    bool ext = qcow2_has_extl2(&w->header);
    struct entry e = {qcow2_be64_at(bytes, ext ? i * 2 : i), 0};

    if (ext) {
        e.bitmap = qcow2_be64_at(bytes, i * 2 + 1);
    }
    return e;
}

static void count_table(struct qcow2_walk *w, struct table *t)
{
    uint64_t entries = UINT64_C(1) << qcow2_l2_bits(&w->header);

    for (uint64_t i = 0; i < entries; i++) {
        struct entry e = entry_at(w, t->bytes, i);

        if (e.descriptor == 0 && e.bitmap == 0) {
            continue;
        }
        if ((e.descriptor & QCOW2_OFLAG_COMPRESSED) != 0) {
            compressed(w, t, i, e);
        } else {
            standard(w, t, i, e);
        }
    }
}

static uint64_t table_place(const struct qcow2_walk *w, uint64_t i)
{
    return g_array_index(w->l2s, struct qcow2_walk_l2, i).offset;
}

/* The @i-th table of a part. */
static struct table table_at(const struct qcow2_walk *w, const struct qcow2_part *part, uint64_t i)
{
    return (struct table){.l2 = &g_array_index(w->l2s, struct qcow2_walk_l2, part->first + i),
                          .bytes = part->buf + (i << w->header.cluster_bits)};
}

static bool count_part(struct qcow2_walk *view, const struct qcow2_part *part, GError **error)
{
    (void)error;
    for (uint64_t i = 0; i < part->n; i++) {
        struct table t = table_at(view, part, i);

        count_table(view, &t);
    }
    return true;
}

bool qcow2_co_walk_l2s(struct qcow2_walk *w, GError **error)
{
    static const struct qcow2_part_ops ops = {
        .what = "L2 table", .place = table_place, .look = count_part, .from = 0, .to = 0.6};

    return qcow2_parts_co_run(w, &ops, w->l2s->len, error);
}

/* ---- COPIED flags ---- */

/* Whether @descriptor's flag is wrong for a cluster at @host. */
static bool copied_wrong(const struct qcow2_walk *w, uint64_t descriptor, uint64_t host)
{
    uint64_t cluster = host >> w->header.cluster_bits;

    return cluster < w->nb_clusters &&
           qcow2_bit_get(w->is_one, cluster) != ((descriptor & QCOW2_OFLAG_COPIED) != 0);
}

/* Flips the flag of the entry at @pos in @bytes, which stand at @offset in the file, and writes the
 * sector it is in: power loss leaves the old or the new flag. */
static bool co_flip(struct qcow2_walk *w, uint8_t *bytes, uint64_t pos, uint64_t offset,
                    GError **error)
{
    uint64_t sector = qv_align_down(pos, QV_SECTOR_SIZE);
    int rc;

    bytes[pos] ^= 0x80; /* bit 63, big-endian */
    rc = qv_co_pwrite(w->file, offset + sector, bytes + sector, QV_SECTOR_SIZE);
    if (rc < 0) {
        return qv_fail_errno(error, rc, "cannot correct the table at 0x%" PRIx64, offset);
    }
    w->out->corruptions_fixed++;
    return true;
}

static bool co_copied_table(struct qcow2_walk *w, struct table *t, bool fix, GError **error)
{
    uint64_t entries = UINT64_C(1) << qcow2_l2_bits(&w->header);
    uint64_t size = qcow2_l2_entry_size(&w->header);

    for (uint64_t i = 0; i < entries; i++) {
        uint64_t d = entry_at(w, t->bytes, i).descriptor, host = d & QCOW2_L2_OFFSET_MASK;

        if ((d & QCOW2_OFLAG_COMPRESSED) != 0 || host == 0 || !copied_wrong(w, d, host)) {
            continue;
        }
        if (fix) {
            if (!co_flip(w, t->bytes, i * size, t->l2->offset, error)) {
                return false;
            }
            continue;
        }
        qcow2_corruption(w->out, "data cluster at 0x%" PRIx64 ": COPIED flag is %s, but should %s",
                         host, (d & QCOW2_OFLAG_COPIED) != 0 ? "set" : "clear",
                         (d & QCOW2_OFLAG_COPIED) != 0 ? "not" : "be set");
    }
    return true;
}

static bool copied_part(struct qcow2_walk *view, const struct qcow2_part *part, bool fix,
                        GError **error)
{
    for (uint64_t i = 0; i < part->n; i++) {
        struct table t = table_at(view, part, i);

        if (t.l2->active && !co_copied_table(view, &t, fix, error)) {
            return false;
        }
    }
    return true;
}

static bool look_at_copied(struct qcow2_walk *view, const struct qcow2_part *part, GError **error)
{
    return copied_part(view, part, false, error);
}

static bool fix_copied(struct qcow2_walk *view, const struct qcow2_part *part, GError **error)
{
    return copied_part(view, part, true, error);
}

static bool co_copied_l1(struct qcow2_walk *w, bool fix, GError **error)
{
    uint64_t bytes = (uint64_t)w->header.l1_size * 8;

    for (uint64_t done = 0; done < bytes; done += QCOW2_WALK_CHUNK) {
        uint64_t n = qv_min_u64(bytes - done, QCOW2_WALK_CHUNK), at = w->header.l1_table_offset;

        /* Whole sectors: a table never shares its last cluster. */
        n = qv_align_up(n, QV_SECTOR_SIZE);
        if (!qcow2_co_walk_read(w, at + done, w->buf, n, "L1 table", error)) {
            return false;
        }
        for (uint64_t i = 0; i < qv_min_u64(n, bytes - done) / 8; i++) {
            uint64_t entry = qcow2_be64_at(w->buf, i), host = entry & QCOW2_L1_OFFSET_MASK;

            if (host == 0 || !copied_wrong(w, entry, host)) {
                continue;
            }
            if (!fix) {
                qcow2_corruption(w->out, "L2 table at 0x%" PRIx64 ": COPIED flag is wrong", host);
            } else if (!co_flip(w, w->buf, i * 8, at + done, error)) {
                return false;
            }
        }
    }
    return true;
}

bool qcow2_co_walk_copied(struct qcow2_walk *w, bool fix, GError **error)
{
    static const struct qcow2_part_ops look = {
        .what = "L2 table", .place = table_place, .look = look_at_copied, .from = 0.7, .to = 1.0};
    static const struct qcow2_part_ops mend = {
        .what = "L2 table", .place = table_place, .look = fix_copied, .from = 0.7, .to = 1.0};

    if (!co_copied_l1(w, fix, error)) {
        return false;
    }
    if ((w->header.incompatible_features & QCOW2_INCOMPAT_DATA_FILE) != 0) {
        return true; /* data clusters are not counted */
    }
    return fix ? qcow2_parts_co_run_alone(w, &mend, w->l2s->len, error)
               : qcow2_parts_co_run(w, &look, w->l2s->len, error);
}
