/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bus master of a channel: scattered guest memory by a table of PRDs. Source: "Programming
 * Interface for Bus Master IDE Controller" 1.0.
 *
 * The drive and the host each say when they are ready; data moves when both have. Entries are
 * copied once; data stays in guest memory.
 */
#include <assert.h>
#include <errno.h>

#include "base/endian.h"
#include "base/maths.h"
#include "device/ide/ide_int.h"

struct prd {
    qv_le32 base;
    qv_le16 count; /* bytes; 0: 64 KiB */
    qv_le16 flags; /* bit 15: the table ends */
};
static_assert(sizeof(struct prd) == 8, "layout is fixed by the spec");

#define PRD_END 0x8000u

void ide_bm_reset(struct ide_channel *c)
{
    c->bm_command = 0;
    c->bm_status = (uint8_t)((c->drive[0] != NULL ? 0x20 : 0) | (c->drive[1] != NULL ? 0x40 : 0));
    c->table = 0;
    c->prd = c->prd_done = 0;
    c->prd_end = false;
}

/* ---- the table ---- */

/* Takes what is left of the current entry, up to @want bytes. Returns the pieces added to @iov, or
 * -errno. */
static int take_entry(struct ide_channel *c, uint32_t want, struct iovec *iov, unsigned max,
                      uint32_t *got)
{
    struct qv_guest_view *view = c->ide->view;
    uint32_t len, part;
    struct prd d;
    int rc;

    if (qv_guest_view_read(view, c->table + (uint64_t)c->prd * sizeof(d), &d, sizeof(d)) < 0) {
        return -EFAULT;
    }
    len = qv_le16_get(d.count) & 0xfffeu;
    len = len == 0 ? 65536 : len;
    part = len <= c->prd_done ? 0 : MIN(len - c->prd_done, want); /* it may have shrunk */
    rc = part == 0 ? 0
                   : qv_guest_view_iov(view, (qv_le32_get(d.base) & ~1u) + (uint64_t)c->prd_done,
                                       part, c->cmd.dir == QV_ATA_IN, iov, max);
    if (rc < 0) {
        return rc;
    }
    *got = part;
    c->prd_done += part;
    if (c->prd_done >= len) {
        c->prd++;
        c->prd_done = 0;
        c->prd_end = (qv_le16_get(d.flags) & PRD_END) || c->prd == IDE_PRDS_MAX;
    }
    return rc;
}

/* Buffers for the next @want bytes; fewer when the table ends or the list is full. */
static int64_t gather(struct ide_channel *c, uint32_t want, int *cnt)
{
    uint32_t got = 0;
    unsigned n = 0;

    while (got < want && !c->prd_end) {
        uint32_t part;
        int rc = take_entry(c, want - got, c->iov + n, IDE_IOV_MAX - n, &part);

        if (rc == -E2BIG) {
            break;
        }
        if (rc < 0) {
            return rc;
        }
        n += (unsigned)rc;
        got += part;
    }
    *cnt = (int)n;
    return got;
}

/* As gather, in whole sectors. */
static int64_t next_piece(struct ide_channel *c, int *cnt)
{
    uint32_t prd = c->prd, done = c->prd_done, whole;
    int64_t got = gather(c, c->cmd.len - c->cmd.moved, cnt);

    if (got < 0) {
        return got;
    }
    whole = (uint32_t)qv_align_down((uint64_t)got, QV_SECTOR_SIZE);
    if (whole == got || whole == 0) {
        return whole;
    }
    c->prd = prd;
    c->prd_done = done;
    c->prd_end = false;
    return gather(c, whole, cnt) == whole ? whole : 0;
}

/* ---- moving data ---- */

static void mark_written(struct ide_channel *c)
{
    uint64_t gpa;

    if (c->ide->log == NULL || c->cmd.dir != QV_ATA_IN) {
        return;
    }
    for (int i = 0; i < c->iov_cnt; i++) {
        if (qv_guest_map_gpa_of(c->ide->view->map, c->iov[i].iov_base, &gpa)) {
            qv_dirty_log_mark(c->ide->log, gpa, c->iov[i].iov_len);
        }
    }
}

/* The transfer cannot go on: the bus master stops with an error, the drive gives up. */
static void fail(struct ide_channel *c)
{
    c->bm_status = (uint8_t)((c->bm_status & ~BM_S_ACTIVE) | BM_S_ERROR);
    qv_ata_fail(&c->cmd, QV_ATA_E_ABRT);
    ide_channel_end(c);
}

