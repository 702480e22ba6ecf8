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

#include "base/bytes.h"
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
    CLASS_REFILL, /* has space of its own, in which what is written reads as something else */
    CLASS_FRESH,  /* reads as zeros, has no space */
    CLASS_COPY,   /* holds data that is not here */
    CLASS_CORRUPT,
};

/* The sub-clusters of guest cluster @cluster that @a writes to, or to a part of. */
static uint32_t touched(const struct qcow2_image *img, const struct qcow2_alloc *a,
                        uint64_t cluster)
{
    uint64_t start = qv_max_u64(a->offset, cluster << img->cluster_bits);
    uint64_t last = qv_min_u64(a->offset + a->len, (cluster + 1) << img->cluster_bits) - 1;
    unsigned from = (unsigned)((start & (img->cluster_size - 1)) >> qcow2_unit_bits(img));
    unsigned to = (unsigned)((last & (img->cluster_size - 1)) >> qcow2_unit_bits(img));

    return (UINT32_MAX << from) & (UINT32_MAX >> (31 - to));
}

static enum class classify(struct qcow2_image *img, const struct qcow2_alloc *a, uint64_t cluster) {
    struct qcow2_l2e e = qcow2_l2_get(img, a->table, cluster &(img->l2_entries - 1));
    enum qcow2_kind kind = qcow2_sub_kind(img, cluster, e, 0);
    bool own = (e.desc & QCOW2_OFLAG_COPIED) != 0, mapped, shows;
    uint32_t want = touched(img, a, cluster);

    if (kind == QCOW2_BAD || kind == QCOW2_COMPRESSED){return kind == QCOW2_BAD ? CLASS_CORRUPT
                                                                                : CLASS_COPY;}
kind = qcow2_entry_kind(img, e.desc);
mapped = kind == QCOW2_NORMAL && (img->sub_bits == 0 || (want & ~(uint32_t)e.bitmap) == 0);
if (img->node.data_file != NULL) { /* each guest cluster has its place there, and alone */
    return mapped ? CLASS_MAPPED : CLASS_REFILL;
}
if (kind == QCOW2_NORMAL || kind == QCOW2_ZERO_ALLOC) {
    return !own ? CLASS_COPY : mapped ? CLASS_MAPPED : CLASS_REFILL;
}
shows = kind == QCOW2_UNALLOCATED && e.bitmap != QCOW2_SUB_ALL_ZERO &&
        qcow2_backing_shows(img, cluster << img->cluster_bits);
return shows ? CLASS_COPY : CLASS_FRESH;
}

static uint64_t own_host(const struct qcow2_image *img, const struct qcow2_alloc *a)
{
    uint64_t i = a->first & (img->l2_entries - 1);

    return img->node.data_file != NULL ? a->first << img->cluster_bits
                                       : qcow2_l2_get(img, a->table, i).desc & QCOW2_L2_OFFSET_MASK;
}

/* How many clusters from the first of @a on, at most @max, are of class @cls (and adjacent in the
 * file, for those in place), and free of tickets. */
