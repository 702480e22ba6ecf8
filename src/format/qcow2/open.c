/* SPDX-License-Identifier: Apache-2.0 */
/* Opening and closing. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "format/qcow2/qcow2_int.h"
#include "format/qcow2/rebuild.h"
#include "format/qcow2/snapshot_list.h"
#include "format/qcow2/tables.h"

#define KNOWN_FEATURES                                                                             \
    (QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT | QCOW2_INCOMPAT_COMPRESSION |                  \
     QCOW2_INCOMPAT_DATA_FILE | QCOW2_INCOMPAT_EXTL2)
#define TABLES_MIN     4u
#define TABLE_OVERHEAD 512u /* what a table costs besides its entries, where that matters */

static int qcow2_co_close(struct qv_node *node);

static const struct qv_format_ops qcow2_format = {
    .name = "qcow2",
    .lookup = qcow2_lookup,
    .co_load = qcow2_co_load,
    .co_alloc = qcow2_co_alloc,
    .co_commit = qcow2_co_commit,
    .co_zero = qcow2_co_zero,
    .co_discard = qcow2_co_discard,
    .co_flush = qcow2_co_flush,
    .co_read_special = qcow2_co_read_special,
};

static const struct qv_node_ops qcow2_ops = {
    .name = "qcow2",
    .submit = qv_format_submit,
    .co_truncate = qcow2_co_truncate,
    .co_status = qcow2_co_status,
    .co_close = qcow2_co_close,
};

/* ---- the struct ---- */

static struct qcow2_image *image_new(struct qv_node *file, const struct qcow2_open_opts *opts)
{
    struct qcow2_image *img = g_new0(struct qcow2_image, 1);
    struct qv_guard *guard = aligned_alloc(64, sizeof(*guard));

    if (guard == NULL) {
        g_error("out of memory"); /* exits */
    }
    qv_guard_init(guard);
    img->node.ops = &qcow2_ops;
    img->node.format = &qcow2_format;
    img->node.name = g_strdup(opts->name);
    img->node.file = file;
    img->node.backing = opts->backing;
    img->node.data_file = opts->data_file;
    img->seal = opts->seal;
    img->node.readonly = opts->readonly;
    img->node.guard = guard;
    img->node.gate = qv_gate_new();
    img->check_only = opts->check_only;
    img->home = qv_thread_self();
    pthread_mutex_init(&img->lock, NULL);
    qv_co_mutex_init(&img->ops_lock);
    qv_co_mutex_init(&img->commit_lock);
    qv_co_mutex_init(&img->ref_lock);
    qcow2_metaset_init(&img->meta);
    img->dirty_tail = &img->dirty_head;
    img->runs_tail = &img->runs;
    for (int i = 0; i < QCOW2_BG_COUNT; i++) {
        img->bg[i].img = img;
        img->bg[i].kind = (enum qcow2_bg)i;
    }
    return img;
}

static void tables_free(struct qcow2_image *img)
{
    while (img->clock != NULL && img->n_tables > 0) {
        struct qcow2_table *t = img->clock;

        img->clock = t->next;
        img->n_tables--;
        qcow2_table_free(t);
    }
}

static void image_free(struct qcow2_image *img)
{
    struct qcow2_map *map = qcow2_map_get(img);

    qcow2_journal_free(img->journal);
    qcow2_bitmaps_free(img->bitmaps);
    tables_free(img);
    if (map != NULL) {
        qcow2_map_free(map);
    }
    qcow2_retired_free(img->retired);
    while (img->runs != NULL) {
        struct qcow2_run *run = img->runs;

        img->runs = run->next;
        g_free(run);
    }
    g_free(img->freed_new.v);
    g_free(img->freed_ready.v);
    g_free(img->loading);
    free(img->commit_buf);
    qcow2_refs_close(img);
    qcow2_metaset_destroy(&img->meta);
    qcow2_header_clear(&img->header);
    qv_co_mutex_destroy(&img->ops_lock);
    qv_co_mutex_destroy(&img->commit_lock);
    qv_co_mutex_destroy(&img->ref_lock);
    pthread_mutex_destroy(&img->lock);
    qv_guard_destroy(img->node.guard);
    free(img->node.guard);
    qv_gate_free(img->node.gate);
    g_free(img);
}

