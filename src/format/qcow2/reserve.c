/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stock: clusters that have their refcount already and that nothing refers to. Allocation takes
 * from it under the lock, without I/O; it is filled ahead, in the background. What a crash leaves
 * of it is leaked space, nothing else; a clean close gives it back.
 */
#include <errno.h>

#include "base/log.h"
#include "format/qcow2/qcow2_int.h"

#define STOCK_BYTES_MIN    QV_MIB
#define STOCK_BYTES_MAX    (64 * QV_MIB) /* what a crash may leak; more is not faster */
#define STOCK_DISK_PART    16u           /* no more than this part of the disk */
#define STOCK_CLUSTERS_MIN 16u
#define EXTEND_TRIES       1024u
#define SCAN_BLOCKS        4u /* refcount blocks looked through before the file is made longer */

/* ---- under the lock ---- */

uint64_t qcow2_stock_wanted(const struct qcow2_image *img)
{
    /* As much again as was taken so far: small images stay small, busy ones are served ahead. */
    uint64_t bytes = CLAMP(img->allocated << img->cluster_bits, STOCK_BYTES_MIN, STOCK_BYTES_MAX);

    bytes = qv_min_u64(bytes, atomic_load(&img->node.size) / STOCK_DISK_PART);
    return qv_max_u64(bytes >> img->cluster_bits, STOCK_CLUSTERS_MIN);
}

bool qcow2_run_take(struct qcow2_image *img, uint64_t want, struct qcow2_run *out)
{
    struct qcow2_run *run = img->runs;

    if (run == NULL) {
        return false;
    }
    *out = *run;
    out->count = qv_min_u64(want, run->count);
    run->first += out->count;
    run->count -= out->count;
    img->run_clusters -= out->count;
    img->allocated += out->count;
    if (run->count == 0) {
        img->runs = run->next;
        if (img->runs == NULL) {
            img->runs_tail = &img->runs;
        }
        g_free(run);
    }
    if (img->run_clusters < qcow2_stock_wanted(img) / 2) {
        qcow2_bg_kick(img, QCOW2_BG_RESERVE);
    }
    return true;
}

void qcow2_run_put(struct qcow2_image *img, const struct qcow2_run *run)
{
    struct qcow2_run *r = g_new(struct qcow2_run, 1);

    *r = *run;
    r->next = NULL;
    *img->runs_tail = r;
    img->runs_tail = &r->next;
    img->run_clusters += run->count;
}

/* ---- filling, under ref_lock ---- */

bool qcow2_co_make_zero(struct qcow2_image *img, uint64_t first, uint64_t count)
{
    const struct qv_limits *limits = &img->node.file->limits;

    if (img->seal != NULL && img->seal->ops->co_clear(img->seal, first, count) != 0) {
        return false;
    }
    if (!limits->zero_is_cheap) {
        return false;
    }
    return qv_co_zero(img->node.file, first << img->cluster_bits, count << img->cluster_bits,
                      QV_IO_MAY_UNMAP | QV_IO_NO_FALLBACK) == 0;
}

/* Metadata that counts as free: the refcounts are wrong, and nothing may be taken by them. */
static int co_check_free(struct qcow2_image *img, uint64_t first, uint64_t count)
{
    for (uint64_t c = first; c < first + count; c++) {
        if (qcow2_metaset_has(&img->meta, c)) {
            return qcow2_co_corrupt(img, c << img->cluster_bits, "metadata with refcount 0");
        }
    }
    return 0;
}

/* @clusters adjacent free ones inside the file; for block devices, which cannot grow. */
static int co_find_adjacent(struct qcow2_image *img, uint64_t clusters, uint64_t *first)
{
    uint64_t end = atomic_load(&img->file_end) >> img->cluster_bits;
    uint64_t pos = 0;
    int ret = 0;

    while (pos < end && ret == 0) {
        struct qcow2_freed free_run;
        unsigned blocks = UINT32_MAX;

        ret = qcow2_refs_co_free_run(img, &pos, end, clusters, &blocks, &free_run);
        if (ret == 0 && free_run.count == clusters) {
            *first = free_run.first;
            return co_check_free(img, free_run.first, free_run.count);
        }
    }
    return ret != 0 ? ret : -ENOSPC;
}

