/* SPDX-License-Identifier: Apache-2.0 */
/*
 * L2 tables in memory: whole tables, found through the map without a lock. A table that is to be
 * written, or was written and is not durable, stays; others leave in clock order when there are
 * more than max_tables, and are freed once no request can see them.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "format/qcow2/qcow2_int.h"

/* As qv_node_mem_alloc, but small tables do not take a page each. */
static void *mem_alloc(uint64_t len)
{
    void *mem = NULL;

    if (posix_memalign(&mem, qv_min_u64(len, 4096), len) != 0) {
        g_error("out of memory: %" G_GUINT64_FORMAT " bytes", len); /* exits */
    }
    return mem;
}

static struct qcow2_table *table_new(struct qcow2_image *img, uint64_t l1_index)
{
    struct qcow2_table *t = g_new0(struct qcow2_table, 1);

    t->entries = mem_alloc(img->cluster_size);
    memset(qcow2_bytes(t->entries), 0, img->cluster_size);
    t->l1_index = l1_index;
    t->touched = 1;
    qcow2_dirty_init(&t->d, img->cluster_size);
    return t;
}

void qcow2_table_free(struct qcow2_table *table)
{
    free(qcow2_bytes(table->entries));
    g_free(table);
}

void qcow2_retire(struct qcow2_image *img, void *a, void *b, void *c)
{
    struct qcow2_retired *r = g_new(struct qcow2_retired, 1);

    *r = (struct qcow2_retired){.next = img->retired, .mem = {a, b, c}};
    img->retired = r;
    img->n_retired++;
    qcow2_bg_kick(img, QCOW2_BG_REAP);
}

void qcow2_retired_free(struct qcow2_retired *list)
{
    while (list != NULL) {
        struct qcow2_retired *r = list;

        list = r->next;
        for (size_t i = 0; i < G_N_ELEMENTS(r->mem); i++) {
            free(r->mem[i]); /* GLib's allocator is malloc */
        }
        g_free(r);
    }
}

/* ---- the clock; lock held ---- */

static void clock_insert(struct qcow2_image *img, struct qcow2_table *t)
{
    if (img->clock == NULL) {
        t->prev = t->next = t;
        img->clock = t;
    } else { /* just behind the hand: the last one it will come to */
        t->next = img->clock;
        t->prev = img->clock->prev;
        t->prev->next = t;
        t->next->prev = t;
    }
    img->n_tables++;
}

static void clock_remove(struct qcow2_image *img, struct qcow2_table *t)
{
    if (img->clock == t) {
        img->clock = t->next == t ? NULL : t->next;
    }
    t->prev->next = t->next;
    t->next->prev = t->prev;
    img->n_tables--;
}

static bool evictable(const struct qcow2_image *img, const struct qcow2_table *t)
{
    return t->pins == 0 && !t->in_dirty_list && t->linked && qcow2_dirty_settled(img, &t->d);
}

static void evict(struct qcow2_image *img)
{
    struct qcow2_map *map = qcow2_map_get(img);

    /* Twice around: the first pass may only take the touched marks away. */
    for (uint64_t i = 2 * img->n_tables; i > 0 && img->n_tables > img->max_tables; i--) {
        struct qcow2_table *t = img->clock;

        img->clock = t->next;
        if (!evictable(img, t)) {
            continue;
        }
        if (atomic_load_explicit(&t->touched, memory_order_relaxed) != 0) {
            atomic_store_explicit(&t->touched, 0, memory_order_relaxed);
            continue;
        }
        atomic_store_explicit(&map->tables[t->l1_index], NULL, memory_order_release);
        clock_remove(img, t);
        qcow2_retire(img, qcow2_bytes(t->entries), t, NULL);
    }
}

void qcow2_table_unpin(struct qcow2_image *img, struct qcow2_table *table)
{
    pthread_mutex_lock(&img->lock);
    table->pins--;
    if (table->pins == 0 && table->next == NULL) { /* replaced meanwhile */
        qcow2_retire(img, qcow2_bytes(table->entries), table, NULL);
    }
    pthread_mutex_unlock(&img->lock);
}

void qcow2_table_forget(struct qcow2_image *img, struct qcow2_table *t)
{
    clock_remove(img, t);
    t->prev = t->next = NULL; /* the last unpin retires it */
    if (t->pins == 0) {
        qcow2_retire(img, qcow2_bytes(t->entries), t, NULL);
    }
}

static void install(struct qcow2_image *img, struct qcow2_table *t)
{
    clock_insert(img, t);
    atomic_store_explicit(&qcow2_map_get(img)->tables[t->l1_index], t, memory_order_release);
}

/* ---- loading ---- */