static int qcow2_co_close(struct qv_node *node)
{
    struct qcow2_image *img = qcow2_image_of(node);
    int ret = 0;

    if (img->opened) {
        pthread_mutex_lock(&img->lock);
        img->closing = true;
        pthread_mutex_unlock(&img->lock);
        qcow2_co_bg_wait(img);
        if (!node->readonly) {
            ret = qcow2_co_write_back(img);
            qcow2_co_reap(img); /* what this made free, and what was ready before */
            if (ret == 0) {
                qcow2_co_bitmaps_store(img);
                ret = qcow2_co_give_back(img);
            }
        }
    }
    if (img->seal != NULL) {
        int r = img->seal->ops->co_close(img->seal);

        ret = ret != 0 ? ret : r;
    }
    image_free(img);
    return ret;
}

/* ---- what the header says ---- */

static bool check_header(struct qcow2_image *img, GError **error)
{
    const struct qcow2_header *h = &img->header;
    uint64_t known = KNOWN_FEATURES;

    if (img->seal != NULL) { /* sectors of 4 KiB do not fit into sub-clusters */
        known &= ~(QCOW2_INCOMPAT_EXTL2 | QCOW2_INCOMPAT_DATA_FILE);
        known |= QCOW2_INCOMPAT_QV_SEALED;
    }
    if (!qcow2_header_supported(h, known, error)) {
        return false;
    }
    if (img->seal != NULL &&
        ((h->incompatible_features & QCOW2_INCOMPAT_QV_SEALED) == 0 || !h->has_seal)) {
        return qv_fail(error, QV_ERROR_CORRUPT, "the image is not encrypted");
    }
    if ((h->incompatible_features & QCOW2_INCOMPAT_CORRUPT) != 0 && !img->node.readonly &&
        !img->check_only) {
        qv_fail(error, QV_ERROR_CORRUPT, "the image is marked corrupt and cannot be written");
        qv_error_hint(error, "repair it, or open it read-only and copy what is left");
        return false;
    }
    if (!img->check_only && h->backing_file != NULL && img->node.backing == NULL) {
        return qv_fail(error, QV_ERROR_USAGE, "its backing image \"%s\" is not open",
                       h->backing_file);
    }
    if (!img->check_only && (h->incompatible_features & QCOW2_INCOMPAT_DATA_FILE) != 0 &&
        img->node.data_file == NULL) {
        return qv_fail(error, QV_ERROR_USAGE, "its data file \"%s\" is not open",
                       h->data_file != NULL ? h->data_file : "");
    }
    if (!img->check_only && qcow2_l1_entries_for(h, h->size) > h->l1_size) {
        return qv_fail(error, QV_ERROR_CORRUPT, "the L1 table is too small for the disk");
    }
    return true;
}

/* The header in memory becomes one whose disk is the snapshot's. It is never written. */
static bool co_show_snapshot(struct qcow2_image *img, const char *name, GError **error)
{
    g_autoptr(GPtrArray) list = NULL;
    const struct qcow2_snapshot *s;

    if (!img->node.readonly) {
        return qv_fail(error, QV_ERROR_USAGE, "a snapshot can only be opened read-only");
    }
    if (!qcow2_co_snapshots_read(img->node.file, &img->header, &list, NULL, error)) {
        return false;
    }
    s = qcow2_snapshot_find(list, name);
    if (s == NULL) {
        return qv_fail(error, QV_ERROR_NOT_FOUND, "there is no snapshot \"%s\"", name);
    }
    if (s->disk_size > INT64_MAX ||
        qcow2_l1_entries_for(&img->header, s->disk_size) > QCOW2_L1_MAX_BYTES / sizeof(uint64_t)) {
        return qv_fail(error, QV_ERROR_CORRUPT, "snapshot \"%s\" has no sensible size", name);
    }
    img->header.size = s->disk_size;
    img->header.l1_table_offset = s->l1_table_offset;
    img->header.l1_size = s->l1_size;
    return true;
}

