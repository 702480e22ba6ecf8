/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Commands, from a slot of the command list to their end. Source: AHCI 1.3.1, 4.2.2, 5.3
 * to 5.6, 6.2.
 *
 * Queued commands run side by side; any other runs alone. Headers, FISes and PRDT entries are
 * copied once and the copies are checked; data stays in guest memory.
 *
 * Errors: a port that reports one begins nothing until the guest clears PxCMD.ST. A queued command
 * that fails waits for the others in flight, so that what they did is reported before the error.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/endian.h"
#include "base/maths.h"
#include "device/ahci/ahci_int.h"

struct command_header {
    qv_le16 flags; /* length of the FIS, A, W, P, R, B, C, port multiplier port */
    qv_le16 prdt_len;
    qv_le32 prd_bytes; /* moved, by the adapter */
    qv_le32 table, table_upper;
    qv_le32 reserved[4];
};
static_assert(sizeof(struct command_header) == 32, "layout is fixed by the spec");

struct prd {
    qv_le32 base, base_upper;
    qv_le32 reserved;
    qv_le32 flags; /* bytes - 1, bit 31: interrupt */
};
static_assert(sizeof(struct prd) == 16, "layout is fixed by the spec");

#define TABLE_ALIGN 128u
#define TABLE_PRDT  0x80u /* where the PRDT stands in a command table */
#define TABLE_CFIS  20u   /* bytes of the command FIS that mean something */
#define PRD_BYTES   0x3fffffu
#define PRD_IRQ     0x80000000u
#define LIST_BYTES  (AHCI_SLOTS * UINT64_C(32))

/* ---- the end of a command ---- */

static void slot_free(struct ahci_slot *s)
{
    struct ahci_port *p = s->port;

    g_free(s->block);
    s->block = NULL;
    qv_guest_view_leave(p->hba->view);
    p->running &= ~(1u << s->index);
    p->dropped &= ~(1u << s->index);
}

static void fatal(struct ahci_port *p, uint32_t bits)
{
    p->halted = true;
    p->serr |= SERR_E;
    ahci_port_report(p);
    ahci_port_event(p, bits);
}

/* The number of bytes moved, for the driver. AHCI 1.3.1, 4.2.2, DW 1 */
static void write_prd_bytes(struct ahci_port *p, unsigned index, uint32_t moved)
{
    struct command_header *h;

    if (p->list == NULL || !ahci_dma_ok(p->hba)) {
        return;
    }
    h = (struct command_header *)(void *)p->list + index;
    h->prd_bytes = qv_le32_make(moved);
    if (p->hba->log != NULL) {
        qv_dirty_log_mark(p->hba->log, p->clb + index * sizeof(*h), sizeof(*h));
    }
}

static unsigned count(uint32_t slots)
{
    return (unsigned)__builtin_popcount(slots);
}

/* Whether the report of queued commands that ended waits for more of them. */
static bool report_waits(struct ahci_port *p)
{
    int64_t wait;

    if (p->report || p->failed || p->halted || p->paused) {
        return false;
    }
    wait = qv_moderation_ended(&p->moderation, count(p->finished), count(p->running), qv_now_ns());
    if (wait > 0 && !p->report_timer.armed) {
        qv_timer_arm(&p->report_timer, wait);
    }
    return wait > 0;
}

static void report(struct ahci_port *p)
{
    uint32_t finished = p->finished;

    ahci_port_forget(p);
    ahci_post_sdb(p, QV_ATA_S_DRDY | QV_ATA_S_DSC, 0, finished);
    ahci_completed(p, count(finished));
}

/* Tells of queued commands that ended, and of one that failed once no other is in flight. */
static void flush(struct ahci_port *p)
{
    if (p->finished != 0 && !report_waits(p)) {
        report(p);
    }
    if (p->failed && p->running == 0) {
        p->failed = false;
        p->halted = true;
        ahci_post_sdb(p, QV_ATA_S_DRDY | QV_ATA_S_DSC | QV_ATA_S_ERR, p->failed_error, 0);
    }
}

