/* SPDX-License-Identifier: Apache-2.0 */
/* See shadow.h. Refcounts and space; shadow_commit.c makes it valid. */
#include "format/qcow2/shadow.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "format/qcow2/shadow_int.h"

/* Refcount blocks in memory for each L2 table that may be: 256 MiB of them by default, which is all
 * of an image of 8 TiB in 64 KiB clusters. */
#define LOADED_PER_TABLE 8u
#define LOADED_MIN       16u
#define SCAN_BLOCKS      32u /* looked through for free clusters before the file grows */
#define GROW_BYTES       (8 * QV_MIB)
#define GROW_CLUSTERS    64u

/* ---- begin, end ---- */

static void grow_entries(struct qcow2_shadow *s, uint64_t entries)
{
    s->blocks = g_renew(struct qcow2_shadow_block *, s->blocks, entries);
    memset(s->blocks + s->entries, 0, (entries - s->entries) * sizeof(s->blocks[0]));
    s->entries = entries;
}

int qcow2_shadow_co_begin(struct qcow2_shadow *s, struct qcow2_image *img)
{
    uint64_t window;
    int ret;

    *s = (struct qcow2_shadow){.img = img};
    qv_co_mutex_init(&s->load_lock);
    qv_co_mutex_init(&s->space_lock);
    if (atomic_load(&img->corrupt) || img->node.readonly) {
        return -EROFS;
    }
    if (img->refs.frozen || img->dirty_head != NULL || qcow2_map_get(img)->d.dirty != 0) {
        return -EIO; /* what is in memory could not be written */
    }
    ret = qcow2_refs_co_write(img);
    if (ret != 0) {
        return ret;
    }
    s->next = img->header; /* what it owns stays the image's */
    grow_entries(s, img->refs.entries);
    for (uint64_t i = 0; i < s->entries; i++) {
        uint64_t entry = qv_be64_get(img->refs.table[i]);

        if (entry != 0) {
            s->blocks[i] = g_new0(struct qcow2_shadow_block, 1);
            s->blocks[i]->home = s->blocks[i]->old = entry;
        }
    }
    s->max_loaded = qv_max_u64(img->max_tables * LOADED_PER_TABLE, LOADED_MIN);
    s->inside_end = atomic_load(&img->file_end) >> img->cluster_bits;
    /* Near the end of the file: there is what the shadow before this one has left. */
    window = (uint64_t)SCAN_BLOCKS << img->rb_bits;
    if (img->file_grows && s->inside_end > window) {
        s->pos = qv_max_u64(img->refs.scan_pos, s->inside_end - window);
    }
    s->scan_blocks = img->file_grows ? SCAN_BLOCKS + 2 : UINT32_MAX;
    return 0;
}

void qcow2_shadow_end(struct qcow2_shadow *s)
{
    for (uint64_t i = 0; i < s->entries; i++) {
        if (s->blocks[i] != NULL) {
            free(s->blocks[i]->data);
            g_free(s->blocks[i]);
        }
    }
    g_free(s->blocks);
    g_free(s->taken.v);
    g_free(s->dropped.v);
    g_free(s->meta_add.v);
    g_free(s->meta_remove.v);
    qv_co_mutex_destroy(&s->load_lock);
    qv_co_mutex_destroy(&s->space_lock);
    *s = (struct qcow2_shadow){0};
}

void qcow2_shadow_freed(const struct qcow2_shadow *s, struct qcow2_freed_list *out)
{
    for (uint64_t i = 0; i < s->entries; i++) {
        if (s->blocks[i] != NULL && s->blocks[i]->freed) {
            qcow2_freed_add(out, i, 1);
        }
    }
}

/* ---- space ---- */