int qcow2_co_extend(struct qcow2_image *img, uint64_t clusters, uint64_t *first)
{
    uint64_t end = atomic_load(&img->file_end);
    uint64_t bytes, new_end;
    int ret;

    if (!img->file_grows) {
        return co_find_adjacent(img, clusters, first);
    }
    if (!qv_mul_u64(clusters, img->cluster_size, &bytes) || !qv_add_u64(end, bytes, &new_end) ||
        new_end > QCOW2_L2_OFFSET_MASK) {
        return -EFBIG;
    }
    if (!qv_is_aligned(new_end, QCOW2_END_ALIGN)) { /* more than asked for; the rest is free */
        img->refs.scan_pos = qv_min_u64(img->refs.scan_pos, new_end >> img->cluster_bits);
        new_end = qv_align_up(new_end, QCOW2_END_ALIGN);
    }
    ret = qv_node_co_truncate(img->node.file, new_end);
    if (ret != 0) {
        return ret;
    }
    atomic_store(&img->file_end, new_end);
    *first = end >> img->cluster_bits;
    return 0;
}

/* Claims [@first, @first + @count), all free, with the refcount blocks they need, and puts them in
 * the stock. */
static int co_claim(struct qcow2_image *img, uint64_t first, uint64_t count, bool zero)
{
    struct qcow2_run run = {.zero = zero};
    uint64_t end = first + count, used, blocks = 0;
    int ret;

    ret = qcow2_refs_co_prepare(img, first, count, &used);
    ret = ret != 0 ? ret : qcow2_co_seal_claim(img, first + used, count - used, &blocks);
    for (uint64_t c = first + used + blocks; c < end && ret == 0; c++) {
        ret = qcow2_refs_co_claim(img, c);
    }
    if (ret == 0) {
        ret = qcow2_refs_co_write(img);
    }
    if (ret == 0) {
        ret = qcow2_co_seal_link(img, first + used, count - used, blocks, zero);
    }
    used += blocks;
    if (ret != 0) {
        return ret; /* what was claimed is lost until the next check */
    }
    pthread_mutex_lock(&img->lock);
    run.first = first + used;
    run.count = count - used;
    run.need_sync = qcow2_sync_next(img);
    if (run.count > 0) {
        qcow2_run_put(img, &run);
    }
    pthread_mutex_unlock(&img->lock);
    return 0;
}

static uint64_t stock_size(struct qcow2_image *img)
{
    uint64_t have;

    pthread_mutex_lock(&img->lock);
    have = img->run_clusters;
    pthread_mutex_unlock(&img->lock);
    return have;
}

/* Free clusters inside the file: space that was given back, or all of a block device. */
static int co_fill_inside(struct qcow2_image *img, uint64_t want, unsigned blocks)
{
    uint64_t end = atomic_load(&img->file_end) >> img->cluster_bits;
    /* First: a longer table takes free clusters itself. */
    int ret = qcow2_refs_co_cover(img, end);

    if (ret == 0 && img->seal != NULL) {
        ret = img->seal->ops->co_cover(img->seal, end);
    }
    while (ret == 0 && stock_size(img) < want && blocks > 0 && img->refs.scan_pos < end) {
        struct qcow2_freed free_run;

        ret = qcow2_refs_co_free_run(img, &img->refs.scan_pos, end, want, &blocks, &free_run);
        if (ret != 0 || free_run.count == 0) {
            continue;
        }
        ret = co_check_free(img, free_run.first, free_run.count);
        if (ret == 0) {
            ret = co_claim(img, free_run.first, free_run.count,
                           qcow2_co_make_zero(img, free_run.first, free_run.count));
        }
    }
    return ret;
}

/* New clusters at the end of the file; of those the file had already past its clusters, only the
 * free ones. */
static int co_fill_end(struct qcow2_image *img, uint64_t clusters)
{
    uint64_t first, count, start = 0;
    int ret =
        qcow2_refs_co_cover(img, (atomic_load(&img->file_end) >> img->cluster_bits) + clusters * 2);

    if (ret == 0 && img->seal != NULL) {
        ret = img->seal->ops->co_cover(
            img->seal, (atomic_load(&img->file_end) >> img->cluster_bits) + clusters * 2 + 16);
    }
    if (ret != 0) {
        return ret;
    }
    count = clusters + qcow2_refs_missing_next(img, clusters * 2) + qcow2_seal_room(img, clusters);
    ret = qcow2_co_extend(img, count, &first);
    /* Refcounts past the old end of the file should be zero; after a crash they may not be. */
    for (uint64_t i = 0; i < count && ret == 0; i++) {
        uint64_t refs = 0;

        ret = qcow2_refs_co_get(img, first + i, &refs);
        if (ret == 0 && refs != 0) {
            ret = i > start ? co_claim(img, first + start, i - start, true) : 0;
            start = i + 1;
        }
    }
    if (ret == 0 && count > start) {
        ret = co_claim(img, first + start, count - start, true);
    }
    return ret;
}