/* Requests go to either file. */
static void join_limits(struct qv_limits *limits, const struct qv_limits *data)
{
    limits->request_align = MAX(limits->request_align, data->request_align);
    limits->mem_align = MAX(limits->mem_align, data->mem_align);
    limits->physical_block = MAX(limits->physical_block, data->physical_block);
    limits->memory_backed = limits->memory_backed && data->memory_backed;
    limits->rotational = limits->rotational || data->rotational;
}

static void set_geometry(struct qcow2_image *img, uint64_t cache_size)
{
    const struct qcow2_header *h = &img->header;
    struct qv_node *node = &img->node;

    img->cluster_bits = h->cluster_bits;
    img->cluster_size = qcow2_cluster_size(h);
    img->l2_bits = qcow2_l2_bits(h);
    img->sub_bits = qcow2_has_extl2(h) ? QCOW2_SUB_BITS : 0;
    img->l2_entries = UINT64_C(1) << img->l2_bits;
    img->rb_bits = qcow2_rb_bits(h);
    if (img->sub_bits == 0 && node->data_file == NULL) {
        img->plain_mask = QCOW2_L2_OFFSET_MASK & ~(img->cluster_size - 1);
    }
    img->has_backing = h->backing_file != NULL || node->backing != NULL;
    img->file_grows = node->file->limits.new_space_is_zero;
    img->file_size_at_open = atomic_load(&node->file->size);
    cache_size = cache_size != 0 ? cache_size : QCOW2_CACHE_DEFAULT;
    img->max_tables = qv_max_u64(
        cache_size / (img->cluster_size + (img->cluster_size < 4096 ? TABLE_OVERHEAD : 0)),
        TABLES_MIN);
    atomic_store(&node->size, h->size);
    atomic_store(&img->file_end, img->file_size_at_open);
    node->limits = node->file->limits;
    if (node->data_file != NULL) {
        join_limits(&node->limits, &node->data_file->limits);
    }
    node->limits.discard_granularity = img->cluster_size;
    node->limits.zero_is_cheap = true;
    node->limits.new_space_is_zero = true;
}

/* ---- metadata in memory ---- */

static bool co_read_l1(struct qcow2_image *img, GError **error)
{
    const struct qcow2_header *h = &img->header;
    uint64_t entries = h->l1_size;
    uint64_t bytes = entries * sizeof(uint64_t);
    uint64_t need = qcow2_l1_entries_for(h, h->size); /* more: an old snapshot of a smaller disk */
    struct qcow2_map *map;
    int ret = 0;

    if (!qv_range_inside(h->l1_table_offset, bytes, img->file_size_at_open)) {
        return qv_fail(error, QV_ERROR_CORRUPT, "the L1 table lies past the end of the file");
    }
    map = qcow2_map_new(img, img->check_only ? entries : qv_max_u64(entries, need),
                        h->l1_table_offset, qv_div_up(bytes, img->cluster_size));
    atomic_store(&img->map, map);
    if (bytes > 0) {
        ret = qv_co_pread(img->node.file, h->l1_table_offset, qcow2_bytes(map->l1), bytes);
    }
    return ret == 0 || qv_fail_errno(error, ret, "cannot read the L1 table");
}

static void meta_add_range(struct qcow2_image *img, uint64_t offset, uint64_t bytes)
{
    if (bytes == 0) {
        return;
    }
    for (uint64_t c = offset >> img->cluster_bits; c <= (offset + bytes - 1) >> img->cluster_bits;
         c++) {
        free(qcow2_metaset_add(&img->meta, c)); /* nobody reads the set yet */
    }
}

static void meta_add_entry(struct qcow2_image *img, uint64_t offset)
{
    if (offset != 0 && qv_is_aligned(offset, img->cluster_size) &&
        offset < atomic_load(&img->file_end)) {
        free(qcow2_metaset_add(&img->meta, offset >> img->cluster_bits));
    }
}

