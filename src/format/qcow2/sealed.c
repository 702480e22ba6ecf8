/* SPDX-License-Identifier: Apache-2.0 */
/* Encrypted images: where qcow2 meets the seal (seal.h). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "format/qcow2/qcow2_int.h"
#include "format/qcow2/snapshot_int.h"

struct wait {
    struct qv_io io;
    struct qv_co *co;
    bool done;
};

static void wait_done(struct qv_io *io)
{
    struct wait *w = qv_container_of(io, struct wait, io);

    w->done = true;
    if (w->co != NULL) {
        qv_co_wake(w->co);
    }
}

static int co_run(struct qcow2_image *img, struct wait *w)
{
    w->io.done = wait_done;
    qv_node_submit(qcow2_data_node(img), &w->io);
    if (!w->done) {
        w->co = qv_co_self();
        qv_co_yield();
    }
    return w->io.result;
}

static int co_transfer(struct qcow2_image *img, enum qv_op op, uint64_t guest, uint64_t host,
                       void *buf, uint64_t len)
{
    struct iovec iov = {.iov_base = buf, .iov_len = len};
    struct wait w = {
        .io = {.op = op, .offset = host, .len = len, .guest = guest, .iov = &iov, .iovcnt = 1}};

    return co_run(img, &w);
}

int qcow2_co_data_write(struct qcow2_image *img, uint64_t guest, uint64_t host, const void *buf,
                        uint64_t len)
{
    /* Writes only read the buffer. */
    return co_transfer(img, QV_OP_WRITE, guest, host, (void *)(uintptr_t)buf, len);
}

int qcow2_co_data_read(struct qcow2_image *img, uint64_t guest, uint64_t host, void *buf,
                       uint64_t len)
{
    return co_transfer(img, QV_OP_READ, guest, host, buf, len);
}

int qcow2_co_data_zero(struct qcow2_image *img, uint64_t guest, uint64_t host, uint64_t len,
                       uint32_t flags)
{
    struct wait w = {
        .io = {.op = QV_OP_ZERO, .flags = flags, .offset = host, .len = len, .guest = guest}};

    return co_run(img, &w);
}

/* ---- space ---- */

int qcow2_co_seal_claim(struct qcow2_image *img, uint64_t first, uint64_t count, uint64_t *used)
{
    uint64_t missing = 0;
    int ret = 0;

    *used = 0;
    if (img->seal == NULL || count == 0) {
        return 0;
    }
    missing = qv_min_u64(img->seal->ops->missing(img->seal, first, count), count);
    for (uint64_t i = 0; i < missing && ret == 0; i++) {
        ret = qcow2_refs_co_claim(img, first + i);
        if (ret == 0) {
            pthread_mutex_lock(&img->lock);
            qcow2_meta_add(img, first + i);
            pthread_mutex_unlock(&img->lock);
        }
    }
    *used = missing;
    return ret;
}

static int co_zero_blocks(struct qcow2_image *img, uint64_t first, uint64_t count)
{
    QV_CLEANUP(qv_freep) char *zeros = qv_node_mem_alloc(img->cluster_size);
    int ret = 0;

    memset(zeros, 0, img->cluster_size);
    for (uint64_t i = 0; i < count && ret == 0; i++) {
        ret = qv_co_pwrite(img->node.file, (first + i) << img->cluster_bits, zeros,
                           img->cluster_size);
    }
    return ret;
}

int qcow2_co_seal_link(struct qcow2_image *img, uint64_t first, uint64_t count, uint64_t used,
                       bool zero)
{
    struct qcow2_seal *seal = img->seal;
    int ret = 0;

    if (seal == NULL) {
        return 0;
    }
    if (used > 0) {
        /* The table must not name a block that is not counted, or that holds anything. */
        ret = zero ? 0 : co_zero_blocks(img, first, used);
        ret = ret != 0 ? ret : qcow2_co_sync(img);
        ret = ret != 0 ? ret : seal->ops->co_link(seal, first, count, first, used);
    }
    if (ret == 0 && count > used) {
        ret = seal->ops->co_clear(seal, first + used, count - used);
    }
    return ret;
}

int qcow2_co_seal_sync(struct qcow2_image *img)
{
    return qcow2_co_sync(img);
}

