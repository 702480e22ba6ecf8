/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Growing the disk. In this order, so that power loss at any point leaves the old disk or the new
 * one: a longer L1 table where it is needed; zeros where the new area would show something else;
 * the new size.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "format/qcow2/qcow2_int.h"

#define PAGE 4096u

struct qcow2_map *qcow2_map_new(struct qcow2_image *img, uint64_t l1_entries, uint64_t l1_offset,
                                uint64_t l1_clusters)
{
    uint64_t bytes = qv_align_up(qv_max_u64(l1_entries, 1) * sizeof(uint64_t), PAGE);
    struct qcow2_map *map = g_malloc0(sizeof(*map) + l1_entries * sizeof(map->tables[0]));

    (void)img;
    map->l1_entries = l1_entries;
    map->l1_offset = l1_offset;
    map->l1_clusters = l1_clusters;
    map->l1 = qv_node_mem_alloc(bytes);
    memset(qcow2_bytes(map->l1), 0, bytes);
    qcow2_dirty_init(&map->d, bytes);
    return map;
}

void qcow2_map_free(struct qcow2_map *map)
{
    free(qcow2_bytes(map->l1));
    g_free(map);
}

/* The old table's clusters go once nothing can refer to it: the header is durable. Lock held. */
static void free_l1(struct qcow2_image *img, const struct qcow2_map *old)
{
    uint64_t first = old->l1_offset >> img->cluster_bits;

    for (uint64_t i = 0; i < old->l1_clusters; i++) {
        qcow2_meta_remove(img, first + i);
    }
    qcow2_freed_add(&img->freed_ready, first, old->l1_clusters);
    qcow2_bg_kick(img, QCOW2_BG_REAP);
}

static void map_replace(struct qcow2_image *img, struct qcow2_map *old, struct qcow2_map *map)
{
    pthread_mutex_lock(&img->lock);
    /* Tables may have come and gone while the L1 table was written. */
    for (uint64_t i = 0; i < old->l1_entries; i++) {
        atomic_init(&map->tables[i], atomic_load(&old->tables[i]));
    }
    atomic_store_explicit(&img->map, map, memory_order_release);
    if (old->l1_offset != map->l1_offset) {
        if (old->l1_clusters > 0) {
            free_l1(img, old);
        }
        for (uint64_t i = 0; i < map->l1_clusters; i++) {
            qcow2_meta_add(img, (map->l1_offset >> img->cluster_bits) + i);
        }
    }
    qcow2_retire(img, qcow2_bytes(old->l1), old, NULL);
    pthread_mutex_unlock(&img->lock);
}

/* Under commit_lock and ref_lock, with all of the old L1 table written. */
static int co_grow_l1(struct qcow2_image *img, uint64_t entries)
{
    struct qcow2_map *old = qcow2_map_get(img);
    struct qcow2_header next = img->header;
    uint64_t bytes = entries * sizeof(uint64_t);
    uint64_t clusters = qv_div_up(bytes, img->cluster_size);
    uint64_t first = old->l1_offset >> img->cluster_bits;
    struct qcow2_map *map;
    int ret = 0;

    if (bytes > QCOW2_L1_MAX_BYTES) {
        return -EFBIG;
    }
    if (clusters > old->l1_clusters) {
        do {
            ret = qcow2_co_reserve_adjacent(img, clusters, &first);
        } while (ret == -EAGAIN);
        if (ret != 0) {
            return ret;
        }
    } else {
        clusters = old->l1_clusters;
    }
    map = qcow2_map_new(img, entries, first << img->cluster_bits, clusters);
    memcpy(qcow2_bytes(map->l1), qcow2_bytes(old->l1), old->l1_entries * sizeof(uint64_t));
    /* All of its clusters; in place, this clears what lay behind the last entry. */
    ret = qv_co_pwrite(img->node.file, map->l1_offset, qcow2_bytes(map->l1),
                       qv_align_up(bytes, QV_SECTOR_SIZE));
    ret = ret != 0 ? ret : qcow2_co_sync(img);
    next.l1_size = (uint32_t)entries;
    next.l1_table_offset = map->l1_offset;
    ret = ret != 0 ? ret : qcow2_co_header_switch(img, &next);
    if (ret != 0) {
        qcow2_map_free(map);
        return ret;
    }
    map_replace(img, old, map);
    return 0;
}