/* The snapshot table and the L1 tables it names are not to be written over. */
static bool co_add_snapshots(struct qcow2_image *img, GError **error)
{
    g_autoptr(GPtrArray) list = NULL;
    uint64_t stored;

    if (!qcow2_co_snapshots_read(img->node.file, &img->header, &list, &stored, error)) {
        return false;
    }
    for (guint i = 0; i < list->len; i++) {
        const struct qcow2_snapshot *s = list->pdata[i];

        meta_add_range(img, s->l1_table_offset, (uint64_t)s->l1_size * sizeof(uint64_t));
    }
    meta_add_range(img, img->header.snapshots_offset, stored);
    return true;
}

static bool co_add_meta(struct qcow2_image *img, GError **error)
{
    const struct qcow2_header *h = &img->header;
    struct qcow2_map *map = qcow2_map_get(img);

    meta_add_range(img, 0, 1);
    meta_add_range(img, map->l1_offset, map->l1_clusters << img->cluster_bits);
    meta_add_range(img, h->refcount_table_offset,
                   (uint64_t)h->refcount_table_clusters << img->cluster_bits);
    for (uint64_t i = 0; i < img->refs.entries; i++) {
        meta_add_entry(img, qv_be64_get(img->refs.table[i]));
    }
    for (uint64_t i = 0; i < map->l1_entries; i++) {
        meta_add_entry(img, qcow2_entry(map->l1, i) & QCOW2_L1_OFFSET_MASK);
    }
    return co_add_snapshots(img, error);
}

/* ---- opening for writing ---- */

static bool co_mend(struct qcow2_image *img, int journal_fd, GError **error)
{
    struct qcow2_header h = {0};

    if ((img->header.incompatible_features & QCOW2_INCOMPAT_DIRTY) == 0) {
        return true;
    }
    if (journal_fd > 0 && qcow2_journal_pending(journal_fd)) {
        /*
         * A process of ours had the image: it keeps refcounts right, and set the mark for what a
         * deletion that was cut off has leaked. What the journal is about to map has references
         * nowhere in the file yet, so now is not the time to count; the mark stays for the next.
         */
        return true;
    }
    qv_info("%s: was not closed; rebuilding its refcounts", img->node.name);
    if (!qcow2_co_rebuild_dirty(img->node.file, NULL, error) ||
        !qcow2_co_header_read(img->node.file, &h, error)) {
        return false;
    }
    qcow2_header_clear(&img->header);
    img->header = h;
    return true;
}

/* The data file holds all of the disk, so that no write ever makes it longer. */
static int co_stretch_data(struct qcow2_image *img)
{
    struct qv_node *data = img->node.data_file;
    uint64_t size = img->header.size;

    return data == NULL || atomic_load(&data->size) >= size ? 0 : qv_node_co_truncate(data, size);
}

/* The autoclear features that stay true while we write. */
static uint64_t kept_features(const struct qcow2_image *img)
{
    uint64_t kept = img->bitmaps != NULL ? QCOW2_AUTOCLEAR_BITMAPS : 0;

    /* A data file that is to look like the disk cannot, where some of it is a backing image's. */
    if (img->node.data_file != NULL && !img->has_backing) {
        kept |= QCOW2_AUTOCLEAR_RAW_DATA;
    }
    return img->header.autoclear_features & kept;
}

/* The file gets whole clusters, and features whose data we do not keep up to date are told so. */
static bool co_begin_writing(struct qcow2_image *img, GError **error)
{
    uint64_t end = atomic_load(&img->node.file->size);
    int ret = 0;

    if (img->file_grows) {
        end = qv_align_up(end, qv_max_u64(img->cluster_size, QCOW2_END_ALIGN));
        if (end != atomic_load(&img->node.file->size)) {
            ret = qv_node_co_truncate(img->node.file, end);
        }
    }
    if (ret != 0) {
        return qv_fail_errno(error, ret, "cannot make the file longer");
    }
    ret = co_stretch_data(img);
    if (ret != 0) {
        return qv_fail_errno(error, ret, "its data file is shorter than the disk");
    }
    atomic_store(&img->file_end, qv_align_down(end, img->cluster_size));
    ret = qcow2_co_bitmaps_load(img);
    if (ret != 0) {
        return qv_fail_errno(error, ret, "cannot read its dirty bitmaps");
    }
    if (img->header.autoclear_features != kept_features(img)) {
        img->header.autoclear_features = kept_features(img);
        ret = qcow2_co_header_write(img);
    }
    return ret == 0 || qv_fail_errno(error, ret, "cannot write the header");
}

