/* SPDX-License-Identifier: Apache-2.0 */
/* See bitmap.h. */
#include "format/qcow2/bitmap_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "format/qcow2/qcow2_int.h"
#include "format/qcow2/tables.h"

#define MEMORY_MAX  (64 * QV_MIB) /* of the bitmaps of one image */
#define TABLE_CHUNK (64 * QV_KIB) /* bytes of a table read at once */

void qcow2_bitmaps_free(struct qcow2_bitmaps *bitmaps)
{
    for (uint32_t i = 0; bitmaps != NULL && i < bitmaps->n; i++) {
        struct qcow2_bitmap *b = &bitmaps->v[i];

        g_free(b->table);
        free((void *)(uintptr_t)b->bits);
        g_free((void *)(uintptr_t)b->changed);
    }
    g_free(bitmaps);
}

/* ---- lengths ---- */

static uint64_t bits_for(const struct qcow2_bitmap *b, uint64_t size)
{
    return qv_div_up(size, UINT64_C(1) << b->granularity_bits);
}

static uint64_t entries_for(const struct qcow2_image *img, const struct qcow2_bitmap *b,
                            uint64_t size)
{
    return qv_div_up(qv_div_up(bits_for(b, size), 8), img->cluster_size);
}

/* ---- loading ---- */

static void add_meta(struct qcow2_image *img, uint64_t offset, uint64_t bytes)
{
    for (uint64_t c = offset >> img->cluster_bits;
         bytes > 0 && c <= (offset + bytes - 1) >> img->cluster_bits; c++) {
        free(qcow2_metaset_add(&img->meta, c)); /* nobody reads the set yet */
    }
}

static bool table_is_sound(const struct qcow2_image *img, const struct qcow2_bitmap *b)
{
    return qv_is_aligned(b->table_offset, img->cluster_size) &&
           (b->table_size == 0 || b->table_offset != 0) &&
           qv_range_inside(b->table_offset, (uint64_t)b->table_size * sizeof(uint64_t),
                           img->file_size_at_open);
}

static int take_entry(struct qcow2_image *img, const uint8_t *at, uint64_t host, uint64_t len,
                      struct qcow2_bitmap *b, uint32_t *stored)
{
    uint64_t size = img->header.size;
    struct qcow2_bitmap_entry e;
    struct qcow2_bitmap_disk d;

    if (qcow2_bitmap_parse(at, len, &e) != 0) {
        return -EUCLEAN;
    }
    memcpy(&d, at, sizeof(d));
    b->size_at = host + offsetof(struct qcow2_bitmap_disk, table_size);
    b->table_offset = e.table_offset;
    b->table_size = e.table_size;
    b->flags = qv_be32_get(d.flags);
    b->granularity_bits = d.granularity_bits;
    b->nbits = bits_for(b, size);
    b->entries = entries_for(img, b, size);
    b->usable =
        (b->flags & QCOW2_BITMAP_FLAG_IN_USE) == 0 && b->table_size == b->entries &&
        (qv_be32_get(d.extra_size) == 0 || (b->flags & QCOW2_BITMAP_FLAG_EXTRA_COMPATIBLE) != 0);
    *stored = e.stored;
    return table_is_sound(img, b) ? 0 : -EUCLEAN;
}

/* The entries of the directory. -EUCLEAN: it breaks the format. */
static int co_read_directory(struct qcow2_image *img, struct qcow2_bitmaps *out)
{
    const struct qcow2_header *h = &img->header;
    uint64_t len = h->bitmap_directory_size, pos = 0, tables = 0;
    QV_CLEANUP(qv_freep) uint8_t *dir = NULL;
    int ret;

    if (!qv_range_inside(h->bitmap_directory_offset, len, img->file_size_at_open)) {
        return -EUCLEAN;
    }
    dir = qv_node_mem_alloc(qv_max_u64(len, 1));
    ret = len > 0 ? qv_co_pread(img->node.file, h->bitmap_directory_offset, dir, len) : 0;
    for (uint32_t i = 0; i < out->n && ret == 0; i++) {
        uint32_t stored = 0;

        ret = take_entry(img, dir + pos, h->bitmap_directory_offset + pos, len - pos, &out->v[i],
                         &stored);
        pos += stored;
        /* No two tables share space, so all of them are no longer than the file. */
        tables += (uint64_t)out->v[i].table_size * sizeof(uint64_t);
        ret = ret == 0 && tables > img->file_size_at_open ? -EUCLEAN : ret;
    }
    return ret != 0 ? ret : pos == len ? 0 : -EUCLEAN;
}