static uint64_t class_run(struct qcow2_image *img, const struct qcow2_alloc *a, enum class cls,
                          uint64_t max)
{
    uint64_t i = a->first & (img->l2_entries - 1), host = own_host(img, a);
    bool adjacent = (cls == CLASS_MAPPED || cls == CLASS_REFILL) && img->node.data_file == NULL;
    uint64_t n = 1;

    while (n < max) {
        uint64_t desc = qcow2_l2_get(img, a->table, i + n).desc;

        if (classify(img, a, a->first + n) != cls ||
            (adjacent && (desc & QCOW2_L2_OFFSET_MASK) != host + (n << img->cluster_bits)) ||
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
    uint64_t bytes;

    a->host = own_host(img, a);
    a->count = class_run(img, a, cls, max);
    bytes = a->count << img->cluster_bits;
    if (img->node.data_file != NULL) { /* it need not hold all of the last cluster */
        bytes = qv_min_u64(a->count << img->cluster_bits,
                           a->offset + a->len - (a->first << img->cluster_bits));
    } else if (qcow2_host_is_meta(img, a->host, bytes)) {
        return -EUCLEAN;
    }
    if (!qv_range_inside(a->host, bytes, qcow2_data_end(img))) {
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
        struct qcow2_l2e e = {.desc = (a->host + (n << img->cluster_bits)) | QCOW2_OFLAG_COPIED};

        /* All of it reads as zeros as it stands: later writes find it mapped. */
        e.bitmap = img->sub_bits != 0 ? QCOW2_SUB_ALL_ALLOC : 0;
        qcow2_table_set(img, a->table, i + n, e, run.need_sync);
    }
    return 0;
}

static int plan(struct qcow2_image *img, struct qcow2_alloc *a, uint64_t max)
{
    enum class cls = classify(img, a, a->first);
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

/* One cluster of a write, of which a part must be filled before it is mapped. */
struct fill {
    struct qcow2_image *img;
    const struct qcow2_alloc *a;
    uint64_t guest, host; /* the cluster; bytes */
    struct qcow2_l2e old; /* what it was; stays so while the ticket is held */
    char *buf;            /* of a cluster */
    bool inflated;        /* all of what was compressed is in buf */
};

/* Reads [@from, @to) of a cluster that nothing here was written to, from the backing image. Zeros
 * past its end, and past our own: should the disk grow, nothing of it may come to light there. */
static int co_read_below(struct fill *f, uint64_t from, uint64_t to)
{
    struct qv_node *backing = f->img->node.backing;
    uint64_t start = f->guest << f->img->cluster_bits, end = 0;

    if (backing != NULL) {
        end = qv_min_u64(atomic_load(&f->img->node.size), atomic_load(&backing->size));
        end = end > start ? qv_min_u64(to, end - start) : 0;
    }
    if (end <= from) {
        memset(f->buf + from, 0, to - from);
        return 0;
    }
    memset(f->buf + end, 0, to - end);
    return qv_co_pread(backing, start + from, f->buf + from, end - from);
}

/* Reads [@from, @to) of the cluster, all of one kind, as it was before the write. */
static int co_read_old(struct fill *f, enum qcow2_kind kind, uint64_t from, uint64_t to)
{
    int ret = 0;

    switch (kind) {
    case QCOW2_NORMAL:
        return qv_co_pread(qcow2_data_node(f->img), (f->old.desc & QCOW2_L2_OFFSET_MASK) + from,
                           f->buf + from, to - from);
    case QCOW2_COMPRESSED:
        if (!f->inflated) {
            ret = qcow2_co_decompress(f->img, f->old.desc, f->buf);
            f->inflated = ret == 0;
        }
        return ret;
    case QCOW2_UNALLOCATED:
        return co_read_below(f, from, to);
    case QCOW2_ZERO_PLAIN:
    case QCOW2_ZERO_ALLOC:
        memset(f->buf + from, 0, to - from);
        return 0;
    case QCOW2_BAD:
        break;
    }
    return -EUCLEAN;
}

static int co_write_part(struct fill *f, uint64_t from, uint64_t to)
{
    struct qv_node *file = qcow2_data_node(f->img);
    uint64_t end = atomic_load(&file->size);
    /* Sealed ones that are taken from the stock always read as zeros. */
    bool zero = f->a->zero || (f->img->seal != NULL && !f->a->in_place);

    if (f->img->node.data_file != NULL) { /* it need not hold all of the last cluster */
        to = qv_min_u64(to, end > f->host ? end - f->host : 0);
    }
    if (from >= to || (zero && qv_is_zero(f->buf + from, to - from))) {
        return 0;
    }
    return qcow2_co_data_write(f->img, (f->guest << f->img->cluster_bits) + from, f->host + from,
                               f->buf + from, to - from);
}

/* Whether sub-cluster @sub must be filled where the write does not cover it. */
static bool must_fill(const struct fill *f, enum qcow2_kind kind, unsigned sub)
{
    bool hit = (touched(f->img, f->a, f->guest) >> sub & 1) != 0;

    if (f->img->sub_bits == 0 || kind == QCOW2_COMPRESSED) {
        return true;
    }
    if (f->a->in_place) {
        return hit && kind != QCOW2_NORMAL;
    }
    return hit || kind == QCOW2_NORMAL; /* data moves to the new cluster; other kinds stay */
}

/* Fills [@from, @to) of the cluster, which the write does not cover, where that is needed. */
static int co_fill_range(struct fill *f, uint64_t from, uint64_t to)
{
    struct qcow2_image *img = f->img;
    unsigned bits = qcow2_unit_bits(img);
    int ret = 0;

    while (from < to && ret == 0) {
        unsigned sub = (unsigned)(from >> bits);
        enum qcow2_kind kind = qcow2_sub_kind(img, f->guest, f->old, sub);
        bool fill = must_fill(f, kind, sub);
        uint64_t end;

        do {
            end = qv_min_u64(to, (uint64_t)++sub << bits);
        } while (end < to && qcow2_sub_kind(img, f->guest, f->old, sub) == kind &&
                 must_fill(f, kind, sub) == fill);
        if (fill) {
            ret = co_read_old(f, kind, from, end);
            ret = ret != 0 ? ret : co_write_part(f, from, end);
        }
        from = end;
    }
    return ret;
}

/* The same for a sealed cluster: sectors move along as they are, those too that the write covers in
 * part; it reads them there. */
static int co_copy_sealed(struct fill *f, uint64_t head, uint64_t tail)
{
    struct qcow2_seal *seal = f->img->seal;
    uint64_t guest = f->guest << f->img->cluster_bits;
    uint64_t from = f->old.desc & QCOW2_L2_OFFSET_MASK, cs = f->img->cluster_size;
    uint64_t end = qv_align_up(head, QCOW2_SEAL_SECTOR);
    uint64_t start = qv_max_u64(qv_align_down(tail, QCOW2_SEAL_SECTOR), end);
    int ret = end > 0 ? seal->ops->co_copy(seal, guest, from, f->host, end) : 0;

    if (ret == 0 && start < cs) {
        ret = seal->ops->co_copy(seal, guest + start, from + start, f->host + start, cs - start);
    }
    return ret;
}

/* Fills [0, @head) and [@tail, cluster size) of cluster number @n of @a. */
static int co_fill_cluster(struct qcow2_image *img, const struct qcow2_alloc *a, uint64_t n,
                           uint64_t head, uint64_t tail)
{
    uint64_t guest = a->first + n;
    QV_CLEANUP(qv_freep) char *buf = NULL;
    struct fill f = {.img = img,
                     .a = a,
                     .guest = guest,
                     .host = a->host + (n << img->cluster_bits),
                     .old = qcow2_l2_get(img, a->table, guest & (img->l2_entries - 1))};
    int ret;

    if (head == 0 && tail == img->cluster_size) {
        return 0;
    }
    if (img->seal != NULL && qcow2_entry_kind(img, f.old.desc) == QCOW2_NORMAL) {
        return co_copy_sealed(&f, head, tail);
    }
    f.buf = buf = qv_node_mem_alloc(img->cluster_size);
    ret = co_fill_range(&f, 0, head);
    return ret != 0 ? ret : co_fill_range(&f, tail, img->cluster_size);
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
    a->offset = offset;
    a->len = *len;
    a->first = offset >> img->cluster_bits;
    ret = plan_at_once(img, a, clusters) ? 0 : co_plan(img, a, clusters);
    if (ret != 0) {
        g_free(a);
        return ret == -EUCLEAN ? qcow2_co_corrupt(img, offset, "write to a bad L2 entry, guest")
                               : ret;
    }
    *len = qv_min_u64(*len, (a->count << img->cluster_bits) - in);
    qcow2_bitmaps_mark(img, offset, *len);
    a->pub.extent = (struct qv_extent){
        .kind = QV_EXTENT_DATA, .len = *len, .host = a->host + in, .file = qcow2_data_node(img)};
    if (a->ticketed) {
        ret = co_fill(img, a, offset, *len);
        if (ret != 0) {
            return qcow2_co_commit(node, &a->pub, ret);
        }
    }
    *out = &a->pub;
    return 0;
}

/* The entry of guest cluster @cluster once the write is done. */
static struct qcow2_l2e written(struct qcow2_image *img, const struct qcow2_alloc *a,
                                uint64_t cluster, struct qcow2_l2e old)
{
    struct qcow2_l2e e = {.desc = (a->host + ((cluster - a->first) << img->cluster_bits)) |
                                  QCOW2_OFLAG_COPIED};
    uint64_t now = touched(img, a, cluster);

    if (img->sub_bits != 0) {
        e.bitmap = (old.desc & QCOW2_OFLAG_COMPRESSED) != 0 ? QCOW2_SUB_ALL_ALLOC
                                                            : (old.bitmap | now) & ~(now << 32);
    }
    return e;
}

/* Lock held. */
static void install(struct qcow2_image *img, struct qcow2_alloc *a)
{
    uint64_t i = a->first & (img->l2_entries - 1);

    for (uint64_t n = 0; n < a->count; n++) {
        struct qcow2_l2e old = qcow2_l2_get(img, a->table, i + n);

        qcow2_table_set(img, a->table, i + n, written(img, a, a->first + n, old),
                        qcow2_sync_next(img));
        if (!a->in_place) {
            qcow2_free_entry(img, old.desc);
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