/* An image whose refcounts miss even the header would be written over. */
static bool co_check_refcounts(struct qcow2_image *img, GError **error)
{
    uint64_t refs = 0;
    int ret = qcow2_refs_co_get(img, 0, &refs);

    if (ret != 0) {
        return qv_fail_errno(error, ret, "cannot read refcounts");
    }
    return refs > 0 || qv_fail(error, QV_ERROR_CORRUPT,
                               "refcounts are wrong (0 for the header); repair the image first");
}

/* An image that names no backing image has none, whatever the caller thinks: it may have been
 * flattened since. Nor does one have a data file that does not say so. */
static bool co_drop_strays(struct qcow2_image *img)
{
    if ((img->header.incompatible_features & QCOW2_INCOMPAT_DATA_FILE) == 0) {
        qv_node_co_close_tree(g_steal_pointer(&img->node.data_file));
    }
    if (img->header.backing_file == NULL) {
        qv_node_co_close_tree(g_steal_pointer(&img->node.backing)); /* it was only read */
    }
    return true;
}

static bool co_begin_bitmaps(struct qcow2_image *img, GError **error)
{
    int ret = qcow2_co_bitmaps_begin(img);

    return ret == 0 || qv_fail_errno(error, ret, "cannot mark its dirty bitmaps as in use");
}

/* What an I/O process before this one completed and did not write. */
static bool co_take_over(struct qcow2_image *img, int journal_fd, GError **error)
{
    return journal_fd <= 0 ||
           (qcow2_journal_open(journal_fd, img->cluster_bits, &img->journal, error) &&
            qcow2_journal_co_replay(img, error));
}

static bool co_open(struct qcow2_image *img, const struct qcow2_open_opts *opts, GError **error)
{
    bool writing = !img->node.readonly && !img->check_only;

    if (!qcow2_co_header_read(img->node.file, &img->header, error) || !check_header(img, error) ||
        !co_drop_strays(img) || (writing && !co_mend(img, opts->journal_fd, error)) ||
        (opts->snapshot != NULL && !co_show_snapshot(img, opts->snapshot, error))) {
        return false;
    }
    set_geometry(img, opts->cache_size);
    return co_read_l1(img, error) && (!writing || co_begin_writing(img, error)) &&
           qcow2_refs_co_open(img, error) && co_add_meta(img, error) &&
           qcow2_co_seal_open(img, error) && (!writing || co_check_refcounts(img, error)) &&
           (img->seal == NULL || img->seal->ops->co_start(img->seal, error)) &&
           (!writing ||
            (co_begin_bitmaps(img, error) && co_take_over(img, opts->journal_fd, error)));
}

bool qcow2_co_open(struct qv_node *file, const struct qcow2_open_opts *opts, struct qv_node **out,
                   GError **error)
{
    struct qcow2_image *img = image_new(file, opts);

    if (!co_open(img, opts, error)) {
        g_prefix_error(error, "%s: ", opts->name);
        qv_node_co_close_tree(&img->node);
        return false;
    }
    img->opened = true;
    *out = &img->node;
    return true;
}

bool qcow2_get_info(struct qv_node *node, struct qcow2_info *out)
{
    struct qcow2_image *img = qcow2_image_of(node);

    if (node->ops != &qcow2_ops) {
        return false;
    }
    qcow2_info_from_header(&img->header, out);
    out->virtual_size = atomic_load(&node->size);
    out->corrupt |= atomic_load(&img->corrupt);
    return true;
}