static bool is_loading(const struct qcow2_image *img, uint64_t l1_index)
{
    for (size_t i = 0; i < img->n_loading; i++) {
        if (img->loading[i] == l1_index) {
            return true;
        }
    }
    return false;
}

static void loading_add(struct qcow2_image *img, uint64_t l1_index)
{
    if (img->n_loading == img->max_loading) {
        img->max_loading = img->max_loading == 0 ? 16 : img->max_loading * 2;
        img->loading = g_renew(uint64_t, img->loading, img->max_loading);
    }
    img->loading[img->n_loading++] = l1_index;
}

static void loading_remove(struct qcow2_image *img, uint64_t l1_index)
{
    for (size_t i = 0; i < img->n_loading; i++) {
        if (img->loading[i] == l1_index) {
            img->loading[i] = img->loading[--img->n_loading];
            break;
        }
    }
    qv_co_queue_wake_all(&img->load_waiters);
}

/* Reads the table that L1 entry @l1_entry points to. */
static int co_table_read(struct qcow2_image *img, uint64_t l1_index, uint64_t l1_entry,
                         struct qcow2_table **out)
{
    uint64_t offset = l1_entry & QCOW2_L1_OFFSET_MASK;
    uint64_t end = atomic_load(&img->file_end);
    struct qcow2_table *t;
    int ret;

    if ((l1_entry & QCOW2_L1_RESERVED_MASK) != 0 || offset == 0 ||
        !qv_is_aligned(offset, img->cluster_size) || offset >= end) {
        return qcow2_co_corrupt(img, offset, "invalid L1 entry");
    }
    t = table_new(img, l1_index);
    t->offset = offset;
    t->linked = true;
    t->writable = (l1_entry & QCOW2_OFLAG_COPIED) != 0;
    /* A read-only file may end inside its last cluster; the rest counts as zeros. */
    ret = qv_co_pread(img->node.file, offset, qcow2_bytes(t->entries),
                      qv_min_u64(img->cluster_size, end - offset));
    if (ret != 0) {
        qcow2_table_free(t);
        return ret;
    }
    *out = t;
    return 0;
}

bool qcow2_cache_crowded(const struct qcow2_image *img)
{
    return img->n_dirty * 4 > img->max_tables * 3 ||
           img->n_tables >= img->max_tables + img->max_tables / 4 + 4;
}

/* Room for tables: writes dirty ones back when they fill the cache. */
static int co_make_room(struct qcow2_image *img)
{
    uint64_t n_dirty;
    bool crowded;
    int ret;

    pthread_mutex_lock(&img->lock);
    evict(img);
    n_dirty = img->n_dirty;
    crowded = qcow2_cache_crowded(img);
    pthread_mutex_unlock(&img->lock);
    if (!crowded) {
        return 0;
    }
    ret = qcow2_co_write_back(img);
    /* A medium that takes no metadata now may do so later; but memory is bounded. */
    return n_dirty < img->max_tables * 2 ? 0 : ret;
}

int qcow2_co_table_get(struct qcow2_image *img, uint64_t l1_index, struct qcow2_table **out)
{
    struct qcow2_table *t = NULL;
    uint64_t l1_entry, epoch;
    int ret;

again:
    pthread_mutex_lock(&img->lock);
    epoch = img->l1_epoch;
    for (;;) {
        struct qcow2_map *map = qcow2_map_get(img);

        if (l1_index >= map->l1_entries) {
            pthread_mutex_unlock(&img->lock);
            return -EINVAL;
        }
        t = atomic_load_explicit(&map->tables[l1_index], memory_order_relaxed);
        l1_entry = qcow2_entry(map->l1, l1_index);
        if (t != NULL || l1_entry == 0) {
            break;
        }
        if (!is_loading(img, l1_index)) {
            loading_add(img, l1_index);
            break;
        }
        qv_co_queue_wait(&img->load_waiters, &img->lock);
    }
    if (t != NULL) {
        t->pins++;
    }
    pthread_mutex_unlock(&img->lock);
    if (t != NULL || l1_entry == 0) {
        *out = t;
        return 0;
    }
    ret = co_table_read(img, l1_index, l1_entry, &t);
    pthread_mutex_lock(&img->lock);
    if (epoch != img->l1_epoch) { /* another L1 table counts by now */
        loading_remove(img, l1_index);
        pthread_mutex_unlock(&img->lock);
        if (t != NULL) {
            qcow2_table_free(t);
        }
        goto again;
    }
    if (ret == 0) {
        g_assert(t != NULL);
        t->pins = 1;
        install(img, t);
    }
    loading_remove(img, l1_index);
    pthread_mutex_unlock(&img->lock);
    if (ret != 0) {
        return ret;
    }
    *out = t;
    (void)co_make_room(img);
    return 0;
}

/* ---- changing ---- */

