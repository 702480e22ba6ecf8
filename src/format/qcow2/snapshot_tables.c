/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Passes over the L2 tables below an L1 table, many tables at a time.
 *
 * Each cluster has one reference for each L1 entry whose table refers to it, so a table shared by n
 * L1 tables counts its clusters n times. "Copied" flags say that the refcount is one; in tables
 * that the active L1 table refers to they must be right, elsewhere they mean nothing.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "format/qcow2/snapshot_int.h"

/* An extended L2 entry has a second word, the bitmap of its sub-clusters. */
static uint64_t entry_words(const struct qcow2_image *img)
{
    return qcow2_l2_entry_size(&img->header) / sizeof(uint64_t);
}

static uint64_t table_words(const struct qcow2_image *img)
{
    return img->cluster_size / sizeof(uint64_t);
}

/* The clusters that @entry refers to: *@count from *@first on, perhaps none. False: it breaks the
 * spec. @end: bytes of the file. */
static bool entry_clusters(const struct qcow2_image *img, uint64_t end, uint64_t entry,
                           uint64_t *first, uint64_t *count)
{
    uint64_t offset = entry & QCOW2_L2_OFFSET_MASK, len;

    *count = 0;
    if ((entry & QCOW2_OFLAG_COMPRESSED) != 0) {
        qcow2_compressed_range(img->cluster_bits, entry, &offset, &len);
        *first = offset >> img->cluster_bits;
        *count = ((offset + len - 1) >> img->cluster_bits) - *first + 1;
        return *first > 0 && offset < end;
    }
    if (offset == 0) {
        return true;
    }
    *first = offset >> img->cluster_bits;
    *count = 1;
    return qv_is_aligned(offset, img->cluster_size) && offset < end;
}

/* Counts all that @table refers to; takes away the "copied" flags, *@had: there were any. */
static int co_count_table(struct qcow2_shadow *s, uint64_t *table, bool up, bool *had)
{
    uint64_t step = entry_words(s->img), n = table_words(s->img);
    uint64_t end = atomic_load(&s->img->file_end);
    uint64_t run = 0, run_count = 0; /* clusters that lie side by side are counted together */
    uint64_t flags = 0;

    for (uint64_t i = 0; i < n; i += step) {
        uint64_t entry = be64toh(table[i]), first = 0, count;

        flags |= entry;
        table[i] = htobe64(entry & ~QCOW2_OFLAG_COPIED);
        if (!entry_clusters(s->img, end, entry, &first, &count)) {
            return -EUCLEAN;
        }
        if (count > 0 && first != run + run_count) {
            int ret = qcow2_shadow_co_add(s, run, run_count, up);

            if (ret != 0) {
                return ret;
            }
            run = first;
            run_count = 0;
        }
        run_count += count;
    }
    *had = (flags & QCOW2_OFLAG_COPIED) != 0;
    return qcow2_shadow_co_add(s, run, run_count, up);
}

/* Writes @table to a new place: the entry for the active L1 table into *@l1_entry. */
static int co_write_new(struct qcow2_shadow *s, const uint64_t *table, uint64_t *l1_entry)
{
    struct qcow2_image *img = s->img;
    uint64_t first;
    int ret = qcow2_shadow_co_alloc(s, 1, true, &first);

    if (ret == 0) {
        *l1_entry = (first << img->cluster_bits) | QCOW2_OFLAG_COPIED;
        ret = qv_co_pwrite(img->node.file, first << img->cluster_bits, table, img->cluster_size);
    }
    return ret;
}

/*
 * The active table becomes the snapshot's. Where it has clusters of its own, the disk gets a copy
 * of the table without the flags; where it has none it is shared.
 */
int qcow2_pass_create(struct qcow2_pass *pass, uint64_t i, uint64_t *table)
{
    struct qcow2_shadow *s = pass->s;
    uint64_t old = pass->l1[i] & QCOW2_L1_OFFSET_MASK;
    bool had;
    int ret = co_count_table(s, table, true, &had);

    pass->out2[i] = old;
    if (ret != 0) {
        return ret;
    }
    if (had) {
        qcow2_freed_add(&s->meta_remove, old >> s->img->cluster_bits, 1);
        return co_write_new(s, table, &pass->out[i]);
    }
    pass->out[i] = old;
    return qcow2_shadow_co_add(s, old >> s->img->cluster_bits, 1, true);
}

/* The snapshot's table is used by the disk as well, or a copy where flags would be wrong there. */
int qcow2_pass_restore(struct qcow2_pass *pass, uint64_t i, uint64_t *table)
{
    struct qcow2_shadow *s = pass->s;
    uint64_t old = pass->l1[i] & QCOW2_L1_OFFSET_MASK;
    bool had;
    int ret = co_count_table(s, table, true, &had);

    if (ret != 0 || had) {
        return ret != 0 ? ret : co_write_new(s, table, &pass->out[i]);
    }
    pass->out[i] = old;
    qcow2_freed_add(&s->meta_add, old >> s->img->cluster_bits, 1);
    return qcow2_shadow_co_add(s, old >> s->img->cluster_bits, 1, true);
}

/* The table and all it refers to lose the reference of this L1 table. */
int qcow2_pass_drop(struct qcow2_pass *pass, uint64_t i, uint64_t *table)
{
    bool had;
    int ret = co_count_table(pass->s, table, false, &had);

    return ret != 0
               ? ret
               : qcow2_shadow_co_add(
                     pass->s, (pass->l1[i] & QCOW2_L1_OFFSET_MASK) >> pass->s->img->cluster_bits, 1,
                     false);
}

