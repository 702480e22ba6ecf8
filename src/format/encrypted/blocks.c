/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blocks of entries: which clusters hold them, and the table that says so. Under the image's
 * ref_lock.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "format/encrypted/enc_int.h"

/* ---- blocks that are missing ---- */

static uint64_t first_index(uint64_t first)
{
    return first / QCOW2_SEAL_BLOCK_CLUSTERS;
}

static uint64_t last_index(uint64_t first, uint64_t count)
{
    return (first + count - 1) / QCOW2_SEAL_BLOCK_CLUSTERS;
}

uint64_t enc_seal_missing(struct qcow2_seal *seal, uint64_t first, uint64_t count)
{
    struct enc_table *t = enc_table_get(enc_image_of(seal));
    uint64_t missing = 0;

    for (uint64_t i = first_index(first); i <= last_index(first, count); i++) {
        missing += i >= t->entries || atomic_load(&t->v[i]) == 0;
    }
    return missing;
}

/* Block @index came, and pages that were in memory for want of it have one; or it went, and its
 * pages, which are clean and have no slots, hold nothing. */
static void tell_pages(struct enc_image *enc, uint64_t index, bool came)
{
    unsigned bits = enc_block_bits(enc);

    for (uint64_t n = index << bits; n < (index + 1) << bits; n++) {
        struct enc_shard *s = enc_shard_of(enc, n);
        struct enc_page *p;

        pthread_mutex_lock(&s->lock);
        p = enc_page_find(enc, s, n);
        if (p != NULL) {
            p->no_block = !came;
            if (!came) {
                memset(p->e, 0, sizeof(p->e));
            }
        }
        pthread_mutex_unlock(&s->lock);
    }
}

/* Writes entries [@from, @to] of the table, in whole 4 KiB. */
static int co_write_table(struct enc_image *enc, struct enc_table *t, uint64_t offset,
                          uint64_t from, uint64_t to)
{
    uint64_t per_page = ENC_SECTOR / sizeof(qv_be64);
    uint64_t start = qv_align_down(from, per_page);
    uint64_t end = qv_align_up(to + 1, per_page); /* a table has whole clusters */
    QV_CLEANUP(qv_freep) qv_be64 *buf = qv_node_mem_alloc((end - start) * sizeof(*buf));

    for (uint64_t i = start; i < end; i++) {
        buf[i - start] = qv_be64_make(i < t->entries ? atomic_load(&t->v[i]) : 0);
    }
    return qv_co_pwrite(enc->file, offset + start * sizeof(*buf), buf,
                        (end - start) * sizeof(*buf));
}

int enc_seal_co_link(struct qcow2_seal *seal, uint64_t first, uint64_t count, uint64_t at,
                     uint64_t max)
{
    struct enc_image *enc = enc_image_of(seal);
    struct enc_table *t = enc_table_get(enc);
    uint64_t low = UINT64_MAX, high = 0, used = 0;
    int ret;

    if (last_index(first, count) >= t->entries) {
        return -EFBIG;
    }
    for (uint64_t i = first_index(first); i <= last_index(first, count) && used < max; i++) {
        if (atomic_load(&t->v[i]) == 0) {
            atomic_store_explicit(&t->v[i], (at + used) << enc->cluster_bits, memory_order_release);
            tell_pages(enc, i, true);
            used++;
            low = qv_min_u64(low, i);
            high = i;
        }
    }
    ret = used == 0 ? 0 : co_write_table(enc, t, enc->root.table_offset, low, high);
    if (ret != 0) {
        atomic_store(&enc->failed, true); /* the file does not have what memory has */
    }
    return ret;
}

/* The root in the older copy names the new table. */
static int co_switch_root(struct enc_image *enc, uint64_t offset, uint64_t entries)
{
    struct qcow2_seal_root root = {.generation = enc->root.generation + 1,
                                   .table_offset = offset,
                                   .table_entries = entries,
                                   .copy = 1 - enc->root.copy};
    QV_CLEANUP(qv_freep) uint8_t *buf = qv_node_mem_alloc(QCOW2_SEAL_ROOT_SIZE);
    struct qcow2_seal_root_disk d;
    int ret = 0;

    qcow2_seal_root_make(&root, &d);
    memset(buf, 0, QCOW2_SEAL_ROOT_SIZE);
    memcpy(buf, &d, sizeof(d));
    /* Twice: neither copy may name what is about to be somebody else's. */
    for (unsigned i = 0; i < 2 && ret == 0; i++) {
        ret = qv_co_pwrite(enc->file,
                           enc->ext.log_offset + (uint64_t)(i == 0 ? root.copy : enc->root.copy) *
                                                     QCOW2_SEAL_ROOT_SIZE,
                           buf, QCOW2_SEAL_ROOT_SIZE);
        ret = ret != 0 ? ret : qcow2_co_seal_sync(enc->img);
    }
    if (ret == 0) {
        enc->root = root;
    } else {
        atomic_store(&enc->failed, true); /* which of two tables counts is not known */
    }
    return ret;
}

