/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Making a new image. See qcow2.h.
 *
 * File layout, in clusters: header, refcount table, refcount blocks, L1 table, and with
 * preallocation L2 tables and data. Order on disk: everything but the header's first sector, flush,
 * that sector, flush. So a crash leaves a file without a qcow2 magic, never half an image.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "block/node.h"
#include "format/qcow2/header.h"
#include "format/qcow2/layout.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/seal.h"

#define CHUNK           (UINT64_C(2) << 20) /* bytes written at once; the largest cluster */
#define ZERO_CHUNK      (UINT64_C(1) << 30)
#define DEFAULT_CLUSTER (UINT64_C(64) << 10)
#define TABLE_ENTRY     8u /* bytes, of L1 and refcount tables */

struct creator {
    struct qv_node *file;
    const struct qcow2_create_opts *opts;
    struct qcow2_header h;
    struct qcow2_layout layout;
    uint64_t l2_at, nb_l2;       /* preallocation; entries of L1 in use */
    uint64_t data_at, nb_data;   /* preallocation; clusters */
    struct qcow2_seal_root root; /* sealed: the table, then its blocks */
    uint64_t seal_clusters, nb_blocks;
    uint8_t *buf; /* CHUNK bytes */
};

/* ---- what the image shall be ---- */

static bool check_data_file(const struct qcow2_create_opts *o, GError **error)
{
    if (o->data_file == NULL && !o->data_file_raw) {
        return true;
    }
    if (o->data_file == NULL || o->version == 2) {
        return qv_fail(error, QV_ERROR_USAGE, "a data file needs a name, and version 3");
    }
    if (strlen(o->data_file) > QCOW2_DATA_FILE_NAME_MAX || o->data_file[0] == '\0') {
        return qv_fail(error, QV_ERROR_USAGE, "the data file's name has 1 to %u bytes",
                       QCOW2_DATA_FILE_NAME_MAX);
    }
    if (o->data_file_raw && o->backing_file != NULL) {
        return qv_fail(error, QV_ERROR_USAGE,
                       "a raw data file and a backing image exclude each other");
    }
    if (o->prealloc > QCOW2_PREALLOC_METADATA) {
        return qv_fail(error, QV_ERROR_USAGE, "space in a data file is not preallocated");
    }
    return true;
}

static bool check_opts(const struct qcow2_create_opts *o, GError **error)
{
    if (o->version != 0 && o->version != 2 && o->version != 3) {
        return qv_fail(error, QV_ERROR_USAGE, "qcow2 version must be 2 or 3");
    }
    if (o->cluster_size != 0 && (!qv_is_pow2(o->cluster_size) || o->cluster_size < 512 ||
                                 o->cluster_size > QCOW2_CLUSTER_MAX)) {
        return qv_fail(error, QV_ERROR_USAGE, "cluster size must be a power of two from 512 to 2M");
    }
    if (o->refcount_bits != 0 && (!qv_is_pow2(o->refcount_bits) || o->refcount_bits > 64)) {
        return qv_fail(error, QV_ERROR_USAGE, "refcount bits must be 1, 2, 4, 8, 16, 32 or 64");
    }
    if (o->version == 2 &&
        (o->lazy_refcounts || o->zstd || (o->refcount_bits != 0 && o->refcount_bits != 16))) {
        return qv_fail(error, QV_ERROR_USAGE,
                       "lazy refcounts, zstd and refcounts other than 16 bits need version 3");
    }
    if (o->extended_l2 &&
        (o->version == 2 ||
         (o->cluster_size != 0 && o->cluster_size < UINT64_C(1) << QCOW2_EXTL2_CLUSTER_BITS))) {
        return qv_fail(error, QV_ERROR_USAGE,
                       "extended L2 entries need version 3 and clusters of at least 16K");
    }
    if (!check_data_file(o, error)) {
        return false;
    }
    if (o->size % QV_SECTOR_SIZE != 0) {
        return qv_fail(error, QV_ERROR_USAGE, "size must be a multiple of 512 bytes");
    }
    if (o->backing_file != NULL && o->prealloc != QCOW2_PREALLOC_OFF) {
        return qv_fail(error, QV_ERROR_USAGE,
                       "preallocation and a backing image exclude each other");
    }
    if (o->backing_format != NULL &&
        (o->backing_file == NULL || strlen(o->backing_format) > QCOW2_BACKING_FORMAT_MAX)) {
        return qv_fail(error, QV_ERROR_USAGE, "bad backing format");
    }
    return true;
}