static void flush_work(struct qv_work *work)
{
    struct ahci_port *p = qv_container_of(work, struct ahci_port, flush_work);

    p->flush_queued = false;
    flush(p);
    ahci_port_run(p);
    ahci_settle(p->hba); /* last: whoever waited may free the adapter */
}

/* At the end of the thread's turn, so that one FIS and one interrupt tell of many. */
static void flush_later(struct ahci_port *p)
{
    if (!p->flush_queued) {
        p->flush_queued = true;
        qv_thread_defer(&p->flush_work);
    }
}

void ahci_port_report(struct ahci_port *p)
{
    if (p->finished != 0) {
        p->report = true;
        flush_later(p);
    }
}

void ahci_port_forget(struct ahci_port *p)
{
    p->finished = 0;
    p->report = false;
    qv_moderation_stop(&p->moderation);
    qv_timer_cancel(&p->report_timer);
}

void ahci_port_arrived(struct ahci_port *p, unsigned n)
{
    if (n > 0) {
        qv_moderation_arrived(&p->moderation, n, qv_now_ns());
    }
}

static void report_timer_fired(struct qv_timer *timer)
{
    struct ahci_port *p = qv_container_of(timer, struct ahci_port, report_timer);
    int64_t wait = qv_moderation_expired(&p->moderation, count(p->finished), qv_now_ns());

    if (wait > 0) {
        qv_timer_arm(timer, wait);
    } else {
        ahci_port_report(p);
    }
}

static void end_queued(struct ahci_slot *s)
{
    struct ahci_port *p = s->port;

    if (!(s->cmd.tf.status & QV_ATA_S_ERR)) {
        p->finished |= 1u << s->index;
    } else if (!p->failed) {
        p->failed = true;
        p->failed_error = s->cmd.tf.error;
    }
}

static void end_exclusive(struct ahci_slot *s)
{
    struct ahci_port *p = s->port;
    const struct qv_ata_tf *tf = &s->cmd.tf;
    uint32_t bit = 1u << s->index;

    p->exclusive = false;
    write_prd_bytes(p, s->index, s->cmd.moved);
    if (tf->status & QV_ATA_S_ERR) {
        p->halted = true; /* PxCI shows the driver which one it was */
        ahci_post_d2h(p, tf, true);
        return;
    }
    p->ci &= ~bit;
    if (s->cmd.dir == QV_ATA_IN && !s->cmd.dma) {
        ahci_post_pio_setup(p, tf, true, (uint16_t)MIN(s->cmd.drq, s->cmd.len));
    } else {
        ahci_post_d2h(p, tf, true);
    }
    ahci_completed(p, 1);
}

static void slot_end(struct ahci_slot *s)
{
    struct ahci_port *p = s->port;
    uint32_t bit = 1u << s->index;

    if (p->dropped & bit) {
        p->exclusive = false; /* they are dropped all together */
        p->tfd &= ~QV_ATA_S_BSY;
    } else if (s->cmd.queued) {
        end_queued(s);
    } else {
        end_exclusive(s);
    }
    if (s->prd_irq && !(p->dropped & bit)) {
        ahci_port_event(p, PXIS_DPS);
    }
    slot_free(s);
    flush_later(p);
}

/* A stopped disk gave the request back: the command is begun anew later. */
static void slot_canceled(struct ahci_slot *s)
{
    struct ahci_port *p = s->port;

    if (!(p->dropped & (1u << s->index))) {
        p->redo |= 1u << s->index;
    }
    p->exclusive = false;
    slot_free(s);
    flush_later(p);
}

/* ---- data ---- */

