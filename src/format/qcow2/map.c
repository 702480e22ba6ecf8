/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From guest offsets to host offsets, reading metadata in memory only. Lock-free: the caller is
 * inside the guard, which keeps map, tables and the metadata set alive.
 * Source: QEMU docs/interop/qcow2.rst, "Cluster mapping".
 */
#include <errno.h>

#include "format/qcow2/qcow2_int.h"

enum qcow2_kind qcow2_entry_kind(struct qcow2_image *img, uint64_t entry)
{
    uint64_t host = entry & QCOW2_L2_OFFSET_MASK;
    uint64_t reserved = QCOW2_L2_RESERVED_MASK;

    if ((entry & QCOW2_OFLAG_COMPRESSED) != 0) {
        uint64_t offset, len;

        qcow2_compressed_range(img->cluster_bits, entry, &offset, &len);
        return offset < img->cluster_size ||
                       offset >= atomic_load_explicit(&img->file_end, memory_order_relaxed)
                   ? QCOW2_BAD
                   : QCOW2_COMPRESSED;
    }
    if (img->header.version < 3) {
        reserved |= QCOW2_OFLAG_ZERO;
    }
    if ((entry & reserved) != 0 || !qv_is_aligned(host, img->cluster_size)) {
        return QCOW2_BAD;
    }
    if (host == 0) {
        return (entry & QCOW2_OFLAG_ZERO) != 0 ? QCOW2_ZERO_PLAIN : QCOW2_UNALLOCATED;
    }
    if (host >= atomic_load_explicit(&img->file_end, memory_order_relaxed)) {
        return QCOW2_BAD;
    }
    return (entry & QCOW2_OFLAG_ZERO) != 0 ? QCOW2_ZERO_ALLOC : QCOW2_NORMAL;
}

bool qcow2_backing_shows(struct qcow2_image *img, uint64_t offset)
{
    return img->node.backing != NULL &&
           offset < atomic_load_explicit(&img->node.backing->size, memory_order_relaxed);
}

bool qcow2_host_is_meta(struct qcow2_image *img, uint64_t host, uint64_t len)
{
    uint64_t last = (host + len - 1) >> img->cluster_bits;

    for (uint64_t c = host >> img->cluster_bits; c <= last; c++) {
        if (qcow2_metaset_has(&img->meta, c)) {
            return true;
        }
    }
    return false;
}

static void extent_unallocated(struct qcow2_image *img, uint64_t offset, uint64_t len,
                               struct qv_extent *out)
{
    *out = (struct qv_extent){.kind = QV_EXTENT_HOLE, .len = len};
    if (qcow2_backing_shows(img, offset)) {
        out->kind = QV_EXTENT_BACKING;
        out->len = qv_min_u64(len, atomic_load(&img->node.backing->size) - offset);
    }
}

/* A cluster of data; the last one of a file may be cut short, which reads as zeros. */
static void extent_data(struct qcow2_image *img, uint64_t host, uint64_t len, struct qv_extent *out)
{
    uint64_t end = atomic_load_explicit(&img->file_end, memory_order_relaxed);

    if (host >= end) {
        *out = (struct qv_extent){.kind = QV_EXTENT_ZERO, .len = len};
        return;
    }
    *out = (struct qv_extent){.kind = QV_EXTENT_DATA,
                              .len = qv_min_u64(len, end - host),
                              .host = host,
                              .file = img->node.file};
}

/* How many entries from @i on, at most @max, go on where @entry, number @i, begins: same kind, and
 * adjacent space where that matters. */
static uint64_t run_length(struct qcow2_image *img, struct qcow2_table *table, uint64_t i,
                           uint64_t entry, uint64_t max, uint64_t flags_mask)
{
    enum qcow2_kind kind = qcow2_entry_kind(img, entry);
    uint64_t step = kind == QCOW2_NORMAL ? img->cluster_size : 0;
    uint64_t n = 1;

    if (kind == QCOW2_COMPRESSED) {
        return 1;
    }
    while (n < max) {
        uint64_t next = qcow2_entry(table->entries, i + n);

        if (qcow2_entry_kind(img, next) != kind) {
            break;
        }
        if (step != 0 && ((next ^ (entry + n * step)) & (QCOW2_L2_OFFSET_MASK | flags_mask)) != 0) {
            break;
        }
        n++;
    }
    return n;
}

static uint64_t clusters_spanned(const struct qcow2_image *img, uint64_t offset, uint64_t len)
{
    uint64_t in = offset & (img->cluster_size - 1);

    return (in + len + img->cluster_size - 1) >> img->cluster_bits;
}