bool qcow2_header_for_new(const struct qcow2_create_opts *o, struct qcow2_header *h, GError **error)
{
    uint64_t l1;

    if (!check_opts(o, error)) {
        return false;
    }
    h->version = o->version != 0 ? o->version : 3;
    h->cluster_bits =
        (uint32_t)__builtin_ctzll(o->cluster_size != 0 ? o->cluster_size : DEFAULT_CLUSTER);
    h->refcount_order = (uint32_t)__builtin_ctz(o->refcount_bits != 0 ? o->refcount_bits : 16);
    h->size = o->size;
    h->incompatible_features |= o->extended_l2 ? QCOW2_INCOMPAT_EXTL2 : 0; /* counts for L1 */
    l1 = o->size > INT64_MAX ? UINT64_MAX : qcow2_l1_entries_for(h, o->size);
    if (l1 > QCOW2_L1_MAX_BYTES / 8) {
        return qv_fail(error, QV_ERROR_USAGE,
                       "%" PRIu64 " bytes are too large for clusters of %" PRIu64 " bytes", o->size,
                       qcow2_cluster_size(h));
    }
    h->l1_size = (uint32_t)qv_max_u64(l1, 1);
    if (o->lazy_refcounts) {
        h->compatible_features |= QCOW2_COMPAT_LAZY_REFCOUNTS;
    }
    if (o->zstd) {
        h->compression_type = QCOW2_COMPRESSION_ZSTD;
        h->incompatible_features |= QCOW2_INCOMPAT_COMPRESSION;
    }
    if (o->data_file != NULL) {
        h->incompatible_features |= QCOW2_INCOMPAT_DATA_FILE;
        h->autoclear_features |= o->data_file_raw ? QCOW2_AUTOCLEAR_RAW_DATA : 0;
        h->data_file = g_strdup(o->data_file);
    }
    h->backing_file = g_strdup(o->backing_file);
    h->backing_format = g_strdup(o->backing_format);
    return true;
}

/* Room for what an encrypted image has besides: key areas, log, table and blocks. */
static void plan_seal(struct creator *c, uint64_t clusters)
{
    const struct qcow2_seal_create *seal = c->opts->seal;
    uint64_t cs = qcow2_cluster_size(&c->h);
    uint64_t fixed = 2 * qv_div_up(seal->area_size, cs) + qv_div_up(seal->log_size, cs);
    /* As much again as a disk that is allocated all over; should it grow past that, the table is
     * made anew. */
    uint64_t entries = 2 * qv_div_up(qv_div_up(c->h.size, cs), QCOW2_SEAL_BLOCK_CLUSTERS) + 16;
    uint64_t table = qv_min_u64(qv_div_up(entries * 8, cs), QCOW2_SEAL_TABLE_MAX / cs);

    if (c->opts->prealloc != QCOW2_PREALLOC_OFF) {
        /* All of the file, these blocks and refcounts (at most an eighth) included. */
        clusters += fixed + table + clusters / 8 + 64;
        c->nb_blocks = qv_div_up(clusters + clusters / 64 + 64, QCOW2_SEAL_BLOCK_CLUSTERS);
    }
    c->root.generation = 1;
    c->root.table_entries = table * cs / 8;
    c->seal_clusters = fixed + table + c->nb_blocks;
}

/* Where that lies: from @at on. */
static void place_seal(struct creator *c, uint64_t at)
{
    const struct qcow2_seal_create *seal = c->opts->seal;
    struct qcow2_seal_ext *ext = &c->h.seal;
    uint64_t cs = qcow2_cluster_size(&c->h);

    c->h.has_seal = true;
    c->h.incompatible_features |= QCOW2_INCOMPAT_QV_SEALED;
    ext->area_size = seal->area_size;
    ext->log_size = seal->log_size;
    memcpy(ext->uuid, seal->uuid, sizeof(ext->uuid));
    ext->area_offset[0] = at;
    ext->area_offset[1] = at + qv_align_up(seal->area_size, cs);
    ext->log_offset = ext->area_offset[1] + qv_align_up(seal->area_size, cs);
    c->root.table_offset = ext->log_offset + qv_align_up(seal->log_size, cs);
}