/* The table has ended before the data: the bus master stops and the drive goes on waiting. */
static void table_too_short(struct ide_channel *c)
{
    c->bm_status &= (uint8_t)~BM_S_ACTIVE;
    c->bm_command &= (uint8_t)~BM_START;
    ide_channel_set_state(c, IDE_DMA_WAIT);
}

/* A move is over. Returns whether there is more to do. */
static bool moved(struct ide_channel *c)
{
    mark_written(c);
    if (c->cmd.canceled) {
        ide_channel_canceled(c);
        return false;
    }
    if (!c->cmd.ended) {
        return true;
    }
    if (c->prd_end) {
        c->bm_status &= (uint8_t)~BM_S_ACTIVE; /* else the table is longer than the data */
    }
    ide_channel_end(c);
    return false;
}

static void move_data(struct ide_channel *c)
{
    do {
        int cnt;
        int64_t len = next_piece(c, &cnt);

        if (len < 0) {
            qv_log_limited(&c->ide->log_limit, QV_LOG_WARN, "%s: a PRD table is not in memory",
                           c->ide->name);
            fail(c);
            return;
        }
        if (len == 0) {
            table_too_short(c);
            return;
        }
        c->iov_cnt = cnt;
        c->over = false;
        c->inside = c->running = true;
        qv_ata_move(&c->cmd, c->iov, cnt, (uint32_t)len);
        c->inside = false;
        if (!c->over) {
            return; /* ide_dma_moved() goes on */
        }
        c->running = false;
    } while (moved(c));
    ide_settle_later(c->ide);
}

void ide_dma_moved(struct ide_channel *c)
{
    if (moved(c)) {
        move_data(c);
    }
}

void ide_dma_run(struct ide_channel *c)
{
    if (c->state != IDE_DMA_WAIT || !(c->bm_command & BM_START) || c->ide->hold != 0 ||
        c->running || c->redo || !qv_pci_bus_master(c->ide->fn)) {
        return;
    }
    if ((c->cmd.dir == QV_ATA_IN) != !!(c->bm_command & BM_TO_MEM)) {
        fail(c);
        return;
    }
    ide_channel_set_state(c, IDE_DMA);
    move_data(c);
}

/* ---- registers ---- */

static uint8_t byte_read(const struct ide_channel *c, unsigned reg)
{
    switch (reg) {
    case BM_COMMAND:
        return c->bm_command;
    case BM_STATUS:
        return c->bm_status;
    case BM_TABLE:
    case BM_TABLE + 1:
    case BM_TABLE + 2:
    case BM_TABLE + 3:
        return (uint8_t)(c->table >> (8 * (reg - BM_TABLE)));
    default:
        return 0;
    }
}

uint32_t ide_bm_read(struct ide_channel *c, unsigned reg, unsigned size)
{
    uint32_t value = 0;

    for (unsigned i = 0; i < size && i < 4; i++) {
        value |= (uint32_t)byte_read(c, reg + i) << (8 * i);
    }
    return value;
}

static void write_command(struct ide_channel *c, uint8_t value)
{
    uint8_t was = c->bm_command;

    c->bm_command = value & (BM_START | BM_TO_MEM);
    if (!(was & BM_START) && (value & BM_START)) {
        c->bm_status |= BM_S_ACTIVE;
        if (c->state == IDE_DMA_WAIT) {
            c->prd = c->prd_done = 0;
            c->prd_end = false;
        }
        ide_dma_run(c);
    } else if ((was & BM_START) && !(value & BM_START) && c->state != IDE_DMA) {
        /* Data in flight is moved all the same, and shows as active until then. */
        c->bm_status &= (uint8_t)~BM_S_ACTIVE;
    }
}

static void byte_write(struct ide_channel *c, unsigned reg, uint8_t value)
{
    unsigned shift = 8 * (reg - BM_TABLE);

    switch (reg) {
    case BM_COMMAND:
        write_command(c, value);
        break;
    case BM_STATUS:
        c->bm_status &= (uint8_t) ~(value & (BM_S_ERROR | BM_S_IRQ));
        c->bm_status = (uint8_t)((c->bm_status & ~BM_S_DRIVES) | (value & BM_S_DRIVES));
        break;
    case BM_TABLE:
    case BM_TABLE + 1:
    case BM_TABLE + 2:
    case BM_TABLE + 3:
        if (c->state != IDE_DMA) {
            c->table = (c->table & ~(0xffu << shift)) | (uint32_t)value << shift;
            c->table &= ~3u;
        }
        break;
    default:
        break;
    }
}

void ide_bm_write(struct ide_channel *c, unsigned reg, uint32_t value, unsigned size)
{
    for (unsigned i = 0; i < size && i < 4; i++) {
        byte_write(c, reg + i, (uint8_t)(value >> (8 * i)));
    }
}