int enc_seal_co_cover(struct qcow2_seal *seal, uint64_t end)
{
    struct enc_image *enc = enc_image_of(seal);
    struct qcow2_image *img = enc->img;
    struct enc_table *old = enc_table_get(enc), *t;
    uint64_t need = end / QCOW2_SEAL_BLOCK_CLUSTERS + 2, entries, clusters, first = 0;
    uint64_t old_first, old_clusters;
    int ret;

    enc_seal_table(seal, &old_first, &old_clusters);
    if (need <= old->entries) {
        return 0;
    }
    entries = qv_align_up(qv_max_u64(need + need / 4, 2 * old->entries), enc->cluster_size / 8);
    clusters = entries * 8 >> enc->cluster_bits;
    if (entries * 8 > QCOW2_SEAL_TABLE_MAX) {
        return -EFBIG;
    }
    ret = qcow2_co_seal_reserve(img, clusters, &first);
    if (ret != 0) {
        return ret;
    }
    t = enc_table_new(entries);
    for (uint64_t i = 0; i < old->entries; i++) {
        atomic_store(&t->v[i], atomic_load(&old->v[i]));
    }
    ret = co_write_table(enc, t, first << enc->cluster_bits, 0, entries - 1);
    ret = ret != 0 ? ret : qcow2_co_seal_sync(img);
    ret = ret != 0 ? ret : co_switch_root(enc, first << enc->cluster_bits, entries);
    if (ret != 0) {
        g_free(t);
        return ret;
    }
    t->older = old;
    atomic_store_explicit(&enc->table, t, memory_order_release);
    qcow2_seal_table_moved(img, first, clusters, old_first, old_clusters);
    return 0;
}

/* ---- blocks that move or go: compaction ---- */

uint64_t enc_seal_block(struct qcow2_seal *seal, uint64_t i)
{
    struct enc_image *enc = enc_image_of(seal);
    struct enc_table *t = enc_table_get(enc);

    return i < t->entries ? atomic_load(&t->v[i]) >> enc->cluster_bits : 0;
}

void enc_seal_table(struct qcow2_seal *seal, uint64_t *first, uint64_t *clusters)
{
    struct enc_image *enc = enc_image_of(seal);

    *first = enc->root.table_offset >> enc->cluster_bits;
    *clusters = enc_table_get(enc)->entries * sizeof(qv_be64) >> enc->cluster_bits;
}

int enc_seal_co_settle(struct qcow2_seal *seal)
{
    return enc_co_settle(enc_image_of(seal));
}

static int co_copy_block(struct enc_image *enc, uint64_t from, uint64_t to)
{
    QV_CLEANUP(qv_freep) void *buf = qv_node_mem_alloc(enc->cluster_size);
    int ret = qv_co_pread(enc->file, from << enc->cluster_bits, buf, enc->cluster_size);

    return ret != 0 ? ret
                    : qv_co_pwrite(enc->file, to << enc->cluster_bits, buf, enc->cluster_size);
}

int enc_seal_co_place(struct qcow2_seal *seal, const struct qcow2_seal_place *v, size_t n)
{
    struct enc_image *enc = enc_image_of(seal);
    struct enc_table *t = enc_table_get(enc);
    uint64_t low = UINT64_MAX, high = 0;
    int ret = 0;

    /* Pages go to the old block until the table names the new one: nothing may be dirty. */
    if (enc_pages_dirty(enc) > 0 || atomic_load(&enc->failed)) {
        return -EIO;
    }
    for (size_t k = 0; k < n && ret == 0; k++) {
        if (v[k].to != 0) {
            ret = co_copy_block(enc, enc_seal_block(seal, v[k].index), v[k].to);
        }
    }
    ret = ret != 0 || n == 0 ? ret : qcow2_co_seal_sync(enc->img);
    if (ret != 0 || n == 0) {
        return ret;
    }
    for (size_t k = 0; k < n; k++) {
        atomic_store_explicit(&t->v[v[k].index], v[k].to << enc->cluster_bits,
                              memory_order_release);
        low = qv_min_u64(low, v[k].index);
        high = qv_max_u64(high, v[k].index);
        if (v[k].to == 0) {
            tell_pages(enc, v[k].index, false);
        }
    }
    ret = co_write_table(enc, t, enc->root.table_offset, low, high);
    ret = ret != 0 ? ret : qcow2_co_seal_sync(enc->img);
    if (ret != 0) {
        atomic_store(&enc->failed, true); /* the file may not have what memory has */
    }
    return ret;
}

int enc_seal_co_move_table(struct qcow2_seal *seal, uint64_t first)
{
    struct enc_image *enc = enc_image_of(seal);
    struct enc_table *t = enc_table_get(enc);
    int ret = co_write_table(enc, t, first << enc->cluster_bits, 0, t->entries - 1);

    ret = ret != 0 ? ret : qcow2_co_seal_sync(enc->img);
    return ret != 0 ? ret : co_switch_root(enc, first << enc->cluster_bits, t->entries);
}