static int take_table_entry(struct qcow2_image *img, uint64_t entry)
{
    uint64_t host = entry & QCOW2_BITMAP_ENTRY_OFFSET_MASK;

    if ((entry & QCOW2_BITMAP_ENTRY_RESERVED_MASK) != 0 ||
        (host != 0 && (entry & QCOW2_BITMAP_ENTRY_ALL_ONES) != 0) ||
        !qv_is_aligned(host, img->cluster_size) || host >= img->file_size_at_open) {
        return -EUCLEAN;
    }
    if (host != 0) {
        add_meta(img, host, img->cluster_size);
    }
    return 0;
}

/* The bits behind table entry @i. */
static int co_read_bits(struct qcow2_image *img, struct qcow2_bitmap *b, uint64_t i)
{
    uint64_t host = b->table[i] & QCOW2_BITMAP_ENTRY_OFFSET_MASK;
    uint8_t *bits = (uint8_t *)(uintptr_t)b->bits + i * img->cluster_size;

    if (host != 0) {
        return qv_co_pread(img->node.file, host, bits,
                           qv_min_u64(img->cluster_size, img->file_size_at_open - host));
    }
    if (b->table[i] == QCOW2_BITMAP_ENTRY_ALL_ONES) {
        memset(bits, 0xff, img->cluster_size);
    }
    return 0;
}

static void make_bits(struct qcow2_image *img, uint64_t entries, _Atomic uint8_t **bits)
{
    uint8_t *mem = qv_node_mem_alloc(qv_max_u64(entries * img->cluster_size, 1));

    memset(mem, 0, entries * img->cluster_size);
    *bits = (_Atomic uint8_t *)(uintptr_t)mem;
}

/* Reads a table, for its clusters; and what is to be followed. */
static int co_read_table(struct qcow2_image *img, struct qcow2_bitmap *b, uint8_t *buf)
{
    uint64_t bytes = (uint64_t)b->table_size * sizeof(uint64_t);
    int ret = 0;

    add_meta(img, b->table_offset, bytes);
    if (b->tracked) {
        b->table = g_new0(uint64_t, b->entries + 1);
        b->changed = (_Atomic uint8_t *)(uintptr_t)g_malloc0(b->entries + 1);
        make_bits(img, b->entries, &b->bits);
    }
    for (uint64_t done = 0; done < bytes && ret == 0; done += TABLE_CHUNK) {
        uint64_t n = qv_min_u64(TABLE_CHUNK, bytes - done) / sizeof(uint64_t);
        uint64_t first = done / sizeof(uint64_t);

        ret = qv_co_pread(img->node.file, b->table_offset + done, buf, n * sizeof(uint64_t));
        for (uint64_t i = 0; i < n && ret == 0; i++) {
            qv_be64 entry;

            memcpy(&entry, buf + i * sizeof(entry), sizeof(entry));
            ret = take_table_entry(img, qv_be64_get(entry));
            if (ret == 0 && b->tracked) {
                b->table[first + i] = qv_be64_get(entry);
                ret = co_read_bits(img, b, first + i);
            }
        }
    }
    return ret;
}

