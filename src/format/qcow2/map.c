/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From guest offsets to host offsets, reading metadata in memory only. Lock-free: the caller is
 * inside the guard, which keeps map, tables and the metadata set alive.
 * Source: QEMU docs/interop/qcow2.rst, "Cluster mapping".
 */
#include <errno.h>

#include "format/qcow2/qcow2_int.h"

#define SEQ_TRIES 64u

/* Bits that must be clear in a standard descriptor. */
static uint64_t reserved_bits(const struct qcow2_image *img)
{
    bool zero_flag = img->header.version >= 3 && img->sub_bits == 0;

    return QCOW2_L2_RESERVED_MASK | (zero_flag ? 0 : QCOW2_OFLAG_ZERO);
}

static enum qcow2_kind compressed_kind(struct qcow2_image *img, uint64_t entry)
{
    uint64_t offset, len;

    qcow2_compressed_range(img->cluster_bits, entry, &offset, &len);
    /* Sealed: would be content that nobody authenticates. */
    return img->seal != NULL || img->node.data_file != NULL || offset < img->cluster_size ||
                   offset >= atomic_load_explicit(&img->file_end, memory_order_relaxed)
               ? QCOW2_BAD
               : QCOW2_COMPRESSED;
}

enum qcow2_kind qcow2_entry_kind(struct qcow2_image *img, uint64_t entry)
{
    uint64_t host = entry & QCOW2_L2_OFFSET_MASK;
    bool zero = (entry & QCOW2_OFLAG_ZERO) != 0;
    bool space = host != 0;

    if ((entry & QCOW2_OFLAG_COMPRESSED) != 0) {
        return compressed_kind(img, entry);
    }
    if ((entry & reserved_bits(img)) != 0 || !qv_is_aligned(host, img->cluster_size)) {
        return QCOW2_BAD;
    }
    if (img->node.data_file != NULL) {
        /* Offset 0 is a place like any other there; this flag tells. */
        space = space || (entry & QCOW2_OFLAG_COPIED) != 0;
    } else if (host >= atomic_load_explicit(&img->file_end, memory_order_relaxed)) {
        return QCOW2_BAD;
    }
    if (!space) {
        return zero ? QCOW2_ZERO_PLAIN : QCOW2_UNALLOCATED;
    }
    return zero ? QCOW2_ZERO_ALLOC : QCOW2_NORMAL;
}

/* What a cluster is as a whole, and whether what the entry says is sound. */
static enum qcow2_kind cluster_kind(struct qcow2_image *img, uint64_t cluster, struct qcow2_l2e e)
{
    enum qcow2_kind kind = qcow2_entry_kind(img, e.desc);
    uint32_t alloc = (uint32_t)e.bitmap, zero = (uint32_t)(e.bitmap >> 32);

    if (img->node.data_file != NULL && (kind == QCOW2_NORMAL || kind == QCOW2_ZERO_ALLOC) &&
        (e.desc & QCOW2_L2_OFFSET_MASK) != cluster << img->cluster_bits) {
        return QCOW2_BAD; /* in a data file every cluster has its own place */
    }
    if (kind != QCOW2_COMPRESSED &&
        ((alloc & zero) != 0 || (kind == QCOW2_UNALLOCATED && alloc != 0))) {
        return QCOW2_BAD;
    }
    return kind;
}

/* The kind of sub-cluster @sub, and for how many sub-clusters from there to the cluster's end at
 * most it goes on. */
static enum qcow2_kind sub_run(struct qcow2_image *img, uint64_t cluster, struct qcow2_l2e e,
                               unsigned sub, unsigned *n)
{
    enum qcow2_kind kind = cluster_kind(img, cluster, e);
    uint32_t alloc = (uint32_t)e.bitmap, zero = (uint32_t)(e.bitmap >> 32), same;

    *n = (1u << img->sub_bits) - sub;
    if (img->sub_bits == 0 || kind == QCOW2_COMPRESSED || kind == QCOW2_BAD) {
        return kind;
    }
    if ((zero >> sub & 1) != 0) {
        same = zero;
        kind = kind == QCOW2_NORMAL ? QCOW2_ZERO_ALLOC : QCOW2_ZERO_PLAIN;
    } else if ((alloc >> sub & 1) != 0) {
        same = alloc;
    } else {
        same = ~(alloc | zero);
        kind = QCOW2_UNALLOCATED;
    }
    /* Behind the bits of the bitmap there are zeros, so that the run ends there at the latest. */
    *n = MIN(*n, (unsigned)__builtin_ctzll(~((uint64_t)same >> sub)));
    return kind;
}

