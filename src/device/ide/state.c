/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The controller's state as bytes, for migration. It is at rest: nothing is in flight. A command
 * with a data phase is begun anew by the load and skips what is over; a command that has none, and
 * one that a stopped disk gave back, is done anew when the controller goes on.
 */
#include <assert.h>
#include <string.h>

#include "base/endian.h"
#include "base/error.h"
#include "device/ide/ide_int.h"

#define STATE_VERSION 1u

struct regs_state {
    uint8_t feature[2], count[2], lba[3][2];
    uint8_t device, status, error, irq;
};

struct tf_state {
    uint8_t command, device, status, error;
    qv_le16 feature, count;
    qv_le64 lba;
};

struct channel_state {
    struct regs_state regs[2];
    uint8_t control, selected, state, active;
    struct tf_state issued, result;
    uint8_t redo, block_last, filled, drives;
    qv_le32 moved, redo_from, block_len, block_pos;
    uint8_t bm_command, bm_status, prd_end, rest;
    qv_le32 table, prd, prd_done;
    uint8_t block[IDE_BLOCK_MAX];
};

/* ---- save ---- */

static struct tf_state tf_save(const struct qv_ata_tf *tf)
{
    return (struct tf_state){.command = tf->command,
                             .device = tf->device,
                             .status = tf->status,
                             .error = tf->error,
                             .feature = qv_le16_make(tf->feature),
                             .count = qv_le16_make(tf->count),
                             .lba = qv_le64_make(tf->lba)};
}

static struct qv_ata_tf tf_load(const struct tf_state *st)
{
    return (struct qv_ata_tf){.command = st->command,
                              .device = st->device,
                              .status = st->status,
                              .error = st->error,
                              .feature = qv_le16_get(st->feature),
                              .count = qv_le16_get(st->count),
                              .lba = qv_le64_get(st->lba) & UINT64_C(0xffffffffffff)};
}

static uint8_t drives(const struct ide_channel *c)
{
    return (uint8_t)((c->drive[0] != NULL ? 1 : 0) | (c->drive[1] != NULL ? 2 : 0));
}

static void save_channel(const struct ide_channel *c, GByteArray *out)
{
    struct channel_state st = {
        .control = c->control,
        .selected = (uint8_t)c->selected,
        .state = (uint8_t)c->state,
        .active = (uint8_t)c->active,
        .issued = tf_save(&c->issued),
        .result = tf_save(&c->cmd.tf),
        .redo = c->redo,
        .block_last = c->block_last,
        .filled = c->filled,
        .drives = drives(c),
        .moved = qv_le32_make(c->cmd.moved),
        .redo_from = qv_le32_make(c->redo_from),
        .block_len = qv_le32_make(c->block_len),
        .block_pos = qv_le32_make(c->block_pos),
        .bm_command = c->bm_command,
        .bm_status = c->bm_status,
        .prd_end = c->prd_end,
        .table = qv_le32_make(c->table),
        .prd = qv_le32_make(c->prd),
        .prd_done = qv_le32_make(c->prd_done),
    };

    for (unsigned i = 0; i < 2; i++) {
        const struct ide_regs *r = &c->regs[i];

        memcpy(st.regs[i].feature, r->feature, sizeof(r->feature));
        memcpy(st.regs[i].count, r->count, sizeof(r->count));
        memcpy(st.regs[i].lba, r->lba, sizeof(r->lba));
        st.regs[i].device = r->device;
        st.regs[i].status = r->status;
        st.regs[i].error = r->error;
        st.regs[i].irq = r->irq;
    }
    memcpy(st.block, c->block, sizeof(st.block));
    g_byte_array_append(out, (const uint8_t *)&st, sizeof(st));
    for (unsigned i = 0; i < 2; i++) {
        if (c->drive[i] != NULL) {
            qv_ata_save(c->drive[i], out);
        }
    }
}

void ide_save(struct qv_pci_function *fn, GByteArray *out)
{
    const struct qv_ide *ide = qv_pci_model(fn);
    qv_le32 version = qv_le32_make(STATE_VERSION);

    g_byte_array_append(out, version.b, sizeof(version.b));
    save_channel(&ide->channels[0], out);
    save_channel(&ide->channels[1], out);
}

/* ---- load ---- */

static bool flags_ok(const struct channel_state *st)
{
    return !(st->control & ~(CONTROL_NIEN | CONTROL_SRST | CONTROL_HOB)) && st->selected <= 1 &&
           st->active <= 1 && st->redo <= 1 && st->block_last <= 1 && st->filled <= 1 &&
           st->prd_end <= 1 && st->regs[0].irq <= 1 && st->regs[1].irq <= 1 &&
           !(st->bm_command & ~(BM_START | BM_TO_MEM)) && !(st->bm_status & 0x98);
}

static bool channel_ok(const struct ide_channel *c, const struct channel_state *st)
{
    uint32_t len = qv_le32_get(st->block_len), pos = qv_le32_get(st->block_pos);
    bool in_block = st->state == IDE_PIO_IN || st->state == IDE_PIO_OUT;

    if (!flags_ok(st) || st->drives != drives(c) || len > IDE_BLOCK_MAX || len % QV_SECTOR_SIZE ||
        pos > len || qv_le32_get(st->prd) > IDE_PRDS_MAX || qv_le32_get(st->prd_done) >= 65536) {
        return false;
    }
    if (st->state > IDE_RESET || (in_block && pos >= len) || (st->filled && len == 0)) {
        return false;
    }
    /* What is under way has a drive; what nothing would go on with is no state to be saved in. */
    if (st->state != IDE_IDLE && st->state != IDE_RESET && c->drive[st->active] == NULL) {
        return false;
    }
    return st->redo ? st->state == IDE_BUSY || st->state == IDE_DMA
                    : st->state != IDE_BUSY && st->state != IDE_DMA;
}