static int co_load(struct qcow2_image *img, struct qcow2_bitmaps *out)
{
    QV_CLEANUP(qv_freep) uint8_t *buf = qv_node_mem_alloc(TABLE_CHUNK);
    uint64_t memory = 0;
    int ret = co_read_directory(img, out);

    for (uint32_t i = 0; i < out->n && ret == 0; i++) {
        struct qcow2_bitmap *b = &out->v[i];
        uint64_t need = b->entries * img->cluster_size; /* entries: as in the table, so bounded */

        if (b->usable && (b->flags & QCOW2_BITMAP_FLAG_AUTO) != 0) {
            b->tracked = need <= MEMORY_MAX - memory;
            memory += b->tracked ? need : 0;
            out->any_tracked |= b->tracked;
            if (!b->tracked) {
                qv_warn("%s: a dirty bitmap is too large to be kept up to date; it becomes void",
                        img->node.name);
            }
        }
        ret = co_read_table(img, b, buf);
    }
    return ret;
}

int qcow2_co_bitmaps_load(struct qcow2_image *img)
{
    const struct qcow2_header *h = &img->header;
    struct qcow2_bitmaps *bitmaps;
    int ret;

    if (!h->has_bitmaps) {
        return 0;
    }
    bitmaps = g_malloc0(sizeof(*bitmaps) + h->nb_bitmaps * sizeof(bitmaps->v[0]));
    bitmaps->n = h->nb_bitmaps;
    ret = co_load(img, bitmaps);
    if (ret == 0) {
        add_meta(img, h->bitmap_directory_offset, h->bitmap_directory_size);
        img->bitmaps = bitmaps;
        return 0;
    }
    qcow2_bitmaps_free(bitmaps);
    if (ret == -EUCLEAN) {
        qv_warn("%s: its dirty bitmaps break the format; they become void", img->node.name);
        ret = 0;
    }
    return ret;
}

/* ---- marks in the file ---- */

static int co_put_flags(struct qcow2_image *img, const struct qcow2_bitmap *b, uint32_t table_size,
                        uint32_t flags)
{
    qv_be32 both[2] = {qv_be32_make(table_size), qv_be32_make(flags)};

    /* Entries begin at multiples of 8, so these 8 bytes lie in one sector: all or nothing. */
    return qv_co_pwrite(img->node.file, b->size_at, both, sizeof(both));
}

/* Marks those in use that @all or their flags say. */
static int co_mark_used(struct qcow2_image *img, bool all)
{
    struct qcow2_bitmaps *bitmaps = img->bitmaps;
    bool any = false;
    int ret = 0;

    for (uint32_t i = 0; i < bitmaps->n && ret == 0; i++) {
        struct qcow2_bitmap *b = &bitmaps->v[i];

        if (b->marked || (b->flags & QCOW2_BITMAP_FLAG_IN_USE) != 0 ||
            (!all && (b->flags & QCOW2_BITMAP_FLAG_AUTO) == 0)) {
            continue;
        }
        ret = co_put_flags(img, b, b->table_size, b->flags | QCOW2_BITMAP_FLAG_IN_USE);
        b->marked = any = true;
        b->stale |= !b->usable || ((b->flags & QCOW2_BITMAP_FLAG_AUTO) != 0 && !b->tracked);
    }
    return ret != 0 || !any ? ret : qcow2_co_sync(img);
}

int qcow2_co_bitmaps_begin(struct qcow2_image *img)
{
    return img->bitmaps != NULL ? co_mark_used(img, false) : 0;
}

/* ---- following the disk ---- */

static void mark_bits(const struct qcow2_image *img, struct qcow2_bitmap *b, uint64_t first,
                      uint64_t last)
{
    for (uint64_t byte = first / 8; byte <= last / 8; byte++) {
        unsigned mask = 0xff;

        if (byte == first / 8) {
            mask &= 0xffu << first % 8;
        }
        if (byte == last / 8) {
            mask &= 0xffu >> (7 - last % 8);
        }
        if ((atomic_load_explicit(&b->bits[byte], memory_order_relaxed) & mask) != mask) {
            atomic_fetch_or_explicit(&b->bits[byte], (uint8_t)mask, memory_order_relaxed);
            atomic_store_explicit(&b->changed[byte >> img->cluster_bits], 1, memory_order_relaxed);
        }
    }
}

