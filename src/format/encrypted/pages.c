/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of entries: which block holds the entries of a cluster, and pages of blocks in memory.
 *
 * A page in memory holds what the log has durably (or the table, where the log has nothing); dirty
 * ones go to the table in bulk, by the committer. Pages that hold slots or are dirty stay.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "format/encrypted/enc_int.h"

#define PAGES_AT_ONCE 64u /* written together where they lie together */

/* ---- the table ---- */

/* Host offset of a page, or 0: it has no block, all its entries are empty. */
static uint64_t page_offset(const struct enc_image *enc, uint64_t number)
{
    struct enc_table *t = enc_table_get(enc);
    unsigned bits = enc_block_bits(enc);
    uint64_t index = number >> bits, block;

    block = index < t->entries ? atomic_load_explicit(&t->v[index], memory_order_acquire) : 0;
    return block == 0 ? 0 : block + ((number & ((UINT64_C(1) << bits) - 1)) << ENC_SECTOR_BITS);
}

bool enc_page_has_block(const struct enc_image *enc, uint64_t number)
{
    return page_offset(enc, number) != 0;
}

struct enc_table *enc_table_new(uint64_t entries)
{
    struct enc_table *t = g_malloc0(sizeof(*t) + entries * sizeof(t->v[0]));

    t->entries = entries;
    return t;
}

static bool check_block(struct enc_image *enc, uint64_t offset)
{
    return qv_is_aligned(offset, enc->cluster_size) &&
           qv_range_inside(offset, enc->cluster_size, atomic_load(&enc->file->size));
}

bool enc_co_table_open(struct enc_image *enc, GError **error)
{
    QV_CLEANUP(qv_freep) uint8_t *roots = qv_node_mem_alloc(QCOW2_SEAL_RING_AT);
    QV_CLEANUP(qv_freep) qv_be64 *raw = NULL;
    uint64_t size = atomic_load(&enc->file->size), bytes;
    struct enc_table *t;
    int ret = qv_range_inside(enc->ext.log_offset, enc->ext.log_size, size)
                  ? qv_co_pread(enc->file, enc->ext.log_offset, roots, QCOW2_SEAL_RING_AT)
                  : -EUCLEAN;

    if (ret != 0) {
        return qv_fail_errno(error, ret, "cannot read where the table of sectors is");
    }
    if (!qcow2_seal_root_parse(roots, enc->cluster_bits, &enc->root, error)) {
        return false;
    }
    bytes = enc->root.table_entries * sizeof(*raw);
    if (!qv_range_inside(enc->root.table_offset, bytes, size)) {
        return qv_fail(error, QV_ERROR_CORRUPT, "the table of sectors lies past the end");
    }
    raw = qv_node_mem_alloc(bytes);
    ret = qv_co_pread(enc->file, enc->root.table_offset, raw, bytes);
    if (ret != 0) {
        return qv_fail_errno(error, ret, "cannot read the table of sectors");
    }
    t = enc_table_new(enc->root.table_entries);
    atomic_store(&enc->table, t);
    for (uint64_t i = 0; i < t->entries; i++) {
        uint64_t offset = qv_be64_get(raw[i]);

        if (offset != 0 && !check_block(enc, offset)) {
            if (!enc->check_only) {
                return qv_fail(error, QV_ERROR_CORRUPT, "the table of sectors has a bad entry");
            }
            offset = 0;
        }
        atomic_store(&t->v[i], offset);
    }
    return true;
}

/* ---- pages in memory ---- */

void enc_pages_init(struct enc_image *enc, uint64_t cache)
{
    uint64_t buckets = 16;

    enc->max_pages = qv_max_u64(cache / sizeof(struct enc_page) / ENC_SHARDS, 4);
    while (buckets < enc->max_pages) {
        buckets *= 2;
    }
    enc->bucket_mask = buckets - 1;
    for (unsigned i = 0; i < ENC_SHARDS; i++) {
        pthread_mutex_init(&enc->shards[i].lock, NULL);
        enc->shards[i].buckets = g_new0(struct enc_page *, buckets);
    }
}

void enc_pages_free(struct enc_image *enc)
{
    struct enc_table *t = enc_table_get(enc);

    for (unsigned i = 0; i < ENC_SHARDS; i++) {
        struct enc_shard *s = &enc->shards[i];

        while (s->n_pages > 0) {
            struct enc_page *p = s->clock;

            s->clock = p->next;
            s->n_pages--;
            g_free(p);
        }
        g_free(s->buckets);
        pthread_mutex_destroy(&s->lock);
    }
    while (t != NULL) {
        struct enc_table *older = t->older;

        g_free(t);
        t = older;
    }
}

