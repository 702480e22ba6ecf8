/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a command proceeds: its data phase, commands that go on by themselves in steps, and its end.
 *
 * The block layer may complete a request inside of the submit. So that a long command does not
 * become a deep stack, the steps are a loop: io_done() inside of a submit only leaves a note
 * (cmd->over).
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/maths.h"
#include "device/ata/ata_int.h"

/* ---- the end ---- */

static const struct ata_command *row(const struct qv_ata_cmd *cmd)
{
    return cmd->def;
}

static void drop_buf(struct qv_ata_cmd *cmd)
{
    g_free(cmd->buf);
    cmd->buf = NULL;
}

/* Log 10h as it stands after a queued command failed. SATA 3.2, 13.7.4 */
static void note_ncq_error(struct qv_ata_drive *d, const struct qv_ata_cmd *cmd)
{
    uint8_t *p = d->ncq_page;

    if (d->ncq_error) {
        return; /* the first one counts */
    }
    d->ncq_error = true;
    memset(p, 0, sizeof(d->ncq_page));
    p[0] = cmd->tag;
    p[2] = cmd->tf.status;
    p[3] = cmd->tf.error;
    for (unsigned i = 0; i < 3; i++) {
        p[4 + i] = (uint8_t)(cmd->tf.lba >> (8 * i));
        p[8 + i] = (uint8_t)(cmd->tf.lba >> (24 + 8 * i));
    }
    p[7] = cmd->tf.device;
    p[12] = (uint8_t)cmd->tf.count;
    p[13] = (uint8_t)(cmd->tf.count >> 8);
}

static void set_result(struct qv_ata_cmd *cmd, uint8_t error)
{
    cmd->tf.status = QV_ATA_S_DRDY | QV_ATA_S_DSC | (error != 0 ? QV_ATA_S_ERR : 0);
    cmd->tf.error = error;
    if (error != 0 && cmd->queued) {
        note_ncq_error(cmd->drive, cmd);
    }
    drop_buf(cmd);
    cmd->begun = false;
    cmd->ended = true;
}

bool ata_end(struct qv_ata_cmd *cmd, uint8_t error)
{
    set_result(cmd, error);
    cmd->done(cmd);
    return false;
}

bool ata_abort(struct qv_ata_cmd *cmd)
{
    return ata_end(cmd, QV_ATA_E_ABRT);
}

bool qv_ata_skip(struct qv_ata_cmd *cmd, uint32_t len)
{
    if (len >= cmd->len || len % QV_SECTOR_SIZE != 0) {
        return false;
    }
    cmd->moved = len;
    return true;
}

void qv_ata_fail(struct qv_ata_cmd *cmd, uint8_t error)
{
    assert(cmd->begun);
    set_result(cmd, error);
}

void qv_ata_forget(struct qv_ata_cmd *cmd)
{
    drop_buf(cmd);
    cmd->begun = false;
}

/* Puts the address of the sector at byte @offset into the result. ACS-3, 6.5 and 6.6 */
static void set_lba(struct qv_ata_cmd *cmd, uint64_t offset)
{
    uint64_t lba = offset / QV_SECTOR_SIZE;

    cmd->tf.lba = lba;
    if (!(row(cmd)->flags & (ATA_F_EXT | ATA_F_QUEUED))) {
        cmd->tf.lba = lba & 0xffffff;
        cmd->tf.device = (uint8_t)((cmd->tf.device & 0xf0) | ((lba >> 24) & 0x0f));
    }
}

/* A request of the disk failed with @result while the command was at byte @offset. */
static void end_failed(struct qv_ata_cmd *cmd, enum qv_op op, uint64_t offset, int result)
{
    struct qv_ata_drive *d = cmd->drive;
    struct qv_ata_tf issued = cmd->tf;
    uint8_t error = QV_ATA_E_ABRT;

    if (result == -EINVAL) {
        error = QV_ATA_E_IDNF;
    } else if (op == QV_OP_READ) {
        error = QV_ATA_E_UNC;
    }
    set_lba(cmd, offset);
    set_result(cmd, error);
    ata_note_error(d, cmd, &issued);
    cmd->done(cmd);
}

/* ---- requests to the disk ---- */

static void cancel(struct qv_ata_cmd *cmd)
{
    drop_buf(cmd);
    cmd->begun = false;
    cmd->canceled = true;
    cmd->done(cmd);
}

static bool was_canceled(const struct qv_ata_cmd *cmd)
{
    return cmd->io.result == -ECANCELED && cmd->drive->canceling;
}