enum qcow2_kind qcow2_sub_kind(struct qcow2_image *img, uint64_t cluster, struct qcow2_l2e e,
                               unsigned sub)
{
    unsigned n;

    return sub_run(img, cluster, e, sub, &n);
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
    uint64_t end = qcow2_data_end(img);

    if (host >= end) {
        *out = (struct qv_extent){.kind = QV_EXTENT_ZERO, .len = len};
        return;
    }
    *out = (struct qv_extent){.kind = QV_EXTENT_DATA,
                              .len = qv_min_u64(len, end - host),
                              .host = host,
                              .file = qcow2_data_node(img)};
}

/* A run of sub-clusters of one kind in one L2 table; of clusters, without extended L2. */
struct run {
    enum qcow2_kind kind;
    struct qcow2_l2e first; /* the entry that it begins in */
    uint64_t len;           /* bytes from the offset asked for */
};

/* The run from guest @offset on, at most @len bytes; where it has space, adjacent there, and alike
 * in the flags of @flags_mask. */
static void find_run(struct qcow2_image *img, struct qcow2_table *table, uint64_t offset,
                     uint64_t len, uint64_t flags_mask, struct run *out)
{
    uint64_t i = qcow2_l2_index(img, offset), cluster = offset >> img->cluster_bits;
    uint64_t in = offset & (img->cluster_size - 1), step, have;
    unsigned unit_bits = qcow2_unit_bits(img), sub = (unsigned)(in >> unit_bits), n;

    out->first = qcow2_l2_get(img, table, i);
    out->kind = sub_run(img, cluster, out->first, sub, &n);
    step = out->kind == QCOW2_NORMAL ? img->cluster_size : 0;
    have = ((uint64_t)(sub + n) << unit_bits) - in;
    for (uint64_t k = 1; have < len && sub + n == 1u << img->sub_bits && i + k < img->l2_entries &&
                         out->kind != QCOW2_COMPRESSED;
         k++) {
        struct qcow2_l2e e = qcow2_l2_get(img, table, i + k);

        sub = 0;
        if (sub_run(img, cluster + k, e, 0, &n) != out->kind ||
            (step != 0 && ((e.desc ^ (out->first.desc + k * step)) &
                           (QCOW2_L2_OFFSET_MASK | flags_mask)) != 0)) {
            break;
        }
        have += (uint64_t)n << unit_bits;
    }
    out->len = qv_min_u64(len, have);
}

static int extent_read(struct qcow2_image *img, struct qcow2_table *table, uint64_t offset,
                       uint64_t len, struct qv_extent *out)
{
    struct run run;

    find_run(img, table, offset, len, 0, &run);
    switch (run.kind) {
    case QCOW2_UNALLOCATED:
        extent_unallocated(img, offset, run.len, out);
        break;
    case QCOW2_NORMAL:
        extent_data(img,
                    (run.first.desc & QCOW2_L2_OFFSET_MASK) + (offset & (img->cluster_size - 1)),
                    run.len, out);
        break;
    case QCOW2_COMPRESSED:
        *out =
            (struct qv_extent){.kind = QV_EXTENT_SPECIAL, .len = run.len, .cookie = run.first.desc};
        break;
    case QCOW2_ZERO_PLAIN:
    case QCOW2_ZERO_ALLOC:
        *out = (struct qv_extent){.kind = QV_EXTENT_ZERO, .len = run.len};
        break;
    case QCOW2_BAD:
        return -EAGAIN; /* co_load says why */
    }
    return 0;
}

