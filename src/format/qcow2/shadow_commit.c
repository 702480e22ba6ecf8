/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Making a shadow valid: the rest of the new state is written, a sync, the header, a sync, and then
 * memory follows.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "format/qcow2/shadow_int.h"

/* ---- the place of everything ---- */

static int co_count_list(struct qcow2_shadow *s, struct qcow2_freed_list *list, bool up)
{
    struct qcow2_freed_list now = *list;
    int ret = 0;

    *list = (struct qcow2_freed_list){0};
    for (size_t i = 0; i < now.n && ret == 0; i++) {
        ret = qcow2_shadow_co_add(s, now.v[i].first, now.v[i].count, up);
    }
    g_free(now.v);
    return ret;
}

/* Counts what was taken and dropped. That changes more blocks, which need places, which count. */
static int co_settle(struct qcow2_shadow *s)
{
    int ret = 0;

    do {
        ret = co_count_list(s, &s->taken, true);
        ret = ret != 0 ? ret : co_count_list(s, &s->dropped, false);
        for (uint64_t i = 0; i < s->entries && ret == 0; i++) {
            struct qcow2_shadow_block *b = s->blocks[i];

            if (b != NULL && b->dirty) {
                ret = qcow2_shadow_co_move(s, b);
            }
        }
    } while (ret == 0 && (s->taken.n > 0 || s->dropped.n > 0));
    return ret;
}

/* A refcount table long enough for all blocks, in a new place. */
static int co_place_table(struct qcow2_shadow *s)
{
    struct qcow2_image *img = s->img;
    uint64_t per_cluster = img->cluster_size / sizeof(uint64_t);
    int ret = co_settle(s);

    qcow2_shadow_drop(s, img->header.refcount_table_offset >> img->cluster_bits,
                      img->header.refcount_table_clusters);
    s->table_clusters = img->header.refcount_table_clusters;
    while (ret == 0) {
        uint64_t need = qv_div_up(s->entries, per_cluster);

        if (s->table_first != 0 && need <= s->table_clusters) {
            break;
        }
        if (s->table_first != 0) { /* placing it has made one block more than it holds */
            qcow2_freed_add(&s->dropped, s->table_first, s->table_clusters);
        }
        if (need > s->table_clusters) {
            s->table_clusters = need + need / 2;
        }
        if (s->table_clusters << img->cluster_bits > QCOW2_RT_MAX_BYTES) {
            return -ENOSPC;
        }
        ret = qcow2_shadow_co_alloc(s, s->table_clusters, false, &s->table_first);
        ret = ret != 0 ? ret : co_settle(s);
    }
    qcow2_freed_add(&s->meta_add, s->table_first, s->table_clusters);
    return ret;
}

/* ---- writing ---- */

static int co_write_one(void *arg, uint64_t i)
{
    struct qcow2_shadow *s = arg;
    struct qcow2_shadow_block *b = s->blocks[i];

    return b == NULL || !b->dirty ? 0 : qcow2_shadow_co_write_block(s, b);
}

static qv_be64 *make_table(const struct qcow2_shadow *s)
{
    uint64_t bytes = s->table_clusters << s->img->cluster_bits;
    qv_be64 *table = qv_node_mem_alloc(qv_max_u64(bytes, 1));

    memset(table, 0, bytes);
    for (uint64_t i = 0; i < s->entries; i++) {
        if (s->blocks[i] != NULL) {
            table[i] = qv_be64_make(s->blocks[i]->home);
        }
    }
    return table;
}

static int co_write_l1(struct qcow2_shadow *s, const uint64_t *l1, struct qcow2_map *map)
{
    uint64_t bytes = qv_align_up(map->l1_entries * sizeof(uint64_t), QV_SECTOR_SIZE);

    for (uint64_t i = 0; i < map->l1_entries; i++) {
        atomic_init(&map->l1[i], htobe64(l1[i]));
    }
    return bytes == 0
               ? 0
               : qv_co_pwrite(s->img->node.file, map->l1_offset, qcow2_bytes(map->l1), bytes);
}