static bool set_header(struct creator *c, GError **error)
{
    struct qcow2_header *h = &c->h;
    uint64_t cs, l1_clusters, in_file;

    if (!qcow2_header_for_new(c->opts, h, error)) {
        return false;
    }
    if (c->opts->seal != NULL &&
        (qcow2_has_extl2(h) || (h->incompatible_features & QCOW2_INCOMPAT_DATA_FILE) != 0)) {
        return qv_fail(error, QV_ERROR_USAGE,
                       "an encrypted image has neither extended L2 entries nor a data file");
    }
    if (c->opts->seal != NULL && h->cluster_bits < 12) {
        return qv_fail(error, QV_ERROR_USAGE, "clusters of an encrypted image have at least 4 KiB");
    }
    cs = qcow2_cluster_size(h);
    l1_clusters = qv_div_up((uint64_t)h->l1_size * 8, cs);
    if (c->opts->prealloc != QCOW2_PREALLOC_OFF) {
        c->nb_data = qv_div_up(h->size, cs);
        c->nb_l2 = qcow2_l1_entries_for(h, h->size);
    }
    in_file = c->opts->data_file == NULL ? c->nb_data : 0;
    if (c->opts->seal != NULL) {
        plan_seal(c, 1 + l1_clusters + c->nb_l2 + in_file);
    }
    if (!qcow2_layout_refcounts(h, 1 + l1_clusters + c->seal_clusters + c->nb_l2 + in_file,
                                &c->layout)) {
        return qv_fail(error, QV_ERROR_USAGE,
                       "%" PRIu64 " bytes are too large for a refcount table with clusters of "
                       "%" PRIu64 " bytes",
                       h->size, cs);
    }
    h->refcount_table_offset = cs;
    h->refcount_table_clusters = (uint32_t)c->layout.table_clusters;
    h->l1_table_offset = (1 + c->layout.table_clusters + c->layout.blocks) * cs;
    if (c->opts->seal != NULL) {
        place_seal(c, h->l1_table_offset + l1_clusters * cs);
    }
    c->l2_at = h->l1_table_offset + (l1_clusters + c->seal_clusters) * cs;
    c->data_at = c->opts->data_file == NULL ? c->l2_at + c->nb_l2 * cs : 0;
    return true;
}

/* ---- writing it ---- */

static bool co_write(struct creator *c, uint64_t offset, const void *buf, uint64_t len,
                     GError **error)
{
    int rc = len > 0 ? qv_co_pwrite(c->file, offset, buf, len) : 0;

    return rc == 0 || qv_fail_errno(error, rc, "cannot write the new image");
}

static bool co_flush(struct creator *c, GError **error)
{
    int rc = qv_co_flush(c->file);

    return rc == 0 || qv_fail_errno(error, rc, "cannot flush the new image");
}

static bool co_zero(struct creator *c, uint64_t offset, uint64_t len, GError **error)
{
    for (uint64_t done = 0; done < len; done += ZERO_CHUNK) {
        int rc = qv_co_zero(c->file, offset + done, qv_min_u64(len - done, ZERO_CHUNK), 0);

        if (rc < 0) {
            return qv_fail_errno(error, rc, "cannot preallocate the new image");
        }
    }
    return true;
}

/* Makes the file long enough, and its tables zero. */
static bool co_make_room(struct creator *c, GError **error)
{
    uint64_t size = atomic_load(&c->file->size);
    uint64_t want = c->layout.total << c->h.cluster_bits;
    bool fresh = size == 0 && c->file->limits.new_space_is_zero;
    int rc = size < want ? qv_node_co_truncate(c->file, want) : 0;

    if (rc < 0) {
        return qv_fail_errno(error, rc == -ENOTSUP ? -ENOSPC : rc,
                             "cannot make room for the new image (%" PRIu64 " bytes)", want);
    }
    if (fresh) {
        return true;
    }
    /* What stood here before must not look like an image while its tables go. */
    return co_zero(c, 0, qcow2_cluster_size(&c->h), error) && co_flush(c, error) &&
           co_zero(c, qcow2_cluster_size(&c->h), want - qcow2_cluster_size(&c->h), error);
}

/* Writes a table of @entries entries, @size bytes each: @first, and on by a cluster each. The
 * second word of a long one says that all sub-clusters are allocated. */
static bool co_write_table(struct creator *c, uint64_t offset, uint64_t entries, uint32_t size,
                           uint64_t first, GError **error)
{
    uint64_t per_chunk = CHUNK / size, cs = qcow2_cluster_size(&c->h);

    for (uint64_t done = 0; done < entries; done += per_chunk) {
        uint64_t n = qv_min_u64(entries - done, per_chunk);
        uint64_t len = qv_align_up(n * size, QV_SECTOR_SIZE);

        memset(c->buf, 0, len);
        for (uint64_t i = 0; i < n; i++) {
            qv_be64 v[2] = {qv_be64_make(first + (done + i) * cs),
                            qv_be64_make(QCOW2_SUB_ALL_ALLOC)};
            memcpy(c->buf + i * size, v, size);
        }
        if (!co_write(c, offset + done * size, c->buf, len, error)) {
            return false;
        }
    }
    return true;
}

