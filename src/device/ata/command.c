/* SPDX-License-Identifier: Apache-2.0 */
/* The table of commands, and those that read, write, flush and trim. Source: ACS-3, 7. */
#include <string.h>

#include "base/endian.h"
#include "base/maths.h"
#include "device/ata/ata_int.h"

/* ---- addresses ---- */

/* Sector count of a command: 0 stands for the largest. */
static uint32_t sector_count(const struct qv_ata_cmd *cmd, unsigned flags)
{
    uint32_t n = flags & ATA_F_QUEUED ? cmd->tf.feature : cmd->tf.count;

    if (flags & (ATA_F_EXT | ATA_F_QUEUED)) {
        return n == 0 ? 65536 : n;
    }
    return (n & 0xff) == 0 ? 256 : n & 0xff;
}

/* Address of cylinder, head and sector, as old systems have it. False: no such sector. */
static bool chs_lba(const struct qv_ata_drive *d, const struct qv_ata_tf *tf, uint64_t *lba)
{
    uint32_t sector = (uint32_t)(tf->lba & 0xff), cylinder = (uint32_t)(tf->lba >> 8) & 0xffff;
    uint32_t head = tf->device & 0x0f;

    if (sector == 0 || sector > d->set.sectors || head >= d->set.heads) {
        return false;
    }
    *lba = ((uint64_t)cylinder * d->set.heads + head) * d->set.sectors + sector - 1;
    return true;
}

/* The one place that turns sectors into bytes. False: some of it is not on the disk. */
static bool find_range(const struct qv_ata_drive *d, const struct qv_ata_cmd *cmd, unsigned flags,
                       uint64_t *offset, uint32_t *len)
{
    const struct qv_ata_tf *tf = &cmd->tf;
    uint32_t count = sector_count(cmd, flags);
    uint64_t lba;

    if (flags & (ATA_F_EXT | ATA_F_QUEUED)) {
        lba = tf->lba & ATA_LBA48_MAX;
    } else if (tf->device & 0x40) {
        lba = (tf->lba & 0xffffff) | (uint64_t)(tf->device & 0x0f) << 24;
    } else if (!chs_lba(d, tf, &lba)) {
        return false;
    }
    *offset = lba * QV_SECTOR_SIZE;
    *len = count * QV_SECTOR_SIZE;
    return qv_range_inside(lba, count, d->sectors);
}

/* ---- reading and writing ---- */

static bool start_rw(struct qv_ata_drive *d, struct qv_ata_cmd *cmd, unsigned flags)
{
    bool out = flags & ATA_F_OUT;

    if ((flags & ATA_F_MULTI) && d->set.multiple == 0) {
        return ata_abort(cmd);
    }
    if (flags & ATA_F_QUEUED) {
        cmd->tag = (cmd->tf.count >> 3) & 31;
        flags |= cmd->tf.device & 0x80 ? ATA_F_FUA : 0;
    }
    if (!find_range(d, cmd, flags, &cmd->offset, &cmd->len)) {
        return ata_end(cmd, QV_ATA_E_IDNF);
    }
    if (out && qv_disk_readonly(d->disk)) {
        return ata_abort(cmd);
    }
    cmd->dir = out ? QV_ATA_OUT : QV_ATA_IN;
    cmd->drq = (flags & ATA_F_MULTI ? d->set.multiple : 1) * QV_SECTOR_SIZE;
    if (out && ((flags & ATA_F_FUA) || !d->set.write_cache)) {
        cmd->io_flags = QV_IO_FUA;
    }
    return true;
}

/* ---- READ VERIFY: reads and drops ---- */

static bool start_verify(struct qv_ata_drive *d, struct qv_ata_cmd *cmd, unsigned flags)
{
    if (!find_range(d, cmd, flags, &cmd->offset, &cmd->len)) {
        return ata_end(cmd, QV_ATA_E_IDNF);
    }
    ata_note_access(d);
    cmd->buf = g_malloc(ATA_VERIFY_STEP);
    return ata_steps(cmd);
}

static bool verify_step(struct qv_ata_drive *d, struct qv_ata_cmd *cmd)
{
    uint32_t n = MIN(cmd->len - cmd->at, ATA_VERIFY_STEP);

    if (n == 0) {
        cmd->len = 0;
        return false;
    }
    cmd->one = (struct iovec){.iov_base = cmd->buf, .iov_len = n};
    cmd->io.op = QV_OP_READ;
    cmd->io.offset = cmd->offset + cmd->at;
    cmd->io.len = n;
    cmd->io.iov = &cmd->one;
    cmd->io.iovcnt = 1;
    cmd->at += n;
    return true;
}

/* ---- FLUSH CACHE, and commands that flush first ---- */