/* Adds clusters to the end of the file; of them, the last run that is free in the old state. */
static int co_grow(struct qcow2_shadow *s, uint64_t n)
{
    struct qcow2_image *img = s->img;
    uint64_t count = qv_max_u64(n, qv_min_u64(GROW_BYTES >> img->cluster_bits, GROW_CLUSTERS));
    uint64_t first, refs = 0;
    int ret;

    if (!img->file_grows) {
        return -ENOSPC;
    }
    ret = qcow2_co_extend(img, count, &first);
    if (ret == -ENOSPC && count > n) {
        count = n;
        ret = qcow2_co_extend(img, count, &first);
    }
    if (ret != 0) {
        return ret;
    }
    if (s->ext_first + s->ext_count != first) {
        s->ext_first = first;
        s->ext_count = 0;
    }
    /* Refcounts past the old end should be zero; after a crash they may not be. */
    for (uint64_t c = first; c < first + count; c++) {
        ret = qcow2_refs_co_get(img, c, &refs);
        if (ret != 0) {
            return ret;
        }
        s->ext_count++;
        if (refs != 0) {
            s->ext_first = c + 1;
            s->ext_count = 0;
        }
    }
    return 0;
}

/* Free clusters inside the file as it was in the beginning. */
static int co_find_inside(struct qcow2_shadow *s, uint64_t n, uint64_t end, uint64_t *first)
{
    while (s->pos < end && s->scan_blocks > 0) {
        struct qcow2_freed run;
        int ret = qcow2_refs_co_free_run(s->img, &s->pos, end, n, &s->scan_blocks, &run);

        if (ret != 0) {
            return ret;
        }
        for (uint64_t c = run.first; c < run.first + run.count; c++) {
            if (qcow2_metaset_has(&s->img->meta, c)) {
                return qcow2_co_corrupt(s->img, c << s->img->cluster_bits,
                                        "metadata with refcount 0");
            }
        }
        if (run.count == n) {
            *first = run.first;
            return 0;
        }
    }
    return -ENOSPC;
}

int qcow2_shadow_co_find(struct qcow2_shadow *s, uint64_t n, uint64_t *first)
{
    int ret;

    *first = 0;
    qv_co_mutex_lock(&s->space_lock);
    ret = co_find_inside(s, n, s->inside_end, first);
    if (ret == -ENOSPC) {
        ret = 0;
        while (ret == 0 && s->ext_count < n) {
            ret = co_grow(s, n - s->ext_count);
        }
        if (ret == 0) {
            *first = s->ext_first;
            s->ext_first += n;
            s->ext_count -= n;
        }
    }
    qv_co_mutex_unlock(&s->space_lock);
    return ret;
}

static void take(struct qcow2_shadow *s, uint64_t n, bool meta, uint64_t first)
{
    qcow2_freed_add(&s->taken, first, n);
    if (meta) {
        qcow2_freed_add(&s->meta_add, first, n);
    }
}

int qcow2_shadow_co_alloc(struct qcow2_shadow *s, uint64_t n, bool meta, uint64_t *first)
{
    int ret = qcow2_shadow_co_find(s, n, first);

    if (ret == 0) {
        take(s, n, meta, *first);
    }
    return ret;
}

int qcow2_shadow_co_alloc_below(struct qcow2_shadow *s, uint64_t limit, bool meta, uint64_t *first)
{
    int ret;

    qv_co_mutex_lock(&s->space_lock);
    ret = co_find_inside(s, 1, qv_min_u64(limit, s->inside_end), first);
    qv_co_mutex_unlock(&s->space_lock);
    if (ret == 0) {
        take(s, 1, meta, *first);
    }
    return ret;
}

void qcow2_shadow_drop(struct qcow2_shadow *s, uint64_t first, uint64_t n)
{
    if (n > 0) {
        qcow2_freed_add(&s->dropped, first, n);
        qcow2_freed_add(&s->meta_remove, first, n);
    }
}

/* ---- refcount blocks ---- */

int qcow2_shadow_co_move(struct qcow2_shadow *s, struct qcow2_shadow_block *b)
{
    uint64_t first;
    int ret;

    if (b->moved) {
        return 0;
    }
    ret = qcow2_shadow_co_alloc(s, 1, true, &first);
    if (ret == 0) {
        if (b->old != 0) {
            qcow2_shadow_drop(s, b->old >> s->img->cluster_bits, 1);
        }
        b->home = first << s->img->cluster_bits;
        b->moved = true;
    }
    return ret;
}