int qcow2_co_seal_reserve(struct qcow2_image *img, uint64_t clusters, uint64_t *first)
{
    int ret;

    do {
        ret = qcow2_co_reserve_adjacent(img, clusters, first);
    } while (ret == -EAGAIN);
    return ret;
}

void qcow2_seal_table_moved(struct qcow2_image *img, uint64_t first, uint64_t clusters,
                            uint64_t old_first, uint64_t old_clusters)
{
    pthread_mutex_lock(&img->lock);
    for (uint64_t i = 0; i < clusters; i++) {
        qcow2_meta_add(img, first + i);
    }
    for (uint64_t i = 0; i < old_clusters; i++) {
        qcow2_meta_remove(img, old_first + i);
    }
    qcow2_freed_add(&img->freed_ready, old_first, old_clusters);
    qcow2_bg_kick(img, QCOW2_BG_REAP);
    pthread_mutex_unlock(&img->lock);
}

bool qcow2_seal_is_data(struct qcow2_image *img, uint64_t host, uint64_t count)
{
    uint64_t end = atomic_load(&img->file_end) / QCOW2_SEAL_SECTOR;

    return count > 0 && qv_range_inside(host, count, end) &&
           !qcow2_host_is_meta(img, host * QCOW2_SEAL_SECTOR, count * QCOW2_SEAL_SECTOR);
}

struct qcow2_seal *qcow2_node_seal(const struct qv_node *node)
{
    const struct qcow2_image *img = (const void *)node;

    return node->format != NULL && strcmp(node->format->name, "qcow2") == 0 ? img->seal : NULL;
}

/* ---- alone with it; its snapshots' tables ---- */

int qcow2_co_seal_still(struct qcow2_image *img)
{
    qv_co_mutex_lock(&img->ops_lock);
    return qcow2_co_still(img);
}

void qcow2_seal_still_end(struct qcow2_image *img)
{
    qcow2_still_end(img);
    qv_co_mutex_unlock(&img->ops_lock);
}

int qcow2_co_seal_snapshot_l1(struct qcow2_image *img, const struct qcow2_snapshot *snapshot,
                              uint64_t **out)
{
    return qcow2_co_snapshot_l1(img, snapshot, out);
}

int qcow2_co_seal_snapshot_l2(struct qcow2_image *img, uint64_t l2, uint64_t *hosts)
{
    uint64_t sectors = img->cluster_size / QCOW2_SEAL_SECTOR;
    int ret = qv_co_pread(img->node.file, l2, hosts, img->cluster_size);

    for (uint64_t i = 0; i < img->cluster_size / sizeof(*hosts) && ret == 0; i++) {
        uint64_t entry = be64toh(hosts[i]), host = entry & QCOW2_L2_OFFSET_MASK;

        hosts[i] = host;
        if ((entry & QCOW2_OFLAG_COMPRESSED) != 0 || !qv_is_aligned(host, img->cluster_size) ||
            (host != 0 && !qcow2_seal_is_data(img, host / QCOW2_SEAL_SECTOR, sectors))) {
            ret = -EUCLEAN;
        }
    }
    return ret;
}

/* ---- opening ---- */

struct meta {
    struct qcow2_image *img;
    bool overlap;
};

static void add_meta(void *arg, uint64_t offset, uint64_t len)
{
    struct meta *m = arg;
    struct qcow2_image *img = m->img;

    for (uint64_t c = offset >> img->cluster_bits; c <= (offset + len - 1) >> img->cluster_bits;
         c++) {
        m->overlap |= qcow2_metaset_has(&img->meta, c);
        free(qcow2_metaset_add(&img->meta, c)); /* nobody reads the set yet */
    }
}

bool qcow2_co_seal_open(struct qcow2_image *img, GError **error)
{
    struct meta m = {.img = img};
    struct qcow2_seal_host host = {.img = img,
                                   .file = img->node.file,
                                   .cluster_bits = img->cluster_bits,
                                   .cluster_size = img->cluster_size,
                                   .ext = &img->header.seal,
                                   .limits = &img->node.limits};

    if (img->seal == NULL) {
        return true;
    }
    if (!img->seal->ops->co_open(img->seal, &host, error)) {
        return false;
    }
    img->seal_open = true;
    img->seal->ops->each_meta(img->seal, add_meta, &m);
    return !m.overlap || img->check_only || img->node.readonly ||
           qv_fail(error, QV_ERROR_CORRUPT,
                   "the table of sectors overlaps other metadata; repair the image first");
}
