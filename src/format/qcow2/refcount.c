/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Refcounts. Changes go to the file at once (qcow2_refs_co_write): they come in batches, a run of
 * clusters reserved or freed, never one per request. All under ref_lock.
 * Source: QEMU docs/interop/qcow2.rst, "Host cluster management".
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "format/qcow2/qcow2_int.h"

#define CACHE_BYTES      (2 * QV_MIB)
#define CACHE_BLOCKS_MIN 4u
#define CACHE_BLOCKS_MAX 1024u

static void block_free(void *ptr)
{
    struct qcow2_refblock *b = ptr;

    free(b->data);
    g_free(b);
}

bool qcow2_refs_co_open(struct qcow2_image *img, GError **error)
{
    struct qcow2_refs *refs = &img->refs;
    uint64_t bytes = (uint64_t)img->header.refcount_table_clusters << img->cluster_bits;
    uint64_t inside;
    int ret = 0;

    refs->entries = bytes / sizeof(uint64_t);
    refs->table = qv_node_mem_alloc(qv_max_u64(bytes, 1));
    memset(refs->table, 0, bytes);
    inside = atomic_load(&img->file_end);
    inside = inside > img->header.refcount_table_offset
                 ? qv_min_u64(bytes, inside - img->header.refcount_table_offset)
                 : 0;
    if (inside > 0) {
        ret = qv_co_pread(img->node.file, img->header.refcount_table_offset, refs->table, inside);
    }
    if (ret != 0) {
        return qv_fail_errno(error, ret, "cannot read the refcount table");
    }
    qcow2_dirty_init(&refs->d, bytes);
    refs->blocks = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, block_free);
    refs->max_blocks =
        (unsigned)CLAMP(CACHE_BYTES >> img->cluster_bits, CACHE_BLOCKS_MIN, CACHE_BLOCKS_MAX);
    return true;
}

void qcow2_refs_close(struct qcow2_image *img)
{
    g_clear_pointer(&img->refs.blocks, g_hash_table_destroy);
    free(img->refs.table);
    img->refs.table = NULL;
}

static bool settled(struct qcow2_image *img, const struct qcow2_dirty *d)
{
    bool yes;

    pthread_mutex_lock(&img->lock);
    yes = d->dirty == 0 && qcow2_dirty_settled(img, d);
    pthread_mutex_unlock(&img->lock);
    return yes;
}

/* Takes the block that was not used for longest out of memory, if one may go. */
static void evict_one(struct qcow2_image *img)
{
    struct qcow2_refs *refs = &img->refs;
    struct qcow2_refblock *b, *oldest = NULL;
    GHashTableIter iter;
    void *value;

    g_hash_table_iter_init(&iter, refs->blocks);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        b = value;
        if ((oldest == NULL || b->used < oldest->used) && !b->new_block && settled(img, &b->d)) {
            oldest = b;
        }
    }
    if (oldest != NULL) {
        if (refs->last == oldest) {
            refs->last = NULL;
        }
        g_hash_table_remove(refs->blocks, &oldest->index);
    }
}

static struct qcow2_refblock *block_new(struct qcow2_image *img, uint64_t index, uint64_t offset)
{
    struct qcow2_refblock *b = g_new0(struct qcow2_refblock, 1);

    b->index = (int64_t)index;
    b->offset = offset;
    b->data = qv_node_mem_alloc(img->cluster_size);
    memset(b->data, 0, img->cluster_size);
    qcow2_dirty_init(&b->d, img->cluster_size);
    return b;
}

static void block_insert(struct qcow2_image *img, struct qcow2_refblock *b)
{
    if (g_hash_table_size(img->refs.blocks) >= img->refs.max_blocks) {
        evict_one(img);
    }
    b->used = ++img->refs.tick;
    g_hash_table_insert(img->refs.blocks, &b->index, b);
}

static struct qcow2_refblock *block_cached(struct qcow2_image *img, uint64_t index)
{
    struct qcow2_refs *refs = &img->refs;
    int64_t key = (int64_t)index;

    if (refs->last == NULL || refs->last->index != key) {
        refs->last = g_hash_table_lookup(refs->blocks, &key);
    }
    if (refs->last != NULL) {
        refs->last->used = ++refs->tick;
    }
    return refs->last;
}