static int extent_write(struct qcow2_image *img, struct qcow2_table *table, uint64_t offset,
                        uint64_t len, struct qv_extent *out)
{
    struct run run;
    uint64_t host;

    if (!table->writable || atomic_load_explicit(&img->corrupt, memory_order_relaxed)) {
        return -EAGAIN;
    }
    find_run(img, table, offset, len, QCOW2_OFLAG_COPIED, &run);
    if (run.kind != QCOW2_NORMAL || (run.first.desc & QCOW2_OFLAG_COPIED) == 0) {
        return -EAGAIN;
    }
    host = (run.first.desc & QCOW2_L2_OFFSET_MASK) + (offset & (img->cluster_size - 1));
    if ((img->node.data_file == NULL && qcow2_host_is_meta(img, host, run.len)) ||
        !qv_range_inside(host, run.len, qcow2_data_end(img))) {
        return -EAGAIN; /* co_alloc finds the same and marks the image corrupt */
    }
    *out = (struct qv_extent){
        .kind = QV_EXTENT_DATA, .len = run.len, .host = host, .file = qcow2_data_node(img)};
    qcow2_bitmaps_mark(img, offset, run.len);
    return 0;
}

/*
 * Both words of an extended entry must be of one moment. Whoever changes them makes seq odd before
 * and even after, with release stores; here acquire loads lie between two looks at it.
 */
static int extent_whole(struct qcow2_image *img, struct qcow2_table *table, uint64_t offset,
                        uint64_t len, bool write, struct qv_extent *out)
{
    for (unsigned tries = 0; tries < SEQ_TRIES; tries++) {
        uint32_t seq = atomic_load_explicit(&table->seq, memory_order_acquire);
        int ret = write ? extent_write(img, table, offset, len, out)
                        : extent_read(img, table, offset, len, out);

        if ((seq & 1) == 0 && atomic_load_explicit(&table->seq, memory_order_relaxed) == seq) {
            return ret;
        }
    }
    return -EAGAIN; /* co_load and co_alloc wait for the lock */
}

/*
 * Where a request lies that stays in one cluster of data with nothing special about it: all but a
 * few. False: it may be any kind of request, for extent_read and extent_write to find out.
 */
static bool extent_plain(struct qcow2_image *img, struct qcow2_table *table, uint64_t offset,
                         uint64_t len, bool write, struct qv_extent *out)
{
    uint64_t entry = qcow2_entry(table->entries, qcow2_l2_index(img, offset));
    uint64_t in = offset & (img->cluster_size - 1);
    uint64_t host = entry & ~QCOW2_OFLAG_COPIED;

    /* No other bit than those of the offset of a cluster, which is not the header's. */
    if (len > img->cluster_size - in || (host & ~img->plain_mask) != 0 || host == 0 ||
        host + in + len > atomic_load_explicit(&img->file_end, memory_order_relaxed)) {
        return false;
    }
    if (write) {
        if (host == entry || !table->writable ||
            atomic_load_explicit(&img->corrupt, memory_order_relaxed) ||
            qcow2_metaset_has(&img->meta, host >> img->cluster_bits)) {
            return false;
        }
        qcow2_bitmaps_mark(img, offset, len);
    }
    *out = (struct qv_extent){
        .kind = QV_EXTENT_DATA, .len = len, .host = host + in, .file = qcow2_data_node(img)};
    return true;
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
    if (img->plain_mask != 0 && extent_plain(img, table, offset, len, write, out)) {
        return 0;
    }
    if (img->sub_bits != 0) {
        return extent_whole(img, table, offset, len, write, out);
    }
    return write ? extent_write(img, table, offset, len, out)
                 : extent_read(img, table, offset, len, out);
}

int qcow2_co_load(struct qv_node *node, uint64_t offset)
{
    struct qcow2_image *img = qcow2_image_of(node);
    uint64_t i = qcow2_l2_index(img, offset);
    struct qcow2_table *table;
    struct qcow2_l2e e;
    int ret = qcow2_co_table_get(img, qcow2_l1_index(img, offset), &table);

    if (ret != 0 || table == NULL) {
        return ret;
    }
    pthread_mutex_lock(&img->lock);
    e = qcow2_l2_get(img, table, i);
    pthread_mutex_unlock(&img->lock);
    if (qcow2_sub_kind(img, offset >> img->cluster_bits, e, 0) == QCOW2_BAD) {
        ret = qcow2_co_corrupt(img, table->offset + i * qcow2_l2_entry_size(&img->header),
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
