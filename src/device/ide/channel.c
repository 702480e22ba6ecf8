/* SPDX-License-Identifier: Apache-2.0 */
/* A channel: the registers of its two devices, commands, and data by PIO. Source: ATA/ATAPI-7
 * volume 2, 7 "Interface register definitions" and 9.5 to 9.8 (protocols). */
#include <assert.h>
#include <string.h>

#include "device/ide/ide_int.h"

#define READY (QV_ATA_S_DRDY | QV_ATA_S_DSC)

/* IDLE -command-> BUSY -> IDLE, PIO_IN, PIO_OUT, DMA_WAIT; PIO_IN, PIO_OUT -block done-> BUSY or
 * IDLE; DMA_WAIT <-> DMA -> IDLE; all -SRST-> RESET -> IDLE. */
void ide_channel_set_state(struct ide_channel *c, enum ide_state to)
{
    bool legal = to == IDE_RESET || to == IDE_IDLE;

    switch (c->state) {
    case IDE_IDLE:
        legal = legal || to == IDE_BUSY;
        break;
    case IDE_BUSY:
        legal = legal || to == IDE_PIO_IN || to == IDE_PIO_OUT || to == IDE_DMA_WAIT;
        break;
    case IDE_PIO_IN:
    case IDE_PIO_OUT:
        legal = legal || to == IDE_BUSY;
        break;
    case IDE_DMA_WAIT:
        legal = legal || to == IDE_DMA || to == IDE_BUSY;
        break;
    case IDE_DMA:
        legal = legal || to == IDE_DMA_WAIT;
        break;
    case IDE_RESET:
        break;
    }
    assert(legal);
    c->state = to;
}

static bool is_there(const struct ide_channel *c)
{
    return c->drive[0] != NULL || c->drive[1] != NULL;
}

/* ---- status and interrupt ---- */

static bool is_busy(const struct ide_channel *c)
{
    return c->state == IDE_BUSY || c->state == IDE_DMA_WAIT || c->state == IDE_DMA ||
           c->state == IDE_RESET;
}

uint8_t ide_channel_status(const struct ide_channel *c)
{
    if (!is_there(c)) {
        return 0x7f; /* nobody drives the bus; DD7 is pulled down */
    }
    if (c->drive[c->selected] == NULL) {
        return 0x00; /* the other device answers so for the one that is not there */
    }
    if (c->state == IDE_RESET) {
        return QV_ATA_S_BSY;
    }
    if (c->state == IDE_IDLE || c->active != c->selected) {
        return c->regs[c->selected].status;
    }
    return is_busy(c) ? QV_ATA_S_BSY | READY : QV_ATA_S_DRQ | READY;
}

/* INTRQ of the active device goes up. */
void ide_channel_raise(struct ide_channel *c)
{
    c->regs[c->active].irq = true;
    if (!(c->control & CONTROL_NIEN)) {
        c->bm_status |= BM_S_IRQ;
    }
    ide_irq_update(c->ide);
}

static void lower(struct ide_channel *c, unsigned device)
{
    if (c->regs[device].irq) {
        c->regs[device].irq = false;
        ide_irq_update(c->ide);
    }
}

/* ---- the end of a command ---- */

static void put_result(struct ide_channel *c, unsigned device, const struct qv_ata_tf *tf)
{
    struct ide_regs *r = &c->regs[device];

    r->status = tf->status;
    r->error = tf->error;
    for (unsigned half = 0; half < 2; half++) {
        r->count[half] = (uint8_t)(tf->count >> (8 * half));
        for (unsigned i = 0; i < 3; i++) {
            r->lba[i][half] = (uint8_t)(tf->lba >> (8 * i + 24 * half));
        }
    }
    r->device = (uint8_t)((r->device & ~0x0f) | (tf->device & 0x0f));
}

void ide_channel_end(struct ide_channel *c)
{
    put_result(c, c->active, &c->cmd.tf);
    ide_channel_set_state(c, IDE_IDLE);
    ide_channel_raise(c);
}

