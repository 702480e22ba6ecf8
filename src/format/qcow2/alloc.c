/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes to clusters that are not simply mapped.
 *
 * A cluster that reads as zeros and gets a fresh cluster that reads as zeros too is mapped at once,
 * before its data is written: whoever reads meanwhile sees zeros or new data, both right, and a
 * power loss shows the same. Nothing is copied and nothing waits.
 *
 * All else (data of a backing image or a snapshot, compressed data, space that may hold anything)
 * is copied around the write first and mapped by co_commit. Such a write holds a ticket for its
 * guest clusters; whoever wants to change the mapping of one of these waits.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "format/qcow2/qcow2_int.h"

bool qcow2_ticket_busy(const struct qcow2_image *img, uint64_t first, uint64_t count)
{
    for (const struct qcow2_alloc *a = img->allocs; a != NULL; a = a->next) {
        if (first < a->first + a->count && a->first < first + count) {
            return true;
        }
    }
    return false;
}

/* ---- what to do with a write; lock held ---- */

enum class {
    CLASS_MAPPED, /* overwrite in place */
    CLASS_REFILL, /* a zero cluster with space of its own */
    CLASS_FRESH,  /* reads as zeros, has no space */
    CLASS_COPY,   /* holds data that is not here */
    CLASS_CORRUPT,
};

static enum class classify(struct qcow2_image *img, uint64_t entry, uint64_t guest) {
    bool own = (entry & QCOW2_OFLAG_COPIED) != 0;

    switch (qcow2_entry_kind(img, entry)){
        case QCOW2_UNALLOCATED : return qcow2_backing_shows(img, guest) ? CLASS_COPY : CLASS_FRESH;
        case QCOW2_ZERO_PLAIN : return CLASS_FRESH;
        case QCOW2_ZERO_ALLOC : return own ? CLASS_REFILL : CLASS_COPY;
        case QCOW2_NORMAL : return own ? CLASS_MAPPED : CLASS_COPY;
        case QCOW2_COMPRESSED : return CLASS_COPY;
        case QCOW2_BAD : break;
    }
return CLASS_CORRUPT;
}

/* How many clusters from the first of @a on, at most @max, are of class @cls (and adjacent in the
 * file, for those in place), and free of tickets. */
static uint64_t class_run(struct qcow2_image *img, const struct qcow2_alloc *a, enum class cls,
                          uint64_t max)
{
    uint64_t i = a->first & (img->l2_entries - 1);
    uint64_t host = qcow2_entry(a->table->entries, i) & QCOW2_L2_OFFSET_MASK;
    bool in_place = cls == CLASS_MAPPED || cls == CLASS_REFILL;
    uint64_t n = 1;

    while (n < max) {
        uint64_t entry = qcow2_entry(a->table->entries, i + n);

        if (classify(img, entry, (a->first + n) << img->cluster_bits) != cls ||
            (in_place && (entry & QCOW2_L2_OFFSET_MASK) != host + (n << img->cluster_bits)) ||
            qcow2_ticket_busy(img, a->first + n, 1)) {
            break;
        }
        n++;
    }
    return n;
}

static int plan_in_place(struct qcow2_image *img, struct qcow2_alloc *a, enum class cls,
                         uint64_t max)
{
    uint64_t i = a->first & (img->l2_entries - 1);

    a->host = qcow2_entry(a->table->entries, i) & QCOW2_L2_OFFSET_MASK;
    a->count = class_run(img, a, cls, max);
    if (qcow2_host_is_meta(img, a->host, a->count << img->cluster_bits) ||
        !qv_range_inside(a->host, a->count << img->cluster_bits, atomic_load(&img->file_end))) {
        return -EUCLEAN;
    }
    a->in_place = a->ticketed = cls == CLASS_REFILL;
    return 0;
}

static int plan_new(struct qcow2_image *img, struct qcow2_alloc *a, enum class cls, uint64_t max)
{
    uint64_t i = a->first & (img->l2_entries - 1);
    struct qcow2_run run;

    if (!qcow2_run_take(img, class_run(img, a, cls, max), &run)) {
        return -EAGAIN;
    }
    a->host = run.first << img->cluster_bits;
    a->count = run.count;
    a->zero = run.zero;
    a->ticketed = cls == CLASS_COPY || !run.zero;
    if (a->ticketed) {
        /* The refcounts are durable no later than the sync that the data needs anyway. */
        return 0;
    }
    for (uint64_t n = 0; n < a->count; n++) {
        qcow2_table_set(img, a->table, i + n,
                        (a->host + (n << img->cluster_bits)) | QCOW2_OFLAG_COPIED, run.need_sync);
    }
    return 0;
}

static int plan(struct qcow2_image *img, struct qcow2_alloc *a, uint64_t max)
{
    uint64_t entry = qcow2_entry(a->table->entries, a->first & (img->l2_entries - 1));
    enum class cls = classify(img, entry, a->first << img->cluster_bits);
    int ret;

    switch (cls) {
    case CLASS_MAPPED:
    case CLASS_REFILL:
        ret = plan_in_place(img, a, cls, max);
        break;
    case CLASS_FRESH:
    case CLASS_COPY:
        ret = plan_new(img, a, cls, max);
        break;
    case CLASS_CORRUPT:
    default:
        ret = -EUCLEAN;
    }
    if (ret == 0 && a->ticketed) {
        a->next = img->allocs;
        img->allocs = a;
    }
    return ret;
}