/* Every cluster of the new file has the refcount 1. */
static bool co_write_refcounts(struct creator *c, GError **error)
{
    uint64_t cs = qcow2_cluster_size(&c->h);
    uint64_t offset = c->h.refcount_table_offset + c->layout.table_clusters * cs;
    uint64_t per_chunk = CHUNK * 8 >> c->h.refcount_order; /* a multiple of a block's entries */

    for (uint64_t done = 0; done < c->layout.total; done += per_chunk) {
        uint64_t n = qv_min_u64(c->layout.total - done, per_chunk);
        uint64_t len = qv_align_up(qv_div_up(n << c->h.refcount_order, 8), QV_SECTOR_SIZE);

        memset(c->buf, 0, len);
        for (uint64_t i = 0; i < n; i++) {
            qcow2_refcount_set(c->buf, c->h.refcount_order, i, 1);
        }
        if (!co_write(c, offset + (done << c->h.refcount_order) / 8, c->buf, len, error)) {
            return false;
        }
    }
    return co_write_table(c, c->h.refcount_table_offset, c->layout.blocks, TABLE_ENTRY, offset,
                          error);
}

static bool co_prealloc_data(struct creator *c, GError **error)
{
    uint64_t len = c->nb_data << c->h.cluster_bits;

    switch (c->opts->prealloc) {
    case QCOW2_PREALLOC_OFF:
    case QCOW2_PREALLOC_METADATA:
        return true;
    case QCOW2_PREALLOC_FALLOC:
        return co_zero(c, c->data_at, len, error);
    case QCOW2_PREALLOC_FULL:
        memset(c->buf, 0, CHUNK);
        for (uint64_t done = 0; done < len; done += CHUNK) {
            if (!co_write(c, c->data_at + done, c->buf, qv_min_u64(len - done, CHUNK), error)) {
                return false;
            }
        }
        return true;
    default:
        return qv_fail(error, QV_ERROR_USAGE, "unknown preallocation mode");
    }
}

static bool co_write_seal(struct creator *c, GError **error)
{
    const struct qcow2_seal_create *seal = c->opts->seal;
    uint64_t blocks_at;

    if (seal == NULL) {
        return true;
    }
    blocks_at = c->root.table_offset + c->root.table_entries * 8;
    return co_write_table(c, c->root.table_offset, c->nb_blocks, TABLE_ENTRY, blocks_at, error) &&
           seal->co_write(seal->arg, c->file, &c->h.seal, &c->root, error);
}

static bool co_write_header(struct creator *c, GError **error)
{
    uint64_t cs = qcow2_cluster_size(&c->h);

    return qcow2_header_serialize(&c->h, c->buf, cs, error) &&
           co_write(c, QV_SECTOR_SIZE, c->buf + QV_SECTOR_SIZE, cs - QV_SECTOR_SIZE, error) &&
           co_flush(c, error) && /* edge: all of the image before the sector that makes it one */
           co_write(c, 0, c->buf, QV_SECTOR_SIZE, error) && co_flush(c, error);
}

bool qcow2_co_create(struct qv_node *file, const struct qcow2_create_opts *opts, GError **error)
{
    struct creator c = {.file = file, .opts = opts};
    bool ok;

    c.buf = qv_node_mem_alloc(CHUNK);
    ok = set_header(&c, error) &&
         qcow2_header_serialize(&c.h, c.buf, qcow2_cluster_size(&c.h), error) &&
         co_make_room(&c, error) && co_write_refcounts(&c, error) &&
         co_write_table(&c, c.h.l1_table_offset, c.nb_l2, TABLE_ENTRY, c.l2_at | QCOW2_OFLAG_COPIED,
                        error) &&
         co_write_table(&c, c.l2_at, c.nb_data, qcow2_l2_entry_size(&c.h),
                        c.data_at | QCOW2_OFLAG_COPIED, error) &&
         co_write_seal(&c, error) && co_prealloc_data(&c, error) && co_write_header(&c, error);
    qcow2_header_clear(&c.h);
    free(c.buf);
    return ok;
}