void ide_channel_drop(struct ide_channel *c)
{
    if (c->running) {
        c->dropped = true;
        ide_rest(c->ide);
    } else if (c->cmd.begun) {
        qv_ata_forget(&c->cmd);
    }
    c->redo = false;
}

void ide_channel_canceled(struct ide_channel *c)
{
    c->redo = !c->dropped;
    c->redo_from = c->cmd.dma ? 0 : c->cmd.moved; /* DMA begins its table anew */
    c->dropped = false;
}

/* ---- PIO ---- */

/* Reads the next block from the drive, or writes the one the host has filled. */
static void move_block(struct ide_channel *c)
{
    c->one = (struct iovec){.iov_base = c->block, .iov_len = c->block_len};
    c->running = true;
    qv_ata_move(&c->cmd, &c->one, 1, c->block_len);
}

static void next_block(struct ide_channel *c)
{
    c->block_len = MIN(MIN(c->cmd.drq, c->cmd.len - c->cmd.moved), IDE_BLOCK_MAX);
    c->block_pos = 0;
    c->block_last = c->filled = false;
}

/* A block has moved between the drive and c->block. */
static void block_moved(struct ide_channel *c)
{
    bool ok = !c->cmd.ended || !(c->cmd.tf.status & QV_ATA_S_ERR);

    if (c->cmd.dir == QV_ATA_IN && ok) {
        c->block_last = c->cmd.ended;
        ide_channel_set_state(c, IDE_PIO_IN);
        ide_channel_raise(c);
    } else if (c->cmd.ended) {
        ide_channel_end(c);
    } else {
        next_block(c);
        ide_channel_set_state(c, IDE_PIO_OUT);
        ide_channel_raise(c);
    }
}

/* The host has used up the block. */
static void block_done(struct ide_channel *c)
{
    if (c->state == IDE_PIO_IN && c->block_last) {
        put_result(c, c->active, &c->cmd.tf);
        ide_channel_set_state(c, IDE_IDLE); /* without an interrupt */
        return;
    }
    if (c->state == IDE_PIO_IN) {
        next_block(c);
    } else {
        c->filled = true;
    }
    ide_channel_set_state(c, IDE_BUSY);
    if (c->ide->hold != 0) {
        c->redo = true; /* goes on when the controller does */
        c->redo_from = c->cmd.moved;
        qv_ata_forget(&c->cmd);
        return;
    }
    move_block(c);
}

static uint32_t data_read(struct ide_channel *c, unsigned size)
{
    uint32_t value = 0, n = MIN(size, c->block_len - c->block_pos);

    if (c->state != IDE_PIO_IN || c->active != c->selected) {
        return 0;
    }
    memcpy(&value, c->block + c->block_pos, n);
    c->block_pos += n;
    if (c->block_pos == c->block_len) {
        block_done(c);
    }
    return value;
}

static void data_write(struct ide_channel *c, uint32_t value, unsigned size)
{
    uint32_t n = MIN(size, c->block_len - c->block_pos);

    if (c->state != IDE_PIO_OUT || c->active != c->selected) {
        return;
    }
    memcpy(c->block + c->block_pos, &value, n);
    c->block_pos += n;
    if (c->block_pos == c->block_len) {
        block_done(c);
    }
}

/* ---- commands ---- */

void ide_channel_cmd_done(struct qv_ata_cmd *cmd)
{
    struct ide_channel *c = qv_container_of(cmd, struct ide_channel, cmd);

    if (c->inside) {
        c->over = true;
        return;
    }
    c->running = false;
    if (c->dropped || cmd->canceled) {
        if (c->dropped && !cmd->ended && !cmd->canceled) {
            qv_ata_forget(cmd);
        }
        if (cmd->canceled) {
            ide_channel_canceled(c);
        }
        c->dropped = false;
    } else if (c->state == IDE_DMA) {
        ide_dma_moved(c);
    } else if (cmd->dir == QV_ATA_NONE) {
        ide_channel_end(c);
    } else {
        block_moved(c);
    }
    ide_settle_later(c->ide);
}