static struct enc_page **bucket(struct enc_image *enc, struct enc_shard *s, uint64_t number)
{
    return &s->buckets[(number / ENC_SHARDS) & enc->bucket_mask];
}

struct enc_page *enc_page_find(struct enc_image *enc, struct enc_shard *s, uint64_t number)
{
    struct enc_page *p = *bucket(enc, s, number);

    while (p != NULL && p->number != number) {
        p = p->hash_next;
    }
    if (p != NULL && !p->touched) {
        p->touched = true;
    }
    return p;
}

void enc_page_dirty(struct enc_shard *s, struct enc_page *p)
{
    if (!p->dirty) {
        p->dirty = true;
        s->n_dirty_pages++;
    }
}

static void page_insert(struct enc_image *enc, struct enc_shard *s, struct enc_page *p)
{
    struct enc_page **b = bucket(enc, s, p->number);

    p->hash_next = *b;
    *b = p;
    if (s->clock == NULL) {
        p->prev = p->next = p;
        s->clock = p;
    } else {
        p->next = s->clock;
        p->prev = s->clock->prev;
        p->prev->next = p;
        p->next->prev = p;
    }
    s->n_pages++;
}

static void page_remove(struct enc_image *enc, struct enc_shard *s, struct enc_page *p)
{
    struct enc_page **link = bucket(enc, s, p->number);

    while (*link != p) {
        link = &(*link)->hash_next;
    }
    *link = p->hash_next;
    if (s->clock == p) {
        s->clock = p->next == p ? NULL : p->next;
    }
    p->prev->next = p->next;
    p->next->prev = p->prev;
    s->n_pages--;
    g_free(p);
}

static void evict(struct enc_image *enc, struct enc_shard *s)
{
    /* Twice around: the first pass may only take the touched marks away. */
    for (uint64_t i = 2 * s->n_pages; i > 0 && s->n_pages > enc->max_pages; i--) {
        struct enc_page *p = s->clock;

        if (p == NULL) {
            break;
        }
        s->clock = p->next;
        if (p->dirty || p->n_slots > 0) {
            continue;
        }
        if (p->touched) {
            p->touched = false;
            continue;
        }
        page_remove(enc, s, p);
    }
}

static bool is_loading(const struct enc_shard *s, uint64_t number)
{
    for (unsigned i = 0; i < s->n_loading; i++) {
        if (s->loading[i] == number) {
            return true;
        }
    }
    return false;
}

static void loading_end(struct enc_shard *s, uint64_t number)
{
    for (unsigned i = 0; i < s->n_loading; i++) {
        if (s->loading[i] == number) {
            s->loading[i] = s->loading[--s->n_loading];
            break;
        }
    }
    qv_co_queue_wake_all(&s->load_waiters);
}

/* Waits for its turn to read page @number. False: it is in memory by now. Lock held. */
static bool co_loading_begin(struct enc_image *enc, struct enc_shard *s, uint64_t number)
{
    while (enc_page_find(enc, s, number) == NULL) {
        if (!is_loading(s, number) && s->n_loading < G_N_ELEMENTS(s->loading)) {
            s->loading[s->n_loading++] = number;
            return true;
        }
        qv_co_queue_wait(&s->load_waiters, &s->lock);
    }
    return false;
}

int enc_co_page_load(struct enc_image *enc, uint64_t number)
{
    struct enc_shard *s = enc_shard_of(enc, number);
    QV_CLEANUP(qv_freep) void *buf = NULL;
    struct enc_page *p;
    uint64_t offset;
    bool mine;
    int ret = 0;

    pthread_mutex_lock(&s->lock);
    mine = co_loading_begin(enc, s, number);
    pthread_mutex_unlock(&s->lock);
    if (!mine) {
        return 0;
    }
    p = g_new0(struct enc_page, 1);
    p->number = number;
    offset = page_offset(enc, number);
    p->no_block = offset == 0;
    if (offset != 0) {
        buf = qv_node_mem_alloc(sizeof(p->e));
        ret = qv_co_pread(enc->file, offset, buf, sizeof(p->e));
        memcpy(p->e, buf, sizeof(p->e));
    }
    pthread_mutex_lock(&s->lock);
    if (ret == 0) {
        /* A block may have come meanwhile (enc_seal_co_link): it is empty. */
        p->no_block = p->no_block && page_offset(enc, number) == 0;
        p->touched = true;
        page_insert(enc, s, p);
        evict(enc, s);
    } else {
        g_free(p);
    }
    loading_end(s, number);
    pthread_mutex_unlock(&s->lock);
    return ret;
}

