/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Compaction of encrypted images: what plain ones do not have.
 *
 * Sectors are bound to the guest's offset, not to their place: a cluster moves with its ciphertext
 * and its entries, unopened, through the buffer and the log, and is durable before the header that
 * names its new place. Clusters of zeros cannot be told from the file; the disk is read.
 *
 * A cluster can hold data only where there is an entry block for it. Blocks below the limit are
 * made before anything moves there. Blocks of clusters that hold no data any more go, those that
 * lie behind the limit move, and so does their table: all of this with an empty log, for what it
 * says of such clusters must never be applied again.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "format/qcow2/compact_int.h"
#include "format/qcow2/walk_int.h"

#define READ_BYTES (UINT64_C(2) << 20)

/* ---- zeros ---- */

/* Guest bytes [@offset, @offset + @len), whole clusters but for the disk's end, stand at @host. */
static int co_scan_run(struct compact *c, uint64_t offset, uint64_t host, uint64_t len,
                       uint8_t *buf)
{
    struct qcow2_image *img = c->img;
    uint64_t cs = img->cluster_size;
    int ret = qv_co_pread(&img->node, offset, buf, len);

    if (ret == -EBADMSG && len > cs) { /* some sector of it; one cluster at a time, then */
        ret = 0;
        for (uint64_t at = 0; at < len && ret == 0; at += cs) {
            ret = co_scan_run(c, offset + at, host + at, qv_min_u64(cs, len - at), buf);
        }
        return ret;
    }
    for (uint64_t at = 0; at < len && ret == 0; at += cs) {
        uint64_t k = (host + at) >> img->cluster_bits;

        if (k < c->nb && qv_is_zero(buf + at, qv_min_u64(cs, len - at))) {
            qcow2_bit_put(c->zeros, k, true);
        }
    }
    return ret == -EBADMSG ? 0 : ret;
}

int qcow2_compact_co_scan_sealed(struct compact *c)
{
    struct qcow2_image *img = c->img;
    uint64_t size = atomic_load(&img->node.size), most = qv_max_u64(READ_BYTES, img->cluster_size);
    QV_CLEANUP(qv_freep) uint8_t *buf = qv_node_mem_alloc(most);
    int ret = 0;

    for (uint64_t at = 0; at < size && ret == 0 && !compact_stopped(c);) {
        struct qv_extent e = {0};

        ret = qv_node_co_status(&img->node, at, qv_min_u64(most, size - at), &e);
        if (ret == 0 && e.kind == QV_EXTENT_DATA && e.file == qcow2_data_node(img) &&
            qv_is_aligned(e.host, img->cluster_size)) {
            ret = co_scan_run(c, at, e.host, e.len, buf);
        }
        at += ret == 0 ? e.len : 0;
        compact_progress(c, (double)at / (double)size);
    }
    return ret;
}

int qcow2_compact_co_reads_zero(struct qcow2_image *img, uint64_t guest, uint64_t host, void *buf,
                                bool *zero)
{
    int ret = qcow2_co_data_read(img, guest, host, buf, img->cluster_size);

    *zero = ret == 0 && qv_is_zero(buf, img->cluster_size);
    return ret == -EBADMSG ? 0 : ret; /* it stays: who reads it is told */
}

/* ---- moving data ---- */

int qcow2_compact_co_copy_sealed(struct qcow2_image *img, uint64_t guest, uint64_t from,
                                 uint64_t to, uint64_t clusters)
{
    struct qcow2_seal *seal = img->seal;
    unsigned bits = img->cluster_bits;
    int ret = seal->ops->co_clear(seal, to, clusters); /* of its former life */

    return ret != 0 ? ret
                    : seal->ops->co_copy(seal, guest << bits, from << bits, to << bits,
                                         clusters << bits);
}

/* ---- room for entries ---- */