static bool start_flush(struct qv_ata_drive *d, struct qv_ata_cmd *cmd, unsigned flags)
{
    return ata_steps(cmd);
}

static bool flush_step(struct qv_ata_drive *d, struct qv_ata_cmd *cmd)
{
    cmd->io.op = QV_OP_FLUSH;
    return cmd->at++ == 0;
}

/* ---- DATA SET MANAGEMENT ---- */

#define DSM_TRIM 0x01

static bool start_dsm(struct qv_ata_drive *d, struct qv_ata_cmd *cmd, unsigned flags)
{
    if (!qv_disk_discards(d->disk) || qv_disk_readonly(d->disk) || cmd->tf.feature != DSM_TRIM ||
        cmd->tf.count == 0 || cmd->tf.count > ATA_DSM_BLOCKS_MAX) {
        return ata_abort(cmd);
    }
    return ata_receive(cmd, cmd->tf.count * QV_SECTOR_SIZE);
}

/* Entry @i of the list: false at one that is empty. ACS-3, 7.5.3 */
static bool dsm_range(const struct qv_ata_cmd *cmd, uint32_t i, uint64_t *lba, uint32_t *count)
{
    qv_le64 raw;
    uint64_t v;

    memcpy(&raw, cmd->buf + i * sizeof(raw), sizeof(raw));
    v = qv_le64_get(raw);
    *lba = v & ATA_LBA48_MAX;
    *count = (uint32_t)(v >> 48);
    return *count != 0;
}

/* All ranges are looked at before the first is carried out. */
static void received_dsm(struct qv_ata_drive *d, struct qv_ata_cmd *cmd)
{
    uint64_t lba;
    uint32_t count;

    cmd->range_cnt = cmd->len / 8;
    for (uint32_t i = 0; i < cmd->range_cnt; i++) {
        if (dsm_range(cmd, i, &lba, &count) && !qv_range_inside(lba, count, d->sectors)) {
            ata_end(cmd, QV_ATA_E_IDNF);
            return;
        }
    }
    ata_steps(cmd);
}

/* Drivers cut a long range into pieces of 65,535 sectors: they are put together again, so that
 * whole clusters are given back. */
static bool dsm_step(struct qv_ata_drive *d, struct qv_ata_cmd *cmd)
{
    uint64_t start = 0, end = 0, lba;
    uint32_t count;

    for (; cmd->at < cmd->range_cnt; cmd->at++) {
        if (!dsm_range(cmd, cmd->at, &lba, &count)) {
            continue;
        }
        if (end != 0 && lba != end) {
            break;
        }
        if (end == 0) {
            start = lba;
        }
        end = lba + count;
    }
    cmd->io.op = QV_OP_DISCARD;
    cmd->io.offset = start * QV_SECTOR_SIZE;
    cmd->io.len = (end - start) * QV_SECTOR_SIZE;
    return end != 0;
}

/* ---- power ---- */

enum { POWER_IDLE_NOW, POWER_STANDBY_NOW, POWER_IDLE, POWER_STANDBY, POWER_SLEEP };

/* Which of them a command is; the codes of 94h..99h are those of ATA-1. */
static unsigned power_kind(uint8_t code)
{
    switch (code) {
    case 0xe0:
    case 0x94:
        return POWER_STANDBY_NOW;
    case 0xe1:
    case 0x95:
        return POWER_IDLE_NOW;
    case 0xe2:
    case 0x96:
        return POWER_STANDBY;
    case 0xe3:
    case 0x97:
        return POWER_IDLE;
    default:
        return POWER_SLEEP;
    }
}

/* A drive that stops spinning writes out its cache first. */
static bool start_power(struct qv_ata_drive *d, struct qv_ata_cmd *cmd, unsigned flags)
{
    unsigned kind = power_kind(cmd->tf.command);

    if (kind == POWER_STANDBY || kind == POWER_IDLE) {
        d->set.standby_timer = (uint8_t)cmd->tf.count;
    }
    if (kind == POWER_IDLE || kind == POWER_IDLE_NOW) {
        ata_note_access(d);
        return ata_end(cmd, 0);
    }
    return ata_steps(cmd);
}

static void finish_power(struct qv_ata_drive *d, struct qv_ata_cmd *cmd)
{
    d->set.power = power_kind(cmd->tf.command) == POWER_SLEEP ? ATA_SLEEP : ATA_STANDBY;
}

static bool start_check_power(struct qv_ata_drive *d, struct qv_ata_cmd *cmd, unsigned flags)
{
    cmd->tf.count = ata_power_now(d) == ATA_ACTIVE ? 0xff : 0x00;
    return ata_end(cmd, 0);
}

/* ---- small ones ---- */