/* The block of @index; *@out NULL when the image has none there (all its refcounts are zero). */
static int co_block(struct qcow2_image *img, uint64_t index, struct qcow2_refblock **out)
{
    uint64_t entry, end = atomic_load(&img->file_end);
    struct qcow2_refblock *b = block_cached(img, index);
    int ret;

    *out = b;
    if (b != NULL || index >= img->refs.entries) {
        return 0;
    }
    entry = qv_be64_get(img->refs.table[index]);
    if (entry == 0) {
        return 0;
    }
    if ((entry & QCOW2_RT_RESERVED_MASK) != 0 || !qv_is_aligned(entry, img->cluster_size) ||
        entry >= end) {
        return qcow2_co_corrupt(img, entry, "invalid refcount table entry");
    }
    b = block_new(img, index, entry);
    ret = qv_co_pread(img->node.file, entry, b->data, qv_min_u64(img->cluster_size, end - entry));
    if (ret != 0) {
        block_free(b);
        return ret;
    }
    block_insert(img, b);
    *out = b;
    return 0;
}

static void block_set(struct qcow2_image *img, struct qcow2_refblock *b, uint64_t cluster,
                      uint64_t value)
{
    uint64_t i = cluster & ((UINT64_C(1) << img->rb_bits) - 1);
    unsigned order = img->header.refcount_order;

    qcow2_refcount_set(b->data, order, i, value);
    pthread_mutex_lock(&img->lock);
    qcow2_dirty_mark(&b->d, (i << order) >> 3, 1);
    pthread_mutex_unlock(&img->lock);
}

int qcow2_refs_co_get(struct qcow2_image *img, uint64_t cluster, uint64_t *out)
{
    struct qcow2_refblock *b;
    int ret = co_block(img, cluster >> img->rb_bits, &b);

    if (ret != 0) {
        return ret;
    }
    *out = b == NULL ? 0
                     : qcow2_refcount_get(b->data, img->header.refcount_order,
                                          cluster & ((UINT64_C(1) << img->rb_bits) - 1));
    return 0;
}

int qcow2_refs_co_claim(struct qcow2_image *img, uint64_t cluster)
{
    struct qcow2_refblock *b;
    uint64_t count;
    int ret = qcow2_refs_co_get(img, cluster, &count);

    if (ret == 0) {
        ret = co_block(img, cluster >> img->rb_bits, &b);
    }
    if (ret != 0) {
        return ret;
    }
    if (count != 0) {
        return -EEXIST;
    }
    if (b == NULL) {
        return -EINVAL; /* qcow2_refs_co_prepare comes first */
    }
    block_set(img, b, cluster, 1);
    return 0;
}

int qcow2_refs_co_drop(struct qcow2_image *img, uint64_t cluster, uint64_t *left)
{
    struct qcow2_refblock *b;
    uint64_t count;
    int ret = qcow2_refs_co_get(img, cluster, &count);

    if (ret != 0) {
        return ret;
    }
    if (count == 0) {
        return qcow2_co_corrupt(img, cluster << img->cluster_bits,
                                "refcount of a freed cluster is 0");
    }
    ret = co_block(img, cluster >> img->rb_bits, &b);
    if (ret == 0) {
        block_set(img, b, cluster, count - 1);
        *left = count - 1;
    }
    return ret;
}

static bool block_missing(struct qcow2_image *img, uint64_t index)
{
    return (index >= img->refs.entries || qv_be64_get(img->refs.table[index]) == 0) &&
           block_cached(img, index) == NULL;
}

uint64_t qcow2_refs_missing(struct qcow2_image *img, uint64_t first, uint64_t count)
{
    uint64_t missing = 0;

    for (uint64_t i = first >> img->rb_bits; i <= (first + count - 1) >> img->rb_bits; i++) {
        missing += block_missing(img, i) ? 1 : 0;
    }
    return missing;
}

uint64_t qcow2_refs_missing_next(struct qcow2_image *img, uint64_t count)
{
    if (img->file_grows) {
        return qcow2_refs_missing(img, atomic_load(&img->file_end) >> img->cluster_bits, count);
    }
    return (count >> img->rb_bits) + 2; /* wherever they turn out to be */
}

int qcow2_refs_co_prepare(struct qcow2_image *img, uint64_t first, uint64_t count, uint64_t *used)
{
    uint64_t at = first;
    int ret = 0;

    for (uint64_t i = first >> img->rb_bits; i <= (first + count - 1) >> img->rb_bits; i++) {
        struct qcow2_refblock *b;

        if (!block_missing(img, i)) {
            continue;
        }
        b = block_new(img, i, at << img->cluster_bits);
        b->new_block = true;
        qcow2_dirty_mark(&b->d, 0, img->cluster_size); /* whole: the space may hold anything */
        block_insert(img, b);
        pthread_mutex_lock(&img->lock);
        qcow2_meta_add(img, at);
        pthread_mutex_unlock(&img->lock);
        at++;
    }
    *used = at - first;
    for (uint64_t c = first; c < at && ret == 0; c++) {
        ret = qcow2_refs_co_claim(img, c);
    }
    return ret;
}

/* ---- writing ---- */

