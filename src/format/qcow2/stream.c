/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Compressed clusters go into extents of 1 MiB, in memory until they are full, so that the file
 * sees large, aligned writes whatever the lengths of the pieces. Where two extents are neighbours a
 * piece may lie in both. What does not shrink is stored as it is, in clusters between extents.
 * Nothing of the file is a qcow2 image before the last write of all, its first sector.
 * Source: QEMU docs/interop/qcow2.rst, "Compressed Clusters Descriptor", "Refcounts".
 */
#include "format/qcow2/stream.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "format/qcow2/compress.h"
#include "format/qcow2/header.h"
#include "format/qcow2/layout.h"
#include "io/coroutine.h"

#define EXTENT    (UINT64_C(1) << 20)   /* bytes; at least a cluster */
#define BATCH     (UINT64_C(512) << 10) /* bytes compressed in one go; at least a cluster */
#define GROW      (UINT64_C(4) << 20)   /* the file grows by so many bytes */
#define SLOTS_MAX 64u

struct extent {
    uint8_t *buf;
    uint64_t host, used; /* bytes */
    struct extent *next;
};

/* What one compression needs. */
struct slot {
    struct qcow2_compressor *compressor;
    uint8_t *out;  /* pieces, one behind the other */
    uint8_t *last; /* the disk's last cluster, filled up with zeros */
    uint32_t *len; /* of each piece; 0: stored as it is */
    struct slot *next;
};

struct qcow2_stream {
    struct qv_node *file;
    struct qcow2_header h;
    uint64_t cs, extent_size, batch;
    uint64_t refs_max; /* pieces in a cluster */

    struct qv_co_mutex space; /* below */
    uint64_t end;             /* bytes of the file given out */
    struct extent *cur;       /* being filled; NULL: none */
    GArray *refs;             /* uint16_t, by cluster of the file */
    qv_be64 **l2;             /* by L1 index; NULL: empty */

    pthread_mutex_t lock; /* below */
    struct extent *spare; /* memory that is there already; as many as were filled at once */
    struct qv_co_queue waiters;
    struct slot *free_slots;
    unsigned slots_left; /* that may still be made */
};

/* ---- slots ---- */

static void slot_free(struct slot *slot)
{
    qcow2_compressor_free(slot->compressor);
    g_free(slot->out);
    g_free(slot->last);
    g_free(slot->len);
    g_free(slot);
}

static struct slot *slot_new(const struct qcow2_stream *s)
{
    struct slot *slot = g_new0(struct slot, 1);

    slot->compressor = qcow2_compressor_new(s->h.compression_type == QCOW2_COMPRESSION_ZSTD);
    slot->out = g_malloc(s->batch);
    slot->last = g_malloc(s->cs);
    slot->len = g_new0(uint32_t, s->batch / s->cs);
    if (slot->compressor == NULL) {
        slot_free(slot);
        return NULL;
    }
    return slot;
}

/* As many as there are processors, so that no more than these compress at once. */
static struct slot *co_slot_take(struct qcow2_stream *s)
{
    struct slot *slot;

    pthread_mutex_lock(&s->lock);
    while (s->free_slots == NULL && s->slots_left == 0) {
        qv_co_queue_wait(&s->waiters, &s->lock);
    }
    slot = s->free_slots;
    if (slot != NULL) {
        s->free_slots = slot->next;
    } else {
        s->slots_left--;
    }
    pthread_mutex_unlock(&s->lock);
    if (slot != NULL) {
        return slot;
    }
    slot = slot_new(s);
    if (slot == NULL) {
        pthread_mutex_lock(&s->lock);
        s->slots_left++;
        qv_co_queue_wake_one(&s->waiters); /* who finds the same */
        pthread_mutex_unlock(&s->lock);
    }
    return slot;
}

static void slot_put(struct qcow2_stream *s, struct slot *slot)
{
    pthread_mutex_lock(&s->lock);
    slot->next = s->free_slots;
    s->free_slots = slot;
    qv_co_queue_wake_one(&s->waiters);
    pthread_mutex_unlock(&s->lock);
}

/* ---- compressing, on the thread pool ---- */

struct compress_job {
    const struct qcow2_stream *s;
    struct slot *slot;
    const uint8_t *in;
    uint64_t len;
};