static int co_fill(struct qcow2_image *img, uint64_t want)
{
    uint64_t have;
    int ret;

    if (atomic_load(&img->corrupt)) {
        return -EROFS;
    }
    if (img->refs.frozen) {
        return -EIO;
    }
    ret = co_fill_inside(img, want, img->file_grows ? SCAN_BLOCKS : UINT32_MAX);
    if (ret != 0) {
        return ret;
    }
    have = stock_size(img);
    if (have >= want) {
        return 0;
    }
    if (img->file_grows) {
        /* Power loss can leave refcounts of reservations that the file never grew to: all of what
         * it grows by now may be taken. */
        for (unsigned i = 0; ret == 0 && (i == 0 || stock_size(img) == 0) && i < EXTEND_TRIES;
             i++) {
            ret = co_fill_end(img, want - have);
        }
    }
    return stock_size(img) > 0 ? 0 : ret != 0 ? ret : -ENOSPC;
}

int qcow2_co_reserve(struct qcow2_image *img)
{
    uint64_t have, want;
    int ret = 0;

    qv_co_mutex_lock(&img->ref_lock);
    pthread_mutex_lock(&img->lock);
    have = img->run_clusters;
    want = qcow2_stock_wanted(img);
    pthread_mutex_unlock(&img->lock);
    if (have < want / 2) {
        ret = co_fill(img, want);
    }
    qv_co_mutex_unlock(&img->ref_lock);
    return have > 0 ? 0 : ret;
}

int qcow2_co_reserve_adjacent(struct qcow2_image *img, uint64_t n, uint64_t *first)
{
    uint64_t start = 0, used = 0, refs = 0, count;
    int ret;

    if (img->refs.frozen) {
        return -EIO;
    }
    ret = qcow2_refs_co_cover(img, (atomic_load(&img->file_end) >> img->cluster_bits) + 2 * n + 2);
    if (ret != 0) {
        return ret;
    }
    count = n + qcow2_refs_missing_next(img, 2 * n + 2);
    ret = qcow2_co_extend(img, count, &start);
    for (uint64_t c = start; c < start + count && ret == 0; c++) {
        ret = qcow2_refs_co_get(img, c, &refs);
        if (ret == 0 && refs != 0) {
            ret = -EAGAIN; /* leaked by a crash; the next try starts behind it */
        }
    }
    ret = ret != 0 ? ret : qcow2_refs_co_prepare(img, start, count, &used);
    for (uint64_t c = start + used; ret == 0 && c < start + used + n; c++) {
        ret = qcow2_refs_co_claim(img, c);
    }
    if (ret == 0) {
        img->refs.scan_pos = qv_min_u64(img->refs.scan_pos, start); /* the rest is free */
        *first = start + used;
        ret = qcow2_refs_co_write(img);
    }
    return ret != 0 ? ret : qcow2_co_sync(img);
}

/* ---- at close ---- */

/* Gives the file's free tail back, down to where it ended when it was opened. */
static int co_cut_tail(struct qcow2_image *img)
{
    uint64_t end = atomic_load(&img->file_end) >> img->cluster_bits;
    uint64_t floor = qv_div_up(img->file_size_at_open, img->cluster_size);
    uint64_t refs = 0, bytes;
    int ret = 0;

    while (end > floor) {
        ret = qcow2_refs_co_get(img, end - 1, &refs);
        if (ret != 0) {
            return ret;
        }
        if (refs != 0) {
            break;
        }
        end--;
    }
    bytes = qv_align_up(end << img->cluster_bits, QCOW2_END_ALIGN);
    if (bytes >= atomic_load(&img->file_end)) {
        return 0;
    }
    atomic_store(&img->file_end, bytes);
    return qv_node_co_truncate(img->node.file, bytes);
}

int qcow2_co_give_back(struct qcow2_image *img)
{
    bool changed = img->runs != NULL || img->file_grows;
    int ret = 0;

    if (!changed || atomic_load(&img->corrupt)) {
        return 0;
    }
    qv_co_mutex_lock(&img->ref_lock);
    while (img->runs != NULL && ret == 0) {
        struct qcow2_run run;
        uint64_t left;

        if (qcow2_run_take(img, UINT64_MAX, &run)) {
            for (uint64_t c = run.first; c < run.first + run.count && ret == 0; c++) {
                ret = qcow2_refs_co_drop(img, c, &left);
            }
        }
    }
    if (ret == 0) {
        ret = qcow2_refs_co_write(img);
    }
    if (ret == 0 && img->file_grows) {
        ret = co_cut_tail(img);
    }
    qv_co_mutex_unlock(&img->ref_lock);
    return ret != 0 ? ret : qcow2_co_sync(img);
}