static void mark_written(struct qv_ahci *hba, const struct iovec *iov, int cnt)
{
    uint64_t gpa;

    for (int i = 0; i < cnt; i++) {
        if (qv_guest_map_gpa_of(hba->view->map, iov[i].iov_base, &gpa)) {
            qv_dirty_log_mark(hba->log, gpa, iov[i].iov_len);
        }
    }
}

/* How far the PRDT was read. */
struct prdt_pos {
    uint32_t prd, done;
};

/* Makes a list of up to @max pieces of guest memory for the next @want bytes. Returns how many
 * bytes they have (less than @want when the table or the list ends), or -EFAULT. */
static int64_t gather(struct ahci_slot *s, struct iovec *iov, unsigned max, uint32_t want, int *cnt)
{
    bool write = s->cmd.dir == QV_ATA_IN;
    uint32_t got = 0;
    unsigned n = 0;

    while (got < want && s->prd < s->prdt_len) {
        struct prd d;
        uint32_t len, part;
        int rc;

        if (qv_guest_view_read(s->port->hba->view,
                               s->table + TABLE_PRDT + sizeof(d) * (uint64_t)s->prd, &d,
                               sizeof(d)) < 0) {
            return -EFAULT;
        }
        len = (qv_le32_get(d.flags) & PRD_BYTES) + 1;
        part = len <= s->prd_done ? 0 : MIN(len - s->prd_done, want - got); /* may have shrunk */
        rc = part == 0 ? 0
                       : qv_guest_view_iov(
                             s->port->hba->view,
                             (qv_le32_get(d.base) | (uint64_t)qv_le32_get(d.base_upper) << 32) +
                                 s->prd_done,
                             part, write, iov + n, max - n);
        if (rc == -E2BIG) {
            break;
        }
        if (rc < 0) {
            return rc;
        }
        n += (unsigned)rc;
        got += part;
        s->prd_done += part;
        if (s->prd_done >= len) {
            s->prd_irq = s->prd_irq || (qv_le32_get(d.flags) & PRD_IRQ);
            s->prd++;
            s->prd_done = 0;
        }
    }
    *cnt = (int)n;
    return got;
}

/* Cuts the list to whole sectors; what is cut off is gathered again. */
static uint32_t whole_sectors(struct ahci_slot *s, const struct prdt_pos *from, struct iovec *iov,
                              unsigned max, uint32_t got, int *cnt)
{
    uint32_t whole = (uint32_t)qv_align_down(got, QV_SECTOR_SIZE);

    if (whole == got || whole == 0) {
        return whole;
    }
    s->prd = from->prd;
    s->prd_done = from->done;
    return gather(s, iov, max, whole, cnt) == whole ? whole : 0;
}

/* The next piece of the data phase as a list of buffers. 0: there is no room for a sector. */
static int64_t next_piece(struct ahci_slot *s, struct iovec **iov, int *cnt)
{
    struct prdt_pos from = {s->prd, s->prd_done};
    uint32_t want = s->cmd.len - s->cmd.moved;
    unsigned max = s->block != NULL ? AHCI_IOV_BLOCK : AHCI_IOV_INLINE;
    int64_t got;

    *iov = s->block != NULL ? s->block : s->iov;
    got = gather(s, *iov, max, want, cnt);
    if (got >= 0 && got < want && s->block == NULL && s->prd < s->prdt_len) {
        s->block = g_new(struct iovec, AHCI_IOV_BLOCK);
        s->prd = from.prd;
        s->prd_done = from.done;
        return next_piece(s, iov, cnt);
    }
    if (got < 0) {
        return got;
    }
    return whole_sectors(s, &from, *iov, max, (uint32_t)got, cnt);
}