static int run_compress(void *arg)
{
    struct compress_job *job = arg;
    const uint64_t cs = job->s->cs;
    size_t used = 0, n = 0;

    for (uint64_t at = 0; at < job->len; at += cs, n++) {
        const uint8_t *in = job->in + at;
        uint64_t left = job->len - at;

        if (left < cs) {
            memset(job->slot->last, 0, cs);
            memcpy(job->slot->last, in, left);
            in = job->slot->last;
        }
        /* At least a sector must be won, else reading it is not worth the work. */
        job->slot->len[n] = (uint32_t)qcow2_compress(
            job->slot->compressor, in, cs, job->slot->out + used, cs - QCOW2_COMPRESSED_SECTOR);
        used += job->slot->len[n];
    }
    return 0;
}

/* ---- space, under s->space ---- */

static int co_make_room(struct qcow2_stream *s, uint64_t end)
{
    if (end <= atomic_load(&s->file->size)) {
        return 0;
    }
    return qv_node_co_truncate(s->file, qv_align_up(end, GROW));
}

/* @len bytes, a multiple of the cluster size, at the end. */
static int co_take_space(struct qcow2_stream *s, uint64_t len, uint64_t *host)
{
    uint16_t none = 0;
    int ret = co_make_room(s, s->end + len);

    if (ret != 0) {
        return ret;
    }
    *host = s->end;
    s->end += len;
    while (s->refs->len < s->end >> s->h.cluster_bits) {
        g_array_append_val(s->refs, none);
    }
    return 0;
}

static uint16_t *refs_of(struct qcow2_stream *s, uint64_t host)
{
    return &g_array_index(s->refs, uint16_t, host >> s->h.cluster_bits);
}

static void set_entry(struct qcow2_stream *s, uint64_t guest, uint64_t entry)
{
    unsigned l2_bits = qcow2_l2_bits(&s->h);
    qv_be64 **table = &s->l2[guest >> l2_bits];
    uint64_t i = guest & ((UINT64_C(1) << l2_bits) - 1);

    if (*table == NULL) {
        *table = g_malloc0(s->cs);
    }
    if (!qcow2_has_extl2(&s->h)) {
        (*table)[i] = qv_be64_make(entry);
        return;
    }
    (*table)[2 * i] = qv_be64_make(entry);
    if ((entry & QCOW2_OFLAG_COMPRESSED) == 0) {
        (*table)[2 * i + 1] = qv_be64_make(QCOW2_SUB_ALL_ALLOC);
    }
}

/* Memory for an extent. Used again: the kernel clears each page that is new. */
static struct extent *extent_get(struct qcow2_stream *s)
{
    struct extent *e;

    pthread_mutex_lock(&s->lock);
    e = s->spare;
    if (e != NULL) {
        s->spare = e->next;
    }
    pthread_mutex_unlock(&s->lock);
    if (e == NULL) {
        e = g_new0(struct extent, 1);
        e->buf = qv_node_mem_alloc(s->extent_size);
    }
    e->next = NULL;
    e->used = 0;
    return e;
}

static void extent_put(struct qcow2_stream *s, struct extent *e)
{
    pthread_mutex_lock(&s->lock);
    e->next = s->spare;
    s->spare = e;
    pthread_mutex_unlock(&s->lock);
}

/* A new extent to fill; the old one, if any, goes to the front of *@full. */
static int co_next_extent(struct qcow2_stream *s, struct extent **full)
{
    struct extent *e = extent_get(s);
    int ret = co_take_space(s, s->extent_size, &e->host);

    if (ret != 0) {
        extent_put(s, e);
        return ret;
    }
    if (s->cur != NULL) {
        s->cur->next = *full;
        *full = s->cur;
    }
    s->cur = e;
    return 0;
}

static void fill_extent(struct extent *e, const uint8_t *data, uint64_t len)
{
    memcpy(e->buf + e->used, data, len);
    e->used += len;
}

/* Finds a place for a piece and copies it there. */
static int co_place(struct qcow2_stream *s, uint64_t guest, const uint8_t *data, uint64_t len,
                    struct extent **full)
{
    unsigned shift = 62 - (s->h.cluster_bits - 8);
    struct extent *e = s->cur;
    uint64_t host, fits;
    int ret;