static bool start_ok(struct qv_ata_drive *d, struct qv_ata_cmd *cmd, unsigned flags)
{
    return ata_end(cmd, 0);
}

static bool start_diagnostic(struct qv_ata_drive *d, struct qv_ata_cmd *cmd, unsigned flags)
{
    qv_ata_reset(d, QV_ATA_SOFT, &cmd->tf);
    cmd->ended = true;
    cmd->begun = false;
    cmd->done(cmd);
    return false;
}

static bool start_set_multiple(struct qv_ata_drive *d, struct qv_ata_cmd *cmd, unsigned flags)
{
    uint8_t n = (uint8_t)cmd->tf.count;

    if (n != 0 && (!qv_is_pow2(n) || n > ATA_MULTIPLE_MAX)) {
        d->set.multiple = 0;
        return ata_abort(cmd);
    }
    d->set.multiple = n;
    return ata_end(cmd, 0);
}

/* INITIALIZE DEVICE PARAMETERS: the geometry of CHS addresses. ATA-5, 8.16 */
static bool start_set_geometry(struct qv_ata_drive *d, struct qv_ata_cmd *cmd, unsigned flags)
{
    uint8_t sectors = (uint8_t)cmd->tf.count;

    if (sectors == 0 || sectors > 63) {
        return ata_abort(cmd);
    }
    d->set.sectors = sectors;
    d->set.heads = (uint8_t)((cmd->tf.device & 0x0f) + 1);
    return ata_end(cmd, 0);
}

static bool start_native_max(struct qv_ata_drive *d, struct qv_ata_cmd *cmd, unsigned flags)
{
    uint64_t max = d->sectors > 0 ? d->sectors - 1 : 0;

    if (flags & ATA_F_EXT) {
        cmd->tf.lba = max;
        return ata_end(cmd, 0);
    }
    max = MIN(max, ATA_LBA28_MAX - 1);
    cmd->tf.lba = max & 0xffffff;
    cmd->tf.device = (uint8_t)((cmd->tf.device & 0xf0) | (max >> 24));
    return ata_end(cmd, 0);
}

static bool start_buffer(struct qv_ata_drive *d, struct qv_ata_cmd *cmd, unsigned flags)
{
    if (flags & ATA_F_OUT) {
        return ata_receive(cmd, QV_SECTOR_SIZE);
    }
    ata_answer(cmd, QV_SECTOR_SIZE);
    memcpy(cmd->buf, d->sector_buffer, QV_SECTOR_SIZE);
    return true;
}

static void received_buffer(struct qv_ata_drive *d, struct qv_ata_cmd *cmd)
{
    memcpy(d->sector_buffer, cmd->buf, QV_SECTOR_SIZE);
    ata_end(cmd, 0);
}

/* ---- the table ---- */

#define FLUSHES .start = start_flush, .step = flush_step
#define POWERS  .start = start_power, .step = flush_step, .finish = finish_power

/* What is not here ends as aborted: ATAPI commands, SET MAX, SECURITY other than FREEZE LOCK
 * (frozen from power-on), DOWNLOAD MICROCODE, SANITIZE, ... */