/* ---- copying what the write does not cover ---- */

static bool is_zero(const char *buf, uint64_t len)
{
    return len == 0 || (buf[0] == 0 && memcmp(buf, buf + 1, len - 1) == 0);
}

/* Reads [@from, @to) of guest cluster @guest, as it was before the write, into @buf + @from. */
static int co_read_old(struct qcow2_image *img, uint64_t guest, uint64_t entry, char *buf,
                       uint64_t from, uint64_t to)
{
    uint64_t start = guest << img->cluster_bits;
    uint64_t size = atomic_load(&img->node.size);
    uint64_t end = to;
    struct qv_node *backing = img->node.backing;

    switch (qcow2_entry_kind(img, entry)) {
    case QCOW2_NORMAL:
        return qv_co_pread(img->node.file, (entry & QCOW2_L2_OFFSET_MASK) + from, buf + from,
                           to - from);
    case QCOW2_COMPRESSED:
        return qcow2_co_decompress(img, entry, buf);
    case QCOW2_UNALLOCATED:
        /* Zeros past the end of the backing image, and past our own: should the disk grow, nothing
         * of the backing image may come to light there. */
        if (backing != NULL) {
            end = qv_min_u64(size, atomic_load(&backing->size));
            end = end > start ? qv_min_u64(to, end - start) : 0;
        }
        if (backing == NULL || end <= from) {
            memset(buf + from, 0, to - from);
            return 0;
        }
        memset(buf + end, 0, to - end);
        return qv_co_pread(backing, start + from, buf + from, end - from);
    case QCOW2_ZERO_PLAIN:
    case QCOW2_ZERO_ALLOC:
        memset(buf + from, 0, to - from);
        return 0;
    case QCOW2_BAD:
        break;
    }
    return -EUCLEAN;
}

static int co_write_part(struct qcow2_image *img, const struct qcow2_alloc *a, uint64_t host,
                         const char *buf, uint64_t from, uint64_t to)
{
    if (from == to || (a->zero && is_zero(buf + from, to - from))) {
        return 0;
    }
    return qv_co_pwrite(img->node.file, host + from, buf + from, to - from);
}

/* Fills [0, @head) and [@tail, cluster size) of cluster number @n of @a. */
static int co_fill_cluster(struct qcow2_image *img, const struct qcow2_alloc *a, uint64_t n,
                           uint64_t head, uint64_t tail)
{
    uint64_t guest = a->first + n;
    uint64_t entry = qcow2_entry(a->table->entries, guest & (img->l2_entries - 1));
    uint64_t host = a->host + (n << img->cluster_bits);
    QV_CLEANUP(qv_freep) char *buf = NULL;
    int ret = 0;

    if (head == 0 && tail == img->cluster_size) {
        return 0;
    }
    buf = qv_node_mem_alloc(img->cluster_size);
    if (head > 0) {
        ret = co_read_old(img, guest, entry, buf, 0, head);
    }
    /* Decompressing gives all of the cluster at once. */
    if (ret == 0 && tail < img->cluster_size &&
        (head == 0 || qcow2_entry_kind(img, entry) != QCOW2_COMPRESSED)) {
        ret = co_read_old(img, guest, entry, buf, tail, img->cluster_size);
    }
    if (ret == 0) {
        ret = co_write_part(img, a, host, buf, 0, head);
    }
    return ret != 0 ? ret : co_write_part(img, a, host, buf, tail, img->cluster_size);
}

static int co_fill(struct qcow2_image *img, const struct qcow2_alloc *a, uint64_t offset,
                   uint64_t len)
{
    uint64_t head = offset & (img->cluster_size - 1);
    uint64_t tail = ((offset + len - 1) & (img->cluster_size - 1)) + 1;
    int ret;

    if (a->count == 1) {
        return co_fill_cluster(img, a, 0, head, tail);
    }
    ret = co_fill_cluster(img, a, 0, head, img->cluster_size);
    return ret != 0 ? ret : co_fill_cluster(img, a, a->count - 1, 0, tail);
}

/* ---- the ops ---- */

/* The usual case, with one turn of the lock: the table is in memory and this image's own. True: @a
 * is planned, inside the guard; its table is pinned only if co_commit needs it. */
static bool plan_at_once(struct qcow2_image *img, struct qcow2_alloc *a, uint64_t clusters)
{
    struct qcow2_table *t;
    bool ok = false;

    a->guard_ticket = qv_guard_enter(img->node.guard);
    pthread_mutex_lock(&img->lock);
    t = atomic_load_explicit(&qcow2_map_get(img)->tables[a->first >> img->l2_bits],
                             memory_order_relaxed);
    if (t != NULL && t->writable && !qcow2_cache_crowded(img) &&
        !qcow2_ticket_busy(img, a->first, 1)) {
        a->table = t;
        ok = plan(img, a, clusters) == 0;
        if (ok && a->ticketed) {
            t->pins++;
        } else {
            a->table = NULL;
        }
    }
    pthread_mutex_unlock(&img->lock);
    if (!ok) {
        qv_guard_exit(img->node.guard, a->guard_ticket);
    }
    return ok;
}

