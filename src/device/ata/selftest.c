/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Self-tests: the drive reads the disk by itself, between commands. The short one samples it, the
 * extended one reads all of it. One read at a time, with a pause between them.
 * Source: ACS-3, 7.48.5 "SMART EXECUTE OFF-LINE IMMEDIATE".
 */
#include <errno.h>
#include <string.h>

#include "base/maths.h"
#include "device/ata/ata_int.h"

#define TEST_SHORT    0x01
#define TEST_EXTENDED 0x02
#define STATUS_ON     0xf
#define STATUS_HOST   0x1 /* ended by the host */
#define STATUS_READ   0x7 /* a part that reads failed */
#define SHORT_STEPS   64u
#define PAUSE_NS      INT64_C(1000000)

static uint64_t disk_bytes(const struct qv_ata_drive *d)
{
    return d->sectors * QV_SECTOR_SIZE;
}

static uint8_t tenths_left(const struct ata_selftest *t)
{
    return t->steps == 0 ? 0 : (uint8_t)(10 - t->step * 10 / t->steps);
}

uint8_t ata_selftest_status(const struct qv_ata_drive *d)
{
    const struct ata_selftest *t = &d->selftest;

    return (uint8_t)(t->status << 4 | (t->on ? MIN(tenths_left(t), 9) : 0));
}

static void test_end(struct qv_ata_drive *d, uint8_t status, uint64_t lba)
{
    struct ata_selftest *t = &d->selftest;
    struct ata_selftest_note *n = &d->tests[d->test_count % ATA_SELFTESTS_KEPT];

    *n = (struct ata_selftest_note){
        .kind = t->kind,
        .status = (uint8_t)(status << 4 | (status == 0 ? 0 : MIN(tenths_left(t), 9))),
        .hours = ata_hours(d),
        .lba = status == STATUS_READ ? (uint32_t)qv_min_u64(lba, UINT32_MAX) : UINT32_MAX,
    };
    d->test_count = d->test_count == UINT16_MAX - 1 ? 65520u : d->test_count; /* a multiple of 21 */
    d->test_count++;
    t->status = status;
    t->on = false;
    qv_timer_cancel(&t->timer);
    if (!t->reading) {
        g_free(t->buf);
        t->buf = NULL;
    }
}

static void read_done(struct qv_io *io)
{
    struct ata_selftest *t = qv_container_of(io, struct ata_selftest, io);
    struct qv_ata_drive *d = qv_container_of(t, struct qv_ata_drive, selftest);

    t->reading = false;
    if (!t->on) { /* stopped meanwhile */
        g_free(t->buf);
        t->buf = NULL;
    } else if (io->result == -ECANCELED && d->canceling) {
        test_end(d, STATUS_HOST, 0);
    } else if (io->result != 0) {
        test_end(d, STATUS_READ, io->offset / QV_SECTOR_SIZE);
    } else if (++t->step == t->steps) {
        test_end(d, 0, 0);
    } else if (!d->paused) {
        qv_timer_arm(&t->timer, PAUSE_NS);
    }
    if (d->paused && d->idle != NULL) {
        void (*idle)(void *arg) = d->idle;

        d->idle = NULL;
        idle(d->idle_arg);
    }
}

/* Where step @t->step reads. */
static uint64_t step_offset(const struct qv_ata_drive *d)
{
    const struct ata_selftest *t = &d->selftest;
    uint64_t chunks = qv_div_up(disk_bytes(d), ATA_VERIFY_STEP);

    return t->kind == TEST_SHORT ? chunks / t->steps * t->step * ATA_VERIFY_STEP
                                 : t->step * ATA_VERIFY_STEP;
}

static void test_read(struct qv_ata_drive *d)
{
    struct ata_selftest *t = &d->selftest;
    uint64_t offset = step_offset(d);

    t->iov.iov_base = t->buf;
    t->iov.iov_len = qv_min_u64(ATA_VERIFY_STEP, disk_bytes(d) - offset);
    t->reading = true;
    memset(&t->io, 0, sizeof(t->io));
    t->io.op = QV_OP_READ;
    t->io.offset = offset;
    t->io.len = t->iov.iov_len;
    t->io.iov = &t->iov;
    t->io.iovcnt = 1;
    t->io.done = read_done;
    t->io.user = d;
    qv_disk_submit(d->disk, &t->io);
}

static void timer_fired(struct qv_timer *timer)
{
    struct ata_selftest *t = qv_container_of(timer, struct ata_selftest, timer);
    struct qv_ata_drive *d = qv_container_of(t, struct qv_ata_drive, selftest);

    if (t->on && !t->reading && !d->paused) {
        test_read(d);
    }
}

void ata_selftest_run(struct qv_ata_drive *d)
{
    if (d->selftest.on && !d->selftest.reading && !d->paused) {
        qv_timer_arm(&d->selftest.timer, PAUSE_NS);
    }
}

bool ata_selftest_begin(struct qv_ata_drive *d, uint8_t kind)
{
    struct ata_selftest *t = &d->selftest;
    uint64_t chunks = qv_div_up(disk_bytes(d), ATA_VERIFY_STEP);

    if ((kind != TEST_SHORT && kind != TEST_EXTENDED) || t->reading || chunks == 0) {
        return false;
    }
    if (t->on) {
        ata_selftest_stop(d, STATUS_HOST); /* a new one ends the old one */
    }
    t->kind = kind;
    t->status = STATUS_ON;
    t->step = 0;
    t->steps = kind == TEST_SHORT ? qv_min_u64(chunks, SHORT_STEPS) : chunks;
    t->buf = g_malloc(ATA_VERIFY_STEP);
    t->on = true;
    ata_selftest_run(d);
    return true;
}

void ata_selftest_stop(struct qv_ata_drive *d, uint8_t status)
{
    if (d->selftest.on) {
        test_end(d, status, 0);
    }
}

void ata_selftest_init(struct qv_ata_drive *d)
{
    d->selftest.timer.fn = timer_fired;
}

void ata_selftest_destroy(struct qv_ata_drive *d)
{
    if (d->selftest.on) {
        qv_timer_cancel(&d->selftest.timer);
    }
    g_free(d->selftest.buf);
}