static const struct ata_command commands[256] = {
    [0x06] = {start_dsm, ATA_F_OUT | ATA_F_DMA | ATA_F_EXT, received_dsm, dsm_step},
    [0x10] = {start_ok},                                    /* RECALIBRATE */
    [0x20] = {start_rw},                                    /* READ SECTORS */
    [0x21] = {start_rw},                                    /* without retries */
    [0x24] = {start_rw, ATA_F_EXT},                         /* READ SECTORS EXT */
    [0x25] = {start_rw, ATA_F_EXT | ATA_F_DMA},             /* READ DMA EXT */
    [0x27] = {start_native_max, ATA_F_EXT},                 /* READ NATIVE MAX ADDRESS EXT */
    [0x29] = {start_rw, ATA_F_EXT | ATA_F_MULTI},           /* READ MULTIPLE EXT */
    [0x2f] = {ata_start_read_log, ATA_F_EXT},               /* READ LOG EXT */
    [0x30] = {start_rw, ATA_F_OUT},                         /* WRITE SECTORS */
    [0x31] = {start_rw, ATA_F_OUT},                         /* without retries */
    [0x34] = {start_rw, ATA_F_OUT | ATA_F_EXT},             /* WRITE SECTORS EXT */
    [0x35] = {start_rw, ATA_F_OUT | ATA_F_EXT | ATA_F_DMA}, /* WRITE DMA EXT */
    [0x39] = {start_rw, ATA_F_OUT | ATA_F_EXT | ATA_F_MULTI},
    [0x3d] = {start_rw, ATA_F_OUT | ATA_F_EXT | ATA_F_DMA | ATA_F_FUA},
    [0x40] = {start_verify, .step = verify_step}, /* READ VERIFY SECTORS */
    [0x41] = {start_verify, .step = verify_step},
    [0x42] = {start_verify, ATA_F_EXT, .step = verify_step},
    [0x47] = {ata_start_read_log, ATA_F_EXT | ATA_F_DMA},      /* READ LOG DMA EXT */
    [0x60] = {start_rw, ATA_F_QUEUED | ATA_F_DMA},             /* READ FPDMA QUEUED */
    [0x61] = {start_rw, ATA_F_OUT | ATA_F_QUEUED | ATA_F_DMA}, /* WRITE FPDMA QUEUED */
    [0x70] = {start_ok},                                       /* SEEK */
    [0x90] = {start_diagnostic, ATA_F_ASLEEP},                 /* EXECUTE DEVICE DIAGNOSTIC */
    [0x91] = {start_set_geometry},
    [0x94] = {POWERS},
    [0x95] = {POWERS},
    [0x96] = {POWERS},
    [0x97] = {POWERS},
    [0x98] = {start_check_power},
    [0x99] = {POWERS},
    [0xb0] = {ata_start_smart},
    [0xc4] = {start_rw, ATA_F_MULTI},             /* READ MULTIPLE */
    [0xc5] = {start_rw, ATA_F_OUT | ATA_F_MULTI}, /* WRITE MULTIPLE */
    [0xc6] = {start_set_multiple},
    [0xc8] = {start_rw, ATA_F_DMA}, /* READ DMA */
    [0xc9] = {start_rw, ATA_F_DMA},
    [0xca] = {start_rw, ATA_F_OUT | ATA_F_DMA}, /* WRITE DMA */
    [0xcb] = {start_rw, ATA_F_OUT | ATA_F_DMA},
    [0xce] = {start_rw, ATA_F_OUT | ATA_F_EXT | ATA_F_MULTI | ATA_F_FUA},
    [0xe0] = {POWERS}, /* STANDBY IMMEDIATE */
    [0xe1] = {POWERS}, /* IDLE IMMEDIATE */
    [0xe2] = {POWERS}, /* STANDBY */
    [0xe3] = {POWERS}, /* IDLE */
    [0xe4] = {start_buffer},
    [0xe5] = {start_check_power},
    [0xe6] = {POWERS},  /* SLEEP */
    [0xe7] = {FLUSHES}, /* FLUSH CACHE */
    [0xe8] = {start_buffer, ATA_F_OUT, received_buffer},
    [0xea] = {FLUSHES, .flags = ATA_F_EXT}, /* FLUSH CACHE EXT */
    [0xec] = {ata_start_identify},
    [0xef] = {ata_start_set_features, .step = flush_step},
    [0xf5] = {start_ok}, /* SECURITY FREEZE LOCK: it is frozen */
    [0xf8] = {start_native_max},
};

const struct ata_command *ata_command_row(uint8_t code)
{
    return &commands[code];
}

bool qv_ata_has_data(uint8_t command)
{
    const struct ata_command *r = &commands[command];

    /* SMART and those that answer with a page; commands in steps are the ones that do I/O. */
    return r->start != NULL && (r->received != NULL || (r->step == NULL && r->start != start_ok));
}

/* After a queued command failed, only its log may be read. SATA 3.2, 13.6.2 */
static bool shut_by_ncq_error(const struct qv_ata_drive *d, const struct qv_ata_tf *tf)
{
    bool reads_log = tf->command == 0x2f || tf->command == 0x47;

    return d->ncq_error && !(reads_log && (tf->lba & 0xff) == 0x10);
}

bool qv_ata_begin(struct qv_ata_drive *d, struct qv_ata_cmd *cmd)
{
    const struct ata_command *r = &commands[cmd->tf.command];

    cmd->drive = d;
    cmd->def = r;
    cmd->dir = QV_ATA_NONE;
    cmd->dma = r->flags & ATA_F_DMA;
    cmd->queued = r->flags & ATA_F_QUEUED;
    cmd->tag = 0;
    cmd->len = cmd->moved = cmd->drq = 0;
    cmd->io_flags = cmd->at = 0;
    cmd->ended = cmd->canceled = false;
    cmd->buf = NULL;
    cmd->begun = true;
    if (r->start == NULL || (cmd->queued && !d->sata) || shut_by_ncq_error(d, &cmd->tf) ||
        (d->set.power == ATA_SLEEP && !(r->flags & ATA_F_ASLEEP))) {
        cmd->queued = cmd->queued && d->sata;
        return ata_abort(cmd);
    }
    return r->start(d, cmd, r->flags);
}