static int extent_read(struct qcow2_image *img, struct qcow2_table *table, uint64_t offset,
                       uint64_t len, struct qv_extent *out)
{
    uint64_t i = qcow2_l2_index(img, offset);
    uint64_t in = offset & (img->cluster_size - 1);
    uint64_t max = qv_min_u64(clusters_spanned(img, offset, len), img->l2_entries - i);
    uint64_t entry = qcow2_entry(table->entries, i);
    enum qcow2_kind kind = qcow2_entry_kind(img, entry);

    if (kind == QCOW2_BAD) {
        return -EAGAIN; /* co_load says why */
    }
    len = qv_min_u64(len, (run_length(img, table, i, entry, max, 0) << img->cluster_bits) - in);
    switch (kind) {
    case QCOW2_UNALLOCATED:
        extent_unallocated(img, offset, len, out);
        break;
    case QCOW2_NORMAL:
        extent_data(img, (entry & QCOW2_L2_OFFSET_MASK) + in, len, out);
        break;
    case QCOW2_COMPRESSED:
        *out = (struct qv_extent){.kind = QV_EXTENT_SPECIAL, .len = len, .cookie = entry};
        break;
    case QCOW2_ZERO_PLAIN:
    case QCOW2_ZERO_ALLOC:
    case QCOW2_BAD:
        *out = (struct qv_extent){.kind = QV_EXTENT_ZERO, .len = len};
        break;
    }
    return 0;
}

static int extent_write(struct qcow2_image *img, struct qcow2_table *table, uint64_t offset,
                        uint64_t len, struct qv_extent *out)
{
    uint64_t i = qcow2_l2_index(img, offset);
    uint64_t in = offset & (img->cluster_size - 1);
    uint64_t max = qv_min_u64(clusters_spanned(img, offset, len), img->l2_entries - i);
    uint64_t entry = qcow2_entry(table->entries, i);
    uint64_t n, host;

    if (!table->writable || (entry & QCOW2_OFLAG_COPIED) == 0 ||
        qcow2_entry_kind(img, entry) != QCOW2_NORMAL ||
        atomic_load_explicit(&img->corrupt, memory_order_relaxed)) {
        return -EAGAIN;
    }
    n = run_length(img, table, i, entry, max, QCOW2_OFLAG_COPIED);
    len = qv_min_u64(len, (n << img->cluster_bits) - in);
    host = (entry & QCOW2_L2_OFFSET_MASK) + in;
    if (qcow2_host_is_meta(img, host, len) ||
        !qv_range_inside(host, len, atomic_load_explicit(&img->file_end, memory_order_relaxed))) {
        return -EAGAIN; /* co_alloc finds the same and marks the image corrupt */
    }
    *out = (struct qv_extent){
        .kind = QV_EXTENT_DATA, .len = len, .host = host, .file = img->node.file};
    return 0;
}

int qcow2_lookup(struct qv_node *node, uint64_t offset, uint64_t len, bool write,
                 struct qv_extent *out)
{
    struct qcow2_image *img = qcow2_image_of(node);
    struct qcow2_map *map = qcow2_map_get(img);
    uint64_t l1_index = qcow2_l1_index(img, offset);
    struct qcow2_table *table;

    if (l1_index >= map->l1_entries) {
        return -EAGAIN;
    }
    table = atomic_load_explicit(&map->tables[l1_index], memory_order_acquire);
    if (table == NULL) {
        uint64_t span = UINT64_C(1) << (img->cluster_bits + img->l2_bits);

        if (write || qcow2_entry(map->l1, l1_index) != 0) {
            return -EAGAIN;
        }
        extent_unallocated(img, offset, qv_min_u64(len, span - (offset & (span - 1))), out);
        return 0;
    }
    if (atomic_load_explicit(&table->touched, memory_order_relaxed) == 0) {
        atomic_store_explicit(&table->touched, 1, memory_order_relaxed);
    }
    return write ? extent_write(img, table, offset, len, out)
                 : extent_read(img, table, offset, len, out);
}

int qcow2_co_load(struct qv_node *node, uint64_t offset)
{
    struct qcow2_image *img = qcow2_image_of(node);
    struct qcow2_table *table;
    int ret = qcow2_co_table_get(img, qcow2_l1_index(img, offset), &table);

    if (ret != 0 || table == NULL) {
        return ret;
    }
    if (qcow2_entry_kind(img, qcow2_entry(table->entries, qcow2_l2_index(img, offset))) ==
        QCOW2_BAD) {
        ret = qcow2_co_corrupt(img, table->offset + qcow2_l2_index(img, offset) * sizeof(uint64_t),
                               "invalid L2 entry");
    }
    qcow2_table_unpin(img, table);
    return ret;
}

int qcow2_co_status(struct qv_node *node, uint64_t offset, uint64_t len, struct qv_extent *out)
{
    int ret;

    do {
        uint32_t ticket = qv_guard_enter(node->guard);

        ret = qcow2_lookup(node, offset, len, false, out);
        qv_guard_exit(node->guard, ticket);
    } while (ret == -EAGAIN && (ret = qcow2_co_load(node, offset)) == 0);
    return ret;
}