    if (e != NULL && e->used < s->extent_size && *refs_of(s, e->host + e->used) >= s->refs_max) {
        uint64_t gap = qv_align_up(e->used, s->cs) - e->used;

        memset(e->buf + e->used, 0, gap);
        e->used += gap; /* its refcount can count no more pieces */
    }
    fits = e == NULL ? 0 : qv_min_u64(len, s->extent_size - e->used);
    if (fits < len && e != NULL && e->host + s->extent_size != s->end) {
        fits = 0; /* what follows is something else */
    }
    host = e == NULL ? 0 : e->host + e->used;
    if (fits > 0) {
        fill_extent(e, data, fits);
    }
    if (fits < len) {
        ret = co_next_extent(s, full);
        if (ret != 0) {
            return ret;
        }
        host = fits == 0 ? s->cur->host : host;
        fill_extent(s->cur, data + fits, len - fits);
    }
    if (host + len > UINT64_C(1) << shift) {
        return -EFBIG;
    }
    for (uint64_t at = qv_align_down(host, s->cs); at < host + len; at += s->cs) {
        ++*refs_of(s, at);
    }
    set_entry(s, guest, qcow2_compressed_entry(s->h.cluster_bits, host, len));
    return 0;
}

/* Space for @n clusters stored as they are. */
static int co_place_plain(struct qcow2_stream *s, uint64_t guest, uint64_t n, uint64_t *host)
{
    int ret = co_take_space(s, n * s->cs, host);

    for (uint64_t i = 0; i < n && ret == 0; i++) {
        *refs_of(s, *host + i * s->cs) = 1;
        set_entry(s, guest + i, (*host + i * s->cs) | QCOW2_OFLAG_COPIED);
    }
    return ret;
}

/* ---- writing ---- */

static int co_write_extents(struct qcow2_stream *s, struct extent *list)
{
    int ret = 0;

    while (list != NULL) {
        struct extent *e = list;
        uint64_t len = qv_align_up(e->used, s->cs);

        list = e->next;
        memset(e->buf + e->used, 0, len - e->used);
        ret = ret != 0 ? ret : qv_co_pwrite(s->file, e->host, e->buf, len);
        extent_put(s, e);
    }
    return ret;
}

static int co_write_plain(struct qcow2_stream *s, uint64_t host, const uint8_t *buf, uint64_t len)
{
    uint64_t whole = qv_align_down(len, s->cs);
    int ret = whole > 0 ? qv_co_pwrite(s->file, host, buf, whole) : 0;

    if (ret == 0 && whole < len) { /* the disk's last cluster */
        uint8_t *last = qv_node_mem_alloc(s->cs);

        memset(last, 0, s->cs);
        memcpy(last, buf + whole, len - whole);
        ret = qv_co_pwrite(s->file, host + whole, last, s->cs);
        free(last);
    }
    return ret;
}

/* A run of clusters that stay as they are. */
struct plain {
    uint64_t at, len, host; /* bytes of the batch; place in the file */
};

/* Gives every cluster of the batch its place, and copies what is compressed. */
static int co_place_batch(struct qcow2_stream *s, uint64_t offset, uint64_t len,
                          const struct slot *slot, GArray *plain, struct extent **full)
{
    uint64_t n = qv_div_up(len, s->cs), guest = offset >> s->h.cluster_bits, used = 0;
    int ret = 0;

    qv_co_mutex_lock(&s->space);
    for (uint64_t i = 0; i < n && ret == 0;) {
        uint64_t run = 0;

        if (slot->len[i] != 0) {
            ret = co_place(s, guest + i, slot->out + used, slot->len[i], full);
            used += slot->len[i++];
            continue;
        }
        while (i + run < n && slot->len[i + run] == 0) {
            run++;
        }
        struct plain p = {.at = i * s->cs, .len = qv_min_u64(run * s->cs, len - i * s->cs)};

        ret = co_place_plain(s, guest + i, run, &p.host);
        g_array_append_val(plain, p);
        i += run;
    }
    qv_co_mutex_unlock(&s->space);
    return ret;
}

