/* SPDX-License-Identifier: Apache-2.0 */
/* Features and configuration space. Source: virtio 1.2, 5.2.3 and 5.2.4. */
#include <assert.h>
#include <string.h>

#include "base/endian.h"
#include "base/maths.h"
#include "device/virtio_blk/vblk_int.h"

/* struct virtio_blk_config up to the end of the WRITE_ZEROES fields. */
struct vblk_config {
    qv_le64 capacity; /* 512-byte sectors */
    qv_le32 size_max;
    qv_le32 seg_max;
    uint8_t geometry[4];
    qv_le32 blk_size;
    uint8_t physical_block_exp;
    uint8_t alignment_offset;
    qv_le16 min_io_size;
    qv_le32 opt_io_size;
    uint8_t writeback;
    uint8_t unused0;
    qv_le16 num_queues;
    qv_le32 max_discard_sectors;
    qv_le32 max_discard_seg;
    qv_le32 discard_sector_alignment;
    qv_le32 max_write_zeroes_sectors;
    qv_le32 max_write_zeroes_seg;
    uint8_t write_zeroes_may_unmap;
    uint8_t unused1[3];
};
static_assert(sizeof(struct vblk_config) == 60, "layout is fixed by the spec");

#define SECTORS_MAX_CHEAP  (2 * QV_GIB / QV_SECTOR_SIZE)  /* a metadata operation */
#define SECTORS_MAX_COSTLY (32 * QV_MIB / QV_SECTOR_SIZE) /* written out: keep it short */

static const struct qv_limits *limits(const struct qv_vblk *dev)
{
    return &qv_disk_root(dev->disk)->limits;
}

uint32_t vblk_max_discard_sectors(const struct qv_vblk *dev)
{
    return SECTORS_MAX_CHEAP;
}

uint32_t vblk_max_zero_sectors(const struct qv_vblk *dev)
{
    return limits(dev)->zero_is_cheap ? SECTORS_MAX_CHEAP : SECTORS_MAX_COSTLY;
}

static uint64_t offered_features(const struct qv_vblk *dev)
{
    uint64_t f = QV_VBLK_F_SIZE_MAX | QV_VBLK_F_SEG_MAX | QV_VBLK_F_BLK_SIZE | QV_VBLK_F_TOPOLOGY |
                 QV_VBLK_F_MQ | QV_VIRTIO_F_INDIRECT | QV_VIRTIO_F_EVENT_IDX |
                 QV_VIRTIO_F_VERSION_1 | QV_VIRTIO_F_PACKED;

    if (qv_disk_readonly(dev->disk)) {
        return f | QV_VBLK_F_RO;
    }
    f |= QV_VBLK_F_WRITE_ZEROES;
    if (qv_disk_discards(dev->disk)) {
        f |= QV_VBLK_F_DISCARD;
    }
    /* A disk that writes through has no volatile cache to flush, and none to switch on. */
    if (!qv_disk_writethrough(dev->disk)) {
        f |= QV_VBLK_F_FLUSH | QV_VBLK_F_CONFIG_WCE;
    }
    return f;
}

struct qv_vblk *qv_vblk_new(const struct qv_vblk_opts *opts)
{
    struct qv_vblk *dev;

    assert(opts->queues >= 1 && opts->queues <= QV_VBLK_QUEUES_MAX && opts->nthreads >= 1);
    dev = g_malloc0(sizeof(*dev) + opts->queues * sizeof(dev->queues[0]));
    dev->name = g_strdup(opts->name);
    dev->disk = opts->disk;
    if (opts->serial != NULL) {
        memcpy(dev->serial, opts->serial, strnlen(opts->serial, sizeof(dev->serial)));
    }
    dev->offered = offered_features(dev);
    dev->queue_count = opts->queues;
    for (unsigned i = 0; i < opts->queues; i++) {
        vblk_queue_init(&dev->queues[i], dev, i,
                        opts->threads[(opts->first_thread + i) % opts->nthreads]);
    }
    qv_vblk_reset(dev);
    return dev;
}

void qv_vblk_free(struct qv_vblk *dev)
{
    if (dev == NULL) {
        return;
    }
    for (unsigned i = 0; i < dev->queue_count; i++) {
        vblk_queue_destroy(&dev->queues[i]);
    }
    g_free(dev->name);
    g_free(dev);
}

uint64_t qv_vblk_features(const struct qv_vblk *dev)
{
    return dev->offered;
}