static int co_prepare_l1(struct qcow2_image *img, uint64_t entries)
{
    int ret;

    qv_co_mutex_lock(&img->commit_lock);
    ret = qcow2_co_commit_locked(img);
    if (ret == 0) {
        qv_co_mutex_lock(&img->ref_lock);
        ret = co_grow_l1(img, entries);
        qv_co_mutex_unlock(&img->ref_lock);
    }
    qv_co_mutex_unlock(&img->commit_lock);
    return ret;
}

/* A data file gets longer before the disk does. What it has there already does not count; where it
 * is to look like the disk, it goes. */
static int co_grow_data(struct qcow2_image *img, uint64_t old, uint64_t size)
{
    struct qv_node *data = img->node.data_file;
    uint64_t have;
    int ret = 0;

    if (data == NULL) {
        return 0;
    }
    have = atomic_load(&data->size);
    if (have > old && (img->header.autoclear_features & QCOW2_AUTOCLEAR_RAW_DATA) != 0) {
        ret = qv_co_zero(data, old, qv_min_u64(have, size) - old, QV_IO_MAY_UNMAP);
    }
    return ret != 0 || have >= size ? ret : qv_node_co_truncate(data, size);
}

/* Under ops_lock. */
static int co_grow(struct qv_node *node, uint64_t size)
{
    struct qcow2_image *img = qcow2_image_of(node);
    uint64_t old = atomic_load(&node->size);
    uint64_t entries = qcow2_l1_entries_for(&img->header, size);
    struct qcow2_header next;
    /* QEMU keeps the state of a VM behind the disk's end: what the L1 table covers there. */
    uint64_t covered = qcow2_map_get(img)->l1_entries << (img->cluster_bits + img->l2_bits);
    uint64_t shows;
    int ret = 0;

    if (size < old || size > INT64_MAX - img->cluster_size) {
        return -EINVAL;
    }
    if (node->readonly || atomic_load(&img->corrupt)) {
        return -EROFS;
    }
    if (size == old) {
        return 0;
    }
    if (img->header.version < 3 && img->header.nb_snapshots > 0) {
        return -ENOTSUP; /* its snapshots do not record the size of the disk */
    }
    ret = qcow2_co_bitmaps_resize(img, size);
    ret = ret != 0 ? ret : co_grow_data(img, old, size);
    if (ret == 0 && entries > qcow2_map_get(img)->l1_entries) {
        ret = co_prepare_l1(img, entries);
    }
    /* The rest of the last cluster and of the old L1 table, and what a longer backing image has. */
    shows = qv_max_u64(qv_align_up(old, img->cluster_size), covered);
    if (node->backing != NULL) {
        shows = qv_max_u64(shows, atomic_load(&node->backing->size));
    }
    shows = qv_min_u64(shows, size);
    if (ret == 0 && shows > old) {
        ret = qcow2_co_zero(node, old, shows - old, QV_IO_MAY_UNMAP);
        ret = ret != 0 ? ret : qcow2_co_write_back(img);
    }
    if (ret != 0) {
        return ret;
    }
    qv_co_mutex_lock(&img->ref_lock);
    next = img->header;
    next.size = size;
    ret = size < atomic_load(&node->size) ? -EINVAL : qcow2_co_header_switch(img, &next);
    if (ret == 0) {
        atomic_store(&node->size, size);
    }
    qv_co_mutex_unlock(&img->ref_lock);
    return ret;
}

int qcow2_co_truncate(struct qv_node *node, uint64_t size)
{
    struct qcow2_image *img = qcow2_image_of(node);
    int ret;

    qv_co_mutex_lock(&img->ops_lock);
    ret = co_grow(node, size);
    qv_co_mutex_unlock(&img->ops_lock);
    return ret;
}