static int co_write_batch(struct qcow2_stream *s, uint64_t offset, const uint8_t *buf, uint64_t len)
{
    g_autoptr(GArray) plain = g_array_new(FALSE, FALSE, sizeof(struct plain));
    struct extent *full = NULL;
    struct compress_job job = {.s = s, .slot = co_slot_take(s), .in = buf, .len = len};
    int ret, rc;

    if (job.slot == NULL) {
        return -ENOMEM;
    }
    ret = qv_co_blocking(run_compress, &job);
    ret = ret != 0 ? ret : co_place_batch(s, offset, len, job.slot, plain, &full);
    slot_put(s, job.slot);
    rc = co_write_extents(s, full);
    ret = ret != 0 ? ret : rc;
    for (guint i = 0; i < plain->len && ret == 0; i++) {
        const struct plain p = g_array_index(plain, struct plain, i);

        ret = co_write_plain(s, p.host, buf + p.at, p.len);
    }
    return ret;
}

int qcow2_stream_co_write(struct qcow2_stream *s, uint64_t offset, const void *buf, uint64_t len)
{
    int ret = 0;

    if (offset % s->cs != 0 || !qv_range_inside(offset, len, s->h.size) ||
        (len % s->cs != 0 && offset + len <= qv_align_down(s->h.size - 1, s->cs))) {
        return -EINVAL;
    }
    for (uint64_t done = 0; done < len && ret == 0; done += s->batch) {
        ret = co_write_batch(s, offset + done, (const uint8_t *)buf + done,
                             qv_min_u64(s->batch, len - done));
    }
    return ret;
}

/* ---- the end: metadata ---- */

/* Space of the last extent that nothing was put into goes back, where it is the last of all. */
static int co_end_extents(struct qcow2_stream *s)
{
    struct extent *e = s->cur;

    s->cur = NULL;
    if (e == NULL) {
        return 0;
    }
    if (e->host + s->extent_size == s->end) {
        s->end = e->host + qv_align_up(e->used, s->cs);
        g_array_set_size(s->refs, (guint)(s->end >> s->h.cluster_bits));
    }
    return co_write_extents(s, e);
}

/* Takes a cluster for metadata. */
static int co_take_meta(struct qcow2_stream *s, uint64_t clusters, uint64_t *host)
{
    int ret = co_take_space(s, clusters * s->cs, host);

    for (uint64_t i = 0; i < clusters && ret == 0; i++) {
        *refs_of(s, *host + i * s->cs) = 1;
    }
    return ret;
}

static int co_write_map(struct qcow2_stream *s)
{
    uint64_t clusters = qv_div_up((uint64_t)s->h.l1_size * sizeof(qv_be64), s->cs);
    qv_be64 *l1 = qv_node_mem_alloc(clusters * s->cs);
    int ret = 0;

    memset(l1, 0, clusters * s->cs);
    for (uint64_t i = 0; i < s->h.l1_size && ret == 0; i++) {
        uint64_t host;

        if (s->l2[i] == NULL) {
            continue;
        }
        ret = co_take_meta(s, 1, &host);
        ret = ret != 0 ? ret : qv_co_pwrite(s->file, host, s->l2[i], s->cs);
        if (ret == 0) {
            l1[i] = qv_be64_make(host | QCOW2_OFLAG_COPIED);
        }
    }
    ret = ret != 0 ? ret : co_take_meta(s, clusters, &s->h.l1_table_offset);
    ret = ret != 0 ? ret : qv_co_pwrite(s->file, s->h.l1_table_offset, l1, clusters * s->cs);
    free(l1);
    return ret;
}

static int co_write_blocks(struct qcow2_stream *s, uint64_t first, uint64_t blocks)
{
    uint64_t per_block = UINT64_C(1) << qcow2_rb_bits(&s->h);
    uint8_t *buf = qv_node_mem_alloc(s->cs);
    int ret = 0;

    for (uint64_t b = 0; b < blocks && ret == 0; b++) {
        memset(buf, 0, s->cs);
        for (uint64_t i = 0; i < per_block && b * per_block + i < s->refs->len; i++) {
            qcow2_refcount_set(buf, s->h.refcount_order, i,
                               g_array_index(s->refs, uint16_t, b * per_block + i));
        }
        ret = qv_co_pwrite(s->file, first + b * s->cs, buf, s->cs);
    }
    free(buf);
    return ret;
}