static int co_write_block(struct qcow2_image *img, struct qcow2_refblock *b)
{
    uint64_t all, granules, offset, len;
    int ret = 0;

    if (b->d.dirty == 0) {
        return 0;
    }
    pthread_mutex_lock(&img->lock);
    all = granules = qcow2_dirty_take(img, &b->d);
    pthread_mutex_unlock(&img->lock);
    while (ret == 0 && qcow2_dirty_next(&b->d, &granules, img->cluster_size, &offset, &len)) {
        ret = qv_co_pwrite(img->node.file, b->offset + offset, b->data + offset, len);
    }
    pthread_mutex_lock(&img->lock);
    qcow2_dirty_written(img, &b->d, all, ret);
    pthread_mutex_unlock(&img->lock);
    return ret;
}

static int co_write_table(struct qcow2_image *img)
{
    struct qcow2_refs *refs = &img->refs;
    uint64_t all, granules, offset, len;
    int ret = 0;

    if (refs->d.dirty == 0) {
        return 0;
    }
    pthread_mutex_lock(&img->lock);
    all = granules = qcow2_dirty_take(img, &refs->d);
    pthread_mutex_unlock(&img->lock);
    while (ret == 0 &&
           qcow2_dirty_next(&refs->d, &granules, refs->entries * sizeof(uint64_t), &offset, &len)) {
        ret = qv_co_pwrite(img->node.file, img->header.refcount_table_offset + offset,
                           (const char *)refs->table + offset, len);
    }
    pthread_mutex_lock(&img->lock);
    qcow2_dirty_written(img, &refs->d, all, ret);
    pthread_mutex_unlock(&img->lock);
    return ret;
}

/* Writes all blocks; *@linked: some are new and stand in the table in memory now, synced. */
static int co_write_blocks(struct qcow2_image *img)
{
    struct qcow2_refs *refs = &img->refs;
    GHashTableIter iter;
    void *value;
    bool fresh = false;
    int ret = 0;

    g_hash_table_iter_init(&iter, refs->blocks);
    while (ret == 0 && g_hash_table_iter_next(&iter, NULL, &value)) {
        struct qcow2_refblock *b = value;

        fresh |= b->new_block;
        ret = co_write_block(img, b);
    }
    if (ret != 0 || !fresh) {
        return ret;
    }
    /* A table entry must not point to a block that is not there. */
    ret = qcow2_co_sync(img);
    g_hash_table_iter_init(&iter, refs->blocks);
    while (ret == 0 && g_hash_table_iter_next(&iter, NULL, &value)) {
        struct qcow2_refblock *b = value;
        uint64_t i = (uint64_t)b->index;

        if (b->new_block && i < refs->entries) {
            refs->table[i] = qv_be64_make(b->offset);
            pthread_mutex_lock(&img->lock);
            qcow2_dirty_mark(&refs->d, i * sizeof(uint64_t), sizeof(uint64_t));
            pthread_mutex_unlock(&img->lock);
            b->new_block = false;
        }
    }
    return ret;
}

int qcow2_refs_co_write(struct qcow2_image *img)
{
    int ret = co_write_blocks(img);

    if (ret == 0) {
        ret = co_write_table(img);
    }
    atomic_store(&img->refs.unwritten, ret != 0);
    return ret;
}

void qcow2_refs_redo(struct qcow2_image *img)
{
    GHashTableIter iter;
    void *value;

    pthread_mutex_lock(&img->lock);
    g_hash_table_iter_init(&iter, img->refs.blocks);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        struct qcow2_refblock *b = value;

        qcow2_dirty_redo(img, &b->d);
    }
    qcow2_dirty_redo(img, &img->refs.d);
    pthread_mutex_unlock(&img->lock);
}

/* ---- growing the table ---- */

/* The clusters that the table gets so that it covers @end and itself, and those of new blocks in
 * front of it, both from qcow2_co_extend. */
static bool plan_growth(struct qcow2_image *img, uint64_t end, uint64_t *clusters, uint64_t *blocks)
{
    uint64_t start = atomic_load(&img->file_end) >> img->cluster_bits;
    uint64_t per_cluster = img->cluster_size / sizeof(uint64_t);
    uint64_t most = QCOW2_RT_MAX_BYTES >> img->cluster_bits;
    uint64_t t = qv_min_u64(qv_div_up(img->refs.entries * 2, per_cluster), most);
    uint64_t b = 1;

    for (;;) {
        uint64_t need = qcow2_refs_missing_next(img, t + b);
        uint64_t top = qv_max_u64(end, img->file_grows ? start + t + b : start);

        if (t > most) {
            return false;
        }
        if (t * per_cluster <= (top >> img->rb_bits) + 1) {
            t++;
        } else if (need > b) {
            b = need;
        } else {
            break;
        }
    }
    *clusters = t;
    *blocks = b;
    return true;
}