static void load_regs(struct ide_channel *c, const struct channel_state *st)
{
    for (unsigned i = 0; i < 2; i++) {
        struct ide_regs *r = &c->regs[i];

        memcpy(r->feature, st->regs[i].feature, sizeof(r->feature));
        memcpy(r->count, st->regs[i].count, sizeof(r->count));
        memcpy(r->lba, st->regs[i].lba, sizeof(r->lba));
        r->device = st->regs[i].device;
        r->status = st->regs[i].status;
        r->error = st->regs[i].error;
        r->irq = st->regs[i].irq;
    }
    c->control = st->control;
    c->selected = st->selected;
    c->active = st->active;
    c->bm_command = st->bm_command;
    c->bm_status = st->bm_status;
    c->table = qv_le32_get(st->table) & ~3u;
    c->prd = qv_le32_get(st->prd);
    c->prd_done = qv_le32_get(st->prd_done);
    c->prd_end = st->prd_end;
    c->block_len = qv_le32_get(st->block_len);
    c->block_pos = qv_le32_get(st->block_pos);
    c->block_last = st->block_last;
    c->filled = st->filled;
    memcpy(c->block, st->block, sizeof(c->block));
}

/* The command in whose data phase the channel is. A data phase begins without I/O: a command that
 * would do any by itself cannot be in one, and is refused before it is begun. */
static bool resume_command(struct ide_channel *c, const struct channel_state *st)
{
    struct qv_ata_cmd *cmd = &c->cmd;
    uint32_t moved = qv_le32_get(st->moved);
    enum qv_ata_dir dir = c->state == IDE_PIO_OUT ? QV_ATA_OUT : QV_ATA_IN;

    cmd->tf = c->issued;
    cmd->done = ide_channel_cmd_done;
    if (!qv_ata_has_data(c->issued.command)) {
        return false;
    }
    c->inside = true; /* an end is noted, not acted on */
    if (!qv_ata_begin(c->drive[c->active], cmd)) {
        c->inside = false;
        return false;
    }
    c->inside = false;
    if ((moved > 0 && !qv_ata_skip(cmd, moved)) || cmd->dma != (c->state == IDE_DMA_WAIT) ||
        (!cmd->dma &&
         (cmd->dir != dir || (c->state == IDE_PIO_OUT && c->block_len > cmd->len - cmd->moved)))) {
        qv_ata_forget(cmd);
        return false;
    }
    return true;
}

static bool load_channel(struct ide_channel *c, const uint8_t **bytes, size_t *len, GError **error)
{
    struct channel_state st;
    bool ok = *len >= sizeof(st);

    if (ok) {
        memcpy(&st, *bytes, sizeof(st));
        *bytes += sizeof(st);
        *len -= sizeof(st);
        ok = channel_ok(c, &st);
    }
    for (unsigned i = 0; ok && i < 2; i++) {
        if (c->drive[i] != NULL && !qv_ata_load(c->drive[i], bytes, len, error)) {
            return false;
        }
    }
    if (!ok) {
        return qv_fail(error, QV_ERROR_CORRUPT, "%s: the saved state does not fit channel %u",
                       c->ide->name, c->index);
    }
    ide_channel_drop(c);
    load_regs(c, &st);
    c->state = st.state;
    c->issued = tf_load(&st.issued);
    c->redo = st.redo;
    c->redo_from = qv_le32_get(st.redo_from);
    if (c->state == IDE_PIO_OUT || c->state == IDE_DMA_WAIT ||
        (c->state == IDE_PIO_IN && !c->block_last)) {
        ok = resume_command(c, &st);
    } else {
        c->cmd.tf = tf_load(&st.result);
    }
    if (!ok) {
        ide_channel_reset(c);
        return qv_fail(error, QV_ERROR_CORRUPT, "%s: channel %u: no such command", c->ide->name,
                       c->index);
    }
    return true;
}

bool ide_load(struct qv_pci_function *fn, const uint8_t *bytes, size_t len, GError **error)
{
    struct qv_ide *ide = qv_pci_model(fn);
    qv_le32 version;

    if (len < sizeof(version)) {
        return qv_fail(error, QV_ERROR_CORRUPT, "%s: the saved state is too short", ide->name);
    }
    memcpy(&version, bytes, sizeof(version));
    bytes += sizeof(version);
    len -= sizeof(version);
    if (qv_le32_get(version) != STATE_VERSION) {
        return qv_fail(error, QV_ERROR_CORRUPT, "%s: the saved state is of another version",
                       ide->name);
    }
    if (!load_channel(&ide->channels[0], &bytes, &len, error) ||
        !load_channel(&ide->channels[1], &bytes, &len, error)) {
        return false;
    }
    if (len != 0) {
        return qv_fail(error, QV_ERROR_CORRUPT, "%s: the saved state is too long", ide->name);
    }
    ide_irq_update(ide);
    return true;
}