/* The data phase cannot go on. */
static void end_without_data(struct ahci_slot *s, int64_t rc)
{
    struct ahci_port *p = s->port;

    if (rc == 0) { /* the table ended before the data did */
        if (!(p->dropped & (1u << s->index))) {
            ahci_port_event(p, PXIS_OFS);
        }
        qv_ata_fail(&s->cmd, QV_ATA_E_ABRT);
        slot_end(s);
        return;
    }
    qv_log_limited(&p->hba->log_limit, QV_LOG_WARN,
                   "%s: port %u: a command's buffers are not memory", p->hba->name, p->index);
    qv_ata_forget(&s->cmd);
    p->exclusive = false;
    if (!(p->dropped & (1u << s->index))) {
        fatal(p, PXIS_HBFS);
    }
    slot_free(s);
    flush_later(p);
}

/* Moves data until a move does not end at once, or the command has ended. */
static void move_data(struct ahci_slot *s)
{
    for (;;) {
        struct iovec *iov;
        int64_t len;
        int cnt;

        len = next_piece(s, &iov, &cnt);
        if (len <= 0) {
            end_without_data(s, len);
            return;
        }
        s->over = false;
        s->inside = true;
        qv_ata_move(&s->cmd, iov, cnt, (uint32_t)len);
        s->inside = false;
        if (!s->over) {
            return; /* cmd_done() goes on */
        }
        if (s->port->hba->log != NULL && s->cmd.dir == QV_ATA_IN) {
            mark_written(s->port->hba, iov, cnt);
        }
        if (s->cmd.ended) {
            slot_end(s);
            return;
        }
        if (s->cmd.canceled) {
            slot_canceled(s);
            return;
        }
    }
}

static void cmd_done(struct qv_ata_cmd *cmd)
{
    struct ahci_slot *s = qv_container_of(cmd, struct ahci_slot, cmd);

    if (s->inside) {
        s->over = true;
        return;
    }
    if (s->port->hba->log != NULL && cmd->dir == QV_ATA_IN) {
        mark_written(s->port->hba, cmd->io.iov, cmd->io.iovcnt);
    }
    if (cmd->canceled) {
        slot_canceled(s);
    } else if (cmd->ended) {
        slot_end(s);
    } else if (s->port->dropped & (1u << s->index)) {
        qv_ata_forget(cmd);
        slot_end(s);
    } else {
        move_data(s);
    }
}

/* ---- beginning ---- */

/* A FIS that is no command: it carries the control register, that is, software resets. */
static void control_fis(struct ahci_port *p, unsigned index, uint8_t control)
{
    bool srst = control & 0x04;
    struct qv_ata_tf tf;

    p->ci &= ~(1u << index);
    if (srst) {
        p->srst = true;
        return;
    }
    if (p->srst) {
        p->srst = false;
        ahci_port_forget(p);
        p->failed = false;
        qv_ata_reset(p->drive, QV_ATA_SOFT, &tf);
        p->sig = SIG_ATA;
        ahci_post_d2h(p, &tf, false);
    }
}

static void begin(struct ahci_slot *s)
{
    struct ahci_port *p = s->port;

    s->over = false;
    s->inside = true;
    if (qv_ata_begin(p->drive, &s->cmd)) {
        s->inside = false;
        if (s->cmd.queued) {
            ahci_post_dma_setup(p, s->cmd.tag, s->cmd.dir == QV_ATA_IN, s->cmd.len);
        } else if (!s->cmd.dma && s->cmd.dir == QV_ATA_OUT) {
            ahci_post_pio_setup(p, &s->cmd.tf, false, (uint16_t)MIN(s->cmd.drq, s->cmd.len));
        }
        move_data(s);
        return;
    }
    s->inside = false;
    if (s->over && s->cmd.canceled) {
        slot_canceled(s);
    } else if (s->over) {
        slot_end(s);
    }
}

static bool is_queued(uint8_t command)
{
    return command == 0x60 || command == 0x61;
}

/* A queued command whose tag is not its slot's: the drive reports an error without saying of what.
 */
static void wrong_tag(struct ahci_port *p)
{
    p->failed = true;
    p->failed_error = QV_ATA_E_ABRT;
    flush_later(p);
}