/* Begins c->issued on the active device, @from bytes into its data phase. */
static void begin(struct ide_channel *c, uint32_t from)
{
    c->redo = false;
    c->cmd.tf = c->issued;
    c->cmd.done = ide_channel_cmd_done;
    c->running = true;
    if (!qv_ata_begin(c->drive[c->active], &c->cmd)) {
        return; /* ends in cmd_done, or has */
    }
    c->running = false;
    if ((from > 0 && !qv_ata_skip(&c->cmd, from)) ||
        (c->filled && c->block_len > c->cmd.len - c->cmd.moved)) {
        qv_ata_fail(&c->cmd, QV_ATA_E_ABRT);
        ide_channel_end(c);
        return;
    }
    if (c->cmd.dma) {
        c->prd = c->prd_done = 0;
        c->prd_end = false;
        ide_channel_set_state(c, IDE_DMA_WAIT);
        ide_dma_run(c);
    } else if (c->cmd.dir == QV_ATA_IN) {
        next_block(c);
        move_block(c);
    } else if (c->filled) {
        move_block(c);
    } else {
        next_block(c);
        ide_channel_set_state(c, IDE_PIO_OUT); /* the first block: without an interrupt */
    }
}

static struct qv_ata_tf task_file(const struct ide_regs *r, uint8_t command)
{
    struct qv_ata_tf tf = {.command = command,
                           .device = r->device,
                           .feature = (uint16_t)(r->feature[0] | r->feature[1] << 8),
                           .count = (uint16_t)(r->count[0] | r->count[1] << 8)};

    for (unsigned i = 0; i < 3; i++) {
        tf.lba |= (uint64_t)r->lba[i][0] << (8 * i) | (uint64_t)r->lba[i][1] << (24 + 8 * i);
    }
    return tf;
}

/* Both devices look at themselves and show their signature. */
static void signatures(struct ide_channel *c, enum qv_ata_reset how)
{
    struct qv_ata_tf tf;

    c->selected = 0;
    for (unsigned i = 0; i < 2; i++) {
        if (c->drive[i] != NULL) {
            qv_ata_reset(c->drive[i], how, &tf);
            put_result(c, i, &tf);
        }
        c->regs[i].device = 0;
        c->regs[i].irq = false;
    }
    ide_irq_update(c->ide);
}

static void command(struct ide_channel *c, uint8_t code)
{
    if (is_busy(c) || !is_there(c)) {
        return;
    }
    lower(c, c->selected);
    if (c->cmd.begun) {
        qv_ata_forget(&c->cmd); /* the host gives up the data of another one */
    }
    if (code == 0x90) { /* EXECUTE DEVICE DIAGNOSTIC is for both */
        c->active = 0;
        c->state = IDE_IDLE;
        signatures(c, QV_ATA_SOFT);
        ide_channel_raise(c);
        return;
    }
    if (c->drive[c->selected] == NULL) {
        return;
    }
    c->state = IDE_IDLE;
    c->active = c->selected;
    c->issued = task_file(&c->regs[c->active], code);
    ide_channel_set_state(c, IDE_BUSY);
    c->filled = false;
    if (c->ide->hold != 0) {
        c->redo = true;
        c->redo_from = 0;
        return;
    }
    begin(c, 0);
}

/* ---- resets ---- */

static void end_reset(struct ide_channel *c)
{
    signatures(c, QV_ATA_SOFT);
    ide_channel_set_state(c, IDE_IDLE);
}

void ide_channel_control(struct ide_channel *c, uint8_t value)
{
    uint8_t was = c->control;

    c->control = value & (CONTROL_NIEN | CONTROL_SRST | CONTROL_HOB);
    if (!is_there(c)) {
        return;
    }
    if ((c->control & CONTROL_SRST) && !(was & CONTROL_SRST)) {
        ide_channel_drop(c);
        ide_channel_set_state(c, IDE_RESET);
        lower(c, 0);
        lower(c, 1);
    } else if (!(c->control & CONTROL_SRST) && c->state == IDE_RESET && !c->running) {
        end_reset(c);
    }
    if ((was & CONTROL_NIEN) && !(c->control & CONTROL_NIEN) && c->regs[c->selected].irq) {
        c->bm_status |= BM_S_IRQ;
    }
    ide_irq_update(c->ide);
}