void qcow2_table_mark(struct qcow2_image *img, struct qcow2_table *table)
{
    if (!table->in_dirty_list) {
        table->in_dirty_list = true;
        table->next_dirty = NULL;
        *img->dirty_tail = table;
        img->dirty_tail = &table->next_dirty;
        img->n_dirty++;
    }
}

/* Entry @i is about to become @e. Lock held. */
static void note(struct qcow2_image *img, struct qcow2_table *table, uint64_t i, struct qcow2_l2e e,
                 uint64_t need_sync)
{
    uint32_t size = qcow2_l2_entry_size(&img->header);

    if (img->journal != NULL) {
        qcow2_journal_note(img->journal, (table->l1_index << img->l2_bits) + i, e);
    }
    qcow2_dirty_mark(&table->d, i * size, size);
    if (need_sync > table->need_sync) {
        table->need_sync = need_sync;
    }
    qcow2_table_mark(img, table);
}

void qcow2_table_set(struct qcow2_image *img, struct qcow2_table *table, uint64_t i,
                     struct qcow2_l2e e, uint64_t need_sync)
{
    note(img, table, i, e, need_sync);
    if (img->sub_bits == 0) {
        atomic_store_explicit(&table->entries[i], htobe64(e.desc), memory_order_release);
    } else { /* map.c, extent_whole */
        uint32_t seq = atomic_load_explicit(&table->seq, memory_order_relaxed);

        atomic_store_explicit(&table->seq, seq + 1, memory_order_relaxed);
        atomic_store_explicit(&table->entries[2 * i], htobe64(e.desc), memory_order_release);
        atomic_store_explicit(&table->entries[2 * i + 1], htobe64(e.bitmap), memory_order_release);
        atomic_store_explicit(&table->seq, seq + 2, memory_order_release);
    }
}

void qcow2_table_move(struct qcow2_image *img, struct qcow2_table *table, uint64_t i, uint64_t desc,
                      uint64_t need_sync)
{
    struct qcow2_l2e e = qcow2_l2_get(img, table, i);

    e.desc = desc;
    note(img, table, i, e, need_sync);
    atomic_store_explicit(&table->entries[i << (img->sub_bits != 0)], htobe64(desc),
                          memory_order_release);
}

/*
 * Puts @t, new and empty, in the place of @old (NULL: of nothing). Lock held. The L1 entry follows
 * at the next commit, once what it would point to is durable.
 */
static void table_replace(struct qcow2_image *img, struct qcow2_table *old, struct qcow2_table *t,
                          const struct qcow2_run *run)
{
    t->offset = run->first << img->cluster_bits;
    t->writable = true;
    t->full_write = old != NULL || !run->zero;
    t->need_sync = run->need_sync;
    t->pins = 1;
    if (t->full_write) {
        qcow2_dirty_mark(&t->d, 0, img->cluster_size);
    }
    if (old != NULL) {
        for (uint64_t i = 0; i < img->cluster_size / sizeof(uint64_t); i++) {
            atomic_store_explicit(&t->entries[i],
                                  atomic_load_explicit(&old->entries[i], memory_order_relaxed),
                                  memory_order_relaxed);
        }
        clock_remove(img, old);
        old->prev = old->next = NULL; /* the last unpin retires it */
        qcow2_meta_remove(img, old->offset >> img->cluster_bits);
        qcow2_freed_add(&img->freed_new, old->offset >> img->cluster_bits, 1);
    }
    qcow2_meta_add(img, run->first);
    install(img, t);
    qcow2_table_mark(img, t);
}

int qcow2_co_table_writable(struct qcow2_image *img, uint64_t l1_index, struct qcow2_table **out)
{
    int ret = co_make_room(img);

    while (ret == 0) {
        struct qcow2_table *old, *t;
        struct qcow2_run run;
        bool done = false, dry = false;

        ret = qcow2_co_table_get(img, l1_index, &old);
        if (ret != 0) {
            break;
        }
        if (old != NULL && old->writable) {
            *out = old;
            return 0;
        }
        t = table_new(img, l1_index);
        pthread_mutex_lock(&img->lock);
        if (atomic_load(&qcow2_map_get(img)->tables[l1_index]) == old &&
            (old != NULL || qcow2_entry(qcow2_map_get(img)->l1, l1_index) == 0)) {
            done = qcow2_run_take(img, 1, &run);
            dry = !done;
            if (done) {
                table_replace(img, old, t, &run);
            }
        }
        pthread_mutex_unlock(&img->lock);
        if (old != NULL) {
            qcow2_table_unpin(img, old);
        }
        if (done) {
            *out = t;
            return 0;
        }
        qcow2_table_free(t);
        ret = dry ? qcow2_co_reserve(img) : 0;
    }
    return ret;
}