static void submit(struct qv_ata_cmd *cmd, enum qv_op op, uint64_t offset, uint64_t len,
                   void (*done)(struct qv_io *io))
{
    struct qv_io *io = &cmd->io;

    io->op = op;
    io->offset = offset;
    io->len = len;
    io->done = done;
    io->user = cmd->drive;
    qv_disk_submit(cmd->drive->disk, io);
}

/* ---- the data phase ---- */

bool ata_answer(struct qv_ata_cmd *cmd, uint32_t len)
{
    assert(len > 0 && len <= ATA_BUF_MAX && cmd->buf == NULL);
    cmd->buf = g_malloc0(len);
    cmd->dir = QV_ATA_IN;
    cmd->len = len;
    cmd->drq = QV_SECTOR_SIZE;
    return true;
}

bool ata_receive(struct qv_ata_cmd *cmd, uint32_t len)
{
    ata_answer(cmd, len);
    cmd->dir = QV_ATA_OUT;
    return true;
}

static void move_done(struct qv_io *io)
{
    struct qv_ata_cmd *cmd = qv_container_of(io, struct qv_ata_cmd, io);

    if (io->result != 0) {
        if (was_canceled(cmd)) {
            cancel(cmd);
        } else {
            end_failed(cmd, io->op, io->offset, io->result);
        }
        return;
    }
    cmd->moved += cmd->piece;
    if (cmd->moved == cmd->len) {
        ata_end(cmd, 0);
    } else {
        cmd->done(cmd);
    }
}

/* A piece of data that is in cmd->buf. */
static void move_buf(struct qv_ata_cmd *cmd, const struct iovec *iov, int iovcnt, uint32_t len)
{
    if (cmd->dir == QV_ATA_IN) {
        qv_iov_from_buf(iov, iovcnt, 0, cmd->buf + cmd->moved, len);
    } else {
        qv_iov_to_buf(iov, iovcnt, 0, cmd->buf + cmd->moved, len);
    }
    cmd->moved += len;
    if (cmd->moved < cmd->len) {
        cmd->done(cmd);
    } else if (cmd->dir == QV_ATA_OUT) {
        row(cmd)->received(cmd->drive, cmd);
    } else {
        ata_end(cmd, 0);
    }
}

void qv_ata_move(struct qv_ata_cmd *cmd, const struct iovec *iov, int iovcnt, uint32_t len)
{
    assert(cmd->begun && len > 0 && len % QV_SECTOR_SIZE == 0 && len <= cmd->len - cmd->moved);
    if (cmd->buf != NULL) {
        move_buf(cmd, iov, iovcnt, len);
        return;
    }
    ata_note_access(cmd->drive);
    cmd->piece = len;
    memset(&cmd->io, 0, sizeof(cmd->io));
    cmd->io.iov = iov;
    cmd->io.iovcnt = iovcnt;
    if (cmd->dir == QV_ATA_IN) {
        submit(cmd, QV_OP_READ, cmd->offset + cmd->moved, len, move_done);
    } else {
        cmd->io.flags = cmd->io_flags;
        submit(cmd, QV_OP_WRITE, cmd->offset + cmd->moved, len, move_done);
    }
}

/* ---- commands in steps ---- */

static void step_done(struct qv_io *io);

/* Returns whether the last step went well; the command is over when not. */
static bool step_ok(struct qv_ata_cmd *cmd)
{
    if (cmd->io.result == 0) {
        return true;
    }
    if (was_canceled(cmd)) {
        cancel(cmd);
    } else {
        end_failed(cmd, cmd->io.op, cmd->io.offset, cmd->io.result);
    }
    return false;
}

bool ata_steps(struct qv_ata_cmd *cmd)
{
    for (;;) {
        memset(&cmd->io, 0, sizeof(cmd->io));
        if (!row(cmd)->step(cmd->drive, cmd)) {
            break;
        }
        cmd->over = false;
        cmd->inside = true;
        submit(cmd, cmd->io.op, cmd->io.offset, cmd->io.len, step_done);
        cmd->inside = false;
        if (!cmd->over || !step_ok(cmd)) {
            return false;
        }
    }
    if (row(cmd)->finish != NULL) {
        row(cmd)->finish(cmd->drive, cmd);
    }
    return ata_end(cmd, 0);
}

static void step_done(struct qv_io *io)
{
    struct qv_ata_cmd *cmd = qv_container_of(io, struct qv_ata_cmd, io);

    if (cmd->inside) {
        cmd->over = true;
    } else if (step_ok(cmd)) {
        ata_steps(cmd);
    }
}

/* ---- taking requests back ---- */

static bool is_ours(const struct qv_io *io, void *arg)
{
    return io->user == arg;
}

void qv_ata_cancel_kept(struct qv_ata_drive *d)
{
    d->canceling = true;
    qv_disk_cancel_kept(d->disk, is_ours, d);
    d->canceling = false;
}