int qcow2_compact_co_cover(struct compact *c)
{
    struct qcow2_image *img = c->img;
    uint64_t end = qv_min_u64(c->limit, atomic_load(&img->file_end) >> img->cluster_bits);
    int ret = 0;

    if (img->seal == NULL || c->drop_zeros) {
        return 0;
    }
    for (uint64_t g = c->low / QCOW2_SEAL_BLOCK_CLUSTERS; ret == 0; g++) {
        uint64_t pos = g * QCOW2_SEAL_BLOCK_CLUSTERS, k, used;

        if (pos >= end) {
            break;
        }
        if (img->seal->ops->missing(img->seal, pos, 1) == 0) {
            continue;
        }
        /* In a place of its own: where none is free nothing will move to. */
        ret = qcow2_compact_co_find_free(img, &pos,
                                         qv_min_u64(pos + QCOW2_SEAL_BLOCK_CLUSTERS, end), 1, &k);
        if (ret == -ENOSPC) {
            ret = 0;
            continue;
        }
        ret = ret != 0 ? ret : qcow2_co_seal_claim(img, k, 1, &used);
        ret = ret != 0 ? ret : qcow2_refs_co_write(img);
        ret = ret != 0 ? ret : qcow2_co_seal_link(img, k, 1, used, false);
    }
    return ret;
}

/* ---- blocks and their table ---- */

/* Whether no cluster that block @i is for holds data. */
static int co_is_idle(struct qcow2_image *img, uint64_t i, bool *idle)
{
    uint64_t first = i * QCOW2_SEAL_BLOCK_CLUSTERS, refs;
    uint64_t end = qv_min_u64(first + QCOW2_SEAL_BLOCK_CLUSTERS,
                              atomic_load(&img->file_end) >> img->cluster_bits);
    int ret = 0;

    *idle = true;
    for (uint64_t k = first; k < end && *idle && ret == 0; k++) {
        ret = qcow2_refs_co_get(img, k, &refs);
        *idle = ret == 0 && (refs == 0 || qcow2_metaset_has(&img->meta, k));
    }
    return ret;
}

/* What becomes of the blocks. */
static int co_plan(struct qcow2_image *img, uint64_t used, GArray *out)
{
    const struct qcow2_seal_ops *ops = img->seal->ops;
    uint64_t pos = 0, end = atomic_load(&img->file_end) >> img->cluster_bits;
    int ret = 0;

    for (uint64_t i = 0; i * QCOW2_SEAL_BLOCK_CLUSTERS < end && ret == 0; i++) {
        struct qcow2_seal_place p = {.index = i, .from = ops->block(img->seal, i)};
        bool idle = false;

        if (p.from == 0) {
            continue;
        }
        ret = i * QCOW2_SEAL_BLOCK_CLUSTERS >= used ? co_is_idle(img, i, &idle) : 0;
        if (ret == 0 && !idle) {
            if (p.from < used) {
                continue;
            }
            ret = qcow2_compact_co_take(img, &pos, used, 1, &p.to);
            if (ret == -ENOSPC) { /* it stays */
                ret = 0;
                continue;
            }
        }
        g_array_append_val(out, p);
    }
    return ret;
}

static int co_trim_blocks(struct qcow2_image *img, uint64_t used)
{
    g_autoptr(GArray) places = g_array_new(false, false, sizeof(struct qcow2_seal_place));
    int ret = co_plan(img, used, places);

    ret = ret != 0 ? ret : qcow2_refs_co_write(img); /* co_place makes it durable first */
    ret = ret != 0 ? ret
                   : img->seal->ops->co_place(img->seal, (const void *)places->data, places->len);
    for (guint i = 0; i < places->len && ret == 0; i++) {
        ret =
            qcow2_compact_co_leave(img, g_array_index(places, struct qcow2_seal_place, i).from, 1);
    }
    return ret != 0 ? ret : qcow2_refs_co_write(img);
}

static int co_trim_table(struct qcow2_image *img, uint64_t used)
{
    uint64_t first, n, to, pos = 0;
    int ret;

    img->seal->ops->table(img->seal, &first, &n);
    if (first + n <= used) {
        return 0;
    }
    ret = qcow2_compact_co_take(img, &pos, used, n, &to);
    if (ret == -ENOSPC) { /* it stays */
        return 0;
    }
    ret = ret != 0 ? ret : qcow2_refs_co_write(img);
    ret = ret != 0 ? ret : img->seal->ops->co_move_table(img->seal, to);
    ret = ret != 0 ? ret : qcow2_compact_co_leave(img, first, n);
    return ret != 0 ? ret : qcow2_refs_co_write(img);
}

int qcow2_compact_co_trim(struct compact *c, uint64_t used)
{
    struct qcow2_image *img = c->img;
    int ret;

    if (img->seal == NULL) {
        return 0;
    }
    ret = img->seal->ops->co_settle(img->seal);
    ret = ret != 0 ? ret : co_trim_blocks(img, used);
    return ret != 0 ? ret : co_trim_table(img, used);
}