/* Sets the flags of the disk's own table by the refcounts to be; *@changed: any of them. */
static int co_set_flags(struct qcow2_shadow *s, uint64_t *table, bool *changed)
{
    struct qcow2_image *img = s->img;
    uint64_t step = entry_words(img), n = table_words(img), end = atomic_load(&img->file_end);
    uint64_t mask = (UINT64_C(1) << img->rb_bits) - 1, index = UINT64_MAX;
    const uint8_t *block = NULL;

    *changed = false;
    for (uint64_t i = 0; i < n; i += step) {
        uint64_t entry = be64toh(table[i]), now, cluster = 0, count;
        int ret = 0;

        if ((entry & QCOW2_OFLAG_COMPRESSED) != 0 || (entry & QCOW2_L2_OFFSET_MASK) == 0) {
            continue;
        }
        if (!entry_clusters(img, end, entry, &cluster, &count)) {
            return -EUCLEAN;
        }
        if (cluster >> img->rb_bits != index) {
            ret = qcow2_shadow_co_look(s, cluster, &block);
            index = cluster >> img->rb_bits;
        }
        if (ret != 0) {
            return ret;
        }
        now = entry & ~QCOW2_OFLAG_COPIED;
        if (qcow2_refcount_get(block, img->header.refcount_order, cluster & mask) == 1) {
            now |= QCOW2_OFLAG_COPIED;
        }
        if (now != entry) {
            table[i] = htobe64(now);
            *changed = true;
        }
    }
    return 0;
}

/*
 * The table that the snapshot had here and nobody has any more: where nothing was written since, it
 * is what the disk's own is to become, flags and all, and stands in the file already.
 */
static int co_adopt(struct qcow2_pass *pass, uint64_t i, const uint64_t *table, bool *adopted)
{
    struct qcow2_shadow *s = pass->s;
    struct qcow2_image *img = s->img;
    uint64_t offset = i < pass->other_n ? pass->other[i] & QCOW2_L1_OFFSET_MASK : 0, refs = 1;
    QV_CLEANUP(qv_freep) void *found = NULL;
    int ret = 0;

    *adopted = false;
    if (offset == 0 || !qv_range_inside(offset, img->cluster_size, atomic_load(&img->file_end))) {
        return 0;
    }
    ret = qcow2_shadow_co_get(s, offset >> img->cluster_bits, &refs);
    if (ret != 0 || refs != 0) {
        return ret;
    }
    found = qv_node_mem_alloc(img->cluster_size);
    ret = qv_co_pread(img->node.file, offset, found, img->cluster_size);
    if (ret != 0 || memcmp(found, table, img->cluster_size) != 0) {
        return ret;
    }
    /* Looked at again: another table may have adopted it meanwhile. */
    ret = qcow2_shadow_co_get(s, offset >> img->cluster_bits, &refs);
    if (ret != 0 || refs != 0) {
        return ret;
    }
    ret = qcow2_shadow_co_add(s, offset >> img->cluster_bits, 1, true);
    if (ret == 0) {
        qcow2_freed_add(&s->meta_add, offset >> img->cluster_bits, 1);
        pass->out[i] = offset | QCOW2_OFLAG_COPIED;
        *adopted = true;
    }
    return ret;
}

/* After others lost references: a table that is the disk's alone, and its flags. */
int qcow2_pass_own(struct qcow2_pass *pass, uint64_t i, uint64_t *table)
{
    struct qcow2_shadow *s = pass->s;
    uint64_t old = pass->l1[i] & QCOW2_L1_OFFSET_MASK, refs = 0;
    bool changed, adopted;
    int ret = qcow2_shadow_co_get(s, old >> s->img->cluster_bits, &refs);

    ret = ret != 0 ? ret : co_set_flags(s, table, &changed);
    if (ret != 0) {
        return ret;
    }
    /* All that a shared table refers to counts more than once, so it has no flags. Where it has,
     * some of those who share it are gone: a crash has left their references behind. */
    if (!changed) {
        pass->out[i] = refs == 1 ? old | QCOW2_OFLAG_COPIED : old;
        return 0;
    }
    qcow2_shadow_drop(s, old >> s->img->cluster_bits, 1);
    ret = co_adopt(pass, i, table, &adopted);
    return ret != 0 || adopted ? ret : co_write_new(s, table, &pass->out[i]);
}

/* ---- running a pass ---- */

static int co_one(void *arg, uint64_t n)
{
    struct qcow2_pass *pass = arg;
    struct qcow2_image *img = pass->s->img;
    uint64_t i = pass->first + n;
    uint64_t entry = pass->l1[i], offset = entry & QCOW2_L1_OFFSET_MASK;
    uint64_t end = atomic_load(&img->file_end);
    QV_CLEANUP(qv_freep) void *table = NULL;
    int ret;

    if (offset == 0) {
        return 0;
    }
    if (!qv_is_aligned(offset, img->cluster_size) || offset >= end) {
        return -EUCLEAN;
    }
    table = qv_node_mem_alloc(img->cluster_size);
    if (end - offset < img->cluster_size) {
        memset(table, 0, img->cluster_size);
    }
    ret = qv_co_pread(img->node.file, offset, table, qv_min_u64(img->cluster_size, end - offset));
    if (ret == 0) {
        ret = pass->fn(pass, i, table);
        pass->done++;
    }
    return ret;
}

int qcow2_pass_co_run(struct qcow2_pass *pass)
{
    return qcow2_co_workers(pass->n, co_one, pass);
}