void ide_channel_reset(struct ide_channel *c)
{
    assert(!c->running);
    ide_channel_drop(c);
    c->control = 0;
    c->state = IDE_IDLE;
    memset(c->regs, 0, sizeof(c->regs));
    c->block_len = c->block_pos = 0;
    signatures(c, QV_ATA_POWER_ON);
    ide_bm_reset(c);
}

void ide_channel_settle(struct ide_channel *c)
{
    if (c->running) {
        return;
    }
    if (c->state == IDE_RESET && !(c->control & CONTROL_SRST)) {
        end_reset(c);
    }
    if (c->ide->hold != 0) {
        return;
    }
    if (c->redo) {
        if (c->state == IDE_DMA) {
            ide_channel_set_state(c, IDE_DMA_WAIT);
        }
        if (c->state == IDE_DMA_WAIT) {
            ide_channel_set_state(c, IDE_BUSY);
        }
        begin(c, c->redo_from);
    } else {
        ide_dma_run(c);
    }
}

/* ---- registers ---- */

static uint8_t reg_read(struct ide_channel *c, unsigned reg)
{
    const struct ide_regs *r = &c->regs[c->selected];
    unsigned half = c->control & CONTROL_HOB ? 1 : 0;
    uint8_t status = ide_channel_status(c);

    if (!is_there(c)) {
        return 0x7f;
    }
    if (reg == REG_STATUS) {
        lower(c, c->selected);
        return status;
    }
    if (reg == REG_DEVICE) {
        return (uint8_t)(r->device | (c->selected != 0 ? DEV_BIT : 0));
    }
    if (c->drive[c->selected] == NULL) {
        return 0;
    }
    if (status & QV_ATA_S_BSY) {
        return status; /* what registers read as while BSY is set */
    }
    switch (reg) {
    case REG_ERROR:
        return r->error;
    case REG_COUNT:
        return r->count[half];
    default:
        return r->lba[reg - REG_LBA_LOW][half];
    }
}

uint32_t ide_channel_read(struct ide_channel *c, unsigned reg, unsigned size)
{
    uint32_t value = 0;

    if (reg == REG_DATA) {
        return data_read(c, MIN(size, 4));
    }
    for (unsigned i = 0; i < size && reg + i < 8 && i < 4; i++) {
        value |= (uint32_t)reg_read(c, reg + i) << (8 * i);
    }
    return value;
}

/* A register that remembers what was in it. */
static void push(uint8_t *reg, uint8_t value)
{
    reg[1] = reg[0];
    reg[0] = value;
}

/* Both devices take what the host writes. */
static void reg_write(struct ide_channel *c, unsigned reg, uint8_t value)
{
    c->control &= (uint8_t)~CONTROL_HOB;
    if (reg == REG_STATUS) {
        command(c, value);
        return;
    }
    if (is_busy(c)) {
        return;
    }
    for (unsigned i = 0; i < 2; i++) {
        struct ide_regs *r = &c->regs[i];

        if (reg == REG_ERROR) {
            push(r->feature, value);
        } else if (reg == REG_COUNT) {
            push(r->count, value);
        } else if (reg == REG_DEVICE) {
            r->device = value & (uint8_t)~DEV_BIT;
        } else {
            push(r->lba[reg - REG_LBA_LOW], value);
        }
    }
    if (reg == REG_DEVICE) {
        c->selected = value & DEV_BIT ? 1 : 0;
        ide_irq_update(c->ide);
    }
}

void ide_channel_write(struct ide_channel *c, unsigned reg, uint32_t value, unsigned size)
{
    if (reg == REG_DATA) {
        data_write(c, value, MIN(size, 4));
        return;
    }
    for (unsigned i = 0; i < size && reg + i < 8 && i < 4; i++) {
        reg_write(c, reg + i, (uint8_t)(value >> (8 * i)));
    }
}