int enc_co_page_lock(struct enc_image *enc, uint64_t number, struct enc_page **out)
{
    struct enc_shard *s = enc_shard_of(enc, number);
    int ret = 0;

    while (ret == 0) {
        pthread_mutex_lock(&s->lock);
        *out = enc_page_find(enc, s, number);
        if (*out != NULL) {
            return 0;
        }
        pthread_mutex_unlock(&s->lock);
        ret = enc_co_page_load(enc, number);
    }
    return ret;
}

/* ---- writing pages ---- */

uint64_t enc_pages_dirty(struct enc_image *enc)
{
    uint64_t n = 0;

    for (unsigned i = 0; i < ENC_SHARDS; i++) {
        pthread_mutex_lock(&enc->shards[i].lock);
        n += enc->shards[i].n_dirty_pages;
        pthread_mutex_unlock(&enc->shards[i].lock);
    }
    return n;
}

static int by_offset(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

/* The numbers of all dirty pages, ascending. */
static GArray *dirty_numbers(struct enc_image *enc)
{
    GArray *out = g_array_new(false, false, sizeof(uint64_t));

    for (unsigned i = 0; i < ENC_SHARDS; i++) {
        struct enc_shard *s = &enc->shards[i];
        struct enc_page *p;

        pthread_mutex_lock(&s->lock);
        p = s->clock;
        for (uint64_t k = s->n_dirty_pages > 0 ? s->n_pages : 0; k > 0; k--, p = p->next) {
            if (p->dirty) {
                g_array_append_val(out, p->number);
            }
        }
        pthread_mutex_unlock(&s->lock);
    }
    g_array_sort(out, by_offset);
    return out;
}

/* Copies a dirty page and makes it clean. */
static void take_page(struct enc_image *enc, uint64_t number, char *out)
{
    struct enc_shard *s = enc_shard_of(enc, number);
    struct enc_page *p;

    pthread_mutex_lock(&s->lock);
    p = enc_page_find(enc, s, number); /* dirty: it is still there */
    g_assert(p != NULL);
    memcpy(out, p->e, sizeof(p->e));
    p->dirty = false;
    s->n_dirty_pages--;
    pthread_mutex_unlock(&s->lock);
}

static void dirty_again(struct enc_image *enc, const uint64_t *numbers, unsigned n,
                        const char *content)
{
    for (unsigned i = 0; i < n; i++) {
        struct enc_shard *s = enc_shard_of(enc, numbers[i]);
        struct enc_page *p;

        pthread_mutex_lock(&s->lock);
        p = enc_page_find(enc, s, numbers[i]);
        if (p == NULL) { /* it has left; what it held did not reach the file */
            p = g_new0(struct enc_page, 1);
            p->number = numbers[i];
            memcpy(p->e, content + (size_t)i * sizeof(p->e), sizeof(p->e));
            page_insert(enc, s, p);
        }
        enc_page_dirty(s, p);
        pthread_mutex_unlock(&s->lock);
    }
}

int enc_co_pages_write(struct enc_image *enc)
{
    g_autoptr(GArray) numbers = dirty_numbers(enc);
    QV_CLEANUP(qv_freep) char *buf = NULL;
    int ret = 0;

    if (numbers->len > 0) {
        buf = qv_node_mem_alloc((uint64_t)PAGES_AT_ONCE * ENC_SECTOR);
    }
    for (guint i = 0, n; i < numbers->len && ret == 0; i += n) {
        const uint64_t *v = &g_array_index(numbers, uint64_t, i);
        uint64_t offset = page_offset(enc, v[0]);

        n = 0;
        do {
            take_page(enc, v[n], buf + (size_t)n * ENC_SECTOR);
            n++;
        } while (n < PAGES_AT_ONCE && i + n < numbers->len &&
                 page_offset(enc, v[n]) == offset + (uint64_t)n * ENC_SECTOR);
        ret =
            offset == 0 ? -EUCLEAN : qv_co_pwrite(enc->file, offset, buf, (uint64_t)n * ENC_SECTOR);
        if (ret != 0) {
            dirty_again(enc, v, n, buf);
        }
    }
    return ret;
}