/* The new table is in the file and synced: the header gets to know it, then memory. */
static int co_switch_table(struct qcow2_image *img, qv_be64 *table, uint64_t first,
                           uint64_t clusters)
{
    struct qcow2_header next = img->header;
    struct qcow2_refs *refs = &img->refs;
    uint64_t old_first = next.refcount_table_offset >> img->cluster_bits;
    uint64_t old_clusters = next.refcount_table_clusters;
    int ret;

    next.refcount_table_offset = first << img->cluster_bits;
    next.refcount_table_clusters = (uint32_t)clusters;
    ret = qcow2_co_header_switch(img, &next);
    if (ret != 0) {
        return ret;
    }
    free(refs->table);
    refs->table = table;
    refs->entries = clusters << img->cluster_bits >> 3;
    pthread_mutex_lock(&img->lock);
    qcow2_dirty_init(&refs->d, clusters << img->cluster_bits);
    for (uint64_t i = 0; i < old_clusters; i++) {
        qcow2_meta_remove(img, old_first + i);
    }
    qcow2_freed_add(&img->freed_ready, old_first, old_clusters);
    qcow2_bg_kick(img, QCOW2_BG_REAP);
    pthread_mutex_unlock(&img->lock);
    return 0;
}

static int co_grow_table(struct qcow2_image *img, uint64_t clusters, uint64_t blocks)
{
    struct qcow2_refs *refs = &img->refs;
    uint64_t first, used, bytes = clusters << img->cluster_bits;
    qv_be64 *table;
    GHashTableIter iter;
    void *value;
    int ret = qcow2_co_extend(img, clusters + blocks, &first);

    if (ret != 0) {
        return ret;
    }
    refs->scan_pos = qv_min_u64(refs->scan_pos, first); /* what is not used here is free */
    /* The blocks come first, then the table. */
    ret = qcow2_refs_co_prepare(img, first, clusters + blocks, &used);
    for (uint64_t c = first + used; c < first + used + clusters && ret == 0; c++) {
        ret = qcow2_refs_co_claim(img, c);
        pthread_mutex_lock(&img->lock);
        qcow2_meta_add(img, c);
        pthread_mutex_unlock(&img->lock);
    }
    if (ret == 0) {
        ret = qcow2_refs_co_write(img);
    }
    if (ret != 0) {
        return ret;
    }
    table = qv_node_mem_alloc(bytes);
    memset(table, 0, bytes);
    memcpy(table, refs->table, refs->entries * sizeof(uint64_t));
    g_hash_table_iter_init(&iter, refs->blocks);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        struct qcow2_refblock *b = value;

        table[b->index] = qv_be64_make(b->offset);
    }
    first += used;
    ret = qv_co_pwrite(img->node.file, first << img->cluster_bits, table, bytes);
    ret = ret != 0 ? ret : qcow2_co_sync(img);
    ret = ret != 0 ? ret : co_switch_table(img, table, first, clusters);
    if (ret != 0) {
        free(table);
        return ret;
    }
    g_hash_table_iter_init(&iter, refs->blocks);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        ((struct qcow2_refblock *)value)->new_block = false;
    }
    return 0;
}

int qcow2_refs_co_cover(struct qcow2_image *img, uint64_t end)
{
    uint64_t clusters, blocks;
    int ret;

    if ((end - 1) >> img->rb_bits < img->refs.entries) {
        return 0;
    }
    /* -EEXIST: a crash has left refcounts past the end of the file; the next try starts behind. */
    do {
        if (!plan_growth(img, end, &clusters, &blocks)) {
            return -ENOSPC;
        }
        ret = co_grow_table(img, clusters, blocks);
    } while (ret == -EEXIST);
    return ret;
}

/* ---- looking for free clusters ---- */

int qcow2_refs_co_free_run(struct qcow2_image *img, uint64_t *pos, uint64_t end, uint64_t max,
                           unsigned *blocks, struct qcow2_freed *out)
{
    uint64_t per_block = UINT64_C(1) << img->rb_bits;
    unsigned order = img->header.refcount_order;

    *out = (struct qcow2_freed){0};
    while (*pos < end && out->count < max) {
        struct qcow2_refblock *b;
        uint64_t i = *pos & (per_block - 1);
        int ret;

        if (*blocks == 0) {
            break;
        }
        ret = co_block(img, *pos >> img->rb_bits, &b);
        if (ret != 0) {
            return ret;
        }
        for (; i < per_block && *pos < end && out->count < max; i++, (*pos)++) {
            if (b == NULL || qcow2_refcount_get(b->data, order, i) == 0) {
                out->first = out->count == 0 ? *pos : out->first;
                out->count++;
            } else if (out->count > 0) {
                return 0;
            }
        }
        if (i == per_block) {
            (*blocks)--;
        }
    }
    return 0;
}