int qcow2_shadow_co_write_block(struct qcow2_shadow *s, struct qcow2_shadow_block *b)
{
    int ret = qcow2_shadow_co_move(s, b);

    if (ret == 0) {
        b->dirty = false; /* unless changed again while it is written */
        ret = qv_co_pwrite(s->img->node.file, b->home, b->data, s->img->cluster_size);
        b->dirty |= ret != 0;
    }
    return ret;
}

/* Takes blocks out of memory until one more fits. Under load_lock. */
static int co_evict(struct qcow2_shadow *s)
{
    uint64_t left = 2 * s->entries;

    while (s->loaded >= s->max_loaded && left-- > 0) {
        struct qcow2_shadow_block *b = s->blocks[s->hand];
        int ret = 0;

        s->hand = (s->hand + 1) % s->entries;
        if (b == NULL || b->data == NULL) {
            continue;
        }
        if (b->dirty) {
            ret = qcow2_shadow_co_write_block(s, b);
        }
        if (ret != 0) {
            return ret;
        }
        if (!b->dirty) {
            g_clear_pointer(&b->data, free);
            s->loaded--;
        }
    }
    return 0;
}

static int co_read_block(struct qcow2_shadow *s, struct qcow2_shadow_block *b)
{
    struct qcow2_image *img = s->img;
    uint64_t end = atomic_load(&img->file_end);
    uint8_t *data;
    int ret = 0;

    if (b->home != 0 && ((b->home & QCOW2_RT_RESERVED_MASK) != 0 ||
                         !qv_is_aligned(b->home, img->cluster_size) || b->home >= end)) {
        return qcow2_co_corrupt(img, b->home, "invalid refcount table entry");
    }
    data = qv_node_mem_alloc(img->cluster_size);
    if (b->home == 0) {
        memset(data, 0, img->cluster_size);
    } else {
        ret = qv_co_pread(img->node.file, b->home, data,
                          qv_min_u64(img->cluster_size, end - b->home));
    }
    if (ret != 0) {
        free(data);
        return ret;
    }
    b->data = data;
    return 0;
}

/* Makes block @index one in memory; what the caller does with it, it does before it yields. */
static int co_load(struct qcow2_shadow *s, uint64_t index)
{
    int ret = 0;

    if (index < s->entries && s->blocks[index] != NULL && s->blocks[index]->data != NULL) {
        return 0;
    }
    if (index >= QCOW2_RT_MAX_BYTES / sizeof(uint64_t)) {
        return -EUCLEAN;
    }
    qv_co_mutex_lock(&s->load_lock);
    if (index >= s->entries) {
        grow_entries(s, index + 1);
    }
    if (s->blocks[index] == NULL) {
        s->blocks[index] = g_new0(struct qcow2_shadow_block, 1);
    }
    if (s->blocks[index]->data == NULL) {
        ret = co_evict(s);
        ret = ret != 0 ? ret : co_read_block(s, s->blocks[index]);
        s->loaded += ret == 0 ? 1 : 0;
    }
    qv_co_mutex_unlock(&s->load_lock);
    return ret;
}

static int co_preload_one(void *arg, uint64_t i)
{
    struct qcow2_shadow *s = arg;
    struct qcow2_shadow_block *b = s->blocks[i];
    int ret;

    if (b == NULL || s->loaded >= s->max_loaded) {
        return 0;
    }
    s->loaded++; /* each worker has a block of its own, so load_lock is not needed */
    ret = co_read_block(s, b);
    s->loaded -= ret != 0 ? 1 : 0;
    return ret;
}

int qcow2_shadow_co_preload(struct qcow2_shadow *s)
{
    return qcow2_co_workers(s->entries, co_preload_one, s);
}

