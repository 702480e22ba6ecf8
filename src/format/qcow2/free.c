/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Giving clusters back, and the background work of an image.
 *
 * The way of a cluster whose last reference goes away: freed_new until the metadata that dropped
 * it is durable (commit.c), freed_ready until every request that may still see it has ended (the
 * guard), then a hole is punched and it joins the stock, or its refcount goes to zero. Its refcount
 * stays above zero until after the hole, so nobody can own it while it is punched.
 */
#include <errno.h>

#include "base/error.h"
#include "base/log.h"
#include "format/qcow2/qcow2_int.h"

#define REAP_BATCH 64u /* extents freed while holding ref_lock */

void qcow2_meta_add(struct qcow2_image *img, uint64_t cluster)
{
    void *old = qcow2_metaset_add(&img->meta, cluster);

    if (old != NULL) {
        qcow2_retire(img, old, NULL, NULL);
    }
}

void qcow2_meta_remove(struct qcow2_image *img, uint64_t cluster)
{
    qcow2_metaset_remove(&img->meta, cluster);
}

void qcow2_freed_add(struct qcow2_freed_list *list, uint64_t first, uint64_t count)
{
    if (list->n > 0 && list->v[list->n - 1].first + list->v[list->n - 1].count == first) {
        list->v[list->n - 1].count += count;
        return;
    }
    if (list->n == list->max) {
        list->max = list->max == 0 ? 16 : list->max * 2;
        list->v = g_renew(struct qcow2_freed, list->v, list->max);
    }
    list->v[list->n++] = (struct qcow2_freed){.first = first, .count = count};
}

void qcow2_freed_move(struct qcow2_freed_list *from, struct qcow2_freed_list *to)
{
    if (to->n == 0) {
        struct qcow2_freed_list empty = *to;

        *to = *from;
        *from = empty;
        return;
    }
    for (size_t i = 0; i < from->n; i++) {
        qcow2_freed_add(to, from->v[i].first, from->v[i].count);
    }
    from->n = 0;
}

void qcow2_free_entry(struct qcow2_image *img, uint64_t entry)
{
    if (img->node.data_file != NULL) {
        return; /* nothing is counted there */
    }
    switch (qcow2_entry_kind(img, entry)) {
    case QCOW2_NORMAL:
    case QCOW2_ZERO_ALLOC:
        qcow2_freed_add(&img->freed_new, (entry & QCOW2_L2_OFFSET_MASK) >> img->cluster_bits, 1);
        break;
    case QCOW2_COMPRESSED: {
        uint64_t offset, len;

        qcow2_compressed_range(img->cluster_bits, entry, &offset, &len);
        /* One reference on each cluster it touches. */
        for (uint64_t c = offset >> img->cluster_bits; c <= (offset + len - 1) >> img->cluster_bits;
             c++) {
            qcow2_freed_add(&img->freed_new, c, 1);
        }
        break;
    }
    case QCOW2_UNALLOCATED:
    case QCOW2_ZERO_PLAIN:
    case QCOW2_BAD:
        break;
    }
}

/* ---- reaping, under ref_lock ---- */

/* [@first, @first + @count) has refcount one, and that one is ours to drop. */
static int co_release(struct qcow2_image *img, uint64_t first, uint64_t count)
{
    bool zero = qcow2_co_make_zero(img, first, count);
    uint64_t left;
    bool keep;
    int ret = 0;

    pthread_mutex_lock(&img->lock);
    keep = zero && img->run_clusters + count <= qcow2_stock_wanted(img);
    if (keep) {
        struct qcow2_run run = {
            .first = first, .count = count, .zero = true, .need_sync = qcow2_sync_next(img)};

        qcow2_run_put(img, &run);
    }
    pthread_mutex_unlock(&img->lock);
    if (keep) {
        return 0;
    }
    for (uint64_t c = first; c < first + count && ret == 0; c++) {
        ret = qcow2_refs_co_drop(img, c, &left);
    }
    img->refs.scan_pos = qv_min_u64(img->refs.scan_pos, first);
    return ret;
}