static int co_write_refcounts(struct qcow2_stream *s)
{
    struct qcow2_layout layout;
    uint64_t first = 0, len;
    qv_be64 *table;
    int ret;

    if (!qcow2_layout_refcounts(&s->h, s->end >> s->h.cluster_bits, &layout)) {
        return -EFBIG;
    }
    ret = co_take_meta(s, layout.blocks + layout.table_clusters, &first);
    ret = ret != 0 ? ret : co_write_blocks(s, first, layout.blocks);
    if (ret != 0) {
        return ret;
    }
    s->h.refcount_table_offset = first + layout.blocks * s->cs;
    s->h.refcount_table_clusters = (uint32_t)layout.table_clusters;
    len = layout.table_clusters * s->cs;
    table = qv_node_mem_alloc(len);
    memset(table, 0, len);
    for (uint64_t i = 0; i < layout.blocks; i++) {
        table[i] = qv_be64_make(first + i * s->cs);
    }
    ret = qv_co_pwrite(s->file, s->h.refcount_table_offset, table, len);
    free(table);
    return ret;
}

static bool co_write_header(struct qcow2_stream *s, GError **error)
{
    QV_CLEANUP(qv_freep) uint8_t *buf = qv_node_mem_alloc(s->cs);
    const uint64_t sector = QV_SECTOR_SIZE;
    int ret = 0;

    if (!qcow2_header_serialize(&s->h, buf, s->cs, error)) {
        return false;
    }
    if (s->cs > sector) {
        ret = qv_co_pwrite(s->file, sector, buf + sector, s->cs - sector);
    }
    ret = ret != 0 ? ret : qv_co_flush(s->file); /* edge: all of it before what makes it an image */
    ret = ret != 0 ? ret : qv_co_pwrite(s->file, 0, buf, sector);
    ret = ret != 0 ? ret : qv_co_flush(s->file);
    return ret == 0 || qv_fail_errno(error, ret, "cannot write the new image");
}

bool qcow2_stream_co_end(struct qcow2_stream *s, GError **error)
{
    int ret = co_end_extents(s);

    ret = ret != 0 ? ret : co_write_map(s);
    ret = ret != 0 ? ret : co_write_refcounts(s);
    ret = ret != 0 ? ret : qv_node_co_truncate(s->file, s->end);
    if (ret != 0) {
        return qv_fail_errno(error, ret, "cannot write the new image");
    }
    return co_write_header(s, error);
}

/* ---- */

bool qcow2_stream_new(struct qv_node *file, const struct qcow2_create_opts *opts,
                      struct qcow2_stream **out, GError **error)
{
    struct qcow2_stream *s;
    struct qcow2_header h = {0};
    uint16_t one = 1;

    if (!qcow2_header_for_new(opts, &h, error)) {
        qcow2_header_clear(&h);
        return false;
    }
    if (h.backing_file != NULL || opts->prealloc != QCOW2_PREALLOC_OFF) {
        qcow2_header_clear(&h);
        return qv_fail(error, QV_ERROR_USAGE,
                       "compressed images have no preallocation and no backing image");
    }
    s = g_new0(struct qcow2_stream, 1);
    s->file = file;
    s->h = h;
    s->cs = qcow2_cluster_size(&h);
    s->refs_max = qv_min_u64(qcow2_refcount_max(&h), UINT16_MAX);
    s->extent_size = qv_max_u64(EXTENT, s->cs);
    s->batch = qv_max_u64(BATCH, s->cs);
    s->end = s->cs; /* the header */
    s->refs = g_array_new(FALSE, TRUE, sizeof(uint16_t));
    g_array_append_val(s->refs, one);
    s->l2 = g_new0(qv_be64 *, h.l1_size);
    s->slots_left = CLAMP(g_get_num_processors(), 1u, SLOTS_MAX);
    qv_co_mutex_init(&s->space);
    pthread_mutex_init(&s->lock, NULL);
    *out = s;
    return true;
}

void qcow2_stream_free(struct qcow2_stream *s)
{
    if (s == NULL) {
        return;
    }
    while (s->free_slots != NULL) {
        struct slot *slot = s->free_slots;

        s->free_slots = slot->next;
        slot_free(slot);
    }
    if (s->cur != NULL) {
        extent_put(s, s->cur);
    }
    while (s->spare != NULL) {
        struct extent *e = s->spare;

        s->spare = e->next;
        free(e->buf);
        g_free(e);
    }
    for (uint64_t i = 0; i < s->h.l1_size; i++) {
        g_free(s->l2[i]);
    }
    g_free(s->l2);
    g_array_free(s->refs, TRUE);
    qv_co_mutex_destroy(&s->space);
    pthread_mutex_destroy(&s->lock);
    qcow2_header_clear(&s->h);
    g_free(s);
}