static int co_write_header(struct qcow2_shadow *s)
{
    struct qcow2_image *img = s->img;
    struct qcow2_header old = img->header;
    struct qcow2_header_disk disk;
    int ret, undone;

    img->header = s->next;
    ret = qcow2_co_header_write(img);
    if (ret == 0) {
        return 0;
    }
    img->header = old;
    /* Not qcow2_co_sync: this sync must tell of the header only. */
    undone = qv_co_pwrite(img->node.file, 0, &disk, qcow2_header_serialize_fixed(&old, &disk));
    undone = undone != 0 ? undone : qv_co_flush(img->node.file);
    if (undone != 0) {
        /* The file may hold either header. Both states are whole, but only as long as nothing
         * changes. */
        atomic_store(&img->corrupt, true);
        qv_error("%s: cannot write the header: %s; no further changes are made to it",
                 img->node.name, qv_strerror(ret));
    }
    return ret;
}

/* ---- memory ---- */

/* Forgets all L2 tables; they are read again when needed. Lock held. */
static void drop_tables(struct qcow2_image *img)
{
    while (img->n_tables > 0) {
        struct qcow2_table *t = img->clock;

        qcow2_table_forget(img, t);
    }
}

static void install_refs(struct qcow2_image *img, struct qcow2_shadow *s, qv_be64 *table)
{
    struct qcow2_refs *refs = &img->refs;

    refs->last = NULL;
    g_hash_table_remove_all(refs->blocks);
    free(refs->table);
    refs->table = table;
    refs->entries = s->table_clusters << img->cluster_bits >> 3;
    qcow2_dirty_init(&refs->d, s->table_clusters << img->cluster_bits);
    for (uint64_t i = 0; i < s->entries; i++) {
        if (s->blocks[i] != NULL && s->blocks[i]->freed) {
            refs->scan_pos = qv_min_u64(refs->scan_pos, i << img->rb_bits);
            break;
        }
    }
}

static void install_meta(struct qcow2_image *img, const struct qcow2_shadow *s)
{
    const struct qcow2_freed_list *gone = &s->meta_remove, *come = &s->meta_add;

    for (size_t i = 0; i < gone->n; i++) {
        for (uint64_t k = 0; k < gone->v[i].count; k++) {
            qcow2_meta_remove(img, gone->v[i].first + k);
        }
    }
    for (size_t i = 0; i < come->n; i++) {
        for (uint64_t k = 0; k < come->v[i].count; k++) {
            qcow2_meta_add(img, come->v[i].first + k);
        }
    }
}

static void install(struct qcow2_shadow *s, struct qcow2_map *map, qv_be64 *table)
{
    struct qcow2_image *img = s->img;
    struct qcow2_map *old = qcow2_map_get(img);

    pthread_mutex_lock(&img->lock);
    drop_tables(img);
    img->l1_epoch++;
    atomic_store_explicit(&img->map, map, memory_order_release);
    qcow2_retire(img, qcow2_bytes(old->l1), old, NULL);
    install_refs(img, s, table);
    install_meta(img, s);
    atomic_store(&img->node.size, img->header.size);
    pthread_mutex_unlock(&img->lock);
}

int qcow2_shadow_co_commit(struct qcow2_shadow *s, const uint64_t *l1, uint64_t entries)
{
    struct qcow2_image *img = s->img;
    struct qcow2_map *old = qcow2_map_get(img), *map;
    uint64_t clusters = qv_div_up(entries * sizeof(uint64_t), img->cluster_size), first = 0;
    qv_be64 *table = NULL;
    int ret = 0;

    qcow2_shadow_drop(s, old->l1_offset >> img->cluster_bits, old->l1_clusters);
    if (clusters > 0) {
        ret = qcow2_shadow_co_alloc(s, clusters, true, &first);
    }
    ret = ret != 0 ? ret : co_place_table(s);
    if (ret != 0) {
        return ret;
    }
    map = qcow2_map_new(img, entries, first << img->cluster_bits, clusters);
    table = make_table(s);
    ret = co_write_l1(s, l1, map);
    ret = ret != 0 ? ret
                   : qv_co_pwrite(img->node.file, s->table_first << img->cluster_bits, table,
                                  s->table_clusters << img->cluster_bits);
    ret = ret != 0 ? ret : qcow2_co_workers(s->entries, co_write_one, s);
    /* All of the new state is durable before the header names it; so is the file's length. */
    ret = ret != 0 ? ret : qcow2_co_sync(img);
    s->next.l1_table_offset = map->l1_offset;
    s->next.l1_size = (uint32_t)entries;
    s->next.refcount_table_offset = s->table_first << img->cluster_bits;
    s->next.refcount_table_clusters = (uint32_t)s->table_clusters;
    ret = ret != 0 ? ret : co_write_header(s);
    if (ret != 0) {
        qcow2_map_free(map);
        free(table);
        return ret;
    }
    install(s, map, table);
    return 0;
}