void qcow2_bitmaps_mark(struct qcow2_image *img, uint64_t offset, uint64_t len)
{
    struct qcow2_bitmaps *bitmaps = img->bitmaps;

    if (bitmaps == NULL || !bitmaps->any_tracked || len == 0) {
        return;
    }
    for (uint32_t i = 0; i < bitmaps->n; i++) {
        struct qcow2_bitmap *b = &bitmaps->v[i];
        uint64_t first = offset >> b->granularity_bits;

        if (b->tracked && first < b->nbits) {
            mark_bits(img, b, first,
                      qv_min_u64((offset + len - 1) >> b->granularity_bits, b->nbits - 1));
        }
    }
}

/* ---- other sizes ---- */

/* Room in memory and in the table for a longer one. The gate is closed. */
static void lengthen(struct qcow2_image *img, struct qcow2_bitmap *b, uint64_t size)
{
    uint64_t entries = entries_for(img, b, size);
    uint64_t room = qv_align_up((uint64_t)b->table_size * sizeof(uint64_t), img->cluster_size);
    _Atomic uint8_t *bits;

    if (entries * sizeof(uint64_t) > room || entries * img->cluster_size > MEMORY_MAX) {
        b->stale = true;
        return;
    }
    if (b->tracked && entries > b->entries) {
        make_bits(img, entries, &bits);
        memcpy((void *)(uintptr_t)bits, (const void *)(uintptr_t)b->bits,
               b->entries * img->cluster_size);
        free((void *)(uintptr_t)b->bits);
        b->bits = bits;
        b->table = g_renew(uint64_t, b->table, entries + 1);
        b->changed = g_realloc((void *)(uintptr_t)b->changed, entries + 1);
        for (uint64_t i = b->entries; i < entries; i++) {
            b->table[i] = 0;
            atomic_init(&b->changed[i], 1); /* written, so that the table's entry is */
        }
    }
    b->entries = entries;
    b->nbits = bits_for(b, size);
}

int qcow2_co_bitmaps_resize(struct qcow2_image *img, uint64_t size)
{
    uint64_t old = atomic_load(&img->node.size);
    int ret;

    if (img->bitmaps == NULL) {
        return 0;
    }
    /* All of them: the table of each has the length that the disk's size asks for. */
    ret = co_mark_used(img, true);
    if (ret != 0) {
        return ret;
    }
    qv_gate_co_close(img->node.gate, img->node.guard);
    for (uint32_t i = 0; i < img->bitmaps->n; i++) {
        if (img->bitmaps->v[i].usable && !img->bitmaps->v[i].stale) {
            lengthen(img, &img->bitmaps->v[i], size);
        }
    }
    qv_gate_open(img->node.gate);
    qcow2_bitmaps_mark(img, old, size - old);
    return 0;
}

int qcow2_co_bitmaps_restore(struct qcow2_image *img, uint64_t size)
{
    uint64_t old = atomic_load(&img->node.size);
    int ret;

    if (img->bitmaps == NULL) {
        return 0;
    }
    qcow2_bitmaps_mark(img, 0, old);
    if (size == old) {
        return 0;
    }
    ret = co_mark_used(img, true);
    for (uint32_t i = 0; i < img->bitmaps->n; i++) {
        img->bitmaps->v[i].stale = true;
    }
    return ret;
}

/* ---- writing back ---- */

/* A cluster that nothing refers to, for bits. */
static int co_take_cluster(struct qcow2_image *img, uint64_t *host)
{
    struct qcow2_run run;
    int ret = 0;

    for (;;) {
        bool got;

        pthread_mutex_lock(&img->lock);
        got = qcow2_run_take(img, 1, &run);
        pthread_mutex_unlock(&img->lock);
        if (got) {
            *host = run.first << img->cluster_bits;
            return 0;
        }
        ret = qcow2_co_reserve(img);
        if (ret != 0) {
            return ret;
        }
    }
}

/* The bits that have changed. While a bitmap is marked what stands in its clusters counts for
 * nothing, so they are written in place. */