/*
 * When a completed write must be durable. virtio 1.2, 5.2.6.2: without FLUSH and CONFIG_WCE the
 * driver relies on it although the device offers FLUSH, and with CONFIG_WCE the writeback field
 * says.
 */
static void update_fua(struct qv_vblk *dev)
{
    uint64_t f = atomic_load(&dev->features);
    bool through = !(f & (QV_VBLK_F_FLUSH | QV_VBLK_F_CONFIG_WCE));

    if (f & QV_VBLK_F_CONFIG_WCE) {
        through = !atomic_load(&dev->writeback);
    }
    atomic_store(&dev->fua, through);
}

bool qv_vblk_set_features(struct qv_vblk *dev, uint64_t features)
{
    if (features & ~dev->offered) {
        return false;
    }
    atomic_store(&dev->features, features);
    /* virtio 1.2, 5.2.5.2: with CONFIG_WCE but without FLUSH, writeback starts as 0. */
    if ((features & QV_VBLK_F_CONFIG_WCE) && !(features & QV_VBLK_F_FLUSH)) {
        atomic_store(&dev->writeback, false);
    }
    update_fua(dev);
    return true;
}

bool qv_vblk_writeback(const struct qv_vblk *dev)
{
    return atomic_load(&dev->writeback);
}

void qv_vblk_set_writeback(struct qv_vblk *dev, bool on)
{
    atomic_store(&dev->writeback, on && !qv_disk_writethrough(dev->disk));
    update_fua(dev);
}

void qv_vblk_forget_kept(struct qv_vblk *dev)
{
    for (unsigned i = 0; i < dev->queue_count; i++) {
        dev->queues[i].kept = 0;
    }
}

void qv_vblk_reset(struct qv_vblk *dev)
{
    qv_vblk_forget_kept(dev);
    atomic_store(&dev->features, 0);
    qv_vblk_set_writeback(dev, true);
}

static void build_config(const struct qv_vblk *dev, struct vblk_config *c)
{
    const struct qv_limits *l = limits(dev);
    uint32_t physical = (uint32_t)qv_max_u64(l->physical_block, QV_SECTOR_SIZE);

    memset(c, 0, sizeof(*c));
    c->capacity = qv_le64_make(qv_disk_size(dev->disk) / QV_SECTOR_SIZE);
    c->size_max = qv_le32_make(VBLK_SIZE_MAX);
    c->seg_max = qv_le32_make(VBLK_SEG_MAX);
    c->blk_size = qv_le32_make(QV_SECTOR_SIZE);
    c->physical_block_exp = (uint8_t)__builtin_ctz(physical / QV_SECTOR_SIZE);
    c->min_io_size = qv_le16_make((uint16_t)qv_min_u64(physical / QV_SECTOR_SIZE, UINT16_MAX));
    c->writeback = qv_vblk_writeback(dev);
    c->num_queues = qv_le16_make((uint16_t)dev->queue_count);
    c->max_discard_sectors = qv_le32_make(vblk_max_discard_sectors(dev));
    c->max_discard_seg = qv_le32_make(VBLK_RANGES_MAX);
    c->discard_sector_alignment = qv_le32_make((uint32_t)qv_min_u64(
        qv_max_u64(l->discard_granularity / QV_SECTOR_SIZE, 1), SECTORS_MAX_CHEAP));
    c->max_write_zeroes_sectors = qv_le32_make(vblk_max_zero_sectors(dev));
    c->max_write_zeroes_seg = qv_le32_make(VBLK_RANGES_MAX);
    c->write_zeroes_may_unmap = qv_disk_discards(dev->disk);
}

void qv_vblk_config_read(const struct qv_vblk *dev, uint32_t offset, void *buf, uint32_t len)
{
    struct vblk_config config;

    build_config(dev, &config);
    memset(buf, 0, len);
    if (offset < sizeof(config)) {
        memcpy(buf, (const uint8_t *)&config + offset, MIN(len, sizeof(config) - offset));
    }
}

bool qv_vblk_config_write(struct qv_vblk *dev, uint32_t offset, const void *buf, uint32_t len)
{
    const uint8_t *value = buf;

    if (offset != offsetof(struct vblk_config, writeback) || len != 1 || value[0] > 1 ||
        !(dev->offered & QV_VBLK_F_CONFIG_WCE)) {
        return false;
    }
    qv_vblk_set_writeback(dev, value[0]);
    return true;
}