enum took { TOOK_ONE, TOOK_NONE, MUST_WAIT };

/* Reads the command of slot @index, and begins it when it may run now. */
static enum took take(struct ahci_port *p, unsigned index)
{
    struct ahci_slot *s = &p->slots[index];
    struct command_header h;
    uint8_t fis[TABLE_CFIS], control;
    struct qv_ata_tf tf;
    bool command;

    memcpy(&h, p->list + index * sizeof(h), sizeof(h));
    s->table = (qv_le32_get(h.table) & ~(TABLE_ALIGN - 1)) | (uint64_t)qv_le32_get(h.table_upper)
                                                                 << 32;
    if (qv_guest_view_read(p->hba->view, s->table, fis, sizeof(fis)) < 0 ||
        !ahci_parse_h2d(fis, &tf, &command, &control)) {
        fatal(p, PXIS_HBFS);
        return TOOK_NONE;
    }
    if (!(command && is_queued(tf.command))) {
        if (p->running != 0) {
            return MUST_WAIT;
        }
        if (p->finished != 0) {
            report(p);
        }
    }
    p->ccs = index;
    p->redo &= ~(1u << index);
    if (!command) {
        control_fis(p, index, control);
        return TOOK_ONE;
    }
    s->cmd.tf = tf;
    s->cmd.done = cmd_done;
    s->prdt_len = qv_le16_get(h.prdt_len);
    s->prd = s->prd_done = 0;
    s->prd_irq = false;
    if (is_queued(tf.command)) {
        p->ci &= ~(1u << index); /* the drive has it; PxSACT shows that it runs */
        if (((tf.count >> 3) & 31) != index) {
            wrong_tag(p);
            return TOOK_ONE;
        }
    } else {
        p->exclusive = true;
        p->tfd |= QV_ATA_S_BSY;
    }
    p->running |= 1u << index;
    qv_guest_view_enter(p->hba->view);
    begin(s);
    return TOOK_ONE;
}

static bool may_run(struct ahci_port *p)
{
    if (!(p->cmd & PXCMD_ST) || p->halted || p->failed || p->exclusive || p->dropped != 0 ||
        p->link != LINK_UP || p->detach != DETACH_NONE || p->hba->hold != 0 ||
        !ahci_dma_ok(p->hba)) {
        return false;
    }
    if (p->list == NULL) {
        p->list = qv_guest_view_ptr(p->hba->view, p->clb, LIST_BYTES, true);
    }
    return true;
}

void ahci_port_run(struct ahci_port *p)
{
    for (unsigned left = AHCI_TURN; left > 0; left--) {
        uint32_t todo = (p->ci | p->redo) & ~p->running;
        unsigned from = (p->ccs + 1) % AHCI_SLOTS;
        uint32_t rotated;

        if (todo == 0 || !may_run(p)) {
            return;
        }
        if (p->list == NULL) {
            fatal(p, PXIS_HBFS);
            return;
        }
        rotated = from == 0 ? todo : todo >> from | todo << (AHCI_SLOTS - from);
        if (take(p, (from + (unsigned)__builtin_ctz(rotated)) % AHCI_SLOTS) == MUST_WAIT) {
            return;
        }
    }
    ahci_port_run_later(p);
}

static void run_work(struct qv_work *work)
{
    struct ahci_port *p = qv_container_of(work, struct ahci_port, run_work);

    p->run_queued = false;
    ahci_port_run(p);
    ahci_settle(p->hba);
}

void ahci_port_run_later(struct ahci_port *p)
{
    if (!p->run_queued) {
        p->run_queued = true;
        qv_thread_post(qv_thread_self(), &p->run_work);
    }
}

void ahci_port_works_init(struct ahci_port *p)
{
    p->flush_work.fn = flush_work;
    p->report_timer.fn = report_timer_fired;
    p->run_work.fn = run_work;
}