static int co_store_bits(struct qcow2_image *img, struct qcow2_bitmap *b)
{
    int ret = 0;

    for (uint64_t i = 0; i < b->entries && ret == 0; i++) {
        uint64_t host = b->table[i] & QCOW2_BITMAP_ENTRY_OFFSET_MASK;
        const uint8_t *bits = (const uint8_t *)(uintptr_t)b->bits + i * img->cluster_size;

        if (atomic_load(&b->changed[i]) == 0) {
            continue;
        }
        if (host == 0 && qv_is_zero(bits, img->cluster_size)) {
            continue; /* no bit yet: its entry says so */
        }
        if (host == 0) {
            ret = co_take_cluster(img, &host);
        }
        if (ret == 0) {
            b->table[i] = host;
            ret = qv_co_pwrite(img->node.file, host, bits, img->cluster_size);
        }
    }
    return ret;
}

/* The table's sectors that have changed, or that are new. */
static int co_store_table(struct qcow2_image *img, const struct qcow2_bitmap *b)
{
    const uint64_t per_sector = QV_SECTOR_SIZE / sizeof(qv_be64);
    int ret = 0;

    for (uint64_t first = 0; first < b->entries && ret == 0; first += per_sector) {
        qv_be64 sector[QV_SECTOR_SIZE / sizeof(qv_be64)] = {0};
        bool any = false;

        for (uint64_t i = first; i < qv_min_u64(first + per_sector, b->entries); i++) {
            sector[i - first] = qv_be64_make(b->table[i]);
            any |= atomic_load(&b->changed[i]) != 0;
        }
        if (any) {
            ret = qv_co_pwrite(img->node.file, b->table_offset + first * sizeof(qv_be64), sector,
                               sizeof(sector));
        }
    }
    return ret;
}

/* A bitmap that does not follow the disk: what is new of its table says that no bit is set. */
static int co_stretch_table(struct qcow2_image *img, const struct qcow2_bitmap *b)
{
    uint64_t from = (uint64_t)b->table_size * sizeof(uint64_t);
    uint64_t to = b->entries * sizeof(uint64_t);

    return to > from ? qv_co_zero(img->node.file, b->table_offset + from, to - from, 0) : 0;
}

typedef int (*step_fn)(struct qcow2_image *img, struct qcow2_bitmap *b);

static int co_step_bits(struct qcow2_image *img, struct qcow2_bitmap *b)
{
    return b->tracked ? co_store_bits(img, b) : 0;
}

static int co_step_table(struct qcow2_image *img, struct qcow2_bitmap *b)
{
    return b->tracked ? co_store_table(img, b) : co_stretch_table(img, b);
}

static int co_step_flags(struct qcow2_image *img, struct qcow2_bitmap *b)
{
    return co_put_flags(img, b, (uint32_t)b->entries, b->flags);
}

/* One step for each bitmap that can be written back, then a sync: each step must be durable before
 * the next. */
static int co_each(struct qcow2_image *img, step_fn step)
{
    bool any = false;

    for (uint32_t i = 0; i < img->bitmaps->n; i++) {
        struct qcow2_bitmap *b = &img->bitmaps->v[i];
        int ret;

        if (!b->marked || b->stale) {
            continue;
        }
        ret = step(img, b);
        if (ret != 0) {
            qv_warn("%s: a dirty bitmap could not be written and becomes void: %s", img->node.name,
                    qv_strerror(ret));
        }
        b->stale = ret != 0;
        any = true;
    }
    return any ? qcow2_co_sync(img) : 0;
}

void qcow2_co_bitmaps_store(struct qcow2_image *img)
{
    uint64_t size = atomic_load(&img->node.size);
    int ret;

    if (img->bitmaps == NULL || atomic_load(&img->corrupt)) {
        return;
    }
    for (uint32_t i = 0; i < img->bitmaps->n; i++) {
        struct qcow2_bitmap *b = &img->bitmaps->v[i];

        b->stale |= b->entries != entries_for(img, b, size);
    }
    ret = co_each(img, co_step_bits);
    ret = ret != 0 ? ret : co_each(img, co_step_table);
    ret = ret != 0 ? ret : co_each(img, co_step_flags);
    if (ret != 0) {
        qv_warn("%s: its dirty bitmaps could not be written and become void: %s", img->node.name,
                qv_strerror(ret));
    }
}