int qcow2_shadow_co_look(struct qcow2_shadow *s, uint64_t cluster, const uint8_t **block)
{
    uint64_t index = cluster >> s->img->rb_bits;
    int ret = co_load(s, index);

    if (ret == 0) {
        *block = s->blocks[index]->data;
    }
    return ret;
}

int qcow2_shadow_co_relocate(struct qcow2_shadow *s, uint64_t index)
{
    int ret;

    if (s->blocks[index] == NULL || s->blocks[index]->home == 0) {
        return 0;
    }
    ret = co_load(s, index);
    if (ret == 0) {
        s->blocks[index]->dirty = true;
        ret = qcow2_shadow_co_move(s, s->blocks[index]);
    }
    return ret;
}

int qcow2_shadow_co_get(struct qcow2_shadow *s, uint64_t cluster, uint64_t *out)
{
    const uint8_t *block;
    int ret = qcow2_shadow_co_look(s, cluster, &block);

    if (ret == 0) {
        *out = qcow2_refcount_get(block, s->img->header.refcount_order,
                                  cluster & ((UINT64_C(1) << s->img->rb_bits) - 1));
    }
    return ret;
}

int qcow2_shadow_co_set(struct qcow2_shadow *s, uint64_t cluster, uint64_t value)
{
    uint64_t index = cluster >> s->img->rb_bits;
    int ret = co_load(s, index);

    if (ret == 0) {
        qcow2_refcount_set(s->blocks[index]->data, s->img->header.refcount_order,
                           cluster & ((UINT64_C(1) << s->img->rb_bits) - 1), value);
        s->blocks[index]->dirty = true;
        s->blocks[index]->freed |= value == 0;
    }
    return ret;
}

/* What came of changing some refcounts. */
struct outcome {
    bool bad; /* one of them could not be changed */
    bool zero;
};

/* 16 bits, what nearly all images have: a loop that the compiler can do several at a time. */
static struct outcome change_16(uint8_t *data, uint64_t i, uint64_t n, bool up)
{
    uint16_t *refs = (uint16_t *)(void *)data + i;
    uint16_t step = up ? 1 : UINT16_MAX, limit = up ? UINT16_MAX : 0;
    unsigned bad = 0, zero = 0;

    for (uint64_t k = 0; k < n; k++) {
        uint16_t v = be16toh(refs[k]);

        bad |= v == limit;
        v = (uint16_t)(v + step);
        zero |= v == 0;
        refs[k] = htobe16(v);
    }
    return (struct outcome){.bad = bad != 0, .zero = zero != 0};
}

static struct outcome change(uint8_t *data, unsigned order, uint64_t i, uint64_t n, bool up)
{
    uint64_t limit = up ? UINT64_MAX >> (64 - (1u << order)) : 0;
    struct outcome out = {0};

    for (uint64_t k = i; k < i + n; k++) {
        uint64_t v = qcow2_refcount_get(data, order, k);

        if (v == limit) {
            out.bad = true;
            break;
        }
        v += up ? 1 : UINT64_MAX;
        qcow2_refcount_set(data, order, k, v);
        out.zero |= v == 0;
    }
    return out;
}

int qcow2_shadow_co_add(struct qcow2_shadow *s, uint64_t first, uint64_t count, bool up)
{
    uint64_t per_block = UINT64_C(1) << s->img->rb_bits;
    unsigned order = s->img->header.refcount_order;

    while (count > 0) {
        uint64_t index = first >> s->img->rb_bits, i = first & (per_block - 1);
        uint64_t n = qv_min_u64(count, per_block - i);
        struct qcow2_shadow_block *b;
        struct outcome out;
        int ret = co_load(s, index);

        if (ret != 0) {
            return ret;
        }
        b = s->blocks[index];
        out = order == 4 ? change_16(b->data, i, n, up) : change(b->data, order, i, n, up);
        b->dirty = true;
        b->freed |= out.zero;
        if (out.bad) {
            return up ? -ERANGE : -EUCLEAN;
        }
        first += n;
        count -= n;
    }
    return 0;
}