/* Takes a table and plans; leaves @a planned with its table pinned, inside the guard. */
static int co_plan(struct qcow2_image *img, struct qcow2_alloc *a, uint64_t clusters)
{
    uint64_t l1_index = a->first >> img->l2_bits;
    bool busy, dry;
    int ret;

    do {
        ret = qcow2_journal_co_room(img);
        ret = ret != 0 ? ret : qcow2_co_table_writable(img, l1_index, &a->table);
        if (ret != 0) {
            return ret;
        }
        a->guard_ticket = qv_guard_enter(img->node.guard);
        pthread_mutex_lock(&img->lock);
        busy = qcow2_ticket_busy(img, a->first, 1);
        ret = busy ? -EAGAIN : plan(img, a, clusters);
        dry = !busy && ret == -EAGAIN;
        if (ret != 0) {
            qv_guard_exit(img->node.guard, a->guard_ticket);
        }
        if (busy) {
            qv_co_queue_wait(&img->alloc_waiters, &img->lock);
        }
        pthread_mutex_unlock(&img->lock);
        if (ret != 0) {
            qcow2_table_unpin(img, a->table);
        }
        if (dry) {
            ret = qcow2_co_reserve(img);
        }
    } while (ret == -EAGAIN || (ret == 0 && dry));
    return ret;
}

int qcow2_co_alloc(struct qv_node *node, uint64_t offset, uint64_t *len, struct qv_alloc **out)
{
    struct qcow2_image *img = qcow2_image_of(node);
    uint64_t in = offset & (img->cluster_size - 1);
    uint64_t i = qcow2_l2_index(img, offset);
    uint64_t clusters = qv_min_u64(qv_div_up(in + *len, img->cluster_size), img->l2_entries - i);
    struct qcow2_alloc *a;
    int ret;

    if (atomic_load(&img->corrupt) || node->readonly) {
        return -EROFS;
    }
    a = g_new0(struct qcow2_alloc, 1);
    a->first = offset >> img->cluster_bits;
    ret = plan_at_once(img, a, clusters) ? 0 : co_plan(img, a, clusters);
    if (ret != 0) {
        g_free(a);
        return ret == -EUCLEAN ? qcow2_co_corrupt(img, offset, "write to a bad L2 entry, guest")
                               : ret;
    }
    *len = qv_min_u64(*len, (a->count << img->cluster_bits) - in);
    a->pub.extent = (struct qv_extent){
        .kind = QV_EXTENT_DATA, .len = *len, .host = a->host + in, .file = node->file};
    if (a->ticketed) {
        ret = co_fill(img, a, offset, *len);
        if (ret != 0) {
            return qcow2_co_commit(node, &a->pub, ret);
        }
    }
    *out = &a->pub;
    return 0;
}

/* Lock held. */
static void install(struct qcow2_image *img, struct qcow2_alloc *a)
{
    uint64_t i = a->first & (img->l2_entries - 1);

    for (uint64_t n = 0; n < a->count; n++) {
        uint64_t old = qcow2_entry(a->table->entries, i + n);

        qcow2_table_set(img, a->table, i + n,
                        (a->host + (n << img->cluster_bits)) | QCOW2_OFLAG_COPIED,
                        qcow2_sync_next(img));
        if (!a->in_place) {
            qcow2_free_entry(img, old);
        }
    }
}

static void ticket_remove(struct qcow2_image *img, struct qcow2_alloc *a)
{
    struct qcow2_alloc **link = &img->allocs;

    while (*link != a) {
        link = &(*link)->next;
    }
    *link = a->next;
    qv_co_queue_wake_all(&img->alloc_waiters);
}

int qcow2_co_commit(struct qv_node *node, struct qv_alloc *alloc, int result)
{
    struct qcow2_image *img = qcow2_image_of(node);
    struct qcow2_alloc *a = qv_container_of(alloc, struct qcow2_alloc, pub);

    if (a->ticketed) {
        pthread_mutex_lock(&img->lock);
        if (result == 0) {
            install(img, a);
        } else if (!a->in_place) {
            /* Never mapped, but no longer zeros. */
            qcow2_freed_add(&img->freed_ready, a->host >> img->cluster_bits, a->count);
            qcow2_bg_kick(img, QCOW2_BG_REAP);
        }
        ticket_remove(img, a);
        pthread_mutex_unlock(&img->lock);
    }
    /* A write that failed after its cluster was mapped leaves zeros there, or part of its data. */
    if (a->table != NULL) {
        qcow2_table_unpin(img, a->table);
    }
    qv_guard_exit(node->guard, a->guard_ticket);
    g_free(a);
    return result;
}