static int co_reap_extent(struct qcow2_image *img, const struct qcow2_freed *f)
{
    uint64_t start = f->first; /* of a run of clusters with refcount one */
    int ret = 0;

    for (uint64_t c = f->first; c < f->first + f->count && ret == 0; c++) {
        uint64_t refs, left;

        if (qcow2_metaset_has(&img->meta, c)) {
            return qcow2_co_corrupt(img, c << img->cluster_bits, "metadata used as data");
        }
        ret = qcow2_refs_co_get(img, c, &refs);
        if (ret == 0 && refs != 1) {
            ret = c > start ? co_release(img, start, c - start) : 0;
            ret = ret != 0 ? ret : qcow2_refs_co_drop(img, c, &left);
            start = c + 1;
        }
    }
    if (ret == 0 && f->first + f->count > start) {
        ret = co_release(img, start, f->first + f->count - start);
    }
    return ret;
}

void qcow2_co_reap(struct qcow2_image *img)
{
    struct qcow2_freed_list ready = {0};
    struct qcow2_retired *retired;
    int ret = 0;

    pthread_mutex_lock(&img->lock);
    qcow2_freed_move(&img->freed_ready, &ready);
    retired = img->retired;
    img->retired = NULL;
    img->n_retired = 0;
    pthread_mutex_unlock(&img->lock);
    if (ready.n == 0 && retired == NULL) {
        return;
    }
    qv_guard_co_synchronize(img->node.guard);
    qcow2_retired_free(retired);
    for (size_t i = 0; i < ready.n && ret == 0 && !atomic_load(&img->corrupt);) {
        qv_co_mutex_lock(&img->ref_lock);
        for (unsigned n = 0; n < REAP_BATCH && i < ready.n && ret == 0; n++, i++) {
            ret = co_reap_extent(img, &ready.v[i]);
        }
        ret = ret != 0 ? ret : qcow2_refs_co_write(img);
        qv_co_mutex_unlock(&img->ref_lock);
    }
    if (ret != 0) {
        qv_warn("%s: freed space is lost until the next check: %s", img->node.name,
                qv_strerror(ret));
    }
    g_free(ready.v);
}

/* ---- background work ---- */

static void bg_entry(void *arg)
{
    struct qcow2_bg_work *w = arg;
    struct qcow2_image *img = w->img;

    pthread_mutex_lock(&img->lock);
    while (w->wanted) {
        w->wanted = false;
        pthread_mutex_unlock(&img->lock);
        if (w->kind == QCOW2_BG_RESERVE) {
            (void)qcow2_co_reserve(img); /* whoever needs space meets the error */
        } else {
            qcow2_co_reap(img);
        }
        pthread_mutex_lock(&img->lock);
    }
    w->running = false;
    qv_co_queue_wake_all(&img->bg_waiters);
    pthread_mutex_unlock(&img->lock);
}

static void bg_start(struct qv_work *work)
{
    qv_co_spawn(bg_entry, qv_container_of(work, struct qcow2_bg_work, work));
}

void qcow2_bg_kick(struct qcow2_image *img, enum qcow2_bg kind)
{
    struct qcow2_bg_work *w = &img->bg[kind];

    if (img->closing) {
        return;
    }
    w->wanted = true;
    if (!w->running) {
        w->running = true;
        w->work.fn = bg_start;
        qv_thread_post(img->home, &w->work);
    }
}

void qcow2_co_bg_wait(struct qcow2_image *img)
{
    pthread_mutex_lock(&img->lock);
    while (img->bg[QCOW2_BG_RESERVE].running || img->bg[QCOW2_BG_REAP].running) {
        qv_co_queue_wait(&img->bg_waiters, &img->lock);
    }
    pthread_mutex_unlock(&img->lock);
}
